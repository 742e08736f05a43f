/* Runs a case: places its tensors on a device, launches a variant, reads everything back, and judges it against the reference. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/clock.h"
#include "base/philox.h"
#include "ops/case.h"

/* Bytes in front of and behind each tensor that nothing may touch. */
#define GUARD 512
#define GUARD_BYTE 0xFE /* -1.7e38 in f32, as large in bf16: a read past the end shows in the result */
/* Outputs and scratch start as a NaN in every floating type, and as -1 in the others. */
#define POISON_BYTE 0xFF

/* ---- contents ---- */

static void fill_floats(const struct dfcl_case_tensor *t, int number, uint64_t seed, float *f) {
    if (t->fill == DFCL_FILL_NORMAL) {
        dfcl_normals(seed, DFCL_STREAM_TEST, (uint32_t)number, 0, f, (size_t)t->count);
        for (uint64_t i = 0; i < t->count; i++)
            f[i] = (float)(t->a + t->b * f[i]);
        return;
    }
    for (uint64_t i = 0; i < t->count; i++)
        f[i] = (float)(t->a + (t->b - t->a) * dfcl_uniform(seed, DFCL_STREAM_TEST, (uint32_t)number, 1, (uint32_t)i));
}

static void fill_ints(const struct dfcl_case_tensor *t, int number, uint64_t seed, void *out) {
    uint32_t span = (uint32_t)(t->b - t->a) + 1;
    for (uint64_t i = 0; i < t->count; i++) {
        int64_t v = (int64_t)t->a + dfcl_uniform_int(seed, DFCL_STREAM_TEST, (uint32_t)number, 2, (uint32_t)i, span);
        int32_t v32 = (int32_t)v;
        if (t->dtype == DFCL_I64)
            memcpy((char *)out + 8 * i, &v, 8);
        else if (t->dtype == DFCL_I32)
            memcpy((char *)out + 4 * i, &v32, 4);
        else
            ((unsigned char *)out)[i] = (unsigned char)v;
    }
}

dfcl_status dfcl_case_fill(const dfcl_context *ctx, const struct dfcl_case_tensor *t, int number, uint64_t seed, void *out,
                           dfcl_error *err) {
    if (t->fill == DFCL_FILL_DATA) {
        memcpy(out, t->data, (size_t)t->count * dfcl_dtype_size(t->dtype));
        return DFCL_OK;
    }
    if (t->fill == DFCL_FILL_INT) {
        if (t->dtype != DFCL_I32 && t->dtype != DFCL_I64 && t->dtype != DFCL_U8)
            return dfcl_fail(err, DFCL_ERROR, "%s: integers wanted in a tensor of %s", t->name, dfcl_dtype_name(t->dtype));
        fill_ints(t, number, seed, out);
        return DFCL_OK;
    }
    if (t->dtype != DFCL_F32 && t->dtype != DFCL_F16 && t->dtype != DFCL_BF16)
        return dfcl_fail(err, DFCL_ERROR, "%s: real numbers wanted in a tensor of %s", t->name, dfcl_dtype_name(t->dtype));
    if (t->dtype == DFCL_F32) {
        float *f = out;
        fill_floats(t, number, seed, f);
        for (uint64_t i = 0; t->bf16 && i < t->count; i++)
            f[i] = dfcl_bf16_to_f32(dfcl_f32_to_bf16(f[i]));
        return DFCL_OK;
    }
    float *f = dfcl_calloc(ctx, (size_t)t->count, sizeof *f, err);
    if (!f)
        return DFCL_NOMEM;
    fill_floats(t, number, seed, f);
    for (uint64_t i = 0; i < t->count; i++) {
        uint16_t h = t->dtype == DFCL_F16 ? dfcl_f32_to_f16(f[i]) : dfcl_f32_to_bf16(f[i]);
        memcpy((char *)out + 2 * i, &h, 2);
    }
    dfcl_free(ctx, f);
    return DFCL_OK;
}

/* ---- placing ---- */

/* A tensor on one device: `image` is what was written there, `back` what was read from there; both with the guards. */
struct placed {
    struct dfcl_mem *mem;
    uint64_t off, bytes, total;
    unsigned char *image, *back;
};

struct run {
    struct dfcl_device *dev;
    struct placed t[DFCL_CASE_MAX_TENSORS];
    int count;
    struct placed scratch;
    unsigned char params[DFCL_CASE_PARAMS];
};

