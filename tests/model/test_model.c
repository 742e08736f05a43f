/* Bases of every container, methods, deltas, domains, merging, initialisation. */
#include "golden.h"

#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/philox.h"
#include "formats/npy.h"
#include "methods/delta.h"

#include <difffit-cl/sample.h>

static char dir[64];

static const char *tmp_path(const char *name) {
    static char buf[8][128];
    static int next;
    char *p = buf[next++ % 8];
    snprintf(p, sizeof buf[0], "%s/%s", dir, name);
    return p;
}

static dfcl_model *open_model(const char *path, const char *which, int domains) {
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = {.path = path, .which = which, .max_domains = domains};
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    return m;
}

/* Forward of B samples on a model: class ids and domains per sample (dom NULL: 0). Freed with free(). */
static float *forward(dfcl_model *m, int B, const float *x, const float *t, const int *ids, const int32_t *dom) {
    dfcl_error err = {0};
    const struct dfcl_model_shape *sh = dfcl_model_get_shape(m);
    size_t img = (size_t)sh->channels * (size_t)sh->input * (size_t)sh->input;
    int32_t rows[8];
    struct dfcl_mem *mx, *mo;
    float *out = malloc((size_t)B * img * 8);
    assert_non_null(out);
    for (int i = 0; i < B; i++)
        ok(dfcl_model_row(m, dom ? dom[i] : 0, ids[i], &rows[i], &err), &err);
    ok(dfcl_mem_create(dev, (uint64_t)B * img * 4, "x", &mx, &err), &err);
    ok(dfcl_mem_create(dev, (uint64_t)B * img * 8, "out", &mo, &err), &err);
    ok(dfcl_write(dev, (struct dfcl_ref){mx, 0}, x, (uint64_t)B * img * 4, &err), &err);
    struct dfcl_dit_batch b = {.B = B, .t = t, .rows = rows, .dom = dom, .x = {mx, 0}, .out = {mo, 0}};
    ok(dfcl_dit_plan(dfcl_model_dit(m), B, DFCL_FORWARD_ONLY, 0, NULL, &err), &err);
    ok(dfcl_dit_forward(dfcl_model_dit(m), &b, false, &err), &err);
    ok(dfcl_read(dev, out, b.out, (uint64_t)B * img * 8, &err), &err);
    dfcl_mem_destroy(dev, &mx);
    dfcl_mem_destroy(dev, &mo);
    return out;
}

static void check(const char *what, const float *got, const float *want, size_t n, double limit) {
    double r = rel_l2(got, want, n);
    if (!(r <= limit))
        fail_msg("%s: relative L2 error %.3g, limit %.3g", what, r, limit);
}

/* ---- containers ---- */

static void test_containers(void **state) {
    static const struct {
        const char *file, *which, *out;
        int hash; /* files of one number hold the same weights */
    } cases[] = {
        {"dit/micro/raw_f32.safetensors", NULL, "out_f32", 1},     {"dit/micro/raw_f32.pt", NULL, "out_f32", 1},
        {"dit/micro/diffusers", NULL, "out_f32", 1},               {"dit/micro/raw_f16.safetensors", NULL, "out_f16weights", 2},
        {"dit/micro/raw_f16.pt", NULL, "out_f16weights", 2},       {"dit/micro/raw_bf16.safetensors", NULL, "out_bf16weights", 3},
        {"dit/micro/raw_bf16.pt", NULL, "out_bf16weights", 3},     {"dit/micro/train_ckpt.pt", NULL, "out_ckpt_ema", 4},
        {"dit/micro/train_ckpt.pt", "model", "out_ckpt_model", 5},
    };
    char hashes[6][65] = {{0}};
    struct dfcl_st *io = golden_open("dit/micro/io.safetensors");
    size_t n = 0, B = 0;
    float *x = golden_need(io, "x", NULL), *t = golden_need(io, "t", &B), *y = golden_need(io, "y", NULL);
    int ids[8];
    for (size_t i = 0; i < B; i++)
        ids[i] = (int)y[i];
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        float *want = golden_need(io, cases[i].out, &n);
        dfcl_model *m = open_model(golden_path(cases[i].file), cases[i].which, 1);
        const struct dfcl_model_shape *sh = dfcl_model_get_shape(m);
        assert_true(sh->depth == 2 && sh->hidden == 32 && sh->heads == 2 && sh->patch == 2 && sh->input == 8 && sh->classes == 5);
        float *got = forward(m, (int)B, x, t, ids, NULL);
        check(cases[i].file, got, want, n, 1e-5);
        const char *h = dfcl_model_hash(m);
        assert_int_equal(strlen(h), 64);
        for (int k = 1; k < 6; k++)
            if (hashes[k][0])
                assert_int_equal(!strcmp(hashes[k], h), k == cases[i].hash);
        memcpy(hashes[cases[i].hash], h, 65);
        free(got), free(want);
        dfcl_model_close(&m);
    }
    free(x), free(t), free(y);
    dfcl_st_close(&io);
}

static void test_open_errors(void **state) {
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = {.path = golden_path("forward.safetensors")};
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, "x_embedder.proj.weight"));
    p.path = "/nonexistent/x.safetensors";
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_IO);
    p.path = golden_path("dit/dit.safetensors");
    p.heads = 5;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    assert_null(m);
}

