/* device/: order of the list, selectors, variant masks; tensor/: arenas. Nothing here needs a device but the host reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "tensor/arena.h"

static struct dfcl_device_info info(const char *selector, const char *name, enum dfcl_device_type type, int integrated, int usable) {
    struct dfcl_device_info d = {.type = type, .integrated = integrated, .usable = usable};
    snprintf(d.selector, sizeof d.selector, "%s", selector);
    snprintf(d.backend, sizeof d.backend, "%.*s", (int)strcspn(selector, ":"), selector);
    snprintf(d.name, sizeof d.name, "%s", name);
    snprintf(d.problem, sizeof d.problem, "%s", usable ? "" : "no compiler");
    return d;
}

static size_t example(struct dfcl_device_info list[8]) {
    list[0] = info("opencl:0", "Some CPU", DFCL_DEVICE_CPU, 0, 1);
    list[1] = info("opencl:1", "UHD Graphics 770", DFCL_DEVICE_GPU, 1, 1);
    list[2] = info("opencl:2", "Old Card", DFCL_DEVICE_GPU, 0, 0);
    list[3] = info("opencl:3", "Radeon RX 7900 XT", DFCL_DEVICE_GPU, 0, 1);
    list[4] = info("opencl:4", "FPGA board", DFCL_DEVICE_ACCELERATOR, 0, 1);
    list[5] = info("opencl:5", "Radeon RX 6600", DFCL_DEVICE_GPU, 0, 1);
    list[6] = info("host", "host reference", DFCL_DEVICE_CPU, 1, 1);
    return 7;
}

static void order(void **state) {
    (void)state;
    struct dfcl_device_info list[8];
    size_t n = example(list);
    dfcl_device_sort(list, n);
    static const char *const want[] = {"opencl:3", "opencl:5", "opencl:1", "opencl:4", "opencl:0", "host", "opencl:2"};
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(list[i].selector, want[i]);
        assert_int_equal(list[i].index, i);
    }
}

static void selectors(void **state) {
    (void)state;
    struct dfcl_device_info list[8];
    size_t n = example(list);
    dfcl_device_sort(list, n);
    static const struct {
        const char *selector, *want; /* NULL: an error */
        dfcl_status status;
        const char *message;
    } cases[] = {
        {NULL, "opencl:3", DFCL_OK, ""},
        {"", "opencl:3", DFCL_OK, ""},
        {"auto", "opencl:3", DFCL_OK, ""},
        {"0", "opencl:3", DFCL_OK, ""},
        {"4", "opencl:0", DFCL_OK, ""},
        {"6", NULL, DFCL_DEVICE, "no compiler"},
        {"7", NULL, DFCL_DEVICE, "0 to 6"},
        {"99999999999999999999", NULL, DFCL_DEVICE, "no such device"},
        {"770", "opencl:1", DFCL_OK, ""},
        {"-1", NULL, DFCL_DEVICE, "no such device"},
        {"opencl:0", "opencl:0", DFCL_OK, ""},
        {"opencl:2", NULL, DFCL_DEVICE, "no compiler"},
        {"opencl:7", NULL, DFCL_DEVICE, "Radeon RX 6600"},
        {"host", "host", DFCL_OK, ""},
        {"7900", "opencl:3", DFCL_OK, ""},
        {"uhd", "opencl:1", DFCL_OK, ""},
        {"rAdEoN rx 66", "opencl:5", DFCL_OK, ""},
        {"radeon", NULL, DFCL_USAGE, "opencl:5"},
        {"old", NULL, DFCL_DEVICE, "no compiler"},
        {"geforce", NULL, DFCL_DEVICE, "found: opencl:3"},
        {"cuda:0", NULL, DFCL_DEVICE, "no such device"},
    };
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        const struct dfcl_device_info *d;
        dfcl_error e = {0};
        dfcl_status s = dfcl_device_choose(list, n, cases[i].selector, &d, &e);
        if (s != cases[i].status || (cases[i].want ? !d || strcmp(d->selector, cases[i].want) : d != NULL) ||
            !strstr(e.msg, cases[i].message))
            fail_msg("selector %s: status %d, device %s, %s", cases[i].selector, (int)s, d ? d->selector : "none", e.msg);
    }
    const struct dfcl_device_info *d;
    assert_int_equal(dfcl_device_choose(list, 0, "auto", &d, NULL), DFCL_DEVICE);
    assert_int_equal(dfcl_device_choose(list + 6, 1, "auto", &d, NULL), DFCL_DEVICE); /* only the unusable one */
}

