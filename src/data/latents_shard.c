/* Settings and shards of the cache of latents. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/latents.h"
#include "formats/tensor_view.h"

#define MOST_ROWS (1 << 20)

/* ---- settings ---- */

/* A number for a square, else the text "96x64". */
static void add_extent(struct dfcl_text *t, int height, int width) {
    char text[DFCL_EXTENT_TEXT];
    const char *quote = dfcl_width(width, height) == height ? "" : "\"";
    dfcl_text_addf(t, "%s%s%s", quote, dfcl_extent_format(height, width, text), quote);
}

void dfcl_latents_settings_text(struct dfcl_text *t, const struct dfcl_latents_settings *s) {
    dfcl_text_addf(t, "{\"vae\":\"%s\",\"scale\":%.17g,\"shift\":%.17g,\"size\":", s->vae, s->scale, s->shift);
    add_extent(t, s->size, s->size_width);
    dfcl_text_addf(t, ",\"channels\":%d,\"side\":", s->channels);
    add_extent(t, s->side, s->side_width);
    dfcl_text_addf(t, ",\"crop\":\"%s\",\"alpha\":\"%s\",", s->random_crop ? "random" : "center", s->alpha == DFCL_ALPHA_DROP ? "drop" : "white");
    if (s->random_crop)
        dfcl_text_addf(t, "\"seed\":\"%" PRIu64 "\",", s->seed); /* a number would lose digits past 2^53 */
    dfcl_text_addf(t, "\"flip\":%s,\"dtype\":\"%s\"}", s->flips ? "true" : "false", dfcl_dtype_name(s->type));
}

static dfcl_status get_int(const cJSON *o, const char *name, int lo, int hi, const char *what, int *out, dfcl_error *err) {
    int64_t v;
    if (!dfcl_json_int(dfcl_json_get(o, name), lo, hi, &v))
        return dfcl_fail(err, DFCL_FORMAT, "%s: settings: %s: expected a whole number from %d to %d", what, name, lo, hi);
    *out = (int)v;
    return DFCL_OK;
}

static dfcl_status get_extent(const cJSON *o, const char *name, int most, const char *what, int *height, int *width, dfcl_error *err) {
    const cJSON *v = dfcl_json_get(o, name);
    if (cJSON_IsString(v) && dfcl_extent_parse(v->valuestring, most, height, width))
        return DFCL_OK;
    dfcl_status s = get_int(o, name, 1, most, what, height, err);
    *width = *height;
    return s;
}

static dfcl_status get_double(const cJSON *o, const char *name, const char *what, double *out, dfcl_error *err) {
    const cJSON *v = dfcl_json_get(o, name);
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return dfcl_fail(err, DFCL_FORMAT, "%s: settings: %s: expected a number", what, name);
    *out = v->valuedouble;
    return DFCL_OK;
}

/* One of the words, by number. */
static dfcl_status get_word(const cJSON *o, const char *name, const char *const *words, int n, const char *what, int *out, dfcl_error *err) {
    const cJSON *v = dfcl_json_get(o, name);
    for (*out = 0; cJSON_IsString(v) && *out < n; ++*out)
        if (!strcmp(v->valuestring, words[*out]))
            return DFCL_OK;
    return dfcl_fail(err, DFCL_FORMAT, "%s: settings: %s: expected %s, %s%s", what, name, words[0], words[1], n > 2 ? " or another known word" : "");
}

static bool is_hash(const char *s) {
    return strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64;
}

