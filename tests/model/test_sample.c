/* dfcl_sample, the public call: requests, defaults, guidance channels, given noise, messages. */
#include "golden.h"

#include <difffit-cl/sample.h>

#include <unistd.h>

#include "base/philox.h"
#include "diffusion/solver.h"
#include "models/model.h"

enum { N = 2, VALUES = 4 * 8 * 8, DOMAINS = 8, HIDDEN = 96, CLASSES = 10 };

static dfcl_model *model, *bare; /* the reference model; `bare` never loads a delta */
static char dir[64], files[DOMAINS + 1][96];

static dfcl_model *open_model(void) {
    struct dfcl_model_params p = {.path = DFCL_GOLDEN "/dit/dit.safetensors", .heads = 4, .max_domains = DOMAINS};
    dfcl_error err = {0};
    dfcl_model *m;
    ok(dfcl_model_open(&m, dev, &p, &err), &err);
    return m;
}

/* A delta of a few random vectors as a plain state dict; odd ones bring a class table of the base's size. */
static void write_delta(int k) {
    static const struct {
        const char *name;
        int n;
        float mean;
    } list[] = {{"blocks.0.gamma1", HIDDEN, 1}, {"blocks.1.attn.gamma1", 3 * HIDDEN, 1}, {"blocks.2.adaLN_modulation.1.bias", 6 * HIDDEN, 0},
                {"blocks.3.mlp.fc1.bias", 4 * HIDDEN, 0}, {"final_layer.adaLN_modulation.1.bias", 2 * HIDDEN, 0},
                {"t_embedder.mlp.0.bias", HIDDEN, 0}, {DFCL_CLASS_TABLE, (CLASSES + 1) * HIDDEN, 0}};
    dfcl_error err = {0};
    struct dfcl_st_writer *w;
    static float v[(CLASSES + 1) * HIDDEN];
    size_t count = DFCL_COUNT(list) - (k % 2 ? 0 : 1);
    snprintf(files[k], sizeof files[k], "%s/%d.safetensors", dir, k);
    ok(dfcl_st_writer_create(&w, ctx, files[k], &err), &err);
    for (size_t i = 0; i < count; i++) {
        const int64_t flat[1] = {list[i].n}, table[2] = {CLASSES + 1, HIDDEN};
        bool is_table = i == 6;
        ok(dfcl_st_writer_tensor(w, list[i].name, DFCL_F32, is_table ? table : flat, is_table ? 2 : 1, &err), &err);
    }
    for (size_t i = 0; i < count; i++) {
        dfcl_normals((uint64_t)k, DFCL_STREAM_TEST, 0, (uint32_t)i, v, list[i].n);
        for (int j = 0; j < list[i].n; j++)
            v[j] = list[i].mean + 0.3f * v[j];
        ok(dfcl_st_writer_f32(w, v, (size_t)list[i].n, &err), &err);
    }
    ok(dfcl_st_writer_finish(&w, &err), &err);
}

