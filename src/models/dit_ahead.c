/* Modulations of many passes ahead of them. Equal (class row, domain) pairs of the samples share a condition; condition
 * k of pass p is row p * count + k of the tables, and every sample has its row in `index`. */
#include "models/dit_internal.h"

#include <string.h>

enum {
    MOST = 256 << 20
}; /* bytes: for XL/2 room for 330 conditions, whose product makes good use of one reading of the weights */

void dit_ahead_drop(struct dfcl_dit *dit) {
    struct dit_ahead *h = &dit->ahead;
    dfcl_arena_reset(&h->arena);
    h->passes = h->conditions = h->room = h->done = 0;
}

/* Runs dry, then for real. */
static dfcl_status place(struct dfcl_dit *dit, uint64_t passes, uint64_t room, uint64_t scratch, dfcl_error *err) {
    struct dit_ahead *h = &dit->ahead;
    uint64_t d = (uint64_t)dit->cfg.hidden, B = (uint64_t)dit->plan.max_batch;
    const struct {
        struct dfcl_ref *ref;
        uint64_t count;
    } list[] = {
        {&h->a.t, room},          {&h->a.rows, room},      {&h->a.dom, room},   {&h->a.freq, room * DIT_FREQ},
        {&h->a.t0, room * d},     {&h->a.temb, room * d},  {&h->a.c, room * d}, {&h->a.silu, room * d},
        {&h->fmod, room * 2 * d}, {&h->index, passes * B}, {&h->dom, B},        {&h->ex.scratch, scratch / 4 + 1},
    };
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < DFCL_COUNT(list) && !s; i++)
        s = dfcl_arena_alloc(&h->arena, list[i].count * 4, list[i].ref, err);
    for (int i = 0; i < dit->cfg.depth && !s; i++)
        s = dfcl_arena_alloc(&h->arena, room * 6 * d * 4, &h->mod[i], err);
    return s;
}

static dfcl_status make(struct dfcl_dit *dit, const struct dit_pass *ps, dfcl_error *err) {
    struct dit_ahead *h = &dit->ahead;
    dfcl_status s = dit_condition(dit, ps, &h->a, err);
    for (int i = 0; i < dit->cfg.depth && !s; i++)
        if (!(s = dit_modulation(ps, &dit->blocks[i].ada, h->a.silu, h->mod[i], err)) && !ps->ex->dry)
            s = dfcl_flush(dit->dev, err);
    return s ? s : dit_modulation(ps, &dit->final_ada, h->a.silu, h->fmod, err);
}

/* Places for `room` conditions in a dry arena; *bytes: what they take. */
static dfcl_status size(struct dfcl_dit *dit, uint64_t passes, uint64_t room, uint64_t *scratch, uint64_t *bytes,
                        dfcl_error *err) {
    struct dit_ahead *h = &dit->ahead;
    struct dfcl_exec ex = {.dev = dit->dev, .dry = true};
    struct dfcl_ref here = {&dfcl_dry_mem, 0};
    dfcl_arena_reset(&h->arena);
    dfcl_status s = place(dit, passes, room, 0, err);
    int step = (int)(room / 64) + 1; /* fewer rows may choose another variant */
    for (int B = (int)room; B >= 1 && !s; B -= step) {
        struct dit_pass ps = {.ex = &ex, .B = B, .M = B, .dom = dit->opt.domains > 1 ? here : DFCL_NO_REF};
        s = make(dit, &ps, err);
    }
    dfcl_arena_reset(&h->arena);
    if (!s)
        s = place(dit, passes, room, ex.scratch_need, err);
    *scratch = ex.scratch_need;
    *bytes = h->arena.total;
    return s;
}

dfcl_status dfcl_dit_reserve_ahead(struct dfcl_dit *dit, int passes, int conditions, dfcl_error *err) {
    struct dit_ahead *h = &dit->ahead;
    if (!dit->plan.max_batch || dit->plan.recompute)
        return dfcl_fail(err, DFCL_ERROR, "model: modulations ahead without a plan for inference");
    if (passes < 1 || conditions < 1 || conditions > dit->plan.max_batch)
        return dfcl_fail(err, DFCL_ERROR,
                         "model: modulations ahead of %d passes and %d conditions, planned for %d samples", passes,
                         conditions, dit->plan.max_batch);
    if (h->passes == passes && h->conditions == conditions)
        return DFCL_OK;
    dit_ahead_drop(dit);
    uint64_t limit = dit->max_memory ? dit->max_memory : dit->dev->info.memory, scratch, bytes;
    uint64_t left = limit ? DFCL_MAX(limit, dit->plan.total) - dit->plan.total : UINT64_MAX;
    /* one pass at least, then whole passes by what one more takes; sizes are rounded up in the arena, hence the loop */
    uint64_t each = (uint64_t)conditions * ((uint64_t)dit->cfg.depth * 6 + 6) * (uint64_t)dit->cfg.hidden * 4;
    uint64_t fit = DFCL_MIN(DFCL_MIN(left, (uint64_t)MOST) / each,
                            65535 / (uint64_t)conditions); /* rows of a table: groups of a launch */
    int n = (int)DFCL_MIN((uint64_t)passes, DFCL_MAX(fit, 1));
    dfcl_status s;
    for (;; n -= (n + 15) / 16) {
        s = size(dit, (uint64_t)passes, (uint64_t)n * (uint64_t)conditions, &scratch, &bytes, err);
        if (s || bytes <= left || n == 1)
            break;
    }
    if (!s && bytes > left)
        s = dfcl_fail(
            err, DFCL_NOMEM,
            "the plan needs %.1f MiB, there may be %.1f MiB: the modulations of one step do not fit; a smaller batch needs less",
            (double)(dit->plan.total + bytes) / 1048576.0, (double)limit / 1048576.0);
    if (!s)
        s = dfcl_arena_commit(&h->arena, err);
    if (!s)
        s = place(dit, (uint64_t)passes, (uint64_t)n * (uint64_t)conditions, scratch, err);
    if (s) {
        dit_ahead_drop(dit);
        return s;
    }
    h->ex.dev = dit->dev;
    h->passes = passes;
    h->conditions = conditions;
    h->room = n * conditions;
    dfcl_log(dit->ctx, DFCL_LOG_INFO,
             "memory plan: modulations ahead %.1f MiB (%d of %d steps at a time, %d distinct conditions each), total "
             "%.1f MiB",
             (double)bytes / 1048576.0, n, passes, conditions, (double)(dit->plan.total + bytes) / 1048576.0);
    return DFCL_OK;
}

