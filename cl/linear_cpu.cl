/* The linear layer on CPUs: forward, gradient of the input, gradient of the matrix. OpenCL only; one work-item a group.
 *
 *   forward  C[m,n] = sum_k x[m,k]  W[n,k]   then the epilogue of linear_fwd
 *   dx       C[m,k] = sum_n dy[m,n] W[n,k]   times act'(pre), written or added
 *   dw       C[n,k] = sum_m dy[m,n] x[m,k]   added, or stored as a slice of the sum
 *
 * One work-item computes a strip of 48 columns x `rb` rows of C with a register tile of TM rows x NV vectors: NV vectors of B and one
 * broadcast value of A are live beside the TM * NV sums, which fills the vector registers without spilling. The sum runs innermost.
 *
 * B is brought block by block into private memory, TB steps of the sum at a time, each chunk of a tile's columns by itself ([TB][CW]), so that a
 * chunk stays in the first-level cache while all rows of the item pass; the unfinished sums wait in private memory too, and the lines of the
 * next block are asked for early. Panels read in place are slower on 256 bits, 1.1 to 2.2 times: their steps are 48 columns apart.
 *   KIND 0  forward from panels [N/48][K][48]: copied
 *   KIND 7  forward from panels as they lie: of f32 with 512 bits, where a tile is as wide as a panel and its 48 columns stream from the
 *           second-level cache, and for few rows, which read a weight once
 *   KIND 1  forward from row-major W: blocks transposed in registers      KIND 2  dx from panels: transposed likewise
 *   KIND 3  dx from row-major W: copied                                   KIND 4  dw: x copied, dy read down its columns
 *   KIND 5  no product: row-major W to panels of the same type     KIND 8  nor here: rows of f32 to rows of bf16 pairs
 *   KIND 6  dx from panels as they lie, for few rows or long sums: vectors along n, a horizontal sum at the end
 * So one packed copy serves forward and dx, and a matrix that is being trained needs none.
 *
 * A weight of 16 bits is expanded when its block is brought, so the tiles see f32; only kinds 6 and 7, which read it once, expand in registers.
 *
 * With -DDOT (kinds 0 to 3, bf16, 512 bits) both operands stay bf16: a step of the tile is a pair of steps of the sum, blocks hold [TB / 2][48] pairs, and x or dy
 * comes as rows of pairs, padded with zeros to whole vectors, which kind 8 makes of f32 beforehand.
 *
 * Options: -DKIND, -DDFCL_VW (floats in a vector: 16, 8, 4), -DWTYPE (weight: 0 f32, 1 bf16, 2 f16), -DDOT. */
#ifndef WTYPE
#define WTYPE 0
#endif
#ifndef DOT
#define DOT 0
#endif

#if DFCL_VW == 16 /* 32 registers of 512 bits: 24 sums */
#define TM 8
#define LD_BITS(p) convert_uint16(vload16(0, p))
#define ST_BITS(p, v) vstore16(convert_ushort16(as_uint16(v)), 0, p)
#define LD_BF(p) as_float16(LD_BITS(p) << 16)
#define LD_HALF(p) vload_half16(0, (GLOBAL const half *)(p))
#define LOW(a, b) (vf)(a.s0, b.s0, a.s1, b.s1, a.s2, b.s2, a.s3, b.s3, a.s4, b.s4, a.s5, b.s5, a.s6, b.s6, a.s7, b.s7)
#define HIGH(a, b) (vf)(a.s8, b.s8, a.s9, b.s9, a.sa, b.sa, a.sb, b.sb, a.sc, b.sc, a.sd, b.sd, a.se, b.se, a.sf, b.sf)
#elif DFCL_VW == 8 /* 16 registers of 256 bits: 12 sums */
#define TM 4
#define LD_BITS(p) convert_uint8(vload8(0, p))
#define ST_BITS(p, v) vstore8(convert_ushort8(as_uint8(v)), 0, p)
#define LD_BF(p) as_float8(LD_BITS(p) << 16)
#define LD_HALF(p) vload_half8(0, (GLOBAL const half *)(p))
#define LOW(a, b) (vf)(a.s0, b.s0, a.s1, b.s1, a.s2, b.s2, a.s3, b.s3)
#define HIGH(a, b) (vf)(a.s4, b.s4, a.s5, b.s5, a.s6, b.s6, a.s7, b.s7)
#else /* 128 bits: 16 registers (x86) or 32 (Arm) */
#ifdef __aarch64__
#define TM 8
#else
#define TM 4
#endif
#define LD_BITS(p) convert_uint4(vload4(0, p))
#define ST_BITS(p, v) vstore4(convert_ushort4(as_uint4(v)), 0, p)
#define LD_BF(p) as_float4(LD_BITS(p) << 16)
#define LD_HALF(p) vload_half4(0, (GLOBAL const half *)(p))
#define LOW(a, b) (vf)(a.s0, b.s0, a.s1, b.s1)
#define HIGH(a, b) (vf)(a.s2, b.s2, a.s3, b.s3)
#endif
#define NV 3
#define VW DFCL_VW
#define CW (NV * VW) /* columns of a tile; divides 48 */

