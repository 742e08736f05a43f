#include "formats/safetensors.h"

#include <string.h>

#include "base/json.h"

struct st_out {
    char *name;
    enum dfcl_dtype dtype;
    uint64_t bytes;
};

struct dfcl_st_writer {
    const dfcl_context *ctx;
    struct dfcl_writer file;
    struct dfcl_text meta, tensors; /* JSON members, comma-separated */
    struct dfcl_list meta_keys;
    struct st_out *list;
    size_t count, cap;
    uint64_t total;
    bool begun, broken; /* broken: an earlier call failed; finish must not commit */
    size_t current;     /* tensor being written, and how much of it is */
    uint64_t done;
};

dfcl_status dfcl_st_writer_create(struct dfcl_st_writer **out, const dfcl_context *ctx, const char *path, dfcl_error *err) {
    *out = NULL;
    struct dfcl_st_writer *w = dfcl_calloc(ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    w->ctx = w->meta.ctx = w->tensors.ctx = ctx;
    dfcl_status s = dfcl_writer_open(&w->file, ctx, path, err);
    if (s) {
        dfcl_free(ctx, w);
        return s;
    }
    *out = w;
    return DFCL_OK;
}

static dfcl_status broken(struct dfcl_st_writer *w, dfcl_status s) {
    w->broken |= s != DFCL_OK;
    return s;
}

static dfcl_status begun(struct dfcl_st_writer *w, const char *what, dfcl_error *err) {
    return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: %s declared after data was written", w->file.path, what));
}

dfcl_status dfcl_st_writer_meta(struct dfcl_st_writer *w, const char *key, const char *value, dfcl_error *err) {
    if (w->begun)
        return begun(w, key, err);
    for (size_t i = 0; i < w->meta_keys.count; i++)
        if (!strcmp(w->meta_keys.names[i], key))
            return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: metadata %s declared twice", w->file.path, key));
    dfcl_status s = dfcl_list_add(w->ctx, &w->meta_keys, key, err);
    if (s)
        return broken(w, s);
    if (w->meta.n)
        dfcl_text_add(&w->meta, ",", 1);
    dfcl_text_json_string(&w->meta, key);
    dfcl_text_add(&w->meta, ":", 1);
    dfcl_text_json_string(&w->meta, value);
    if (w->meta.failed)
        return broken(w, dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", w->file.path));
    return DFCL_OK;
}

dfcl_status dfcl_st_writer_tensor(struct dfcl_st_writer *w, const char *name, enum dfcl_dtype dtype, const int64_t *shape, int ndim,
                                  dfcl_error *err) {
    if (w->begun)
        return begun(w, name, err);
    size_t elem = dfcl_dtype_size(dtype);
    uint64_t count, bytes, end;
    if (!elem || ndim < 0 || ndim > DFCL_MAX_DIMS || !strcmp(name, "__metadata__") ||
        !dfcl_shape_count(shape, ndim, elem, &count, &bytes) || __builtin_add_overflow(w->total, bytes, &end))
        return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: bad type, name or shape", w->file.path, name));
    for (size_t i = 0; i < w->count; i++)
        if (!strcmp(w->list[i].name, name))
            return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: tensor %s declared twice", w->file.path, name));
    void *p = w->list;
    dfcl_status s = dfcl_grow(w->ctx, &p, &w->cap, w->count + 1, sizeof *w->list, err);
    w->list = p;
    if (s)
        return broken(w, s);
    char *copy = dfcl_strdup(w->ctx, name, err);
    if (!copy)
        return broken(w, DFCL_NOMEM);
    w->list[w->count++] = (struct st_out){copy, dtype, bytes};
    if (w->tensors.n)
        dfcl_text_add(&w->tensors, ",", 1);
    dfcl_text_json_string(&w->tensors, name);
    dfcl_text_addf(&w->tensors, ":{\"dtype\":\"%s\",\"shape\":[", dfcl_dtype_name(dtype));
    for (int i = 0; i < ndim; i++)
        dfcl_text_addf(&w->tensors, "%s%lld", i ? "," : "", (long long)shape[i]);
    dfcl_text_addf(&w->tensors, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)w->total, (unsigned long long)end);
    w->total = end;
    if (w->tensors.failed)
        return broken(w, dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", w->file.path));
    return DFCL_OK;
}

static dfcl_status begin(struct dfcl_st_writer *w, dfcl_error *err) {
    struct dfcl_text h = {.ctx = w->ctx};
    dfcl_text_add(&h, "{", 1);
    if (w->meta.n) {
        dfcl_text_add(&h, "\"__metadata__\":{", 16);
        dfcl_text_add(&h, w->meta.s, w->meta.n);
        dfcl_text_add(&h, "}", 1);
    }
    if (w->tensors.n) {
        dfcl_text_add(&h, ",", w->meta.n ? 1 : 0);
        dfcl_text_add(&h, w->tensors.s, w->tensors.n);
    }
    dfcl_text_add(&h, "}", 1);
    /* The data starts on a multiple of 8 when the header is padded. */
    while (h.n % 8 && !h.failed)
        dfcl_text_add(&h, " ", 1);
    dfcl_status s = DFCL_OK;
    if (h.failed)
        s = dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", w->file.path);
    else if (h.n > DFCL_ST_MAX_HEADER)
        s = dfcl_fail(err, DFCL_USAGE, "%s: a header of %zu bytes is more than the format allows", w->file.path, h.n);
    unsigned char len[8];
    for (int i = 0; i < 8; i++)
        len[i] = (unsigned char)((uint64_t)h.n >> (8 * i));
    if (!s)
        s = dfcl_writer_write(&w->file, len, 8, err);
    if (!s)
        s = dfcl_writer_write(&w->file, h.s, h.n, err);
    dfcl_text_finish(&h);
    w->begun = true;
    return s;
}

/* Moves on over tensors that are complete (also those without elements). */
static void advance(struct dfcl_st_writer *w) {
    while (w->current < w->count && w->done == w->list[w->current].bytes) {
        w->current++;
        w->done = 0;
    }
}

dfcl_status dfcl_st_writer_data(struct dfcl_st_writer *w, const void *data, size_t bytes, dfcl_error *err) {
    dfcl_status s = w->begun ? DFCL_OK : begin(w, err);
    if (s)
        return broken(w, s);
    const unsigned char *p = data;
    for (advance(w); bytes; advance(w)) {
        if (w->current == w->count)
            return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: more data than was declared", w->file.path));
        size_t n = (size_t)DFCL_MIN((uint64_t)bytes, w->list[w->current].bytes - w->done);
        if ((s = dfcl_writer_write(&w->file, p, n, err)) != DFCL_OK)
            return broken(w, s);
        p += n;
        bytes -= n;
        w->done += n;
    }
    return DFCL_OK;
}

dfcl_status dfcl_st_writer_f32(struct dfcl_st_writer *w, const float *data, size_t count, dfcl_error *err) {
    unsigned char buf[4096];
    advance(w);
    if (count == 0)
        return DFCL_OK;
    if (w->current == w->count)
        return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: more data than was declared", w->file.path));
    const struct st_out *t = &w->list[w->current];
    size_t elem = dfcl_dtype_size(t->dtype), step = sizeof buf / elem;
    if (count > (t->bytes - w->done) / elem)
        return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: %zu values given, room for %llu", w->file.path, t->name, count,
                                   (unsigned long long)((t->bytes - w->done) / elem)));
    while (count) {
        size_t n = DFCL_MIN(count, step);
        if (!dfcl_from_f32(t->dtype, data, buf, n))
            return broken(w, dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: f32 values given for type %s", w->file.path, t->name,
                                       dfcl_dtype_name(t->dtype)));
        dfcl_status s = dfcl_st_writer_data(w, buf, n * elem, err);
        if (s)
            return s;
        data += n;
        count -= n;
    }
    return DFCL_OK;
}

