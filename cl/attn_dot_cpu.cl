/* Attention on CPUs by bf16 dot products (DFCL_DOT): the formulas of attn_cpu.cl, memory in f32. The operands of the products (q, k,
 * v, dout, P and dS) are rounded to bf16 (to nearest even); sums, softmax, log-sum-exp and delta are f32. 512-bit vectors only.
 *
 * A unit of work is one head of one sample and a part of its queries (forward) or keys (backward); an item walks over units gid, gid + items, ...
 * A lane stands for a query. Queries go in tiles of QT; scores are held as [key][query], so that softmax needs no sum over lanes, keys and
 * values are read one pair at a time for all lanes (where they lie in rows, nothing but queries is transposed), and what is summed over keys
 * comes out as [head size][query]. What is summed over queries (dk, dv) has the head size along lanes.
 * Keys go in blocks that stay in the first-level cache; softmax is brought up to date with each block. Head sizes are built in (DD), odd
 * ones with a zero at the end of a row of pairs; any T: rows past the end are zeros, and scores of keys past it are masked.
 *
 * Two rows of queries packed into words of (2i, 2i + 1), as sums over queries want them, give pairs of keys by shifts and masks, with the even
 * queries first: tiles that were summed over keys have their lanes in this order (LANE_QUERY). Sums have one fixed order. */
#pragma OPENCL FP_CONTRACT ON

#ifndef DD
#define DD 72
#endif
#ifndef NQ
#define NQ 2 /* vectors of a tile of queries: 2, or 1 where there are few queries */
#endif
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("nounroll") /* long bodies: compile time */

#define QT (16 * NQ)         /* queries of a tile */
#define TK 8                 /* keys of a register tile */
#define D2 ((DD + 1) / 2)    /* words of a row: pairs along the head size */
#define TD ((DD + 11) / 12 * 12 <= (DD + 7) / 8 * 8 ? 12 : 8) /* rows of a register tile that is summed over keys */
#define NS ((DD + TD - 1) / TD)
#define DP (NS * TD)
#define PAD16(n) (((n) + 15) / 16 * 16)
#define KF 128               /* forward: keys of a block */
#define KB 64                /* backward: keys of a block */
#define QB 128               /* backward: queries of a block */
#define NVD ((DD + 15) / 16) /* vectors of a row with the head size along lanes, in NCH chunks of CV */
#define NCH ((NVD + 4) / 5)
#define CV ((NVD + NCH - 1) / NCH)
#define CW (CV * 16)
#define SLAB(keys) ((keys) / 2 * TD + 16) /* words of TD columns of pairs of keys */

typedef GLOBAL float *fptr;
typedef const GLOBAL float *cfptr;
typedef GLOBAL uint *uptr;
typedef const GLOBAL uint *cuptr;

/* Stores to global memory in one piece: what vstore16 becomes with LLVM 15 is four stores of 128 bits. */
typedef float16 vf_any __attribute__((aligned(4)));
typedef uint16 vu_any __attribute__((aligned(4)));
#define PUT(p, v) (*(GLOBAL vf_any *)(p) = (v))
#define PUTU(p, v) (*(GLOBAL vu_any *)(p) = (v))

#if NQ == 2
#define LANE_QUERY(v, i) (2 * (i) + (v))
#else
#define LANE_QUERY(v, i) ((i) < 8 ? 2 * (i) : 2 * (i) - 15)
#endif

/* 2^t for t <= 127, relative error below 3e-6 (P is rounded to 4e-3), 1 for 0; 2^-126 for t < -126; NaN stays NaN. The magic number
 * rounds t to an integer n and leaves n + 127 in the low bits. Polynomial: minimax on [-1/2, 1/2] with 1 at 0. */
DFCL_FN vf exp2_v(vf t) {
    t = t < -126.0f ? (vf)(-126.0f) : t;
    const vf s = t + 12583039.0f;
    const vf f = t - (s - 12583039.0f);
    vf p = f * 9.582853429e-03f + 5.590642547e-02f;
    p = p * f + 2.402409861e-01f;
    p = p * f + 6.931241933e-01f;
    p = p * f + 1.0f;
    return p * as_vf(as_vi(s) << 23);
}

