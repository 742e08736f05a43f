#include "methods/merge_out.h"

#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "formats/safetensors.h"
#include "formats/tensor_file.h"
#include "formats/torch_pt.h"

struct dfcl_merge_out {
    const dfcl_context *ctx;
    bool diffusers;
    struct dfcl_dit_config cfg;
    struct dfcl_st_writer *st; /* one of these two */
    struct dfcl_pt_writer *pt;
    char *path, *tmp; /* a folder, and where it is made; NULL for a file */
};

static bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && !strcmp(s + n - k, suffix);
}

/* ---- diffusers folder ---- */

static dfcl_status check_folder(const dfcl_context *ctx, const char *path, dfcl_error *err) {
    enum dfcl_path_kind kind = dfcl_path_kind(path);
    struct dfcl_list list = {0};
    dfcl_status s = DFCL_OK;
    if (ends_with(path, ".pt") || ends_with(path, ".pth") || ends_with(path, ".safetensors"))
        return dfcl_fail(err, DFCL_USAGE, "%s: expected a folder's name: diffusers models are folders", path);
    if (kind == DFCL_PATH_FILE || kind == DFCL_PATH_OTHER)
        return dfcl_fail(err, DFCL_USAGE, "%s: expected a new or empty folder, found a file", path);
    if (kind == DFCL_PATH_DIR && !(s = dfcl_list_dir(ctx, path, &list, err)) && list.count)
        s = dfcl_fail(err, DFCL_USAGE, "%s: expected a new or empty folder, found \"%s\" in it", path, list.names[0]);
    dfcl_list_free(ctx, &list);
    return s;
}

static dfcl_status create_folder(struct dfcl_merge_out *o, const char *path, const char *const *class_names,
                                 dfcl_error *err) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (!(o->path = dfcl_sprintf(o->ctx, err, "%.*s", (int)n, path)))
        return DFCL_NOMEM;
    dfcl_status s = check_folder(o->ctx, o->path, err);
    if (s)
        return s;
    char *tmp = dfcl_sprintf(o->ctx, err, "%s.tmp-%ld", o->path, (long)getpid());
    if (!tmp)
        return DFCL_NOMEM;
    if ((s = dfcl_mkdirs(o->ctx, tmp, err))) {
        dfcl_free(o->ctx, tmp);
        return s;
    }
    o->tmp = tmp;
    char *file = dfcl_sprintf(o->ctx, err, "%s/diffusion_pytorch_model.safetensors", tmp);
    if (!file)
        return DFCL_NOMEM;
    s = dfcl_st_writer_create(&o->st, o->ctx, file, err);
    dfcl_free(o->ctx, file);
    if (!s)
        s = dfcl_st_writer_meta(o->st, "format", "pt", err);
    return s || !class_names ? s : dfcl_base_meta_classes(o->st, o->ctx, class_names, o->cfg.classes, err);
}

static dfcl_status write_config(const struct dfcl_merge_out *o, dfcl_error *err) {
    const struct dfcl_dit_config *c = &o->cfg;
    struct dfcl_text t = {.ctx = o->ctx};
    char *path = dfcl_sprintf(o->ctx, err, "%s/config.json", o->tmp);
    if (!path)
        return DFCL_NOMEM;
    dfcl_text_addf(&t, "{\n  \"_class_name\": \"DiTTransformer2DModel\",\n  \"activation_fn\": \"gelu-approximate\",\n "
                       " \"attention_bias\": true,\n");
    dfcl_text_addf(&t, "  \"attention_head_dim\": %d,\n  \"dropout\": 0.0,\n  \"in_channels\": %d,\n",
                   c->hidden / c->heads, c->channels);
    dfcl_text_addf(&t, "  \"norm_elementwise_affine\": false,\n  \"norm_eps\": 1e-06,\n  \"norm_num_groups\": 32,\n  "
                       "\"norm_type\": \"ada_norm_zero\",\n");
    dfcl_text_addf(&t, "  \"num_attention_heads\": %d,\n  \"num_embeds_ada_norm\": %d,\n  \"num_layers\": %d,\n",
                   c->heads, c->classes, c->depth);
    dfcl_text_addf(
        &t,
        "  \"out_channels\": %d,\n  \"patch_size\": %d,\n  \"sample_size\": %d,\n  \"upcast_attention\": false\n}\n",
        2 * c->channels, c->patch, c->input);
    dfcl_status s = t.failed ? dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", path)
                             : dfcl_file_write(o->ctx, path, t.s, t.n, err);
    dfcl_text_finish(&t);
    dfcl_free(o->ctx, path);
    return s;
}

/* ---- life ---- */

