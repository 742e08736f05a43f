/* The autoencoder beyond the reference data (verify does that): bands of rows give what whole pictures give, at every cut; names of all kinds of files;
 * memory limits; bad files; host memory running out. Runs on the device named by DFCL_TEST_DEVICE (default "host"). */
#include "golden.h"

#include <unistd.h>

#include "base/file.h"
#include "base/philox.h"
#include "formats/tensor_file.h"
#include "models/vae.h"

static char dir[64];
static long allocations, fail_at = -1;

static void *counted_alloc(void *user, size_t size) {
    (void)user;
    return allocations++ == fail_at ? NULL : malloc(size);
}
static void counted_free(void *user, void *p) {
    (void)user;
    free(p);
}

static struct dfcl_vae *vae_of(const char *path, uint64_t max_memory) {
    dfcl_error err = {0};
    struct dfcl_vae *v;
    ok(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = path, .groups = 8, .max_memory = max_memory}, &err), &err);
    return v;
}

/* ---- bands ---- */

/* Convolutions come out with the same bits; the statistics of norms are summed in another order. */
static void compare_cuts(struct dfcl_vae *v, struct vae_coder *c, int h, int w, const float *in, size_t n, int first, int end) {
    dfcl_error err = {0};
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    assert_true(want && got);
    uint64_t bytes, most;
    double flops, least;
    ok(vae_run_cut(v, c, (struct vae_cut){-1, 0}, h, w, in, want, &err), &err);
    ok(vae_measure(v, c, (struct vae_cut){-1, 0}, h, w, &most, &least, &err), &err);
    static const int rows[] = {1, 3, 8, 1000};
    for (int split = first; split < end; split++)
        for (size_t i = 0; i < DFCL_COUNT(rows); i++) {
            struct vae_cut cut = {split, rows[i]};
            memset(got, 0xff, n * sizeof *got);
            ok(vae_run_cut(v, c, cut, h, w, in, got, &err), &err);
            ok(vae_measure(v, c, cut, h, w, &bytes, &flops, &err), &err);
            double d = rel_l2(got, want, n);
            if (!(d < 2e-6))
                fail_msg("split %d, %d rows: %g off", split, rows[i], d);
            assert_true(flops >= least);
        }
    free(want);
    free(got);
}

static void test_bands(void **state) {
    (void)state;
    struct dfcl_st *st = golden_open("vae/io.safetensors");
    float *image = golden_need(st, "b.image", NULL), *z = golden_need(st, "b.dec_in", NULL);
    struct dfcl_vae *v = vae_of(golden_path("vae"), 0);
    compare_cuts(v, &v->enc, 24, 40, image, 2 * 4 * 12 * 20, 1, v->enc.first_whole + 1);
    compare_cuts(v, &v->dec, 12, 20, z, 3 * 24 * 40, v->dec.end_whole, v->dec.count);
    dfcl_vae_close(&v);
    free(image);
    free(z);
    dfcl_st_close(&st);
}

/* A limit below what the whole picture needs is kept, with the same picture; one too low is refused. */
static void test_limit(void **state) {
    (void)state;
    dfcl_error err = {0};
    enum { S = 64, N = 3 * 2 * S * 2 * S };
    float *z = calloc(4 * S * S, sizeof *z), *want = calloc(N, sizeof *want), *got = calloc(N, sizeof *got);
    assert_true(z && want && got);
    dfcl_normals(1, DFCL_STREAM_TEST, 0, 0, z, 4 * S * S);
    struct dfcl_vae *v = vae_of(golden_path("vae"), 0);
    ok(dfcl_vae_decode(v, 1, S, S, z, want, &err), &err);
    assert_non_null(strstr(dfcl_vae_plan(v), "128x128 whole"));
    uint64_t whole = dfcl_device_memory_used(dev), weights = v->weights.total, limit = weights + (whole - weights) / 4 * 3;
    dfcl_vae_close(&v);
    v = vae_of(golden_path("vae"), limit);
    ok(dfcl_vae_decode(v, 1, S, S, z, got, &err), &err);
    assert_non_null(strstr(dfcl_vae_plan(v), "in bands of"));
    assert_true(dfcl_device_memory_used(dev) <= limit);
    assert_true(rel_l2(got, want, N) < 2e-6);
    dfcl_vae_close(&v);
    v = vae_of(golden_path("vae"), weights + 10000);
    assert_int_equal(dfcl_vae_decode(v, 1, S, S, z, got, &err), DFCL_NOMEM);
    assert_non_null(strstr(err.msg, "even in bands"));
    dfcl_vae_close(&v);
    free(z);
    free(want);
    free(got);
}

/* ---- files ---- */

/* The reference's tensors under other names. */
static const char *renamed(const char *name, const char *prefix, const char *const (*words)[2], size_t count, char out[256]) {
    char rest[256];
    snprintf(out, 256, "%s%s", prefix, name);
    for (size_t i = 0; i < count; i++) {
        char *at = strstr(out, words[i][0]);
        if (!at)
            continue;
        snprintf(rest, sizeof rest, "%s", at + strlen(words[i][0]));
        snprintf(at, (size_t)(out + 256 - at), "%s%s", words[i][1], rest);
    }
    return out;
}

