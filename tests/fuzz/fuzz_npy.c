/* NumPy headers, C and Fortran order; latents and labels as training reads them. */
#include "data/decode.h"
#include "formats/npy.h"
#include "fuzz_file.h"

static void as_data(const uint8_t *data, size_t size) {
    float latent[2 * 3 * 3];
    int label;
    dfcl_error e = {0};
    fuzz_file_set(data, size);
    const char *path = fuzz_file_link("input.npy");
    dfcl_status s = dfcl_decode_latent(fuzz_context(), path, 2, 3, 3, latent, &e);
    fuzz_check(s, &e, path);
    if (!s)
        fuzz_use(latent, sizeof latent);
    s = dfcl_decode_label(fuzz_context(), path, &label, &e);
    fuzz_check(s, &e, path);
    if (!s && (label < 0 || label >= 100000))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_npy a;
    dfcl_error e = {0};
    as_data(data, size);
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
