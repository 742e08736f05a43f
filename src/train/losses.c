#include "base/json.h"
#include "train/losses.h"

#include <math.h>
#include <time.h>

#define LEAST_RECENT 20 /* losses that a z-score is taken from, at least */

/* Standard deviations above the mean of the recent losses; NAN where there are too few, or all are the same. */
static double z_score(const struct dfcl_train_state *st, double loss) {
    int n = (int)DFCL_MIN(st->recent_count, DFCL_RECENT);
    double mean = 0.0, var = 0.0;
    if (n < LEAST_RECENT)
        return NAN;
    for (int i = 0; i < n; i++)
        mean += st->recent[i] / n;
    for (int i = 0; i < n; i++)
        var += (st->recent[i] - mean) * (st->recent[i] - mean) / (n - 1);
    return var > 0.0 ? (loss - mean) / sqrt(var) : NAN;
}

void dfcl_losses_note(struct dfcl_train_state *st, const struct dfcl_step_result *r, double spike_z) {
    double z = z_score(st, r->loss);
    if (!isnan(z) && !(st->line_z >= z)) /* also when there is none yet */
        st->line_z = z;
    if (spike_z > 0.0 && z > spike_z) {
        st->spikes++;
        st->spike_step = st->step;
        st->spike_z = z;
    }
    st->streak = 0;
    st->sum_steps++;
    st->sum_loss += r->loss;
    st->sum_mse += r->mse;
    st->sum_vb += r->vb;
    st->recent[st->recent_count++ % DFCL_RECENT] = r->loss;
}

double dfcl_losses_recent(const struct dfcl_train_state *st) {
    int n = (int)DFCL_MIN(st->recent_count, DFCL_RECENT);
    double sum = 0.0;
    for (int i = 0; i < n; i++)
        sum += st->recent[i];
    return n ? sum / n : NAN;
}

static double wall(void) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

dfcl_status dfcl_losses_write(struct dfcl_train_state *st, const struct dfcl_line *line, struct dfcl_run_dir *run, dfcl_error *err) {
    double n = (double)st->sum_steps, at = wall();
    double loss = st->sum_loss / n, mse = st->sum_mse / n, vb = st->sum_vb / n; /* NaN when all were skipped: null in JSON */
    cJSON *o = cJSON_CreateObject();
    dfcl_json_add_number(o, "step", (double)st->step);
    dfcl_json_add_number(o, "loss", loss);
    dfcl_json_add_number(o, "mse", mse);
    dfcl_json_add_number(o, "vb", vb);
    dfcl_json_add_number(o, "grad_norm", line->last->grad_norm);
    dfcl_json_add_number(o, "lr", line->lr);
    dfcl_json_add_number(o, "skipped", (double)st->skipped);
    dfcl_json_add_number(o, "z", st->line_z);
    dfcl_json_add_number(o, "spikes", (double)st->spikes);
    if (line->val) {
        dfcl_json_add_number(o, "val_loss", line->val->loss);
        dfcl_json_add_number(o, "val_loss_se", line->val->loss_se);
    }
    dfcl_json_add_number(o, "images_per_second", line->images_per_second);
    dfcl_status s = dfcl_json_add_number(o, "time", at) ? dfcl_run_dir_metrics(run, o, err)
                                                           : dfcl_fail(err, DFCL_NOMEM, "out of host memory for metrics.jsonl");
    cJSON_Delete(o);
    const struct {
        const char *tag;
        double v;
    } tags[] = {{"train/loss", loss}, {"train/mse", mse}, {"train/vb", vb}, {"train/grad_norm", line->last->grad_norm}, {"train/lr", line->lr}};
    for (size_t i = 0; !s && i < DFCL_COUNT(tags); i++)
        s = dfcl_events_scalar(&run->events, tags[i].tag, at, st->step, (float)tags[i].v, err);
    if (!s && line->val)
        s = dfcl_events_scalar(&run->events, "val/loss", at, st->step, (float)line->val->loss, err);
    if (!s)
        s = dfcl_events_flush(&run->events, err);
    st->sum_steps = 0;
    st->sum_loss = st->sum_mse = st->sum_vb = 0.0;
    st->line_z = NAN;
    return s;
}