#define PANEL 48
#define STAGED (KIND != 7)
#if DOT
#define TB 384
#elif VW == 16
#define TB 192 /* steps of the sum in a private block of B: a multiple of 48; [TB][CW] stays in the cache next to the processor */
#else
#define TB 144
#endif
#define RB_MAX 256 /* rows of an item in the blocked kinds; ops/linear_cpu.c has the same number */
#define FEW_MAX 16 /* of KIND 7 unless a tile is as wide as a panel; likewise */

/* The first n values at p, or a whole vector. */
DFCL_FN vf ld_part(GLOBAL const float *p, int n) {
    return n >= VW ? VLD(p) : dfcl_vld_part(p, n);
}
DFCL_FN void st_part(vf v, GLOBAL float *p, int n) {
    if (n >= VW)
        VST(p, v);
    else
        dfcl_vst_part(p, v, n);
}

/* The operands of the tile: values of A and B, a vector of B or of one value of A, and a step. */
#if DOT
#define A_T uint
#define B_T uint
#define BV vu
#define MAC(s, a, b) DFCL_DOT(s, a, b)
#define STEPS(n) (((n) + 1) / 2)              /* of a tile, for n of the sum */
#define A_PITCH(sum) (((sum) + 31) / 32 * 16) /* values of A_T between rows of A */
#else
#define A_T float
#define B_T float
#define BV vf
#define MAC(s, a, b) (s) = dfcl_vfma(a, b, s)
#define STEPS(n) (n)
#define A_PITCH(sum) (sum)
#endif
#define A_AT(a, m, t, sum) ((a) + (dfcl_i64)(m) * A_PITCH(sum) + (t) / (1 + DOT))

/* enum dfcl_act: 1 gelu (tanh form), 2 silu */
DFCL_FN vf act_of(int act, vf x) {
    return act == 1 ? dfcl_vgelu(x) : dfcl_vsilu(x);
}
DFCL_FN vf act_grad(int act, vf x) {
    return act == 1 ? dfcl_vgelu_grad(x) : dfcl_vsilu_grad(x);
}

/* ---- values of the weight ---- */

#if WTYPE && KIND == 5 /* moved as they are, in the low half of a lane */
#define WT ushort
#define LD_W(p) as_vf(LD_BITS(p))
#define ONE_W(p) as_float((uint)*(p))
#define ST_W(p, v) ST_BITS(p, v)
#elif WTYPE == 1
#define WT ushort
#define LD_W(p) LD_BF(p)
#define ONE_W(p) dfcl_bf2f(*(p))
#elif WTYPE == 2
#define WT ushort
#define LD_W(p) LD_HALF(p)
#define ONE_W(p) dfcl_h2f(*(p))
#else
#define WT float
#define LD_W(p) VLD(p)
#define ONE_W(p) (*(p))
#define ST_W(p, v) VST(p, v)
#endif
DFCL_FN vf ldw_part(GLOBAL const WT *p, int n) {
    if (n >= VW)
        return LD_W(p);
    float t[VW];
    for (int i = 0; i < VW; ++i)
        t[i] = i < n ? ONE_W(p + i) : 0.0f;
    return VLD(t);
}

/* ---- the register tile ---- */

#if KIND < 5 || KIND == 7
#if STAGED
#define B_PTR __private const B_T *
#if DOT
#define LD_B(p) VLDU(p)
#else
#define LD_B(p) VLD(p)
#endif
#define B_CHUNK(j) ((j) * STEPS(TB)) /* where a chunk begins, where a step ends */
#define B_STEP CW
#define B_AHEAD(b) ((void)0)
#else
#define B_PTR GLOBAL const WT *
#define LD_B(p) LD_W(p)
#define B_CHUNK(j) (j)
#define B_STEP PANEL
#if VW == 16
#define B_AHEAD(b) ((void)0)
#else
#define B_AHEAD(b)                                                                                                                      \
    dfcl_fetch((b) + 32 * PANEL, 0);                                                                                                         \
    dfcl_fetch((b) + 32 * PANEL + 16, 0)
#endif
#endif
#if KIND == 4 /* A down its columns: every step is another line, further apart than the processor looks ahead by itself */
#define A_ROW(a, i, lda) ((a) + (i))
#define A_STEP(lda) (lda)
#define A_AHEAD(a, at, lda) dfcl_fetch((a) + (at) + 24 * (lda), 0)
#else
#define A_ROW(a, i, lda) ((a) + (dfcl_i64)(i) * (lda))
#define A_STEP(lda) 1
#define A_AHEAD(a, at, lda) ((void)0)
#endif