/* ---- methods ---- */

static int64_t count_trained(const char *size, int classes, const char *method, const char *blocks, int train_classes, int64_t *gammas) {
    dfcl_error err = {0};
    struct dfcl_dit_config c = {.input = 32, .channels = 4, .classes = classes};
    struct dfcl_dit *dit;
    const struct dfcl_method *m;
    bool flags[64];
    int64_t sum = 0;
    int n;
    assert_true(dfcl_dit_named(size, &c));
    ok(dfcl_dit_create(&dit, dev, &c, &(struct dfcl_dit_options){.domains = 1}, &err), &err);
    ok(dfcl_method_find(method, &m, &err), &err);
    struct dfcl_method_plan plan = {.sites = m->default_sites, .blocks = flags, .depth = c.depth, .train_classes = train_classes};
    ok(dfcl_blocks_parse(blocks, flags, c.depth, &err), &err);
    ok(m->select(m, &plan, dit, &err), &err);
    const struct dfcl_param *p = dfcl_dit_params(dit, &n);
    *gammas = 0;
    for (int i = 0; i < n; i++)
        if (p[i].trained) {
            sum += p[i].count;
            *gammas += p[i].gamma ? p[i].count : 0;
        }
    dfcl_dit_destroy(&dit);
    return sum;
}

static void test_counts(void **state) {
    int64_t g;
    assert_int_equal(count_trained("DiT-XL/2", 1000, "difffit", "half", 1, &g), 1739552);
    assert_int_equal(g, 96768);
    assert_int_equal(count_trained("DiT-XL/2", 101, "difffit", "0-13", 1, &g), 703904);
    assert_int_equal(count_trained("DiT-XL/2", 1000, "difffit", "all", 1, &g), 1836320);
    assert_int_equal(count_trained("DiT-L/2", 101, "difffit", "0-13", 1, &g), 564256);
    assert_int_equal(count_trained("DiT-B/8", 200, "difffit", "all", 1, &g), 352256);
    assert_int_equal(count_trained("DiT-XL/2", 1000, "bitfit", "all", 0, &g), 489632);
    assert_int_equal(g, 0);
    assert_int_equal(count_trained("DiT-S/4", 101, "bitfit", "all", 1, &g), 110336);
    assert_int_equal(count_trained("DiT-S/2", 1000, "full", "all", 1, &g), 32963360 - 98304);
    assert_int_equal(count_trained("DiT-XL/2", 1000, "difffit-block", "all", 1, &g), 489632 + 1153152 + 28 * 2 * 1152);
}

static void test_options(void **state) {
    bool b[28];
    char text[64];
    unsigned sites;
    assert_int_equal(dfcl_blocks_parse("0-3,7,9-10", b, 28, NULL), DFCL_OK);
    dfcl_blocks_format(b, 28, text, sizeof text);
    assert_string_equal(text, "0-3,7,9-10");
    assert_int_equal(dfcl_blocks_parse("half", b, 28, NULL), DFCL_OK);
    dfcl_blocks_format(b, 28, text, sizeof text);
    assert_string_equal(text, "0-13");
    static const char *const bad_blocks[] = {"", "28", "3-1", "a", "1,", "1--2", "-1", "1,,2", "1 ", "99999999999999999999"};
    for (size_t i = 0; i < DFCL_COUNT(bad_blocks); i++)
        assert_int_equal(dfcl_blocks_parse(bad_blocks[i], b, 28, NULL), DFCL_USAGE);
    assert_int_equal(dfcl_sites_parse("mlp,qkv", &sites, NULL), DFCL_OK);
    dfcl_sites_format(sites, text, sizeof text);
    assert_string_equal(text, "qkv,mlp");
    static const char *const bad_sites[] = {"", "qkv,", ",qkv", "qk", "qkv mlp"};
    for (size_t i = 0; i < DFCL_COUNT(bad_sites); i++)
        assert_int_equal(dfcl_sites_parse(bad_sites[i], &sites, NULL), DFCL_USAGE);
    const struct dfcl_method *m;
    dfcl_error err = {0};
    assert_int_equal(dfcl_method_find("lora2", &m, &err), DFCL_USAGE);
    assert_non_null(strstr(err.msg, "difffit-block"));
}

/* ---- deltas ---- */

/* Opens the main base by a method and moves every trained value a little. */
static dfcl_model *train_model(const char *method, int classes, const char *const *names, int train_classes) {
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = {.path = golden_path("dit/dit.safetensors")};
    struct dfcl_method_config c = {.method = method, .seed = 3, .classes = classes, .class_names = names, .train_classes = train_classes};
    ok(dfcl_method_open(&m, dev, &p, &c, &err), &err);
    struct dfcl_ref P;
    int64_t n = dfcl_dit_trained(dfcl_model_dit(m), &P, NULL);
    float *v = malloc((size_t)n * 4);
    assert_non_null(v);
    ok(dfcl_read(dev, v, P, (uint64_t)n * 4, &err), &err);
    unsigned rng = 7;
    for (int64_t i = 0; i < n; i++)
        v[i] += ((float)((rng = rng * 1664525u + 1013904223u) >> 8) / 16777216.f - 0.5f) * 0.4f;
    ok(dfcl_write(dev, P, v, (uint64_t)n * 4, &err), &err);
    ok(dfcl_dit_refresh(dfcl_model_dit(m), &err), &err);
    free(v);
    return m;
}

