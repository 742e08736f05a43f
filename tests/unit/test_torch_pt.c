/* formats/: PyTorch's .pt. The same weights from every container have the same bits; hostile zips and pickles are refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "formats/tensor_file.h"
#include "formats/torch_pt.h"

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

#define OK(call)                                                                                                               \
    do {                                                                                                                       \
        dfcl_error e_ = {0};                                                                                                   \
        dfcl_error *err = &e_;                                                                                                 \
        if ((call) != DFCL_OK)                                                                                                 \
            fail_msg("%s: %s", #call, e_.msg);                                                                                 \
    } while (0)

#define MICRO DFCL_GOLDEN "/dit/micro/"

static struct dfcl_tensor_file *open_file(const char *path, const char *which) {
    struct dfcl_tensor_file *f;
    OK(dfcl_tensor_file_open(&f, ctx, path, which, err));
    return f;
}

/* Names, shapes, types and bytes agree, in both directions. */
static void expect_equal(struct dfcl_tensor_file *a, struct dfcl_tensor_file *b) {
    assert_int_equal(dfcl_tensor_file_count(a), dfcl_tensor_file_count(b));
    for (size_t i = 0; i < dfcl_tensor_file_count(a); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(a, i), *u = dfcl_tensor_file_find(b, v->name);
        if (!u)
            fail_msg("%s is missing", v->name);
        assert_int_equal(v->dtype, u->dtype);
        assert_int_equal(v->ndim, u->ndim);
        assert_memory_equal(v->shape, u->shape, (size_t)v->ndim * sizeof *v->shape);
        assert_int_equal(v->bytes, u->bytes);
        unsigned char *p = malloc((size_t)v->bytes + 1), *q = malloc((size_t)v->bytes + 1);
        float *x = malloc(((size_t)v->count + 1) * 4), *y = malloc(((size_t)v->count + 1) * 4);
        OK(dfcl_tensor_file_read_raw(a, v, p, err));
        OK(dfcl_tensor_file_read_raw(b, u, q, err));
        if (memcmp(p, q, (size_t)v->bytes))
            fail_msg("%s: bytes differ", v->name);
        OK(dfcl_tensor_file_read_f32(a, v, 0, v->count, x, err));
        dfcl_tensor_file_release(a, v);
        /* the other in two pieces */
        OK(dfcl_tensor_file_read_f32(b, u, 0, u->count / 3, y, err));
        OK(dfcl_tensor_file_read_f32(b, u, u->count / 3, u->count - u->count / 3, y + u->count / 3, err));
        if (memcmp(x, y, (size_t)v->count * 4))
            fail_msg("%s: values differ", v->name);
        free(p), free(q), free(x), free(y);
    }
}

static void same_bits(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {MICRO "raw_f32.pt", MICRO "raw_f32.safetensors"},
        {MICRO "raw_f16.pt", MICRO "raw_f16.safetensors"},
        {MICRO "raw_bf16.pt", MICRO "raw_bf16.safetensors"},
        {MICRO "views.pt", MICRO "views_expected.safetensors"},
        {DFCL_GOLDEN "/dit/dit.pt", DFCL_GOLDEN "/dit/dit.safetensors"},
    };
    for (size_t i = 0; i < DFCL_COUNT(pairs); i++) {
        struct dfcl_tensor_file *a = open_file(pairs[i][0], NULL), *b = open_file(pairs[i][1], NULL);
        assert_int_equal(dfcl_tensor_file_container(a), DFCL_CONTAINER_TORCH);
        assert_int_equal(dfcl_tensor_file_container(b), DFCL_CONTAINER_SAFETENSORS);
        assert_string_equal(dfcl_tensor_file_part(a), "");
        expect_equal(a, b);
        dfcl_tensor_file_close(&a);
        dfcl_tensor_file_close(&b);
    }
}

