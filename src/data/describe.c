/* What a path holds: a base, a delta, a training run, a data set, a picture or an array. Findings are gathered as JSON; the text form
 * prints the same object. */
#include "base/json.h"
#include "data/describe.h"
#include "data/latents.h"
#include "formats/image.h"
#include "formats/npy.h"
#include "formats/png.h"
#include "formats/tensor_file.h"
#include "methods/delta.h"

#include <difffit-cl/vae.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ARRAYS 1000  /* of an .npz that are listed */
#define LIMIT (64u << 20) /* of JSON files read whole */

static bool has_entry(const char *dir, const char *name) {
    char path[DFCL_PATH_LONGEST];
    return dfcl_entry_kind(dir, name, path) != DFCL_PATH_NONE;
}

static dfcl_status read_json(const dfcl_context *ctx, const char *path, cJSON **out, dfcl_error *err) {
    char *data = NULL;
    size_t size;
    dfcl_status s = dfcl_file_read(ctx, path, LIMIT, &data, &size, err);
    if (!s)
        s = dfcl_json_parse(out, data, size, DFCL_JSON_LIMITS, path, err);
    dfcl_free(ctx, data);
    return s;
}

static void add_names(cJSON *o, char *const *names, int n) {
    if (!names)
        return;
    cJSON *a = dfcl_json_add_array(o, "class_names");
    for (int i = 0; a && i < n; i++)
        dfcl_json_push(a, cJSON_CreateString(names[i]));
}

static void add_shape(cJSON *o, const char *name, const int64_t *shape, int ndim) {
    cJSON *a = dfcl_json_add_array(o, name);
    for (int i = 0; a && i < ndim; i++)
        dfcl_json_push(a, cJSON_CreateNumber((double)shape[i]));
}

/* ---- tensor files ---- */

static dfcl_status describe_base(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_base *b;
    struct dfcl_model_params params = {.path = path};
    bool heads = true;
    char hash[65];
    dfcl_status s = dfcl_base_open(&b, ctx, &params, err);
    if (s == DFCL_USAGE) { /* the file leaves the heads open: describe the rest */
        heads = false;
        params.heads = 1;
        s = dfcl_base_open(&b, ctx, &params, err);
        if (s == DFCL_USAGE) { /* nor its side: nothing that could be given here */
            char why[DFCL_ERROR_MAX];
            snprintf(why, sizeof why, "%s", err ? err->msg : "");
            s = dfcl_fail(err, DFCL_FORMAT, "%s", why);
        }
    }
    if (s)
        return s;
    if (!(s = dfcl_base_stream(b, NULL, NULL, hash, err))) {
        const struct dfcl_dit_config *c = &b->cfg;
        const char *name = heads ? dfcl_dit_name_of(c) : "";
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(b->file, "x_embedder.proj.weight");
        double values = 0;
        int n;
        const struct dfcl_param *p = dfcl_dit_params(b->table, &n);
        for (int i = 0; i < n; i++)
            values += p[i].gamma ? 0 : (double)p[i].count;
        dfcl_json_add_text(o, "kind", "base");
        if (*name)
            dfcl_json_add_text(o, "model", name);
        dfcl_json_add_number(o, "depth", c->depth);
        dfcl_json_add_number(o, "hidden", c->hidden);
        if (heads)
            dfcl_json_add_number(o, "heads", c->heads);
        dfcl_json_add_number(o, "patch", c->patch);
        dfcl_json_add_extent(o, "input", c->input, dfcl_dit_width(c));
        dfcl_json_add_number(o, "channels", c->channels);
        dfcl_json_add_number(o, "classes", c->classes);
        dfcl_json_add_number(o, "parameters", values);
        if (c->pos_base > 0)
            dfcl_json_add_number(o, "positional_scale", c->pos_base);
        dfcl_json_add_text(o, "dtype", v ? v->type_name : "");
        dfcl_json_add_bool(o, "gammas", b->gammas);
        dfcl_json_add_text(o, "base_hash", hash);
        add_names(o, b->class_names, c->classes);
        if (b->rgb.channels)
            dfcl_json_add_number(o, "latent_rgb_rms", b->rgb.rms);
    }
    dfcl_base_close(&b);
    return s;
}

