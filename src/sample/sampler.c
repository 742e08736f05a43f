#include "sample/sampler.h"
#include "base/clock.h"

#include <math.h>
#include <string.h>

#include "base/philox.h"

struct dfcl_sampler {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_dit *dit;
    struct dfcl_sampler_options opt;
    int capacity;  /* items of a run */
    int batch;     /* pictures per pass */
    bool guided;
    int C, hw;
    size_t values; /* per picture */
    struct dfcl_arena arena;
    struct dfcl_exec ex;
    struct buffers {
        struct dfcl_ref x;     /* [rows, values]: conditional halves first, then references */
        struct dfcl_ref net;   /* [rows, 2 values] */
        struct dfcl_ref eps, v, noise, x0; /* [batch, values] */
        struct dfcl_ref id, cond, ref, scale; /* [batch] */
        struct dfcl_ref sum;   /* [2] of x, [2] of eps */
        struct dfcl_ref scratch;
    } d;
    /* host: [steps], [rows] or [batch] */
    float *t, *scale, *latents;
    int32_t *rows, *dom, *cond, *ref;
    uint32_t *id;
};

static int rows_of(const struct dfcl_sampler *s, int pictures) {
    return s->guided ? 2 * pictures : pictures;
}

static struct dfcl_sumsq finite_check(const struct dfcl_sampler *s, int pictures, bool eps) {
    return (struct dfcl_sumsq){.n = (int64_t)pictures * (int64_t)s->values, .x = eps ? s->d.eps : s->d.x, .out = dfcl_ref_at(s->d.sum, eps ? 8 : 0)};
}

/* Runs twice, dry and for real. */
static dfcl_status place(struct dfcl_sampler *s, uint64_t scratch, dfcl_error *err) {
    uint64_t b = (uint64_t)s->batch, rows = (uint64_t)rows_of(s, s->batch), n = s->values;
    struct buffers *d = &s->d;
    const struct {
        struct dfcl_ref *ref;
        uint64_t bytes;
    } list[] = {
        {&d->x, rows * n * 4},  {&d->net, rows * 2 * n * 4}, {&d->eps, b * n * 4}, {&d->v, b * n * 4},
        {&d->noise, b * n * 4}, {&d->x0, b * n * 4},         {&d->id, b * 4},      {&d->cond, b * 4},
        {&d->ref, b * 4},       {&d->scale, b * 4},          {&d->sum, 16},        {&d->scratch, scratch ? scratch : 4},
    };
    for (size_t i = 0; i < DFCL_COUNT(list); i++) {
        dfcl_status st = dfcl_arena_alloc(&s->arena, list[i].bytes, list[i].ref, err);
        if (st)
            return st;
    }
    return DFCL_OK;
}

static dfcl_status take_memory(struct dfcl_sampler *s, dfcl_error *err) {
    struct dfcl_exec dry = {.dev = s->dev, .dry = true};
    dfcl_arena_init(&s->arena, s->dev, "sampler");
    dfcl_status st = place(s, 0, err);
    struct dfcl_sumsq check = finite_check(s, s->batch, false);
    if (!st)
        st = dfcl_run(&dry, &dfcl_op_sumsq, &check, err);
    dfcl_arena_reset(&s->arena);
    if (!st)
        st = place(s, dry.scratch_need, err);
    if (!st)
        st = dfcl_arena_commit(&s->arena, err);
    if (!st)
        st = place(s, dry.scratch_need, err);
    s->ex = (struct dfcl_exec){.dev = s->dev, .scratch = s->d.scratch};
    return st;
}

