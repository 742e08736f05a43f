/* Seconds that only go forward, for rates and limits. */
#ifndef DFCL_BASE_CLOCK_H
#define DFCL_BASE_CLOCK_H

#include <time.h>

static inline double dfcl_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
