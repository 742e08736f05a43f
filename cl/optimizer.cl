/* AdamW with the moving average, axpby: a group of 256 items works off 1024 consecutive values, 256 apart per item, so that accesses coalesce. Sum of squares in two
 * passes with a fixed order. All counts are 64-bit. */

/* m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= decay p + step m / (sqrt(v) inv_root + eps); g already times gs. `decay` = lr wd, step =
 * lr / (1-b1^k), inv_root = 1 / sqrt(1-b2^k). p is changed by one subtraction, so that a small decay is not lost in a factor near 1.
 * Then e += w (p - e), w = 1 - its decay, unless e is absent: the weights of old and new always add up to 1. */
DFCL_KERNEL(256, 1, 1) adamw(GLOBAL float *p, dfcl_i64 p_off, GLOBAL const float *g, dfcl_i64 g_off, GLOBAL float *m, dfcl_i64 m_off,
                             GLOBAL float *v, dfcl_i64 v_off, GLOBAL float *e, dfcl_i64 e_off, dfcl_i64 n, float gs, float b1, float ob1,
                             float b2, float ob2, float decay, float step, float inv_root, float eps, float w) {
    dfcl_i64 at = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int j = 0; j < 4; ++j, at += 256) {
        if (at >= n)
            return;
        float gi = g[g_off + at] * gs;
        float mi = b1 * m[m_off + at] + ob1 * gi, vi = b2 * v[v_off + at] + ob2 * gi * gi;
        float pi = p[p_off + at];
        m[m_off + at] = mi;
        v[v_off + at] = vi;
        pi = pi - (decay * pi + step * mi / (sqrt(vi) * inv_root + eps));
        p[p_off + at] = pi;
        if (e) {
            float old = e[e_off + at];
            e[e_off + at] = old + w * (pi - old);
        }
    }
}

/* y = a x + b y; keep 0: y = a x, y may hold anything. */
DFCL_KERNEL(256, 1, 1) axpby(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, dfcl_i64 n, float a, float b, int keep) {
    dfcl_i64 at = (dfcl_i64)GRP(0) * 1024 + LID(0);
    for (int j = 0; j < 4; ++j, at += 256) {
        if (at >= n)
            return;
        float r = a * x[x_off + at];
        if (keep)
            r = r + b * y[y_off + at];
        y[y_off + at] = r;
    }
}

/* Pass 1: part[2 c], part[2 c + 1] = sum of squares and count of non-finite values of the 4096 values of chunk c. */
DFCL_KERNEL(128, 1, 1) sumsq_parts(GLOBAL const float *x, dfcl_i64 x_off, dfcl_i64 n, GLOBAL float *part, dfcl_i64 part_off) {
    LOCAL_ARRAY float s[128];
    int lid = LID(0);
    dfcl_i64 first = (dfcl_i64)GRP(0) * 4096;
    float sum = 0.0f, bad = 0.0f;
    for (int j = lid; j < 4096; j += 128) {
        if (first + j < n) {
            float v = x[x_off + first + j];
            if (v - v == 0.0f)
                sum += v * v;
            else
                bad += 1.0f;
        }
    }
    sum = dfcl_wg_sum(sum, s, lid, 128);
    bad = dfcl_wg_sum(bad, s, lid, 128);
    if (lid == 0) {
        part[part_off + 2 * (dfcl_i64)GRP(0)] = sum;
        part[part_off + 2 * (dfcl_i64)GRP(0) + 1] = bad;
    }
}

/* Pass 2, one group: each item adds a run of chunks with compensation, item 0 adds the runs likewise. */
DFCL_KERNEL(256, 1, 1) sumsq_total(GLOBAL const float *part, dfcl_i64 part_off, dfcl_i64 chunks, GLOBAL float *out, dfcl_i64 out_off) {
    LOCAL_ARRAY float s[256];
    LOCAL_ARRAY float bad[256];
    int lid = LID(0);
    dfcl_i64 run = (chunks + 255) / 256, at = run * lid, end = at + run < chunks ? at + run : chunks;
    float sum = 0.0f, low = 0.0f, count = 0.0f;
    for (; at < end; ++at) {
        float v = part[part_off + 2 * at] - low, t = sum + v;
        low = (t - sum) - v;
        sum = t;
        count += part[part_off + 2 * at + 1];
    }
    s[lid] = sum;
    bad[lid] = count;
    BARRIER();
    if (lid == 0) {
        sum = 0.0f;
        low = 0.0f;
        count = 0.0f;
        for (int i = 0; i < 256; ++i) {
            float v = s[i] - low, t = sum + v;
            low = (t - sum) - v;
            sum = t;
            count += bad[i];
        }
        out[out_off] = sum;
        out[out_off + 1] = count;
    }
}
