#include "formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* Types of the format; the size is in bits because the newest ones are smaller than a byte. */
static const struct {
    const char *name;
    int bits;
    enum dfcl_dtype dtype;
} st_types[] = {
    {"F32", 32, DFCL_F32},   {"F16", 16, DFCL_F16},          {"BF16", 16, DFCL_BF16},
    {"I64", 64, DFCL_I64},   {"I32", 32, DFCL_I32},          {"U8", 8, DFCL_U8},
    {"F64", 64, DFCL_F64},   {"BOOL", 8, DFCL_DTYPE_COUNT},  {"I8", 8, DFCL_DTYPE_COUNT},
    {"I16", 16, DFCL_DTYPE_COUNT}, {"U16", 16, DFCL_DTYPE_COUNT}, {"U32", 32, DFCL_DTYPE_COUNT},
    {"U64", 64, DFCL_DTYPE_COUNT}, {"C64", 64, DFCL_DTYPE_COUNT}, {"F8_E4M3", 8, DFCL_DTYPE_COUNT},
    {"F8_E5M2", 8, DFCL_DTYPE_COUNT}, {"F8_E8M0", 8, DFCL_DTYPE_COUNT}, {"F6_E2M3", 6, DFCL_DTYPE_COUNT},
    {"F6_E3M2", 6, DFCL_DTYPE_COUNT}, {"F4", 4, DFCL_DTYPE_COUNT},
};

#define OFFSET_MAX (INT64_C(1) << 53) /* exact in the double a JSON number becomes */

static dfcl_status read_tensor(struct dfcl_st *st, const cJSON *item, uint64_t data_size, struct dfcl_tensor_view *t,
                               uint64_t *begin, uint64_t *end, dfcl_error *err) {
    const cJSON *dtype = NULL, *shape = NULL, *offsets = NULL;
    const char *name = item->string;
    if (!cJSON_IsObject(item))
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected an object with dtype, shape and data_offsets", st->path, name);
    for (const cJSON *c = item->child; c; c = c->next) {
        const cJSON **slot = !strcmp(c->string, "dtype") ? &dtype
                             : !strcmp(c->string, "shape") ? &shape
                             : !strcmp(c->string, "data_offsets") ? &offsets : NULL;
        if (slot && *slot)
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: %s appears twice", st->path, name, c->string);
        if (slot)
            *slot = c;
    }
    if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets))
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected dtype (text), shape and data_offsets (arrays)", st->path, name);
    int bits = 0;
    for (size_t i = 0; i < DFCL_COUNT(st_types); i++)
        if (!strcmp(dtype->valuestring, st_types[i].name)) {
            bits = st_types[i].bits;
            t->dtype = st_types[i].dtype;
        }
    if (!bits)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: unknown type %.40s", st->path, name, dtype->valuestring);
    snprintf(t->type_name, sizeof t->type_name, "%s", dtype->valuestring);
    for (const cJSON *c = shape->child; c; c = c->next) {
        if (t->ndim == DFCL_MAX_DIMS)
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: more than %d dimensions", st->path, name, DFCL_MAX_DIMS);
        if (!dfcl_json_int(c, 0, OFFSET_MAX, &t->shape[t->ndim]))
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: a dimension is not a whole number", st->path, name);
        t->ndim++;
    }
    int64_t off[2];
    const cJSON *c = offsets->child;
    for (int i = 0; i < 2; i++, c = c ? c->next : NULL)
        if (!dfcl_json_int(c, 0, OFFSET_MAX, &off[i]))
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: data_offsets: expected two whole numbers", st->path, name);
    if (c)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: data_offsets: expected two numbers, found more", st->path, name);
    if (off[0] > off[1] || (uint64_t)off[1] > data_size)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: bytes %lld to %lld do not lie within the file's %llu bytes of data", st->path,
                         name, (long long)off[0], (long long)off[1], (unsigned long long)data_size);
    uint64_t whole;
    bool fits = dfcl_shape_count(t->shape, t->ndim, (size_t)(bits + 7) / 8, &t->count, &whole);
    if (bits < 8) {
        uint64_t all = 0;
        fits = fits && dfcl_mul_u64(t->count, (uint64_t)bits, &all) && all % 8 == 0;
        whole = all / 8;
    }
    if (!fits || whole != (uint64_t)(off[1] - off[0])) {
        char text[256];
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: shape %s of %s does not fit its %lld bytes", st->path, name,
                         dfcl_shape_format(t->shape, t->ndim, text, sizeof text), t->type_name, (long long)(off[1] - off[0]));
    }
    t->bytes = whole;
    t->parts = 1;
    *begin = (uint64_t)off[0];
    *end = (uint64_t)off[1];
    t->name = dfcl_strdup(st->ctx, name, err);
    return t->name ? DFCL_OK : DFCL_NOMEM;
}

