/* device/: transfers, fills, copies, every argument kind, errors that must be reported and not fatal. Runs on every device found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "device/device.h"
#include "device/source.h"

static dfcl_context *ctx;
static struct dfcl_device_info found[32];
static int found_count;
static char last_warning[2048];

static void on_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    if (level <= DFCL_LOG_WARN)
        snprintf(last_warning, sizeof last_warning, "%s", line);
    if (getenv("DFCL_TEST_VERBOSE"))
        fprintf(stderr, "%s\n", line);
}

static int setup(void **state) {
    (void)state;
    struct dfcl_context_params p = {.log = on_log};
    if (dfcl_context_create(&ctx, &p, NULL))
        return 1;
    int n;
    dfcl_status s = dfcl_device_list(ctx, found, (int)DFCL_COUNT(found), &n, NULL);
    found_count = DFCL_MIN(n, (int)DFCL_COUNT(found));
    return s;
}
static int teardown(void **state) {
    (void)state;
    dfcl_context_destroy(&ctx);
    return 0;
}

static struct dfcl_device *open_device(const char *selector) {
    struct dfcl_device *dev;
    dfcl_error e = {0};
    if (dfcl_device_open(&dev, ctx, selector, &e))
        fail_msg("%s: %s", selector, e.msg);
    return dev;
}

static void listing(void **state) {
    (void)state;
    assert_true(found_count >= 1);
    int hosts = 0;
    for (int i = 0; i < found_count; i++) {
        const struct dfcl_device_info *d = &found[i];
        assert_int_equal(d->index, i);
        assert_true(d->name[0] && d->selector[0]);
        hosts += !strcmp(d->backend, "host");
        for (int j = 0; j < i; j++)
            assert_string_not_equal(found[j].selector, d->selector);
        if (!d->usable) {
            assert_true(d->problem[0]);
            continue;
        }
        assert_true(d->memory > 0 && d->max_alloc > 0 && d->max_alloc <= d->memory);
        if (!strcmp(d->backend, "opencl")) {
            assert_true(d->driver[0] && d->version[0] && d->platform[0] && d->vendor[0]);
            assert_true(d->compute_units > 0 && d->max_work_group > 0 && d->local_memory > 0);
            if (d->type == DFCL_DEVICE_CPU)
                assert_true(d->vector_bits >= 128 && d->vector_bits <= 2048 && d->vector_bits % 32 == 0);
            else
                assert_int_equal(d->vector_bits, 0);
        }
    }
    assert_int_equal(hosts, 1);
    assert_string_equal(found[found_count - 1].backend, "host"); /* the reference is nobody's first choice */
}

