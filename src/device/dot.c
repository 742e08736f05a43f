#include "device/dot.h"

#include <signal.h>
#include <string.h>

#include "base/half.h"
#include "device/cache.h"
#include "device/child.h"
#include "device/cpu.h"
#include "device/source.h"

static const char source[] = "dot_cpu", options[] = "-DDFCL_VW=16", folder[] = "probes";
double dfcl_dot_limit_s = 30.0; /* compiling takes a second; a machine may be under load */

static dfcl_status make_key(const dfcl_context *ctx, const char *identity, char key[65]) {
    char *text, cpu[80];
    size_t size;
    dfcl_status s = dfcl_kernel_source(ctx, "prelude_cl.h", source, &text, &size, NULL);
    if (s)
        return s;
    dfcl_cpu_identity(cpu, sizeof cpu);
    const char *parts[] = {text, options, identity, cpu};
    s = dfcl_cache_key(parts, DFCL_COUNT(parts), key, NULL);
    dfcl_free(ctx, text);
    return s;
}

/* Runs the program. *known: the answer will be the same next time. */
static bool ask_program(const struct dfcl_device *dev, bool *known) {
    const dfcl_context *ctx = dev->ctx;
    const char *argv[] = {ctx->p.probe_program, "--try-dot", dev->info.selector, dev->info.name, NULL};
    const char *what = "bf16 dot products are not used";
    int code;
    *known = false;
    switch (dfcl_child_run(argv, dfcl_dot_limit_s, &code)) {
    case DFCL_CHILD_EXITED:
        *known = code == DFCL_OK || code == DFCL_ERROR;
        dfcl_log(ctx, *known ? DFCL_LOG_DEBUG : DFCL_LOG_WARN, "%s: bf16 dot products %s (%s --try-dot: exit code %d)",
                 dev->info.name, code == DFCL_OK ? "work" : "are not used", argv[0], code);
        return code == DFCL_OK;
    case DFCL_CHILD_KILLED:
        *known =
            code == SIGILL || code == SIGABRT || code == SIGSEGV || code == SIGBUS || code == SIGFPE || code == SIGTRAP;
        dfcl_log(ctx, DFCL_LOG_WARN, "%s: %s: the process that tried them was ended by signal %d", dev->info.name, what,
                 code);
        return false;
    case DFCL_CHILD_TIMEOUT:
        dfcl_log(ctx, DFCL_LOG_WARN, "%s: %s: the process that tried them was not done after %.0f s", dev->info.name,
                 what, dfcl_dot_limit_s);
        return false;
    case DFCL_CHILD_NOT_RUN: break;
    }
    dfcl_log(ctx, DFCL_LOG_WARN, "%s: %s: %s cannot be run", dev->info.name, what, argv[0]);
    return false;
}

bool dfcl_dot_works(const struct dfcl_device *dev, const char *identity) {
    const dfcl_context *ctx = dev->ctx;
    if (!(dev->cpu_features & DFCL_CPU_AVX512_BF16) || dev->info.vector_bits < 512 || !ctx->p.probe_program)
        return false;
    char key[65];
    unsigned char *data;
    size_t size;
    if (make_key(ctx, identity, key))
        return false;
    if (dfcl_cache_load(ctx, folder, key, &data, &size)) {
        bool cached = size == 1 && (*data == '0' || *data == '1'), works = cached && *data == '1';
        dfcl_free(ctx, data);
        if (cached)
            return works;
    }
    bool known, works = ask_program(dev, &known);
    if (known)
        dfcl_cache_store(ctx, folder, key, works ? "1" : "0", 1);
    return works;
}

/* ---- in the other process ---- */

enum { N_SUMS = 16, N_ROW = 32, N_IN = N_SUMS + 2 * N_ROW, N_OUT = N_SUMS + N_ROW / 2 };

/* Values whose products and sums are exact in f32, and in row a also such that rounding to bf16 changes, ties among
 * them. */
static void make_input(float *in) {
    for (int i = 0; i < N_SUMS; i++)
        in[i] = (float)(1000 * i - 7000);
    for (int i = 0; i < N_ROW; i++) {
        in[N_SUMS + i] =
            (float)(i % 2 ? 201 - 13 * i : 256 + 37 * i); /* from 256 on bf16 has steps of 2, from 512 on of 4 */
        in[N_SUMS + N_ROW + i] = (float)(11 * i - 150);
    }
}

static bool output_is_right(const float *in, const float *out) {
    const float *a = in + N_SUMS, *b = a + N_ROW;
    for (int i = 0; i < N_SUMS; i++) {
        uint16_t lo = dfcl_f32_to_bf16(a[2 * i]), hi = dfcl_f32_to_bf16(a[2 * i + 1]);
        uint32_t pair = (uint32_t)hi << 16 | lo, found;
        memcpy(&found, out + N_SUMS + i, sizeof found);
        float sum = in[i] + dfcl_bf16_to_f32(lo) * b[2 * i] + dfcl_bf16_to_f32(hi) * b[2 * i + 1];
        if (found != pair || out[i] != sum)
            return false;
    }
    return true;
}

static dfcl_status run_kernel(struct dfcl_device *dev, struct dfcl_kernel *k, const float *in, float *out,
                              dfcl_error *err) {
    struct dfcl_mem *mem = NULL;
    struct dfcl_args a = {0};
    dfcl_status s = dfcl_mem_create(dev, (N_IN + N_OUT) * sizeof(float), "probe", &mem, err);
    if (!s)
        s = dfcl_write(dev, (struct dfcl_ref){mem, 0}, in, N_IN * sizeof(float), err);
    dfcl_args_ref(&a, (struct dfcl_ref){mem, N_IN * sizeof(float)}, sizeof(float));
    dfcl_args_ref(&a, (struct dfcl_ref){mem, 0}, sizeof(float));
    if (!s)
        s = dfcl_device_launch(dev, k, (size_t[3]){1, 1, 1}, &a, err);
    if (!s)
        s = dfcl_read(dev, out, (struct dfcl_ref){mem, N_IN * sizeof(float)}, N_OUT * sizeof(float), err);
    dfcl_mem_destroy(dev, &mem);
    return s;
}

dfcl_status dfcl_device_try_dot(dfcl_device *dev, dfcl_error *err) {
    if (!(dev->cpu_features & DFCL_CPU_AVX512_BF16) || dev->info.vector_bits < 512 ||
        !strcmp(dev->info.backend, "host"))
        return dfcl_fail(err, DFCL_ERROR, "%s: no bf16 dot products on this device", dev->info.name);
    float in[N_IN], out[N_OUT];
    struct dfcl_kernel *k;
    make_input(in);
    dfcl_status s = dfcl_device_kernel(dev, source, "probe_dot", options, &k, err);
    if (s == DFCL_DEVICE && err)
        err->status = DFCL_ERROR;
    if (s)
        return s == DFCL_DEVICE ? DFCL_ERROR
                                : s; /* a text that does not compile is an answer, a device that is lost is none */
    s = run_kernel(dev, k, in, out, err);
    if (!s && !output_is_right(in, out))
        s = dfcl_fail(err, DFCL_ERROR, "%s: bf16 dot products come out wrong", dev->info.name);
    return s;
}
