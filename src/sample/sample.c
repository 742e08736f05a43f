/* dfcl_sample: requests by class and domain -> the sampler's items. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/model.h"
#include "sample/sampler.h"

#include <difffit-cl/sample.h>

static dfcl_status guided_channels(const char *text, int channels, int *out, dfcl_error *err) {
    if (!text || !*text)
        text = channels == 4 ? "3" : "all";
    if (!strcmp(text, "all"))
        *out = channels;
    else if (!strcmp(text, "3"))
        *out = DFCL_MIN(3, channels);
    else
        return dfcl_fail(err, DFCL_USAGE, "guidance channels \"%s\": expected \"3\" or \"all\"", text);
    return DFCL_OK;
}

static dfcl_status make_items(dfcl_model *model, const struct dfcl_sample_params *params, const struct dfcl_sample_request *requests, int n,
                              struct dfcl_sampler_item *items, bool *guided, dfcl_error *err) {
    for (int i = 0; i < n; i++) {
        const struct dfcl_sample_request *r = &requests[i];
        struct dfcl_sampler_item *it = &items[i];
        double cfg = r->own ? r->cfg : params->cfg;
        int ref = params->guidance == DFCL_GUIDANCE_DOMAIN ? 0 : r->domain;
        dfcl_status st = dfcl_model_row(model, r->domain, r->class_id, &it->row, err);
        if (!st)
            st = dfcl_model_row(model, ref, dfcl_model_classes(model, ref), &it->ref_row, err);
        if (!st && !isfinite(cfg))
            st = dfcl_fail(err, DFCL_USAGE, "guidance scale %g: expected a finite number", cfg);
        if (st) {
            dfcl_error_prefix(err, "picture %d", i);
            return st;
        }
        it->dom = r->domain;
        it->ref_dom = ref;
        it->scale = (float)cfg;
        it->seed = r->own ? r->seed : params->seed;
        it->number = r->number;
        *guided = *guided || it->scale != 1.0f;
    }
    return DFCL_OK;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Distinct (row, domain) pairs of a batch, references included, at most. Smaller batches have no more. */
static dfcl_status most_conditions(const dfcl_context *ctx, const struct dfcl_sampler_item *items, int n, int batch, int *most,
                                   dfcl_error *err) {
    int m = DFCL_MIN(batch, n);
    uint64_t *key = dfcl_calloc(ctx, (size_t)m, 2 * sizeof *key, err);
    if (!key)
        return DFCL_NOMEM;
    *most = 0;
    for (int first = 0; first < n; first += m) {
        size_t k = 0;
        int count = 0;
        for (int i = first; i < DFCL_MIN(first + m, n); i++) {
            const struct dfcl_sampler_item *it = &items[i];
            key[k++] = (uint64_t)it->dom << 32 | (uint32_t)it->row;
            if (it->scale != 1.0f)
                key[k++] = (uint64_t)it->ref_dom << 32 | (uint32_t)it->ref_row;
        }
        qsort(key, k, sizeof *key, by_value);
        for (size_t i = 0; i < k; i++)
            count += i == 0 || key[i] != key[i - 1];
        *most = DFCL_MAX(*most, count);
    }
    dfcl_free(ctx, key);
    return DFCL_OK;
}

/* ---- previews ---- */

struct preview {
    const struct dfcl_sample_params *p;
    struct dfcl_device *dev;
    int steps;
    size_t values; /* of a picture */
    float *x0;     /* [batch, values] */
};

static dfcl_status on_step(void *user, const struct dfcl_sampler_state *state, dfcl_error *err) {
    const struct preview *v = user;
    int step = state->step + 1;
    if (step % v->p->preview_every && step != v->steps)
        return DFCL_OK;
    dfcl_status st = dfcl_read(v->dev, v->x0, state->x0, (uint64_t)state->count * v->values * sizeof(float), err);
    return st ? st : v->p->preview(v->p->progress_user, step, v->steps, state->first, state->count, v->x0, err);
}

