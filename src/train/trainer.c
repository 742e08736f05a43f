/* The training loop around train/step.h: data, random draws, logs, checkpoints, previews, final files. */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/philox.h"
#include "base/clock.h"
#include "data/dataset.h"
#include "data/latents.h"
#include "diffusion/schedule.h"
#include "methods/delta.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/losses.h"
#include "train/preview.h"
#include "train/run_dir.h"
#include "train/step.h"
#include "train/trace.h"
#include "train/validate.h"

#include <difffit-cl/vae.h>
#include <difffit-cl/train.h>

struct dfcl_trainer {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_train_config cfg;
    struct dfcl_run_dir run;
    struct dfcl_dataset *data;
    dfcl_model *model;
    struct dfcl_stepper *st;
    struct dfcl_train_state state;
    cJSON *config; /* config.json, also part of every checkpoint */
    struct dfcl_train_summary summary;
    char plan_text[1024];
    char layout[65];
    char *sample_path;
    int64_t saved_step; /* newest checkpoint of this process, -1: none */
    /* one batch on the host */
    float *x0;
    int32_t *labels, *t, *rows;
    struct dfcl_loss_estimate val; /* of step val_step, 0: none yet */
    int64_t val_step;
    /* clocks, seconds */
    double began, line_time, paused; /* paused: validating, saving and drawing, which are not training */
    int64_t line_step;
};

/* ---- opening ---- */

/* The model's channels and side decide how data are read, and the data's classes decide the model's table: the base's header is looked at
 * first. */
static dfcl_status open_data(dfcl_trainer *t, dfcl_error *err) {
    struct dfcl_base *base;
    dfcl_status s = dfcl_base_open(&base, t->ctx, &t->cfg.p.model, err);
    if (s)
        return s;
    const int width = dfcl_dit_width(&base->cfg);
    char from[DFCL_EXTENT_TEXT], to[DFCL_EXTENT_TEXT];
    if (base->file_input && (base->cfg.input != base->file_input || width != base->file_width))
        dfcl_log(t->ctx, DFCL_LOG_INFO, "%s: made for a side of %s, trained at %s: positions %g apart", base->path,
                 dfcl_extent_format(base->file_input, base->file_width, from), dfcl_extent_format(base->cfg.input, width, to),
                 base->cfg.pos_base > 0 ? base->cfg.pos_base / dfcl_dit_grid(&base->cfg) : 1.0);
    struct dfcl_dataset_options o = {.path = t->cfg.p.data, .arrays = t->cfg.p.arrays, .channels = base->cfg.channels, .side = base->cfg.input, .width = width,
                                     .flip = t->cfg.p.flip != 0, .random_crop = t->cfg.random_crop, .alpha = t->cfg.alpha,
                                     .skip_bad = t->cfg.p.skip_bad != 0, .val_fraction = t->cfg.p.val_fraction, .seed = t->cfg.p.seed, .batch = t->cfg.p.batch, .ahead = DFCL_MAX(2 * t->cfg.p.batch, 64)};
    dfcl_base_close(&base);
    char hash[65];
    if (t->cfg.p.vae && o.path && dfcl_latents_here(o.path)) {
        if ((s = dfcl_vae_file_hash(t->ctx, t->cfg.p.vae, hash, err)) != DFCL_OK)
            return s;
        o.vae_hash = hash;
    }
    s = dfcl_dataset_open(&t->data, t->ctx, &o, err);
    t->cfg.p.arrays = NULL; /* the caller's struct; the set has its own */
    return s;
}

static dfcl_status open_model(dfcl_trainer *t, dfcl_error *err) {
    const struct dfcl_train_params *p = &t->cfg.p;
    struct dfcl_method_config mc = {.method = p->method, .gamma_sites = p->gamma_sites, .gamma_blocks = p->gamma_blocks,
                                    .class_init = p->class_init, .train_classes = p->train_classes, .seed = p->seed,
                                    .classes = dfcl_dataset_classes(t->data), .class_names = dfcl_dataset_class_names(t->data)};
    dfcl_status s = dfcl_method_open(&t->model, t->dev, &p->model, &mc, err);
    if (!s && dfcl_dataset_rgb(t->data)->channels)
        t->model->rgb = *dfcl_dataset_rgb(t->data);
    return s;
}

static dfcl_status open_stepper(dfcl_trainer *t, int micro, dfcl_error *err) {
    struct dfcl_stepper_options o = {.batch = t->cfg.p.batch, .micro = micro, .recompute = t->cfg.recompute,
                                     .max_memory = t->cfg.p.max_memory};
    return dfcl_stepper_create(&t->st, dfcl_model_dit(t->model), &o, err);
}

