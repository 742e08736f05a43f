/* Reading the cache of latents. */
#include "data/latents.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/philox.h"
#include "base/sha256.h"

#define MOST_INDEX ((size_t)1 << 29) /* bytes of index.json */
#define MOST_CLASSES 100000

struct dfcl_latents {
    const dfcl_context *ctx;
    char *path;
    struct dfcl_latents_settings settings;
    struct dfcl_list classes;
    struct dfcl_latents_shard *shards;
    size_t shard_count, shard_cap;
    struct dfcl_latents_item *items;
    size_t count, cap;
    int64_t skipped;
    uint64_t bytes;
    struct dfcl_latent_rgb rgb;
    char fingerprint[65];
};

/* A folder of pictures may hold an index.json of its own. */
static bool has_index(const char *path) {
    char head[256] = "", name[DFCL_PATH_LONGEST];
    FILE *f = dfcl_entry_kind(path, DFCL_LATENTS_INDEX, name) == DFCL_PATH_FILE ? fopen(name, "rbe") : NULL;
    if (f) {
        head[fread(head, 1, sizeof head - 1, f)] = 0;
        fclose(f);
    }
    return strstr(head, "\"difffit-cl latents") != NULL;
}

bool dfcl_latents_here(const char *path) {
    char name[DFCL_PATH_LONGEST];
    return dfcl_entry_kind(path, DFCL_LATENTS_LOCK, name) == DFCL_PATH_FILE || has_index(path);
}

/* ---- opening ---- */

static dfcl_status add_rows(struct dfcl_latents *l, const cJSON *labels, const char *what, dfcl_error *err) {
    const struct dfcl_latents_shard *sh = &l->shards[l->shard_count - 1];
    size_t row = 0;
    dfcl_status s = DFCL_OK;
    const cJSON *v;
    if (!cJSON_IsArray(labels) || (size_t)cJSON_GetArraySize(labels) != sh->count)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected %zu labels, one for each row of the shard", what, sh->file, sh->count);
    void *p = l->items;
    s = dfcl_grow(l->ctx, &p, &l->cap, l->count + sh->count, sizeof *l->items, err);
    l->items = p;
    cJSON_ArrayForEach(v, labels) {
        int64_t label;
        if (!s && !dfcl_json_int(v, -1, (int64_t)l->classes.count - 1, &label))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s: label %zu: expected -1, or a class below %zu", what, sh->file, row, l->classes.count);
        if (s)
            return s;
        if (label >= 0)
            l->items[l->count++] = (struct dfcl_latents_item){sh->names[row], (int)label, (uint32_t)(l->shard_count - 1), (uint32_t)row};
        row++;
    }
    return s;
}

static dfcl_status add_shard(struct dfcl_latents *l, const cJSON *o, const char *what, dfcl_error *err) {
    const cJSON *file = dfcl_json_get(o, "file");
    /* Only names that the writer gives: a path could lead anywhere. */
    if (!cJSON_IsString(file) || strncmp(file->valuestring, "shard-", 6) || strchr(file->valuestring, '/'))
        return dfcl_fail(err, DFCL_FORMAT, "%s: shards: expected objects with a file shard-N.safetensors", what);
    if (l->shard_count >= UINT32_MAX - 1)
        return dfcl_fail(err, DFCL_FORMAT, "%s: too many shards", what);
    void *p = l->shards;
    dfcl_status s = dfcl_grow(l->ctx, &p, &l->shard_cap, l->shard_count + 1, sizeof *l->shards, err);
    l->shards = p;
    if (!s)
        s = dfcl_latents_shard_open(&l->shards[l->shard_count], l->ctx, l->path, file->valuestring, &l->settings, err);
    if (s)
        return s;
    l->bytes += l->shards[l->shard_count].st->size;
    l->shard_count++;
    return add_rows(l, dfcl_json_get(o, "labels"), what, err);
}

static dfcl_status read_index(struct dfcl_latents *l, const cJSON *o, const char *what, dfcl_error *err) {
    const cJSON *format = dfcl_json_get(o, "format"), *classes = dfcl_json_get(o, "classes"), *shards = dfcl_json_get(o, "shards"), *e;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, DFCL_LATENTS_FORMAT))
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected the format \"%s\", found \"%.40s\"", what, DFCL_LATENTS_FORMAT,
                         cJSON_IsString(format) ? format->valuestring : "");
    dfcl_status s = dfcl_latents_settings_parse(dfcl_json_get(o, "settings"), what, &l->settings, err);
    if (!s && (!cJSON_IsArray(classes) || !classes->child || cJSON_GetArraySize(classes) > MOST_CLASSES))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: classes: expected 1 to %d names", what, MOST_CLASSES);
    cJSON_ArrayForEach(e, classes) {
        if (!s && (!cJSON_IsString(e) || dfcl_has_control(e->valuestring)))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: classes: expected names", what);
        if (!s)
            s = dfcl_list_add(l->ctx, &l->classes, e->valuestring, err);
        if (s)
            return s;
    }
    if (!s && !dfcl_json_int(dfcl_json_get(o, "skipped"), 0, (int64_t)1 << 40, &l->skipped))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: skipped: expected a whole number", what);
    if (!s && dfcl_json_get(o, "rgb"))
        s = dfcl_latent_rgb_json(dfcl_json_get(o, "rgb"), what, &l->rgb, err);
    if (!s && l->rgb.channels && l->rgb.channels != l->settings.channels)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: latent_rgb: expected weights for %d channels, found %d", what, l->settings.channels, l->rgb.channels);
    if (!s && !cJSON_IsArray(shards))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: shards: expected an array", what);
    cJSON_ArrayForEach(e, shards) {
        if (!s)
            s = add_shard(l, e, what, err);
        if (s)
            return s;
    }
    if (!s && !l->count)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: holds no latents", what);
    return s;
}

