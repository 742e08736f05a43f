/* The public functions on pictures and on single tensors (difffit-cl/sample.h). */
#include <string.h>

#include <difffit-cl/sample.h>

#include "formats/png.h"
#include "formats/safetensors.h"

void dfcl_pixels(const float *x, int n, int channels, int height, int width, uint8_t *out) {
    const size_t plane = (size_t)height * (size_t)width, c = (size_t)channels;
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t k = 0; k < c; k++)
            for (size_t p = 0; p < plane; p++) {
                float v = 127.5f * x[(i * c + k) * plane + p] + 128.0f;
                /* Written so that NaN becomes 0; v is not negative when converted, so truncation is floor. */
                out[(i * plane + p) * c + k] = (uint8_t)(v > 0.0f ? (v < 255.0f ? v : 255.0f) : 0.0f);
            }
}

dfcl_status dfcl_png_write(const dfcl_context *ctx, const char *path, const uint8_t *pixels, int width, int height, int channels,
                           const char *const *text, dfcl_error *err) {
    return dfcl_png_save(ctx, path, pixels, width, height, channels, text, err);
}

dfcl_status dfcl_png_read_text(const dfcl_context *ctx, const char *path, const char *key, char **value, dfcl_error *err) {
    struct dfcl_list list;
    *value = NULL;
    dfcl_status s = dfcl_png_text(ctx, path, &list, err);
    for (size_t i = 0; !s && i + 1 < list.count && !*value; i += 2)
        if (!strcmp(list.names[i], key) && !(*value = dfcl_strdup(ctx, list.names[i + 1], err)))
            s = DFCL_NOMEM;
    dfcl_list_free(ctx, &list);
    return s;
}

dfcl_status dfcl_grid(const dfcl_context *ctx, const uint8_t *pictures, int n, int height, int width, int channels, int columns,
                      int zoom, uint8_t **out, int *grid_width, int *grid_height, dfcl_error *err) {
    enum { MARGIN = 2, LIMIT = 32768 };
    *out = NULL;
    if (n < 1 || height < 1 || width < 1 || columns < 1 || zoom < 1 || (channels != 1 && channels != 3))
        return dfcl_fail(err, DFCL_USAGE, "grid: %d pictures of %d x %d, %d channels, %d columns, zoom %d", n, width, height, channels, columns, zoom);
    columns = DFCL_MIN(columns, n);
    const int64_t rows = ((int64_t)n + columns - 1) / columns, cw = (int64_t)width * zoom, ch = (int64_t)height * zoom;
    if (cw > LIMIT || ch > LIMIT || columns * (cw + MARGIN) + MARGIN > LIMIT || rows * (ch + MARGIN) + MARGIN > LIMIT)
        return dfcl_fail(err, DFCL_USAGE, "grid: %d x %lld pictures of %lld x %lld pixels are more than a side of %d holds", columns,
                         (long long)rows, (long long)cw, (long long)ch, LIMIT);
    const size_t w = (size_t)(columns * (cw + MARGIN) + MARGIN), h = (size_t)(rows * (ch + MARGIN) + MARGIN), c = (size_t)channels;
    uint8_t *g = dfcl_calloc(ctx, w * h, c, err);
    if (!g)
        return DFCL_NOMEM;
    memset(g, 255, w * h * c);
    for (size_t i = 0; i < (size_t)n; i++) {
        const size_t x0 = MARGIN + i % (size_t)columns * (size_t)(cw + MARGIN), y0 = MARGIN + i / (size_t)columns * (size_t)(ch + MARGIN);
        for (size_t y = 0; y < (size_t)ch; y++)
            for (size_t x = 0; x < (size_t)cw; x++)
                memcpy(g + ((y0 + y) * w + x0 + x) * c,
                       pictures + ((i * (size_t)height + y / (size_t)zoom) * (size_t)width + x / (size_t)zoom) * c, c);
    }
    *out = g;
    *grid_width = (int)w;
    *grid_height = (int)h;
    return DFCL_OK;
}

void dfcl_free_pixels(const dfcl_context *ctx, uint8_t *pixels) {
    dfcl_free(ctx, pixels);
}

dfcl_status dfcl_tensor_read(const dfcl_context *ctx, const char *path, const char *key, float **data, int64_t shape[8], int *ndim,
                             dfcl_error *err) {
    *data = NULL;
    struct dfcl_st *st;
    dfcl_status s = dfcl_st_open(&st, ctx, path, err);
    if (s)
        return s;
    float *x = NULL;
    const struct dfcl_tensor_view *v = dfcl_st_find(st, key);
    if (!v) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a tensor named %s, found none among %zu", path, key, st->count);
        goto out;
    }
    x = v->count > SIZE_MAX ? NULL : dfcl_calloc(ctx, (size_t)v->count, sizeof *x, err);
    s = x ? dfcl_view_read_f32(v, path, 0, v->count, x, err) : DFCL_NOMEM;
    if (s)
        goto out;
    memcpy(shape, v->shape, sizeof v->shape);
    *ndim = v->ndim;
    *data = x;
    x = NULL;
out:
    dfcl_free(ctx, x);
    dfcl_st_close(&st);
    return s;
}

dfcl_status dfcl_tensor_write(const dfcl_context *ctx, const char *path, const char *key, const float *data, const int64_t *shape,
                              int ndim, dfcl_error *err) {
    struct dfcl_st_writer *w;
    uint64_t count, bytes;
    if (ndim < 0 || ndim > DFCL_MAX_DIMS || !dfcl_shape_count(shape, ndim, 4, &count, &bytes))
        return dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: bad shape", path, key);
    dfcl_status s = dfcl_st_writer_create(&w, ctx, path, err);
    if (!s)
        s = dfcl_st_writer_tensor(w, key, DFCL_F32, shape, ndim, err);
    if (!s)
        s = dfcl_st_writer_f32(w, data, (size_t)count, err);
    if (!s)
        return dfcl_st_writer_finish(&w, err);
    dfcl_st_writer_destroy(&w);
    return s;
}

void dfcl_tensor_free(const dfcl_context *ctx, float *data) {
    dfcl_free(ctx, data);
}
