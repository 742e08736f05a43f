#include "train/config.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "data/dataset.h"
#include "data/decode.h"
#include "models/model.h"

#define RUN_FORMAT "difffit-cl run 1"

static const char *keep(struct dfcl_train_config *c, const char *s, dfcl_error *err, dfcl_status *status) {
    if (!s || *status)
        return NULL;
    char *p = dfcl_strdup(c->ctx, s, err);
    if (!p) {
        *status = DFCL_NOMEM;
        return NULL;
    }
    c->owned[c->owned_count++] = p;
    return p;
}

static dfcl_status in_range(const char *name, double v, double lo, double hi, dfcl_error *err) {
    if (v >= lo && v <= hi)
        return DFCL_OK;
    return dfcl_fail(err, DFCL_USAGE, "%s: expected %g to %g, found %g", name, lo, hi, v);
}

static dfcl_status check(struct dfcl_train_config *c, dfcl_error *err) {
    struct dfcl_train_params *p = &c->p;
    const double big = 9e15;
    const struct {
        const char *name;
        double v, lo, hi;
    } ranges[] = {
        {"steps", (double)p->steps, 1, 1e12},       {"batch", p->batch, 1, 1 << 24},
        {"micro batch", p->micro_batch, 0, 1 << 24}, {"lr", p->lr, 0, 1e6},
        {"warmup", (double)p->warmup, 0, big},      {"weight decay", p->weight_decay, 0, 1e6},
        {"beta1", p->beta1, 0, 1 - 1e-9},           {"beta2", p->beta2, 0, 1 - 1e-9},
        {"eps", p->eps, 1e-30, 1},                  {"clip", p->clip, 0, 1e30},
        {"EMA decay", p->ema_decay, 0, 1},          {"label dropout", p->label_dropout, 0, 1},
        {"val fraction", p->val_fraction, 0, 0.9},  {"keep", p->keep, 1, 1e9},                  {"checkpoint every", (double)p->checkpoint_every, 0, big},
        {"sample every", (double)p->sample_every, 0, big}, {"log every", (double)p->log_every, 1, big},
        {"max skipped", p->max_skipped, 1, 1e9},    {"spike z", p->spike_z, -1e30, 1e30},
    };
    for (size_t i = 0; i < DFCL_COUNT(ranges); i++) {
        dfcl_status s = in_range(ranges[i].name, ranges[i].v, ranges[i].lo, ranges[i].hi, err);
        if (s)
            return s;
    }
    if (p->micro_batch && p->batch % p->micro_batch)
        return dfcl_fail(err, DFCL_USAGE, "micro batch: expected a divisor of the batch of %d, found %d", p->batch, p->micro_batch);
    c->cosine = !strcmp(p->lr_schedule, "cosine");
    if (!c->cosine && strcmp(p->lr_schedule, "constant"))
        return dfcl_fail(err, DFCL_USAGE, "lr schedule: expected constant or cosine, found %s", p->lr_schedule);
    dfcl_status s = dfcl_recompute_parse(p->recompute, &c->recompute, err);
    if (!s)
        s = dfcl_picture_options(p->crop, p->alpha, &c->random_crop, &c->alpha, err);
    return s ? s : dfcl_weight_dtype(p->dtype, &c->dtype, err);
}

/* What the caller wants kept of its own options. */
static dfcl_status read_options(const struct dfcl_train_params *p, cJSON **out, dfcl_error *err) {
    dfcl_error why = {0};
    dfcl_status s = dfcl_json_parse(out, p->options, strlen(p->options), DFCL_JSON_LIMITS, "options", &why);
    if (s == DFCL_NOMEM)
        return dfcl_fail(err, s, "%s", why.msg);
    return !s && cJSON_IsObject(*out) ? DFCL_OK
                                      : dfcl_fail(err, DFCL_USAGE, "training: options: expected a JSON object, found %s", s ? why.msg : "another value");
}

