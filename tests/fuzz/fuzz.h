/* What the fuzz targets share. Each is one file with LLVMFuzzerTestOneInput: under libFuzzer it is fed mutations (option `fuzz`), in
 * the test suite driver.c feeds it its corpus. A target must not crash, leak, hang, or take memory out of proportion; the status of a call
 * does not matter, except that a failure must carry a message. */
#ifndef DFCL_FUZZ_H
#define DFCL_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline dfcl_context *fuzz_context(void) {
    static dfcl_context *ctx;
    if (!ctx && dfcl_context_create(&ctx, NULL, NULL) != DFCL_OK)
        abort();
    return ctx;
}

/* A failure names the input and belongs to the file, or to memory. */
static inline void fuzz_check(dfcl_status s, const dfcl_error *e, const char *name) {
    if (s == DFCL_OK)
        return;
    if ((s != DFCL_FORMAT && s != DFCL_NOMEM) || e->status != s || (s == DFCL_FORMAT && !strstr(e->msg, name)))
        abort();
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
