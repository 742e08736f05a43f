#include "ops/linear_cpu.h"

#include <stdio.h>

#include "ops/linear_common.h"
#include "ops/rows.h"

enum kind { FWD_PANELS, FWD_ROWS, DX_PANELS, DX_ROWS, DW, PACK }; /* KIND of cl/linear_cpu.cl */
enum { RB_MAX = 256 };                                             /* its rows of an item, at most */

/* Floats in a vector, and rows of the register tile that goes with it. */
static int width(const struct dfcl_device *dev) {
    return dev->info.vector_bits >= 512 ? 16 : dev->info.vector_bits >= 256 ? 8 : 4;
}
static int tile_rows(int vw) {
    return vw == 16 ? 8 : 6;
}

static dfcl_status launch(struct dfcl_device *dev, const char *name, enum kind kind, int vw, enum dfcl_dtype dtype, int64_t gx, int64_t gy,
                          int64_t gz, const struct dfcl_args *a, dfcl_error *err) {
    char options[64];
    snprintf(options, sizeof options, "-DKIND=%d -DVW=%d -DWTYPE=%d", (int)kind, vw, dtype == DFCL_BF16 ? 1 : dtype == DFCL_F16 ? 2 : 0);
    return dfcl_launch_kernel(dev, "linear_cpu", name, options, gx, gy, gz, a, err);
}

/* Rows of C per work-item: as many as share a strip of the weight well, but few enough that every compute unit gets several items. */
static int row_block(const struct dfcl_device *dev, int rows, int strips, int vw, int least) {
    int tm = tile_rows(vw), rb = RB_MAX / tm * tm, want = 4 * (int)DFCL_MAX(dev->info.compute_units, 1);
    while (rb / 2 >= least && strips * dfcl_ceil_div(rows, rb) < want)
        rb = (int)dfcl_ceil_div(rb / 2, tm) * tm;
    return rb;
}

dfcl_status dfcl_linear_fwd_cpu(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, dfcl_error *err) {
    bool panels = p->w.packed.mem != NULL;
    enum dfcl_dtype dtype = panels ? DFCL_F32 : p->w.dtype;
    int vw = width(dev), strips = (int)dfcl_ceil_div(p->w.N, DFCL_PANEL), rb = row_block(dev, p->M, strips, vw, panels ? 32 : 64);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, panels ? p->w.packed : p->w.data, dfcl_dtype_size(dtype));
    dfcl_args_ref(&a, p->bias.ref, 4);
    dfcl_args_i64(&a, p->bias.stride);
    dfcl_args_ref(&a, p->gamma.ref, 4);
    dfcl_args_i64(&a, p->gamma.stride);
    dfcl_args_ref(&a, p->gamma_res.ref, 4);
    dfcl_args_i64(&a, p->gamma_res.stride);
    dfcl_args_ref(&a, p->dom, 4);
    dfcl_args_ref(&a, p->pre, 4);
    dfcl_args_ref(&a, p->y, 4);
    dfcl_args_ref(&a, p->res, 4);
    dfcl_args_ref(&a, p->gate, 4);
    dfcl_args_i64(&a, p->gate_stride);
    dfcl_args_ref(&a, p->out, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->K);
    dfcl_args_i32(&a, p->T);
    dfcl_args_i32(&a, p->res_rows);
    dfcl_args_i32(&a, (int)p->act);
    dfcl_args_i32(&a, rb);
    return launch(dev, "linear_fwd_cpu", panels ? FWD_PANELS : FWD_ROWS, vw, dtype, strips, dfcl_ceil_div(p->M, rb), 1, &a, err);
}

