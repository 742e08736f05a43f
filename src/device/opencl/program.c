/* Programs and kernels: found in a table on the hot path, built from the embedded text (or a cached binary) the first time. */
#include <stdio.h>
#include <string.h>

#include "device/cache.h"
#include "device/opencl/ocl.h"
#include "device/source.h"

/* ---- building ---- */

/* The driver's log in one line: line breaks become " | ", and only the beginning is kept. */
static void one_line(char *out, size_t size, const char *log) {
    size_t n = 0;
    bool gap = true;
    for (; *log && n + 4 < size; log++) {
        if (*log == '\n' || *log == '\r') {
            if (!gap) {
                memcpy(out + n, " | ", 3);
                n += 3;
            }
            gap = true;
        } else if (!(gap && (*log == ' ' || *log == '\t'))) {
            out[n++] = *log;
            gap = false;
        }
    }
    out[n] = 0;
}

static char *build_log(struct ocl_device *d, cl_program p) {
    size_t size = 0;
    if (clGetProgramBuildInfo(p, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) != CL_SUCCESS || size < 2 || size > (16u << 20))
        return NULL;
    char *log = dfcl_calloc(d->dev.ctx, size + 1, 1, NULL);
    if (log && clGetProgramBuildInfo(p, d->id, CL_PROGRAM_BUILD_LOG, size, log, NULL) != CL_SUCCESS) {
        dfcl_free(d->dev.ctx, log);
        log = NULL;
    }
    return log;
}

static cl_program from_binary(struct ocl_device *d, const char *key, const char *options) {
    unsigned char *bin;
    size_t size;
    if (!dfcl_cache_load(d->dev.ctx, "programs", key, &bin, &size))
        return NULL;
    cl_int e, status = CL_SUCCESS;
    const unsigned char *data = bin;
    cl_program p = clCreateProgramWithBinary(d->context, 1, &d->id, &size, &data, &status, &e);
    dfcl_free(d->dev.ctx, bin);
    if (e != CL_SUCCESS || status != CL_SUCCESS) {
        if (e == CL_SUCCESS)
            clReleaseProgram(p);
        return NULL;
    }
    if (clBuildProgram(p, 1, &d->id, options, NULL, NULL) != CL_SUCCESS) {
        clReleaseProgram(p);
        return NULL;
    }
    return p;
}

