/* Fine-tuning methods: which parameters are trained, which are added. A method is a row in method.c; adding one takes a file with
 * `select` and the row. Merging back into plain weights is in delta.h: it only looks at names, so every method shares it. */
#ifndef DFCL_METHODS_METHOD_H
#define DFCL_METHODS_METHOD_H

#include "models/model.h"

/* Gamma sites, in the order of their keys. */
enum {
    DFCL_SITE_QKV = 1,  /* attn.gamma1 [3d]: the qkv output */
    DFCL_SITE_PROJ = 2, /* attn.gamma2 [d]: the attention projection's output */
    DFCL_SITE_ATTN = 4, /* gamma1 [d]: the attention branch */
    DFCL_SITE_MLP = 8,  /* gamma2 [d]: the MLP branch */
};

/* What `select` works from: options resolved for a model of `depth` blocks. */
struct dfcl_method_plan {
    unsigned sites;    /* DFCL_SITE_* */
    bool *blocks;      /* [depth] blocks that get gammas */
    int depth;
    bool train_classes;
};

struct dfcl_method {
    const char *name, *summary;
    unsigned default_sites;
    const char *default_blocks; /* "half", "all" or "none" */
    bool classes_by_default;    /* trains the class table even when it is the base's own */
    /* Sets `trained` (and `present` of gammas) in the parameter table. */
    dfcl_status (*select)(const struct dfcl_method *m, const struct dfcl_method_plan *plan, struct dfcl_dit *dit, dfcl_error *err);
};
extern const struct dfcl_method dfcl_method_difffit, dfcl_method_difffit_block, dfcl_method_bitfit, dfcl_method_full;
/* By name; DFCL_USAGE with the known names otherwise. */
dfcl_status dfcl_method_find(const char *name, const struct dfcl_method **out, dfcl_error *err);
const struct dfcl_method *const *dfcl_methods(int *count);

struct dfcl_method_config {
    const char *method;       /* NULL: "difffit" */
    const char *gamma_sites;  /* NULL: the method's; "qkv,proj,attn,mlp" */
    const char *gamma_blocks; /* NULL: the method's; "0-13", "0,2,4-6", "all", "half" */
    const char *class_init;   /* NULL: "match"; "random", "null", "mean", or a safetensors file */
    int train_classes;        /* -1 no, 1 yes, 0: when the table is rebuilt, and always for difffit, difffit-block and full */
    uint64_t seed;            /* of random class rows */
    /* The data's classes. 0: keep the base's table. Otherwise the table is rebuilt unless count and names equal the base's
     * (names NULL: equal when the count is). */
    int classes;
    const char *const *class_names;
};
/* Opens a base for training by a method: roles set, gammas attached (1), class table rebuilt where asked. */
dfcl_status dfcl_method_open(dfcl_model **out, dfcl_device *dev, const struct dfcl_model_params *params,
                             const struct dfcl_method_config *config, dfcl_error *err);

/* "0-13" or "all" or "half" (blocks 0 .. depth/2 - 1) into flags [depth]; DFCL_USAGE with the text otherwise. Formats them back. */
dfcl_status dfcl_blocks_parse(const char *text, bool *blocks, int depth, dfcl_error *err);
void dfcl_blocks_format(const bool *blocks, int depth, char *buf, size_t size);
dfcl_status dfcl_sites_parse(const char *text, unsigned *sites, dfcl_error *err);
void dfcl_sites_format(unsigned sites, char *buf, size_t size);

/* Rows [classes + 1, d] of a rebuilt class table (methods/class_table.c; design in docs/methods.md, "Class tables"). */
dfcl_status dfcl_class_table_init(struct dfcl_base *base, const char *class_init, uint64_t seed, int classes,
                                  const char *const *class_names, float *rows, dfcl_error *err);

#endif
