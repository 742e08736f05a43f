/* difffit-cl: finding and opening compute devices. */
#ifndef DFCL_DEVICE_H
#define DFCL_DEVICE_H

#include <difffit-cl/base.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dfcl_device_type { DFCL_DEVICE_CPU, DFCL_DEVICE_GPU, DFCL_DEVICE_ACCELERATOR };

/* One device as found. A property that could not be asked is 0 or "". */
struct dfcl_device_info {
    int index;           /* position in the list; what `--device N` means */
    char selector[32];   /* "opencl:0", "host" ... ; stable name of the backend's own numbering */
    char backend[16];    /* "opencl", "host", "cuda" */
    char platform[128];
    char name[128];
    char vendor[128];
    char driver[128];
    char version[128];
    enum dfcl_device_type type;
    int integrated;      /* shares memory with the host (GPU only) */
    uint64_t memory;     /* bytes of global memory */
    uint64_t max_alloc;  /* bytes, largest single allocation */
    uint64_t local_memory; /* bytes per work-group */
    uint32_t compute_units;
    uint32_t max_work_group;
    uint32_t sub_group;  /* 0: no usable sub-groups */
    uint32_t vector_bits; /* CPUs: widest float vector the device prefers, in bits; else 0 */
    int fp16;            /* half arithmetic (storage always works) */
    int bf16_dot;        /* CPUs, once the device is open: its bf16 dot products were tried and work, kernels use them */
    int usable;          /* 0: listed only; `problem` says why */
    char problem[128];
};

/* Lists every device of every platform, best first (discrete GPU, integrated GPU, accelerator, CPU, host reference).
 * Writes at most `max` entries to `list` (may be NULL when max is 0) and the number found to `count`. A platform that fails
 * is left out with a warning through the context's log. */
DFCL_API dfcl_status dfcl_device_list(const dfcl_context *ctx, struct dfcl_device_info *list, int max, int *count,
                                      dfcl_error *err);

typedef struct dfcl_device dfcl_device;

/* selector: "auto" or NULL, an index from the list, "opencl:0", "host", or part of a device's name (any case; must be
 * unique among usable devices, else DFCL_USAGE; a number of three digits or more that is no index counts as one). No match:
 * DFCL_DEVICE. */
DFCL_API dfcl_status dfcl_device_open(dfcl_device **out, const dfcl_context *ctx, const char *selector, dfcl_error *err);
/* Waits for queued work. Models and trainers on the device are closed before. */
DFCL_API void dfcl_device_close(dfcl_device **dev);
/* Valid while the device is open. */
DFCL_API const struct dfcl_device_info *dfcl_device_get_info(const dfcl_device *dev);

/* Runs the processor's bf16 dot product on the device and checks the result. The driver's compiler or the processor may end the
 * process meanwhile: for programs that are there to be ended (probe_program of dfcl_context_params). DFCL_ERROR: does not compile, comes out
 * wrong, or the processor has none. */
DFCL_API dfcl_status dfcl_device_try_dot(dfcl_device *dev, dfcl_error *err);

/* Restricts which kernel variants may be chosen: comma-separated, "-name" forbids variants whose name contains name
 * ("-cpu"), "name" alone allows only those. NULL: no restriction. For tests and benchmarks. */
DFCL_API dfcl_status dfcl_device_set_variants(dfcl_device *dev, const char *mask, dfcl_error *err);

#ifdef __cplusplus
}
#endif
#endif
