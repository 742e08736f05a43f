/* difffit-cl: checks against reference data, self-test, op checks and benchmarks. */
#ifndef DFCL_VERIFY_H
#define DFCL_VERIFY_H

#include <difffit-cl/device.h>

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

struct dfcl_bench_result {
    char op[32], variant[32], label[128];
    double seconds_median, seconds_min, seconds_max;
    double flops, bytes; /* of one launch */
};
/* Times every variant of every op (filter: part of "op/variant", NULL: all) and hands each result to `each`. */
DFCL_API dfcl_status dfcl_bench_ops(dfcl_device *dev, const char *filter, int repeat,
                                    void (*each)(void *user, const struct dfcl_bench_result *r), void *user, dfcl_error *err);
/* f32 FMA throughput of a register-only loop on all compute units, in flop/s, median of `repeat`. */
DFCL_API dfcl_status dfcl_bench_peak(dfcl_device *dev, int repeat, double *flops, dfcl_error *err);
/* Runs each check case of every op against the host reference. *failed counts; lines name each failure. */
DFCL_API dfcl_status dfcl_check_ops(dfcl_device *dev, const char *filter, int rounds, uint64_t seed, dfcl_line_fn line, void *user,
                                    int *passed, int *failed, dfcl_error *err);

#ifdef __cplusplus
}
#endif
#endif
