/* tools/place.c: where workers are put, on machines that are not here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/place.h"

enum { MAX = 4096 };
static int allowed[MAX];
static char text[MAX][32];
static const char *siblings[MAX];
static int n;

static void none(void) {
    n = 0;
}
/* Processors first .. last, each alone on its core (other < 0), with the one `other` further (its list names both), or
 * paired 0-1, 2-3. */
enum { ALONE = -1, PAIRED = 0 };
static void add(int first, int last, int other) {
    for (int i = first; i <= last; i++, n++) {
        allowed[n] = i;
        siblings[n] = text[n];
        if (other == ALONE)
            snprintf(text[n], sizeof text[n], "%d\n", i);
        else if (other == PAIRED)
            snprintf(text[n], sizeof text[n], "%d-%d\n", i & ~1, i | 1);
        else
            snprintf(text[n], sizeof text[n], "%d,%d\n", i % other, i % other + other);
    }
}
static void expect(int wanted, int workers, bool pin) {
    struct place p = place_decide(allowed, n, siblings, wanted);
    assert_int_equal(p.workers, workers);
    assert_int_equal(p.pin, pin);
}

static void whole_machines(void **state) {
    (void)state;
    none(), add(0, 1, ALONE), expect(0, 2, true);
    none(), add(0, 0, ALONE), expect(0, 1, true);
    none(), add(0, 127, ALONE), expect(0, 128, true);
    none(), add(0, 255, 128), expect(0, 128, true);  /* two threads a core: the first halves come first */
    none(), add(0, 15, PAIRED), expect(0, 8, false); /* worker 1 would share worker 0's core */
    none(), add(0, 1023, ALONE), expect(0, 1024, true);
    none(), add(0, 2047, ALONE), expect(0, 2048, false); /* beyond what PoCL can name */
    none(), add(0, 2047, 1024), expect(0, 1024, true);
    none(), add(0, 7, PAIRED), add(8, 15, ALONE), expect(0, 12, false); /* large and small cores */
}

static void parts(void **state) {
    (void)state;
    none(), add(1, 1, ALONE), expect(0, 1, false);
    none(), add(4, 7, ALONE), expect(0, 4, false);
    none(), add(0, 3, ALONE), add(8, 11, ALONE), expect(0, 8, false);
    none(), add(0, 3, 64), expect(0, 4, true);
    none(), add(0, 3, 64), add(64, 67, 64), expect(0, 4, true);
    none(), add(64, 67, 64), expect(0, 4, false); /* only the second threads are allowed: still four cores */
    none(), add(3, 3, PAIRED), expect(0, 1, false);
    none(), add(1, 2, PAIRED), expect(0, 2, false);
    none(), add(2000, 2003, ALONE), expect(0, 4, false);
}

static void told(void **state) {
    (void)state;
    none(), add(0, 7, ALONE);
    expect(3, 3, true);
    expect(8, 8, true);
    expect(9, 9, false); /* PoCL ends the program when a worker's processor does not exist */
    none(), add(0, 15, 8);
    expect(8, 8, true);
    expect(12, 12, true); /* more than cores was asked for */
    expect(16, 16, true);
    none(), add(0, 15, PAIRED);
    expect(1, 1, true);
    expect(2, 2, false);
    expect(16, 16, true);
    none(), add(4, 7, ALONE), expect(2, 2, false);
    none(), add(0, 0, ALONE), expect(2, 2, false);
}

static void odd_lists(void **state) {
    (void)state;
    const char *bad[] = {"", "\n", "x", "-3", "1", "99999999999999999999", "0-", "3-1", NULL};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        none(), add(0, 3, ALONE);
        siblings[0] = bad[i];
        expect(0, 4, true);
    }
    none(), add(0, 3, ALONE);
    siblings[3] = "0-2147483647,3";
    expect(0, 3, true);
}

/* What is set is left; nothing is set to what is not allowed here. */
static void environment(void **state) {
    (void)state;
    setenv("POCL_MAX_PTHREAD_COUNT", "7000", 1);
    unsetenv("POCL_AFFINITY");
    place_workers();
    assert_string_equal(getenv("POCL_MAX_PTHREAD_COUNT"), "7000");
    assert_null(getenv("POCL_AFFINITY"));
    setenv("POCL_MAX_PTHREAD_COUNT", "many", 1);
    place_workers();
    assert_string_equal(getenv("POCL_MAX_PTHREAD_COUNT"), "many");
    assert_null(getenv("POCL_AFFINITY"));
    unsetenv("POCL_MAX_PTHREAD_COUNT");
    setenv("POCL_AFFINITY", "1", 1);
    place_workers();
    assert_null(getenv("POCL_MAX_PTHREAD_COUNT"));
    setenv("POCL_AFFINITY", "0", 1);
    place_workers();
    assert_string_equal(getenv("POCL_AFFINITY"), "0");
    assert_non_null(getenv("POCL_MAX_PTHREAD_COUNT"));
    assert_true(atoi(getenv("POCL_MAX_PTHREAD_COUNT")) >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_machines), cmocka_unit_test(parts),       cmocka_unit_test(told),
        cmocka_unit_test(odd_lists),      cmocka_unit_test(environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