dfcl_status dfcl_st_writer_finish(struct dfcl_st_writer **pw, dfcl_error *err) {
    struct dfcl_st_writer *w = *pw;
    dfcl_status s = DFCL_OK;
    if (w->broken)
        s = dfcl_fail(err, DFCL_ERROR, "%s: not written: an earlier step failed", w->file.path);
    else if (!w->begun)
        s = begin(w, err);
    advance(w);
    if (!s && w->current < w->count)
        s = dfcl_fail(err, DFCL_USAGE, "%s: tensor %s: %llu of %llu bytes written", w->file.path, w->list[w->current].name,
                      (unsigned long long)w->done, (unsigned long long)w->list[w->current].bytes);
    if (!s)
        s = dfcl_writer_commit(&w->file, err);
    dfcl_st_writer_destroy(pw);
    return s;
}

void dfcl_st_writer_destroy(struct dfcl_st_writer **pw) {
    struct dfcl_st_writer *w = pw ? *pw : NULL;
    if (!w)
        return;
    dfcl_writer_abort(&w->file);
    for (size_t i = 0; i < w->count; i++)
        dfcl_free(w->ctx, w->list[i].name);
    dfcl_free(w->ctx, w->list);
    dfcl_list_free(w->ctx, &w->meta_keys);
    dfcl_text_finish(&w->meta);
    dfcl_text_finish(&w->tensors);
    dfcl_free(w->ctx, w);
    *pw = NULL;
}
