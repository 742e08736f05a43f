#include "base/sha256.h"

#include <difffit-cl/model.h>

#include "base/file.h"

#include <openssl/evp.h>
#include <stdio.h>

dfcl_status dfcl_sha256_init(struct dfcl_sha256 *h, dfcl_error *err) {
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    h->md = c;
    if (c && EVP_DigestInit_ex(c, EVP_sha256(), NULL) == 1)
        return DFCL_OK;
    dfcl_sha256_abort(h);
    return dfcl_fail(err, DFCL_NOMEM, "SHA-256: cannot be started");
}

dfcl_status dfcl_sha256_update(struct dfcl_sha256 *h, const void *data, size_t size, dfcl_error *err) {
    if (EVP_DigestUpdate(h->md, data, size) == 1)
        return DFCL_OK;
    return dfcl_fail(err, DFCL_ERROR, "SHA-256: update failed");
}

dfcl_status dfcl_sha256_finish(struct dfcl_sha256 *h, char hex[65], dfcl_error *err) {
    unsigned char d[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int ok = EVP_DigestFinal_ex(h->md, d, &n);
    dfcl_sha256_abort(h);
    if (ok != 1 || n != 32)
        return dfcl_fail(err, DFCL_ERROR, "SHA-256: cannot be finished");
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", d[i]);
    return DFCL_OK;
}

void dfcl_sha256_abort(struct dfcl_sha256 *h) {
    EVP_MD_CTX_free(h->md);
    h->md = NULL;
}

dfcl_status dfcl_file_hash(const dfcl_context *ctx, const char *path, char hash[65], dfcl_error *err) {
    struct dfcl_map m;
    struct dfcl_sha256 h;
    dfcl_status s = dfcl_map_open(&m, path, err);
    if (s)
        return s;
    if (!(s = dfcl_sha256_init(&h, err)) && !(s = dfcl_sha256_update(&h, m.data, (size_t)m.size, err)))
        s = dfcl_sha256_finish(&h, hash, err);
    else
        dfcl_sha256_abort(&h);
    dfcl_map_close(&m);
    return s;
}
