/* The device layer: one vtable per backend, arguments validated once here (device.c), then the slot is called.
 *
 * Memory travels as a dfcl_ref {mem, byte offset}; kernels receive the buffer and the offset (in elements) as two arguments.
 * Work is queued in order; reads block. One thread at a time per device. */
#ifndef DFCL_DEVICE_DEVICE_H
#define DFCL_DEVICE_DEVICE_H

#include "base/base.h"

#include <difffit-cl/device.h>

struct dfcl_mem; /* one allocation of a backend */

struct dfcl_ref {
    struct dfcl_mem *mem; /* NULL: absent */
    uint64_t off;         /* bytes */
};

static inline struct dfcl_ref dfcl_ref_at(struct dfcl_ref r, uint64_t bytes) {
    r.off += bytes;
    return r;
}
#define DFCL_NO_REF ((struct dfcl_ref){0})

/* ---- kernels ---- */

struct dfcl_kernel; /* a built entry point; owned by the device, valid until it closes */

#define DFCL_MAX_ARGS 64

enum dfcl_arg_kind { DFCL_ARG_MEM, DFCL_ARG_I32, DFCL_ARG_U32, DFCL_ARG_I64, DFCL_ARG_F32 };
struct dfcl_arg {
    enum dfcl_arg_kind kind;
    union {
        struct dfcl_mem *mem; /* NULL is passed as a null pointer */
        int32_t i;
        uint32_t u;
        int64_t l;
        float f;
    } v;
};
struct dfcl_args {
    int n;
    struct dfcl_arg a[DFCL_MAX_ARGS];
};
/* Appends (memory, dfcl_i64 offset in elements of elem_size bytes): the kernel declares `__global T *p, dfcl_i64 p_off`. An absent
 * ref gives (NULL, 0). */
void dfcl_args_ref(struct dfcl_args *a, struct dfcl_ref r, size_t elem_size);
void dfcl_args_i32(struct dfcl_args *a, int32_t v);
void dfcl_args_u32(struct dfcl_args *a, uint32_t v);
void dfcl_args_i64(struct dfcl_args *a, int64_t v);
void dfcl_args_f32(struct dfcl_args *a, float v);

/* Finds or builds kernel `name` of source file `source` ("linear" for cl/linear.cl; "linear_cpu" for cl/linear_cpu.cl) with options
 * such as "-DTM=8 -DTN=48" (may be NULL). Built programs are kept per (source, options); binaries in the context's cache. */
dfcl_status dfcl_device_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options,
                               struct dfcl_kernel **out, dfcl_error *err);
/* Queues the kernel over groups[0] x groups[1] x groups[2] work-groups of the size that the kernel itself declares. */
dfcl_status dfcl_device_launch(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3],
                               const struct dfcl_args *args, dfcl_error *err);

/* ---- memory ---- */

/* Device memory, contents undefined. `label` names it in messages ("activations"). */
dfcl_status dfcl_mem_create(struct dfcl_device *dev, uint64_t size, const char *label, struct dfcl_mem **out, dfcl_error *err);
/* Wraps read-only host memory (a file mapping) without a copy; the host memory must outlive it. *out = NULL and DFCL_OK where the
 * backend cannot: the caller then creates and writes. */
dfcl_status dfcl_mem_wrap(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err);
void dfcl_mem_destroy(struct dfcl_device *dev, struct dfcl_mem **mem);
uint64_t dfcl_mem_size(const struct dfcl_mem *mem);

dfcl_status dfcl_write(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err);
dfcl_status dfcl_read(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
dfcl_status dfcl_copy(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
/* Fills with a repeated 32-bit pattern; offset and size multiples of 4. */
dfcl_status dfcl_fill(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err);

dfcl_status dfcl_flush(struct dfcl_device *dev, dfcl_error *err);  /* starts what is queued */
dfcl_status dfcl_finish(struct dfcl_device *dev, dfcl_error *err); /* waits for it; the watchdog turns a hang into DFCL_DEVICE */

/* The host address behind a ref on the `host` backend, NULL elsewhere or for an absent ref. */
void *dfcl_host_ptr(const struct dfcl_device *dev, struct dfcl_ref r);

/* Bytes allocated now and the highest so far, by this layer, on this device. */
uint64_t dfcl_device_memory_used(const struct dfcl_device *dev);
uint64_t dfcl_device_memory_peak(const struct dfcl_device *dev);

/* ---- what backends implement ---- */

struct dfcl_backend {
    const char *name;
    /* Appends what it finds through `add`; a failing platform is logged and skipped. `native` is the backend's own number. */
    dfcl_status (*list)(const dfcl_context *ctx,
                        dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err), void *user,
                        dfcl_error *err);
    /* Opens what `info.selector` names; allocates *out (whose first member is struct dfcl_device) and copies `info` into it, corrected by
     * what only an open device can tell. */
    dfcl_status (*open)(struct dfcl_device **out, const dfcl_context *ctx, const struct dfcl_device_info *info, dfcl_error *err);
    void (*close)(struct dfcl_device *dev);
    dfcl_status (*mem_create)(struct dfcl_device *dev, uint64_t size, struct dfcl_mem **out, dfcl_error *err);
    dfcl_status (*mem_wrap)(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err);
    void (*mem_destroy)(struct dfcl_device *dev, struct dfcl_mem *mem);
    dfcl_status (*write)(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err);
    dfcl_status (*read)(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
    dfcl_status (*copy)(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
    dfcl_status (*fill)(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err);
    dfcl_status (*kernel)(struct dfcl_device *dev, const char *source, const char *name, const char *options,
                          struct dfcl_kernel **out, dfcl_error *err);
    dfcl_status (*launch)(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3],
                          const struct dfcl_args *args, dfcl_error *err);
    dfcl_status (*flush)(struct dfcl_device *dev, dfcl_error *err);
    dfcl_status (*finish)(struct dfcl_device *dev, dfcl_error *err);
};

/* Dot products of bf16 pairs (DFCL_DOT of cl/prelude_cpu.h): not to be used, the processor's instruction, plain multiply-adds for checks. */
enum dfcl_dot { DFCL_DOT_NONE, DFCL_DOT_NATIVE, DFCL_DOT_EMULATED };

/* Common part of every device and memory object; backends embed it as first member. */
struct dfcl_device {
    const struct dfcl_backend *be;
    const dfcl_context *ctx;
    struct dfcl_device_info info;
    uint64_t used, peak;
    char variant_mask[256]; /* "" : no restriction */
    int cpu_features;       /* enum dfcl_cpu_feature (device/cpu.h) when info.type is DFCL_DEVICE_CPU, else 0 */
    enum dfcl_dot dot;      /* set by the backend when it opens (device/dot.h); checks may change it before the first launch */
};
struct dfcl_mem {
    uint64_t size;
    void *host; /* host backend: the bytes; others NULL */
    bool wrapped;
    char label[24];
};

extern const struct dfcl_backend dfcl_backend_host;
extern const struct dfcl_backend dfcl_backend_opencl;

/* Best first, stable among equals; sets each `index`. */
void dfcl_device_sort(struct dfcl_device_info *list, size_t count);
/* The entry that a selector (see dfcl_device_open) means; never one that is not usable. */
dfcl_status dfcl_device_choose(const struct dfcl_device_info *list, size_t count, const char *selector,
                               const struct dfcl_device_info **out, dfcl_error *err);

/* True when the device's variant mask lets a variant of this name be chosen. */
bool dfcl_device_allows(const struct dfcl_device *dev, const char *variant);

#endif
