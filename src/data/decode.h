/* One sample from its file. Safe to call from several threads. */
#ifndef DFCL_DATA_DECODE_H
#define DFCL_DATA_DECODE_H

#include "data/crop.h"
#include "formats/image.h"

/* PNG or JPEG -> 8-bit [height,width,channels], channels 1 or 3, after ADM's crop: the centre, or a random one where `random` is not NULL. Errors
 * name the file. */
dfcl_status dfcl_decode_picture(const dfcl_context *ctx, const char *path, int channels, int height, int width, enum dfcl_alpha alpha,
                                const struct dfcl_crop_draw *random, uint8_t *out, dfcl_error *err);
dfcl_status dfcl_decode_picture_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, int channels,
                                       int height, int width, enum dfcl_alpha alpha, const struct dfcl_crop_draw *random, uint8_t *out, dfcl_error *err);
/* Names of options: crop "center" (or NULL) or "random", alpha "white" (or NULL) or "drop". DFCL_USAGE for others. */
dfcl_status dfcl_picture_options(const char *crop, const char *alpha, bool *random_crop, enum dfcl_alpha *out, dfcl_error *err);
/* .npy [1,C,H,W] or [C,H,W], f32, f64 or f16 -> f32 [C,H,W]. */
dfcl_status dfcl_decode_latent(const dfcl_context *ctx, const char *path, int channels, int height, int width, float *out, dfcl_error *err);
/* .npy with a single integer, 0 .. 99999. */
dfcl_status dfcl_decode_label(const dfcl_context *ctx, const char *path, int *out, dfcl_error *err);

#endif
