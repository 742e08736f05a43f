/* A base checkpoint on disk: what it is, and its values one tensor at a time. */
#include "base/sha256.h"
#include "formats/tensor_file.h"
#include "models/model.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- shape ---- */

static const struct dfcl_tensor_view *need(const struct dfcl_base *b, const char *name, int ndim, dfcl_status *s, dfcl_error *err) {
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(b->file, name);
    if (!v)
        *s = dfcl_fail(err, DFCL_FORMAT, "%s: no tensor %s: not a DiT checkpoint, or one with other names", b->path, name);
    else if (v->ndim != ndim)
        *s = dfcl_fail(err, DFCL_FORMAT, "%s: %s has %d dimensions, expected %d", b->path, name, v->ndim, ndim);
    for (int i = 0; !*s && v && i < ndim; i++)
        if (v->shape[i] < 1 || v->shape[i] > 1 << 24)
            *s = dfcl_fail(err, DFCL_FORMAT, "%s: %s: dimension %d is %lld", b->path, name, i, (long long)v->shape[i]);
    return *s ? NULL : v;
}

/* A whole number that the file, its training arguments or its config.json gives; 0: none. */
static int number(const struct dfcl_base *b, const char *key) {
    double v;
    return dfcl_tensor_file_number(b->file, key, &v) && v >= 1 && v < 1 << 24 && v == (double)(int)v ? (int)v : 0;
}

/* A config.json beside a file may be another model's. */
static bool contradicts(const struct dfcl_base *b, const char *key, int value) {
    int v = number(b, key);
    return v && v != value;
}

/* The number of heads shows in no shape: asked of the caller, of the file and its companions, then of the named sizes. */
static dfcl_status find_heads(struct dfcl_base *b, const struct dfcl_model_params *params, dfcl_error *err) {
    static const char *const keys[] = {"heads", "num_attention_heads", "num_heads"};
    static const char *const sizes[] = {"DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2"};
    struct dfcl_dit_config *c = &b->cfg, named = {0};
    bool foreign = contradicts(b, "depth", c->depth) || contradicts(b, "hidden", c->hidden) || contradicts(b, "hidden_size", c->hidden) ||
                   contradicts(b, "num_layers", c->depth);
    c->heads = params->heads;
    for (size_t i = 0; i < DFCL_COUNT(keys) && !c->heads && !foreign; i++)
        c->heads = number(b, keys[i]);
    for (size_t i = 0; i < DFCL_COUNT(sizes) && !c->heads; i++)
        if (dfcl_dit_named(sizes[i], &named) && named.depth == c->depth && named.hidden == c->hidden)
            c->heads = named.heads;
    if (!c->heads)
        return dfcl_fail(err, DFCL_USAGE,
                         "%s: depth %d and width %d are no named size and the file does not say how many attention heads it has: "
                         "give their number (--heads)",
                         b->path, c->depth, c->hidden);
    if (c->heads < 0 || c->hidden % c->heads)
        return dfcl_fail(err, params->heads ? DFCL_USAGE : DFCL_FORMAT, "%s: %d heads do not divide the width %d", b->path, c->heads,
                         c->hidden);
    return DFCL_OK;
}

