#define _GNU_SOURCE
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

dfcl_status dfcl_map_open(struct dfcl_map *map, const char *path, dfcl_error *err) {
    memset(map, 0, sizeof *map);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return dfcl_fail_errno(err, path, "cannot open");
    struct stat st;
    dfcl_status s = DFCL_OK;
    if (fstat(fd, &st) != 0) {
        s = dfcl_fail_errno(err, path, "cannot stat");
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected a regular file, found %s", path,
                      S_ISDIR(st.st_mode) ? "a folder" : "something else");
        goto out;
    }
    if ((uint64_t)st.st_size > SIZE_MAX) {
        s = dfcl_fail(err, DFCL_NOMEM, "%s: too large to map on this machine", path);
        goto out;
    }
    map->size = (uint64_t)st.st_size;
    map->data = (const unsigned char *)"";
    if (map->size) {
        void *p = mmap(NULL, (size_t)map->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            s = dfcl_fail_errno(err, path, "cannot map");
            map->size = 0;
            goto out;
        }
        map->base = p;
        map->data = p;
    }
out:
    close(fd);
    return s;
}

void dfcl_map_close(struct dfcl_map *map) {
    if (map->base)
        munmap(map->base, (size_t)map->size);
    memset(map, 0, sizeof *map);
}

void dfcl_map_release(const struct dfcl_map *map, uint64_t offset, uint64_t size) {
    if (!map->base || offset >= map->size)
        return;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t end = DFCL_MIN(offset + size, map->size);
    uint64_t a = (offset + page - 1) / page * page, b = end / page * page;
    if (b > a)
        madvise((char *)map->base + a, (size_t)(b - a), MADV_DONTNEED);
}

dfcl_status dfcl_file_read(const dfcl_context *ctx, const char *path, size_t limit, char **data, size_t *size, dfcl_error *err) {
    *data = NULL;
    *size = 0;
    FILE *f = fopen(path, "rbe");
    if (!f)
        return dfcl_fail_errno(err, path, "cannot open");
    dfcl_status s = DFCL_OK;
    size_t cap = 0, n = 0;
    void *p = NULL;
    for (;;) {
        if (dfcl_grow(ctx, &p, &cap, n + 65536, 1, err)) {
            s = DFCL_NOMEM;
            break;
        }
        errno = 0;
        size_t k = fread((char *)p + n, 1, cap - n - 1, f);
        n += k;
        if (ferror(f)) {
            s = dfcl_fail_errno(err, path, "cannot read");
            break;
        }
        if (n > limit) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: larger than the %zu bytes expected at most", path, limit);
            break;
        }
        if (k == 0)
            break;
    }
    fclose(f);
    if (s) {
        dfcl_free(ctx, p);
        return s;
    }
    ((char *)p)[n] = 0;
    *data = p;
    *size = n;
    return DFCL_OK;
}

dfcl_status dfcl_writer_open(struct dfcl_writer *w, const dfcl_context *ctx, const char *path, dfcl_error *err) {
    memset(w, 0, sizeof *w);
    w->ctx = ctx;
    w->path = dfcl_strdup(ctx, path, err);
    w->tmp = w->path ? dfcl_sprintf(ctx, err, "%s.tmp-%ld", path, (long)getpid()) : NULL;
    if (!w->tmp) {
        dfcl_writer_abort(w);
        return DFCL_NOMEM;
    }
    w->f = fopen(w->tmp, "wbe");
    if (!w->f) {
        dfcl_status s = dfcl_fail_errno(err, path, "cannot create");
        dfcl_free(ctx, w->tmp);
        w->tmp = NULL;
        dfcl_writer_abort(w);
        return s;
    }
    return DFCL_OK;
}

dfcl_status dfcl_writer_write(struct dfcl_writer *w, const void *data, size_t size, dfcl_error *err) {
    if (size && fwrite(data, 1, size, w->f) != size)
        return dfcl_fail_errno(err, w->path, "cannot write");
    return DFCL_OK;
}

dfcl_status dfcl_sync_dir(const char *path, dfcl_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return dfcl_fail_errno(err, path, "cannot open folder");
    /* Some file systems cannot sync a folder; that is no reason to lose the file. */
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) {
        dfcl_status s = dfcl_fail_errno(err, path, "cannot sync folder");
        close(fd);
        return s;
    }
    close(fd);
    return DFCL_OK;
}

