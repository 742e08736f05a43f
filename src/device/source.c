#include "device/source.h"

#include <stdio.h>
#include <string.h>

const struct dfcl_text *dfcl_kernel_file(const char *name) {
    for (size_t i = 0; i < dfcl_kernel_file_count; i++)
        if (!strcmp(dfcl_kernel_files[i].name, name))
            return &dfcl_kernel_files[i];
    return NULL;
}

static const struct dfcl_text *find_stem(const char *stem) {
    size_t n = strlen(stem);
    for (size_t i = 0; i < dfcl_kernel_file_count; i++) {
        const char *name = dfcl_kernel_files[i].name;
        if (!strncmp(name, stem, n) && (!strcmp(name + n, ".cl") || !strcmp(name + n, ".cu")))
            return &dfcl_kernel_files[i];
    }
    return NULL;
}

dfcl_status dfcl_kernel_source(const dfcl_context *ctx, const char *prelude, const char *stem, char **text, size_t *size,
                               dfcl_error *err) {
    *text = NULL;
    *size = 0;
    const struct dfcl_text *part[3] = {dfcl_kernel_file(prelude), dfcl_kernel_file("dialect.h"), find_stem(stem)};
    for (int i = 0; i < 3; i++)
        if (!part[i])
            return dfcl_fail(err, DFCL_ERROR, "kernel file %s: not built into the library", i == 0 ? prelude : i == 1 ? "dialect.h" : stem);
    size_t total = 1;
    for (int i = 0; i < 3; i++)
        total += part[i]->size + strlen(part[i]->name) + 16; /* 16: `#line 1 "` and the quote, two newlines */
    char *p = dfcl_calloc(ctx, total, 1, err);
    if (!p)
        return DFCL_NOMEM;
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        n += (size_t)snprintf(p + n, total - n, "#line 1 \"%s\"\n", part[i]->name);
        memcpy(p + n, part[i]->text, part[i]->size);
        n += part[i]->size;
        p[n++] = '\n';
    }
    *text = p;
    *size = n;
    return DFCL_OK;
}
