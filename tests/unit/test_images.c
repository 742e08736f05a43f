/* formats/: PNG, JPEG, NumPy; the public picture and tensor functions. The files come from tests/fuzz/corpus. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <difffit-cl/sample.h>

#include "base/file.h"
#include "formats/image.h"
#include "formats/npy.h"
#include "formats/png.h"

static dfcl_context *ctx;
static char dir[64], path_buf[256];

static int setup(void **state) {
    (void)state;
    strcpy(dir, "/tmp/dfcl-images-XXXXXX");
    return !mkdtemp(dir) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

#define OK(call)                                                                                                               \
    do {                                                                                                                       \
        dfcl_error e_ = {0};                                                                                                   \
        dfcl_error *err = &e_;                                                                                                 \
        if ((call) != DFCL_OK)                                                                                                 \
            fail_msg("%s: %s", #call, e_.msg);                                                                                 \
    } while (0)

static const char *corpus(const char *name) {
    snprintf(path_buf, sizeof path_buf, "%s/%s", DFCL_CORPUS, name);
    return path_buf;
}
static const char *in_dir(const char *name) {
    snprintf(path_buf, sizeof path_buf, "%s/%s", dir, name);
    return path_buf;
}

/* The quadrants of the corpus pictures, 16 x 8: red, green / blue, white. */
static void expect_quadrants(const char *name, int orientation, int tolerance) {
    static const uint8_t color[4][3] = {{255, 0, 0}, {0, 255, 0}, {0, 0, 255}, {255, 255, 255}};
    /* Quadrant seen at (top left, top right, bottom left, bottom right) after turning the stored picture upright. */
    static const int seen[9][4] = {{0}, {0, 1, 2, 3}, {1, 0, 3, 2}, {3, 2, 1, 0}, {2, 3, 0, 1}, {0, 2, 1, 3}, {2, 0, 3, 1}, {3, 1, 2, 0}, {1, 3, 0, 2}};
    struct dfcl_image im;
    OK(dfcl_image_read(ctx, corpus(name), 3, DFCL_ALPHA_WHITE, &im, err));
    int w = orientation >= 5 ? 8 : 16, h = orientation >= 5 ? 16 : 8;
    assert_int_equal(im.width, w);
    assert_int_equal(im.height, h);
    assert_int_equal(im.channels, 3);
    for (int q = 0; q < 4; q++)
        for (int y = q / 2 * h / 2; y < (q / 2 + 1) * h / 2; y++)
            for (int x = q % 2 * w / 2; x < (q % 2 + 1) * w / 2; x++)
                for (int c = 0; c < 3; c++) {
                    int got = im.pixels[(y * w + x) * 3 + c], want = color[seen[orientation][q]][c];
                    if (abs(got - want) > tolerance)
                        fail_msg("%s: pixel %d,%d channel %d: %d, expected %d", name, x, y, c, got, want);
                }
    dfcl_image_free(ctx, &im);
}

