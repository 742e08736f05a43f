#include "base/philox.h"

#include <math.h>
#include <string.h>

void dfcl_philox(uint64_t seed, const uint32_t counter[4], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int r = 0; r < 10; r++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void block(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, uint32_t quad, uint32_t w[4]) {
    uint32_t c[4] = {quad, sample, step, stream};
    dfcl_philox(seed, c, w);
}

static float uniform24(uint32_t x) {
    return (float)((x >> 8) + 1) * 0x1p-24f;
}

float dfcl_uniform(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, uint32_t element) {
    uint32_t w[4];
    block(seed, stream, step, sample, element / 4, w);
    return uniform24(w[element % 4]);
}

uint32_t dfcl_uniform_int(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, uint32_t element, uint32_t n) {
    uint32_t w[4];
    block(seed, stream, step, sample, element / 4, w);
    return (uint32_t)(((uint64_t)w[element % 4] * n) >> 32);
}

/* The four functions below use only exactly rounded operations (+, *, fma, and one Newton step on an integer guess for the root), so
 * they give the same bits on every device that has an exact fma. cl/normal.cl spells out the same operations in the same order. */

/* -2 ln(u), u = m 2^e in (0, 1]: m in [sqrt(1/2), sqrt(2)), ln m by the atanh series in s = (m-1)/(m+1)... without a division: a
 * degree-8 polynomial in f = m - 1 (coefficients of Cephes logf). */
static float minus2log(float u) {
    uint32_t b;
    memcpy(&b, &u, 4);
    int e = (int)(b >> 23) - 126;
    b = (b & 0x007fffffu) | 0x3f000000u;
    float m;
    memcpy(&m, &b, 4); /* [0.5, 1) */
    if (m < 0.70710678118654752f) {
        e -= 1;
        m = m + m;
    }
    float f = m - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = fmaf(p, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    float y = (f * z) * p;
    float fe = (float)e;
    y = fmaf(fe, -2.12194440e-4f, y);
    y = fmaf(z, -0.5f, y);
    y = f + y;
    y = fmaf(fe, 0.693359375f, y);
    return -2.0f * y;
}

/* sqrt(x), x >= 0: reciprocal root from the exponent trick and four Newton steps, then one correction. */
static float root(float x) {
    if (!(x > 0.0f))
        return 0.0f;
    uint32_t b;
    memcpy(&b, &x, 4);
    b = 0x5f3759dfu - (b >> 1);
    float r;
    memcpy(&r, &b, 4);
    float h = -0.5f * x;
    for (int i = 0; i < 4; i++) {
        float t = r * r;
        t = fmaf(h, t, 1.5f);
        r = r * t;
    }
    float s = x * r;
    float d = fmaf(-s, s, x);
    return fmaf(0.5f * r, d, s);
}

/* sin and cos of 2 pi u, u in (0, 1]: quadrant by q = round(4u) (exact), t = u - q/4 in [-1/8, 1/8] (exact), then Taylor polynomials
 * in a = 2 pi t. */
static void sincos2pi(float u, float *sn, float *cs) {
    int q = (int)fmaf(u, 4.0f, 0.5f);
    float t = fmaf((float)q, -0.25f, u);
    float a = t * 6.28318530717958648f, z = a * a;
    float s = 2.7525562e-6f;
    s = fmaf(s, z, -1.9840874e-4f);
    s = fmaf(s, z, 8.3333310e-3f);
    s = fmaf(s, z, -1.6666667e-1f);
    s = fmaf(s * z, a, a);
    float c = 2.4760495e-5f;
    c = fmaf(c, z, -1.3888378e-3f);
    c = fmaf(c, z, 4.1666638e-2f);
    c = fmaf(c, z, -0.5f);
    c = fmaf(c, z, 1.0f);
    switch (q & 3) {
    case 0: *sn = s; *cs = c; break;
    case 1: *sn = c; *cs = -s; break;
    case 2: *sn = -s; *cs = -c; break;
    default: *sn = -c; *cs = s; break;
    }
}

void dfcl_normals(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, float *out, size_t count) {
    for (size_t i = 0; i < count; i += 4) {
        uint32_t w[4];
        float n[4];
        block(seed, stream, step, sample, (uint32_t)(i / 4), w);
        for (int j = 0; j < 4; j += 2) {
            float r = root(minus2log(uniform24(w[j]))), s, c;
            sincos2pi(uniform24(w[j + 1]), &s, &c);
            n[j] = r * c;
            n[j + 1] = r * s;
        }
        for (size_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = n[j];
    }
}
