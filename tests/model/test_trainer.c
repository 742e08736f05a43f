/* The trainer on a tiny pixel model on the host backend: going on from a checkpoint gives the bits of an unbroken run, refusals, logs, checkpoints
 * kept, non-finite numbers, previews, final files. */
#define _GNU_SOURCE
#include <dirent.h>
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

#include "base/file.h"
#include "base/json.h"
#include "data/dataset.h"
#include "train/config.h"

#include <difffit-cl/dfcl.h>

static dfcl_context *ctx;
static dfcl_device *dev;
static char root[64];
static int warnings;

static void count_warnings(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    (void)line;
    warnings += level == DFCL_LOG_WARN;
}

static const char *DFCL_PRINTF(1, 2) at(const char *fmt, ...) {
    static char buf[8][512];
    static int next;
    char *b = buf[next++ % 8];
    int n = snprintf(b, 512, "%s/", root);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b + n, (size_t)(512 - n), fmt, ap);
    va_end(ap);
    return b;
}

static void write_pictures(const char *folder, int classes, int each, int offset) {
    for (int c = 0; c < classes; c++) {
        assert_int_equal(dfcl_mkdirs(ctx, at("%s/c%d", folder, c), NULL), DFCL_OK);
        for (int i = 0; i < each; i++) {
            uint8_t px[64];
            for (int k = 0; k < 64; k++)
                px[k] = (uint8_t)(k * (3 + c) + i * 29 + offset);
            assert_int_equal(dfcl_png_write(ctx, at("%s/c%d/%d.png", folder, c, i), px, 8, 8, 1, NULL, NULL), DFCL_OK);
        }
    }
}

/* The device of the run: DFCL_TEST_DEVICE, else the plain C one. */
static const char *device_name(void) {
    const char *name = getenv("DFCL_TEST_DEVICE");
    return name ? name : "host";
}

static int setup(void **state) {
    (void)state;
    struct dfcl_context_params p = {.log = count_warnings};
    strcpy(root, access("/dev/shm", W_OK) ? "/tmp/dfcl-trainer-XXXXXX" : "/dev/shm/dfcl-trainer-XXXXXX"); /* checkpoints are synced to the disk */
    if (!mkdtemp(root) || dfcl_context_create(&ctx, &p, NULL) || dfcl_device_open(&dev, ctx, device_name(), NULL))
        return 1;
    struct dfcl_init_params init = {.shape = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = 8, .channels = 1, .classes = 4},
                                    .seed = 3, .scale = 0.1f, .dtype = "f32"};
    assert_int_equal(dfcl_model_init(ctx, &init, at("base.safetensors"), NULL), DFCL_OK);
    write_pictures("data", 2, 5, 0);
    write_pictures("other", 3, 5, 1);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return 0;
}

static char run_path[256], data_path[256], base_path[256];
static struct dfcl_train_params params(const char *run) {
    snprintf(run_path, sizeof run_path, "%s", at("%s", run));
    snprintf(data_path, sizeof data_path, "%s", at("data"));
    snprintf(base_path, sizeof base_path, "%s", at("base.safetensors"));
    struct dfcl_train_params p = {.run_dir = run_path, .data = data_path, .steps = 6, .batch = 4, .lr = 1e-2, .seed = 11, .ema_decay = 0.9,
                                  .log_every = 1};
    p.model.path = base_path;
    return p;
}

/* Creates, takes `steps` steps (all of them when negative, then the final files), destroys. */
static void train(const struct dfcl_train_params *p, int steps) {
    dfcl_trainer *t;
    dfcl_error e = {0};
    int done = 0;
    if (dfcl_trainer_create(&t, dev, p, &e))
        fail_msg("%s", e.msg);
    for (int i = 0; steps < 0 ? !done : i < steps; i++)
        if (dfcl_trainer_step(t, NULL, &done, &e))
            fail_msg("%s", e.msg);
    if (steps < 0 && dfcl_trainer_finish(t, &e))
        fail_msg("%s", e.msg);
    dfcl_trainer_destroy(&t);
}

static dfcl_status try_create(const struct dfcl_train_params *p, dfcl_error *e) {
    dfcl_trainer *t;
    dfcl_status s = dfcl_trainer_create(&t, dev, p, e);
    assert_true(s || t);
    dfcl_trainer_destroy(&t);
    return s;
}

static void same_file(const char *a, const char *b) {
    char *x, *y;
    size_t n, m;
    assert_int_equal(dfcl_file_read(ctx, a, 1 << 26, &x, &n, NULL), DFCL_OK);
    assert_int_equal(dfcl_file_read(ctx, b, 1 << 26, &y, &m, NULL), DFCL_OK);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    dfcl_free(ctx, x);
    dfcl_free(ctx, y);
}

