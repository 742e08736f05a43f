#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int dfcl_utf8_len(const unsigned char *s, size_t n) {
    if (n == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    int k = s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : 0;
    if (k == 0 || (size_t)k > n)
        return 0;
    for (int i = 1; i < k; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return k;
}

/* Looks at the bytes only as far as the limits need; whether the grammar holds is for the parser to say. */
static dfcl_status guard(const unsigned char *s, size_t n, struct dfcl_json_limits lim, const char *what, dfcl_error *err) {
    bool quoted = false;
    size_t values = 1;
    int depth = 0;
    for (size_t i = 0; i < n;) {
        int k = dfcl_utf8_len(s + i, n - i);
        unsigned char c = s[i];
        if (k == 0)
            return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: byte %zu is not UTF-8", what, i);
        if (c < 0x20 && (quoted || (c != ' ' && c != '\t' && c != '\n' && c != '\r')))
            return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: control character at byte %zu", what, i);
        if (quoted && c == '\\') {
            if (n - i >= 6 && memcmp(s + i, "\\u0000", 6) == 0)
                return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: \\u0000 in a string at byte %zu", what, i);
            /* The escaped byte is skipped only when it can be a quote or a backslash; others are looked at as usual. */
            i += n - i >= 2 && (s[i + 1] == '"' || s[i + 1] == '\\') ? 2 : 1;
            continue;
        }
        if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == '{' || c == '[')) {
            values++;
            if (++depth > lim.depth)
                return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: nested deeper than %d", what, lim.depth);
        } else if (!quoted && (c == '}' || c == ']'))
            depth -= depth > 0;
        else if (!quoted && c == ',')
            values++;
        if (values > lim.values)
            return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: more than %zu values", what, lim.values);
        i += (size_t)k;
    }
    return DFCL_OK;
}

/* cJSON says no reason when it gives up. A second look tells bad text from memory that ran out: each function steps over what its name says and is
 * false where the text is at fault, as cJSON sees it (numbers end after 63 bytes). Depth is limited by now. */
struct cursor {
    const char *p, *end;
};
static bool value(struct cursor *c);

static char peek(struct cursor *c) {
    while (c->p < c->end && strchr(" \t\n\r", *c->p))
        c->p++;
    return c->p < c->end ? *c->p : 0;
}
static bool take(struct cursor *c, char ch) {
    bool there = peek(c) == ch;
    c->p += there;
    return there;
}
static bool hex4(struct cursor *c, unsigned *out) {
    char buf[5] = "";
    if (c->end - c->p < 4)
        return false;
    memcpy(buf, c->p, 4);
    if (strspn(buf, "0123456789abcdefABCDEF") != 4)
        return false;
    *out = (unsigned)strtoul(buf, NULL, 16);
    c->p += 4;
    return true;
}
static bool text(struct cursor *c) {
    unsigned high, low;
    if (!take(c, '"'))
        return false;
    for (; c->p < c->end && *c->p != '"'; c->p++) {
        if (*c->p != '\\')
            continue;
        if (++c->p == c->end || !strchr("\"\\/bfnrtu", *c->p))
            return false;
        if (*c->p != 'u')
            continue;
        c->p++;
        if (!hex4(c, &high) || (high >= 0xdc00 && high <= 0xdfff))
            return false;
        if (high >= 0xd800 && high <= 0xdbff) {
            if (c->end - c->p < 2 || memcmp(c->p, "\\u", 2))
                return false;
            c->p += 2;
            if (!hex4(c, &low) || low < 0xdc00 || low > 0xdfff)
                return false;
        }
        c->p--;
    }
    return take(c, '"');
}
static size_t digits(struct cursor *c) {
    const char *from = c->p;
    while (c->p < c->end && *c->p >= '0' && *c->p <= '9')
        c->p++;
    return (size_t)(c->p - from);
}
static bool number(struct cursor *c) {
    const char *from = c->p;
    c->p += c->p < c->end && *c->p == '-';
    size_t n = digits(c);
    if (c->p < c->end && *c->p == '.') {
        c->p++;
        n += digits(c);
    }
    if (c->p < c->end && (*c->p == 'e' || *c->p == 'E')) {
        struct cursor e = {c->p + 1, c->end};
        e.p += e.p < e.end && (*e.p == '-' || *e.p == '+');
        if (digits(&e))
            c->p = e.p;
    }
    if (n && c->p - from <= 63)
        return true;
    c->p = from;
    return false;
}
static bool members(struct cursor *c, bool object) {
    char close = object ? '}' : ']';
    c->p++;
    if (take(c, close))
        return true;
    do {
        if ((object && (!text(c) || !take(c, ':'))) || !value(c))
            return false;
    } while (take(c, ','));
    return take(c, close);
}
static bool value(struct cursor *c) {
    static const char *const words[] = {"null", "true", "false"};
    char ch = peek(c);
    if (ch == '{' || ch == '[')
        return members(c, ch == '{');
    if (ch == '"')
        return text(c);
    for (size_t i = 0; i < DFCL_COUNT(words); i++)
        if ((size_t)(c->end - c->p) >= strlen(words[i]) && !memcmp(c->p, words[i], strlen(words[i]))) {
            c->p += strlen(words[i]);
            return true;
        }
    return number(c);
}

