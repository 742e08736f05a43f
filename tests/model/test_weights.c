/* Frozen matrices held in 16 bits, and read in place: a model with rounded weights is the model of a file that was rounded beforehand. */
#include "golden.h"

#include <unistd.h>

#include "base/file.h"
#include "formats/tensor_file.h"
#include "methods/method.h"
#include "models/packed.h"

static char dir[64];
static struct dfcl_model_params base;
static bool native; /* the device has products of bf16 */

static const char *tmp_path(const char *name) {
    static char buf[8][128];
    static int next;
    char *p = buf[next++ % 8];
    snprintf(p, sizeof buf[0], "%s/%s", dir, name);
    return p;
}

/* ---- one pass of a model ---- */

struct result {
    float *out, *grads;
    size_t out_n, grad_n;
    int mapped; /* matrices read in place */
    char hash[65];
};
static void drop(struct result *r) {
    free(r->out);
    free(r->grads);
}

enum { B = 2 };

/* Forward, and for the method "difffit" backward, of two samples. */
static struct result run(const char *path, enum dfcl_weight_type weights, enum dfcl_packing pack, bool train) {
    dfcl_error err = {0};
    struct dfcl_model_params p = {.path = path, .heads = base.heads, .weights = weights, .pack = pack, .activations = base.activations};
    struct dfcl_method_config c = {.method = "difffit"};
    dfcl_model *m;
    ok(train ? dfcl_method_open(&m, dev, &p, &c, &err) : dfcl_model_open(&m, dev, &p, &err), &err);
    struct dfcl_dit *dit = dfcl_model_dit(m);
    const struct dfcl_model_shape *sh = dfcl_model_get_shape(m);
    size_t img = B * (size_t)sh->channels * (size_t)sh->input * (size_t)sh->input;
    struct result r = {.out = malloc(img * 8), .out_n = img * 2};
    float *x = malloc(img * 8);
    assert_true(x && r.out);
    for (size_t i = 0; i < 2 * img; i++)
        x[i] = (float)((i * 37 + i / 11) % 101) / 50 - 1;
    struct dfcl_mem *mx, *mo, *md;
    ok(dfcl_mem_create(dev, img * 4, "x", &mx, &err), &err);
    ok(dfcl_mem_create(dev, img * 8, "out", &mo, &err), &err);
    ok(dfcl_mem_create(dev, img * 8, "dout", &md, &err), &err);
    ok(dfcl_write(dev, (struct dfcl_ref){mx, 0}, x, img * 4, &err), &err);
    ok(dfcl_write(dev, (struct dfcl_ref){md, 0}, x, img * 8, &err), &err);
    struct dfcl_dit_batch b = {.B = B, .t = (float[]){17, 803}, .rows = (int32_t[]){1, 3}, .x = {mx, 0}, .out = {mo, 0}};
    ok(dfcl_dit_plan(dit, B, train, 0, NULL, &err), &err);
    ok(dfcl_dit_forward(dit, &b, train, &err), &err);
    ok(dfcl_read(dev, r.out, b.out, img * 8, &err), &err);
    if (train) {
        struct dfcl_ref grads;
        r.grad_n = (size_t)dfcl_dit_trained(dit, NULL, &grads);
        r.grads = malloc(r.grad_n * 4);
        assert_non_null(r.grads);
        ok(dfcl_dit_backward(dit, &b, (struct dfcl_ref){md, 0}, &err), &err);
        ok(dfcl_read(dev, r.grads, grads, r.grad_n * 4, &err), &err);
    }
    int n;
    const struct dfcl_param *q = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++)
        r.mapped += q[i].mapped;
    memcpy(r.hash, dfcl_model_hash(m), 65);
    free(x);
    dfcl_mem_destroy(dev, &mx);
    dfcl_mem_destroy(dev, &mo);
    dfcl_mem_destroy(dev, &md);
    dfcl_model_close(&m);
    return r;
}

static void expect_equal(const char *what, const struct result *a, const struct result *b, double limit) {
    assert_true(a->out_n == b->out_n && a->grad_n == b->grad_n);
    double o = rel_l2(a->out, b->out, a->out_n), g = a->grad_n ? rel_l2(a->grads, b->grads, a->grad_n) : 0;
    if (limit == 0 ? memcmp(a->out, b->out, a->out_n * 4) || (a->grad_n && memcmp(a->grads, b->grads, a->grad_n * 4))
                   : !(o <= limit && g <= limit))
        fail_msg("%s: output differs by %.3g, gradients by %.3g, limit %g", what, o, g, limit);
}

