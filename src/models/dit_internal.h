/* Inside of the Diffusion Transformer: what its files share.
 *
 * What backward keeps, per block (M = B*T rows):
 *   h[i] [M,d] the block's input, stats1/stats2 [M,2] of its layer norms, qkv_pre [M,3d] before gamma (the same memory as qkv where the
 *   site has no gamma), qkv [M,3d], heads [M,d] attention output, lse [B,H,T], proj_pre [M,d] before gammas, mid [M,d] after the attention
 *   residual, fc1_pre [M,4d] before GELU, fc2_pre [M,d] before gamma, mod [B,6d] modulation.
 * Every method trains something in the embedders, so every block's modulation, gates included, needs a gradient and all of these are read.
 * Inputs of linear layers are not kept: a layer norm with modulation or a GELU is recomputed where a weight gradient asks for it.
 * Level `cheap`: qkv is made again from qkv_pre where the site has a gamma, and mid from h and proj_pre, each in one place that the blocks share.
 * Level `block`: blocks share one set of everything but h and mod, and backward runs the block's forward again into it.
 * With keep_bf16 blocks share one f32 set of the large tensors; after a block's forward they are stored as bf16, and before its backward read back,
 * and what level `cheap` makes again is made again. Level `block` stores and reads what it has run again, so that all levels give the same bits.
 * Without backward all blocks share one set and the residual stream is updated in place. */
#ifndef DFCL_MODELS_DIT_INTERNAL_H
#define DFCL_MODELS_DIT_INTERNAL_H

#include "models/dit.h"

#define DIT_FREQ 256 /* size of the sinusoidal timestep embedding */
#define DIT_EPS 1e-6f

struct dit_linear {
    struct dfcl_param *w, *b;
    struct dfcl_weight weight; /* as the ops take it */
    struct dfcl_mem *mapped;   /* a file's bytes, used in place; NULL: the weight has memory of its own */
    uint64_t mapped_off;
    enum dfcl_layout mapped_layout;
};

enum { DIT_GAMMA1, DIT_GAMMA2, DIT_ATTN_GAMMA1, DIT_ATTN_GAMMA2, DIT_GAMMAS };

struct dit_block {
    struct dit_linear qkv, proj, fc1, fc2, ada;
    struct dfcl_param *gamma[DIT_GAMMAS];
};

enum { DIT_STORED = 7 }; /* tensors of a block that may be stored as bf16: dit_stored() */
struct dit_block_acts {
    struct dfcl_ref stats1, stats2, qkv_pre, qkv, heads, lse, proj_pre, mid, fc1_pre, fc2_pre, mod;
    struct dfcl_ref stored[DIT_STORED]; /* bf16; absent: not stored */
};

struct dit_acts {
    struct dfcl_ref t, rows, dom;                  /* [B] inputs */
    struct dfcl_ref freq, t0_pre, t0, temb, c, silu; /* [B,256], [B,d] ... */
    struct dfcl_ref cols;                          /* [M,C*p*p] */
    struct dfcl_ref *h;                            /* [depth+1]: input of each block, output of the last */
    struct dit_block_acts *block;                  /* [depth] */
    struct dfcl_ref m;                             /* [M,d] input of a linear layer, recomputed in backward */
    struct dfcl_ref f;                             /* [M,4d], the same memory as d4: never alive together */
    struct dfcl_ref fstats, fmod, tok;             /* final layer: [M,2], [B,2d], [M,p*p*2C] */
    /* backward */
    struct dfcl_ref dh, d1, d4, dmod, dfmod, dsilu, dc, dt0;
    struct dfcl_ref tap_y;                         /* [M,d] branch output for the tap */
};

/* Modulations of many passes, made before them (dit_ahead.c). A condition is one (timestep, class row, domain). */
struct dit_ahead {
    struct dfcl_arena arena;
    int passes, conditions; /* as reserved; 0: nothing is */
    int room;               /* conditions that the tables hold */
    struct dit_acts a;      /* t, rows, dom ... silu, [room] */
    struct dfcl_ref *mod;   /* [depth]: [room,6d] */
    struct dfcl_ref fmod;   /* [room,2d] */
    struct dfcl_ref index;  /* i32 [passes, plan's batch]: condition of each sample */
    struct dfcl_ref dom;    /* i32 [plan's batch]: domain of each sample */
    struct dfcl_exec ex;
    int done, B;            /* passes that have been made, of so many samples */
    bool mixed;             /* some sample is not of domain 0 */
};

