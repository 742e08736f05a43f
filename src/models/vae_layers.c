#include "models/vae_layers.h"

#include <math.h>
#include <string.h>

#define EPS 1e-6 /* of GroupNorm, in every such model */

struct dfcl_ref vae_slot(struct vae_pass *p, int i, uint64_t floats) {
    if (!p->dry)
        return (struct dfcl_ref){p->v->slot[i], 0};
    p->need[i] = DFCL_MAX(p->need[i], floats * 4);
    return (struct dfcl_ref){&dfcl_dry_mem, 0};
}

int vae_free_slot(const struct vae_pass *p, int n) {
    int i = 0;
    while (i == p->cur || i == p->full || n-- > 0)
        i++;
    return i;
}

static dfcl_status op(struct vae_pass *p, const struct dfcl_op *o, void *params, dfcl_error *err) {
    if (p->dry)
        p->flops += o->flops(params);
    return dfcl_run(&p->ex, o, params, err);
}

static struct vae_rows widen(struct vae_rows r, int by, int H) {
    return (struct vae_rows){DFCL_MAX(r.lo - by, 0), DFCL_MIN(r.hi + by, H)};
}

struct vae_rows vae_rows_before(const struct vae_pass *p, int t, struct vae_rows want) {
    const struct vae_step *s = &p->c->steps[t];
    int H = p->h[t];
    switch (s->kind) {
    case VAE_CONV: return widen(want, s->conv[0].k / 2, H);
    case VAE_RES: return widen(want, 2, H);
    case VAE_OUT: return widen(want, 1, H);
    case VAE_UP: return widen((struct vae_rows){want.lo / 2, (want.hi + 1) / 2}, 1, H);
    case VAE_DOWN: return (struct vae_rows){2 * want.lo, DFCL_MIN(2 * want.hi + 1, H)};
    default: return (struct vae_rows){0, H};
    }
}

/* ---- norms ---- */

/* Adds the statistics of M rows of x to those so far (Chan, Golub, LeVeque: updating formulae, 1979). */
static dfcl_status add_stats(struct vae_pass *p, struct dfcl_ref x, int M, int C, dfcl_error *err) {
    int rows = DFCL_MAX(64, (M + 255) / 256), parts = (M + rows - 1) / rows;
    uint64_t bytes = (uint64_t)parts * 2 * (uint64_t)C * 4;
    p->stats_need = DFCL_MAX(p->stats_need, bytes);
    p->host_need = DFCL_MAX(p->host_need, bytes);
    struct dfcl_column_stats q = {.M = M, .N = C, .rows = rows, .x = x, .stats = {p->dry ? &dfcl_dry_mem : p->v->stats, 0}};
    dfcl_status s = op(p, &dfcl_op_column_stats, &q, err);
    if (s || p->dry)
        return s;
    if ((s = dfcl_read(p->v->dev, p->v->host, q.stats, bytes, err)) != DFCL_OK)
        return s;
    for (int i = 0; i < parts; i++) {
        const float *mean = p->v->host + (size_t)i * 2 * (size_t)C, *square = mean + C;
        double n = DFCL_MIN(rows, M - i * rows), all = p->count + n;
        for (int c = 0; c < C; c++) {
            double d = mean[c] - p->mean[c];
            p->mean[c] += d * n / all;
            p->square[c] += square[c] + d * d * p->count * n / all;
        }
        p->count = all;
    }
    return DFCL_OK;
}

dfcl_status vae_norm_finish(struct vae_pass *p, const struct vae_step *t, struct vae_norm *n, dfcl_error *err) {
    if (p->dry)
        return DFCL_OK;
    int C = n->C, size = C / p->v->shape.groups;
    float *coef = dfcl_calloc(p->v->ctx, (size_t)C, 3 * sizeof *coef, err);
    if (!coef)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    for (int g = 0; g < C && !s; g += size) {
        double mean = 0, square = 0;
        for (int c = g; c < g + size; c++)
            mean += p->mean[c] / size;
        for (int c = g; c < g + size; c++)
            square += p->square[c] + p->count * (p->mean[c] - mean) * (p->mean[c] - mean);
        double rstd = 1.0 / sqrt(square / (p->count * size) + EPS);
        if (!isfinite(mean) || !isfinite(square))
            s = dfcl_fail(err, DFCL_NONFINITE, "%s: %s: the activations are not finite", p->v->path, t->name);
        for (int c = g; c < g + size; c++) {
            coef[c] = (float)mean;
            coef[C + c] = (float)(n->gamma[c] * rstd);
            coef[2 * C + c] = n->beta[c];
        }
    }
    if (!s)
        s = dfcl_write(p->v->dev, n->coef, coef, (uint64_t)C * 12, err);
    dfcl_free(p->v->ctx, coef);
    p->count = 0;
    memset(p->mean, 0, (size_t)C * sizeof *p->mean);
    memset(p->square, 0, (size_t)C * sizeof *p->square);
    return s;
}

