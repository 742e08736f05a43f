#include "train/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/sha256.h"
#include "formats/safetensors.h"

#define STATE_FORMAT "difffit-cl checkpoint 1"
#define CHUNK (INT64_C(1) << 20) /* values on the host at a time */

static const struct {
    const char *name;
    enum dfcl_step_array which;
} arrays[] = {{"values", DFCL_STEP_VALUES}, {"ema", DFCL_STEP_EMA}, {"exp_avg", DFCL_STEP_M}, {"exp_avg_sq", DFCL_STEP_V}};

dfcl_status dfcl_checkpoint_layout(struct dfcl_dit *dit, char hex[65], dfcl_error *err) {
    struct dfcl_sha256 h;
    int count;
    const struct dfcl_param *p = dfcl_dit_params(dit, &count);
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    for (int i = 0; i < count && !s; i++) {
        char line[160];
        if (!p[i].trained)
            continue;
        snprintf(line, sizeof line, "%s %" PRId64 " %" PRId64 "\n", p[i].name, p[i].trained_off, p[i].count);
        s = dfcl_sha256_update(&h, line, strlen(line), err);
    }
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    return dfcl_sha256_finish(&h, hex, err);
}

/* ---- state.json ---- */

/* Doubles go as their bits: a decimal may come back as its neighbour. */
static void add_double(cJSON *o, const char *name, double v) {
    uint64_t bits;
    char buf[24];
    memcpy(&bits, &v, sizeof bits);
    snprintf(buf, sizeof buf, "%016" PRIx64, bits);
    if (name)
        dfcl_json_add_text(o, name, buf);
    else
        dfcl_json_push(o, cJSON_CreateString(buf));
}

static bool get_double(const cJSON *v, bool finite, double *out) {
    uint64_t bits;
    int used = 0;
    if (!cJSON_IsString(v) || strlen(v->valuestring) != 16 || sscanf(v->valuestring, "%" SCNx64 "%n", &bits, &used) != 1 || used != 16)
        return false;
    memcpy(out, &bits, sizeof bits);
    return !finite || isfinite(*out);
}

static dfcl_status write_state(const struct dfcl_run_dir *run, const char *path, const struct dfcl_train_state *st, const cJSON *config,
                               dfcl_error *err) {
    cJSON *o = cJSON_CreateObject(), *recent;
    dfcl_json_add_text(o, "format", STATE_FORMAT);
    dfcl_json_add_number(o, "step", (double)st->step);
    dfcl_json_add_number(o, "skipped", (double)st->skipped);
    dfcl_json_add_number(o, "streak", st->streak);
    dfcl_json_add_number(o, "metrics_size", (double)st->metrics_size);
    dfcl_json_add_number(o, "events_size", (double)st->events_size);
    dfcl_json_add_number(o, "sum_steps", (double)st->sum_steps);
    add_double(o, "sum_loss", st->sum_loss);
    add_double(o, "sum_mse", st->sum_mse);
    add_double(o, "sum_vb", st->sum_vb);
    dfcl_json_add_number(o, "recent_count", (double)st->recent_count);
    dfcl_json_add_number(o, "spikes", (double)st->spikes);
    dfcl_json_add_number(o, "spike_step", (double)st->spike_step);
    add_double(o, "spike_z", st->spike_z);
    add_double(o, "line_z", st->line_z);
    if (st->best_step >= 0) {
        dfcl_json_add_number(o, "best_step", (double)st->best_step);
        add_double(o, "best_loss", st->best_loss);
    }
    recent = dfcl_json_add_array(o, "recent");
    int n = (int)DFCL_MIN(st->recent_count, DFCL_RECENT);
    for (int i = 0; recent && i < n; i++)
        add_double(recent, NULL, st->recent[i]);
    dfcl_json_add(o, "config", cJSON_Duplicate(config, 1));
    dfcl_status s = dfcl_run_dir_write_json(run, path, o, err);
    cJSON_Delete(o);
    return s;
}

