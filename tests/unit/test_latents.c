/* data/latents: the cache written, cut short, gone on with, changed; what training draws from it; broken indexes. */
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
#include "base/philox.h"
#include "data/dataset.h"
#include "data/latents.h"

enum { C = 2, S = 3, N = C * S * S, COUNT = 9, SUMS = 6 + 9 + 3 };

static dfcl_context *ctx;
static char root[64];

static const char *at(const char *name) {
    static char buf[4][256];
    static int next;
    char *b = buf[next++ % 4];
    snprintf(b, 256, "%s/%s", root, name);
    return b;
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/dfcl-latents-XXXXXX");
    return !mkdtemp(root) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

#define OK(call)                                         \
    do {                                                 \
        dfcl_error e_ = {0};                             \
        dfcl_error *err = &e_;                           \
        if ((call) != DFCL_OK)                           \
            fail_msg("%s: %s", #call, e_.msg);           \
    } while (0)

static struct dfcl_latents_settings settings(void) {
    struct dfcl_latents_settings s = {.scale = 0.18215, .shift = 0.25, .size = 24, .channels = C, .side = S, .flips = true, .type = DFCL_F32};
    memset(s.vae, 'a', 64);
    return s;
}

/* Picture i of the set: name, state of its file, moments. */
static const char *const names[COUNT] = {"b/1.png", "a/z.png", "b/0.png", "a/deep/\xc3\xbc.png", "b/9.png", "a/0.png", "b/x.png", "b/5.png", "a/7.png"};
static struct dfcl_latents_source source(int i, int version) {
    struct dfcl_latents_source s = {.name = names[i], .bytes = 100 + i, .mtime = ((int64_t)1 << 60) + i + 1000 * version};
    memset(s.sha256, i + 16 * version, 32);
    return s;
}
static void moments(int i, int version, float *out) {
    for (int k = 0; k < 4 * N; k++)
        out[k] = (float)(i + 100 * version) + (float)k / 64.0f - 3.0f;
}
/* What the linear approximation goes by: colours that are a third, the square and the sine of something. */
static void sums(int i, int version, double *out) {
    float m[4 * N], rgb[3 * S * S];
    const struct dfcl_latents_settings st = settings();
    moments(i, version, m);
    for (int p = 0; p < S * S; p++) {
        rgb[p] = m[p] / 3.0f;
        rgb[S * S + p] = 0.01f * m[p] * m[S * S + p];
        rgb[2 * S * S + p] = sinf(m[p]);
    }
    dfcl_latent_rgb_picture(C, S * S, m, st.scale, st.shift, rgb, out);
}
static void add(struct dfcl_latents_writer *w, int i, int version) {
    float m[4 * N];
    struct dfcl_latents_source s = source(i, version);
    moments(i, version, m);
    double rgb[SUMS];
    sums(i, version, rgb);
    s.rgb = rgb;
    OK(dfcl_latents_writer_add(w, &s, m, err));
}
static bool keep(struct dfcl_latents_writer *w, int i, int version, bool with_hash) {
    struct dfcl_latents_source s = source(i, version);
    return dfcl_latents_writer_keep(w, &s, with_hash);
}
/* The set is the pictures of the mask. */
static void finish(struct dfcl_latents_writer **w, unsigned mask) {
    struct dfcl_list classes = {0};
    const char *name[COUNT];
    int label[COUNT], n = 0;
    OK(dfcl_list_add(ctx, &classes, "a", err));
    OK(dfcl_list_add(ctx, &classes, "b \"quoted\"", err));
    for (int i = 0; i < COUNT; i++)
        if (mask >> i & 1) {
            name[n] = names[i];
            label[n++] = names[i][0] == 'b';
        }
    OK(dfcl_latents_writer_finish(*w, "pictures", &classes, name, label, (size_t)n, 3, err));
    dfcl_latents_writer_close(w);
    dfcl_list_free(ctx, &classes);
}
static struct dfcl_latents_writer *open_writer(const char *name) {
    struct dfcl_latents_writer *w;
    struct dfcl_latents_settings st = settings();
    OK(dfcl_latents_writer_open(&w, ctx, at(name), &st, 0, err));
    return w;
}
static void write_all(const char *name) {
    struct dfcl_latents_writer *w = open_writer(name);
    for (int i = 0; i < COUNT; i++)
        add(w, i, 0);
    finish(&w, (1 << COUNT) - 1);
}
static size_t entries(const char *name) {
    struct dfcl_list list;
    OK(dfcl_list_dir(ctx, at(name), &list, err));
    size_t n = list.count;
    dfcl_list_free(ctx, &list);
    return n;
}
/* Every picture of the mask is there, in order, with the moments of its version (bit of `changed`). */
static void check(const char *name, unsigned mask, unsigned changed, char *fingerprint) {
    struct dfcl_latents *l;
    OK(dfcl_latents_open(&l, ctx, at(name), err));
    struct dfcl_latents_view v = dfcl_latents_get(l);
    assert_int_equal(v.count, __builtin_popcount(mask));
    assert_int_equal(v.skipped, 3);
    assert_string_equal(v.classes->names[1], "b \"quoted\"");
    struct dfcl_latents_settings want = settings();
    OK(dfcl_latents_settings_same(&want, &v.settings, "index", err));
    for (size_t k = 0; k < v.count; k++) {
        int i = 0;
        while (strcmp(names[i], v.items[k].name))
            i++;
        assert_true(mask >> i & 1);
        assert_int_equal(v.items[k].label, names[i][0] == 'b');
        if (k)
            assert_true(v.items[k - 1].label < v.items[k].label || strcmp(v.items[k - 1].name, v.items[k].name) < 0);
        float m[4 * N], got[2 * N];
        moments(i, changed >> i & 1, m);
        for (int flip = 0; flip < 2; flip++) {
            OK(dfcl_latents_read(l, k, flip, got, err));
            assert_memory_equal(got, m + flip * 2 * N, sizeof got);
        }
    }
    if (fingerprint)
        strcpy(fingerprint, v.fingerprint);
    /* The approximation is that of the set's pictures in the order that finish() gave, to the 9 digits of the index. */
    double all[SUMS] = {0}, one[SUMS];
    for (int i = 0; i < COUNT; i++) {
        sums(i, changed >> i & 1, one);
        for (int k = 0; k < SUMS && mask >> i & 1; k++)
            all[k] += one[k];
    }
    struct dfcl_latent_rgb fitted, read;
    struct dfcl_text t = {.ctx = ctx};
    dfcl_latent_rgb_fit(C, all, &fitted);
    dfcl_latent_rgb_text(&t, &fitted);
    assert_int_equal(fitted.channels, C);
    OK(dfcl_latent_rgb_parse(t.s, "text", &fitted, err));
    assert_memory_equal(&fitted, v.rgb, sizeof fitted);
    OK(dfcl_latent_rgb_read(ctx, at(name), &read, err));
    assert_memory_equal(&fitted, &read, sizeof fitted);
    dfcl_text_finish(&t);
    dfcl_latents_close(&l);
}

static void written_and_cut_short(void **state) {
    (void)state;
    char whole[65], pieces[65];
    write_all("whole");
    check("whole", (1 << COUNT) - 1, 0, whole);
    /* in three goes, the second and third of which find what was done; one begins with a file that a killed process left */
    for (int from = 0; from < COUNT; from += 3) {
        struct dfcl_latents_writer *w = open_writer("pieces");
        for (int i = 0; i < from; i++)
            assert_true(keep(w, i, 0, false));
        for (int i = from; i < from + 3; i++) {
            assert_false(keep(w, i, 0, false));
            assert_false(keep(w, i, 0, true));
            add(w, i, 0);
        }
        if (from == 6) {
            finish(&w, (1 << COUNT) - 1);
            break;
        }
        OK(dfcl_latents_writer_flush(w, err));
        dfcl_latents_writer_close(&w);
        OK(dfcl_file_write(ctx, at("pieces/shard-000007.safetensors.tmp-12"), "cut", 3, err));
        struct dfcl_latents *l;
        dfcl_error e = {0};
        assert_true(dfcl_latents_here(at("pieces")));
        assert_int_equal(dfcl_latents_open(&l, ctx, at("pieces"), &e), DFCL_FORMAT);
        assert_non_null(strstr(e.msg, "not finished"));
    }
    assert_int_equal(entries("pieces"), 3 + 2); /* shards, index, lock */
    check("pieces", (1 << COUNT) - 1, 0, pieces);
    assert_string_equal(whole, pieces);
}

static void changed(void **state) {
    (void)state;
    char before[65], after[65];
    write_all("set");
    check("set", 0x1ff, 0, before);
    /* touched only: the hash says so */
    struct dfcl_latents_writer *w = open_writer("set");
    for (int i = 0; i < COUNT; i++) {
        struct dfcl_latents_source s = source(i, 0);
        s.mtime++;
        assert_false(dfcl_latents_writer_keep(w, &s, false));
        assert_true(dfcl_latents_writer_keep(w, &s, true));
    }
    finish(&w, 0x1ff);
    check("set", 0x1ff, 0, after);
    assert_string_equal(before, after);
    assert_int_equal(entries("set"), 3);
    /* 2 and 4 changed, 8 gone: those of the old shard that stay are the most, so it stays */
    w = open_writer("set");
    for (int i = 0; i < 8; i++) {
        assert_int_equal(keep(w, i, i == 2 || i == 4, false), i != 2 && i != 4);
        if (i == 2 || i == 4)
            add(w, i, 1);
    }
    finish(&w, 0xff);
    check("set", 0xff, 1 << 2 | 1 << 4, after);
    assert_string_not_equal(before, after);
    assert_int_equal(entries("set"), 4);
    /* as it was again: the rows are still there */
    w = open_writer("set");
    for (int i = 0; i < COUNT; i++)
        assert_true(keep(w, i, 0, false));
    finish(&w, 0x1ff);
    check("set", 0x1ff, 0, after);
    assert_string_equal(before, after);
    assert_int_equal(entries("set"), 3);
    /* two are left: they move to a new shard, the old one goes */
    w = open_writer("set");
    assert_true(keep(w, 1, 0, false) && keep(w, 6, 0, false));
    finish(&w, 1 << 1 | 1 << 6);
    check("set", 1 << 1 | 1 << 6, 0, NULL);
    assert_int_equal(entries("set"), 3);
    assert_int_equal(dfcl_path_kind(at("set/shard-000000.safetensors")), DFCL_PATH_NONE);
}

static void refused(void **state) {
    (void)state;
    dfcl_error e = {0};
    struct dfcl_latents_writer *w, *other;
    struct dfcl_latents_settings st = settings();
    write_all("set");
    st.vae[3] = 'b';
    assert_int_equal(dfcl_latents_writer_open(&w, ctx, at("set"), &st, 0, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "another VAE"));
    st = settings();
    st.size = 48;
    assert_int_equal(dfcl_latents_writer_open(&w, ctx, at("set"), &st, 0, &e), DFCL_FORMAT);
    st = settings();
    st.random_crop = true;
    assert_int_equal(dfcl_latents_writer_open(&w, ctx, at("set"), &st, 0, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "crop"));
    check("set", 0x1ff, 0, NULL);
    st = settings();
    OK(dfcl_mkdirs(ctx, at("mine"), err));
    OK(dfcl_file_write(ctx, at("mine/thesis.txt"), "x", 1, err));
    assert_int_equal(dfcl_latents_writer_open(&w, ctx, at("mine"), &st, 0, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "thesis.txt"));
    assert_int_equal(entries("mine"), 1);
    w = open_writer("set");
    assert_int_equal(dfcl_latents_writer_open(&other, ctx, at("set"), &st, 0, &e), DFCL_ERROR);
    assert_non_null(strstr(e.msg, "another process"));
    float m[4 * N] = {0};
    assert_int_equal(dfcl_latents_writer_add(w, &(struct dfcl_latents_source){.name = "a/\xff.png"}, m, &e), DFCL_FORMAT);
    dfcl_latents_writer_close(&w);
}

static void half_precision(void **state) {
    (void)state;
    struct dfcl_latents_writer *w;
    struct dfcl_latents_settings st = settings();
    st.type = DFCL_F16;
    st.flips = false;
    OK(dfcl_latents_writer_open(&w, ctx, at("half"), &st, 0, err));
    float m[2 * N], got[2 * N];
    for (int k = 0; k < 2 * N; k++)
        m[k] = (float)k / 7.0f - 2.0f;
    struct dfcl_latents_source s = source(1, 0);
    OK(dfcl_latents_writer_add(w, &s, m, err));
    finish(&w, 1 << 1);
    struct dfcl_latents *l;
    OK(dfcl_latents_open(&l, ctx, at("half"), err));
    OK(dfcl_latents_read(l, 0, false, got, err));
    bool equal = true;
    for (int k = 0; k < 2 * N; k++) {
        assert_true(fabsf(got[k] - m[k]) <= fabsf(m[k]) / 2048.0f);
        equal = equal && got[k] == m[k];
    }
    assert_false(equal);
    assert_int_equal(dfcl_latents_get(l).rgb->channels, 0); /* no sums came with the row */
    dfcl_latents_close(&l);
}

/* What training sees: scale * (mean + std * noise - shift) with the noise of (seed, LATENT, step, sample). */
static void drawn(void **state) {
    (void)state;
    write_all("set");
    char path[128];
    strcpy(path, at("set"));
    float first[40 * N];
    for (int cached = 0; cached < 2; cached++) {
        struct dfcl_dataset_options o = {.path = path, .channels = C, .side = S, .flip = true, .seed = 11, .batch = 4, .val_fraction = 0.3,
                                         .cache_bytes = cached ? 0 : 16};
        struct dfcl_dataset *ds;
        OK(dfcl_dataset_open(&ds, ctx, &o, err));
        assert_true(dfcl_dataset_is_latent(ds));
        assert_int_equal(dfcl_dataset_cached(ds), cached);
        assert_int_equal(dfcl_dataset_classes(ds), 2);
        assert_int_equal(dfcl_dataset_held_out_count(ds), 1 + 2); /* of 4 and 5 */
        float x[40 * N], noise[N], m[4 * N];
        int32_t label[40];
        int flips = 0;
        OK(dfcl_dataset_fetch(ds, 0, 40, x, label, err));
        struct dfcl_latents *l;
        OK(dfcl_latents_open(&l, ctx, path, err));
        for (uint32_t g = 0; g < 40; g++) {
            const struct dfcl_latents_item *it = &dfcl_latents_get(l).items[dfcl_dataset_item(ds, g)];
            assert_int_equal(label[g], it->label);
            int i = 0;
            while (strcmp(names[i], it->name))
                i++;
            moments(i, 0, m);
            bool flip = dfcl_uniform(11, DFCL_STREAM_FLIP, g / 6, g, 0) <= 0.5f;
            flips += flip;
            dfcl_normals(11, DFCL_STREAM_LATENT, g / 4, g, noise, N);
            for (int k = 0; k < N; k++) {
                double mean = m[flip * 2 * N + k], std = exp(0.5 * m[flip * 2 * N + N + k]), want = 0.18215 * (mean + std * noise[k] - 0.25);
                assert_true(fabs(x[g * N + (uint32_t)k] - want) <= 1e-5 * (fabs(want) + 1));
            }
        }
        assert_true(flips > 8 && flips < 32);
        if (cached)
            assert_memory_equal(x, first, sizeof x);
        memcpy(first, x, sizeof x);
        float again[N], held[N], twice[N];
        OK(dfcl_dataset_fetch(ds, 23, 1, again, label, err)); /* any place, the same bits */
        assert_memory_equal(again, x + 23 * N, sizeof again);
        OK(dfcl_dataset_held_out(ds, 1, held, label, err));
        OK(dfcl_dataset_held_out(ds, 1, twice, label, err));
        assert_memory_equal(held, twice, sizeof held);
        dfcl_latents_close(&l);
        dfcl_dataset_close(&ds);
    }
    /* The same moments in memory: the same bits. */
    struct dfcl_latents *l;
    static float part[4][COUNT * N], x[40 * N], held[3 * N], want[3 * N];
    int32_t labels[COUNT], label[40];
    OK(dfcl_latents_open(&l, ctx, path, err));
    for (size_t i = 0; i < COUNT; i++) {
        labels[i] = dfcl_latents_get(l).items[i].label;
        for (int flip = 0; flip < 2; flip++) {
            float m[2 * N];
            OK(dfcl_latents_read(l, i, flip, m, err));
            memcpy(&part[2 * flip][i * N], m, N * sizeof *m);
            memcpy(&part[2 * flip + 1][i * N], m + N, N * sizeof *m);
        }
    }
    dfcl_latents_close(&l);
    struct dfcl_train_arrays arrays = {.type = DFCL_ARRAY_MOMENTS, .count = COUNT, .channels = C, .side = S, .data = part[0], .logvar = part[1],
                                       .flip_mean = part[2], .flip_logvar = part[3], .shift = 0.25, .labels = labels};
    for (int memory = 0; memory < 2; memory++) {
        struct dfcl_dataset_options mo = {.path = memory ? NULL : path, .arrays = memory ? &arrays : NULL, .channels = C, .side = S, .flip = true, .seed = 11,
                                          .batch = 4, .val_fraction = 0.3};
        struct dfcl_dataset *set;
        OK(dfcl_dataset_open(&set, ctx, &mo, err));
        OK(dfcl_dataset_fetch(set, 0, 40, x, label, err));
        assert_memory_equal(x, first, sizeof x);
        for (int i = 0; i < 3; i++)
            OK(dfcl_dataset_held_out(set, i, (memory ? held : want) + i * N, label, err));
        dfcl_dataset_close(&set);
    }
    assert_memory_equal(held, want, sizeof want);
    struct dfcl_dataset *ds;
    dfcl_error e = {0};
    char hash[65];
    strcpy(hash, settings().vae);
    struct dfcl_dataset_options o = {.path = path, .channels = C, .side = S, .vae_hash = hash};
    OK(dfcl_dataset_open(&ds, ctx, &o, err));
    dfcl_dataset_close(&ds);
    hash[0] = 'b';
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "another VAE"));
    o = (struct dfcl_dataset_options){.path = path, .channels = C, .side = 2 * S};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "2 x 6 x 6"));
    o = (struct dfcl_dataset_options){.path = path, .channels = C, .side = S, .skip_bad = true};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_USAGE);
}

