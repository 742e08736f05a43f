/* Attention for GPUs and anything else: work-groups of 64 items, tiles in local memory, nothing kept of size T x T.
 *
 *   forward   t_ij = scale log2(e) q_i . k_j, online softmax in base 2 over tiles of keys; lse_i = ln 2 (m_i + log2 sum_j 2^(t_ij - m_i))
 *   backward  delta_i = dout_i . out_i,  P_ij = 2^(t_ij - lse_i log2(e)),  dS_ij = P_ij (dout_i . v_j - delta_i),
 *             dq_i = scale sum_j dS_ij k_j,  dk_j = scale sum_i dS_ij q_i,  dv_j = sum_i P_ij dout_i
 *             three kernels: delta; dk and dv per tile of keys; dq per tile of queries. Sums run in one fixed order, without atomics.
 *
 * Every tile kernel has the same shape: a tile of R resident rows stays, tiles of S rows stream past. Items stand 8 x 8: item (tx, ty) owns
 * resident rows ty + 8 i. It computes the scores of these rows against streaming rows tx + 8 j, and accumulates the float4 columns
 * tx + 8 n of their results. Head sizes are built in (DD), rows padded with zeros to DP; ragged tiles are masked or zero. Rows in
 * local memory are an odd number of float4 apart: no bank conflicts. Local memory stays below 32 KB up to a head size of 248.
 *
 * ALIGNED 1: D and all offsets are multiples of 4 floats. mad(): contraction is off, and an addition after a multiplication may be fused here. */
#ifndef DD
#define DD 72
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

#define ROW4 ((DD + 3) / 4)      /* float4 columns of a row in memory */
#define D4 (ROW4 > 2 ? ROW4 : 2) /* and here: a single one would leave items idle and make compilers unroll everything */
#define DP (4 * D4)
#define LD (D4 % 2 ? DP : DP + 4)
#define NC ((D4 + 7) / 8) /* float4 columns of an item */

#if DD <= 80
#define RF 32 /* forward: resident queries, streaming keys */
#define SF 32
#elif DD <= 128
#define RF 32
#define SF 16
#else
#define RF 16
#define SF 8
#endif
#if DD <= 72
#define RB 32 /* backward: resident and streaming rows */
#define SB 16
#elif DD > 72 && DD <= 88
#define RB 32
#define SB 8
#elif DD <= 96
#define RB 16
#define SB 16
#elif DD <= 128
#define RB 16
#define SB 8
#else
#define RB 8
#define SB 8
#endif

#define LN2 0.69314718056f
#define LOG2E 1.44269504089f

#if ALIGNED
#define LOAD4(p) dfcl_ld4(p)
#define STORE4(p, v) dfcl_st4(p, v)
#else
#define LOAD4(p) dfcl_ldu4(p)
#define STORE4(p, v) dfcl_stu4(p, v)
#endif

DFCL_FN float4 row_load4(const GLOBAL float *row, int c) {
#if ROW4 < D4
    if (c >= ROW4)
        return F4S(0.0f);
#endif
#if DD % 4
    if (c == ROW4 - 1)
        return F4(row[4 * c], DD % 4 > 1 ? row[DD % 4 > 1 ? 4 * c + 1 : 0] : 0.0f, DD % 4 > 2 ? row[DD % 4 > 2 ? 4 * c + 2 : 0] : 0.0f, 0.0f);
#endif
    return LOAD4(row + 4 * c);
}
DFCL_FN void row_store4(GLOBAL float *row, int c, float4 v) {
#if ROW4 < D4
    if (c >= ROW4)
        return;
#endif
#if DD % 4
    if (c == ROW4 - 1) {
        row[4 * c] = v.x;
#if DD % 4 > 1
        row[4 * c + 1] = v.y;
#endif
#if DD % 4 > 2
        row[4 * c + 2] = v.z;
#endif
        return;
    }
#endif
    STORE4(row + 4 * c, v);
}

