/* A residual branch with adaLN's gate and DiffFit's gammas: the unfused forward, and the backward with its reductions. */
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

/* ---- reference ---- */

static const float *vec_of(const struct dfcl_device *dev, struct dfcl_vec v, int dom) {
    const float *p = dfcl_host_ptr(dev, v.ref);
    return p ? p + dom * v.stride : NULL;
}

static dfcl_status gated_residual_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_gated_residual *p = params;
    const float *res = dfcl_host_ptr(dev, p->res), *v = dfcl_host_ptr(dev, p->v), *gate = dfcl_host_ptr(dev, p->gate);
    const int32_t *dom = dfcl_host_ptr(dev, p->dom);
    float *out = dfcl_host_ptr(dev, p->out);
    for (int64_t m = 0; m < p->M; m++) {
        int64_t s = m / p->T;
        const float *gi = vec_of(dev, p->gamma_in, dom ? dom[s] : 0), *go = vec_of(dev, p->gamma_out, dom ? dom[s] : 0);
        for (int n = 0; n < p->N; n++) {
            double f = v[m * p->N + n]; /* in the order of linear_fwd's reference */
            f *= gi ? (double)gi[n] : 1.0;
            f *= go ? (double)go[n] : 1.0;
            f *= gate ? (double)gate[s * p->gate_stride + n] : 1.0;
            out[m * p->N + n] = (float)(res ? f + res[m * p->N + n] : f);
        }
    }
    return DFCL_OK;
}

static dfcl_status bwd_check(const struct dfcl_branch_bwd *p, dfcl_error *err) {
    if (!p->v.mem && (p->dgate.mem || p->dgamma_in.mem || p->dgamma_out.mem))
        return dfcl_fail(err, DFCL_ERROR, "v is absent, but dgate, dgamma_in and dgamma_out need it");
    return DFCL_OK;
}

static dfcl_status branch_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_branch_bwd *p = params;
    const float *dz = dfcl_host_ptr(dev, p->dz), *v = dfcl_host_ptr(dev, p->v), *gate = dfcl_host_ptr(dev, p->gate);
    const float *gamma_in = dfcl_host_ptr(dev, p->gamma_in), *gamma_out = dfcl_host_ptr(dev, p->gamma_out);
    float *dv = dfcl_host_ptr(dev, p->dv), *dgate = dfcl_host_ptr(dev, p->dgate), *dbias = dfcl_host_ptr(dev, p->dbias);
    float *dgamma_in = dfcl_host_ptr(dev, p->dgamma_in), *dgamma_out = dfcl_host_ptr(dev, p->dgamma_out);
    dfcl_status status = bwd_check(p, err);
    if (status)
        return status;
    for (int n = 0; n < p->N; n++) {
        double gi = gamma_in ? (double)gamma_in[n] : 1.0, go = gamma_out ? (double)gamma_out[n] : 1.0;
        double sum_out = 0, sum_in = 0, sum_bias = 0;
        for (int s = 0; s < p->M / p->T; s++) {
            double g = gate ? (double)gate[s * p->gate_stride + n] : 1.0, s0 = 0, s1 = 0;
            for (int64_t m = (int64_t)s * p->T; m < (int64_t)(s + 1) * p->T; m++) {
                double d = dz[m * p->N + n];
                s0 += d;
                s1 += v ? d * v[m * p->N + n] : 0.0;
                if (dv)
                    dv[m * p->N + n] = (float)(d * g * go * gi);
            }
            if (dgate)
                dgate[s * p->dgate_stride + n] = (float)(go * gi * s1);
            sum_out += g * gi * s1;
            sum_in += g * go * s1;
            sum_bias += g * go * gi * s0;
        }
        if (dgamma_out)
            dgamma_out[n] = (float)(dgamma_out[n] + sum_out);
        if (dgamma_in)
            dgamma_in[n] = (float)(dgamma_in[n] + sum_in);
        if (dbias)
            dbias[n] = (float)(dbias[n] + sum_bias);
    }
    return DFCL_OK;
}

/* ---- kernels ---- */

/* Rows of one work-item of the CPU variant: about 32 KiB of v. */
static int rows_per_item(int N) {
    return DFCL_MAX(1, 8192 / N);
}

