/* Inside of a tensor file; shared with diffusers_names.c. */
#ifndef DFCL_FORMATS_TENSOR_FILE_INTERNAL_H
#define DFCL_FORMATS_TENSOR_FILE_INTERNAL_H

#include <cjson/cJSON.h>

#include "formats/safetensors.h"
#include "formats/tensor_file.h"
#include "formats/torch_pt.h"

/* A tensor under its presented name, and the container's views it is made of. */
struct dfcl_tf_entry {
    struct dfcl_tensor_view view;
    char *name;      /* owned, when the name is not the container's; else NULL */
    uint32_t raw[3]; /* container views of the pieces */
    uint32_t copy_first, copy_count; /* in dfcl_tensor_file.copies: views that must hold the same bytes */
    bool copies_checked;
};

struct dfcl_tensor_file {
    const dfcl_context *ctx;
    char *path;
    enum dfcl_container container;
    struct dfcl_map map;   /* the whole file; empty when opened from memory */
    struct dfcl_st *st;    /* one of these two */
    struct dfcl_pt *pt;
    const struct dfcl_tensor_view *raw; /* the container's views */
    size_t raw_count;
    uint32_t *raw_by_name;
    struct dfcl_list args; /* key, text pairs of a checkpoint's "args" */
    struct dfcl_tf_entry *entries;
    size_t count, cap;
    uint32_t *by_name;
    uint32_t *copies;
    size_t copy_count, copy_cap;
    bool diffusers;
    cJSON *config; /* or NULL */
};

/* Number of the container's view of that name. */
bool dfcl_tf_raw_find(const struct dfcl_tensor_file *file, const char *name, uint32_t *index);
/* True when the container's names are those of diffusers' DiTTransformer2DModel. */
bool dfcl_diffusers_detect(const struct dfcl_tensor_file *file);
/* Fills the entries from such a container. */
dfcl_status dfcl_diffusers_map(struct dfcl_tensor_file *file, dfcl_error *err);
dfcl_status dfcl_tf_add(struct dfcl_tensor_file *file, const struct dfcl_tf_entry *e, dfcl_error *err);

#endif
