#define _GNU_SOURCE
#include "train/run_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"

#define LOCK_NAME "lock"
#define CHECKPOINTS "checkpoints"
#define TMP_NAME ".tmp-step"  /* being written */
#define OLD_NAME ".old-step-" /* being removed */
#define MAX_JSON (16u << 20)

char *dfcl_run_dir_path(const struct dfcl_run_dir *run, const char *name, dfcl_error *err) {
    return dfcl_sprintf(run->ctx, err, "%s/%s", run->path, name);
}

static dfcl_status take_lock(struct dfcl_run_dir *run, dfcl_error *err) {
    char *path = dfcl_run_dir_path(run, LOCK_NAME, err);
    dfcl_status s = path ? dfcl_lock_take(path, &run->lock_fd, err) : DFCL_NOMEM;
    if (s == DFCL_ERROR)
        s = dfcl_fail(err, DFCL_ERROR, "%s: another process is training in this folder", run->path);
    dfcl_free(run->ctx, path);
    return s;
}

/* DFCL_USAGE when the folder holds anything but a lock. */
static dfcl_status check_empty(const dfcl_context *ctx, const char *path, dfcl_error *err) {
    struct dfcl_list list;
    dfcl_status s = dfcl_list_dir(ctx, path, &list, err);
    for (size_t i = 0; !s && i < list.count; i++)
        if (strcmp(list.names[i], LOCK_NAME))
            s = dfcl_fail(err, DFCL_USAGE, "%s: expected a new or empty folder for the run, found \"%s\" in it (resume the run, or choose "
                          "another folder)", path, list.names[i]);
    dfcl_list_free(ctx, &list);
    return s;
}

/* A run that never began leaves nothing behind. */
static void remove_unused(struct dfcl_run_dir *run) {
    char *path = dfcl_run_dir_path(run, LOCK_NAME, NULL);
    if (path)
        unlink(path);
    dfcl_free(run->ctx, path);
    if (run->made)
        rmdir(run->path); /* fails where something else lies in it */
}

/* What a process that was killed may have left: the temporary of a file that we write ("NAME.tmp-PID"), a checkpoint half written or half removed. */
static bool is_leftover(const char *name) {
    static const char *const ours[] = {"config.json", "delta", "model", "step-"};
    if (!strcmp(name, TMP_NAME) || !strncmp(name, OLD_NAME, strlen(OLD_NAME)))
        return true;
    const char *tail = strstr(name, ".tmp-");
    if (!tail || !tail[5] || strspn(tail + 5, "0123456789") != strlen(tail + 5))
        return false;
    for (size_t i = 0; i < DFCL_COUNT(ours); i++)
        if (!strncmp(name, ours[i], strlen(ours[i])))
            return true;
    return false;
}

static dfcl_status sweep(const dfcl_context *ctx, const char *dir, dfcl_error *err) {
    struct dfcl_list found = {0};
    dfcl_status s = DFCL_OK;
    DIR *d = opendir(dir);
    if (!d)
        return errno == ENOENT || errno == ENOTDIR ? DFCL_OK : dfcl_fail_errno(err, dir, "cannot open folder");
    for (struct dirent *e; !s && (e = readdir(d)) != NULL;)
        if (is_leftover(e->d_name))
            s = dfcl_list_add(ctx, &found, e->d_name, err);
    closedir(d);
    for (size_t i = 0; !s && i < found.count; i++) {
        char *path = dfcl_sprintf(ctx, err, "%s/%s", dir, found.names[i]);
        s = path ? dfcl_remove_tree(ctx, path, err) : DFCL_NOMEM;
        dfcl_free(ctx, path);
    }
    dfcl_list_free(ctx, &found);
    return s;
}

static dfcl_status drop_leftovers(struct dfcl_run_dir *run, dfcl_error *err) {
    static const char *const folders[] = {".", CHECKPOINTS, "samples"};
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; !s && i < DFCL_COUNT(folders); i++) {
        char *path = dfcl_run_dir_path(run, folders[i], err);
        s = path ? sweep(run->ctx, path, err) : DFCL_NOMEM;
        dfcl_free(run->ctx, path);
    }
    return s;
}

