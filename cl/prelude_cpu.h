/* Third text of every `*_cpu.cl` program (OpenCL C only): one float vector type as wide as the processor's registers, and functions on it.
 *
 * The host passes DFCL_VW = 4, 8 or 16 (dfcl_cpu_options). Memory is read and written with vload/vstore, so 4-byte alignment is
 * enough. Only +, -, *, / and integer operations, and dfcl_vfma where a multiply-add is wanted: fma() is a slow library call on processors
 * without the instruction. */
#ifndef DFCL_VW
#define DFCL_VW 8
#endif
#if DFCL_VW == 16
typedef float16 vf;
typedef int16 vi;
#define VLD(p) vload16(0, p)
#define as_vf as_float16
#define as_vi as_int16
#elif DFCL_VW == 8
typedef float8 vf;
typedef int8 vi;
#define VLD(p) vload8(0, p)
#define as_vf as_float8
#define as_vi as_int8
#else
typedef float4 vf;
typedef int4 vi;
#define VLD(p) vload4(0, p)
#define as_vf as_float4
#define as_vi as_int4
#endif
#define VS(a) ((vf)(a))

/* Stores of a whole vector through a type that needs no more alignment than its elements: vstore of 16 is four stores of 16 bytes in PoCL. */
#define VST(p, v) dfcl_vst(v, p)
typedef vf dfcl_vf_any __attribute__((aligned(4), may_alias));
__attribute__((overloadable)) DFCL_FN void dfcl_vst(vf v, GLOBAL float *p) {
    *(GLOBAL dfcl_vf_any *)p = v;
}
__attribute__((overloadable)) DFCL_FN void dfcl_vst(vf v, __private float *p) {
    *(__private dfcl_vf_any *)p = v;
}

/* a b + c: one rounding where the processor has the instruction, two elsewhere. Scalars or vectors. */
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
#define dfcl_vfma(a, b, c) fma(a, b, c)
#else
#define dfcl_vfma(a, b, c) ((a) * (b) + (c))
#endif

/* Sum of the lanes, halves first. */
DFCL_FN float dfcl_vsum(vf v) {
#if DFCL_VW == 16
    float8 h = v.lo + v.hi;
    float4 a = h.lo + h.hi;
#elif DFCL_VW == 8
    float4 a = v.lo + v.hi;
#else
    float4 a = v;
#endif
    float2 b = a.lo + a.hi;
    return b.x + b.y;
}

/* exp: x = n ln 2 + r with |r| <= ln(2)/2, e^r by the degree-5 polynomial of Cephes expf on top of 1 + r + r^2 p, times 2^n by adding n to the
 * exponent. Relative error below 2e-7 in [-86, 88]; clamped outside (results 4e-38 and 1.6e38). NaN stays NaN. */
DFCL_FN vf dfcl_vexp(vf x) {
    x = x > VS(88.0f) ? VS(88.0f) : x;
    x = x < VS(-86.0f) ? VS(-86.0f) : x;
    vf t = dfcl_vfma(x, VS(1.44269504088896341f), VS(12582912.0f)); /* 1.5 * 2^23: the low bits of t hold n, rounded to nearest */
    vf n = t - 12582912.0f;
    vf r = dfcl_vfma(n, VS(2.12194440e-4f), dfcl_vfma(n, VS(-0.693359375f), x));
    vf p = VS(1.9875691500e-4f);
    p = dfcl_vfma(p, r, VS(1.3981999507e-3f));
    p = dfcl_vfma(p, r, VS(8.3334519073e-3f));
    p = dfcl_vfma(p, r, VS(4.1665795894e-2f));
    p = dfcl_vfma(p, r, VS(1.6666665459e-1f));
    p = dfcl_vfma(p, r, VS(5.0000001201e-1f));
    p = dfcl_vfma(p, r * r, r) + 1.0f;
    return as_vf(as_vi(p) + (as_vi(t) << 23));
}

/* The activations of dialect.h. */
DFCL_FN vf dfcl_vgelu(vf x) {
    vf u2 = x * dfcl_vfma(x * x, VS(-0.071354816272f), VS(-1.5957691216057308f)); /* -2u */
    return x / (1.0f + dfcl_vexp(u2));
}
DFCL_FN vf dfcl_vgelu_grad(vf x) {
    vf q = x * x, u2 = x * dfcl_vfma(q, VS(-0.071354816272f), VS(-1.5957691216057308f));
    vf s = 1.0f / (1.0f + dfcl_vexp(u2));
    return dfcl_vfma(s * (1.0f - s) * x, dfcl_vfma(q, VS(0.214064448817f), VS(1.5957691216057308f)), s);
}
DFCL_FN vf dfcl_vsilu(vf x) {
    return x / (1.0f + dfcl_vexp(-x));
}
DFCL_FN vf dfcl_vsilu_grad(vf x) {
    vf s = 1.0f / (1.0f + dfcl_vexp(-x));
    return s * (1.0f + x * (1.0f - s));
}

