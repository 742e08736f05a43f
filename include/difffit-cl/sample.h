/* difffit-cl: drawing pictures from base + domain. */
#ifndef DFCL_SAMPLE_H
#define DFCL_SAMPLE_H

#include <difffit-cl/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where guidance takes its reference half from: the null class of the picture's own domain, or that of the base. */
enum dfcl_guidance { DFCL_GUIDANCE_CLASS = 0, DFCL_GUIDANCE_DOMAIN };
enum dfcl_sampler_kind { DFCL_SAMPLER_DDPM = 0, DFCL_SAMPLER_DDIM, DFCL_SAMPLER_DPMPP_2M };

struct dfcl_sample_params {
    enum dfcl_sampler_kind sampler;
    int steps;             /* 1..1000; 0: 50 (250 for DDPM) */
    const char *spacing;   /* NULL or "even": respacing "k"; "ddim": respacing "ddimk" (constant stride) */
    double eta;            /* DDIM */
    double cfg;            /* guidance scale; 1: none (no second half); 0: the null class alone */
    const char *cfg_channels; /* NULL: "3" for 4-channel latents, else "all" */
    enum dfcl_guidance guidance;
    double cfg_lo, cfg_hi; /* guidance only at noise levels cfg_lo < sigma <= cfg_hi, sigma = sqrt((1 - abar) / abar); both 0: at all levels */
    int clip;              /* clamp predicted x0 to [-1,1] (pixel models) : -1 no, 1 yes, 0: yes for models of other than 4 channels */
    uint64_t seed;
    int batch;             /* images per pass at most; 0: 8 */
    uint64_t max_memory;   /* bytes on the device, weights included; batches are halved until they fit. 0: the device's memory */
    const float *init_noise; /* [n,C,S,S] instead of the seed's, or NULL */
    const float *step_noise; /* [steps,n,C,S,S] or NULL */
    void (*progress)(void *user, int done, int total, double seconds); /* in image-steps; may be NULL */
    void *progress_user;
    int (*stop)(void *user); /* asked between steps; non-zero: DFCL_INTERRUPTED */
    /* Each batch as it is done: latents [count,C,S,S] of requests [first, first + count), valid during the call. A status other than DFCL_OK ends the
     * run with it. May be NULL; `progress_user` is its user. */
    dfcl_status (*ready)(void *user, int first, int count, const float *latents, dfcl_error *err);
    /* Every preview_every steps (0: never) of a batch, and after its last: the picture as it is predicted at that step, x0 [count,C,S,S] (clamped where the
     * sampler clamps), of requests [first, first + count), valid during the call; `step` counts from 1 to `steps`. A status other than DFCL_OK ends the run with it.
     * Reading it costs a copy from the device; the pictures have the same bits with it and without. */
    int preview_every;
    dfcl_status (*preview)(void *user, int step, int steps, int first, int count, const float *x0, dfcl_error *err);
};

/* One picture wanted. The noise depends on (seed, `number`) only, never on the batch it is drawn in. Pictures of different domains share passes. */
struct dfcl_sample_request {
    int domain;
    int class_id;     /* 0 .. classes-1; classes: the null class */
    uint32_t number;  /* sample index in the request */
    int own;          /* 1: seed and guidance scale are the two below, 0: those of the call */
    uint64_t seed;
    double cfg;
};

/* Draws n pictures; latents [n,C,height,width] f32 written to `out` (NULL: only `ready` sees them). Non-finite values: DFCL_NONFINITE. DFCL_USAGE: steps that
 * the sampler or spacing cannot have, a class or domain out of range; DFCL_NOMEM: one picture does not fit; DFCL_INTERRUPTED: `stop` said so. */
DFCL_API dfcl_status dfcl_sample(dfcl_model *model, const struct dfcl_sample_params *params,
                                 const struct dfcl_sample_request *requests, int n, float *out, dfcl_error *err);

/* n pictures [n,C,height,width] in [-1,1], C 1 or 3, to 8 bit: floor(clamp(127.5 x + 128, 0, 255)), NHWC. */
DFCL_API void dfcl_pixels(const float *x, int n, int channels, int height, int width, uint8_t *out);

/* 8-bit picture to PNG, channels 1 or 3, with text chunks (key, value pairs, NULL-terminated; may be NULL). Atomic. */
DFCL_API dfcl_status dfcl_png_write(const dfcl_context *ctx, const char *path, const uint8_t *pixels, int width, int height,
                                    int channels, const char *const *text, dfcl_error *err);
/* n pictures [n,height,width,channels] into one grid of `columns` columns with a margin of 2 pixels, each pixel drawn `zoom` times; its sides in pixels are
 * *grid_width and *grid_height. Freed with dfcl_free_pixels. */
DFCL_API dfcl_status dfcl_grid(const dfcl_context *ctx, const uint8_t *pictures, int n, int height, int width, int channels, int columns,
                               int zoom, uint8_t **out, int *grid_width, int *grid_height, dfcl_error *err);
DFCL_API void dfcl_free_pixels(const dfcl_context *ctx, uint8_t *pixels);

/* The value of a text chunk of a PNG, freed with dfcl_text_free; *value NULL: it has none of that key. */
DFCL_API dfcl_status dfcl_png_read_text(const dfcl_context *ctx, const char *path, const char *key, char **value, dfcl_error *err);

/* Pictures as the ADM evaluator takes them: an .npz with `arr_0`, uint8 [n, height, width, channels], and their labels as `arr_1`, int64 [n]. Any size (zip64
 * from 4 GiB), `most` pictures at most. Atomic: appears at finish, with what came until then. */
struct dfcl_npz_writer;
DFCL_API dfcl_status dfcl_npz_writer_create(struct dfcl_npz_writer **out, const dfcl_context *ctx, const char *path, int64_t most,
                                            int height, int width, int channels, dfcl_error *err);
DFCL_API dfcl_status dfcl_npz_writer_add(struct dfcl_npz_writer *w, const uint8_t *pictures, int64_t n, dfcl_error *err);
/* labels: one for each picture that came; NULL: no arr_1. Destroys the writer, also on failure. */
DFCL_API dfcl_status dfcl_npz_writer_finish(struct dfcl_npz_writer **w, const int64_t *labels, dfcl_error *err);
DFCL_API void dfcl_npz_writer_destroy(struct dfcl_npz_writer **w);

/* Tensors for comparison with other implementations: one f32 tensor of a safetensors file (key "z", "step_noise", "latents"). Read: any float
 * type, *data freed with dfcl_tensor_free; DFCL_FORMAT when the key is not there. Write: atomic; ndim at most 8. */
DFCL_API dfcl_status dfcl_tensor_read(const dfcl_context *ctx, const char *path, const char *key, float **data, int64_t shape[8],
                                      int *ndim, dfcl_error *err);
DFCL_API dfcl_status dfcl_tensor_write(const dfcl_context *ctx, const char *path, const char *key, const float *data,
                                       const int64_t *shape, int ndim, dfcl_error *err);
DFCL_API void dfcl_tensor_free(const dfcl_context *ctx, float *data);

#ifdef __cplusplus
}
#endif
#endif