/* dst [n][LD] = f * rows row0 .. row0 + n of src (`ld` apart), zeros from row T on. */
DFCL_FN void tile_load(LOCAL_PTR float *dst, const GLOBAL float *src, int n, int row0, int T, int ld, float f, int lid) {
    for (int i = lid; i < n * D4; i += 64) {
        const int r = i / D4, c = i - r * D4;
        float4 x = F4S(0.0f);
        if (row0 + r < T)
            x = row_load4(src + (dfcl_i64)(row0 + r) * ld, c) * f;
        dfcl_ls4(dst + r * LD + 4 * c, x);
    }
}

/* s[i][j] = a[ty + 8 i] . b[tx + 8 j] for n resident and m streaming rows of an item */
#define TILE_DOT(s, a, b, n, m)                                                                                                          \
    _Pragma("unroll") for (int i = 0; i < (n); ++i) {                                                                                    \
        _Pragma("unroll") for (int j = 0; j < (m); ++j) s[i][j] = 0.0f;                                                                  \
    }                                                                                                                                    \
    _Pragma("unroll 1") for (int d = 0; d < D4; ++d) {                                                                                   \
        float4 av[n];                                                                                                                    \
        _Pragma("unroll") for (int i = 0; i < (n); ++i) av[i] = dfcl_ll4((a) + (ty + 8 * i) * LD + 4 * d);                               \
        _Pragma("unroll") for (int j = 0; j < (m); ++j) {                                                                                \
            const float4 bv = dfcl_ll4((b) + (tx + 8 * j) * LD + 4 * d);                                                                 \
            _Pragma("unroll") for (int i = 0; i < (n); ++i) s[i][j] =                                                                    \
                mad(av[i].w, bv.w, mad(av[i].z, bv.z, mad(av[i].y, bv.y, mad(av[i].x, bv.x, s[i][j]))));                                 \
        }                                                                                                                                \
    }

/* acc[i][c] += sum_{k < m} wt[ty + 8 i][k] * b[k][col[c]] */
#define TILE_ACC(acc, wt, ldw, b, n, m)                                                                                                  \
    _Pragma("unroll 1") for (int k = 0; k < (m); k += 4) {                                                                               \
        float4 wv[n];                                                                                                                    \
        _Pragma("unroll") for (int i = 0; i < (n); ++i) wv[i] = dfcl_ll4((wt) + (ty + 8 * i) * (ldw) + k);                               \
        _Pragma("unroll") for (int c = 0; c < NC; ++c) {                                                                                 \
            const float4 b0 = dfcl_ll4((b) + k * LD + col[c]), b1 = dfcl_ll4((b) + (k + 1) * LD + col[c]);                               \
            const float4 b2 = dfcl_ll4((b) + (k + 2) * LD + col[c]), b3 = dfcl_ll4((b) + (k + 3) * LD + col[c]);                         \
            _Pragma("unroll") for (int i = 0; i < (n); ++i) {                                                                            \
                acc[i][c] = mad(F4S(wv[i].x), b0, acc[i][c]);                                                                            \
                acc[i][c] = mad(F4S(wv[i].y), b1, acc[i][c]);                                                                            \
                acc[i][c] = mad(F4S(wv[i].z), b2, acc[i][c]);                                                                            \
                acc[i][c] = mad(F4S(wv[i].w), b3, acc[i][c]);                                                                            \
            }                                                                                                                            \
        }                                                                                                                                \
    }

/* Columns of an item; the ones past the row repeat its last, and are not stored. */
#define ITEM_COLUMNS                                                                                                                     \
    int col[NC];                                                                                                                         \
    _Pragma("unroll") for (int c = 0; c < NC; ++c) col[c] = 4 * (tx + 8 * c < D4 ? tx + 8 * c : D4 - 1);

