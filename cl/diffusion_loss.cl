/* Forward noising, and the hybrid loss with its gradient. Table columns: enum dfcl_tab in src/ops/ops.h. */
#define TAB 8
#define TAB_SQRT_AB 0
#define TAB_SQRT_1MAB 1
#define TAB_SQRT_RAB 2
#define TAB_SQRT_RABM1 3
#define TAB_C1 4
#define TAB_C2 5
#define TAB_LPV 6
#define TAB_LOG_BETA 7

/* xt = sqrt(abar) x0 + sqrt(1 - abar) noise. Groups: x over the n values of a sample, y over samples. */
DFCL_KERNEL(64, 1, 1) q_sample(GLOBAL const float *x0, dfcl_i64 x0_off, GLOBAL const float *noise, dfcl_i64 noise_off, GLOBAL const int *t,
                               dfcl_i64 t_off, GLOBAL const float *tab, dfcl_i64 tab_off, GLOBAL float *xt, dfcl_i64 xt_off, int n) {
    int i = GRP(0) * 64 + LID(0), b = GRP(1);
    if (i >= n)
        return;
    GLOBAL const float *row = tab + tab_off + (dfcl_i64)t[t_off + b] * TAB;
    dfcl_i64 k = (dfcl_i64)b * n + i;
    xt[xt_off + k] = row[TAB_SQRT_AB] * x0[x0_off + k] + row[TAB_SQRT_1MAB] * noise[noise_off + k];
}

/* e + expm1(-e) = e^2/2 - e^3/6 + ..., without cancellation near 0. */
DFCL_FN float loss_kl_shape(float e) {
    if (fabs(e) > 0.5f)
        return e + expm1(-e);
    float p = -1.98412698e-4f;
    p = fma(p, e, 1.38888889e-3f);
    p = fma(p, e, -8.33333333e-3f);
    p = fma(p, e, 4.16666667e-2f);
    p = fma(p, e, -1.66666667e-1f);
    p = fma(p, e, 0.5f);
    return p * e * e;
}

/* Saturates and keeps NaN. */
DFCL_FN float loss_limit(float z) {
    return z < -100.0f ? -100.0f : z > 100.0f ? 100.0f : z;
}

/* Discretised Gaussian log likelihood of x0 in a bin of half-width 1/255 around it, w = x0 - mu, and its derivative by logvar.
 * cdf(z) = (1 + tanh(u)) / 2, u = k (z + c z^3). Differences of distribution functions lose all digits in f32, so with
 * D = u(za) - u(zb) > 0 computed from the width:
 *   cdf(za) - cdf(zb) = sinh(D) / (2 cosh(ua) cosh(ub)),
 *   log of it = log(1 - exp(-2D)) - 2 max(0, ub, -ua) - log1p(exp(-2|ua|)) - log1p(exp(-2|ub|)),
 * and likewise for its derivative, where tanh = +-(1 - 2h), h = 1 / (1 + exp(2|u|)), and coth(D) = 1 + 2q. Past |z| = 100 all is saturated. */
DFCL_FN float2 loss_bin(float x0, float w, float logvar) {
    const float k = 0.7978845608f, c = 0.044715f, h = 0.00392156863f, floor_log = -27.6310211f; /* log(1e-12) */
    float s = exp(-0.5f * logvar);
    float za = loss_limit(s * (w + h)), zb = loss_limit(s * (w - h));
    float ua = k * (za + c * za * za * za), ub = k * (zb + c * zb * zb * zb);
    /* derivatives by logvar: dz = -z/2 */
    float da = -0.5f * za * k * (1.0f + 3.0f * c * za * za), db = -0.5f * zb * k * (1.0f + 3.0f * c * zb * zb);
    float ea = exp(-2.0f * fabs(ua)), eb = exp(-2.0f * fabs(ub));
    float ha = ea / (1.0f + ea), hb = eb / (1.0f + eb);
    float l, d;
    if (x0 < -0.999f) { /* log cdf(za) */
        l = (ua < 0.0f ? 2.0f * ua : 0.0f) - log1p(ea);
        d = 2.0f * da * (ua < 0.0f ? 1.0f - ha : ha);
    } else if (x0 > 0.999f) { /* log(1 - cdf(zb)) */
        l = (ub > 0.0f ? -2.0f * ub : 0.0f) - log1p(eb);
        d = -2.0f * db * (ub > 0.0f ? 1.0f - hb : hb);
    } else {
        float z = loss_limit(s * w), y = loss_limit(s * h);
        float D = 2.0f * k * y * (1.0f + c * (3.0f * z * z + y * y));
        float dD = -k * y * (1.0f + 3.0f * c * (3.0f * z * z + y * y));
        float g = -expm1(-2.0f * D), q = exp(-2.0f * D) / g;
        l = log(g) - log1p(ea) - log1p(eb);
        d = 2.0f * q * dD;
        if (ub > 0.0f) {
            l -= 2.0f * ub;
            d += -2.0f * db + 2.0f * ha * da + 2.0f * hb * db;
        } else if (ua < 0.0f) {
            l += 2.0f * ua;
            d += 2.0f * da - 2.0f * ha * da - 2.0f * hb * db;
        } else {
            d += 2.0f * ha * da - 2.0f * hb * db;
        }
    }
    return l < floor_log ? F2(floor_log, 0.0f) : F2(l, d); /* the clamp passes no gradient */
}

