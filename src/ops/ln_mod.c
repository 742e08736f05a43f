/* LayerNorm without affine part, followed by adaLN's modulation per sample, and its backward. */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

/* ---- reference ---- */

static dfcl_status ln_mod_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *shift = dfcl_host_ptr(dev, p->shift), *scale = dfcl_host_ptr(dev, p->scale);
    float *y = dfcl_host_ptr(dev, p->y), *stats = dfcl_host_ptr(dev, p->stats);
    for (int m = 0; m < p->M; m++) {
        const float *xr = x + (int64_t)m * p->N;
        int64_t mod = m / p->T * p->mod_stride;
        double mean = 0, var = 0;
        for (int n = 0; n < p->N; n++)
            mean += xr[n];
        mean /= p->N;
        for (int n = 0; n < p->N; n++)
            var += (xr[n] - mean) * (xr[n] - mean);
        double rstd = 1.0 / sqrt(var / p->N + (double)p->eps);
        for (int n = 0; n < p->N; n++) {
            double h = (xr[n] - mean) * rstd;
            y[(int64_t)m * p->N + n] = (float)(h * (1.0 + (scale ? (double)scale[mod + n] : 0.0)) + (shift ? (double)shift[mod + n] : 0.0));
        }
        if (stats) {
            stats[2 * (int64_t)m] = (float)mean;
            stats[2 * (int64_t)m + 1] = (float)rstd;
        }
    }
    return DFCL_OK;
}

static void bwd_columns_host(const struct dfcl_ln_mod_bwd *p, const float *x, const float *stats, const float *dy, float *dshift,
                             float *dscale) {
    for (int s = 0; s < p->M / p->T; s++)
        for (int n = 0; n < p->N; n++) {
            double sum = 0, sum_h = 0;
            for (int64_t m = (int64_t)s * p->T; m < (int64_t)(s + 1) * p->T; m++) {
                double d = dy[m * p->N + n];
                sum += d;
                sum_h += d * ((double)x[m * p->N + n] - stats[2 * m]) * stats[2 * m + 1];
            }
            if (dshift)
                dshift[s * p->dmod_stride + n] = (float)sum;
            if (dscale)
                dscale[s * p->dmod_stride + n] = (float)sum_h;
        }
}

static dfcl_status ln_mod_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod_bwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *stats = dfcl_host_ptr(dev, p->stats), *scale = dfcl_host_ptr(dev, p->scale);
    const float *dy = dfcl_host_ptr(dev, p->dy);
    float *dx = dfcl_host_ptr(dev, p->dx), *dshift = dfcl_host_ptr(dev, p->dshift), *dscale = dfcl_host_ptr(dev, p->dscale);
    if (dshift || dscale)
        bwd_columns_host(p, x, stats, dy, dshift, dscale);
    if (!dx)
        return DFCL_OK;
    for (int64_t m = 0; m < p->M; m++) {
        const float *xr = x + m * p->N, *dr = dy + m * p->N;
        const float *sc = scale ? scale + m / p->T * p->mod_stride : NULL;
        double mean = stats[2 * m], rstd = stats[2 * m + 1], a = 0, b = 0;
        for (int n = 0; n < p->N; n++) {
            double d = dr[n] * (1.0 + (sc ? (double)sc[n] : 0.0));
            a += d;
            b += d * (xr[n] - mean) * rstd;
        }
        a /= p->N;
        b /= p->N;
        for (int n = 0; n < p->N; n++) {
            double d = dr[n] * (1.0 + (sc ? (double)sc[n] : 0.0));
            double g = rstd * (d - a - (xr[n] - mean) * rstd * b);
            float *out = &dx[m * p->N + n];
            *out = (float)(p->accumulate ? *out + g : g);
        }
    }
    return DFCL_OK;
}

/* ---- kernels ---- */

/* Rows of one work-item of the CPU variant: about 32 KiB of x. */
static int rows_per_item(int N) {
    return DFCL_MAX(1, 8192 / N);
}

