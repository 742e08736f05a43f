/* Linear layer with fused epilogues: bias, activation, scale vectors per domain, gated residual. */
#include <stdio.h>

#include "ops/linear_cpu.h"
#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_linear_fwd *p = params;
    dfcl_status s = dfcl_linear_check("linear_fwd", p->M, &p->w, p->x, err);
    if (s)
        return s;
    if (p->K != p->w.K || p->T < 1)
        return dfcl_fail(err, DFCL_ERROR, "linear_fwd: K=%d, T=%d with a weight [%d,%d]", p->K, p->T, p->w.N, p->w.K);
    if (!p->pre.mem && !p->y.mem && !p->out.mem)
        return dfcl_fail(err, DFCL_ERROR, "linear_fwd: no output");
    return DFCL_OK;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_fwd_host(dev, params, err);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_fwd_cpu(dev, params, err);
}
static bool dot_supports(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_linear_fwd *p = params;
    return dfcl_linear_dot_supports(dev, &p->w, p->M);
}
static uint64_t dot_scratch(const struct dfcl_device *dev, const void *params) {
    return dfcl_linear_fwd_dot_scratch(params);
}
static dfcl_status dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_linear_fwd_dot(dev, params, err);
}

void dfcl_linear_fwd_args(struct dfcl_args *a, const struct dfcl_linear_fwd *p, struct dfcl_weight_form w) {
    dfcl_args_ref(a, p->x, 4);
    dfcl_args_ref(a, w.ref, w.size);
    dfcl_args_ref(a, p->bias.ref, 4);
    dfcl_args_i64(a, p->bias.stride);
    dfcl_args_ref(a, p->gamma.ref, 4);
    dfcl_args_i64(a, p->gamma.stride);
    dfcl_args_ref(a, p->gamma_res.ref, 4);
    dfcl_args_i64(a, p->gamma_res.stride);
    dfcl_args_ref(a, p->dom, 4);
    dfcl_args_ref(a, p->pre, 4);
    dfcl_args_ref(a, p->y, 4);
    dfcl_args_ref(a, p->res, 4);
    dfcl_args_ref(a, p->gate, 4);
    dfcl_args_i64(a, p->gate_stride);
    dfcl_args_ref(a, p->out, 4);
    dfcl_args_i32(a, p->M);
    dfcl_args_i32(a, p->w.N);
    dfcl_args_i32(a, p->K);
    dfcl_args_i32(a, p->T);
    dfcl_args_i32(a, p->res_rows);
    dfcl_args_i32(a, (int)p->act);
}

/* Bits of `has` in cl/linear.cl: which refs are there. */
enum {
    HAS_BIAS = 1,
    HAS_GAMMA = 2,
    HAS_GAMMA_RES = 4,
    HAS_DOM = 8,
    HAS_PRE = 16,
    HAS_Y = 32,
    HAS_RES = 64,
    HAS_GATE = 128,
    HAS_OUT = 256
};

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_fwd *p = params;
    dfcl_status s = check(params, err);
    if (s)
        return s;
    int has = (p->bias.ref.mem ? HAS_BIAS : 0) | (p->gamma.ref.mem ? HAS_GAMMA : 0) |
              (p->gamma_res.ref.mem ? HAS_GAMMA_RES : 0) | (p->dom.mem ? HAS_DOM : 0) | (p->pre.mem ? HAS_PRE : 0) |
              (p->y.mem ? HAS_Y : 0) | (p->res.mem ? HAS_RES : 0) | (p->gate.mem ? HAS_GATE : 0) |
              (p->out.mem ? HAS_OUT : 0);
    struct dfcl_weight_form w = p->w.data.mem ? dfcl_weight_rows(&p->w) : dfcl_weight_panels(&p->w);
    struct dfcl_args a = {0};
    dfcl_linear_fwd_args(&a, p, w);
    dfcl_args_i32(&a, has);
    char options[32];
    snprintf(options, sizeof options, "-DKIND=0 -DWTYPE=%d", dfcl_portable_wtype(w));
    return dfcl_launch_kernel(dev, "linear", "linear_fwd", options, dfcl_ceil_div(p->M, 64) * dfcl_ceil_div(p->w.N, 64),
                              1, 1, &a, err);
}

