/* dfcl_pictures_read: an image folder in memory, in sorted order. */
#include <stdlib.h>
#include <string.h>

#include "data/decode.h"
#include "data/scan.h"

#include <difffit-cl/train.h>

void dfcl_pictures_free(const dfcl_context *ctx, struct dfcl_pictures *pictures) {
    for (int i = 0; pictures->class_names && i < pictures->class_count; i++)
        dfcl_free(ctx, pictures->class_names[i]);
    dfcl_free(ctx, pictures->class_names);
    dfcl_free(ctx, pictures->labels);
    dfcl_free(ctx, pictures->data);
    memset(pictures, 0, sizeof *pictures);
}

dfcl_status dfcl_pictures_read(const dfcl_context *ctx, const char *folder, int channels, int height, int width, struct dfcl_pictures *out,
                               dfcl_error *err) {
    memset(out, 0, sizeof *out);
    if ((channels != 1 && channels != 3) || height < 1 || height > 65536 || width < 1 || width > 65536)
        return dfcl_fail(err, DFCL_USAGE, "pictures have 1 or 3 channels and sides of 1 to 65536; asked for %d and %d x %d", channels, width, height);
    struct dfcl_scan scan;
    dfcl_status s = dfcl_scan_folder(ctx, folder, &scan, err);
    if (s)
        return s;
    size_t each = (size_t)channels * (size_t)height * (size_t)width, total = 0;
    uint8_t *pixels = NULL;
    if (scan.latent)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a folder of pictures, found one of latents", folder);
    else if (scan.count > INT32_MAX || scan.classes.count > INT32_MAX || !dfcl_mul_size(scan.count, each, &total))
        s = dfcl_fail(err, DFCL_NOMEM, "%s: %zu pictures are too many to hold", folder, scan.count);
    if (!s && (!(out->data = dfcl_calloc(ctx, total, sizeof *out->data, err)) ||
               !(out->labels = dfcl_calloc(ctx, scan.count, sizeof *out->labels, err)) ||
               !(out->class_names = dfcl_calloc(ctx, scan.classes.count, sizeof *out->class_names, err)) ||
               !(pixels = dfcl_calloc(ctx, each, 1, err))))
        s = DFCL_NOMEM;
    if (!s)
        out->class_count = (int)scan.classes.count;
    for (int i = 0; i < out->class_count && !s; i++) {
        out->class_names[i] = dfcl_strdup(ctx, scan.classes.names[i], err);
        s = out->class_names[i] ? DFCL_OK : DFCL_NOMEM;
    }
    size_t plane = (size_t)height * (size_t)width;
    for (size_t i = 0; i < scan.count && !s; i++) {
        s = dfcl_decode_picture(ctx, scan.items[i].path, channels, height, width, DFCL_ALPHA_WHITE, NULL, pixels, err);
        float *x = out->data + i * each;
        for (size_t p = 0; p < plane && !s; p++)
            for (size_t c = 0; c < (size_t)channels; c++)
                x[c * plane + p] = (float)pixels[p * (size_t)channels + c] / 127.5f - 1.0f;
        out->labels[i] = scan.items[i].label;
    }
    if (!s) {
        out->count = (int)scan.count;
        out->channels = channels;
        out->side = height;
        out->width = width;
    } else {
        dfcl_pictures_free(ctx, out);
    }
    dfcl_free(ctx, pixels);
    dfcl_scan_free(ctx, &scan);
    return s;
}
