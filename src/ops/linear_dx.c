/* Gradient of a linear layer's input, with the derivative of the activation before it. */
#include <stdio.h>

#include "ops/linear_cpu.h"
#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_linear_dx *p = params;
    dfcl_status s = dfcl_linear_check("linear_dx", p->M, &p->w, p->dy, err);
    if (!s && !p->dx.mem)
        s = dfcl_fail(err, DFCL_ERROR, "linear_dx: no output");
    if (!s && p->act != DFCL_ACT_NONE && !p->pre.mem)
        s = dfcl_fail(err, DFCL_ERROR, "linear_dx: activation %d without pre", (int)p->act);
    return s;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_dx_host(dev, params, err);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_dx_cpu(dev, params, err);
}
static bool dot_supports(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_linear_dx *p = params;
    return dfcl_linear_dot_supports(dev, &p->w, p->M);
}
static uint64_t dot_scratch(const struct dfcl_device *dev, const void *params) {
    return dfcl_linear_dx_dot_scratch(params);
}
static dfcl_status dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_dx_dot(dev, params, err);
}

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_dx *p = params;
    dfcl_status s = check(params, err);
    if (s)
        return s;
    struct dfcl_weight_form w = p->w.data.mem ? dfcl_weight_rows(&p->w) : dfcl_weight_panels(&p->w);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, w.ref, w.size);
    dfcl_args_ref(&a, p->pre, 4);
    dfcl_args_ref(&a, p->dx, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    dfcl_args_i32(&a, (int)p->act);
    dfcl_args_i32(&a, p->accumulate);
    char options[32];
    snprintf(options, sizeof options, "-DKIND=1 -DWTYPE=%d", dfcl_portable_wtype(w));
    return dfcl_launch_kernel(dev, "linear", "linear_dx", options, dfcl_ceil_div(p->M, 64) * dfcl_ceil_div(p->w.K, 64),
                              1, 1, &a, err);
}

/* ---- cases ---- */

