#include "train/validate.h"

#include "base/philox.h"
#include "diffusion/schedule.h"

enum { LEAST_PAIRS = 256, MOST_PAIRS = 2048 };

int dfcl_validate_pairs(int64_t held_out) {
    int64_t n = DFCL_MIN(held_out, MOST_PAIRS);
    return n < 1 ? 0 : (int)(n * ((LEAST_PAIRS + n - 1) / n));
}

/* Buffers of one group of pairs. */
struct group {
    float *x0;
    int32_t *t, *rows;
};

static dfcl_status fill(const struct group *g, struct dfcl_model *model, struct dfcl_dataset *data, int first, int n, size_t each, uint64_t seed,
                        dfcl_error *err) {
    for (int i = 0; i < n; i++) {
        int32_t label;
        uint32_t pair = (uint32_t)(first + i);
        dfcl_status s = dfcl_dataset_held_out(data, pair % dfcl_dataset_held_out_count(data), g->x0 + (size_t)i * each, &label, err);
        if (!s)
            s = dfcl_model_row(model, 0, label, &g->rows[i], err);
        if (s)
            return s;
        g->t[i] = (int32_t)dfcl_uniform_int(seed, DFCL_STREAM_VAL, 0, pair, 0, DFCL_TRAIN_STEPS);
    }
    return DFCL_OK;
}

dfcl_status dfcl_validate(struct dfcl_stepper *st, struct dfcl_model *model, struct dfcl_dataset *data, int batch, uint64_t seed,
                          struct dfcl_loss_estimate *out, dfcl_error *err) {
    const dfcl_context *ctx = model->ctx;
    const struct dfcl_model_shape *m = &model->shape;
    size_t each = (size_t)m->channels * (size_t)m->input * (size_t)m->input_width, most = (size_t)batch;
    int pairs = dfcl_validate_pairs(dfcl_dataset_held_out_count(data));
    struct group g = {dfcl_calloc(ctx, most, each * sizeof(float), err), dfcl_calloc(ctx, most, sizeof(int32_t), err),
                      dfcl_calloc(ctx, most, sizeof(int32_t), err)};
    float *losses = dfcl_calloc(ctx, 2 * (size_t)pairs, sizeof *losses, err);
    dfcl_status s = g.x0 && g.t && g.rows && losses ? dfcl_stepper_swap_ema(st, err) : DFCL_NOMEM;
    if (s)
        goto done;
    for (int first = 0; !s && first < pairs; first += batch) {
        int n = DFCL_MIN(batch, pairs - first);
        const float *mse, *vb;
        struct dfcl_step_batch b = {.x0 = g.x0, .t = g.t, .rows = g.rows, .seed = seed, .first = (uint64_t)first, .step = 1};
        s = fill(&g, model, data, first, n, each, seed, err);
        if (!s)
            s = dfcl_step_evaluate(st, &b, n, err);
        dfcl_step_losses(st, &mse, &vb);
        for (int i = 0; !s && i < n; i++) {
            losses[2 * (first + i)] = mse[i];
            losses[2 * (first + i) + 1] = vb[i];
        }
    }
    if (!s)
        dfcl_loss_means(losses, pairs, out);
    dfcl_status back = dfcl_stepper_swap_ema(st, s ? NULL : err);
    if (!s)
        s = back;
done:
    dfcl_free(ctx, g.x0);
    dfcl_free(ctx, g.t);
    dfcl_free(ctx, g.rows);
    dfcl_free(ctx, losses);
    return s;
}
