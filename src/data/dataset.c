#include "data/dataset.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/philox.h"
#include "base/sha256.h"
#include "data/decode.h"
#include "data/order.h"
#include "data/scan.h"

enum slot_state { SLOT_EMPTY, SLOT_READY, SLOT_FAILED };

/* A sample decoded ahead: sample g lies in slot g mod slot_count. */
struct slot {
    enum slot_state state;
    uint64_t g;
    unsigned char *bytes;
    dfcl_error err;
};

struct dfcl_dataset {
    const dfcl_context *ctx;
    struct dfcl_dataset_options opt;
    struct dfcl_scan scan;
    char **made_names; /* decimal names, when the data brings none */
    const char **names;
    int classes;
    size_t values, sample_bytes; /* of one sample: values as f32, bytes as kept */
    char fingerprint[65];
    uint32_t *items;         /* [scan.count] places in the scan: to train on, ascending, then held out, shuffled */
    uint32_t train_count;
    struct dfcl_order order; /* of the first train_count items */
    unsigned char *cache; /* [count][sample_bytes], or NULL */

    /* Reading ahead. `lock` guards what follows, and the order once threads run. */
    pthread_mutex_t lock;
    pthread_cond_t work, ready;
    bool sync_made, stop;
    pthread_t *threads;
    int thread_count;
    struct slot *slots;
    uint64_t slot_count;
    uint64_t head;       /* next sample to be fetched */
    uint64_t taken;      /* next sample a thread will decode */
    uint64_t generation; /* grows with every jump: results for the old position are dropped */
};

/* ---- decoding ---- */

static dfcl_status decode(const struct dfcl_dataset *ds, size_t item, unsigned char *out, dfcl_error *err) {
    const char *path = ds->scan.items[item].path;
    if (ds->scan.latent)
        return dfcl_decode_latent(ds->ctx, path, ds->opt.channels, ds->opt.side, (float *)(void *)out, err);
    return dfcl_decode_picture(ds->ctx, path, ds->opt.channels, ds->opt.side, out, err);
}

/* Kept bytes -> f32 CHW, mirrored if asked. */
static void expand(const struct dfcl_dataset *ds, const unsigned char *bytes, bool mirror, float *out) {
    if (ds->scan.latent) {
        memcpy(out, bytes, ds->sample_bytes);
        return;
    }
    size_t side = (size_t)ds->opt.side, ch = (size_t)ds->opt.channels;
    for (size_t c = 0; c < ch; c++)
        for (size_t y = 0; y < side; y++)
            for (size_t x = 0; x < side; x++) {
                size_t from = mirror ? side - 1 - x : x;
                out[(c * side + y) * side + x] = (float)bytes[(y * side + from) * ch + c] / 127.5f - 1.0f;
            }
}

/* ---- filling the cache ---- */

/* Labels of latents always, samples when cached. Files are handed out in order; the error of the first bad one is kept, so that the message does
 * not depend on the timing of the threads. */
struct preload {
    struct dfcl_dataset *ds;
    size_t next, bad;
    dfcl_error err;
};

static void *preload_thread(void *user) {
    struct preload *p = user;
    struct dfcl_dataset *ds = p->ds;
    for (;;) {
        pthread_mutex_lock(&ds->lock);
        size_t i = p->next++;
        bool over = i >= ds->scan.count || i > p->bad;
        pthread_mutex_unlock(&ds->lock);
        if (over)
            return NULL;
        dfcl_error e = {0};
        dfcl_status s = DFCL_OK;
        if (ds->scan.latent)
            s = dfcl_decode_label(ds->ctx, ds->scan.items[i].label_path, &ds->scan.items[i].label, &e);
        if (!s && ds->cache)
            s = decode(ds, i, ds->cache + i * ds->sample_bytes, &e);
        if (s) {
            pthread_mutex_lock(&ds->lock);
            if (i < p->bad) {
                p->bad = i;
                p->err = e;
                p->err.status = s;
            }
            pthread_mutex_unlock(&ds->lock);
        }
    }
}

