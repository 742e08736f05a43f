/* Backward ops against finite differences of the forward ops, both on the host backend (double inside, f32 at the edges). The linear and
 * attention ops have the same test in tests/unit.
 *
 * Loss = sum of weight * forward output. Inputs are multiples of 2^-12 and the step is 2^-6, so that the perturbed inputs are exact; the
 * fourth-order formula keeps the truncation far below the tolerance, the rest is the rounding of the outputs to f32. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "diffusion/schedule.h"
#include "ops/ops.h"

#define STEP 0.015625f
#define TOL 5e-4 /* of |gradient| + the tensor's largest */

static dfcl_context *ctx;
static dfcl_device *dev;

/* ---- tensors on the host backend, freed at the end of each test ---- */

static struct dfcl_mem *owned[64];
static int owned_count;

static struct dfcl_ref take(size_t n) {
    assert_true(owned_count < (int)DFCL_COUNT(owned));
    dfcl_error err = {0};
    if (dfcl_mem_create(dev, 4 * n, "test", &owned[owned_count], &err))
        fail_msg("%s", err.msg);
    return (struct dfcl_ref){owned[owned_count++], 0};
}
static float *at(struct dfcl_ref r) {
    return dfcl_host_ptr(dev, r);
}
static struct dfcl_ref normals(size_t n, double mean, double sd) {
    struct dfcl_ref r = take(n);
    float *p = at(r);
    dfcl_normals(17, DFCL_STREAM_TEST, (uint32_t)owned_count, 0, p, n);
    for (size_t i = 0; i < n; i++)
        p[i] = (float)(rint((mean + sd * p[i]) * 4096) / 4096);
    return r;
}
static struct dfcl_ref zeros(size_t n) {
    struct dfcl_ref r = take(n);
    memset(at(r), 0, 4 * n);
    return r;
}
static struct dfcl_ref ints(size_t n, const int32_t *values) {
    struct dfcl_ref r = take(n);
    memcpy(at(r), values, 4 * n);
    return r;
}

static int setup(void **state) {
    (void)state;
    return dfcl_context_create(&ctx, NULL, NULL) || dfcl_device_open(&dev, ctx, "host", NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return 0;
}
static int release(void **state) {
    (void)state;
    while (owned_count > 0)
        dfcl_mem_destroy(dev, &owned[--owned_count]);
    return 0;
}

static void run(const struct dfcl_op *op, void *params) {
    struct dfcl_exec ex = {.dev = dev};
    dfcl_error err = {0};
    if (dfcl_run(&ex, op, params, &err))
        fail_msg("%s", err.msg);
}

/* ---- the check ---- */

struct loss {
    const struct dfcl_op *op;
    void *params;
    struct dfcl_ref out, weight;
    size_t count;
};

static double loss_of(const struct loss *l) {
    run(l->op, l->params);
    const float *out = at(l->out), *w = at(l->weight);
    double sum = 0;
    for (size_t i = 0; i < l->count; i++)
        sum += (double)out[i] * w[i];
    return sum;
}

static double moved(const struct loss *l, float *x, float step) {
    float keep = *x;
    *x = keep + step;
    double v = loss_of(l);
    *x = keep;
    return v;
}

/* d loss / d x against grad, for every element when there are at most 64, else for 64 of them spread evenly. */
static void check(const struct loss *l, const char *name, struct dfcl_ref x, struct dfcl_ref grad, size_t n) {
    float *px = at(x);
    const float *g = at(grad);
    double top = 0;
    for (size_t i = 0; i < n; i++)
        top = DFCL_MAX(top, fabs((double)g[i]));
    assert_true(top > 0);
    size_t count = DFCL_MIN(n, 64);
    for (size_t k = 0; k < count; k++) {
        size_t i = k * n / count;
        double near = moved(l, px + i, STEP) - moved(l, px + i, -STEP), far = moved(l, px + i, 2 * STEP) - moved(l, px + i, -2 * STEP);
        double want = (8 * near - far) / (12 * (double)STEP);
    if (!(fabs(g[i] - want) <= TOL * (fabs(want) + top)))
            fail_msg("%s[%zu of %zu]: gradient %.8g, finite difference %.8g, largest %.3g", name, i, n, (double)g[i], want, top);
    }
}

/* ---- ops ---- */

static void ln_mod(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 7}, {2, 3, 12}, {3, 1, 33}}; /* B, T, N */
    for (size_t k = 0; k < DFCL_COUNT(shapes); k++) {
        int B = shapes[k][0], T = shapes[k][1], N = shapes[k][2], M = B * T;
        size_t MN = (size_t)(M * N), mod = (size_t)(B * 2 * N);
        struct dfcl_ln_mod f = {.M = M, .N = N, .T = T, .eps = 1e-6f, .mod_stride = 2 * N};
        f.x = normals(MN, 0.5, 1.5);
        f.shift = normals(mod, 0, 1);
        f.scale = dfcl_ref_at(f.shift, 4 * (uint64_t)N);
        f.y = take(MN);
        f.stats = take(2 * (size_t)M);
        struct dfcl_ln_mod_bwd b = {.M = M, .N = N, .T = T, .x = f.x, .stats = f.stats, .scale = f.scale};
        b.mod_stride = b.dmod_stride = 2 * N;
        b.dy = normals(MN, 0, 1);
        b.dx = take(MN);
        b.dshift = zeros(mod);
        b.dscale = dfcl_ref_at(b.dshift, 4 * (uint64_t)N);
        run(&dfcl_op_ln_mod, &f);
        run(&dfcl_op_ln_mod_bwd, &b);
        struct loss l = {&dfcl_op_ln_mod, &f, f.y, b.dy, MN};
        check(&l, "ln_mod dx", f.x, b.dx, MN);
        check(&l, "ln_mod dshift, dscale", f.shift, b.dshift, mod);
        release(NULL);
    }
}

