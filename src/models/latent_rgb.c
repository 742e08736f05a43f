#include "models/latent_rgb.h"

#include <math.h>
#include <string.h>

#include "formats/safetensors.h"
#include "formats/tensor_file.h"

enum { MOST = DFCL_LATENT_RGB_CHANNELS };

size_t dfcl_latent_rgb_sums(int channels) {
    size_t n = (size_t)channels + 1;
    return channels < 1 || channels > MOST ? 0 : n * (n + 1) / 2 + 3 * n + 3;
}

void dfcl_latent_rgb_picture(int channels, size_t n, const float *z, double scale, double shift, const float *rgb, double *sums) {
    memset(sums, 0, dfcl_latent_rgb_sums(channels) * sizeof *sums);
    double u[MOST + 1];
    u[channels] = 1;
    for (size_t p = 0; p < n; p++) {
        double *at = sums;
        for (int c = 0; c < channels; c++)
            u[c] = scale * ((double)z[(size_t)c * n + p] - shift);
        for (int i = 0; i <= channels; i++)
            for (int j = i; j <= channels; j++)
                *at++ += u[i] * u[j];
        for (int i = 0; i <= channels; i++)
            for (size_t k = 0; k < 3; k++)
                *at++ += u[i] * (double)rgb[k * n + p];
        for (size_t k = 0; k < 3; k++)
            *at++ += (double)rgb[k * n + p] * (double)rgb[k * n + p];
    }
}

void dfcl_latent_rgb_average(const uint8_t *pixels, int factor, int height, int width, float *out) {
    const size_t f = (size_t)factor, h = (size_t)height, w = (size_t)width, row = 3 * w * f;
    for (size_t k = 0; k < 3; k++)
        for (size_t y = 0; y < h; y++)
            for (size_t x = 0; x < w; x++) {
                uint64_t sum = 0;
                for (size_t j = 0; j < f; j++)
                    for (size_t i = 0; i < f; i++)
                        sum += pixels[(y * f + j) * row + 3 * (x * f + i) + k];
                out[(k * h + y) * w + x] = (float)((double)sum / (double)(f * f) / 127.5 - 1.0);
            }
}

/* A x = b for positive definite A [n, n] and three right sides [n, 3], in place: Cholesky. False where A is not. */
static bool solve(int n, double A[MOST][MOST], double b[MOST][3]) {
    for (int j = 0; j < n; j++)
        for (int i = j; i < n; i++) {
            double v = A[i][j];
            for (int k = 0; k < j; k++)
                v -= A[i][k] * A[j][k];
            if (i == j && !(v > 0))
                return false;
            A[i][j] = i == j ? sqrt(v) : v / A[j][j];
        }
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < i; j++)
                b[i][k] -= A[i][j] * b[j][k];
            b[i][k] /= A[i][i];
        }
        for (int i = n - 1; i >= 0; i--) {
            for (int j = i + 1; j < n; j++)
                b[i][k] -= A[j][i] * b[j][k];
            b[i][k] /= A[i][i];
        }
    }
    return true;
}

void dfcl_latent_rgb_fit(int channels, const double *sums, struct dfcl_latent_rgb *out) {
    memset(out, 0, sizeof *out);
    const size_t all = dfcl_latent_rgb_sums(channels);
    const double *tail = sums + all - 3, *cross = tail - 3 * ((size_t)channels + 1), count = all ? cross[-1] : 0;
    for (size_t i = 0; i < all; i++)
        if (!isfinite(sums[i]))
            return;
    if (!(count >= 1))
        return;
    /* About the means: the bias leaves the equations, which are then as well conditioned as the latents' covariance. */
    double mean[MOST], cov[MOST][MOST], x[MOST][3], b[MOST][3], colour[3], trace = 0;
    const double *at = sums;
    for (int i = 0; i < channels; i++) {
        for (int j = i; j < channels; j++)
            cov[j][i] = *at++;
        mean[i] = *at++ / count;
    }
    for (int k = 0; k < 3; k++)
        colour[k] = cross[3 * channels + k] / count;
    for (int i = 0; i < channels; i++) {
        for (int j = 0; j <= i; j++)
            cov[i][j] = cov[i][j] / count - mean[i] * mean[j];
        for (int k = 0; k < 3; k++)
            b[i][k] = x[i][k] = cross[3 * i + k] / count - mean[i] * colour[k];
        trace += cov[i][i];
    }
    /* A trace of a ridge decides what the data leave open (a channel that does not vary, or follows from others). */
    double ridge = 1e-9 * trace / channels;
    for (int i = 0; i < channels; i++)
        cov[i][i] += ridge;
    if (!(trace > 0) || !solve(channels, cov, x))
        memset(x, 0, sizeof x);
    double left = 0;
    for (int k = 0; k < 3; k++) {
        double rest = tail[k] / count - colour[k] * colour[k];
        out->bias[k] = colour[k];
        for (int i = 0; i < channels; i++) {
            out->weight[k][i] = x[i][k];
            out->bias[k] -= x[i][k] * mean[i];
            rest -= x[i][k] * b[i][k]; /* at the minimum; the ridge is below what shows */
        }
        left += rest > 0 ? rest : 0;
        for (int i = 0; i < channels; i++)
            if (!isfinite(out->weight[k][i]) || !isfinite(out->bias[k]))
                return;
    }
    out->rms = sqrt(left / 3);
    out->channels = channels;
}

