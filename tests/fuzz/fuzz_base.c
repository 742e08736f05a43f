/* A base checkpoint by path: shape, metadata, class names, every value, the hash. */
#include "fuzz_file.h"
#include "models/model.h"

static dfcl_status visit(void *user, const struct dfcl_param *p, float *values, dfcl_error *err) {
    (void)user;
    (void)err;
    for (int64_t i = 0; i < p->count; i++)
        if (values[i] - values[i] != 0.0f)
            abort(); /* neither NaN nor infinite */
    return DFCL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM, DFCL_USAGE, DFCL_NONFINITE};
    struct dfcl_base *b = NULL;
    dfcl_error e = {0};
    char hash[65];
    fuzz_file_set(data, size);
    const char *path = fuzz_file_link("input");
    struct dfcl_model_params p = {.path = path};
    dfcl_status s = dfcl_base_open(&b, fuzz_context(), &p, &e);
    fuzz_check_any(s, &e, path, allowed, DFCL_COUNT(allowed));
    if (!s) {
        s = dfcl_base_stream(b, visit, NULL, hash, &e);
        fuzz_check_any(s, &e, path, allowed, DFCL_COUNT(allowed));
        for (int i = 0; b->class_names && i < b->cfg.classes; i++)
            fuzz_use(b->class_names[i], strlen(b->class_names[i]));
    }
    dfcl_base_close(&b);
    return 0;
}
