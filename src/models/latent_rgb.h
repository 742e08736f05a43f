/* The linear approximation of a decoder (difffit-cl/vae.h): least squares over latents and the colours of their pictures, its text form.
 *
 * With u = (latent of a position, 1) and y = the position's mean colour, the normal equations need sums of u u', u y' and y y only. They are kept a picture
 * at a time, each summed in the order of positions, so that what is fitted depends on the set of pictures and their order alone. */
#ifndef DFCL_MODELS_LATENT_RGB_H
#define DFCL_MODELS_LATENT_RGB_H

#include "base/json.h"

#include <difffit-cl/vae.h>

#define DFCL_LATENT_RGB_KEY "latent_rgb" /* in metadata of deltas and bases */

/* Values of a picture's sums: upper triangle of u u' by rows, then u y' [channels + 1, 3], then y y [3]; 0: too many channels. */
size_t dfcl_latent_rgb_sums(int channels);
/* Sums of one picture: latents [channels, n] (as the diffusion model has them: scale * (z - shift)) and colours [3, n]. */
void dfcl_latent_rgb_picture(int channels, size_t n, const float *z, double scale, double shift, const float *rgb, double *sums);
/* Mean colours of blocks of `factor` squared pixels: 8-bit [height * factor, width * factor, 3] -> [3, height, width] in [-1, 1]. */
void dfcl_latent_rgb_average(const uint8_t *pixels, int factor, int height, int width, float *out);
/* Least squares; out->channels stays 0 when the sums hold no position or are not finite. A channel that does not vary gets the weight 0. */
void dfcl_latent_rgb_fit(int channels, const double *sums, struct dfcl_latent_rgb *out);

/* {"weight":[[..],[..],[..]],"bias":[..],"rms":..}, and back: numbers by 9 digits. DFCL_FORMAT names `what`. */
void dfcl_latent_rgb_text(struct dfcl_text *t, const struct dfcl_latent_rgb *rgb);
dfcl_status dfcl_latent_rgb_json(const cJSON *o, const char *what, struct dfcl_latent_rgb *out, dfcl_error *err);
dfcl_status dfcl_latent_rgb_parse(const char *text, const char *what, struct dfcl_latent_rgb *out, dfcl_error *err);

struct dfcl_st_writer;
struct dfcl_tensor_file;
/* The metadata DFCL_LATENT_RGB_KEY, where there is an approximation. */
dfcl_status dfcl_latent_rgb_write(struct dfcl_st_writer *w, const dfcl_context *ctx, const struct dfcl_latent_rgb *rgb, dfcl_error *err);
/* What a file's metadata say, channels 0: nothing. */
dfcl_status dfcl_latent_rgb_meta(const struct dfcl_tensor_file *file, struct dfcl_latent_rgb *out, dfcl_error *err);

#endif
