/* difffit-cl: a base model on a device, and its domains.
 *
 * A model holds one frozen base and any number of loaded domains; domain 0 is the base itself. Not thread-safe. */
#ifndef DFCL_MODEL_H
#define DFCL_MODEL_H

#include <difffit-cl/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dfcl_model dfcl_model;

/* Shape of a Diffusion Transformer. */
struct dfcl_model_shape {
    char name[16];  /* "DiT-XL/2" where a named size fits, else "" */
    int depth, hidden, heads, patch;
    int input;      /* height of the latent (or picture, for pixel models), multiple of patch */
    int input_width; /* its width; 0 where a shape is given (dfcl_model_init): as high as wide */
    int channels;   /* of the latent; the network puts out twice as many (learned range) */
    int classes;    /* the class table has classes + 1 rows; the last is the null class */
    int64_t parameters;  /* without positions */
    double positional_scale; /* grid that the longer side's positions are scaled to: token (row, column) of a grid whose longer side is n lies at
                              * (row, column) * positional_scale / n; 0: own grid */
};
/* Fills depth, hidden, heads, patch of a named size ("DiT-S/8" ... "DiT-XL/2"); DFCL_USAGE if there is none. */
DFCL_API dfcl_status dfcl_model_shape_named(const char *name, struct dfcl_model_shape *shape, dfcl_error *err);

struct dfcl_init_params;

/* Type in which frozen matrices are held on the device: the file's values, rounded to nearest even where the type is shorter. Biases, scale vectors,
 * class tables, positions and everything trained are f32 in any case. */
enum dfcl_weight_type { DFCL_WEIGHTS_F32 = 0, DFCL_WEIGHTS_BF16, DFCL_WEIGHTS_F16 };
/* AUTO: frozen matrices are copied into the layout that the device's kernels read best. NEVER: they keep the file's rows; a CPU reads those that lie in the
 * file in the wanted type (not compressed, not in pieces, no scale vectors to fold in) straight from its mapping, without a copy: the file must then stay
 * as it is while the model is open. CACHE: AUTO, and a copy in that layout is kept under the context's cache_dir: the next model of the same file with the same
 * `weights` uses it in place. A base that is not a single file, a device that does not pack and trained matrices leave it at AUTO, with a warning;
 * with `random` DFCL_USAGE. */
enum dfcl_packing { DFCL_PACK_AUTO = 0, DFCL_PACK_NEVER, DFCL_PACK_CACHE };
/* Type in which training keeps what backward reads of each block; all that is computed is f32. AUTO: bf16 where the weights are held as bf16, else
 * f32. The residual stream, statistics and modulations are always kept as f32. */
enum dfcl_activation_type { DFCL_ACTIVATIONS_AUTO = 0, DFCL_ACTIVATIONS_F32, DFCL_ACTIVATIONS_BF16 };

struct dfcl_model_params {
    const char *path;       /* .pt, .safetensors, or a diffusers folder */
    const struct dfcl_init_params *random; /* instead of a file: the base that dfcl_model_init would write, made in memory (path, heads,
                                            * which and input do not apply). NULL: path */
    int heads;              /* 0: from metadata, config.json or a named size */
    const char *which;      /* training checkpoints: "ema" (default) or "model" */
    int max_domains;        /* beside the base; 0: 1 */
    int max_class_rows;     /* extra class rows for all domains together; 0: 4096 */
    int input, input_width; /* another resolution than the file's: height and width of the latent; input 0: as in the file; input_width 0: square */
    double positional_scale; /* as dfcl_model_shape's; 0: the file's own, or, at another resolution, the file's grid, so that positions span the same range */
    double pos_step;        /* instead: distance between the positions of neighbouring tokens (DiffFit, section 3.4: 0.5 for twice the side). 0: not given.
                             * With input 0 the sides are the file's / pos_step */
    enum dfcl_weight_type weights;
    enum dfcl_packing pack;
    enum dfcl_activation_type activations;
    /* Called now and then while the weights are read, in the thread that opens the model; counts values. May be NULL. */
    void (*progress)(void *user, int64_t done, int64_t total, double seconds);
    void *progress_user;
};
/* Reads a base and puts it on the device, which must outlive the model. DFCL_IO: the file cannot be read; DFCL_FORMAT: no such model, or a
 * tensor is missing or of another shape; DFCL_USAGE: the number of heads is not known, or 16-bit weights where every matrix is trained;
 * DFCL_NONFINITE: a weight is NaN or infinite, or too large for f16; DFCL_NOMEM. */
DFCL_API dfcl_status dfcl_model_open(dfcl_model **out, dfcl_device *dev, const struct dfcl_model_params *params, dfcl_error *err);
DFCL_API void dfcl_model_close(dfcl_model **model);
/* Valid while the model is open, as is the hash. */
DFCL_API const struct dfcl_model_shape *dfcl_model_get_shape(const dfcl_model *model);
DFCL_API const char *dfcl_model_hash(const dfcl_model *model); /* SHA-256 of the weights used, hex; docs/formats.md */

/* Writes a random base: weights as the original initialises them (Xavier uniform, zero adaLN and output) or, with scale > 0, every
 * value N(0, scale). dtype "f32" (also NULL), "f16" or "bf16". */
