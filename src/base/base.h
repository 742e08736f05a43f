/* Internal foundation: errors, context, host memory, logging. Everything includes this. */
#ifndef DFCL_BASE_BASE_H
#define DFCL_BASE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <difffit-cl/base.h>

#if defined(__GNUC__)
#define DFCL_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define DFCL_PRINTF(f, a)
#endif

#define DFCL_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define DFCL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define DFCL_MAX(a, b) ((a) > (b) ? (a) : (b))

struct dfcl_context {
    struct dfcl_context_params p; /* alloc and free never NULL here */
    char *cache_dir;              /* NULL: none */
    char *probe_program;          /* NULL: none */
};

/* Fills *err (if any) and returns `status`, so that `return dfcl_fail(...)` and `st = dfcl_fail(...); goto out` read well.
 * Control characters and bytes that are no UTF-8 are replaced by '?': names in messages may come from hostile files. */
dfcl_status dfcl_fail(dfcl_error *err, dfcl_status status, const char *fmt, ...) DFCL_PRINTF(3, 4);
dfcl_status dfcl_fail_native(dfcl_error *err, dfcl_status status, int native, const char *fmt, ...) DFCL_PRINTF(4, 5);
/* DFCL_IO from errno: "FILE: cannot open: No such file or directory". Missing files are DFCL_IO too. */
dfcl_status dfcl_fail_errno(dfcl_error *err, const char *path, const char *what);
/* Puts "text: " in front of an existing message. */
void dfcl_error_prefix(dfcl_error *err, const char *fmt, ...) DFCL_PRINTF(2, 3);
void dfcl_error_clear(dfcl_error *err);

void dfcl_log(const dfcl_context *ctx, enum dfcl_log_level level, const char *fmt, ...) DFCL_PRINTF(3, 4);

/* Host memory, zero-filled, count * size checked for overflow. Zero bytes give a valid pointer. NULL and DFCL_NOMEM in *err on
 * failure, with ENOMEM as its native code: a plan that does not fit the device has none. ctx must not be NULL. dfcl_free(ctx, NULL) is fine. */
void *dfcl_calloc(const dfcl_context *ctx, size_t count, size_t size, dfcl_error *err);
void dfcl_free(const dfcl_context *ctx, void *ptr);
/* Grows an array to hold `need` items of `size` bytes (doubling); *cap is updated, new items are zero. */
dfcl_status dfcl_grow(const dfcl_context *ctx, void **ptr, size_t *cap, size_t need, size_t size, dfcl_error *err);
char *dfcl_strdup(const dfcl_context *ctx, const char *s, dfcl_error *err);
char *dfcl_strndup(const dfcl_context *ctx, const char *s, size_t n, dfcl_error *err);
char *dfcl_sprintf(const dfcl_context *ctx, dfcl_error *err, const char *fmt, ...) DFCL_PRINTF(3, 4);

/* A finite decimal number and nothing else, with a point whatever the program's locale; *out is set only then. */
bool dfcl_parse_double(const char *text, double *out);
/* The same for a whole number from lo to hi, in digits. */
bool dfcl_parse_int(const char *text, int64_t lo, int64_t hi, int64_t *out);
/* Sides of a picture, latent or grid as text: "64" of a square, "96x64" (width x height) of others. Parsed, each is from 1 to `most`. */
#define DFCL_EXTENT_TEXT 24
static inline int dfcl_width(int width, int height) { /* of a thing whose width 0 means square */
    return width > 0 ? width : height;
}
const char *dfcl_extent_format(int height, int width, char buf[DFCL_EXTENT_TEXT]); /* returns buf; width 0: square */
bool dfcl_extent_parse(const char *text, int most, int *height, int *width);

/* True when a byte below 32, or 127, is in it: line ends would cut what is written a line each, others command terminals. */
bool dfcl_has_control(const char *s);

/* a * b, false on overflow. */
static inline bool dfcl_mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool dfcl_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* Bounded string building: appends to buf of `size` bytes, always terminated; returns false when it was cut. */
bool dfcl_append(char *buf, size_t size, const char *fmt, ...) DFCL_PRINTF(3, 4);

#endif
