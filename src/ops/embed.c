/* Timestep and class embeddings, and rows picked from a table. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/case.h"
#include "ops/rows.h"

/* ---- checks of parameters that would make a launch read or write elsewhere ---- */

static dfcl_status timestep_check(const struct dfcl_timestep_embed *p, dfcl_error *err) {
    if (p->B < 0 || p->dim < 2 || p->dim % 2)
        return dfcl_fail(err, DFCL_ERROR, "B %d, dim %d: expected B >= 0 and an even dim", p->B, p->dim);
    return DFCL_OK;
}
static dfcl_status class_check(int B, int d, int rows, dfcl_error *err) {
    if (B < 0 || d < 1 || rows < 1)
        return dfcl_fail(err, DFCL_ERROR, "B %d, d %d, %d rows: expected positive sizes", B, d, rows);
    return DFCL_OK;
}

/* ---- references ---- */

/* The frequency and the angle are rounded to f32 as in the reference implementation: at large t that rounding is what one sees. */
static dfcl_status timestep_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_timestep_embed *p = params;
    dfcl_status s = timestep_check(p, err);
    if (s)
        return s;
    const float *t = dfcl_host_ptr(dev, p->t);
    float *y = dfcl_host_ptr(dev, p->y);
    int half = p->dim / 2;
    for (int b = 0; b < p->B; b++)
        for (int i = 0; i < half; i++) {
            float f = (float)exp((double)(-9.210340371976184f * (float)i / (float)half));
            float a = t[b] * f;
            y[(size_t)b * (size_t)p->dim + (size_t)i] = (float)cos((double)a);
            y[(size_t)b * (size_t)p->dim + (size_t)(half + i)] = (float)sin((double)a);
        }
    return DFCL_OK;
}

static dfcl_status class_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_class_embed *p = params;
    dfcl_status s = class_check(p->B, p->d, p->rows, err);
    if (s)
        return s;
    const float *temb = dfcl_host_ptr(dev, p->temb), *table = dfcl_host_ptr(dev, p->table);
    const int32_t *row = dfcl_host_ptr(dev, p->row);
    float *c = dfcl_host_ptr(dev, p->c);
    size_t d = (size_t)p->d;
    for (size_t b = 0; b < (size_t)p->B; b++) {
        if (row[b] < 0 || row[b] >= p->rows)
            return dfcl_fail(err, DFCL_ERROR, "sample %zu: row %d of a table of %d", b, row[b], p->rows);
        for (size_t i = 0; i < d; i++)
            c[b * d + i] = temb[b * d + i] + table[(size_t)row[b] * d + i];
    }
    return DFCL_OK;
}

static dfcl_status class_bwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_class_embed_bwd *p = params;
    dfcl_status s = class_check(p->B, p->d, p->rows, err);
    if (s)
        return s;
    const float *dc = dfcl_host_ptr(dev, p->dc);
    const int32_t *row = dfcl_host_ptr(dev, p->row);
    float *dtable = dfcl_host_ptr(dev, p->dtable);
    size_t d = (size_t)p->d;
    for (size_t b = 0; b < (size_t)p->B; b++) {
        if (row[b] < 0 || row[b] >= p->rows)
            return dfcl_fail(err, DFCL_ERROR, "sample %zu: row %d of a table of %d", b, row[b], p->rows);
        for (size_t i = 0; i < d; i++)
            dtable[(size_t)row[b] * d + i] += dc[b * d + i];
    }
    return DFCL_OK;
}

static dfcl_status gather_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_gather_rows *p = params;
    dfcl_status s = class_check(p->B, p->N, p->rows, err);
    if (s)
        return s;
    const float *table = dfcl_host_ptr(dev, p->table);
    const int32_t *row = dfcl_host_ptr(dev, p->row);
    float *y = dfcl_host_ptr(dev, p->y);
    size_t n = (size_t)p->N;
    for (size_t b = 0; b < (size_t)p->B; b++) {
        if (row[b] < 0 || row[b] >= p->rows)
            return dfcl_fail(err, DFCL_ERROR, "row %d of a table of %d", row[b], p->rows);
        memcpy(y + b * n, table + (size_t)row[b] * n, n * sizeof *y);
    }
    return DFCL_OK;
}

/* ---- kernels (cl/embed.cl) ---- */

static dfcl_status timestep_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_timestep_embed *p = params;
    dfcl_status s = timestep_check(p, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->t, 4);
    dfcl_args_ref(&a, p->y, 4);
    dfcl_args_i32(&a, p->B);
    dfcl_args_i32(&a, p->dim / 2);
    return dfcl_launch_kernel(dev, "embed", "timestep_embed", NULL, dfcl_ceil_div((int64_t)p->B * (p->dim / 2), 64), 1, 1, &a, err);
}

