/* The host backend: device memory is host memory, and ops run their plain C references. No kernels. This is what the sanitizers see. */
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "device/device.h"

static dfcl_status host_list(const dfcl_context *ctx,
                             dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err), void *user,
                             dfcl_error *err) {
    struct dfcl_device_info i = {0};
    struct sysinfo si;
    snprintf(i.selector, sizeof i.selector, "host");
    snprintf(i.backend, sizeof i.backend, "host");
    snprintf(i.platform, sizeof i.platform, "difffit-cl");
    snprintf(i.name, sizeof i.name, "host reference (plain C)");
    snprintf(i.driver, sizeof i.driver, "%s", DFCL_VERSION);
    i.type = DFCL_DEVICE_CPU;
    i.integrated = 1;
    if (sysinfo(&si) == 0)
        i.memory = (uint64_t)si.totalram * si.mem_unit;
    i.max_alloc = i.memory;
    i.compute_units = 1;
    i.usable = 1;
    (void)ctx;
    return add(user, &i, err);
}

static dfcl_status host_open(struct dfcl_device **out, const dfcl_context *ctx, const struct dfcl_device_info *info, dfcl_error *err) {
    *out = dfcl_calloc(ctx, 1, sizeof **out, err);
    if (!*out)
        return DFCL_NOMEM;
    (*out)->ctx = ctx;
    (*out)->info = *info;
    return DFCL_OK;
}

static void host_close(struct dfcl_device *dev) {
    dfcl_free(dev->ctx, dev);
}

static dfcl_status host_mem_create(struct dfcl_device *dev, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    struct dfcl_mem *m = dfcl_calloc(dev->ctx, 1, sizeof *m, err);
    if (!m)
        return DFCL_NOMEM;
    m->host = size <= SIZE_MAX ? dfcl_calloc(dev->ctx, (size_t)size, 1, err) : NULL;
    if (!m->host) {
        dfcl_free(dev->ctx, m);
        return DFCL_NOMEM;
    }
    *out = m;
    return DFCL_OK;
}

static dfcl_status host_mem_wrap(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    (void)size;
    struct dfcl_mem *m = dfcl_calloc(dev->ctx, 1, sizeof *m, err);
    if (!m)
        return DFCL_NOMEM;
    m->host = (void *)(uintptr_t)host; /* device.c refuses writes to wrapped memory */
    *out = m;
    return DFCL_OK;
}

static void host_mem_destroy(struct dfcl_device *dev, struct dfcl_mem *mem) {
    if (!mem->wrapped)
        dfcl_free(dev->ctx, mem->host);
    dfcl_free(dev->ctx, mem);
}

static dfcl_status host_write(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err) {
    (void)err;
    memcpy(dfcl_host_ptr(dev, dst), src, (size_t)size);
    return DFCL_OK;
}
static dfcl_status host_read(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    (void)err;
    memcpy(dst, dfcl_host_ptr(dev, src), (size_t)size);
    return DFCL_OK;
}
static dfcl_status host_copy(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    (void)err;
    memcpy(dfcl_host_ptr(dev, dst), dfcl_host_ptr(dev, src), (size_t)size);
    return DFCL_OK;
}
static dfcl_status host_fill(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err) {
    (void)err;
    char *p = dfcl_host_ptr(dev, dst);
    for (uint64_t i = 0; i < size; i += 4)
        memcpy(p + i, &pattern, 4);
    return DFCL_OK;
}
static dfcl_status host_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options,
                               struct dfcl_kernel **out, dfcl_error *err) {
    (void)dev;
    (void)options;
    (void)out;
    return dfcl_fail(err, DFCL_ERROR, "host: has no kernels (%s of %s wanted)", name, source);
}
static dfcl_status host_launch(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3],
                               const struct dfcl_args *args, dfcl_error *err) {
    (void)dev;
    (void)kernel;
    (void)groups;
    (void)args;
    return dfcl_fail(err, DFCL_ERROR, "host: has no kernels");
}
static dfcl_status host_sync(struct dfcl_device *dev, dfcl_error *err) {
    (void)dev;
    (void)err;
    return DFCL_OK;
}

const struct dfcl_backend dfcl_backend_host = {
    .name = "host",
    .list = host_list,
    .open = host_open,
    .close = host_close,
    .mem_create = host_mem_create,
    .mem_wrap = host_mem_wrap,
    .mem_destroy = host_mem_destroy,
    .write = host_write,
    .read = host_read,
    .copy = host_copy,
    .fill = host_fill,
    .kernel = host_kernel,
    .launch = host_launch,
    .flush = host_sync,
    .finish = host_sync,
};