enum damage { NONE, MISSING, SHAPE, NOT_A_NUMBER };

static char *write_renamed(const char *file, const char *prefix, const char *const (*words)[2], size_t count, bool linear_as_conv,
                           enum damage damage) {
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("vae/diffusion_pytorch_model.safetensors");
    struct dfcl_st_writer *w;
    char name[256], *path = malloc(128);
    assert_non_null(path);
    snprintf(path, 128, "%s/%s", dir, file);
    ok(dfcl_st_writer_create(&w, ctx, path, &err), &err);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < st->count; i++) {
            struct dfcl_tensor_view *t = &st->tensors[i];
            bool hit = !strcmp(t->name, "decoder.mid_block.resnets.0.norm2.weight");
            if (hit && damage == MISSING)
                continue;
            int64_t shape[4] = {t->shape[0], t->ndim > 1 ? t->shape[1] : 1, t->ndim > 2 ? t->shape[2] : 1, t->ndim > 3 ? t->shape[3] : 1};
            uint64_t n = t->count - (hit && damage == SHAPE ? 8 : 0);
            if (hit && damage == SHAPE)
                shape[0] -= 8;
            if (!pass) {
                ok(dfcl_st_writer_tensor(w, renamed(t->name, prefix, words, count, name), DFCL_F32, shape, linear_as_conv && t->ndim == 2 ? 4 : t->ndim, &err),
                   &err);
                continue;
            }
            float *x = golden_need(st, t->name, NULL);
            if (hit && damage == NOT_A_NUMBER)
                x[3] = NAN;
            ok(dfcl_st_writer_f32(w, x, n, &err), &err);
            free(x);
        }
    ok(dfcl_st_writer_finish(&w, &err), &err);
    dfcl_st_close(&st);
    return path;
}

static const char *const old_names[][2] = {{"to_q", "query"}, {"to_k", "key"}, {"to_v", "value"}, {"to_out.0", "proj_attn"}};
static const char *const original_names[][2] = {
    {"up_blocks.0", "up.one"}, {"up_blocks.1", "up.0"}, {"up.one", "up.1"}, {"down_blocks", "down"}, {"mid_block.resnets.0", "mid.block_1"},
    {"mid_block.resnets.1", "mid.block_2"}, {"mid_block.attentions.0.group_norm", "mid.attn_1.norm"},
    {"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"}, {"mid_block.attentions.0.to_", "mid.attn_1."}, {"resnets", "block"},
    {"downsamplers.0.conv", "downsample.conv"}, {"upsamplers.0.conv", "upsample.conv"}, {"conv_shortcut", "nin_shortcut"}, {"conv_norm_out", "norm_out"}};

static void test_names(void **state) {
    (void)state;
    dfcl_error err = {0};
    enum { H = 12, W = 20, Z = 4 * H * W, N = 3 * 4 * H * W };
    float *z = calloc(Z, sizeof *z), *want = calloc(N, sizeof *want), *got = calloc(N, sizeof *got), mean[2][Z];
    assert_true(z && want && got);
    dfcl_normals(2, DFCL_STREAM_TEST, 0, 0, z, Z);
    struct dfcl_vae *v = vae_of(golden_path("vae"), 0);
    assert_float_equal(dfcl_vae_get_shape(v)->scale, 0.18215, 1e-12);
    assert_int_equal(dfcl_vae_get_shape(v)->factor, 2);
    assert_int_equal(dfcl_vae_get_shape(v)->blocks, 2);
    assert_int_equal(dfcl_vae_get_shape(v)->layers, 1);
    ok(dfcl_vae_decode(v, 1, H, W, z, want, &err), &err);
    ok(dfcl_vae_encode(v, 1, 2 * H, 2 * W, want, mean[0], NULL, &err), &err);
    dfcl_vae_close(&v);
    char *paths[] = {write_renamed("old.safetensors", "", old_names, DFCL_COUNT(old_names), true, NONE),
                     write_renamed("original.safetensors", "first_stage_model.", original_names, DFCL_COUNT(original_names), true, NONE)};
    for (size_t i = 0; i < DFCL_COUNT(paths); i++) {
        v = vae_of(paths[i], 0);
        ok(dfcl_vae_decode(v, 1, H, W, z, got, &err), &err);
        assert_memory_equal(got, want, N * sizeof *got);
        ok(dfcl_vae_encode(v, 1, 2 * H, 2 * W, want, mean[1], NULL, &err), &err);
        assert_memory_equal(mean[0], mean[1], sizeof mean[0]);
        dfcl_vae_close(&v);
        free(paths[i]);
    }
    free(z);
    free(want);
    free(got);
}

static void refused(char *path, dfcl_status want, const char *word) {
    dfcl_error err = {0};
    struct dfcl_vae *v;
    assert_int_equal(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = path, .groups = 8}, &err), want);
    assert_null(v);
    if (!strstr(err.msg, word) || !strstr(err.msg, dir))
        fail_msg("expected %s and %s in: %s", word, dir, err.msg);
    free(path);
}

