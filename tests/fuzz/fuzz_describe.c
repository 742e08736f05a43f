/* `info` on a file of any kind: pictures, arrays, archives, tensors. */
#define FUZZ_MEMORY ((size_t)1 << 30)

#include "fuzz_file.h"

#include <difffit-cl/dfcl.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM};
    dfcl_error e = {0};
    fuzz_file_set(data, size);
    const char *path = fuzz_file_link(size > 1 && data[0] == 'P' && data[1] == 'K' ? "input.npz" : "input");
    for (int json = 0; json < 2; json++) {
        char *text = NULL;
        dfcl_status s = dfcl_describe(fuzz_context(), path, json, &text, &e);
        fuzz_check_any(s, &e, path, allowed, DFCL_COUNT(allowed));
        if (!s)
            fuzz_use(text, strlen(text));
        dfcl_text_free(fuzz_context(), text);
    }
    return 0;
}
