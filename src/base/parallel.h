/* The same work on many things, on several threads. */
#ifndef DFCL_BASE_PARALLEL_H
#define DFCL_BASE_PARALLEL_H

#include "base/base.h"

#define DFCL_MAX_THREADS 16

/* Calls work(user, thread, i) once for every i below count, handed out in order, on at most `threads` (and DFCL_MAX_THREADS) threads, which are
 * numbered from 0. The calling thread works too, so a system that gives no others still gets there. Returns when all is done. */
void dfcl_parallel(int threads, size_t count, void (*work)(void *user, int thread, size_t i), void *user);

#endif
