#include "train/step.h"

#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "diffusion/schedule.h"
#include "train/pass_size.h"

/* Places in the stepper's own arena. */
struct buffers {
    struct dfcl_ref ema, m, v;              /* [count] */
    struct dfcl_ref x0;                     /* [batch, n] */
    struct dfcl_ref noise, xt;              /* [micro, n] */
    struct dfcl_ref out, dout;              /* [micro, 2 n] */
    struct dfcl_ref ints;                   /* timesteps i32 [batch] | noise ids u32 [batch] */
    struct dfcl_ref table;
    struct dfcl_ref losses; /* mse [batch] | vb [batch] | sum of squares, non-finite count: one read a step */
    struct dfcl_ref scratch;
};

struct dfcl_stepper {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_dit *dit;
    struct dfcl_exec ex;
    struct dfcl_arena arena;
    struct buffers b;
    struct dfcl_plan plan;
    int batch, micro, timesteps;
    enum dfcl_recompute recompute;
    int n; /* values of one picture */
    uint64_t room; /* bytes that the model may plan with; 0: unknown */
    int64_t count;
    struct dfcl_ref values, grads;
    float *losses;   /* host copy: [2 batch + 2] */
    float *t;        /* [batch] what the network sees */
    uint32_t *ints;  /* [2 batch] as on the device */
};

double dfcl_ema_decay(double decay, int64_t k, bool warmup) {
    double w = (1.0 + (double)k) / (10.0 + (double)k);
    return warmup && w < decay ? w : decay;
}

/* ---- memory ---- */

/* The same order of allocations dry and for real. */
static dfcl_status place(struct dfcl_stepper *st, int micro, dfcl_error *err) {
    const uint64_t f = sizeof(float);
    uint64_t count = (uint64_t)st->count * f, pass = (uint64_t)micro * (uint64_t)st->n * f;
    struct {
        struct dfcl_ref *ref;
        uint64_t bytes;
    } list[] = {
        {&st->b.ema, count},
        {&st->b.m, count},
        {&st->b.v, count},
        {&st->b.x0, (uint64_t)st->batch * (uint64_t)st->n * f},
        {&st->b.noise, pass},
        {&st->b.xt, pass},
        {&st->b.out, 2 * pass},
        {&st->b.dout, 2 * pass},
        {&st->b.ints, 2 * (uint64_t)st->batch * sizeof(uint32_t)},
        {&st->b.table, (uint64_t)st->timesteps * DFCL_TAB_COUNT * f},
        {&st->b.losses, (2 * (uint64_t)st->batch + 2) * f},
        {&st->b.scratch, DFCL_MAX(st->ex.scratch_need, 16)},
    };
    for (size_t i = 0; i < DFCL_COUNT(list); i++) {
        dfcl_status s = dfcl_arena_alloc(&st->arena, list[i].bytes, list[i].ref, err);
        if (s)
            return s;
    }
    return DFCL_OK;
}

/* ---- the ops of a step, dry or for real ---- */

/* Refs of the pass that starts at sample `first`. */
static struct dfcl_ref x0_at(const struct dfcl_stepper *st, int first) {
    return dfcl_ref_at(st->b.x0, (uint64_t)first * (uint64_t)st->n * sizeof(float));
}
static struct dfcl_ref t_at(const struct dfcl_stepper *st, int first) {
    return dfcl_ref_at(st->b.ints, (uint64_t)first * sizeof(int32_t));
}

static dfcl_status run_noise(struct dfcl_stepper *st, int micro, int first, const struct dfcl_step_batch *b, enum dfcl_stream stream,
                             dfcl_error *err) {
    struct dfcl_normal p = {.B = micro, .n = st->n, .seed = b->seed, .stream = stream, .step = b->step,
                            .id = t_at(st, st->batch + first), .out = st->b.noise};
    return dfcl_run(&st->ex, &dfcl_op_normal, &p, err);
}

static dfcl_status run_q_sample(struct dfcl_stepper *st, int micro, int first, dfcl_error *err) {
    struct dfcl_q_sample p = {.B = micro, .n = st->n, .x0 = x0_at(st, first), .noise = st->b.noise, .t = t_at(st, first),
                              .tab = st->b.table, .xt = st->b.xt};
    return dfcl_run(&st->ex, &dfcl_op_q_sample, &p, err);
}

