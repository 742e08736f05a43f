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

bool sample_out_is_grid(const char *path) {
    return ends_with(path, ".png");
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
                        folder ? "expected NAME.png or a folder, found a file" : "expected a file, found a folder");
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
    dfcl_status s = o->path ? check_place(o->path, !sample_out_is_grid(o->path), err) : DFCL_OK;
    return s || !o->latents_path ? s : check_place(o->latents_path, false, err);
}

static size_t values(const struct sample_out *o) {
    return (size_t)o->channels * (size_t)o->side * (size_t)o->side;
}

dfcl_status sample_out_begin(struct sample_out *o, dfcl_error *err) {
    bool grid = o->path && sample_out_is_grid(o->path);
    if ((grid && !(o->pixels = calloc((size_t)o->n, values(o)))) ||
        (o->latents_path && !(o->latents = calloc((size_t)o->n, values(o) * sizeof *o->latents))))
        return no_memory(err);
    return DFCL_OK;
}

/* Picture i of the run as a numbered file. */
static dfcl_status write_numbered(const struct sample_out *o, int i, const uint8_t *pixels, dfcl_error *err) {
    char path[4096], id[32], number[32];
    snprintf(path, sizeof path, "%s/%06d.png", o->path, i);
    snprintf(id, sizeof id, "%d", o->requests[i].class_id);
    snprintf(number, sizeof number, "%u", o->requests[i].number);
    const char *text[40];
    int k = 0;
    for (; o->text[k] && k < 32; k++)
        text[k] = o->text[k];
    const char *const more[] = {"class", id, "number", number, NULL};
    memcpy(text + k, more, sizeof more);
    return dfcl_png_write(o->c->ctx, path, pixels, o->side, o->side, o->channels, text, err);
}

dfcl_status sample_out_add(struct sample_out *o, int count, const float *latents, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    size_t each = values(o), at = (size_t)o->done * each;
    if (o->latents)
        memcpy(o->latents + at, latents, (size_t)count * each * sizeof *latents);
    if (o->path && sample_out_is_grid(o->path)) {
        dfcl_pixels(latents, count, o->channels, o->side, o->pixels + at);
    } else if (o->path) {
        if (o->done == 0 && mkdir(o->path, 0777) != 0 && errno != EEXIST) {
            char why[128];
            snprintf(why, sizeof why, "cannot create folder: %s", strerror(errno));
            return no_place(err, o->path, why);
        }
        uint8_t *pixels = malloc((size_t)count * each);
        if (!pixels)
            return no_memory(err);
        dfcl_pixels(latents, count, o->channels, o->side, pixels);
        for (int i = 0; i < count && !s; i++)
            s = write_numbered(o, o->done + i, pixels + (size_t)i * each, err);
        free(pixels);
    }
    if (!s)
        o->done += count;
    return s;
}

dfcl_status sample_out_end(struct sample_out *o, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (!o->done)
        return DFCL_OK;
    if (o->latents) {
        const int64_t shape[4] = {o->done, o->channels, o->side, o->side};
        s = dfcl_tensor_write(o->c->ctx, o->latents_path, "latents", o->latents, shape, 4, err);
    }
    if (!s && o->path && sample_out_is_grid(o->path)) {
        uint8_t *grid = NULL;
        int w, h;
        s = dfcl_grid(o->c->ctx, o->pixels, o->done, o->side, o->channels, o->columns, o->zoom, &grid, &w, &h, err);
        if (!s)
            s = dfcl_png_write(o->c->ctx, o->path, grid, w, h, o->channels, o->text, err);
        dfcl_free_pixels(o->c->ctx, grid);
    }
    return s;
}

void sample_out_free(struct sample_out *o) {
    free(o->pixels);
    free(o->latents);
    o->pixels = NULL;
    o->latents = NULL;
}
