/* BitFit (Zaken et al., arXiv 2106.10199): biases only; the class table too where it is rebuilt for new classes. */
#include "methods/method.h"

static dfcl_status select(const struct dfcl_method *m, const struct dfcl_method_plan *plan, struct dfcl_dit *dit, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++)
        p[i].trained = p[i].kind == DFCL_PARAM_TABLE ? plan->train_classes : p[i].kind == DFCL_PARAM_VEC && p[i].present;
    return DFCL_OK;
}

const struct dfcl_method dfcl_method_bitfit = {
    .name = "bitfit",
    .summary = "biases only (and the class table where it is rebuilt)",
    .default_blocks = "none",
    .select = select,
};
