/* The transformer against the reference: forward with all intermediates, gammas, and the gradients of every method. Limits are those
 * of the reference data's notes: relative L2 1e-5 forward, 2e-5 for gradients. */
#include "golden.h"

static const struct dfcl_dit_config config = {.depth = 4, .hidden = 96, .heads = 4, .patch = 2, .input = 8, .channels = 4, .classes = 10};
enum { IMG = 4 * 8 * 8 };

enum roles { FROZEN, DIFFFIT, BITFIT, FULL, UPPER_GAMMAS };

static void set_roles(struct dfcl_dit *dit, enum roles roles, bool gammas) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].gamma)
            p[i].present = gammas && p[i].block < 2;
        bool bias = strstr(p[i].name, "bias") != NULL;
        switch (roles) {
        case FROZEN: p[i].trained = false; break;
        case DIFFFIT: p[i].trained = bias || p[i].gamma || p[i].kind == DFCL_PARAM_TABLE; break;
        case BITFIT: p[i].trained = bias; break;
        case FULL: p[i].trained = true; break;
        case UPPER_GAMMAS: p[i].trained = p[i].gamma && p[i].block == 1; break;
        }
    }
}

static void set_from(struct dfcl_dit *dit, const char *file, bool gammas, int domain, float factor) {
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open(file);
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (p[i].gamma != gammas || !p[i].present)
            continue;
        size_t count = 0;
        float *v = golden_need(st, p[i].name, &count);
        assert_int_equal(count, p[i].count);
        for (size_t k = 0; k < count; k++)
            v[k] *= factor;
        if (domain == 0 || p[i].kind == DFCL_PARAM_VEC)
            ok(dfcl_dit_set(dit, &p[i], domain, v, &err), &err);
        free(v);
    }
    dfcl_st_close(&st);
}

static bool keep_bf16; /* of the models that load() makes */

static struct dfcl_dit *load(enum roles roles, bool gammas, bool random_gammas, int domains) {
    dfcl_error err = {0};
    struct dfcl_dit *dit;
    struct dfcl_dit_options opt = {.domains = domains, .pack = true, .keep_bf16 = keep_bf16};
    ok(dfcl_dit_create(&dit, dev, &config, &opt, &err), &err);
    set_roles(dit, roles, gammas);
    ok(dfcl_dit_alloc_params(dit, &err), &err);
    set_from(dit, "dit/dit.safetensors", false, 0, 1);
    if (random_gammas)
        set_from(dit, "dit/gamma_random.safetensors", true, 0, 1);
    return dit;
}

struct io {
    struct dfcl_mem *x, *out, *dout;
    float t[8];
    int32_t rows[8];
    struct dfcl_dit_batch b;
};
static void io_init(struct io *io, int B, const float *x, const float *t, const float *rows) {
    dfcl_error err = {0};
    memset(io, 0, sizeof *io);
    ok(dfcl_mem_create(dev, (uint64_t)B * IMG * 4, "x", &io->x, &err), &err);
    ok(dfcl_mem_create(dev, (uint64_t)B * IMG * 8, "out", &io->out, &err), &err);
    ok(dfcl_mem_create(dev, (uint64_t)B * IMG * 8, "dout", &io->dout, &err), &err);
    for (int i = 0; i < B; i++) {
        io->t[i] = t[i];
        io->rows[i] = (int32_t)rows[i];
    }
    io->b = (struct dfcl_dit_batch){.B = B, .t = io->t, .rows = io->rows, .x = {io->x, 0}, .out = {io->out, 0}};
    ok(dfcl_write(dev, io->b.x, x, (uint64_t)B * IMG * 4, &err), &err);
}
static void io_finish(struct io *io) {
    dfcl_mem_destroy(dev, &io->x);
    dfcl_mem_destroy(dev, &io->out);
    dfcl_mem_destroy(dev, &io->dout);
}
static float *read_out(struct io *io) {
    dfcl_error err = {0};
    float *out = malloc((size_t)io->b.B * IMG * 8);
    assert_non_null(out);
    ok(dfcl_read(dev, out, io->b.out, (uint64_t)io->b.B * IMG * 8, &err), &err);
    return out;
}

static void check(const char *name, const float *got, const float *want, size_t n, double limit) {
    double r = rel_l2(got, want, n);
    if (!(r <= limit))
        fail_msg("%s: relative L2 error %.3g, limit %.3g", name, r, limit);
}

/* ---- forward ---- */

