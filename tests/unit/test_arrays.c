/* Training data in the caller's memory: the samples of the same pictures in a folder, bit by bit; what is refused; the fingerprint. Moments: test_latents.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "data/dataset.h"

#include <difffit-cl/dfcl.h>

enum { COUNT = 11, SIDE = 6, CH = 3, N = CH * SIDE * SIDE, FIRST = 4 /* of class a */ };

static dfcl_context *ctx;
static char root[64];
static uint8_t pixels[COUNT][SIDE][SIDE][CH];
static int32_t labels[COUNT];
static const char *const names[] = {"a", "b \xc3\xbc"};

/* The folder of a class, and a picture in it. */
static const char *class_path(int c) {
    static char buf[128];
    snprintf(buf, sizeof buf, "%s/pics/%s", root, names[c]);
    return buf;
}
static const char *picture_path(int i) {
    static char buf[160];
    snprintf(buf, sizeof buf, "%s/%02d.png", class_path(labels[i]), i);
    return buf;
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/dfcl-arrays-XXXXXX");
    if (!mkdtemp(root) || dfcl_context_create(&ctx, NULL, NULL))
        return 1;
    for (int c = 0; c < 2; c++)
        assert_int_equal(dfcl_mkdirs(ctx, class_path(c), NULL), DFCL_OK);
    for (int i = 0; i < COUNT; i++) {
        uint8_t *p = &pixels[i][0][0][0];
        for (int k = 0; k < N; k++)
            p[k] = (uint8_t)(37 * i + 11 * k + k * k);
        labels[i] = i >= FIRST;
        assert_int_equal(dfcl_png_write(ctx, picture_path(i), p, SIDE, SIDE, CH, NULL, NULL), DFCL_OK);
    }
    return 0;
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static struct dfcl_train_arrays bytes(void) {
    return (struct dfcl_train_arrays){.count = COUNT, .channels = CH, .side = SIDE, .data = pixels, .labels = labels, .class_count = 2, .class_names = names};
}

static struct dfcl_dataset_options options(const struct dfcl_train_arrays *a) {
    return (struct dfcl_dataset_options){.arrays = a, .channels = CH, .side = SIDE, .flip = true, .seed = 7, .val_fraction = 0.3};
}

static struct dfcl_dataset *open_set(const struct dfcl_dataset_options *o) {
    struct dfcl_dataset *ds;
    dfcl_error e = {0};
    if (dfcl_dataset_open(&ds, ctx, o, &e))
        fail_msg("%s", e.msg);
    return ds;
}

enum { DRAWN = 3 * COUNT };

static void draw(struct dfcl_dataset *ds, float *x, int32_t *label, float *held) {
    assert_int_equal(dfcl_dataset_held_out_count(ds), 1 + 2); /* of 4 and 7 */
    assert_int_equal(dfcl_dataset_count(ds), COUNT - 3);
    assert_int_equal(dfcl_dataset_fetch(ds, 0, 20, x, label, NULL), DFCL_OK);
    assert_int_equal(dfcl_dataset_fetch(ds, 20, DRAWN - 20, x + 20 * N, label + 20, NULL), DFCL_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(dfcl_dataset_held_out(ds, i, held + i * N, label + DRAWN + i, NULL), DFCL_OK);
}

/* Bytes and floats, mirrored and not, to train on and held out: as decoded from the folder. The small things may go once the set is open. */
static void same_as_a_folder(void **state) {
    (void)state;
    static float want[DRAWN * N], got[DRAWN * N], held[3 * N], held_too[3 * N];
    int32_t label[DRAWN + 3], label_too[DRAWN + 3];
    struct dfcl_dataset_options o = options(NULL);
    char folder[128];
    snprintf(folder, sizeof folder, "%s/pics", root);
    o.path = folder;
    struct dfcl_dataset *ds = open_set(&o);
    draw(ds, want, label, held);
    dfcl_dataset_close(&ds);
    struct dfcl_pictures pics;
    assert_int_equal(dfcl_pictures_read(ctx, folder, CH, SIDE, SIDE, &pics, NULL), DFCL_OK);
    for (int floats = 0; floats < 2; floats++) {
        struct dfcl_train_arrays *a = malloc(sizeof *a);
        int32_t *own = malloc(sizeof labels);
        assert_true(a && own);
        *a = bytes();
        memcpy(own, floats ? pics.labels : labels, sizeof labels);
        a->labels = own;
        if (floats) {
            a->type = DFCL_ARRAY_PICTURES_F32;
            a->data = pics.data;
            a->class_names = (const char *const *)pics.class_names;
            a->class_count = pics.class_count;
        }
        o = options(a);
        ds = open_set(&o);
        memset(own, 0xff, sizeof labels);
        free(own);
        memset(a, 0xff, sizeof *a);
        free(a);
        assert_true(dfcl_dataset_in_arrays(ds) && !dfcl_dataset_is_latent(ds) && !dfcl_dataset_cached(ds));
        assert_int_equal(dfcl_dataset_classes(ds), 2);
        assert_string_equal(dfcl_dataset_class_names(ds)[1], names[1]);
        draw(ds, got, label_too, held_too);
        assert_memory_equal(got, want, sizeof want);
        assert_memory_equal(held_too, held, sizeof held);
        assert_memory_equal(label_too, label, sizeof label);
        dfcl_dataset_close(&ds);
    }
    dfcl_pictures_free(ctx, &pics);
}

static void latents(void **state) {
    (void)state;
    static float z[COUNT * 4 * 9], x[COUNT * 4 * 9];
    int32_t label[COUNT];
    for (size_t i = 0; i < DFCL_COUNT(z); i++)
        z[i] = (float)i * 0.25f - 30.0f;
    struct dfcl_train_arrays a = {.type = DFCL_ARRAY_LATENTS, .count = COUNT, .channels = 4, .side = 3, .data = z, .labels = labels};
    struct dfcl_dataset_options o = {.arrays = &a, .channels = 4, .side = 3, .seed = 3};
    struct dfcl_dataset *ds = open_set(&o);
    assert_true(dfcl_dataset_is_latent(ds));
    assert_int_equal(dfcl_dataset_classes(ds), 2);
    assert_string_equal(dfcl_dataset_class_names(ds)[1], "1");
    assert_int_equal(dfcl_dataset_fetch(ds, 0, COUNT, x, label, NULL), DFCL_OK);
    for (int i = 0; i < COUNT; i++) {
        int64_t item = dfcl_dataset_item(ds, (uint64_t)i);
        assert_memory_equal(x + i * 36, z + item * 36, 36 * sizeof *x);
        assert_int_equal(label[i], labels[item]);
    }
    dfcl_dataset_close(&ds);
    a.labels = NULL; /* one class */
    ds = open_set(&o);
    assert_int_equal(dfcl_dataset_classes(ds), 1);
    dfcl_dataset_close(&ds);
    a.class_count = 9; /* most of them without samples */
    ds = open_set(&o);
    assert_int_equal(dfcl_dataset_classes(ds), 9);
    assert_string_equal(dfcl_dataset_class_names(ds)[8], "8");
    dfcl_dataset_close(&ds);
    dfcl_error e;
    o.flip = true;
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "mirrored"));
}

