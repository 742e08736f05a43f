/* The self-test: a miniature model with weights from Philox normals, whose results are known (selftest_data.h): forward pass, loss,
 * gradients, one AdamW step, guidance and one ancestral sampling step. Catches drivers that compile but compute wrongly. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/philox.h"
#include "base/sha256.h"
#include "diffusion/schedule.h"
#include "models/dit.h"
#include "train/step.h"
#include "verify/selftest_data.h"

#include <difffit-cl/verify.h>

enum { SEED = 1, EACH = ST_CHANNELS * ST_SIDE * ST_SIDE, LARGEST = 8192 };
static const double tolerance = 2e-4; /* relative L2 or relative; float32 on a good device stays below 2e-5 */

struct selftest {
    struct dfcl_device *dev;
    struct dfcl_dit *dit;
    struct dfcl_stepper *st;
    struct dfcl_mem *mem;
    dfcl_line_fn line;
    void *user;
    float *buf, *probe;
};

static void draw(uint32_t step, uint32_t sample, float *out, size_t n) {
    dfcl_normals(SEED, DFCL_STREAM_TEST, step, sample, out, n);
}

static dfcl_status build(struct selftest *t, dfcl_error *err) {
    struct dfcl_dit_config cfg = {.depth = ST_DEPTH, .hidden = ST_HIDDEN, .heads = ST_HEADS, .patch = ST_PATCH, .input = ST_SIDE,
                                  .channels = ST_CHANNELS, .classes = ST_CLASSES};
    struct dfcl_dit_options opt = {.domains = 1, .pack = true};
    dfcl_status s = dfcl_dit_create(&t->dit, t->dev, &cfg, &opt, err);
    if (s)
        return s;
    int n;
    struct dfcl_param *p = dfcl_dit_params(t->dit, &n);
    for (int i = 0; i < n; i++) {
        p[i].present = !p[i].gamma || p[i].block < ST_GAMMA_BLOCKS;
        p[i].trained = p[i].present && p[i].kind != DFCL_PARAM_WEIGHT;
    }
    s = dfcl_dit_alloc_params(t->dit, err);
    for (int i = 0; i < n && !s; i++) {
        if (!p[i].present)
            continue;
        float scale = p[i].kind == DFCL_PARAM_TABLE ? 0.5f : p[i].kind == DFCL_PARAM_WEIGHT || p[i].gamma ? 0.2f : 0.1f;
        if (p[i].count > LARGEST)
            return dfcl_fail(err, DFCL_ERROR, "self-test: %s is larger than planned", p[i].name);
        draw(0, (uint32_t)p[i].index, t->buf, (size_t)p[i].count);
        for (int64_t j = 0; j < p[i].count; j++)
            t->buf[j] = t->buf[j] * scale + (p[i].gamma ? 1.0f : 0.0f);
        s = dfcl_dit_set(t->dit, &p[i], 0, t->buf, err);
    }
    return s;
}

static dfcl_status compare(struct selftest *t, const char *what, const float *got, const float *want, size_t n, dfcl_error *err) {
    double d2 = 0, w2 = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        d2 += d * d;
        w2 += (double)want[i] * (double)want[i];
    }
    double rel = sqrt(d2) / fmax(sqrt(w2), 1e-30);
    char line[160];
    snprintf(line, sizeof line, "%-40s relative error %.1e", what, rel);
    if (t->line)
        t->line(t->user, line);
    if (rel <= tolerance) /* false for NaN */
        return DFCL_OK;
    return dfcl_fail(err, DFCL_DEVICE, "self-test: %s: relative error %.2g, expected at most %.0e: device %s or its driver (%s) computes wrongly",
                     what, rel, tolerance, t->dev->info.name, t->dev->info.driver);
}

