/* Writing the cache of latents: shard by shard, so that little is lost when it is cut short; the index last. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "data/latents.h"

#define SHARD_BYTES ((size_t)64 << 20)
#define SHARD_ROWS 4096
#define SAVE_SECONDS 60.0

/* A row of a shard on disk. */
struct row {
    const char *name; /* the shard's */
    uint32_t shard, row;
    bool live; /* still wanted */
};

struct dfcl_latents_writer {
    const dfcl_context *ctx;
    char *path;
    struct dfcl_latents_settings settings;
    int lock_fd;
    struct dfcl_latents_shard *shards;
    size_t shard_count, shard_cap;
    struct row *rows; /* by name, then shard */
    size_t row_count, row_cap;
    unsigned next; /* number of the next shard */

    /* Rows that wait for a shard. */
    size_t values, capacity, waiting; /* values of one picture: mean and logvar, and those of its mirror image */
    float *moments;                   /* [capacity][values] */
    int64_t *stat;                    /* [capacity][2] */
    unsigned char *sha256;            /* [capacity][32] */
    double *rgb, *rgb_row;            /* [capacity + 1][sums]: of rows without, zeros; room for one row more */
    size_t sums;                      /* 0: too many channels for the linear approximation */
    struct dfcl_list names;
    double since, save_seconds; /* the first has waited since, and may so long */
};

/* ---- opening ---- */

static int by_name_and_shard(const void *a, const void *b) {
    const struct row *x = a, *y = b;
    int d = strcmp(x->name, y->name);
    return d ? d : (x->shard > y->shard) - (x->shard < y->shard);
}

static dfcl_status add_shard(struct dfcl_latents_writer *w, const char *file, bool live, dfcl_error *err) {
    void *p = w->shards;
    dfcl_status s = dfcl_grow(w->ctx, &p, &w->shard_cap, w->shard_count + 1, sizeof *w->shards, err);
    w->shards = p;
    if (!s)
        s = dfcl_latents_shard_open(&w->shards[w->shard_count], w->ctx, w->path, file, &w->settings, err);
    if (s)
        return s;
    const struct dfcl_latents_shard *sh = &w->shards[w->shard_count++];
    p = w->rows;
    s = dfcl_grow(w->ctx, &p, &w->row_cap, w->row_count + sh->count, sizeof *w->rows, err);
    w->rows = p;
    for (size_t i = 0; !s && i < sh->count; i++)
        w->rows[w->row_count++] = (struct row){sh->names[i], (uint32_t)(w->shard_count - 1), (uint32_t)i, live};
    return s;
}

/* "shard-000012.safetensors" -> 12; -1 for other names. */
static int shard_number(const char *name) {
    char want[40];
    int n = -1;
    if (sscanf(name, "shard-%d.safetensors", &n) != 1 || n < 0)
        return -1;
    snprintf(want, sizeof want, "shard-%06d.safetensors", n);
    return strcmp(name, want) ? -1 : n;
}

/* Nothing but a cache may lie in the folder; what a killed process was writing goes. */
static dfcl_status look_around(struct dfcl_latents_writer *w, dfcl_error *err) {
    struct dfcl_list list;
    dfcl_status s = dfcl_list_dir(w->ctx, w->path, &list, err);
    for (size_t i = 0; !s && i < list.count; i++) {
        const char *name = list.names[i];
        int number = shard_number(name);
        bool cut = strstr(name, ".tmp-") && (!strncmp(name, "shard-", 6) || !strncmp(name, DFCL_LATENTS_INDEX, sizeof DFCL_LATENTS_INDEX - 1));
        if (number >= 0) {
            w->next = DFCL_MAX(w->next, (unsigned)number + 1);
            s = add_shard(w, name, false, err);
        } else if (cut) {
            char *p = dfcl_sprintf(w->ctx, err, "%s/%s", w->path, name);
            s = p ? dfcl_remove_tree(w->ctx, p, err) : DFCL_NOMEM;
            dfcl_free(w->ctx, p);
        } else if (strcmp(name, DFCL_LATENTS_INDEX) && strcmp(name, DFCL_LATENTS_LOCK)) {
            s = dfcl_fail(err, DFCL_USAGE, "%s: expected a new folder or a cache of latents, found \"%s\" in it", w->path, name);
        }
    }
    dfcl_list_free(w->ctx, &list);
    return s;
}

