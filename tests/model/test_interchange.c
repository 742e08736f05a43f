/* Numbers that PyTorch and diffusers computed from this project's files, stored in tests/golden/interchange: guidance from a second model, the delta as
 * tools/difffit_delta.py applies it, a merged folder in diffusers' own class. Limit 1e-5, relative L2. */
#include <unistd.h>

#include "base/file.h"
#include "base/sha256.h"
#include "golden.h"

#include <difffit-cl/dfcl.h>

enum { N = 3, IMG = 4 * 8 * 8, GUIDED_STEPS = 6, APPLIED_STEPS = 3 };
#define LIMIT 1e-5

static char base[512], delta[512], root[64];
static struct dfcl_st *ref;
static struct dfcl_model_params base_params;

static int setup(void **state) {
    (void)state;
    open_device();
    ref = golden_open("interchange/reference.safetensors");
    snprintf(base, sizeof base, "%s", golden_path("dit/micro/raw_f32.safetensors"));
    snprintf(delta, sizeof delta, "%s", golden_path("interchange/delta.safetensors"));
    base_params = (struct dfcl_model_params){.path = base, .heads = 2};
    strcpy(root, "/tmp/dfcl-interchange-XXXXXX");
    return !mkdtemp(root);
}
static int teardown(void **state) {
    (void)state;
    dfcl_st_close(&ref);
    dfcl_remove_tree(ctx, root, NULL);
    close_device();
    return 0;
}

static void near(const float *got, const char *key, size_t n) {
    size_t count;
    float *want = golden_need(ref, key, &count);
    assert_int_equal(count, n);
    double e = rel_l2(got, want, n);
    printf("   %s: %.1e\n", key, e);
    if (!(e <= LIMIT))
        fail_msg("%s: relative L2 distance %g, allowed %g", key, e, LIMIT);
    free(want);
}

/* The three classes of the domain from the stored noise by DDIM. */
static void draw(float strength, int steps, double cfg, const char *channels, enum dfcl_guidance guidance, float *out) {
    dfcl_error err = {0};
    dfcl_model *m = NULL;
    int domain;
    float *z = golden_need(ref, "z", NULL);
    struct dfcl_sample_request want[N];
    const struct dfcl_sample_params how = {.sampler = DFCL_SAMPLER_DDIM, .steps = steps, .cfg = cfg, .cfg_channels = channels, .guidance = guidance, .init_noise = z};
    ok(dfcl_model_open(&m, dev, &base_params, &err), &err);
    ok(dfcl_model_load_delta(m, delta, strength, 0, &domain, &err), &err);
    assert_int_equal(dfcl_model_classes(m, domain), N);
    assert_string_equal(dfcl_model_class_name(m, domain, 1), "two");
    for (int i = 0; i < N; i++)
        want[i] = (struct dfcl_sample_request){.domain = domain, .class_id = i, .number = (uint32_t)i};
    ok(dfcl_sample(m, &how, want, N, out, &err), &err);
    dfcl_model_close(&m);
    free(z);
}

static void guidance_by_domain(void **state) {
    (void)state;
    float x[N * IMG], other[N * IMG];
    draw(1, GUIDED_STEPS, 2.5, "3", DFCL_GUIDANCE_DOMAIN, x);
    near(x, "guided.3", N * IMG);
    draw(1, GUIDED_STEPS, 2.5, "all", DFCL_GUIDANCE_DOMAIN, x);
    near(x, "guided.all", N * IMG);
    draw(1, GUIDED_STEPS, 2.5, "all", DFCL_GUIDANCE_CLASS, other);
    assert_true(rel_l2(other, x, N * IMG) > 1e-2); /* the reference is told apart from guidance by class */
}

static void delta_in_pytorch(void **state) {
    (void)state;
    float x[N * IMG], half[N * IMG];
    draw(1, APPLIED_STEPS, 1, NULL, DFCL_GUIDANCE_CLASS, x);
    near(x, "applied.drawn", N * IMG);
    draw(0.5f, APPLIED_STEPS, 1, NULL, DFCL_GUIDANCE_CLASS, half);
    near(half, "applied.half_drawn", N * IMG);
    assert_true(rel_l2(half, x, N * IMG) > 1e-2);
}

