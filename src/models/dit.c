#include "models/dit_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- shapes ---- */

static const struct {
    char letter[3];
    int depth, hidden, heads;
} sizes[] = {{"S", 12, 384, 6}, {"B", 12, 768, 12}, {"L", 24, 1024, 16}, {"XL", 28, 1152, 16}};
static const int patches[] = {2, 4, 8};

/* Literal names, so that dfcl_dit_name_of can return one. */
static const char *const names[4][3] = {
    {"DiT-S/2", "DiT-S/4", "DiT-S/8"},
    {"DiT-B/2", "DiT-B/4", "DiT-B/8"},
    {"DiT-L/2", "DiT-L/4", "DiT-L/8"},
    {"DiT-XL/2", "DiT-XL/4", "DiT-XL/8"},
};

bool dfcl_dit_named(const char *name, struct dfcl_dit_config *cfg) {
    for (size_t s = 0; s < DFCL_COUNT(sizes); s++)
        for (size_t p = 0; p < DFCL_COUNT(patches); p++)
            if (!strcmp(name, names[s][p])) {
                cfg->depth = sizes[s].depth;
                cfg->hidden = sizes[s].hidden;
                cfg->heads = sizes[s].heads;
                cfg->patch = patches[p];
                return true;
            }
    return false;
}

const char *dfcl_dit_name_of(const struct dfcl_dit_config *cfg) {
    for (size_t s = 0; s < DFCL_COUNT(sizes); s++)
        if (sizes[s].depth == cfg->depth && sizes[s].hidden == cfg->hidden && sizes[s].heads == cfg->heads)
            for (size_t p = 0; p < DFCL_COUNT(patches); p++)
                if (patches[p] == cfg->patch)
                    return names[s][p];
    return "";
}

dfcl_status dfcl_dit_config_check(const struct dfcl_dit_config *c, dfcl_error *err) {
    /* The upper limits keep every index product below 2^31 elements per sample and are far above any published model. */
    const struct {
        const char *what;
        int value, low, high;
    } ranges[] = {{"depth", c->depth, 1, 1024},     {"hidden size", c->hidden, 4, 16384},     {"heads", c->heads, 1, 1024},
                  {"patch", c->patch, 1, 64},       {"input side", c->input, 1, 4096},       {"input width", dfcl_dit_width(c), 1, 4096},
                  {"channels", c->channels, 1, 64}, {"classes", c->classes, 0, 1 << 20}};
    for (size_t i = 0; i < DFCL_COUNT(ranges); i++)
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return dfcl_fail(err, DFCL_USAGE, "model: %s %d, expected %d to %d", ranges[i].what, ranges[i].value, ranges[i].low,
                             ranges[i].high);
    if (c->hidden % 4)
        return dfcl_fail(err, DFCL_USAGE, "model: hidden size %d is not a multiple of 4, as the position table needs", c->hidden);
    if (c->hidden % c->heads)
        return dfcl_fail(err, DFCL_USAGE, "model: hidden size %d is not a multiple of the %d heads", c->hidden, c->heads);
    for (int k = 0; k < 2; k++)
        if ((k ? dfcl_dit_width(c) : c->input) % c->patch)
            return dfcl_fail(err, DFCL_USAGE, "model: input side %d is not a multiple of patch %d", k ? dfcl_dit_width(c) : c->input, c->patch);
    if (c->patch * c->patch * c->channels % 2)
        return dfcl_fail(err, DFCL_USAGE, "model: patch %d with %d channels is not supported (an odd number of values per token)",
                         c->patch, c->channels);
    int rows = c->input / c->patch, cols = dfcl_dit_width(c) / c->patch;
    if ((int64_t)rows * cols > 65536)
        return dfcl_fail(err, DFCL_USAGE, "model: %d x %d tokens are more than 65536", rows, cols);
    if (!(c->pos_base >= 0) || c->pos_base > 1e6)
        return dfcl_fail(err, DFCL_USAGE, "model: positional scale %g, expected 0 (none) or a grid size", c->pos_base);
    return DFCL_OK;
}

dfcl_status dfcl_pos_embed(int rows, int cols, int w, double base, float *out, dfcl_error *err) {
    if (rows < 1 || cols < 1 || w < 4 || w % 4)
        return dfcl_fail(err, DFCL_USAGE, "position table: grid %d x %d, width %d: expected a grid of 1 or more and a multiple of 4", rows, cols, w);
    int q = w / 4;
    double step = base > 0 ? base / DFCL_MAX(rows, cols) : 1.0;
    for (int row = 0; row < rows; row++)
        for (int col = 0; col < cols; col++) {
            float *v = out + ((size_t)row * (size_t)cols + (size_t)col) * (size_t)w;
            for (int k = 0; k < q; k++) {
                double omega = pow(10000.0, -(double)k / q);
                double x = col * step * omega, y = row * step * omega;
                v[k] = (float)sin(x);
                v[q + k] = (float)cos(x);
                v[2 * q + k] = (float)sin(y);
                v[3 * q + k] = (float)cos(y);
            }
        }
    return DFCL_OK;
}