struct input {
    float *x, t[3];
    size_t n; /* output values per sample */
};
static struct input input(void) {
    struct dfcl_st *st = golden_open("forward.safetensors");
    struct input in = {.x = golden_need(st, "x", NULL), .t = {10, 421, 999}, .n = 8 * 8 * 8};
    dfcl_st_close(&st);
    return in;
}

static const char *const cats[3] = {"cat", "dog \"x\"", "\xc3\xa4h"};

static void delta_case(const char *method, bool rebuild, int train_classes) {
    dfcl_error err = {0};
    struct input in = input();
    dfcl_model *tm = train_model(method, rebuild ? 3 : 0, rebuild ? cats : NULL, train_classes);
    int K = rebuild ? 3 : 10, ids[3] = {0, 2, K};
    const char *file = tmp_path("delta.safetensors");
    float *want = forward(tm, 3, in.x, in.t, ids, NULL);
    ok(dfcl_delta_save(tm, file, DFCL_NO_REF, "{\"steps\": 5}", &err), &err);
    dfcl_model_close(&tm);

    dfcl_model *m = open_model(golden_path("dit/dit.safetensors"), NULL, 3);
    int base_ids[3] = {0, 2, 10};
    float *base = forward(m, 3, in.x, in.t, base_ids, NULL);
    int full, none, half;
    ok(dfcl_model_load_delta(m, file, 1, 0, &full, &err), &err);
    ok(dfcl_model_load_delta(m, file, 0, 0, &none, &err), &err);
    ok(dfcl_model_load_delta(m, file, 0.5f, 0, &half, &err), &err);
    assert_true(full == 1 && none == 2 && half == 3);
    int extra;
    assert_int_equal(dfcl_model_load_delta(m, file, 1, 0, &extra, &err), DFCL_NOMEM);
    assert_int_equal(dfcl_model_classes(m, full), K);
    if (rebuild) {
        int id = -1;
        assert_string_equal(dfcl_model_class_name(m, full, 1), cats[1]);
        ok(dfcl_model_find_class(m, full, cats[2], &id, &err), &err);
        assert_int_equal(id, 2);
        ok(dfcl_model_find_class(m, full, "0", &id, &err), &err);
        assert_int_equal(id, 0);
        assert_int_equal(dfcl_model_find_class(m, full, "3", &id, &err), DFCL_USAGE);
        assert_non_null(strstr(err.msg, "cat"));
        assert_null(dfcl_model_class_name(m, full, 3));
    }
    int32_t dom[3] = {full, full, full};
    float *got = forward(m, 3, in.x, in.t, ids, dom);
    check("loaded delta", got, want, 3 * in.n, 1e-6);
    assert_true(rel_l2(base, want, 3 * in.n) > 1e-2);
    free(got);
    /* strength 0 is the base wherever the two share rows: all of them, or the null row */
    dom[0] = dom[1] = dom[2] = none;
    got = forward(m, 3, in.x, in.t, ids, dom);
    check("strength 0", got + 2 * in.n, base + 2 * in.n, in.n, 1e-6);
    if (!rebuild)
        check("strength 0", got, base, 3 * in.n, 1e-6);
    free(got);
    dom[0] = dom[1] = dom[2] = half;
    got = forward(m, 3, in.x, in.t, ids, dom);
    double to_base = rel_l2(got + 2 * in.n, base + 2 * in.n, in.n), to_full = rel_l2(got + 2 * in.n, want + 2 * in.n, in.n);
    double apart = rel_l2(base + 2 * in.n, want + 2 * in.n, in.n);
    assert_true(to_base > 0.1 * apart && to_full > 0.1 * apart && to_base < apart && to_full < apart);
    free(got);
    /* base and domains in one batch; the base is not disturbed */
    dom[0] = 0, dom[1] = full, dom[2] = none;
    int mixed_ids[3] = {0, ids[1], ids[2]};
    got = forward(m, 3, in.x, in.t, mixed_ids, dom);
    check("mixed: base", got, base, in.n, 1e-6);
    check("mixed: delta", got + in.n, want + in.n, in.n, 1e-6);
    check("mixed: strength 0", got + 2 * in.n, base + 2 * in.n, in.n, 1e-6);
    free(got);
    /* a freed slot is used again, with nothing left over */
    ok(dfcl_model_unload_delta(m, full, &err), &err);
    assert_int_equal(dfcl_model_unload_delta(m, full, NULL), DFCL_USAGE);
    assert_int_equal(dfcl_model_unload_delta(m, 0, NULL), DFCL_USAGE);
    ok(dfcl_model_load_delta(m, file, 1, 0, &extra, &err), &err);
    assert_int_equal(extra, 1);
    dom[0] = dom[1] = dom[2] = extra;
    got = forward(m, 3, in.x, in.t, ids, dom);
    check("loaded again", got, want, 3 * in.n, 1e-6);
    free(got);
    dfcl_model_close(&m);

    /* merged: an ordinary base, opened like any other */
    struct dfcl_model_params bp = {.path = golden_path("dit/dit.safetensors")};
    const char *merged = tmp_path("merged.safetensors");
    ok(dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = bp, .delta = file}, merged, &err), &err);
    m = open_model(merged, NULL, 1);
    assert_int_equal(dfcl_model_classes(m, 0), K);
    if (rebuild)
        assert_string_equal(dfcl_model_class_name(m, 0, 1), cats[1]);
    assert_int_equal(dfcl_model_get_shape(m)->heads, 4);
    got = forward(m, 3, in.x, in.t, ids, NULL);
    check("merged", got, want, 3 * in.n, 1e-5);
    free(got), free(want), free(base), free(in.x);
    dfcl_model_close(&m);
    printf("delta %s%s: ok\n", method, rebuild ? ", own classes" : "");
}
static void test_delta_difffit(void **state) {
    delta_case("difffit", true, 0);
    delta_case("difffit", false, 0);
}
static void test_delta_others(void **state) {
    delta_case("difffit-block", true, 0);
    delta_case("bitfit", false, 0);
    delta_case("bitfit", true, 0);
}

