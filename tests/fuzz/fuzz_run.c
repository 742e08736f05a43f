/* The texts of a run directory and of data folders: config.json, a checkpoint's state.json, metrics.jsonl, class names, diffusers' config.json. */
#include "data/scan.h"
#include "fuzz_file.h"
#include "models/model.h"
#include "train/checkpoint.h"
#include "train/config.h"

static void check(dfcl_status s, const dfcl_error *e) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM, DFCL_USAGE};
    fuzz_check_any(s, e, fuzz_dir, allowed, DFCL_COUNT(allowed));
}

static void as_config(const struct dfcl_run_dir *run) {
    cJSON *saved = NULL, *now = cJSON_Parse("{\"settings\":{\"seed\":1,\"lr\":0.1,\"flip\":true,\"method\":\"difffit\",\"base\":null}}");
    dfcl_error e = {0};
    const char *path = fuzz_file_link("run/config.json");
    dfcl_status s = dfcl_run_dir_read_json(run, path, &saved, &e);
    check(s, &e);
    if (!s) {
        s = dfcl_train_config_same(saved, now, path, &e);
        check(s, &e);
        s = dfcl_train_config_same(saved, saved, path, &e);
        check(s, &e);
        if (dfcl_train_config_saved_micro(saved) < 0)
            abort();
    }
    cJSON_Delete(saved);
    cJSON_Delete(now);
}

static void as_state(const struct dfcl_run_dir *run) {
    static struct dfcl_train_state st;
    char dir[1024];
    dfcl_error e = {0};
    snprintf(dir, sizeof dir, "%s", fuzz_file_link("run/checkpoints/step-1/state.json"));
    *strrchr(dir, '/') = 0;
    cJSON *config = NULL;
    dfcl_status s = dfcl_checkpoint_read_state(run, dir, &st, &config, &e);
    check(s, &e);
    if (s && config)
        abort();
    cJSON_Delete(config);
    if (!s && (st.step < 0 || st.skipped > st.step || !(st.sum_loss - st.sum_loss == 0.0)))
        abort();
}

static void describe(const char *dir, int json) {
    char path[1024], *text = NULL;
    dfcl_error e = {0};
    snprintf(path, sizeof path, "%s/%s", fuzz_dir, dir);
    dfcl_status s = dfcl_describe(fuzz_context(), path, json, &text, &e);
    check(s, &e);
    if (!s)
        fuzz_use(text, strlen(text));
    dfcl_text_free(fuzz_context(), text);
}

static void as_names(const uint8_t *data, size_t size) {
    struct dfcl_scan scan = {0};
    dfcl_error e = {0};
    char path[1024], **names = NULL;
    int count = 0;
    snprintf(path, sizeof path, "%s/latents", fuzz_dir);
    dfcl_status s = dfcl_scan_folder(fuzz_context(), path, &scan, &e);
    check(s, &e);
    dfcl_scan_free(fuzz_context(), &scan);
    char *text = dfcl_strndup(fuzz_context(), (const char *)data, size, NULL);
    if (!text)
        abort();
    s = dfcl_names_parse(fuzz_context(), text, fuzz_dir, &names, &count, &e);
    check(s, &e);
    dfcl_names_free(fuzz_context(), names, count);
    dfcl_free(fuzz_context(), text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_run_dir run = {.ctx = fuzz_context(), .lock_fd = -1};
    fuzz_file_set(data, size);
    fuzz_file_link("run/metrics.jsonl");
    fuzz_file_link("latents/class_names.txt");
    fuzz_file_link("latents/a_features/0.npy");
    fuzz_file_link("latents/a_labels/0.npy");
    run.path = fuzz_dir;
    as_config(&run);
    as_state(&run);
    as_names(data, size);
    describe("run", size % 2);
    describe("run/checkpoints/step-1", size % 2);
    return 0;
}
