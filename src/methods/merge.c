/* base + delta -> a plain checkpoint. A gamma multiplies the output of a linear layer, so it folds into that layer's
 * rows and bias: qkv takes attn.gamma1, proj attn.gamma2 * gamma1, fc2 gamma2. */
#include "formats/tensor_file.h"
#include "methods/delta.h"
#include "methods/merge_out.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define REPRODUCTION_BLOCKS 14 /* blocks with gammas in the PyTorch reproduction, whatever the depth */

static const char *const gamma_keys[4] = {"gamma1", "gamma2", "attn.gamma1", "attn.gamma2"};

struct merge {
    struct dfcl_delta *delta; /* NULL: the base alone */
    bool force;
    struct dfcl_merge_out *out;
    int kept;  /* blocks whose gammas are not folded: 0 .. kept - 1 */
    int block; /* whose gammas are loaded; -1: none */
    float *gamma[4];
};

static void drop_gammas(struct merge *g) {
    for (int i = 0; g->delta && i < 4; i++) {
        dfcl_free(g->delta->ctx, g->gamma[i]);
        g->gamma[i] = NULL;
    }
    g->block = -1;
}

static void gamma_name(char name[64], int block, int i) {
    snprintf(name, 64, "blocks.%d.%s", block, gamma_keys[i]);
}

static dfcl_status load_gammas(struct merge *g, int block, dfcl_error *err) {
    if (g->block == block)
        return DFCL_OK;
    drop_gammas(g);
    for (int i = 0; i < 4; i++) {
        char name[64];
        gamma_name(name, block, i);
        dfcl_status s = dfcl_delta_read(g->delta, name, &g->gamma[i], err);
        if (s)
            return s;
    }
    g->block = block;
    return DFCL_OK;
}

/* The delta's values of a parameter where they take the base's place; NULL: they do not. */
static dfcl_status delta_values(struct merge *g, const struct dfcl_param *p, const float *base, float **own,
                                dfcl_error *err) {
    *own = NULL;
    if (!g->delta || (p->kind == DFCL_PARAM_WEIGHT && !g->delta->plain))
        return DFCL_OK;
    dfcl_status s = dfcl_delta_read(g->delta, p->name, own, err);
    if (s || !*own || p->kind != DFCL_PARAM_WEIGHT)
        return s;
    /* a plain state dict has no hash, but may hold the frozen matrices: they must be the base's */
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(g->delta->file, p->name);
    if (!g->force && ((int64_t)v->count != p->count || !dfcl_delta_same_matrix(*own, base, p->count)))
        s = dfcl_fail(err, DFCL_FORMAT,
                      "%s: %s differs from the base's: made on another base; use the right one, or force it",
                      g->delta->path, p->name);
    dfcl_free(g->delta->ctx, *own);
    *own = NULL;
    return s;
}

static dfcl_status write_one(void *user, const struct dfcl_param *p, float *values, dfcl_error *err) {
    struct merge *g = user;
    float *own;
    dfcl_status s = delta_values(g, p, values, &own, err);
    if (s)
        return s;
    float *use = own ? own : values;
    int64_t count = own && p->kind == DFCL_PARAM_TABLE ? (int64_t)(g->delta->classes + 1) * p->shape[1] : p->count;
    if (g->delta && p->block >= g->kept && !(s = load_gammas(g, p->block, err)))
        dfcl_fold_gammas(p, (const float *const[4]){g->gamma[0], g->gamma[1], g->gamma[2], g->gamma[3]}, use);
    if (!s)
        s = dfcl_merge_out_values(g->out, p->name, use, (size_t)count, err);
    if (own)
        dfcl_free(g->delta->ctx, own);
    return s;
}

/* Gammas that stay: of the delta, 1 where it has none. */
static dfcl_status write_gammas(struct merge *g, const struct dfcl_base *base, dfcl_error *err) {
    size_t most = 3 * (size_t)base->cfg.hidden;
    float *ones = dfcl_calloc(base->ctx, most, sizeof *ones, err);
    dfcl_status s = ones ? DFCL_OK : DFCL_NOMEM;
    for (size_t i = 0; ones && i < most; i++)
        ones[i] = 1.0f;
    for (int b = 0; b < g->kept && !s; b++) {
        if (g->delta && (s = load_gammas(g, b, err)))
            break;
        for (int i = 0; i < 4 && !s; i++) {
            char name[64];
            gamma_name(name, b, i);
            s = dfcl_merge_out_values(g->out, name, g->gamma[i] ? g->gamma[i] : ones,
                                      (size_t)base->cfg.hidden * (i == 2 ? 3 : 1), err);
        }
    }
    dfcl_free(base->ctx, ones);
    return s;
}

/* ---- what is written ---- */

static dfcl_status declare(struct merge *g, const struct dfcl_base *base, const struct dfcl_dit_config *cfg,
                           bool positions, dfcl_error *err) {
    int n;
    struct dfcl_param **p;
    dfcl_status s = dfcl_base_order(base->table, &p, &n, err);
    if (s)
        return s;
    if (positions) /* the original stores them, and loads strictly */
        s = dfcl_merge_out_tensor(g->out, "pos_embed", (int64_t[]){1, dfcl_dit_tokens(cfg), cfg->hidden}, 3, err);
    for (int i = 0; i < n && !s; i++) {
        int64_t shape[4];
        memcpy(shape, p[i]->shape, sizeof shape);
        if (p[i]->kind == DFCL_PARAM_TABLE)
            shape[0] = cfg->classes + 1; /* a delta may bring its own classes */
        s = dfcl_merge_out_tensor(g->out, p[i]->name, shape, p[i]->ndim, err);
    }
    for (int i = 0; i < 4 * g->kept && !s; i++) {
        char name[64];
        gamma_name(name, i / 4, i % 4);
        s = dfcl_merge_out_tensor(g->out, name, (int64_t[]){(int64_t)cfg->hidden * (i % 4 == 2 ? 3 : 1)}, 1, err);
    }
    dfcl_free(base->ctx, p);
    return s;
}

