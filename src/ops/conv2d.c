/* conv2d: convolution of one image in NHWC. Devices without a variant of their own read the taps in the tile loader of the linear layer. */
#include <stdio.h>

#include "ops/linear_common.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_conv2d *p = params;
    dfcl_status s = dfcl_linear_check("conv2d", 1, &p->w, p->x, err);
    if (s)
        return s;
    if (p->H < 1 || p->W < 1 || p->C < 1 || p->Ho < 1 || p->Wo < 1 || p->kh < 1 || p->kw < 1 || p->stride < 1 || p->step < 1 || p->oy < 0 ||
        p->oy >= p->step || p->ox < 0 || p->ox >= p->step || !p->out.mem)
        return dfcl_fail(err, DFCL_ERROR, "conv2d: input %dx%dx%d, output %dx%d, taps %dx%d, stride %d, step %d+%d+%d", p->H, p->W, p->C, p->Ho,
                         p->Wo, p->kh, p->kw, p->stride, p->step, p->oy, p->ox);
    if ((int64_t)p->kh * p->kw * p->C != p->w.K)
        return dfcl_fail(err, DFCL_ERROR, "conv2d: %dx%d taps of %d channels with a weight [%d,%d]", p->kh, p->kw, p->C, p->w.N, p->w.K);
    if ((int64_t)p->Ho * p->Wo > INT32_MAX / 4 || (int64_t)p->Ho * p->stride > INT32_MAX / 2 || (int64_t)p->Wo * p->stride > INT32_MAX / 2)
        return dfcl_fail(err, DFCL_ERROR, "conv2d: %dx%d positions are too many", p->Ho, p->Wo);
    return DFCL_OK;
}

/* ---- reference ---- */

static void one_position(const struct dfcl_conv2d *p, int i, int j, const float *x, const float *w, double *sum) {
    for (int n = 0; n < p->w.N; n++) {
        const float *wn = w + (int64_t)n * p->w.K;
        double s[4] = {0};
        for (int ky = 0; ky < p->kh; ky++)
            for (int kx = 0; kx < p->kw; kx++, wn += p->C) {
                int y = i * p->stride + ky - p->top, z = j * p->stride + kx - p->left;
                if (y < 0 || y >= p->H || z < 0 || z >= p->W)
                    continue;
                const float *a = x + ((int64_t)y * p->W + z) * p->C;
                for (int c = 0; c < p->C; c++)
                    s[c & 3] += (double)a[c] * wn[c];
            }
        sum[n] = (s[0] + s[1]) + (s[2] + s[3]);
    }
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_conv2d *p = params;
    const float *w;
    float *owned = NULL;
    dfcl_status s = check(params, err);
    if (s || (s = dfcl_weight_host(dev, &p->w, &w, &owned, err)) != DFCL_OK)
        return s;
    const float *x = dfcl_host_ptr(dev, p->x), *bias = dfcl_host_ptr(dev, p->bias), *res = dfcl_host_ptr(dev, p->res);
    float *out = dfcl_host_ptr(dev, p->out);
    double *sum = dfcl_calloc(dev->ctx, (size_t)p->w.N, sizeof *sum, err);
    for (int i = 0; sum && i < p->Ho; i++)
        for (int j = 0; j < p->Wo; j++) {
            int64_t at = ((int64_t)(i * p->step + p->oy) * (p->Wo * p->step) + j * p->step + p->ox) * p->w.N;
            one_position(p, i, j, x, w, sum);
            for (int n = 0; n < p->w.N; n++)
                out[at + n] = (float)(sum[n] + (bias ? (double)bias[n] : 0.0) + (res ? (double)res[at + n] : 0.0));
        }
    dfcl_free(dev->ctx, owned);
    dfcl_free(dev->ctx, sum);
    return sum ? DFCL_OK : DFCL_NOMEM;
}

/* ---- kernels ---- */

