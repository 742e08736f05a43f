/* The linear layer for any device: forward, gradient of the input, gradient of the matrix.
 *
 *   KIND 0  forward  C[m,n] = sum_k x[m,k]  W[n,k]    then the epilogue of linear_fwd (ops.h)
 *   KIND 1  dx       C[m,k] = sum_n dy[m,n] W[n,k]    times act'(pre), written or added
 *   KIND 2  dw       C[n,k] = sum_m dy[m,n] x[m,k]    added, or stored as a slice of the sum
 *   KIND 3  conv2d   C[m,n] = sum_k x[place(m,k)] W[n,k]   k = (ky, kx, c): the rows of A are read where the taps lie
 *
 * A group of 16 x 16 items computes a 64 x 64 tile of C. Each step of 16 along the sum brings 64 x 16 of A and of B through local memory; an
 * item keeps 4 x 4 sums, four neighbouring rows and four neighbouring columns. Edges are read as 0 and not written.
 * Weights: WTYPE 0 f32, 1 bf16, 2 f16 row-major; 3, 4, 5 the same in panels [ceil(N/48)][K][48]. */
#ifndef KIND
#define KIND 0
#endif
#ifndef WTYPE
#define WTYPE 0
#endif
#define TILE 64
#define STEP 16
#define PITCH 68 /* of a local row: keeps four floats aligned, spreads the banks */

#if WTYPE % 3
#define WT ushort
#else
#define WT float
#endif

/* Element W[n][k] of a matrix [N, K]. */
DFCL_FN float weight_at(const GLOBAL WT *w, int n, int k, int K) {
#if WTYPE >= 3
    dfcl_i64 at = ((dfcl_i64)(n / 48) * K + k) * 48 + n % 48;
#else
    dfcl_i64 at = (dfcl_i64)n * K + k;
#endif
#if WTYPE % 3 == 1
    return dfcl_bf2f(w[at]);
#elif WTYPE % 3 == 2
    return dfcl_h2f(w[at]);
#else
    return w[at];
#endif
}

/* One step of the product of the two local tiles: a[STEP][PITCH] over rows, b[STEP][PITCH] over columns. */
DFCL_FN void multiply(const LOCAL_PTR float *a, const LOCAL_PTR float *b, int ty, int tx, float c[4][4]) {
    for (int t = 0; t < STEP; ++t) {
        float4 av = dfcl_ll4(a + t * PITCH + 4 * ty), bv = dfcl_ll4(b + t * PITCH + 4 * tx);
        float ar[4], br[4];
        ar[0] = av.x;
        ar[1] = av.y;
        ar[2] = av.z;
        ar[3] = av.w;
        br[0] = bv.x;
        br[1] = bv.y;
        br[2] = bv.z;
        br[3] = bv.w;
        DFCL_UNROLL
        for (int i = 0; i < 4; ++i)
            DFCL_UNROLL
            for (int j = 0; j < 4; ++j)
                c[i][j] = fma(ar[i], br[j], c[i][j]);
    }
}

