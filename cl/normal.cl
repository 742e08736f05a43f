/* Philox normals with the bits of dfcl_normals (src/base/philox.c): the same exactly rounded operations in the same order. Only +, *, fma and
 * integers; contraction is off in the prelude. */

DFCL_FN float normal_uniform24(uint x) {
    return (float)((x >> 8) + 1u) * 5.9604644775390625e-8f; /* 2^-24 */
}

DFCL_FN float normal_minus2log(float u) {
    uint b = as_uint(u);
    int e = (int)(b >> 23) - 126;
    float m = as_float((b & 0x007fffffu) | 0x3f000000u);
    if (m < 0.70710678118654752f) {
        e -= 1;
        m = m + m;
    }
    float f = m - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = fma(p, f, -1.1514610310e-1f);
    p = fma(p, f, 1.1676998740e-1f);
    p = fma(p, f, -1.2420140846e-1f);
    p = fma(p, f, 1.4249322787e-1f);
    p = fma(p, f, -1.6668057665e-1f);
    p = fma(p, f, 2.0000714765e-1f);
    p = fma(p, f, -2.4999993993e-1f);
    p = fma(p, f, 3.3333331174e-1f);
    float y = (f * z) * p;
    float fe = (float)e;
    y = fma(fe, -2.12194440e-4f, y);
    y = fma(z, -0.5f, y);
    y = f + y;
    y = fma(fe, 0.693359375f, y);
    return -2.0f * y;
}

DFCL_FN float normal_root(float x) {
    if (!(x > 0.0f))
        return 0.0f;
    float r = as_float(0x5f3759dfu - (as_uint(x) >> 1));
    float h = -0.5f * x;
    for (int i = 0; i < 4; ++i) {
        float t = r * r;
        t = fma(h, t, 1.5f);
        r = r * t;
    }
    float s = x * r;
    float d = fma(-s, s, x);
    return fma(0.5f * r, d, s);
}

/* Two normals from two words: r cos(2 pi u2), r sin(2 pi u2). */
DFCL_FN float2 normal_pair(uint w0, uint w1) {
    float r = normal_root(normal_minus2log(normal_uniform24(w0)));
    float u = normal_uniform24(w1);
    int q = (int)fma(u, 4.0f, 0.5f);
    float t = fma((float)q, -0.25f, u);
    float a = t * 6.28318530717958648f, z = a * a;
    float s = 2.7525562e-6f;
    s = fma(s, z, -1.9840874e-4f);
    s = fma(s, z, 8.3333310e-3f);
    s = fma(s, z, -1.6666667e-1f);
    s = fma(s * z, a, a);
    float c = 2.4760495e-5f;
    c = fma(c, z, -1.3888378e-3f);
    c = fma(c, z, 4.1666638e-2f);
    c = fma(c, z, -0.5f);
    c = fma(c, z, 1.0f);
    float sn = q & 1 ? c : s, cs = q & 1 ? s : c; /* quadrants 0..3: (s, c), (c, -s), (-s, -c), (-c, s) */
    if (q & 2)
        sn = -sn;
    if ((q + 1) & 2)
        cs = -cs;
    return F2(r * cs, r * sn);
}

/* out[b][0..n): normals of sample id[b]; counter = (element / 4, sample, step, stream). One work-item makes four values; groups: x over quads,
 * y over samples. */
DFCL_KERNEL(64, 1, 1) normal(GLOBAL const uint *id, dfcl_i64 id_off, GLOBAL float *out, dfcl_i64 out_off, int n, uint key_lo, uint key_hi,
                             uint stream, uint step) {
    int quad = GRP(0) * 64 + LID(0), b = GRP(1);
    if (quad >= n / 4 + (n % 4 != 0))
        return;
    uint c0 = (uint)quad, c1 = id[id_off + b], c2 = step, c3 = stream, k0 = key_lo, k1 = key_hi;
    for (int r = 0; r < 10; ++r) {
        dfcl_u64 p = (dfcl_u64)0xD2511F53u * c0, q = (dfcl_u64)0xCD9E8D57u * c2;
        uint n0 = (uint)(q >> 32) ^ c1 ^ k0, n2 = (uint)(p >> 32) ^ c3 ^ k1;
        c1 = (uint)q;
        c3 = (uint)p;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    float2 u = normal_pair(c0, c1), v = normal_pair(c2, c3);
    GLOBAL float *o = out + out_off + (dfcl_i64)b * n + 4 * (dfcl_i64)quad;
    int left = n - 4 * quad;
    o[0] = u.x;
    if (left > 1)
        o[1] = u.y;
    if (left > 2)
        o[2] = v.x;
    if (left > 3)
        o[3] = v.y;
}
