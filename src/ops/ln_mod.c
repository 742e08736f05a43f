/* LayerNorm without affine part, followed by adaLN's modulation per sample, and its backward. */
#include <math.h>

#include "ops/ops.h"

/* ---- reference ---- */

static dfcl_status ln_mod_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *shift = dfcl_host_ptr(dev, p->shift), *scale = dfcl_host_ptr(dev, p->scale);
    float *y = dfcl_host_ptr(dev, p->y), *stats = dfcl_host_ptr(dev, p->stats);
    for (int m = 0; m < p->M; m++) {
        const float *xr = x + (int64_t)m * p->N;
        int64_t mod = m / p->T * p->mod_stride;
        double mean = 0, var = 0;
        for (int n = 0; n < p->N; n++)
            mean += xr[n];
        mean /= p->N;
        for (int n = 0; n < p->N; n++)
            var += (xr[n] - mean) * (xr[n] - mean);
        double rstd = 1.0 / sqrt(var / p->N + (double)p->eps);
        for (int n = 0; n < p->N; n++) {
            double h = (xr[n] - mean) * rstd;
            y[(int64_t)m * p->N + n] = (float)(h * (1.0 + (scale ? (double)scale[mod + n] : 0.0)) + (shift ? (double)shift[mod + n] : 0.0));
        }
        if (stats) {
            stats[2 * (int64_t)m] = (float)mean;
            stats[2 * (int64_t)m + 1] = (float)rstd;
        }
    }
    return DFCL_OK;
}

static void bwd_columns_host(const struct dfcl_ln_mod_bwd *p, const float *x, const float *stats, const float *dy, float *dshift,
                             float *dscale) {
    for (int s = 0; s < p->M / p->T; s++)
        for (int n = 0; n < p->N; n++) {
            double sum = 0, sum_h = 0;
            for (int64_t m = (int64_t)s * p->T; m < (int64_t)(s + 1) * p->T; m++) {
                double d = dy[m * p->N + n];
                sum += d;
                sum_h += d * ((double)x[m * p->N + n] - stats[2 * m]) * stats[2 * m + 1];
            }
            if (dshift)
                dshift[s * p->dmod_stride + n] = (float)sum;
            if (dscale)
                dscale[s * p->dmod_stride + n] = (float)sum_h;
        }
}

static dfcl_status ln_mod_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ln_mod_bwd *p = params;
    const float *x = dfcl_host_ptr(dev, p->x), *stats = dfcl_host_ptr(dev, p->stats), *scale = dfcl_host_ptr(dev, p->scale);
    const float *dy = dfcl_host_ptr(dev, p->dy);
    float *dx = dfcl_host_ptr(dev, p->dx), *dshift = dfcl_host_ptr(dev, p->dshift), *dscale = dfcl_host_ptr(dev, p->dscale);
    if (dshift || dscale)
        bwd_columns_host(p, x, stats, dy, dshift, dscale);
    if (!dx)
        return DFCL_OK;
    for (int64_t m = 0; m < p->M; m++) {
        const float *xr = x + m * p->N, *dr = dy + m * p->N;
        const float *sc = scale ? scale + m / p->T * p->mod_stride : NULL;
        double mean = stats[2 * m], rstd = stats[2 * m + 1], a = 0, b = 0;
        for (int n = 0; n < p->N; n++) {
            double d = dr[n] * (1.0 + (sc ? (double)sc[n] : 0.0));
            a += d;
            b += d * (xr[n] - mean) * rstd;
        }
        a /= p->N;
        b /= p->N;
        for (int n = 0; n < p->N; n++) {
            double d = dr[n] * (1.0 + (sc ? (double)sc[n] : 0.0));
            double g = rstd * (d - a - (xr[n] - mean) * rstd * b);
            float *out = &dx[m * p->N + n];
            *out = (float)(p->accumulate ? *out + g : g);
        }
    }
    return DFCL_OK;
}

/* ---- rows ---- */

static double fwd_flops(const void *params) {
    const struct dfcl_ln_mod *p = params;
    return 8.0 * p->M * p->N;
}
static double fwd_bytes(const void *params) {
    const struct dfcl_ln_mod *p = params;
    return 4.0 * (2.0 * p->M * p->N + 2.0 * p->M / p->T * p->N + (p->stats.mem ? 2.0 * p->M : 0.0));
}
static double bwd_flops(const void *params) {
    const struct dfcl_ln_mod_bwd *p = params;
    return 16.0 * p->M * p->N;
}
static double bwd_bytes(const void *params) {
    const struct dfcl_ln_mod_bwd *p = params;
    return 4.0 * ((p->accumulate ? 4.0 : 3.0) * p->M * p->N + 3.0 * p->M / p->T * p->N + 2.0 * p->M);
}

static const struct dfcl_variant fwd_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = ln_mod_host},
};
static const struct dfcl_variant bwd_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = ln_mod_bwd_host},
};

const struct dfcl_op dfcl_op_ln_mod = {
    .name = "ln_mod",
    .params_size = sizeof(struct dfcl_ln_mod),
    .variants = fwd_variants,
    .variant_count = DFCL_COUNT(fwd_variants),
    .flops = fwd_flops,
    .bytes = fwd_bytes,
};
const struct dfcl_op dfcl_op_ln_mod_bwd = {
    .name = "ln_mod_bwd",
    .params_size = sizeof(struct dfcl_ln_mod_bwd),
    .variants = bwd_variants,
    .variant_count = DFCL_COUNT(bwd_variants),
    .flops = bwd_flops,
    .bytes = bwd_bytes,
};