/* ---- a file rounded beforehand ---- */

struct rewrite {
    struct dfcl_st_writer *w;
    enum dfcl_dtype round;
    const char *name; /* whose first value becomes `value` */
    float value;
};
static dfcl_status write_one(void *user, const struct dfcl_param *p, float *values, dfcl_error *err) {
    struct rewrite *r = user;
    size_t n = (size_t)p->count;
    if (p->kind == DFCL_PARAM_WEIGHT && r->round != DFCL_F32) {
        void *raw = malloc(n * 2);
        assert_non_null(raw);
        dfcl_from_f32(r->round, values, raw, n);
        dfcl_to_f32(r->round, raw, values, n);
        free(raw);
    }
    if (r->name && !strcmp(p->name, r->name))
        values[0] = r->value;
    return dfcl_st_writer_f32(r->w, values, n, err);
}

/* The golden base as another file of the given type, its matrices rounded, one value replaced. */
static const char *rewrite(const char *file, enum dfcl_dtype dtype, struct rewrite r) {
    dfcl_error err = {0};
    struct dfcl_base *b;
    const char *path = tmp_path(file);
    ok(dfcl_base_open(&b, ctx, &base, &err), &err);
    ok(dfcl_st_writer_create(&r.w, ctx, path, &err), &err);
    ok(dfcl_base_declare(r.w, b->table, &b->cfg, NULL, dtype, &err), &err);
    ok(dfcl_base_write_positions(r.w, ctx, &b->cfg, b->positions, &err), &err);
    ok(dfcl_base_stream(b, write_one, &r, NULL, &err), &err);
    ok(dfcl_st_writer_finish(&r.w, &err), &err);
    dfcl_base_close(&b);
    return path;
}

/* ---- tests ---- */

static void rounded(enum dfcl_weight_type type, enum dfcl_dtype dtype, const char *file) {
    const char *path = rewrite(file, DFCL_F32, (struct rewrite){.round = dtype});
    for (int train = 0; train < 2; train++)
        for (int pack = DFCL_PACK_AUTO; pack <= DFCL_PACK_NEVER; pack++) {
            struct result want = run(path, DFCL_WEIGHTS_F32, pack, train), got = run(base.path, type, pack, train);
            struct result full = run(base.path, DFCL_WEIGHTS_F32, pack, train);
            expect_equal(train ? "gradients" : "forward", &got, &want, 0);
            double r = rel_l2(got.out, full.out, got.out_n);
            assert_true(r > 1e-6 && r < 2e-2); /* it was rounded at all, and only that */
            assert_string_equal(got.hash, full.hash);
            assert_int_equal(got.mapped, 0);
            drop(&want), drop(&got), drop(&full);
        }
}
static void test_bf16(void **state) {
    rounded(DFCL_WEIGHTS_BF16, DFCL_BF16, "bf16.safetensors");
}
static void test_f16(void **state) {
    rounded(DFCL_WEIGHTS_F16, DFCL_F16, "f16.safetensors");
}

/* Read in place where the file has the type: f32 as it is, 16-bit files of both containers. */
static void test_in_place(void **state) {
    struct {
        const char *path;
        enum dfcl_weight_type type;
    } cases[] = {
        {base.path, DFCL_WEIGHTS_F32},
        {golden_path("dit/micro/raw_f32.pt"), DFCL_WEIGHTS_F32},
        {golden_path("dit/micro/raw_bf16.safetensors"), DFCL_WEIGHTS_BF16},
        {golden_path("dit/micro/raw_bf16.pt"), DFCL_WEIGHTS_BF16},
        {golden_path("dit/micro/raw_f16.safetensors"), DFCL_WEIGHTS_F16},
        {golden_path("dit/micro/raw_f16.pt"), DFCL_WEIGHTS_F16},
    };
    bool cpu = dev->info.type == DFCL_DEVICE_CPU;
    for (size_t i = 0; i < DFCL_COUNT(cases); i++)
        for (int train = 0; train < 2; train++) {
            int heads = base.heads;
            base.heads = strstr(cases[i].path, "micro") ? 2 : heads;
            struct result mapped = run(cases[i].path, cases[i].type, DFCL_PACK_NEVER, train);
            struct result packed = run(cases[i].path, cases[i].type, DFCL_PACK_AUTO, train);
            struct result f32 = run(cases[i].path, DFCL_WEIGHTS_F32, DFCL_PACK_NEVER, train);
            base.heads = heads;
            assert_true(cpu ? mapped.mapped > 10 : !mapped.mapped);
            assert_int_equal(packed.mapped, 0);
            expect_equal(cases[i].path, &mapped, &packed, 2e-6);
            expect_equal(cases[i].path, &mapped, &f32, 0); /* the same values, whatever holds them */
            drop(&mapped), drop(&packed), drop(&f32);
        }
}

