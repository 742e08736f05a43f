/* NumPy arrays: .npy reading (format 1 to 3; little-endian f2, f4, f8, i4, i8, u1; C or Fortran order) and writing (f4); the
 * .npz of pictures that the ADM evaluator takes is public (difffit-cl/sample.h). */
#ifndef DFCL_FORMATS_NPY_H
#define DFCL_FORMATS_NPY_H

#include "base/file.h"
#include "formats/tensor_view.h"

struct dfcl_npy {
    struct dfcl_map map;
    struct dfcl_tensor_view view; /* name "array"; strided when the array is in Fortran order; read with dfcl_view_read_f32 */
};
/* Bytes beyond the array are DFCL_FORMAT, as is everything else that does not fit; the file is named. */
dfcl_status dfcl_npy_open(struct dfcl_npy *npy, const char *path, dfcl_error *err);
/* The same on bytes that outlive it. */
dfcl_status dfcl_npy_open_memory(struct dfcl_npy *npy, const void *data, size_t size, const char *path, dfcl_error *err);
void dfcl_npy_close(struct dfcl_npy *npy);

/* f4, C order, format 1. Atomic. */
dfcl_status dfcl_npy_write(const dfcl_context *ctx, const char *path, const float *data, const int64_t *shape, int ndim, dfcl_error *err);

#endif
