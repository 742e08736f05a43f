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
    const char *names[4] = {prelude, "dialect.h", "prelude_cpu.h", stem};
    size_t length = strlen(stem);
    bool cpu = length > 4 && !strcmp(stem + length - 4, "_cpu");
    const struct dfcl_text *part[4];
    int count = 0;
    for (int i = 0; i < 4; i++) {
        if (i == 2 && !cpu)
            continue;
        part[count] = i < 3 ? dfcl_kernel_file(names[i]) : find_stem(stem);
        if (!part[count++])
            return dfcl_fail(err, DFCL_ERROR, "kernel file %s: not built into the library", names[i]);
    }
    size_t total = 1;
    for (int i = 0; i < count; i++)
        total += part[i]->size + strlen(part[i]->name) + 16; /* 16: `#line 1 "` and the quote, two newlines */
    char *p = dfcl_calloc(ctx, total, 1, err);
    if (!p)
        return DFCL_NOMEM;
    size_t n = 0;
    for (int i = 0; i < count; i++) {
        n += (size_t)snprintf(p + n, total - n, "#line 1 \"%s\"\n", part[i]->name);
        memcpy(p + n, part[i]->text, part[i]->size);
        n += part[i]->size;
        p[n++] = '\n';
    }
    *text = p;
    *size = n;
    return DFCL_OK;
}
