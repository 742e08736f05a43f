#include "ops/linear_cpu.h"

#include <stdio.h>

#include "ops/linear_common.h"
#include "ops/rows.h"

/* KIND of cl/linear_cpu.cl. */
enum kind { FWD_PANELS, FWD_ROWS, DX_PANELS, DX_ROWS, DW, PACK, DX_FEW, FWD_DIRECT, BF16_ROWS };
enum { RB_MAX = 256 }; /* its rows of an item, at most */
enum { FEW_MAX = 16 };
enum { FEW_DX = 24 }; /* dx of up to so many rows goes by sums along n */

enum { TILE_ROWS = 8 }; /* a multiple of the register tile's rows, whatever the vectors */

static dfcl_status launch_with(struct dfcl_device *dev, const char *name, enum kind kind, int wtype, const char *more,
                               int64_t gx, int64_t gy, int64_t gz, const struct dfcl_args *a, dfcl_error *err) {
    char options[96];
    snprintf(options, sizeof options, "%s -DKIND=%d -DWTYPE=%d%s", dfcl_cpu_options(dev), (int)kind, wtype, more);
    return dfcl_launch_kernel(dev, "linear_cpu", name, options, gx, gy, gz, a, err);
}
static dfcl_status launch(struct dfcl_device *dev, const char *name, enum kind kind, struct dfcl_weight_form w,
                          int64_t gx, int64_t gy, int64_t gz, const struct dfcl_args *a, dfcl_error *err) {
    return launch_with(dev, name, kind, w.wtype, "", gx, gy, gz, a, err);
}

/* ---- operands of bf16 dot products ---- */

static const char *dot_options(const struct dfcl_device *dev, bool dot) {
    return !dot ? "" : dfcl_cpu_dot(dev) == DFCL_DOT_EMULATED ? " -DDOT=1 -DDFCL_DOT_EMULATE" : " -DDOT=1";
}
/* Rows of pairs, whole vectors of 32 values. */
static uint64_t bf16_rows_size(int M, int K) {
    return (uint64_t)M * (uint64_t)dfcl_ceil_div(K, 32) * 64;
}
static dfcl_status bf16_rows(struct dfcl_device *dev, struct dfcl_ref x, struct dfcl_ref out, int M, int K,
                             dfcl_error *err) {
    int rows = (int)dfcl_ceil_div(M, 4 * (int64_t)DFCL_MAX(dev->info.compute_units, 1));
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, x, 4);
    dfcl_args_ref(&a, out, 4);
    dfcl_args_i32(&a, M);
    dfcl_args_i32(&a, K);
    dfcl_args_i32(&a, rows);
    return launch_with(dev, "bf16_rows_cpu", BF16_ROWS, 1, dot_options(dev, true), dfcl_ceil_div(M, rows), 1, 1, &a,
                       err);
}

bool dfcl_linear_dot_supports(const struct dfcl_device *dev, const struct dfcl_weight *w, int M) {
    return dfcl_cpu_dot(dev) != DFCL_DOT_NONE && w->dtype == DFCL_BF16 && M > FEW_MAX;
}

/* ---- forward ---- */

/* Rows of C per work-item: as many as share a strip of the weight well, in even blocks, but few enough that every
 * compute unit gets several items. */
static int row_block(const struct dfcl_device *dev, int rows, int strips, int least) {
    int want = 4 * (int)DFCL_MAX(dev->info.compute_units, 1), blocks = (int)dfcl_ceil_div(rows, RB_MAX);
    while (strips * blocks < want && dfcl_ceil_div(rows, 2 * blocks) >= least)
        blocks *= 2;
    return (int)dfcl_ceil_div(dfcl_ceil_div(rows, blocks), TILE_ROWS) * TILE_ROWS;
}

static dfcl_status fwd(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, bool dot, dfcl_error *err) {
    bool panels = p->w.packed.mem != NULL;
    struct dfcl_weight_form w = panels ? dfcl_weight_panels(&p->w) : dfcl_weight_rows(&p->w);
    int strips = (int)dfcl_ceil_div(p->w.N, DFCL_PANEL), rb = row_block(dev, p->M, strips, panels ? 32 : 64);
    struct dfcl_args a = {0};
    dfcl_linear_fwd_args(&a, p, w);
    dfcl_args_i32(&a, rb);
    /* Where a tile is as wide as a panel, panels of f32 are read as they lie; others only for few rows. */
    bool direct = !dot && panels && ((dfcl_cpu_lanes(dev) == 16 && w.wtype == 0) || p->M <= FEW_MAX);
    enum kind kind = direct ? FWD_DIRECT : panels ? FWD_PANELS : FWD_ROWS;
    return launch_with(dev, "linear_fwd_cpu", kind, w.wtype, dot_options(dev, dot), strips, dfcl_ceil_div(p->M, rb), 1,
                       &a, err);
}
dfcl_status dfcl_linear_fwd_cpu(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, dfcl_error *err) {
    return fwd(dev, p, false, err);
}
uint64_t dfcl_linear_fwd_dot_scratch(const struct dfcl_linear_fwd *p) {
    return bf16_rows_size(p->M, p->K);
}
dfcl_status dfcl_linear_fwd_dot(struct dfcl_device *dev, const struct dfcl_linear_fwd *p, dfcl_error *err) {
    struct dfcl_linear_fwd q = *p;
    q.x = p->head.scratch;
    dfcl_status s = bf16_rows(dev, p->x, q.x, p->M, p->K, err);
    return s ? s : fwd(dev, &q, true, err);
}

