#include "formats/npy.h"

#include <stdio.h>
#include <string.h>

/* ---- reading ---- */

static const struct {
    const char *descr;
    enum dfcl_dtype dtype;
} npy_types[] = {
    {"<f4", DFCL_F32}, {"<f2", DFCL_F16}, {"<f8", DFCL_F64}, {"<i8", DFCL_I64}, {"<i4", DFCL_I32}, {"|u1", DFCL_U8}, {"<u1", DFCL_U8},
};

/* The header is a Python dictionary literal; only the three entries NumPy writes are understood. */
struct cursor {
    const char *p, *end;
};

static void spaces(struct cursor *c) {
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'))
        c->p++;
}

static bool take(struct cursor *c, const char *word) {
    spaces(c);
    size_t n = strlen(word);
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, word, n))
        return false;
    c->p += n;
    return true;
}

static bool quoted(struct cursor *c, char *out, size_t size) {
    spaces(c);
    if (c->p == c->end || (*c->p != '\'' && *c->p != '"'))
        return false;
    char q = *c->p++;
    size_t n = 0;
    for (; c->p < c->end && *c->p != q; c->p++) {
        if (n + 1 == size || *c->p == '\\')
            return false;
        out[n++] = *c->p;
    }
    if (c->p == c->end)
        return false;
    c->p++;
    out[n] = 0;
    return true;
}

static bool whole(struct cursor *c, int64_t *out) {
    spaces(c);
    int64_t v = 0;
    const char *start = c->p;
    for (; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *c->p - '0', &v))
            return false;
    *out = v;
    return c->p > start;
}

static dfcl_status header(struct cursor *c, struct dfcl_tensor_view *v, bool *fortran, const char *path, dfcl_error *err) {
    bool have_descr = false, have_order = false, have_shape = false;
    if (!take(c, "{"))
        goto bad;
    while (!take(c, "}")) {
        char key[32], descr[20];
        if (!quoted(c, key, sizeof key) || !take(c, ":"))
            goto bad;
        if (!strcmp(key, "descr") && !have_descr) {
            have_descr = true;
            if (!quoted(c, descr, sizeof descr))
                return dfcl_fail(err, DFCL_FORMAT, "%s: NumPy array of records: expected plain numbers", path);
            v->dtype = DFCL_DTYPE_COUNT;
            for (size_t i = 0; i < DFCL_COUNT(npy_types); i++)
                if (!strcmp(descr, npy_types[i].descr))
                    v->dtype = npy_types[i].dtype;
            if (v->dtype == DFCL_DTYPE_COUNT)
                return dfcl_fail(err, DFCL_FORMAT, "%s: NumPy type %s: expected <f2, <f4, <f8, <i4, <i8 or |u1", path, descr);
            snprintf(v->type_name, sizeof v->type_name, "%s", dfcl_dtype_name(v->dtype));
        } else if (!strcmp(key, "fortran_order") && !have_order) {
            have_order = true;
            *fortran = take(c, "True");
            if (!*fortran && !take(c, "False"))
                goto bad;
        } else if (!strcmp(key, "shape") && !have_shape) {
            have_shape = true;
            if (!take(c, "("))
                goto bad;
            while (!take(c, ")")) {
                if (v->ndim == DFCL_MAX_DIMS)
                    return dfcl_fail(err, DFCL_FORMAT, "%s: NumPy array of more than %d dimensions", path, DFCL_MAX_DIMS);
                if (!whole(c, &v->shape[v->ndim]))
                    goto bad;
                v->ndim++;
                take(c, "L"); /* as Python 2 wrote long integers */
                if (!take(c, ",")) {
                    if (!take(c, ")"))
                        goto bad;
                    break;
                }
            }
        } else
            goto bad;
        if (!take(c, ",")) {
            if (!take(c, "}"))
                goto bad;
            break;
        }
    }
    spaces(c);
    if (have_descr && have_order && have_shape && c->p == c->end)
        return DFCL_OK;
bad:
    return dfcl_fail(err, DFCL_FORMAT, "%s: NumPy header not understood: expected descr, fortran_order and shape", path);
}

dfcl_status dfcl_npy_open_memory(struct dfcl_npy *npy, const void *data, size_t size, const char *path, dfcl_error *err) {
    memset(npy, 0, sizeof *npy);
    const unsigned char *p = data;
    struct dfcl_tensor_view *v = &npy->view;
    if (size < 10 || memcmp(p, "\x93NUMPY", 6) || p[6] < 1 || p[6] > 3)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a NumPy array (.npy, format 1 to 3), found other bytes", path);
    size_t head = p[6] == 1 ? 10 : 12, n = p[8] | (size_t)p[9] << 8;
    if (head == 12 && size >= 12)
        n |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (size < head || n > size - head || n > 1u << 20)
        return dfcl_fail(err, DFCL_FORMAT, "%s: cut short: a header of %zu bytes is announced, the file has %zu", path, n, size);
    struct cursor c = {(const char *)p + head, (const char *)p + head + n};
    bool fortran = false;
    dfcl_status s = header(&c, v, &fortran, path, err);
    if (s)
        return s;
    if (!dfcl_shape_count(v->shape, v->ndim, dfcl_dtype_size(v->dtype), &v->count, &v->bytes) || v->bytes != size - head - n) {
        char text[256];
        return dfcl_fail(err, DFCL_FORMAT, "%s: shape %s of %s does not fit the %zu bytes of data", path,
                         dfcl_shape_format(v->shape, v->ndim, text, sizeof text), v->type_name, size - head - n);
    }
    v->name = "array";
    v->parts = 1;
    v->part[0] = p + head + n;
    if (fortran && v->ndim > 1 && v->count) {
        v->strided = true;
        int64_t step = 1;
        for (int i = 0; i < v->ndim; i++) {
            v->stride[i] = step;
            step *= v->shape[i];
        }
    }
    return DFCL_OK;
}

dfcl_status dfcl_npy_open(struct dfcl_npy *npy, const char *path, dfcl_error *err) {
    memset(npy, 0, sizeof *npy);
    struct dfcl_map map;
    dfcl_status s = dfcl_map_open(&map, path, err);
    if (s)
        return s;
    s = dfcl_npy_open_memory(npy, map.data, (size_t)map.size, path, err);
    if (s)
        dfcl_map_close(&map);
    else
        npy->map = map;
    return s;
}

void dfcl_npy_close(struct dfcl_npy *npy) {
    dfcl_map_close(&npy->map);
    memset(npy, 0, sizeof *npy);
}
