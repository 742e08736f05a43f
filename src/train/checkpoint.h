/* What a checkpoint folder holds: tensors.safetensors (trained values, moving average, AdamW's two moments, as flat arrays in the model's
 * own order) and state.json. Together with the run's settings they continue it exactly; random numbers and the order of the data
 * follow from the step. */
#ifndef DFCL_TRAIN_CHECKPOINT_H
#define DFCL_TRAIN_CHECKPOINT_H

#include <math.h>

#include "train/run_dir.h"
#include "train/step.h"

#define DFCL_RECENT 100 /* losses whose mean is shown */

struct dfcl_train_state {
    int64_t step;    /* steps done, skipped ones included */
    int64_t skipped; /* of them, for non-finite numbers */
    int streak;      /* skipped without a good one in between */
    /* sums since the last line of metrics.jsonl */
    int64_t sum_steps;
    double sum_loss, sum_mse, sum_vb;
    /* the last losses, a ring: recent_count grows without end, the newest is at (recent_count - 1) mod DFCL_RECENT */
    double recent[DFCL_RECENT];
    int64_t recent_count;
    /* losses far above the recent ones: how many, the last of them, and the largest z-score since the last line (NAN: none) */
    int64_t spikes, spike_step;
    double spike_z, line_z;
    /* the lowest loss on held-out samples so far, and after how many steps; -1: none yet */
    int64_t best_step;
    double best_loss;
    uint64_t metrics_size, events_size; /* of the logs when it was written */
};

/* Of a run that begins. */
#define DFCL_TRAIN_STATE_NEW ((struct dfcl_train_state){.best_step = -1, .line_z = NAN})

/* Writes both files into `dir` (an existing folder); bytes are on disk when it returns. `layout` names the trained set, `config` is the run's
 * configuration (train/config.h). */
dfcl_status dfcl_checkpoint_write(const dfcl_context *ctx, const struct dfcl_run_dir *run, const char *dir, struct dfcl_device *dev,
                                  const struct dfcl_stepper *st, const char layout[65], const struct dfcl_train_state *state,
                                  const cJSON *config, dfcl_error *err);
/* Only state.json. *config is the configuration it was written under (freed with cJSON_Delete); NULL: it holds none. */
dfcl_status dfcl_checkpoint_read_state(const struct dfcl_run_dir *run, const char *dir, struct dfcl_train_state *state, cJSON **config,
                                       dfcl_error *err);
/* The tensors onto the device; the caller refreshes packed weights. DFCL_FORMAT when they belong to another trained set. */
dfcl_status dfcl_checkpoint_read_tensors(const dfcl_context *ctx, const char *dir, struct dfcl_device *dev, const struct dfcl_stepper *st,
                                         const char layout[65], dfcl_error *err);
/* SHA-256 over name, place and size of every trained parameter. */
dfcl_status dfcl_checkpoint_layout(struct dfcl_dit *dit, char hex[65], dfcl_error *err);

#endif
