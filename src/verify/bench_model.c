/* Timing of a whole model: a forward pass, an optimizer step, sampling. Each run is what the library does for its users, with inputs from memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/philox.h"
#include "diffusion/schedule.h"
#include "methods/method.h"
#include "train/step.h"

#include <difffit-cl/verify.h>

struct dfcl_bench {
    const dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_bench_params p;
    dfcl_model *model;
    struct dfcl_stepper *st; /* training */
    struct dfcl_mem *mem;    /* forward: input, then output */
    struct dfcl_sample_request *requests; /* sampling */
    size_t n;                /* values of one picture */
    bool own_noise, own_t;   /* training: given by the caller */
    float *x, *noise, *out;  /* [batch, n], [batch, n], [batch, 2 n] */
    float *tf;
    int32_t *t, *classes, *rows, *dom; /* dom: NULL without domains */
    int mix;                           /* domains in use */
    uint32_t step;           /* runs so far */
    double load_seconds;
};

/* ---- inputs ---- */

static void draw_timesteps(struct dfcl_bench *b) {
    for (int i = 0; i < b->p.batch; i++)
        b->t[i] = (int32_t)dfcl_uniform_int(b->p.seed, DFCL_STREAM_TIMESTEP, b->step, (uint32_t)i, 0, DFCL_TRAIN_STEPS);
}

static dfcl_status set_rows(struct dfcl_bench *b, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < b->p.batch && !s; i++) {
        s = dfcl_model_row(b->model, 0, b->classes[i], &b->rows[i], err);
        int domain = b->mix ? 1 + i % b->mix : 0;
        if (b->dom)
            b->dom[i] = domain;
        if (b->requests)
            b->requests[i] = (struct dfcl_sample_request){.domain = domain, .class_id = b->classes[i], .number = (uint32_t)i};
    }
    return s;
}

/* One domain: vectors near the base's, gammas near 1; classes are the base's. */
static dfcl_status add_domain(struct dfcl_bench *b, float *values, dfcl_error *err) {
    struct dfcl_dit *dit = dfcl_model_dit(b->model);
    int n, slot, depth = dfcl_dit_get_config(dit)->depth;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    dfcl_status s = dfcl_model_take_domain(b->model, 0, &slot, err);
    if (s)
        return s;
    b->model->domains[slot].classes = b->model->domains[0].classes;
    b->model->domains[slot].first_row = b->model->domains[0].first_row;
    for (int i = 0; i < n && !s; i++) {
        if (p[i].kind != DFCL_PARAM_VEC || (p[i].gamma && p[i].block >= depth / 2))
            continue;
        p[i].present = true;
        dfcl_normals(b->p.seed, DFCL_STREAM_TEST, (uint32_t)slot, (uint32_t)i, values, (size_t)p[i].count);
        for (int64_t k = 0; k < p[i].count; k++)
            values[k] = (p[i].gamma ? 1.0f : 0.0f) + 0.02f * values[k];
        s = dfcl_dit_set(dit, &p[i], slot, values, err);
    }
    return s;
}

static dfcl_status add_domains(struct dfcl_bench *b, dfcl_error *err) {
    int n;
    int64_t most = 1;
    const struct dfcl_param *p = dfcl_dit_params(dfcl_model_dit(b->model), &n);
    for (int i = 0; i < n; i++)
        most = p[i].kind == DFCL_PARAM_VEC ? DFCL_MAX(most, p[i].count) : most;
    float *values = dfcl_calloc(b->ctx, (size_t)most, sizeof *values, err);
    b->dom = values ? dfcl_calloc(b->ctx, (size_t)b->p.batch, sizeof *b->dom, err) : NULL;
    dfcl_status s = b->dom ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; i < b->p.domains && !s; i++)
        s = add_domain(b, values, err);
    dfcl_free(b->ctx, values);
    b->mix = b->p.domains;
    return s;
}