static void fwd_args(const struct dfcl_ln_mod *p, struct dfcl_args *a, bool cpu) {
    dfcl_args_ref(a, p->x, 4);
    dfcl_args_ref(a, p->shift, 4);
    dfcl_args_ref(a, p->scale, 4);
    dfcl_args_ref(a, p->y, 4);
    dfcl_args_ref(a, p->stats, 4);
    if (cpu)
        dfcl_args_i32(a, p->M);
    dfcl_args_i32(a, p->N);
    dfcl_args_i32(a, p->T);
    dfcl_args_f32(a, p->eps);
    dfcl_args_i64(a, p->mod_stride);
    if (cpu)
        dfcl_args_i32(a, rows_per_item(p->N));
}
static dfcl_status ln_mod_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod *p = params;
    struct dfcl_args a = {0};
    fwd_args(p, &a, false);
    return dfcl_launch_kernel(dev, "ln_mod", "ln_mod", NULL, p->M, 1, 1, &a, err);
}
static dfcl_status ln_mod_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod *p = params;
    struct dfcl_args a = {0};
    fwd_args(p, &a, true);
    return dfcl_launch_kernel(dev, "ln_mod_cpu", "ln_mod_cpu", dfcl_cpu_options(dev), dfcl_ceil_div(p->M, rows_per_item(p->N)), 1, 1, &a,
                              err);
}

static bool wants_sums(const struct dfcl_ln_mod_bwd *p) {
    return p->dshift.mem || p->dscale.mem;
}
static uint64_t bwd_scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_ln_mod_bwd *p = params;
    return wants_sums(p) ? dfcl_part_scratch(p->M, p->T, p->N, 2) : 0;
}
static dfcl_status add_parts(struct dfcl_device *dev, const struct dfcl_ln_mod_bwd *p, int parts, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_ref(&a, p->dshift, 4);
    dfcl_args_ref(&a, p->dscale, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, parts);
    dfcl_args_i64(&a, p->dmod_stride);
    return dfcl_launch_kernel(dev, "ln_mod", "ln_mod_mod_sums", NULL, p->M / p->T, dfcl_ceil_div(p->N, 64), 1, &a, err);
}
static dfcl_status ln_mod_bwd_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod_bwd *p = params;
    int rows = dfcl_part_rows(dev, p->M, p->T), parts = (int)dfcl_ceil_div(p->T, rows);
    dfcl_status s = DFCL_OK;
    if (wants_sums(p)) {
        struct dfcl_args a = {0};
        dfcl_args_ref(&a, p->x, 4);
        dfcl_args_ref(&a, p->stats, 4);
        dfcl_args_ref(&a, p->dy, 4);
        dfcl_args_ref(&a, p->head.scratch, 4);
        dfcl_args_i32(&a, p->N);
        dfcl_args_i32(&a, p->T);
        dfcl_args_i32(&a, rows);
        dfcl_args_i32(&a, parts);
        s = dfcl_launch_kernel(dev, "ln_mod", "ln_mod_part_sums", NULL, (int64_t)(p->M / p->T) * parts, dfcl_ceil_div(p->N, 64), 1, &a, err);
        if (!s)
            s = add_parts(dev, p, parts, err);
    }
    if (s || !p->dx.mem)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->stats, 4);
    dfcl_args_ref(&a, p->scale, 4);
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, p->dx, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i64(&a, p->mod_stride);
    dfcl_args_i32(&a, p->accumulate);
    return dfcl_launch_kernel(dev, "ln_mod", "ln_mod_bwd", NULL, p->M, 1, 1, &a, err);
}
static dfcl_status ln_mod_bwd_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod_bwd *p = params;
    int rows = dfcl_part_rows(dev, p->M, p->T), parts = (int)dfcl_ceil_div(p->T, rows);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->stats, 4);
    dfcl_args_ref(&a, p->scale, 4);
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, p->dx, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i64(&a, p->mod_stride);
    dfcl_args_i32(&a, p->accumulate);
    dfcl_args_i32(&a, rows);
    dfcl_args_i32(&a, parts);
    dfcl_status s = dfcl_launch_kernel(dev, "ln_mod_cpu", "ln_mod_bwd_cpu", dfcl_cpu_options(dev), (int64_t)(p->M / p->T) * parts, 1, 1, &a,
                                       err);
    return s || !wants_sums(p) ? s : add_parts(dev, p, parts, err);
}

