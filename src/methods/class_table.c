/* Rows of a rebuilt class table. The null row is the base's and comes last; random rows are N(0, 0.02) as in the original's
 * initialisation, each from its own Philox sample, so that a row depends on (seed, class id) only. */
#include "base/philox.h"
#include "formats/tensor_file.h"
#include "methods/method.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void random_row(uint64_t seed, int class_id, float *row, int d) {
    dfcl_normals(seed, DFCL_STREAM_INIT, 1, (uint32_t)class_id, row, (size_t)d);
    for (int i = 0; i < d; i++)
        row[i] *= 0.02f;
}

static int find_name(char *const *names, int n, const char *name) {
    for (int i = 0; names && i < n; i++)
        if (!strcmp(names[i], name))
            return i;
    return -1;
}

/* A safetensors file with the table of `classes` rows, or one more for its own null class. */
static dfcl_status from_file(const dfcl_context *ctx, const char *path, int classes, int d, float *rows, bool *null_row, dfcl_error *err) {
    struct dfcl_tensor_file *f;
    dfcl_status s = dfcl_tensor_file_open(&f, ctx, path, NULL, err);
    if (s)
        return s;
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, DFCL_CLASS_TABLE);
    if (!v || v->ndim != 2 || v->shape[1] != d || (v->shape[0] != classes && v->shape[0] != classes + 1)) {
        char got[96] = "absent";
        if (v)
            dfcl_shape_format(v->shape, v->ndim, got, sizeof got);
        s = dfcl_fail(err, DFCL_FORMAT, "%s: " DFCL_CLASS_TABLE " is %s, expected [%d, %d] or [%d, %d]", path, got, classes, d, classes + 1, d);
    } else {
        s = dfcl_tensor_file_read_f32(f, v, 0, v->count, rows, err);
        for (uint64_t i = 0; !s && i < v->count; i++)
            if (!isfinite(rows[i]))
                s = dfcl_fail(err, DFCL_NONFINITE, "%s: value %llu of " DFCL_CLASS_TABLE " is %g, expected a finite number", path,
                              (unsigned long long)i, (double)rows[i]);
        *null_row = v->shape[0] == classes + 1;
    }
    dfcl_tensor_file_close(&f);
    return s;
}

dfcl_status dfcl_class_table_init(struct dfcl_base *base, const char *class_init, uint64_t seed, int classes,
                                  const char *const *class_names, float *rows, dfcl_error *err) {
    int d = base->cfg.hidden, K = base->cfg.classes;
    size_t row = (size_t)d;
    float *table = NULL;
    bool null_row = false;
    if (!class_init)
        class_init = "match";
    dfcl_status s = dfcl_base_read(base, DFCL_CLASS_TABLE, &table, err);
    if (s)
        return s;
    const float *null = table + (size_t)K * row;
    if (!strcmp(class_init, "match") || !strcmp(class_init, "random")) {
        for (int i = 0; i < classes; i++) {
            int from = class_init[0] == 'm' && class_names && class_names[i] ? find_name(base->class_names, K, class_names[i]) : -1;
            if (from >= 0)
                memcpy(rows + (size_t)i * row, table + (size_t)from * row, row * sizeof *rows);
            else
                random_row(seed, i, rows + (size_t)i * row, d);
        }
    } else if (!strcmp(class_init, "null")) {
        for (int i = 0; i < classes; i++)
            memcpy(rows + (size_t)i * row, null, row * sizeof *rows);
    } else if (!strcmp(class_init, "mean")) {
        for (int k = 0; k < d; k++) {
            double sum = 0;
            for (int i = 0; i < K; i++)
                sum += table[(size_t)i * row + (size_t)k];
            float mean = K ? (float)(sum / K) : null[k];
            for (int i = 0; i < classes; i++)
                rows[(size_t)i * row + (size_t)k] = mean;
        }
    } else {
        s = from_file(base->ctx, class_init, classes, d, rows, &null_row, err);
        if (s == DFCL_IO)
            dfcl_error_prefix(err, "class rows: expected match, random, null, mean or a file");
    }
    if (!s && !null_row)
        memcpy(rows + (size_t)classes * row, null, row * sizeof *rows);
    dfcl_free(base->ctx, table);
    return s;
}
