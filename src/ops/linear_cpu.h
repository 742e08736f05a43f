/* The `cpu` variants of the linear layer's ops (cl/linear_cpu.cl): the register tile follows dev->info.vector_bits. */
#ifndef DFCL_OPS_LINEAR_CPU_H
#define DFCL_OPS_LINEAR_CPU_H

#include "ops/ops.h"

dfcl_status dfcl_linear_fwd_cpu(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, dfcl_error *err);
dfcl_status dfcl_linear_dx_cpu(struct dfcl_device *dev, const struct dfcl_linear_dx *p, dfcl_error *err);
uint64_t dfcl_linear_dw_cpu_scratch(const struct dfcl_device *dev, const struct dfcl_linear_dw *p);
dfcl_status dfcl_linear_dw_cpu(struct dfcl_device *dev, const struct dfcl_linear_dw *p, dfcl_error *err);
dfcl_status dfcl_pack_cpu(struct dfcl_device *dev, const struct dfcl_pack *p, dfcl_error *err);

/* The `cpu_dot` variants: x or dy is rounded to bf16, products of bf16, sums in f32. For matrices in bf16 and more than
 * a few rows (M). */
bool dfcl_linear_dot_supports(const struct dfcl_device *dev, const struct dfcl_weight *w, int M);
uint64_t dfcl_linear_fwd_dot_scratch(const struct dfcl_linear_fwd *p);
dfcl_status dfcl_linear_fwd_dot(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, dfcl_error *err);
uint64_t dfcl_linear_dx_dot_scratch(const struct dfcl_linear_dx *p);
dfcl_status dfcl_linear_dx_dot(struct dfcl_device *dev, const struct dfcl_linear_dx *p, dfcl_error *err);

#endif