/* ---- cases ---- */

enum {
    BIAS = 1,
    GAMMA = 2,
    GAMMA_RES = 4,
    GATE = 8,
    PRE = 16,
    Y = 32,
    OUT = 64,
    RES = 128,
    IN_PLACE = 256,
    WRAP = 512 /* res_rows = T */,
    LARGE = 1024,
    ROWS = 2048,
    PANELS = 4096,
    B16 = 8192 /* benchmarks: bf16 */,
    ROUNDED = 16384 /* x that bf16 does not have: what rounding it changes is allowed */,
    BOTH = ROWS | PANELS,
    BRANCH = BIAS | GAMMA | GAMMA_RES | GATE | PRE | OUT | RES,
};
static const struct {
    int M, N, K, T, domains; /* domains 0: no index, one vector */
    unsigned flags;
    enum dfcl_act act;
    enum dfcl_dtype dtype;
} checks[] = {
    {1, 1, 1, 1, 0, Y | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {1, 1, 1, 1, 2, BRANCH | Y | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {33, 70, 37, 3, 3, BRANCH | Y | BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {64, 96, 64, 16, 0, BIAS | Y | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {144, 144, 48, 16, 2, BRANCH | IN_PLACE | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {130, 49, 129, 64, 3, BIAS | GAMMA | Y | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {520, 130, 65, 260, 2, BRANCH | IN_PLACE | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {27, 47, 100, 9, 3, BIAS | PRE | Y | BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {128, 128, 16, 64, 0, BIAS | OUT | RES | WRAP | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {90, 50, 33, 9, 2, BIAS | GAMMA | OUT | RES | WRAP | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {16, 200, 260, 1, 4, BIAS | Y | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {7, 384, 131, 1, 2, BIAS | GAMMA | PRE | Y | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {2, 865, 144, 1, 0, BIAS | PRE | Y | BOTH, DFCL_ACT_SILU, DFCL_F32},
    {17, 33, 700, 4, 2, BIAS | PRE | BOTH, DFCL_ACT_NONE, DFCL_F32},
    {300, 97, 31, 7, 3, LARGE | BIAS | Y | BOTH, DFCL_ACT_GELU_TANH, DFCL_F32},
    {65, 96, 96, 5, 2, BRANCH | Y | ROWS, DFCL_ACT_NONE, DFCL_F32},
    {40, 75, 600, 8, 2, BIAS | Y | PRE | ROWS, DFCL_ACT_GELU_TANH, DFCL_F32},
    {5, 75, 330, 1, 2, BIAS | Y | ROWS, DFCL_ACT_SILU, DFCL_F32},
    {65, 96, 96, 5, 2, BIAS | OUT | GATE | RES | PANELS, DFCL_ACT_NONE, DFCL_F32},
    {3, 50, 96, 1, 0, BIAS | Y | PANELS, DFCL_ACT_NONE, DFCL_F32},
    {33, 70, 37, 3, 3, BRANCH | Y | ROWS, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {33, 70, 37, 3, 3, BRANCH | Y | ROWS, DFCL_ACT_GELU_TANH, DFCL_F16},
    {4, 130, 257, 1, 2, BIAS | Y | ROWS, DFCL_ACT_SILU, DFCL_BF16},
    {4, 130, 257, 1, 2, BIAS | Y | ROWS, DFCL_ACT_SILU, DFCL_F16},
    {70, 64, 520, 35, 1, BIAS | Y | BOTH, DFCL_ACT_NONE, DFCL_BF16},
    {33, 70, 37, 3, 3, BRANCH | Y | PANELS, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {33, 70, 37, 3, 3, BRANCH | Y | PANELS, DFCL_ACT_GELU_TANH, DFCL_F16},
    {1, 1, 1, 1, 0, Y | PANELS, DFCL_ACT_NONE, DFCL_F16},
    {3, 145, 257, 1, 2, BIAS | PRE | Y | PANELS, DFCL_ACT_SILU, DFCL_BF16},
    {26, 96, 610, 2, 2, BIAS | GAMMA | Y | PANELS, DFCL_ACT_SILU, DFCL_F16},
    {300, 97, 600, 150, 2, BRANCH | PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {270, 144, 288, 9, 3, BRANCH | IN_PLACE | PANELS, DFCL_ACT_NONE, DFCL_F16},
    {17, 33, 1, 4, 2, BIAS | PRE | BOTH, DFCL_ACT_NONE, DFCL_BF16},
    {40, 75, 601, 8, 2, BIAS | Y | PRE | ROWS, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {265, 49, 1187, 53, 2, BIAS | GAMMA | OUT | RES | WRAP | PANELS, DFCL_ACT_NONE, DFCL_BF16},
    {64, 97, 96, 5, 2, LARGE | BIAS | Y | BOTH, DFCL_ACT_GELU_TANH, DFCL_BF16},
    {64, 97, 301, 5, 2, ROUNDED | BIAS | Y | BOTH, DFCL_ACT_NONE, DFCL_BF16},
};
static const struct {
    const char *name;
    int M, N, K, T;
    unsigned flags;
    enum dfcl_act act;
} benches[] = {
    {"qkv", 256, 3456, 1152, 256, BIAS | GAMMA | Y | BOTH, DFCL_ACT_NONE},
    {"proj", 256, 1152, 1152, 256, BRANCH | BOTH, DFCL_ACT_NONE},
    {"fc1", 256, 4608, 1152, 256, BIAS | PRE | Y | BOTH, DFCL_ACT_GELU_TANH},
    {"fc2", 256, 1152, 4608, 256, BRANCH | BOTH, DFCL_ACT_NONE},
    {"qkv", 1024, 3456, 1152, 256, BIAS | GAMMA | Y | BOTH, DFCL_ACT_NONE},
    {"proj", 1024, 1152, 1152, 256, BRANCH | BOTH, DFCL_ACT_NONE},
    {"fc1", 1024, 4608, 1152, 256, BIAS | PRE | Y | BOTH, DFCL_ACT_GELU_TANH},
    {"fc2", 1024, 1152, 4608, 256, BRANCH | BOTH, DFCL_ACT_NONE},
    {"adaLN", 1, 6912, 1152, 1, BIAS | Y | BOTH, DFCL_ACT_NONE},
    {"adaLN", 8, 6912, 1152, 1, BIAS | Y | BOTH, DFCL_ACT_NONE},
    {"demo qkv", 8192, 384, 128, 64, BIAS | GAMMA | Y | BOTH, DFCL_ACT_NONE},
    {"demo fc1", 8192, 512, 128, 64, BIAS | PRE | Y | BOTH, DFCL_ACT_GELU_TANH},
    {"demo fc2", 8192, 128, 512, 64, BRANCH | BOTH, DFCL_ACT_NONE},
    {"rows qkv", 256, 3456, 1152, 256, BIAS | Y | ROWS, DFCL_ACT_NONE},
    {"bf16 qkv", 256, 3456, 1152, 256, BIAS | GAMMA | Y | PANELS | B16, DFCL_ACT_NONE},
    {"bf16 fc2", 256, 1152, 4608, 256, BRANCH | PANELS | B16, DFCL_ACT_NONE},
    {"bf16 qkv", 1024, 3456, 1152, 256, BIAS | GAMMA | Y | PANELS | B16, DFCL_ACT_NONE},
    {"bf16 adaLN", 1, 6912, 1152, 1, BIAS | Y | PANELS | B16, DFCL_ACT_NONE},
    {"bf16 adaLN", 8, 6912, 1152, 1, BIAS | Y | PANELS | B16, DFCL_ACT_NONE},
    {"bf16 rows qkv", 256, 3456, 1152, 256, BIAS | Y | ROWS | B16, DFCL_ACT_NONE},
};

static void add_vec(struct dfcl_case *c, const char *name, struct dfcl_vec *v, int domains, int N, double mean,
                    double sd) {
    v->stride = N + 3;
    struct dfcl_case_tensor *t =
        dfcl_case_add(c, name, &v->ref, DFCL_F32, (uint64_t)DFCL_MAX(domains, 1) * (uint64_t)(N + 3), DFCL_IN);
    t->a = mean;
    t->b = sd;
}

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_linear_fwd *p = (struct dfcl_linear_fwd *)c->params;
    bool bench = index >= (int)DFCL_COUNT(checks);
    int i = bench ? index - (int)DFCL_COUNT(checks) : index, domains = bench ? 0 : checks[i].domains;
    unsigned f = bench ? benches[i].flags : checks[i].flags;
    int M = p->M = bench ? benches[i].M : checks[i].M, N = p->w.N = bench ? benches[i].N : checks[i].N;
    int K = p->K = p->w.K = bench ? benches[i].K : checks[i].K, T = p->T = bench ? benches[i].T : checks[i].T;
    int samples = (int)dfcl_ceil_div(M, T);
    uint64_t MN = (uint64_t)M * (uint64_t)N;
    p->act = bench ? benches[i].act : checks[i].act;
    p->w.dtype = !bench ? checks[i].dtype : f & B16 ? DFCL_BF16 : DFCL_F32;
    snprintf(c->label, sizeof c->label, "%s%sM=%d N=%d K=%d T=%d domains=%d act=%d flags=%x %s",
             bench ? benches[i].name : "", bench ? " " : "", M, N, K, T, domains, (int)p->act, f,
             dfcl_dtype_name(p->w.dtype));

    struct dfcl_case_tensor *x = dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)M * (uint64_t)K, DFCL_IN);
    x->b = f & LARGE ? 3e4 : 1.0;
    x->bf16 = p->w.dtype == DFCL_BF16 && !(f & ROUNDED);
    dfcl_case_add_weight(c, &p->w, 0.1, f & ROWS, f & PANELS);
    if (f & BIAS)
        add_vec(c, "bias", &p->bias, domains, N, 0.0, 0.5);
    if (f & GAMMA)
        add_vec(c, "gamma", &p->gamma, domains, N, 1.0, 0.3);
    if (f & GAMMA_RES)
        add_vec(c, "gamma_res", &p->gamma_res, domains, N, 1.0, 0.3);
    if (domains) {
        struct dfcl_case_tensor *t = dfcl_case_add(c, "dom", &p->dom, DFCL_I32, (uint64_t)samples, DFCL_IN);
        t->fill = DFCL_FILL_INT;
        t->a = 0;
        t->b = domains - 1;
    }
    if (f & GATE) {
        p->gate_stride = 6 * N;
        dfcl_case_add(c, "gate", &p->gate, DFCL_F32, (uint64_t)samples * 6 * (uint64_t)N, DFCL_IN);
    }
    if (f & PRE)
        dfcl_case_add(c, "pre", &p->pre, DFCL_F32, MN, DFCL_OUT);
    if (f & Y)
        dfcl_case_add(c, "y", &p->y, DFCL_F32, MN, DFCL_OUT);
    if (f & OUT) {
        struct dfcl_case_tensor *out =
            dfcl_case_add(c, "out", &p->out, DFCL_F32, MN, f & IN_PLACE ? DFCL_INOUT : DFCL_OUT);
        if (f & IN_PLACE)
            dfcl_case_also(c, out, &p->res);
        else if (f & RES)
            dfcl_case_add(c, "res", &p->res, DFCL_F32, f & WRAP ? (uint64_t)T * (uint64_t)N : MN, DFCL_IN);
        if (f & WRAP)
            p->res_rows = T;
    }
    /* 2^-9 of each product, at random: 2^-9 of the outputs' standard deviation, below a quarter of the largest. */
    for (int t = 0; f & ROUNDED && t < c->tensor_count; t++)
        c->tensors[t].tol = 1.0 / 256;
}

static double flops(const void *params) {
    const struct dfcl_linear_fwd *p = params;
    return 2.0 * p->M * p->w.N * p->K;
}
static double bytes(const void *params) {
    const struct dfcl_linear_fwd *p = params;
    double out = (p->pre.mem != NULL) + (p->y.mem != NULL) + (p->out.mem != NULL) + (p->res.mem != NULL);
    double w = (double)dfcl_dtype_size(p->w.dtype);
    return 4.0 * ((double)p->M * p->K + out * p->M * p->w.N) + w * p->w.N * p->K;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu_dot", .bf16 = true, .supports = dot_supports, .scratch = dot_scratch, .launch = dot_launch},
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_linear_fwd = {
    .name = "linear_fwd",
    .params_size = sizeof(struct dfcl_linear_fwd),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(checks),
    .bench_cases = DFCL_COUNT(benches),
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