static void test_overflow(void **state) {
    static const char name[] = "blocks.2.mlp.fc1.weight";
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = {.path = rewrite("large.safetensors", DFCL_F32, (struct rewrite){.name = name, .value = -65520.0f}),
                                  .heads = base.heads, .weights = DFCL_WEIGHTS_F16};
    for (p.pack = DFCL_PACK_AUTO; p.pack <= DFCL_PACK_NEVER; p.pack++) {
        assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_NONFINITE);
        assert_null(m);
        assert_non_null(strstr(err.msg, name));
        assert_non_null(strstr(err.msg, "bf16"));
        assert_non_null(strstr(err.msg, "large.safetensors"));
    }
    p.weights = DFCL_WEIGHTS_BF16;
    p.pack = DFCL_PACK_AUTO;
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    dfcl_model_close(&m);
    /* the last value that rounds to a finite one, read back */
    p = (struct dfcl_model_params){.path = rewrite("edge.safetensors", DFCL_F32, (struct rewrite){.name = name, .value = 65519.9f}),
                                   .heads = base.heads, .weights = DFCL_WEIGHTS_F16};
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    struct dfcl_dit *dit = dfcl_model_dit(m);
    struct dfcl_param *w = dfcl_dit_param(dit, name);
    float *v = malloc((size_t)w->count * 4);
    assert_non_null(v);
    ok(dfcl_dit_get(dit, w, 0, v, &err), &err);
    assert_true(v[0] == 65504.0f);
    free(v);
    dfcl_model_close(&m);
}

static void test_refused(void **state) {
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = base;
    struct dfcl_method_config c = {.method = "full"};
    p.weights = DFCL_WEIGHTS_BF16;
    assert_int_equal(dfcl_method_open(&m, dev, &p, &c, &err), DFCL_USAGE);
    assert_non_null(strstr(err.msg, "bf16"));
    p.weights = (enum dfcl_weight_type)3;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    assert_null(m);
}

/* A plain state dict beside the base's matrices is recognised though these are held rounded. */
static void test_plain_delta(void **state) {
    dfcl_error err = {0};
    dfcl_model *m;
    int domain;
    struct dfcl_model_params p = {.path = golden_path("dit/micro/raw_f32.pt"), .weights = DFCL_WEIGHTS_BF16};
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    ok(dfcl_model_load_delta(m, golden_path("dit/micro/train_ckpt.pt"), 1, 0, &domain, &err), &err);
    dfcl_model_close(&m);
}

/* Where the device multiplies bf16 by itself, the other operands are rounded too: near the same results, the same bits
 * each time. */
static void test_dot(void **state) {
    uint32_t bits = dev->info.vector_bits;
    for (enum dfcl_dot dot = DFCL_DOT_NATIVE; dot <= DFCL_DOT_EMULATED; dot++) {
        if (strcmp(dev->info.backend, "opencl") || dev->info.type != DFCL_DEVICE_CPU ||
            (dot == DFCL_DOT_NATIVE && !native))
            continue;
        for (int pack = DFCL_PACK_AUTO; pack <= DFCL_PACK_NEVER; pack++) {
            const char *path = golden_path("dit/micro/raw_bf16.safetensors");
            int heads = base.heads;
            base.heads = 2;
            struct result want = run(path, DFCL_WEIGHTS_BF16, pack, 1);
            dev->dot = dot;
            dev->info.vector_bits = 512;
            struct result got = run(path, DFCL_WEIGHTS_BF16, pack, 1), again = run(path, DFCL_WEIGHTS_BF16, pack, 1);
            dev->dot = DFCL_DOT_NONE;
            dev->info.vector_bits = bits;
            base.heads = heads;
            expect_equal("twice", &got, &again, 0);
            expect_equal("bf16 products", &got, &want, 1e-2);
            assert_true(rel_l2(got.out, want.out, got.out_n) > 1e-5);
            drop(&want), drop(&got), drop(&again);
        }
    }
}