static void broken(void **state) {
    (void)state;
    write_all("set");
    char *text;
    size_t size;
    OK(dfcl_file_read(ctx, at("set/index.json"), 1 << 20, &text, &size, err));
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"latents 1", "latents 2", "latents 2"},
        {"\"vae\":\"aa", "\"vae\":\"a", "64 hexadecimal"},
        {"\"size\":24", "\"size\":25", "expected pictures of 25"},
        {"\"side\":3", "\"side\":1e9", "side: expected a whole number"},
        {"\"scale\":", "\"scole\":", "scale: expected a number"},
        {"\"crop\":\"center\"", "\"crop\":\"middle\"", "crop: expected center, random"},
        {"\"flip\":true", "\"flip\":false", "without mirror images"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"I8\"", "dtype"},
        {"\"weight\":[[", "\"weight\":[[1,", "latent_rgb"},
        {"\"weight\":[[", "\"weight\":[[null],[", "latent_rgb"},
        {"\"rgb\":{", "\"rgb\":{\"rms\":-1,", "latent_rgb"},
        {"\"rgb\":{", "\"rgb\":{\"weight\":[[1],[1],[1]],", "expected weights for 2 channels, found 1"},
        {"\"classes\":[", "\"classes\":7,\"x\":[", "classes: expected"},
        {"\"skipped\":3", "\"skipped\":-3", "skipped"},
        {"shard-000000", "../../etc/shard-000000", "shards: expected"},
        {"shard-000000", "shard-/../000000", "shards: expected"},
        {"shard-000000", "shard-000001", "shard-000001.safetensors: cannot open"},
        {"\"labels\":[1,", "\"labels\":[", "expected 9 labels"},
        {"\"labels\":[1,", "\"labels\":[2,", "label 0"},
        {"\"labels\":[1,", "\"labels\":[0.5,", "label 0"},
        {"\"labels\":[1,0,1,0,1,0,1,1,0]", "\"labels\":[-1,-1,-1,-1,-1,-1,-1,-1,-1]", "holds no latents"},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        char now[4096];
        const char *found = strstr(text, cases[i].from);
        if (!found)
            fail_msg("case %zu: no %s in the index", i, cases[i].from);
        snprintf(now, sizeof now, "%.*s%s%s", (int)(found - text), text, cases[i].to, found + strlen(cases[i].from));
        OK(dfcl_file_write(ctx, at("set/index.json"), now, strlen(now), err));
        struct dfcl_latents *l;
        dfcl_error e = {0};
        dfcl_status s = dfcl_latents_open(&l, ctx, at("set"), &e);
        if ((s != DFCL_FORMAT && s != DFCL_IO) || l || !strstr(e.msg, cases[i].says) || !strstr(e.msg, root))
            fail_msg("case %zu: status %d, \"%s\", expected \"%s\"", i, s, e.msg, cases[i].says);
    }
    for (size_t k = 0; k < size - 2; k += 7) { /* cut anywhere */
        struct dfcl_latents *l;
        OK(dfcl_file_write(ctx, at("set/index.json"), text, k, err));
        assert_int_equal(dfcl_latents_open(&l, ctx, at("set"), NULL), DFCL_FORMAT);
    }
    /* values that are no numbers are named by shard and picture */
    struct dfcl_latents_writer *w = open_writer("nan");
    float m[4 * N] = {0};
    m[5] = NAN;
    struct dfcl_latents_source s = source(1, 0);
    OK(dfcl_latents_writer_add(w, &s, m, err));
    finish(&w, 1 << 1);
    struct dfcl_dataset *ds;
    dfcl_error e = {0};
    char path[128];
    strcpy(path, at("nan"));
    struct dfcl_dataset_options o = {.path = path, .channels = C, .side = S};
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "a/z.png"));
    dfcl_free(ctx, text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(written_and_cut_short, setup, teardown),
        cmocka_unit_test_setup_teardown(changed, setup, teardown),
        cmocka_unit_test_setup_teardown(refused, setup, teardown),
        cmocka_unit_test_setup_teardown(half_precision, setup, teardown),
        cmocka_unit_test_setup_teardown(drawn, setup, teardown),
        cmocka_unit_test_setup_teardown(broken, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