dfcl_status dfcl_checkpoint_read_state(const struct dfcl_run_dir *run, const char *dir, struct dfcl_train_state *st, cJSON **config,
                                       dfcl_error *err) {
    *st = DFCL_TRAIN_STATE_NEW;
    *config = NULL;
    char *path = dfcl_sprintf(run->ctx, err, "%s/state.json", dir);
    cJSON *o = NULL;
    dfcl_status s = path ? dfcl_run_dir_read_json(run, path, &o, err) : DFCL_NOMEM;
    if (s)
        goto out;
    const int64_t big = (int64_t)1 << 52;
    const cJSON *format = dfcl_json_get(o, "format"), *recent = dfcl_json_get(o, "recent"), *v;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, STATE_FORMAT)) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected format \"%s\", found %.40s", path, STATE_FORMAT,
                      cJSON_IsString(format) ? format->valuestring : "none");
        goto out;
    }
    int64_t streak = 0, metrics = 0, events = 0;
    const struct {
        const char *key, *with; /* not in the first of these files, or not in every run: expected when `with` is there */
        const int64_t *most;    /* NULL: big */
        int64_t *to;
    } whole[] = {{"step", NULL, NULL, &st->step},
                 {"skipped", NULL, &st->step, &st->skipped},
                 {"streak", NULL, &st->skipped, &streak},
                 {"metrics_size", NULL, NULL, &metrics},
                 {"events_size", NULL, NULL, &events},
                 {"sum_steps", NULL, &st->step, &st->sum_steps},
                 {"recent_count", NULL, &st->step, &st->recent_count},
                 {"spikes", "spikes", &st->step, &st->spikes},
                 {"spike_step", "spikes", &st->step, &st->spike_step},
                 {"best_step", "best_step", &st->step, &st->best_step}};
    for (size_t i = 0; !s && i < DFCL_COUNT(whole); i++) {
        int64_t most = whole[i].most ? *whole[i].most : big;
        if ((!whole[i].with || dfcl_json_get(o, whole[i].with)) && !dfcl_json_int(dfcl_json_get(o, whole[i].key), 0, most, whole[i].to))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected a whole number from 0 to %" PRId64, path, whole[i].key, most);
    }
    const struct {
        const char *key, *with;
        double *to;
        bool any; /* NaN: none yet */
    } reals[] = {{"sum_loss", NULL, &st->sum_loss, false},     {"sum_mse", NULL, &st->sum_mse, false},      {"sum_vb", NULL, &st->sum_vb, false},
                 {"spike_z", "spikes", &st->spike_z, true},   {"line_z", "spikes", &st->line_z, true},    {"best_loss", "best_step", &st->best_loss, false}};
    for (size_t i = 0; !s && i < DFCL_COUNT(reals); i++)
        if ((!reals[i].with || dfcl_json_get(o, reals[i].with)) && !get_double(dfcl_json_get(o, reals[i].key), !reals[i].any, reals[i].to))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected the 16 hex digits of a%s number", path, reals[i].key, reals[i].any ? "" : " finite");
    int n = (int)DFCL_MIN(st->recent_count, DFCL_RECENT), i = 0;
    if (!s && (!cJSON_IsArray(recent) || cJSON_GetArraySize(recent) != n))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: recent: expected an array of %d losses", path, n);
    if (!s)
        cJSON_ArrayForEach(v, recent)
            if (!s && !get_double(v, true, &st->recent[i++]))
                s = dfcl_fail(err, DFCL_FORMAT, "%s: recent: expected the 16 hex digits of a finite number at %d", path, i - 1);
    st->streak = (int)DFCL_MIN(streak, 1 << 20);
    st->metrics_size = (uint64_t)metrics;
    st->events_size = (uint64_t)events;
    if (!s)
        *config = cJSON_DetachItemFromObject(o, "config");
out:
    cJSON_Delete(o);
    dfcl_free(run->ctx, path);
    return s;
}

/* ---- tensors ---- */

