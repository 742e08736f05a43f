/* train_*.safetensors: five optimizer steps of each method on given data. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "methods/method.h"
#include "train/step.h"
#include "verify/golden.h"

struct train_case {
    const char *file, *method;
    int train_classes; /* as in dfcl_method_config */
    bool random_gammas, own_data, t0;
};

struct train_data {
    float *x0, *noise;
    int64_t *t, *y;
    uint64_t steps, batch, each; /* each: values per sample */
};

static void data_free(const dfcl_context *ctx, struct train_data *d) {
    dfcl_free(ctx, d->x0);
    dfcl_free(ctx, d->noise);
    dfcl_free(ctx, d->t);
    dfcl_free(ctx, d->y);
    memset(d, 0, sizeof *d);
}

static dfcl_status data_read(struct train_data *d, struct dfcl_golden_file *f, const char *prefix, dfcl_error *err) {
    memset(d, 0, sizeof *d);
    char key[64];
    uint64_t n = 0, nn = 0, nt = 0, ny = 0;
    snprintf(key, sizeof key, "%st", prefix);
    const struct dfcl_tensor_view *v = dfcl_st_find(f->st, key);
    if (!v || v->ndim != 2)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected %s of the shape [steps, batch]", f->st->path, key);
    d->steps = (uint64_t)v->shape[0];
    d->batch = (uint64_t)v->shape[1];
    dfcl_status s = dfcl_golden_input_int(f, key, &d->t, &nt, err);
    snprintf(key, sizeof key, "%sy_eff", prefix);
    if (!s)
        s = dfcl_golden_input_int(f, key, &d->y, &ny, err);
    snprintf(key, sizeof key, "%sx0", prefix);
    if (!s)
        s = dfcl_golden_input(f, key, &d->x0, &n, err);
    snprintf(key, sizeof key, "%snoise", prefix);
    if (!s)
        s = dfcl_golden_input(f, key, &d->noise, &nn, err);
    if (!s && (ny != nt || nn != n || !nt || n % nt))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: x0, noise, t and y_eff do not fit together", f->st->path);
    if (!s)
        d->each = n / nt;
    snprintf(key, sizeof key, "%sdrop", prefix);
    dfcl_golden_excuse(f, key);
    snprintf(key, sizeof key, "%sy", prefix);
    dfcl_golden_excuse(f, key);
    return s;
}

/* The scale vectors of dit/gamma_random.safetensors in place of ones. */
static dfcl_status set_gammas(struct dfcl_golden *g, struct dfcl_dit *dit, dfcl_error *err) {
    char *path = dfcl_sprintf(g->ctx, err, "%s/dit/gamma_random.safetensors", g->dir);
    struct dfcl_st *st = NULL;
    dfcl_status s = path ? dfcl_st_open(&st, g->ctx, path, err) : DFCL_NOMEM;
    for (size_t i = 0; !s && i < st->count; i++) {
        const struct dfcl_tensor_view *v = &st->tensors[i];
        struct dfcl_param *p = dfcl_dit_param(dit, v->name);
        if (!p || (uint64_t)p->count != v->count) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s does not fit the model", path, v->name);
            break;
        }
        float *x = dfcl_calloc(g->ctx, (size_t)v->count, sizeof *x, err);
        s = x ? dfcl_view_read_f32(v, path, 0, v->count, x, err) : DFCL_NOMEM;
        if (!s)
            s = dfcl_dit_set(dit, p, 0, x, err);
        dfcl_free(g->ctx, x);
    }
    dfcl_st_close(&st);
    dfcl_free(g->ctx, path);
    return s;
}

struct train_run {
    const struct train_case *c;
    struct dfcl_golden_file *f;
    dfcl_model *model;
    struct dfcl_dit *dit;
    struct dfcl_stepper *st;
    float *now, *grad; /* flat: the array being compared, gradients of step 1 */
    int64_t count;
};

