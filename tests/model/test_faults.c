/* Host memory running out at every single allocation of opening, training set-up, deltas and merging: each failure is reported as such,
 * nothing crashes, and what was on disk stays. Under the sanitizers leaks show too. */
#include "golden.h"

#include <unistd.h>

#include "methods/delta.h"

static long count, fail_at = -1;

static void *counted_alloc(void *user, size_t size) {
    return count++ == fail_at ? NULL : malloc(size);
}
static void counted_free(void *user, void *p) {
    free(p);
}

static char dir[32], base_path[80], delta_path[80], merged_path[80], pt_path[80], folder_path[80];

/* A diffusers folder is only written where there is none. */
static void remove_folder(void) {
    static const char *const files[] = {"/config.json", "/diffusion_pytorch_model.safetensors", ""};
    for (int i = 0; i < 3; i++) {
        char path[160];
        snprintf(path, sizeof path, "%s%s", folder_path, files[i]);
        remove(path);
    }
}

static dfcl_status work(dfcl_error *err) {
    static const char *const names[3] = {"a", "b", "c"}, *const mine[2] = {"x", "a"};
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 16, .heads = 2, .patch = 2, .input = 4, .channels = 1, .classes = 3},
                                  .class_names = names,
                                  .scale = 0.1f};
    struct dfcl_model_params mp = {.path = base_path, .max_class_rows = 50};
    struct dfcl_method_config mc = {.classes = 2, .class_names = mine};
    dfcl_model *m = NULL;
    char *text = NULL;
    int domain;
    dfcl_status s;
    remove_folder();
    if ((s = dfcl_model_init(ctx, &ip, base_path, err)) || (s = dfcl_method_open(&m, dev, &mp, &mc, err)) ||
        (s = dfcl_dit_plan(dfcl_model_dit(m), 2, DFCL_RECOMPUTE_NONE, 0, NULL, err)) || (s = dfcl_delta_save(m, delta_path, DFCL_NO_REF, "{}", err)) ||
        (s = dfcl_delta_restore(m, delta_path, err)))
        goto out;
    dfcl_model_close(&m);
    if ((s = dfcl_model_open(&m, dev, &mp, err)) || (s = dfcl_model_load_delta(m, delta_path, 0.5f, 0, &domain, err)) ||
        (s = dfcl_dit_plan(dfcl_model_dit(m), 2, DFCL_FORWARD_ONLY, 0, NULL, err)) ||
        (s = dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = mp, .delta = delta_path}, merged_path, err)) ||
        (s = dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = mp, .delta = delta_path, .keep_gammas = 1}, pt_path, err)) ||
        (s = dfcl_model_merge(ctx, &(struct dfcl_merge_params){.base = mp, .delta = delta_path, .names = DFCL_NAMES_DIFFUSERS}, folder_path, err)))
        goto out;
    s = dfcl_describe(ctx, delta_path, 0, &text, err);
out:
    dfcl_text_free(ctx, text);
    dfcl_model_close(&m);
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
        memset(&err, 0, sizeof err);
        count = 0;
        fail_at = i;
        dfcl_status s = work(&err);
        fail_at = -1;
        if (s != DFCL_NOMEM || err.status != DFCL_NOMEM || !err.msg[0])
            fail_msg("allocation %ld of %ld: status %d, message \"%s\"", i, all, s, err.msg);
        assert_true(dfcl_device_memory_used(dev) == used);
        struct dfcl_list left;
        ok(dfcl_list_dir(ctx, dir, &left, &err), &err); /* nothing temporary stays */
        for (size_t k = 0; k < left.count; k++)
            assert_null(strstr(left.names[k], ".tmp"));
        dfcl_list_free(ctx, &left);
    }
    printf("%ld allocations, each failed once\n", all);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory)};
    dfcl_error err = {0};
    struct dfcl_context_params p = {.alloc = counted_alloc, .free = counted_free};
    snprintf(dir, sizeof dir, "/tmp/dfcl-faults-XXXXXX");
    if (!mkdtemp(dir) || dfcl_context_create(&ctx, &p, &err) || dfcl_device_open(&dev, ctx, "host", &err))
        return 1;
    snprintf(base_path, sizeof base_path, "%s/base.safetensors", dir);
    snprintf(pt_path, sizeof pt_path, "%s/merged.pt", dir);
    snprintf(folder_path, sizeof folder_path, "%s/merged", dir);
    snprintf(delta_path, sizeof delta_path, "%s/delta.safetensors", dir);
    snprintf(merged_path, sizeof merged_path, "%s/merged.safetensors", dir);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    dfcl_remove_tree(ctx, dir, NULL);
    close_device();
    return failed;
}