enum {
    ACC = 1,
    LARGE = 2,
    ROWS = 4,
    PANELS = 8,
    BOTH = ROWS | PANELS,
    B16 = 16 /* benchmarks: bf16 */,
    ROUNDED = 32 /* as in linear_fwd */
};
static const struct {
    int M, N, K;
    unsigned flags;
    enum dfcl_act act;
    enum dfcl_dtype dtype;
} checks[] = {
    {1, 1, 1, BOTH, DFCL_ACT_NONE, DFCL_F32},
    {1, 1, 1, ACC | BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {33, 70, 37, BOTH, DFCL_ACT_NONE, DFCL_F32},
    {33, 70, 37, ACC | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {64, 96, 48, BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {260, 144, 131, ACC | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {61, 47, 50, BOTH, DFCL_ACT_SILU, DFCL_F32},
    {128, 49, 6, BOTH, DFCL_ACT_NONE, DFCL_F32},
    {18, 337, 100, LARGE | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {3, 500, 77, ACC | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {9, 129, 200, BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {1, 865, 145, BOTH, DFCL_ACT_NONE, DFCL_F32},
    {75, 610, 75, BOTH, DFCL_ACT_NONE, DFCL_F32},
    {33, 700, 53, ACC | ROWS, DFCL_ACT_GELU_TANH, DFCL_F32},
    {70, 60, 96, ROWS, DFCL_ACT_NONE, DFCL_F32},
    {5, 300, 97, ROWS, DFCL_ACT_SILU, DFCL_F32},
    {33, 70, 37, PANELS, DFCL_ACT_NONE, DFCL_F32},
    {70, 350, 97, ACC | PANELS, DFCL_ACT_GELU_TANH, DFCL_F32},
    {13, 101, 83, PANELS, DFCL_ACT_SILU, DFCL_F32},
    {24, 96, 24, ACC | PANELS, DFCL_ACT_NONE, DFCL_F32},
    {33, 70, 37, ACC | ROWS, DFCL_ACT_SILU, DFCL_BF16},
    {33, 70, 37, ACC | ROWS, DFCL_ACT_SILU, DFCL_F16},
    {70, 96, 110, BOTH, DFCL_ACT_NONE, DFCL_BF16},
    {33, 70, 37, PANELS, DFCL_ACT_SILU, DFCL_BF16},
    {33, 70, 37, ACC | PANELS, DFCL_ACT_GELU_TANH, DFCL_F16},
    {1, 1, 1, PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {3, 500, 77, ACC | PANELS, DFCL_ACT_NONE, DFCL_F16},
    {24, 145, 131, PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {300, 337, 100, PANELS, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {270, 610, 145, ACC | PANELS, DFCL_ACT_NONE, DFCL_F16},
    {25, 1, 50, PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {75, 610, 75, ACC | ROWS, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {61, 1201, 50, LARGE | PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {300, 49, 97, BOTH, DFCL_ACT_SILU, DFCL_BF16},
    {70, 301, 97, ROUNDED | BOTH, DFCL_ACT_NONE, DFCL_BF16},
};
static const struct {
    const char *name;
    int M, N, K;
    unsigned flags;
    enum dfcl_act act;
} benches[] = {
    {"qkv", 256, 3456, 1152, BOTH, DFCL_ACT_NONE},
    {"proj", 256, 1152, 1152, BOTH, DFCL_ACT_NONE},
    {"fc1", 256, 4608, 1152, BOTH, DFCL_ACT_NONE},
    {"fc2", 256, 1152, 4608, BOTH, DFCL_ACT_GELU_TANH},
    {"qkv", 1024, 3456, 1152, BOTH, DFCL_ACT_NONE},
    {"proj", 1024, 1152, 1152, BOTH, DFCL_ACT_NONE},
    {"fc1", 1024, 4608, 1152, BOTH, DFCL_ACT_NONE},
    {"fc2", 1024, 1152, 4608, BOTH, DFCL_ACT_GELU_TANH},
    {"adaLN", 8, 6912, 1152, BOTH, DFCL_ACT_NONE},
    {"demo qkv", 8192, 384, 128, BOTH, DFCL_ACT_NONE},
    {"demo fc2", 8192, 128, 512, BOTH, DFCL_ACT_GELU_TANH},
    {"rows qkv", 256, 3456, 1152, ROWS, DFCL_ACT_NONE},
    {"panels qkv", 256, 3456, 1152, PANELS, DFCL_ACT_NONE},
    {"bf16 qkv", 256, 3456, 1152, PANELS | B16, DFCL_ACT_NONE},
    {"bf16 fc2", 256, 1152, 4608, PANELS | B16, DFCL_ACT_GELU_TANH},
    {"bf16 adaLN", 8, 6912, 1152, PANELS | B16, DFCL_ACT_NONE},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_linear_dx *p = (struct dfcl_linear_dx *)c->params;
    bool bench = index >= (int)DFCL_COUNT(checks);
    int i = bench ? index - (int)DFCL_COUNT(checks) : index;
    unsigned f = bench ? benches[i].flags : checks[i].flags;
    int M = p->M = bench ? benches[i].M : checks[i].M, N = p->w.N = bench ? benches[i].N : checks[i].N;
    int K = p->w.K = bench ? benches[i].K : checks[i].K;
    p->act = bench ? benches[i].act : checks[i].act;
    p->w.dtype = !bench ? checks[i].dtype : f & B16 ? DFCL_BF16 : DFCL_F32;
    p->accumulate = f & ACC;
    snprintf(c->label, sizeof c->label, "%s%sM=%d N=%d K=%d act=%d flags=%x %s", bench ? benches[i].name : "",
             bench ? " " : "", M, N, K, (int)p->act, f, dfcl_dtype_name(p->w.dtype));
    struct dfcl_case_tensor *dy = dfcl_case_add(c, "dy", &p->dy, DFCL_F32, (uint64_t)M * (uint64_t)N, DFCL_IN);
    dy->b = f & LARGE ? 3e4 : 1.0;
    dy->bf16 = p->w.dtype == DFCL_BF16 && !(f & ROUNDED);
    dfcl_case_add_weight(c, &p->w, 0.1, f & ROWS, f & PANELS);
    if (p->act != DFCL_ACT_NONE)
        dfcl_case_add(c, "pre", &p->pre, DFCL_F32, (uint64_t)M * (uint64_t)K, DFCL_IN)->b = 2.0;
    struct dfcl_case_tensor *dx =
        dfcl_case_add(c, "dx", &p->dx, DFCL_F32, (uint64_t)M * (uint64_t)K, f & ACC ? DFCL_INOUT : DFCL_OUT);
    if (f & ROUNDED)
        dx->tol = 1.0 / 256;
}

static double flops(const void *params) {
    const struct dfcl_linear_dx *p = params;
    return 2.0 * p->M * p->w.N * p->w.K;
}
static double bytes(const void *params) {
    const struct dfcl_linear_dx *p = params;
    double per_x = 1 + (p->act != DFCL_ACT_NONE) + p->accumulate, w = (double)dfcl_dtype_size(p->w.dtype);
    return 4.0 * ((double)p->M * p->w.N + per_x * p->M * p->w.K) + w * p->w.N * p->w.K;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu_dot", .bf16 = true, .supports = dot_supports, .scratch = dot_scratch, .launch = dot_launch},
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_linear_dx = {
    .name = "linear_dx",
    .params_size = sizeof(struct dfcl_linear_dx),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(checks),
    .bench_cases = DFCL_COUNT(benches),
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
