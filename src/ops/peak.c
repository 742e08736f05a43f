/* The multiply-add throughput that products are measured against. */
#include <stdlib.h>

#include "ops/rows.h"
#include "base/clock.h"

#include <difffit-cl/verify.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct loop {
    int64_t groups;
    double flops; /* of one group and step */
    struct dfcl_ref out;
    bool cpu;
};

/* One launch of `steps` steps, waited for. */
static dfcl_status time_loop(dfcl_device *dev, const struct loop *l, int steps, double *seconds, dfcl_error *err) {
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, l->out, 4);
    dfcl_args_f32(&a, 0.999f);
    dfcl_args_f32(&a, 0.001f);
    dfcl_args_i32(&a, steps);
    double start = dfcl_now();
    dfcl_status s = dfcl_launch_kernel(dev, l->cpu ? "peak_cpu" : "peak", l->cpu ? "peak_cpu" : "peak",
                                       l->cpu ? dfcl_cpu_options(dev) : NULL, l->groups, 1, 1, &a, err);
    if (!s)
        s = dfcl_finish(dev, err);
    *seconds = dfcl_now() - start;
    return s;
}

dfcl_status dfcl_bench_peak(dfcl_device *dev, int repeat, double *flops, dfcl_error *err) {
    *flops = 0;
    if (!dfcl_on_kernels(dev))
        return dfcl_fail(err, DFCL_USAGE, "peak: the device %s runs no kernels", dev->info.name);
    repeat = DFCL_MAX(repeat, 1);
    int units = (int)DFCL_MAX(dev->info.compute_units, 1), lanes = dfcl_cpu_lanes(dev);
    struct loop l = {.cpu = dfcl_on_cpu(dev)};
    l.groups = l.cpu ? 8 * units : 64 * units; /* enough to even out, a multiple of the units */
    l.flops = l.cpu ? 2.0 * (lanes == 16 ? 24 : 12) * lanes : 64.0 * 64.0;
    struct dfcl_mem *mem = NULL;
    double *rate = dfcl_calloc(dev->ctx, (size_t)repeat, sizeof *rate, err);
    dfcl_status s =
        rate ? dfcl_mem_create(dev, (uint64_t)l.groups * (l.cpu ? 1 : 64) * 4, "peak", &mem, err) : DFCL_NOMEM;
    if (s)
        goto out;
    l.out.mem = mem;
    int steps = 256;
    double seconds;
    s = time_loop(dev, &l, steps, &seconds, err); /* builds */
    if (!s)
        s = time_loop(dev, &l, steps, &seconds, err);
    while (!s && seconds < 0.02 && steps < 1 << 24) { /* long enough that the launch does not count */
        steps *= 2;
        s = time_loop(dev, &l, steps, &seconds, err);
    }
    for (int i = 0; i < repeat && !s; i++) {
        s = time_loop(dev, &l, steps, &seconds, err);
        rate[i] = (double)l.groups * l.flops * steps / seconds;
    }
    if (!s) {
        qsort(rate, (size_t)repeat, sizeof *rate, by_value);
        *flops = 0.5 * (rate[(repeat - 1) / 2] + rate[repeat / 2]);
    }
out:
    dfcl_mem_destroy(dev, &mem);
    dfcl_free(dev->ctx, rate);
    return s;
}
