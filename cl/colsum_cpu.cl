/* Sums over rows on CPUs: one work-item takes four vectors of columns x `span` rows, so that a row's visit fills whole cache lines and four
 * chains of additions are in flight. */
DFCL_FN vf load(const GLOBAL float *p, int n) {
    return n >= DFCL_VW ? VLD(p) : dfcl_vld_part(p, n);
}
DFCL_FN void store(GLOBAL float *p, vf v, int n) {
    if (n >= DFCL_VW)
        VST(p, v);
    else if (n > 0)
        dfcl_vst_part(p, v, n);
}

/* Groups (4 vectors of columns, slice). One slice: out += sum; more: part[slice][N] = sum. */
DFCL_KERNEL(1, 1, 1)
colsum_cpu(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *part, dfcl_i64 part_off, int M, int N,
           int span, int slices) {
    int n = GRP(0) * 4 * DFCL_VW, left = N - n, end = min(M, (GRP(1) + 1) * span);
    const GLOBAL float *p = x + x_off + (dfcl_i64)GRP(1) * span * N + n;
    vf s[4] = {VS(0.0f), VS(0.0f), VS(0.0f), VS(0.0f)};
    if (left >= 4 * DFCL_VW) {
        for (int m = GRP(1) * span; m < end; ++m, p += N) {
            s[0] += VLD(p);
            s[1] += VLD(p + DFCL_VW);
            s[2] += VLD(p + 2 * DFCL_VW);
            s[3] += VLD(p + 3 * DFCL_VW);
        }
    } else {
        for (int m = GRP(1) * span; m < end; ++m, p += N)
            for (int j = 0; j < 4; ++j)
                s[j] += load(p + j * DFCL_VW, left - j * DFCL_VW);
    }
    GLOBAL float *o = slices == 1 ? out + out_off + n : part + part_off + (dfcl_i64)GRP(1) * N + n;
    for (int j = 0; j < 4 && j * DFCL_VW < left; ++j) {
        int k = j * DFCL_VW;
        store(o + k, slices == 1 ? load(o + k, left - k) + s[j] : s[j], left - k);
    }
}

/* out[i] += sum over slices of part[slice][i], in order; one item takes `span` values. */
DFCL_KERNEL(1, 1, 1)
slice_sum_cpu(const GLOBAL float *part, dfcl_i64 part_off, GLOBAL float *out, dfcl_i64 out_off, dfcl_i64 count, int slices, int span) {
    dfcl_i64 first = (dfcl_i64)GRP(0) * span, last = min(count, first + span);
    for (dfcl_i64 i = first; i < last; i += DFCL_VW) {
        int left = (int)min((dfcl_i64)DFCL_VW, last - i);
        vf s = VS(0.0f);
        for (int z = 0; z < slices; ++z)
            s += load(part + part_off + z * count + i, left);
        store(out + out_off + i, load(out + out_off + i, left) + s, left);
    }
}