/* y = act(norm(x)) for rows r of the image; y may be x. *stopped: the pass ends here, with the statistics of its rows. */
static dfcl_status norm(struct vae_pass *p, int t, int which, struct dfcl_ref x, struct vae_rows r, int C, enum dfcl_act act, struct dfcl_ref y,
                        bool *stopped, dfcl_error *err) {
    struct vae_step *st = &p->c->steps[t];
    struct vae_norm *n = &st->norm[which];
    int W = p->w[t];
    dfcl_status s = DFCL_OK;
    *stopped = p->stop_step == t && p->stop_norm == which;
    if (*stopped)
        return add_stats(p, dfcl_ref_at(x, (uint64_t)(p->core.lo - r.lo) * (uint64_t)W * (uint64_t)C * 4), (p->core.hi - p->core.lo) * W, C, err);
    if (!p->banded)
        s = add_stats(p, x, (r.hi - r.lo) * W, C, err);
    if (!s && !p->banded)
        s = vae_norm_finish(p, st, n, err);
    struct dfcl_norm_act q = {.M = (r.hi - r.lo) * W, .N = C, .act = act, .x = x, .coef = n->coef, .y = y};
    return s ? s : op(p, &dfcl_op_norm_act, &q, err);
}

/* ---- convolutions ---- */

/* Rows `to` of the output from rows `from` of the input, which is W wide; `pad` zeros above and to the left. */
static dfcl_status conv(struct vae_pass *p, const struct vae_conv *c, struct dfcl_ref x, struct vae_rows from, int W, int stride, int pad,
                        struct vae_rows to, int Wo, struct dfcl_ref out, struct dfcl_ref res, dfcl_error *err) {
    if (c->k == 1) {
        struct dfcl_linear_fwd q = {.M = (to.hi - to.lo) * W,
                                    .K = c->C,
                                    .T = (to.hi - to.lo) * W,
                                    .x = dfcl_ref_at(x, (uint64_t)(to.lo - from.lo) * (uint64_t)W * (uint64_t)c->C * 4),
                                    .w = c->w,
                                    .bias = {c->bias, 0},
                                    .res = res};
        *(res.mem ? &q.out : &q.y) = out;
        return op(p, &dfcl_op_linear_fwd, &q, err);
    }
    struct dfcl_conv2d q = {.H = from.hi - from.lo, .W = W, .C = c->C, .Ho = to.hi - to.lo, .Wo = Wo,
                            .kh = c->k, .kw = c->k, .stride = stride, .top = pad + from.lo - to.lo * stride, .left = pad,
                            .step = 1, .w = c->w, .x = x, .bias = c->bias, .res = res, .out = out};
    return op(p, &dfcl_op_conv2d, &q, err);
}

static uint64_t floats(struct vae_rows r, int W, int C) {
    return (uint64_t)(r.hi - r.lo) * (uint64_t)W * (uint64_t)C;
}

/* The image is in another place now. */
static void moved(struct vae_pass *p, int slot, struct dfcl_ref x, struct vae_rows rows, int C) {
    p->cur = slot;
    p->x = x;
    p->rows = rows;
    p->C = C;
}

static dfcl_status res(struct vae_pass *p, int t, struct vae_rows want, dfcl_error *err) {
    const struct vae_step *st = &p->c->steps[t];
    int W = p->w[t], b = vae_free_slot(p, 0), c = vae_free_slot(p, 1);
    struct vae_rows r = p->rows, mid = widen(want, 1, p->h[t]);
    bool stopped, same = st->in == st->out;
    if (p->stop_step == t && p->stop_norm == 1)
        mid = p->core;
    /* The image itself is needed later only where there is no shortcut: else the first norm may take its place. */
    struct dfcl_ref sum = DFCL_NO_REF, y = p->x, h;
    dfcl_status s = DFCL_OK;
    if (!same && p->stop_step != t) {
        sum = vae_slot(p, c, floats(want, W, st->out));
        s = conv(p, &st->conv[2], p->x, r, W, 1, 0, want, W, sum, DFCL_NO_REF, err);
    }
    if (same)
        y = vae_slot(p, b, floats(r, W, st->in));
    if (!s)
        s = norm(p, t, 0, p->x, r, st->in, DFCL_ACT_SILU, y, &stopped, err);
    if (s || stopped)
        return s;
    h = vae_slot(p, same ? c : b, floats(mid, W, st->out));
    s = conv(p, &st->conv[0], y, r, W, 1, 1, mid, W, h, DFCL_NO_REF, err);
    if (!s)
        s = norm(p, t, 1, h, mid, st->out, DFCL_ACT_SILU, h, &stopped, err);
    if (s || stopped)
        return s;
    if (same)
        sum = dfcl_ref_at(p->x, (uint64_t)(want.lo - r.lo) * (uint64_t)W * (uint64_t)st->in * 4);
    s = conv(p, &st->conv[1], h, mid, W, 1, 1, want, W, sum, sum, err);
    moved(p, same ? p->cur : c, sum, want, st->out);
    return s;
}

