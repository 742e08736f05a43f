/* safetensors headers and views, diffusers names, metadata. */
#include "formats/safetensors.h"
#include "fuzz_tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_st *st = NULL;
    dfcl_error e = {0};
    dfcl_status s = dfcl_st_open_memory(&st, fuzz_context(), data, size, "input", &e);
    fuzz_check(s, &e, "input");
    dfcl_st_close(&st);
    fuzz_tensor_file(data, size, NULL);
    return 0;
}