struct tapped {
    struct dfcl_st *st;
    const char *prefix;
    int seen;
    double worst;
};
static dfcl_status on_tap(void *user, const char *name, struct dfcl_ref ref, int rows, int cols, dfcl_error *err) {
    struct tapped *t = user;
    char key[96];
    snprintf(key, sizeof key, "%s%s", t->prefix, name);
    size_t n = 0;
    float *want = golden_get(t->st, key, &n);
    if (!want)
        return DFCL_OK;
    assert_true(n <= (size_t)rows * (size_t)cols);
    float *got = malloc(n * 4); /* sample 0 only */
    assert_non_null(got);
    dfcl_status s = dfcl_read(dev, got, ref, n * 4, err);
    if (!s) {
        check(key, got, want, n, 1e-5);
        t->worst = fmax(t->worst, rel_l2(got, want, n));
        t->seen++;
    }
    free(got);
    free(want);
    return s;
}

static void forward_case(bool gammas, bool training) {
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("forward.safetensors");
    size_t n = 0;
    float *x = golden_need(st, "x", NULL), *t = golden_need(st, "t", NULL), *y = golden_need(st, "y", NULL);
    float *want = golden_need(st, gammas ? "gamma.out" : "out", &n);
    struct dfcl_dit *dit = load(FROZEN, gammas, gammas, 1);
    struct tapped tp = {.st = st, .prefix = gammas ? "gamma." : ""};
    struct io io;
    io_init(&io, 3, x, t, y);
    dfcl_dit_set_tap(dit, on_tap, &tp);
    ok(dfcl_dit_plan(dit, 4, training ? DFCL_RECOMPUTE_NONE : DFCL_FORWARD_ONLY, 0, NULL, &err), &err);
    ok(dfcl_dit_forward(dit, &io.b, training, &err), &err);
    float *got = read_out(&io);
    check("out", got, want, n, 1e-5);
    assert_int_equal(tp.seen, gammas ? 3 : 25);
    /* without the tap the plan is remade; the numbers stay the same to the bit */
    dfcl_dit_set_tap(dit, NULL, NULL);
    ok(dfcl_dit_forward(dit, &io.b, false, &err), &err);
    float *again = read_out(&io);
    assert_memory_equal(got, again, n * 4);
    printf("forward%s%s: out %.2g, worst intermediate %.2g\n", gammas ? " gamma" : "", training ? " kept" : "", rel_l2(got, want, n),
           tp.worst);
    free(x), free(t), free(y), free(want), free(got), free(again);
    io_finish(&io);
    dfcl_dit_destroy(&dit);
    dfcl_st_close(&st);
}
static void test_forward(void **state) {
    forward_case(false, false);
    forward_case(false, true);
}
static void test_forward_gamma(void **state) {
    forward_case(true, false);
    forward_case(true, true);
}

/* ---- gradients ---- */

static float *gradients(struct dfcl_dit *dit, struct dfcl_st *st, int batches, enum dfcl_recompute level) {
    dfcl_error err = {0};
    struct dfcl_st *data = golden_open("train_data.safetensors");
    float *x = golden_need(st, "step1.x_t", NULL), *dout = golden_need(st, "step1.grad_model_out", NULL);
    float *t = golden_need(data, "t", NULL), *y = golden_need(data, "y_eff", NULL);
    ok(dfcl_dit_plan(dit, 4, level, 0, NULL, &err), &err);
    int B = 4 / batches;
    for (int k = 0; k < batches; k++) {
        struct io io;
        io_init(&io, B, x + k * B * IMG, t + k * B, y + k * B);
        struct dfcl_ref d = {io.dout, 0};
        ok(dfcl_write(dev, d, dout + k * B * IMG * 2, (uint64_t)B * IMG * 8, &err), &err);
        ok(dfcl_dit_forward(dit, &io.b, true, &err), &err);
        ok(dfcl_dit_backward(dit, &io.b, d, &err), &err);
        assert_int_equal(dfcl_dit_backward(dit, &io.b, d, NULL), DFCL_ERROR); /* once per forward */
        ok(dfcl_finish(dev, &err), &err);
        io_finish(&io);
    }
    struct dfcl_ref G;
    int64_t n = dfcl_dit_trained(dit, NULL, &G);
    float *g = malloc((size_t)n * 4);
    assert_non_null(g);
    ok(dfcl_read(dev, g, G, (uint64_t)n * 4, &err), &err);
    free(x), free(dout), free(t), free(y);
    dfcl_st_close(&data);
    return g;
}

/* The k third of qkv.bias has gradient 0 in exact arithmetic: softmax does not see a shift of the keys. */
static void check_grad(const char *name, const float *got, const float *want, size_t n) {
    if (strstr(name, "attn.qkv.bias")) {
        size_t d = n / 3;
        for (size_t i = d; i < 2 * d; i++)
            if (!(fabs((double)got[i]) <= 1e-8))
                fail_msg("%s[%zu]: %g, expected 0", name, i, (double)got[i]);
        check(name, got, want, d, 2e-5);
        check(name, got + 2 * d, want + 2 * d, d, 2e-5);
    } else {
        check(name, got, want, n, 2e-5);
    }
}