static dfcl_status take_host(struct dfcl_sampler *s, dfcl_error *err) {
    size_t b = (size_t)s->batch, rows = (size_t)rows_of(s, s->batch);
    if (!(s->t = dfcl_calloc(s->ctx, (size_t)s->opt.solver->steps, sizeof *s->t, err)) || !(s->rows = dfcl_calloc(s->ctx, rows, sizeof *s->rows, err)) ||
        !(s->dom = dfcl_calloc(s->ctx, rows, sizeof *s->dom, err)) || !(s->scale = dfcl_calloc(s->ctx, b, sizeof *s->scale, err)) ||
        !(s->cond = dfcl_calloc(s->ctx, b, sizeof *s->cond, err)) || !(s->ref = dfcl_calloc(s->ctx, b, sizeof *s->ref, err)) ||
        !(s->id = dfcl_calloc(s->ctx, b, sizeof *s->id, err)) || !(s->latents = dfcl_calloc(s->ctx, b, s->values * sizeof(float), err)))
        return DFCL_NOMEM;
    for (int j = 0; j < s->opt.solver->steps; j++)
        s->t[j] = (float)s->opt.solver->step[j].t;
    return DFCL_OK;
}

dfcl_status dfcl_sampler_create(struct dfcl_sampler **out, struct dfcl_dit *dit, const struct dfcl_sampler_options *opt, int n, bool guided,
                                dfcl_error *err) {
    *out = NULL;
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    struct dfcl_device *dev = dfcl_dit_device(dit);
    if (opt->batch < 1 || n < 1)
        return dfcl_fail(err, DFCL_USAGE, "sampler: %d pictures in batches of %d, expected at least 1", n, opt->batch);
    if (opt->guided_channels < 0 || opt->guided_channels > cfg->channels)
        return dfcl_fail(err, DFCL_USAGE, "sampler: guidance over %d channels of a latent that has %d", opt->guided_channels, cfg->channels);
    struct dfcl_sampler *s = dfcl_calloc(dev->ctx, 1, sizeof *s, err);
    if (!s)
        return DFCL_NOMEM;
    s->ctx = dev->ctx;
    s->dev = dev;
    s->dit = dit;
    s->opt = *opt;
    s->capacity = n;
    s->guided = guided;
    s->C = cfg->channels;
    s->hw = (int)dfcl_dit_plane(cfg);
    s->values = (size_t)s->C * (size_t)s->hw;
    dfcl_arena_init(&s->arena, dev, "sampler");
    dfcl_status st;
    for (s->batch = DFCL_MIN(n, opt->batch);; s->batch /= 2) {
        struct dfcl_plan plan;
        /* x and net per row; eps, v, noise, x0 per picture */
        uint64_t own = ((uint64_t)rows_of(s, s->batch) * 3 + (uint64_t)s->batch * 4) * s->values * 4 + 65536, limit = opt->max_memory;
        if (limit)
            limit = limit > own ? limit - own : 1;
        st = dfcl_dit_plan(dit, rows_of(s, s->batch), DFCL_FORWARD_ONLY, limit, &plan, err);
        int conditions = rows_of(s, s->batch);
        if (!st)
            st = dfcl_dit_reserve_ahead(dit, opt->solver->steps, opt->conditions ? DFCL_MIN(opt->conditions, conditions) : conditions, err);
        if (!st)
            st = take_memory(s, err);
        if (st != DFCL_NOMEM || s->batch == 1)
            break;
        dfcl_arena_finish(&s->arena);
        dfcl_log(s->ctx, DFCL_LOG_INFO, "sampling: batches of %d pictures do not fit, trying %d", s->batch, s->batch / 2);
    }
    if (!st)
        st = take_host(s, err);
    if (st) {
        dfcl_sampler_destroy(&s);
        return st;
    }
    dfcl_error_clear(err); /* of a batch that did not fit */
    *out = s;
    return DFCL_OK;
}