/* Group = `blocks` tiles of queries per head. cs = scale * log2(e). */
DFCL_KERNEL(64, 1, 1)
attn_fwd(const GLOBAL float *qkv, dfcl_i64 qkv_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *lse, dfcl_i64 lse_off, int has_lse,
         int T, int H, int blocks, float cs) {
    LOCAL_ARRAY float ql[RF * LD];
    LOCAL_ARRAY float kv[SF * LD];
    LOCAL_ARRAY float pl[RF * (SF + 4)];
    LOCAL_ARRAY float red[RF * 8];
    const int lid = LID(0), tx = lid & 7, ty = lid >> 3;
    const int bh = GRP(0) / blocks, r0 = (GRP(0) - bh * blocks) * RF, b = bh / H, h = bh - b * H, ldo = H * DD, ld = 3 * ldo;
    const GLOBAL float *q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, *k = q + ldo, *v = k + ldo;
    float4 acc[RF / 8][NC];
    float m[RF / 8], sum[RF / 8];
    ITEM_COLUMNS
#pragma unroll
    for (int i = 0; i < RF / 8; ++i) {
        m[i] = -1e30f;
        sum[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < NC; ++c)
            acc[i][c] = F4S(0.0f);
    }
    tile_load(ql, q, RF, r0, T, ld, cs, lid);
    for (int j0 = 0; j0 < T; j0 += SF) {
        float s[RF / 8][SF / 8];
        tile_load(kv, k, SF, j0, T, ld, 1.0f, lid);
        BARRIER();
        TILE_DOT(s, ql, kv, RF / 8, SF / 8)
#pragma unroll
        for (int i = 0; i < RF / 8; ++i) {
            float mx = -1e30f;
#pragma unroll
            for (int j = 0; j < SF / 8; ++j) {
                if (j0 + tx + 8 * j >= T)
                    s[i][j] = -1e30f;
                mx = fmax(mx, s[i][j]);
            }
            red[(ty + 8 * i) * 8 + tx] = mx;
        }
        BARRIER();
        tile_load(kv, v, SF, j0, T, ld, 1.0f, lid); /* everybody is done with the keys */
#pragma unroll
        for (int i = 0; i < RF / 8; ++i) {
            const float4 x = dfcl_ll4(red + (ty + 8 * i) * 8), y = dfcl_ll4(red + (ty + 8 * i) * 8 + 4);
            const float mx = fmax(fmax(fmax(x.x, x.y), fmax(x.z, x.w)), fmax(fmax(y.x, y.y), fmax(y.z, y.w))), mn = fmax(m[i], mx);
            const float f = exp2(m[i] - mn);
            m[i] = mn;
            sum[i] *= f;
#pragma unroll
            for (int c = 0; c < NC; ++c)
                acc[i][c] = acc[i][c] * f;
#pragma unroll
            for (int j = 0; j < SF / 8; ++j) {
                const float p = exp2(s[i][j] - mn);
                sum[i] += p;
                pl[(ty + 8 * i) * (SF + 4) + tx + 8 * j] = p;
            }
        }
        BARRIER();
        TILE_ACC(acc, pl, SF + 4, kv, RF / 8, SF)
        BARRIER();
    }
#pragma unroll
    for (int i = 0; i < RF / 8; ++i)
        red[(ty + 8 * i) * 8 + tx] = sum[i];
    BARRIER();
#pragma unroll
    for (int i = 0; i < RF / 8; ++i) {
        const int row = r0 + ty + 8 * i;
        const float4 x = dfcl_ll4(red + (ty + 8 * i) * 8), y = dfcl_ll4(red + (ty + 8 * i) * 8 + 4);
        const float total = ((x.x + x.y) + (x.z + x.w)) + ((y.x + y.y) + (y.z + y.w)), f = 1.0f / total;
        if (row < T) {
            GLOBAL float *o = out + out_off + ((dfcl_i64)b * T + row) * ldo + h * DD;
            if (has_lse && tx == 0)
                lse[lse_off + (dfcl_i64)bh * T + row] = LN2 * m[i] + log(total);
#pragma unroll
            for (int c = 0; c < NC; ++c)
                if (tx + 8 * c < D4)
                    row_store4(o, tx + 8 * c, acc[i][c] * f);
        }
    }
}

