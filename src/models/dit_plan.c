/* Memory of a pass and its entry points. Buffers are placed by one function that runs twice (dry, then for real); scratch is the largest need
 * of any layer at any batch size up to the plan's, found by running the layers dry. */
#include "models/dit_internal.h"

#include <string.h>

static const char *const level_names[DFCL_RECOMPUTE_COUNT] = {"", "none", "cheap", "block"};

const char *dfcl_recompute_name(enum dfcl_recompute level) {
    return level_names[level];
}

dfcl_status dfcl_recompute_parse(const char *name, enum dfcl_recompute *level, dfcl_error *err) {
    *level = DFCL_FORWARD_ONLY;
    if (!name || !strcmp(name, "auto"))
        return DFCL_OK;
    for (int i = DFCL_RECOMPUTE_NONE; i < DFCL_RECOMPUTE_COUNT; i++)
        if (!strcmp(name, level_names[i])) {
            *level = (enum dfcl_recompute)i;
            return DFCL_OK;
        }
    return dfcl_fail(err, DFCL_USAGE, "recompute: expected auto, none, cheap or block, found %s", name);
}

/* Which optional tensors exist: a plan holds for one such state. */
static uint64_t layout_key(const struct dfcl_dit *dit) {
    uint64_t key = dit->tap ? 3 : 1;
    for (int i = 0; i < dit->param_count; i++)
        if (dit->params[i].gamma)
            key = (key * 0x100000001b3ull) ^ (uint64_t)(dit->params[i].present ? i + 1 : 0);
    return key;
}

static dfcl_status get(struct dfcl_arena *a, struct dfcl_ref *out, uint64_t count, dfcl_error *err) {
    return dfcl_arena_alloc(a, count * 4, out, err);
}

/* *own is `common` where it is to be shared, which the first one to ask takes. */
static dfcl_status place(struct dfcl_arena *ar, struct dfcl_ref *own, struct dfcl_ref *common, uint64_t count, bool share, dfcl_error *err) {
    if (share && common->mem) {
        *own = *common;
        return DFCL_OK;
    }
    dfcl_status s = get(ar, own, count, err);
    if (share)
        *common = *own;
    return s;
}

struct dfcl_ref *dit_stored(struct dit_block_acts *k, int n, int *width) {
    struct dfcl_ref *const refs[DIT_STORED] = {&k->qkv, &k->heads, &k->proj_pre, &k->mid, &k->fc1_pre, &k->fc2_pre, &k->qkv_pre};
    static const int widths[DIT_STORED] = {3, 1, 1, 1, 4, 1, 3};
    *width = widths[n];
    return refs[n];
}

/* One block's places under a training plan. What `shared` holds serves every block; what is to be shared and not there yet is taken. */
static dfcl_status place_block(struct dfcl_dit *dit, struct dfcl_arena *ar, int i, uint64_t B, enum dfcl_recompute level,
                               struct dit_block_acts *shared, dfcl_error *err) {
    struct dit_block_acts *k = &dit->a.block[i];
    uint64_t M = B * (uint64_t)dit->tokens, d = (uint64_t)dit->cfg.hidden;
    bool gq = dit_has(dit->blocks[i].gamma[DIT_ATTN_GAMMA1]), all = level == DFCL_RECOMPUTE_BLOCK, half = dit->opt.keep_bf16;
    bool light = half || level == DFCL_RECOMPUTE_CHEAP;
    const struct {
        struct dfcl_ref *own, *shared;
        uint64_t count;
    } small[] = {
        {&k->stats1, &shared->stats1, M * 2},
        {&k->stats2, &shared->stats2, M * 2},
        {&k->lse, &shared->lse, M * (uint64_t)dit->cfg.heads},
    };
    memset(k, 0, sizeof *k);
    dfcl_status s = get(ar, &k->mod, B * 6 * d, err);
    for (size_t n = 0; !s && n < DFCL_COUNT(small); n++)
        s = place(ar, small[n].own, small[n].shared, small[n].count, all, err);
    for (int n = 0; !s && n < DIT_STORED; n++) {
        int width;
        struct dfcl_ref *own = dit_stored(k, n, &width), *common = dit_stored(shared, n, &width);
        uint64_t count = M * d * (uint64_t)width;
        bool remade = light && (own == &k->mid || (own == &k->qkv && gq));
        if (own == &k->qkv_pre && !gq)
            continue;
        s = place(ar, own, common, count, all || half || remade, err);
        if (!s && half && !remade && i < dit->cfg.depth - 1) /* the last block's are still there when backward begins */
            s = place(ar, &k->stored[n], &shared->stored[n], (count + 1) / 2, all, err);
    }
    if (!gq)
        k->qkv_pre = k->qkv;
    return s;
}