/* ---- the parameter table ---- */

static struct dfcl_param *add(struct dfcl_dit *dit, enum dfcl_param_kind kind, int block, const char *name, int ndim,
                              const int64_t *shape) {
    struct dfcl_param *p = &dit->params[dit->param_count];
    p->index = dit->param_count++;
    if (block >= 0)
        dfcl_append(p->name, sizeof p->name, "blocks.%d.", block);
    dfcl_append(p->name, sizeof p->name, "%s", name);
    p->kind = kind;
    p->block = block;
    p->ndim = ndim;
    p->count = 1;
    for (int i = 0; i < ndim; i++) {
        p->shape[i] = shape[i];
        p->count *= shape[i];
    }
    p->present = true;
    return p;
}

static void add_linear(struct dfcl_dit *dit, struct dit_linear *l, int block, const char *name, int out, int in) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    l->w = add(dit, DFCL_PARAM_WEIGHT, block, full, 2, (int64_t[]){out, in});
    snprintf(full, sizeof full, "%s.bias", name);
    l->b = add(dit, DFCL_PARAM_VEC, block, full, 1, (int64_t[]){out});
    l->weight.N = out;
    l->weight.K = in;
}

static void add_gamma(struct dfcl_dit *dit, struct dit_block *b, int site, int block, const char *name, int n) {
    struct dfcl_param *p = add(dit, DFCL_PARAM_VEC, block, name, 1, (int64_t[]){n});
    p->gamma = true;
    p->present = false;
    b->gamma[site] = p;
}

static void build_table(struct dfcl_dit *dit) {
    const struct dfcl_dit_config *c = &dit->cfg;
    int d = c->hidden;
    add_linear(dit, &dit->x_embed, -1, "x_embedder.proj", d, dit->col_dim);
    dit->x_embed.w->ndim = 4; /* a convolution's weight in the file */
    memcpy(dit->x_embed.w->shape, (int64_t[]){d, c->channels, c->patch, c->patch}, 4 * sizeof(int64_t));
    add_linear(dit, &dit->t_mlp0, -1, "t_embedder.mlp.0", d, DIT_FREQ);
    add_linear(dit, &dit->t_mlp2, -1, "t_embedder.mlp.2", d, d);
    dit->table = add(dit, DFCL_PARAM_TABLE, -1, DFCL_CLASS_TABLE, 2, (int64_t[]){c->classes + 1, d});
    for (int i = 0; i < c->depth; i++) {
        struct dit_block *b = &dit->blocks[i];
        add_linear(dit, &b->qkv, i, "attn.qkv", 3 * d, d);
        add_linear(dit, &b->proj, i, "attn.proj", d, d);
        add_linear(dit, &b->fc1, i, "mlp.fc1", 4 * d, d);
        add_linear(dit, &b->fc2, i, "mlp.fc2", d, 4 * d);
        add_linear(dit, &b->ada, i, "adaLN_modulation.1", 6 * d, d);
        add_gamma(dit, b, DIT_GAMMA1, i, "gamma1", d);
        add_gamma(dit, b, DIT_GAMMA2, i, "gamma2", d);
        add_gamma(dit, b, DIT_ATTN_GAMMA1, i, "attn.gamma1", 3 * d);
        add_gamma(dit, b, DIT_ATTN_GAMMA2, i, "attn.gamma2", d);
    }
    add_linear(dit, &dit->final, -1, "final_layer.linear", dit->tok_dim, d);
    add_linear(dit, &dit->final_ada, -1, "final_layer.adaLN_modulation.1", 2 * d, d);
}

/* ---- life ---- */