dfcl_status dfcl_sample(dfcl_model *model, const struct dfcl_sample_params *params, const struct dfcl_sample_request *requests, int n,
                        float *out, dfcl_error *err) {
    struct dfcl_dit *dit = dfcl_model_dit(model);
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    const dfcl_context *ctx = dfcl_model_device(model)->ctx;
    struct dfcl_solver solver = {0};
    struct dfcl_sampler *sampler = NULL;
    struct dfcl_sampler_item *items = NULL;
    struct preview view = {.p = params, .dev = dfcl_model_device(model), .values = dfcl_dit_values(cfg)};
    if (n == 0)
        return DFCL_OK;
    if (params->preview_every < 0 || (params->preview_every && !params->preview))
        return dfcl_fail(err, DFCL_USAGE, "sampling: previews every %d steps: expected no negative number, and where to put them", params->preview_every);
    if (n < 0 || params->batch < 0 || params->steps < 0)
        return dfcl_fail(err, DFCL_USAGE, "sampling: %d pictures, batches of %d, %d steps: expected no negative number", n, params->batch,
                         params->steps);
    if (params->guidance != DFCL_GUIDANCE_CLASS && params->guidance != DFCL_GUIDANCE_DOMAIN)
        return dfcl_fail(err, DFCL_USAGE, "guidance %d: unknown", (int)params->guidance);
    if ((params->cfg_lo != 0 || params->cfg_hi != 0) && !(params->cfg_lo >= 0 && params->cfg_lo < params->cfg_hi && isfinite(params->cfg_hi)))
        return dfcl_fail(err, DFCL_USAGE, "guidance at noise levels %g to %g: expected 0 <= lo < hi", params->cfg_lo, params->cfg_hi);
    bool guided = false;
    struct dfcl_sampler_options opt = {
        .solver = &solver,
        .batch = params->batch ? params->batch : 8,
        .max_memory = params->max_memory,
        .clip = params->clip ? params->clip > 0 : cfg->channels != 4,
        .guide_lo = params->cfg_lo,
        .guide_hi = params->cfg_hi,
        .init_noise = params->init_noise,
        .step_noise = params->step_noise,
        .progress = params->progress,
        .progress_user = params->progress_user,
        .stop = params->stop,
        .on_batch = params->ready,
    };
    enum dfcl_spacing spacing;
    int steps = params->steps ? params->steps : params->sampler == DFCL_SAMPLER_DDPM ? 250 : 50;
    dfcl_status st = dfcl_spacing_parse(params->spacing, &spacing, err);
    if (!st)
        st = guided_channels(params->cfg_channels, cfg->channels, &opt.guided_channels, err);
    if (!st)
        st = dfcl_solver_init(&solver, ctx, params->sampler, steps, spacing, params->eta, opt.clip, err);
    if (st)
        return st;
    items = dfcl_calloc(ctx, (size_t)n, sizeof *items, err);
    st = items ? make_items(model, params, requests, n, items, &guided, err) : DFCL_NOMEM;
    if (!st)
        st = most_conditions(ctx, items, n, opt.batch, &opt.conditions, err);
    if (!st && params->preview_every) {
        view.steps = solver.steps;
        view.x0 = dfcl_calloc(ctx, (size_t)DFCL_MIN(n, opt.batch), view.values * sizeof *view.x0, err);
        st = view.x0 ? DFCL_OK : DFCL_NOMEM;
        opt.on_step = on_step;
        opt.on_step_user = &view;
    }
    if (!st)
        st = dfcl_sampler_create(&sampler, dit, &opt, n, guided, err);
    if (!st)
        st = dfcl_sampler_run(sampler, items, n, out, err);
    dfcl_sampler_destroy(&sampler);
    dfcl_free(ctx, items);
    dfcl_free(ctx, view.x0);
    dfcl_solver_finish(&solver);
    return st;
}
