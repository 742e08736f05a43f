#include "formats/npy.h"
#include "formats/zip_write.h"

#include <difffit-cl/sample.h>

#include <stdio.h>
#include <string.h>

#include <zlib.h>

/* Magic, version 1, length, header padded with spaces to a multiple of 64, at least `least`, and ended by a newline.
 * Returns its length. */
static size_t npy_header(unsigned char buf[512], const char *descr, const int64_t *shape, int ndim, size_t least) {
    char text[384] = "";
    dfcl_append(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < ndim; i++)
        dfcl_append(text, sizeof text, "%s%lld", i ? ", " : "", (long long)shape[i]);
    dfcl_append(text, sizeof text, "%s), }", ndim == 1 ? "," : "");
    size_t n = strlen(text), total = DFCL_MAX((10 + n + 1 + 63) / 64 * 64, least);
    memset(buf, ' ', total);
    memcpy(buf, "\x93NUMPY\x01\x00", 8);
    buf[8] = (unsigned char)(total - 10);
    buf[9] = (unsigned char)((total - 10) >> 8);
    memcpy(buf + 10, text, n);
    buf[total - 1] = '\n';
    return total;
}

dfcl_status dfcl_npy_write(const dfcl_context *ctx, const char *path, const float *data, const int64_t *shape, int ndim,
                           dfcl_error *err) {
    uint64_t count, bytes;
    if (ndim < 0 || ndim > DFCL_MAX_DIMS || !dfcl_shape_count(shape, ndim, 4, &count, &bytes))
        return dfcl_fail(err, DFCL_USAGE, "%s: bad shape", path);
    unsigned char head[512], buf[4096];
    size_t n = npy_header(head, "<f4", shape, ndim, 0);
    struct dfcl_writer w;
    dfcl_status s = dfcl_writer_open(&w, ctx, path, err);
    if (s)
        return s;
    s = dfcl_writer_write(&w, head, n, err);
    for (uint64_t i = 0; i < count && !s;) {
        size_t k = (size_t)DFCL_MIN(count - i, (uint64_t)sizeof buf / 4);
        dfcl_from_f32(DFCL_F32, data + i, buf, k);
        s = dfcl_writer_write(&w, buf, 4 * k, err);
        i += k;
    }
    if (s) {
        dfcl_writer_abort(&w);
        return s;
    }
    return dfcl_writer_commit(&w, err);
}

/* ---- npz: a zip file (APPNOTE 6.3) with stored entries ---- */

struct dfcl_npz_writer {
    const dfcl_context *ctx;
    struct dfcl_writer file;
    int64_t shape[4]; /* [0]: pictures that came */
    int64_t most;     /* pictures that there is room for */
    uint64_t each;    /* bytes per picture */
    struct dfcl_zip_record pictures;
    size_t head; /* bytes of its header; the checksum is that of what follows, until the end */
    bool zip64, broken;
};

/* Local header and array header of the pictures, as far as they are known. */
static void put_start(struct dfcl_zip_bytes *o, struct dfcl_npz_writer *w) {
    unsigned char head[512];
    w->head = npy_header(head, "|u1", w->shape, 4, w->head);
    w->pictures.size = w->head + (uint64_t)w->shape[0] * w->each;
    uint32_t data = w->pictures.crc;
    w->pictures.crc =
        (uint32_t)crc32_combine(crc32_z(0, head, w->head), data, (z_off_t)((uint64_t)w->shape[0] * w->each));
    dfcl_zip_put_local(o, &w->pictures, w->zip64, 0);
    dfcl_zip_put_text(o, head, w->head);
}

