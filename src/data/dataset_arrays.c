/* Training data in the caller's memory: struct dfcl_train_arrays. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "data/dataset_internal.h"

#define MOST_CLASSES 100000

/* The arrays of floats that there are. */
struct part {
    const char *name;
    const float *values;
};
static int float_parts(const struct dfcl_train_arrays *a, struct part out[4]) {
    int n = 0;
    if (a->type != DFCL_ARRAY_PICTURES_U8)
        out[n++] = (struct part){"data", a->data};
    if (a->type == DFCL_ARRAY_MOMENTS)
        out[n++] = (struct part){"logvar", a->logvar};
    if (a->flip_mean) {
        out[n++] = (struct part){"flip_mean", a->flip_mean};
        out[n++] = (struct part){"flip_logvar", a->flip_logvar};
    }
    return n;
}

static dfcl_status check_shape(const struct dfcl_dataset *ds, dfcl_error *err) {
    const struct dfcl_train_arrays *a = &ds->arrays;
    const char *what = ds->opt.path;
    bool moments = a->type == DFCL_ARRAY_MOMENTS;
    if ((unsigned)a->type > DFCL_ARRAY_MOMENTS)
        return dfcl_fail(err, DFCL_USAGE, "%s: expected one of the types of dfcl_array_type, found %d", what, (int)a->type);
    if (!a->data || (moments && !a->logvar))
        return dfcl_fail(err, DFCL_USAGE, "%s: expected %s, found NULL", what, a->data ? "log-variances" : "data");
    if (!moments && (a->logvar || a->flip_mean || a->flip_logvar || a->scale != 0 || a->shift != 0))
        return dfcl_fail(err, DFCL_USAGE, "%s: logvar, flip_mean, flip_logvar, scale and shift are for moments only", what);
    if (!a->flip_mean != !a->flip_logvar)
        return dfcl_fail(err, DFCL_USAGE, "%s: expected both flip_mean and flip_logvar, or neither", what);
    if (!(a->scale >= 0) || !isfinite(a->scale) || !isfinite(a->shift))
        return dfcl_fail(err, DFCL_USAGE, "%s: expected a scale above 0 and a finite shift, found %g and %g", what, a->scale, a->shift);
    const int width = dfcl_width(a->width, a->side);
    if (a->channels != ds->opt.channels || a->side != ds->opt.side || width != ds->opt.width)
        return dfcl_fail(err, DFCL_USAGE, "%s: the model works on %d x %d x %d, found samples of %d x %d x %d", what, ds->opt.channels, ds->opt.side,
                         ds->opt.width, a->channels, a->side, width);
    if (a->class_count < 0 || a->class_count > MOST_CLASSES || (a->class_names && !a->class_count))
        return dfcl_fail(err, DFCL_USAGE, "%s: expected %d to %d classes, found %d", what, a->class_names ? 1 : 0, MOST_CLASSES, a->class_count);
    return DFCL_OK;
}

static dfcl_status check_values(const struct dfcl_dataset *ds, dfcl_error *err) {
    const struct dfcl_train_arrays *a = &ds->arrays;
    const bool pictures = a->type == DFCL_ARRAY_PICTURES_F32;
    struct part parts[4];
    for (int k = float_parts(a, parts); k-- > 0;)
        for (int64_t i = 0; i < a->count; i++) {
            const float *v = parts[k].values + (size_t)i * ds->values;
            for (size_t j = 0; j < ds->values; j++) {
                if (!isfinite(v[j]))
                    return dfcl_fail(err, DFCL_NONFINITE, "%s: value %zu of sample %" PRId64 " in %s is %g", ds->opt.path, j, i, parts[k].name, (double)v[j]);
                if (pictures && !(v[j] >= -1.0f && v[j] <= 1.0f))
                    return dfcl_fail(err, DFCL_USAGE, "%s: expected pictures in [-1, 1], value %zu of sample %" PRId64 " is %g", ds->opt.path, j, i, (double)v[j]);
            }
        }
    return DFCL_OK;
}

static bool is_utf8(const char *s) {
    size_t n = strlen(s);
    for (int k; n; s += k, n -= (size_t)k)
        if (!(k = dfcl_utf8_len((const unsigned char *)s, n)))
            return false;
    return true;
}

