#define _GNU_SOURCE
#include "place.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIN_MAX = 1024 /* PoCL's set holds no more */, TEXT = 256 };

static bool is_allowed(const int *allowed, int n, long cpu) {
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (allowed[mid] < cpu)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && allowed[lo] == cpu;
}

/* True when no allowed processor below `cpu` is in the list: of the threads of a core, the first one. */
static bool is_first(const int *allowed, int n, int cpu, const char *list) {
    for (const char *p = list; p && *p;) {
        char *end;
        long a = strtol(p, &end, 10), b = a;
        if (end == p || a < 0)
            return true; /* no list */
        if (*end == '-')
            b = strtol(end + 1, &end, 10);
        for (long i = a; i <= b && i < cpu; i++)
            if (is_allowed(allowed, n, i))
                return false;
        p = *end == ',' ? end + 1 : "";
    }
    return true;
}

struct place place_decide(const int *allowed, int n, const char *const *siblings, int wanted) {
    int cores = 0, whole = 0; /* processors 0 .. whole-1 are allowed, each the first of its core */
    for (int i = 0; i < n; i++) {
        bool first = is_first(allowed, n, allowed[i], siblings[i]);
        if (first && whole == i && allowed[i] == i)
            whole++;
        cores += first;
    }
    struct place p = {.workers = wanted > 0 ? wanted : cores};
    bool there =
        p.workers <= n && allowed[p.workers - 1] == p.workers - 1; /* ascending: then all below are there too */
    p.pin = there && p.workers <= PIN_MAX && (p.workers <= whole || p.workers > cores);
    return p;
}

/* The processors that this process may use, ascending; NULL where that cannot be told. */
static int *allowed_processors(int *n) {
    for (int bits = 1024; bits <= 1 << 20; bits *= 2) { /* the kernel refuses a set smaller than its own */
        cpu_set_t *set = CPU_ALLOC((size_t)bits);
        size_t size = CPU_ALLOC_SIZE((size_t)bits);
        if (set && sched_getaffinity(0, size, set) == 0) {
            int count = CPU_COUNT_S(size, set), *list = calloc((size_t)count + 1, sizeof *list);
            *n = 0;
            for (int i = 0; list && i < bits; i++)
                if (CPU_ISSET_S((size_t)i, size, set))
                    list[(*n)++] = i;
            CPU_FREE(set);
            return list;
        }
        bool small = set && errno == EINVAL;
        CPU_FREE(set);
        if (!small)
            return NULL;
    }
    return NULL;
}

static void read_siblings(int cpu, char text[TEXT]) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (!f || !fgets(text, TEXT, f))
        text[0] = 0;
    if (f)
        fclose(f);
}

void place_workers(void) {
    const char *count = getenv("POCL_MAX_PTHREAD_COUNT"), *affinity = getenv("POCL_AFFINITY");
    if (affinity && atoi(affinity) != 0)
        return; /* asked for: then the count that goes with it is PoCL's or the user's */
    int n = 0, *allowed = allowed_processors(&n), wanted = count ? atoi(count) : 0;
    char(*text)[TEXT] = calloc((size_t)n + 1, sizeof *text);
    const char **siblings = calloc((size_t)n + 1, sizeof *siblings);
    if (allowed && text && siblings && n > 0 && (!count || wanted > 0)) {
        for (int i = 0; i < n; i++) {
            read_siblings(allowed[i], text[i]);
            siblings[i] = text[i];
        }
        struct place p = place_decide(allowed, n, siblings, wanted);
        char workers[16];
        snprintf(workers, sizeof workers, "%d", p.workers);
        setenv("POCL_MAX_PTHREAD_COUNT", workers, 0);
        if (p.pin)
            setenv("POCL_AFFINITY", "1", 0);
    }
    free(allowed);
    free(text);
    free(siblings);
}