/* Losses by step from metrics.jsonl; every step from 1 to n must be there once, in order. */
static void read_losses(const char *run, int n, double *loss) {
    char *text;
    size_t size;
    int k = 0;
    assert_int_equal(dfcl_file_read(ctx, at("%s/metrics.jsonl", run), 1 << 20, &text, &size, NULL), DFCL_OK);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        cJSON *o = cJSON_Parse(line);
        assert_non_null(o);
        assert_true(k < n);
        assert_int_equal(cJSON_GetObjectItem(o, "step")->valuedouble, k + 1);
        loss[k++] = cJSON_GetObjectItem(o, "loss")->valuedouble;
        assert_true(cJSON_GetObjectItem(o, "grad_norm")->valuedouble > 0.0);
        assert_true(cJSON_GetObjectItem(o, "images_per_second")->valuedouble > 0.0);
        cJSON_Delete(o);
    }
    assert_int_equal(k, n);
    dfcl_free(ctx, text);
}

static void resume_is_exact(void **state) {
    (void)state;
    static const char *const methods[] = {"difffit", "bitfit", "full"};
    for (int m = 0; m < 3; m++) {
        struct dfcl_train_params p = params("");
        bool full = m == 2;
        p.method = methods[m];
        p.flip = m == 1;
        p.clip = m == 0 ? 0.5 : 0.0;
        p.lr_schedule = m == 1 ? "cosine" : NULL;
        p.warmup = 2;
        char a[32], b[32];
        snprintf(a, sizeof a, "unbroken-%s", methods[m]);
        snprintf(b, sizeof b, "broken-%s", methods[m]);
        snprintf(run_path, sizeof run_path, "%s", at("%s", a));
        train(&p, -1);
        /* checkpoint after 3, killed after 4 with the line of step 4 (and half a line) in the log, goes on from 3 */
        p.checkpoint_every = 3;
        p.resume = "auto";
        snprintf(run_path, sizeof run_path, "%s", at("%s", b));
        train(&p, 4);
        FILE *f = fopen(at("%s/metrics.jsonl", b), "a");
        fputs("{\"step\": 5, \"lo", f);
        fclose(f);
        p.keep = 1;
        assert_int_equal(unlink(at("%s/config.json", b)), 0); /* the checkpoint has its own */
        train(&p, -1);
        double x[6], y[6];
        read_losses(a, 6, x);
        read_losses(b, 6, y);
        assert_memory_equal(x, y, sizeof x);
        assert_true(x[0] != x[1]);
        same_file(at("%s/%s.safetensors", a, full ? "model" : "delta"), at("%s/%s.safetensors", b, full ? "model" : "delta"));
        same_file(at("%s/%s-live.safetensors", a, full ? "model" : "delta"), at("%s/%s-live.safetensors", b, full ? "model" : "delta"));
        same_file(at("%s/checkpoints/step-6/tensors.safetensors", a), at("%s/checkpoints/step-6/tensors.safetensors", b));
        assert_int_equal(dfcl_path_kind(at("%s/checkpoints/step-3", b)), DFCL_PATH_NONE); /* keep 1 */
        /* nothing left to do */
        dfcl_trainer *t;
        struct dfcl_train_progress g;
        int done = 0;
        assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
        assert_int_equal(dfcl_trainer_summary(t)->start_step, 6);
        assert_int_equal(dfcl_trainer_step(t, &g, &done, NULL), DFCL_OK);
        assert_int_equal(done, 1);
        assert_int_equal(g.step, 6);
        dfcl_trainer_destroy(&t);
    }
}

static void passes_resume(void **state) {
    (void)state;
    /* the size of a pass is part of the run: not given again, it is taken from there */
    struct dfcl_train_params p = params("passes");
    dfcl_trainer *t;
    p.micro_batch = 2;
    p.checkpoint_every = 2;
    train(&p, 2);
    p.micro_batch = 0;
    p.resume = "auto";
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    assert_int_equal(dfcl_trainer_summary(t)->micro_batch, 2);
    dfcl_trainer_destroy(&t);
    p.micro_batch = 4;
    dfcl_error e;
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "micro_batch"));
}

static void go_back(void **state) {
    (void)state;
    struct dfcl_train_params p = params("back");
    p.checkpoint_every = 1;
    p.keep = 10;
    train(&p, -1);
    /* from an older checkpoint by path; the later ones are dropped */
    char old[512];
    snprintf(old, sizeof old, "%s/", at("back/checkpoints/step-4"));
    p.resume = old;
    train(&p, 0); /* killed at once: the logs have been cut back, so the later ones are gone already */
    p.resume = "auto";
    dfcl_trainer *t;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    assert_int_equal(dfcl_trainer_summary(t)->start_step, 4);
    dfcl_trainer_destroy(&t);
    snprintf(old, sizeof old, "%s/", at("back/checkpoints/step-2"));
    p.resume = old;
    train(&p, 1);
    for (int i = 1; i <= 6; i++)
        assert_int_equal(dfcl_path_kind(at("back/checkpoints/step-%d", i)), i <= 3 ? DFCL_PATH_DIR : DFCL_PATH_NONE);
    dfcl_error e;
    p.resume = data_path;
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    /* a damaged checkpoint is named */
    p.resume = "auto";
    assert_int_equal(truncate(at("back/checkpoints/step-3/tensors.safetensors"), 1000), 0);
    assert_int_equal(try_create(&p, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "step-3/tensors.safetensors"));
    assert_int_equal(dfcl_file_write(ctx, at("back/checkpoints/step-3/state.json"), "{}", 2, NULL), DFCL_OK);
    assert_int_equal(try_create(&p, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "state.json"));
}

