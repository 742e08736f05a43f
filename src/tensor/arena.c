#include "tensor/arena.h"

#include <string.h>

struct dfcl_mem dfcl_dry_mem = {.label = "dry run"};

void dfcl_arena_init(struct dfcl_arena *a, struct dfcl_device *dev, const char *label) {
    memset(a, 0, sizeof *a);
    a->dev = dev;
    a->label = label;
    a->dry = true;
    a->align = 256;
}

static dfcl_status place(struct dfcl_arena *a, uint64_t bytes, dfcl_error *err) {
    const dfcl_context *ctx = a->dev->ctx;
    uint64_t limit = a->dev->info.max_alloc ? a->dev->info.max_alloc : UINT64_MAX;
    uint64_t size = (DFCL_MAX(bytes, 1) + a->align - 1) / a->align * a->align;
    if (bytes > UINT64_MAX / 4 || size > limit)
        return dfcl_fail(err, DFCL_NOMEM, "%s: one tensor of %.1f MiB is larger than the device's largest allocation (%.1f MiB)",
                         a->label, (double)bytes / 1048576.0, (double)limit / 1048576.0);
    if (!a->chunk_count || a->chunk_size[a->chunk_count - 1] + size > limit) {
        void *p = a->chunk_size;
        if (dfcl_grow(ctx, &p, &a->chunk_cap, a->chunk_count + 1, sizeof *a->chunk_size, err))
            return DFCL_NOMEM;
        a->chunk_size = p;
        a->chunk_size[a->chunk_count++] = 0;
    }
    void *p = a->places;
    if (dfcl_grow(ctx, &p, &a->place_cap, a->place_count + 1, sizeof *a->places, err))
        return DFCL_NOMEM;
    a->places = p;
    uint64_t *top = &a->chunk_size[a->chunk_count - 1];
    a->places[a->place_count++] = (struct dfcl_place){(uint32_t)(a->chunk_count - 1), *top, bytes};
    *top += size;
    a->total += size;
    return DFCL_OK;
}

dfcl_status dfcl_arena_alloc(struct dfcl_arena *a, uint64_t bytes, struct dfcl_ref *out, dfcl_error *err) {
    *out = DFCL_NO_REF;
    if (a->dry) {
        dfcl_status s = place(a, bytes, err);
        if (!s)
            out->mem = &dfcl_dry_mem;
        return s;
    }
    if (a->next >= a->place_count || a->places[a->next].size != bytes)
        return dfcl_fail(err, DFCL_ERROR, "%s: allocation %zu of %llu bytes was not planned", a->label, a->next,
                         (unsigned long long)bytes);
    const struct dfcl_place *p = &a->places[a->next++];
    out->mem = a->chunks[p->chunk];
    out->off = p->off;
    return DFCL_OK;
}

dfcl_status dfcl_arena_commit(struct dfcl_arena *a, dfcl_error *err) {
    a->chunks = dfcl_calloc(a->dev->ctx, a->chunk_count, sizeof *a->chunks, err);
    if (!a->chunks)
        return DFCL_NOMEM;
    for (size_t i = 0; i < a->chunk_count; i++) {
        dfcl_status s = dfcl_mem_create(a->dev, a->chunk_size[i], a->label, &a->chunks[i], err);
        if (s)
            return s;
    }
    a->dry = false;
    a->next = 0;
    return DFCL_OK;
}

void dfcl_arena_reset(struct dfcl_arena *a) {
    if (!a->dev)
        return;
    const dfcl_context *ctx = a->dev->ctx;
    if (a->chunks)
        for (size_t i = 0; i < a->chunk_count; i++)
            dfcl_mem_destroy(a->dev, &a->chunks[i]);
    dfcl_free(ctx, a->chunks);
    a->chunks = NULL;
    a->place_count = a->chunk_count = a->next = 0;
    a->total = 0;
    a->dry = true;
}

void dfcl_arena_finish(struct dfcl_arena *a) {
    if (!a->dev)
        return;
    dfcl_arena_reset(a);
    dfcl_free(a->dev->ctx, a->places);
    dfcl_free(a->dev->ctx, a->chunk_size);
    memset(a, 0, sizeof *a);
}