dfcl_status dfcl_train_config_init(struct dfcl_train_config *c, const dfcl_context *ctx, const struct dfcl_train_params *params,
                                   dfcl_error *err) {
    memset(c, 0, sizeof *c);
    c->ctx = ctx;
    c->p = *params;
    struct dfcl_train_params *p = &c->p;
    const struct {
        const char *value, *name;
    } needed[] = {{p->model.path, "model"}, {p->data, "data"}, {p->run_dir, "run directory"}};
    for (size_t i = 0; i < DFCL_COUNT(needed); i++)
        if (!needed[i].value || !needed[i].value[0])
            return dfcl_fail(err, DFCL_USAGE, "training: expected a model, data and a run directory, found no %s", needed[i].name);
    if (p->model.random)
        return dfcl_fail(err, DFCL_USAGE, "training: expected a base in a file, found a random one in memory");
    dfcl_status s = DFCL_OK;
    const char **strings[] = {&p->model.path, &p->model.which, &p->data, &p->run_dir, &p->method, &p->gamma_sites,
                              &p->gamma_blocks, &p->class_init, &p->lr_schedule, &p->resume, &p->dtype, &p->recompute, &p->crop, &p->alpha, &p->options};
    _Static_assert(DFCL_COUNT(strings) <= DFCL_COUNT(c->owned), "room for every string");
    for (size_t i = 0; i < DFCL_COUNT(strings); i++)
        *strings[i] = keep(c, *strings[i], err, &s);
    if (s)
        goto out;
    if (!p->method)
        p->method = "difffit";
    if (!p->class_init)
        p->class_init = "match";
    if (!p->lr_schedule)
        p->lr_schedule = "constant";
    if (!p->dtype)
        p->dtype = "f32";
#define DEFAULT(field, value) p->field = p->field == 0 ? (value) : p->field
    DEFAULT(steps, 400);
    DEFAULT(batch, 32);
    DEFAULT(lr, 1e-4);
    DEFAULT(beta1, 0.9);
    DEFAULT(beta2, 0.999);
    DEFAULT(eps, 1e-8);
    DEFAULT(ema_decay, 0.9999);
    DEFAULT(keep, 2);
    DEFAULT(log_every, 10);
    DEFAULT(max_skipped, 20);
    DEFAULT(spike_z, 6.0);
    p->label_dropout = p->label_dropout == 0 ? 0.1 : p->label_dropout < 0 ? 0.0 : p->label_dropout;
#undef DEFAULT
    s = check(c, err);
    cJSON *options = NULL;
    if (!s && p->options)
        s = read_options(p, &options, err);
    cJSON_Delete(options);
out:
    if (s)
        dfcl_train_config_finish(c);
    return s;
}

void dfcl_train_config_finish(struct dfcl_train_config *c) {
    for (int i = 0; i < c->owned_count; i++)
        dfcl_free(c->ctx, c->owned[i]);
    memset(c, 0, sizeof *c);
}

double dfcl_train_config_lr(const struct dfcl_train_config *c, int64_t step) {
    const struct dfcl_train_params *p = &c->p;
    if (step < p->warmup)
        return p->lr * (double)(step + 1) / (double)p->warmup;
    if (!c->cosine || p->steps <= p->warmup)
        return p->lr;
    double done = (double)(step - p->warmup) / (double)(p->steps - p->warmup);
    return 0.5 * p->lr * (1.0 + cos(3.14159265358979323846 * DFCL_MIN(done, 1.0)));
}

/* ---- config.json ---- */

static void add_u64(cJSON *o, const char *name, uint64_t v) {
    char buf[24]; /* a number would lose digits past 2^53 */
    snprintf(buf, sizeof buf, "%" PRIu64, v);
    cJSON_AddStringToObject(o, name, buf);
}

/* A path is bytes; JSON is UTF-8. */
static void add_path(cJSON *o, const char *name, const char *path) {
    char buf[4096];
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)path; *p && n + 4 < sizeof buf;) {
        int k = dfcl_utf8_len(p, strlen((const char *)p));
        if (k)
            memcpy(buf + n, p, (size_t)k);
        else
            buf[n] = '?';
        n += (size_t)(k ? k : 1);
        p += k ? k : 1;
    }
    buf[n] = 0;
    cJSON_AddStringToObject(o, name, buf);
}

