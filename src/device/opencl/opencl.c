/* OpenCL backend. */
#include "device/device.h"

static dfcl_status ocl_list(const dfcl_context *ctx,
                            dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err), void *user,
                            dfcl_error *err) {
    (void)ctx, (void)add, (void)user, (void)err;
    return DFCL_OK;
}

const struct dfcl_backend dfcl_backend_opencl = {.name = "opencl", .list = ocl_list};