static dfcl_status class_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_class_embed *p = params;
    dfcl_status s = class_check(p->B, p->d, p->rows, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->temb, 4);
    dfcl_args_ref(&a, p->table, 4);
    dfcl_args_ref(&a, p->row, 4);
    dfcl_args_ref(&a, p->c, 4);
    dfcl_args_i32(&a, p->d);
    dfcl_args_i32(&a, p->rows);
    return dfcl_launch_kernel(dev, "embed", "class_embed", NULL, dfcl_ceil_div(p->d, 64), p->B, 1, &a, err);
}

static dfcl_status gather_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_gather_rows *p = params;
    dfcl_status s = class_check(p->B, p->N, p->rows, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->table, 4);
    dfcl_args_ref(&a, p->row, 4);
    dfcl_args_ref(&a, p->y, 4);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->rows);
    return dfcl_launch_kernel(dev, "embed", "gather_rows", NULL, dfcl_ceil_div(p->N, 64), p->B, 1, &a, err);
}

static dfcl_status class_bwd_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_class_embed_bwd *p = params;
    dfcl_status s = class_check(p->B, p->d, p->rows, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dc, 4);
    dfcl_args_ref(&a, p->row, 4);
    dfcl_args_ref(&a, p->dtable, 4);
    dfcl_args_i32(&a, p->B);
    dfcl_args_i32(&a, p->d);
    dfcl_args_i32(&a, p->rows);
    return dfcl_launch_kernel(dev, "embed", "class_embed_bwd", NULL, dfcl_ceil_div(p->d, 64), 1, 1, &a, err);
}

/* ---- cases ---- */

static const struct {
    int B, dim;
} timestep_sizes[] = {{1, 256}, {7, 256}, {3, 2}, {5, 30}, {64, 256}};

static void timestep_case(struct dfcl_case *c, int index) {
    struct dfcl_timestep_embed *p = (void *)c->params;
    p->B = timestep_sizes[index].B;
    p->dim = timestep_sizes[index].dim;
    snprintf(c->label, sizeof c->label, "B=%d dim=%d", p->B, p->dim);
    float *t = dfcl_case_data(c, (size_t)p->B * sizeof *t);
    if (!t)
        return;
    static const float some[] = {0.0f, 999.0f, 1.0f, 421.0f, 37.25f, 998.5f, 0.125f};
    for (int i = 0; i < p->B; i++)
        t[i] = i < (int)DFCL_COUNT(some) ? some[i] : (float)((unsigned)i * 37u % 1000u);
    struct dfcl_case_tensor *x = dfcl_case_add(c, "t", &p->t, DFCL_F32, (uint64_t)p->B, DFCL_IN);
    x->fill = DFCL_FILL_DATA;
    x->data = t;
    /* one unit in the last place of a frequency near 1 moves the angle at t = 999 by 6e-5 */
    dfcl_case_add(c, "y", &p->y, DFCL_F32, (uint64_t)p->B * (uint64_t)p->dim, DFCL_OUT)->tol = 1e-4;
}

static const struct {
    int B, d, rows;
} class_sizes[] = {{1, 1, 1}, {5, 33, 11}, {9, 96, 3}, {13, 257, 1001}, {32, 1152, 1001}};

static void class_case(struct dfcl_case *c, int index) {
    struct dfcl_class_embed *p = (void *)c->params;
    p->B = class_sizes[index].B;
    p->d = class_sizes[index].d;
    p->rows = class_sizes[index].rows;
    snprintf(c->label, sizeof c->label, "B=%d d=%d rows=%d", p->B, p->d, p->rows);
    uint64_t B = (uint64_t)p->B, d = (uint64_t)p->d;
    dfcl_case_add(c, "temb", &p->temb, DFCL_F32, B * d, DFCL_IN);
    dfcl_case_add(c, "table", &p->table, DFCL_F32, (uint64_t)p->rows * d, DFCL_IN);
    struct dfcl_case_tensor *r = dfcl_case_add(c, "row", &p->row, DFCL_I32, B, DFCL_IN);
    r->fill = DFCL_FILL_INT;
    r->a = 0;
    r->b = p->rows - 1;
    dfcl_case_add(c, "c", &p->c, DFCL_F32, B * d, DFCL_OUT)->tol = 0; /* one rounded addition */
}

static const struct {
    int B, N, rows;
} gather_sizes[] = {{1, 1, 1}, {7, 65, 3}, {3, 192, 40}, {16, 6912, 500}};

