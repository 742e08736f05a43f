/* The variants cpu_dot of attn_fwd and attn_bwd: bf16 dot products on CPUs, cl/attn_dot_cpu.cl. */
#include <stdio.h>

#include "ops/attn.h"
#include "ops/rows.h"

enum { TK = 8, KF = 128, KB = 64, QB = 128 }; /* of cl/attn_dot_cpu.cl */

/* Its sizes that follow from the head size and the number of queries, and how the work is cut. */
struct plan {
    struct dfcl_attn_plan cut;
    int64_t tile;             /* QT: queries of a tile */
    int64_t words;            /* D2: words of a row in pairs */
    int64_t slab_width;       /* TD */
    int64_t slabs;            /* NS */
    int64_t wide;             /* NCH * CW: a row with the head size along lanes */
    int64_t dq_size, dq_count; /* backward: floats of dq of an item or a unit, and how many of them */
    char options[64];
};

static int64_t pad16(int64_t n) {
    return (n + 15) / 16 * 16;
}
static int64_t slabs_size(const struct plan *p, int64_t keys) {
    return p->slabs * (keys / 2 * p->slab_width + 16);
}

static void plan_init(struct plan *p, const struct dfcl_device *dev, int B, int T, int H, int D) {
    dfcl_attn_plan_init(&p->cut, dev, B * H, T, 32, D);
    const int vectors = T <= 16 ? 1 : 2;
    p->tile = 16 * vectors;
    p->words = (D + 1) / 2;
    p->slab_width = dfcl_ceil_div(D, 12) * 12 <= dfcl_ceil_div(D, 8) * 8 ? 12 : 8;
    p->slabs = dfcl_ceil_div(D, p->slab_width);
    const int64_t row = dfcl_ceil_div(D, 16), chunks = dfcl_ceil_div(row, 5);
    p->wide = chunks * dfcl_ceil_div(row, chunks) * 16;
    snprintf(p->options, sizeof p->options, "-DDD=%d -DNQ=%d -DDFCL_VW=16%s", D, vectors,
             dfcl_cpu_dot(dev) == DFCL_DOT_EMULATED ? " -DDFCL_DOT_EMULATE" : "");
}

/* ---- forward ---- */

static void fwd_plan(struct plan *plan, const struct dfcl_device *dev, const struct dfcl_attn_fwd *p) {
    plan_init(plan, dev, p->B, p->T, p->H, p->D);
    const int64_t keys = dfcl_ceil_div(p->T, TK) * TK, rows = plan->slabs * plan->slab_width;
    plan->cut.item_size = pad16(keys * plan->words + 16) + pad16(slabs_size(plan, keys)) +
                          (plan->words + 16 + KF + rows + 16) * plan->tile;
}

bool dfcl_attn_fwd_dot_supports(const struct dfcl_device *dev, const void *params) {
    return ((const struct dfcl_attn_fwd *)params)->bf16 && dfcl_cpu_dot(dev) != DFCL_DOT_NONE;
}

uint64_t dfcl_attn_fwd_dot_scratch(const struct dfcl_device *dev, const void *params) {
    struct plan plan;
    fwd_plan(&plan, dev, params);
    return (uint64_t)plan.cut.items * (uint64_t)plan.cut.item_size * sizeof(float);
}

dfcl_status dfcl_attn_fwd_dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_fwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct plan plan;
    fwd_plan(&plan, dev, p);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_i32(&a, p->lse.mem != NULL);
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_i64(&a, plan.cut.item_size);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.cut.parts);
    dfcl_args_i32(&a, plan.cut.size);
    dfcl_args_i32(&a, plan.cut.units);
    dfcl_args_i32(&a, plan.cut.items);
    dfcl_args_f32(&a, (float)(p->scale * 1.4426950408889634));
    return dfcl_launch_kernel(dev, "attn_dot_cpu", "attn_fwd_dot_cpu", plan.options, plan.cut.items, 1, 1, &a, err);
}