/* 16 floats of a row of DD from d on, zeros past its end; d is a multiple of 16. */
DFCL_FN vf row_part(cfptr p, int d) {
    if (d + 16 <= DD)
        return VLD(p + d);
    if (d >= DD)
        return (vf)(0.0f);
#if DD % 16 == 8
    return (vf)(vload8(0, p + d), (float8)(0.0f));
#else
    return dfcl_vld_part(p + d, DD % 16);
#endif
}
/* v, or what of it is within a row of DD, to p + d. */
DFCL_FN void row_part_store(fptr p, int d, vf v) {
    if (d + 16 <= DD) {
        PUT(p + d, v);
    } else {
#if DD % 16 == 8
        vstore8(v.lo, 0, p + d);
#else
        dfcl_vst_part(p + d, v, DD % 16);
#endif
    }
}

#define ROW_FULL(p, d) VLD((p) + (d))
#define ROW_FULL_STORE(p, d, v) PUT((p) + (d), v)

/* 16 x 16 words: rows become columns. Rounds of interleaving the first half of the rows with the second. */
#define ZIP(x, y)                                                                                                                        \
    UNROLL                                                                                                                               \
    for (int i_ = 0; i_ < 8; ++i_) {                                                                                                     \
        y[2 * i_].even = x[i_].lo;                                                                                                       \
        y[2 * i_].odd = x[i_ + 8].lo;                                                                                                    \
        y[2 * i_ + 1].even = x[i_].hi;                                                                                                   \
        y[2 * i_ + 1].odd = x[i_ + 8].hi;                                                                                                \
    }
#define TRANSPOSE(T, a)                                                                                                                  \
    {                                                                                                                                    \
        T b_[16];                                                                                                                        \
        ZIP(a, b_)                                                                                                                       \
        ZIP(b_, a)                                                                                                                       \
        ZIP(a, b_)                                                                                                                       \
        ZIP(b_, a)                                                                                                                       \
    }

/* dst [D2] = pairs along the head size of a row; writes up to 15 words more. */
DFCL_FN void pack_row(uptr dst, cfptr src) {
    UNROLL
    for (int d = 0; d < D2; d += 16)
        PUTU(dst + d, dfcl_vrow(row_part(src, 2 * d), row_part(src, 2 * d + 16)));
}
DFCL_FN void zero_words(uptr p, int n) {
    for (int i = 0; i < n; ++i)
        p[i] = 0;
}
/* dst [D2][QT] = rows 0 .. n - 1 (n <= QT) of src as pairs along the head size, a query a lane; lanes from n on as the last one. Writes up to
 * 15 rows more. */
#define PACK_TILE(LD, d)                                                                                                                 \
    {                                                                                                                                    \
        vu a[16];                                                                                                                        \
        UNROLL                                                                                                                           \
        for (int i = 0; i < 16; ++i) {                                                                                                   \
            const cfptr p = src + (dfcl_i64)min(v * 16 + i, n - 1) * ld;                                                                 \
            a[i] = dfcl_vrow(LD(p, 2 * (d)), LD(p, 2 * (d) + 16));                                                                       \
        }                                                                                                                                \
        TRANSPOSE(vu, a)                                                                                                                 \
        UNROLL                                                                                                                           \
        for (int i = 0; i < 16; ++i)                                                                                                     \
            PUTU(dst + ((d) + i) * QT + v * 16, a[i]);                                                                                   \
    }
DFCL_FN void pack_tile(uptr dst, cfptr src, int ld, int n) {
    ROLLED
    for (int v = 0; v < NQ; ++v) {
        ROLLED
        for (int d = 0; d < DD / 32 * 16; d += 16)
            PACK_TILE(ROW_FULL, d)
        if (DD % 32 != 0)
            PACK_TILE(row_part, DD / 32 * 16)
    }
}
/* Columns d .. d + 15 of rows j and j + 1 of src in pairs of rows; zeros for rows from n on. */
DFCL_FN vu pair_part(cfptr src, int ld, int j, int n, int d) {
    const cfptr p = src + (dfcl_i64)min(j, n - 1) * ld;
    const vf x = j < n ? row_part(p, d) : (vf)(0.0f);
    const vf y = j + 1 < n ? row_part(p + ld, d) : (vf)(0.0f);
    return dfcl_vpair(x, y);
}

