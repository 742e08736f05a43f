/* Element types of stored tensors; below formats/ and device/ so that both can name them. */
#ifndef DFCL_BASE_DTYPE_H
#define DFCL_BASE_DTYPE_H

#include <stddef.h>

enum dfcl_dtype { DFCL_F32 = 0, DFCL_F16, DFCL_BF16, DFCL_I64, DFCL_I32, DFCL_U8, DFCL_F64, DFCL_DTYPE_COUNT };
size_t dfcl_dtype_size(enum dfcl_dtype t);
const char *dfcl_dtype_name(enum dfcl_dtype t); /* "F32", as in safetensors */

#define DFCL_MAX_DIMS 8

#endif
