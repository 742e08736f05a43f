/* The folder of a training run; docs/formats.md, "Run directory".
 *
 *   config.json metrics.jsonl events.out.tfevents... samples/ checkpoints/step-N/ lock
 *
 * One process at a time works in it: it holds a lock on `lock` for as long as the run is open. */
#ifndef DFCL_TRAIN_RUN_DIR_H
#define DFCL_TRAIN_RUN_DIR_H

#include <cjson/cJSON.h>

#include "base/file.h"
#include "train/tensorboard.h"

struct dfcl_run_dir {
    const dfcl_context *ctx;
    char *path;
    int lock_fd;
    bool made;   /* the folder was not there before */
    bool unused; /* nothing but the lock is in it so far */
    FILE *metrics;
    struct dfcl_events events;
};

/* Creates the folder where needed and takes the lock. `resume`: what is there is kept; otherwise anything but hidden files in it is DFCL_USAGE, and the folder is left as it was. Held
 * by another process: DFCL_ERROR. What a killed process left half written, or half removed, is removed. */
dfcl_status dfcl_run_dir_open(struct dfcl_run_dir *run, const dfcl_context *ctx, const char *path, bool resume, dfcl_error *err);
/* A run that ended before dfcl_run_dir_logs takes its lock, and a folder that was made for it, away again. */
void dfcl_run_dir_close(struct dfcl_run_dir *run);

/* Path of something inside; freed with dfcl_free. */
char *dfcl_run_dir_path(const struct dfcl_run_dir *run, const char *name, dfcl_error *err);

/* Opens metrics.jsonl and the event file for appending, cut off at the given sizes (0 for a new run): lines that an interrupted process
 * wrote after its last checkpoint would otherwise come twice. A file shorter than that is DFCL_FORMAT. */
dfcl_status dfcl_run_dir_logs(struct dfcl_run_dir *run, uint64_t metrics_size, uint64_t events_size, dfcl_error *err);
/* Appends one line and flushes it. */
dfcl_status dfcl_run_dir_metrics(struct dfcl_run_dir *run, const cJSON *line, dfcl_error *err);
/* Sizes of both, which are on the disk when it returns. */
dfcl_status dfcl_run_dir_sizes(struct dfcl_run_dir *run, uint64_t *metrics_size, uint64_t *events_size, dfcl_error *err);

dfcl_status dfcl_run_dir_write_json(const struct dfcl_run_dir *run, const char *path, const cJSON *json, dfcl_error *err);
dfcl_status dfcl_run_dir_read_json(const struct dfcl_run_dir *run, const char *path, cJSON **json, dfcl_error *err);

/* Steps of the checkpoints, ascending; *steps is freed with dfcl_free. */
dfcl_status dfcl_run_dir_checkpoints(const struct dfcl_run_dir *run, int64_t **steps, size_t *count, dfcl_error *err);
/* Removes the checkpoints after `step`: the run goes on from there. To be called before the logs are cut off, which the later ones count on. */
dfcl_status dfcl_run_dir_go_back(const struct dfcl_run_dir *run, int64_t step, dfcl_error *err);
/* Makes an empty temporary folder to write a checkpoint into; *tmp is freed by commit. */
dfcl_status dfcl_run_dir_checkpoint_begin(const struct dfcl_run_dir *run, char **tmp, dfcl_error *err);
/* Syncs the folder, renames it to checkpoints/step-N (replacing one of that number), removes all but the newest `keep` and that of step `best` (-1:
 * none). On failure, or with `drop`, the temporary is removed. */
dfcl_status dfcl_run_dir_checkpoint_commit(const struct dfcl_run_dir *run, char **tmp, int64_t step, int keep, int64_t best, dfcl_error *err);
void dfcl_run_dir_checkpoint_drop(const struct dfcl_run_dir *run, char **tmp);

#endif
