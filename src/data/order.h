/* The order of samples: one seeded shuffle per epoch. */
#ifndef DFCL_DATA_ORDER_H
#define DFCL_DATA_ORDER_H

#include "base/base.h"

/* The shuffles of two neighbouring epochs are kept, since a batch (and the reading ahead of it) may straddle an epoch's end. */
struct dfcl_order {
    uint64_t seed;
    uint32_t count;
    struct dfcl_order_epoch {
        uint64_t epoch;
        uint32_t *items; /* NULL: not made yet */
    } epochs[2];
    unsigned next;
};
dfcl_status dfcl_order_init(struct dfcl_order *o, const dfcl_context *ctx, uint64_t seed, uint32_t count, dfcl_error *err);
void dfcl_order_finish(struct dfcl_order *o, const dfcl_context *ctx);
uint32_t dfcl_order_item(struct dfcl_order *o, uint64_t g);

#endif
