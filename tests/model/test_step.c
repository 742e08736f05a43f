/* train/step: passes of any size give the same step; a step with a non-finite number changes nothing; the update rules against
 * formulas written out here. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "train/step.h"
#include "train/trace.h"

enum { BATCH = 6, C = 1, S = 4, N = C * S * S, T = 20 };

static dfcl_context *ctx;
static dfcl_device *dev;
static float table[T * DFCL_TAB_COUNT];

/* The device of the run: DFCL_TEST_DEVICE, else the plain C one. */
static const char *device_name(void) {
    const char *name = getenv("DFCL_TEST_DEVICE");
    return name ? name : "host";
}

static int setup(void **state) {
    (void)state;
    double ab = 1.0, prev = 1.0, lpv1 = 0.0;
    for (int t = 0; t < T; t++) {
        double beta = 1e-3 + 0.02 * t;
        prev = ab;
        ab *= 1.0 - beta;
        double pv = beta * (1.0 - prev) / (1.0 - ab);
        float *r = table + t * DFCL_TAB_COUNT;
        r[DFCL_TAB_SQRT_AB] = (float)sqrt(ab);
        r[DFCL_TAB_SQRT_1MAB] = (float)sqrt(1.0 - ab);
        r[DFCL_TAB_SQRT_RAB] = (float)sqrt(1.0 / ab);
        r[DFCL_TAB_SQRT_RABM1] = (float)sqrt(1.0 / ab - 1.0);
        r[DFCL_TAB_C1] = (float)(beta * sqrt(prev) / (1.0 - ab));
        r[DFCL_TAB_C2] = (float)((1.0 - prev) * sqrt(1.0 - beta) / (1.0 - ab));
        r[DFCL_TAB_LPV] = t ? (float)log(pv) : 0.0f;
        r[DFCL_TAB_LOG_BETA] = (float)log(beta);
        if (t == 1)
            lpv1 = log(pv);
    }
    table[DFCL_TAB_LPV] = (float)lpv1;
    return dfcl_context_create(&ctx, NULL, NULL) || dfcl_device_open(&dev, ctx, device_name(), NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return 0;
}

static struct dfcl_dit *make_model(bool full) {
    struct dfcl_dit_config cfg = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = S, .channels = C, .classes = 3};
    struct dfcl_dit_options opt = {.domains = 1};
    struct dfcl_dit *dit;
    int count;
    assert_int_equal(dfcl_dit_create(&dit, dev, &cfg, &opt, NULL), DFCL_OK);
    struct dfcl_param *p = dfcl_dit_params(dit, &count);
    for (int i = 0; i < count; i++) {
        if (p[i].gamma)
            p[i].present = p[i].block == 0;
        p[i].trained = p[i].present && (full || p[i].gamma || p[i].kind != DFCL_PARAM_WEIGHT);
    }
    assert_int_equal(dfcl_dit_alloc_params(dit, NULL), DFCL_OK);
    for (int i = 0; i < count; i++) {
        if (!p[i].present)
            continue;
        float *v = malloc((size_t)p[i].count * sizeof *v);
        dfcl_normals(1, DFCL_STREAM_TEST, 0, (uint32_t)i, v, (size_t)p[i].count);
        for (int64_t k = 0; k < p[i].count; k++)
            v[k] = (p[i].gamma ? 1.0f : 0.0f) + 0.1f * v[k];
        assert_int_equal(dfcl_dit_set(dit, &p[i], 0, v, NULL), DFCL_OK);
        free(v);
    }
    return dit;
}

struct data {
    float x0[BATCH * N], noise[BATCH * N];
    int32_t t[BATCH], rows[BATCH];
};
static void make_data(struct data *d, uint32_t step) {
    for (uint32_t i = 0; i < BATCH; i++) {
        dfcl_normals(2, DFCL_STREAM_TEST, step, i, d->x0 + i * N, N);
        dfcl_normals(5, DFCL_STREAM_NOISE, step, 100 + i, d->noise + i * N, N);
        d->t[i] = (int32_t)dfcl_uniform_int(2, DFCL_STREAM_TEST, step, i, 100, T);
        d->rows[i] = (int32_t)(i % 4);
    }
}

