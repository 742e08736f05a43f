/* Shared by the tools: PoCL's workers on processors of their own. Include first. */
#ifndef TOOLS_PLACE_H
#define TOOLS_PLACE_H

#ifndef _GNU_SOURCE
#error "place.h needs _GNU_SOURCE, defined before any other header"
#endif
#include <sched.h>
#include <stdlib.h>

/* PoCL's workers otherwise share a core now and then. Only where the user has not said it and processors 0..n-1 are all ours: PoCL pins
 * worker i to processor i. To be called before the first OpenCL call. */
static inline void place_workers(void) {
    cpu_set_t set;
    if (getenv("POCL_AFFINITY") || sched_getaffinity(0, sizeof set, &set) != 0)
        return;
    int n = CPU_COUNT(&set);
    for (int i = 0; i < n; i++)
        if (!CPU_ISSET(i, &set))
            return;
    setenv("POCL_AFFINITY", "1", 0);
}

#endif