static dfcl_status check(struct train_run *r, const char *key, const float *got, uint64_t n, const struct dfcl_limit *limit,
                         struct dfcl_golden_special *sp, dfcl_error *err) {
    char f64[160];
    struct dfcl_golden_special none = {0};
    if (!dfcl_golden_has(r->f, key))
        return DFCL_OK;
    if (!sp)
        sp = &none;
    if (r->c->t0) {
        snprintf(f64, sizeof f64, "f64.%s", key);
        sp->against = f64;
    }
    dfcl_status s = dfcl_golden_check_special(r->f, key, got, n, limit, sp, err);
    sp->against = NULL;
    return s;
}

/* Every trained tensor of a flat array under PREFIX.NAME. The key third of a qkv bias has no gradient in exact arithmetic: what the
 * reference holds there is noise, which AdamW turns into steps of up to lr. */
static dfcl_status check_array(struct train_run *r, const char *prefix, enum dfcl_step_array which, int step, dfcl_error *err) {
    struct dfcl_device *dev = r->f->g->dev;
    bool gradient = which == DFCL_STEP_GRADS;
    dfcl_status s = dfcl_read(dev, r->now, dfcl_stepper_array(r->st, which), (uint64_t)r->count * sizeof(float), err);
    if (gradient && !s)
        memcpy(r->grad, r->now, (size_t)r->count * sizeof(float));
    int n;
    struct dfcl_param *p = dfcl_dit_params(r->dit, &n);
    for (int i = 0; i < n && !s; i++) {
        char key[128];
        snprintf(key, sizeof key, "%s.%s", prefix, p[i].name);
        const struct dfcl_tensor_view *v = p[i].present && p[i].trained ? dfcl_st_find(r->f->st, key) : NULL;
        if (!v || v->count > (uint64_t)p[i].count)
            continue; /* large tensors: their first rows are stored */
        const float *got = r->now + p[i].trained_off;
        struct dfcl_limit limit = {.rel = r->c->t0 ? 2e-4 : 2e-5};
        struct dfcl_golden_special sp = {0};
        if (!gradient) {
            limit = (struct dfcl_limit){.abs = p[i].gamma ? 2e-6 : 1e-5};
            sp.tiny = r->grad + p[i].trained_off;
            sp.tiny_abs = 1e-4 * step;
        }
        size_t len = strlen(p[i].name);
        if (len > 8 && !strcmp(p[i].name + len - 8, "qkv.bias")) {
            sp.lo = (uint64_t)p[i].count / 3;
            sp.hi = 2 * sp.lo;
            sp.abs = gradient ? 1e-8 : 1e-4 * step;
        }
        s = check(r, key, got, v->count, &limit, &sp, err);
    }
    return s;
}

/* gradnorm.NAME and gradsum.NAME of every trained tensor. */
static dfcl_status check_sums(struct train_run *r, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(r->dit, &n);
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < n && !s; i++) {
        if (!p[i].present || !p[i].trained)
            continue;
        double sum = 0, sq = 0;
        for (int64_t j = 0; j < p[i].count; j++) {
            double v = (double)r->grad[p[i].trained_off + j];
            sum += v;
            sq += v * v;
        }
        float norm = (float)sqrt(sq), total = (float)sum;
        const struct dfcl_limit norm_limit = {.rel = 2e-5};
        /* A tensor within its limit of 2e-5 has a sum within sqrt(count) times that of its norm. */
        const struct dfcl_limit sum_limit = {.abs = 2e-5 * (double)norm * sqrt((double)p[i].count)};
        char key[128];
        snprintf(key, sizeof key, "gradnorm.%s", p[i].name);
        s = check(r, key, &norm, 1, &norm_limit, NULL, err);
        snprintf(key, sizeof key, "gradsum.%s", p[i].name);
        if (!s)
            s = check(r, key, &total, 1, &sum_limit, NULL, err);
    }
    return s;
}

