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

/* Reading alone: the 64 items of a group walk over the group's own `count` floats, a multiple of 256, four each at a time. */
DFCL_KERNEL(64, 1, 1)
peak_read(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL float *out, dfcl_i64 out_off, dfcl_i64 count) {
    GLOBAL const float *p = x + x_off + (dfcl_i64)GRP(0) * count;
    float4 s = vload4(0, p + 4 * LID(0));
    for (dfcl_i64 i = 256; i < count; i += 256) {
        float4 v = vload4(0, p + i + 4 * LID(0));
        s.x += v.x;
        s.y += v.y;
        s.z += v.z;
        s.w += v.w;
    }
    out[out_off + GID(0)] = (s.x + s.y) + (s.z + s.w);
}