static dfcl_status place_acts(struct dfcl_dit *dit, struct dfcl_arena *ar, int max_batch, enum dfcl_recompute level, dfcl_error *err) {
    struct dit_acts *a = &dit->a;
    uint64_t B = (uint64_t)max_batch, M = B * (uint64_t)dit->tokens, d = (uint64_t)dit->cfg.hidden;
    int L = dit->cfg.depth;
    struct dfcl_ref none = DFCL_NO_REF;
    dfcl_status s;
#define GET(ref, count)                                                                                                                    \
    do {                                                                                                                                   \
        if ((s = get(ar, &(ref), (count), err)))                                                                                           \
            return s;                                                                                                                      \
    } while (0)
    GET(a->t, B);
    GET(a->rows, B);
    GET(a->dom, B);
    GET(a->freq, B * DIT_FREQ);
    GET(a->t0, B * d);
    GET(a->temb, B * d);
    GET(a->c, B * d);
    GET(a->silu, B * d);
    GET(a->cols, M * (uint64_t)dit->col_dim);
    GET(a->m, M * d);
    GET(a->fmod, B * 2 * d);
    GET(a->tok, M * (uint64_t)dit->tok_dim);
    a->tap_y = none;
    if (dit->tap)
        GET(a->tap_y, M * d);
    if (level == DFCL_FORWARD_ONLY) {
        struct dit_block_acts k = {.mod = none};
        GET(a->h[0], M * d);
        GET(k.mod, B * 6 * d);
        /* qkv and the attention's output are dead when the MLP's wide tensor is written: one place for both */
        uint64_t qkv = (M * 3 * d * 4 + 255) / 256 * 256;
        GET(a->f, qkv / 4 + M * d);
        k.qkv = a->f;
        k.heads = dfcl_ref_at(a->f, ar->dry ? 0 : qkv);
        if (dit->tap) {
            GET(k.qkv_pre, M * 3 * d);
            GET(k.proj_pre, M * d);
            k.fc2_pre = k.proj_pre;
        }
        k.mid = a->h[0];
        a->t0_pre = a->fstats = none;
        for (int i = 0; i < L; i++) {
            a->block[i] = k;
            a->h[i + 1] = a->h[0];
        }
        a->dh = a->d1 = a->d4 = a->dmod = a->dfmod = a->dsilu = a->dc = a->dt0 = none;
        return DFCL_OK;
    }
    GET(a->t0_pre, B * d);
    GET(a->fstats, M * 2);
    GET(a->f, M * 4 * d);
    GET(a->h[0], M * d);
    struct dit_block_acts shared = {0};
    for (int i = 0; i < L; i++) {
        GET(a->h[i + 1], M * d);
        if ((s = place_block(dit, ar, i, B, level, &shared, err)))
            return s;
    }
    GET(a->dh, M * d);
    GET(a->d1, M * d);
    a->d4 = a->f;
    GET(a->dmod, B * 6 * d);
    GET(a->dfmod, B * 2 * d);
    GET(a->dsilu, B * d);
    GET(a->dc, B * d);
    GET(a->dt0, B * d);
#undef GET
    return DFCL_OK;
}

