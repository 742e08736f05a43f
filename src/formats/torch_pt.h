/* PyTorch's .pt files (zip containers since 1.6): a state dict, or a training checkpoint {"model", "ema", "opt", "args"}.
 *
 * NAME/data.pkl describes the tensors (pickle.h), NAME/data/KEY holds each storage in little-endian bytes. Several tensors may share a
 * storage, start inside it and have any strides. Every view is checked to lie inside its storage and to have no more elements than
 * that. Nothing of the optimizer is read. */
#ifndef DFCL_FORMATS_TORCH_PT_H
#define DFCL_FORMATS_TORCH_PT_H

#include "base/file.h"
#include "formats/pickle.h"
#include "formats/tensor_view.h"
#include "formats/zip.h"

struct dfcl_pt {
    const dfcl_context *ctx;
    const char *path; /* borrowed */
    struct dfcl_zip zip;
    struct dfcl_pickle pk;
    char part[64];    /* "ema", "model" ...; "" for a plain state dict */
    struct dfcl_tensor_view *tensors; /* in the dict's order; source[0] numbers `entries`; part[0] is set by dfcl_pt_fetch */
    int64_t *offsets;                 /* elements into the storage */
    size_t count;
    struct dfcl_zip_entry **entries;  /* one per storage of the pickle, NULL: not used */
    uint32_t args;                    /* DICT node of the checkpoint's arguments, or DFCL_PK_NOTHING */
};

/* True for the first bytes of a zip file, and of what older torch versions wrote (refused by open with advice). */
bool dfcl_pt_sniff(const void *data, size_t size);
/* The bytes and `path` must outlive it. `which`: see dfcl_tensor_file_open. */
dfcl_status dfcl_pt_open(struct dfcl_pt **out, const dfcl_context *ctx, const void *data, uint64_t size, const char *path, const char *which,
                         dfcl_error *err);
void dfcl_pt_close(struct dfcl_pt **pt);
/* First element of tensor i; the storage is inflated and compared with its checksum when it is touched first. */
dfcl_status dfcl_pt_fetch(struct dfcl_pt *pt, size_t i, const unsigned char **first, dfcl_error *err);
/* Bytes of tensor i's storage within the file ([offset, offset + size)), after inflated ones were dropped. */
void dfcl_pt_release(struct dfcl_pt *pt, size_t i, uint64_t *offset, uint64_t *size);

/* A number of "args"; false when absent or of another kind. */
bool dfcl_pt_arg_number(const struct dfcl_pt *pt, const char *key, double *out);
/* All short strings of "args": key, value, key, value. */
dfcl_status dfcl_pt_arg_texts(const struct dfcl_pt *pt, struct dfcl_list *out, dfcl_error *err);

/* Writer of a plain state dict of f32 tensors, each in a storage of its own: what torch.save makes of an OrderedDict. Life: create -> tensor* ->
 * f32 in the order of the declarations, in pieces of any size that do not cross a tensor's end -> finish. Atomic: the file appears at finish, or
 * not at all. The same calls give the same bytes. */
struct dfcl_pt_writer;
dfcl_status dfcl_pt_writer_create(struct dfcl_pt_writer **out, const dfcl_context *ctx, const char *path, dfcl_error *err);
dfcl_status dfcl_pt_writer_tensor(struct dfcl_pt_writer *w, const char *name, const int64_t *shape, int ndim, dfcl_error *err);
dfcl_status dfcl_pt_writer_f32(struct dfcl_pt_writer *w, const float *data, size_t count, dfcl_error *err);
/* Checks that everything declared was written, commits, and destroys the writer, also on failure. */
dfcl_status dfcl_pt_writer_finish(struct dfcl_pt_writer **w, dfcl_error *err);
/* Drops an unfinished file; harmless on NULL. */
void dfcl_pt_writer_destroy(struct dfcl_pt_writer **w);

#endif
