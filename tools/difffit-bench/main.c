/* difffit-bench: how fast a device is, and how near its peak each kernel and a whole model come. Uses the public
 * headers only. */
#include "bench.h"

static const struct cli_command commands[] = {
    {"peak", bench_peak, "most that the device can do: products in f32 and bf16, reading memory", false},
    {"ops", bench_ops, "every variant of every op, beside the peak measured in the same run", false},
    {"forward", bench_forward, "one pass of a whole network", false},
    {"train", bench_train, "one optimizer step: noise, forward, loss, backward, AdamW, moving average", false},
    {"sample", bench_sample, "drawing pictures, all steps", false},
    {"vae", bench_vae, "pictures to latents and back", false},
    {"compare", bench_compare, "ratios of two results that --json wrote", true},
};

static const char *const examples[][2] = {
    {"difffit-bench ops --filter linear_fwd", "Every variant of the forward product, beside the device's peak."},
    {"difffit-bench train --size DiT-B/2 --batch 8 --json > A.json", "Seconds per image of an optimizer step, for `compare`."},
    {NULL, NULL},
};
static const char *const see_also[] = {"difffit-cl", NULL};

int main(int argc, char **argv) {
    const struct cli_program p = {
        .name = "difffit-bench",
        .noun = "benchmark",
        .about = "Measures a device. Everything is timed several times; medians come with least and most.",
        .prefix = "DIFFFIT_BENCH_",
        .summary = "measure a device: kernels beside its peak, and whole models",
        .examples = examples,
        .see_also = see_also,
        .commands = commands,
        .count = sizeof commands / sizeof *commands};
    return cli_main(&p, argc, argv);
}
