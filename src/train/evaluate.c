/* dfcl_evaluate_loss: the training loss on pictures that training has not seen, with fixed timesteps and noise. */
#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "diffusion/schedule.h"
#include "models/model.h"
#include "train/validate.h"

#include <difffit-cl/train.h>

enum { PASS = 64 }; /* pairs per forward pass */

struct evaluation {
    dfcl_model *model;
    struct dfcl_device *dev;
    struct dfcl_exec ex;
    struct dfcl_mem *mem;
    struct dfcl_ref tab, x0, noise, xt, out, t, mse, vb;
    float *host, *losses;
    uint64_t each; /* values per picture */
};

static dfcl_status take(struct evaluation *e, const struct dfcl_schedule *sched, dfcl_error *err) {
    uint64_t sizes[] = {(uint64_t)sched->steps * DFCL_TAB_COUNT, PASS * e->each, PASS * e->each, PASS * e->each, 2 * PASS * e->each, PASS, PASS, PASS};
    struct dfcl_ref *refs[] = {&e->tab, &e->x0, &e->noise, &e->xt, &e->out, &e->t, &e->mse, &e->vb};
    struct dfcl_hybrid_loss probe = {.B = PASS, .n = (int)e->each};
    uint64_t total = 0, at[DFCL_COUNT(sizes)];
    for (size_t i = 0; i < DFCL_COUNT(sizes); i++) {
        at[i] = total;
        total += (sizes[i] * sizeof(float) + 255) / 256 * 256;
    }
    const struct dfcl_variant *v = dfcl_op_choose(e->dev, &dfcl_op_hybrid_loss, &probe);
    uint64_t scratch = v && v->scratch ? v->scratch(e->dev, &probe) : 0;
    dfcl_status s = dfcl_mem_create(e->dev, total + scratch + 256, "evaluation", &e->mem, err);
    if (s)
        return s;
    for (size_t i = 0; i < DFCL_COUNT(sizes); i++)
        *refs[i] = (struct dfcl_ref){e->mem, at[i]};
    e->ex = (struct dfcl_exec){.dev = e->dev, .scratch = {e->mem, total}};
    float table[DFCL_TRAIN_STEPS * DFCL_TAB_COUNT];
    dfcl_schedule_table(sched, table);
    return dfcl_write(e->dev, e->tab, table, sizeof table, err);
}

/* Pairs first .. first + n; their losses go to e->losses (mse, vb alternating). */
static dfcl_status pass(struct evaluation *e, int domain, const struct dfcl_pictures *pics, int null_class, int first, int n, int timesteps,
                        uint64_t seed, dfcl_error *err) {
    int32_t t[PASS], rows[PASS], dom[PASS];
    float tf[PASS], mse[PASS], vb[PASS];
    size_t each = (size_t)e->each;
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < n && !s; i++) {
        uint32_t pair = (uint32_t)(first + i);
        int pic = (int)(pair % (uint32_t)pics->count);
        t[i] = (int32_t)dfcl_uniform_int(seed, DFCL_STREAM_VAL, 0, pair, 0, (uint32_t)timesteps);
        tf[i] = (float)t[i];
        dom[i] = domain;
        int label = null_class ? dfcl_model_classes(e->model, domain) : pics->labels[pic];
        s = dfcl_model_row(e->model, domain, label, &rows[i], err);
        memcpy(e->host + (size_t)i * each, pics->data + (size_t)pic * each, each * sizeof(float));
        dfcl_normals(seed, DFCL_STREAM_VAL, 1, pair, e->host + (size_t)(PASS + i) * each, each);
    }
    if (!s)
        s = dfcl_write(e->dev, e->x0, e->host, (uint64_t)n * e->each * sizeof(float), err);
    if (!s)
        s = dfcl_write(e->dev, e->noise, e->host + PASS * each, (uint64_t)n * e->each * sizeof(float), err);
    if (!s)
        s = dfcl_write(e->dev, e->t, t, (uint64_t)n * sizeof *t, err);
    struct dfcl_q_sample q = {.B = n, .n = (int)each, .x0 = e->x0, .noise = e->noise, .t = e->t, .tab = e->tab, .xt = e->xt};
    struct dfcl_hybrid_loss l = {.B = n, .n = (int)each, .x0 = e->x0, .noise = e->noise, .xt = e->xt, .out = e->out, .t = e->t,
                                 .tab = e->tab, .mse = e->mse, .vb = e->vb};
    struct dfcl_dit_batch b = {.B = n, .t = tf, .rows = rows, .dom = dom, .x = e->xt, .out = e->out};
    if (!s)
        s = dfcl_run(&e->ex, &dfcl_op_q_sample, &q, err);
    if (!s)
        s = dfcl_dit_forward(dfcl_model_dit(e->model), &b, false, err);
    if (!s)
        s = dfcl_run(&e->ex, &dfcl_op_hybrid_loss, &l, err);
    if (!s)
        s = dfcl_read(e->dev, mse, e->mse, (uint64_t)n * sizeof *mse, err);
    if (!s)
        s = dfcl_read(e->dev, vb, e->vb, (uint64_t)n * sizeof *vb, err);
    for (int i = 0; i < n && !s; i++) {
        e->losses[2 * (first + i)] = mse[i];
        e->losses[2 * (first + i) + 1] = vb[i];
    }
    return s;
}

