#define _GNU_SOURCE
#include "../place.h"
#include "commands.h"

#include <string.h>

static const struct {
    const char *name;
    int (*run)(struct cli *c, int argc, char **argv);
    const char *help;
} commands[] = {
    {"devices", cmd_devices, "list every compute device"},
    {"demo", cmd_demo, "fine-tune the small base on handwritten digits; before and after pictures"},
    {"train", cmd_train, "fine-tune a base on an image folder (or train one from scratch)"},
    {"sample", cmd_sample, "draw pictures from a base and a delta"},
    {"info", cmd_info, "say what a checkpoint, delta, run or data folder is"},
    {"init", cmd_init, "write a random base of a given size"},
    {"merge", cmd_merge, "fold a delta into its base: an ordinary checkpoint"},
    {"verify", cmd_verify, "compare with reference data"},
    {"selftest", cmd_selftest, "check a device in a few seconds"},
};

static void help(FILE *f) {
    fprintf(f, "usage: difffit-cl COMMAND [options]\n\nFine-tunes and samples Diffusion Transformers on any OpenCL device.\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(f, "\n`difffit-cl COMMAND --help` has the options. Exit codes: 0 done, 1 other error, 2 usage, 3 device, 4 out of memory,\n"
               "5 non-finite numbers, 6 bad or mismatched file, 7 input/output, 130 interrupted (training saves first).\n");
}

int main(int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(argc < 2 ? stderr : stdout);
        return argc < 2 ? DFCL_USAGE : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("difffit-cl %s\n", dfcl_version());
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        place_workers();
        struct cli c = {.program = "difffit-cl", .command = argv[1]};
        dfcl_error err = {0};
        if (cli_context(&c, &err))
            return cli_fail(&c, &err);
        int code = commands[i].run(&c, argc - 1, argv + 1);
        dfcl_context_destroy(&c.ctx);
        if (fflush(stdout) != 0 && code == 0) {
            perror("difffit-cl: standard output");
            code = DFCL_IO;
        }
        return code;
    }
    fprintf(stderr, "difffit-cl: unknown command '%s'; see `difffit-cl --help`\n", argv[1]);
    return DFCL_USAGE;
}
