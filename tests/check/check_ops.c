/* check_ops DEVICE [FILTER] [--mask M] [--rounds N] [--seed S] [--vector-bits N] [--max-flops N] [--each VARIANT]
 *
 * Runs the check cases of every op on a device against the host reference. DEVICE is any selector, or a backend's name for the first usable device
 * of it. Exit 77 (skipped) when there is no such device. --vector-bits makes CPU variants choose the code for another vector width; --max-flops
 * leaves out the larger cases; with --each every op that has the variant must have run a case of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device.h"
#include "ops/case.h"

#include <difffit-cl/verify.h>

struct options {
    const char *device, *filter, *mask;
    int rounds;
    uint64_t seed;
    unsigned vector_bits;
    const char *dot; /* NULL: what the device says */
    double max_flops;
    const char *each;
};

static char ran[128][64]; /* "op/variant" of the lines that came */
static size_t ran_count;

static void print_line(void *user, const char *line) {
    (void)user;
    if (ran_count < DFCL_COUNT(ran) && sscanf(line, "%*s %63[^: ]", ran[ran_count]) == 1)
        ran_count++;
    puts(line);
    fflush(stdout);
}

/* Number of ops whose variant of this name ran no case. */
static int missing(const char *variant) {
    int count, found = 0;
    const struct dfcl_op *const *op = dfcl_ops(&count);
    for (int i = 0; i < count; i++) {
        char name[64];
        bool has = false, seen = false;
        snprintf(name, sizeof name, "%s/%s", op[i]->name, variant);
        for (int v = 0; v < op[i]->variant_count; v++)
            has = has || !strcmp(op[i]->variants[v].name, variant);
        for (size_t k = 0; k < ran_count; k++)
            seen = seen || !strcmp(ran[k], name);
        if (has && !seen) {
            printf("FAILED %s: no case was run\n", name);
            found++;
        }
    }
    return found;
}

static void print_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    if (level <= DFCL_LOG_WARN)
        fprintf(stderr, "%s\n", line);
}

static int parse(struct options *o, int argc, char **argv) {
    *o = (struct options){.rounds = 1, .seed = 1};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strncmp(a, "--", 2)) {
            if (i + 1 >= argc)
                return 2;
            const char *v = argv[++i];
            if (!strcmp(a, "--mask"))
                o->mask = v;
            else if (!strcmp(a, "--rounds"))
                o->rounds = atoi(v);
            else if (!strcmp(a, "--seed"))
                o->seed = strtoull(v, NULL, 0);
            else if (!strcmp(a, "--vector-bits"))
                o->vector_bits = (unsigned)atoi(v);
            else if (!strcmp(a, "--dot") && (!strcmp(v, "none") || !strcmp(v, "native") || !strcmp(v, "emulated")))
                o->dot = v;
            else if (!strcmp(a, "--max-flops"))
                o->max_flops = atof(v);
            else if (!strcmp(a, "--each"))
                o->each = v;
            else
                return 2;
        } else if (!o->device) {
            o->device = a;
        } else if (!o->filter) {
            o->filter = a;
        } else {
            return 2;
        }
    }
    return o->device ? 0 : 2;
}

/* The selector of the first usable device of a backend, or `name` itself. */
static const char *resolve(const dfcl_context *ctx, const char *name) {
    static struct dfcl_device_info list[32];
    int count = 0;
    if (dfcl_device_list(ctx, list, (int)DFCL_COUNT(list), &count, NULL) == DFCL_OK)
        for (int i = 0; i < count && i < (int)DFCL_COUNT(list); i++)
            if (list[i].usable && !strcmp(list[i].backend, name))
                return list[i].selector;
    return name;
}

int main(int argc, char **argv) {
    struct options o;
    if (parse(&o, argc, argv)) {
        fprintf(stderr, "usage: check_ops DEVICE [FILTER] [--mask M] [--rounds N] [--seed S] [--vector-bits N] [--dot none|native|emulated]\n");
        return 2;
    }
    dfcl_context *ctx = NULL;
    dfcl_device *dev = NULL;
    dfcl_error err = {0};
    struct dfcl_context_params cp = {.log = print_log};
#ifdef DFCL_PROGRAM
    cp.probe_program = DFCL_PROGRAM;
#endif
    int passed = 0, failed = 0;
    dfcl_status s = dfcl_context_create(&ctx, &cp, &err);
    if (s)
        goto out;
    s = dfcl_device_open(&dev, ctx, resolve(ctx, o.device), &err);
    if (s == DFCL_DEVICE) {
        printf("SKIP: %s\n", err.msg);
        dfcl_context_destroy(&ctx);
        return 77;
    }
    if (s)
        goto out;
    if (o.vector_bits)
        dev->info.vector_bits = o.vector_bits;
    if (o.dot)
        dev->dot = !strcmp(o.dot, "none") ? DFCL_DOT_NONE : !strcmp(o.dot, "native") ? DFCL_DOT_NATIVE : DFCL_DOT_EMULATED;
    s = dfcl_device_set_variants(dev, o.mask, &err);
    if (s)
        goto out;
    printf("%s on %s, variants \"%s\", vectors of %u bits, seed %llu\n", dev->info.name, dev->info.platform, o.mask ? o.mask : "",
           dev->info.vector_bits, (unsigned long long)o.seed);
    s = dfcl_check_ops_small(dev, o.filter, o.rounds, o.seed, o.max_flops, print_line, NULL, &passed, &failed, &err);
    if (!s && o.each)
        failed += missing(o.each);
    printf("%d passed, %d failed\n", passed, failed);
out:
    if (s)
        fprintf(stderr, "check_ops: %s\n", err.msg);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return s ? 1 : failed || !passed;
}
