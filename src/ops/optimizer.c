/* AdamW with the moving average, axpby and the sum of squares, over flat arrays of up to billions of values (64-bit counts). */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status count_check(int64_t n, dfcl_error *err) {
    return n < 0 ? dfcl_fail(err, DFCL_ERROR, "%lld values", (long long)n) : DFCL_OK;
}

/* ---- references ---- */

static dfcl_status adamw_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_adamw *o = params;
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    float *p = dfcl_host_ptr(dev, o->p), *m = dfcl_host_ptr(dev, o->m), *v = dfcl_host_ptr(dev, o->v);
    const float *g = dfcl_host_ptr(dev, o->g);
    float *e = dfcl_host_ptr(dev, o->ema);
    double b1 = o->beta1, b2 = o->beta2, step = o->lr / o->c1, root = sqrt(o->c2), eps = o->eps;
    double keep = 1.0 - o->lr * o->wd, gs = (double)o->grad_scale;
    for (int64_t i = 0; i < o->n; i++) {
        double gi = (double)g[i] * gs;
        double mi = b1 * (double)m[i] + (1.0 - b1) * gi, vi = b2 * (double)v[i] + (1.0 - b2) * gi * gi;
        m[i] = (float)mi;
        v[i] = (float)vi;
        double pi = (double)p[i] * keep - step * mi / (sqrt(vi) / root + eps);
        p[i] = (float)pi;
        if (e)
            e[i] = (float)(o->ema_decay * (double)e[i] + (1.0 - o->ema_decay) * pi);
    }
    return DFCL_OK;
}

static dfcl_status axpby_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_axpby *o = params;
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    const float *x = dfcl_host_ptr(dev, o->x);
    float *y = dfcl_host_ptr(dev, o->y);
    for (int64_t i = 0; i < o->n; i++)
        y[i] = o->b == 0.0f ? o->a * x[i] : (float)((double)o->a * (double)x[i] + (double)o->b * (double)y[i]);
    return DFCL_OK;
}

static dfcl_status sumsq_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_sumsq *o = params;
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    const float *x = dfcl_host_ptr(dev, o->x);
    float *out = dfcl_host_ptr(dev, o->out);
    double sum = 0;
    int64_t bad = 0;
    for (int64_t i = 0; i < o->n; i++) {
        if (isfinite(x[i]))
            sum += (double)x[i] * (double)x[i];
        else
            bad++;
    }
    out[0] = (float)sum;
    out[1] = (float)bad;
    return DFCL_OK;
}

/* ---- kernels (cl/optimizer.cl, cl/optimizer_cpu.cl) ---- */

#define GROUP_VALUES 1024  /* values per work-group of the portable kernels */
#define CPU_VALUES 16384   /* of the CPU's */
#define SUMSQ_VALUES 4096  /* per partial sum, both */

struct family {
    const char *source;
    int64_t values;
};
static const struct family portable = {"optimizer", GROUP_VALUES}, cpu = {"optimizer_cpu", CPU_VALUES};

static dfcl_status adamw_kernel(struct dfcl_device *dev, const struct dfcl_adamw *o, const struct family *f, dfcl_error *err) {
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, o->p, 4);
    dfcl_args_ref(&a, o->g, 4);
    dfcl_args_ref(&a, o->m, 4);
    dfcl_args_ref(&a, o->v, 4);
    dfcl_args_ref(&a, o->ema, 4);
    dfcl_args_i64(&a, o->n);
    dfcl_args_f32(&a, o->grad_scale);
    dfcl_args_f32(&a, (float)o->beta1);
    dfcl_args_f32(&a, (float)(1.0 - o->beta1));
    dfcl_args_f32(&a, (float)o->beta2);
    dfcl_args_f32(&a, (float)(1.0 - o->beta2));
    dfcl_args_f32(&a, (float)(o->lr * o->wd));
    dfcl_args_f32(&a, (float)(o->lr / o->c1));
    dfcl_args_f32(&a, (float)(1.0 / sqrt(o->c2)));
    dfcl_args_f32(&a, (float)o->eps);
    dfcl_args_f32(&a, (float)(1.0 - o->ema_decay));
    return dfcl_launch_kernel(dev, f->source, "adamw", NULL, dfcl_ceil_div(o->n, f->values), 1, 1, &a, err);
}
static dfcl_status adamw_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return adamw_kernel(dev, params, &portable, err);
}
static dfcl_status adamw_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return adamw_kernel(dev, params, &cpu, err);
}