static dfcl_status describe_delta(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_delta *d;
    dfcl_status s = dfcl_delta_open(&d, ctx, path, err);
    if (s)
        return s;
    double values = 0, gammas = 0;
    for (size_t i = 0; i < dfcl_tensor_file_count(d->file); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(d->file, i);
        values += (double)v->count;
        gammas += strstr(v->name, "gamma") ? (double)v->count : 0;
    }
    dfcl_json_add_text(o, "kind", "delta");
    dfcl_json_add_text(o, "method", d->method);
    if (d->gamma_sites[0]) {
        dfcl_json_add_text(o, "gamma_sites", d->gamma_sites);
        dfcl_json_add_text(o, "gamma_blocks", d->gamma_blocks);
    }
    dfcl_json_add_number(o, "tensors", (double)dfcl_tensor_file_count(d->file));
    dfcl_json_add_number(o, "values", values);
    dfcl_json_add_number(o, "gamma_values", gammas);
    if (d->base_hash[0])
        dfcl_json_add_text(o, "base_hash", d->base_hash);
    if (d->input) {
        dfcl_json_add_extent(o, "input", d->input, d->width);
        dfcl_json_add_number(o, "positional_scale", d->pos_base);
    }
    if (d->classes >= 0) {
        dfcl_json_add_number(o, "classes", d->classes);
        dfcl_json_add_bool(o, "own_classes", d->own_classes);
    }
    add_names(o, d->class_names, d->classes);
    if (d->rgb.channels)
        dfcl_json_add_number(o, "latent_rgb_rms", d->rgb.rms);
    cJSON *training = NULL;
    s = d->training ? dfcl_json_parse(&training, d->training, strlen(d->training), DFCL_JSON_LIMITS, path, err) : DFCL_OK;
    if (training)
        dfcl_json_add(o, "training", training);
    dfcl_delta_close(&d);
    return s == DFCL_NOMEM ? s : DFCL_OK; /* what does not parse is not shown */
}

static dfcl_status describe_tensors(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_tensor_file *f;
    dfcl_status s = dfcl_tensor_file_open(&f, ctx, path, NULL, err);
    if (s)
        return s;
    const char *format = dfcl_tensor_file_meta(f, "format");
    bool base = dfcl_tensor_file_find(f, "blocks.0.attn.qkv.weight") && dfcl_tensor_file_find(f, "x_embedder.proj.weight");
    bool delta = (format && !strncmp(format, "difffit-cl delta", 16)) || (!base && dfcl_tensor_file_find(f, "blocks.0.gamma1"));
    if (!base && !delta) {
        dfcl_json_add_text(o, "kind", "tensors");
        cJSON *a = dfcl_json_add_array(o, "tensors");
        for (size_t i = 0; a && i < dfcl_tensor_file_count(f); i++) {
            const struct dfcl_tensor_view *v = dfcl_tensor_file_at(f, i);
            cJSON *t = dfcl_json_push(a, cJSON_CreateObject());
            dfcl_json_add_text(t, "name", v->name);
            dfcl_json_add_text(t, "dtype", v->type_name);
            add_shape(t, "shape", v->shape, v->ndim);
        }
    }
    dfcl_tensor_file_close(&f);
    return delta ? describe_delta(ctx, path, o, err) : base ? describe_base(ctx, path, o, err) : DFCL_OK;
}

/* ---- pictures and arrays ---- */

/* Bytes of strangers as JSON may hold them. */
static void make_printable(char *s) {
    for (size_t n = strlen(s); *s;) {
        int k = dfcl_utf8_len((const unsigned char *)s, n);
        if (!k)
            *s = '?', k = 1;
        s += k;
        n -= (size_t)k;
    }
}

static uint32_t be32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static uint32_t le16(const unsigned char *p) {
    return (uint32_t)p[1] << 8 | p[0];
}
static uint32_t le32(const unsigned char *p) {
    return le16(p + 2) << 16 | le16(p);
}