static void gradient_case(const char *file, const char *inputs, enum roles roles, bool gammas, bool random_gammas, int batches) {
    struct dfcl_st *st = golden_open(file), *in = golden_open(inputs);
    struct dfcl_dit *dit = load(roles, gammas, random_gammas, 1);
    float *g = gradients(dit, in, batches, DFCL_RECOMPUTE_NONE);
    int n, checked = 0;
    double norm = 0, worst = 0;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (!p[i].trained)
            continue;
        const float *got = g + p[i].trained_off;
        for (int64_t k = 0; k < p[i].count; k++)
            norm += (double)got[k] * got[k];
        char key[96];
        size_t count = 0;
        snprintf(key, sizeof key, "grad.%s", p[i].name);
        float *want = golden_get(st, key, &count);
        if (want) {
            assert_true(count <= (size_t)p[i].count); /* full: the first 16 rows */
            check_grad(key, got, want, count);
            if (!strstr(key, "qkv.bias"))
                worst = fmax(worst, rel_l2(got, want, count));
            checked++;
            free(want);
        }
        snprintf(key, sizeof key, "gradnorm.%s", p[i].name);
        want = golden_get(st, key, &count);
        if (want) {
            double own = 0;
            for (int64_t k = 0; k < p[i].count; k++)
                own += (double)got[k] * got[k];
            if (!(fabs(sqrt(own) - want[0]) <= 2e-5 * want[0]))
                fail_msg("%s: %.8g, expected %.8g", key, sqrt(own), (double)want[0]);
            free(want);
        }
    }
    float *total = golden_need(st, "global_gradnorm", NULL);
    if (!(fabs(sqrt(norm) - total[0]) <= 2e-5 * total[0]))
        fail_msg("%s: gradient norm %.8g, expected %.8g", file, sqrt(norm), (double)total[0]);
    printf("%s: %d tensors, worst gradient %.2g\n", file, checked, worst);
    assert_true(checked >= (roles == FULL ? 15 : 20));
    free(total);
    free(g);
    dfcl_dit_destroy(&dit);
    dfcl_st_close(&st);
    dfcl_st_close(&in);
}
static void test_gradients_difffit(void **state) {
    gradient_case("train_difffit.safetensors", "train_difffit.safetensors", DIFFFIT, true, false, 1);
    gradient_case("train_difffit.safetensors", "train_difffit.safetensors", DIFFFIT, true, false, 2); /* micro-batches add up */
    gradient_case("train_difffit_g.safetensors", "train_difffit_g.safetensors", DIFFFIT, true, true, 1);
}
static void test_gradients_bitfit(void **state) {
    gradient_case("train_bitfit.safetensors", "train_difffit.safetensors", BITFIT, false, false, 1);
}
static void test_gradients_full(void **state) {
    gradient_case("train_full.safetensors", "train_difffit.safetensors", FULL, false, false, 1);
}

/* Backward stops below what is trained, and what it still computes is the same to the bit. */
static void test_partial(void **state) {
    struct dfcl_st *st = golden_open("train_difffit_g.safetensors");
    struct dfcl_dit *all = load(DIFFFIT, true, true, 1), *some = load(UPPER_GAMMAS, true, true, 1);
    float *ga = gradients(all, st, 1, DFCL_RECOMPUTE_NONE), *gs = gradients(some, st, 1, DFCL_RECOMPUTE_NONE);
    int n, seen = 0;
    struct dfcl_param *p = dfcl_dit_params(some, &n);
    for (int i = 0; i < n; i++)
        if (p[i].trained) {
            assert_memory_equal(gs + p[i].trained_off, ga + dfcl_dit_param(all, p[i].name)->trained_off, (size_t)p[i].count * 4);
            seen++;
        }
    assert_int_equal(seen, 4);
    free(ga), free(gs);
    dfcl_dit_destroy(&all);
    dfcl_dit_destroy(&some);
    dfcl_st_close(&st);
}

/* ---- domains ---- */

