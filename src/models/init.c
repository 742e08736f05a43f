/* A random base, written tensor by tensor. Initialisation follows the original's initialize_weights(): Xavier uniform on linear layers and on
 * the patch convolution taken as one, normal(0.02) on label table and timestep MLP, zeros on biases, adaLN and the output layer. */
#include "formats/safetensors.h"
#include "models/model.h"
#include "base/json.h"
#include "base/philox.h"

#include <math.h>
#include <string.h>

static bool has(const char *name, const char *part) {
    return strstr(name, part) != NULL;
}

static void uniform(uint64_t seed, uint32_t sample, double limit, float *out, size_t count) {
    float bound = (float)limit;
    for (size_t i = 0; i < count; i += 4) {
        uint32_t word[4], counter[4] = {(uint32_t)(i / 4), sample, 0, DFCL_STREAM_INIT};
        dfcl_philox(seed, counter, word);
        for (size_t k = 0; k < 4 && i + k < count; k++)
            out[i + k] = (2.0f * ((float)((word[k] >> 8) + 1) * 0x1p-24f) - 1.0f) * bound;
    }
}

void dfcl_init_values(const struct dfcl_param *p, const struct dfcl_init_params *params, float *out) {
    size_t n = (size_t)p->count;
    uint32_t sample = (uint32_t)p->index;
    bool normal = p->kind == DFCL_PARAM_TABLE || has(p->name, "t_embedder");
    if (params->scale > 0 || (normal && p->kind != DFCL_PARAM_VEC)) {
        float sd = params->scale > 0 ? params->scale : 0.02f;
        dfcl_normals(params->seed, DFCL_STREAM_INIT, 0, sample, out, n);
        for (size_t i = 0; i < n; i++)
            out[i] *= sd;
    } else if (!params->no_zeros && (p->kind == DFCL_PARAM_VEC || has(p->name, "adaLN") || has(p->name, "final_layer"))) {
        memset(out, 0, n * sizeof *out);
    } else if (p->kind == DFCL_PARAM_VEC) {
        uniform(params->seed, sample, 0.02, out, n);
    } else { /* Xavier: fan-in and fan-out */
        uniform(params->seed, sample, sqrt(6.0 / ((double)p->count / (double)p->shape[0] + (double)p->shape[0])), out, n);
    }
}

dfcl_status dfcl_init_check(const struct dfcl_init_params *params, struct dfcl_dit_config *cfg, enum dfcl_dtype *dtype, dfcl_error *err) {
    const struct dfcl_model_shape *sh = &params->shape;
    *cfg = (struct dfcl_dit_config){.depth = sh->depth, .hidden = sh->hidden, .heads = sh->heads, .patch = sh->patch, .input = sh->input,
                                    .width = sh->input_width, .channels = sh->channels, .classes = sh->classes, .pos_base = sh->positional_scale};
    dfcl_status s = dfcl_weight_dtype(params->dtype, dtype, err);
    if (s)
        return s;
    if (!(params->scale >= 0) || params->scale > 1e6f)
        return dfcl_fail(err, DFCL_USAGE, "init: scale %g, expected 0 or more", (double)params->scale);
    return dfcl_dit_config_check(cfg, err);
}

dfcl_status dfcl_model_init(const dfcl_context *ctx, const struct dfcl_init_params *params, const char *path, dfcl_error *err) {
    struct dfcl_dit_config cfg;
    enum dfcl_dtype dtype;
    struct dfcl_dit *dit = NULL;
    struct dfcl_st_writer *w = NULL;
    struct dfcl_param **p = NULL;
    float *buf = NULL;
    dfcl_status s = dfcl_init_check(params, &cfg, &dtype, err);
    if (s)
        return s;
    if ((s = dfcl_dit_create_table(&dit, ctx, &cfg, err)) || (s = dfcl_st_writer_create(&w, ctx, path, err)) ||
        (s = dfcl_base_declare(w, dit, &cfg, (const char *const *)params->class_names, dtype, err)))
        goto out;
    int n;
    int64_t largest = 1;
    if ((s = dfcl_base_order(dit, &p, &n, err)))
        goto out;
    for (int i = 0; i < n; i++)
        largest = DFCL_MAX(largest, p[i]->count);
    if (!(buf = dfcl_calloc(ctx, (size_t)largest, sizeof *buf, err))) {
        s = DFCL_NOMEM;
        goto out;
    }
    if ((s = dfcl_base_write_positions(w, ctx, &cfg, NULL, err)))
        goto out;
    for (int i = 0; i < n; i++) {
        dfcl_init_values(p[i], params, buf);
        if ((s = dfcl_st_writer_f32(w, buf, (size_t)p[i]->count, err)))
            goto out;
    }
    s = dfcl_st_writer_finish(&w, err);
out:
    dfcl_st_writer_destroy(&w);
    dfcl_free(ctx, buf);
    dfcl_free(ctx, p);
    dfcl_dit_destroy(&dit);
    return s;
}