dfcl_status dfcl_latents_settings_parse(const cJSON *o, const char *what, struct dfcl_latents_settings *out, dfcl_error *err) {
    static const char *const crops[] = {"center", "random"}, *const alphas[] = {"white", "drop"}, *const types[] = {"F32", "F16", "BF16"};
    static const enum dfcl_dtype dtypes[] = {DFCL_F32, DFCL_F16, DFCL_BF16};
    int crop = 0, alpha = 0, type = 0;
    memset(out, 0, sizeof *out);
    if (!cJSON_IsObject(o))
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected settings, an object", what);
    const cJSON *vae = dfcl_json_get(o, "vae"), *seed = dfcl_json_get(o, "seed"), *flip = dfcl_json_get(o, "flip");
    dfcl_status s = get_extent(o, "size", DFCL_IMAGE_MAX_SIDE, what, &out->size, &out->size_width, err);
    if (!s)
        s = get_int(o, "channels", 1, 1024, what, &out->channels, err);
    if (!s)
        s = get_extent(o, "side", 4096, what, &out->side, &out->side_width, err);
    if (!s)
        s = get_double(o, "scale", what, &out->scale, err);
    if (!s)
        s = get_double(o, "shift", what, &out->shift, err);
    if (!s)
        s = get_word(o, "crop", crops, 2, what, &crop, err);
    if (!s)
        s = get_word(o, "alpha", alphas, 2, what, &alpha, err);
    if (!s)
        s = get_word(o, "dtype", types, 3, what, &type, err);
    if (!s && (!cJSON_IsString(vae) || !is_hash(vae->valuestring)))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: settings: vae: expected a hash of 64 hexadecimal digits", what);
    if (!s && !cJSON_IsBool(flip))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: settings: flip: expected true or false", what);
    if (!s && crop && (!cJSON_IsString(seed) || sscanf(seed->valuestring, "%" SCNu64, &out->seed) != 1))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: settings: seed: expected digits", what);
    if (s)
        return s;
    memcpy(out->vae, vae->valuestring, sizeof out->vae);
    out->random_crop = crop != 0;
    out->alpha = alpha ? DFCL_ALPHA_DROP : DFCL_ALPHA_WHITE;
    out->flips = cJSON_IsTrue(flip) != 0;
    out->type = dtypes[type];
    return DFCL_OK;
}

dfcl_status dfcl_latents_settings_same(const struct dfcl_latents_settings *a, const struct dfcl_latents_settings *b, const char *what, dfcl_error *err) {
    static const char *const crops[] = {"center", "random"}, *const alphas[] = {"white", "drop"};
    if (strcmp(a->vae, b->vae))
        return dfcl_fail(err, DFCL_FORMAT, "%s: made with another VAE: expected the one with the hash %s, found %s", what, a->vae, b->vae);
    const int as = dfcl_width(a->size_width, a->size), bs = dfcl_width(b->size_width, b->size), aw = dfcl_width(a->side_width, a->side),
              bw = dfcl_width(b->side_width, b->side);
    char want[DFCL_EXTENT_TEXT], got[DFCL_EXTENT_TEXT];
    if (a->size != b->size || as != bs || a->channels != b->channels || a->side != b->side || aw != bw)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected pictures of %s as latents of %d x %d x %d, found %s as %d x %d x %d", what,
                         dfcl_extent_format(a->size, as, want), a->channels, a->side, aw, dfcl_extent_format(b->size, bs, got), b->channels, b->side,
                         bw);
    if (a->scale != b->scale || a->shift != b->shift)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected scale %g and shift %g, found %g and %g", what, a->scale, a->shift, b->scale, b->shift);
    if (a->random_crop != b->random_crop)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected crop %s, found %s", what, crops[a->random_crop], crops[b->random_crop]);
    if (a->seed != b->seed)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected seed %" PRIu64 ", found %" PRIu64, what, a->seed, b->seed);
    if (a->alpha != b->alpha)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected alpha %s, found %s", what, alphas[a->alpha], alphas[b->alpha]);
    if (a->flips != b->flips)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected latents %s mirror images, found them %s", what, a->flips ? "with" : "without",
                         b->flips ? "with" : "without");
    if (a->type != b->type)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected values as %s, found %s", what, dfcl_dtype_name(a->type), dfcl_dtype_name(b->type));
    return DFCL_OK;
}

/* ---- shards ---- */

static dfcl_status find(const struct dfcl_latents_shard *sh, const char *name, enum dfcl_dtype type, const int64_t *shape, int ndim,
                        const struct dfcl_tensor_view **out, dfcl_error *err) {
    char a[128], b[128];
    const struct dfcl_tensor_view *v = dfcl_st_find(sh->st, name);
    if (!v || v->dtype != type || v->ndim != ndim || memcmp(v->shape, shape, (size_t)ndim * sizeof *shape))
        return dfcl_fail(err, DFCL_FORMAT, "%s: %s: expected %s %s, found %s %s", sh->st->path, name, dfcl_dtype_name(type),
                         dfcl_shape_format(shape, ndim, a, sizeof a), v ? v->type_name : "nothing",
                         v ? dfcl_shape_format(v->shape, v->ndim, b, sizeof b) : "");
    *out = v;
    return DFCL_OK;
}