static void fwd_args(const struct dfcl_gated_residual *p, struct dfcl_args *a) {
    dfcl_args_ref(a, p->res, 4);
    dfcl_args_ref(a, p->v, 4);
    dfcl_args_ref(a, p->gate, 4);
    dfcl_args_ref(a, p->dom, 4);
    dfcl_args_ref(a, p->out, 4);
    dfcl_args_ref(a, p->gamma_in.ref, 4);
    dfcl_args_ref(a, p->gamma_out.ref, 4);
    dfcl_args_i32(a, p->N);
    dfcl_args_i32(a, p->T);
    dfcl_args_i64(a, p->gate_stride);
    dfcl_args_i64(a, p->gamma_in.stride);
    dfcl_args_i64(a, p->gamma_out.stride);
}
static dfcl_status gated_residual_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_gated_residual *p = params;
    struct dfcl_args a = {0};
    fwd_args(p, &a);
    return dfcl_launch_kernel(dev, "branch", "gated_residual", NULL, p->M, 1, 1, &a, err);
}
static dfcl_status gated_residual_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_gated_residual *p = params;
    int rows = rows_per_item(p->N);
    struct dfcl_args a = {0};
    fwd_args(p, &a);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, rows);
    return dfcl_launch_kernel(dev, "branch_cpu", "gated_residual_cpu", dfcl_cpu_options(dev), dfcl_ceil_div(p->M, rows), 1, 1, &a, err);
}

