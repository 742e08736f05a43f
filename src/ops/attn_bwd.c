/* attn_bwd: gradients of attn_fwd with respect to q, k and v. P is recomputed from the log-sum-exp that forward kept. */
#include "ops/attn.h"

#include <math.h>
#include <stdio.h>

#include "ops/rows.h"

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_bwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    double *work = dfcl_calloc(dev->ctx, dfcl_attn_ref_work(p->T, p->D), sizeof *work, err);
    if (!work)
        return DFCL_NOMEM;
    dfcl_attn_bwd_ref(p->B, p->T, p->H, p->D, p->scale, dfcl_host_ptr(dev, p->qkv), dfcl_host_ptr(dev, p->out),
                      dfcl_host_ptr(dev, p->lse), dfcl_host_ptr(dev, p->dout), dfcl_host_ptr(dev, p->dqkv), work);
    dfcl_free(dev->ctx, work);
    return DFCL_OK;
}

/* ---- cpu: cl/attn_cpu.cl ---- */

enum { CPU_SUM_ROWS = 32 /* of an item that adds up partial dq */ };

/* *partial: floats before the first item's scratch, where units leave their part of dq. The constants of cl/attn_cpu.cl: QB, KB, PS. */
static void cpu_plan(const struct dfcl_device *dev, const struct dfcl_attn_bwd *p, struct dfcl_attn_plan *plan, int64_t *partial) {
    const bool wide = dfcl_cpu_lanes(dev) == 16;
    const int queries = wide ? 64 : 96, keys = 128, stride = wide ? 128 : 144;
    dfcl_attn_plan_init(plan, dev, p->B * p->H, p->T, 32, p->D);
    const int64_t row = plan->row, rows = dfcl_ceil_div(p->T, queries) * queries;
    plan->item_size = rows * (5 * row + 2) + (keys + 8) * 3 * row + 2 * (int64_t)keys * p->D + 2 * queries * stride;
    plan->item_size = dfcl_ceil_div(plan->item_size, 16) * 16;
    *partial = plan->parts > 1 ? dfcl_ceil_div((int64_t)plan->units * p->T * row, 16) * 16 : 0;
}

static uint64_t cpu_scratch(const struct dfcl_device *dev, const void *params) {
    struct dfcl_attn_plan plan;
    int64_t partial;
    cpu_plan(dev, params, &plan, &partial);
    return (uint64_t)(partial + plan.items * plan.item_size) * sizeof(float);
}

static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_bwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct dfcl_attn_plan plan;
    int64_t partial;
    cpu_plan(dev, p, &plan, &partial);
    struct dfcl_kernel *k, *sum = NULL;
    s = dfcl_device_kernel(dev, "attn_cpu", "attn_bwd_cpu", plan.options, &k, err);
    if (!s && plan.parts > 1)
        s = dfcl_device_kernel(dev, "attn_cpu", "attn_bwd_dq_cpu", plan.options, &sum, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_ref(&a, p->dout, sizeof(float));
    dfcl_args_ref(&a, p->dqkv, sizeof(float));
    dfcl_args_ref(&a, dfcl_ref_at(p->head.scratch, (uint64_t)partial * sizeof(float)), sizeof(float));
    dfcl_args_i64(&a, plan.item_size);
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.parts);
    dfcl_args_i32(&a, plan.size);
    dfcl_args_i32(&a, plan.units);
    dfcl_args_i32(&a, plan.items);
    dfcl_args_f32(&a, (float)(p->scale * 1.4426950408889634));
    dfcl_args_f32(&a, p->scale);
    s = dfcl_device_launch(dev, k, (const size_t[3]){(size_t)plan.items, 1, 1}, &a, err);
    if (s || plan.parts == 1)
        return s;
    a.n = 0;
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_ref(&a, p->dqkv, sizeof(float));
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.parts);
    dfcl_args_i32(&a, CPU_SUM_ROWS);
    const size_t groups[3] = {(size_t)((p->T + CPU_SUM_ROWS - 1) / CPU_SUM_ROWS), (size_t)p->B * (size_t)p->H, 1};
    return dfcl_device_launch(dev, sum, groups, &a, err);
}

/* ---- portable: cl/attn.cl; scratch holds delta [B,H,T] ---- */

static bool portable_supports(const struct dfcl_device *dev, const void *params) {
    struct dfcl_attn_tiles t;
    dfcl_attn_tiles_get(((const struct dfcl_attn_bwd *)params)->D, &t);
    return dfcl_supports_kernels(dev, params) && dev->info.local_memory >= t.bwd_local && dev->info.max_work_group >= 64;
}

