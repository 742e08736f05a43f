#include "data/crop.h"

#include <math.h>
#include <string.h>

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

static uint8_t round8(int64_t v) {
    v = (v + (1 << (FRACTION - 1))) >> FRACTION;
    return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)v;
}

dfcl_status dfcl_resample(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, enum dfcl_filter filter,
                          uint8_t *dst, int dw, int dh, dfcl_error *err) {
    if (w < 1 || h < 1 || dw < 1 || dh < 1 || c < 1 || c > 4)
        return dfcl_fail(err, DFCL_USAGE, "resize: %dx%d with %d channels to %dx%d", w, h, c, dw, dh);
    struct taps tx = {0}, ty = {0};
    uint8_t *mid = NULL;
    dfcl_status s = taps_make(ctx, &tx, w, dw, filter, err);
    if (!s)
        s = taps_make(ctx, &ty, h, dh, filter, err);
    if (s)
        goto out;
    size_t row = (size_t)dw * (size_t)c;
    mid = dfcl_calloc(ctx, (size_t)h, row, err);
    if (!mid) {
        s = DFCL_NOMEM;
        goto out;
    }
    for (int y = 0; y < h; y++)
        for (int x = 0; x < dw; x++) {
            const int32_t *wt = tx.weight + (size_t)x * (size_t)tx.taps;
            int lo = tx.first[x], n = DFCL_MIN(tx.taps, w - lo);
            for (int k = 0; k < c; k++) {
                const uint8_t *p = src + ((size_t)y * (size_t)w + (size_t)lo) * (size_t)c + k;
                int64_t v = 0;
                for (int i = 0; i < n; i++)
                    v += (int64_t)wt[i] * p[(size_t)i * (size_t)c];
                mid[(size_t)y * row + (size_t)x * (size_t)c + (size_t)k] = round8(v);
            }
        }
    for (int y = 0; y < dh; y++) {
        const int32_t *wt = ty.weight + (size_t)y * (size_t)ty.taps;
        int lo = ty.first[y], n = DFCL_MIN(ty.taps, h - lo);
        for (size_t x = 0; x < row; x++) {
            int64_t v = 0;
            for (int i = 0; i < n; i++)
                v += (int64_t)wt[i] * mid[(size_t)(lo + i) * row + x];
            dst[(size_t)y * row + x] = round8(v);
        }
    }
out:
    taps_free(ctx, &tx);
    taps_free(ctx, &ty);
    dfcl_free(ctx, mid);
    return s;
}

/* Python's round(): halves to even, as the original computes its sizes with. */
static int round_even(double v) {
    double f = floor(v), d = v - f;
    int i = (int)f;
    return d > 0.5 || (d == 0.5 && i % 2) ? i + 1 : i;
}

dfcl_status dfcl_center_crop(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, int side, uint8_t *out,
                             dfcl_error *err) {
    if (w < 1 || h < 1 || c < 1 || c > 4 || side < 1)
        return dfcl_fail(err, DFCL_USAGE, "crop: %dx%d with %d channels to %d", w, h, c, side);
    const uint8_t *cur = src;
    uint8_t *own = NULL, *next;
    dfcl_status s = DFCL_OK;
    while (DFCL_MIN(w, h) / 2 >= side) {
        next = dfcl_calloc(ctx, (size_t)(w / 2) * (size_t)(h / 2), (size_t)c, err);
        s = next ? dfcl_resample(ctx, cur, w, h, c, DFCL_FILTER_BOX, next, w / 2, h / 2, err) : DFCL_NOMEM;
        dfcl_free(ctx, own);
        own = next;
        cur = own;
        if (s)
            goto out;
        w /= 2;
        h /= 2;
    }
    double scale = (double)side / DFCL_MIN(w, h);
    int nw = DFCL_MAX(round_even(w * scale), side), nh = DFCL_MAX(round_even(h * scale), side);
    if (nw != w || nh != h) {
        size_t bytes;
        next = dfcl_mul_size((size_t)nw, (size_t)nh, &bytes) ? dfcl_calloc(ctx, bytes, (size_t)c, err) : NULL;
        s = next ? dfcl_resample(ctx, cur, w, h, c, DFCL_FILTER_BICUBIC, next, nw, nh, err) : DFCL_NOMEM;
        dfcl_free(ctx, own);
        own = next;
        cur = own;
        if (s)
            goto out;
    }
    int x0 = (nw - side) / 2, y0 = (nh - side) / 2;
    for (int y = 0; y < side; y++)
        memcpy(out + (size_t)y * (size_t)side * (size_t)c, cur + ((size_t)(y0 + y) * (size_t)nw + (size_t)x0) * (size_t)c,
               (size_t)side * (size_t)c);
out:
    dfcl_free(ctx, own);
    return s;
}
