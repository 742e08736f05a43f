/* Attention: the plain C references (double accumulation), argument checks, and the shapes of both ops' cases. */
#include "ops/attn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/philox.h"
#include "ops/rows.h"

dfcl_status dfcl_attn_shape(int B, int T, int H, int D, dfcl_error *err) {
    if (B < 1 || T < 1 || H < 1 || D < 1 || D > DFCL_ATTN_MAX_D)
        return dfcl_fail(err, DFCL_ERROR, "B, T, H at least 1 and D in 1..%d wanted, found B=%d T=%d H=%d D=%d", DFCL_ATTN_MAX_D, B, T,
                         H, D);
    uint64_t rows, row;
    if (!dfcl_mul_u64((uint64_t)B, (uint64_t)T, &rows) || rows > INT32_MAX / 4 || (row = 3ull * (uint64_t)H * (uint64_t)D) > INT32_MAX ||
        (uint64_t)B * (uint64_t)H > INT32_MAX / 4)
        return dfcl_fail(err, DFCL_ERROR, "B*T, B*H and 3*H*D below 2^29 wanted, found B=%d T=%d H=%d D=%d", B, T, H, D);
    return DFCL_OK;
}

size_t dfcl_attn_ref_work(int T, int D) {
    size_t t = (size_t)T, d = (size_t)D;
    return 4 * t * d + 2 * t + 2 * d;
}

/* dst [D][T] = transpose of src [T][D] with row stride ld: so that the loops over keys run along memory. */
static void transpose(double *dst, const float *src, size_t ld, size_t T, size_t D) {
    for (size_t j = 0; j < T; j++)
        for (size_t d = 0; d < D; d++)
            dst[d * T + j] = src[j * ld + d];
}

/* s [T] = x [D] times xt [D][T] */
static void row_times(double *s, const float *x, const double *xt, size_t T, size_t D) {
    memset(s, 0, T * sizeof *s);
    for (size_t d = 0; d < D; d++)
        for (size_t j = 0; j < T; j++)
            s[j] += (double)x[d] * xt[d * T + j];
}

void dfcl_attn_fwd_ref(int B, int T_, int H, int D_, float scale, const float *qkv, float *out, float *lse, double *work) {
    const size_t T = (size_t)T_, D = (size_t)D_, ldo = (size_t)H * D, ld = 3 * ldo;
    double *kt = work, *s = kt + T * D, *o = s + T;
    for (size_t b = 0; b < (size_t)B; b++)
        for (size_t h = 0; h < (size_t)H; h++) {
            const float *q = qkv + b * T * ld + h * D, *k = q + ldo, *v = k + ldo;
            transpose(kt, k, ld, T, D);
            for (size_t i = 0; i < T; i++) {
                row_times(s, q + i * ld, kt, T, D);
                double m = -INFINITY, sum = 0;
                for (size_t j = 0; j < T; j++)
                    m = fmax(m, s[j] *= scale);
                memset(o, 0, D * sizeof *o);
                for (size_t j = 0; j < T; j++) {
                    double p = exp(s[j] - m);
                    sum += p;
                    for (size_t d = 0; d < D; d++)
                        o[d] += p * (double)v[j * ld + d];
                }
                for (size_t d = 0; d < D; d++)
                    out[(b * T + i) * ldo + h * D + d] = (float)(o[d] / sum);
                if (lse)
                    lse[(b * (size_t)H + h) * T + i] = (float)(m + log(sum));
            }
        }
}

void dfcl_attn_bwd_ref(int B, int T_, int H, int D_, float scale, const float *qkv, const float *out, const float *lse,
                       const float *dout, float *dqkv, double *work) {
    const size_t T = (size_t)T_, D = (size_t)D_, ldo = (size_t)H * D, ld = 3 * ldo;
    double *kt = work, *vt = kt + T * D, *dk = vt + T * D, *dv = dk + T * D, *s = dv + T * D, *dp = s + T, *dq = dp + T;
    for (size_t b = 0; b < (size_t)B; b++)
        for (size_t h = 0; h < (size_t)H; h++) {
            const float *q = qkv + b * T * ld + h * D, *k = q + ldo, *v = k + ldo;
            float *g = dqkv + b * T * ld + h * D;
            transpose(kt, k, ld, T, D);
            transpose(vt, v, ld, T, D);
            memset(dk, 0, 2 * T * D * sizeof *dk); /* dk and dv */
            for (size_t i = 0; i < T; i++) {
                const float *qi = q + i * ld, *gi = dout + (b * T + i) * ldo + h * D, *oi = out + (b * T + i) * ldo + h * D;
                const double m = lse[(b * (size_t)H + h) * T + i];
                double delta = 0;
                for (size_t d = 0; d < D; d++)
                    delta += (double)gi[d] * oi[d];
                row_times(s, qi, kt, T, D);
                row_times(dp, gi, vt, T, D);
                memset(dq, 0, D * sizeof *dq);
                for (size_t j = 0; j < T; j++) {
                    double p = exp(s[j] * scale - m), ds = p * (dp[j] - delta) * scale;
                    for (size_t d = 0; d < D; d++) {
                        dq[d] += ds * (double)k[j * ld + d];
                        dk[j * D + d] += ds * (double)qi[d];
                        dv[j * D + d] += p * (double)gi[d];
                    }
                }
                for (size_t d = 0; d < D; d++)
                    g[i * ld + d] = (float)dq[d];
            }
            for (size_t j = 0; j < T; j++)
                for (size_t d = 0; d < D; d++) {
                    g[j * ld + ldo + d] = (float)dk[j * D + d];
                    g[j * ld + 2 * ldo + d] = (float)dv[j * D + d];
                }
        }
}