static void test_delta_file(void **state) {
    dfcl_error err = {0};
    const char *file = tmp_path("delta2.safetensors");
    dfcl_model *tm = train_model("difffit", 3, cats, 0);
    ok(dfcl_delta_save(tm, file, DFCL_NO_REF, "{\"steps\": 5}", &err), &err);
    struct dfcl_delta *d;
    ok(dfcl_delta_open(&d, ctx, file, &err), &err);
    assert_false(d->plain);
    assert_string_equal(d->method, "difffit");
    assert_string_equal(d->gamma_sites, "qkv,proj,attn,mlp");
    assert_string_equal(d->gamma_blocks, "0-1");
    assert_string_equal(d->base_hash, dfcl_model_hash(tm));
    assert_string_equal(d->training, "{\"steps\": 5}");
    assert_true(d->classes == 3 && d->own_classes && d->input == 8);
    dfcl_delta_close(&d);

    /* restore brings every bit back */
    struct dfcl_ref P;
    int64_t n = dfcl_dit_trained(dfcl_model_dit(tm), &P, NULL);
    float *before = malloc((size_t)n * 4), *after = malloc((size_t)n * 4);
    assert_true(before && after);
    ok(dfcl_read(dev, before, P, (uint64_t)n * 4, &err), &err);
    ok(dfcl_fill(dev, P, 0, (uint64_t)n * 4, &err), &err);
    ok(dfcl_delta_restore(tm, file, &err), &err);
    ok(dfcl_read(dev, after, P, (uint64_t)n * 4, &err), &err);
    assert_memory_equal(before, after, (size_t)n * 4);
    free(before), free(after);
    dfcl_model *other = train_model("bitfit", 3, cats, 0);
    assert_int_equal(dfcl_delta_restore(other, file, &err), DFCL_FORMAT);
    dfcl_model_close(&other);
    dfcl_model_close(&tm);

    /* another base: the micro one has other shapes; a base with other values has another hash */
    dfcl_model *m = open_model(golden_path("dit/micro/raw_f32.safetensors"), NULL, 1);
    int dom;
    assert_int_equal(dfcl_model_load_delta(m, file, 1, 0, &dom, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, dfcl_model_hash(m)));
    assert_int_equal(dfcl_model_load_delta(m, file, 1, 1, &dom, &err), DFCL_FORMAT); /* by force, but it does not fit */
    assert_int_equal(dfcl_model_load_delta(m, golden_path("dit/dit.safetensors"), 1, 0, &dom, &err), DFCL_FORMAT);
    dfcl_model_close(&m);
    struct dfcl_init_params ip = {.shape = {.depth = 4, .hidden = 96, .heads = 4, .patch = 2, .input = 8, .channels = 4, .classes = 10}};
    ok(dfcl_model_init(ctx, &ip, tmp_path("other.safetensors"), &err), &err);
    m = open_model(tmp_path("other.safetensors"), NULL, 1);
    assert_int_equal(dfcl_model_load_delta(m, file, 1, 0, &dom, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, dfcl_model_hash(m)));
    ok(dfcl_model_load_delta(m, file, 1, 1, &dom, &err), &err);
    dfcl_model_close(&m);
    struct dfcl_model_params bp = {.path = tmp_path("other.safetensors")};
    assert_int_equal(dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = bp, .delta = file}, tmp_path("bad.safetensors"), &err), DFCL_FORMAT);
    assert_int_not_equal(access(tmp_path("bad.safetensors"), F_OK), 0);
}

