/* device/cache: entries come back as written, damage is a miss with a warning, a folder that cannot be written is only a warning. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "device/cache.h"
#include "device/device.h"

static char dir[] = "/tmp/dfcl-cache-XXXXXX";
static dfcl_context *ctx;
static int warnings, from_cache;
static char last[1024];

static void on_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    if (level <= DFCL_LOG_WARN) {
        warnings++;
        snprintf(last, sizeof last, "%s", line);
    }
    from_cache += strstr(line, "from the program cache") != NULL;
}

static dfcl_context *context_in(const char *cache_dir) {
    dfcl_context *c;
    struct dfcl_context_params p = {.log = on_log, .cache_dir = cache_dir};
    assert_int_equal(dfcl_context_create(&c, &p, NULL), DFCL_OK);
    return c;
}

static int setup(void **state) {
    (void)state;
    if (!mkdtemp(dir))
        return 1;
    ctx = context_in(dir);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static void keys(void **state) {
    (void)state;
    char a[65], b[65];
    assert_int_equal(dfcl_cache_key((const char *[]){"ab", "c"}, 2, a, NULL), DFCL_OK);
    assert_int_equal(dfcl_cache_key((const char *[]){"a", "bc"}, 2, b, NULL), DFCL_OK);
    assert_string_not_equal(a, b);
    assert_int_equal(dfcl_cache_key((const char *[]){"ab", "c"}, 2, b, NULL), DFCL_OK);
    assert_string_equal(a, b);
    assert_int_equal(strlen(a), 64);
}

static void entries(void **state) {
    (void)state;
    char key[65], other[65], path[256];
    unsigned char payload[1000], *data;
    size_t size;
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (unsigned char)(i * 31 + i / 256);
    dfcl_cache_key((const char *[]){"one"}, 1, key, NULL);
    dfcl_cache_key((const char *[]){"two"}, 1, other, NULL);
    warnings = 0;
    assert_false(dfcl_cache_load(ctx, "programs", key, &data, &size));
    assert_int_equal(warnings, 0); /* absent is no damage */
    dfcl_cache_store(ctx, "programs", key, payload, sizeof payload);
    assert_int_equal(warnings, 0);
    assert_true(dfcl_cache_load(ctx, "programs", key, &data, &size));
    assert_int_equal(size, sizeof payload);
    assert_memory_equal(data, payload, size);
    dfcl_free(ctx, data);
    assert_false(dfcl_cache_load(ctx, "programs", other, &data, &size));

    /* every single damaged byte, and every cut, is noticed */
    char *entry;
    size_t n, got;
    snprintf(path, sizeof path, "%s/programs/%s.bin", dir, key);
    assert_int_equal(dfcl_file_read(ctx, path, 1 << 20, &entry, &n, NULL), DFCL_OK);
    assert_non_null(dfcl_cache_parse((unsigned char *)entry, n, key, &got));
    assert_null(dfcl_cache_parse((unsigned char *)entry, n, other, &got));
    assert_null(dfcl_cache_parse((unsigned char *)entry, n, "", &got));
    for (size_t i = 0; i < n; i++) {
        entry[i] ^= 0x10;
        if (dfcl_cache_parse((unsigned char *)entry, n, key, &got))
            fail_msg("byte %zu of %zu changed and not noticed", i, n);
        entry[i] ^= 0x10;
        if (dfcl_cache_parse((unsigned char *)entry, i, key, &got))
            fail_msg("cut to %zu of %zu and not noticed", i, n);
    }
    assert_non_null(dfcl_cache_parse((unsigned char *)entry, n, key, &got));

    /* the same through the file, which is then made good again */
    entry[n - 7] ^= 1;
    assert_int_equal(dfcl_file_write(ctx, path, entry, n, NULL), DFCL_OK);
    assert_false(dfcl_cache_load(ctx, "programs", key, &data, &size));
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(last, "damaged"));
    dfcl_cache_store(ctx, "programs", key, payload, sizeof payload);
    assert_true(dfcl_cache_load(ctx, "programs", key, &data, &size));
    dfcl_free(ctx, data);
    dfcl_free(ctx, entry);
    assert_int_equal(dfcl_file_write(ctx, path, "", 0, NULL), DFCL_OK);
    assert_false(dfcl_cache_load(ctx, "programs", key, &data, &size));
    assert_int_equal(warnings, 2);
}