/* ---- backward ---- */

static void bwd_plan(struct plan *plan, const struct dfcl_device *dev, const struct dfcl_attn_bwd *p) {
    plan_init(plan, dev, p->B, p->T, p->H, p->D);
    const int64_t queries = dfcl_ceil_div(p->T, plan->tile) * plan->tile;
    plan->dq_size = queries * plan->slabs * plan->slab_width + 16 * plan->tile;
    plan->dq_count = plan->cut.parts > 1 ? plan->cut.units : plan->cut.items;
    plan->cut.item_size = 2 * (queries * plan->words + 16 * plan->tile) + queries * plan->wide + 2 * queries +
                          2 * pad16(KB * plan->words + 16) + pad16(slabs_size(plan, KB)) + 2 * KB * plan->wide + KB * (int64_t)QB +
                          (KB / 2 + TK) * plan->tile;
}

bool dfcl_attn_bwd_dot_supports(const struct dfcl_device *dev, const void *params) {
    return ((const struct dfcl_attn_bwd *)params)->bf16 && dfcl_cpu_dot(dev) != DFCL_DOT_NONE;
}

uint64_t dfcl_attn_bwd_dot_scratch(const struct dfcl_device *dev, const void *params) {
    struct plan plan;
    bwd_plan(&plan, dev, params);
    return (uint64_t)(plan.dq_count * plan.dq_size + plan.cut.items * plan.cut.item_size) * sizeof(float);
}

dfcl_status dfcl_attn_bwd_dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_attn_bwd *p = params;
    dfcl_status s = dfcl_attn_shape(p->B, p->T, p->H, p->D, err);
    if (s)
        return s;
    struct plan plan;
    bwd_plan(&plan, dev, p);
    struct dfcl_kernel *k, *sum = NULL;
    s = dfcl_device_kernel(dev, "attn_dot_cpu", "attn_bwd_dot_cpu", plan.options, &k, err);
    if (!s && plan.cut.parts > 1)
        s = dfcl_device_kernel(dev, "attn_dot_cpu", "attn_bwd_dq_dot_cpu", plan.options, &sum, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->qkv, sizeof(float));
    dfcl_args_ref(&a, p->out, sizeof(float));
    dfcl_args_ref(&a, p->lse, sizeof(float));
    dfcl_args_ref(&a, p->dout, sizeof(float));
    dfcl_args_ref(&a, p->dqkv, sizeof(float));
    dfcl_args_ref(&a, dfcl_ref_at(p->head.scratch, (uint64_t)(plan.dq_count * plan.dq_size) * sizeof(float)), sizeof(float));
    dfcl_args_i64(&a, plan.cut.item_size);
    dfcl_args_ref(&a, p->head.scratch, sizeof(float)); /* dq */
    dfcl_args_i64(&a, plan.dq_size);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.cut.parts);
    dfcl_args_i32(&a, plan.cut.size);
    dfcl_args_i32(&a, plan.cut.units);
    dfcl_args_i32(&a, plan.cut.items);
    dfcl_args_f32(&a, (float)(p->scale * 1.4426950408889634));
    dfcl_args_f32(&a, p->scale);
    s = dfcl_device_launch(dev, k, (const size_t[3]){(size_t)plan.cut.items, 1, 1}, &a, err);
    if (s || plan.cut.parts == 1)
        return s;
    a.n = 0;
    dfcl_args_ref(&a, p->head.scratch, sizeof(float));
    dfcl_args_i64(&a, plan.dq_size);
    dfcl_args_ref(&a, p->dqkv, sizeof(float));
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->H);
    dfcl_args_i32(&a, plan.cut.parts);
    dfcl_args_f32(&a, p->scale);
    const size_t groups[3] = {(size_t)dfcl_ceil_div(p->T, plan.tile), (size_t)p->B * (size_t)p->H, 1};
    return dfcl_device_launch(dev, sum, groups, &a, err);
}
