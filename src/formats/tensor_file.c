#include "formats/tensor_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "formats/tensor_file_internal.h"

dfcl_status dfcl_tf_add(struct dfcl_tensor_file *file, const struct dfcl_tf_entry *e, dfcl_error *err) {
    void *p = file->entries;
    dfcl_status s = dfcl_grow(file->ctx, &p, &file->cap, file->count + 1, sizeof *file->entries, err);
    file->entries = p;
    if (!s)
        file->entries[file->count++] = *e;
    return s;
}

struct named {
    const char *name;
    uint32_t index;
};
static int by_name(const void *a, const void *b) {
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

/* Order of n names, each at `stride` bytes from the last; equal names are refused. */
static dfcl_status index_names(const struct dfcl_tensor_file *f, const void *first, size_t stride, size_t n, uint32_t **out,
                               dfcl_error *err) {
    struct named *list = dfcl_calloc(f->ctx, n, sizeof *list, err);
    *out = dfcl_calloc(f->ctx, n, sizeof **out, err);
    if (!list || !*out) {
        dfcl_free(f->ctx, list);
        return DFCL_NOMEM;
    }
    for (size_t i = 0; i < n; i++)
        list[i] = (struct named){((const struct dfcl_tensor_view *)(const void *)((const char *)first + i * stride))->name, (uint32_t)i};
    if (n)
        qsort(list, n, sizeof *list, by_name);
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < n && !s; i++) {
        (*out)[i] = list[i].index;
        if (i && !strcmp(list[i - 1].name, list[i].name))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s appears twice", f->path, list[i].name);
    }
    dfcl_free(f->ctx, list);
    return s;
}

bool dfcl_tf_raw_find(const struct dfcl_tensor_file *f, const char *name, uint32_t *index) {
    size_t lo = 0, hi = f->raw_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        *index = f->raw_by_name[mid];
        int c = strcmp(name, f->raw[*index].name);
        if (c == 0)
            return true;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return false;
}

static dfcl_status list_plain(struct dfcl_tensor_file *f, dfcl_error *err) {
    for (size_t i = 0; i < f->raw_count; i++) {
        struct dfcl_tf_entry e = {.view = f->raw[i], .raw = {(uint32_t)i}};
        dfcl_status s = dfcl_tf_add(f, &e, err);
        if (s)
            return s;
    }
    return DFCL_OK;
}

static dfcl_status read_config(struct dfcl_tensor_file *f, const char *path, bool must_parse, dfcl_error *err) {
    char *text = NULL;
    size_t n;
    dfcl_error why = {0};
    dfcl_status s = dfcl_file_read(f->ctx, path, 1u << 20, &text, &n, &why);
    if (!s)
        s = dfcl_json_parse(&f->config, text, n, DFCL_JSON_LIMITS, path, &why);
    dfcl_free(f->ctx, text);
    if (!s && !cJSON_IsObject(f->config)) {
        cJSON_Delete(f->config);
        f->config = NULL;
        s = dfcl_fail(&why, DFCL_FORMAT, "%s: expected a JSON object", path);
    }
    if (!s || s == DFCL_NOMEM || must_parse) {
        if (s)
            dfcl_fail_native(err, s, why.native, "%s", why.msg);
        return s;
    }
    dfcl_log(f->ctx, DFCL_LOG_WARN, "%s (not used)", why.msg);
    return DFCL_OK;
}

