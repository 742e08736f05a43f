/* What linear_fwd, linear_dx, linear_dw, pack and colsum share: device kinds, argument checks, the host's view of a
 * weight. */
#ifndef DFCL_OPS_LINEAR_COMMON_H
#define DFCL_OPS_LINEAR_COMMON_H

#include <string.h>

#include "ops/case.h"
#include "ops/rows.h"

/* act(x) and act'(x) in double, as written in cl/dialect.h. */
double dfcl_act_ref(enum dfcl_act act, double x);
double dfcl_act_grad_ref(enum dfcl_act act, double x);

/* DFCL_ERROR when a size is not positive, a required tensor is absent, or a form of w is not known. */
dfcl_status dfcl_linear_check(const char *op, int M, const struct dfcl_weight *w, struct dfcl_ref in, dfcl_error *err);

/* The weight as f32 row-major on the host backend: w.data itself, or an expanded copy that goes to *owned (to be freed
 * by the caller). */
dfcl_status dfcl_weight_host(struct dfcl_device *dev, const struct dfcl_weight *w, const float **out, float **owned,
                             dfcl_error *err);

/* Sums cut into slices: how many, so that `blocks` times slices gives every compute unit some groups, each slice at
 * least `least` long. */
static inline int dfcl_slices(const struct dfcl_device *dev, int64_t blocks, int length, int least) {
    int64_t want = dfcl_ceil_div(8 * (int64_t)DFCL_MAX(dev->info.compute_units, 1), blocks),
            most = DFCL_MAX(length / least, 1);
    int slices = (int)DFCL_MIN(want, most);
    return (int)dfcl_ceil_div(length, dfcl_ceil_div(length, slices)); /* none is empty */
}
/* out[i] += part[0][i] + part[1][i] + ... in this order; f32, `count` values a slice. */
dfcl_status dfcl_slice_sum(struct dfcl_device *dev, struct dfcl_ref part, struct dfcl_ref out, int64_t count,
                           int slices, dfcl_error *err);

/* The form of a weight that kernels read. */
struct dfcl_weight_form {
    struct dfcl_ref ref;
    size_t size; /* bytes of an element */
    int wtype;   /* 0 f32, 1 bf16, 2 f16 */
    bool panels;
};
static inline struct dfcl_weight_form dfcl_weight_form(const struct dfcl_weight *w, bool panels) {
    int wtype = w->dtype == DFCL_BF16 ? 1 : w->dtype == DFCL_F16 ? 2 : 0;
    return (struct dfcl_weight_form){panels ? w->packed : w->data, dfcl_dtype_size(w->dtype), wtype, panels};
}
static inline struct dfcl_weight_form dfcl_weight_rows(const struct dfcl_weight *w) {
    return dfcl_weight_form(w, false);
}
static inline struct dfcl_weight_form dfcl_weight_panels(const struct dfcl_weight *w) {
    return dfcl_weight_form(w, true);
}
/* WTYPE of cl/linear.cl. */
static inline int dfcl_portable_wtype(struct dfcl_weight_form w) {
    return w.wtype + (w.panels ? 3 : 0);
}
/* The arguments that both forward kernels begin with, up to `act`. */
void dfcl_linear_fwd_args(struct dfcl_args *a, const struct dfcl_linear_fwd *p, struct dfcl_weight_form w);

/* [N, K] rows to panels, values of `size` bytes. */
void dfcl_pack_panels(const void *w, int N, int K, size_t size, void *out);

/* Cases: adds a weight with entries of standard deviation sd, its storage rounded to w->dtype; `packed` adds the panels
 * too, and without `data` the panels alone. */
void dfcl_case_add_weight(struct dfcl_case *c, struct dfcl_weight *w, double sd, bool data, bool packed);

#endif
