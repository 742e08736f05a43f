/* Feeds every file of the given folders (or files) to a fuzz target, once each: the corpus as a test, without libFuzzer. Inputs are copied to
 * blocks of their exact size, so that sanitizers and valgrind see every byte read too far. */
#include <stdio.h>
#include <time.h>

#include "base/file.h"
#include "fuzz.h"

enum { MOST_SECONDS = 10 }; /* of processor time an input, also under the sanitizers */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run(const dfcl_context *ctx, const char *path) {
    struct dfcl_map map;
    dfcl_error err;
    if (dfcl_map_open(&map, path, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    uint8_t *copy = malloc(map.size ? (size_t)map.size : 1);
    if (!copy)
        return 1;
    memcpy(copy, map.data, (size_t)map.size);
    double start = seconds();
    LLVMFuzzerTestOneInput(copy, (size_t)map.size);
    double took = seconds() - start;
    free(copy);
    dfcl_map_close(&map);
    if (took > MOST_SECONDS)
        fprintf(stderr, "%s: took %.1f s\n", path, took);
    return took > MOST_SECONDS;
}

int main(int argc, char **argv) {
    dfcl_context *ctx;
    int bad = dfcl_context_create(&ctx, NULL, NULL) != DFCL_OK, done = 0;
    for (int i = 1; i < argc && !bad; i++) {
        if (dfcl_path_kind(argv[i]) != DFCL_PATH_DIR) {
            bad |= run(ctx, argv[i]);
            done++;
            continue;
        }
        struct dfcl_list list;
        dfcl_error err;
        if (dfcl_list_dir(ctx, argv[i], &list, &err)) {
            fprintf(stderr, "%s\n", err.msg);
            return 1;
        }
        for (size_t k = 0; k < list.count; k++, done++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], list.names[k]);
            bad |= run(ctx, path);
        }
        dfcl_list_free(ctx, &list);
    }
    if (!bad && done == 0) {
        fprintf(stderr, "no inputs\n");
        bad = 1;
    }
    printf("%d inputs\n", done);
    dfcl_context_destroy(&ctx);
    return bad;
}