/* Folder of the checkpoint to go on from; *dir stays NULL when "auto" finds none. */
static dfcl_status find_checkpoint(dfcl_trainer *t, char **dir, dfcl_error *err) {
    int64_t *steps = NULL, want = -1;
    size_t count = 0;
    *dir = NULL;
    dfcl_status s = dfcl_run_dir_checkpoints(&t->run, &steps, &count, err);
    if (s)
        return s;
    if (strcmp(t->cfg.p.resume, "auto")) {
        /* A checkpoint continues the logs beside it, so it must be this run's own. */
        for (size_t i = 0; i < count && want < 0; i++) {
            char a[PATH_MAX], b[PATH_MAX];
            char *mine = dfcl_sprintf(t->ctx, err, "%s/checkpoints/step-%" PRId64, t->run.path, steps[i]);
            if (mine && realpath(mine, a) && realpath(t->cfg.p.resume, b) && !strcmp(a, b))
                want = steps[i];
            dfcl_free(t->ctx, mine);
        }
        if (want < 0)
            s = dfcl_fail(err, DFCL_USAGE, "%s: expected \"auto\" or one of the checkpoints in %s/checkpoints", t->cfg.p.resume, t->run.path);
    } else if (count) {
        want = steps[count - 1];
    }
    if (!s && want >= 0) {
        *dir = dfcl_sprintf(t->ctx, err, "%s/checkpoints/step-%" PRId64, t->run.path, want);
        if (!*dir)
            s = DFCL_NOMEM;
    }
    dfcl_free(t->ctx, steps);
    return s;
}

static const char *recompute_of(const dfcl_trainer *t) {
    uint64_t own;
    return dfcl_recompute_name(dfcl_stepper_plan(t->st, &own)->recompute);
}

/* The checkpoint's state and the settings it was made under; *path names their file in messages. */
static dfcl_status read_past(dfcl_trainer *t, const char *dir, cJSON **saved, char **path, dfcl_error *err) {
    dfcl_status s = dfcl_checkpoint_read_state(&t->run, dir, &t->state, saved, err);
    if (s)
        return s;
    *path = *saved ? dfcl_sprintf(t->ctx, err, "%s/state.json", dir) : dfcl_run_dir_path(&t->run, "config.json", err);
    if (!*path)
        return DFCL_NOMEM;
    return *saved ? DFCL_OK : dfcl_run_dir_read_json(&t->run, *path, saved, err);
}

/* Logs are cut back and the configuration is replaced: from here on the run is the one asked for. */
static dfcl_status take_over(dfcl_trainer *t, bool resumed, dfcl_error *err) {
    char *path = dfcl_run_dir_path(&t->run, "config.json", err);
    dfcl_status s = path ? DFCL_OK : DFCL_NOMEM;
    if (!s && resumed)
        s = dfcl_run_dir_go_back(&t->run, t->state.step, err);
    if (!s)
        s = dfcl_run_dir_logs(&t->run, t->state.metrics_size, t->state.events_size, err);
    if (!s)
        s = dfcl_run_dir_write_json(&t->run, path, t->config, err);
    dfcl_free(t->ctx, path);
    return s;
}

/* Everything that needs both the run's past and the present: settings compared, micro-batch taken over, state and tensors read. */
static dfcl_status open_run(dfcl_trainer *t, dfcl_error *err) {
    char *dir = NULL, *path = NULL;
    cJSON *saved = NULL;
    int micro = t->cfg.p.micro_batch;
    dfcl_status s = t->cfg.p.resume ? find_checkpoint(t, &dir, err) : DFCL_OK;
    if (!s && dir)
        s = read_past(t, dir, &saved, &path, err);
    if (!s && dir && !micro) {
        micro = dfcl_train_config_saved_micro(saved);
        if (micro && t->cfg.p.batch % micro)
            micro = 0; /* another batch than the run's: the comparison below says so */
    }
    if (!s)
        s = open_model(t, err);
    if (!s && t->cfg.p.vae && t->cfg.p.sample_every)
        s = dfcl_preview_check_vae(t->model, t->cfg.p.vae, err);
    if (!s)
        s = open_stepper(t, micro, err);
    if (!s)
        s = dfcl_train_config_json(&t->cfg, t->model, t->data, dfcl_stepper_micro(t->st), recompute_of(t), &t->config, err);
    if (!s)
        s = dfcl_checkpoint_layout(dfcl_model_dit(t->model), t->layout, err);
    if (!s && dir)
        s = dfcl_train_config_same(saved, t->config, path, err);
    if (!s && dir)
        s = dfcl_checkpoint_read_tensors(t->ctx, dir, t->dev, t->st, t->layout, err);
    if (!s && dir)
        s = dfcl_dit_refresh(dfcl_model_dit(t->model), err);
    if (!s)
        s = take_over(t, dir != NULL, err);
    if (!s && dir) {
        t->saved_step = t->state.step;
        dfcl_train_config_warn(t->ctx, saved, t->config);
    }
    cJSON_Delete(saved);
    dfcl_free(t->ctx, dir);
    dfcl_free(t->ctx, path);
    return s;
}

