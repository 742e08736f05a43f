#include "formats/tensor_view.h"

#include <stdio.h>
#include <string.h>

bool dfcl_shape_count(const int64_t *shape, int ndim, size_t elem, uint64_t *count, uint64_t *bytes) {
    uint64_t n = 1;
    bool zero = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return false;
        zero |= shape[i] == 0;
        /* The product of the non-zero dimensions has to fit even when a later one is zero: strides are made of it. */
        if (shape[i] && !dfcl_mul_u64(n, (uint64_t)shape[i], &n))
            return false;
    }
    uint64_t b;
    if (!dfcl_mul_u64(n, elem ? elem : 1, &b) || b > INT64_MAX || b > SIZE_MAX)
        return false;
    *count = zero ? 0 : n;
    *bytes = zero ? 0 : b;
    return true;
}

char *dfcl_shape_format(const int64_t *shape, int ndim, char *buf, size_t size) {
    buf[0] = 0;
    dfcl_append(buf, size, "[");
    for (int i = 0; i < ndim; i++)
        dfcl_append(buf, size, "%s%lld", i ? ", " : "", (long long)shape[i]);
    dfcl_append(buf, size, "]");
    return buf;
}

static uint16_t le16(const unsigned char *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint64_t le64(const unsigned char *p) {
    return le32(p) | (uint64_t)le32(p + 4) << 32;
}
static float f32_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static double f64_bits(uint64_t u) {
    double d;
    memcpy(&d, &u, 8);
    return d;
}

/* The same values as base/half.h gives, written without branches and calls so that the loops below become vector code: a checkpoint has
 * hundreds of millions of them. Half: the exponent is moved from bias 15 to 127; a subnormal gets a leading one, which is subtracted. */
static inline float half_value(uint16_t h) {
    uint32_t u = (uint32_t)(h & 0x7fff) << 13, e = u & 0x0f800000u, sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t normal = u + 0x38000000u, special = u | 0x7f800000u, small;
    float tiny = f32_bits(u + 0x38800000u) - 0x1p-14f;
    memcpy(&small, &tiny, 4);
    return f32_bits((e == 0 ? small : e == 0x0f800000u ? special : normal) | sign);
}

void dfcl_to_f32(enum dfcl_dtype dtype, const void *src, float *out, size_t count) {
    const unsigned char *p = src;
    switch (dtype) {
    case DFCL_F32:
        for (size_t i = 0; i < count; i++)
            out[i] = f32_bits(le32(p + 4 * i));
        break;
    case DFCL_F16:
        for (size_t i = 0; i < count; i++)
            out[i] = half_value(le16(p + 2 * i));
        break;
    case DFCL_BF16:
        for (size_t i = 0; i < count; i++)
            out[i] = f32_bits((uint32_t)le16(p + 2 * i) << 16);
        break;
    case DFCL_F64:
        for (size_t i = 0; i < count; i++)
            out[i] = (float)f64_bits(le64(p + 8 * i));
        break;
    case DFCL_I64:
        for (size_t i = 0; i < count; i++)
            out[i] = (float)(int64_t)le64(p + 8 * i);
        break;
    case DFCL_I32:
        for (size_t i = 0; i < count; i++)
            out[i] = (float)(int32_t)le32(p + 4 * i);
        break;
    case DFCL_U8:
        for (size_t i = 0; i < count; i++)
            out[i] = p[i];
        break;
    case DFCL_DTYPE_COUNT: break;
    }
}

/* And back, rounded to nearest even. Half: below the smallest normal, adding 0.5 lets the processor round at 2^-24. */
static inline uint16_t half_bits(uint32_t u) {
    uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu, tiny;
    float shifted = f32_bits(a) + 0.5f;
    memcpy(&tiny, &shifted, 4);
    uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13, nan = 0x7e00u | ((a >> 13) & 0x3ffu);
    uint32_t r = a < 0x38800000u ? tiny - 0x3f000000u : a < 0x477ff000u ? normal : a <= 0x7f800000u ? 0x7c00u : nan;
    return (uint16_t)(sign | r);
}
static inline uint16_t bf16_bits(uint32_t u) {
    uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 0x40u : r);
}
static inline void put_le16(unsigned char *p, uint16_t v) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(p, &v, 2);
#else
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
#endif
}

