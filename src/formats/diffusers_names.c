/* Names of diffusers' DiTTransformer2DModel -> the original's, and back. q, k and v rows become one qkv; what diffusers stores once per block (the
 * timestep and class embedders) is taken from block 0, the other copies are checked when it is read. */
#include <stdio.h>
#include <string.h>

#include "formats/tensor_file_internal.h"

#define MARK "transformer_blocks.0.attn1.to_q.weight"
#define MAX_BLOCKS 1000

bool dfcl_diffusers_detect(const struct dfcl_tensor_file *f) {
    uint32_t i;
    return dfcl_tf_raw_find(f, MARK, &i) && dfcl_tf_raw_find(f, "proj_out_1.weight", &i);
}

/* Names outside the blocks. */
static const char *const outer[][2] = {
    {"pos_embed.proj.weight", "x_embedder.proj.weight"},
    {"pos_embed.proj.bias", "x_embedder.proj.bias"},
    {"pos_embed.pos_embed", "pos_embed"},
    {"proj_out_1.weight", "final_layer.adaLN_modulation.1.weight"},
    {"proj_out_1.bias", "final_layer.adaLN_modulation.1.bias"},
    {"proj_out_2.weight", "final_layer.linear.weight"},
    {"proj_out_2.bias", "final_layer.linear.bias"},
};
/* After "transformer_blocks.i."; the original's follows "blocks.i.". */
static const char *const inner[][2] = {
    {"norm1.linear.weight", "adaLN_modulation.1.weight"}, {"norm1.linear.bias", "adaLN_modulation.1.bias"},
    {"attn1.to_out.0.weight", "attn.proj.weight"},        {"attn1.to_out.0.bias", "attn.proj.bias"},
    {"ff.net.0.proj.weight", "mlp.fc1.weight"},           {"ff.net.0.proj.bias", "mlp.fc1.bias"},
    {"ff.net.2.weight", "mlp.fc2.weight"},                {"ff.net.2.bias", "mlp.fc2.bias"},
};
/* The same, but one for the whole model. */
static const char *const shared[][2] = {
    {"norm1.emb.timestep_embedder.linear_1.weight", "t_embedder.mlp.0.weight"},
    {"norm1.emb.timestep_embedder.linear_1.bias", "t_embedder.mlp.0.bias"},
    {"norm1.emb.timestep_embedder.linear_2.weight", "t_embedder.mlp.2.weight"},
    {"norm1.emb.timestep_embedder.linear_2.bias", "t_embedder.mlp.2.bias"},
    {"norm1.emb.class_embedder.embedding_table.weight", "y_embedder.embedding_table.weight"},
};

static dfcl_status add(struct dfcl_tensor_file *f, const char *name, uint32_t raw, dfcl_error *err) {
    struct dfcl_tf_entry e = {.view = f->raw[raw], .raw = {raw}};
    e.name = dfcl_strdup(f->ctx, name, err);
    if (!e.name)
        return DFCL_NOMEM;
    e.view.name = e.name;
    dfcl_status s = dfcl_tf_add(f, &e, err);
    if (s)
        dfcl_free(f->ctx, e.name);
    return s;
}

static bool same_layout(const struct dfcl_tensor_view *a, const struct dfcl_tensor_view *b) {
    return a->dtype == b->dtype && !strcmp(a->type_name, b->type_name) && a->ndim == b->ndim && !a->strided && !b->strided &&
           !memcmp(a->shape, b->shape, sizeof a->shape);
}

static dfcl_status add_qkv(struct dfcl_tensor_file *f, int block, const char *kind, const uint32_t raw[3], dfcl_error *err) {
    struct dfcl_tf_entry e = {.view = f->raw[raw[0]], .raw = {raw[0], raw[1], raw[2]}};
    for (int i = 1; i < 3; i++) {
        if (!same_layout(&f->raw[raw[0]], &f->raw[raw[i]]) || e.view.ndim < 1)
            return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected the shape and type of %s, contiguous", f->path, f->raw[raw[i]].name,
                             f->raw[raw[0]].name);
        e.view.part[i] = f->raw[raw[i]].part[0];
        e.view.source[i] = f->raw[raw[i]].source[0];
    }
    e.view.parts = 3;
    e.view.shape[0] = 0; /* set below, where an overflow shows */
    if (__builtin_mul_overflow(f->raw[raw[0]].shape[0], 3, &e.view.shape[0]) ||
        !dfcl_shape_count(e.view.shape, e.view.ndim, f->raw[raw[0]].count ? (size_t)(f->raw[raw[0]].bytes / f->raw[raw[0]].count) : 1,
                          &e.view.count, &e.view.bytes))
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: shape too large", f->path, f->raw[raw[0]].name);
    e.name = dfcl_sprintf(f->ctx, err, "blocks.%d.attn.qkv.%s", block, kind);
    if (!e.name)
        return DFCL_NOMEM;
    e.view.name = e.name;
    dfcl_status s = dfcl_tf_add(f, &e, err);
    if (s)
        dfcl_free(f->ctx, e.name);
    return s;
}

