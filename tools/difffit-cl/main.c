#include "commands.h"

static const struct cli_command commands[] = {
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

int main(int argc, char **argv) {
    const struct cli_program p = {
        .name = "difffit-cl",
        .noun = "command",
        .about = "Fine-tunes and samples Diffusion Transformers on any OpenCL device.",
        .end =
            "`difffit-cl COMMAND --help` has the options. Exit codes: 0 done, 1 other error, 2 usage, 3 device, 4 out "
            "of memory,\n"
            "5 non-finite numbers, 6 bad or mismatched file, 7 input/output,\n"
            "130 interrupted, 143 terminated (training saves first).",
        .commands = commands,
        .count = sizeof commands / sizeof *commands};
    return cli_main(&p, argc, argv);
}
