/* Attention on CPUs: one work-item is one thread's job, work-group size 1, explicit vectors of VW floats.
 *
 *   forward   t_ij = scale log2(e) q_i . k_j,  m_i = max_j t_ij,  out_i = sum_j 2^(t_ij - m_i) v_j / sum_j 2^(t_ij - m_i),
 *             lse_i = ln 2 (m_i + log2 sum_j 2^(t_ij - m_i))
 *   backward  P_ij = 2^(t_ij - lse_i log2(e)),  dS_ij = P_ij (dout_i . v_j - dout_i . out_i),
 *             dq_i = scale sum_j dS_ij k_j,  dk_j = scale sum_i dS_ij q_i,  dv_j = sum_i P_ij dout_i
 *
 * A unit of work is one head of one sample and a part of its queries (forward) or keys (backward): whole heads where there are enough of
 * them for the device. An item walks over units gid, gid + items, ..., so that its scratch stays in its core's cache.
 * Operands are first copied to scratch in the form the products read: keys transposed into panels [T/NP][DD][NP], rows padded to DP
 * floats, rows to sum over in slabs. Two register tiles do the work: MR rows x NP keys summed over the head size, PR rows x one slab's width
 * summed over keys or queries. Queries and keys go in blocks, so that what a tile reads again stays in the first-level cache. Head sizes
 * are built in (DD); any T: panels past the end hold copies of the last key and are masked.
 *
 * VW 16 fits 32 registers of 512 bits; 8 and 4 fit 16 registers of 256 and 128 bits. Sums have one fixed order. */
#pragma OPENCL FP_CONTRACT ON /* a * b + c: one instruction where there is one, two (not a library call) elsewhere */

#ifndef DD
#define DD 72
#endif
#define VW DFCL_VW
#if VW == 16
#define MR 8
#define NV 2
#define PR (DD <= 32 ? 8 : 4)
#define PVC 4
#define CAP 5
#else /* 12 accumulators, 15 or 16 registers */
#define MR 6
#define NV 2
#define NVD ((DD + VW - 1) / VW)
#define PR (NVD % 3 == 0 ? 4 : 6)
#define PVC (NVD % 3 == 0 ? 3 : 2)
#define CAP PVC
#endif
#define UNROLL _Pragma("unroll")
#if VW == 16
#define UNROLL_QK
#else
#define UNROLL_QK _Pragma("unroll 4")
#endif

#define NP (VW * NV)           /* keys of a panel */
#if VW == 16
#define QF 8                   /* forward: queries of a block, a multiple of MR and PR */
#define KF 512                 /* forward: keys of a block of scores, a multiple of NP */
#define SS KF                  /* and their stride */
#define KB 128                 /* backward: keys of a block, a multiple of NP */
#define QB 64                  /* backward: queries of a block, a multiple of MR and PR */
#define PS KB                  /* backward: stride of P and dS */
#define DP ((DD + 3) / 4 * 4)  /* a row in scratch */
#else
#define QF 48
#define KF 128
#define SS (KF + 16)
#define KB 128
#define QB 96
#define PS (KB + 16)
#define DP ((DD + PVC * VW - 1) / (PVC * VW) * (PVC * VW))
#endif
#define PAD16(n) (((n) + 15) / 16 * 16)

/* A row of DP floats = NMAIN * PVC + NLAST vectors, then 8 and 4 floats where needed. Rows that products sum over are kept in slabs: NMAIN of
 * PVC vectors a row, then the rest, so that a register tile reads one stretch of memory. */
#define NFULL (DP / VW)
#define TAIL8 (VW == 16 && DP % 16 >= 8)
#define TAIL4 (VW == 16 && DP % 8 == 4)
#define NVEC (NFULL + TAIL8 + TAIL4)
#define NMAIN (NVEC > CAP ? (NVEC - CAP + PVC - 1) / PVC : 0)
#define NLAST (NFULL - NMAIN * PVC)
#define LW (DP - NMAIN * PVC * VW)

