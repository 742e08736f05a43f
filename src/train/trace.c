#include "train/trace.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct search {
    struct dfcl_device *dev;
    char *where;
    int first, micro; /* samples of the pass */
    int sample;       /* the one looked for */
    struct dfcl_ref xt;
    int n;            /* values of a sample's input */
    bool input_seen;
};

/* Index of the first value of n that is not finite; n: none. */
static int64_t first_bad(const float *x, int64_t n) {
    int64_t i = 0;
    while (i < n && isfinite(x[i]))
        i++;
    return i;
}

static dfcl_status read_back(struct dfcl_device *dev, struct dfcl_ref ref, int64_t n, float **x, dfcl_error *err) {
    *x = dfcl_calloc(dev->ctx, (size_t)n, sizeof **x, err);
    return *x ? dfcl_read(dev, *x, ref, (uint64_t)n * sizeof **x, err) : DFCL_NOMEM;
}

/* ---- intermediates ---- */

/* The layer that makes a tap's tensor, in the names of the parameters. */
static void layer_of(const char *name, char *layer, size_t size) {
    static const char *const table[][2] = {{"x_patch", "x_embedder"},
                                           {"t_emb", "t_embedder"},
                                           {"y_emb", "y_embedder"},
                                           {"final_mod", "final_layer.adaLN_modulation"},
                                           {"final_linear", "final_layer.linear"},
                                           {".in", ""},
                                           {".adaLN", ".adaLN_modulation"},
                                           {".mod1", ".norm1"},
                                           {".qkv", ".attn.qkv"},
                                           {".attn_heads", ".attn"},
                                           {".attn_proj", ".attn.proj"},
                                           {".attn_out", ".attn"},
                                           {".x_mid", ""},
                                           {".mod2", ".norm2"},
                                           {".mlp_out", ".mlp"},
                                           {".out", ""}};
    int block, used = 0;
    const char *tail = sscanf(name, "block%d%n", &block, &used) == 1 ? name + used : name;
    for (size_t i = 0; i < DFCL_COUNT(table); i++)
        if (!strcmp(tail, table[i][0])) {
            if (used)
                snprintf(layer, size, "blocks.%d%s", block, table[i][1]);
            else
                snprintf(layer, size, "%s", table[i][1]);
            return;
        }
    snprintf(layer, size, "%s", name);
}

/* The sample's rows of a tensor of the pass; *value is the first that is not finite, else 0. */
static dfcl_status look_at(struct search *q, struct dfcl_ref ref, int rows, int cols, double *value, dfcl_error *err) {
    int64_t each = (int64_t)(rows / q->micro) * cols, from = each * (q->sample - q->first);
    float *x;
    dfcl_status s = read_back(q->dev, dfcl_ref_at(ref, (uint64_t)from * sizeof *x), each, &x, err);
    int64_t at = s ? each : first_bad(x, each);
    *value = at < each ? (double)x[at] : 0.0;
    dfcl_free(q->dev->ctx, x);
    return s;
}

/* What follows the first find is not looked at. The input is there when the first intermediate is. */
static dfcl_status look(void *user, const char *name, struct dfcl_ref ref, int rows, int cols, dfcl_error *err) {
    struct search *q = user;
    double value;
    dfcl_status s;
    char layer[96];
    if (!q->input_seen) {
        q->input_seen = true;
        if ((s = look_at(q, q->xt, q->micro, q->n, &value, err)) != DFCL_OK)
            return s;
        if (value != 0.0)
            snprintf(q->where, DFCL_TRACE_MAX, "noised input, sample %d: %g", q->sample, value);
    }
    if (q->where[0] || (s = look_at(q, ref, rows, cols, &value, err)) != DFCL_OK)
        return q->where[0] ? DFCL_OK : s;
    layer_of(name, layer, sizeof layer);
    if (value != 0.0)
        snprintf(q->where, DFCL_TRACE_MAX, "layer %s, tensor %s, sample %d: %g", layer, name, q->sample, value);
    return DFCL_OK;
}

/* Input, intermediates and output of the sample's pass. */
static dfcl_status trace_forward(struct search *q, struct dfcl_stepper *st, struct dfcl_dit *dit, const struct dfcl_step_batch *batch, dfcl_error *err) {
    const struct dfcl_dit_config *cfg = dfcl_dit_get_config(dit);
    struct dfcl_ref out, dout;
    q->n = (int)dfcl_dit_values(cfg);
    dfcl_step_tensors(st, &q->xt, &out, &dout);
    dfcl_dit_set_tap(dit, look, q);
    dfcl_status s = dfcl_step_forward(st, batch, q->first, err);
    dfcl_dit_set_tap(dit, NULL, NULL);
    return s;
}

/* ---- flat arrays ---- */

/* In the model's order or, as backward goes, against it. */
static dfcl_status trace_params(struct search *q, struct dfcl_dit *dit, struct dfcl_ref array, const char *what, bool backward, dfcl_error *err) {
    int count;
    const struct dfcl_param *p = dfcl_dit_params(dit, &count);
    for (int k = 0; k < count && !q->where[0]; k++) {
        int i = backward ? count - 1 - k : k;
        float *x;
        if (!p[i].trained)
            continue;
        dfcl_status s = read_back(q->dev, dfcl_ref_at(array, (uint64_t)p[i].trained_off * sizeof *x), p[i].count, &x, err);
        int64_t at = s ? p[i].count : first_bad(x, p[i].count);
        if (at < p[i].count)
            snprintf(q->where, DFCL_TRACE_MAX, "%s %s: %g", what, p[i].name, (double)x[at]);
        dfcl_free(q->dev->ctx, x);
        if (s)
            return s;
    }
    return DFCL_OK;
}

dfcl_status dfcl_trace_non_finite(struct dfcl_stepper *st, struct dfcl_dit *dit, const struct dfcl_step_batch *batch, int count,
                                  char where[DFCL_TRACE_MAX], dfcl_error *err) {
    struct search q = {.dev = dfcl_dit_device(dit), .where = where, .micro = dfcl_stepper_micro(st)};
    const float *mse, *vb;
    dfcl_step_losses(st, &mse, &vb);
    where[0] = 0;
    dfcl_status s = trace_params(&q, dit, dfcl_stepper_array(st, DFCL_STEP_VALUES), "parameter", false, err);
    while (q.sample < count && isfinite(mse[q.sample]) && isfinite(vb[q.sample]))
        q.sample++;
    if (!s && !where[0] && q.sample < count) {
        q.first = q.sample / q.micro * q.micro;
        s = trace_forward(&q, st, dit, batch, err);
        if (s == DFCL_NOMEM) { /* for the tap's tensor */
            dfcl_error_clear(err);
            s = DFCL_OK;
        }
        if (!s)
            s = dfcl_stepper_replan(st, err); /* without the tap */
        if (!s && !where[0])
            snprintf(where, DFCL_TRACE_MAX, "%s of sample %d: %g", isfinite(mse[q.sample]) ? "variational bound" : "squared error", q.sample,
                     (double)(isfinite(mse[q.sample]) ? vb[q.sample] : mse[q.sample]));
    }
    if (!s && !where[0])
        s = trace_params(&q, dit, dfcl_stepper_array(st, DFCL_STEP_GRADS), "gradient of", true, err);
    if (!s && !where[0])
        snprintf(where, DFCL_TRACE_MAX, "the gradient's norm, of finite gradients");
    return s;
}