static void test_bad_files(void **state) {
    (void)state;
    dfcl_error err = {0};
    refused(write_renamed("missing.safetensors", "", NULL, 0, false, MISSING), DFCL_FORMAT, "no tensor decoder.mid_block.resnets.0.norm2.weight");
    refused(write_renamed("shape.safetensors", "", NULL, 0, false, SHAPE), DFCL_FORMAT, "expected [32], found [24]");
    refused(write_renamed("nan.safetensors", "", NULL, 0, false, NOT_A_NUMBER), DFCL_NONFINITE, "value 3 is not finite");
    struct dfcl_vae *v;
    assert_int_equal(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("vae"), .groups = 5}, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, "in 5 groups"));
    assert_int_equal(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("dit/dit.safetensors")}, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, "AutoencoderKL"));
    assert_int_equal(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = "/nonexistent"}, &err), DFCL_IO);
}

/* Sides that the factor does not divide lose what is left over; halves that were left out, and wrong sizes, are refused. */
static void test_use(void **state) {
    (void)state;
    dfcl_error err = {0};
    static float x[3 * 9 * 7], cut[3 * 8 * 6], mean[2][4 * 4 * 3], logvar[4 * 4 * 3];
    struct dfcl_vae *v;
    dfcl_normals(3, DFCL_STREAM_TEST, 0, 0, x, DFCL_COUNT(x));
    ok(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("vae"), .only_encoder = 1}, &err), &err);
    assert_int_equal(dfcl_vae_get_shape(v)->decoder, 0);
    ok(dfcl_vae_encode(v, 1, 9, 7, x, mean[0], logvar, &err), &err);
    assert_int_equal(dfcl_vae_decode(v, 1, 4, 3, mean[0], x, &err), DFCL_USAGE);
    assert_int_equal(dfcl_vae_encode(v, 1, 1, 7, x, mean[0], logvar, &err), DFCL_USAGE);
    x[5] = INFINITY;
    assert_int_equal(dfcl_vae_encode(v, 1, 9, 7, x, mean[1], logvar, &err), DFCL_NONFINITE);
    assert_non_null(strstr(err.msg, "encoder.down_blocks.0.resnets.0"));
    dfcl_vae_close(&v);
    ok(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("vae"), .only_decoder = 1, .scale = 0.5}, &err), &err);
    assert_int_equal(dfcl_vae_encode(v, 1, 8, 6, cut, mean[1], logvar, &err), DFCL_USAGE);
    assert_float_equal(dfcl_vae_get_shape(v)->scale, 0.5, 0);
    dfcl_vae_close(&v);
    assert_int_equal(dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("vae"), .only_decoder = 1, .only_encoder = 1}, &err), DFCL_USAGE);
}

static dfcl_status both(dfcl_error *err) {
    static const float z[4 * 2 * 2];
    float picture[3 * 4 * 4], mean[4 * 2 * 2];
    struct dfcl_vae *v;
    dfcl_status s = dfcl_vae_open(&v, dev, &(struct dfcl_vae_params){.path = golden_path("vae")}, err);
    if (!s)
        s = dfcl_vae_decode(v, 1, 2, 2, z, picture, err);
    if (!s)
        s = dfcl_vae_encode(v, 1, 4, 4, picture, mean, NULL, err);
    dfcl_vae_close(&v);
    return s;
}

static void test_no_memory(void **state) {
    (void)state;
    dfcl_error err = {0};
    allocations = 0;
    ok(both(&err), &err);
    long all = allocations;
    uint64_t used = dfcl_device_memory_used(dev);
    for (long i = 0; i < all; i += i < 100 ? 1 : 7) {
        memset(&err, 0, sizeof err);
        allocations = 0;
        fail_at = i;
        dfcl_status s = both(&err);
        fail_at = -1;
        if (s != DFCL_NOMEM || !err.msg[0])
            fail_msg("allocation %ld of %ld: status %d, %s", i, all, (int)s, err.msg);
        assert_true(dfcl_device_memory_used(dev) == used);
    }
}

int main(void) {
    dfcl_error err = {0};
    snprintf(dir, sizeof dir, "/tmp/test-vae-%ld", (long)getpid());
    open_device();
    bool host = !strcmp(dfcl_device_get_info(dev)->backend, "host");
    if (host) { /* again, with an allocator that can fail */
        struct dfcl_context_params p = {.alloc = counted_alloc, .free = counted_free};
        close_device();
        ok(dfcl_context_create(&ctx, &p, &err), &err);
        ok(dfcl_device_open(&dev, ctx, "host", &err), &err);
    }
    ok(dfcl_mkdirs(ctx, dir, &err), &err);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bands), cmocka_unit_test(test_limit),     cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_bad_files), cmocka_unit_test(test_use), cmocka_unit_test(test_no_memory)};
    int failed = _cmocka_run_group_tests("vae", tests, DFCL_COUNT(tests) - !host, NULL, NULL);
    ok(dfcl_remove_tree(ctx, dir, &err), &err);
    close_device();
    return failed;
}