static void add_settings(cJSON *o, const struct dfcl_train_config *c, const struct dfcl_model *model,
                         const struct dfcl_dataset *data, int micro_batch) {
    const struct dfcl_train_params *p = &c->p;
    cJSON_AddStringToObject(o, "base", model->hash);
    cJSON_AddStringToObject(o, "weights", dfcl_weight_type_name(p->model.weights));
    cJSON_AddStringToObject(o, "pack", p->model.pack == DFCL_PACK_NEVER ? "never" : "auto");
    cJSON_AddStringToObject(o, "activations", dfcl_keeps_bf16(&p->model) ? "bf16" : "f32");
    cJSON_AddNumberToObject(o, "input", model->shape.input);
    cJSON_AddStringToObject(o, "data", dfcl_dataset_fingerprint(data));
    cJSON_AddStringToObject(o, "method", model->method);
    cJSON_AddStringToObject(o, "gamma_sites", model->gamma_sites);
    cJSON_AddStringToObject(o, "gamma_blocks", model->gamma_blocks);
    add_path(o, "class_init", p->class_init);
    cJSON_AddNumberToObject(o, "train_classes", p->train_classes);
    add_u64(o, "seed", p->seed);
    cJSON_AddNumberToObject(o, "batch", p->batch);
    cJSON_AddNumberToObject(o, "micro_batch", micro_batch);
    cJSON_AddNumberToObject(o, "lr", p->lr);
    cJSON_AddStringToObject(o, "lr_schedule", p->lr_schedule);
    if (c->cosine)
        cJSON_AddNumberToObject(o, "steps", (double)p->steps);
    cJSON_AddNumberToObject(o, "warmup", (double)p->warmup);
    cJSON_AddNumberToObject(o, "weight_decay", p->weight_decay);
    cJSON_AddNumberToObject(o, "beta1", p->beta1);
    cJSON_AddNumberToObject(o, "beta2", p->beta2);
    cJSON_AddNumberToObject(o, "eps", p->eps);
    cJSON_AddNumberToObject(o, "clip", p->clip);
    cJSON_AddNumberToObject(o, "ema_decay", p->ema_decay);
    cJSON_AddBoolToObject(o, "ema_warmup", !p->no_ema_warmup);
    cJSON_AddNumberToObject(o, "label_dropout", p->label_dropout);
    cJSON_AddBoolToObject(o, "flip", p->flip != 0);
    if (p->val_fraction > 0)
        cJSON_AddNumberToObject(o, "val_fraction", p->val_fraction);
    if (c->random_crop)
        cJSON_AddStringToObject(o, "crop", "random");
    if (c->alpha != DFCL_ALPHA_WHITE)
        cJSON_AddStringToObject(o, "alpha", "drop");
}

dfcl_status dfcl_train_config_json(const struct dfcl_train_config *c, const struct dfcl_model *model, const struct dfcl_dataset *data,
                                   int micro_batch, const char *recompute, cJSON **out, dfcl_error *err) {
    const struct dfcl_train_params *p = &c->p;
    const struct dfcl_model_shape *m = &model->shape;
    const struct dfcl_device_info *d = &model->dev->info;
    *out = NULL;
    cJSON *root = cJSON_CreateObject(), *names = NULL;
    cJSON_AddStringToObject(root, "format", RUN_FORMAT);
    cJSON_AddStringToObject(root, "version", dfcl_version());
    add_settings(cJSON_AddObjectToObject(root, "settings"), c, model, data, micro_batch);
    cJSON *o = cJSON_AddObjectToObject(root, "model");
    add_path(o, "path", p->model.path);
    cJSON_AddStringToObject(o, "name", m->name);
    cJSON_AddNumberToObject(o, "depth", m->depth);
    cJSON_AddNumberToObject(o, "hidden", m->hidden);
    cJSON_AddNumberToObject(o, "heads", m->heads);
    cJSON_AddNumberToObject(o, "patch", m->patch);
    cJSON_AddNumberToObject(o, "input", m->input);
    cJSON_AddNumberToObject(o, "channels", m->channels);
    o = cJSON_AddObjectToObject(root, "data");
    add_path(o, "path", p->data);
    cJSON_AddStringToObject(o, "kind", dfcl_dataset_is_latent(data) ? "latents" : "pictures");
    cJSON_AddNumberToObject(o, "samples", (double)dfcl_dataset_count(data));
    cJSON_AddNumberToObject(o, "held_out", (double)dfcl_dataset_held_out_count(data));
    names = cJSON_AddArrayToObject(o, "class_names");
    bool ok = names != NULL;
    for (int i = 0; ok && i < dfcl_dataset_classes(data); i++)
        ok = cJSON_AddItemToArray(names, cJSON_CreateString(dfcl_dataset_class_names(data)[i]));
    cJSON_AddStringToObject(root, "recompute", recompute); /* decides no number: a run may go on with another */
    cJSON_AddNumberToObject(root, "steps", (double)p->steps);
    cJSON_AddNumberToObject(root, "checkpoint_every", (double)p->checkpoint_every);
    cJSON_AddNumberToObject(root, "sample_every", (double)p->sample_every);
    cJSON_AddNumberToObject(root, "log_every", (double)p->log_every);
    cJSON_AddNumberToObject(root, "keep", p->keep);
    cJSON_AddBoolToObject(root, "keep_best", p->val_fraction > 0 && !p->no_keep_best);
    if (p->max_memory)
        cJSON_AddNumberToObject(root, "max_memory", (double)p->max_memory);
    if (p->options) {
        cJSON *options = NULL;
        dfcl_status s = read_options(p, &options, err);
        if (s) {
            cJSON_Delete(root);
            return s;
        }
        cJSON_AddItemToObject(root, "options", options);
    }
    o = cJSON_AddObjectToObject(root, "device");
    cJSON_AddStringToObject(o, "backend", d->backend);
    cJSON_AddStringToObject(o, "platform", d->platform);
    cJSON_AddStringToObject(o, "name", d->name);
    ok = ok && cJSON_AddStringToObject(o, "driver", d->driver);
    if (!ok) {
        cJSON_Delete(root);
        return dfcl_fail(err, DFCL_NOMEM, "out of host memory for config.json");
    }
    *out = root;
    return DFCL_OK;
}

