/* Partial backward pass: walks the forward's list from the end. The gradient of the residual stream (dh) goes down only as far as something
 * trained lies below; weight gradients exist only for trained weights, and only they recompute a linear layer's input.
 *
 * With h' = h + gate * gamma_out * gamma_in * v, v = W x + bias: dh flows on unchanged and the branch adds its own part through W and the
 * layer norm. branch_bwd gives every vector gradient of the branch from dh and the kept v, without dividing by any gamma. */
#include "models/dit_internal.h"

#include <math.h>

/* What a block has to do; set from the parameter table, so it costs nothing to ask again. */
struct need {
    bool cond;   /* gradient of c: something in the embedders is trained */
    bool x;      /* x_embedder is trained */
};

static bool trains(const struct dit_linear *l) {
    return dit_trains(l->w) || dit_trains(l->b);
}
/* The modulation of a block needs a gradient. */
static bool mod_needed(const struct dfcl_dit *dit, const struct need *nd, int i) {
    return nd->cond || trains(&dit->blocks[i].ada);
}
static bool attn_trains(const struct dit_block *b) {
    return trains(&b->qkv) || trains(&b->proj) || dit_trains(b->gamma[DIT_GAMMA1]) || dit_trains(b->gamma[DIT_ATTN_GAMMA1]) ||
           dit_trains(b->gamma[DIT_ATTN_GAMMA2]);
}
static bool block_needed(const struct dfcl_dit *dit, const struct need *nd, int i) {
    const struct dit_block *b = &dit->blocks[i];
    return mod_needed(dit, nd, i) || attn_trains(b) || trains(&b->fc1) || trains(&b->fc2) || dit_trains(b->gamma[DIT_GAMMA2]);
}
/* The gradient of block i's input is needed by something further down. */
static bool below_needed(const struct dfcl_dit *dit, const struct need *nd, int i) {
    if (nd->x)
        return true;
    for (int j = 0; j < i; j++)
        if (block_needed(dit, nd, j))
            return true;
    return false;
}

static dfcl_status bias_grad(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref dy, int M,
                             dfcl_error *err) {
    if (!dit_trains(l->b))
        return DFCL_OK;
    struct dfcl_colsum c = {.M = M, .N = l->weight.N, .x = dy, .out = dit_grad(dit, l->b)};
    return dfcl_run(ps->ex, &dfcl_op_colsum, &c, err);
}

static dfcl_status weight_grad(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref dy,
                               struct dfcl_ref x, int M, dfcl_error *err) {
    if (!dit_trains(l->w))
        return DFCL_OK;
    struct dfcl_linear_dw g = {.M = M, .N = l->weight.N, .K = l->weight.K, .dy = dy, .x = x, .dw = dit_grad(dit, l->w)};
    return dfcl_run(ps->ex, &dfcl_op_linear_dw, &g, err);
}

static dfcl_status input_grad(const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref dy, enum dfcl_act act,
                              struct dfcl_ref pre, struct dfcl_ref dx, bool accumulate, int M, dfcl_error *err) {
    struct dfcl_linear_dx g = {.M = M, .dy = dy, .w = l->weight, .act = act, .pre = pre, .dx = dx, .accumulate = accumulate};
    return dfcl_run(ps->ex, &dfcl_op_linear_dx, &g, err);
}

/* The layer norm's output again, for a weight gradient; chunk: index of the shift among the modulation's chunks of d. */
static dfcl_status norm_again(struct dfcl_dit *dit, const struct dit_pass *ps, struct dfcl_ref x, struct dfcl_ref mod, int chunk,
                              int chunks, dfcl_error *err) {
    int d = dit->cfg.hidden;
    struct dfcl_ln_mod n = {.M = ps->M, .N = d, .T = dit->tokens, .eps = DIT_EPS, .x = x,
                            .shift = dfcl_ref_at(mod, (uint64_t)chunk * (uint64_t)d * 4),
                            .scale = dfcl_ref_at(mod, (uint64_t)(chunk + 1) * (uint64_t)d * 4), .y = dit->a.m,
                            .mod_stride = (int64_t)chunks * d};
    return dfcl_run(ps->ex, &dfcl_op_ln_mod, &n, err);
}

static dfcl_status norm_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, struct dfcl_ref x, struct dfcl_ref stats,
                            struct dfcl_ref mod, struct dfcl_ref dmod, int chunk, int chunks, struct dfcl_ref dy, bool accumulate,
                            dfcl_error *err) {
    int d = dit->cfg.hidden;
    uint64_t shift = (uint64_t)chunk * (uint64_t)d * 4, scale = shift + (uint64_t)d * 4;
    struct dfcl_ln_mod_bwd g = {.M = ps->M, .N = d, .T = dit->tokens, .x = x, .stats = stats, .scale = dfcl_ref_at(mod, scale),
                                .dy = dy, .dx = dit->a.dh, .mod_stride = (int64_t)chunks * d, .dmod_stride = (int64_t)chunks * d,
                                .accumulate = accumulate};
    if (dmod.mem) {
        g.dshift = dfcl_ref_at(dmod, shift);
        g.dscale = dfcl_ref_at(dmod, scale);
    }
    return dfcl_run(ps->ex, &dfcl_op_ln_mod_bwd, &g, err);
}

