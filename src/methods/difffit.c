/* DiffFit (Xie et al., arXiv 2304.06648): every bias, the class table, and multiplicative gammas that start at 1.
 *
 * `difffit` is the layout of the published PyTorch reproduction: gammas on the qkv output, the attention projection and both block branches,
 * in the first half of the blocks. `difffit-block` has the gammas of the two branches only, in every block. */
#include "methods/method.h"

#include <string.h>

/* Site of a gamma by its key's last part; 0 for other names. */
static unsigned site_of(const char *name) {
    static const struct {
        const char *suffix;
        unsigned site;
    } keys[] = {{".attn.gamma1", DFCL_SITE_QKV}, {".attn.gamma2", DFCL_SITE_PROJ}, {".gamma1", DFCL_SITE_ATTN}, {".gamma2", DFCL_SITE_MLP}};
    size_t n = strlen(name);
    for (size_t i = 0; i < DFCL_COUNT(keys); i++) {
        size_t k = strlen(keys[i].suffix);
        if (n > k && !strcmp(name + n - k, keys[i].suffix))
            return keys[i].site;
    }
    return 0;
}

static dfcl_status select(const struct dfcl_method *m, const struct dfcl_method_plan *plan, struct dfcl_dit *dit, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].gamma)
            p[i].present = (site_of(p[i].name) & plan->sites) && plan->blocks[p[i].block];
        if (p[i].kind == DFCL_PARAM_TABLE)
            p[i].trained = plan->train_classes;
        else
            p[i].trained = p[i].kind == DFCL_PARAM_VEC && p[i].present; /* vectors: biases and gammas */
    }
    return DFCL_OK;
}

const struct dfcl_method dfcl_method_difffit = {
    .name = "difffit",
    .summary = "biases, class table, gammas on qkv, proj and both branches in the first half of the blocks",
    .default_sites = DFCL_SITE_QKV | DFCL_SITE_PROJ | DFCL_SITE_ATTN | DFCL_SITE_MLP,
    .default_blocks = "half",
    .classes_by_default = true,
    .select = select,
};
const struct dfcl_method dfcl_method_difffit_block = {
    .name = "difffit-block",
    .summary = "biases, class table, gammas on both branches of every block",
    .default_sites = DFCL_SITE_ATTN | DFCL_SITE_MLP,
    .default_blocks = "all",
    .classes_by_default = true,
    .select = select,
};