static void test_domains(void **state) {
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("forward.safetensors");
    float *x = golden_need(st, "x", NULL), *t = golden_need(st, "t", NULL), *y = golden_need(st, "y", NULL);
    size_t n = 0;
    float *want_g = golden_need(st, "gamma.out", &n), *want = golden_need(st, "out", NULL);
    size_t one = n / 3;
    /* domain 0 the base with gammas of 1, domain 1 the same base with random gammas, domain 2 with halved vectors */
    struct dfcl_dit *dit = load(FROZEN, true, false, 3);
    for (int dom = 1; dom < 3; dom++)
        set_from(dit, "dit/dit.safetensors", false, dom, dom == 2 ? 0.5f : 1);
    set_from(dit, "dit/gamma_random.safetensors", true, 1, 1);
    struct io io;
    io_init(&io, 3, x, t, y);
    ok(dfcl_dit_plan(dit, 3, DFCL_FORWARD_ONLY, 0, NULL, &err), &err);
    int32_t dom[3] = {0, 1, 2};
    io.b.dom = dom;
    ok(dfcl_dit_forward(dit, &io.b, false, &err), &err);
    float *mixed = read_out(&io);
    check("domain 0", mixed, want, one, 1e-5);
    check("domain 1", mixed + one, want_g + one, one, 1e-5);
    assert_true(rel_l2(mixed + 2 * one, want + 2 * one, one) > 1e-2);
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 3; i++)
            dom[i] = k;
        ok(dfcl_dit_forward(dit, &io.b, false, &err), &err);
        float *pure = read_out(&io);
        check("mixed against pure", mixed + (size_t)k * one, pure + (size_t)k * one, one, 1e-6);
        free(pure);
    }
    free(x), free(t), free(y), free(want), free(want_g), free(mixed);
    io_finish(&io);
    dfcl_dit_destroy(&dit);
    dfcl_st_close(&st);
}

/* Passes with modulations made ahead have the bits of passes by themselves: samples that share conditions, mixed domains, several slices. */
static void test_ahead(void **state) {
    enum { B = 5, PASSES = 30 };
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("forward.safetensors");
    float *x3 = golden_need(st, "x", NULL), x[B * IMG], t[PASSES], y[B] = {3, 10, 3, 10, 7};
    for (int i = 0; i < B; i++)
        memcpy(x + i * IMG, x3 + i % 3 * IMG, IMG * sizeof *x);
    for (int p = 0; p < PASSES; p++)
        t[p] = (float)(999 - 33 * p);
    struct dfcl_dit *dit = load(FROZEN, true, false, 2);
    set_from(dit, "dit/dit.safetensors", false, 1, 0.5f);
    set_from(dit, "dit/gamma_random.safetensors", true, 1, 1);
    struct io io;
    io_init(&io, B, x, t, y);
    int32_t dom[B] = {0, 0, 1, 0, 1};
    struct dfcl_plan plan;
    int32_t *const domains[] = {NULL, dom};
    for (int k = 0; k < 4; k++) { /* the second time in slices, under a limit that leaves little */
        ok(dfcl_dit_plan(dit, B, DFCL_FORWARD_ONLY, 0, &plan, &err), &err);
        uint64_t before = dfcl_device_memory_used(dev), limit = plan.total + 500000;
        if (k >= 2)
            ok(dfcl_dit_plan(dit, B, DFCL_FORWARD_ONLY, limit, NULL, &err), &err);
        ok(dfcl_dit_reserve_ahead(dit, PASSES, 4, &err), &err);
        if (k >= 2)
            assert_true(dfcl_device_memory_used(dev) <= before + 500000);
        io.b.dom = domains[k % 2];
        int from = 0, done = 0, slices = 0;
        for (int p = 0; p < PASSES; p++) {
            if (p == from + done) {
                from = p;
                ok(dfcl_dit_ahead(dit, t + p, PASSES - p, B, io.rows, io.b.dom, &done, &err), &err);
                slices++;
            }
            int b = p % 2 ? B : 2; /* also the first samples alone */
            ok(dfcl_dit_forward_ahead(dit, p - from, b, io.b.x, io.b.out, &err), &err);
            float *ahead = read_out(&io);
            for (int i = 0; i < B; i++)
                io.t[i] = t[p];
            io.b.B = b;
            ok(dfcl_dit_forward(dit, &io.b, false, &err), &err);
            io.b.B = B;
            float *alone = read_out(&io);
            assert_memory_equal(ahead, alone, (size_t)b * 2 * IMG * 4);
            free(ahead), free(alone);
        }
        assert_true(k < 2 ? slices == 1 : slices > 1);
    }
    /* refusals: more conditions than reserved; a pass that was not made; no room */
    int done;
    float again[B] = {1, 2, 3, 4, 5};
    for (int i = 0; i < B; i++)
        io.rows[i] = (int32_t)again[i];
    ok(dfcl_dit_plan(dit, B, DFCL_FORWARD_ONLY, plan.total + 500000, NULL, &err), &err);
    ok(dfcl_dit_reserve_ahead(dit, 1, 4, &err), &err);
    assert_int_equal(dfcl_dit_ahead(dit, t, 1, B, io.rows, NULL, &done, &err), DFCL_ERROR);
    assert_int_equal(dfcl_dit_forward_ahead(dit, 0, B, io.b.x, io.b.out, &err), DFCL_ERROR);
    ok(dfcl_dit_plan(dit, B, DFCL_FORWARD_ONLY, plan.total, NULL, &err), &err);
    assert_int_equal(dfcl_dit_reserve_ahead(dit, 1, 4, &err), DFCL_NOMEM);
    free(x3);
    io_finish(&io);
    dfcl_dit_destroy(&dit);
    dfcl_st_close(&st);
}