static void refused(const struct dfcl_dataset_options *o, dfcl_status want, const char *word) {
    struct dfcl_dataset *ds = NULL;
    dfcl_error e = {0};
    dfcl_status s = dfcl_dataset_open(&ds, ctx, o, &e);
    if (s != want || e.status != want || ds || !strstr(e.msg, word))
        fail_msg("expected status %d and \"%s\", found %d: %s", want, word, s, e.msg);
}

static void refusals(void **state) {
    (void)state;
    static float x[COUNT * N];
    struct dfcl_train_arrays a = bytes(), good = a;
    struct dfcl_dataset_options o = options(&a);
#define REFUSE(change, status, word) \
    do { \
        a = good; \
        change; \
        refused(&o, status, word); \
    } while (0)
    static const char *const bad_names[] = {"a", "b\n"}, *const no_names[] = {"a", NULL}, *const raw_names[] = {"\xff", "b"};
    static const int32_t below[COUNT] = {0, -1}, above[COUNT] = {0, 0, 2}, huge[COUNT] = {100000};
    REFUSE(a.count = 0, DFCL_USAGE, "found 0");
    REFUSE(a.count = (int64_t)1 << 31, DFCL_USAGE, "found 2147483648");
    REFUSE(a.data = NULL, DFCL_USAGE, "data, found NULL");
    REFUSE(a.type = (enum dfcl_array_type)9, DFCL_USAGE, "found 9");
    REFUSE(a.side = 7, DFCL_USAGE, "3 x 6 x 6, found samples of 3 x 7 x 7");
    REFUSE(a.channels = 1, DFCL_USAGE, "found samples of 1 x 6 x 6");
    REFUSE(a.labels = below, DFCL_USAGE, "label of sample 1: expected 0 to 1, found -1");
    REFUSE(a.labels = above, DFCL_USAGE, "label of sample 2: expected 0 to 1, found 2");
    REFUSE((a.labels = huge, a.class_names = NULL, a.class_count = 0), DFCL_USAGE, "found 100000");
    REFUSE(a.class_count = 0, DFCL_USAGE, "expected 1 to 100000 classes, found 0");
    REFUSE((a.class_count = 100001, a.class_names = NULL), DFCL_USAGE, "found 100001");
    REFUSE(a.class_names = bad_names, DFCL_USAGE, "name of class 1");
    REFUSE(a.class_names = no_names, DFCL_USAGE, "name of class 1");
    REFUSE(a.class_names = raw_names, DFCL_USAGE, "name of class 0");
    REFUSE(a.logvar = x, DFCL_USAGE, "moments only");
    REFUSE(a.scale = 1, DFCL_USAGE, "moments only");
    good.type = DFCL_ARRAY_PICTURES_F32;
    good.data = x;
    x[3 * N + 5] = 1.5f;
    REFUSE((void)0, DFCL_USAGE, "value 5 of sample 3 is 1.5");
    x[3 * N + 5] = -1.0f;
    x[4 * N] = NAN;
    REFUSE((void)0, DFCL_NONFINITE, "value 0 of sample 4 in data is nan");
    x[4 * N] = 1.0f;
    good.type = DFCL_ARRAY_MOMENTS;
    REFUSE((void)0, DFCL_USAGE, "log-variances, found NULL");
    good.logvar = x;
    REFUSE((void)0, DFCL_USAGE, "without the latents of mirrored pictures");
    REFUSE(a.flip_mean = x, DFCL_USAGE, "both flip_mean and flip_logvar");
    REFUSE(a.scale = -1, DFCL_USAGE, "scale above 0");
    static float inf[COUNT * N];
    inf[COUNT * N - 1] = INFINITY;
    REFUSE(a.logvar = inf, DFCL_NONFINITE, "sample 10 in logvar is inf");
    REFUSE((a.flip_mean = x, a.flip_logvar = inf), DFCL_NONFINITE, "sample 10 in flip_logvar is inf");
#undef REFUSE
    a = bytes();
    o.random_crop = true;
    refused(&o, DFCL_USAGE, "crop");
    o = options(&a);
    o.alpha = DFCL_ALPHA_DROP;
    refused(&o, DFCL_USAGE, "alpha");
    o = options(&a);
    o.skip_bad = true;
    refused(&o, DFCL_USAGE, "skip_bad");
    o = options(&a);
    o.path = root;
    refused(&o, DFCL_USAGE, "a folder or arrays");
    a.channels = o.channels = 4; /* pictures for a latent model */
    a.count = 1;
    o.path = NULL;
    refused(&o, DFCL_USAGE, "encode them first");
}

