/* Device memory of the parameters: one flat block of trained values and one of gradients, one flat block of frozen vectors per domain
 * (so that all vectors share one domain stride), the pool of class rows, and the frozen matrices, each in one form only. */
#include "models/dit_internal.h"

#include <stdio.h>
#include <string.h>

#define PANEL 48

static uint64_t packed_bytes(const struct dfcl_weight *w) {
    return (uint64_t)((w->N + PANEL - 1) / PANEL) * (uint64_t)w->K * PANEL * 4;
}

/* The n-th linear layer of the model, NULL past the last. */
static struct dit_linear *linear_at(struct dfcl_dit *dit, int n) {
    if (n < 5) {
        struct dit_linear *l[] = {&dit->x_embed, &dit->t_mlp0, &dit->t_mlp2, &dit->final, &dit->final_ada};
        return l[n];
    }
    n -= 5;
    if (n >= dit->cfg.depth * 5)
        return NULL;
    struct dit_block *b = &dit->blocks[n / 5];
    struct dit_linear *l[] = {&b->qkv, &b->proj, &b->fc1, &b->fc2, &b->ada};
    return l[n % 5];
}

static struct dit_linear *linear_of(struct dfcl_dit *dit, const struct dfcl_param *p) {
    struct dit_linear *l;
    for (int i = 0; (l = linear_at(dit, i)); i++)
        if (l->w == p)
            return l;
    return NULL;
}

/* Packing pays where kernels exist that read the packed form alone, both forward and backward: that is asked of the registry, not guessed. */
static bool should_pack(struct dfcl_dit *dit) {
    if (!dit->opt.pack || strcmp(dit->dev->be->name, "opencl") || dit->dev->info.type != DFCL_DEVICE_CPU)
        return false;
    struct dfcl_ref here = {&dfcl_dry_mem, 0};
    struct dfcl_weight w = {.N = 3 * dit->cfg.hidden, .K = dit->cfg.hidden, .packed = here, .layout = DFCL_PANEL48};
    struct dfcl_linear_fwd f = {.M = dit->tokens, .K = w.K, .T = dit->tokens, .x = here, .w = w, .y = here};
    struct dfcl_linear_dx x = {.M = dit->tokens, .dy = here, .w = w, .dx = here};
    return dfcl_op_choose(dit->dev, &dfcl_op_linear_fwd, &f) && dfcl_op_choose(dit->dev, &dfcl_op_linear_dx, &x);
}

/* Run twice: dry to size the arena, then to hand out the places. */
static dfcl_status place_all(struct dfcl_dit *dit, dfcl_error *err) {
    struct dfcl_arena *a = &dit->weights;
    dfcl_status s;
    if (dit->trained_count &&
        ((s = dfcl_arena_alloc(a, (uint64_t)dit->trained_count * 4, &dit->P, err)) ||
         (s = dfcl_arena_alloc(a, (uint64_t)dit->trained_count * 4, &dit->G, err))))
        return s;
    if (dit->vec_count && (s = dfcl_arena_alloc(a, (uint64_t)dit->vec_count * 4 * (uint64_t)dit->opt.domains, &dit->vecs, err)))
        return s;
    if (!dit->table->trained &&
        (s = dfcl_arena_alloc(a, (uint64_t)dit->opt.class_rows * (uint64_t)dit->cfg.hidden * 4, &dit->pool, err)))
        return s;
    if ((s = dfcl_arena_alloc(a, (uint64_t)dit->tokens * (uint64_t)dit->cfg.hidden * 4, &dit->pos, err)))
        return s;
    struct dit_linear *l;
    for (int i = 0; (l = linear_at(dit, i)); i++) {
        struct dfcl_weight *w = &l->weight;
        w->dtype = DFCL_F32;
        w->layout = dit->pack ? DFCL_PANEL48 : DFCL_ROW_MAJOR;
        if (dit->pack && (s = dfcl_arena_alloc(a, packed_bytes(w), &w->packed, err)))
            return s;
        if (l->w->trained)
            w->data = dfcl_ref_at(dit->P, (uint64_t)l->w->trained_off * 4);
        else if (!dit->pack && (s = dfcl_arena_alloc(a, (uint64_t)l->w->count * 4, &w->data, err)))
            return s;
        l->w->value = w->data;
    }
    int64_t off = 0;
    for (int i = 0; i < dit->param_count; i++) {
        struct dfcl_param *p = &dit->params[i];
        if (p->kind == DFCL_PARAM_TABLE) {
            if (p->trained)
                dit->pool = dfcl_ref_at(dit->P, (uint64_t)p->trained_off * 4);
            p->value = dit->pool;
        } else if (p->kind == DFCL_PARAM_VEC) {
            if (p->trained) {
                p->value = dfcl_ref_at(dit->P, (uint64_t)p->trained_off * 4);
                p->dom_stride = 0;
            } else if (p->present || dit->opt.domains > 1) {
                p->value = dfcl_ref_at(dit->vecs, (uint64_t)off * 4);
                p->dom_stride = dit->vec_count;
                off += p->count;
            }
        }
    }
    return DFCL_OK;
}