/* acc[i][v] += sum_{k < n} a[i * SA + k * KA] . b[k * QT + v * 16] */
#define TILE(acc, R, a, SA, KA, b, n)                                                                                                    \
    ROLLED                                                                                                                               \
    for (int k_ = 0; k_ < (n); ++k_) {                                                                                                   \
        vu b_[NQ];                                                                                                                       \
        UNROLL                                                                                                                           \
        for (int v_ = 0; v_ < NQ; ++v_)                                                                                                  \
            b_[v_] = VLDU((b) + k_ * QT + v_ * 16);                                                                                      \
        UNROLL                                                                                                                           \
        for (int i_ = 0; i_ < (R); ++i_) {                                                                                               \
            const vu s_ = (vu)((a)[i_ * (SA) + k_ * (KA)]);                                                                              \
            UNROLL                                                                                                                       \
            for (int v_ = 0; v_ < NQ; ++v_)                                                                                              \
                DFCL_DOT(acc[i_][v_], s_, b_[v_]);                                                                                       \
        }                                                                                                                                \
    }
#define ZERO(acc, R, N)                                                                                                                  \
    UNROLL                                                                                                                               \
    for (int i_ = 0; i_ < (R); ++i_) {                                                                                                   \
        UNROLL                                                                                                                           \
        for (int v_ = 0; v_ < (N); ++v_)                                                                                                 \
            acc[i_][v_] = (vf)(0.0f);                                                                                                    \
    }

/* o [DP][QT] = (more ? o : 0) + sum over n pairs of keys: slabs a, `slab` words each, times b [n][QT]. */
DFCL_FN void sum_keys(fptr o, cuptr a, int slab, cuptr b, int n, int more) {
    ROLLED
    for (int s = 0; s < NS; ++s) {
        const fptr p = o + s * TD * QT;
        const cuptr w = a + (dfcl_i64)s * slab;
        vf c[TD][NQ];
        UNROLL
        for (int i = 0; i < TD; ++i) {
            UNROLL
            for (int v = 0; v < NQ; ++v)
                c[i][v] = more ? VLD(p + i * QT + v * 16) : (vf)(0.0f);
        }
        TILE(c, TD, w, 1, TD, b, n)
        UNROLL
        for (int i = 0; i < TD; ++i) {
            UNROLL
            for (int v = 0; v < NQ; ++v)
                PUT(p + i * QT + v * 16, c[i][v]);
        }
    }
}

/* o [NCH][KB][CW], rows 0 .. keys - 1 = (more ? o : 0) + sum over n pairs of queries: words a [keys][QB/2] times b [NCH][cap][CW]. */
#define KR (CV >= 4 ? 4 : 8)
#define HALF (NCH == 1 && DD % 16 >= 1 && DD % 16 <= 8) /* the last vector has 256 bits */
#ifdef DFCL_DOT_EMULATE
#define DOT8(acc, a, b)                                                                                                                  \
    (acc) = dfcl_vfma(as_float8((a) << 16), as_float8((b) << 16), dfcl_vfma(as_float8((a) & 0xffff0000u), as_float8((b) & 0xffff0000u), acc))
#else
#define DOT8 DFCL_DOT
#endif
DFCL_FN void sum_queries(fptr o, cuptr a, cuptr b, int cap, int keys, int n, int more) {
    for (int h = 0; h < NCH; ++h)
        for (int j = 0; j < keys; j += KR) {
            const fptr p = o + (h * KB + j) * CW;
            const cuptr w = a + j * (QB / 2), x = b + (dfcl_i64)h * cap * CW;
            vf c[KR][CV];
            float8 c8[KR];
            UNROLL
            for (int i = 0; i < KR; ++i) {
                UNROLL
                for (int v = 0; v < CV - HALF; ++v)
                    c[i][v] = more ? VLD(p + i * CW + v * 16) : (vf)(0.0f);
                if (HALF)
                    c8[i] = more ? vload8(0, p + i * CW + CW - 16) : (float8)(0.0f);
            }
            for (int k = 0; k < n; ++k) {
                vu xv[CV];
                uint8 x8;
                UNROLL
                for (int v = 0; v < CV - HALF; ++v)
                    xv[v] = VLDU(x + k * CW + v * 16);
                if (HALF)
                    x8 = vload8(0, x + k * CW + CW - 16);
                UNROLL
                for (int i = 0; i < KR; ++i) {
                    const vu s = (vu)(w[i * (QB / 2) + k]);
                    UNROLL
                    for (int v = 0; v < CV - HALF; ++v)
                        DFCL_DOT(c[i][v], s, xv[v]);
                    if (HALF)
                        DOT8(c8[i], s.lo, x8);
                }
            }
            UNROLL
            for (int i = 0; i < KR; ++i) {
                UNROLL
                for (int v = 0; v < CV - HALF; ++v)
                    PUT(p + i * CW + v * 16, c[i][v]);
                if (HALF)
                    vstore8(c8[i], 0, p + i * CW + CW - 16);
            }
        }
}