/* ---- packed weights kept in a file ---- */

static int warnings;
static char said[1024]; /* the last warning, or what was said of packed weights */
static void on_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    warnings += level == DFCL_LOG_WARN;
    if (level == DFCL_LOG_WARN || strstr(line, "packed"))
        snprintf(said, sizeof said, "%s", line);
}

/* The one file of the cache; NULL: none. */
static const char *kept_file(void) {
    static char path[300];
    struct dfcl_list files = {0};
    dfcl_list_dir(ctx, tmp_path("cache/packed"), &files, NULL);
    assert_true(files.count <= 1);
    if (files.count)
        snprintf(path, sizeof path, "%s/%s", tmp_path("cache/packed"), files.names[0]);
    const char *r = files.count ? path : NULL;
    dfcl_list_free(ctx, &files);
    return r;
}

/* A run that finds what is kept or does not, with the bits of one without; what it says contains `text`. */
static void kept(const char *path, enum dfcl_weight_type type, bool train, const struct result *want, bool found, const char *text) {
    warnings = 0;
    said[0] = 0;
    struct result got = run(path, type, DFCL_PACK_CACHE, train);
    expect_equal(path, &got, want, 0);
    assert_string_equal(got.hash, want->hash);
    assert_int_equal(got.mapped > 0, found);
    if (found)
        assert_int_equal(got.mapped, 5 + 5 * 4);
    if (!strstr(said, text))
        fail_msg("expected '%s', said: %s", text, said);
    drop(&got);
}

static void damage(const char *file, size_t at, long cut) {
    char *data;
    size_t size;
    dfcl_error err = {0};
    ok(dfcl_file_read(ctx, file, 64 << 20, &data, &size, &err), &err);
    data[at] ^= 1;
    ok(dfcl_file_write(ctx, file, data, size - (size_t)cut, &err), &err);
    dfcl_free(ctx, data);
}

