/* Which passes a step is made of: their size and what backward runs again, as memory allows. */
#ifndef DFCL_TRAIN_PASS_SIZE_H
#define DFCL_TRAIN_PASS_SIZE_H

#include "models/dit.h"

struct dfcl_pass_limits {
    int batch;     /* samples of a step; passes divide it */
    int most;      /* largest pass worth taking */
    int full;      /* smallest pass that keeps the device busy */
    uint64_t room; /* bytes on the device; 0: unknown, everything fits */
};
struct dfcl_pass_size {
    int micro;                     /* samples of a pass */
    enum dfcl_recompute recompute;
};
/* *need: bytes of a setting. DFCL_NOMEM: more than the device can hold; other errors end the search. */
typedef dfcl_status (*dfcl_pass_price)(void *user, struct dfcl_pass_size size, uint64_t *need, dfcl_error *err);

/* What of `asked` is 0 is chosen. The first setting that fits, in this order: passes from `full` up before smaller ones; there lower levels before
 * higher ones; there larger passes before smaller ones. *advice is "" then; when nothing fits it says what would, as a clause for the message, and
 * *found is the setting of least need within what was asked. */
dfcl_status dfcl_pass_choose(const struct dfcl_pass_limits *lim, struct dfcl_pass_size asked, dfcl_pass_price price, void *user,
                             struct dfcl_pass_size *found, char *advice, size_t advice_size, dfcl_error *err);

#endif