/* ---- the rest ---- */

static void test_values(void **state) {
    dfcl_error err = {0};
    struct dfcl_dit *dit = load(FROZEN, false, false, 2);
    struct dfcl_st *st = golden_open("dit/dit.safetensors");
    int n;
    struct dfcl_param *p = dfcl_dit_params(dit, &n);
    for (int i = 0; i < n; i++) {
        if (!p[i].present)
            continue;
        float *want = golden_need(st, p[i].name, NULL), *got = malloc((size_t)p[i].count * 4);
        assert_non_null(got);
        ok(dfcl_dit_get(dit, &p[i], 0, got, &err), &err); /* through the packed form where there is one */
        assert_memory_equal(got, want, (size_t)p[i].count * 4);
        free(want), free(got);
    }
    float row[96];
    float *table = golden_need(st, "y_embedder.embedding_table.weight", NULL);
    ok(dfcl_dit_get_rows(dit, 10, 1, row, &err), &err);
    assert_memory_equal(row, table + 960, sizeof row);
    assert_int_equal(dfcl_dit_get_rows(dit, 10, 2, row, NULL), DFCL_ERROR);
    free(table);
    dfcl_dit_destroy(&dit);
    dfcl_st_close(&st);
}

/* What is run again has the bits of what was kept: one pass, and two passes that add up. Kept as bf16, gradients are near those of f32, and
 * again the same at every level. */
static void recompute(void) {
    const enum roles roles[] = {DIFFFIT, BITFIT, FULL, UPPER_GAMMAS};
    struct dfcl_st *st = golden_open("train_difffit_g.safetensors");
    for (size_t r = 0; r < DFCL_COUNT(roles); r++)
        for (int batches = 1; batches <= 2; batches++) {
            float *want[2] = {NULL, NULL};
            size_t count = 0;
            for (int half = 0; half < 2; half++)
                for (enum dfcl_recompute level = DFCL_RECOMPUTE_NONE; level < DFCL_RECOMPUTE_COUNT; level++) {
                    bool gammas = roles[r] != BITFIT;
                    keep_bf16 = half;
                    struct dfcl_dit *dit = load(roles[r], gammas, gammas, 1);
                    keep_bf16 = false;
                    count = (size_t)dfcl_dit_trained(dit, NULL, NULL);
                    float *got = gradients(dit, st, batches, level);
                    if (want[half])
                        assert_memory_equal(got, want[half], count * 4);
                    else
                        want[half] = got;
                    if (got != want[half])
                        free(got);
                    dfcl_dit_destroy(&dit);
                }
            double e = rel_l2(want[1], want[0], count);
            printf("kept as bf16, roles %d: gradients %.2g\n", (int)roles[r], e);
            if (!(e > 1e-6 && e < 1e-2))
                fail_msg("roles %d: gradients of activations kept as bf16 differ by %.3g", (int)roles[r], e);
            free(want[0]), free(want[1]);
        }
    dfcl_st_close(&st);
}

static void test_recompute(void **state) {
    dfcl_error err = {0};
    recompute();
    ok(dfcl_device_set_variants(dev, "-cpu", &err), &err);
    recompute();
    ok(dfcl_device_set_variants(dev, getenv("DFCL_TEST_VARIANTS"), &err), &err);
}

static void test_plan(void **state) {
    dfcl_error err = {0};
    struct dfcl_dit *dit = load(DIFFFIT, true, false, 1);
    struct dfcl_plan small, large, infer;
    ok(dfcl_dit_plan_only(dit, 1, DFCL_RECOMPUTE_NONE, &small, &err), &err);
    ok(dfcl_dit_plan_only(dit, 8, DFCL_RECOMPUTE_NONE, &large, &err), &err);
    ok(dfcl_dit_plan_only(dit, 8, DFCL_FORWARD_ONLY, &infer, &err), &err);
    assert_true(small.activations < large.activations && infer.activations < large.activations);
    assert_true(large.total == large.weights + large.activations + large.scratch);
    struct dfcl_plan cheap, block;
    ok(dfcl_dit_plan_only(dit, 8, DFCL_RECOMPUTE_CHEAP, &cheap, &err), &err);
    ok(dfcl_dit_plan_only(dit, 8, DFCL_RECOMPUTE_BLOCK, &block, &err), &err);
    assert_true(infer.total < block.total && block.total < cheap.total && cheap.total < large.total);
    char text[512];
    dfcl_plan_line(&block, NULL, text, sizeof text);
    assert_non_null(strstr(text, "recompute block"));
    uint64_t before = dfcl_device_memory_used(dev);
    assert_int_equal(dfcl_dit_plan(dit, 8, DFCL_RECOMPUTE_NONE, large.total - 1, NULL, &err), DFCL_NOMEM);
    assert_non_null(strstr(err.msg, "activations"));
    assert_true(dfcl_device_memory_used(dev) == before);
    ok(dfcl_dit_plan(dit, 8, DFCL_RECOMPUTE_NONE, large.total, NULL, &err), &err);
    assert_true(dfcl_device_memory_used(dev) - before >= large.activations);
    dfcl_dit_destroy(&dit);
}

