/* Where merged tensors go: a safetensors file, a PyTorch state dict, or a diffusers folder. */
#ifndef DFCL_METHODS_MERGE_OUT_H
#define DFCL_METHODS_MERGE_OUT_H

#include "models/model.h"

struct dfcl_merge_out;

/* DFCL_USAGE when `path` cannot be such an output. Life: create -> tensor* -> values in the order of the tensors ->
 * finish; all names are the original ones. Atomic: the file or folder appears at finish, or not at all. */
dfcl_status dfcl_merge_out_create(struct dfcl_merge_out **out, const dfcl_context *ctx, enum dfcl_names names,
                                  const char *path, const struct dfcl_dit_config *cfg, const char *const *class_names,
                                  const struct dfcl_latent_rgb *rgb, dfcl_error *err);
dfcl_status dfcl_merge_out_tensor(struct dfcl_merge_out *o, const char *name, const int64_t *shape, int ndim,
                                  dfcl_error *err);
/* All values of the tensor. */
dfcl_status dfcl_merge_out_values(struct dfcl_merge_out *o, const char *name, const float *values, size_t count,
                                  dfcl_error *err);
/* Commits, and destroys it, also on failure. */
dfcl_status dfcl_merge_out_finish(struct dfcl_merge_out **o, dfcl_error *err);
/* Drops what is unfinished; harmless on NULL. */
void dfcl_merge_out_destroy(struct dfcl_merge_out **o);

#endif