/* delta [B*H][T]: one item per row and head. n = B*H*T. */
DFCL_KERNEL(64, 1, 1)
attn_bwd_delta(const GLOBAL float *out, dfcl_i64 out_off, const GLOBAL float *dout, dfcl_i64 dout_off, GLOBAL float *delta,
               dfcl_i64 delta_off, int n, int T, int H) {
    const int i = GID(0);
    if (i >= n)
        return;
    const int bh = i / T, t = i - bh * T, b = bh / H, h = bh - b * H;
    const dfcl_i64 at = (((dfcl_i64)b * T + t) * H + h) * DD;
    float4 s = F4S(0.0f);
    for (int c = 0; c < ROW4; ++c)
        s = mad(row_load4(out + out_off + at, c), row_load4(dout + dout_off + at, c), s);
    delta[delta_off + i] = (s.x + s.z) + (s.y + s.w);
}

/* dk, dv. Resident: keys and values; streaming: queries (times cs = scale log2(e)) and dout. */
DFCL_KERNEL(64, 1, 1)
attn_bwd_dkv(const GLOBAL float *qkv, dfcl_i64 qkv_off, const GLOBAL float *lse, dfcl_i64 lse_off, const GLOBAL float *delta,
             dfcl_i64 delta_off, const GLOBAL float *dout, dfcl_i64 dout_off, GLOBAL float *dqkv, dfcl_i64 dqkv_off, int T, int H,
             int blocks, float cs) {
    LOCAL_ARRAY float kl[RB * LD];
    LOCAL_ARRAY float vl[RB * LD];
    LOCAL_ARRAY float ql[SB * LD];
    LOCAL_ARRAY float gl[SB * LD];
    LOCAL_ARRAY float wl[RB * (SB + 4)];
    const int lid = LID(0), tx = lid & 7, ty = lid >> 3;
    const int bh = GRP(0) / blocks, j0 = (GRP(0) - bh * blocks) * RB, b = bh / H, h = bh - b * H, ldo = H * DD, ld = 3 * ldo;
    const GLOBAL float *q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, *g = dout + dout_off + (dfcl_i64)b * T * ldo + h * DD;
    const GLOBAL float *le = lse + lse_off + (dfcl_i64)bh * T, *de = delta + delta_off + (dfcl_i64)bh * T;
    float4 dk[RB / 8][NC], dv[RB / 8][NC];
    ITEM_COLUMNS
#pragma unroll
    for (int i = 0; i < RB / 8; ++i) {
#pragma unroll
        for (int c = 0; c < NC; ++c) {
            dk[i][c] = F4S(0.0f);
            dv[i][c] = F4S(0.0f);
        }
    }
    tile_load(kl, q + ldo, RB, j0, T, ld, 1.0f, lid);
    tile_load(vl, q + 2 * ldo, RB, j0, T, ld, 1.0f, lid);
    for (int i0 = 0; i0 < T; i0 += SB) {
        float s[RB / 8][SB / 8], p[RB / 8][SB / 8];
        tile_load(ql, q, SB, i0, T, ld, cs, lid);
        tile_load(gl, g, SB, i0, T, ldo, 1.0f, lid);
        BARRIER();
        TILE_DOT(p, kl, ql, RB / 8, SB / 8)
        TILE_DOT(s, vl, gl, RB / 8, SB / 8)
#pragma unroll
        for (int j = 0; j < SB / 8; ++j) {
            const int row = i0 + tx + 8 * j;
            /* rows past T: P = 1, but their q and dout are zero */
            const float l2 = row < T ? LOG2E * le[row] : 0.0f, e = row < T ? de[row] : 0.0f;
#pragma unroll
            for (int i = 0; i < RB / 8; ++i) {
                p[i][j] = exp2(p[i][j] - l2);
                s[i][j] = p[i][j] * (s[i][j] - e);
                wl[(ty + 8 * i) * (SB + 4) + tx + 8 * j] = p[i][j];
            }
        }
        BARRIER();
        TILE_ACC(dv, wl, SB + 4, gl, RB / 8, SB)
        BARRIER();
#pragma unroll
        for (int i = 0; i < RB / 8; ++i) {
#pragma unroll
            for (int j = 0; j < SB / 8; ++j)
                wl[(ty + 8 * i) * (SB + 4) + tx + 8 * j] = s[i][j];
        }
        BARRIER();
        TILE_ACC(dk, wl, SB + 4, ql, RB / 8, SB)
        BARRIER();
    }
#pragma unroll
    for (int i = 0; i < RB / 8; ++i) {
        const int row = j0 + ty + 8 * i;
        if (row < T) {
            GLOBAL float *o = dqkv + dqkv_off + ((dfcl_i64)b * T + row) * ld + ldo + h * DD;
#pragma unroll
            for (int c = 0; c < NC; ++c)
                if (tx + 8 * c < D4) {
                    row_store4(o, tx + 8 * c, dk[i][c] * LN2); /* q carried cs: scale / cs = ln 2 */
                    row_store4(o + ldo, tx + 8 * c, dv[i][c]);
                }
        }
    }
}

