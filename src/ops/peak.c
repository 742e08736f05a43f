/* What a device can do at most: the throughput that products are measured against, and reading memory. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "ops/rows.h"

#include <difffit-cl/verify.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* A measuring kernel: `length` is its last argument, the work of a launch grows with it. */
struct loop {
    const char *source, *kernel;
    char options[96];
    int64_t groups;
    double work; /* of a group and unit of length: flop or bytes */
    bool reads;  /* length is that of a group's part of the memory, and fixed */
    int64_t length;
    struct dfcl_ref in, out;
};

/* One launch, waited for. */
static dfcl_status time_loop(dfcl_device *dev, const struct loop *l, double *seconds, dfcl_error *err) {
    struct dfcl_args a = {0};
    if (l->reads)
        dfcl_args_ref(&a, l->in, 4);
    dfcl_args_ref(&a, l->out, 4);
    if (l->reads) {
        dfcl_args_i64(&a, l->length);
    } else {
        dfcl_args_f32(&a, 0.999f);
        dfcl_args_f32(&a, 0.001f);
        dfcl_args_i32(&a, (int)l->length);
    }
    double start = dfcl_now();
    dfcl_status s = dfcl_launch_kernel(dev, l->source, l->kernel, l->options, l->groups, 1, 1, &a, err);
    if (!s)
        s = dfcl_finish(dev, err);
    *seconds = dfcl_now() - start;
    return s;
}

static void describe(struct loop *l, const dfcl_device *dev, enum dfcl_peak what) {
    enum { READ_BYTES = 256 << 20 };
    bool cpu = dfcl_on_cpu(dev), dot = what == DFCL_PEAK_BF16;
    int units = (int)DFCL_MAX(dev->info.compute_units, 1), lanes = dfcl_cpu_lanes(dev);
    *l = (struct loop){.source = cpu ? "peak_cpu" : "peak", .reads = what == DFCL_PEAK_READ};
    l->groups = cpu ? 8 * units : 64 * units; /* enough to even out, a multiple of the units */
    l->kernel = l->reads ? (cpu ? "peak_read_cpu" : "peak_read") : dot ? "peak_dot_cpu" : l->source;
    snprintf(l->options, sizeof l->options, "%s%s", cpu ? dfcl_cpu_options(dev) : "",
             !dot                                      ? ""
             : dfcl_cpu_dot(dev) == DFCL_DOT_EMULATED ? " -DDOT=1 -DDFCL_DOT_EMULATE"
                                                       : " -DDOT=1");
    if (l->reads) {
        uint64_t most = dev->info.max_alloc ? DFCL_MIN(dev->info.max_alloc, dev->info.memory / 4) : READ_BYTES;
        l->work = 4;
        l->length = (int64_t)(DFCL_MIN(most, READ_BYTES) / 4) / l->groups / 256 * 256; /* whole vectors, whole groups */
        l->length = DFCL_MAX(l->length, 256);
    } else {
        l->work = cpu ? (dot ? 4.0 : 2.0) * (lanes == 16 ? 24 : 12) * lanes : 64.0 * 64.0;
        l->length = 256;
    }
}

static dfcl_status measure(dfcl_device *dev, struct loop *l, int repeat, double *rate, dfcl_error *err) {
    double seconds;
    dfcl_status s = time_loop(dev, l, &seconds, err); /* builds */
    if (!s)
        s = time_loop(dev, l, &seconds, err);
    while (!s && !l->reads && seconds < 0.02 && l->length < 1 << 24) { /* long enough that the launch does not count */
        l->length *= 2;
        s = time_loop(dev, l, &seconds, err);
    }
    for (int i = 0; i < repeat && !s; i++) {
        s = time_loop(dev, l, &seconds, err);
        rate[i] = (double)l->groups * l->work * (double)l->length / seconds;
    }
    return s;
}

dfcl_status dfcl_bench_peak(dfcl_device *dev, enum dfcl_peak what, int repeat, double *rate, dfcl_error *err) {
    *rate = 0;
    if (!dfcl_on_kernels(dev))
        return dfcl_fail(err, DFCL_USAGE, "peak: the device %s runs no kernels", dev->info.name);
    if (what == DFCL_PEAK_BF16 && dfcl_cpu_dot(dev) == DFCL_DOT_NONE)
        return DFCL_OK;
    repeat = DFCL_MAX(repeat, 1);
    struct loop l;
    describe(&l, dev, what);
    struct dfcl_mem *in = NULL, *out = NULL;
    uint64_t bytes = (uint64_t)l.groups * (uint64_t)l.length * 4;
    double *rates = dfcl_calloc(dev->ctx, (size_t)repeat, sizeof *rates, err);
    dfcl_status s = rates ? dfcl_mem_create(dev, (uint64_t)l.groups * 64 * 4, "peak", &out, err) : DFCL_NOMEM;
    if (!s && l.reads)
        s = dfcl_mem_create(dev, bytes, "peak", &in, err);
    if (!s && l.reads)
        s = dfcl_fill(dev, (struct dfcl_ref){in, 0}, 0, bytes, err);
    if (!s) {
        l.in.mem = in;
        l.out.mem = out;
        s = measure(dev, &l, repeat, rates, err);
    }
    if (!s) {
        qsort(rates, (size_t)repeat, sizeof *rates, by_value);
        *rate = 0.5 * (rates[(repeat - 1) / 2] + rates[repeat / 2]);
    }
    dfcl_mem_destroy(dev, &in);
    dfcl_mem_destroy(dev, &out);
    dfcl_free(dev->ctx, rates);
    return s;
}