static void views(void **state) {
    (void)state;
    struct dfcl_tensor_file *f = open_file(MICRO "views.pt", NULL);
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, "transposed");
    assert_true(v && v->strided && v->ndim == 2 && v->shape[0] == 6 && v->shape[1] == 4);
    v = dfcl_tensor_file_find(f, "offset");
    assert_true(v && v->strided && v->ndim == 2);
    v = dfcl_tensor_file_find(f, "scalar");
    assert_true(v && !v->strided && v->ndim == 0 && v->count == 1);
    v = dfcl_tensor_file_find(f, "i64");
    assert_true(v && v->dtype == DFCL_I64);
    dfcl_tensor_file_close(&f);
}

static void checkpoint(void **state) {
    (void)state;
    struct dfcl_tensor_file *e = open_file(MICRO "train_ckpt.pt", NULL), *m = open_file(MICRO "train_ckpt.pt", "model");
    assert_string_equal(dfcl_tensor_file_part(e), "ema");
    assert_string_equal(dfcl_tensor_file_part(m), "model");
    assert_int_equal(dfcl_tensor_file_count(e), dfcl_tensor_file_count(m));
    assert_non_null(dfcl_tensor_file_find(e, "blocks.0.attn.gamma1"));
    assert_null(dfcl_tensor_file_find(e, "blocks.1.attn.gamma1"));
    assert_null(dfcl_tensor_file_find(e, "exp_avg"));
    float a[32], b[32];
    OK(dfcl_tensor_file_read_f32(e, dfcl_tensor_file_find(e, "blocks.0.gamma1"), 0, 32, a, err));
    OK(dfcl_tensor_file_read_f32(m, dfcl_tensor_file_find(m, "blocks.0.gamma1"), 0, 32, b, err));
    assert_memory_not_equal(a, b, sizeof a);
    double x = 0;
    assert_string_equal(dfcl_tensor_file_text(e, "model"), "DiT-XL/2");
    assert_true(dfcl_tensor_file_number(e, "num_classes", &x) && x == 5);
    assert_true(dfcl_tensor_file_number(e, "lr", &x) && x == 1e-4);
    assert_true(dfcl_tensor_file_number(e, "difffit", &x) && x == 1);
    assert_false(dfcl_tensor_file_number(e, "ckpt", &x)); /* None */
    assert_null(dfcl_tensor_file_text(e, "ckpt"));
    assert_null(dfcl_tensor_file_text(e, "num_classes"));
    assert_true(dfcl_tensor_file_number(e, "heads", &x) && x == 2); /* from config.json beside it */
    dfcl_tensor_file_close(&e);
    dfcl_tensor_file_close(&m);
    dfcl_error err = {0};
    assert_int_equal(dfcl_tensor_file_open(&e, ctx, MICRO "train_ckpt.pt", "opt", &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, "model, ema, opt, args"));
    assert_int_equal(dfcl_tensor_file_open(&e, ctx, MICRO "raw_f32.pt", "opt", &err), DFCL_FORMAT);
    e = open_file(MICRO "raw_f32.pt", "model");
    dfcl_tensor_file_close(&e);
}

static void kinds(void **state) {
    (void)state;
    /* Everything torch.save may do with the same tensors, against the first. */
    static const char *const same[] = {"protocol3", "protocol4", "protocol5"};
    struct dfcl_tensor_file *a = open_file(DFCL_CORPUS "/torch_pt/state-dict", NULL), *b;
    char path[256];
    for (size_t i = 0; i < DFCL_COUNT(same); i++) {
        snprintf(path, sizeof path, "%s/torch_pt/%s", DFCL_CORPUS, same[i]);
        b = open_file(path, NULL);
        expect_equal(a, b);
        dfcl_tensor_file_close(&b);
    }
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(a, "view");
    float x[18];
    OK(dfcl_tensor_file_read_f32(a, v, 0, 18, x, err));
    for (int i = 0; i < 18; i++)
        assert_true(x[i] == (float)(6 + i % 3 * 6 + i / 3));
    dfcl_tensor_file_close(&a);
    static const char *const plain[] = {"deflated", "zip64", "zip-comment", "pickle-unknown-beside"};
    a = open_file(DFCL_CORPUS "/torch_pt/plain", NULL);
    for (size_t i = 0; i < DFCL_COUNT(plain); i++) {
        snprintf(path, sizeof path, "%s/torch_pt/%s", DFCL_CORPUS, plain[i]);
        b = open_file(path, NULL);
        expect_equal(b, a);
        expect_equal(b, a); /* again, after release */
        dfcl_tensor_file_close(&b);
    }
    dfcl_tensor_file_close(&a);
    a = open_file(DFCL_CORPUS "/torch_pt/parameters", NULL);
    assert_non_null(dfcl_tensor_file_find(a, "w")); /* without "module." */
    dfcl_tensor_file_close(&a);
    a = open_file(DFCL_CORPUS "/torch_pt/no-crc", NULL);
    OK(dfcl_tensor_file_read_f32(a, dfcl_tensor_file_at(a, 0), 0, 18, x, err));
    assert_true(x[17] == 17);
    dfcl_tensor_file_close(&a);
    a = open_file(DFCL_CORPUS "/torch_pt/pickle-cycle-root", NULL);
    assert_int_equal(dfcl_tensor_file_count(a), 1);
    dfcl_tensor_file_close(&a);
    a = open_file(DFCL_CORPUS "/torch_pt/pickle-cycle-object", NULL);
    dfcl_tensor_file_close(&a);
}

