/* A base checkpoint on disk, and a base with its domains on a device.
 *
 * A model holds one base (frozen, or partly trained) and loaded domains. Domain 0 is the base itself; in a model opened for training
 * (methods/method.h) it is the domain being trained. All domains share the weights; what a domain owns is vectors (biases, gammas)
 * and rows of the class-table pool. */
#ifndef DFCL_MODELS_MODEL_H
#define DFCL_MODELS_MODEL_H

#include "models/dit.h"
#include "models/latent_rgb.h"

#include <difffit-cl/model.h>
#include <sys/stat.h>

struct dfcl_packed;
struct dfcl_tensor_file;
struct dfcl_st_writer;

#define DFCL_BASE_FORMAT "difffit-cl base 1"

/* ---- the base on disk ---- */

struct dfcl_base {
    const dfcl_context *ctx;
    struct dfcl_tensor_file *file; /* NULL for a random base, and once the model is on its device unless weights are used in place */
    char *path;                    /* of the file, or what messages call a random base */
    struct stat state;             /* of the path before it was opened; zero where it has none */
    bool random;                   /* values come from dfcl_init_values */
    struct dfcl_init_params init;  /* random: how; its class names are not kept here */
    enum dfcl_dtype init_dtype;
    struct dfcl_dit *table;        /* names and shapes, on no device */
    struct dfcl_dit_config cfg;    /* as used: `input`, `width` and `pos_base` reflect the parameters */
    int file_input, file_width;    /* the file's own resolution; 0: it does not say */
    bool own_positions;            /* the model is used with the file's resolution and positions */
    float *positions;              /* the file's pos_embed, or NULL: the table is computed */
    bool gammas;                   /* the file has gammas: they are folded into the weights as these are read */
    char **class_names;            /* cfg.classes names, or NULL: the file names none */
    struct dfcl_latent_rgb rgb;    /* of its latents' decoder; channels 0: unknown */
};
/* Opens the container, finds the shape and checks that every tensor is there with the right shape. Values are not read yet. */
dfcl_status dfcl_base_open(struct dfcl_base **out, const dfcl_context *ctx, const struct dfcl_model_params *params, dfcl_error *err);
void dfcl_base_close(struct dfcl_base **base);

/* Visits every tensor used, in byte order of its name, with its values as f32 (valid during the call, may be changed), and computes the base
 * hash (docs/formats.md, "Base hash": of the stored bytes) in the same single pass over the file. Gammas of the file are folded in. Host memory: one tensor at a time; mapped pages are released behind.
 * `visit` may be NULL (hash only); hash may be NULL (no hashing). DFCL_NONFINITE when a visited value is not finite. */
typedef dfcl_status (*dfcl_base_visit)(void *user, const struct dfcl_param *p, float *values, dfcl_error *err);
dfcl_status dfcl_base_stream(struct dfcl_base *base, dfcl_base_visit visit, void *user, char hash[65], dfcl_error *err);
/* Where a matrix lies in the mapped file as the type wanted, row-major, while base->file is open; *at = NULL: nowhere, or gammas are folded into it. */
dfcl_status dfcl_base_in_place(struct dfcl_base *base, const struct dfcl_param *p, enum dfcl_dtype dtype, const void **at, dfcl_error *err);
/* One tensor as f32 by original name (in base->table), gammas folded in; freed with dfcl_free. */
dfcl_status dfcl_base_read(struct dfcl_base *base, const char *name, float **values, dfcl_error *err);
/* Rows of qkv, proj and fc2 (weight or bias) times the gammas of their outputs: folding, exact but for rounding. gamma[4] in
 * the order gamma1, gamma2, attn.gamma1, attn.gamma2; NULL entries count as 1. */
void dfcl_fold_gammas(const struct dfcl_param *p, const float *const gamma[4], float *values);

/* ---- on the device ---- */

struct dfcl_domain {
    bool used;
    char *path;      /* delta file; NULL: the base */
    float strength;
    int classes;     /* K; the domain has K + 1 class rows, the last is its null class */
    int first_row;   /* of the class-table pool */
    char **names;    /* K names, or NULL */
};

struct dfcl_model {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_dit *dit;
    struct dfcl_model_shape shape;
    struct dfcl_base *base;  /* stays open: description and class names; its file is closed after the upload, unless weights lie in it */
    struct dfcl_packed *packed; /* where packed matrices lie in place, or NULL (DFCL_PACK_CACHE) */
    enum dfcl_dtype weights; /* type of the frozen matrices on the device */
    char hash[65];           /* of the base file's values, also when the model trains or holds them rounded */
    struct dfcl_latent_rgb rgb; /* goes into what is saved; channels 0: unknown */
    struct dfcl_domain *domains;
    int domain_count;        /* capacity, base included */
    int class_rows;          /* rows of the pool */
    /* A model opened for training: what its deltas say of themselves. "" otherwise. */
    char method[24], gamma_sites[48], gamma_blocks[256];
    bool table_rebuilt;      /* domain 0's class table is not the base's */
};

