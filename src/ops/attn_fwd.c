/* attn_fwd: softmax(q k^T * scale) v per sample and head. */
#include "ops/attn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool host_supports(const struct dfcl_device *dev, const void *params) {
    (void)params;
    return dev->be == &dfcl_backend_host;
}

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

static const struct dfcl_variant variants[] = {
    {.name = "host", .supports = host_supports, .launch = host_launch},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_attn_fwd *p = (struct dfcl_attn_fwd *)c->params;
    struct dfcl_attn_case k;
    dfcl_attn_case_get(index, &k);
    p->B = k.B, p->T = k.T, p->H = k.H, p->D = k.D;
    p->scale = 1.0f / sqrtf((float)k.D);
    const uint64_t n = (uint64_t)k.B * (uint64_t)k.T * (uint64_t)k.H * (uint64_t)k.D;
    struct dfcl_case_tensor *t = dfcl_case_add(c, "qkv", &p->qkv, DFCL_F32, 3 * n, DFCL_IN);
    if (k.mean > 0) {
        float *x = dfcl_case_data(c, 3 * n * sizeof *x);
        if (!x)
            return;
        dfcl_attn_case_fill(&k, c->seed, x);
        t->fill = DFCL_FILL_DATA;
        t->data = x;
    }
    t = dfcl_case_add(c, "out", &p->out, DFCL_F32, n, DFCL_OUT);
    t->tol = 1e-5 * (double)k.tol_factor;
    const bool with_lse = index % 4 != 3; /* sampling does not ask for it */
    if (with_lse) {
        t = dfcl_case_add(c, "lse", &p->lse, DFCL_F32, n / (uint64_t)k.D, DFCL_OUT);
        t->tol = 1e-5;
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