static void drop_plan(struct dfcl_dit *dit) {
    dit_ahead_drop(dit);
    dfcl_arena_reset(&dit->acts_arena);
    dfcl_arena_reset(&dit->scratch_arena);
    memset(&dit->plan, 0, sizeof dit->plan);
    memset(&dit->ex, 0, sizeof dit->ex);
    dit->kept = false;
}

/* Places buffers in a dry arena and runs the layers dry. */
static dfcl_status size_plan(struct dfcl_dit *dit, struct dfcl_arena *ar, int max_batch, enum dfcl_recompute level,
                             struct dfcl_plan *plan, dfcl_error *err) {
    if (!dit->allocated)
        return dfcl_fail(err, DFCL_ERROR, "model: memory planned before the parameters' was taken");
    if (max_batch < 1 || (int64_t)max_batch * dit->tokens > INT32_MAX / 4)
        return dfcl_fail(err, DFCL_USAGE, "model: a batch of %d samples of %d tokens, expected 1 to %d", max_batch, dit->tokens,
                         INT32_MAX / 4 / dit->tokens);
    struct dfcl_ref here = {&dfcl_dry_mem, 0};
    struct dfcl_exec ex = {.dev = dit->dev, .dry = true};
    dfcl_status s = place_acts(dit, ar, max_batch, level, err);
    /* A smaller batch may choose another variant with more scratch, so all sizes are tried up to 64, then every eighth of the way. */
    int step = max_batch <= 64 ? 1 : max_batch / 64;
    for (int B = max_batch; B >= 1 && !s; B -= step) {
        struct dit_pass ps = {.ex = &ex, .B = B, .M = B * dit->tokens, .x = here, .out = here, .dom = dit->opt.domains > 1 ? here : DFCL_NO_REF,
                              .recompute = level};
        s = dit_forward_layers(dit, &ps, err);
        if (!s && level != DFCL_FORWARD_ONLY) {
            s = dit_backward_layers(dit, &ps, here, err);
            ps.recompute = DFCL_FORWARD_ONLY; /* the same plan also serves forward alone */
            if (!s)
                s = dit_forward_layers(dit, &ps, err);
        }
    }
    if (s)
        return s;
    plan->weights = dit->weights.total;
    plan->mapped = dit->mapped_bytes;
    plan->activations = ar->total;
    plan->scratch = ex.scratch_need;
    plan->total = plan->weights + plan->activations + plan->scratch;
    plan->max_batch = max_batch;
    plan->recompute = level;
    plan->keep_bf16 = dit->opt.keep_bf16 && level != DFCL_FORWARD_ONLY;
    return DFCL_OK;
}

dfcl_status dfcl_dit_plan_only(struct dfcl_dit *dit, int max_batch, enum dfcl_recompute recompute, struct dfcl_plan *plan,
                               dfcl_error *err) {
    memset(plan, 0, sizeof *plan);
    drop_plan(dit); /* the buffers' refs are rewritten by a dry run */
    struct dfcl_arena ar;
    dfcl_arena_init(&ar, dit->dev, "activations");
    dfcl_status s = size_plan(dit, &ar, max_batch, recompute, plan, err);
    dfcl_arena_finish(&ar);
    return s;
}

void dfcl_plan_line(const struct dfcl_plan *plan, const struct dfcl_device_info *dev, char *buf, size_t size) {
    dfcl_plan_format(plan, dev, buf, size);
    char *to = buf;
    for (const char *c = buf; *c; c++) /* a comma for each line's end, one space for several */
        if (*c == '\n' && c[1])
            *to++ = ',', *to++ = ' ';
        else if (*c != '\n' && (*c != ' ' || c[1] != ' '))
            *to++ = *c;
    *to = 0;
}

