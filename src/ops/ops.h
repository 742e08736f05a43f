/* The registry of ops. An op is one row: name, variants (the last is "host", the plain C reference that accumulates in double), a
 * case generator for checks and benchmarks, flops and bytes. See docs/architecture.md, "Adding an op".
 *
 * Shapes: B samples, T rows per sample, M = B*T rows, N output and K input features. All f32 unless said. Row-major.
 * A sample is row / T for any T >= 1; tiles may straddle samples and domains. Refs are aligned to 4 bytes only (adaLN's chunks of odd widths)
 * unless an op says more.
 * Gradients of parameters are always added to (+=): micro-batches and shared parameters sum up; the trainer clears them once a step.
 * Gradients of activations are written (=) unless said. Every sum has a fixed order: the same run gives the same bits. */
#ifndef DFCL_OPS_OPS_H
#define DFCL_OPS_OPS_H

#include "tensor/tensor.h"

enum dfcl_act { DFCL_ACT_NONE = 0, DFCL_ACT_GELU_TANH, DFCL_ACT_SILU };

/* Every parameter struct starts with this. `scratch` is filled by dfcl_run: at least the op's scratch() bytes, 256-aligned. */
struct dfcl_op_head {
    struct dfcl_ref scratch;
};

/* u = x W^T + bias[dom]                       -> pre   [M,N] if present
 * y = gamma[dom] * act(u)                     -> y     [M,N] if present
 * out = res + gate[sample] * gamma_res[dom] * y -> out [M,N] if present; res row = row % res_rows (res_rows 0: row). out may be res.
 * dom: i32 [B], absent: domain 0. gate: f32, `gate_stride` elements between samples, absent: 1. */
struct dfcl_linear_fwd {
    struct dfcl_op_head head;
    int M, K, T;
    struct dfcl_ref x; /* [M,K] */
    struct dfcl_weight w;
    struct dfcl_vec bias, gamma, gamma_res;
    struct dfcl_ref dom;
    enum dfcl_act act;
    struct dfcl_ref pre, y;
    struct dfcl_ref res, gate, out;
    int64_t gate_stride;
    int res_rows;
};
/* dx = (accumulate ? dx : 0) + (dy W) * act'(pre); pre [M,K] used when act is not NONE. */
struct dfcl_linear_dx {
    struct dfcl_op_head head;
    int M;
    struct dfcl_ref dy; /* [M,N] */
    struct dfcl_weight w;
    enum dfcl_act act;
    struct dfcl_ref pre;
    struct dfcl_ref dx; /* [M,K] */
    bool accumulate;
};
/* dw += dy^T x : [N,K] row-major */
struct dfcl_linear_dw {
    struct dfcl_op_head head;
    int M, N, K;
    struct dfcl_ref dy, x, dw;
};
/* Fills w.packed (layout w.layout) from w.data. */
struct dfcl_pack {
    struct dfcl_op_head head;
    struct dfcl_weight w;
};
/* out[n] += sum over rows of x[m,n] */
struct dfcl_colsum {
    struct dfcl_op_head head;
    int M, N;
    struct dfcl_ref x, out;
};

/* softmax(q k^T * scale) v per sample and head. qkv [B*T, 3*H*D]: q | k | v, each H heads of D consecutive values.
 * out [B*T, H*D]; lse [B,H,T] (log-sum-exp of the scaled scores, natural log) if present.
 * bf16: the operands of the products (q, k, v, the probabilities; in backward also dout and the gradients of the scores) may be rounded to
 * bf16. */
struct dfcl_attn_fwd {
    struct dfcl_op_head head;
    int B, T, H, D;
    float scale;
    bool bf16;
    struct dfcl_ref qkv, out, lse;
};
struct dfcl_attn_bwd {
    struct dfcl_op_head head;
    int B, T, H, D;
    float scale;
    bool bf16;
    struct dfcl_ref qkv, out, lse, dout; /* as above; dout like out */
    struct dfcl_ref dqkv;                /* like qkv */
};