static dfcl_status take_lock(struct dfcl_latents_writer *w, dfcl_error *err) {
    char *path = dfcl_sprintf(w->ctx, err, "%s/%s", w->path, DFCL_LATENTS_LOCK);
    dfcl_status s = path ? dfcl_lock_take(path, &w->lock_fd, err) : DFCL_NOMEM;
    dfcl_free(w->ctx, path);
    return s;
}

static dfcl_status take_buffers(struct dfcl_latents_writer *w, dfcl_error *err) {
    const struct dfcl_latents_settings *st = &w->settings;
    size_t bytes;
    if (!dfcl_mul_size(dfcl_latents_plane(st), (size_t)st->channels * (st->flips ? 4 : 2), &w->values) ||
        !dfcl_mul_size(w->values, sizeof(float), &bytes))
        return dfcl_fail(err, DFCL_NOMEM, "%s: latents of %d x %d x %d are too large", w->path, st->channels, st->side, dfcl_width(st->side_width, st->side));
    w->capacity = DFCL_MAX(DFCL_MIN(SHARD_BYTES / bytes, SHARD_ROWS), 1);
    w->moments = dfcl_calloc(w->ctx, w->capacity, bytes, err);
    w->stat = dfcl_calloc(w->ctx, w->capacity, 2 * sizeof *w->stat, err);
    w->sha256 = dfcl_calloc(w->ctx, w->capacity, 32, err);
    w->sums = dfcl_latent_rgb_sums(st->channels);
    w->rgb = w->sums ? dfcl_calloc(w->ctx, w->capacity + 1, w->sums * sizeof *w->rgb, err) : NULL;
    w->rgb_row = w->rgb ? w->rgb + w->capacity * w->sums : NULL;
    return w->moments && w->stat && w->sha256 && (w->rgb || !w->sums) ? DFCL_OK : DFCL_NOMEM;
}

