/* Delta files: reading and checking. */
#include "methods/delta.h"
#include "base/json.h"
#include "formats/tensor_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && !strcmp(s + n - k, suffix);
}

static dfcl_status copy_meta(const struct dfcl_delta *d, const char *key, char *out, size_t size, dfcl_error *err) {
    const char *v = dfcl_tensor_file_meta(d->file, key);
    if (v && strlen(v) >= size)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s \"%.60s...\": expected at most %zu bytes", d->path, key, v, size - 1);
    snprintf(out, size, "%s", v ? v : "");
    return DFCL_OK;
}

static dfcl_status read_meta(struct dfcl_delta *d, dfcl_error *err) {
    const char *v;
    dfcl_status s;
    if ((s = copy_meta(d, "method", d->method, sizeof d->method, err)) ||
        (s = copy_meta(d, "gamma_sites", d->gamma_sites, sizeof d->gamma_sites, err)) ||
        (s = copy_meta(d, "gamma_blocks", d->gamma_blocks, sizeof d->gamma_blocks, err)) ||
        (s = copy_meta(d, "base_hash", d->base_hash, sizeof d->base_hash, err)))
        return s;
    if (strlen(d->base_hash) != 64 || strspn(d->base_hash, "0123456789abcdef") != 64)
        return dfcl_fail(err, DFCL_FORMAT, "%s: base_hash \"%s\": expected 64 hex digits", d->path, d->base_hash);
    if ((v = dfcl_tensor_file_meta(d->file, "positional_scale")) && !dfcl_parse_double(v, &d->pos_base))
        return dfcl_fail(err, DFCL_FORMAT, "%s: positional_scale \"%.40s\": expected a number", d->path, v);
    if ((v = dfcl_tensor_file_meta(d->file, "input")) && !dfcl_extent_parse(v, 4096, &d->input, &d->width))
        return dfcl_fail(err, DFCL_FORMAT, "%s: input \"%.40s\": expected a side from 1 to 4096, or width x height (96x64)", d->path, v);
    v = dfcl_tensor_file_meta(d->file, "class_table");
    d->own_classes = v && !strcmp(v, "own");
    if ((s = dfcl_latent_rgb_meta(d->file, &d->rgb, err)))
        return s;
    if ((v = dfcl_tensor_file_meta(d->file, "training")) && !(d->training = dfcl_strdup(d->ctx, v, err)))
        return DFCL_NOMEM;
    if (d->classes >= 0 && (v = dfcl_tensor_file_meta(d->file, "class_names"))) {
        int count;
        s = dfcl_names_parse(d->ctx, v, d->path, &d->class_names, &count, err);
        if (s)
            return s;
        if (count != d->classes) {
            dfcl_names_free(d->ctx, d->class_names, count);
            d->class_names = NULL;
            return dfcl_fail(err, DFCL_FORMAT, "%s: %d class names for %d classes", d->path, count, d->classes);
        }
    }
    return DFCL_OK;
}

dfcl_status dfcl_delta_open(struct dfcl_delta **out, const dfcl_context *ctx, const char *path, dfcl_error *err) {
    *out = NULL;
    struct dfcl_delta *d = dfcl_calloc(ctx, 1, sizeof *d, err);
    if (!d)
        return DFCL_NOMEM;
    d->ctx = ctx;
    d->classes = -1;
    d->pos_base = -1;
    dfcl_status s = DFCL_NOMEM;
    if (!(d->path = dfcl_strdup(ctx, path, err)) || (s = dfcl_tensor_file_open(&d->file, ctx, path, NULL, err)))
        goto out;
    const struct dfcl_tensor_view *table = dfcl_tensor_file_find(d->file, DFCL_CLASS_TABLE);
    if (table && table->ndim == 2 && table->shape[0] >= 1 && table->shape[0] <= 1 << 24)
        d->classes = (int)table->shape[0] - 1;
    const char *format = dfcl_tensor_file_meta(d->file, "format");
    if (format && !strcmp(format, DFCL_DELTA_FORMAT)) {
        s = read_meta(d, err);
    } else if (format && !strncmp(format, "difffit-cl ", 11)) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected \"%s\", found \"%s\"", path, DFCL_DELTA_FORMAT, format);
    } else {
        /* A plain state dict: of use as a delta when it has gammas, or nothing but vectors and a class table. */
        bool gammas = false, weights = false;
        for (size_t i = 0; i < dfcl_tensor_file_count(d->file); i++) {
            const char *name = dfcl_tensor_file_at(d->file, i)->name;
            gammas = gammas || ends_with(name, "gamma1") || ends_with(name, "gamma2");
            weights = weights || (ends_with(name, ".weight") && strcmp(name, DFCL_CLASS_TABLE));
        }
        d->plain = true;
        d->own_classes = true;
        if (!gammas && (weights || !dfcl_tensor_file_count(d->file)))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: not a delta: neither metadata of one nor gamma tensors", path);
        snprintf(d->method, sizeof d->method, "%s", gammas ? "difffit" : "bitfit");
    }