static dfcl_status axpby_kernel(struct dfcl_device *dev, const struct dfcl_axpby *o, const struct family *f, dfcl_error *err) {
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, o->x, 4);
    dfcl_args_ref(&a, o->y, 4);
    dfcl_args_i64(&a, o->n);
    dfcl_args_f32(&a, o->a);
    dfcl_args_f32(&a, o->b);
    dfcl_args_i32(&a, o->b != 0.0f);
    return dfcl_launch_kernel(dev, f->source, "axpby", NULL, dfcl_ceil_div(o->n, f->values), 1, 1, &a, err);
}
static dfcl_status axpby_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return axpby_kernel(dev, params, &portable, err);
}
static dfcl_status axpby_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return axpby_kernel(dev, params, &cpu, err);
}

static uint64_t sumsq_scratch(const struct dfcl_device *dev, const void *params) {
    (void)dev;
    const struct dfcl_sumsq *o = params;
    return (uint64_t)DFCL_MAX(dfcl_ceil_div(o->n, SUMSQ_VALUES), 1) * 2 * sizeof(float);
}
static dfcl_status sumsq_kernel(struct dfcl_device *dev, const struct dfcl_sumsq *o, const struct family *f, dfcl_error *err) {
    dfcl_status s = count_check(o->n, err);
    if (s)
        return s;
    int64_t chunks = dfcl_ceil_div(o->n, SUMSQ_VALUES);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, o->x, 4);
    dfcl_args_i64(&a, o->n);
    dfcl_args_ref(&a, o->head.scratch, 4);
    s = dfcl_launch_kernel(dev, f->source, "sumsq_parts", NULL, chunks, 1, 1, &a, err);
    if (s)
        return s;
    struct dfcl_args t = {0};
    dfcl_args_ref(&t, o->head.scratch, 4);
    dfcl_args_i64(&t, chunks);
    dfcl_args_ref(&t, o->out, 4);
    return dfcl_launch_kernel(dev, f->source, "sumsq_total", NULL, 1, 1, 1, &t, err);
}
static dfcl_status sumsq_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return sumsq_kernel(dev, params, &portable, err);
}
static dfcl_status sumsq_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return sumsq_kernel(dev, params, &cpu, err);
}

/* ---- cases ---- */

static const int64_t sizes[] = {1, 7, 4095, 4097, 70001, 33554432};
enum { CHECKS = (int)DFCL_COUNT(sizes) - 1 };

static void adamw_case(struct dfcl_case *c, int index) {
    struct dfcl_adamw *o = (void *)c->params;
    static const int steps[] = {1, 2, 5, 1000, 100000, 10};
    static const double decays[] = {0.9, 0.9999, 0.0, 1.0, 0.18, 0.9999};
    o->n = sizes[index];
    o->lr = index & 1 ? 1e-3 : 1e-4;
    o->beta1 = 0.9;
    o->beta2 = 0.999;
    o->eps = 1e-8;
    o->wd = index & 1 ? 0.05 : 0.0;
    o->grad_scale = index == 2 ? 0x1p-10f : 1.0f;
    o->c1 = 1.0 - pow(0.9, steps[index]);
    o->c2 = 1.0 - pow(0.999, steps[index]);
    o->ema_decay = decays[index];
    bool average = index != 1; /* without one, in turn */
    snprintf(c->label, sizeof c->label, "n=%lld step=%d wd=%g%s", (long long)o->n, steps[index], o->wd, average ? " ema" : "");
    uint64_t n = (uint64_t)o->n;
    dfcl_case_add(c, "g", &o->g, DFCL_F32, n, DFCL_IN)->b = 1e-3 / (double)o->grad_scale;
    dfcl_case_add(c, "p", &o->p, DFCL_F32, n, DFCL_INOUT)->tol = 2e-7;
    struct dfcl_case_tensor *m = dfcl_case_add(c, "m", &o->m, DFCL_F32, n, DFCL_INOUT);
    m->b = 1e-3;
    m->tol = 1e-6;
    struct dfcl_case_tensor *v = dfcl_case_add(c, "v", &o->v, DFCL_F32, n, DFCL_INOUT);
    v->fill = DFCL_FILL_UNIFORM;
    v->a = index ? 0 : 1e-8; /* the reference divides by sqrt(v): 0 must work too */
    v->b = 1e-6;
    v->tol = 1e-6;
    if (average)
        dfcl_case_add(c, "ema", &o->ema, DFCL_F32, n, DFCL_INOUT)->tol = 2e-7;
}

