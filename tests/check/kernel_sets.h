/* The option sets of cl/build_options, and the entry points named in a kernel file. Shared by the compile checks. */
#ifndef DFCL_TESTS_CHECK_KERNEL_SETS_H
#define DFCL_TESTS_CHECK_KERNEL_SETS_H

#include <stdbool.h>
#include <stddef.h>

struct kernel_set {
    char stem[64];
    char feature[24]; /* "avx512_bf16" or "" */
    char options[512];
};
enum { MAX_SETS = 1024, MAX_ENTRIES = 128 };

/* Reads the file; every kernel file of the library without a line gets one empty set. Exits on a malformed line or one that names no kernel
 * file: a check that silently checks less is worth nothing. */
size_t kernel_sets_read(const char *path, struct kernel_set *sets);
/* Names after DFCL_KERNEL(...) in the text. */
size_t kernel_entries(const char *text, char names[MAX_ENTRIES][64]);
bool kernel_is_cpu(const char *stem); /* a *_cpu.cl file: OpenCL on CPUs only */

#endif