/* ---- cases ---- */

enum { NO_SHIFT = 1, NO_SCALE = 2, NO_STATS = 4, NO_DX = 8, ACCUMULATE = 16, TIGHT = 32 /* stride N instead of 6 N + 1 */, FAR = 64 };

/* FAR: rows with a mean a hundred times their deviation. Benchmarks: DiT-XL/2 at 256 and 1024 rows, the demo's base. */
static const struct {
    int B, T, N;
    unsigned flags;
} cases[] = {
    {1, 1, 1, 0},         {3, 1, 7, 0},
    {5, 9, 32, NO_STATS}, {2, 16, 96, ACCUMULATE},
    {7, 3, 33, TIGHT},    {1, 260, 128, ACCUMULATE | FAR},
    {9, 64, 50, FAR},     {1, 256, 1152, 0},
    {2, 17, 384, NO_DX},  {2, 5, 131, NO_SHIFT},
    {2, 5, 131, NO_SCALE | ACCUMULATE}, {3, 4, 20, NO_SHIFT | NO_SCALE | TIGHT},
    {40, 20, 24, 0},      /* benchmarks: */ {1, 256, 1152, TIGHT},
    {4, 256, 1152, TIGHT}, {128, 64, 128, TIGHT},
};
enum { BENCHES = 3, CHECKS = DFCL_COUNT(cases) - BENCHES };

static void label(struct dfcl_case *c, int i) {
    snprintf(c->label, sizeof c->label, "B=%d T=%d N=%d flags=%x", cases[i].B, cases[i].T, cases[i].N, cases[i].flags);
}
static void add_x(struct dfcl_case *c, const void *ref, int i) {
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", ref, DFCL_F32, (uint64_t)(cases[i].B * cases[i].T) * (uint64_t)cases[i].N, DFCL_IN);
    x->a = cases[i].flags & FAR ? 100 : 0.3;
    x->b = cases[i].flags & FAR ? 1 : 2;
}
/* Samples are `stride` apart, the last one is N long: the chunks of adaLN's output. */
static struct dfcl_case_tensor *add_mod(struct dfcl_case *c, const char *name, const void *ref, int i, int64_t *stride, enum dfcl_case_use use) {
    *stride = cases[i].flags & TIGHT ? cases[i].N : 6 * cases[i].N + 1;
    return dfcl_case_add(c, name, ref, DFCL_F32, (uint64_t)((cases[i].B - 1) * *stride + cases[i].N), use);
}

/* y to 1e-6 of its size (FAR: 3e-5, since f32 holds x - mean to 1e-5 only), mean and rstd likewise. */
static void fwd_case(struct dfcl_case *c, int i) {
    struct dfcl_ln_mod *p = (struct dfcl_ln_mod *)c->params;
    uint64_t M = (uint64_t)(p->M = cases[i].B * cases[i].T), N = (uint64_t)(p->N = cases[i].N);
    unsigned f = cases[i].flags;
    double tol = f & FAR ? 3e-5 : 1e-6;
    label(c, i);
    p->T = cases[i].T;
    p->eps = 1e-6f;
    add_x(c, &p->x, i);
    if (!(f & NO_SHIFT))
        add_mod(c, "shift", &p->shift, i, &p->mod_stride, DFCL_IN);
    if (!(f & NO_SCALE))
        add_mod(c, "scale", &p->scale, i, &p->mod_stride, DFCL_IN)->b = 0.5;
    dfcl_case_add(c, "y", &p->y, DFCL_F32, M * N, DFCL_OUT)->tol = tol;
    if (!(f & NO_STATS))
        dfcl_case_add(c, "stats", &p->stats, DFCL_F32, 2 * M, DFCL_OUT)->tol = tol;
}

