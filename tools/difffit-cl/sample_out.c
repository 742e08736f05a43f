#include "sample_out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcasecmp(s + n - m, tail);
}

enum sample_layout sample_layout_of(const char *path) {
    return ends_with(path, ".png") ? SAMPLE_GRID : ends_with(path, ".npz") ? SAMPLE_NPZ : SAMPLE_FOLDER;
}

static dfcl_status no_place(dfcl_error *err, const char *path, const char *why) {
    err->status = DFCL_IO;
    snprintf(err->msg, sizeof err->msg, "%s: %s", path, why);
    return DFCL_IO;
}

static dfcl_status no_memory(dfcl_error *err) {
    err->status = DFCL_NOMEM;
    snprintf(err->msg, sizeof err->msg, "out of memory");
    return DFCL_NOMEM;
}

/* folder: `path` is one, or will be made. */
static dfcl_status check_place(const char *path, bool folder, dfcl_error *err) {
    char dir[4096];
    struct stat st;
    bool there = stat(path, &st) == 0;
    if (there && folder != (bool)S_ISDIR(st.st_mode))
        return no_place(err, path,
                        folder ? "expected NAME.png, NAME.npz or a folder, found a file"
                               : "expected a file, found a folder");
    snprintf(dir, sizeof dir, "%s", path);
    for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/'; n--)
        dir[n - 1] = 0;
    char *slash = strrchr(dir, '/');
    if (!there || !folder) {
        if (slash)
            slash[slash == dir] = 0;
        else
            snprintf(dir, sizeof dir, ".");
    }
    if (access(dir, W_OK | X_OK) != 0) {
        char why[128];
        snprintf(why, sizeof why, "cannot create: %s", strerror(errno));
        return no_place(err, path, why);
    }
    return stat(dir, &st) == 0 && S_ISDIR(st.st_mode) ? DFCL_OK : no_place(err, path, "cannot create: Not a directory");
}

dfcl_status sample_out_check(const struct sample_out *o, dfcl_error *err) {
    dfcl_status s = o->path ? check_place(o->path, o->layout == SAMPLE_FOLDER, err) : DFCL_OK;
    return s || !o->latents_path ? s : check_place(o->latents_path, false, err);
}

static size_t values(const struct sample_out *o) {
    return (size_t)o->channels * (size_t)o->height * (size_t)o->width;
}
static size_t latent_values(const struct sample_out *o) {
    return (size_t)o->latent_channels * (size_t)o->latent_height * (size_t)o->latent_width;
}

dfcl_status sample_out_begin(struct sample_out *o, dfcl_error *err) {
    if ((o->path && o->layout == SAMPLE_GRID && !(o->pixels = calloc((size_t)o->n, values(o)))) ||
        (o->path && o->layout == SAMPLE_NPZ && !(o->labels = calloc((size_t)o->n, sizeof *o->labels))) ||
        (o->latents_path && !(o->latents = calloc((size_t)o->n, latent_values(o) * sizeof *o->latents))))
        return no_memory(err);
    return o->labels ? dfcl_npz_writer_create(&o->npz, o->c->ctx, o->path, o->n, o->height, o->width, o->channels, err)
                     : DFCL_OK;
}

/* The text chunks with `request`, and `more` pairs before it. */
static dfcl_status write_png(const struct sample_out *o, const char *path, const uint8_t *pixels, int w, int h,
                             const char *const *more, const char *request, dfcl_error *err) {
    const char *text[80];
    size_t k = 0;
    const char *const *const lists[] = {o->text, more};
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; lists[l] && lists[l][i] && k < 76; i++)
            text[k++] = lists[l][i];
    text[k++] = "request";
    text[k++] = request;
    text[k] = NULL;
    return dfcl_png_write(o->c->ctx, path, pixels, w, h, o->channels, text, err);
}

static dfcl_status write_one(const struct sample_out *o, int i, const uint8_t *pixels,
                             const struct dfcl_sample_request *q, const struct sample_line *l, dfcl_error *err) {
    char path[4096], id[32], number[32];
    unsigned of_line = q->number - l->number;
    snprintf(id, sizeof id, "%d", q->class_id);
    snprintf(number, sizeof number, "%u", q->number);
    if (o->layout == SAMPLE_PICTURE)
        snprintf(path, sizeof path, "%s", o->path);
    else if (!l->name)
        snprintf(path, sizeof path, "%s/%06d.png", o->path, i);
    else if (l->count == 1)
        snprintf(path, sizeof path, "%s/%s.png", o->path, l->name);
    else
        snprintf(path, sizeof path, "%s/%s-%06u.png", o->path, l->name, of_line);
    char *request = sample_line_text(l, q->number, 1);
    const char *const more[] = {"layout", "picture", "class", id, "number", number, NULL};
    dfcl_status s = request ? write_png(o, path, pixels, o->width, o->height, more, request, err) : no_memory(err);
    free(request);
    return s;
}

