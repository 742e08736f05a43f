/* Builds every kernel file with every option set on every OpenCL device found, and creates every entry point it names.
 * kernel_build BUILD_OPTIONS; exit 77 when there is no OpenCL device. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/cpu.h"
#include "device/device.h"
#include "device/source.h"
#include "kernel_sets.h"

static struct kernel_set sets[MAX_SETS];

static bool has_feature(const struct dfcl_device *dev, const char *feature) {
    if (!strcmp(feature, "avx512_bf16")) /* the driver's compiler must know it too: tried when the device was opened */
        return dev->dot == DFCL_DOT_NATIVE;
    int want = !strcmp(feature, "avx2")          ? DFCL_CPU_AVX2
               : !strcmp(feature, "avx512")      ? DFCL_CPU_AVX512
               : !strcmp(feature, "avx512_vnni") ? DFCL_CPU_AVX512_VNNI
                                                 : 0;
    if (!want) {
        fprintf(stderr, "unknown feature @%s in the option sets\n", feature);
        exit(1);
    }
    return (dev->cpu_features & want) != 0;
}

/* Returns the number of failures of one set. */
static int build_set(struct dfcl_device *dev, const struct kernel_set *set, int *built) {
    static char names[MAX_ENTRIES][64];
    char file[80];
    snprintf(file, sizeof file, "%s.cl", set->stem);
    const struct dfcl_text *t = dfcl_kernel_file(file);
    if (!t)
        return 0; /* a .cu file */
    if (kernel_is_cpu(set->stem) && dev->info.type != DFCL_DEVICE_CPU)
        return 0;
    if (set->feature[0] && !has_feature(dev, set->feature))
        return 0;
    size_t n = kernel_entries(t->text, names);
    int good = 0, bad = 0;
    for (size_t i = 0; i < n; i++) {
        struct dfcl_kernel *k;
        dfcl_error err = {0};
        dfcl_status s = dfcl_device_kernel(dev, set->stem, names[i], set->options, &k, &err);
        if (!s) {
            good++;
        } else if (!strstr(err.msg, "no such kernel")) { /* left out by an #if: fine for this set */
            printf("FAIL %s %s [%s]: %s\n", dev->info.selector, names[i], set->options, err.msg);
            if (++bad == 3)
                break;
        }
    }
    if (!good && !bad) {
        printf("FAIL %s %s.cl [%s]: no entry point found\n", dev->info.selector, set->stem, set->options);
        bad = 1;
    }
    *built += good;
    return bad;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: kernel_build BUILD_OPTIONS\n");
        return 2;
    }
    size_t count = kernel_sets_read(argv[1], sets);
    dfcl_context *ctx;
    dfcl_error err = {0};
    struct dfcl_context_params params = {0};
#ifdef DFCL_PROGRAM
    params.probe_program = DFCL_PROGRAM;
#endif
    if (dfcl_context_create(&ctx, &params, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    struct dfcl_device_info list[32];
    int found, used = 0, failures = 0;
    if (dfcl_device_list(ctx, list, (int)DFCL_COUNT(list), &found, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    for (int i = 0; i < DFCL_MIN(found, (int)DFCL_COUNT(list)); i++) {
        if (!list[i].usable || strcmp(list[i].backend, "opencl"))
            continue;
        struct dfcl_device *dev;
        if (dfcl_device_open(&dev, ctx, list[i].selector, &err)) {
            printf("FAIL %s: %s\n", list[i].selector, err.msg);
            failures++;
            continue;
        }
        int built = 0, bad = 0;
        for (size_t j = 0; j < count; j++)
            bad += build_set(dev, &sets[j], &built);
        printf("%s %s (%s), sub-groups of %u: %d kernels built, %d failed\n", list[i].selector, list[i].name, list[i].platform,
               dfcl_device_get_info(dev)->sub_group, built, bad);
        failures += bad;
        used++;
        dfcl_device_close(&dev);
    }
    dfcl_context_destroy(&ctx);
    if (!used && !failures) {
        printf("SKIP: no OpenCL device\n");
        return 77;
    }
    return failures != 0;
}
