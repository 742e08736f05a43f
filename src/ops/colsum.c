/* Sum over rows: the gradient of a bias. */
#include <stdio.h>

#include "ops/linear_ref.h"

static dfcl_status check(const void *params, dfcl_error *err) {
    const struct dfcl_colsum *p = params;
    if (p->M < 1 || p->N < 1)
        return dfcl_fail(err, DFCL_ERROR, "colsum: M=%d N=%d, expected positive sizes", p->M, p->N);
    if (!p->x.mem || !p->out.mem)
        return dfcl_fail(err, DFCL_ERROR, "colsum: x and out must be present");
    return DFCL_OK;
}

static dfcl_status host_launch(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    dfcl_status s = check(params, err);
    return s ? s : dfcl_colsum_host(dev, params, err);
}

static const struct {
    int M, N;
    double scale;
} cases[] = {
    {1, 1, 1}, {1, 130, 1}, {7, 1, 1}, {33, 65, 1}, {64, 64, 1}, {260, 49, 1}, {1000, 17, 3e4}, {4111, 3, 1}, {513, 300, 1},
    /* benchmarks: */ {256, 3456, 1}, {1024, 1152, 1}, {8192, 512, 1},
};
enum { BENCHES = 3 };

static void make_case(struct dfcl_case *c, int index) {
    struct dfcl_colsum *p = (struct dfcl_colsum *)c->params;
    p->M = cases[index].M;
    p->N = cases[index].N;
    snprintf(c->label, sizeof c->label, "M=%d N=%d", p->M, p->N);
    dfcl_case_add(c, "x", &p->x, DFCL_F32, (uint64_t)p->M * (uint64_t)p->N, DFCL_IN)->b = cases[index].scale;
    dfcl_case_add(c, "out", &p->out, DFCL_F32, (uint64_t)p->N, DFCL_INOUT);
}

static double flops(const void *params) {
    const struct dfcl_colsum *p = params;
    return (double)p->M * p->N;
}
static double bytes(const void *params) {
    const struct dfcl_colsum *p = params;
    return 4.0 * (double)p->M * p->N + 8.0 * p->N;
}

static const struct dfcl_variant variants[] = {
    {.name = "host", .supports = dfcl_supports_host, .launch = host_launch},
};

const struct dfcl_op dfcl_op_colsum = {
    .name = "colsum",
    .params_size = sizeof(struct dfcl_colsum),
    .variants = variants,
    .variant_count = DFCL_COUNT(variants),
    .check_cases = DFCL_COUNT(cases) - BENCHES,
    .bench_cases = BENCHES,
    .make_case = make_case,
    .flops = flops,
    .bytes = bytes,
};