#if KIND == 0
DFCL_KERNEL(256, 1, 1)
linear_fwd(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL WT *w, dfcl_i64 w_off, const GLOBAL float *bias, dfcl_i64 bias_off,
           dfcl_i64 bias_stride, const GLOBAL float *gamma, dfcl_i64 gamma_off, dfcl_i64 gamma_stride, const GLOBAL float *gamma_res,
           dfcl_i64 gamma_res_off, dfcl_i64 gamma_res_stride, const GLOBAL int *dom, dfcl_i64 dom_off, GLOBAL float *pre, dfcl_i64 pre_off,
           GLOBAL float *y, dfcl_i64 y_off, const GLOBAL float *res, dfcl_i64 res_off, const GLOBAL float *gate, dfcl_i64 gate_off,
           dfcl_i64 gate_stride, GLOBAL float *out, dfcl_i64 out_off, int M, int N, int K, int T, int res_rows, int act, int has) {
    LOCAL_ARRAY float la[STEP * PITCH];
    LOCAL_ARRAY float lb[STEP * PITCH];
    int lid = LID(0), tx = lid % 16, ty = lid / 16;
    int tiles_n = (N + TILE - 1) / TILE;
    int m0 = GRP(0) / tiles_n * TILE, n0 = GRP(0) % tiles_n * TILE;
    x += x_off;
    w += w_off;
    float c[4][4];
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i)
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j)
            c[i][j] = 0.0f;
    for (int k0 = 0; k0 < K; k0 += STEP) {
        for (int r = 0; r < 4; ++r) { /* neighbours read along k */
            int k = k0 + tx, m = m0 + ty + 16 * r, n = n0 + ty + 16 * r;
            la[tx * PITCH + ty + 16 * r] = k < K && m < M ? x[(dfcl_i64)m * K + k] : 0.0f;
            lb[tx * PITCH + ty + 16 * r] = k < K && n < N ? weight_at(w, n, k, K) : 0.0f;
        }
        BARRIER();
        multiply(la, lb, ty, tx, c);
        BARRIER();
    }
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i) {
        int m = m0 + 4 * ty + i;
        if (m >= M)
            break;
        int sample = m / T;
        dfcl_i64 d = has & 8 ? dom[dom_off + sample] : 0;
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j) {
            int n = n0 + 4 * tx + j;
            if (n >= N)
                break;
            dfcl_i64 at = (dfcl_i64)m * N + n;
            float v = c[i][j];
            if (has & 1)
                v += bias[bias_off + d * bias_stride + n];
            if (has & 16)
                pre[pre_off + at] = v;
            v = act == 1 ? dfcl_gelu(v) : act == 2 ? dfcl_silu(v) : v;
            if (has & 2)
                v *= gamma[gamma_off + d * gamma_stride + n];
            if (has & 32)
                y[y_off + at] = v;
            if (has & 256) {
                if (has & 4)
                    v *= gamma_res[gamma_res_off + d * gamma_res_stride + n];
                float g = has & 128 ? gate[gate_off + sample * gate_stride + n] : 1.0f;
                if (has & 64) /* the fma spelled out: gated_residual has the same bits */
                    out[out_off + at] = fma(v, g, res[res_off + (dfcl_i64)(res_rows ? m % res_rows : m) * N + n]);
                else
                    out[out_off + at] = v * g;
            }
        }
    }
}
#endif

#if KIND == 1
DFCL_KERNEL(256, 1, 1)
linear_dx(const GLOBAL float *dy, dfcl_i64 dy_off, const GLOBAL WT *w, dfcl_i64 w_off, const GLOBAL float *pre, dfcl_i64 pre_off,
          GLOBAL float *dx, dfcl_i64 dx_off, int M, int N, int K, int act, int accumulate) {
    LOCAL_ARRAY float la[STEP * PITCH];
    LOCAL_ARRAY float lb[STEP * PITCH];
    int lid = LID(0), tx = lid % 16, ty = lid / 16;
    int tiles_k = (K + TILE - 1) / TILE;
    int m0 = GRP(0) / tiles_k * TILE, k0 = GRP(0) % tiles_k * TILE;
    dy += dy_off;
    w += w_off;
    float c[4][4];
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i)
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j)
            c[i][j] = 0.0f;
    for (int n0 = 0; n0 < N; n0 += STEP) {
        for (int r = 0; r < 4; ++r) {
            int n = n0 + tx, m = m0 + ty + 16 * r; /* dy along n */
            la[tx * PITCH + ty + 16 * r] = n < N && m < M ? dy[(dfcl_i64)m * N + n] : 0.0f;
            int e = lid + 256 * r, nb = n0 + e / TILE, k = k0 + e % TILE; /* W along k */
            lb[e / TILE * PITCH + e % TILE] = nb < N && k < K ? weight_at(w, nb, k, K) : 0.0f;
        }
        BARRIER();
        multiply(la, lb, ty, tx, c);
        BARRIER();
    }
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i)
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j) {
            int m = m0 + 4 * ty + i, k = k0 + 4 * tx + j;
            if (m < M && k < K) {
                dfcl_i64 at = (dfcl_i64)m * K + k;
                float v = c[i][j];
                if (act)
                    v *= act == 1 ? dfcl_gelu_grad(pre[pre_off + at]) : dfcl_silu_grad(pre[pre_off + at]);
                dx[dx_off + at] = accumulate ? dx[dx_off + at] + v : v;
            }
        }
}
#endif

