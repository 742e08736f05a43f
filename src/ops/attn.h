/* What attn_fwd and attn_bwd share. */
#ifndef DFCL_OPS_ATTN_H
#define DFCL_OPS_ATTN_H

#include "ops/case.h"

#define DFCL_ATTN_MAX_D 256

/* B, T, H >= 1, 1 <= D <= 256, and every index of a kernel (4*B*T*H*D, B*H*T) within reach: else DFCL_ERROR. */
dfcl_status dfcl_attn_shape(int B, int T, int H, int D, dfcl_error *err);

/* The references, sums in double. `work` holds dfcl_attn_ref_work(T, D) doubles. lse may be NULL in forward.
 *   s_ij = scale q_i . k_j,  lse_i = log sum_j exp(s_ij),  P_ij = exp(s_ij - lse_i),  out_i = sum_j P_ij v_j
 *   delta_i = dout_i . out_i,  dS_ij = P_ij (dout_i . v_j - delta_i)
 *   dq_i = scale sum_j dS_ij k_j,  dk_j = scale sum_i dS_ij q_i,  dv_j = sum_i P_ij dout_i */
size_t dfcl_attn_ref_work(int T, int D);
void dfcl_attn_fwd_ref(int B, int T, int H, int D, float scale, const float *qkv, float *out, float *lse, double *work);
void dfcl_attn_bwd_ref(int B, int T, int H, int D, float scale, const float *qkv, const float *out, const float *lse,
                       const float *dout, float *dqkv, double *work);

/* How a CPU variant cuts the work: `items` work-items walk over `units` = B*H heads times `parts`. */
struct dfcl_attn_plan {
    int vector;         /* floats of a vector: 16, 8 or 4 */
    int row;            /* floats of a row in scratch */
    int parts, size;    /* parts of a head; queries (forward) or keys (backward) of each */
    int units, items;
    int64_t item_size;  /* floats of scratch of an item */
    char options[32];
};
/* Fills all but item_size: parts of a multiple of `step` of a head's `rows` queries or keys, so that the compute units are done together. */
void dfcl_attn_plan_init(struct dfcl_attn_plan *p, const struct dfcl_device *dev, int heads, int rows, int step, int D);

/* The variant cpu_dot, cl/attn_dot_cpu.cl; arguments as in struct dfcl_variant. */
bool dfcl_attn_fwd_dot_supports(const struct dfcl_device *dev, const void *params);
uint64_t dfcl_attn_fwd_dot_scratch(const struct dfcl_device *dev, const void *params);
dfcl_status dfcl_attn_fwd_dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err);
bool dfcl_attn_bwd_dot_supports(const struct dfcl_device *dev, const void *params);
uint64_t dfcl_attn_bwd_dot_scratch(const struct dfcl_device *dev, const void *params);
dfcl_status dfcl_attn_bwd_dot_launch(struct dfcl_device *dev, const void *params, dfcl_error *err);

/* The portable variant, cl/attn.cl: queries of a forward tile, rows of a backward tile and local memory in bytes for a head size. */
struct dfcl_attn_tiles {
    int fwd, bwd;
    uint32_t fwd_local, bwd_local;
};
void dfcl_attn_tiles_get(int D, struct dfcl_attn_tiles *t);
/* Build options; `refs` (count of them, absent ones ignored) decide about ALIGNED. */
void dfcl_attn_options(char options[32], int D, const struct dfcl_ref *refs, int count);

/* Shapes of check and benchmark cases, the same for both directions. `mean` is added to q and k: scores of about mean^2 sqrt(D), beyond
 * what exp can take without the running maximum. `tol_factor`: a score s in f32 is off by a few |s| 2^-24, which is the
 * relative error of P; tolerances grow with the scores by this factor.
 * `bf16`: operands may be rounded, each by up to u = 2^-8 of itself, 0.4 u in the root of the mean square. `exact`: bf16 has q, k, v and
 * dout as they are; scores and log-sum-exp are then as good as in f32, and out, dq, dk and dv are sums whose terms are off by u at
 * most, independently, so that the largest error of a sum of any length is near u of the largest sum. Else a score of unit normals is off by
 * 0.6 u in the root of the mean square, and terms have three roundings in place of one. */
struct dfcl_attn_case {
    int B, T, H, D;
    float mean, tol_factor;
    bool bf16, exact;
    char label[96];
};
enum { DFCL_ATTN_CHECK_CASES = 82, DFCL_ATTN_BENCH_CASES = 10 };
void dfcl_attn_case_get(int index, struct dfcl_attn_case *out);
/* Tolerance of outputs: `f32` with no operand rounded. */
double dfcl_attn_case_tol(const struct dfcl_attn_case *c, double f32);
/* Fills qkv [B*T, 3*H*D] for a case. */
void dfcl_attn_case_fill(const struct dfcl_attn_case *c, uint64_t seed, float *qkv);

#endif
