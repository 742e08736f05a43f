/* LayerNorm with modulation for CPUs; formulas in ln_mod.cl. One work-item (group of 1) takes whole rows, which stay in the first cache
 * between its passes; the backward makes the column sums of its rows on the way, so that x and dy come from memory once. */

/* Rows whose columns the backward walks together, so that the running sums [2][N] are touched once for all of them; 1 and 2 were slower. */
#define ROWS 4

DFCL_FN float row_sum(const GLOBAL float *x, int N) {
    vf a = VS(0.0f), b = VS(0.0f), c = VS(0.0f), d = VS(0.0f);
    int n = 0;
    for (; n + 4 * DFCL_VW <= N; n += 4 * DFCL_VW) {
        a += VLD(x + n);
        b += VLD(x + n + DFCL_VW);
        c += VLD(x + n + 2 * DFCL_VW);
        d += VLD(x + n + 3 * DFCL_VW);
    }
    for (; n + DFCL_VW <= N; n += DFCL_VW)
        a += VLD(x + n);
    if (n < N)
        b += dfcl_vld_part(x + n, N - n);
    return dfcl_vsum((a + b) + (c + d));
}

/* Sum of (x - mean)^2. */
DFCL_FN float row_square(const GLOBAL float *x, int N, float mean) {
    vf a = VS(0.0f), b = VS(0.0f), c = VS(0.0f), d = VS(0.0f), v;
    int n = 0;
    for (; n + 4 * DFCL_VW <= N; n += 4 * DFCL_VW) {
        v = VLD(x + n) - mean;
        a += v * v;
        v = VLD(x + n + DFCL_VW) - mean;
        b += v * v;
        v = VLD(x + n + 2 * DFCL_VW) - mean;
        c += v * v;
        v = VLD(x + n + 3 * DFCL_VW) - mean;
        d += v * v;
    }
    for (; n + DFCL_VW <= N; n += DFCL_VW) {
        v = VLD(x + n) - mean;
        a += v * v;
    }
    if (n < N) {
        v = dfcl_vfirst(dfcl_vld_part(x + n, N - n) - mean, N - n);
        b += v * v;
    }
    return dfcl_vsum((a + b) + (c + d));
}

DFCL_FN void modulate_at(const GLOBAL float *x, const GLOBAL float *shift, const GLOBAL float *scale, GLOBAL float *y, float mean,
                         float rstd, int n, int left, int full) {
    vf v = (dfcl_vld_n(x + n, left, full) - mean) * rstd;
    if (scale)
        v *= 1.0f + dfcl_vld_n(scale + n, left, full);
    if (shift)
        v += dfcl_vld_n(shift + n, left, full);
    dfcl_vst_n(y + n, v, left, full);
}

DFCL_KERNEL(1, 1, 1)
ln_mod_cpu(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *shift, dfcl_i64 shift_off, const GLOBAL float *scale,
           dfcl_i64 scale_off, GLOBAL float *y, dfcl_i64 y_off, GLOBAL float *stats, dfcl_i64 stats_off, int M, int N, int T, float eps,
           dfcl_i64 mod_stride, int rows) {
    int end = min((GRP(0) + 1) * rows, M);
    for (int row = GRP(0) * rows; row < end; ++row) {
        dfcl_i64 at = (dfcl_i64)row * N, mod = row / T * mod_stride;
        const GLOBAL float *xr = x + x_off + at, *sh = shift ? shift + shift_off + mod : 0, *sc = scale ? scale + scale_off + mod : 0;
        GLOBAL float *yr = y + y_off + at;
        float mean = row_sum(xr, N) / (float)N;
        float rstd = 1.0f / sqrt(row_square(xr, N, mean) / (float)N + eps);
        int n = 0;
        for (; n + DFCL_VW <= N; n += DFCL_VW)
            modulate_at(xr, sh, sc, yr, mean, rstd, n, DFCL_VW, 1);
        if (n < N)
            modulate_at(xr, sh, sc, yr, mean, rstd, n, N - n, 0);
        if (stats) {
            stats[stats_off + 2 * (dfcl_i64)row] = mean;
            stats[stats_off + 2 * (dfcl_i64)row + 1] = rstd;
        }
    }
}

