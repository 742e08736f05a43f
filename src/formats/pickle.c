#include "formats/pickle.h"

#include <string.h>

/* Limits far above any checkpoint (a DiT-XL/2 training checkpoint has some 30,000 nodes); together they bound memory to a few hundred MB. */
#define MAX_NODES (1u << 20)
#define MAX_ITEMS (1u << 23)
#define MAX_MEMO (1u << 20)
#define MAX_MARKS (1u << 16)

struct machine {
    struct dfcl_pickle *pk;
    const unsigned char *start, *p, *end;
    uint32_t *stack, *marks, *memo; /* memo: node + 1, 0 unset */
    size_t depth, stack_cap, mark_count, mark_cap, memo_cap, memo_next, items;
    dfcl_error *err;
};

static dfcl_status bad(struct machine *m, const char *what) {
    return dfcl_fail(m->err, DFCL_FORMAT, "%s: bad pickle at byte %zu: %s", m->pk->path, (size_t)(m->p - m->start), what);
}

#define TRY(call)                                                                                                              \
    do {                                                                                                                       \
        dfcl_status try_ = (call);                                                                                             \
        if (try_)                                                                                                              \
            return try_;                                                                                                       \
    } while (0)

static dfcl_status new_node(struct machine *m, enum dfcl_pk_kind kind, uint32_t *out) {
    struct dfcl_pickle *pk = m->pk;
    if (pk->count >= MAX_NODES)
        return bad(m, "more objects than any checkpoint has");
    void *p = pk->nodes;
    dfcl_status s = dfcl_grow(pk->ctx, &p, &pk->cap, pk->count + 1, sizeof *pk->nodes, m->err);
    pk->nodes = p;
    if (s)
        return s;
    *out = (uint32_t)pk->count++;
    pk->nodes[*out].kind = kind;
    return DFCL_OK;
}

static dfcl_status push(struct machine *m, uint32_t node) {
    if (m->depth >= MAX_NODES)
        return bad(m, "the stack grows too high");
    void *p = m->stack;
    dfcl_status s = dfcl_grow(m->pk->ctx, &p, &m->stack_cap, m->depth + 1, sizeof *m->stack, m->err);
    m->stack = p;
    if (!s)
        m->stack[m->depth++] = node;
    return s;
}

static dfcl_status push_new(struct machine *m, enum dfcl_pk_kind kind, struct dfcl_pk_node **node) {
    uint32_t n = 0;
    TRY(new_node(m, kind, &n));
    *node = &m->pk->nodes[n];
    return push(m, n);
}

/* Lowest stack position that may be popped: what lies under the last mark is out of reach. */
static size_t stack_floor(const struct machine *m) {
    return m->mark_count ? m->marks[m->mark_count - 1] : 0;
}

static dfcl_status pop(struct machine *m, uint32_t *out) {
    if (m->depth <= stack_floor(m))
        return bad(m, "the stack is empty");
    *out = m->stack[--m->depth];
    return DFCL_OK;
}

static dfcl_status top(struct machine *m, uint32_t *out) {
    if (m->depth <= stack_floor(m))
        return bad(m, "the stack is empty");
    *out = m->stack[m->depth - 1];
    return DFCL_OK;
}

/* Position of the last mark, which is removed. */
static dfcl_status pop_mark(struct machine *m, size_t *at) {
    if (!m->mark_count)
        return bad(m, "no mark");
    *at = m->marks[--m->mark_count];
    return DFCL_OK;
}

static dfcl_status extend(struct machine *m, uint32_t node, const uint32_t *items, size_t n) {
    struct dfcl_pk_node *d = &m->pk->nodes[node];
    if (n > MAX_ITEMS - m->items)
        return bad(m, "more items than any checkpoint has");
    m->items += n;
    void *p = d->u.list.items;
    size_t cap = d->cap;
    dfcl_status s = dfcl_grow(m->pk->ctx, &p, &cap, d->u.list.count + n, sizeof *items, m->err);
    d->u.list.items = p;
    d->cap = (uint32_t)cap;
    if (s)
        return s;
    if (n)
        memcpy(d->u.list.items + d->u.list.count, items, n * sizeof *items);
    d->u.list.count += n;
    return DFCL_OK;
}

