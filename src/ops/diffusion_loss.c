/* Forward noising and the hybrid loss of improved DDPM with its gradient. */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status sizes_check(int B, int n, dfcl_error *err) {
    return B < 0 || n < 1 ? dfcl_fail(err, DFCL_ERROR, "B %d, n %d: expected positive sizes", B, n) : DFCL_OK;
}

/* ---- references ---- */

static dfcl_status q_sample_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_q_sample *p = params;
    dfcl_status s = sizes_check(p->B, p->n, err);
    if (s)
        return s;
    const float *x0 = dfcl_host_ptr(dev, p->x0), *noise = dfcl_host_ptr(dev, p->noise), *tab = dfcl_host_ptr(dev, p->tab);
    const int32_t *t = dfcl_host_ptr(dev, p->t);
    float *xt = dfcl_host_ptr(dev, p->xt);
    for (int b = 0; b < p->B; b++) {
        const float *row = tab + (ptrdiff_t)t[b] * DFCL_TAB_COUNT;
        double a = (double)row[DFCL_TAB_SQRT_AB], c = (double)row[DFCL_TAB_SQRT_1MAB];
        for (int i = 0; i < p->n; i++) {
            size_t k = (size_t)b * (size_t)p->n + (size_t)i;
            xt[k] = (float)(a * (double)x0[k] + c * (double)noise[k]);
        }
    }
    return DFCL_OK;
}

/* u(z) of the tanh approximation of the normal distribution function: cdf(z) = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)). */
static double cdf_u(double z) {
    return 0.79788456080286536 * (z + 0.044715 * z * z * z);
}
static double cdf_du(double z) {
    return 0.79788456080286536 * (1.0 + 0.134145 * z * z);
}

/* Discretised Gaussian log likelihood of one value in bins of half-width 1/255, and its derivative by the log variance. In double the
 * difference of the two distribution functions is exact enough as it stands. */
static double bin_loglik(double x0, double mu, double logvar, double *grad) {
    const double h = 1.0 / 255.0, floor_p = 1e-12;
    double s = exp(-0.5 * logvar), za = s * (x0 - mu + h), zb = s * (x0 - mu - h);
    double ua = cdf_u(za), ub = cdf_u(zb);
    double A = 1.0 / (1.0 + exp(-2.0 * ua)), B = 1.0 / (1.0 + exp(-2.0 * ub)); /* cdf(za), cdf(zb) */
    double a_tail = 1.0 / (1.0 + exp(2.0 * ua)), b_tail = 1.0 / (1.0 + exp(2.0 * ub)); /* 1 - A, 1 - B without cancellation */
    /* d cdf / d logvar = cdf' u'(z) dz/dlogvar with cdf' = 2 cdf (1 - cdf) and dz/dlogvar = -z/2 */
    double dA = -A * a_tail * cdf_du(za) * za, dB = -B * b_tail * cdf_du(zb) * zb;
    double prob, d;
    if (x0 < (double)-0.999f) { /* compared in f32, as the reference does */
        prob = A;
        d = dA;
    } else if (x0 > (double)0.999f) {
        prob = b_tail;
        d = -dB;
    } else {
        prob = ub > 0.0 ? b_tail - a_tail : A - B;
        d = dA - dB;
    }
    if (prob <= floor_p) {
        *grad = 0.0; /* the clamp passes no gradient */
        return log(floor_p);
    }
    *grad = d / prob;
    return log(prob);
}