void dfcl_attn_plan_init(struct dfcl_attn_plan *p, const struct dfcl_device *dev, int heads, int rows, int step, int D) {
    memset(p, 0, sizeof *p);
    p->vector = dfcl_cpu_lanes(dev);
    /* A row of scratch as in cl/attn_cpu.cl: whole slabs of three or two vectors where registers are few. */
    const int vectors = (D + p->vector - 1) / p->vector, slab = vectors % 3 == 0 ? 3 : 2;
    p->row = p->vector == 16 ? (D + 3) / 4 * 4 : (vectors + slab - 1) / slab * slab * p->vector;
    const int units = (int)DFCL_MIN(DFCL_MAX(dev->info.compute_units, 1u), 1024u), steps = (rows + step - 1) / step;
    enum { COPY = 8 }; /* rows whose work equals the copies that each unit makes of its head */
    int64_t best = INT64_MAX;
    for (int parts = 1; parts <= steps; parts++) {
        const int size = (steps + parts - 1) / parts * step;
        const int64_t rounds = ((int64_t)heads * parts + units - 1) / units, cost = rounds * (size + COPY);
        if (cost < best) {
            best = cost;
            p->size = size;
        }
        if (rounds > 4 && (int64_t)heads * parts >= 64 * (int64_t)units)
            break; /* even enough */
    }
    p->parts = (rows + p->size - 1) / p->size;
    p->units = heads * p->parts;
    p->items = DFCL_MIN(p->units, units);
    snprintf(p->options, sizeof p->options, "-DDD=%d -DDFCL_VW=%d", D, p->vector);
}

void dfcl_attn_tiles_get(int D, struct dfcl_attn_tiles *t) {
    const uint32_t d4 = DFCL_MAX(((uint32_t)D + 3) / 4, 2u), row = 4 * (d4 % 2 ? d4 : d4 + 1);
    const uint32_t rf = D <= 128 ? 32 : 16, sf = D <= 80 ? 32 : D <= 128 ? 16 : 8;
    const uint32_t rb = D <= 88 ? 32 : D <= 128 ? 16 : 8;
    const uint32_t sb = D <= 72 || (D > 88 && D <= 96) ? 16 : 8;
    t->fwd = (int)rf;
    t->bwd = (int)rb;
    t->fwd_local = 4 * ((rf + sf) * row + rf * (sf + 4) + rf * 8);
    t->bwd_local = 4 * (2 * (rb + sb) * row + rb * (sb + 4));
}

void dfcl_attn_options(char options[32], int D, const struct dfcl_ref *refs, int count) {
    int aligned = D % 4 == 0;
    for (int i = 0; i < count; i++)
        aligned &= refs[i].off % 16 == 0;
    snprintf(options, 32, "-DDD=%d -DALIGNED=%d", D, aligned);
}

/* ---- cases ---- */

