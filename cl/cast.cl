/* f32 to bf16, rounded to nearest even, and bf16 to f32. A group of 256 items covers 1024 consecutive elements, neighbours next to each other. */
DFCL_KERNEL(256, 1, 1)
bf16_store(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL ushort *h, dfcl_i64 h_off, dfcl_i64 n) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int k = 0; k < 4; ++k, i += 256)
        if (i < n)
            h[h_off + i] = dfcl_f2bf(x[x_off + i]);
}

DFCL_KERNEL(256, 1, 1)
bf16_load(GLOBAL float *x, dfcl_i64 x_off, const GLOBAL ushort *h, dfcl_i64 h_off, dfcl_i64 n) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int k = 0; k < 4; ++k, i += 256)
        if (i < n)
            x[x_off + i] = dfcl_bf2f(h[h_off + i]);
}