static dfcl_status run_loss(struct dfcl_stepper *st, int micro, int first, dfcl_error *err) {
    struct dfcl_hybrid_loss p = {.B = micro, .n = st->n, .grad_scale = (float)(1.0 / st->batch), .x0 = x0_at(st, first),
                                 .noise = st->b.noise, .xt = st->b.xt, .out = st->b.out, .t = t_at(st, first), .tab = st->b.table,
                                 .dout = st->b.dout};
    p.mse = dfcl_ref_at(st->b.losses, (uint64_t)first * sizeof(float));
    p.vb = dfcl_ref_at(st->b.losses, (uint64_t)(st->batch + first) * sizeof(float));
    return dfcl_run(&st->ex, &dfcl_op_hybrid_loss, &p, err);
}

static dfcl_status run_sumsq(struct dfcl_stepper *st, dfcl_error *err) {
    struct dfcl_sumsq p = {.n = st->count, .x = st->grads, .out = dfcl_ref_at(st->b.losses, 2 * (uint64_t)st->batch * sizeof(float))};
    return dfcl_run(&st->ex, &dfcl_op_sumsq, &p, err);
}

static dfcl_status run_update(struct dfcl_stepper *st, const struct dfcl_step_hyper *h, double grad_scale, dfcl_error *err) {
    struct dfcl_adamw a = {.n = st->count, .lr = (float)h->lr, .beta1 = (float)h->beta1, .beta2 = (float)h->beta2, .eps = (float)h->eps,
                           .wd = (float)h->weight_decay, .grad_scale = (float)grad_scale, .c1 = 1.0 - pow(h->beta1, (double)h->k),
                           .c2 = 1.0 - pow(h->beta2, (double)h->k), .p = st->values, .g = st->grads, .m = st->b.m, .v = st->b.v,
                           .ema = st->b.ema, .ema_decay = (float)h->ema_decay};
    return dfcl_run(&st->ex, &dfcl_op_adamw, &a, err);
}

/* What the stepper's own ops need beside their tensors. */
static dfcl_status size_scratch(struct dfcl_stepper *st, int micro, dfcl_error *err) {
    struct dfcl_step_batch b = {0};
    struct dfcl_step_hyper h = {.k = 1};
    st->ex.dry = true;
    dfcl_status s = run_noise(st, micro, 0, &b, DFCL_STREAM_NOISE, err);
    if (!s)
        s = run_q_sample(st, micro, 0, err);
    if (!s)
        s = run_loss(st, micro, 0, err);
    if (!s)
        s = run_sumsq(st, err);
    if (!s)
        s = run_update(st, &h, 1.0, err);
    st->ex.dry = false;
    return s;
}

/* Bytes the stepper itself wants at this size of a pass. The first placement gives the refs that the dry run of the ops looks at, the second
 * counts their scratch as well. */
static dfcl_status dry_run(struct dfcl_stepper *st, int micro, uint64_t *bytes, dfcl_error *err) {
    st->ex.scratch_need = 0;
    dfcl_arena_reset(&st->arena);
    dfcl_status s = place(st, micro, err);
    if (!s)
        s = size_scratch(st, micro, err);
    if (!s) {
        dfcl_arena_reset(&st->arena);
        s = place(st, micro, err);
    }
    *bytes = st->arena.total;
    return s;
}

/* ---- create ---- */

/* Rows (samples times tokens) of a pass beyond which a processor gains nothing: its products are at full speed long before, while activations of a
 * larger pass fall out of the caches. A 1.9 M-parameter model of 64 tokens at batch 128, processor seconds a step on 2 Zen 4 cores: 0.98 in one pass,
 * 0.94 in passes of 32, with 366 and 110 MiB. A GPU takes whatever fits. */
#define CPU_ROWS 2048

/* Rows below which a device is no longer busy: there, running blocks again costs less than making passes smaller. The processor's figure is that of the
 * products in docs/performance.md; the other one is a guess. */
#define CPU_BUSY_ROWS 256
#define BUSY_ROWS 1024

static struct dfcl_pass_limits limits_of(const struct dfcl_stepper *st, uint64_t room) {
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(st->dit);
    int tokens = dfcl_dit_tokens(cfg);
    bool cpu = st->dev->info.type == DFCL_DEVICE_CPU;
    return (struct dfcl_pass_limits){.batch = st->batch, .most = cpu ? DFCL_MAX(CPU_ROWS / tokens, 1) : st->batch,
                                     .full = ((cpu ? CPU_BUSY_ROWS : BUSY_ROWS) + tokens - 1) / tokens, .room = room};
}

