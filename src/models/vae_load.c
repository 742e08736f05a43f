/* An autoencoder's file -> layers and weights on a device. Sizes come from the shapes; the layers are built twice: dry, which checks shapes and adds up
 * memory, then for real. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "formats/tensor_file.h"
#include "models/vae.h"
#include "ops/linear_common.h"

struct loader {
    struct dfcl_vae *v;
    struct dfcl_tensor_file *f;
    struct vae_names names;
    bool dry, panels;
    struct dfcl_sha256 sha;
};

static const struct dfcl_tensor_view *find(struct loader *l, const char *stem, const char *what) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", stem, what);
    return vae_names_find(&l->names, l->f, name);
}

/* The values go into the hash after the tensor's newer name in diffusers. */
static dfcl_status read_values(struct loader *l, const struct dfcl_tensor_view *t, const char *stem, const char *what, float *out, dfcl_error *err) {
    char name[128];
    int n = snprintf(name, sizeof name, "%s.%s\n", stem, what);
    dfcl_status s = dfcl_tensor_file_read_f32(l->f, t, 0, t->count, out, err);
    if (!s)
        s = dfcl_sha256_update(&l->sha, name, (size_t)n, err);
    if (!s)
        s = dfcl_sha256_update(&l->sha, out, (size_t)t->count * sizeof *out, err);
    for (uint64_t i = 0; i < t->count && !s; i++)
        if (!isfinite(out[i]))
            s = dfcl_fail(err, DFCL_NONFINITE, "%s: tensor %s: value %llu is not finite", l->v->path, t->name, (unsigned long long)i);
    dfcl_tensor_file_release(l->f, t);
    return s;
}

/* The tensor, whose shape must be [dims] or the same number of values with ones behind ([C, C, 1, 1] of a linear layer). */
static dfcl_status need(struct loader *l, const char *stem, const char *what, const int64_t *dims, int ndim, const struct dfcl_tensor_view **out,
                        dfcl_error *err) {
    char want[96], have[96];
    *out = find(l, stem, what);
    if (!*out)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected an autoencoder (AutoencoderKL), found no tensor %s.%s", l->v->path, stem, what);
    bool same = (*out)->ndim >= DFCL_MIN(ndim, 2);
    for (int i = 0; i < (*out)->ndim || i < ndim; i++)
        same = same && (i < (*out)->ndim ? (*out)->shape[i] : 1) == (i < ndim ? dims[i] : 1);
    if (!same)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected %s, found %s", l->v->path, (*out)->name,
                         dfcl_shape_format(dims, ndim, want, sizeof want), dfcl_shape_format((*out)->shape, (*out)->ndim, have, sizeof have));
    return DFCL_OK;
}

/* A matrix in the form that the device reads; w holds [N, K] on the host. */
static dfcl_status put_matrix(struct loader *l, struct dfcl_weight *m, int N, int K, const float *w, dfcl_error *err) {
    struct dfcl_ref at;
    uint64_t count = l->panels ? dfcl_panel_count(N, K) : (uint64_t)N * (uint64_t)K;
    *m = (struct dfcl_weight){.N = N, .K = K, .dtype = DFCL_F32, .layout = l->panels ? DFCL_PANEL48 : DFCL_ROW_MAJOR};
    dfcl_status s = dfcl_arena_alloc(&l->v->weights, count * 4, &at, err);
    *(l->panels ? &m->packed : &m->data) = at;
    if (s || l->dry)
        return s;
    if (!l->panels)
        return dfcl_write(l->v->dev, at, w, count * 4, err);
    float *packed = dfcl_calloc(l->v->ctx, (size_t)count, sizeof *packed, err);
    if (!packed)
        return DFCL_NOMEM;
    dfcl_pack_panels(w, N, K, 4, packed);
    s = dfcl_write(l->v->dev, at, packed, count * 4, err);
    dfcl_free(l->v->ctx, packed);
    return s;
}