dfcl_status dfcl_npz_writer_create(struct dfcl_npz_writer **out, const dfcl_context *ctx, const char *path,
                                   int64_t most, int height, int width, int channels, dfcl_error *err) {
    *out = NULL;
    int64_t shape[4] = {most, height, width, channels};
    uint64_t count, bytes;
    if (!dfcl_shape_count(shape, 4, 1, &count, &bytes) || height < 1 || width < 1 || channels < 1 ||
        bytes > INT64_MAX / 2)
        return dfcl_fail(err, DFCL_USAGE, "%s: bad shape", path);
    struct dfcl_npz_writer *w = dfcl_calloc(ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    w->ctx = ctx;
    memcpy(w->shape, shape, sizeof shape);
    w->most = most;
    w->each = (uint64_t)height * (uint64_t)width * (uint64_t)channels;
    w->pictures.name = "arr_0.npy";
    w->zip64 =
        bytes + 8 * (uint64_t)most >= UINT32_MAX - 8192; /* the offset of the central directory must fit as well */
    dfcl_status s = dfcl_writer_open(&w->file, ctx, path, err);
    if (!s) { /* the longest header comes first; it is written again at the end */
        struct dfcl_zip_bytes o = {.n = 0};
        put_start(&o, w);
        s = dfcl_writer_write(&w->file, o.b, o.n, err);
        w->shape[0] = 0;
        w->pictures.crc = 0;
    }
    if (s)
        dfcl_npz_writer_destroy(&w);
    *out = w;
    return s;
}

dfcl_status dfcl_npz_writer_add(struct dfcl_npz_writer *w, const uint8_t *pictures, int64_t n, dfcl_error *err) {
    if (n < 0 || n > w->most - w->shape[0]) {
        w->broken = true;
        return dfcl_fail(err, DFCL_USAGE, "%s: %lld pictures given, %lld expected", w->file.path, (long long)n,
                         (long long)(w->most - w->shape[0]));
    }
    size_t bytes = (size_t)n * (size_t)w->each;
    w->pictures.crc = (uint32_t)crc32_z(w->pictures.crc, pictures, bytes);
    w->shape[0] += n;
    dfcl_status s = dfcl_writer_write(&w->file, pictures, bytes, err);
    w->broken |= s != DFCL_OK;
    return s;
}

/* Behind the pictures, at `offset`. */
static dfcl_status write_labels(struct dfcl_npz_writer *w, struct dfcl_zip_record *e, uint64_t offset, const int64_t *labels,
                                dfcl_error *err) {
    unsigned char head[512], buf[4096];
    const int64_t n = w->shape[0];
    size_t k = npy_header(head, "<i8", &n, 1, 0);
    *e = (struct dfcl_zip_record){
        .name = "arr_1.npy", .offset = offset, .size = k + 8 * (uint64_t)n, .crc = (uint32_t)crc32_z(0, head, k)};
    for (int pass = 0; pass < 2; pass++) { /* checksum, then bytes */
        dfcl_status s = DFCL_OK;
        if (pass) {
            struct dfcl_zip_bytes o = {.n = 0};
            dfcl_zip_put_local(&o, e, w->zip64, 0);
            dfcl_zip_put_text(&o, head, k);
            s = dfcl_writer_write(&w->file, o.b, o.n, err);
        }
        for (int64_t i = 0; i < n && !s;) {
            size_t m = (size_t)DFCL_MIN(n - i, (int64_t)(sizeof buf / 8));
            for (size_t j = 0; j < 8 * m; j++)
                buf[j] = (unsigned char)((uint64_t)labels[i + (int64_t)(j / 8)] >> (8 * (j % 8)));
            if (pass)
                s = dfcl_writer_write(&w->file, buf, 8 * m, err);
            else
                e->crc = (uint32_t)crc32_z(e->crc, buf, 8 * m);
            i += (int64_t)m;
        }
        if (s)
            return s;
    }
    return DFCL_OK;
}

dfcl_status dfcl_npz_writer_finish(struct dfcl_npz_writer **pw, const int64_t *labels, dfcl_error *err) {
    struct dfcl_npz_writer *w = *pw;
    dfcl_status s = DFCL_OK;
    if (w->broken) {
        s = dfcl_fail(err, DFCL_ERROR, "%s: not written: an earlier step failed", w->file.path);
        goto out;
    }
    struct dfcl_zip_bytes start = {.n = 0}, o = {.n = 0};
    struct dfcl_zip_record second;
    uint64_t central;
    put_start(&start, w);
    central = start.n + (uint64_t)w->shape[0] * w->each;
    if (labels) {
        struct dfcl_zip_bytes l = {.n = 0};
        if ((s = write_labels(w, &second, central, labels, err)))
            goto out;
        dfcl_zip_put_local(&l, &second, w->zip64, 0);
        central += l.n + second.size;
    }
    dfcl_zip_put_central(&o, &w->pictures, w->zip64);
    if (labels)
        dfcl_zip_put_central(&o, &second, w->zip64);
    dfcl_zip_put_end(&o, central, o.n, labels ? 2 : 1, w->zip64);
    s = dfcl_writer_write(&w->file, o.b, o.n, err);
    if (!s && fseeko(w->file.f, 0, SEEK_SET) != 0)
        s = dfcl_fail_errno(err, w->file.path, "cannot seek");
    if (!s)
        s = dfcl_writer_write(&w->file, start.b, start.n, err);
    if (!s)
        s = dfcl_writer_commit(&w->file, err);
out:
    dfcl_npz_writer_destroy(pw);
    return s;
}

void dfcl_npz_writer_destroy(struct dfcl_npz_writer **pw) {
    struct dfcl_npz_writer *w = pw ? *pw : NULL;
    if (!w)
        return;
    dfcl_writer_abort(&w->file);
    dfcl_free(w->ctx, w);
    *pw = NULL;
}