static void keep_binary(struct ocl_device *d, const char *key, cl_program p) {
    size_t size = 0;
    if (clGetProgramInfo(p, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS || !size)
        return;
    unsigned char *bin = dfcl_calloc(d->dev.ctx, size, 1, NULL);
    if (bin && clGetProgramInfo(p, CL_PROGRAM_BINARIES, sizeof bin, &bin, NULL) == CL_SUCCESS)
        dfcl_cache_store(d->dev.ctx, "programs", key, bin, size);
    dfcl_free(d->dev.ctx, bin);
}

static dfcl_status build(struct ocl_device *d, const char *source, const char *options, cl_program *out, dfcl_error *err) {
    const dfcl_context *ctx = d->dev.ctx;
    char *text = NULL, *log = NULL, key[65] = "";
    size_t size;
    cl_program p = NULL;
    dfcl_status s = dfcl_kernel_source(ctx, "prelude_cl.h", source, &text, &size, err);
    if (s)
        return s;
    bool cached = d->cache_binaries && ctx->cache_dir;
    if (cached) {
        const char *parts[] = {text, options, d->identity};
        s = dfcl_cache_key(parts, DFCL_COUNT(parts), key, err);
        if (s)
            goto out;
        p = from_binary(d, key, options);
        if (p)
            dfcl_log(ctx, DFCL_LOG_DEBUG, "%s.cl (%s): from the program cache", source, options);
    }
    if (!p) {
        cl_int e;
        const char *texts[] = {text};
        p = clCreateProgramWithSource(d->context, 1, texts, &size, &e);
        if (e != CL_SUCCESS) {
            p = NULL;
            s = ocl_fail(d, err, e, "clCreateProgramWithSource");
            goto out;
        }
        e = clBuildProgram(p, 1, &d->id, options, NULL, NULL);
        log = build_log(d, p);
        char line[640];
        one_line(line, sizeof line, log ? log : "");
        if (e != CL_SUCCESS) {
            s = dfcl_fail_native(err, e == CL_OUT_OF_HOST_MEMORY ? DFCL_NOMEM : DFCL_DEVICE, e,
                                 "%s.cl (%s): does not compile on %s: %s (%d): %s", source, options, d->dev.info.name,
                                 ocl_error_name(e), e, line[0] ? line : "no log");
            if (log)
                dfcl_log(ctx, DFCL_LOG_DEBUG, "%s.cl: build log: %s", source, log);
            goto out;
        }
        if (line[0])
            dfcl_log(ctx, DFCL_LOG_DEBUG, "%s.cl (%s): build log: %s", source, options, line);
        if (cached)
            keep_binary(d, key, p);
    }
    *out = p;
    p = NULL;
out:
    if (p)
        clReleaseProgram(p);
    dfcl_free(ctx, log);
    dfcl_free(ctx, text);
    return s;
}

/* Only text that uses sub-groups is compiled with them: the others stay plain OpenCL C 1.2. */
static bool wants_sub_groups(const char *source) {
    char file[128];
    snprintf(file, sizeof file, "%s.cl", source);
    const struct dfcl_text *t = dfcl_kernel_file(file);
    return t && (strstr(t->text, "dfcl_wg_") || strstr(t->text, "dfcl_sg_") || strstr(t->text, "DFCL_SG"));
}

/* The program of (source, options), built if need be; owned by the device. */
static dfcl_status program_get(struct ocl_device *d, const char *source, const char *options, uint32_t sub_group, cl_program *out,
                               dfcl_error *err) {
    const dfcl_context *ctx = d->dev.ctx;
    char *key = NULL;
    char *full = sub_group ? dfcl_sprintf(ctx, err, "%s -DDFCL_SG=%u %s", d->std_sub_groups, sub_group, options)
                           : dfcl_sprintf(ctx, err, "%s %s", d->std_plain, options);
    if (!full)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_NOMEM;
    key = dfcl_sprintf(ctx, err, "%s\n%s", source, full);
    if (!key)
        goto out;
    for (size_t i = 0; i < d->program_count; i++)
        if (!strcmp(d->programs[i].key, key)) {
            *out = d->programs[i].p;
            s = DFCL_OK;
            goto out;
        }
    void *list = d->programs;
    s = dfcl_grow(ctx, &list, &d->program_cap, d->program_count + 1, sizeof *d->programs, err);
    if (s)
        goto out;
    d->programs = list;
    s = build(d, source, full, out, err);
    if (s)
        goto out;
    d->programs[d->program_count++] = (struct ocl_program){*out, key};
    key = NULL;
out:
    dfcl_free(ctx, full);
    dfcl_free(ctx, key);
    return s;
}

/* ---- kernels ---- */

static void kernel_free(struct ocl_device *d, struct dfcl_kernel *k) {
    if (!k)
        return;
    if (k->k && !d->lost)
        clReleaseKernel(k->k);
    dfcl_free(d->dev.ctx, k->key);
    dfcl_free(d->dev.ctx, (void *)(uintptr_t)k->name);
    dfcl_free(d->dev.ctx, k);
}

void ocl_programs_release(struct ocl_device *d) {
    for (size_t i = 0; i < d->table_cap; i++)
        kernel_free(d, d->table[i]);
    for (size_t i = 0; i < d->program_count; i++) {
        if (!d->lost)
            clReleaseProgram(d->programs[i].p);
        dfcl_free(d->dev.ctx, d->programs[i].key);
    }
    dfcl_free(d->dev.ctx, d->table);
    dfcl_free(d->dev.ctx, d->programs);
    d->table = NULL;
    d->programs = NULL;
    d->table_cap = d->table_count = d->program_count = d->program_cap = 0;
}

/* Largest sub-group the driver uses for this kernel at this group size; 0 when it cannot say. */
static size_t kernel_sub_group(struct ocl_device *d, cl_kernel k, const size_t local[3]) {
    size_t n = 0;
    if (d->sub_groups_core) {
        if (clGetKernelSubGroupInfo(k, d->id, CL_KERNEL_MAX_SUB_GROUP_SIZE_FOR_NDRANGE, 3 * sizeof local[0], local, sizeof n, &n, NULL) !=
            CL_SUCCESS)
            n = 0;
        return n;
    }
    cl_int(CL_API_CALL * ask)(cl_kernel, cl_device_id, cl_kernel_sub_group_info, size_t, const void *, size_t, void *, size_t *);
    void *f = clGetExtensionFunctionAddressForPlatform(d->platform, "clGetKernelSubGroupInfoKHR");
    if (!f)
        return 0;
    memcpy(&ask, &f, sizeof ask);
    if (ask(k, d->id, CL_KERNEL_MAX_SUB_GROUP_SIZE_FOR_NDRANGE_KHR, 3 * sizeof local[0], local, sizeof n, &n, NULL) != CL_SUCCESS)
        n = 0;
    return n;
}

/* Creates the entry point and asks what the launch needs to know. */
static dfcl_status kernel_create(struct ocl_device *d, cl_program p, const char *source, const char *name, struct dfcl_kernel **out,
                                 dfcl_error *err) {
    const dfcl_context *ctx = d->dev.ctx;
    struct dfcl_kernel *k = dfcl_calloc(ctx, 1, sizeof *k, err);
    if (!k)
        return DFCL_NOMEM;
    dfcl_status s = DFCL_NOMEM;
    cl_int e;
    k->name = dfcl_sprintf(ctx, err, "%s.cl: %s", source, name);
    if (!k->name)
        goto out;
    k->k = clCreateKernel(p, name, &e);
    if (e != CL_SUCCESS) {
        k->k = NULL;
        s = e == CL_INVALID_KERNEL_NAME ? dfcl_fail_native(err, DFCL_ERROR, e, "%s: no such kernel in the file", k->name)
                                        : ocl_fail(d, err, e, k->name);
        goto out;
    }
    size_t max = 0;
    e = clGetKernelInfo(k->k, CL_KERNEL_NUM_ARGS, sizeof k->args, &k->args, NULL);
    if (e == CL_SUCCESS)
        e = clGetKernelWorkGroupInfo(k->k, d->id, CL_KERNEL_COMPILE_WORK_GROUP_SIZE, sizeof k->local, k->local, NULL);
    if (e == CL_SUCCESS)
        e = clGetKernelWorkGroupInfo(k->k, d->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof max, &max, NULL);
    if (e != CL_SUCCESS) {
        s = ocl_fail(d, err, e, k->name);
        goto out;
    }
    size_t items = k->local[0] * k->local[1] * k->local[2];
    if (!items) {
        s = dfcl_fail(err, DFCL_ERROR, "%s: declares no work-group size (DFCL_KERNEL missing)", k->name);
        goto out;
    }
    if (items > max) {
        s = dfcl_fail(err, DFCL_DEVICE, "%s: needs work-groups of %zu items, %s runs at most %zu", k->name, items, d->dev.info.name, max);
        goto out;
    }
    s = DFCL_OK;
    *out = k;
    k = NULL;
out:
    kernel_free(d, k);
    return s;
}

static uint64_t hash_add(uint64_t h, const char *s) {
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3ull; /* FNV-1a, 64 bits */
    return (h ^ '\n') * 0x100000001b3ull;
}

/* True when key is "source\nname\noptions". */
static bool key_is(const char *key, const char *source, const char *name, const char *options) {
    const char *parts[3] = {source, name, options};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(parts[i]);
        if (strncmp(key, parts[i], n) || key[n] != (i < 2 ? '\n' : 0))
            return false;
        key += n + 1;
    }
    return true;
}

