/* Throughput of multiply-adds alone on a CPU: CHAINS independent vectors s = s a + b, as many as the registers hold. a and b come as
 * arguments and the sum is stored, so that nothing can be left out. 2 * CHAINS * DFCL_VW flop a step and item. */
#if DFCL_VW == 16
#define CHAINS 24
#else
#define CHAINS 12
#endif

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