static dfcl_status loss_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_hybrid_loss *p = params;
    dfcl_status s = sizes_check(p->B, p->n, err);
    if (s)
        return s;
    const float *x0 = dfcl_host_ptr(dev, p->x0), *noise = dfcl_host_ptr(dev, p->noise), *xt = dfcl_host_ptr(dev, p->xt);
    const float *out = dfcl_host_ptr(dev, p->out), *tab = dfcl_host_ptr(dev, p->tab);
    const int32_t *t = dfcl_host_ptr(dev, p->t);
    float *mse = dfcl_host_ptr(dev, p->mse), *vb = dfcl_host_ptr(dev, p->vb), *dout = dfcl_host_ptr(dev, p->dout);
    size_t n = (size_t)p->n;
    double scale = (double)p->grad_scale / (double)n, bits = 1.4426950408889634; /* 1 / ln 2 */
    for (size_t b = 0; b < (size_t)p->B; b++) {
        const float *row = tab + (ptrdiff_t)t[b] * DFCL_TAB_COUNT;
        double ra = (double)row[DFCL_TAB_SQRT_RAB], rb = (double)row[DFCL_TAB_SQRT_RABM1], c1 = (double)row[DFCL_TAB_C1],
               c2 = (double)row[DFCL_TAB_C2], lpv = (double)row[DFCL_TAB_LPV], lb = (double)row[DFCL_TAB_LOG_BETA];
        double sum_mse = 0, sum_vb = 0;
        for (size_t i = 0; i < n; i++) {
            double x = (double)x0[b * n + i], x_t = (double)xt[b * n + i];
            double eps = (double)out[2 * b * n + i], v = (double)out[2 * b * n + n + i], d = eps - (double)noise[b * n + i];
            double mu = c1 * (ra * x_t - rb * eps) + c2 * x_t, mu_true = c1 * x + c2 * x_t;
            double logvar = lpv + 0.5 * (v + 1.0) * (lb - lpv), grad;
            if (t[b] == 0) {
                sum_vb -= bin_loglik(x, mu, logvar, &grad);
                grad = -grad;
            } else {
                double q = (mu_true - mu) * (mu_true - mu) * exp(-logvar);
                sum_vb += 0.5 * (-1.0 + logvar - lpv + exp(lpv - logvar) + q);
                grad = 0.5 * (1.0 - exp(lpv - logvar) - q);
            }
            sum_mse += d * d;
            if (dout) {
                dout[2 * b * n + i] = (float)(2.0 * d * scale);
                dout[2 * b * n + n + i] = (float)(0.5 * (lb - lpv) * grad * bits * scale);
            }
        }
        mse[b] = (float)(sum_mse / (double)n);
        vb[b] = (float)(sum_vb * bits / (double)n);
    }
    return DFCL_OK;
}

/* ---- kernels (cl/diffusion_loss.cl) ---- */

static dfcl_status q_sample_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_q_sample *p = params;
    dfcl_status s = sizes_check(p->B, p->n, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x0, 4);
    dfcl_args_ref(&a, p->noise, 4);
    dfcl_args_ref(&a, p->t, 4);
    dfcl_args_ref(&a, p->tab, 4);
    dfcl_args_ref(&a, p->xt, 4);
    dfcl_args_i32(&a, p->n);
    return dfcl_launch_kernel(dev, "diffusion_loss", "q_sample", NULL, dfcl_ceil_div(p->n, 64), p->B, 1, &a, err);
}

#define LOSS_CHUNK 1024 /* values per group, as in the kernel */

static uint64_t loss_scratch(const struct dfcl_device *dev, const void *params) {
    const struct dfcl_hybrid_loss *p = params;
    (void)dev;
    return (uint64_t)p->B * (uint64_t)dfcl_ceil_div(p->n, LOSS_CHUNK) * 2 * sizeof(float);
}

static dfcl_status loss_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_hybrid_loss *p = params;
    dfcl_status s = sizes_check(p->B, p->n, err);
    if (s)
        return s;
    int chunks = (int)dfcl_ceil_div(p->n, LOSS_CHUNK);
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x0, 4);
    dfcl_args_ref(&a, p->noise, 4);
    dfcl_args_ref(&a, p->xt, 4);
    dfcl_args_ref(&a, p->out, 4);
    dfcl_args_ref(&a, p->t, 4);
    dfcl_args_ref(&a, p->tab, 4);
    dfcl_args_ref(&a, p->head.scratch, 4);
    dfcl_args_ref(&a, p->dout, 4);
    dfcl_args_i32(&a, p->n);
    dfcl_args_i32(&a, chunks);
    dfcl_args_f32(&a, (float)((double)p->grad_scale / p->n));
    dfcl_args_i32(&a, p->dout.mem != NULL);
    s = dfcl_launch_kernel(dev, "diffusion_loss", "hybrid_loss_parts", NULL, chunks, p->B, 1, &a, err);
    if (s)
        return s;
    struct dfcl_args t = {0};
    dfcl_args_ref(&t, p->head.scratch, 4);
    dfcl_args_ref(&t, p->mse, 4);
    dfcl_args_ref(&t, p->vb, 4);
    dfcl_args_i32(&t, p->B);
    dfcl_args_i32(&t, chunks);
    dfcl_args_f32(&t, (float)(1.0 / p->n));
    return dfcl_launch_kernel(dev, "diffusion_loss", "hybrid_loss_total", NULL, dfcl_ceil_div(p->B, 64), 1, 1, &t, err);
}

/* ---- cases ---- */