/* State dicts of the PyTorch reproduction: weights, biases, gammas in one file. */
static void test_plain_delta(void **state) {
    dfcl_error err = {0};
    struct dfcl_st *io = golden_open("dit/micro/io.safetensors");
    size_t n = 0, B = 0;
    float *x = golden_need(io, "x", NULL), *t = golden_need(io, "t", &B), *y = golden_need(io, "y", NULL);
    float *want = golden_need(io, "out_ckpt_ema", &n);
    int ids[8], dom;
    int32_t doms[8];
    for (size_t i = 0; i < B; i++)
        ids[i] = (int)y[i];
    const char *ckpt = golden_path("dit/micro/train_ckpt.pt");
    /* a base with other matrices is refused, for loading and for merging */
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = 8, .channels = 4, .classes = 5}};
    struct dfcl_model_params p = {.path = tmp_path("micro.safetensors")};
    ok(dfcl_model_init(ctx, &ip, p.path, &err), &err);
    dfcl_model *m = open_model(p.path, NULL, 1);
    assert_int_equal(dfcl_model_load_delta(m, ckpt, 1, 0, &dom, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, "attn.qkv.weight"));
    dfcl_model_close(&m);
    assert_int_equal(dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = p, .delta = ckpt}, tmp_path("plain.safetensors"), &err), DFCL_FORMAT);
    /* on its own base the vectors and the class table make the whole difference */
    p.path = golden_path("dit/micro/raw_f32.pt");
    m = open_model(p.path, NULL, 1);
    ok(dfcl_model_load_delta(m, ckpt, 1, 0, &dom, &err), &err);
    for (int i = 0; i < 8; i++)
        doms[i] = dom;
    float *got = forward(m, (int)B, x, t, ids, doms);
    check("plain state dict", got, want, n, 1e-5);
    free(got);
    dfcl_model_close(&m);
    ok(dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = p, .delta = ckpt}, tmp_path("plain.safetensors"), &err), &err);
    m = open_model(tmp_path("plain.safetensors"), NULL, 1);
    got = forward(m, (int)B, x, t, ids, NULL);
    check("plain state dict, merged", got, want, n, 1e-5);
    free(x), free(t), free(y), free(want), free(got);
    dfcl_model_close(&m);
    dfcl_st_close(&io);
}

/* What the reproduction's average makes of a frozen matrix passes for it, another matrix does not. */
static void test_same_matrix(void **state) {
    enum { COUNT = 1000 };
    float base[COUNT], drifted[COUNT], trained[COUNT];
    dfcl_normals(1, DFCL_STREAM_TEST, 0, 0, base, COUNT);
    for (int i = 0; i < COUNT; i++) {
        drifted[i] = base[i];
        for (int k = 0; k < 24000 && i < 100; k++)
            drifted[i] = drifted[i] * 0.9999f + base[i] * 0.0001f;
        trained[i] = base[i] * (i % 2 ? 1.004f : 0.996f);
    }
    assert_memory_not_equal(drifted, base, sizeof base);
    assert_true(dfcl_delta_same_matrix(drifted, base, COUNT));
    assert_false(dfcl_delta_same_matrix(trained, base, COUNT));
    assert_true(dfcl_delta_same_matrix(base, base, COUNT));
    drifted[3] = NAN;
    assert_false(dfcl_delta_same_matrix(drifted, base, COUNT));
}

/* ---- class tables ---- */

static void test_class_tables(void **state) {
    dfcl_error err = {0};
    static const char *const names[10] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"};
    static const char *const mine[3] = {"new", "c", "a"};
    struct dfcl_init_params ip = {.shape = {.depth = 1, .hidden = 16, .heads = 2, .patch = 2, .input = 4, .channels = 1, .classes = 10},
                                  .class_names = names, .scale = 0.5f};
    const char *path = tmp_path("named.safetensors");
    ok(dfcl_model_init(ctx, &ip, path, &err), &err);
    struct dfcl_base *b;
    struct dfcl_model_params p = {.path = path};
    ok(dfcl_base_open(&b, ctx, &p, &err), &err);
    assert_string_equal(b->class_names[2], "c");
    float *table, rows[4 * 16], again[4 * 16];
    ok(dfcl_base_read(b, "y_embedder.embedding_table.weight", &table, &err), &err);
    ok(dfcl_class_table_init(b, NULL, 5, 3, mine, rows, &err), &err);
    assert_memory_equal(rows + 16, table + 2 * 16, 64);
    assert_memory_equal(rows + 32, table, 64);
    assert_memory_equal(rows + 48, table + 160, 64); /* the null row, last */
    double sum = 0;
    for (int i = 0; i < 16; i++)
        sum += (double)rows[i] * rows[i];
    assert_true(sum > 16 * 0.02 * 0.02 * 0.2 && sum < 16 * 0.02 * 0.02 * 4);
    ok(dfcl_class_table_init(b, "random", 5, 3, mine, again, &err), &err);
    assert_memory_equal(again, rows, 64);
    assert_memory_not_equal(again + 16, rows + 16, 64);
    ok(dfcl_class_table_init(b, "null", 5, 3, mine, again, &err), &err);
    for (int i = 0; i < 4; i++)
        assert_memory_equal(again + 16 * i, table + 160, 64);
    ok(dfcl_class_table_init(b, "mean", 5, 3, mine, again, &err), &err);
    double mean = 0;
    for (int i = 0; i < 10; i++)
        mean += table[16 * i + 7] / 10;
    assert_true(fabs(again[7] - mean) < 1e-6 && fabs(again[39] - mean) < 1e-6);
    assert_int_equal(dfcl_class_table_init(b, path, 5, 3, mine, again, &err), DFCL_FORMAT);
    float eleven[11 * 16];
    ok(dfcl_class_table_init(b, path, 5, 10, names, eleven, &err), &err);
    assert_memory_equal(eleven, table, sizeof eleven);
    assert_int_equal(dfcl_class_table_init(b, "nothing", 5, 3, mine, again, &err), DFCL_IO);
    dfcl_free(ctx, table);
    dfcl_base_close(&b);

    /* the same classes in the same order keep the base's table; others replace it */
    dfcl_model *m;
    struct dfcl_method_config c = {.method = "bitfit", .classes = 10, .class_names = names};
    ok(dfcl_method_open(&m, dev, &p, &c, &err), &err);
    assert_false(m->table_rebuilt);
    assert_false(dfcl_dit_param(dfcl_model_dit(m), "y_embedder.embedding_table.weight")->trained);
    dfcl_model_close(&m);
    c = (struct dfcl_method_config){.method = "bitfit", .classes = 3, .class_names = mine};
    ok(dfcl_method_open(&m, dev, &p, &c, &err), &err);
    assert_true(m->table_rebuilt && dfcl_model_classes(m, 0) == 3);
    assert_true(dfcl_dit_param(dfcl_model_dit(m), "y_embedder.embedding_table.weight")->trained);
    dfcl_model_close(&m);
    c.train_classes = -1;
    ok(dfcl_method_open(&m, dev, &p, &c, &err), &err);
    assert_false(dfcl_dit_param(dfcl_model_dit(m), "y_embedder.embedding_table.weight")->trained);
    dfcl_model_close(&m);
    c.gamma_sites = "mlp";
    assert_int_equal(dfcl_method_open(&m, dev, &p, &c, &err), DFCL_USAGE);
}