typedef GLOBAL float *fptr;
typedef const GLOBAL float *cfptr;

/* 2^t for t <= 127, relative error below 1e-7; 2^-126 for anything less; NaN stays NaN. The magic number rounds t to an integer n and
 * leaves n + 127 in the low bits. Polynomial: minimax on [-1/2, 1/2], 2e-9 before rounding. */
DFCL_FN vf exp2_v(vf t) {
    t = t < -126.0f ? (vf)(-126.0f) : t;
    const vf s = t + 12583039.0f;
    const vf f = t - (s - 12583039.0f);
    vf p = f * 1.535336196e-04f + 1.339887385e-03f;
    p = p * f + 9.618436918e-03f;
    p = p * f + 5.550332367e-02f;
    p = p * f + 2.402264774e-01f;
    p = p * f + 6.931471825e-01f;
    p = p * f + 1.0f;
    return p * as_vf(as_vi(s) << 23);
}

DFCL_FN float max_v(vf v) {
#if VW == 16
    const float8 a = fmax(v.lo, v.hi);
    const float4 b = fmax(a.lo, a.hi);
#elif VW == 8
    const float4 b = fmax(v.lo, v.hi);
#else
    const float4 b = v;
#endif
    return fmax(fmax(b.x, b.z), fmax(b.y, b.w));
}

/* dst [DP] = f src [DD], zeros after it. */
DFCL_FN void row_load(fptr dst, cfptr src, float f) {
    int d = 0;
    for (; d + VW <= DD; d += VW)
        VST(dst + d, VLD(src + d) * f);
#if VW > 4
    for (; d + 4 <= DD; d += 4)
        vstore4(vload4(0, src + d) * f, 0, dst + d);
#endif
    for (; d < DD; ++d)
        dst[d] = src[d] * f;
    for (; d < DP; ++d)
        dst[d] = 0.0f;
}
/* dst [DD] = f src */
DFCL_FN void row_store(fptr dst, cfptr src, float f) {
    int d = 0;
    for (; d + VW <= DD; d += VW)
        VST(dst + d, VLD(src + d) * f);
#if VW > 4
    for (; d + 4 <= DD; d += 4)
        vstore4(vload4(0, src + d) * f, 0, dst + d);
#endif
    for (; d < DD; ++d)
        dst[d] = src[d] * f;
}
/* Row j of slabs of `cap` rows = f src [DD]. */
DFCL_FN void slab_load(fptr dst, int cap, int j, cfptr src, float f) {
#if NMAIN == 0
    row_load(dst + (dfcl_i64)j * DP, src, f);
#else
    UNROLL
    for (int d = 0; d < DP; d += VW) {
        const int m = min(d / (PVC * VW), NMAIN);
        const fptr p = dst + (dfcl_i64)cap * m * (PVC * VW) + (dfcl_i64)j * (m < NMAIN ? PVC * VW : LW) + (d - m * (PVC * VW));
        if (d + VW <= DD) {
            VST(p, VLD(src + d) * f);
        } else {
            for (int i = 0; i < VW && d + i < DP; ++i)
                p[i] = d + i < DD ? src[d + i] * f : 0.0f;
        }
    }
#endif
}
DFCL_FN void zero(fptr p, int n) {
    for (int i = 0; i < n; ++i)
        p[i] = 0.0f;
}