static dfcl_status add_classes(struct dfcl_dataset *ds, int top, dfcl_error *err) {
    const struct dfcl_train_arrays *a = &ds->arrays;
    int classes = a->class_count ? a->class_count : top + 1;
    dfcl_status s = DFCL_OK;
    for (int i = 0; !s && i < classes; i++) {
        char number[16];
        const char *name = a->class_names ? a->class_names[i] : number;
        snprintf(number, sizeof number, "%d", i);
        if (!name || !name[0] || dfcl_has_control(name) || !is_utf8(name))
            return dfcl_fail(err, DFCL_USAGE, "%s: name of class %d: expected UTF-8 without control characters, found \"%s\"", ds->opt.path, i, name ? name : "");
        s = dfcl_list_add(ds->ctx, &ds->scan.classes, name, err);
    }
    return s;
}

dfcl_status dfcl_dataset_find_arrays(struct dfcl_dataset *ds, dfcl_error *err) {
    struct dfcl_train_arrays *a = &ds->arrays;
    int top = 0;
    dfcl_status s = check_shape(ds, err);
    if (!s)
        s = check_values(ds, err);
    if (s)
        return s;
    if (!(ds->scan.items = dfcl_calloc(ds->ctx, (size_t)a->count, sizeof *ds->scan.items, err)))
        return DFCL_NOMEM;
    for (size_t i = 0; i < (size_t)a->count; i++) {
        int label = a->labels ? a->labels[i] : 0;
        if (label < 0 || label >= (a->class_count ? a->class_count : MOST_CLASSES))
            return dfcl_fail(err, DFCL_USAGE, "%s: label of sample %zu: expected 0 to %d, found %d", ds->opt.path, i,
                             (a->class_count ? a->class_count : MOST_CLASSES) - 1, label);
        ds->scan.items[i].label = label;
        top = DFCL_MAX(top, label);
    }
    ds->scan.count = ds->scan.cap = (size_t)a->count;
    ds->scan.latent = a->type == DFCL_ARRAY_LATENTS || a->type == DFCL_ARRAY_MOMENTS;
    ds->layout = a->type == DFCL_ARRAY_PICTURES_U8 ? DFCL_LAYOUT_BYTES : a->type == DFCL_ARRAY_MOMENTS ? DFCL_LAYOUT_MOMENTS : DFCL_LAYOUT_FLOATS;
    if (a->type == DFCL_ARRAY_MOMENTS)
        ds->moments = (struct dfcl_latents_settings){.scale = a->scale > 0 ? a->scale : 0.18215, .shift = a->shift, .channels = a->channels,
                                                     .side = a->side, .side_width = ds->opt.width, .flips = a->flip_mean != NULL};
    s = add_classes(ds, top, err);
    a->labels = NULL; /* copied: the caller may let go of them */
    a->class_names = NULL;
    return s;
}

dfcl_status dfcl_dataset_hash_arrays(const struct dfcl_dataset *ds, struct dfcl_sha256 *h, dfcl_error *err) {
    static const char *const types[] = {"u8", "f32", "latents", "moments"};
    const struct dfcl_train_arrays *a = &ds->arrays;
    char line[160], side[DFCL_EXTENT_TEXT];
    struct part parts[4];
    int n = float_parts(a, parts);
    size_t bytes = (size_t)a->count * ds->sample_bytes; /* checked when the set was opened */
    snprintf(line, sizeof line, "memory %s %d %s %d\n", types[a->type], a->channels, dfcl_extent_format(a->side, a->width, side), ds->classes);
    dfcl_status s = dfcl_sha256_update(h, line, strlen(line), err);
    if (!s && a->type == DFCL_ARRAY_MOMENTS) {
        snprintf(line, sizeof line, "%.17g %.17g\n", ds->moments.scale, ds->moments.shift);
        s = dfcl_sha256_update(h, line, strlen(line), err);
    }
    for (int i = 0; !s && i < ds->classes; i++)
        s = dfcl_sha256_update(h, ds->names[i], strlen(ds->names[i]) + 1, err);
    for (size_t i = 0; !s && i < ds->scan.count; i++) {
        snprintf(line, sizeof line, "\n%d", ds->scan.items[i].label);
        s = dfcl_sha256_update(h, line, strlen(line), err);
    }
    if (!s && a->type == DFCL_ARRAY_PICTURES_U8)
        s = dfcl_sha256_update(h, a->data, bytes, err);
    for (int k = 0; !s && k < n; k++)
        s = dfcl_sha256_update(h, parts[k].values, bytes, err);
    return s;
}
