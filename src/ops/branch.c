/* A residual branch with adaLN's gate and DiffFit's gammas: the unfused forward, and the backward with its reductions. */
#include "ops/ops.h"

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
            double f = (gate ? (double)gate[s * p->gate_stride + n] : 1.0) * (go ? (double)go[n] : 1.0) * (gi ? (double)gi[n] : 1.0);
            out[m * p->N + n] = (float)(res[m * p->N + n] + f * v[m * p->N + n]);
        }
    }
    return DFCL_OK;
}

static dfcl_status branch_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_branch_bwd *p = params;
    const float *dz = dfcl_host_ptr(dev, p->dz), *v = dfcl_host_ptr(dev, p->v), *gate = dfcl_host_ptr(dev, p->gate);
    const float *gamma_in = dfcl_host_ptr(dev, p->gamma_in), *gamma_out = dfcl_host_ptr(dev, p->gamma_out);
    float *dv = dfcl_host_ptr(dev, p->dv), *dgate = dfcl_host_ptr(dev, p->dgate), *dbias = dfcl_host_ptr(dev, p->dbias);
    float *dgamma_in = dfcl_host_ptr(dev, p->dgamma_in), *dgamma_out = dfcl_host_ptr(dev, p->dgamma_out);
    if (!v && (dgate || dgamma_in || dgamma_out))
        return dfcl_fail(err, DFCL_ERROR, "v is absent, but dgate, dgamma_in and dgamma_out need it");
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
    {.name = "host", .supports = dfcl_supports_host, .launch = gated_residual_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = branch_bwd_host},
};

const struct dfcl_op dfcl_op_gated_residual = {
    .name = "gated_residual",
    .params_size = sizeof(struct dfcl_gated_residual),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_branch_bwd = {
    .name = "branch_bwd",
    .params_size = sizeof(struct dfcl_branch_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
