/* Lists of class names: in metadata a JSON array of strings. */
#include "base/json.h"
#include "models/model.h"

#include <string.h>

dfcl_status dfcl_names_json(const dfcl_context *ctx, char *const *names, int n, char **out, dfcl_error *err) {
    struct dfcl_text t = {.ctx = ctx};
    dfcl_text_addf(&t, "[");
    for (int i = 0; i < n; i++) {
        if (i)
            dfcl_text_addf(&t, ", ");
        dfcl_text_json_string(&t, names[i] ? names[i] : "");
    }
    dfcl_text_addf(&t, "]");
    *out = t.failed ? NULL : dfcl_strdup(ctx, t.s, err);
    dfcl_text_finish(&t);
    return *out ? DFCL_OK : dfcl_fail(err, DFCL_NOMEM, "class names: out of memory");
}

dfcl_status dfcl_names_parse(const dfcl_context *ctx, const char *json, const char *what, char ***out, int *count, dfcl_error *err) {
    cJSON *root = NULL;
    *out = NULL;
    *count = 0;
    dfcl_status s = dfcl_json_parse(&root, json, strlen(json), DFCL_JSON_LIMITS, what, err);
    if (s)
        return s;
    int n = cJSON_IsArray(root) ? cJSON_GetArraySize(root) : -1;
    if (n < 0) {
        s = dfcl_fail(err, DFCL_FORMAT, "%s: class names: expected an array of strings", what);
        goto out;
    }
    if (!(*out = dfcl_calloc(ctx, (size_t)n + 1, sizeof **out, err))) {
        s = DFCL_NOMEM;
        goto out;
    }
    *count = n;
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, root) {
        if (!cJSON_IsString(item))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: class name %d is not a string", what, i);
        else if (dfcl_has_control(item->valuestring))
            s = dfcl_fail(err, DFCL_FORMAT, "%s: class name %d: expected no control characters, found \"%.60s\"", what, i, item->valuestring);
        else if (!((*out)[i++] = dfcl_strdup(ctx, item->valuestring, err)))
            s = DFCL_NOMEM;
        if (s)
            break;
    }
out:
    if (s) {
        dfcl_names_free(ctx, *out, *count);
        *out = NULL;
        *count = 0;
    }
    cJSON_Delete(root);
    return s;
}

dfcl_status dfcl_names_copy(const dfcl_context *ctx, const char *const *names, int n, char ***out, dfcl_error *err) {
    *out = NULL;
    if (!names)
        return DFCL_OK;
    char **copy = dfcl_calloc(ctx, (size_t)n + 1, sizeof *copy, err);
    if (!copy)
        return DFCL_NOMEM;
    for (int i = 0; i < n; i++)
        if (!(copy[i] = dfcl_strdup(ctx, names[i] ? names[i] : "", err))) {
            dfcl_names_free(ctx, copy, n);
            return DFCL_NOMEM;
        }
    *out = copy;
    return DFCL_OK;
}

void dfcl_names_free(const dfcl_context *ctx, char **names, int n) {
    for (int i = 0; names && i < n; i++)
        dfcl_free(ctx, names[i]);
    dfcl_free(ctx, names);
}