static int setup(void **state) {
    (void)state;
    open_device();
    snprintf(dir, sizeof dir, "/tmp/dfcl-sample-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    for (int k = 0; k <= DOMAINS; k++)
        write_delta(k);
    model = open_model();
    bare = open_model();
    return 0;
}
static int teardown(void **state) {
    (void)state;
    for (int k = 0; k <= DOMAINS; k++)
        unlink(files[k]);
    rmdir(dir);
    dfcl_model_close(&model);
    dfcl_model_close(&bare);
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

/* ---- domains ---- */

/* A batch of eight domains: each picture has the bits that it has when the whole batch is of its domain. */
static void mixed_domains(void **state) {
    (void)state;
    static float mixed[DOMAINS * VALUES], pure[DOMAINS * VALUES];
    dfcl_error err = {0};
    struct dfcl_sample_request r[DOMAINS];
    dfcl_model *m = open_model();
    for (int i = 0; i < DOMAINS; i++) {
        r[i] = (struct dfcl_sample_request){.class_id = i % 3, .number = (uint32_t)(i % 2), .own = 1, .seed = (uint64_t)(i / 3),
                                            .cfg = i == 5 ? 1 : 1.5 + i % 2};
        ok(dfcl_model_load_delta(m, files[i], 1, 0, &r[i].domain, &err), &err);
    }
    for (int guidance = 0; guidance < 2; guidance++) {
        struct dfcl_sample_params p = {.steps = 3, .batch = DOMAINS, .guidance = guidance ? DFCL_GUIDANCE_DOMAIN : DFCL_GUIDANCE_CLASS};
        ok(dfcl_sample(m, &p, r, DOMAINS, mixed, &err), &err);
        for (int k = 0; k < DOMAINS; k++) {
            struct dfcl_sample_request one[DOMAINS];
            for (int i = 0; i < DOMAINS; i++) {
                one[i] = r[i];
                one[i].domain = r[k].domain;
            }
            ok(dfcl_sample(m, &p, one, DOMAINS, pure, &err), &err);
            assert_memory_equal(mixed + k * VALUES, pure + k * VALUES, VALUES * 4);
            assert_true(rel_l2(pure + (k + 1) % DOMAINS * VALUES, mixed + (k + 1) % DOMAINS * VALUES, VALUES) > 1e-3);
        }
    }
    dfcl_model_close(&m);
}

static void network(dfcl_model *m, int domain, int class_id, float t, const float *x, float *out) {
    dfcl_error err = {0};
    struct dfcl_dit *dit = dfcl_model_dit(m);
    struct dfcl_mem *mx, *mo;
    int32_t row, dom = domain;
    ok(dfcl_model_row(m, domain, class_id, &row, &err), &err);
    ok(dfcl_mem_create(dev, VALUES * 4, "x", &mx, &err), &err);
    ok(dfcl_mem_create(dev, VALUES * 8, "out", &mo, &err), &err);
    ok(dfcl_write(dev, (struct dfcl_ref){mx, 0}, x, VALUES * 4, &err), &err);
    struct dfcl_dit_batch b = {.B = 1, .t = &t, .rows = &row, .dom = &dom, .x = {mx, 0}, .out = {mo, 0}};
    ok(dfcl_dit_plan(dit, 1, false, 0, NULL, &err), &err);
    ok(dfcl_dit_forward(dit, &b, false, &err), &err);
    ok(dfcl_read(dev, out, b.out, VALUES * 8, &err), &err);
    dfcl_mem_destroy(dev, &mx);
    dfcl_mem_destroy(dev, &mo);
}

/* DDIM written out: the conditional half from (m, domain), the reference from another model, guidance where lo < sigma <= hi. Returns the guided steps. */
static int by_hand(dfcl_model *m, int domain, int class_id, dfcl_model *ref, int ref_domain, double w, double lo, double hi, int steps, const float *x_t,
                   float *x) {
    struct dfcl_schedule sc;
    dfcl_error err = {0};
    int guided = 0;
    ok(dfcl_schedule_respaced(&sc, ctx, steps, DFCL_SPACING_EVEN, &err), &err);
    memcpy(x, x_t, VALUES * 4);
    for (int i = steps - 1; i >= 0; i--) {
        float c[2 * VALUES], u[2 * VALUES];
        double ab = sc.abar[i], prev = i ? sc.abar[i - 1] : 1, sigma = sqrt((1 - ab) / ab);
        network(m, domain, class_id, (float)sc.map[i], x, c);
        bool on = sigma > lo && sigma <= hi;
        guided += on;
        if (on)
            network(ref, ref_domain, CLASSES, (float)sc.map[i], x, u);
        for (int k = 0; k < VALUES; k++) {
            double e = on && k < 3 * VALUES / 4 ? u[k] + w * ((double)c[k] - (double)u[k]) : (double)c[k];
            double x0 = (x[k] - sqrt(1 - ab) * e) / sqrt(ab);
            x[k] = (float)(sqrt(prev) * x0 + sqrt(1 - prev) * e);
        }
    }
    dfcl_schedule_finish(&sc);
    return guided;
}

static void guidance_by_hand(void **state) {
    (void)state;
    enum { STEPS = 6 };
    static float x_t[VALUES], got[VALUES], want[VALUES];
    static const struct {
        double lo, hi;
        enum dfcl_guidance guidance;
        int guided;
    } cases[] = {{0, 0, DFCL_GUIDANCE_DOMAIN, STEPS}, {0, 0, DFCL_GUIDANCE_CLASS, STEPS}, {0.3, 10, DFCL_GUIDANCE_CLASS, 0},
                 {0.3, 10, DFCL_GUIDANCE_DOMAIN, 0}, {1000, 2000, DFCL_GUIDANCE_CLASS, 0}};
    dfcl_error err = {0};
    dfcl_normals(3, DFCL_STREAM_TEST, 1, 0, x_t, VALUES);
    struct dfcl_sample_request r = {.class_id = 4};
    ok(dfcl_model_load_delta(model, files[1], 1, 0, &r.domain, &err), &err);
    for (size_t k = 0; k < DFCL_COUNT(cases); k++) {
        struct dfcl_sample_params p = {.sampler = DFCL_SAMPLER_DDIM, .steps = STEPS, .cfg = 2.5, .init_noise = x_t, .guidance = cases[k].guidance,
                                       .cfg_lo = cases[k].lo, .cfg_hi = cases[k].hi};
        bool domain = cases[k].guidance == DFCL_GUIDANCE_DOMAIN;
        ok(dfcl_sample(model, &p, &r, 1, got, &err), &err);
        int guided = by_hand(model, r.domain, 4, domain ? bare : model, domain ? 0 : r.domain, 2.5, cases[k].lo, cases[k].hi ? cases[k].hi : INFINITY,
                             STEPS, x_t, want);
        assert_true(cases[k].hi == 10 ? guided > 0 && guided < STEPS : guided == cases[k].guided);
        double e = rel_l2(got, want, VALUES);
        if (!(e < 1e-5))
            fail_msg("case %zu: relative error %g", k, e);
    }
    struct dfcl_sample_params p = {.steps = 2, .cfg = 2, .cfg_lo = 2, .cfg_hi = 1};
    assert_int_equal(dfcl_sample(model, &p, &r, 1, got, &err), DFCL_USAGE);
    ok(dfcl_model_unload_delta(model, r.domain, &err), &err);
}

/* A blend is base + sum of strength (value - base), also in its class table where there is one. */
static void blend(void **state) {
    (void)state;
    dfcl_error err = {0};
    int a, b, ab, one, whole;
    const struct dfcl_delta_part parts[] = {{files[0], 0.75f}, {files[2], -0.5f}}, same[] = {{files[1], 0.25f}, {files[4], 0.75f}, {files[6], 0.0f}};
    ok(dfcl_model_load_delta(model, files[0], 1, 0, &a, &err), &err);
    ok(dfcl_model_load_delta(model, files[2], 1, 0, &b, &err), &err);
    ok(dfcl_model_load_blend(model, parts, 2, 0, &ab, &err), &err);
    ok(dfcl_model_load_blend(model, parts, 1, 0, &one, &err), &err);
    ok(dfcl_model_load_delta(model, files[0], 0.75f, 0, &whole, &err), &err);
    int n;
    struct dfcl_dit *dit = dfcl_model_dit(model);
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        static float v[5][6 * HIDDEN];
        if (p[i].kind != DFCL_PARAM_VEC)
            continue;
        const int domains[] = {0, a, b, ab, one};
        for (int k = 0; k < 5; k++)
            ok(dfcl_dit_get(dit, &p[i], domains[k], v[k], &err), &err);
        for (int64_t k = 0; k < p[i].count; k++) {
            double base = p[i].gamma ? 1 : (double)v[0][k];
            double want = base + 0.75 * ((double)v[1][k] - base) - 0.5 * ((double)v[2][k] - base);
            assert_true(fabs((double)v[3][k] - want) < 1e-6);
        }
        ok(dfcl_dit_get(dit, &p[i], whole, v[0], &err), &err);
        assert_memory_equal(v[0], v[4], (size_t)p[i].count * 4);
    }
    /* a class table of its own and the base's classes do not meet; the message names both */
    int none;
    assert_int_equal(dfcl_model_load_blend(model, same, 3, 0, &none, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, files[1]));
    const struct dfcl_delta_part unnamed[] = {{files[1], 0.5f}, {files[3], 0.5f}};
    assert_int_equal(dfcl_model_load_blend(model, unnamed, 2, 0, &none, &err), DFCL_FORMAT);
    assert_int_equal(dfcl_model_load_blend(model, same, 0, 0, &none, &err), DFCL_USAGE);
    const int loaded[] = {a, b, ab, one, whole};
    for (int k = 0; k < 5; k++)
        ok(dfcl_model_unload_delta(model, loaded[k], &err), &err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(final_pictures),
        cmocka_unit_test(seeded_noise),
        cmocka_unit_test(channels),
        cmocka_unit_test(refusals),
        cmocka_unit_test(mixed_domains),
        cmocka_unit_test(guidance_by_hand),
        cmocka_unit_test(blend),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