/* Pops what lies above `at` into a new sequence and pushes that. */
static dfcl_status collect(struct machine *m, enum dfcl_pk_kind kind, size_t at) {
    if (kind == DFCL_PK_DICT && (m->depth - at) % 2)
        return bad(m, "a key without a value");
    uint32_t n = 0;
    TRY(new_node(m, kind, &n));
    TRY(extend(m, n, m->stack + at, m->depth - at));
    m->depth = at;
    return push(m, n);
}

static dfcl_status collect_top(struct machine *m, size_t n) {
    if (m->depth - stack_floor(m) < n)
        return bad(m, "the stack is empty");
    return collect(m, DFCL_PK_TUPLE, m->depth - n);
}

/* Adds what lies above `at` to the container under it. Opaque objects swallow theirs: nobody reads them. */
static dfcl_status add_to_top(struct machine *m, enum dfcl_pk_kind kind, size_t at) {
    if (at <= stack_floor(m))
        return bad(m, "the stack is empty");
    uint32_t target = m->stack[at - 1];
    enum dfcl_pk_kind have = m->pk->nodes[target].kind;
    if (have == kind) {
        if (kind == DFCL_PK_DICT && (m->depth - at) % 2)
            return bad(m, "a key without a value");
        TRY(extend(m, target, m->stack + at, m->depth - at));
    } else if (have != DFCL_PK_OBJECT)
        return bad(m, "items added to something that holds none");
    m->depth = at;
    return DFCL_OK;
}

static dfcl_status need(struct machine *m, size_t n) {
    return (size_t)(m->end - m->p) < n ? bad(m, "cut short") : DFCL_OK;
}

static dfcl_status number(struct machine *m, int n, uint64_t *out) {
    TRY(need(m, (size_t)n));
    *out = 0;
    for (int i = n - 1; i >= 0; i--)
        *out = *out << 8 | m->p[i];
    m->p += n;
    return DFCL_OK;
}

static dfcl_status string(struct machine *m, enum dfcl_pk_kind kind, int length_bytes) {
    uint64_t n = 0;
    struct dfcl_pk_node *d;
    TRY(number(m, length_bytes, &n));
    if (n > (uint64_t)(m->end - m->p))
        return bad(m, "a string is cut short");
    TRY(push_new(m, kind, &d));
    d->u.str.s = (const char *)m->p;
    d->u.str.n = (size_t)n;
    m->p += n;
    return DFCL_OK;
}

/* A line of the GLOBAL opcode. */
static dfcl_status line(struct machine *m, uint32_t *out) {
    const unsigned char *e = memchr(m->p, '\n', (size_t)(m->end - m->p));
    if (!e)
        return bad(m, "a name is cut short");
    TRY(new_node(m, DFCL_PK_STR, out));
    m->pk->nodes[*out].u.str.s = (const char *)m->p;
    m->pk->nodes[*out].u.str.n = (size_t)(e - m->p);
    m->p = e + 1;
    return DFCL_OK;
}

static dfcl_status long_int(struct machine *m, int length_bytes) {
    uint64_t n = 0;
    struct dfcl_pk_node *d;
    TRY(number(m, length_bytes, &n));
    if (n > (uint64_t)(m->end - m->p))
        return bad(m, "a number is cut short");
    TRY(push_new(m, n <= 8 ? DFCL_PK_INT : DFCL_PK_BIGINT, &d));
    if (n > 0 && n <= 8) {
        uint64_t v = m->p[n - 1] & 0x80 ? UINT64_MAX : 0;
        for (uint64_t i = n; i-- > 0;)
            v = v << 8 | m->p[i];
        memcpy(&d->u.i, &v, sizeof v);
    }
    m->p += n;
    return DFCL_OK;
}

static dfcl_status put_memo(struct machine *m, uint64_t at) {
    uint32_t node = 0;
    TRY(top(m, &node));
    if (at >= MAX_MEMO)
        return bad(m, "a memo number beyond any checkpoint's");
    void *p = m->memo;
    dfcl_status s = dfcl_grow(m->pk->ctx, &p, &m->memo_cap, (size_t)at + 1, sizeof *m->memo, m->err);
    m->memo = p;
    if (s)
        return s;
    m->memo[at] = node + 1;
    return DFCL_OK;
}

static dfcl_status get_memo(struct machine *m, uint64_t at) {
    if (at >= m->memo_cap || !m->memo[at])
        return bad(m, "a memo number that was never set");
    return push(m, m->memo[at] - 1);
}

