/* posembed.safetensors: position tables (host) and timestep embeddings (device). */
#include <stdio.h>
#include <string.h>

#include "models/dit.h"
#include "verify/golden.h"

static dfcl_status position(struct dfcl_golden_file *f, const char *key, int n, int w, double base, dfcl_error *err) {
    static const struct dfcl_limit limit = {.abs = 1e-7};
    const struct dfcl_tensor_view *v = dfcl_st_find(f->st, key);
    if (!v)
        return DFCL_OK;
    if (n < 1 || n > 4096 || w < 1 || w > 16384)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected a grid of 1 to 4096 and a width of 1 to 16384", f->st->path, key);
    uint64_t count = (uint64_t)n * (uint64_t)n * (uint64_t)w;
    if (v->count != count) /* before memory is taken by what the name says */
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected %llu values, found %llu", f->st->path, key, (unsigned long long)count,
                         (unsigned long long)v->count);
    float *t = dfcl_calloc(f->g->ctx, (size_t)count, sizeof *t, err);
    dfcl_status s = t ? dfcl_pos_embed(n, n, w, base, t, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_golden_check(f, key, t, count, &limit, err);
    dfcl_free(f->g->ctx, t);
    return s;
}

static dfcl_status embed(struct dfcl_golden_file *f, const float *t, uint64_t n, const char *key, const char *exact, dfcl_error *err) {
    enum { DIM = 256, MOST = 1 << 16 };
    static const struct dfcl_limit limit = {.abs = 1e-4};
    if (n < 1 || n > MOST)
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected 1 to %d timesteps, found %llu", f->st->path, key, MOST, (unsigned long long)n);
    struct dfcl_device *dev = f->g->dev;
    struct dfcl_mem *mem = NULL;
    float *y = dfcl_calloc(f->g->ctx, (size_t)n * DIM, sizeof *y, err);
    if (!y)
        return DFCL_NOMEM;
    dfcl_status s = dfcl_mem_create(dev, n * (DIM + 64) * sizeof(float), "timestep embedding", &mem, err);
    struct dfcl_timestep_embed p = {.B = (int)n, .dim = DIM, .t = {mem, 0}, .y = {mem, n * 64 * sizeof(float)}};
    struct dfcl_exec ex = {.dev = dev};
    if (!s)
        s = dfcl_write(dev, p.t, t, n * sizeof *t, err);
    if (!s)
        s = dfcl_run(&ex, &dfcl_op_timestep_embed, &p, err);
    if (!s)
        s = dfcl_read(dev, y, p.y, n * DIM * sizeof *y, err);
    if (!s)
        s = dfcl_golden_check(f, key, y, n * DIM, &limit, err);
    if (!s && exact)
        s = dfcl_golden_check(f, exact, y, n * DIM, &limit, err);
    dfcl_mem_destroy(dev, &mem);
    dfcl_free(f->g->ctx, y);
    return s;
}

dfcl_status dfcl_verify_tables(struct dfcl_golden *g, dfcl_error *err) {
    struct dfcl_golden_file f;
    dfcl_status s = dfcl_golden_open(&f, g, "posembed", err);
    if (s)
        return s;
    float *t = NULL, *tf = NULL;
    int64_t *ti = NULL;
    uint64_t n = 0, nf = 0;
    /* every table in the file: "grid{n}.w{w}" and "scaled.base{b}.grid{n}.w{w}" */
    for (size_t i = 0; i < f.st->count && !s; i++) {
        const char *key = f.st->tensors[i].name;
        int base, grid, w;
        if (sscanf(key, "grid%d.w%d", &grid, &w) == 2)
            s = position(&f, key, grid, w, 0, err);
        else if (sscanf(key, "scaled.base%d.grid%d.w%d", &base, &grid, &w) == 3)
            s = position(&f, key, grid, w, base, err);
    }
    if (!s)
        s = dfcl_golden_input_int(&f, "t", &ti, &n, err);
    if (!s)
        s = dfcl_golden_input(&f, "t_frac", &tf, &nf, err);
    if (!s && !(t = dfcl_calloc(g->ctx, (size_t)n, sizeof *t, err)))
        s = DFCL_NOMEM;
    for (uint64_t i = 0; i < n && !s; i++)
        t[i] = (float)ti[i];
    if (!s)
        s = embed(&f, t, n, "temb", "temb_f64_rounded", err);
    if (!s)
        s = embed(&f, tf, nf, "temb_frac", NULL, err);
    dfcl_free(g->ctx, t);
    dfcl_free(g->ctx, ti);
    dfcl_free(g->ctx, tf);
    if (s) {
        dfcl_golden_abort(&f);
        return s;
    }
    return dfcl_golden_close(&f, err);
}
