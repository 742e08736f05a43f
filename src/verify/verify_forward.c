/* forward.safetensors and dit/micro/io.safetensors: the network on every container, intermediates, gammas, guidance. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/model.h"
#include "verify/golden.h"

static const struct dfcl_limit forward_limit = {.rel = 1e-5, .abs = 5e-5};

static dfcl_status open_model(dfcl_model **m, struct dfcl_golden *g, const char *file, const char *which, dfcl_error *err) {
    char *path = dfcl_sprintf(g->ctx, err, "%s/dit/%s", g->dir, file);
    if (!path)
        return DFCL_NOMEM;
    struct dfcl_model_params p = {.path = path, .which = which};
    dfcl_status s = dfcl_model_open(m, g->dev, &p, err);
    dfcl_free(g->ctx, path);
    return s;
}

/* One forward pass with host arrays: x of nx values [B,C,S,S], y classes of the domain (its class count is the null class). */
static dfcl_status run(dfcl_model *m, int domain, int B, const float *x, uint64_t nx, const float *t, const int64_t *y, float *out,
                       dfcl_error *err) {
    struct dfcl_dit *dit = dfcl_model_dit(m);
    struct dfcl_device *dev = dfcl_model_device(m);
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    uint64_t n = (uint64_t)B * dfcl_dit_values(cfg) * sizeof(float);
    int32_t rows[16], dom[16];
    struct dfcl_mem *mem = NULL;
    struct dfcl_plan plan;
    if (B > 16)
        return dfcl_fail(err, DFCL_FORMAT, "forward: expected at most 16 samples, found %d", B);
    if (nx * sizeof(float) != n)
        return dfcl_fail(err, DFCL_FORMAT, "forward: expected %llu values for %d samples of this model, found %llu",
                         (unsigned long long)(n / sizeof(float)), B, (unsigned long long)nx);
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < B && !s; i++) {
        dom[i] = domain;
        s = dfcl_model_row(m, domain, (int)y[i], &rows[i], err);
    }
    if (!s)
        s = dfcl_dit_plan(dit, B, DFCL_FORWARD_ONLY, 0, &plan, err);
    if (!s)
        s = dfcl_mem_create(dev, 3 * n + 256, "samples", &mem, err);
    if (s)
        return s;
    struct dfcl_dit_batch b = {.B = B, .t = t, .rows = rows, .dom = dom, .x = {mem, 0}, .out = {mem, (n + 255) / 256 * 256}};
    s = dfcl_write(dev, b.x, x, n, err);
    if (!s)
        s = dfcl_dit_forward(dit, &b, false, err);
    if (!s)
        s = dfcl_read(dev, out, b.out, 2 * n, err);
    dfcl_mem_destroy(dev, &mem);
    return s;
}

/* ---- dit/micro ---- */

static dfcl_status micro_one(struct dfcl_golden_file *f, const char *file, const char *which, const char *key, int B,
                             const float *x, uint64_t nx, const float *t, const int64_t *y, float *out, dfcl_error *err) {
    char full[128];
    snprintf(full, sizeof full, "micro/%s", file);
    dfcl_model *m = NULL;
    dfcl_status s = open_model(&m, f->g, full, which, err);
    if (!s)
        s = run(m, 0, B, x, nx, t, y, out, err);
    if (!s) {
        dfcl_golden_say(f->g, "  %s:", full);
        s = dfcl_golden_check(f, key, out, nx * 2, &forward_limit, err);
    }
    dfcl_model_close(&m);
    return s;
}

dfcl_status dfcl_verify_micro(struct dfcl_golden *g, dfcl_error *err) {
    struct dfcl_golden_file f;
    dfcl_status s = dfcl_golden_open(&f, g, "dit/micro/io", err);
    if (s)
        return s;
    float *x = NULL, *out = NULL, t[16];
    int64_t *ti = NULL, *y = NULL;
    uint64_t nx = 0, B = 0, ny = 0;
    s = dfcl_golden_input(&f, "x", &x, &nx, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "t", &ti, &B, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "y", &y, &ny, err);
    if (!s && (B < 1 || B > 16 || ny != B))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected equal t and y of 1 to 16", f.st->path);
    for (uint64_t i = 0; i < B && !s; i++)
        t[i] = (float)ti[i];
    if (!s && !(out = dfcl_calloc(g->ctx, (size_t)nx * 2, sizeof *out, err)))
        s = DFCL_NOMEM;
    static const struct {
        const char *file, *which, *key;
    } files[] = {
        {"raw_f32.pt", NULL, "out_f32"},
        {"raw_f32.safetensors", NULL, "out_f32"},
        {"diffusers", NULL, "out_f32"},
        {"raw_f16.pt", NULL, "out_f16weights"},
        {"raw_f16.safetensors", NULL, "out_f16weights"},
        {"raw_bf16.pt", NULL, "out_bf16weights"},
        {"raw_bf16.safetensors", NULL, "out_bf16weights"},
        {"train_ckpt.pt", NULL, "out_ckpt_ema"},
        {"train_ckpt.pt", "model", "out_ckpt_model"},
    };
    for (size_t i = 0; i < DFCL_COUNT(files) && !s; i++)
        s = micro_one(&f, files[i].file, files[i].which, files[i].key, (int)B, x, nx, t, y, out, err);
    dfcl_golden_excuse(&f, "out_diffusers_stock"); /* stock diffusers computes other timestep frequencies; not what we imitate */
    dfcl_free(g->ctx, x);
    dfcl_free(g->ctx, ti);
    dfcl_free(g->ctx, y);
    dfcl_free(g->ctx, out);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}

/* ---- forward ---- */

struct tapping {
    struct dfcl_golden_file *f;
    struct dfcl_device *dev;
    const char *prefix;
    int B;
};

