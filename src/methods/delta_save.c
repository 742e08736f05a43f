/* Writing what was trained, and putting it back. */
#include "formats/safetensors.h"
#include "formats/tensor_file.h"
#include "methods/delta.h"

#include <stdio.h>
#include <string.h>

static dfcl_status describe(dfcl_model *m, struct dfcl_st_writer *w, const char *training_json, dfcl_error *err) {
    const struct dfcl_dit_config *c = dfcl_dit_get_config(m->dit);
    const struct dfcl_domain *d = &m->domains[0];
    char input[DFCL_EXTENT_TEXT], scale[32];
    dfcl_extent_format(c->input, dfcl_dit_width(c), input);
    snprintf(scale, sizeof scale, "%.17g", c->pos_base);
    const struct {
        const char *key, *value;
    } meta[] = {{"format", DFCL_DELTA_FORMAT},       {"method", m->method},        {"gamma_sites", m->gamma_sites},
                {"gamma_blocks", m->gamma_blocks},   {"base_hash", m->hash},       {"model", m->shape.name},
                {"input", input},                    {"positional_scale", scale},  {"class_table", m->table_rebuilt ? "own" : "base"},
                {"training", training_json ? training_json : ""}};
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < DFCL_COUNT(meta) && !s; i++)
        if (meta[i].value[0])
            s = dfcl_st_writer_meta(w, meta[i].key, meta[i].value, err);
    if (!s)
        s = dfcl_latent_rgb_write(w, m->ctx, &m->rgb, err);
    if (!s && d->names) {
        char *json;
        if (!(s = dfcl_names_json(m->ctx, d->names, d->classes, &json, err)))
            s = dfcl_st_writer_meta(w, "class_names", json, err);
        dfcl_free(m->ctx, json);
    }
    return s;
}

dfcl_status dfcl_delta_save(dfcl_model *m, const char *path, struct dfcl_ref values, const char *training_json, dfcl_error *err) {
    struct dfcl_st_writer *w = NULL;
    struct dfcl_ref P;
    float *buf = NULL;
    int n;
    int64_t total = dfcl_dit_trained(m->dit, &P, NULL), most = 1;
    const struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    if (!m->method[0] || !total)
        return dfcl_fail(err, DFCL_ERROR, "%s: the model was not opened for training", path);
    for (int i = 0; i < n; i++) {
        if (p[i].trained && p[i].kind == DFCL_PARAM_WEIGHT)
            return dfcl_fail(err, DFCL_USAGE, "%s: method %s trains matrices: its result is a base, not a delta", path, m->method);
        if (p[i].trained)
            most = DFCL_MAX(most, p[i].count);
    }
    if (!values.mem)
        values = P;
    if (!(buf = dfcl_calloc(m->ctx, (size_t)most, sizeof *buf, err)))
        return DFCL_NOMEM;
    dfcl_status s = dfcl_st_writer_create(&w, m->ctx, path, err);
    if (!s)
        s = describe(m, w, training_json, err);
    for (int i = 0; i < n && !s; i++)
        if (p[i].trained)
            s = dfcl_st_writer_tensor(w, p[i].name, DFCL_F32, p[i].shape, p[i].ndim, err);
    for (int i = 0; i < n && !s; i++)
        if (p[i].trained &&
            !(s = dfcl_read(m->dev, buf, dfcl_ref_at(values, (uint64_t)p[i].trained_off * 4), (uint64_t)p[i].count * 4, err)))
            s = dfcl_st_writer_f32(w, buf, (size_t)p[i].count, err);
    if (!s)
        s = dfcl_st_writer_finish(&w, err);
    dfcl_st_writer_destroy(&w);
    dfcl_free(m->ctx, buf);
    return s;
}

dfcl_status dfcl_delta_restore(dfcl_model *m, const char *path, dfcl_error *err) {
    struct dfcl_delta *d;
    int n;
    size_t trained = 0;
    dfcl_status s = dfcl_delta_open(&d, m->ctx, path, err);
    if (s)
        return s;
    struct dfcl_param *p = dfcl_dit_params(m->dit, &n);
    if ((s = dfcl_delta_check_base(d, m->hash, m->base->path, false, err)) || (s = dfcl_delta_check_shapes(d, m->dit, err)))
        goto out;
    for (int i = 0; i < n && !s; i++) {
        if (!p[i].trained)
            continue;
        trained++;
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(d->file, p[i].name);
        float *values = NULL;
        if (!v || (int64_t)v->count != p[i].count)
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s %s, but it is trained here", path, p[i].name, v ? "has another size" : "is missing");
        else if (!(s = dfcl_delta_read(d, p[i].name, &values, err)))
            s = dfcl_dit_set(m->dit, &p[i], 0, values, err);
        dfcl_free(m->ctx, values);
    }
    if (!s && trained != dfcl_tensor_file_count(d->file))
        s = dfcl_fail(err, DFCL_FORMAT, "%s: %zu tensors, expected the %zu that are trained here", path,
                      dfcl_tensor_file_count(d->file), trained);
out:
    dfcl_delta_close(&d);
    return s;
}
