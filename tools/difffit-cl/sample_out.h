/* Where samples go: a grid, a folder of numbered pictures, a file of latents. Pictures are written as their batches are done. */
#ifndef SAMPLE_OUT_H
#define SAMPLE_OUT_H

#include "../cli.h"

struct sample_out {
    struct cli *c;
    const char *path, *latents_path; /* either may be NULL */
    int n, channels, side;
    int columns, zoom;               /* grid */
    const char *const *text;         /* text chunks of every picture: key, value ..., NULL */
    const struct dfcl_sample_request *requests;

    int done;        /* pictures, from the first */
    uint8_t *pixels; /* of a grid: all; else of a batch */
    float *latents;  /* all, for latents_path */
};

bool sample_out_is_grid(const char *path);
/* Sampling may take hours: where its result is to go is looked at before it starts. */
dfcl_status sample_out_check(const struct sample_out *o, dfcl_error *err);
/* Takes memory. */
dfcl_status sample_out_begin(struct sample_out *o, dfcl_error *err);
/* The next `count` pictures. */
dfcl_status sample_out_add(struct sample_out *o, int count, const float *latents, dfcl_error *err);
/* Writes what is written as a whole: everything added, also when that is not all. */
dfcl_status sample_out_end(struct sample_out *o, dfcl_error *err);
void sample_out_free(struct sample_out *o);

#endif
