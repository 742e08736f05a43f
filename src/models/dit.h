/* Diffusion Transformer (Peebles & Xie, arXiv 2212.09748) on a device: parameters, forward, partial backward.
 *
 * One thread at a time. The model code is an explicit list of layers; what backward keeps per block is listed in dit_internal.h.
 * Parameters keep the original names and shapes (docs/formats.md). Vectors (biases, gammas) belong to domains: with `domains` > 1
 * each is [domains, n] with a common stride. The class tables of all domains lie in one pool of rows; callers give rows. */
#ifndef DFCL_MODELS_DIT_H
#define DFCL_MODELS_DIT_H

#include "ops/ops.h"
#include "tensor/arena.h"

struct dfcl_dit_config {
    int depth, hidden, heads, patch;
    int input;    /* height of the latent or picture, multiple of patch */
    int width;    /* its width, the same; 0: square */
    int channels; /* C; the network outputs 2C (learned range) */
    int classes;  /* K of the base; its table has K + 1 rows, the last is the null class */
    double pos_base; /* grid that positions of the longer side are scaled to (docs/formats.md "positional scale"); 0: the model's own grid, no scaling */
};
static inline int dfcl_dit_width(const struct dfcl_dit_config *c) {
    return c->width > 0 ? c->width : c->input;
}
/* Values of a channel of a sample; of a sample. */
static inline size_t dfcl_dit_plane(const struct dfcl_dit_config *c) {
    return (size_t)c->input * (size_t)dfcl_dit_width(c);
}
static inline size_t dfcl_dit_values(const struct dfcl_dit_config *c) {
    return (size_t)c->channels * dfcl_dit_plane(c);
}
/* The token grid's longer side, and its tokens. */
static inline int dfcl_dit_grid(const struct dfcl_dit_config *c) {
    return DFCL_MAX(c->input, dfcl_dit_width(c)) / c->patch;
}
static inline int dfcl_dit_tokens(const struct dfcl_dit_config *c) {
    return (c->input / c->patch) * (dfcl_dit_width(c) / c->patch);
}
/* Finds depth/hidden/heads/patch of "DiT-XL/2" (S, B, L, XL by 2, 4, 8); false if unknown. Leaves the other fields alone. */
bool dfcl_dit_named(const char *name, struct dfcl_dit_config *cfg);
/* "DiT-XL/2" where a named size fits, else "". */
const char *dfcl_dit_name_of(const struct dfcl_dit_config *cfg);
dfcl_status dfcl_dit_config_check(const struct dfcl_dit_config *cfg, dfcl_error *err);

/* The one parameter of kind TABLE. */
#define DFCL_CLASS_TABLE "y_embedder.embedding_table.weight"

enum dfcl_param_kind { DFCL_PARAM_WEIGHT, DFCL_PARAM_VEC, DFCL_PARAM_TABLE };

struct dfcl_param {
    char name[64];  /* "blocks.3.attn.qkv.weight" */
    enum dfcl_param_kind kind;
    int ndim;
    int64_t shape[4];
    int64_t count;
    int block;      /* -1: none */
    bool gamma;     /* one of the four gamma sites */
    bool present;   /* gammas: attached; everything else: true */
    bool trained;
    bool mapped;    /* a frozen matrix that lies in a file's mapping (dfcl_dit_map_weight): its values are there already */
    int64_t trained_off; /* elements into the flat trained arrays, when trained */
    struct dfcl_ref value; /* f32, domain 0 of a vector; row-major weight in its type (absent when only the packed form is kept) */
    int64_t dom_stride;    /* vectors: elements between domains */
    int index;             /* position in the table; also the Philox "sample" of its initialisation */
};

struct dfcl_dit;

struct dfcl_dit_options {
    int domains;      /* capacity, >= 1 (1 when training) */
    int class_rows;   /* capacity of the class-table pool in rows; 0: classes + 1 */
    bool pack;        /* pack frozen weights where the device's variants profit */
    enum dfcl_dtype weights; /* frozen matrices on the device: F32, F16 or BF16 */
    bool keep_bf16;          /* what backward reads of each block is kept as bf16 */
};
/* The life of a model: create -> (set_gammas, set_trained, set_class_rows)* -> alloc_params -> load values -> plan -> forward/backward. */
dfcl_status dfcl_dit_create(struct dfcl_dit **out, struct dfcl_device *dev, const struct dfcl_dit_config *cfg,
                            const struct dfcl_dit_options *opt, dfcl_error *err);