static void run_finish(struct run *r) {
    for (int i = 0; i <= r->count; i++) {
        struct placed *p = i < r->count ? &r->t[i] : &r->scratch;
        dfcl_mem_destroy(r->dev, &p->mem);
        dfcl_free(r->dev->ctx, p->image);
        dfcl_free(r->dev->ctx, p->back);
    }
    dfcl_free(r->dev->ctx, r);
}

static dfcl_status place(struct run *r, struct placed *p, uint64_t bytes, uint64_t shift, const char *name, dfcl_error *err) {
    p->bytes = bytes;
    p->off = GUARD + shift;
    p->total = p->off + bytes + GUARD;
    p->image = dfcl_calloc(r->dev->ctx, (size_t)p->total, 1, err);
    p->back = p->image ? dfcl_calloc(r->dev->ctx, (size_t)p->total, 1, err) : NULL;
    if (!p->back)
        return DFCL_NOMEM;
    memset(p->image, GUARD_BYTE, (size_t)p->total);
    memset(p->image + p->off, POISON_BYTE, (size_t)bytes);
    return dfcl_mem_create(r->dev, p->total, name, &p->mem, err);
}

/* Offset of a tensor in its memory, bytes: every fourth one aligned to a cache line, the others anywhere the alignment allows. */
static uint64_t shift_of(const struct dfcl_case *c, int i, bool odd) {
    uint32_t align = DFCL_MAX(c->tensors[i].align ? c->tensors[i].align : 4, (uint32_t)dfcl_dtype_size(c->tensors[i].dtype));
    uint32_t k = dfcl_uniform_int(c->seed, DFCL_STREAM_TEST, 1000, 3, (uint32_t)i, 64);
    return odd && k % 4 ? (uint64_t)k * align : 0;
}

static dfcl_status run_create(struct run **out, const struct dfcl_case *c, struct dfcl_device *dev, const struct dfcl_variant *v,
                              bool odd, dfcl_error *err) {
    struct run *r = dfcl_calloc(dev->ctx, 1, sizeof *r, err);
    *out = r;
    if (!r)
        return DFCL_NOMEM;
    r->dev = dev;
    r->count = c->tensor_count;
    memcpy(r->params, c->params, sizeof r->params);
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < c->tensor_count && !s; i++) {
        const struct dfcl_case_tensor *t = &c->tensors[i];
        struct placed *p = &r->t[i];
        s = place(r, p, t->count * dfcl_dtype_size(t->dtype), shift_of(c, i, odd), t->name, err);
        if (!s && t->use != DFCL_OUT)
            s = dfcl_case_fill(dev->ctx, t, i, c->seed, p->image + p->off, err);
        struct dfcl_ref ref = {p->mem, p->off};
        memcpy(r->params + t->ref_offset, &ref, sizeof ref);
        if (t->also_offset)
            memcpy(r->params + t->also_offset, &ref, sizeof ref);
    }
    uint64_t need = !s && v->scratch ? v->scratch(dev, r->params) : 0;
    if (need)
        s = place(r, &r->scratch, need, 0, "scratch", err);
    return s;
}

static dfcl_status run_write(struct run *r, dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    for (int i = 0; i < r->count && !s; i++)
        s = dfcl_write(r->dev, (struct dfcl_ref){r->t[i].mem, 0}, r->t[i].image, r->t[i].total, err);
    if (!s && r->scratch.mem)
        s = dfcl_write(r->dev, (struct dfcl_ref){r->scratch.mem, 0}, r->scratch.image, r->scratch.total, err);
    return s;
}

static dfcl_status run_launch(struct run *r, const struct dfcl_op *op, const struct dfcl_variant *v, dfcl_error *err) {
    struct dfcl_exec ex = {.dev = r->dev, .scratch = {r->scratch.mem, r->scratch.off}};
    return dfcl_run_variant(&ex, op, v, r->params, err);
}

static dfcl_status run_read(struct run *r, dfcl_error *err) {
    dfcl_status s = dfcl_finish(r->dev, err);
    for (int i = 0; i < r->count && !s; i++)
        s = dfcl_read(r->dev, r->t[i].back, (struct dfcl_ref){r->t[i].mem, 0}, r->t[i].total, err);
    if (!s && r->scratch.mem)
        s = dfcl_read(r->dev, r->scratch.back, (struct dfcl_ref){r->scratch.mem, 0}, r->scratch.total, err);
    return s;
}

/* ---- judging ---- */

static void damaged(struct dfcl_case_result *out, const struct dfcl_case *c, const char *fmt, ...) DFCL_PRINTF(3, 4);
static void damaged(struct dfcl_case_result *out, const struct dfcl_case *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out->detail, sizeof out->detail, fmt, ap);
    va_end(ap);
    dfcl_append(out->detail, sizeof out->detail, "; %s, seed %llu", c->label, (unsigned long long)c->seed);
    out->worst = INFINITY;
}