static void refusals(void **state) {
    (void)state;
    struct dfcl_train_params p = params("refuse"), q;
    dfcl_error e;
    p.checkpoint_every = 2;
    train(&p, 2);
    assert_int_equal(try_create(&p, &e), DFCL_USAGE); /* not empty, and not asked to go on */
    assert_non_null(strstr(e.msg, run_path));
    p.resume = "auto";
    assert_int_equal(try_create(&p, &e), DFCL_OK);
    static const char *const words[] = {"batch", "seed", "method", "data", "lr", "label_dropout", "flip", "class_init", "base"};
    char other[512], base[512];
    snprintf(other, sizeof other, "%s", at("other"));
    struct dfcl_init_params init = {.shape = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = 8, .channels = 1, .classes = 4},
                                    .seed = 4, .scale = 0.1f, .dtype = "f32"};
    snprintf(base, sizeof base, "%s", at("base2.safetensors"));
    assert_int_equal(dfcl_model_init(ctx, &init, base, NULL), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(words); i++) {
        q = p;
        switch (i) {
        case 0: q.batch = 2; break;
        case 1: q.seed = 12; break;
        case 2: q.method = "bitfit"; break;
        case 3: q.data = other; break;
        case 4: q.lr = 2e-2; break;
        case 5: q.label_dropout = -1; break;
        case 6: q.flip = 1; break;
        case 7: q.class_init = "null"; break;
        case 8: q.model.path = base; break;
        }
        if (try_create(&q, &e) != DFCL_USAGE || !strstr(e.msg, words[i]))
            fail_msg("%s: %d %s", words[i], e.status, e.msg);
    }
    q = p;
    q.steps = 9; /* more steps are no contradiction */
    assert_int_equal(try_create(&q, &e), DFCL_OK);

    dfcl_trainer *t;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    assert_int_equal(try_create(&p, &e), DFCL_ERROR); /* locked */
    assert_non_null(strstr(e.msg, "another process"));
    dfcl_trainer_destroy(&t);

    q = params("refuse2");
    q.batch = 4;
    q.micro_batch = 3;
    assert_int_equal(try_create(&q, &e), DFCL_USAGE);
    q = params("refuse3");
    q.lr_schedule = "linear";
    assert_int_equal(try_create(&q, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "linear"));
    q = params("refuse4");
    q.max_memory = 1000;
    assert_int_equal(try_create(&q, &e), DFCL_NOMEM);
}

/* Plan and level of a run that is opened and closed. */
static uint64_t planned(const struct dfcl_train_params *p, const char *level) {
    dfcl_trainer *t;
    dfcl_error e = {0};
    if (dfcl_trainer_create(&t, dev, p, &e))
        fail_msg("%s", e.msg);
    const struct dfcl_train_summary *s = dfcl_trainer_summary(t);
    uint64_t bytes = s->planned_bytes;
    assert_string_equal(s->recompute, level);
    assert_int_equal(s->micro_batch, 4);
    assert_non_null(strstr(dfcl_trainer_plan(t), level));
    dfcl_trainer_destroy(&t);
    return bytes;
}

static void recompute_follows_memory(void **state) {
    (void)state;
    struct dfcl_train_params p = params("rc-none");
    dfcl_error e = {0};
    train(&p, -1);
    p = params("rc-plan");
    uint64_t none = planned(&p, "none");
    p = params("rc-plan-cheap");
    p.recompute = "cheap";
    uint64_t cheap = planned(&p, "cheap");
    p = params("rc-plan-block");
    p.recompute = "block";
    uint64_t block = planned(&p, "block");
    assert_true(block < cheap && cheap < none);
    /* only running blocks again fits; recorded, and no obstacle to going on without */
    p = params("rc-block");
    p.max_memory = block;
    assert_int_equal(planned(&p, "block"), block);
    p.resume = "auto";
    p.checkpoint_every = 3;
    train(&p, 3);
    char *text;
    size_t size;
    assert_int_equal(dfcl_file_read(ctx, at("rc-block/config.json"), 1 << 20, &text, &size, NULL), DFCL_OK);
    cJSON *o = cJSON_ParseWithLength(text, size);
    assert_string_equal(cJSON_GetObjectItem(o, "recompute")->valuestring, "block");
    cJSON_Delete(o);
    dfcl_free(ctx, text);
    p.max_memory = 0;
    p.recompute = "cheap";
    train(&p, -1);
    same_file(at("rc-none/delta.safetensors"), at("rc-block/delta.safetensors"));
    same_file(at("rc-none/delta-live.safetensors"), at("rc-block/delta-live.safetensors"));
    /* asked for and too much */
    p = params("rc-refused");
    p.max_memory = cheap;
    p.micro_batch = 4;
    p.recompute = "none";
    assert_int_equal(try_create(&p, &e), DFCL_NOMEM);
    assert_non_null(strstr(e.msg, "passes of 4"));
    assert_non_null(strstr(e.msg, "recompute none"));
    assert_non_null(strstr(e.msg, "passes of 4 with recompute cheap would fit"));
    p.recompute = "all";
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "auto, none, cheap or block"));
}

