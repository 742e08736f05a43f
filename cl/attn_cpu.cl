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
 * floats. Two register tiles do the work: MR rows x NP keys summed over the head size, PR rows x (up to PVC + tail) vectors of the head
 * summed over keys or queries. Head sizes are built in (DD); any T: panels past the end hold copies of the last key and are masked.
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
#else
#define MR 4
#define NV 3
#define PR 4
#define PVC 3
#define CAP 3
#endif
#if MR == 8
typedef float8 vm;
#define VM_LD(p) vload8(0, p)
#define VM_ST(p, v) vstore8(v, 0, p)
#else
typedef float4 vm;
#define VM_LD(p) vload4(0, p)
#define VM_ST(p, v) vstore4(v, 0, p)
#endif
#define UNROLL _Pragma("unroll")

#define NP (VW * NV)               /* keys of a panel */
#define KB (VW == 16 ? 128 : 120)  /* backward: keys of a block, a multiple of NP */
#define QB 64                      /* backward: queries of a block, a multiple of MR and PR */
#define DP ((DD + 3) / 4 * 4)      /* a row in scratch */
#define PAD16(n) (((n) + 15) / 16 * 16)

/* A row of DP floats = NMAIN * PVC + NLAST vectors, then 8 and 4 floats where needed. */
#define NFULL (DP / VW)
#define TAIL8 (VW == 16 && DP % 16 >= 8)
#define TAIL4 (VW > 4 && DP % 8 == 4)
#define NVEC (NFULL + TAIL8 + TAIL4)
#define NMAIN (NVEC > CAP ? (NVEC - CAP + PVC - 1) / PVC : 0)
#define NLAST (NFULL - NMAIN * PVC)

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
DFCL_FN void zero(fptr p, int n) {
    for (int i = 0; i < n; ++i)
        p[i] = 0.0f;
}

/* VW rows of VW floats, `ld` apart, written as columns NP apart: rounds of interleaving the first half of the rows with the second. Rows
 * past the last one repeat it. */
