/* Philox normals on the device: the same bits as dfcl_normals. */
#include <stdio.h>

#include "base/philox.h"
#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status normal_check(const struct dfcl_normal *p, dfcl_error *err) {
    if (p->B < 0 || p->n < 0)
        return dfcl_fail(err, DFCL_ERROR, "B %d, n %d: expected sizes of at least 0", p->B, p->n);
    return DFCL_OK;
}

static dfcl_status normal_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_normal *p = params;
    dfcl_status s = normal_check(p, err);
    if (s)
        return s;
    const uint32_t *id = dfcl_host_ptr(dev, p->id);
    float *out = dfcl_host_ptr(dev, p->out);
    for (int b = 0; b < p->B; b++)
        dfcl_normals(p->seed, p->stream, p->step, id[b], out + (size_t)b * (size_t)p->n, (size_t)p->n);
    return DFCL_OK;
}

static dfcl_status normal_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_normal *p = params;
    dfcl_status s = normal_check(p, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->id, 4);
    dfcl_args_ref(&a, p->out, 4);
    dfcl_args_i32(&a, p->n);
    dfcl_args_u32(&a, (uint32_t)p->seed);
    dfcl_args_u32(&a, (uint32_t)(p->seed >> 32));
    dfcl_args_u32(&a, p->stream);
    dfcl_args_u32(&a, p->step);
    return dfcl_launch_kernel(dev, "normal", "normal", NULL, dfcl_ceil_div(dfcl_ceil_div(p->n, 4), 64), p->B, 1, &a, err);
}

static const struct {
    int B, n;
} sizes[] = {{1, 1}, {3, 7}, {2, 4096}, {5, 1023}, {1, 200001}, {32, 4096}};

static void normal_case(struct dfcl_case *c, int index) {
    struct dfcl_normal *p = (void *)c->params;
    p->B = sizes[index].B;
    p->n = sizes[index].n;
    p->seed = index & 1 ? 0xfedcba9876543210u : 42;
    p->stream = DFCL_STREAM_TEST;
    p->step = (uint32_t)index * 1000003u;
    snprintf(c->label, sizeof c->label, "B=%d n=%d", p->B, p->n);
    uint32_t *id = dfcl_case_data(c, (size_t)p->B * sizeof *id);
    if (!id)
        return;
    for (int b = 0; b < p->B; b++)
        id[b] = b == 1 ? UINT32_MAX : (uint32_t)(b * b + 5);
    struct dfcl_case_tensor *t = dfcl_case_add(c, "id", &p->id, DFCL_I32, (uint64_t)p->B, DFCL_IN);
    t->fill = DFCL_FILL_DATA;
    t->data = id;
    dfcl_case_add(c, "out", &p->out, DFCL_F32, (uint64_t)p->B * (uint64_t)p->n, DFCL_OUT)->tol = 0;
}

static double normal_flops(const void *params) {
    const struct dfcl_normal *p = params;
    return 60.0 * p->B * p->n;
}
static double normal_bytes(const void *params) {
    const struct dfcl_normal *p = params;
    return 4.0 * p->B * p->n;
}

static const struct dfcl_variant normal_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = normal_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = normal_host},
};
const struct dfcl_op dfcl_op_normal = {
    .name = "normal",
    .params_size = sizeof(struct dfcl_normal),
    .variants = normal_variants,
    .variant_count = DFCL_COUNT(normal_variants),
    .check_cases = DFCL_COUNT(sizes) - 1,
    .bench_cases = 1,
    .make_case = normal_case,
    .flops = normal_flops,
    .bytes = normal_bytes,
};