static void interrupted(void **state) {
    (void)state;
    struct dfcl_train_params p = params("whole");
    p.log_every = 4; /* the sums of a line straddle the interruption */
    train(&p, -1);
    p = params("halves");
    p.log_every = 4;
    dfcl_trainer *t;
    int done = 0;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(dfcl_trainer_step(t, NULL, &done, NULL), DFCL_OK);
    assert_int_equal(dfcl_trainer_save(t, NULL), DFCL_OK);
    assert_int_equal(dfcl_trainer_save(t, NULL), DFCL_OK);
    dfcl_trainer_destroy(&t);
    p.resume = "auto";
    train(&p, -1);
    same_file(at("whole/delta.safetensors"), at("halves/delta.safetensors"));
    double loss[2][2];
    for (int r = 0; r < 2; r++) {
        char *text;
        size_t size;
        assert_int_equal(dfcl_file_read(ctx, at("%s/metrics.jsonl", r ? "halves" : "whole"), 1 << 20, &text, &size, NULL), DFCL_OK);
        char *second = strchr(text, '\n') + 1;
        assert_int_equal(sscanf(text, "{\"step\":4,\"loss\":%lf", &loss[r][0]), 1);
        assert_int_equal(sscanf(second, "{\"step\":6,\"loss\":%lf", &loss[r][1]), 1);
        dfcl_free(ctx, text);
    }
    assert_memory_equal(loss[0], loss[1], sizeof loss[0]);
}

static void non_finite(void **state) {
    (void)state;
    struct dfcl_train_params p = params("wild");
    p.lr = 1e6;
    p.method = "full";
    p.steps = 100;
    dfcl_trainer *t;
    dfcl_error e = {0};
    struct dfcl_train_progress g;
    int done = 0, steps = 0;
    warnings = 0;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    dfcl_status s = DFCL_OK;
    while (!s && !done) {
        s = dfcl_trainer_step(t, &g, &done, &e);
        steps++;
    }
    assert_int_equal(s, DFCL_NONFINITE);
    assert_int_equal(e.status, DFCL_NONFINITE);
    assert_int_equal(g.skipped, 20);
    assert_int_equal(warnings, 20);
    assert_true(steps >= 21 && steps < 30);
    assert_non_null(strstr(e.msg, "20 steps in a row"));
    assert_non_null(strstr(e.msg, "no checkpoint was written"));
    dfcl_trainer_destroy(&t);

    /* the checkpoints that fall due in between do not push out the last good one */
    p = params("wild-kept");
    p.lr = 1e6;
    p.method = "full";
    p.steps = 100;
    p.checkpoint_every = 1;
    p.keep = 1;
    p.max_skipped = 4;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    for (steps = done = 0, s = DFCL_OK; !s && !done; steps++)
        s = dfcl_trainer_step(t, &g, &done, &e);
    assert_int_equal(s, DFCL_NONFINITE);
    assert_int_equal(dfcl_trainer_save(t, NULL), DFCL_OK); /* as an interrupt would */
    dfcl_trainer_destroy(&t);
    char last[64];
    snprintf(last, sizeof last, "wild-kept/checkpoints/step-%d", steps - 4);
    assert_non_null(strstr(e.msg, last));
    if (!strstr(e.msg, "layer ") || !strstr(e.msg, "tensor "))
        fail_msg("%s", e.msg);
    assert_int_equal(dfcl_path_kind(at("%s", last)), DFCL_PATH_DIR);
    assert_int_equal(dfcl_path_kind(at("wild-kept/checkpoints/step-%d", steps)), DFCL_PATH_DIR);
}

