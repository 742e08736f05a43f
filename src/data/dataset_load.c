#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "base/parallel.h"
#include "data/dataset_internal.h"
#include "data/decode.h"

#define MOST_NAMED 20 /* bad files that are named in the log */

dfcl_status dfcl_dataset_decode(const struct dfcl_dataset *ds, size_t item, const uint64_t *g, unsigned char *out, dfcl_error *err) {
    const char *path = ds->scan.items[item].path;
    if (ds->latents) {
        float *to = (float *)(void *)out;
        dfcl_status s = dfcl_latents_read(ds->latents, item, false, to, err);
        return s || !ds->opt.flip ? s : dfcl_latents_read(ds->latents, item, true, to + 2 * ds->values, err);
    }
    if (ds->scan.latent)
        return dfcl_decode_latent(ds->ctx, path, ds->opt.channels, ds->opt.side, ds->opt.width, (float *)(void *)out, err);
    struct dfcl_crop_draw draw = {.seed = ds->opt.seed};
    if (g) {
        draw.step = (uint32_t)(*g / ds->train_count);
        draw.sample = (uint32_t)*g;
    }
    return dfcl_decode_picture(ds->ctx, path, ds->opt.channels, ds->opt.side, ds->opt.width, ds->opt.alpha,
                               g && ds->opt.random_crop ? &draw : NULL, out, err);
}

/* ---- at the start ---- */

/* All files are tried, so that what is said of them does not depend on the timing of the threads. */
struct preload {
    struct dfcl_dataset *ds;
    dfcl_status *found; /* [count], what each file gave */
    size_t first;       /* bad file, and its error */
    dfcl_error err;
    bool broken;                              /* out of memory: the rest is not tried */
    unsigned char *scratch[DFCL_MAX_THREADS]; /* samples that are not kept */
};

static bool is_bad(dfcl_status s) {
    return s == DFCL_FORMAT || s == DFCL_IO;
}

static dfcl_status load(struct preload *p, int thread, size_t i, dfcl_error *err) {
    struct dfcl_dataset *ds = p->ds;
    struct dfcl_scan_item *it = &ds->scan.items[i];
    dfcl_status s = it->label_path ? dfcl_decode_label(ds->ctx, it->label_path, &it->label, err) : DFCL_OK;
    if (!s && !ds->cache && !p->scratch[thread] && !(p->scratch[thread] = dfcl_calloc(ds->ctx, 1, ds->sample_bytes, err)))
        s = DFCL_NOMEM;
    return s ? s : dfcl_dataset_decode(ds, i, NULL, ds->cache ? ds->cache + i * ds->sample_bytes : p->scratch[thread], err);
}

static void load_one(void *user, int thread, size_t i) {
    struct preload *p = user;
    dfcl_error e = {0};
    if (__atomic_load_n(&p->broken, __ATOMIC_RELAXED))
        return;
    dfcl_status s = load(p, thread, i, &e);
    p->found[i] = s;
    if (!s)
        return;
    pthread_mutex_lock(&p->ds->lock);
    if (i < p->first) {
        p->first = i;
        p->err = e;
        p->err.status = s;
    }
    if (!is_bad(s))
        __atomic_store_n(&p->broken, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&p->ds->lock);
}

/* Bad files leave the scan and the cache; the order of the others stays. */
static dfcl_status leave_out(struct dfcl_dataset *ds, const dfcl_status *found, dfcl_error *err) {
    size_t kept = 0;
    for (size_t i = 0; i < ds->scan.count; i++) {
        struct dfcl_scan_item it = ds->scan.items[i];
        if (!found[i]) {
            if (ds->cache && kept < i)
                memmove(ds->cache + kept * ds->sample_bytes, ds->cache + i * ds->sample_bytes, ds->sample_bytes);
            ds->scan.items[kept++] = it;
            continue;
        }
        if (ds->bad++ < MOST_NAMED)
            dfcl_log(ds->ctx, DFCL_LOG_WARN, "%s: cannot be read, left out", it.path);
        dfcl_free(ds->ctx, it.path);
        dfcl_free(ds->ctx, it.label_path);
    }
    ds->scan.count = kept;
    if (!kept)
        return dfcl_fail(err, DFCL_FORMAT, "%s: none of %lld files can be read", ds->opt.path, (long long)ds->bad);
    if (ds->bad)
        dfcl_log(ds->ctx, DFCL_LOG_WARN, "%s: %lld files cannot be read and are left out, %zu are used", ds->opt.path, (long long)ds->bad, kept);
    return DFCL_OK;
}

