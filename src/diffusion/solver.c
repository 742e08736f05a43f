#include "diffusion/solver.h"

#include <math.h>
#include <string.h>

static void ddpm_steps(struct dfcl_solver *s, const struct dfcl_schedule *sc) {
    for (int j = 0; j < s->steps; j++) {
        struct dfcl_solver_step *p = &s->step[j];
        int i = s->steps - 1 - j;
        p->t = sc->map[i];
        p->sigma = sqrt((1 - sc->abar[i]) / sc->abar[i]);
        p->ancestral = true;
        p->noise = i > 0;
        for (int k = 0; k < DFCL_TAB_COUNT; k++)
            p->tab[k] = (float)sc->tab[i][k];
    }
}

/* DDIM (arXiv 2010.02502, eq. 12 and 16): x' = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) e + sigma z,
 * sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar'), abar' of the next lower step, 1 at the end.
 * e is the predicted noise; where x0 has been clamped, e = (sqrt(1/abar) x - x0) / sqrt(1/abar - 1) is what belongs to it. */
static void ddim_steps(struct dfcl_solver *s, const struct dfcl_schedule *sc, double eta, bool clip) {
    for (int j = 0; j < s->steps; j++) {
        struct dfcl_solver_step *p = &s->step[j];
        int i = s->steps - 1 - j;
        double ab = sc->abar[i], prev = i ? sc->abar[i - 1] : 1.0, ra = sqrt(1 / ab), rb = sqrt(1 / ab - 1);
        double sigma = eta * sqrt((1 - prev) / (1 - ab)) * sqrt(1 - ab / prev);
        double ke = sqrt(fmax(1 - prev - sigma * sigma, 0.0));
        p->t = sc->map[i];
        p->sigma = rb;
        p->noise = i > 0 && sigma > 0;
        p->a = (float)ra;
        p->b = (float)-rb;
        p->kz = p->noise ? (float)sigma : 0.0f;
        if (clip) {
            p->kx = (float)(ke * ra / rb);
            p->k0 = (float)(sqrt(prev) - ke / rb);
        } else {
            p->ke = (float)ke;
            p->k0 = (float)sqrt(prev);
        }
    }
}

/* DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2), the last step of first order to sigma 0. */
static void dpm_steps(struct dfcl_solver *s, const struct dfcl_dpm_places *d) {
    double before = 0; /* lambda of the step before */
    for (int j = 0; j < s->steps; j++) {
        struct dfcl_solver_step *p = &s->step[j];
        double sg = d->sigma[j], next = d->sigma[j + 1];
        double a = 1 / sqrt(1 + sg * sg), lambda = -log(sg);
        p->t = d->map[j];
        p->sigma = sg;
        p->a = (float)(1 / a);
        p->b = (float)-sg;
        if (next > 0) {
            double an = 1 / sqrt(1 + next * next), h = -log(next) - lambda, g = -an * expm1(-h);
            p->kx = (float)(next * an / (sg * a));
            double w = j ? h / (2 * (lambda - before)) : 0; /* 1 / (2r) */
            p->k0 = (float)(g * (1 + w));
            p->kp = (float)(-g * w);
            p->prev = j > 0;
        } else {
            p->k0 = 1.0f;
        }
        before = lambda;
    }
}

dfcl_status dfcl_solver_init(struct dfcl_solver *s, const dfcl_context *ctx, enum dfcl_sampler_kind kind, int steps,
                             enum dfcl_spacing spacing, double eta, bool clip, dfcl_error *err) {
    memset(s, 0, sizeof *s);
    struct dfcl_schedule sc = {0};
    struct dfcl_dpm_places dp = {0};
    dfcl_status st;
    if (kind != DFCL_SAMPLER_DDPM && kind != DFCL_SAMPLER_DDIM && kind != DFCL_SAMPLER_DPMPP_2M)
        return dfcl_fail(err, DFCL_USAGE, "sampler %d: unknown", (int)kind);
    if (!(eta >= 0) || !isfinite(eta))
        return dfcl_fail(err, DFCL_USAGE, "eta %g: expected a number of at least 0", eta);
    if (kind == DFCL_SAMPLER_DPMPP_2M)
        st = dfcl_dpm_places_init(&dp, ctx, steps, err);
    else
        st = dfcl_schedule_respaced(&sc, ctx, steps, spacing, err);
    if (st)
        return st;
    s->ctx = ctx;
    s->kind = kind;
    s->steps = steps;
    s->step = dfcl_calloc(ctx, (size_t)steps, sizeof *s->step, err);
    if (!s->step) {
        st = DFCL_NOMEM;
        goto out;
    }
    if (kind == DFCL_SAMPLER_DDPM)
        ddpm_steps(s, &sc);
    else if (kind == DFCL_SAMPLER_DDIM)
        ddim_steps(s, &sc, eta, clip);
    else
        dpm_steps(s, &dp);
    for (int j = 0; j < steps; j++) {
        s->noise = s->noise || s->step[j].noise;
        s->keeps_x0 = s->keeps_x0 || s->step[j].prev;
    }
out:
    dfcl_schedule_finish(&sc);
    dfcl_dpm_places_finish(&dp);
    return st;
}

void dfcl_solver_finish(struct dfcl_solver *s) {
    if (!s->ctx)
        return;
    dfcl_free(s->ctx, s->step);
    memset(s, 0, sizeof *s);
}
