/* Reading zip files (APPNOTE 6.3: stored and deflated entries, zip64, data descriptors) from memory. Nothing is extracted: names are keys,
 * never paths. Refused: encryption, several disks, entries that overlap or whose two headers disagree, equal names. */
#ifndef DFCL_FORMATS_ZIP_H
#define DFCL_FORMATS_ZIP_H

#include "base/base.h"

struct dfcl_zip_entry {
    const char *name; /* in the file, not terminated */
    uint16_t name_size, method, flags;
    uint32_t crc;     /* 0: torch was told not to compute it, nothing to compare */
    uint64_t packed, size;
    uint64_t header, offset;  /* of the local header, of the bytes */
    unsigned char *inflated;  /* owned, once fetched */
    bool checked;             /* bytes were compared with crc */
};

struct dfcl_zip {
    const dfcl_context *ctx;
    const char *path; /* borrowed */
    const unsigned char *data;
    uint64_t size;
    struct dfcl_zip_entry *entries; /* sorted by name */
    size_t count;
};

/* The bytes must outlive it. */
dfcl_status dfcl_zip_open(struct dfcl_zip *zip, const dfcl_context *ctx, const void *data, uint64_t size, const char *path, dfcl_error *err);
void dfcl_zip_close(struct dfcl_zip *zip);
struct dfcl_zip_entry *dfcl_zip_find(struct dfcl_zip *zip, const char *name); /* NULL: none */
/* All bytes of an entry, checked against its checksum: in place when stored, else inflated once and kept. */
dfcl_status dfcl_zip_fetch(struct dfcl_zip *zip, struct dfcl_zip_entry *e, const unsigned char **bytes, dfcl_error *err);
/* Lets go of inflated bytes; pointers to them are dead. */
void dfcl_zip_drop(struct dfcl_zip *zip, struct dfcl_zip_entry *e);

#endif
