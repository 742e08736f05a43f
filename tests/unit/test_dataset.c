/* data/dataset: pictures and latents in the run's order, cached or read ahead; errors name the file. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/half.h"
#include "base/philox.h"
#include "data/dataset.h"
#include "data/decode.h"

#include <difffit-cl/sample.h>

enum { COUNT = 11 };

static dfcl_context *ctx;
static char root[64];

static const char *DFCL_PRINTF(1, 2) at(const char *fmt, ...) {
    static char buf[8][256];
    static int next;
    char *b = buf[next++ % 8];
    int n = snprintf(b, 256, "%s/", root);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b + n, (size_t)(256 - n), fmt, ap);
    va_end(ap);
    return b;
}

static void npy(const char *path, const char *descr, const char *shape, const void *data, size_t bytes) {
    char head[128];
    unsigned char file[8192] = "\x93NUMPY\x01";
    int n = snprintf(head, sizeof head, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", descr, shape);
    int total = (10 + n + 1 + 63) / 64 * 64;
    file[8] = (unsigned char)(total - 10);
    memcpy(file + 10, head, (size_t)n);
    memset(file + 10 + n, ' ', (size_t)(total - 11 - n));
    file[total - 1] = '\n';
    memcpy(file + total, data, bytes);
    assert_int_equal(dfcl_file_write(ctx, path, file, (size_t)total + bytes, NULL), DFCL_OK);
}

/* Picture i is grey 20 i + (x, y) pattern, 4 x 4: the model's own side, so values pass unchanged. */
static uint8_t pixel(int i, int x, int y) {
    return (uint8_t)(20 * i + 4 * y + x);
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/dfcl-dataset-XXXXXX");
    if (!mkdtemp(root) || dfcl_context_create(&ctx, NULL, NULL))
        return 1;
    assert_int_equal(dfcl_mkdirs(ctx, at("pics/a"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("pics/b"), NULL), DFCL_OK);
    for (int i = 0; i < COUNT; i++) {
        uint8_t px[16];
        for (int k = 0; k < 16; k++)
            px[k] = pixel(i, k % 4, k / 4);
        assert_int_equal(dfcl_png_write(ctx, at("pics/%s/%02d.png", i < 4 ? "a" : "b", i), px, 4, 4, 1, NULL, NULL), DFCL_OK);
    }
    return 0;
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static struct dfcl_dataset *open_set(const char *path, bool flip, uint64_t cache, dfcl_status want, dfcl_error *err) {
    struct dfcl_dataset *ds;
    struct dfcl_dataset_options o = {.path = path, .channels = 1, .side = 4, .flip = flip, .seed = 5, .cache_bytes = cache, .threads = 3,
                                     .ahead = 4};
    dfcl_error e = {0};
    dfcl_status s = dfcl_dataset_open(&ds, ctx, &o, &e);
    if (s != want)
        fail_msg("%d %s", s, e.msg);
    assert_true(!s == !!ds);
    if (err)
        *err = e;
    return ds;
}

static void check_samples(struct dfcl_dataset *ds, uint64_t first, int n, bool flip) {
    float x[64 * 16];
    int32_t label[64];
    int mirrored = 0;
    assert_int_equal(dfcl_dataset_fetch(ds, first, n, x, label, NULL), DFCL_OK);
    for (int i = 0; i < n; i++) {
        uint64_t g = first + (uint64_t)i;
        int item = (int)dfcl_dataset_item(ds, g);
        bool m = flip && dfcl_uniform(5, DFCL_STREAM_FLIP, (uint32_t)(g / COUNT), (uint32_t)g, 0) <= 0.5f;
        mirrored += m;
        assert_int_equal(label[i], item >= 4);
        for (int k = 0; k < 16; k++) {
            double want = pixel(item, m ? 3 - k % 4 : k % 4, k / 4) / 127.5 - 1.0;
            assert_true(fabs(x[i * 16 + k] - want) < 1e-6);
        }
    }
    if (flip && n >= 40)
        assert_true(mirrored > 8 && mirrored < n - 8);
}

static void pictures_cached_and_read_ahead(void **state) {
    (void)state;
    char prints[2][65];
    for (int cached = 0; cached < 2; cached++)
        for (int flip = 0; flip < 2; flip++) {
            struct dfcl_dataset *ds = open_set(at("pics"), flip, cached ? 0 : 16, DFCL_OK, NULL);
            assert_int_equal(dfcl_dataset_cached(ds), cached);
            assert_int_equal(dfcl_dataset_count(ds), COUNT);
            assert_int_equal(dfcl_dataset_classes(ds), 2);
            assert_string_equal(dfcl_dataset_class_names(ds)[1], "b");
            for (int k = 0; k < 6; k++)
                check_samples(ds, (uint64_t)(k * 7), 7, flip);
            check_samples(ds, 1000, 50, flip); /* more than is read ahead, over several epochs */
            check_samples(ds, 3, 2, flip);     /* back */
            check_samples(ds, 4, 2, flip);
            strcpy(prints[cached], dfcl_dataset_fingerprint(ds));
            dfcl_dataset_close(&ds);
        }
    assert_string_equal(prints[0], prints[1]);
    assert_int_equal(strlen(prints[0]), 64);
}

static int grey_item(const float *x) {
    return (int)lround((x[0] + 1.0) * 127.5 / 20.0);
}

static void held_out(void **state) {
    (void)state;
    struct dfcl_dataset *ds;
    dfcl_error e;
    float x[16], first[2][16];
    int32_t label;
    for (int cached = 0; cached < 2; cached++) {
        struct dfcl_dataset_options o = {.path = at("pics"), .channels = 1, .side = 4, .flip = true, .seed = 5, .cache_bytes = cached ? 0 : 16,
                                         .val_fraction = 0.5};
        assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_OK);
        assert_int_equal(dfcl_dataset_held_out_count(ds), 2 + 4); /* of 4 and 7 */
        assert_int_equal(dfcl_dataset_count(ds), 5);
        int seen[COUNT] = {0}, classes[2] = {0};
        for (int i = 0; i < 6; i++) {
            assert_int_equal(dfcl_dataset_held_out(ds, i, x, &label, NULL), DFCL_OK);
            int item = grey_item(x); /* never mirrored: the first pixel tells */
            assert_true(fabs((double)x[5] - (pixel(item, 1, 1) / 127.5 - 1.0)) < 1e-6);
            assert_int_equal(label, item >= 4);
            seen[item]++;
            classes[label]++;
            if (!i)
                memcpy(first[cached], x, sizeof x);
        }
        assert_int_equal(classes[0], 2);
        int held[COUNT];
        memcpy(held, seen, sizeof held);
        for (uint64_t g = 0; g < 5; g++)
            seen[dfcl_dataset_item(ds, g)]++;
        for (int i = 0; i < COUNT; i++)
            assert_int_equal(seen[i], 1); /* an epoch has the others, once each */
        for (uint64_t g = 0; g < 200; g++) {
            assert_int_equal(held[dfcl_dataset_item(ds, g)], 0);
            assert_int_equal(dfcl_dataset_fetch(ds, g, 1, x, &label, NULL), DFCL_OK);
            assert_int_equal(label, dfcl_dataset_item(ds, g) >= 4);
        }
        dfcl_dataset_close(&ds);
    }
    assert_memory_equal(first[0], first[1], sizeof first[0]);
    /* every class keeps one to train on; a share of nothing is refused */
    struct dfcl_dataset_options o = {.path = at("pics"), .channels = 1, .side = 4, .val_fraction = 0.9};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_OK);
    assert_int_equal(dfcl_dataset_held_out_count(ds), 3 + 6);
    dfcl_dataset_close(&ds);
    o.val_fraction = 0.05;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "0.05"));
}

