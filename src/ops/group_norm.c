/* column_stats and norm_act: GroupNorm of an image in NHWC, with an activation. The host combines the parts' statistics (models/vae_run.c). */
#include <math.h>
#include <stdio.h>

#include "ops/linear_common.h"

/* ---- references ---- */

static dfcl_status stats_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_column_stats *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *stats = dfcl_host_ptr(dev, p->stats);
    (void)err;
    for (int m0 = 0; m0 < p->M; m0 += p->rows, stats += 2 * (int64_t)p->N) {
        int rows = DFCL_MIN(p->M - m0, p->rows);
        for (int n = 0; n < p->N; n++) {
            double mean = 0, square = 0;
            for (int64_t m = m0; m < m0 + rows; m++)
                mean += x[m * p->N + n];
            mean /= rows;
            for (int64_t m = m0; m < m0 + rows; m++)
                square += (x[m * p->N + n] - mean) * (x[m * p->N + n] - mean);
            stats[n] = (float)mean;
            stats[p->N + n] = (float)square;
        }
    }
    return DFCL_OK;
}

static dfcl_status act_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_norm_act *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *mean = dfcl_host_ptr(dev, p->coef), *mul = mean + p->N, *add = mul + p->N;
    float *y = dfcl_host_ptr(dev, p->y);
    (void)err;
    for (int64_t m = 0; m < p->M; m++)
        for (int n = 0; n < p->N; n++) {
            int64_t at = m * p->N + n;
            y[at] = (float)dfcl_act_ref(p->act, ((double)x[at] - mean[n]) * mul[n] + add[n]);
        }
    return DFCL_OK;
}

/* ---- kernels ---- */

static dfcl_status stats_launch(struct dfcl_device *dev, const struct dfcl_column_stats *p, bool cpu, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->stats, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->rows);
    int64_t parts = dfcl_ceil_div(p->M, p->rows);
    return cpu ? dfcl_launch_kernel(dev, "group_norm_cpu", "column_stats_cpu", dfcl_cpu_options(dev), parts, 1, 1, &a, err)
               : dfcl_launch_kernel(dev, "group_norm", "column_stats", NULL, parts * dfcl_ceil_div(p->N, 64), 1, 1, &a, err);
}
static dfcl_status stats_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return stats_launch(dev, params, false, err);
}
static dfcl_status stats_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return stats_launch(dev, params, true, err);
}

static dfcl_status act_launch(struct dfcl_device *dev, const struct dfcl_norm_act *p, bool cpu, dfcl_error *err) {
    int rows = cpu ? DFCL_MAX(1, 16384 / p->N) : 16;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->coef, 4);
    dfcl_args_ref(&a, p->y, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, rows);
    dfcl_args_i32(&a, (int)p->act);
    int64_t parts = dfcl_ceil_div(p->M, rows);
    return cpu ? dfcl_launch_kernel(dev, "group_norm_cpu", "norm_act_cpu", dfcl_cpu_options(dev), parts, 1, 1, &a, err)
               : dfcl_launch_kernel(dev, "group_norm", "norm_act", NULL, parts * dfcl_ceil_div(p->N, 64), 1, 1, &a, err);
}
static dfcl_status act_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return act_launch(dev, params, false, err);
}
static dfcl_status act_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return act_launch(dev, params, true, err);
}

/* ---- cases ---- */

/* FAR: columns with a mean a hundred times their deviation. Benchmarks: Stable Diffusion's autoencoder at 512 pixels. */
static const struct {
    int M, N, rows;
    bool far;
} stats_cases[] = {{1, 1, 1, false},     {5, 3, 8, false},     {64, 32, 64, false}, {100, 70, 33, true},
                   {1000, 16, 64, true}, {333, 131, 50, false}, {20, 128, 7, false}, /* benchmarks: */ {262144, 128, 1024, false},
                   {4096, 512, 64, false}};