static void npy(const char *path, const char *descr, const char *shape, const void *data, size_t bytes) {
    char head[118];
    unsigned char file[4096] = "\x93NUMPY\x01";
    int n = snprintf(head, sizeof head, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", descr, shape);
    file[8] = 118;
    memset(file + 10, ' ', 118);
    memcpy(file + 10, head, (size_t)n);
    file[127] = '\n';
    memcpy(file + 128, data, bytes);
    assert_int_equal(dfcl_file_write(ctx, path, file, 128 + bytes, NULL), DFCL_OK);
}

/* A run on latents of which one is `value` throughout. */
static struct dfcl_train_params odd_latent(const char *run, const char *folder, float value) {
    struct dfcl_train_params p = params(run);
    struct dfcl_init_params init = {.shape = {.depth = 2, .hidden = 32, .heads = 2, .patch = 2, .input = 4, .channels = 4, .classes = 2},
                                    .seed = 3, .scale = 0.1f, .dtype = "f32"};
    snprintf(base_path, sizeof base_path, "%s", at("latent-base.safetensors"));
    assert_int_equal(dfcl_model_init(ctx, &init, base_path, NULL), DFCL_OK);
    snprintf(data_path, sizeof data_path, "%s", at("%s", folder));
    assert_int_equal(dfcl_mkdirs(ctx, at("%s/x_features", folder), NULL), DFCL_OK);
    assert_int_equal(dfcl_mkdirs(ctx, at("%s/x_labels", folder), NULL), DFCL_OK);
    for (int i = 0; i < 23; i++) {
        float x[64];
        int64_t label = i % 2;
        for (int k = 0; k < 64; k++)
            x[k] = i == 7 ? value : (float)sin(i + 0.37 * k);
        npy(at("%s/x_features/%d.npy", folder, i), "<f4", "(4, 4, 4)", x, sizeof x);
        npy(at("%s/x_labels/%d.npy", folder, i), "<i8", "(1,)", &label, sizeof label);
    }
    p.lr = 1e-3;
    p.batch = 2;
    return p;
}

/* Now and then a step is skipped: what falls due there waits, nothing else changes, and a broken run does the same. */
static void skipped_in_passing(void **state) {
    (void)state;
    struct dfcl_train_params p = odd_latent("skips", "latents-wild", 3e38f);
    p.steps = 40;
    p.checkpoint_every = 1;
    p.keep = 100;
    dfcl_trainer *t;
    struct dfcl_train_progress g;
    int done = 0, kept = 0, skipped_at[40] = {0};
    int64_t before = 0;
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    while (!done) {
        assert_int_equal(dfcl_trainer_step(t, &g, &done, NULL), DFCL_OK);
        skipped_at[g.step - 1] = g.skipped > before;
        before = g.skipped;
        assert_int_equal(g.checkpointed, !skipped_at[g.step - 1] || done);
        kept += g.checkpointed;
    }
    assert_true(g.skipped >= 1 && g.skipped <= 6);
    assert_int_equal(dfcl_trainer_finish(t, NULL), DFCL_OK);
    dfcl_trainer_destroy(&t);
    int n = 0;
    for (int i = 1; i <= 40; i++)
        n += dfcl_path_kind(at("skips/checkpoints/step-%d", i)) == DFCL_PATH_DIR;
    assert_int_equal(n, kept);
    /* a checkpoint falls due at the first skipped step; it is taken after the next one */
    int first = 1;
    while (!skipped_at[first - 1])
        first++;
    char run[256];
    snprintf(run, sizeof run, "%s", at("skips2"));
    p.run_dir = run;
    p.checkpoint_every = first;
    assert_true(first > 1 && first < 38 && !skipped_at[first]);
    train(&p, first + 2);
    assert_int_equal(dfcl_path_kind(at("skips2/checkpoints/step-%d", first)), DFCL_PATH_NONE);
    assert_int_equal(dfcl_path_kind(at("skips2/checkpoints/step-%d", first + 1)), DFCL_PATH_DIR);
    p.resume = "auto";
    train(&p, -1);
    same_file(at("skips/delta.safetensors"), at("skips2/delta.safetensors"));
    same_file(at("skips/delta-live.safetensors"), at("skips2/delta-live.safetensors"));
}

/* A number of the line of a step, NAN for null. */
static double metric(const char *run, int step, const char *key) {
    char *text, begin[40];
    size_t size;
    snprintf(begin, sizeof begin, "{\"step\":%d,", step);
    assert_int_equal(dfcl_file_read(ctx, at("%s/metrics.jsonl", run), 1 << 20, &text, &size, NULL), DFCL_OK);
    const char *line = strstr(text, begin);
    assert_non_null(line);
    cJSON *o = cJSON_ParseWithLength(line, strcspn(line, "\n"));
    const cJSON *v = cJSON_GetObjectItem(o, key);
    assert_non_null(v);
    double x = cJSON_IsNull(v) ? (double)NAN : v->valuedouble;
    cJSON_Delete(o);
    dfcl_free(ctx, text);
    return x;
}

/* z-scores against the formula written out, over more steps than are looked back on. */
static void spikes_show(void **state) {
    (void)state;
    enum { N = 130 };
    struct dfcl_train_params p = params("spikes");
    p.steps = N;
    p.batch = 2;
    p.lr = 1e-4;
    p.spike_z = 1.5;
    dfcl_trainer *t;
    struct dfcl_train_progress g;
    int done = 0, count = 0, last = 0;
    double loss[N], z[N];
    assert_int_equal(dfcl_trainer_create(&t, dev, &p, NULL), DFCL_OK);
    while (!done) {
        assert_int_equal(dfcl_trainer_step(t, &g, &done, NULL), DFCL_OK);
        int i = (int)g.step - 1, n = DFCL_MIN(i, 100);
        double mean = 0, var = 0;
        loss[i] = g.loss;
        for (int k = i - n; k < i; k++)
            mean += loss[k] / n;
        for (int k = i - n; k < i; k++)
            var += (loss[k] - mean) * (loss[k] - mean);
        z[i] = n < 20 ? (double)NAN : (loss[i] - mean) / sqrt(var / (n - 1));
        if (z[i] > 1.5) {
            count++;
            last = i + 1;
        }
        assert_int_equal(g.spikes, count);
        assert_int_equal(g.spike_step, last);
        assert_true(!count || fabs(g.spike_z - z[last - 1]) < 1e-9);
    }
    dfcl_trainer_destroy(&t);
    assert_true(count >= 2 && count < N / 4);
    for (int i = 0; i < N; i += 7) {
        double got = metric("spikes", i + 1, "z");
        assert_true(i < 20 ? isnan(got) : fabs(got - z[i]) < 1e-9);
    }
    assert_true(metric("spikes", last, "spikes") == count && metric("spikes", last - 1, "spikes") == count - 1);
    /* a line of many steps has the largest, also when it was broken off in the middle */
    char run[256];
    snprintf(run, sizeof run, "%s", at("spikes2"));
    p.run_dir = run;
    p.log_every = 65;
    p.checkpoint_every = 50;
    train(&p, 52);
    p.resume = "auto";
    train(&p, -1);
    double most[2] = {-1e9, -1e9};
    for (int i = 0; i < N; i++)
        most[i / 65] = fmax(most[i / 65], z[i]);
    assert_true(fabs(metric("spikes2", 65, "z") - most[0]) < 1e-9 && fabs(metric("spikes2", 130, "z") - most[1]) < 1e-9);
    assert_true(metric("spikes2", 130, "spikes") == count);
    snprintf(run, sizeof run, "%s", at("spikes3"));
    p.spike_z = -1;
    p.resume = NULL;
    train(&p, -1);
    assert_true(metric("spikes3", 130, "spikes") == 0.0);
}

/* How a run is logged and what it keeps may change at any time. */
static void other_policies_resume(void **state) {
    (void)state;
    struct dfcl_train_params p = params("policy-whole");
    p.log_every = 4;
    train(&p, -1);
    p = params("policy");
    p.log_every = 3;
    p.checkpoint_every = 2;
    p.keep = 1;
    train(&p, 5); /* line 3, checkpoint 4 */
    p.resume = "auto";
    p.log_every = 4;
    p.checkpoint_every = 5;
    p.keep = 7;
    train(&p, -1);
    same_file(at("policy-whole/delta.safetensors"), at("policy/delta.safetensors"));
    same_file(at("policy-whole/delta-live.safetensors"), at("policy/delta-live.safetensors"));
    same_file(at("policy-whole/checkpoints/step-6/tensors.safetensors"), at("policy/checkpoints/step-6/tensors.safetensors"));
    char *text;
    size_t size;
    assert_int_equal(dfcl_file_read(ctx, at("policy/metrics.jsonl"), 1 << 20, &text, &size, NULL), DFCL_OK);
    const char *second = strchr(text, '\n') + 1;
    assert_ptr_equal(strstr(text, "{\"step\":3,"), text);
    assert_ptr_equal(strstr(second, "{\"step\":6,"), second); /* 4 was taken before its line would have been due */
    dfcl_free(ctx, text);
}

/* val_loss by step; NAN where a line has none. Lines of steps 1 .. n. */
static void read_val(const char *run, int n, double *val) {
    char *text;
    size_t size;
    int k = 0;
    assert_int_equal(dfcl_file_read(ctx, at("%s/metrics.jsonl", run), 1 << 20, &text, &size, NULL), DFCL_OK);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        cJSON *o = cJSON_Parse(line);
        const cJSON *v = cJSON_GetObjectItem(o, "val_loss");
        assert_true(k < n);
        assert_int_equal(cJSON_GetObjectItem(o, "step")->valuedouble, k + 1);
        val[k++] = v ? v->valuedouble : (double)NAN;
        assert_true(!v || cJSON_GetObjectItem(o, "val_loss_se")->valuedouble > 0.0);
        cJSON_Delete(o);
    }
    assert_int_equal(k, n);
    dfcl_free(ctx, text);
}