/* c[MM][V * VW] (rows 48 apart) = (resume ? c : 0) + A B over n steps; rows past `rows` repeat the last one. */
#define MICRO(NAME, MM, V)                                                                                                              \
    DFCL_FN void NAME(GLOBAL const A_T *a, dfcl_i64 lda, int rows, B_PTR b, int n, float *c, int resume) {           \
        GLOBAL const A_T *ar[MM];                                                                                                      \
        vf s[MM][V];                                                                                                                   \
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < MM; ++i) {                                                             \
            ar[i] = A_ROW(a, min(i, rows - 1), lda);                                                                                   \
            __attribute__((opencl_unroll_hint)) for (int j = 0; j < V; ++j) s[i][j] = 0.0f;                                            \
        }                                                                                                                              \
        if (resume)                                                                                                                    \
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < MM; ++i)                                                           \
                __attribute__((opencl_unroll_hint)) for (int j = 0; j < V; ++j) s[i][j] = VLD(c + i * PANEL + j * VW);                  \
        dfcl_i64 at = 0;                                                                                                               \
        for (int k = 0; k < n; ++k) {                                                                                                  \
            BV bv[V];                                                                                                                  \
            __attribute__((opencl_unroll_hint)) for (int j = 0; j < V; ++j) bv[j] = LD_B(b + j * VW);                                   \
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < MM; ++i) {                                                         \
                BV av = (BV)(ar[i][at]);                                                                                               \
                __attribute__((opencl_unroll_hint)) for (int j = 0; j < V; ++j) MAC(s[i][j], av, bv[j]);                  \
            }                                                                                                                          \
            B_AHEAD(b);                                                                                                                \
            b += B_STEP;                                                                                                               \
            A_AHEAD(a, at, lda);                                                                                                       \
            at += A_STEP(lda);                                                                                                         \
        }                                                                                                                              \
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < MM; ++i)                                                               \
            __attribute__((opencl_unroll_hint)) for (int j = 0; j < V; ++j) VST(c + i * PANEL + j * VW, s[i][j]);                       \
    }
#if TM > 4
MICRO(micro_full, TM, NV)
#endif
MICRO(micro_4, 4, NV)
MICRO(micro_2, 2, NV)
MICRO(micro_1, 1, NV)
MICRO(micro_v2, TM, 2)
MICRO(micro_v1, TM, 1)

/* Asks for the lines of a tile that will be written, so that they arrive while its sums are made. */
DFCL_FN void want_tile(GLOBAL const float *p, int pitch, int rows) {
    if (p)
        for (int i = 0; i < rows; ++i, p += pitch)
            for (int j = 0; j < PANEL; j += 16)
                dfcl_fetch(p + j, 1);
}

/* One chunk of `cols` columns, up to TM rows. Few rows get a tile of their own: a vector times a matrix is bound by memory. */
DFCL_FN void tile(GLOBAL const A_T *a, dfcl_i64 lda, int rows, B_PTR b, int n, float *c, int cols, int resume) {
    if (cols <= VW)
        micro_v1(a, lda, rows, b, n, c, resume);
    else if (cols <= 2 * VW)
        micro_v2(a, lda, rows, b, n, c, resume);
#if TM > 4
    else if (rows > 4)
        micro_full(a, lda, rows, b, n, c, resume);
#endif
    else if (rows > 2)
        micro_4(a, lda, rows, b, n, c, resume);
    else if (rows == 2)
        micro_2(a, lda, rows, b, n, c, resume);
    else
        micro_1(a, lda, rows, b, n, c, resume);
}
#endif

#if KIND < 5 || KIND == 7
/* Lines of memory that the next block will be made of: runs of `run` lines, `skip` bytes between their ends and beginnings. They are brought as
 * far as the second-level cache while the present block is multiplied: a block is read once, so nothing else would hide their way. */
struct ahead {
    GLOBAL const char *p;
    int run, at, lines;
    dfcl_i64 skip;
};
DFCL_FN void fetch_ahead(struct ahead *f, int count) {
    for (; count > 0 && f->lines > 0; --count, --f->lines) {
        dfcl_fetch_far(f->p);
        f->p += 64;
        if (++f->at == f->run) {
            f->at = 0;
            f->p += f->skip;
        }
    }
}

/* All columns and rows of an item for one block of B: a chunk of it stays in the first-level cache while all rows pass. */
DFCL_FN void strip(GLOBAL const A_T *a, dfcl_i64 lda, int rows, B_PTR b, int n, float *c, int cols, int resume, struct ahead *next) {
    int share = next->lines * CW / (cols + CW) * TM / rows + 1; /* of a tile, with a chunk to spare */
    for (int j = 0; j < cols; j += CW)
        for (int m = 0; m < rows; m += TM) {
            fetch_ahead(next, share);
            tile(A_ROW(a, m, lda), lda, min(TM, rows - m), b + B_CHUNK(j), n, c + m * PANEL + j, min(CW, cols - j), resume);
        }
}
#endif

/* ---- blocks of B from the form at hand: for each chunk of a tile's columns [TB][CW], so that a chunk fits the first-level cache ---- */

#define AT(s, t, j) ((s) + (j) / CW * (STEPS(TB) * CW) + (t) * CW + (j) % CW)

#if KIND == 1 || KIND == 2 || KIND == 5
/* Transposes a VW x VW block in registers: log2(VW) rounds, each interleaving row i with row i + VW / 2. */
DFCL_FN void transpose(vf *r) {
    __attribute__((opencl_unroll_hint)) for (int round = 1; round < VW; round *= 2) {
        vf t[VW];
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW / 2; ++i) {
            t[2 * i] = LOW(r[i], r[i + VW / 2]);
            t[2 * i + 1] = HIGH(r[i], r[i + VW / 2]);
        }
        __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) r[i] = t[i];
    }
}
#endif

