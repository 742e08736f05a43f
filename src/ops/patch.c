/* Pictures to rows of patches and back: pure moves. */
#include "ops/ops.h"

/* ---- reference ---- */

static dfcl_status patchify_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_patchify *p = params;
    const float *img = dfcl_host_ptr(dev, p->img);
    float *cols = dfcl_host_ptr(dev, p->cols);
    int n = p->S / p->p;
    for (int b = 0; b < p->B; b++)
        for (int c = 0; c < p->C; c++)
            for (int y = 0; y < p->S; y++)
                for (int x = 0; x < p->S; x++) {
                    int64_t row = ((int64_t)b * n + y / p->p) * n + x / p->p;
                    cols[((row * p->C + c) * p->p + y % p->p) * p->p + x % p->p] = *img++;
                }
    return DFCL_OK;
}

static dfcl_status unpatchify_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_unpatchify *p = params;
    float *img = dfcl_host_ptr(dev, p->img), *tok = dfcl_host_ptr(dev, p->tok);
    int n = p->S / p->p;
    for (int b = 0; b < p->B; b++)
        for (int c = 0; c < p->C; c++)
            for (int y = 0; y < p->S; y++)
                for (int x = 0; x < p->S; x++) {
                    int64_t row = ((int64_t)b * n + y / p->p) * n + x / p->p;
                    float *t = &tok[((row * p->p + y % p->p) * p->p + x % p->p) * p->C + c];
                    if (p->backward)
                        *t = *img++;
                    else
                        *img++ = *t;
                }
    return DFCL_OK;
}

/* ---- rows ---- */

static double no_flops(const void *params) {
    return 0;
}
static double patchify_bytes(const void *params) {
    const struct dfcl_patchify *p = params;
    return 8.0 * p->B * p->C * p->S * p->S;
}
static double unpatchify_bytes(const void *params) {
    const struct dfcl_unpatchify *p = params;
    return 8.0 * p->B * p->C * p->S * p->S;
}

static const struct dfcl_variant patchify_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = patchify_host},
};
static const struct dfcl_variant unpatchify_variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = unpatchify_host},
};

const struct dfcl_op dfcl_op_patchify = {
    .name = "patchify",
    .params_size = sizeof(struct dfcl_patchify),
    .variants = patchify_variants,
    .variant_count = DFCL_COUNT(patchify_variants),
    .flops = no_flops,
    .bytes = patchify_bytes,
};
const struct dfcl_op dfcl_op_unpatchify = {
    .name = "unpatchify",
    .params_size = sizeof(struct dfcl_unpatchify),
    .variants = unpatchify_variants,
    .variant_count = DFCL_COUNT(unpatchify_variants),
    .flops = no_flops,
    .bytes = unpatchify_bytes,
};