dfcl_status dfcl_run_dir_open(struct dfcl_run_dir *run, const dfcl_context *ctx, const char *path, bool resume, dfcl_error *err) {
    memset(run, 0, sizeof *run);
    run->ctx = ctx;
    run->lock_fd = -1;
    run->path = dfcl_strdup(ctx, path, err);
    if (!run->path)
        return DFCL_NOMEM;
    run->made = dfcl_path_kind(path) == DFCL_PATH_NONE;
    /* A folder of somebody else's is refused untouched; under the lock it is looked at again. */
    dfcl_status s = run->made || resume ? DFCL_OK : check_empty(ctx, path, err);
    if (!s)
        s = dfcl_mkdirs(ctx, path, err);
    if (!s)
        s = take_lock(run, err);
    if (!s && !resume)
        s = check_empty(ctx, path, err);
    if (!s) {
        struct dfcl_list list;
        s = dfcl_list_dir(ctx, path, &list, err);
        run->unused = !s && list.count <= 1; /* the lock */
        dfcl_list_free(ctx, &list);
    }
    if (!s)
        s = drop_leftovers(run, err);
    if (s)
        dfcl_run_dir_close(run);
    return s;
}

void dfcl_run_dir_close(struct dfcl_run_dir *run) {
    if (!run->ctx)
        return;
    if (run->metrics)
        fclose(run->metrics);
    dfcl_events_close(&run->events);
    if (run->lock_fd >= 0) {
        if (run->unused)
            remove_unused(run);
        close(run->lock_fd); /* the lock goes with it */
    } else if (run->made) {
        rmdir(run->path);
    }
    dfcl_free(run->ctx, run->path);
    memset(run, 0, sizeof *run);
    run->lock_fd = -1;
}

/* ---- logs ---- */

static dfcl_status cut_off(const char *path, uint64_t size, dfcl_error *err) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return dfcl_fail_errno(err, path, "cannot open");
    dfcl_status s = DFCL_OK;
    off_t have = lseek(fd, 0, SEEK_END);
    if (have < 0)
        s = dfcl_fail_errno(err, path, "cannot seek");
    else if ((uint64_t)have < size)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected at least the %" PRIu64 " bytes of the checkpoint, found %lld", path, size,
                      (long long)have);
    else if (ftruncate(fd, (off_t)size) != 0)
        s = dfcl_fail_errno(err, path, "cannot cut off at the checkpoint");
    close(fd);
    return s;
}

/* The run's event file: the first that is there, or a new name in TensorBoard's pattern. */
static char *events_path(const struct dfcl_run_dir *run, dfcl_error *err) {
    struct dfcl_list list;
    char *path = NULL;
    if (dfcl_list_dir(run->ctx, run->path, &list, err))
        return NULL;
    bool there = false;
    for (size_t i = 0; i < list.count && !there; i++)
        if ((there = !strncmp(list.names[i], "events.out.tfevents.", 20)))
            path = dfcl_run_dir_path(run, list.names[i], err);
    dfcl_list_free(run->ctx, &list);
    return there ? path : dfcl_sprintf(run->ctx, err, "%s/events.out.tfevents.%lld.difffit-cl", run->path, (long long)time(NULL));
}

dfcl_status dfcl_run_dir_logs(struct dfcl_run_dir *run, uint64_t metrics_size, uint64_t events_size, dfcl_error *err) {
    char *metrics = dfcl_run_dir_path(run, "metrics.jsonl", err), *events = events_path(run, err);
    dfcl_status s = metrics && events ? DFCL_OK : DFCL_NOMEM;
    run->unused = false;
    if (!s)
        s = cut_off(metrics, metrics_size, err);
    if (!s) {
        run->metrics = fopen(metrics, "abe");
        if (!run->metrics)
            s = dfcl_fail_errno(err, metrics, "cannot open");
    }
    if (!s)
        s = dfcl_events_open(&run->events, events, events_size, (double)time(NULL), err);
    dfcl_free(run->ctx, metrics);
    dfcl_free(run->ctx, events);
    return s;
}

