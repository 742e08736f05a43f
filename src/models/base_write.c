/* Writing a base: metadata, the order of the tensors, positions. Shared by init, merge and full fine-tuning. */
#include "base/json.h"
#include "formats/safetensors.h"
#include "models/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

dfcl_status dfcl_weight_dtype(const char *text, enum dfcl_dtype *out, dfcl_error *err) {
    static const struct {
        const char *name;
        enum dfcl_dtype dtype;
    } types[] = {{"f32", DFCL_F32}, {"f16", DFCL_F16}, {"bf16", DFCL_BF16}};
    for (size_t i = 0; i < DFCL_COUNT(types); i++)
        if (!text || !strcmp(text, types[i].name)) {
            *out = types[i].dtype;
            return DFCL_OK;
        }
    return dfcl_fail(err, DFCL_USAGE, "weight type \"%s\": expected f32, f16 or bf16", text);
}

dfcl_status dfcl_base_meta_classes(struct dfcl_st_writer *w, const dfcl_context *ctx, const char *const *class_names, int classes,
                                   dfcl_error *err) {
    char *json;
    dfcl_status s = dfcl_names_json(ctx, (char *const *)class_names, classes, &json, err);
    if (s)
        return s;
    s = dfcl_st_writer_meta(w, "class_names", json, err);
    dfcl_free(ctx, json);
    return s;
}

static dfcl_status meta_number(struct dfcl_st_writer *w, const char *key, double v, dfcl_error *err) {
    char text[32];
    snprintf(text, sizeof text, "%.17g", v);
    return dfcl_st_writer_meta(w, key, text, err);
}

dfcl_status dfcl_base_describe(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_dit_config *cfg,
                               const char *const *class_names, dfcl_error *err) {
    const char *name = dfcl_dit_name_of(cfg);
    char input[DFCL_EXTENT_TEXT];
    dfcl_status s;
    if ((s = dfcl_st_writer_meta(w, "format", DFCL_BASE_FORMAT, err)) || (*name && (s = dfcl_st_writer_meta(w, "model", name, err))) ||
        (s = meta_number(w, "heads", cfg->heads, err)) || (s = dfcl_st_writer_meta(w, "input", dfcl_extent_format(cfg->input, dfcl_dit_width(cfg), input), err)) ||
        (cfg->pos_base > 0 && (s = meta_number(w, "positional_scale", cfg->pos_base, err))))
        return s;
    return class_names ? dfcl_base_meta_classes(w, ctx, class_names, cfg->classes, err) : DFCL_OK;
}

dfcl_status dfcl_base_declare(struct dfcl_st_writer *w, struct dfcl_dit *dit, const struct dfcl_dit_config *cfg,
                              const char *const *class_names, enum dfcl_dtype dtype, dfcl_error *err) {
    const dfcl_context *ctx = dfcl_dit_context(dit);
    dfcl_status s = dfcl_base_describe(w, ctx, cfg, class_names, err);
    if (s)
        return s;
    int n;
    struct dfcl_param **p;
    if ((s = dfcl_base_order(dit, &p, &n, err)))
        return s;
    /* The original stores its positions, and loads strictly. */
    s = dfcl_st_writer_tensor(w, "pos_embed", dtype, (int64_t[]){1, dfcl_dit_tokens(cfg), cfg->hidden}, 3, err);
    for (int i = 0; i < n && !s; i++) {
        s = dfcl_st_writer_tensor(w, p[i]->name, dtype, p[i]->shape, p[i]->ndim, err);
    }
    dfcl_free(ctx, p);
    return s;
}

static int by_name(const void *a, const void *b) {
    const struct dfcl_param *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

dfcl_status dfcl_base_order(struct dfcl_dit *dit, struct dfcl_param ***out, int *count, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    *count = 0;
    *out = dfcl_calloc(dfcl_dit_context(dit), (size_t)n, sizeof **out, err);
    if (!*out)
        return DFCL_NOMEM;
    for (int i = 0; i < n; i++)
        if (!p[i].gamma)
            (*out)[(*count)++] = &p[i];
    qsort(*out, (size_t)*count, sizeof **out, by_name);
    return DFCL_OK;
}

dfcl_status dfcl_base_positions(const dfcl_context *ctx, const struct dfcl_dit_config *cfg, float **out, dfcl_error *err) {
    size_t count = (size_t)dfcl_dit_tokens(cfg) * (size_t)cfg->hidden;
    if (!(*out = dfcl_calloc(ctx, count, sizeof **out, err)))
        return DFCL_NOMEM;
    dfcl_status s = dfcl_pos_embed(cfg->input / cfg->patch, dfcl_dit_width(cfg) / cfg->patch, cfg->hidden, cfg->pos_base, *out, err);
    if (s) {
        dfcl_free(ctx, *out);
        *out = NULL;
    }
    return s;
}

dfcl_status dfcl_base_write_positions(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_dit_config *cfg,
                                      const float *positions, dfcl_error *err) {
    size_t count = (size_t)dfcl_dit_tokens(cfg) * (size_t)cfg->hidden;
    float *own = NULL;
    dfcl_status s = positions ? DFCL_OK : dfcl_base_positions(ctx, cfg, &own, err);
    if (!s)
        s = dfcl_st_writer_f32(w, positions ? positions : own, count, err);
    dfcl_free(ctx, own);
    return s;
}