/* Two keys' scores x, y of a tile of queries. Pairs of queries: q0 (key of x), q1, QT/2 words each. Pairs of keys: dst [QT], lanes by LANE_QUERY. */
#if NQ == 2
#define ROWS_OF(x, y) const vu w0_ = dfcl_vrow(x[0], x[1]), w1_ = dfcl_vrow(y[0], y[1]);
#define STORE_QUERY_PAIRS(q0, q1)                                                                                                        \
    PUTU(q0, w0_);                                                                                                                       \
    PUTU(q1, w1_);
#define STORE_KEY_PAIRS(dst)                                                                                                             \
    PUTU(dst, (w0_ & 0xffffu) | (w1_ << 16));                                                                                            \
    PUTU((dst) + 16, (w0_ >> 16) | (w1_ & 0xffff0000u));
#else
#define ROWS_OF(x, y) const vu w0_ = dfcl_vrow(x[0], y[0]);
#define STORE_QUERY_PAIRS(q0, q1)                                                                                                        \
    vstore8(w0_.lo, 0, q0);                                                                                                              \
    vstore8(w0_.hi, 0, q1);
#define STORE_KEY_PAIRS(dst)                                                                                                             \
    PUTU(dst, (vu)((w0_.lo & 0xffffu) | (w0_.hi << 16), (w0_.lo >> 16) | (w0_.hi & 0xffff0000u)));
#endif
/* Lanes of queries in order -> in the order of LANE_QUERY. */
DFCL_FN void lanes_even_odd(vf x[NQ]) {
#if NQ == 2
    const vf e = (vf)(x[0].even, x[1].even), o = (vf)(x[0].odd, x[1].odd);
    x[0] = e;
    x[1] = o;
#else
    x[0] = (vf)(x[0].even, x[0].odd);
#endif
}
/* Rows 0 .. n - 1 of dst (`ld` apart) = o [DD][QT] times f, which has o's lanes. */
#define TILE_STORE(ST, d)                                                                                                                \
    {                                                                                                                                    \
        vf a[16];                                                                                                                        \
        UNROLL                                                                                                                           \
        for (int i = 0; i < 16; ++i)                                                                                                     \
            a[i] = VLD(o + ((d) + i) * QT + v * 16) * g;                                                                                 \
        TRANSPOSE(vf, a)                                                                                                                 \
        UNROLL                                                                                                                           \
        for (int i = 0; i < 16; ++i)                                                                                                     \
            if (LANE_QUERY(v, i) < n)                                                                                                    \
                ST(dst + (dfcl_i64)LANE_QUERY(v, i) * ld, d, a[i]);                                                                      \
    }
DFCL_FN void tile_store(fptr dst, int ld, cfptr o, int n, const vf f[NQ]) {
    ROLLED
    for (int v = 0; v < NQ; ++v) {
        const vf g = v == 0 ? f[0] : f[NQ - 1];
        ROLLED
        for (int d = 0; d < DD / 16 * 16; d += 16)
            TILE_STORE(ROW_FULL_STORE, d)
        if (DD % 16 != 0)
            TILE_STORE(row_part_store, DD / 16 * 16)
    }
}

#define SCALE(c)                                                                                                                         \
    UNROLL                                                                                                                               \
    for (int i_ = 0; i_ < TK; ++i_) {                                                                                                    \
        UNROLL                                                                                                                           \
        for (int v_ = 0; v_ < NQ; ++v_)                                                                                                  \
            c[i_][v_] *= cs;                                                                                                             \
    }
/* The scores of a register tile's keys from keys_left on: as if never asked for. */
#define MASK(c, keys_left)                                                                                                               \
    if ((keys_left) < TK) {                                                                                                              \
        UNROLL                                                                                                                           \
        for (int i_ = 0; i_ < TK; ++i_)                                                                                                  \
            if (i_ >= (keys_left)) {                                                                                                     \
                UNROLL                                                                                                                   \
                for (int v_ = 0; v_ < NQ; ++v_)                                                                                          \
                    c[i_][v_] = (vf)(-1e30f);                                                                                            \
            }                                                                                                                            \
    }

