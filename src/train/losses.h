/* The losses of a run as they are gathered between the lines of its logs. */
#ifndef DFCL_TRAIN_LOSSES_H
#define DFCL_TRAIN_LOSSES_H

#include "train/checkpoint.h"

#include <difffit-cl/train.h>

/* Adds the losses of a finite step, whose number is state->step already. One more than spike_z standard deviations above the recent ones is a
 * spike; spike_z <= 0: none is. */
void dfcl_losses_note(struct dfcl_train_state *state, const struct dfcl_step_result *r, double spike_z);
/* Mean of the recent losses, NAN: none yet. */
double dfcl_losses_recent(const struct dfcl_train_state *state);

struct dfcl_line {
    const struct dfcl_step_result *last; /* the step that the line is written after */
    double lr, images_per_second;
    const struct dfcl_loss_estimate *val; /* NULL: not measured at this step */
};
/* A line of metrics.jsonl and the same for TensorBoard, with means over the steps since the line before (docs/formats.md); a new line begins. */
dfcl_status dfcl_losses_write(struct dfcl_train_state *state, const struct dfcl_line *line, struct dfcl_run_dir *run, dfcl_error *err);

#endif
