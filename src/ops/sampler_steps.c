/* Guidance and the update rules of the samplers. */
#include <math.h>
#include <stdio.h>

#include "ops/case.h"
#include "ops/rows.h"

static dfcl_status guide_check(const struct dfcl_guide *p, dfcl_error *err) {
    if (p->m < 0 || p->C < 1 || p->hw < 1 || p->chans < 0 || p->chans > p->C)
        return dfcl_fail(err, DFCL_ERROR, "m %d, C %d, hw %d, %d guided channels: expected positive sizes, at most C guided", p->m, p->C,
                         p->hw, p->chans);
    return DFCL_OK;
}
static dfcl_status count_check(int64_t n, dfcl_error *err) {
    return n < 0 ? dfcl_fail(err, DFCL_ERROR, "%lld values", (long long)n) : DFCL_OK;
}

/* ---- references ---- */

/* To [-1, 1]; NaN stays NaN, so that the sampler's final check sees it. */
static double clamp1(double z) {
    return z < -1.0 ? -1.0 : z > 1.0 ? 1.0 : z;
}


static dfcl_status guide_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_guide *p = params;
    dfcl_status s = guide_check(p, err);
    if (s)
        return s;
    const float *out = dfcl_host_ptr(dev, p->out), *scale = dfcl_host_ptr(dev, p->scale);
    const int32_t *cond = dfcl_host_ptr(dev, p->cond), *ref = dfcl_host_ptr(dev, p->ref);
    float *eps = dfcl_host_ptr(dev, p->eps), *v = dfcl_host_ptr(dev, p->v);
    size_t half = (size_t)p->C * (size_t)p->hw, guided = (size_t)p->chans * (size_t)p->hw;
    for (size_t i = 0; i < (size_t)p->m; i++) {
        const float *c = out + (size_t)cond[i] * 2 * half, *u = ref && ref[i] >= 0 ? out + (size_t)ref[i] * 2 * half : NULL;
        for (size_t k = 0; k < half; k++) {
            double e = (double)c[k];
            if (u && k < guided)
                e = (double)u[k] + (double)scale[i] * (e - (double)u[k]);
            eps[i * half + k] = (float)e;
            if (v)
                v[i * half + k] = c[half + k];
        }
    }
    return DFCL_OK;
}

static dfcl_status ddpm_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ddpm_step *p = params;
    dfcl_status s = count_check(p->n, err);
    if (s)
        return s;
    const float *x = dfcl_host_ptr(dev, p->x), *eps = dfcl_host_ptr(dev, p->eps), *v = dfcl_host_ptr(dev, p->v);
    const float *noise = dfcl_host_ptr(dev, p->noise);
    float *xn = dfcl_host_ptr(dev, p->xn), *x0 = dfcl_host_ptr(dev, p->x0);
    double tab[DFCL_TAB_COUNT];
    for (int i = 0; i < DFCL_TAB_COUNT; i++)
        tab[i] = (double)p->tab[i];
    for (int64_t i = 0; i < p->n; i++) {
        double xi = (double)x[i], z = tab[DFCL_TAB_SQRT_RAB] * xi - tab[DFCL_TAB_SQRT_RABM1] * (double)eps[i];
        if (p->clip)
            z = clamp1(z);
        double r = tab[DFCL_TAB_C1] * z + tab[DFCL_TAB_C2] * xi;
        if (noise) {
            double logvar = tab[DFCL_TAB_LPV] + 0.5 * ((double)v[i] + 1.0) * (tab[DFCL_TAB_LOG_BETA] - tab[DFCL_TAB_LPV]);
            r += exp(0.5 * logvar) * (double)noise[i];
        }
        if (x0)
            x0[i] = (float)z;
        xn[i] = (float)r;
    }
    return DFCL_OK;
}

