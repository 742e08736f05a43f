#include "sample_preview.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LARGE = 128 }; /* small pictures are drawn about so large */

void sample_preview_path(struct sample_preview *v, const char *out) {
    static const char *const tails[] = {".png", ".npz", ".safetensors"};
    int n = (int)strlen(out);
    while (n > 1 && out[n - 1] == '/')
        n--;
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        int tail = (int)strlen(tails[i]);
        if (n > tail && !strncasecmp(out + n - tail, tails[i], (size_t)tail)) {
            n -= tail;
            break;
        }
    }
    snprintf(v->path, sizeof v->path, "%.*s.preview.png", n, out);
}

dfcl_status sample_preview_find(struct sample_preview *v, const char *from, const char *model, const struct sample_requests *r, dfcl_error *err) {
    char path[REQUEST_PATH] = "";
    double strength;
    dfcl_status s = DFCL_OK;
    if (v->channels == 1 || v->channels == 3)
        return DFCL_OK;
    if (from) {
        snprintf(path, sizeof path, "%s", from);
        s = dfcl_latent_rgb_read(v->c->ctx, path, &v->rgb, err);
    }
    for (int i = 0; !from && !s && !v->rgb.channels && i < r->set_count; i++)
        for (int k = 0; !s && !v->rgb.channels && k < r->sets[i].line->deltas; k++) {
            sample_split_strength(r->sets[i].line->delta[k], path, sizeof path, &strength);
            s = dfcl_latent_rgb_read(v->c->ctx, path, &v->rgb, err);
        }
    if (!from && !s && !v->rgb.channels) {
        snprintf(path, sizeof path, "%s", model);
        s = dfcl_latent_rgb_read(v->c->ctx, path, &v->rgb, err);
    }
    if (s)
        return s;
    if (!v->rgb.channels) {
        snprintf(err->msg, sizeof err->msg,
                 "%s%sno linear approximation of the decoder is known, which previews of latents need; `encode` fits one into the cache of latents that it "
                 "makes, and `train --data CACHE` puts it into the delta; --preview-from takes one from such a cache or delta",
                 from ? from : "", from ? ": " : "");
        return err->status = DFCL_USAGE;
    }
    if (v->rgb.channels != v->channels) {
        snprintf(err->msg, sizeof err->msg, "%s: expected a linear approximation for latents of %d channels, found one for %d", path, v->channels, v->rgb.channels);
        return err->status = DFCL_FORMAT;
    }
    return DFCL_OK;
}

dfcl_status sample_preview_write(const struct sample_preview *v, int step, int steps, int first, int count, const float *x0, dfcl_error *err) {
    const int channels = v->rgb.channels ? 3 : v->channels, columns = v->columns < count ? v->columns : count;
    const size_t values = (size_t)count * (size_t)channels * (size_t)v->height * (size_t)v->width;
    float *pictures = v->rgb.channels ? malloc(values * sizeof *pictures) : NULL;
    uint8_t *pixels = malloc(values), *grid = NULL;
    char note[200];
    int w, h, shorter = v->height < v->width ? v->height : v->width;
    dfcl_status s = DFCL_OK;
    if (!pixels || (v->rgb.channels && !pictures)) {
        snprintf(err->msg, sizeof err->msg, "out of memory");
        s = err->status = DFCL_NOMEM;
        goto out;
    }
    if (pictures)
        dfcl_latent_rgb_apply(&v->rgb, count, v->height, v->width, x0, pictures);
    dfcl_pixels(pictures ? pictures : x0, count, channels, v->height, v->width, pixels);
    s = dfcl_grid(v->c->ctx, pixels, count, v->height, v->width, channels, columns, shorter < LARGE ? LARGE / shorter : 1, &grid, &w, &h, err);
    int n = snprintf(note, sizeof note, "preview: pictures %d to %d of %d as predicted at step %d of %d", v->before + first, v->before + first + count - 1, v->of, step,
                     steps);
    if (pictures)
        snprintf(note + n, sizeof note - (size_t)n, ", by a linear approximation of the decoder (root mean squared error %.3f)", v->rgb.rms);
    const char *const text[] = {"Software", "difffit-cl", "Comment", note, NULL};
    if (!s)
        s = dfcl_png_write(v->c->ctx, v->path, grid, w, h, channels, text, err);
out:
    dfcl_free_pixels(v->c->ctx, grid);
    free(pixels);
    free(pictures);
    return s;
}
