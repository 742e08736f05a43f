#include "metrics.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void rotate(double *a, double *v, int n, int p, int q) {
    double apq = a[p * n + q];
    double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
    double t = (theta >= 0 ? 1.0 : -1.0) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    for (int i = 0; i < n; i++) {
        double aip = a[i * n + p], aiq = a[i * n + q];
        a[i * n + p] = c * aip - s * aiq;
        a[i * n + q] = s * aip + c * aiq;
    }
    double *rp = a + (size_t)p * (size_t)n, *rq = a + (size_t)q * (size_t)n;
    double *vp = v + (size_t)p * (size_t)n, *vq = v + (size_t)q * (size_t)n;
    for (int i = 0; i < n; i++) {
        double x = rp[i], y = rq[i];
        rp[i] = c * x - s * y;
        rq[i] = s * x + c * y;
        x = vp[i], y = vq[i];
        vp[i] = c * x - s * y;
        vq[i] = s * x + c * y;
    }
}

bool metrics_eigen(double *a, int n, double *values, double *vectors) {
    double total = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            vectors[i * n + j] = i == j;
            total += a[i * n + j] * a[i * n + j];
        }
    bool done = false;
    for (int sweep = 0; sweep < 60 && !done; sweep++) {
        double off = 0;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++)
                off += 2 * a[p * n + q] * a[p * n + q];
        done = off <= 1e-26 * total;
        double small = 1e-15 * sqrt(total / (n ? n : 1));
        for (int p = 0; p < n && !done; p++)
            for (int q = p + 1; q < n; q++)
                if (fabs(a[p * n + q]) > small)
                    rotate(a, vectors, n, p, q);
                else
                    a[p * n + q] = a[q * n + p] = 0;
    }
    for (int i = 0; i < n; i++)
        values[i] = a[i * n + i];
    for (int i = 0; i < n; i++) { /* selection sort, rows move along */
        int best = i;
        for (int j = i + 1; j < n; j++)
            if (values[j] > values[best])
                best = j;
        if (best == i)
            continue;
        double t = values[i];
        values[i] = values[best];
        values[best] = t;
        for (int k = 0; k < n; k++) {
            t = vectors[i * n + k];
            vectors[i * n + k] = vectors[best * n + k];
            vectors[best * n + k] = t;
        }
    }
    return done;
}

/* mean [d] and biased-free covariance [d, d] of rows of x (double) */
static void moments(const double *x, int n, int d, double *mean, double *cov) {
    memset(mean, 0, (size_t)d * sizeof *mean);
    memset(cov, 0, (size_t)d * (size_t)d * sizeof *cov);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d; j++)
            mean[j] += x[(size_t)i * (size_t)d + (size_t)j] / n;
    for (int i = 0; i < n; i++) {
        const double *r = x + (size_t)i * (size_t)d;
        for (int j = 0; j < d; j++) {
            double v = (r[j] - mean[j]) / (n - 1);
            for (int k = 0; k <= j; k++)
                cov[j * d + k] += v * (r[k] - mean[k]);
        }
    }
    for (int j = 0; j < d; j++)
        for (int k = 0; k < j; k++)
            cov[k * d + j] = cov[j * d + k];
}

bool metrics_pca_fit(struct metrics_pca *p, const float *x, int count, int dim, int k) {
    memset(p, 0, sizeof *p);
    size_t d = (size_t)dim;
    double *xd = malloc((size_t)count * d * sizeof *xd), *cov = malloc(d * d * sizeof *cov);
    double *values = malloc(d * sizeof *values), *vectors = malloc(d * d * sizeof *vectors);
    p->mean = malloc(d * sizeof *p->mean);
    p->components = malloc((size_t)k * d * sizeof *p->components);
    bool ok = xd && cov && values && vectors && p->mean && p->components && k <= dim && count > 1;
    if (ok) {
        for (size_t i = 0; i < (size_t)count * d; i++)
            xd[i] = (double)x[i];
        moments(xd, count, dim, p->mean, cov);
        ok = metrics_eigen(cov, dim, values, vectors);
        memcpy(p->components, vectors, (size_t)k * d * sizeof *vectors);
        p->dim = dim;
        p->k = k;
    }
    free(xd);
    free(cov);
    free(values);
    free(vectors);
    if (!ok)
        metrics_pca_free(p);
    return ok;
}