#ifdef __linux__
/* How many threads of this process have this nice value. */
static int threads_at(int nice_value) {
    int count = 0;
    DIR *d = opendir("/proc/self/task");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        count += e->d_name[0] != '.' && getpriority(PRIO_PROCESS, (id_t)atoi(e->d_name)) == nice_value;
    closedir(d);
    return count;
}
#endif

/* Threads that read ahead have a lower priority than those that compute, which keep theirs. */
static void read_ahead_gives_way(void **state) {
    (void)state;
#ifdef __linux__
    int mine = getpriority(PRIO_PROCESS, 0), theirs = DFCL_MIN(mine + 10, 19);
    if (theirs == mine)
        skip();
    int others = threads_at(mine), low = threads_at(theirs);
    struct dfcl_dataset *ds = open_set(at("pics"), false, 16, DFCL_OK, NULL);
    for (int tries = 0; tries < 1000 && threads_at(theirs) != low + 3; tries++)
        usleep(10000); /* they say so when they start */
    assert_int_equal(threads_at(theirs), low + 3);
    assert_int_equal(threads_at(mine), others);
    dfcl_dataset_close(&ds);
#else
    skip();
#endif
}

static void fingerprint_follows_content(void **state) {
    (void)state;
    char first[65];
    struct dfcl_dataset *ds = open_set(at("pics"), false, 0, DFCL_OK, NULL);
    strcpy(first, dfcl_dataset_fingerprint(ds));
    dfcl_dataset_close(&ds);
    /* a moved folder is the same, one with another name inside is not */
    assert_int_equal(rename(at("pics"), at("moved")), 0);
    ds = open_set(at("moved"), false, 0, DFCL_OK, NULL);
    assert_string_equal(first, dfcl_dataset_fingerprint(ds));
    dfcl_dataset_close(&ds);
    assert_int_equal(rename(at("moved/a/00.png"), at("moved/a/zz.png")), 0);
    ds = open_set(at("moved"), false, 0, DFCL_OK, NULL);
    assert_string_not_equal(first, dfcl_dataset_fingerprint(ds));
    dfcl_dataset_close(&ds);
}