static void describe(dfcl_trainer *t) {
    uint64_t own;
    const struct dfcl_plan *plan = dfcl_stepper_plan(t->st, &own);
    dfcl_plan_format(plan, &t->dev->info, t->plan_text, sizeof t->plan_text);
    dfcl_append(t->plan_text, sizeof t->plan_text, "optimizer, moving average and batch: %.1f MiB\n", (double)own / 1048576.0);
    t->summary = (struct dfcl_train_summary){.trained_values = dfcl_stepper_count(t->st),
                                             .classes = dfcl_dataset_classes(t->data),
                                             .images = dfcl_dataset_count(t->data),
                                             .bad = dfcl_dataset_bad(t->data),
                                             .held_out = dfcl_dataset_held_out_count(t->data),
                                             .planned_bytes = plan->total + own,
                                             .micro_batch = dfcl_stepper_micro(t->st),
                                             .recompute = recompute_of(t),
                                             .start_step = t->state.step};
}

dfcl_status dfcl_trainer_create(dfcl_trainer **out, dfcl_device *dev, const struct dfcl_train_params *params, dfcl_error *err) {
    *out = NULL;
    const dfcl_context *ctx = dev->ctx;
    dfcl_trainer *t = dfcl_calloc(ctx, 1, sizeof *t, err);
    if (!t)
        return DFCL_NOMEM;
    t->ctx = ctx;
    t->dev = dev;
    t->saved_step = -1;
    t->state = DFCL_TRAIN_STATE_NEW;
    t->run.lock_fd = -1;
    dfcl_status s = dfcl_train_config_init(&t->cfg, ctx, params, err);
    if (s) {
        dfcl_free(ctx, t);
        return s;
    }
    s = dfcl_run_dir_open(&t->run, ctx, t->cfg.p.run_dir, t->cfg.p.resume != NULL, err);
    if (!s)
        s = open_data(t, err);
    if (!s)
        s = open_run(t, err);
    if (s)
        goto out;
    const struct dfcl_model_shape *m = &t->model->shape;
    size_t batch = (size_t)t->cfg.p.batch;
    t->x0 = dfcl_calloc(ctx, batch, (size_t)m->channels * (size_t)m->input * (size_t)m->input_width * sizeof(float), err);
    t->labels = dfcl_calloc(ctx, batch, sizeof *t->labels, err);
    t->t = dfcl_calloc(ctx, batch, sizeof *t->t, err);
    t->rows = dfcl_calloc(ctx, batch, sizeof *t->rows, err);
    if (!t->x0 || !t->labels || !t->t || !t->rows) {
        s = DFCL_NOMEM;
        goto out;
    }
    describe(t);
    t->began = t->line_time = dfcl_now();
    t->line_step = t->state.step;
out:
    if (s)
        dfcl_trainer_destroy(&t);
    *out = t;
    return s;
}

void dfcl_trainer_destroy(dfcl_trainer **tp) {
    dfcl_trainer *t = *tp;
    if (!t)
        return;
    const dfcl_context *ctx = t->ctx;
    dfcl_stepper_destroy(&t->st);
    dfcl_model_close(&t->model);
    dfcl_dataset_close(&t->data);
    dfcl_run_dir_close(&t->run);
    cJSON_Delete(t->config);
    dfcl_free(ctx, t->x0);
    dfcl_free(ctx, t->labels);
    dfcl_free(ctx, t->t);
    dfcl_free(ctx, t->rows);
    dfcl_free(ctx, t->sample_path);
    dfcl_train_config_finish(&t->cfg);
    dfcl_free(ctx, t);
    *tp = NULL;
}

