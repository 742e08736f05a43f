#include "formats/torch_pt.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"

#define MAX_TENSORS (1u << 17) /* far above any checkpoint */

static const struct {
    const char *storage; /* of module torch */
    const char *name;
    int bytes;
    enum dfcl_dtype dtype;
} pt_types[] = {
    {"FloatStorage", "F32", 4, DFCL_F32},         {"HalfStorage", "F16", 2, DFCL_F16},
    {"BFloat16Storage", "BF16", 2, DFCL_BF16},    {"DoubleStorage", "F64", 8, DFCL_F64},
    {"LongStorage", "I64", 8, DFCL_I64},          {"IntStorage", "I32", 4, DFCL_I32},
    {"ByteStorage", "U8", 1, DFCL_U8},            {"CharStorage", "I8", 1, DFCL_DTYPE_COUNT},
    {"ShortStorage", "I16", 2, DFCL_DTYPE_COUNT}, {"BoolStorage", "BOOL", 1, DFCL_DTYPE_COUNT},
    {"ComplexFloatStorage", "C64", 8, DFCL_DTYPE_COUNT}, {"ComplexDoubleStorage", "C128", 16, DFCL_DTYPE_COUNT},
};

/* How torch before 1.6 began its files: a pickled magic number. */
static const unsigned char legacy[] = {0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

static bool is_legacy(const void *data, uint64_t size) {
    return size >= sizeof legacy && !memcmp(data, legacy, sizeof legacy);
}

bool dfcl_pt_sniff(const void *data, size_t size) {
    return (size >= 4 && !memcmp(data, "PK\3\4", 4)) || is_legacy(data, size);
}

/* The one entry named SOMETHING/data.pkl; *prefix = SOMETHING/ */
static dfcl_status find_pickle(struct dfcl_pt *pt, struct dfcl_zip_entry **found, size_t *prefix, dfcl_error *err) {
    static const char tail[] = "/data.pkl";
    const size_t n = sizeof tail - 1;
    *found = NULL;
    for (size_t i = 0; i < pt->zip.count; i++) {
        struct dfcl_zip_entry *e = &pt->zip.entries[i];
        if (e->name_size <= n || memcmp(e->name + e->name_size - n, tail, n) || memchr(e->name, '/', e->name_size - n))
            continue;
        if (*found)
            return dfcl_fail(err, DFCL_FORMAT, "%s: expected one data.pkl, found two", pt->path);
        *found = e;
        *prefix = (size_t)e->name_size - n + 1;
    }
    if (!*found)
        return dfcl_fail(err, DFCL_FORMAT, "%s: a zip file, but not from PyTorch: no NAME/data.pkl in it", pt->path);
    return DFCL_OK;
}

static bool has_tensors(const struct dfcl_pickle *pk, uint32_t dict) {
    const struct dfcl_pk_node *d = dfcl_pk_at(pk, dict);
    if (d->kind != DFCL_PK_DICT)
        return false;
    for (size_t i = 1; i < d->u.list.count; i += 2)
        if (dfcl_pk_at(pk, d->u.list.items[i])->kind == DFCL_PK_TENSOR)
            return true;
    return false;
}

/* Keys of the root for a message. */
static void list_keys(const struct dfcl_pickle *pk, char *buf, size_t size) {
    const struct dfcl_pk_node *d = dfcl_pk_at(pk, pk->root);
    buf[0] = 0;
    for (size_t i = 0; i < d->u.list.count && i < 20; i += 2) {
        const struct dfcl_pk_node *k = dfcl_pk_at(pk, d->u.list.items[i]);
        if (k->kind == DFCL_PK_STR)
            dfcl_append(buf, size, "%s%.*s", buf[0] ? ", " : "", (int)DFCL_MIN(k->u.str.n, 30), k->u.str.s);
    }
}

static dfcl_status choose(struct dfcl_pt *pt, const char *which, uint32_t *dict, dfcl_error *err) {
    static const char *const parts[] = {"ema", "model", "state_dict"};
    const struct dfcl_pickle *pk = &pt->pk;
    char text[256];
    if (dfcl_pk_at(pk, pk->root)->kind != DFCL_PK_DICT)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a state dict or a training checkpoint, found %s", pt->path,
                         dfcl_pk_describe(pk, pk->root, text, sizeof text));
    if (has_tensors(pk, pk->root)) {
        *dict = pk->root;
        if (!which || !strcmp(which, "ema") || !strcmp(which, "model"))
            return DFCL_OK;
        return dfcl_fail(err, DFCL_FORMAT, "%s: a plain state dict, it has no part %s", pt->path, which);
    }
    for (size_t i = 0; i < (which ? 1 : DFCL_COUNT(parts)); i++) {
        const char *name = which ? which : parts[i];
        uint32_t d = dfcl_pk_get(pk, pk->root, name);
        if (d == DFCL_PK_NOTHING || !has_tensors(pk, d) || strlen(name) >= sizeof pt->part)
            continue;
        strcpy(pt->part, name);
        *dict = d;
        return DFCL_OK;
    }
    list_keys(pk, text, sizeof text);
    return dfcl_fail(err, DFCL_FORMAT, "%s: expected tensors under %s, found none; its parts: %s", pt->path,
                     which ? which : "\"ema\", \"model\" or \"state_dict\"", text);
}

