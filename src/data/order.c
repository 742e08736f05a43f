#include "data/order.h"

#include <string.h>

#include "base/philox.h"

dfcl_status dfcl_order_init(struct dfcl_order *o, const dfcl_context *ctx, uint64_t seed, uint32_t count, dfcl_error *err) {
    memset(o, 0, sizeof *o);
    o->seed = seed;
    o->count = count;
    for (size_t i = 0; i < DFCL_COUNT(o->epochs); i++) {
        o->epochs[i].epoch = UINT64_MAX;
        o->epochs[i].items = dfcl_calloc(ctx, count, sizeof *o->epochs[i].items, err);
        if (!o->epochs[i].items) {
            dfcl_order_finish(o, ctx);
            return DFCL_NOMEM;
        }
    }
    return DFCL_OK;
}

void dfcl_order_finish(struct dfcl_order *o, const dfcl_context *ctx) {
    for (size_t i = 0; i < DFCL_COUNT(o->epochs); i++)
        dfcl_free(ctx, o->epochs[i].items);
    memset(o, 0, sizeof *o);
}

uint32_t dfcl_order_item(struct dfcl_order *o, uint64_t g) {
    uint64_t epoch = g / o->count;
    for (size_t i = 0; i < DFCL_COUNT(o->epochs); i++)
        if (o->epochs[i].epoch == epoch)
            return o->epochs[i].items[g % o->count];
    struct dfcl_order_epoch *e = &o->epochs[o->next];
    o->next = (o->next + 1) % DFCL_COUNT(o->epochs);
    e->epoch = epoch;
    for (uint32_t i = 0; i < o->count; i++)
        e->items[i] = i;
    for (uint32_t i = o->count; i-- > 1;) {
        uint32_t j = dfcl_uniform_int(o->seed, DFCL_STREAM_SHUFFLE, (uint32_t)epoch, i, 0, i + 1);
        uint32_t t = e->items[i];
        e->items[i] = e->items[j];
        e->items[j] = t;
    }
    return e->items[g % o->count];
}
