/* data/crop: against what Pillow gives for the same picture, and the order of samples. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "data/crop.h"
#include "data/order.h"

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

/* Pillow's resize(BOX) while halving, resize(BICUBIC), centre crop, on picture(x, y, k) below. */
static const uint8_t want0[] = {
    140, 129, 143, 133, 127, 94, 132, 149, 129, 106, 99, 119, 124, 123, 132, 139, 145, 121, 117, 140, 137,
    142, 113, 123, 133, 118, 120, 120, 96, 124, 130, 103, 129, 125, 134, 143, 105, 123, 130, 131, 120, 145,
    161, 142, 108, 127, 131, 132, 143, 152, 118, 124, 129, 142, 136, 157, 143, 136, 136, 163, 155, 138, 103,
    147,
};
static const uint8_t want1[] = {
    134, 125, 130, 139, 127, 132, 125, 126, 125, 127, 146, 102, 114, 125, 160, 101, 120, 163, 115, 143, 132,
    144, 108, 117, 106, 137, 137, 149, 118, 126, 114, 112, 138, 83, 129, 146, 124, 132, 118, 114, 105, 146,
    167, 100, 113, 134, 115, 135, 138, 124, 125, 145, 94, 126, 145, 124, 135, 114, 123, 140, 137, 122, 124,
    116, 140, 103, 122, 109, 145, 99, 122, 163, 136, 102, 145, 124, 148, 132, 147, 134, 123, 114, 119, 128,
    119, 137, 135, 150, 104, 126, 143, 124, 121, 129, 128, 124, 150, 122, 117, 128, 162, 136, 108, 134, 133,
    134, 100, 149,
};
static const uint8_t want2[] = {
    0, 2, 8, 18, 31, 48, 71, 97, 3, 7, 15, 27, 42, 61, 87, 118, 10, 19, 30, 46, 65, 86, 120, 163, 24, 37, 53,
    72, 98, 130, 148, 150, 45, 61, 81, 103, 139, 190, 167, 75, 76, 96, 121, 150, 170, 180, 143, 61, 113, 138,
    171, 211, 189, 106, 79, 105, 131, 158, 194, 240, 198, 70, 49, 126,
};
static const uint8_t want3[] = {
    108, 145, 137, 153, 111, 134, 153, 142, 115, 125, 142, 143, 107, 83, 137, 168, 90, 148, 142, 121, 118,
    123, 112, 155, 158, 107, 84, 121, 141, 140, 122, 118, 178, 136, 112, 128, 158, 126, 124, 114, 146, 128,
    104, 148, 133, 102, 144, 146, 94, 91, 139, 89, 152, 141, 123, 109, 132, 131, 112, 115, 126, 122, 149, 137,
    112, 122, 115, 102, 136, 128, 123, 129, 100, 120, 155, 162, 87, 123, 149, 120, 125, 126, 123, 128, 158,
    99, 121, 149, 90, 121, 127, 112, 129, 140, 109, 126, 148, 135, 107, 96, 149, 136, 84, 114, 184, 109, 140,
    147,
};

static uint8_t picture(int x, int y, int k) {
    return (uint8_t)(x * x * 7 + y * y * 13 + x * y * 5 + k * 61 + x * y % 17 * 9);
}

static void crop_like_pillow(void **state) {
    (void)state;
    static const struct {
        int w, h, c, side;
        const uint8_t *want;
    } cases[] = {
        {53, 37, 1, 8, want0},
        {20, 31, 3, 6, want1},
        {5, 4, 1, 8, want2},
        {23, 16, 3, 6, want3},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        int w = cases[i].w, h = cases[i].h, c = cases[i].c, n = cases[i].side * cases[i].side * c;
        uint8_t *src = malloc((size_t)(w * h * c)), *out = malloc((size_t)n);
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                for (int k = 0; k < c; k++)
                    src[(y * w + x) * c + k] = picture(x, y, k);
        assert_int_equal(dfcl_center_crop(ctx, src, w, h, c, cases[i].side, cases[i].side, out, NULL), DFCL_OK);
        for (int k = 0; k < n; k++)
            if (out[k] != cases[i].want[k])
                fail_msg("case %zu, byte %d: expected %d, found %d", i, k, cases[i].want[k], out[k]);
        free(src);
        free(out);
    }
}