static dfcl_status sync_parent(const char *path, dfcl_error *err) {
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (!slash)
        return dfcl_sync_dir(".", err);
    if (n == 0)
        return dfcl_sync_dir("/", err);
    if (n >= sizeof dir)
        return dfcl_fail(err, DFCL_IO, "%s: path too long", path);
    memcpy(dir, path, n);
    dir[n] = 0;
    return dfcl_sync_dir(dir, err);
}

dfcl_status dfcl_rename(const char *from, const char *to, dfcl_error *err) {
    if (rename(from, to) != 0)
        return dfcl_fail_errno(err, to, "cannot rename into place");
    return sync_parent(to, err);
}

dfcl_status dfcl_writer_commit(struct dfcl_writer *w, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    if (fflush(w->f) != 0 || fsync(fileno(w->f)) != 0)
        s = dfcl_fail_errno(err, w->path, "cannot write");
    if (fclose(w->f) != 0 && !s)
        s = dfcl_fail_errno(err, w->path, "cannot close");
    w->f = NULL;
    if (!s)
        s = dfcl_rename(w->tmp, w->path, err);
    if (!s) {
        dfcl_free(w->ctx, w->tmp);
        w->tmp = NULL;
    }
    dfcl_writer_abort(w);
    return s;
}

void dfcl_writer_abort(struct dfcl_writer *w) {
    if (!w->ctx)
        return;
    if (w->f)
        fclose(w->f);
    if (w->tmp)
        unlink(w->tmp);
    dfcl_free(w->ctx, w->tmp);
    dfcl_free(w->ctx, w->path);
    memset(w, 0, sizeof *w);
}

dfcl_status dfcl_file_write(const dfcl_context *ctx, const char *path, const void *data, size_t size, dfcl_error *err) {
    struct dfcl_writer w;
    dfcl_status s = dfcl_writer_open(&w, ctx, path, err);
    if (s)
        return s;
    s = dfcl_writer_write(&w, data, size, err);
    if (s) {
        dfcl_writer_abort(&w);
        return s;
    }
    return dfcl_writer_commit(&w, err);
}

static enum dfcl_path_kind kind_of(mode_t mode) {
    return S_ISREG(mode) ? DFCL_PATH_FILE : S_ISDIR(mode) ? DFCL_PATH_DIR : DFCL_PATH_OTHER;
}

enum dfcl_path_kind dfcl_path_kind(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0)
        return DFCL_PATH_NONE;
    return kind_of(st.st_mode);
}

/* True when the file held open is the one at `path`: an owner that gave up may have removed it between open and lock. */
static bool same_file(int fd, const char *path) {
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

dfcl_status dfcl_lock_take(const char *path, int *fd, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (;;) {
        *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (*fd < 0)
            s = dfcl_fail_errno(err, path, "cannot create");
        else if (flock(*fd, LOCK_EX | LOCK_NB) != 0)
            s = errno == EWOULDBLOCK ? dfcl_fail(err, DFCL_ERROR, "%s: locked by another process", path) : dfcl_fail_errno(err, path, "cannot lock");
        if (s || same_file(*fd, path))
            break;
        close(*fd);
    }
    if (s && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return s;
}

enum dfcl_path_kind dfcl_entry_kind(const char *dir, const char *name, char path[DFCL_PATH_LONGEST]) {
    int n = snprintf(path, DFCL_PATH_LONGEST, "%s/%s", dir, name);
    return n > 0 && n < DFCL_PATH_LONGEST ? dfcl_path_kind(path) : DFCL_PATH_NONE;
}

dfcl_status dfcl_mkdirs(const dfcl_context *ctx, const char *path, dfcl_error *err) {
    char *p = dfcl_strdup(ctx, path, err);
    if (!p)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    for (char *c = p + (*p == '/');; c++) {
        if (*c != '/' && *c)
            continue;
        char keep = *c;
        *c = 0;
        if (*p && mkdir(p, 0777) != 0 && !(errno == EEXIST && dfcl_path_kind(p) == DFCL_PATH_DIR)) {
            s = dfcl_fail_errno(err, p, "cannot create folder");
            break;
        }
        if (!keep)
            break;
        *c = keep;
    }
    dfcl_free(ctx, p);
    return s;
}

static dfcl_status remove_at(int parent, const char *name, const char *shown, int depth, dfcl_error *err) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return DFCL_OK;
    if (errno != EISDIR && errno != EPERM)
        return dfcl_fail_errno(err, shown, "cannot remove");
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d) {
        dfcl_status s = dfcl_fail_errno(err, shown, "cannot remove");
        if (fd >= 0)
            close(fd);
        return s;
    }
    dfcl_status s = DFCL_OK;
    struct dirent *e;
    while (!s && (e = readdir(d)) != NULL) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        s = depth > 64 ? dfcl_fail(err, DFCL_IO, "%s: folders nested too deeply", shown)
                       : remove_at(dirfd(d), e->d_name, shown, depth + 1, err);
    }
    closedir(d);
    if (!s && unlinkat(parent, name, AT_REMOVEDIR) != 0)
        s = dfcl_fail_errno(err, shown, "cannot remove");
    return s;
}