void dfcl_sampler_destroy(struct dfcl_sampler **sampler) {
    struct dfcl_sampler *s = sampler ? *sampler : NULL;
    if (!s)
        return;
    dfcl_arena_finish(&s->arena);
    dfcl_free(s->ctx, s->t);
    dfcl_free(s->ctx, s->latents);
    dfcl_free(s->ctx, s->rows);
    dfcl_free(s->ctx, s->dom);
    dfcl_free(s->ctx, s->scale);
    dfcl_free(s->ctx, s->cond);
    dfcl_free(s->ctx, s->ref);
    dfcl_free(s->ctx, s->id);
    dfcl_free(s->ctx, s);
    *sampler = NULL;
}

int dfcl_sampler_batch(const struct dfcl_sampler *sampler) {
    return sampler->batch;
}

/* ---- one batch ---- */

struct batch {
    const struct dfcl_sampler_item *items;
    int first, m; /* pictures [first, first + m) of the run */
    int n;        /* of the run */
    int R;        /* network rows */
    int from, to; /* steps whose modulations have been made */
};

/* Fills the host arrays: network row i < m is picture i, references follow in the order of their pictures. */
static dfcl_status set_up(struct dfcl_sampler *s, struct batch *b, dfcl_error *err) {
    b->R = b->m;
    for (int i = 0; i < b->m; i++) {
        const struct dfcl_sampler_item *it = &b->items[b->first + i];
        s->rows[i] = it->row;
        s->dom[i] = it->dom;
        s->scale[i] = it->scale;
        s->id[i] = it->number;
        s->cond[i] = i;
        s->ref[i] = -1;
        if (it->scale != 1.0f) {
            if (!s->guided)
                return dfcl_fail(err, DFCL_ERROR, "sampler: guidance %g, but it was set up without", (double)it->scale);
            s->rows[b->R] = it->ref_row;
            s->dom[b->R] = it->ref_dom;
            s->ref[i] = b->R++;
        }
    }
    uint64_t bytes = (uint64_t)b->m * 4;
    dfcl_status st = dfcl_write(s->dev, s->d.id, s->id, bytes, err);
    if (!st)
        st = dfcl_write(s->dev, s->d.cond, s->cond, bytes, err);
    if (!st)
        st = dfcl_write(s->dev, s->d.ref, s->ref, bytes, err);
    if (!st)
        st = dfcl_write(s->dev, s->d.scale, s->scale, bytes, err);
    return st;
}

static dfcl_status draw(struct dfcl_sampler *s, const struct batch *b, struct dfcl_ref to, const float *given, uint32_t stream,
                        uint32_t step, dfcl_error *err) {
    if (given)
        return dfcl_write(s->dev, to, given + (size_t)b->first * s->values, (uint64_t)b->m * s->values * 4, err);
    const struct dfcl_sampler_item *it = b->items + b->first;
    for (int i = 0, end; i < b->m; i = end) { /* pictures of one seed in one launch */
        for (end = i + 1; end < b->m && it[end].seed == it[i].seed; end++)
            ;
        struct dfcl_normal p = {.B = end - i, .n = (int)s->values, .seed = it[i].seed, .stream = stream, .step = step,
                                .id = dfcl_ref_at(s->d.id, (uint64_t)i * 4), .out = dfcl_ref_at(to, (uint64_t)i * s->values * 4)};
        dfcl_status st = dfcl_run(&s->ex, &dfcl_op_normal, &p, err);
        if (st)
            return st;
    }
    return DFCL_OK;
}

/* Copies the latents of guided pictures to their reference rows: runs of guided pictures in one copy each. */
static dfcl_status copy_references(struct dfcl_sampler *s, const struct batch *b, dfcl_error *err) {
    uint64_t one = s->values * 4;
    for (int i = 0; i < b->m;) {
        if (s->ref[i] < 0) {
            i++;
            continue;
        }
        int end = i + 1;
        while (end < b->m && s->ref[end] >= 0)
            end++;
        dfcl_status st = dfcl_copy(s->dev, dfcl_ref_at(s->d.x, (uint64_t)s->ref[i] * one), dfcl_ref_at(s->d.x, (uint64_t)i * one),
                                   (uint64_t)(end - i) * one, err);
        if (st)
            return st;
        i = end;
    }
    return DFCL_OK;
}