/* Size and text chunks of a PNG: what a sampled picture says of how it was drawn. */
static dfcl_status describe_png(const dfcl_context *ctx, const struct dfcl_map *m, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_list text = {0};
    dfcl_status s = dfcl_png_text_memory(ctx, m->data, (size_t)m->size, path, &text, err);
    if (s)
        return s;
    dfcl_json_add_text(o, "kind", "picture");
    if (m->size >= 26 && !memcmp(m->data + 12, "IHDR", 4)) {
        dfcl_json_add_number(o, "width", be32(m->data + 16));
        dfcl_json_add_number(o, "height", be32(m->data + 20));
        dfcl_json_add_number(o, "bit_depth", m->data[24]);
    }
    cJSON *t = text.count ? dfcl_json_add_object(o, "text") : NULL;
    for (size_t i = 0; t && i + 1 < text.count; i += 2) {
        make_printable(text.names[i]);
        make_printable(text.names[i + 1]);
        dfcl_json_add_text(t, text.names[i], text.names[i + 1]);
    }
    dfcl_list_free(ctx, &text);
    return DFCL_OK;
}

static dfcl_status describe_jpeg(const dfcl_context *ctx, const struct dfcl_map *m, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_image im;
    dfcl_status s = dfcl_image_read_memory(ctx, m->data, (size_t)m->size, path, 3, DFCL_ALPHA_WHITE, &im, err);
    if (s)
        return s;
    dfcl_json_add_text(o, "kind", "picture");
    dfcl_json_add_number(o, "width", im.width);
    dfcl_json_add_number(o, "height", im.height);
    dfcl_json_add_number(o, "bit_depth", 8);
    dfcl_image_free(ctx, &im);
    return DFCL_OK;
}

static dfcl_status describe_npy(const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_npy npy;
    dfcl_status s = dfcl_npy_open(&npy, path, err);
    if (s)
        return s;
    dfcl_json_add_text(o, "kind", "array");
    dfcl_json_add_text(o, "dtype", npy.view.type_name);
    add_shape(o, "shape", npy.view.shape, npy.view.ndim);
    dfcl_npy_close(&npy);
    return DFCL_OK;
}

/* The arrays of an .npz, from the archive's local headers: stored members with a known size, as the writers of sample sets make them. */
static dfcl_status describe_npz(const struct dfcl_map *m, const char *path, cJSON *o, dfcl_error *err) {
    dfcl_json_add_text(o, "kind", "arrays");
    cJSON *a = dfcl_json_add_array(o, "arrays");
    int n = 0;
    for (uint64_t at = 0; n++ < MOST_ARRAYS && m->size >= 30 && at <= m->size - 30 && !memcmp(m->data + at, "PK\3\4", 4);) {
        const unsigned char *h = m->data + at;
        uint64_t name = le16(h + 26), extra = le16(h + 28), size = le32(h + 18), body = at + 30 + name + extra;
        if (body > m->size)
            return dfcl_fail(err, DFCL_FORMAT, "%s: the archive is cut short", path);
        const unsigned char *x = h + 30 + name;
        if (size == 0xffffffffu && extra >= 20 && le16(x) == 1) /* zip64: original, then stored size */
            size = le32(x + 12) | (uint64_t)le32(x + 16) << 32;
        if ((le16(h + 6) & 8) || size > m->size - body) /* sizes follow the data, or do not fit */
            break;
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)DFCL_MIN(name, 127), (const char *)h + 30);
        make_printable(key);
        cJSON *e = dfcl_json_push(a, cJSON_CreateObject());
        dfcl_json_add_text(e, "name", key);
        struct dfcl_npy npy;
        if (!le16(h + 8) && !dfcl_npy_open_memory(&npy, m->data + body, (size_t)size, path, NULL)) {
            dfcl_json_add_text(e, "dtype", npy.view.type_name);
            add_shape(e, "shape", npy.view.shape, npy.view.ndim);
            dfcl_npy_close(&npy);
        }
        at = body + size;
    }
    return DFCL_OK;
}

