/* Host references of the linear layer: double accumulation in four interleaved sums, so that a compiler may use vectors
 * without changing the order. */
#include "ops/linear_ref.h"

#include <math.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/philox.h"

double dfcl_act_ref(enum dfcl_act act, double x) {
    switch (act) {
    case DFCL_ACT_GELU_TANH: return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case DFCL_ACT_SILU: return x / (1.0 + exp(-x));
    default: return x;
    }
}

double dfcl_act_grad_ref(enum dfcl_act act, double x) {
    switch (act) {
    case DFCL_ACT_GELU_TANH: {
        double t = tanh(0.79788456080286536 * (x + 0.044715 * x * x * x));
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.79788456080286536 * (1.0 + 0.134145 * x * x);
    }
    case DFCL_ACT_SILU: {
        double s = 1.0 / (1.0 + exp(-x));
        return s * (1.0 + x * (1.0 - s));
    }
    default: return 1.0;
    }
}

dfcl_status dfcl_linear_check(const char *op, int M, const struct dfcl_weight *w, struct dfcl_ref in, dfcl_error *err) {
    if (M < 1 || w->N < 1 || w->K < 1)
        return dfcl_fail(err, DFCL_ERROR, "%s: M=%d N=%d K=%d, expected positive sizes", op, M, w->N, w->K);
    if (!in.mem)
        return dfcl_fail(err, DFCL_ERROR, "%s: no input", op);
    if (!w->data.mem && !w->packed.mem)
        return dfcl_fail(err, DFCL_ERROR, "%s: the weight [%d,%d] has neither rows nor panels", op, w->N, w->K);
    if (w->packed.mem && w->layout != DFCL_PANEL48)
        return dfcl_fail(err, DFCL_ERROR, "%s: packed weight of layout %d, expected %d", op, (int)w->layout,
                         DFCL_PANEL48);
    if (w->dtype != DFCL_F32 && w->dtype != DFCL_F16 && w->dtype != DFCL_BF16)
        return dfcl_fail(err, DFCL_ERROR, "%s: weight of type %s, expected F32, F16 or BF16", op,
                         dfcl_dtype_name(w->dtype));
    return DFCL_OK;
}

dfcl_status dfcl_weight_host(struct dfcl_device *dev, const struct dfcl_weight *w, const float **out, float **owned,
                             dfcl_error *err) {
    *owned = NULL;
    if (w->data.mem && w->dtype == DFCL_F32) {
        *out = dfcl_host_ptr(dev, w->data);
        return DFCL_OK;
    }
    size_t n = (size_t)w->N * (size_t)w->K;
    float *f = dfcl_calloc(dev->ctx, n, sizeof *f, err);
    if (!f)
        return DFCL_NOMEM;
    const void *p = dfcl_host_ptr(dev, w->data.mem ? w->data : w->packed);
    for (size_t i = 0; i < n; i++) {
        size_t r = i / (size_t)w->K, k = i % (size_t)w->K;
        size_t at = w->data.mem ? i : (r / DFCL_PANEL * (size_t)w->K + k) * DFCL_PANEL + r % DFCL_PANEL;
        f[i] = w->dtype == DFCL_F32   ? ((const float *)p)[at]
               : w->dtype == DFCL_F16 ? dfcl_f16_to_f32(((const uint16_t *)p)[at])
                                      : dfcl_bf16_to_f32(((const uint16_t *)p)[at]);
    }
    *out = *owned = f;
    return DFCL_OK;
}

/* ---- references ---- */

static double dot(const float *a, const float *b, int n) {
    double s[4] = {0, 0, 0, 0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++)
            s[j] += (double)a[i + j] * b[i + j];
    for (; i < n; i++)
        s[0] += (double)a[i] * b[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

dfcl_status dfcl_linear_fwd_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_fwd *p = params;
    const float *w;
    float *owned;
    dfcl_status s = dfcl_weight_host(dev, &p->w, &w, &owned, err);
    if (s)
        return s;
    const int N = p->w.N, K = p->K;
    const float *x = dfcl_host_ptr(dev, p->x), *bias = dfcl_host_ptr(dev, p->bias.ref),
                *gamma = dfcl_host_ptr(dev, p->gamma.ref);
    const float *gamma_res = dfcl_host_ptr(dev, p->gamma_res.ref), *res = dfcl_host_ptr(dev, p->res),
                *gate = dfcl_host_ptr(dev, p->gate);
    const int32_t *dom = dfcl_host_ptr(dev, p->dom);
    float *pre = dfcl_host_ptr(dev, p->pre), *y = dfcl_host_ptr(dev, p->y), *out = dfcl_host_ptr(dev, p->out);
    for (int n = 0; n < N; n++)
        for (int m = 0; m < p->M; m++) {
            int sample = m / p->T;
            int64_t d = dom ? dom[sample] : 0, at = (int64_t)m * N + n;
            double u = dot(x + (int64_t)m * K, w + (int64_t)n * K, K);
            if (bias)
                u += bias[d * p->bias.stride + n];
            u = (float)u; /* what is made again from `pre` has the same bits */
            if (pre)
                pre[at] = (float)u;
            double v = dfcl_act_ref(p->act, u);
            if (gamma)
                v *= gamma[d * p->gamma.stride + n];
            if (y)
                y[at] = (float)v;
            if (!out)
                continue;
            if (gamma_res)
                v *= gamma_res[d * p->gamma_res.stride + n];
            if (gate)
                v *= gate[sample * p->gate_stride + n];
            if (res)
                v += res[(int64_t)(p->res_rows ? m % p->res_rows : m) * N + n];
            out[at] = (float)v;
        }
    dfcl_free(dev->ctx, owned);
    return DFCL_OK;
}

dfcl_status dfcl_linear_dx_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_dx *p = params;
    const int N = p->w.N, K = p->w.K;
    const float *w;
    float *owned;
    dfcl_status s = dfcl_weight_host(dev, &p->w, &w, &owned, err);
    if (s)
        return s;
    double *sum = dfcl_calloc(dev->ctx, (size_t)K, sizeof *sum, err);
    if (!sum) {
        s = DFCL_NOMEM;
        goto out;
    }
    const float *dy = dfcl_host_ptr(dev, p->dy), *pre = dfcl_host_ptr(dev, p->pre);
    float *dx = dfcl_host_ptr(dev, p->dx);
    for (int64_t m = 0; m < p->M; m++) {
        memset(sum, 0, (size_t)K * sizeof *sum);
        for (int n = 0; n < N; n++) {
            double d = dy[m * N + n];
            for (int k = 0; k < K; k++)
                sum[k] += d * w[(int64_t)n * K + k];
        }
        for (int k = 0; k < K; k++) {
            double v = p->act == DFCL_ACT_NONE ? sum[k] : sum[k] * dfcl_act_grad_ref(p->act, pre[m * K + k]);
            dx[m * K + k] = (float)(p->accumulate ? dx[m * K + k] + v : v);
        }
    }
out:
    dfcl_free(dev->ctx, sum);
    dfcl_free(dev->ctx, owned);
    return s;
}