static void bad_pictures(void **state) {
    (void)state;
    dfcl_error e;
    assert_int_equal(dfcl_file_write(ctx, at("pics/b/05.png"), "not a png", 9, NULL), DFCL_OK);
    assert_int_equal(dfcl_file_write(ctx, at("pics/b/07.png"), "", 0, NULL), DFCL_OK);
    open_set(at("pics"), false, 0, DFCL_FORMAT, &e);
    assert_non_null(strstr(e.msg, "and 1 more bad files of 11"));
    assert_non_null(strstr(e.msg, "pics/b/05.png")); /* the first one, whichever thread met which */
    open_set(at("pics"), false, 16, DFCL_FORMAT, &e); /* the same when they will not stay in memory */
    assert_non_null(strstr(e.msg, "pics/b/05.png"));
    struct dfcl_dataset *ds;
    float x[COUNT * 16];
    int32_t label[COUNT];
    struct dfcl_dataset_options o = {.path = at("pics"), .channels = 4, .side = 4};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "latents"));
    /* left out: the others are as in a folder without the bad ones, but keep their classes */
    char fingerprint[65], pics[256];
    strcpy(pics, at("pics"));
    for (int cached = 0; cached < 2; cached++) {
        o = (struct dfcl_dataset_options){.path = pics, .channels = 1, .side = 4, .skip_bad = true, .seed = 5, .cache_bytes = cached ? 0 : 16};
        assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_OK);
        assert_int_equal(dfcl_dataset_bad(ds), 2);
        assert_int_equal(dfcl_dataset_count(ds), COUNT - 2);
        assert_int_equal(dfcl_dataset_fetch(ds, 0, COUNT - 2, x, label, &e), DFCL_OK);
        for (int g = 0; g < COUNT - 2; g++) {
            int item = (int)dfcl_dataset_item(ds, (uint64_t)g), file = item + (item >= 5) + (item >= 6);
            assert_int_equal(label[g], file >= 4);
            for (int k = 0; k < 16; k++)
                assert_true(fabs(x[g * 16 + k] - (pixel(file, k % 4, k / 4) / 127.5 - 1.0)) < 1e-6);
        }
        strcpy(fingerprint, dfcl_dataset_fingerprint(ds));
        dfcl_dataset_close(&ds);
    }
    assert_int_equal(unlink(at("pics/b/05.png")) || unlink(at("pics/b/07.png")), 0);
    ds = open_set(at("pics"), false, 0, DFCL_OK, NULL);
    assert_string_equal(dfcl_dataset_fingerprint(ds), fingerprint);
    dfcl_dataset_close(&ds);
    for (int i = 0; i < COUNT; i++)
        if (i != 5 && i != 7)
            assert_int_equal(dfcl_file_write(ctx, at("pics/%s/%02d.png", i < 4 ? "a" : "b", i), "", 0, NULL), DFCL_OK);
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "none of 9 files"));
}