dfcl_status dfcl_dit_plan(struct dfcl_dit *dit, int max_batch, enum dfcl_recompute recompute, uint64_t max_memory,
                          struct dfcl_plan *plan, dfcl_error *err) {
    uint64_t key = layout_key(dit);
    if (dit->plan.max_batch == max_batch && dit->plan.recompute == recompute && dit->layout_key == key && dit->max_memory == max_memory) {
        if (plan)
            *plan = dit->plan;
        return DFCL_OK;
    }
    drop_plan(dit);
    struct dfcl_plan p;
    dfcl_status s = size_plan(dit, &dit->acts_arena, max_batch, recompute, &p, err);
    uint64_t limit = max_memory ? max_memory : dit->dev->info.memory;
    if (!s && limit && p.total > limit) {
        char text[512];
        dfcl_plan_line(&p, &dit->dev->info, text, sizeof text);
        s = dfcl_fail(err, DFCL_NOMEM, "the plan needs %.1f MiB, there may be %.1f MiB: %s%s", (double)p.total / 1048576.0, (double)limit / 1048576.0,
                      text, max_batch > 1 ? "; a smaller batch needs less" : "; a batch of 1 is the smallest");
    }
    if (!s)
        s = dfcl_arena_commit(&dit->acts_arena, err);
    if (!s)
        s = place_acts(dit, &dit->acts_arena, max_batch, recompute, err);
    dit->ex = (struct dfcl_exec){.dev = dit->dev};
    if (!s && p.scratch) {
        struct dfcl_ref dry;
        if (!(s = dfcl_arena_alloc(&dit->scratch_arena, p.scratch, &dry, err)) && !(s = dfcl_arena_commit(&dit->scratch_arena, err)))
            s = dfcl_arena_alloc(&dit->scratch_arena, p.scratch, &dit->ex.scratch, err);
    }
    if (s) {
        drop_plan(dit);
        return s;
    }
    if (recompute == DFCL_FORWARD_ONLY) { /* the trainer shows its plan itself, with the optimizer's part */
        char text[512];
        dfcl_plan_line(&p, &dit->dev->info, text, sizeof text);
        dfcl_log(dit->dev->ctx, DFCL_LOG_INFO, "memory plan: %s", text);
    }
    dit->plan = p;
    dit->layout_key = key;
    dit->max_memory = max_memory;
    if (plan)
        *plan = p;
    return DFCL_OK;
}

const struct dfcl_plan *dfcl_dit_current_plan(const struct dfcl_dit *dit) {
    return &dit->plan;
}

dfcl_status dfcl_dit_walk(struct dfcl_dit *dit, int B, void (*note)(void *user, const struct dfcl_op *op, const struct dfcl_variant *v),
                          void *user, dfcl_error *err) {
    if (B < 1 || B > dit->plan.max_batch)
        return dfcl_fail(err, DFCL_ERROR, "model: a batch of %d, planned for %d", B, dit->plan.max_batch);
    struct dfcl_ref here = {&dfcl_dry_mem, 0};
    struct dfcl_exec ex = {.dev = dit->dev, .dry = true, .note = note, .note_user = user};
    struct dit_pass ps = {.ex = &ex, .B = B, .M = B * dit->tokens, .x = here, .out = here, .dom = DFCL_NO_REF,
                          .recompute = dit->plan.recompute};
    dfcl_status s = dit_forward_layers(dit, &ps, err);
    return s || !dit->plan.recompute ? s : dit_backward_layers(dit, &ps, here, err);
}

void dfcl_plan_format(const struct dfcl_plan *plan, const struct dfcl_device_info *dev, char *buf, size_t size) {
    const double mib = 1048576.0;
    if (size)
        *buf = 0;
    dfcl_append(buf, size, "weights      %9.1f MiB\n", (double)plan->weights / mib);
    if (plan->mapped)
        dfcl_append(buf, size, "mapped       %9.1f MiB (weights read in place from a file, not in the total)\n", (double)plan->mapped / mib);
    dfcl_append(buf, size, "activations  %9.1f MiB (batch %d, %s%s%s)\n", (double)plan->activations / mib, plan->max_batch,
                plan->recompute ? "recompute " : "forward only", plan->recompute ? dfcl_recompute_name(plan->recompute) : "",
                plan->keep_bf16 ? ", kept as bf16" : "");
    dfcl_append(buf, size, "scratch      %9.1f MiB\n", (double)plan->scratch / mib);
    dfcl_append(buf, size, "total        %9.1f MiB", (double)plan->total / mib);
    if (dev && dev->memory)
        dfcl_append(buf, size, " of %.1f MiB on %s", (double)dev->memory / mib, dev->name);
    dfcl_append(buf, size, "\n");
}

