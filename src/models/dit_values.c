/* Values of the parameters, to the device and back. A frozen matrix may be held in 16 bits, and in panels: rows then go
 * through a stage on the device, from which the device itself packs, so that a second copy of a whole weight is never
 * anywhere. */
#include "models/dit_internal.h"

#include "formats/tensor_view.h"

#include <math.h>
#include <string.h>

enum { PIECE = 2 << 20 }; /* elements converted or staged at a time */

static dfcl_status repack(struct dfcl_dit *dit, const struct dit_linear *l, dfcl_error *err) {
    struct dfcl_exec ex = {.dev = dit->dev};
    struct dfcl_pack p = {.w = l->weight};
    return dfcl_run(&ex, &dfcl_op_pack, &p, err);
}

/* Values [first, first + n) in the storage type: `values` itself, or rounded into buf. */
static dfcl_status round_values(const struct dfcl_param *p, enum dfcl_dtype dtype, const float *values, int64_t first,
                                int64_t n, void *buf, const void **out, dfcl_error *err) {
    *out = values + first;
    if (dtype == DFCL_F32)
        return DFCL_OK;
    int beyond = 0;
    for (int64_t i = first; dtype == DFCL_F16 && i < first + n; i++)
        beyond |= !(fabsf(values[i]) < 65520.0f); /* from here on the nearest f16 is infinite */
    for (int64_t i = first; beyond && i < first + n; i++)
        if (!(fabsf(values[i]) < 65520.0f))
            return dfcl_fail(err, DFCL_NONFINITE,
                             "value %lld of %s is %g, f16 ends at 65504: hold the weights as bf16 or f32 instead",
                             (long long)i, p->name, (double)values[i]);
    dfcl_from_f32(dtype, values + first, buf, (size_t)n);
    *out = buf;
    return DFCL_OK;
}

static dfcl_status write_rows(struct dfcl_dit *dit, const struct dit_linear *l, const float *values, void *buf,
                              dfcl_error *err) {
    const struct dfcl_weight *w = &l->weight;
    dfcl_status s = DFCL_OK;
    for (int64_t at = 0; at < l->w->count && !s; at += PIECE) {
        int64_t n = DFCL_MIN(PIECE, l->w->count - at);
        const void *src;
        if (!(s = round_values(l->w, w->dtype, values, at, n, buf, &src, err)))
            s = dfcl_write(dit->dev, dfcl_ref_at(w->data, (uint64_t)at * dfcl_dtype_size(w->dtype)), src,
                           (uint64_t)n * dfcl_dtype_size(w->dtype), err);
    }
    return s;
}

/* Rows of a stage: whole panels, about a piece. */
static int stage_rows(int64_t K) {
    return DFCL_PANEL * (int)DFCL_MAX(PIECE / (DFCL_PANEL * K), 1);
}

static dfcl_status write_packed(struct dfcl_dit *dit, const struct dit_linear *l, const float *values, void *buf,
                                dfcl_error *err) {
    const struct dfcl_weight *w = &l->weight;
    struct dfcl_exec ex = {.dev = dit->dev};
    uint64_t row = (uint64_t)w->K * dfcl_dtype_size(w->dtype), need = 0;
    if (!dit->stage) { /* room for every matrix at once: the largest comes soon enough */
        struct dit_linear *o;
        for (int i = 0; (o = dit_linear_at(dit, i)); i++)
            need = DFCL_MAX(need, (uint64_t)stage_rows(o->weight.K) * (uint64_t)o->weight.K *
                                      dfcl_dtype_size(o->weight.dtype));
        dfcl_status s = dfcl_mem_create(dit->dev, need, "weights being packed", &dit->stage, err);
        if (s)
            return s;
    }
    dfcl_status s = DFCL_OK;
    for (int n0 = 0, step = stage_rows(w->K); n0 < w->N && !s; n0 += step) {
        struct dfcl_pack p = {.w = {.N = DFCL_MIN(step, w->N - n0),
                                    .K = w->K,
                                    .dtype = w->dtype,
                                    .data = {dit->stage, 0},
                                    .packed = dfcl_ref_at(w->packed, (uint64_t)n0 * row),
                                    .layout = w->layout}};
        const void *src;
        if (!(s = round_values(l->w, w->dtype, values, (int64_t)n0 * w->K, (int64_t)p.w.N * w->K, buf, &src, err)) &&
            !(s = dfcl_write(dit->dev, p.w.data, src, (uint64_t)p.w.N * row, err)) &&
            !(s = dfcl_run(&ex, &dfcl_op_pack, &p, err)))
            s = dfcl_flush(dit->dev, err);
    }
    return s;
}