static dfcl_status find_input(struct dfcl_base *b, const struct dfcl_model_params *params, dfcl_error *err) {
    struct dfcl_dit_config *c = &b->cfg;
    const struct dfcl_tensor_view *pos = dfcl_tensor_file_find(b->file, "pos_embed");
    if (pos) {
        const char *meta = dfcl_tensor_file_meta(b->file, "input");
        int h, w;
        for (int n = 1; pos->ndim == 3 && n <= 4096 && (int64_t)n * n <= pos->shape[1]; n++)
            if ((int64_t)n * n == pos->shape[1])
                b->file_input = b->file_width = n * c->patch;
        if (pos->ndim == 3 && meta && dfcl_extent_parse(meta, 65536, &h, &w) && h != w) { /* no square, whatever the number of tokens */
            bool fits = h % c->patch == 0 && w % c->patch == 0 && (int64_t)(h / c->patch) * (w / c->patch) == pos->shape[1];
            b->file_input = fits ? h : 0;
            b->file_width = w;
        }
        if (pos->ndim != 3 || pos->shape[0] != 1 || pos->shape[2] != c->hidden || !b->file_input) {
            char got[96];
            return dfcl_fail(err, DFCL_FORMAT, "%s: pos_embed is %s, expected [1, n*n, %d]%s%.40s%s", b->path,
                             dfcl_shape_format(pos->shape, pos->ndim, got, sizeof got), c->hidden, meta ? " or as the file says, an input of \"" : "",
                             meta ? meta : "", meta ? "\"" : "");
        }
    } else {
        const char *meta = dfcl_tensor_file_meta(b->file, "input");
        if (!meta || !dfcl_extent_parse(meta, 65536, &b->file_input, &b->file_width)) {
            b->file_input = number(b, "input") ? number(b, "input") : number(b, "sample_size");
            b->file_width = b->file_input;
        }
    }
    const char *scale = dfcl_tensor_file_meta(b->file, "positional_scale");
    if (scale && !dfcl_parse_double(scale, &c->pos_base))
        return dfcl_fail(err, DFCL_FORMAT, "%s: positional_scale \"%.40s\": expected a number", b->path, scale);
    if (!(params->pos_step >= 0 && params->pos_step <= 4096) || !(params->positional_scale >= 0) || (params->pos_step > 0 && params->positional_scale > 0))
        return dfcl_fail(err, DFCL_USAGE, "%s: positions %g apart on a grid of %g: expected one of them, not negative", b->path, params->pos_step,
                         params->positional_scale);
    if (params->input <= 0 && params->input_width > 0)
        return dfcl_fail(err, DFCL_USAGE, "%s: a width of %d, expected a height beside it", b->path, params->input_width);
    const double own = c->pos_base;
    c->input = params->input > 0 ? params->input : b->file_input;
    c->width = params->input <= 0 ? b->file_width : params->input_width > 0 ? params->input_width : params->input;
    for (int k = 0; params->pos_step > 0 && params->input <= 0 && k < 2; k++) {
        int *of = k ? &c->width : &c->input, from = k ? b->file_width : b->file_input;
        double side = from / params->pos_step;
        *of = side <= 65536 ? (int)lround(side) : 0;
        if (from && (*of < 1 || *of % c->patch || fabs(side - *of) > 1e-6 * side))
            return dfcl_fail(err, DFCL_USAGE, "%s: positions %g apart make a side of %g from the file's %d, expected a multiple of the patch, %d: give the side too",
                             b->path, params->pos_step, side, from, c->patch);
    }
    if (!c->input)
        return dfcl_fail(err, DFCL_USAGE, "%s: the file has no pos_embed and does not say the side of its latents: give it", b->path);
    for (int k = 0; k < 2; k++)
        if ((k ? c->width : c->input) % c->patch)
            return dfcl_fail(err, params->input > 0 ? DFCL_USAGE : DFCL_FORMAT, "%s: input side %d is not a multiple of patch %d", b->path,
                             k ? c->width : c->input, c->patch);
    const bool same = c->input == b->file_input && c->width == b->file_width;
    const int grid = dfcl_dit_grid(c);
    /* Another resolution keeps the positions of the pre-trained grid and puts new ones in between (DiffFit, section 3.4). */
    if (b->file_input && !same && !(c->pos_base > 0))
        c->pos_base = (double)(DFCL_MAX(b->file_input, b->file_width) / c->patch);
    if (params->positional_scale > 0)
        c->pos_base = params->positional_scale;
    if (params->pos_step > 0) { /* a step of 1 is no scaling; one that was divided out is whole again */
        double to = params->pos_step * grid;
        to = fabs(to - round(to)) < 1e-9 * to ? round(to) : to;
        c->pos_base = to;
    }
    if (c->pos_base == grid && !(own == grid && same))
        c->pos_base = 0;
    b->own_positions = same && c->pos_base == own;
    return DFCL_OK;
}

