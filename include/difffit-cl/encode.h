/* difffit-cl: folders of pictures to caches of latents, which training then draws from. */
#ifndef DFCL_ENCODE_H
#define DFCL_ENCODE_H

#include <difffit-cl/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1 for a folder that holds a cache of latents, finished or not. */
DFCL_API int dfcl_is_latent_cache(const char *path);

typedef struct dfcl_encoder dfcl_encoder;

/* Zero or NULL means the default in [brackets]. */
struct dfcl_encode_params {
    const char *vae;       /* autoencoder, as dfcl_vae_open takes it */
    const char *data;      /* folder of pictures, a sub-folder a class */
    const char *out;       /* the cache (docs/formats.md): created, or gone on with */
    int size, size_width;  /* [256, as high as wide] height and width that pictures are cropped to; multiples of the autoencoder's factor */
    const char *crop;      /* ["center"], "random": one for each picture, that of the seed and the file's hash */
    const char *alpha;     /* transparency on ["white"], or "drop"ped */
    uint64_t seed;         /* of random crops */
    int flip;              /* 1: the latents of the mirrored pictures too */
    int skip_bad;          /* 1: pictures that cannot be read are left out with a warning; [0: an error, after which what was done is kept] */
    const char *dtype;     /* of the moments: ["f32"], "f16", "bf16" */
    double save_seconds;   /* [60] work that a kill may cost */
    uint64_t max_memory;   /* [device's memory] bytes on the device */
    int preview;           /* 1: dfcl_encoder_preview will be called, so the decoder is loaded too */
    int threads;           /* that read pictures ahead [the context's, at most 16] */
};

struct dfcl_encode_progress {
    int64_t done, total;       /* pictures: those that were there already count as done */
    int64_t kept, encoded, bad;
    double seconds;            /* since the encoder was made */
    double images_per_second;  /* encoded */
    const char *plan;          /* how the last picture went through the autoencoder (dfcl_vae_plan); NULL: none did */
};

/* Opens everything and finds what has to be done. DFCL_USAGE: a parameter, a folder `out` that holds other things; DFCL_FORMAT: the cache there is of another
 * encoder or other settings, no pictures, not an autoencoder; DFCL_ERROR: another process writes this cache. */
DFCL_API dfcl_status dfcl_encoder_create(dfcl_encoder **out, dfcl_device *dev, const struct dfcl_encode_params *params, dfcl_error *err);
/* Without dfcl_encoder_finish what was written stays, to be gone on with; what waits is written by dfcl_encoder_save only. */
DFCL_API void dfcl_encoder_destroy(dfcl_encoder **encoder);
/* One picture; *done = 1 when there are no more. After an error everything encoded is on disk. */
DFCL_API dfcl_status dfcl_encoder_step(dfcl_encoder *encoder, struct dfcl_encode_progress *progress, int *done, dfcl_error *err);
/* Writes what waits (for an interrupt). */
DFCL_API dfcl_status dfcl_encoder_save(dfcl_encoder *encoder, dfcl_error *err);
/* Writes the index: the cache can be trained from. DFCL_FORMAT: no picture could be read. */
DFCL_API dfcl_status dfcl_encoder_finish(dfcl_encoder *encoder, dfcl_error *err);
/* A PNG of up to n pictures, spread over the set: as they are cropped, and below each what the decoder makes of its mean. */
DFCL_API dfcl_status dfcl_encoder_preview(dfcl_encoder *encoder, const char *path, int n, dfcl_error *err);

#ifdef __cplusplus
}
#endif
#endif