static dfcl_status read_meta(struct dfcl_st *st, const cJSON *item, dfcl_error *err) {
    if (!cJSON_IsObject(item))
        return dfcl_fail(err, DFCL_FORMAT, "%s: __metadata__: expected an object", st->path);
    size_t n = 0;
    for (const cJSON *c = item->child; c; c = c->next, n++)
        if (!cJSON_IsString(c))
            return dfcl_fail(err, DFCL_FORMAT, "%s: __metadata__: %s is not text", st->path, c->string);
    st->meta = dfcl_calloc(st->ctx, n, 2 * sizeof *st->meta, err);
    if (!st->meta)
        return DFCL_NOMEM;
    for (const cJSON *c = item->child; c; c = c->next) {
        char **pair = st->meta + 2 * st->meta_count++;
        pair[0] = dfcl_strdup(st->ctx, c->string, err);
        pair[1] = pair[0] ? dfcl_strdup(st->ctx, c->valuestring, err) : NULL;
        if (!pair[1])
            return DFCL_NOMEM;
    }
    return DFCL_OK;
}

struct named {
    const char *name;
    uint32_t index;
};
static int by_name(const void *a, const void *b) {
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

/* Sorts names and refuses equal ones. index_out (may be NULL) receives the order. */
static dfcl_status sort_names(const struct dfcl_st *st, struct named *list, size_t n, const char *what, uint32_t *index_out,
                              dfcl_error *err) {
    if (n)
        qsort(list, n, sizeof *list, by_name);
    for (size_t i = 0; i < n; i++) {
        if (i && !strcmp(list[i - 1].name, list[i].name))
            return dfcl_fail(err, DFCL_FORMAT, "%s: %s %s appears twice", st->path, what, list[i].name);
        if (index_out)
            index_out[i] = list[i].index;
    }
    return DFCL_OK;
}

struct span {
    struct dfcl_tensor_view t;
    uint64_t begin, end;
    size_t order;
};
static int by_offset(const void *a, const void *b) {
    const struct span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static dfcl_status parse(struct dfcl_st *st, dfcl_error *err) {
    if (st->size < 8)
        return dfcl_fail(err, DFCL_FORMAT, "%s: not a safetensors file: %llu bytes, at least 8 expected", st->path,
                         (unsigned long long)st->size);
    uint64_t head = 0;
    for (int i = 7; i >= 0; i--)
        head = head << 8 | st->data[i];
    if (st->size > 8 && st->data[8] != '{')
        return dfcl_fail(err, DFCL_FORMAT, "%s: not a safetensors file: the header at byte 8 does not start with {", st->path);
    if (head > DFCL_ST_MAX_HEADER || head > st->size - 8)
        return dfcl_fail(err, DFCL_FORMAT, "%s: not a safetensors file, or cut short: a header of %llu bytes is announced, the file has %llu",
                         st->path, (unsigned long long)head, (unsigned long long)st->size);
    if (head == 0)
        return dfcl_fail(err, DFCL_FORMAT, "%s: not a safetensors file: a header of 0 bytes", st->path);
    const uint64_t data_size = st->size - 8 - head;
    cJSON *json = NULL;
    struct span *spans = NULL;
    struct named *names = NULL;
    size_t n = 0, made = 0;
    dfcl_status s = dfcl_json_parse(&json, (const char *)st->data + 8, (size_t)head, (struct dfcl_json_limits){4, 1u << 20}, st->path, err);
    if (s)
        goto out;
    const cJSON *meta = NULL;
    for (const cJSON *c = json->child; c; c = c->next) {
        if (strcmp(c->string, "__metadata__")) {
            n++;
            continue;
        }
        if (meta) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: __metadata__ appears twice", st->path);
            goto out;
        }
        meta = c;
    }
    s = DFCL_NOMEM;
    size_t most = n;
    if (meta && (s = read_meta(st, meta, err)) != DFCL_OK)
        goto out;
    s = DFCL_NOMEM;
    most = DFCL_MAX(n, st->meta_count);
    if (!(spans = dfcl_calloc(st->ctx, n, sizeof *spans, err)) || !(names = dfcl_calloc(st->ctx, most, sizeof *names, err)) ||
        !(st->by_name = dfcl_calloc(st->ctx, n, sizeof *st->by_name, err)) ||
        !(st->tensors = dfcl_calloc(st->ctx, n, sizeof *st->tensors, err)))
        goto out;
    for (size_t i = 0; i < st->meta_count; i++)
        names[i].name = st->meta[2 * i];
    if ((s = sort_names(st, names, st->meta_count, "__metadata__ key", NULL, err)) != DFCL_OK)
        goto out;
    for (const cJSON *c = json->child; c; c = c->next) {
        if (c == meta)
            continue;
        struct span *p = &spans[made];
        p->order = made++;
        if ((s = read_tensor(st, c, data_size, &p->t, &p->begin, &p->end, err)) != DFCL_OK)
            goto out;
    }
    if (n)
        qsort(spans, n, sizeof *spans, by_offset);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        struct span *p = &spans[i];
        if (p->begin != at) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: its bytes start at %llu, %s", st->path, p->t.name,
                          (unsigned long long)p->begin, p->begin < at ? "inside another tensor" : "after a hole");
            goto out;
        }
        at = p->end;
        p->t.part[0] = st->data + 8 + head + p->begin;
    }
    if (at != data_size) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: the tensors take %llu bytes, the file has %llu", st->path, (unsigned long long)at,
                      (unsigned long long)data_size);
        goto out;
    }
    for (size_t i = 0; i < n; i++) {
        st->tensors[i] = spans[i].t;
        spans[i].t.name = NULL;
        names[i] = (struct named){st->tensors[i].name, (uint32_t)i};
        st->count++;
    }
    s = sort_names(st, names, n, "tensor", st->by_name, err);
