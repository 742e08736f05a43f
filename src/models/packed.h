/* Packed frozen matrices kept in a file, which the next model of the same base uses in place (DFCL_PACK_CACHE).
 *
 * CACHE_DIR/packed/KEY.bin, KEY of the base's path and the form of the matrices, so that a base that changed replaces
 * its file: a head of text, then each matrix in panels from a page boundary on, in the order of dit_linear_at. The head
 * names the base's file by inode, size and times of change, holds the base's hash, and has its own SHA-256. It is not a
 * format for exchange: what does not fit is made again. */
#ifndef DFCL_MODELS_PACKED_H
#define DFCL_MODELS_PACKED_H

#include "models/model.h"

struct dfcl_packed;

/* Before dfcl_dit_alloc_params. *out = NULL: nothing can be kept, the reason is logged. Where a file fits, its matrices
 * are mapped (dfcl_dit_map_weight) and `hash` is the base's; else hash is "". */
dfcl_status dfcl_packed_open(struct dfcl_packed **out, struct dfcl_dit *dit, const struct dfcl_base *base,
                             const char *which, char hash[65], dfcl_error *err);
/* False when the base's file was changed or replaced since it was opened. */
bool dfcl_packed_base_is_same(const struct dfcl_packed *packed);
/* Writes the file from the device's matrices, once all values are set. Every problem is a warning. */
void dfcl_packed_store(struct dfcl_packed *packed, struct dfcl_dit *dit, const char *hash);
/* After the model's device memory is gone. */
void dfcl_packed_close(struct dfcl_packed **packed);

/* Files changed less than so many seconds ago are not kept: a later change could carry the same times. Tests shorten
 * it. */
extern double dfcl_packed_min_age_s;

#endif