/* ---- initialisation and full models ---- */

static void test_init(void **state) {
    dfcl_error err = {0};
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 64, .heads = 4, .patch = 2, .input = 8, .channels = 3, .classes = 7}, .seed = 9};
    const char *a = tmp_path("a.safetensors"), *b = tmp_path("b.safetensors");
    ok(dfcl_model_init(ctx, &ip, a, &err), &err);
    dfcl_model *m = open_model(a, NULL, 1);
    char hash[65];
    memcpy(hash, dfcl_model_hash(m), 65);
    assert_int_equal(dfcl_model_get_shape(m)->heads, 4);
    struct dfcl_dit *dit = dfcl_model_dit(m);
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].gamma)
            continue;
        float *v = malloc((size_t)p[i].count * 4), top = 0;
        double sq = 0;
        assert_non_null(v);
        ok(dfcl_dit_get(dit, &p[i], 0, v, &err), &err);
        for (int64_t k = 0; k < p[i].count; k++) {
            sq += (double)v[k] * v[k];
            top = fmaxf(top, fabsf(v[k]));
        }
        double rms = sqrt(sq / (double)p[i].count);
        bool zero = p[i].kind == DFCL_PARAM_VEC || strstr(p[i].name, "adaLN") || strstr(p[i].name, "final");
        if (zero) {
            assert_true(top == 0);
        } else if (p[i].kind == DFCL_PARAM_TABLE || strstr(p[i].name, "t_embedder")) {
            assert_true(rms > 0.017 && rms < 0.023);
        } else {
            double bound = sqrt(6.0 / ((double)p[i].count / (double)p[i].shape[0] + (double)p[i].shape[0]));
            assert_true(top <= bound * 1.0001 && top > bound * 0.98 && fabs(rms - bound / sqrt(3)) < 0.05 * bound);
        }
        free(v);
    }
    dfcl_model_close(&m);
    ok(dfcl_model_init(ctx, &ip, b, &err), &err);
    m = open_model(b, NULL, 1);
    assert_string_equal(dfcl_model_hash(m), hash);
    dfcl_model_close(&m);
    ip.seed = 10;
    ip.dtype = "bf16";
    ip.scale = 0.1f;
    ok(dfcl_model_init(ctx, &ip, b, &err), &err);
    m = open_model(b, NULL, 1);
    assert_string_not_equal(dfcl_model_hash(m), hash);
    dfcl_model_close(&m);
    ip.dtype = "f8";
    assert_int_equal(dfcl_model_init(ctx, &ip, b, &err), DFCL_USAGE);
}

/* A base made in memory is the one that a file would hold: same hash, same positions, same output. */
static void test_random_base(void **state) {
    static const char *const types[] = {"f32", "f16", "bf16"};
    const float t[2] = {3, 700};
    const int ids[2] = {1, 7};
    float x[2 * 3 * 64];
    dfcl_error err = {0};
    for (size_t i = 0; i < DFCL_COUNT(x); i++)
        x[i] = (float)sin((double)i);
    for (size_t k = 0; k < DFCL_COUNT(types); k++) {
        struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 64, .heads = 4, .patch = 2, .input = 8, .channels = 3, .classes = 7},
                                      .seed = 9, .no_zeros = 1, .dtype = types[k]};
        struct dfcl_model_params p = {.random = &ip};
        const char *path = tmp_path("r.safetensors");
        ok(dfcl_model_init(ctx, &ip, path, &err), &err);
        dfcl_model *a = open_model(path, NULL, 1), *b;
        ok(dfcl_model_open(&b, dev, &p, &err), &err);
        assert_string_equal(dfcl_model_hash(a), dfcl_model_hash(b));
        float *u = forward(a, 2, x, t, ids, NULL), *v = forward(b, 2, x, t, ids, NULL), top = 0;
        assert_memory_equal(u, v, sizeof x * 2);
        for (size_t i = 0; i < 2 * DFCL_COUNT(x); i++)
            top = fmaxf(top, fabsf(u[i]));
        assert_true(top > 0.01f); /* no zeros: the output layer and the gates count */
        free(u), free(v);
        dfcl_model_close(&a);
        dfcl_model_close(&b);
    }
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 64, .heads = 5, .patch = 2, .input = 8, .channels = 3, .classes = 7}};
    struct dfcl_model_params p = {.random = &ip};
    dfcl_model *m;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    assert_null(m);
}