static dfcl_status predict(struct dfcl_sampler *s, struct batch *b, int j, dfcl_error *err) {
    const struct dfcl_solver_step *q = &s->opt.solver->step[j];
    bool guided = s->opt.guide_hi == 0 || (q->sigma > s->opt.guide_lo && q->sigma <= s->opt.guide_hi);
    dfcl_status st = guided ? copy_references(s, b, err) : DFCL_OK;
    if (!st && j == b->to) {
        int done;
        st = dfcl_dit_ahead(s->dit, s->t + j, s->opt.solver->steps - j, b->R, s->rows, s->dom, &done, err);
        b->from = j;
        b->to = j + done;
    }
    if (!st)
        st = dfcl_dit_forward_ahead(s->dit, j - b->from, guided ? b->R : b->m, s->d.x, s->d.net, err);
    if (st)
        return st;
    struct dfcl_guide g = {.m = b->m,
                           .C = s->C,
                           .hw = s->hw,
                           .chans = s->opt.guided_channels,
                           .out = s->d.net,
                           .cond = s->d.cond,
                           .ref = guided ? s->d.ref : DFCL_NO_REF,
                           .scale = s->d.scale,
                           .eps = s->d.eps,
                           .v = q->ancestral ? s->d.v : DFCL_NO_REF};
    return dfcl_run(&s->ex, &dfcl_op_guide, &g, err);
}

static dfcl_status update(struct dfcl_sampler *s, const struct batch *b, const struct dfcl_solver_step *q, dfcl_error *err) {
    int64_t n = (int64_t)b->m * (int64_t)s->values;
    struct dfcl_ref noise = q->noise ? s->d.noise : DFCL_NO_REF;
    struct dfcl_ref x0 = s->opt.solver->keeps_x0 || s->opt.on_step ? s->d.x0 : DFCL_NO_REF;
    if (q->ancestral) {
        struct dfcl_ddpm_step p = {.n = n, .clip = s->opt.clip, .x = s->d.x, .eps = s->d.eps, .v = s->d.v, .noise = noise, .xn = s->d.x, .x0 = x0};
        memcpy(p.tab, q->tab, sizeof p.tab);
        return dfcl_run(&s->ex, &dfcl_op_ddpm_step, &p, err);
    }
    struct dfcl_linear_step p = {.n = n,
                                 .a = q->a,
                                 .b = q->b,
                                 .clip = s->opt.clip,
                                 .kx = q->kx,
                                 .ke = q->ke,
                                 .k0 = q->k0,
                                 .kz = q->kz,
                                 .kp = q->kp,
                                 .x = s->d.x,
                                 .eps = s->d.eps,
                                 .noise = noise,
                                 .x0_prev = q->prev ? s->d.x0 : DFCL_NO_REF,
                                 .xn = s->d.x,
                                 .x0 = x0};
    return dfcl_run(&s->ex, &dfcl_op_linear_step, &p, err);
}

/* Waits for the step. A non-finite latent, or prediction (which clamping may hide), ends the run here, where step and picture can still be named;
 * `host` is room for the batch. */
