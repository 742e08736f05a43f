/* Pictures of strangers: PNG and JPEG, told by their first bytes, to 8 bits of 1 or 3 channels. */
#ifndef DFCL_FORMATS_IMAGE_H
#define DFCL_FORMATS_IMAGE_H

#include "base/base.h"

#define DFCL_IMAGE_MAX_SIDE 32768
#define DFCL_IMAGE_MAX_PIXELS (INT64_C(1) << 27) /* 134 million: three channels take 400 MB */
#define DFCL_IMAGE_MAX_FILE ((size_t)1 << 29)    /* bytes */

/* Row by row, channels interleaved (HWC), sRGB as stored; no colour management. */
struct dfcl_image {
    uint8_t *pixels;
    int width, height, channels;
};

/* What becomes of transparency: composed on white, or forgotten, so that the stored colour shows (as PIL's convert("RGB") has it). */
enum dfcl_alpha { DFCL_ALPHA_WHITE, DFCL_ALPHA_DROP };

/* channels: 1 or 3 as wanted. Colour becomes grey with the weights 0.299, 0.587, 0.114; of 16 bits the high 8 count; gamma and profiles are not
 * applied; a JPEG is turned as its EXIF orientation says; CMYK and YCCK, whose inks JPEGs hold inverted, become (1 - C)(1 - K) ... without a
 * profile. Cut and damaged files, and files that claim more pixels than their bytes can hold are DFCL_FORMAT with the file named. Freed with
 * dfcl_image_free. */
dfcl_status dfcl_image_read(const dfcl_context *ctx, const char *path, int channels, enum dfcl_alpha alpha, struct dfcl_image *out,
                            dfcl_error *err);
dfcl_status dfcl_image_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, int channels,
                                   enum dfcl_alpha alpha, struct dfcl_image *out, dfcl_error *err);
void dfcl_image_free(const dfcl_context *ctx, struct dfcl_image *image);

/* Checks sides and pixel count against the limits above, and against what `size` bytes could encode at `pixels_per_byte` at most. */
dfcl_status dfcl_image_check_size(const char *path, uint64_t width, uint64_t height, size_t size, uint64_t pixels_per_byte,
                                  dfcl_error *err);
/* The decoders behind it; each takes only its own format. *out has 1 or 3 channels as stored. */
dfcl_status dfcl_png_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, enum dfcl_alpha alpha,
                                 struct dfcl_image *out, dfcl_error *err);
dfcl_status dfcl_jpeg_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, struct dfcl_image *out,
                                  dfcl_error *err);

#endif
