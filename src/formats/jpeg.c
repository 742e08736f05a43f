/* JPEG decoding through libjpeg-turbo. */
#include "formats/image.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

struct job {
    struct jpeg_error_mgr mgr; /* first: libjpeg hands back a pointer to it */
    struct jpeg_progress_mgr progress;
    const dfcl_context *ctx;
    const char *path;
    dfcl_error *err;
    dfcl_status status;
    jmp_buf jump;
    struct jpeg_decompress_struct d;
    uint8_t *pixels;
    uint8_t *row; /* of inks */
};

static void on_exit_error(j_common_ptr c) {
    struct job *j = (struct job *)(void *)c->err;
    char text[JMSG_LENGTH_MAX];
    c->err->format_message(c, text);
    if (!j->status)
        j->status = dfcl_fail(j->err, c->err->msg_code == JERR_OUT_OF_MEMORY ? DFCL_NOMEM : DFCL_FORMAT, "%s: bad JPEG: %s", j->path, text);
    longjmp(j->jump, 1);
}

/* Warnings that mean lost picture data end the reading: libjpeg would go on with grey. Others are harmless oddities of cameras. */
static void on_message(j_common_ptr c, int level) {
    struct job *j = (struct job *)(void *)c->err;
    if (level >= 0)
        return;
    int code = c->err->msg_code;
    if (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE || code == JWRN_ARITH_BAD_CODE ||
        code == JWRN_MUST_RESYNC)
        on_exit_error(c);
    char text[JMSG_LENGTH_MAX];
    c->err->format_message(c, text);
    dfcl_log(j->ctx, DFCL_LOG_DEBUG, "%s: JPEG: %s", j->path, text);
}

static void on_output(j_common_ptr c) {
    (void)c;
}

/* A progressive file may repeat scans for ever; each costs a pass over all coefficients. */
static void on_progress(j_common_ptr c) {
    struct job *j = (struct job *)(void *)c->err;
    if (c->is_decompressor && j->d.input_scan_number > 200) {
        j->status = dfcl_fail(j->err, DFCL_FORMAT, "%s: bad JPEG: more than 200 scans", j->path);
        longjmp(j->jump, 1);
    }
}

static unsigned get(const unsigned char *p, int n, bool big) {
    unsigned v = 0;
    for (int i = 0; i < n; i++)
        v |= (unsigned)p[big ? n - 1 - i : i] << (8 * i);
    return v;
}

/* Orientation tag (0x0112) of the first EXIF directory: 1 to 8, 1 when absent or odd. */
static int exif_orientation(const unsigned char *p, size_t n) {
    if (n < 14 || memcmp(p, "Exif\0\0", 6))
        return 1;
    p += 6;
    n -= 6;
    bool big = p[0] == 'M';
    if ((!big && p[0] != 'I') || p[1] != p[0] || get(p + 2, 2, big) != 42)
        return 1;
    size_t dir = get(p + 4, 4, big);
    if (dir > n || n - dir < 2)
        return 1;
    unsigned entries = get(p + dir, 2, big);
    size_t at = dir + 2;
    for (unsigned i = 0; i < entries && n - at >= 12; i++, at += 12)
        if (get(p + at, 2, big) == 0x0112 && get(p + at + 2, 2, big) == 3 && get(p + at + 4, 4, big) == 1) {
            unsigned v = get(p + at + 8, 2, big);
            return v >= 1 && v <= 8 ? (int)v : 1;
        }
    return 1;
}

/* Orientations as EXIF 2.32 names them: 2 mirrored, 3 upside down, 4 both; 5..8 the same with rows and columns exchanged. */
static dfcl_status turn(struct job *j, int orientation, struct dfcl_image *im) {
    if (orientation == 1)
        return DFCL_OK;
    bool swap = orientation >= 5;
    int w = im->width, h = im->height, c = im->channels, tw = swap ? h : w, th = swap ? w : h;
    uint8_t *out = dfcl_calloc(j->ctx, (size_t)w * (size_t)h, (size_t)c, j->err);
    if (!out)
        return DFCL_NOMEM;
    for (int y = 0; y < th; y++)
        for (int x = 0; x < tw; x++) {
            int sx = swap ? y : x, sy = swap ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8)
                sx = w - 1 - sx;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7)
                sy = h - 1 - sy;
            memcpy(out + ((size_t)y * (size_t)tw + (size_t)x) * (size_t)c,
                   im->pixels + ((size_t)sy * (size_t)w + (size_t)sx) * (size_t)c, (size_t)c);
        }
    dfcl_free(j->ctx, im->pixels);
    im->pixels = out;
    im->width = tw;
    im->height = th;
    return DFCL_OK;
}