struct dfcl_init_params {
    struct dfcl_model_shape shape;
    uint64_t seed;
    float scale;
    int no_zeros;           /* 1, scale 0: what starts at zero is drawn too (matrices Xavier, vectors uniform in +-0.02): every value counts */
    const char *dtype;
    const char *const *class_names; /* shape.classes names, or NULL */
};
DFCL_API dfcl_status dfcl_model_init(const dfcl_context *ctx, const struct dfcl_init_params *params, const char *path,
                                     dfcl_error *err);

/* Loads a delta as a new domain with the given strength (1: as trained; 0: the base; gamma and biases are interpolated). *domain receives
 * its number (>= 1). force != 0: load even when the delta was made on another base (shapes must still fit). DFCL_FORMAT: another base, or shapes that
 * do not fit; DFCL_NONFINITE: a value is NaN or infinite; DFCL_NOMEM: no room for another domain (max_domains, max_class_rows). */
DFCL_API dfcl_status dfcl_model_load_delta(dfcl_model *model, const char *path, float strength, int force, int *domain,
                                           dfcl_error *err);
/* A weighted blend of several deltas as one domain: base + the sum of strength_i (value_i - base) over what base and delta both have, gammas
 * likewise about 1. Class rows that the base lacks are the average of the deltas', weighted by the strengths. DFCL_FORMAT also when class tables of the deltas
 * are not of the same classes by name; DFCL_USAGE when such an average needs a sum of strengths other than 0. */
struct dfcl_delta_part {
    const char *path;
    float strength;
};
DFCL_API dfcl_status dfcl_model_load_blend(dfcl_model *model, const struct dfcl_delta_part *parts, int count, int force, int *domain,
                                           dfcl_error *err);
/* Sets params->input, ->input_width, ->positional_scale and ->pos_step to the resolution that the deltas were trained at, for a model that uses them; leaves
 * alone what none of the files says. DFCL_FORMAT names two that differ. Errors as for reading a delta. */
DFCL_API dfcl_status dfcl_delta_resolution(const dfcl_context *ctx, const char *const *paths, int count, struct dfcl_model_params *params,
                                           dfcl_error *err);
/* Frees the domain's slot and class rows for another delta. DFCL_USAGE for domain 0 and for one that is not loaded. */
DFCL_API dfcl_status dfcl_model_unload_delta(dfcl_model *model, int domain, dfcl_error *err);
/* Number of classes of a domain, and a class's name ("" when unknown; NULL when out of range). */
DFCL_API int dfcl_model_classes(const dfcl_model *model, int domain);
DFCL_API const char *dfcl_model_class_name(const dfcl_model *model, int domain, int id);
/* Class id by name (exact) or decimal number; DFCL_USAGE with the known names otherwise. */
DFCL_API dfcl_status dfcl_model_find_class(const dfcl_model *model, int domain, const char *text, int *id, dfcl_error *err);

/* base + delta -> an ordinary checkpoint, f32, written atomically: on failure out_path is as it was. Gammas are folded into weights and biases, exactly
 * but for f32 rounding. ORIGINAL: a PyTorch state dict where out_path ends in .pt or .pth, else safetensors. DIFFUSERS: a folder, new or empty, for
 * DiTTransformer2DModel.from_pretrained, which computes positions by itself: DFCL_USAGE where the model's are others (docs/formats.md). DFCL_USAGE also for a
 * grid that is no square in any form but safetensors. Other errors as for
 * dfcl_model_open and dfcl_model_load_delta. */
enum dfcl_names { DFCL_NAMES_ORIGINAL = 0, DFCL_NAMES_DIFFUSERS };
struct dfcl_merge_params {
    struct dfcl_model_params base; /* path or random, heads, which, input, input_width, positional_scale, pos_step */
    const char *delta;             /* NULL: the base alone, in other names or another container */
    int force;                     /* also a delta made on another base */
    enum dfcl_names names;
    int keep_gammas; /* ORIGINAL: gammas stay tensors of their own in the blocks where the PyTorch reproduction of DiffFit has them, the first 14 */
};
DFCL_API dfcl_status dfcl_model_merge(const dfcl_context *ctx, const struct dfcl_merge_params *params, const char *out_path, dfcl_error *err);

/* SHA-256 of a file's bytes, hex. */
DFCL_API dfcl_status dfcl_file_hash(const dfcl_context *ctx, const char *path, char hash[65], dfcl_error *err);

enum { DFCL_DESCRIBE_JSON = 1, DFCL_DESCRIBE_QUICK = 2 };
/* What a file, run directory or image folder is: writes human-readable text (DFCL_DESCRIBE_JSON: JSON) of any length to *out, freed with
 * dfcl_text_free. The pictures of a folder are all decoded, on the context's threads, for sizes and bad files; not with DFCL_DESCRIBE_QUICK. */
DFCL_API dfcl_status dfcl_describe(const dfcl_context *ctx, const char *path, int flags, char **out, dfcl_error *err);
DFCL_API void dfcl_text_free(const dfcl_context *ctx, char *text);

#ifdef __cplusplus
}
#endif
#endif