static void forward(const char *path, const char *const *keys, size_t count) {
    dfcl_error err = {0};
    dfcl_bench *bench = NULL;
    struct dfcl_bench_params p = {.kind = DFCL_BENCH_FORWARD, .model = {.path = path, .heads = 2}, .batch = N};
    struct dfcl_bench_run run;
    const float *out;
    int64_t shape[4];
    float *x = golden_need(ref, "x", NULL), *t = golden_need(ref, "t", NULL), *y = golden_need(ref, "y", NULL);
    int32_t at[N], classes[N];
    for (int i = 0; i < N; i++) {
        at[i] = (int32_t)t[i];
        classes[i] = (int32_t)y[i];
    }
    ok(dfcl_bench_create(&bench, dev, &p, &err), &err);
    ok(dfcl_bench_set_inputs(bench, &(struct dfcl_bench_inputs){.x = x, .t = at, .classes = classes}, &err), &err);
    ok(dfcl_bench_run(bench, &run, &err), &err);
    ok(dfcl_bench_output(bench, &out, shape, &err), &err);
    assert_true(shape[0] == N && shape[1] == 8 && shape[2] == 8 && shape[3] == 8);
    for (size_t i = 0; i < count; i++)
        near(out, keys[i], (size_t)N * 2 * IMG);
    dfcl_bench_destroy(&bench);
    free(x);
    free(t);
    free(y);
}

/* Names, types, shapes and values of all tensors, as tools/make_interchange.py hashes them. */
static void tensors_hash(const char *path, char hash[65]) {
    dfcl_error err = {0};
    struct dfcl_st *st;
    struct dfcl_sha256 h;
    ok(dfcl_st_open(&st, ctx, path, &err), &err);
    ok(dfcl_sha256_init(&h, &err), &err);
    for (size_t i = 0; i < st->count; i++) {
        const struct dfcl_tensor_view *v = &st->tensors[st->by_name[i]];
        assert_int_equal(v->dtype, DFCL_F32);
        char line[256];
        int n = snprintf(line, sizeof line, "%s\nF32\n", v->name);
        for (int d = 0; d < v->ndim; d++)
            n += snprintf(line + n, sizeof line - (size_t)n, "%s%lld", d ? "," : "", (long long)v->shape[d]);
        n += snprintf(line + n, sizeof line - (size_t)n, "\n");
        float *values = golden_need(st, v->name, NULL);
        ok(dfcl_sha256_update(&h, line, (size_t)n, &err), &err);
        ok(dfcl_sha256_update(&h, values, (size_t)v->count * sizeof *values, &err), &err);
        free(values);
    }
    ok(dfcl_sha256_finish(&h, hash, &err), &err);
    dfcl_st_close(&st);
}

/* The folder that diffusers read, tensor by tensor, and its output; the original network's with the delta applied is the same. */
static void merged_in_diffusers(void **state) {
    (void)state;
    static const char *const keys[] = {"merged.out", "applied.out"};
    dfcl_error err = {0};
    char out[128], file[192], hash[65];
    struct dfcl_merge_params p = {.base = base_params, .delta = delta, .names = DFCL_NAMES_DIFFUSERS};
    snprintf(out, sizeof out, "%s/merged", root);
    ok(dfcl_model_merge(ctx, &p, out, &err), &err);
    snprintf(file, sizeof file, "%s/diffusion_pytorch_model.safetensors", out);
    tensors_hash(file, hash);
    const char *want = dfcl_st_meta(ref, "merged_sha256");
    assert_non_null(want);
    assert_string_equal(hash, want);
    forward(out, keys, DFCL_COUNT(keys));
    p.names = DFCL_NAMES_ORIGINAL;
    snprintf(out, sizeof out, "%s/merged.safetensors", root);
    ok(dfcl_model_merge(ctx, &p, out, &err), &err);
    forward(out, keys, DFCL_COUNT(keys));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guidance_by_domain),
        cmocka_unit_test(delta_in_pytorch),
        cmocka_unit_test(merged_in_diffusers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