/* adaLN layer: gradients of its parameters, and of silu(c) where the embedders need it. Rows are samples. */
static dfcl_status ada_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref dmod,
                           bool cond, bool first, dfcl_error *err) {
    dfcl_status s;
    if ((s = bias_grad(dit, ps, l, dmod, ps->B, err)) || (s = weight_grad(dit, ps, l, dmod, dit->a.silu, ps->B, err)) || !cond)
        return s;
    return input_grad(ps, l, dmod, DFCL_ACT_NONE, DFCL_NO_REF, dit->a.dsilu, !first, ps->B, err);
}

static dfcl_status final_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, const struct need *nd, struct dfcl_ref dout, bool below,
                             dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    struct dfcl_ref hL = a->h[dit->cfg.depth];
    bool mod = nd->cond || trains(&dit->final_ada);
    dfcl_status s;
    struct dfcl_unpatchify up = {.B = ps->B, .C = dit->out_ch, .H = dit->cfg.input, .W = dit->cfg.width, .p = dit->cfg.patch, .tok = a->tok, .img = dout,
                                 .backward = true};
    if ((s = dfcl_run(ps->ex, &dfcl_op_unpatchify, &up, err)) || (s = bias_grad(dit, ps, &dit->final, a->tok, ps->M, err)))
        return s;
    if (dit_trains(dit->final.w) &&
        ((s = norm_again(dit, ps, hL, a->fmod, 0, 2, err)) || (s = weight_grad(dit, ps, &dit->final, a->tok, a->m, ps->M, err))))
        return s;
    if (!mod && !below)
        return DFCL_OK;
    if ((s = input_grad(ps, &dit->final, a->tok, DFCL_ACT_NONE, DFCL_NO_REF, a->d1, false, ps->M, err)) ||
        (s = norm_bwd(dit, ps, hL, a->fstats, a->fmod, mod ? a->dfmod : DFCL_NO_REF, 0, 2, a->d1, false, err)))
        return s;
    return mod ? ada_bwd(dit, ps, &dit->final_ada, a->dfmod, nd->cond, true, err) : DFCL_OK;
}

static dfcl_status mlp_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, int i, bool mod, bool below, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    const struct dit_block *b = &dit->blocks[i];
    const struct dit_block_acts *k = &a->block[i];
    int d = dit->cfg.hidden, M = ps->M;
    uint64_t chunk = (uint64_t)d * 4;
    bool through_fc1 = trains(&b->fc1) || mod || below; /* below: the attention branch or a lower block wants dh */
    bool dv = through_fc1 || dit_trains(b->fc2.w);
    dfcl_status s;
    struct dfcl_branch_bwd br = {.M = M, .N = d, .T = dit->tokens, .dz = a->dh, .v = k->fc2_pre, .gate = dfcl_ref_at(k->mod, 5 * chunk),
                                 .gamma_out = dit_value(b->gamma[DIT_GAMMA2]), .gate_stride = 6 * d, .dv = dv ? a->d1 : DFCL_NO_REF,
                                 .dgate = mod ? dfcl_ref_at(a->dmod, 5 * chunk) : DFCL_NO_REF,
                                 .dgamma_out = dit_grad(dit, b->gamma[DIT_GAMMA2]), .dbias = dit_grad(dit, b->fc2.b),
                                 .dgate_stride = 6 * d};
    if ((s = dfcl_run(ps->ex, &dfcl_op_branch_bwd, &br, err)))
        return s;
    if (dit_trains(b->fc2.w)) {
        struct dfcl_act_fwd g = {.n = (int64_t)M * 4 * d, .act = DFCL_ACT_GELU_TANH, .x = k->fc1_pre, .y = a->f};
        if ((s = dfcl_run(ps->ex, &dfcl_op_act_fwd, &g, err)) || (s = weight_grad(dit, ps, &b->fc2, a->d1, a->f, M, err)))
            return s;
    }
    if (!through_fc1)
        return DFCL_OK;
    if ((s = input_grad(ps, &b->fc2, a->d1, DFCL_ACT_GELU_TANH, k->fc1_pre, a->d4, false, M, err)) ||
        (s = bias_grad(dit, ps, &b->fc1, a->d4, M, err)))
        return s;
    if (dit_trains(b->fc1.w) &&
        ((s = norm_again(dit, ps, k->mid, k->mod, 3, 6, err)) || (s = weight_grad(dit, ps, &b->fc1, a->d4, a->m, M, err))))
        return s;
    if (!mod && !below)
        return DFCL_OK;
    if ((s = input_grad(ps, &b->fc1, a->d4, DFCL_ACT_NONE, DFCL_NO_REF, a->d1, false, M, err)))
        return s;
    return norm_bwd(dit, ps, k->mid, k->stats2, k->mod, mod ? a->dmod : DFCL_NO_REF, 3, 6, a->d1, true, err);
}