static void arguments(struct dfcl_args *a, const struct dfcl_conv2d *p, struct dfcl_weight_form w) {
    dfcl_args_ref(a, p->x, 4);
    dfcl_args_ref(a, w.ref, w.size);
    dfcl_args_ref(a, p->bias, 4);
    dfcl_args_ref(a, p->res, 4);
    dfcl_args_ref(a, p->out, 4);
    const int sizes[] = {p->H, p->W, p->C, p->Ho, p->Wo, p->w.N, p->kh, p->kw, p->stride, p->top, p->left, p->step, p->oy, p->ox};
    for (size_t i = 0; i < DFCL_COUNT(sizes); i++)
        dfcl_args_i32(a, sizes[i]);
}

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_conv2d *p = params;
    dfcl_status s = check(params, err);
    if (s)
        return s;
    struct dfcl_weight_form w = p->w.data.mem ? dfcl_weight_rows(&p->w) : dfcl_weight_panels(&p->w);
    struct dfcl_args a = {0};
    arguments(&a, p, w);
    dfcl_args_i32(&a, p->bias.mem != NULL);
    dfcl_args_i32(&a, p->res.mem != NULL);
    char options[32];
    snprintf(options, sizeof options, "-DKIND=3 -DWTYPE=%d", dfcl_portable_wtype(w));
    return dfcl_launch_kernel(dev, "linear", "conv2d", options, dfcl_ceil_div((int64_t)p->Ho * p->Wo, 64) * dfcl_ceil_div(p->w.N, 64), 1, 1, &a,
                              err);
}

static bool cpu_supports(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_conv2d *p = params;
    return dfcl_supports_cpu(dev, params) && p->w.packed.mem && p->w.dtype == DFCL_F32;
}
/* Zeros for a row of taps outside of the image. */
static uint64_t cpu_scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_conv2d *p = params;
    return 4 * (uint64_t)p->kw * (uint64_t)p->C;
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_conv2d *p = params;
    dfcl_status s = check(params, err);
    if (s || (s = dfcl_fill(dev, p->head.scratch, 0, cpu_scratch(dev, p), err)) != DFCL_OK)
        return s;
    /* As many positions as share a strip of the weight well, but few enough that every compute unit gets several items. */
    int64_t strips = dfcl_ceil_div(p->w.N, DFCL_PANEL), M = (int64_t)p->Ho * p->Wo;
    int rb = 256;
    while (rb > 16 && strips * dfcl_ceil_div(M, rb) < 4 * (int64_t)DFCL_MAX(dev->info.compute_units, 1u))
        rb /= 2;
    struct dfcl_args a = {0};
    arguments(&a, p, dfcl_weight_panels(&p->w));
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, rb);
    return dfcl_launch_kernel(dev, "conv2d_cpu", "conv2d_cpu", dfcl_cpu_options(dev), strips, dfcl_ceil_div(M, rb), 1, &a, err);
}

/* ---- cases ---- */