/* One latent to 8 bit, through the autoencoder where there is one. */
static dfcl_status make_pixels(const struct sample_out *o, const float *latent, uint8_t *pixels, dfcl_error *err) {
    if (!o->vae) {
        dfcl_pixels(latent, 1, o->channels, o->height, o->width, pixels);
        return DFCL_OK;
    }
    float *picture = malloc(values(o) * sizeof *picture);
    if (!picture)
        return no_memory(err);
    dfcl_status s = dfcl_vae_decode(o->vae, 1, o->latent_height, o->latent_width, latent, picture, err);
    if (!s)
        dfcl_pixels(picture, 1, o->channels, o->height, o->width, pixels);
    if (!s && o->c->verbose && o->done == 0)
        fprintf(stderr, "decoder: %s\n", dfcl_vae_plan(o->vae));
    free(picture);
    return s;
}

/* Picture number o->done. */
static dfcl_status add_one(struct sample_out *o, const float *latent, const struct dfcl_sample_request *q, const struct sample_line *l, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (o->latents)
        memcpy(o->latents + (size_t)o->done * latent_values(o), latent, latent_values(o) * sizeof *latent);
    if (o->path && o->layout == SAMPLE_GRID) {
        s = make_pixels(o, latent, o->pixels + (size_t)o->done * values(o), err);
    } else if (o->path) {
        uint8_t *pixels = malloc(values(o));
        if (!pixels)
            return no_memory(err);
        s = make_pixels(o, latent, pixels, err);
        if (!s && o->labels) {
            o->labels[o->done] = q->class_id;
            s = dfcl_npz_writer_add(o->npz, pixels, 1, err);
        } else if (!s) {
            s = write_one(o, o->done, pixels, q, l, err);
        }
        free(pixels);
    }
    o->done += !s;
    return s;
}

dfcl_status sample_out_add(struct sample_out *o, int count, const float *latents,
                           const struct dfcl_sample_request *requests, const struct sample_line *const *lines,
                           dfcl_error *err) {
    if (o->path && o->layout == SAMPLE_FOLDER && o->done == 0 && mkdir(o->path, 0777) != 0 && errno != EEXIST) {
        char why[128];
        snprintf(why, sizeof why, "cannot create folder: %s", strerror(errno));
        return no_place(err, o->path, why);
    }
    for (int i = 0; i < count; i++) {
        if (i && cli_interrupted()) /* decoding takes its time; what is done is written */
            return err->status = DFCL_INTERRUPTED;
        dfcl_status s = add_one(o, latents + (size_t)i * latent_values(o), &requests[i], lines[i], err);
        if (s)
            return s;
    }
    return DFCL_OK;
}

/* All lines that have been drawn, the last as far as it was. */
static char *requests_text(const struct sample_out *o) {
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    bool good = f;
    int left = o->done;
    for (int i = 0; good && i < o->requests->count && left > 0; i++) {
        const struct sample_line *l = &o->requests->line[i];
        int count = l->count < left ? l->count : left;
        char *line = sample_line_text(l, l->number, count);
        good = line && fputs(line, f) >= 0;
        free(line);
        left -= count;
    }
    good = f && fclose(f) == 0 && good;
    if (!good) {
        free(text);
        text = NULL;
    }
    return text;
}

static dfcl_status write_grid(const struct sample_out *o, dfcl_error *err) {
    uint8_t *grid = NULL;
    int w, h;
    char columns[16], zoom[16], *request = requests_text(o);
    snprintf(columns, sizeof columns, "%d", o->columns);
    snprintf(zoom, sizeof zoom, "%d", o->zoom);
    const char *const more[] = {"layout", "grid", "columns", columns, "zoom", zoom, NULL};
    dfcl_status s = request ? dfcl_grid(o->c->ctx, o->pixels, o->done, o->height, o->width, o->channels, o->columns, o->zoom,
                                        &grid, &w, &h, err)
                            : no_memory(err);
    if (!s)
        s = write_png(o, o->path, grid, w, h, more, request, err);
    dfcl_free_pixels(o->c->ctx, grid);
    free(request);
    return s;
}

dfcl_status sample_out_end(struct sample_out *o, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (!o->done)
        return DFCL_OK;
    if (o->latents) {
        const int64_t shape[4] = {o->done, o->latent_channels, o->latent_height, o->latent_width};
        s = dfcl_tensor_write(o->c->ctx, o->latents_path, "latents", o->latents, shape, 4, err);
    }
    if (!s && o->pixels)
        s = write_grid(o, err);
    if (!s && o->npz)
        s = dfcl_npz_writer_finish(&o->npz, o->labels, err);
    return s;
}

void sample_out_free(struct sample_out *o) {
    free(o->pixels);
    free(o->latents);
    free(o->labels);
    dfcl_npz_writer_destroy(&o->npz);
    o->pixels = NULL;
    o->latents = NULL;
    o->labels = NULL;
}