static float *read_array(struct dfcl_stepper *st, enum dfcl_step_array which) {
    size_t bytes = (size_t)dfcl_stepper_count(st) * sizeof(float);
    float *v = malloc(bytes);
    assert_int_equal(dfcl_read(dev, v, dfcl_stepper_array(st, which), bytes, NULL), DFCL_OK);
    return v;
}

static double worst(const float *a, const float *b, int64_t n) {
    double w = 0.0;
    for (int64_t i = 0; i < n; i++)
        w = fmax(w, fabs((double)a[i] - b[i]));
    return w;
}

static const struct dfcl_step_hyper hyper = {.k = 1, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .ema_decay = 0.9};

static void passes_add_up(void **state) {
    (void)state;
    static const int micros[] = {6, 3, 2, 1};
    float *grads[4];
    struct dfcl_step_result r[4];
    int64_t n = 0;
    for (int i = 0; i < 4; i++) {
        struct dfcl_dit *dit = make_model(true);
        struct dfcl_stepper *st;
        struct dfcl_stepper_options opt = {.batch = BATCH, .micro = micros[i], .table = table, .timesteps = T};
        struct data d;
        make_data(&d, 0);
        /* the device draws the noise in the odd runs, the host brings the same in the even ones */
        struct dfcl_step_batch b = {.x0 = d.x0, .noise = i % 2 ? NULL : d.noise, .t = d.t, .rows = d.rows, .seed = 5, .first = 100};
        assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
        assert_int_equal(dfcl_train_step(st, &b, &hyper, &r[i], NULL), DFCL_OK);
        assert_true(r[i].finite);
        n = dfcl_stepper_count(st);
        grads[i] = read_array(st, DFCL_STEP_GRADS);
        dfcl_stepper_destroy(&st);
        dfcl_dit_destroy(&dit);
    }
    double big = 0.0;
    for (int64_t k = 0; k < n; k++)
        big = fmax(big, fabs((double)grads[0][k]));
    assert_true(big > 1e-3);
    for (int i = 1; i < 4; i++) {
        assert_true(worst(grads[0], grads[i], n) < 1e-6 * big);
        assert_true(fabs(r[0].loss - r[i].loss) < 1e-6);
        assert_true(fabs(r[0].grad_norm - r[i].grad_norm) < 1e-6 * r[0].grad_norm);
    }
    for (int i = 0; i < 4; i++)
        free(grads[i]);
}

