/* OpenCL backend, shared by its files. One context, one in-order queue and one waiting thread per open device. */
#ifndef DFCL_DEVICE_OPENCL_OCL_H
#define DFCL_DEVICE_OPENCL_OCL_H

#define CL_USE_DEPRECATED_OPENCL_1_2_APIS /* clCreateCommandQueue: the one call that every version has */
#include <CL/cl.h>
#include <CL/cl_ext.h>
#include <pthread.h>

#include "device/device.h"

struct dfcl_kernel {
    cl_kernel k;
    cl_uint args;
    size_t local[3];       /* reqd_work_group_size of the source */
    uint64_t hash;
    char *key;             /* "source\nname\noptions" */
    const char *name;      /* "linear.cl: linear_fwd", for messages */
};

struct ocl_program {
    cl_program p;
    char *key; /* "source\noptions" */
};

/* The waiting thread: it makes the blocking call, the caller waits for it with a time limit. */
struct ocl_waiter {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    bool started, quit, busy;
    cl_event event; /* NULL: the whole queue */
    cl_command_queue queue;
    cl_int result;
};

#define OCL_MARKS 64          /* marks in flight */
#define OCL_MARK_EVERY 64     /* launches between two marks */

struct ocl_device {
    struct dfcl_device dev;
    cl_platform_id platform;
    cl_device_id id;
    cl_context context;
    cl_command_queue queue;
    struct ocl_waiter *waiter;
    bool lost;              /* the watchdog fired: nothing is called any more */
    double watchdog_s;      /* without any progress */
    bool cache_binaries;
    bool cpu;
    bool sub_groups_core;   /* OpenCL 2.1 or later */
    char std_plain[24], std_sub_groups[24]; /* "-cl-std=CL1.2" */
    char identity[768];     /* device, driver and platform, part of the cache key */
    struct ocl_program *programs;
    size_t program_count, program_cap;
    struct dfcl_kernel **table; /* open addressing, capacity a power of two */
    size_t table_count, table_cap;
    cl_event marks[OCL_MARKS];
    unsigned mark_first, mark_count, since_mark;
};

struct ocl_mem {
    struct dfcl_mem mem;
    cl_mem buf;
};

static inline struct ocl_device *ocl(struct dfcl_device *dev) {
    return (struct ocl_device *)dev;
}
static inline cl_mem ocl_buf(struct dfcl_ref r) {
    return ((struct ocl_mem *)r.mem)->buf;
}

const char *ocl_error_name(cl_int e);
/* "what: CL_OUT_OF_RESOURCES (-5) on NAME". DFCL_NOMEM for the codes that say so, DFCL_DEVICE else. */
dfcl_status ocl_fail(const struct ocl_device *d, dfcl_error *err, cl_int e, const char *what);
dfcl_status ocl_check_lost(const struct ocl_device *d, dfcl_error *err);

/* platform.c */
dfcl_status ocl_list(const dfcl_context *ctx, dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err),
                     void *user, dfcl_error *err);
/* Device number n of the backend's numbering (over all platforms). */
dfcl_status ocl_find(const dfcl_context *ctx, int n, cl_platform_id *platform, cl_device_id *id, dfcl_error *err);
void ocl_info_string(cl_device_id id, cl_device_info what, char *buf, size_t size);
/* 210 for "OpenCL 2.1 ..."; 0 when it cannot be read. */
int ocl_version_number(const char *version);
bool ocl_has_extension(cl_device_id id, const char *name);
/* Sub-group size to try, 0 for none, -1 when sub-groups exist and only a built kernel can tell their size. */
int ocl_sub_group_candidate(cl_device_id id, const char *version);

/* memory.c */
dfcl_status ocl_mem_create(struct dfcl_device *dev, uint64_t size, struct dfcl_mem **out, dfcl_error *err);
dfcl_status ocl_mem_wrap(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err);
void ocl_mem_destroy(struct dfcl_device *dev, struct dfcl_mem *mem);
dfcl_status ocl_write(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err);
dfcl_status ocl_read(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
dfcl_status ocl_copy(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err);
dfcl_status ocl_fill(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err);

/* program.c */
dfcl_status ocl_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options, struct dfcl_kernel **out,
                       dfcl_error *err);
/* Builds a probe and keeps or clears dev.info.sub_group. */
dfcl_status ocl_probe_sub_groups(struct ocl_device *d, int candidate, dfcl_error *err);
void ocl_programs_release(struct ocl_device *d);

/* queue.c */
dfcl_status ocl_waiter_create(struct ocl_device *d, dfcl_error *err);
void ocl_waiter_destroy(struct ocl_device *d); /* leaves the thread alone when the device is lost */
/* Waits for the event (NULL: the queue), with the watchdog; releases the event. */
dfcl_status ocl_wait(struct ocl_device *d, cl_event event, const char *what, dfcl_error *err);
void ocl_marks_release(struct ocl_device *d);
dfcl_status ocl_launch(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3], const struct dfcl_args *args,
                       dfcl_error *err);
dfcl_status ocl_flush(struct dfcl_device *dev, dfcl_error *err);
dfcl_status ocl_finish(struct dfcl_device *dev, dfcl_error *err);

/* opencl.c */
/* For tests: seconds without progress after which a wait gives up. */
void dfcl_opencl_set_watchdog(struct dfcl_device *dev, double seconds);

#endif
