/* The pickle reader alone, and the graph that it leaves: every number in it leads somewhere, every string lies in the input. */
#define FUZZ_MEMORY ((size_t)512 << 20) /* its limits on nodes and items together */

#include "formats/pickle.h"
#include "fuzz.h"

static void check_node(const struct dfcl_pickle *pk, uint32_t i, const uint8_t *data, size_t size) {
    const struct dfcl_pk_node *d = dfcl_pk_at(pk, i);
    char text[300];
    const char *end = (const char *)data + size;
    bool good = true;
    switch (d->kind) {
    case DFCL_PK_STR:
    case DFCL_PK_BYTES: good = d->u.str.s >= (const char *)data && d->u.str.s <= end && d->u.str.n <= (size_t)(end - d->u.str.s); break;
    case DFCL_PK_TUPLE:
    case DFCL_PK_LIST:
    case DFCL_PK_SET:
    case DFCL_PK_DICT:
        for (size_t k = 0; k < d->u.list.count; k++)
            good = good && d->u.list.items[k] < pk->count;
        good = good && (d->kind != DFCL_PK_DICT || d->u.list.count % 2 == 0);
        break;
    case DFCL_PK_GLOBAL:
        for (int k = 0; k < 2; k++)
            good = good && d->u.pair[k] < pk->count && dfcl_pk_at(pk, d->u.pair[k])->kind == DFCL_PK_STR;
        break;
    case DFCL_PK_OBJECT:
        good = d->u.object.cls < pk->count && d->u.object.args < pk->count &&
               (d->u.object.state == DFCL_PK_NOTHING || d->u.object.state < pk->count);
        break;
    case DFCL_PK_STORAGE: good = d->u.index < pk->storage_count; break;
    case DFCL_PK_TENSOR:
        good = d->u.index < pk->tensor_count && pk->tensors[d->u.index].storage < pk->storage_count &&
               (unsigned)pk->tensors[d->u.index].ndim <= DFCL_MAX_DIMS;
        break;
    default: break;
    }
    if (!good)
        abort();
    if (i < 256)
        dfcl_pk_describe(pk, i, text, sizeof text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dfcl_pickle pk;
    dfcl_error e = {0};
    dfcl_status s = dfcl_pickle_read(&pk, fuzz_context(), data, size, "input", &e);
    fuzz_check(s, &e, "input");
    if (!s) {
        if (pk.root >= pk.count)
            abort();
        for (size_t i = 0; i < pk.count; i++)
            check_node(&pk, (uint32_t)i, data, size);
        dfcl_pk_get(&pk, pk.root, "model");
    }
    dfcl_pickle_free(&pk);
    return 0;
}
