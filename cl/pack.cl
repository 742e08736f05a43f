/* Row-major W [N, K] to panels [ceil(N/48)][K][48], one item a value of the result: only its place changes. SIZE: bytes of a value, 4 or 2. Runs once
 * a weight. */
#ifndef SIZE
#define SIZE 4
#endif
#if SIZE == 2
#define WT ushort
#else
#define WT uint
#endif

DFCL_KERNEL(256, 1, 1)
pack(const GLOBAL WT *w, dfcl_i64 w_off, GLOBAL WT *packed, dfcl_i64 packed_off, int N, int K) {
    dfcl_i64 i = (dfcl_i64)GRP(0) * 256 + LID(0), row = i / 48;
    int n = (int)(row / K) * 48 + (int)(i % 48), k = (int)(row % K);
    if (row < (dfcl_i64)((N + 47) / 48) * K)
        packed[packed_off + i] = n < N ? w[w_off + (dfcl_i64)n * K + k] : (WT)0;
}