static dfcl_status linear_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_step *p = params;
    dfcl_status s = count_check(p->n, err);
    if (s)
        return s;
    const float *x = dfcl_host_ptr(dev, p->x), *eps = dfcl_host_ptr(dev, p->eps), *noise = dfcl_host_ptr(dev, p->noise);
    const float *prev = dfcl_host_ptr(dev, p->x0_prev);
    float *xn = dfcl_host_ptr(dev, p->xn), *x0 = dfcl_host_ptr(dev, p->x0);
    for (int64_t i = 0; i < p->n; i++) {
        double xi = (double)x[i], e = (double)eps[i], z = (double)p->a * xi + (double)p->b * e;
        if (p->clip)
            z = clamp1(z);
        double r = (double)p->kx * xi + (double)p->ke * e + (double)p->k0 * z;
        if (noise)
            r += (double)p->kz * (double)noise[i];
        if (prev)
            r += (double)p->kp * (double)prev[i];
        if (x0)
            x0[i] = (float)z;
        xn[i] = (float)r;
    }
    return DFCL_OK;
}

/* ---- kernels (cl/sampler_steps.cl) ---- */

static dfcl_status guide_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_guide *p = params;
    dfcl_status s = guide_check(p, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->out, 4);
    dfcl_args_ref(&a, p->cond, 4);
    dfcl_args_ref(&a, p->ref, 4);
    dfcl_args_ref(&a, p->scale, 4);
    dfcl_args_ref(&a, p->eps, 4);
    dfcl_args_ref(&a, p->v, 4);
    dfcl_args_i32(&a, p->C * p->hw);
    dfcl_args_i32(&a, p->chans * p->hw);
    dfcl_args_i32(&a, p->ref.mem != NULL);
    dfcl_args_i32(&a, p->v.mem != NULL);
    return dfcl_launch_kernel(dev, "sampler_steps", "guide", NULL, dfcl_ceil_div((int64_t)p->C * p->hw, 64), p->m, 1, &a, err);
}

static dfcl_status ddpm_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_ddpm_step *p = params;
    dfcl_status s = count_check(p->n, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->eps, 4);
    dfcl_args_ref(&a, p->v, 4);
    dfcl_args_ref(&a, p->noise, 4);
    dfcl_args_ref(&a, p->xn, 4);
    dfcl_args_ref(&a, p->x0, 4);
    dfcl_args_i64(&a, p->n);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_SQRT_RAB]);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_SQRT_RABM1]);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_C1]);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_C2]);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_LPV]);
    dfcl_args_f32(&a, p->tab[DFCL_TAB_LOG_BETA]);
    dfcl_args_i32(&a, p->clip);
    dfcl_args_i32(&a, p->noise.mem != NULL);
    dfcl_args_i32(&a, p->x0.mem != NULL);
    return dfcl_launch_kernel(dev, "sampler_steps", "ddpm_step", NULL, dfcl_ceil_div(p->n, 64), 1, 1, &a, err);
}

static dfcl_status linear_portable(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_step *p = params;
    dfcl_status s = count_check(p->n, err);
    if (s)
        return s;
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, p->x, 4);
    dfcl_args_ref(&a, p->eps, 4);
    dfcl_args_ref(&a, p->noise, 4);
    dfcl_args_ref(&a, p->x0_prev, 4);
    dfcl_args_ref(&a, p->xn, 4);
    dfcl_args_ref(&a, p->x0, 4);
    dfcl_args_i64(&a, p->n);
    dfcl_args_f32(&a, p->a);
    dfcl_args_f32(&a, p->b);
    dfcl_args_f32(&a, p->kx);
    dfcl_args_f32(&a, p->ke);
    dfcl_args_f32(&a, p->k0);
    dfcl_args_f32(&a, p->kz);
    dfcl_args_f32(&a, p->kp);
    dfcl_args_i32(&a, p->clip);
    dfcl_args_i32(&a, p->noise.mem != NULL);
    dfcl_args_i32(&a, p->x0_prev.mem != NULL);
    dfcl_args_i32(&a, p->x0.mem != NULL);
    return dfcl_launch_kernel(dev, "sampler_steps", "linear_step", NULL, dfcl_ceil_div(p->n, 64), 1, 1, &a, err);
}

/* ---- cases ---- */

static const struct {
    int m, C, hw, chans;
    bool ref;
} guides[] = {{1, 1, 1, 1, true}, {3, 4, 9, 3, true}, {2, 4, 64, 4, false}, {5, 3, 49, 0, true}, {7, 4, 256, 3, true}, {16, 4, 1024, 3, true}};

