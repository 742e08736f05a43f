/* models/latent_rgb: the least-squares fit of colours over latents finds the map that made them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "models/latent_rgb.h"

enum { C = 4, N = 256, PICTURES = 12, SUMS = 15 + 15 + 3 };

static const double weight[3][C] = {{0.3, -0.2, 0.05, 0.7}, {-0.4, 0.1, 0.25, 0.0}, {0.02, 0.6, -0.3, 0.11}}, bias[3] = {-0.1, 0.35, 0.05};

/* Latents that differ in size and mean and go together in part, and their colours through the map, with noise of size `rough`. */
static void make(uint32_t picture, float rough, float *z, float *rgb) {
    float noise[3 * N];
    dfcl_normals(7, 0, 0, picture, z, C * N);
    dfcl_normals(7, 0, 1, picture, noise, 3 * N);
    for (int p = 0; p < N; p++) {
        z[N + p] = 3.0f * z[N + p] + 5.0f;
        z[2 * N + p] = 0.9f * z[p] + 0.1f * z[2 * N + p] - 20.0f;
        z[3 * N + p] *= 0.05f;
        for (int k = 0; k < 3; k++) {
            double v = bias[k];
            for (int c = 0; c < C; c++)
                v += weight[k][c] * 0.2 * ((double)z[c * N + p] - 0.5);
            rgb[k * N + p] = (float)v + rough * noise[k * N + p];
        }
    }
}

static void fit(float rough, int dead, struct dfcl_latent_rgb *out) {
    float z[C * N], rgb[3 * N];
    double sums[SUMS] = {0}, one[SUMS];
    assert_int_equal(dfcl_latent_rgb_sums(C), SUMS);
    for (uint32_t i = 0; i < PICTURES; i++) {
        make(i, rough, z, rgb);
        for (int p = 0; dead >= 0 && p < N; p++)
            z[dead * N + p] = 3.0f;
        dfcl_latent_rgb_picture(C, N, z, 0.2, 0.5, rgb, one);
        for (int k = 0; k < SUMS; k++)
            sums[k] += one[k];
    }
    dfcl_latent_rgb_fit(C, sums, out);
}

static void known_map(void **state) {
    (void)state;
    struct dfcl_latent_rgb got;
    fit(0, -1, &got);
    assert_int_equal(got.channels, C);
    for (int k = 0; k < 3; k++) {
        assert_true(fabs(got.bias[k] - bias[k]) < 1e-4);
        for (int c = 0; c < C; c++)
            assert_true(fabs(got.weight[k][c] - weight[k][c]) < 1e-4);
    }
    assert_true(got.rms < 1e-5);
    /* and applied it gives the colours */
    float z[C * N], rgb[3 * N], made[3 * N], scaled[C * N];
    make(3, 0, z, rgb);
    for (int k = 0; k < C * N; k++)
        scaled[k] = 0.2f * (z[k] - 0.5f);
    dfcl_latent_rgb_apply(&got, 1, 16, 16, scaled, made);
    for (int k = 0; k < 3 * N; k++)
        assert_true(fabsf(made[k] - rgb[k]) < 1e-4f);
    /* noise is what is left */
    fit(0.1f, -1, &got);
    assert_true(fabs(got.rms - 0.1) < 0.003);
    for (int k = 0; k < 3; k++)
        assert_true(fabs(got.weight[k][1] - weight[k][1]) < 0.01);
}

static void little_to_go_by(void **state) {
    (void)state;
    struct dfcl_latent_rgb got;
    fit(0, 3, &got); /* a channel that does not vary */
    assert_int_equal(got.channels, C);
    for (int k = 0; k < 3; k++) {
        assert_true(fabs(got.weight[k][3]) < 1e-6);
        assert_true(fabs(got.weight[k][1] - weight[k][1]) < 0.01);
    }
    /* a single position: its colours are the bias */
    double sums[SUMS];
    const float z[C] = {1, 2, 3, 4}, rgb[3] = {0.25f, -0.5f, 1};
    dfcl_latent_rgb_picture(C, 1, z, 1, 0, rgb, sums);
    dfcl_latent_rgb_fit(C, sums, &got);
    assert_int_equal(got.channels, C);
    for (int k = 0; k < 3; k++) {
        assert_true(fabs(got.bias[k] - (double)rgb[k]) < 1e-12);
        assert_true(got.weight[k][0] == 0 && got.rms < 1e-6);
    }
    memset(sums, 0, sizeof sums);
    dfcl_latent_rgb_fit(C, sums, &got);
    assert_int_equal(got.channels, 0);
    sums[2] = NAN;
    dfcl_latent_rgb_fit(C, sums, &got);
    assert_int_equal(got.channels, 0);
    assert_int_equal(dfcl_latent_rgb_sums(0), 0);
    assert_int_equal(dfcl_latent_rgb_sums(DFCL_LATENT_RGB_CHANNELS + 1), 0);
}

