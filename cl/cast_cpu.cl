/* f32 to bf16 and back for CPUs: one work-item (group of 1) walks `span` consecutive elements with register-wide vectors. */
#if DFCL_VW == 16
#define UINTS uint16
#define TO_UINT(p) convert_uint16(vload16(0, p))
#define STORE(p, u) vstore16(convert_ushort16(u), 0, p)
#define BITS as_uint16
#elif DFCL_VW == 8
#define UINTS uint8
#define TO_UINT(p) convert_uint8(vload8(0, p))
#define STORE(p, u) vstore8(convert_ushort8(u), 0, p)
#define BITS as_uint8
#else
#define UINTS uint4
#define TO_UINT(p) convert_uint4(vload4(0, p))
#define STORE(p, u) vstore4(convert_ushort4(u), 0, p)
#define BITS as_uint4
#endif

DFCL_KERNEL(1, 1, 1)
bf16_store_cpu(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL ushort *h, dfcl_i64 h_off, dfcl_i64 n, int span) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * span;
    x += x_off + first;
    h += h_off + first;
    int count = (int)min((dfcl_i64)span, n - first), i = 0;
    for (; i + DFCL_VW <= count; i += DFCL_VW) {
        vf v = VLD(x + i);
        UINTS u = BITS(v), r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        r = select(r, (u >> 16) | 0x40u, isnan(v));
        STORE(h + i, r);
    }
    for (; i < count; ++i)
        h[i] = dfcl_f2bf(x[i]);
}

DFCL_KERNEL(1, 1, 1)
bf16_load_cpu(GLOBAL float *x, dfcl_i64 x_off, const GLOBAL ushort *h, dfcl_i64 h_off, dfcl_i64 n, int span) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * span;
    x += x_off + first;
    h += h_off + first;
    int count = (int)min((dfcl_i64)span, n - first), i = 0;
    for (; i + DFCL_VW <= count; i += DFCL_VW)
        VST(x + i, as_vf(TO_UINT(h + i) << 16));
    for (; i < count; ++i)
        x[i] = dfcl_bf2f(h[i]);
}