static dfcl_status describe_file(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_map m;
    dfcl_status s = dfcl_map_open(&m, path, err);
    if (s)
        return s;
    size_t len = strlen(path);
    bool png = m.size >= 8 && !memcmp(m.data, "\x89PNG\r\n\x1a\n", 8), npy = m.size >= 6 && !memcmp(m.data, "\x93NUMPY", 6);
    bool jpeg = m.size >= 3 && !memcmp(m.data, "\xff\xd8\xff", 3);
    bool npz = len > 4 && !strcmp(path + len - 4, ".npz") && m.size >= 4 && !memcmp(m.data, "PK\3\4", 4);
    dfcl_json_add_number(o, "bytes", (double)m.size);
    if (png)
        s = describe_png(ctx, &m, path, o, err);
    else if (jpeg)
        s = describe_jpeg(ctx, &m, path, o, err);
    else if (npy)
        s = describe_npy(path, o, err);
    else if (npz)
        s = describe_npz(&m, path, o, err);
    dfcl_map_close(&m);
    return png || jpeg || npy || npz ? s : describe_tensors(ctx, path, o, err);
}

/* ---- folders ---- */

/* The last complete line of metrics.jsonl; *out is NULL if there is none. */
static dfcl_status last_metrics(const char *path, cJSON **out, dfcl_error *err) {
    struct dfcl_map map;
    dfcl_status s = DFCL_OK;
    *out = NULL;
    if (dfcl_map_open(&map, path, NULL))
        return DFCL_OK;
    uint64_t end = map.size;
    while (end && map.data[end - 1] != '\n')
        end--; /* a line that is being written */
    uint64_t begin = end ? end - 1 : 0;
    while (begin && map.data[begin - 1] != '\n')
        begin--;
    if (end > begin && end - begin < 1u << 16)
        s = dfcl_json_parse(out, (const char *)map.data + begin, (size_t)(end - begin), DFCL_JSON_LIMITS, path, err);
    dfcl_map_close(&map);
    return s == DFCL_NOMEM ? s : DFCL_OK;
}

static dfcl_status describe_run(const dfcl_context *ctx, const char *path, cJSON *config, cJSON *o, dfcl_error *err) {
    dfcl_json_add_text(o, "kind", "run");
    char *p = dfcl_sprintf(ctx, err, "%s/metrics.jsonl", path);
    if (!p)
        return DFCL_NOMEM;
    cJSON *last;
    dfcl_status s = last_metrics(p, &last, err);
    dfcl_free(ctx, p);
    if (s)
        return s;
    int64_t step = 0, steps = 0;
    bool known = dfcl_json_int(dfcl_json_get(config, "steps"), 0, (int64_t)1 << 50, &steps);
    if (last)
        dfcl_json_int(dfcl_json_get(last, "step"), 0, (int64_t)1 << 50, &step);
    dfcl_json_add_number(o, "step", (double)step);
    if (known)
        dfcl_json_add_number(o, "steps", (double)steps);
    dfcl_json_add_bool(o, "finished", has_entry(path, "delta.safetensors") || has_entry(path, "model.safetensors"));
    cJSON *marks = dfcl_json_add_array(o, "checkpoints");
    struct dfcl_list list = {0};
    if (!(p = dfcl_sprintf(ctx, err, "%s/checkpoints", path))) {
        cJSON_Delete(last);
        return DFCL_NOMEM;
    }
    if (dfcl_path_kind(p) == DFCL_PATH_DIR && !(s = dfcl_list_dir(ctx, p, &list, err)))
        for (size_t i = 0; i < list.count; i++)
            if (!strncmp(list.names[i], "step-", 5))
                dfcl_json_push(marks, cJSON_CreateString(list.names[i]));
    dfcl_list_free(ctx, &list);
    dfcl_free(ctx, p);
    if (last)
        dfcl_json_add(o, "last_metrics", last);
    dfcl_json_add(o, "config", cJSON_Duplicate(config, 1));
    return s;
}

