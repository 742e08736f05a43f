#include "base/dtype.h"

static const struct {
    const char *name;
    size_t size;
} types[DFCL_DTYPE_COUNT] = {
    [DFCL_F32] = {"F32", 4}, [DFCL_F16] = {"F16", 2}, [DFCL_BF16] = {"BF16", 2}, [DFCL_I64] = {"I64", 8},
    [DFCL_I32] = {"I32", 4}, [DFCL_U8] = {"U8", 1},   [DFCL_F64] = {"F64", 8},
};

size_t dfcl_dtype_size(enum dfcl_dtype t) {
    return (unsigned)t < DFCL_DTYPE_COUNT ? types[t].size : 0;
}

const char *dfcl_dtype_name(enum dfcl_dtype t) {
    return (unsigned)t < DFCL_DTYPE_COUNT ? types[t].name : "?";
}