dfcl_status dfcl_bench_mix(dfcl_bench *b, int n, dfcl_error *err) {
    if (n < 1 || n > b->p.domains)
        return dfcl_fail(err, DFCL_USAGE, "benchmark: %d domains, expected 1 to %d", n, b->p.domains);
    b->mix = n;
    return set_rows(b, err);
}

static dfcl_status make_inputs(struct dfcl_bench *b, dfcl_error *err) {
    const struct dfcl_model_shape *sh = dfcl_model_get_shape(b->model);
    size_t batch = (size_t)b->p.batch;
    b->n = (size_t)sh->channels * (size_t)sh->input * (size_t)sh->input_width;
    if (!(b->x = dfcl_calloc(b->ctx, batch, b->n * sizeof *b->x, err)) || !(b->out = dfcl_calloc(b->ctx, batch, 2 * b->n * sizeof *b->out, err)) ||
        !(b->noise = dfcl_calloc(b->ctx, batch, b->n * sizeof *b->noise, err)) || !(b->tf = dfcl_calloc(b->ctx, batch, sizeof *b->tf, err)) ||
        !(b->t = dfcl_calloc(b->ctx, batch, sizeof *b->t, err)) || !(b->classes = dfcl_calloc(b->ctx, batch, sizeof *b->classes, err)) ||
        !(b->rows = dfcl_calloc(b->ctx, batch, sizeof *b->rows, err)))
        return DFCL_NOMEM;
    if (b->p.kind == DFCL_BENCH_SAMPLE && !(b->requests = dfcl_calloc(b->ctx, batch, sizeof *b->requests, err)))
        return DFCL_NOMEM;
    for (int i = 0; i < b->p.batch; i++) {
        dfcl_normals(b->p.seed, DFCL_STREAM_SAMPLE_INIT, 0, (uint32_t)i, b->x + (size_t)i * b->n, b->n);
        b->classes[i] = (int32_t)dfcl_uniform_int(b->p.seed, DFCL_STREAM_SHUFFLE, 0, (uint32_t)i, 0, (uint32_t)sh->classes + 1);
    }
    draw_timesteps(b);
    dfcl_status s = b->p.domains ? add_domains(b, err) : DFCL_OK;
    return s ? s : set_rows(b, err);
}

dfcl_status dfcl_bench_set_inputs(dfcl_bench *b, const struct dfcl_bench_inputs *in, dfcl_error *err) {
    size_t batch = (size_t)b->p.batch;
    if (in->noise && b->p.kind != DFCL_BENCH_TRAIN)
        return dfcl_fail(err, DFCL_USAGE, "benchmark: noise is an input of training only");
    if (in->t && b->p.kind == DFCL_BENCH_SAMPLE)
        return dfcl_fail(err, DFCL_USAGE, "benchmark: sampling has its own timesteps");
    for (int i = 0; in->t && i < b->p.batch; i++)
        if (in->t[i] < 0 || in->t[i] >= DFCL_TRAIN_STEPS)
            return dfcl_fail(err, DFCL_USAGE, "benchmark: timestep %d of sample %d, expected 0 to %d", (int)in->t[i], i, DFCL_TRAIN_STEPS - 1);
    if (in->x)
        memcpy(b->x, in->x, batch * b->n * sizeof *b->x);
    if (in->noise)
        memcpy(b->noise, in->noise, batch * b->n * sizeof *b->noise);
    if (in->t)
        memcpy(b->t, in->t, batch * sizeof *b->t);
    if (in->classes)
        memcpy(b->classes, in->classes, batch * sizeof *b->classes);
    b->own_noise = b->own_noise || in->noise;
    b->own_t = b->own_t || in->t;
    return set_rows(b, err);
}

/* ---- life ---- */