#if KIND == 1 || KIND == 5
/* r[k - k0] = W[n0 .. n0 + VW)[k0 ..): rows past N and values past K are 0. */
DFCL_FN void load_transposed(GLOBAL const WT *w, int N, int K, int n0, int k0, vf *r) {
    __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i)
        r[i] = ldw_part(w + (dfcl_i64)min(n0 + i, N - 1) * K + k0, n0 + i < N ? K - k0 : 0);
    transpose(r);
}
#endif

#if DOT
/* The first n of VW values at p, in the low halves of lanes; zeros behind them. */
DFCL_FN vu bits_part(GLOBAL const ushort *p, int n) {
    if (n >= VW)
        return LD_BITS(p);
    uint t[VW];
    for (int i = 0; i < VW; ++i)
        t[i] = i < n ? p[i] : 0;
    return VLDU(t);
}
#endif
#if DOT && (KIND == 0 || KIND == 3)
/* s[t / 2][j] = the pair (w[t0 + t], w[t0 + t + 1]) at column j of the panel (KIND 0) or of the matrix */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, uint *s) {
    int pitch = KIND == 0 ? PANEL : C, width = KIND == 0 ? PANEL : cols;
    GLOBAL const WT *p = w + (KIND == 0 ? (dfcl_i64)c0 * sum : c0) + (dfcl_i64)t0 * pitch;
    for (int t = 0; t < n; t += 2, p += 2 * pitch)
        for (int j = 0; j < width; j += VW) {
            vu lo = bits_part(p + j, width - j), hi = t + 1 < n ? bits_part(p + pitch + j, width - j) : 0;
            VSTU(AT(s, t / 2, j), lo | hi << 16);
        }
}
#elif DOT && KIND == 1
/* s[k / 2][j] = the pair W[c0 + j][t0 + k ..]; rows past N and values past K are 0 */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, uint *s) {
    for (int j = 0; j < cols; j += VW)
        for (int k = 0; k < n; k += 2 * VW) {
            vf r[VW];
            for (int i = 0; i < VW; ++i) {
                GLOBAL const WT *p = w + (dfcl_i64)min(c0 + j + i, C - 1) * sum + t0 + k;
                int have = c0 + j + i < C ? n - k : 0;
                vu lo = bits_part(p, have), hi = bits_part(p + VW, have - VW);
                r[i] = as_float16((vu)(lo.even | lo.odd << 16, hi.even | hi.odd << 16));
            }
            transpose(r);
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) VSTU(AT(s, k / 2 + i, j), as_uint16(r[i]));
        }
}
#elif DOT && KIND == 2
/* s[n / 2][j] = the pair panels[(t0 + n) / 48][c0 + j][(t0 + n) % 48 ..]; 24 pairs of a panel are 16 and 8 */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, uint *s) {
    for (int p = 0; p < n; p += PANEL) {
        GLOBAL const WT *panel = w + (dfcl_i64)((t0 + p) / PANEL) * C * PANEL;
        for (int j = 0; j < cols; j += VW) {
            vf r[VW], q[VW];
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) {
                GLOBAL const WT *c = panel + (dfcl_i64)min(c0 + j + i, C - 1) * PANEL;
                r[i] = as_float16((vu)(as_uint8(vload16(0, c)), as_uint8(vload16(1, c))));
                q[i] = as_float16((vu)(as_uint8(vload16(2, c)), (uint8)(0)));
            }
            transpose(r);
            transpose(q);
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) VSTU(AT(s, p / 2 + i, j), as_uint16(r[i]));
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW / 2; ++i) VSTU(AT(s, p / 2 + VW + i, j), as_uint16(q[i]));
        }
    }
}
#elif KIND == 0
/* s[k][j] = panel[t0 + k][j] */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, float *s) {
    GLOBAL const WT *panel = w + (dfcl_i64)c0 * sum + (dfcl_i64)t0 * PANEL;
    for (int k = 0; k < n; ++k, panel += PANEL)
        __attribute__((opencl_unroll_hint)) for (int j = 0; j < PANEL; j += VW) VST(AT(s, k, j), LD_W(panel + j));
}
#elif KIND == 1
/* s[k][j] = W[c0 + j][t0 + k] */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, float *s) {
    for (int j = 0; j < cols; j += VW)
        for (int k = 0; k < n; k += VW) {
            vf r[VW];
            load_transposed(w, C, sum, c0 + j, t0 + k, r);
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) VST(AT(s, k + i, j), r[i]);
        }
}
#elif KIND == 2
/* s[n][j] = panels[(t0 + n) / 48][c0 + j][(t0 + n) % 48]; t0 is a multiple of 48 */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, float *s) {
    for (int p = 0; p < n; p += PANEL) {
        GLOBAL const WT *panel = w + (dfcl_i64)((t0 + p) / PANEL) * C * PANEL;
        for (int j = 0; j < cols; j += VW)
            for (int k = 0; k < PANEL; k += VW) {
                vf r[VW];
                __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i)
                    r[i] = LD_W(panel + (dfcl_i64)min(c0 + j + i, C - 1) * PANEL + k);
                transpose(r);
                __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) VST(AT(s, p + k + i, j), r[i]);
            }
    }
}
#elif KIND == 3 || KIND == 4
/* s[t][j] = w[t0 + t][c0 + j] */
DFCL_FN void stage(GLOBAL const WT *w, int C, int sum, int c0, int cols, int t0, int n, float *s) {
    for (int t = 0; t < n; ++t) {
        GLOBAL const WT *p = w + (dfcl_i64)(t0 + t) * C + c0;
        for (int j = 0; j < cols; j += VW)
            VST(AT(s, t, j), ldw_part(p + j, cols - j));
    }
}
#endif

