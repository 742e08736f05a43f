/* Delta files: what a fine-tuning run changed, as one safetensors with original names and f32 values (not differences).
 * docs/formats.md, "Delta". */
#ifndef DFCL_METHODS_DELTA_H
#define DFCL_METHODS_DELTA_H

#include "methods/method.h"

#define DFCL_DELTA_FORMAT "difffit-cl delta 1"

/* A delta file on disk: metadata read, values not yet. */
struct dfcl_delta {
    const dfcl_context *ctx;
    struct dfcl_tensor_file *file;
    char *path;
    bool plain;           /* a plain state dict with gamma keys (the published PyTorch reproduction): no metadata */
    char method[24], gamma_sites[48], gamma_blocks[256];
    char base_hash[65];   /* "" when unknown */
    double pos_base;      /* -1 when unknown */
    int input, width;     /* resolution it was trained at; 0 unknown */
    int classes;          /* of its class table; -1: it has none, the base's is used */
    bool own_classes;     /* the table was rebuilt for other classes than the base's; false: row i belongs to the base's class i */
    char **class_names;   /* or NULL */
    struct dfcl_latent_rgb rgb; /* of its latents' decoder; channels 0: unknown */
    char *training;       /* JSON of the training summary, or NULL */
};
dfcl_status dfcl_delta_open(struct dfcl_delta **out, const dfcl_context *ctx, const char *path, dfcl_error *err);
void dfcl_delta_close(struct dfcl_delta **delta);
/* Every tensor must be a vector or the class table of the model whose table `dit` is, in its shape (plain state dicts: others are
 * passed over). */
dfcl_status dfcl_delta_check_shapes(const struct dfcl_delta *delta, struct dfcl_dit *dit, dfcl_error *err);
/* Values of one tensor (freed with dfcl_free); *values NULL when the delta does not have it. DFCL_NONFINITE names one that is not finite. */
dfcl_status dfcl_delta_read(const struct dfcl_delta *delta, const char *name, float **values, dfcl_error *err);
/* Value at strength s: base + s (value - base), for a gamma 1 + s (value - 1), exact at s = 1. */
void dfcl_delta_blend(float *values, const float *base, int64_t count, float s);
/* True when a plain state dict's copy of a frozen matrix is the base's: the relative L2 distance is below 2e-3. Not bit by bit, since the reproduction
 * averages frozen values too (0.9999 e + 0.0001 p in f32 settles up to 1.7e-4 away from p), and files may be 16-bit; another base is at about 1, one step of
 * full fine-tuning at some 3e-3. */
bool dfcl_delta_same_matrix(const float *delta, const float *base, int64_t count);
/* DFCL_FORMAT with both hashes unless equal, or force (then a warning is logged). */
dfcl_status dfcl_delta_check_base(const struct dfcl_delta *delta, const char *base_hash, const char *base_path, bool force, dfcl_error *err);

/* Writes the trained tensors of a model opened by dfcl_method_open. `values`: flat trained array to take instead of the live one
 * (the EMA), absent: live. training_json: summary object, or NULL. Atomic. */
dfcl_status dfcl_delta_save(dfcl_model *model, const char *path, struct dfcl_ref values, const char *training_json, dfcl_error *err);
/* Loads a delta's values into the live trained parameters of a model opened by dfcl_method_open with the same layout (resuming from
 * a delta, verification). Tensors must match the trained set exactly. */
dfcl_status dfcl_delta_restore(dfcl_model *model, const char *path, dfcl_error *err);

#endif