/* VW rows of VW floats, `ld` apart, written as columns NP apart. Rows past the last one repeat it. */
DFCL_FN void transpose_v(fptr dst, cfptr src, int row, int last, int ld) {
#define ROW(i) (src + (dfcl_i64)min(row + (i), last) * ld)
#if VW == 8
    UNROLL
    for (int h = 0; h < 8; h += 4) { /* four columns; two rows in a vector, so that no lane is left */
        float8 a[4];
        UNROLL
        for (int i = 0; i < 4; ++i)
            a[i] = (float8)(vload4(0, ROW(i) + h), vload4(0, ROW(i + 4) + h));
        const float8 b0 = (float8)(a[0].s0, a[1].s0, a[0].s1, a[1].s1, a[0].s4, a[1].s4, a[0].s5, a[1].s5);
        const float8 b1 = (float8)(a[0].s2, a[1].s2, a[0].s3, a[1].s3, a[0].s6, a[1].s6, a[0].s7, a[1].s7);
        const float8 b2 = (float8)(a[2].s0, a[3].s0, a[2].s1, a[3].s1, a[2].s4, a[3].s4, a[2].s5, a[3].s5);
        const float8 b3 = (float8)(a[2].s2, a[3].s2, a[2].s3, a[3].s3, a[2].s6, a[3].s6, a[2].s7, a[3].s7);
        VST(dst + h * NP, (float8)(b0.s01, b2.s01, b0.s45, b2.s45));
        VST(dst + h * NP + NP, (float8)(b0.s23, b2.s23, b0.s67, b2.s67));
        VST(dst + h * NP + 2 * NP, (float8)(b1.s01, b3.s01, b1.s45, b3.s45));
        VST(dst + h * NP + 3 * NP, (float8)(b1.s23, b3.s23, b1.s67, b3.s67));
    }
#else /* rounds of interleaving the first half of the rows with the second */
    vf a[VW], b[VW];
    UNROLL
    for (int i = 0; i < VW; ++i)
        a[i] = VLD(ROW(i));
#define ZIP(x, y)                                                                                                                        \
    UNROLL                                                                                                                               \
    for (int i = 0; i < VW / 2; ++i) {                                                                                                   \
        y[2 * i].even = x[i].lo;                                                                                                         \
        y[2 * i].odd = x[i + VW / 2].lo;                                                                                                 \
        y[2 * i + 1].even = x[i].hi;                                                                                                     \
        y[2 * i + 1].odd = x[i + VW / 2].hi;                                                                                             \
    }
    ZIP(a, b)
    ZIP(b, a)
#if VW == 16
    ZIP(a, b)
    ZIP(b, a)
#endif
#undef ZIP
    UNROLL
    for (int i = 0; i < VW; ++i)
        VST(dst + i * NP, a[i]);
#endif
#undef ROW
}

/* dst [n/NP][DD][NP] = keys j0 .. j0 + n (n a multiple of NP) of src, whose rows are `ld` apart and end at `last`. */
DFCL_FN void panels_load(fptr dst, cfptr src, int j0, int n, int last, int ld) {
    for (int j = 0; j < n; j += NP) {
        const fptr p = dst + (dfcl_i64)j * DD;
        for (int v = 0; v < NV; ++v) {
            const int row = j0 + j + v * VW;
#if DD >= VW
            for (int d = 0; d < DD; d += VW) { /* the last piece overlaps the one before */
                const int e = min(d, DD - VW);
                transpose_v(p + e * NP + v * VW, src + e, row, last, ld);
            }
#else
            for (int i = 0; i < VW; ++i)
                for (int d = 0; d < DD; ++d)
                    p[d * NP + v * VW + i] = src[(dfcl_i64)min(row + i, last) * ld + d];
#endif
        }
    }
}

/* c[i][v] = sum_d a[i * DP + d] * panel[d * NP + v * VW] */
#define TILE_QK(c, a, panel)                                                                                                             \
    vf c[MR][NV];                                                                                                                        \
    UNROLL                                                                                                                               \
    for (int i = 0; i < MR; ++i) {                                                                                                       \
        UNROLL                                                                                                                           \
        for (int v = 0; v < NV; ++v)                                                                                                     \
            c[i][v] = 0.0f;                                                                                                              \
    }                                                                                                                                    \
    UNROLL_QK                                                                                                                            \
    for (int d = 0; d < DD; ++d) {                                                                                                       \
        vf kv[NV];                                                                                                                       \
        UNROLL                                                                                                                           \
        for (int v = 0; v < NV; ++v)                                                                                                     \
            kv[v] = VLD((panel) + d * NP + v * VW);                                                                                      \
        UNROLL                                                                                                                           \
        for (int i = 0; i < MR; ++i) {                                                                                                   \
            const vf s = (a)[i * DP + d];                                                                                                \
            UNROLL                                                                                                                       \
            for (int v = 0; v < NV; ++v)                                                                                                 \
                c[i][v] = s * kv[v] + c[i][v];                                                                                           \
        }                                                                                                                                \
    }