/* Every head size with every token count, B and H varied along the way; then large scores; then what models run. */
static const int check_D[] = {8, 16, 24, 32, 64, 72, 80, 128}, check_T[] = {1, 9, 16, 64, 65, 260};
static const struct dfcl_attn_case more[] = {
    {.B = 1, .T = 33, .H = 2, .D = 1}, /* head sizes that no vector divides, and the largest */
    {.B = 2, .T = 47, .H = 1, .D = 3},
    {.B = 1, .T = 130, .H = 2, .D = 37},
    {.B = 1, .T = 50, .H = 3, .D = 77},
    {.B = 1, .T = 70, .H = 1, .D = 255},
    {.B = 1, .T = 97, .H = 1, .D = 256},
    {.B = 1, .T = 1050, .H = 1, .D = 24}, /* long rows */
    {.B = 1, .T = 600, .H = 1, .D = 96},
    {.B = 1, .T = 2100, .H = 1, .D = 8},
    {.B = 1, .T = 65, .H = 2, .D = 64, .mean = 4},
    {.B = 1, .T = 260, .H = 1, .D = 72, .mean = 4},
    {.B = 2, .T = 17, .H = 2, .D = 16, .mean = 6},
};
/* Operands in bf16: part of the above, so that every size of tile, block and row comes up; then operands that must be rounded. */
static const struct dfcl_attn_case in_bf16[] = {
    {.B = 1, .T = 1, .H = 1, .D = 1},
    {.B = 2, .T = 1, .H = 2, .D = 72},
    {.B = 1, .T = 2, .H = 1, .D = 64},
    {.B = 1, .T = 9, .H = 2, .D = 72},
    {.B = 3, .T = 16, .H = 2, .D = 64},
    {.B = 2, .T = 17, .H = 2, .D = 24, .mean = 6},
    {.B = 1, .T = 33, .H = 2, .D = 1},
    {.B = 2, .T = 47, .H = 1, .D = 77},
    {.B = 2, .T = 64, .H = 3, .D = 64},
    {.B = 1, .T = 64, .H = 2, .D = 72},
    {.B = 1, .T = 65, .H = 2, .D = 64, .mean = 4},
    {.B = 1, .T = 97, .H = 1, .D = 255},
    {.B = 1, .T = 130, .H = 2, .D = 24},
    {.B = 1, .T = 131, .H = 1, .D = 77},
    {.B = 1, .T = 200, .H = 1, .D = 96},
    {.B = 1, .T = 260, .H = 1, .D = 72, .mean = 4},
    {.B = 2, .T = 260, .H = 2, .D = 72},
    {.B = 1, .T = 600, .H = 1, .D = 96},
    {.B = 1, .T = 1024, .H = 1, .D = 72},
    {.B = 1, .T = 1050, .H = 1, .D = 24},
};
static const struct dfcl_attn_case to_bf16[] = {
    {.B = 2, .T = 16, .H = 3, .D = 64},
    {.B = 1, .T = 260, .H = 2, .D = 72},
};
static const struct dfcl_attn_case bench[] = {
    {.B = 1, .T = 256, .H = 16, .D = 72},  /* DiT-XL/2, 256 pixels */
    {.B = 4, .T = 256, .H = 16, .D = 72},
    {.B = 1, .T = 1024, .H = 16, .D = 72}, /* DiT-XL/2, 512 pixels */
    {.B = 4, .T = 1024, .H = 16, .D = 72},
    {.B = 4, .T = 256, .H = 12, .D = 64},  /* DiT-B/2 */
    {.B = 4, .T = 64, .H = 12, .D = 64},   /* DiT-B/4 */
    {.B = 1, .T = 16, .H = 6, .D = 64},    /* DiT-S/8 */
    {.B = 32, .T = 16, .H = 6, .D = 64},
    {.B = 64, .T = 64, .H = 4, .D = 32},   /* a small model over 16x16 images */
    {.B = 128, .T = 64, .H = 8, .D = 16},
};
enum { GRID = DFCL_COUNT(check_D) * DFCL_COUNT(check_T), F32_CASES = GRID + DFCL_COUNT(more),
       EXACT_CASES = F32_CASES + DFCL_COUNT(in_bf16) };
_Static_assert(EXACT_CASES + DFCL_COUNT(to_bf16) == DFCL_ATTN_CHECK_CASES && DFCL_COUNT(bench) == DFCL_ATTN_BENCH_CASES, "counts of attn.h");

void dfcl_attn_case_get(int index, struct dfcl_attn_case *c) {
    if (index < GRID) {
        memset(c, 0, sizeof *c);
        c->D = check_D[index % (int)DFCL_COUNT(check_D)];
        c->T = check_T[index / (int)DFCL_COUNT(check_D)];
        c->B = 1 + index % 3;
        c->H = 1 + index / 3 % 3;
    } else if (index < F32_CASES) {
        *c = more[index - GRID];
    } else if (index < EXACT_CASES) {
        *c = in_bf16[index - F32_CASES];
        c->exact = true;
    } else if (index < DFCL_ATTN_CHECK_CASES) {
        *c = to_bf16[index - EXACT_CASES];
    } else {
        *c = bench[index - DFCL_ATTN_CHECK_CASES];
    }
    c->bf16 = index >= F32_CASES; /* benchmarks run all variants */
    c->tol_factor = 1.0f + c->mean * c->mean * sqrtf((float)c->D) / 16.0f;
    snprintf(c->label, sizeof c->label, "B=%d T=%d H=%d D=%d%s%s", c->B, c->T, c->H, c->D, c->mean > 0 ? " large scores" : "",
             index >= DFCL_ATTN_CHECK_CASES || !c->bf16 ? "" : c->exact ? " bf16" : " to bf16");
}

double dfcl_attn_case_tol(const struct dfcl_attn_case *c, double f32) {
    return f32 * (double)c->tol_factor + (c->exact ? 0x1p-8 : c->bf16 ? 0x1p-7 : 0);
}

void dfcl_attn_case_fill(const struct dfcl_attn_case *c, uint64_t seed, float *qkv) {
    const size_t n = (size_t)c->H * (size_t)c->D, rows = (size_t)c->B * (size_t)c->T;
    for (size_t r = 0; r < rows; r++) {
        dfcl_normals(seed, DFCL_STREAM_TEST, (uint32_t)r, 0, qkv + r * 3 * n, 3 * n);
        for (size_t i = 0; i < 2 * n; i++)
            qkv[r * 3 * n + i] += c->mean;
        for (size_t i = 0; c->exact && i < 3 * n; i++)
            qkv[r * 3 * n + i] = dfcl_bf16_to_f32(dfcl_f32_to_bf16(qkv[r * 3 * n + i]));
    }
}
