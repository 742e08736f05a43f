/* A delta by path, loaded on a small base with and without force; the same bytes as rows of a class table and as a checkpoint's tensors. */
#include "fuzz_file.h"
#include "methods/delta.h"
#include "train/checkpoint.h"

static dfcl_device *dev;
static dfcl_model *model, *trained;
static struct dfcl_base *base;
static struct dfcl_stepper *stepper;
static char layout[65];

static void setup(void) {
    char path[64];
    snprintf(path, sizeof path, "%s/base.safetensors", fuzz_dir);
    static const char *const names[3] = {"a", "b", "c"};
    struct dfcl_init_params ip = {.shape = {.depth = 2, .hidden = 8, .heads = 2, .patch = 2, .input = 4, .channels = 1, .classes = 3},
                                  .class_names = names, .scale = 0.1f};
    struct dfcl_model_params mp = {.path = path, .max_class_rows = 64};
    struct dfcl_method_config mc = {.method = "difffit"};
    struct dfcl_stepper_options so = {.batch = 1};
    dfcl_error e;
    if (dfcl_model_init(fuzz_context(), &ip, path, &e) || dfcl_device_open(&dev, fuzz_context(), "host", &e) ||
        dfcl_model_open(&model, dev, &mp, &e) || dfcl_base_open(&base, fuzz_context(), &mp, &e) || dfcl_method_open(&trained, dev, &mp, &mc, &e) ||
        dfcl_stepper_create(&stepper, dfcl_model_dit(trained), &so, &e) ||
        dfcl_checkpoint_layout(dfcl_model_dit(trained), layout, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
}

static void check(dfcl_status s, const dfcl_error *e, const char *path) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM, DFCL_NONFINITE};
    fuzz_check_any(s, e, path, allowed, DFCL_COUNT(allowed));
}

static void as_delta(const char *path) {
    struct dfcl_delta *d = NULL;
    dfcl_error e = {0};
    int domain;
    dfcl_status s = dfcl_delta_open(&d, fuzz_context(), path, &e);
    check(s, &e, path);
    if (!s && d->training)
        fuzz_use(d->training, strlen(d->training));
    dfcl_delta_close(&d);
    for (int force = 0; force < 2 && !s; force++) {
        dfcl_status load = dfcl_model_load_delta(model, path, 0.5f, force, &domain, &e);
        check(load, &e, path);
        if (!load && (dfcl_model_class_name(model, domain, 0), dfcl_model_unload_delta(model, domain, &e)) != DFCL_OK)
            abort();
    }
}

static void as_rows(const char *path) {
    float rows[3 * 8];
    dfcl_error e = {0};
    dfcl_status s = dfcl_class_table_init(base, path, 1, 2, NULL, rows, &e);
    check(s, &e, path);
    if (!s)
        fuzz_use(rows, sizeof rows);
}

static void as_checkpoint(const char *path) {
    char dir[1024];
    dfcl_error e = {0};
    snprintf(dir, sizeof dir, "%s", path);
    *strrchr(dir, '/') = 0;
    check(dfcl_checkpoint_read_tensors(fuzz_context(), dir, dev, stepper, layout, &e), &e, path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_file_set(data, size);
    if (!dev)
        setup();
    as_delta(fuzz_file_link("input"));
    as_rows(fuzz_file_link("input"));
    as_checkpoint(fuzz_file_link("step-1/tensors.safetensors"));
    return 0;
}