static void masks(void **state) {
    (void)state;
    static const struct {
        const char *mask, *variant;
        bool allowed;
    } cases[] = {
        {"", "portable", true},        {"-cpu", "linear_cpu", false},    {"-cpu", "portable", true},
        {"cpu", "linear_cpu", true},   {"cpu", "portable", false},       {"cpu,portable", "portable", true},
        {"cpu,-bf16", "cpu_f32", true}, {"cpu,-bf16", "cpu_bf16", false}, {"-a,-b", "c", true},
        {"-a,-b", "xbx", false},       {",,", "x", true},                {"-", "x", true},
    };
    struct dfcl_context_params p = {0};
    dfcl_context *ctx;
    struct dfcl_device *dev;
    dfcl_error e = {0};
    assert_int_equal(dfcl_context_create(&ctx, &p, &e), DFCL_OK);
    assert_int_equal(dfcl_device_open(&dev, ctx, "host", &e), DFCL_OK);
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        assert_int_equal(dfcl_device_set_variants(dev, cases[i].mask, &e), DFCL_OK);
        if (dfcl_device_allows(dev, cases[i].variant) != cases[i].allowed)
            fail_msg("mask \"%s\", variant %s", cases[i].mask, cases[i].variant);
    }
    assert_int_equal(dfcl_device_set_variants(dev, NULL, &e), DFCL_OK);
    assert_true(dfcl_device_allows(dev, "anything"));
    char longest[300];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(dfcl_device_set_variants(dev, longest, &e), DFCL_USAGE);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
}

static void arenas(void **state) {
    (void)state;
    dfcl_context *ctx;
    struct dfcl_device *dev;
    dfcl_error e = {0};
    struct dfcl_arena a;
    assert_int_equal(dfcl_context_create(&ctx, NULL, &e), DFCL_OK);
    assert_int_equal(dfcl_device_open(&dev, ctx, "host", &e), DFCL_OK);
    dev->info.max_alloc = 1 << 20;
    dfcl_arena_init(&a, dev, "test");
    static const uint64_t sizes[] = {1, 256, 257, 700000, 400000, 0, 1 << 20, 5, 1000000, 100000};
    enum { N = DFCL_COUNT(sizes) };
    struct dfcl_ref dry, r[N];
    for (int i = 0; i < N; i++) {
        assert_int_equal(dfcl_arena_alloc(&a, sizes[i], &dry, &e), DFCL_OK);
        assert_ptr_equal(dry.mem, &dfcl_dry_mem);
    }
    assert_int_equal(dfcl_device_memory_used(dev), 0); /* nothing is taken before the plan is known */
    assert_int_equal(dfcl_arena_alloc(&a, (1 << 20) + 1, &dry, &e), DFCL_NOMEM);
    assert_non_null(strstr(e.msg, "test"));
    assert_int_equal(dfcl_arena_alloc(&a, UINT64_MAX, &dry, &e), DFCL_NOMEM);

    assert_int_equal(dfcl_arena_commit(&a, &e), DFCL_OK);
    assert_int_equal(dfcl_device_memory_used(dev), a.total);
    assert_true(a.chunk_count >= 4);
    for (size_t c = 0; c < a.chunk_count; c++)
        assert_true(a.chunk_size[c] <= dev->info.max_alloc);
    for (int i = 0; i < N; i++) {
        if (dfcl_arena_alloc(&a, sizes[i], &r[i], &e))
            fail_msg("%s", e.msg);
        assert_true(r[i].mem && r[i].mem != &dfcl_dry_mem && r[i].off % 256 == 0);
        assert_true(r[i].off + sizes[i] <= dfcl_mem_size(r[i].mem));
        for (int j = 0; j < i; j++)
            assert_true(r[j].mem != r[i].mem || r[j].off + sizes[j] <= r[i].off || r[i].off + sizes[i] <= r[j].off);
        assert_int_equal(dfcl_fill(dev, r[i], (uint32_t)i, sizes[i] / 4 * 4, &e), DFCL_OK);
    }
    for (int i = 0; i < N; i++) {
        uint32_t first, last;
        if (sizes[i] < 4)
            continue;
        assert_int_equal(dfcl_read(dev, &first, r[i], 4, &e), DFCL_OK);
        assert_int_equal(dfcl_read(dev, &last, dfcl_ref_at(r[i], sizes[i] / 4 * 4 - 4), 4, &e), DFCL_OK);
        assert_true(first == (uint32_t)i && last == (uint32_t)i);
    }
    assert_int_equal(dfcl_arena_alloc(&a, 4, &dry, &e), DFCL_ERROR); /* was not planned */

    /* another order than the dry run's is found out */
    dfcl_arena_reset(&a);
    assert_int_equal(dfcl_device_memory_used(dev), 0);
    assert_int_equal(dfcl_arena_alloc(&a, 100, &dry, &e), DFCL_OK);
    assert_int_equal(dfcl_arena_alloc(&a, 200, &dry, &e), DFCL_OK);
    assert_int_equal(dfcl_arena_commit(&a, &e), DFCL_OK);
    assert_int_equal(dfcl_arena_alloc(&a, 200, &dry, &e), DFCL_ERROR);
    assert_non_null(strstr(e.msg, "not planned"));
    dfcl_arena_finish(&a);
    assert_int_equal(dfcl_device_memory_used(dev), 0);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order),
        cmocka_unit_test(selectors),
        cmocka_unit_test(masks),
        cmocka_unit_test(arenas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
