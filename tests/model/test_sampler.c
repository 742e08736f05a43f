/* The sampler's loop on the tiny reference model. Trajectories of every sampler against the original implementation; the
 * same picture in any batch; stopping; a broken model is noticed. Runs on the device named by DFCL_TEST_DEVICE (default "host"). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/tensor_file.h"
#include "sample/sampler.h"

enum { N = 2, CLASSES = 10, VALUES = 4 * 8 * 8 };

static dfcl_context *ctx;
static dfcl_device *dev;
static struct dfcl_dit *dit;
static struct dfcl_tensor_file *file;

static float *golden(const char *name, size_t count) {
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(file, name);
    if (!v || v->count != count)
        fail_msg("%s: missing, or not of %zu values", name, count);
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    assert_int_equal(dfcl_tensor_file_read_f32(file, v, 0, count, x, NULL), DFCL_OK);
    return x;
}

static int setup(void **state) {
    (void)state;
    dfcl_error err = {0};
    struct dfcl_dit_config cfg = {.depth = 4, .hidden = 96, .heads = 4, .patch = 2, .input = 8, .channels = 4, .classes = CLASSES};
    struct dfcl_dit_options opt = {.domains = 1, .pack = true};
    struct dfcl_tensor_file *weights = NULL;
    int count;
    if (dfcl_dit_create(&dit, dev, &cfg, &opt, &err) || dfcl_dit_alloc_params(dit, &err) ||
        dfcl_tensor_file_open(&weights, ctx, DFCL_GOLDEN "/dit/dit.safetensors", NULL, &err))
        goto failed;
    struct dfcl_param *p = dfcl_dit_params(dit, &count);
    for (int i = 0; i < count; i++) {
        if (!p[i].present)
            continue;
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(weights, p[i].name);
        if (!v && p[i].gamma)
            continue; /* stays at 1 */
        float *x = v ? malloc((size_t)v->count * sizeof *x) : NULL;
        if (!x || dfcl_tensor_file_read_f32(weights, v, 0, v->count, x, &err) || dfcl_dit_set(dit, &p[i], 0, x, &err))
            goto failed;
        free(x);
    }
    dfcl_tensor_file_close(&weights);
    if (!dfcl_tensor_file_open(&file, ctx, DFCL_GOLDEN "/sample.safetensors", NULL, &err))
        return 0;
failed:
    fprintf(stderr, "%s\n", err.msg);
    return 1;
}
static int teardown(void **state) {
    (void)state;
    dfcl_tensor_file_close(&file);
    dfcl_dit_destroy(&dit);
    return 0;
}

/* The pictures of sample.safetensors: two labels, guidance 4 against the null class. */
static void golden_items(struct dfcl_sampler_item items[N]) {
    float *y = golden("y", 2 * N);
    for (int i = 0; i < N; i++)
        items[i] = (struct dfcl_sampler_item){.row = (int32_t)y[i], .ref_row = (int32_t)y[N + i], .scale = 4.0f, .number = (uint32_t)i};
    free(y);
}

struct watch {
    const char *name;
    float *traj, *x0, *eps; /* [10,N,VALUES]; x0 and eps may be NULL */
    double worst;
};

static double rel_l2(const float *got, const float *want, size_t n) {
    double d = 0, w = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        w += (double)want[i] * (double)want[i];
    }
    return sqrt(d / w);
}

static dfcl_status compare(void *user, const struct dfcl_sampler_state *s, dfcl_error *err) {
    struct watch *w = user;
    static float got[N * VALUES];
    const struct {
        const char *what;
        struct dfcl_ref ref;
        const float *want;
    } list[] = {{"x", s->x, w->traj}, {"x0", s->x0, w->x0}, {"eps", s->eps, w->eps}};
    for (size_t i = 0; i < DFCL_COUNT(list); i++) {
        if (!list[i].want)
            continue;
        size_t n = (size_t)s->count * VALUES, at = ((size_t)s->step * N + (size_t)s->first) * VALUES;
        dfcl_status st = dfcl_read(dev, got, list[i].ref, n * 4, err);
        if (st)
            return st;
        double e = rel_l2(got, list[i].want + at, n);
        if (!(e < 5e-5))
            fail_msg("%s, step %d (t = %d), %s: relative error %g", w->name, s->step, s->t, list[i].what, e);
        w->worst = fmax(w->worst, e);
    }
    return DFCL_OK;
}