dfcl_status dfcl_merge_out_create(struct dfcl_merge_out **out, const dfcl_context *ctx, enum dfcl_names names,
                                  const char *path, const struct dfcl_dit_config *cfg, const char *const *class_names,
                                  const struct dfcl_latent_rgb *rgb, dfcl_error *err) {
    *out = NULL;
    struct dfcl_merge_out *o = dfcl_calloc(ctx, 1, sizeof *o, err);
    if (!o)
        return DFCL_NOMEM;
    o->ctx = ctx;
    o->cfg = *cfg;
    o->diffusers = names == DFCL_NAMES_DIFFUSERS;
    dfcl_status s;
    if (o->diffusers)
        s = create_folder(o, path, class_names, err);
    else if ((ends_with(path, ".pt") || ends_with(path, ".pth")) && dfcl_dit_width(cfg) != cfg->input)
        s = dfcl_fail(err, DFCL_USAGE,
                      "%s: a PyTorch state dict cannot say that its grid is %d x %d tokens, no square: expected a "
                      "name that ends in .safetensors",
                      path, dfcl_dit_width(cfg) / cfg->patch, cfg->input / cfg->patch);
    else if (ends_with(path, ".pt") || ends_with(path, ".pth"))
        s = dfcl_pt_writer_create(&o->pt, ctx, path, err);
    else if (!(s = dfcl_st_writer_create(&o->st, ctx, path, err)))
        s = dfcl_base_describe(o->st, ctx, cfg, class_names, err);
    if (!s && o->st)
        s = dfcl_latent_rgb_write(o->st, ctx, rgb, err);
    if (s)
        dfcl_merge_out_destroy(&o);
    *out = o;
    return s;
}

static dfcl_status declare(struct dfcl_merge_out *o, const char *name, const int64_t *shape, int ndim,
                           dfcl_error *err) {
    return o->pt ? dfcl_pt_writer_tensor(o->pt, name, shape, ndim, err)
                 : dfcl_st_writer_tensor(o->st, name, DFCL_F32, shape, ndim, err);
}

dfcl_status dfcl_merge_out_tensor(struct dfcl_merge_out *o, const char *name, const int64_t *shape, int ndim,
                                  dfcl_error *err) {
    char theirs[128];
    int64_t part[4];
    if (!o->diffusers)
        return declare(o, name, shape, ndim, err);
    memcpy(part, shape, (size_t)ndim * sizeof *part);
    part[0] /= dfcl_diffusers_pieces(name);
    dfcl_status s = DFCL_OK;
    for (int k = 0; !s && dfcl_diffusers_name(name, o->cfg.depth, k, theirs, sizeof theirs); k++)
        s = declare(o, theirs, part, ndim, err);
    return s;
}

dfcl_status dfcl_merge_out_values(struct dfcl_merge_out *o, const char *name, const float *values, size_t count,
                                  dfcl_error *err) {
    char theirs[128];
    if (o->pt)
        return dfcl_pt_writer_f32(o->pt, values, count, err);
    if (!o->diffusers)
        return dfcl_st_writer_f32(o->st, values, count, err);
    size_t pieces = (size_t)dfcl_diffusers_pieces(name), n = count / pieces;
    dfcl_status s = DFCL_OK;
    for (int k = 0; !s && dfcl_diffusers_name(name, o->cfg.depth, k, theirs, sizeof theirs); k++)
        s = dfcl_st_writer_f32(o->st, values + (pieces > 1 ? (size_t)k * n : 0), n, err);
    return s;
}

dfcl_status dfcl_merge_out_finish(struct dfcl_merge_out **po, dfcl_error *err) {
    struct dfcl_merge_out *o = *po;
    dfcl_status s = o->pt ? dfcl_pt_writer_finish(&o->pt, err) : dfcl_st_writer_finish(&o->st, err);
    if (o->tmp && !s && !(s = write_config(o, err)) && !(s = dfcl_rename(o->tmp, o->path, err))) {
        dfcl_free(o->ctx, o->tmp);
        o->tmp = NULL;
    }
    dfcl_merge_out_destroy(po);
    return s;
}

void dfcl_merge_out_destroy(struct dfcl_merge_out **po) {
    struct dfcl_merge_out *o = po ? *po : NULL;
    if (!o)
        return;
    dfcl_st_writer_destroy(&o->st);
    dfcl_pt_writer_destroy(&o->pt);
    if (o->tmp)
        dfcl_remove_tree(o->ctx, o->tmp, NULL);
    dfcl_free(o->ctx, o->tmp);
    dfcl_free(o->ctx, o->path);
    dfcl_free(o->ctx, o);
    *po = NULL;
}