#if KIND < 5
#define WSIZE ((int)sizeof(WT))
/* The lines that stage() will read for the block at t0; past the end of the sum, for the first one of the next item. */
DFCL_FN struct ahead block_lines(GLOBAL const void *w, int C, int sum, int c0, int cols, int t0) {
    struct ahead f = {(GLOBAL const char *)w, 0, 0, 0, 0};
    if (t0 >= sum) {
        t0 = 0;
        c0 += PANEL;
        cols = min(PANEL, C - c0);
    }
    int n = min(TB, sum - t0);
    if (cols <= 0)
        return f;
#if KIND == 0
    f.p += ((dfcl_i64)c0 * sum + (dfcl_i64)t0 * PANEL) * WSIZE;
    f.run = f.lines = n * PANEL * WSIZE / 64;
#elif KIND == 1
    f.p += ((dfcl_i64)c0 * sum + t0) * WSIZE;
    f.run = n * WSIZE / 64 + 1;
    f.lines = cols * f.run;
    f.skip = (dfcl_i64)sum * WSIZE - f.run * 64;
#elif KIND == 2
    f.p += ((dfcl_i64)(t0 / PANEL) * C + c0) * PANEL * WSIZE;
    f.run = cols * PANEL * WSIZE / 64;
    f.lines = (n + PANEL - 1) / PANEL * f.run;
    f.skip = (dfcl_i64)(C - cols) * PANEL * WSIZE;
#else
    f.p += ((dfcl_i64)t0 * C + c0) * WSIZE;
    f.run = (cols * WSIZE + 63) / 64;
    f.lines = n * f.run;
    f.skip = (dfcl_i64)C * WSIZE - f.run * 64;
#endif
    return f;
}
#endif

/* Every vector of a row of a whole strip. */
#define EACH __attribute__((opencl_unroll_hint)) for (int j = 0; j < PANEL / VW; ++j)

/* ---- forward ---- */

#if KIND == 0 || KIND == 1 || KIND == 7
/* What belongs to a row's sample; absent ones are 0. */
struct vectors {
    GLOBAL const float *bias, *gamma, *gamma_res, *gate;
};

/* The epilogue of one row of 48 columns: each term is asked for once a row. */
DFCL_FN void finish_row(const float *c, const struct vectors *v, int act, GLOBAL float *pre, GLOBAL float *y, GLOBAL const float *res,
                        GLOBAL float *out) {
    vf u[PANEL / VW];
    EACH u[j] = VLD(c + j * VW);
    if (v->bias)
        EACH u[j] += VLD(v->bias + j * VW);
    if (pre)
        EACH VST(pre + j * VW, u[j]);
    if (act)
        EACH u[j] = act_of(act, u[j]);
    if (v->gamma)
        EACH u[j] *= VLD(v->gamma + j * VW);
    if (y)
        EACH VST(y + j * VW, u[j]);
    if (out) {
        if (v->gamma_res)
            EACH u[j] *= VLD(v->gamma_res + j * VW);
        if (v->gate)
            EACH u[j] *= VLD(v->gate + j * VW);
        if (res)
            EACH u[j] += VLD(res + j * VW);
        EACH VST(out + j * VW, u[j]);
    }
}
/* The same for the last strip's n < 48 columns. */
DFCL_FN void finish_part(const float *c, const struct vectors *v, int act, GLOBAL float *pre, GLOBAL float *y, GLOBAL const float *res,
                         GLOBAL float *out, int n) {
    for (int j = 0; j < n; j += VW) {
        vf u = VLD(c + j);
        if (v->bias)
            u += ld_part(v->bias + j, n - j);
        if (pre)
            st_part(u, pre + j, n - j);
        if (act)
            u = act_of(act, u);
        if (v->gamma)
            u *= ld_part(v->gamma + j, n - j);
        if (y)
            st_part(u, y + j, n - j);
        if (out) {
            if (v->gamma_res)
                u *= ld_part(v->gamma_res + j, n - j);
            if (v->gate)
                u *= ld_part(v->gate + j, n - j);
            if (res)
                u += ld_part(res + j, n - j);
            st_part(u, out + j, n - j);
        }
    }
}