static dfcl_status map_shared(struct dfcl_tensor_file *f, int blocks, bool *used, dfcl_error *err) {
    for (size_t k = 0; k < DFCL_COUNT(shared); k++) {
        char name[128];
        uint32_t raw, first;
        snprintf(name, sizeof name, "transformer_blocks.0.%s", shared[k][0]);
        if (!dfcl_tf_raw_find(f, name, &first))
            continue;
        used[first] = true;
        dfcl_status s = add(f, shared[k][1], first, err);
        if (s)
            return s;
        struct dfcl_tf_entry *e = &f->entries[f->count - 1];
        e->copy_first = (uint32_t)f->copy_count;
        for (int b = 1; b < blocks; b++) {
            snprintf(name, sizeof name, "transformer_blocks.%d.%s", b, shared[k][0]);
            if (!dfcl_tf_raw_find(f, name, &raw))
                continue;
            if (!same_layout(&f->raw[first], &f->raw[raw]))
                return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected a copy of %s, found another shape or type", f->path, name,
                                 f->raw[first].name);
            void *p = f->copies;
            s = dfcl_grow(f->ctx, &p, &f->copy_cap, f->copy_count + 1, sizeof *f->copies, err);
            f->copies = p;
            if (s)
                return s;
            f->copies[f->copy_count++] = raw;
            e->copy_count++;
            used[raw] = true;
        }
    }
    return DFCL_OK;
}

dfcl_status dfcl_diffusers_map(struct dfcl_tensor_file *f, dfcl_error *err) {
    bool *used = dfcl_calloc(f->ctx, f->raw_count, sizeof *used, err);
    if (!used)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    char name[128], original[128];
    uint32_t raw;
    int blocks = 0;
    for (; blocks < MAX_BLOCKS; blocks++) {
        snprintf(name, sizeof name, "transformer_blocks.%d.attn1.to_q.weight", blocks);
        if (!dfcl_tf_raw_find(f, name, &raw))
            break;
    }
    for (size_t k = 0; k < DFCL_COUNT(outer) && !s; k++)
        if (dfcl_tf_raw_find(f, outer[k][0], &raw)) {
            used[raw] = true;
            s = add(f, outer[k][1], raw, err);
        }
    if (!s)
        s = map_shared(f, blocks, used, err);
    for (int b = 0; b < blocks && !s; b++) {
        for (int kind = 0; kind < 2 && !s; kind++) {
            uint32_t qkv[3];
            int have = 0;
            for (int i = 0; i < 3; i++) {
                snprintf(name, sizeof name, "transformer_blocks.%d.attn1.to_%c.%s", b, "qkv"[i], kind ? "bias" : "weight");
                if (dfcl_tf_raw_find(f, name, &qkv[i])) {
                    used[qkv[i]] = true;
                    have++;
                }
            }
            if (have == 3)
                s = add_qkv(f, b, kind ? "bias" : "weight", qkv, err);
            else if (have)
                s = dfcl_fail(err, DFCL_FORMAT, "%s: block %d: expected to_q, to_k and to_v, found %d of them", f->path, b, have);
        }
        for (size_t k = 0; k < DFCL_COUNT(inner) && !s; k++) {
            snprintf(name, sizeof name, "transformer_blocks.%d.%s", b, inner[k][0]);
            snprintf(original, sizeof original, "blocks.%d.%s", b, inner[k][1]);
            if (dfcl_tf_raw_find(f, name, &raw)) {
                used[raw] = true;
                s = add(f, original, raw, err);
            }
        }
    }
    /* Whatever the table does not know keeps its name, so that it shows in listings and is reported as unexpected. */
    for (size_t i = 0; i < f->raw_count && !s; i++)
        if (!used[i])
            s = add(f, f->raw[i].name, (uint32_t)i, err);
    dfcl_free(f->ctx, used);
    return s;
}

/* ---- and back ---- */

/* What follows "blocks.N." in a name, and N; NULL: no such name. */
static const char *in_block(const char *name, int *block) {
    int n = 0;
    return sscanf(name, "blocks.%d.%n", block, &n) == 1 && n ? name + n : NULL;
}

int dfcl_diffusers_pieces(const char *original) {
    int block;
    const char *rest = in_block(original, &block);
    return rest && !strncmp(rest, "attn.qkv.", 9) ? 3 : 1;
}

bool dfcl_diffusers_name(const char *original, int depth, int k, char *name, size_t size) {
    int block;
    const char *rest = in_block(original, &block);
    *name = 0;
    if (rest && !strncmp(rest, "attn.qkv.", 9))
        return k < 3 && dfcl_append(name, size, "transformer_blocks.%d.attn1.to_%c.%s", block, "qkv"[k], rest + 9);
    for (size_t i = 0; rest && i < DFCL_COUNT(inner); i++)
        if (!strcmp(inner[i][1], rest))
            return k < 1 && dfcl_append(name, size, "transformer_blocks.%d.%s", block, inner[i][0]);
    for (size_t i = 0; i < DFCL_COUNT(outer); i++)
        if (!strcmp(outer[i][1], original))
            return k < 1 && dfcl_append(name, size, "%s", outer[i][0]);
    for (size_t i = 0; i < DFCL_COUNT(shared); i++)
        if (!strcmp(shared[i][1], original))
            return k < depth && dfcl_append(name, size, "transformer_blocks.%d.%s", k, shared[i][0]);
    return false;
}