static void test_full(void **state) {
    dfcl_error err = {0};
    struct input in = input();
    int ids[3] = {0, 2, 3};
    dfcl_model *tm = train_model("full", 3, cats, 0);
    assert_int_equal(dfcl_delta_save(tm, tmp_path("no.safetensors"), DFCL_NO_REF, NULL, &err), DFCL_USAGE);
    float *want = forward(tm, 3, in.x, in.t, ids, NULL);
    ok(dfcl_model_save(tm, tmp_path("full.safetensors"), DFCL_NO_REF, DFCL_F32, &err), &err);
    dfcl_model_close(&tm);
    dfcl_model *m = open_model(tmp_path("full.safetensors"), NULL, 1);
    assert_string_equal(dfcl_model_class_name(m, 0, 0), "cat");
    float *got = forward(m, 3, in.x, in.t, ids, NULL);
    check("full", got, want, 3 * in.n, 1e-6);
    free(got), free(want), free(in.x);
    dfcl_model_close(&m);
}

/* Another resolution: positions scaled to the file's grid, so that even positions coincide. */
static void test_resolution(void **state) {
    dfcl_error err = {0};
    dfcl_model *m;
    struct dfcl_model_params p = {.path = golden_path("dit/dit.safetensors"), .input = 16};
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    assert_true(dfcl_model_get_shape(m)->input == 16 && dfcl_model_get_shape(m)->positional_scale == 4);
    float x[4 * 256], t = 5;
    for (int i = 0; i < 4 * 256; i++)
        x[i] = (float)(i % 17) / 17;
    float *out = forward(m, 1, x, &t, (int[]){1}, NULL);
    for (int i = 0; i < 8 * 256; i++)
        assert_true(isfinite(out[i]));
    free(out);
    dfcl_model_close(&m);
    p.input = 9;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    /* height and width: one scale, by the longer; of the file's own longer side: none */
    p.input = 8;
    p.input_width = 16;
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    const struct dfcl_model_shape *sh = dfcl_model_get_shape(m);
    assert_true(sh->input == 8 && sh->input_width == 16 && sh->positional_scale == 4);
    dfcl_model_close(&m);
    p.input = 4;
    p.input_width = 8;
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    assert_true(dfcl_model_get_shape(m)->input == 4 && dfcl_model_get_shape(m)->positional_scale == 0);
    dfcl_model_close(&m);
    p.input_width = 7;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    p.input = 0;
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    assert_non_null(strstr(err.msg, "height"));
}

/* ---- descriptions ---- */

static cJSON *describe(const char *path) {
    dfcl_error err = {0};
    char *text = NULL;
    ok(dfcl_describe(ctx, path, 0, &text, &err), &err);
    assert_true(strlen(text) > 20);
    dfcl_text_free(ctx, text);
    ok(dfcl_describe(ctx, path, 1, &text, &err), &err);
    cJSON *o = cJSON_Parse(text);
    assert_non_null(o);
    dfcl_text_free(ctx, text);
    return o;
}
static void expect_text(const cJSON *o, const char *key, const char *want) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsString(v) || strcmp(v->valuestring, want))
        fail_msg("%s: expected %s", key, want);
}
static void expect_number(const cJSON *o, const char *key, double want) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsNumber(v) || v->valuedouble != want)
        fail_msg("%s: expected %g, found %g", key, want, v ? v->valuedouble : -1);
}
static void write_file(const char *path, const void *data, size_t size) {
    dfcl_error err = {0};
    ok(dfcl_file_write(ctx, path, data, size, &err), &err);
}

