/* One sample from its file. Safe to call from several threads. */
#ifndef DFCL_DATA_DECODE_H
#define DFCL_DATA_DECODE_H

#include "base/base.h"

/* PNG or JPEG -> 8-bit [side,side,channels], channels 1 or 3, after ADM's centre crop. Errors name the file. */
dfcl_status dfcl_decode_picture(const dfcl_context *ctx, const char *path, int channels, int side, uint8_t *out, dfcl_error *err);
/* .npy [1,C,S,S] or [C,S,S], f32, f64 or f16 -> f32 [C,S,S]. */
dfcl_status dfcl_decode_latent(const dfcl_context *ctx, const char *path, int channels, int side, float *out, dfcl_error *err);
/* .npy with a single integer, 0 .. 99999. */
dfcl_status dfcl_decode_label(const dfcl_context *ctx, const char *path, int *out, dfcl_error *err);

#endif