static void show(const cJSON *v, char *buf, size_t size) {
    if (cJSON_IsString(v))
        snprintf(buf, size, "%s", v->valuestring);
    else if (cJSON_IsNumber(v))
        snprintf(buf, size, "%.9g", v->valuedouble);
    else if (cJSON_IsBool(v))
        snprintf(buf, size, "%s", cJSON_IsTrue(v) ? "on" : "off");
    else
        snprintf(buf, size, "nothing");
}

/* Printed with 9 digits both ways: what the reader of the message could not tell apart is not told apart here. */
static bool equal(const cJSON *saved, const cJSON *now, const char *name, const char *path, dfcl_error *err) {
    char x[128], y[128];
    show(saved, x, sizeof x);
    show(now, y, sizeof y);
    if (!strcmp(x, y))
        return true;
    dfcl_fail(err, DFCL_USAGE, "%s: the run has %s %s, but %s is wanted now: go on with the run's own settings and data, or start a new run", path,
              name, x, y);
    return false;
}

dfcl_status dfcl_train_config_same(const cJSON *saved, const cJSON *now, const char *path, dfcl_error *err) {
    const cJSON *format = dfcl_json_get(saved, "format"), *a = dfcl_json_get(saved, "settings");
    if (!cJSON_IsString(format) || strcmp(format->valuestring, RUN_FORMAT))
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected the configuration of a run (format \"%s\"), found %.40s", path, RUN_FORMAT,
                         cJSON_IsString(format) ? format->valuestring : "something else");
    if (!cJSON_IsObject(a))
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected settings, an object, found %s", path, a ? "something else" : "none");
    /* Both ways: a setting that only one of them has differs too. */
    const cJSON *b = dfcl_json_get(now, "settings"), *v;
    cJSON_ArrayForEach(v, b) {
        if (!equal(dfcl_json_get(a, v->string), v, v->string, path, err))
            return DFCL_USAGE;
    }
    cJSON_ArrayForEach(v, a) {
        if (!equal(v, dfcl_json_get(b, v->string), v->string, path, err))
            return DFCL_USAGE;
    }
    return DFCL_OK;
}

void dfcl_train_config_warn(const dfcl_context *ctx, const cJSON *saved, const cJSON *now) {
    static const char *const keys[] = {"backend", "platform", "name", "driver"};
    for (size_t i = 0; i < DFCL_COUNT(keys); i++) {
        char x[128], y[128];
        show(dfcl_json_get(dfcl_json_get(saved, "device"), keys[i]), x, sizeof x);
        show(dfcl_json_get(dfcl_json_get(now, "device"), keys[i]), y, sizeof y);
        if (strcmp(x, y)) {
            dfcl_log(ctx, DFCL_LOG_WARN, "the run began on another device (%s %s, now %s): it goes on, but not with the bits of an unbroken run",
                     keys[i], x, y);
            return;
        }
    }
}

int dfcl_train_config_saved_micro(const cJSON *saved) {
    int64_t n = 0;
    dfcl_json_int(dfcl_json_get(dfcl_json_get(saved, "settings"), "micro_batch"), 1, 1 << 24, &n);
    return (int)n;
}
