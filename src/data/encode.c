/* difffit-cl/encode.h: pictures are read, hashed and cropped ahead on threads; the encoder takes them one by one; the cache (data/latents.h) is filled. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/parallel.h"
#include "base/sha256.h"
#include "data/decode.h"
#include "data/latents.h"
#include "data/scan.h"
#include "device/device.h"
#include "formats/png.h"

#include <difffit-cl/encode.h>
#include <difffit-cl/sample.h>
#include <difffit-cl/vae.h>

int dfcl_is_latent_cache(const char *path) {
    return dfcl_latents_here(path);
}

enum { AHEAD = 32 };

/* A picture read ahead: the i-th of those to be done lies in slot i mod AHEAD. */
struct slot {
    bool ready;
    struct dfcl_latents_source source;
    uint8_t *pixels;
    dfcl_error err; /* status DFCL_OK: none */
};

struct dfcl_encoder {
    const dfcl_context *ctx;
    char *data;
    struct dfcl_latents_settings settings;
    bool skip_bad;
    struct dfcl_scan scan;
    const char **names; /* [scan.count] relative to the folder */
    bool *good;         /* [scan.count] has latents */
    uint32_t *todo;     /* places in the scan, ascending */
    size_t todo_count, at;
    dfcl_vae *vae;
    struct dfcl_latents_writer *writer;
    float *picture, *moments;
    float *small; /* [3, height, width] mean colours */
    double *sums; /* of one picture, for the linear approximation; NULL: too many channels */
    struct dfcl_encode_progress progress;
    double began;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work, ready;
    bool sync_made, stop;
    pthread_t threads[DFCL_MAX_THREADS];
    int thread_count;
    size_t taken; /* next of todo for a thread */
    struct slot slots[AHEAD];
};

/* ---- reading ahead ---- */

