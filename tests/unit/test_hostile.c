/* Files made to do harm, from the fuzzers' corpora (tools/make_corpus.py names each trick): one error each, with the status and the words that a
 * user gets. What the same files may cost in memory and time is held by the fuzz targets' driver. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../tools/difffit-cl/sample_requests.h"
#include "data/decode.h"
#include "formats/image.h"
#include "formats/npy.h"
#include "formats/pickle.h"
#include "formats/safetensors.h"
#include "formats/tensor_file.h"
#include "formats/zip.h"
#include "methods/delta.h"
#include "train/checkpoint.h"
#include "train/config.h"

static dfcl_context *ctx;
static dfcl_device *dev;
static dfcl_model *model;
static char dir[64];

static const char *corpus(const char *target, const char *name) {
    static char path[512];
    snprintf(path, sizeof path, DFCL_CORPUS "/%s/%s", target, name);
    return path;
}

/* ---- reading a file as what it claims to be, and using all of it ---- */

static dfcl_status as_safetensors(const char *path, dfcl_error *err) {
    struct dfcl_st *st;
    dfcl_status s = dfcl_st_open(&st, ctx, path, err);
    dfcl_st_close(&st);
    return s;
}

static dfcl_status as_tensors(const char *path, dfcl_error *err) {
    struct dfcl_tensor_file *f;
    dfcl_status s = dfcl_tensor_file_open(&f, ctx, path, NULL, err);
    for (size_t i = 0; !s && i < dfcl_tensor_file_count(f); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(f, i);
        float *x = malloc(((size_t)v->count + 1) * sizeof *x);
        assert_non_null(x);
        s = dfcl_tensor_file_read_f32(f, v, 0, v->count, x, err);
        free(x);
    }
    dfcl_tensor_file_close(&f);
    return s;
}

static dfcl_status as_zip(const char *path, dfcl_error *err) {
    struct dfcl_map map;
    struct dfcl_zip z = {0};
    const unsigned char *bytes;
    dfcl_status s = dfcl_map_open(&map, path, err);
    if (!s)
        s = dfcl_zip_open(&z, ctx, map.data, map.size, path, err);
    for (size_t i = 0; !s && i < z.count; i++)
        s = dfcl_zip_fetch(&z, &z.entries[i], &bytes, err);
    dfcl_zip_close(&z);
    dfcl_map_close(&map);
    return s;
}

static dfcl_status as_pickle(const char *path, dfcl_error *err) {
    struct dfcl_map map;
    struct dfcl_pickle pk = {0};
    dfcl_status s = dfcl_map_open(&map, path, err);
    if (!s)
        s = dfcl_pickle_read(&pk, ctx, map.data, (size_t)map.size, path, err);
    dfcl_pickle_free(&pk);
    dfcl_map_close(&map);
    return s;
}

static dfcl_status as_array(const char *path, dfcl_error *err) {
    struct dfcl_npy npy;
    dfcl_status s = dfcl_npy_open(&npy, path, err);
    if (!s)
        dfcl_npy_close(&npy);
    return s;
}
static dfcl_status as_latent(const char *path, dfcl_error *err) {
    float x[18];
    return dfcl_decode_latent(ctx, path, 2, 3, 3, x, err);
}
static dfcl_status as_label(const char *path, dfcl_error *err) {
    int label;
    return dfcl_decode_label(ctx, path, &label, err);
}

static dfcl_status as_picture(const char *path, dfcl_error *err) {
    struct dfcl_image im;
    dfcl_status s = dfcl_image_read(ctx, path, 3, DFCL_ALPHA_WHITE, &im, err);
    dfcl_image_free(ctx, &im);
    return s;
}

static dfcl_status as_base(const char *path, dfcl_error *err) {
    struct dfcl_model_params p = {.path = path};
    dfcl_model *m = NULL;
    dfcl_status s = dfcl_model_open(&m, dev, &p, err);
    dfcl_model_close(&m);
    return s;
}

static dfcl_status as_delta(const char *path, dfcl_error *err) {
    int domain;
    dfcl_status s = dfcl_model_load_delta(model, path, 1.0f, 1, &domain, err);
    if (!s)
        assert_int_equal(dfcl_model_unload_delta(model, domain, NULL), DFCL_OK);
    return s;
}