static void test_config(void **state) {
    struct dfcl_dit_config c = {.input = 32, .channels = 4, .classes = 1000};
    assert_true(dfcl_dit_named("DiT-XL/2", &c));
    assert_true(c.depth == 28 && c.hidden == 1152 && c.heads == 16 && c.patch == 2);
    assert_string_equal(dfcl_dit_name_of(&c), "DiT-XL/2");
    assert_false(dfcl_dit_named("DiT-M/2", &c));
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_OK);
    c.heads = 7;
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_USAGE);
    c.heads = 16;
    c.input = 33;
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_USAGE);
    c.input = 32;
    c.width = 48;
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_OK);
    assert_true(dfcl_dit_tokens(&c) == 16 * 24 && dfcl_dit_grid(&c) == 24 && dfcl_dit_plane(&c) == 32 * 48);
    c.width = 47;
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_USAGE);
    c.width = 4096;
    c.input = 4096; /* 2048 x 2048 tokens */
    assert_int_equal(dfcl_dit_config_check(&c, NULL), DFCL_USAGE);
}

static void test_positions(void **state) {
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("posembed.safetensors");
    int seen = 0;
    for (size_t i = 0; i < st->count; i++) {
        const struct dfcl_tensor_view *v = &st->tensors[i];
        int base = 0, n, w;
        if (sscanf(v->name, "grid%d.w%d", &n, &w) != 2 && sscanf(v->name, "scaled.base%d.grid%d.w%d", &base, &n, &w) != 3)
            continue;
        size_t count = 0;
        float *want = golden_need(st, v->name, &count), *got = malloc(count * 4);
        assert_non_null(got);
        assert_int_equal(count, (size_t)n * (size_t)n * (size_t)w);
        ok(dfcl_pos_embed(n, n, w, base, got, &err), &err);
        for (size_t k = 0; k < count; k++)
            if (!(fabs((double)got[k] - want[k]) <= 1e-7))
                fail_msg("%s[%zu]: %.9g, expected %.9g", v->name, k, (double)got[k], (double)want[k]);
        /* a grid that is no square has the positions of the square on its longer side */
        for (int high = 0; high < 2; high++) {
            const int rows = high ? n : DFCL_MAX(n / 2 - 1, 1), cols = high ? DFCL_MAX(n / 2 - 1, 1) : n;
            ok(dfcl_pos_embed(rows, cols, w, base, got, &err), &err);
            for (int q = 0; q < rows * cols * w; q++) {
                const float expected = want[(q / w / cols * n + q / w % cols) * w + q % w];
                if (!(fabs((double)got[q] - expected) <= 1e-7))
                    fail_msg("%s, %d x %d of it, [%d]: %.9g, expected %.9g", v->name, rows, cols, q, (double)got[q], (double)expected);
            }
        }
        seen++;
        free(want), free(got);
    }
    assert_true(seen >= 3);
    dfcl_st_close(&st);
}

