#include "device/device.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Best first within a class of devices: the order of this table breaks ties between backends. */
static const struct dfcl_backend *const backends[] = {
#ifdef DFCL_HAVE_OPENCL
    &dfcl_backend_opencl,
#endif
    &dfcl_backend_host,
};

/* ---- listing and choosing ---- */

struct found {
    const dfcl_context *ctx;
    struct dfcl_device_info *items;
    size_t count, cap;
};

static dfcl_status found_add(void *user, const struct dfcl_device_info *info, dfcl_error *err) {
    struct found *f = user;
    void *p = f->items;
    dfcl_status s = dfcl_grow(f->ctx, &p, &f->cap, f->count + 1, sizeof *f->items, err);
    f->items = p;
    if (!s)
        f->items[f->count++] = *info;
    return s;
}

static int rank(const struct dfcl_device_info *d) {
    int r = !strcmp(d->backend, "host")             ? 40
            : d->type == DFCL_DEVICE_CPU            ? 30
            : d->type == DFCL_DEVICE_ACCELERATOR    ? 20
            : d->integrated                         ? 10
                                                    : 0;
    return r + (d->usable ? 0 : 100);
}

void dfcl_device_sort(struct dfcl_device_info *list, size_t count) {
    /* insertion sort: stable, and the list is short */
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && rank(&list[j]) < rank(&list[j - 1]); j--) {
            struct dfcl_device_info t = list[j];
            list[j] = list[j - 1];
            list[j - 1] = t;
        }
    for (size_t i = 0; i < count; i++)
        list[i].index = (int)i;
}

static dfcl_status find_all(struct found *f, const dfcl_context *ctx, dfcl_error *err) {
    memset(f, 0, sizeof *f);
    f->ctx = ctx;
    for (size_t i = 0; i < DFCL_COUNT(backends); i++) {
        dfcl_status s = backends[i]->list(ctx, found_add, f, err);
        if (s) {
            dfcl_free(ctx, f->items);
            f->items = NULL;
            return s;
        }
    }
    dfcl_device_sort(f->items, f->count);
    return DFCL_OK;
}

dfcl_status dfcl_device_list(const dfcl_context *ctx, struct dfcl_device_info *list, int max, int *count, dfcl_error *err) {
    struct found f;
    *count = 0;
    dfcl_status s = find_all(&f, ctx, err);
    if (s)
        return s;
    for (size_t i = 0; i < f.count && (int)i < max; i++)
        list[i] = f.items[i];
    *count = (int)f.count;
    dfcl_free(ctx, f.items);
    return DFCL_OK;
}

static bool contains_nocase(const char *hay, const char *needle) {
    size_t n = strlen(needle);
    for (; *hay; hay++)
        if (!strncasecmp(hay, needle, n))
            return true;
    return false;
}

dfcl_status dfcl_device_choose(const struct dfcl_device_info *list, size_t count, const char *selector,
                               const struct dfcl_device_info **out, dfcl_error *err) {
    *out = NULL;
    if (!selector || !*selector || !strcmp(selector, "auto")) {
        for (size_t i = 0; i < count; i++)
            if (list[i].usable) {
                *out = &list[i];
                return DFCL_OK;
            }
        return dfcl_fail(err, DFCL_DEVICE, "no usable device found");
    }
    size_t digits = strspn(selector, "0123456789");
    if (!selector[digits]) {
        unsigned long long n = digits < 10 ? strtoull(selector, NULL, 10) : ULLONG_MAX;
        if (n < count)
            *out = &list[n];
        else if (digits < 3) /* longer ones may be part of a name: "7900" */
            return dfcl_fail(err, DFCL_DEVICE, "device %s: expected an index from 0 to %d", selector, (int)count - 1);
    }
    for (size_t i = 0; i < count && !*out; i++)
        if (!strcmp(list[i].selector, selector))
            *out = &list[i];
    const struct dfcl_device_info *unusable = NULL;
    for (size_t i = 0; i < count && !*out; i++) {
        if (!contains_nocase(list[i].name, selector))
            continue;
        if (!list[i].usable) {
            unusable = &list[i];
            continue;
        }
        for (size_t j = i + 1; j < count; j++)
            if (list[j].usable && contains_nocase(list[j].name, selector))
                return dfcl_fail(err, DFCL_USAGE, "device %s: fits both %s (%s) and %s (%s); use one of these selectors", selector,
                                 list[i].selector, list[i].name, list[j].selector, list[j].name);
        *out = &list[i];
    }
    if (!*out)
        *out = unusable;
    if (*out && !(*out)->usable) {
        const struct dfcl_device_info *d = *out;
        *out = NULL;
        return dfcl_fail(err, DFCL_DEVICE, "device %s (%s) cannot be used: %s", d->selector, d->name, d->problem);
    }
    if (*out)
        return DFCL_OK;
    char known[512] = "";
    for (size_t i = 0; i < count; i++)
        dfcl_append(known, sizeof known, "%s%s (%s)", i ? ", " : "", list[i].selector, list[i].name);
    return dfcl_fail(err, DFCL_DEVICE, "device %s: no such device; found: %s", selector, known);
}

