/* The references of the linear layer against each other: backward ops are the derivative of forward, packing is a
 * change of layout. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/philox.h"
#include "ops/linear_common.h"

enum { M = 22, N = 53, K = 19, T = 4, DOMAINS = 3, SAMPLES = 6 };

struct fixture {
    dfcl_context *ctx;
    struct dfcl_device *dev;
    struct dfcl_mem *mem[32];
    int count;
};

static struct dfcl_ref tensor(struct fixture *f, uint32_t id, size_t count, double sd) {
    dfcl_error err;
    struct dfcl_mem **m = &f->mem[f->count++];
    assert_int_equal(dfcl_mem_create(f->dev, count * 4, "test", m, &err), DFCL_OK);
    float *p = (*m)->host;
    dfcl_normals(7, DFCL_STREAM_TEST, 0, id, p, count);
    for (size_t i = 0; i < count; i++)
        p[i] *= (float)sd;
    return (struct dfcl_ref){*m, 0};
}
static float *at(struct dfcl_ref r) {
    return r.mem->host;
}
static void run(struct fixture *f, const struct dfcl_op *op, void *params) {
    struct dfcl_exec ex = {.dev = f->dev};
    dfcl_error err = {0};
    if (dfcl_run(&ex, op, params, &err))
        fail_msg("%s", err.msg);
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    dfcl_error err;
    struct dfcl_context_params cp = {0};
    if (!f || dfcl_context_create(&f->ctx, &cp, &err) || dfcl_device_open(&f->dev, f->ctx, "host", &err))
        return 1;
    *state = f;
    return 0;
}
static int teardown(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < f->count; i++)
        dfcl_mem_destroy(f->dev, &f->mem[i]);
    dfcl_device_close(&f->dev);
    dfcl_context_destroy(&f->ctx);
    free(f);
    return 0;
}

static double weighted(const float *y, const float *weight, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)y[i] * weight[i];
    return s;
}

/* z = W act(x): d(weight . z)/dx and /dW by central differences, every element of a sample of them. */
static void gradients_are_derivatives(void **state) {
    struct fixture *f = *state;
    for (int act = DFCL_ACT_NONE; act <= DFCL_ACT_SILU; act++) {
        f->count = 0;
        struct dfcl_ref pre = tensor(f, 1, M * K, 1.0), h = tensor(f, 2, M * K, 1.0), w = tensor(f, 3, N * K, 0.3);
        struct dfcl_ref dz = tensor(f, 4, M * N, 1.0), z = tensor(f, 5, M * N, 1.0), dx = tensor(f, 6, M * K, 1.0),
                        dw = tensor(f, 7, N * K, 1.0);
        struct dfcl_ref dx0 = tensor(f, 6, M * K, 1.0), dw0 = tensor(f, 7, N * K, 1.0);
        struct dfcl_linear_fwd fwd = {.M = M, .K = K, .T = T, .x = h, .w = {.N = N, .K = K, .data = w}, .y = z};
        for (int i = 0; i < M * K; i++)
            at(h)[i] = (float)dfcl_act_ref((enum dfcl_act)act, at(pre)[i]);
        struct dfcl_linear_dx bx = {
            .M = M, .dy = dz, .w = fwd.w, .act = (enum dfcl_act)act, .pre = pre, .dx = dx, .accumulate = true};
        struct dfcl_linear_dw bw = {.M = M, .N = N, .K = K, .dy = dz, .x = h, .dw = dw};
        run(f, &dfcl_op_linear_dx, &bx);
        run(f, &dfcl_op_linear_dw, &bw);
        const float e = 1.0f / 64;
        for (int i = 0; i < M * K; i += 37) {
            float keep = at(h)[i];
            double loss[2];
            for (int side = 0; side < 2; side++) {
                at(h)[i] = (float)dfcl_act_ref((enum dfcl_act)act, (double)at(pre)[i] + (side ? e : -e));
                run(f, &dfcl_op_linear_fwd, &fwd);
                loss[side] = weighted(at(z), at(dz), M * N);
            }
            at(h)[i] = keep;
            assert_true(fabs((loss[1] - loss[0]) / (2.0 * e) - (at(dx)[i] - at(dx0)[i])) < 3e-3);
        }
        for (int i = 0; i < N * K; i += 41) {
            float keep = at(w)[i];
            double loss[2];
            for (int side = 0; side < 2; side++) {
                at(w)[i] = keep + (side ? 0.5f : -0.5f);
                run(f, &dfcl_op_linear_fwd, &fwd);
                loss[side] = weighted(at(z), at(dz), M * N);
            }
            at(w)[i] = keep;
            assert_true(fabs((loss[1] - loss[0]) - (at(dw)[i] - at(dw0)[i])) < 1e-4);
        }
        for (int i = 0; i < f->count; i++)
            dfcl_mem_destroy(f->dev, &f->mem[i]);
    }
    f->count = 0;
}