/* o[i * DP ..] = (acc ? o : 0) + sum_{k < n} a[i * SI + k * SK] * b[k * width ..] for PR rows; NF vectors, then 8 and 4 floats (T8, T4). */
#define DEFINE_TILE_PV(name, NF, T8, T4, SI, SK)                                                                                         \
    DFCL_FN void name(fptr o, cfptr a, cfptr b, int n, int acc) {                                                                        \
        vf c[PR][(NF) + 1];                                                                                                              \
        float8 c8[PR];                                                                                                                   \
        float4 c4[PR];                                                                                                                   \
        UNROLL                                                                                                                           \
        for (int i = 0; i < PR; ++i) {                                                                                                   \
            UNROLL                                                                                                                       \
            for (int v = 0; v < (NF); ++v)                                                                                               \
                c[i][v] = acc ? VLD(o + i * DP + v * VW) : (vf)(0.0f);                                                                   \
            if (T8)                                                                                                                      \
                c8[i] = acc ? vload8(0, o + i * DP + (NF) * VW) : (float8)(0.0f);                                                        \
            if (T4)                                                                                                                      \
                c4[i] = acc ? vload4(0, o + i * DP + (NF) * VW + (T8) * 8) : (float4)(0.0f);                                             \
        }                                                                                                                                \
        for (int k = 0; k < n; ++k) {                                                                                                    \
            vf bv[(NF) + 1];                                                                                                             \
            float8 b8;                                                                                                                   \
            float4 b4;                                                                                                                   \
            UNROLL                                                                                                                       \
            for (int v = 0; v < (NF); ++v)                                                                                               \
                bv[v] = VLD(b + v * VW);                                                                                                 \
            if (T8)                                                                                                                      \
                b8 = vload8(0, b + (NF) * VW);                                                                                           \
            if (T4)                                                                                                                      \
                b4 = vload4(0, b + (NF) * VW + (T8) * 8);                                                                                \
            UNROLL                                                                                                                       \
            for (int i = 0; i < PR; ++i) {                                                                                               \
                const float s = a[i * (SI)];                                                                                             \
                UNROLL                                                                                                                   \
                for (int v = 0; v < (NF); ++v)                                                                                           \
                    c[i][v] = (vf)(s) * bv[v] + c[i][v];                                                                                 \
                if (T8)                                                                                                                  \
                    c8[i] = (float8)(s) * b8 + c8[i];                                                                                    \
                if (T4)                                                                                                                  \
                    c4[i] = (float4)(s) * b4 + c4[i];                                                                                    \
            }                                                                                                                            \
            a += SK;                                                                                                                     \
            b += (NF) * VW + (T8) * 8 + (T4) * 4;                                                                                        \
        }                                                                                                                                \
        UNROLL                                                                                                                           \
        for (int i = 0; i < PR; ++i) {                                                                                                   \
            UNROLL                                                                                                                       \
            for (int v = 0; v < (NF); ++v)                                                                                               \
                VST(o + i * DP + v * VW, c[i][v]);                                                                                       \
            if (T8)                                                                                                                      \
                vstore8(c8[i], 0, o + i * DP + (NF) * VW);                                                                               \
            if (T4)                                                                                                                      \
                vstore4(c4[i], 0, o + i * DP + (NF) * VW + (T8) * 8);                                                                    \
        }                                                                                                                                \
    }