/* Zip entry of a storage, found once per storage of the pickle. */
static dfcl_status storage_entry(struct dfcl_pt *pt, uint32_t storage, const char *prefix, size_t prefix_size, int elem, const char *name,
                                 dfcl_error *err) {
    const struct dfcl_pk_storage *st = &pt->pk.storages[storage];
    const struct dfcl_pk_node *key = dfcl_pk_at(&pt->pk, st->key);
    char path[256];
    if (key->u.str.n > 64 || prefix_size > 128 || memchr(key->u.str.s, 0, key->u.str.n) || memchr(prefix, 0, prefix_size))
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: odd storage name", pt->path, name);
    int n = snprintf(path, sizeof path, "%.*sdata/%.*s", (int)prefix_size, prefix, (int)key->u.str.n, key->u.str.s);
    struct dfcl_zip_entry *e = n > 0 && (size_t)n < sizeof path ? dfcl_zip_find(&pt->zip, path) : NULL;
    if (!e)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: its storage %s is not in the file", pt->path, name, path);
    uint64_t bytes;
    if (!dfcl_mul_u64((uint64_t)st->count, (uint64_t)elem, &bytes) || bytes > e->size)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: its storage should hold %lld elements of %d bytes, it has %llu bytes", pt->path, name,
                         (long long)st->count, elem, (unsigned long long)e->size);
    pt->entries[storage] = e;
    return DFCL_OK;
}

