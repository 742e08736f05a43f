/* dfcl_sample, the public call: requests, defaults, guidance channels, given noise, messages. */
#include "golden.h"

#include <difffit-cl/sample.h>

#include "base/philox.h"
#include "models/model.h"

enum { N = 2, VALUES = 4 * 8 * 8 };

static dfcl_model *model;

static int setup(void **state) {
    (void)state;
    open_device();
    struct dfcl_model_params p = {.path = DFCL_GOLDEN "/dit/dit.safetensors", .heads = 4};
    dfcl_error err = {0};
    ok(dfcl_model_open(&model, dev, &p, &err), &err);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    dfcl_model_close(&model);
    close_device();
    return 0;
}

static void golden_requests(struct dfcl_st *g, struct dfcl_sample_request r[N]) {
    size_t n = 0;
    float *y = golden_need(g, "y", &n);
    assert_int_equal(n, 2 * N);
    for (int i = 0; i < N; i++)
        r[i] = (struct dfcl_sample_request){.class_id = (int)y[i], .number = (uint32_t)i};
    free(y);
}

static void final_pictures(void **state) {
    (void)state;
    static const struct {
        const char *key, *spacing;
        enum dfcl_sampler_kind kind;
    } runs[] = {{"ddpm10.final", "even", DFCL_SAMPLER_DDPM},
                {"ddim_ddim10.final", "ddim", DFCL_SAMPLER_DDIM},
                {"ddim_10.final", NULL, DFCL_SAMPLER_DDIM},
                {"dpm.final", NULL, DFCL_SAMPLER_DPMPP_2M}};
    struct dfcl_st *g = golden_open("sample.safetensors");
    struct dfcl_sample_request r[N];
    golden_requests(g, r);
    float *x_t = golden_need(g, "x_T", NULL), *noise = golden_need(g, "ddpm10.noise", NULL), out[N * VALUES];
    for (size_t k = 0; k < DFCL_COUNT(runs); k++) {
        size_t n = 0;
        dfcl_error err = {0};
        float *want = golden_need(g, runs[k].key, &n);
        struct dfcl_sample_params p = {.sampler = runs[k].kind, .steps = 10, .spacing = runs[k].spacing, .cfg = 4.0, .init_noise = x_t,
                                       .step_noise = noise};
        ok(dfcl_sample(model, &p, r, N, out, &err), &err);
        double e = rel_l2(out, want, n);
        if (!(e < 5e-5))
            fail_msg("%s: relative error %g", runs[k].key, e);
        free(want);
    }
    free(x_t), free(noise);
    dfcl_st_close(&g);
}

/* Noise from the seed is dfcl_normals of the documented streams: giving these numbers by hand draws the same picture. */
static void seeded_noise(void **state) {
    (void)state;
    enum { STEPS = 3 };
    static float init[N * VALUES], steps[STEPS * N * VALUES], a[N * VALUES], b[N * VALUES];
    struct dfcl_sample_request r[N] = {{.class_id = 3, .number = 17}, {.class_id = 10, .number = 4000000000u}};
    struct dfcl_sample_params p = {.steps = STEPS, .cfg = 1.0, .seed = 0x123456789abcdefu, .batch = 1};
    dfcl_error err = {0};
    ok(dfcl_sample(model, &p, r, N, a, &err), &err);
    for (int i = 0; i < N; i++) {
        dfcl_normals(p.seed, DFCL_STREAM_SAMPLE_INIT, 0, r[i].number, init + i * VALUES, VALUES);
        for (int j = 0; j < STEPS; j++)
            dfcl_normals(p.seed, DFCL_STREAM_SAMPLE_STEP, (uint32_t)j, r[i].number, steps + (j * N + i) * VALUES, VALUES);
    }
    p.init_noise = init;
    p.step_noise = steps;
    p.seed = 0;
    ok(dfcl_sample(model, &p, r, N, b, &err), &err);
    assert_memory_equal(a, b, sizeof a);
}

static void channels(void **state) {
    (void)state;
    static float three[VALUES], def[VALUES], all[VALUES], none[VALUES], null_class[VALUES];
    struct dfcl_sample_request r = {.class_id = 2}, null = {.class_id = 10};
    struct dfcl_sample_params p = {.sampler = DFCL_SAMPLER_DDIM, .steps = 2, .cfg = 3.0, .seed = 5};
    dfcl_error err = {0};
    ok(dfcl_sample(model, &p, &r, 1, def, &err), &err);
    p.cfg_channels = "3";
    ok(dfcl_sample(model, &p, &r, 1, three, &err), &err);
    assert_memory_equal(def, three, sizeof def); /* 4-channel latents */
    p.cfg_channels = "all";
    ok(dfcl_sample(model, &p, &r, 1, all, &err), &err);
    assert_true(rel_l2(all, three, VALUES) > 1e-3);
    /* scale 0 over all channels leaves the null class alone */
    p.cfg = 0.0;
    ok(dfcl_sample(model, &p, &r, 1, none, &err), &err);
    p.cfg = 1.0;
    ok(dfcl_sample(model, &p, &null, 1, null_class, &err), &err);
    assert_true(rel_l2(none, null_class, VALUES) < 1e-5);
}

static int stop_at_once(void *user) {
    (void)user;
    return 1;
}

static void refusals(void **state) {
    (void)state;
    static float out[VALUES];
    struct dfcl_sample_request r = {.class_id = 11};
    struct dfcl_sample_params p = {.sampler = DFCL_SAMPLER_DDIM, .steps = 2, .cfg = 1.0};
    dfcl_error err = {0};
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    r.class_id = 0;
    r.domain = 1;
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    r.domain = 0;
    p.cfg_channels = "2";
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    p.cfg_channels = NULL;
    p.spacing = "odd";
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    p.spacing = NULL;
    p.steps = 1001;
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    p.steps = 2;
    p.cfg = NAN;
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_USAGE);
    p.cfg = 1.0;
    p.stop = stop_at_once;
    assert_int_equal(dfcl_sample(model, &p, &r, 1, out, &err), DFCL_INTERRUPTED);
    p.stop = NULL;
    assert_int_equal(dfcl_sample(model, &p, &r, 0, out, &err), DFCL_OK);
    ok(dfcl_sample(model, &p, &r, 1, out, &err), &err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(final_pictures),
        cmocka_unit_test(seeded_noise),
        cmocka_unit_test(channels),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