dfcl_status dfcl_latents_writer_open(struct dfcl_latents_writer **out, const dfcl_context *ctx, const char *path,
                                     const struct dfcl_latents_settings *settings, double save_seconds, dfcl_error *err) {
    *out = NULL;
    struct dfcl_latents_writer *w = dfcl_calloc(ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    w->ctx = ctx;
    w->lock_fd = -1;
    w->settings = *settings;
    w->save_seconds = save_seconds > 0 ? save_seconds : SAVE_SECONDS;
    if (!w->settings.random_crop)
        w->settings.seed = 0;
    w->path = dfcl_strdup(ctx, path, err);
    dfcl_status s = w->path ? dfcl_mkdirs(ctx, path, err) : DFCL_NOMEM;
    if (!s && !dfcl_latents_here(path)) { /* a folder of somebody else's is refused untouched */
        struct dfcl_list list;
        s = dfcl_list_dir(ctx, path, &list, err);
        if (!s && list.count)
            s = dfcl_fail(err, DFCL_USAGE, "%s: expected a new folder or a cache of latents, found \"%s\" in it", path, list.names[0]);
        dfcl_list_free(ctx, &list);
    }
    if (!s)
        s = take_lock(w, err);
    if (!s)
        s = look_around(w, err);
    if (!s)
        s = take_buffers(w, err);
    if (!s && w->row_count)
        qsort(w->rows, w->row_count, sizeof *w->rows, by_name_and_shard);
    if (s)
        dfcl_latents_writer_close(&w);
    *out = w;
    return s;
}

void dfcl_latents_writer_close(struct dfcl_latents_writer **wp) {
    struct dfcl_latents_writer *w = *wp;
    if (!w)
        return;
    for (size_t i = 0; i < w->shard_count; i++)
        dfcl_latents_shard_close(w->ctx, &w->shards[i]);
    if (w->lock_fd >= 0)
        close(w->lock_fd);
    dfcl_list_free(w->ctx, &w->names);
    dfcl_free(w->ctx, w->shards);
    dfcl_free(w->ctx, w->rows);
    dfcl_free(w->ctx, w->moments);
    dfcl_free(w->ctx, w->stat);
    dfcl_free(w->ctx, w->sha256);
    dfcl_free(w->ctx, w->rgb);
    dfcl_free(w->ctx, w->path);
    dfcl_free(w->ctx, w);
    *wp = NULL;
}

/* ---- rows ---- */

/* First row that is not before `name`. */
static size_t lower_bound(const struct dfcl_latents_writer *w, const char *name) {
    size_t lo = 0, hi = w->row_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(w->rows[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The sums of a row, in w->rgb_row; NULL: it has none. */
static const double *row_rgb(const struct dfcl_latents_writer *w, const struct row *r) {
    const struct dfcl_tensor_view *v = w->shards[r->shard].rgb;
    if (!v)
        return NULL;
    memcpy(w->rgb_row, v->part[0] + (size_t)r->row * w->sums * sizeof *w->rgb_row, w->sums * sizeof *w->rgb_row);
    return w->rgb_row;
}

static void row_source(const struct dfcl_latents_writer *w, const struct row *r, struct dfcl_latents_source *out) {
    const struct dfcl_latents_shard *sh = &w->shards[r->shard];
    int64_t stat[2];
    memcpy(stat, sh->stat->part[0] + (size_t)r->row * sizeof stat, sizeof stat); /* little-endian, like every machine this runs on */
    *out = (struct dfcl_latents_source){.name = r->name, .bytes = stat[0], .mtime = stat[1]};
    memcpy(out->sha256, sh->sha256->part[0] + (size_t)r->row * 32, 32);
}

bool dfcl_latents_writer_keep(struct dfcl_latents_writer *w, const struct dfcl_latents_source *source, bool with_hash) {
    for (size_t i = lower_bound(w, source->name); i < w->row_count && !strcmp(w->rows[i].name, source->name); i++) {
        struct dfcl_latents_source there;
        row_source(w, &w->rows[i], &there);
        bool same = with_hash ? !memcmp(there.sha256, source->sha256, 32) : there.bytes == source->bytes && there.mtime == source->mtime;
        if (!same)
            continue;
        w->rows[i].live = true;
        return true;
    }
    return false;
}

static dfcl_status check_name(const struct dfcl_latents_writer *w, const char *name, dfcl_error *err) {
    const unsigned char *p = (const unsigned char *)name;
    for (int k; *p; p += k)
        if ((k = dfcl_utf8_len(p, strlen((const char *)p))) == 0)
            return dfcl_fail(err, DFCL_FORMAT, "%s: expected names of pictures in UTF-8, found \"%s\"", w->path, name);
    return DFCL_OK;
}

dfcl_status dfcl_latents_writer_add(struct dfcl_latents_writer *w, const struct dfcl_latents_source *source, const float *moments, dfcl_error *err) {
    dfcl_status s = check_name(w, source->name, err);
    if (!s)
        s = dfcl_list_add(w->ctx, &w->names, source->name, err);
    if (s)
        return s;
    size_t i = w->waiting++;
    if (!i)
        w->since = dfcl_now();
    memcpy(w->moments + i * w->values, moments, w->values * sizeof *moments);
    w->stat[2 * i] = source->bytes;
    w->stat[2 * i + 1] = source->mtime;
    memcpy(w->sha256 + 32 * i, source->sha256, 32);
    if (w->sums && source->rgb)
        memcpy(w->rgb + i * w->sums, source->rgb, w->sums * sizeof *w->rgb);
    else if (w->sums)
        memset(w->rgb + i * w->sums, 0, w->sums * sizeof *w->rgb);
    return w->waiting == w->capacity || dfcl_now() - w->since > w->save_seconds ? dfcl_latents_writer_flush(w, err) : DFCL_OK;
}

static char *names_json(const struct dfcl_latents_writer *w, dfcl_error *err) {
    struct dfcl_text t = {.ctx = w->ctx};
    for (size_t i = 0; i < w->waiting; i++) {
        dfcl_text_add(&t, i ? "," : "[", 1);
        dfcl_text_json_string(&t, w->names.names[i]);
    }
    dfcl_text_add(&t, "]", 1);
    char *out = t.failed ? NULL : dfcl_strdup(w->ctx, t.s, err);
    dfcl_text_finish(&t);
    return out;
}

static dfcl_status write_shard(struct dfcl_latents_writer *w, const char *path, dfcl_error *err) {
    static const char *const moments[4] = {"mean", "logvar", "mean_flip", "logvar_flip"};
    const struct dfcl_latents_settings *st = &w->settings;
    const int parts = st->flips ? 4 : 2;
    const int64_t n = (int64_t)w->waiting, shape[4] = {n, st->channels, st->side, dfcl_width(st->side_width, st->side)}, stat[2] = {n, 2}, sha[2] = {n, 32},
                  rgb[2] = {n, (int64_t)w->sums};
    const size_t each = w->values / (size_t)parts;
    struct dfcl_text settings = {.ctx = w->ctx};
    struct dfcl_st_writer *f = NULL;
    dfcl_latents_settings_text(&settings, st);
    char *names = names_json(w, err);
    dfcl_status s = names && !settings.failed ? dfcl_st_writer_create(&f, w->ctx, path, err) : dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", path);
    if (!s)
        s = dfcl_st_writer_meta(f, "format", DFCL_LATENTS_FORMAT, err);
    if (!s)
        s = dfcl_st_writer_meta(f, "settings", settings.s, err);
    if (!s)
        s = dfcl_st_writer_meta(f, "files", names, err);
    if (!s) /* larger element types first */
        s = dfcl_st_writer_tensor(f, "stat", DFCL_I64, stat, 2, err);
    if (!s && w->sums)
        s = dfcl_st_writer_tensor(f, "rgb", DFCL_F64, rgb, 2, err);
    for (int k = 0; !s && k < parts; k++)
        s = dfcl_st_writer_tensor(f, moments[k], st->type, shape, 4, err);
    if (!s)
        s = dfcl_st_writer_tensor(f, "sha256", DFCL_U8, sha, 2, err);
    if (!s)
        s = dfcl_st_writer_data(f, w->stat, w->waiting * 2 * sizeof *w->stat, err);
    if (!s && w->sums)
        s = dfcl_st_writer_data(f, w->rgb, w->waiting * w->sums * sizeof *w->rgb, err);
    for (int k = 0; !s && k < parts; k++)
        for (size_t i = 0; !s && i < w->waiting; i++)
            s = dfcl_st_writer_f32(f, w->moments + i * w->values + (size_t)k * each, each, err);
    if (!s)
        s = dfcl_st_writer_data(f, w->sha256, w->waiting * 32, err);
    if (!s)
        s = dfcl_st_writer_finish(&f, err);
    dfcl_st_writer_destroy(&f);
    dfcl_text_finish(&settings);
    dfcl_free(w->ctx, names);
    return s;
}

dfcl_status dfcl_latents_writer_flush(struct dfcl_latents_writer *w, dfcl_error *err) {
    if (!w->waiting)
        return DFCL_OK;
    char file[40];
    snprintf(file, sizeof file, "shard-%06u.safetensors", w->next);
    char *path = dfcl_sprintf(w->ctx, err, "%s/%s", w->path, file);
    dfcl_status s = path ? write_shard(w, path, err) : DFCL_NOMEM;
    dfcl_free(w->ctx, path);
    if (s)
        return s;
    w->next++;
    w->waiting = 0;
    dfcl_list_free(w->ctx, &w->names);
    size_t before = w->row_count;
    s = add_shard(w, file, true, err); /* mapped, not read: what is written can be drawn on at once */
    if (!s && w->row_count > before)
        qsort(w->rows, w->row_count, sizeof *w->rows, by_name_and_shard);
    return s;
}

/* ---- the end ---- */

/* Classes of all rows, -1 for those that go: labels[shard][row] in one array, shard s at first[s]. */
struct marks {
    size_t *first, *live; /* [shards] */
    int *labels;
};

static void free_marks(const struct dfcl_latents_writer *w, struct marks *m) {
    dfcl_free(w->ctx, m->first);
    dfcl_free(w->ctx, m->live);
    dfcl_free(w->ctx, m->labels);
    memset(m, 0, sizeof *m);
}

/* The row of a picture: the newest, since a file that came back as it once was may be there twice. */
static const struct row *newest(const struct dfcl_latents_writer *w, const char *name) {
    const struct row *found = NULL;
    for (size_t k = lower_bound(w, name); k < w->row_count && !strcmp(w->rows[k].name, name); k++)
        found = w->rows[k].live ? &w->rows[k] : found;
    return found;
}

/* Picture by picture in the order given: how the rows came to lie in shards, and in how many goes, does not matter. */
static dfcl_status fit(const struct dfcl_latents_writer *w, const char *const *names, size_t count, struct dfcl_latent_rgb *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    if (!w->sums)
        return DFCL_OK;
    double *sum = dfcl_calloc(w->ctx, w->sums, sizeof *sum, err);
    if (!sum)
        return DFCL_NOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct row *r = newest(w, names[i]);
        const double *one = r ? row_rgb(w, r) : NULL;
        for (size_t k = 0; one && k < w->sums; k++)
            sum[k] += one[k];
    }
    dfcl_latent_rgb_fit(w->settings.channels, sum, out);
    dfcl_free(w->ctx, sum);
    return DFCL_OK;
}

static dfcl_status mark(struct dfcl_latents_writer *w, const char *const *names, const int *labels, size_t count, struct marks *m, dfcl_error *err) {
    size_t total = 0;
    m->first = dfcl_calloc(w->ctx, w->shard_count, sizeof *m->first, err);
    m->live = dfcl_calloc(w->ctx, w->shard_count, sizeof *m->live, err);
    m->labels = dfcl_calloc(w->ctx, w->row_count, sizeof *m->labels, err);
    if (!m->first || !m->live || !m->labels)
        return DFCL_NOMEM;
    for (size_t i = 0; i < w->shard_count; i++) {
        m->first[i] = total;
        total += w->shards[i].count;
    }
    memset(m->labels, 0xff, w->row_count * sizeof *m->labels); /* -1 */
    for (size_t i = 0; i < count; i++) {
        const struct row *found = newest(w, names[i]);
        if (!found)
            return dfcl_fail(err, DFCL_ERROR, "%s: no latents of %s", w->path, names[i]);
        m->labels[m->first[found->shard] + found->row] = labels[i];
        m->live[found->shard]++;
    }
    return DFCL_OK;
}

/* Copies the rows of shards that are wanted to less than half into new ones. */
static dfcl_status compact(struct dfcl_latents_writer *w, const struct marks *m, dfcl_error *err) {
    size_t shards = w->shard_count;
    float *moments = dfcl_calloc(w->ctx, w->values, sizeof *moments, err);
    dfcl_status s = moments ? DFCL_OK : DFCL_NOMEM;
    for (size_t i = 0; !s && i < shards; i++) {
        if (!m->live[i] || m->live[i] * 2 >= w->shards[i].count)
            continue;
        for (size_t k = 0; !s && k < w->shards[i].count; k++) {
            if (m->labels[m->first[i] + k] < 0)
                continue;
            struct dfcl_latents_source source;
            row_source(w, &(struct row){w->shards[i].names[k], (uint32_t)i, (uint32_t)k, true}, &source);
            source.rgb = row_rgb(w, &(struct row){.shard = (uint32_t)i, .row = (uint32_t)k});
            s = dfcl_latents_shard_read(&w->shards[i], k, false, moments, err);
            if (!s && w->settings.flips)
                s = dfcl_latents_shard_read(&w->shards[i], k, true, moments + w->values / 2, err);
            if (!s)
                s = dfcl_latents_writer_add(w, &source, moments, err);
        }
    }
    dfcl_free(w->ctx, moments);
    return s ? s : dfcl_latents_writer_flush(w, err);
}

static dfcl_status write_index(struct dfcl_latents_writer *w, const char *source, const struct dfcl_list *classes, const struct marks *m,
                               const struct dfcl_latent_rgb *rgb, int64_t skipped, dfcl_error *err) {
    struct dfcl_text t = {.ctx = w->ctx};
    bool first = true;
    dfcl_text_addf(&t, "{\"format\":\"%s\",\n\"settings\":", DFCL_LATENTS_FORMAT);
    dfcl_latents_settings_text(&t, &w->settings);
    dfcl_text_addf(&t, ",\n\"source\":");
    dfcl_text_json_string(&t, source);
    if (rgb->channels) {
        dfcl_text_addf(&t, ",\n\"rgb\":");
        dfcl_latent_rgb_text(&t, rgb);
    }
    dfcl_text_addf(&t, ",\n\"skipped\":%" PRId64 ",\n\"classes\":[", skipped);
    for (size_t i = 0; i < classes->count; i++) {
        dfcl_text_addf(&t, i ? "," : "");
        dfcl_text_json_string(&t, classes->names[i]);
    }
    dfcl_text_addf(&t, "],\n\"shards\":[");
    for (size_t i = 0; i < w->shard_count; i++) {
        if (!m->live[i])
            continue;
        dfcl_text_addf(&t, "%s\n{\"file\":\"%s\",\"labels\":[", first ? "" : ",", w->shards[i].file);
        for (size_t k = 0; k < w->shards[i].count; k++)
            dfcl_text_addf(&t, k ? ",%d" : "%d", m->labels[m->first[i] + k]);
        dfcl_text_addf(&t, "]}");
        first = false;
    }
    dfcl_text_addf(&t, "\n]}\n");
    char *path = dfcl_sprintf(w->ctx, err, "%s/%s", w->path, DFCL_LATENTS_INDEX);
    dfcl_status s = path && !t.failed ? dfcl_file_write(w->ctx, path, t.s, t.n, err) : dfcl_fail(err, DFCL_NOMEM, "%s: out of memory", w->path);
    dfcl_text_finish(&t);
    dfcl_free(w->ctx, path);
    return s;
}

static dfcl_status remove_dead(struct dfcl_latents_writer *w, const struct marks *m, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; !s && i < w->shard_count; i++) {
        if (m->live[i])
            continue;
        char *path = dfcl_sprintf(w->ctx, err, "%s/%s", w->path, w->shards[i].file);
        s = path ? dfcl_remove_tree(w->ctx, path, err) : DFCL_NOMEM;
        dfcl_free(w->ctx, path);
    }
    return s;
}

dfcl_status dfcl_latents_writer_finish(struct dfcl_latents_writer *w, const char *source, const struct dfcl_list *classes, const char *const *names,
                                       const int *labels, size_t count, int64_t skipped, dfcl_error *err) {
    struct marks m = {0};
    struct dfcl_latent_rgb rgb;
    dfcl_status s = dfcl_latents_writer_flush(w, err);
    if (!s)
        s = mark(w, names, labels, count, &m, err);
    if (!s)
        s = compact(w, &m, err);
    free_marks(w, &m);
    if (!s)
        s = mark(w, names, labels, count, &m, err);
    if (!s)
        s = fit(w, names, count, &rgb, err);
    if (!s)
        s = write_index(w, source, classes, &m, &rgb, skipped, err);
    if (!s)
        s = remove_dead(w, &m, err);
    free_marks(w, &m);
    return s;
}
