/* What the fuzz targets share. Each is one file with LLVMFuzzerTestOneInput: under libFuzzer it is fed mutations (option `fuzz`), in
 * the test suite driver.c feeds it its corpus. A target must not crash, leak, hang, or take memory out of proportion; the status of a call
 * does not matter, except that a failure must carry a message. */
#ifndef DFCL_FUZZ_H
#define DFCL_FUZZ_H

#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bytes that an input may cost at a time, taken through the context; a target whose formats inflate may set more. */
#ifndef FUZZ_MEMORY
#define FUZZ_MEMORY ((size_t)256 << 20)
#endif

static size_t fuzz_live;

static void *fuzz_alloc(void *user, size_t size) {
    (void)user;
    void *p = size <= FUZZ_MEMORY ? malloc(size) : NULL;
    if (!p || (__atomic_add_fetch(&fuzz_live, malloc_usable_size(p), __ATOMIC_RELAXED)) > FUZZ_MEMORY) {
        fprintf(stderr, "memory out of proportion: %zu bytes wanted, %zu in use\n", size, fuzz_live);
        abort();
    }
    return p;
}
static void fuzz_free(void *user, void *p) {
    (void)user;
    __atomic_sub_fetch(&fuzz_live, malloc_usable_size(p), __ATOMIC_RELAXED);
    free(p);
}

static inline dfcl_context *fuzz_context(void) {
    static dfcl_context *ctx;
    static const struct dfcl_context_params params = {.alloc = fuzz_alloc, .free = fuzz_free, .threads = 1};
    if (!ctx && dfcl_context_create(&ctx, &params, NULL) != DFCL_OK)
        abort();
    return ctx;
}

/* A failure has one of these statuses, its message, and names the file where the file is at fault. */
static inline void fuzz_check_any(dfcl_status s, const dfcl_error *e, const char *name, const dfcl_status *allowed, size_t n) {
    bool known = s == DFCL_OK;
    for (size_t i = 0; i < n && !known; i++)
        known = s == allowed[i];
    if (known && (s == DFCL_OK || (e->status == s && e->msg[0] && (s != DFCL_FORMAT || strstr(e->msg, name)))))
        return;
    fprintf(stderr, "status %d, in the error %d, expected to name %s: \"%s\"\n", (int)s, (int)e->status, name, e->msg);
    abort();
}
static inline void fuzz_check(dfcl_status s, const dfcl_error *e, const char *name) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM};
    fuzz_check_any(s, e, name, allowed, DFCL_COUNT(allowed));
}

/* Reads every byte, so that sanitizers and valgrind check it. */
static inline void fuzz_use(const void *p, size_t n) {
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum = sum * 31 + ((const uint8_t *)p)[i];
    /* An empty asm takes the sum, or the loop would be removed. */
    __asm__ volatile("" : : "r"(sum));
}

#endif