static dfcl_status make_view(struct dfcl_pt *pt, const struct dfcl_pk_tensor *t, const char *prefix, size_t prefix_size,
                             struct dfcl_tensor_view *v, dfcl_error *err) {
    const struct dfcl_pickle *pk = &pt->pk;
    const struct dfcl_pk_storage *st = &pk->storages[t->storage];
    char text[256];
    int elem = 0;
    for (size_t i = 0; i < DFCL_COUNT(pt_types); i++)
        if (dfcl_pk_is_global(pk, st->type, "torch", pt_types[i].storage)) {
            elem = pt_types[i].bytes;
            v->dtype = pt_types[i].dtype;
            strcpy(v->type_name, pt_types[i].name);
        }
    if (!elem)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: unknown storage type %s", pt->path, v->name,
                         dfcl_pk_describe(pk, st->type, text, sizeof text));
    if (!pt->entries[t->storage]) {
        dfcl_status s = storage_entry(pt, t->storage, prefix, prefix_size, elem, v->name, err);
        if (s)
            return s;
    }
    v->ndim = t->ndim;
    v->parts = 1;
    v->source[0] = t->storage;
    memcpy(v->shape, t->shape, sizeof v->shape);
    memcpy(v->stride, t->stride, sizeof v->stride);
    const uint64_t have = (uint64_t)st->count;
    bool fits = dfcl_shape_count(t->shape, t->ndim, (size_t)elem, &v->count, &v->bytes) && v->count <= have;
    uint64_t last = (uint64_t)t->offset, dense = 1;
    for (int i = t->ndim - 1; i >= 0 && fits && v->count; i--) {
        uint64_t step;
        fits = dfcl_mul_u64((uint64_t)(t->shape[i] - 1), (uint64_t)t->stride[i], &step) && !__builtin_add_overflow(last, step, &last);
        v->strided |= t->shape[i] > 1 && (uint64_t)t->stride[i] != dense;
        dense *= (uint64_t)t->shape[i]; /* at most count */
    }
    if (!fits || (v->count && last >= have))
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: shape %s at offset %lld does not lie within its storage of %llu elements", pt->path,
                         v->name, dfcl_shape_format(t->shape, t->ndim, text, sizeof text), (long long)t->offset, (unsigned long long)have);
    return DFCL_OK;
}

static dfcl_status list_tensors(struct dfcl_pt *pt, uint32_t dict, const char *prefix, size_t prefix_size, dfcl_error *err) {
    const struct dfcl_pk_node *d = dfcl_pk_at(&pt->pk, dict);
    const size_t pairs = d->u.list.count / 2;
    /* DistributedDataParallel and compiled modules put a word before every name. */
    static const char *const wrappers[] = {"module.", "_orig_mod."};
    size_t skip = 0;
    for (size_t w = 0; w < DFCL_COUNT(wrappers) && !skip; w++) {
        skip = strlen(wrappers[w]);
        for (size_t i = 0; i < pairs && skip; i++) {
            const struct dfcl_pk_node *k = dfcl_pk_at(&pt->pk, d->u.list.items[2 * i]);
            if (dfcl_pk_at(&pt->pk, d->u.list.items[2 * i + 1])->kind == DFCL_PK_TENSOR && k->kind == DFCL_PK_STR &&
                (k->u.str.n <= skip || memcmp(k->u.str.s, wrappers[w], skip)))
                skip = 0;
        }
    }
    /* One tensor may be named by many keys for two bytes each: the views are what would take the memory. */
    size_t most = 0;
    for (size_t i = 0; i < pairs; i++)
        most += dfcl_pk_at(&pt->pk, d->u.list.items[2 * i + 1])->kind == DFCL_PK_TENSOR;
    if (most > MAX_TENSORS)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %zu tensors, at most %u expected", pt->path, most, MAX_TENSORS);
    pt->tensors = dfcl_calloc(pt->ctx, most, sizeof *pt->tensors, err);
    pt->offsets = dfcl_calloc(pt->ctx, most, sizeof *pt->offsets, err);
    pt->entries = dfcl_calloc(pt->ctx, pt->pk.storage_count, sizeof *pt->entries, err);
    if (!pt->tensors || !pt->offsets || !pt->entries)
        return DFCL_NOMEM;
    for (size_t i = 0; i < pairs; i++) {
        const struct dfcl_pk_node *k = dfcl_pk_at(&pt->pk, d->u.list.items[2 * i]);
        const struct dfcl_pk_node *t = dfcl_pk_at(&pt->pk, d->u.list.items[2 * i + 1]);
        if (t->kind != DFCL_PK_TENSOR)
            continue;
        const unsigned char *s = k->kind == DFCL_PK_STR ? (const unsigned char *)k->u.str.s : NULL;
        bool good = s && k->u.str.n <= 512;
        for (size_t p = 0; good && p < k->u.str.n;) {
            int step = dfcl_utf8_len(s + p, k->u.str.n - p);
            good = step > 0 && s[p] >= 0x20;
            p += (size_t)step;
        }
        if (!good)
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %zu: expected a readable name", pt->path, pt->count);
        char *name = dfcl_strndup(pt->ctx, k->u.str.s + skip, k->u.str.n - skip, err);
        if (!name)
            return DFCL_NOMEM;
        struct dfcl_tensor_view *v = &pt->tensors[pt->count];
        const struct dfcl_pk_tensor *pkt = &pt->pk.tensors[t->u.index];
        v->name = name;
        pt->offsets[pt->count++] = pkt->offset;
        dfcl_status st = make_view(pt, pkt, prefix, prefix_size, v, err);
        if (st)
            return st;
    }
    return DFCL_OK;
}