/* Guards intact; inputs as they were. False and a text if not. */
static bool intact(const struct placed *p, bool input, const char *name, const struct dfcl_case *c, struct dfcl_case_result *out) {
    for (uint64_t i = 0; i < p->total; i++) {
        bool inside = i >= p->off && i < p->off + p->bytes;
        if (p->image[i] == p->back[i] || (inside && !input))
            continue;
        if (inside)
            damaged(out, c, "%s: input changed at byte %llu of %llu", name, (unsigned long long)(i - p->off), (unsigned long long)p->bytes);
        else
            damaged(out, c, "%s: byte %lld is outside the tensor's %llu bytes and changed", name, (long long)i - (long long)p->off,
                    (unsigned long long)p->bytes);
        return false;
    }
    return true;
}

static double value_of(enum dfcl_dtype dtype, const unsigned char *p, uint64_t i) {
    union {
        float f;
        double d;
        int64_t l;
        int32_t i;
        uint16_t h;
    } v;
    size_t size = dfcl_dtype_size(dtype);
    memcpy(&v, p + i * size, size);
    return dtype == DFCL_F32    ? (double)v.f
           : dtype == DFCL_F16  ? (double)dfcl_f16_to_f32(v.h)
           : dtype == DFCL_BF16 ? (double)dfcl_bf16_to_f32(v.h)
           : dtype == DFCL_F64  ? v.d
           : dtype == DFCL_I64  ? (double)v.l
           : dtype == DFCL_I32  ? (double)v.i
                                : (double)p[i];
}

static bool is_poison(const unsigned char *p, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (p[i] != POISON_BYTE)
            return false;
    return true;
}

/* Error of one value in units of the tolerance. */
static double error_of(const struct dfcl_case_tensor *t, const unsigned char *got, const unsigned char *want, uint64_t i, double top) {
    size_t size = dfcl_dtype_size(t->dtype);
    const unsigned char *g = got + i * size, *w = want + i * size;
    if (!memcmp(g, w, size))
        return 0;
    if (t->use == DFCL_OUT && (is_poison(g, size) || is_poison(w, size)))
        return INFINITY;
    double a = value_of(t->dtype, got, i), b = value_of(t->dtype, want, i);
    if (isnan(a) && isnan(b))
        return 0;
    if (t->tol <= 0 || isnan(a) || isnan(b) || isinf(a) || isinf(b))
        return INFINITY;
    double allowed = t->tol * (fabs(b) + top);
    return a == b ? 0 : allowed > 0 ? fabs(a - b) / allowed : INFINITY;
}

static double largest(const struct dfcl_case_tensor *t, const unsigned char *p) {
    double top = 0;
    for (uint64_t i = 0; i < t->count; i++) {
        double w = fabs(value_of(t->dtype, p, i));
        if (isfinite(w) && w > top)
            top = w;
    }
    return top;
}

static void compare(const struct dfcl_case_tensor *t, const unsigned char *got, const unsigned char *want, const unsigned char *before,
                    const struct dfcl_case *c, struct dfcl_case_result *out) {
    double top = largest(t, want);
    if (t->use == DFCL_INOUT) /* what was there is one of the terms, and may cancel: in a tensor of one element nothing else shows its size */
        top = DFCL_MAX(top, largest(t, before));
    for (uint64_t i = 0; i < t->count; i++) {
        double e = error_of(t, got, want, i, top);
        if (e <= out->worst)
            continue;
        out->worst = e;
        snprintf(out->detail, sizeof out->detail, "%s[%llu of %llu]: got %.9g, want %.9g, largest %.3g, %.3g times the tolerance %.3g; %s, seed %llu",
                 t->name, (unsigned long long)i, (unsigned long long)t->count, value_of(t->dtype, got, i), value_of(t->dtype, want, i), top,
                 e, t->tol, c->label, (unsigned long long)c->seed);
        if (isinf(e))
            return;
    }
}

static void swap_bytes(unsigned char **a, unsigned char **b) {
    unsigned char *t = *a;
    *a = *b;
    *b = t;
}

