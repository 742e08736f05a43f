/* Where the numbers of a step stopped being finite. */
#ifndef DFCL_TRAIN_TRACE_H
#define DFCL_TRAIN_TRACE_H

#include "train/step.h"

#define DFCL_TRACE_MAX 200

/* After a step that was not finite (gradients and losses are still there): names the first layer and tensor, in the order of the computation, with a value
 * that is not, as "layer blocks.3.mlp, tensor block3.mlp_out, sample 5: inf". Looked at are the trained values, then, of the first sample whose loss is not finite,
 * the noised input and what forward computes (it runs again), then the losses, then the gradients, which backward reaches from the last parameter on. Where there
 * is no memory for the intermediates, the search goes on behind them. */
dfcl_status dfcl_trace_non_finite(struct dfcl_stepper *st, struct dfcl_dit *dit, const struct dfcl_step_batch *batch, int count,
                                  char where[DFCL_TRACE_MAX], dfcl_error *err);

#endif