/* ---- what is understood of torch ---- */

static dfcl_status storage(struct machine *m) {
    struct dfcl_pickle *pk = m->pk;
    uint32_t id = 0;
    TRY(pop(m, &id));
    const struct dfcl_pk_node *t = &pk->nodes[id];
    const uint32_t *a = t->u.list.items;
    if (t->kind != DFCL_PK_TUPLE || t->u.list.count < 5 || !dfcl_pk_is(pk, a[0], "storage") || pk->nodes[a[1]].kind != DFCL_PK_GLOBAL ||
        pk->nodes[a[2]].kind != DFCL_PK_STR || pk->nodes[a[4]].kind != DFCL_PK_INT || pk->nodes[a[4]].u.i < 0)
        return bad(m, "a persistent id that is not torch's ('storage', type, key, location, count)");
    struct dfcl_pk_storage st = {a[1], a[2], pk->nodes[a[4]].u.i};
    void *p = pk->storages;
    dfcl_status s = dfcl_grow(pk->ctx, &p, &pk->storage_cap, pk->storage_count + 1, sizeof st, m->err);
    pk->storages = p;
    if (s)
        return s;
    pk->storages[pk->storage_count] = st;
    struct dfcl_pk_node *d;
    TRY(push_new(m, DFCL_PK_STORAGE, &d));
    d->u.index = (uint32_t)pk->storage_count++;
    return DFCL_OK;
}

static bool ints(const struct dfcl_pickle *pk, uint32_t node, int64_t out[DFCL_MAX_DIMS], size_t *n) {
    const struct dfcl_pk_node *t = &pk->nodes[node];
    if ((t->kind != DFCL_PK_TUPLE && t->kind != DFCL_PK_LIST) || t->u.list.count > DFCL_MAX_DIMS)
        return false;
    *n = t->u.list.count;
    for (size_t i = 0; i < *n; i++) {
        const struct dfcl_pk_node *v = &pk->nodes[t->u.list.items[i]];
        if (v->kind != DFCL_PK_INT || v->u.i < 0)
            return false;
        out[i] = v->u.i;
    }
    return true;
}

/* torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static dfcl_status tensor(struct machine *m, const uint32_t *a, size_t n) {
    struct dfcl_pickle *pk = m->pk;
    struct dfcl_pk_tensor t = {0};
    size_t dims = 0, strides = 0;
    if (n < 4 || pk->nodes[a[0]].kind != DFCL_PK_STORAGE || pk->nodes[a[1]].kind != DFCL_PK_INT || pk->nodes[a[1]].u.i < 0 ||
        !ints(pk, a[2], t.shape, &dims) || !ints(pk, a[3], t.stride, &strides) || dims != strides)
        return bad(m, "a tensor whose storage, offset, shape or strides make no sense (at most 8 dimensions)");
    t.storage = pk->nodes[a[0]].u.index;
    t.offset = pk->nodes[a[1]].u.i;
    t.ndim = (int)dims;
    void *p = pk->tensors;
    dfcl_status s = dfcl_grow(pk->ctx, &p, &pk->tensor_cap, pk->tensor_count + 1, sizeof t, m->err);
    pk->tensors = p;
    if (s)
        return s;
    pk->tensors[pk->tensor_count] = t;
    struct dfcl_pk_node *d;
    TRY(push_new(m, DFCL_PK_TENSOR, &d));
    d->u.index = (uint32_t)pk->tensor_count++;
    return DFCL_OK;
}

static dfcl_status opaque(struct machine *m, uint32_t cls, uint32_t args) {
    struct dfcl_pk_node *d;
    TRY(push_new(m, DFCL_PK_OBJECT, &d));
    d->u.object.cls = cls;
    d->u.object.args = args;
    d->u.object.state = DFCL_PK_NOTHING;
    return DFCL_OK;
}

static dfcl_status reduce(struct machine *m, bool is_new) {
    struct dfcl_pickle *pk = m->pk;
    uint32_t args = 0, f = 0;
    TRY(pop(m, &args));
    TRY(pop(m, &f));
    if (pk->nodes[args].kind != DFCL_PK_TUPLE)
        return bad(m, "a call without a tuple of arguments");
    const uint32_t *a = pk->nodes[args].u.list.items;
    const size_t n = pk->nodes[args].u.list.count;
    if (dfcl_pk_is_global(pk, f, "collections", "OrderedDict") || dfcl_pk_is_global(pk, f, "collections", "defaultdict") ||
        dfcl_pk_is_global(pk, f, "builtins", "dict")) {
        /* Old Pythons passed a list of pairs; state dicts never come that way, so one is kept as an opaque object. */
        struct dfcl_pk_node *d;
        bool plain = n == 0 || dfcl_pk_is_global(pk, f, "collections", "defaultdict");
        return plain ? push_new(m, DFCL_PK_DICT, &d) : opaque(m, f, args);
    }
    if (!is_new && dfcl_pk_is_global(pk, f, "torch._utils", "_rebuild_tensor_v2"))
        return tensor(m, a, n);
    if (!is_new && n >= 1 &&
        (dfcl_pk_is_global(pk, f, "torch._utils", "_rebuild_parameter") ||
         dfcl_pk_is_global(pk, f, "torch._utils", "_rebuild_parameter_with_state") || dfcl_pk_is_global(pk, f, "torch", "Size")))
        return push(m, a[0]);
    return opaque(m, f, args);
}