dfcl_status dfcl_linear_dx_cpu(struct dfcl_device *dev, const struct dfcl_linear_dx *p, dfcl_error *err) {
    /* Copying f32 rows is cheaper than transposing panels, where both are there. */
    bool panels = p->w.packed.mem && !(p->w.data.mem && p->w.dtype == DFCL_F32);
    enum dfcl_dtype dtype = panels ? DFCL_F32 : p->w.dtype;
    int vw = width(dev), strips = (int)dfcl_ceil_div(p->w.K, DFCL_PANEL), rb = row_block(dev, p->M, strips, vw, 64);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, panels ? p->w.packed : p->w.data, dfcl_dtype_size(dtype));
    dfcl_args_ref(&a, p->pre, 4);
    dfcl_args_ref(&a, p->dx, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    dfcl_args_i32(&a, (int)p->act);
    dfcl_args_i32(&a, p->accumulate);
    dfcl_args_i32(&a, rb);
    return launch(dev, "linear_dx_cpu", panels ? DX_PANELS : DX_ROWS, vw, dtype, strips, dfcl_ceil_div(p->M, rb), 1, &a, err);
}

/* How the sum over M is cut: rows of dw per item, steps of the sum per slice, slices. */
struct cut {
    int rb, ts, slices;
};
static struct cut cut_dw(const struct dfcl_device *dev, const struct dfcl_linear_dw *p, int vw) {
    struct cut c;
    int tm = tile_rows(vw), blocks = (int)dfcl_ceil_div(p->N, RB_MAX / tm * tm);
    c.rb = (int)dfcl_ceil_div(dfcl_ceil_div(p->N, blocks), tm) * tm; /* even blocks */
    int64_t items = dfcl_ceil_div(p->K, DFCL_PANEL) * blocks, want = 8 * (int64_t)DFCL_MAX(dev->info.compute_units, 1);
    int most = DFCL_MAX(p->M / 256, 1);
    c.slices = (int)DFCL_MIN(most, dfcl_ceil_div(want, items));
    c.ts = (int)dfcl_ceil_div(p->M, c.slices);
    c.slices = (int)dfcl_ceil_div(p->M, c.ts);
    return c;
}

uint64_t dfcl_linear_dw_cpu_scratch(const struct dfcl_device *dev, const struct dfcl_linear_dw *p) {
    struct cut c = cut_dw(dev, p, width(dev));
    return c.slices == 1 ? 0 : (uint64_t)c.slices * (uint64_t)p->N * (uint64_t)p->K * 4;
}

dfcl_status dfcl_linear_dw_cpu(struct dfcl_device *dev, const struct dfcl_linear_dw *p, dfcl_error *err) {
    int vw = width(dev);
    struct cut c = cut_dw(dev, p, vw);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->dw, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->N);
    dfcl_args_i32(&a, p->K);
    dfcl_args_i32(&a, c.rb);
    dfcl_args_i32(&a, c.ts);
    dfcl_args_i32(&a, c.slices);
    dfcl_status s = launch(dev, "linear_dw_cpu", DW, vw, DFCL_F32, dfcl_ceil_div(p->K, DFCL_PANEL), dfcl_ceil_div(p->N, c.rb), c.slices, &a, err);
    if (s || c.slices == 1)
        return s;
    enum { CHUNK = 4096 };
    int64_t count = (int64_t)p->N * p->K;
    struct dfcl_args b = {0};
    dfcl_args_ref(&b, p->head.scratch, 4);
    dfcl_args_ref(&b, p->dw, 4);
    dfcl_args_i64(&b, count);
    dfcl_args_i32(&b, CHUNK);
    dfcl_args_i32(&b, c.slices);
    return launch(dev, "linear_dw_sum_cpu", DW, vw, DFCL_F32, dfcl_ceil_div(count, CHUNK), 1, 1, &b, err);
}

dfcl_status dfcl_pack_cpu(struct dfcl_device *dev, const struct dfcl_pack *p, dfcl_error *err) {
    enum { STEPS = 288 };
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->w.data, dfcl_dtype_size(p->w.dtype));
    dfcl_args_ref(&a, p->w.packed, 4);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    dfcl_args_i32(&a, STEPS);
    return launch(dev, "pack_cpu", PACK, width(dev), p->w.dtype, dfcl_ceil_div(p->w.N, DFCL_PANEL), dfcl_ceil_div(p->w.K, STEPS), 1, &a, err);
}
