/* sample.safetensors: schedules, respacing, and ten steps of each sampler with given noise. */
#include <stdio.h>
#include <string.h>

#include "models/model.h"
#include "sample/sampler.h"
#include "verify/golden.h"

static const struct dfcl_limit table_limit = {.elem = 1e-6}, exact = {.exact = true}, walk_limit = {.rel = 5e-5};

/* One column of a schedule under PREFIX.NAME, where the file has it. */
static dfcl_status column(struct dfcl_golden_file *f, const char *prefix, const char *name, const struct dfcl_schedule *s,
                          double (*value)(const struct dfcl_schedule *s, int i), const struct dfcl_limit *limit, dfcl_error *err) {
    char key[96];
    float x[DFCL_TRAIN_STEPS];
    snprintf(key, sizeof key, "%s.%s", prefix, name);
    if (!dfcl_golden_has(f, key))
        return DFCL_OK;
    for (int i = 0; i < s->steps; i++)
        x[i] = (float)value(s, i);
    return dfcl_golden_check(f, key, x, (uint64_t)s->steps, limit, err);
}

static double beta(const struct dfcl_schedule *s, int i) { return s->beta[i]; }
static double abar(const struct dfcl_schedule *s, int i) { return s->abar[i]; }
static double map(const struct dfcl_schedule *s, int i) { return s->map[i]; }
static double lpv(const struct dfcl_schedule *s, int i) { return s->tab[i][DFCL_TAB_LPV]; }
static double c1(const struct dfcl_schedule *s, int i) { return s->tab[i][DFCL_TAB_C1]; }
static double c2(const struct dfcl_schedule *s, int i) { return s->tab[i][DFCL_TAB_C2]; }
static double rab(const struct dfcl_schedule *s, int i) { return s->tab[i][DFCL_TAB_SQRT_RAB]; }
static double rabm1(const struct dfcl_schedule *s, int i) { return s->tab[i][DFCL_TAB_SQRT_RABM1]; }

static dfcl_status columns(struct dfcl_golden_file *f, const char *prefix, const struct dfcl_schedule *s, dfcl_error *err) {
    static const struct {
        const char *name;
        double (*value)(const struct dfcl_schedule *s, int i);
        const struct dfcl_limit *limit;
    } all[] = {{"betas", beta, &table_limit}, {"alphas_cumprod", abar, &table_limit}, {"timestep_map", map, &exact},
               {"posterior_log_variance_clipped", lpv, &table_limit}, {"posterior_mean_coef1", c1, &table_limit},
               {"posterior_mean_coef2", c2, &table_limit}, {"sqrt_recip_alphas_cumprod", rab, &table_limit},
               {"sqrt_recipm1_alphas_cumprod", rabm1, &table_limit}};
    dfcl_status st = DFCL_OK;
    for (size_t i = 0; i < DFCL_COUNT(all) && !st; i++)
        st = column(f, prefix, all[i].name, s, all[i].value, all[i].limit, err);
    return st;
}

static dfcl_status schedules(struct dfcl_golden_file *f, dfcl_error *err) {
    struct dfcl_schedule s = {0};
    dfcl_status st = dfcl_schedule_train(&s, f->g->ctx, err);
    if (!st)
        st = columns(f, "sched", &s, err);
    dfcl_schedule_finish(&s);
    /* every "respace.NAME.timestep_map" of the file: NAME is "k" or "ddimk" */
    for (size_t i = 0; i < f->st->count && !st; i++) {
        int k;
        char prefix[64];
        const char *key = f->st->tensors[i].name;
        bool ddim = sscanf(key, "respace.ddim%d.timestep_map", &k) == 1;
        if (!strstr(key, ".timestep_map") || (!ddim && sscanf(key, "respace.%d.timestep_map", &k) != 1))
            continue;
        snprintf(prefix, sizeof prefix, "respace.%s%d", ddim ? "ddim" : "", k);
        st = dfcl_schedule_respaced(&s, f->g->ctx, k, ddim ? DFCL_SPACING_DDIM : DFCL_SPACING_EVEN, err);
        if (!st)
            st = columns(f, prefix, &s, err);
        dfcl_schedule_finish(&s);
    }
    struct dfcl_dpm_places p = {0};
    float x[64];
    if (!st)
        st = dfcl_dpm_places_init(&p, f->g->ctx, 10, err);
    for (int i = 0; i <= 10 && !st; i++)
        x[i] = (float)p.sigma[i];
    if (!st)
        st = dfcl_golden_check(f, "dpm.sigmas", x, 11, &table_limit, err);
    for (int i = 0; i < 10 && !st; i++)
        x[i] = (float)p.map[i];
    if (!st)
        st = dfcl_golden_check(f, "dpm.timesteps", x, 10, &exact, err);
    dfcl_dpm_places_finish(&p);
    return st;
}

/* ---- trajectories ---- */

struct walk {
    struct dfcl_golden_file *f;
    const char *name;
    uint64_t n; /* values of all pictures */
    float *x;
};

static dfcl_status compare(struct walk *w, const char *what, struct dfcl_ref ref, int step, dfcl_error *err) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", w->name, what);
    if (!dfcl_golden_has(w->f, key))
        return DFCL_OK;
    dfcl_status s = dfcl_read(w->f->g->dev, w->x, ref, w->n * sizeof *w->x, err);
    return s ? s : dfcl_golden_check_part(w->f, key, w->x, (uint64_t)step * w->n, w->n, &walk_limit, err);
}

