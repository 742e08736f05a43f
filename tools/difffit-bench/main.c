/* difffit-bench: how fast a device is, and how near its peak each kernel comes. Uses the public headers only. */
#define _GNU_SOURCE
#include "../place.h"

#include <difffit-cl/dfcl.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bench {
    const char *device, *filter;
    int repeat;
    bool json;
    double peak; /* flop/s measured in this run, 0: unknown */
    int printed;
};

static void usage(FILE *f) {
    fprintf(f, "usage: difffit-bench peak [options]     f32 multiply-add throughput of a register-only loop\n"
               "       difffit-bench ops [options]      every variant of every op, beside the peak measured in the same run\n\n"
               "  --device D      auto (default), an index, opencl:0, or part of a name\n"
               "  --filter TEXT   ops: only those whose op/variant contains TEXT (linear_fwd, attn, /cpu)\n"
               "  --repeat N      timings of each, of which median, least and most are shown (5)\n"
               "  --json          print JSON\n"
               "  --help          this text\n");
}

static void json_text(const char *s) {
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            putchar('\\');
        if ((unsigned char)*s >= 0x20)
            putchar(*s);
    }
    putchar('"');
}

static void each(void *user, const struct dfcl_bench_result *r) {
    struct bench *b = user;
    double flops = r->flops / r->seconds_median, bytes = r->bytes / r->seconds_median;
    if (b->json) {
        printf("%s\n    {\"op\": ", b->printed++ ? "," : "");
        json_text(r->op);
        printf(", \"variant\": ");
        json_text(r->variant);
        printf(", \"case\": ");
        json_text(r->label);
        printf(", \"seconds\": {\"median\": %.9g, \"min\": %.9g, \"max\": %.9g}, \"gflops\": %.6g, \"gbytes_per_second\": %.6g", r->seconds_median,
               r->seconds_min, r->seconds_max, flops / 1e9, bytes / 1e9);
        if (b->peak > 0)
            printf(", \"fraction_of_peak\": %.4f", flops / b->peak);
        printf("}");
    } else {
        if (!b->printed++)
            printf("%-16s %-12s %-44s %10s %8s %8s %9s %7s %6s\n", "op", "variant", "case", "median ms", "min", "max", "GFLOP/s", "GB/s", "peak");
        printf("%-16s %-12s %-44.44s %10.3f %8.3f %8.3f %9.1f %7.1f", r->op, r->variant, r->label, r->seconds_median * 1e3, r->seconds_min * 1e3,
               r->seconds_max * 1e3, flops / 1e9, bytes / 1e9);
        if (b->peak > 0)
            printf(" %4.0f %%", 100 * flops / b->peak);
        putchar('\n');
    }
    fflush(stdout);
}

static void log_line(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    if (level <= DFCL_LOG_WARN)
        fprintf(stderr, "difffit-bench: %s\n", line);
}

static int parse(struct bench *b, int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        const char *o = argv[i];
        if (!strcmp(o, "--json")) {
            b->json = true;
            continue;
        }
        if (strcmp(o, "--device") && strcmp(o, "--filter") && strcmp(o, "--repeat")) {
            fprintf(stderr, "difffit-bench: unknown option %s; see --help\n", o);
            return DFCL_USAGE;
        }
        if (++i >= argc) {
            fprintf(stderr, "difffit-bench: %s needs a value\n", o);
            return DFCL_USAGE;
        }
        if (!strcmp(o, "--device"))
            b->device = argv[i];
        else if (!strcmp(o, "--filter"))
            b->filter = argv[i];
        else {
            char *end;
            long n = strtol(argv[i], &end, 10);
            if (*end || n < 1 || n > 10000) {
                fprintf(stderr, "difffit-bench: --repeat: expected a whole number from 1 to 10000, found '%s'\n", argv[i]);
                return DFCL_USAGE;
            }
            b->repeat = (int)n;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    struct bench b = {.repeat = 5};
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            usage(stdout);
            return 0;
        }
    if (argc < 2 || (strcmp(argv[1], "peak") && strcmp(argv[1], "ops"))) {
        if (argc < 2)
            usage(stderr);
        else
            fprintf(stderr, "difffit-bench: unknown benchmark '%s'; see --help\n", argv[1]);
        return DFCL_USAGE;
    }
    int code = parse(&b, argc, argv);
    if (code)
        return code;
    place_workers();
    struct dfcl_context_params p = {.log = log_line};
    dfcl_context *ctx = NULL;
    dfcl_device *dev = NULL;
    dfcl_error err = {0};
    double before = 0, after = 0;
    dfcl_status s = dfcl_context_create(&ctx, &p, &err);
    if (!s)
        s = dfcl_device_open(&dev, ctx, b.device, &err);
    if (!s)
        s = dfcl_bench_peak(dev, b.repeat, &before, &err);
    b.peak = before;
    if (!s && b.json) {
        const struct dfcl_device_info *d = dfcl_device_get_info(dev);
        printf("{\"version\": \"%s\", \"device\": ", dfcl_version());
        json_text(d->name);
        printf(", \"driver\": ");
        json_text(d->driver);
        printf(", \"peak_gflops\": %.6g%s", before / 1e9, strcmp(argv[1], "ops") ? "}\n" : ",\n  \"ops\": [");
    } else if (!s) {
        printf("%s: f32 multiply-add peak %.1f GFLOP/s\n", dfcl_device_get_info(dev)->name, before / 1e9);
    }
    if (!s && !strcmp(argv[1], "ops")) {
        s = dfcl_bench_ops(dev, b.filter, b.repeat, each, &b, &err);
        if (!s && !b.printed) {
            s = err.status = DFCL_USAGE;
            snprintf(err.msg, sizeof err.msg, "--filter: expected part of an op/variant of this device, found '%s'", b.filter ? b.filter : "");
        }
        if (!s)
            s = dfcl_bench_peak(dev, b.repeat, &after, &err);
        if (!s && b.json)
            printf("\n  ],\n  \"peak_gflops_after\": %.6g}\n", after / 1e9);
        else if (!s)
            printf("peak after the run: %.1f GFLOP/s (a large difference means the machine was busy)\n", after / 1e9);
    }
    if (s)
        fprintf(stderr, "difffit-bench: %s\n", err.msg);
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return s;
}
