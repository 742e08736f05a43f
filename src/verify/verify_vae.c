/* vae/io.safetensors: the autoencoder of vae/ on pictures of two shapes, with outputs of some layers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "models/vae.h"
#include "verify/golden.h"

static const struct dfcl_limit limit = {.rel = 1e-5, .abs = 5e-5};

struct tapping {
    struct dfcl_golden_file *f;
    struct dfcl_vae *vae;
    const char *picture;
};

/* Outputs of layers, whose names are those of sub-modules; a block is named by its last layer. */
static dfcl_status tap(void *user, const char *name, struct dfcl_ref ref, int H, int W, int C, dfcl_error *err) {
    struct tapping *t = user;
    static const char *const blocks[] = {"decoder.mid_block.resnets.1", "decoder.up_blocks.0.upsamplers.0"};
    char key[128];
    snprintf(key, sizeof key, "%s.act.%s", t->picture, name);
    for (size_t i = 0; i < DFCL_COUNT(blocks) && !dfcl_golden_has(t->f, key); i++)
        if (!strcmp(name, blocks[i])) {
            snprintf(key, sizeof key, "%s.act.%s", t->picture, name);
            for (int dots = 0; dots < 2; dots++)
                *strrchr(key, '.') = 0;
        }
    if (!dfcl_golden_has(t->f, key))
        return DFCL_OK;
    size_t hw = (size_t)H * (size_t)W, n = hw * (size_t)C;
    float *x = dfcl_calloc(t->vae->ctx, n, 2 * sizeof *x, err), *y = x + n;
    dfcl_status s = x ? dfcl_read(t->vae->dev, x, ref, n * sizeof *x, err) : DFCL_NOMEM;
    for (size_t i = 0; i < n && !s; i++)
        y[i % (size_t)C * hw + i / (size_t)C] = x[i];
    if (!s)
        s = dfcl_golden_check(t->f, key, y, n, &limit, err);
    dfcl_free(t->vae->ctx, x);
    return s;
}

static const struct dfcl_tensor_view *view(struct dfcl_golden_file *f, const char *picture, const char *what, char key[128]) {
    snprintf(key, 128, "%s.%s", picture, what);
    return dfcl_st_find(f->st, key);
}

static dfcl_status check(struct dfcl_golden_file *f, const char *picture, const char *what, const float *got, uint64_t n, dfcl_error *err) {
    char key[128];
    view(f, picture, what, key);
    return dfcl_golden_check(f, key, got, n, &limit, err);
}

static dfcl_status encode(struct dfcl_golden_file *f, struct dfcl_vae *vae, const char *picture, dfcl_error *err) {
    char key[128];
    const struct dfcl_tensor_view *v = view(f, picture, "image", key);
    float *x = NULL, *noise = NULL, *mean = NULL;
    uint64_t n = 0, m = 0;
    const struct dfcl_vae_shape *sh = &vae->shape;
    if (!v || v->ndim != 4 || v->shape[0] != 1 || v->shape[1] != sh->channels || v->shape[2] > 4096 || v->shape[3] > 4096)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a tensor %s [1,%d,h,w]", f->st->path, key, sh->channels);
    dfcl_status s = dfcl_golden_input(f, key, &x, &n, err);
    snprintf(key, sizeof key, "%s.noise", picture);
    if (!s)
        s = dfcl_golden_input(f, key, &noise, &m, err);
    if (!s && m != n / (uint64_t)sh->channels / (uint64_t)(sh->factor * sh->factor) * (uint64_t)sh->latent_channels)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected the size of a latent, found %llu values", f->st->path, key, (unsigned long long)m);
    if (!s && !(mean = dfcl_calloc(vae->ctx, (size_t)m, 2 * sizeof *mean, err)))
        s = DFCL_NOMEM;
    float *logvar = mean + (s ? 0 : m);
    if (!s)
        s = dfcl_vae_encode(vae, 1, (int)v->shape[2], (int)v->shape[3], x, mean, logvar, err);
    if (!s)
        s = check(f, picture, "mean", mean, m, err);
    if (!s)
        s = check(f, picture, "logvar", logvar, m, err);
    for (uint64_t i = 0; i < m && !s; i++)
        mean[i] += expf(0.5f * logvar[i]) * noise[i];
    if (!s)
        s = check(f, picture, "z", mean, m, err);
    for (uint64_t i = 0; i < m && !s; i++)
        mean[i] = (float)(sh->scale * ((double)mean[i] - sh->shift));
    if (!s)
        s = check(f, picture, "latent_scaled", mean, m, err);
    dfcl_free(vae->ctx, x);
    dfcl_free(vae->ctx, noise);
    dfcl_free(vae->ctx, mean);
    return s;
}

static dfcl_status decode(struct dfcl_golden_file *f, struct dfcl_vae *vae, const char *picture, dfcl_error *err) {
    char key[128];
    const struct dfcl_tensor_view *v = view(f, picture, "dec_in", key);
    float *z = NULL, *out = NULL;
    uint64_t n = 0;
    const struct dfcl_vae_shape *sh = &vae->shape;
    if (!v || v->ndim != 4 || v->shape[0] != 1 || v->shape[1] != sh->latent_channels || v->shape[2] > 1024 || v->shape[3] > 1024)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a tensor %s [1,%d,h,w]", f->st->path, key, sh->latent_channels);
    dfcl_status s = dfcl_golden_input(f, key, &z, &n, err);
    uint64_t m = s ? 0 : n / (uint64_t)sh->latent_channels * (uint64_t)(sh->factor * sh->factor) * (uint64_t)sh->channels;
    if (!s && !(out = dfcl_calloc(vae->ctx, (size_t)m, sizeof *out, err)))
        s = DFCL_NOMEM;
    if (!s)
        s = vae_decode_raw(vae, (int)v->shape[2], (int)v->shape[3], z, out, err);
    if (!s)
        s = check(f, picture, "dec_out", out, m, err);
    dfcl_free(vae->ctx, z);
    dfcl_free(vae->ctx, out);
    return s;
}

dfcl_status dfcl_verify_vae(struct dfcl_golden *g, dfcl_error *err) {
    struct dfcl_golden_file f;
    struct dfcl_vae *vae = NULL;
    char *path = dfcl_sprintf(g->ctx, err, "%s/vae", g->dir);
    dfcl_status s = path ? DFCL_OK : DFCL_NOMEM;
    if (!s && dfcl_path_kind(path) != DFCL_PATH_DIR) {
        dfcl_golden_say(g, "%-24s not there, left out", "vae");
        dfcl_free(g->ctx, path);
        return DFCL_OK;
    }
    if (!s)
        s = dfcl_golden_open(&f, g, "vae/io", err);
    if (s) {
        dfcl_free(g->ctx, path);
        return s;
    }
    s = dfcl_vae_open(&vae, g->dev, &(struct dfcl_vae_params){.path = path}, err);
    static const char *const pictures[] = {"a", "b"};
    for (size_t i = 0; i < DFCL_COUNT(pictures) && !s; i++) {
        struct tapping t = {&f, vae, pictures[i]};
        vae->tap = tap;
        vae->tap_user = &t;
        s = encode(&f, vae, pictures[i], err);
        if (!s)
            s = decode(&f, vae, pictures[i], err);
    }
    dfcl_golden_excuse(&f, "a.act.encoder.conv_norm_out"); /* the norm and its activation are one op; conv_out shows it */
    dfcl_vae_close(&vae);
    dfcl_free(g->ctx, path);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}
