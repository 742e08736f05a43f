/* Full fine-tuning: everything but the fixed positions. Gradients, two optimizer moments and an average of every value are kept. */
#include "methods/method.h"

static dfcl_status select(const struct dfcl_method *m, const struct dfcl_method_plan *plan, struct dfcl_dit *dit, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++)
        p[i].trained = p[i].kind == DFCL_PARAM_TABLE ? plan->train_classes : p[i].present;
    return DFCL_OK;
}

const struct dfcl_method dfcl_method_full = {
    .name = "full",
    .summary = "every parameter",
    .default_blocks = "none",
    .classes_by_default = true,
    .select = select,
};