/* Rows of the 1000-step linear schedule (docs/methods.md), as src/diffusion makes them; only what the cases need. */
static float *linear_table(struct dfcl_case *c, int steps) {
    float *tab = dfcl_case_data(c, (size_t)steps * DFCL_TAB_COUNT * sizeof *tab);
    double ab = 1, first_lpv = 0;
    for (int i = 0; tab && i < steps; i++) {
        double beta = 1e-4 + i * (0.02 - 1e-4) / 999, prev = ab;
        ab *= 1 - beta;
        double lpv = log(beta * (1 - prev) / (1 - ab));
        if (i == 1)
            first_lpv = lpv;
        float *r = tab + (size_t)i * DFCL_TAB_COUNT;
        r[DFCL_TAB_SQRT_AB] = (float)sqrt(ab);
        r[DFCL_TAB_SQRT_1MAB] = (float)sqrt(1 - ab);
        r[DFCL_TAB_SQRT_RAB] = (float)sqrt(1 / ab);
        r[DFCL_TAB_SQRT_RABM1] = (float)sqrt(1 / ab - 1);
        r[DFCL_TAB_C1] = (float)(beta * sqrt(prev) / (1 - ab));
        r[DFCL_TAB_C2] = (float)((1 - prev) * sqrt(1 - beta) / (1 - ab));
        r[DFCL_TAB_LPV] = (float)lpv;
        r[DFCL_TAB_LOG_BETA] = (float)log(beta);
    }
    if (tab)
        tab[DFCL_TAB_LPV] = (float)first_lpv;
    return tab;
}

static const int all_t[] = {0, 999, 1, 421, 0, 2, 998, 50};

static int32_t *case_t(struct dfcl_case *c, int B) {
    int32_t *t = dfcl_case_data(c, (size_t)B * sizeof *t);
    for (int b = 0; t && b < B; b++)
        t[b] = all_t[b % (int)DFCL_COUNT(all_t)];
    return t;
}

static void add_data(struct dfcl_case *c, const char *name, const void *ref, enum dfcl_dtype dtype, uint64_t count, const void *data) {
    struct dfcl_case_tensor *t = dfcl_case_add(c, name, ref, dtype, count, DFCL_IN);
    t->fill = DFCL_FILL_DATA;
    t->data = data;
}

static const struct {
    int B, n;
} q_sizes[] = {{1, 1}, {3, 7}, {8, 256}, {5, 1023}, {32, 4096}};

static void q_sample_case(struct dfcl_case *c, int index) {
    struct dfcl_q_sample *p = (void *)c->params;
    p->B = q_sizes[index].B;
    p->n = q_sizes[index].n;
    snprintf(c->label, sizeof c->label, "B=%d n=%d", p->B, p->n);
    uint64_t count = (uint64_t)p->B * (uint64_t)p->n;
    const float *tab = linear_table(c, 1000);
    const int32_t *t = case_t(c, p->B);
    dfcl_case_add(c, "x0", &p->x0, DFCL_F32, count, DFCL_IN);
    dfcl_case_add(c, "noise", &p->noise, DFCL_F32, count, DFCL_IN);
    add_data(c, "t", &p->t, DFCL_I32, (uint64_t)p->B, t);
    add_data(c, "tab", &p->tab, DFCL_F32, 1000 * DFCL_TAB_COUNT, tab);
    dfcl_case_add(c, "xt", &p->xt, DFCL_F32, count, DFCL_OUT)->tol = 3e-7;
}

/* What varies: sizes, one branch or both, the spread of v (a network far from trained), how far the prediction lies from the truth (the clamp
 * of the likelihood), and dout. */
static const struct loss_shape {
    int B, n;
    double v_spread, off, x0_spread;
    bool dout;
} loss_shapes[] = {
    {1, 1, 1.0, 0.1, 1.0, true},   {3, 7, 1.0, 0.1, 1.0, true},      {8, 256, 1.0, 0.1, 1.0, true},
    {5, 1023, 1.0, 0.1, 1.0, false}, {8, 333, 20.0, 0.1, 1.0, true}, {8, 777, 1.0, 3.0, 1.0, true},
    {8, 1025, 0.5, 0.02, 0.2, true}, {16, 4096, 1.0, 1.0, 4.0, true}, {32, 4096, 1.0, 0.1, 1.0, true},
};