/* Names and shapes only, without a device: everything from alloc_params on fails. */
dfcl_status dfcl_dit_create_table(struct dfcl_dit **out, const dfcl_context *ctx, const struct dfcl_dit_config *cfg, dfcl_error *err);
void dfcl_dit_destroy(struct dfcl_dit **dit);
const struct dfcl_dit_config *dfcl_dit_get_config(const struct dfcl_dit *dit);
struct dfcl_device *dfcl_dit_device(struct dfcl_dit *dit); /* NULL for a table */
const dfcl_context *dfcl_dit_context(const struct dfcl_dit *dit);

/* The parameter table in the original's order (gammas at the end of each block), pos_embed left out (computed). */
struct dfcl_param *dfcl_dit_params(struct dfcl_dit *dit, int *count);
struct dfcl_param *dfcl_dit_param(struct dfcl_dit *dit, const char *name); /* NULL: no such parameter */

/* Takes device memory for every present parameter, and flat arrays for the trained ones: values P, gradients G (f32, same
 * offsets: trained_off). Trained parameters' `value` points into P. Gammas are filled with 1, everything else is undefined.
 * Before this call `trained` and `present` may be set freely (the methods do). */
dfcl_status dfcl_dit_alloc_params(struct dfcl_dit *dit, dfcl_error *err);
/* Before alloc_params: a frozen matrix is used where it lies, in the type of the options and either layout, in memory that outlives the model
 * and keeps its values. Where the device does not read host memory in place nothing changes (p->mapped stays false). */
dfcl_status dfcl_dit_map_weight(struct dfcl_dit *dit, struct dfcl_param *p, const void *host, enum dfcl_layout layout, dfcl_error *err);
/* Sets or reads a parameter (f32, `count` values in its shape; domain for vectors, ignored elsewhere; a table takes all its rows of
 * domain 0: classes + 1, the pool's start). A weight that is packed is packed here and read back by unpacking; one of 16 bits is rounded to
 * nearest even, DFCL_NONFINITE where f16 cannot hold a value. */
dfcl_status dfcl_dit_set(struct dfcl_dit *dit, struct dfcl_param *p, int domain, const float *values, dfcl_error *err);
dfcl_status dfcl_dit_get(struct dfcl_dit *dit, const struct dfcl_param *p, int domain, float *values, dfcl_error *err);
/* Frees what setting weights took in passing; a later dfcl_dit_set takes it again. */
void dfcl_dit_set_done(struct dfcl_dit *dit);
/* Rows [first, first + n) of the class-table pool, hidden values each. */
dfcl_status dfcl_dit_set_rows(struct dfcl_dit *dit, int first, int n, const float *values, dfcl_error *err);
dfcl_status dfcl_dit_get_rows(struct dfcl_dit *dit, int first, int n, float *values, dfcl_error *err);

/* Replaces the computed position table [tokens, hidden]. */
dfcl_status dfcl_dit_set_positions(struct dfcl_dit *dit, const float *values, dfcl_error *err);

/* Flat trained arrays: count of values, and refs (absent when nothing is trained). */
int64_t dfcl_dit_trained(struct dfcl_dit *dit, struct dfcl_ref *values, struct dfcl_ref *grads);
/* To be called after trained values changed (an optimizer step, an EMA swap): repacks trained weights that have packed copies. */
dfcl_status dfcl_dit_refresh(struct dfcl_dit *dit, dfcl_error *err);

/* What backward runs again instead of keeping it (docs/architecture.md, "Memory"). Gradients have the same bits at every level. */
enum dfcl_recompute {
    DFCL_FORWARD_ONLY,    /* nothing is kept: there is no backward */
    DFCL_RECOMPUTE_NONE,  /* all that backward reads is kept */
    DFCL_RECOMPUTE_CHEAP, /* what one light pass makes again is not */
    DFCL_RECOMPUTE_BLOCK, /* of a block only its input; its forward runs again */
    DFCL_RECOMPUTE_COUNT,
};
/* "none", "cheap", "block"; and back, where NULL and "auto" are DFCL_FORWARD_ONLY (to be chosen). DFCL_USAGE: no such level. */
const char *dfcl_recompute_name(enum dfcl_recompute level);
dfcl_status dfcl_recompute_parse(const char *name, enum dfcl_recompute *level, dfcl_error *err);

/* Memory for batches of up to max_batch samples: activations (kept per block as the level says), scratch. Dry run first, then the plan is
 * checked against the device (DFCL_NOMEM with the plan in the message when it does not fit max_memory bytes; 0: the device's memory). */
struct dfcl_plan {
    uint64_t weights, activations, scratch, total; /* bytes taken */
    uint64_t mapped; /* bytes of weights read in place from the file, on top of the total */
    int max_batch;
    enum dfcl_recompute recompute;
    bool keep_bf16; /* and something is kept */
};
dfcl_status dfcl_dit_plan(struct dfcl_dit *dit, int max_batch, enum dfcl_recompute recompute, uint64_t max_memory,
                          struct dfcl_plan *plan, dfcl_error *err);
