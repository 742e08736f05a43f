#include "train/replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "diffusion/schedule.h"
#include "formats/safetensors.h"
#include "methods/method.h"
#include "train/step.h"

enum { MAX_STEPS = 5 };
static const double lr = 1e-4;

/* One run of the file's steps. Arrays [count] are the flat trained ones. */
struct replay {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    const char *dir, *name;
    struct dfcl_st *file, *data;
    const char *data_prefix;
    struct dfcl_model *model;
    struct dfcl_dit *dit;
    struct dfcl_stepper *st;
    int steps, batch, n, micro;
    int64_t count;
    float *grads;               /* of step 1 */
    float *smallest;            /* smallest gradient that was not 0, over the steps, by element */
    float *values[MAX_STEPS];   /* after step k + 1 */
    float *ema[2];              /* after the last, decays below */
    float *xt, *out, *dout;     /* of step 1, NULL when passes were smaller than the batch */
    float mse[MAX_STEPS * 64], vb[MAX_STEPS * 64];
    float norms[MAX_STEPS];
};
static const struct {
    const char *prefix;
    double decay;
} emas[] = {{"ema0.9.", 0.9}, {"ema0.9999.", 0.9999}};

static float *alloc(const struct replay *r, uint64_t n, dfcl_status *s, dfcl_error *err) {
    float *p = *s ? NULL : dfcl_calloc(r->ctx, (size_t)n, sizeof *p, err);
    if (!p && !*s)
        *s = DFCL_NOMEM;
    return p;
}

static const struct dfcl_tensor_view *find(struct dfcl_st *st, const char *prefix, const char *name, uint64_t count, dfcl_error *err) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    const struct dfcl_tensor_view *v = dfcl_st_find(st, key);
    if (!v || v->count < count) { /* a file of fewer steps uses the first of the data */
        dfcl_fail(err, DFCL_FORMAT, "%s: expected tensor %s of %llu values, found %llu", st->path, key, (unsigned long long)count,
                  (unsigned long long)(v ? v->count : 0));
        return NULL;
    }
    return v;
}

/* ---- opening ---- */

static dfcl_status set_gammas(struct replay *r, dfcl_error *err) {
    struct dfcl_st *f = NULL;
    char *path = dfcl_sprintf(r->ctx, err, "%s/dit/gamma_random.safetensors", r->dir);
    dfcl_status s = path ? dfcl_st_open(&f, r->ctx, path, err) : DFCL_NOMEM;
    for (size_t i = 0; !s && i < f->count; i++) {
        struct dfcl_param *p = dfcl_dit_param(r->dit, f->tensors[i].name);
        if (!p || !p->present || (uint64_t)p->count != f->tensors[i].count) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s is no gamma of this model", path, f->tensors[i].name);
            break;
        }
        float *v = alloc(r, f->tensors[i].count, &s, err);
        if (!s)
            s = dfcl_view_read_f32(&f->tensors[i], path, 0, f->tensors[i].count, v, err);
        if (!s)
            s = dfcl_dit_set(r->dit, p, 0, v, err);
        dfcl_free(r->ctx, v);
    }
    dfcl_st_close(&f);
    dfcl_free(r->ctx, path);
    return s;
}

