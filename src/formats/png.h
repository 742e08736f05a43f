/* PNG writing and the text chunks of PNGs (reading of pixels: image.h). */
#ifndef DFCL_FORMATS_PNG_H
#define DFCL_FORMATS_PNG_H

#include "base/file.h"

/* 8-bit pixels HWC, channels 1 or 3. text: key, value, key, value ..., NULL (or NULL); keys 1 to 79 printable ASCII characters, values
 * UTF-8. ASCII values become tEXt, others iTXt. Atomic. */
dfcl_status dfcl_png_save(const dfcl_context *ctx, const char *path, const uint8_t *pixels, int width, int height, int channels,
                          const char *const *text, dfcl_error *err);

/* tEXt, zTXt and iTXt chunks in the file's order: key, value, key, value. tEXt values are returned as stored (Latin-1). Freed with
 * dfcl_list_free. */
dfcl_status dfcl_png_text(const dfcl_context *ctx, const char *path, struct dfcl_list *out, dfcl_error *err);
dfcl_status dfcl_png_text_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, struct dfcl_list *out,
                                 dfcl_error *err);

#endif
