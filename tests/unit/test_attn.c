/* Attention on the host backend: known answers, and the backward op against finite differences of the forward one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "ops/attn.h"

static dfcl_context *ctx;
static struct dfcl_device *dev;

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

static float *floats(struct dfcl_ref *r, size_t n, struct dfcl_mem **mem) {
    assert_int_equal(dfcl_mem_create(dev, n * sizeof(float), "test", mem, NULL), DFCL_OK);
    *r = (struct dfcl_ref){*mem, 0};
    return dfcl_host_ptr(dev, *r);
}

/* One token attends to itself alone; equal keys average the values. */
static void known(void **state) {
    (void)state;
    enum { T = 5, D = 3 };
    struct dfcl_exec ex = {.dev = dev};
    struct dfcl_mem *m[3];
    struct dfcl_attn_fwd p = {.B = 1, .T = T, .H = 1, .D = D, .scale = 0.5f};
    float *x = floats(&p.qkv, T * 3 * D, &m[0]), *o = floats(&p.out, T * D, &m[1]), *l = floats(&p.lse, T, &m[2]);
    for (int i = 0; i < T; i++)
        for (int d = 0; d < D; d++) {
            x[i * 3 * D + d] = (float)(i + d);
            x[i * 3 * D + D + d] = 2.0f;
            x[i * 3 * D + 2 * D + d] = (float)(i * i - d);
        }
    assert_int_equal(dfcl_run(&ex, &dfcl_op_attn_fwd, &p, NULL), DFCL_OK);
    for (int i = 0; i < T; i++) {
        for (int d = 0; d < D; d++)
            assert_float_equal(o[i * D + d], 6.0f - (float)d, 1e-6f);
        assert_float_equal(l[i], 0.5f * 2.0f * (float)(3 * i + 3) + logf(T), 1e-5f);
    }
    p.T = 1;
    assert_int_equal(dfcl_run(&ex, &dfcl_op_attn_fwd, &p, NULL), DFCL_OK);
    for (int d = 0; d < D; d++)
        assert_float_equal(o[d], (float)-d, 0.0f);
    for (int i = 0; i < 3; i++)
        dfcl_mem_destroy(dev, &m[i]);
}

static void bad_shapes(void **state) {
    (void)state;
    dfcl_error e = {0};
    assert_int_equal(dfcl_attn_shape(1, 1, 1, 257, &e), DFCL_ERROR);
    assert_non_null(strstr(e.msg, "D=257"));
    assert_int_equal(dfcl_attn_shape(1, 0, 1, 8, &e), DFCL_ERROR);
    assert_int_equal(dfcl_attn_shape(1 << 20, 1 << 12, 1, 8, &e), DFCL_ERROR);
    assert_int_equal(dfcl_attn_shape(1, 1, 1 << 28, 256, &e), DFCL_ERROR);
    assert_int_equal(dfcl_attn_shape(2, 300, 16, 256, &e), DFCL_OK);
}

/* loss = sum(w * out) along random directions in qkv: (loss(x + h u) - loss(x - h u)) / 2h against <dqkv, u>. out is f32, so h is large and
 * the fourth-order difference formula keeps the truncation small. */
static void finite_differences(void **state) {
    (void)state;
    static const int shape[][4] = {{2, 5, 3, 4}, {1, 17, 2, 9}, {1, 1, 1, 7}, {2, 33, 1, 16}};
    struct dfcl_exec ex = {.dev = dev};
    for (size_t s = 0; s < DFCL_COUNT(shape); s++) {
        const int B = shape[s][0], T = shape[s][1], H = shape[s][2], D = shape[s][3];
        const size_t n = (size_t)(B * T * H * D);
        struct dfcl_mem *m[6];
        struct dfcl_attn_bwd p = {.B = B, .T = T, .H = H, .D = D, .scale = 1.0f / sqrtf((float)D)};
        float *x = floats(&p.qkv, 3 * n, &m[0]), *o = floats(&p.out, n, &m[1]);
        floats(&p.lse, (size_t)(B * H * T), &m[2]);
        float *w = floats(&p.dout, n, &m[3]), *g = floats(&p.dqkv, 3 * n, &m[4]);
        struct dfcl_attn_fwd f = {.B = B, .T = T, .H = H, .D = D, .scale = p.scale, .qkv = p.qkv, .out = p.out, .lse = p.lse};
        float *x0 = calloc(3 * n, sizeof *x0), *u = calloc(3 * n, sizeof *u);
        assert_non_null(x0);
        assert_non_null(u);
        dfcl_normals(7, DFCL_STREAM_TEST, 0, (uint32_t)s, x0, 3 * n);
        dfcl_normals(7, DFCL_STREAM_TEST, 1, (uint32_t)s, w, n);
        memcpy(x, x0, 3 * n * sizeof *x);
        assert_int_equal(dfcl_run(&ex, &dfcl_op_attn_fwd, &f, NULL), DFCL_OK);
        assert_int_equal(dfcl_run(&ex, &dfcl_op_attn_bwd, &p, NULL), DFCL_OK);
        for (int part = 0; part < 6; part++) { /* q, k, v: all of it, then single entries */
            memset(u, 0, 3 * n * sizeof *u);
            const size_t row = (size_t)(3 * H * D), off = (size_t)(part % 3 * H * D);
            if (part < 3)
                for (size_t r = 0; r < (size_t)(B * T); r++)
                    dfcl_normals(9, DFCL_STREAM_TEST, (uint32_t)r, (uint32_t)part, u + r * row + off, (size_t)(H * D));
            else
                u[(size_t)(B * T - 1) * row + off + (size_t)(H * D) / 2] = 1.0f;
            static const double step[4] = {1, -1, 2, -2}, weight[4] = {8, -8, -1, 1};
            const double h = part < 3 ? 0.02 : 0.1;
            double slope = 0, want = 0, norm = 0;
            for (int k = 0; k < 4; k++) {
                double loss = 0;
                for (size_t i = 0; i < 3 * n; i++)
                    x[i] = (float)(x0[i] + step[k] * h * u[i]);
                assert_int_equal(dfcl_run(&ex, &dfcl_op_attn_fwd, &f, NULL), DFCL_OK);
                for (size_t i = 0; i < n; i++)
                    loss += (double)w[i] * o[i];
                slope += weight[k] * loss / (12 * h);
            }
            for (size_t i = 0; i < 3 * n; i++) {
                want += (double)g[i] * u[i];
                norm += (double)g[i] * u[i] * g[i] * u[i];
            }
            if (T == 1 && part % 3 < 2) {
                assert_float_equal((float)want, 0.0f, 1e-6f); /* one key: nothing depends on q and k */
                assert_float_equal((float)slope, 0.0f, 1e-6f);
            } else if (fabs(slope - want) > 2e-4 * (sqrt(norm) + fabs(want))) {
                fail_msg("B=%d T=%d H=%d D=%d part %d: slope %.9g, gradient %.9g", B, T, H, D, part, slope, want);
            }
        }
        free(x0);
        free(u);
        for (int i = 0; i < 5; i++)
            dfcl_mem_destroy(dev, &m[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known),
        cmocka_unit_test(bad_shapes),
        cmocka_unit_test(finite_differences),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