static void transfers(void **state) {
    (void)state;
    for (int i = 0; i < found_count; i++) {
        if (!found[i].usable)
            continue;
        struct dfcl_device *dev = open_device(found[i].selector);
        dfcl_error e = {0};
        struct dfcl_mem *a, *b;
        enum { N = 5000 };
        unsigned char in[N], out[N];
        for (int k = 0; k < N; k++)
            in[k] = (unsigned char)(k * 7 + k / 256);
        assert_int_equal(dfcl_mem_create(dev, N, "a", &a, &e), DFCL_OK);
        assert_int_equal(dfcl_mem_create(dev, N + 12, "b", &b, &e), DFCL_OK);
        assert_int_equal(dfcl_device_memory_used(dev), 2 * N + 12);
        assert_int_equal(dfcl_write(dev, (struct dfcl_ref){a, 0}, in, N, &e), DFCL_OK);
        assert_int_equal(dfcl_fill(dev, (struct dfcl_ref){b, 0}, 0xdeadbeefu, N + 12, &e), DFCL_OK);
        assert_int_equal(dfcl_copy(dev, (struct dfcl_ref){b, 4}, (struct dfcl_ref){a, 0}, N, &e), DFCL_OK);
        assert_int_equal(dfcl_write(dev, (struct dfcl_ref){b, 9}, "xyz", 3, &e), DFCL_OK); /* any byte offset */
        assert_int_equal(dfcl_read(dev, out, (struct dfcl_ref){b, 4}, N, &e), DFCL_OK);
        in[5] = 'x', in[6] = 'y', in[7] = 'z';
        assert_memory_equal(in, out, N);
        uint32_t edge[3];
        assert_int_equal(dfcl_read(dev, edge, (struct dfcl_ref){b, 0}, 4, &e), DFCL_OK);
        assert_int_equal(dfcl_read(dev, edge + 1, (struct dfcl_ref){b, N + 4}, 8, &e), DFCL_OK);
        for (int k = 0; k < 3; k++)
            assert_int_equal(edge[k], 0xdeadbeefu);

        /* refused before any backend sees them */
        assert_int_equal(dfcl_read(dev, out, (struct dfcl_ref){a, 1}, N, &e), DFCL_ERROR);
        assert_int_equal(dfcl_read(dev, out, DFCL_NO_REF, 1, &e), DFCL_ERROR);
        assert_int_equal(dfcl_write(dev, (struct dfcl_ref){a, UINT64_MAX}, in, 2, &e), DFCL_ERROR);
        assert_int_equal(dfcl_copy(dev, (struct dfcl_ref){a, 0}, (struct dfcl_ref){a, 10}, 11, &e), DFCL_ERROR);
        assert_int_equal(dfcl_fill(dev, (struct dfcl_ref){a, 2}, 0, 4, &e), DFCL_ERROR);
        struct dfcl_mem *none;
        assert_int_equal(dfcl_mem_create(dev, 0, "empty", &none, &e), DFCL_ERROR);
        assert_int_equal(dfcl_mem_create(dev, UINT64_MAX / 2, "huge", &none, &e), DFCL_NOMEM);
        assert_null(none);
        assert_non_null(strstr(e.msg, "huge"));
        assert_int_equal(dfcl_finish(dev, &e), DFCL_OK);
        dfcl_mem_destroy(dev, &a);
        dfcl_mem_destroy(dev, &b);
        assert_null(a);
        assert_int_equal(dfcl_device_memory_used(dev), 0);
        assert_int_equal(dfcl_device_memory_peak(dev), 2 * N + 12);
        dfcl_device_close(&dev);
        assert_null(dev);
    }
}

static void wrapping(void **state) {
    (void)state;
    size_t size = 3 * 4096;
    unsigned char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(page != MAP_FAILED);
    for (size_t k = 0; k < size; k++)
        page[k] = (unsigned char)(k * 13 + k / 256);
    assert_int_equal(mprotect(page, size, PROT_READ), 0);
    for (int i = 0; i < found_count; i++) {
        if (!found[i].usable)
            continue;
        struct dfcl_device *dev = open_device(found[i].selector);
        dfcl_error e = {0};
        struct dfcl_mem *m, *copy;
        assert_int_equal(dfcl_mem_wrap(dev, page, size, &m, &e), DFCL_OK);
        if (found[i].type == DFCL_DEVICE_CPU)
            assert_non_null(m);
        if (m) {
            assert_int_equal(dfcl_device_memory_used(dev), 0);
            assert_int_equal(dfcl_write(dev, (struct dfcl_ref){m, 0}, "x", 1, &e), DFCL_ERROR);
            assert_int_equal(dfcl_mem_create(dev, 5000, "copy", &copy, &e), DFCL_OK);
            assert_int_equal(dfcl_copy(dev, (struct dfcl_ref){copy, 0}, (struct dfcl_ref){m, 4100}, 5000, &e), DFCL_OK);
            unsigned char out[5000];
            assert_int_equal(dfcl_read(dev, out, (struct dfcl_ref){copy, 0}, 5000, &e), DFCL_OK);
            assert_memory_equal(out, page + 4100, 5000);
            dfcl_mem_destroy(dev, &copy);
            dfcl_mem_destroy(dev, &m);
        }
        dfcl_device_close(&dev);
    }
    munmap(page, size);
}

