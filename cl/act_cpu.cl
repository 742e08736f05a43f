/* Activations for CPUs: one work-item (group of 1) walks `span` consecutive elements with register-wide vectors. */
DFCL_FN vf act_value(vf x, int act) {
    return act == 1 ? dfcl_vgelu(x) : act == 2 ? dfcl_vsilu(x) : x;
}
DFCL_FN vf act_slope(vf x, int act) {
    return act == 1 ? dfcl_vgelu_grad(x) : act == 2 ? dfcl_vsilu_grad(x) : VS(1.0f);
}

DFCL_KERNEL(1, 1, 1)
act_fwd_cpu(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, dfcl_i64 n, int act, int span) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * span;
    x += x_off + first;
    y += y_off + first;
    int count = (int)min((dfcl_i64)span, n - first), i = 0;
    for (; i + DFCL_VW <= count; i += DFCL_VW)
        VST(y + i, act_value(VLD(x + i), act));
    if (i < count)
        dfcl_vst_part(y + i, act_value(dfcl_vld_part(x + i, count - i), act), count - i);
}

DFCL_KERNEL(1, 1, 1)
act_bwd_cpu(const GLOBAL float *x, dfcl_i64 x_off, const GLOBAL float *dy, dfcl_i64 dy_off, GLOBAL float *dx, dfcl_i64 dx_off, dfcl_i64 n,
            int act, int span) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * span;
    x += x_off + first;
    dy += dy_off + first;
    dx += dx_off + first;
    int count = (int)min((dfcl_i64)span, n - first), i = 0;
    for (; i + DFCL_VW <= count; i += DFCL_VW)
        VST(dx + i, VLD(dy + i) * act_slope(VLD(x + i), act));
    if (i < count)
        dfcl_vst_part(dx + i, dfcl_vld_part(dy + i, count - i) * act_slope(dfcl_vld_part(x + i, count - i), act), count - i);
}
