/* Zip container and pickle together, and the pickle alone: mutations rarely survive the zip's checksums. */
#define FUZZ_MEMORY ((size_t)384 << 20) /* a pickle's graph, the views of its tensors, inflated storages */

#include "formats/pickle.h"
#include "fuzz_tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_tensor_file(data, size, NULL);
    fuzz_tensor_file(data, size, "model");
    if (size >= 2 && data[0] == 0x80) {
        struct dfcl_pickle pk;
        dfcl_error e = {0};
        dfcl_status s = dfcl_pickle_read(&pk, fuzz_context(), data, size, "input", &e);
        fuzz_check(s, &e, "input");
        if (!s) {
            char text[64];
            dfcl_pk_describe(&pk, pk.root, text, sizeof text);
            uint32_t a = dfcl_pk_get(&pk, pk.root, "args");
            if (a != DFCL_PK_NOTHING)
                dfcl_pk_describe(&pk, a, text, sizeof text);
        }
        dfcl_pickle_free(&pk);
    }
    return 0;
}
