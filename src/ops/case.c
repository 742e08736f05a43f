#include "ops/case.h"

#include <stdlib.h>
#include <string.h>

struct dfcl_case_tensor *dfcl_case_add(struct dfcl_case *c, const char *name, const void *ref_in_params, enum dfcl_dtype dtype,
                                       uint64_t count, enum dfcl_case_use use) {
    static struct dfcl_case_tensor sink;
    if (c->tensor_count >= DFCL_CASE_MAX_TENSORS) {
        c->broken = true;
        return &sink;
    }
    struct dfcl_case_tensor *t = &c->tensors[c->tensor_count++];
    memset(t, 0, sizeof *t);
    t->ref_offset = (size_t)((const unsigned char *)ref_in_params - c->params);
    t->dtype = dtype;
    t->count = count;
    t->use = use;
    t->name = name;
    t->fill = DFCL_FILL_NORMAL;
    t->b = 1.0;
    t->tol = 1e-5;
    return t;
}

void dfcl_case_also(struct dfcl_case *c, struct dfcl_case_tensor *t, const void *ref_in_params) {
    t->also_offset = (size_t)((const unsigned char *)ref_in_params - c->params);
}

void *dfcl_case_data(struct dfcl_case *c, size_t size) {
    void *p = c->owned_count < (int)DFCL_COUNT(c->owned) ? calloc(1, size ? size : 1) : NULL;
    if (!p) {
        c->broken = true;
        return NULL;
    }
    c->owned[c->owned_count++] = p;
    return p;
}

void dfcl_case_finish(struct dfcl_case *c) {
    for (int i = 0; i < c->owned_count; i++)
        free(c->owned[i]);
    c->owned_count = 0;
}
