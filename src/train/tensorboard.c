#define _GNU_SOURCE
#include "train/tensorboard.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

uint32_t dfcl_crc32c(const void *data, size_t n) {
    const unsigned char *p = data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* TensorFlow's masking: a checksum stored beside what it covers should not look like one. */
static uint32_t masked(const void *data, size_t n) {
    uint32_t c = dfcl_crc32c(data, n);
    return ((c >> 15) | (c << 17)) + 0xa282ead8u;
}

static size_t put_le(unsigned char *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> (8 * i));
    return (size_t)bytes;
}

static size_t put_varint(unsigned char *p, uint64_t v) {
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        p[n++] = (unsigned char)(v | 0x80);
    p[n++] = (unsigned char)v;
    return n;
}

static size_t put_string(unsigned char *p, int field, const void *s, size_t len) {
    size_t n = put_varint(p, (uint64_t)field << 3 | 2);
    n += put_varint(p + n, len);
    memcpy(p + n, s, len);
    return n + len;
}

static size_t put_head(unsigned char *p, double wall_time, int64_t step) {
    uint64_t bits;
    memcpy(&bits, &wall_time, sizeof bits);
    p[0] = 1 << 3 | 1;
    size_t n = 1 + put_le(p + 1, bits, 8);
    p[n++] = 2 << 3;
    return n + put_varint(p + n, (uint64_t)step);
}

static dfcl_status put_record(struct dfcl_events *e, const unsigned char *data, size_t n, dfcl_error *err) {
    unsigned char head[12], tail[4];
    put_le(head, n, 8);
    put_le(head + 8, masked(head, 8), 4);
    put_le(tail, masked(data, n), 4);
    if (fwrite(head, 1, 12, e->f) != 12 || fwrite(data, 1, n, e->f) != n || fwrite(tail, 1, 4, e->f) != 4)
        return dfcl_fail_errno(err, e->path, "cannot write");
    return DFCL_OK;
}

dfcl_status dfcl_events_open(struct dfcl_events *e, const char *path, uint64_t offset, double wall_time, dfcl_error *err) {
    memset(e, 0, sizeof *e);
    if (strlen(path) >= sizeof e->path)
        return dfcl_fail(err, DFCL_IO, "%s: path too long", path);
    strcpy(e->path, path);
    e->f = fopen(path, "abe");
    if (!e->f)
        return dfcl_fail_errno(err, path, "cannot open");
    long size = fseek(e->f, 0, SEEK_END) == 0 ? ftell(e->f) : -1;
    dfcl_status s = DFCL_OK;
    if (size < 0 || ((uint64_t)size > offset && ftruncate(fileno(e->f), (off_t)offset) != 0))
        s = dfcl_fail_errno(err, path, "cannot cut off at the checkpoint");
    if (!s && size && (uint64_t)size < offset)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected at least the %" PRIu64 " bytes of the checkpoint, found %ld", path, offset, size);
    if (!s && fseek(e->f, 0, SEEK_END) != 0)
        s = dfcl_fail_errno(err, path, "cannot seek");
    if (!s && (size == 0 || offset == 0)) {
        static const char version[] = "brain.Event:2";
        unsigned char buf[64];
        size_t n = put_head(buf, wall_time, 0);
        n += put_string(buf + n, 3, version, sizeof version - 1);
        s = put_record(e, buf, n, err);
    }
    if (s)
        dfcl_events_close(e);
    return s;
}

dfcl_status dfcl_events_scalar(struct dfcl_events *e, const char *tag, double wall_time, int64_t step, float value,
                               dfcl_error *err) {
    unsigned char val[160], sum[192], event[256];
    size_t len = strlen(tag);
    uint32_t bits;
    if (len > 100)
        return dfcl_fail(err, DFCL_USAGE, "event tag too long: %s", tag);
    memcpy(&bits, &value, sizeof bits);
    size_t v = put_string(val, 1, tag, len);
    val[v++] = 2 << 3 | 5;
    v += put_le(val + v, bits, 4);
    size_t m = put_string(sum, 1, val, v);
    size_t n = put_head(event, wall_time, step);
    n += put_string(event + n, 5, sum, m);
    return put_record(e, event, n, err);
}

dfcl_status dfcl_events_flush(struct dfcl_events *e, dfcl_error *err) {
    return fflush(e->f) == 0 ? DFCL_OK : dfcl_fail_errno(err, e->path, "cannot write");
}

dfcl_status dfcl_events_sync(struct dfcl_events *e, uint64_t *size, dfcl_error *err) {
    long at = -1;
    if (fflush(e->f) != 0 || fsync(fileno(e->f)) != 0 || (at = ftell(e->f)) < 0)
        return dfcl_fail_errno(err, e->path, "cannot write");
    *size = (uint64_t)at;
    return DFCL_OK;
}

void dfcl_events_close(struct dfcl_events *e) {
    if (e->f)
        fclose(e->f);
    e->f = NULL;
}
