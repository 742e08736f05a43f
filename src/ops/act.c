/* Elementwise activations and their derivatives; formulas in cl/dialect.h. */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

/* ---- reference ---- */

static double act_value(enum dfcl_act act, double x) {
    if (act == DFCL_ACT_GELU_TANH)
        return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    if (act == DFCL_ACT_SILU)
        return x / (1.0 + exp(-x));
    return x;
}

static double act_slope(enum dfcl_act act, double x) {
    if (act == DFCL_ACT_GELU_TANH) {
        double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.79788456080286536 * (1.0 + 0.134145 * x * x);
    }
    if (act == DFCL_ACT_SILU) {
        double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 + x * (1.0 - s));
    }
    return 1.0;
}

static dfcl_status act_fwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_fwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *y = dfcl_host_ptr(dev, p->y);
    for (int64_t i = 0; i < p->n; i++)
        y[i] = (float)act_value(p->act, x[i]);
    return DFCL_OK;
}

static dfcl_status act_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_bwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *dy = dfcl_host_ptr(dev, p->dy);
    float *dx = dfcl_host_ptr(dev, p->dx);
    for (int64_t i = 0; i < p->n; i++)
        dx[i] = (float)((double)dy[i] * act_slope(p->act, x[i]));
    return DFCL_OK;
}

/* ---- kernels ---- */

#define SPAN 8192 /* elements of one work-item of the CPU variant: 32 KiB a stream, so that cores share even small tensors */

static void fwd_args(const struct dfcl_act_fwd *p, struct dfcl_args *a) {
    dfcl_args_ref(a, p->x, 4);
    dfcl_args_ref(a, p->y, 4);
    dfcl_args_i64(a, p->n);
    dfcl_args_i32(a, (int32_t)p->act);
}
static void bwd_args(const struct dfcl_act_bwd *p, struct dfcl_args *a) {
    dfcl_args_ref(a, p->x, 4);
    dfcl_args_ref(a, p->dy, 4);
    dfcl_args_ref(a, p->dx, 4);
    dfcl_args_i64(a, p->n);
    dfcl_args_i32(a, (int32_t)p->act);
}

static dfcl_status act_fwd_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_fwd *p = params;
    struct dfcl_args a = {0};
    fwd_args(p, &a);
    return dfcl_launch_kernel(dev, "act", "act_fwd", NULL, dfcl_ceil_div(p->n, 1024), 1, 1, &a, err);
}
static dfcl_status act_bwd_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_bwd *p = params;
    struct dfcl_args a = {0};
    bwd_args(p, &a);
    return dfcl_launch_kernel(dev, "act", "act_bwd", NULL, dfcl_ceil_div(p->n, 1024), 1, 1, &a, err);
}
static dfcl_status act_fwd_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_fwd *p = params;
    struct dfcl_args a = {0};
    fwd_args(p, &a);
    dfcl_args_i32(&a, SPAN);
    return dfcl_launch_kernel(dev, "act_cpu", "act_fwd_cpu", dfcl_cpu_options(dev), dfcl_ceil_div(p->n, SPAN), 1, 1, &a, err);
}
static dfcl_status act_bwd_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_bwd *p = params;
    struct dfcl_args a = {0};
    bwd_args(p, &a);
    dfcl_args_i32(&a, SPAN);
    return dfcl_launch_kernel(dev, "act_cpu", "act_bwd_cpu", dfcl_cpu_options(dev), dfcl_ceil_div(p->n, SPAN), 1, 1, &a, err);
}

/* ---- cases ---- */