dfcl_status dfcl_run_dir_metrics(struct dfcl_run_dir *run, const cJSON *line, dfcl_error *err) {
    char *text = cJSON_PrintUnformatted(line);
    if (!text)
        return dfcl_fail(err, DFCL_NOMEM, "out of host memory for a line of metrics.jsonl");
    dfcl_status s = DFCL_OK;
    if (fprintf(run->metrics, "%s\n", text) < 0 || fflush(run->metrics) != 0)
        s = dfcl_fail_errno(err, run->path, "cannot write metrics.jsonl");
    cJSON_free(text);
    return s;
}

dfcl_status dfcl_run_dir_sizes(struct dfcl_run_dir *run, uint64_t *metrics_size, uint64_t *events_size, dfcl_error *err) {
    if (fflush(run->metrics) != 0 || fsync(fileno(run->metrics)) != 0 || fseek(run->metrics, 0, SEEK_END) != 0)
        return dfcl_fail_errno(err, run->path, "cannot write metrics.jsonl");
    long at = ftell(run->metrics);
    if (at < 0)
        return dfcl_fail_errno(err, run->path, "cannot tell the size of metrics.jsonl");
    *metrics_size = (uint64_t)at;
    return dfcl_events_sync(&run->events, events_size, err);
}

/* ---- JSON ---- */

dfcl_status dfcl_run_dir_write_json(const struct dfcl_run_dir *run, const char *path, const cJSON *json, dfcl_error *err) {
    char *text = cJSON_Print(json);
    char *line = text ? dfcl_sprintf(run->ctx, err, "%s\n", text) : NULL;
    dfcl_status s = line ? dfcl_file_write(run->ctx, path, line, strlen(line), err)
                         : dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", path);
    dfcl_free(run->ctx, line);
    cJSON_free(text);
    return s;
}

dfcl_status dfcl_run_dir_read_json(const struct dfcl_run_dir *run, const char *path, cJSON **json, dfcl_error *err) {
    char *text;
    size_t size;
    *json = NULL;
    dfcl_status s = dfcl_file_read(run->ctx, path, MAX_JSON, &text, &size, err);
    if (s)
        return s;
    s = dfcl_json_parse(json, text, size, DFCL_JSON_LIMITS, path, err);
    dfcl_free(run->ctx, text);
    if (!s && !cJSON_IsObject(*json)) {
        cJSON_Delete(*json);
        *json = NULL;
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a JSON object", path);
    }
    return s;
}

/* ---- checkpoints ---- */

/* The N of "step-N" as it is written, without zeros before it; -1 for other names. */
static int64_t step_of(const char *name) {
    int64_t n;
    if (strncmp(name, "step-", 5) || (name[5] == '0' && name[6]))
        return -1;
    return dfcl_parse_int(name + 5, 0, INT64_MAX, &n) ? n : -1;
}

