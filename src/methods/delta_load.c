/* A delta, or a blend of several, as a new domain of a model on a device. */
#include "formats/tensor_file.h"
#include "methods/delta.h"

#include <stdio.h>
#include <string.h>

/* A plain state dict has no hash, but often the frozen matrices themselves: they must be the base's, rounded as the
 * model holds them. */
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
        if (!s && same && !p->trained &&
            dfcl_from_f32(m->weights, got, want, (size_t)p->count)) /* `want` lends its room */
            dfcl_to_f32(m->weights, want, got, (size_t)p->count);
        if (!s && same && !(s = dfcl_dit_get(m->dit, p, 0, want, err)))
            same = dfcl_delta_same_matrix(got, want, p->count);
        dfcl_free(m->ctx, got);
        dfcl_free(m->ctx, want);
        if (s)
            return s;
        if (!same && !force)
            return dfcl_fail(err, DFCL_FORMAT,
                             "%s: %s differs from the base %s: made on another base; use the right one, or force it",
                             d->path, name, m->base->path);
        if (!same) {
            dfcl_log(m->ctx, DFCL_LOG_WARN, "%s: %s differs from the base; loaded by force", d->path, name);
            return DFCL_OK;
        }
    }
    return DFCL_OK;
}

/* Deltas that make one domain. */
struct blend {
    struct dfcl_delta **d;
    const struct dfcl_delta_part *part;
    int n;
    const struct dfcl_delta *table; /* the first with a class table, or NULL */
};

/* to = base + the sum of strength (value - base); a single delta's is exact at strength 1. to may be base. */
static void add_part(const struct blend *b, int i, float *to, float *value, const float *base, int64_t count) {
    float s = b->part[i].strength;
    if (b->n == 1) {
        dfcl_delta_blend(value, base, count, s);
        memcpy(to, value, (size_t)count * sizeof *to);
        return;
    }
    for (int64_t k = 0; k < count; k++)
        to[k] += s * (value[k] - base[k]);
}

/* Vectors: the deltas' at their strengths, the base's where they have none; a gamma that none has is 1. */
static dfcl_status load_vectors(struct dfcl_model *m, const struct blend *b, int domain, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].kind != DFCL_PARAM_VEC)
            continue;
        float *base = dfcl_calloc(m->ctx, (size_t)p[i].count, 2 * sizeof *base, err),
              *to = base ? base + p[i].count : NULL;
        dfcl_status s = base ? DFCL_OK : DFCL_NOMEM;
        if (!s && p[i].gamma)
            for (int64_t k = 0; k < p[i].count; k++)
                base[k] = 1.0f;
        else if (!s)
            s = dfcl_dit_get(m->dit, &p[i], 0, base, err);
        if (!s)
            memcpy(to, base, (size_t)p[i].count * sizeof *to);
        for (int j = 0; j < b->n && !s; j++) {
            float *value = NULL;
            s = dfcl_delta_read(b->d[j], p[i].name, &value, err);
            if (!s && value) {
                p[i].present = true;
                add_part(b, j, to, value, base, p[i].count);
            }
            dfcl_free(m->ctx, value);
        }
        if (!s)
            s = dfcl_dit_set(m->dit, &p[i], domain, to, err);
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

