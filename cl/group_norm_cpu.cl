/* Column statistics and normalisation with activation for CPUs; formulas in group_norm.cl. One work-item a group. */
#define VW DFCL_VW
#define NV 4 /* vectors of a strip of columns */

/* Strip of V vectors of columns of a part; the part's strip comes from a cache the second time. */
#define STRIP(NAME, V)                                                                                                                  \
    DFCL_FN void NAME(const GLOBAL float *p, int N, int rows, GLOBAL float *o, int left, int full) {                                     \
        vf mean[V], rest[V], square[V];                                                                                                 \
        const float share = 1.0f / (float)rows;                                                                                         \
        for (int v = 0; v < V; ++v)                                                                                                     \
            mean[v] = rest[v] = square[v] = VS(0.0f);                                                                                   \
        for (int m = 0; m < rows; ++m)                                                                                                  \
            for (int v = 0; v < V; ++v)                                                                                                 \
                mean[v] += dfcl_vld_n(p + (dfcl_i64)m * N + v * VW, left, full);                                                        \
        for (int v = 0; v < V; ++v)                                                                                                     \
            mean[v] *= share;                                                                                                           \
        for (int m = 0; m < rows; ++m)                                                                                                  \
            for (int v = 0; v < V; ++v) {                                                                                               \
                vf d = dfcl_vld_n(p + (dfcl_i64)m * N + v * VW, left, full) - mean[v];                                                  \
                rest[v] += d;                                                                                                           \
                square[v] = dfcl_vfma(d, d, square[v]);                                                                                 \
            }                                                                                                                           \
        for (int v = 0; v < V; ++v) {                                                                                                   \
            vf s = square[v] - rest[v] * (rest[v] * share);                                                                             \
            dfcl_vst_n(o + v * VW, mean[v] + rest[v] * share, left, full);                                                              \
            dfcl_vst_n(o + N + v * VW, s > VS(0.0f) || s != s ? s : VS(0.0f), left, full);                                                           \
        }                                                                                                                               \
    }
STRIP(strip_wide, NV)
STRIP(strip_one, 1)

DFCL_KERNEL(1, 1, 1)
column_stats_cpu(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *stats, dfcl_i64 stats_off, int M, int N, int rows) {
    int m0 = GRP(0) * rows, count = min(M - m0, rows), n = 0;
    const GLOBAL float *p = x + x_off + (dfcl_i64)m0 * N;
    GLOBAL float *o = stats + stats_off + (dfcl_i64)GRP(0) * 2 * N;
    for (; n + NV * VW <= N; n += NV * VW)
        strip_wide(p + n, N, count, o + n, VW, 1);
    for (; n + VW <= N; n += VW)
        strip_one(p + n, N, count, o + n, VW, 1);
    if (n < N)
        strip_one(p + n, N, count, o + n, N - n, 0);
}

DFCL_FN void norm_at(const GLOBAL float *x, const GLOBAL float *coef, int N, GLOBAL float *y, int act, int left, int full) {
    vf mul = dfcl_vld_n(coef + N, left, full), add = dfcl_vld_n(coef + 2 * N, left, full);
    vf v = dfcl_vfma(dfcl_vld_n(x, left, full) - dfcl_vld_n(coef, left, full), mul, add);
    if (act)
        v = act == 1 ? dfcl_vgelu(v) : dfcl_vsilu(v);
    dfcl_vst_n(y, v, left, full);
}

DFCL_KERNEL(1, 1, 1)
norm_act_cpu(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *coef, dfcl_i64 coef_off, GLOBAL float *y, dfcl_i64 y_off, int M, int N,
             int rows, int act) {
    int m1 = min(M, (GRP(0) + 1) * rows);
    coef += coef_off;
    for (int m = GRP(0) * rows; m < m1; ++m) {
        const GLOBAL float *p = x + x_off + (dfcl_i64)m * N;
        GLOBAL float *o = y + y_off + (dfcl_i64)m * N;
        int n = 0;
        for (; n + VW <= N; n += VW)
            norm_at(p + n, coef + n, N, o + n, act, VW, 1);
        if (n < N)
            norm_at(p + n, coef + n, N, o + n, act, N - n, 0);
    }
}