dfcl_status dfcl_dataset_preload(struct dfcl_dataset *ds, dfcl_error *err) {
    struct preload p = {.ds = ds, .first = SIZE_MAX};
    p.found = dfcl_calloc(ds->ctx, ds->scan.count, sizeof *p.found, err);
    if (!p.found)
        return DFCL_NOMEM;
    dfcl_parallel(ds->ctx->p.threads, ds->scan.count, load_one, &p);
    dfcl_status s = DFCL_OK;
    size_t bad = 0;
    for (size_t i = 0; i < ds->scan.count; i++) {
        bad += is_bad(p.found[i]);
        if (p.found[i] && !is_bad(p.found[i]))
            s = p.found[i];
    }
    if (!s && ds->opt.skip_bad) {
        s = leave_out(ds, p.found, err);
    } else if (s || bad) {
        s = s ? s : p.err.status;
        if (err)
            *err = p.err;
        if (err && bad > 1)
            dfcl_append(err->msg, sizeof err->msg, " (and %zu more bad files of %zu)", bad - 1, ds->scan.count);
    }
    for (int i = 0; i < DFCL_MAX_THREADS; i++)
        dfcl_free(ds->ctx, p.scratch[i]);
    dfcl_free(ds->ctx, p.found);
    return s;
}

/* ---- reading ahead ---- */

/* Threads that compute on the same processors go first; while they wait for data, all is free. Linux only: elsewhere a priority is the
 * whole process's. Not being allowed to is no harm. */
static void give_way(void) {
#ifdef __linux__
    errno = 0;
    int now = getpriority(PRIO_PROCESS, 0);
    if (now != -1 || !errno)
        setpriority(PRIO_PROCESS, 0, now + 10);
#endif
}

static void *ahead_thread(void *user) {
    struct dfcl_dataset *ds = user;
    give_way();
    unsigned char *bytes = dfcl_calloc(ds->ctx, 1, ds->sample_bytes, NULL);
    pthread_mutex_lock(&ds->lock);
    for (;;) {
        while (!ds->stop && ds->taken >= ds->head + ds->slot_count)
            pthread_cond_wait(&ds->work, &ds->lock);
        if (ds->stop)
            break;
        uint64_t g = ds->taken++, generation = ds->generation;
        size_t item = ds->items[dfcl_order_item(&ds->order, g)];
        pthread_mutex_unlock(&ds->lock);
        dfcl_error e = {0};
        dfcl_status s = bytes ? dfcl_dataset_decode(ds, item, &g, bytes, &e) : dfcl_fail(&e, DFCL_NOMEM, "out of host memory for reading ahead");
        pthread_mutex_lock(&ds->lock);
        if (generation != ds->generation)
            continue;
        struct dfcl_slot *slot = &ds->slots[g % ds->slot_count];
        slot->g = g;
        slot->state = s ? DFCL_SLOT_FAILED : DFCL_SLOT_READY;
        slot->err = e;
        if (!s)
            memcpy(slot->bytes, bytes, ds->sample_bytes);
        pthread_cond_broadcast(&ds->ready);
    }
    pthread_mutex_unlock(&ds->lock);
    dfcl_free(ds->ctx, bytes);
    return NULL;
}

dfcl_status dfcl_dataset_start(struct dfcl_dataset *ds, dfcl_error *err) {
    int want = ds->opt.threads > 0 ? ds->opt.threads : DFCL_MIN(ds->ctx->p.threads, DFCL_MAX_THREADS);
    ds->slot_count = (uint64_t)(ds->opt.ahead > 0 ? ds->opt.ahead : 64);
    ds->slots = dfcl_calloc(ds->ctx, (size_t)ds->slot_count, sizeof *ds->slots, err);
    ds->threads = dfcl_calloc(ds->ctx, (size_t)want, sizeof *ds->threads, err);
    if (!ds->slots || !ds->threads)
        return DFCL_NOMEM;
    for (uint64_t i = 0; i < ds->slot_count; i++) {
        ds->slots[i].bytes = dfcl_calloc(ds->ctx, 1, ds->sample_bytes, err);
        if (!ds->slots[i].bytes)
            return DFCL_NOMEM;
    }
    while (ds->thread_count < want && pthread_create(&ds->threads[ds->thread_count], NULL, ahead_thread, ds) == 0)
        ds->thread_count++;
    if (!ds->thread_count)
        return dfcl_fail(err, DFCL_NOMEM, "%s: no thread for reading ahead", ds->opt.path);
    return DFCL_OK;
}

void dfcl_dataset_stop(struct dfcl_dataset *ds) {
    if (!ds->thread_count)
        return;
    pthread_mutex_lock(&ds->lock);
    ds->stop = true;
    pthread_cond_broadcast(&ds->work);
    pthread_mutex_unlock(&ds->lock);
    for (int i = 0; i < ds->thread_count; i++)
        pthread_join(ds->threads[i], NULL);
    ds->thread_count = 0;
}