static const struct {
    int M, N;
    enum dfcl_act act;
    bool in_place;
} act_cases[] = {{1, 1, DFCL_ACT_SILU, false},    {5, 3, DFCL_ACT_NONE, true},     {64, 32, DFCL_ACT_SILU, true},
                 {100, 70, DFCL_ACT_SILU, false}, {77, 129, DFCL_ACT_NONE, false}, {33, 16, DFCL_ACT_GELU_TANH, false},
                 /* benchmarks: */ {262144, 128, DFCL_ACT_SILU, false}, {262144, 256, DFCL_ACT_SILU, true}};
enum {
    STATS_BENCHES = 2,
    STATS_CHECKS = DFCL_COUNT(stats_cases) - STATS_BENCHES,
    ACT_BENCHES = 2,
    ACT_CHECKS = DFCL_COUNT(act_cases) - ACT_BENCHES
};

/* Means and sums of squares to 2e-6 of their size: sums of up to 64 values in f32. */
static void stats_case(struct dfcl_case *c, int i) {
    struct dfcl_column_stats *p = (struct dfcl_column_stats *)c->params;
    p->M = stats_cases[i].M;
    p->N = stats_cases[i].N;
    p->rows = stats_cases[i].rows;
    snprintf(c->label, sizeof c->label, "M=%d N=%d rows=%d%s", p->M, p->N, p->rows, stats_cases[i].far ? " far" : "");
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->M * (uint64_t)p->N, DFCL_IN);
    x->a = stats_cases[i].far ? 100 : 0.3;
    dfcl_case_add(c, "stats", &p->stats, DFCL_F32, 2 * (uint64_t)p->N * (uint64_t)dfcl_ceil_div(p->M, p->rows), DFCL_OUT)->tol = 2e-6;
}
/* As act_fwd: a few units in the last place. */
static void act_case(struct dfcl_case *c, int i) {
    struct dfcl_norm_act *p = (struct dfcl_norm_act *)c->params;
    p->M = act_cases[i].M;
    p->N = act_cases[i].N;
    p->act = act_cases[i].act;
    snprintf(c->label, sizeof c->label, "M=%d N=%d act=%d%s", p->M, p->N, (int)p->act, act_cases[i].in_place ? " in place" : "");
    const uint64_t n = (uint64_t)p->M * (uint64_t)p->N;
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, n, act_cases[i].in_place ? DFCL_INOUT : DFCL_IN);
    x->tol = 2e-6;
    dfcl_case_add(c, "coef", &p->coef, DFCL_F32, 3 * (uint64_t)p->N, DFCL_IN);
    if (act_cases[i].in_place)
        dfcl_case_also(c, x, &p->y);
    else
        dfcl_case_add(c, "y", &p->y, DFCL_F32, n, DFCL_OUT)->tol = 2e-6;
}

static double stats_flops(const void *params) {
    const struct dfcl_column_stats *p = params;
    return 5.0 * p->M * p->N;
}
static double stats_bytes(const void *params) {
    const struct dfcl_column_stats *p = params;
    return 4.0 * p->M * p->N;
}
static double act_flops(const void *params) {
    const struct dfcl_norm_act *p = params;
    return (p->act ? 15.0 : 3.0) * p->M * p->N;
}
static double act_bytes(const void *params) {
    const struct dfcl_norm_act *p = params;
    return 8.0 * p->M * p->N;
}

static const struct dfcl_variant stats_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = stats_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = stats_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = stats_host},
};
static const struct dfcl_variant act_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = act_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = act_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = act_host},
};

const struct dfcl_op dfcl_op_column_stats = {
    .name = "column_stats",
    .params_size = sizeof(struct dfcl_column_stats),
    .variants = stats_variants,
    .variant_count = DFCL_COUNT(stats_variants),
    .check_cases = STATS_CHECKS,
    .bench_cases = STATS_BENCHES,
    .make_case = stats_case,
    .flops = stats_flops,
    .bytes = stats_bytes,
};
const struct dfcl_op dfcl_op_norm_act = {
    .name = "norm_act",
    .params_size = sizeof(struct dfcl_norm_act),
    .variants = act_variants,
    .variant_count = DFCL_COUNT(act_variants),
    .check_cases = ACT_CHECKS,
    .bench_cases = ACT_BENCHES,
    .make_case = act_case,
    .flops = act_flops,
    .bytes = act_bytes,
};