/* Leaves the setting's plan in st->plan. */
static dfcl_status price(void *user, struct dfcl_pass_size size, uint64_t *need, dfcl_error *err) {
    struct dfcl_stepper *st = user;
    uint64_t own;
    dfcl_status s = dry_run(st, size.micro, &own, err);
    if (!s)
        s = dfcl_dit_plan_only(st->dit, size.micro, size.recompute, &st->plan, err);
    *need = st->plan.total + own;
    return s;
}

static dfcl_status choose_passes(struct dfcl_stepper *st, const struct dfcl_stepper_options *opt, uint64_t room, uint64_t *need,
                                 dfcl_error *err) {
    struct dfcl_pass_limits lim = limits_of(st, room);
    struct dfcl_pass_size size;
    char advice[128], plan[512];
    dfcl_status s = dfcl_pass_choose(&lim, (struct dfcl_pass_size){opt->micro, opt->recompute}, price, st, &size, advice, sizeof advice, err);
    if (s)
        return s;
    if ((s = price(st, size, need, err))) { /* no plan to show: one of its tensors is too large */
        dfcl_error_prefix(err, "training in passes of %d (%s)", size.micro, advice);
        return s;
    }
    st->micro = size.micro;
    st->recompute = size.recompute;
    if (!*advice)
        return DFCL_OK;
    dfcl_plan_line(&st->plan, &st->dev->info, plan, sizeof plan);
    return dfcl_fail(err, DFCL_NOMEM, "training in passes of %d needs %.1f MiB, there may be %.1f MiB: %s; optimizer and batch %.1f MiB; %s", size.micro,
                     (double)*need / 1048576.0, (double)room / 1048576.0, plan, (double)(*need - st->plan.total) / 1048576.0, advice);
}

static dfcl_status write_table(struct dfcl_stepper *st, const float *table, dfcl_error *err) {
    struct dfcl_schedule sched = {0};
    size_t n = (size_t)st->timesteps * DFCL_TAB_COUNT;
    float *own = NULL;
    dfcl_status s = DFCL_OK;
    if (!table) {
        own = dfcl_calloc(st->ctx, n, sizeof *own, err);
        s = own ? dfcl_schedule_train(&sched, st->ctx, err) : DFCL_NOMEM;
        if (!s)
            dfcl_schedule_table(&sched, own);
    }
    if (!s)
        s = dfcl_write(st->dev, st->b.table, table ? table : own, n * sizeof *own, err);
    dfcl_schedule_finish(&sched);
    dfcl_free(st->ctx, own);
    return s;
}

dfcl_status dfcl_stepper_create(struct dfcl_stepper **out, struct dfcl_dit *dit, const struct dfcl_stepper_options *opt,
                                dfcl_error *err) {
    *out = NULL;
    if (opt->batch < 1 || opt->micro < 0 || (opt->micro && opt->batch % opt->micro))
        return dfcl_fail(err, DFCL_USAGE, "batch %d: expected a micro-batch that divides it, found %d", opt->batch, opt->micro);
    struct dfcl_device *dev = dfcl_dit_device(dit);
    struct dfcl_stepper *st = dfcl_calloc(dev->ctx, 1, sizeof *st, err);
    if (!st)
        return DFCL_NOMEM;
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    dfcl_status s = DFCL_OK;
    const uint64_t room = opt->max_memory ? opt->max_memory : dev->info.memory;
    uint64_t need = 0;
    st->ctx = dev->ctx;
    st->dev = dev;
    st->dit = dit;
    st->ex.dev = dev;
    st->batch = opt->batch;
    st->timesteps = opt->table ? opt->timesteps : DFCL_TRAIN_STEPS;
    st->n = (int)dfcl_dit_values(cfg);
    dfcl_arena_init(&st->arena, dev, "training");
    st->count = dfcl_dit_trained(dit, &st->values, &st->grads);
    if (st->count < 1) {
        s = dfcl_fail(err, DFCL_USAGE, "nothing to train: the method selects no parameter of this model");
        goto out;
    }
    if ((s = choose_passes(st, opt, room, &need, err)))
        goto out;
    st->room = room ? room - (need - st->plan.total) : 0;
    if ((s = dfcl_stepper_replan(st, err)))
        goto out;
    s = dfcl_arena_commit(&st->arena, err);
    if (!s)
        s = place(st, st->micro, err);
    if (s)
        goto out;
    st->ex.scratch = st->b.scratch;
    st->losses = dfcl_calloc(st->ctx, 2 * (size_t)st->batch + 2, sizeof(float), err);
    st->t = dfcl_calloc(st->ctx, (size_t)st->batch, sizeof(float), err);
    st->ints = dfcl_calloc(st->ctx, 2 * (size_t)st->batch, sizeof *st->ints, err);
    if (!st->losses || !st->t || !st->ints) {
        s = DFCL_NOMEM;
        goto out;
    }
    uint64_t bytes = (uint64_t)st->count * sizeof(float);
    s = write_table(st, opt->table, err);
    if (!s)
        s = dfcl_fill(dev, st->b.m, 0, bytes, err);
    if (!s)
        s = dfcl_fill(dev, st->b.v, 0, bytes, err);
    if (!s)
        s = dfcl_copy(dev, st->b.ema, st->values, bytes, err);
out:
    if (s)
        dfcl_stepper_destroy(&st);
    *out = st;
    return s;
}