/* A file that goes while the set is in use: the sample that needs it fails, and nothing hangs. */
static void lost_picture(void **state) {
    (void)state;
    dfcl_error e;
    float x[20 * COUNT * 16];
    int32_t label[20 * COUNT];
    struct dfcl_dataset *ds = open_set(at("pics"), false, 16, DFCL_OK, NULL);
    assert_int_equal(unlink(at("pics/b/05.png")), 0);
    assert_int_equal(dfcl_dataset_fetch(ds, 0, 20 * COUNT, x, label, &e), DFCL_IO);
    assert_non_null(strstr(e.msg, "05.png"));
    dfcl_dataset_close(&ds);
}

/* Another part of each picture every time it comes up, the same for the same sample; those held out keep the centre. */
static void random_crops(void **state) {
    (void)state;
    uint8_t px[12 * 6];
    for (int i = 0; i < 72; i++)
        px[i] = (uint8_t)(i % 12 * 20);
    assert_int_equal(dfcl_mkdirs(ctx, at("wide"), NULL), DFCL_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(dfcl_png_write(ctx, at("wide/%d.png", i), px, 12, 6, 1, NULL, NULL), DFCL_OK);
    struct dfcl_dataset_options o = {.path = at("wide"), .channels = 1, .side = 4, .random_crop = true, .seed = 5, .threads = 3, .val_fraction = 0.5};
    struct dfcl_dataset *ds;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, NULL), DFCL_OK);
    assert_false(dfcl_dataset_cached(ds));
    float x[40 * 16], again[16], held[16];
    uint8_t want[16];
    int32_t label[40];
    int other = 0;
    assert_int_equal(dfcl_dataset_fetch(ds, 0, 40, x, label, NULL), DFCL_OK);
    for (uint32_t g = 0; g < 40; g++) {
        struct dfcl_crop_draw d = {.seed = 5, .step = g, .sample = g}; /* one picture to train on: an epoch each */
        assert_int_equal(dfcl_random_crop(ctx, px, 12, 6, 1, 4, 4, &d, want, NULL), DFCL_OK);
        for (int k = 0; k < 16; k++)
            assert_true(x[g * 16 + (uint32_t)k] == (float)want[k] / 127.5f - 1.0f);
        other += memcmp(x, x + 16 * g, sizeof again) != 0;
    }
    assert_true(other > 20);
    assert_int_equal(dfcl_dataset_fetch(ds, 17, 1, again, label, NULL), DFCL_OK);
    assert_memory_equal(again, x + 17 * 16, sizeof again);
    assert_int_equal(dfcl_dataset_held_out(ds, 0, held, label, NULL), DFCL_OK);
    assert_int_equal(dfcl_center_crop(ctx, px, 12, 6, 1, 4, 4, want, NULL), DFCL_OK);
    for (int k = 0; k < 16; k++)
        assert_true(held[k] == (float)want[k] / 127.5f - 1.0f);
    dfcl_dataset_close(&ds);
}

static void decoding(void **state) {
    (void)state;
    uint8_t rgb[4 * 4 * 3], out[4 * 4 * 3];
    for (int i = 0; i < 48; i++)
        rgb[i] = (uint8_t)(i * 5);
    assert_int_equal(dfcl_png_write(ctx, at("rgb.png"), rgb, 4, 4, 3, NULL, NULL), DFCL_OK);
    assert_int_equal(dfcl_decode_picture(ctx, at("rgb.png"), 3, 4, 4, DFCL_ALPHA_WHITE, NULL, out, NULL), DFCL_OK);
    assert_memory_equal(rgb, out, 48);
    assert_int_equal(dfcl_decode_picture(ctx, at("rgb.png"), 1, 4, 4, DFCL_ALPHA_WHITE, NULL, out, NULL), DFCL_OK);
    for (int i = 0; i < 16; i++) /* ITU-R 601 luma */
        assert_true(fabs(out[i] - (0.299 * rgb[3 * i] + 0.587 * rgb[3 * i + 1] + 0.114 * rgb[3 * i + 2])) <= 1.0);
    /* a grey picture for a colour model */
    assert_int_equal(dfcl_decode_picture(ctx, at("pics/a/00.png"), 3, 4, 4, DFCL_ALPHA_WHITE, NULL, out, NULL), DFCL_OK);
    for (int i = 0; i < 48; i++)
        assert_int_equal(out[i], pixel(0, i / 3 % 4, i / 12));
}