/* sd 30 reaches both saturated ends of the exponential; benchmarks are the MLP of DiT-XL/2 at M = 256 and of the demo (M = 8192, N = 128). */
static const struct {
    int64_t n;
    enum dfcl_act act;
    double sd;
    bool in_place;
} cases[] = {
    {1, DFCL_ACT_GELU_TANH, 1, false},     {7, DFCL_ACT_SILU, 3, true},         {96, DFCL_ACT_NONE, 1, false},
    {1153, DFCL_ACT_GELU_TANH, 3, true},   {8191, DFCL_ACT_SILU, 3, false},     {30011, DFCL_ACT_GELU_TANH, 3, false},
    {20000, DFCL_ACT_SILU, 30, false},     {20000, DFCL_ACT_GELU_TANH, 30, false}, {999, DFCL_ACT_SILU, 1e4, false},
    {999, DFCL_ACT_GELU_TANH, 1e4, false}, /* benchmarks: */ {256 * 4608, DFCL_ACT_GELU_TANH, 1, false},
    {8192 * 512, DFCL_ACT_GELU_TANH, 1, false}, {32 * 1152, DFCL_ACT_SILU, 1, false},
};
enum { BENCHES = 3, CHECKS = DFCL_COUNT(cases) - BENCHES };

static void label(struct dfcl_case *c, int i) {
    snprintf(c->label, sizeof c->label, "n=%lld %s sd=%g%s", (long long)cases[i].n,
             cases[i].act == DFCL_ACT_GELU_TANH ? "gelu" : cases[i].act == DFCL_ACT_SILU ? "silu" : "none", cases[i].sd,
             cases[i].in_place ? " in place" : "");
}

/* Tolerance 1e-6 of |want| + max|want|: a few units in the last place of exp and the division. */
static void fwd_case(struct dfcl_case *c, int i) {
    struct dfcl_act_fwd *p = (struct dfcl_act_fwd *)c->params;
    label(c, i);
    p->n = cases[i].n;
    p->act = cases[i].act;
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->n, cases[i].in_place ? DFCL_INOUT : DFCL_IN);
    x->b = cases[i].sd;
    x->tol = 1e-6;
    if (cases[i].in_place)
        dfcl_case_also(c, x, &p->y);
    else
        dfcl_case_add(c, "y", &p->y, DFCL_F32, (uint64_t)p->n, DFCL_OUT)->tol = 1e-6;
}

static void bwd_case(struct dfcl_case *c, int i) {
    struct dfcl_act_bwd *p = (struct dfcl_act_bwd *)c->params;
    label(c, i);
    p->n = cases[i].n;
    p->act = cases[i].act;
    dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->n, DFCL_IN)->b = cases[i].sd;
    struct dfcl_case_tensor *dy = dfcl_case_add(c, "dy", &p->dy, DFCL_F32, (uint64_t)p->n, cases[i].in_place ? DFCL_INOUT : DFCL_IN);
    dy->tol = 1e-6;
    if (cases[i].in_place)
        dfcl_case_also(c, dy, &p->dx);
    else
        dfcl_case_add(c, "dx", &p->dx, DFCL_F32, (uint64_t)p->n, DFCL_OUT)->tol = 1e-6;
}

/* ---- rows ---- */

static double fwd_flops(const void *params) {
    return 12.0 * (double)((const struct dfcl_act_fwd *)params)->n;
}
static double fwd_bytes(const void *params) {
    return 8.0 * (double)((const struct dfcl_act_fwd *)params)->n;
}
static double bwd_flops(const void *params) {
    return 20.0 * (double)((const struct dfcl_act_bwd *)params)->n;
}
static double bwd_bytes(const void *params) {
    return 12.0 * (double)((const struct dfcl_act_bwd *)params)->n;
}

static const struct dfcl_variant fwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = act_fwd_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = act_fwd_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = act_fwd_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = act_bwd_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = act_bwd_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = act_bwd_host},
};

const struct dfcl_op dfcl_op_act_fwd = {
    .name = "act_fwd",
    .params_size = sizeof(struct dfcl_act_fwd),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = fwd_case,
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_act_bwd = {
    .name = "act_bwd",
    .params_size = sizeof(struct dfcl_act_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = bwd_case,
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
