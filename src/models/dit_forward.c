/* Forward pass: the list of layers of the paper's Figure 3 (adaLN-Zero block), with the DiffFit gammas. Fusions are those of linear_fwd:
 * bias, gamma, activation, gate and residual ride on the matrix product that makes the value. */
#include "models/dit_internal.h"

#include <math.h>
#include <stdio.h>

static dfcl_status tap(struct dfcl_dit *dit, const struct dit_pass *ps, int block, const char *name, struct dfcl_ref ref, int rows,
                       int cols, dfcl_error *err) {
    if (!dit->tap || ps->ex->dry || ps->again || !ref.mem)
        return DFCL_OK;
    char full[64];
    if (block >= 0)
        snprintf(full, sizeof full, "block%d.%s", block, name);
    else
        snprintf(full, sizeof full, "%s", name);
    return dit->tap(dit->tap_user, full, ref, rows, cols, err);
}

/* Rows are samples: T = 1. */
dfcl_status dit_condition(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_acts *a, dfcl_error *err) {
    int d = dit->cfg.hidden, B = ps->B;
    dfcl_status s;
    struct dfcl_timestep_embed te = {.B = B, .dim = DIT_FREQ, .t = a->t, .y = a->freq};
    if ((s = dfcl_run(ps->ex, &dfcl_op_timestep_embed, &te, err)))
        return s;
    struct dfcl_linear_fwd l0 = {.M = B, .K = DIT_FREQ, .T = 1, .x = a->freq, .w = dit->t_mlp0.weight,
                                 .bias = dit_vec(dit->t_mlp0.b), .dom = ps->dom, .act = DFCL_ACT_SILU,
                                 .pre = ps->recompute ? a->t0_pre : DFCL_NO_REF, .y = a->t0};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &l0, err)))
        return s;
    struct dfcl_linear_fwd l2 = {.M = B, .K = d, .T = 1, .x = a->t0, .w = dit->t_mlp2.weight, .bias = dit_vec(dit->t_mlp2.b),
                                 .dom = ps->dom, .y = a->temb};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &l2, err)))
        return s;
    struct dfcl_class_embed ce = {.B = B, .d = d, .rows = dit->opt.class_rows, .temb = a->temb, .table = dit->pool, .row = a->rows,
                                  .c = a->c};
    if (dit->tap && a == &dit->a && !ps->ex->dry) { /* y_emb alone: with a zero timestep embedding */
        struct dfcl_class_embed ye = ce;
        ye.temb = a->c;
        ye.c = a->silu;
        if ((s = dfcl_fill(dit->dev, a->c, 0, (uint64_t)B * (uint64_t)d * 4, err)) ||
            (s = dfcl_run(ps->ex, &dfcl_op_class_embed, &ye, err)) || (s = tap(dit, ps, -1, "t_emb", a->temb, B, d, err)) ||
            (s = tap(dit, ps, -1, "y_emb", a->silu, B, d, err)))
            return s;
    }
    if ((s = dfcl_run(ps->ex, &dfcl_op_class_embed, &ce, err)))
        return s;
    struct dfcl_act_fwd si = {.n = (int64_t)B * d, .act = DFCL_ACT_SILU, .x = a->c, .y = a->silu};
    return dfcl_run(ps->ex, &dfcl_op_act_fwd, &si, err);
}

dfcl_status dit_modulation(const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref silu, struct dfcl_ref y, dfcl_error *err) {
    struct dfcl_linear_fwd f = {.M = ps->B, .K = l->weight.K, .T = 1, .x = silu, .w = l->weight, .bias = dit_vec(l->b), .dom = ps->dom,
                                .y = y};
    return dfcl_run(ps->ex, &dfcl_op_linear_fwd, &f, err);
}

/* The same in a pass: computed, or picked from what was made ahead. */
static dfcl_status modulate(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref ahead,
                            struct dfcl_ref y, dfcl_error *err) {
    if (!ps->condition.mem)
        return dit_modulation(ps, l, dit->a.silu, y, err);
    struct dfcl_gather_rows g = {.B = ps->B, .N = l->weight.N, .rows = dit->ahead.room, .table = ahead, .row = ps->condition, .y = y};
    return dfcl_run(ps->ex, &dfcl_op_gather_rows, &g, err);
}

