/* Row-major W [N, K] to panels [ceil(N/48)][K][48], one item a value of the result. WTYPE 0 f32, 1 bf16, 2 f16. Runs once a weight. */
#ifndef WTYPE
#define WTYPE 0
#endif
#if WTYPE
#define WT ushort
#else
#define WT float
#endif

DFCL_KERNEL(256, 1, 1)
pack(const GLOBAL WT *w, dfcl_i64 w_off, GLOBAL float *packed, dfcl_i64 packed_off, int N, int K) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 256 + LID(0), row = i / 48;
    int n = (int)(row / K) * 48 + (int)(i % 48), k = (int)(row % K);
    if (row < (dfcl_i64)((N + 47) / 48) * K) {
        float v = 0.0f;
        if (n < N) {
#if WTYPE == 1
            v = dfcl_bf2f(w[w_off + (dfcl_i64)n * K + k]);
#elif WTYPE == 2
            v = dfcl_h2f(w[w_off + (dfcl_i64)n * K + k]);
#else
            v = w[w_off + (dfcl_i64)n * K + k];
#endif
        }
        packed[packed_off + i] = v;
    }
}
