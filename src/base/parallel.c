#include "base/parallel.h"

#include <pthread.h>

struct team {
    void (*work)(void *user, int thread, size_t i);
    void *user;
    size_t count;
    size_t next; /* atomic */
    int members; /* atomic: numbers given to threads */
};

static void *member(void *user) {
    struct team *t = user;
    int thread = __atomic_fetch_add(&t->members, 1, __ATOMIC_RELAXED);
    for (size_t i; (i = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < t->count;)
        t->work(t->user, thread, i);
    return NULL;
}

void dfcl_parallel(int threads, size_t count, void (*work)(void *user, int thread, size_t i), void *user) {
    struct team t = {.work = work, .user = user, .count = count};
    pthread_t others[DFCL_MAX_THREADS];
    int started = 0, want = DFCL_MIN(threads, DFCL_MAX_THREADS);
    while (started < want - 1 && (size_t)started + 1 < count && pthread_create(&others[started], NULL, member, &t) == 0)
        started++;
    member(&t);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}