struct dfcl_dit {
    struct dfcl_device *dev;
    const dfcl_context *ctx;
    struct dfcl_dit_config cfg;
    struct dfcl_dit_options opt;
    int tokens, out_ch, tok_dim, col_dim; /* T, 2C, p*p*2C, C*p*p */

    struct dfcl_param *params;
    int param_count;
    struct dit_linear x_embed, t_mlp0, t_mlp2, final, final_ada;
    struct dfcl_param *table;
    struct dit_block *blocks;

    struct dfcl_arena weights;
    uint64_t mapped_bytes;
    struct dfcl_mem *stage; /* rows on their way into panels, while values are set */
    bool allocated, pack;
    int64_t trained_count, vec_count; /* values in P; values of one domain's frozen vectors */
    struct dfcl_ref P, G, vecs, pool, pos;

    struct dfcl_arena acts_arena, scratch_arena;
    struct dit_acts a;
    struct dfcl_plan plan;  /* max_batch 0: none */
    struct dfcl_exec ex;
    uint64_t layout_key;    /* which gammas are present; a plan is remade when it changes */
    uint64_t max_memory;
    bool kept;              /* the last forward kept what backward needs */
    struct dit_ahead ahead;

    dfcl_dit_tap tap;
    void *tap_user;
};

/* The n-th linear layer of the model, NULL past the last; the one whose matrix p is, NULL: none. */
struct dit_linear *dit_linear_at(struct dfcl_dit *dit, int n);
struct dit_linear *dit_linear_of(struct dfcl_dit *dit, const struct dfcl_param *p);

/* Whether frozen matrices are held in panels, as far as they are not mapped rows. */
bool dit_packs(struct dfcl_dit *dit);

/* One pass over the layers; with ex->dry only the scratch is sized. */
struct dit_pass {
    struct dfcl_exec *ex;
    int B, M;
    struct dfcl_ref x, out, dom;
    struct dfcl_ref condition; /* i32 [B]: rows of the tables made ahead; absent: modulations are part of the pass */
    enum dfcl_recompute recompute; /* DFCL_FORWARD_ONLY: nothing is kept */
    bool again;                    /* a block's forward inside backward: no taps, the block's output is there already */
};
/* c = t_emb + y_emb and silu(c), from a->t, a->rows and ps->dom; the rows are ps->B samples. */
dfcl_status dit_condition(struct dfcl_dit *dit, const struct dit_pass *ps, const struct dit_acts *a, dfcl_error *err);
/* An adaLN layer: y = W silu + bias, B rows. */
dfcl_status dit_modulation(const struct dit_pass *ps, const struct dit_linear *l, struct dfcl_ref silu, struct dfcl_ref y, dfcl_error *err);
dfcl_status dit_check_batch(struct dfcl_dit *dit, int B, const int32_t *rows, const int32_t *dom, dfcl_error *err);
void dit_ahead_drop(struct dfcl_dit *dit);
dfcl_status dit_forward_layers(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err);
/* Both branches of block i from a->h[i] and its modulation. */
dfcl_status dit_block_branches(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err);
/* The n-th tensor that may be stored, and its values in units of M * hidden. */
struct dfcl_ref *dit_stored(struct dit_block_acts *k, int n, int *width);
/* Stores a block's tensors as bf16, or reads them back. */
dfcl_status dit_store(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err);
dfcl_status dit_load(struct dfcl_dit *dit, const struct dit_pass *ps, int i, dfcl_error *err);
dfcl_status dit_backward_layers(struct dfcl_dit *dit, const struct dit_pass *ps, struct dfcl_ref dout, dfcl_error *err);

static inline bool dit_has(const struct dfcl_param *p) {
    return p && p->present;
}
static inline bool dit_trains(const struct dfcl_param *p) {
    return p && p->present && p->trained;
}
/* The vector as ops take it; absent when the parameter is. */
static inline struct dfcl_vec dit_vec(const struct dfcl_param *p) {
    return dit_has(p) ? (struct dfcl_vec){p->value, p->dom_stride} : DFCL_NO_VEC;
}
static inline struct dfcl_ref dit_value(const struct dfcl_param *p) {
    return dit_has(p) ? p->value : DFCL_NO_REF;
}
static inline struct dfcl_ref dit_grad(const struct dfcl_dit *dit, const struct dfcl_param *p) {
    return dit_trains(p) ? dfcl_ref_at(dit->G, (uint64_t)p->trained_off * 4) : DFCL_NO_REF;
}

#endif
