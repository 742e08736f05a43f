/* One optimizer step on a model opened for training: what the trainer runs and what verification holds against reference numbers.
 *
 * A batch is worked off in passes of `micro` samples; gradients add up (each pass scaled by 1/batch), so the result is that of one pass up to
 * f32 summation. The one point where the host waits is the read of the losses and the gradient's norm, needed to decide whether to apply the
 * step. */
#ifndef DFCL_TRAIN_STEP_H
#define DFCL_TRAIN_STEP_H

#include "models/dit.h"

struct dfcl_stepper;

struct dfcl_stepper_options {
    int batch;           /* samples per step */
    int micro;           /* samples per pass, divides batch; 0: chosen (train/pass_size.h), on a processor at most 2048 rows of tokens */
    enum dfcl_recompute recompute; /* what backward runs again; DFCL_FORWARD_ONLY: chosen, the lowest level that fits */
    uint64_t max_memory; /* bytes on the device for everything, weights included; 0: the device's memory */
    const float *table;  /* [timesteps][DFCL_TAB_COUNT], copied to the device; NULL: the 1000 steps of training */
    int timesteps;
};

/* Plans the model for training, takes memory for the optimizer, the moving average (which starts at the current values) and one pass. The
 * model must have its values and at least one trained parameter. DFCL_NOMEM when what was asked does not fit, or nothing does: the message has the
 * plan and what would fit.
 * The model outlives the stepper. */
dfcl_status dfcl_stepper_create(struct dfcl_stepper **out, struct dfcl_dit *dit, const struct dfcl_stepper_options *opt,
                                dfcl_error *err);
void dfcl_stepper_destroy(struct dfcl_stepper **st);

int dfcl_stepper_micro(const struct dfcl_stepper *st);
/* The model's plan and, beside it, the stepper's own bytes. */
const struct dfcl_plan *dfcl_stepper_plan(const struct dfcl_stepper *st, uint64_t *own_bytes);

struct dfcl_step_batch {
    const float *x0;      /* host [batch,C,S,S] */
    const float *noise;   /* host [batch,C,S,S]; NULL: drawn on the device, stream NOISE with the ids below */
    const int32_t *t;     /* [batch] rows of the table; the network sees the same number */
    const int32_t *rows;  /* [batch] rows of the class-table pool (labels after dropping) */
    uint64_t seed, first; /* noise of sample i: sample = low word of first + i */
    uint32_t step;
};
/* Clears the gradients and queues forward, loss and backward of the batch. */
dfcl_status dfcl_step_gradients(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, dfcl_error *err);

struct dfcl_step_hyper {
    int64_t k; /* number of this update, from 1: Adam's bias correction */
    double lr, beta1, beta2, eps, weight_decay;
    double clip;      /* largest L2 norm of the gradient; 0: none */
    double ema_decay; /* of this step, warm-up already applied */
};
struct dfcl_step_result {
    double loss, mse, vb; /* means over the batch */
    double grad_norm;     /* before clipping */
    bool finite;          /* false: nothing was updated */
};
/* Reads the losses and, if all is finite, queues AdamW, the moving average and the refresh of packed weights. The per-sample losses stay readable
 * through dfcl_step_losses. */
dfcl_status dfcl_step_update(struct dfcl_stepper *st, const struct dfcl_step_hyper *hyper, struct dfcl_step_result *result,
                             dfcl_error *err);
/* Both. */
dfcl_status dfcl_train_step(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, const struct dfcl_step_hyper *hyper,
                            struct dfcl_step_result *result, dfcl_error *err);

/* Losses of the first n <= batch samples as the values stand, without gradients: they are read and stay in dfcl_step_losses. Noise that is not given
 * comes from stream VAL. */
dfcl_status dfcl_step_evaluate(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, int n, dfcl_error *err);

/* Of the last dfcl_step_update or dfcl_step_evaluate: host arrays [batch], owned by the stepper. */
void dfcl_step_losses(const struct dfcl_stepper *st, const float **mse, const float **vb);
/* Of the last pass (the whole batch when micro = batch), on the device: x_t [micro,C,S,S], the network's output and its gradient
 * [micro,2C,S,S]. */
void dfcl_step_tensors(const struct dfcl_stepper *st, struct dfcl_ref *xt, struct dfcl_ref *out, struct dfcl_ref *dout);
/* Forward of the samples first .. first + micro of the batch that was stepped last, again, nothing kept: for a tap (models/dit.h). */
dfcl_status dfcl_step_forward(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, int first, dfcl_error *err);

/* Flat arrays of `count` f32 values at the parameters' trained_off. */
enum dfcl_step_array { DFCL_STEP_VALUES, DFCL_STEP_GRADS, DFCL_STEP_EMA, DFCL_STEP_M, DFCL_STEP_V };
int64_t dfcl_stepper_count(const struct dfcl_stepper *st);
struct dfcl_ref dfcl_stepper_array(const struct dfcl_stepper *st, enum dfcl_step_array which);
/* Exchanges the live values and the moving average (the gradients are used as room in between) and refreshes packed weights. Twice is nothing. */
dfcl_status dfcl_stepper_swap_ema(struct dfcl_stepper *st, dfcl_error *err);

/* Takes the training plan again after the model was used for something else (sampling plans its own). */
dfcl_status dfcl_stepper_replan(struct dfcl_stepper *st, dfcl_error *err);

/* decay of the moving average at update k >= 1: min(decay, (1 + k) / (10 + k)), or decay without warm-up. */
double dfcl_ema_decay(double decay, int64_t k, bool warmup);

#endif
