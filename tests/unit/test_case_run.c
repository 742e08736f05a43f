/* The harness that checks ops must itself fail when it should: an op y = 2 x whose variant misbehaves in one way at a time. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "ops/case.h"

enum fault {
    NONE, SMALL_ERROR, WRONG_VALUE, WRITES_BEHIND, WRITES_BEFORE, LEAVES_ONE, WRITES_GAP, CHANGES_INPUT, GIVES_NAN, GIVES_INF, DIFFERS,
    SCRATCH_BEHIND, USES_OLD_SCRATCH, IGNORES_OFFSET, LAUNCH_FAILS,
};
enum { N = 37, GAP = 20 /* the reference leaves this output alone */ };

struct twice {
    struct dfcl_op_head head;
    struct dfcl_ref x, y, z; /* z: in and out, z += 1 */
};

static enum fault fault;
static int calls;
static dfcl_context *ctx;
static dfcl_device *host;

static dfcl_status reference(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    (void)err;
    const struct twice *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *y = dfcl_host_ptr(dev, p->y), *z = dfcl_host_ptr(dev, p->z);
    for (int i = 0; i < N; i++) {
        if (i != GAP)
            y[i] = 2 * x[i];
        z[i] += 1;
    }
    return DFCL_OK;
}

static dfcl_status variant(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct twice *p = params;
    struct twice q = *p;
    if (fault == IGNORES_OFFSET)
        q.x.off = 512;
    if (fault == LAUNCH_FAILS)
        return dfcl_fail(err, DFCL_DEVICE, "no");
    float *x = dfcl_host_ptr(dev, p->x), *y = dfcl_host_ptr(dev, p->y), *scratch = dfcl_host_ptr(dev, p->head.scratch);
    float last = scratch[3];
    reference(dev, &q, err);
    calls++;
    switch (fault) {
    case SMALL_ERROR: y[5] += 1e-6f * fabsf(y[5]); break;
    case WRONG_VALUE: y[5] += 0.001f; break;
    case WRITES_BEHIND: y[N] = 0; break;
    case WRITES_BEFORE: y[-1] = 0; break;
    case LEAVES_ONE: memset(&y[N - 1], 0xFF, 4); break;
    case WRITES_GAP: y[GAP] = 1; break;
    case CHANGES_INPUT: x[7] += 1; break;
    case GIVES_NAN: y[0] = NAN; break;
    case GIVES_INF: y[0] = INFINITY; break;
    case DIFFERS: y[3] += (float)calls * 2e-7f * fabsf(y[3]); break;
    case SCRATCH_BEHIND: scratch[4] = 0; break;
    case USES_OLD_SCRATCH: y[2] = last > 0 ? y[2] : nextafterf(y[2], 9); break;
    default: break;
    }
    return DFCL_OK;
}

static bool supports(const struct dfcl_device *dev, const void *params) {
    (void)dev;
    (void)params;
    return true;
}
static uint64_t scratch_bytes(const struct dfcl_device *dev, const void *params) {
    (void)dev;
    (void)params;
    return 16;
}
static void make_case(struct dfcl_case *c, int index) {
    struct twice *p = (struct twice *)c->params;
    snprintf(c->label, sizeof c->label, "N=%d case %d", N, index);
    dfcl_case_add(c, "x", &p->x, DFCL_F32, N, DFCL_IN);
    dfcl_case_add(c, "y", &p->y, DFCL_F32, N, DFCL_OUT);
    dfcl_case_add(c, "z", &p->z, DFCL_F32, N, DFCL_INOUT)->tol = 0;
}

static const struct dfcl_variant variants[] = {
    {.name = "portable", .supports = supports, .scratch = scratch_bytes, .launch = variant},
    {.name = "host", .supports = supports, .launch = reference},
};
static const struct dfcl_op op = {
    .name = "twice", .params_size = sizeof(struct twice), .variants = variants, .variant_count = 2, .check_cases = 1, .make_case = make_case,
};

static struct dfcl_case_result checked(enum fault f, uint64_t seed, dfcl_status *status) {
    struct dfcl_case c;
    struct dfcl_case_result r;
    dfcl_error err = {0};
    fault = f;
    assert_int_equal(dfcl_case_make(&c, &op, 0, seed, &err), DFCL_OK);
    *status = dfcl_case_check(&c, host, &variants[0], host, &r, &err);
    dfcl_case_finish(&c);
    return r;
}

static void passes(void **state) {
    (void)state;
    dfcl_status s;
    for (uint64_t seed = 1; seed < 6; seed++) {
        struct dfcl_case_result r = checked(NONE, seed, &s);
        assert_int_equal(s, DFCL_OK);
        if (r.worst != 0)
            fail_msg("%s", r.detail);
        r = checked(SMALL_ERROR, seed, &s);
        assert_true(s == DFCL_OK && r.worst > 0 && r.worst <= 1);
    }
}

static void fails(void **state) {
    (void)state;
    static const struct {
        enum fault fault;
        const char *text; /* in the detail */
    } faults[] = {
        {WRONG_VALUE, "y[5 of 37]"}, {WRITES_BEHIND, "y: byte 148"}, {WRITES_BEFORE, "y: byte -4"},     {LEAVES_ONE, "y[36 of 37]"},
        {WRITES_GAP, "y[20 of 37]"}, {CHANGES_INPUT, "x: input"},    {GIVES_NAN, "y[0 of 37]: got nan"}, {GIVES_INF, "got inf"},
        {DIFFERS, "y[3]: two runs"}, {SCRATCH_BEHIND, "scratch: "},  {USES_OLD_SCRATCH, "y[2]: two runs"},
    };
    for (size_t i = 0; i < DFCL_COUNT(faults); i++) {
        dfcl_status s;
        struct dfcl_case_result r = checked(faults[i].fault, 3, &s);
        assert_int_equal(s, DFCL_OK);
        if (r.worst <= 1 || !strstr(r.detail, faults[i].text) || !strstr(r.detail, "seed 3") || !strstr(r.detail, "N=37"))
            fail_msg("fault %d: worst %g, detail \"%s\", wanted \"%s\"", (int)faults[i].fault, r.worst, r.detail, faults[i].text);
    }
    dfcl_status s;
    checked(LAUNCH_FAILS, 3, &s);
    assert_int_equal(s, DFCL_DEVICE);
}

/* Some seeds leave x aligned at the start of its place; most must not. */
static void offsets_vary(void **state) {
    (void)state;
    int caught = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        dfcl_status s;
        caught += checked(IGNORES_OFFSET, seed, &s).worst > 1;
    }
    assert_true(caught >= 10);
}

static int setup(void **state) {
    (void)state;
    return dfcl_context_create(&ctx, NULL, NULL) || dfcl_device_open(&host, ctx, "host", NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_device_close(&host);
    dfcl_context_destroy(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(passes), cmocka_unit_test(fails), cmocka_unit_test(offsets_vary)};
    return cmocka_run_group_tests_name("case_run", tests, setup, teardown);
}