static bool wants_sums(const struct dfcl_branch_bwd *p) {
    return p->dgate.mem || p->dgamma_in.mem || p->dgamma_out.mem || p->dbias.mem;
}
static uint64_t bwd_scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_branch_bwd *p = params;
    return wants_sums(p) ? dfcl_part_scratch(p->M, p->T, p->N, 2) : 0;
}
static dfcl_status add_parts(struct dfcl_device *dev, const struct dfcl_branch_bwd *p, int parts, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_ref(&a, p->gate, 4);
    dfcl_args_ref(&a, p->gamma_in, 4);
    dfcl_args_ref(&a, p->gamma_out, 4);
    dfcl_args_ref(&a, p->dgate, 4);
    dfcl_args_ref(&a, p->dgamma_in, 4);
    dfcl_args_ref(&a, p->dgamma_out, 4);
    dfcl_args_ref(&a, p->dbias, 4);
    dfcl_args_i32(&a, p->M / p->T);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, parts);
    dfcl_args_i64(&a, p->gate_stride);
    dfcl_args_i64(&a, p->dgate_stride);
    return dfcl_launch_kernel(dev, "branch", "branch_grads", NULL, dfcl_ceil_div(p->N, 64), 1, 1, &a, err);
}
static dfcl_status branch_bwd_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_branch_bwd *p = params;
    int rows = dfcl_part_rows(dev, p->M, p->T), parts = (int)dfcl_ceil_div(p->T, rows);
    dfcl_status s = bwd_check(p, err);
    if (!s && wants_sums(p)) {
        struct dfcl_args a = {0};
        dfcl_args_ref(&a, p->dz, 4);
        dfcl_args_ref(&a, p->v, 4);
        dfcl_args_ref(&a, p->head.scratch, 4);
        dfcl_args_i32(&a, p->N);
        dfcl_args_i32(&a, p->T);
        dfcl_args_i32(&a, rows);
        dfcl_args_i32(&a, parts);
        s = dfcl_launch_kernel(dev, "branch", "branch_part_sums", NULL, (int64_t)(p->M / p->T) * parts, dfcl_ceil_div(p->N, 64), 1, &a, err);
        if (!s)
            s = add_parts(dev, p, parts, err);
    }
    if (s || !p->dv.mem)
        return s;
    struct dfcl_args a = {0}; /* last: dv may be dz */
    dfcl_args_ref(&a, p->dz, 4);
    dfcl_args_ref(&a, p->gate, 4);
    dfcl_args_ref(&a, p->gamma_in, 4);
    dfcl_args_ref(&a, p->gamma_out, 4);
    dfcl_args_ref(&a, p->dv, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i64(&a, p->gate_stride);
    return dfcl_launch_kernel(dev, "branch", "branch_dv", NULL, p->M, 1, 1, &a, err);
}
static dfcl_status branch_bwd_cpu(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_branch_bwd *p = params;
    int rows = dfcl_part_rows(dev, p->M, p->T), parts = (int)dfcl_ceil_div(p->T, rows);
    dfcl_status s = bwd_check(p, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dz, 4);
    dfcl_args_ref(&a, p->v, 4);
    dfcl_args_ref(&a, p->gate, 4);
    dfcl_args_ref(&a, p->gamma_in, 4);
    dfcl_args_ref(&a, p->gamma_out, 4);
    dfcl_args_ref(&a, p->dv, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i64(&a, p->gate_stride);
    dfcl_args_i32(&a, rows);
    dfcl_args_i32(&a, parts);
    s = dfcl_launch_kernel(dev, "branch_cpu", "branch_bwd_cpu", dfcl_cpu_options(dev), (int64_t)(p->M / p->T) * parts, 1, 1, &a, err);
    return s || !wants_sums(p) ? s : add_parts(dev, p, parts, err);
}

/* ---- cases ---- */

enum { GATE = 1, IN = 2, OUT = 4, DOM = 8, IN_PLACE = 16, V = 32, DV = 64, DGATE = 128, DIN = 256, DOUT = 512, DBIAS = 1024, NO_RES = 2048 };
#define ALL (GATE | IN | OUT | V | DV | DGATE | DIN | DOUT | DBIAS)

/* Benchmarks: DiT-XL/2 at 256 and 1024 rows, the demo's base. */
static const struct {
    int B, T, N;
    unsigned flags;
} cases[] = {
    {1, 1, 1, ALL},
    {3, 1, 7, ALL | DOM},
    {5, 9, 32, ALL | IN_PLACE},
    {2, 16, 96, ALL & ~(unsigned)(IN | DIN)},
    {7, 3, 33, ALL | DOM | IN_PLACE},
    {1, 260, 128, ALL},
    {9, 64, 50, ALL & ~(unsigned)(GATE | DGATE)},
    {1, 256, 1152, ALL | DOM},
    {2, 17, 384, OUT | DV},
    {2, 5, 131, GATE | DBIAS | DV},
    {2, 5, 131, V | DIN},
    {3, 4, 20, IN | IN_PLACE | V | DV | DOUT | DBIAS},
    {40, 20, 24, GATE | V | DGATE},
    {4, 7, 51, IN | DOM | V | DIN | NO_RES},
    /* benchmarks: */
    {1, 256, 1152, ALL | IN_PLACE},
    {4, 256, 1152, ALL | IN_PLACE},
    {128, 64, 128, ALL | IN_PLACE},
};
enum { BENCHES = 3, CHECKS = DFCL_COUNT(cases) - BENCHES, DOMAINS = 4 };

static void label(struct dfcl_case *c, int i) {
    snprintf(c->label, sizeof c->label, "B=%d T=%d N=%d flags=%x", cases[i].B, cases[i].T, cases[i].N, cases[i].flags);
}
/* Samples are 2 N + 3 apart, the last one is N long. */
static void add_gate(struct dfcl_case *c, const char *name, const void *ref, int i, int64_t *stride, enum dfcl_case_use use) {
    *stride = 2 * cases[i].N + 3;
    dfcl_case_add(c, name, ref, DFCL_F32, (uint64_t)((cases[i].B - 1) * *stride + cases[i].N), use)->tol = 3e-6;
}
static void add_gamma(struct dfcl_case *c, const char *name, struct dfcl_vec *v, int i) {
    int domains = cases[i].flags & DOM ? DOMAINS : 1;
    v->stride = cases[i].N + 5;
    struct dfcl_case_tensor *t =
        dfcl_case_add(c, name, &v->ref, DFCL_F32, (uint64_t)((domains - 1) * v->stride + cases[i].N), DFCL_IN);
    t->a = 1;
    t->b = 0.3;
}

/* Three products and a sum: 1e-6 of the size. */
static void fwd_case(struct dfcl_case *c, int i) {
    struct dfcl_gated_residual *p = (struct dfcl_gated_residual *)c->params;
    uint64_t M = (uint64_t)(p->M = cases[i].B * cases[i].T), N = (uint64_t)(p->N = cases[i].N);
    unsigned f = cases[i].flags;
    label(c, i);
    p->T = cases[i].T;
    struct dfcl_case_tensor *res = NULL;
    if (!(f & NO_RES)) {
        res = dfcl_case_add(c, "res", &p->res, DFCL_F32, M * N, f & IN_PLACE ? DFCL_INOUT : DFCL_IN);
        res->tol = 1e-6;
    }
    dfcl_case_add(c, "v", &p->v, DFCL_F32, M * N, DFCL_IN);
    if (f & IN_PLACE)
        dfcl_case_also(c, res, &p->out);
    else
        dfcl_case_add(c, "out", &p->out, DFCL_F32, M * N, DFCL_OUT)->tol = 1e-6;
    if (f & GATE)
        add_gate(c, "gate", &p->gate, i, &p->gate_stride, DFCL_IN);
    if (f & IN)
        add_gamma(c, "gamma_in", &p->gamma_in, i);
    if (f & OUT)
        add_gamma(c, "gamma_out", &p->gamma_out, i);
    if (f & DOM) {
        struct dfcl_case_tensor *t = dfcl_case_add(c, "dom", &p->dom, DFCL_I32, (uint64_t)cases[i].B, DFCL_IN);
        t->fill = DFCL_FILL_INT;
        t->b = DOMAINS - 1;
    }
}

/* Products to 1e-6, sums over up to 800 rows to 3e-6. */
static void bwd_case(struct dfcl_case *c, int i) {
    struct dfcl_branch_bwd *p = (struct dfcl_branch_bwd *)c->params;
    uint64_t M = (uint64_t)(p->M = cases[i].B * cases[i].T), N = (uint64_t)(p->N = cases[i].N);
    unsigned f = cases[i].flags;
    bool in_place = f & IN_PLACE && f & DV;
    label(c, i);
    p->T = cases[i].T;
    struct dfcl_case_tensor *dz = dfcl_case_add(c, "dz", &p->dz, DFCL_F32, M * N, in_place ? DFCL_INOUT : DFCL_IN);
    dz->tol = 1e-6;
    if (in_place)
        dfcl_case_also(c, dz, &p->dv);
    else if (f & DV)
        dfcl_case_add(c, "dv", &p->dv, DFCL_F32, M * N, DFCL_OUT)->tol = 1e-6;
    if (f & V)
        dfcl_case_add(c, "v", &p->v, DFCL_F32, M * N, DFCL_IN);
    if (f & GATE)
        add_gate(c, "gate", &p->gate, i, &p->gate_stride, DFCL_IN);
    if (f & IN)
        dfcl_case_add(c, "gamma_in", &p->gamma_in, DFCL_F32, N, DFCL_IN);
    if (f & OUT)
        dfcl_case_add(c, "gamma_out", &p->gamma_out, DFCL_F32, N, DFCL_IN);
    if (f & DGATE)
        add_gate(c, "dgate", &p->dgate, i, &p->dgate_stride, DFCL_OUT);
    if (f & DIN)
        dfcl_case_add(c, "dgamma_in", &p->dgamma_in, DFCL_F32, N, DFCL_INOUT)->tol = 3e-6;
    if (f & DOUT)
        dfcl_case_add(c, "dgamma_out", &p->dgamma_out, DFCL_F32, N, DFCL_INOUT)->tol = 3e-6;
    if (f & DBIAS)
        dfcl_case_add(c, "dbias", &p->dbias, DFCL_F32, N, DFCL_INOUT)->tol = 3e-6;
}

/* ---- rows ---- */

static double fwd_flops(const void *params) {
    const struct dfcl_gated_residual *p = params;
    return 4.0 * p->M * p->N;
}
static double fwd_bytes(const void *params) {
    const struct dfcl_gated_residual *p = params;
    return 4.0 * (3.0 * p->M * p->N + (p->gate.mem ? (double)p->M / p->T * p->N : 0.0));
}
static double bwd_flops(const void *params) {
    const struct dfcl_branch_bwd *p = params;
    return 5.0 * p->M * p->N;
}
static double bwd_bytes(const void *params) {
    const struct dfcl_branch_bwd *p = params;
    int passes = 1 + (p->v.mem != NULL) + (p->dv.mem != NULL);
    return 4.0 * ((double)passes * p->M * p->N + 2.0 * p->M / p->T * p->N);
}

static const struct dfcl_variant fwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = gated_residual_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = gated_residual_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = gated_residual_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = bwd_scratch, .launch = branch_bwd_cpu},
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = bwd_scratch, .launch = branch_bwd_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = branch_bwd_host},
};

const struct dfcl_op dfcl_op_gated_residual = {
    .name = "gated_residual",
    .params_size = sizeof(struct dfcl_gated_residual),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = fwd_case,
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_branch_bwd = {
    .name = "branch_bwd",
    .params_size = sizeof(struct dfcl_branch_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = bwd_case,
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
