/* A delta as a new domain of a model on a device. */
#include "formats/tensor_file.h"
#include "methods/delta.h"

#include <stdio.h>
#include <string.h>

/* A plain state dict has no hash, but often the frozen matrices themselves: they must be the base's. */
static dfcl_status check_plain(struct dfcl_model *m, const struct dfcl_delta *d, bool force, dfcl_error *err) {
    int depth = dfcl_dit_get_config(m->dit)->depth;
    for (int i = 0; i < depth; i += DFCL_MAX(depth - 1, 1)) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.attn.qkv.weight", i);
        const struct dfcl_param *p = dfcl_dit_param(m->dit, name);
        float *got = NULL, *want = NULL;
        dfcl_status s = dfcl_delta_read(d, name, &got, err);
        if (s || !got)
            return s;
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(d->file, name);
        bool same = (int64_t)v->count == p->count;
        if (!(want = dfcl_calloc(m->ctx, (size_t)p->count, sizeof *want, err)))
            s = DFCL_NOMEM;
        if (!s && same && !(s = dfcl_dit_get(m->dit, p, 0, want, err)))
            same = !memcmp(got, want, (size_t)p->count * sizeof *got);
        dfcl_free(m->ctx, got);
        dfcl_free(m->ctx, want);
        if (s)
            return s;
        if (!same && !force)
            return dfcl_fail(err, DFCL_FORMAT, "%s: %s differs from the base %s: made on another base; use the right one, or force it",
                             d->path, name, m->base->path);
        if (!same) {
            dfcl_log(m->ctx, DFCL_LOG_WARN, "%s: %s differs from the base; loaded by force", d->path, name);
            return DFCL_OK;
        }
    }
    return DFCL_OK;
}

/* Vectors: the delta's at the given strength, the base's where it has none; a gamma it does not have is 1. */
static dfcl_status load_vectors(struct dfcl_model *m, const struct dfcl_delta *d, int domain, float strength, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].kind != DFCL_PARAM_VEC)
            continue;
        float *value = NULL, *base = NULL;
        dfcl_status s = dfcl_delta_read(d, p[i].name, &value, err);
        bool own = value != NULL;
        if (!s && !(base = dfcl_calloc(m->ctx, (size_t)p[i].count, sizeof *base, err)))
            s = DFCL_NOMEM;
        if (!s && p[i].gamma) {
            for (int64_t k = 0; k < p[i].count; k++)
                base[k] = 1.0f;
            p[i].present = p[i].present || own;
        } else if (!s) {
            s = dfcl_dit_get(m->dit, &p[i], 0, base, err);
        }
        if (!s && own)
            dfcl_delta_blend(value, base, p[i].count, strength);
        if (!s)
            s = dfcl_dit_set(m->dit, &p[i], domain, own ? value : base, err);
        dfcl_free(m->ctx, value);
        dfcl_free(m->ctx, base);
        if (s)
            return s;
    }
    return DFCL_OK;
}

/* Row of the base's table that row i of the delta's stands for, -1: none. */
static int base_row(const struct dfcl_model *m, const struct dfcl_delta *d, int i) {
    const struct dfcl_domain *b = &m->domains[0];
    if (i == d->classes)
        return b->classes; /* null and null */
    if (!d->own_classes)
        return i < b->classes ? i : -1;
    for (int k = 0; d->class_names && b->names && k < b->classes; k++)
        if (!strcmp(b->names[k], d->class_names[i]))
            return k;
    return -1;
}

static dfcl_status load_table(struct dfcl_model *m, const struct dfcl_delta *d, int domain, float strength, dfcl_error *err) {
    int width = dfcl_dit_get_config(m->dit)->hidden;
    float *rows = NULL, *base = NULL;
    dfcl_status s = dfcl_delta_read(d, DFCL_CLASS_TABLE, &rows, err);
    if (!s && strength != 1.0f && !(base = dfcl_calloc(m->ctx, (size_t)width, sizeof *base, err)))
        s = DFCL_NOMEM;
    for (int i = 0; !s && base && i <= d->classes; i++) {
        int from = base_row(m, d, i);
        if (from >= 0 && !(s = dfcl_dit_get_rows(m->dit, from, 1, base, err)))
            dfcl_delta_blend(rows + (size_t)i * (size_t)width, base, width, strength);
    }
    if (!s)
        s = dfcl_dit_set_rows(m->dit, m->domains[domain].first_row, d->classes + 1, rows, err);
    dfcl_free(m->ctx, rows);
    dfcl_free(m->ctx, base);
    return s;
}

dfcl_status dfcl_model_load_delta(dfcl_model *m, const char *path, float strength, int force, int *domain, dfcl_error *err) {
    struct dfcl_delta *d = NULL;
    int slot = 0;
    *domain = 0;
    if (!(strength >= -100.0f && strength <= 100.0f))
        return dfcl_fail(err, DFCL_USAGE, "%s: strength %g, expected a number near 0 to 1", path, (double)strength);
    dfcl_status s = dfcl_delta_open(&d, m->ctx, path, err);
    if (s)
        return s;
    if ((s = dfcl_delta_check_base(d, m->hash, m->base->path, force, err)) || (s = dfcl_delta_check_shapes(d, m->dit, err)) ||
        (d->plain && (s = check_plain(m, d, force, err))))
        goto out;
    const struct dfcl_dit_config *c = dfcl_dit_get_config(m->dit);
    if (d->input && (d->input != c->input || d->pos_base != c->pos_base))
        dfcl_log(m->ctx, DFCL_LOG_WARN, "%s: trained at side %d (positional scale %g), used at side %d (%g)", path, d->input, d->pos_base,
                 c->input, c->pos_base);
    if ((s = dfcl_model_take_domain(m, d->classes >= 0 ? d->classes + 1 : 0, &slot, err)))
        goto out;
    struct dfcl_domain *dom = &m->domains[slot];
    dom->strength = strength;
    char *const *names = d->class_names;
    if (d->classes < 0 || (!d->own_classes && !names))
        names = m->domains[0].names;
    if (d->classes < 0) { /* shares the base's rows */
        dom->classes = m->domains[0].classes;
        dom->first_row = m->domains[0].first_row;
    }
    if (!d->own_classes && d->classes >= 0 && d->classes != m->domains[0].classes)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: a class table of %d classes, the base has %d", path, d->classes, m->domains[0].classes);
    if (!s && !(dom->path = dfcl_strdup(m->ctx, path, err)))
        s = DFCL_NOMEM;
    if (!s && !(s = dfcl_names_copy(m->ctx, (const char *const *)names, dom->classes, &dom->names, err)) &&
        !(s = load_vectors(m, d, slot, strength, err)) && d->classes >= 0)
        s = load_table(m, d, slot, strength, err);
    if (s)
        dfcl_model_unload_delta(m, slot, NULL);
    else
        *domain = slot;
out:
    dfcl_delta_close(&d);
    return s;
}