/* y = (x - mean) * rstd * (1 + scale[sample]) + shift[sample]; biased variance, eps inside the root, no affine part.
 * stats [M,2] = mean, rstd if present. shift, scale: `mod_stride` elements between samples, absent: 0. */
struct dfcl_ln_mod {
    struct dfcl_op_head head;
    int M, N, T;
    float eps;
    struct dfcl_ref x, shift, scale, y, stats;
    int64_t mod_stride;
};
/* dx (+= when accumulate); dshift[s] = sum_t dy, dscale[s] = sum_t dy * xhat (written, `dmod_stride` between samples). scale absent: 0;
 * each of dx, dshift, dscale may be absent. */
struct dfcl_ln_mod_bwd {
    struct dfcl_op_head head;
    int M, N, T;
    struct dfcl_ref x, stats, scale, dy, dx, dshift, dscale;
    int64_t mod_stride, dmod_stride;
    bool accumulate;
};

/* y = act(x);  dx = dy * act'(x), n elements; in place allowed. */
struct dfcl_act_fwd {
    struct dfcl_op_head head;
    int64_t n;
    enum dfcl_act act;
    struct dfcl_ref x, y;
};
struct dfcl_act_bwd {
    struct dfcl_op_head head;
    int64_t n;
    enum dfcl_act act;
    struct dfcl_ref x, dy, dx;
};

/* bf16_store: h = bf16(x), rounded to nearest even; bf16_load: x = h. n elements; h needs an alignment of 2 bytes. */
struct dfcl_cast {
    struct dfcl_op_head head;
    int64_t n;
    struct dfcl_ref x, h;
};

/* out = res + gate[sample] * gamma_out[dom] * (gamma_in[dom] * v): the unfused form of linear_fwd's y and out, with the same bits from its `pre` (no
 * activation). res absent: 0. out may be res. */
struct dfcl_gated_residual {
    struct dfcl_op_head head;
    int M, N, T;
    struct dfcl_ref res, v, gate, dom, out;
    int64_t gate_stride;
    struct dfcl_vec gamma_in, gamma_out;
};
/* Backward of a branch z = gate[sample] * gamma_out * gamma_in * v, v = W x + bias (v [M,N] kept by forward as `pre`), one domain:
 *   dv = dz * gate * gamma_out * gamma_in                                    [M,N] (may be dz itself)
 *   with S0[s] = sum_t dz, S1[s] = sum_t dz * v:
 *   dgate[s] = gamma_out * gamma_in * S1[s]   (written, dgate_stride)
 *   dgamma_out += sum_s gate * gamma_in * S1;  dgamma_in += sum_s gate * gamma_out * S1;  dbias += sum_s gate * gamma_out * gamma_in * S0
 * Each of gate, gammas (absent: 1), v (absent when no output needs it), dv and the gradients may be absent. */
struct dfcl_branch_bwd {
    struct dfcl_op_head head;
    int M, N, T;
    struct dfcl_ref dz, v, gate, gamma_in, gamma_out;
    int64_t gate_stride;
    struct dfcl_ref dv, dgate, dgamma_in, dgamma_out, dbias;
    int64_t dgate_stride;
};

/* Convolution of one image in NHWC. Position (i, j) of Ho x Wo and output feature n:
 *   v = bias[n] + sum over ky < kh, kx < kw, c < C of x[i*stride + ky - top][j*stride + kx - left][c] * W[n][(ky*kw + kx)*C + c],
 * where places outside of x [H,W,C] count as 0; top and left may be negative. v goes to row m = (i*step + oy) * (Wo*step) + j*step + ox of
 * out [Ho*step*Wo*step, N], plus the same row of res if present; res may be out. step 1: m = i*Wo + j.
 * Four calls of 2x2 taps with step 2 are nearest upsampling and a 3x3 convolution (models/vae_load.c sums the taps that meet the same pixel). */
