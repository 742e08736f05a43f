/* base/: errors, memory, files, 16-bit floats, SHA-256, random numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/file.h"
#include "base/half.h"
#include "base/philox.h"
#include "base/sha256.h"

static dfcl_context *ctx;

static int setup(void **state) {
    (void)state;
    return dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_context_destroy(&ctx);
    return 0;
}

static void error_text(void **state) {
    (void)state;
    dfcl_error e = {0};
    assert_int_equal(dfcl_fail(&e, DFCL_FORMAT, "name \x01\x1b[31m %d", 7), DFCL_FORMAT);
    assert_string_equal(e.msg, "name ??[31m 7");
    dfcl_error_prefix(&e, "%s", "file.pt");
    assert_string_equal(e.msg, "file.pt: name ??[31m 7");
    char big[3000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    dfcl_error_prefix(&e, "%s", big);
    assert_int_equal(strlen(e.msg), DFCL_ERROR_MAX - 1);
    assert_int_equal(dfcl_fail(NULL, DFCL_IO, "nobody listens"), DFCL_IO);
}

static void memory_overflow(void **state) {
    (void)state;
    dfcl_error e = {0};
    assert_null(dfcl_calloc(ctx, SIZE_MAX / 2, 3, &e));
    assert_int_equal(e.status, DFCL_NOMEM);
}

static void philox_known(void **state) {
    (void)state;
    /* Known answers of the Random123 distribution (kat_vectors, philox 4x32 10). */
    uint32_t o[4], zero[4] = {0, 0, 0, 0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    dfcl_philox(0, zero, o);
    assert_int_equal(o[0], 0x6627e8d5u);
    assert_int_equal(o[1], 0xe169c58du);
    assert_int_equal(o[2], 0xbc57ac4cu);
    assert_int_equal(o[3], 0x9b00dbd8u);
    dfcl_philox(~0ull, ones, o);
    assert_int_equal(o[0], 0x408f276du);
    assert_int_equal(o[1], 0x41c83b0eu);
    assert_int_equal(o[2], 0xa20bc7c6u);
    assert_int_equal(o[3], 0x6d5451fdu);
}

static void normals_exact(void **state) {
    (void)state;
    enum { N = 1 << 18 };
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    dfcl_normals(42, DFCL_STREAM_TEST, 3, 5, x, N);
    double s1 = 0, s2 = 0, s4 = 0, worst = 0;
    for (int i = 0; i < N; i++) {
        s1 += x[i];
        s2 += (double)x[i] * x[i];
        s4 += pow(x[i], 4);
    }
    /* against the exact transform in double */
    for (int i = 0; i < N; i += 2) {
        double u1 = dfcl_uniform(42, DFCL_STREAM_TEST, 3, 5, (uint32_t)i), u2 = dfcl_uniform(42, DFCL_STREAM_TEST, 3, 5, (uint32_t)i + 1);
        double r = sqrt(-2 * log(u1));
        worst = fmax(worst, fabs(x[i] - r * cos(6.283185307179586 * u2)));
        worst = fmax(worst, fabs(x[i + 1] - r * sin(6.283185307179586 * u2)));
    }
    assert_true(fabs(s1 / N) < 0.008);
    assert_true(fabs(s2 / N - 1) < 0.01);
    assert_true(fabs(s4 / N - 3) < 0.1);
    assert_true(worst < 2e-6);
    /* a prefix is a prefix */
    float y[7];
    dfcl_normals(42, DFCL_STREAM_TEST, 3, 5, y, 7);
    assert_memory_equal(x, y, sizeof y);
    free(x);
}

