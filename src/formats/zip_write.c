#include "formats/zip_write.h"

#include <string.h>

void dfcl_zip_put(struct dfcl_zip_bytes *o, uint64_t v, int n) {
    for (int i = 0; i < n; i++)
        o->b[o->n++] = (unsigned char)(v >> (8 * i));
}

void dfcl_zip_put_text(struct dfcl_zip_bytes *o, const void *text, size_t n) {
    memcpy(o->b + o->n, text, n);
    o->n += n;
}

/* The part that local and central headers share: versions apart, up to the name's length. */
static void put_common(struct dfcl_zip_bytes *o, const struct dfcl_zip_record *r, bool zip64) {
    dfcl_zip_put(o, zip64 ? 45 : 20, 2); /* version needed */
    dfcl_zip_put(o, 0, 2);               /* flags */
    dfcl_zip_put(o, 0, 2);               /* stored */
    dfcl_zip_put(o, 0, 2);               /* time */
    dfcl_zip_put(o, 0x21, 2);            /* 1980-01-01: the same run gives the same file */
    dfcl_zip_put(o, r->crc, 4);
    dfcl_zip_put(o, zip64 ? UINT32_MAX : r->size, 4);
    dfcl_zip_put(o, zip64 ? UINT32_MAX : r->size, 4);
    dfcl_zip_put(o, strlen(r->name), 2);
}

void dfcl_zip_put_local(struct dfcl_zip_bytes *o, const struct dfcl_zip_record *r, bool zip64, uint64_t align) {
    uint64_t extra = zip64 ? 20 : 0, end = r->offset + 30 + strlen(r->name) + extra, fill = 0;
    if (align && end % align) {
        fill = align - end % align;
        fill += fill < 4 ? align : 0; /* its own head takes four */
    }
    dfcl_zip_put(o, 0x04034b50, 4);
    put_common(o, r, zip64);
    dfcl_zip_put(o, extra + fill, 2);
    dfcl_zip_put_text(o, r->name, strlen(r->name));
    if (zip64) {
        dfcl_zip_put(o, 1, 2);
        dfcl_zip_put(o, 16, 2);
        dfcl_zip_put(o, r->size, 8);
        dfcl_zip_put(o, r->size, 8);
    }
    if (fill) {
        dfcl_zip_put(o, 0x4246, 2); /* "FB", as PyTorch pads */
        dfcl_zip_put(o, fill - 4, 2);
        memset(o->b + o->n, 'Z', fill - 4);
        o->n += fill - 4;
    }
}

void dfcl_zip_put_central(struct dfcl_zip_bytes *o, const struct dfcl_zip_record *r, bool zip64) {
    dfcl_zip_put(o, 0x02014b50, 4);
    dfcl_zip_put(o, 45, 2); /* made by */
    put_common(o, r, zip64);
    dfcl_zip_put(o, zip64 ? 28 : 0, 2);
    dfcl_zip_put(o, 0, 2); /* comment */
    dfcl_zip_put(o, 0, 2); /* disk */
    dfcl_zip_put(o, 0, 2);
    dfcl_zip_put(o, 0, 4);
    dfcl_zip_put(o, zip64 ? UINT32_MAX : r->offset, 4);
    dfcl_zip_put_text(o, r->name, strlen(r->name));
    if (zip64) {
        dfcl_zip_put(o, 1, 2);
        dfcl_zip_put(o, 24, 2);
        dfcl_zip_put(o, r->size, 8);
        dfcl_zip_put(o, r->size, 8);
        dfcl_zip_put(o, r->offset, 8);
    }
}

void dfcl_zip_put_end(struct dfcl_zip_bytes *o, uint64_t offset, uint64_t size, int entries, bool zip64) {
    if (zip64) {
        dfcl_zip_put(o, 0x06064b50, 4); /* zip64 end record */
        dfcl_zip_put(o, 44, 8);
        dfcl_zip_put(o, 45, 2);
        dfcl_zip_put(o, 45, 2);
        dfcl_zip_put(o, 0, 4);
        dfcl_zip_put(o, 0, 4);
        dfcl_zip_put(o, (uint64_t)entries, 8);
        dfcl_zip_put(o, (uint64_t)entries, 8);
        dfcl_zip_put(o, size, 8);
        dfcl_zip_put(o, offset, 8);
        dfcl_zip_put(o, 0x07064b50, 4); /* and its locator */
        dfcl_zip_put(o, 0, 4);
        dfcl_zip_put(o, offset + size, 8);
        dfcl_zip_put(o, 1, 4);
    }
    dfcl_zip_put(o, 0x06054b50, 4);
    dfcl_zip_put(o, 0, 2);
    dfcl_zip_put(o, 0, 2);
    dfcl_zip_put(o, (uint64_t)entries, 2);
    dfcl_zip_put(o, (uint64_t)entries, 2);
    dfcl_zip_put(o, size, 4);
    dfcl_zip_put(o, zip64 ? UINT32_MAX : offset, 4);
    dfcl_zip_put(o, 0, 2);
}