enum { BIAS = 1, RES = 2, IN_PLACE = 4, ROWS = 8, PANELS = 16, BOTH = ROWS | PANELS };
static const struct {
    int H, W, C, N, kh, kw, stride, top, left, Ho, Wo, step;
    unsigned flags;
    enum dfcl_dtype dtype;
} cases[] = {
    {1, 1, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1, BIAS | BOTH, DFCL_F32},
    {5, 7, 3, 50, 3, 3, 1, 1, 1, 5, 7, 1, BIAS | BOTH, DFCL_F32},
    {9, 6, 48, 130, 3, 3, 1, 1, 1, 9, 6, 1, BIAS | RES | BOTH, DFCL_F32},
    {16, 23, 33, 97, 3, 3, 1, 1, 1, 16, 23, 1, BIAS | IN_PLACE | BOTH, DFCL_F32},
    {8, 20, 17, 3, 3, 3, 1, 1, 1, 8, 20, 1, BIAS | PANELS, DFCL_F32},
    {8, 11, 20, 30, 3, 3, 1, 1, 1, 8, 11, 1, ROWS, DFCL_F32},
    {12, 10, 19, 70, 3, 3, 2, 0, 0, 6, 5, 1, BIAS | BOTH, DFCL_F32},   /* pads right and bottom only */
    {7, 9, 8, 49, 3, 3, 2, 0, 0, 3, 4, 1, BIAS | PANELS, DFCL_F32},
    {6, 5, 40, 64, 2, 2, 1, 1, 1, 6, 5, 2, BIAS | BOTH, DFCL_F32},     /* a quarter of an upsampling: the others stay as they are */
    {6, 5, 21, 64, 2, 2, 1, 0, 1, 6, 5, 2, BIAS | BOTH, DFCL_F32},
    {14, 9, 16, 52, 3, 3, 1, -2, 1, 10, 9, 1, BIAS | RES | BOTH, DFCL_F32}, /* rows from the middle of x */
    {14, 9, 16, 52, 3, 3, 1, -5, 1, 9, 9, 1, BIAS | BOTH, DFCL_F32},        /* and past its end */
    {300, 3, 5, 20, 1, 1, 1, 0, 0, 300, 3, 1, BIAS | BOTH, DFCL_F32},
    {3, 90, 130, 10, 1, 3, 1, 0, 1, 3, 90, 1, BOTH, DFCL_F32},
    {9, 6, 18, 60, 3, 3, 1, 1, 1, 9, 6, 1, BIAS | BOTH, DFCL_BF16},
    {9, 6, 18, 60, 3, 3, 1, 1, 1, 9, 6, 1, BIAS | ROWS, DFCL_F16},
    /* benchmarks: the autoencoder of Stable Diffusion at 512 pixels */
    {512, 512, 128, 128, 3, 3, 1, 1, 1, 512, 512, 1, BIAS | IN_PLACE | BOTH, DFCL_F32},
    {256, 256, 256, 256, 3, 3, 1, 1, 1, 256, 256, 1, BIAS | BOTH, DFCL_F32},
    {64, 64, 512, 512, 3, 3, 1, 1, 1, 64, 64, 1, BIAS | BOTH, DFCL_F32},
    {512, 512, 128, 128, 3, 3, 2, 0, 0, 256, 256, 1, BIAS | BOTH, DFCL_F32},
    {256, 256, 256, 256, 2, 2, 1, 1, 1, 256, 256, 2, BIAS | BOTH, DFCL_F32},
    {512, 512, 3, 128, 3, 3, 1, 1, 1, 512, 512, 1, BIAS | BOTH, DFCL_F32},
    {512, 512, 128, 3, 3, 3, 1, 1, 1, 512, 512, 1, BIAS | BOTH, DFCL_F32},
};
enum { BENCHES = 7, CHECKS = DFCL_COUNT(cases) - BENCHES };

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_conv2d *p = (struct dfcl_conv2d *)c->params;
    const unsigned f = cases[index].flags;
    p->H = cases[index].H, p->W = cases[index].W, p->C = cases[index].C;
    p->kh = cases[index].kh, p->kw = cases[index].kw, p->stride = cases[index].stride;
    p->top = cases[index].top, p->left = cases[index].left;
    p->Ho = cases[index].Ho, p->Wo = cases[index].Wo, p->step = cases[index].step;
    p->oy = p->step - 1;
    p->w.N = cases[index].N;
    p->w.K = p->kh * p->kw * p->C;
    p->w.dtype = cases[index].dtype;
    const uint64_t outs = (uint64_t)p->Ho * (uint64_t)p->Wo * (uint64_t)(p->step * p->step) * (uint64_t)p->w.N;
    snprintf(c->label, sizeof c->label, "%dx%dx%d -> %dx%dx%d taps %dx%d stride %d step %d top %d flags=%x %s", p->H, p->W, p->C, p->Ho, p->Wo,
             p->w.N, p->kh, p->kw, p->stride, p->step, p->top, f, dfcl_dtype_name(p->w.dtype));
    dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->H * (uint64_t)p->W * (uint64_t)p->C, DFCL_IN);
    dfcl_case_add_weight(c, &p->w, 0.1, f & ROWS, f & PANELS);
    if (f & BIAS)
        dfcl_case_add(c, "bias", &p->bias, DFCL_F32, (uint64_t)p->w.N, DFCL_IN);
    struct dfcl_case_tensor *out = dfcl_case_add(c, "out", &p->out, DFCL_F32, outs, f & IN_PLACE ? DFCL_INOUT : DFCL_OUT);
    out->tol = 3e-6; /* sums of up to 400 products in f32 */
    if (f & IN_PLACE)
        dfcl_case_also(c, out, &p->res);
    else if (f & RES)
        dfcl_case_add(c, "res", &p->res, DFCL_F32, outs, DFCL_IN);
}

static double flops(const void *params) {
    const struct dfcl_conv2d *p = params;
    return 2.0 * p->Ho * p->Wo * p->w.N * p->w.K;
}
static double bytes(const void *params) {
    const struct dfcl_conv2d *p = params;
    return 4.0 * ((double)p->H * p->W * p->C + (p->res.mem ? 2.0 : 1.0) * p->Ho * p->Wo * p->w.N) +
           (double)dfcl_dtype_size(p->w.dtype) * p->w.N * p->w.K;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu", .supports = cpu_supports, .scratch = cpu_scratch, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_conv2d = {
    .name = "conv2d",
    .params_size = sizeof(struct dfcl_conv2d),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = CHECKS,
    .bench_cases = BENCHES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