/* The values tell, not where they lie. */
static void fingerprint(void **state) {
    (void)state;
    static uint8_t copy[sizeof pixels];
    char first[65];
    struct dfcl_train_arrays a = bytes();
    struct dfcl_dataset_options o = options(&a);
    struct dfcl_dataset *ds = open_set(&o);
    strcpy(first, dfcl_dataset_fingerprint(ds));
    dfcl_dataset_close(&ds);
    memcpy(copy, pixels, sizeof copy);
    for (int change = 0; change < 5; change++) {
        static const char *const renamed[] = {"a", "c"};
        int32_t other[COUNT];
        memcpy(other, labels, sizeof other);
        a = bytes();
        a.data = copy;
        a.labels = other;
        copy[sizeof copy - 1] ^= change == 1;
        other[COUNT - 1] = change == 2 ? 0 : other[COUNT - 1];
        if (change == 3)
            a.class_names = renamed;
        if (change == 4)
            a.count--;
        ds = open_set(&o);
        assert_int_equal(!strcmp(first, dfcl_dataset_fingerprint(ds)), change == 0);
        dfcl_dataset_close(&ds);
        copy[sizeof copy - 1] ^= change == 1;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_a_folder),
        cmocka_unit_test(latents),
        cmocka_unit_test(refusals),
        cmocka_unit_test(fingerprint),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
