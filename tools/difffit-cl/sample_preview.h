/* What is being drawn, as predicted at a step: a grid beside the output that is replaced every so many steps (`sample --preview-every`). */
#ifndef SAMPLE_PREVIEW_H
#define SAMPLE_PREVIEW_H

#include "sample_requests.h"

struct sample_preview {
    struct cli *c;
    char path[4096];
    struct dfcl_latent_rgb rgb; /* channels 0: what the model works on are pictures */
    int channels, height, width; /* of the model */
    int columns;
    int before, of;             /* pictures of the calls before, and in all */
};

/* The file beside an output: NAME.png, NAME.npz, NAME.safetensors and the folder NAME all have NAME.preview.png. */
void sample_preview_path(struct sample_preview *v, const char *out);
/* The approximation for a model of latents: of `from` (a cache, delta or base), or else the first that a delta of the requests or the base carries. DFCL_USAGE: none
 * does; DFCL_FORMAT: it is for another number of channels. */
dfcl_status sample_preview_find(struct sample_preview *v, const char *from, const char *model, const struct sample_requests *r, dfcl_error *err);
/* dfcl_sample_params.preview; user: the sample_preview. */
dfcl_status sample_preview_write(const struct sample_preview *v, int step, int steps, int first, int count, const float *x0, dfcl_error *err);

#endif
