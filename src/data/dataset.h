/* Training data: pictures or latents with class numbers, in the order of a seed.
 *
 * A folder is one of
 *   ImageFolder:      sub-folders (sorted by name, byte order) are the classes, PNG and JPEG files at any depth below them the samples; a folder
 *                     without sub-folders is one class that has the folder's name. Pixel models only (1 or 3 channels).
 *   latents:          NAME_features/K.npy with NAME_labels/K.npy beside it, as fast-DiT writes them: f32 or f16 [1,C,H,W] or [C,H,W],
 *                     integer label. class_names.txt (one name a line) may lie beside both folders.
 *   cached latents:   data/latents.h; each fetch draws from them, by stream LATENT (step, sample = low word of g). Those held out are drawn once
 *                     and for all, by stream VAL (step 3, sample = place among them).
 *   arrays:           in the caller's memory (struct dfcl_train_arrays), used in place; their order stands for that of the sorted files.
 * Samples come as f32 CHW; pictures in [-1, 1] after ADM's crop (data/crop.h) to the model's size.
 *
 * Every file is read when the set is opened, so that a bad one shows before any work is done. Sets up to `cache_bytes` stay in memory; larger
 * ones are decoded again, ahead, by background threads.
 *
 * Order: the run's sample g (0, 1, ...) is position g mod count of epoch g / count. Each epoch is a Fisher-Yates shuffle of the sorted files driven by
 * stream SHUFFLE (step = epoch, sample = position); a flip is drawn by stream FLIP (step = epoch, sample = low word of g). So what a run sees depends
 * on (seed, g) only, and going on after any g needs no state.
 *
 * Held out: the files are shuffled by stream VAL (step 2, sample = position); the first of each class, val_fraction of it rounded to nearest, are never fetched. */
#ifndef DFCL_DATA_DATASET_H
#define DFCL_DATA_DATASET_H

#include "formats/image.h"

#include <difffit-cl/train.h>
#include <difffit-cl/vae.h>

struct dfcl_dataset;

struct dfcl_dataset_options {
    const char *path;
    const struct dfcl_train_arrays *arrays; /* in place of the path */
    int channels, side;  /* the model's; side: height */
    int width;           /* 0: as the height */
    double val_fraction; /* share of each class that is held out, 0: none; each class keeps one sample to train on */
    bool flip;           /* mirror every second picture; refused for latents without those of the mirrored pictures (a mirrored latent is none) */
    bool random_crop;    /* pictures: another crop (data/crop.h) every time, by stream CROP (step = epoch, sample = low word of g); not kept in memory */
    enum dfcl_alpha alpha; /* pictures */
    bool skip_bad;       /* files that cannot be read are left out instead of being an error */
    uint64_t seed;
    int batch;           /* samples of a step, 0: 1: counts the steps for the draws from cached latents */
    const char *vae_hash; /* cached latents: the encoder that they must come from; NULL: any */
    uint64_t cache_bytes; /* 0: 256 MiB */
    int threads;          /* that decode in the background, 0: the context's, at most 16 */
    int ahead;            /* samples decoded ahead of the last fetch, 0: 64 */
};

/* DFCL_IO: folder or file cannot be read. DFCL_FORMAT: no pictures, an unreadable file (the first is named, all are counted), a latent of another shape or encoder, a label that does not fit. DFCL_USAGE: pictures for a latent model, flips of latents, or a share that holds
 * nothing out. Arrays: DFCL_USAGE, DFCL_NONFINITE as include/difffit-cl/train.h says; they are read until the set is closed. */
dfcl_status dfcl_dataset_open(struct dfcl_dataset **out, const dfcl_context *ctx, const struct dfcl_dataset_options *opt,
                              dfcl_error *err);
void dfcl_dataset_close(struct dfcl_dataset **ds);

int64_t dfcl_dataset_count(const struct dfcl_dataset *ds); /* to train on */
int64_t dfcl_dataset_held_out_count(const struct dfcl_dataset *ds);
int64_t dfcl_dataset_bad(const struct dfcl_dataset *ds); /* left out */
int dfcl_dataset_classes(const struct dfcl_dataset *ds);
/* Array of dfcl_dataset_classes() names; decimal numbers for latents without a name file. Lives as long as the set. */
const char *const *dfcl_dataset_class_names(const struct dfcl_dataset *ds);
bool dfcl_dataset_is_latent(const struct dfcl_dataset *ds);
bool dfcl_dataset_cached(const struct dfcl_dataset *ds);
bool dfcl_dataset_in_arrays(const struct dfcl_dataset *ds);
/* Cached latents: the linear approximation of their decoder; channels 0 for other data, and where the cache has none. */
const struct dfcl_latent_rgb *dfcl_dataset_rgb(const struct dfcl_dataset *ds);
/* SHA-256 over the sorted list of (class, file name relative to the folder), or over the arrays' values, and the shape: tells whether the data are still those a run began with. */
const char *dfcl_dataset_fingerprint(const struct dfcl_dataset *ds);

/* Samples first .. first + n of the run: x [n,C,H,W], label [n]. Consecutive calls are what the background threads count on; any jump is
 * allowed and exact. */
dfcl_status dfcl_dataset_fetch(struct dfcl_dataset *ds, uint64_t first, int n, float *x, int32_t *label, dfcl_error *err);

/* Sample i of those held out, in the order of their shuffle: x [C,H,W], never mirrored. */
dfcl_status dfcl_dataset_held_out(struct dfcl_dataset *ds, int64_t i, float *x, int32_t *label, dfcl_error *err);

/* For tests: which file (index in sorted order) is sample g. */
int64_t dfcl_dataset_item(struct dfcl_dataset *ds, uint64_t g);

#endif