static dfcl_status check_tensor(struct train_run *r, const char *key, struct dfcl_ref ref, uint64_t n, double rel, dfcl_error *err) {
    float *x = dfcl_calloc(r->f->g->ctx, (size_t)n, sizeof *x, err);
    dfcl_status s = x ? dfcl_read(r->f->g->dev, x, ref, n * sizeof *x, err) : DFCL_NOMEM;
    const struct dfcl_limit limit = {.rel = rel};
    if (!s)
        s = check(r, key, x, n, &limit, NULL, err);
    dfcl_free(r->f->g->ctx, x);
    return s;
}

/* Results that the file holds per step: [steps, batch] and [steps]. */
struct train_series {
    float mse[64], vb[64], loss[64], mean[16], norm[16];
};

static dfcl_status steps(struct train_run *r, const struct train_data *d, double ema, bool first, struct train_series *out, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    uint64_t n = d->batch * d->each;
    uint64_t count = r->c->own_data || r->c->random_gammas ? 1 : d->steps;
    for (uint64_t k = 0; k < count && !s; k++) {
        int32_t t[16], rows[16];
        for (uint64_t i = 0; i < d->batch && !s; i++) {
            t[i] = (int32_t)d->t[k * d->batch + i];
            s = dfcl_model_row(r->model, 0, (int)d->y[k * d->batch + i], &rows[i], err);
        }
        struct dfcl_step_batch b = {.x0 = d->x0 + k * n, .noise = d->noise + k * n, .t = t, .rows = rows};
        struct dfcl_step_hyper h = {.k = (int64_t)k + 1, .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .ema_decay = ema};
        struct dfcl_step_result res;
        if (!s)
            s = dfcl_train_step(r->st, &b, &h, &res, err);
        if (!s && !res.finite)
            s = dfcl_fail(err, DFCL_NONFINITE, "%s: step %d gave non-finite numbers", r->c->file, (int)k + 1);
        if (s || !first)
            continue;
        const float *mse, *vb;
        dfcl_step_losses(r->st, &mse, &vb);
        for (uint64_t i = 0; i < d->batch; i++) {
            out->mse[k * d->batch + i] = mse[i];
            out->vb[k * d->batch + i] = vb[i];
            out->loss[k * d->batch + i] = mse[i] + vb[i];
        }
        out->mean[k] = (float)res.loss;
        out->norm[k] = (float)res.grad_norm;
        if (k == 0) {
            struct dfcl_ref xt, net, dout;
            dfcl_step_tensors(r->st, &xt, &net, &dout);
            double tail = r->c->t0 ? 2e-4 : 2e-5;
            s = check_tensor(r, "step1.x_t", xt, n, 1e-5, err);
            if (!s)
                s = check_tensor(r, "step1.model_out", net, 2 * n, 1e-5, err);
            if (!s)
                s = check_tensor(r, "step1.grad_model_out", dout, 2 * n, tail, err);
            if (!s)
                s = check_array(r, "grad", DFCL_STEP_GRADS, 1, err);
            if (!s)
                s = check_sums(r, err);
        }
        char prefix[16];
        snprintf(prefix, sizeof prefix, "p%d", (int)k + 1);
        if (!s)
            s = check_array(r, prefix, DFCL_STEP_VALUES, (int)k + 1, err);
    }
    if (!s && count == d->steps && !r->c->own_data) {
        char prefix[16];
        snprintf(prefix, sizeof prefix, "ema%g", ema);
        s = check_array(r, prefix, DFCL_STEP_EMA, (int)count, err);
    }
    return s;
}

static dfcl_status open_run(struct train_run *r, const struct train_data *d, dfcl_error *err) {
    struct dfcl_golden *g = r->f->g;
    char *path = dfcl_sprintf(g->ctx, err, "%s/dit/dit.safetensors", g->dir);
    if (!path)
        return DFCL_NOMEM;
    struct dfcl_model_params mp = {.path = path};
    struct dfcl_method_config mc = {.method = r->c->method, .train_classes = r->c->train_classes};
    dfcl_status s = dfcl_method_open(&r->model, g->dev, &mp, &mc, err);
    dfcl_free(g->ctx, path);
    if (s)
        return s;
    r->dit = dfcl_model_dit(r->model);
    if (r->c->random_gammas)
        s = set_gammas(g, r->dit, err);
    struct dfcl_stepper_options so = {.batch = (int)d->batch, .micro = (int)d->batch};
    if (!s)
        s = dfcl_stepper_create(&r->st, r->dit, &so, err);
    if (s)
        return s;
    r->count = dfcl_stepper_count(r->st);
    r->now = dfcl_calloc(g->ctx, (size_t)r->count, sizeof *r->now, err);
    if (!r->grad)
        r->grad = dfcl_calloc(g->ctx, (size_t)r->count, sizeof *r->grad, err);
    return r->now && r->grad ? DFCL_OK : DFCL_NOMEM;
}

