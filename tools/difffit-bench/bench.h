/* difffit-bench: how fast a device is, how near its peak each kernel comes, how long whole models take. */
#ifndef BENCH_H
#define BENCH_H

#include "../cli.h"

int bench_peak(struct cli *c, int argc, char **argv);
int bench_ops(struct cli *c, int argc, char **argv);
int bench_forward(struct cli *c, int argc, char **argv);
int bench_train(struct cli *c, int argc, char **argv);
int bench_sample(struct cli *c, int argc, char **argv);
int bench_vae(struct cli *c, int argc, char **argv);
int bench_compare(struct cli *c, int argc, char **argv);

/* ---- report.c ---- */

/* Fills *err with a message of this program's own; returns the status. */
dfcl_status bench_fail(dfcl_error *err, dfcl_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Device for a benchmark: opened, variants restricted where `variants` is not NULL. No self-test: nothing but the benchmark takes memory. */
dfcl_status bench_open(struct cli *c, const char *variants, dfcl_device **dev, dfcl_error *err);
/* The peak now, 0 for a device that runs no kernels. */
dfcl_status bench_peak_now(dfcl_device *dev, enum dfcl_peak what, int repeat, double *rate, dfcl_error *err);

struct bench_spread {
    double median, min, max;
};
/* Sorts the values. */
struct bench_spread bench_spread(double *values, int n);

/* Members that every JSON object starts with: benchmark, version, commit, device, driver. */
void bench_json_head(FILE *f, const char *benchmark, const dfcl_device *dev);
/* "key": {"median": ..., "min": ..., "max": ...} */
void bench_json_spread(FILE *f, const char *key, struct bench_spread s);

/* Highest resident set of this process so far in bytes, mapped pages included; 0 where the system does not say. */
uint64_t bench_resident(void);

#endif
