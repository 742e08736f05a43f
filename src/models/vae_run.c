/* Whole images and bands of rows through a coder; how much memory that takes, and which bands fit. */
#include <stdio.h>
#include <string.h>

#include "models/vae_layers.h"

/* ---- between the host's NCHW and the device's NHWC ---- */

static dfcl_status upload(struct vae_pass *p, const float *in, struct vae_rows r, dfcl_error *err) {
    int C = p->c->steps[0].in, W = p->w[0];
    uint64_t n = (uint64_t)(r.hi - r.lo) * (uint64_t)W;
    p->host_need = DFCL_MAX(p->host_need, n * (uint64_t)C * 4);
    p->cur = -1; /* no slot is taken */
    int slot = vae_free_slot(p, 0);
    p->cur = slot;
    p->C = C;
    p->rows = r;
    p->x = vae_slot(p, slot, n * (uint64_t)C);
    if (p->dry)
        return DFCL_OK;
    for (int c = 0; c < C; c++) {
        const float *from = in + ((size_t)c * (size_t)p->h[0] + (size_t)r.lo) * (size_t)W;
        for (uint64_t i = 0; i < n; i++)
            p->v->host[i * (uint64_t)C + (uint64_t)c] = from[i];
    }
    return dfcl_write(p->v->dev, p->x, p->v->host, n * (uint64_t)C * 4, err);
}

/* Rows r of the image at hand to the host. */
static dfcl_status download(struct vae_pass *p, float *out, struct vae_rows r, dfcl_error *err) {
    int last = p->c->count, C = p->C, W = p->w[last];
    uint64_t n = (uint64_t)(r.hi - r.lo) * (uint64_t)W;
    p->host_need = DFCL_MAX(p->host_need, n * (uint64_t)C * 4);
    if (p->dry)
        return DFCL_OK;
    struct dfcl_ref from = dfcl_ref_at(p->x, (uint64_t)(r.lo - p->rows.lo) * (uint64_t)W * (uint64_t)C * 4);
    dfcl_status s = dfcl_read(p->v->dev, p->v->host, from, n * (uint64_t)C * 4, err);
    for (int c = 0; c < C && !s; c++) {
        float *to = out + ((size_t)c * (size_t)p->h[last] + (size_t)r.lo) * (size_t)W;
        for (uint64_t i = 0; i < n; i++)
            to[i] = p->v->host[i * (uint64_t)C + (uint64_t)c];
    }
    return s;
}

/* ---- whole ---- */

static dfcl_status whole(struct vae_pass *p, int first, int end, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    p->banded = false;
    for (int t = first; t < end && !s; t++) {
        s = vae_layer(p, t, (struct vae_rows){0, p->h[t + 1]}, err);
        if (!s && !p->dry && p->v->tap)
            s = p->v->tap(p->v->tap_user, p->c->steps[t].name, p->x, p->h[t + 1], p->w[t + 1], p->C, err);
    }
    return s;
}

/* ---- bands ---- */

/* Where a banded part begins and ends: the image on the host, or a slot that holds all of it. */
struct ends {
    const float *in;
    float *out;
    int slot;
};

/* Steps [first, end) for rows `want`: of the output, or of the norm that the pass ends at. */
static dfcl_status band(struct vae_pass *p, int first, int end, struct vae_rows want, const struct ends *e, dfcl_error *err) {
    struct vae_rows r[VAE_MAX_STEPS + 1];
    int last = p->stop_step >= 0 ? p->stop_step : end - 1;
    r[last + 1] = want;
    r[last] = p->stop_step < 0 ? vae_rows_before(p, last, want) : want;
    if (p->stop_step >= 0 && p->stop_norm == 1) /* a convolution of 3x3 lies before it */
        r[last] = (struct vae_rows){DFCL_MAX(want.lo - 1, 0), DFCL_MIN(want.hi + 1, p->h[last])};
    for (int t = last - 1; t >= first; t--)
        r[t] = vae_rows_before(p, t, r[t + 1]);
    dfcl_status s;
    if (e->in) {
        s = upload(p, e->in, r[first], err);
    } else {
        p->cur = -1;
        int slot = vae_free_slot(p, 0), C = p->c->steps[first].in;
        uint64_t line = (uint64_t)p->w[first] * (uint64_t)C * 4, bytes = (uint64_t)(r[first].hi - r[first].lo) * line;
        p->cur = slot;
        p->C = C;
        p->rows = r[first];
        p->x = vae_slot(p, slot, bytes / 4);
        s = p->dry ? DFCL_OK
                   : dfcl_copy(p->v->dev, p->x, (struct dfcl_ref){p->v->slot[e->slot], (uint64_t)r[first].lo * line}, bytes, err);
    }
    for (int t = first; t <= last && !s; t++)
        s = vae_layer(p, t, r[t + 1], err);
    if (s || p->stop_step >= 0)
        return s;
    if (e->out)
        return download(p, e->out, want, err);
    uint64_t line = (uint64_t)p->w[end] * (uint64_t)p->C * 4;
    struct dfcl_ref to = vae_slot(p, e->slot, (uint64_t)p->h[end] * line / 4);
    if (p->dry)
        return DFCL_OK;
    return dfcl_copy(p->v->dev, dfcl_ref_at(to, (uint64_t)want.lo * line), dfcl_ref_at(p->x, (uint64_t)(want.lo - p->rows.lo) * line),
                     (uint64_t)(want.hi - want.lo) * line, err);
}