/* The loss of a delta on the pictures that `p` holds out, by the library's other way of measuring. */
static double loss_of(const struct dfcl_train_params *p, const char *delta) {
    struct dfcl_dataset *ds;
    struct dfcl_dataset_options o = {.path = p->data, .channels = 1, .side = 8, .seed = p->seed, .val_fraction = p->val_fraction};
    struct dfcl_loss_estimate est;
    static float x[64 * 10];
    static int labels[10];
    assert_int_equal(dfcl_dataset_open(&ds, ctx, &o, NULL), DFCL_OK);
    struct dfcl_pictures pics = {.count = (int)dfcl_dataset_held_out_count(ds), .channels = 1, .side = 8, .data = x, .labels = labels, .class_count = 2};
    assert_int_equal(pics.count, 4);
    for (int i = 0; i < pics.count; i++)
        assert_int_equal(dfcl_dataset_held_out(ds, i, x + 64 * i, &labels[i], NULL), DFCL_OK);
    dfcl_dataset_close(&ds);
    dfcl_model *m;
    int domain;
    struct dfcl_model_params mp = {.path = p->model.path};
    assert_int_equal(dfcl_model_open(&m, dev, &mp, NULL), DFCL_OK);
    assert_int_equal(dfcl_model_load_delta(m, delta, 1.0f, 0, &domain, NULL), DFCL_OK);
    assert_int_equal(dfcl_evaluate_loss(m, domain, &pics, 0, 256, p->seed, &est, NULL), DFCL_OK);
    dfcl_model_close(&m);
    return est.loss;
}