/* Slabs [NS][SLAB(cap)] = rows 0 .. n - 1 of src as pairs of keys; zeros from n on to `rows`, which is even. */
DFCL_FN void pack_key_pairs(uptr dst, cfptr src, int ld, int n, int rows, int cap) {
    for (int j = 0; j < rows; j += 2) {
        uint t[PAD16(DP) + 16];
        UNROLL
        for (int d = 0; d < DP; d += 16)
            VSTU(t + d, pair_part(src, ld, j, n, d));
        UNROLL
        for (int s = 0; s < NS; ++s)
            PUTU(dst + (dfcl_i64)s * SLAB(cap) + j / 2 * TD, VLDU(t + s * TD));
    }
}

/* Asks early for the lines of a row of DD floats: rows of a head lie far apart. */
DFCL_FN void row_fetch(cfptr p) {
    UNROLL
    for (int d = 0; d < DD + 15; d += 16)
        dfcl_fetch(p + min(d, DD - 1), 0);
}

/* ---- forward ----
 * Scratch of an item, words: k in pairs along the head size [TP][D2], slabs of v in pairs of keys [NS][SLAB(TP)], q [D2][QT], a block of
 * scores, then of pairs of P [KF][QT], out [DP][QT]; TP = T rounded up to TK; 16 rows or words of room behind what is written in whole vectors.
 * `parts` units per head, each of `rows` queries; cs = scale * log2(e). */
DFCL_KERNEL(1, 1, 1) attn_fwd_dot_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *lse,
                                      dfcl_i64 lse_off, int has_lse, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size, int T,
                                      int H, int parts, int rows, int units, int items, float cs) {
    const int TP = (T + TK - 1) / TK * TK, ldo = H * DD, ld = 3 * ldo;
    const fptr base = scratch + scratch_off + item_size * GRP(0);
    const uptr kd = (uptr)base;
    const uptr vs = kd + PAD16((dfcl_i64)TP * D2 + 16);
    const uptr qt = vs + PAD16((dfcl_i64)NS * SLAB(TP));
    const uptr P = qt + (D2 + 16) * QT;
    const fptr S = (fptr)P;
    const fptr o = S + KF * QT;
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, b = bh / H, h = bh - b * H;
        const int r0 = (u - bh * parts) * rows, r1 = min(r0 + rows, T);
        const cfptr q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, k = q + ldo, v = k + ldo;
        if (r0 >= r1)
            continue;
        /* While a register tile of keys is multiplied: the rows of out, the next tile's of q, and where a cache keeps them, the next head's. */
        const int ahead = (QT * TK + TP - 1) / TP, next = parts == 1 && T <= 384 && h + 1 < H ? DD : 0;
        for (int j = 0; j < T; ++j)
            pack_row(kd + (dfcl_i64)j * D2, k + (dfcl_i64)j * ld);
        zero_words(kd + (dfcl_i64)T * D2, (TP - T) * D2);
        pack_key_pairs(vs, v, ld, T, TP, TP);
        for (int r = r0; r < r1; r += QT) {
            const int n = min(QT, r1 - r);
            pack_tile(qt, q + (dfcl_i64)r * ld, ld, n);
            vf m[NQ], l[NQ], mx[NQ], f[NQ];
            UNROLL
            for (int w = 0; w < NQ; ++w) {
                m[w] = (vf)(-1e30f);
                l[w] = (vf)(0.0f);
            }
            for (int j0 = 0; j0 < TP; j0 += KF) {
                const int nk = min(KF, TP - j0);
                UNROLL
                for (int w = 0; w < NQ; ++w)
                    mx[w] = m[w];
                for (int j = 0; j < nk; j += TK) {
                    for (int i = (j0 + j) / TK * ahead; i < min((j0 + j + TK) / TK * ahead, n); ++i) {
                        row_fetch(out + out_off + ((dfcl_i64)b * T + r + i) * ldo + h * DD);
                        row_fetch(q + (dfcl_i64)min(r + i + QT, T - 1) * ld);
                        if (next) {
                            row_fetch(q + (dfcl_i64)(r + i) * ld + next);
                            row_fetch(k + (dfcl_i64)(r + i) * ld + next);
                            row_fetch(v + (dfcl_i64)(r + i) * ld + next);
                        }
                    }
                    vf c[TK][NQ];
                    ZERO(c, TK, NQ)
                    const cuptr a = kd + (dfcl_i64)(j0 + j) * D2;
                    TILE(c, TK, a, D2, 1, qt, D2)
                    SCALE(c)
                    MASK(c, T - j0 - j)
                    UNROLL
                    for (int i = 0; i < TK; ++i) {
                        UNROLL
                        for (int w = 0; w < NQ; ++w) {
                            PUT(S + (j + i) * QT + w * 16, c[i][w]);
                            mx[w] = c[i][w] > mx[w] ? c[i][w] : mx[w];
                        }
                    }
                }
                if (j0 > 0) {
                    UNROLL
                    for (int w = 0; w < NQ; ++w) {
                        f[w] = exp2_v(m[w] - mx[w]);
                        l[w] *= f[w];
                    }
                    lanes_even_odd(f);
                    for (int d = 0; d < DP; ++d) {
                        UNROLL
                        for (int w = 0; w < NQ; ++w)
                            PUT(o + d * QT + w * 16, VLD(o + d * QT + w * 16) * f[w]);
                    }
                }
                UNROLL
                for (int w = 0; w < NQ; ++w)
                    m[w] = mx[w];
                for (int j = 0; j < nk; j += 2) { /* pairs of P take the place of scores that were read before */
                    vf x[NQ], y[NQ];
                    UNROLL
                    for (int w = 0; w < NQ; ++w) {
                        x[w] = exp2_v(VLD(S + j * QT + w * 16) - m[w]);
                        y[w] = exp2_v(VLD(S + (j + 1) * QT + w * 16) - m[w]);
                        l[w] += x[w] + y[w];
                    }
                    ROWS_OF(x, y)
                    STORE_KEY_PAIRS(P + j / 2 * QT)
                }
                sum_keys(o, vs + j0 / 2 * TD, SLAB(TP), P, nk / 2, j0 > 0);
            }
            UNROLL
            for (int w = 0; w < NQ; ++w)
                f[w] = 1.0f / l[w];
            lanes_even_odd(f);
            tile_store(out + out_off + ((dfcl_i64)b * T + r) * ldo + h * DD, ldo, o, n, f);
            if (has_lse) {
                UNROLL
                for (int w = 0; w < NQ; ++w)
                    if (w * 16 < n)
                        dfcl_vst_part(lse + lse_off + (dfcl_i64)bh * T + r + w * 16, m[w] * 0.69314718056f + log(l[w]), min(n - w * 16, 16));
            }
        }
    }
}

