/* Host memory running out at every single allocation of encoding pictures and of reading the latents again: each failure is reported as such, nothing
 * crashes, nothing temporary stays, and the next process goes on. Under the sanitizers leaks show too. */
#include "golden.h"

#include "base/file.h"
#include "data/dataset.h"

#include <difffit-cl/encode.h>
#include <difffit-cl/sample.h>

static long count, fail_at = -1;

static void *counted_alloc(void *user, size_t size) {
    return __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) == fail_at ? NULL : malloc(size);
}
static void counted_free(void *user, void *p) {
    free(p);
}

static char dir[32], pictures[64], cache[64];

static dfcl_status work(dfcl_error *err) {
    struct dfcl_encode_params p = {.vae = golden_path("vae"), .data = pictures, .out = cache, .size = 8, .flip = 1, .threads = 1};
    struct dfcl_dataset_options o = {.path = cache, .channels = 4, .side = 4, .flip = true, .batch = 2};
    dfcl_encoder *e = NULL;
    struct dfcl_dataset *ds = NULL;
    char *text = NULL;
    float x[4 * 4 * 4 * 4];
    int32_t label[4];
    int done = 0;
    dfcl_status s = dfcl_encoder_create(&e, dev, &p, err);
    while (!s && !done)
        s = dfcl_encoder_step(e, NULL, &done, err);
    if (!s)
        s = dfcl_encoder_finish(e, err);
    dfcl_encoder_destroy(&e);
    if (!s)
        s = dfcl_dataset_open(&ds, ctx, &o, err);
    if (!s)
        s = dfcl_dataset_fetch(ds, 0, 4, x, label, err);
    if (!s)
        s = dfcl_describe(ctx, cache, 0, &text, err);
    dfcl_text_free(ctx, text);
    dfcl_dataset_close(&ds);
    return s;
}

static void test_memory(void **state) {
    dfcl_error err = {0};
    count = 0;
    ok(work(&err), &err);
    long all = count;
    assert_true(all > 200);
    uint64_t used = dfcl_device_memory_used(dev);
    for (long i = 0; i < all; i++) {
        if (i % 2) /* every other time from the beginning, else from what the last one left */
            ok(dfcl_remove_tree(ctx, cache, &err), &err);
        memset(&err, 0, sizeof err);
        count = 0;
        fail_at = i;
        dfcl_status s = work(&err);
        bool met = count > i;
        fail_at = -1;
        if (met ? s != DFCL_NOMEM || err.status != DFCL_NOMEM || !err.msg[0] : s != DFCL_OK)
            fail_msg("allocation %ld of %ld: status %d, message \"%s\"", i, all, s, err.msg);
        assert_true(dfcl_device_memory_used(dev) == used);
        struct dfcl_list left;
        if (dfcl_path_kind(cache) != DFCL_PATH_DIR)
            continue;
        ok(dfcl_list_dir(ctx, cache, &left, &err), &err);
        for (size_t k = 0; k < left.count; k++)
            assert_null(strstr(left.names[k], ".tmp"));
        dfcl_list_free(ctx, &left);
    }
    ok(work(&err), &err);
    printf("%ld allocations, each failed once\n", all);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory)};
    dfcl_error err = {0};
    uint8_t px[12 * 9 * 3];
    struct dfcl_context_params p = {.alloc = counted_alloc, .free = counted_free, .threads = 1};
    snprintf(dir, sizeof dir, "/tmp/dfcl-faults-XXXXXX");
    if (!mkdtemp(dir) || dfcl_context_create(&ctx, &p, &err) || dfcl_device_open(&dev, ctx, "host", &err))
        return 1;
    snprintf(pictures, sizeof pictures, "%s/pictures", dir);
    snprintf(cache, sizeof cache, "%s/cache", dir);
    for (int i = 0; i < 2; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%c", pictures, "ab"[i]);
        for (size_t k = 0; k < sizeof px; k++)
            px[k] = (uint8_t)(k * 7 + (size_t)i * 31);
        if (dfcl_mkdirs(ctx, path, &err))
            return 1;
        strcat(path, "/0.png");
        if (dfcl_png_write(ctx, path, px, 12, 9, 3, NULL, &err))
            return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dfcl_device_close(&dev);
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return failed;
}