/* ---- gradient of the input ---- */

static dfcl_status dx(struct dfcl_device *dev, const struct dfcl_linear_dx *p, bool dot, dfcl_error *err) {
    /* Few rows do not pay for bringing blocks into another form. Copying rows is cheaper than transposing panels, where
     * both are there. */
    bool few = !dot && p->w.packed.mem && p->M <= FEW_DX, panels = few || !p->w.data.mem;
    struct dfcl_weight_form w = panels ? dfcl_weight_panels(&p->w) : dfcl_weight_rows(&p->w);
    int strips = (int)dfcl_ceil_div(p->w.K, DFCL_PANEL), rb = few ? FEW_DX : row_block(dev, p->M, strips, 64);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->dy, 4);
    dfcl_args_ref(&a, w.ref, w.size);
    dfcl_args_ref(&a, p->pre, 4);
    dfcl_args_ref(&a, p->dx, 4);
    dfcl_args_i32(&a, p->M);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    dfcl_args_i32(&a, (int)p->act);
    dfcl_args_i32(&a, p->accumulate);
    dfcl_args_i32(&a, rb);
    if (few) {
        enum { COLUMNS = 24 }; /* of an item: whole tiles for every vector width */
        dfcl_args_i32(&a, COLUMNS);
        return launch(dev, "linear_dx_few_cpu", DX_FEW, w, dfcl_ceil_div(p->w.K, COLUMNS), 1, 1, &a, err);
    }
    return launch_with(dev, "linear_dx_cpu", panels ? DX_PANELS : DX_ROWS, w.wtype, dot_options(dev, dot), strips,
                       dfcl_ceil_div(p->M, rb), 1, &a, err);
}
dfcl_status dfcl_linear_dx_cpu(struct dfcl_device *dev, const struct dfcl_linear_dx *p, dfcl_error *err) {
    return dx(dev, p, false, err);
}
uint64_t dfcl_linear_dx_dot_scratch(const struct dfcl_linear_dx *p) {
    return bf16_rows_size(p->M, p->w.N);
}
dfcl_status dfcl_linear_dx_dot(struct dfcl_device *dev, const struct dfcl_linear_dx *p, dfcl_error *err) {
    struct dfcl_linear_dx q = *p;
    q.dy = p->head.scratch;
    dfcl_status s = bf16_rows(dev, p->dy, q.dy, p->M, p->w.N, err);
    return s ? s : dx(dev, &q, true, err);
}

/* ---- gradient of the matrix ---- */

/* How the sum over M is cut: rows of dw per item, steps of the sum per slice, slices. */
struct cut {
    int rb, ts, slices;
};
static struct cut cut_dw(const struct dfcl_device *dev, const struct dfcl_linear_dw *p) {
    int blocks = (int)dfcl_ceil_div(p->N, RB_MAX);
    struct cut c = {.rb = (int)dfcl_ceil_div(dfcl_ceil_div(p->N, blocks), TILE_ROWS) * TILE_ROWS}; /* even blocks */
    c.slices = dfcl_slices(dev, dfcl_ceil_div(p->K, DFCL_PANEL) * blocks, p->M, 256);
    c.ts = (int)dfcl_ceil_div(p->M, c.slices);
    return c;
}

uint64_t dfcl_linear_dw_cpu_scratch(const struct dfcl_device *dev, const struct dfcl_linear_dw *p) {
    struct cut c = cut_dw(dev, p);
    return c.slices == 1 ? 0 : (uint64_t)c.slices * (uint64_t)p->N * (uint64_t)p->K * 4;
}

dfcl_status dfcl_linear_dw_cpu(struct dfcl_device *dev, const struct dfcl_linear_dw *p, dfcl_error *err) {
    struct cut c = cut_dw(dev, p);
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
    dfcl_status s = launch(dev, "linear_dw_cpu", DW, (struct dfcl_weight_form){0}, dfcl_ceil_div(p->K, DFCL_PANEL),
                           dfcl_ceil_div(p->N, c.rb), c.slices, &a, err);
    if (s || c.slices == 1)
        return s;
    return dfcl_slice_sum(dev, p->head.scratch, p->dw, (int64_t)p->N * p->K, c.slices, err);
}

dfcl_status dfcl_pack_cpu(struct dfcl_device *dev, const struct dfcl_pack *p, dfcl_error *err) {
    enum { STEPS = 288 };
    struct dfcl_weight_form w = dfcl_weight_rows(&p->w);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, w.ref, w.size);
    dfcl_args_ref(&a, p->w.packed, w.size);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    dfcl_args_i32(&a, STEPS);
    w.wtype = w.wtype != 0; /* values of 16 bits are moved as they are */
    return launch(dev, "pack_cpu", PACK, w, dfcl_ceil_div(p->w.N, DFCL_PANEL), dfcl_ceil_div(p->w.K, STEPS), 1, &a,
                  err);
}