static dfcl_status build(struct machine *m) {
    uint32_t state = 0, target = 0;
    TRY(pop(m, &state));
    TRY(top(m, &target));
    /* State of anything else (the _metadata of a state dict) is of no use here. */
    if (m->pk->nodes[target].kind == DFCL_PK_OBJECT)
        m->pk->nodes[target].u.object.state = state;
    return DFCL_OK;
}

/* ---- the machine ---- */

static dfcl_status step(struct machine *m, unsigned op, bool *stop) {
    struct dfcl_pk_node *d;
    uint64_t v = 0;
    uint32_t a = 0, b = 0, c = 0;
    size_t at = 0;
    switch (op) {
    case 0x80: /* PROTO */
        TRY(number(m, 1, &v));
        return v >= 2 && v <= 5 ? DFCL_OK : bad(m, "expected protocol 2 to 5");
    case 0x95: /* FRAME */
        TRY(number(m, 8, &v));
        return v <= (uint64_t)(m->end - m->p) ? DFCL_OK : bad(m, "cut short");
    case '.':
        TRY(pop(m, &m->pk->root));
        *stop = true;
        return DFCL_OK;
    case '(':
        if (m->mark_count >= MAX_MARKS)
            return bad(m, "nested too deeply");
        {
            void *p = m->marks;
            dfcl_status s = dfcl_grow(m->pk->ctx, &p, &m->mark_cap, m->mark_count + 1, sizeof *m->marks, m->err);
            m->marks = p;
            if (s)
                return s;
        }
        m->marks[m->mark_count++] = (uint32_t)m->depth;
        return DFCL_OK;
    case '0': /* POP; of a mark when that is what lies on top */
        if (m->mark_count && m->marks[m->mark_count - 1] == m->depth)
            return pop_mark(m, &at);
        return pop(m, &a);
    case '1': /* POP_MARK */
        TRY(pop_mark(m, &at));
        m->depth = at;
        return DFCL_OK;
    case '2': /* DUP */
        TRY(top(m, &a));
        return push(m, a);
    case 'N': return push_new(m, DFCL_PK_NONE, &d);
    case 0x88:
    case 0x89:
        TRY(push_new(m, DFCL_PK_BOOL, &d));
        d->u.i = op == 0x88;
        return DFCL_OK;
    case 'K':
    case 'M':
        TRY(number(m, op == 'K' ? 1 : 2, &v));
        TRY(push_new(m, DFCL_PK_INT, &d));
        d->u.i = (int64_t)v;
        return DFCL_OK;
    case 'J':
        TRY(number(m, 4, &v));
        TRY(push_new(m, DFCL_PK_INT, &d));
        d->u.i = v < 0x80000000u ? (int64_t)v : (int64_t)v - INT64_C(0x100000000);
        return DFCL_OK;
    case 0x8a: return long_int(m, 1);
    case 0x8b: return long_int(m, 4);
    case 'G':
        TRY(need(m, 8));
        for (int i = 0; i < 8; i++)
            v = v << 8 | m->p[i];
        m->p += 8;
        TRY(push_new(m, DFCL_PK_FLOAT, &d));
        memcpy(&d->u.f, &v, 8);
        return DFCL_OK;
    case 'X': return string(m, DFCL_PK_STR, 4);
    case 0x8c: return string(m, DFCL_PK_STR, 1);
    case 0x8d: return string(m, DFCL_PK_STR, 8);
    case 'U': return string(m, DFCL_PK_STR, 1); /* Python 2's byte strings, which were its text */
    case 'T': return string(m, DFCL_PK_STR, 4);
    case 'C': return string(m, DFCL_PK_BYTES, 1);
    case 'B': return string(m, DFCL_PK_BYTES, 4);
    case 0x8e:
    case 0x96: return string(m, DFCL_PK_BYTES, 8);
    case ']': return push_new(m, DFCL_PK_LIST, &d);
    case '}': return push_new(m, DFCL_PK_DICT, &d);
    case ')': return push_new(m, DFCL_PK_TUPLE, &d);
    case 0x8f: return push_new(m, DFCL_PK_SET, &d);
    case 0x85:
    case 0x86:
    case 0x87: return collect_top(m, op - 0x84);
    case 't':
        TRY(pop_mark(m, &at));
        return collect(m, DFCL_PK_TUPLE, at);
    case 'l':
        TRY(pop_mark(m, &at));
        return collect(m, DFCL_PK_LIST, at);
    case 'd':
        TRY(pop_mark(m, &at));
        return collect(m, DFCL_PK_DICT, at);
    case 0x91:
        TRY(pop_mark(m, &at));
        return collect(m, DFCL_PK_SET, at);
    case 'a':
        TRY(top(m, &a));
        return add_to_top(m, DFCL_PK_LIST, m->depth - 1);
    case 'e':
        TRY(pop_mark(m, &at));
        return add_to_top(m, DFCL_PK_LIST, at);
    case 0x90:
        TRY(pop_mark(m, &at));
        return add_to_top(m, DFCL_PK_SET, at);
    case 's':
        if (m->depth - stack_floor(m) < 3)
            return bad(m, "the stack is empty");
        return add_to_top(m, DFCL_PK_DICT, m->depth - 2);
    case 'u':
        TRY(pop_mark(m, &at));
        return add_to_top(m, DFCL_PK_DICT, at);
    case 'q':
    case 'r':
        TRY(number(m, op == 'q' ? 1 : 4, &v));
        return put_memo(m, v);
    case 0x94: return put_memo(m, m->memo_next++);
    case 'h':
    case 'j':
        TRY(number(m, op == 'h' ? 1 : 4, &v));
        return get_memo(m, v);
    case 'c':
        TRY(line(m, &a));
        TRY(line(m, &b));
        TRY(push_new(m, DFCL_PK_GLOBAL, &d));
        d->u.pair[0] = a;
        d->u.pair[1] = b;
        return DFCL_OK;
    case 0x93:
        TRY(pop(m, &b));
        TRY(pop(m, &a));
        if (m->pk->nodes[a].kind != DFCL_PK_STR || m->pk->nodes[b].kind != DFCL_PK_STR)
            return bad(m, "a global that is not named by strings");
        TRY(push_new(m, DFCL_PK_GLOBAL, &d));
        d->u.pair[0] = a;
        d->u.pair[1] = b;
        return DFCL_OK;
    case 'Q': return storage(m);
    case 'R': return reduce(m, false);
    case 0x81: return reduce(m, true);
    case 0x92: /* NEWOBJ_EX: class, args, keywords */
        TRY(pop(m, &c));
        TRY(pop(m, &b));
        TRY(pop(m, &a));
        return opaque(m, a, b);
    case 'b': return build(m);
    default: m->p--; return dfcl_fail(m->err, DFCL_FORMAT, "%s: bad pickle at byte %zu: opcode 0x%02x is not allowed", m->pk->path,
                                      (size_t)(m->p - m->start), op);
    }
}

