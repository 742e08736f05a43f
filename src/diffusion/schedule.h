/* Noise schedules (Ho et al., arXiv 2006.11239; Nichol & Dhariwal, arXiv 2102.09672).
 *
 * 1000 training steps, beta_i = 1e-4 + i (0.02 - 1e-4) / 999. A respaced schedule keeps some of the steps: with the kept abar in
 * increasing t, beta_i = 1 - abar_i / abar_{i-1} (abar_{-1} = 1), and every table is computed anew from these betas. All in double. */
#ifndef DFCL_DIFFUSION_SCHEDULE_H
#define DFCL_DIFFUSION_SCHEDULE_H

#include "ops/ops.h"

#define DFCL_TRAIN_STEPS 1000

enum dfcl_spacing {
    DFCL_SPACING_EVEN, /* k steps from 0 to 999, rounded half to even; a single step is 999 */
    DFCL_SPACING_DDIM, /* 0, stride, 2 stride ... < 1000: the smallest integer stride that gives exactly k */
};
/* NULL, "even" or "ddim"; DFCL_USAGE otherwise. */
dfcl_status dfcl_spacing_parse(const char *text, enum dfcl_spacing *out, dfcl_error *err);

struct dfcl_schedule {
    const dfcl_context *ctx;
    int steps;
    int *map;     /* [steps] ascending: the training timestep that the network sees */
    double *beta; /* [steps] */
    double *abar; /* [steps] cumulative product of 1 - beta */
    double (*tab)[DFCL_TAB_COUNT]; /* [steps] */
};
/* The 1000 steps of training. */
dfcl_status dfcl_schedule_train(struct dfcl_schedule *s, const dfcl_context *ctx, dfcl_error *err);
/* steps 1 .. 1000. DFCL_USAGE when they cannot be had (not every count has a stride; the message names the nearest ones). */
dfcl_status dfcl_schedule_respaced(struct dfcl_schedule *s, const dfcl_context *ctx, int steps, enum dfcl_spacing spacing, dfcl_error *err);
void dfcl_schedule_finish(struct dfcl_schedule *s); /* also of a zeroed one */
/* tab [steps, DFCL_TAB_COUNT] rounded to f32, as the ops take it. */
void dfcl_schedule_table(const struct dfcl_schedule *s, float *tab);

/* DPM-Solver++ (arXiv 2211.01095) places: timesteps round-half-even(linspace(0, 999, steps + 1)) from the largest down, without the final 0;
 * sigma = sqrt((1 - abar) / abar) there, then 0, with abar and sigma in f32 as the reference scheduler has them. With sigma:
 * a = 1 / sqrt(1 + sigma^2), s = sigma a, lambda = log(a / s). */
struct dfcl_dpm_places {
    const dfcl_context *ctx;
    int steps;
    int *map;      /* [steps] descending */
    double *sigma; /* [steps + 1], the last is 0 */
};
/* steps 1 .. 999 (1000 would repeat a timestep). */
dfcl_status dfcl_dpm_places_init(struct dfcl_dpm_places *p, const dfcl_context *ctx, int steps, dfcl_error *err);
void dfcl_dpm_places_finish(struct dfcl_dpm_places *p);

#endif
