/* One image on its way through a coder; shared by vae_layers.c (the layers) and vae_run.c (bands, memory). */
#ifndef DFCL_MODELS_VAE_LAYERS_H
#define DFCL_MODELS_VAE_LAYERS_H

#include "models/vae.h"

struct vae_rows {
    int lo, hi;
};

struct vae_pass {
    struct dfcl_vae *v;
    struct vae_coder *c;
    struct dfcl_exec ex;
    bool dry;
    double flops;                /* dry: of all ops */
    uint64_t need[VAE_SLOTS], scores_need, stats_need, host_need; /* dry: bytes */
    int h[VAE_MAX_STEPS + 1], w[VAE_MAX_STEPS + 1]; /* of the image before each step, and after the last */
    /* the image so far: rows [rows.lo, rows.hi) of it, C channels, in slot `cur` */
    int cur, C;
    struct dfcl_ref x;
    struct vae_rows rows;
    int full;                    /* a slot that must stay as it is, or -1 */
    /* where a pass for statistics ends: norm `stop_norm` of step `stop_step`, over rows `core` (stop_step -1: nowhere) */
    int stop_step, stop_norm;
    struct vae_rows core;
    bool banded;                 /* norms have their coefficients already */
    double count, *mean, *square; /* statistics so far of each channel: positions, mean, squared deviations */
};

/* Room in slot `i`; dry: noted. */
struct dfcl_ref vae_slot(struct vae_pass *p, int i, uint64_t floats);
/* The n-th slot that holds neither the image nor what must stay. */
int vae_free_slot(const struct vae_pass *p, int n);
/* Runs step t on the present rows; afterwards they include `want` of its output. */
dfcl_status vae_layer(struct vae_pass *p, int t, struct vae_rows want, dfcl_error *err);
/* Rows of step t's input that `want` of its output need. */
struct vae_rows vae_rows_before(const struct vae_pass *p, int t, struct vae_rows want);
/* What the statistics say: coefficients of a norm. */
dfcl_status vae_norm_finish(struct vae_pass *p, const struct vae_step *t, struct vae_norm *n, dfcl_error *err);

#endif
