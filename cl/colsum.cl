/* Sums over rows in two passes of fixed order, and the second pass alone for whoever has cut a sum into slices. */

/* Groups [slice][64 columns], one item a column; a slice takes `span` rows. One slice: out += sum; more: part[slice][N] = sum. */
DFCL_KERNEL(64, 1, 1)
colsum(const GLOBAL float *x, dfcl_i64 x_off, GLOBAL float *out, dfcl_i64 out_off, GLOBAL float *part, dfcl_i64 part_off, int M, int N,
       int span, int slices) {
    int blocks = (N + 63) / 64, slice = GRP(0) / blocks, n = GRP(0) % blocks * 64 + LID(0), end = min(M, (slice + 1) * span);
    if (n < N) {
        const GLOBAL float *p = x + x_off + n;
        float s = 0.0f;
        for (int m = slice * span; m < end; ++m)
            s += p[(dfcl_i64)m * N];
        if (slices == 1)
            out[out_off + n] += s;
        else
            part[part_off + (dfcl_i64)slice * N + n] = s;
    }
}

/* out[i] += sum over slices of part[slice][i], in order. */
DFCL_KERNEL(64, 1, 1)
slice_sum(const GLOBAL float *part, dfcl_i64 part_off, GLOBAL float *out, dfcl_i64 out_off, dfcl_i64 count, int slices) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 64 + LID(0);
    if (i < count) {
        float s = 0.0f;
        for (int z = 0; z < slices; ++z)
            s += part[part_off + z * count + i];
        out[out_off + i] += s;
    }
}