/* Products of bf16 with sums in f32, 512 bits only: a lane of 32 bits holds a pair of values, the first in its low half. Programs that use them are built
 * where the processor has avx512_bf16 (dfcl_cpu_dot), or with -DDFCL_DOT_EMULATE, which any processor runs. */
#if DFCL_VW == 16
typedef uint16 vu;
#define VLDU(p) vload16(0, p)
#define VSTU(p, v) dfcl_vstu(v, p)
typedef vu dfcl_vu_any __attribute__((aligned(4), may_alias));
__attribute__((overloadable)) DFCL_FN void dfcl_vstu(vu v, GLOBAL uint *p) {
    *(GLOBAL dfcl_vu_any *)p = v;
}
__attribute__((overloadable)) DFCL_FN void dfcl_vstu(vu v, __private uint *p) {
    *(__private dfcl_vu_any *)p = v;
}
/* f32 to bf16 in the low half of each lane, rounded to nearest even; a NaN stays one. */
DFCL_FN vu dfcl_vbf16(vf x) {
    vu u = as_uint16(x);
    vu r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return select(r, (u >> 16) | 0x40u, isnan(x));
}
#ifdef DFCL_DOT_EMULATE
#define DFCL_DOT(acc, a, b)                                                                                                                 \
    (acc) = dfcl_vfma(as_float16((a) << 16), as_float16((b) << 16), dfcl_vfma(as_float16((a) & 0xffff0000u), as_float16((b) & 0xffff0000u), acc))
/* Lane i: the pair (lo[i], hi[i]). */
DFCL_FN vu dfcl_vpair(vf lo, vf hi) {
    return dfcl_vbf16(lo) | (dfcl_vbf16(hi) << 16);
}
/* 32 values in a row: those of a, then those of b. */
DFCL_FN vu dfcl_vrow(vf a, vf b) {
    vu x = dfcl_vbf16(a), y = dfcl_vbf16(b);
    return (vu)(x.even | (x.odd << 16), y.even | (y.odd << 16));
}
#elif defined(__AVX512F__)
/* acc[i] += the two products of the pairs a[i] and b[i]; denormals count as 0. */
#define DFCL_DOT(acc, a, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b))
DFCL_FN vu dfcl_vrow(vf a, vf b) {
    vu r;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(r) : "v"(a), "v"(b));
    return r;
}
DFCL_FN vu dfcl_vpair(vf lo, vf hi) {
    vu r = dfcl_vrow(lo, hi);
    return convert_uint16(as_ushort16(r.lo)) | (convert_uint16(as_ushort16(r.hi)) << 16);
}
#endif
#endif

/* The first n < DFCL_VW floats at p, zeros behind them; and the store of n lanes. For ragged ends. */
DFCL_FN vf dfcl_vld_part(const GLOBAL float *p, int n) {
    float t[DFCL_VW];
    for (int i = 0; i < DFCL_VW; ++i)
        t[i] = i < n ? p[i] : 0.0f;
    return VLD(t);
}
DFCL_FN void dfcl_vst_part(GLOBAL float *p, vf v, int n) {
    float t[DFCL_VW];
    VST(t, v);
    for (int i = 0; i < n; ++i)
        p[i] = t[i];
}
/* The same, or all lanes where `full` (a constant at every use, so that inner loops are free of the question). */
DFCL_FN vf dfcl_vld_n(const GLOBAL float *p, int n, int full) {
    return full ? VLD(p) : dfcl_vld_part(p, n);
}
DFCL_FN void dfcl_vst_n(GLOBAL float *p, vf v, int n, int full) {
    if (full)
        VST(p, v);
    else
        dfcl_vst_part(p, v, n);
}
/* v with the lanes from n on set to zero. */
DFCL_FN vf dfcl_vfirst(vf v, int n) {
    float t[DFCL_VW];
    VST(t, v);
    for (int i = 0; i < DFCL_VW; ++i)
        t[i] = i < n ? t[i] : 0.0f;
    return VLD(t);
}

/* Brings a line of cache near, to be read (0) or written (1); only a hint, any address will do. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_prefetch)
#define dfcl_fetch(p, write) __builtin_prefetch((const void *)(uintptr_t)(p), write, 3)
#define dfcl_fetch_far(p) __builtin_prefetch((const void *)(uintptr_t)(p), 0, 2) /* as far as the second-level cache */
#endif
#endif
#ifndef dfcl_fetch
#define dfcl_fetch(p, write) ((void)(p))
#define dfcl_fetch_far(p) ((void)(p))
#endif
