#include "formats/image.h"

#include <string.h>

#include "base/file.h"

void dfcl_image_free(const dfcl_context *ctx, struct dfcl_image *image) {
    dfcl_free(ctx, image->pixels);
    memset(image, 0, sizeof *image);
}

dfcl_status dfcl_image_check_size(const char *path, uint64_t width, uint64_t height, size_t size, uint64_t pixels_per_byte,
                                  dfcl_error *err) {
    if (width == 0 || height == 0 || width > DFCL_IMAGE_MAX_SIDE || height > DFCL_IMAGE_MAX_SIDE ||
        width * height > (uint64_t)DFCL_IMAGE_MAX_PIXELS)
        return dfcl_fail(err, DFCL_FORMAT, "%s: picture of %llu x %llu: expected sides of 1 to %d and at most %lld pixels", path,
                         (unsigned long long)width, (unsigned long long)height, DFCL_IMAGE_MAX_SIDE,
                         (long long)DFCL_IMAGE_MAX_PIXELS);
    /* Nothing is allocated for pixels that cannot be in the file. */
    if (width * height / pixels_per_byte > size)
        return dfcl_fail(err, DFCL_FORMAT, "%s: cut short or forged: %llu x %llu pixels cannot come from %zu bytes", path,
                         (unsigned long long)width, (unsigned long long)height, size);
    return DFCL_OK;
}

static dfcl_status convert(const dfcl_context *ctx, struct dfcl_image *im, int channels, dfcl_error *err) {
    if (im->channels == channels)
        return DFCL_OK;
    size_t n = (size_t)im->width * (size_t)im->height;
    uint8_t *p = dfcl_calloc(ctx, n, (size_t)channels, err);
    if (!p)
        return DFCL_NOMEM;
    const uint8_t *q = im->pixels;
    if (channels == 1)
        for (size_t i = 0; i < n; i++, q += 3)
            p[i] = (uint8_t)((19595u * q[0] + 38470u * q[1] + 7471u * q[2] + 32768u) >> 16); /* .299 .587 .114 in 16 bits */
    else
        for (size_t i = 0; i < n; i++)
            p[3 * i] = p[3 * i + 1] = p[3 * i + 2] = q[i];
    dfcl_free(ctx, im->pixels);
    im->pixels = p;
    im->channels = channels;
    return DFCL_OK;
}

dfcl_status dfcl_image_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, int channels,
                                   enum dfcl_alpha alpha, struct dfcl_image *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    if (channels != 1 && channels != 3)
        return dfcl_fail(err, DFCL_USAGE, "%s: %d channels wanted, 1 or 3 expected", path, channels);
    const unsigned char *p = data;
    dfcl_status s;
    if (size >= 8 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8))
        s = dfcl_png_read_memory(ctx, data, size, path, alpha, out, err);
    else if (size >= 3 && !memcmp(p, "\xff\xd8\xff", 3))
        s = dfcl_jpeg_read_memory(ctx, data, size, path, out, err);
    else
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a PNG or JPEG picture, found other bytes", path);
    if (!s)
        s = convert(ctx, out, channels, err);
    if (s)
        dfcl_image_free(ctx, out);
    return s;
}

dfcl_status dfcl_image_read(const dfcl_context *ctx, const char *path, int channels, enum dfcl_alpha alpha, struct dfcl_image *out,
                            dfcl_error *err) {
    memset(out, 0, sizeof *out);
    char *data;
    size_t n;
    dfcl_status s = dfcl_file_read(ctx, path, DFCL_IMAGE_MAX_FILE, &data, &n, err);
    if (s)
        return s;
    s = dfcl_image_read_memory(ctx, data, n, path, channels, alpha, out, err);
    dfcl_free(ctx, data);
    return s;
}