static void test_describe(void **state) {
    dfcl_error err = {0};
    cJSON *o = describe(golden_path("dit/dit.safetensors"));
    dfcl_model *m = open_model(golden_path("dit/dit.safetensors"), NULL, 1);
    expect_text(o, "kind", "base");
    expect_text(o, "base_hash", dfcl_model_hash(m));
    expect_number(o, "heads", 4);
    expect_number(o, "parameters", (double)dfcl_model_get_shape(m)->parameters);
    cJSON_Delete(o);
    dfcl_model_close(&m);
    /* alone, without the config beside it, the file does not say its heads */
    char *data;
    size_t size;
    ok(dfcl_file_read(ctx, golden_path("dit/dit.safetensors"), 1u << 28, &data, &size, &err), &err);
    write_file(tmp_path("alone.safetensors"), data, size);
    dfcl_free(ctx, data);
    struct dfcl_model_params p = {.path = tmp_path("alone.safetensors")};
    assert_int_equal(dfcl_model_open(&m, dev, &p, &err), DFCL_USAGE);
    assert_non_null(strstr(err.msg, "--heads"));
    o = describe(p.path);
    assert_null(cJSON_GetObjectItem(o, "heads"));
    expect_number(o, "depth", 4);
    cJSON_Delete(o);

    dfcl_model *tm = train_model("difffit", 3, cats, 0);
    ok(dfcl_delta_save(tm, tmp_path("d.safetensors"), DFCL_NO_REF, "{\"steps\": 5}", &err), &err);
    o = describe(tmp_path("d.safetensors"));
    expect_text(o, "kind", "delta");
    expect_text(o, "method", "difffit");
    expect_number(o, "gamma_values", 2 * 6 * 96);
    expect_number(o, "values", (double)dfcl_dit_trained(dfcl_model_dit(tm), NULL, NULL));
    assert_string_equal(cJSON_GetArrayItem(cJSON_GetObjectItem(o, "class_names"), 1)->valuestring, cats[1]);
    cJSON_Delete(o);
    dfcl_model_close(&tm);

    o = describe(golden_path("forward.safetensors"));
    expect_text(o, "kind", "tensors");
    cJSON_Delete(o);

    ok(dfcl_mkdirs(ctx, tmp_path("run/checkpoints/step-20"), &err), &err);
    static const char config[] = "{\"format\": \"difffit-cl run 1\", \"steps\": 40}";
    static const char metrics[] = "{\"step\": 10}\n{\"step\": 20, \"loss\": 0.5}\n{\"step\": 30, \"lo";
    write_file(tmp_path("run/config.json"), config, sizeof config - 1);
    write_file(tmp_path("run/metrics.jsonl"), metrics, sizeof metrics - 1);
    o = describe(tmp_path("run"));
    expect_text(o, "kind", "run");
    expect_number(o, "step", 20);
    expect_number(o, "steps", 40);
    expect_number(cJSON_GetObjectItem(o, "last_metrics"), "loss", 0.5);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(o, "checkpoints")), 1);
    cJSON_Delete(o);

    ok(dfcl_mkdirs(ctx, tmp_path("pictures/a"), &err), &err);
    ok(dfcl_mkdirs(ctx, tmp_path("pictures/b"), &err), &err);
    static const char *const text[] = {"seed", "1234", NULL};
    static const char *const pictures[] = {"pictures/a/1.png", "pictures/b/1.png", "pictures/b/2.png"};
    for (int i = 0; i < 3; i++)
        ok(dfcl_png_write(ctx, tmp_path(pictures[i]), (const uint8_t[35]){0}, 5, 7, 1, text, &err), &err);
    o = describe(tmp_path("pictures"));
    expect_text(o, "kind", "pictures");
    expect_number(o, "samples", 3);
    const cJSON *b = cJSON_GetArrayItem(cJSON_GetObjectItem(o, "classes"), 1);
    expect_text(b, "name", "b");
    expect_number(b, "samples", 2);
    cJSON_Delete(o);
    o = describe(tmp_path("pictures/a/1.png"));
    expect_text(o, "kind", "picture");
    expect_number(o, "width", 5);
    expect_number(o, "height", 7);
    expect_text(cJSON_GetObjectItem(o, "text"), "seed", "1234");
    cJSON_Delete(o);

    static const float values[1 * 4 * 32];
    ok(dfcl_npy_write(ctx, tmp_path("x.npy"), values, (int64_t[]){1, 4, 32}, 3, &err), &err);
    o = describe(tmp_path("x.npy"));
    expect_text(o, "dtype", "F32");
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(o, "shape")), 3);
    assert_int_equal(cJSON_GetArrayItem(cJSON_GetObjectItem(o, "shape"), 2)->valueint, 32);
    cJSON_Delete(o);
    struct dfcl_npz_writer *w;
    ok(dfcl_npz_writer_create(&w, ctx, tmp_path("x.npz"), 1, 7, 5, 3, &err), &err);
    ok(dfcl_npz_writer_add(w, (const uint8_t[105]){0}, 1, &err), &err);
    ok(dfcl_npz_writer_finish(&w, NULL, &err), &err);
    o = describe(tmp_path("x.npz"));
    expect_text(o, "kind", "arrays");
    const cJSON *arr = cJSON_GetArrayItem(cJSON_GetObjectItem(o, "arrays"), 0);
    expect_text(arr, "name", "arr_0.npy");
    expect_text(arr, "dtype", "U8");
    assert_int_equal(cJSON_GetArrayItem(cJSON_GetObjectItem(arr, "shape"), 2)->valueint, 5);
    cJSON_Delete(o);
    char *none;
    assert_int_equal(dfcl_describe(ctx, tmp_path("missing"), 0, &none, &err), DFCL_IO);
    write_file(tmp_path("junk"), "junk", 4);
    assert_int_equal(dfcl_describe(ctx, tmp_path("junk"), 0, &none, &err), DFCL_FORMAT);
    assert_null(none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),         cmocka_unit_test(test_options),      cmocka_unit_test(test_init),
        cmocka_unit_test(test_class_tables),   cmocka_unit_test(test_delta_difffit), cmocka_unit_test(test_delta_others),
        cmocka_unit_test(test_delta_file),     cmocka_unit_test(test_full),         cmocka_unit_test(test_resolution),
        cmocka_unit_test(test_open_errors),    cmocka_unit_test(test_containers),   cmocka_unit_test(test_plain_delta), cmocka_unit_test(test_same_matrix),
        cmocka_unit_test(test_describe),       cmocka_unit_test(test_random_base),
    };
    snprintf(dir, sizeof dir, "/tmp/dfcl-model-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    open_device();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dfcl_remove_tree(ctx, dir, NULL);
    close_device();
    return failed;
}
