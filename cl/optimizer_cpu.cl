/* The optimizer's passes for CPUs: one work-item per run of CHUNK consecutive values in 16-wide vectors, so that each core streams through its
 * own pages. Formulas: optimizer.cl. */
#define CHUNK 16384

DFCL_KERNEL(1, 1, 1) adamw(GLOBAL float *p, dfcl_i64 p_off, GLOBAL const float *g, dfcl_i64 g_off, GLOBAL float *m, dfcl_i64 m_off,
                           GLOBAL float *v, dfcl_i64 v_off, GLOBAL float *e, dfcl_i64 e_off, dfcl_i64 n, float gs, float b1, float ob1, float b2,
                           float ob2, float decay, float step, float inv_root, float eps, float w) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * CHUNK;
    int count = n - first < CHUNK ? (int)(n - first) : CHUNK, i = 0;
    p += p_off + first;
    g += g_off + first;
    m += m_off + first;
    v += v_off + first;
    GLOBAL float *a = e ? e + e_off + first : 0;
    for (; i + 16 <= count; i += 16) {
        float16 gi = vload16(0, g + i) * gs, pi = vload16(0, p + i);
        float16 mi = b1 * vload16(0, m + i) + ob1 * gi, vi = b2 * vload16(0, v + i) + ob2 * gi * gi;
        vstore16(mi, 0, m + i);
        vstore16(vi, 0, v + i);
        pi = pi - (decay * pi + step * mi / (sqrt(vi) * inv_root + eps));
        vstore16(pi, 0, p + i);
        if (a) {
            float16 old = vload16(0, a + i);
            vstore16(old + w * (pi - old), 0, a + i);
        }
    }
    for (; i < count; ++i) {
        float gi = g[i] * gs, pi = p[i];
        float mi = b1 * m[i] + ob1 * gi, vi = b2 * v[i] + ob2 * gi * gi;
        m[i] = mi;
        v[i] = vi;
        pi = pi - (decay * pi + step * mi / (sqrt(vi) * inv_root + eps));
        p[i] = pi;
        if (a)
            a[i] = a[i] + w * (pi - a[i]);
    }
}

DFCL_KERNEL(1, 1, 1) axpby(GLOBAL const float *x, dfcl_i64 x_off, GLOBAL float *y, dfcl_i64 y_off, dfcl_i64 n, float a, float b, int keep) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * CHUNK;
    int count = n - first < CHUNK ? (int)(n - first) : CHUNK, i = 0;
    x += x_off + first;
    y += y_off + first;
    if (!keep) {
        for (; i + 16 <= count; i += 16)
            vstore16(a * vload16(0, x + i), 0, y + i);
        for (; i < count; ++i)
            y[i] = a * x[i];
        return;
    }
    for (; i + 16 <= count; i += 16)
        vstore16(a * vload16(0, x + i) + b * vload16(0, y + i), 0, y + i);
    for (; i < count; ++i)
        y[i] = a * x[i] + b * y[i];
}

/* One work-item per 4096 values: 16 running sums, then these in order. */
DFCL_KERNEL(1, 1, 1) sumsq_parts(GLOBAL const float *x, dfcl_i64 x_off, dfcl_i64 n, GLOBAL float *part, dfcl_i64 part_off) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * 4096;
    int count = n - first < 4096 ? (int)(n - first) : 4096, i = 0;
    x += x_off + first;
    float16 sum = 0.0f;
    int16 bad = 0;
    for (; i + 16 <= count; i += 16) {
        float16 v = vload16(0, x + i);
        int16 fine = (v - v) == 0.0f; /* -1 where finite */
        v = as_float16(as_int16(v) & fine);
        sum += v * v;
        bad += 1 + fine;
    }
    float total = 0.0f;
    int lost = 0;
    float lanes[16];
    int counts[16];
    vstore16(sum, 0, lanes);
    vstore16(bad, 0, counts);
    for (int k = 0; k < 16; ++k) {
        total += lanes[k];
        lost += counts[k];
    }
    for (; i < count; ++i) {
        float v = x[i];
        if (v - v == 0.0f)
            total += v * v;
        else
            lost++;
    }
    part[part_off + 2 * (dfcl_i64)GRP(0)] = total;
    part[part_off + 2 * (dfcl_i64)GRP(0) + 1] = (float)lost;
}

DFCL_KERNEL(1, 1, 1) sumsq_total(GLOBAL const float *part, dfcl_i64 part_off, dfcl_i64 chunks, GLOBAL float *out, dfcl_i64 out_off) {
    float sum = 0.0f, low = 0.0f, count = 0.0f;
    for (dfcl_i64 at = 0; at < chunks; ++at) {
        float v = part[part_off + 2 * at] - low, t = sum + v;
        low = (t - sum) - v;
        sum = t;
        count += part[part_off + 2 * at + 1];
    }
    out[out_off] = sum;
    out[out_off + 1] = count;
}