/* Taps of the 3x3 kernel that meet row u of a 2x2 window for output rows of parity a: nearest neighbours put row y of the large image on row y / 2, so
 * rows 2i - 1, 2i, 2i + 1 are i - 1, i, i, and rows 2i, 2i + 1, 2i + 2 are i, i, i + 1. */
static bool meets(int a, int u, int tap) {
    return a == 0 ? (u == 0) == (tap == 0) : (u == 1) == (tap == 2);
}

static dfcl_status put_up(struct loader *l, struct vae_conv *c, const float *w, float *sum, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (int phase = 0; phase < 4 && !s; phase++) {
        for (int n = 0; n < c->N && !l->dry; n++)
            for (int tap = 0; tap < 4; tap++)
                for (int ch = 0; ch < c->C; ch++) {
                    double v = 0;
                    for (int ky = 0; ky < 3; ky++)
                        for (int kx = 0; kx < 3; kx++)
                            if (meets(phase / 2, tap / 2, ky) && meets(phase % 2, tap % 2, kx))
                                v += w[(((int64_t)n * c->C + ch) * 3 + ky) * 3 + kx];
                    sum[((int64_t)n * 4 + tap) * c->C + ch] = (float)v;
                }
        s = put_matrix(l, &c->up[phase], c->N, 4 * c->C, sum, err);
    }
    return s;
}

static dfcl_status load_conv(struct loader *l, struct vae_conv *c, const char *stem, int N, int C, int k, bool up, dfcl_error *err) {
    const struct dfcl_tensor_view *wt, *bt;
    const int64_t dims[4] = {N, C, k, k};
    dfcl_status s = need(l, stem, "weight", dims, 4, &wt, err);
    if (!s)
        s = need(l, stem, "bias", dims, 1, &bt, err);
    if (s)
        return s;
    c->N = N, c->C = C, c->k = k;
    if (!l->dry)
        l->v->shape.parameters += (int64_t)(wt->count + bt->count);
    if ((s = dfcl_arena_alloc(&l->v->weights, (uint64_t)N * 4, &c->bias, err)) != DFCL_OK)
        return s;
    float *w = NULL, *t = NULL;
    if (!l->dry) {
        w = dfcl_calloc(l->v->ctx, (size_t)wt->count, sizeof *w, err);
        t = w ? dfcl_calloc(l->v->ctx, (size_t)DFCL_MAX(wt->count, (uint64_t)N), sizeof *t, err) : NULL;
        s = t ? read_values(l, bt, stem, "bias", t, err) : DFCL_NOMEM;
        if (!s)
            s = dfcl_write(l->v->dev, c->bias, t, (uint64_t)N * 4, err);
        if (!s)
            s = read_values(l, wt, stem, "weight", w, err);
    }
    if (!s && up) {
        s = put_up(l, c, w, t, err);
    } else if (!s) {
        for (int64_t n = 0; n < N && !l->dry; n++)
            for (int ch = 0; ch < C; ch++)
                for (int i = 0; i < k * k; i++)
                    t[(n * k * k + i) * C + ch] = w[(n * C + ch) * k * k + i];
        s = put_matrix(l, &c->w, N, k * k * C, t, err);
    }
    dfcl_free(l->v->ctx, w);
    dfcl_free(l->v->ctx, t);
    return s;
}

static dfcl_status load_norm(struct loader *l, struct vae_norm *n, const char *stem, int C, dfcl_error *err) {
    const struct dfcl_tensor_view *wt, *bt;
    const int64_t dims[1] = {C};
    if (C % l->v->shape.groups)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: %d channels in %d groups", l->v->path, stem, C, l->v->shape.groups);
    dfcl_status s = need(l, stem, "weight", dims, 1, &wt, err);
    if (!s)
        s = need(l, stem, "bias", dims, 1, &bt, err);
    if (!s)
        s = dfcl_arena_alloc(&l->v->weights, (uint64_t)C * 12, &n->coef, err);
    if (s || l->dry)
        return s;
    n->C = C;
    l->v->shape.parameters += 2 * (int64_t)C;
    n->gamma = dfcl_calloc(l->v->ctx, (size_t)C, 2 * sizeof *n->gamma, err);
    if (!n->gamma)
        return DFCL_NOMEM;
    n->beta = n->gamma + C;
    s = read_values(l, wt, stem, "weight", n->gamma, err);
    return s ? s : read_values(l, bt, stem, "bias", n->beta, err);
}