/* Folder -> the file in it. *folder is set to the folder that holds it. */
static dfcl_status resolve(const dfcl_context *ctx, const char *path, char **file, char **folder, bool *is_folder, dfcl_error *err) {
    static const char *const subs[] = {"", "transformer/"};
    static const char *const names[] = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
                                        "diffusion_pytorch_model.bin"};
    *file = *folder = NULL;
    *is_folder = dfcl_path_kind(path) == DFCL_PATH_DIR;
    if (!*is_folder) {
        const char *slash = strrchr(path, '/');
        *file = dfcl_strdup(ctx, path, err);
        *folder = slash ? dfcl_strndup(ctx, path, (size_t)(slash - path) + 1, err) : dfcl_strdup(ctx, "", err);
        return *file && *folder ? DFCL_OK : DFCL_NOMEM;
    }
    for (size_t i = 0; i < DFCL_COUNT(subs); i++)
        for (size_t j = 0; j < DFCL_COUNT(names); j++) {
            dfcl_free(ctx, *file);
            *file = dfcl_sprintf(ctx, err, "%s/%s%s", path, subs[i], names[j]);
            if (!*file)
                return DFCL_NOMEM;
            if (dfcl_path_kind(*file) == DFCL_PATH_FILE) {
                *folder = dfcl_sprintf(ctx, err, "%s/%s", path, subs[i]);
                return *folder ? DFCL_OK : DFCL_NOMEM;
            }
        }
    return dfcl_fail(err, DFCL_FORMAT, "%s: expected a file, or a folder with %s or .bin in it or in transformer/", path, names[0]);
}

static dfcl_status open_container(struct dfcl_tensor_file *f, const void *data, uint64_t size, const char *which, dfcl_error *err) {
    dfcl_status s;
    if (dfcl_pt_sniff(data, size > SIZE_MAX ? SIZE_MAX : (size_t)size)) {
        f->container = DFCL_CONTAINER_TORCH;
        if ((s = dfcl_pt_open(&f->pt, f->ctx, data, size, f->path, which, err)) != DFCL_OK)
            return s;
        f->raw = f->pt->tensors;
        f->raw_count = f->pt->count;
        if ((s = dfcl_pt_arg_texts(f->pt, &f->args, err)) != DFCL_OK)
            return s;
    } else {
        f->container = DFCL_CONTAINER_SAFETENSORS;
        if ((s = dfcl_st_open_memory(&f->st, f->ctx, data, (size_t)size, f->path, err)) != DFCL_OK)
            return s;
        f->raw = f->st->tensors;
        f->raw_count = f->st->count;
        if (which && strcmp(which, "ema") && strcmp(which, "model"))
            return dfcl_fail(err, DFCL_FORMAT, "%s: a safetensors file, it has no part %s", f->path, which);
    }
    return index_names(f, f->raw, sizeof *f->raw, f->raw_count, &f->raw_by_name, err);
}

static dfcl_status open_any(struct dfcl_tensor_file **out, const dfcl_context *ctx, const void *data, size_t size, const char *path,
                            const char *which, dfcl_error *err) {
    *out = NULL;
    struct dfcl_tensor_file *f = dfcl_calloc(ctx, 1, sizeof *f, err);
    if (!f)
        return DFCL_NOMEM;
    f->ctx = ctx;
    char *folder = NULL, *config = NULL;
    bool is_folder = false;
    dfcl_status s;
    if (data) {
        f->path = dfcl_strdup(ctx, path, err);
        s = f->path ? DFCL_OK : DFCL_NOMEM;
    } else
        s = resolve(ctx, path, &f->path, &folder, &is_folder, err);
    if (s || (!data && (s = dfcl_map_open(&f->map, f->path, err)) != DFCL_OK))
        goto out;
    if ((s = open_container(f, data ? data : f->map.data, data ? size : f->map.size, which, err)) != DFCL_OK)
        goto out;
    if (!data) {
        config = dfcl_sprintf(ctx, err, "%sconfig.json", folder);
        s = config ? DFCL_OK : DFCL_NOMEM;
        if (!s && dfcl_path_kind(config) == DFCL_PATH_FILE)
            s = read_config(f, config, is_folder, err);
        if (s)
            goto out;
    }
    f->diffusers = dfcl_diffusers_detect(f);
    s = f->diffusers ? dfcl_diffusers_map(f, err) : list_plain(f, err);
    if (!s)
        s = index_names(f, f->entries, sizeof *f->entries, f->count, &f->by_name, err);
out:
    dfcl_free(ctx, folder);
    dfcl_free(ctx, config);
    if (s)
        dfcl_tensor_file_close(&f);
    *out = f;
    return s;
}

dfcl_status dfcl_tensor_file_open(struct dfcl_tensor_file **out, const dfcl_context *ctx, const char *path, const char *which,
                                  dfcl_error *err) {
    return open_any(out, ctx, NULL, 0, path, which, err);
}