out:
    for (size_t i = 0; i < made; i++)
        dfcl_free(st->ctx, (char *)spans[i].t.name);
    dfcl_free(st->ctx, spans);
    dfcl_free(st->ctx, names);
    cJSON_Delete(json);
    return s;
}

static dfcl_status open_any(struct dfcl_st **out, const dfcl_context *ctx, const void *data, size_t size, const char *path,
                            dfcl_error *err) {
    *out = NULL;
    struct dfcl_st *st = dfcl_calloc(ctx, 1, sizeof *st, err);
    if (!st)
        return DFCL_NOMEM;
    st->ctx = ctx;
    st->path = dfcl_strdup(ctx, path, err);
    dfcl_status s = st->path ? DFCL_OK : DFCL_NOMEM;
    if (!s && data) {
        st->data = data;
        st->size = size;
    } else if (!s && (s = dfcl_map_open(&st->map, path, err)) == DFCL_OK) {
        st->data = st->map.data;
        st->size = st->map.size;
    }
    if (!s)
        s = parse(st, err);
    if (s)
        dfcl_st_close(&st);
    *out = st;
    return s;
}

dfcl_status dfcl_st_open(struct dfcl_st **out, const dfcl_context *ctx, const char *path, dfcl_error *err) {
    return open_any(out, ctx, NULL, 0, path, err);
}

dfcl_status dfcl_st_open_memory(struct dfcl_st **out, const dfcl_context *ctx, const void *data, size_t size, const char *path,
                                dfcl_error *err) {
    return open_any(out, ctx, data ? data : "", data ? size : 0, path, err);
}

void dfcl_st_close(struct dfcl_st **pst) {
    struct dfcl_st *st = *pst;
    if (!st)
        return;
    for (size_t i = 0; i < st->count; i++)
        dfcl_free(st->ctx, (char *)st->tensors[i].name);
    for (size_t i = 0; i < 2 * st->meta_count; i++)
        dfcl_free(st->ctx, st->meta[i]);
    dfcl_free(st->ctx, st->tensors);
    dfcl_free(st->ctx, st->by_name);
    dfcl_free(st->ctx, st->meta);
    dfcl_free(st->ctx, st->path);
    dfcl_map_close(&st->map);
    dfcl_free(st->ctx, st);
    *pst = NULL;
}

const struct dfcl_tensor_view *dfcl_st_find(const struct dfcl_st *st, const char *name) {
    size_t lo = 0, hi = st->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct dfcl_tensor_view *t = &st->tensors[st->by_name[mid]];
        int c = strcmp(name, t->name);
        if (c == 0)
            return t;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *dfcl_st_meta(const struct dfcl_st *st, const char *key) {
    for (size_t i = 0; i < st->meta_count; i++)
        if (!strcmp(st->meta[2 * i], key))
            return st->meta[2 * i + 1];
    return NULL;
}
