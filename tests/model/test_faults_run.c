/* Memory running out at every single allocation of a tiny training run, its resumption, and sampling: of the host (the context's allocator, cJSON,
 * libcrypto), and of the device's memory. Each failure is reported as such, nothing crashes, nothing leaks, what was on disk stays and
 * the run can go on.
 *
 *   test_faults_run host|device     allocations of the host (device `host`), of the device's memory (DFCL_TEST_DEVICE) */
#include <openssl/crypto.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "data/dataset.h"
#include "device/device.h"

#include <difffit-cl/dfcl.h>

static dfcl_context *ctx;
static dfcl_device *dev;
static char root[48];

/* ---- allocations, counted from several threads ---- */

static long count, live, fail_at = -1; /* the allocation that fails, -1: none */

static bool fails(void) {
    return __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) == __atomic_load_n(&fail_at, __ATOMIC_RELAXED);
}
static void *host_alloc(size_t size) {
    void *p = fails() ? NULL : malloc(size);
    __atomic_add_fetch(&live, p != NULL, __ATOMIC_RELAXED);
    return p;
}
static void host_free(void *p) {
    __atomic_sub_fetch(&live, p != NULL, __ATOMIC_RELAXED);
    free(p);
}
static void *context_alloc(void *user, size_t size) {
    (void)user;
    return host_alloc(size);
}
static void context_free(void *user, void *p) {
    (void)user;
    host_free(p);
}

/* libcrypto keeps tables of its own for the life of the process, so these are not counted as live; some of its allocations it can do without. */
static bool crypto_failed;

static bool crypto_fails(void) {
    bool f = fails();
    crypto_failed = crypto_failed || f;
    return f;
}
static void *crypto_malloc(size_t n, const char *file, int line) {
    (void)file;
    (void)line;
    return crypto_fails() ? NULL : malloc(n);
}
static void *crypto_realloc(void *p, size_t n, const char *file, int line) {
    (void)file;
    (void)line;
    return crypto_fails() ? NULL : realloc(p, n);
}
static void crypto_free(void *p, const char *file, int line) {
    (void)file;
    (void)line;
    free(p);
}

/* The device's memory: its backend with mem_create in front. */
static struct dfcl_backend wrapped;
static const struct dfcl_backend *real;

static dfcl_status device_alloc(struct dfcl_device *d, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    if (fails())
        return dfcl_fail(err, DFCL_NOMEM, "device memory: %llu bytes refused", (unsigned long long)size);
    return real->mem_create(d, size, out, err);
}

/* ---- the work ---- */

static const char *at(const char *name) {
    static char buf[16][96];
    static int next;
    char *b = buf[next++ % 16];
    snprintf(b, sizeof buf[0], "%s/%s", root, name);
    return b;
}

static dfcl_status train(const char *run, const char *resume, int steps, dfcl_error *err) {
    char run_dir[96], data[96], base[96];
    snprintf(run_dir, sizeof run_dir, "%s", at(run));
    snprintf(data, sizeof data, "%s", at("data"));
    snprintf(base, sizeof base, "%s", at("base.safetensors"));
    struct dfcl_train_params p = {.run_dir = run_dir, .data = data, .steps = steps, .batch = 2, .lr = 1e-3, .log_every = 1, .resume = resume,
                                  .model.path = base};
    dfcl_trainer *t = NULL;
    int done = 0;
    dfcl_status s = dfcl_trainer_create(&t, dev, &p, err);
    while (!s && !done)
        s = dfcl_trainer_step(t, NULL, &done, err);
    if (!s)
        s = dfcl_trainer_finish(t, err);
    dfcl_trainer_destroy(&t);
    return s;
}

static dfcl_status new_run(dfcl_error *err) {
    dfcl_remove_tree(ctx, at("new"), NULL);
    return train("new", NULL, 1, err);
}
/* Two steps further than the run that `prepare` left. */
static dfcl_status resumed_run(dfcl_error *err) {
    return train("half", "auto", 3, err);
}

/* Data in memory: what a run opens in place of a folder. */
static dfcl_status arrays(dfcl_error *err) {
    static const uint8_t pixels[4][16] = {{1}, {2}, {3}, {4}};
    static const int32_t labels[4] = {0, 1, 1, 0};
    static const char *const names[2] = {"a", "b"};
    const struct dfcl_train_arrays a = {.count = 4, .channels = 1, .side = 4, .data = pixels, .labels = labels, .class_count = 2, .class_names = names};
    const struct dfcl_dataset_options o = {.arrays = &a, .channels = 1, .side = 4, .val_fraction = 0.5};
    struct dfcl_dataset *ds = NULL;
    float x[4 * 16];
    int32_t label[4];
    dfcl_status s = dfcl_dataset_open(&ds, ctx, &o, err);
    if (!s)
        s = dfcl_dataset_fetch(ds, 0, 4, x, label, err);
    if (!s)
        s = dfcl_dataset_held_out(ds, 1, x, label, err);
    dfcl_dataset_close(&ds);
    return s;
}