void dfcl_latent_rgb_apply(const struct dfcl_latent_rgb *rgb, int n, int height, int width, const float *latents, float *pictures) {
    const size_t plane = (size_t)height * (size_t)width, C = (size_t)rgb->channels;
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t k = 0; k < 3; k++)
            for (size_t p = 0; p < plane; p++) {
                double v = rgb->bias[k];
                for (size_t c = 0; c < C; c++)
                    v += rgb->weight[k][c] * (double)latents[(i * C + c) * plane + p];
                pictures[(i * 3 + k) * plane + p] = (float)v;
            }
}

/* ---- text ---- */

void dfcl_latent_rgb_text(struct dfcl_text *t, const struct dfcl_latent_rgb *rgb) {
    dfcl_text_addf(t, "{\"weight\":[");
    for (int k = 0; k < 3; k++) {
        for (int c = 0; c < rgb->channels; c++)
            dfcl_text_addf(t, "%s%.9g", c ? "," : k ? ",[" : "[", rgb->weight[k][c]);
        dfcl_text_addf(t, "]");
    }
    dfcl_text_addf(t, "],\"bias\":[%.9g,%.9g,%.9g],\"rms\":%.9g}", rgb->bias[0], rgb->bias[1], rgb->bias[2], rgb->rms);
}

static bool numbers(const cJSON *a, int n, double *out) {
    if (!cJSON_IsArray(a) || cJSON_GetArraySize(a) != n)
        return false;
    const cJSON *v;
    cJSON_ArrayForEach(v, a) {
        if (!cJSON_IsNumber(v) || !(fabs(v->valuedouble) <= 1e9))
            return false;
        *out++ = v->valuedouble;
    }
    return true;
}

dfcl_status dfcl_latent_rgb_json(const cJSON *o, const char *what, struct dfcl_latent_rgb *out, dfcl_error *err) {
    const cJSON *weight = dfcl_json_get(o, "weight"), *rms = dfcl_json_get(o, "rms");
    memset(out, 0, sizeof *out);
    int n = cJSON_IsArray(weight) && cJSON_GetArraySize(weight) == 3 && cJSON_IsArray(weight->child) ? cJSON_GetArraySize(weight->child) : 0;
    bool good = n >= 1 && n <= MOST && numbers(dfcl_json_get(o, "bias"), 3, out->bias) && cJSON_IsNumber(rms) && rms->valuedouble >= 0 && rms->valuedouble <= 1e9;
    for (int k = 0; good && k < 3; k++)
        good = numbers(cJSON_GetArrayItem(weight, k), n, out->weight[k]);
    if (!good) {
        memset(out, 0, sizeof *out);
        return dfcl_fail(err, DFCL_FORMAT, "%s: latent_rgb: expected three rows of 1 to %d weights, three biases and rms, numbers", what, MOST);
    }
    out->channels = n;
    out->rms = rms->valuedouble;
    return DFCL_OK;
}

dfcl_status dfcl_latent_rgb_parse(const char *text, const char *what, struct dfcl_latent_rgb *out, dfcl_error *err) {
    cJSON *o = NULL;
    memset(out, 0, sizeof *out);
    dfcl_status s = dfcl_json_parse(&o, text, strlen(text), (struct dfcl_json_limits){4, 256}, what, err);
    if (!s)
        s = dfcl_latent_rgb_json(o, what, out, err);
    cJSON_Delete(o);
    return s;
}

dfcl_status dfcl_latent_rgb_write(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_latent_rgb *rgb, dfcl_error *err) {
    if (!rgb->channels)
        return DFCL_OK;
    struct dfcl_text t = {.ctx = ctx};
    dfcl_latent_rgb_text(&t, rgb);
    dfcl_status s = t.failed ? dfcl_fail(err, DFCL_NOMEM, "latent_rgb: out of memory") : dfcl_st_writer_meta(w, DFCL_LATENT_RGB_KEY, t.s, err);
    dfcl_text_finish(&t);
    return s;
}

dfcl_status dfcl_latent_rgb_meta(const struct dfcl_tensor_file *file, struct dfcl_latent_rgb *out, dfcl_error *err) {
    const char *text = dfcl_tensor_file_meta(file, DFCL_LATENT_RGB_KEY);
    memset(out, 0, sizeof *out);
    return text ? dfcl_latent_rgb_parse(text, dfcl_tensor_file_path(file), out, err) : DFCL_OK;
}
