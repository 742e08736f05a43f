/* attn_fwd: softmax(q k^T * scale) v per sample and head. */
#include "ops/attn.h"

#include <math.h>
#include <stdio.h>

#include "ops/rows.h"

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_fwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    double *work = dfcl_calloc(dev->ctx, dfcl_attn_ref_work(p->T, p->D), sizeof *work, err);
    if (!work)
        return DFCL_NOMEM;
    dfcl_attn_fwd_ref(p->B, p->T, p->H, p->D, p->scale, dfcl_host_ptr(dev, p->qkv), dfcl_host_ptr(dev, p->out),
                      dfcl_host_ptr(dev, p->lse), work);
    dfcl_free(dev->ctx, work);
    return DFCL_OK;
}

/* ---- cpu: cl/attn_cpu.cl ---- */

static int64_t pad16(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* The constants of cl/attn_cpu.cl: NP, QF, KF, SS. */
static void cpu_plan(const struct dfcl_device *dev, const struct dfcl_attn_fwd *p, struct dfcl_attn_plan *plan) {
    const bool wide = dfcl_cpu_lanes(dev) == 16;
    dfcl_attn_plan_init(plan, dev, p->B * p->H, p->T, wide ? 32 : 24, p->D);
    const int panel = plan->vector * 2, queries = wide ? 8 : 48, keys = wide ? 512 : 128, stride = wide ? 512 : 144;
    const int64_t tp = dfcl_ceil_div(p->T, panel) * panel;
    plan->item_size = pad16(tp * p->D) + pad16((int64_t)p->T * plan->row) + dfcl_ceil_div(tp, keys) * queries * stride +
                      2 * pad16((int64_t)queries * plan->row) + 2 * (int64_t)queries * plan->vector + 2 * pad16(queries);
}

static uint64_t cpu_scratch(const struct dfcl_device *dev, const void *params) {
    struct dfcl_attn_plan plan;
    cpu_plan(dev, params, &plan);
    return (uint64_t)plan.items * (uint64_t)plan.item_size * sizeof(float);
}

static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_fwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct dfcl_attn_plan plan;
    cpu_plan(dev, p, &plan);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_i32(&a, p->lse.mem != NULL);
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_i64(&a, plan.item_size);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.parts);
    dfcl_args_i32(&a, plan.size);
    dfcl_args_i32(&a, plan.units);
    dfcl_args_i32(&a, plan.items);
    dfcl_args_f32(&a, (float)(p->scale * 1.4426950408889634));
    return dfcl_launch_kernel(dev, "attn_cpu", "attn_fwd_cpu", plan.options, plan.items, 1, 1, &a, err);
}

/* ---- portable: cl/attn.cl ---- */

static bool portable_supports(const struct dfcl_device *dev, const void *params) {
    struct dfcl_attn_tiles t;
    dfcl_attn_tiles_get(((const struct dfcl_attn_fwd *)params)->D, &t);
    return dfcl_supports_kernels(dev, params) && dev->info.local_memory >= t.fwd_local && dev->info.max_work_group >= 64;
}

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_fwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct dfcl_attn_tiles t;
    dfcl_attn_tiles_get(p->D, &t);
    char options[32];
    dfcl_attn_options(options, p->D, (const struct dfcl_ref[]){p->qkv, p->out}, 2);
    const int blocks = (int)dfcl_ceil_div(p->T, t.fwd);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_i32(&a, p->lse.mem != NULL);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, blocks);
    dfcl_args_f32(&a, (float)(p->scale * 1.4426950408889634));
    return dfcl_launch_kernel(dev, "attn", "attn_fwd", options, (int64_t)blocks * p->B * p->H, 1, 1, &a, err);
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu_dot",
     .bf16 = true,
     .supports = dfcl_attn_fwd_dot_supports,
     .scratch = dfcl_attn_fwd_dot_scratch,
     .launch = dfcl_attn_fwd_dot_launch},
    {.name = "cpu", .supports = dfcl_supports_cpu, .scratch = cpu_scratch, .launch = cpu_launch},
    {.name = "portable", .supports = portable_supports, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_attn_fwd *p = (struct dfcl_attn_fwd *)c->params;
    struct dfcl_attn_case k;
    dfcl_attn_case_get(index, &k);
    p->B = k.B, p->T = k.T, p->H = k.H, p->D = k.D;
    p->scale = 1.0f / sqrtf((float)k.D);
    p->bf16 = k.bf16;
    const uint64_t n = (uint64_t)k.B * (uint64_t)k.T * (uint64_t)k.H * (uint64_t)k.D;
    struct dfcl_case_tensor *t = dfcl_case_add(c, "qkv", &p->qkv, DFCL_F32, 3 * n, DFCL_IN);
    if (k.mean > 0 || k.exact) {
        float *x = dfcl_case_data(c, 3 * n * sizeof *x);
        if (!x)
            return;
        dfcl_attn_case_fill(&k, c->seed, x);
        t->fill = DFCL_FILL_DATA;
        t->data = x;
    }
    t = dfcl_case_add(c, "out", &p->out, DFCL_F32, n, DFCL_OUT);
    t->tol = dfcl_attn_case_tol(&k, 1e-5);
    const bool with_lse = index % 4 != 3; /* sampling does not ask for it */
    if (with_lse) {
        t = dfcl_case_add(c, "lse", &p->lse, DFCL_F32, n / (uint64_t)k.D, DFCL_OUT);
        t->tol = k.bf16 && !k.exact ? 0x1p-7 : 1e-5;
    }
    snprintf(c->label, sizeof c->label, "%s%s", k.label, with_lse ? "" : " no lse");
}

static double flops(const void *params) {
    const struct dfcl_attn_fwd *p = params;
    return 4.0 * p->B * p->H * p->T * (double)p->T * p->D;
}
static double bytes(const void *params) {
    const struct dfcl_attn_fwd *p = params;
    return 4.0 * p->B * p->T * p->H * (4.0 * p->D + (p->lse.mem ? 1 : 0));
}

const struct dfcl_op dfcl_op_attn_fwd = {
    .name = "attn_fwd",
    .params_size = sizeof(struct dfcl_attn_fwd),
    .variants = variants,
    .variant_count = (int)DFCL_COUNT(variants),
    .check_cases = DFCL_ATTN_CHECK_CASES,
    .bench_cases = DFCL_ATTN_BENCH_CASES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