static dfcl_status attn_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, int i, bool mod, bool below, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    const struct dit_block *b = &dit->blocks[i];
    const struct dit_block_acts *k = &a->block[i];
    struct dfcl_param *gq = b->gamma[DIT_ATTN_GAMMA1];
    int d = dit->cfg.hidden, M = ps->M;
    uint64_t chunk = (uint64_t)d * 4;
    bool through_qkv = mod || below, through_proj = through_qkv || trains(&b->qkv) || dit_trains(gq);
    bool dv = through_proj || dit_trains(b->proj.w);
    dfcl_status s;
    struct dfcl_branch_bwd br = {.M = M, .N = d, .T = dit->tokens, .dz = a->dh, .v = k->proj_pre, .gate = dfcl_ref_at(k->mod, 2 * chunk),
                                 .gamma_in = dit_value(b->gamma[DIT_ATTN_GAMMA2]), .gamma_out = dit_value(b->gamma[DIT_GAMMA1]),
                                 .gate_stride = 6 * d, .dv = dv ? a->d1 : DFCL_NO_REF,
                                 .dgate = mod ? dfcl_ref_at(a->dmod, 2 * chunk) : DFCL_NO_REF,
                                 .dgamma_in = dit_grad(dit, b->gamma[DIT_ATTN_GAMMA2]),
                                 .dgamma_out = dit_grad(dit, b->gamma[DIT_GAMMA1]), .dbias = dit_grad(dit, b->proj.b),
                                 .dgate_stride = 6 * d};
    if ((s = dfcl_run(ps->ex, &dfcl_op_branch_bwd, &br, err)) || (s = weight_grad(dit, ps, &b->proj, a->d1, k->heads, M, err)))
        return s;
    if (!through_proj)
        return DFCL_OK;
    struct dfcl_ref dheads = a->m; /* free here: norms are recomputed into it only after the attention's backward */
    struct dfcl_attn_bwd at = {.B = ps->B, .T = dit->tokens, .H = dit->cfg.heads, .D = d / dit->cfg.heads,
                               .scale = (float)(1.0 / sqrt((double)d / dit->cfg.heads)), .bf16 = dit->opt.weights == DFCL_BF16,
                               .qkv = k->qkv, .out = k->heads, .lse = k->lse,
                               .dout = dheads, .dqkv = a->d4};
    if ((s = input_grad(ps, &b->proj, a->d1, DFCL_ACT_NONE, DFCL_NO_REF, dheads, false, M, err)) ||
        (s = dfcl_run(ps->ex, &dfcl_op_attn_bwd, &at, err)))
        return s;
    if (dit_has(gq)) {
        struct dfcl_branch_bwd bq = {.M = M, .N = 3 * d, .T = dit->tokens, .dz = a->d4, .v = k->qkv_pre, .gamma_in = dit_value(gq),
                                     .dv = a->d4, .dgamma_in = dit_grad(dit, gq), .dbias = dit_grad(dit, b->qkv.b)};
        if ((s = dfcl_run(ps->ex, &dfcl_op_branch_bwd, &bq, err)))
            return s;
    } else if ((s = bias_grad(dit, ps, &b->qkv, a->d4, M, err))) {
        return s;
    }
    if (dit_trains(b->qkv.w) &&
        ((s = norm_again(dit, ps, a->h[i], k->mod, 0, 6, err)) || (s = weight_grad(dit, ps, &b->qkv, a->d4, a->m, M, err))))
        return s;
    if (!through_qkv)
        return DFCL_OK;
    if ((s = input_grad(ps, &b->qkv, a->d4, DFCL_ACT_NONE, DFCL_NO_REF, a->d1, false, M, err)))
        return s;
    return norm_bwd(dit, ps, a->h[i], k->stats1, k->mod, mod ? a->dmod : DFCL_NO_REF, 0, 6, a->d1, true, err);
}