void dfcl_dit_set_done(struct dfcl_dit *dit) {
    if (dit->dev)
        dfcl_mem_destroy(dit->dev, &dit->stage);
}

/* A frozen matrix in its one form. */
static dfcl_status write_frozen(struct dfcl_dit *dit, const struct dit_linear *l, const float *values,
                                dfcl_error *err) {
    if (l->mapped)
        return dfcl_fail(err, DFCL_ERROR, "%s: lies in a mapped file and cannot be set", l->w->name);
    int64_t piece = l->weight.data.mem ? PIECE : (int64_t)stage_rows(l->weight.K) * l->weight.K;
    void *buf = NULL;
    if (l->weight.dtype != DFCL_F32 &&
        !(buf = dfcl_calloc(dit->ctx, (size_t)DFCL_MIN(piece, l->w->count), dfcl_dtype_size(l->weight.dtype), err)))
        return DFCL_NOMEM;
    dfcl_status s = l->weight.data.mem ? write_rows(dit, l, values, buf, err) : write_packed(dit, l, values, buf, err);
    dfcl_free(dit->ctx, buf);
    return s;
}

static dfcl_status read_frozen(struct dfcl_dit *dit, const struct dit_linear *l, float *values, dfcl_error *err) {
    const struct dfcl_weight *w = &l->weight;
    size_t elem = dfcl_dtype_size(w->dtype), K = (size_t)w->K, panel = K * DFCL_PANEL;
    void *raw = dfcl_calloc(dit->ctx, panel, elem, err);
    float *f = dfcl_calloc(dit->ctx, panel, sizeof *f, err);
    dfcl_status s = raw && f ? DFCL_OK : DFCL_NOMEM;
    for (int n0 = 0; n0 < w->N && !s; n0 += DFCL_PANEL) {
        size_t rows = (size_t)DFCL_MIN(DFCL_PANEL, w->N - n0), at = (size_t)n0 * K;
        if (w->data.mem) {
            if (!(s = dfcl_read(dit->dev, raw, dfcl_ref_at(w->data, at * elem), rows * K * elem, err)))
                dfcl_to_f32(w->dtype, raw, values + at, rows * K);
        } else if (!(s = dfcl_read(dit->dev, raw, dfcl_ref_at(w->packed, at * elem), panel * elem, err))) {
            dfcl_to_f32(w->dtype, raw, f, panel);
            for (size_t n = 0; n < rows; n++)
                for (size_t k = 0; k < K; k++)
                    values[at + n * K + k] = f[k * DFCL_PANEL + n];
        }
    }
    dfcl_free(dit->ctx, raw);
    dfcl_free(dit->ctx, f);
    return s;
}

static dfcl_status vec_place(const struct dfcl_dit *dit, const struct dfcl_param *p, int domain, struct dfcl_ref *out,
                             dfcl_error *err) {
    if (!p->value.mem)
        return dfcl_fail(err, DFCL_ERROR, "%s: not part of this model", p->name);
    if (p->kind == DFCL_PARAM_VEC && (domain < 0 || domain >= dit->opt.domains))
        return dfcl_fail(err, DFCL_ERROR, "%s: domain %d of %d", p->name, domain, dit->opt.domains);
    *out = p->kind == DFCL_PARAM_VEC ? dfcl_ref_at(p->value, (uint64_t)domain * (uint64_t)p->dom_stride * 4) : p->value;
    return DFCL_OK;
}