static dfcl_status find_shape(struct dfcl_base *b, const struct dfcl_model_params *params, dfcl_error *err) {
    struct dfcl_dit_config *c = &b->cfg;
    dfcl_status s = DFCL_OK;
    const struct dfcl_tensor_view *v = need(b, "x_embedder.proj.weight", 4, &s, err);
    if (s)
        return s;
    if (v->shape[2] != v->shape[3])
        return dfcl_fail(err, DFCL_FORMAT, "%s: x_embedder.proj.weight has a patch of %lld x %lld, expected a square", b->path,
                         (long long)v->shape[2], (long long)v->shape[3]);
    c->hidden = (int)v->shape[0];
    c->channels = (int)v->shape[1];
    c->patch = (int)v->shape[2];
    v = need(b, DFCL_CLASS_TABLE, 2, &s, err);
    if (s)
        return s;
    c->classes = (int)v->shape[0] - 1;
    for (c->depth = 0; c->depth <= 1024; c->depth++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.attn.qkv.weight", c->depth);
        if (!dfcl_tensor_file_find(b->file, name))
            break;
    }
    if (!c->depth)
        return dfcl_fail(err, DFCL_FORMAT, "%s: no tensor blocks.0.attn.qkv.weight: not a DiT checkpoint", b->path);
    if ((s = find_heads(b, params, err)) || (s = find_input(b, params, err)))
        return s;
    dfcl_error why = {0};
    if ((s = dfcl_dit_config_check(c, &why)))
        return dfcl_fail(err, s == DFCL_USAGE ? DFCL_FORMAT : s, "%s: %s", b->path, why.msg);
    return DFCL_OK;
}

static dfcl_status check_tensors(struct dfcl_base *b, dfcl_error *err) {
    int n;
    struct dfcl_param *p = dfcl_dit_params(b->table, &n);
    for (int i = 0; i < n; i++) {
        dfcl_status s = DFCL_OK;
        if (p[i].gamma && !dfcl_tensor_file_find(b->file, p[i].name))
            continue;
        const struct dfcl_tensor_view *v = need(b, p[i].name, p[i].ndim, &s, err);
        if (s)
            return s;
        if (memcmp(v->shape, p[i].shape, (size_t)p[i].ndim * sizeof v->shape[0])) {
            char want[96], got[96];
            return dfcl_fail(err, DFCL_FORMAT, "%s: %s is %s, expected %s", b->path, p[i].name,
                             dfcl_shape_format(v->shape, v->ndim, got, sizeof got),
                             dfcl_shape_format(p[i].shape, p[i].ndim, want, sizeof want));
        }
        b->gammas = b->gammas || p[i].gamma;
    }
    return DFCL_OK;
}

static dfcl_status check_finite(const struct dfcl_base *b, const char *name, const float *values, uint64_t count, dfcl_error *err) {
    uint32_t bad = 0;
    for (uint64_t i = 0; i < count; i++) { /* without a branch, to become vector code */
        uint32_t u;
        memcpy(&u, values + i, 4);
        bad |= (u & 0x7f800000u) == 0x7f800000u;
    }
    for (uint64_t i = 0; bad && i < count; i++)
        if (!isfinite(values[i]))
            return dfcl_fail(err, DFCL_NONFINITE, "%s: value %llu of %s is %g, expected a finite number", b->path, (unsigned long long)i, name,
                             (double)values[i]);
    return DFCL_OK;
}

/* Stored positions are used as they are at the file's own resolution: a 16-bit file holds them rounded, as its model was evaluated. */
static dfcl_status read_positions(struct dfcl_base *b, dfcl_error *err) {
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(b->file, "pos_embed");
    if (!v || !b->own_positions)
        return DFCL_OK;
    if (!(b->positions = dfcl_calloc(b->ctx, (size_t)v->count, sizeof *b->positions, err)))
        return DFCL_NOMEM;
    dfcl_status s = dfcl_tensor_file_read_f32(b->file, v, 0, v->count, b->positions, err);
    return s ? s : check_finite(b, "pos_embed", b->positions, v->count, err);
}

/* ---- a random base ---- */

/* What a value becomes in a file of that type. */
static void round_values(enum dfcl_dtype dtype, float *v, size_t n) {
    unsigned char part[4096];
    const size_t most = sizeof part / sizeof(float);
    for (size_t i = 0; dtype != DFCL_F32 && i < n; i += most) {
        size_t m = DFCL_MIN(most, n - i);
        dfcl_from_f32(dtype, v + i, part, m);
        dfcl_to_f32(dtype, part, v + i, m);
    }
}

