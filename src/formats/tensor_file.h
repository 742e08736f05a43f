/* Files of named tensors, whatever the container: safetensors, PyTorch .pt, a diffusers folder. Loaders need nothing else.
 *
 * Names are always the original ones ("blocks.0.attn.qkv.weight"); a Diffusion Transformer in diffusers' naming is presented under
 * them, its q, k and v fused. Nothing is copied at open: views point into mappings, which must not be truncated while open. Every
 * finding about a bad file is DFCL_FORMAT and names the file. One thread at a time per file. */
#ifndef DFCL_FORMATS_TENSOR_FILE_H
#define DFCL_FORMATS_TENSOR_FILE_H

#include "formats/tensor_view.h"

struct dfcl_tensor_file;

enum dfcl_container { DFCL_CONTAINER_SAFETENSORS, DFCL_CONTAINER_TORCH };

/* `path`: a file (told by its first bytes), or a folder that holds diffusion_pytorch_model.safetensors or .bin, itself or in
 * "transformer/". `which`: part of a training checkpoint, "ema" or "model"; NULL: "ema" where there is one, else "model". Containers
 * and plain state dicts without parts ignore NULL and "ema"/"model" alike. Missing files are DFCL_IO. */
dfcl_status dfcl_tensor_file_open(struct dfcl_tensor_file **out, const dfcl_context *ctx, const char *path, const char *which,
                                  dfcl_error *err);
/* The same on bytes that outlive it, no companion files; `path` is only for messages. */
dfcl_status dfcl_tensor_file_open_memory(struct dfcl_tensor_file **out, const dfcl_context *ctx, const void *data, size_t size,
                                         const char *path, const char *which, dfcl_error *err);
void dfcl_tensor_file_close(struct dfcl_tensor_file **file);

const char *dfcl_tensor_file_path(const struct dfcl_tensor_file *file); /* of the file that holds the tensors */
enum dfcl_container dfcl_tensor_file_container(const struct dfcl_tensor_file *file);
bool dfcl_tensor_file_is_diffusers(const struct dfcl_tensor_file *file); /* names were mapped */
const char *dfcl_tensor_file_part(const struct dfcl_tensor_file *file);  /* "ema", "model" ... of a checkpoint; "" for a plain one */

/* In the file's order. */
size_t dfcl_tensor_file_count(const struct dfcl_tensor_file *file);
const struct dfcl_tensor_view *dfcl_tensor_file_at(const struct dfcl_tensor_file *file, size_t i);
const struct dfcl_tensor_view *dfcl_tensor_file_find(const struct dfcl_tensor_file *file, const char *name); /* NULL: none */

/* Values by these calls only: they fetch and check what lies compressed, and compare diffusers' per-block copies.
 * read_f32: elements [first, first + n) in C order; a type without conversion is DFCL_FORMAT. read_raw: all view->bytes, contiguous,
 * little-endian, in the stored type. release: tells the system that the tensor will not be read again soon. */
dfcl_status dfcl_tensor_file_read_f32(struct dfcl_tensor_file *file, const struct dfcl_tensor_view *view, uint64_t first, uint64_t n,
                                      float *out, dfcl_error *err);
dfcl_status dfcl_tensor_file_read_raw(struct dfcl_tensor_file *file, const struct dfcl_tensor_view *view, void *out, dfcl_error *err);
/* Where the tensor lies in the mapped file, in C order, in one piece and aligned for its type: valid until the file is closed. *at = NULL
 * where it does not (compressed, in pieces, strided, another byte order). Checks what read_raw checks. */
dfcl_status dfcl_tensor_file_in_place(struct dfcl_tensor_file *file, const struct dfcl_tensor_view *view, const void **at, dfcl_error *err);
void dfcl_tensor_file_release(struct dfcl_tensor_file *file, const struct dfcl_tensor_view *view);

/* What the file says about itself. Metadata: safetensors only, pair i or by key. Attributes: looked up in the metadata, then in a
 * checkpoint's "args" (args.model = "DiT-XL/2"), then in the config.json beside it (a plain file's broken config.json is a warning,
 * not an error). Text or number as stored; a metadata text that is a whole number also counts as a number. */
size_t dfcl_tensor_file_meta_count(const struct dfcl_tensor_file *file);
const char *dfcl_tensor_file_meta_key(const struct dfcl_tensor_file *file, size_t i);
const char *dfcl_tensor_file_meta(const struct dfcl_tensor_file *file, const char *key); /* NULL: none */
bool dfcl_tensor_file_number(const struct dfcl_tensor_file *file, const char *key, double *out);
const char *dfcl_tensor_file_text(const struct dfcl_tensor_file *file, const char *key); /* NULL: none */

/* The names under which diffusers stores an original tensor of a model of `depth` blocks, k = 0, 1 ...: three for a qkv, whose rows they share out
 * (dfcl_diffusers_pieces is 3, else 1), one for each block for the embedders, of which it keeps copies, else one. False past the last. */
bool dfcl_diffusers_name(const char *original, int depth, int k, char *name, size_t size);
int dfcl_diffusers_pieces(const char *original);

#endif