/* Second run with other garbage in the scratch: every byte of every tensor must come out the same. */
static dfcl_status run_again(struct run *r, const struct dfcl_case *c, const struct dfcl_variant *v, struct dfcl_case_result *out,
                             dfcl_error *err) {
    dfcl_status s = DFCL_OK;
    unsigned char *first[DFCL_CASE_MAX_TENSORS] = {0};
    for (int i = 0; i < r->count && !s; i++) {
        first[i] = dfcl_calloc(r->dev->ctx, (size_t)r->t[i].total, 1, err);
        s = first[i] ? DFCL_OK : DFCL_NOMEM;
        if (!s)
            swap_bytes(&first[i], &r->t[i].back);
    }
    if (r->scratch.mem)
        memset(r->scratch.image + r->scratch.off, 0x5A, (size_t)r->scratch.bytes);
    if (!s)
        s = run_write(r, err);
    if (!s)
        s = run_launch(r, c->op, v, err);
    if (!s)
        s = run_read(r, err);
    for (int i = 0; i < r->count && !s; i++)
        for (uint64_t b = 0; b < r->t[i].total; b++)
            if (first[i][b] != r->t[i].back[b]) {
                size_t size = dfcl_dtype_size(c->tensors[i].dtype);
                uint64_t e = (b - r->t[i].off) / size;
                damaged(out, c, "%s[%llu]: two runs differ: %.9g and %.9g", c->tensors[i].name, (unsigned long long)e,
                        value_of(c->tensors[i].dtype, first[i] + r->t[i].off, e), value_of(c->tensors[i].dtype, r->t[i].back + r->t[i].off, e));
                i = r->count;
                break;
            }
    for (int i = 0; i < r->count; i++)
        dfcl_free(r->dev->ctx, first[i]);
    return s;
}

dfcl_status dfcl_case_check(struct dfcl_case *c, struct dfcl_device *dev, const struct dfcl_variant *variant,
                            struct dfcl_device *host, struct dfcl_case_result *out, dfcl_error *err) {
    const struct dfcl_variant *ref = &c->op->variants[c->op->variant_count - 1];
    struct run *got = NULL, *want = NULL;
    memset(out, 0, sizeof *out);
    dfcl_status s = run_create(&want, c, host, ref, false, err);
    if (!s)
        s = run_create(&got, c, dev, variant, true, err);
    if (!s)
        s = run_write(want, err);
    if (!s)
        s = run_launch(want, c->op, ref, err);
    if (!s)
        s = run_read(want, err);
    if (!s)
        s = run_write(got, err);
    if (!s)
        s = run_launch(got, c->op, variant, err);
    if (!s)
        s = run_read(got, err);
    for (int i = 0; i < c->tensor_count && !s && !isinf(out->worst); i++) {
        const struct dfcl_case_tensor *t = &c->tensors[i];
        if (!intact(&want->t[i], t->use == DFCL_IN, t->name, c, out) || !intact(&got->t[i], t->use == DFCL_IN, t->name, c, out))
            break;
        if (t->use != DFCL_IN)
            compare(t, got->t[i].back + got->t[i].off, want->t[i].back + want->t[i].off,
                    want->t[i].image + want->t[i].off, c, out);
    }
    if (!s && !isinf(out->worst) && got->scratch.mem)
        intact(&got->scratch, false, "scratch", c, out);
    if (!s && !isinf(out->worst))
        s = run_again(got, c, variant, out, err);
    if (got)
        run_finish(got);
    if (want)
        run_finish(want);
    return s;
}

/* ---- timing ---- */

static dfcl_status time_launches(struct run *r, const struct dfcl_case *c, const struct dfcl_variant *v, int64_t n, double *seconds,
                                 dfcl_error *err) {
    double start = dfcl_now();
    dfcl_status s = DFCL_OK;
    for (int64_t i = 0; i < n && !s; i++)
        s = run_launch(r, c->op, v, err);
    if (!s)
        s = dfcl_finish(r->dev, err);
    *seconds = dfcl_now() - start;
    return s;
}

dfcl_status dfcl_case_time(struct dfcl_case *c, struct dfcl_device *dev, const struct dfcl_variant *variant, int repeat,
                           double min_seconds, double *seconds, dfcl_error *err) {
    struct run *r = NULL;
    dfcl_status s = run_create(&r, c, dev, variant, false, err);
    if (!s)
        s = run_write(r, err);
    double took = 0, slice = min_seconds / DFCL_MAX(repeat, 1);
    if (!s)
        s = time_launches(r, c, variant, 2, &took, err); /* builds the kernels, touches the memory */
    int64_t n = 1;
    while (!s) {
        s = time_launches(r, c, variant, n, &took, err);
        if (took >= 0.5 * slice || n >= (1 << 24))
            break;
        n *= 2;
    }
    for (int i = 0; i < repeat && !s; i++) {
        s = time_launches(r, c, variant, n, &took, err);
        seconds[i] = took / (double)n;
    }
    if (r)
        run_finish(r);
    return s;
}