static dfcl_status on_step(void *user, const struct dfcl_sampler_state *st, dfcl_error *err) {
    struct walk *w = user;
    dfcl_status s = compare(w, "traj", st->x, st->step, err);
    if (!s)
        s = compare(w, "pred_xstart", st->x0, st->step, err);
    if (!s)
        s = compare(w, "eps", st->eps, st->step, err);
    return s;
}

struct walk_kind {
    const char *name;
    enum dfcl_sampler_kind kind;
    enum dfcl_spacing spacing;
    int channels; /* guided */
};

static dfcl_status walk(struct dfcl_golden_file *f, dfcl_model *m, const struct walk_kind *k, const float *xT, uint64_t nx, const float *noise,
                        const int64_t *y, int pictures, dfcl_error *err) {
    struct dfcl_dit *dit = dfcl_model_dit(m);
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    struct dfcl_solver solver = {0};
    struct dfcl_sampler *sampler = NULL;
    struct dfcl_sampler_item items[8];
    uint64_t each = dfcl_dit_values(cfg);
    struct walk w = {.f = f, .name = k->name, .n = each * (uint64_t)pictures};
    if (nx != w.n)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected an x_T of %llu values for %d pictures of this model, found %llu", f->st->path,
                         (unsigned long long)w.n, pictures, (unsigned long long)nx);
    float *out = dfcl_calloc(f->g->ctx, (size_t)w.n, sizeof *out, err);
    w.x = dfcl_calloc(f->g->ctx, (size_t)w.n, sizeof *w.x, err);
    dfcl_status s = out && w.x ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; i < pictures && !s; i++) {
        items[i] = (struct dfcl_sampler_item){.scale = 4.0f, .number = (uint32_t)i};
        s = dfcl_model_row(m, 0, (int)y[i], &items[i].row, err);
        if (!s)
            s = dfcl_model_row(m, 0, cfg->classes, &items[i].ref_row, err);
    }
    if (!s)
        s = dfcl_solver_init(&solver, f->g->ctx, k->kind, 10, k->spacing, 0, false, err);
    struct dfcl_sampler_options o = {.solver = &solver, .batch = pictures, .guided_channels = k->channels, .init_noise = xT,
                                     .step_noise = noise, .on_step = on_step, .on_step_user = &w};
    if (!s)
        s = dfcl_sampler_create(&sampler, dit, &o, pictures, true, err);
    if (!s)
        s = dfcl_sampler_run(sampler, items, pictures, out, err);
    char key[64];
    snprintf(key, sizeof key, "%s.final", k->name);
    if (!s)
        s = dfcl_golden_check(f, key, out, w.n, &walk_limit, err);
    dfcl_sampler_destroy(&sampler);
    dfcl_solver_finish(&solver);
    dfcl_free(f->g->ctx, out);
    dfcl_free(f->g->ctx, w.x);
    return s;
}

dfcl_status dfcl_verify_sample(struct dfcl_golden *g, dfcl_error *err) {
    struct dfcl_golden_file f;
    dfcl_status s = dfcl_golden_open(&f, g, "sample", err);
    if (s)
        return s;
    float *xT = NULL, *noise = NULL;
    int64_t *y = NULL;
    uint64_t nx = 0, nn = 0, ny = 0;
    dfcl_model *m = NULL;
    char *path = dfcl_sprintf(g->ctx, err, "%s/dit/dit.safetensors", g->dir);
    struct dfcl_model_params mp = {.path = path};
    s = path ? schedules(&f, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_golden_input(&f, "x_T", &xT, &nx, err);
    if (!s)
        s = dfcl_golden_input(&f, "ddpm10.noise", &noise, &nn, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "y", &y, &ny, err);
    if (!s && (ny < 2 || ny > 16 || nn != 10 * nx))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected labels for 1 to 8 pictures and ten steps of noise", f.st->path);
    if (!s)
        s = dfcl_model_open(&m, g->dev, &mp, err);
    /* DPM-Solver++ was recorded on the same network output, guided as the original guides: the first three channels. */
    static const struct walk_kind kinds[] = {{"ddpm10", DFCL_SAMPLER_DDPM, DFCL_SPACING_EVEN, 3},
                                             {"ddim_ddim10", DFCL_SAMPLER_DDIM, DFCL_SPACING_DDIM, 3},
                                             {"ddim_10", DFCL_SAMPLER_DDIM, DFCL_SPACING_EVEN, 3},
                                             {"dpm", DFCL_SAMPLER_DPMPP_2M, DFCL_SPACING_EVEN, 3}};
    for (size_t i = 0; i < DFCL_COUNT(kinds) && !s; i++)
        s = walk(&f, m, &kinds[i], xT, nx, kinds[i].kind == DFCL_SAMPLER_DDPM ? noise : NULL, y, (int)ny / 2, err);
    dfcl_model_close(&m);
    dfcl_free(g->ctx, path);
    dfcl_free(g->ctx, xT);
    dfcl_free(g->ctx, noise);
    dfcl_free(g->ctx, y);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}