#define SAME (LW == PVC * VW) /* one kind of slab */
/* The same for `rows` rows, rounded up to PR, and rows k0 .. k0 + n of all slabs of b, which have `cap` rows. */
#define DEFINE_ROWS_PV(name, SI, SK)                                                                                                     \
    DEFINE_TILE_PV(name##_last, NLAST, TAIL8, TAIL4, SI, SK)                                                                             \
    DEFINE_TILE_PV(name##_main, PVC, 0, 0, SI, SK)                                                                                       \
    DFCL_FN void name(fptr o, int rows, cfptr a, cfptr b, int cap, int k0, int n, int acc) {                                             \
        for (int m = 0; m < NMAIN + SAME; ++m)                                                                                           \
            for (int i = 0; i < rows; i += PR)                                                                                           \
                name##_main(o + i * DP + m * PVC * VW, a + i * (SI), b + ((dfcl_i64)cap * m + k0) * PVC * VW, n, acc);                          \
        for (int i = 0; i < rows && !SAME; i += PR)                                                                                      \
            name##_last(o + i * DP + NMAIN * PVC * VW, a + i * (SI), b + (dfcl_i64)cap * NMAIN * PVC * VW + k0 * LW, n, acc);                      \
    }
DEFINE_ROWS_PV(rows_fwd, SS, 1)
DEFINE_ROWS_PV(rows_bwd, PS, 1)
DEFINE_ROWS_PV(rows_bwd_t, 1, PS)

/* Asks early for the lines of a row of DD floats: rows of a head lie far apart. */
DFCL_FN void row_fetch(cfptr p) {
    UNROLL
    for (int d = 0; d < DD + 15; d += 16)
        dfcl_fetch(p + min(d, DD - 1), 0);
}

/* ---- forward ----
 * Scratch of an item: panels of k [TP * DD], slabs of v [T * DP], scores [TP / KF, rounded up][QF * SS], q [QF * DP], out [QF * DP], maxima
 * and sums of a row's lanes [2 * QF * VW], of rows [2 * QF]; each padded to 16 floats.
 * `parts` units per head, each of `rows` queries; cs = scale * log2(e). */
DFCL_KERNEL(1, 1, 1) attn_fwd_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *lse,
                                  dfcl_i64 lse_off, int has_lse, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size, int T,
                                  int H, int parts, int rows, int units, int items, float cs) {
    const int TP = (T + NP - 1) / NP * NP, ldo = H * DD, ld = 3 * ldo;
    const fptr kp = scratch + scratch_off + item_size * GRP(0);
    const fptr vs = kp + PAD16((dfcl_i64)TP * DD);
    const fptr S = vs + PAD16((dfcl_i64)T * DP);
    const fptr qr = S + (dfcl_i64)((TP + KF - 1) / KF) * (QF * SS);
    const fptr o = qr + PAD16(QF * DP);
    const fptr mx = o + PAD16(QF * DP);
    const fptr sm = mx + QF * VW;
    const fptr m = sm + QF * VW;
    const fptr sum = m + PAD16(QF);
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, b = bh / H, h = bh - b * H;
        const int r0 = (u - bh * parts) * rows, r1 = min(r0 + rows, T);
        const cfptr q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, k = q + ldo, v = k + ldo;
        if (r0 >= r1)
            continue;
        /* While a panel is multiplied: the rows of out, the next block's of q, and where a cache keeps them, the next head's. */
        const int ahead = (QF * NP + TP - 1) / TP, next = parts == 1 && T <= 384 && h + 1 < H ? DD : 0;
        panels_load(kp, k, 0, TP, T - 1, ld);
        for (int j = 0; j < T; ++j)
            slab_load(vs, T, j, v + (dfcl_i64)j * ld, 1.0f);
        for (int r = r0; r < r1; r += QF) {
            const int n = min(QF, r1 - r), nt = (n + MR - 1) / MR * MR;
            for (int i = 0; i < nt; ++i) {
                row_load(qr + i * DP, q + (dfcl_i64)min(r + i, T - 1) * ld, cs);
                VST(mx + i * VW, (vf)(-1e30f));
                VST(sm + i * VW, (vf)(0.0f));
            }
            for (int j0 = 0; j0 < TP; j0 += KF) {
                const fptr s = S + (dfcl_i64)(j0 / KF) * (QF * SS);
                for (int j = j0; j < min(j0 + KF, TP); j += NP) {
                    const cfptr panel = kp + (dfcl_i64)j * DD;
                    for (int i = r + j / NP * ahead; i < min(min(r + (j / NP + 1) * ahead, r + QF), r1); ++i) {
                        row_fetch(out + out_off + ((dfcl_i64)b * T + i) * ldo + h * DD);
                        row_fetch(q + (dfcl_i64)min(i + QF, T - 1) * ld);
                        if (next) {
                            row_fetch(q + (dfcl_i64)i * ld + next);
                            row_fetch(k + (dfcl_i64)i * ld + next);
                            row_fetch(v + (dfcl_i64)i * ld + next);
                        }
                    }
                    for (int i0 = 0; i0 < nt; i0 += MR) {
                        TILE_QK(c, qr + i0 * DP, panel)
                        UNROLL
                        for (int i = 0; i < MR; ++i) {
                            vf x = VLD(mx + (i0 + i) * VW);
                            UNROLL
                            for (int w = 0; w < NV; ++w) {
                                VST(s + (i0 + i) * SS + (j - j0) + w * VW, c[i][w]);
                                x = c[i][w] > x ? c[i][w] : x;
                            }
                            VST(mx + (i0 + i) * VW, x);
                        }
                    }
                }
            }
            for (int i = 0; i < n; ++i)
                m[i] = max_v(VLD(mx + i * VW));
            for (int j0 = 0; j0 < T; j0 += KF) {
                const fptr s0 = S + (dfcl_i64)(j0 / KF) * (QF * SS);
                const int nj = min(KF, T - j0), np = (nj + NP - 1) / NP * NP;
                for (int i = 0; i < n; ++i) {
                    const fptr s = s0 + i * SS;
                    const float mi = m[i];
                    for (int j = nj; j < np; ++j)
                        s[j] = -1e30f;
                    vf x[NV];
                    x[0] = VLD(sm + i * VW);
                    UNROLL
                    for (int w = 1; w < NV; ++w)
                        x[w] = 0.0f;
                    for (int j = 0; j < np; j += NP) {
                        UNROLL
                        for (int w = 0; w < NV; ++w) {
                            const vf e = exp2_v(VLD(s + j + w * VW) - mi);
                            VST(s + j + w * VW, e);
                            x[w] += e;
                        }
                    }
                    UNROLL
                    for (int w = 1; w < NV; ++w)
                        x[0] += x[w];
                    VST(sm + i * VW, x[0]);
                }
                rows_fwd(o, n, s0, vs, T, j0, nj, j0 > 0);
            }
            for (int i = 0; i < n; ++i) {
                sum[i] = dfcl_vsum(VLD(sm + i * VW));
                row_store(out + out_off + ((dfcl_i64)b * T + r + i) * ldo + h * DD, o + i * DP, 1.0f / sum[i]);
            }
            if (has_lse) {
                for (int i = 0; i < n; i += 4)
                    vstore4(vload4(0, m + i) * 0.69314718056f + log(vload4(0, sum + i)), 0, m + i);
                for (int i = 0; i < n; ++i)
                    lse[lse_off + (dfcl_i64)bh * T + r + i] = m[i];
            }
        }
    }
}