static dfcl_status open_forward(struct dfcl_bench *b, dfcl_error *err) {
    dfcl_status s = dfcl_model_open(&b->model, b->dev, &b->p.model, err);
    struct dfcl_plan plan;
    if (!s)
        s = make_inputs(b, err);
    if (!s)
        s = dfcl_dit_plan(dfcl_model_dit(b->model), b->p.batch, DFCL_FORWARD_ONLY, b->p.max_memory, &plan, err);
    return s ? s : dfcl_mem_create(b->dev, 3 * (uint64_t)b->p.batch * b->n * sizeof(float) + 256, "samples", &b->mem, err);
}

static dfcl_status open_train(struct dfcl_bench *b, dfcl_error *err) {
    struct dfcl_method_config mc = {.method = b->p.method, .seed = b->p.seed};
    struct dfcl_stepper_options o = {.batch = b->p.batch, .micro = b->p.micro_batch, .max_memory = b->p.max_memory};
    dfcl_status s = dfcl_recompute_parse(b->p.recompute, &o.recompute, err);
    if (!s)
        s = dfcl_method_open(&b->model, b->dev, &b->p.model, &mc, err);
    if (!s)
        s = make_inputs(b, err);
    return s ? s : dfcl_stepper_create(&b->st, dfcl_model_dit(b->model), &o, err);
}

static dfcl_status open_sample(struct dfcl_bench *b, dfcl_error *err) {
    struct dfcl_sample_params *sp = &b->p.sample;
    dfcl_status s = dfcl_model_open(&b->model, b->dev, &b->p.model, err);
    if (!s)
        s = make_inputs(b, err);
    sp->seed = b->p.seed;
    sp->batch = b->p.batch;
    sp->max_memory = b->p.max_memory;
    sp->init_noise = b->x;
    sp->step_noise = NULL;
    sp->progress = NULL;
    sp->stop = NULL;
    return s;
}

dfcl_status dfcl_bench_create(dfcl_bench **out, dfcl_device *dev, const struct dfcl_bench_params *params, dfcl_error *err) {
    static dfcl_status (*const open[])(struct dfcl_bench *b, dfcl_error *err) = {open_forward, open_train, open_sample};
    *out = NULL;
    if (params->batch < 1)
        return dfcl_fail(err, DFCL_USAGE, "benchmark: batch %d, expected 1 or more", params->batch);
    if ((unsigned)params->kind >= DFCL_COUNT(open))
        return dfcl_fail(err, DFCL_USAGE, "benchmark: no kind %d", (int)params->kind);
    if (params->domains < 0 || (params->domains && params->kind == DFCL_BENCH_TRAIN))
        return dfcl_fail(err, DFCL_USAGE, "benchmark: %d domains: training has one, others 0 or more", params->domains);
    struct dfcl_bench *b = dfcl_calloc(dev->ctx, 1, sizeof *b, err);
    if (!b)
        return DFCL_NOMEM;
    b->ctx = dev->ctx;
    b->dev = dev;
    b->p = *params;
    b->p.model.max_domains = DFCL_MAX(b->p.model.max_domains, b->p.domains);
    double start = dfcl_now();
    dfcl_status s = open[params->kind](b, err);
    if (!s)
        s = dfcl_finish(dev, err);
    b->load_seconds = dfcl_now() - start;
    if (s)
        dfcl_bench_destroy(&b);
    *out = b;
    return s;
}

void dfcl_bench_destroy(dfcl_bench **pb) {
    struct dfcl_bench *b = *pb;
    if (!b)
        return;
    dfcl_stepper_destroy(&b->st);
    dfcl_mem_destroy(b->dev, &b->mem);
    dfcl_model_close(&b->model);
    dfcl_free(b->ctx, b->requests);
    dfcl_free(b->ctx, b->x);
    dfcl_free(b->ctx, b->noise);
    dfcl_free(b->ctx, b->out);
    dfcl_free(b->ctx, b->tf);
    dfcl_free(b->ctx, b->t);
    dfcl_free(b->ctx, b->classes);
    dfcl_free(b->ctx, b->rows);
    dfcl_free(b->ctx, b->dom);
    dfcl_free(b->ctx, b);
    *pb = NULL;
}