/* avg(d) and avg(d xhat) of one row. */
DFCL_FN float2 row_averages(const GLOBAL float *x, const GLOBAL float *dy, const GLOBAL float *scale, int N, float mean, float rstd) {
    vf a = VS(0.0f), b = VS(0.0f), d;
    int n = 0;
    for (; n + DFCL_VW <= N; n += DFCL_VW) {
        d = VLD(dy + n);
        if (scale)
            d *= 1.0f + VLD(scale + n);
        a += d;
        b += d * ((VLD(x + n) - mean) * rstd);
    }
    if (n < N) {
        d = dfcl_vld_part(dy + n, N - n);
        if (scale)
            d *= 1.0f + dfcl_vld_part(scale + n, N - n);
        a += d;
        b += d * ((dfcl_vld_part(x + n, N - n) - mean) * rstd);
    }
    return F2(dfcl_vsum(a) / (float)N, dfcl_vsum(b) / (float)N);
}

/* One vector of columns of `count` rows (1 or ROWS, a constant at every use): dx, and dy and dy xhat added to the sums. */
DFCL_FN void bwd_at(const GLOBAL float *x, const GLOBAL float *stats, const float2 *avg, const GLOBAL float *scale,
                    const GLOBAL float *dy, GLOBAL float *dx, GLOBAL float *sums, int N, int n, int accumulate, int fresh, int count,
                    int left, int full) {
    vf sum = VS(0.0f), sum_h = VS(0.0f), a = VS(1.0f);
    if (sums && !fresh) {
        sum = dfcl_vld_n(sums + n, left, full);
        sum_h = dfcl_vld_n(sums + N + n, left, full);
    }
    if (scale)
        a += dfcl_vld_n(scale + n, left, full);
    for (int r = 0; r < count; ++r) {
        int i = r * N + n;
        float mean = stats[2 * r], rstd = stats[2 * r + 1];
        vf d = dfcl_vld_n(dy + i, left, full), h = (dfcl_vld_n(x + i, left, full) - mean) * rstd;
        sum += d;
        sum_h += d * h;
        if (dx) {
            vf g = (d * a - avg[r].x - h * avg[r].y) * rstd;
            if (accumulate)
                g += dfcl_vld_n(dx + i, left, full);
            dfcl_vst_n(dx + i, g, left, full);
        }
    }
    if (sums) {
        dfcl_vst_n(sums + n, sum, left, full);
        dfcl_vst_n(sums + N + n, sum_h, left, full);
    }
}

/* Group sample * parts + part: `rows` rows of the sample. dx and sums may be absent. */
DFCL_KERNEL(1, 1, 1)
ln_mod_bwd_cpu(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *stats, dfcl_i64 stats_off, const GLOBAL float *scale,
               dfcl_i64 scale_off, const GLOBAL float *dy, dfcl_i64 dy_off, GLOBAL float *dx, dfcl_i64 dx_off, GLOBAL float *sums,
               dfcl_i64 sums_off, int N, int T, dfcl_i64 mod_stride, int accumulate, int rows, int parts) {
    int part = GRP(0), sample = part / parts;
    int first = sample * T + part % parts * rows, end = min(first + rows, (sample + 1) * T);
    const GLOBAL float *sc = scale ? scale + scale_off + sample * mod_stride : 0;
    GLOBAL float *sp = sums ? sums + sums_off + 2 * (dfcl_i64)part * N : 0;
    for (int m = first; m < end;) {
        dfcl_i64 at = (dfcl_i64)m * N;
        const GLOBAL float *xb = x + x_off + at, *db = dy + dy_off + at, *st = stats + stats_off + 2 * (dfcl_i64)m;
        GLOBAL float *gb = dx ? dx + dx_off + at : 0;
        int n = 0, count = m + ROWS <= end ? ROWS : 1;
        float2 avg[ROWS];
        for (int r = 0; r < count; ++r)
            avg[r] = dx ? row_averages(xb + (dfcl_i64)r * N, db + (dfcl_i64)r * N, sc, N, st[2 * r], st[2 * r + 1]) : F2(0.0f, 0.0f);
        if (count == ROWS)
            for (; n + DFCL_VW <= N; n += DFCL_VW)
                bwd_at(xb, st, avg, sc, db, gb, sp, N, n, accumulate, m == first, ROWS, DFCL_VW, 1);
        else
            for (; n + DFCL_VW <= N; n += DFCL_VW)
                bwd_at(xb, st, avg, sc, db, gb, sp, N, n, accumulate, m == first, 1, DFCL_VW, 1);
        if (n < N)
            bwd_at(xb, st, avg, sc, db, gb, sp, N, n, accumulate, m == first, count, N - n, 0);
        m += count;
    }
}