/* Rows that the base has are blended about them, others averaged. */
static dfcl_status load_table(struct dfcl_model *m, const struct blend *b, int domain, dfcl_error *err) {
    int width = dfcl_dit_get_config(m->dit)->hidden, classes = b->table->classes;
    size_t row = (size_t)width, count = ((size_t)classes + 1) * row;
    float sum = 0;
    bool average = false;
    float *base = dfcl_calloc(m->ctx, count, 2 * sizeof *base, err), *to = base ? base + count : NULL, *rows = NULL;
    dfcl_status s = base ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; i <= classes && !s; i++) {
        int from = base_row(m, b->table, i);
        average = average || from < 0;
        if (from >= 0)
            s = dfcl_dit_get_rows(m->dit, from, 1, base + (size_t)i * row, err);
    }
    for (int j = 0; j < b->n; j++)
        sum += b->d[j]->classes >= 0 ? b->part[j].strength : 0;
    if (!s && average && sum == 0 && b->n > 1)
        s = dfcl_fail(err, DFCL_USAGE,
                      "%s: class rows that the base lacks are averaged by strength, but the strengths add up to 0",
                      b->part[0].path);
    if (!s)
        memcpy(to, base, count * sizeof *to);
    for (int j = 0; j < b->n && !s; j++) {
        if (b->d[j]->classes < 0 || (s = dfcl_delta_read(b->d[j], DFCL_CLASS_TABLE, &rows, err)))
            continue;
        for (int i = 0; i <= classes; i++) {
            size_t at = (size_t)i * row;
            if (base_row(m, b->table, i) >= 0)
                add_part(b, j, to + at, rows + at, base + at, width);
            else
                for (size_t k = 0; k < row; k++)
                    to[at + k] += (b->n == 1 ? 1.0f : b->part[j].strength / sum) * rows[at + k];
        }
        dfcl_free(m->ctx, rows);
        rows = NULL;
    }
    if (!s)
        s = dfcl_dit_set_rows(m->dit, m->domains[domain].first_row, classes + 1, to, err);
    dfcl_free(m->ctx, base);
    return s;
}

/* Tables that meet in a blend must be of the same classes. */
static dfcl_status check_tables(struct blend *b, dfcl_error *err) {
    for (int j = 0; j < b->n; j++) {
        const struct dfcl_delta *d = b->d[j], *t = b->table;
        if (d->classes < 0)
            continue;
        if (!t) {
            b->table = d;
            continue;
        }
        bool same = d->classes == t->classes && d->own_classes == t->own_classes &&
                    (!d->class_names == !t->class_names) && (d->class_names || !d->own_classes);
        for (int i = 0; same && d->class_names && i < d->classes; i++)
            same = !strcmp(d->class_names[i], t->class_names[i]);
        if (!same)
            return dfcl_fail(
                err, DFCL_FORMAT,
                "%s: its classes are not, by name and order, those of %s: only deltas of the same classes blend",
                d->path, t->path);
    }
    for (int j = 0; j < b->n; j++) /* without a table: the base's classes */
        if (b->table && b->table->own_classes && b->d[j]->classes < 0)
            return dfcl_fail(err, DFCL_FORMAT,
                             "%s: has the base's classes, %s its own: only deltas of the same classes blend",
                             b->d[j]->path, b->table->path);
    return DFCL_OK;
}

dfcl_status dfcl_delta_resolution(const dfcl_context *ctx, const char *const *paths, int count,
                                  struct dfcl_model_params *params, dfcl_error *err) {
    const char *first = NULL;
    int input = 0, width = 0;
    double scale = 0;
    char here[DFCL_EXTENT_TEXT], there[DFCL_EXTENT_TEXT];
    for (int i = 0; i < count; i++) {
        struct dfcl_delta *d;
        dfcl_status s = dfcl_delta_open(&d, ctx, paths[i], err);
        if (s)
            return s;
        double of = d->pos_base;
        if (d->input && first && (d->input != input || d->width != width || DFCL_MAX(of, 0) != DFCL_MAX(scale, 0)))
            s = dfcl_fail(err, DFCL_FORMAT,
                          "%s: trained at side %s (positional scale %g), %s at side %s (%g): pictures of both cannot be drawn together", paths[i],
                          dfcl_extent_format(d->input, d->width, here), DFCL_MAX(of, 0), first, dfcl_extent_format(input, width, there), DFCL_MAX(scale, 0));
        if (d->input && !first) {
            first = paths[i];
            input = d->input;
            width = d->width;
            scale = of;
        }
        dfcl_delta_close(&d);
        if (s)
            return s;
    }
    if (first) {
        params->input = input;
        params->input_width = width;
        params->positional_scale = DFCL_MAX(scale, 0);
        if (scale == 0) /* not scaled, which at another resolution than the file's has to be said */
            params->pos_step = 1;
    }
    return DFCL_OK;
}

