/* Pictures to rows of patches and back: pure moves. */
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

/* ---- reference ---- */

static dfcl_status patchify_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_patchify *p = params;
    const float *img = dfcl_host_ptr(dev, p->img);
    float *cols = dfcl_host_ptr(dev, p->cols);
    int n = p->W / p->p, m = p->H / p->p;
    for (int b = 0; b < p->B; b++)
        for (int c = 0; c < p->C; c++)
            for (int y = 0; y < p->H; y++)
                for (int x = 0; x < p->W; x++) {
                    int64_t row = ((int64_t)b * m + y / p->p) * n + x / p->p;
                    cols[((row * p->C + c) * p->p + y % p->p) * p->p + x % p->p] = *img++;
                }
    return DFCL_OK;
}

static dfcl_status unpatchify_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_unpatchify *p = params;
    float *img = dfcl_host_ptr(dev, p->img), *tok = dfcl_host_ptr(dev, p->tok);
    int n = p->W / p->p, m = p->H / p->p;
    for (int b = 0; b < p->B; b++)
        for (int c = 0; c < p->C; c++)
            for (int y = 0; y < p->H; y++)
                for (int x = 0; x < p->W; x++) {
                    int64_t row = ((int64_t)b * m + y / p->p) * n + x / p->p;
                    float *t = &tok[((row * p->p + y % p->p) * p->p + x % p->p) * p->C + c];
                    if (p->backward)
                        *t = *img++;
                    else
                        *img++ = *t;
                }
    return DFCL_OK;
}

/* ---- kernels ---- */

static dfcl_status move(struct dfcl_device *dev, const char *name, struct dfcl_ref src, struct dfcl_ref dst, int B, int C, int H, int W,
                        int p, dfcl_error *err) {
    int64_t blocks = dfcl_ceil_div((int64_t)C * H * W, 256);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, src, 4);
    dfcl_args_ref(&a, dst, 4);
    dfcl_args_i32(&a, C);
    dfcl_args_i32(&a, H);
    dfcl_args_i32(&a, W);
    dfcl_args_i32(&a, p);
    dfcl_args_i32(&a, (int32_t)blocks);
    return dfcl_launch_kernel(dev, "patch", name, NULL, B * blocks, 1, 1, &a, err);
}
static dfcl_status patchify_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_patchify *p = params;
    return move(dev, "patchify", p->img, p->cols, p->B, p->C, p->H, p->W, p->p, err);
}
static dfcl_status unpatchify_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_unpatchify *p = params;
    return p->backward ? move(dev, "unpatchify_back", p->img, p->tok, p->B, p->C, p->H, p->W, p->p, err)
                       : move(dev, "unpatchify", p->tok, p->img, p->B, p->C, p->H, p->W, p->p, err);
}

/* ---- cases: bit-exact ---- */

static const struct {
    int B, C, H, W, p;
    bool backward; /* unpatchify only */
} cases[] = {
    {1, 1, 1, 1, 1, false},   {2, 1, 1, 1, 1, true},  {3, 1, 16, 16, 2, false}, {2, 4, 8, 8, 2, true},   {1, 4, 8, 8, 8, true},
    {2, 3, 12, 12, 4, false}, {5, 3, 9, 9, 3, true},  {3, 8, 8, 8, 2, false},   {1, 4, 32, 32, 2, true}, {3, 3, 6, 10, 2, true},
    {2, 4, 20, 8, 4, false},  {2, 1, 3, 21, 3, true}, /* benchmarks: */
    {128, 1, 16, 16, 2, false}, {1, 8, 32, 32, 2, false}, {128, 2, 16, 16, 2, true},
};
enum { BENCHES = 3, CHECKS = DFCL_COUNT(cases) - BENCHES };

static void patchify_case(struct dfcl_case *c, int i) {
    struct dfcl_patchify *p = (struct dfcl_patchify *)c->params;
    p->B = cases[i].B, p->C = cases[i].C, p->H = cases[i].H, p->W = cases[i].W, p->p = cases[i].p;
    snprintf(c->label, sizeof c->label, "B=%d C=%d H=%d W=%d p=%d", p->B, p->C, p->H, p->W, p->p);
    uint64_t count = (uint64_t)p->B * (uint64_t)p->C * (uint64_t)p->H * (uint64_t)p->W;
    dfcl_case_add(c, "img", &p->img, DFCL_F32, count, DFCL_IN);
    dfcl_case_add(c, "cols", &p->cols, DFCL_F32, count, DFCL_OUT)->tol = 0;
}

static void unpatchify_case(struct dfcl_case *c, int i) {
    struct dfcl_unpatchify *p = (struct dfcl_unpatchify *)c->params;
    p->B = cases[i].B, p->C = cases[i].C, p->H = cases[i].H, p->W = cases[i].W, p->p = cases[i].p, p->backward = cases[i].backward;
    snprintf(c->label, sizeof c->label, "B=%d C=%d H=%d W=%d p=%d%s", p->B, p->C, p->H, p->W, p->p, p->backward ? " backward" : "");
    uint64_t count = (uint64_t)p->B * (uint64_t)p->C * (uint64_t)p->H * (uint64_t)p->W;
    dfcl_case_add(c, "tok", &p->tok, DFCL_F32, count, p->backward ? DFCL_OUT : DFCL_IN)->tol = 0;
    dfcl_case_add(c, "img", &p->img, DFCL_F32, count, p->backward ? DFCL_IN : DFCL_OUT)->tol = 0;
}

/* ---- rows ---- */

static double no_flops(const void *params) {
    return 0;
}
static double patchify_bytes(const void *params) {
    const struct dfcl_patchify *p = params;
    return 8.0 * p->B * p->C * p->H * p->W;
}
static double unpatchify_bytes(const void *params) {
    const struct dfcl_unpatchify *p = params;
    return 8.0 * p->B * p->C * p->H * p->W;
}

static const struct dfcl_variant patchify_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = patchify_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = patchify_host},
};
static const struct dfcl_variant unpatchify_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = unpatchify_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = unpatchify_host},
};

const struct dfcl_op dfcl_op_patchify = {
    .name = "patchify",
    .params_size = sizeof(struct dfcl_patchify),
    .variants = patchify_variants,
    .variant_count = DFCL_COUNT(patchify_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = patchify_case,
    .flops = no_flops,
    .bytes = patchify_bytes,
};
const struct dfcl_op dfcl_op_unpatchify = {
    .name = "unpatchify",
    .params_size = sizeof(struct dfcl_unpatchify),
    .variants = unpatchify_variants,
    .variant_count = DFCL_COUNT(unpatchify_variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = unpatchify_case,
    .flops = no_flops,
    .bytes = unpatchify_bytes,
};
