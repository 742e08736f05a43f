#define _GNU_SOURCE
#include "../place.h"
#include "bench.h"

#include <string.h>

static const struct {
    const char *name;
    int (*run)(struct cli *c, int argc, char **argv);
    const char *help;
} commands[] = {
    {"peak", bench_peak, "f32 multiply-add throughput of a register-only loop"},
    {"ops", bench_ops, "every variant of every op, beside the peak measured in the same run"},
    {"forward", bench_forward, "one pass of a whole network"},
    {"train", bench_train, "one optimizer step: noise, forward, loss, backward, AdamW, moving average"},
    {"sample", bench_sample, "drawing pictures, all steps"},
    {"compare", bench_compare, "ratios of two results that --json wrote"},
};

static void help(FILE *f) {
    fprintf(f, "usage: difffit-bench BENCHMARK [options]\n\n"
               "Measures a device. Everything is timed several times; medians come with least and most.\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(f, "\n`difffit-bench BENCHMARK --help` has the options. Exit codes are those of difffit-cl.\n");
}

int main(int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(argc < 2 ? stderr : stdout);
        return argc < 2 ? DFCL_USAGE : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("difffit-bench %s\n", dfcl_version());
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        place_workers();
        struct cli c = {.program = "difffit-bench", .command = argv[1]};
        dfcl_error err = {0};
        if (cli_context(&c, &err))
            return cli_fail(&c, &err);
        int code = commands[i].run(&c, argc - 1, argv + 1);
        dfcl_context_destroy(&c.ctx);
        if (fflush(stdout) != 0 && code == 0) {
            perror("difffit-bench: standard output");
            code = DFCL_IO;
        }
        return code;
    }
    fprintf(stderr, "difffit-bench: unknown benchmark '%s'; see `difffit-bench --help`\n", argv[1]);
    return DFCL_USAGE;
}
