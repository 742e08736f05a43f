/* Data types, and vectors that belong to a domain. */
#ifndef DFCL_TENSOR_TENSOR_H
#define DFCL_TENSOR_TENSOR_H

#include "base/dtype.h"
#include "device/device.h"

/* A vector that a domain owns (bias, gamma): [domains, n] with `stride` elements from one domain to the next. mem NULL: absent
 * (a bias of 0, a gamma of 1). */
struct dfcl_vec {
    struct dfcl_ref ref;
    int64_t stride;
};
#define DFCL_NO_VEC ((struct dfcl_vec){{0}, 0})

/* A frozen or trained matrix [N, K] as nn.Linear stores it: y = x W^T. */
enum dfcl_layout {
    DFCL_ROW_MAJOR = 0,
    DFCL_PANEL48, /* [ceil(N/48)][K][48], zero-filled columns past N: the CPU variants' layout for forward and dX */
};
#define DFCL_PANEL 48 /* columns of a panel of DFCL_PANEL48 */

struct dfcl_weight {
    int N, K;
    enum dfcl_dtype dtype;  /* of data and packed: F32, F16 or BF16 */
    struct dfcl_ref data;   /* row-major [N, K]; may be absent once packed */
    struct dfcl_ref packed; /* absent, or in `layout` */
    enum dfcl_layout layout;
};

/* Elements of the packed form of a [N, K] matrix. */
static inline uint64_t dfcl_panel_count(int N, int K) {
    return ((uint64_t)N + DFCL_PANEL - 1) / DFCL_PANEL * DFCL_PANEL * (uint64_t)K;
}

#endif