static dfcl_status parse_meta(const struct dfcl_latents_shard *sh, const char *key, cJSON **out, dfcl_error *err) {
    const char *text = dfcl_st_meta(sh->st, key);
    if (!text)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a shard of cached latents, found no metadata %s", sh->st->path, key);
    return dfcl_json_parse(out, text, strlen(text), (struct dfcl_json_limits){4, MOST_ROWS + 64}, sh->st->path, err);
}

static dfcl_status read_names(const dfcl_context *ctx, struct dfcl_latents_shard *sh, dfcl_error *err) {
    cJSON *files = NULL;
    dfcl_status s = parse_meta(sh, "files", &files, err);
    int n = !s && cJSON_IsArray(files) ? cJSON_GetArraySize(files) : 0;
    if (!s && (n < 1 || n > MOST_ROWS))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: files: expected an array of 1 to %d names", sh->st->path, MOST_ROWS);
    if (!s && !(sh->names = dfcl_calloc(ctx, (size_t)n, sizeof *sh->names, err)))
        s = DFCL_NOMEM;
    const cJSON *f;
    cJSON_ArrayForEach(f, files) {
        if (!s && (!cJSON_IsString(f) || !f->valuestring[0]))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: files: expected names", sh->st->path);
        if (s)
            break;
        sh->names[sh->count] = dfcl_strdup(ctx, f->valuestring, err);
        s = sh->names[sh->count] ? DFCL_OK : DFCL_NOMEM;
        sh->count += !s;
    }
    cJSON_Delete(files);
    return s;
}

dfcl_status dfcl_latents_shard_open(struct dfcl_latents_shard *out, const dfcl_context *ctx, const char *dir, const char *file,
                                    const struct dfcl_latents_settings *want, dfcl_error *err) {
    static const char *const moments[4] = {"mean", "logvar", "mean_flip", "logvar_flip"};
    memset(out, 0, sizeof *out);
    cJSON *o = NULL;
    struct dfcl_latents_settings found;
    char *path = dfcl_sprintf(ctx, err, "%s/%s", dir, file);
    out->file = dfcl_strdup(ctx, file, err);
    dfcl_status s = path && out->file ? dfcl_st_open(&out->st, ctx, path, err) : DFCL_NOMEM;
    if (!s)
        s = parse_meta(out, "settings", &o, err);
    if (!s)
        s = dfcl_latents_settings_parse(o, path, &found, err);
    if (!s)
        s = dfcl_latents_settings_same(want, &found, path, err);
    if (!s)
        s = read_names(ctx, out, err);
    const int64_t n = (int64_t)out->count, shape[4] = {n, want->channels, want->side, dfcl_width(want->side_width, want->side)}, stat[2] = {n, 2}, sha[2] = {n, 32};
    for (int i = 0; !s && i < (want->flips ? 4 : 2); i++)
        s = find(out, moments[i], want->type, shape, 4, &out->moments[i], err);
    if (!s)
        s = find(out, "stat", DFCL_I64, stat, 2, &out->stat, err);
    if (!s)
        s = find(out, "sha256", DFCL_U8, sha, 2, &out->sha256, err);
    if (!s && dfcl_st_find(out->st, "rgb")) /* older caches have none */
        s = find(out, "rgb", DFCL_F64, (int64_t[]){n, (int64_t)dfcl_latent_rgb_sums(want->channels)}, 2, &out->rgb, err);
    cJSON_Delete(o);
    dfcl_free(ctx, path);
    if (s)
        dfcl_latents_shard_close(ctx, out);
    return s;
}

void dfcl_latents_shard_close(const dfcl_context *ctx, struct dfcl_latents_shard *sh) {
    for (size_t i = 0; i < sh->count; i++)
        dfcl_free(ctx, sh->names[i]);
    dfcl_free(ctx, sh->names);
    dfcl_free(ctx, sh->file);
    dfcl_st_close(&sh->st);
    memset(sh, 0, sizeof *sh);
}

dfcl_status dfcl_latents_shard_read(const struct dfcl_latents_shard *sh, size_t row, bool flip, float *out, dfcl_error *err) {
    const struct dfcl_tensor_view *const *m = sh->moments + (flip ? 2 : 0);
    uint64_t each = m[0]->count / sh->count;
    dfcl_status s = dfcl_view_read_f32(m[0], sh->st->path, row * each, each, out, err);
    return s ? s : dfcl_view_read_f32(m[1], sh->st->path, row * each, each, out + each, err);
}