static dfcl_status preload(struct dfcl_dataset *ds, dfcl_error *err) {
    struct preload p = {.ds = ds, .bad = SIZE_MAX};
    int want = DFCL_MIN(ds->ctx->p.threads, 16), started = 0;
    pthread_t *t = dfcl_calloc(ds->ctx, (size_t)want, sizeof *t, err);
    if (!t)
        return DFCL_NOMEM;
    /* This thread works too, so a system that gives no threads still gets there. */
    while (started < want - 1 && pthread_create(&t[started], NULL, preload_thread, &p) == 0)
        started++;
    preload_thread(&p);
    for (int i = 0; i < started; i++)
        pthread_join(t[i], NULL);
    dfcl_free(ds->ctx, t);
    if (p.bad != SIZE_MAX) {
        if (err)
            *err = p.err;
        return p.err.status;
    }
    return DFCL_OK;
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
        dfcl_status s = bytes ? decode(ds, item, bytes, &e) : dfcl_fail(&e, DFCL_NOMEM, "out of host memory for reading ahead");
        pthread_mutex_lock(&ds->lock);
        if (generation != ds->generation)
            continue;
        struct slot *slot = &ds->slots[g % ds->slot_count];
        slot->g = g;
        slot->state = s ? SLOT_FAILED : SLOT_READY;
        slot->err = e;
        if (!s)
            memcpy(slot->bytes, bytes, ds->sample_bytes);
        pthread_cond_broadcast(&ds->ready);
    }
    pthread_mutex_unlock(&ds->lock);
    dfcl_free(ds->ctx, bytes);
    return NULL;
}

