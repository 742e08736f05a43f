/* The autoencoder's public face. */
#include "models/vae.h"

#include <math.h>
#include <string.h>

static void drop(struct dfcl_vae *v, struct vae_coder *c) {
    for (int t = 0; c->steps && t < c->count; t++)
        for (int i = 0; i < 2; i++)
            dfcl_free(v->ctx, c->steps[t].norm[i].gamma);
    dfcl_free(v->ctx, c->steps);
}

void dfcl_vae_close(dfcl_vae **pv) {
    if (!pv || !*pv)
        return;
    struct dfcl_vae *v = *pv;
    dfcl_finish(v->dev, NULL);
    vae_release(v);
    drop(v, &v->enc);
    drop(v, &v->dec);
    dfcl_arena_finish(&v->weights);
    dfcl_free(v->ctx, v->path);
    dfcl_free(v->ctx, v);
    *pv = NULL;
}

dfcl_status dfcl_vae_open(dfcl_vae **out, dfcl_device *dev, const struct dfcl_vae_params *params, dfcl_error *err) {
    *out = NULL;
    struct dfcl_vae *v = dfcl_calloc(dev->ctx, 1, sizeof *v, err);
    if (!v)
        return DFCL_NOMEM;
    v->ctx = dev->ctx;
    v->dev = dev;
    v->max_memory = params->max_memory;
    dfcl_arena_init(&v->weights, dev, "autoencoder weights");
    dfcl_status s = vae_load(v, params, err);
    if (s)
        dfcl_vae_close(&v);
    *out = v;
    return s;
}

const struct dfcl_vae_shape *dfcl_vae_get_shape(const dfcl_vae *v) {
    return &v->shape;
}
const char *dfcl_vae_encoder_hash(const dfcl_vae *v) {
    return v->hash[0];
}
const char *dfcl_vae_decoder_hash(const dfcl_vae *v) {
    return v->hash[1];
}
dfcl_status dfcl_vae_file_hash(const dfcl_context *ctx, const char *path, char hash[65], dfcl_error *err) {
    const struct dfcl_vae_params p = {.path = path, .only_encoder = 1, .groups = 1}; /* any number of groups does to read the values */
    dfcl_device *host;
    dfcl_vae *v = NULL;
    dfcl_status s = dfcl_device_open(&host, ctx, "host", err);
    if (!s)
        s = dfcl_vae_open(&v, host, &p, err);
    if (!s)
        memcpy(hash, v->hash[0], 65);
    dfcl_vae_close(&v);
    dfcl_device_close(&host);
    return s;
}
const char *dfcl_vae_plan(const dfcl_vae *v) {
    return v->plan;
}

static dfcl_status check_finite(const struct dfcl_vae *v, const float *x, size_t n, const char *what, dfcl_error *err) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return dfcl_fail(err, DFCL_NONFINITE, "%s: %s: value %zu is not finite", v->path, what, i);
    return DFCL_OK;
}

/* Sides in range, the half loaded. */
static dfcl_status check(const struct dfcl_vae *v, bool loaded, int n, int h, int w, int least, int most, const char *half, dfcl_error *err) {
    if (!loaded)
        return dfcl_fail(err, DFCL_USAGE, "%s: was opened without its %s", v->path, half);
    if (n < 0 || h < least || w < least || h > most || w > most)
        return dfcl_fail(err, DFCL_USAGE, "%s: %d images of %dx%d, expected sides of %d to %d", half, n, h, w, least, most);
    return DFCL_OK;
}

dfcl_status dfcl_vae_measure(dfcl_vae *v, int encode, int h, int w, struct dfcl_vae_memory *out, dfcl_error *err) {
    int f = v->shape.factor;
    dfcl_status s = check(v, encode ? v->shape.encoder : v->shape.decoder, 1, h, w, f, 1 << 15, encode ? "encoder" : "decoder", err);
    out->weights = v->weights.total;
    return s ? s : vae_least(v, encode ? &v->enc : &v->dec, encode ? h : h / f, encode ? w : w / f, &out->whole, &out->least, err);
}

dfcl_status dfcl_vae_encode(dfcl_vae *v, int n, int h, int w, const float *pictures, float *mean, float *logvar, dfcl_error *err) {
    const struct dfcl_vae_shape *sh = &v->shape;
    dfcl_status s = check(v, sh->encoder, n, h, w, sh->factor, 1 << 15, "encoder", err);
    if (s)
        return s;
    size_t in = (size_t)sh->channels * (size_t)h * (size_t)w;
    size_t half = (size_t)sh->latent_channels * (size_t)(h / sh->factor) * (size_t)(w / sh->factor);
    float *moments = dfcl_calloc(v->ctx, half, 2 * sizeof *moments, err);
    s = moments ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; i < n && !s; i++) {
        s = vae_run(v, &v->enc, h, w, pictures + (size_t)i * in, moments, err);
        if (!s)
            s = check_finite(v, moments, 2 * half, "encoder", err);
        for (size_t k = 0; k < half && !s; k++) {
            mean[(size_t)i * half + k] = moments[k];
            if (logvar)
                logvar[(size_t)i * half + k] = fminf(fmaxf(moments[half + k], -30.0f), 20.0f);
        }
    }
    dfcl_free(v->ctx, moments);
    return s;
}

dfcl_status vae_decode_raw(struct dfcl_vae *v, int h, int w, const float *z, float *picture, dfcl_error *err) {
    const struct dfcl_vae_shape *sh = &v->shape;
    dfcl_status s = vae_run(v, &v->dec, h, w, z, picture, err);
    return s ? s : check_finite(v, picture, (size_t)sh->channels * (size_t)h * (size_t)w * (size_t)sh->factor * (size_t)sh->factor, "decoder", err);
}

dfcl_status dfcl_vae_decode(dfcl_vae *v, int n, int h, int w, const float *latents, float *pictures, dfcl_error *err) {
    const struct dfcl_vae_shape *sh = &v->shape;
    dfcl_status s = check(v, sh->decoder, n, h, w, 1, (1 << 15) / sh->factor, "decoder", err);
    if (s)
        return s;
    size_t in = (size_t)sh->latent_channels * (size_t)h * (size_t)w;
    size_t out = (size_t)sh->channels * (size_t)h * (size_t)w * (size_t)sh->factor * (size_t)sh->factor;
    float *z = dfcl_calloc(v->ctx, in, sizeof *z, err);
    s = z ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; i < n && !s; i++) {
        for (size_t k = 0; k < in; k++)
            z[k] = (float)((double)latents[(size_t)i * in + k] / sh->scale + sh->shift);
        s = vae_decode_raw(v, h, w, z, pictures + (size_t)i * out, err);
    }
    dfcl_free(v->ctx, z);
    return s;
}