static uint64_t portable_scratch(const struct dfcl_device *dev, const void *params) {
    (void)dev;
    const struct dfcl_attn_bwd *p = params;
    return (uint64_t)p->B * (uint64_t)p->H * (uint64_t)p->T * sizeof(float);
}

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_bwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct dfcl_attn_tiles t;
    dfcl_attn_tiles_get(p->D, &t);
    char options[32];
    dfcl_attn_options(options, p->D, (const struct dfcl_ref[]){p->qkv, p->out, p->dout, p->dqkv}, 4);
    const int blocks = (int)dfcl_ceil_div(p->T, t.bwd);
    const int64_t n = (int64_t)p->B * p->H * p->T, groups = (int64_t)blocks * p->B * p->H;
    const float cs = (float)(p->scale * 1.4426950408889634);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->dout, sizeof(float));
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_i32(&a, (int32_t)n);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    s = dfcl_launch_kernel(dev, "attn", "attn_bwd_delta", options, dfcl_ceil_div(n, 64), 1, 1, &a, err);
    if (s)
        return s;
    a.n = 0;
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_ref(&a, p->dout, sizeof(float));
    dfcl_args_ref(&a, p->dqkv, sizeof(float));
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, blocks);
    dfcl_args_f32(&a, cs);
    s = dfcl_launch_kernel(dev, "attn", "attn_bwd_dkv", options, groups, 1, 1, &a, err);
    if (s)
        return s;
    dfcl_args_f32(&a, p->scale); /* the rest is the same */
    return dfcl_launch_kernel(dev, "attn", "attn_bwd_dq", options, groups, 1, 1, &a, err);
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu_dot",
     .bf16 = true,
     .supports = dfcl_attn_bwd_dot_supports,
     .scratch = dfcl_attn_bwd_dot_scratch,
     .launch = dfcl_attn_bwd_dot_launch},
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = cpu_scratch, .launch = cpu_launch},
    {.name = "portable", .supports = portable_supports, .scratch = portable_scratch, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_attn_bwd *p = (struct dfcl_attn_bwd *)c->params;
    struct dfcl_attn_case k;
    dfcl_attn_case_get(index, &k);
    p->B = k.B, p->T = k.T, p->H = k.H, p->D = k.D;
    p->scale = 1.0f / sqrtf((float)k.D);
    p->bf16 = k.bf16;
    const uint64_t n = (uint64_t)k.B * (uint64_t)k.T * (uint64_t)k.H * (uint64_t)k.D, rows = n / (uint64_t)k.D;
    struct dfcl_case_tensor *qkv = dfcl_case_add(c, "qkv", &p->qkv, DFCL_F32, 3 * n, DFCL_IN);
    struct dfcl_case_tensor *out = dfcl_case_add(c, "out", &p->out, DFCL_F32, n, DFCL_IN);
    struct dfcl_case_tensor *lse = dfcl_case_add(c, "lse", &p->lse, DFCL_F32, rows, DFCL_IN);
    dfcl_case_add(c, "dout", &p->dout, DFCL_F32, n, DFCL_IN)->bf16 = k.exact;
    dfcl_case_add(c, "dqkv", &p->dqkv, DFCL_F32, 3 * n, DFCL_OUT)->tol = dfcl_attn_case_tol(&k, 2e-5);
    snprintf(c->label, sizeof c->label, "%s", k.label);
    if (index >= DFCL_ATTN_CHECK_CASES) {
        /* The time does not depend on the values: any out, and log-sum-exps near those of unit normals, spare the forward pass. */
        lse->fill = DFCL_FILL_UNIFORM;
        lse->a = log(k.T) + 0.4;
        lse->b = log(k.T) + 0.6;
        return;
    }
    float *x = dfcl_case_data(c, 3 * n * sizeof *x), *o = dfcl_case_data(c, n * sizeof *o), *l = dfcl_case_data(c, rows * sizeof *l);
    double *work = dfcl_case_data(c, dfcl_attn_ref_work(k.T, k.D) * sizeof *work);
    if (!x || !o || !l || !work)
        return;
    dfcl_attn_case_fill(&k, c->seed, x);
    dfcl_attn_fwd_ref(k.B, k.T, k.H, k.D, p->scale, x, o, l, work);
    qkv->fill = out->fill = lse->fill = DFCL_FILL_DATA;
    qkv->data = x;
    out->data = o;
    lse->data = l;
}

static double flops(const void *params) {
    const struct dfcl_attn_bwd *p = params;
    return 10.0 * p->B * p->H * p->T * (double)p->T * p->D;
}
static double bytes(const void *params) {
    const struct dfcl_attn_bwd *p = params;
    return 4.0 * p->B * p->T * p->H * (8.0 * p->D + 1);
}

const struct dfcl_op dfcl_op_attn_bwd = {
    .name = "attn_bwd",
    .params_size = sizeof(struct dfcl_attn_bwd),
    .variants = variants,
    .variant_count = (int)DFCL_COUNT(variants),
    .check_cases = DFCL_ATTN_CHECK_CASES,
    .bench_cases = DFCL_ATTN_BENCH_CASES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
