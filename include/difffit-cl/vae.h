/* difffit-cl: the autoencoder between pictures and latents (AutoencoderKL: the VAE of Stable Diffusion that DiT uses). */
#ifndef DFCL_VAE_H
#define DFCL_VAE_H

#include <difffit-cl/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dfcl_vae dfcl_vae;

struct dfcl_vae_shape {
    int channels;        /* of pictures: 3 */
    int latent_channels; /* 4 */
    int factor;          /* a latent has 1/factor of the picture's sides: 8 */
    int blocks, layers, groups, width; /* resolutions, resnets in each, GroupNorm's groups, channels of the first */
    double scale, shift; /* latents of the diffusion model = scale * (z - shift); from config.json, else 0.18215 and 0 */
    int64_t parameters;  /* loaded */
    int encoder, decoder; /* loaded */
};

struct dfcl_vae_params {
    const char *path;    /* a diffusers folder (itself, or with vae/ in it), its .safetensors or .bin, or an original .ckpt/.pt */
    int only_encoder, only_decoder; /* 1: leave the other half out; not both */
    double scale;        /* 0: the file's */
    int groups;          /* GroupNorm's groups; 0: the file's, else 32 */
    uint64_t max_memory; /* bytes on the device, weights included; larger pictures go through in bands of rows. 0: the device's memory */
};
/* DFCL_IO: the file cannot be read; DFCL_FORMAT: not such a model, a tensor is missing or of another shape; DFCL_NONFINITE: a weight is NaN or infinite;
 * DFCL_NOMEM. The device must outlive it. */
DFCL_API dfcl_status dfcl_vae_open(dfcl_vae **out, dfcl_device *dev, const struct dfcl_vae_params *params, dfcl_error *err);
DFCL_API void dfcl_vae_close(dfcl_vae **vae);
DFCL_API const struct dfcl_vae_shape *dfcl_vae_get_shape(const dfcl_vae *vae);
/* SHA-256, in hex, of a half's weights as they are used (docs/formats.md, "Autoencoder"): the same for the same values in every container. "" when that half is
 * not loaded. */
DFCL_API const char *dfcl_vae_encoder_hash(const dfcl_vae *vae);
DFCL_API const char *dfcl_vae_decoder_hash(const dfcl_vae *vae);
/* That of the encoder in a file (dfcl_vae_params.path), without a device: tells whether latents come from it. */
DFCL_API dfcl_status dfcl_vae_file_hash(const dfcl_context *ctx, const char *path, char hash[65], dfcl_error *err);

/* Bytes on the device: of the weights, and beside them for a picture of this size (its own sides, whatever the direction) whole and in the thinnest
 * bands. `encode` 0: to decode it. */
struct dfcl_vae_memory {
    uint64_t weights, whole, least;
};
DFCL_API dfcl_status dfcl_vae_measure(dfcl_vae *vae, int encode, int height, int width, struct dfcl_vae_memory *out, dfcl_error *err);
/* How the last picture went through: "512x512 whole, 536 MiB", or its bands. Valid until the next call. */
DFCL_API const char *dfcl_vae_plan(const dfcl_vae *vae);

/* n pictures [n,channels,height,width] in [-1,1] -> mean and log-variance (clamped to [-30,20]) of the latents, each
 * [n,latent_channels,height/factor,width/factor], not scaled. A latent for the diffusion model is scale * (mean + exp(logvar/2) noise - shift). logvar may
 * be NULL. Sides: at least `factor`; what a division by it leaves over is cut off at the right and the bottom. Bands give the same result as whole pictures but for
 * rounding. Non-finite results: DFCL_NONFINITE. DFCL_NOMEM: not even in bands. */
DFCL_API dfcl_status dfcl_vae_encode(dfcl_vae *vae, int n, int height, int width, const float *pictures, float *mean, float *logvar, dfcl_error *err);
/* n latents as the diffusion model has them [n,latent_channels,height,width] -> pictures [n,channels,height*factor,width*factor], about [-1,1], not
 * clamped. */
DFCL_API dfcl_status dfcl_vae_decode(dfcl_vae *vae, int n, int height, int width, const float *latents, float *pictures, dfcl_error *err);

/* ---- previews ---- */

enum { DFCL_LATENT_RGB_CHANNELS = 32 }; /* at most */
/* A linear approximation of a decoder: colour k of a position, its mean over the pixels that the latent's position stands for, is
 * bias[k] + sum_c weight[k][c] latent[c]. Latents as the diffusion model has them, colours in [-1,1]. Least squares over the pictures of a cache (`encode`), which
 * hands it on to what is trained on it. */
struct dfcl_latent_rgb {
    int channels; /* of latents; 0: there is none */
    double weight[3][DFCL_LATENT_RGB_CHANNELS], bias[3];
    double rms;   /* root of the mean squared error over those pictures, in the units of the colours */
};
/* What a cache of latents, a delta or a base says; channels 0: nothing. DFCL_FORMAT: the file is broken; DFCL_IO: it cannot be read. */
DFCL_API dfcl_status dfcl_latent_rgb_read(const dfcl_context *ctx, const char *path, struct dfcl_latent_rgb *out, dfcl_error *err);
/* n latents [n,channels,height,width] -> small pictures [n,3,height,width], about [-1,1], not clamped. */
DFCL_API void dfcl_latent_rgb_apply(const struct dfcl_latent_rgb *rgb, int n, int height, int width, const float *latents, float *pictures);

#ifdef __cplusplus
}
#endif
#endif