dfcl_status dfcl_remove_tree(const dfcl_context *ctx, const char *path, dfcl_error *err) {
    (void)ctx;
    return remove_at(AT_FDCWD, path, path, 0, err);
}

dfcl_status dfcl_list_add(const dfcl_context *ctx, struct dfcl_list *list, const char *name, dfcl_error *err) {
    void *p = list->names;
    dfcl_status s = dfcl_grow(ctx, &p, &list->cap, list->count + 1, sizeof *list->names, err);
    list->names = p;
    if (s)
        return s;
    list->names[list->count] = dfcl_strdup(ctx, name, err);
    if (!list->names[list->count])
        return DFCL_NOMEM;
    list->count++;
    return DFCL_OK;
}

void dfcl_list_free(const dfcl_context *ctx, struct dfcl_list *list) {
    for (size_t i = 0; i < list->count; i++)
        dfcl_free(ctx, list->names[i]);
    dfcl_free(ctx, list->names);
    dfcl_free(ctx, list->kinds);
    memset(list, 0, sizeof *list);
}

struct entry {
    char *name;
    unsigned char kind;
};

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* Most file systems say what an entry is as they list it; a stat of each would take longer than all the rest. */
static enum dfcl_path_kind entry_kind(DIR *d, const struct dirent *e) {
    struct stat st;
    if (e->d_type == DT_REG)
        return DFCL_PATH_FILE;
    if (e->d_type == DT_DIR)
        return DFCL_PATH_DIR;
    if (e->d_type != DT_LNK && e->d_type != DT_UNKNOWN)
        return DFCL_PATH_OTHER;
    return fstatat(dirfd(d), e->d_name, &st, 0) == 0 ? kind_of(st.st_mode) : DFCL_PATH_NONE;
}

static dfcl_status read_entries(const dfcl_context *ctx, const char *path, DIR *d, struct entry **out, size_t *count, dfcl_error *err) {
    size_t cap = 0;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e)
            return errno ? dfcl_fail_errno(err, path, "cannot read folder") : DFCL_OK;
        if (e->d_name[0] == '.')
            continue;
        void *p = *out;
        dfcl_status s = dfcl_grow(ctx, &p, &cap, *count + 1, sizeof **out, err);
        *out = p;
        char *name = s ? NULL : dfcl_strdup(ctx, e->d_name, err);
        if (!name)
            return DFCL_NOMEM;
        (*out)[(*count)++] = (struct entry){name, (unsigned char)entry_kind(d, e)};
    }
}

dfcl_status dfcl_list_dir(const dfcl_context *ctx, const char *path, struct dfcl_list *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    DIR *d = opendir(path);
    if (!d)
        return dfcl_fail_errno(err, path, "cannot open folder");
    struct entry *all = NULL;
    size_t n = 0;
    dfcl_status s = read_entries(ctx, path, d, &all, &n, err);
    closedir(d);
    if (!s && (!(out->names = dfcl_calloc(ctx, n, sizeof *out->names, err)) || !(out->kinds = dfcl_calloc(ctx, n, 1, err))))
        s = DFCL_NOMEM;
    if (!s && n)
        qsort(all, n, sizeof *all, by_name);
    for (size_t i = 0; i < n; i++) {
        if (s) {
            dfcl_free(ctx, all[i].name);
            continue;
        }
        out->names[i] = all[i].name;
        out->kinds[i] = all[i].kind;
    }
    out->count = out->cap = s ? 0 : n;
    dfcl_free(ctx, all);
    if (s)
        dfcl_list_free(ctx, out);
    return s;
}