DFCL_KERNEL(1, 1, 1)
linear_fwd_cpu(GLOBAL const A_T *x, dfcl_i64 x_off, GLOBAL const WT *w, dfcl_i64 w_off, GLOBAL const float *bias, dfcl_i64 bias_off,
               dfcl_i64 bias_stride, GLOBAL const float *gamma, dfcl_i64 gamma_off, dfcl_i64 gamma_stride, GLOBAL const float *gamma_res,
               dfcl_i64 gamma_res_off, dfcl_i64 gamma_res_stride, GLOBAL const int *dom, dfcl_i64 dom_off, GLOBAL float *pre,
               dfcl_i64 pre_off, GLOBAL float *y, dfcl_i64 y_off, GLOBAL const float *res, dfcl_i64 res_off, GLOBAL const float *gate,
               dfcl_i64 gate_off, dfcl_i64 gate_stride, GLOBAL float *out, dfcl_i64 out_off, int M, int N, int K, int T, int res_rows,
               int act, int rb) {
    int c0 = GRP(0) * PANEL, cols = min(PANEL, N - c0), m0 = GRP(1) * rb, m1 = min(M, m0 + rb);
    x += x_off;
    w += w_off;
    int t0 = 0, last = (cols - 1) / CW * CW; /* first column of the last chunk */
#if STAGED
    float c[(RB_MAX + TM) * PANEL] __attribute__((aligned(64)));
    B_T s[STEPS(TB) * PANEL] __attribute__((aligned(64)));
    struct ahead next;
    for (;; t0 += TB) {
        stage(w, N, K, c0, cols, t0, min(TB, K - t0), s);
        next = block_lines(w, N, K, c0, cols, t0 + TB);
        if (t0 + TB >= K)
            break;
        strip(A_AT(x, m0, t0, K), A_PITCH(K), m1 - m0, s, STEPS(TB), c, cols, t0 > 0, &next);
    }
#else
    struct ahead next = {0, 0, 0, 0, 0};
    GLOBAL const WT *s = w + (dfcl_i64)c0 * K;
#if VW == 16
    float c[TM * PANEL] __attribute__((aligned(64))); /* a tile is as wide as a panel and takes the whole sum */
#else
    float c[(FEW_MAX + TM) * PANEL] __attribute__((aligned(64)));
    for (; t0 + TB < K; t0 += TB, s += TB * PANEL)
        strip(x + (dfcl_i64)m0 * K + t0, K, m1 - m0, s, TB, c, cols, t0 > 0, &next);
#endif
#endif
    /* The last block: its last chunk goes row by row together with the epilogue. */
    strip(A_AT(x, m0, t0, K), A_PITCH(K), m1 - m0, s, STEPS(K - t0), c, last, t0 > 0, &next);
    /* Vectors of the sample at hand, at this strip's columns. */
    int sample = m0 / T, row = m0 % T, wrap = res_rows ? m0 % res_rows : 0; /* walked along with m */
    bool fresh = true;
    struct vectors v = {0, 0, 0, 0};
    for (int m = m0; m < m1; m += TM) {
        int rows = min(TM, m1 - m);
        want_tile(pre ? pre + pre_off + (dfcl_i64)m * N + c0 : 0, N, rows);
        want_tile(y ? y + y_off + (dfcl_i64)m * N + c0 : 0, N, rows);
        want_tile(out ? out + out_off + (dfcl_i64)m * N + c0 : 0, N, rows);
#if !STAGED && VW == 16
        float *cr = c;
#else
        float *cr = c + (m - m0) * PANEL;
#endif
        fetch_ahead(&next, next.lines * TM / (m1 - m) + 1);
        tile(A_AT(x, m, t0, K), A_PITCH(K), rows, s + B_CHUNK(last), STEPS(K - t0), cr + last, cols - last, t0 > 0);
        for (int i = 0; i < rows; ++i, cr += PANEL) {
            if (fresh) {
                dfcl_i64 d = dom ? dom[dom_off + sample] : 0;
                v.bias = bias ? bias + bias_off + d * bias_stride + c0 : 0;
                v.gamma = gamma ? gamma + gamma_off + d * gamma_stride + c0 : 0;
                v.gamma_res = gamma_res ? gamma_res + gamma_res_off + d * gamma_res_stride + c0 : 0;
                v.gate = gate ? gate + gate_off + sample * gate_stride + c0 : 0;
            }
            dfcl_i64 at = (dfcl_i64)(m + i) * N + c0;
            GLOBAL const float *rr = res ? res + res_off + (dfcl_i64)(res_rows ? wrap : m + i) * N + c0 : 0;
            GLOBAL float *pr = pre ? pre + pre_off + at : 0, *yr = y ? y + y_off + at : 0, *outr = out ? out + out_off + at : 0;
            if (cols == PANEL)
                finish_row(cr, &v, act, pr, yr, rr, outr);
            else
                finish_part(cr, &v, act, pr, yr, rr, outr, cols);
            fresh = ++row == T;
            if (fresh) {
                row = 0;
                ++sample;
            }
            if (++wrap == res_rows)
                wrap = 0;
        }
    }
}
#endif

/* ---- gradient of the input ---- */

