#include "formats/npy.h"

#include <stdio.h>
#include <string.h>

#include <zlib.h>

/* Magic, version 1, length, header padded with spaces to a multiple of 64 and ended by a newline. Returns its length. */
static size_t npy_header(unsigned char buf[512], const char *descr, const int64_t *shape, int ndim) {
    char text[384] = "";
    dfcl_append(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < ndim; i++)
        dfcl_append(text, sizeof text, "%s%lld", i ? ", " : "", (long long)shape[i]);
    dfcl_append(text, sizeof text, "%s), }", ndim == 1 ? "," : "");
    size_t n = strlen(text), total = (10 + n + 1 + 63) / 64 * 64;
    memset(buf, ' ', total);
    memcpy(buf, "\x93NUMPY\x01\x00", 8);
    buf[8] = (unsigned char)(total - 10);
    buf[9] = (unsigned char)((total - 10) >> 8);
    memcpy(buf + 10, text, n);
    buf[total - 1] = '\n';
    return total;
}

dfcl_status dfcl_npy_write(const dfcl_context *ctx, const char *path, const float *data, const int64_t *shape, int ndim, dfcl_error *err) {
    uint64_t count, bytes;
    if (ndim < 0 || ndim > DFCL_MAX_DIMS || !dfcl_shape_count(shape, ndim, 4, &count, &bytes))
        return dfcl_fail(err, DFCL_USAGE, "%s: bad shape", path);
    unsigned char head[512], buf[4096];
    size_t n = npy_header(head, "<f4", shape, ndim);
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

/* ---- npz: a zip file (APPNOTE 6.3) with one stored entry ---- */

#define ENTRY "arr_0.npy"

struct dfcl_npz_writer {
    const dfcl_context *ctx;
    struct dfcl_writer file;
    uint64_t each, left; /* bytes per picture; pictures to come */
    uint64_t size;       /* of the entry */
    bool zip64, broken;
    uint32_t crc;
};

struct bytes {
    unsigned char b[256];
    size_t n;
};
static void put(struct bytes *o, uint64_t v, int n) {
    for (int i = 0; i < n; i++)
        o->b[o->n++] = (unsigned char)(v >> (8 * i));
}

/* The part that local and central headers share: versions apart, up to the name's length. */
static void put_common(struct bytes *o, const struct dfcl_npz_writer *w) {
    put(o, w->zip64 ? 45 : 20, 2); /* version needed */
    put(o, 0, 2);                  /* flags */
    put(o, 0, 2);                  /* stored */
    put(o, 0, 2);                  /* time */
    put(o, 0x21, 2);               /* 1980-01-01: the same run gives the same file */
    put(o, w->crc, 4);
    put(o, w->zip64 ? UINT32_MAX : w->size, 4);
    put(o, w->zip64 ? UINT32_MAX : w->size, 4);
    put(o, sizeof ENTRY - 1, 2);
}
static void put_local(struct bytes *o, const struct dfcl_npz_writer *w) {
    put(o, 0x04034b50, 4);
    put_common(o, w);
    put(o, w->zip64 ? 20 : 0, 2);
    memcpy(o->b + o->n, ENTRY, sizeof ENTRY - 1);
    o->n += sizeof ENTRY - 1;
    if (w->zip64) {
        put(o, 1, 2);
        put(o, 16, 2);
        put(o, w->size, 8);
        put(o, w->size, 8);
    }
}

static dfcl_status entry_bytes(struct dfcl_npz_writer *w, const void *data, size_t n, dfcl_error *err) {
    w->crc = (uint32_t)crc32_z(w->crc, data, n);
    dfcl_status s = dfcl_writer_write(&w->file, data, n, err);
    w->broken |= s != DFCL_OK;
    return s;
}

dfcl_status dfcl_npz_writer_create(struct dfcl_npz_writer **out, const dfcl_context *ctx, const char *path, int64_t n, int height,
                                   int width, int channels, dfcl_error *err) {
    *out = NULL;
    int64_t shape[4] = {n, height, width, channels};
    uint64_t count, bytes;
    if (!dfcl_shape_count(shape, 4, 1, &count, &bytes) || height < 1 || width < 1 || channels < 1 || bytes > INT64_MAX - 4096)
        return dfcl_fail(err, DFCL_USAGE, "%s: bad shape", path);
    struct dfcl_npz_writer *w = dfcl_calloc(ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    w->ctx = ctx;
    w->each = (uint64_t)height * (uint64_t)width * (uint64_t)channels;
    w->left = (uint64_t)n;
    unsigned char head[512];
    size_t k = npy_header(head, "|u1", shape, 4);
    w->size = k + bytes;
    w->zip64 = w->size >= UINT32_MAX - 4096; /* the central directory's offset must fit as well */
    dfcl_status s = dfcl_writer_open(&w->file, ctx, path, err);
    if (!s) {
        struct bytes o = {.n = 0};
        put_local(&o, w);
        s = dfcl_writer_write(&w->file, o.b, o.n, err);
    }
    if (!s)
        s = entry_bytes(w, head, k, err);
    if (s)
        dfcl_npz_writer_destroy(&w);
    *out = w;
    return s;
}

dfcl_status dfcl_npz_writer_add(struct dfcl_npz_writer *w, const uint8_t *pictures, int64_t n, dfcl_error *err) {
    if (n < 0 || (uint64_t)n > w->left) {
        w->broken = true;
        return dfcl_fail(err, DFCL_USAGE, "%s: %lld pictures given, %llu expected", w->file.path, (long long)n, (unsigned long long)w->left);
    }
    w->left -= (uint64_t)n;
    return entry_bytes(w, pictures, (size_t)n * (size_t)w->each, err);
}

dfcl_status dfcl_npz_writer_finish(struct dfcl_npz_writer **pw, dfcl_error *err) {
    struct dfcl_npz_writer *w = *pw;
    dfcl_status s = DFCL_OK;
    if (w->broken)
        s = dfcl_fail(err, DFCL_ERROR, "%s: not written: an earlier step failed", w->file.path);
    else if (w->left)
        s = dfcl_fail(err, DFCL_USAGE, "%s: %llu pictures are missing", w->file.path, (unsigned long long)w->left);
    if (s)
        goto out;
    struct bytes local = {.n = 0}, o = {.n = 0};
    put_local(&local, w);
    const uint64_t central = local.n + w->size;
    put(&o, 0x02014b50, 4);
    put(&o, 45, 2); /* made by */
    put_common(&o, w);
    put(&o, w->zip64 ? 20 : 0, 2);
    put(&o, 0, 2); /* comment */
    put(&o, 0, 2); /* disk */
    put(&o, 0, 2);
    put(&o, 0, 4);
    put(&o, 0, 4); /* local header's offset */
    memcpy(o.b + o.n, ENTRY, sizeof ENTRY - 1);
    o.n += sizeof ENTRY - 1;
    if (w->zip64) {
        put(&o, 1, 2);
        put(&o, 16, 2);
        put(&o, w->size, 8);
        put(&o, w->size, 8);
    }
    const uint64_t central_size = o.n;
    if (w->zip64) {
        put(&o, 0x06064b50, 4); /* zip64 end record */
        put(&o, 44, 8);
        put(&o, 45, 2);
        put(&o, 45, 2);
        put(&o, 0, 4);
        put(&o, 0, 4);
        put(&o, 1, 8);
        put(&o, 1, 8);
        put(&o, central_size, 8);
        put(&o, central, 8);
        put(&o, 0x07064b50, 4); /* and its locator */
        put(&o, 0, 4);
        put(&o, central + central_size, 8);
        put(&o, 1, 4);
    }
    put(&o, 0x06054b50, 4);
    put(&o, 0, 2);
    put(&o, 0, 2);
    put(&o, 1, 2);
    put(&o, 1, 2);
    put(&o, central_size, 4);
    put(&o, w->zip64 ? UINT32_MAX : central, 4);
    put(&o, 0, 2);
    s = dfcl_writer_write(&w->file, o.b, o.n, err);
    /* The checksum was not known when the local header was written. */
    if (!s && fseeko(w->file.f, 0, SEEK_SET) != 0)
        s = dfcl_fail_errno(err, w->file.path, "cannot seek");
    if (!s)
        s = dfcl_writer_write(&w->file, local.b, local.n, err);
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
