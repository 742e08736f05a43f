/* SHA-256 (FIPS 180-4) through libcrypto. */
#ifndef DFCL_BASE_SHA256_H
#define DFCL_BASE_SHA256_H

#include "base/base.h"

struct dfcl_sha256 {
    void *md; /* EVP_MD_CTX */
};
dfcl_status dfcl_sha256_init(struct dfcl_sha256 *h, dfcl_error *err);
dfcl_status dfcl_sha256_update(struct dfcl_sha256 *h, const void *data, size_t size, dfcl_error *err);
dfcl_status dfcl_sha256_finish(struct dfcl_sha256 *h, char hex[65], dfcl_error *err); /* releases, also on failure */
void dfcl_sha256_abort(struct dfcl_sha256 *h);

#endif
