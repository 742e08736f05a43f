#include "bench.h"
#include "commit.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

dfcl_status bench_fail(dfcl_error *err, dfcl_status status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    err->status = status;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return status;
}

dfcl_status bench_open(struct cli *c, const char *variants, dfcl_device **dev, dfcl_error *err) {
    dfcl_status s = cli_open_plain(c, dev, err);
    if (s)
        return s;
    return variants ? dfcl_device_set_variants(*dev, variants, err) : DFCL_OK;
}

dfcl_status bench_peak_now(dfcl_device *dev, enum dfcl_peak what, int repeat, double *rate, dfcl_error *err) {
    *rate = 0;
    return strcmp(dfcl_device_get_info(dev)->backend, "host") ? dfcl_bench_peak(dev, what, repeat, rate, err) : DFCL_OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct bench_spread bench_spread(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return (struct bench_spread){0.5 * (values[(n - 1) / 2] + values[n / 2]), values[0], values[n - 1]};
}

void bench_json_head(FILE *f, const char *benchmark, const dfcl_device *dev) {
    const struct dfcl_device_info *d = dfcl_device_get_info(dev);
    fprintf(f, "{\"benchmark\": \"%s\", \"version\": \"%s\", \"commit\": \"%s\",\n  \"device\": ", benchmark, dfcl_version(), BENCH_COMMIT);
    cli_json_string(f, d->name);
    fprintf(f, ", \"driver\": ");
    cli_json_string(f, d->driver);
}

void bench_json_spread(FILE *f, const char *key, struct bench_spread s) {
    fprintf(f, "\"%s\": {\"median\": %.9g, \"min\": %.9g, \"max\": %.9g}", key, s.median, s.min, s.max);
}

uint64_t bench_resident(void) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (uint64_t)kib * 1024;
}
