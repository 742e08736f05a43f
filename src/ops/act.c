/* Elementwise activations and their derivatives; formulas in cl/dialect.h. */
#include <math.h>

#include "ops/ops.h"

/* ---- reference ---- */

static double act_value(enum dfcl_act act, double x) {
    if (act == DFCL_ACT_GELU_TANH)
        return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    if (act == DFCL_ACT_SILU)
        return x / (1.0 + exp(-x));
    return x;
}

static double act_slope(enum dfcl_act act, double x) {
    if (act == DFCL_ACT_GELU_TANH) {
        double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.79788456080286536 * (1.0 + 0.134145 * x * x);
    }
    if (act == DFCL_ACT_SILU) {
        double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 + x * (1.0 - s));
    }
    return 1.0;
}

static dfcl_status act_fwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_fwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *y = dfcl_host_ptr(dev, p->y);
    for (int64_t i = 0; i < p->n; i++)
        y[i] = (float)act_value(p->act, x[i]);
    return DFCL_OK;
}

static dfcl_status act_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_act_bwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *dy = dfcl_host_ptr(dev, p->dy);
    float *dx = dfcl_host_ptr(dev, p->dx);
    for (int64_t i = 0; i < p->n; i++)
        dx[i] = (float)((double)dy[i] * act_slope(p->act, x[i]));
    return DFCL_OK;
}

/* ---- rows ---- */

static double fwd_flops(const void *params) {
    return 12.0 * (double)((const struct dfcl_act_fwd *)params)->n;
}
static double fwd_bytes(const void *params) {
    return 8.0 * (double)((const struct dfcl_act_fwd *)params)->n;
}
static double bwd_flops(const void *params) {
    return 20.0 * (double)((const struct dfcl_act_bwd *)params)->n;
}
static double bwd_bytes(const void *params) {
    return 12.0 * (double)((const struct dfcl_act_bwd *)params)->n;
}

static const struct dfcl_variant fwd_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = act_fwd_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = act_bwd_host},
};

const struct dfcl_op dfcl_op_act_fwd = {
    .name = "act_fwd",
    .params_size = sizeof(struct dfcl_act_fwd),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_act_bwd = {
    .name = "act_bwd",
    .params_size = sizeof(struct dfcl_act_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