/* tokens = conv(x) + bias + positions */
static dfcl_status embed(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    dfcl_status s;
    struct dfcl_patchify pf = {.B = ps->B, .C = dit->cfg.channels, .H = dit->cfg.input, .W = dit->cfg.width, .p = dit->cfg.patch, .img = ps->x,
                               .cols = a->cols};
    if ((s = dfcl_run(ps->ex, &dfcl_op_patchify, &pf, err)))
        return s;
    struct dfcl_linear_fwd l = {.M = ps->M, .K = dit->col_dim, .T = dit->tokens, .x = a->cols, .w = dit->x_embed.weight,
                                .bias = dit_vec(dit->x_embed.b), .dom = ps->dom, .y = dit->tap ? a->tap_y : DFCL_NO_REF,
                                .res = dit->pos, .res_rows = dit->tokens, .out = a->h[0]};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &l, err)))
        return s;
    return tap(dit, ps, -1, "x_patch", a->tap_y, ps->M, dit->cfg.hidden, err);
}

dfcl_status dit_block_branches(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    const struct dit_block *b = &dit->blocks[i];
    const struct dit_block_acts *k = &a->block[i];
    int d = dit->cfg.hidden, T = dit->tokens, B = ps->B, M = ps->M;
    uint64_t chunk = (uint64_t)d * 4;
    struct dfcl_ref none = DFCL_NO_REF, h = a->h[i], out = ps->again ? none : a->h[i + 1];
    bool keep = ps->recompute != DFCL_FORWARD_ONLY, save = keep || dit->tap;
    dfcl_status s;

    struct dfcl_ln_mod n1 = {.M = M, .N = d, .T = T, .eps = DIT_EPS, .x = h, .shift = k->mod, .scale = dfcl_ref_at(k->mod, chunk),
                             .y = a->m, .stats = keep ? k->stats1 : none, .mod_stride = 6 * d};
    if ((s = dfcl_run(ps->ex, &dfcl_op_ln_mod, &n1, err)) || (s = tap(dit, ps, i, "mod1", a->m, M, d, err)))
        return s;

    bool gq = dit_has(b->gamma[DIT_ATTN_GAMMA1]);
    struct dfcl_linear_fwd qkv = {.M = M, .K = d, .T = T, .x = a->m, .w = b->qkv.weight, .bias = dit_vec(b->qkv.b),
                                  .gamma = dit_vec(b->gamma[DIT_ATTN_GAMMA1]), .dom = ps->dom, .pre = gq && save ? k->qkv_pre : none,
                                  .y = k->qkv};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &qkv, err)) || (s = tap(dit, ps, i, "qkv", gq ? k->qkv_pre : k->qkv, M, 3 * d, err)))
        return s;

    struct dfcl_attn_fwd at = {.B = B, .T = T, .H = dit->cfg.heads, .D = d / dit->cfg.heads,
                               .scale = (float)(1.0 / sqrt((double)d / dit->cfg.heads)), .bf16 = dit->opt.weights == DFCL_BF16,
                               .qkv = k->qkv, .out = k->heads,
                               .lse = keep ? k->lse : none};
    if ((s = dfcl_run(ps->ex, &dfcl_op_attn_fwd, &at, err)) || (s = tap(dit, ps, i, "attn_heads", k->heads, M, d, err)))
        return s;

    struct dfcl_linear_fwd proj = {.M = M, .K = d, .T = T, .x = k->heads, .w = b->proj.weight, .bias = dit_vec(b->proj.b),
                                   .gamma = dit_vec(b->gamma[DIT_ATTN_GAMMA2]), .gamma_res = dit_vec(b->gamma[DIT_GAMMA1]),
                                   .dom = ps->dom, .pre = save ? k->proj_pre : none, .y = dit->tap ? a->tap_y : none, .res = h,
                                   .gate = dfcl_ref_at(k->mod, 2 * chunk), .gate_stride = 6 * d, .out = k->mid};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &proj, err)) || (s = tap(dit, ps, i, "attn_proj", k->proj_pre, M, d, err)) ||
        (s = tap(dit, ps, i, "attn_out", a->tap_y, M, d, err)) || (s = tap(dit, ps, i, "x_mid", k->mid, M, d, err)))
        return s;

    struct dfcl_ln_mod n2 = {.M = M, .N = d, .T = T, .eps = DIT_EPS, .x = k->mid, .shift = dfcl_ref_at(k->mod, 3 * chunk),
                             .scale = dfcl_ref_at(k->mod, 4 * chunk), .y = a->m, .stats = keep ? k->stats2 : none,
                             .mod_stride = 6 * d};
    if ((s = dfcl_run(ps->ex, &dfcl_op_ln_mod, &n2, err)) || (s = tap(dit, ps, i, "mod2", a->m, M, d, err)))
        return s;

    struct dfcl_linear_fwd fc1 = {.M = M, .K = d, .T = T, .x = a->m, .w = b->fc1.weight, .bias = dit_vec(b->fc1.b), .dom = ps->dom,
                                  .act = DFCL_ACT_GELU_TANH, .pre = keep ? k->fc1_pre : none, .y = a->f};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &fc1, err)))
        return s;

    struct dfcl_linear_fwd fc2 = {.M = M, .K = 4 * d, .T = T, .x = a->f, .w = b->fc2.weight, .bias = dit_vec(b->fc2.b),
                                  .gamma_res = dit_vec(b->gamma[DIT_GAMMA2]), .dom = ps->dom, .pre = save ? k->fc2_pre : none,
                                  .res = k->mid, .gate = dfcl_ref_at(k->mod, 5 * chunk), .gate_stride = 6 * d, .out = out};
    if ((s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &fc2, err)) || (s = tap(dit, ps, i, "mlp_out", k->fc2_pre, M, d, err)) ||
        (s = tap(dit, ps, i, "out", out, M, d, err)))
        return s;
    return ps->ex->dry ? DFCL_OK : dfcl_flush(dit->dev, err);
}

