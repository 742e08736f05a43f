/* Writing zip files (APPNOTE 6.3) whose entries are stored: the bytes of headers and of the directory, to be written by
 * the caller, who knows sizes and checksums. zip64: one choice for the whole file, needed where any size or offset
 * might not fit 32 bits. */
#ifndef DFCL_FORMATS_ZIP_WRITE_H
#define DFCL_FORMATS_ZIP_WRITE_H

#include "base/base.h"

struct dfcl_zip_record {
    const char *name;      /* at most 200 bytes */
    uint64_t offset, size; /* of the local header; of the bytes */
    uint32_t crc;
};
struct dfcl_zip_bytes {
    unsigned char b[1024];
    size_t n;
};
#define DFCL_ZIP_LOCAL_CRC 14 /* where a local header holds the checksum */

/* The low n bytes of v, little-endian. */
void dfcl_zip_put(struct dfcl_zip_bytes *o, uint64_t v, int n);
void dfcl_zip_put_text(struct dfcl_zip_bytes *o, const void *text, size_t n);
/* align > 0: an extra field fills up, so that the entry's bytes begin on a multiple of it (at most 64; record->offset
 * counts). */
void dfcl_zip_put_local(struct dfcl_zip_bytes *o, const struct dfcl_zip_record *r, bool zip64, uint64_t align);
void dfcl_zip_put_central(struct dfcl_zip_bytes *o, const struct dfcl_zip_record *r, bool zip64);
/* The directory lies at [offset, offset + size) and lists `entries` (below 65535) entries. */
void dfcl_zip_put_end(struct dfcl_zip_bytes *o, uint64_t offset, uint64_t size, int entries, bool zip64);

#endif
