#include "kernel_sets.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/source.h"

static bool is_kernel_file(const char *name, char *stem, size_t size) {
    const char *dot = strrchr(name, '.');
    if (!dot || (strcmp(dot, ".cl") && strcmp(dot, ".cu")) || (size_t)(dot - name) >= size)
        return false;
    memcpy(stem, name, (size_t)(dot - name));
    stem[dot - name] = 0;
    return true;
}

size_t kernel_sets_read(const char *path, struct kernel_set *sets) {
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        exit(1);
    }
    size_t n = 0;
    char line[1024], stem[64];
    for (int number = 1; fgets(line, sizeof line, f); number++) {
        char *p = line;
        line[strcspn(line, "\r\n")] = 0;
        while (*p == ' ')
            p++;
        if (!*p || *p == '#')
            continue;
        if (n == MAX_SETS) {
            fprintf(stderr, "%s:%d: more than %d sets\n", path, number, MAX_SETS);
            exit(1);
        }
        struct kernel_set *s = &sets[n++];
        memset(s, 0, sizeof *s);
        size_t len = strcspn(p, " ");
        bool known = false;
        for (size_t i = 0; i < dfcl_kernel_file_count; i++)
            known = known || (is_kernel_file(dfcl_kernel_files[i].name, stem, sizeof stem) && strlen(stem) == len && !strncmp(stem, p, len));
        if (!known || len >= sizeof s->stem) {
            fprintf(stderr, "%s:%d: %.*s is no kernel file\n", path, number, (int)len, p);
            exit(1);
        }
        memcpy(s->stem, p, len);
        p += len + strspn(p + len, " ");
        if (*p == '@') {
            len = strcspn(++p, " ");
            if (len >= sizeof s->feature) {
                fprintf(stderr, "%s:%d: unknown feature\n", path, number);
                exit(1);
            }
            memcpy(s->feature, p, len);
            p += len + strspn(p + len, " ");
        }
        if (strlen(p) >= sizeof s->options) {
            fprintf(stderr, "%s:%d: options too long\n", path, number);
            exit(1);
        }
        memcpy(s->options, p, strlen(p) + 1);
    }
    fclose(f);
    for (size_t i = 0; i < dfcl_kernel_file_count; i++) {
        if (!is_kernel_file(dfcl_kernel_files[i].name, stem, sizeof stem))
            continue;
        bool named = false;
        for (size_t j = 0; j < n; j++)
            named = named || !strcmp(sets[j].stem, stem);
        if (!named && n < MAX_SETS) {
            memset(&sets[n], 0, sizeof sets[n]);
            memcpy(sets[n++].stem, stem, sizeof stem);
        }
    }
    return n;
}

size_t kernel_entries(const char *text, char names[MAX_ENTRIES][64]) {
    size_t n = 0;
    for (const char *p = text; n < MAX_ENTRIES && (p = strstr(p, "DFCL_KERNEL(")) != NULL;) {
        p += strlen("DFCL_KERNEL(");
        for (int depth = 1; *p && depth; p++)
            depth += *p == '(' ? 1 : *p == ')' ? -1 : 0;
        while (isspace((unsigned char)*p) || *p == '\\')
            p++;
        size_t len = 0;
        while (isalnum((unsigned char)p[len]) || p[len] == '_')
            len++;
        const char *q = p + len;
        while (isspace((unsigned char)*q))
            q++;
        if (!len || len >= 64 || *q != '(')
            continue; /* a mention in a comment, or a name made by a macro */
        memcpy(names[n], p, len);
        names[n++][len] = 0;
    }
    return n;
}

bool kernel_is_cpu(const char *stem) {
    size_t n = strlen(stem);
    return n > 4 && !strcmp(stem + n - 4, "_cpu");
}
