#include "models/model.h"
#include "models/packed.h"
#include "formats/safetensors.h"
#include "base/clock.h"
#include "formats/tensor_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

dfcl_status dfcl_model_shape_named(const char *name, struct dfcl_model_shape *shape, dfcl_error *err) {
    struct dfcl_dit_config cfg;
    if (!name || !dfcl_dit_named(name, &cfg))
        return dfcl_fail(err, DFCL_USAGE, "model size \"%s\": expected DiT-S, DiT-B, DiT-L or DiT-XL with /2, /4 or /8", name ? name : "");
    snprintf(shape->name, sizeof shape->name, "%s", name);
    shape->depth = cfg.depth;
    shape->hidden = cfg.hidden;
    shape->heads = cfg.heads;
    shape->patch = cfg.patch;
    return DFCL_OK;
}

static void fill_shape(struct dfcl_model *m) {
    const struct dfcl_dit_config *c = dfcl_dit_get_config(m->dit);
    struct dfcl_model_shape *sh = &m->shape;
    snprintf(sh->name, sizeof sh->name, "%s", dfcl_dit_name_of(c));
    sh->depth = c->depth;
    sh->hidden = c->hidden;
    sh->heads = c->heads;
    sh->patch = c->patch;
    sh->input = c->input;
    sh->input_width = dfcl_dit_width(c);
    sh->channels = c->channels;
    sh->classes = c->classes;
    sh->positional_scale = c->pos_base;
    int n;
    const struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    for (int i = 0; i < n; i++)
        if (!p[i].gamma)
            sh->parameters += p[i].count;
}

/* ---- opening ---- */

struct loading {
    struct dfcl_model *m;
    const struct dfcl_model_params *params;
    int64_t done, total; /* values */
    double began;
};

static dfcl_status upload(void *user, const struct dfcl_param *p, float *values, dfcl_error *err) {
    struct loading *l = user;
    struct dfcl_model *m = l->m;
    struct dfcl_param *to = dfcl_dit_param(m->dit, p->name);
    dfcl_status s = DFCL_OK;
    if (!to->mapped && !(m->table_rebuilt && p->kind == DFCL_PARAM_TABLE))
        s = dfcl_dit_set(m->dit, to, 0, values, err);
    if (s)
        dfcl_error_prefix(err, "%s", m->base->path);
    l->done += p->count;
    if (!s && l->params->progress)
        l->params->progress(l->params->progress_user, l->done, l->total, dfcl_now() - l->began);
    return s;
}

/* The file's weights in one pass: hash, check, upload. */
static dfcl_status load(struct dfcl_model *m, const struct dfcl_model_params *params, dfcl_error *err) {
    struct loading l = {.m = m, .params = params, .began = dfcl_now()};
    int n;
    const struct dfcl_param *p = dfcl_dit_params(m->base->table, &n);
    for (int i = 0; i < n; i++)
        l.total += p[i].gamma ? 0 : p[i].count;
    dfcl_status s = dfcl_base_stream(m->base, upload, &l, m->hash, err);
    dfcl_dit_set_done(m->dit);
    if (!s)
        dfcl_log(m->ctx, DFCL_LOG_INFO, "%s: %.1f million values read in %.2f s", m->base->path, (double)l.total / 1e6,
                 dfcl_now() - l.began);
    return s;
}

/* What the packed file does not hold: vectors, tables. */
static dfcl_status load_rest(struct dfcl_model *m, const struct dfcl_model_params *params, dfcl_error *err) {
    struct loading l = {.m = m, .params = params, .began = dfcl_now()};
    int n;
    const struct dfcl_param *p = dfcl_dit_params(m->base->table, &n);
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < n; i++)
        l.total += p[i].gamma || dfcl_dit_param(m->dit, p[i].name)->mapped ? 0 : p[i].count;
    for (int i = 0; i < n && !s; i++) {
        float *values;
        if (p[i].gamma || dfcl_dit_param(m->dit, p[i].name)->mapped)
            continue;
        if (!(s = dfcl_base_read(m->base, p[i].name, &values, err)))
            s = upload(&l, &p[i], values, err);
        dfcl_free(m->ctx, values);
    }
    dfcl_dit_set_done(m->dit);
    if (!s && !dfcl_packed_base_is_same(m->packed))
        s = dfcl_fail(err, DFCL_IO, "%s: changed while it was read", m->base->path);
    if (!s)
        dfcl_log(m->ctx, DFCL_LOG_INFO, "%s: packed weights found, the rest read in %.2f s", m->base->path, dfcl_now() - l.began);
    return s;
}

