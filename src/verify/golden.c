#include "base/json.h"
#include "verify/golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void dfcl_golden_say(struct dfcl_golden *g, const char *fmt, ...) {
    if (!g->line || g->json)
        return;
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    g->line(g->user, line);
}

dfcl_status dfcl_golden_open(struct dfcl_golden_file *f, struct dfcl_golden *g, const char *name, dfcl_error *err) {
    memset(f, 0, sizeof *f);
    f->g = g;
    snprintf(f->name, sizeof f->name, "%s", name);
    char *path = dfcl_sprintf(g->ctx, err, "%s/%s.safetensors", g->dir, name);
    dfcl_status s = path ? dfcl_st_open(&f->st, g->ctx, path, err) : DFCL_NOMEM;
    dfcl_free(g->ctx, path);
    if (s)
        return s;
    f->seen = dfcl_calloc(g->ctx, f->st->count, sizeof *f->seen, err);
    if (!f->seen) {
        dfcl_golden_abort(f);
        return DFCL_NOMEM;
    }
    if (g->json) {
        f->json = cJSON_CreateObject();
        dfcl_json_add_text(f->json, "file", name);
        dfcl_json_add_array(f->json, "tensors");
    }
    return DFCL_OK;
}

void dfcl_golden_abort(struct dfcl_golden_file *f) {
    if (!f->g)
        return;
    const dfcl_context *ctx = f->g->ctx;
    for (size_t i = 0; i < f->item_count; i++) {
        dfcl_free(ctx, f->items[i].key);
        dfcl_free(ctx, f->items[i].data);
    }
    dfcl_free(ctx, f->items);
    dfcl_free(ctx, f->seen);
    dfcl_st_close(&f->st);
    cJSON_Delete(f->json);
    memset(f, 0, sizeof *f);
}

static dfcl_status write_dump(struct dfcl_golden_file *f, dfcl_error *err) {
    const dfcl_context *ctx = f->g->ctx;
    char *path = dfcl_sprintf(ctx, err, "%s/%s.safetensors", f->g->dump, f->name);
    if (!path)
        return DFCL_NOMEM;
    char *slash = strrchr(path, '/');
    *slash = 0;
    dfcl_status s = dfcl_mkdirs(ctx, path, err);
    *slash = '/';
    struct dfcl_st_writer *w = NULL;
    if (!s)
        s = dfcl_st_writer_create(&w, ctx, path, err);
    for (size_t i = 0; i < f->item_count && !s; i++)
        s = dfcl_st_writer_tensor(w, f->items[i].key, DFCL_F32, f->items[i].shape, f->items[i].ndim, err);
    for (size_t i = 0; i < f->item_count && !s; i++) {
        uint64_t n = 1;
        for (int d = 0; d < f->items[i].ndim; d++)
            n *= (uint64_t)f->items[i].shape[d];
        s = dfcl_st_writer_f32(w, f->items[i].data, (size_t)n, err);
    }
    if (!s)
        s = dfcl_st_writer_finish(&w, err);
    dfcl_st_writer_destroy(&w);
    dfcl_free(ctx, path);
    return s;
}

dfcl_status dfcl_golden_close(struct dfcl_golden_file *f, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < f->st->count; i++)
        if (!f->seen[i]) {
            f->failed++;
            dfcl_golden_say(f->g, "  %-48s was not computed", f->st->tensors[i].name);
        }
    if (f->g->dump && f->item_count)
        s = write_dump(f, err);
    dfcl_golden_say(f->g, "%-24s %s: %d tensors checked, %d failed, at most %.0f %% of a limit used", f->name,
                    f->failed ? "FAILED" : "passed", f->checked, f->failed, 100 * f->worst);
    if (f->g->json) {
        dfcl_json_add_bool(f->json, "passed", !f->failed);
        dfcl_json_add_number(f->json, "checked", f->checked);
        dfcl_json_add_number(f->json, "failed", f->failed);
        dfcl_json_push(f->g->json, f->json);
        f->json = NULL;
    }
    f->g->failed += f->failed != 0;
    dfcl_golden_abort(f);
    return s;
}