DFCL_FN void transpose_v(fptr dst, cfptr src, int row, int last, int ld) {
    vf a[VW], b[VW];
    UNROLL
    for (int i = 0; i < VW; ++i)
        a[i] = VLD(src + (dfcl_i64)min(row + i, last) * ld);
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
#if VW >= 8
    ZIP(a, b)
#endif
#if VW >= 16
    ZIP(b, a)
#endif
#undef ZIP
    UNROLL
    for (int i = 0; i < VW; ++i)
        VST(dst + i * NP, VW == 8 ? b[i] : a[i]);
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

/* o[i * DP ..] = (acc ? o : 0) + sum_{k < n} a[i * si + k * sk] * b[k * DP ..] for PR rows; NF vectors, then 8 and 4 floats (T8, T4). */
#define DEFINE_TILE_PV(name, NF, T8, T4)                                                                                                 \
    DFCL_FN void name(fptr o, cfptr a, int si, int sk, cfptr b, int n, int acc) {                                                        \
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
                const float s = a[i * si];                                                                                               \
                UNROLL                                                                                                                   \
                for (int v = 0; v < (NF); ++v)                                                                                           \
                    c[i][v] = (vf)(s) * bv[v] + c[i][v];                                                                                 \
                if (T8)                                                                                                                  \
                    c8[i] = (float8)(s) * b8 + c8[i];                                                                                    \
                if (T4)                                                                                                                  \
                    c4[i] = (float4)(s) * b4 + c4[i];                                                                                    \
            }                                                                                                                            \
            a += sk;                                                                                                                     \
            b += DP;                                                                                                                     \
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
DEFINE_TILE_PV(tile_pv_last, NLAST, TAIL8, TAIL4)
#if NMAIN > 0
DEFINE_TILE_PV(tile_pv_main, PVC, 0, 0)
#endif

DFCL_FN void tile_pv(fptr o, cfptr a, int si, int sk, cfptr b, int n, int acc) {
#if NMAIN > 0
    for (int m = 0; m < NMAIN; ++m)
        tile_pv_main(o + m * PVC * VW, a, si, sk, b + m * PVC * VW, n, acc);
#endif
    tile_pv_last(o + NMAIN * PVC * VW, a, si, sk, b + NMAIN * PVC * VW, n, acc);
}

/* ---- forward ----
 * Scratch of an item: panels of k [TP * DD], v [T * DP], scores [MR * TP], q [MR * DP], out [MR * DP], row maxima and sums [2 * MR];
 * each padded to 16 floats.
 * `parts` units per head, each of `rows` queries; cs = scale * log2(e). */
DFCL_KERNEL(1, 1, 1) attn_fwd_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *lse,
                                  dfcl_i64 lse_off, int has_lse, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size, int T,
                                  int H, int parts, int rows, int units, int items, float cs) {
    const int TP = (T + NP - 1) / NP * NP, ldo = H * DD, ld = 3 * ldo;
    const fptr kp = scratch + scratch_off + item_size * GRP(0);
    const fptr vr = kp + PAD16((dfcl_i64)TP * DD);
    const fptr S = vr + PAD16((dfcl_i64)T * DP);
    const fptr qr = S + PAD16((dfcl_i64)MR * TP);
    const fptr o = qr + PAD16(MR * DP);
    const fptr ml = o + PAD16(MR * DP);
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, b = bh / H, h = bh - b * H;
        const int r0 = (u - bh * parts) * rows, r1 = min(r0 + rows, T);
        const cfptr q = qkv + qkv_off + (dfcl_i64)b * T * ld + h * DD, k = q + ldo, v = k + ldo;
        if (r0 >= r1)
            continue;
        panels_load(kp, k, 0, TP, T - 1, ld);
        for (int j = 0; j < T; ++j)
            row_load(vr + (dfcl_i64)j * DP, v + (dfcl_i64)j * ld, 1.0f);
        for (int r = r0; r < r1; r += MR) {
            for (int i = 0; i < MR; ++i)
                row_load(qr + i * DP, q + (dfcl_i64)min(r + i, T - 1) * ld, cs);
            for (int j = 0; j < TP; j += NP) {
                const cfptr panel = kp + (dfcl_i64)j * DD;
                TILE_QK(c, qr, panel)
                UNROLL
                for (int i = 0; i < MR; ++i) {
                    UNROLL
                    for (int w = 0; w < NV; ++w)
                        VST(S + (dfcl_i64)i * TP + j + w * VW, c[i][w]);
                }
            }
            for (int i = 0; i < min(MR, r1 - r); ++i) {
                const fptr s = S + (dfcl_i64)i * TP;
                for (int j = T; j < TP; ++j)
                    s[j] = -1e30f;
                vf mx[NV], sm[NV];
                UNROLL
                for (int w = 0; w < NV; ++w) {
                    mx[w] = VLD(s + w * VW);
                    sm[w] = 0.0f;
                }
                for (int j = NP; j < TP; j += NP) {
                    UNROLL
                    for (int w = 0; w < NV; ++w) {
                        const vf x = VLD(s + j + w * VW);
                        mx[w] = x > mx[w] ? x : mx[w];
                    }
                }
                UNROLL
                for (int w = 1; w < NV; ++w)
                    mx[0] = fmax(mx[0], mx[w]);
                const float m = max_v(mx[0]);
                for (int j = 0; j < TP; j += NP) {
                    UNROLL
                    for (int w = 0; w < NV; ++w) {
                        const vf e = exp2_v(VLD(s + j + w * VW) - m);
                        VST(s + j + w * VW, e);
                        sm[w] += e;
                    }
                }
                UNROLL
                for (int w = 1; w < NV; ++w)
                    sm[0] += sm[w];
                const float sum = dfcl_vsum(sm[0]);
                ml[i] = m;
                ml[MR + i] = sum;
            }
            for (int i = 0; i < min(MR, r1 - r); i += PR)
                tile_pv(o + i * DP, S + (dfcl_i64)i * TP, TP, 1, vr, T, 0);
            for (int i = 0; i < min(MR, r1 - r); ++i)
                row_store(out + out_off + ((dfcl_i64)b * T + r + i) * ldo + h * DD, o + i * DP, 1.0f / ml[MR + i]);
            if (has_lse) {
                const vm l = VM_LD(ml) * 0.69314718056f + log(VM_LD(ml + MR));
                if (r + MR <= r1) {
                    VM_ST(lse + lse_off + (dfcl_i64)bh * T + r, l);
                } else {
                    VM_ST(ml, l);
                    for (int i = 0; i < r1 - r; ++i)
                        lse[lse_off + (dfcl_i64)bh * T + r + i] = ml[i];
                }
            }
        }
    }
}

/* ---- backward ----
 * Scratch of an item: q (times cs), dout, dq [TQ * DP] each, TQ = T rounded up to QB, zeros past T; delta and lse * log2(e) [TQ];
 * then for a block of KB keys: k, dk, dv [KB * DP], panels of k and v [KB * DD], P and dS [QB * KB].
 * A head is cut into `parts` units of `blocks` key blocks each. parts 1: the unit writes dq itself. Else it leaves its part (times scale)
 * in `dqp` [B*H][parts][T][DP], and attn_bwd_dq_cpu adds them up in order. */