static void trajectory(const char *name, enum dfcl_sampler_kind kind, enum dfcl_spacing spacing, int batch) {
    char key[64];
    struct watch w = {.name = name};
    struct dfcl_solver solver;
    struct dfcl_sampler *sampler;
    struct dfcl_sampler_item items[N];
    dfcl_error err;
    float out[N * VALUES];
    golden_items(items);
    snprintf(key, sizeof key, "%s.traj", name);
    w.traj = golden(key, 10 * N * VALUES);
    float *x_t = golden("x_T", N * VALUES), *noise = NULL;
    if (kind == DFCL_SAMPLER_DDPM) {
        noise = golden("ddpm10.noise", 10 * N * VALUES);
        w.x0 = golden("ddpm10.pred_xstart", 10 * N * VALUES);
    } else if (kind == DFCL_SAMPLER_DPMPP_2M) {
        w.eps = golden("dpm.eps", 10 * N * VALUES);
    }
    assert_int_equal(dfcl_solver_init(&solver, ctx, kind, 10, spacing, 0, false, NULL), DFCL_OK);
    struct dfcl_sampler_options opt = {.solver = &solver,
                                       .batch = batch,
                                       .guided_channels = 3,
                                       .init_noise = x_t,
                                       .step_noise = noise,
                                       .on_step = compare,
                                       .on_step_user = &w};
    if (dfcl_sampler_create(&sampler, dit, &opt, N, true, &err) || dfcl_sampler_run(sampler, items, N, out, &err))
        fail_msg("%s", err.msg);
    snprintf(key, sizeof key, "%s.final", name);
    float *final = golden(key, N * VALUES);
    assert_true(rel_l2(out, final, N * VALUES) < 5e-5);
    print_message("%s in batches of %d on %s: worst relative error %.2g\n", name, batch, dfcl_device_get_info(dev)->selector, w.worst);
    dfcl_sampler_destroy(&sampler);
    dfcl_solver_finish(&solver);
    free(final), free(x_t), free(noise), free(w.traj), free(w.x0), free(w.eps);
}
static void trajectories(void **state) {
    (void)state;
    for (int batch = 1; batch <= 2; batch++) {
        trajectory("ddpm10", DFCL_SAMPLER_DDPM, DFCL_SPACING_EVEN, batch);
        trajectory("ddim_ddim10", DFCL_SAMPLER_DDIM, DFCL_SPACING_DDIM, batch);
        trajectory("ddim_10", DFCL_SAMPLER_DDIM, DFCL_SPACING_EVEN, batch);
        trajectory("dpm", DFCL_SAMPLER_DPMPP_2M, DFCL_SPACING_EVEN, batch);
    }
}

static dfcl_status draw(const struct dfcl_sampler_options *opt, const struct dfcl_sampler_item *items, int n, bool guided, float *out,
                        dfcl_error *err) {
    struct dfcl_sampler *sampler;
    dfcl_status st = dfcl_sampler_create(&sampler, dit, opt, n, guided, err);
    if (!st)
        st = dfcl_sampler_run(sampler, items, n, out, err);
    dfcl_sampler_destroy(&sampler);
    return st;
}