static const struct dfcl_tensor_view *find(struct dfcl_golden_file *f, const char *key, bool mark) {
    const struct dfcl_tensor_view *v = dfcl_st_find(f->st, key);
    if (v && mark)
        f->seen[v - f->st->tensors] = true;
    return v;
}

bool dfcl_golden_has(const struct dfcl_golden_file *f, const char *key) {
    return dfcl_st_find(f->st, key) != NULL;
}

void dfcl_golden_excuse(struct dfcl_golden_file *f, const char *prefix) {
    for (size_t i = 0; i < f->st->count; i++)
        if (!strncmp(f->st->tensors[i].name, prefix, strlen(prefix)))
            f->seen[i] = true;
}

static dfcl_status missing(struct dfcl_golden_file *f, const char *key, dfcl_error *err) {
    return dfcl_fail(err, DFCL_FORMAT, "%s: expected a tensor %s, found none", f->st->path, key);
}

static dfcl_status read_f32(struct dfcl_golden_file *f, const struct dfcl_tensor_view *v, float **data, dfcl_error *err) {
    *data = dfcl_calloc(f->g->ctx, (size_t)v->count, sizeof **data, err);
    if (!*data)
        return DFCL_NOMEM;
    return dfcl_view_read_f32(v, f->st->path, 0, v->count, *data, err);
}

dfcl_status dfcl_golden_input(struct dfcl_golden_file *f, const char *key, float **data, uint64_t *count, dfcl_error *err) {
    *data = NULL;
    const struct dfcl_tensor_view *v = find(f, key, true);
    if (!v)
        return missing(f, key, err);
    *count = v->count;
    return read_f32(f, v, data, err);
}

dfcl_status dfcl_golden_input_int(struct dfcl_golden_file *f, const char *key, int64_t **data, uint64_t *count, dfcl_error *err) {
    *data = NULL;
    const struct dfcl_tensor_view *v = find(f, key, true);
    if (!v)
        return missing(f, key, err);
    if (v->dtype != DFCL_I64)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected the type I64, found %s", f->st->path, key, v->type_name);
    *count = v->count;
    *data = dfcl_calloc(f->g->ctx, (size_t)v->count, sizeof **data, err);
    if (!*data)
        return DFCL_NOMEM;
    dfcl_view_read_raw(v, *data);
    for (uint64_t i = 0; i < v->count; i++)
        if ((*data)[i] < 0 || (*data)[i] > INT32_MAX)
            return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected whole numbers from 0 to %d, found %lld", f->st->path, key, INT32_MAX,
                             (long long)(*data)[i]);
    return DFCL_OK;
}

/* Keeps a result for the dump: a whole tensor, or a part of one at special->offset. */
static dfcl_status keep(struct dfcl_golden_file *f, const struct dfcl_tensor_view *v, const float *got, uint64_t offset, uint64_t count,
                        dfcl_error *err) {
    if (!f->g->dump)
        return DFCL_OK;
    const dfcl_context *ctx = f->g->ctx;
    struct dfcl_golden_item *it = NULL;
    for (size_t i = 0; i < f->item_count; i++)
        if (!strcmp(f->items[i].key, v->name))
            it = &f->items[i];
    if (!it) {
        void *p = f->items;
        dfcl_status s = dfcl_grow(ctx, &p, &f->item_cap, f->item_count + 1, sizeof *f->items, err);
        f->items = p;
        if (s)
            return s;
        it = &f->items[f->item_count];
        memset(it, 0, sizeof *it);
        it->key = dfcl_strdup(ctx, v->name, err);
        it->data = dfcl_calloc(ctx, (size_t)v->count, sizeof *it->data, err);
        it->ndim = v->ndim;
        memcpy(it->shape, v->shape, sizeof it->shape);
        f->item_count++;
        if (!it->key || !it->data)
            return DFCL_NOMEM;
    }
    memcpy(it->data + offset, got, (size_t)count * sizeof *got);
    return DFCL_OK;
}