/* Heads and the number of blocks with gammas, from dit/config.json. */
static dfcl_status read_config(const struct replay *r, int64_t *heads, int64_t *gamma_depth, dfcl_error *err) {
    char *path = dfcl_sprintf(r->ctx, err, "%s/dit/config.json", r->dir), *text = NULL;
    size_t size;
    cJSON *o = NULL;
    dfcl_status s = path ? dfcl_file_read(r->ctx, path, 1 << 20, &text, &size, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_json_parse(&o, text, size, DFCL_JSON_LIMITS, path, err);
    if (!s && !(dfcl_json_int(dfcl_json_get(o, "heads"), 1, 1024, heads) && dfcl_json_int(dfcl_json_get(o, "gd"), 1, 1024, gamma_depth)))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected heads and gd", path);
    cJSON_Delete(o);
    dfcl_free(r->ctx, text);
    dfcl_free(r->ctx, path);
    return s;
}

static dfcl_status open_model(struct replay *r, dfcl_error *err) {
    int64_t heads = 0, gamma_depth = 1;
    char blocks[32];
    const char *method = r->name + strlen("train_");
    dfcl_status s = read_config(r, &heads, &gamma_depth, err);
    if (s)
        return s;
    snprintf(blocks, sizeof blocks, "0-%d", (int)gamma_depth - 1);
    bool difffit = !strncmp(method, "difffit", 7), bitfit = !strncmp(method, "bitfit", 6);
    char *path = dfcl_sprintf(r->ctx, err, "%s/dit/dit.safetensors", r->dir);
    if (!path)
        return DFCL_NOMEM;
    struct dfcl_model_params mp = {.path = path, .heads = (int)heads};
    struct dfcl_method_config mc = {.method = difffit ? "difffit" : bitfit ? "bitfit" : "full", .gamma_blocks = difffit ? blocks : NULL,
                                    .train_classes = !strcmp(method, "bitfit") ? -1 : 1};
    s = dfcl_method_open(&r->model, r->dev, &mp, &mc, err);
    dfcl_free(r->ctx, path);
    if (s)
        return s;
    r->dit = dfcl_model_dit(r->model);
    return !strcmp(method, "difffit_g") ? set_gammas(r, err) : DFCL_OK;
}

static dfcl_status open_files(struct replay *r, dfcl_error *err) {
    char *path = dfcl_sprintf(r->ctx, err, "%s/%s.safetensors", r->dir, r->name);
    char *data = dfcl_sprintf(r->ctx, err, "%s/train_data.safetensors", r->dir);
    dfcl_status s = path && data ? dfcl_st_open(&r->file, r->ctx, path, err) : DFCL_NOMEM;
    r->data_prefix = "";
    if (!s && dfcl_st_find(r->file, "data.x0"))
        r->data_prefix = "data.";
    else if (!s)
        s = dfcl_st_open(&r->data, r->ctx, data, err);
    const struct dfcl_tensor_view *v = s ? NULL : find(r->file, "", "mse", 0, err);
    if (!s && !v)
        s = DFCL_FORMAT;
    if (!s && (v->ndim != 2 || v->shape[0] < 1 || v->shape[0] > MAX_STEPS || v->shape[1] < 1 || v->shape[1] > 64))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected mse of up to %d steps of up to 64 samples", path, MAX_STEPS);
    if (!s) {
        r->steps = (int)v->shape[0];
        r->batch = (int)v->shape[1];
    }
    dfcl_free(r->ctx, path);
    dfcl_free(r->ctx, data);
    return s;
}

static void finish(struct replay *r) {
    dfcl_stepper_destroy(&r->st);
    dfcl_model_close(&r->model);
    dfcl_st_close(&r->file);
    dfcl_st_close(&r->data);
    float *const all[] = {r->grads, r->smallest, r->values[0], r->values[1], r->values[2], r->values[3], r->values[4], r->ema[0], r->ema[1],
                          r->xt, r->out, r->dout};
    for (size_t i = 0; i < DFCL_COUNT(all); i++)
        dfcl_free(r->ctx, all[i]);
}

/* ---- running ---- */

static dfcl_status read_array(struct replay *r, enum dfcl_step_array which, float **out, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (!*out)
        *out = alloc(r, (uint64_t)r->count, &s, err);
    return s ? s : dfcl_read(r->dev, *out, dfcl_stepper_array(r->st, which), (uint64_t)r->count * sizeof(float), err);
}

static dfcl_status read_step1(struct replay *r, dfcl_error *err) {
    struct dfcl_ref xt, out, dout;
    uint64_t n = (uint64_t)r->batch * (uint64_t)r->n;
    dfcl_status s = DFCL_OK;
    dfcl_step_tensors(r->st, &xt, &out, &dout);
    r->xt = alloc(r, n, &s, err);
    r->out = alloc(r, 2 * n, &s, err);
    r->dout = alloc(r, 2 * n, &s, err);
    if (!s)
        s = dfcl_read(r->dev, r->xt, xt, n * sizeof(float), err);
    if (!s)
        s = dfcl_read(r->dev, r->out, out, 2 * n * sizeof(float), err);
    if (!s)
        s = dfcl_read(r->dev, r->dout, dout, 2 * n * sizeof(float), err);
    return s;
}

/* All steps with one decay. The first run keeps everything, the second only its average. */
static dfcl_status run(struct replay *r, int which, dfcl_error *err) {
    struct dfcl_st *data = r->data ? r->data : r->file;
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(r->dit);
    struct dfcl_stepper_options o = {.batch = r->batch, .micro = r->micro ? r->micro : r->batch};
    r->n = (int)dfcl_dit_values(cfg);
    uint64_t each = (uint64_t)r->batch * (uint64_t)r->n, all = each * (uint64_t)r->steps, few = (uint64_t)(r->batch * r->steps);
    const struct dfcl_tensor_view *x0, *noise, *t, *y;
    if (!(x0 = find(data, r->data_prefix, "x0", all, err)) || !(noise = find(data, r->data_prefix, "noise", all, err)) ||
        !(t = find(data, r->data_prefix, "t", few, err)) || !(y = find(data, r->data_prefix, "y_eff", few, err)))
        return DFCL_FORMAT;
    dfcl_status s = DFCL_OK;
    float *hx = alloc(r, each, &s, err), *hz = alloc(r, each, &s, err), *ht = alloc(r, (uint64_t)r->batch, &s, err),
          *hy = alloc(r, (uint64_t)r->batch, &s, err), *g = NULL;
    int32_t it[64], rows[64];
    if (!s)
        s = dfcl_stepper_create(&r->st, r->dit, &o, err);
    r->count = s ? 0 : dfcl_stepper_count(r->st);
    if (!which && !s) {
        r->smallest = alloc(r, (uint64_t)r->count, &s, err);
        for (int64_t i = 0; !s && i < r->count; i++)
            r->smallest[i] = INFINITY;
    }
    for (int k = 0; k < r->steps && !s; k++) {
        struct dfcl_step_hyper h = {.k = k + 1, .lr = lr, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .ema_decay = emas[which].decay};
        struct dfcl_step_result res;
        s = dfcl_view_read_f32(x0, data->path, (uint64_t)k * each, each, hx, err);
        if (!s)
            s = dfcl_view_read_f32(noise, data->path, (uint64_t)k * each, each, hz, err);
        if (!s)
            s = dfcl_view_read_f32(t, data->path, (uint64_t)(k * r->batch), (uint64_t)r->batch, ht, err);
        if (!s)
            s = dfcl_view_read_f32(y, data->path, (uint64_t)(k * r->batch), (uint64_t)r->batch, hy, err);
        for (int i = 0; !s && i < r->batch; i++) {
            if (!(ht[i] >= 0 && ht[i] < DFCL_TRAIN_STEPS && hy[i] >= 0 && hy[i] <= 1 << 24)) {
                s = dfcl_fail(err, DFCL_FORMAT, "%s: step %d: expected timesteps from 0 to %d and classes from 0, found %g and %g", data->path,
                              k + 1, DFCL_TRAIN_STEPS - 1, (double)ht[i], (double)hy[i]);
                break;
            }
            it[i] = (int32_t)ht[i];
            s = dfcl_model_row(r->model, 0, (int)hy[i], &rows[i], err);
        }
        struct dfcl_step_batch b = {.x0 = hx, .noise = hz, .t = it, .rows = rows};
        if (!s)
            s = dfcl_step_gradients(r->st, &b, err);
        if (!s && !which && !k && !r->micro)
            s = read_step1(r, err);
        if (!s && !which)
            s = read_array(r, DFCL_STEP_GRADS, k ? &g : &r->grads, err);
        for (int64_t i = 0; !s && !which && i < r->count; i++) {
            float a = fabsf((k ? g : r->grads)[i]);
            if (a > 0.0f && a < r->smallest[i])
                r->smallest[i] = a;
        }
        if (!s)
            s = dfcl_step_update(r->st, &h, &res, err);
        if (!s && !res.finite)
            s = dfcl_fail(err, DFCL_NONFINITE, "%s: step %d is not finite", r->name, k + 1);
        if (s || which)
            continue;
        const float *mse, *vb;
        dfcl_step_losses(r->st, &mse, &vb);
        memcpy(r->mse + k * r->batch, mse, (size_t)r->batch * sizeof *mse);
        memcpy(r->vb + k * r->batch, vb, (size_t)r->batch * sizeof *vb);
        r->norms[k] = (float)res.grad_norm;
        s = read_array(r, DFCL_STEP_VALUES, &r->values[k], err);
    }
    if (!s)
        s = read_array(r, DFCL_STEP_EMA, &r->ema[which], err);
    dfcl_stepper_destroy(&r->st);
    dfcl_free(r->ctx, hx);
    dfcl_free(r->ctx, hz);
    dfcl_free(r->ctx, ht);
    dfcl_free(r->ctx, hy);
    dfcl_free(r->ctx, g);
    return s;
}

/* ---- judging ---- */

/* Limits for an f32 implementation: several times what the float32 reference itself differs from its float64 run. */
enum rule { RULE_FORWARD, RULE_LOSS, RULE_VB, RULE_GRAD, RULE_SUM, RULE_VALUE };

struct quantity {
    enum rule rule;
    bool loose;          /* judged against the float64 run at t = 0, where the likelihood cancels */
    const struct dfcl_param *param;
    int steps;           /* RULE_VALUE: updates so far */
    double scale;        /* RULE_SUM: size that the limit refers to */
};

/* Elements d .. 2d of a qkv bias: their gradient is 0 in exact arithmetic, so what a run holds there is rounding noise, which AdamW turns into
 * steps of full length. */
static bool in_k_part(const struct dfcl_param *p, uint64_t i) {
    size_t n = p ? strlen(p->name) : 0;
    if (n < 14 || strcmp(p->name + n - 13, "attn.qkv.bias"))
        return false;
    uint64_t d = (uint64_t)p->count / 3;
    return i >= d && i < 2 * d;
}

static void judge(const struct replay *r, const struct quantity *q, struct dfcl_replay_item *it) {
    double d2 = 0.0, w2 = 0.0, worst = 0.0, all_d2 = 0.0, all_w2 = 0.0;
    it->max_abs = 0.0;
    for (uint64_t i = 0; i < it->count; i++) {
        double d = fabs((double)it->got[i] - it->want[i]), w = it->want[i], lim = 0.0;
        if (!isfinite(it->got[i])) {
            it->max_abs = it->rel_l2 = it->worst = INFINITY;
            it->limit = "finite";
            return;
        }
        bool k = in_k_part(q->param, i);
        it->max_abs = fmax(it->max_abs, d);
        all_d2 += d * d;
        all_w2 += w * w;
        if (!k) {
            d2 += d * d;
            w2 += w * w;
        }
        switch (q->rule) {
        case RULE_FORWARD: lim = 5e-5; break;
        case RULE_VB: lim = fmax(2e-6, (q->loose ? 2e-4 : 1e-5) * fabs(w)); break;
        case RULE_LOSS: lim = INFINITY; break;
        case RULE_GRAD: lim = k ? 1e-8 : INFINITY; break;
        case RULE_SUM: lim = (q->loose ? 2e-4 : 2e-5) * q->scale; break;
        case RULE_VALUE:
            /* A step moves an element by up to lr; where a gradient drowns in rounding, so does the direction of the step. */
            lim = k || r->smallest[q->param->trained_off + (int64_t)i] < 1e-7f ? lr * q->steps : q->param->gamma ? 2e-6 : 1e-5;
            break;
        }
        if (d > 0.0)
            worst = fmax(worst, d / lim);
    }
    it->rel_l2 = all_w2 > 0.0 ? sqrt(all_d2 / all_w2) : all_d2 > 0.0 ? INFINITY : 0.0;
    double rel = w2 > 0.0 ? sqrt(d2 / w2) : d2 > 0.0 ? INFINITY : 0.0;
    switch (q->rule) {
    case RULE_FORWARD:
        worst = fmax(worst, rel / 1e-5);
        it->limit = "relative L2 1e-5, absolute 5e-5";
        break;
    case RULE_GRAD:
        worst = fmax(worst, rel / (q->loose ? 2e-4 : 2e-5));
        it->limit = q->loose ? "relative L2 2e-4" : "relative L2 2e-5, k part of qkv.bias absolute 1e-8";
        break;
    case RULE_LOSS:
        worst = fmax(worst, rel / (q->loose ? 2e-4 : 1e-5));
        it->limit = q->loose ? "relative L2 2e-4" : "relative L2 1e-5";
        break;
    case RULE_VB: it->limit = q->loose ? "relative 2e-4 or absolute 2e-6" : "relative 1e-5 or absolute 2e-6"; break;
    case RULE_SUM: it->limit = q->loose ? "2e-4 of the norm" : "2e-5 of the norm (sums: times the root of the count)"; break;
    case RULE_VALUE: it->limit = "absolute 1e-5, gammas 2e-6, directionless elements 1e-4 a step"; break;
    }
    it->worst = worst;
}

static bool starts(const char *s, const char *head, const char **rest) {
    size_t n = strlen(head);
    if (strncmp(s, head, n))
        return false;
    *rest = s + n;
    return true;
}

/* What the run has for `key`: *got points into the run or into tmp [1 or MAX_STEPS * 64]. False: the run has nothing. */
static bool compute(const struct replay *r, const char *key, float *tmp, const float **got, uint64_t *count, struct quantity *q) {
    const char *rest;
    const uint64_t n = (uint64_t)r->batch * (uint64_t)r->n, few = (uint64_t)(r->steps * r->batch);
    *q = (struct quantity){.rule = RULE_FORWARD};
    *got = tmp;
    *count = few;
    if (!strcmp(key, "mse") || !strcmp(key, "vb")) {
        *got = key[0] == 'm' ? r->mse : r->vb;
        q->rule = key[0] == 'm' ? RULE_LOSS : RULE_VB;
        return true;
    }
    if (!strcmp(key, "loss") || !strcmp(key, "loss_mean")) {
        bool mean = key[4] != 0;
        q->rule = RULE_LOSS;
        for (int k = 0; k < r->steps; k++) {
            double sum = 0.0;
            for (int i = k * r->batch; i < (k + 1) * r->batch; i++) {
                sum += (double)r->mse[i] + r->vb[i];
                if (!mean)
                    tmp[i] = r->mse[i] + r->vb[i];
            }
            if (mean)
                tmp[k] = (float)(sum / r->batch);
        }
        if (mean)
            *count = (uint64_t)r->steps;
        return true;
    }
    if (!strcmp(key, "global_gradnorm")) {
        *got = r->norms;
        *count = (uint64_t)r->steps;
        q->rule = RULE_LOSS;
        return true;
    }
    if (starts(key, "step1.", &rest)) {
        bool xt = !strcmp(rest, "x_t"), out = !strcmp(rest, "model_out"), dout = !strcmp(rest, "grad_model_out");
        *got = xt ? r->xt : out ? r->out : dout ? r->dout : NULL;
        *count = xt ? n : 2 * n;
        q->rule = dout ? RULE_GRAD : RULE_FORWARD;
        return *got != NULL;
    }
    const float *from = NULL;
    bool norm = starts(key, "gradnorm.", &rest), sum = !norm && starts(key, "gradsum.", &rest);
    if (norm || sum || starts(key, "grad.", &rest)) {
        from = r->grads;
        q->rule = norm || sum ? RULE_SUM : RULE_GRAD;
    } else if (key[0] == 'p' && key[1] >= '1' && key[1] <= '0' + r->steps && key[2] == '.') {
        q->steps = key[1] - '0';
        from = r->values[q->steps - 1];
        q->rule = RULE_VALUE;
        rest = key + 3;
    } else {
        for (size_t i = 0; i < DFCL_COUNT(emas) && !from; i++)
            if (starts(key, emas[i].prefix, &rest))
                from = r->ema[i];
        q->steps = r->steps;
        q->rule = RULE_VALUE;
    }
    const struct dfcl_param *p = from ? dfcl_dit_param(r->dit, rest) : NULL;
    if (!p || !p->trained)
        return false;
    q->param = p;
    *got = from + p->trained_off;
    *count = (uint64_t)p->count;
    if (norm || sum) {
        double s1 = 0.0, s2 = 0.0;
        for (int64_t i = 0; i < p->count; i++) {
            s1 += (*got)[i];
            s2 += (double)(*got)[i] * (*got)[i];
        }
        q->scale = sqrt(s2) * (sum ? sqrt((double)p->count) : 1.0);
        q->param = NULL;
        tmp[0] = (float)(norm ? sqrt(s2) : s1);
        *got = tmp;
        *count = 1;
    }
    return true;
}

static dfcl_status report(struct replay *r, dfcl_replay_fn each, void *user, dfcl_error *err) {
    float tmp[MAX_STEPS * 64];
    for (size_t i = 0; i < r->file->count; i++) {
        const struct dfcl_tensor_view *v = &r->file->tensors[i], *exact;
        struct dfcl_replay_item it = {.key = v->name, .shape = v->shape, .ndim = v->ndim, .count = v->count};
        struct quantity q;
        uint64_t have;
        char key[128];
        if (!strncmp(v->name, "f64.", 4) || !strncmp(v->name, "data.", 5) || (r->micro && !strncmp(v->name, "step1.", 6)))
            continue;
        /* The file may hold only the first rows of a large tensor. */
        if (!compute(r, v->name, tmp, &it.got, &have, &q) || have < v->count)
            return dfcl_fail(err, DFCL_FORMAT, "%s: no quantity %s of this size in the run", r->file->path, v->name);
        snprintf(key, sizeof key, "f64.%s", v->name);
        exact = dfcl_st_find(r->file, key);
        q.loose = exact != NULL;
        if (exact && exact->count == v->count)
            v = exact;
        dfcl_status s = DFCL_OK;
        float *want = alloc(r, it.count, &s, err);
        if (!s)
            s = dfcl_view_read_f32(v, r->file->path, 0, it.count, want, err);
        it.want = want;
        if (!s) {
            judge(r, &q, &it);
            s = each(user, &it, err);
        }
        dfcl_free(r->ctx, want);
        if (s)
            return s;
    }
    return DFCL_OK;
}

dfcl_status dfcl_replay_train(struct dfcl_device *dev, const char *golden_dir, const char *name, int micro, dfcl_replay_fn each, void *user,
                              dfcl_error *err) {
    static const char *const known[] = {"train_difffit", "train_difffit_g", "train_difffit_t0", "train_bitfit", "train_bitfit_y", "train_full"};
    size_t i = 0;
    while (i < DFCL_COUNT(known) && strcmp(name, known[i]))
        i++;
    if (i == DFCL_COUNT(known))
        return dfcl_fail(err, DFCL_USAGE, "%s: not a training file that is known", name);
    struct replay *r = dfcl_calloc(dev->ctx, 1, sizeof *r, err);
    if (!r)
        return DFCL_NOMEM;
    r->ctx = dev->ctx;
    r->dev = dev;
    r->dir = golden_dir;
    r->name = name;
    r->micro = micro;
    dfcl_status s = open_files(r, err);
    bool averages = !s && r->steps > 1;
    for (int k = 0; k < (averages ? 2 : 1) && !s; k++) {
        dfcl_model_close(&r->model); /* the second run starts from the file again */
        s = open_model(r, err);
        if (!s)
            s = run(r, k, err);
    }
    if (!s)
        s = report(r, each, user, err);
    finish(r);
    dfcl_free(dev->ctx, r);
    return s;
}