struct dfcl_conv2d {
    struct dfcl_op_head head;
    int H, W, C, Ho, Wo;
    int kh, kw, stride, top, left;
    int step, oy, ox;
    struct dfcl_weight w;
    struct dfcl_ref x, bias, res, out;
};
/* Per part of `rows` rows (the last may be shorter) and column of x [M,N]: mean and sum of squared deviations from it.
 * stats [ceil(M/rows), 2, N]. */
struct dfcl_column_stats {
    struct dfcl_op_head head;
    int M, N, rows;
    struct dfcl_ref x, stats;
};
/* y = act((x - mean[n]) * mul[n] + add[n]), x and y [M,N], may be the same; coef [3,N] = mean, mul, add. GroupNorm with given statistics. */
struct dfcl_norm_act {
    struct dfcl_op_head head;
    int M, N;
    enum dfcl_act act;
    struct dfcl_ref x, coef, y;
};
/* y[m] = softmax(scale * x[m]) over rows of x [M,N]; y may be x. */
struct dfcl_softmax {
    struct dfcl_op_head head;
    int M, N;
    float scale;
    struct dfcl_ref x, y;
};

/* img [B,C,H,W] -> cols [B*T, C*p*p] ordered (channel, dy, dx), T = H/p * W/p, by rows: rows of the patch embedding's convolution. */
struct dfcl_patchify {
    struct dfcl_op_head head;
    int B, C, H, W, p;
    struct dfcl_ref img, cols;
};
/* tok [B*T, p*p*C] ordered (dy, dx, channel) <-> img [B,C,H,W]. `backward` false: tok -> img; true: img -> tok. */
struct dfcl_unpatchify {
    struct dfcl_op_head head;
    int B, C, H, W, p;
    struct dfcl_ref tok, img;
    bool backward;
};

/* y [B,dim] = [cos(t f_i), sin(t f_i)], f_i = exp(-ln(10000) i / (dim/2)); t f32 [B], may be fractional; all in f32. */
struct dfcl_timestep_embed {
    struct dfcl_op_head head;
    int B, dim;
    struct dfcl_ref t, y;
};
/* c[s] = temb[s] + table[row[s]]; row i32 [B] counts rows of the table (label dropout and domains are resolved by the caller). */
struct dfcl_class_embed {
    struct dfcl_op_head head;
    int B, d, rows;
    struct dfcl_ref temb, table, row, c;
};
/* dtable[row[s]] += dc[s], samples in order. */
struct dfcl_class_embed_bwd {
    struct dfcl_op_head head;
    int B, d, rows;
    struct dfcl_ref dc, row, dtable;
};

/* y[i] = table[row[i]], i < B: rows of N values; row i32 [B], 0 .. rows-1. */
struct dfcl_gather_rows {
    struct dfcl_op_head head;
    int B, N, rows;
    struct dfcl_ref table, row, y;
};

/* Columns of a diffusion table row (f32 [steps, DFCL_TAB_COUNT]), each rounded from double. */
enum dfcl_tab {
    DFCL_TAB_SQRT_AB,      /* sqrt(abar_t) */
    DFCL_TAB_SQRT_1MAB,    /* sqrt(1 - abar_t) */
    DFCL_TAB_SQRT_RAB,     /* sqrt(1/abar_t) */
    DFCL_TAB_SQRT_RABM1,   /* sqrt(1/abar_t - 1) */
    DFCL_TAB_C1,           /* posterior mean coefficient of x0 */
    DFCL_TAB_C2,           /* of x_t */
    DFCL_TAB_LPV,          /* clipped log posterior variance */
    DFCL_TAB_LOG_BETA,
    DFCL_TAB_COUNT,
};
/* xt = sqrt(abar_t) x0 + sqrt(1-abar_t) noise; t i32 [B] indexes rows of tab; n values per sample. */
struct dfcl_q_sample {
    struct dfcl_op_head head;
    int B, n;
    struct dfcl_ref x0, noise, t, tab, xt;
};
/* Hybrid loss of improved DDPM (arXiv 2102.09672, eq. 16 with the bound's factor 1/1000 of 1000 steps): mse on noise + variational bound in bits
 * on the learned range, eps detached in the latter. out = [eps | v] [B,2C,S,S], n = C*S*S values per half and sample.
 * mse, vb [B]; dout (if present) = grad_scale * d(mse+vb)/dout. */
