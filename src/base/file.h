/* Files: whole reads, mappings, atomic writes, folders. Paths are UTF-8, as given. */
#ifndef DFCL_BASE_FILE_H
#define DFCL_BASE_FILE_H

#include <stdio.h>

#include "base/base.h"

/* Read-only mapping of a whole file. An empty file gives data = "" and size 0. */
struct dfcl_map {
    const unsigned char *data;
    uint64_t size;
    void *base; /* NULL when empty */
};
dfcl_status dfcl_map_open(struct dfcl_map *map, const char *path, dfcl_error *err);
void dfcl_map_close(struct dfcl_map *map);
/* Tells the system that the bytes will not be read again soon, so that they stop counting as resident. */
void dfcl_map_release(const struct dfcl_map *map, uint64_t offset, uint64_t size);

/* Reads a whole file of at most `limit` bytes; the buffer has one extra zero byte. Freed with dfcl_free. */
dfcl_status dfcl_file_read(const dfcl_context *ctx, const char *path, size_t limit, char **data, size_t *size, dfcl_error *err);

/* Atomic write: bytes go to "PATH.tmp-PID", commit syncs file and folder and renames; abort (or a failed commit) removes the
 * temporary. After any error the old file at PATH is untouched. */
struct dfcl_writer {
    FILE *f;
    char *path, *tmp;
    const dfcl_context *ctx;
};
dfcl_status dfcl_writer_open(struct dfcl_writer *w, const dfcl_context *ctx, const char *path, dfcl_error *err);
dfcl_status dfcl_writer_write(struct dfcl_writer *w, const void *data, size_t size, dfcl_error *err);
dfcl_status dfcl_writer_commit(struct dfcl_writer *w, dfcl_error *err); /* also releases everything on failure */
void dfcl_writer_abort(struct dfcl_writer *w);                          /* harmless after commit */
dfcl_status dfcl_file_write(const dfcl_context *ctx, const char *path, const void *data, size_t size, dfcl_error *err);

enum dfcl_path_kind { DFCL_PATH_NONE, DFCL_PATH_FILE, DFCL_PATH_DIR, DFCL_PATH_OTHER };
enum dfcl_path_kind dfcl_path_kind(const char *path);
/* Of DIR/NAME, whose path is left in `path`. Takes no memory: what is in a folder does not depend on that. A path that is too long leads nowhere. */
#define DFCL_PATH_LONGEST 4096
enum dfcl_path_kind dfcl_entry_kind(const char *dir, const char *name, char path[DFCL_PATH_LONGEST]);
dfcl_status dfcl_mkdirs(const dfcl_context *ctx, const char *path, dfcl_error *err); /* like mkdir -p */
dfcl_status dfcl_remove_tree(const dfcl_context *ctx, const char *path, dfcl_error *err); /* like rm -rf; no links followed */
dfcl_status dfcl_sync_dir(const char *path, dfcl_error *err);
dfcl_status dfcl_rename(const char *from, const char *to, dfcl_error *err); /* then syncs the folder of `to` */

/* Creates the file where needed and takes an exclusive lock on it, which goes with the returned descriptor, also when the process is killed.
 * DFCL_ERROR: another process has it. */
dfcl_status dfcl_lock_take(const char *path, int *fd, dfcl_error *err);

/* Entries of a folder, without those that start with '.', sorted by byte value, and what each is (links are followed; NONE: a link to nothing).
 * All of it is freed by dfcl_list_free. */
struct dfcl_list {
    char **names;
    size_t count, cap;
    unsigned char *kinds; /* enum dfcl_path_kind; NULL where the list is no folder's */
};
dfcl_status dfcl_list_dir(const dfcl_context *ctx, const char *path, struct dfcl_list *out, dfcl_error *err);
dfcl_status dfcl_list_add(const dfcl_context *ctx, struct dfcl_list *list, const char *name, dfcl_error *err);
void dfcl_list_free(const dfcl_context *ctx, struct dfcl_list *list);

#endif