static dfcl_status check(struct dfcl_sampler *s, const struct batch *b, int j, float *host, dfcl_error *err) {
    struct dfcl_sumsq x = finite_check(s, b->m, false), eps = finite_check(s, b->m, true);
    float sum[4];
    dfcl_status st = dfcl_run(&s->ex, &dfcl_op_sumsq, &x, err);
    if (!st)
        st = dfcl_run(&s->ex, &dfcl_op_sumsq, &eps, err);
    if (!st)
        st = dfcl_read(s->dev, sum, s->d.sum, sizeof sum, err);
    if (st || (sum[1] == 0.0f && sum[3] == 0.0f))
        return st;
    bool predicted = sum[3] != 0.0f; /* it comes before the latent */
    st = dfcl_read(s->dev, host, predicted ? s->d.eps : s->d.x, (uint64_t)b->m * s->values * 4, err);
    if (st)
        return st;
    size_t count = (size_t)b->m * s->values, at = 0;
    while (at < count - 1 && isfinite(host[at]))
        at++;
    int i = (int)(at / s->values);
    const struct dfcl_sampler_item *it = &b->items[b->first + i];
    return dfcl_fail(err, DFCL_NONFINITE,
                     "sampling: step %d of %d (t = %d): picture %d (number %u, class row %d, domain %d): value %zu of the %s is %g, expected "
                     "a finite number",
                     j + 1, s->opt.solver->steps, s->opt.solver->step[j].t, b->first + i, it->number, it->row, it->dom, at % s->values,
                     predicted ? "predicted noise" : "latent", (double)host[at]);
}

static dfcl_status run_batch(struct dfcl_sampler *s, struct batch *b, double start, float *host, dfcl_error *err) {
    const struct dfcl_solver *solver = s->opt.solver;
    int64_t total = (int64_t)b->n * solver->steps;
    dfcl_status st = set_up(s, b, err);
    if (!st)
        st = draw(s, b, s->d.x, s->opt.init_noise, DFCL_STREAM_SAMPLE_INIT, 0, err);
    for (int j = 0; !st && j < solver->steps; j++) {
        const struct dfcl_solver_step *q = &solver->step[j];
        if (s->opt.stop && s->opt.stop(s->opt.progress_user))
            return dfcl_fail(err, DFCL_INTERRUPTED, "sampling: stopped before step %d of %d, %d of %d pictures done", j + 1, solver->steps,
                             b->first, b->n);
        st = predict(s, b, j, err);
        if (!st && q->noise) {
            const float *given = s->opt.step_noise ? s->opt.step_noise + (size_t)j * (size_t)b->n * s->values : NULL;
            st = draw(s, b, s->d.noise, given, DFCL_STREAM_SAMPLE_STEP, (uint32_t)j, err);
        }
        if (!st)
            st = update(s, b, q, err);
        if (!st)
            st = check(s, b, j, host, err);
        if (!st && s->opt.on_step) {
            struct dfcl_sampler_state state = {j, q->t, b->first, b->m, s->d.x, s->d.x0, s->d.eps};
            st = s->opt.on_step(s->opt.on_step_user, &state, err);
        }
        if (!st && s->opt.progress) {
            int64_t done = (int64_t)b->first * solver->steps + (int64_t)(j + 1) * b->m;
            s->opt.progress(s->opt.progress_user, (int)done, (int)total, dfcl_now() - start);
        }
    }
    return st ? st : dfcl_read(s->dev, host, s->d.x, (uint64_t)b->m * s->values * 4, err);
}

dfcl_status dfcl_sampler_run(struct dfcl_sampler *s, const struct dfcl_sampler_item *items, int n, float *out, dfcl_error *err) {
    double start = dfcl_now();
    if (n < 0 || n > s->capacity || (int64_t)n * s->opt.solver->steps > INT32_MAX)
        return dfcl_fail(err, DFCL_USAGE, "sampling: %d pictures of %d steps, expected at most %d pictures and 2^31 steps in all", n,
                         s->opt.solver->steps, s->capacity);
    for (int first = 0; first < n; first += s->batch) {
        struct batch b = {.items = items, .first = first, .m = DFCL_MIN(s->batch, n - first), .n = n};
        float *to = out ? out + (size_t)first * s->values : s->latents;
        dfcl_status st = run_batch(s, &b, start, to, err);
        if (!st && s->opt.on_batch)
            st = s->opt.on_batch(s->opt.progress_user, first, b.m, to, err);
        if (st)
            return st;
    }
    return DFCL_OK;
}
