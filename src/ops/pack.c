/* Packing of a frozen matrix into the panels that the CPU variants read. */
#include <stdio.h>

#include "ops/linear_cpu.h"
#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_pack *p = params;
    dfcl_status s = dfcl_linear_check("pack", 1, &p->w, p->w.data, err);
    if (!s && !p->w.packed.mem)
        s = dfcl_fail(err, DFCL_ERROR, "pack: no place for the panels of [%d,%d]", p->w.N, p->w.K);
    return s;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_pack_host(dev, params, err);
}
static dfcl_status cpu_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_pack_cpu(dev, params, err);
}

static dfcl_status portable_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_pack *p = params;
    dfcl_status s = check(params, err);
    if (s)
        return s;
    struct dfcl_weight_form w = dfcl_weight_rows(&p->w);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, w.ref, w.size);
    dfcl_args_ref(&a, p->w.packed, w.size);
    dfcl_args_i32(&a, p->w.N);
    dfcl_args_i32(&a, p->w.K);
    char options[32];
    snprintf(options, sizeof options, "-DSIZE=%d", (int)w.size);
    return dfcl_launch_kernel(dev, "pack", "pack", options, (int64_t)((dfcl_panel_count(p->w.N, p->w.K) + 255) / 256),
                              1, 1, &a, err);
}

static const struct {
    int N, K;
    enum dfcl_dtype dtype;
} cases[] = {
    {1, 1, DFCL_F32},        {48, 16, DFCL_F32},  {50, 33, DFCL_F32}, {95, 130, DFCL_F32},
    {200, 7, DFCL_F32},      {50, 33, DFCL_BF16}, {97, 40, DFCL_F16}, /* benchmarks: */ {3456, 1152, DFCL_F32},
    {1152, 4608, DFCL_BF16},
};
enum { BENCHES = 2 };

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_pack *p = (struct dfcl_pack *)c->params;
    p->w.N = cases[index].N;
    p->w.K = cases[index].K;
    p->w.dtype = cases[index].dtype;
    p->w.layout = DFCL_PANEL48;
    snprintf(c->label, sizeof c->label, "N=%d K=%d %s", p->w.N, p->w.K, dfcl_dtype_name(p->w.dtype));
    dfcl_case_add_weight(c, &p->w, 1.0, true, false);
    dfcl_case_add(c, "packed", &p->w.packed, p->w.dtype, dfcl_panel_count(p->w.N, p->w.K), DFCL_OUT)->tol = 0;
}

static double flops(const void *params) {
    return 0;
}
static double bytes(const void *params) {
    const struct dfcl_pack *p = params;
    return 2.0 * (double)dfcl_dtype_size(p->w.dtype) * p->w.N * p->w.K;
}

static const struct dfcl_variant variants[] = {
    {.name = "cpu", .supports = dfcl_supports_cpu, .launch = cpu_launch},
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = portable_launch},
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_pack = {
    .name = "pack",
    .params_size = sizeof(struct dfcl_pack),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(cases) - BENCHES,
    .bench_cases = BENCHES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
