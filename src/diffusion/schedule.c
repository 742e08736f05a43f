#include "diffusion/schedule.h"

#include <math.h>
#include <string.h>

static double train_beta(int i) {
    return 1e-4 + i * (0.02 - 1e-4) / (DFCL_TRAIN_STEPS - 1);
}

dfcl_status dfcl_spacing_parse(const char *text, enum dfcl_spacing *out, dfcl_error *err) {
    *out = DFCL_SPACING_EVEN;
    if (!text || !*text || !strcmp(text, "even"))
        return DFCL_OK;
    if (strcmp(text, "ddim"))
        return dfcl_fail(err, DFCL_USAGE, "spacing \"%s\": expected \"even\" or \"ddim\"", text);
    *out = DFCL_SPACING_DDIM;
    return DFCL_OK;
}

/* Every table from beta. Needs s->beta and s->steps. */
static void fill_tables(struct dfcl_schedule *s) {
    double ab = 1;
    for (int i = 0; i < s->steps; i++) {
        double beta = s->beta[i], prev = ab;
        ab *= 1 - beta;
        s->abar[i] = ab;
        double *r = s->tab[i];
        r[DFCL_TAB_SQRT_AB] = sqrt(ab);
        r[DFCL_TAB_SQRT_1MAB] = sqrt(1 - ab);
        r[DFCL_TAB_SQRT_RAB] = sqrt(1 / ab);
        r[DFCL_TAB_SQRT_RABM1] = sqrt(1 / ab - 1);
        r[DFCL_TAB_C1] = beta * sqrt(prev) / (1 - ab);
        r[DFCL_TAB_C2] = (1 - prev) * sqrt(1 - beta) / (1 - ab);
        r[DFCL_TAB_LOG_BETA] = log(beta);
        r[DFCL_TAB_LPV] = i ? log(beta * (1 - prev) / (1 - ab)) : log(beta);
    }
    /* the posterior variance of step 0 is 0: its logarithm is clipped to that of step 1 */
    if (s->steps > 1)
        s->tab[0][DFCL_TAB_LPV] = s->tab[1][DFCL_TAB_LPV];
}

static dfcl_status take(struct dfcl_schedule *s, const dfcl_context *ctx, int steps, dfcl_error *err) {
    memset(s, 0, sizeof *s);
    s->ctx = ctx;
    s->steps = steps;
    size_t n = (size_t)steps;
    if (!(s->map = dfcl_calloc(ctx, n, sizeof *s->map, err)) || !(s->beta = dfcl_calloc(ctx, n, sizeof *s->beta, err)) ||
        !(s->abar = dfcl_calloc(ctx, n, sizeof *s->abar, err)) || !(s->tab = dfcl_calloc(ctx, n, sizeof *s->tab, err))) {
        dfcl_schedule_finish(s);
        return DFCL_NOMEM;
    }
    return DFCL_OK;
}

void dfcl_schedule_finish(struct dfcl_schedule *s) {
    if (!s->ctx)
        return;
    dfcl_free(s->ctx, s->map);
    dfcl_free(s->ctx, s->beta);
    dfcl_free(s->ctx, s->abar);
    dfcl_free(s->ctx, s->tab);
    memset(s, 0, sizeof *s);
}

dfcl_status dfcl_schedule_train(struct dfcl_schedule *s, const dfcl_context *ctx, dfcl_error *err) {
    dfcl_status st = take(s, ctx, DFCL_TRAIN_STEPS, err);
    if (st)
        return st;
    for (int i = 0; i < s->steps; i++) {
        s->map[i] = i;
        s->beta[i] = train_beta(i);
    }
    fill_tables(s);
    return DFCL_OK;
}

static int stride_count(int stride) {
    return (DFCL_TRAIN_STEPS + stride - 1) / stride;
}

static dfcl_status ddim_stride(int steps, int *stride, dfcl_error *err) {
    int above = 0, below = 0; /* nearest counts that have a stride */
    for (int i = 1; i < DFCL_TRAIN_STEPS; i++) {
        int n = stride_count(i); /* falls as i rises */
        if (n == steps) {
            *stride = i;
            return DFCL_OK;
        }
        if (n > steps)
            above = n;
        else if (!below)
            below = n;
    }
    if (!below)
        return dfcl_fail(err, DFCL_USAGE, "%d step%s with spacing \"ddim\": no constant stride gives them; the nearest is %d", steps,
                         steps == 1 ? "" : "s", above);
    return dfcl_fail(err, DFCL_USAGE, "%d steps with spacing \"ddim\": no constant stride gives them; the nearest are %d and %d", steps, below,
                     above);
}