/* A folder checkpoints/step-N of a run. */
static dfcl_status describe_checkpoint(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    static const char *const keys[] = {"step", "skipped"};
    cJSON *state = NULL;
    char *p = dfcl_sprintf(ctx, err, "%s/state.json", path);
    dfcl_status s = p ? read_json(ctx, p, &state, err) : DFCL_NOMEM;
    dfcl_json_add_text(o, "kind", "checkpoint");
    for (size_t i = 0; i < DFCL_COUNT(keys) && !s; i++) {
        int64_t v;
        if (dfcl_json_int(dfcl_json_get(state, keys[i]), 0, (int64_t)1 << 50, &v))
            dfcl_json_add_number(o, keys[i], (double)v);
        else
            s = dfcl_fail(err, DFCL_FORMAT, "%s: expected %s, a whole number", p, keys[i]);
    }
    cJSON_Delete(state);
    dfcl_free(ctx, p);
    return s;
}

static void add_classes(cJSON *o, const struct dfcl_scan *scan, const size_t *counts, const size_t *bad) {
    cJSON *a = scan->classes.count ? dfcl_json_add_array(o, "classes") : NULL;
    for (size_t i = 0; a && i < scan->classes.count; i++) {
        cJSON *c = dfcl_json_push(a, cJSON_CreateObject());
        dfcl_json_add_text(c, "name", scan->classes.names[i]);
        if (counts)
            dfcl_json_add_number(c, "samples", (double)counts[i]);
        if (bad[i])
            dfcl_json_add_number(c, "bad", (double)bad[i]);
    }
}

static dfcl_status describe_data(const dfcl_context *ctx, const char *path, int flags, cJSON *o, dfcl_error *err) {
    struct dfcl_scan scan = {0};
    dfcl_status s = dfcl_scan_folder(ctx, path, &scan, err);
    if (s)
        return s;
    dfcl_json_add_text(o, "kind", scan.latent ? "latents" : "pictures");
    dfcl_json_add_number(o, "samples", (double)scan.count);
    size_t *counts = dfcl_calloc(ctx, scan.classes.count + 1, sizeof *counts, err);
    size_t *bad = dfcl_calloc(ctx, scan.classes.count + 1, sizeof *bad, err);
    s = counts && bad ? DFCL_OK : DFCL_NOMEM;
    /* labels of latents lie in files of their own, not read here */
    for (size_t i = 0; !s && !scan.latent && i < scan.count; i++)
        counts[scan.items[i].label]++;
    if (!s && !scan.latent && !(flags & DFCL_DESCRIBE_QUICK))
        s = dfcl_describe_pictures(ctx, &scan, o, bad, err);
    if (!s)
        add_classes(o, &scan, scan.latent ? NULL : counts, bad);
    dfcl_free(ctx, counts);
    dfcl_free(ctx, bad);
    dfcl_scan_free(ctx, &scan);
    return s;
}

static dfcl_status describe_folder(const dfcl_context *ctx, const char *path, int flags, cJSON *o, dfcl_error *err) {
    cJSON *config = NULL;
    if (has_entry(path, "config.json")) {
        char *p = dfcl_sprintf(ctx, err, "%s/config.json", path);
        dfcl_status s = p ? read_json(ctx, p, &config, err) : DFCL_NOMEM;
        dfcl_free(ctx, p);
        if (s)
            return s;
    }
    const cJSON *format = dfcl_json_get(config, "format"), *class = dfcl_json_get(config, "_class_name");
    dfcl_status s;
    if (cJSON_IsString(format) && !strncmp(format->valuestring, "difffit-cl run", 14)) {
        s = describe_run(ctx, path, config, o, err);
    } else if (cJSON_IsString(class) && !strcmp(class->valuestring, "AutoencoderKL")) {
        char hash[65];
        dfcl_json_add_text(o, "kind", "vae");
        dfcl_json_add(o, "config", cJSON_Duplicate(config, 1));
        s = DFCL_OK;
        if (!dfcl_vae_file_hash(ctx, path, hash, NULL)) /* the weights may lie elsewhere */
            dfcl_json_add_text(o, "encoder_hash", hash);
    } else if (cJSON_IsString(class) || has_entry(path, "model_index.json") || has_entry(path, "transformer")) {
        s = describe_base(ctx, path, o, err);
    } else if (has_entry(path, "state.json") && has_entry(path, "tensors.safetensors")) {
        s = describe_checkpoint(ctx, path, o, err);
    } else if (dfcl_latents_here(path)) {
        s = dfcl_describe_latents(ctx, path, o, err);
    } else {
        s = describe_data(ctx, path, flags, o, err);
    }
    cJSON_Delete(config);
    return s;
}