/* Gradients and updated values of each trained tensor, each as one number against a random direction. */
static dfcl_status check_params(struct selftest *t, dfcl_error *err) {
    float got[DFCL_COUNT(st_params)], want[DFCL_COUNT(st_params)];
    const enum dfcl_step_array arrays[] = {DFCL_STEP_GRADS, DFCL_STEP_GRADS, DFCL_STEP_VALUES};
    const char *const names[] = {"gradients", "gradient norms", "values after one step"};
    dfcl_status s = DFCL_OK;
    for (int k = 0; k < 3 && !s; k++) {
        for (size_t i = 0; i < DFCL_COUNT(st_params) && !s; i++) {
            const struct dfcl_param *p = dfcl_dit_param(t->dit, st_params[i].name);
            if (!p || !p->trained)
                return dfcl_fail(err, DFCL_ERROR, "self-test: %s is not trained", st_params[i].name);
            size_t n = (size_t)p->count;
            s = dfcl_read(t->dev, t->buf, dfcl_ref_at(dfcl_stepper_array(t->st, arrays[k]), (uint64_t)p->trained_off * sizeof(float)),
                          n * sizeof(float), err);
            draw(3, (uint32_t)p->index, t->probe, n);
            double sum = 0;
            for (size_t j = 0; j < n && !s; j++)
                sum += (double)t->buf[j] * (double)(k == 1 ? t->buf[j] : t->probe[j]);
            got[i] = (float)(k == 1 ? sqrt(sum) : sum);
            want[i] = k == 0 ? st_params[i].grad : k == 1 ? st_params[i].norm : st_params[i].moved;
        }
        if (!s)
            s = compare(t, names[k], got, want, DFCL_COUNT(st_params), err);
    }
    return s;
}

static dfcl_status check_sampling(struct selftest *t, struct dfcl_ref net, struct dfcl_ref xt, const double *row, dfcl_error *err) {
    struct dfcl_device *dev = t->dev;
    dfcl_status s = dfcl_mem_create(dev, 16384, "self-test", &t->mem, err);
    if (s)
        return s;
    struct dfcl_ref at[8];
    for (int i = 0; i < 8; i++)
        at[i] = (struct dfcl_ref){t->mem, (uint64_t)i * 2048};
    const int32_t cond = 0, ref = 1;
    const float scale = 2.0f;
    struct dfcl_exec ex = {.dev = dev};
    struct dfcl_guide g = {.m = 1, .C = ST_CHANNELS, .hw = ST_SIDE * ST_SIDE, .chans = 3, .out = net, .cond = at[0], .ref = at[1],
                           .scale = at[2], .eps = at[3], .v = at[4]};
    struct dfcl_ddpm_step d = {.n = EACH, .x = xt, .eps = at[3], .v = at[4], .noise = at[5], .xn = at[6]};
    for (int i = 0; i < DFCL_TAB_COUNT; i++)
        d.tab[i] = (float)row[i];
    draw(4, 0, t->buf, EACH);
    s = dfcl_write(dev, at[0], &cond, sizeof cond, err);
    if (!s)
        s = dfcl_write(dev, at[1], &ref, sizeof ref, err);
    if (!s)
        s = dfcl_write(dev, at[2], &scale, sizeof scale, err);
    if (!s)
        s = dfcl_write(dev, at[5], t->buf, EACH * sizeof(float), err);
    if (!s)
        s = dfcl_run(&ex, &dfcl_op_guide, &g, err);
    if (!s)
        s = dfcl_run(&ex, &dfcl_op_ddpm_step, &d, err);
    if (!s)
        s = dfcl_read(dev, t->buf, d.xn, EACH * sizeof(float), err);
    if (!s)
        s = compare(t, "guided sampling step", t->buf, st_next, EACH, err);
    return s;
}