static void held_out_loss(void **state) {
    (void)state;
    struct dfcl_train_params p = params("val-quiet");
    p.val_fraction = 0.4;
    p.lr = 0.3; /* wild enough to make the loss rise again */
    p.lr_schedule = "cosine";
    p.steps = 10;
    p.micro_batch = 2;
    struct dfcl_train_params quiet = p;
    train(&p, -1); /* measured once, at the end */
    char run[256];
    snprintf(run, sizeof run, "%s", at("val"));
    p.run_dir = run;
    p.checkpoint_every = 2;
    p.keep = 1;
    p.log_every = 3;
    train(&p, -1);
    /* measuring leaves no trace */
    same_file(at("val-quiet/checkpoints/step-10/tensors.safetensors"), at("val/checkpoints/step-10/tensors.safetensors"));
    p.log_every = 1;
    snprintf(run, sizeof run, "%s", at("val1"));
    train(&p, -1);
    double val[10];
    int best = 0;
    read_val("val1", 10, val);
    for (int i = 0; i < 10; i++) {
        assert_true(isfinite(val[i]) == (i % 2 == 1));
        if (isfinite(val[i]) && (!best || val[i] < val[best - 1]))
            best = i + 1;
    }
    assert_true(best > 0 && best < 10); /* else this test would not see the difference */
    assert_int_equal(dfcl_path_kind(at("val1/checkpoints/step-10")), DFCL_PATH_DIR);
    for (int i = 1; i < 10; i++)
        assert_int_equal(dfcl_path_kind(at("val1/checkpoints/step-%d", i)), i == best ? DFCL_PATH_DIR : DFCL_PATH_NONE);
    double again = loss_of(&p, at("val1/delta-best.safetensors")), last = loss_of(&p, at("val1/delta.safetensors"));
    if (fabs(again - val[best - 1]) > 1e-5 * again || fabs(last - val[9]) > 1e-5 * last)
        fail_msg("best %.9g, by evaluation %.9g; last %.9g and %.9g", val[best - 1], again, val[9], last);
    /* broken off, with other rules about what is kept */
    snprintf(run, sizeof run, "%s", at("val2"));
    train(&p, 5);
    p.resume = "auto";
    p.keep = 3;
    train(&p, 3);
    p.keep = 1;
    p.no_keep_best = 1;
    train(&p, -1);
    double val2[10];
    read_val("val2", 10, val2);
    assert_memory_equal(val, val2, sizeof val);
    same_file(at("val1/delta.safetensors"), at("val2/delta.safetensors"));
    same_file(at("val1/delta-best.safetensors"), at("val2/delta-best.safetensors"));
    assert_int_equal(dfcl_path_kind(at("val2/checkpoints/step-%d", best)), DFCL_PATH_NONE);
    dfcl_error e;
    quiet.resume = "auto";
    snprintf(run, sizeof run, "%s", at("val-quiet"));
    quiet.run_dir = run;
    assert_int_equal(try_create(&quiet, &e), DFCL_OK);
    quiet.val_fraction = 0.2;
    assert_int_equal(try_create(&quiet, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "val_fraction"));
    quiet.val_fraction = 0;
    assert_int_equal(try_create(&quiet, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "val_fraction"));
}

/* Arrays in memory train to the bits of the same pictures in a folder, and the run goes on with the same values only. */
static void data_in_memory(void **state) {
    (void)state;
    struct dfcl_train_params p = params("folder");
    p.flip = 1;
    p.val_fraction = 0.2;
    train(&p, -1);
    struct dfcl_pictures pics;
    assert_int_equal(dfcl_pictures_read(ctx, data_path, 1, 8, 8, &pics, NULL), DFCL_OK);
    assert_int_equal(pics.count, 10);
    static uint8_t px[10 * 64];
    for (int i = 0; i < 640; i++)
        px[i] = (uint8_t)lrintf((pics.data[i] + 1.0f) * 127.5f);
    struct dfcl_train_arrays a = {.type = DFCL_ARRAY_PICTURES_F32, .count = 10, .channels = 1, .side = 8, .data = pics.data, .labels = pics.labels,
                                  .class_count = 2, .class_names = (const char *const *)pics.class_names};
    char run[256];
    p.run_dir = run;
    p.data = NULL;
    p.arrays = &a;
    snprintf(run, sizeof run, "%s", at("memory-floats"));
    train(&p, -1);
    same_file(at("folder/delta.safetensors"), at("memory-floats/delta.safetensors"));
    same_file(at("folder/delta-live.safetensors"), at("memory-floats/delta-live.safetensors"));
    same_file(at("folder/delta-best.safetensors"), at("memory-floats/delta-best.safetensors"));
    a.type = DFCL_ARRAY_PICTURES_U8;
    a.data = px;
    snprintf(run, sizeof run, "%s", at("memory-bytes"));
    p.checkpoint_every = 2;
    train(&p, 3);
    dfcl_error e;
    p.resume = "auto";
    px[77] ^= 1;
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "data"));
    px[77] ^= 1;
    train(&p, -1);
    same_file(at("folder/delta.safetensors"), at("memory-bytes/delta.safetensors"));
    char *text;
    assert_int_equal(dfcl_describe(ctx, run, 0, &text, &e), DFCL_OK);
    dfcl_text_free(ctx, text);
    p.data = data_path;
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "found both"));
    p.data = NULL;
    p.resume = NULL;
    snprintf(run, sizeof run, "%s", at("memory-refused"));
    a.side = 4;
    assert_int_equal(try_create(&p, &e), DFCL_USAGE);
    assert_non_null(strstr(e.msg, "found samples of 1 x 4 x 4"));
    assert_int_equal(dfcl_path_kind(run), DFCL_PATH_NONE);
    dfcl_pictures_free(ctx, &pics);
}

