/* The OpenCL backend's table, opening and closing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cpu.h"
#include "device/dot.h"
#include "device/opencl/ocl.h"

/* Seconds without progress, see queue.c. A marker may stand behind 64 launches of the longest kernels on a slow processor. */
static const double watchdog_default = 600.0;

const char *ocl_error_name(cl_int e) {
    static const struct {
        cl_int code;
        const char *name;
    } names[] = {
#define N(c) {c, #c}
        N(CL_DEVICE_NOT_FOUND), N(CL_DEVICE_NOT_AVAILABLE), N(CL_COMPILER_NOT_AVAILABLE), N(CL_MEM_OBJECT_ALLOCATION_FAILURE),
        N(CL_OUT_OF_RESOURCES), N(CL_OUT_OF_HOST_MEMORY), N(CL_MEM_COPY_OVERLAP), N(CL_BUILD_PROGRAM_FAILURE), N(CL_MAP_FAILURE),
        N(CL_MISALIGNED_SUB_BUFFER_OFFSET), N(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST), N(CL_INVALID_VALUE),
        N(CL_INVALID_PLATFORM), N(CL_INVALID_DEVICE), N(CL_INVALID_CONTEXT), N(CL_INVALID_COMMAND_QUEUE), N(CL_INVALID_HOST_PTR),
        N(CL_INVALID_MEM_OBJECT), N(CL_INVALID_BINARY), N(CL_INVALID_BUILD_OPTIONS), N(CL_INVALID_PROGRAM),
        N(CL_INVALID_PROGRAM_EXECUTABLE), N(CL_INVALID_KERNEL_NAME), N(CL_INVALID_KERNEL), N(CL_INVALID_ARG_INDEX),
        N(CL_INVALID_ARG_VALUE), N(CL_INVALID_ARG_SIZE), N(CL_INVALID_KERNEL_ARGS), N(CL_INVALID_WORK_DIMENSION),
        N(CL_INVALID_WORK_GROUP_SIZE), N(CL_INVALID_WORK_ITEM_SIZE), N(CL_INVALID_GLOBAL_OFFSET), N(CL_INVALID_EVENT_WAIT_LIST),
        N(CL_INVALID_EVENT), N(CL_INVALID_OPERATION), N(CL_INVALID_BUFFER_SIZE), N(CL_INVALID_GLOBAL_WORK_SIZE),
        N(CL_INVALID_PROPERTY), N(CL_INVALID_COMPILER_OPTIONS), N(CL_PLATFORM_NOT_FOUND_KHR),
#undef N
    };
    for (size_t i = 0; i < DFCL_COUNT(names); i++)
        if (names[i].code == e)
            return names[i].name;
    return "unknown OpenCL error";
}

dfcl_status ocl_fail(const struct ocl_device *d, dfcl_error *err, cl_int e, const char *what) {
    dfcl_status s = e == CL_MEM_OBJECT_ALLOCATION_FAILURE || e == CL_OUT_OF_HOST_MEMORY ? DFCL_NOMEM : DFCL_DEVICE;
    return dfcl_fail_native(err, s, e, "%s: %s (%d) on %s", what, ocl_error_name(e), e, d->dev.info.name);
}

/* Drivers explain themselves here, from their own threads. */
static void CL_CALLBACK context_notify(const char *text, const void *data, size_t size, void *user) {
    (void)data;
    (void)size;
    dfcl_log(user, DFCL_LOG_DEBUG, "OpenCL driver: %s", text);
}

/* The OpenCL C version to ask for. 1.2 is what the kernels are written in; sub-group functions exist from 2.0 on. */
static void choose_language(struct ocl_device *d) {
    /* -w: PoCL prints a count of warnings to the terminal; the compile checks refuse them with other compilers */
    snprintf(d->std_plain, sizeof d->std_plain, "-cl-std=CL1.2 -w");
    int v = ocl_version_number(d->dev.info.version);
    d->sub_groups_core = v >= 210;
    char c[128];
    ocl_info_string(d->id, CL_DEVICE_OPENCL_C_VERSION, c, sizeof c);
    int major = 0, minor = 0;
    if (sscanf(c, "OpenCL C %d.%d", &major, &minor) != 2)
        major = 1;
    /* A 3.0 device may name 1.2 here, for compatibility, and still take CL3.0. */
    snprintf(d->std_sub_groups, sizeof d->std_sub_groups, "%s",
             v >= 300     ? "-cl-std=CL3.0 -w"
             : major >= 2 ? "-cl-std=CL2.0 -w"
                          : "");
}

