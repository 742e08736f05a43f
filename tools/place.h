/* Where PoCL's worker threads run, decided before the first OpenCL call. */
#ifndef TOOLS_PLACE_H
#define TOOLS_PLACE_H

#include <stdbool.h>

struct place {
    int workers;
    bool pin; /* worker i on processor i, which is all that POCL_AFFINITY can say */
};
/* One worker for each core that has a processor among allowed[0..n) (ascending). siblings[i] is the kernel's list of
 * the threads that share the core of allowed[i] ("0,64", "2-3"); NULL or no list: it has its core for itself. wanted >
 * 0: so many workers instead. Pinned only where each then has a processor that is allowed, and a core of its own unless
 * there are more workers than cores. */
struct place place_decide(const int *allowed, int n, const char *const *siblings, int wanted);

/* Sets POCL_MAX_PTHREAD_COUNT and POCL_AFFINITY, each unless it is set, by the processors that this process may use. Sets nothing where
 * POCL_AFFINITY asks for pinning already. */
void place_workers(void);

#endif