static void folders(void **state) {
    (void)state;
    char dir[] = "/tmp/dfcl-pt-XXXXXX", path[128];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/transformer", dir);
    OK(dfcl_mkdirs(ctx, path, err));
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, DFCL_CORPUS "/torch_pt/diffusers", 1 << 20, &data, &n, err));
    snprintf(path, sizeof path, "%s/transformer/diffusion_pytorch_model.bin", dir);
    OK(dfcl_file_write(ctx, path, data, n, err));
    dfcl_free(ctx, data);
    struct dfcl_tensor_file *f = open_file(dir, NULL);
    assert_string_equal(dfcl_tensor_file_path(f), path);
    assert_true(dfcl_tensor_file_is_diffusers(f));
    assert_int_equal(dfcl_tensor_file_count(f), 2 * 2 + 1 + 1);
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, "blocks.1.attn.qkv.weight");
    assert_true(v && v->ndim == 2 && v->shape[0] == 6 && v->shape[1] == 2 && v->parts == 3);
    float x[12];
    OK(dfcl_tensor_file_read_f32(f, v, 0, 12, x, err));
    for (int i = 0; i < 12; i++)
        assert_true(x[i] == (float)i);
    OK(dfcl_tensor_file_read_f32(f, dfcl_tensor_file_find(f, "blocks.0.attn.qkv.bias"), 0, 3, x, err));
    assert_true(x[0] == 12 && x[1] == 13 && x[2] == 14);
    OK(dfcl_tensor_file_read_f32(f, dfcl_tensor_file_find(f, "y_embedder.embedding_table.weight"), 0, 6, x, err));
    assert_true(x[0] == 0 && x[5] == 5);
    dfcl_tensor_file_close(&f);
    dfcl_error e = {0};
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, DFCL_CORPUS "/torch_pt/diffusers-strided", NULL, &e), DFCL_FORMAT);
    /* A folder's config.json belongs to it and must be sound; one that lies beside a plain file may be anything. */
    snprintf(path, sizeof path, "%s/transformer/config.json", dir);
    OK(dfcl_file_write(ctx, path, "{\"num_attention_heads\": ", 24, err));
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, dir, NULL, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "config.json"));
    snprintf(path, sizeof path, "%s/transformer/diffusion_pytorch_model.bin", dir);
    f = open_file(path, NULL);
    dfcl_tensor_file_close(&f);
    OK(dfcl_remove_tree(ctx, dir, err));
}