void dfcl_loss_means(const float *losses, int pairs, struct dfcl_loss_estimate *out) {
    double sum[2] = {0}, sq[2] = {0};
    for (int i = 0; i < pairs; i++) {
        double m = losses[2 * i], l = m + (double)losses[2 * i + 1];
        sum[0] += l;
        sum[1] += m;
    }
    for (int i = 0; i < pairs; i++) {
        double m = losses[2 * i], l = m + (double)losses[2 * i + 1];
        sq[0] += (l - sum[0] / pairs) * (l - sum[0] / pairs);
        sq[1] += (m - sum[1] / pairs) * (m - sum[1] / pairs);
    }
    double k = pairs > 1 ? (double)pairs * (pairs - 1) : 1;
    *out = (struct dfcl_loss_estimate){sum[0] / pairs, sqrt(sq[0] / k), sum[1] / pairs, sqrt(sq[1] / k), pairs};
}

dfcl_status dfcl_evaluate_loss(dfcl_model *model, int domain, const struct dfcl_pictures *pictures, int null_class, int pairs,
                               uint64_t seed, struct dfcl_loss_estimate *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    const struct dfcl_model_shape *shape = dfcl_model_get_shape(model);
    char want[DFCL_EXTENT_TEXT], got[DFCL_EXTENT_TEXT];
    if (pictures->count < 1 || pairs < 1)
        return dfcl_fail(err, DFCL_USAGE, "evaluation: no pictures, or no pairs");
    if (pictures->channels != shape->channels || pictures->side != shape->input || dfcl_width(pictures->width, pictures->side) != shape->input_width)
        return dfcl_fail(err, DFCL_USAGE, "evaluation: expected pictures of %d channels and side %s, found %d and %s", shape->channels,
                         dfcl_extent_format(shape->input, shape->input_width, want), pictures->channels,
                         dfcl_extent_format(pictures->side, pictures->width, got));
    struct evaluation e = {.model = model, .dev = dfcl_model_device(model)};
    const dfcl_context *ctx = e.dev->ctx;
    e.each = (uint64_t)shape->channels * (uint64_t)shape->input * (uint64_t)shape->input_width;
    struct dfcl_schedule sched = {0};
    dfcl_status s = dfcl_schedule_train(&sched, ctx, err);
    if (s)
        goto out;
    struct dfcl_plan plan;
    e.host = dfcl_calloc(ctx, (size_t)e.each * 2 * PASS, sizeof *e.host, err);
    e.losses = dfcl_calloc(ctx, (size_t)pairs * 2, sizeof *e.losses, err);
    s = e.host && e.losses ? dfcl_dit_plan(dfcl_model_dit(model), PASS, DFCL_FORWARD_ONLY, 0, &plan, err) : DFCL_NOMEM;
    if (!s)
        s = take(&e, &sched, err);
    for (int i = 0; i < pairs && !s; i += PASS)
        s = pass(&e, domain, pictures, null_class, i, DFCL_MIN(PASS, pairs - i), sched.steps, seed, err);
    if (!s)
        dfcl_loss_means(e.losses, pairs, out);
    if (!s && !isfinite(out->loss))
        s = dfcl_fail(err, DFCL_NONFINITE, "evaluation: the loss is not finite");
out:
    dfcl_mem_destroy(e.dev, &e.mem);
    dfcl_schedule_finish(&sched);
    dfcl_free(ctx, e.host);
    dfcl_free(ctx, e.losses);
    return s;
}