const struct dfcl_train_summary *dfcl_trainer_summary(const dfcl_trainer *t) {
    return &t->summary;
}
const char *dfcl_trainer_plan(const dfcl_trainer *t) {
    return t->plan_text;
}

/* ---- a step ---- */

/* Data, timesteps and dropped labels of step t->state.step: functions of (seed, step, sample) alone. */
static dfcl_status make_batch(dfcl_trainer *t, uint64_t first, dfcl_error *err) {
    const struct dfcl_train_params *p = &t->cfg.p;
    uint32_t step = (uint32_t)t->state.step;
    int null_class = dfcl_dataset_classes(t->data);
    dfcl_status s = dfcl_dataset_fetch(t->data, first, p->batch, t->x0, t->labels, err);
    for (int i = 0; !s && i < p->batch; i++) {
        uint32_t id = (uint32_t)(first + (uint64_t)i);
        t->t[i] = (int32_t)dfcl_uniform_int(p->seed, DFCL_STREAM_TIMESTEP, step, id, 0, DFCL_TRAIN_STEPS);
        bool drop = dfcl_uniform(p->seed, DFCL_STREAM_DROP, step, id, 0) <= (float)p->label_dropout;
        s = dfcl_model_row(t->model, 0, drop ? null_class : t->labels[i], &t->rows[i], err);
    }
    return s;
}

/* The newest checkpoint from before the streak, as a clause. */
static void describe_last(const dfcl_trainer *t, char *buf, size_t size) {
    int64_t *steps = NULL, last = -1;
    size_t count = 0;
    if (!dfcl_run_dir_checkpoints(&t->run, &steps, &count, NULL))
        for (size_t i = 0; i < count; i++)
            if (steps[i] <= t->state.step - t->state.streak)
                last = steps[i];
    dfcl_free(t->ctx, steps);
    if (last < 0)
        snprintf(buf, size, "no checkpoint was written");
    else
        snprintf(buf, size, "the last good checkpoint is %s/checkpoints/step-%" PRId64, t->run.path, last);
}

static dfcl_status note_skipped(dfcl_trainer *t, const struct dfcl_step_batch *b, const struct dfcl_step_result *r, dfcl_error *err) {
    char where[DFCL_TRACE_MAX], last[400];
    dfcl_status s = dfcl_trace_non_finite(t->st, dfcl_model_dit(t->model), b, t->cfg.p.batch, where, err);
    if (s)
        return s;
    t->state.skipped++;
    t->state.streak++;
    dfcl_log(t->ctx, DFCL_LOG_WARN, "step %" PRId64 " skipped: loss %g, gradient norm %g; first non-finite value: %s", t->state.step, r->loss,
             r->grad_norm, where);
    if (t->state.streak < t->cfg.p.max_skipped)
        return DFCL_OK;
    describe_last(t, last, sizeof last);
    return dfcl_fail(err, DFCL_NONFINITE, "training: %d steps in a row gave non-finite numbers (first in the last one: %s); %s; a lower learning rate or "
                     "clipping may help", t->state.streak, where, last);
}

static dfcl_status write_line(dfcl_trainer *t, const struct dfcl_step_result *r, double lr, dfcl_error *err) {
    double spent = dfcl_now() - t->line_time;
    struct dfcl_line line = {.last = r, .lr = lr, .val = t->val_step == t->state.step ? &t->val : NULL};
    if (spent > 0.0)
        line.images_per_second = (double)(t->state.step - t->line_step) * t->cfg.p.batch / spent;
    dfcl_status s = dfcl_losses_write(&t->state, &line, &t->run, err);
    t->line_time = dfcl_now();
    t->line_step = t->state.step;
    return s;
}

dfcl_status dfcl_trainer_save(dfcl_trainer *t, dfcl_error *err) {
    char *tmp = NULL;
    if (t->saved_step == t->state.step)
        return DFCL_OK;
    dfcl_status s = dfcl_run_dir_sizes(&t->run, &t->state.metrics_size, &t->state.events_size, err);
    if (!s)
        s = dfcl_run_dir_checkpoint_begin(&t->run, &tmp, err);
    if (!s)
        s = dfcl_checkpoint_write(t->ctx, &t->run, tmp, t->dev, t->st, t->layout, &t->state, t->config, err);
    if (!s) /* one that is asked for while steps are skipped does not push out a good one */
        s = dfcl_run_dir_checkpoint_commit(&t->run, &tmp, t->state.step, t->cfg.p.keep + (t->state.streak > 0),
                                           t->cfg.p.no_keep_best ? -1 : t->state.best_step, err);
    dfcl_run_dir_checkpoint_drop(&t->run, &tmp);
    if (!s)
        t->saved_step = t->state.step;
    return s;
}