static void latents(void **state) {
    (void)state;
    float z[32];
    uint16_t h[32];
    int64_t y;
    dfcl_error e;
    assert_int_equal(dfcl_mkdirs(ctx, at("lat/x_features"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("lat/x_labels"), NULL), DFCL_OK);
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 32; k++)
            h[k] = dfcl_f32_to_f16(z[k] = (float)(i * 100 + k) * 0.25f - 3.0f);
        y = 2 * i;
        if (i == 1)
            npy(at("lat/x_features/1.npy"), "<f2", "(2, 4, 4)", h, sizeof h);
        else
            npy(at("lat/x_features/%d.npy", i), "<f4", "(1, 2, 4, 4)", z, sizeof z);
        npy(at("lat/x_labels/%d.npy", i), "<i8", "(1,)", &y, sizeof y);
    }
    struct dfcl_dataset *ds;
    struct dfcl_dataset_options o = {.path = at("lat"), .channels = 2, .side = 4};
    for (int cached = 0; cached < 2; cached++) {
        o.cache_bytes = cached ? 0 : 1;
        assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_OK);
        assert_true(dfcl_dataset_is_latent(ds));
        assert_int_equal(dfcl_dataset_classes(ds), 5);
        assert_string_equal(dfcl_dataset_class_names(ds)[3], "3");
        float x[6 * 32];
        int32_t label[6];
        assert_int_equal(dfcl_dataset_fetch(ds, 0, 6, x, label, &e), DFCL_OK);
        for (int i = 0; i < 6; i++) {
            int item = (int)dfcl_dataset_item(ds, (uint64_t)i);
            assert_int_equal(label[i], 2 * item);
            for (int k = 0; k < 32; k++)
                assert_true(x[i * 32 + k] == (float)(item * 100 + k) * 0.25f - 3.0f);
        }
        dfcl_dataset_close(&ds);
    }
    /* no square: height before width */
    assert_int_equal(dfcl_mkdirs(ctx, at("wide/x_features"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("wide/x_labels"), NULL), DFCL_OK);
    npy(at("wide/x_features/0.npy"), "<f4", "(1, 2, 2, 8)", z, sizeof z);
    npy(at("wide/x_labels/0.npy"), "<i8", "(1,)", &y, sizeof y);
    struct dfcl_dataset_options wide = {.path = at("wide"), .channels = 2, .side = 2, .width = 8};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &wide, &e), DFCL_OK);
    float held[32];
    int32_t one;
    assert_int_equal(dfcl_dataset_fetch(ds, 0, 1, held, &one, &e), DFCL_OK);
    assert_memory_equal(held, z, sizeof held);
    dfcl_dataset_close(&ds);
    wide.side = 8;
    wide.width = 2;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &wide, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "[1, 2, 8, 2]"));
    o.path = at("lat"); /* its buffers take turns */
    o.flip = true;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_USAGE);
    o.flip = false;
    o.channels = 4;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "0.npy"));
    o.channels = 2;
    assert_int_equal(dfcl_file_write(ctx, at("lat/class_names.txt"), "a\nb\n", 4, NULL), DFCL_OK);
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT); /* labels 2 and 4 have no name */
    assert_non_null(strstr(e.msg, "x_labels/1.npy"));
    assert_int_equal(dfcl_file_write(ctx, at("lat/class_names.txt"), "a\nb\nc\nd\ne\nf\n", 12, NULL), DFCL_OK);
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_OK);
    assert_int_equal(dfcl_dataset_classes(ds), 6);
    assert_string_equal(dfcl_dataset_class_names(ds)[5], "f");
    dfcl_dataset_close(&ds);
    y = -1;
    npy(at("lat/x_labels/2.npy"), "<i8", "(1,)", &y, sizeof y);
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "x_labels/2.npy"));
    assert_int_equal(unlink(at("lat/x_labels/0.npy")), 0);
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pictures_cached_and_read_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(held_out, setup, teardown),
        cmocka_unit_test_setup_teardown(read_ahead_gives_way, setup, teardown),
        cmocka_unit_test_setup_teardown(fingerprint_follows_content, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_pictures, setup, teardown),
        cmocka_unit_test_setup_teardown(lost_picture, setup, teardown),
        cmocka_unit_test_setup_teardown(random_crops, setup, teardown),
        cmocka_unit_test_setup_teardown(decoding, setup, teardown),
        cmocka_unit_test_setup_teardown(latents, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