#if KIND == 2 || KIND == 3
DFCL_KERNEL(1, 1, 1)
linear_dx_cpu(GLOBAL const A_T *dy, dfcl_i64 dy_off, GLOBAL const WT *w, dfcl_i64 w_off, GLOBAL const float *pre, dfcl_i64 pre_off,
              GLOBAL float *dx, dfcl_i64 dx_off, int M, int N, int K, int act, int accumulate, int rb) {
    int c0 = GRP(0) * PANEL, cols = min(PANEL, K - c0), m0 = GRP(1) * rb, m1 = min(M, m0 + rb);
    int t0 = 0, last = (cols - 1) / CW * CW; /* as in linear_fwd_cpu: the epilogue runs beside the last block's last chunk */
    float c[(RB_MAX + TM) * PANEL] __attribute__((aligned(64)));
    B_T s[STEPS(TB) * PANEL] __attribute__((aligned(64)));
    struct ahead next;
    dy += dy_off + (dfcl_i64)m0 * A_PITCH(N);
    w += w_off;
    for (;; t0 += TB) {
        stage(w, K, N, c0, cols, t0, min(TB, N - t0), s);
        next = block_lines(w, K, N, c0, cols, t0 + TB);
        if (t0 + TB >= N)
            break;
        strip(A_AT(dy, 0, t0, N), A_PITCH(N), m1 - m0, s, STEPS(TB), c, cols, t0 > 0, &next);
    }
    strip(A_AT(dy, 0, t0, N), A_PITCH(N), m1 - m0, s, STEPS(N - t0), c, last, t0 > 0, &next);
    for (int m = m0; m < m1; m += TM) {
        int rows = min(TM, m1 - m);
        float *cr = c + (m - m0) * PANEL;
        dfcl_i64 at = (dfcl_i64)m * K + c0;
        GLOBAL const float *pr = pre + pre_off + at;
        GLOBAL float *o = dx + dx_off + at;
        want_tile(o, K, rows);
        if (act)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < PANEL; j += 16)
                    dfcl_fetch(pr + (dfcl_i64)i * K + j, 0);
        fetch_ahead(&next, next.lines * TM / (m1 - m) + 1);
        tile(A_AT(dy, m - m0, t0, N), A_PITCH(N), rows, s + B_CHUNK(last), STEPS(N - t0), cr + last, cols - last, t0 > 0);
        for (int i = 0; i < rows; ++i, cr += PANEL, pr += K, o += K) {
            if (cols == PANEL) {
                vf u[PANEL / VW];
                EACH u[j] = VLD(cr + j * VW);
                if (act)
                    EACH u[j] *= act_grad(act, VLD(pr + j * VW));
                if (accumulate)
                    EACH u[j] += VLD(o + j * VW);
                EACH VST(o + j * VW, u[j]);
            } else {
                for (int j = 0; j < cols; j += VW) {
                    vf u = VLD(cr + j);
                    if (act)
                        u *= act_grad(act, ld_part(pr + j, cols - j));
                    if (accumulate)
                        u += ld_part(o + j, cols - j);
                    st_part(u, o + j, cols - j);
                }
            }
        }
    }
}
#endif

/* A tile of DM rows x DK columns keeps a vector of sums along n for each of its elements: no panel is transposed, and a weight that is read
 * once comes straight from memory. Items take `kb` columns x `rb` rows; columns outside, so that a tile's part of W stays near. */
#if KIND == 6
#define DM 4
#define DK (VW == 16 ? 6 : 3)
DFCL_KERNEL(1, 1, 1)
linear_dx_few_cpu(GLOBAL const float *dy, dfcl_i64 dy_off, GLOBAL const WT *w, dfcl_i64 w_off, GLOBAL const float *pre, dfcl_i64 pre_off,
                  GLOBAL float *dx, dfcl_i64 dx_off, int M, int N, int K, int act, int accumulate, int rb, int kb) {
    int k1 = min(K, (GRP(0) + 1) * kb), m0 = GRP(1) * rb, m1 = min(M, m0 + rb), whole = N / PANEL;
    dy += dy_off;
    w += w_off;
    for (int k = GRP(0) * kb; k < k1; k += DK)
        for (int m = m0; m < m1; m += DM) {
            vf s[DM][DK];
            GLOBAL const float *a[DM];
            GLOBAL const WT *b[DK];
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < DM; ++i) {
                a[i] = dy + (dfcl_i64)min(m + i, m1 - 1) * N;
                __attribute__((opencl_unroll_hint)) for (int j = 0; j < DK; ++j) s[i][j] = VS(0.0f);
            }
            __attribute__((opencl_unroll_hint)) for (int j = 0; j < DK; ++j) b[j] = w + (dfcl_i64)min(k + j, K - 1) * PANEL;
            dfcl_i64 at = 0;
            for (int p = 0; p < whole; ++p) {
                if (m == m0) /* the next columns of this panel */
                    for (int j = 0; j < DK * PANEL; j += 64 / (int)sizeof(WT))
                        dfcl_fetch(b[0] + at + DK * PANEL + j, 0);
                __attribute__((opencl_unroll_hint)) for (int q = 0; q < PANEL; q += VW) {
                    vf av[DM];
                    __attribute__((opencl_unroll_hint)) for (int i = 0; i < DM; ++i) av[i] = VLD(a[i] + p * PANEL + q);
                    __attribute__((opencl_unroll_hint)) for (int j = 0; j < DK; ++j) {
                        vf bv = LD_W(b[j] + at + q);
                        __attribute__((opencl_unroll_hint)) for (int i = 0; i < DM; ++i) s[i][j] = dfcl_vfma(av[i], bv, s[i][j]);
                    }
                }
                at += (dfcl_i64)K * PANEL;
            }
            for (int n = whole * PANEL; n < N; n += VW) /* the last panel's columns up to N */
                __attribute__((opencl_unroll_hint)) for (int i = 0; i < DM; ++i) {
                    vf av = ld_part(a[i] + n, N - n);
                    __attribute__((opencl_unroll_hint)) for (int j = 0; j < DK; ++j)
                        s[i][j] = dfcl_vfma(av, LD_W(b[j] + at + (n - whole * PANEL)), s[i][j]);
                }
            float c[DM * DK];
            __attribute__((opencl_unroll_hint)) for (int i = 0; i < DM; ++i)
                __attribute__((opencl_unroll_hint)) for (int j = 0; j < DK; ++j) c[i * DK + j] = dfcl_vsum(s[i][j]);
            for (int i = 0; i < min(DM, m1 - m); ++i)
                for (int j = 0; j < min(DK, k1 - k); ++j) {
                    dfcl_i64 to = (dfcl_i64)(m + i) * K + k + j;
                    float v = c[i * DK + j];
                    if (act)
                        v *= act == 1 ? dfcl_gelu_grad(pre[pre_off + to]) : dfcl_silu_grad(pre[pre_off + to]);
                    dx[dx_off + to] = accumulate ? dx[dx_off + to] + v : v;
                }
        }
}
#endif