/* ---- text ---- */

static void print_value(struct dfcl_text *t, const cJSON *v, int indent);

static void print_object(struct dfcl_text *t, const cJSON *o, int indent) {
    const cJSON *v;
    cJSON_ArrayForEach(v, o) {
        bool nested = cJSON_IsObject(v) || (cJSON_IsArray(v) && cJSON_IsObject(v->child));
        dfcl_text_addf(t, "%*s%-*s%s", indent, "", nested ? 0 : 18 - indent, v->string, nested ? "" : " ");
        print_value(t, v, indent);
    }
}

static void print_value(struct dfcl_text *t, const cJSON *v, int indent) {
    if (cJSON_IsObject(v)) {
        dfcl_text_addf(t, "\n");
        print_object(t, v, indent + 2);
    } else if (cJSON_IsArray(v)) {
        int i = 0;
        const cJSON *e;
        cJSON_ArrayForEach(e, v) {
            if (cJSON_IsObject(e)) { /* one line each */
                const cJSON *f;
                dfcl_text_addf(t, "\n%*s", indent, "");
                cJSON_ArrayForEach(f, e) {
                    char *s = cJSON_PrintUnformatted(f);
                    t->failed = t->failed || !s;
                    dfcl_text_addf(t, "  %s", cJSON_IsString(f) ? f->valuestring : s ? s : "");
                    cJSON_free(s);
                }
            } else if (cJSON_IsString(e)) {
                dfcl_text_addf(t, "%s%s", i ? ", " : "", e->valuestring);
            } else {
                dfcl_text_addf(t, "%s%.10g", i ? ", " : "", cJSON_GetNumberValue(e));
            }
            i++;
        }
        dfcl_text_addf(t, "\n");
    } else if (cJSON_IsString(v)) {
        dfcl_text_addf(t, "%s\n", v->valuestring);
    } else if (cJSON_IsBool(v)) {
        dfcl_text_addf(t, "%s\n", cJSON_IsTrue(v) ? "yes" : "no");
    } else if (cJSON_IsNumber(v)) {
        dfcl_text_addf(t, "%.10g\n", v->valuedouble);
    } else {
        dfcl_text_addf(t, "-\n");
    }
}

dfcl_status dfcl_describe(const dfcl_context *ctx, const char *path, int flags, char **out, dfcl_error *err) {
    *out = NULL;
    enum dfcl_path_kind kind = dfcl_path_kind(path);
    cJSON *o = cJSON_CreateObject();
    dfcl_status s;
    if (!o)
        return dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", path);
    char shown[4096];
    snprintf(shown, sizeof shown, "%s", path);
    make_printable(shown);
    dfcl_json_add_text(o, "path", shown);
    if (kind == DFCL_PATH_NONE)
        s = dfcl_fail(err, DFCL_IO, "%s: no such file or folder", path);
    else if (kind == DFCL_PATH_DIR)
        s = describe_folder(ctx, path, flags, o, err);
    else
        s = describe_file(ctx, path, o, err);
    if (!s && !dfcl_json_whole(o))
        s = dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", path);
    if (!s) {
        struct dfcl_text t = {.ctx = ctx};
        if (flags & DFCL_DESCRIBE_JSON) {
            char *p = cJSON_Print(o);
            if (p)
                dfcl_text_addf(&t, "%s\n", p);
            cJSON_free(p);
        } else {
            print_object(&t, o, 0);
        }
        *out = t.failed || !t.s ? NULL : dfcl_strdup(ctx, t.s, err);
        dfcl_text_finish(&t);
        if (!*out)
            s = dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", path);
    }
    cJSON_Delete(o);
    return s;
}

void dfcl_text_free(const dfcl_context *ctx, char *text) {
    dfcl_free(ctx, text);
}
