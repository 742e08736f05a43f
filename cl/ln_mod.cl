/* LayerNorm over rows of N with modulation per sample, and its backward.
 *
 *   y = xhat (1 + scale[s]) + shift[s],  xhat = (x - mean) rstd,  s = row / T
 *   dx = rstd (d - avg(d) - xhat avg(d xhat)),  d = dy (1 + scale[s])
 *   dshift[s] = sum over the sample's rows of dy,  dscale[s] of dy xhat
 *
 * One group of 128 items per row; the column sums run over parts of a sample's rows first (part_sums), which are then added in order (mod_sums). */
DFCL_KERNEL(128, 1, 1)
ln_mod(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *shift, dfcl_i64 shift_off, const GLOBAL float *scale, dfcl_i64 scale_off,
       GLOBAL float *y, dfcl_i64 y_off, GLOBAL float *stats, dfcl_i64 stats_off, int N, int T, float eps, dfcl_i64 mod_stride) {
    LOCAL_ARRAY float s[128];
    int row = GRP(0), lid = LID(0);
    dfcl_i64 mod = row / T * mod_stride;
    x += x_off + (dfcl_i64)row * N;
    y += y_off + (dfcl_i64)row * N;
    float sum = 0.0f;
    for (int n = lid; n < N; n += 128)
        sum += x[n];
    float mean = dfcl_wg_sum(sum, s, lid, 128) / (float)N;
    sum = 0.0f;
    for (int n = lid; n < N; n += 128)
        sum += (x[n] - mean) * (x[n] - mean);
    float rstd = 1.0f / sqrt(dfcl_wg_sum(sum, s, lid, 128) / (float)N + eps);
    for (int n = lid; n < N; n += 128) {
        float a = scale ? 1.0f + scale[scale_off + mod + n] : 1.0f, b = shift ? shift[shift_off + mod + n] : 0.0f;
        y[n] = (x[n] - mean) * rstd * a + b;
    }
    if (stats && lid == 0) {
        stats[stats_off + 2 * (dfcl_i64)row] = mean;
        stats[stats_off + 2 * (dfcl_i64)row + 1] = rstd;
    }
}

DFCL_KERNEL(128, 1, 1)
ln_mod_bwd(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *stats, dfcl_i64 stats_off, const GLOBAL float *scale,
           dfcl_i64 scale_off, const GLOBAL float *dy, dfcl_i64 dy_off, GLOBAL float *dx, dfcl_i64 dx_off, int N, int T,
           dfcl_i64 mod_stride, int accumulate) {
    LOCAL_ARRAY float s[128];
    int row = GRP(0), lid = LID(0);
    dfcl_i64 at = (dfcl_i64)row * N, mod = scale_off + row / T * mod_stride;
    x += x_off + at;
    dy += dy_off + at;
    dx += dx_off + at;
    float mean = stats[stats_off + 2 * (dfcl_i64)row], rstd = stats[stats_off + 2 * (dfcl_i64)row + 1];
    float sum = 0.0f, sum_h = 0.0f;
    for (int n = lid; n < N; n += 128) {
        float d = dy[n] * (scale ? 1.0f + scale[mod + n] : 1.0f);
        sum += d;
        sum_h += d * ((x[n] - mean) * rstd);
    }
    float a = dfcl_wg_sum(sum, s, lid, 128) / (float)N;
    float b = dfcl_wg_sum(sum_h, s, lid, 128) / (float)N;
    for (int n = lid; n < N; n += 128) {
        float d = dy[n] * (scale ? 1.0f + scale[mod + n] : 1.0f);
        float g = rstd * (d - a - (x[n] - mean) * rstd * b);
        dx[n] = accumulate ? dx[n] + g : g;
    }
}

/* sums [samples * parts][2][N]: over `rows` rows of a sample, dy and dy xhat. Group (sample * parts + part, block of 64 columns). */
DFCL_KERNEL(64, 1, 1)
ln_mod_part_sums(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *stats, dfcl_i64 stats_off, const GLOBAL float *dy,
                 dfcl_i64 dy_off, GLOBAL float *sums, dfcl_i64 sums_off, int N, int T, int rows, int parts) {
    int part = GRP(0), n = GRP(1) * 64 + LID(0);
    if (n >= N)
        return;
    int first = part / parts * T + part % parts * rows, end = min(first + rows, (part / parts + 1) * T);
    x += x_off + n;
    dy += dy_off + n;
    stats += stats_off;
    float sum = 0.0f, sum_h = 0.0f;
    for (int m = first; m < end; ++m) {
        float d = dy[(dfcl_i64)m * N];
        sum += d;
        sum_h += d * ((x[(dfcl_i64)m * N] - stats[2 * m]) * stats[2 * m + 1]);
    }
    sums += sums_off + 2 * (dfcl_i64)part * N;
    sums[n] = sum;
    sums[N + n] = sum_h;
}

/* dshift[s], dscale[s] = sums of the sample's parts, in order. Group (sample, block of 64 columns). */
DFCL_KERNEL(64, 1, 1)
ln_mod_mod_sums(const GLOBAL float *sums, dfcl_i64 sums_off, GLOBAL float *dshift, dfcl_i64 dshift_off, GLOBAL float *dscale,
                dfcl_i64 dscale_off, int N, int parts, dfcl_i64 stride) {
    int s = GRP(0), n = GRP(1) * 64 + LID(0);
    if (n >= N)
        return;
    sums += sums_off + 2 * (dfcl_i64)s * parts * N;
    float sum = 0.0f, sum_h = 0.0f;
    for (int q = 0; q < parts; ++q) {
        sum += sums[2 * (dfcl_i64)q * N + n];
        sum_h += sums[2 * (dfcl_i64)q * N + N + n];
    }
    if (dshift)
        dshift[dshift_off + s * stride + n] = sum;
    if (dscale)
        dscale[dscale_off + s * stride + n] = sum_h;
}
