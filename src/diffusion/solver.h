/* Samplers as lists of update steps: everything that depends on the schedule is worked out here, in double, so that a sampler's loop
 * only runs the network, guidance, and one of two update ops per step (docs/methods.md, "Sampling"). */
#ifndef DFCL_DIFFUSION_SOLVER_H
#define DFCL_DIFFUSION_SOLVER_H

#include "diffusion/schedule.h"

#include <difffit-cl/sample.h>

struct dfcl_solver_step {
    int t;          /* training timestep that the network sees */
    double sigma;   /* its noise level sqrt((1 - abar) / abar) */
    bool ancestral; /* op ddpm_step with `tab` and the learned range; else op linear_step with the coefficients below */
    bool noise;     /* wants noise */
    bool prev;      /* wants the x0 of the step before */
    float tab[DFCL_TAB_COUNT];
    float a, b, kx, ke, k0, kz, kp;
};

struct dfcl_solver {
    const dfcl_context *ctx;
    enum dfcl_sampler_kind kind;
    int steps;
    bool noise;    /* some step wants noise */
    bool keeps_x0; /* some step wants the x0 of the step before */
    struct dfcl_solver_step *step; /* [steps], in the order of sampling: from noise to picture */
};
/* eta: DDIM only, >= 0 (1: as much noise as the ancestral sampler's lower bound). clip: predicted x0 will be clamped, which for DDIM changes what
 * the noise direction is derived from. spacing: ignored by DPM-Solver++. DFCL_USAGE for counts that cannot be had. */
dfcl_status dfcl_solver_init(struct dfcl_solver *s, const dfcl_context *ctx, enum dfcl_sampler_kind kind, int steps,
                             enum dfcl_spacing spacing, double eta, bool clip, dfcl_error *err);
void dfcl_solver_finish(struct dfcl_solver *s); /* also of a zeroed one */

#endif