static bool due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

/* Checkpoints wait for the end of a streak of skipped steps, whose cause may lie in the values: `skipped` steps came before this one. */
static bool checkpoint_due(const dfcl_trainer *t, int skipped) {
    int64_t every = t->cfg.p.checkpoint_every, step = t->state.step;
    return every > 0 && !t->state.streak && step / every > (step - 1 - skipped) / every;
}

static dfcl_status write_final(dfcl_trainer *t, const char *which, const char *values, struct dfcl_ref ref, dfcl_error *err);

/* Held-out loss of the moving average; the lowest yet is written down as a result. */
static dfcl_status validate(dfcl_trainer *t, dfcl_error *err) {
    struct dfcl_train_state *st = &t->state;
    dfcl_status s = dfcl_validate(t->st, t->model, t->data, t->cfg.p.batch, t->cfg.p.seed, &t->val, err);
    if (s)
        return s;
    t->val_step = st->step;
    if (!isfinite(t->val.loss))
        dfcl_log(t->ctx, DFCL_LOG_WARN, "step %" PRId64 ": the held-out loss of the moving average is %g", st->step, t->val.loss);
    else if (st->best_step < 0 || t->val.loss < st->best_loss) {
        st->best_step = st->step;
        st->best_loss = t->val.loss;
        s = write_final(t, "-best", "ema", dfcl_stepper_array(t->st, DFCL_STEP_EMA), err);
    }
    return s;
}

/* What falls due after a step. All that it leaves is there before its checkpoint: a run that is killed in between does it again. */
static dfcl_status after_step(dfcl_trainer *t, const struct dfcl_step_result *r, double lr, int skipped, bool last, struct dfcl_train_progress *g,
                              dfcl_error *err) {
    const struct dfcl_train_params *p = &t->cfg.p;
    const int64_t step = t->state.step;
    bool checkpoint = checkpoint_due(t, skipped) || last, val = checkpoint && dfcl_dataset_held_out_count(t->data) > 0;
    double begin = dfcl_now();
    dfcl_status s = val ? validate(t, err) : DFCL_OK;
    t->line_time += dfcl_now() - begin;
    if (!s && (due(p->log_every, step) || last || val))
        s = write_line(t, r, lr, err);
    double line = dfcl_now();
    if (!s && due(p->sample_every, step)) {
        dfcl_error drawing = {0};
        dfcl_free(t->ctx, t->sample_path);
        t->sample_path = NULL;
        s = dfcl_preview(t->model, t->st, &t->run, step, p->seed, p->max_memory, p->vae, &t->sample_path, &drawing);
        g->sample_path = t->sample_path;
        if (s == DFCL_NONFINITE) { /* no file; the values may still be on their way to where pictures are finite */
            dfcl_log(t->ctx, DFCL_LOG_WARN, "step %" PRId64 ": no pictures drawn: %s", step, drawing.msg);
            s = DFCL_OK;
        } else if (s && err) {
            *err = drawing;
        }
    }
    if (!s && checkpoint) {
        s = dfcl_trainer_save(t, err);
        g->checkpointed = !s;
    }
    double end = dfcl_now();
    t->line_time += end - line;
    t->paused += end - begin;
    return s;
}

static void show_state(const dfcl_trainer *t, struct dfcl_train_progress *g) {
    g->skipped = t->state.skipped;
    g->spikes = t->state.spikes;
    g->spike_step = t->state.spike_step;
    g->spike_z = t->state.spike_z;
    g->val_step = t->val_step;
    g->val_loss = t->val.loss;
    g->best_step = DFCL_MAX(t->state.best_step, 0);
    g->best_loss = t->state.best_loss;
}

