#include "train/preview.h"

#include <inttypes.h>
#include <string.h>

#include <difffit-cl/sample.h>

enum { CLASSES = 8, EACH = 4 };

static dfcl_status draw(struct dfcl_model *model, uint64_t seed, uint64_t max_memory, int classes, float *out, dfcl_error *err) {
    struct dfcl_sample_request req[CLASSES * EACH];
    struct dfcl_sample_params p = {.sampler = DFCL_SAMPLER_DDIM, .steps = 50, .cfg = 1.5, .seed = seed, .batch = EACH * 2,
                                   .max_memory = max_memory};
    for (int i = 0; i < classes * EACH; i++)
        req[i] = (struct dfcl_sample_request){.domain = 0, .class_id = i / EACH, .number = (uint32_t)i};
    return dfcl_sample(model, &p, req, classes * EACH, out, err);
}

static dfcl_status store(const dfcl_context *ctx, const char *path, const struct dfcl_model_shape *m, int n, const float *x, int64_t step,
                         dfcl_error *err) {
    if (m->channels != 1 && m->channels != 3) {
        int64_t shape[4] = {n, m->channels, m->input, m->input};
        return dfcl_tensor_write(ctx, path, "latents", x, shape, 4, err);
    }
    char note[96];
    uint8_t *grid = NULL;
    int w, h;
    uint8_t *pixels = dfcl_calloc(ctx, (size_t)n, (size_t)m->channels * (size_t)m->input * (size_t)m->input, err);
    if (!pixels)
        return DFCL_NOMEM;
    dfcl_pixels(x, n, m->channels, m->input, pixels);
    dfcl_status s = dfcl_grid(ctx, pixels, n, m->input, m->channels, EACH, m->input < 64 ? 64 / m->input : 1, &grid, &w, &h, err);
    snprintf(note, sizeof note, "step %" PRId64 ", moving average (EMA), DDIM 50 steps, guidance 1.5, a class a row", step);
    const char *const text[] = {"Comment", note, NULL};
    if (!s)
        s = dfcl_png_write(ctx, path, grid, w, h, m->channels, text, err);
    dfcl_free_pixels(ctx, grid);
    dfcl_free(ctx, pixels);
    return s;
}

dfcl_status dfcl_preview(struct dfcl_model *model, struct dfcl_stepper *st, const struct dfcl_run_dir *run, int64_t step, uint64_t seed,
                         uint64_t max_memory, char **path, dfcl_error *err) {
    const dfcl_context *ctx = model->ctx;
    const struct dfcl_model_shape *m = &model->shape;
    int classes = DFCL_MIN(model->domains[0].classes, CLASSES);
    bool pixels = m->channels == 1 || m->channels == 3;
    char *dir = dfcl_run_dir_path(run, "samples", err);
    float *x = dfcl_calloc(ctx, (size_t)(classes * EACH), (size_t)m->channels * (size_t)m->input * (size_t)m->input * sizeof(float), err);
    *path = dfcl_sprintf(ctx, err, "%s/samples/step-%06" PRId64 "-ema.%s", run->path, step, pixels ? "png" : "safetensors");
    dfcl_status s = dir && x && *path ? dfcl_mkdirs(ctx, dir, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_stepper_swap_ema(st, err);
    if (!s) {
        uint64_t own; /* stays taken beside what the sampler plans */
        dfcl_stepper_plan(st, &own);
        s = draw(model, seed, max_memory ? DFCL_MAX(max_memory, own + 1) - own : 0, classes, x, err);
        /* Back also when drawing failed: the caller may still want to save. */
        dfcl_status back = dfcl_stepper_swap_ema(st, s ? NULL : err);
        if (!s)
            s = back;
        back = dfcl_stepper_replan(st, s ? NULL : err);
        if (!s)
            s = back;
    }
    if (!s)
        s = store(ctx, *path, m, classes * EACH, x, step, err);
    if (s) {
        dfcl_free(ctx, *path);
        *path = NULL;
    }
    dfcl_free(ctx, dir);
    dfcl_free(ctx, x);
    return s;
}