/* From the packed file where there is one, else from the base's, which may be kept packed. */
static dfcl_status load_any(struct dfcl_model *m, const struct dfcl_model_params *params, dfcl_error *err) {
    if (m->packed && m->hash[0])
        return load_rest(m, params, err);
    dfcl_status s = load(m, params, err);
    if (!s && m->packed)
        dfcl_packed_store(m->packed, m->dit, m->hash);
    return s;
}

/* Frozen matrices that lie in the file as they are wanted are not copied. */
static dfcl_status map_weights(struct dfcl_model *m, bool *mapped, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < n && !s; i++) {
        const void *at = NULL;
        if (p[i].kind == DFCL_PARAM_WEIGHT && !p[i].trained && !(s = dfcl_base_in_place(m->base, &p[i], m->weights, &at, err)) && at)
            s = dfcl_dit_map_weight(m->dit, &p[i], at, DFCL_ROW_MAJOR, err);
        *mapped = *mapped || p[i].mapped;
    }
    return s;
}

static dfcl_status check_weight_type(struct dfcl_model *m, dfcl_error *err) {
    int n;
    const struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    for (int i = 0; i < n; i++)
        if (m->weights == DFCL_F32 || (p[i].kind == DFCL_PARAM_WEIGHT && !p[i].trained))
            return DFCL_OK;
    return dfcl_fail(err, DFCL_USAGE, "weights of type %s: expected f32, since every matrix is trained and trained values are f32",
                     dfcl_weight_type_name(m->weights == DFCL_F16 ? DFCL_WEIGHTS_F16 : DFCL_WEIGHTS_BF16));
}

const char *dfcl_weight_type_name(enum dfcl_weight_type type) {
    static const char *const names[] = {"f32", "bf16", "f16"};
    return (unsigned)type < DFCL_COUNT(names) ? names[type] : "?";
}

bool dfcl_keeps_bf16(const struct dfcl_model_params *p) {
    return p->activations == DFCL_ACTIVATIONS_BF16 || (p->activations == DFCL_ACTIVATIONS_AUTO && p->weights == DFCL_WEIGHTS_BF16);
}

dfcl_status dfcl_model_open_base(dfcl_model **out, dfcl_device *dev, struct dfcl_base *base, const struct dfcl_model_params *params,
                                 const struct dfcl_model_setup *setup, dfcl_error *err) {
    const dfcl_context *ctx = dev->ctx;
    static const enum dfcl_dtype types[] = {[DFCL_WEIGHTS_F32] = DFCL_F32, [DFCL_WEIGHTS_BF16] = DFCL_BF16, [DFCL_WEIGHTS_F16] = DFCL_F16};
    dfcl_status s = DFCL_NOMEM;
    bool mapped = false;
    *out = NULL;
    struct dfcl_model *m = dfcl_calloc(ctx, 1, sizeof *m, err);
    if (!m) {
        dfcl_base_close(&base);
        return DFCL_NOMEM;
    }
    m->ctx = ctx;
    m->dev = dev;
    m->base = base;
    m->rgb = base->rgb;
    struct dfcl_dit_config cfg = base->cfg;
    if ((unsigned)params->weights >= DFCL_COUNT(types) || (unsigned)params->pack > DFCL_PACK_CACHE ||
        (unsigned)params->activations > DFCL_ACTIVATIONS_BF16) {
        s = dfcl_fail(err, DFCL_USAGE, "model: weights of type %d, packing %d, activations of type %d", (int)params->weights, (int)params->pack,
                      (int)params->activations);
        goto out;
    }
    if (params->pack == DFCL_PACK_CACHE && base->random) {
        s = dfcl_fail(err, DFCL_USAGE, "model: a random base has no file whose packed weights could be kept");
        goto out;
    }
    m->weights = types[params->weights];
    struct dfcl_dit_options opt = {.domains = 1, .pack = params->pack != DFCL_PACK_NEVER, .weights = m->weights,
                                   .keep_bf16 = dfcl_keeps_bf16(params)};
    char *const *names = base->class_names;
    if (setup->classes > 0) {
        cfg.classes = setup->classes;
        names = (char *const *)setup->class_names;
        m->table_rebuilt = true;
    }
    if (!setup->training) {
        if (params->max_domains < 0 || params->max_domains > 4096 || params->max_class_rows < 0 || params->max_class_rows > 1 << 24) {
            s = dfcl_fail(err, DFCL_USAGE, "model: room for %d domains and %d class rows", params->max_domains, params->max_class_rows);
            goto out;
        }
        opt.domains = 1 + (params->max_domains ? params->max_domains : 1);
        opt.class_rows = cfg.classes + 1 + (params->max_class_rows ? params->max_class_rows : 4096);
    }
    m->domain_count = opt.domains;
    m->class_rows = opt.class_rows ? opt.class_rows : cfg.classes + 1;
    if (!(m->domains = dfcl_calloc(ctx, (size_t)m->domain_count, sizeof *m->domains, err)))
        goto out;
    m->domains[0] = (struct dfcl_domain){.used = true, .strength = 1, .classes = cfg.classes};
    if ((s = dfcl_names_copy(ctx, (const char *const *)names, cfg.classes, &m->domains[0].names, err)) ||
        (s = dfcl_dit_create(&m->dit, dev, &cfg, &opt, err)))
        goto out;
    if (setup->select && (s = setup->select(setup->user, m->dit, err)))
        goto out;
    if ((s = check_weight_type(m, err)) || (!opt.pack && (s = map_weights(m, &mapped, err))) ||
        (params->pack == DFCL_PACK_CACHE && (s = dfcl_packed_open(&m->packed, m->dit, base, params->which, m->hash, err))) ||
        (s = dfcl_dit_alloc_params(m->dit, err)) || (base->positions && (s = dfcl_dit_set_positions(m->dit, base->positions, err))) ||
        (s = load_any(m, params, err)))
        goto out;
    if (!mapped)
        dfcl_tensor_file_close(&base->file);
    fill_shape(m);
    *out = m;
    m = NULL;
out:
    dfcl_model_close(&m);
    return s;
}

