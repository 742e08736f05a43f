/* Residual branches for CPUs; formulas in branch.cl. One work-item (group of 1) takes whole rows; the backward writes dv and makes the column
 * sums of its rows in one pass. */

/* Rows whose columns the backward walks together, so that the running sums [2][N] are touched once for all of them; 1 and 2 were slower. */
#define ROWS 4

DFCL_FN void residual_at(const GLOBAL float *res, const GLOBAL float *v, const GLOBAL float *gate, const GLOBAL float *gi,
                         const GLOBAL float *go, GLOBAL float *out, int n, int left, int full) {
    vf f = dfcl_vld_n(v + n, left, full);
    if (gi)
        f *= dfcl_vld_n(gi + n, left, full);
    if (go)
        f *= dfcl_vld_n(go + n, left, full);
    if (gate)
        f *= dfcl_vld_n(gate + n, left, full);
    if (res)
        f += dfcl_vld_n(res + n, left, full);
    dfcl_vst_n(out + n, f, left, full);
}

DFCL_KERNEL(1, 1, 1)
gated_residual_cpu(const GLOBAL float *res, dfcl_i64 res_off, const GLOBAL float *v, dfcl_i64 v_off, const GLOBAL float *gate,
                   dfcl_i64 gate_off, const GLOBAL int *dom, dfcl_i64 dom_off, GLOBAL float *out, dfcl_i64 out_off,
                   const GLOBAL float *gamma_in, dfcl_i64 gi_off, const GLOBAL float *gamma_out, dfcl_i64 go_off, int N, int T,
                   dfcl_i64 gate_stride, dfcl_i64 gi_stride, dfcl_i64 go_stride, int M, int rows) {
    int end = min((GRP(0) + 1) * rows, M);
    for (int row = GRP(0) * rows; row < end; ++row) {
        int s = row / T, n = 0;
        dfcl_i64 at = (dfcl_i64)row * N, d = dom ? dom[dom_off + s] : 0;
        const GLOBAL float *vr = v + v_off + at, *rr = res ? res + res_off + at : 0, *g = gate ? gate + gate_off + s * gate_stride : 0;
        const GLOBAL float *gi = gamma_in ? gamma_in + gi_off + d * gi_stride : 0;
        const GLOBAL float *go = gamma_out ? gamma_out + go_off + d * go_stride : 0;
        for (; n + DFCL_VW <= N; n += DFCL_VW)
            residual_at(rr, vr, g, gi, go, out + out_off + at, n, DFCL_VW, 1);
        if (n < N)
            residual_at(rr, vr, g, gi, go, out + out_off + at, n, N - n, 0);
    }
}

/* One vector of columns of `count` rows (1 or ROWS, a constant at every use): dv, and dz and dz v added to the sums [2][N]. */
DFCL_FN void bwd_at(const GLOBAL float *dz, const GLOBAL float *v, const GLOBAL float *gate, const GLOBAL float *gi,
                    const GLOBAL float *go, GLOBAL float *dv, GLOBAL float *sums, int N, int n, int fresh, int count, int left,
                    int full) {
    vf s0 = VS(0.0f), s1 = VS(0.0f), f = VS(1.0f);
    if (sums && !fresh) {
        s0 = dfcl_vld_n(sums + n, left, full);
        s1 = dfcl_vld_n(sums + N + n, left, full);
    }
    if (gate)
        f = dfcl_vld_n(gate + n, left, full);
    if (go)
        f *= dfcl_vld_n(go + n, left, full);
    if (gi)
        f *= dfcl_vld_n(gi + n, left, full);
    for (int r = 0; r < count; ++r) {
        int i = r * N + n;
        vf d = dfcl_vld_n(dz + i, left, full);
        s0 += d;
        if (v)
            s1 += d * dfcl_vld_n(v + i, left, full);
        if (dv)
            dfcl_vst_n(dv + i, d * f, left, full);
    }
    if (sums) {
        dfcl_vst_n(sums + n, s0, left, full);
        dfcl_vst_n(sums + N + n, s1, left, full);
    }
}

/* Group sample * parts + part: `rows` rows of the sample. dv and sums may be absent. */
DFCL_KERNEL(1, 1, 1)
branch_bwd_cpu(const GLOBAL float *dz, dfcl_i64 dz_off, const GLOBAL float *v, dfcl_i64 v_off, const GLOBAL float *gate,
               dfcl_i64 gate_off, const GLOBAL float *gamma_in, dfcl_i64 gi_off, const GLOBAL float *gamma_out, dfcl_i64 go_off,
               GLOBAL float *dv, dfcl_i64 dv_off, GLOBAL float *sums, dfcl_i64 sums_off, int N, int T, dfcl_i64 gate_stride, int rows,
               int parts) {
    int part = GRP(0), sample = part / parts;
    int first = sample * T + part % parts * rows, end = min(first + rows, (sample + 1) * T);
    const GLOBAL float *g = gate ? gate + gate_off + sample * gate_stride : 0;
    const GLOBAL float *gi = gamma_in ? gamma_in + gi_off : 0, *go = gamma_out ? gamma_out + go_off : 0;
    GLOBAL float *sp = sums ? sums + sums_off + 2 * (dfcl_i64)part * N : 0;
    for (int m = first; m < end;) {
        dfcl_i64 at = (dfcl_i64)m * N;
        const GLOBAL float *zr = dz + dz_off + at, *vr = v ? v + v_off + at : 0;
        GLOBAL float *dr = dv ? dv + dv_off + at : 0;
        int n = 0, count = m + ROWS <= end ? ROWS : 1;
        if (count == ROWS)
            for (; n + DFCL_VW <= N; n += DFCL_VW)
                bwd_at(zr, vr, g, gi, go, dr, sp, N, n, m == first, ROWS, DFCL_VW, 1);
        else
            for (; n + DFCL_VW <= N; n += DFCL_VW)
                bwd_at(zr, vr, g, gi, go, dr, sp, N, n, m == first, 1, DFCL_VW, 1);
        if (n < N)
            bwd_at(zr, vr, g, gi, go, dr, sp, N, n, m == first, count, N - n, 0);
        m += count;
    }
}
