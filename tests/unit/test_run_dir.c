/* train/run_dir and checkpoint state: lock, folders, logs cut off at a checkpoint, checkpoints kept. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "train/run_dir.h"

static dfcl_context *ctx;
static char root[64];

static const char *at(const char *name) {
    static char buf[8][256];
    static int next;
    char *b = buf[next++ % 8];
    snprintf(b, 256, "%s/%s", root, name);
    return b;
}

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/dfcl-run-XXXXXX");
    return !mkdtemp(root) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static void empty_or_resumed(void **state) {
    (void)state;
    struct dfcl_run_dir a, b;
    dfcl_error e;
    assert_int_equal(dfcl_run_dir_open(&a, ctx, at("deep/er/run"), false, &e), DFCL_OK);
    /* held by this one; flock is per open file, so the same process is refused as well */
    assert_int_equal(dfcl_run_dir_open(&b, ctx, at("deep/er/run"), true, &e), DFCL_ERROR);
    assert_non_null(strstr(e.msg, "deep/er/run"));
    dfcl_run_dir_close(&a);
    /* a run that never began takes its folder away again, */
    assert_int_equal(dfcl_path_kind(at("deep/er/run")), DFCL_PATH_NONE);
    /* but not one that was there; a lock file alone does not make it a run */
    assert_int_equal(dfcl_mkdirs(ctx, at("deep/er/run"), NULL), DFCL_OK);
    assert_int_equal(dfcl_file_write(ctx, at("deep/er/run/lock"), "", 0, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_open(&a, ctx, at("deep/er/run"), false, &e), DFCL_OK);
    dfcl_run_dir_close(&a);
    assert_int_equal(dfcl_path_kind(at("deep/er/run/lock")), DFCL_PATH_NONE);
    assert_int_equal(dfcl_path_kind(at("deep/er/run")), DFCL_PATH_DIR);
    assert_int_equal(dfcl_file_write(ctx, at("deep/er/run/notes"), "x", 1, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_open(&a, ctx, at("deep/er/run"), false, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "notes"));
    assert_int_equal(dfcl_path_kind(at("deep/er/run/lock")), DFCL_PATH_NONE); /* refused untouched */
    assert_int_equal(dfcl_run_dir_open(&a, ctx, at("deep/er/run"), true, &e), DFCL_OK);
    dfcl_run_dir_close(&a);
    assert_int_equal(dfcl_run_dir_open(&a, ctx, at("deep/er/run/notes"), false, &e), DFCL_IO);
}

static void add_line(struct dfcl_run_dir *r, int step) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "step", step);
    cJSON_AddNumberToObject(o, "bad", (double)NAN);
    assert_int_equal(dfcl_run_dir_metrics(r, o, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_scalar(&r->events, "loss", 1.0, step, 0.5f, NULL), DFCL_OK);
    cJSON_Delete(o);
}

static void logs_cut_off(void **state) {
    (void)state;
    struct dfcl_run_dir r;
    uint64_t metrics, events, m2, e2;
    dfcl_error e;
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("run"), false, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_logs(&r, 0, 0, NULL), DFCL_OK);
    add_line(&r, 1);
    assert_int_equal(dfcl_run_dir_sizes(&r, &metrics, &events, NULL), DFCL_OK);
    add_line(&r, 2);
    assert_int_equal(dfcl_run_dir_sizes(&r, &m2, &e2, NULL), DFCL_OK);
    assert_true(m2 > metrics && e2 > events);
    dfcl_run_dir_close(&r);
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("run"), true, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_logs(&r, metrics, events, NULL), DFCL_OK);
    add_line(&r, 7);
    assert_int_equal(dfcl_run_dir_sizes(&r, &m2, &e2, NULL), DFCL_OK);
    assert_int_equal(m2, 2 * metrics);
    dfcl_run_dir_close(&r);
    char *text;
    size_t size;
    assert_int_equal(dfcl_file_read(ctx, at("run/metrics.jsonl"), 1000, &text, &size, NULL), DFCL_OK);
    assert_string_equal(text, "{\"step\":1,\"bad\":null}\n{\"step\":7,\"bad\":null}\n");
    dfcl_free(ctx, text);
    /* a log shorter than the checkpoint says */
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("run"), true, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_logs(&r, 10 * metrics, events, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "metrics.jsonl"));
    dfcl_run_dir_close(&r);
}