/* Noise from the seed: pictures do not depend on their batch or their neighbours, guided and unguided ones mix, and numbers and seeds matter. */
static void any_batch(void **state) {
    (void)state;
    enum { M = 5 };
    static float all[M * VALUES], part[M * VALUES];
    struct dfcl_sampler_item items[M];
    struct dfcl_solver solver;
    dfcl_error err = {0};
    for (int i = 0; i < M; i++)
        items[i] = (struct dfcl_sampler_item){.row = i, .ref_row = CLASSES, .scale = i % 2 ? 1.0f : 2.5f, .seed = i < 3 ? 7 : 9,
                                              .number = (uint32_t)(100 + i)};
    assert_int_equal(dfcl_solver_init(&solver, ctx, DFCL_SAMPLER_DDPM, 4, DFCL_SPACING_EVEN, 0, false, NULL), DFCL_OK);
    struct dfcl_sampler_options opt = {.solver = &solver, .batch = M, .guided_channels = 3};
    assert_int_equal(draw(&opt, items, M, true, all, &err), DFCL_OK);
    for (int batch = 1; batch < M; batch++) {
        opt.batch = batch;
        assert_int_equal(draw(&opt, items, M, true, part, &err), DFCL_OK);
        for (int i = 0; i < M; i++)
            assert_true(rel_l2(part + i * VALUES, all + i * VALUES, VALUES) < 5e-5);
    }
    opt.batch = 2;
    assert_int_equal(draw(&opt, items + 3, 1, false, part, &err), DFCL_OK); /* alone, without guidance */
    assert_true(rel_l2(part, all + 3 * VALUES, VALUES) < 5e-5);
    assert_int_equal(draw(&opt, items, M, false, part, &err), DFCL_ERROR); /* guided items in a plan without */
    items[0].number = 99;
    assert_int_equal(draw(&opt, items, 1, true, part, &err), DFCL_OK);
    assert_true(rel_l2(part, all, VALUES) > 0.1);
    items[0].number = 100;
    items[0].seed = 8;
    assert_int_equal(draw(&opt, items, 1, true, part, &err), DFCL_OK);
    assert_true(rel_l2(part, all, VALUES) > 0.1);
    dfcl_solver_finish(&solver);
}

/* DDIM with eta = 1 and clamped predictions: the last step is the prediction, within [-1, 1]. */
static void clamped(void **state) {
    (void)state;
    static float out[N * VALUES];
    struct dfcl_sampler_item items[N];
    struct dfcl_solver solver;
    dfcl_error err = {0};
    golden_items(items);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(dfcl_solver_init(&solver, ctx, k ? DFCL_SAMPLER_DPMPP_2M : DFCL_SAMPLER_DDIM, 6, DFCL_SPACING_EVEN, 1.0, true, NULL), DFCL_OK);
        struct dfcl_sampler_options opt = {.solver = &solver, .batch = N, .guided_channels = 4, .clip = true};
        assert_int_equal(draw(&opt, items, N, true, out, &err), DFCL_OK);
        int edge = 0;
        for (int i = 0; i < N * VALUES; i++) {
            assert_true(out[i] >= -1.0f && out[i] <= 1.0f);
            edge += out[i] == 1.0f || out[i] == -1.0f;
        }
        assert_true(edge > 0); /* the clamp was needed */
        dfcl_solver_finish(&solver);
    }
}

struct counter {
    int calls, last, total, stop_at;
};
static void count_progress(void *user, int done, int total, double seconds) {
    struct counter *c = user;
    assert_true(done > c->last && seconds >= 0);
    c->calls++;
    c->last = done;
    c->total = total;
}
static int count_stop(void *user) {
    struct counter *c = user;
    return c->stop_at >= 0 && c->calls >= c->stop_at;
}

static void progress_and_stop(void **state) {
    (void)state;
    enum { M = 3 };
    static float out[M * VALUES];
    struct dfcl_sampler_item items[M] = {{.row = 1, .scale = 1}, {.row = 2, .scale = 1, .number = 1}, {.row = 3, .scale = 1, .number = 2}};
    struct dfcl_solver solver;
    struct counter c = {.stop_at = -1};
    dfcl_error err = {0};
    assert_int_equal(dfcl_solver_init(&solver, ctx, DFCL_SAMPLER_DDIM, 3, DFCL_SPACING_EVEN, 0, false, NULL), DFCL_OK);
    struct dfcl_sampler_options opt = {.solver = &solver, .batch = 2, .guided_channels = 3, .progress = count_progress, .progress_user = &c,
                                       .stop = count_stop};
    assert_int_equal(draw(&opt, items, M, false, out, &err), DFCL_OK);
    assert_int_equal(c.calls, 6);
    assert_int_equal(c.last, 9);
    assert_int_equal(c.total, 9);
    c = (struct counter){.stop_at = 4};
    assert_int_equal(draw(&opt, items, M, false, out, &err), DFCL_INTERRUPTED);
    assert_non_null(strstr(err.msg, "2 of 3 pictures"));
    assert_int_equal(c.calls, 4);
    dfcl_solver_finish(&solver);
}