out:
    if (s)
        dfcl_delta_close(&d);
    *out = d;
    return s;
}

void dfcl_delta_close(struct dfcl_delta **pd) {
    struct dfcl_delta *d = *pd;
    if (!d)
        return;
    dfcl_names_free(d->ctx, d->class_names, d->classes);
    dfcl_tensor_file_close(&d->file);
    dfcl_free(d->ctx, d->training);
    dfcl_free(d->ctx, d->path);
    dfcl_free(d->ctx, d);
    *pd = NULL;
}

dfcl_status dfcl_delta_check_base(const struct dfcl_delta *d, const char *base_hash, const char *base_path, bool force, dfcl_error *err) {
    if (!d->base_hash[0] || !strcmp(d->base_hash, base_hash))
        return DFCL_OK;
    if (force) {
        dfcl_log(d->ctx, DFCL_LOG_WARN, "%s was made on another base (%s) than %s (%s); loaded by force", d->path, d->base_hash, base_path,
                 base_hash);
        return DFCL_OK;
    }
    return dfcl_fail(err, DFCL_FORMAT, "%s: made on the base %s, but %s is %s; use the right base, or force it", d->path, d->base_hash,
                     base_path, base_hash);
}

dfcl_status dfcl_delta_check_shapes(const struct dfcl_delta *d, struct dfcl_dit *dit, dfcl_error *err) {
    for (size_t i = 0; i < dfcl_tensor_file_count(d->file); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(d->file, i);
        const struct dfcl_param *p = dfcl_dit_param(dit, v->name);
        if (!p || p->kind == DFCL_PARAM_WEIGHT) {
            bool gamma = ends_with(v->name, "gamma1") || ends_with(v->name, "gamma2");
            if (d->plain && !gamma)
                continue;
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s %s", d->path, v->name,
                             p ? "is a matrix: a fully trained model is a base of its own" : "is no part of this model");
        }
        bool fits = v->ndim == p->ndim && v->shape[p->ndim - 1] == p->shape[p->ndim - 1];
        if (!fits || (p->kind == DFCL_PARAM_TABLE && d->classes < 0)) {
            char want[96], got[96];
            return dfcl_fail(err, DFCL_FORMAT, "%s: %s is %s, this model has %s", d->path, v->name,
                             dfcl_shape_format(v->shape, v->ndim, got, sizeof got),
                             dfcl_shape_format(p->shape, p->ndim, want, sizeof want));
        }
    }
    return DFCL_OK;
}

dfcl_status dfcl_delta_read(const struct dfcl_delta *d, const char *name, float **values, dfcl_error *err) {
    *values = NULL;
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(d->file, name);
    if (!v)
        return DFCL_OK;
    if (!(*values = dfcl_calloc(d->ctx, (size_t)v->count, sizeof **values, err)))
        return DFCL_NOMEM;
    dfcl_status s = dfcl_tensor_file_read_f32(d->file, v, 0, v->count, *values, err);
    for (uint64_t i = 0; !s && i < v->count; i++)
        if (!isfinite((*values)[i]))
            s = dfcl_fail(err, DFCL_NONFINITE, "%s: value %llu of %s is %g, expected a finite number", d->path, (unsigned long long)i, name,
                          (double)(*values)[i]);
    if (s) {
        dfcl_free(d->ctx, *values);
        *values = NULL;
    }
    return s;
}

void dfcl_delta_blend(float *values, const float *base, int64_t count, float s) {
    if (s == 1.0f)
        return;
    for (int64_t i = 0; i < count; i++) {
        float b = base ? base[i] : 1.0f;
        values[i] = b + s * (values[i] - b);
    }
}

bool dfcl_delta_same_matrix(const float *delta, const float *base, int64_t count) {
    double apart = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)delta[i] - (double)base[i];
        apart += d * d;
        norm += (double)base[i] * (double)base[i];
    }
    return apart <= 2e-3 * 2e-3 * norm;
}