/* A delta's and the base's pictures, as PNG and as an archive, and what `info` says of the run. */
static dfcl_status sampling(dfcl_error *err) {
    char base[96];
    dfcl_model *m = NULL;
    struct dfcl_npz_writer *npz = NULL;
    struct dfcl_model_params mp = {.max_class_rows = 16};
    struct dfcl_sample_params sp = {.sampler = DFCL_SAMPLER_DDIM, .steps = 2, .cfg = 1.5, .batch = 2};
    struct dfcl_sample_request req[2] = {{.domain = 0, .class_id = 0}, {.class_id = 1, .number = 1}};
    static const char *const text[] = {"request", "class=1", NULL};
    float x[2 * 16];
    uint8_t px[2 * 16], *grid = NULL;
    int w, h;
    char *about = NULL, *value = NULL;
    int64_t labels[2] = {0, 1};
    snprintf(base, sizeof base, "%s", at("base.safetensors"));
    mp.path = base;
    dfcl_status s = dfcl_model_open(&m, dev, &mp, err);
    if (!s)
        s = dfcl_model_load_delta(m, at("kept/delta.safetensors"), 1.0f, 0, &req[1].domain, err);
    if (!s)
        s = dfcl_sample(m, &sp, req, 2, x, err);
    dfcl_model_close(&m);
    dfcl_pixels(x, s ? 0 : 2, 1, 4, 4, px);
    if (!s)
        s = dfcl_grid(ctx, px, 2, 4, 4, 1, 2, 1, &grid, &w, &h, err);
    if (!s)
        s = dfcl_png_write(ctx, at("out.png"), grid, w, h, 1, text, err);
    dfcl_free_pixels(ctx, grid);
    if (!s)
        s = dfcl_png_read_text(ctx, at("out.png"), "request", &value, err);
    if (!s)
        s = dfcl_npz_writer_create(&npz, ctx, at("out.npz"), 2, 4, 4, 1, err);
    if (!s)
        s = dfcl_npz_writer_add(npz, px, 2, err);
    if (!s)
        s = dfcl_npz_writer_finish(&npz, labels, err);
    dfcl_npz_writer_destroy(&npz);
    if (!s)
        s = dfcl_describe(ctx, at("kept"), 1, &about, err);
    dfcl_text_free(ctx, about);
    about = NULL;
    if (!s)
        s = dfcl_describe(ctx, at("kept/delta.safetensors"), 0, &about, err);
    dfcl_text_free(ctx, about);
    dfcl_text_free(ctx, value);
    return s;
}

/* ---- before and after ---- */

static const char *const kept[] = {"base.safetensors", "kept/delta.safetensors", "kept/config.json", "kept/metrics.jsonl",
                                   "kept/checkpoints/step-1/state.json", "kept/checkpoints/step-1/tensors.safetensors", "data/a/0.png", "out.png", "out.npz"};
static char hashes[DFCL_COUNT(kept)][65];

static void note(void) {
    for (size_t i = 0; i < DFCL_COUNT(kept); i++)
        if (dfcl_file_hash(ctx, at(kept[i]), hashes[i], NULL))
            hashes[i][0] = 0;
}
static void check_kept(long i) {
    char hash[65];
    for (size_t k = 0; k < DFCL_COUNT(kept); k++)
        if (hashes[k][0] && (dfcl_file_hash(ctx, at(kept[k]), hash, NULL) || strcmp(hash, hashes[k])))
            fail_msg("allocation %ld: %s is not as it was", i, kept[k]);
}
/* Nothing half written lies about. */
static void check_temporary(const char *dir, long i) {
    struct dfcl_list list;
    assert_int_equal(dfcl_list_dir(ctx, dir, &list, NULL), DFCL_OK);
    for (size_t k = 0; k < list.count; k++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", dir, list.names[k]);
        if (strstr(list.names[k], ".tmp-"))
            fail_msg("allocation %ld: %s was left", i, path);
        if (dfcl_path_kind(path) == DFCL_PATH_DIR)
            check_temporary(path, i);
    }
    dfcl_list_free(ctx, &list);
}