static void hostile(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"view-beyond", "does not lie within"},      {"view-stride-beyond", "does not lie within"},
        {"view-negative", "make no sense"},          {"view-negative-stride", "make no sense"},
        {"view-stride-overflow", "does not lie within"}, {"view-offset-overflow", "does not lie within"},
        {"view-product", "does not lie within"},     {"view-expanded", "does not lie within"},
        {"view-huge-storage", "should hold"},        {"view-4gib", "should hold 1073741824 elements"},
        {"view-many-dims", "make no sense"},         {"view-dims-differ", "make no sense"},
        {"view-no-storage", "is not in the file"},   {"view-path-storage", "is not in the file"},
        {"view-odd-type", "torch.EvilStorage"},      {"same-name", "appears twice"},
        {"odd-name", "readable name"},               {"list", "found a list"},
        {"module-object", "torch.nn.modules.linear.Linear"}, {"legacy", "before 1.6"},
        {"pickle-system", "an object of os.system"}, {"pickle-posix-build", "an object of builtins.eval"},
        {"pickle-cycle-list", "found a list"},       {"pickle-cycle-dict", "expected tensors under"},
        {"pickle-doubling", "found a list"},          {"pickle-memo-far", "memo number beyond"},
        {"pickle-memo-unset", "never set"},          {"pickle-marks", "nested too deeply"},
        {"pickle-nested", "found a list"},           {"pickle-pop-under-mark", "the stack is empty"},
        {"pickle-string-long", "cut short"},         {"pickle-string-longer", "cut short"},
        {"pickle-text-opcode", "opcode 0x49"},       {"pickle-extension", "opcode 0x82"},
        {"pickle-odd-dict", "a key without a value"}, {"pickle-persid", "persistent id"},
        {"pickle-empty", "the stack is empty"},      {"pickle-long", "cut short"},
        {"pickle-frame", "cut short"},               {"pickle-setitem-none", "items added to something"},
        {"pickle-reduce-none", "an object"},         {"pickle-newobj-ex", "an object of a.b"},
        {"pickle-stack-global", "not named by strings"}, {"pickle-protocol0", "opcode 0x70"},
        {"pickle-protocol9", "protocol 2 to 5"},     {"zip-encrypted", "encrypted"},
        {"zip-method", "another compression"},       {"zip-crc", "disagree"},
        {"zip-local-crc", "disagree"},               {"zip-size", "reaches into the directory"},
        {"zip-size-64", "reaches into the directory"},      {"zip-overlap", "overlaps another one"},
        {"zip-offset", "no local header"},           {"zip-offset-64", "no local header"},
        {"zip-name", "another name"},                {"zip-directory", "not where the end record says"},
        {"zip-directory-size", "not where the end record says"}, {"zip-entries", "too many entries"},
        {"zip-disk", "several disks"},               {"zip-prefix", "safetensors"},
        {"zip-empty", "safetensors"},                {"zip-other", "not from PyTorch"},
        {"zip-two", "expected one data.pkl"},        {"zip-big-endian", "found \"big\""},
        {"zip-bomb", "more objects"},                {"zip-inflates-further", "compressed bytes are damaged"},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/torch_pt/%s", DFCL_CORPUS, cases[i][0]);
        struct dfcl_tensor_file *f;
        dfcl_error e = {0};
        dfcl_status s = dfcl_tensor_file_open(&f, ctx, path, NULL, &e);
        if (s != DFCL_FORMAT || !strstr(e.msg, cases[i][1]) || !strstr(e.msg, path))
            fail_msg("%s: status %d, \"%s\", expected \"%s\"", cases[i][0], s, e.msg, cases[i][1]);
        assert_null(f);
    }
}

static void damaged_storage(void **state) {
    (void)state;
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, MICRO "raw_f32.pt", 1 << 24, &data, &n, err));
    struct dfcl_tensor_file *f;
    OK(dfcl_tensor_file_open_memory(&f, ctx, data, n, "damaged.pt", NULL, err));
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, "blocks.1.mlp.fc1.bias");
    float x[128];
    OK(dfcl_tensor_file_read_f32(f, v, 0, 128, x, err));
    dfcl_tensor_file_close(&f);
    /* one flipped bit in the storage, which is found by its bytes */
    size_t at = 0;
    while (at + sizeof x <= n && memcmp(data + at, x, sizeof x))
        at++;
    assert_true(at + sizeof x <= n);
    data[at + 77] ^= 0x10;
    OK(dfcl_tensor_file_open_memory(&f, ctx, data, n, "damaged.pt", NULL, err));
    dfcl_error e = {0};
    v = dfcl_tensor_file_find(f, "blocks.1.mlp.fc1.bias");
    assert_int_equal(dfcl_tensor_file_read_f32(f, v, 0, 128, x, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "checksum"));
    assert_non_null(strstr(e.msg, "damaged.pt"));
    assert_non_null(strstr(e.msg, "blocks.1.mlp.fc1.bias"));
    dfcl_tensor_file_close(&f);
    dfcl_free(ctx, data);
}