static dfcl_status write_tensors(const dfcl_context *ctx, const char *path, struct dfcl_device *dev, const struct dfcl_stepper *st,
                                 const char *layout, dfcl_error *err) {
    struct dfcl_st_writer *w = NULL;
    const int64_t count = dfcl_stepper_count(st);
    float *buf = dfcl_calloc(ctx, (size_t)DFCL_MIN(count, CHUNK), sizeof *buf, err);
    dfcl_status s = buf ? dfcl_st_writer_create(&w, ctx, path, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_st_writer_meta(w, "format", STATE_FORMAT, err);
    if (!s)
        s = dfcl_st_writer_meta(w, "layout", layout, err);
    for (size_t i = 0; !s && i < DFCL_COUNT(arrays); i++)
        s = dfcl_st_writer_tensor(w, arrays[i].name, DFCL_F32, &count, 1, err);
    for (size_t i = 0; !s && i < DFCL_COUNT(arrays); i++)
        for (int64_t at = 0; !s && at < count; at += CHUNK) {
            uint64_t n = (uint64_t)DFCL_MIN(count - at, CHUNK);
            s = dfcl_read(dev, buf, dfcl_ref_at(dfcl_stepper_array(st, arrays[i].which), (uint64_t)at * sizeof *buf), n * sizeof *buf, err);
            if (!s)
                s = dfcl_st_writer_f32(w, buf, (size_t)n, err);
        }
    if (!s)
        s = dfcl_st_writer_finish(&w, err);
    dfcl_st_writer_destroy(&w);
    dfcl_free(ctx, buf);
    return s;
}

dfcl_status dfcl_checkpoint_write(const dfcl_context *ctx, const struct dfcl_run_dir *run, const char *dir, struct dfcl_device *dev,
                                  const struct dfcl_stepper *st, const char layout[65], const struct dfcl_train_state *state,
                                  const cJSON *config, dfcl_error *err) {
    char *tensors = dfcl_sprintf(ctx, err, "%s/tensors.safetensors", dir), *json = dfcl_sprintf(ctx, err, "%s/state.json", dir);
    dfcl_status s = tensors && json ? write_tensors(ctx, tensors, dev, st, layout, err) : DFCL_NOMEM;
    if (!s)
        s = write_state(run, json, state, config, err);
    dfcl_free(ctx, tensors);
    dfcl_free(ctx, json);
    return s;
}

dfcl_status dfcl_checkpoint_read_tensors(const dfcl_context *ctx, const char *dir, struct dfcl_device *dev, const struct dfcl_stepper *st,
                                         const char layout[65], dfcl_error *err) {
    struct dfcl_st *f = NULL;
    const int64_t count = dfcl_stepper_count(st);
    char *path = dfcl_sprintf(ctx, err, "%s/tensors.safetensors", dir);
    float *buf = dfcl_calloc(ctx, (size_t)DFCL_MIN(count, CHUNK), sizeof *buf, err);
    dfcl_status s = path && buf ? dfcl_st_open(&f, ctx, path, err) : DFCL_NOMEM;
    if (!s && (!dfcl_st_meta(f, "layout") || strcmp(dfcl_st_meta(f, "layout"), layout)))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: holds another set of trained parameters than this run's", path);
    for (size_t i = 0; !s && i < DFCL_COUNT(arrays); i++) {
        const struct dfcl_tensor_view *v = dfcl_st_find(f, arrays[i].name);
        if (!v || v->dtype != DFCL_F32 || v->count != (uint64_t)count) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: expected tensor %s of %" PRId64 " F32 values", path, arrays[i].name, count);
            break;
        }
        for (int64_t at = 0; !s && at < count; at += CHUNK) {
            uint64_t n = (uint64_t)DFCL_MIN(count - at, CHUNK);
            s = dfcl_view_read_f32(v, path, (uint64_t)at, n, buf, err);
            for (uint64_t k = 0; !s && k < n; k++)
                if (!isfinite(buf[k])) /* a step that would make one is skipped: training writes none */
                    s = dfcl_fail(err, DFCL_NONFINITE, "%s: value %" PRIu64 " of %s is %g, expected a finite number", path, (uint64_t)at + k,
                                  arrays[i].name, (double)buf[k]);
            if (!s)
                s = dfcl_write(dev, dfcl_ref_at(dfcl_stepper_array(st, arrays[i].which), (uint64_t)at * sizeof *buf), buf, n * sizeof *buf, err);
        }
    }
    dfcl_st_close(&f);
    dfcl_free(ctx, buf);
    dfcl_free(ctx, path);
    return s;
}
