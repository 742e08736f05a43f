/* difffit-cl: checks against reference data, self-test, op checks and benchmarks. */
#ifndef DFCL_VERIFY_H
#define DFCL_VERIFY_H

#include <difffit-cl/model.h>
#include <difffit-cl/sample.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One line per tensor and a verdict per file; `line` receives them. */
typedef void (*dfcl_line_fn)(void *user, const char *line);

/* Runs a folder laid out like tests/golden (forward, training, sampling, schedules, formats) on the device. dump_dir (may be NULL) receives what was
 * computed. json != 0: one JSON object at the end instead of text. *failed = number of files past tolerance. */
DFCL_API dfcl_status dfcl_verify(dfcl_device *dev, const char *golden_dir, const char *dump_dir, int json, dfcl_line_fn line,
                                 void *user, int *failed, dfcl_error *err);
/* A miniature golden inside the library: forward, a training step and a sampling step. About a second. */
DFCL_API dfcl_status dfcl_selftest(dfcl_device *dev, dfcl_line_fn line, void *user, dfcl_error *err);

/* dfcl_selftest at the first use of a device and driver only: success is noted in the context's cache folder. Without a cache folder the test
 * runs every time. */
DFCL_API dfcl_status dfcl_selftest_once(dfcl_device *dev, dfcl_line_fn line, void *user, dfcl_error *err);

/* *passed: 1 where dfcl_selftest_once has noted its success on this device, driver and version of the library, else 0. Runs nothing. */
DFCL_API dfcl_status dfcl_selftest_noted(dfcl_device *dev, int *passed, dfcl_error *err);

struct dfcl_bench_result {
    char op[32], variant[32], label[128];
    double seconds_median, seconds_min, seconds_max;
    double flops, bytes; /* of one launch */
    int bf16;            /* products of bf16 */
};
/* Times every variant of every op (filter: part of "op/variant", NULL: all) and hands each result to `each`. */
DFCL_API dfcl_status dfcl_bench_ops(dfcl_device *dev, const char *filter, int repeat,
                                    void (*each)(void *user, const struct dfcl_bench_result *r), void *user, dfcl_error *err);
/* What a device can do at most, on all compute units. */
enum dfcl_peak {
    DFCL_PEAK_F32,  /* flop/s of multiply-adds, operands in registers */
    DFCL_PEAK_BF16, /* flop/s of dot products of bf16 pairs with sums in f32, likewise; 0 where the library has no use for them on this device */
    DFCL_PEAK_READ, /* byte/s of reading memory once, in order: 256 MiB, less where the device has less */
};
/* Median of `repeat` timings. DFCL_USAGE on `host`. */
DFCL_API dfcl_status dfcl_bench_peak(dfcl_device *dev, enum dfcl_peak what, int repeat, double *rate, dfcl_error *err);

/* ---- timing a whole model ---- */

typedef struct dfcl_bench dfcl_bench;

enum dfcl_bench_kind {
    DFCL_BENCH_FORWARD, /* one pass of the network over a batch */
    DFCL_BENCH_TRAIN,   /* one optimizer step as dfcl_trainer_step makes it, data apart: noise, forward, loss, backward, AdamW, moving average */
    DFCL_BENCH_SAMPLE,  /* dfcl_sample of a batch: all its steps */
};

struct dfcl_bench_params {
    enum dfcl_bench_kind kind;
    struct dfcl_model_params model;
    int batch;            /* pictures a pass, step or call */
    const char *method;   /* training: NULL: "difffit"; as in dfcl_train_params */
    int micro_batch;      /* training, as in dfcl_train_params; so is recompute */
    const char *recompute;
    uint64_t max_memory;  /* as in dfcl_train_params and dfcl_sample_params; a forward pass that does not fit is DFCL_NOMEM */
    uint64_t seed;        /* of inputs */
    int domains;          /* forward, sampling: domains beside the base with random biases and gammas (DiffFit's, first half of the blocks); 0: none */
    struct dfcl_sample_params sample; /* sampling: sampler, steps, spacing, eta, cfg, cfg_channels, clip; the rest is set here */
};

/* Loads the model, plans and takes memory, draws inputs. The device outlives it. Errors as for dfcl_model_open. */
DFCL_API dfcl_status dfcl_bench_create(dfcl_bench **out, dfcl_device *dev, const struct dfcl_bench_params *params, dfcl_error *err);
DFCL_API void dfcl_bench_destroy(dfcl_bench **bench);

/* Given inputs in place of the seed's; an array that is NULL stays as it is. Copied.
 * x: [batch,C,S,S], the network's input; training: clean pictures; sampling: the noise it starts from. noise (training): [batch,C,S,S].
 * t: [batch] timesteps 0 .. 999, the same in every run (by the seed, training draws new ones each step); not for sampling. classes: [batch]. */
struct dfcl_bench_inputs {
    const float *x, *noise;
    const int32_t *t, *classes;
};
DFCL_API dfcl_status dfcl_bench_set_inputs(dfcl_bench *bench, const struct dfcl_bench_inputs *in, dfcl_error *err);

/* From now on sample i is of domain i modulo n, n = 1 .. params.domains (at first all of them); its class row stays the base's. DFCL_USAGE otherwise. */
DFCL_API dfcl_status dfcl_bench_mix(dfcl_bench *bench, int n, dfcl_error *err);

/* Runs once and waits. The first run also builds kernels. */
struct dfcl_bench_run {
    double seconds;
    double loss, mse, vb, grad_norm; /* training: before this step's update; else 0 */
};
DFCL_API dfcl_status dfcl_bench_run(dfcl_bench *bench, struct dfcl_bench_run *run, dfcl_error *err);
/* What the last run computed: forward [batch,2C,S,S], sampling the latents [batch,C,S,S]. Valid until the next call. DFCL_USAGE for training. */
DFCL_API dfcl_status dfcl_bench_output(dfcl_bench *bench, const float **out, int64_t shape[4], dfcl_error *err);

struct dfcl_bench_variant {
    char op[32], names[96]; /* "linear_fwd", "cpu,cpu_rows": those that run, in order of first use */
};
struct dfcl_bench_info {
    struct dfcl_model_shape shape;
    double load_seconds;     /* values read or drawn, put on the device and packed, memory taken */
    double flops;            /* of one run: matrix products and attention as the formulas need them; recomputation counts nothing */
    uint64_t planned_bytes;  /* device memory by plan; sampling: known after the first run */
    uint64_t device_bytes;   /* most that was allocated on the device so far */
    int64_t trained_values;  /* training */
    int micro_batch;         /* training: samples a pass */
    const char *recompute;   /* training: what backward runs again: "none", "cheap", "block"; else NULL */
    int bf16_products;       /* matrix products multiply bf16: DFCL_PEAK_BF16 is their limit */
    int variant_count;       /* of matrix products and attention; sampling: known after the first run */
    struct dfcl_bench_variant variants[8];
};
/* What is known so far: shape, memory and flops from the start, the rest as its members say. */
DFCL_API dfcl_status dfcl_bench_get_info(dfcl_bench *bench, struct dfcl_bench_info *info, dfcl_error *err);

/* Runs each check case of every op against the host reference. *failed counts; lines name each failure. */
DFCL_API dfcl_status dfcl_check_ops(dfcl_device *dev, const char *filter, int rounds, uint64_t seed, dfcl_line_fn line, void *user,
                                    int *passed, int *failed, dfcl_error *err);

#ifdef __cplusplus
}
#endif
#endif
