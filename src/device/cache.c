#include "device/cache.h"

#include <string.h>

#include "base/file.h"
#include "base/sha256.h"

static const char magic[8] = {'D', 'F', 'C', 'L', 'B', 'I', 'N', '1'};
enum { HEADER = 8 + 64 + 8 + 64, LIMIT = 256 << 20 };

static void put_u64(unsigned char *p, uint64_t v) {
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}
static uint64_t get_u64(const unsigned char *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static dfcl_status digest(const void *data, size_t size, char hex[65], dfcl_error *err) {
    struct dfcl_sha256 h;
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    s = dfcl_sha256_update(&h, data, size, err);
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    return dfcl_sha256_finish(&h, hex, err);
}

dfcl_status dfcl_cache_key(const char *const *parts, size_t count, char key[65], dfcl_error *err) {
    struct dfcl_sha256 h;
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    s = dfcl_sha256_update(&h, magic, sizeof magic, err);
    for (size_t i = 0; !s && i < count; i++) {
        unsigned char n[8];
        put_u64(n, strlen(parts[i])); /* lengths keep ("ab", "c") apart from ("a", "bc") */
        s = dfcl_sha256_update(&h, n, sizeof n, err);
        if (!s)
            s = dfcl_sha256_update(&h, parts[i], strlen(parts[i]), err);
    }
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    return dfcl_sha256_finish(&h, key, err);
}

const unsigned char *dfcl_cache_parse(const unsigned char *entry, size_t entry_size, const char *key, size_t *size) {
    char hex[65];
    if (entry_size < HEADER || memcmp(entry, magic, 8) || strlen(key) != 64 || memcmp(entry + 8, key, 64))
        return NULL;
    if (get_u64(entry + 72) != entry_size - HEADER)
        return NULL;
    if (digest(entry + HEADER, entry_size - HEADER, hex, NULL) || memcmp(entry + 80, hex, 64))
        return NULL;
    *size = entry_size - HEADER;
    return entry + HEADER;
}

static char *entry_path(const dfcl_context *ctx, const char *folder, const char *key) {
    return ctx->cache_dir ? dfcl_sprintf(ctx, NULL, "%s/%s/%s.bin", ctx->cache_dir, folder, key) : NULL;
}

bool dfcl_cache_load(const dfcl_context *ctx, const char *folder, const char *key, unsigned char **data, size_t *size) {
    *data = NULL;
    *size = 0;
    char *path = entry_path(ctx, folder, key), *entry = NULL;
    size_t n;
    dfcl_error err = {0};
    if (!path || dfcl_path_kind(path) == DFCL_PATH_NONE)
        goto out;
    if (dfcl_file_read(ctx, path, LIMIT, &entry, &n, &err)) {
        dfcl_log(ctx, DFCL_LOG_WARN, "program cache: %s", err.msg);
        goto out;
    }
    const unsigned char *payload = dfcl_cache_parse((const unsigned char *)entry, n, key, size);
    if (!payload) {
        dfcl_log(ctx, DFCL_LOG_WARN, "program cache: %s: damaged, made again", path);
        goto out;
    }
    *data = dfcl_calloc(ctx, *size, 1, NULL);
    if (*data)
        memcpy(*data, payload, *size);
out:
    dfcl_free(ctx, entry);
    dfcl_free(ctx, path);
    return *data != NULL;
}

void dfcl_cache_store(const dfcl_context *ctx, const char *folder, const char *key, const void *data, size_t size) {
    if (!ctx->cache_dir || size > LIMIT - HEADER)
        return;
    dfcl_error err = {0};
    char *path = entry_path(ctx, folder, key), *dir = dfcl_sprintf(ctx, NULL, "%s/%s", ctx->cache_dir, folder), hex[65];
    unsigned char *entry = dfcl_calloc(ctx, HEADER + size, 1, NULL);
    if (!path || !dir || !entry)
        goto out;
    dfcl_status s = digest(data, size, hex, &err);
    if (!s) {
        memcpy(entry, magic, 8);
        memcpy(entry + 8, key, 64);
        put_u64(entry + 72, size);
        memcpy(entry + 80, hex, 64);
        memcpy(entry + HEADER, data, size);
        s = dfcl_mkdirs(ctx, dir, &err);
    }
    if (!s)
        s = dfcl_file_write(ctx, path, entry, HEADER + size, &err);
    if (s)
        dfcl_log(ctx, DFCL_LOG_WARN, "program cache: not written: %s", err.msg);
out:
    dfcl_free(ctx, entry);
    dfcl_free(ctx, dir);
    dfcl_free(ctx, path);
}
