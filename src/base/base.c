#define _GNU_SOURCE
#include "base/base.h"
#include "base/json.h"

#include <errno.h>
#include <sched.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Control characters and bytes that are no UTF-8 (file names are bytes) become '?'. */
static void sanitize(char *s) {
    for (size_t n = strlen(s); n;) {
        unsigned char c = (unsigned char)*s;
        int k = dfcl_utf8_len((const unsigned char *)s, n);
        if (k == 0 || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            *s = '?';
        k = k ? k : 1;
        s += k;
        n -= (size_t)k;
    }
}

static void DFCL_PRINTF(4, 0) error_fill(dfcl_error *err, dfcl_status status, int native, const char *fmt, va_list ap) {
    if (!err)
        return;
    /* The message may quote the one it replaces. */
    char tmp[DFCL_ERROR_MAX];
    vsnprintf(tmp, sizeof tmp, fmt, ap);
    sanitize(tmp);
    err->status = status;
    err->native = native;
    memcpy(err->msg, tmp, sizeof tmp);
}

dfcl_status dfcl_fail(dfcl_error *err, dfcl_status status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    error_fill(err, status, 0, fmt, ap);
    va_end(ap);
    return status;
}

dfcl_status dfcl_fail_native(dfcl_error *err, dfcl_status status, int native, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    error_fill(err, status, native, fmt, ap);
    va_end(ap);
    return status;
}

dfcl_status dfcl_fail_errno(dfcl_error *err, const char *path, const char *what) {
    int e = errno;
    return dfcl_fail_native(err, e == ENOMEM ? DFCL_NOMEM : DFCL_IO, e, "%s: %s: %s", path, what, strerror(e));
}

void dfcl_error_prefix(dfcl_error *err, const char *fmt, ...) {
    if (!err)
        return;
    char head[DFCL_ERROR_MAX], all[DFCL_ERROR_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    size_t n = strlen(head);
    if (n > sizeof all - 3)
        n = sizeof all - 3;
    memcpy(all, head, n);
    memcpy(all + n, ": ", 3);
    n += 2;
    size_t m = strlen(err->msg);
    if (m > sizeof all - 1 - n)
        m = sizeof all - 1 - n;
    memcpy(all + n, err->msg, m);
    all[n + m] = 0;
    sanitize(all);
    memcpy(err->msg, all, sizeof all);
}

void dfcl_error_clear(dfcl_error *err) {
    if (err) {
        err->status = DFCL_OK;
        err->native = 0;
        err->msg[0] = 0;
    }
}

void dfcl_log(const dfcl_context *ctx, enum dfcl_log_level level, const char *fmt, ...) {
    if (!ctx || !ctx->p.log)
        return;
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    sanitize(line);
    ctx->p.log(ctx->p.log_user, level, line);
}

/* ---- context ---- */

static void *default_alloc(void *user, size_t size) {
    (void)user;
    return malloc(size);
}
static void default_free(void *user, void *ptr) {
    (void)user;
    free(ptr);
}

/* Those that this process may run on; all that are online where that cannot be told. */
static int allowed_processors(void) {
#ifdef __linux__
    for (int bits = 1024; bits <= 1 << 20; bits *= 2) { /* the kernel refuses a set smaller than its own */
        size_t size = CPU_ALLOC_SIZE((size_t)bits);
        cpu_set_t *set = CPU_ALLOC((size_t)bits);
        int n = set && sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (n > 0)
            return n;
    }
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

dfcl_status dfcl_context_create(dfcl_context **out, const struct dfcl_context_params *params, dfcl_error *err) {
    *out = NULL;
    struct dfcl_context_params p = {0};
    if (params)
        p = *params;
    if (!p.alloc != !p.free)
        return dfcl_fail(err, DFCL_USAGE, "context: alloc and free must be given together");
    if (!p.alloc) {
        p.alloc = default_alloc;
        p.free = default_free;
    }
    dfcl_context *ctx = p.alloc(p.alloc_user, sizeof *ctx);
    if (!ctx)
        return dfcl_fail(err, DFCL_NOMEM, "context: out of memory");
    memset(ctx, 0, sizeof *ctx);
    ctx->p = p;
    if (ctx->p.threads <= 0)
        ctx->p.threads = allowed_processors();
    bool want_cache = p.cache_dir && p.cache_dir[0], want_probe = p.probe_program && p.probe_program[0];
    ctx->cache_dir = want_cache ? dfcl_strdup(ctx, p.cache_dir, err) : NULL;
    ctx->probe_program = want_probe ? dfcl_strdup(ctx, p.probe_program, err) : NULL;
    if (!ctx->cache_dir != !want_cache || !ctx->probe_program != !want_probe) {
        dfcl_context_destroy(&ctx);
        return DFCL_NOMEM;
    }
    ctx->p.cache_dir = ctx->cache_dir;
    ctx->p.probe_program = ctx->probe_program;
    *out = ctx;
    return DFCL_OK;
}

void dfcl_context_destroy(dfcl_context **ctx) {
    if (!ctx || !*ctx)
        return;
    dfcl_context *c = *ctx;
    dfcl_free(c, c->cache_dir);
    dfcl_free(c, c->probe_program);
    c->p.free(c->p.alloc_user, c);
    *ctx = NULL;
}

const char *dfcl_version(void) {
    return DFCL_VERSION;
}

const char *dfcl_status_name(dfcl_status status) {
    switch (status) {
    case DFCL_OK: return "done";
    case DFCL_ERROR: return "error";
    case DFCL_USAGE: return "wrong usage";
    case DFCL_DEVICE: return "device error";
    case DFCL_NOMEM: return "out of memory";
    case DFCL_NONFINITE: return "non-finite numbers";
    case DFCL_FORMAT: return "bad or mismatched file";
    case DFCL_IO: return "input/output error";
    case DFCL_INTERRUPTED: return "interrupted";
    }
    return "unknown status";
}

/* ---- memory ---- */

void *dfcl_calloc(const dfcl_context *ctx, size_t count, size_t size, dfcl_error *err) {
    size_t bytes;
    void *p = NULL;
    if (dfcl_mul_size(count, size, &bytes))
        p = ctx->p.alloc(ctx->p.alloc_user, bytes ? bytes : 1);
    if (!p) {
        dfcl_fail_native(err, DFCL_NOMEM, ENOMEM, "out of host memory: %zu x %zu bytes wanted", count, size);
        return NULL;
    }
    memset(p, 0, bytes ? bytes : 1);
    return p;
}

void dfcl_free(const dfcl_context *ctx, void *ptr) {
    if (ptr)
        ctx->p.free(ctx->p.alloc_user, ptr);
}

dfcl_status dfcl_grow(const dfcl_context *ctx, void **ptr, size_t *cap, size_t need, size_t size, dfcl_error *err) {
    if (need <= *cap)
        return DFCL_OK;
    size_t n = *cap ? *cap : 8;
    while (n < need) {
        if (n > SIZE_MAX / 2)
            return dfcl_fail(err, DFCL_NOMEM, "out of host memory: %zu items wanted", need);
        n *= 2;
    }
    void *p = dfcl_calloc(ctx, n, size, err);
    if (!p)
        return DFCL_NOMEM;
    if (*ptr)
        memcpy(p, *ptr, *cap * size);
    dfcl_free(ctx, *ptr);
    *ptr = p;
    *cap = n;
    return DFCL_OK;
}

char *dfcl_strndup(const dfcl_context *ctx, const char *s, size_t n, dfcl_error *err) {
    if (n == SIZE_MAX) {
        dfcl_fail(err, DFCL_NOMEM, "out of host memory");
        return NULL;
    }
    char *p = dfcl_calloc(ctx, n + 1, 1, err);
    if (p)
        memcpy(p, s, n);
    return p;
}

char *dfcl_strdup(const dfcl_context *ctx, const char *s, dfcl_error *err) {
    return dfcl_strndup(ctx, s, strlen(s), err);
}

char *dfcl_sprintf(const dfcl_context *ctx, dfcl_error *err, const char *fmt, ...) {
    va_list ap, ap2;
    va_start(ap, fmt);
    va_copy(ap2, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : dfcl_calloc(ctx, (size_t)n + 1, 1, err);
    if (p)
        vsnprintf(p, (size_t)n + 1, fmt, ap2);
    va_end(ap2);
    return p;
}

bool dfcl_has_control(const char *s) {
    while ((unsigned char)*s >= 0x20 && *s != 0x7f)
        s++;
    return *s != 0;
}

bool dfcl_parse_double(const char *text, double *out) {
    char buf[64], *end;
    const char *point = localeconv()->decimal_point;
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        size_t k = *p == '.' ? strlen(point) : 1;
        if (!strchr("0123456789+-.eE", *p) || n + k >= sizeof buf)
            return false;
        memcpy(buf + n, *p == '.' ? point : p, k);
        n += k;
    }
    buf[n] = 0;
    double v = strtod(buf, &end);
    if (n == 0 || *end || !isfinite(v))
        return false;
    *out = v;
    return true;
}

bool dfcl_parse_int(const char *text, int64_t lo, int64_t hi, int64_t *out) {
    char *end;
    const char *digits = text + (*text == '-');
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || errno || v < lo || v > hi)
        return false;
    *out = v;
    return true;
}

bool dfcl_append(char *buf, size_t size, const char *fmt, ...) {
    size_t n = strlen(buf);
    va_list ap;
    va_start(ap, fmt);
    int k = vsnprintf(buf + n, size - n, fmt, ap);
    va_end(ap);
    return k >= 0 && (size_t)k < size - n;
}

const char *dfcl_extent_format(int height, int width, char buf[DFCL_EXTENT_TEXT]) {
    if (width <= 0 || width == height)
        snprintf(buf, DFCL_EXTENT_TEXT, "%d", height);
    else
        snprintf(buf, DFCL_EXTENT_TEXT, "%dx%d", width, height);
    return buf;
}

bool dfcl_extent_parse(const char *text, int most, int *height, int *width) {
    const char *x = strchr(text, 'x');
    char first[DFCL_EXTENT_TEXT];
    int64_t w, h;
    if (strlen(text) >= sizeof first)
        return false;
    snprintf(first, sizeof first, "%.*s", x ? (int)(x - text) : DFCL_EXTENT_TEXT - 1, text);
    if (!dfcl_parse_int(first, 1, most, &w))
        return false;
    h = w;
    if (x && !dfcl_parse_int(x + 1, 1, most, &h))
        return false;
    *width = (int)w;
    *height = (int)h;
    return true;
}
