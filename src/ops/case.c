#include "ops/case.h"

#include "tensor/arena.h"

#include <stdlib.h>
#include <string.h>

/* Present, without memory: what supports() and scratch() see in a dry run. */
static void mark(struct dfcl_case *c, size_t ref_offset) {
    struct dfcl_ref present = {&dfcl_dry_mem, 0};
    memcpy(c->params + ref_offset, &present, sizeof present);
}

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
    mark(c, t->ref_offset);
    return t;
}

void dfcl_case_also(struct dfcl_case *c, struct dfcl_case_tensor *t, const void *ref_in_params) {
    t->also_offset = (size_t)((const unsigned char *)ref_in_params - c->params);
    mark(c, t->also_offset);
}

dfcl_status dfcl_case_make(struct dfcl_case *c, const struct dfcl_op *op, int index, uint64_t seed, dfcl_error *err) {
    memset(c, 0, sizeof *c);
    c->op = op;
    c->seed = seed;
    if (op->params_size > sizeof c->params)
        return dfcl_fail(err, DFCL_ERROR, "%s: parameters of %zu bytes, room for %zu", op->name, op->params_size, sizeof c->params);
    op->make_case(c, index);
    if (c->broken)
        return dfcl_fail(err, DFCL_ERROR, "%s: case %d could not be made (too many tensors, or no memory)", op->name, index);
    return DFCL_OK;
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