/* ---- backward ----
 * Scratch of an item: q (times cs), dout, dq [TQ * DP] each, TQ = T rounded up to QB, zeros past T; where rows have several slabs those of q
 * and dout, of blocks of QB rows; delta and lse * log2(e) [TQ]; then for a block of KB keys: slabs of k, dk, dv [(KB + 8) * DP] each, panels
 * of k and v [KB * DD], P and dS [QB * PS].
 * A head is cut into `parts` units of `keys` keys each. parts 1: the unit writes dq itself. Else it leaves its part (times scale)
 * in `dqp` [B*H][parts][T][DP], and attn_bwd_dq_cpu adds them up in order. */
DFCL_KERNEL(1, 1, 1) attn_bwd_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, const GLOBAL float *out, dfcl_i64 out_off,
                                  const GLOBAL float *lse, dfcl_i64 lse_off, const GLOBAL float *dout, dfcl_i64 dout_off,
                                  GLOBAL float *dqkv, dfcl_i64 dqkv_off, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size,
                                  GLOBAL float *dqp, dfcl_i64 dqp_off, int T, int H, int parts, int keys, int units, int items, float cs, float scale) {
    const int TQ = (T + QB - 1) / QB * QB, ldo = H * DD, ld = 3 * ldo;
    const fptr qs = scratch + scratch_off + item_size * GRP(0);
    const fptr gs = qs + (dfcl_i64)TQ * DP;
    const fptr dq = gs + (dfcl_i64)TQ * DP;
#if NMAIN > 0
    const fptr qt = dq + (dfcl_i64)TQ * DP;
    const fptr gt = qt + (dfcl_i64)TQ * DP;
    const fptr delta = gt + (dfcl_i64)TQ * DP;
#else
    const fptr qt = qs, gt = gs;
    const fptr delta = dq + (dfcl_i64)TQ * DP;
#endif
    const fptr l2 = delta + TQ;
    const fptr kr = l2 + TQ;
    const fptr dk = kr + (KB + 8) * DP;
    const fptr dv = dk + (KB + 8) * DP;
    const fptr kp = dv + (KB + 8) * DP;
    const fptr vp = kp + KB * DD;
    const fptr P = vp + KB * DD;
    const fptr S = P + QB * PS;
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, part = u - bh * parts, b = bh / H, h = bh - b * H;
        const int k0 = part * keys, k1 = min(k0 + keys, T);
        const dfcl_i64 tok = (dfcl_i64)b * T;
        const cfptr q = qkv + qkv_off + tok * ld + h * DD, k = q + ldo, v = k + ldo;
        const fptr gq = dqkv + dqkv_off + tok * ld + h * DD;
        for (int i = 0; i < T; ++i) {
            const fptr g = gs + (dfcl_i64)i * DP;
            row_load(qs + (dfcl_i64)i * DP, q + (dfcl_i64)i * ld, cs);
            row_load(g, dout + dout_off + (tok + i) * ldo + h * DD, 1.0f);
#if NMAIN > 0
            const dfcl_i64 block = (dfcl_i64)(i / QB) * (QB * DP);
            slab_load(qt + block, QB, i % QB, q + (dfcl_i64)i * ld, cs);
            slab_load(gt + block, QB, i % QB, dout + dout_off + (tok + i) * ldo + h * DD, 1.0f);
#endif
            const cfptr o = out + out_off + (tok + i) * ldo + h * DD;
            vf e = 0.0f;
            int d = 0;
            for (; d + VW <= DD; d += VW)
                e = VLD(o + d) * VLD(g + d) + e;
            float s = dfcl_vsum(e);
            for (; d < DD; ++d)
                s = o[d] * g[d] + s;
            delta[i] = s;
            l2[i] = 1.44269504089f * lse[lse_off + (dfcl_i64)bh * T + i];
        }
        zero(qs + (dfcl_i64)T * DP, (TQ - T) * DP);
        zero(gs + (dfcl_i64)T * DP, (TQ - T) * DP);
        zero(delta + T, TQ - T);
        zero(l2 + T, TQ - T);
        int ahead = parts == 1 && T <= 128 && h + 1 < H ? 0 : T; /* next row of the next head to ask for early, where a cache keeps it */
        for (int j0 = k0; j0 < k1; j0 += KB) {
            const int n = min(KB, k1 - j0), np = (n + NP - 1) / NP * NP;
            panels_load(kp, k, j0, np, T - 1, ld);
            panels_load(vp, v, j0, np, T - 1, ld);
            for (int j = 0; j < n; ++j)
                slab_load(kr, KB, j, k + (dfcl_i64)(j0 + j) * ld, 1.0f);
            for (int r = 0; r < T; r += QB) {
                const int nq = min(QB, T - r);
                for (int j = 0; j < np; j += NP) {
                    for (int i = j; r == 0 && i < min(j + NP, n); ++i) {
                        row_fetch(gq + ldo + (dfcl_i64)(j0 + i) * ld);
                        row_fetch(gq + 2 * ldo + (dfcl_i64)(j0 + i) * ld);
                    }
                    for (int i0 = 0; i0 < nq; i0 += MR) {
                        for (const int end = min(ahead + 2, T); ahead < end; ++ahead) {
                            row_fetch(q + (dfcl_i64)ahead * ld + DD);
                            row_fetch(k + (dfcl_i64)ahead * ld + DD);
                            row_fetch(v + (dfcl_i64)ahead * ld + DD);
                            row_fetch(out + out_off + (tok + ahead) * ldo + (h + 1) * DD);
                            row_fetch(dout + dout_off + (tok + ahead) * ldo + (h + 1) * DD);
                        }
                        const fptr pt = P + i0 * PS + j, st = S + i0 * PS + j;
                        const dfcl_i64 row = r + i0;
                        {
                            TILE_QK(c, qs + row * DP, kp + j * DD)
                            UNROLL
                            for (int i = 0; i < MR; ++i) {
                                const float l = l2[row + i];
                                UNROLL
                                for (int w = 0; w < NV; ++w)
                                    VST(pt + i * PS + w * VW, exp2_v(c[i][w] - l));
                            }
                        }
                        {
                            TILE_QK(c, gs + row * DP, vp + j * DD)
                            UNROLL
                            for (int i = 0; i < MR; ++i) {
                                const float e = delta[row + i];
                                UNROLL
                                for (int w = 0; w < NV; ++w)
                                    VST(st + i * PS + w * VW, VLD(pt + i * PS + w * VW) * (c[i][w] - e));
                            }
                        }
                    }
                }
                rows_bwd(dq + (dfcl_i64)r * DP, nq, S, kr, KB, 0, n, j0 > k0);
                rows_bwd_t(dv, n, P, gt + (dfcl_i64)r * DP, QB, 0, nq, r > 0);
                rows_bwd_t(dk, n, S, qt + (dfcl_i64)r * DP, QB, 0, nq, r > 0);
            }
            for (int j = 0; j < n; ++j) { /* dk was summed over q times cs: scale / cs = ln 2 */
                row_store(gq + ldo + (dfcl_i64)(j0 + j) * ld, dk + j * DP, 0.69314718056f);
                row_store(gq + 2 * ldo + (dfcl_i64)(j0 + j) * ld, dv + j * DP, 1.0f);
            }
        }
        if (parts == 1) {
            for (int i = 0; i < T; ++i)
                row_store(gq + (dfcl_i64)i * ld, dq + (dfcl_i64)i * DP, scale);
        } else {
            const fptr d = dqp + dqp_off + (dfcl_i64)u * T * DP;
            for (int i = 0; i < T; ++i)
                row_store(d + (dfcl_i64)i * DP, dq + (dfcl_i64)i * DP, scale);
        }
    }
}

/* dq = sum over parts, in order; one item per head and `rows` queries. */
DFCL_KERNEL(1, 1, 1) attn_bwd_dq_cpu(const GLOBAL float *dqp, dfcl_i64 dqp_off, GLOBAL float *dqkv, dfcl_i64 dqkv_off, int T, int H,
                                     int parts, int rows) {
    const int bh = GRP(1), b = bh / H, h = bh - b * H, ld = 3 * H * DD;
    const cfptr p = dqp + dqp_off + (dfcl_i64)bh * parts * T * DP;
    const fptr g = dqkv + dqkv_off + (dfcl_i64)b * T * ld + h * DD;
    for (int i = GRP(0) * rows; i < min((GRP(0) + 1) * rows, T); ++i)
        for (int d = 0; d < DD; ++d) {
            float s = 0.0f;
            for (int a = 0; a < parts; ++a)
                s += p[((dfcl_i64)a * T + i) * DP + d];
            g[(dfcl_i64)i * ld + d] = s;
        }
}