dfcl_status dfcl_model_open(dfcl_model **out, dfcl_device *dev, const struct dfcl_model_params *params, dfcl_error *err) {
    struct dfcl_base *base;
    *out = NULL;
    dfcl_status s = dfcl_base_open(&base, dev->ctx, params, err);
    return s ? s : dfcl_model_open_base(out, dev, base, params, &(struct dfcl_model_setup){0}, err);
}

static void drop_domain(struct dfcl_model *m, struct dfcl_domain *d) {
    dfcl_names_free(m->ctx, d->names, d->classes);
    dfcl_free(m->ctx, d->path);
    memset(d, 0, sizeof *d);
}

void dfcl_model_close(dfcl_model **pm) {
    if (!pm || !*pm)
        return;
    struct dfcl_model *m = *pm;
    for (int i = 0; m->domains && i < m->domain_count; i++)
        drop_domain(m, &m->domains[i]);
    dfcl_free(m->ctx, m->domains);
    dfcl_dit_destroy(&m->dit);
    dfcl_packed_close(&m->packed);
    dfcl_base_close(&m->base);
    dfcl_free(m->ctx, m);
    *pm = NULL;
}

const struct dfcl_model_shape *dfcl_model_get_shape(const dfcl_model *m) {
    return &m->shape;
}
const char *dfcl_model_hash(const dfcl_model *m) {
    return m->hash;
}
struct dfcl_dit *dfcl_model_dit(dfcl_model *m) {
    return m->dit;
}
struct dfcl_device *dfcl_model_device(dfcl_model *m) {
    return m->dev;
}

/* ---- domains and classes ---- */

static const struct dfcl_domain *domain_at(const dfcl_model *m, int domain) {
    return domain >= 0 && domain < m->domain_count && m->domains[domain].used ? &m->domains[domain] : NULL;
}

dfcl_status dfcl_model_row(const dfcl_model *m, int domain, int class_id, int32_t *row, dfcl_error *err) {
    const struct dfcl_domain *d = domain_at(m, domain);
    if (!d)
        return dfcl_fail(err, DFCL_USAGE, "domain %d: not loaded", domain);
    if (class_id < 0 || class_id > d->classes)
        return dfcl_fail(err, DFCL_USAGE, "class %d: domain %d has classes 0 to %d (%d is the null class)", class_id, domain,
                         d->classes - 1, d->classes);
    *row = d->first_row + class_id;
    return DFCL_OK;
}

