/* Asks whether bf16 dot products come out right: run once on a new device, in a process of its own, before any kernel that uses them.
 *
 * in: 16 sums, then two rows a and b of 32 values. out: sums[i] + a[2i] b[2i] + a[2i+1] b[2i+1], then row a as 16 pairs of bf16. */
DFCL_KERNEL(1, 1, 1)
probe_dot(GLOBAL float *out, dfcl_i64 out_off, const GLOBAL float *in, dfcl_i64 in_off) {
    out += out_off;
    in += in_off;
    vf acc = VLD(in);
    vu a = dfcl_vrow(VLD(in + 16), VLD(in + 32)), b = dfcl_vrow(VLD(in + 48), VLD(in + 64));
    DFCL_DOT(acc, a, b);
    VST(out, acc);
    VST(out + 16, as_vf(a));
}
