#include "commands.h"
#include "doctor.h"

#include <string.h>

static const struct cli_command commands[] = {
    {"devices", cmd_devices, "list every compute device", true},
    {"demo", cmd_demo, "fine-tune the small base on handwritten digits; before and after pictures", false},
    {"encode", cmd_encode, "turn a folder of pictures into a cache of latents to train from", false},
    {"train", cmd_train, "fine-tune a base on an image folder (or train one from scratch)", false},
    {"sample", cmd_sample, "draw pictures from a base and a delta", false},
    {"info", cmd_info, "say what a checkpoint, delta, run or data folder is", true},
    {"init", cmd_init, "write a random base of a given size", true},
    {"merge", cmd_merge, "fold a delta into its base: an ordinary checkpoint", true},
    {"verify", cmd_verify, "compare with reference data", false},
    {"selftest", cmd_selftest, "check a device in a few seconds", false},
    {"doctor", cmd_doctor, "say what a bug report needs: drivers, devices, caches, versions", true},
};

static const char *const examples[][2] = {
    {"difffit-cl train --model DiT.pt --data pictures --out run", "Fine-tune a base on a folder of pictures, a sub-folder a class."},
    {"difffit-cl train --model DiT.pt --data pictures --out run --resume auto", "Go on with a run that was interrupted."},
    {"difffit-cl train --config run/config.json --seed 2 --out again", "The same settings once more, with another seed."},
    {"difffit-cl sample --model DiT.pt --delta run/delta.safetensors --classes cat,dog -n 8 --cfg 4 --out grid.png",
     "Draw eight pictures of each of two classes."},
    {NULL, NULL},
};
static const char *const see_also[] = {"difffit-bench", "clinfo", NULL};

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--try-driver")) /* what `doctor` runs of itself */
        return doctor_try_driver(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "--try-device"))
        return doctor_try_device(argv[2]);
    const struct cli_program p = {
        .name = "difffit-cl",
        .noun = "command",
        .prefix = "DIFFFIT_CL_",
        .summary = "fine-tune and sample Diffusion Transformers on any OpenCL device",
        .about = "Fine-tunes and samples Diffusion Transformers on any OpenCL device.",
        .examples = examples,
        .see_also = see_also,
        .commands = commands,
        .count = sizeof commands / sizeof *commands};
    return cli_main(&p, argc, argv);
}
