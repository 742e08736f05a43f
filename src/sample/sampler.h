/* The sampler's loop over a transformer: batches of pictures, guidance, update steps, noise. Knows rows and domains, not classes or files;
 * dfcl_sample (sample.c) and the trainer's previews translate for it. */
#ifndef DFCL_SAMPLE_SAMPLER_H
#define DFCL_SAMPLE_SAMPLER_H

#include "diffusion/solver.h"
#include "models/dit.h"

/* One picture wanted. Guidance takes its reference half from (ref_row, ref_dom): the domain's own null class, or another domain. */
struct dfcl_sampler_item {
    int32_t row, dom;         /* row of the class-table pool, domain of biases and gammas */
    int32_t ref_row, ref_dom; /* unused when scale is 1 */
    float scale;              /* guidance: eps = ref + scale (cond - ref); 1: no reference half is computed */
    uint64_t seed;            /* of the noise */
    uint32_t number;          /* Philox sample of the noise */
};

/* What a hook sees after a step, on the device, `count` pictures of C*S*S values each. */
struct dfcl_sampler_state {
    int step;         /* from 0, in the order of sampling */
    int t;            /* timestep that the network saw */
    int first, count; /* these pictures of the run */
    struct dfcl_ref x, x0, eps; /* after the step; prediction (clamped); guided noise */
};

struct dfcl_sampler_options {
    const struct dfcl_solver *solver; /* outlives the sampler */
    int batch;           /* pictures per pass at most, >= 1 */
    int conditions;      /* distinct (row, dom) pairs among a batch's samples and references, at most; 0: as many as there may be */
    uint64_t max_memory; /* as for dfcl_dit_plan */
    int guided_channels; /* the first so many channels of eps are guided, 0 .. C */
    bool clip;           /* clamp predicted x0 to [-1, 1] */
    /* Guidance only at noise levels sigma (solver.h) with guide_lo < sigma <= guide_hi; the other steps leave the references out of the batch. Both 0: at
     * all levels. */
    double guide_lo, guide_hi;
    const float *init_noise; /* host [n,C,S,S] of a run's items, or NULL: stream SAMPLE_INIT */
    const float *step_noise; /* host [steps,n,C,S,S], or NULL: stream SAMPLE_STEP */
    void (*progress)(void *user, int done, int total, double seconds); /* in picture-steps; may be NULL */
    void *progress_user;
    int (*stop)(void *user); /* with progress_user; asked before each step; may be NULL */
    /* Each may be NULL. A non-OK return ends the run with that status. */
    dfcl_status (*on_step)(void *user, const struct dfcl_sampler_state *state, dfcl_error *err);
    void *on_step_user;
    /* A batch is done: latents [count,C,S,S] of pictures [first, first + count), valid during the call; with progress_user. */
    dfcl_status (*on_batch)(void *user, int first, int count, const float *latents, dfcl_error *err);
};

struct dfcl_sampler;

/* Plans the transformer for inference (replacing its plan) and takes memory for `n` items at most; where a batch does not fit it is halved,
 * down to one picture. `guided`: some item's scale will differ from 1. The transformer outlives the sampler, and must not be planned anew
 * while it is in use. */
dfcl_status dfcl_sampler_create(struct dfcl_sampler **out, struct dfcl_dit *dit, const struct dfcl_sampler_options *opt, int n, bool guided,
                                dfcl_error *err);
void dfcl_sampler_destroy(struct dfcl_sampler **sampler);
int dfcl_sampler_batch(const struct dfcl_sampler *sampler); /* pictures per pass as planned */

/* Draws n pictures; out: host [n,C,S,S], or NULL: on_batch alone sees them. DFCL_NONFINITE names the step and the picture; DFCL_INTERRUPTED when
 * stopped (whole batches done by then are in `out`). */
dfcl_status dfcl_sampler_run(struct dfcl_sampler *sampler, const struct dfcl_sampler_item *items, int n, float *out, dfcl_error *err);

#endif