/* All bands of one pass, over H rows. */
static dfcl_status sweep(struct vae_pass *p, int first, int end, int H, int rows, const struct ends *e, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (int lo = 0; lo < H && !s; lo += rows) {
        struct vae_rows want = {lo, DFCL_MIN(lo + rows, H)};
        p->core = want;
        s = band(p, first, end, want, e, err);
    }
    return s;
}

static int norms_of(const struct vae_step *t) {
    return t->kind == VAE_RES ? 2 : t->kind == VAE_OUT ? 1 : 0;
}

/* A pass for each norm, in order, then the pass that makes the output. */
static dfcl_status bands(struct vae_pass *p, int first, int end, int rows, const struct ends *e, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    p->banded = true;
    p->full = e->slot;
    for (int t = first; t < end && !s; t++)
        for (int i = 0; i < norms_of(&p->c->steps[t]) && !s; i++) {
            int64_t share = ((int64_t)rows * p->h[t] + p->h[end] - 1) / p->h[end];
            p->stop_step = t;
            p->stop_norm = i;
            s = sweep(p, first, end, p->h[t], (int)DFCL_MAX(share, 1), e, err);
            if (!s)
                s = vae_norm_finish(p, &p->c->steps[t], &p->c->steps[t].norm[i], err);
        }
    p->stop_step = -1;
    return s ? s : sweep(p, first, end, p->h[end], rows, e, err);
}

/* ---- a run ---- */

static void sizes(struct vae_pass *p, int h, int w) {
    p->h[0] = h, p->w[0] = w;
    for (int t = 0; t < p->c->count; t++) {
        enum vae_kind k = p->c->steps[t].kind;
        p->h[t + 1] = k == VAE_UP ? 2 * p->h[t] : k == VAE_DOWN ? p->h[t] / 2 : p->h[t];
        p->w[t + 1] = k == VAE_UP ? 2 * p->w[t] : k == VAE_DOWN ? p->w[t] / 2 : p->w[t];
    }
}

static dfcl_status run(struct vae_pass *p, struct vae_cut cut, const float *in, float *out, dfcl_error *err) {
    static const float here = 0;
    int n = p->c->count, last = p->h[n];
    const float *from = p->dry ? &here : in;
    float unused, *to = p->dry ? &unused : out;
    p->full = p->stop_step = -1;
    dfcl_status s;
    if (cut.split < 0) {
        s = upload(p, from, (struct vae_rows){0, p->h[0]}, err);
        if (!s)
            s = whole(p, 0, n, err);
        return s ? s : download(p, to, (struct vae_rows){0, last}, err);
    }
    if (p->c == &p->v->enc) {
        s = bands(p, 0, cut.split, cut.rows, &(struct ends){from, NULL, VAE_SLOTS - 1}, err);
        p->cur = VAE_SLOTS - 1;
        p->full = -1;
        p->C = p->c->steps[cut.split].in;
        p->rows = (struct vae_rows){0, p->h[cut.split]};
        p->x = vae_slot(p, p->cur, 0);
        if (!s)
            s = whole(p, cut.split, n, err);
        return s ? s : download(p, to, (struct vae_rows){0, last}, err);
    }
    s = upload(p, from, (struct vae_rows){0, p->h[0]}, err);
    if (!s)
        s = whole(p, 0, cut.split, err);
    return s ? s : bands(p, cut.split, n, cut.rows, &(struct ends){NULL, to, p->cur}, err);
}