static void guide_case(struct dfcl_case *c, int index) {
    struct dfcl_guide *p = (void *)c->params;
    p->m = guides[index].m;
    p->C = guides[index].C;
    p->hw = guides[index].hw;
    p->chans = guides[index].chans;
    snprintf(c->label, sizeof c->label, "m=%d C=%d hw=%d chans=%d%s", p->m, p->C, p->hw, p->chans, guides[index].ref ? " ref" : "");
    size_t m = (size_t)p->m, count = m * (size_t)p->C * (size_t)p->hw;
    int32_t *cond = dfcl_case_data(c, m * sizeof *cond), *ref = dfcl_case_data(c, m * sizeof *ref);
    if (!cond || !ref)
        return;
    for (int i = 0; i < p->m; i++) { /* reversed conditional halves, and images 1, 4 ... without a reference */
        cond[i] = p->m - 1 - i;
        ref[i] = i % 3 == 1 ? -1 : p->m + i;
    }
    dfcl_case_add(c, "out", &p->out, DFCL_F32, 4 * count, DFCL_IN);
    struct dfcl_case_tensor *t = dfcl_case_add(c, "cond", &p->cond, DFCL_I32, m, DFCL_IN);
    t->fill = DFCL_FILL_DATA;
    t->data = cond;
    if (guides[index].ref) {
        t = dfcl_case_add(c, "ref", &p->ref, DFCL_I32, m, DFCL_IN);
        t->fill = DFCL_FILL_DATA;
        t->data = ref;
    }
    t = dfcl_case_add(c, "scale", &p->scale, DFCL_F32, m, DFCL_IN);
    t->fill = DFCL_FILL_UNIFORM;
    t->a = 1;
    t->b = 8;
    dfcl_case_add(c, "eps", &p->eps, DFCL_F32, count, DFCL_OUT)->tol = 5e-7;
    if (index != 3) /* the variance half may be unwanted */
        dfcl_case_add(c, "v", &p->v, DFCL_F32, count, DFCL_OUT)->tol = 0;
}

static const int64_t sizes[] = {1, 7, 1023, 4097, 65536, 131072};
enum { CHECKS = (int)DFCL_COUNT(sizes) - 1 };

static void ddpm_case(struct dfcl_case *c, int index) {
    struct dfcl_ddpm_step *p = (void *)c->params;
    /* rows of respacing "10": the first (i = 0), a middle one, the last */
    static const float rows[3][DFCL_TAB_COUNT] = {
        {0.99995f, 0.01f, 1.00005f, 0.0100005f, 1.0f, 0.0f, -9.2f, -9.21f},
        {0.52f, 0.854166f, 1.923077f, 1.642626f, 0.357f, 0.554f, -1.17f, -0.86f},
        {0.00635f, 0.99998f, 157.48f, 157.4768f, 0.0128f, 0.338f, -0.1226f, -0.1226f},
    };
    p->n = sizes[index];
    memcpy(p->tab, rows[index % 3], sizeof p->tab);
    p->clip = index == 1 || index == 4;
    bool noise = index != 0, x0 = index != 2;
    snprintf(c->label, sizeof c->label, "n=%lld%s%s%s", (long long)p->n, p->clip ? " clip" : "", noise ? " noise" : "", x0 ? " x0" : "");
    uint64_t n = (uint64_t)p->n;
    dfcl_case_add(c, "x", &p->x, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "eps", &p->eps, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "v", &p->v, DFCL_F32, n, DFCL_IN);
    if (noise)
        dfcl_case_add(c, "noise", &p->noise, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "xn", &p->xn, DFCL_F32, n, DFCL_OUT)->tol = 1e-6;
    if (x0)
        dfcl_case_add(c, "x0", &p->x0, DFCL_F32, n, DFCL_OUT)->tol = 1e-6;
}