static int64_t nanoseconds(const struct stat *st) {
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static unsigned nibble(char c) {
    return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static dfcl_status hash_bytes(const void *data, size_t n, unsigned char out[32], dfcl_error *err) {
    struct dfcl_sha256 h;
    char hex[65];
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    if ((s = dfcl_sha256_update(&h, data, n, err)) != DFCL_OK) {
        dfcl_sha256_abort(&h);
        return s;
    }
    s = dfcl_sha256_finish(&h, hex, err);
    for (int i = 0; !s && i < 32; i++)
        out[i] = (unsigned char)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    return s;
}

static uint32_t word(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Names go into JSON, and to where they are shown. */
static dfcl_status check_name(const char *path, const char *name, dfcl_error *err) {
    const unsigned char *p = (const unsigned char *)name;
    for (int k; *p; p += k)
        if ((k = dfcl_utf8_len(p, strlen((const char *)p))) == 0 || *p < 32 || *p == 127)
            return dfcl_fail(err, DFCL_FORMAT, "%s: expected a name in UTF-8 without control characters, found byte 0x%02x", path, *p);
    return DFCL_OK;
}

/* Reads, hashes and crops picture `item`. */
static dfcl_status load(const struct dfcl_encoder *e, size_t item, struct dfcl_latents_source *source, uint8_t *pixels, dfcl_error *err) {
    const char *path = e->scan.items[item].path;
    const struct dfcl_latents_settings *st = &e->settings;
    struct stat file;
    char *data = NULL;
    size_t n = 0;
    if (stat(path, &file) != 0)
        return dfcl_fail_errno(err, path, "cannot open");
    *source = (struct dfcl_latents_source){.name = e->names[item], .bytes = (int64_t)file.st_size, .mtime = nanoseconds(&file)};
    dfcl_status s = check_name(path, e->names[item], err);
    if (!s)
        s = dfcl_file_read(e->ctx, path, DFCL_IMAGE_MAX_FILE, &data, &n, err);
    if (!s)
        s = hash_bytes(data, n, source->sha256, err);
    /* A random crop is the file's own: the same whatever else is in the folder. */
    const struct dfcl_crop_draw draw = {st->seed, word(source->sha256), word(source->sha256 + 4)};
    if (!s)
        s = dfcl_decode_picture_memory(e->ctx, data, n, path, 3, st->size, st->size_width, st->alpha, st->random_crop ? &draw : NULL, pixels, err);
    dfcl_free(e->ctx, data);
    return s;
}

static void *ahead_thread(void *user) {
    struct dfcl_encoder *e = user;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        while (!e->stop && e->taken < e->todo_count && e->taken >= e->at + AHEAD)
            pthread_cond_wait(&e->work, &e->lock);
        if (e->stop || e->taken == e->todo_count)
            break;
        size_t i = e->taken++;
        struct slot *slot = &e->slots[i % AHEAD]; /* nobody else's until it is ready */
        pthread_mutex_unlock(&e->lock);
        dfcl_error err = {0};
        dfcl_status s = load(e, e->todo[i], &slot->source, slot->pixels, &err);
        err.status = s;
        slot->err = err;
        pthread_mutex_lock(&e->lock);
        slot->ready = true;
        pthread_cond_broadcast(&e->ready);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static dfcl_status start_threads(struct dfcl_encoder *e, int want, dfcl_error *err) {
    size_t bytes = (size_t)e->settings.size * (size_t)e->settings.size_width * 3;
    if (pthread_mutex_init(&e->lock, NULL) || pthread_cond_init(&e->work, NULL) || pthread_cond_init(&e->ready, NULL))
        return dfcl_fail(err, DFCL_NOMEM, "encode: no thread resources");
    e->sync_made = true;
    for (int i = 0; i < AHEAD; i++)
        if (!(e->slots[i].pixels = dfcl_calloc(e->ctx, bytes, 1, err)))
            return DFCL_NOMEM;
    want = DFCL_MIN(want > 0 ? want : e->ctx->p.threads, DFCL_MAX_THREADS);
    while (e->thread_count < want && pthread_create(&e->threads[e->thread_count], NULL, ahead_thread, e) == 0)
        e->thread_count++;
    return e->thread_count ? DFCL_OK : dfcl_fail(err, DFCL_NOMEM, "encode: no thread for reading pictures");
}

/* ---- opening ---- */

static dfcl_status open_vae(struct dfcl_encoder *e, dfcl_device *dev, const struct dfcl_encode_params *p, dfcl_error *err) {
    struct dfcl_vae_params vp = {.path = p->vae, .only_encoder = !p->preview, .max_memory = p->max_memory};
    struct dfcl_latents_settings *st = &e->settings;
    dfcl_status s = dfcl_vae_open(&e->vae, dev, &vp, err);
    if (s)
        return s;
    memcpy(st->vae, dfcl_vae_encoder_hash(e->vae), sizeof st->vae);
    const struct dfcl_vae_shape *sh = dfcl_vae_get_shape(e->vae);
    if (sh->channels != 3)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected an autoencoder of pictures with 3 channels, found %d", p->vae, sh->channels);
    for (int k = 0; k < 2; k++) {
        const int side = k ? st->size_width : st->size;
        if (side < sh->factor || side % sh->factor || side > DFCL_IMAGE_MAX_SIDE)
            return dfcl_fail(err, DFCL_USAGE, "size: expected a multiple of %d, found %d", sh->factor, side);
    }
    st->scale = sh->scale;
    st->shift = sh->shift;
    st->channels = sh->latent_channels;
    st->side = st->size / sh->factor;
    st->side_width = st->size_width / sh->factor;
    size_t values = (size_t)st->channels * dfcl_latents_plane(st), pixels = 3 * (size_t)st->size * (size_t)st->size_width;
    e->picture = dfcl_calloc(e->ctx, pixels, sizeof *e->picture, err);
    e->moments = e->picture ? dfcl_calloc(e->ctx, values, 4 * sizeof *e->moments, err) : NULL;
    const size_t sums = dfcl_latent_rgb_sums(st->channels);
    if (!e->moments || !sums)
        return e->moments ? DFCL_OK : DFCL_NOMEM;
    e->small = dfcl_calloc(e->ctx, dfcl_latents_plane(st), 3 * sizeof *e->small, err);
    e->sums = e->small ? dfcl_calloc(e->ctx, sums, sizeof *e->sums, err) : NULL;
    return e->sums ? DFCL_OK : DFCL_NOMEM;
}

static dfcl_status find_pictures(struct dfcl_encoder *e, dfcl_error *err) {
    if (dfcl_latents_here(e->data))
        return dfcl_fail(err, DFCL_USAGE, "%s: expected a folder of pictures, found a cache of latents", e->data);
    dfcl_status s = dfcl_scan_folder(e->ctx, e->data, &e->scan, err);
    if (!s && e->scan.latent)
        s = dfcl_fail(err, DFCL_USAGE, "%s: expected a folder of pictures, found one of latents", e->data);
    if (s)
        return s;
    e->names = dfcl_calloc(e->ctx, e->scan.count, sizeof *e->names, err);
    e->good = e->names ? dfcl_calloc(e->ctx, e->scan.count, sizeof *e->good, err) : NULL;
    e->todo = e->good ? dfcl_calloc(e->ctx, e->scan.count, sizeof *e->todo, err) : NULL;
    for (size_t i = 0; e->todo && i < e->scan.count; i++) {
        e->names[i] = e->scan.items[i].path + strlen(e->data);
        e->names[i] += strspn(e->names[i], "/");
    }
    return e->todo ? DFCL_OK : DFCL_NOMEM;
}

/* What is there already is not opened again. */
static void find_work(struct dfcl_encoder *e) {
    for (size_t i = 0; i < e->scan.count; i++) {
        struct stat file;
        bool there = stat(e->scan.items[i].path, &file) == 0;
        struct dfcl_latents_source source = {.name = e->names[i]};
        if (there) {
            source.bytes = (int64_t)file.st_size;
            source.mtime = nanoseconds(&file);
        }
        e->good[i] = there && dfcl_latents_writer_keep(e->writer, &source, false);
        e->progress.kept += e->good[i];
        if (!e->good[i])
            e->todo[e->todo_count++] = (uint32_t)i;
    }
    e->progress.total = (int64_t)e->scan.count;
    e->progress.done = e->progress.kept;
}

/* A cache among the pictures would be a class the next time. `out` may not be there yet, but the folder that it comes into. */
static dfcl_status check_apart(const struct dfcl_encoder *e, const char *out, dfcl_error *err) {
    char *data = realpath(e->data, NULL), *to = realpath(out, NULL), *copy = dfcl_strdup(e->ctx, out, err);
    if (copy && !to) {
        for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/';)
            copy[--n] = 0;
        char *slash = strrchr(copy, '/');
        if (slash)
            *slash = 0;
        to = realpath(!slash ? "." : *copy ? copy : "/", NULL);
    }
    size_t n = data ? strlen(data) : 0;
    dfcl_status s = copy ? DFCL_OK : DFCL_NOMEM;
    if (copy && data && to && !strncmp(to, data, n) && (!to[n] || to[n] == '/'))
        s = dfcl_fail(err, DFCL_USAGE, "%s: expected a folder outside of the pictures in %s", out, e->data);
    free(data);
    free(to);
    dfcl_free(e->ctx, copy);
    return s;
}

static dfcl_status parse_type(const char *name, enum dfcl_dtype *out, dfcl_error *err) {
    *out = !name || !strcmp(name, "f32") ? DFCL_F32 : !strcmp(name, "f16") ? DFCL_F16 : !strcmp(name, "bf16") ? DFCL_BF16 : DFCL_DTYPE_COUNT;
    return *out == DFCL_DTYPE_COUNT ? dfcl_fail(err, DFCL_USAGE, "type: expected f32, f16 or bf16, found %s", name) : DFCL_OK;
}

dfcl_status dfcl_encoder_create(dfcl_encoder **out, dfcl_device *dev, const struct dfcl_encode_params *p, dfcl_error *err) {
    *out = NULL;
    if (!p->vae || !p->data || !p->out || p->size < 0 || p->size_width < 0)
        return dfcl_fail(err, DFCL_USAGE, "encode: expected an autoencoder, a folder of pictures, a folder for the latents and a size");
    struct dfcl_encoder *e = dfcl_calloc(dev->ctx, 1, sizeof *e, err);
    if (!e)
        return DFCL_NOMEM;
    e->ctx = dev->ctx;
    e->skip_bad = p->skip_bad != 0;
    e->settings.size = p->size ? p->size : 256;
    e->settings.size_width = p->size && p->size_width ? p->size_width : e->settings.size;
    e->settings.flips = p->flip != 0;
    e->data = dfcl_strdup(e->ctx, p->data, err);
    dfcl_status s = e->data ? dfcl_picture_options(p->crop, p->alpha, &e->settings.random_crop, &e->settings.alpha, err) : DFCL_NOMEM;
    e->settings.seed = e->settings.random_crop ? p->seed : 0;
    if (!s)
        s = parse_type(p->dtype, &e->settings.type, err);
    if (!s)
        s = find_pictures(e, err);
    if (!s)
        s = check_apart(e, p->out, err);
    if (!s)
        s = open_vae(e, dev, p, err);
    if (!s)
        s = dfcl_latents_writer_open(&e->writer, e->ctx, p->out, &e->settings, p->save_seconds, err);
    if (!s) {
        find_work(e);
        s = start_threads(e, p->threads, err);
    }
    e->began = dfcl_now();
    if (s)
        dfcl_encoder_destroy(&e);
    *out = e;
    return s;
}

void dfcl_encoder_destroy(dfcl_encoder **ep) {
    struct dfcl_encoder *e = *ep;
    if (!e)
        return;
    if (e->sync_made) {
        pthread_mutex_lock(&e->lock);
        e->stop = true;
        pthread_cond_broadcast(&e->work);
        pthread_mutex_unlock(&e->lock);
        for (int i = 0; i < e->thread_count; i++)
            pthread_join(e->threads[i], NULL);
        pthread_mutex_destroy(&e->lock);
        pthread_cond_destroy(&e->work);
        pthread_cond_destroy(&e->ready);
    }
    for (int i = 0; i < AHEAD; i++)
        dfcl_free(e->ctx, e->slots[i].pixels);
    dfcl_latents_writer_close(&e->writer);
    dfcl_vae_close(&e->vae);
    dfcl_scan_free(e->ctx, &e->scan);
    dfcl_free(e->ctx, e->names);
    dfcl_free(e->ctx, e->good);
    dfcl_free(e->ctx, e->todo);
    dfcl_free(e->ctx, e->picture);
    dfcl_free(e->ctx, e->moments);
    dfcl_free(e->ctx, e->small);
    dfcl_free(e->ctx, e->sums);
    dfcl_free(e->ctx, e->data);
    dfcl_free(e->ctx, e);
    *ep = NULL;
}

/* ---- a picture ---- */

static void expand(const uint8_t *pixels, const struct dfcl_latents_settings *st, bool mirror, float *out) {
    const size_t h = (size_t)st->size, w = (size_t)st->size_width;
    for (size_t c = 0; c < 3; c++)
        for (size_t y = 0; y < h; y++)
            for (size_t x = 0; x < w; x++)
                out[(c * h + y) * w + x] = (float)pixels[(y * w + (mirror ? w - 1 - x : x)) * 3 + c] / 127.5f - 1.0f;
}

static dfcl_status encode(struct dfcl_encoder *e, const struct slot *slot, dfcl_error *err) {
    const struct dfcl_latents_settings *st = &e->settings;
    size_t values = (size_t)st->channels * dfcl_latents_plane(st);
    dfcl_status s = DFCL_OK;
    for (int flip = 0; !s && flip <= st->flips; flip++) {
        float *m = e->moments + (flip ? 2 * values : 0);
        expand(slot->pixels, st, flip != 0, e->picture);
        s = dfcl_vae_encode(e->vae, 1, st->size, st->size_width, e->picture, m, m + values, err);
    }
    if (s) {
        dfcl_error_prefix(err, "%s", e->scan.items[e->todo[e->at]].path);
        return s;
    }
    struct dfcl_latents_source source = slot->source;
    source.rgb = e->sums;
    if (e->sums) {
        dfcl_latent_rgb_average(slot->pixels, st->size / st->side, st->side, st->side_width, e->small);
        dfcl_latent_rgb_picture(st->channels, dfcl_latents_plane(st), e->moments, st->scale, st->shift, e->small, e->sums);
    }
    e->progress.encoded++;
    return dfcl_latents_writer_add(e->writer, &source, e->moments, err);
}

static dfcl_status take(struct dfcl_encoder *e, struct slot *slot, dfcl_error *err) {
    dfcl_status s = slot->err.status;
    size_t item = e->todo[e->at];
    if (s && err)
        *err = slot->err;
    if (!s && dfcl_latents_writer_keep(e->writer, &slot->source, true)) { /* touched, not changed */
        e->progress.kept++;
        e->good[item] = true;
        return DFCL_OK;
    }
    if (s && e->skip_bad && (s == DFCL_FORMAT || s == DFCL_IO)) {
        e->progress.bad++;
        dfcl_log(e->ctx, DFCL_LOG_WARN, "left out: %s", slot->err.msg);
        return DFCL_OK;
    }
    if (!s)
        s = encode(e, slot, err);
    e->good[item] = !s;
    return s;
}

dfcl_status dfcl_encoder_step(dfcl_encoder *e, struct dfcl_encode_progress *progress, int *done, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (e->at < e->todo_count) {
        struct slot *slot = &e->slots[e->at % AHEAD];
        pthread_mutex_lock(&e->lock);
        while (!slot->ready)
            pthread_cond_wait(&e->ready, &e->lock);
        pthread_mutex_unlock(&e->lock);
        s = take(e, slot, err);
        pthread_mutex_lock(&e->lock);
        slot->ready = false;
        e->at++;
        pthread_cond_broadcast(&e->work);
        pthread_mutex_unlock(&e->lock);
        e->progress.done++;
    }
    if (s) /* what was encoded is not lost */
        (void)!dfcl_latents_writer_flush(e->writer, NULL);
    *done = e->at == e->todo_count;
    e->progress.seconds = dfcl_now() - e->began;
    e->progress.images_per_second = e->progress.seconds > 0 ? (double)e->progress.encoded / e->progress.seconds : 0;
    e->progress.plan = e->progress.encoded ? dfcl_vae_plan(e->vae) : NULL;
    if (progress)
        *progress = e->progress;
    return s;
}

dfcl_status dfcl_encoder_save(dfcl_encoder *e, dfcl_error *err) {
    return dfcl_latents_writer_flush(e->writer, err);
}

dfcl_status dfcl_encoder_finish(dfcl_encoder *e, dfcl_error *err) {
    size_t n = 0;
    if (e->at < e->todo_count)
        return dfcl_fail(err, DFCL_USAGE, "%s: %zu pictures are still to be encoded", e->data, e->todo_count - e->at);
    const char **names = dfcl_calloc(e->ctx, e->scan.count, sizeof *names, err);
    int *labels = names ? dfcl_calloc(e->ctx, e->scan.count, sizeof *labels, err) : NULL;
    dfcl_status s = labels ? DFCL_OK : DFCL_NOMEM;
    for (size_t i = 0; !s && i < e->scan.count; i++)
        if (e->good[i]) {
            names[n] = e->names[i];
            labels[n++] = e->scan.items[i].label;
        }
    if (!s && !n)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: none of %zu pictures can be read", e->data, e->scan.count);
    if (!s)
        s = dfcl_latents_writer_finish(e->writer, e->data, &e->scan.classes, names, labels, n, e->progress.bad, err);
    dfcl_free(e->ctx, names);
    dfcl_free(e->ctx, labels);
    return s;
}

/* ---- preview ---- */

/* One column: the picture at pixels[i], what is made of it at pixels[n + i]. */
static dfcl_status rebuild(struct dfcl_encoder *e, size_t item, uint8_t *picture, uint8_t *rebuilt, dfcl_error *err) {
    const struct dfcl_latents_settings *st = &e->settings;
    size_t values = (size_t)st->channels * dfcl_latents_plane(st);
    struct dfcl_latents_source source;
    dfcl_status s = load(e, item, &source, picture, err);
    if (s)
        return s;
    expand(picture, st, false, e->picture);
    s = dfcl_vae_encode(e->vae, 1, st->size, st->size_width, e->picture, e->moments, NULL, err);
    for (size_t k = 0; !s && k < values; k++)
        e->moments[k] = (float)(st->scale * (e->moments[k] - st->shift));
    if (!s)
        s = dfcl_vae_decode(e->vae, 1, st->side, st->side_width, e->moments, e->picture, err);
    if (!s)
        dfcl_pixels(e->picture, 1, 3, st->size, st->size_width, rebuilt);
    return s;
}

dfcl_status dfcl_encoder_preview(dfcl_encoder *e, const char *path, int n, dfcl_error *err) {
    size_t each = 3 * (size_t)e->settings.size * (size_t)e->settings.size_width, good = 0, seen = 0;
    for (size_t i = 0; i < e->scan.count; i++)
        good += e->good[i];
    size_t columns = DFCL_MIN((size_t)DFCL_MAX(n, 1), good), done = 0;
    if (!columns)
        return dfcl_fail(err, DFCL_USAGE, "%s: no picture is encoded yet", path);
    uint8_t *pixels = dfcl_calloc(e->ctx, 2 * columns, each, err), *grid = NULL;
    dfcl_status s = pixels ? DFCL_OK : DFCL_NOMEM;
    for (size_t i = 0; !s && i < e->scan.count && done < columns; i++) {
        if (!e->good[i])
            continue;
        if (seen++ * columns / good < done) /* evenly spread: picture k of the good ones belongs to column k columns / good */
            continue;
        s = rebuild(e, i, pixels + done * each, pixels + (columns + done) * each, err);
        done++;
    }
    int width, height;
    if (!s)
        s = dfcl_grid(e->ctx, pixels, (int)(2 * columns), e->settings.size, e->settings.size_width, 3, (int)columns, 1, &grid, &width, &height, err);
    if (!s)
        s = dfcl_png_save(e->ctx, path, grid, width, height, 3, NULL, err);
    dfcl_free(e->ctx, grid);
    dfcl_free(e->ctx, pixels);
    return s;
}
