/* base + delta -> a plain checkpoint. A gamma multiplies the output of a linear layer, so it folds into that layer's rows and bias: qkv takes
 * attn.gamma1, proj attn.gamma2 * gamma1, fc2 gamma2. */
#include "formats/safetensors.h"
#include "formats/tensor_file.h"
#include "methods/delta.h"

#include <stdio.h>
#include <string.h>

struct merge {
    struct dfcl_delta *delta;
    bool force;
    struct dfcl_st_writer *w;
    int block; /* whose gammas are loaded; -1: none */
    float *gamma[4];
};

static void drop_gammas(struct merge *g) {
    for (int i = 0; i < 4; i++) {
        dfcl_free(g->delta->ctx, g->gamma[i]);
        g->gamma[i] = NULL;
    }
    g->block = -1;
}

static dfcl_status load_gammas(struct merge *g, int block, dfcl_error *err) {
    static const char *const keys[4] = {"gamma1", "gamma2", "attn.gamma1", "attn.gamma2"};
    if (g->block == block)
        return DFCL_OK;
    drop_gammas(g);
    for (int i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.%s", block, keys[i]);
        dfcl_status s = dfcl_delta_read(g->delta, name, &g->gamma[i], err);
        if (s)
            return s;
    }
    g->block = block;
    return DFCL_OK;
}

static dfcl_status write_one(void *user, const struct dfcl_param *p, float *values, dfcl_error *err) {
    struct merge *g = user;
    float *own = NULL, *use = values;
    int64_t count = p->count;
    dfcl_status s = DFCL_OK;
    if ((p->kind != DFCL_PARAM_WEIGHT || g->delta->plain) && (s = dfcl_delta_read(g->delta, p->name, &own, err)))
        return s;
    if (own && p->kind == DFCL_PARAM_WEIGHT) {
        /* a plain state dict has no hash, but may hold the frozen matrices: they must be the base's */
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(g->delta->file, p->name);
        if (!g->force && ((int64_t)v->count != p->count || memcmp(own, values, (size_t)p->count * sizeof *own)))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s differs from the base's: made on another base; use the right one, or force it",
                          g->delta->path, p->name);
        dfcl_free(g->delta->ctx, own);
        own = NULL;
        if (s)
            return s;
    }
    if (own) {
        use = own;
        if (p->kind == DFCL_PARAM_TABLE)
            count = (int64_t)(g->delta->classes + 1) * p->shape[1];
    }
    if (p->block >= 0 && !(s = load_gammas(g, p->block, err)))
        dfcl_fold_gammas(p, (const float *const[4]){g->gamma[0], g->gamma[1], g->gamma[2], g->gamma[3]}, use);
    if (!s)
        s = dfcl_st_writer_f32(g->w, use, (size_t)count, err);
    dfcl_free(g->delta->ctx, own);
    return s;
}

dfcl_status dfcl_model_merge(const dfcl_context *ctx, const struct dfcl_model_params *params, const char *delta, int force,
                             const char *out_path, dfcl_error *err) {
    struct dfcl_base *base = NULL;
    struct merge g = {.block = -1, .force = force != 0};
    char hash[65];
    dfcl_status s = dfcl_base_open(&base, ctx, params, err);
    if (s || (s = dfcl_delta_open(&g.delta, ctx, delta, err)) || (s = dfcl_delta_check_shapes(g.delta, base->table, err)))
        goto out;
    struct dfcl_dit_config cfg = base->cfg;
    const float *positions = base->positions;
    char *const *names = base->class_names;
    if (g.delta->classes >= 0) {
        cfg.classes = g.delta->classes;
        if (g.delta->own_classes || g.delta->class_names)
            names = g.delta->class_names;
    }
    /* The domain's resolution, unless another one was asked for. */
    if (g.delta->input > 0 && g.delta->input != cfg.input && params->input <= 0) {
        positions = NULL;
        cfg.input = g.delta->input;
        cfg.pos_base = DFCL_MAX(g.delta->pos_base, 0);
    }
    if ((s = dfcl_dit_config_check(&cfg, err)) || (s = dfcl_st_writer_create(&g.w, ctx, out_path, err)) ||
        (s = dfcl_base_declare(g.w, base->table, &cfg, (const char *const *)names, DFCL_F32, err)) ||
        (s = dfcl_base_write_positions(g.w, ctx, &cfg, positions, err)) || (s = dfcl_base_stream(base, write_one, &g, hash, err)))
        goto out;
    /* Known only now, after the one pass over the base; the file does not exist until it is finished. */
    if (!(s = dfcl_delta_check_base(g.delta, hash, base->path, force, err)))
        s = dfcl_st_writer_finish(&g.w, err);
out:
    dfcl_st_writer_destroy(&g.w);
    if (g.delta)
        drop_gammas(&g);
    dfcl_delta_close(&g.delta);
    dfcl_base_close(&base);
    return s;
}