/* Latents that are no squares, plain and with scaled positions: output and gradients of the reference network. */
static void test_rectangle(void **state) {
    static const char *const names[] = {"wide", "high", "scaled"};
    static const char *const grads[] = {"x_embedder.proj.bias", "blocks.0.attn.proj.bias", "blocks.2.mlp.fc1.bias", "blocks.3.adaLN_modulation.1.bias",
                                        "final_layer.linear.bias"};
    dfcl_error err = {0};
    struct dfcl_st *st = golden_open("rectangle.safetensors");
    for (size_t k = 0; k < DFCL_COUNT(names); k++) {
        char key[96];
        snprintf(key, sizeof key, "%s.x", names[k]);
        const struct dfcl_tensor_view *v = dfcl_st_find(st, key);
        assert_non_null(v);
        struct dfcl_dit_config c = config;
        c.input = (int)v->shape[2];
        c.width = (int)v->shape[3];
        c.pos_base = strcmp(names[k], "scaled") ? 0 : 0.5 * dfcl_dit_grid(&c);
        const uint64_t bytes = 2 * dfcl_dit_values(&c) * 4;
        struct dfcl_dit *dit;
        ok(dfcl_dit_create(&dit, dev, &c, &(struct dfcl_dit_options){.domains = 1, .pack = true}, &err), &err);
        set_roles(dit, DIFFFIT, false);
        ok(dfcl_dit_alloc_params(dit, &err), &err);
        set_from(dit, "dit/dit.safetensors", false, 0, 1);
        size_t n = 0;
        float *part[5];
        static const char *const parts[] = {"x", "w", "t", "y", "out"};
        for (int i = 0; i < 5; i++) {
            snprintf(key, sizeof key, "%s.%s", names[k], parts[i]);
            part[i] = golden_need(st, key, &n);
        }
        assert_true(n * 4 == 2 * bytes); /* of the last: out */
        struct dfcl_mem *mem;
        ok(dfcl_mem_create(dev, 5 * bytes, "tensors", &mem, &err), &err);
        const struct dfcl_ref x = {mem, 0}, out = {mem, bytes}, dout = {mem, 3 * bytes};
        ok(dfcl_write(dev, x, part[0], bytes, &err), &err);
        ok(dfcl_write(dev, dout, part[1], 2 * bytes, &err), &err);
        struct dfcl_dit_batch b = {.B = 2, .t = part[2], .rows = (int32_t[]){(int32_t)part[3][0], (int32_t)part[3][1]}, .x = x, .out = out};
        float *got = calloc(n, 4);
        assert_non_null(got);
        for (enum dfcl_recompute level = DFCL_RECOMPUTE_NONE; level < DFCL_RECOMPUTE_COUNT; level++) {
            struct dfcl_ref G;
            const int64_t total = dfcl_dit_trained(dit, NULL, &G);
            ok(dfcl_dit_plan(dit, 2, level, 0, NULL, &err), &err);
            ok(dfcl_fill(dev, G, 0, (uint64_t)total * 4, &err), &err);
            ok(dfcl_dit_forward(dit, &b, true, &err), &err);
            ok(dfcl_dit_backward(dit, &b, dout, &err), &err);
            ok(dfcl_read(dev, got, out, n * 4, &err), &err);
            check(names[k], got, part[4], n, 1e-5);
            for (size_t i = 0; i < DFCL_COUNT(grads); i++) {
                size_t count = 0;
                snprintf(key, sizeof key, "%s.grad.%s", names[k], grads[i]);
                float *want = golden_need(st, key, &count), *g = malloc(count * 4);
                assert_non_null(g);
                struct dfcl_param *p = dfcl_dit_param(dit, grads[i]);
                ok(dfcl_read(dev, g, dfcl_ref_at(G, p->trained_off * 4), count * 4, &err), &err);
                check(key, g, want, count, 2e-5);
                free(want), free(g);
            }
        }
        free(got);
        for (int i = 0; i < 5; i++)
            free(part[i]);
        dfcl_mem_destroy(dev, &mem);
        dfcl_dit_destroy(&dit);
    }
    dfcl_st_close(&st);
}