dfcl_status dfcl_linear_dw_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_linear_dw *p = params;
    const float *dy = dfcl_host_ptr(dev, p->dy), *x = dfcl_host_ptr(dev, p->x);
    float *dw = dfcl_host_ptr(dev, p->dw);
    double *sum = dfcl_calloc(dev->ctx, (size_t)p->K, sizeof *sum, err);
    if (!sum)
        return DFCL_NOMEM;
    for (int64_t n = 0; n < p->N; n++) {
        memset(sum, 0, (size_t)p->K * sizeof *sum);
        for (int64_t m = 0; m < p->M; m++) {
            double d = dy[m * p->N + n];
            for (int k = 0; k < p->K; k++)
                sum[k] += d * x[m * p->K + k];
        }
        for (int k = 0; k < p->K; k++)
            dw[n * p->K + k] = (float)(dw[n * p->K + k] + sum[k]);
    }
    dfcl_free(dev->ctx, sum);
    return DFCL_OK;
}

void dfcl_pack_panels(const void *w, int N, int K, size_t size, void *out) {
    const char *from = w;
    char *to = out;
    for (int n = 0; n < dfcl_ceil_div(N, DFCL_PANEL) * DFCL_PANEL; n++)
        for (int k = 0; k < K; k++) {
            char *at = to + ((size_t)(n / DFCL_PANEL) * K + k) * DFCL_PANEL * size + n % DFCL_PANEL * size;
            if (n < N)
                memcpy(at, from + ((size_t)n * K + k) * size, size);
            else
                memset(at, 0, size);
        }
}

dfcl_status dfcl_pack_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_pack *p = params;
    (void)err;
    dfcl_pack_panels(dfcl_host_ptr(dev, p->w.data), p->w.N, p->w.K, dfcl_dtype_size(p->w.dtype),
                     dfcl_host_ptr(dev, p->w.packed));
    return DFCL_OK;
}

dfcl_status dfcl_colsum_host(struct dfcl_device *dev, const void *params, dfcl_error *err) {
    const struct dfcl_colsum *p = params;
    const float *x = dfcl_host_ptr(dev, p->x);
    float *out = dfcl_host_ptr(dev, p->out);
    for (int n = 0; n < p->N; n++) {
        double sum = 0;
        for (int64_t m = 0; m < p->M; m++)
            sum += x[m * p->N + n];
        out[n] = (float)(out[n] + sum);
    }
    return DFCL_OK;
}

/* ---- cases ---- */

void dfcl_case_add_weight(struct dfcl_case *c, struct dfcl_weight *w, double sd, bool data, bool packed) {
    size_t n = (size_t)w->N * (size_t)w->K;
    float *f = dfcl_case_data(c, n * sizeof *f);
    if (!f)
        return;
    dfcl_normals(c->seed, DFCL_STREAM_TEST, 1, 0, f, n);
    for (size_t i = 0; i < n; i++)
        f[i] *= (float)sd;
    const void *src = f;
    if (w->dtype != DFCL_F32) {
        uint16_t *h = dfcl_case_data(c, n * sizeof *h);
        if (!h)
            return;
        for (size_t i = 0; i < n; i++)
            h[i] = w->dtype == DFCL_F16 ? dfcl_f32_to_f16(f[i]) : dfcl_f32_to_bf16(f[i]);
        src = h;
    }
    if (data) {
        struct dfcl_case_tensor *t = dfcl_case_add(c, "w", &w->data, w->dtype, n, DFCL_IN);
        t->fill = DFCL_FILL_DATA;
        t->data = src;
    }
    if (packed) {
        uint64_t count = dfcl_panel_count(w->N, w->K);
        void *q = dfcl_case_data(c, (size_t)count * dfcl_dtype_size(w->dtype));
        if (!q)
            return;
        dfcl_pack_panels(src, w->N, w->K, dfcl_dtype_size(w->dtype), q);
        w->layout = DFCL_PANEL48;
        struct dfcl_case_tensor *t = dfcl_case_add(c, "packed", &w->packed, w->dtype, count, DFCL_IN);
        t->fill = DFCL_FILL_DATA;
        t->data = q;
    }
}