static void ocl_close(struct dfcl_device *dev) {
    struct ocl_device *d = ocl(dev);
    if (d->queue && d->waiter && !d->lost)
        ocl_wait(d, NULL, "close", NULL);
    if (dev->used)
        dfcl_log(dev->ctx, DFCL_LOG_WARN, "%s: closed with %llu bytes still allocated", dev->info.name, (unsigned long long)dev->used);
    ocl_waiter_destroy(d);
    /* Releasing objects of a hung queue would block: then they are left to the end of the process. */
    ocl_programs_release(d);
    if (!d->lost) {
        ocl_marks_release(d);
        if (d->queue)
            clReleaseCommandQueue(d->queue);
        if (d->context)
            clReleaseContext(d->context);
    }
    dfcl_free(dev->ctx, d);
}

static dfcl_status ocl_open(struct dfcl_device **out, const dfcl_context *ctx, const struct dfcl_device_info *info, dfcl_error *err) {
    struct ocl_device *d = dfcl_calloc(ctx, 1, sizeof *d, err);
    if (!d)
        return DFCL_NOMEM;
    d->dev.ctx = ctx;
    d->dev.info = *info;
    d->watchdog_s = watchdog_default;
    d->cpu = info->type == DFCL_DEVICE_CPU;
    d->dev.cpu_features = d->cpu ? dfcl_cpu_features() : 0;
    cl_int e;
    dfcl_status s = ocl_find(ctx, atoi(info->selector + strlen("opencl:")), &d->platform, &d->id, err);
    if (s)
        goto out;
    choose_language(d);
    char platform_version[256] = "";
    clGetPlatformInfo(d->platform, CL_PLATFORM_VERSION, sizeof platform_version - 1, platform_version, NULL);
    snprintf(d->identity, sizeof d->identity, "%s\n%s\n%s\n%s\n%s\n%s", info->platform, platform_version, info->vendor, info->name,
             info->version, info->driver);
    if (dfcl_dot_works(&d->dev, d->identity)) {
        d->dev.dot = DFCL_DOT_NATIVE;
        d->dev.info.bf16_dot = 1;
    }
    d->cache_binaries = !strstr(info->platform, "Portable Computing Language"); /* PoCL keeps its own */

    cl_context_properties props[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)d->platform, 0};
    d->context = clCreateContext(props, 1, &d->id, context_notify, (void *)(uintptr_t)ctx, &e);
    if (e != CL_SUCCESS) {
        d->context = NULL;
        s = ocl_fail(d, err, e, "clCreateContext");
        goto out;
    }
    d->queue = clCreateCommandQueue(d->context, d->id, 0, &e);
    if (e != CL_SUCCESS) {
        d->queue = NULL;
        s = ocl_fail(d, err, e, "clCreateCommandQueue");
        goto out;
    }
    s = ocl_waiter_create(d, err);
    if (s)
        goto out;
    s = ocl_probe_sub_groups(d, ocl_sub_group_candidate(d->id, info->version), err);
out:
    if (s) {
        ocl_close(&d->dev);
        return s;
    }
    *out = &d->dev;
    return DFCL_OK;
}

void dfcl_opencl_set_watchdog(struct dfcl_device *dev, double seconds) {
    ocl(dev)->watchdog_s = seconds;
}

const struct dfcl_backend dfcl_backend_opencl = {
    .name = "opencl",
    .list = ocl_list,
    .open = ocl_open,
    .close = ocl_close,
    .mem_create = ocl_mem_create,
    .mem_wrap = ocl_mem_wrap,
    .mem_destroy = ocl_mem_destroy,
    .write = ocl_write,
    .read = ocl_read,
    .copy = ocl_copy,
    .fill = ocl_fill,
    .kernel = ocl_kernel,
    .launch = ocl_launch,
    .flush = ocl_flush,
    .finish = ocl_finish,
};