dfcl_status dfcl_stepper_replan(struct dfcl_stepper *st, dfcl_error *err) {
    return dfcl_dit_plan(st->dit, st->micro, st->recompute, st->room, &st->plan, err);
}

void dfcl_stepper_destroy(struct dfcl_stepper **stp) {
    struct dfcl_stepper *st = *stp;
    if (!st)
        return;
    dfcl_arena_finish(&st->arena);
    dfcl_free(st->ctx, st->losses);
    dfcl_free(st->ctx, st->t);
    dfcl_free(st->ctx, st->ints);
    dfcl_free(st->ctx, st);
    *stp = NULL;
}

int dfcl_stepper_micro(const struct dfcl_stepper *st) {
    return st->micro;
}

const struct dfcl_plan *dfcl_stepper_plan(const struct dfcl_stepper *st, uint64_t *own_bytes) {
    *own_bytes = st->arena.total;
    return &st->plan;
}

int64_t dfcl_stepper_count(const struct dfcl_stepper *st) {
    return st->count;
}

struct dfcl_ref dfcl_stepper_array(const struct dfcl_stepper *st, enum dfcl_step_array which) {
    switch (which) {
    case DFCL_STEP_VALUES: return st->values;
    case DFCL_STEP_GRADS: return st->grads;
    case DFCL_STEP_EMA: return st->b.ema;
    case DFCL_STEP_M: return st->b.m;
    case DFCL_STEP_V: return st->b.v;
    }
    return DFCL_NO_REF;
}

/* ---- a step ---- */

/* Everything that the host knows of the first n samples goes over at the start: a write in the middle would wait for the passes before it. */
static dfcl_status upload(struct dfcl_stepper *st, const struct dfcl_step_batch *b, int n, dfcl_error *err) {
    uint32_t *t = st->ints, *id = st->ints + st->batch;
    for (int i = 0; i < n; i++) {
        if (b->t[i] < 0 || b->t[i] >= st->timesteps)
            return dfcl_fail(err, DFCL_USAGE, "timestep %d: expected 0 to %d", b->t[i], st->timesteps - 1);
        st->t[i] = (float)b->t[i];
        t[i] = (uint32_t)b->t[i];
        id[i] = (uint32_t)(b->first + (uint64_t)i);
    }
    dfcl_status s = dfcl_write(st->dev, st->b.x0, b->x0, (uint64_t)n * (uint64_t)st->n * sizeof(float), err);
    return s ? s : dfcl_write(st->dev, st->b.ints, st->ints, 2 * (uint64_t)st->batch * sizeof *st->ints, err);
}

/* Samples first .. first + m of the batch, up to their losses. */
static dfcl_status forward(struct dfcl_stepper *st, const struct dfcl_step_batch *b, int first, int m, enum dfcl_stream stream, bool keep,
                           struct dfcl_dit_batch *db, dfcl_error *err) {
    const size_t n = (size_t)st->n;
    dfcl_status s = b->noise ? dfcl_write(st->dev, st->b.noise, b->noise + (size_t)first * n, (size_t)m * n * sizeof(float), err)
                             : run_noise(st, m, first, b, stream, err);
    if (!s)
        s = run_q_sample(st, m, first, err);
    *db = (struct dfcl_dit_batch){.B = m, .t = st->t + first, .rows = b->rows + first, .x = st->b.xt, .out = st->b.out};
    if (!s)
        s = dfcl_dit_forward(st->dit, db, keep, err);
    return s ? s : run_loss(st, m, first, err);
}