static void gather_case(struct dfcl_case *c, int index) {
    struct dfcl_gather_rows *p = (void *)c->params;
    p->B = gather_sizes[index].B;
    p->N = gather_sizes[index].N;
    p->rows = gather_sizes[index].rows;
    snprintf(c->label, sizeof c->label, "B=%d N=%d rows=%d", p->B, p->N, p->rows);
    dfcl_case_add(c, "table", &p->table, DFCL_F32, (uint64_t)p->rows * (uint64_t)p->N, DFCL_IN);
    struct dfcl_case_tensor *r = dfcl_case_add(c, "row", &p->row, DFCL_I32, (uint64_t)p->B, DFCL_IN);
    r->fill = DFCL_FILL_INT;
    r->a = 0;
    r->b = p->rows - 1;
    dfcl_case_add(c, "y", &p->y, DFCL_F32, (uint64_t)p->B * (uint64_t)p->N, DFCL_OUT)->tol = 0;
}

/* Fewer rows than samples, so that several samples meet in one row, in order: the bits must agree. */
static void class_bwd_case(struct dfcl_case *c, int index) {
    struct dfcl_class_embed_bwd *p = (void *)c->params;
    p->B = class_sizes[index].B;
    p->d = class_sizes[index].d;
    p->rows = class_sizes[index].rows;
    snprintf(c->label, sizeof c->label, "B=%d d=%d rows=%d", p->B, p->d, p->rows);
    uint64_t B = (uint64_t)p->B, d = (uint64_t)p->d;
    dfcl_case_add(c, "dc", &p->dc, DFCL_F32, B * d, DFCL_IN);
    struct dfcl_case_tensor *r = dfcl_case_add(c, "row", &p->row, DFCL_I32, B, DFCL_IN);
    r->fill = DFCL_FILL_INT;
    r->a = 0;
    r->b = DFCL_MIN(p->rows, 4) - 1;
    dfcl_case_add(c, "dtable", &p->dtable, DFCL_F32, (uint64_t)p->rows * d, DFCL_INOUT)->tol = 0;
}

/* ---- rows ---- */

static double timestep_flops(const void *params) {
    const struct dfcl_timestep_embed *p = params;
    return 20.0 * p->B * p->dim;
}
static double timestep_bytes(const void *params) {
    const struct dfcl_timestep_embed *p = params;
    return 4.0 * p->B * (p->dim + 1.0);
}
static double class_flops(const void *params) {
    const struct dfcl_class_embed *p = params;
    return (double)p->B * p->d;
}
static double class_bytes(const void *params) {
    const struct dfcl_class_embed *p = params;
    return 12.0 * p->B * p->d;
}
static double class_bwd_flops(const void *params) {
    const struct dfcl_class_embed_bwd *p = params;
    return (double)p->B * p->d;
}
static double class_bwd_bytes(const void *params) {
    const struct dfcl_class_embed_bwd *p = params;
    return 12.0 * p->B * p->d;
}

static double gather_flops(const void *params) {
    return 0;
}
static double gather_bytes(const void *params) {
    const struct dfcl_gather_rows *p = params;
    return 8.0 * p->B * p->N;
}

static const struct dfcl_variant timestep_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = timestep_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = timestep_host},
};
const struct dfcl_op dfcl_op_timestep_embed = {
    .name = "timestep_embed",
    .params_size = sizeof(struct dfcl_timestep_embed),
    .variants = timestep_variants,
    .variant_count = DFCL_COUNT(timestep_variants),
    .check_cases = DFCL_COUNT(timestep_sizes) - 1,
    .bench_cases = 1,
    .make_case = timestep_case,
    .flops = timestep_flops,
    .bytes = timestep_bytes,
};

static const struct dfcl_variant class_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = class_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = class_host},
};
const struct dfcl_op dfcl_op_class_embed = {
    .name = "class_embed",
    .params_size = sizeof(struct dfcl_class_embed),
    .variants = class_variants,
    .variant_count = DFCL_COUNT(class_variants),
    .check_cases = DFCL_COUNT(class_sizes) - 1,
    .bench_cases = 1,
    .make_case = class_case,
    .flops = class_flops,
    .bytes = class_bytes,
};

static const struct dfcl_variant class_bwd_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = class_bwd_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = class_bwd_host},
};
const struct dfcl_op dfcl_op_class_embed_bwd = {
    .name = "class_embed_bwd",
    .params_size = sizeof(struct dfcl_class_embed_bwd),
    .variants = class_bwd_variants,
    .variant_count = DFCL_COUNT(class_bwd_variants),
    .check_cases = DFCL_COUNT(class_sizes) - 1,
    .bench_cases = 1,
    .make_case = class_bwd_case,
    .flops = class_bwd_flops,
    .bytes = class_bwd_bytes,
};

static const struct dfcl_variant gather_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = gather_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = gather_host},
};
const struct dfcl_op dfcl_op_gather_rows = {
    .name = "gather_rows",
    .params_size = sizeof(struct dfcl_gather_rows),
    .variants = gather_variants,
    .variant_count = DFCL_COUNT(gather_variants),
    .check_cases = DFCL_COUNT(gather_sizes) - 1,
    .bench_cases = 1,
    .make_case = gather_case,
    .flops = gather_flops,
    .bytes = gather_bytes,
};
