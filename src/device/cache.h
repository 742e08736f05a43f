/* Small files that can be made again: compiled programs. Every problem with them is a miss, at worst a warning.
 *
 * Entry: CACHE_DIR/FOLDER/KEY.bin = "DFCLBIN1", the 64 hex digits of the key, the payload's size (8 bytes, little-endian), its SHA-256 (64
 * hex digits), the payload. Written under a temporary name and renamed. */
#ifndef DFCL_DEVICE_CACHE_H
#define DFCL_DEVICE_CACHE_H

#include "base/base.h"

/* SHA-256 over the parts, each with its length, and the entry format's version. */
dfcl_status dfcl_cache_key(const char *const *parts, size_t count, char key[65], dfcl_error *err);
/* False for a miss; a damaged entry is one, with a warning. *data is freed with dfcl_free. */
bool dfcl_cache_load(const dfcl_context *ctx, const char *folder, const char *key, unsigned char **data, size_t *size);
void dfcl_cache_store(const dfcl_context *ctx, const char *folder, const char *key, const void *data, size_t size);
/* The payload inside an entry's bytes; NULL when anything about them is wrong. */
const unsigned char *dfcl_cache_parse(const unsigned char *entry, size_t entry_size, const char *key, size_t *size);

#endif