static dfcl_status start_ahead(struct dfcl_dataset *ds, dfcl_error *err) {
    int want = ds->opt.threads > 0 ? ds->opt.threads : 1;
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

/* ---- opening ---- */

static dfcl_status find_classes(struct dfcl_dataset *ds, dfcl_error *err) {
    int top = -1;
    for (size_t i = 0; i < ds->scan.count; i++)
        top = DFCL_MAX(top, ds->scan.items[i].label);
    ds->classes = ds->scan.classes.count ? (int)ds->scan.classes.count : top + 1;
    if (top >= ds->classes)
        for (size_t i = 0; i < ds->scan.count; i++)
            if (ds->scan.items[i].label >= ds->classes)
                return dfcl_fail(err, DFCL_FORMAT, "%s: expected a label below the %d names of class_names.txt, found %d",
                                 ds->scan.items[i].label_path, ds->classes, ds->scan.items[i].label);
    ds->names = dfcl_calloc(ds->ctx, (size_t)ds->classes, sizeof *ds->names, err);
    ds->made_names = dfcl_calloc(ds->ctx, (size_t)ds->classes, sizeof *ds->made_names, err);
    if (!ds->names || !ds->made_names)
        return DFCL_NOMEM;
    for (int i = 0; i < ds->classes; i++) {
        if (!ds->scan.classes.count && !(ds->made_names[i] = dfcl_sprintf(ds->ctx, err, "%d", i)))
            return DFCL_NOMEM;
        ds->names[i] = ds->scan.classes.count ? ds->scan.classes.names[i] : ds->made_names[i];
    }
    return DFCL_OK;
}

/* Takes samples of each class out of the training, in shuffled order until its share is full. */
static dfcl_status split(struct dfcl_dataset *ds, dfcl_error *err) {
    uint32_t n = (uint32_t)ds->scan.count, held = 0;
    const struct dfcl_scan_item *at = ds->scan.items;
    ds->items = dfcl_calloc(ds->ctx, n, sizeof *ds->items, err);
    uint32_t *mixed = dfcl_calloc(ds->ctx, n, sizeof *mixed, err), *size = dfcl_calloc(ds->ctx, (size_t)ds->classes, sizeof *size, err);
    uint32_t *share = dfcl_calloc(ds->ctx, (size_t)ds->classes, sizeof *share, err);
    bool *out = dfcl_calloc(ds->ctx, n, sizeof *out, err);
    dfcl_status s = ds->items && mixed && size && share && out ? DFCL_OK : DFCL_NOMEM;
    if (s)
        goto done;
    for (uint32_t i = 0; i < n; i++) {
        mixed[i] = i;
        size[at[i].label]++;
    }
    uint32_t largest = 0;
    for (int c = 0; c < ds->classes; c++) {
        uint32_t want = (uint32_t)(ds->opt.val_fraction * size[c] + 0.5);
        share[c] = size[c] ? DFCL_MIN(want, size[c] - 1) : 0;
        largest = DFCL_MAX(largest, size[c]);
    }
    for (uint32_t i = n; ds->opt.val_fraction > 0 && i-- > 1;) {
        uint32_t j = dfcl_uniform_int(ds->opt.seed, DFCL_STREAM_VAL, 2, i, 0, i + 1), t = mixed[i];
        mixed[i] = mixed[j];
        mixed[j] = t;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *left = &share[at[mixed[i]].label];
        if (!*left)
            continue;
        --*left;
        out[mixed[i]] = true;
        mixed[held++] = mixed[i];
    }
    if (ds->opt.val_fraction > 0 && !held)
        s = dfcl_fail(err, DFCL_USAGE, "%s: a share of %g held out is not one sample of any class (the largest has %u)", ds->opt.path,
                      ds->opt.val_fraction, largest);
    for (uint32_t i = 0; i < n; i++)
        if (!out[i])
            ds->items[ds->train_count++] = i;
    memcpy(ds->items + ds->train_count, mixed, held * sizeof *mixed);
done:
    dfcl_free(ds->ctx, mixed);
    dfcl_free(ds->ctx, size);
    dfcl_free(ds->ctx, share);
    dfcl_free(ds->ctx, out);
    return s;
}

static dfcl_status make_fingerprint(struct dfcl_dataset *ds, dfcl_error *err) {
    struct dfcl_sha256 h;
    char line[128];
    size_t root = strlen(ds->opt.path);
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    snprintf(line, sizeof line, "%s %d %d %d\n", ds->scan.latent ? "latents" : "pictures", ds->opt.channels, ds->opt.side,
             ds->classes);
    s = dfcl_sha256_update(&h, line, strlen(line), err);
    for (int i = 0; !s && i < ds->classes; i++)
        s = dfcl_sha256_update(&h, ds->names[i], strlen(ds->names[i]) + 1, err);
    for (size_t i = 0; !s && i < ds->scan.count; i++) {
        const struct dfcl_scan_item *it = &ds->scan.items[i];
        struct stat st = {0};
        if (stat(it->path, &st) != 0) {
            s = dfcl_fail_errno(err, it->path, "cannot stat");
            break;
        }
        snprintf(line, sizeof line, "\n%d %lld ", it->label, (long long)st.st_size);
        s = dfcl_sha256_update(&h, line, strlen(line), err);
        if (!s) /* relative to the folder: it may be moved */
            s = dfcl_sha256_update(&h, it->path + root, strlen(it->path + root), err);
    }
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    return dfcl_sha256_finish(&h, ds->fingerprint, err);
}

dfcl_status dfcl_dataset_open(struct dfcl_dataset **out, const dfcl_context *ctx, const struct dfcl_dataset_options *opt,
                              dfcl_error *err) {
    *out = NULL;
    if (!opt->path || opt->channels < 1 || opt->side < 1)
        return dfcl_fail(err, DFCL_USAGE, "data: expected a folder, channels and a side");
    struct dfcl_dataset *ds = dfcl_calloc(ctx, 1, sizeof *ds, err);
    if (!ds)
        return DFCL_NOMEM;
    ds->ctx = ctx;
    ds->opt = *opt;
    dfcl_status s = DFCL_OK;
    if (pthread_mutex_init(&ds->lock, NULL) || pthread_cond_init(&ds->work, NULL) || pthread_cond_init(&ds->ready, NULL)) {
        s = dfcl_fail(err, DFCL_NOMEM, "data: no thread resources");
        goto out;
    }
    ds->sync_made = true;
    ds->opt.path = dfcl_strdup(ctx, opt->path, err);
    s = ds->opt.path ? dfcl_scan_folder(ctx, opt->path, &ds->scan, err) : DFCL_NOMEM;
    if (s)
        goto out;
    if (!ds->scan.latent && opt->channels != 1 && opt->channels != 3) {
        s = dfcl_fail(err, DFCL_USAGE, "%s: holds pictures, but the model works on latents of %d channels: encode them first",
                      opt->path, opt->channels);
        goto out;
    }
    if (ds->scan.latent && opt->flip) {
        s = dfcl_fail(err, DFCL_USAGE, "%s: holds latents, which cannot be mirrored: a mirrored latent is not that of the mirrored picture",
                      opt->path);
        goto out;
    }
    size_t total;
    uint64_t limit = opt->cache_bytes ? opt->cache_bytes : 256ull << 20;
    if (!dfcl_mul_size((size_t)opt->side, (size_t)opt->side, &ds->values) ||
        !dfcl_mul_size(ds->values, (size_t)opt->channels, &ds->values) ||
        !dfcl_mul_size(ds->values, ds->scan.latent ? sizeof(float) : 1, &ds->sample_bytes)) {
        s = dfcl_fail(err, DFCL_NOMEM, "data: samples of %dx%dx%d are too large", opt->channels, opt->side, opt->side);
        goto out;
    }
    if (dfcl_mul_size(ds->scan.count, ds->sample_bytes, &total) && total <= limit) {
        ds->cache = dfcl_calloc(ctx, total, 1, err);
        if (!ds->cache) {
            s = DFCL_NOMEM;
            goto out;
        }
    }
    if (ds->cache || ds->scan.latent)
        s = preload(ds, err);
    if (!s)
        s = find_classes(ds, err);
    if (!s)
        s = make_fingerprint(ds, err);
    if (!s)
        s = split(ds, err);
    if (!s)
        s = dfcl_order_init(&ds->order, ctx, opt->seed, ds->train_count, err);
    if (!s && !ds->cache)
        s = start_ahead(ds, err);
out:
    if (s)
        dfcl_dataset_close(&ds);
    *out = ds;
    return s;
}

void dfcl_dataset_close(struct dfcl_dataset **dsp) {
    struct dfcl_dataset *ds = *dsp;
    if (!ds)
        return;
    const dfcl_context *ctx = ds->ctx;
    if (ds->thread_count) {
        pthread_mutex_lock(&ds->lock);
        ds->stop = true;
        pthread_cond_broadcast(&ds->work);
        pthread_mutex_unlock(&ds->lock);
        for (int i = 0; i < ds->thread_count; i++)
            pthread_join(ds->threads[i], NULL);
    }
    if (ds->sync_made) {
        pthread_mutex_destroy(&ds->lock);
        pthread_cond_destroy(&ds->work);
        pthread_cond_destroy(&ds->ready);
        dfcl_free(ctx, (char *)(uintptr_t)ds->opt.path);
    }
    for (uint64_t i = 0; ds->slots && i < ds->slot_count; i++)
        dfcl_free(ctx, ds->slots[i].bytes);
    for (int i = 0; ds->made_names && i < ds->classes; i++)
        dfcl_free(ctx, ds->made_names[i]);
    dfcl_free(ctx, ds->made_names);
    dfcl_free(ctx, ds->names);
    dfcl_free(ctx, ds->slots);
    dfcl_free(ctx, ds->threads);
    dfcl_free(ctx, ds->cache);
    dfcl_free(ctx, ds->items);
    dfcl_order_finish(&ds->order, ctx);
    dfcl_scan_free(ctx, &ds->scan);
    dfcl_free(ctx, ds);
    *dsp = NULL;
}

/* ---- asking ---- */

int64_t dfcl_dataset_count(const struct dfcl_dataset *ds) {
    return (int64_t)ds->train_count;
}
int64_t dfcl_dataset_held_out_count(const struct dfcl_dataset *ds) {
    return (int64_t)ds->scan.count - (int64_t)ds->train_count;
}
int dfcl_dataset_classes(const struct dfcl_dataset *ds) {
    return ds->classes;
}
const char *const *dfcl_dataset_class_names(const struct dfcl_dataset *ds) {
    return ds->names;
}
bool dfcl_dataset_is_latent(const struct dfcl_dataset *ds) {
    return ds->scan.latent;
}
bool dfcl_dataset_cached(const struct dfcl_dataset *ds) {
    return ds->cache != NULL;
}
const char *dfcl_dataset_fingerprint(const struct dfcl_dataset *ds) {
    return ds->fingerprint;
}

int64_t dfcl_dataset_item(struct dfcl_dataset *ds, uint64_t g) {
    pthread_mutex_lock(&ds->lock);
    int64_t item = ds->items[dfcl_order_item(&ds->order, g)];
    pthread_mutex_unlock(&ds->lock);
    return item;
}

dfcl_status dfcl_dataset_held_out(struct dfcl_dataset *ds, int64_t i, float *x, int32_t *label, dfcl_error *err) {
    size_t item = ds->items[ds->train_count + (uint64_t)i];
    *label = ds->scan.items[item].label;
    if (ds->cache) {
        expand(ds, ds->cache + item * ds->sample_bytes, false, x);
        return DFCL_OK;
    }
    unsigned char *bytes = dfcl_calloc(ds->ctx, 1, ds->sample_bytes, err);
    dfcl_status s = bytes ? decode(ds, item, bytes, err) : DFCL_NOMEM;
    if (!s)
        expand(ds, bytes, false, x);
    dfcl_free(ds->ctx, bytes);
    return s;
}

dfcl_status dfcl_dataset_fetch(struct dfcl_dataset *ds, uint64_t first, int n, float *x, int32_t *label, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    pthread_mutex_lock(&ds->lock);
    if (!ds->cache && first != ds->head) {
        ds->generation++;
        ds->head = ds->taken = first;
        for (uint64_t i = 0; i < ds->slot_count; i++)
            ds->slots[i].state = SLOT_EMPTY;
        pthread_cond_broadcast(&ds->work);
    }
    for (int i = 0; !s && i < n; i++) {
        uint64_t g = first + (uint64_t)i;
        size_t item = ds->items[dfcl_order_item(&ds->order, g)];
        uint32_t epoch = (uint32_t)(g / ds->train_count);
        bool mirror = ds->opt.flip && dfcl_uniform(ds->opt.seed, DFCL_STREAM_FLIP, epoch, (uint32_t)g, 0) <= 0.5f;
        float *to = x + (size_t)i * ds->values;
        label[i] = ds->scan.items[item].label;
        if (ds->cache) {
            expand(ds, ds->cache + item * ds->sample_bytes, mirror, to);
            continue;
        }
        struct slot *slot = &ds->slots[g % ds->slot_count];
        while (slot->state == SLOT_EMPTY || slot->g != g)
            pthread_cond_wait(&ds->ready, &ds->lock);
        if (slot->state == SLOT_FAILED) {
            s = slot->err.status;
            if (err)
                *err = slot->err;
        } else {
            /* No thread writes this slot before head has moved past it. */
            pthread_mutex_unlock(&ds->lock);
            expand(ds, slot->bytes, mirror, to);
            pthread_mutex_lock(&ds->lock);
        }
        slot->state = SLOT_EMPTY;
        ds->head = g + 1;
        pthread_cond_signal(&ds->work);
    }
    pthread_mutex_unlock(&ds->lock);
    return s;
}
