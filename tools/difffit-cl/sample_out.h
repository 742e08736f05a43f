/* Where samples go: a picture, a grid, a folder of pictures, an .npz, a file of latents. Pictures are
 * decoded and written one by one as their batches are done. */
#ifndef SAMPLE_OUT_H
#define SAMPLE_OUT_H

#include "sample_requests.h"

enum sample_layout { SAMPLE_FOLDER, SAMPLE_GRID, SAMPLE_PICTURE, SAMPLE_NPZ };

struct sample_out {
    struct cli *c;
    const char *path, *latents_path; /* either may be NULL */
    enum sample_layout layout;       /* of path */
    int n, channels, height, width;  /* of pictures */
    dfcl_vae *vae;                   /* makes pictures of latents; NULL: latents are pictures */
    int latent_channels, latent_height, latent_width;
    int columns, zoom;               /* grid */
    const char *const *text;         /* text chunks of every picture: key, value ..., NULL */
    const struct sample_requests *requests;

    int done;        /* pictures, from the first */
    uint8_t *pixels; /* of a grid: all */
    float *latents;  /* all, for latents_path */
    int64_t *labels; /* npz */
    struct dfcl_npz_writer *npz;
};

/* By the name: .png, .npz, else a folder. */
enum sample_layout sample_layout_of(const char *path);
/* Sampling may take hours: where its result is to go is looked at before it starts. */
dfcl_status sample_out_check(const struct sample_out *o, dfcl_error *err);
/* Takes memory. */
dfcl_status sample_out_begin(struct sample_out *o, dfcl_error *err);
/* The next `count` pictures, and what was asked for. DFCL_INTERRUPTED between two of them, when a signal came: those before are done. */
dfcl_status sample_out_add(struct sample_out *o, int count, const float *latents, const struct dfcl_sample_request *requests,
                           const struct sample_line *const *lines, dfcl_error *err);
/* Writes what is written as a whole: everything added, also when that is not all. */
dfcl_status sample_out_end(struct sample_out *o, dfcl_error *err);
void sample_out_free(struct sample_out *o);

#endif