dfcl_status dfcl_selftest(dfcl_device *dev, dfcl_line_fn line, void *user, dfcl_error *err) {
    struct selftest t = {.dev = dev, .line = line, .user = user};
    struct dfcl_schedule sched = {0};
    float x0[ST_BATCH * EACH], noise[ST_BATCH * EACH];
    const int32_t ts[ST_BATCH] = {5, 700}, rows[ST_BATCH] = {1, ST_CLASSES};
    t.buf = dfcl_calloc(dev->ctx, LARGEST, sizeof *t.buf, err);
    t.probe = dfcl_calloc(dev->ctx, LARGEST, sizeof *t.probe, err);
    dfcl_status s = t.buf && t.probe ? dfcl_schedule_train(&sched, dev->ctx, err) : DFCL_NOMEM;
    if (!s)
        s = build(&t, err);
    if (s)
        goto out;
    for (uint32_t i = 0; i < ST_BATCH; i++) {
        draw(1, i, x0 + i * EACH, EACH);
        draw(2, i, noise + i * EACH, EACH);
    }
    struct dfcl_stepper_options so = {.batch = ST_BATCH, .micro = ST_BATCH};
    struct dfcl_step_batch batch = {.x0 = x0, .noise = noise, .t = ts, .rows = rows};
    struct dfcl_step_hyper hyper = {.k = 1, .lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 0.1, .ema_decay = 0.9};
    struct dfcl_step_result res;
    s = dfcl_stepper_create(&t.st, t.dit, &so, err);
    if (!s)
        s = dfcl_train_step(t.st, &batch, &hyper, &res, err);
    if (s)
        goto out;
    struct dfcl_ref xt, net, dout;
    dfcl_step_tensors(t.st, &xt, &net, &dout);
    float out[2 * ST_BATCH * EACH];
    const float *mse, *vb;
    dfcl_step_losses(t.st, &mse, &vb);
    s = dfcl_read(dev, out, net, sizeof out, err);
    if (!s)
        s = compare(&t, "forward pass", out, st_out, 2 * ST_BATCH * EACH, err);
    if (!s)
        s = compare(&t, "squared error", mse, st_mse, ST_BATCH, err);
    if (!s)
        s = compare(&t, "variational bound", vb, st_vb, ST_BATCH, err);
    if (!s)
        s = check_params(&t, err);
    if (!s)
        s = check_sampling(&t, net, xt, sched.tab[500], err);
out:
    dfcl_mem_destroy(dev, &t.mem);
    dfcl_stepper_destroy(&t.st);
    dfcl_dit_destroy(&t.dit);
    dfcl_schedule_finish(&sched);
    dfcl_free(dev->ctx, t.buf);
    dfcl_free(dev->ctx, t.probe);
    return s;
}

/* Marks are empty files named by a hash over everything that could change the outcome. */
static dfcl_status mark_path(struct dfcl_device *dev, char **path, dfcl_error *err) {
    const struct dfcl_device_info *i = &dev->info;
    const char *parts[] = {DFCL_VERSION, i->backend, i->platform, i->name, i->driver, i->version, dev->variant_mask};
    struct dfcl_sha256 h;
    char hex[65];
    *path = NULL;
    dfcl_status s = dfcl_sha256_init(&h, err);
    for (size_t k = 0; k < DFCL_COUNT(parts) && !s; k++)
        s = dfcl_sha256_update(&h, parts[k], strlen(parts[k]) + 1, err);
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    s = dfcl_sha256_finish(&h, hex, err);
    if (!s)
        *path = dfcl_sprintf(dev->ctx, err, "%s/selftest/%.32s", dev->ctx->cache_dir, hex);
    return s ? s : *path ? DFCL_OK : DFCL_NOMEM;
}

dfcl_status dfcl_selftest_noted(dfcl_device *dev, int *passed, dfcl_error *err) {
    char *path = NULL;
    *passed = 0;
    dfcl_status s = dev->ctx->cache_dir ? mark_path(dev, &path, err) : DFCL_OK;
    if (!s && path)
        *passed = dfcl_path_kind(path) == DFCL_PATH_FILE;
    dfcl_free(dev->ctx, path);
    return s;
}

dfcl_status dfcl_selftest_once(dfcl_device *dev, dfcl_line_fn line, void *user, dfcl_error *err) {
    if (!dev->ctx->cache_dir)
        return dfcl_selftest(dev, line, user, err);
    char *path;
    dfcl_status s = mark_path(dev, &path, err);
    if (!s && dfcl_path_kind(path) != DFCL_PATH_FILE) {
        s = dfcl_selftest(dev, line, user, err);
        if (!s) {
            dfcl_error note = {0};
            char *dir = dfcl_sprintf(dev->ctx, &note, "%s/selftest", dev->ctx->cache_dir);
            if (!dir || dfcl_mkdirs(dev->ctx, dir, &note) || dfcl_file_write(dev->ctx, path, "", 0, &note))
                dfcl_log(dev->ctx, DFCL_LOG_WARN, "the self-test's success cannot be noted, it will run again: %s", note.msg);
            dfcl_free(dev->ctx, dir);
        }
    }
    dfcl_free(dev->ctx, path);
    return s;
}