dfcl_status dfcl_trainer_step(dfcl_trainer *t, struct dfcl_train_progress *progress, int *done, dfcl_error *err) {
    const struct dfcl_train_params *p = &t->cfg.p;
    struct dfcl_train_state *st = &t->state;
    struct dfcl_train_progress g = {.step = st->step, .steps = p->steps, .loss_mean = dfcl_losses_recent(st)};
    *done = st->step >= p->steps;
    show_state(t, &g);
    if (*done) {
        if (progress)
            *progress = g;
        return DFCL_OK;
    }
    uint64_t first = (uint64_t)st->step * (uint64_t)p->batch;
    int64_t k = st->step - st->skipped + 1;
    double lr = dfcl_train_config_lr(&t->cfg, st->step);
    struct dfcl_step_hyper h = {.k = k, .lr = lr, .beta1 = p->beta1, .beta2 = p->beta2, .eps = p->eps, .weight_decay = p->weight_decay,
                                .clip = p->clip, .ema_decay = dfcl_ema_decay(p->ema_decay, k, !p->no_ema_warmup)};
    struct dfcl_step_result r;
    dfcl_status s = make_batch(t, first, err);
    if (s)
        return s;
    struct dfcl_step_batch b = {.x0 = t->x0, .t = t->t, .rows = t->rows, .seed = p->seed, .first = first, .step = (uint32_t)st->step};
    s = dfcl_train_step(t->st, &b, &h, &r, err);
    if (s)
        return s;
    int skipped = st->streak;
    st->step++;
    if (r.finite)
        dfcl_losses_note(st, &r, p->spike_z);
    else
        s = note_skipped(t, &b, &r, err);
    *done = st->step >= p->steps;
    if (!s)
        s = after_step(t, &r, lr, skipped, *done, &g, err);
    g.step = st->step;
    g.loss = r.loss;
    g.mse = r.mse;
    g.vb = r.vb;
    g.loss_mean = dfcl_losses_recent(st);
    g.grad_norm = r.grad_norm;
    g.lr = lr;
    show_state(t, &g);
    g.seconds = dfcl_now() - t->began;
    double spent = g.seconds - t->paused;
    g.images_per_second = spent > 0.0 ? (double)(st->step - t->summary.start_step) * p->batch / spent : 0.0;
    t->summary.peak_bytes = dfcl_device_memory_peak(t->dev);
    if (progress)
        *progress = g;
    return s;
}

/* ---- the end ---- */

static char *summary_json(const dfcl_trainer *t, const char *values, dfcl_error *err) {
    const struct dfcl_train_params *p = &t->cfg.p;
    char seed[24];
    cJSON *o = cJSON_CreateObject();
    snprintf(seed, sizeof seed, "%" PRIu64, p->seed);
    dfcl_json_add_text(o, "values", values);
    dfcl_json_add_number(o, "steps", (double)t->state.step);
    dfcl_json_add_number(o, "skipped", (double)t->state.skipped);
    dfcl_json_add_number(o, "batch", p->batch);
    dfcl_json_add_number(o, "lr", p->lr);
    dfcl_json_add_text(o, "lr_schedule", p->lr_schedule);
    dfcl_json_add_number(o, "ema_decay", p->ema_decay);
    dfcl_json_add_number(o, "label_dropout", p->label_dropout);
    dfcl_json_add_text(o, "seed", seed);
    dfcl_json_add_number(o, "samples", (double)dfcl_dataset_count(t->data));
    dfcl_json_add_number(o, "loss", dfcl_losses_recent(&t->state));
    if (t->state.best_step == t->state.step)
        dfcl_json_add_number(o, "val_loss", t->state.best_loss);
    char *text = cJSON_PrintUnformatted(o), *out = NULL;
    if (text)
        out = dfcl_strdup(t->ctx, text, err);
    else
        dfcl_fail(err, DFCL_NOMEM, "out of host memory for the training summary");
    cJSON_free(text);
    cJSON_Delete(o);
    return out;
}

/* delta.safetensors, or model.safetensors of a full run, with `which` before the dot. */
static dfcl_status write_final(dfcl_trainer *t, const char *which, const char *values, struct dfcl_ref ref, dfcl_error *err) {
    bool full = !strcmp(t->model->method, "full");
    char *path = dfcl_sprintf(t->ctx, err, "%s/%s%s.safetensors", t->run.path, full ? "model" : "delta", which);
    char *json = path ? summary_json(t, values, err) : NULL;
    dfcl_status s = json ? DFCL_OK : DFCL_NOMEM;
    if (!s)
        s = full ? dfcl_model_save(t->model, path, ref, t->cfg.dtype, err) : dfcl_delta_save(t->model, path, ref, json, err);
    dfcl_free(t->ctx, path);
    dfcl_free(t->ctx, json);
    return s;
}

dfcl_status dfcl_trainer_finish(dfcl_trainer *t, dfcl_error *err) {
    dfcl_status s = write_final(t, "", "ema", dfcl_stepper_array(t->st, DFCL_STEP_EMA), err);
    return s ? s : write_final(t, "-live", "live", DFCL_NO_REF, err);
}
