/* Buffers and transfers. */
#include <string.h>

#include "device/opencl/ocl.h"

dfcl_status ocl_mem_create(struct dfcl_device *dev, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    if (size > SIZE_MAX)
        return dfcl_fail(err, DFCL_NOMEM, "more than this system can address");
    struct ocl_mem *m = dfcl_calloc(dev->ctx, 1, sizeof *m, err);
    if (!m)
        return DFCL_NOMEM;
    cl_int e;
    m->buf = clCreateBuffer(d->context, CL_MEM_READ_WRITE, (size_t)size, NULL, &e);
    if (e != CL_SUCCESS) {
        dfcl_free(dev->ctx, m);
        return ocl_fail(d, err, e == CL_INVALID_BUFFER_SIZE ? CL_MEM_OBJECT_ALLOCATION_FAILURE : e, "clCreateBuffer");
    }
    /* Drivers put off the real allocation to the first use; asking for the buffer on the device now makes a lack of memory show here,
     * with the plan at hand, and not in the middle of the work. */
    cl_event ev = NULL;
    e = clEnqueueMigrateMemObjects(d->queue, 1, &m->buf, CL_MIGRATE_MEM_OBJECT_CONTENT_UNDEFINED, 0, NULL, &ev);
    if (e == CL_SUCCESS)
        s = ocl_wait(d, ev, "allocation", err);
    else if (e == CL_MEM_OBJECT_ALLOCATION_FAILURE || e == CL_OUT_OF_RESOURCES || e == CL_OUT_OF_HOST_MEMORY)
        s = ocl_fail(d, err, CL_MEM_OBJECT_ALLOCATION_FAILURE, "allocation");
    else
        dfcl_log(dev->ctx, DFCL_LOG_DEBUG, "OpenCL: clEnqueueMigrateMemObjects: %s", ocl_error_name(e));
    if (s) {
        clReleaseMemObject(m->buf);
        dfcl_free(dev->ctx, m);
        return s;
    }
    *out = &m->mem;
    return DFCL_OK;
}

dfcl_status ocl_mem_wrap(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    *out = NULL;
    /* Only a CPU reads host memory in place; elsewhere USE_HOST_PTR means a hidden copy, of which the plan would know nothing. A base that
     * is not page-aligned makes some drivers copy as well. */
    if (!d->cpu || d->lost || (uintptr_t)host % 4096 || size > SIZE_MAX || (dev->info.max_alloc && size > dev->info.max_alloc))
        return DFCL_OK;
    struct ocl_mem *m = dfcl_calloc(dev->ctx, 1, sizeof *m, err);
    if (!m)
        return DFCL_NOMEM;
    cl_int e;
    m->buf = clCreateBuffer(d->context, CL_MEM_READ_ONLY | CL_MEM_USE_HOST_PTR, (size_t)size, (void *)(uintptr_t)host, &e);
    if (e != CL_SUCCESS) {
        dfcl_log(dev->ctx, DFCL_LOG_DEBUG, "OpenCL: host memory not wrapped: %s", ocl_error_name(e));
        dfcl_free(dev->ctx, m);
        return DFCL_OK;
    }
    *out = &m->mem;
    return DFCL_OK;
}

void ocl_mem_destroy(struct dfcl_device *dev, struct dfcl_mem *mem) {
    struct ocl_mem *m = (struct ocl_mem *)mem;
    if (!ocl(dev)->lost) /* a lost device may still be writing to it */
        clReleaseMemObject(m->buf);
    dfcl_free(dev->ctx, m);
}

dfcl_status ocl_write(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    cl_event ev = NULL;
    cl_int e = clEnqueueWriteBuffer(d->queue, ocl_buf(dst), CL_FALSE, (size_t)dst.off, (size_t)size, src, 0, NULL, &ev);
    if (e != CL_SUCCESS)
        return ocl_fail(d, err, e, "clEnqueueWriteBuffer");
    return ocl_wait(d, ev, "write", err); /* the caller's memory is free again on return */
}

dfcl_status ocl_read(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    cl_event ev = NULL;
    cl_int e = clEnqueueReadBuffer(d->queue, ocl_buf(src), CL_FALSE, (size_t)src.off, (size_t)size, dst, 0, NULL, &ev);
    if (e != CL_SUCCESS)
        return ocl_fail(d, err, e, "clEnqueueReadBuffer");
    return ocl_wait(d, ev, "read", err);
}

dfcl_status ocl_copy(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    cl_int e = clEnqueueCopyBuffer(d->queue, ocl_buf(src), ocl_buf(dst), (size_t)src.off, (size_t)dst.off, (size_t)size, 0, NULL, NULL);
    return e == CL_SUCCESS ? DFCL_OK : ocl_fail(d, err, e, "clEnqueueCopyBuffer");
}

dfcl_status ocl_fill(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    cl_int e =
        clEnqueueFillBuffer(d->queue, ocl_buf(dst), &pattern, sizeof pattern, (size_t)dst.off, (size_t)size, 0, NULL, NULL);
    return e == CL_SUCCESS ? DFCL_OK : ocl_fail(d, err, e, "clEnqueueFillBuffer");
}
