/* Several contexts and devices in one process, through the public headers: threads that sample and train at the same time, each with a context of its own or
 * with one for all, get the bits that they get alone, and give back all memory. test_contexts PICTURES; DFCL_TEST_DEVICE is a device beside `host`. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <difffit-cl/dfcl.h>

enum { SIDE = 8, PICTURES = 3, VALUES = PICTURES * SIDE * SIDE, STEPS = 3 };

static const char *pictures, *second;
static char dir[64];

/* A thread: draws from a base, or fine-tunes it and draws from the delta. */
struct job {
    const char *device;
    int train;
    dfcl_context *shared; /* NULL: one of its own */
    int number;           /* of the run directory */

    dfcl_status status;
    dfcl_error err;
    float latents[VALUES];
    double loss;
    long live; /* blocks that the context's own allocator still has out at the end */
    atomic_long blocks;
};

static void *count_alloc(void *user, size_t size) {
    struct job *j = user;
    void *p = malloc(size);
    if (p)
        atomic_fetch_add(&j->blocks, 1);
    return p;
}

static void count_free(void *user, void *p) {
    struct job *j = user;
    if (p)
        atomic_fetch_sub(&j->blocks, 1);
    free(p);
}

static dfcl_status train(struct job *j, dfcl_device *dev, const char *base, const char *run) {
    struct dfcl_train_params p = {.model = {.path = base}, .data = pictures, .run_dir = run, .steps = STEPS, .batch = 4, .micro_batch = 2, .lr = 1e-2, .seed = 5};
    struct dfcl_train_progress g;
    dfcl_trainer *t = NULL;
    int done = 0;
    dfcl_status s = dfcl_trainer_create(&t, dev, &p, &j->err);
    while (!s && !done)
        s = dfcl_trainer_step(t, &g, &done, &j->err);
    if (!s)
        s = dfcl_trainer_finish(t, &j->err);
    dfcl_trainer_destroy(&t);
    j->loss = s ? 0 : g.loss;
    return s;
}

static dfcl_status draw(struct job *j, dfcl_device *dev, const char *base, const char *delta) {
    struct dfcl_model_params p = {.path = base};
    struct dfcl_sample_params sp = {.sampler = DFCL_SAMPLER_DDPM, .steps = 4, .cfg = 2, .seed = 11, .batch = 2};
    struct dfcl_sample_request q[PICTURES] = {{.class_id = 0}, {.class_id = 1, .number = 1}, {.class_id = 2, .number = 2}};
    dfcl_model *m = NULL;
    int domain = 0;
    dfcl_status s = dfcl_model_open(&m, dev, &p, &j->err);
    if (!s && delta)
        s = dfcl_model_load_delta(m, delta, 1, 0, &domain, &j->err);
    for (int i = 0; i < PICTURES; i++)
        q[i].domain = domain;
    if (!s)
        s = dfcl_sample(m, &sp, q, PICTURES, j->latents, &j->err);
    dfcl_model_close(&m);
    return s;
}

static void *work(void *user) {
    struct job *j = user;
    struct dfcl_context_params cp = {.alloc = count_alloc, .free = count_free, .alloc_user = j};
    char base[128], run[128], delta[160];
    dfcl_context *ctx = j->shared;
    dfcl_device *dev = NULL;
    snprintf(base, sizeof base, "%s/base.safetensors", dir);
    snprintf(run, sizeof run, "%s/run-%d", dir, j->number);
    snprintf(delta, sizeof delta, "%s/delta-live.safetensors", run);
    j->status = ctx ? DFCL_OK : dfcl_context_create(&ctx, &cp, &j->err);
    if (!j->status)
        j->status = dfcl_device_open(&dev, ctx, j->device, &j->err);
    if (!j->status && j->train)
        j->status = train(j, dev, base, run);
    if (!j->status)
        j->status = draw(j, dev, base, j->train ? delta : NULL);
    dfcl_device_close(&dev);
    if (!j->shared)
        dfcl_context_destroy(&ctx);
    j->live = atomic_load(&j->blocks);
    return NULL;
}

static void check(const struct job *j, const struct job *alone) {
    if (j->status)
        fail_msg("%s: %s", j->device, j->err.msg);
    if (memcmp(j->latents, alone->latents, sizeof j->latents) != 0 || j->loss != alone->loss)
        fail_msg("%s, %s: other numbers than alone", j->device, j->train ? "training" : "sampling");
    assert_int_equal(j->live, 0);
}

static void run_jobs(dfcl_context *shared) {
    enum { JOBS = 6 };
    static int number;
    const char *const devices[2] = {"host", second};
    struct job alone[4] = {0}, job[JOBS] = {0};
    pthread_t thread[JOBS];
    for (int i = 0; i < 4; i++) {
        alone[i].device = devices[i % 2];
        alone[i].train = i / 2;
        alone[i].number = number++;
        work(&alone[i]);
        check(&alone[i], &alone[i]);
    }
    /* the device's numbers are its own, but of the same pictures */
    for (int i = 0; i < 4; i += 2)
        for (int k = 0; k < VALUES; k++)
            assert_true(alone[i].latents[k] - alone[i + 1].latents[k] < 0.01f && alone[i + 1].latents[k] - alone[i].latents[k] < 0.01f);
    assert_true(memcmp(alone[0].latents, alone[2].latents, sizeof alone[0].latents) != 0 && alone[2].loss > 0);
    for (int i = 0; i < JOBS; i++) {
        job[i].device = devices[i % 2];
        job[i].train = i / 2 % 2;
        job[i].shared = shared;
        job[i].number = number++;
        assert_int_equal(pthread_create(&thread[i], NULL, work, &job[i]), 0);
    }
    for (int i = 0; i < JOBS; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < JOBS; i++)
        check(&job[i], &alone[i % 4]);
}

static void test_own_contexts(void **state) {
    run_jobs(NULL);
}

static void test_one_context(void **state) {
    dfcl_context *ctx;
    assert_int_equal(dfcl_context_create(&ctx, NULL, NULL), DFCL_OK);
    run_jobs(ctx);
    dfcl_context_destroy(&ctx);
    assert_null(ctx);
}

static int setup(void **state) {
    static const char *const names[3] = {"0", "1", "2"};
    struct dfcl_init_params p = {.shape = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = SIDE, .channels = 1, .classes = 3}, .seed = 1, .no_zeros = 1,
                                 .class_names = names};
    dfcl_context *ctx;
    dfcl_error err = {0};
    char base[128];
    strcpy(dir, "/tmp/dfcl-contexts-XXXXXX");
    if (!mkdtemp(dir) || dfcl_context_create(&ctx, NULL, &err))
        return -1;
    snprintf(base, sizeof base, "%s/base.safetensors", dir);
    dfcl_status s = dfcl_model_init(ctx, &p, base, &err);
    dfcl_context_destroy(&ctx);
    return s;
}

static int cleanup(void **state) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(int argc, char **argv) {
    second = getenv("DFCL_TEST_DEVICE") ? getenv("DFCL_TEST_DEVICE") : "host";
    pictures = argv[1];
    if (argc != 2)
        return 2;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_own_contexts), cmocka_unit_test(test_one_context)};
    return cmocka_run_group_tests(tests, setup, cleanup);
}
