/* The tensor file's whole interface on one input; shared by the safetensors and torch_pt targets. */
#ifndef DFCL_FUZZ_TENSORS_H
#define DFCL_FUZZ_TENSORS_H

#include "formats/tensor_file.h"
#include "fuzz.h"

static inline void fuzz_tensor_file(const uint8_t *data, size_t size, const char *which) {
    const dfcl_context *ctx = fuzz_context();
    struct dfcl_tensor_file *f = NULL;
    dfcl_error e = {0};
    dfcl_status s = dfcl_tensor_file_open_memory(&f, ctx, data, size, "input", which, &e);
    fuzz_check(s, &e, "input");
    if ((f != NULL) != (s == DFCL_OK))
        abort();
    if (s)
        return;
    for (size_t i = 0; i < dfcl_tensor_file_count(f); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(f, i);
        if (dfcl_tensor_file_find(f, v->name) != v)
            abort();
        /* No more elements than the input can hold, so that loaders may allocate by the count. Inflated inputs may hold more. */
        if (v->count > (uint64_t)size * 1040 * 8)
            abort();
        if (v->count > 1u << 20)
            continue;
        float *x = malloc(((size_t)v->count + 1) * sizeof *x);
        unsigned char *raw = malloc((size_t)v->bytes + 1);
        if (!x || !raw)
            abort();
        s = dfcl_tensor_file_read_f32(f, v, 0, v->count, x, &e);
        fuzz_check(s, &e, "input");
        if (!s) {
            fuzz_use(x, (size_t)v->count * sizeof *x);
            s = dfcl_tensor_file_read_f32(f, v, v->count / 2, v->count - v->count / 2, x, &e);
            fuzz_check(s, &e, "input");
        }
        s = dfcl_tensor_file_read_raw(f, v, raw, &e);
        fuzz_check(s, &e, "input");
        if (!s)
            fuzz_use(raw, (size_t)v->bytes);
        if (i % 2)
            dfcl_tensor_file_release(f, v);
        free(x);
        free(raw);
    }
    for (size_t i = 0; i < dfcl_tensor_file_meta_count(f); i++)
        if (!dfcl_tensor_file_meta(f, dfcl_tensor_file_meta_key(f, i)))
            abort();
    double x;
    const char *t = dfcl_tensor_file_text(f, "model");
    if (t)
        fuzz_use(t, strlen(t));
    dfcl_tensor_file_number(f, "heads", &x);
    dfcl_tensor_file_number(f, "num_classes", &x);
    dfcl_tensor_file_close(&f);
}

#endif
