/* difffit-bench: how fast a device is, and how near its peak each kernel and a whole model come. Uses the public
 * headers only. */
#include "bench.h"

static const struct cli_command commands[] = {
    {"peak", bench_peak, "most that the device can do: products in f32 and bf16, reading memory"},
    {"ops", bench_ops, "every variant of every op, beside the peak measured in the same run"},
    {"forward", bench_forward, "one pass of a whole network"},
    {"train", bench_train, "one optimizer step: noise, forward, loss, backward, AdamW, moving average"},
    {"sample", bench_sample, "drawing pictures, all steps"},
    {"compare", bench_compare, "ratios of two results that --json wrote"},
};

int main(int argc, char **argv) {
    const struct cli_program p = {
        .name = "difffit-bench",
        .noun = "benchmark",
        .about = "Measures a device. Everything is timed several times; medians come with least and most.",
        .end = "`difffit-bench BENCHMARK --help` has the options. Exit codes are those of difffit-cl.",
        .commands = commands,
        .count = sizeof commands / sizeof *commands};
    return cli_main(&p, argc, argv);
}
