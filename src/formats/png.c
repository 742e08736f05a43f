#include "formats/png.h"

#include <setjmp.h>
#include <string.h>

#include <png.h>

#include "formats/image.h"

/* One reading or writing of a file. libpng leaves by longjmp; everything that must survive that lives here, not in locals. */
struct job {
    const dfcl_context *ctx;
    const char *path;
    dfcl_error *err;
    dfcl_status status;
    bool no_memory; /* libpng reports that as any other error */
    jmp_buf jump;
    png_structp png;
    png_infop info;
    const unsigned char *data; /* reading */
    size_t size, at;
    struct dfcl_writer *file;  /* writing */
    uint8_t *pixels;
    png_bytep *rows;
    png_text *text;
};

static void on_error(png_structp png, png_const_charp msg) {
    struct job *j = png_get_error_ptr(png);
    if (!j->status)
        j->status = j->no_memory ? dfcl_fail(j->err, DFCL_NOMEM, "%s: out of host memory", j->path)
                                 : dfcl_fail(j->err, DFCL_FORMAT, "%s: bad PNG: %s", j->path, msg);
    longjmp(j->jump, 1);
}

static void on_warning(png_structp png, png_const_charp msg) {
    struct job *j = png_get_error_ptr(png);
    dfcl_log(j->ctx, DFCL_LOG_DEBUG, "%s: PNG: %s", j->path, msg);
}

static png_voidp on_malloc(png_structp png, png_alloc_size_t n) {
    struct job *j = png_get_mem_ptr(png);
    png_voidp p = j->ctx->p.alloc(j->ctx->p.alloc_user, n); /* libpng clears what it wants cleared */
    j->no_memory = j->no_memory || !p;
    return p;
}

static void on_free(png_structp png, png_voidp p) {
    struct job *j = png_get_mem_ptr(png);
    dfcl_free(j->ctx, p);
}

static void on_read(png_structp png, png_bytep out, png_size_t n) {
    struct job *j = png_get_io_ptr(png);
    if (n > j->size - j->at)
        png_error(png, "the file is cut short");
    memcpy(out, j->data + j->at, n);
    j->at += n;
}

static void on_write(png_structp png, png_bytep data, png_size_t n) {
    struct job *j = png_get_io_ptr(png);
    j->status = dfcl_writer_write(j->file, data, n, j->err);
    if (j->status)
        png_error(png, "cannot write");
}

static void on_flush(png_structp png) {
    (void)png;
}

/* libpng takes memory for a chunk by the length it claims, past the limit set below when the chunk is an ancillary one. Walking the
 * chunks first also finds cut files before any work. */
static dfcl_status check_chunks(struct job *j) {
    size_t at = 8;
    if (j->size >= 8 && memcmp(j->data, "\x89PNG\r\n\x1a\n", 8))
        return dfcl_fail(j->err, DFCL_FORMAT, "%s: bad PNG: expected its signature in the first 8 bytes, found other bytes", j->path);
    for (;;) {
        if (j->size < 8 || j->size - at < 12)
            return dfcl_fail(j->err, DFCL_FORMAT, "%s: bad PNG: the file is cut short", j->path);
        const unsigned char *p = j->data + at;
        size_t n = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        if (n > j->size - at - 12)
            return dfcl_fail(j->err, DFCL_FORMAT, "%s: bad PNG: a chunk of %zu bytes at byte %zu, the file is cut short", j->path, n, at);
        at += 12 + n;
        if (!memcmp(p + 4, "IEND", 4))
            return DFCL_OK;
    }
}

static dfcl_status start_read(struct job *j) {
    dfcl_status s = check_chunks(j);
    if (s)
        return s;
    j->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, j, on_error, on_warning, j, on_malloc, on_free);
    j->info = j->png ? png_create_info_struct(j->png) : NULL;
    if (!j->info)
        return dfcl_fail(j->err, DFCL_NOMEM, "%s: out of host memory", j->path);
    png_set_read_fn(j->png, j, on_read);
    png_set_user_limits(j->png, DFCL_IMAGE_MAX_SIDE, DFCL_IMAGE_MAX_SIDE);
    png_set_chunk_malloc_max(j->png, 1u << 23);
    png_set_chunk_cache_max(j->png, 512);
    return DFCL_OK;
}

static dfcl_status read_pixels(struct job *j, enum dfcl_alpha alpha, struct dfcl_image *out) {
    if (setjmp(j->jump))
        return j->status;
    /* Profiles and text do not matter here: not even looked at. */
    png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    static const png_byte skip[] = "iCCP\0tEXt\0zTXt\0iTXt\0sPLT\0hIST\0eXIf";
    png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_NEVER, skip, 7);
    png_read_info(j->png, j->info);
    png_uint_32 w, h;
    int depth, color;
    png_get_IHDR(j->png, j->info, &w, &h, &depth, &color, NULL, NULL, NULL);
    /* deflate reaches 1032 : 1 at most, and a byte holds at most 8 pixels of 1 bit */
    j->status = dfcl_image_check_size(j->path, w, h, j->size, 1032 * 8, j->err);
    if (j->status)
        return j->status;
    png_set_expand(j->png); /* palettes, 1/2/4 bits, transparent colours -> alpha */
    png_set_strip_16(j->png); /* the high byte, as PIL has it */
    png_set_interlace_handling(j->png);
    png_read_update_info(j->png, j->info);
    int channels = png_get_channels(j->png, j->info);
    size_t row = png_get_rowbytes(j->png, j->info);
    if (channels < 1 || channels > 4 || row != (size_t)w * (size_t)channels)
        png_error(j->png, "unexpected layout");
    j->pixels = dfcl_calloc(j->ctx, h, row, j->err);
    j->rows = j->pixels ? dfcl_calloc(j->ctx, h, sizeof *j->rows, j->err) : NULL;
    if (!j->rows)
        return DFCL_NOMEM;
    for (png_uint_32 y = 0; y < h; y++)
        j->rows[y] = j->pixels + y * row;
    png_read_image(j->png, j->rows);
    png_read_end(j->png, NULL);
    /* In place: the target never runs ahead of the source. */
    int keep = channels >= 3 ? 3 : 1;
    if (channels != keep) {
        uint8_t *to = j->pixels;
        const uint8_t *from = j->pixels;
        for (size_t i = (size_t)w * h; i > 0; i--, from += channels)
            for (int c = 0; c < keep; c++) {
                unsigned a = alpha == DFCL_ALPHA_DROP ? 255 : from[keep];
                *to++ = (uint8_t)((from[c] * a + 255u * (255u - a) + 127u) / 255u);
            }
    }
    *out = (struct dfcl_image){j->pixels, (int)w, (int)h, keep};
    j->pixels = NULL;
    return DFCL_OK;
}

