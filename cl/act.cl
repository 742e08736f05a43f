/* y = act(x) and dx = dy act'(x), elementwise, in place allowed. A group of 256 items covers 1024 consecutive elements, neighbours next to
 * each other. act: 1 GELU (tanh form), 2 SiLU, else identity. */
DFCL_FN float act_value(float x, int act) {
    return act == 1 ? dfcl_gelu(x) : act == 2 ? dfcl_silu(x) : x;
}
DFCL_FN float act_slope(float x, int act) {
    return act == 1 ? dfcl_gelu_grad(x) : act == 2 ? dfcl_silu_grad(x) : 1.0f;
}

DFCL_KERNEL(256, 1, 1)
act_fwd(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, dfcl_i64 n, int act) {
    x += x_off;
    y += y_off;
    dfcl_i64 i = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int k = 0; k < 4; ++k, i += 256)
        if (i < n)
            y[i] = act_value(x[i], act);
}

DFCL_KERNEL(256, 1, 1)
act_bwd(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *dy, dfcl_i64 dy_off, GLOBAL float *dx, dfcl_i64 dx_off, dfcl_i64 n,
        int act) {
    x += x_off;
    dy += dy_off;
    dx += dx_off;
    dfcl_i64 i = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int k = 0; k < 4; ++k, i += 256)
        if (i < n)
            dx[i] = dy[i] * act_slope(x[i], act);
}
