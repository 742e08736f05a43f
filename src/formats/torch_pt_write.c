/* A state dict as PyTorch's zip container: "archive/data.pkl" (protocol 2), "archive/data/K" with the values of tensor
 * K, "archive/version". */
#include "formats/torch_pt.h"

#include <stdio.h>
#include <string.h>

#include <zlib.h>

#include "base/json.h"
#include "formats/zip_write.h"

#define ALIGN 64 /* of values in the file, as PyTorch lays them: they can be used from a mapping */
#define MAX_TENSORS 60000

struct pt_out {
    uint64_t offset, count; /* of the entry's local header; elements */
    uint32_t crc;
};

struct dfcl_pt_writer {
    const dfcl_context *ctx;
    struct dfcl_writer file;
    struct dfcl_text pickle; /* bytes, not text; complete once begun */
    struct pt_out *list;
    size_t count, cap;
    uint64_t bytes, at;     /* of all tensors; of the file so far */
    struct pt_out small[3]; /* data.pkl, byteorder, version */
    bool begun, zip64, broken;
    size_t current; /* tensor being written, and how many of its elements are */
    uint64_t done;
};

static const char *const small_names[3] = {"archive/data.pkl", "archive/byteorder", "archive/version"};

/* ---- pickle ---- */

static void op(struct dfcl_text *t, char code) {
    dfcl_text_add(t, &code, 1);
}
static void number(struct dfcl_text *t, char code, uint64_t v, int bytes) {
    unsigned char b[9] = {(unsigned char)code};
    for (int i = 0; i < bytes; i++)
        b[1 + i] = (unsigned char)(v >> (8 * i));
    dfcl_text_add(t, (const char *)b, 1 + (size_t)bytes);
}
static void string(struct dfcl_text *t, const char *s) {
    number(t, 'X', strlen(s), 4); /* BINUNICODE */
    dfcl_text_add(t, s, strlen(s));
}
static void integer(struct dfcl_text *t, int64_t v) { /* v >= 0 */
    if (v < 256) {
        number(t, 'K', (uint64_t)v, 1); /* BININT1 */
    } else if (v <= INT32_MAX) {
        number(t, 'J', (uint64_t)v, 4); /* BININT */
    } else {
        number(t, '\x8a', 8, 1); /* LONG1 of 8 bytes */
        for (int i = 0; i < 8; i++)
            op(t, (char)((uint64_t)v >> (8 * i)));
    }
}
static void integers(struct dfcl_text *t, const int64_t *v, int n) {
    op(t, '('); /* MARK ... TUPLE */
    for (int i = 0; i < n; i++)
        integer(t, v[i]);
    op(t, 't');
}
static void global(struct dfcl_text *t, const char *module, const char *name) {
    dfcl_text_addf(t, "c%s\n%s\n", module, name);
}

/* PROTO 2, OrderedDict(), MARK, and at the end SETITEMS, STOP. */
static void start_dict(struct dfcl_text *t) {
    number(t, '\x80', 2, 1);
    global(t, "collections", "OrderedDict");
    dfcl_text_add(t, ")R(", 3);
}

/* name: torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()) */
static void add_tensor(struct dfcl_text *t, const char *name, size_t key, const int64_t *shape, int ndim,
                       uint64_t count) {
    char number_text[24];
    int64_t strides[DFCL_MAX_DIMS], step = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = step;
        step *= shape[i];
    }
    snprintf(number_text, sizeof number_text, "%zu", key);
    string(t, name);
    global(t, "torch._utils", "_rebuild_tensor_v2");
    dfcl_text_add(t, "((", 2);
    string(t, "storage");
    global(t, "torch", "FloatStorage");
    string(t, number_text);
    string(t, "cpu");
    integer(t, (int64_t)count);
    dfcl_text_add(t, "tQ", 2); /* TUPLE, BINPERSID */
    integer(t, 0);
    integers(t, shape, ndim);
    integers(t, strides, ndim);
    op(t, '\x89'); /* False */
    global(t, "collections", "OrderedDict");
    dfcl_text_add(t, ")RtR", 4);
}