static void every_truncation(void **state) {
    (void)state;
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, MICRO "views.pt", 1 << 20, &data, &n, err));
    for (size_t k = 0; k < n; k++) {
        char *copy = malloc(k ? k : 1);
        memcpy(copy, data, k);
        struct dfcl_tensor_file *f;
        dfcl_error e = {0};
        assert_int_equal(dfcl_tensor_file_open_memory(&f, ctx, copy, k, "cut.pt", NULL, &e), DFCL_FORMAT);
        assert_non_null(strstr(e.msg, "cut.pt"));
        free(copy);
    }
    dfcl_free(ctx, data);
}

/* Every allocation fails once: the open must say so, leak nothing (the sanitizers look) and leave no handle. */
struct failing {
    long left, live;
};
static void *fail_alloc(void *user, size_t n) {
    struct failing *f = user;
    if (f->left-- <= 0)
        return NULL;
    f->live++;
    return malloc(n);
}
static void fail_free(void *user, void *p) {
    struct failing *f = user;
    f->live--;
    free(p);
}

static void out_of_memory(void **state) {
    (void)state;
    static const char *const files[] = {MICRO "views.pt", MICRO "views_expected.safetensors", MICRO "diffusers", DFCL_CORPUS "/torch_pt/diffusers",
                                        DFCL_CORPUS "/torch_pt/deflated", DFCL_CORPUS "/torch_pt/checkpoint"};
    for (size_t i = 0; i < DFCL_COUNT(files); i++) {
        dfcl_status s = DFCL_NOMEM;
        for (long k = 0; s != DFCL_OK; k++) {
            struct failing fail = {1000, 0};
            struct dfcl_context_params p = {.alloc = fail_alloc, .free = fail_free, .alloc_user = &fail};
            dfcl_context *c;
            OK(dfcl_context_create(&c, &p, err));
            fail.left = k;
            struct dfcl_tensor_file *f;
            dfcl_error e = {0};
            s = dfcl_tensor_file_open(&f, c, files[i], NULL, &e);
            assert_true(s == DFCL_OK || s == DFCL_NOMEM);
            assert_int_equal(e.status, s);
            assert_true((f != NULL) == (s == DFCL_OK));
            if (!s) {
                assert_true(k > 5);
                float x[1];
                const struct dfcl_tensor_view *v = dfcl_tensor_file_at(f, 0);
                s = dfcl_tensor_file_read_f32(f, v, 0, 1, x, &e); /* may inflate */
                assert_true(s == DFCL_OK || s == DFCL_NOMEM);
            }
            dfcl_tensor_file_close(&f);
            assert_int_equal(fail.live, 1); /* the context itself */
            dfcl_context_destroy(&c);
        }
    }
}

/* ---- writing ---- */

static const struct {
    const char *name;
    int ndim;
    int64_t shape[4];
} wanted[] = {{"w", 4, {2, 3, 1, 5}}, {"a.scalar", 0, {0}}, {"long", 1, {70000}}, {"matrix", 2, {300, 2}}};