static void averages(void **state) {
    (void)state;
    uint8_t pixels[6 * 6 * 3];
    float got[3 * 2 * 2];
    for (int y = 0; y < 6; y++)
        for (int x = 0; x < 6; x++)
            for (int k = 0; k < 3; k++)
                pixels[(y * 6 + x) * 3 + k] = (uint8_t)(k == 0 ? 255 : k == 1 ? 10 * x : 20 * y + x % 3);
    dfcl_latent_rgb_average(pixels, 3, 2, 2, got);
    for (int y = 0; y < 2; y++)
        for (int x = 0; x < 2; x++) {
            const double want[3] = {255, 10 * (3 * x + 1), 20 * (3 * y + 1) + 1};
            for (int k = 0; k < 3; k++)
                assert_true(fabs((double)got[(k * 2 + y) * 2 + x] - (want[k] / 127.5 - 1)) < 1e-6);
        }
}

static void text(void **state) {
    (void)state;
    static const char *const broken[] = {
        "", "[]", "{}", "{\"weight\":[[1],[2]],\"bias\":[0,0,0],\"rms\":0}", "{\"weight\":[[1],[2],[3,4]],\"bias\":[0,0,0],\"rms\":0}",
        "{\"weight\":[[],[],[]],\"bias\":[0,0,0],\"rms\":0}", "{\"weight\":[[1],[2],[3]],\"bias\":[0,0],\"rms\":0}",
        "{\"weight\":[[1],[2],[3]],\"bias\":[0,0,0]}", "{\"weight\":[[1],[2],[3]],\"bias\":[0,0,0],\"rms\":-1}",
        "{\"weight\":[[1],[2],[\"3\"]],\"bias\":[0,0,0],\"rms\":0}", "{\"weight\":[[1],[2],[1e300]],\"bias\":[0,0,0],\"rms\":0}",
        "{\"weight\":[[1],[2],[1e999]],\"bias\":[0,0,0],\"rms\":0}", "{\"weight\":{\"a\":[1],\"b\":[2],\"c\":[3]},\"bias\":[0,0,0],\"rms\":0}"};
    dfcl_context *ctx;
    struct dfcl_latent_rgb a, b;
    dfcl_error e = {0};
    assert_int_equal(dfcl_context_create(&ctx, NULL, NULL), DFCL_OK);
    fit(0.1f, -1, &a);
    struct dfcl_text t = {.ctx = ctx};
    dfcl_latent_rgb_text(&t, &a);
    assert_int_equal(dfcl_latent_rgb_parse(t.s, "file", &b, &e), DFCL_OK);
    assert_int_equal(b.channels, C);
    for (int k = 0; k < 3; k++)
        for (int c = 0; c < C; c++)
            assert_true(fabs(a.weight[k][c] - b.weight[k][c]) <= 1e-8 * fabs(a.weight[k][c]));
    for (size_t i = 0; i < DFCL_COUNT(broken); i++) {
        memset(&e, 0, sizeof e);
        if (dfcl_latent_rgb_parse(broken[i], "file", &b, &e) != DFCL_FORMAT || !strstr(e.msg, "file") || b.channels)
            fail_msg("%s: \"%s\"", broken[i], e.msg);
    }
    dfcl_text_finish(&t);
    dfcl_context_destroy(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_map), cmocka_unit_test(little_to_go_by), cmocka_unit_test(averages), cmocka_unit_test(text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