/* ---- gradient of the matrix ---- */

#if KIND == 4
/* Group z takes rows [z * ts, (z + 1) * ts) of the sum. One slice: dw += C; more: part[z] = C, for slice_sum_cpu. */
DFCL_KERNEL(1, 1, 1)
linear_dw_cpu(GLOBAL const float *dy, dfcl_i64 dy_off, GLOBAL const float *x, dfcl_i64 x_off, GLOBAL float *dw, dfcl_i64 dw_off,
              GLOBAL float *part, dfcl_i64 part_off, int M, int N, int K, int rb, int ts, int slices) {
    int c0 = GRP(0) * PANEL, cols = min(PANEL, K - c0), n0 = GRP(1) * rb, n1 = min(N, n0 + rb);
    int m1 = min(M, (GRP(2) + 1) * ts);
    float c[(RB_MAX + TM) * PANEL] __attribute__((aligned(64)));
    float s[TB * PANEL] __attribute__((aligned(64)));
    for (int t0 = GRP(2) * ts; t0 < m1; t0 += TB) {
        int n = min(TB, m1 - t0);
        stage(x + x_off, K, M, c0, cols, t0, n, s);
        struct ahead next = block_lines(x + x_off, K, m1, c0, cols, t0 + TB);
        strip(dy + dy_off + (dfcl_i64)t0 * N + n0, N, n1 - n0, s, n, c, cols, t0 > GRP(2) * ts, &next);
    }
    GLOBAL float *o = slices == 1 ? dw + dw_off : part + part_off + (dfcl_i64)GRP(2) * N * K;
    for (int r = n0; r < n1; ++r)
        for (int j = 0; j < cols; j += VW) {
            GLOBAL float *p = o + (dfcl_i64)r * K + c0 + j;
            vf v = VLD(c + (r - n0) * PANEL + j);
            if (slices == 1)
                v += ld_part(p, cols - j);
            st_part(v, p, cols - j);
        }
}
#endif

/* ---- packing ---- */

#if KIND == 5
/* One panel x `steps` values of K. The last panel's columns past N become 0. */
DFCL_KERNEL(1, 1, 1)
pack_cpu(GLOBAL const WT *w, dfcl_i64 w_off, GLOBAL WT *packed, dfcl_i64 packed_off, int N, int K, int steps) {
    int n0 = GRP(0) * PANEL, k0 = GRP(1) * steps, k1 = min(K, k0 + steps);
    GLOBAL WT *o = packed + packed_off + (dfcl_i64)n0 * K;
    for (int j = 0; j < PANEL; j += VW)
        for (int k = k0; k < k1; k += VW) {
            vf r[VW];
            load_transposed(w + w_off, N, K, n0 + j, k, r);
            if (k1 - k >= VW)
                __attribute__((opencl_unroll_hint)) for (int i = 0; i < VW; ++i) ST_W(o + (dfcl_i64)(k + i) * PANEL + j, r[i]);
            else
                for (int i = 0; i < k1 - k; ++i)
                    ST_W(o + (dfcl_i64)(k + i) * PANEL + j, r[i]);
        }
}
#endif

/* ---- operands ---- */

#if KIND == 8
/* x [M,K] to rows of bf16 pairs, A_PITCH apart, zeros behind the last value; `rows` rows an item. */
DFCL_KERNEL(1, 1, 1)
bf16_rows_cpu(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL uint *out, dfcl_i64 out_off, int M, int K, int rows) {
    int m1 = min(M, (GRP(0) + 1) * rows);
    for (int m = GRP(0) * rows; m < m1; ++m) {
        GLOBAL const float *p = x + x_off + (dfcl_i64)m * K;
        GLOBAL uint *o = out + out_off + (dfcl_i64)m * A_PITCH(K);
        int k = 0;
        for (; k + 32 <= K; k += 32)
            VSTU(o + k / 2, dfcl_vrow(VLD(p + k), VLD(p + k + 16)));
        if (k < K)
            VSTU(o + k / 2, dfcl_vrow(ld_part(p + k, K - k), ld_part(p + k + 16, max(0, K - k - 16))));
    }
}
#endif