static void crop_same_size(void **state) {
    (void)state;
    uint8_t src[5 * 5 * 3], out[5 * 5 * 3];
    for (size_t i = 0; i < sizeof src; i++)
        src[i] = (uint8_t)(i * 37);
    assert_int_equal(dfcl_center_crop(ctx, src, 5, 5, 3, 5, 5, out, NULL), DFCL_OK);
    assert_memory_equal(src, out, sizeof src);
    dfcl_error e = {0};
    assert_int_equal(dfcl_center_crop(ctx, src, 0, 5, 3, 5, 5, out, &e), DFCL_USAGE);
    /* a picture of one pixel grows evenly */
    uint8_t one[1] = {77};
    assert_int_equal(dfcl_center_crop(ctx, one, 1, 1, 1, 4, 4, out, NULL), DFCL_OK);
    for (int i = 0; i < 16; i++)
        assert_int_equal(out[i], 77);
}

/* No square: halved while both sides allow it, then to the side that the aspect lets count, by hand; a random one likewise. */
static void crop_rectangle(void **state) {
    (void)state;
    static const struct {
        int w, h, ow, oh; /* picture, wanted */
        int hw, hh;       /* halved */
        int bw, bh;       /* bicubic */
    } cases[] = {
        {53, 37, 8, 12, 26, 18, 17, 12}, /* the height counts: 9 < 12 ends the halving */
        {53, 37, 12, 4, 13, 9, 12, 8},   /* the width */
        {9, 40, 12, 16, 9, 40, 12, 53},  /* enlarged */
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        const int w = cases[i].w, h = cases[i].h, ow = cases[i].ow, oh = cases[i].oh, bw = cases[i].bw, bh = cases[i].bh;
        uint8_t src[64 * 64 * 3], half[64 * 64 * 3], big[64 * 64 * 3], out[16 * 16 * 3];
        for (int k = 0; k < w * h * 3; k++)
            src[k] = picture(k / 3 % w, k / 3 / w, k % 3);
        memcpy(half, src, sizeof half);
        for (int cw = w, ch = h; cw != cases[i].hw; cw /= 2, ch /= 2) {
            assert_int_equal(dfcl_resample(ctx, half, cw, ch, 3, DFCL_FILTER_BOX, big, cw / 2, ch / 2, NULL), DFCL_OK);
            memcpy(half, big, sizeof half);
        }
        assert_int_equal(dfcl_resample(ctx, half, cases[i].hw, cases[i].hh, 3, DFCL_FILTER_BICUBIC, big, bw, bh, NULL), DFCL_OK);
        assert_int_equal(dfcl_center_crop(ctx, src, w, h, 3, ow, oh, out, NULL), DFCL_OK);
        for (int r = 0; r < oh; r++)
            assert_memory_equal(out + r * ow * 3, big + (((bh - oh) / 2 + r) * bw + (bw - ow) / 2) * 3, (size_t)ow * 3);
    }
    /* random: the shorter side 4, 5 of at most 4 / 0.8; the other in proportion */
    enum { W = 21, H = 13, OW = 8, OH = 4 };
    uint8_t src[W * H * 3], half[W * H * 3], big[32 * 32 * 3], out[OW * OH * 3];
    int sizes[2] = {0};
    for (int k = 0; k < W * H * 3; k++)
        src[k] = picture(k / 3 % W, k / 3 / W, k % 3);
    assert_int_equal(dfcl_resample(ctx, src, W, H, 3, DFCL_FILTER_BOX, half, 10, 6, NULL), DFCL_OK);
    for (uint32_t i = 0; i < 100; i++) {
        const struct dfcl_crop_draw d = {.seed = 9, .step = 0, .sample = i};
        assert_int_equal(dfcl_random_crop(ctx, src, W, H, 3, OW, OH, &d, out, NULL), DFCL_OK);
        const int k = (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, 0, i, 0, 2), w = k ? 10 : 8, h = k ? 6 : 5; /* 10 of 10; 6 * 0.8 rounded */
        const int y = (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, 0, i, 1, (uint32_t)(h - OH + 1));
        const int x = (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, 0, i, 2, (uint32_t)(w - OW + 1));
        sizes[k]++;
        assert_int_equal(dfcl_resample(ctx, half, 10, 6, 3, DFCL_FILTER_BICUBIC, big, w, h, NULL), DFCL_OK);
        for (int r = 0; r < OH; r++)
            assert_memory_equal(out + r * OW * 3, big + ((y + r) * w + x) * 3, OW * 3);
    }
    assert_true(sizes[0] > 20 && sizes[1] > 20);
}

