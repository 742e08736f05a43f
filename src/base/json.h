/* JSON of strangers through cJSON: guarded before it is parsed, because cJSON by itself recurses a thousand levels, takes about
 * 64 bytes for every two bytes of "1,1,1", cuts strings at \u0000 and keeps duplicate keys. */
#ifndef DFCL_BASE_JSON_H
#define DFCL_BASE_JSON_H

#include <cjson/cJSON.h>

#include "base/base.h"

struct dfcl_json_limits {
    int depth;     /* nesting of objects and arrays */
    size_t values; /* values in all, keys not counted */
};
#define DFCL_JSON_LIMITS ((struct dfcl_json_limits){32, 1u << 20})

/* Parses n bytes holding one value and white space. Refused (DFCL_FORMAT, `what` named): control characters, bytes that are not UTF-8,
 * \u0000, more than the limits, anything after the value. Duplicate keys pass: use dfcl_json_get. Freed with cJSON_Delete. */
dfcl_status dfcl_json_parse(cJSON **out, const char *data, size_t n, struct dfcl_json_limits limits, const char *what,
                            dfcl_error *err);
/* Member by exact name, NULL if absent; the first of several. */
const cJSON *dfcl_json_get(const cJSON *object, const char *name);
/* True when v is a number without fraction in [lo, hi] (both within 2^53). */
bool dfcl_json_int(const cJSON *v, int64_t lo, int64_t hi, int64_t *out);

/* Building: an object or array that could not take a member (out of memory, or the member is NULL) is spoilt: it never prints, and dfcl_json_whole is
 * false for it and what holds it, so that one look at the end is enough. `item` is taken over; returned, NULL when it was not added. `to` may be
 * NULL. The texts are in UTF-8. */
cJSON *dfcl_json_add(cJSON *to, const char *name, cJSON *item);
cJSON *dfcl_json_push(cJSON *array, cJSON *item);
cJSON *dfcl_json_add_text(cJSON *to, const char *name, const char *text);
cJSON *dfcl_json_add_number(cJSON *to, const char *name, double v);
/* A side: a number for a square, else the text "96x64", width x height (width 0: square). */
cJSON *dfcl_json_add_extent(cJSON *to, const char *name, int height, int width);
cJSON *dfcl_json_add_bool(cJSON *to, const char *name, bool v);
cJSON *dfcl_json_add_object(cJSON *to, const char *name);
cJSON *dfcl_json_add_array(cJSON *to, const char *name);
/* False for NULL too. */
bool dfcl_json_whole(const cJSON *v);

/* Growing text; after an error (out of memory) further calls do nothing and `failed` stays set. */
struct dfcl_text {
    const dfcl_context *ctx;
    char *s; /* always terminated once something was added */
    size_t n, cap;
    bool failed;
};
void dfcl_text_add(struct dfcl_text *t, const char *s, size_t n);
void dfcl_text_addf(struct dfcl_text *t, const char *fmt, ...) DFCL_PRINTF(2, 3);
/* A JSON string literal with its quotes. Invalid UTF-8 becomes U+FFFD. */
void dfcl_text_json_string(struct dfcl_text *t, const char *s);
void dfcl_text_finish(struct dfcl_text *t);

/* Length of the valid UTF-8 sequence at s (1..4), 0 if there is none within n bytes. */
int dfcl_utf8_len(const unsigned char *s, size_t n);

#endif
