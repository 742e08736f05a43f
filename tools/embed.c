/* Build-time tool: embed OUT.c FILE... writes a C file that holds every FILE as a byte array, with one table from base name to text
 * (dfcl_kernel_files in device/source.h). Runs on the build machine and uses nothing but the C library. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    const char *back = strrchr(path, '\\');
    const char *last = slash > back ? slash : back;
    return last ? last + 1 : path;
}

/* One byte array, closed by a zero that the size does not count. Returns the size, -1 on failure. */
static long embed(FILE *out, const char *path, int number) {
    FILE *in = fopen(path, "rb");
    if (!in) {
        fprintf(stderr, "embed: %s: %s\n", path, strerror(errno));
        return -1;
    }
    fprintf(out, "static const char text_%d[] = {", number);
    long size = 0;
    for (int c; (c = getc(in)) != EOF; size++) {
        if (c == 0 || c >= 128) {
            fprintf(stderr, "embed: %s: byte %ld is 0x%02x; kernel text is plain ASCII\n", path, size, (unsigned)c);
            fclose(in);
            return -1;
        }
        fprintf(out, "%s%d,", size % 24 ? "" : "\n", c);
    }
    fprintf(out, "0};\n");
    int bad = ferror(in);
    fclose(in);
    if (bad)
        fprintf(stderr, "embed: %s: cannot read\n", path);
    return bad ? -1 : size;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: embed OUT.c FILE...\n");
        return 2;
    }
    int count = argc - 2, status = 1;
    long *size = calloc((size_t)count, sizeof *size);
    FILE *out = size ? fopen(argv[1], "wb") : NULL;
    if (!out) {
        fprintf(stderr, "embed: %s: %s\n", argv[1], strerror(errno));
        goto out;
    }
    fprintf(out, "/* Written by tools/embed.c. */\n#include \"device/source.h\"\n\n");
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < i; j++)
            if (!strcmp(base_name(argv[2 + i]), base_name(argv[2 + j]))) {
                fprintf(stderr, "embed: two files are named %s\n", base_name(argv[2 + i]));
                goto out;
            }
        size[i] = embed(out, argv[2 + i], i);
        if (size[i] < 0)
            goto out;
    }
    fprintf(out, "\nconst struct dfcl_text dfcl_kernel_files[] = {\n");
    for (int i = 0; i < count; i++)
        fprintf(out, "    {\"%s\", text_%d, %ld},\n", base_name(argv[2 + i]), i, size[i]);
    fprintf(out, "};\nconst size_t dfcl_kernel_file_count = %d;\n", count);
    status = ferror(out) ? 1 : 0;
out:
    free(size);
    if (out && fclose(out))
        status = 1;
    if (status && argc > 1)
        remove(argv[1]);
    return status;
}