/* diffusers has no stored positions: the model's must be the plain table, up to the rounding of a 16-bit file. */
static dfcl_status check_positions(const struct dfcl_base *base, const struct dfcl_dit_config *cfg,
                                   const float *positions, dfcl_error *err) {
    struct dfcl_dit_config plain = *cfg;
    int rows = cfg->input / cfg->patch, cols = dfcl_dit_width(cfg) / cfg->patch;
    size_t count = (size_t)dfcl_dit_tokens(cfg) * (size_t)cfg->hidden;
    if (rows != cols)
        return dfcl_fail(err, DFCL_USAGE, "%s: its grid is %d x %d tokens, and diffusers' DiT has square ones only: write it with the original names",
                         base->path, cols, rows);
    float *table = NULL, *scaled = NULL;
    plain.pos_base = 0;
    dfcl_status s = dfcl_base_positions(base->ctx, &plain, &table, err);
    if (!s && !positions)
        s = dfcl_base_positions(base->ctx, cfg, &scaled, err);
    const float *used = positions ? positions : scaled;
    for (size_t i = 0; i < count && !s; i++)
        if (!(fabsf(used[i] - table[i]) <= 1.0f / 256))
            s = dfcl_fail(err, DFCL_USAGE,
                          "%s: its positions are scaled or its own, and diffusers' DiT only has the plain table of %d "
                          "x %d: write it with the original names",
                          base->path, rows, cols);
    dfcl_free(base->ctx, table);
    dfcl_free(base->ctx, scaled);
    return s;
}

static dfcl_status write_all(struct merge *g, struct dfcl_base *base, const struct dfcl_dit_config *cfg,
                             const float *positions, bool diffusers, char hash[65], dfcl_error *err) {
    float *table = NULL;
    dfcl_status s = declare(g, base, cfg, !diffusers, err);
    if (!s && !diffusers && !positions)
        s = dfcl_base_positions(base->ctx, cfg, &table, err);
    if (!s && !diffusers) {
        s = dfcl_merge_out_values(g->out, "pos_embed", positions ? positions : table,
                                  (size_t)dfcl_dit_tokens(cfg) * (size_t)cfg->hidden, err);
    }
    dfcl_free(base->ctx, table);
    if (s || (s = dfcl_base_stream(base, write_one, g, hash, err)))
        return s;
    return write_gammas(g, base, err);
}

dfcl_status dfcl_model_merge(const dfcl_context *ctx, const struct dfcl_merge_params *params, const char *out_path,
                             dfcl_error *err) {
    struct dfcl_base *base = NULL;
    struct merge g = {.block = -1, .force = params->force != 0};
    bool diffusers = params->names == DFCL_NAMES_DIFFUSERS;
    char hash[65];
    if (diffusers && params->keep_gammas)
        return dfcl_fail(err, DFCL_USAGE,
                         "%s: diffusers' DiT has no gammas to keep: fold them, or use the original names", out_path);
    dfcl_status s = dfcl_base_open(&base, ctx, &params->base, err);
    if (!s && params->delta && !(s = dfcl_delta_open(&g.delta, ctx, params->delta, err)))
        s = dfcl_delta_check_shapes(g.delta, base->table, err);
    if (s)
        goto out;
    struct dfcl_dit_config cfg = base->cfg;
    const float *positions = base->positions;
    char *const *names = base->class_names;
    g.kept = params->keep_gammas ? DFCL_MIN(cfg.depth, REPRODUCTION_BLOCKS) : 0;
    if (g.delta && g.delta->classes >= 0) {
        cfg.classes = g.delta->classes;
        if (g.delta->own_classes || g.delta->class_names)
            names = g.delta->class_names;
    }
    /* The domain's resolution and positions, unless others were asked for. */
    if (g.delta && g.delta->input > 0 && (g.delta->input != cfg.input || g.delta->width != dfcl_dit_width(&cfg) || (g.delta->pos_base >= 0 && g.delta->pos_base != cfg.pos_base)) &&
        params->base.input <= 0 && !(params->base.positional_scale > 0) && !(params->base.pos_step > 0)) {
        positions = NULL;
        cfg.input = g.delta->input;
        cfg.width = g.delta->width;
        cfg.pos_base = DFCL_MAX(g.delta->pos_base, 0);
    }
    if ((s = dfcl_dit_config_check(&cfg, err)) || (diffusers && (s = check_positions(base, &cfg, positions, err))) ||
        (s = dfcl_merge_out_create(&g.out, ctx, params->names, out_path, &cfg, (const char *const *)names,
                                   g.delta && g.delta->rgb.channels ? &g.delta->rgb : &base->rgb, err)) ||
        (s = write_all(&g, base, &cfg, positions, diffusers, hash, err)))
        goto out;
    /* Known only now, after the one pass over the base; the file does not exist until it is finished. */
    if (g.delta)
        s = dfcl_delta_check_base(g.delta, hash, base->path, g.force, err);
    if (!s)
        s = dfcl_merge_out_finish(&g.out, err);
out:
    dfcl_merge_out_destroy(&g.out);
    drop_gammas(&g);
    dfcl_delta_close(&g.delta);
    dfcl_base_close(&base);
    return s;
}
