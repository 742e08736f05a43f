/* The loss of a run on the samples that it holds out. */
#ifndef DFCL_TRAIN_VALIDATE_H
#define DFCL_TRAIN_VALIDATE_H

#include "data/dataset.h"
#include "models/model.h"
#include "train/step.h"

#include <difffit-cl/train.h>

/* (sample, timestep, noise) triples for so many held-out samples: each of them equally often, at least 256 in all; of more than 2048 samples the first 2048. */
int dfcl_validate_pairs(int64_t held_out);

/* Loss of the moving average. Pair i is held-out sample i mod count under its own label, with timestep and noise fixed by the seed (stream VAL, as
 * dfcl_evaluate_loss draws them). It runs in the stepper's own memory and passes and leaves the values as they were; gradients are
 * overwritten. A loss that is not finite is no error. */
dfcl_status dfcl_validate(struct dfcl_stepper *st, struct dfcl_model *model, struct dfcl_dataset *data, int batch, uint64_t seed,
                          struct dfcl_loss_estimate *out, dfcl_error *err);

/* Means and standard errors over pairs: losses [2 pairs], mse and vb alternating. */
void dfcl_loss_means(const float *losses, int pairs, struct dfcl_loss_estimate *out);

#endif
