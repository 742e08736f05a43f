#include "train/pass_size.h"

#include <errno.h>
#include <stdio.h>

struct search {
    const struct dfcl_pass_limits *lim;
    dfcl_pass_price price;
    void *user;
};

static dfcl_status need_of(const struct search *q, struct dfcl_pass_size size, uint64_t *need, dfcl_error *err) {
    dfcl_error why = {0};
    dfcl_status s = q->price(q->user, size, need, &why);
    /* The host running out says nothing about this size, and another one would give other sums. */
    bool large = s == DFCL_NOMEM && why.native != ENOMEM;
    if (large)
        *need = UINT64_MAX;
    return large || !s ? DFCL_OK : dfcl_fail_native(err, s, why.native, "%s", why.msg);
}

static bool fits(const struct search *q, uint64_t need) {
    return need != UINT64_MAX && (!q->lim->room || need <= q->lim->room);
}

/* Passes from `low` to `high` samples at the asked level, or at each from the lowest. found->micro stays 0 when none fits. */
static dfcl_status scan(const struct search *q, int low, int high, enum dfcl_recompute level, struct dfcl_pass_size *found,
                        dfcl_error *err) {
    int first = level ? (int)level : DFCL_RECOMPUTE_NONE, last = level ? (int)level : DFCL_RECOMPUTE_BLOCK;
    for (int l = first; l <= last; l++)
        for (int passes = 1; passes <= q->lim->batch; passes++) {
            struct dfcl_pass_size size = {.micro = q->lim->batch / passes, .recompute = (enum dfcl_recompute)l};
            uint64_t need;
            if (q->lim->batch % passes || size.micro < low || size.micro > high)
                continue;
            dfcl_status s = need_of(q, size, &need, err);
            if (s)
                return s;
            if (fits(q, need)) {
                *found = size;
                return DFCL_OK;
            }
        }
    return DFCL_OK;
}

static dfcl_status choose(const struct search *q, struct dfcl_pass_size asked, struct dfcl_pass_size *found, dfcl_error *err) {
    found->micro = 0;
    if (asked.micro)
        return scan(q, asked.micro, asked.micro, asked.recompute, found, err);
    int high = DFCL_MIN(q->lim->most, q->lim->batch);
    while (q->lim->batch % high)
        high--;
    int full = DFCL_MIN(q->lim->full, high);
    dfcl_status s = scan(q, full, high, asked.recompute, found, err);
    return s || found->micro ? s : scan(q, 1, full - 1, asked.recompute, found, err);
}

dfcl_status dfcl_pass_choose(const struct dfcl_pass_limits *lim, struct dfcl_pass_size asked, dfcl_pass_price price, void *user,
                             struct dfcl_pass_size *found, char *advice, size_t advice_size, dfcl_error *err) {
    const struct search q = {lim, price, user};
    const struct dfcl_pass_size least = {1, DFCL_RECOMPUTE_BLOCK};
    uint64_t need;
    *advice = 0;
    dfcl_status s = choose(&q, asked, found, err);
    if (s || found->micro)
        return s;
    struct dfcl_pass_size other = {0};
    if (asked.micro || asked.recompute)
        s = choose(&q, (struct dfcl_pass_size){0}, &other, err);
    if (s)
        return s;
    if (other.micro) {
        snprintf(advice, advice_size, "passes of %d with recompute %s would fit", other.micro, dfcl_recompute_name(other.recompute));
    } else {
        if ((s = need_of(&q, least, &need, err)))
            return s;
        if (need == UINT64_MAX)
            snprintf(advice, advice_size, "no setting fits this device");
        else
            snprintf(advice, advice_size, "no setting needs less than %.1f MiB", (double)need / 1048576.0);
    }
    found->micro = asked.micro ? asked.micro : 1;
    found->recompute = asked.recompute ? asked.recompute : DFCL_RECOMPUTE_BLOCK;
    return DFCL_OK;
}
