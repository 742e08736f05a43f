/* Sum over rows: the gradient of a bias. */
#include <stdio.h>

#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_colsum *p = params;
    if (p->M < 1 || p->N < 1)
        return dfcl_fail(err, DFCL_ERROR, "colsum: M=%d N=%d, expected positive sizes", p->M, p->N);
    if (!p->x.mem || !p->out.mem)
        return dfcl_fail(err, DFCL_ERROR, "colsum: x and out must be present");
    return DFCL_OK;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_colsum_host(dev, params, err);
}

static int64_t column_blocks(const struct dfcl_device *dev, int N) {
    return dfcl_ceil_div(N, dfcl_on_cpu(dev) ? 4 * dfcl_cpu_lanes(dev) : 64);
}
static uint64_t scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_colsum *p = params;
    int slices = dfcl_slices(dev, column_blocks(dev, p->N), p->M, 64);
    return slices == 1 ? 0 : (uint64_t)slices * (uint64_t)p->N * 4;
}
static dfcl_status colsum_launch(struct dfcl_device *dev, const struct dfcl_colsum *p, bool cpu, dfcl_error *err) {
    dfcl_status s = check(p, err);
    if (s)
        return s;
    int64_t blocks = column_blocks(dev, p->N);
    int slices = dfcl_slices(dev, blocks, p->M, 64);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->out, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, (int)dfcl_ceil_div(p->M, slices));
    dfcl_args_i32(&a, slices);
    if (cpu)
        s = dfcl_launch_kernel(dev, "colsum_cpu", "colsum_cpu", dfcl_cpu_options(dev), blocks, slices, 1, &a, err);
    else
        s = dfcl_launch_kernel(dev, "colsum", "colsum", NULL, dfcl_ceil_div(p->N, 64) * slices, 1, 1, &a, err);
    return s || slices == 1 ? s : dfcl_slice_sum(dev, p->head.scratch, p->out, p->N, slices, err);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return colsum_launch(dev, params, true, err);
}
static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    return colsum_launch(dev, params, false, err);
}

dfcl_status dfcl_slice_sum(struct dfcl_device *dev, struct dfcl_ref part, struct dfcl_ref out, int64_t count,
                           int slices, dfcl_error *err) {
    enum { SPAN = 4096 };
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, part, 4);
    dfcl_args_ref(&a, out, 4);
    dfcl_args_i64(&a, count);
    dfcl_args_i32(&a, slices);
    if (!dfcl_on_cpu(dev))
        return dfcl_launch_kernel(dev, "colsum", "slice_sum", NULL, dfcl_ceil_div(count, 64), 1, 1, &a, err);
    dfcl_args_i32(&a, SPAN);
    return dfcl_launch_kernel(dev, "colsum_cpu", "slice_sum_cpu", dfcl_cpu_options(dev), dfcl_ceil_div(count, SPAN), 1,
                              1, &a, err);
}

static const struct {
    int M, N;
    double scale;
} cases[] = {
    {1, 1, 1},
    {1, 130, 1},
    {7, 1, 1},
    {33, 65, 1},
    {64, 64, 1},
    {260, 49, 1},
    {1000, 17, 3e4},
    {4111, 3, 1},
    {513, 300, 1},
    /* benchmarks: */ {256, 3456, 1},
    {1024, 1152, 1},
    {8192, 512, 1},
};
enum { BENCHES = 3 };

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_colsum *p = (struct dfcl_colsum *)c->params;
    p->M = cases[index].M;
    p->N = cases[index].N;
    snprintf(c->label, sizeof c->label, "M=%d N=%d", p->M, p->N);
    dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->M * (uint64_t)p->N, DFCL_IN)->b = cases[index].scale;
    dfcl_case_add(c, "out", &p->out, DFCL_F32, (uint64_t)p->N, DFCL_INOUT);
}

static double flops(const void *params) {
    const struct dfcl_colsum *p = params;
    return (double)p->M * p->N;
}
static double bytes(const void *params) {
    const struct dfcl_colsum *p = params;
    return 4.0 * (double)p->M * p->N + 8.0 * p->N;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = scratch, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = scratch, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_colsum = {
    .name = "colsum",
    .params_size = sizeof(struct dfcl_colsum),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(cases) - BENCHES,
    .bench_cases = BENCHES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