static void non_finite(void **state) {
    (void)state;
    enum { M = 3 };
    static float noise[M * VALUES], out[M * VALUES];
    struct dfcl_sampler_item items[M] = {{.row = 1, .scale = 1}, {.row = 2, .scale = 1, .number = 1}, {.row = 3, .scale = 1, .number = 77}};
    struct dfcl_solver solver;
    dfcl_error err = {0};
    assert_int_equal(dfcl_solver_init(&solver, ctx, DFCL_SAMPLER_DDIM, 3, DFCL_SPACING_EVEN, 0, true, NULL), DFCL_OK);
    struct dfcl_sampler_options opt = {.solver = &solver, .batch = 2, .clip = true, .init_noise = noise};
    noise[2 * VALUES + 5] = NAN;
    assert_int_equal(draw(&opt, items, M, false, out, &err), DFCL_NONFINITE);
    assert_non_null(strstr(err.msg, "step 1 of 3"));
    assert_non_null(strstr(err.msg, "number 77"));
    dfcl_solver_finish(&solver);
}

static void usage(void **state) {
    (void)state;
    struct dfcl_solver solver;
    struct dfcl_sampler *sampler;
    dfcl_error err = {0};
    assert_int_equal(dfcl_solver_init(&solver, ctx, DFCL_SAMPLER_DDIM, 3, DFCL_SPACING_EVEN, 0, false, NULL), DFCL_OK);
    struct dfcl_sampler_options opt = {.solver = &solver, .batch = 2, .guided_channels = 5};
    assert_int_equal(dfcl_sampler_create(&sampler, dit, &opt, 1, true, &err), DFCL_USAGE);
    assert_null(sampler);
    opt.guided_channels = 3;
    opt.batch = 0;
    assert_int_equal(dfcl_sampler_create(&sampler, dit, &opt, 1, true, &err), DFCL_USAGE);
    /* memory: batches are halved until they fit; one picture that does not fit is an error */
    opt.batch = 64;
    struct dfcl_plan one, many;
    assert_int_equal(dfcl_dit_plan_only(dit, 2, DFCL_FORWARD_ONLY, &one, &err), DFCL_OK);
    assert_int_equal(dfcl_dit_plan_only(dit, 32, DFCL_FORWARD_ONLY, &many, &err), DFCL_OK);
    opt.max_memory = many.total + 400000;
    assert_int_equal(dfcl_sampler_create(&sampler, dit, &opt, 64, true, &err), DFCL_OK);
    assert_true(dfcl_sampler_batch(sampler) < 64 && dfcl_sampler_batch(sampler) >= 8);
    dfcl_sampler_destroy(&sampler);
    opt.max_memory = one.weights;
    assert_int_equal(dfcl_sampler_create(&sampler, dit, &opt, 64, true, &err), DFCL_NOMEM);
    dfcl_solver_finish(&solver);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trajectories),      cmocka_unit_test(any_batch),  cmocka_unit_test(clamped),
        cmocka_unit_test(progress_and_stop), cmocka_unit_test(non_finite), cmocka_unit_test(usage),
    };
    const char *name = getenv("DFCL_TEST_DEVICE");
    if (dfcl_context_create(&ctx, NULL, NULL))
        return 1;
    if (dfcl_device_open(&dev, ctx, name ? name : "host", NULL)) {
        dfcl_context_destroy(&ctx);
        return 77;
    }
    int failed = cmocka_run_group_tests(tests, setup, teardown);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return failed;
}
