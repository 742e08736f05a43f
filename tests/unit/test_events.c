/* train/tensorboard: the bytes of an event file, read back by a reader of its own. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/tensorboard.h"

static dfcl_context *ctx;
static char root[64];

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/dfcl-events-XXXXXX");
    return !mkdtemp(root) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static void crc_known(void **state) {
    (void)state;
    /* The check value of CRC-32C, and the vectors of RFC 3720, B.4. */
    unsigned char zeros[32] = {0}, ones[32], up[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++)
        up[i] = (unsigned char)i;
    assert_int_equal(dfcl_crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(dfcl_crc32c(zeros, 32), 0x8a9136aau);
    assert_int_equal(dfcl_crc32c(ones, 32), 0x62a8ab43u);
    assert_int_equal(dfcl_crc32c(up, 32), 0x46dd794eu);
}

static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint32_t unmask(uint32_t m) {
    m -= 0xa282ead8u;
    return m >> 17 | m << 15;
}

/* Walks the records, checks both sums of each, returns their number; start and length of record `want` go out. */
static int records(const unsigned char *d, size_t n, int want, const unsigned char **start, size_t *len) {
    int k = 0;
    for (size_t at = 0; at < n; k++) {
        assert_true(n - at >= 16);
        size_t m = le32(d + at);
        assert_int_equal(le32(d + at + 4), 0);
        assert_int_equal(unmask(le32(d + at + 8)), dfcl_crc32c(d + at, 8));
        assert_true(m <= n - at - 16);
        assert_int_equal(unmask(le32(d + at + 12 + m)), dfcl_crc32c(d + at + 12, m));
        if (k == want) {
            *start = d + at + 12;
            *len = m;
        }
        at += 16 + m;
    }
    return k;
}

static void file_reads_back(void **state) {
    (void)state;
    char path[128], *data;
    size_t size, len = 0;
    const unsigned char *rec = NULL;
    struct dfcl_events e;
    snprintf(path, sizeof path, "%s/events", root);
    assert_int_equal(dfcl_events_open(&e, path, 0, 1.0, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_scalar(&e, "loss", 2.0, 300, 0.5f, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_flush(&e, NULL), DFCL_OK);
    uint64_t at, later;
    assert_int_equal(dfcl_events_sync(&e, &at, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_scalar(&e, "lost", 3.0, 301, 0.25f, NULL), DFCL_OK);
    dfcl_events_close(&e);

    assert_int_equal(dfcl_file_read(ctx, path, 1 << 20, &data, &size, NULL), DFCL_OK);
    assert_int_equal(records((unsigned char *)data, size, 0, &rec, &len), 3);
    /* wall_time 1.0, step 0, file_version */
    assert_int_equal(len, 9 + 2 + 2 + 13);
    assert_memory_equal(rec, "\x09\0\0\0\0\0\0\xf0\x3f\x10\0\x1a\x0d" "brain.Event:2", len);
    records((unsigned char *)data, size, 1, &rec, &len);
    /* step 300 = ac 02; summary { value { tag "loss", simple_value 0.5 } } */
    static const unsigned char want[] = "\x09\0\0\0\0\0\0\0\x40\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f";
    assert_int_equal(len, sizeof want - 1);
    assert_memory_equal(rec, want, len);
    dfcl_free(ctx, data);

    /* going back to the first scalar drops the second */
    assert_int_equal(dfcl_events_open(&e, path, at, 4.0, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_scalar(&e, "again", 5.0, 301, 1.0f, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_flush(&e, NULL), DFCL_OK);
    assert_int_equal(dfcl_events_sync(&e, &later, NULL), DFCL_OK);
    assert_true(later > at);
    dfcl_events_close(&e);
    assert_int_equal(dfcl_file_read(ctx, path, 1 << 20, &data, &size, NULL), DFCL_OK);
    assert_int_equal(records((unsigned char *)data, size, 2, &rec, &len), 3);
    assert_non_null(memmem(rec, len, "again", 5));
    assert_null(memmem(data, size, "lost", 4));
    /* a file that has lost what a checkpoint counts on */
    dfcl_error err;
    assert_int_equal(dfcl_events_open(&e, path, size + 1, 4.0, &err), DFCL_FORMAT);
    assert_non_null(strstr(err.msg, path));
    dfcl_free(ctx, data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc_known),
        cmocka_unit_test(file_reads_back),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
