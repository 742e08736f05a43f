/* What `info` says of data: a folder of pictures, every file of which is read as training would read it, and a cache of latents. */
#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "base/json.h"
#include "data/describe.h"
#include "data/latents.h"

#define MOST_NAMED 100 /* bad files that are listed */

struct survey {
    const dfcl_context *ctx;
    const struct dfcl_scan *scan;
    struct found {
        int width, height; /* 0: cannot be read */
        uint64_t bytes;
        char *error;
    } *found; /* [scan->count] */
};

static void look(void *user, int thread, size_t i) {
    struct survey *v = user;
    struct found *f = &v->found[i];
    struct dfcl_image im = {0};
    dfcl_error e = {0};
    char *data = NULL;
    size_t n = 0;
    (void)thread;
    dfcl_status s = dfcl_file_read(v->ctx, v->scan->items[i].path, DFCL_IMAGE_MAX_FILE, &data, &n, &e);
    if (!s)
        s = dfcl_image_read_memory(v->ctx, data, n, v->scan->items[i].path, 3, DFCL_ALPHA_WHITE, &im, &e);
    f->bytes = n;
    f->width = im.width;
    f->height = im.height;
    if (s)
        f->error = dfcl_strdup(v->ctx, e.msg, NULL);
    dfcl_image_free(v->ctx, &im);
    dfcl_free(v->ctx, data);
}

static int by_value(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* {smallest, median, largest} of n sorted numbers. */
static void add_spread(cJSON *o, const char *name, int *v, size_t n) {
    qsort(v, n, sizeof *v, by_value);
    cJSON *a = dfcl_json_add_object(o, name);
    dfcl_json_add_number(a, "smallest", v[0]);
    dfcl_json_add_number(a, "median", v[n / 2]);
    dfcl_json_add_number(a, "largest", v[n - 1]);
}

static void add_bad(cJSON *o, const struct survey *v, size_t bad) {
    dfcl_json_add_number(o, "bad", (double)bad);
    cJSON *list = bad ? dfcl_json_add_array(o, "bad_files") : NULL;
    for (size_t i = 0, named = 0; list && i < v->scan->count && named < MOST_NAMED; i++) {
        if (v->found[i].width)
            continue;
        named++;
        cJSON *e = dfcl_json_push(list, cJSON_CreateObject());
        /* The message names the file, and has replaced what is no UTF-8. */
        dfcl_json_add_text(e, "error", v->found[i].error ? v->found[i].error : "out of memory");
    }
}

dfcl_status dfcl_describe_pictures(const dfcl_context *ctx, const struct dfcl_scan *scan, cJSON *o, size_t *bad_of_class, dfcl_error *err) {
    struct survey v = {.ctx = ctx, .scan = scan};
    v.found = dfcl_calloc(ctx, scan->count, sizeof *v.found, err);
    int *shorter = dfcl_calloc(ctx, scan->count, sizeof *shorter, err), *longer = dfcl_calloc(ctx, scan->count, sizeof *longer, err);
    dfcl_status s = v.found && shorter && longer ? DFCL_OK : DFCL_NOMEM;
    if (!s) {
        size_t good = 0;
        double bytes = 0;
        dfcl_parallel(ctx->p.threads, scan->count, look, &v);
        for (size_t i = 0; i < scan->count; i++) {
            const struct found *f = &v.found[i];
            bytes += (double)f->bytes;
            bad_of_class[scan->items[i].label] += !f->width;
            if (!f->width)
                continue;
            shorter[good] = DFCL_MIN(f->width, f->height);
            longer[good++] = DFCL_MAX(f->width, f->height);
        }
        dfcl_json_add_number(o, "bytes", bytes);
        if (good) {
            add_spread(o, "shorter_side", shorter, good);
            add_spread(o, "longer_side", longer, good);
        }
        add_bad(o, &v, scan->count - good);
    }
    for (size_t i = 0; v.found && i < scan->count; i++)
        dfcl_free(ctx, v.found[i].error);
    dfcl_free(ctx, v.found);
    dfcl_free(ctx, shorter);
    dfcl_free(ctx, longer);
    return s;
}

/* ---- cached latents ---- */

static void add_settings(const dfcl_context *ctx, const struct dfcl_latents_settings *st, cJSON *o) {
    struct dfcl_text t = {.ctx = ctx};
    dfcl_latents_settings_text(&t, st);
    cJSON *settings = t.failed ? NULL : cJSON_Parse(t.s), *item;
    dfcl_text_finish(&t);
    if (!settings)
        dfcl_json_add(o, "settings", NULL); /* spoils it: out of memory */
    while ((item = settings ? cJSON_DetachItemFromArray(settings, 0) : NULL) != NULL)
        dfcl_json_add(o, item->string, item);
    cJSON_Delete(settings);
}

dfcl_status dfcl_describe_latents(const dfcl_context *ctx, const char *path, cJSON *o, dfcl_error *err) {
    struct dfcl_latents *l;
    dfcl_status s = dfcl_latents_open(&l, ctx, path, err);
    if (s)
        return s;
    const struct dfcl_latents_view v = dfcl_latents_get(l);
    size_t *counts = dfcl_calloc(ctx, v.classes->count, sizeof *counts, err);
    if (!counts) {
        dfcl_latents_close(&l);
        return DFCL_NOMEM;
    }
    dfcl_json_add_text(o, "kind", "cached latents");
    dfcl_json_add_number(o, "samples", (double)v.count);
    dfcl_json_add_number(o, "skipped", (double)v.skipped);
    add_settings(ctx, &v.settings, o);
    dfcl_json_add_number(o, "shards", (double)v.shards);
    dfcl_json_add_number(o, "bytes", (double)v.bytes);
    dfcl_json_add_text(o, "fingerprint", v.fingerprint);
    if (v.rgb->channels)
        dfcl_json_add_number(o, "latent_rgb_rms", v.rgb->rms);
    for (size_t i = 0; i < v.count; i++)
        counts[v.items[i].label]++;
    cJSON *a = dfcl_json_add_array(o, "classes");
    for (size_t i = 0; a && i < v.classes->count; i++) {
        cJSON *c = cJSON_CreateObject();
        dfcl_json_push(a, c);
        dfcl_json_add_text(c, "name", v.classes->names[i]);
        dfcl_json_add_number(c, "samples", (double)counts[i]);
    }
    dfcl_free(ctx, counts);
    dfcl_latents_close(&l);
    return DFCL_OK;
}