/* A row of inverted inks to RGB, in place: an ink and black take light away one after the other. */
static void inks_to_rgb(uint8_t *row, size_t width) {
    uint8_t *to = row;
    for (const uint8_t *from = row; width--; from += 4)
        for (int c = 0; c < 3; c++)
            *to++ = (uint8_t)((from[c] * from[3] + 127u) / 255u);
}

static dfcl_status decode(struct job *j, const void *data, size_t size, struct dfcl_image *out) {
    if (setjmp(j->jump))
        return j->status;
    struct jpeg_decompress_struct *d = &j->d;
    jpeg_create_decompress(d);
    d->progress = &j->progress;
    jpeg_mem_src(d, data, size);
    jpeg_save_markers(d, JPEG_APP0 + 1, 65535);
    jpeg_read_header(d, TRUE);
    bool inks = d->jpeg_color_space == JCS_CMYK || d->jpeg_color_space == JCS_YCCK;
    /* Every block of 64 pixels takes at least one bit; the factor leaves room for components of unlike sampling. */
    if ((j->status = dfcl_image_check_size(j->path, d->image_width, d->image_height, size, 8 * 64 * 4, j->err)) != DFCL_OK)
        return j->status;
    int orientation = 1;
    for (jpeg_saved_marker_ptr m = d->marker_list; m && orientation == 1; m = m->next)
        if (m->marker == JPEG_APP0 + 1)
            orientation = exif_orientation(m->data, m->data_length);
    d->out_color_space = inks ? JCS_CMYK : d->jpeg_color_space == JCS_GRAYSCALE ? JCS_GRAYSCALE : JCS_RGB;
    d->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(d);
    const int channels = inks ? 3 : d->output_components;
    const size_t row = (size_t)d->output_width * (size_t)channels;
    j->pixels = dfcl_calloc(j->ctx, d->output_height, row, j->err);
    j->row = inks && j->pixels ? dfcl_calloc(j->ctx, d->output_width, 4, j->err) : NULL;
    if (!j->pixels || (inks && !j->row))
        return DFCL_NOMEM;
    while (d->output_scanline < d->output_height) {
        uint8_t *to = j->pixels + d->output_scanline * row;
        JSAMPROW line = inks ? j->row : to;
        jpeg_read_scanlines(d, &line, 1);
        if (inks) {
            inks_to_rgb(line, d->output_width);
            memcpy(to, line, row);
        }
    }
    *out = (struct dfcl_image){j->pixels, (int)d->output_width, (int)d->output_height, channels};
    j->pixels = NULL;
    jpeg_finish_decompress(d);
    return turn(j, orientation, out);
}

dfcl_status dfcl_jpeg_read_memory(const dfcl_context *ctx, const void *data, size_t size, const char *path, struct dfcl_image *out,
                                  dfcl_error *err) {
    memset(out, 0, sizeof *out);
    struct job *j = dfcl_calloc(ctx, 1, sizeof *j, err);
    if (!j)
        return DFCL_NOMEM;
    j->ctx = ctx;
    j->path = path;
    j->err = err;
    j->d.err = jpeg_std_error(&j->mgr);
    j->mgr.error_exit = on_exit_error;
    j->mgr.emit_message = on_message;
    j->mgr.output_message = on_output;
    j->progress.progress_monitor = on_progress;
    dfcl_status s = decode(j, data, size, out);
    jpeg_destroy_decompress(&j->d);
    dfcl_free(ctx, j->row);
    dfcl_free(ctx, j->pixels);
    if (s)
        dfcl_image_free(ctx, out);
    dfcl_free(ctx, j);
    return s;
}