/* Blocks of query rows, so that the scores of all pairs are never there at once: at most twice as many as there are values in x. */
static dfcl_status attention(struct vae_pass *p, int t, dfcl_error *err) {
    const struct vae_step *st = &p->c->steps[t];
    int W = p->w[t], C = st->in, T = (p->rows.hi - p->rows.lo) * W, block = DFCL_MIN(DFCL_MIN(T, 2 * C), DFCL_MAX(256, (4 << 20) / T));
    uint64_t n = (uint64_t)T * (uint64_t)C;
    struct dfcl_ref y = vae_slot(p, vae_free_slot(p, 0), n), qkv = vae_slot(p, vae_free_slot(p, 1), 3 * n), part[3];
    bool stopped;
    dfcl_status s = norm(p, t, 0, p->x, p->rows, C, DFCL_ACT_NONE, y, &stopped, err);
    for (int i = 0; i < 3 && !s; i++) {
        part[i] = dfcl_ref_at(qkv, (uint64_t)i * n * 4);
        s = conv(p, &st->conv[i], y, p->rows, W, 1, 0, p->rows, W, part[i], DFCL_NO_REF, err);
    }
    p->scores_need = DFCL_MAX(p->scores_need, (uint64_t)block * (uint64_t)T * 4);
    struct dfcl_ref scores = {p->dry ? &dfcl_dry_mem : p->v->scores, 0};
    for (int r = 0; r < T && !s; r += block) {
        int M = DFCL_MIN(block, T - r);
        uint64_t at = (uint64_t)r * (uint64_t)C * 4;
        struct dfcl_weight k = {.N = T, .K = C, .dtype = DFCL_F32, .data = part[1]}, v = {.N = T, .K = C, .dtype = DFCL_F32, .data = part[2]};
        struct dfcl_linear_fwd qk = {.M = M, .K = C, .T = M, .x = dfcl_ref_at(part[0], at), .w = k, .y = scores};
        struct dfcl_softmax soft = {.M = M, .N = T, .scale = (float)(1.0 / sqrt(C)), .x = scores, .y = scores};
        struct dfcl_linear_dx pv = {.M = M, .dy = scores, .w = v, .dx = dfcl_ref_at(y, at)}; /* P [M,T] times v [T,C] */
        s = op(p, &dfcl_op_linear_fwd, &qk, err);
        if (!s)
            s = op(p, &dfcl_op_softmax, &soft, err);
        if (!s)
            s = op(p, &dfcl_op_linear_dx, &pv, err);
    }
    return s ? s : conv(p, &st->conv[3], y, p->rows, W, 1, 0, p->rows, W, p->x, p->x, err);
}

/* Four convolutions of 2x2 taps, one for each place of the output's pairs of rows and columns. */
static dfcl_status upsample(struct vae_pass *p, int t, struct vae_rows want, dfcl_error *err) {
    const struct vae_step *st = &p->c->steps[t];
    int W = p->w[t], b = vae_free_slot(p, 0);
    struct vae_rows to = {want.lo / 2 * 2, (want.hi + 1) / 2 * 2};
    struct dfcl_ref y = vae_slot(p, b, floats(to, 2 * W, st->out));
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < 4 && !s; i++) {
        struct dfcl_conv2d q = {.H = p->rows.hi - p->rows.lo, .W = W, .C = st->in, .Ho = (to.hi - to.lo) / 2, .Wo = W,
                                .kh = 2, .kw = 2, .stride = 1, .top = 1 - i / 2 + p->rows.lo - to.lo / 2, .left = 1 - i % 2,
                                .step = 2, .oy = i / 2, .ox = i % 2, .w = st->conv[0].up[i], .x = p->x, .bias = st->conv[0].bias, .out = y};
        s = op(p, &dfcl_op_conv2d, &q, err);
    }
    moved(p, b, y, to, st->out);
    return s;
}

dfcl_status vae_layer(struct vae_pass *p, int t, struct vae_rows want, dfcl_error *err) {
    const struct vae_step *st = &p->c->steps[t];
    int b = vae_free_slot(p, 0), stride = st->kind == VAE_DOWN ? 2 : 1, pad = st->kind == VAE_DOWN ? 0 : st->conv[0].k / 2;
    bool stopped = false;
    dfcl_status s = DFCL_OK;
    switch (st->kind) {
    case VAE_RES: return res(p, t, want, err);
    case VAE_ATTN: return attention(p, t, err);
    case VAE_UP: return upsample(p, t, want, err);
    case VAE_OUT: s = norm(p, t, 0, p->x, p->rows, st->in, DFCL_ACT_SILU, p->x, &stopped, err); break;
    default: break;
    }
    if (s || stopped)
        return s;
    struct dfcl_ref y = vae_slot(p, b, floats(want, p->w[t + 1], st->out));
    s = conv(p, &st->conv[0], p->x, p->rows, p->w[t], stride, pad, want, p->w[t + 1], y, DFCL_NO_REF, err);
    moved(p, b, y, want, st->out);
    return s;
}
