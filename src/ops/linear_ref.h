/* The plain C variants ("host") of the linear layer's ops. */
#ifndef DFCL_OPS_LINEAR_REF_H
#define DFCL_OPS_LINEAR_REF_H

#include "ops/linear_common.h"

dfcl_status dfcl_linear_fwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err);
dfcl_status dfcl_linear_dx_host(struct dfcl_device *dev, const void *params, dfcl_error *err);
dfcl_status dfcl_linear_dw_host(struct dfcl_device *dev, const void *params, dfcl_error *err);
dfcl_status dfcl_pack_host(struct dfcl_device *dev, const void *params, dfcl_error *err);
dfcl_status dfcl_colsum_host(struct dfcl_device *dev, const void *params, dfcl_error *err);

#endif
