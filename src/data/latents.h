/* The cache of latents: what the encoder made of a folder of pictures, so that training draws latents without it. docs/formats.md has the layout.
 *
 *   index.json            settings, class names, the linear approximation of the decoder, and for each shard the class of every row (-1: no longer in the set)
 *   shard-N.safetensors   rows of mean, logvar and (flips) mean_flip, logvar_flip [n,C,H,W], stat [n,2], rgb [n,K], sha256 [n,32]; names and settings as metadata
 *
 * A shard says all of its rows but their class, so a cache whose making was cut short goes on from its shards. */
#ifndef DFCL_DATA_LATENTS_H
#define DFCL_DATA_LATENTS_H

#include "base/dtype.h"
#include "base/json.h"
#include "formats/image.h"
#include "formats/safetensors.h"
#include "models/latent_rgb.h"

#define DFCL_LATENTS_FORMAT "difffit-cl latents 1"

/* All that the moments depend on, beside the picture. */
struct dfcl_latents_settings {
    char vae[65];         /* hash of the encoder (docs/formats.md) */
    double scale, shift;  /* latent of the diffusion model = scale * (z - shift) */
    int size, size_width; /* height and width of the cropped pictures; width 0: square */
    int channels, side, side_width; /* of the latents, likewise */
    bool random_crop, flips;
    enum dfcl_alpha alpha;
    uint64_t seed;        /* of random crops; 0 without */
    enum dfcl_dtype type; /* of the moments: F32, F16 or BF16 */
};
static inline size_t dfcl_latents_plane(const struct dfcl_latents_settings *s) {
    return (size_t)s->side * (size_t)dfcl_width(s->side_width, s->side);
}

/* ---- a shard ---- */

struct dfcl_latents_shard {
    char *file; /* name in the cache's folder */
    struct dfcl_st *st;
    const struct dfcl_tensor_view *moments[4]; /* mean, logvar, mean_flip, logvar_flip; the last two NULL without flips */
    const struct dfcl_tensor_view *stat, *sha256;
    const struct dfcl_tensor_view *rgb; /* sums for the linear approximation, or NULL */
    size_t count;
    char **names; /* [count] of the pictures, relative to their folder */
};
/* Opens and checks shape, types and settings. DFCL_FORMAT where anything is not as the format has it, or other settings made it. */
dfcl_status dfcl_latents_shard_open(struct dfcl_latents_shard *out, const dfcl_context *ctx, const char *dir, const char *file,
                                    const struct dfcl_latents_settings *want, dfcl_error *err);
void dfcl_latents_shard_close(const dfcl_context *ctx, struct dfcl_latents_shard *shard);
/* Moments of one row, f32: mean and logvar [C,H,W], one after the other, of the picture or its mirror image. */
dfcl_status dfcl_latents_shard_read(const struct dfcl_latents_shard *shard, size_t row, bool flip, float *out, dfcl_error *err);

/* ---- reading ---- */

struct dfcl_latents;

/* True for a folder that holds a cache, whole or not. */
bool dfcl_latents_here(const char *path);
/* DFCL_FORMAT: not finished, or broken. */
dfcl_status dfcl_latents_open(struct dfcl_latents **out, const dfcl_context *ctx, const char *path, dfcl_error *err);
void dfcl_latents_close(struct dfcl_latents **lat);

/* In the order of classes, then of the pictures' names: that of the shards does not matter. */
struct dfcl_latents_item {
    const char *name;
    int label;
    uint32_t shard, row;
};
struct dfcl_latents_view {
    struct dfcl_latents_settings settings;
    const struct dfcl_latents_item *items;
    size_t count, shards;
    const struct dfcl_list *classes;
    int64_t skipped;         /* pictures that could not be read when it was made */
    uint64_t bytes;          /* of the shards */
    const struct dfcl_latent_rgb *rgb; /* of the linear approximation; channels 0: none */
    const char *fingerprint; /* SHA-256 of settings, classes, and each picture's class, name and hash */
};
struct dfcl_latents_view dfcl_latents_get(const struct dfcl_latents *lat);
/* Moments of item i as dfcl_latents_shard_read has them; DFCL_FORMAT where they are not finite. Any thread. */
dfcl_status dfcl_latents_read(const struct dfcl_latents *lat, size_t i, bool flip, float *out, dfcl_error *err);

/* scale * (mean + exp(logvar / 2) * noise - shift) into out [count]; the noise is that of the given counter. Same bits everywhere. */
struct dfcl_latents_draw {
    uint64_t seed;
    uint32_t stream, step, sample;
};
void dfcl_latents_sample(const struct dfcl_latents_settings *settings, const float *mean, const float *logvar, const struct dfcl_latents_draw *draw,
                         float *out);

/* ---- writing ---- */

struct dfcl_latents_writer;

/* Creates the folder or goes on with the cache in it; one process at a time. Rows wait for a shard at most save_seconds (0: 60). DFCL_USAGE: other things lie there, or a cache of other settings; DFCL_ERROR:
 * another process is at it. */
dfcl_status dfcl_latents_writer_open(struct dfcl_latents_writer **out, const dfcl_context *ctx, const char *path,
                                     const struct dfcl_latents_settings *settings, double save_seconds, dfcl_error *err);
/* A picture's file as it is now. */
struct dfcl_latents_source {
    const char *name;          /* relative to the folder of pictures */
    int64_t bytes, mtime;      /* size; nanoseconds since 1970 */
    unsigned char sha256[32];
    const double *rgb;         /* dfcl_latent_rgb_picture's sums, or NULL */
};
/* True when a row of that name, size and time, or (with_hash) of that name and hash, is there: it is kept. */
bool dfcl_latents_writer_keep(struct dfcl_latents_writer *w, const struct dfcl_latents_source *source, bool with_hash);
/* A row: moments of the picture, then (flips) of its mirror image, each mean and logvar [C,S,S]. Shards are written as they fill, or when their first
 * row has waited long enough. DFCL_FORMAT: a name that is not UTF-8. */
dfcl_status dfcl_latents_writer_add(struct dfcl_latents_writer *w, const struct dfcl_latents_source *source, const float *moments, dfcl_error *err);
/* Writes the rows that wait. */
dfcl_status dfcl_latents_writer_flush(struct dfcl_latents_writer *w, dfcl_error *err);
/* The set is names[i] of class labels[i], `skipped` more could not be read: shards that hold little else are written anew, then the index; what is no
 * longer in the set goes. */
dfcl_status dfcl_latents_writer_finish(struct dfcl_latents_writer *w, const char *source, const struct dfcl_list *classes, const char *const *names,
                                       const int *labels, size_t count, int64_t skipped, dfcl_error *err);
/* Without finish the shards stay for the next time; rows that wait are dropped. */
void dfcl_latents_writer_close(struct dfcl_latents_writer **w);

/* ---- shared by both ---- */

#define DFCL_LATENTS_INDEX "index.json"
#define DFCL_LATENTS_LOCK "latents.lock"

/* JSON object of the settings, and back. `what` names the file in messages. */
void dfcl_latents_settings_text(struct dfcl_text *t, const struct dfcl_latents_settings *s);
dfcl_status dfcl_latents_settings_parse(const cJSON *o, const char *what, struct dfcl_latents_settings *out, dfcl_error *err);
/* DFCL_FORMAT with the first difference. */
dfcl_status dfcl_latents_settings_same(const struct dfcl_latents_settings *want, const struct dfcl_latents_settings *found, const char *what, dfcl_error *err);

#endif