/* ---- runs ---- */

static struct dfcl_ref output_of(const struct dfcl_bench *b) {
    return (struct dfcl_ref){b->mem, ((uint64_t)b->p.batch * b->n * sizeof(float) + 255) / 256 * 256};
}

static dfcl_status run_forward(struct dfcl_bench *b, struct dfcl_bench_run *r, dfcl_error *err) {
    for (int i = 0; i < b->p.batch; i++)
        b->tf[i] = (float)b->t[i];
    struct dfcl_dit_batch db = {.B = b->p.batch, .t = b->tf, .rows = b->rows, .dom = b->dom, .x = {b->mem, 0}, .out = output_of(b)};
    double start = dfcl_now();
    dfcl_status s = dfcl_write(b->dev, db.x, b->x, (uint64_t)b->p.batch * b->n * sizeof(float), err);
    if (!s)
        s = dfcl_dit_forward(dfcl_model_dit(b->model), &db, false, err);
    if (!s)
        s = dfcl_read(b->dev, b->out, db.out, 2 * (uint64_t)b->p.batch * b->n * sizeof(float), err);
    r->seconds = dfcl_now() - start;
    return s;
}

static dfcl_status run_train(struct dfcl_bench *b, struct dfcl_bench_run *r, dfcl_error *err) {
    const int64_t k = (int64_t)b->step + 1;
    struct dfcl_step_hyper h = {.k = k, .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .ema_decay = dfcl_ema_decay(0.9999, k, true)};
    struct dfcl_step_result res;
    if (!b->own_t)
        draw_timesteps(b);
    struct dfcl_step_batch sb = {.x0 = b->x, .noise = b->own_noise ? b->noise : NULL, .t = b->t, .rows = b->rows, .seed = b->p.seed,
                                 .first = (uint64_t)b->step * (uint64_t)b->p.batch, .step = b->step};
    double start = dfcl_now();
    dfcl_status s = dfcl_train_step(b->st, &sb, &h, &res, err);
    if (!s)
        s = dfcl_finish(b->dev, err);
    r->seconds = dfcl_now() - start;
    if (s)
        return s;
    r->loss = res.loss;
    r->mse = res.mse;
    r->vb = res.vb;
    r->grad_norm = res.grad_norm;
    return res.finite ? DFCL_OK
                      : dfcl_fail(err, DFCL_NONFINITE, "benchmark: step %lld: the loss is %g, its gradient's norm %g", (long long)k, res.loss,
                                  res.grad_norm);
}

static dfcl_status run_sample(struct dfcl_bench *b, struct dfcl_bench_run *r, dfcl_error *err) {
    double start = dfcl_now();
    dfcl_status s = dfcl_sample(b->model, &b->p.sample, b->requests, b->p.batch, b->out, err);
    r->seconds = dfcl_now() - start;
    return s;
}

dfcl_status dfcl_bench_run(dfcl_bench *b, struct dfcl_bench_run *run, dfcl_error *err) {
    static dfcl_status (*const kinds[])(struct dfcl_bench *b, struct dfcl_bench_run *r, dfcl_error *err) = {run_forward, run_train, run_sample};
    memset(run, 0, sizeof *run);
    dfcl_status s = kinds[b->p.kind](b, run, err);
    b->step++;
    return s;
}

dfcl_status dfcl_bench_output(dfcl_bench *b, const float **out, int64_t shape[4], dfcl_error *err) {
    const struct dfcl_model_shape *sh = dfcl_model_get_shape(b->model);
    if (b->p.kind == DFCL_BENCH_TRAIN || !b->step)
        return dfcl_fail(err, DFCL_USAGE, "benchmark: %s", b->step ? "training has no output" : "no run, no output");
    *out = b->out;
    shape[0] = b->p.batch;
    shape[1] = b->p.kind == DFCL_BENCH_FORWARD ? 2 * sh->channels : sh->channels;
    shape[2] = sh->input;
    shape[3] = sh->input_width;
    return DFCL_OK;
}

