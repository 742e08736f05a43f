/* Resampling of 8-bit pictures and the centre crop that DiT's training data went through. */
#ifndef DFCL_DATA_CROP_H
#define DFCL_DATA_CROP_H

#include "base/base.h"

enum dfcl_filter { DFCL_FILTER_BOX, DFCL_FILTER_BICUBIC };

/* src [h,w,c] -> dst [dh,dw,c], 8 bit, c 1..4. Separable: columns first, then rows, each rounded to 8 bit; shrinking widens the filter by the scale
 * so that it averages (the convention of Pillow's resize). Bicubic is Keys' kernel with a = -1/2. */
dfcl_status dfcl_resample(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, enum dfcl_filter filter,
                          uint8_t *dst, int dw, int dh, dfcl_error *err);

/* The centre crop of guided-diffusion (ADM), as used for DiT: halve with a box filter while the shorter side is at least twice too large; bicubic
 * so that the shorter side fits; cut the centre. Not square: halved while both sides are at least twice too large, then scaled so that the part which the
 * aspect allows fits exactly. out [oh,ow,c]. */
dfcl_status dfcl_center_crop(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, int ow, int oh, uint8_t *out,
                             dfcl_error *err);

/* Where a random crop's draws come from: stream CROP of docs/formats.md. */
struct dfcl_crop_draw {
    uint64_t seed;
    uint32_t step, sample;
};
/* guided-diffusion's random crop: a size from that wanted to it / 0.8 (its shorter side is drawn, element 0 of the draw), the same halving and bicubic to it,
 * then the part whose row and column are drawn (elements 1 and 2). */
dfcl_status dfcl_random_crop(const dfcl_context *ctx, const uint8_t *src, int w, int h, int c, int ow, int oh,
                             const struct dfcl_crop_draw *draw, uint8_t *out, dfcl_error *err);

#endif