static void halves(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = dfcl_f16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(dfcl_f16_to_f32(dfcl_f32_to_f16(f))));
        else
            assert_int_equal(dfcl_f32_to_f16(f), h);
        float g = dfcl_bf16_to_f32((uint16_t)h);
        if (isnan(g))
            assert_true(isnan(dfcl_bf16_to_f32(dfcl_f32_to_bf16(g))));
        else
            assert_int_equal(dfcl_f32_to_bf16(g), h);
    }
    assert_int_equal(dfcl_f32_to_f16(65520.0f), 0x7c00); /* ties away from the largest finite */
    assert_int_equal(dfcl_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(dfcl_f32_to_f16(0x1.002p0f), 0x3c00);   /* tie to even, down */
    assert_int_equal(dfcl_f32_to_f16(0x1.006p0f), 0x3c02);   /* tie to even, up */
    assert_int_equal(dfcl_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(dfcl_f32_to_f16(0x1.8p-25f), 1);
    assert_int_equal(dfcl_f32_to_bf16(0x1.01p0f), 0x3f80);
    assert_int_equal(dfcl_f32_to_bf16(0x1.03p0f), 0x3f82);
}

static void sha(void **state) {
    (void)state;
    struct dfcl_sha256 h;
    char hex[65];
    assert_int_equal(dfcl_sha256_init(&h, NULL), 0);
    assert_int_equal(dfcl_sha256_update(&h, "abc", 3, NULL), 0);
    assert_int_equal(dfcl_sha256_finish(&h, hex, NULL), 0);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void files(void **state) {
    (void)state;
    char dir[] = "/tmp/dfcl-base-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char path[200], sub[200];
    snprintf(sub, sizeof sub, "%s/a/b", dir);
    assert_int_equal(dfcl_mkdirs(ctx, sub, NULL), 0);
    snprintf(path, sizeof path, "%s/a/b/f", dir);
    assert_int_equal(dfcl_file_write(ctx, path, "hello", 5, NULL), 0);
    struct dfcl_writer w;
    assert_int_equal(dfcl_writer_open(&w, ctx, path, NULL), 0);
    assert_int_equal(dfcl_writer_write(&w, "x", 1, NULL), 0);
    dfcl_writer_abort(&w);
    char *data;
    size_t n;
    assert_int_equal(dfcl_file_read(ctx, path, 100, &data, &n, NULL), 0);
    assert_int_equal(n, 5);
    assert_string_equal(data, "hello");
    dfcl_free(ctx, data);
    dfcl_error e;
    assert_int_equal(dfcl_file_read(ctx, path, 4, &data, &n, &e), DFCL_FORMAT);
    struct dfcl_list l;
    assert_int_equal(dfcl_list_dir(ctx, sub, &l, NULL), 0);
    assert_int_equal(l.count, 1); /* the aborted temporary is gone */
    dfcl_list_free(ctx, &l);
    struct dfcl_map m;
    assert_int_equal(dfcl_map_open(&m, dir, &e), DFCL_FORMAT);
    assert_int_equal(dfcl_map_open(&m, path, &e), 0);
    assert_memory_equal(m.data, "hello", 5);
    dfcl_map_close(&m);
    assert_int_equal(dfcl_remove_tree(ctx, dir, NULL), 0);
    assert_int_equal(dfcl_path_kind(dir), DFCL_PATH_NONE);
}

static void extents(void **state) {
    (void)state;
    char buf[DFCL_EXTENT_TEXT];
    assert_string_equal(dfcl_extent_format(64, 0, buf), "64");
    assert_string_equal(dfcl_extent_format(64, 64, buf), "64");
    assert_string_equal(dfcl_extent_format(64, 96, buf), "96x64"); /* width first */
    assert_string_equal(dfcl_extent_format(INT32_MAX, INT32_MAX - 1, buf), "2147483646x2147483647");
    int h = 0, w = 0;
    assert_true(dfcl_extent_parse("64", 64, &h, &w) && h == 64 && w == 64);
    assert_true(dfcl_extent_parse("96x64", 96, &h, &w) && h == 64 && w == 96);
    static const char *const bad[] = {"", "x", "0", "65", "64x", "x64", "64x65", "65x64", "0x64", "64x0", "64x64x64", "64X64", "-64", "64x-4", "64.0", "64 ", "1000000000000000000000000x4",
                                      "4294967360"};
    for (size_t i = 0; i < DFCL_COUNT(bad); i++)
        if (dfcl_extent_parse(bad[i], 64, &h, &w))
            fail_msg("'%s' was taken: %d x %d", bad[i], w, h);
    assert_true(h == 64 && w == 96);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_text), cmocka_unit_test(memory_overflow), cmocka_unit_test(philox_known),
        cmocka_unit_test(normals_exact), cmocka_unit_test(halves), cmocka_unit_test(sha), cmocka_unit_test(files), cmocka_unit_test(extents),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
