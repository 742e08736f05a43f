/* Pictures drawn during training, from the moving average. */
#ifndef DFCL_TRAIN_PREVIEW_H
#define DFCL_TRAIN_PREVIEW_H

#include "models/model.h"
#include "train/run_dir.h"
#include "train/step.h"

/* Draws up to 8 classes, 4 pictures each, one class a row, always from the same noise, with the moving average in place of the live values, and
 * puts everything back: training goes on as if nothing had happened. Pixel models, and latents that an autoencoder (`vae`, or NULL) decodes:
 * samples/step-000400-ema.png; other latents, and those that do not fit the memory beside the training: samples/step-000400-ema.safetensors with the
 * tensor "latents". *path (freed with dfcl_free) is the file. */
dfcl_status dfcl_preview(struct dfcl_model *model, struct dfcl_stepper *st, const struct dfcl_run_dir *run, int64_t step, uint64_t seed,
                         uint64_t max_memory, const char *vae, char **path, dfcl_error *err);
/* The autoencoder can be read, and fits the model: before a run starts. */
dfcl_status dfcl_preview_check_vae(struct dfcl_model *model, const char *vae, dfcl_error *err);

#endif
