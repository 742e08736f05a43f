/* softmax(scale * x) over rows: a group of 64 items takes a row; the largest value first, so that nothing overflows. */
DFCL_KERNEL(64, 1, 1)
softmax(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, int M, int N, float scale) {
    LOCAL_ARRAY float s[64];
    int lid = LID(0);
    const GLOBAL float *p = x + x_off + (dfcl_i64)GRP(0) * N;
    GLOBAL float *o = y + y_off + (dfcl_i64)GRP(0) * N;
    float top = -INFINITY, sum = 0.0f;
    for (int n = lid; n < N; n += 64)
        top = fmax(top, p[n] * scale);
    s[lid] = top;
    BARRIER();
    for (int i = 32; i > 0; i >>= 1) {
        if (lid < i)
            s[lid] = fmax(s[lid], s[lid + i]);
        BARRIER();
    }
    top = s[0];
    for (int n = lid; n < N; n += 64) {
        float e = exp(p[n] * scale - top);
        sum += e;
        o[n] = e;
    }
    sum = dfcl_wg_sum(sum, s, lid, 64);
    float share = 1.0f / sum;
    for (int n = lid; n < N; n += 64)
        o[n] *= share;
}