/* The fused epilogue against the plain product followed by the formula of ops.h, sample by sample. */
static void epilogue_is_the_formula(void **state) {
    struct fixture *f = *state;
    struct dfcl_ref x = tensor(f, 1, M * K, 1.0), w = tensor(f, 2, N * K, 0.3), plain = tensor(f, 3, M * N, 1.0);
    struct dfcl_ref bias = tensor(f, 4, DOMAINS * N, 1.0), g1 = tensor(f, 5, DOMAINS * N, 1.0),
                    g2 = tensor(f, 6, DOMAINS * N, 1.0);
    struct dfcl_ref gate = tensor(f, 7, SAMPLES * 2 * N, 1.0), res = tensor(f, 8, T * N, 1.0),
                    dom = tensor(f, 9, SAMPLES, 1.0);
    struct dfcl_ref pre = tensor(f, 10, M * N, 1.0), y = tensor(f, 11, M * N, 1.0), out = tensor(f, 12, M * N, 1.0);
    const int32_t domains[SAMPLES] = {2, 0, 1, 2, 2, 0};
    memcpy(at(dom), domains, sizeof domains);
    struct dfcl_linear_fwd p = {.M = M, .K = K, .T = T, .x = x, .w = {.N = N, .K = K, .data = w}, .pre = plain};
    run(f, &dfcl_op_linear_fwd, &p);
    p.bias = (struct dfcl_vec){bias, N};
    p.gamma = (struct dfcl_vec){g1, N};
    p.gamma_res = (struct dfcl_vec){g2, N};
    p.dom = dom;
    p.act = DFCL_ACT_SILU;
    p.pre = pre;
    p.y = y;
    p.res = res;
    p.res_rows = T;
    p.gate = dfcl_ref_at(gate, N * 4);
    p.gate_stride = 2 * N;
    p.out = out;
    run(f, &dfcl_op_linear_fwd, &p);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            int s = m / T, d = domains[s] * N + n, i = m * N + n;
            double u = (double)at(plain)[i] + at(bias)[d], v = u / (1.0 + exp(-u)) * at(g1)[d];
            assert_true(fabs(at(pre)[i] - u) < 1e-5);
            assert_true(fabs(at(y)[i] - v) < 1e-5);
            assert_true(fabs(at(out)[i] -
                             (at(res)[m % T * N + n] + (double)at(gate)[(2 * s + 1) * N + n] * at(g2)[d] * v)) < 1e-4);
        }
}

static void packing_changes_the_layout_only(void **state) {
    struct fixture *f = *state;
    struct dfcl_ref x = tensor(f, 1, M * K, 1.0), y1 = tensor(f, 3, M * N, 1.0), y2 = tensor(f, 4, M * N, 1.0);
    struct dfcl_weight w = {.N = N, .K = K, .data = tensor(f, 2, N * K, 1.0), .layout = DFCL_PANEL48};
    w.packed = tensor(f, 5, dfcl_panel_count(N, K), 1.0);
    struct dfcl_pack p = {.w = w};
    run(f, &dfcl_op_pack, &p);
    assert_true(at(w.packed)[(1 * K + 3) * 48 + 2] == at(w.data)[(48 + 2) * K + 3]);
    for (int k = 0; k < K; k++)
        for (int n = N; n < 96; n++)
            assert_true(at(w.packed)[(K + k) * 48 + n - 48] == 0.0f);
    struct dfcl_linear_fwd fwd = {.M = M, .K = K, .T = T, .x = x, .w = w, .y = y1};
    run(f, &dfcl_op_linear_fwd, &fwd);
    fwd.w.data = DFCL_NO_REF;
    fwd.y = y2;
    run(f, &dfcl_op_linear_fwd, &fwd);
    assert_memory_equal(at(y1), at(y2), M * N * 4);
}

static void colsum_adds_rows(void **state) {
    struct fixture *f = *state;
    struct dfcl_ref x = tensor(f, 1, M * N, 1.0), out = tensor(f, 2, N, 1.0), before = tensor(f, 2, N, 1.0);
    struct dfcl_colsum p = {.M = M, .N = N, .x = x, .out = out};
    run(f, &dfcl_op_colsum, &p);
    for (int n = 0; n < N; n++) {
        double s = at(before)[n];
        for (int m = 0; m < M; m++)
            s += at(x)[m * N + n];
        assert_true(fabs(at(out)[n] - s) < 1e-5);
    }
}

static void wrong_parameters_are_refused(void **state) {
    struct fixture *f = *state;
    struct dfcl_exec ex = {.dev = f->dev};
    dfcl_error err;
    struct dfcl_ref x = tensor(f, 1, M * K, 1.0), w = tensor(f, 2, N * K, 1.0), y = tensor(f, 3, M * N, 1.0);
    struct dfcl_linear_fwd p = {.M = M, .K = K + 1, .T = T, .x = x, .w = {.N = N, .K = K, .data = w}, .y = y};
    assert_int_equal(dfcl_run(&ex, &dfcl_op_linear_fwd, &p, &err), DFCL_ERROR);
    p.K = K;
    p.w.dtype = DFCL_I32;
    assert_int_equal(dfcl_run(&ex, &dfcl_op_linear_fwd, &p, &err), DFCL_ERROR);
    assert_non_null(strstr(err.msg, "I32"));
    p.w.dtype = DFCL_F32;
    p.y = DFCL_NO_REF;
    assert_int_equal(dfcl_run(&ex, &dfcl_op_linear_fwd, &p, &err), DFCL_ERROR);
    struct dfcl_linear_dx bx = {.M = M, .dy = y, .w = p.w, .act = DFCL_ACT_SILU, .dx = x};
    assert_int_equal(dfcl_run(&ex, &dfcl_op_linear_dx, &bx, &err), DFCL_ERROR);
    assert_non_null(strstr(err.msg, "pre"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(gradients_are_derivatives, setup, teardown),
        cmocka_unit_test_setup_teardown(epilogue_is_the_formula, setup, teardown),
        cmocka_unit_test_setup_teardown(packing_changes_the_layout_only, setup, teardown),
        cmocka_unit_test_setup_teardown(colsum_adds_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_parameters_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