static void update_rules(void **state) {
    (void)state;
    struct dfcl_dit *dit = make_model(false);
    struct dfcl_stepper *st;
    struct dfcl_stepper_options opt = {.batch = BATCH, .micro = 3, .table = table, .timesteps = T};
    struct dfcl_step_result r;
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
    int64_t n = dfcl_stepper_count(st);
    float *p = read_array(st, DFCL_STEP_VALUES), *e = read_array(st, DFCL_STEP_EMA);
    assert_memory_equal(p, e, (size_t)n * sizeof *p);
    double *pd = calloc((size_t)n, sizeof *pd), *m = calloc((size_t)n, sizeof *m), *v = calloc((size_t)n, sizeof *v),
           *ed = calloc((size_t)n, sizeof *ed);
    for (int64_t i = 0; i < n; i++)
        pd[i] = ed[i] = p[i];
    for (int k = 1; k <= 4; k++) {
        struct dfcl_step_hyper h = hyper;
        struct data d;
        make_data(&d, (uint32_t)k);
        struct dfcl_step_batch b = {.x0 = d.x0, .noise = d.noise, .t = d.t, .rows = d.rows};
        h.k = k;
        h.clip = k == 3 ? 0.05 : 0.0;
        h.weight_decay = k == 4 ? 0.1 : 0.0;
        h.ema_decay = dfcl_ema_decay(0.3, k, true);
        assert_int_equal(dfcl_step_gradients(st, &b, NULL), DFCL_OK);
        float *g = read_array(st, DFCL_STEP_GRADS);
        assert_int_equal(dfcl_step_update(st, &h, &r, NULL), DFCL_OK);
        double norm = 0.0;
        for (int64_t i = 0; i < n; i++)
            norm += (double)g[i] * g[i];
        norm = sqrt(norm);
        assert_true(fabs(r.grad_norm - norm) < 1e-5 * norm);
        double scale = k == 3 ? 0.05 / norm : 1.0;
        if (k == 3)
            assert_true(norm > 0.06); /* else nothing would be clipped */
        for (int64_t i = 0; i < n; i++) {
            double gi = g[i] * scale;
            m[i] = 0.9 * m[i] + 0.1 * gi;
            v[i] = 0.999 * v[i] + 0.001 * gi * gi;
            pd[i] -= h.lr * h.weight_decay * pd[i];
            pd[i] -= h.lr / (1.0 - pow(0.9, k)) * m[i] / (sqrt(v[i]) / sqrt(1.0 - pow(0.999, k)) + 1e-8);
            ed[i] = h.ema_decay * ed[i] + (1.0 - h.ema_decay) * pd[i];
        }
        free(g);
    }
    free(p);
    free(e);
    p = read_array(st, DFCL_STEP_VALUES);
    e = read_array(st, DFCL_STEP_EMA);
    for (int64_t i = 0; i < n; i++) {
        assert_true(fabs(p[i] - pd[i]) < 2e-6);
        assert_true(fabs(e[i] - ed[i]) < 2e-6);
    }
    /* the exchange, and back */
    assert_int_equal(dfcl_stepper_swap_ema(st, NULL), DFCL_OK);
    float *p2 = read_array(st, DFCL_STEP_VALUES), *e2 = read_array(st, DFCL_STEP_EMA);
    assert_memory_equal(p, e2, (size_t)n * sizeof *p);
    assert_memory_equal(e, p2, (size_t)n * sizeof *p);
    free(p);
    free(e);
    free(p2);
    free(e2);
    free(pd);
    free(m);
    free(v);
    free(ed);
    dfcl_stepper_destroy(&st);
    dfcl_dit_destroy(&dit);
}

static void non_finite_changes_nothing(void **state) {
    (void)state;
    struct dfcl_dit *dit = make_model(false);
    struct dfcl_stepper *st;
    struct dfcl_stepper_options opt = {.batch = BATCH, .table = table, .timesteps = T};
    struct dfcl_step_result r;
    struct data d;
    char where[DFCL_TRACE_MAX];
    make_data(&d, 0);
    struct dfcl_step_batch b = {.x0 = d.x0, .noise = d.noise, .t = d.t, .rows = d.rows};
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
    assert_int_equal(dfcl_stepper_micro(st), BATCH);
    assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, NULL), DFCL_OK);
    assert_true(r.finite);
    static const enum dfcl_step_array arrays[] = {DFCL_STEP_VALUES, DFCL_STEP_EMA, DFCL_STEP_M, DFCL_STEP_V};
    float *before[4];
    for (int i = 0; i < 4; i++)
        before[i] = read_array(st, arrays[i]);
    d.x0[N + 3] = NAN;
    assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, NULL), DFCL_OK);
    assert_false(r.finite);
    assert_int_equal(dfcl_trace_non_finite(st, dit, &b, BATCH, where, NULL), DFCL_OK);
    assert_string_equal(where, "noised input, sample 1: nan");
    for (int i = 0; i < 4; i++) {
        float *after = read_array(st, arrays[i]);
        assert_memory_equal(before[i], after, (size_t)dfcl_stepper_count(st) * sizeof(float));
        free(after);
        free(before[i]);
    }
    /* and the next one goes on */
    make_data(&d, 1);
    assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, NULL), DFCL_OK);
    assert_true(r.finite);
    dfcl_error e = {0};
    d.t[0] = T;
    assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, &e), DFCL_USAGE);
    dfcl_stepper_destroy(&st);
    dfcl_dit_destroy(&dit);
}