const char *dfcl_weight_type_name(enum dfcl_weight_type type); /* "f32", "bf16", "f16" */
/* Whether training would keep activations as bf16 (DFCL_ACTIVATIONS_AUTO decided). */
bool dfcl_keeps_bf16(const struct dfcl_model_params *p);

/* How a base is put on the device; all zero: for inference. */
struct dfcl_model_setup {
    bool training;           /* one domain, no spare rows; the class table and `select` below may change the base */
    int classes;             /* training: > 0 replaces the base's table by one of this many classes (+ null), left unset */
    const char *const *class_names; /* training and classes > 0: their names; NULL: unnamed */
    /* Training: sets roles and attaches gammas in the parameter table before memory is taken. */
    dfcl_status (*select)(void *user, struct dfcl_dit *dit, dfcl_error *err);
    void *user;
};
/* Takes `base` over (also on failure). With setup->classes > 0 the class table's values are undefined until the caller sets them. */
dfcl_status dfcl_model_open_base(dfcl_model **out, dfcl_device *dev, struct dfcl_base *base, const struct dfcl_model_params *params,
                                 const struct dfcl_model_setup *setup, dfcl_error *err);

struct dfcl_dit *dfcl_model_dit(dfcl_model *model);
struct dfcl_device *dfcl_model_device(dfcl_model *model);
/* Row of the class-table pool for class_id (0 .. classes; classes: the null class) of a domain; DFCL_USAGE out of range. */
dfcl_status dfcl_model_row(const dfcl_model *model, int domain, int class_id, int32_t *row, dfcl_error *err);

/* Finds a free domain slot and `rows` free rows of the pool; DFCL_NOMEM with what is in use when there is no room. */
dfcl_status dfcl_model_take_domain(dfcl_model *model, int rows, int *domain, dfcl_error *err);

/* Writes the model's current weights (a `full` run; class names and shape in the metadata) as a safetensors base with original
 * names. `values`: flat trained array to use in place of the live one (the EMA), absent: live. dtype DFCL_F32, F16 or BF16. */
dfcl_status dfcl_model_save(dfcl_model *model, const char *path, struct dfcl_ref values, enum dfcl_dtype dtype, dfcl_error *err);

/* ---- writing a base ---- */

/* Initial values of one parameter, rounded to no type yet. */
void dfcl_init_values(const struct dfcl_param *p, const struct dfcl_init_params *params, float *out);
/* Shape and type that `params` describes; DFCL_USAGE when they cannot be. */
dfcl_status dfcl_init_check(const struct dfcl_init_params *params, struct dfcl_dit_config *cfg, enum dfcl_dtype *dtype, dfcl_error *err);
/* "f32" (also NULL), "f16", "bf16". */
dfcl_status dfcl_weight_dtype(const char *text, enum dfcl_dtype *out, dfcl_error *err);
/* The parameters of a base without gammas in byte order of their names: the order of hashing, streaming and writing. Freed with dfcl_free. */
dfcl_status dfcl_base_order(struct dfcl_dit *dit, struct dfcl_param ***out, int *count, dfcl_error *err);
/* Metadata and all tensors of a base, in the order in which their values must follow: pos_embed, then dfcl_base_order.
 * `dit` only lends its table. */
dfcl_status dfcl_base_declare(struct dfcl_st_writer *w, struct dfcl_dit *dit, const struct dfcl_dit_config *cfg,
                              const char *const *class_names, enum dfcl_dtype dtype, dfcl_error *err);
/* Its parts: the metadata, and of these the class names alone. */
dfcl_status dfcl_base_describe(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_dit_config *cfg,
                               const char *const *class_names, dfcl_error *err);
dfcl_status dfcl_base_meta_classes(struct dfcl_st_writer *w, const dfcl_context *ctx, const char *const *class_names, int classes,
                                   dfcl_error *err);
/* The computed table [tokens, hidden]; freed with dfcl_free. */
dfcl_status dfcl_base_positions(const dfcl_context *ctx, const struct dfcl_dit_config *cfg, float **out, dfcl_error *err);
/* `positions`: those of the file it came from, NULL: the computed table. */
dfcl_status dfcl_base_write_positions(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_dit_config *cfg,
                                      const float *positions, dfcl_error *err);

/* ---- class names ---- */

/* JSON array of n names (freed with dfcl_free), and back: *count names from an array of strings; DFCL_FORMAT otherwise, `what` named. */
dfcl_status dfcl_names_json(const dfcl_context *ctx, char *const *names, int n, char **out, dfcl_error *err);
dfcl_status dfcl_names_parse(const dfcl_context *ctx, const char *json, const char *what, char ***out, int *count, dfcl_error *err);
/* Copies a list of names (NULL entries become ""). *out is NULL for names NULL. */
dfcl_status dfcl_names_copy(const dfcl_context *ctx, const char *const *names, int n, char ***out, dfcl_error *err);
void dfcl_names_free(const dfcl_context *ctx, char **names, int n);

#endif