static void begin(struct vae_pass *p, struct dfcl_vae *v, struct vae_coder *c, int h, int w, bool dry) {
    memset(p, 0, sizeof *p);
    p->v = v;
    p->c = c;
    p->dry = dry;
    p->ex = (struct dfcl_exec){.dev = v->dev, .dry = dry};
    sizes(p, h, w);
}

static uint64_t total(const struct vae_pass *p) {
    uint64_t sum = p->scores_need + p->stats_need + p->ex.scratch_need;
    for (int i = 0; i < VAE_SLOTS; i++)
        sum += p->need[i];
    return sum;
}

/* A dry run; *fits false: one tensor is larger than the device's largest allocation. */
static dfcl_status measure(struct vae_pass *p, struct dfcl_vae *v, struct vae_coder *c, struct vae_cut cut, int h, int w, bool *fits,
                           dfcl_error *err) {
    begin(p, v, c, h, w, true);
    dfcl_status s = run(p, cut, NULL, NULL, err);
    uint64_t most = v->dev->info.max_alloc ? v->dev->info.max_alloc : UINT64_MAX;
    *fits = p->scores_need <= most && p->stats_need <= most && p->ex.scratch_need <= most;
    for (int i = 0; i < VAE_SLOTS; i++)
        *fits = *fits && p->need[i] <= most;
    return s;
}

dfcl_status vae_measure(struct dfcl_vae *v, struct vae_coder *c, struct vae_cut cut, int h, int w, uint64_t *bytes, double *flops, dfcl_error *err) {
    struct vae_pass p;
    bool fits;
    dfcl_status s = measure(&p, v, c, cut, h, w, &fits, err);
    *bytes = total(&p);
    *flops = p.flops;
    return s;
}

static dfcl_status take(struct dfcl_vae *v, struct dfcl_mem **m, uint64_t bytes, const char *label, dfcl_error *err) {
    if (*m && dfcl_mem_size(*m) >= bytes)
        return DFCL_OK;
    dfcl_mem_destroy(v->dev, m);
    return bytes ? dfcl_mem_create(v->dev, bytes, label, m, err) : DFCL_OK;
}

void vae_release(struct dfcl_vae *v) {
    for (int i = 0; i < VAE_SLOTS; i++)
        dfcl_mem_destroy(v->dev, &v->slot[i]);
    dfcl_mem_destroy(v->dev, &v->scores);
    dfcl_mem_destroy(v->dev, &v->stats);
    dfcl_mem_destroy(v->dev, &v->scratch);
    dfcl_free(v->ctx, v->host);
    v->host = NULL;
    v->host_size = 0;
}

static uint64_t held(const struct dfcl_vae *v) {
    const struct dfcl_mem *all[] = {v->slot[0], v->slot[1], v->slot[2], v->slot[3], v->scores, v->stats, v->scratch};
    uint64_t sum = 0;
    for (size_t i = 0; i < DFCL_COUNT(all); i++)
        sum += all[i] ? dfcl_mem_size(all[i]) : 0;
    return sum;
}

