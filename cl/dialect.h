/* Second text of every program, on every backend: helpers in the dialect. */
DFCL_FN float dfcl_bf2f(ushort h) {
    return as_float((uint)h << 16);
}
DFCL_FN ushort dfcl_f2bf(float f) {
    uint u = as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (ushort)((u >> 16) | 0x40u);
    return (ushort)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* gelu(x) = 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3), written as x * sigmoid(2u): safe at both ends. */
DFCL_FN float dfcl_gelu(float x) {
    float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp(-u2));
}
DFCL_FN float dfcl_gelu_grad(float x) {
    float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    float s = 1.0f / (1.0f + exp(-u2));
    return s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
}
DFCL_FN float dfcl_silu(float x) {
    return x / (1.0f + exp(-x));
}
DFCL_FN float dfcl_silu_grad(float x) {
    float s = 1.0f / (1.0f + exp(-x));
    return s * (1.0f + x * (1.0f - s));
}

/* Sum over a work-group of `wg` items in one dimension, the same for every item and in a fixed order; s holds wg floats. Every item of the
 * group must call it. */
DFCL_FN float dfcl_wg_sum(float v, LOCAL_PTR float *s, int lid, int wg) {
#ifdef DFCL_SG
    v = dfcl_sg_sum(v);
    BARRIER();
    if ((lid & (DFCL_SG - 1)) == 0)
        s[lid / DFCL_SG] = v;
    BARRIER();
    v = 0.0f;
    for (int i = 0; i < (wg + DFCL_SG - 1) / DFCL_SG; ++i)
        v += s[i];
    return v;
#else
    BARRIER();
    s[lid] = v;
    BARRIER();
    for (int o = wg / 2; o > 0; o >>= 1) {
        if (lid < o)
            s[lid] += s[lid + o];
        BARRIER();
    }
    return s[0];
#endif
}