static void test_cache(void **state) {
    dfcl_context *plain_ctx = ctx;
    struct dfcl_device *plain_dev = dev;
    dfcl_error err = {0};
    struct dfcl_context_params p = {.cache_dir = tmp_path("cache"), .log = on_log};
    char file[128];
    snprintf(file, sizeof file, "%s", rewrite("kept.safetensors", DFCL_F32, (struct rewrite){0}));
    bool cpu = dev->info.type == DFCL_DEVICE_CPU && strcmp(dev->info.backend, "host");
    struct result want = run(file, DFCL_WEIGHTS_F32, DFCL_PACK_AUTO, true), half = run(file, DFCL_WEIGHTS_BF16, DFCL_PACK_AUTO, false);
    ok(dfcl_context_create(&ctx, &p, &err), &err);
    ok(dfcl_device_open(&dev, ctx, plain_dev->info.selector, &err), &err);
    dev->dot = DFCL_DOT_NONE;
    if (!cpu) {
        kept(file, DFCL_WEIGHTS_F32, true, &want, false, "this device uses matrices as rows");
        assert_null(kept_file());
    } else {
        dfcl_packed_min_age_s = 1000;
        kept(file, DFCL_WEIGHTS_F32, true, &want, false, "just changed");
        assert_null(kept_file());
        dfcl_packed_min_age_s = 0;
        kept(file, DFCL_WEIGHTS_F32, true, &want, false, "kept in");
        kept(file, DFCL_WEIGHTS_F32, true, &want, true, "found");
        /* damaged in the head, cut, grown, empty: made again each time, then found */
        const struct {
            size_t at;
            long cut;
        } wrong[] = {{0, 0}, {30, 0}, {100, 0}, {200, 0}, {3000, 0}, {1 << 16, 4096}, {1 << 16, 1}, {1 << 16, -1}};
        for (size_t i = 0; i < DFCL_COUNT(wrong); i++) {
            if (wrong[i].cut < 0)
                assert_int_equal(truncate(kept_file(), 1 << 30), 0);
            else
                damage(kept_file(), wrong[i].at, wrong[i].cut);
            kept(file, DFCL_WEIGHTS_F32, true, &want, false, "kept in");
            bool other = wrong[i].at == 200 || wrong[i].at == 3000; /* in the text that names the base: another one's */
            assert_int_equal(warnings, !other);
            kept(file, DFCL_WEIGHTS_F32, true, &want, true, "found");
        }
        assert_int_equal(truncate(kept_file(), 0), 0);
        kept(file, DFCL_WEIGHTS_F32, true, &want, false, "kept in");
        assert_int_equal(warnings, 1);
        /* what a process that was killed left behind goes when a file is written next */
        char left[400];
        snprintf(left, sizeof left, "%s.tmp-999999999", kept_file());
        rename(kept_file(), left);
        kept(file, DFCL_WEIGHTS_F32, true, &want, false, "kept in");
        assert_non_null(kept_file());
        assert_int_equal(dfcl_path_kind(left), DFCL_PATH_NONE);
        /* another base under the same name replaces it, even one of the same size */
        rewrite("kept.safetensors", DFCL_F32, (struct rewrite){.name = "blocks.2.mlp.fc1.weight", .value = 3});
        struct result changed = run(file, DFCL_WEIGHTS_F32, DFCL_PACK_AUTO, true);
        assert_true(memcmp(changed.out, want.out, want.out_n * 4));
        kept(file, DFCL_WEIGHTS_F32, true, &changed, false, "kept in");
        assert_int_equal(warnings, 0);
        kept(file, DFCL_WEIGHTS_F32, true, &changed, true, "found");
        drop(&changed);
        ok(dfcl_remove_tree(ctx, tmp_path("cache"), &err), &err);
        /* sampling, in 16 bits */
        rewrite("kept.safetensors", DFCL_F32, (struct rewrite){0});
        kept(file, DFCL_WEIGHTS_BF16, false, &half, false, "kept in");
        kept(file, DFCL_WEIGHTS_BF16, false, &half, true, "found");
        /* another type does not take it; a folder that cannot be written */
        ok(dfcl_remove_tree(ctx, tmp_path("cache"), &err), &err);
        ok(dfcl_file_write(ctx, tmp_path("cache"), "x", 1, &err), &err);
        kept(file, DFCL_WEIGHTS_BF16, false, &half, false, "not kept");
        assert_int_equal(warnings, 1);
        /* nothing is kept of a model whose matrices are trained */
        dfcl_model *m;
        struct dfcl_model_params mp = {.path = file, .heads = base.heads, .pack = DFCL_PACK_CACHE};
        ok(dfcl_method_open(&m, dev, &mp, &(struct dfcl_method_config){.method = "full"}, &err), &err);
        assert_non_null(strstr(said, "matrices are trained"));
        dfcl_model_close(&m);
    }
    struct dfcl_init_params init = {.shape = {.depth = 1, .hidden = 32, .heads = 2, .patch = 2, .input = 8, .channels = 1, .classes = 2}};
    struct dfcl_model_params mp = {.random = &init, .pack = DFCL_PACK_CACHE};
    dfcl_model *m;
    assert_int_equal(dfcl_model_open(&m, dev, &mp, &err), DFCL_USAGE);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    ctx = plain_ctx;
    dev = plain_dev;
    drop(&want), drop(&half);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),     cmocka_unit_test(test_f16),     cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_overflow), cmocka_unit_test(test_refused), cmocka_unit_test(test_plain_delta),
        cmocka_unit_test(test_dot),      cmocka_unit_test(test_cache),
    };
    snprintf(dir, sizeof dir, "/tmp/dfcl-weights-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    base = (struct dfcl_model_params){.path = golden_path("dit/dit.safetensors"), .heads = 4, .activations = DFCL_ACTIVATIONS_F32};
    char path[512];
    snprintf(path, sizeof path, "%s", base.path);
    base.path = path;
    open_device();
    native = dev->dot == DFCL_DOT_NATIVE;
    dev->dot = DFCL_DOT_NONE; /* the others are about what the matrices hold */
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dfcl_remove_tree(ctx, dir, NULL);
    close_device();
    return failed;
}
