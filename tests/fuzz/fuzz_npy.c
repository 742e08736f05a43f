/* NumPy headers, C and Fortran order. */
#include "formats/npy.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_npy a;
    dfcl_error e = {0};
    dfcl_status s = dfcl_npy_open_memory(&a, data, size, "input", &e);
    fuzz_check(s, &e, "input");
    if (s)
        return 0;
    if (a.view.count > size)
        abort();
    float *x = malloc(((size_t)a.view.count + 1) * sizeof *x);
    unsigned char *raw = malloc((size_t)a.view.bytes + 1);
    if (!x || !raw)
        abort();
    if (dfcl_view_read_f32(&a.view, "input", 0, a.view.count, x, &e) ||
        dfcl_view_read_f32(&a.view, "input", a.view.count / 3, a.view.count - a.view.count / 3, x, &e))
        abort();
    dfcl_view_read_raw(&a.view, raw);
    fuzz_use(x, (size_t)a.view.count * sizeof *x);
    fuzz_use(raw, (size_t)a.view.bytes);
    free(x);
    free(raw);
    dfcl_npy_close(&a);
    return 0;
}