/* A run that stopped half-way, copied file by file from the one kept. */
static void copy_run(void) {
    static const char *const files[] = {"config.json", "metrics.jsonl", "checkpoints/step-1/state.json", "checkpoints/step-1/tensors.safetensors"};
    dfcl_remove_tree(ctx, at("half"), NULL);
    assert_int_equal(dfcl_mkdirs(ctx, at("half/checkpoints/step-1"), NULL), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(files); i++) {
        char from[160], to[160], *data;
        size_t n;
        snprintf(from, sizeof from, "%s/%s", at("kept"), files[i]);
        snprintf(to, sizeof to, "%s/%s", at("half"), files[i]);
        assert_int_equal(dfcl_file_read(ctx, from, 1 << 24, &data, &n, NULL), DFCL_OK);
        FILE *f = fopen(to, "wb"); /* without the sync of the library's writer, which would take most of the time */
        assert_true(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
        dfcl_free(ctx, data);
    }
    struct dfcl_list list;
    assert_int_equal(dfcl_list_dir(ctx, at("kept"), &list, NULL), DFCL_OK);
    for (size_t i = 0; i < list.count; i++)
        if (!strncmp(list.names[i], "events", 6)) {
            char from[160], to[160];
            snprintf(from, sizeof from, "%s/%s", at("kept"), list.names[i]);
            snprintf(to, sizeof to, "%s/%s", at("half"), list.names[i]);
            assert_int_equal(link(from, to), 0);
        }
    dfcl_list_free(ctx, &list);
}

static const struct part {
    const char *name;
    dfcl_status (*work)(dfcl_error *err);
    bool host;    /* takes no memory of the device */
    bool half;    /* starts from a copy of the run */
    bool spare;   /* smaller batches, and modulations made step by step, need less: the pictures are the same */
} parts[] = {{"new run", new_run, false, false, false}, {"arrays", arrays, true, false, false}, {"resumed run", resumed_run, false, true, false},
             {"sampling", sampling, false, false, true}};

static void every(const struct part *p) {
    dfcl_error err = {0};
    for (int warm = 0; warm < 2; warm++) { /* what libraries set up once is not counted */
        if (p->half)
            copy_run();
        count = 0;
        if (p->work(&err))
            fail_msg("%s: %s", p->name, err.msg);
    }
    long all = count, spared = 0;
    assert_true(all > 2);
    note();
    for (long i = 0; i < all; i++) {
        if (p->half)
            copy_run();
        memset(&err, 0, sizeof err);
        uint64_t used = dfcl_device_memory_used(dev);
        long before = live;
        crypto_failed = false;
        count = 0;
        fail_at = i;
        dfcl_status s = p->work(&err);
        fail_at = -1;
        if (!s && (p->spare || crypto_failed))
            spared++;
        else if (s != DFCL_NOMEM || err.status != DFCL_NOMEM || !err.msg[0])
            fail_msg("%s: allocation %ld of %ld: status %d, message \"%s\"", p->name, i, all, s, err.msg);
        if (live != before || dfcl_device_memory_used(dev) != used)
            fail_msg("%s: allocation %ld of %ld: %ld allocations are left (%s)", p->name, i, all, live - before, err.msg);
        check_kept(i);
        check_temporary(root, i);
        if (p->half && i % 16 == 0) { /* and the run goes on */
            if (p->work(&err))
                fail_msg("%s: after allocation %ld failed: %s", p->name, i, err.msg);
        }
    }
    assert_true(spared < all);
    printf("%s: %ld allocations, each failed once; %ld were done without\n", p->name, all, spared);
}

static void every_allocation(void **state) {
    (void)state;
    for (size_t i = 0; i < DFCL_COUNT(parts); i++)
        if (!parts[i].host || !real)
            every(&parts[i]);
}

static int setup(bool device) {
    static const char *const names[2] = {"a", "b"};
    dfcl_error err = {0};
    const char *name = getenv("DFCL_TEST_DEVICE");
    struct dfcl_context_params p = {.alloc = context_alloc, .free = context_free, .threads = 1};
    struct dfcl_init_params init = {.shape = {.depth = 1, .hidden = 8, .heads = 2, .patch = 2, .input = 4, .channels = 1, .classes = 2},
                                    .class_names = names, .scale = 0.1f};
    if (!device) {
        cJSON_Hooks hooks = {host_alloc, host_free};
        cJSON_InitHooks(&hooks);
        if (!CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free))
            return 1;
        name = "host";
    } else {
        p.alloc = NULL;
        p.free = NULL;
    }
    /* Where syncing costs nothing, if there is such a place. */
    snprintf(root, sizeof root, "%s/dfcl-faults-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(root) || dfcl_context_create(&ctx, &p, &err))
        return 1;
    dfcl_status s = dfcl_device_open(&dev, ctx, name ? name : "host", &err);
    if (s == DFCL_DEVICE) {
        printf("skipped: %s\n", err.msg);
        dfcl_remove_tree(ctx, root, NULL);
        exit(77);
    }
    for (int c = 0; !s && c < 2; c++) {
        char path[96];
        uint8_t px[16];
        for (int k = 0; k < 16; k++)
            px[k] = (uint8_t)(k * (5 + c));
        snprintf(path, sizeof path, "%s/%c/0.png", at("data"), 'a' + c);
        *strrchr(path, '/') = 0;
        s = dfcl_mkdirs(ctx, path, &err);
        path[strlen(path)] = '/';
        if (!s)
            s = dfcl_png_write(ctx, path, px, 4, 4, 1, NULL, &err);
    }
    if (!s)
        s = dfcl_model_init(ctx, &init, at("base.safetensors"), &err);
    if (!s)
        s = train("kept", NULL, 1, &err);
    if (s)
        printf("%s\n", err.msg);
    if (!s && device) {
        real = dev->be;
        wrapped = *real;
        wrapped.mem_create = device_alloc;
        dev->be = &wrapped;
    }
    return s;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation)};
    if (argc != 2 || setup(!strcmp(argv[1], "device")))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (real)
        dev->be = real;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return failed;
}