dfcl_status dfcl_tensor_file_open_memory(struct dfcl_tensor_file **out, const dfcl_context *ctx, const void *data, size_t size,
                                         const char *path, const char *which, dfcl_error *err) {
    return open_any(out, ctx, data ? data : "", data ? size : 0, path, which, err);
}

void dfcl_tensor_file_close(struct dfcl_tensor_file **pf) {
    struct dfcl_tensor_file *f = pf ? *pf : NULL;
    if (!f)
        return;
    for (size_t i = 0; i < f->count; i++)
        dfcl_free(f->ctx, f->entries[i].name);
    dfcl_free(f->ctx, f->entries);
    dfcl_free(f->ctx, f->by_name);
    dfcl_free(f->ctx, f->raw_by_name);
    dfcl_free(f->ctx, f->copies);
    dfcl_list_free(f->ctx, &f->args);
    cJSON_Delete(f->config);
    dfcl_st_close(&f->st);
    dfcl_pt_close(&f->pt);
    dfcl_map_close(&f->map);
    dfcl_free(f->ctx, f->path);
    dfcl_free(f->ctx, f);
    *pf = NULL;
}

const char *dfcl_tensor_file_path(const struct dfcl_tensor_file *f) {
    return f->path;
}
enum dfcl_container dfcl_tensor_file_container(const struct dfcl_tensor_file *f) {
    return f->container;
}
bool dfcl_tensor_file_is_diffusers(const struct dfcl_tensor_file *f) {
    return f->diffusers;
}
const char *dfcl_tensor_file_part(const struct dfcl_tensor_file *f) {
    return f->pt ? f->pt->part : "";
}

size_t dfcl_tensor_file_count(const struct dfcl_tensor_file *f) {
    return f->count;
}

const struct dfcl_tensor_view *dfcl_tensor_file_at(const struct dfcl_tensor_file *f, size_t i) {
    return i < f->count ? &f->entries[i].view : NULL;
}

const struct dfcl_tensor_view *dfcl_tensor_file_find(const struct dfcl_tensor_file *f, const char *name) {
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct dfcl_tensor_view *v = &f->entries[f->by_name[mid]].view;
        int c = strcmp(name, v->name);
        if (c == 0)
            return v;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* The entry of one of this file's views. */
static struct dfcl_tf_entry *entry_of(struct dfcl_tensor_file *f, const struct dfcl_tensor_view *v) {
    return (struct dfcl_tf_entry *)(uintptr_t)((const char *)v - offsetof(struct dfcl_tf_entry, view));
}

/* Makes the bytes of a container view available. */
static dfcl_status fetch(struct dfcl_tensor_file *f, uint32_t raw, const unsigned char **first, dfcl_error *err) {
    if (f->pt)
        return dfcl_pt_fetch(f->pt, raw, first, err);
    *first = f->raw[raw].part[0];
    return DFCL_OK;
}

static void release_raw(struct dfcl_tensor_file *f, uint32_t raw) {
    const struct dfcl_tensor_view *v = &f->raw[raw];
    if (!v->count)
        return;
    uint64_t offset, size = v->bytes;
    if (f->pt)
        dfcl_pt_release(f->pt, raw, &offset, &size);
    else
        offset = (uint64_t)(v->part[0] - f->st->data);
    dfcl_map_release(&f->map, offset, size);
}

static dfcl_status prepare(struct dfcl_tensor_file *f, struct dfcl_tf_entry *e, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < e->view.parts && !s; i++)
        s = fetch(f, e->raw[i], &e->view.part[i], err);
    if (s || e->copies_checked)
        return s;
    for (uint32_t i = 0; i < e->copy_count; i++) {
        uint32_t raw = f->copies[e->copy_first + i];
        const struct dfcl_tensor_view *c = &f->raw[raw];
        const unsigned char *p;
        if ((s = fetch(f, raw, &p, err)) != DFCL_OK)
            return s;
        /* Both are contiguous and of the same shape and type: the mapping saw to it. */
        if (c->count && memcmp(p, e->view.part[0], (size_t)c->bytes) != 0)
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected a copy of %s, found other values", f->path, c->name,
                             f->raw[e->raw[0]].name);
        release_raw(f, raw);
    }
    e->copies_checked = true;
    return DFCL_OK;
}