static dfcl_status create(struct dfcl_dit **out, const dfcl_context *ctx, struct dfcl_device *dev, const struct dfcl_dit_config *cfg,
                          const struct dfcl_dit_options *opt, dfcl_error *err) {
    *out = NULL;
    dfcl_status s = dfcl_dit_config_check(cfg, err);
    if (s)
        return s;
    if (opt->domains < 1 || opt->domains > 65536)
        return dfcl_fail(err, DFCL_USAGE, "model: room for %d domains, expected 1 to 65536", opt->domains);
    if (opt->class_rows && opt->class_rows < cfg->classes + 1)
        return dfcl_fail(err, DFCL_USAGE, "model: room for %d class rows, the base needs %d", opt->class_rows, cfg->classes + 1);
    struct dfcl_dit *dit = dfcl_calloc(ctx, 1, sizeof *dit, err);
    if (!dit)
        return DFCL_NOMEM;
    dit->dev = dev;
    dit->ctx = ctx;
    dit->cfg = *cfg;
    dit->opt = *opt;
    if (!dit->opt.class_rows)
        dit->opt.class_rows = cfg->classes + 1;
    dit->cfg.width = dfcl_dit_width(cfg);
    dit->tokens = dfcl_dit_tokens(cfg);
    dit->out_ch = 2 * cfg->channels;
    dit->tok_dim = cfg->patch * cfg->patch * dit->out_ch;
    dit->col_dim = cfg->patch * cfg->patch * cfg->channels;
    dfcl_arena_init(&dit->weights, dev, "weights");
    dfcl_arena_init(&dit->acts_arena, dev, "activations");
    dfcl_arena_init(&dit->scratch_arena, dev, "scratch");
    dfcl_arena_init(&dit->ahead.arena, dev, "modulations");
    size_t count = 11 + (size_t)cfg->depth * 14;
    dit->params = dfcl_calloc(dit->ctx, count, sizeof *dit->params, err);
    dit->blocks = dit->params ? dfcl_calloc(dit->ctx, (size_t)cfg->depth, sizeof *dit->blocks, err) : NULL;
    dit->a.h = dit->blocks ? dfcl_calloc(dit->ctx, (size_t)cfg->depth + 1, sizeof *dit->a.h, err) : NULL;
    dit->a.block = dit->a.h ? dfcl_calloc(dit->ctx, (size_t)cfg->depth, sizeof *dit->a.block, err) : NULL;
    dit->ahead.mod = dit->a.block ? dfcl_calloc(dit->ctx, (size_t)cfg->depth, sizeof *dit->ahead.mod, err) : NULL;
    if (!dit->ahead.mod) {
        dfcl_dit_destroy(&dit);
        return DFCL_NOMEM;
    }
    build_table(dit);
    *out = dit;
    return DFCL_OK;
}

dfcl_status dfcl_dit_create(struct dfcl_dit **out, struct dfcl_device *dev, const struct dfcl_dit_config *cfg,
                            const struct dfcl_dit_options *opt, dfcl_error *err) {
    return create(out, dev->ctx, dev, cfg, opt, err);
}

dfcl_status dfcl_dit_create_table(struct dfcl_dit **out, const dfcl_context *ctx, const struct dfcl_dit_config *cfg, dfcl_error *err) {
    return create(out, ctx, NULL, cfg, &(struct dfcl_dit_options){.domains = 1}, err);
}

void dfcl_dit_destroy(struct dfcl_dit **pdit) {
    struct dfcl_dit *dit = *pdit;
    if (!dit)
        return;
    if (dit->mapped_bytes)
        dfcl_finish(dit->dev, NULL); /* queued work may still read what is about to be unmapped */
    struct dit_linear *l;
    for (int i = 0; dit->blocks && (l = dit_linear_at(dit, i)); i++)
        dfcl_mem_destroy(dit->dev, &l->mapped);
    dfcl_dit_set_done(dit);
    dfcl_arena_finish(&dit->weights);
    dfcl_arena_finish(&dit->acts_arena);
    dfcl_arena_finish(&dit->scratch_arena);
    dfcl_arena_finish(&dit->ahead.arena);
    dfcl_free(dit->ctx, dit->params);
    dfcl_free(dit->ctx, dit->blocks);
    dfcl_free(dit->ctx, dit->a.h);
    dfcl_free(dit->ctx, dit->a.block);
    dfcl_free(dit->ctx, dit->ahead.mod);
    dfcl_free(dit->ctx, dit);
    *pdit = NULL;
}

const struct dfcl_dit_config *dfcl_dit_get_config(const struct dfcl_dit *dit) {
    return &dit->cfg;
}

struct dfcl_device *dfcl_dit_device(struct dfcl_dit *dit) {
    return dit->dev;
}

const dfcl_context *dfcl_dit_context(const struct dfcl_dit *dit) {
    return dit->ctx;
}

struct dfcl_param *dfcl_dit_params(struct dfcl_dit *dit, int *count) {
    *count = dit->param_count;
    return dit->params;
}

struct dfcl_param *dfcl_dit_param(struct dfcl_dit *dit, const char *name) {
    for (int i = 0; i < dit->param_count; i++)
        if (!strcmp(dit->params[i].name, name))
            return &dit->params[i];
    return NULL;
}

void dfcl_dit_set_tap(struct dfcl_dit *dit, dfcl_dit_tap tap, void *user) {
    dit->tap = tap;
    dit->tap_user = user;
}