dfcl_status dfcl_device_open(dfcl_device **out, const dfcl_context *ctx, const char *selector, dfcl_error *err) {
    *out = NULL;
    struct found f;
    dfcl_status s = find_all(&f, ctx, err);
    if (s)
        return s;
    const struct dfcl_device_info *info;
    s = dfcl_device_choose(f.items, f.count, selector, &info, err);
    if (!s) {
        s = dfcl_fail(err, DFCL_ERROR, "device %s: its backend %s is missing", info->selector, info->backend);
        for (size_t i = 0; i < DFCL_COUNT(backends); i++)
            if (!strcmp(backends[i]->name, info->backend)) {
                s = backends[i]->open(out, ctx, info, err);
                if (!s) {
                    (*out)->be = backends[i];
                    (*out)->ctx = ctx;
                    dfcl_error_clear(err);
                }
                break;
            }
    }
    dfcl_free(ctx, f.items);
    return s;
}

void dfcl_device_close(dfcl_device **dev) {
    if (!dev || !*dev)
        return;
    (*dev)->be->close(*dev);
    *dev = NULL;
}

const struct dfcl_device_info *dfcl_device_get_info(const dfcl_device *dev) {
    return &dev->info;
}

dfcl_status dfcl_device_set_variants(dfcl_device *dev, const char *mask, dfcl_error *err) {
    if (!mask)
        mask = "";
    if (strlen(mask) >= sizeof dev->variant_mask)
        return dfcl_fail(err, DFCL_USAGE, "variants: mask longer than %zu characters", sizeof dev->variant_mask - 1);
    memcpy(dev->variant_mask, mask, strlen(mask) + 1);
    return DFCL_OK;
}

bool dfcl_device_allows(const struct dfcl_device *dev, const char *variant) {
    bool any_allow = false, allowed = false;
    for (const char *p = dev->variant_mask; *p;) {
        size_t n = strcspn(p, ",");
        char part[64];
        bool deny = *p == '-';
        size_t skip = deny ? 1 : 0;
        if (n > skip && n - skip < sizeof part) {
            memcpy(part, p + skip, n - skip);
            part[n - skip] = 0;
            bool hit = strstr(variant, part) != NULL;
            if (deny && hit)
                return false;
            if (!deny) {
                any_allow = true;
                allowed = allowed || hit;
            }
        }
        p += n + (p[n] == ',');
    }
    return !any_allow || allowed;
}

/* ---- arguments ---- */

static struct dfcl_arg *next_arg(struct dfcl_args *a, enum dfcl_arg_kind kind) {
    static struct dfcl_arg overflow;
    int i = a->n++;
    struct dfcl_arg *p = i < DFCL_MAX_ARGS ? &a->a[i] : &overflow; /* dfcl_device_launch refuses n > DFCL_MAX_ARGS */
    p->kind = kind;
    return p;
}
void dfcl_args_ref(struct dfcl_args *a, struct dfcl_ref r, size_t elem_size) {
    next_arg(a, DFCL_ARG_MEM)->v.mem = r.mem;
    next_arg(a, DFCL_ARG_I64)->v.l = r.mem ? (int64_t)(r.off / elem_size) : 0;
}
void dfcl_args_i32(struct dfcl_args *a, int32_t v) {
    next_arg(a, DFCL_ARG_I32)->v.i = v;
}
void dfcl_args_u32(struct dfcl_args *a, uint32_t v) {
    next_arg(a, DFCL_ARG_U32)->v.u = v;
}
void dfcl_args_i64(struct dfcl_args *a, int64_t v) {
    next_arg(a, DFCL_ARG_I64)->v.l = v;
}
void dfcl_args_f32(struct dfcl_args *a, float v) {
    next_arg(a, DFCL_ARG_F32)->v.f = v;
}

dfcl_status dfcl_device_kernel(struct dfcl_device *dev, const char *source, const char *name, const char *options,
                               struct dfcl_kernel **out, dfcl_error *err) {
    *out = NULL;
    return dev->be->kernel(dev, source, name, options ? options : "", out, err);
}

dfcl_status dfcl_device_launch(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3],
                               const struct dfcl_args *args, dfcl_error *err) {
    if (args->n > DFCL_MAX_ARGS)
        return dfcl_fail(err, DFCL_ERROR, "launch: %d arguments, at most %d", args->n, DFCL_MAX_ARGS);
    if (!groups[0] || !groups[1] || !groups[2])
        return DFCL_OK; /* nothing to do */
    if (groups[0] > INT32_MAX || groups[1] > 65535 || groups[2] > 65535)
        return dfcl_fail(err, DFCL_ERROR, "launch: %zu x %zu x %zu work-groups are too many", groups[0], groups[1], groups[2]);
    return dev->be->launch(dev, kernel, groups, args, err);
}

/* ---- memory ---- */

