#include "data/crop.h"

#include <math.h>
#include <string.h>

#include "base/philox.h"

#define MAX_SIDE 65536 /* of a crop */

static double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0)
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

/* Weights of every output position along one axis: `taps` per position, first source index in first[]. In fixed point, as Pillow
 * has them: the same bytes from every compiler, and from Pillow. */
#define FRACTION 22
struct taps {
    int taps;
    int *first;
    int32_t *weight; /* [n][taps], rows sum to 1 << FRACTION up to rounding */
};

static void taps_free(const dfcl_context *ctx, struct taps *t) {
    dfcl_free(ctx, t->first);
    dfcl_free(ctx, t->weight);
    memset(t, 0, sizeof *t);
}

static dfcl_status taps_make(const dfcl_context *ctx, struct taps *t, int from, int to, enum dfcl_filter filter, dfcl_error *err) {
    double scale = (double)from / to, wide = scale < 1.0 ? 1.0 : scale;
    double support = (filter == DFCL_FILTER_BOX ? 0.5 : 2.0) * wide;
    size_t n;
    memset(t, 0, sizeof *t);
    t->taps = (int)ceil(support) * 2 + 1;
    if (!dfcl_mul_size((size_t)to, (size_t)t->taps, &n))
        return dfcl_fail(err, DFCL_NOMEM, "picture too large to resize: %d to %d", from, to);
    t->first = dfcl_calloc(ctx, (size_t)to, sizeof *t->first, err);
    t->weight = dfcl_calloc(ctx, n, sizeof *t->weight, err);
    double *w = dfcl_calloc(ctx, (size_t)t->taps, sizeof *w, err);
    if (!t->first || !t->weight || !w) {
        dfcl_free(ctx, w);
        taps_free(ctx, t);
        return DFCL_NOMEM;
    }
    for (int i = 0; i < to; i++) {
        double center = (i + 0.5) * scale, sum = 0.0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        lo = DFCL_MAX(lo, 0);
        hi = DFCL_MIN(hi, from);
        int32_t *fixed = t->weight + (size_t)i * (size_t)t->taps;
        for (int k = 0; k < hi - lo; k++) {
            double x = (k + lo - center + 0.5) / wide;
            w[k] = filter == DFCL_FILTER_BOX ? box(x) : bicubic(x);
            sum += w[k];
        }
        for (int k = 0; k < hi - lo; k++)
            fixed[k] = (int32_t)lround(w[k] / sum * (1 << FRACTION));
        t->first[i] = lo;
    }
    dfcl_free(ctx, w);
    return DFCL_OK;
}

/* 255 times the weights' absolute sum, at most 1.4 with these filters, stays below 2^31. */
static inline uint8_t round8(int32_t v) {
    v = (v + (1 << (FRACTION - 1))) >> FRACTION;
    return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)v;
}

/* One row to dw columns. Called with c as a constant, so that the compiler keeps the sums in registers. */
static inline void resample_row(const uint8_t *src, int w, const int c, const struct taps *t, uint8_t *dst, int dw) {
    for (int x = 0; x < dw; x++) {
        const int32_t *wt = t->weight + (size_t)x * (size_t)t->taps;
        const uint8_t *p = src + (size_t)t->first[x] * (size_t)c;
        int n = DFCL_MIN(t->taps, w - t->first[x]);
        int32_t v[4] = {0};
        for (int i = 0; i < n; i++, p += c)
            for (int k = 0; k < c; k++)
                v[k] += wt[i] * p[k];
        for (int k = 0; k < c; k++)
            *dst++ = round8(v[k]);
    }
}

static void resample_rows(const uint8_t *src, int w, int h, int c, const struct taps *t, uint8_t *dst, int dw) {
    const size_t from = (size_t)w * (size_t)c, to = (size_t)dw * (size_t)c;
    for (int y = 0; y < h; y++, src += from, dst += to)
        if (c == 1)
            resample_row(src, w, 1, t, dst, dw);
        else if (c == 3)
            resample_row(src, w, 3, t, dst, dw);
        else
            resample_row(src, w, c, t, dst, dw);
}

dfcl_status dfcl_resample(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, enum dfcl_filter filter,
                          uint8_t *dst, int dw, int dh, dfcl_error *err) {
    if (w < 1 || h < 1 || dw < 1 || dh < 1 || c < 1 || c > 4)
        return dfcl_fail(err, DFCL_USAGE, "resize: %dx%d with %d channels to %dx%d", w, h, c, dw, dh);
    struct taps tx = {0}, ty = {0};
    uint8_t *mid = NULL;
    int32_t *sum = NULL;
    dfcl_status s = taps_make(ctx, &tx, w, dw, filter, err);
    if (!s)
        s = taps_make(ctx, &ty, h, dh, filter, err);
    if (s)
        goto out;
    size_t row = (size_t)dw * (size_t)c;
    mid = dfcl_calloc(ctx, (size_t)h, row, err);
    sum = dfcl_calloc(ctx, row, sizeof *sum, err);
    if (!mid || !sum) {
        s = DFCL_NOMEM;
        goto out;
    }
    resample_rows(src, w, h, c, &tx, mid, dw);
    for (int y = 0; y < dh; y++) {
        const int32_t *wt = ty.weight + (size_t)y * (size_t)ty.taps;
        int lo = ty.first[y], n = DFCL_MIN(ty.taps, h - lo);
        memset(sum, 0, row * sizeof *sum);
        for (int i = 0; i < n; i++)
            for (size_t x = 0; x < row && wt[i]; x++)
                sum[x] += wt[i] * mid[(size_t)(lo + i) * row + x];
        for (size_t x = 0; x < row; x++)
            dst[(size_t)y * row + x] = round8(sum[x]);
    }
out:
    taps_free(ctx, &tx);
    taps_free(ctx, &ty);
    dfcl_free(ctx, mid);
    dfcl_free(ctx, sum);
    return s;
}