dfcl_status dfcl_schedule_respaced(struct dfcl_schedule *s, const dfcl_context *ctx, int steps, enum dfcl_spacing spacing,
                                   dfcl_error *err) {
    memset(s, 0, sizeof *s);
    if (steps < 1 || steps > DFCL_TRAIN_STEPS)
        return dfcl_fail(err, DFCL_USAGE, "%d steps: expected 1 to %d", steps, DFCL_TRAIN_STEPS);
    int stride = 0;
    dfcl_status st = spacing == DFCL_SPACING_DDIM ? ddim_stride(steps, &stride, err) : DFCL_OK;
    if (!st)
        st = take(s, ctx, steps, err);
    if (st)
        return st;
    if (spacing == DFCL_SPACING_DDIM) {
        for (int i = 0; i < steps; i++)
            s->map[i] = i * stride;
    } else if (steps == 1) {
        s->map[0] = DFCL_TRAIN_STEPS - 1;
    } else {
        /* summed up, not multiplied: the rounding of the sum decides ties */
        double frac = (double)(DFCL_TRAIN_STEPS - 1) / (steps - 1), cur = 0;
        for (int i = 0; i < steps; i++, cur += frac)
            s->map[i] = (int)nearbyint(cur);
    }
    double ab = 1, last = 1;
    for (int t = 0, i = 0; i < steps; t++) {
        ab *= 1 - train_beta(t);
        if (t == s->map[i]) {
            s->beta[i++] = 1 - ab / last;
            last = ab;
        }
    }
    fill_tables(s);
    return DFCL_OK;
}

void dfcl_schedule_table(const struct dfcl_schedule *s, float *tab) {
    for (int i = 0; i < s->steps; i++)
        for (int k = 0; k < DFCL_TAB_COUNT; k++)
            tab[(size_t)i * DFCL_TAB_COUNT + (size_t)k] = (float)s->tab[i][k];
}

/* abar of every training step as the reference scheduler has it: betas by linspace in f32 (from either end to the middle), their products in
 * double, each rounded to f32. The roundings of 1 - beta add up to about 1e-6 of sigma. */
static void abar_f32(float abar[DFCL_TRAIN_STEPS]) {
    const float first = 1e-4f, last = 0.02f, step = (last - first) / (float)(DFCL_TRAIN_STEPS - 1);
    double product = 1;
    for (int i = 0; i < DFCL_TRAIN_STEPS; i++) {
        float beta = i < DFCL_TRAIN_STEPS / 2 ? first + step * (float)i : last - step * (float)(DFCL_TRAIN_STEPS - 1 - i);
        product *= (double)(1.0f - beta);
        abar[i] = (float)product;
    }
}

dfcl_status dfcl_dpm_places_init(struct dfcl_dpm_places *p, const dfcl_context *ctx, int steps, dfcl_error *err) {
    memset(p, 0, sizeof *p);
    if (steps < 1 || steps > DFCL_TRAIN_STEPS - 1)
        return dfcl_fail(err, DFCL_USAGE, "%d steps of DPM-Solver++: expected 1 to %d", steps, DFCL_TRAIN_STEPS - 1);
    float abar[DFCL_TRAIN_STEPS];
    abar_f32(abar);
    p->ctx = ctx;
    p->steps = steps;
    p->map = dfcl_calloc(ctx, (size_t)steps, sizeof *p->map, err);
    p->sigma = p->map ? dfcl_calloc(ctx, (size_t)steps + 1, sizeof *p->sigma, err) : NULL;
    if (!p->sigma) {
        dfcl_dpm_places_finish(p);
        return DFCL_NOMEM;
    }
    double step = (double)(DFCL_TRAIN_STEPS - 1) / steps;
    for (int j = 0; j < steps; j++) {
        /* the largest is set, not computed, as linspace does */
        p->map[j] = j ? (int)nearbyint((steps - j) * step) : DFCL_TRAIN_STEPS - 1;
        float a = abar[p->map[j]];
        p->sigma[j] = (double)sqrtf((1.0f - a) / a);
    }
    return DFCL_OK;
}

void dfcl_dpm_places_finish(struct dfcl_dpm_places *p) {
    if (!p->ctx)
        return;
    dfcl_free(p->ctx, p->map);
    dfcl_free(p->ctx, p->sigma);
    memset(p, 0, sizeof *p);
}
