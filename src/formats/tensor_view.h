/* A stored tensor where it lies, whatever the container: up to three pieces stacked along axis 0, each of them contiguous or
 * strided, in little-endian bytes of any alignment. Plain containers have one piece; a fused qkv has three. */
#ifndef DFCL_FORMATS_TENSOR_VIEW_H
#define DFCL_FORMATS_TENSOR_VIEW_H

#include "base/base.h"
#include "base/dtype.h"

struct dfcl_tensor_view {
    const char *name;       /* owned by the file */
    enum dfcl_dtype dtype;  /* DFCL_DTYPE_COUNT: a type this library does not convert (see type_name) */
    char type_name[20];     /* "F32" or the file's own word ("F8_E4M3") */
    int ndim;               /* 0: a scalar */
    int64_t shape[DFCL_MAX_DIMS];
    uint64_t count;         /* elements, all pieces */
    uint64_t bytes;         /* when written out contiguously; fits size_t */
    int parts;              /* 1..3; shape[0] is a multiple */
    const unsigned char *part[3]; /* first element of each piece; NULL only when count is 0 or the bytes must be fetched by
                                   * dfcl_tensor_file_* first */
    bool strided;           /* false: pieces are C-contiguous */
    int64_t stride[DFCL_MAX_DIMS]; /* in elements, >= 0; meaningful when strided */
    uint32_t source[3];     /* the container's own number of each piece's storage */
};

/* Product of a shape and its size in bytes; false when either does not fit int64/size_t or a dimension is negative. */
bool dfcl_shape_count(const int64_t *shape, int ndim, size_t elem, uint64_t *count, uint64_t *bytes);
/* "[3, 4, 2]" into buf; returns buf. */
char *dfcl_shape_format(const int64_t *shape, int ndim, char *buf, size_t size);

/* Converts `count` little-endian elements at `src` (any alignment) to f32; integers and f64 are rounded to nearest. The type must
 * be one of the known ones. */
void dfcl_to_f32(enum dfcl_dtype dtype, const void *src, float *out, size_t count);
/* f32 -> F32, F16 or BF16 little-endian bytes (round to nearest even); false for other types. */
bool dfcl_from_f32(enum dfcl_dtype dtype, const float *src, void *out, size_t count);

/* Elements [first, first + n) in C order as f32; DFCL_FORMAT for a type that cannot be converted. `where` (the file) goes into
 * the message. */
dfcl_status dfcl_view_read_f32(const struct dfcl_tensor_view *v, const char *where, uint64_t first, uint64_t n, float *out,
                               dfcl_error *err);
/* All bytes, contiguous, in the stored type: `v->bytes` of them. */
void dfcl_view_read_raw(const struct dfcl_tensor_view *v, void *out);

#endif