void metrics_pca_free(struct metrics_pca *p) {
    free(p->mean);
    free(p->components);
    memset(p, 0, sizeof *p);
}

static double *project(const struct metrics_pca *p, const float *x, int n) {
    double *y = malloc((size_t)n * (size_t)p->k * sizeof *y);
    if (!y)
        return NULL;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < p->k; k++) {
            double s = 0;
            const double *c = p->components + (size_t)k * (size_t)p->dim;
            const float *r = x + (size_t)i * (size_t)p->dim;
            for (int j = 0; j < p->dim; j++)
                s += c[j] * ((double)r[j] - p->mean[j]);
            y[(size_t)i * (size_t)p->k + (size_t)k] = s;
        }
    return y;
}

double metrics_frechet(const struct metrics_pca *p, const float *x, int nx, const float *y, int ny) {
    int k = p->k;
    size_t kk = (size_t)k * (size_t)k;
    double *px = project(p, x, nx), *py = project(p, y, ny), *work = calloc(6 * kk + 3 * (size_t)k, sizeof *work);
    double d = -1;
    if (px && py && work && nx > 1 && ny > 1) {
        double *s1 = work, *s2 = s1 + kk, *v = s2 + kk, *root = v + kk, *t = root + kk, *m = t + kk;
        double *m1 = m + kk, *m2 = m1 + k, *values = m2 + k;
        moments(px, nx, k, m1, s1);
        moments(py, ny, k, m2, s2);
        d = 0;
        for (int i = 0; i < k; i++)
            d += (m1[i] - m2[i]) * (m1[i] - m2[i]) + s1[i * k + i] + s2[i * k + i];
        bool ok = metrics_eigen(s1, k, values, v);
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++)
                for (int e = 0; e < k; e++)
                    root[i * k + j] += v[e * k + i] * sqrt(fmax(values[e], 0)) * v[e * k + j];
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++)
                for (int e = 0; e < k; e++)
                    t[i * k + j] += root[i * k + e] * s2[e * k + j];
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++)
                for (int e = 0; e < k; e++)
                    m[i * k + j] += t[i * k + e] * root[e * k + j];
        ok = metrics_eigen(m, k, values, v) && ok;
        for (int i = 0; i < k; i++)
            d -= 2 * sqrt(fmax(values[i], 0));
        if (!ok)
            d = -1;
        else if (d < 0)
            d = 0;
    }
    free(px);
    free(py);
    free(work);
    return d;
}

double metrics_read_as(const float *x, const int *asked, int nx, const float *known, const int *labels, int nknown, int dim, int classes, int k) {
    enum { K_MAX = 16 };
    if (k > K_MAX || k > nknown || nx < 1)
        return -1;
    int right = 0;
    for (int i = 0; i < nx; i++) {
        double near[K_MAX];
        int who[K_MAX];
        for (int j = 0; j < k; j++) {
            near[j] = DBL_MAX;
            who[j] = -1;
        }
        for (int m = 0; m < nknown; m++) {
            double d = 0;
            const float *a = x + (size_t)i * (size_t)dim, *b = known + (size_t)m * (size_t)dim;
            for (int j = 0; j < dim; j++)
                d += (double)((a[j] - b[j]) * (a[j] - b[j]));
            int at = k;
            while (at > 0 && d < near[at - 1])
                at--;
            if (at == k)
                continue;
            for (int j = k - 1; j > at; j--) {
                near[j] = near[j - 1];
                who[j] = who[j - 1];
            }
            near[at] = d;
            who[at] = labels[m];
        }
        int best = who[0], votes = 0;
        for (int c = 0; c < classes; c++) {
            int v = 0;
            for (int j = 0; j < k; j++)
                v += who[j] == c;
            if (v > votes || (v == votes && c == who[0])) {
                votes = v;
                best = c;
            }
        }
        right += best == asked[i];
    }
    return (double)right / nx;
}