/* Python's round(): halves to even, as the original computes its sizes with. */
static int round_even(double v) {
    double f = floor(v), d = v - f;
    int i = (int)f;
    return d > 0.5 || (d == 0.5 && i % 2) ? i + 1 : i;
}

/* Halved while both sides are at least twice those wanted, then bicubic until one is the wanted and the other no less. *out is src where nothing changes, else
 * *own. */
static dfcl_status fit(const dfcl_context *ctx, const uint8_t *src, int *w, int *h, int c, int ow, int oh, const uint8_t **out,
                       uint8_t **own, dfcl_error *err) {
    *out = src;
    for (;;) {
        bool halve = *w / 2 >= ow && *h / 2 >= oh;
        double scale = DFCL_MAX((double)ow / *w, (double)oh / *h);
        int nw = halve ? *w / 2 : DFCL_MAX(round_even(*w * scale), ow), nh = halve ? *h / 2 : DFCL_MAX(round_even(*h * scale), oh);
        if (nw == *w && nh == *h)
            return DFCL_OK;
        size_t n;
        if (!dfcl_mul_size((size_t)nw, (size_t)nh, &n))
            return dfcl_fail(err, DFCL_NOMEM, "picture too large to resize: %d x %d to %d x %d", *w, *h, nw, nh);
        uint8_t *next = dfcl_calloc(ctx, n, (size_t)c, err);
        if (!next)
            return DFCL_NOMEM;
        dfcl_status s = dfcl_resample(ctx, *out, *w, *h, c, halve ? DFCL_FILTER_BOX : DFCL_FILTER_BICUBIC, next, nw, nh, err);
        dfcl_free(ctx, *own);
        *out = *own = next;
        *w = nw;
        *h = nh;
        if (s || !halve)
            return s;
    }
}

static void cut(const uint8_t *src, int w, int c, int x0, int y0, int ow, int oh, uint8_t *out) {
    const size_t row = (size_t)ow * (size_t)c;
    for (int y = 0; y < oh; y++)
        memcpy(out + (size_t)y * row, src + ((size_t)(y0 + y) * (size_t)w + (size_t)x0) * (size_t)c, row);
}

static dfcl_status check(int w, int h, int c, int ow, int oh, dfcl_error *err) {
    if (w < 1 || h < 1 || c < 1 || c > 4 || ow < 1 || ow > MAX_SIDE || oh < 1 || oh > MAX_SIDE)
        return dfcl_fail(err, DFCL_USAGE, "crop: %dx%d with %d channels to %dx%d", w, h, c, ow, oh);
    return DFCL_OK;
}

dfcl_status dfcl_center_crop(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, int ow, int oh, uint8_t *out,
                             dfcl_error *err) {
    const uint8_t *cur;
    uint8_t *own = NULL;
    dfcl_status s = check(w, h, c, ow, oh, err);
    if (!s)
        s = fit(ctx, src, &w, &h, c, ow, oh, &cur, &own, err);
    if (!s)
        cut(cur, w, c, (w - ow) / 2, (h - oh) / 2, ow, oh, out);
    dfcl_free(ctx, own);
    return s;
}

dfcl_status dfcl_random_crop(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, int ow, int oh,
                             const struct dfcl_crop_draw *draw, uint8_t *out, dfcl_error *err) {
    const uint8_t *cur;
    uint8_t *own = NULL;
    dfcl_status s = check(w, h, c, ow, oh, err);
    if (s)
        return s;
    const int side = DFCL_MIN(ow, oh), largest = (5 * side + 3) / 4; /* ceil(side / 0.8) */
    int shorter = side + (int)dfcl_uniform_int(draw->seed, DFCL_STREAM_CROP, draw->step, draw->sample, 0, (uint32_t)(largest - side + 1));
    /* the other side in proportion, no less than wanted since shorter >= side */
    const int tw = (int)(((int64_t)ow * shorter + side / 2) / side), th = (int)(((int64_t)oh * shorter + side / 2) / side);
    s = fit(ctx, src, &w, &h, c, tw, th, &cur, &own, err);
    if (!s) {
        int y = (int)dfcl_uniform_int(draw->seed, DFCL_STREAM_CROP, draw->step, draw->sample, 1, (uint32_t)(h - oh + 1));
        int x = (int)dfcl_uniform_int(draw->seed, DFCL_STREAM_CROP, draw->step, draw->sample, 2, (uint32_t)(w - ow + 1));
        cut(cur, w, c, x, y, ow, oh, out);
    }
    dfcl_free(ctx, own);
    return s;
}