/* ---- layers ---- */

static dfcl_status add_step(struct loader *l, struct vae_coder *c, enum vae_kind kind, const char *name, int in, int out, struct vae_step **step,
                            dfcl_error *err) {
    if (c->count == VAE_MAX_STEPS)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected at most %d layers", l->v->path, VAE_MAX_STEPS);
    *step = &c->steps[c->count++];
    **step = (struct vae_step){.kind = kind, .in = in, .out = out};
    snprintf((*step)->name, sizeof (*step)->name, "%s", name);
    return DFCL_OK;
}

static dfcl_status add_conv(struct loader *l, struct vae_coder *c, enum vae_kind kind, const char *name, const char *stem, int in, int out, int k,
                            dfcl_error *err) {
    struct vae_step *t = NULL;
    dfcl_status s = add_step(l, c, kind, name, in, out, &t, err);
    return s ? s : load_conv(l, &t->conv[0], stem, out, in, k, kind == VAE_UP, err);
}

static dfcl_status add_res(struct loader *l, struct vae_coder *c, const char *name, int in, int out, dfcl_error *err) {
    char stem[80];
    struct vae_step *t = NULL;
    dfcl_status s = add_step(l, c, VAE_RES, name, in, out, &t, err);
    for (int i = 0; i < 2 && !s; i++) {
        snprintf(stem, sizeof stem, "%s.norm%d", name, i + 1);
        s = load_norm(l, &t->norm[i], stem, i ? out : in, err);
        snprintf(stem, sizeof stem, "%s.conv%d", name, i + 1);
        if (!s)
            s = load_conv(l, &t->conv[i], stem, out, i ? out : in, 3, false, err);
    }
    snprintf(stem, sizeof stem, "%s.conv_shortcut", name);
    if (!s && in != out)
        s = load_conv(l, &t->conv[2], stem, out, in, 1, false, err);
    return s;
}

static dfcl_status add_mid(struct loader *l, struct vae_coder *c, const char *coder, int C, dfcl_error *err) {
    static const char *const parts[4] = {"to_q", "to_k", "to_v", "to_out.0"};
    char name[64], stem[80];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", coder);
    dfcl_status s = add_res(l, c, name, C, C, err);
    snprintf(name, sizeof name, "%s.mid_block.attentions.0", coder);
    if (!s && find(l, name, "group_norm.weight")) {
        struct vae_step *t = NULL;
        s = add_step(l, c, VAE_ATTN, name, C, C, &t, err);
        snprintf(stem, sizeof stem, "%s.group_norm", name);
        if (!s)
            s = load_norm(l, &t->norm[0], stem, C, err);
        for (int i = 0; i < 4 && !s; i++) {
            snprintf(stem, sizeof stem, "%s.%s", name, parts[i]);
            s = load_conv(l, &t->conv[i], stem, C, C, 1, false, err);
        }
    }
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", coder);
    return s ? s : add_res(l, c, name, C, C, err);
}

static dfcl_status add_out(struct loader *l, struct vae_coder *c, const char *coder, int C, int out, dfcl_error *err) {
    char stem[64];
    struct vae_step *t = NULL;
    snprintf(stem, sizeof stem, "%s.conv_out", coder);
    dfcl_status s = add_step(l, c, VAE_OUT, stem, C, out, &t, err);
    if (!s)
        s = load_conv(l, &t->conv[0], stem, out, C, 3, false, err);
    snprintf(stem, sizeof stem, "%s.conv_norm_out", coder);
    return s ? s : load_norm(l, &t->norm[0], stem, C, err);
}

