/* Parts of dfcl_describe that have files of their own; each adds what it finds to `o`. */
#ifndef DFCL_DATA_DESCRIBE_H
#define DFCL_DATA_DESCRIBE_H

#include "base/json.h"
#include "data/scan.h"

/* Bytes, sizes and bad files of a folder of pictures, all of which are decoded. bad_of_class [classes] is counted up. */
dfcl_status dfcl_describe_pictures(const dfcl_context *ctx, const struct dfcl_scan *scan, cJSON *o, size_t *bad_of_class, dfcl_error *err);

/* A cache of latents (data/latents.h): settings, classes, size. DFCL_FORMAT when it is not finished. */
dfcl_status dfcl_describe_latents(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err);

#endif
