/* Timestep and class embeddings, and rows picked from a table: small, one work-item per value (backward: per column). */

/* exp(x) for -80 < x <= 0 within one unit in the last place, the same bits everywhere: the frequencies are magnified by t up to 999, and a
 * device's own exp may be off by three units. */
DFCL_FN float embed_exp(float x) {
    float k = rint(x * 1.44269504f);
    float r = fma(k, -0.693145752f, x);
    r = fma(k, -1.42860677e-6f, r);
    float p = 1.98412698e-4f;
    p = fma(p, r, 1.38888889e-3f);
    p = fma(p, r, 8.33333333e-3f);
    p = fma(p, r, 4.16666667e-2f);
    p = fma(p, r, 1.66666667e-1f);
    p = fma(p, r, 0.5f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    return as_float((uint)((int)as_uint(p) + (int)k * 8388608));
}

/* (cos a, sin a) for 0 <= a < 10^5: quarter turns are taken off with pi/2 in three parts, what is left lies in [-pi/4, pi/4] (polynomials of
 * Cephes sinf and cosf). A general sin would bring a reduction for huge arguments, which costs registers and a stack on GPUs. */
DFCL_FN float2 embed_cos_sin(float a) {
    float k = rint(a * 0.636619772f);
    float r = fma(-k, 1.57079637f, a);
    r = fma(-k, -4.37113883e-8f, r);
    r = fma(-k, -1.71512489e-15f, r);
    float z = r * r;
    float s = -1.9515295891e-4f;
    s = fma(s, z, 8.3321608736e-3f);
    s = fma(s, z, -1.6666654611e-1f);
    s = fma(s * z, r, r);
    float c = 2.443315711809948e-5f;
    c = fma(c, z, -1.388731625493765e-3f);
    c = fma(c, z, 4.166664568298827e-2f);
    c = fma(c * z, z, fma(z, -0.5f, 1.0f));
    int q = (int)k;
    float cs = q & 1 ? s : c, sn = q & 1 ? c : s; /* quadrants 0..3: (c, s), (-s, c), (-c, -s), (s, -c) */
    if ((q + 1) & 2)
        cs = -cs;
    if (q & 2)
        sn = -sn;
    return F2(cs, sn);
}

/* y[b] = [cos(t f_i), sin(t f_i)], f_i = exp(-ln(10000) i / half_dim). */
DFCL_KERNEL(64, 1, 1) timestep_embed(GLOBAL const float *t, dfcl_i64 t_off, GLOBAL float *y, dfcl_i64 y_off, int B, int half_dim) {
    int g = GRP(0) * 64 + LID(0);
    int b = g / half_dim, i = g - b * half_dim;
    if (b >= B)
        return;
    float f = embed_exp(-9.210340371976184f * (float)i / (float)half_dim);
    float2 cs = embed_cos_sin(t[t_off + b] * f);
    GLOBAL float *o = y + y_off + (dfcl_i64)b * (2 * half_dim);
    o[i] = cs.x;
    o[half_dim + i] = cs.y;
}

/* c[b] = temb[b] + table[row[b]]; a row outside the table shows as NaN. Groups: x over columns, y over samples. */
DFCL_KERNEL(64, 1, 1) class_embed(GLOBAL const float *temb, dfcl_i64 temb_off, GLOBAL const float *table, dfcl_i64 table_off,
                                  GLOBAL const int *row, dfcl_i64 row_off, GLOBAL float *c, dfcl_i64 c_off, int d, int rows) {
    int i = GRP(0) * 64 + LID(0), b = GRP(1);
    if (i >= d)
        return;
    int r = row[row_off + b];
    dfcl_i64 k = (dfcl_i64)b * d + i;
    c[c_off + k] = r >= 0 && r < rows ? temb[temb_off + k] + table[table_off + (dfcl_i64)r * d + i] : as_float(0x7fc00000u);
}

/* dtable[row[b]] += dc[b], samples in order: a column is one work-item's, so equal rows meet in a fixed order. */
DFCL_KERNEL(64, 1, 1) class_embed_bwd(GLOBAL const float *dc, dfcl_i64 dc_off, GLOBAL const int *row, dfcl_i64 row_off,
                                      GLOBAL float *dtable, dfcl_i64 dtable_off, int B, int d, int rows) {
    int i = GRP(0) * 64 + LID(0);
    if (i >= d)
        return;
    for (int b = 0; b < B; ++b) {
        int r = row[row_off + b];
        if (r >= 0 && r < rows)
            dtable[dtable_off + (dfcl_i64)r * d + i] += dc[dc_off + (dfcl_i64)b * d + i];
    }
}

/* y[b] = table[row[b]]; a row outside the table shows as NaN. Groups: x over columns, y over rows of y. */
DFCL_KERNEL(64, 1, 1) gather_rows(GLOBAL const float *table, dfcl_i64 table_off, GLOBAL const int *row, dfcl_i64 row_off, GLOBAL float *y,
                                  dfcl_i64 y_off, int N, int rows) {
    int i = GRP(0) * 64 + LID(0), b = GRP(1);
    if (i >= N)
        return;
    int r = row[row_off + b];
    y[y_off + (dfcl_i64)b * N + i] = r >= 0 && r < rows ? table[table_off + (dfcl_i64)r * N + i] : as_float(0x7fc00000u);
}