/* Condition of each sample, and their number. O(B * count): both are small. */
static int distinct(int B, const int32_t *rows, const int32_t *dom, int32_t *of, int32_t *first) {
    int count = 0;
    for (int i = 0; i < B; i++) {
        int k = 0;
        while (k < count && (rows[first[k]] != rows[i] || (dom && dom[first[k]] != dom[i])))
            k++;
        if (k == count)
            first[count++] = i;
        of[i] = k;
    }
    return count;
}

dfcl_status dfcl_dit_ahead(struct dfcl_dit *dit, const float *t, int passes, int B, const int32_t *rows,
                           const int32_t *dom, int *done, dfcl_error *err) {
    struct dit_ahead *h = &dit->ahead;
    *done = h->done = 0;
    dfcl_status s = dit_check_batch(dit, B, rows, dom, err);
    if (s)
        return s;
    if (passes < 1)
        return dfcl_fail(err, DFCL_ERROR, "model: %d passes ahead", passes);
    int32_t *of = dfcl_calloc(dit->ctx, (size_t)B, 2 * sizeof *of, err), *list = NULL;
    if (!of)
        return DFCL_NOMEM;
    int32_t *first = of + B;
    int count = distinct(B, rows, dom, of, first), n = DFCL_MIN(DFCL_MIN(passes, h->passes), h->room / count);
    if (n < 1) {
        s = dfcl_fail(err, DFCL_ERROR, "model: %d conditions in a pass, reserved for %d", count, h->conditions);
        goto out;
    }
    size_t m = (size_t)n * (size_t)count;
    if (!(list = dfcl_calloc(dit->ctx, 3 * m + (size_t)n * (size_t)B, sizeof *list, err))) {
        s = DFCL_NOMEM;
        goto out;
    }
    float *lt = (float *)(void *)list;
    int32_t *lr = list + m, *ld = lr + m, *index = ld + m;
    h->mixed = false;
    for (int i = 0; dom && i < B; i++)
        h->mixed = h->mixed || dom[i];
    for (int p = 0; p < n; p++) {
        for (int k = 0; k < count; k++) {
            lt[p * count + k] = t[p];
            lr[p * count + k] = rows[first[k]];
            ld[p * count + k] = dom ? dom[first[k]] : 0;
        }
        for (int i = 0; i < B; i++)
            index[(size_t)p * (size_t)B + (size_t)i] = p * count + of[i];
    }
    if ((s = dfcl_write(dit->dev, h->a.t, lt, m * 4, err)) || (s = dfcl_write(dit->dev, h->a.rows, lr, m * 4, err)) ||
        (s = dfcl_write(dit->dev, h->index, index, (uint64_t)n * (uint64_t)B * 4, err)) ||
        (h->mixed && ((s = dfcl_write(dit->dev, h->a.dom, ld, m * 4, err)) ||
                      (s = dfcl_write(dit->dev, h->dom, dom, (uint64_t)B * 4, err)))))
        goto out;
    struct dit_pass ps = {.ex = &h->ex, .B = (int)m, .M = (int)m, .dom = h->mixed ? h->a.dom : DFCL_NO_REF};
    if (!(s = make(dit, &ps, err))) {
        h->B = B;
        *done = h->done = n;
    }
out:
    dfcl_free(dit->ctx, of);
    dfcl_free(dit->ctx, list);
    return s;
}

dfcl_status dfcl_dit_forward_ahead(struct dfcl_dit *dit, int pass, int B, struct dfcl_ref x, struct dfcl_ref out,
                                   dfcl_error *err) {
    const struct dit_ahead *h = &dit->ahead;
    if (pass < 0 || pass >= h->done || B < 1 || B > h->B)
        return dfcl_fail(err, DFCL_ERROR, "model: pass %d of %d made ahead, %d samples of %d", pass, h->done, B, h->B);
    dit->kept = false;
    struct dit_pass ps = {.ex = &dit->ex,
                          .B = B,
                          .M = B * dit->tokens,
                          .x = x,
                          .out = out,
                          .dom = h->mixed ? h->dom : DFCL_NO_REF,
                          .condition = dfcl_ref_at(h->index, (uint64_t)pass * (uint64_t)h->B * 4)};
    return dit_forward_layers(dit, &ps, err);
}
