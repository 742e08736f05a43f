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
        {"val fraction", p->val_fraction, 0, 0.9},  {"keep", p->keep, 1, 1e9},                  {"checkpoint every", (double)p->checkpoint_every, -1, big},
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
    } needed[] = {{p->model.path, "model"}, {p->arrays ? "arrays" : p->data, "data"}, {p->run_dir, "run directory"}};
    for (size_t i = 0; i < DFCL_COUNT(needed); i++)
        if (!needed[i].value || !needed[i].value[0])
            return dfcl_fail(err, DFCL_USAGE, "training: expected a model, data and a run directory, found no %s", needed[i].name);
    if (p->arrays && p->data)
        return dfcl_fail(err, DFCL_USAGE, "training: expected data in a folder or in memory, found both (%s)", p->data);
    if (p->model.random)
        return dfcl_fail(err, DFCL_USAGE, "training: expected a base in a file, found a random one in memory");
    dfcl_status s = DFCL_OK;
    const char **strings[] = {&p->model.path, &p->model.which, &p->data, &p->run_dir, &p->method, &p->gamma_sites,
                              &p->gamma_blocks, &p->class_init, &p->lr_schedule, &p->resume, &p->dtype, &p->recompute, &p->crop, &p->alpha, &p->options, &p->vae};
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
    DEFAULT(checkpoint_every, 500);
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
    dfcl_json_add_text(o, name, buf);
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
    dfcl_json_add_text(o, name, buf);
}

static void add_settings(cJSON *o, const struct dfcl_train_config *c, const struct dfcl_model *model,
                         const struct dfcl_dataset *data, int micro_batch) {
    const struct dfcl_train_params *p = &c->p;
    dfcl_json_add_text(o, "base", model->hash);
    dfcl_json_add_text(o, "weights", dfcl_weight_type_name(p->model.weights));
    dfcl_json_add_text(o, "pack", p->model.pack == DFCL_PACK_NEVER ? "never" : "auto");
    dfcl_json_add_text(o, "activations", dfcl_keeps_bf16(&p->model) ? "bf16" : "f32");
    dfcl_json_add_extent(o, "input", model->shape.input, model->shape.input_width);
    if (model->shape.positional_scale > 0)
        dfcl_json_add_number(o, "positional_scale", model->shape.positional_scale);
    dfcl_json_add_text(o, "data", dfcl_dataset_fingerprint(data));
    dfcl_json_add_text(o, "method", model->method);
    dfcl_json_add_text(o, "gamma_sites", model->gamma_sites);
    dfcl_json_add_text(o, "gamma_blocks", model->gamma_blocks);
    add_path(o, "class_init", p->class_init);
    dfcl_json_add_number(o, "train_classes", p->train_classes);
    add_u64(o, "seed", p->seed);
    dfcl_json_add_number(o, "batch", p->batch);
    dfcl_json_add_number(o, "micro_batch", micro_batch);
    dfcl_json_add_number(o, "lr", p->lr);
    dfcl_json_add_text(o, "lr_schedule", p->lr_schedule);
    if (c->cosine)
        dfcl_json_add_number(o, "steps", (double)p->steps);
    dfcl_json_add_number(o, "warmup", (double)p->warmup);
    dfcl_json_add_number(o, "weight_decay", p->weight_decay);
    dfcl_json_add_number(o, "beta1", p->beta1);
    dfcl_json_add_number(o, "beta2", p->beta2);
    dfcl_json_add_number(o, "eps", p->eps);
    dfcl_json_add_number(o, "clip", p->clip);
    dfcl_json_add_number(o, "ema_decay", p->ema_decay);
    dfcl_json_add_bool(o, "ema_warmup", !p->no_ema_warmup);
    dfcl_json_add_number(o, "label_dropout", p->label_dropout);
    dfcl_json_add_bool(o, "flip", p->flip != 0);
    if (p->val_fraction > 0)
        dfcl_json_add_number(o, "val_fraction", p->val_fraction);
    if (c->random_crop)
        dfcl_json_add_text(o, "crop", "random");
    if (c->alpha != DFCL_ALPHA_WHITE)
        dfcl_json_add_text(o, "alpha", "drop");
}

dfcl_status dfcl_train_config_json(const struct dfcl_train_config *c, const struct dfcl_model *model, const struct dfcl_dataset *data,
                                   int micro_batch, const char *recompute, cJSON **out, dfcl_error *err) {
    const struct dfcl_train_params *p = &c->p;
    const struct dfcl_model_shape *m = &model->shape;
    const struct dfcl_device_info *d = &model->dev->info;
    *out = NULL;
    cJSON *root = cJSON_CreateObject(), *names = NULL;
    dfcl_json_add_text(root, "format", RUN_FORMAT);
    dfcl_json_add_text(root, "version", dfcl_version());
    add_settings(dfcl_json_add_object(root, "settings"), c, model, data, micro_batch);
    cJSON *o = dfcl_json_add_object(root, "model");
    add_path(o, "path", p->model.path);
    dfcl_json_add_text(o, "name", m->name);
    dfcl_json_add_number(o, "depth", m->depth);
    dfcl_json_add_number(o, "hidden", m->hidden);
    dfcl_json_add_number(o, "heads", m->heads);
    dfcl_json_add_number(o, "patch", m->patch);
    dfcl_json_add_extent(o, "input", m->input, m->input_width);
    dfcl_json_add_number(o, "channels", m->channels);
    o = dfcl_json_add_object(root, "data");
    if (dfcl_dataset_in_arrays(data))
        dfcl_json_add_bool(o, "memory", true);
    else
        add_path(o, "path", p->data);
    dfcl_json_add_text(o, "kind", dfcl_dataset_is_latent(data) ? "latents" : "pictures");
    dfcl_json_add_number(o, "samples", (double)dfcl_dataset_count(data));
    dfcl_json_add_number(o, "held_out", (double)dfcl_dataset_held_out_count(data));
    names = dfcl_json_add_array(o, "class_names");
    for (int i = 0; i < dfcl_dataset_classes(data); i++)
        dfcl_json_push(names, cJSON_CreateString(dfcl_dataset_class_names(data)[i]));
    dfcl_json_add_text(root, "recompute", recompute); /* decides no number: a run may go on with another */
    dfcl_json_add_number(root, "steps", (double)p->steps);
    dfcl_json_add_number(root, "checkpoint_every", (double)p->checkpoint_every);
    dfcl_json_add_number(root, "sample_every", (double)p->sample_every);
    if (p->vae)
        add_path(root, "vae", p->vae);
    dfcl_json_add_number(root, "log_every", (double)p->log_every);
    dfcl_json_add_number(root, "keep", p->keep);
    dfcl_json_add_bool(root, "keep_best", p->val_fraction > 0 && !p->no_keep_best);
    if (p->max_memory)
        dfcl_json_add_number(root, "max_memory", (double)p->max_memory);
    if (p->options) {
        cJSON *options = NULL;
        dfcl_status s = read_options(p, &options, err);
        if (s) {
            cJSON_Delete(root);
            return s;
        }
        dfcl_json_add(root, "options", options);
    }
    o = dfcl_json_add_object(root, "device");
    dfcl_json_add_text(o, "backend", d->backend);
    dfcl_json_add_text(o, "platform", d->platform);
    dfcl_json_add_text(o, "name", d->name);
    dfcl_json_add_text(o, "driver", d->driver);
    if (!dfcl_json_whole(root)) {
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