/* Shapes the reference has no data for: pixel models, other patches; the pass must run and its gradient must match differences. */
static void test_shapes(void **state) {
    const struct dfcl_dit_config shapes[] = {
        {.depth = 2, .hidden = 24, .heads = 3, .patch = 2, .input = 6, .channels = 1, .classes = 3},
        {.depth = 1, .hidden = 20, .heads = 1, .patch = 4, .input = 8, .channels = 3, .classes = 0, .pos_base = 1},
        {.depth = 1, .hidden = 16, .heads = 2, .patch = 8, .input = 8, .channels = 4, .classes = 2},
        {.depth = 1, .hidden = 16, .heads = 2, .patch = 2, .input = 6, .width = 10, .channels = 2, .classes = 2, .pos_base = 3},
    };
    dfcl_error err = {0};
    for (size_t k = 0; k < DFCL_COUNT(shapes); k++) {
        const struct dfcl_dit_config *c = &shapes[k];
        struct dfcl_dit *dit;
        struct dfcl_dit_options opt = {.domains = 1};
        ok(dfcl_dit_create(&dit, dev, c, &opt, &err), &err);
        int n;
        struct dfcl_param *p = dfcl_dit_params(dit, &n);
        for (int i = 0; i < n; i++)
            p[i].present = p[i].trained = true;
        ok(dfcl_dit_alloc_params(dit, &err), &err);
        int64_t total = dfcl_dit_trained(dit, NULL, NULL), at = 0;
        float *values = calloc((size_t)total, 4), *grad = calloc((size_t)total, 4);
        assert_true(values && grad);
        unsigned rng = 1;
        for (int64_t i = 0; i < total; i++)
            values[i] = (float)((rng = rng * 1664525u + 1013904223u) >> 8) / 16777216.f - 0.5f;
        struct dfcl_ref P, G;
        dfcl_dit_trained(dit, &P, &G);
        ok(dfcl_write(dev, P, values, (uint64_t)total * 4, &err), &err);
        ok(dfcl_dit_refresh(dit, &err), &err);
        size_t img = dfcl_dit_values(c);
        float *x = calloc(img * 2, 4), *w = calloc(img * 4, 4), *out = calloc(img * 4, 4);
        assert_true(x && w && out);
        for (size_t i = 0; i < img * 2; i++)
            x[i] = (float)((rng = rng * 1664525u + 1013904223u) >> 8) / 8388608.f - 1;
        for (size_t i = 0; i < img * 4; i++)
            w[i] = (float)((rng = rng * 1664525u + 1013904223u) >> 8) / 8388608.f - 1;
        struct dfcl_mem *mx, *mo, *md;
        ok(dfcl_mem_create(dev, img * 8, "x", &mx, &err), &err);
        ok(dfcl_mem_create(dev, img * 16, "out", &mo, &err), &err);
        ok(dfcl_mem_create(dev, img * 16, "dout", &md, &err), &err);
        ok(dfcl_write(dev, (struct dfcl_ref){mx, 0}, x, img * 8, &err), &err);
        ok(dfcl_write(dev, (struct dfcl_ref){md, 0}, w, img * 16, &err), &err);
        struct dfcl_dit_batch b = {.B = 2, .t = (float[]){3, 870.5f}, .rows = (int32_t[]){0, c->classes}, .x = {mx, 0}, .out = {mo, 0}};
        ok(dfcl_dit_plan(dit, 2, DFCL_RECOMPUTE_NONE, 0, NULL, &err), &err);
        ok(dfcl_dit_forward(dit, &b, true, &err), &err);
        ok(dfcl_dit_backward(dit, &b, (struct dfcl_ref){md, 0}, &err), &err);
        ok(dfcl_read(dev, grad, G, (uint64_t)total * 4, &err), &err);
        for (enum dfcl_recompute level = DFCL_RECOMPUTE_CHEAP; level < DFCL_RECOMPUTE_COUNT; level++) {
            float *again = calloc((size_t)total, 4);
            assert_non_null(again);
            ok(dfcl_fill(dev, G, 0, (uint64_t)total * 4, &err), &err);
            ok(dfcl_dit_plan(dit, 2, level, 0, NULL, &err), &err);
            ok(dfcl_dit_forward(dit, &b, true, &err), &err);
            ok(dfcl_dit_backward(dit, &b, (struct dfcl_ref){md, 0}, &err), &err);
            ok(dfcl_read(dev, again, G, (uint64_t)total * 4, &err), &err);
            assert_memory_equal(again, grad, (size_t)total * 4);
            free(again);
        }
        /* one direction per parameter: central difference along the gradient against its squared norm */
        for (int i = 0; i < n; i++) {
            double norm = 0;
            at = p[i].trained_off;
            for (int64_t j = 0; j < p[i].count; j++)
                norm += (double)grad[at + j] * grad[at + j];
            assert_true(norm == norm);
            double length = sqrt(norm), eps = 2e-2;
            if (length < 1e-2)
                continue;
            double f[2];
            for (int side = 0; side < 2; side++) {
                for (int64_t j = 0; j < p[i].count; j++)
                    out[0] = 0, values[at + j] += (float)((side ? -2 : 1) * eps * grad[at + j] / length);
                ok(dfcl_write(dev, P, values, (uint64_t)total * 4, &err), &err);
                ok(dfcl_dit_refresh(dit, &err), &err);
                ok(dfcl_dit_forward(dit, &b, false, &err), &err);
                ok(dfcl_read(dev, out, b.out, img * 16, &err), &err);
                f[side] = 0;
                for (size_t j = 0; j < img * 4; j++)
                    f[side] += (double)out[j] * w[j];
            }
            for (int64_t j = 0; j < p[i].count; j++)
                values[at + j] += (float)(eps * grad[at + j] / length);
            double slope = (f[0] - f[1]) / (2 * eps);
            if (!(fabs(slope - length) <= 2e-2 * length + 2e-2))
                fail_msg("shape %zu, %s: slope %.6g along a gradient of length %.6g", k, p[i].name, slope, length);
        }
        free(values), free(grad), free(x), free(w), free(out);
        dfcl_mem_destroy(dev, &mx);
        dfcl_mem_destroy(dev, &mo);
        dfcl_mem_destroy(dev, &md);
        dfcl_dit_destroy(&dit);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),           cmocka_unit_test(test_positions),        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_forward_gamma),    cmocka_unit_test(test_gradients_difffit), cmocka_unit_test(test_gradients_bitfit),
        cmocka_unit_test(test_gradients_full),   cmocka_unit_test(test_partial),          cmocka_unit_test(test_domains),
        cmocka_unit_test(test_values),           cmocka_unit_test(test_plan),             cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_ahead),            cmocka_unit_test(test_recompute),        cmocka_unit_test(test_rectangle),
    };
    open_device();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close_device();
    return failed;
}
