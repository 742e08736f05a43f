/* Guidance and the samplers' update rules: one work-item per value. Formulas: src/ops/ops.h. */

/* eps[i] = u + scale[i] (c - u) for the first `guided` values of an image (chans * hw), c after; v[i] = variance half of c.
 * Groups: x over the C*hw = count values of a half, y over images. */
DFCL_KERNEL(64, 1, 1) guide(GLOBAL const float *net, dfcl_i64 net_off, GLOBAL const int *cond, dfcl_i64 cond_off, GLOBAL const int *ref,
                            dfcl_i64 ref_off, GLOBAL const float *scale, dfcl_i64 scale_off, GLOBAL float *eps, dfcl_i64 eps_off,
                            GLOBAL float *v, dfcl_i64 v_off, int count, int guided, int has_ref, int has_v) {
    int k = GRP(0) * 64 + LID(0), i = GRP(1);
    if (k >= count)
        return;
    dfcl_i64 size = 2 * (dfcl_i64)count;
    GLOBAL const float *c = net + net_off + (dfcl_i64)cond[cond_off + i] * size;
    float e = c[k];
    int r = has_ref ? ref[ref_off + i] : -1;
    if (r >= 0 && k < guided) {
        float u = net[net_off + (dfcl_i64)r * size + k];
        e = u + scale[scale_off + i] * (e - u);
    }
    eps[eps_off + (dfcl_i64)i * count + k] = e;
    if (has_v)
        v[v_off + (dfcl_i64)i * count + k] = c[count + k];
}

/* x0 = ra x - rb eps (clamped); xn = c1 x0 + c2 x + exp(logvar / 2) noise, logvar = lpv + (v + 1) / 2 * (lb - lpv). */
DFCL_KERNEL(64, 1, 1) ddpm_step(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL const float *eps, dfcl_i64 eps_off, GLOBAL const float *v,
                                dfcl_i64 v_off, GLOBAL const float *noise, dfcl_i64 noise_off, GLOBAL float *xn, dfcl_i64 xn_off,
                                GLOBAL float *x0, dfcl_i64 x0_off, dfcl_i64 n, float ra, float rb, float c1, float c2, float lpv, float lb,
                                int clip, int has_noise, int has_x0) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 64 + LID(0);
    if (i >= n)
        return;
    float xi = x[x_off + i];
    float z = ra * xi - rb * eps[eps_off + i];
    if (clip)
        z = z < -1.0f ? -1.0f : z > 1.0f ? 1.0f : z; /* NaN stays NaN: the final check must see it */
    float r = c1 * z + c2 * xi;
    if (has_noise)
        r = r + exp(0.5f * (lpv + 0.5f * (v[v_off + i] + 1.0f) * (lb - lpv))) * noise[noise_off + i];
    if (has_x0)
        x0[x0_off + i] = z;
    xn[xn_off + i] = r;
}

/* x0 = a x + b eps (clamped); xn = kx x + ke eps + k0 x0 + kz noise + kp x0_prev. */
DFCL_KERNEL(64, 1, 1) linear_step(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL const float *eps, dfcl_i64 eps_off, GLOBAL const float *noise,
                                  dfcl_i64 noise_off, GLOBAL const float *prev, dfcl_i64 prev_off, GLOBAL float *xn, dfcl_i64 xn_off,
                                  GLOBAL float *x0, dfcl_i64 x0_off, dfcl_i64 n, float a, float b, float kx, float ke, float k0, float kz,
                                  float kp, int clip, int has_noise, int has_prev, int has_x0) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 64 + LID(0);
    if (i >= n)
        return;
    float xi = x[x_off + i], e = eps[eps_off + i];
    float z = a * xi + b * e;
    if (clip)
        z = z < -1.0f ? -1.0f : z > 1.0f ? 1.0f : z;
    float r = kx * xi + ke * e + k0 * z;
    if (has_noise)
        r = r + kz * noise[noise_off + i];
    if (has_prev)
        r = r + kp * prev[prev_off + i];
    if (has_x0)
        x0[x0_off + i] = z;
    xn[xn_off + i] = r;
}