static void micro_follows_memory(void **state) {
    (void)state;
    struct dfcl_dit *dit = make_model(false);
    struct dfcl_stepper *st;
    struct dfcl_stepper_options opt = {.batch = BATCH, .table = table, .timesteps = T};
    uint64_t own, need[BATCH + 1] = {0};
    for (int micro = 1; micro <= BATCH; micro++) {
        if (BATCH % micro)
            continue;
        opt.micro = micro;
        assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
        need[micro] = dfcl_stepper_plan(st, &own)->total;
        need[micro] += own;
        dfcl_stepper_destroy(&st);
    }
    opt.micro = 0;
    opt.recompute = DFCL_RECOMPUTE_NONE;
    for (int micro = 1; micro <= BATCH; micro++) {
        if (BATCH % micro)
            continue;
        opt.max_memory = need[micro];
        assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
        assert_int_equal(dfcl_stepper_micro(st), micro);
        dfcl_stepper_destroy(&st);
    }
    dfcl_error e = {0};
    opt.max_memory = need[1] - 1;
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, &e), DFCL_NOMEM);
    assert_non_null(strstr(e.msg, "passes of 1"));
    assert_non_null(strstr(e.msg, "recompute none"));
    assert_null(st);
    opt.recompute = DFCL_FORWARD_ONLY;
    opt.micro = 4;
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, &e), DFCL_USAGE);
    dfcl_dit_destroy(&dit);
}

static void passes_of_a_processor(void **state) {
    (void)state;
    /* 4 tokens: 512 samples are the 2048 rows that a pass has at most */
    struct dfcl_dit *dit = make_model(false);
    struct dfcl_stepper *st;
    struct dfcl_stepper_options opt = {.batch = 3 * 433};
    int want = dfcl_device_get_info(dev)->type == DFCL_DEVICE_CPU ? 433 : opt.batch;
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
    assert_int_equal(dfcl_stepper_micro(st), want);
    dfcl_stepper_destroy(&st);
    dfcl_dit_destroy(&dit);
}

/* Multiplies a parameter's values; the first one at most. */
static void scale(struct dfcl_dit *dit, const char *name, float by, bool only_first) {
    struct dfcl_param *p = dfcl_dit_param(dit, name);
    float *v = malloc((size_t)p->count * sizeof *v);
    assert_int_equal(dfcl_dit_get(dit, p, 0, v, NULL), DFCL_OK);
    for (int64_t k = 0; k < (only_first ? 1 : p->count); k++)
        v[k] *= by;
    assert_int_equal(dfcl_dit_set(dit, p, 0, v, NULL), DFCL_OK);
    free(v);
}