/* ---- passes ---- */

dfcl_status dit_check_batch(struct dfcl_dit *dit, int B, const int32_t *rows, const int32_t *dom, dfcl_error *err) {
    if (!dit->plan.max_batch)
        return dfcl_fail(err, DFCL_ERROR, "model: forward without a memory plan");
    if (dit->layout_key != layout_key(dit)) {
        /* gammas or the tap came or went since: the same plan for the new state */
        int passes = dit->ahead.passes, conditions = dit->ahead.conditions;
        dfcl_status s = dfcl_dit_plan(dit, dit->plan.max_batch, dit->plan.recompute, dit->max_memory, NULL, err);
        if (!s && passes)
            s = dfcl_dit_reserve_ahead(dit, passes, conditions, err);
        if (s)
            return s;
    }
    if (B < 1 || B > dit->plan.max_batch)
        return dfcl_fail(err, DFCL_ERROR, "model: a batch of %d, planned for %d", B, dit->plan.max_batch);
    for (int i = 0; i < B; i++) {
        if (rows[i] < 0 || rows[i] >= dit->opt.class_rows)
            return dfcl_fail(err, DFCL_ERROR, "model: class row %d of %d", (int)rows[i], dit->opt.class_rows);
        if (dom && (dom[i] < 0 || dom[i] >= dit->opt.domains))
            return dfcl_fail(err, DFCL_ERROR, "model: domain %d of %d", (int)dom[i], dit->opt.domains);
    }
    return DFCL_OK;
}

dfcl_status dfcl_dit_forward(struct dfcl_dit *dit, const struct dfcl_dit_batch *b, bool keep, dfcl_error *err) {
    dfcl_status s = dit_check_batch(dit, b->B, b->rows, b->dom, err);
    if (s)
        return s;
    if (keep && dit->plan.recompute == DFCL_FORWARD_ONLY)
        return dfcl_fail(err, DFCL_ERROR, "model: forward for training under a plan for inference");
    dit->kept = false;
    uint64_t n = (uint64_t)b->B * 4;
    bool mixed = false; /* all in domain 0: kernels skip the lookup */
    for (int i = 0; b->dom && i < b->B; i++)
        mixed = mixed || b->dom[i];
    if ((s = dfcl_write(dit->dev, dit->a.t, b->t, n, err)) || (s = dfcl_write(dit->dev, dit->a.rows, b->rows, n, err)) ||
        (mixed && (s = dfcl_write(dit->dev, dit->a.dom, b->dom, n, err))))
        return s;
    struct dit_pass ps = {.ex = &dit->ex, .B = b->B, .M = b->B * dit->tokens, .x = b->x, .out = b->out,
                          .dom = mixed ? dit->a.dom : DFCL_NO_REF,
                          .recompute = keep ? dit->plan.recompute : DFCL_FORWARD_ONLY};
    s = dit_forward_layers(dit, &ps, err);
    dit->kept = keep && !s;
    return s;
}

dfcl_status dfcl_dit_backward(struct dfcl_dit *dit, const struct dfcl_dit_batch *b, struct dfcl_ref dout, dfcl_error *err) {
    if (!dit->kept)
        return dfcl_fail(err, DFCL_ERROR, "model: backward without a forward that kept its activations");
    dit->kept = false;
    if (!dit->trained_count)
        return DFCL_OK;
    struct dit_pass ps = {.ex = &dit->ex, .B = b->B, .M = b->B * dit->tokens, .x = b->x, .out = b->out, .dom = DFCL_NO_REF,
                          .recompute = dit->plan.recompute};
    return dit_backward_layers(dit, &ps, dout, err);
}
