/* softmax over rows for CPUs; formulas in softmax.cl. One work-item (group of 1) takes a row. */
#define VW DFCL_VW

DFCL_KERNEL(1, 1, 1)
softmax_cpu(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, int M, int N, float scale) {
    const GLOBAL float *p = x + x_off + (dfcl_i64)GRP(0) * N;
    GLOBAL float *o = y + y_off + (dfcl_i64)GRP(0) * N;
    float lanes[VW], top = -INFINITY, sum = 0.0f;
    vf t = VS(-INFINITY), a = VS(0.0f);
    int n = 0;
    for (; n + VW <= N; n += VW)
        t = fmax(t, VLD(p + n) * scale);
    VST(lanes, t);
    for (int i = 0; i < VW; ++i)
        top = fmax(top, lanes[i]);
    for (int i = n; i < N; ++i)
        top = fmax(top, p[i] * scale);
    for (n = 0; n + VW <= N; n += VW) {
        vf e = dfcl_vexp(VLD(p + n) * scale - top);
        a += e;
        VST(o + n, e);
    }
    if (n < N) {
        vf e = dfcl_vfirst(dfcl_vexp(dfcl_vld_part(p + n, N - n) * scale - top), N - n);
        a += e;
        dfcl_vst_part(o + n, e, N - n);
    }
    sum = dfcl_vsum(a);
    for (n = 0; n + VW <= N; n += VW)
        VST(o + n, VLD(o + n) / sum);
    for (; n < N; ++n)
        o[n] = o[n] / sum;
}