/* The first layer and tensor are named wherever the numbers stop being finite. */
static void non_finite_is_traced(void **state) {
    (void)state;
    static const struct {
        struct {
            const char *param;
            float by;
        } huge[2];
        const char *says;
        enum dfcl_recompute recompute;
        int micro;
    } cases[] = {
        {{{"t_embedder.mlp.0.weight", 1e25f}, {"t_embedder.mlp.2.weight", 1e25f}}, "layer t_embedder, tensor t_emb, sample 0: ", DFCL_RECOMPUTE_NONE, 0},
        {{{"blocks.1.attn.qkv.weight", 3e38f}, {"blocks.1.adaLN_modulation.1.bias", 1e3f}}, "layer blocks.1.attn.qkv, tensor block1.qkv, sample 0: ",
         DFCL_RECOMPUTE_CHEAP, 2},
        {{{"blocks.0.attn.proj.weight", 3e38f}, {"blocks.0.attn.qkv.bias", 1e3f}}, "layer blocks.0.attn.proj, tensor block0.attn_proj, sample 0: ",
         DFCL_RECOMPUTE_BLOCK, 3},
        {{{"blocks.1.mlp.fc1.weight", 3e38f}, {"blocks.1.adaLN_modulation.1.bias", 1e3f}}, "layer blocks.1.mlp, tensor block1.mlp_out, sample 0: ",
         DFCL_RECOMPUTE_BLOCK, 0},
        {{{"blocks.1.adaLN_modulation.1.weight", 3e38f}, {"t_embedder.mlp.2.bias", 1e3f}},
         "layer blocks.1.adaLN_modulation, tensor block1.adaLN, sample 0: ", DFCL_RECOMPUTE_NONE, 0},
        {{{"final_layer.linear.weight", 3e38f}, {"final_layer.adaLN_modulation.1.bias", 1e3f}}, "layer final_layer.linear, tensor final_linear, sample 0: ",
         DFCL_RECOMPUTE_NONE, 0},
        {{{"final_layer.linear.weight", 1e25f}}, "squared error of sample 0: inf", DFCL_RECOMPUTE_NONE, 0},
        {{{"blocks.0.mlp.fc2.bias", INFINITY}}, "parameter blocks.0.mlp.fc2.bias: ", DFCL_RECOMPUTE_NONE, 0},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        struct dfcl_dit *dit = make_model(false);
        struct dfcl_stepper *st;
        struct dfcl_stepper_options opt = {.batch = BATCH, .micro = cases[i].micro, .recompute = cases[i].recompute, .table = table, .timesteps = T};
        struct dfcl_step_result r, again;
        struct data d;
        char where[DFCL_TRACE_MAX];
        dfcl_error e = {0};
        make_data(&d, 0);
        struct dfcl_step_batch b = {.x0 = d.x0, .noise = d.noise, .t = d.t, .rows = d.rows};
        for (int k = 0; k < 2 && cases[i].huge[k].param; k++)
            scale(dit, cases[i].huge[k].param, cases[i].huge[k].by, isinf(cases[i].huge[k].by));
        assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
        assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, NULL), DFCL_OK);
        if (r.finite)
            fail_msg("%s", cases[i].says);
        if (dfcl_trace_non_finite(st, dit, &b, BATCH, where, &e))
            fail_msg("%s", e.msg);
        if (strncmp(where, cases[i].says, strlen(cases[i].says)))
            fail_msg("%s: expected %s, found %s", cases[i].huge[0].param, cases[i].says, where);
        /* searching leaves a stepper that works as before */
        assert_int_equal(dfcl_train_step(st, &b, &hyper, &again, &e), DFCL_OK);
        assert_false(again.finite);
        dfcl_stepper_destroy(&st);
        dfcl_dit_destroy(&dit);
    }
    /* only the gradient: backward reaches the last parameter first */
    struct dfcl_dit *dit = make_model(false);
    struct dfcl_stepper *st;
    struct dfcl_stepper_options opt = {.batch = BATCH, .table = table, .timesteps = T};
    struct data d;
    char where[DFCL_TRACE_MAX];
    struct dfcl_step_result r;
    make_data(&d, 0);
    struct dfcl_step_batch b = {.x0 = d.x0, .noise = d.noise, .t = d.t, .rows = d.rows};
    assert_int_equal(dfcl_stepper_create(&st, dit, &opt, NULL), DFCL_OK);
    assert_int_equal(dfcl_train_step(st, &b, &hyper, &r, NULL), DFCL_OK);
    assert_true(r.finite);
    assert_int_equal(dfcl_trace_non_finite(st, dit, &b, BATCH, where, NULL), DFCL_OK);
    assert_string_equal(where, "the gradient's norm, of finite gradients");
    static const char *const bad[] = {"blocks.0.attn.qkv.bias", "blocks.1.mlp.fc1.bias"};
    for (int i = 0; i < 2; i++) {
        const float inf = INFINITY;
        uint64_t at = (uint64_t)dfcl_dit_param(dit, bad[i])->trained_off * sizeof inf;
        assert_int_equal(dfcl_write(dev, dfcl_ref_at(dfcl_stepper_array(st, DFCL_STEP_GRADS), at), &inf, sizeof inf, NULL), DFCL_OK);
    }
    assert_int_equal(dfcl_trace_non_finite(st, dit, &b, BATCH, where, NULL), DFCL_OK);
    assert_string_equal(where, "gradient of blocks.1.mlp.fc1.bias: inf");
    dfcl_stepper_destroy(&st);
    dfcl_dit_destroy(&dit);
}

int main(void) {
    dfcl_context *probe_ctx = NULL;
    dfcl_device *probe = NULL;
    bool there = !dfcl_context_create(&probe_ctx, NULL, NULL) && !dfcl_device_open(&probe, probe_ctx, device_name(), NULL);
    dfcl_device_close(&probe);
    dfcl_context_destroy(&probe_ctx);
    if (!there)
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_add_up),
        cmocka_unit_test(update_rules),
        cmocka_unit_test(non_finite_changes_nothing), cmocka_unit_test(non_finite_is_traced),
        cmocka_unit_test(micro_follows_memory),
        cmocka_unit_test(passes_of_a_processor),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
