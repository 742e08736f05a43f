/* peak and ops: what the device can do at most, and every kernel beside it. */
#include "bench.h"

#include <string.h>

struct listing {
    bool json;
    double peak, bf16; /* flop/s measured in this run, 0: unknown */
    int printed;
};

static void each(void *user, const struct dfcl_bench_result *r) {
    struct listing *l = user;
    double flops = r->flops / r->seconds_median, bytes = r->bytes / r->seconds_median;
    double peak = r->bf16 ? l->bf16 : l->peak;
    if (l->json) {
        printf("%s\n    {\"op\": ", l->printed++ ? "," : "");
        cli_json_string(stdout, r->op);
        printf(", \"variant\": ");
        cli_json_string(stdout, r->variant);
        printf(", \"case\": ");
        cli_json_string(stdout, r->label);
        printf(", ");
        bench_json_spread(stdout, "seconds", (struct bench_spread){r->seconds_median, r->seconds_min, r->seconds_max});
        printf(", \"gflops\": %.6g, \"gbytes_per_second\": %.6g", flops / 1e9, bytes / 1e9);
        if (peak > 0)
            printf(", \"fraction_of_peak\": %.4f, \"peak\": \"%s\"", flops / peak, r->bf16 ? "bf16" : "f32");
        printf("}");
    } else {
        if (!l->printed++)
            printf("%-16s %-12s %-44s %10s %8s %8s %9s %7s %6s\n", "op", "variant", "case", "median ms", "min", "max", "GFLOP/s", "GB/s", "peak");
        printf("%-16s %-12s %-44.44s %10.3f %8.3f %8.3f %9.1f %7.1f", r->op, r->variant, r->label, r->seconds_median * 1e3, r->seconds_min * 1e3,
               r->seconds_max * 1e3, flops / 1e9, bytes / 1e9);
        if (peak > 0)
            printf(" %4.0f %%%s", 100 * flops / peak, r->bf16 ? " of bf16" : "");
        putchar('\n');
    }
    fflush(stdout);
}

int bench_peak(struct cli *c, int argc, char **argv) {
    int repeat = 5;
    bool json = false;
    const struct cli_option options[] = {
        {"--repeat", CLI_INT, &repeat, "N", "timings, of which the median counts (5)", 1, 10000},
        {"--json", CLI_FLAG, &json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "peak [options]\n\nMost that the device can do: f32 multiply-adds and dot products of bf16 in registers, reading memory.", options,
              NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    double f32, bf16, bytes;
    dfcl_status s = bench_open(c, NULL, &dev, &err);
    if (!s)
        s = dfcl_bench_peak(dev, DFCL_PEAK_F32, repeat, &f32, &err);
    if (!s)
        s = dfcl_bench_peak(dev, DFCL_PEAK_BF16, repeat, &bf16, &err);
    if (!s)
        s = dfcl_bench_peak(dev, DFCL_PEAK_READ, repeat, &bytes, &err);
    if (!s && json) {
        bench_json_head(stdout, "peak", dev);
        printf(", \"peak_gflops\": %.6g, ", f32 / 1e9);
        bf16 > 0 ? printf("\"bf16_gflops\": %.6g", bf16 / 1e9) : printf("\"bf16_gflops\": null");
        printf(", \"read_gbytes_per_second\": %.6g}\n", bytes / 1e9);
    } else if (!s) {
        printf("%s\n  f32 multiply-adds     %8.1f GFLOP/s\n", dfcl_device_get_info(dev)->name, f32 / 1e9);
        bf16 > 0 ? printf("  bf16 dot products     %8.1f GFLOP/s\n", bf16 / 1e9) : printf("  bf16 dot products            - (not used on this device)\n");
        printf("  reading memory        %8.1f GB/s\n", bytes / 1e9);
    }
    dfcl_device_close(&dev);
    return s ? cli_fail(c, &err) : 0;
}

int bench_ops(struct cli *c, int argc, char **argv) {
    int repeat = 5;
    const char *filter = NULL, *variants = NULL;
    struct listing l = {0};
    const struct cli_option options[] = {
        {"--filter", CLI_STR, &filter, "TEXT", "only those whose op/variant contains TEXT (linear_fwd, attn, /cpu)", 0, 0},
        {"--variants", CLI_STR, &variants, "LIST", "kernel variants allowed (portable) or forbidden (-cpu)", 0, 0},
        {"--repeat", CLI_INT, &repeat, "N", "timings of each, of which median, least and most are shown (5)", 1, 10000},
        {"--json", CLI_FLAG, &l.json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "ops [options]\n\nTimes every variant of every op, beside the peak measured before and after.", options, NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    double after;
    dfcl_status s = bench_open(c, variants, &dev, &err);
    if (!s)
        s = bench_peak_now(dev, DFCL_PEAK_F32, repeat, &l.peak, &err);
    if (!s)
        s = bench_peak_now(dev, DFCL_PEAK_BF16, repeat, &l.bf16, &err);
    if (!s && l.json) {
        bench_json_head(stdout, "ops", dev);
        printf(", \"peak_gflops\": %.6g", l.peak / 1e9);
        if (l.bf16 > 0)
            printf(", \"bf16_gflops\": %.6g", l.bf16 / 1e9);
        printf(",\n  \"ops\": [");
    } else if (!s) {
        printf("%s: f32 multiply-add peak %.1f GFLOP/s", dfcl_device_get_info(dev)->name, l.peak / 1e9);
        if (l.bf16 > 0)
            printf(", of bf16 dot products %.1f", l.bf16 / 1e9);
        putchar('\n');
    }
    if (!s)
        s = dfcl_bench_ops(dev, filter, repeat, each, &l, &err);
    if (!s && !l.printed)
        s = bench_fail(&err, DFCL_USAGE, "--filter: expected part of an op/variant of this device, found '%s'", filter ? filter : "");
    if (!s)
        s = bench_peak_now(dev, DFCL_PEAK_F32, repeat, &after, &err);
    if (!s && l.json)
        printf("\n  ],\n  \"peak_gflops_after\": %.6g}\n", after / 1e9);
    else if (!s)
        printf("f32 peak after the run: %.1f GFLOP/s (a large difference means the machine was busy)\n", after / 1e9);
    dfcl_device_close(&dev);
    return s ? cli_fail(c, &err) : 0;
}