static char dir[64];
static const char *in_dir(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static struct dfcl_pt_writer *start(const char *path) {
    struct dfcl_pt_writer *w;
    OK(dfcl_pt_writer_create(&w, ctx, path, err));
    for (size_t i = 0; i < DFCL_COUNT(wanted); i++)
        OK(dfcl_pt_writer_tensor(w, wanted[i].name, wanted[i].shape, wanted[i].ndim, err));
    return w;
}

static void written(void **state) {
    (void)state;
    static float v[70000], got[70000];
    snprintf(dir, sizeof dir, "/tmp/dfcl-pt-XXXXXX");
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 70000; i++)
        v[i] = (float)i - 0.25f;
    struct dfcl_pt_writer *w = start(in_dir("a.pt"));
    OK(dfcl_pt_writer_f32(w, v, 30, err));
    OK(dfcl_pt_writer_f32(w, v + 30, 1, err));
    for (int i = 0; i < 7; i++) /* in pieces */
        OK(dfcl_pt_writer_f32(w, v + 10000 * i, 10000, err));
    assert_int_equal(dfcl_path_kind(in_dir("a.pt")), DFCL_PATH_NONE);
    OK(dfcl_pt_writer_f32(w, v + 7, 600, err));
    OK(dfcl_pt_writer_finish(&w, err));
    struct dfcl_tensor_file *f = open_file(in_dir("a.pt"), NULL);
    assert_int_equal(dfcl_tensor_file_container(f), DFCL_CONTAINER_TORCH);
    assert_int_equal(dfcl_tensor_file_count(f), DFCL_COUNT(wanted));
    const float *from[] = {v, v + 30, v, v + 7};
    for (size_t i = 0; i < DFCL_COUNT(wanted); i++) {
        const struct dfcl_tensor_view *t = dfcl_tensor_file_find(f, wanted[i].name);
        const void *at;
        assert_non_null(t);
        assert_true(t->dtype == DFCL_F32 && t->ndim == wanted[i].ndim);
        assert_memory_equal(t->shape, wanted[i].shape, (size_t)t->ndim * sizeof *t->shape);
        OK(dfcl_tensor_file_read_f32(f, t, 0, t->count, got, err));
        assert_memory_equal(got, from[i], (size_t)t->count * 4);
        OK(dfcl_tensor_file_in_place(f, t, &at, err));
        assert_non_null(at);
        assert_int_equal((uintptr_t)at % 64, 0); /* a mapping starts on a page */
    }
    dfcl_tensor_file_close(&f);

    /* what is not complete does not appear, and does not replace */
    dfcl_error e = {0};
    char *before, *after;
    size_t n, m;
    OK(dfcl_file_read(ctx, in_dir("a.pt"), 1 << 20, &before, &n, err));
    w = start(in_dir("a.pt"));
    OK(dfcl_pt_writer_f32(w, v, 30, err));
    assert_int_equal(dfcl_pt_writer_finish(&w, &e), DFCL_USAGE);
    assert_null(w);
    w = start(in_dir("a.pt"));
    assert_int_equal(dfcl_pt_writer_f32(w, v, 31, &e), DFCL_USAGE); /* across an end */
    assert_int_equal(dfcl_pt_writer_finish(&w, &e), DFCL_ERROR);
    w = start(in_dir("a.pt"));
    OK(dfcl_pt_writer_f32(w, v, 1, err));
    assert_int_equal(dfcl_pt_writer_tensor(w, "late", wanted[0].shape, 4, &e), DFCL_USAGE);
    dfcl_pt_writer_destroy(&w);
    w = start(in_dir("b.pt"));
    assert_int_equal(dfcl_pt_writer_tensor(w, "empty", (int64_t[]){3, 0}, 2, &e), DFCL_USAGE);
    dfcl_pt_writer_destroy(&w);
    OK(dfcl_file_read(ctx, in_dir("a.pt"), 1 << 20, &after, &m, err));
    assert_true(n == m && !memcmp(before, after, n));
    dfcl_free(ctx, before);
    dfcl_free(ctx, after);
    struct dfcl_list list;
    OK(dfcl_list_dir(ctx, dir, &list, err));
    assert_int_equal(list.count, 1);
    dfcl_list_free(ctx, &list);
    OK(dfcl_remove_tree(ctx, dir, err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits), cmocka_unit_test(views),           cmocka_unit_test(checkpoint),       cmocka_unit_test(kinds),
        cmocka_unit_test(folders), cmocka_unit_test(hostile),   cmocka_unit_test(damaged_storage), cmocka_unit_test(every_truncation), cmocka_unit_test(out_of_memory), cmocka_unit_test(written),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