/* The statistics are the true ones of x, so that the cancellation in dx is the real one. */
static void add_stats(struct dfcl_case *c, struct dfcl_ln_mod_bwd *p) {
    float *stats = dfcl_case_data(c, 8 * (size_t)p->M), *x = dfcl_case_data(c, 4 * (size_t)p->M * (size_t)p->N);
    if (!stats || !x || dfcl_case_fill(NULL, &c->tensors[0], 0, c->seed, x, NULL)) {
        c->broken = true;
        return;
    }
    for (int64_t m = 0; m < p->M; m++) {
        double mean = 0, var = 0;
        for (int n = 0; n < p->N; n++)
            mean += x[m * p->N + n] / (double)p->N;
        for (int n = 0; n < p->N; n++)
            var += (x[m * p->N + n] - mean) * (x[m * p->N + n] - mean) / p->N;
        stats[2 * m] = (float)mean;
        stats[2 * m + 1] = (float)(1.0 / sqrt(var + 1e-6));
    }
    struct dfcl_case_tensor *t = dfcl_case_add(c, "stats", &p->stats, DFCL_F32, 2 * (uint64_t)p->M, DFCL_IN);
    t->fill = DFCL_FILL_DATA;
    t->data = stats;
}

/* dx and the column sums over up to 260 rows to 3e-6 of their size. */
static void bwd_case(struct dfcl_case *c, int i) {
    struct dfcl_ln_mod_bwd *p = (struct dfcl_ln_mod_bwd *)c->params;
    uint64_t M = (uint64_t)(p->M = cases[i].B * cases[i].T), N = (uint64_t)(p->N = cases[i].N);
    unsigned f = cases[i].flags;
    label(c, i);
    p->T = cases[i].T;
    p->accumulate = f & ACCUMULATE;
    add_x(c, &p->x, i);
    add_stats(c, p);
    if (!(f & NO_SCALE))
        add_mod(c, "scale", &p->scale, i, &p->mod_stride, DFCL_IN)->b = 0.5;
    dfcl_case_add(c, "dy", &p->dy, DFCL_F32, M * N, DFCL_IN);
    if (!(f & NO_DX))
        dfcl_case_add(c, "dx", &p->dx, DFCL_F32, M * N, p->accumulate ? DFCL_INOUT : DFCL_OUT)->tol = 3e-6;
    if (!(f & NO_SHIFT))
        add_mod(c, "dshift", &p->dshift, i, &p->dmod_stride, DFCL_OUT)->tol = 3e-6;
    if (!(f & NO_SCALE))
        add_mod(c, "dscale", &p->dscale, i, &p->dmod_stride, DFCL_OUT)->tol = 3e-6;
}

/* ---- rows ---- */

static double fwd_flops(const void *params) {
    const struct dfcl_ln_mod *p = params;
    return 8.0 * p->M * p->N;
}
static double fwd_bytes(const void *params) {
    const struct dfcl_ln_mod *p = params;
    return 4.0 * (2.0 * p->M * p->N + 2.0 * p->M / p->T * p->N + (p->stats.mem ? 2.0 * p->M : 0.0));
}
static double bwd_flops(const void *params) {
    const struct dfcl_ln_mod_bwd *p = params;
    return 16.0 * p->M * p->N;
}
static double bwd_bytes(const void *params) {
    const struct dfcl_ln_mod_bwd *p = params;
    return 4.0 * ((p->accumulate ? 4.0 : 3.0) * p->M * p->N + 3.0 * p->M / p->T * p->N + 2.0 * p->M);
}

static const struct dfcl_variant fwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = ln_mod_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = ln_mod_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = ln_mod_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = bwd_scratch, .launch = ln_mod_bwd_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = bwd_scratch, .launch = ln_mod_bwd_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = ln_mod_bwd_host},
};

const struct dfcl_op dfcl_op_ln_mod = {
    .name = "ln_mod",
    .params_size = sizeof(struct dfcl_ln_mod),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = fwd_case,
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_ln_mod_bwd = {
    .name = "ln_mod_bwd",
    .params_size = sizeof(struct dfcl_ln_mod_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = bwd_case,
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
