/* The autoencoder (AutoencoderKL of latent diffusion) as two lists of layers over images in NHWC: rows of a matrix are positions, columns channels.
 *
 *   resnet     h = conv1(silu(norm1(x))); h = conv2(silu(norm2(h))); out = h + (shortcut(x), 1x1, where there is one, else x)
 *   attention  one head over all positions: softmax(q k^T / sqrt(C)) v, in blocks of query rows
 *   down       zeros right of and below the image, 3x3 with stride 2        up   nearest neighbours twice, then 3x3 padded by 1
 *
 * A coder runs whole, or the layers next to the picture go through bands of rows: a band is computed from as many rows of the layer before as its
 * convolutions reach, so nothing is blended. GroupNorm needs statistics of whole images: for each norm inside the banded layers there is a pass over all
 * bands that ends at it, with the statistics of the norms before. Attention is never in bands. */
#ifndef DFCL_MODELS_VAE_H
#define DFCL_MODELS_VAE_H

#include "ops/ops.h"
#include "tensor/arena.h"

#include <difffit-cl/vae.h>

struct dfcl_tensor_file;

enum { VAE_MAX_STEPS = 96, VAE_MAX_NORMS = 160, VAE_SLOTS = 4 };

struct vae_conv {
    int N, C, k;               /* k x k taps */
    struct dfcl_weight w;      /* [N, k*k*C], columns (ky, kx, c); of an upsampling: not there */
    struct dfcl_weight up[4];  /* of an upsampling: [N, 4*C] for the output's position (row mod 2, column mod 2) */
    struct dfcl_ref bias;
};
struct vae_norm {
    int C;
    float *gamma, *beta;       /* host */
    struct dfcl_ref coef;      /* [3, C] for norm_act, of the image at hand */
};
enum vae_kind { VAE_CONV, VAE_RES, VAE_ATTN, VAE_DOWN, VAE_UP, VAE_OUT /* norm, silu, conv */ };
struct vae_step {
    enum vae_kind kind;
    char name[64]; /* as diffusers has it, for taps and messages */
    int in, out;   /* channels */
    struct vae_norm norm[2];
    struct vae_conv conv[4]; /* RES: conv1, conv2, shortcut; ATTN: q, k, v, out; else the one */
};
struct vae_coder {
    struct vae_step *steps;
    int count, first_whole, end_whole; /* steps that cannot be banded: up to and including the attention */
};

struct dfcl_vae {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    char *path;
    struct dfcl_vae_shape shape;
    struct vae_coder enc, dec; /* count 0: not loaded */
    struct dfcl_arena weights;
    uint64_t max_memory;
    /* taken when an image comes, kept until one needs more */
    struct dfcl_mem *slot[VAE_SLOTS], *scores, *stats, *scratch;
    float *host;       /* image rows, statistics */
    size_t host_size;  /* bytes */
    /* Told of outputs of layers that run whole: NHWC, rows positions. For checks. */
    dfcl_status (*tap)(void *user, const char *name, struct dfcl_ref x, int H, int W, int C, dfcl_error *err);
    void *tap_user;
    char plan[160];
    char hash[2][65]; /* of the encoder, the decoder */
};

/* vae_load.c: fills shape, coders and weights. */
dfcl_status vae_load(struct dfcl_vae *v, const struct dfcl_vae_params *params, dfcl_error *err);
/* "encoder.down_blocks.0.resnets.1.conv1.weight" as the file calls it (diffusers' newer or older names, or the original's); NULL: not there. */
struct vae_names {
    const char *prefix;
    bool original, old_attention;
    int up_blocks;
};
void vae_names_detect(struct vae_names *n, const struct dfcl_tensor_file *f);
const struct dfcl_tensor_view *vae_names_find(const struct vae_names *n, const struct dfcl_tensor_file *f, const char *name);

/* vae_run.c: one image [channels of the first step, h, w] through a coder; in and out are NCHW on the host. Whole, or cut as memory allows. */
struct vae_cut {
    int split; /* decoder: steps [split, count) are banded; encoder: [0, split); -1: none */
    int rows;  /* of a band, at the banded part's end */
};
dfcl_status vae_run(struct dfcl_vae *v, struct vae_coder *c, int h, int w, const float *in, float *out, dfcl_error *err);
/* The same with a given cut. */
dfcl_status vae_run_cut(struct dfcl_vae *v, struct vae_coder *c, struct vae_cut cut, int h, int w, const float *in, float *out, dfcl_error *err);
/* Bytes for a whole image, and for one in the thinnest bands. */
dfcl_status vae_least(struct dfcl_vae *v, struct vae_coder *c, int h, int w, uint64_t *whole, uint64_t *least, dfcl_error *err);
/* Bytes of activations and operations of a run with this cut. */
dfcl_status vae_measure(struct dfcl_vae *v, struct vae_coder *c, struct vae_cut cut, int h, int w, uint64_t *bytes, double *flops, dfcl_error *err);

/* Gives back what was taken for images. */
void vae_release(struct dfcl_vae *v);

/* Un-scaled latents: what decode does after dividing. */
dfcl_status vae_decode_raw(struct dfcl_vae *v, int h, int w, const float *z, float *image, dfcl_error *err);

#endif