static int by_class_and_name(const void *a, const void *b) {
    const struct dfcl_latents_item *x = a, *y = b;
    return x->label != y->label ? (x->label > y->label) - (x->label < y->label) : strcmp(x->name, y->name);
}

static dfcl_status make_fingerprint(struct dfcl_latents *l, dfcl_error *err) {
    struct dfcl_sha256 h;
    struct dfcl_text t = {.ctx = l->ctx};
    dfcl_text_addf(&t, "latents ");
    dfcl_latents_settings_text(&t, &l->settings);
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        goto out;
    if (t.failed)
        s = dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", l->path);
    if (!s)
        s = dfcl_sha256_update(&h, t.s, t.n, err);
    for (size_t i = 0; !s && i < l->classes.count; i++)
        s = dfcl_sha256_update(&h, l->classes.names[i], strlen(l->classes.names[i]) + 1, err);
    for (size_t i = 0; !s && i < l->count; i++) {
        char line[32];
        const struct dfcl_latents_item *it = &l->items[i];
        snprintf(line, sizeof line, "\n%d ", it->label);
        s = dfcl_sha256_update(&h, line, strlen(line), err);
        if (!s)
            s = dfcl_sha256_update(&h, l->shards[it->shard].sha256->part[0] + 32 * (size_t)it->row, 32, err);
        if (!s)
            s = dfcl_sha256_update(&h, it->name, strlen(it->name), err);
    }
    if (s)
        dfcl_sha256_abort(&h);
    else
        s = dfcl_sha256_finish(&h, l->fingerprint, err);
out:
    dfcl_text_finish(&t);
    return s;
}

dfcl_status dfcl_latents_open(struct dfcl_latents **out, const dfcl_context *ctx, const char *path, dfcl_error *err) {
    *out = NULL;
    struct dfcl_latents *l = dfcl_calloc(ctx, 1, sizeof *l, err);
    if (!l)
        return DFCL_NOMEM;
    l->ctx = ctx;
    char *index = dfcl_sprintf(ctx, err, "%s/%s", path, DFCL_LATENTS_INDEX), *text = NULL;
    size_t size = 0;
    cJSON *o = NULL;
    l->path = dfcl_strdup(ctx, path, err);
    dfcl_status s = index && l->path ? DFCL_OK : DFCL_NOMEM;
    if (!s && dfcl_path_kind(index) == DFCL_PATH_NONE)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: the making of these latents was not finished; start it again to go on", path);
    if (!s)
        s = dfcl_file_read(ctx, index, MOST_INDEX, &text, &size, err);
    if (!s)
        s = dfcl_json_parse(&o, text, size, (struct dfcl_json_limits){8, (size_t)1 << 25}, index, err);
    if (!s)
        s = read_index(l, o, index, err);
    if (!s)
        qsort(l->items, l->count, sizeof *l->items, by_class_and_name);
    for (size_t i = 1; !s && i < l->count; i++)
        if (!by_class_and_name(&l->items[i - 1], &l->items[i]))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s is listed twice", index, l->items[i].name);
    if (!s)
        s = make_fingerprint(l, err);
    cJSON_Delete(o);
    dfcl_free(ctx, text);
    dfcl_free(ctx, index);
    if (s)
        dfcl_latents_close(&l);
    *out = l;
    return s;
}

void dfcl_latents_close(struct dfcl_latents **lp) {
    struct dfcl_latents *l = *lp;
    if (!l)
        return;
    for (size_t i = 0; i < l->shard_count; i++)
        dfcl_latents_shard_close(l->ctx, &l->shards[i]);
    dfcl_free(l->ctx, l->shards);
    dfcl_free(l->ctx, l->items);
    dfcl_free(l->ctx, l->path);
    dfcl_list_free(l->ctx, &l->classes);
    dfcl_free(l->ctx, l);
    *lp = NULL;
}

struct dfcl_latents_view dfcl_latents_get(const struct dfcl_latents *l) {
    return (struct dfcl_latents_view){l->settings, l->items, l->count, l->shard_count, &l->classes, l->skipped, l->bytes, &l->rgb, l->fingerprint};
}

dfcl_status dfcl_latents_read(const struct dfcl_latents *l, size_t i, bool flip, float *out, dfcl_error *err) {
    const struct dfcl_latents_item *it = &l->items[i];
    const struct dfcl_latents_shard *sh = &l->shards[it->shard];
    size_t values = 2 * (size_t)l->settings.channels * dfcl_latents_plane(&l->settings);
    dfcl_status s = dfcl_latents_shard_read(sh, it->row, flip, out, err);
    for (size_t k = 0; !s && k < values; k++)
        if (!isfinite(out[k]))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: value %zu of row %u (%s) is not finite", sh->st->path, k, it->row, it->name);
    return s;
}

void dfcl_latents_sample(const struct dfcl_latents_settings *st, const float *mean, const float *logvar, const struct dfcl_latents_draw *d, float *out) {
    size_t n = (size_t)st->channels * dfcl_latents_plane(st);
    const float scale = (float)st->scale, shift = (float)st->shift;
    dfcl_normals(d->seed, d->stream, d->step, d->sample, out, n);
    for (size_t i = 0; i < n; i++) {
        double half = 0.5 * (double)(logvar[i] < -30.0f ? -30.0f : logvar[i] > 20.0f ? 20.0f : logvar[i]);
        float std = (float)exp(half); /* in double, so that the rounding to f32 is the same with every library */
        out[i] = (mean[i] + std * out[i] - shift) * scale;
    }
}