static dfcl_status cast(struct dfcl_dit *dit, const struct dit_pass *ps, int i, const struct dfcl_op *op, dfcl_error *err) {
    struct dit_block_acts *k = &dit->a.block[i];
    dfcl_status s = DFCL_OK;
    for (int n = 0; !s && n < DIT_STORED; n++) {
        int width;
        struct dfcl_cast c = {.x = *dit_stored(k, n, &width), .h = k->stored[n]};
        c.n = (int64_t)ps->M * dit->cfg.hidden * width;
        if (c.h.mem)
            s = dfcl_run(ps->ex, op, &c, err);
    }
    return s;
}
dfcl_status dit_store(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err) {
    return cast(dit, ps, i, &dfcl_op_bf16_store, err);
}
dfcl_status dit_load(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err) {
    return cast(dit, ps, i, &dfcl_op_bf16_load, err);
}

static dfcl_status block(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err) {
    struct dfcl_ref mod = dit->a.block[i].mod;
    int d = dit->cfg.hidden;
    dfcl_status s;
    /* modulation: shift, scale, gate of the attention branch, then of the MLP branch */
    if ((s = tap(dit, ps, i, "in", dit->a.h[i], ps->M, d, err)) ||
        (s = modulate(dit, ps, &dit->blocks[i].ada, dit->ahead.mod[i], mod, err)) ||
        (s = tap(dit, ps, i, "adaLN", mod, ps->B, 6 * d, err)))
        return s;
    s = dit_block_branches(dit, ps, i, err);
    bool keep = ps->recompute == DFCL_RECOMPUTE_NONE || ps->recompute == DFCL_RECOMPUTE_CHEAP;
    return s || !keep ? s : dit_store(dit, ps, i, err);
}

static dfcl_status final(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    int d = dit->cfg.hidden, T = dit->tokens, M = ps->M;
    dfcl_status s;
    struct dfcl_ln_mod n = {.M = M, .N = d, .T = T, .eps = DIT_EPS, .x = a->h[dit->cfg.depth], .shift = a->fmod,
                            .scale = dfcl_ref_at(a->fmod, (uint64_t)d * 4), .y = a->m, .stats = ps->recompute ? a->fstats : DFCL_NO_REF,
                            .mod_stride = 2 * d};
    struct dfcl_linear_fwd l = {.M = M, .K = d, .T = T, .x = a->m, .w = dit->final.weight, .bias = dit_vec(dit->final.b),
                                .dom = ps->dom, .y = a->tok};
    struct dfcl_unpatchify up = {.B = ps->B, .C = dit->out_ch, .H = dit->cfg.input, .W = dit->cfg.width, .p = dit->cfg.patch, .tok = a->tok,
                                 .img = ps->out};
    if ((s = modulate(dit, ps, &dit->final_ada, dit->ahead.fmod, a->fmod, err)) || (s = dfcl_run(ps->ex, &dfcl_op_ln_mod, &n, err)) ||
        (s = tap(dit, ps, -1, "final_mod", a->m, M, d, err)) || (s = dfcl_run(ps->ex, &dfcl_op_linear_fwd, &l, err)) ||
        (s = tap(dit, ps, -1, "final_linear", a->tok, M, dit->tok_dim, err)))
        return s;
    return dfcl_run(ps->ex, &dfcl_op_unpatchify, &up, err);
}

dfcl_status dit_forward_layers(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    dfcl_status s;
    if ((!ps->condition.mem && (s = dit_condition(dit, ps, &dit->a, err))) || (s = embed(dit, ps, err)))
        return s;
    for (int i = 0; i < dit->cfg.depth; i++)
        if ((s = block(dit, ps, i, err)))
            return s;
    return final(dit, ps, err);
}