static dfcl_status table_grow(struct ocl_device *d, dfcl_error *err) {
    size_t cap = d->table_cap ? 2 * d->table_cap : 64;
    struct dfcl_kernel **t = dfcl_calloc(d->dev.ctx, cap, sizeof *t, err);
    if (!t)
        return DFCL_NOMEM;
    for (size_t i = 0; i < d->table_cap; i++)
        if (d->table[i]) {
            size_t at = d->table[i]->hash & (cap - 1);
            while (t[at])
                at = (at + 1) & (cap - 1);
            t[at] = d->table[i];
        }
    dfcl_free(d->dev.ctx, d->table);
    d->table = t;
    d->table_cap = cap;
    return DFCL_OK;
}

dfcl_status ocl_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options, struct dfcl_kernel **out,
                       dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    uint64_t h = hash_add(hash_add(hash_add(0xcbf29ce484222325ull, source), name), options);
    for (size_t at = h & (d->table_cap - 1); d->table_cap && d->table[at]; at = (at + 1) & (d->table_cap - 1))
        if (d->table[at]->hash == h && key_is(d->table[at]->key, source, name, options)) {
            *out = d->table[at];
            return DFCL_OK;
        }

    if (4 * (d->table_count + 1) > 3 * d->table_cap) {
        s = table_grow(d, err);
        if (s)
            return s;
    }
    cl_program p;
    struct dfcl_kernel *k = NULL;
    uint32_t sg = wants_sub_groups(source) ? dev->info.sub_group : 0;
    s = program_get(d, source, options, sg, &p, err);
    if (!s)
        s = kernel_create(d, p, source, name, &k, err);
    if (!s && sg && kernel_sub_group(d, k->k, k->local) > sg) {
        /* The driver chose another size for this kernel than the text assumes. Groups smaller than a sub-group are fine. */
        dfcl_log(dev->ctx, DFCL_LOG_DEBUG, "%s: built without sub-groups, the driver does not keep to size %u", k->name, sg);
        kernel_free(d, k);
        k = NULL;
        s = program_get(d, source, options, 0, &p, err);
        if (!s)
            s = kernel_create(d, p, source, name, &k, err);
    }
    if (s)
        return s;
    k->hash = h;
    k->key = dfcl_sprintf(dev->ctx, err, "%s\n%s\n%s", source, name, options);
    if (!k->key) {
        kernel_free(d, k);
        return DFCL_NOMEM;
    }
    size_t at = h & (d->table_cap - 1);
    while (d->table[at])
        at = (at + 1) & (d->table_cap - 1);
    d->table[at] = k;
    d->table_count++;
    *out = k;
    return DFCL_OK;
}