struct dfcl_hybrid_loss {
    struct dfcl_op_head head;
    int B, n;
    float grad_scale;
    struct dfcl_ref x0, noise, xt, out, t, tab, mse, vb, dout;
};

/* One AdamW step over n values: g' = g * grad_scale; bias correction by step k >= 1 given as c1 = 1-b1^k and c2 = 1-b2^k (from double).
 * p -= lr * wd * p; p -= lr/c1 * m / (sqrt(v)/sqrt(c2) + eps). Then, if present, ema = ema_decay * ema + (1 - ema_decay) * p. */
struct dfcl_adamw {
    struct dfcl_op_head head;
    int64_t n;
    double lr, beta1, beta2, eps, wd, c1, c2; /* double: 1 - 0.999f is off by 1e-5 */
    double ema_decay;
    float grad_scale;
    struct dfcl_ref p, g, m, v, ema;
};
/* y = a x + b y (b 0: y may hold anything) */
struct dfcl_axpby {
    struct dfcl_op_head head;
    int64_t n;
    float a, b;
    struct dfcl_ref x, y;
};
/* out[0] = sum of squares of the finite values of x (fixed order: f32 partial sums of at most 4096 values, added with compensation);
 * out[1] = number of non-finite values. */
struct dfcl_sumsq {
    struct dfcl_op_head head;
    int64_t n;
    struct dfcl_ref x, out;
};

/* out[s][0..n): Philox normals of sample id[s] (u32 [B]); see base/philox.h. n any; the same bits as dfcl_normals everywhere. */
struct dfcl_normal {
    struct dfcl_op_head head;
    int B, n;
    uint64_t seed;
    uint32_t stream, step;
    struct dfcl_ref id, out;
};

/* Guidance over pairs: out [P,2C,S,S] of the network. Image i of m takes its conditional half from out[cond[i]] and its reference half
 * from out[ref[i]] (i32 [m]; ref < 0: none). For channels < chans: eps = u + s_i (c - u), s = scale f32 [m]; other channels eps = c.
 * v = conditional. eps, v: [m,C,S,S]; hw = S*S. */
struct dfcl_guide {
    struct dfcl_op_head head;
    int m, C, hw, chans;
    struct dfcl_ref out, cond, ref, scale, eps, v;
};
/* Ancestral step with learned range: x0 = SQRT_RAB x - SQRT_RABM1 eps; mu = C1 x0 + C2 x; logvar = f LOG_BETA + (1-f) LPV, f = (v+1)/2;
 * xn = mu + (noise present ? exp(logvar/2) noise : 0). tab row `i` (host values). xn may be x; x0 stored if present. clip: x0 to [-1,1]. */
struct dfcl_ddpm_step {
    struct dfcl_op_head head;
    int64_t n;
    float tab[DFCL_TAB_COUNT];
    bool clip;
    struct dfcl_ref x, eps, v, noise, xn, x0;
};
/* x0 = a x + b eps, clamped to [-1, 1] if clip; xn = kx x + ke eps + k0 x0 + kz noise + kp x0_prev. Serves DDIM and
 * DPM-Solver++(2M): src/diffusion computes the coefficients in double. xn may be x; x0 (if present) may be x0_prev. */
struct dfcl_linear_step {
    struct dfcl_op_head head;
    int64_t n;
    float a, b;
    bool clip;
    float kx, ke, k0, kz, kp;
    struct dfcl_ref x, eps, noise, x0_prev, xn, x0; /* noise, x0_prev, x0 may be absent */
};

/* ---- rows ---- */

