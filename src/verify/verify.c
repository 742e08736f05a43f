/* verify: every golden file in turn; a file that this version does not cover is named as such. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "verify/golden.h"

dfcl_status dfcl_verify(dfcl_device *dev, const char *golden_dir, const char *dump_dir, int json, dfcl_line_fn line, void *user,
                        int *failed, dfcl_error *err) {
    struct dfcl_golden g = {.dev = dev, .ctx = dev->ctx, .dir = golden_dir, .dump = dump_dir, .line = line, .user = user};
    *failed = 0;
    if (dfcl_path_kind(golden_dir) != DFCL_PATH_DIR)
        return dfcl_fail(err, DFCL_IO, "%s: expected a folder of reference data", golden_dir);
    if (json && !(g.json = cJSON_CreateArray()))
        return dfcl_fail(err, DFCL_NOMEM, "out of memory");
    static dfcl_status (*const parts[])(struct dfcl_golden *g, dfcl_error *err) = {
        dfcl_verify_tables, dfcl_verify_micro, dfcl_verify_forward, dfcl_verify_train, dfcl_verify_sample, dfcl_verify_vae,
    };
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < DFCL_COUNT(parts) && !s; i++)
        s = parts[i](&g, err);
    static const char *const later[] = {"adapters"};
    for (size_t i = 0; i < DFCL_COUNT(later) && !s; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", golden_dir, later[i]);
        if (dfcl_path_kind(path) == DFCL_PATH_DIR)
            dfcl_golden_say(&g, "%-24s not supported by this version, left out", later[i]);
    }
    if (!s) {
        *failed = g.failed;
        dfcl_golden_say(&g, "%s", g.failed ? "FAILED" : "all files passed");
        if (g.json) {
            cJSON *root = cJSON_CreateObject();
            dfcl_json_add_text(root, "device", dev->info.name);
            dfcl_json_add_text(root, "selector", dev->info.selector);
            dfcl_json_add_number(root, "failed", g.failed);
            dfcl_json_add(root, "files", g.json);
            g.json = NULL;
            char *text = cJSON_PrintUnformatted(root);
            if (text && line)
                line(user, text);
            if (!text)
                s = dfcl_fail(err, DFCL_NOMEM, "out of memory");
            cJSON_free(text);
            cJSON_Delete(root);
        }
    }
    cJSON_Delete(g.json);
    return s;
}
