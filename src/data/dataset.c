#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/philox.h"
#include "base/sha256.h"
#include "data/dataset_internal.h"

static bool is_kept(const struct dfcl_dataset *ds) {
    return ds->cache || ds->arrays.count;
}

static void draw_moments(const struct dfcl_dataset *ds, size_t item, const void *bytes, bool mirror, const struct dfcl_latents_draw *draw, float *out) {
    const struct dfcl_train_arrays *a = &ds->arrays;
    const float *mean, *logvar;
    if (a->count) {
        mean = (mirror ? a->flip_mean : (const float *)a->data) + item * ds->values;
        logvar = (mirror ? a->flip_logvar : a->logvar) + item * ds->values;
    } else {
        mean = (const float *)bytes + (mirror ? 2 * ds->values : 0);
        logvar = mean + ds->values;
    }
    dfcl_latents_sample(&ds->moments, mean, logvar, draw, out);
}

/* A sample as it is kept -> f32 CHW, mirrored if asked, drawn where there are moments. `bytes`: where it was read to; NULL: it lies in the cache or the arrays. */
static void expand(const struct dfcl_dataset *ds, size_t item, const unsigned char *bytes, bool mirror, const struct dfcl_latents_draw *draw, float *out) {
    size_t h = (size_t)ds->opt.side, w = (size_t)ds->opt.width, ch = (size_t)ds->opt.channels;
    if (!bytes)
        bytes = (ds->arrays.count ? (const unsigned char *)ds->arrays.data : ds->cache) + item * ds->sample_bytes;
    if (ds->layout == DFCL_LAYOUT_MOMENTS) {
        draw_moments(ds, item, bytes, mirror, draw, out);
    } else if (ds->layout == DFCL_LAYOUT_FLOATS && !mirror) {
        memcpy(out, bytes, ds->sample_bytes);
    } else if (ds->layout == DFCL_LAYOUT_FLOATS) {
        const float *from = (const float *)(const void *)bytes;
        for (size_t row = 0; row < ch * h; row++)
            for (size_t x = 0; x < w; x++)
                out[row * w + x] = from[row * w + w - 1 - x];
    } else {
        for (size_t c = 0; c < ch; c++)
            for (size_t y = 0; y < h; y++)
                for (size_t x = 0; x < w; x++) {
                    size_t from = mirror ? w - 1 - x : x;
                    out[(c * h + y) * w + x] = (float)bytes[(y * w + from) * ch + c] / 127.5f - 1.0f;
                }
    }
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
    char line[128], side[DFCL_EXTENT_TEXT];
    if (ds->latents) {
        strcpy(ds->fingerprint, dfcl_latents_get(ds->latents).fingerprint);
        return DFCL_OK;
    }
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    if (ds->arrays.count) {
        if (!(s = dfcl_dataset_hash_arrays(ds, &h, err)))
            return dfcl_sha256_finish(&h, ds->fingerprint, err);
        dfcl_sha256_abort(&h);
        return s;
    }
    size_t root = strlen(ds->opt.path);
    snprintf(line, sizeof line, "%s %d %s %d\n", ds->scan.latent ? "latents" : "pictures", ds->opt.channels,
             dfcl_extent_format(ds->opt.side, ds->opt.width, side), ds->classes);
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

/* The samples of a cache, in its order. */
static dfcl_status find_latents(struct dfcl_dataset *ds, dfcl_error *err) {
    dfcl_status s = dfcl_latents_open(&ds->latents, ds->ctx, ds->opt.path, err);
    if (s)
        return s;
    const struct dfcl_latents_view v = dfcl_latents_get(ds->latents);
    const struct dfcl_latents_settings *st = &v.settings;
    if (ds->opt.vae_hash && strcmp(ds->opt.vae_hash, st->vae))
        return dfcl_fail(err, DFCL_FORMAT, "%s: latents of another VAE: expected the one with the hash %s, found %s", ds->opt.path, ds->opt.vae_hash,
                         st->vae);
    const int width = dfcl_width(st->side_width, st->side);
    char size[DFCL_EXTENT_TEXT], side[DFCL_EXTENT_TEXT];
    dfcl_extent_format(st->size, st->size_width, size);
    dfcl_extent_format(st->side, width, side);
    if (st->channels != ds->opt.channels)
        return dfcl_fail(err, DFCL_FORMAT, "%s: the model works on latents of %d x %d x %d, found %d x %d x %d (pictures of %s)", ds->opt.path,
                         ds->opt.channels, ds->opt.side, ds->opt.width, st->channels, st->side, width, size);
    if (st->side != ds->opt.side || width != ds->opt.width)
        return dfcl_fail(err, DFCL_FORMAT, "%s: the model works on latents of %d x %d x %d, found %d x %d x %d (pictures of %s); its input can be set to theirs, %s",
                         ds->opt.path, ds->opt.channels, ds->opt.side, ds->opt.width, st->channels, st->side, width, size, side);
    ds->scan.latent = true;
    ds->layout = DFCL_LAYOUT_MOMENTS;
    ds->moments = *st;
    ds->scan.items = dfcl_calloc(ds->ctx, v.count, sizeof *ds->scan.items, err);
    if (!ds->scan.items)
        return DFCL_NOMEM;
    for (; ds->scan.count < v.count; ds->scan.count++)
        ds->scan.items[ds->scan.count].label = v.items[ds->scan.count].label;
    for (size_t i = 0; !s && i < v.classes->count; i++)
        s = dfcl_list_add(ds->ctx, &ds->scan.classes, v.classes->names[i], err);
    return s;
}

static dfcl_status find_samples(struct dfcl_dataset *ds, dfcl_error *err) {
    if (ds->arrays.count)
        return dfcl_dataset_find_arrays(ds, err);
    if (dfcl_latents_here(ds->opt.path))
        return find_latents(ds, err);
    dfcl_status s = dfcl_scan_folder(ds->ctx, ds->opt.path, &ds->scan, err);
    ds->layout = ds->scan.latent ? DFCL_LAYOUT_FLOATS : DFCL_LAYOUT_BYTES;
    return s;
}

/* What was asked for, against what the folder holds. */
static dfcl_status check_options(const struct dfcl_dataset *ds, dfcl_error *err) {
    const struct dfcl_dataset_options *o = &ds->opt;
    if (ds->arrays.count && (o->random_crop || o->alpha != DFCL_ALPHA_WHITE || o->skip_bad))
        return dfcl_fail(err, DFCL_USAGE, "%s: crop, alpha and skip_bad are for folders of pictures", o->path);
    if (!ds->scan.latent && o->channels != 1 && o->channels != 3)
        return dfcl_fail(err, DFCL_USAGE, "%s: holds pictures, but the model works on latents of %d channels: encode them first", o->path, o->channels);
    if (ds->scan.latent && (o->random_crop || o->alpha != DFCL_ALPHA_WHITE))
        return dfcl_fail(err, DFCL_USAGE, "%s: holds latents: crop and alpha are of the pictures that they were made from", o->path);
    if (ds->latents && o->skip_bad)
        return dfcl_fail(err, DFCL_USAGE, "%s: holds cached latents: bad files are left out when they are made", o->path);
    if (ds->layout == DFCL_LAYOUT_MOMENTS && o->flip && !ds->moments.flips)
        return dfcl_fail(err, DFCL_USAGE, "%s: was made without the latents of mirrored pictures, and a mirrored latent is none of them", o->path);
    if (ds->scan.latent && ds->layout != DFCL_LAYOUT_MOMENTS && o->flip)
        return dfcl_fail(err, DFCL_USAGE, "%s: holds latents, which cannot be mirrored: a mirrored latent is not that of the mirrored picture", o->path);
    return DFCL_OK;
}

static dfcl_status too_large(const struct dfcl_dataset_options *o, dfcl_error *err) {
    return dfcl_fail(err, DFCL_NOMEM, "data: samples of %dx%dx%d are too large", o->channels, o->side, o->width);
}

dfcl_status dfcl_dataset_open(struct dfcl_dataset **out, const dfcl_context *ctx, const struct dfcl_dataset_options *opt,
                              dfcl_error *err) {
    *out = NULL;
    if (!opt->path == !opt->arrays || opt->channels < 1 || opt->side < 1)
        return dfcl_fail(err, DFCL_USAGE, "data: expected a folder or arrays, channels and a side");
    if (opt->arrays && (opt->arrays->count < 1 || opt->arrays->count > INT32_MAX))
        return dfcl_fail(err, DFCL_USAGE, "data in memory: expected 1 to %d samples, found %lld", INT32_MAX, (long long)opt->arrays->count);
    struct dfcl_dataset *ds = dfcl_calloc(ctx, 1, sizeof *ds, err);
    if (!ds)
        return DFCL_NOMEM;
    ds->ctx = ctx;
    ds->opt = *opt;
    ds->opt.width = dfcl_width(opt->width, opt->side);
    dfcl_status s = DFCL_OK;
    if (pthread_mutex_init(&ds->lock, NULL) || pthread_cond_init(&ds->work, NULL) || pthread_cond_init(&ds->ready, NULL)) {
        s = dfcl_fail(err, DFCL_NOMEM, "data: no thread resources");
        goto out;
    }
    ds->sync_made = true;
    if (opt->arrays)
        ds->arrays = *opt->arrays;
    ds->opt.arrays = NULL;
    ds->opt.path = dfcl_strdup(ctx, opt->arrays ? "data in memory" : opt->path, err);
    if (!ds->opt.path)
        s = DFCL_NOMEM;
    else if (!dfcl_mul_size((size_t)opt->side, (size_t)ds->opt.width, &ds->values) || !dfcl_mul_size(ds->values, (size_t)opt->channels, &ds->values))
        s = too_large(&ds->opt, err);
    else
        s = find_samples(ds, err);
    if (!s)
        s = check_options(ds, err);
    if (s)
        goto out;
    size_t total, each = ds->layout == DFCL_LAYOUT_BYTES ? 1 : sizeof(float);
    uint64_t limit = opt->cache_bytes ? opt->cache_bytes : 256ull << 20;
    if (ds->latents)
        each *= opt->flip ? 4 : 2;
    if (!dfcl_mul_size(ds->values, each, &ds->sample_bytes) || (ds->arrays.count && !dfcl_mul_size(ds->scan.count, ds->sample_bytes, &total))) {
        s = too_large(&ds->opt, err);
        goto out;
    }
    if (!ds->arrays.count && !opt->random_crop && dfcl_mul_size(ds->scan.count, ds->sample_bytes, &total) && total <= limit) {
        ds->cache = dfcl_calloc(ctx, total, 1, err);
        if (!ds->cache) {
            s = DFCL_NOMEM;
            goto out;
        }
    }
    if (!ds->arrays.count && (!ds->latents || ds->cache)) /* of a cache the headers are enough */
        s = dfcl_dataset_preload(ds, err);
    if (!s)
        s = find_classes(ds, err);
    if (!s)
        s = make_fingerprint(ds, err);
    if (!s)
        s = split(ds, err);
    if (!s)
        s = dfcl_order_init(&ds->order, ctx, opt->seed, ds->train_count, err);
    if (!s && !is_kept(ds))
        s = dfcl_dataset_start(ds, err);
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
    dfcl_dataset_stop(ds);
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
    dfcl_latents_close(&ds->latents);
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
int64_t dfcl_dataset_bad(const struct dfcl_dataset *ds) {
    return ds->bad;
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
bool dfcl_dataset_in_arrays(const struct dfcl_dataset *ds) {
    return ds->arrays.count > 0;
}
const struct dfcl_latent_rgb *dfcl_dataset_rgb(const struct dfcl_dataset *ds) {
    static const struct dfcl_latent_rgb none;
    return ds->latents ? dfcl_latents_get(ds->latents).rgb : &none;
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
    struct dfcl_latents_draw draw = {ds->opt.seed, DFCL_STREAM_VAL, 3, (uint32_t)i};
    *label = ds->scan.items[item].label;
    if (is_kept(ds)) {
        expand(ds, item, NULL, false, &draw, x);
        return DFCL_OK;
    }
    unsigned char *bytes = dfcl_calloc(ds->ctx, 1, ds->sample_bytes, err);
    dfcl_status s = bytes ? dfcl_dataset_decode(ds, item, NULL, bytes, err) : DFCL_NOMEM;
    if (!s)
        expand(ds, item, bytes, false, &draw, x);
    dfcl_free(ds->ctx, bytes);
    return s;
}

dfcl_status dfcl_dataset_fetch(struct dfcl_dataset *ds, uint64_t first, int n, float *x, int32_t *label, dfcl_error *err) {
    const uint64_t batch = (uint64_t)DFCL_MAX(ds->opt.batch, 1);
    dfcl_status s = DFCL_OK;
    pthread_mutex_lock(&ds->lock);
    if (!is_kept(ds) && first != ds->head) {
        ds->generation++;
        ds->head = ds->taken = first;
        for (uint64_t i = 0; i < ds->slot_count; i++)
            ds->slots[i].state = DFCL_SLOT_EMPTY;
        pthread_cond_broadcast(&ds->work);
    }
    for (int i = 0; !s && i < n; i++) {
        uint64_t g = first + (uint64_t)i;
        size_t item = ds->items[dfcl_order_item(&ds->order, g)];
        uint32_t epoch = (uint32_t)(g / ds->train_count);
        bool mirror = ds->opt.flip && dfcl_uniform(ds->opt.seed, DFCL_STREAM_FLIP, epoch, (uint32_t)g, 0) <= 0.5f;
        struct dfcl_latents_draw draw = {ds->opt.seed, DFCL_STREAM_LATENT, (uint32_t)(g / batch), (uint32_t)g};
        float *to = x + (size_t)i * ds->values;
        label[i] = ds->scan.items[item].label;
        if (is_kept(ds)) {
            expand(ds, item, NULL, mirror, &draw, to);
            continue;
        }
        struct dfcl_slot *slot = &ds->slots[g % ds->slot_count];
        while (slot->state == DFCL_SLOT_EMPTY || slot->g != g)
            pthread_cond_wait(&ds->ready, &ds->lock);
        if (slot->state == DFCL_SLOT_FAILED) {
            s = slot->err.status;
            if (err)
                *err = slot->err;
        } else {
            /* No thread writes this slot before head has moved past it. */
            pthread_mutex_unlock(&ds->lock);
            expand(ds, item, slot->bytes, mirror, &draw, to);
            pthread_mutex_lock(&ds->lock);
        }
        slot->state = DFCL_SLOT_EMPTY;
        ds->head = g + 1;
        pthread_cond_signal(&ds->work);
    }
    pthread_mutex_unlock(&ds->lock);
    return s;
}