static void report(struct dfcl_golden_file *f, const char *name, double worst, double rel, double used) {
    bool ok = used <= 1; /* false for NaN */
    f->checked++;
    f->failed += !ok;
    f->worst = fmax(f->worst, used);
    dfcl_golden_say(f->g, "  %-48s abs %8.2e  rel %8.2e  %s", name, worst, rel, ok ? "ok" : "FAILED");
    if (f->json) {
        cJSON *t = cJSON_CreateObject();
        dfcl_json_add_text(t, "key", name);
        dfcl_json_add_number(t, "abs", isfinite(worst) ? worst : 1e308);
        dfcl_json_add_number(t, "rel", isfinite(rel) ? rel : 1e308);
        dfcl_json_add_number(t, "limit_used", isfinite(used) ? used : 1e308);
        dfcl_json_add_bool(t, "ok", ok);
        dfcl_json_push(cJSON_GetObjectItem(f->json, "tensors"), t);
    }
}

dfcl_status dfcl_golden_judged(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t count, double abs, double rel,
                               double used, dfcl_error *err) {
    const struct dfcl_tensor_view *v = find(f, key, true);
    if (!v || v->count != count)
        return missing(f, key, err);
    dfcl_status s = keep(f, v, got, 0, count, err);
    if (!s)
        report(f, key, abs, rel, used);
    return s;
}

static double share(double value, double limit) {
    return limit > 0 ? (isnan(value) ? INFINITY : value / limit) : 0;
}

dfcl_status dfcl_golden_check_part(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t offset, uint64_t count,
                                   const struct dfcl_limit *limit, dfcl_error *err) {
    const struct dfcl_tensor_view *v = find(f, key, true);
    if (!v)
        return missing(f, key, err);
    if (offset > v->count || count > v->count - offset)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected %llu values, found %llu", f->st->path, key,
                         (unsigned long long)(offset + count), (unsigned long long)v->count);
    dfcl_status s = keep(f, v, got, offset, count, err);
    float *want = NULL;
    if (!s)
        s = read_f32(f, v, &want, err);
    if (s) {
        dfcl_free(f->g->ctx, want);
        return s;
    }
    double diff2 = 0, norm2 = 0, worst = 0, elem = 0;
    for (uint64_t i = 0; i < count; i++) {
        double w = (double)want[offset + i], d = fabs((double)got[i] - w);
        if (isnan(d))
            d = INFINITY;
        diff2 += d * d;
        norm2 += w * w;
        worst = fmax(worst, d);
        if (d > 0)
            elem = fmax(elem, d / fmax(fabs(w), 1e-300));
    }
    dfcl_free(f->g->ctx, want);
    double rel = diff2 > 0 ? sqrt(diff2) / fmax(sqrt(norm2), 1e-300) : 0;
    double used = fmax(fmax(share(rel, limit->rel), share(worst, limit->abs)), share(elem, limit->elem));
    if (limit->exact && worst > 0)
        used = INFINITY;
    char name[96];
    snprintf(name, sizeof name, "%s", key);
    if (count != v->count)
        dfcl_append(name, sizeof name, "[%llu..]", (unsigned long long)offset);
    report(f, name, worst, rel, used);
    return DFCL_OK;
}

dfcl_status dfcl_golden_check(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t count,
                              const struct dfcl_limit *limit, dfcl_error *err) {
    const struct dfcl_tensor_view *v = dfcl_st_find(f->st, key);
    if (v && v->count != count)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected %llu values, found %llu", f->st->path, key, (unsigned long long)count,
                         (unsigned long long)v->count);
    return dfcl_golden_check_part(f, key, got, 0, count, limit, err);
}