/* Rows and columns of a weight; 0 when it is not there. */
static int dim(struct loader *l, const char *stem, int i) {
    const struct dfcl_tensor_view *t = find(l, stem, "weight");
    return t && i < t->ndim && t->shape[i] > 0 && t->shape[i] <= 1 << 20 ? (int)t->shape[i] : 0;
}

/* A resolution's resnets and the layer behind them. *C: channels so far. */
static dfcl_status add_block(struct loader *l, struct vae_coder *c, const char *coder, int i, bool up, int *C, int *halvings, dfcl_error *err) {
    char name[64], stem[80];
    dfcl_status s = DFCL_OK;
    int j = 0;
    for (; !s; j++) {
        snprintf(name, sizeof name, "%s.%s_blocks.%d.resnets.%d", coder, up ? "up" : "down", i, j);
        snprintf(stem, sizeof stem, "%s.conv1", name);
        int out = dim(l, stem, 0);
        if (!out)
            break;
        s = add_res(l, c, name, *C, out, err);
        *C = out;
    }
    if (!up)
        l->v->shape.layers = j;
    else
        l->v->shape.layers = j - 1;
    snprintf(name, sizeof name, "%s.%s_blocks.%d.%ssamplers.0", coder, up ? "up" : "down", i, up ? "up" : "down");
    snprintf(stem, sizeof stem, "%s.conv", name);
    if (!s && dim(l, stem, 0)) {
        s = add_conv(l, c, up ? VAE_UP : VAE_DOWN, name, stem, *C, *C, 3, err);
        ++*halvings;
    }
    return s;
}

static dfcl_status build_encoder(struct loader *l, dfcl_error *err) {
    struct vae_coder *c = &l->v->enc;
    struct dfcl_vae_shape *sh = &l->v->shape;
    int C = dim(l, "encoder.conv_in", 0), moments = dim(l, "encoder.conv_out", 0), halvings = 0, i = 0;
    c->count = 0;
    sh->channels = dim(l, "encoder.conv_in", 1);
    sh->width = C;
    dfcl_status s = add_conv(l, c, VAE_CONV, "encoder.conv_in", "encoder.conv_in", sh->channels, C, 3, err);
    for (int before = 0; !s && before != c->count; i++) {
        before = c->count;
        s = add_block(l, c, "encoder", i, false, &C, &halvings, err);
        if (before == c->count)
            break;
        sh->blocks = i + 1;
    }
    c->first_whole = c->count;
    if (!s)
        s = add_mid(l, c, "encoder", C, err);
    if (!s)
        s = add_out(l, c, "encoder", C, moments, err);
    if (!s && find(l, "quant_conv", "weight"))
        s = add_conv(l, c, VAE_CONV, "quant_conv", "quant_conv", moments, dim(l, "quant_conv", 0), 1, err);
    c->end_whole = c->count;
    if (!s && (c->steps[c->count - 1].out % 2 || halvings > 10))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected means and log-variances, found %d channels", l->v->path, c->steps[c->count - 1].out);
    if (s)
        return s;
    sh->latent_channels = c->steps[c->count - 1].out / 2;
    sh->factor = 1 << halvings;
    sh->encoder = 1;
    return DFCL_OK;
}

