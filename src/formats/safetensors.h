/* safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.
 *
 * The reader maps the file and copies nothing but names; every view points into the mapping, which must not be truncated while open.
 * All findings about a bad file are DFCL_FORMAT and name the file. */
#ifndef DFCL_FORMATS_SAFETENSORS_H
#define DFCL_FORMATS_SAFETENSORS_H

#include "base/file.h"
#include "formats/tensor_view.h"

#define DFCL_ST_MAX_HEADER (100u << 20) /* bytes, as the format's own library limits it */

struct dfcl_st {
    const dfcl_context *ctx;
    char *path;
    struct dfcl_map map;   /* data NULL when opened from memory */
    const unsigned char *data;
    uint64_t size;         /* of the whole file */
    struct dfcl_tensor_view *tensors; /* in the order of their bytes; parts = 1, not strided */
    size_t count;
    char **meta;           /* key, value, key, value ... in the file's order */
    size_t meta_count;     /* pairs */
    uint32_t *by_name;     /* tensor numbers sorted by name */
};

dfcl_status dfcl_st_open(struct dfcl_st **out, const dfcl_context *ctx, const char *path, dfcl_error *err);
/* The same on bytes that outlive it; `path` is only for messages. */
dfcl_status dfcl_st_open_memory(struct dfcl_st **out, const dfcl_context *ctx, const void *data, size_t size, const char *path,
                                dfcl_error *err);
void dfcl_st_close(struct dfcl_st **st);
const struct dfcl_tensor_view *dfcl_st_find(const struct dfcl_st *st, const char *name); /* NULL: none */
const char *dfcl_st_meta(const struct dfcl_st *st, const char *key);                     /* NULL: none */

/* Writer. Life: create -> (meta | tensor)* -> data in the order of the declarations, in pieces of any size -> finish. Atomic: the file appears
 * at finish, or not at all. Tensors are written without gaps, so declare larger element types first where types are mixed. */
struct dfcl_st_writer;
dfcl_status dfcl_st_writer_create(struct dfcl_st_writer **out, const dfcl_context *ctx, const char *path, dfcl_error *err);
dfcl_status dfcl_st_writer_meta(struct dfcl_st_writer *w, const char *key, const char *value, dfcl_error *err);
dfcl_status dfcl_st_writer_tensor(struct dfcl_st_writer *w, const char *name, enum dfcl_dtype dtype, const int64_t *shape, int ndim,
                                  dfcl_error *err);
/* Bytes in the stored type; the first call writes the header. */
dfcl_status dfcl_st_writer_data(struct dfcl_st_writer *w, const void *data, size_t bytes, dfcl_error *err);
/* `count` values converted to the type of the tensor being written (F32, F16 or BF16); must not cross its end. */
dfcl_status dfcl_st_writer_f32(struct dfcl_st_writer *w, const float *data, size_t count, dfcl_error *err);
/* Checks that everything declared was written, commits, and destroys the writer, also on failure. */
dfcl_status dfcl_st_writer_finish(struct dfcl_st_writer **w, dfcl_error *err);
/* Drops an unfinished file; harmless on NULL. */
void dfcl_st_writer_destroy(struct dfcl_st_writer **w);

#endif