dfcl_status dfcl_json_parse(cJSON **out, const char *data, size_t n, struct dfcl_json_limits limits, const char *what,
                            dfcl_error *err) {
    *out = NULL;
    dfcl_status s = guard((const unsigned char *)data, n, limits, what, err);
    if (s)
        return s;
    const char *end = NULL;
    cJSON *j = cJSON_ParseWithLengthOpts(data, n, &end, 0);
    if (!j) {
        struct cursor c = {data, data + n};
        return value(&c) ? dfcl_fail(err, DFCL_NOMEM, "%s: out of host memory", what)
                         : dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON near byte %zu", what, (size_t)(c.p - data));
    }
    for (const char *p = end; p < data + n; p++)
        if (*p != ' ' && *p != '\t' && *p != '\n' && *p != '\r') {
            cJSON_Delete(j);
            return dfcl_fail(err, DFCL_FORMAT, "%s: bad JSON: text after the value at byte %zu", what, (size_t)(p - data));
        }
    *out = j;
    return DFCL_OK;
}

const cJSON *dfcl_json_get(const cJSON *object, const char *name) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;
}

bool dfcl_json_int(const cJSON *v, int64_t lo, int64_t hi, int64_t *out) {
    if (!cJSON_IsNumber(v))
        return false;
    double d = v->valuedouble;
    if (!(fabs(d) <= 9007199254740992.0) || d != floor(d) || d < (double)lo || d > (double)hi)
        return false;
    *out = (int64_t)d;
    return true;
}

cJSON *dfcl_json_add(cJSON *to, const char *name, cJSON *item) {
    if (to && item && cJSON_AddItemToObject(to, name, item))
        return item;
    if (to)
        to->type = cJSON_Invalid;
    cJSON_Delete(item);
    return NULL;
}
cJSON *dfcl_json_push(cJSON *array, cJSON *item) {
    if (array && item && cJSON_AddItemToArray(array, item))
        return item;
    if (array)
        array->type = cJSON_Invalid;
    cJSON_Delete(item);
    return NULL;
}
cJSON *dfcl_json_add_text(cJSON *to, const char *name, const char *text) {
    return dfcl_json_add(to, name, cJSON_CreateString(text));
}
cJSON *dfcl_json_add_number(cJSON *to, const char *name, double v) {
    return dfcl_json_add(to, name, cJSON_CreateNumber(v));
}
cJSON *dfcl_json_add_extent(cJSON *to, const char *name, int height, int width) {
    char text[DFCL_EXTENT_TEXT];
    if (width <= 0 || width == height)
        return dfcl_json_add_number(to, name, height);
    return dfcl_json_add_text(to, name, dfcl_extent_format(height, width, text));
}
cJSON *dfcl_json_add_bool(cJSON *to, const char *name, bool v) {
    return dfcl_json_add(to, name, cJSON_CreateBool(v));
}
cJSON *dfcl_json_add_object(cJSON *to, const char *name) {
    return dfcl_json_add(to, name, cJSON_CreateObject());
}
cJSON *dfcl_json_add_array(cJSON *to, const char *name) {
    return dfcl_json_add(to, name, cJSON_CreateArray());
}

bool dfcl_json_whole(const cJSON *v) {
    if (!v || (v->type & 0xff) == cJSON_Invalid)
        return false;
    for (const cJSON *c = v->child; c; c = c->next)
        if (!dfcl_json_whole(c))
            return false;
    return true;
}

void dfcl_text_add(struct dfcl_text *t, const char *s, size_t n) {
    if (t->failed)
        return;
    void *p = t->s;
    if (n > SIZE_MAX - t->n - 1 || dfcl_grow(t->ctx, &p, &t->cap, t->n + n + 1, 1, NULL)) {
        t->failed = true;
        return;
    }
    t->s = p;
    memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = 0;
}

void dfcl_text_addf(struct dfcl_text *t, const char *fmt, ...) {
    char small[256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof small) {
        dfcl_text_add(t, small, (size_t)n);
        return;
    }
    char *big = n < 0 ? NULL : dfcl_calloc(t->ctx, (size_t)n + 1, 1, NULL);
    if (!big) {
        t->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(big, (size_t)n + 1, fmt, ap);
    va_end(ap);
    dfcl_text_add(t, big, (size_t)n);
    dfcl_free(t->ctx, big);
}

void dfcl_text_json_string(struct dfcl_text *t, const char *s) {
    const unsigned char *p = (const unsigned char *)s;
    size_t n = strlen(s);
    dfcl_text_add(t, "\"", 1);
    while (n) {
        int k = dfcl_utf8_len(p, n);
        if (k == 0)
            dfcl_text_add(t, "\xef\xbf\xbd", 3);
        else if (*p == '"' || *p == '\\')
            dfcl_text_addf(t, "\\%c", *p);
        else if (*p == '\n')
            dfcl_text_add(t, "\\n", 2);
        else if (*p < 0x20)
            dfcl_text_addf(t, "\\u%04x", *p);
        else
            dfcl_text_add(t, (const char *)p, (size_t)k);
        p += k ? k : 1;
        n -= (size_t)(k ? k : 1);
    }
    dfcl_text_add(t, "\"", 1);
}

void dfcl_text_finish(struct dfcl_text *t) {
    dfcl_free(t->ctx, t->s);
    memset(t, 0, sizeof *t);
}
