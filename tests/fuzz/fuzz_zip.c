/* Zip directories and entries, stored and deflated. */
#include "formats/zip.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_zip z;
    dfcl_error e = {0};
    dfcl_status s = dfcl_zip_open(&z, fuzz_context(), data, size, "input", &e);
    fuzz_check(s, &e, "input");
    if (s)
        return 0;
    for (size_t i = 0; i < z.count; i++) {
        struct dfcl_zip_entry *n = &z.entries[i];
        const unsigned char *bytes = NULL;
        char name[64] = "";
        if (n->size > (uint64_t)size * 1040 || n->name + n->name_size > (const char *)data + size)
            abort();
        if (n->name_size < sizeof name && !memchr(n->name, 0, n->name_size)) {
            memcpy(name, n->name, n->name_size);
            if (dfcl_zip_find(&z, name) != n)
                abort();
        }
        s = dfcl_zip_fetch(&z, n, &bytes, &e);
        fuzz_check(s, &e, "input");
        if (!s)
            fuzz_use(bytes, (size_t)n->size);
        if (i % 2)
            dfcl_zip_drop(&z, n);
    }
    dfcl_zip_close(&z);
    return 0;
}