static dfcl_status open_random(struct dfcl_base *b, const struct dfcl_init_params *init, dfcl_error *err) {
    struct dfcl_dit_config *c = &b->cfg;
    dfcl_status s = dfcl_init_check(init, c, &b->init_dtype, err);
    if (s || (s = dfcl_dit_create_table(&b->table, b->ctx, c, err)))
        return s;
    b->random = true;
    b->init = *init;
    b->init.class_names = NULL;
    b->init.dtype = NULL;
    b->file_input = c->input;
    b->file_width = c->width = dfcl_dit_width(c);
    size_t count = (size_t)dfcl_dit_tokens(c) * (size_t)c->hidden;
    if (!(b->path = dfcl_strdup(b->ctx, "random base", err)) || !(b->positions = dfcl_calloc(b->ctx, count, sizeof *b->positions, err)))
        return DFCL_NOMEM;
    if ((s = dfcl_pos_embed(c->input / c->patch, c->width / c->patch, c->hidden, c->pos_base, b->positions, err)))
        return s;
    round_values(b->init_dtype, b->positions, count);
    return dfcl_names_copy(b->ctx, init->class_names, c->classes, &b->class_names, err);
}

/* ---- opening ---- */

dfcl_status dfcl_base_open(struct dfcl_base **out, const dfcl_context *ctx, const struct dfcl_model_params *params, dfcl_error *err) {
    *out = NULL;
    if (!params->random && (!params->path || !*params->path))
        return dfcl_fail(err, DFCL_USAGE, "model: no path given");
    struct dfcl_base *b = dfcl_calloc(ctx, 1, sizeof *b, err);
    if (!b)
        return DFCL_NOMEM;
    b->ctx = ctx;
    dfcl_status s = DFCL_NOMEM;
    if (params->random) {
        if ((s = open_random(b, params->random, err)))
            goto out;
        *out = b;
        return DFCL_OK;
    }
    if (stat(params->path, &b->state) != 0)
        memset(&b->state, 0, sizeof b->state);
    if (!(b->path = dfcl_strdup(ctx, params->path, err)) ||
        (s = dfcl_tensor_file_open(&b->file, ctx, params->path, params->which, err)) || (s = find_shape(b, params, err)) ||
        (s = dfcl_dit_create_table(&b->table, ctx, &b->cfg, err)) || (s = check_tensors(b, err)) || (s = read_positions(b, err)))
        goto out;
    if ((s = dfcl_latent_rgb_meta(b->file, &b->rgb, err)))
        goto out;
    const char *names = dfcl_tensor_file_meta(b->file, "class_names");
    if (names) {
        int count;
        if ((s = dfcl_names_parse(ctx, names, params->path, &b->class_names, &count, err)))
            goto out;
        if (count != b->cfg.classes) {
            dfcl_names_free(ctx, b->class_names, count);
            b->class_names = NULL;
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %d class names for %d classes", params->path, count, b->cfg.classes);
            goto out;
        }
    }
    *out = b;
    b = NULL;
out:
    dfcl_base_close(&b);
    return s;
}

void dfcl_base_close(struct dfcl_base **pb) {
    struct dfcl_base *b = *pb;
    if (!b)
        return;
    dfcl_names_free(b->ctx, b->class_names, b->cfg.classes);
    dfcl_free(b->ctx, b->positions);
    dfcl_dit_destroy(&b->table);
    dfcl_tensor_file_close(&b->file);
    dfcl_free(b->ctx, b->path);
    dfcl_free(b->ctx, b);
    *pb = NULL;
}

/* ---- values ---- */

void dfcl_fold_gammas(const struct dfcl_param *p, const float *const gamma[4], float *values) {
    const char *part = strchr(p->name + 7, '.'); /* "blocks.12" then ".attn.qkv.weight" */
    const float *a = NULL, *b = NULL;
    if (p->block < 0 || !part)
        return;
    if (!strncmp(part, ".attn.qkv.", 10))
        a = gamma[2];
    else if (!strncmp(part, ".attn.proj.", 11))
        a = gamma[3], b = gamma[0];
    else if (!strncmp(part, ".mlp.fc2.", 9))
        a = gamma[1];
    int64_t rows = p->shape[0], cols = p->count / rows;
    for (int64_t r = 0; (a || b) && r < rows; r++) {
        float g = (a ? a[r] : 1.0f) * (b ? b[r] : 1.0f);
        for (int64_t c = 0; c < cols; c++)
            values[r * cols + c] *= g;
    }
}

