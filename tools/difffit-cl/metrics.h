/* Numbers for small pictures: Frechet distance in a principal-component space, and a nearest-neighbour reading. */
#ifndef METRICS_H
#define METRICS_H

#include <stdbool.h>

/* Eigenvalues (descending) and eigenvectors (rows of `vectors`) of a symmetric n x n matrix by cyclic Jacobi rotations; `a` is
 * destroyed. False when it did not converge. */
bool metrics_eigen(double *a, int n, double *values, double *vectors);

/* Principal components of pictures: x [count, dim]. */
struct metrics_pca {
    int dim, k;
    double *mean;       /* [dim] */
    double *components; /* [k, dim], orthonormal */
};
bool metrics_pca_fit(struct metrics_pca *p, const float *x, int count, int dim, int k);
void metrics_pca_free(struct metrics_pca *p);

/* Frechet distance |m1-m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2) between Gaussians fitted to the projections of two sets of pictures
 * (Heusel et al., arXiv 1706.08500, eq. 6, with principal components in place of Inception features). Negative on failure. */
double metrics_frechet(const struct metrics_pca *p, const float *x, int nx, const float *y, int ny);

/* Share of pictures whose label the k nearest (Euclidean) of the labelled set vote for; ties go to the nearest. */
double metrics_read_as(const float *x, const int *asked, int nx, const float *known, const int *labels, int nknown, int dim, int classes, int k);

#endif