DFCL_KERNEL(1, 1, 1) attn_bwd_cpu(const GLOBAL float *qkv, dfcl_i64 qkv_off, const GLOBAL float *out, dfcl_i64 out_off,
                                  const GLOBAL float *lse, dfcl_i64 lse_off, const GLOBAL float *dout, dfcl_i64 dout_off,
                                  GLOBAL float *dqkv, dfcl_i64 dqkv_off, GLOBAL float *scratch, dfcl_i64 scratch_off, dfcl_i64 item_size,
                                  GLOBAL float *dqp, dfcl_i64 dqp_off, int T, int H, int parts, int blocks, int units, int items, float cs, float scale) {
    const int TQ = (T + QB - 1) / QB * QB, ldo = H * DD, ld = 3 * ldo;
    const fptr qs = scratch + scratch_off + item_size * GRP(0);
    const fptr gs = qs + (dfcl_i64)TQ * DP;
    const fptr dq = gs + (dfcl_i64)TQ * DP;
    const fptr delta = dq + (dfcl_i64)TQ * DP;
    const fptr l2 = delta + TQ;
    const fptr kr = l2 + TQ;
    const fptr dk = kr + KB * DP;
    const fptr dv = dk + KB * DP;
    const fptr kp = dv + KB * DP;
    const fptr vp = kp + KB * DD;
    const fptr P = vp + KB * DD;
    const fptr S = P + QB * KB;
    for (int u = GRP(0); u < units; u += items) {
        const int bh = u / parts, part = u - bh * parts, b = bh / H, h = bh - b * H;
        const dfcl_i64 tok = (dfcl_i64)b * T;
        const cfptr q = qkv + qkv_off + tok * ld + h * DD, k = q + ldo, v = k + ldo;
        const fptr gq = dqkv + dqkv_off + tok * ld + h * DD;
        for (int i = 0; i < T; ++i) {
            const fptr g = gs + (dfcl_i64)i * DP;
            row_load(qs + (dfcl_i64)i * DP, q + (dfcl_i64)i * ld, cs);
            row_load(g, dout + dout_off + (tok + i) * ldo + h * DD, 1.0f);
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
        zero(qs + (dfcl_i64)T * DP, (TQ - T) * DP); /* rows past T: P = 1, dS = 0, dout = 0 add nothing */
        zero(gs + (dfcl_i64)T * DP, (TQ - T) * DP);
        zero(delta + T, TQ - T);
        zero(l2 + T, TQ - T);
        for (int kb = part * blocks; kb < (part + 1) * blocks && kb * KB < T; ++kb) {
            const int j0 = kb * KB, n = min(KB, T - j0), np = (n + NP - 1) / NP * NP;
            panels_load(kp, k, j0, np, T - 1, ld);
            panels_load(vp, v, j0, np, T - 1, ld);
            for (int j = 0; j < n; ++j)
                row_load(kr + j * DP, k + (dfcl_i64)(j0 + j) * ld, 1.0f);
            for (int r = 0; r < T; r += QB) {
                const int mq = min(QB, (T - r + MR - 1) / MR * MR); /* queries worth computing */
                for (int j = 0; j < np; j += NP)
                    for (int i0 = 0; i0 < mq; i0 += MR) {
                        const fptr pt = P + i0 * KB + j, st = S + i0 * KB + j;
                        const dfcl_i64 row = r + i0;
                        {
                            TILE_QK(c, qs + row * DP, kp + j * DD)
                            UNROLL
                            for (int i = 0; i < MR; ++i) {
                                const float l = l2[row + i];
                                UNROLL
                                for (int w = 0; w < NV; ++w)
                                    VST(pt + i * KB + w * VW, exp2_v(c[i][w] - l));
                            }
                        }
                        {
                            TILE_QK(c, gs + row * DP, vp + j * DD)
                            UNROLL
                            for (int i = 0; i < MR; ++i) {
                                const float e = delta[row + i];
                                UNROLL
                                for (int w = 0; w < NV; ++w)
                                    VST(st + i * KB + w * VW, VLD(pt + i * KB + w * VW) * (c[i][w] - e));
                            }
                        }
                    }
                for (int i = 0; i < mq; i += PR)
                    tile_pv(dq + (dfcl_i64)(r + i) * DP, S + i * KB, KB, 1, kr, n, kb > part * blocks);
                for (int j = 0; j < n; j += PR) {
                    tile_pv(dv + j * DP, P + j, 1, KB, gs + (dfcl_i64)r * DP, mq, r > 0);
                    tile_pv(dk + j * DP, S + j, 1, KB, qs + (dfcl_i64)r * DP, mq, r > 0);
                }
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