dfcl_status dfcl_dit_alloc_params(struct dfcl_dit *dit, dfcl_error *err) {
    const uint32_t one = 0x3f800000u;
    if (dit->allocated || !dit->dev)
        return dfcl_fail(err, DFCL_ERROR, "model: %s", dit->dev ? "parameters were already taken" : "a table of names takes no memory");
    dit->trained_count = dit->vec_count = 0;
    for (int i = 0; i < dit->param_count; i++) {
        struct dfcl_param *p = &dit->params[i];
        p->trained = p->trained && p->present;
        if (p->trained) {
            p->trained_off = dit->trained_count;
            dit->trained_count += p->count;
        } else if (p->kind == DFCL_PARAM_VEC && (p->present || dit->opt.domains > 1)) {
            dit->vec_count += p->count; /* with room for domains, gammas have a place even before a delta brings them */
        }
    }
    if (dit->trained_count && dit->opt.domains > 1)
        return dfcl_fail(err, DFCL_ERROR, "model: training takes a single domain, not %d", dit->opt.domains);
    if (dit->table->trained && dit->opt.class_rows != dit->cfg.classes + 1)
        return dfcl_fail(err, DFCL_ERROR, "model: a trained class table has no spare rows");
    dit->pack = should_pack(dit);
    dfcl_status s = place_all(dit, err);
    if (!s)
        s = dfcl_arena_commit(&dit->weights, err);
    if (!s)
        s = place_all(dit, err);
    if (s) {
        dfcl_arena_reset(&dit->weights);
        return s;
    }
    dit->allocated = true;
    if (dit->vec_count && (s = dfcl_fill(dit->dev, dit->vecs, one, (uint64_t)dit->vec_count * 4 * (uint64_t)dit->opt.domains, err)))
        return s;
    for (int i = 0; i < dit->param_count; i++)
        if (dit->params[i].gamma && dit->params[i].trained &&
            (s = dfcl_fill(dit->dev, dit->params[i].value, one, (uint64_t)dit->params[i].count * 4, err)))
            return s;
    if (dit->trained_count && (s = dfcl_fill(dit->dev, dit->G, 0, (uint64_t)dit->trained_count * 4, err)))
        return s;
    float *pos = dfcl_calloc(dit->ctx, (size_t)dit->tokens * (size_t)dit->cfg.hidden, 4, err);
    if (!pos)
        return DFCL_NOMEM;
    s = dfcl_pos_embed(dit->side, dit->cfg.hidden, dit->cfg.pos_base, pos, err);
    if (!s)
        s = dfcl_write(dit->dev, dit->pos, pos, (uint64_t)dit->tokens * (uint64_t)dit->cfg.hidden * 4, err);
    dfcl_free(dit->ctx, pos);
    return s;
}