dfcl_status dfcl_pickle_read(struct dfcl_pickle *pk, const dfcl_context *ctx, const void *data, size_t size, const char *path, dfcl_error *err) {
    memset(pk, 0, sizeof *pk);
    pk->ctx = ctx;
    pk->path = path;
    struct machine m = {.pk = pk, .start = data, .p = data, .end = (const unsigned char *)data + size, .err = err};
    dfcl_status s = DFCL_OK;
    bool stop = false;
    if (size > DFCL_PK_MAX_BYTES)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: a pickle of %zu bytes, at most %u expected", path, size, DFCL_PK_MAX_BYTES);
    if (!s) { /* the stack is never NULL: an empty range of it is still a range */
        void *p = NULL;
        s = dfcl_grow(ctx, &p, &m.stack_cap, 64, sizeof *m.stack, err);
        m.stack = p;
    }
    while (!s && !stop)
        s = m.p == m.end ? bad(&m, "cut short") : step(&m, *m.p++, &stop);
    dfcl_free(ctx, m.stack);
    dfcl_free(ctx, m.marks);
    dfcl_free(ctx, m.memo);
    if (s)
        dfcl_pickle_free(pk);
    return s;
}

void dfcl_pickle_free(struct dfcl_pickle *pk) {
    for (size_t i = 0; i < pk->count; i++)
        if (pk->nodes[i].kind >= DFCL_PK_TUPLE && pk->nodes[i].kind <= DFCL_PK_DICT)
            dfcl_free(pk->ctx, pk->nodes[i].u.list.items);
    if (pk->ctx) {
        dfcl_free(pk->ctx, pk->nodes);
        dfcl_free(pk->ctx, pk->storages);
        dfcl_free(pk->ctx, pk->tensors);
    }
    memset(pk, 0, sizeof *pk);
}