dfcl_status vae_run_cut(struct dfcl_vae *v, struct vae_coder *c, struct vae_cut cut, int h, int w, const float *in, float *out, dfcl_error *err) {
    struct vae_pass p;
    bool fits;
    dfcl_status s = measure(&p, v, c, cut, h, w, &fits, err);
    if (s)
        return s;
    uint64_t need = total(&p);
    if (held(v) > need) /* what an earlier image left would come on top */
        vae_release(v);
    for (int i = 0; i < VAE_SLOTS && !s; i++)
        s = take(v, &v->slot[i], p.need[i], "autoencoder", err);
    if (!s)
        s = take(v, &v->scores, p.scores_need, "attention scores", err);
    if (!s)
        s = take(v, &v->stats, p.stats_need, "statistics", err);
    if (!s)
        s = take(v, &v->scratch, p.ex.scratch_need, "scratch", err);
    if (!s && v->host_size < p.host_need) {
        dfcl_free(v->ctx, v->host);
        v->host = dfcl_calloc(v->ctx, (size_t)p.host_need, 1, err);
        v->host_size = v->host ? (size_t)p.host_need : 0;
        s = v->host ? DFCL_OK : DFCL_NOMEM;
    }
    if (s)
        return s;
    if (cut.split < 0)
        snprintf(v->plan, sizeof v->plan, "%dx%d whole, %.0f MiB", p.h[c == &v->dec ? c->count : 0], p.w[c == &v->dec ? c->count : 0],
                 (double)need / 1048576.0);
    else
        snprintf(v->plan, sizeof v->plan, "%dx%d in bands of %d rows from %s on, %.0f MiB", p.h[c == &v->dec ? c->count : 0],
                 p.w[c == &v->dec ? c->count : 0], cut.rows, c->steps[c == &v->dec ? cut.split : 0].name, (double)need / 1048576.0);
    begin(&p, v, c, h, w, false);
    p.ex.scratch = (struct dfcl_ref){v->scratch, 0};
    int most = 1;
    for (int t = 0; t < c->count; t++)
        most = DFCL_MAX(most, DFCL_MAX(c->steps[t].in, c->steps[t].out));
    p.mean = dfcl_calloc(v->ctx, (size_t)most, 2 * sizeof *p.mean, err);
    if (!p.mean)
        return DFCL_NOMEM;
    p.square = p.mean + most;
    s = run(&p, cut, in, out, err);
    dfcl_free(v->ctx, p.mean);
    return s;
}

dfcl_status vae_least(struct dfcl_vae *v, struct vae_coder *c, int h, int w, uint64_t *whole_bytes, uint64_t *least, dfcl_error *err) {
    bool decoder = c == &v->dec;
    double flops;
    dfcl_status s = vae_measure(v, c, (struct vae_cut){-1, 0}, h, w, whole_bytes, &flops, err);
    *least = *whole_bytes;
    for (int split = decoder ? c->end_whole : 1; split < (decoder ? c->count : c->first_whole + 1) && !s; split++) {
        uint64_t bytes;
        s = vae_measure(v, c, (struct vae_cut){split, 2}, h, w, &bytes, &flops, err);
        *least = DFCL_MIN(*least, bytes);
    }
    return s;
}

/* The cut with the fewest operations among those that fit; whole where possible. */
static dfcl_status choose(struct dfcl_vae *v, struct vae_coder *c, int h, int w, struct vae_cut *best, dfcl_error *err) {
    struct vae_pass p;
    bool fits;
    uint64_t limit = v->max_memory ? v->max_memory : v->dev->info.memory ? v->dev->info.memory : UINT64_MAX;
    uint64_t others = dfcl_device_memory_used(v->dev) - held(v), room = limit > others ? limit - others : 0, least;
    *best = (struct vae_cut){-1, 0};
    dfcl_status s = measure(&p, v, c, *best, h, w, &fits, err);
    if (s || (fits && total(&p) <= room))
        return s;
    double flops = 0;
    least = total(&p);
    bool decoder = c == &v->dec, found = false;
    int from = decoder ? c->end_whole : 1, end = decoder ? c->count : c->first_whole + 1;
    for (int split = from; split < end && !s; split++) {
        int H = p.h[decoder ? c->count : split];
        for (int rows = (H + 1) / 2; rows >= 2 && !s; rows /= 2) { /* fewer rows take less memory and more operations */
            struct vae_cut cut = {split, rows};
            s = measure(&p, v, c, cut, h, w, &fits, err);
            least = DFCL_MIN(least, total(&p));
            if (s || !fits || total(&p) > room)
                continue;
            if (!found || p.flops < flops) {
                *best = cut;
                flops = p.flops;
            }
            found = true;
            break;
        }
    }
    if (!s && !found)
        s = dfcl_fail(err, DFCL_NOMEM, "autoencoder: %dx%d need at least %.0f MiB of memory, even in bands; %.0f of %.0f MiB are left", h, w,
                      (double)least / 1048576.0, (double)room / 1048576.0, (double)limit / 1048576.0);
    return s;
}

dfcl_status vae_run(struct dfcl_vae *v, struct vae_coder *c, int h, int w, const float *in, float *out, dfcl_error *err) {
    struct vae_cut cut;
    dfcl_status s = choose(v, c, h, w, &cut, err);
    return s ? s : vae_run_cut(v, c, cut, h, w, in, out, err);
}