#if KIND == 2
/* Groups [slice][tile]; a slice takes `span` rows of the sum. One slice: dw += C; more: part[slice] = C, for slice_sum. */
DFCL_KERNEL(256, 1, 1)
linear_dw(const GLOBAL float *dy, dfcl_i64 dy_off, const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *dw, dfcl_i64 dw_off,
          GLOBAL float *part, dfcl_i64 part_off, int M, int N, int K, int span, int slices) {
    LOCAL_ARRAY float la[STEP * PITCH];
    LOCAL_ARRAY float lb[STEP * PITCH];
    int lid = LID(0), tx = lid % 16, ty = lid / 16;
    int tiles_k = (K + TILE - 1) / TILE, tiles = tiles_k * ((N + TILE - 1) / TILE);
    int slice = GRP(0) / tiles, tile = GRP(0) % tiles;
    int n0 = tile / tiles_k * TILE, k0 = tile % tiles_k * TILE, end = min(M, (slice + 1) * span);
    dy += dy_off;
    x += x_off;
    float c[4][4];
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i)
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j)
            c[i][j] = 0.0f;
    for (int m0 = slice * span; m0 < end; m0 += STEP) {
        for (int r = 0; r < 4; ++r) {
            int e = lid + 256 * r, m = m0 + e / TILE, n = n0 + e % TILE, k = k0 + e % TILE;
            la[e / TILE * PITCH + e % TILE] = m < end && n < N ? dy[(dfcl_i64)m * N + n] : 0.0f;
            lb[e / TILE * PITCH + e % TILE] = m < end && k < K ? x[(dfcl_i64)m * K + k] : 0.0f;
        }
        BARRIER();
        multiply(la, lb, ty, tx, c);
        BARRIER();
    }
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i)
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j) {
            int n = n0 + 4 * ty + i, k = k0 + 4 * tx + j;
            if (n < N && k < K) {
                dfcl_i64 at = (dfcl_i64)n * K + k;
                if (slices == 1)
                    dw[dw_off + at] += c[i][j];
                else
                    part[part_off + (dfcl_i64)slice * N * K + at] = c[i][j];
            }
        }
}
#endif

#if KIND == 3
DFCL_KERNEL(256, 1, 1)
conv2d(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL WT *w, dfcl_i64 w_off, const GLOBAL float *bias, dfcl_i64 bias_off,
       const GLOBAL float *res, dfcl_i64 res_off, GLOBAL float *out, dfcl_i64 out_off, int H, int W, int C, int Ho, int Wo, int N, int kh,
       int kw, int stride, int top, int left, int step, int oy, int ox, int has_bias, int has_res) {
    LOCAL_ARRAY float la[STEP * PITCH];
    LOCAL_ARRAY float lb[STEP * PITCH];
    int lid = LID(0), tx = lid % 16, ty = lid / 16;
    int M = Ho * Wo, K = kh * kw * C, tiles_n = (N + TILE - 1) / TILE;
    int m0 = GRP(0) / tiles_n * TILE, n0 = GRP(0) % tiles_n * TILE;
    x += x_off;
    w += w_off;
    int row[4], col[4]; /* of the first tap of an item's four rows of A */
    float c[4][4];
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i) {
        int m = m0 + ty + 16 * i;
        row[i] = m < M ? m / Wo * stride - top : -(1 << 28);
        col[i] = m % Wo * stride - left;
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j)
            c[i][j] = 0.0f;
    }
    int ky = 0, kx = 0, ch = tx; /* of k = k0 + tx */
    for (int k0 = 0; k0 < K; k0 += STEP) {
        while (ch >= C) {
            ch -= C;
            if (++kx == kw) {
                kx = 0;
                ++ky;
            }
        }
        DFCL_UNROLL
        for (int r = 0; r < 4; ++r) { /* neighbours read along k */
            int k = k0 + tx, n = n0 + ty + 16 * r, y = row[r] + ky, z = col[r] + kx;
            la[tx * PITCH + ty + 16 * r] =
                k < K && y >= 0 && y < H && z >= 0 && z < W ? x[((dfcl_i64)y * W + z) * C + ch] : 0.0f;
            lb[tx * PITCH + ty + 16 * r] = k < K && n < N ? weight_at(w, n, k, K) : 0.0f;
        }
        ch += STEP;
        BARRIER();
        multiply(la, lb, ty, tx, c);
        BARRIER();
    }
    DFCL_UNROLL
    for (int i = 0; i < 4; ++i) {
        int m = m0 + 4 * ty + i;
        if (m >= M)
            break;
        dfcl_i64 at = ((dfcl_i64)(m / Wo * step + oy) * (Wo * step) + m % Wo * step + ox) * N;
        DFCL_UNROLL
        for (int j = 0; j < 4; ++j) {
            int n = n0 + 4 * tx + j;
            if (n >= N)
                break;
            float v = c[i][j];
            if (has_bias)
                v += bias[bias_off + n];
            if (has_res)
                v += res[res_off + at + n];
            out[out_off + at + n] = v;
        }
    }
}
#endif