dfcl_status dfcl_mem_create(struct dfcl_device *dev, uint64_t size, const char *label, struct dfcl_mem **out, dfcl_error *err) {
    *out = NULL;
    if (!size || (dev->info.max_alloc && size > dev->info.max_alloc))
        return dfcl_fail(err, size ? DFCL_NOMEM : DFCL_ERROR, "%s: %.1f MiB wanted in one piece, the device %s gives %.1f MiB at most", label,
                         (double)size / 1048576.0, dev->info.name, (double)dev->info.max_alloc / 1048576.0);
    dfcl_status s = dev->be->mem_create(dev, size, out, err);
    if (s) {
        dfcl_error_prefix(err, "%s (%.1f MiB, %.1f MiB in use)", label, (double)size / 1048576.0, (double)dev->used / 1048576.0);
        return s;
    }
    (*out)->size = size;
    snprintf((*out)->label, sizeof (*out)->label, "%s", label);
    dev->used += size;
    dev->peak = DFCL_MAX(dev->peak, dev->used);
    return DFCL_OK;
}

dfcl_status dfcl_mem_wrap(struct dfcl_device *dev, const void *host, uint64_t size, struct dfcl_mem **out, dfcl_error *err) {
    *out = NULL;
    if (!dev->be->mem_wrap || !size)
        return DFCL_OK;
    dfcl_status s = dev->be->mem_wrap(dev, host, size, out, err);
    if (!s && *out) {
        (*out)->size = size;
        (*out)->wrapped = true;
        snprintf((*out)->label, sizeof (*out)->label, "mapped file");
    }
    return s;
}

void dfcl_mem_destroy(struct dfcl_device *dev, struct dfcl_mem **mem) {
    if (!mem || !*mem)
        return;
    if (!(*mem)->wrapped)
        dev->used -= (*mem)->size;
    dev->be->mem_destroy(dev, *mem);
    *mem = NULL;
}

uint64_t dfcl_mem_size(const struct dfcl_mem *mem) {
    return mem->size;
}
uint64_t dfcl_device_memory_used(const struct dfcl_device *dev) {
    return dev->used;
}
uint64_t dfcl_device_memory_peak(const struct dfcl_device *dev) {
    return dev->peak;
}

static dfcl_status check_range(const char *what, struct dfcl_ref r, uint64_t size, dfcl_error *err) {
    if (!r.mem)
        return dfcl_fail(err, DFCL_ERROR, "%s: no memory given", what);
    if (r.off > r.mem->size || size > r.mem->size - r.off)
        return dfcl_fail(err, DFCL_ERROR, "%s: bytes %llu to %llu of %s, which has %llu", what, (unsigned long long)r.off,
                         (unsigned long long)(r.off + size), r.mem->label, (unsigned long long)r.mem->size);
    return DFCL_OK;
}

dfcl_status dfcl_write(struct dfcl_device *dev, struct dfcl_ref dst, const void *src, uint64_t size, dfcl_error *err) {
    dfcl_status s = check_range("write", dst, size, err);
    if (!s && dst.mem->wrapped)
        s = dfcl_fail(err, DFCL_ERROR, "write: to a read-only mapping");
    return s || !size ? s : dev->be->write(dev, dst, src, size, err);
}

dfcl_status dfcl_read(struct dfcl_device *dev, void *dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    dfcl_status s = check_range("read", src, size, err);
    return s || !size ? s : dev->be->read(dev, dst, src, size, err);
}

dfcl_status dfcl_copy(struct dfcl_device *dev, struct dfcl_ref dst, struct dfcl_ref src, uint64_t size, dfcl_error *err) {
    dfcl_status s = check_range("copy", dst, size, err);
    if (!s)
        s = check_range("copy", src, size, err);
    if (!s && dst.mem == src.mem && dst.off < src.off + size && src.off < dst.off + size && size)
        s = dfcl_fail(err, DFCL_ERROR, "copy: source and target overlap in %s", dst.mem->label);
    return s || !size ? s : dev->be->copy(dev, dst, src, size, err);
}

dfcl_status dfcl_fill(struct dfcl_device *dev, struct dfcl_ref dst, uint32_t pattern, uint64_t size, dfcl_error *err) {
    dfcl_status s = check_range("fill", dst, size, err);
    if (!s && (dst.off % 4 || size % 4))
        s = dfcl_fail(err, DFCL_ERROR, "fill: offset and size must be multiples of 4");
    return s || !size ? s : dev->be->fill(dev, dst, pattern, size, err);
}

dfcl_status dfcl_flush(struct dfcl_device *dev, dfcl_error *err) {
    return dev->be->flush(dev, err);
}
dfcl_status dfcl_finish(struct dfcl_device *dev, dfcl_error *err) {
    return dev->be->finish(dev, err);
}

void *dfcl_host_ptr(const struct dfcl_device *dev, struct dfcl_ref r) {
    (void)dev;
    return r.mem && r.mem->host ? (char *)r.mem->host + r.off : NULL;
}