/* The size and place that the draws give, resampled and cut by hand; over many draws every size and both edges come up. */
static void crop_random(void **state) {
    (void)state;
    enum { W = 21, H = 13, SIDE = 8 };
    uint8_t src[W * H * 3], out[SIDE * SIDE * 3], again[SIDE * SIDE * 3], big[32 * 32 * 3];
    int sizes[3] = {0}, first = 0, last = 0;
    for (int i = 0; i < W * H * 3; i++)
        src[i] = picture(i / 3 % W, i / 3 / W, i % 3);
    for (uint32_t i = 0; i < 200; i++) {
        struct dfcl_crop_draw d = {.seed = 9, .step = i / 50, .sample = i};
        assert_int_equal(dfcl_random_crop(ctx, src, W, H, 3, SIDE, SIDE, &d, out, NULL), DFCL_OK);
        assert_int_equal(dfcl_random_crop(ctx, src, W, H, 3, SIDE, SIDE, &d, again, NULL), DFCL_OK);
        assert_memory_equal(out, again, sizeof out);
        int h = SIDE + (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, d.step, i, 0, 3); /* 8, 9, 10: the last is 8 / 0.8 */
        int w = h == 8 ? 13 : h == 9 ? 15 : 16;                                      /* 21 h / 13, rounded */
        int y = (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, d.step, i, 1, (uint32_t)(h - SIDE + 1));
        int x = (int)dfcl_uniform_int(9, DFCL_STREAM_CROP, d.step, i, 2, (uint32_t)(w - SIDE + 1));
        sizes[h - SIDE]++;
        first += x == 0;
        last += x == w - SIDE;
        assert_int_equal(dfcl_resample(ctx, src, W, H, 3, DFCL_FILTER_BICUBIC, big, w, h, NULL), DFCL_OK);
        for (int r = 0; r < SIDE; r++)
            assert_memory_equal(out + r * SIDE * 3, big + ((y + r) * w + x) * 3, SIDE * 3);
    }
    for (int k = 0; k < 3; k++)
        assert_true(sizes[k] > 40);
    assert_true(first > 5 && last > 5);
}

static void order_known(void **state) {
    (void)state;
    /* Computed by an independent Philox and shuffle for seed 7. */
    static const uint32_t want[2][10] = {{4, 7, 3, 0, 1, 8, 2, 5, 6, 9}, {3, 5, 7, 2, 6, 1, 9, 4, 8, 0}};
    struct dfcl_order o;
    assert_int_equal(dfcl_order_init(&o, ctx, 7, 10, NULL), DFCL_OK);
    for (uint64_t g = 0; g < 20; g++)
        assert_int_equal(dfcl_order_item(&o, g), want[g / 10][g % 10]);
    dfcl_order_finish(&o, ctx);
}

static void order_is_permutation_and_random_access(void **state) {
    (void)state;
    struct dfcl_order a, b;
    assert_int_equal(dfcl_order_init(&a, ctx, 3, 101, NULL), DFCL_OK);
    assert_int_equal(dfcl_order_init(&b, ctx, 3, 101, NULL), DFCL_OK);
    uint32_t seen[606];
    for (uint64_t g = 0; g < 606; g++)
        seen[g] = dfcl_order_item(&a, g);
    for (int e = 0; e < 6; e++) {
        int hits[101] = {0}, same = 0;
        for (int i = 0; i < 101; i++) {
            hits[seen[e * 101 + i]]++;
            same += seen[e * 101 + i] == seen[(e + 1) % 6 * 101 + i];
        }
        for (int i = 0; i < 101; i++)
            assert_int_equal(hits[i], 1);
        assert_true(same < 50);
    }
    for (uint64_t k = 0; k < 606; k++) {
        uint64_t g = k * 331 % 606;
        assert_int_equal(dfcl_order_item(&b, g), seen[g]);
    }
    dfcl_order_finish(&a, ctx);
    dfcl_order_finish(&b, ctx);
    /* one picture */
    assert_int_equal(dfcl_order_init(&a, ctx, 3, 1, NULL), DFCL_OK);
    assert_int_equal(dfcl_order_item(&a, 12345), 0);
    dfcl_order_finish(&a, ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crop_like_pillow),
        cmocka_unit_test(crop_same_size),
        cmocka_unit_test(crop_random), cmocka_unit_test(crop_rectangle),
        cmocka_unit_test(order_known),
        cmocka_unit_test(order_is_permutation_and_random_access),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
