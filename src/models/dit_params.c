/* Device memory of the parameters: one flat block of trained values and one of gradients, one flat block of frozen vectors per domain
 * (so that all vectors share one domain stride), the pool of class rows, and the frozen matrices, each in one form only: panels, rows, or the
 * rows of the mapped file. */
#include "models/dit_internal.h"

#include <stdio.h>
#include <string.h>

struct dit_linear *dit_linear_at(struct dfcl_dit *dit, int n) {
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

struct dit_linear *dit_linear_of(struct dfcl_dit *dit, const struct dfcl_param *p) {
    struct dit_linear *l;
    for (int i = 0; (l = dit_linear_at(dit, i)); i++)
        if (l->w == p)
            return l;
    return NULL;
}

/* Packing pays where kernels exist that read the packed form alone, both forward and backward: that is asked of the registry, not guessed. */
bool dit_packs(struct dfcl_dit *dit) {
    if (!dit->opt.pack || strcmp(dit->dev->be->name, "opencl") || dit->dev->info.type != DFCL_DEVICE_CPU)
        return false;
    struct dfcl_ref here = {&dfcl_dry_mem, 0};
    struct dfcl_weight w = {
        .N = 3 * dit->cfg.hidden, .K = dit->cfg.hidden, .dtype = dit->opt.weights, .packed = here, .layout = DFCL_PANEL48};
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
    for (int i = 0; (l = dit_linear_at(dit, i)); i++) {
        struct dfcl_weight *w = &l->weight;
        bool trained = l->w->trained, pack = dit->pack && !l->mapped, panels = l->mapped && l->mapped_layout == DFCL_PANEL48;
        w->dtype = trained ? DFCL_F32 : dit->opt.weights;
        w->layout = pack || panels ? DFCL_PANEL48 : DFCL_ROW_MAJOR;
        if (pack && (s = dfcl_arena_alloc(a, dfcl_panel_count(w->N, w->K) * dfcl_dtype_size(w->dtype), &w->packed, err)))
            return s;
        if (trained)
            w->data = dfcl_ref_at(dit->P, (uint64_t)l->w->trained_off * 4);
        else if (panels)
            w->packed = (struct dfcl_ref){l->mapped, l->mapped_off};
        else if (l->mapped)
            w->data = (struct dfcl_ref){l->mapped, l->mapped_off};
        else if (!pack && (s = dfcl_arena_alloc(a, (uint64_t)l->w->count * dfcl_dtype_size(w->dtype), &w->data, err)))
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

dfcl_status dfcl_dit_map_weight(struct dfcl_dit *dit, struct dfcl_param *p, const void *host, enum dfcl_layout layout, dfcl_error *err) {
    struct dit_linear *l = dit_linear_of(dit, p);
    if (!l || p->trained || l->mapped || dit->allocated || !dit->dev)
        return dfcl_fail(err, DFCL_ERROR, "%s: not a matrix that can be used where it lies", p->name);
    /* whole pages, as devices want them */
    uint64_t count = layout == DFCL_PANEL48 ? dfcl_panel_count(l->weight.N, l->weight.K) : (uint64_t)p->count;
    uint64_t off = (uintptr_t)host % 4096, size = count * dfcl_dtype_size(dit->opt.weights);
    dfcl_status s = dfcl_mem_wrap(dit->dev, (const char *)host - off, off + size, &l->mapped, err);
    if (s || !l->mapped)
        return s;
    l->mapped_off = off;
    l->mapped_layout = layout;
    dit->mapped_bytes += size;
    p->mapped = true;
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
    dit->pack = dit_packs(dit);
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
    s = dfcl_pos_embed(dit->cfg.input / dit->cfg.patch, dit->cfg.width / dit->cfg.patch, dit->cfg.hidden, dit->cfg.pos_base, pos, err);
    if (!s)
        s = dfcl_write(dit->dev, dit->pos, pos, (uint64_t)dit->tokens * (uint64_t)dit->cfg.hidden * 4, err);
    dfcl_free(dit->ctx, pos);
    return s;
}