static dfcl_status check(struct dfcl_model *m, const struct dfcl_delta *d, bool force, dfcl_error *err) {
    const struct dfcl_dit_config *c = dfcl_dit_get_config(m->dit);
    dfcl_status s;
    if ((s = dfcl_delta_check_base(d, m->hash, m->base->path, force, err)) ||
        (s = dfcl_delta_check_shapes(d, m->dit, err)) || (d->plain && (s = check_plain(m, d, force, err))))
        return s;
    if (!d->own_classes && d->classes >= 0 && d->classes != m->domains[0].classes)
        return dfcl_fail(err, DFCL_FORMAT, "%s: a class table of %d classes, the base has %d", d->path, d->classes,
                         m->domains[0].classes);
    char here[DFCL_EXTENT_TEXT], there[DFCL_EXTENT_TEXT];
    if (d->input && (d->input != c->input || d->width != dfcl_dit_width(c) || d->pos_base != c->pos_base))
        dfcl_log(m->ctx, DFCL_LOG_WARN, "%s: trained at side %s (positional scale %g), used at side %s (%g)", d->path,
                 dfcl_extent_format(d->input, d->width, here), d->pos_base, dfcl_extent_format(c->input, dfcl_dit_width(c), there), c->pos_base);
    return DFCL_OK;
}

dfcl_status dfcl_model_load_blend(dfcl_model *m, const struct dfcl_delta_part *parts, int count, int force, int *domain,
                                  dfcl_error *err) {
    int slot = 0;
    *domain = 0;
    if (count < 1)
        return dfcl_fail(err, DFCL_USAGE, "a blend of %d deltas, expected 1 or more", count);
    for (int i = 0; i < count; i++)
        if (!(parts[i].strength >= -100.0f && parts[i].strength <= 100.0f))
            return dfcl_fail(err, DFCL_USAGE, "%s: strength %g, expected a number near 0 to 1", parts[i].path,
                             (double)parts[i].strength);
    struct blend b = {.part = parts, .n = count};
    dfcl_status s = DFCL_NOMEM;
    if (!(b.d = dfcl_calloc(m->ctx, (size_t)count, sizeof *b.d, err)))
        return DFCL_NOMEM;
    for (int i = 0; i < count; i++)
        if ((s = dfcl_delta_open(&b.d[i], m->ctx, parts[i].path, err)) || (s = check(m, b.d[i], force, err)))
            goto out;
    if ((s = check_tables(&b, err)) || (s = dfcl_model_take_domain(m, b.table ? b.table->classes + 1 : 0, &slot, err)))
        goto out;
    struct dfcl_domain *dom = &m->domains[slot];
    dom->strength = parts[0].strength;
    char *const *names = b.table ? b.table->class_names : NULL;
    if (!b.table || (!b.table->own_classes && !names))
        names = m->domains[0].names;
    if (!b.table) { /* shares the base's rows */
        dom->classes = m->domains[0].classes;
        dom->first_row = m->domains[0].first_row;
    }
    if (!(dom->path = dfcl_strdup(m->ctx, parts[0].path, err)))
        s = DFCL_NOMEM;
    if (!s && !(s = dfcl_names_copy(m->ctx, (const char *const *)names, dom->classes, &dom->names, err)) &&
        !(s = load_vectors(m, &b, slot, err)) && b.table)
        s = load_table(m, &b, slot, err);
    if (s)
        dfcl_model_unload_delta(m, slot, NULL);
    else
        *domain = slot;
out:
    for (int i = 0; i < count; i++)
        dfcl_delta_close(&b.d[i]);
    dfcl_free(m->ctx, b.d);
    return s;
}

dfcl_status dfcl_model_load_delta(dfcl_model *m, const char *path, float strength, int force, int *domain,
                                  dfcl_error *err) {
    return dfcl_model_load_blend(m, &(struct dfcl_delta_part){path, strength}, 1, force, domain, err);
}
