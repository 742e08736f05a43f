/* Throughput of multiply-adds alone on a CPU: CHAINS independent vectors s = s a + b, as many as the registers hold. a and b come as
 * arguments and the sum is stored, so that nothing can be left out. 2 * CHAINS * DFCL_VW flop a step and item. */
#if DFCL_VW == 16
#define CHAINS 24
#else
#define CHAINS 12
#endif

#if defined(DOT)
/* The same of bf16 pairs: 4 * CHAINS * DFCL_VW flop a step and item. */
DFCL_KERNEL(1, 1, 1)
peak_dot_cpu(GLOBAL float *out, dfcl_i64 out_off, float a, float b, int steps) {
    vf s[CHAINS];
    vu x = dfcl_vpair(VS(a), VS(a)), y = dfcl_vpair(VS(b), VS(b));
    __attribute__((opencl_unroll_hint)) for (int i = 0; i < CHAINS; ++i) s[i] = VS((float)(GRP(0) + i));
    for (int k = 0; k < steps; ++k)
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < CHAINS; ++i) DFCL_DOT(s[i], x, y);
    vf t = VS(0.0f);
    for (int i = 0; i < CHAINS; ++i)
        t += s[i];
    out[out_off + GRP(0)] = dfcl_vsum(t);
}
#else
DFCL_KERNEL(1, 1, 1)
peak_cpu(GLOBAL float *out, dfcl_i64 out_off, float a, float b, int steps) {
    vf s[CHAINS];
    __attribute__((opencl_unroll_hint)) for (int i = 0; i < CHAINS; ++i) s[i] = VS((float)(GRP(0) + i));
    for (int k = 0; k < steps; ++k)
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < CHAINS; ++i) s[i] = dfcl_vfma(s[i], VS(a), VS(b));
    vf t = VS(0.0f);
    for (int i = 0; i < CHAINS; ++i)
        t += s[i];
    out[out_off + GRP(0)] = dfcl_vsum(t);
}

/* Reading alone: an item sums its own `count` floats, a multiple of 4 * DFCL_VW. */
DFCL_KERNEL(1, 1, 1)
peak_read_cpu(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL float *out, dfcl_i64 out_off, dfcl_i64 count) {
    GLOBAL const float *p = x + x_off + GRP(0) * count, *end = p + count;
    vf s[4];
    __attribute__((opencl_unroll_hint)) for (int i = 0; i < 4; ++i) s[i] = VS(0.0f);
    for (; p < end; p += 4 * DFCL_VW)
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < 4; ++i) s[i] += VLD(p + i * DFCL_VW);
    out[out_off + GRP(0)] = dfcl_vsum((s[0] + s[1]) + (s[2] + s[3]));
}
#endif