/* ---- backward ----
 * Scratch of an item, words: q and dout in pairs along the head size, a query a lane [TQ/QT][D2][QT] each; both in pairs of
 * queries, the head size along lanes [NCH][TQ/2][CW]; delta, lse * log2(e) [TQ]; of a block of keys: k and v in pairs along the head size
 * [KB][D2], slabs of k in pairs of keys [NS][SLAB(KB)], dk and dv [NCH][KB][CW]; P and dS of a block in pairs of queries [KB][QB/2], dS of
 * a tile in pairs of keys [KB/2][QT], P of a register tile [TK][QT]. TQ = T rounded up to QT.
 * dq [TQ/QT][DP][QT] lies in `dq`, one of each item; where a head is cut into several units of `keys` keys, one of each unit, and
 * attn_bwd_dq_dot_cpu adds them up in order. */
DFCL_KERNEL(1, 1, 1) attn_bwd_dot_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, const GLOBAL float *out, dfcl_i64 out_off,
                                      const GLOBAL float *lse, dfcl_i64 lse_off, const GLOBAL float *dout, dfcl_i64 dout_off,
                                      GLOBAL float *dqkv, dfcl_i64 dqkv_off, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size,
                                      GLOBAL float *dqs, dfcl_i64 dqs_off, dfcl_i64 dq_size, int T, int H, int parts, int keys, int units,
                                      int items, float cs, float scale) {
    const int TQ = (T + QT - 1) / QT * QT, ldo = H * DD, ld = 3 * ldo;
    const uptr qt = (uptr)(scratch + scratch_off + item_size * GRP(0));
    const uptr gt = qt + (dfcl_i64)TQ * D2 + 16 * QT;
    const uptr qp = gt + (dfcl_i64)TQ * D2 + 16 * QT;
    const uptr gp = qp + (dfcl_i64)NCH * (TQ / 2) * CW;
    const fptr delta = (fptr)(gp + (dfcl_i64)NCH * (TQ / 2) * CW);
    const fptr l2 = delta + TQ;
    const uptr kd = (uptr)(l2 + TQ);
    const uptr vd = kd + PAD16(KB * D2 + 16);
    const uptr kk = vd + PAD16(KB * D2 + 16);
    const fptr dk = (fptr)(kk + PAD16(NS * SLAB(KB)));
    const fptr dv = dk + NCH * KB * CW;
    const uptr P = (uptr)(dv + NCH * KB * CW);
    const uptr S = P + KB * (QB / 2);
    const uptr X = S + KB * (QB / 2);
    const fptr pt = (fptr)(X + KB / 2 * QT);
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, b = bh / H, h = bh - b * H;
        const int k0 = (u - bh * parts) * keys, k1 = min(k0 + keys, T);
        const dfcl_i64 tok = (dfcl_i64)b * T;
        const cfptr q = qkv + qkv_off + tok * ld + h * DD, k = q + ldo, v = k + ldo;
        const cfptr go = dout + dout_off + tok * ldo + h * DD;
        const fptr gq = dqkv + dqkv_off + tok * ld + h * DD;
        const fptr dq = dqs + dqs_off + (parts > 1 ? u : GRP(0)) * dq_size;
        for (int r = 0; r < TQ; r += QT) {
            pack_tile(qt + (dfcl_i64)r * D2, q + (dfcl_i64)r * ld, ld, min(QT, T - r));
            pack_tile(gt + (dfcl_i64)r * D2, go + (dfcl_i64)r * ldo, ldo, min(QT, T - r));
        }
        for (int i = 0; i < TQ; i += 2)
            for (int c = 0; c < NCH; ++c) {
                const uptr xp = qp + ((dfcl_i64)c * (TQ / 2) + i / 2) * CW, yp = gp + ((dfcl_i64)c * (TQ / 2) + i / 2) * CW;
                UNROLL
                for (int w = 0; w < CV; ++w) {
                    PUTU(xp + w * 16, pair_part(q, ld, i, T, c * CW + w * 16));
                    PUTU(yp + w * 16, pair_part(go, ldo, i, T, c * CW + w * 16));
                }
            }
        for (int i = 0; i < TQ; ++i) {
            vf e = (vf)(0.0f);
            if (i < T) {
                const cfptr x = out + out_off + (tok + i) * ldo + h * DD, y = go + (dfcl_i64)i * ldo;
                UNROLL
                for (int d = 0; d < DD; d += 16)
                    e = row_part(x, d) * row_part(y, d) + e;
            }
            delta[i] = dfcl_vsum(e);
            l2[i] = 1.44269504089f * lse[lse_off + (dfcl_i64)bh * T + min(i, T - 1)];
        }
        /* The next head's rows to ask for early, where a cache keeps them: from `ahead` on, some with each register tile. */
        int ahead = parts == 1 && T <= 256 && h + 1 < H ? 0 : T;
        const int some = (QT * TK + TQ - 1) / TQ;
        for (int j0 = k0; j0 < k1; j0 += KB) {
            const int n = min(KB, k1 - j0), nk = (n + TK - 1) / TK * TK;
            for (int j = 0; j < n; ++j) {
                pack_row(kd + j * D2, k + (dfcl_i64)(j0 + j) * ld);
                pack_row(vd + j * D2, v + (dfcl_i64)(j0 + j) * ld);
            }
            zero_words(kd + n * D2, (nk - n) * D2);
            zero_words(vd + n * D2, (nk - n) * D2);
            pack_key_pairs(kk, k + (dfcl_i64)j0 * ld, ld, n, nk, KB);
            for (int r = 0; r < TQ; r += QB) {
                const int nq = min(QB, TQ - r);
                for (int t = 0; t < nq; t += QT) {
                    const cuptr qa = qt + (dfcl_i64)(r + t) * D2, ga = gt + (dfcl_i64)(r + t) * D2;
                    vf lv[NQ], ev[NQ];
                    UNROLL
                    for (int w = 0; w < NQ; ++w) {
                        lv[w] = VLD(l2 + r + t + w * 16);
                        ev[w] = VLD(delta + r + t + w * 16);
                    }
                    for (int j = 0; j < nk; j += TK) {
                        for (int i = j; r + t == 0 && i < min(j + TK, n); ++i) {
                            row_fetch(gq + ldo + (dfcl_i64)(j0 + i) * ld);
                            row_fetch(gq + 2 * ldo + (dfcl_i64)(j0 + i) * ld);
                        }
                        for (const int end = min(ahead + some, T); ahead < end; ++ahead) {
                            row_fetch(q + (dfcl_i64)ahead * ld + DD);
                            row_fetch(k + (dfcl_i64)ahead * ld + DD);
                            row_fetch(v + (dfcl_i64)ahead * ld + DD);
                            row_fetch(out + out_off + (tok + ahead) * ldo + (h + 1) * DD);
                            row_fetch(go + (dfcl_i64)ahead * ldo + DD);
                        }
                        const uptr p2 = P + j * (QB / 2) + t / 2, s2 = S + j * (QB / 2) + t / 2;
                        {
                            vf c[TK][NQ];
                            ZERO(c, TK, NQ)
                            const cuptr a = kd + j * D2;
                            TILE(c, TK, a, D2, 1, qa, D2)
                            SCALE(c)
                            MASK(c, n - j)
                            UNROLL
                            for (int i = 0; i < TK; ++i) {
                                UNROLL
                                for (int w = 0; w < NQ; ++w) {
                                    c[i][w] = exp2_v(c[i][w] - lv[w]);
                                    PUT(pt + i * QT + w * 16, c[i][w]);
                                }
                            }
                            UNROLL
                            for (int i = 0; i < TK; i += 2) {
                                ROWS_OF(c[i], c[i + 1])
                                STORE_QUERY_PAIRS(p2 + i * (QB / 2), p2 + (i + 1) * (QB / 2))
                            }
                        }
                        {
                            vf c[TK][NQ];
                            ZERO(c, TK, NQ)
                            const cuptr a = vd + j * D2;
                            TILE(c, TK, a, D2, 1, ga, D2)
                            UNROLL
                            for (int i = 0; i < TK; i += 2) {
                                vf x[NQ], y[NQ];
                                UNROLL
                                for (int w = 0; w < NQ; ++w) {
                                    x[w] = VLD(pt + i * QT + w * 16) * (c[i][w] - ev[w]);
                                    y[w] = VLD(pt + (i + 1) * QT + w * 16) * (c[i + 1][w] - ev[w]);
                                }
                                ROWS_OF(x, y)
                                STORE_QUERY_PAIRS(s2 + i * (QB / 2), s2 + (i + 1) * (QB / 2))
                                STORE_KEY_PAIRS(X + (j + i) / 2 * QT)
                            }
                        }
                    }
                    sum_keys(dq + (dfcl_i64)(r + t) * DP, kk, SLAB(KB), X, nk / 2, j0 > k0);
                }
                sum_queries(dv, P, gp + (dfcl_i64)(r / 2) * CW, TQ / 2, nk, nq / 2, r > 0);
                sum_queries(dk, S, qp + (dfcl_i64)(r / 2) * CW, TQ / 2, nk, nq / 2, r > 0);
            }
            for (int j = 0; j < n; ++j) {
                const fptr row = gq + ldo + (dfcl_i64)(j0 + j) * ld;
                UNROLL
                for (int d = 0; d < DD; d += 16) {
                    const int at = (d / CW * KB + j) * CW + d % CW;
                    row_part_store(row, d, VLD(dk + at) * scale);
                    row_part_store(row + ldo, d, VLD(dv + at));
                }
            }
        }
        vf f[NQ];
        UNROLL
        for (int w = 0; w < NQ; ++w)
            f[w] = (vf)(scale);
        for (int r = 0; r < TQ && parts == 1; r += QT)
            tile_store(gq + (dfcl_i64)r * ld, ld, dq + (dfcl_i64)r * DP, min(QT, T - r), f);
    }
}

/* dq = sum over parts, in order, times scale; one item per head and tile of queries. The sum takes the first part's place. */
DFCL_KERNEL(1, 1, 1) attn_bwd_dq_dot_cpu(GLOBAL float *dqs, dfcl_i64 dqs_off, dfcl_i64 dq_size, GLOBAL float *dqkv, dfcl_i64 dqkv_off, int T,
                                         int H, int parts, float scale) {
    const int bh = GRP(1), b = bh / H, h = bh - b * H, ld = 3 * H * DD, r = GRP(0) * QT;
    const fptr p = dqs + dqs_off + (dfcl_i64)bh * parts * dq_size + (dfcl_i64)r * DP;
    for (int i = 0; i < DP * QT; i += 16) {
        vf s = VLD(p + i);
        for (int a = 1; a < parts; ++a)
            s += VLD(p + a * dq_size + i);
        PUT(p + i, s);
    }
    vf f[NQ];
    UNROLL
    for (int w = 0; w < NQ; ++w)
        f[w] = (vf)(scale);
    tile_store(dqkv + dqkv_off + ((dfcl_i64)b * T + r) * ld + h * DD, ld, p, min(QT, T - r), f);
}