static void linear_case(struct dfcl_case *c, int index) {
    struct dfcl_linear_step *p = (void *)c->params;
    p->n = sizes[index];
    p->a = 1.9230769f;
    p->b = -1.6426264f;
    p->clip = index == 1 || index == 4;
    p->kx = 0.25f;
    p->ke = 0.75f;
    p->k0 = 0.5f;
    p->kz = 0.125f;
    p->kp = -0.375f;
    bool noise = index & 1, prev = index >= 2, x0 = index != 2;
    snprintf(c->label, sizeof c->label, "n=%lld%s%s%s%s", (long long)p->n, p->clip ? " clip" : "", noise ? " noise" : "", prev ? " prev" : "",
             x0 ? " x0" : "");
    uint64_t n = (uint64_t)p->n;
    dfcl_case_add(c, "x", &p->x, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "eps", &p->eps, DFCL_F32, n, DFCL_IN);
    if (noise)
        dfcl_case_add(c, "noise", &p->noise, DFCL_F32, n, DFCL_IN);
    if (prev)
        dfcl_case_add(c, "x0_prev", &p->x0_prev, DFCL_F32, n, DFCL_IN);
    dfcl_case_add(c, "xn", &p->xn, DFCL_F32, n, DFCL_OUT)->tol = 1e-6;
    if (x0)
        dfcl_case_add(c, "x0", &p->x0, DFCL_F32, n, DFCL_OUT)->tol = 1e-6;
}

/* ---- rows ---- */

static double guide_flops(const void *params) {
    const struct dfcl_guide *p = params;
    return 3.0 * p->m * p->chans * p->hw;
}
static double guide_bytes(const void *params) {
    const struct dfcl_guide *p = params;
    return 20.0 * p->m * p->C * p->hw;
}
static double ddpm_flops(const void *params) {
    return 12.0 * (double)((const struct dfcl_ddpm_step *)params)->n;
}
static double ddpm_bytes(const void *params) {
    const struct dfcl_ddpm_step *p = params;
    return (16.0 + (p->noise.mem ? 4.0 : 0.0) + (p->x0.mem ? 4.0 : 0.0)) * (double)p->n;
}
static double linear_flops(const void *params) {
    return 12.0 * (double)((const struct dfcl_linear_step *)params)->n;
}
static double linear_bytes(const void *params) {
    const struct dfcl_linear_step *p = params;
    return (12.0 + (p->noise.mem ? 4.0 : 0.0) + (p->x0_prev.mem ? 4.0 : 0.0) + (p->x0.mem ? 4.0 : 0.0)) * (double)p->n;
}

static const struct dfcl_variant guide_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = guide_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = guide_host},
};
const struct dfcl_op dfcl_op_guide = {
    .name = "guide",
    .params_size = sizeof(struct dfcl_guide),
    .variants = guide_variants,
    .variant_count = DFCL_COUNT(guide_variants),
    .check_cases = DFCL_COUNT(guides) - 1,
    .bench_cases = 1,
    .make_case = guide_case,
    .flops = guide_flops,
    .bytes = guide_bytes,
};

static const struct dfcl_variant ddpm_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = ddpm_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = ddpm_host},
};
const struct dfcl_op dfcl_op_ddpm_step = {
    .name = "ddpm_step",
    .params_size = sizeof(struct dfcl_ddpm_step),
    .variants = ddpm_variants,
    .variant_count = DFCL_COUNT(ddpm_variants),
    .check_cases = CHECKS,
    .bench_cases = 1,
    .make_case = ddpm_case,
    .flops = ddpm_flops,
    .bytes = ddpm_bytes,
};

static const struct dfcl_variant linear_variants[] = {
    {.name = "portable", .supports = dfcl_supports_kernels, .launch = linear_portable},
    {.name = "host", .supports = dfcl_supports_host, .launch = linear_host},
};
const struct dfcl_op dfcl_op_linear_step = {
    .name = "linear_step",
    .params_size = sizeof(struct dfcl_linear_step),
    .variants = linear_variants,
    .variant_count = DFCL_COUNT(linear_variants),
    .check_cases = CHECKS,
    .bench_cases = 1,
    .make_case = linear_case,
    .flops = linear_flops,
    .bytes = linear_bytes,
};
