/* Reference tensors for the model tests: shared little helpers over the golden folder. */
#ifndef TEST_GOLDEN_H
#define TEST_GOLDEN_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/safetensors.h"
#include "models/dit.h"

static dfcl_context *ctx;
static dfcl_device *dev;

static inline void ok(dfcl_status s, const dfcl_error *err) {
    if (s)
        fail_msg("%s", err->msg);
}

static inline const char *golden_path(const char *name) {
    static char buf[8][512];
    static int next;
    char *p = buf[next++ % 8];
    snprintf(p, sizeof buf[0], "%s/%s", DFCL_GOLDEN, name);
    return p;
}

static inline struct dfcl_st *golden_open(const char *name) {
    dfcl_error err = {0};
    struct dfcl_st *st;
    ok(dfcl_st_open(&st, ctx, golden_path(name), &err), &err);
    return st;
}

/* A tensor as f32; NULL when absent. Freed with free(). */
static inline float *golden_get(struct dfcl_st *st, const char *name, size_t *count) {
    dfcl_error err = {0};
    const struct dfcl_tensor_view *v = dfcl_st_find(st, name);
    if (!v)
        return NULL;
    float *out = calloc(v->count ? v->count : 1, sizeof *out);
    assert_non_null(out);
    ok(dfcl_view_read_f32(v, st->path, 0, v->count, out, &err), &err);
    if (count)
        *count = (size_t)v->count;
    return out;
}
static inline float *golden_need(struct dfcl_st *st, const char *name, size_t *count) {
    float *p = golden_get(st, name, count);
    if (!p)
        fail_msg("%s: no tensor %s", st->path, name);
    return p;
}

/* Relative L2 over the tensor; a NaN counts as infinite. */
static inline double rel_l2(const float *got, const float *want, size_t n) {
    double num = 0, den = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        num += d * d;
        den += (double)want[i] * want[i];
    }
    double r = sqrt(num / (den > 0 ? den : 1e-60));
    return r == r ? r : INFINITY;
}

static inline void open_device(void) {
    dfcl_error err = {0};
    struct dfcl_context_params p = {0};
#ifdef DFCL_PROGRAM
    p.probe_program = DFCL_PROGRAM;
#endif
    const char *sel = getenv("DFCL_TEST_DEVICE"), *mask = getenv("DFCL_TEST_VARIANTS");
    ok(dfcl_context_create(&ctx, &p, &err), &err);
    dfcl_status s = dfcl_device_open(&dev, ctx, sel ? sel : "host", &err);
    if (s == DFCL_DEVICE) {
        printf("skipped: %s\n", err.msg);
        exit(77);
    }
    ok(s, &err);
    ok(dfcl_device_set_variants(dev, mask, &err), &err);
}

static inline void close_device(void) {
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
}

#endif
