/* Small kernels that ask a device whether it does what it says: used when a device is opened and by the tests.
 *
 * probe_args: every kind of argument arrives. One group of 64 items. out[0..3] = i, u, low and high word of l, then the bits of f; from
 * out[8] on, one word per item: 3 * in[item], or 0 without `in`. */
DFCL_KERNEL(64, 1, 1)
probe_args(GLOBAL uint *out, dfcl_i64 out_off, const GLOBAL uint *in, dfcl_i64 in_off, int i, uint u, dfcl_i64 l, float f) {
    out += out_off;
    int lid = LID(0);
    if (lid == 0) {
        out[0] = (uint)i;
        out[1] = u;
        out[2] = (uint)l;
        out[3] = (uint)(l >> 32);
        out[4] = as_uint(f);
    }
    uint v = 0u;
    if (in)
        v = 3u * in[in_off + lid];
    out[8 + lid] = v;
}

/* probe_sum: out[group * 64 + item] = sum over the group of in[]. Groups of 64, any number. Goes through dfcl_wg_sum, and so through
 * sub-groups where DFCL_SG is set: a device whose sub-groups are not what DFCL_SG says gives a wrong sum. */
DFCL_KERNEL(64, 1, 1)
probe_sum(GLOBAL float *out, dfcl_i64 out_off, const GLOBAL float *in, dfcl_i64 in_off) {
    LOCAL_ARRAY float s[64];
    int g = GID(0);
    out[out_off + g] = dfcl_wg_sum(in[in_off + g], s, LID(0), 64);
}

/* probe_spin: keeps one item busy for `rounds` dependent steps. For the watchdog's test. */
DFCL_KERNEL(1, 1, 1)
probe_spin(GLOBAL uint *out, dfcl_i64 out_off, dfcl_i64 rounds) {
    uint x = 1u;
    for (dfcl_i64 r = 0; r < rounds; ++r)
        x = x * 1664525u + 1013904223u + (x >> 7);
    out[out_off] = x;
}