dfcl_status dfcl_dit_set(struct dfcl_dit *dit, struct dfcl_param *p, int domain, const float *values, dfcl_error *err) {
    if (!dit->allocated)
        return dfcl_fail(err, DFCL_ERROR, "%s: set before memory was taken", p->name);
    struct dit_linear *l = p->kind == DFCL_PARAM_WEIGHT ? dit_linear_of(dit, p) : NULL;
    if (l && !p->trained)
        return write_frozen(dit, l, values, err);
    struct dfcl_ref at;
    dfcl_status s = vec_place(dit, p, domain, &at, err);
    if (!s)
        s = dfcl_write(dit->dev, at, values, (uint64_t)p->count * 4, err);
    if (!s && l && l->weight.packed.mem)
        s = repack(dit, l, err);
    return s;
}

dfcl_status dfcl_dit_get(struct dfcl_dit *dit, const struct dfcl_param *p, int domain, float *values, dfcl_error *err) {
    if (!dit->allocated)
        return dfcl_fail(err, DFCL_ERROR, "%s: read before memory was taken", p->name);
    struct dit_linear *l = p->kind == DFCL_PARAM_WEIGHT ? dit_linear_of(dit, p) : NULL;
    if (l && !p->trained)
        return read_frozen(dit, l, values, err);
    struct dfcl_ref at;
    dfcl_status s = vec_place(dit, p, domain, &at, err);
    return s ? s : dfcl_read(dit->dev, values, at, (uint64_t)p->count * 4, err);
}

static dfcl_status row_place(const struct dfcl_dit *dit, int first, int n, struct dfcl_ref *at, dfcl_error *err) {
    if (!dit->allocated || first < 0 || n < 0 || n > dit->opt.class_rows - first)
        return dfcl_fail(err, DFCL_ERROR, "class rows %d to %d of %d", first, first + n - 1,
                         dit->allocated ? dit->opt.class_rows : 0);
    *at = dfcl_ref_at(dit->pool, (uint64_t)first * (uint64_t)dit->cfg.hidden * 4);
    return DFCL_OK;
}

dfcl_status dfcl_dit_set_rows(struct dfcl_dit *dit, int first, int n, const float *values, dfcl_error *err) {
    struct dfcl_ref at;
    dfcl_status s = row_place(dit, first, n, &at, err);
    return s || !n ? s : dfcl_write(dit->dev, at, values, (uint64_t)n * (uint64_t)dit->cfg.hidden * 4, err);
}

dfcl_status dfcl_dit_get_rows(struct dfcl_dit *dit, int first, int n, float *values, dfcl_error *err) {
    struct dfcl_ref at;
    dfcl_status s = row_place(dit, first, n, &at, err);
    return s || !n ? s : dfcl_read(dit->dev, values, at, (uint64_t)n * (uint64_t)dit->cfg.hidden * 4, err);
}

dfcl_status dfcl_dit_set_positions(struct dfcl_dit *dit, const float *values, dfcl_error *err) {
    if (!dit->allocated)
        return dfcl_fail(err, DFCL_ERROR, "positions set before memory was taken");
    return dfcl_write(dit->dev, dit->pos, values, (uint64_t)dit->tokens * (uint64_t)dit->cfg.hidden * 4, err);
}

int64_t dfcl_dit_trained(struct dfcl_dit *dit, struct dfcl_ref *values, struct dfcl_ref *grads) {
    if (values)
        *values = dit->P;
    if (grads)
        *grads = dit->G;
    return dit->trained_count;
}

dfcl_status dfcl_dit_refresh(struct dfcl_dit *dit, dfcl_error *err) {
    struct dit_linear *l;
    dfcl_status s = DFCL_OK;
    for (int i = 0; !s && (l = dit_linear_at(dit, i)); i++)
        if (l->w->trained && l->weight.packed.mem)
            s = repack(dit, l, err);
    return s;
}