dfcl_status dfcl_step_gradients(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, dfcl_error *err) {
    dfcl_status s = upload(st, batch, st->batch, err);
    if (!s)
        s = dfcl_fill(st->dev, st->grads, 0, (uint64_t)st->count * sizeof(float), err);
    for (int first = 0; !s && first < st->batch; first += st->micro) {
        struct dfcl_dit_batch db;
        s = forward(st, batch, first, st->micro, DFCL_STREAM_NOISE, true, &db, err);
        if (!s)
            s = dfcl_dit_backward(st->dit, &db, st->b.dout, err);
        if (!s)
            s = dfcl_flush(st->dev, err);
    }
    return s ? s : run_sumsq(st, err);
}

dfcl_status dfcl_step_evaluate(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, int n, dfcl_error *err) {
    if (n < 1 || n > st->batch)
        return dfcl_fail(err, DFCL_USAGE, "evaluation: expected 1 to %d samples at a time, found %d", st->batch, n);
    dfcl_status s = upload(st, batch, n, err);
    for (int first = 0; !s && first < n; first += st->micro) {
        struct dfcl_dit_batch db;
        s = forward(st, batch, first, DFCL_MIN(st->micro, n - first), DFCL_STREAM_VAL, false, &db, err);
        if (!s)
            s = dfcl_flush(st->dev, err);
    }
    return s ? s : dfcl_read(st->dev, st->losses, st->b.losses, 2 * (uint64_t)st->batch * sizeof(float), err);
}

dfcl_status dfcl_step_update(struct dfcl_stepper *st, const struct dfcl_step_hyper *hyper, struct dfcl_step_result *result,
                             dfcl_error *err) {
    memset(result, 0, sizeof *result);
    dfcl_status s = dfcl_read(st->dev, st->losses, st->b.losses, (2 * (uint64_t)st->batch + 2) * sizeof(float), err);
    if (s)
        return s;
    for (int i = 0; i < st->batch; i++) {
        result->mse += st->losses[i];
        result->vb += st->losses[st->batch + i];
    }
    result->mse /= st->batch;
    result->vb /= st->batch;
    result->loss = result->mse + result->vb;
    result->grad_norm = sqrt((double)st->losses[2 * st->batch]);
    result->finite = isfinite(result->loss) && isfinite(result->grad_norm) && st->losses[2 * st->batch + 1] == 0.0f;
    if (!result->finite)
        return DFCL_OK;
    double scale = 1.0;
    if (hyper->clip > 0.0 && result->grad_norm > hyper->clip)
        scale = hyper->clip / (result->grad_norm + 1e-6);
    s = run_update(st, hyper, scale, err);
    return s ? s : dfcl_dit_refresh(st->dit, err);
}

dfcl_status dfcl_train_step(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, const struct dfcl_step_hyper *hyper,
                            struct dfcl_step_result *result, dfcl_error *err) {
    dfcl_status s = dfcl_step_gradients(st, batch, err);
    return s ? s : dfcl_step_update(st, hyper, result, err);
}

void dfcl_step_losses(const struct dfcl_stepper *st, const float **mse, const float **vb) {
    *mse = st->losses;
    *vb = st->losses + st->batch;
}

void dfcl_step_tensors(const struct dfcl_stepper *st, struct dfcl_ref *xt, struct dfcl_ref *out, struct dfcl_ref *dout) {
    *xt = st->b.xt;
    *out = st->b.out;
    *dout = st->b.dout;
}

dfcl_status dfcl_step_forward(struct dfcl_stepper *st, const struct dfcl_step_batch *batch, int first, dfcl_error *err) {
    struct dfcl_dit_batch db;
    return forward(st, batch, first, st->micro, DFCL_STREAM_NOISE, false, &db, err);
}

dfcl_status dfcl_stepper_swap_ema(struct dfcl_stepper *st, dfcl_error *err) {
    uint64_t bytes = (uint64_t)st->count * sizeof(float);
    dfcl_status s = dfcl_copy(st->dev, st->grads, st->values, bytes, err);
    if (!s)
        s = dfcl_copy(st->dev, st->values, st->b.ema, bytes, err);
    if (!s)
        s = dfcl_copy(st->dev, st->b.ema, st->grads, bytes, err);
    return s ? s : dfcl_dit_refresh(st->dit, err);
}