static void arguments(void **state) {
    (void)state;
    int ran = 0;
    for (int i = 0; i < found_count; i++) {
        if (!found[i].usable || !strcmp(found[i].backend, "host"))
            continue;
        struct dfcl_device *dev = open_device(found[i].selector);
        dfcl_error e = {0};
        struct dfcl_kernel *k, *again;
        if (dfcl_device_kernel(dev, "probe", "probe_args", NULL, &k, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(dfcl_device_kernel(dev, "probe", "probe_args", "", &again, &e), DFCL_OK);
        assert_ptr_equal(k, again);
        assert_int_equal(dfcl_device_kernel(dev, "probe", "probe_args", "-DOTHER=1", &again, &e), DFCL_OK);
        assert_ptr_not_equal(k, again);
        struct dfcl_mem *m;
        uint32_t v[200];
        for (uint32_t n = 0; n < 200; n++)
            v[n] = n * n + 1;
        assert_int_equal(dfcl_mem_create(dev, sizeof v, "args", &m, &e), DFCL_OK);
        for (int with = 0; with < 2; with++) {
            assert_int_equal(dfcl_write(dev, (struct dfcl_ref){m, 0}, v, sizeof v, &e), DFCL_OK);
            struct dfcl_args a = {0};
            dfcl_args_ref(&a, (struct dfcl_ref){m, 100 * 4}, 4);
            dfcl_args_ref(&a, with ? (struct dfcl_ref){m, 7 * 4} : DFCL_NO_REF, 4);
            dfcl_args_i32(&a, -5);
            dfcl_args_u32(&a, 0xfffffff0u);
            dfcl_args_i64(&a, INT64_C(-0x123456789));
            if (!with) /* one argument short */
                assert_int_equal(dfcl_device_launch(dev, k, (size_t[3]){1, 1, 1}, &a, &e), DFCL_ERROR);
            dfcl_args_f32(&a, -0.15625f);
            if (dfcl_device_launch(dev, k, (size_t[3]){1, 1, 1}, &a, &e))
                fail_msg("%s", e.msg);
            uint32_t out[200];
            assert_int_equal(dfcl_read(dev, out, (struct dfcl_ref){m, 0}, sizeof out, &e), DFCL_OK);
            assert_int_equal(out[100], (uint32_t)-5);
            assert_int_equal(out[101], 0xfffffff0u);
            assert_int_equal(out[102], (uint32_t)(INT64_C(-0x123456789) & 0xffffffff));
            assert_int_equal(out[103], 0xfffffffeu);
            assert_int_equal(out[104], 0xbe200000u);
            for (uint32_t n = 0; n < 200; n++)
                if (n >= 108 && n < 172)
                    assert_int_equal(out[n], with ? 3 * v[7 + n - 108] : 0);
                else if (n < 100 || n > 104)
                    assert_int_equal(out[n], v[n]);
        }
        /* nothing to do is fine; absurd sizes are not */
        struct dfcl_args none = {0};
        assert_int_equal(dfcl_device_launch(dev, k, (size_t[3]){0, 1, 1}, &none, &e), DFCL_OK);
        assert_int_equal(dfcl_device_launch(dev, k, (size_t[3]){1, 65536, 1}, &none, &e), DFCL_ERROR);
        dfcl_mem_destroy(dev, &m);
        dfcl_device_close(&dev);
        ran++;
    }
    if (!ran)
        skip();
}

static void sums(void **state) {
    (void)state;
    for (int i = 0; i < found_count; i++) {
        if (!found[i].usable || !strcmp(found[i].backend, "host"))
            continue;
        struct dfcl_device *dev = open_device(found[i].selector);
        dfcl_error e = {0};
        struct dfcl_kernel *k;
        struct dfcl_mem *m;
        enum { N = 64 * 5000 }; /* more launches than markers in flight, below */
        float *v = calloc(N, sizeof *v), *out = calloc(N, sizeof *v);
        for (int n = 0; n < N; n++)
            v[n] = (float)((n * 31 + n / 64) % 17);
        assert_int_equal(dfcl_mem_create(dev, 2 * N * sizeof *v, "sums", &m, &e), DFCL_OK);
        assert_int_equal(dfcl_write(dev, (struct dfcl_ref){m, 0}, v, N * sizeof *v, &e), DFCL_OK);
        for (int g = 0; g < 5000; g++) { /* one group a launch, found anew each time */
            assert_int_equal(dfcl_device_kernel(dev, "probe", "probe_sum", NULL, &k, &e), DFCL_OK);
            struct dfcl_args a = {0};
            dfcl_args_ref(&a, (struct dfcl_ref){m, (uint64_t)(N + g * 64) * sizeof *v}, sizeof *v);
            dfcl_args_ref(&a, (struct dfcl_ref){m, (uint64_t)(g * 64) * sizeof *v}, sizeof *v);
            if (dfcl_device_launch(dev, k, (size_t[3]){1, 1, 1}, &a, &e))
                fail_msg("%s", e.msg);
        }
        assert_int_equal(dfcl_flush(dev, &e), DFCL_OK);
        assert_int_equal(dfcl_finish(dev, &e), DFCL_OK);
        assert_int_equal(dfcl_read(dev, out, (struct dfcl_ref){m, N * sizeof *v}, N * sizeof *v, &e), DFCL_OK);
        for (int g = 0; g < 5000; g++) {
            float want = 0.0f;
            for (int n = 0; n < 64; n++)
                want += v[g * 64 + n];
            for (int n = 0; n < 64; n++)
                if (out[g * 64 + n] != want)
                    fail_msg("%s: group %d item %d: %g, not %g", found[i].selector, g, n, (double)out[g * 64 + n], (double)want);
        }
        free(v);
        free(out);
        dfcl_mem_destroy(dev, &m);
        dfcl_device_close(&dev);
    }
}

static void build_errors(void **state) {
    (void)state;
    for (int i = 0; i < found_count; i++) {
        if (!found[i].usable)
            continue;
        struct dfcl_device *dev = open_device(found[i].selector);
        dfcl_error e = {0};
        struct dfcl_kernel *k;
        assert_int_equal(dfcl_device_kernel(dev, "nothing", "f", NULL, &k, &e), DFCL_ERROR);
        assert_non_null(strstr(e.msg, "nothing"));
        assert_null(k);
        assert_int_equal(dfcl_device_kernel(dev, "probe", "no_such", NULL, &k, &e), DFCL_ERROR);
        assert_non_null(strstr(e.msg, "no_such"));
        if (strcmp(found[i].backend, "host")) {
            assert_int_equal(dfcl_device_kernel(dev, "probe", "probe_sum", "-Dget_local_id=garbage", &k, &e), DFCL_DEVICE);
            assert_non_null(strstr(e.msg, "probe.cl"));
            assert_non_null(strstr(e.msg, "garbage"));
            assert_null(strchr(e.msg, '\n'));
        }
        /* the device still works */
        assert_int_equal(dfcl_finish(dev, &e), DFCL_OK);
        dfcl_device_close(&dev);
    }
}

static void source_text(void **state) {
    (void)state;
    char *text;
    size_t size;
    dfcl_error e = {0};
    assert_int_equal(dfcl_kernel_source(ctx, "prelude_cl.h", "probe", &text, &size, &e), DFCL_OK);
    assert_int_equal(strlen(text), size);
    char *a = strstr(text, "#line 1 \"prelude_cl.h\""), *b = strstr(text, "#line 1 \"dialect.h\""), *c = strstr(text, "#line 1 \"probe.cl\"");
    assert_true(a == text && b > a && c > b);
    assert_non_null(strstr(c, "probe_args"));
    dfcl_free(ctx, text);
    assert_int_equal(dfcl_kernel_source(ctx, "prelude_cl.h", "prob", &text, &size, &e), DFCL_ERROR);
    assert_null(text);
    assert_null(dfcl_kernel_file("probe"));
    assert_non_null(dfcl_kernel_file("probe.cl"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(listing),   cmocka_unit_test(transfers), cmocka_unit_test(wrapping),    cmocka_unit_test(arguments),
        cmocka_unit_test(sums),      cmocka_unit_test(build_errors), cmocka_unit_test(source_text),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
