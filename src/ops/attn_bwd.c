/* attn_bwd: gradients of attn_fwd with respect to q, k and v. P is recomputed from the log-sum-exp that forward kept. */
#include "ops/attn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/philox.h"

static bool host_supports(const struct dfcl_device *dev, const void *params) {
    (void)params;
    return dev->be == &dfcl_backend_host;
}

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

static const struct dfcl_variant variants[] = {
    {.name = "host", .supports = host_supports, .launch = host_launch},
};

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_attn_bwd *p = (struct dfcl_attn_bwd *)c->params;
    struct dfcl_attn_case k;
    dfcl_attn_case_get(index, &k);
    p->B = k.B, p->T = k.T, p->H = k.H, p->D = k.D;
    p->scale = 1.0f / sqrtf((float)k.D);
    const uint64_t n = (uint64_t)k.B * (uint64_t)k.T * (uint64_t)k.H * (uint64_t)k.D, rows = n / (uint64_t)k.D;
    struct dfcl_case_tensor *qkv = dfcl_case_add(c, "qkv", &p->qkv, DFCL_F32, 3 * n, DFCL_IN);
    struct dfcl_case_tensor *out = dfcl_case_add(c, "out", &p->out, DFCL_F32, n, DFCL_IN);
    struct dfcl_case_tensor *lse = dfcl_case_add(c, "lse", &p->lse, DFCL_F32, rows, DFCL_IN);
    dfcl_case_add(c, "dout", &p->dout, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "dqkv", &p->dqkv, DFCL_F32, 3 * n, DFCL_OUT)->tol = 2e-5 * (double)k.tol_factor;
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
