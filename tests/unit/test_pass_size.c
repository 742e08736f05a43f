/* train/pass_size: the order in which passes and recompute levels are tried, and what is said when nothing fits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/pass_size.h"

/* 100 for what is always there, and for each sample 40, 30 or 10; passes of more than `largest` hold a tensor that is too large. */
struct device {
    int largest;
    dfcl_status broken;
};
static dfcl_status price(void *user, struct dfcl_pass_size size, uint64_t *need, dfcl_error *err) {
    static const uint64_t each[] = {0, 40, 30, 10};
    const struct device *d = user;
    if (d->broken)
        return dfcl_fail(err, d->broken, "broken");
    if (d->largest && size.micro > d->largest)
        return dfcl_fail(err, DFCL_NOMEM, "too large");
    *need = 100 + each[size.recompute] * (uint64_t)size.micro;
    return DFCL_OK;
}

enum { NONE = DFCL_RECOMPUTE_NONE, CHEAP = DFCL_RECOMPUTE_CHEAP, BLOCK = DFCL_RECOMPUTE_BLOCK };

static void choices(void **state) {
    (void)state;
    static const struct {
        int batch, most, full, room, largest, micro, level; /* limits, device, asked */
        int want_micro, want_level;
        const char *advice;
    } cases[] = {
        {12, 12, 4, 0, 0, 0, 0, 12, NONE, ""},     /* nothing known: everything fits */
        {12, 12, 4, 1000, 0, 0, 0, 12, NONE, ""},
        {12, 8, 4, 1000, 0, 0, 0, 6, NONE, ""},    /* 8 does not divide 12 */
        {12, 12, 4, 400, 0, 0, 0, 6, NONE, ""},    /* smaller passes before levels, while the device is busy */
        {12, 12, 4, 260, 0, 0, 0, 4, NONE, ""},
        {12, 12, 4, 259, 0, 0, 0, 4, CHEAP, ""},
        {12, 12, 4, 219, 0, 0, 0, 6, BLOCK, ""},
        {12, 12, 4, 139, 0, 0, 0, 1, CHEAP, ""},   /* below that: lower levels first again */
        {12, 12, 4, 129, 0, 0, 0, 2, BLOCK, ""},
        {12, 12, 12, 180, 0, 0, 0, 2, NONE, ""},
        {12, 12, 12, 220, 0, 0, 0, 12, BLOCK, ""},
        {7, 4, 4, 1000, 0, 0, 0, 1, NONE, ""},     /* a prime batch */
        {12, 12, 4, 1000, 6, 0, 0, 6, NONE, ""},   /* a tensor too large is no end */
        {12, 12, 4, 1000, 0, 2, 0, 2, NONE, ""},
        {12, 8, 4, 1000, 0, 12, 0, 12, NONE, ""},  /* asked for: taken, also past `most` */
        {12, 12, 4, 150, 0, 4, 0, 4, BLOCK, ""},
        {12, 12, 4, 1000, 0, 0, BLOCK, 12, BLOCK, ""},
        {12, 12, 4, 200, 0, 0, CHEAP, 3, CHEAP, ""},
        {12, 12, 4, 150, 0, 4, NONE, 4, NONE, "passes of 4 with recompute block would fit"},
        {12, 12, 4, 130, 0, 6, 0, 6, BLOCK, "passes of 1 with recompute cheap would fit"},
        {12, 12, 4, 120, 0, 0, NONE, 1, NONE, "passes of 2 with recompute block would fit"},
        {12, 12, 4, 105, 0, 0, 0, 1, BLOCK, "no setting needs less than 0.0 MiB"},
        {12, 12, 4, 0, 3, 4, 0, 4, BLOCK, "passes of 3 with recompute none would fit"},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        struct dfcl_pass_limits lim = {cases[i].batch, cases[i].most, cases[i].full, (uint64_t)cases[i].room};
        struct device d = {.largest = cases[i].largest};
        struct dfcl_pass_size asked = {cases[i].micro, (enum dfcl_recompute)cases[i].level}, found;
        char advice[128];
        dfcl_error e = {0};
        assert_int_equal(dfcl_pass_choose(&lim, asked, price, &d, &found, advice, sizeof advice, &e), DFCL_OK);
        if (found.micro != cases[i].want_micro || (int)found.recompute != cases[i].want_level || strcmp(advice, cases[i].advice))
            fail_msg("case %zu: passes of %d, level %d, \"%s\"", i, found.micro, (int)found.recompute, advice);
    }
}

static void broken(void **state) {
    (void)state;
    struct dfcl_pass_limits lim = {4, 4, 1, 100};
    struct device d = {.broken = DFCL_DEVICE};
    struct dfcl_pass_size found;
    char advice[128];
    dfcl_error e = {0};
    assert_int_equal(dfcl_pass_choose(&lim, (struct dfcl_pass_size){0}, price, &d, &found, advice, sizeof advice, &e), DFCL_DEVICE);
    assert_string_equal(e.msg, "broken");
    d.broken = DFCL_NOMEM;
    assert_int_equal(dfcl_pass_choose(&lim, (struct dfcl_pass_size){0}, price, &d, &found, advice, sizeof advice, &e), DFCL_OK);
    assert_string_equal(advice, "no setting fits this device");
}

static void names(void **state) {
    (void)state;
    enum dfcl_recompute level;
    dfcl_error e = {0};
    for (enum dfcl_recompute l = DFCL_RECOMPUTE_NONE; l < DFCL_RECOMPUTE_COUNT; l++) {
        assert_int_equal(dfcl_recompute_parse(dfcl_recompute_name(l), &level, &e), DFCL_OK);
        assert_int_equal(level, l);
    }
    level = DFCL_RECOMPUTE_BLOCK;
    assert_int_equal(dfcl_recompute_parse("auto", &level, &e), DFCL_OK);
    assert_int_equal(level, DFCL_FORWARD_ONLY);
    assert_int_equal(dfcl_recompute_parse(NULL, &level, &e), DFCL_OK);
    assert_int_equal(level, DFCL_FORWARD_ONLY);
    assert_int_equal(dfcl_recompute_parse("all", &level, &e), DFCL_USAGE);
    assert_int_equal(dfcl_recompute_parse("", &level, &e), DFCL_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(choices), cmocka_unit_test(broken), cmocka_unit_test(names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