struct dfcl_variant {
    const char *name; /* "portable", "cpu", "host" ... */
    bool bf16;        /* its products are of bf16 */
    bool (*supports)(const struct dfcl_device *dev, const void *params);
    uint64_t (*scratch)(const struct dfcl_device *dev, const void *params); /* NULL: none */
    dfcl_status (*launch)(struct dfcl_device *dev, const void *params, dfcl_error *err);
};

struct dfcl_case; /* ops/case.h */

struct dfcl_op {
    const char *name;
    size_t params_size;
    const struct dfcl_variant *variants; /* best first */
    int variant_count;
    int check_cases, bench_cases;
    /* Fills the case's parameters and tensors for check number (index < check_cases) or benchmark (index - check_cases). */
    void (*make_case)(struct dfcl_case *c, int index);
    double (*flops)(const void *params);
    double (*bytes)(const void *params);
};

extern const struct dfcl_op dfcl_op_linear_fwd, dfcl_op_linear_dx, dfcl_op_linear_dw, dfcl_op_pack, dfcl_op_colsum;
extern const struct dfcl_op dfcl_op_attn_fwd, dfcl_op_attn_bwd;
extern const struct dfcl_op dfcl_op_ln_mod, dfcl_op_ln_mod_bwd, dfcl_op_act_fwd, dfcl_op_act_bwd;
extern const struct dfcl_op dfcl_op_conv2d, dfcl_op_column_stats, dfcl_op_norm_act, dfcl_op_softmax;
extern const struct dfcl_op dfcl_op_gated_residual, dfcl_op_branch_bwd;
extern const struct dfcl_op dfcl_op_patchify, dfcl_op_unpatchify, dfcl_op_timestep_embed;
extern const struct dfcl_op dfcl_op_class_embed, dfcl_op_class_embed_bwd, dfcl_op_gather_rows;
extern const struct dfcl_op dfcl_op_q_sample, dfcl_op_hybrid_loss;
extern const struct dfcl_op dfcl_op_adamw, dfcl_op_axpby, dfcl_op_bf16_store, dfcl_op_bf16_load, dfcl_op_sumsq, dfcl_op_normal;
extern const struct dfcl_op dfcl_op_guide, dfcl_op_ddpm_step, dfcl_op_linear_step;

/* supports() for the plain cases: the reference on `host`; any device with kernels; a CPU with kernels. */
bool dfcl_supports_host(const struct dfcl_device *dev, const void *params);
bool dfcl_supports_kernels(const struct dfcl_device *dev, const void *params);
bool dfcl_supports_cpu(const struct dfcl_device *dev, const void *params);

/* All of the above; the count goes to *count. */
const struct dfcl_op *const *dfcl_ops(int *count);

/* The variant that would run: first in the row that the device's mask allows and that supports the parameters; NULL if none. */
const struct dfcl_variant *dfcl_op_choose(const struct dfcl_device *dev, const struct dfcl_op *op, const void *params);

/* Execution context of a model: the device, the shared scratch, and the dry run that sizes it. */
struct dfcl_exec {
    struct dfcl_device *dev;
    bool dry;
    uint64_t scratch_need;
    struct dfcl_ref scratch;
    /* Told of each op and the variant that runs it, dry or not. May be NULL. */
    void (*note)(void *user, const struct dfcl_op *op, const struct dfcl_variant *v);
    void *note_user;
};
/* Dry: notes the scratch the chosen variant needs (refs point at dfcl_dry_mem: present, but without memory). Else fills params->scratch, launches.
 * `params` points to the op's own struct and is modified (head). */
dfcl_status dfcl_run(struct dfcl_exec *ex, const struct dfcl_op *op, void *params, dfcl_error *err);

/* Wraps a variant-free call for tests: runs one given variant. */
dfcl_status dfcl_run_variant(struct dfcl_exec *ex, const struct dfcl_op *op, const struct dfcl_variant *v, void *params, dfcl_error *err);

#endif