/* Intermediates are stored for sample 0 only: the first rows / B rows. */
static dfcl_status tap(void *user, const char *name, struct dfcl_ref ref, int rows, int cols, dfcl_error *err) {
    struct tapping *t = user;
    char key[96];
    snprintf(key, sizeof key, "%s%s", t->prefix, name);
    if (!dfcl_golden_has(t->f, key))
        return DFCL_OK;
    uint64_t n = (uint64_t)(rows / t->B) * (uint64_t)cols;
    float *x = dfcl_calloc(t->f->g->ctx, (size_t)n, sizeof *x, err);
    dfcl_status s = x ? dfcl_read(t->dev, x, ref, n * sizeof *x, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_golden_check(t->f, key, x, n, &forward_limit, err);
    dfcl_free(t->f->g->ctx, x);
    return s;
}

/* forward_with_cfg of the original: channels 0..2 guided and written to both halves, the rest as each half has it. */
static void guide3(const float *out, int m, int C, int hw, float scale, float *y) {
    int n = 2 * C * hw;
    memcpy(y, out, (size_t)(2 * m * n) * sizeof *y);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < 3 * hw; j++) {
            float c = out[i * n + j], u = out[(m + i) * n + j];
            y[i * n + j] = y[(m + i) * n + j] = u + scale * (c - u);
        }
}

dfcl_status dfcl_verify_forward(struct dfcl_golden *g, dfcl_error *err) {
    struct dfcl_golden_file f;
    dfcl_status s = dfcl_golden_open(&f, g, "forward", err);
    if (s)
        return s;
    dfcl_model *m = NULL;
    float *x = NULL, *cx = NULL, *xx = NULL, *out = NULL, *y4 = NULL, t[16];
    int64_t *ti = NULL, *y = NULL, *cti = NULL, *cy = NULL;
    uint64_t nx = 0, B = 0, ny = 0, ncx = 0, cB = 0, ncy = 0;
    int domain = 0;
    char *gamma = NULL;
    s = dfcl_golden_input(&f, "x", &x, &nx, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "t", &ti, &B, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "y", &y, &ny, err);
    if (!s)
        s = dfcl_golden_input(&f, "cfg.x", &cx, &ncx, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "cfg.t", &cti, &cB, err);
    if (!s)
        s = dfcl_golden_input_int(&f, "cfg.y", &cy, &ncy, err);
    if (!s && (B < 1 || B > 16 || ny != B || cB < 2 || cB > 16 || cB % 2 || ncy != cB))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected equal t and y of 1 to 16, and of even count for cfg", f.st->path);
    if (!s)
        s = open_model(&m, g, "dit.safetensors", NULL, err);
    if (!s && (!(out = dfcl_calloc(g->ctx, (size_t)DFCL_MAX(nx * 2, ncx * 4), sizeof *out, err)) ||
               !(y4 = dfcl_calloc(g->ctx, (size_t)ncx * 4, sizeof *y4, err)) || !(xx = dfcl_calloc(g->ctx, (size_t)ncx * 2, sizeof *xx, err))))
        s = DFCL_NOMEM;
    if (s)
        goto done;

    struct tapping tp = {&f, g->dev, "", (int)B};
    for (uint64_t i = 0; i < B; i++)
        t[i] = (float)ti[i];
    dfcl_dit_set_tap(dfcl_model_dit(m), tap, &tp);
    s = run(m, 0, (int)B, x, nx, t, y, out, err);
    if (!s)
        s = dfcl_golden_check(&f, "out", out, nx * 2, &forward_limit, err);
    gamma = dfcl_sprintf(g->ctx, err, "%s/dit/gamma_random.safetensors", g->dir);
    if (!s)
        s = gamma ? dfcl_model_load_delta(m, gamma, 1.0f, 1, &domain, err) : DFCL_NOMEM;
    tp.prefix = "gamma.";
    if (!s)
        s = run(m, domain, (int)B, x, nx, t, y, out, err);
    if (!s)
        s = dfcl_golden_check(&f, "gamma.out", out, nx * 2, &forward_limit, err);
    dfcl_dit_set_tap(dfcl_model_dit(m), NULL, NULL);
    if (s)
        goto done;

    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dfcl_model_dit(m));
    for (uint64_t i = 0; i < cB; i++)
        t[i] = (float)cti[i];
    memcpy(xx, cx, (size_t)ncx * sizeof *xx);
    memcpy(xx + ncx, cx, (size_t)ncx * sizeof *xx);
    s = run(m, 0, (int)cB, xx, ncx * 2, t, cy, out, err);
    static const struct {
        const char *key;
        float scale;
    } scales[] = {{"cfg.out_1.5", 1.5f}, {"cfg.out_4.0", 4.0f}};
    if (!s && cfg->channels < 3)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected at least 3 channels, found %d", f.st->path, cfg->channels);
    for (size_t i = 0; i < DFCL_COUNT(scales) && !s; i++) {
        guide3(out, (int)cB / 2, cfg->channels, (int)dfcl_dit_plane(cfg), scales[i].scale, y4);
        s = dfcl_golden_check(&f, scales[i].key, y4, ncx * 4, &forward_limit, err);
    }
done:
    dfcl_model_close(&m);
    dfcl_free(g->ctx, gamma);
    dfcl_free(g->ctx, x);
    dfcl_free(g->ctx, cx);
    dfcl_free(g->ctx, xx);
    dfcl_free(g->ctx, out);
    dfcl_free(g->ctx, y4);
    dfcl_free(g->ctx, ti);
    dfcl_free(g->ctx, y);
    dfcl_free(g->ctx, cti);
    dfcl_free(g->ctx, cy);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}
