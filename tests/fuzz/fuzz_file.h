/* Inputs as files, for what is only read by path: the bytes lie in memory (memfd), links in a temporary folder name them. */
#ifndef DFCL_FUZZ_FILE_H
#define DFCL_FUZZ_FILE_H

#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "fuzz.h"

static char fuzz_dir[32];
static int fuzz_fd = -1;

static void fuzz_remove_dir(void) {
    dfcl_remove_tree(NULL, fuzz_dir, NULL);
}

/* Makes the input the content of every link. */
static inline void fuzz_file_set(const uint8_t *data, size_t size) {
    if (fuzz_fd < 0) {
        strcpy(fuzz_dir, "/tmp/dfcl-fuzz-XXXXXX");
        if (!mkdtemp(fuzz_dir) || (fuzz_fd = memfd_create("input", MFD_CLOEXEC)) < 0 || atexit(fuzz_remove_dir))
            abort();
    }
    if (ftruncate(fuzz_fd, 0) != 0 || pwrite(fuzz_fd, data, size, 0) != (ssize_t)size)
        abort();
}

/* The path of a link NAME (with folders before it) to the input, made at the first call. */
static inline const char *fuzz_file_link(const char *name) {
    static char path[8][96];
    static int count;
    char to[64], *slash;
    for (int i = 0; i < count; i++)
        if (!strcmp(path[i] + strlen(fuzz_dir) + 1, name))
            return path[i];
    if (count == 8)
        abort();
    char *p = path[count++];
    snprintf(p, sizeof path[0], "%s/%s", fuzz_dir, name);
    slash = strrchr(p, '/');
    *slash = 0;
    if (dfcl_mkdirs(fuzz_context(), p, NULL) != DFCL_OK)
        abort();
    *slash = '/';
    snprintf(to, sizeof to, "/proc/%ld/fd/%d", (long)getpid(), fuzz_fd);
    if (symlink(to, p) != 0)
        abort();
    return p;
}

#endif