static void previews_leave_no_trace(void **state) {
    (void)state;
    struct dfcl_train_params p = params("plain");
    train(&p, -1);
    p = params("shown");
    p.sample_every = 3;
    train(&p, -1);
    same_file(at("plain/delta.safetensors"), at("shown/delta.safetensors"));
    same_file(at("plain/delta-live.safetensors"), at("shown/delta-live.safetensors"));
    assert_int_equal(dfcl_path_kind(at("shown/samples/step-000003-ema.png")), DFCL_PATH_FILE);
    assert_int_equal(dfcl_path_kind(at("shown/samples/step-000006-ema.png")), DFCL_PATH_FILE);
}

static void final_files(void **state) {
    (void)state;
    dfcl_model *m;
    int domain;
    struct dfcl_model_params mp = {0};
    /* "resume_is_exact" has left runs */
    mp.path = at("base.safetensors");
    assert_int_equal(dfcl_model_open(&m, dev, &mp, NULL), DFCL_OK);
    assert_int_equal(dfcl_model_load_delta(m, at("unbroken-difffit/delta.safetensors"), 1.0f, 0, &domain, NULL), DFCL_OK);
    assert_int_equal(dfcl_model_classes(m, domain), 2);
    assert_string_equal(dfcl_model_class_name(m, domain, 1), "c1");
    dfcl_model_close(&m);
    mp.path = at("unbroken-full/model.safetensors");
    assert_int_equal(dfcl_model_open(&m, dev, &mp, NULL), DFCL_OK);
    assert_int_equal(dfcl_model_classes(m, 0), 2);
    assert_string_equal(dfcl_model_class_name(m, 0, 0), "c0");
    dfcl_model_close(&m);
    cJSON *o;
    char *text;
    size_t size;
    assert_int_equal(dfcl_file_read(ctx, at("unbroken-difffit/config.json"), 1 << 20, &text, &size, NULL), DFCL_OK);
    assert_int_equal(dfcl_json_parse(&o, text, size, DFCL_JSON_LIMITS, "config", NULL), DFCL_OK);
    const cJSON *s = dfcl_json_get(o, "settings");
    assert_string_equal(dfcl_json_get(s, "method")->valuestring, "difffit");
    assert_string_equal(dfcl_json_get(s, "gamma_blocks")->valuestring, "0");
    assert_int_equal(strlen(dfcl_json_get(s, "base")->valuestring), 64);
    assert_int_equal(dfcl_json_get(s, "batch")->valuedouble, 4);
    cJSON_Delete(o);
    dfcl_free(ctx, text);
}

static void learning_rate(void **state) {
    (void)state;
    struct dfcl_train_config c;
    struct dfcl_train_params p = params("lr");
    p.lr = 1.0;
    p.steps = 14;
    p.warmup = 4;
    assert_int_equal(dfcl_train_config_init(&c, ctx, &p, NULL), DFCL_OK);
    for (int i = 0; i < 14; i++)
        assert_true(fabs(dfcl_train_config_lr(&c, i) - (i < 4 ? 0.25 * (i + 1) : 1.0)) < 1e-15);
    dfcl_train_config_finish(&c);
    p.lr_schedule = "cosine";
    assert_int_equal(dfcl_train_config_init(&c, ctx, &p, NULL), DFCL_OK);
    assert_true(fabs(dfcl_train_config_lr(&c, 1) - 0.5) < 1e-15);
    assert_true(fabs(dfcl_train_config_lr(&c, 4) - 1.0) < 1e-15);
    assert_true(fabs(dfcl_train_config_lr(&c, 9) - 0.5) < 1e-15);
    assert_true(fabs(dfcl_train_config_lr(&c, 13) - 0.5 * (1.0 + cos(0.9 * 3.14159265358979))) < 1e-12);
    assert_true(dfcl_train_config_lr(&c, 20) == 0.0);
    dfcl_train_config_finish(&c);
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
        cmocka_unit_test(learning_rate), cmocka_unit_test(resume_is_exact), cmocka_unit_test(passes_resume),
        cmocka_unit_test(go_back),       cmocka_unit_test(refusals),        cmocka_unit_test(interrupted), cmocka_unit_test(other_policies_resume), cmocka_unit_test(held_out_loss), cmocka_unit_test(data_in_memory),
        cmocka_unit_test(non_finite), cmocka_unit_test(skipped_in_passing), cmocka_unit_test(spikes_show),
           cmocka_unit_test(previews_leave_no_trace),
        cmocka_unit_test(final_files),   cmocka_unit_test(recompute_follows_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