static void find_args(struct dfcl_pt *pt) {
    uint32_t a = dfcl_pk_get(&pt->pk, pt->pk.root, "args");
    pt->args = DFCL_PK_NOTHING;
    if (a == DFCL_PK_NOTHING)
        return;
    const struct dfcl_pk_node *d = dfcl_pk_at(&pt->pk, a);
    if (d->kind == DFCL_PK_OBJECT && dfcl_pk_is_global(&pt->pk, d->u.object.cls, "argparse", "Namespace"))
        a = d->u.object.state;
    if (a != DFCL_PK_NOTHING && dfcl_pk_at(&pt->pk, a)->kind == DFCL_PK_DICT)
        pt->args = a;
}

dfcl_status dfcl_pt_open(struct dfcl_pt **out, const dfcl_context *ctx, const void *data, uint64_t size, const char *path, const char *which,
                         dfcl_error *err) {
    *out = NULL;
    if (is_legacy(data, size))
        return dfcl_fail(err, DFCL_FORMAT, "%s: written by PyTorch before 1.6: expected its zip format; load it with a newer PyTorch and save it again",
                         path);
    struct dfcl_pt *pt = dfcl_calloc(ctx, 1, sizeof *pt, err);
    if (!pt)
        return DFCL_NOMEM;
    pt->ctx = ctx;
    pt->path = path;
    struct dfcl_zip_entry *e, *order;
    size_t prefix_size = 0;
    const unsigned char *bytes;
    uint32_t dict = DFCL_PK_NOTHING;
    char name[160];
    dfcl_status s = dfcl_zip_open(&pt->zip, ctx, data, size, path, err);
    if (s || (s = find_pickle(pt, &e, &prefix_size, err)) != DFCL_OK)
        goto out;
    const char *prefix = e->name;
    if (e->size > DFCL_PK_MAX_BYTES) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: a pickle of %llu bytes, at most %u expected", path, (unsigned long long)e->size, DFCL_PK_MAX_BYTES);
        goto out;
    }
    /* "byteorder" is missing in files older than torch 2.1, which were little-endian in practice. */
    snprintf(name, sizeof name, "%.*sbyteorder", (int)DFCL_MIN(prefix_size, 128), prefix);
    if ((order = dfcl_zip_find(&pt->zip, name)) != NULL) {
        if (order->size > 16) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: byteorder: expected \"little\"", path);
            goto out;
        }
        if ((s = dfcl_zip_fetch(&pt->zip, order, &bytes, err)) != DFCL_OK)
            goto out;
        if (order->size != 6 || memcmp(bytes, "little", 6)) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: byteorder: expected \"little\", found \"%.*s\"", path, (int)order->size, (const char *)bytes);
            goto out;
        }
    }
    if ((s = dfcl_zip_fetch(&pt->zip, e, &bytes, err)) != DFCL_OK ||
        (s = dfcl_pickle_read(&pt->pk, ctx, bytes, (size_t)e->size, path, err)) != DFCL_OK ||
        (s = choose(pt, which, &dict, err)) != DFCL_OK)
        goto out;
    s = list_tensors(pt, dict, prefix, prefix_size, err);
    find_args(pt);
