/* Device memory by purpose: weights | activations | scratch.
 *
 * The same code that will use the memory first runs dry: allocations only add up, nothing is taken. dfcl_arena_commit then takes chunks
 * no larger than the device's largest allocation, and the second run hands out the same places. */
#ifndef DFCL_TENSOR_ARENA_H
#define DFCL_TENSOR_ARENA_H

#include "tensor/tensor.h"

extern struct dfcl_mem dfcl_dry_mem;

struct dfcl_arena {
    struct dfcl_device *dev;
    const char *label;
    bool dry;
    uint64_t align;   /* of every allocation, bytes */
    /* places: one entry per allocation of the dry run */
    struct dfcl_place {
        uint32_t chunk;
        uint64_t off, size;
    } *places;
    size_t place_count, place_cap, next;
    uint64_t *chunk_size;
    size_t chunk_count, chunk_cap;
    struct dfcl_mem **chunks; /* NULL until committed */
    uint64_t total;           /* bytes over all chunks */
};
void dfcl_arena_init(struct dfcl_arena *a, struct dfcl_device *dev, const char *label); /* starts dry */
/* Dry: *out points at dfcl_dry_mem, which says "present" and has no memory. Else: the place of the dry run at the same position, whose size must be the same (DFCL_ERROR if not). */
dfcl_status dfcl_arena_alloc(struct dfcl_arena *a, uint64_t bytes, struct dfcl_ref *out, dfcl_error *err);
dfcl_status dfcl_arena_commit(struct dfcl_arena *a, dfcl_error *err); /* takes the memory, ends the dry run, rewinds */
/* Frees the memory and forgets the places; dry again. */
void dfcl_arena_reset(struct dfcl_arena *a);
void dfcl_arena_finish(struct dfcl_arena *a);

#endif
