/* Every check case of every op, through every variant that the device and its mask allow, against the host reference. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/case.h"

#include <difffit-cl/verify.h>

struct checker {
    struct dfcl_device *dev, *host;
    const char *filter;
    double max_flops; /* 0: no limit */
    dfcl_line_fn line;
    void *user;
    int passed, failed;
};

static void say(const struct checker *k, const char *text) {
    if (k->line)
        k->line(k->user, text);
}

static bool wanted(const char *filter, const char *op, const char *variant) {
    char name[128];
    snprintf(name, sizeof name, "%s/%s", op, variant);
    return !filter || !*filter || strstr(name, filter);
}

/* Mirrors dfcl_op_choose, for each variant instead of the first. */
static bool runs(const struct checker *k, const struct dfcl_variant *v, const void *params) {
    if (!strcmp(v->name, "host"))
        return dfcl_supports_host(k->dev, params);
    return v->supports(k->dev, params) && dfcl_device_allows(k->dev, v->name);
}

/* One case through all its variants; worst[i] collects the largest error of variant i, ran[i] counts. */
static dfcl_status check_case(struct checker *k, const struct dfcl_op *op, int index, uint64_t seed, double *worst, int *ran,
                              dfcl_error *err) {
    struct dfcl_case c;
    dfcl_status s = dfcl_case_make(&c, op, index, seed, err);
    if (!s && k->max_flops > 0 && op->flops(c.params) > k->max_flops) {
        dfcl_case_finish(&c);
        return DFCL_OK;
    }
    bool any = false;
    for (int i = 0; i < op->variant_count && !s; i++) {
        const struct dfcl_variant *v = &op->variants[i];
        if (!runs(k, v, c.params))
            continue;
        any = true;
        if (!wanted(k->filter, op->name, v->name))
            continue;
        struct dfcl_case_result r;
        dfcl_error e = {0};
        char text[2048];
        s = dfcl_case_check(&c, k->dev, v, k->host, &r, &e);
        if (s) {
            /* A launch that fails is a failed case; a lost device or memory would fail all the others as well. */
            snprintf(text, sizeof text, "FAIL %s/%s case %d: %s; %s, seed %llu", op->name, v->name, index, e.msg, c.label,
                     (unsigned long long)c.seed);
            if (s != DFCL_NOMEM)
                s = DFCL_OK;
            else if (err)
                *err = e;
        } else if (!(r.worst <= 1)) {
            snprintf(text, sizeof text, "FAIL %s/%s case %d: %s", op->name, v->name, index, r.detail);
        } else {
            k->passed++;
            ran[i]++;
            worst[i] = DFCL_MAX(worst[i], r.worst);
            continue;
        }
        k->failed++;
        say(k, text);
    }
    /* A mask that names the wanted ones leaves gaps by intent; one that only forbids must leave something for every case. */
    if (!s && !any && wanted(k->filter, op->name, "") && dfcl_device_allows(k->dev, "?")) {
        char text[512];
        snprintf(text, sizeof text, "FAIL %s case %d: no variant fits; %s", op->name, index, c.label);
        k->failed++;
        say(k, text);
    }
    dfcl_case_finish(&c);
    return s;
}

static dfcl_status check_op(struct checker *k, const struct dfcl_op *op, int rounds, uint64_t seed, dfcl_error *err) {
    double worst[16] = {0};
    int ran[16] = {0};
    if (op->variant_count > (int)DFCL_COUNT(worst))
        return dfcl_fail(err, DFCL_ERROR, "%s: %d variants, room for %zu", op->name, op->variant_count, DFCL_COUNT(worst));
    dfcl_status s = DFCL_OK;
    for (int round = 0; round < rounds && !s; round++)
        for (int i = 0; i < op->check_cases && !s; i++)
            s = check_case(k, op, i, seed + (uint64_t)round * 1000003u + (uint64_t)i * 1009u, worst, ran, err);
    for (int i = 0; i < op->variant_count && !s; i++)
        if (ran[i]) {
            char text[256];
            snprintf(text, sizeof text, "ok   %s/%s: %d cases, largest error %.3f of the tolerance", op->name, op->variants[i].name, ran[i],
                     worst[i]);
            say(k, text);
        }
    return s;
}

dfcl_status dfcl_check_ops(dfcl_device *dev, const char *filter, int rounds, uint64_t seed, dfcl_line_fn line, void *user,
                           int *passed, int *failed, dfcl_error *err) {
    return dfcl_check_ops_small(dev, filter, rounds, seed, 0, line, user, passed, failed, err);
}

dfcl_status dfcl_check_ops_small(dfcl_device *dev, const char *filter, int rounds, uint64_t seed, double max_flops, dfcl_line_fn line,
                                 void *user, int *passed, int *failed, dfcl_error *err) {
    struct checker k = {.dev = dev, .filter = filter, .max_flops = max_flops, .line = line, .user = user};
    *passed = *failed = 0;
    dfcl_status s = dfcl_device_open(&k.host, dev->ctx, "host", err);
    int count;
    const struct dfcl_op *const *ops = dfcl_ops(&count);
    for (int i = 0; i < count && !s; i++)
        s = check_op(&k, ops[i], rounds, seed, err);
    *passed = k.passed;
    *failed = k.failed;
    dfcl_device_close(&k.host);
    return s;
}