static void loss_case(struct dfcl_case *c, int index) {
    struct dfcl_hybrid_loss *p = (void *)c->params;
    const struct loss_shape *z = &loss_shapes[index];
    p->B = z->B;
    p->n = z->n;
    p->grad_scale = 1.0f / (float)z->B;
    snprintf(c->label, sizeof c->label, "B=%d n=%d v~%g off~%g%s", z->B, z->n, z->v_spread, z->off, z->dout ? " dout" : "");
    size_t B = (size_t)p->B, n = (size_t)p->n, count = B * n;
    const float *tab = linear_table(c, 1000);
    const int32_t *t = case_t(c, p->B);
    float *x0 = dfcl_case_data(c, count * sizeof *x0), *noise = dfcl_case_data(c, count * sizeof *noise);
    float *xt = dfcl_case_data(c, count * sizeof *xt), *out = dfcl_case_data(c, 2 * count * sizeof *out);
    if (!tab || !t || !x0 || !noise || !xt || !out)
        return;
    /* x_t must belong to x0 and the noise, as in training: anything else makes the bound astronomically large at small t. */
    uint32_t state = (uint32_t)c->seed * 2654435761u + (uint32_t)index;
    for (size_t b = 0; b < B; b++)
        for (size_t i = 0; i < n; i++) {
            double r[4];
            for (int k = 0; k < 4; k++) { /* sums of uniforms: near normal, variance 1 */
                r[k] = 0;
                for (int j = 0; j < 12; j++) {
                    state = state * 1664525u + 1013904223u;
                    r[k] += (double)(state >> 8) / 16777216.0;
                }
                r[k] -= 6;
            }
            size_t k = b * n + i;
            x0[k] = (float)(r[0] * z->x0_spread);
            noise[k] = (float)r[1];
            const float *row = tab + (size_t)t[b] * DFCL_TAB_COUNT;
            xt[k] = row[DFCL_TAB_SQRT_AB] * x0[k] + row[DFCL_TAB_SQRT_1MAB] * noise[k];
            out[2 * b * n + i] = (float)(r[1] + z->off * r[2]);
            out[2 * b * n + n + i] = (float)(r[3] * z->v_spread);
        }
    add_data(c, "x0", &p->x0, DFCL_F32, count, x0);
    add_data(c, "noise", &p->noise, DFCL_F32, count, noise);
    add_data(c, "xt", &p->xt, DFCL_F32, count, xt);
    add_data(c, "out", &p->out, DFCL_F32, 2 * count, out);
    add_data(c, "t", &p->t, DFCL_I32, B, t);
    add_data(c, "tab", &p->tab, DFCL_F32, 1000 * DFCL_TAB_COUNT, tab);
    dfcl_case_add(c, "mse", &p->mse, DFCL_F32, B, DFCL_OUT)->tol = 1e-6;
    dfcl_case_add(c, "vb", &p->vb, DFCL_F32, B, DFCL_OUT)->tol = 1e-5;
    /* f32 cannot hold x0 - mu to better than an ulp of x0, and t = 0 magnifies it by exp(-logvar/2), about 130 for v in [-1, 1] */
    if (z->dout)
        dfcl_case_add(c, "dout", &p->dout, DFCL_F32, 2 * count, DFCL_OUT)->tol = 1e-4;
}

/* ---- rows ---- */

static double q_flops(const void *params) {
    const struct dfcl_q_sample *p = params;
    return 3.0 * p->B * p->n;
}
static double q_bytes(const void *params) {
    const struct dfcl_q_sample *p = params;
    return 12.0 * p->B * p->n;
}
static double loss_flops(const void *params) {
    const struct dfcl_hybrid_loss *p = params;
    return 60.0 * p->B * p->n;
}
static double loss_bytes(const void *params) {
    const struct dfcl_hybrid_loss *p = params;
    return (p->dout.mem ? 28.0 : 20.0) * p->B * p->n;
}

static const struct dfcl_variant q_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = q_sample_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = q_sample_host},
};
const struct dfcl_op dfcl_op_q_sample = {
    .name = "q_sample",
    .params_size = sizeof(struct dfcl_q_sample),
    .variants = q_variants,
    .variant_count = DFCL_COUNT(q_variants),
    .check_cases = DFCL_COUNT(q_sizes) - 1,
    .bench_cases = 1,
    .make_case = q_sample_case,
    .flops = q_flops,
    .bytes = q_bytes,
};

static const struct dfcl_variant loss_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .scratch = loss_scratch, .launch = loss_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = loss_host},
};
const struct dfcl_op dfcl_op_hybrid_loss = {
    .name = "hybrid_loss",
    .params_size = sizeof(struct dfcl_hybrid_loss),
    .variants = loss_variants,
    .variant_count = DFCL_COUNT(loss_variants),
    .check_cases = DFCL_COUNT(loss_shapes) - 1,
    .bench_cases = 1,
    .make_case = loss_case,
    .flops = loss_flops,
    .bytes = loss_bytes,
};
