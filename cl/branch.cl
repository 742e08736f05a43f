/* Residual branches: z = gate[s] gamma_out gamma_in v on [M,N], s = row / T. Each factor may be absent (1). One group of 64 items per row;
 * the reductions of the backward run over parts of a sample's rows first, which are then added in order. */

/* out = res + gate[s] gamma_out[dom] (gamma_in[dom] v), rounded as in linear_fwd's epilogue */
DFCL_KERNEL(64, 1, 1)
gated_residual(const GLOBAL float *res, dfcl_i64 res_off, const GLOBAL float *v, dfcl_i64 v_off, const GLOBAL float *gate,
               dfcl_i64 gate_off, const GLOBAL int *dom, dfcl_i64 dom_off, GLOBAL float *out, dfcl_i64 out_off,
               const GLOBAL float *gamma_in, dfcl_i64 gi_off, const GLOBAL float *gamma_out, dfcl_i64 go_off, int N, int T,
               dfcl_i64 gate_stride, dfcl_i64 gi_stride, dfcl_i64 go_stride) {
    int row = GRP(0), s = row / T;
    dfcl_i64 at = (dfcl_i64)row * N, d = dom ? dom[dom_off + s] : 0;
    gate_off += s * gate_stride;
    gi_off += d * gi_stride;
    go_off += d * go_stride;
    for (int n = LID(0); n < N; n += 64) {
        float f = v[v_off + at + n];
        if (gamma_in)
            f *= gamma_in[gi_off + n];
        if (gamma_out)
            f *= gamma_out[go_off + n];
        float g = gate ? gate[gate_off + n] : 1.0f;
        out[out_off + at + n] = res ? fma(f, g, res[res_off + at + n]) : f * g;
    }
}

/* dv = dz gate[s] gamma_out gamma_in */
DFCL_KERNEL(64, 1, 1)
branch_dv(const GLOBAL float *dz, dfcl_i64 dz_off, const GLOBAL float *gate, dfcl_i64 gate_off, const GLOBAL float *gamma_in,
          dfcl_i64 gi_off, const GLOBAL float *gamma_out, dfcl_i64 go_off, GLOBAL float *dv, dfcl_i64 dv_off, int N, int T,
          dfcl_i64 gate_stride) {
    int row = GRP(0);
    dfcl_i64 at = (dfcl_i64)row * N;
    gate_off += row / T * gate_stride;
    for (int n = LID(0); n < N; n += 64) {
        float f = gate ? gate[gate_off + n] : 1.0f;
        if (gamma_out)
            f *= gamma_out[go_off + n];
        if (gamma_in)
            f *= gamma_in[gi_off + n];
        dv[dv_off + at + n] = dz[dz_off + at + n] * f;
    }
}

/* sums [samples * parts][2][N]: over `rows` rows of a sample, dz and dz v (v absent: 0). Group (sample * parts + part, block of 64 columns). */
DFCL_KERNEL(64, 1, 1)
branch_part_sums(const GLOBAL float *dz, dfcl_i64 dz_off, const GLOBAL float *v, dfcl_i64 v_off, GLOBAL float *sums, dfcl_i64 sums_off,
                 int N, int T, int rows, int parts) {
    int part = GRP(0), n = GRP(1) * 64 + LID(0);
    if (n >= N)
        return;
    int first = part / parts * T + part % parts * rows, end = min(first + rows, (part / parts + 1) * T);
    float s0 = 0.0f, s1 = 0.0f;
    for (int m = first; m < end; ++m) {
        dfcl_i64 at = (dfcl_i64)m * N + n;
        float d = dz[dz_off + at];
        s0 += d;
        if (v)
            s1 += d * v[v_off + at];
    }
    sums += sums_off + 2 * (dfcl_i64)part * N;
    sums[n] = s0;
    sums[N + n] = s1;
}

/* dgate[s] and the parameters' gradients from the sums: samples in order. Group: a block of 64 columns. */
DFCL_KERNEL(64, 1, 1)
branch_grads(const GLOBAL float *sums, dfcl_i64 sums_off, const GLOBAL float *gate, dfcl_i64 gate_off, const GLOBAL float *gamma_in,
             dfcl_i64 gi_off, const GLOBAL float *gamma_out, dfcl_i64 go_off, GLOBAL float *dgate, dfcl_i64 dgate_off,
             GLOBAL float *dgamma_in, dfcl_i64 dgi_off, GLOBAL float *dgamma_out, dfcl_i64 dgo_off, GLOBAL float *dbias,
             dfcl_i64 dbias_off, int samples, int N, int parts, dfcl_i64 gate_stride, dfcl_i64 dgate_stride) {
    int n = GRP(0) * 64 + LID(0);
    if (n >= N)
        return;
    float gi = gamma_in ? gamma_in[gi_off + n] : 1.0f, go = gamma_out ? gamma_out[go_off + n] : 1.0f;
    float gate_s0 = 0.0f, gate_s1 = 0.0f; /* sum over samples of gate S0, gate S1 */
    sums += sums_off + n;
    for (int s = 0; s < samples; ++s) {
        float s0 = 0.0f, s1 = 0.0f, g = gate ? gate[gate_off + s * gate_stride + n] : 1.0f;
        for (int q = 0; q < parts; ++q, sums += 2 * N) {
            s0 += sums[0];
            s1 += sums[N];
        }
        if (dgate)
            dgate[dgate_off + s * dgate_stride + n] = go * gi * s1;
        gate_s0 += g * s0;
        gate_s1 += g * s1;
    }
    if (dgamma_in)
        dgamma_in[dgi_off + n] += go * gate_s1;
    if (dgamma_out)
        dgamma_out[dgo_off + n] += gi * gate_s1;
    if (dbias)
        dbias[dbias_off + n] += go * gi * gate_s0;
}
