#include "train/preview.h"

#include <inttypes.h>
#include <string.h>

#include <difffit-cl/sample.h>
#include <difffit-cl/vae.h>

enum { CLASSES = 8, EACH = 4 };

static dfcl_status draw(struct dfcl_model *model, uint64_t seed, uint64_t max_memory, int classes, float *out, dfcl_error *err) {
    struct dfcl_sample_request req[CLASSES * EACH];
    struct dfcl_sample_params p = {.sampler = DFCL_SAMPLER_DDIM, .steps = 50, .cfg = 1.5, .seed = seed, .batch = EACH * 2,
                                   .max_memory = max_memory};
    for (int i = 0; i < classes * EACH; i++)
        req[i] = (struct dfcl_sample_request){.domain = 0, .class_id = i / EACH, .number = (uint32_t)i};
    return dfcl_sample(model, &p, req, classes * EACH, out, err);
}

/* What is drawn: pictures in [-1, 1], or latents. */
struct drawn {
    float *x;
    int n, channels, height, width;
};

static bool is_picture(int channels) {
    return channels == 1 || channels == 3;
}

static dfcl_status open_vae(dfcl_vae **vae, struct dfcl_model *model, const char *path, uint64_t max_memory, dfcl_error *err) {
    dfcl_status s = dfcl_vae_open(vae, model->dev, &(struct dfcl_vae_params){.path = path, .only_decoder = 1, .max_memory = max_memory}, err);
    if (s)
        return s;
    const struct dfcl_vae_shape *v = dfcl_vae_get_shape(*vae);
    if (v->latent_channels == model->shape.channels && is_picture(v->channels))
        return DFCL_OK;
    s = dfcl_fail(err, DFCL_FORMAT, "%s: expected latents of %d channels and pictures of 1 or 3, found %d and %d", path, model->shape.channels,
                  v->latent_channels, v->channels);
    dfcl_vae_close(vae);
    return s;
}

dfcl_status dfcl_preview_check_vae(struct dfcl_model *model, const char *path, dfcl_error *err) {
    if (is_picture(model->shape.channels))
        return dfcl_fail(err, DFCL_USAGE, "autoencoder %s: the model works on pictures (%d channels), not on latents", path, model->shape.channels);
    dfcl_vae *vae = NULL;
    dfcl_status s = open_vae(&vae, model, path, 0, err);
    dfcl_vae_close(&vae);
    return s;
}

/* Latents to pictures. They stay latents, with a warning, where memory does not do beside the training. */
static dfcl_status decode(struct dfcl_model *model, const char *path, uint64_t max_memory, struct drawn *d, dfcl_error *err) {
    dfcl_vae *vae = NULL;
    dfcl_error why = {0};
    float *pictures = NULL;
    dfcl_status s = open_vae(&vae, model, path, max_memory, &why);
    const struct dfcl_vae_shape *v = s ? NULL : dfcl_vae_get_shape(vae);
    if (!s && !(pictures = dfcl_calloc(model->ctx, (size_t)d->n * (size_t)v->channels * sizeof(float),
                                       (size_t)(d->height * v->factor) * (size_t)(d->width * v->factor), &why)))
        s = DFCL_NOMEM;
    if (!s)
        s = dfcl_vae_decode(vae, d->n, d->height, d->width, d->x, pictures, &why);
    if (s == DFCL_NOMEM) {
        dfcl_log(model->ctx, DFCL_LOG_WARN, "%s; the latents are kept instead of pictures", why.msg);
        dfcl_free(model->ctx, pictures);
        s = DFCL_OK;
    } else if (s) {
        dfcl_free(model->ctx, pictures);
        if (err)
            *err = why;
    } else {
        dfcl_free(model->ctx, d->x);
        *d = (struct drawn){pictures, d->n, v->channels, d->height * v->factor, d->width * v->factor};
    }
    dfcl_vae_close(&vae);
    return s;
}

static dfcl_status store(const dfcl_context *ctx, const char *path, const struct drawn *d, int64_t step, dfcl_error *err) {
    if (!is_picture(d->channels)) {
        int64_t shape[4] = {d->n, d->channels, d->height, d->width};
        return dfcl_tensor_write(ctx, path, "latents", d->x, shape, 4, err);
    }
    char note[96];
    uint8_t *grid = NULL;
    int w, h;
    uint8_t *pixels = dfcl_calloc(ctx, (size_t)d->n, (size_t)d->channels * (size_t)d->height * (size_t)d->width, err);
    if (!pixels)
        return DFCL_NOMEM;
    dfcl_pixels(d->x, d->n, d->channels, d->height, d->width, pixels);
    const int shorter = DFCL_MIN(d->height, d->width);
    dfcl_status s = dfcl_grid(ctx, pixels, d->n, d->height, d->width, d->channels, EACH, shorter < 64 ? 64 / shorter : 1, &grid, &w, &h, err);
    snprintf(note, sizeof note, "step %" PRId64 ", moving average (EMA), DDIM 50 steps, guidance 1.5, a class a row", step);
    const char *const text[] = {"Comment", note, NULL};
    if (!s)
        s = dfcl_png_write(ctx, path, grid, w, h, d->channels, text, err);
    dfcl_free_pixels(ctx, grid);
    dfcl_free(ctx, pixels);
    return s;
}

dfcl_status dfcl_preview(struct dfcl_model *model, struct dfcl_stepper *st, const struct dfcl_run_dir *run, int64_t step, uint64_t seed,
                         uint64_t max_memory, const char *vae, char **path, dfcl_error *err) {
    const dfcl_context *ctx = model->ctx;
    const struct dfcl_model_shape *m = &model->shape;
    int classes = DFCL_MIN(model->domains[0].classes, CLASSES);
    char *dir = dfcl_run_dir_path(run, "samples", err);
    struct drawn d = {.n = classes * EACH, .channels = m->channels, .height = m->input, .width = m->input_width};
    d.x = dfcl_calloc(ctx, (size_t)d.n, (size_t)m->channels * (size_t)m->input * (size_t)m->input_width * sizeof(float), err);
    dfcl_status s = dir && d.x ? dfcl_mkdirs(ctx, dir, err) : DFCL_NOMEM;
    *path = NULL;
    if (!s)
        s = dfcl_stepper_swap_ema(st, err);
    if (!s) {
        uint64_t own; /* stays taken beside what the sampler plans */
        dfcl_stepper_plan(st, &own);
        s = draw(model, seed, max_memory ? DFCL_MAX(max_memory, own + 1) - own : 0, classes, d.x, err);
        if (!s && vae)
            s = decode(model, vae, max_memory, &d, err);
        /* Back also when drawing failed: the caller may still want to save. */
        dfcl_status back = dfcl_stepper_swap_ema(st, s ? NULL : err);
        if (!s)
            s = back;
        back = dfcl_stepper_replan(st, s ? NULL : err);
        if (!s)
            s = back;
    }
    if (!s && !(*path = dfcl_sprintf(ctx, err, "%s/samples/step-%06" PRId64 "-ema.%s", run->path, step, is_picture(d.channels) ? "png" : "safetensors")))
        s = DFCL_NOMEM;
    if (!s)
        s = store(ctx, *path, &d, step, err);
    if (s) {
        dfcl_free(ctx, *path);
        *path = NULL;
    }
    dfcl_free(ctx, dir);
    dfcl_free(ctx, d.x);
    return s;
}