/* ---- what ran ---- */

/* Matrix products and attention of one picture: forward; and for training the input's gradient of every product that has trained parameters below
 * it (all but the patch embedding and the first of the timestep's), the weight's of every trained matrix, twice the forward's attention. */
static double flops_of(struct dfcl_bench *b) {
    struct dfcl_dit *dit = dfcl_model_dit(b->model);
    const struct dfcl_dit_config *c = dfcl_dit_get_config(dit);
    int count;
    double tokens = dfcl_dit_tokens(c), attention = 4.0 * tokens * tokens * c->hidden * c->depth, sum = attention;
    bool training = b->p.kind == DFCL_BENCH_TRAIN;
    const struct dfcl_param *p = dfcl_dit_params(dit, &count);
    if (training)
        sum += 2 * attention;
    for (int i = 0; i < count; i++) {
        if (p[i].kind != DFCL_PARAM_WEIGHT)
            continue;
        bool once = strstr(p[i].name, "adaLN") || strstr(p[i].name, "t_embedder"); /* a row a picture; the others a row a token */
        double product = 2.0 * (double)p[i].count * (once ? 1 : tokens);
        bool first = strstr(p[i].name, "x_embedder") || strstr(p[i].name, "mlp.0.");
        sum += product * (1 + (training && !first) + (training && p[i].trained));
    }
    return sum;
}

static void note(void *user, const struct dfcl_op *op, const struct dfcl_variant *v) {
    struct dfcl_bench_info *info = user;
    if (strncmp(op->name, "linear_", 7) && strncmp(op->name, "attn_", 5))
        return;
    int i = 0;
    while (i < info->variant_count && strcmp(info->variants[i].op, op->name))
        i++;
    if (i == (int)DFCL_COUNT(info->variants))
        return;
    struct dfcl_bench_variant *to = &info->variants[i];
    if (i == info->variant_count) {
        info->variant_count++;
        snprintf(to->op, sizeof to->op, "%s", op->name);
    }
    info->bf16_products |= v->bf16 && !strcmp(op->name, "linear_fwd");
    size_t n = strlen(v->name);
    for (const char *at = to->names; *at; at += strcspn(at, ","), at += *at == ',')
        if (!strncmp(at, v->name, n) && (!at[n] || at[n] == ','))
            return;
    dfcl_append(to->names, sizeof to->names, "%s%s", to->names[0] ? "," : "", v->name);
}

dfcl_status dfcl_bench_get_info(dfcl_bench *b, struct dfcl_bench_info *info, dfcl_error *err) {
    struct dfcl_dit *dit = dfcl_model_dit(b->model);
    const struct dfcl_plan *plan = dfcl_dit_current_plan(dit);
    *info = (struct dfcl_bench_info){.shape = *dfcl_model_get_shape(b->model),
                                     .load_seconds = b->load_seconds,
                                     .flops = flops_of(b) * b->p.batch,
                                     .planned_bytes = plan->total,
                                     .device_bytes = dfcl_device_memory_peak(b->dev)};
    int pass = plan->max_batch;
    if (b->p.kind == DFCL_BENCH_SAMPLE) {
        const struct dfcl_sample_params *sp = &b->p.sample;
        int steps = sp->steps ? sp->steps : sp->sampler == DFCL_SAMPLER_DDPM ? 250 : 50;
        info->flops *= steps * ((float)sp->cfg != 1.0f ? 2 : 1);
    } else if (b->p.kind == DFCL_BENCH_TRAIN) {
        uint64_t own;
        plan = dfcl_stepper_plan(b->st, &own);
        info->planned_bytes = plan->total + own;
        info->trained_values = dfcl_stepper_count(b->st);
        info->micro_batch = dfcl_stepper_micro(b->st);
        info->recompute = dfcl_recompute_name(plan->recompute);
    }
    return pass ? dfcl_dit_walk(dit, pass, note, info, err) : DFCL_OK;
}