static int by_step(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

dfcl_status dfcl_run_dir_checkpoints(const struct dfcl_run_dir *run, int64_t **steps, size_t *count, dfcl_error *err) {
    *steps = NULL;
    *count = 0;
    char *dir = dfcl_run_dir_path(run, CHECKPOINTS, err);
    if (!dir)
        return DFCL_NOMEM;
    struct dfcl_list list = {0};
    dfcl_status s = DFCL_OK;
    if (dfcl_path_kind(dir) == DFCL_PATH_DIR)
        s = dfcl_list_dir(run->ctx, dir, &list, err);
    dfcl_free(run->ctx, dir);
    if (s)
        return s;
    *steps = dfcl_calloc(run->ctx, list.count, sizeof **steps, err);
    if (!*steps)
        s = DFCL_NOMEM;
    for (size_t i = 0; !s && i < list.count; i++)
        if (step_of(list.names[i]) >= 0)
            (*steps)[(*count)++] = step_of(list.names[i]);
    if (!s)
        qsort(*steps, *count, sizeof **steps, by_step);
    dfcl_list_free(run->ctx, &list);
    return s;
}

dfcl_status dfcl_run_dir_checkpoint_begin(const struct dfcl_run_dir *run, char **tmp, dfcl_error *err) {
    *tmp = dfcl_run_dir_path(run, CHECKPOINTS "/" TMP_NAME, err);
    if (!*tmp)
        return DFCL_NOMEM;
    dfcl_status s = dfcl_path_kind(*tmp) == DFCL_PATH_NONE ? DFCL_OK : dfcl_remove_tree(run->ctx, *tmp, err);
    if (!s)
        s = dfcl_mkdirs(run->ctx, *tmp, err);
    if (s) {
        dfcl_free(run->ctx, *tmp);
        *tmp = NULL;
    }
    return s;
}

void dfcl_run_dir_checkpoint_drop(const struct dfcl_run_dir *run, char **tmp) {
    if (*tmp)
        dfcl_remove_tree(run->ctx, *tmp, NULL);
    dfcl_free(run->ctx, *tmp);
    *tmp = NULL;
}

/* Removes a checkpoint. It leaves its name in one step: a folder named step-N is whole, whenever the process ends. */
static dfcl_status retire(const struct dfcl_run_dir *run, int64_t step, dfcl_error *err) {
    char *from = dfcl_sprintf(run->ctx, err, "%s/" CHECKPOINTS "/step-%" PRId64, run->path, step);
    char *to = dfcl_sprintf(run->ctx, err, "%s/" CHECKPOINTS "/" OLD_NAME "%" PRId64, run->path, step);
    dfcl_status s = from && to ? dfcl_rename(from, to, err) : DFCL_NOMEM;
    if (!s)
        s = dfcl_remove_tree(run->ctx, to, err);
    dfcl_free(run->ctx, from);
    dfcl_free(run->ctx, to);
    return s;
}

/* All but the newest `keep` up to `step`, and `best`. Later ones go too. */
static dfcl_status prune(const struct dfcl_run_dir *run, int64_t step, int keep, int64_t best, dfcl_error *err) {
    int64_t *steps;
    size_t count, older = 0;
    dfcl_status s = dfcl_run_dir_checkpoints(run, &steps, &count, err);
    if (s)
        return s;
    while (older < count && steps[older] <= step)
        older++;
    size_t first = older > (size_t)keep ? older - (size_t)keep : 0;
    for (size_t i = count; !s && i-- > 0;) /* from the newest: until the last of the later ones is gone the rest still is one run */
        if ((i < first || i >= older) && steps[i] != best)
            s = retire(run, steps[i], err);
    dfcl_free(run->ctx, steps);
    return s;
}

dfcl_status dfcl_run_dir_go_back(const struct dfcl_run_dir *run, int64_t step, dfcl_error *err) {
    return prune(run, step, INT_MAX, -1, err);
}

dfcl_status dfcl_run_dir_checkpoint_commit(const struct dfcl_run_dir *run, char **tmp, int64_t step, int keep, int64_t best, dfcl_error *err) {
    char *to = dfcl_sprintf(run->ctx, err, "%s/" CHECKPOINTS "/step-%" PRId64, run->path, step);
    dfcl_status s = to ? dfcl_sync_dir(*tmp, err) : DFCL_NOMEM;
    if (!s && dfcl_path_kind(to) != DFCL_PATH_NONE)
        s = retire(run, step, err);
    if (!s)
        s = dfcl_rename(*tmp, to, err);
    dfcl_free(run->ctx, to);
    if (s) {
        dfcl_run_dir_checkpoint_drop(run, tmp);
        return s;
    }
    dfcl_free(run->ctx, *tmp);
    *tmp = NULL;
    return prune(run, step, DFCL_MAX(keep, 1), best, err);
}