bool dfcl_pk_is(const struct dfcl_pickle *pk, uint32_t node, const char *text) {
    const struct dfcl_pk_node *d = &pk->nodes[node];
    size_t n = strlen(text);
    return d->kind == DFCL_PK_STR && d->u.str.n == n && !memcmp(d->u.str.s, text, n);
}

bool dfcl_pk_is_global(const struct dfcl_pickle *pk, uint32_t node, const char *module, const char *name) {
    const struct dfcl_pk_node *d = &pk->nodes[node];
    return d->kind == DFCL_PK_GLOBAL && dfcl_pk_is(pk, d->u.pair[0], module) && dfcl_pk_is(pk, d->u.pair[1], name);
}

uint32_t dfcl_pk_get(const struct dfcl_pickle *pk, uint32_t dict, const char *key) {
    const struct dfcl_pk_node *d = &pk->nodes[dict];
    if (d->kind != DFCL_PK_DICT)
        return DFCL_PK_NOTHING;
    for (size_t i = d->u.list.count / 2; i-- > 0;)
        if (dfcl_pk_is(pk, d->u.list.items[2 * i], key))
            return d->u.list.items[2 * i + 1];
    return DFCL_PK_NOTHING;
}

const char *dfcl_pk_describe(const struct dfcl_pickle *pk, uint32_t node, char *buf, size_t size) {
    static const char *const words[] = {
        [DFCL_PK_NONE] = "None",    [DFCL_PK_BOOL] = "a truth value", [DFCL_PK_INT] = "a number",        [DFCL_PK_FLOAT] = "a number",
        [DFCL_PK_STR] = "a string", [DFCL_PK_BYTES] = "bytes",        [DFCL_PK_TUPLE] = "a tuple",       [DFCL_PK_LIST] = "a list",
        [DFCL_PK_SET] = "a set",    [DFCL_PK_DICT] = "a dictionary",  [DFCL_PK_STORAGE] = "a storage",   [DFCL_PK_TENSOR] = "a tensor",
        [DFCL_PK_BIGINT] = "a number",
    };
    const struct dfcl_pk_node *d = &pk->nodes[node];
    const char *what = "";
    if (d->kind == DFCL_PK_OBJECT) {
        d = &pk->nodes[d->u.object.cls];
        what = "an object of ";
    }
    buf[0] = 0;
    if (*what && d->kind != DFCL_PK_GLOBAL)
        dfcl_append(buf, size, "an object");
    else if (d->kind == DFCL_PK_GLOBAL) {
        const struct dfcl_pk_node *a = &pk->nodes[d->u.pair[0]], *b = &pk->nodes[d->u.pair[1]];
        dfcl_append(buf, size, "%s%.*s.%.*s", what, (int)DFCL_MIN(a->u.str.n, 60), a->u.str.s, (int)DFCL_MIN(b->u.str.n, 60), b->u.str.s);
    } else
        dfcl_append(buf, size, "%s", words[d->kind]);
    return buf;
}
