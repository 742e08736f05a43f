/* Finding the samples of a folder; see data/dataset.h for the layouts. */
#ifndef DFCL_DATA_SCAN_H
#define DFCL_DATA_SCAN_H

#include "base/file.h"

struct dfcl_scan_item {
    char *path;       /* picture, or features file */
    char *label_path; /* latents: labels file; NULL for pictures */
    int label;        /* latents: -1 until the labels are read */
};

struct dfcl_scan {
    bool latent;
    struct dfcl_scan_item *items;
    size_t count, cap;
    struct dfcl_list classes; /* latents: empty without class_names.txt */
};

/* DFCL_FORMAT when there is nothing to train on. */
dfcl_status dfcl_scan_folder(const dfcl_context *ctx, const char *path, struct dfcl_scan *out, dfcl_error *err);
void dfcl_scan_free(const dfcl_context *ctx, struct dfcl_scan *scan);

#endif
