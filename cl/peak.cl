/* Throughput of fused multiply-adds alone: an item keeps 32 independent chains s = s a + b in registers. a and b come as arguments and the
 * sum is stored, so that nothing can be left out. 64 flop a step and item. */
DFCL_KERNEL(64, 1, 1)
peak(GLOBAL float *out, dfcl_i64 out_off, float a, float b, int steps) {
    float s[32];
    for (int i = 0; i < 32; ++i)
        s[i] = (float)(GID(0) + i);
    for (int k = 0; k < steps; ++k)
        for (int i = 0; i < 32; ++i)
            s[i] = fma(s[i], a, b);
    float t = 0.0f;
    for (int i = 0; i < 32; ++i)
        t += s[i];
    out[out_off + GID(0)] = t;
}