/* ---- values ---- */

static dfcl_status repack(struct dfcl_dit *dit, const struct dit_linear *l, dfcl_error *err) {
    struct dfcl_exec ex = {.dev = dit->dev};
    struct dfcl_pack p = {.w = l->weight};
    return dfcl_run(&ex, &dfcl_op_pack, &p, err);
}

/* Packing on the host, panel by panel: no second copy of the weight is ever on the device. */
static dfcl_status write_packed(struct dfcl_dit *dit, const struct dfcl_weight *w, const float *values, dfcl_error *err) {
    size_t size = (size_t)w->K * PANEL;
    float *buf = dfcl_calloc(dit->ctx, size, 4, err);
    if (!buf)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    for (int n0 = 0; n0 < w->N && !s; n0 += PANEL) {
        int nn = DFCL_MIN(PANEL, w->N - n0);
        if (nn < PANEL)
            memset(buf, 0, size * 4);
        for (int n = 0; n < nn; n++) {
            const float *row = values + (size_t)(n0 + n) * (size_t)w->K;
            for (int k = 0; k < w->K; k++)
                buf[(size_t)k * PANEL + (size_t)n] = row[k];
        }
        s = dfcl_write(dit->dev, dfcl_ref_at(w->packed, (uint64_t)n0 * (uint64_t)w->K * 4), buf, size * 4, err);
    }
    dfcl_free(dit->ctx, buf);
    return s;
}

static dfcl_status read_packed(struct dfcl_dit *dit, const struct dfcl_weight *w, float *values, dfcl_error *err) {
    size_t size = (size_t)w->K * PANEL;
    float *buf = dfcl_calloc(dit->ctx, size, 4, err);
    if (!buf)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    for (int n0 = 0; n0 < w->N && !s; n0 += PANEL) {
        int nn = DFCL_MIN(PANEL, w->N - n0);
        s = dfcl_read(dit->dev, buf, dfcl_ref_at(w->packed, (uint64_t)n0 * (uint64_t)w->K * 4), size * 4, err);
        for (int n = 0; n < nn && !s; n++)
            for (int k = 0; k < w->K; k++)
                values[(size_t)(n0 + n) * (size_t)w->K + (size_t)k] = buf[(size_t)k * PANEL + (size_t)n];
    }
    dfcl_free(dit->ctx, buf);
    return s;
}

static dfcl_status vec_place(const struct dfcl_dit *dit, const struct dfcl_param *p, int domain, struct dfcl_ref *out, dfcl_error *err) {
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
    struct dit_linear *l = p->kind == DFCL_PARAM_WEIGHT ? linear_of(dit, p) : NULL;
    if (l && !l->weight.data.mem)
        return write_packed(dit, &l->weight, values, err);
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
    struct dit_linear *l = p->kind == DFCL_PARAM_WEIGHT ? linear_of(dit, p) : NULL;
    if (l && !l->weight.data.mem)
        return read_packed(dit, &l->weight, values, err);
    struct dfcl_ref at;
    dfcl_status s = vec_place(dit, p, domain, &at, err);
    return s ? s : dfcl_read(dit->dev, values, at, (uint64_t)p->count * 4, err);
}

static dfcl_status row_place(const struct dfcl_dit *dit, int first, int n, struct dfcl_ref *at, dfcl_error *err) {
    if (!dit->allocated || first < 0 || n < 0 || n > dit->opt.class_rows - first)
        return dfcl_fail(err, DFCL_ERROR, "class rows %d to %d of %d", first, first + n - 1, dit->allocated ? dit->opt.class_rows : 0);
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
    for (int i = 0; !s && (l = linear_at(dit, i)); i++)
        if (l->w->trained && l->weight.packed.mem)
            s = repack(dit, l, err);
    return s;
}