/* Pass 1. A group takes 1024 consecutive values of one sample: x over chunks, y over samples. part[b][chunk] = (sum of mse terms, sum of vb
 * terms); dout = grad_scale * d(mse + vb)/dout, scale = grad_scale / n. The mean's difference is c1 (x0 - x0hat): mu and mu_true share c2 x_t. */
DFCL_KERNEL(128, 1, 1) hybrid_loss_parts(GLOBAL const float *x0, dfcl_i64 x0_off, GLOBAL const float *noise, dfcl_i64 noise_off,
                                         GLOBAL const float *xt, dfcl_i64 xt_off, GLOBAL const float *net, dfcl_i64 net_off,
                                         GLOBAL const int *t, dfcl_i64 t_off, GLOBAL const float *tab, dfcl_i64 tab_off, GLOBAL float *part,
                                         dfcl_i64 part_off, GLOBAL float *dout, dfcl_i64 dout_off, int n, int chunks, float scale,
                                         int has_dout) {
    LOCAL_ARRAY float s[128];
    int lid = LID(0), b = GRP(1), step = t[t_off + b];
    GLOBAL const float *row = tab + tab_off + (dfcl_i64)step * TAB;
    float ra = row[TAB_SQRT_RAB], rb = row[TAB_SQRT_RABM1], c1 = row[TAB_C1], c2 = row[TAB_C2], lpv = row[TAB_LPV];
    float range = row[TAB_LOG_BETA] - lpv, mse = 0.0f, vb = 0.0f;
    x0 += x0_off + (dfcl_i64)b * n;
    noise += noise_off + (dfcl_i64)b * n;
    xt += xt_off + (dfcl_i64)b * n;
    net += net_off + 2 * (dfcl_i64)b * n;
    for (int j = lid; j < 1024; j += 128) {
        int i = GRP(0) * 1024 + j;
        if (i < n) {
            float x = x0[i], x_t = xt[i], eps = net[i], d = eps - noise[i], e = 0.5f * (net[n + i] + 1.0f) * range;
            float guess = ra * x_t - rb * eps, g;
            if (step == 0) {
                float2 l = loss_bin(x, x - (c1 * guess + c2 * x_t), lpv + e);
                vb -= l.x;
                g = -l.y;
            } else {
                float m = c1 * (x - guess), q = m * m * exp(-(lpv + e));
                vb += 0.5f * (loss_kl_shape(e) + q);
                g = 0.5f * (-expm1(-e) - q);
            }
            mse += d * d;
            if (has_dout) {
                GLOBAL float *o = dout + dout_off + 2 * (dfcl_i64)b * n;
                o[i] = 2.0f * d * scale;
                o[n + i] = 0.72134752f * range * g * scale; /* 1 / (2 ln 2) */
            }
        }
    }
    mse = dfcl_wg_sum(mse, s, lid, 128);
    vb = dfcl_wg_sum(vb, s, lid, 128);
    if (lid == 0) {
        part[part_off + 2 * ((dfcl_i64)b * chunks + GRP(0))] = mse;
        part[part_off + 2 * ((dfcl_i64)b * chunks + GRP(0)) + 1] = vb;
    }
}

/* Pass 2: one work-item per sample adds its chunks in order. */
DFCL_KERNEL(64, 1, 1) hybrid_loss_total(GLOBAL const float *part, dfcl_i64 part_off, GLOBAL float *mse, dfcl_i64 mse_off, GLOBAL float *vb,
                                        dfcl_i64 vb_off, int B, int chunks, float inv_n) {
    int b = GRP(0) * 64 + LID(0);
    if (b >= B)
        return;
    float m = 0.0f, v = 0.0f;
    for (int c = 0; c < chunks; ++c) {
        m += part[part_off + 2 * ((dfcl_i64)b * chunks + c)];
        v += part[part_off + 2 * ((dfcl_i64)b * chunks + c) + 1];
    }
    mse[mse_off + b] = m * inv_n;
    vb[vb_off + b] = v * inv_n * 1.44269504f;
}