dfcl_status dfcl_model_take_domain(dfcl_model *m, int rows, int *domain, dfcl_error *err) {
    int slot = 1, first = 0;
    while (slot < m->domain_count && m->domains[slot].used)
        slot++;
    if (slot >= m->domain_count)
        return dfcl_fail(err, DFCL_NOMEM, "domains: room for %d beside the base, all taken", m->domain_count - 1);
    /* first fit: move past every domain that overlaps until none does */
    for (bool moved = true; moved && rows;) {
        moved = false;
        for (int i = 0; i < m->domain_count; i++) {
            const struct dfcl_domain *d = &m->domains[i];
            if (d->used && first < d->first_row + d->classes + 1 && d->first_row < first + rows) {
                first = d->first_row + d->classes + 1;
                moved = true;
            }
        }
    }
    if (rows > m->class_rows - first)
        return dfcl_fail(err, DFCL_NOMEM, "domains: %d class rows wanted, the pool of %d has no such gap", rows, m->class_rows);
    m->domains[slot] = (struct dfcl_domain){.used = true, .strength = 1, .classes = DFCL_MAX(rows - 1, 0), .first_row = first};
    *domain = slot;
    return DFCL_OK;
}

dfcl_status dfcl_model_unload_delta(dfcl_model *m, int domain, dfcl_error *err) {
    if (domain == 0 || !domain_at(m, domain))
        return dfcl_fail(err, DFCL_USAGE, "domain %d: %s", domain, domain ? "not loaded" : "the base cannot be unloaded");
    drop_domain(m, &m->domains[domain]);
    return DFCL_OK;
}

int dfcl_model_classes(const dfcl_model *m, int domain) {
    const struct dfcl_domain *d = domain_at(m, domain);
    return d ? d->classes : 0;
}

const char *dfcl_model_class_name(const dfcl_model *m, int domain, int id) {
    const struct dfcl_domain *d = domain_at(m, domain);
    if (!d || id < 0 || id >= d->classes)
        return NULL;
    return d->names ? d->names[id] : "";
}

dfcl_status dfcl_model_find_class(const dfcl_model *m, int domain, const char *text, int *id, dfcl_error *err) {
    const struct dfcl_domain *d = domain_at(m, domain);
    if (!d)
        return dfcl_fail(err, DFCL_USAGE, "domain %d: not loaded", domain);
    for (int i = 0; d->names && i < d->classes; i++)
        if (!strcmp(d->names[i], text)) {
            *id = i;
            return DFCL_OK;
        }
    char *end;
    long n = strtol(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && n >= 0 && n < d->classes) {
        *id = (int)n;
        return DFCL_OK;
    }
    char known[600] = "";
    for (int i = 0; d->names && i < d->classes; i++)
        if (!dfcl_append(known, sizeof known - 8, "%s%s", i ? ", " : "; known names: ", d->names[i])) {
            dfcl_append(known, sizeof known, ", ...");
            break;
        }
    return dfcl_fail(err, DFCL_USAGE, "class \"%s\": expected a number from 0 to %d%s%s", text, d->classes - 1,
                     d->names ? " or a name" : "", known);
}

/* ---- saving ---- */

dfcl_status dfcl_model_save(dfcl_model *m, const char *path, struct dfcl_ref values, enum dfcl_dtype dtype, dfcl_error *err) {
    struct dfcl_st_writer *w = NULL;
    struct dfcl_param **p = NULL;
    float *buf = NULL;
    int n;
    int64_t most = 1;
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(m->dit);
    dfcl_status s = dfcl_base_order(m->dit, &p, &n, err);
    if (s)
        return s;
    for (int i = 0; i < n; i++)
        most = DFCL_MAX(most, p[i]->count);
    if (!(buf = dfcl_calloc(m->ctx, (size_t)most, sizeof *buf, err))) {
        s = DFCL_NOMEM;
        goto out;
    }
    if ((s = dfcl_st_writer_create(&w, m->ctx, path, err)) ||
        (s = dfcl_base_declare(w, m->dit, cfg, (const char *const *)m->domains[0].names, dtype, err)) ||
        (s = dfcl_latent_rgb_write(w, m->ctx, &m->rgb, err)) ||
        (s = dfcl_base_write_positions(w, m->ctx, cfg, m->base->positions, err)))
        goto out;
    for (int i = 0; i < n; i++) {
        if (p[i]->trained && values.mem)
            s = dfcl_read(m->dev, buf, dfcl_ref_at(values, (uint64_t)p[i]->trained_off * 4), (uint64_t)p[i]->count * 4, err);
        else if (p[i]->kind == DFCL_PARAM_TABLE)
            s = dfcl_dit_get_rows(m->dit, 0, cfg->classes + 1, buf, err);
        else
            s = dfcl_dit_get(m->dit, p[i], 0, buf, err);
        if (s || (s = dfcl_st_writer_f32(w, buf, (size_t)p[i]->count, err)))
            goto out;
    }
    s = dfcl_st_writer_finish(&w, err);
out:
    dfcl_st_writer_destroy(&w);
    dfcl_free(m->ctx, buf);
    dfcl_free(m->ctx, p);
    return s;
}