static void pictures(void **state) {
    (void)state;
    expect_quadrants("image/rgb.png", 1, 0);
    expect_quadrants("image/palette.png", 1, 0);
    expect_quadrants("image/text.png", 1, 0);
    expect_quadrants("image/rgb.jpg", 1, 4);
    expect_quadrants("image/exif-offset.jpg", 1, 4);
    for (int i = 1; i <= 8; i++) {
        char name[32];
        snprintf(name, sizeof name, "image/orient%d.jpg", i);
        expect_quadrants(name, i, 4);
    }
    expect_quadrants("image/orient-big-endian.jpg", 6, 4);
    struct dfcl_image im;
    OK(dfcl_image_read(ctx, corpus("image/grey.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_int_equal(im.channels, 1);
    assert_int_equal(im.pixels[0], 0);
    assert_int_equal(im.pixels[8], 80);
    assert_int_equal(im.pixels[4 * 16], 160);
    assert_int_equal(im.pixels[127], 255);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/grey.png"), 3, DFCL_ALPHA_WHITE, &im, err));
    assert_true(im.pixels[24] == 80 && im.pixels[25] == 80 && im.pixels[26] == 80);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/rgb.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_int_equal(im.pixels[0], 76);   /* .299 * 255 */
    assert_int_equal(im.pixels[8], 150);  /* .587 * 255 */
    assert_int_equal(im.pixels[64], 29);  /* .114 * 255 */
    assert_int_equal(im.pixels[127], 255);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/one-bit.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_true(im.pixels[0] == 0 && im.pixels[127] == 255);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/sixteen.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_true(im.pixels[0] == 0 && im.pixels[15] == 255);
    dfcl_image_free(ctx, &im);
    /* alpha 0, 80, 160, 255 on white */
    OK(dfcl_image_read(ctx, corpus("image/alpha.png"), 3, DFCL_ALPHA_WHITE, &im, err));
    assert_true(im.pixels[0] == 255 && im.pixels[1] == 255);              /* transparent red */
    assert_true(im.pixels[24] == 255 - 80 && im.pixels[25] == 255);       /* green at 80 */
    assert_true(im.pixels[4 * 48] == 255 - 160 && im.pixels[4 * 48 + 2] == 255);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/grey-alpha.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_int_equal(im.pixels[0], 127);
    dfcl_image_free(ctx, &im);
    /* the same with the alpha forgotten: the stored colours */
    OK(dfcl_image_read(ctx, corpus("image/alpha.png"), 3, DFCL_ALPHA_DROP, &im, err));
    assert_true(im.pixels[0] == 255 && im.pixels[1] == 0 && im.pixels[24] == 0 && im.pixels[25] == 255);
    dfcl_image_free(ctx, &im);
    OK(dfcl_image_read(ctx, corpus("image/grey-alpha.png"), 1, DFCL_ALPHA_DROP, &im, err));
    assert_int_equal(im.pixels[0], 0);
    dfcl_image_free(ctx, &im);
    expect_quadrants("image/cmyk.jpg", 1, 4); /* inks */
    OK(dfcl_image_read(ctx, corpus("image/progressive.jpg"), 3, DFCL_ALPHA_WHITE, &im, err));
    assert_int_equal(im.width, 16);
    dfcl_image_free(ctx, &im);
}

static void bad_pictures(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"image/bomb.png", "cut short or forged"}, {"image/huge.png", "bad PNG"},          {"image/cut.png", "cut short"},
        {"image/chunk-length.png", "a chunk of 241783896 bytes"}, {"image/cut.jpg", "bad JPEG"},             {"image/huge.jpg", "expected sides"},
        {"npy/f4", "expected a PNG or JPEG"},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        struct dfcl_image im;
        dfcl_error e = {0};
        dfcl_status s = dfcl_image_read(ctx, corpus(cases[i][0]), 3, DFCL_ALPHA_WHITE, &im, &e);
        if (s != DFCL_FORMAT || !strstr(e.msg, cases[i][1]) || !strstr(e.msg, cases[i][0]))
            fail_msg("%s: status %d, \"%s\", expected \"%s\"", cases[i][0], s, e.msg, cases[i][1]);
        assert_null(im.pixels);
    }
    struct dfcl_image im;
    assert_int_equal(dfcl_image_read(ctx, in_dir("none.png"), 3, DFCL_ALPHA_WHITE, &im, NULL), DFCL_IO);
    assert_int_equal(dfcl_image_read(ctx, corpus("image/rgb.png"), 2, DFCL_ALPHA_WHITE, &im, NULL), DFCL_USAGE);
    /* Every truncation is noticed. */
    static const char *const whole[] = {"image/rgb.png", "image/rgb.jpg", "image/progressive.jpg"};
    for (size_t i = 0; i < DFCL_COUNT(whole); i++) {
        char *data;
        size_t n;
        OK(dfcl_file_read(ctx, corpus(whole[i]), 1 << 20, &data, &n, err));
        /* Of a JPEG the end-of-image marker and the last bits, which fill a byte, may be missing: the picture is complete. */
        size_t end = i ? n - 8 : n;
        for (size_t k = 0; k < end; k++) {
            char *cut = malloc(k ? k : 1);
            memcpy(cut, data, k);
            if (dfcl_image_read_memory(ctx, cut, k, "cut", 3, DFCL_ALPHA_WHITE, &im, NULL) != DFCL_FORMAT)
                fail_msg("%s cut at %zu of %zu passed", whole[i], k, n);
            dfcl_image_free(ctx, &im);
            free(cut);
        }
        dfcl_free(ctx, data);
    }
}

static void png_round_trip(void **state) {
    (void)state;
    uint8_t px[5 * 3 * 3];
    for (size_t i = 0; i < sizeof px; i++)
        px[i] = (uint8_t)(i * 37);
    const char *text[] = {"parameters", "steps 50, cfg 4", "delta", "fl\xc3\xbcgel.safetensors", "lines", "a\nb", "empty", "", NULL};
    OK(dfcl_png_write(ctx, in_dir("a.png"), px, 5, 3, 3, text, err));
    struct dfcl_image im;
    OK(dfcl_image_read(ctx, in_dir("a.png"), 3, DFCL_ALPHA_WHITE, &im, err));
    assert_true(im.width == 5 && im.height == 3);
    assert_memory_equal(im.pixels, px, sizeof px);
    dfcl_image_free(ctx, &im);
    struct dfcl_list l;
    OK(dfcl_png_text(ctx, in_dir("a.png"), &l, err));
    assert_int_equal(l.count, 8);
    for (size_t i = 0; i < l.count; i++)
        assert_string_equal(l.names[i], text[i]);
    dfcl_list_free(ctx, &l);
    OK(dfcl_png_write(ctx, in_dir("g.png"), px, 9, 5, 1, NULL, err));
    OK(dfcl_image_read(ctx, in_dir("g.png"), 1, DFCL_ALPHA_WHITE, &im, err));
    assert_memory_equal(im.pixels, px, sizeof px);
    dfcl_image_free(ctx, &im);
    OK(dfcl_png_text(ctx, corpus("image/text.png"), &l, err));
    assert_int_equal(l.count, 4);
    assert_string_equal(l.names[0], "prompt");
    assert_string_equal(l.names[1], "class 3");
    assert_string_equal(l.names[3], "caf\xc3\xa9");
    dfcl_list_free(ctx, &l);
    dfcl_error e = {0};
    const char *bad[] = {"", "x", NULL};
    assert_int_equal(dfcl_png_write(ctx, in_dir("bad.png"), px, 5, 3, 3, bad, &e), DFCL_USAGE);
    assert_int_equal(dfcl_png_write(ctx, in_dir("bad.png"), px, 5, 3, 2, NULL, &e), DFCL_USAGE);
    assert_int_equal(dfcl_png_write(ctx, in_dir("none/bad.png"), px, 5, 3, 3, NULL, &e), DFCL_IO);
    assert_int_equal(dfcl_path_kind(in_dir("bad.png")), DFCL_PATH_NONE);
}

static void pixels_and_grid(void **state) {
    (void)state;
    const float x[3 * 4] = {-1, 1, 0, 0.5f, /* red */ -2, 2, NAN, 1.0f / 127.5f, /* green */ 0.00391f, -0.00393f, INFINITY, -INFINITY};
    uint8_t p[12], want[12] = {0, 0, 128, 255, 255, 127, 128, 0, 255, 191, 129, 0};
    dfcl_pixels(x, 1, 3, 2, 2, p);
    assert_memory_equal(p, want, sizeof p);
    uint8_t three[3 * 4];
    for (int i = 0; i < 12; i++)
        three[i] = (uint8_t)(i + 1);
    uint8_t *g;
    int w, h;
    OK(dfcl_grid(ctx, three, 3, 2, 2, 1, 2, 2, &g, &w, &h, err));
    assert_true(w == 14 && h == 14);
    for (int y = 0; y < h; y++)
        for (int x0 = 0; x0 < w; x0++) {
            int cx = (x0 - 2) / 6, cy = (y - 2) / 6, ix = x0 - 2 - 6 * cx, iy = y - 2 - 6 * cy, i = cy * 2 + cx;
            bool inside = x0 >= 2 && y >= 2 && ix < 4 && iy < 4 && i < 3;
            assert_int_equal(g[y * w + x0], inside ? i * 4 + iy / 2 * 2 + ix / 2 + 1 : 255);
        }
    dfcl_free_pixels(ctx, g);
    /* no squares: three of 1 x 4 (height x width), two columns */
    const float flat[4] = {-1, 1, 0, 0.5f};
    dfcl_pixels(flat, 1, 1, 1, 4, p);
    assert_memory_equal(p, ((uint8_t[]){0, 255, 128, 191}), 4);
    OK(dfcl_grid(ctx, three, 3, 1, 4, 1, 2, 1, &g, &w, &h, err));
    assert_true(w == 14 && h == 8);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(g + (2 + i / 2 * 3) * w + 2 + i % 2 * 6, three + 4 * i, 4);
    dfcl_free_pixels(ctx, g);
    assert_int_equal(dfcl_grid(ctx, three, 3, 2, 2, 1, 1, 8000, &g, &w, &h, NULL), DFCL_USAGE);
    assert_int_equal(dfcl_grid(ctx, three, 0, 2, 2, 1, 1, 1, &g, &w, &h, NULL), DFCL_USAGE);
}

static void numpy_arrays(void **state) {
    (void)state;
    static const char *const same[] = {"f4", "f2", "f8", "i8", "i4", "u1", "fortran", "version2", "version3"};
    for (size_t i = 0; i < DFCL_COUNT(same); i++) {
        char name[32];
        snprintf(name, sizeof name, "npy/%s", same[i]);
        struct dfcl_npy a;
        OK(dfcl_npy_open(&a, corpus(name), err));
        assert_int_equal(a.view.ndim, 3);
        assert_true(a.view.shape[0] == 2 && a.view.shape[1] == 3 && a.view.shape[2] == 4);
        float x[24];
        OK(dfcl_view_read_f32(&a.view, name, 0, 24, x, err));
        for (int k = 0; k < 24; k++)
            assert_true(x[k] == (float)k);
        OK(dfcl_view_read_f32(&a.view, name, 7, 9, x, err)); /* a window */
        for (int k = 0; k < 9; k++)
            assert_true(x[k] == (float)(k + 7));
        assert_int_equal(dfcl_view_read_f32(&a.view, name, 20, 5, x, NULL), DFCL_FORMAT);
        unsigned char raw[24 * 8];
        dfcl_view_read_raw(&a.view, raw);
        dfcl_to_f32(a.view.dtype, raw, x, 24);
        assert_true(x[0] == 0 && x[5] == 5 && x[23] == 23);
        dfcl_npy_close(&a);
    }
    static const char *const refused[] = {"big-endian", "records", "object", "product", "digits", "dims", "long-header", "short-data", "unclosed"};
    for (size_t i = 0; i < DFCL_COUNT(refused); i++) {
        char name[32];
        snprintf(name, sizeof name, "npy/%s", refused[i]);
        struct dfcl_npy a;
        dfcl_error e = {0};
        if (dfcl_npy_open(&a, corpus(name), &e) != DFCL_FORMAT || !strstr(e.msg, name))
            fail_msg("%s: \"%s\"", name, e.msg);
    }
    struct dfcl_npy a;
    OK(dfcl_npy_open(&a, corpus("npy/python2"), err));
    assert_int_equal(a.view.shape[1], 3);
    dfcl_npy_close(&a);
    OK(dfcl_npy_open(&a, corpus("npy/scalar"), err));
    assert_int_equal(a.view.ndim, 0);
    dfcl_npy_close(&a);
    float x[6] = {1, 2, 3, 4, 5, -0.5f}, y[6];
    int64_t shape[2] = {2, 3}, one[1] = {6};
    OK(dfcl_npy_write(ctx, in_dir("a.npy"), x, shape, 2, err));
    OK(dfcl_npy_open(&a, in_dir("a.npy"), err));
    assert_true(a.view.ndim == 2 && a.view.shape[1] == 3 && a.view.dtype == DFCL_F32);
    assert_int_equal((a.view.part[0] - a.map.data) % 64, 0);
    OK(dfcl_view_read_f32(&a.view, "a", 0, 6, y, err));
    assert_memory_equal(x, y, sizeof x);
    dfcl_npy_close(&a);
    OK(dfcl_npy_write(ctx, in_dir("b.npy"), x, one, 1, err));
    OK(dfcl_npy_open(&a, in_dir("b.npy"), err));
    assert_int_equal(a.view.ndim, 1);
    dfcl_npy_close(&a);
}

static void npz(void **state) {
    (void)state;
    uint8_t px[3 * 2 * 2 * 3];
    for (size_t i = 0; i < sizeof px; i++)
        px[i] = (uint8_t)(i * 5);
    struct dfcl_npz_writer *w;
    OK(dfcl_npz_writer_create(&w, ctx, in_dir("a.npz"), 3, 2, 2, 3, err));
    OK(dfcl_npz_writer_add(w, px, 1, err));
    OK(dfcl_npz_writer_add(w, px + 12, 2, err));
    OK(dfcl_npz_writer_finish(&w, NULL, err));
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, in_dir("a.npz"), 1 << 20, &data, &n, err));
    /* the entry's bytes are an array again */
    const unsigned char *p = (const unsigned char *)data;
    assert_memory_equal(p, "PK\3\4", 4);
    size_t size = p[18] | (size_t)p[19] << 8, at = 30 + (p[26] | (size_t)p[27] << 8) + (p[28] | (size_t)p[29] << 8);
    assert_memory_equal(p + 30, "arr_0.npy", 9);
    struct dfcl_npy a;
    OK(dfcl_npy_open_memory(&a, p + at, size, "arr_0", err));
    assert_true(a.view.dtype == DFCL_U8 && a.view.ndim == 4 && a.view.shape[0] == 3 && a.view.shape[3] == 3);
    assert_memory_equal(a.view.part[0], px, sizeof px);
    dfcl_free(ctx, data);
    dfcl_error e = {0};
    OK(dfcl_npz_writer_create(&w, ctx, in_dir("b.npz"), 3, 2, 2, 3, err));
    OK(dfcl_npz_writer_add(w, px, 2, err));
    OK(dfcl_npz_writer_finish(&w, (const int64_t[]){7, 1000}, err)); /* fewer than announced */
    assert_null(w);
    OK(dfcl_npz_writer_create(&w, ctx, in_dir("c.npz"), 1, 2, 2, 3, err));
    assert_int_equal(dfcl_npz_writer_add(w, px, 2, &e), DFCL_USAGE);
    assert_int_equal(dfcl_npz_writer_finish(&w, NULL, &e), DFCL_ERROR);
    assert_int_equal(dfcl_path_kind(in_dir("c.npz")), DFCL_PATH_NONE);
}

static void single_tensors(void **state) {
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6}, *y;
    int64_t shape[8] = {1, 2, 3}, got[8];
    int ndim;
    OK(dfcl_tensor_write(ctx, in_dir("z.safetensors"), "z", x, shape, 3, err));
    OK(dfcl_tensor_read(ctx, in_dir("z.safetensors"), "z", &y, got, &ndim, err));
    assert_int_equal(ndim, 3);
    assert_memory_equal(got, shape, 3 * sizeof *got);
    assert_memory_equal(x, y, sizeof x);
    dfcl_tensor_free(ctx, y);
    dfcl_error e = {0};
    assert_int_equal(dfcl_tensor_read(ctx, in_dir("z.safetensors"), "latents", &y, got, &ndim, &e), DFCL_FORMAT);
    assert_null(y);
    assert_non_null(strstr(e.msg, "latents"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures),     cmocka_unit_test(bad_pictures), cmocka_unit_test(png_round_trip), cmocka_unit_test(pixels_and_grid),
        cmocka_unit_test(numpy_arrays), cmocka_unit_test(npz),          cmocka_unit_test(single_tensors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