static void close_run(struct train_run *r) {
    dfcl_stepper_destroy(&r->st);
    dfcl_model_close(&r->model);
    dfcl_free(r->f->g->ctx, r->now);
    r->now = NULL;
}

static dfcl_status one(struct dfcl_golden *g, const struct train_case *c, const struct train_data *shared, dfcl_error *err) {
    struct dfcl_golden_file f;
    dfcl_status s = dfcl_golden_open(&f, g, c->file, err);
    if (s)
        return s;
    struct train_data own = {0};
    if (c->own_data)
        s = data_read(&own, &f, "data.", err);
    const struct train_data *d = c->own_data ? &own : shared;
    struct train_series out = {0};
    struct train_run r = {.c = c, .f = &f};
    if (!s && (d->steps * d->batch > 64 || d->steps > 16 || d->batch > 16))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected at most 16 steps and 64 samples", f.st->path);
    /* the averages differ in nothing but their decay: a second run only for the other one */
    static const double decays[] = {0.9, 0.9999};
    for (int i = 0; i < 2 && !s; i++) {
        if (i && (c->own_data || c->random_gammas || !strcmp(c->file, "train_bitfit_y")))
            break;
        s = open_run(&r, d, err);
        if (!s)
            s = steps(&r, d, decays[i], i == 0, &out, err);
        close_run(&r);
    }
    uint64_t k = c->own_data || c->random_gammas ? 1 : d->steps;
    const struct dfcl_limit loss = {.rel = 1e-5}, vb = {.rel = c->t0 ? 2e-4 : 1e-5, .abs = 2e-6, .either = true},
                            total = {.rel = c->t0 ? 2e-4 : 1e-5}, norm = {.rel = c->t0 ? 2e-4 : 2e-5};
    if (!s)
        s = check(&r, "mse", out.mse, k * d->batch, &loss, NULL, err);
    if (!s)
        s = check(&r, "vb", out.vb, k * d->batch, &vb, NULL, err);
    if (!s)
        s = check(&r, "loss", out.loss, k * d->batch, &total, NULL, err);
    if (!s)
        s = check(&r, "loss_mean", out.mean, k, &total, NULL, err);
    if (!s)
        s = check(&r, "global_gradnorm", out.norm, k, &norm, NULL, err);
    dfcl_free(g->ctx, r.grad);
    data_free(g->ctx, &own);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}

dfcl_status dfcl_verify_train(struct dfcl_golden *g, dfcl_error *err) {
    static const struct train_case cases[] = {
        {"train_difffit", "difffit", 1, false, false, false},     {"train_difffit_g", "difffit", 1, true, false, false},
        {"train_difffit_t0", "difffit", 1, false, true, true},    {"train_bitfit", "bitfit", -1, false, false, false},
        {"train_bitfit_y", "bitfit", 1, false, false, false},     {"train_full", "full", 1, false, false, false},
    };
    struct dfcl_golden_file f;
    struct train_data d;
    dfcl_status s = dfcl_golden_open(&f, g, "train_data", err);
    if (s)
        return s;
    s = data_read(&d, &f, "", err);
    dfcl_golden_abort(&f);
    for (size_t i = 0; i < DFCL_COUNT(cases) && !s; i++)
        s = one(g, &cases[i], &d, err);
    data_free(g->ctx, &d);
    return s;
}