/* ---- sub-groups ---- */

/* What a driver reports is only believed after sums over groups of 64 came out right. */
static bool probe_sums(struct ocl_device *d, uint32_t size) {
    enum { N = 256 };
    struct dfcl_device *dev = &d->dev;
    struct dfcl_mem *mem = NULL;
    struct dfcl_kernel *k = NULL;
    cl_program p;
    float v[2 * N];
    bool good = false;
    for (int i = 0; i < N; i++) {
        v[i] = (float)(i % 61 + 1) * (float)(i / 64 + 1); /* sums stay exact in f32 */
        v[N + i] = -1.0f;
    }
    if (program_get(d, "probe", "", size, &p, NULL) || kernel_create(d, p, "probe", "probe_sum", &k, NULL))
        return false;
    /* A driver that takes other sizes for a kernel like this one is no base to build on. */
    size_t found = kernel_sub_group(d, k->k, k->local);
    if (found && found != DFCL_MIN(size, 64u))
        goto out;
    if (dfcl_mem_create(dev, sizeof v, "probe", &mem, NULL) || dfcl_write(dev, (struct dfcl_ref){mem, 0}, v, sizeof v, NULL))
        goto out;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, (struct dfcl_ref){mem, N * sizeof(float)}, sizeof(float));
    dfcl_args_ref(&a, (struct dfcl_ref){mem, 0}, sizeof(float));
    if (ocl_launch(dev, k, (size_t[3]){N / 64, 1, 1}, &a, NULL) || dfcl_read(dev, v, (struct dfcl_ref){mem, 0}, sizeof v, NULL))
        goto out;
    good = true;
    for (int i = 0; i < N; i++) {
        float sum = 0.0f;
        for (int j = i / 64 * 64; j < i / 64 * 64 + 64; j++)
            sum += v[j];
        good = good && v[N + i] == sum;
    }
out:
    kernel_free(d, k);
    dfcl_mem_destroy(dev, &mem);
    return good;
}

dfcl_status ocl_probe_sub_groups(struct ocl_device *d, int candidate, dfcl_error *err) {
    struct dfcl_device *dev = &d->dev;
    dev->be = &dfcl_backend_opencl; /* the probe goes through the checked calls */
    dev->info.sub_group = 0;
    if (!candidate || !d->std_sub_groups[0])
        return DFCL_OK;
    if (candidate < 0) {
        /* No query tells the size: take what the driver chose for a kernel built without assumptions. */
        cl_program p;
        struct dfcl_kernel *k = NULL;
        candidate = 0;
        if (!program_get(d, "probe", "", 0, &p, NULL) && !kernel_create(d, p, "probe", "probe_sum", &k, NULL))
            candidate = (int)DFCL_MIN(kernel_sub_group(d, k->k, k->local), 128u);
        kernel_free(d, k);
    }
    if (candidate >= 4 && !(candidate & (candidate - 1)) && probe_sums(d, (uint32_t)candidate))
        dev->info.sub_group = (uint32_t)candidate;
    else
        dfcl_log(dev->ctx, DFCL_LOG_DEBUG, "%s: sub-groups are not used: the probe failed", dev->info.name);
    dev->peak = dev->used;
    return ocl_check_lost(d, err);
}
