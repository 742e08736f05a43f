/* Python pickles (protocol 2 to 5) read as data. Nothing is imported or called: a global is a pair of names, a call becomes a node that
 * says so, and a handful of names torch's files need are understood (pickle.c, `reduce`). Unknown ones are kept as opaque objects.
 *
 * The result is a graph of numbered nodes; it may contain cycles, so walk it only to a fixed depth. */
#ifndef DFCL_FORMATS_PICKLE_H
#define DFCL_FORMATS_PICKLE_H

#include "base/base.h"
#include "base/dtype.h"

enum dfcl_pk_kind {
    DFCL_PK_NONE, DFCL_PK_BOOL, DFCL_PK_INT, DFCL_PK_FLOAT, DFCL_PK_STR, DFCL_PK_BYTES,
    DFCL_PK_TUPLE, DFCL_PK_LIST, DFCL_PK_SET, DFCL_PK_DICT,
    DFCL_PK_GLOBAL, /* a name: u.pair of strings, module and name */
    DFCL_PK_OBJECT, /* opaque: u.object */
    DFCL_PK_STORAGE, DFCL_PK_TENSOR, /* u.index into storages, tensors */
    DFCL_PK_BIGINT, /* does not fit 64 bits */
};

#define DFCL_PK_NOTHING UINT32_MAX

struct dfcl_pk_node {
    enum dfcl_pk_kind kind;
    uint32_t cap;
    union {
        int64_t i; /* INT, BOOL */
        double f;
        struct {
            const char *s; /* in the pickle, not terminated */
            size_t n;
        } str; /* STR, BYTES */
        struct {
            uint32_t *items; /* nodes; a DICT holds key, value, key, value */
            size_t count;
        } list;
        uint32_t pair[2];
        struct {
            uint32_t cls, args, state; /* state: DFCL_PK_NOTHING until set */
        } object;
        uint32_t index;
    } u;
};

/* persistent id ('storage', type, key, location, count) */
struct dfcl_pk_storage {
    uint32_t type; /* GLOBAL: torch FloatStorage ... */
    uint32_t key;  /* STR: names the file's entry */
    int64_t count; /* elements */
};
struct dfcl_pk_tensor {
    uint32_t storage; /* in storages */
    int ndim;
    int64_t offset;   /* elements */
    int64_t shape[DFCL_MAX_DIMS], stride[DFCL_MAX_DIMS];
};

struct dfcl_pickle {
    const dfcl_context *ctx;
    const char *path; /* borrowed, for messages */
    struct dfcl_pk_node *nodes;
    size_t count, cap;
    struct dfcl_pk_storage *storages;
    size_t storage_count, storage_cap;
    struct dfcl_pk_tensor *tensors;
    size_t tensor_count, tensor_cap;
    uint32_t root;
};

#define DFCL_PK_MAX_BYTES (32u << 20)

/* The bytes must outlive it: strings point into them. */
dfcl_status dfcl_pickle_read(struct dfcl_pickle *pk, const dfcl_context *ctx, const void *data, size_t size, const char *path, dfcl_error *err);
void dfcl_pickle_free(struct dfcl_pickle *pk);

static inline const struct dfcl_pk_node *dfcl_pk_at(const struct dfcl_pickle *pk, uint32_t node) {
    return &pk->nodes[node];
}
/* A STR equal to text. */
bool dfcl_pk_is(const struct dfcl_pickle *pk, uint32_t node, const char *text);
/* A GLOBAL of these names. */
bool dfcl_pk_is_global(const struct dfcl_pickle *pk, uint32_t node, const char *module, const char *name);
/* Value of a DICT by string key, the last of several as Python has it; DFCL_PK_NOTHING if none or not a DICT. */
uint32_t dfcl_pk_get(const struct dfcl_pickle *pk, uint32_t dict, const char *key);
/* "a dictionary", "argparse.Namespace" ... for messages; into buf. */
const char *dfcl_pk_describe(const struct dfcl_pickle *pk, uint32_t node, char *buf, size_t size);

#endif