static void activations(void **state) {
    (void)state;
    static const enum dfcl_act kinds[] = {DFCL_ACT_NONE, DFCL_ACT_GELU_TANH, DFCL_ACT_SILU};
    for (size_t k = 0; k < DFCL_COUNT(kinds); k++) {
        struct dfcl_act_fwd f = {.n = 60, .act = kinds[k], .x = normals(60, 0, 2), .y = take(60)};
        struct dfcl_act_bwd b = {.n = 60, .act = kinds[k], .x = f.x, .dy = normals(60, 0, 1), .dx = take(60)};
        run(&dfcl_op_act_bwd, &b);
        struct loss l = {&dfcl_op_act_fwd, &f, f.y, b.dy, 60};
        check(&l, "act dx", f.x, b.dx, 60);
        release(NULL);
    }
}

/* The bias enters through v = W x + bias: its gradient is that of adding a constant to a column of v. */
static void check_bias(const struct loss *l, struct dfcl_ref v, struct dfcl_ref dbias, int M, int N) {
    float *p = at(v);
    const float *g = at(dbias);
    for (int n = 0; n < N; n++) {
        double value[2];
        for (int sign = 0; sign < 2; sign++) {
            for (int m = 0; m < M; m++)
                p[m * N + n] += sign ? -2 * STEP : STEP;
            value[sign] = loss_of(l);
        }
        for (int m = 0; m < M; m++)
            p[m * N + n] += STEP;
        double want = (value[0] - value[1]) / (2 * (double)STEP); /* linear: no higher orders */
        if (!(fabs(g[n] - want) <= TOL * (fabs(want) + 1)))
            fail_msg("branch dbias[%d]: gradient %.8g, finite difference %.8g", n, (double)g[n], want);
    }
}

static void branch(void **state) {
    (void)state;
    for (int with = 0; with < 8; with++) { /* bits: gate, gamma_in, gamma_out */
        enum { B = 3, T = 5, N = 11, M = B * T, MN = M * N };
        struct dfcl_gated_residual f = {.M = M, .N = N, .T = T, .gate_stride = N + 2};
        f.res = normals(MN, 0, 1);
        f.v = normals(MN, 0, 1);
        f.out = take(MN);
        struct dfcl_branch_bwd b = {.M = M, .N = N, .T = T, .v = f.v, .gate_stride = N + 2, .dgate_stride = N + 2};
        b.dz = normals(MN, 0, 1);
        b.dv = take(MN);
        b.dbias = zeros(N);
        if (with & 1) {
            f.gate = b.gate = normals(B * (N + 2), 0, 1);
            b.dgate = zeros(B * (N + 2));
        }
        if (with & 2) {
            f.gamma_in.ref = b.gamma_in = normals(N, 1, 0.5);
            b.dgamma_in = zeros(N);
        }
        if (with & 4) {
            f.gamma_out.ref = b.gamma_out = normals(N, 1, 0.5);
            b.dgamma_out = zeros(N);
        }
        run(&dfcl_op_branch_bwd, &b);
        struct loss l = {&dfcl_op_gated_residual, &f, f.out, b.dz, MN};
        check(&l, "branch dv", f.v, b.dv, MN);
        check_bias(&l, f.v, b.dbias, M, N);
        if (with & 1)
            check(&l, "branch dgate", f.gate, b.dgate, B * (N + 2));
        if (with & 2)
            check(&l, "branch dgamma_in", b.gamma_in, b.dgamma_in, N);
        if (with & 4)
            check(&l, "branch dgamma_out", b.gamma_out, b.dgamma_out, N);
        release(NULL);
    }
}