/* dq. Resident: queries (times cs) and dout; streaming: keys and values. */
DFCL_KERNEL(64, 1, 1)
attn_bwd_dq(const GLOBAL float *qkv, dfcl_i64 qkv_off, const GLOBAL float *lse, dfcl_i64 lse_off, const GLOBAL float *delta,
            dfcl_i64 delta_off, const GLOBAL float *dout, dfcl_i64 dout_off, GLOBAL float *dqkv, dfcl_i64 dqkv_off, int T, int H,
            int blocks, float cs, float scale) {
    LOCAL_ARRAY float ql[RB * LD];
    LOCAL_ARRAY float gl[RB * LD];
    LOCAL_ARRAY float kl[SB * LD];
    LOCAL_ARRAY float vl[SB * LD];
    LOCAL_ARRAY float wl[RB * (SB + 4)];
    const int lid = LID(0), tx = lid & 7, ty = lid >> 3;
    const int bh = GRP(0) / blocks, i0 = (GRP(0) - bh * blocks) * RB, b = bh / H, h = bh - b * H, ldo = H * DD, ld = 3 * ldo;
    const GLOBAL float *q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, *g = dout + dout_off + (dfcl_i64)b * T * ldo + h * DD;
    float4 dq[RB / 8][NC];
    float l2[RB / 8], e[RB / 8];
    ITEM_COLUMNS
#pragma unroll
    for (int i = 0; i < RB / 8; ++i) {
        const int row = i0 + ty + 8 * i;
        l2[i] = row < T ? LOG2E * lse[lse_off + (dfcl_i64)bh * T + row] : 0.0f;
        e[i] = row < T ? delta[delta_off + (dfcl_i64)bh * T + row] : 0.0f;
#pragma unroll
        for (int c = 0; c < NC; ++c)
            dq[i][c] = F4S(0.0f);
    }
    tile_load(ql, q, RB, i0, T, ld, cs, lid);
    tile_load(gl, g, RB, i0, T, ldo, 1.0f, lid);
    for (int j0 = 0; j0 < T; j0 += SB) {
        float s[RB / 8][SB / 8], p[RB / 8][SB / 8];
        tile_load(kl, q + ldo, SB, j0, T, ld, 1.0f, lid);
        tile_load(vl, q + 2 * ldo, SB, j0, T, ld, 1.0f, lid);
        BARRIER();
        TILE_DOT(p, ql, kl, RB / 8, SB / 8)
        TILE_DOT(s, gl, vl, RB / 8, SB / 8)
#pragma unroll
        for (int i = 0; i < RB / 8; ++i) {
#pragma unroll
            for (int j = 0; j < SB / 8; ++j) /* keys past T: nothing */
                wl[(ty + 8 * i) * (SB + 4) + tx + 8 * j] = j0 + tx + 8 * j < T ? exp2(p[i][j] - l2[i]) * (s[i][j] - e[i]) : 0.0f;
        }
        BARRIER();
        TILE_ACC(dq, wl, SB + 4, kl, RB / 8, SB)
        BARRIER();
    }
#pragma unroll
    for (int i = 0; i < RB / 8; ++i) {
        const int row = i0 + ty + 8 * i;
        if (row < T) {
            GLOBAL float *o = dqkv + dqkv_off + ((dfcl_i64)b * T + row) * ld + h * DD;
#pragma unroll
            for (int c = 0; c < NC; ++c)
                if (tx + 8 * c < D4)
                    row_store4(o, tx + 8 * c, dq[i][c] * scale);
        }
    }
}
