#include "formats/zip.h"

#include <stdlib.h>
#include <string.h>

#define ZLIB_CONST /* next_in points to const */
#include <zlib.h>

#define MAX_ENTRIES (1u << 20)
#define DEFLATE_MOST 1032 /* bytes out per byte in, at most (zlib, "technical details") */

static uint64_t le(const unsigned char *p, int n) {
    uint64_t v = 0;
    for (int i = n - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static dfcl_status bad(const struct dfcl_zip *z, dfcl_error *err, const char *what) {
    return dfcl_fail(err, DFCL_FORMAT, "%s: bad zip file: %s", z->path, what);
}

static dfcl_status bad_entry(const struct dfcl_zip *z, const struct dfcl_zip_entry *e, dfcl_error *err, const char *what) {
    return dfcl_fail(err, DFCL_FORMAT, "%s: bad zip file: entry %.*s: %s", z->path, (int)DFCL_MIN(e->name_size, 80), e->name, what);
}

/* End record -> where the central directory is. */
static dfcl_status find_directory(const struct dfcl_zip *z, uint64_t *at, uint64_t *size, uint64_t *entries, dfcl_error *err) {
    const unsigned char *d = z->data;
    if (z->size < 22)
        return bad(z, err, "cut short");
    uint64_t end = z->size - 22, low = end > 65535 ? end - 65535 : 0;
    for (;; end--) {
        if (le(d + end, 4) == 0x06054b50 && end + 22 + le(d + end + 20, 2) == z->size)
            break;
        if (end == low)
            return bad(z, err, "no end record, it may be cut short");
    }
    uint64_t disk = le(d + end + 4, 2), disk2 = le(d + end + 6, 2), here = le(d + end + 8, 2);
    *entries = le(d + end + 10, 2);
    *size = le(d + end + 12, 4);
    *at = le(d + end + 16, 4);
    uint64_t stop = end;
    if (end >= 20 && le(d + end - 20, 4) == 0x07064b50) {
        uint64_t rec = le(d + end - 12, 8);
        if (end - 20 < 56 || rec > end - 20 - 56 || le(d + rec, 4) != 0x06064b50 || le(d + rec + 4, 8) < 44 ||
            le(d + rec + 4, 8) != end - 20 - rec - 12 || le(d + end - 16, 4) != 0 || le(d + end - 4, 4) > 1)
            return bad(z, err, "the zip64 end record is damaged");
        disk = le(d + rec + 16, 4);
        disk2 = le(d + rec + 20, 4);
        here = le(d + rec + 24, 8);
        *entries = le(d + rec + 32, 8);
        *size = le(d + rec + 40, 8);
        *at = le(d + rec + 48, 8);
        stop = rec;
    }
    if (disk || disk2 || here != *entries)
        return bad(z, err, "several disks");
    if (*size > stop || *at != stop - *size)
        return bad(z, err, "the central directory is not where the end record says");
    if (*entries > MAX_ENTRIES || *entries > *size / 46)
        return bad(z, err, "too many entries");
    return DFCL_OK;
}

/* Replaces 32-bit fields that are all ones by their zip64 values, in the order the format fixes. */
static bool zip64_extra(const unsigned char *x, uint64_t n, uint64_t **fields, int count) {
    for (uint64_t at = 0; n - at >= 4;) {
        uint64_t id = le(x + at, 2), len = le(x + at + 2, 2);
        if (len > n - at - 4)
            return false;
        if (id == 1) {
            uint64_t p = at + 4, stop = p + len;
            for (int i = 0; i < count; i++)
                if (*fields[i] == UINT32_MAX) {
                    if (stop - p < 8)
                        return false;
                    *fields[i] = le(x + p, 8);
                    p += 8;
                }
            return true;
        }
        at += 4 + len;
    }
    return true;
}

/* The local header must tell the same story as the central one; finds the bytes. *stop: end of the entry with its descriptor. */
static dfcl_status check_local(const struct dfcl_zip *z, struct dfcl_zip_entry *e, uint64_t limit, uint64_t *stop, dfcl_error *err) {
    const unsigned char *d = z->data;
    if (e->header > limit || limit - e->header < 30 || le(d + e->header, 4) != 0x04034b50)
        return bad_entry(z, e, err, "no local header where the directory says");
    const unsigned char *h = d + e->header;
    uint64_t names = le(h + 26, 2), extra = le(h + 28, 2), room = limit - e->header - 30;
    if (names != e->name_size || names + extra > room || memcmp(h + 30, e->name, names))
        return bad_entry(z, e, err, "the local header has another name");
    e->offset = e->header + 30 + names + extra;
    if (e->packed > limit - e->offset)
        return bad_entry(z, e, err, "reaches into the directory, or the file is cut short");
    uint64_t packed = le(h + 18, 4), size = le(h + 22, 4), crc = le(h + 14, 4);
    uint64_t *fields[] = {&size, &packed};
    if (!zip64_extra(h + 30 + names, extra, fields, 2))
        return bad_entry(z, e, err, "damaged extra field");
    bool later = e->flags & 8; /* sizes and checksum follow the bytes */
    if (le(h + 6, 2) != e->flags || le(h + 8, 2) != e->method ||
        !((packed == e->packed && size == e->size) || (later && packed == 0 && size == 0)) || !(crc == e->crc || (later && crc == 0)))
        return bad_entry(z, e, err, "its two headers disagree");
    *stop = e->offset + e->packed;
    if (!later)
        return DFCL_OK;
    const unsigned char *t = d + *stop;
    room = limit - *stop;
    for (int sign = 4; sign >= 0; sign -= 4)
        for (int wide = 8; wide >= 4; wide -= 4) {
            uint64_t n = (uint64_t)(sign + 4 + 2 * wide);
            uint64_t mask = wide == 8 ? UINT64_MAX : UINT32_MAX;
            if (room >= n && (!sign || le(t, 4) == 0x08074b50) && le(t + sign, 4) == e->crc &&
                le(t + sign + 4, wide) == (e->packed & mask) && le(t + sign + 4 + wide, wide) == (e->size & mask)) {
                *stop += n;
                return DFCL_OK;
            }
        }
    return bad_entry(z, e, err, "its data descriptor disagrees with the directory");
}

static int by_header(const void *a, const void *b) {
    uint64_t x = ((const struct dfcl_zip_entry *)a)->header, y = ((const struct dfcl_zip_entry *)b)->header;
    return x < y ? -1 : x > y;
}

static int compare_name(const char *a, size_t an, const char *b, size_t bn) {
    int c = memcmp(a, b, DFCL_MIN(an, bn));
    return c ? c : an < bn ? -1 : an > bn;
}
static int by_name(const void *a, const void *b) {
    const struct dfcl_zip_entry *x = a, *y = b;
    return compare_name(x->name, x->name_size, y->name, y->name_size);
}

dfcl_status dfcl_zip_open(struct dfcl_zip *z, const dfcl_context *ctx, const void *data, uint64_t size, const char *path, dfcl_error *err) {
    memset(z, 0, sizeof *z);
    z->ctx = ctx;
    z->path = path;
    z->data = data;
    z->size = size;
    uint64_t at = 0, length = 0, entries = 0;
    dfcl_status s = find_directory(z, &at, &length, &entries, err);
    if (s)
        return s;
    z->entries = dfcl_calloc(ctx, (size_t)entries, sizeof *z->entries, err);
    if (!z->entries)
        return DFCL_NOMEM;
    const uint64_t directory = at, end = at + length;
    for (uint64_t i = 0; i < entries; i++) {
        const unsigned char *h = z->data + at;
        struct dfcl_zip_entry *e = &z->entries[z->count];
        if (end - at < 46 || le(h, 4) != 0x02014b50) {
            s = bad(z, err, "the central directory is damaged");
            goto out;
        }
        uint64_t names = le(h + 28, 2), extra = le(h + 30, 2), comment = le(h + 32, 2);
        if (names + extra + comment > end - at - 46) {
            s = bad(z, err, "the central directory is damaged");
            goto out;
        }
        e->name = (const char *)h + 46;
        e->name_size = (uint16_t)names;
        e->flags = (uint16_t)le(h + 8, 2);
        e->method = (uint16_t)le(h + 10, 2);
        e->crc = (uint32_t)le(h + 16, 4);
        e->packed = le(h + 20, 4);
        e->size = le(h + 24, 4);
        e->header = le(h + 42, 4);
        uint64_t *fields[] = {&e->size, &e->packed, &e->header};
        if (!zip64_extra(h + 46 + names, extra, fields, 3))
            s = bad_entry(z, e, err, "damaged extra field");
        else if (e->flags & 0x2041) /* encrypted, strongly encrypted, masked headers */
            s = bad_entry(z, e, err, "encrypted");
        else if (e->method != 0 && e->method != 8)
            s = bad_entry(z, e, err, "expected to be stored or deflated, found another compression");
        else if (e->method == 0 ? e->packed != e->size : e->size / DEFLATE_MOST > e->packed)
            s = bad_entry(z, e, err, "its size cannot be right");
        if (s)
            goto out;
        z->count++;
        at += 46 + names + extra + comment;
    }
    if (at != end) {
        s = bad(z, err, "the central directory is damaged");
        goto out;
    }
    if (z->count)
        qsort(z->entries, z->count, sizeof *z->entries, by_header);
    uint64_t last = 0;
    for (size_t i = 0; i < z->count && !s; i++) {
        if (z->entries[i].header < last)
            s = bad_entry(z, &z->entries[i], err, "overlaps another one");
        else
            s = check_local(z, &z->entries[i], directory, &last, err);
    }
    if (s)
        goto out;
    if (z->count)
        qsort(z->entries, z->count, sizeof *z->entries, by_name);
    for (size_t i = 1; i < z->count && !s; i++)
        if (by_name(&z->entries[i - 1], &z->entries[i]) == 0)
            s = bad_entry(z, &z->entries[i], err, "appears twice");
out:
    if (s)
        dfcl_zip_close(z);
    return s;
}

void dfcl_zip_close(struct dfcl_zip *z) {
    for (size_t i = 0; i < z->count; i++)
        dfcl_free(z->ctx, z->entries[i].inflated);
    if (z->ctx)
        dfcl_free(z->ctx, z->entries);
    memset(z, 0, sizeof *z);
}

struct dfcl_zip_entry *dfcl_zip_find(struct dfcl_zip *z, const char *name) {
    size_t lo = 0, hi = z->count, n = strlen(name);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        struct dfcl_zip_entry *e = &z->entries[mid];
        int c = compare_name(name, n, e->name, e->name_size);
        if (c == 0)
            return e;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

static dfcl_status inflate_entry(struct dfcl_zip *z, struct dfcl_zip_entry *e, dfcl_error *err) {
    if (e->size > SIZE_MAX)
        return dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", z->path);
    unsigned char *out = dfcl_calloc(z->ctx, (size_t)e->size, 1, err);
    if (!out)
        return DFCL_NOMEM;
    z_stream s = {0};
    if (inflateInit2(&s, -15) != Z_OK) {
        dfcl_free(z->ctx, out);
        return dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", z->path);
    }
    /* zlib counts in 32 bits: fed and drained in pieces. */
    uint64_t in = 0, done = 0;
    int r = Z_OK;
    unsigned char spare;
    while (r == Z_OK) {
        uInt give = (uInt)DFCL_MIN(e->packed - in, (uint64_t)1 << 30), take = (uInt)DFCL_MIN(e->size - done, (uint64_t)1 << 30);
        s.next_in = z->data + e->offset + in;
        s.avail_in = give;
        s.next_out = take ? out + done : &spare; /* one byte more than announced shows as such */
        s.avail_out = take ? take : 1;
        r = inflate(&s, Z_NO_FLUSH);
        in += give - s.avail_in;
        if (take)
            done += take - s.avail_out;
        else if (s.avail_out == 0)
            r = Z_DATA_ERROR;
        else if (r == Z_OK && give == s.avail_in)
            r = Z_BUF_ERROR;
    }
    inflateEnd(&s);
    if (r != Z_STREAM_END || done != e->size || in != e->packed) {
        dfcl_free(z->ctx, out);
        return bad_entry(z, e, err, "its compressed bytes are damaged");
    }
    e->inflated = out;
    return DFCL_OK;
}

dfcl_status dfcl_zip_fetch(struct dfcl_zip *z, struct dfcl_zip_entry *e, const unsigned char **bytes, dfcl_error *err) {
    if (e->method == 8 && !e->inflated) {
        dfcl_status s = inflate_entry(z, e, err);
        if (s)
            return s;
    }
    *bytes = e->inflated ? e->inflated : z->data + e->offset;
    if (!e->checked && e->crc && crc32_z(0, *bytes, (size_t)e->size) != e->crc) {
        *bytes = NULL;
        return bad_entry(z, e, err, "its checksum does not match, the file is damaged");
    }
    e->checked = true;
    return DFCL_OK;
}

void dfcl_zip_drop(struct dfcl_zip *z, struct dfcl_zip_entry *e) {
    dfcl_free(z->ctx, e->inflated);
    e->inflated = NULL;
}