/* c = mlp.2(silu(mlp.0(freq))) + table[row], and dsilu holds the sum over all adaLN layers. */
static dfcl_status condition_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    int d = dit->cfg.hidden, B = ps->B;
    dfcl_status s;
    struct dfcl_act_bwd si = {.n = (int64_t)B * d, .act = DFCL_ACT_SILU, .x = a->c, .dy = a->dsilu, .dx = a->dc};
    if ((s = dfcl_run(ps->ex, &dfcl_op_act_bwd, &si, err)))
        return s;
    if (dit_trains(dit->table)) {
        struct dfcl_class_embed_bwd ce = {.B = B, .d = d, .rows = dit->opt.class_rows, .dc = a->dc, .row = a->rows,
                                          .dtable = dit_grad(dit, dit->table)};
        if ((s = dfcl_run(ps->ex, &dfcl_op_class_embed_bwd, &ce, err)))
            return s;
    }
    if ((s = bias_grad(dit, ps, &dit->t_mlp2, a->dc, B, err)) || (s = weight_grad(dit, ps, &dit->t_mlp2, a->dc, a->t0, B, err)))
        return s;
    if (!trains(&dit->t_mlp0))
        return DFCL_OK;
    if ((s = input_grad(ps, &dit->t_mlp2, a->dc, DFCL_ACT_SILU, a->t0_pre, a->dt0, false, B, err)) ||
        (s = bias_grad(dit, ps, &dit->t_mlp0, a->dt0, B, err)))
        return s;
    return weight_grad(dit, ps, &dit->t_mlp0, a->dt0, a->freq, B, err);
}

static dfcl_status embed_bwd(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    dfcl_status s = bias_grad(dit, ps, &dit->x_embed, a->dh, ps->M, err);
    if (s || !dit_trains(dit->x_embed.w))
        return s;
    return weight_grad(dit, ps, &dit->x_embed, a->dh, a->cols, ps->M, err);
}

/* What backward reads of block i and forward did not keep. */
static dfcl_status remake(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err) {
    const struct dit_block *b = &dit->blocks[i];
    const struct dit_block_acts *k = &dit->a.block[i];
    int d = dit->cfg.hidden;
    dfcl_status s;
    if (ps->recompute == DFCL_RECOMPUTE_BLOCK && i < dit->cfg.depth - 1) { /* the last block's are still in the shared place */
        struct dit_pass again = *ps;
        again.again = true;
        if ((s = dit_block_branches(dit, &again, i, err)) || (s = dit_store(dit, ps, i, err)))
            return s;
    }
    s = dit_load(dit, ps, i, err);
    if (s || !(ps->recompute == DFCL_RECOMPUTE_CHEAP || dit->opt.keep_bf16))
        return s;
    struct dfcl_gated_residual mid = {.M = ps->M, .N = d, .T = dit->tokens, .res = dit->a.h[i], .v = k->proj_pre,
                                      .gate = dfcl_ref_at(k->mod, 2 * (uint64_t)d * 4), .gate_stride = 6 * d, .out = k->mid,
                                      .gamma_in = dit_vec(b->gamma[DIT_ATTN_GAMMA2]), .gamma_out = dit_vec(b->gamma[DIT_GAMMA1])};
    struct dfcl_gated_residual qkv = {.M = ps->M, .N = 3 * d, .T = dit->tokens, .v = k->qkv_pre, .out = k->qkv,
                                      .gamma_in = dit_vec(b->gamma[DIT_ATTN_GAMMA1])};
    s = dfcl_run(ps->ex, &dfcl_op_gated_residual, &mid, err);
    return s || !dit_has(b->gamma[DIT_ATTN_GAMMA1]) ? s : dfcl_run(ps->ex, &dfcl_op_gated_residual, &qkv, err);
}

dfcl_status dit_backward_layers(struct dfcl_dit *dit, const struct dit_pass *ps, struct dfcl_ref dout, dfcl_error *err) {
    struct need nd = {.cond = dit_trains(dit->table) || trains(&dit->t_mlp0) || trains(&dit->t_mlp2), .x = trains(&dit->x_embed)};
    int depth = dit->cfg.depth;
    bool below = below_needed(dit, &nd, depth);
    dfcl_status s = final_bwd(dit, ps, &nd, dout, below, err);
    for (int i = depth - 1; !s && i >= 0 && below; i--) {
        const struct dit_block *b = &dit->blocks[i];
        bool mod = mod_needed(dit, &nd, i), lower = below_needed(dit, &nd, i);
        bool attn = mod || lower || attn_trains(b);
        s = remake(dit, ps, i, err);
        if (!s)
            s = mlp_bwd(dit, ps, i, mod, attn, err);
        if (!s && attn)
            s = attn_bwd(dit, ps, i, mod, lower, err);
        if (!s && mod)
            s = ada_bwd(dit, ps, &b->ada, dit->a.dmod, nd.cond, false, err);
        if (!s && !ps->ex->dry)
            s = dfcl_flush(dit->dev, err);
        below = lower;
    }
    if (!s && nd.x)
        s = embed_bwd(dit, ps, err);
    return s || !nd.cond ? s : condition_bwd(dit, ps, err);
}