dfcl_status dfcl_png_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, enum dfcl_alpha alpha,
                                 struct dfcl_image *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    struct job j = {.ctx = ctx, .path = path, .err = err, .data = data, .size = size};
    dfcl_status s = start_read(&j);
    if (!s)
        s = read_pixels(&j, alpha, out);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    dfcl_free(ctx, j.rows);
    dfcl_free(ctx, j.pixels);
    return s;
}

static dfcl_status read_text(struct job *j, struct dfcl_list *out) {
    if (setjmp(j->jump))
        return j->status;
    png_read_info(j->png, j->info);
    png_textp text = NULL;
    int n = png_get_text(j->png, j->info, &text, NULL);
    for (int i = 0; i < n; i++) {
        j->status = dfcl_list_add(j->ctx, out, text[i].key, j->err);
        if (!j->status)
            j->status = dfcl_list_add(j->ctx, out, text[i].text ? text[i].text : "", j->err);
        if (j->status)
            return j->status;
    }
    return DFCL_OK;
}

dfcl_status dfcl_png_text_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, struct dfcl_list *out,
                                 dfcl_error *err) {
    memset(out, 0, sizeof *out);
    struct job j = {.ctx = ctx, .path = path, .err = err, .data = data, .size = size};
    dfcl_status s = start_read(&j);
    if (!s)
        s = read_text(&j, out);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    if (s)
        dfcl_list_free(ctx, out);
    return s;
}

dfcl_status dfcl_png_text(const dfcl_context *ctx, const char *path, struct dfcl_list *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    char *data;
    size_t n;
    dfcl_status s = dfcl_file_read(ctx, path, DFCL_IMAGE_MAX_FILE, &data, &n, err);
    if (!s)
        s = dfcl_png_text_memory(ctx, data, n, path, out, err);
    dfcl_free(ctx, data);
    return s;
}

static bool ascii(const char *s) {
    for (; *s; s++)
        if ((unsigned char)*s >= 0x7f || ((unsigned char)*s < 0x20 && *s != '\n'))
            return false;
    return true;
}

static dfcl_status write_all(struct job *j, const uint8_t *pixels, int width, int height, int channels, int texts) {
    if (setjmp(j->jump))
        return j->status;
    png_set_write_fn(j->png, j, on_write, on_flush);
    png_set_IHDR(j->png, j->info, (png_uint_32)width, (png_uint_32)height, 8, channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (texts)
        png_set_text(j->png, j->info, j->text, texts);
    png_write_info(j->png, j->info);
    for (int y = 0; y < height; y++)
        png_write_row(j->png, pixels + (size_t)y * (size_t)width * (size_t)channels);
    png_write_end(j->png, NULL);
    return DFCL_OK;
}

dfcl_status dfcl_png_save(const dfcl_context *ctx, const char *path, const uint8_t *pixels, int width, int height, int channels,
                          const char *const *text, dfcl_error *err) {
    if ((channels != 1 && channels != 3) || width < 1 || height < 1 || width > DFCL_IMAGE_MAX_SIDE || height > DFCL_IMAGE_MAX_SIDE)
        return dfcl_fail(err, DFCL_USAGE, "%s: cannot write %d x %d pixels of %d channels", path, width, height, channels);
    int texts = 0;
    while (text && text[2 * texts])
        texts++;
    struct dfcl_writer file = {0};
    struct job j = {.ctx = ctx, .path = path, .err = err, .file = &file};
    dfcl_status s = DFCL_NOMEM;
    j.text = dfcl_calloc(ctx, (size_t)texts, sizeof *j.text, err);
    if (!j.text)
        goto out;
    for (int i = 0; i < texts; i++) {
        const char *key = text[2 * i], *value = text[2 * i + 1];
        size_t n = strlen(key);
        if (n < 1 || n > 79 || !ascii(key) || strchr(key, '\n') || !value) {
            s = dfcl_fail(err, DFCL_USAGE, "%s: text key \"%.80s\": expected 1 to 79 ASCII characters and a value", path, key);
            goto out;
        }
        j.text[i].compression = ascii(value) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
        j.text[i].key = (char *)(uintptr_t)key;
        j.text[i].text = (char *)(uintptr_t)value;
        j.text[i].text_length = strlen(value);
    }
    j.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning, &j, on_malloc, on_free);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    if (!j.info) {
        dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", path);
        goto out;
    }
    if ((s = dfcl_writer_open(&file, ctx, path, err)) != DFCL_OK)
        goto out;
    s = write_all(&j, pixels, width, height, channels, texts);
    if (!s)
        s = dfcl_writer_commit(&file, err);
out:
    dfcl_writer_abort(&file);
    png_destroy_write_struct(&j.png, &j.info);
    dfcl_free(ctx, j.text);
    return s;
}