static void unwritable(void **state) {
    (void)state;
    char key[65], path[256];
    unsigned char *data;
    size_t size;
    dfcl_cache_key((const char *[]){"three"}, 1, key, NULL);
    snprintf(path, sizeof path, "%s/taken", dir);
    assert_int_equal(dfcl_file_write(ctx, path, "x", 1, NULL), DFCL_OK);
    dfcl_context *c = context_in(path); /* a file where the folder should be */
    warnings = 0;
    dfcl_cache_store(c, "programs", key, "data", 4);
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(last, "not written"));
    assert_false(dfcl_cache_load(c, "programs", key, &data, &size));
    dfcl_context_destroy(&c);
    c = context_in(NULL);
    dfcl_cache_store(c, "programs", key, "data", 4);
    assert_false(dfcl_cache_load(c, "programs", key, &data, &size));
    assert_int_equal(warnings, 1);
    dfcl_context_destroy(&c);
}

/* Builds one kernel; returns how many programs came from the cache. */
static int build_once(dfcl_context *c, const char *selector) {
    struct dfcl_device *dev;
    struct dfcl_kernel *k;
    dfcl_error e = {0};
    from_cache = 0;
    if (dfcl_device_open(&dev, c, selector, &e))
        fail_msg("%s", e.msg);
    if (dfcl_device_kernel(dev, "probe", "probe_args", "-DUNUSED=1", &k, &e))
        fail_msg("%s", e.msg);
    dfcl_device_close(&dev);
    return from_cache;
}

static void devices(void **state) {
    (void)state;
    struct dfcl_device_info list[32];
    int n, tried = 0;
    assert_int_equal(dfcl_device_list(ctx, list, 32, &n, NULL), DFCL_OK);
    for (int i = 0; i < n && i < 32; i++) {
        if (!list[i].usable || strcmp(list[i].backend, "opencl"))
            continue;
        char sub[256], programs[300], path[600];
        snprintf(sub, sizeof sub, "%s/device%d", dir, i);
        snprintf(programs, sizeof programs, "%s/programs", sub);
        dfcl_context *c = context_in(sub);
        warnings = 0;
        assert_int_equal(build_once(c, list[i].selector), 0);
        struct dfcl_list files = {0};
        if (strstr(list[i].platform, "Portable Computing Language")) {
            assert_int_equal(dfcl_path_kind(programs), DFCL_PATH_NONE); /* PoCL has its own cache */
        } else if (dfcl_path_kind(programs) == DFCL_PATH_DIR) {
            int again = build_once(c, list[i].selector);
            assert_true(again >= 1);
            assert_int_equal(dfcl_list_dir(c, programs, &files, NULL), DFCL_OK);
            assert_true(files.count >= 1);
            for (size_t f = 0; f < files.count; f++) { /* damage them all */
                char *data;
                size_t size;
                snprintf(path, sizeof path, "%s/%s", programs, files.names[f]);
                assert_int_equal(dfcl_file_read(c, path, 64 << 20, &data, &size, NULL), DFCL_OK);
                data[size / 2] ^= 4;
                assert_int_equal(dfcl_file_write(c, path, data, size, NULL), DFCL_OK);
                dfcl_free(c, data);
            }
            assert_int_equal(warnings, 0);
            assert_int_equal(build_once(c, list[i].selector), 0);
            assert_true(warnings >= 1);
            assert_int_equal(build_once(c, list[i].selector), again); /* written anew */
            dfcl_list_free(c, &files);
            tried++;
        }
        dfcl_context_destroy(&c);
    }
    if (!tried)
        skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys),
        cmocka_unit_test(entries),
        cmocka_unit_test(unwritable),
        cmocka_unit_test(devices),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
