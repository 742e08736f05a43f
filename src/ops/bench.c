/* Timings of every benchmark case of every op, through every variant that the device and its mask allow. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/case.h"

#include <difffit-cl/verify.h>

#define SECONDS_PER_CASE 0.3

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static bool named(const char *filter, const struct dfcl_op *op, const struct dfcl_variant *v) {
    char name[128];
    snprintf(name, sizeof name, "%s/%s", op->name, v->name);
    return !filter || !*filter || strstr(name, filter);
}

/* Cases are large: none is made for an op that the filter leaves out. */
static bool any_named(const char *filter, const struct dfcl_op *op) {
    for (int k = 0; k < op->variant_count; k++)
        if (named(filter, op, &op->variants[k]))
            return true;
    return false;
}

static bool wanted(const struct dfcl_device *dev, const char *filter, const struct dfcl_op *op, const struct dfcl_variant *v,
                   const void *params) {
    if (!named(filter, op, v))
        return false;
    if (!strcmp(v->name, "host"))
        return dfcl_supports_host(dev, params);
    return v->supports(dev, params) && dfcl_device_allows(dev, v->name);
}

static dfcl_status bench_variant(struct dfcl_device *dev, struct dfcl_case *c, const struct dfcl_variant *v, int repeat, double *seconds,
                                 struct dfcl_bench_result *r, dfcl_error *err) {
    memset(r, 0, sizeof *r);
    snprintf(r->op, sizeof r->op, "%s", c->op->name);
    snprintf(r->variant, sizeof r->variant, "%s", v->name);
    snprintf(r->label, sizeof r->label, "%s", c->label);
    r->bf16 = v->bf16;
    /* The host references are slow by intent: two launches say enough. */
    double length = strcmp(v->name, "host") ? SECONDS_PER_CASE : 0;
    dfcl_status s = dfcl_case_time(c, dev, v, repeat, length, seconds, err);
    if (s)
        return s;
    qsort(seconds, (size_t)repeat, sizeof *seconds, by_value);
    r->seconds_min = seconds[0];
    r->seconds_median = 0.5 * (seconds[(repeat - 1) / 2] + seconds[repeat / 2]);
    r->seconds_max = seconds[repeat - 1];
    return DFCL_OK;
}

dfcl_status dfcl_bench_ops(dfcl_device *dev, const char *filter, int repeat, void (*each)(void *user, const struct dfcl_bench_result *r),
                           void *user, dfcl_error *err) {
    repeat = DFCL_MAX(repeat, 1);
    double *seconds = dfcl_calloc(dev->ctx, (size_t)repeat, sizeof *seconds, err);
    if (!seconds)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    int count;
    const struct dfcl_op *const *ops = dfcl_ops(&count);
    for (int o = 0; o < count && !s; o++)
        for (int i = 0; i < ops[o]->bench_cases && !s && any_named(filter, ops[o]); i++) {
            struct dfcl_case c;
            s = dfcl_case_make(&c, ops[o], ops[o]->check_cases + i, 1, err);
            for (int k = 0; k < ops[o]->variant_count && !s; k++) {
                struct dfcl_bench_result r;
                if (!wanted(dev, filter, ops[o], &ops[o]->variants[k], c.params))
                    continue;
                s = bench_variant(dev, &c, &ops[o]->variants[k], repeat, seconds, &r, err);
                if (s)
                    break;
                r.flops = ops[o]->flops(c.params);
                r.bytes = ops[o]->bytes(c.params);
                each(user, &r);
            }
            dfcl_case_finish(&c);
        }
    dfcl_free(dev->ctx, seconds);
    return s;
}
