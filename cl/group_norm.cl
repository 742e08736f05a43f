/* GroupNorm over an image in NHWC in two ops: column statistics of parts of the rows, which the host combines into those of the groups, and the
 * normalisation itself with the activation. */

/* A group takes one part of the rows and 64 columns. The second pass measures from the first one's mean and corrects it by what is left. */
DFCL_KERNEL(64, 1, 1)
column_stats(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *stats, dfcl_i64 stats_off, int M, int N, int rows) {
    int strips = (N + 63) / 64, part = GRP(0) / strips, n = GRP(0) % strips * 64 + LID(0);
    int m0 = part * rows, m1 = min(M, m0 + rows);
    if (n >= N)
        return;
    const GLOBAL float *p = x + x_off + (dfcl_i64)m0 * N + n;
    float count = (float)(m1 - m0), mean = 0.0f, rest = 0.0f, square = 0.0f;
    for (int m = 0; m < m1 - m0; ++m)
        mean += p[(dfcl_i64)m * N];
    mean /= count;
    for (int m = 0; m < m1 - m0; ++m) {
        float d = p[(dfcl_i64)m * N] - mean;
        rest += d;
        square = fma(d, d, square);
    }
    GLOBAL float *o = stats + stats_off + (dfcl_i64)part * 2 * N + n;
    o[0] = mean + rest / count;
    o[N] = fmax(square - rest * (rest / count), 0.0f);
}

DFCL_KERNEL(64, 1, 1)
norm_act(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *coef, dfcl_i64 coef_off, GLOBAL float *y, dfcl_i64 y_off, int M, int N, int rows,
         int act) {
    int strips = (N + 63) / 64, n = GRP(0) % strips * 64 + LID(0);
    int m0 = GRP(0) / strips * rows, m1 = min(M, m0 + rows);
    if (n >= N)
        return;
    float mean = coef[coef_off + n], mul = coef[coef_off + N + n], add = coef[coef_off + 2 * N + n];
    for (int m = m0; m < m1; ++m) {
        dfcl_i64 at = (dfcl_i64)m * N + n;
        float v = fma(x[x_off + at] - mean, mul, add);
        y[y_off + at] = act == 1 ? dfcl_gelu(v) : act == 2 ? dfcl_silu(v) : v;
    }
}