/* Only computes the plan; takes nothing. */
dfcl_status dfcl_dit_plan_only(struct dfcl_dit *dit, int max_batch, enum dfcl_recompute recompute, struct dfcl_plan *plan,
                               dfcl_error *err);
/* The plan in use; max_batch 0: none. */
const struct dfcl_plan *dfcl_dit_current_plan(const struct dfcl_dit *dit);
/* Names every op that a pass of B samples queues under the current plan and the variant that runs it, in order, without running it: forward, and
 * backward too when the plan is a training one. */
dfcl_status dfcl_dit_walk(struct dfcl_dit *dit, int B, void (*note)(void *user, const struct dfcl_op *op, const struct dfcl_variant *v),
                          void *user, dfcl_error *err);
/* Formats a plan as a few readable lines; as one, for messages. */
void dfcl_plan_format(const struct dfcl_plan *plan, const struct dfcl_device_info *dev, char *buf, size_t size);
void dfcl_plan_line(const struct dfcl_plan *plan, const struct dfcl_device_info *dev, char *buf, size_t size);

struct dfcl_dit_batch {
    int B;              /* <= max_batch of the plan */
    const float *t;     /* host [B], what the network sees; may be fractional */
    const int32_t *rows; /* host [B], row of the class-table pool per sample */
    const int32_t *dom; /* host [B], domain per sample; NULL: all 0 */
    struct dfcl_ref x;  /* device f32 [B,C,height,width] */
    struct dfcl_ref out; /* device f32 [B,2C,height,width], written by forward */
};
/* keep: store what backward needs (the plan must be a training one). Host arrays may be reused on return. */
dfcl_status dfcl_dit_forward(struct dfcl_dit *dit, const struct dfcl_dit_batch *b, bool keep, dfcl_error *err);
/* After forward(keep) of the same batch: dout [B,2C,height,width]; adds to the gradients of all trained parameters. */
dfcl_status dfcl_dit_backward(struct dfcl_dit *dit, const struct dfcl_dit_batch *b, struct dfcl_ref dout, dfcl_error *err);

/* ---- passes whose modulations are made ahead ----
 * The modulation of a layer depends on timestep, class row and domain, not on x. For passes over the same samples at known timesteps (a sampler's
 * steps) those of many passes are made by one product per layer: each of its rows has the bits of the pass by itself, and the passes
 * leave the adaLN weights alone, a third of all. */

/* After dfcl_dit_plan for inference: takes memory for `passes` passes of at most `conditions` distinct (class row, domain) each, or for as many of
 * them as 256 MiB and the plan's limit leave room for, at least one (else DFCL_NOMEM). Until the next plan. */
dfcl_status dfcl_dit_reserve_ahead(struct dfcl_dit *dit, int passes, int conditions, dfcl_error *err);
/* Makes the modulations of the next passes: t [passes], one timestep for all samples of a pass; rows, dom [B]. *done: how many of the passes
 * fitted, from the first. Good until a parameter changes. DFCL_ERROR when the samples have more conditions than were reserved. Host arrays may be reused on return. */
dfcl_status dfcl_dit_ahead(struct dfcl_dit *dit, const float *t, int passes, int B, const int32_t *rows, const int32_t *dom, int *done,
                           dfcl_error *err);
/* Pass number `pass` of those on its first B samples; x, out as in dfcl_dit_batch. Queued without a wait. */
dfcl_status dfcl_dit_forward_ahead(struct dfcl_dit *dit, int pass, int B, struct dfcl_ref x, struct dfcl_ref out, dfcl_error *err);

/* For verification: called during forward with each intermediate under the names of docs/testing.md ("x_patch", "t_emb", "y_emb",
 * "block0.in", "block0.adaLN", "block0.mod1", "block0.qkv" (before gamma), "block0.attn_heads", "block0.attn_proj" (before gamma), "block0.attn_out"
 * (after attn.gamma2), "block0.x_mid", "block0.mod2", "block0.mlp_out" (before gamma), "block0.out", "final_mod", "final_linear"). A non-OK
 * return stops the pass. rows x cols f32 of the whole batch. NULL removes it. */
typedef dfcl_status (*dfcl_dit_tap)(void *user, const char *name, struct dfcl_ref ref, int rows, int cols, dfcl_error *err);
void dfcl_dit_set_tap(struct dfcl_dit *dit, dfcl_dit_tap tap, void *user);

/* 2-D sine-cosine table [rows*cols, w]: first half of the channels encodes the column, second half the row; coordinates i * base / max(rows, cols)
 * (base 0: i). In double, rounded to f32. */
dfcl_status dfcl_pos_embed(int rows, int cols, int w, double base, float *out, dfcl_error *err);

#endif