bool dfcl_from_f32(enum dfcl_dtype dtype, const float *src, void *out, size_t count) {
    unsigned char *p = out;
    if (dtype == DFCL_F32) {
        for (size_t i = 0; i < count; i++) {
            uint32_t u;
            memcpy(&u, src + i, 4);
            p[4 * i] = (unsigned char)u;
            p[4 * i + 1] = (unsigned char)(u >> 8);
            p[4 * i + 2] = (unsigned char)(u >> 16);
            p[4 * i + 3] = (unsigned char)(u >> 24);
        }
    } else if (dtype == DFCL_F16 || dtype == DFCL_BF16) {
        for (size_t i = 0; i < count; i++) {
            uint32_t u;
            memcpy(&u, src + i, 4);
            put_le16(p + 2 * i, dtype == DFCL_F16 ? half_bits(u) : bf16_bits(u));
        }
    } else
        return false;
    return true;
}

/* Walks the elements [first, first + n) of a view in runs that are contiguous in memory and hands each run over. */
struct walk {
    const struct dfcl_tensor_view *v;
    int ndim;
    int64_t shape[DFCL_MAX_DIMS], stride[DFCL_MAX_DIMS], at[DFCL_MAX_DIMS];
    uint64_t part_count, part, in_part; /* position: piece, element inside it */
    int64_t off;                        /* of the current element in its piece, strided */
};

static void walk_start(struct walk *w, const struct dfcl_tensor_view *v, uint64_t first) {
    memset(w, 0, sizeof *w);
    w->v = v;
    w->part_count = v->count / (uint64_t)v->parts;
    w->part = w->part_count ? first / w->part_count : 0;
    w->in_part = w->part_count ? first % w->part_count : 0;
    if (!v->strided)
        return;
    w->ndim = v->ndim;
    memcpy(w->shape, v->shape, sizeof w->shape);
    memcpy(w->stride, v->stride, sizeof w->stride);
    if (w->ndim)
        w->shape[0] /= v->parts;
    uint64_t rest = w->in_part;
    for (int i = w->ndim - 1; i >= 0; i--) {
        w->at[i] = (int64_t)(rest % (uint64_t)w->shape[i]);
        rest /= (uint64_t)w->shape[i];
        w->off += w->at[i] * w->stride[i];
    }
}

/* Next run of at most `max` elements; returns its length and where it starts. */
static uint64_t walk_next(struct walk *w, uint64_t max, size_t elem, const unsigned char **p) {
    uint64_t run = DFCL_MIN(max, w->part_count - w->in_part);
    if (!w->v->strided) {
        *p = w->v->part[w->part] + (size_t)w->in_part * elem;
    } else {
        int last = w->ndim - 1;
        *p = w->v->part[w->part] + (size_t)w->off * elem;
        if (last >= 0) {
            uint64_t left = (uint64_t)(w->shape[last] - w->at[last]);
            run = w->stride[last] == 1 ? DFCL_MIN(run, left) : 1;
            w->at[last] += (int64_t)run;
            w->off += (int64_t)run * w->stride[last];
            for (int i = last; i > 0 && w->at[i] == w->shape[i]; i--) {
                w->off -= w->at[i] * w->stride[i];
                w->at[i] = 0;
                w->at[i - 1]++;
                w->off += w->stride[i - 1];
            }
        }
    }
    w->in_part += run;
    if (w->in_part == w->part_count) {
        w->in_part = 0;
        w->part++;
        memset(w->at, 0, sizeof w->at);
        w->off = 0;
    }
    return run;
}

dfcl_status dfcl_view_read_f32(const struct dfcl_tensor_view *v, const char *where, uint64_t first, uint64_t n, float *out,
                               dfcl_error *err) {
    size_t elem = dfcl_dtype_size(v->dtype);
    if (!elem)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: expected numbers that convert to f32, found type %s", where, v->name,
                         v->type_name);
    if (first > v->count || n > v->count - first)
        return dfcl_fail(err, DFCL_FORMAT, "%s: tensor %s: elements %llu to %llu wanted, it has %llu", where, v->name,
                         (unsigned long long)first, (unsigned long long)(first + n), (unsigned long long)v->count);
    struct walk w;
    if (n)
        walk_start(&w, v, first);
    for (uint64_t done = 0; done < n;) {
        const unsigned char *p;
        uint64_t run = walk_next(&w, n - done, elem, &p);
        dfcl_to_f32(v->dtype, p, out + done, (size_t)run);
        done += run;
    }
    return DFCL_OK;
}

void dfcl_view_read_raw(const struct dfcl_tensor_view *v, void *out) {
    size_t elem = v->count ? (size_t)(v->bytes / v->count) : 0;
    struct walk w;
    if (v->count)
        walk_start(&w, v, 0);
    for (uint64_t done = 0; done < v->count;) {
        const unsigned char *p;
        uint64_t run = walk_next(&w, v->count - done, elem, &p);
        memcpy((unsigned char *)out + (size_t)done * elem, p, (size_t)run * elem);
        done += run;
    }
}