/* Folds the file's own gammas into one of its tensors. */
static dfcl_status fold_own(struct dfcl_base *b, const struct dfcl_param *p, float *values, dfcl_error *err) {
    static const char *const keys[4] = {"gamma1", "gamma2", "attn.gamma1", "attn.gamma2"};
    float *gamma[4] = {0};
    dfcl_status s = DFCL_OK;
    if (!b->gammas || p->block < 0)
        return DFCL_OK;
    for (int i = 0; i < 4 && !s; i++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.%s", p->block, keys[i]);
        const struct dfcl_tensor_view *v = dfcl_tensor_file_find(b->file, name);
        if (!v)
            continue;
        if (!(gamma[i] = dfcl_calloc(b->ctx, (size_t)v->count, sizeof(float), err)))
            s = DFCL_NOMEM;
        else if (!(s = dfcl_tensor_file_read_f32(b->file, v, 0, v->count, gamma[i], err)))
            s = check_finite(b, name, gamma[i], v->count, err);
    }
    if (!s)
        dfcl_fold_gammas(p, (const float *const[4]){gamma[0], gamma[1], gamma[2], gamma[3]}, values);
    for (int i = 0; i < 4; i++)
        dfcl_free(b->ctx, gamma[i]);
    return s;
}

/* A tensor as it is stored; in a random base, as dfcl_model_init would store it. */
struct stored {
    const struct dfcl_tensor_view *view; /* NULL: random */
    enum dfcl_dtype dtype;
    int ndim;
    const int64_t *shape;
    uint64_t count, bytes;
};

static struct stored stored_of(const struct dfcl_base *b, const struct dfcl_param *p) {
    if (b->random)
        return (struct stored){NULL, b->init_dtype, p->ndim, p->shape, (uint64_t)p->count,
                               (uint64_t)p->count * dfcl_dtype_size(b->init_dtype)};
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(b->file, p->name);
    return (struct stored){v, v->dtype, v->ndim, v->shape, v->count, v->bytes};
}

/* Bytes to `raw`; `values` is room for the tensor as f32. */
static dfcl_status read_stored(struct dfcl_base *b, const struct dfcl_param *p, const struct stored *t, void *raw, float *values,
                               dfcl_error *err) {
    if (t->view)
        return dfcl_tensor_file_read_raw(b->file, t->view, raw, err);
    dfcl_init_values(p, &b->init, values);
    dfcl_from_f32(t->dtype, values, raw, (size_t)t->count);
    return DFCL_OK;
}