static void save_best(struct dfcl_run_dir *r, int64_t step, int keep, int64_t best, const char *text) {
    char *tmp, path[300];
    assert_int_equal(dfcl_run_dir_checkpoint_begin(r, &tmp, NULL), DFCL_OK);
    snprintf(path, sizeof path, "%s/f", tmp);
    assert_int_equal(dfcl_file_write(ctx, path, text, strlen(text), NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_checkpoint_commit(r, &tmp, step, keep, best, NULL), DFCL_OK);
    assert_null(tmp);
}

static void save(struct dfcl_run_dir *r, int64_t step, int keep, const char *text) {
    save_best(r, step, keep, -1, text);
}

static void expect_steps(struct dfcl_run_dir *r, size_t n, const int64_t *want) {
    int64_t *steps;
    size_t count;
    assert_int_equal(dfcl_run_dir_checkpoints(r, &steps, &count, NULL), DFCL_OK);
    assert_int_equal(count, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(steps[i], want[i]);
    dfcl_free(ctx, steps);
}

static void checkpoints_kept(void **state) {
    (void)state;
    struct dfcl_run_dir r;
    char *tmp, *text;
    size_t size;
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("ck"), false, NULL), DFCL_OK);
    expect_steps(&r, 0, NULL);
    save(&r, 9, 3, "a");
    save(&r, 10, 3, "b");
    save(&r, 100, 3, "c");
    expect_steps(&r, 3, (const int64_t[]){9, 10, 100}); /* as numbers, not as text */
    save(&r, 101, 3, "d");
    expect_steps(&r, 3, (const int64_t[]){10, 100, 101});
    save(&r, 101, 3, "again");
    assert_int_equal(dfcl_file_read(ctx, at("ck/checkpoints/step-101/f"), 100, &text, &size, NULL), DFCL_OK);
    assert_string_equal(text, "again");
    dfcl_free(ctx, text);
    save(&r, 50, 3, "back"); /* later ones belong to a past that was left */
    expect_steps(&r, 2, (const int64_t[]){10, 50});
    save(&r, 51, 1, "e");
    expect_steps(&r, 1, (const int64_t[]){51});
    /* names that are no checkpoints are left alone */
    assert_int_equal(dfcl_mkdirs(ctx, at("ck/checkpoints/step-7x"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("ck/checkpoints/step--7"), NULL), DFCL_OK);
    expect_steps(&r, 1, (const int64_t[]){51});
    /* a crash in the middle of writing */
    assert_int_equal(dfcl_run_dir_checkpoint_begin(&r, &tmp, NULL), DFCL_OK);
    assert_int_equal(dfcl_path_kind(tmp), DFCL_PATH_DIR);
    dfcl_run_dir_close(&r);
    expect_steps(&(struct dfcl_run_dir){.ctx = ctx, .path = (char *)(uintptr_t)at("ck")}, 1, (const int64_t[]){51});
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("ck"), true, NULL), DFCL_OK);
    assert_int_equal(dfcl_path_kind(tmp), DFCL_PATH_NONE);
    dfcl_free(ctx, tmp);
    dfcl_run_dir_close(&r);
}

static void best_kept(void **state) {
    (void)state;
    struct dfcl_run_dir r;
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("best"), false, NULL), DFCL_OK);
    save_best(&r, 1, 2, 1, "a");
    save_best(&r, 2, 2, 1, "b");
    save_best(&r, 3, 2, 1, "c");
    save_best(&r, 4, 2, 1, "d");
    expect_steps(&r, 3, (const int64_t[]){1, 3, 4});
    save_best(&r, 5, 2, 5, "e"); /* a better one: the old best goes */
    expect_steps(&r, 2, (const int64_t[]){4, 5});
    save_best(&r, 6, 1, 5, "f");
    save(&r, 7, 1, "g"); /* no longer asked for */
    expect_steps(&r, 1, (const int64_t[]){7});
    save(&r, 8, 9, "h");
    save(&r, 9, 9, "i");
    assert_int_equal(dfcl_run_dir_go_back(&r, 9, NULL), DFCL_OK);
    expect_steps(&r, 3, (const int64_t[]){7, 8, 9});
    assert_int_equal(dfcl_run_dir_go_back(&r, 7, NULL), DFCL_OK);
    expect_steps(&r, 1, (const int64_t[]){7});
    dfcl_run_dir_close(&r);
}

static void leftovers(void **state) {
    (void)state;
    struct dfcl_run_dir r;
    static const char *const gone[] = {"left/config.json.tmp-12", "left/delta-live.safetensors.tmp-7", "left/samples/step-000002-ema.png.tmp-1"};
    static const char *const stay[] = {"left/notes.tmp-12", "left/config.json.tmp-", "left/delta.tmp-1x", "left/delta.safetensors"};
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("left"), false, NULL), DFCL_OK);
    save(&r, 4, 2, "a");
    dfcl_run_dir_close(&r);
    /* killed while one was written and another one removed */
    assert_int_equal(dfcl_mkdirs(ctx, at("left/checkpoints/.tmp-step"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("left/checkpoints/.old-step-2"), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("left/samples"), NULL), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(gone); i++)
        assert_int_equal(dfcl_file_write(ctx, at(gone[i]), "x", 1, NULL), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(stay); i++)
        assert_int_equal(dfcl_file_write(ctx, at(stay[i]), "x", 1, NULL), DFCL_OK);
    assert_int_equal(dfcl_run_dir_open(&r, ctx, at("left"), true, NULL), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(gone); i++)
        assert_int_equal(dfcl_path_kind(at(gone[i])), DFCL_PATH_NONE);
    for (size_t i = 0; i < DFCL_COUNT(stay); i++)
        assert_int_equal(dfcl_path_kind(at(stay[i])), DFCL_PATH_FILE);
    assert_int_equal(dfcl_path_kind(at("left/checkpoints/.tmp-step")), DFCL_PATH_NONE);
    assert_int_equal(dfcl_path_kind(at("left/checkpoints/.old-step-2")), DFCL_PATH_NONE);
    expect_steps(&r, 1, (const int64_t[]){4});
    dfcl_run_dir_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(empty_or_resumed, setup, teardown),
        cmocka_unit_test_setup_teardown(logs_cut_off, setup, teardown),
        cmocka_unit_test_setup_teardown(checkpoints_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(best_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(leftovers, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
