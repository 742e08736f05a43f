/* What dataset.c (opening, order, fetching), dataset_load.c (files to samples, on threads) and dataset_arrays.c (samples in the caller's memory) share. */
#ifndef DFCL_DATA_DATASET_INTERNAL_H
#define DFCL_DATA_DATASET_INTERNAL_H

#include <pthread.h>

#include "base/sha256.h"
#include "data/dataset.h"
#include "data/latents.h"
#include "data/order.h"
#include "data/scan.h"

/* How a sample is kept: bytes HWC, f32 CHW, or mean and log-variance (with flips, those of the mirrored picture behind them). */
enum dfcl_layout { DFCL_LAYOUT_BYTES, DFCL_LAYOUT_FLOATS, DFCL_LAYOUT_MOMENTS };

enum dfcl_slot_state { DFCL_SLOT_EMPTY, DFCL_SLOT_READY, DFCL_SLOT_FAILED };

/* A sample decoded ahead: sample g lies in slot g mod slot_count. */
struct dfcl_slot {
    enum dfcl_slot_state state;
    uint64_t g;
    unsigned char *bytes;
    dfcl_error err;
};

struct dfcl_dataset {
    const dfcl_context *ctx;
    struct dfcl_dataset_options opt;
    struct dfcl_scan scan;   /* without the bad files that were left out */
    struct dfcl_latents *latents; /* a cache of them; NULL: files */
    struct dfcl_train_arrays arrays; /* count 0: none */
    enum dfcl_layout layout;
    struct dfcl_latents_settings moments; /* that layout's */
    int64_t bad;             /* how many those are */
    char **made_names;       /* decimal names, when the data brings none */
    const char **names;
    int classes;
    size_t values, sample_bytes; /* of one sample: values as f32, bytes as kept */
    char fingerprint[65];
    uint32_t *items;         /* [scan.count] places in the scan: to train on, ascending, then held out, shuffled */
    uint32_t train_count;
    struct dfcl_order order; /* of the first train_count items */
    unsigned char *cache;    /* [count][sample_bytes], or NULL */

    /* Reading ahead. `lock` guards what follows, and the order once threads run. */
    pthread_mutex_t lock;
    pthread_cond_t work, ready;
    bool sync_made, stop;
    pthread_t *threads;
    int thread_count;
    struct dfcl_slot *slots;
    uint64_t slot_count;
    uint64_t head;       /* next sample to be fetched */
    uint64_t taken;      /* next sample a thread will decode */
    uint64_t generation; /* grows with every jump: results for the old position are dropped */
};

/* Sample `item` of the scan as it is kept. g: its number in the run, for random crops; NULL: the centre. */
dfcl_status dfcl_dataset_decode(const struct dfcl_dataset *ds, size_t item, const uint64_t *g, unsigned char *out, dfcl_error *err);
/* Reads every file once: fills the cache, reads the labels of latents, and finds bad files: those are an error, or (skip_bad) leave the scan. */
dfcl_status dfcl_dataset_preload(struct dfcl_dataset *ds, dfcl_error *err);
/* The arrays' samples and classes as a scan without paths; every label and value is looked at. */
dfcl_status dfcl_dataset_find_arrays(struct dfcl_dataset *ds, dfcl_error *err);
/* All that the numbers of the samples depend on. */
dfcl_status dfcl_dataset_hash_arrays(const struct dfcl_dataset *ds, struct dfcl_sha256 *h, dfcl_error *err);
/* Threads that decode ahead; dfcl_dataset_stop ends them. */
dfcl_status dfcl_dataset_start(struct dfcl_dataset *ds, dfcl_error *err);
void dfcl_dataset_stop(struct dfcl_dataset *ds);

#endif