static dfcl_status build_decoder(struct loader *l, dfcl_error *err) {
    struct vae_coder *c = &l->v->dec;
    struct dfcl_vae_shape *sh = &l->v->shape;
    int z = dim(l, "decoder.conv_in", 1), C = dim(l, "decoder.conv_in", 0), halvings = 0, in = z;
    c->count = 0;
    dfcl_status s = DFCL_OK;
    if (find(l, "post_quant_conv", "weight"))
        s = add_conv(l, c, VAE_CONV, "post_quant_conv", "post_quant_conv", in = dim(l, "post_quant_conv", 1), z, 1, err);
    if (!s)
        s = add_conv(l, c, VAE_CONV, "decoder.conv_in", "decoder.conv_in", z, C, 3, err);
    if (!s)
        s = add_mid(l, c, "decoder", C, err);
    c->first_whole = 0;
    c->end_whole = c->count;
    for (int i = 0; i < l->names.up_blocks && !s; i++)
        s = add_block(l, c, "decoder", i, true, &C, &halvings, err);
    sh->channels = dim(l, "decoder.conv_out", 0);
    if (!s)
        s = add_out(l, c, "decoder", C, sh->channels, err);
    if (!s && halvings > 10)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: %d upsamplings, expected at most 10", l->v->path, halvings);
    if (!s && sh->encoder && (sh->factor != 1 << halvings || sh->latent_channels != in))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: the encoder makes latents of %d channels at 1/%d, the decoder takes %d at 1/%d", l->v->path,
                      sh->latent_channels, sh->factor, in, 1 << halvings);
    if (s)
        return s;
    sh->blocks = l->names.up_blocks;
    sh->width = C;
    sh->latent_channels = in;
    sh->factor = 1 << halvings;
    sh->decoder = 1;
    return DFCL_OK;
}

static dfcl_status build(struct loader *l, const struct dfcl_vae_params *p, dfcl_error *err) {
    l->v->shape.encoder = l->v->shape.decoder = 0;
    dfcl_status s = DFCL_OK;
    for (int half = 0; half < 2 && !s; half++) {
        if (half ? p->only_encoder : p->only_decoder)
            continue;
        if (!l->dry && (s = dfcl_sha256_init(&l->sha, err)) != DFCL_OK)
            return s;
        s = half ? build_decoder(l, err) : build_encoder(l, err);
        if (!s && !l->dry)
            s = dfcl_sha256_finish(&l->sha, l->v->hash[half], err);
        else
            dfcl_sha256_abort(&l->sha);
    }
    return s;
}

dfcl_status vae_load(struct dfcl_vae *v, const struct dfcl_vae_params *p, dfcl_error *err) {
    struct loader l = {.v = v, .dry = true, .panels = dfcl_on_cpu(v->dev)};
    double number;
    if (p->only_decoder && p->only_encoder)
        return dfcl_fail(err, DFCL_USAGE, "autoencoder: without its encoder and its decoder");
    char *inner = dfcl_sprintf(v->ctx, err, "%s/vae", p->path);
    if (!inner)
        return DFCL_NOMEM;
    dfcl_status s = dfcl_tensor_file_open(&l.f, v->ctx, dfcl_path_kind(inner) == DFCL_PATH_DIR ? inner : p->path, NULL, err);
    dfcl_free(v->ctx, inner);
    if (s)
        return s;
    if (!(v->path = dfcl_strdup(v->ctx, dfcl_tensor_file_path(l.f), err))) {
        s = DFCL_NOMEM;
        goto out;
    }
    vae_names_detect(&l.names, l.f);
    const char *act = dfcl_tensor_file_text(l.f, "act_fn");
    if (act && strcmp(act, "silu") && strcmp(act, "swish")) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: activation %s, expected silu", v->path, act);
        goto out;
    }
    v->shape.groups = p->groups ? p->groups : dfcl_tensor_file_number(l.f, "norm_num_groups", &number) && number >= 1 && number <= 4096 ? (int)number : 32;
    v->shape.scale = p->scale != 0 ? p->scale : dfcl_tensor_file_number(l.f, "scaling_factor", &number) && number > 0 ? number : 0.18215;
    v->shape.shift = dfcl_tensor_file_number(l.f, "shift_factor", &number) ? number : 0;
    v->enc.steps = dfcl_calloc(v->ctx, VAE_MAX_STEPS, sizeof *v->enc.steps, err);
    v->dec.steps = v->enc.steps ? dfcl_calloc(v->ctx, VAE_MAX_STEPS, sizeof *v->dec.steps, err) : NULL;
    s = v->dec.steps ? build(&l, p, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_arena_commit(&v->weights, err);
    l.dry = false;
    if (!s)
        s = build(&l, p, err);
out:
    dfcl_tensor_file_close(&l.f);
    return s;
}