static dfcl_status hash_head(struct dfcl_sha256 *h, const struct stored *t, const char *name, dfcl_error *err) {
    char text[256] = "";
    dfcl_append(text, sizeof text, "%s\n%s\n", name, dfcl_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        dfcl_append(text, sizeof text, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    dfcl_append(text, sizeof text, "\n");
    return dfcl_sha256_update(h, text, strlen(text), err);
}

/* The hash of one tensor goes on in a thread of its own, beside the conversion and upload of the same bytes: it is the longest single piece
 * of opening a model. Tensors follow each other, so the hash is that of one thread. */
struct hashing {
    struct dfcl_sha256 *h;
    const unsigned char *bytes;
    size_t size;
    bool running;
    pthread_t thread;
    dfcl_status status;
    dfcl_error err;
};
static void *hash_bytes(void *arg) {
    struct hashing *t = arg;
    t->status = dfcl_sha256_update(t->h, t->bytes, t->size, &t->err);
    return NULL;
}
static void hash_begin(struct hashing *t, const dfcl_context *ctx, const unsigned char *bytes, size_t size) {
    t->bytes = bytes;
    t->size = size;
    t->running = size > 1 << 16 && ctx->p.threads != 1 && pthread_create(&t->thread, NULL, hash_bytes, t) == 0;
    if (!t->running)
        hash_bytes(t);
}
static dfcl_status hash_end(struct hashing *t, dfcl_error *err) {
    if (t->running)
        pthread_join(t->thread, NULL);
    t->running = false;
    return t->status ? dfcl_fail(err, t->status, "%s", t->err.msg) : DFCL_OK;
}

dfcl_status dfcl_base_stream(struct dfcl_base *b, dfcl_base_visit visit, void *user, char hash[65], dfcl_error *err) {
    struct dfcl_param **p = NULL;
    struct dfcl_sha256 h = {0};
    float *values = NULL;
    unsigned char *raw = NULL;
    uint64_t most = 1, most_raw = 1;
    int n;
    if (!b->file && !b->random)
        return dfcl_fail(err, DFCL_ERROR, "%s: read after it was closed", b->path);
    dfcl_status s = dfcl_base_order(b->table, &p, &n, err);
    if (s)
        return s;
    for (int i = 0; i < n; i++) {
        struct stored t = stored_of(b, p[i]);
        most = DFCL_MAX(most, t.count);
        most_raw = DFCL_MAX(most_raw, t.bytes);
    }
    s = DFCL_NOMEM;
    if (!(values = dfcl_calloc(b->ctx, (size_t)most, sizeof *values, err)) || !(raw = dfcl_calloc(b->ctx, (size_t)most_raw, 1, err)) ||
        (hash && (s = dfcl_sha256_init(&h, err))))
        goto out;
    s = DFCL_OK;
    for (int i = 0; i < n && !s; i++) {
        struct stored t = stored_of(b, p[i]);
        s = read_stored(b, p[i], &t, raw, values, err);
        struct hashing hashing = {.h = &h};
        if (!s && hash && !(s = hash_head(&h, &t, p[i]->name, err)))
            hash_begin(&hashing, b->ctx, raw, (size_t)t.bytes);
        if (!s && visit && (unsigned)t.dtype >= DFCL_DTYPE_COUNT) {
            s = dfcl_fail(err, DFCL_FORMAT, "%s: %s has type %s, which is not supported", b->path, p[i]->name, t.view->type_name);
        } else if (!s && visit) {
            dfcl_to_f32(t.dtype, raw, values, (size_t)t.count);
            if (!(s = check_finite(b, p[i]->name, values, t.count, err)) && !(s = fold_own(b, p[i], values, err)) &&
                !(b->gammas && (s = check_finite(b, p[i]->name, values, t.count, err))))
                s = visit(user, p[i], values, err);
        }
        dfcl_status hashed = hash_end(&hashing, s ? NULL : err);
        s = s ? s : hashed;
        if (t.view)
            dfcl_tensor_file_release(b->file, t.view);
    }
    if (!s && hash)
        s = dfcl_sha256_finish(&h, hash, err);
out:
    dfcl_sha256_abort(&h);
    dfcl_free(b->ctx, raw);
    dfcl_free(b->ctx, values);
    dfcl_free(b->ctx, p);
    return s;
}

dfcl_status dfcl_base_in_place(struct dfcl_base *b, const struct dfcl_param *p, enum dfcl_dtype dtype, const void **at, dfcl_error *err) {
    const struct dfcl_tensor_view *v = b->file ? dfcl_tensor_file_find(b->file, p->name) : NULL;
    *at = NULL;
    if (!v || v->dtype != dtype || (b->gammas && p->block >= 0))
        return DFCL_OK;
    return dfcl_tensor_file_in_place(b->file, v, at, err);
}

dfcl_status dfcl_base_read(struct dfcl_base *b, const char *name, float **values, dfcl_error *err) {
    *values = NULL;
    const struct dfcl_param *p = dfcl_dit_param(b->table, name);
    const struct dfcl_tensor_view *v = b->file ? dfcl_tensor_file_find(b->file, name) : NULL;
    if (!p || (!v && !b->random))
        return dfcl_fail(err, DFCL_ERROR, "%s: no tensor %s to read", b->path, name);
    if (!(*values = dfcl_calloc(b->ctx, (size_t)p->count, sizeof **values, err)))
        return DFCL_NOMEM;
    dfcl_status s = DFCL_OK;
    if (v) {
        s = dfcl_tensor_file_read_f32(b->file, v, 0, v->count, *values, err);
    } else {
        dfcl_init_values(p, &b->init, *values);
        round_values(b->init_dtype, *values, (size_t)p->count);
    }
    if (!s)
        s = fold_own(b, p, *values, err);
    if (!s)
        s = check_finite(b, name, *values, (uint64_t)p->count, err);
    if (s) {
        dfcl_free(b->ctx, *values);
        *values = NULL;
    }
    return s;
}