/* By a link of the name that it would have. */
static dfcl_status linked(const char *path, const char *name, dfcl_status (*read)(const char *link, dfcl_error *err), dfcl_error *err) {
    char link[128];
    snprintf(link, sizeof link, "%s/%s", dir, name);
    unlink(link);
    assert_int_equal(symlink(path, link), 0);
    return read(link, err);
}
static dfcl_status read_state(const char *link, dfcl_error *err) {
    struct dfcl_run_dir run = {.ctx = ctx, .lock_fd = -1};
    static struct dfcl_train_state st;
    (void)link;
    cJSON *config = NULL;
    dfcl_status s = dfcl_checkpoint_read_state(&run, dir, &st, &config, err);
    cJSON_Delete(config);
    return s;
}
static dfcl_status as_state(const char *path, dfcl_error *err) {
    return linked(path, "state.json", read_state, err);
}
static dfcl_status as_config(const char *path, dfcl_error *err) {
    struct dfcl_run_dir run = {.ctx = ctx, .lock_fd = -1};
    cJSON *saved = NULL;
    dfcl_status s = dfcl_run_dir_read_json(&run, path, &saved, err);
    if (!s)
        s = dfcl_train_config_same(saved, saved, path, err);
    if (!s && !dfcl_train_config_saved_micro(saved))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: no micro batch", path);
    cJSON_Delete(saved);
    return s;
}

static dfcl_status as_requests(const char *path, dfcl_error *err) {
    struct sample_requests r = {0};
    struct sample_line defaults = {.count = 1};
    dfcl_status s = sample_requests_read(&r, path, &defaults, err);
    if (!s)
        s = sample_requests_group(&r, err);
    sample_requests_free(&r);
    return s;
}

static dfcl_status describe(const char *path, dfcl_error *err) {
    char *text = NULL;
    dfcl_status s = dfcl_describe(ctx, path, 1, &text, err);
    dfcl_text_free(ctx, text);
    return s;
}
static dfcl_status as_any(const char *path, dfcl_error *err) {
    return describe(path, err);
}
static dfcl_status as_arrays(const char *path, dfcl_error *err) {
    return linked(path, "x.npz", describe, err);
}

/* ---- what is expected ---- */

static const struct {
    const char *target;
    dfcl_status (*read)(const char *path, dfcl_error *err);
    const char *name;
    dfcl_status status;
    const char *words; /* of the message */
} cases[] = {
#include "hostile_cases.h"
};

static void refused(void **state) {
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        dfcl_error e = {0};
        const char *path = corpus(cases[i].target, cases[i].name);
        if (dfcl_path_kind(path) != DFCL_PATH_FILE)
            fail_msg("%s: no such file", path);
        dfcl_status s = cases[i].read(path, &e);
        bool named = s == DFCL_OK || s == DFCL_NOMEM || strstr(e.msg, cases[i].name) || strstr(e.msg, dir);
        if (s == cases[i].status && (s == DFCL_OK || (e.status == s && named && strstr(e.msg, cases[i].words) && !dfcl_has_control(e.msg))))
            continue;
        printf("%s/%s: expected %d with \"%s\", found %d: %s\n", cases[i].target, cases[i].name, cases[i].status, cases[i].words, s, e.msg);
        wrong++;
    }
    assert_int_equal(wrong, 0);
    printf("%zu files\n", DFCL_COUNT(cases));
}

static int setup(void **state) {
    static const char *const names[3] = {"a", "b", "c"};
    static char base[96];
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 8, .heads = 2, .patch = 2, .input = 4, .channels = 1, .classes = 3},
                                  .class_names = names, .scale = 0.1f};
    struct dfcl_model_params mp = {.path = base, .max_class_rows = 64};
    (void)state;
    strcpy(dir, "/tmp/dfcl-hostile-XXXXXX");
    if (!mkdtemp(dir) || dfcl_context_create(&ctx, NULL, NULL))
        return 1;
    snprintf(base, sizeof base, "%s/base.safetensors", dir);
    return dfcl_model_init(ctx, &ip, base, NULL) || dfcl_device_open(&dev, ctx, "host", NULL) || dfcl_model_open(&model, dev, &mp, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_model_close(&model);
    dfcl_device_close(&dev);
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
