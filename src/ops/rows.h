/* Small things that op rows share: where a variant runs, and its launch. */
#ifndef DFCL_OPS_ROWS_H
#define DFCL_OPS_ROWS_H

#include <string.h>

#include "ops/ops.h"

static inline bool dfcl_on_host(const struct dfcl_device *dev) {
    return !strcmp(dev->info.backend, "host");
}
/* Backends that run kernels written in the dialect. */
static inline bool dfcl_on_kernels(const struct dfcl_device *dev) {
    return !dfcl_on_host(dev);
}
/* CPUs through OpenCL: the `_cpu` variants. */
static inline bool dfcl_on_cpu(const struct dfcl_device *dev) {
    return !strcmp(dev->info.backend, "opencl") && dev->info.type == DFCL_DEVICE_CPU;
}
/* Lanes of a float vector of the `_cpu` variants (DFCL_VW of cl/prelude_cpu.h), and the build option that says so. */
static inline int dfcl_cpu_lanes(const struct dfcl_device *dev) {
    return dev->info.vector_bits >= 512 ? 16 : dev->info.vector_bits >= 256 ? 8 : 4;
}
/* How the `cpu_dot` variants may multiply bf16: they are written for vectors of 512 bits. */
static inline enum dfcl_dot dfcl_cpu_dot(const struct dfcl_device *dev) {
    return dfcl_on_cpu(dev) && dfcl_cpu_lanes(dev) == 16 ? dev->dot : DFCL_DOT_NONE;
}
static inline const char *dfcl_cpu_options(const struct dfcl_device *dev) {
    int lanes = dfcl_cpu_lanes(dev);
    return lanes == 16 ? "-DDFCL_VW=16" : lanes == 8 ? "-DDFCL_VW=8" : "-DDFCL_VW=4";
}
static inline int64_t dfcl_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
/* Sums over the rows of a sample go through parts of this many rows, added in order afterwards: small parts only where the device would
 * idle otherwise. Parts of all samples: M / T * ceil(T / part_rows). */
static inline int dfcl_part_rows(const struct dfcl_device *dev, int M, int T) {
    int64_t parts = M / T * dfcl_ceil_div(T, 64);
    return parts >= 4 * (int64_t)DFCL_MAX(dev->info.compute_units, 1u) ? 64 : 16;
}
/* Bytes of `sums` sums a column for each part; for the finest parts, so that a smaller batch never needs more than a larger one. */
static inline uint64_t dfcl_part_scratch(int M, int T, int N, int sums) {
    return (uint64_t)(M / T) * (uint64_t)dfcl_ceil_div(T, 16) * (uint64_t)sums * (uint64_t)N * 4;
}
/* Finds or builds the kernel and queues gx x gy x gz groups of it. */
static inline dfcl_status dfcl_launch_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options,
                                             int64_t gx, int64_t gy, int64_t gz, const struct dfcl_args *args, dfcl_error *err) {
    struct dfcl_kernel *k;
    dfcl_status s = dfcl_device_kernel(dev, source, name, options, &k, err);
    if (s)
        return s;
    const size_t groups[3] = {(size_t)gx, (size_t)gy, (size_t)gz};
    return dfcl_device_launch(dev, k, groups, args, err);
}

#endif
