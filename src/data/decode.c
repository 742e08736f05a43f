#include "data/decode.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "formats/npy.h"

dfcl_status dfcl_decode_picture_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, int channels,
                                       int height, int width, enum dfcl_alpha alpha, const struct dfcl_crop_draw *random, uint8_t *out, dfcl_error *err) {
    struct dfcl_image im = {0};
    dfcl_status s = dfcl_image_read_memory(ctx, data, size, path, channels, alpha, &im, err);
    if (s)
        return s;
    s = random ? dfcl_random_crop(ctx, im.pixels, im.width, im.height, channels, width, height, random, out, err)
               : dfcl_center_crop(ctx, im.pixels, im.width, im.height, channels, width, height, out, err);
    if (s)
        dfcl_error_prefix(err, "%s", path);
    dfcl_image_free(ctx, &im);
    return s;
}

dfcl_status dfcl_decode_picture(const dfcl_context *ctx, const char *path, int channels, int height, int width, enum dfcl_alpha alpha,
                                const struct dfcl_crop_draw *random, uint8_t *out, dfcl_error *err) {
    char *data;
    size_t n;
    dfcl_status s = dfcl_file_read(ctx, path, DFCL_IMAGE_MAX_FILE, &data, &n, err);
    if (!s)
        s = dfcl_decode_picture_memory(ctx, data, n, path, channels, height, width, alpha, random, out, err);
    dfcl_free(ctx, data);
    return s;
}

dfcl_status dfcl_picture_options(const char *crop, const char *alpha, bool *random_crop, enum dfcl_alpha *out, dfcl_error *err) {
    *random_crop = crop && !strcmp(crop, "random");
    if (crop && !*random_crop && strcmp(crop, "center"))
        return dfcl_fail(err, DFCL_USAGE, "crop: expected center or random, found %s", crop);
    *out = alpha && !strcmp(alpha, "drop") ? DFCL_ALPHA_DROP : DFCL_ALPHA_WHITE;
    if (alpha && *out != DFCL_ALPHA_DROP && strcmp(alpha, "white"))
        return dfcl_fail(err, DFCL_USAGE, "alpha: expected white or drop, found %s", alpha);
    return DFCL_OK;
}

dfcl_status dfcl_decode_latent(const dfcl_context *ctx, const char *path, int channels, int height, int width, float *out, dfcl_error *err) {
    struct dfcl_npy npy;
    (void)ctx;
    dfcl_status s = dfcl_npy_open(&npy, path, err);
    if (s)
        return s;
    const struct dfcl_tensor_view *v = &npy.view;
    const int64_t *d = v->shape + (v->ndim == 4 && v->shape[0] == 1);
    bool fits = (v->ndim == 3 || (v->ndim == 4 && v->shape[0] == 1)) && d[0] == channels && d[1] == height && d[2] == width;
    if (!fits || (v->dtype != DFCL_F32 && v->dtype != DFCL_F16 && v->dtype != DFCL_F64)) {
        char shape[128];
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a latent of [1, %d, %d, %d] floats, found %s of %s", path, channels, height, width,
                      dfcl_shape_format(v->shape, v->ndim, shape, sizeof shape), v->type_name);
    }
    if (!s)
        s = dfcl_view_read_f32(v, path, 0, v->count, out, err);
    for (uint64_t i = 0; !s && i < v->count; i++)
        if (!isfinite(out[i]))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: value %" PRIu64 " of the latent is not finite", path, i);
    dfcl_npy_close(&npy);
    return s;
}

dfcl_status dfcl_decode_label(const dfcl_context *ctx, const char *path, int *out, dfcl_error *err) {
    struct dfcl_npy npy;
    float v = -1.0f;
    (void)ctx;
    *out = -1;
    dfcl_status s = dfcl_npy_open(&npy, path, err);
    if (s)
        return s;
    if (npy.view.count != 1 || (npy.view.dtype != DFCL_I64 && npy.view.dtype != DFCL_I32 && npy.view.dtype != DFCL_U8)) {
        char shape[128];
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a label, one integer, found %s of %s", path,
                      dfcl_shape_format(npy.view.shape, npy.view.ndim, shape, sizeof shape), npy.view.type_name);
    }
    if (!s)
        s = dfcl_view_read_f32(&npy.view, path, 0, 1, &v, err);
    if (!s && !(v >= 0.0f && v < 100000.0f))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a label from 0 to 99999, found %.0f", path, (double)v);
    if (!s)
        *out = (int)v;
    dfcl_npy_close(&npy);
    return s;
}
