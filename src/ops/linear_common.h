/* What linear_fwd, linear_dx, linear_dw, pack and colsum share: device kinds, argument checks, the host's view of a weight. */
#ifndef DFCL_OPS_LINEAR_COMMON_H
#define DFCL_OPS_LINEAR_COMMON_H

#include <string.h>

#include "ops/case.h"
#include "ops/rows.h"

#define DFCL_PANEL 48 /* columns of a panel of DFCL_PANEL48 */

/* Elements of the packed form of a [N, K] matrix. */
static inline uint64_t dfcl_panel_count(int N, int K) {
    return (uint64_t)dfcl_ceil_div(N, DFCL_PANEL) * DFCL_PANEL * (uint64_t)K;
}

/* act(x) and act'(x) in double, as written in cl/dialect.h. */
double dfcl_act_ref(enum dfcl_act act, double x);
double dfcl_act_grad_ref(enum dfcl_act act, double x);

/* DFCL_ERROR when a size is not positive, a required tensor is absent, or a form of w is not known. */
dfcl_status dfcl_linear_check(const char *op, int M, const struct dfcl_weight *w, struct dfcl_ref in, dfcl_error *err);

/* The weight as f32 row-major on the host backend: w.data itself, or an expanded copy that goes to *owned (to be freed by the caller). */
dfcl_status dfcl_weight_host(struct dfcl_device *dev, const struct dfcl_weight *w, const float **out, float **owned, dfcl_error *err);

/* Cases: adds a weight with entries of standard deviation sd, its storage rounded to w->dtype; `packed` adds the panels too, and
 * without `data` the panels alone. */
void dfcl_case_add_weight(struct dfcl_case *c, struct dfcl_weight *w, double sd, bool data, bool packed);

#endif
