/* softmax: rows of scores, for attention that goes through blocks of rows. */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_softmax *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *y = dfcl_host_ptr(dev, p->y);
    (void)err;
    for (int64_t m = 0; m < p->M; m++, x += p->N, y += p->N) {
        double top = -INFINITY, sum = 0;
        for (int n = 0; n < p->N; n++)
            top = fmax(top, (double)x[n] * (double)p->scale);
        for (int n = 0; n < p->N; n++)
            sum += exp((double)x[n] * (double)p->scale - top);
        for (int n = 0; n < p->N; n++)
            y[n] = (float)(exp((double)x[n] * (double)p->scale - top) / sum);
    }
    return DFCL_OK;
}

static dfcl_status launch(struct dfcl_device *dev, const struct dfcl_softmax *p, bool cpu, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->y, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_f32(&a, p->scale);
    return dfcl_launch_kernel(dev, cpu ? "softmax_cpu" : "softmax", cpu ? "softmax_cpu" : "softmax", cpu ? dfcl_cpu_options(dev) : NULL, p->M, 1,
                              1, &a, err);
}
static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, false, err);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return launch(dev, params, true, err);
}

/* Benchmarks: a block of the autoencoder's attention at 512 pixels. Scores of a standard deviation of 60 are past what exp can take. */
static const struct {
    int M, N;
    double sd;
    bool in_place;
} cases[] = {{1, 1, 1, false},  {3, 5, 1, true},       {7, 64, 60, false},     {2, 240, 1, false},
             {5, 1033, 3, true}, {33, 16, 60, true}, {4, 4096, 2, false}, /* benchmark: */ {512, 4096, 1, true}};
enum { BENCHES = 1, CHECKS = DFCL_COUNT(cases) - BENCHES };

/* Scores in f32 are off by |s| 2^-24, which is the relative error of their exponentials. */
static void make_case(struct dfcl_case *c, int i) {
    struct dfcl_softmax *p = (struct dfcl_softmax *)c->params;
    p->M = cases[i].M;
    p->N = cases[i].N;
    p->scale = 0.7f;
    snprintf(c->label, sizeof c->label, "M=%d N=%d sd=%g%s", p->M, p->N, cases[i].sd, cases[i].in_place ? " in place" : "");
    const uint64_t n = (uint64_t)p->M * (uint64_t)p->N;
    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, n, cases[i].in_place ? DFCL_INOUT : DFCL_IN);
    double tol = cases[i].sd > 10 ? 1e-5 : 1e-6;
    x->b = cases[i].sd;
    x->tol = cases[i].in_place ? tol / (4 * cases[i].sd) : tol; /* what was there counts towards the size that errors are measured by */
    if (cases[i].in_place)
        dfcl_case_also(c, x, &p->y);
    else
        dfcl_case_add(c, "y", &p->y, DFCL_F32, n, DFCL_OUT)->tol = tol;
}

static double flops(const void *params) {
    const struct dfcl_softmax *p = params;
    return 8.0 * p->M * p->N;
}
static double bytes(const void *params) {
    const struct dfcl_softmax *p = params;
    return 8.0 * p->M * p->N;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_softmax = {
    .name = "softmax",
    .params_size = sizeof(struct dfcl_softmax),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