out:
    if (s)
        dfcl_pt_close(&pt);
    *out = pt;
    return s;
}

void dfcl_pt_close(struct dfcl_pt **ppt) {
    struct dfcl_pt *pt = *ppt;
    if (!pt)
        return;
    for (size_t i = 0; i < pt->count; i++)
        dfcl_free(pt->ctx, (char *)pt->tensors[i].name);
    dfcl_free(pt->ctx, pt->tensors);
    dfcl_free(pt->ctx, pt->offsets);
    dfcl_free(pt->ctx, pt->entries);
    dfcl_pickle_free(&pt->pk);
    dfcl_zip_close(&pt->zip);
    dfcl_free(pt->ctx, pt);
    *ppt = NULL;
}

dfcl_status dfcl_pt_fetch(struct dfcl_pt *pt, size_t i, const unsigned char **first, dfcl_error *err) {
    const struct dfcl_tensor_view *v = &pt->tensors[i];
    *first = NULL;
    if (v->count == 0)
        return DFCL_OK;
    dfcl_status s = dfcl_zip_fetch(&pt->zip, pt->entries[v->source[0]], first, err);
    if (s)
        dfcl_error_prefix(err, "tensor %s", v->name);
    else
        *first += (uint64_t)pt->offsets[i] * (v->bytes / v->count);
    return s;
}

void dfcl_pt_release(struct dfcl_pt *pt, size_t i, uint64_t *offset, uint64_t *size) {
    struct dfcl_zip_entry *e = pt->entries[pt->tensors[i].source[0]];
    dfcl_zip_drop(&pt->zip, e);
    *offset = e->offset;
    *size = e->packed;
}

bool dfcl_pt_arg_number(const struct dfcl_pt *pt, const char *key, double *out) {
    uint32_t n = pt->args == DFCL_PK_NOTHING ? DFCL_PK_NOTHING : dfcl_pk_get(&pt->pk, pt->args, key);
    const struct dfcl_pk_node *d = n == DFCL_PK_NOTHING ? NULL : dfcl_pk_at(&pt->pk, n);
    if (!d || (d->kind != DFCL_PK_INT && d->kind != DFCL_PK_FLOAT && d->kind != DFCL_PK_BOOL))
        return false;
    *out = d->kind == DFCL_PK_FLOAT ? d->u.f : (double)d->u.i;
    return true;
}

/* A string as a C string; NULL in *out when it is too long or holds a zero byte. */
static dfcl_status short_text(const struct dfcl_pt *pt, uint32_t node, char **out, dfcl_error *err) {
    const struct dfcl_pk_node *d = dfcl_pk_at(&pt->pk, node);
    *out = NULL;
    if (d->kind != DFCL_PK_STR || d->u.str.n > 4096 || memchr(d->u.str.s, 0, d->u.str.n))
        return DFCL_OK;
    *out = dfcl_strndup(pt->ctx, d->u.str.s, d->u.str.n, err);
    return *out ? DFCL_OK : DFCL_NOMEM;
}

dfcl_status dfcl_pt_arg_texts(const struct dfcl_pt *pt, struct dfcl_list *out, dfcl_error *err) {
    const struct dfcl_pk_node *d = pt->args == DFCL_PK_NOTHING ? NULL : dfcl_pk_at(&pt->pk, pt->args);
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; d && i < DFCL_MIN(d->u.list.count, 1024) && !s; i += 2) {
        char *key = NULL, *value = NULL;
        s = short_text(pt, d->u.list.items[i], &key, err);
        if (!s && key)
            s = short_text(pt, d->u.list.items[i + 1], &value, err);
        if (!s && value)
            s = dfcl_list_add(pt->ctx, out, key, err);
        if (!s && value)
            s = dfcl_list_add(pt->ctx, out, value, err);
        dfcl_free(pt->ctx, key);
        dfcl_free(pt->ctx, value);
    }
    return s;
}
