/* Convolution on CPUs (conv2d of ops.h), weights in panels [N/48][kh*kw*C][48]. OpenCL only; one work-item a group.
 *
 * The product of linear_cpu.cl with the rows of A read where they lie: one work-item computes a strip of 48 features x `rb` positions with a register
 * tile of TM positions x NV vectors, and the whole sum stays in registers. At each tap a position has one run of C values, or a run of zeros
 * outside of the image, so nothing is copied or padded and a tile may straddle the image's rows. Where all positions of a tile have a whole row of taps
 * inside, that is one run of kw*C values. */
#if DFCL_VW == 16 || (DFCL_VW == 4 && defined(__aarch64__))
#define TM 8
#else
#define TM 4
#endif
#define NV 3
#define VW DFCL_VW
#define CW (NV * VW)
#define PANEL 48
#define EACH(i, n) __attribute__((opencl_unroll_hint)) for (int i = 0; i < (n); ++i)

struct image {
    GLOBAL const float *x, *zeros;
    int H, W, C, Wo, kh, kw, stride, top, left;
};

/* c[MM][V * VW] (rows 48 apart): positions m .. m + rows of the image times V vectors of the panel at w. */
#define MICRO(NAME, MM, V)                                                                                                              \
    DFCL_FN void NAME(const struct image *g, int m, int rows, GLOBAL const float *w, float *c) {                                         \
        int y[MM], z[MM];                                                                                                               \
        vf s[MM][V];                                                                                                                    \
        bool inside = true; /* of the columns */                                                                                         \
        EACH(i, MM) {                                                                                                                   \
            int p = m + min(i, rows - 1), q = p / g->Wo;                                                                                \
            y[i] = q * g->stride - g->top;                                                                                              \
            z[i] = (p - q * g->Wo) * g->stride - g->left;                                                                               \
            inside &= z[i] >= 0 && z[i] + g->kw <= g->W;                                                                                \
            EACH(j, V) s[i][j] = 0.0f;                                                                                                  \
        }                                                                                                                               \
        int run = inside ? g->kw : 1, n = run * g->C;                                                                                    \
        for (int ky = 0; ky < g->kh; ++ky)                                                                                              \
            for (int kx = 0; kx < g->kw; kx += run) {                                                                                   \
                GLOBAL const float *a[MM];                                                                                              \
                EACH(i, MM) {                                                                                                           \
                    int yy = y[i] + ky, zz = z[i] + kx;                                                                                 \
                    a[i] = yy >= 0 && yy < g->H && zz >= 0 && zz < g->W ? g->x + ((dfcl_i64)yy * g->W + zz) * g->C : g->zeros;          \
                }                                                                                                                       \
                for (int k = 0; k < n; ++k) {                                                                                           \
                    vf b[V];                                                                                                            \
                    EACH(j, V) b[j] = VLD(w + j * VW);                                                                                  \
                    EACH(i, MM) {                                                                                                       \
                        vf v = VS(a[i][k]);                                                                                             \
                        EACH(j, V) s[i][j] = dfcl_vfma(v, b[j], s[i][j]);                                                               \
                    }                                                                                                                   \
                    w += PANEL;                                                                                                         \
                }                                                                                                                       \
            }                                                                                                                           \
        EACH(i, MM) EACH(j, V) VST(c + i * PANEL + j * VW, s[i][j]);                                                                    \
    }
MICRO(micro_3, TM, 3)
MICRO(micro_2, TM, 2)
MICRO(micro_1, TM, 1)

DFCL_KERNEL(1, 1, 1)
conv2d_cpu(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL const float *w, dfcl_i64 w_off, GLOBAL const float *bias, dfcl_i64 bias_off,
           GLOBAL const float *res, dfcl_i64 res_off, GLOBAL float *out, dfcl_i64 out_off, int H, int W, int C, int Ho, int Wo, int N, int kh,
           int kw, int stride, int top, int left, int step, int oy, int ox, GLOBAL const float *zeros, dfcl_i64 zeros_off, int rb) {
    int c0 = GRP(0) * PANEL, cols = min(PANEL, N - c0), m0 = GRP(1) * rb, m1 = min(Ho * Wo, m0 + rb);
    struct image g = {x + x_off, zeros + zeros_off, H, W, C, Wo, kh, kw, stride, top, left};
    GLOBAL const float *panel = w + w_off + (dfcl_i64)c0 * (kh * kw * C);
    float c[TM * PANEL] __attribute__((aligned(64)));
    for (int m = m0; m < m1; m += TM) {
        int rows = min(TM, m1 - m);
        for (int j = 0; j < cols; j += CW) {
            if (cols - j > 2 * VW)
                micro_3(&g, m, rows, panel + j, c + j);
            else if (cols - j > VW)
                micro_2(&g, m, rows, panel + j, c + j);
            else
                micro_1(&g, m, rows, panel + j, c + j);
        }
        for (int i = 0; i < rows; ++i) {
            int p = m + i, q = p / Wo;
            dfcl_i64 at = (step == 1 ? p : (dfcl_i64)(q * step + oy) * (Wo * step) + (p - q * Wo) * step + ox) * (dfcl_i64)N + c0;
            for (int j = 0; j < cols; j += VW) {
                int n = cols - j;
                vf v = VLD(c + i * PANEL + j);
                if (bias)
                    v += n >= VW ? VLD(bias + bias_off + c0 + j) : dfcl_vld_part(bias + bias_off + c0 + j, n);
                if (res)
                    v += n >= VW ? VLD(res + res_off + at + j) : dfcl_vld_part(res + res_off + at + j, n);
                if (n >= VW)
                    VST(out + out_off + at + j, v);
                else
                    dfcl_vst_part(out + out_off + at + j, v, n);
            }
        }
    }
}