static void class_embed(void **state) {
    (void)state;
    enum { B = 5, D = 6, ROWS = 4 };
    static const int32_t row[B] = {2, 0, 2, 3, 2}; /* row 1 gets nothing, row 2 three times */
    struct dfcl_class_embed f = {.B = B, .d = D, .rows = ROWS};
    f.temb = normals(B * D, 0, 1);
    f.table = normals(ROWS * D, 0, 1);
    f.row = ints(B, row);
    f.c = take(B * D);
    struct dfcl_class_embed_bwd b = {.B = B, .d = D, .rows = ROWS, .dc = normals(B * D, 0, 1), .row = f.row, .dtable = zeros(ROWS * D)};
    run(&dfcl_op_class_embed_bwd, &b);
    struct loss l = {&dfcl_op_class_embed, &f, f.c, b.dc, B * D};
    check(&l, "class_embed dtable", f.table, b.dtable, ROWS * D);
}

/* dout = grad_scale d(mse + vb)/d out, with eps held in vb: so the eps half belongs to mse alone, and the v half to vb alone. */
static void hybrid_loss(void **state) {
    (void)state;
    enum { B = 4, N = 12 };
    static const int32_t t[B] = {0, 1, 4, 37}; /* later the range of variances is too narrow for differences to see */
    struct dfcl_schedule sched;
    assert_int_equal(dfcl_schedule_train(&sched, ctx, NULL), DFCL_OK);
    struct dfcl_hybrid_loss f = {.B = B, .n = N, .grad_scale = 0.5f};
    f.tab = take((size_t)sched.steps * DFCL_TAB_COUNT);
    dfcl_schedule_table(&sched, at(f.tab));
    dfcl_schedule_finish(&sched);
    f.x0 = normals(B * N, 0, 0.4);
    f.noise = normals(B * N, 0, 1);
    f.t = ints(B, t);
    f.xt = take(B * N);
    struct dfcl_q_sample q = {.B = B, .n = N, .x0 = f.x0, .noise = f.noise, .t = f.t, .tab = f.tab, .xt = f.xt};
    run(&dfcl_op_q_sample, &q);
    f.out = normals(2 * B * N, 0, 0.3);
    for (int s = 0; s < B; s++) /* a prediction near the noise, with a range anywhere in about [-1, 1] */
        for (int i = 0; i < N; i++)
            at(f.out)[2 * s * N + i] += at(f.noise)[s * N + i];
    f.mse = take(B);
    f.vb = take(B);
    f.dout = take(2 * B * N);
    for (int s = 0; s < B; s++)
        for (int half = 0; half < 2; half++) {
            struct dfcl_ref weight = zeros(B), copy = take(N), x = dfcl_ref_at(f.out, 4 * (uint64_t)(2 * s * N + half * N));
            at(weight)[s] = f.grad_scale;
            run(&dfcl_op_hybrid_loss, &f); /* dout still belongs to the last perturbed input */
            memcpy(at(copy), at(f.dout) + 2 * s * N + half * N, 4 * N);
            struct loss l = {&dfcl_op_hybrid_loss, &f, half ? f.vb : f.mse, weight, B};
            char name[64];
            snprintf(name, sizeof name, "hybrid_loss t=%d %s", t[s], half ? "v" : "eps");
            check(&l, name, x, copy, N);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(ln_mod, release),      cmocka_unit_test_teardown(activations, release),
        cmocka_unit_test_teardown(branch, release),      cmocka_unit_test_teardown(class_embed, release),
        cmocka_unit_test_teardown(hybrid_loss, release),
    };
    return cmocka_run_group_tests_name("finite_diff", tests, setup, teardown);
}