static void axpby_case(struct dfcl_case *c, int index) {
    struct dfcl_axpby *o = (void *)c->params;
    static const float b[] = {1.0f, 0.0f, -0.5f, 0.0f, 3.25f, 1.0f};
    o->n = sizes[index];
    o->a = index == 1 ? 0.0f : 1.75f;
    o->b = b[index];
    snprintf(c->label, sizeof c->label, "n=%lld a=%g b=%g", (long long)o->n, (double)o->a, (double)o->b);
    dfcl_case_add(c, "x", &o->x, DFCL_F32, (uint64_t)o->n, DFCL_IN);
    /* b = 0: y starts as NaN and must not be read */
    dfcl_case_add(c, "y", &o->y, DFCL_F32, (uint64_t)o->n, o->b == 0.0f ? DFCL_OUT : DFCL_INOUT)->tol = 3e-7;
}

static void sumsq_case(struct dfcl_case *c, int index) {
    struct dfcl_sumsq *o = (void *)c->params;
    o->n = sizes[index];
    snprintf(c->label, sizeof c->label, "n=%lld%s", (long long)o->n, index == 2 || index == 4 ? " non-finite" : "");
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &o->x, DFCL_F32, (uint64_t)o->n, DFCL_IN);
    if (index == 2 || index == 4) {
        float *data = dfcl_case_data(c, (size_t)o->n * sizeof *data);
        if (!data)
            return;
        for (int64_t i = 0; i < o->n; i++)
            data[i] = (float)(i % 17 - 8) * 0.25f;
        data[0] = NAN;
        data[o->n / 3] = INFINITY;
        data[o->n / 2] = -INFINITY;
        data[o->n - 1] = -NAN;
        x->fill = DFCL_FILL_DATA;
        x->data = data;
    }
    dfcl_case_add(c, "out", &o->out, DFCL_F32, 2, DFCL_OUT)->tol = 1e-6;
}

/* ---- rows ---- */

static double adamw_flops(const void *params) {
    const struct dfcl_adamw *o = params;
    return (o->ema.mem ? 19.0 : 16.0) * (double)o->n;
}
static double adamw_bytes(const void *params) {
    const struct dfcl_adamw *o = params;
    return (o->ema.mem ? 36.0 : 28.0) * (double)o->n;
}
static double axpby_flops(const void *params) {
    return 3.0 * (double)((const struct dfcl_axpby *)params)->n;
}
static double axpby_bytes(const void *params) {
    return 12.0 * (double)((const struct dfcl_axpby *)params)->n;
}
static double sumsq_flops(const void *params) {
    return 2.0 * (double)((const struct dfcl_sumsq *)params)->n;
}
static double sumsq_bytes(const void *params) {
    return 4.0 * (double)((const struct dfcl_sumsq *)params)->n;
}

static const struct dfcl_variant adamw_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = adamw_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = adamw_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = adamw_host},
};
const struct dfcl_op dfcl_op_adamw = {
    .name = "adamw",
    .params_size = sizeof(struct dfcl_adamw),
    .variants = adamw_variants,
    .variant_count = DFCL_COUNT(adamw_variants),
    .check_cases = CHECKS,
    .bench_cases = 1,
    .make_case = adamw_case,
    .flops = adamw_flops,
    .bytes = adamw_bytes,
};

static const struct dfcl_variant axpby_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = axpby_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = axpby_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = axpby_host},
};
const struct dfcl_op dfcl_op_axpby = {
    .name = "axpby",
    .params_size = sizeof(struct dfcl_axpby),
    .variants = axpby_variants,
    .variant_count = DFCL_COUNT(axpby_variants),
    .check_cases = CHECKS,
    .bench_cases = 1,
    .make_case = axpby_case,
    .flops = axpby_flops,
    .bytes = axpby_bytes,
};

static const struct dfcl_variant sumsq_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = sumsq_scratch, .launch = sumsq_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = sumsq_scratch, .launch = sumsq_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = sumsq_host},
};
const struct dfcl_op dfcl_op_sumsq = {
    .name = "sumsq",
    .params_size = sizeof(struct dfcl_sumsq),
    .variants = sumsq_variants,
    .variant_count = DFCL_COUNT(sumsq_variants),
    .check_cases = CHECKS,
    .bench_cases = 1,
    .make_case = sumsq_case,
    .flops = sumsq_flops,
    .bytes = sumsq_bytes,
};
