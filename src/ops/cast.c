/* Activations that backward keeps, stored as bf16: rounding to nearest even, and the way back, exact. */
#include <stdio.h>

#include "base/half.h"
#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status store_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_cast *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    uint16_t *h = dfcl_host_ptr(dev, p->h);
    for (int64_t i = 0; i < p->n; i++)
        h[i] = dfcl_f32_to_bf16(x[i]);
    return DFCL_OK;
}
static dfcl_status load_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_cast *p = params;
    float *x = dfcl_host_ptr(dev, p->x);
    const uint16_t *h = dfcl_host_ptr(dev, p->h);
    for (int64_t i = 0; i < p->n; i++)
        x[i] = dfcl_bf16_to_f32(h[i]);
    return DFCL_OK;
}

/* ---- kernels ---- */

#define SPAN 8192 /* elements of one work-item of the CPU variant */

static dfcl_status launch(struct dfcl_device *dev, const struct dfcl_cast *p, const char *name, bool cpu, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->h, 2);
    dfcl_args_i64(&a, p->n);
    if (!cpu)
        return dfcl_launch_kernel(dev, "cast", name, NULL, dfcl_ceil_div(p->n, 1024), 1, 1, &a, err);
    dfcl_args_i32(&a, SPAN);
    return dfcl_launch_kernel(dev, "cast_cpu", name, dfcl_cpu_options(dev), dfcl_ceil_div(p->n, SPAN), 1, 1, &a, err);
}
static dfcl_status store_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, "bf16_store", false, err);
}
static dfcl_status load_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, "bf16_load", false, err);
}
static dfcl_status store_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, "bf16_store_cpu", true, err);
}
static dfcl_status load_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, "bf16_load_cpu", true, err);
}

/* ---- cases ---- */

/* Bit-exact. sd 1e38 overflows to infinity when rounded; the benchmark is what a block of DiT-XL/2 keeps of fc1 at M = 256. */
static const struct {
    int64_t n;
    double sd;
} cases[] = {{1, 1}, {7, 1e-30}, {1153, 1}, {8193, 1e38}, {30011, 1e3}, /* benchmark: */ {256 * 4608, 1}};
enum { BENCHES = 1, CHECKS = DFCL_COUNT(cases) - BENCHES };

static void make_case(struct dfcl_case *c, int i, bool load) {
    struct dfcl_cast *p = (struct dfcl_cast *)c->params;
    snprintf(c->label, sizeof c->label, "n=%lld sd=%g", (long long)cases[i].n, cases[i].sd);
    p->n = cases[i].n;
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->n, load ? DFCL_OUT : DFCL_IN);
    struct dfcl_case_tensor *h = dfcl_case_add(c, "h", &p->h, DFCL_BF16, (uint64_t)p->n, load ? DFCL_IN : DFCL_OUT);
    h->align = 2;
    x->b = h->b = cases[i].sd;
    x->tol = h->tol = 0;
}
static void store_case(struct dfcl_case *c, int i) {
    make_case(c, i, false);
}
static void load_case(struct dfcl_case *c, int i) {
    make_case(c, i, true);
}

/* ---- rows ---- */

static double flops(const void *params) {
    return (double)((const struct dfcl_cast *)params)->n;
}
static double bytes(const void *params) {
    return 6.0 * (double)((const struct dfcl_cast *)params)->n;
}

static const struct dfcl_variant store_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = store_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = store_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = store_host},
};
static const struct dfcl_variant load_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = load_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = load_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = load_host},
};

const struct dfcl_op dfcl_op_bf16_store = {
    .name = "bf16_store",
    .params_size = sizeof(struct dfcl_cast),
    .variants = store_variants,
    .variant_count = DFCL_COUNT(store_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = store_case,
    .flops = flops,
    .bytes = bytes,
};
const struct dfcl_op dfcl_op_bf16_load = {
    .name = "bf16_load",
    .params_size = sizeof(struct dfcl_cast),
    .variants = load_variants,
    .variant_count = DFCL_COUNT(load_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = load_case,
    .flops = flops,
    .bytes = bytes,
};
