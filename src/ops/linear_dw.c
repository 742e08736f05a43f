/* Gradient of a trained matrix: dw += dy^T x. */
#include <stdio.h>

#include "ops/linear_cpu.h"
#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_linear_dw *p = params;
    if (p->M < 1 || p->N < 1 || p->K < 1)
        return dfcl_fail(err, DFCL_ERROR, "linear_dw: M=%d N=%d K=%d, expected positive sizes", p->M, p->N, p->K);
    if (!p->dy.mem || !p->x.mem || !p->dw.mem)
        return dfcl_fail(err, DFCL_ERROR, "linear_dw: dy, x and dw must be present");
    return DFCL_OK;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_dw_host(dev, params, err);
}
static uint64_t cpu_scratch(const struct dfcl_device *dev, const void *params) {
    return dfcl_linear_dw_cpu_scratch(dev, params);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_dw_cpu(dev, params, err);
}

static int portable_slices(const struct dfcl_device *dev, const struct dfcl_linear_dw *p) {
    return dfcl_slices(dev, dfcl_ceil_div(p->N, 64) * dfcl_ceil_div(p->K, 64), p->M, 256);
}
static uint64_t portable_scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_linear_dw *p = params;
    int slices = portable_slices(dev, p);
    return slices == 1 ? 0 : (uint64_t)slices * (uint64_t)p->N * (uint64_t)p->K * 4;
}
static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_dw *p = params;
    dfcl_status s = check(params, err);
    if (s)
        return s;
    int slices = portable_slices(dev, p);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->dw, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->K);
    dfcl_args_i32(&a, (int)dfcl_ceil_div(p->M, slices));
    dfcl_args_i32(&a, slices);
    s = dfcl_launch_kernel(dev, "linear", "linear_dw", "-DKIND=2",
                           dfcl_ceil_div(p->N, 64) * dfcl_ceil_div(p->K, 64) * slices, 1, 1, &a, err);
    return s || slices == 1 ? s : dfcl_slice_sum(dev, p->head.scratch, p->dw, (int64_t)p->N * p->K, slices, err);
}

static const struct {
    int M, N, K;
    double scale;
} checks[] = {
    {1, 1, 1, 1},     {1, 70, 37, 1},    {33, 7, 50, 1},     {260, 48, 96, 1},   {64, 9, 48, 1},    {131, 17, 49, 1},
    {700, 33, 20, 1}, {2500, 16, 48, 1}, {1300, 130, 65, 1}, {90, 96, 144, 3e4}, {17, 300, 200, 1}, {4100, 5, 3, 1},
};
static const struct {
    const char *name;
    int M, N, K;
} benches[] = {
    {"demo qkv", 8192, 384, 128}, {"demo proj", 8192, 128, 128}, {"demo fc1", 8192, 512, 128},
    {"demo fc2", 8192, 128, 512}, {"qkv", 256, 3456, 1152},      {"fc2", 256, 1152, 4608},
    {"qkv", 1024, 3456, 1152},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_linear_dw *p = (struct dfcl_linear_dw *)c->params;
    bool bench = index >= (int)DFCL_COUNT(checks);
    int i = bench ? index - (int)DFCL_COUNT(checks) : index;
    uint64_t M = (uint64_t)(p->M = bench ? benches[i].M : checks[i].M),
             N = (uint64_t)(p->N = bench ? benches[i].N : checks[i].N);
    uint64_t K = (uint64_t)(p->K = bench ? benches[i].K : checks[i].K);
    snprintf(c->label, sizeof c->label, "%s%sM=%d N=%d K=%d", bench ? benches[i].name : "", bench ? " " : "", p->M,
             p->N, p->K);
    dfcl_case_add(c, "dy", &p->dy, DFCL_F32, M * N, DFCL_IN)->b = bench ? 1.0 : checks[i].scale;
    dfcl_case_add(c, "x", &p->x, DFCL_F32, M * K, DFCL_IN);
    dfcl_case_add(c, "dw", &p->dw, DFCL_F32, N * K, DFCL_INOUT);
}

static double flops(const void *params) {
    const struct dfcl_linear_dw *p = params;
    return 2.0 * p->M * p->N * p->K;
}
static double bytes(const void *params) {
    const struct dfcl_linear_dw *p = params;
    return 4.0 * ((double)p->M * p->N + (double)p->M * p->K + 2.0 * p->N * p->K);
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = cpu_scratch, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = portable_scratch, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_linear_dw = {
    .name = "linear_dw",
    .params_size = sizeof(struct dfcl_linear_dw),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(checks),
    .bench_cases = DFCL_COUNT(benches),
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