dfcl_status dfcl_tensor_file_read_f32(struct dfcl_tensor_file *f, const struct dfcl_tensor_view *view, uint64_t first, uint64_t n,
                                      float *out, dfcl_error *err) {
    struct dfcl_tf_entry *e = entry_of(f, view);
    dfcl_status s = prepare(f, e, err);
    return s ? s : dfcl_view_read_f32(&e->view, f->path, first, n, out, err);
}

dfcl_status dfcl_tensor_file_read_raw(struct dfcl_tensor_file *f, const struct dfcl_tensor_view *view, void *out, dfcl_error *err) {
    struct dfcl_tf_entry *e = entry_of(f, view);
    dfcl_status s = prepare(f, e, err);
    if (!s)
        dfcl_view_read_raw(&e->view, out);
    return s;
}

dfcl_status dfcl_tensor_file_in_place(struct dfcl_tensor_file *f, const struct dfcl_tensor_view *view, const void **at, dfcl_error *err) {
    struct dfcl_tf_entry *e = entry_of(f, view);
    size_t elem = dfcl_dtype_size(view->dtype);
    *at = NULL;
    if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || view->parts != 1 || view->strided || !view->count || !elem)
        return DFCL_OK;
    dfcl_status s = prepare(f, e, err);
    if (s)
        return s;
    uintptr_t p = (uintptr_t)e->view.part[0], first = (uintptr_t)f->map.data;
    if (f->map.base && p >= first && p - first < f->map.size && p % elem == 0)
        *at = e->view.part[0];
    else if (f->pt)
        release_raw(f, e->raw[0]); /* inflated for nothing */
    return DFCL_OK;
}

void dfcl_tensor_file_release(struct dfcl_tensor_file *f, const struct dfcl_tensor_view *view) {
    struct dfcl_tf_entry *e = entry_of(f, view);
    for (int i = 0; i < view->parts; i++)
        release_raw(f, e->raw[i]);
}

size_t dfcl_tensor_file_meta_count(const struct dfcl_tensor_file *f) {
    return f->st ? f->st->meta_count : 0;
}
const char *dfcl_tensor_file_meta_key(const struct dfcl_tensor_file *f, size_t i) {
    return f->st && i < f->st->meta_count ? f->st->meta[2 * i] : NULL;
}
const char *dfcl_tensor_file_meta(const struct dfcl_tensor_file *f, const char *key) {
    return f->st ? dfcl_st_meta(f->st, key) : NULL;
}

bool dfcl_tensor_file_number(const struct dfcl_tensor_file *f, const char *key, double *out) {
    const char *text = dfcl_tensor_file_meta(f, key);
    if (text) {
        /* Whole numbers only, and by hand: strtod would follow the program's locale. */
        const char *p = text + (*text == '-');
        double v = 0;
        size_t n = strspn(p, "0123456789");
        if (n == 0 || n > 15 || p[n])
            return false;
        for (; *p; p++)
            v = 10 * v + (*p - '0');
        *out = *text == '-' ? -v : v;
        return true;
    }
    if (f->pt && dfcl_pt_arg_number(f->pt, key, out))
        return isfinite(*out);
    const cJSON *c = dfcl_json_get(f->config, key);
    if (!cJSON_IsNumber(c) || !isfinite(c->valuedouble))
        return false;
    *out = c->valuedouble;
    return true;
}

const char *dfcl_tensor_file_text(const struct dfcl_tensor_file *f, const char *key) {
    const char *text = dfcl_tensor_file_meta(f, key);
    if (text)
        return text;
    for (size_t i = 0; i < f->args.count; i += 2)
        if (!strcmp(f->args.names[i], key))
            return f->args.names[i + 1];
    const cJSON *c = dfcl_json_get(f->config, key);
    return cJSON_IsString(c) ? c->valuestring : NULL;
}
