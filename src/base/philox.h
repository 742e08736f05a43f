/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the normals built on it.
 *
 * key = seed (low word, high word); counter = (element / 4, sample, step, stream). `sample` is the global index in the run or
 * request, whatever the micro-batch. Uniforms take the top 24 bits: u = ((x >> 8) + 1) * 2^-24 in (0, 1].
 * Normals: Box-Muller, n0 = r cos(2 pi u2), n1 = r sin(2 pi u2), r = sqrt(-2 ln u1) with ln, sqrt, sin and cos made of our own polynomials
 * and explicit fma, so that every backend gives the same bits. Words 0,1 of a block give normals 0,1; words 2,3 give 2,3. */
#ifndef DFCL_BASE_PHILOX_H
#define DFCL_BASE_PHILOX_H

#include <stddef.h>
#include <stdint.h>

/* Streams; also listed in docs/formats.md. Never renumber. */
enum dfcl_stream {
    DFCL_STREAM_INIT = 0,       /* parameter initialisation; sample = parameter index in the name order */
    DFCL_STREAM_TIMESTEP = 1,   /* training timesteps: element 0 */
    DFCL_STREAM_NOISE = 2,      /* training noise */
    DFCL_STREAM_DROP = 3,       /* label dropout: element 0 */
    DFCL_STREAM_FLIP = 4,       /* horizontal flip: element 0 */
    DFCL_STREAM_SHUFFLE = 5,    /* order of the data: sample = position, step = epoch */
    DFCL_STREAM_LATENT = 6,     /* posterior sampling of cached moments */
    DFCL_STREAM_SAMPLE_INIT = 7, /* x_T of sampling: step 0 */
    DFCL_STREAM_SAMPLE_STEP = 8, /* ancestral noise: step = step number from 0 */
    DFCL_STREAM_VAL = 9,        /* held-out evaluation: timesteps and noise */
    DFCL_STREAM_TEST = 10,
    DFCL_STREAM_CROP = 11,      /* random crops: element 0 the shorter side, 1 the row, 2 the column */
};

void dfcl_philox(uint64_t seed, const uint32_t counter[4], uint32_t out[4]);

/* One uniform in (0, 1]. */
float dfcl_uniform(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, uint32_t element);
/* Integer in [0, n): high word of x * n, n < 2^32. */
uint32_t dfcl_uniform_int(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, uint32_t element, uint32_t n);
/* out[0..count): elements 0..count of one sample. */
void dfcl_normals(uint64_t seed, uint32_t stream, uint32_t step, uint32_t sample, float *out, size_t count);

#endif