/* ---- life ---- */

static dfcl_status broken(struct dfcl_pt_writer *w, dfcl_status s) {
    w->broken |= s != DFCL_OK;
    return s;
}

dfcl_status dfcl_pt_writer_create(struct dfcl_pt_writer **out, const dfcl_context *ctx, const char *path,
                                  dfcl_error *err) {
    *out = NULL;
    struct dfcl_pt_writer *w = dfcl_calloc(ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    w->ctx = w->pickle.ctx = ctx;
    dfcl_status s = dfcl_writer_open(&w->file, ctx, path, err);
    if (s) {
        dfcl_free(ctx, w);
        return s;
    }
    start_dict(&w->pickle);
    *out = w;
    return DFCL_OK;
}

dfcl_status dfcl_pt_writer_tensor(struct dfcl_pt_writer *w, const char *name, const int64_t *shape, int ndim,
                                  dfcl_error *err) {
    uint64_t count, bytes;
    if (w->begun)
        return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: %s declared after data was written", w->file.path, name));
    if (ndim < 0 || ndim > DFCL_MAX_DIMS || !dfcl_shape_count(shape, ndim, 4, &count, &bytes) || !count ||
        __builtin_add_overflow(w->bytes, bytes, &w->bytes) || w->count == MAX_TENSORS)
        return broken(w,
                      dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: bad shape, or too many tensors", w->file.path, name));
    void *p = w->list;
    dfcl_status s = dfcl_grow(w->ctx, &p, &w->cap, w->count + 1, sizeof *w->list, err);
    w->list = p;
    if (s)
        return broken(w, s);
    add_tensor(&w->pickle, name, w->count, shape, ndim, count);
    w->list[w->count++] = (struct pt_out){.count = count};
    if (w->pickle.failed)
        return broken(w, dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", w->file.path));
    return DFCL_OK;
}

static dfcl_status put(struct dfcl_pt_writer *w, const void *data, size_t n, dfcl_error *err) {
    w->at += n;
    return dfcl_writer_write(&w->file, data, n, err);
}

/* The local header of an entry whose checksum is known (small ones) or put in later. */
static dfcl_status head(struct dfcl_pt_writer *w, struct pt_out *e, const char *name, uint64_t size, dfcl_error *err) {
    struct dfcl_zip_bytes o = {.n = 0};
    e->offset = w->at;
    dfcl_zip_put_local(&o, &(struct dfcl_zip_record){name, e->offset, size, e->crc}, w->zip64, ALIGN);
    return put(w, o.b, o.n, err);
}

static dfcl_status small_entry(struct dfcl_pt_writer *w, int i, const char *data, size_t n, dfcl_error *err) {
    w->small[i].count = n;
    w->small[i].crc = (uint32_t)crc32_z(0, (const unsigned char *)data, n);
    dfcl_status s = head(w, &w->small[i], small_names[i], n, err);
    return s ? s : put(w, data, n, err);
}

static dfcl_status begin(struct dfcl_pt_writer *w, dfcl_error *err) {
    dfcl_text_add(&w->pickle, "u.", 2);
    if (w->pickle.failed)
        return dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", w->file.path);
    w->begun = true;
    /* Room for the small entries, the headers and the directory. */
    w->zip64 = w->bytes + w->pickle.n + 512 * ((uint64_t)w->count + 8) >= UINT32_MAX;
    dfcl_status s = small_entry(w, 0, w->pickle.s, w->pickle.n, err);
    return s ? s : small_entry(w, 1, "little", 6, err);
}

static void tensor_name(char name[40], size_t i) {
    snprintf(name, 40, "archive/data/%zu", i);
}

/* Puts the checksum of the tensor just completed into its header. */
static dfcl_status patch(struct dfcl_pt_writer *w, const struct pt_out *e, dfcl_error *err) {
    struct dfcl_zip_bytes o = {.n = 0};
    dfcl_zip_put(&o, e->crc, 4);
    if (fseeko(w->file.f, (off_t)(e->offset + DFCL_ZIP_LOCAL_CRC), SEEK_SET) != 0)
        return dfcl_fail_errno(err, w->file.path, "cannot seek");
    dfcl_status s = dfcl_writer_write(&w->file, o.b, o.n, err);
    if (!s && fseeko(w->file.f, 0, SEEK_END) != 0)
        s = dfcl_fail_errno(err, w->file.path, "cannot seek");
    return s;
}

static dfcl_status values(struct dfcl_pt_writer *w, struct pt_out *e, const float *data, size_t count,
                          dfcl_error *err) {
    unsigned char buf[4096];
    char name[40];
    dfcl_status s = DFCL_OK;
    if (w->done == 0) {
        tensor_name(name, w->current);
        s = head(w, e, name, 4 * e->count, err);
    }
    while (count && !s) {
        size_t n = DFCL_MIN(count, sizeof buf / 4);
        dfcl_from_f32(DFCL_F32, data, buf, n);
        e->crc = (uint32_t)crc32_z(e->crc, buf, 4 * n);
        s = put(w, buf, 4 * n, err);
        data += n;
        count -= n;
        w->done += n;
    }
    if (!s && w->done == e->count) {
        s = patch(w, e, err);
        w->current++;
        w->done = 0;
    }
    return s;
}

dfcl_status dfcl_pt_writer_f32(struct dfcl_pt_writer *w, const float *data, size_t count, dfcl_error *err) {
    dfcl_status s = w->begun ? DFCL_OK : begin(w, err);
    if (!s && count) {
        struct pt_out *e = w->current < w->count ? &w->list[w->current] : NULL;
        s = e && count <= e->count - w->done
                ? values(w, e, data, count, err)
                : dfcl_fail(err, DFCL_USAGE, "%s: more data than was declared", w->file.path);
    }
    return broken(w, s);
}

static dfcl_status directory(struct dfcl_pt_writer *w, dfcl_error *err) {
    uint64_t start = w->at;
    size_t n = w->count + 3;
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < n && !s; i++) {
        struct dfcl_zip_bytes o = {.n = 0};
        bool is_small = i < 3;
        const struct pt_out *e = is_small ? &w->small[i] : &w->list[i - 3];
        char name[40];
        tensor_name(name, i - 3);
        dfcl_zip_put_central(&o,
                             &(struct dfcl_zip_record){is_small ? small_names[i] : name, e->offset,
                                                       is_small ? e->count : 4 * e->count, e->crc},
                             w->zip64);
        s = put(w, o.b, o.n, err);
    }
    struct dfcl_zip_bytes o = {.n = 0};
    dfcl_zip_put_end(&o, start, w->at - start, (int)n, w->zip64);
    return s ? s : put(w, o.b, o.n, err);
}

dfcl_status dfcl_pt_writer_finish(struct dfcl_pt_writer **pw, dfcl_error *err) {
    struct dfcl_pt_writer *w = *pw;
    dfcl_status s = DFCL_OK;
    if (w->broken)
        s = dfcl_fail(err, DFCL_ERROR, "%s: not written: an earlier step failed", w->file.path);
    else if (!w->begun)
        s = begin(w, err);
    if (!s && w->current < w->count)
        s = dfcl_fail(err, DFCL_USAGE, "%s: %zu of %zu tensors written", w->file.path, w->current, w->count);
    if (!s && !(s = small_entry(w, 2, "3\n", 2, err)) && !(s = directory(w, err)))
        s = dfcl_writer_commit(&w->file, err);
    dfcl_pt_writer_destroy(pw);
    return s;
}

void dfcl_pt_writer_destroy(struct dfcl_pt_writer **pw) {
    struct dfcl_pt_writer *w = pw ? *pw : NULL;
    if (!w)
        return;
    dfcl_writer_abort(&w->file);
    dfcl_text_finish(&w->pickle);
    dfcl_free(w->ctx, w->list);
    dfcl_free(w->ctx, w);
    *pw = NULL;
}
