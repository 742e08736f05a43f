#include "sample_requests.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

__attribute__((format(printf, 3, 4))) static dfcl_status fail(dfcl_error *err, dfcl_status s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    for (char *p = err->msg; *p; p++) /* the file's own bytes would command the terminal */
        if (iscntrl((unsigned char)*p))
            *p = '?';
    err->status = s;
    return s;
}
static dfcl_status no_memory(dfcl_error *err) {
    return fail(err, DFCL_NOMEM, "out of memory");
}

/* ---- words of a line: key=value, values bare or in double quotes with \ before " and \; or a JSON object of strings,
 * numbers and arrays of strings ---- */

struct words {
    const char *p, *end; /* of the line */
    bool json, list;     /* list: inside an array, whose key stays */
    bool first;
    char key[32], *value;
};

static void space(struct words *w) {
    while (w->p < w->end && isspace((unsigned char)*w->p))
        w->p++;
}
static bool take(struct words *w, char ch) {
    space(w);
    if (w->p >= w->end || *w->p != ch)
        return false;
    w->p++;
    return true;
}

static bool hex4(struct words *w, unsigned *out) {
    *out = 0;
    for (int i = 0; i < 4; i++, w->p++) {
        if (w->p >= w->end || !isxdigit((unsigned char)*w->p))
            return false;
        *out = *out * 16 + (unsigned)(isdigit((unsigned char)*w->p) ? *w->p - '0' : (*w->p | 32) - 'a' + 10);
    }
    return true;
}

/* After the opening quote; JSON's escapes, or only \" and \\ . */
static bool quoted(struct words *w, char *to) {
    for (; w->p < w->end && *w->p != '"'; w->p++) {
        if (*w->p != '\\') {
            *to++ = *w->p;
            continue;
        }
        if (++w->p >= w->end)
            return false;
        static const char names[] = "bfnrt", codes[] = "\b\f\n\r\t";
        const char *at = w->json && *w->p ? strchr(names, *w->p) : NULL;
        if (at) {
            *to++ = codes[at - names];
        } else if (*w->p == '"' || *w->p == '\\' || (w->json && *w->p == '/')) {
            *to++ = *w->p;
        } else if (w->json && *w->p == 'u') {
            unsigned c, low;
            w->p++;
            if (!hex4(w, &c) || c == 0)
                return false;
            if (c >= 0xd800 && c < 0xdc00) {
                if (w->end - w->p < 2 || w->p[0] != '\\' || w->p[1] != 'u')
                    return false;
                w->p += 2;
                if (!hex4(w, &low) || low < 0xdc00 || low > 0xdfff)
                    return false;
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            } else if (c >= 0xdc00 && c < 0xe000) {
                return false;
            }
            int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
            static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
            *to++ = (char)(lead[more] | c >> (6 * more));
            while (more--)
                *to++ = (char)(0x80 | (c >> (6 * more) & 0x3f));
            w->p--;
        } else {
            return false;
        }
    }
    *to = 0;
    return w->p++ < w->end;
}

static bool value(struct words *w) {
    char *to = w->value;
    space(w);
    if (w->p < w->end && *w->p == '"') {
        w->p++;
        return quoted(w, to);
    }
    const char *from = w->p;
    while (w->p < w->end && !isspace((unsigned char)*w->p) && !(w->json && strchr(",]}", *w->p)))
        *to++ = *w->p++;
    *to = 0;
    return !w->json ||
           (w->p > from && (isdigit((unsigned char)*from) || *from == '-')); /* bare words of JSON are numbers */
}

static bool key(struct words *w) {
    char *buf = w->value;
    size_t n = 0;
    if (w->json) {
        if (!take(w, '"') || !quoted(w, buf) || !take(w, ':'))
            return false;
    } else {
        while (w->p < w->end && *w->p != '=' && !isspace((unsigned char)*w->p))
            buf[n++] = *w->p++;
        buf[n] = 0;
        if (w->p >= w->end || *w->p++ != '=')
            return false;
        if (w->p < w->end && isspace((unsigned char)*w->p))
            return false;
    }
    snprintf(w->key, sizeof w->key, "%s", buf);
    return true;
}

/* 1: a word, 0: the end, -1: not understood. */
static int next_word(struct words *w) {
    space(w);
    if (!w->json) {
        if (w->p >= w->end)
            return 0;
        return key(w) && value(w) ? 1 : -1;
    }
    if (w->list) {
        if (take(w, ',') && value(w))
            return 1;
        if (!take(w, ']'))
            return -1;
        w->list = false;
    }
    if (take(w, '}')) {
        space(w);
        return w->p == w->end ? 0 : -1;
    }
    if ((!w->first && !take(w, ',')) || !key(w))
        return -1;
    w->first = false;
    w->list = take(w, '[');
    return value(w) ? 1 : -1;
}

/* ---- lines ---- */

static void line_free(struct sample_line *l) {
    for (int i = 0; i < REQUEST_DELTAS; i++) {
        free(l->delta[i]);
        free(l->sha256[i]);
    }
    free(l->class_name);
    free(l->name);
    memset(l, 0, sizeof *l);
}

static bool whole(const char *text, uint64_t most, uint64_t *out) {
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && !*end && !errno && *out <= most;
}

/* NULL, or what was expected of the value; *oom when a copy failed. */
static const char *set_word(struct sample_line *l, const char *k, const char *v, bool *oom) {
    uint64_t u;
    char *end, **copy = NULL;
    for (const char *p = v; *p; p++) /* a line end would cut the line that is written of it */
        if (iscntrl((unsigned char)*p))
            return "text without control characters";
    if (!strcmp(k, "delta") || !strcmp(k, "sha256")) {
        bool delta = k[0] == 'd';
        int *n = delta ? &l->deltas : &l->hashes;
        if (*n == REQUEST_DELTAS || !*v || strlen(v) >= REQUEST_PATH)
            return "a file, at most 8 of them, their paths shorter than 4096 bytes";
        copy = delta ? &l->delta[(*n)++] : &l->sha256[(*n)++];
    } else if (!strcmp(k, "class")) {
        copy = &l->class_name;
    } else if (!strcmp(k, "name")) {
        if (!*v || *v == '.' || strchr(v, '/') || strlen(v) > 200 || strspn(v, "0123456789") == strlen(v))
            return "a file's name of at most 200 bytes, without /, not beginning with a dot, not a number";
        copy = &l->name;
    } else if (!strcmp(k, "seed")) {
        return whole(v, UINT64_MAX, &l->seed) ? NULL : "a whole number from 0";
    } else if (!strcmp(k, "number")) {
        if (!whole(v, UINT32_MAX, &u))
            return "a whole number from 0 to 4294967295";
        l->number = (uint32_t)u;
        return NULL;
    } else if (!strcmp(k, "count")) {
        if (!whole(v, 1000000, &u) || u < 1)
            return "a whole number from 1 to 1000000";
        l->count = (int)u;
        return NULL;
    } else if (!strcmp(k, "guidance")) {
        l->cfg = strtod(v, &end);
        return *v && !*end && strspn(v, "0123456789.+-eE") == strlen(v) && isfinite(l->cfg) && l->cfg >= 0 && l->cfg <= 100 ? NULL : "a number from 0 to 100";
    } else {
        return "one of the keys delta, class, seed, guidance, count, number, name, sha256";
    }
    free(*copy);
    *oom = !(*copy = strdup(v));
    return NULL;
}

static dfcl_status add_line(struct sample_requests *r, const char *from, const char *to, int where, const char *what,
                            const struct sample_line *defaults, dfcl_error *err) {
    if (r->count == r->cap) {
        int cap = r->cap ? 2 * r->cap : 16;
        struct sample_line *more = realloc(r->line, (size_t)cap * sizeof *more);
        if (!more)
            return no_memory(err);
        r->line = more;
        r->cap = cap;
    }
    struct sample_line *l = &r->line[r->count];
    *l = (struct sample_line){
        .seed = defaults->seed, .cfg = defaults->cfg, .count = defaults->count, .where = where, .set = -1};
    struct words w = {.p = from, .end = to, .first = true, .value = malloc((size_t)(to - from) + 1)};
    dfcl_status s = w.value ? DFCL_OK : no_memory(err);
    w.json = !s && take(&w, '{');
    bool oom = false;
    for (int got = 1; !s && (got = next_word(&w)) != 0;) {
        const char *expected = got < 0 ? NULL : set_word(l, w.key, w.value, &oom);
        if (got < 0)
            s = fail(err, DFCL_FORMAT,
                     "%s, line %d: expected key=value words or one JSON object, found something else at byte %d", what,
                     where, (int)(w.p - from) + 1);
        else if (expected)
            s = fail(err, DFCL_FORMAT, "%s, line %d: %s=%.200s: expected %s", what, where, w.key, w.value, expected);
        else if (oom)
            s = no_memory(err);
    }
    free(w.value);
    if (!s && !l->class_name)
        s = fail(err, DFCL_FORMAT, "%s, line %d: expected a class, found none", what, where);
    if (!s && l->hashes && l->hashes != l->deltas)
        s = fail(err, DFCL_FORMAT, "%s, line %d: %d sha256 for %d deltas", what, where, l->hashes, l->deltas);
    for (int i = 0; !s && !l->deltas && i < defaults->deltas; i++)
        if (!(l->delta[i] = strdup(defaults->delta[i])))
            s = no_memory(err);
    if (!s && !l->deltas)
        l->deltas = defaults->deltas;
    if (!s && l->count - 1 > (int64_t)UINT32_MAX - l->number)
        s = fail(err, DFCL_FORMAT, "%s, line %d: numbers end at 4294967295", what, where);
    if (!s && (r->pictures += l->count) > 1000000)
        s = fail(err, DFCL_USAGE, "%s: more than 1000000 pictures in one call", what);
    if (s) {
        line_free(l);
        return s;
    }
    r->count++;
    return DFCL_OK;
}

static int by_name(const void *a, const void *b) {
    const struct sample_line *x = *(struct sample_line *const *)a, *y = *(struct sample_line *const *)b;
    int c = strcmp(x->name, y->name);
    return c ? c : x->where - y->where;
}

/* Files must not meet. */
static dfcl_status check_names(const struct sample_requests *r, const char *what, dfcl_error *err) {
    const struct sample_line **named = malloc(((size_t)r->count + 1) * sizeof *named);
    if (!named)
        return no_memory(err);
    size_t n = 0;
    for (int i = 0; i < r->count; i++)
        if (r->line[i].name)
            named[n++] = &r->line[i];
    qsort(named, n, sizeof *named, by_name);
    dfcl_status s = DFCL_OK;
    for (size_t i = 1; i < n && !s; i++)
        if (!strcmp(named[i]->name, named[i - 1]->name))
            s = fail(err, DFCL_FORMAT, "%s, line %d: name=%s: line %d has it already", what, named[i]->where,
                     named[i]->name, named[i - 1]->where);
    free(named);
    return s;
}

dfcl_status sample_requests_parse(struct sample_requests *r, const char *text, const char *what,
                                  const struct sample_line *defaults, dfcl_error *err) {
    int where = 0;
    for (const char *p = text; *p;) {
        const char *end = p + strcspn(p, "\n"), *q = p;
        where++;
        while (q < end && isspace((unsigned char)*q))
            q++;
        if (q < end && *q != '#') {
            dfcl_status s = add_line(r, q, end, where, what, defaults, err);
            if (s)
                return s;
        }
        p = *end ? end + 1 : end;
    }
    return r->count ? check_names(r, what, err)
                    : fail(err, DFCL_FORMAT, "%s: expected a request a line, found none", what);
}

dfcl_status sample_requests_read(struct sample_requests *r, const char *path, const struct sample_line *defaults,
                                 dfcl_error *err) {
    enum { MOST = 64 << 20 };
    FILE *f = fopen(path, "rb");
    if (!f)
        return fail(err, DFCL_IO, "%s: %s", path, strerror(errno));
    size_t n = 0, cap = 1 << 16;
    char *text = malloc(cap + 1);
    dfcl_status s = text ? DFCL_OK : no_memory(err);
    while (!s) {
        n += fread(text + n, 1, cap - n, f);
        if (n < cap)
            break;
        char *more = cap >= MOST ? NULL : realloc(text, 2 * cap + 1);
        if (!more)
            s = fail(err, cap >= MOST ? DFCL_FORMAT : DFCL_NOMEM, "%s: more than %zu bytes of requests", path, cap);
        else
            text = more, cap *= 2;
    }
    if (!s && ferror(f))
        s = fail(err, DFCL_IO, "%s: cannot read: %s", path, strerror(errno));
    fclose(f);
    if (!s) {
        text[n] = 0;
        s = strlen(text) == n ? sample_requests_parse(r, text, path, defaults, err)
                              : fail(err, DFCL_FORMAT, "%s: expected text, found a zero byte", path);
    }
    free(text);
    return s;
}

void sample_requests_free(struct sample_requests *r) {
    for (int i = 0; i < r->count; i++)
        line_free(&r->line[i]);
    free(r->line);
    free(r->sets);
    memset(r, 0, sizeof *r);
}

/* ---- deltas ---- */

void sample_split_strength(const char *text, char *path, size_t size, double *strength) {
    *strength = 1;
    snprintf(path, size, "%s", text);
    struct stat st;
    char *colon = strrchr(path, ':');
    if (!colon || stat(path, &st) == 0)
        return;
    char *end;
    double v = strtod(colon + 1, &end);
    if (end != colon + 1 && !*end && isfinite(v)) {
        *strength = v;
        *colon = 0;
    }
}

/* Order by deltas, equal ones as in the file. */
static int by_deltas(const void *a, const void *b) {
    const struct sample_line *x = *(struct sample_line *const *)a, *y = *(struct sample_line *const *)b;
    int c = x->deltas - y->deltas;
    for (int i = 0; !c && i < x->deltas; i++)
        c = strcmp(x->delta[i], y->delta[i]);
    return c ? c : x < y ? -1 : x > y;
}
static bool same_deltas(const struct sample_line *a, const struct sample_line *b) {
    bool same = a->deltas == b->deltas;
    for (int i = 0; same && i < a->deltas; i++)
        same = !strcmp(a->delta[i], b->delta[i]);
    return same;
}

/* A file that is there, with something behind it that is no strength: "no such file" would not say so. */
static dfcl_status check_strength(const char *text, dfcl_error *err) {
    struct stat st;
    char path[REQUEST_PATH], file[REQUEST_PATH];
    double strength;
    sample_split_strength(text, path, sizeof path, &strength);
    const char *colon = strrchr(path, ':');
    if (!colon || stat(path, &st) == 0)
        return DFCL_OK;
    snprintf(file, sizeof file, "%.*s", (int)(colon - path), path);
    if (stat(file, &st) != 0)
        return DFCL_OK;
    return fail(err, DFCL_USAGE, "%s: expected a number after the colon, the strength of this delta, found '%s'", file, colon + 1);
}

static dfcl_status load(struct sample_requests *r, dfcl_model *model, struct sample_set *set, bool force,
                        dfcl_error *err) {
    char path[REQUEST_DELTAS][REQUEST_PATH];
    struct dfcl_delta_part part[REQUEST_DELTAS];
    const struct sample_line *l = set->line;
    for (int i = 0; i < l->deltas; i++) {
        double strength;
        dfcl_status bad = check_strength(l->delta[i], err);
        if (bad)
            return bad;
        sample_split_strength(l->delta[i], path[i], sizeof path[i], &strength);
        part[i] = (struct dfcl_delta_part){path[i], (float)strength};
    }
    /* The domain used longest ago makes room. One that the pictures at hand need has the clock's own time. */
    for (;;) {
        dfcl_status s = dfcl_model_load_blend(model, part, l->deltas, force, &set->domain, err);
        struct sample_set *old = NULL;
        for (int i = 0; s == DFCL_NOMEM && i < r->set_count; i++)
            if (r->sets[i].domain && r->sets[i].used < r->clock && (!old || r->sets[i].used < old->used))
                old = &r->sets[i];
        if (!old)
            return s;
        if ((s = dfcl_model_unload_delta(model, old->domain, err)) != DFCL_OK)
            return s;
        old->domain = 0;
    }
}

dfcl_status sample_requests_group(struct sample_requests *r, dfcl_error *err) {
    size_t n = (size_t)r->count;
    struct sample_line **line = malloc((n + 1) * sizeof *line);
    r->sets = calloc(n + 1, sizeof *r->sets);
    if (!line || !r->sets) {
        free(line);
        return no_memory(err);
    }
    /* Sorted, since a file may name as many deltas as it has lines. Until sets have numbers, in the file's order, a line's is its first equal. */
    for (size_t i = 0; i < n; i++)
        line[i] = &r->line[i];
    qsort(line, n, sizeof *line, by_deltas);
    for (size_t i = 0; i < n; i++)
        line[i]->set = i && same_deltas(line[i], line[i - 1]) ? line[i - 1]->set : (int)(line[i] - r->line);
    for (int i = 0; i < r->count; i++) {
        struct sample_line *l = &r->line[i];
        if (l->deltas && l->set == i)
            r->sets[r->set_count++].line = l;
        l->set = !l->deltas ? -1 : l->set == i ? r->set_count - 1 : r->line[l->set].set;
    }
    free(line);
    return DFCL_OK;
}

/* Compares the hashes that lines of set k have for their files; lines without get them. */
static dfcl_status hashes(struct sample_requests *r, struct cli *c, int k, bool force, dfcl_error *err) {
    for (int i = 0; i < r->sets[k].line->deltas; i++) {
        char path[REQUEST_PATH], hash[65];
        double strength;
        sample_split_strength(r->sets[k].line->delta[i], path, sizeof path, &strength);
        dfcl_status s = dfcl_file_hash(c->ctx, path, hash, err);
        for (int j = 0; j < r->count && !s; j++) {
            struct sample_line *l = &r->line[j];
            if (l->set != k)
                continue;
            if (l->hashes == l->deltas && strcmp(hash, l->sha256[i]) && !force)
                s = fail(err, DFCL_FORMAT, "%s: expected the file with SHA-256 %s, found %s; use that one, or force it",
                         path, l->sha256[i], hash);
            char *copy = s ? NULL : strdup(hash);
            if (!s && !copy)
                s = no_memory(err);
            if (!s) {
                free(l->sha256[i]);
                l->sha256[i] = copy;
                if (l->hashes < l->deltas && i + 1 == l->deltas)
                    l->hashes = l->deltas;
            }
        }
        if (s)
            return s;
    }
    return DFCL_OK;
}

dfcl_status sample_requests_resolution(const struct sample_requests *r, struct cli *c,
                                       struct dfcl_model_params *params, dfcl_error *err) {
    int n = 0, most = 0;
    for (int k = 0; k < r->set_count; k++)
        most += r->sets[k].line->deltas;
    char(*path)[REQUEST_PATH] = calloc((size_t)most + 1, sizeof *path);
    const char **list = calloc((size_t)most + 1, sizeof *list);
    dfcl_status s = path && list ? DFCL_OK : no_memory(err);
    for (int k = 0; !s && k < r->set_count; k++)
        for (int i = 0; !s && i < r->sets[k].line->deltas; i++, n++) {
            double strength;
            s = check_strength(r->sets[k].line->delta[i], err);
            sample_split_strength(r->sets[k].line->delta[i], path[n], sizeof path[n], &strength);
            list[n] = path[n];
        }
    if (!s)
        s = dfcl_delta_resolution(c->ctx, list, n, params, err);
    free(list);
    free(path);
    return s;
}

dfcl_status sample_requests_resolve(struct sample_requests *r, struct cli *c, dfcl_model *model, bool force,
                                    dfcl_error *err) {
    for (int k = -1; k < r->set_count; k++) {
        struct sample_set *set = k < 0 ? NULL : &r->sets[k];
        dfcl_status s = DFCL_OK;
        r->clock++;
        if (set && ((s = load(r, model, set, force, err)) != DFCL_OK || (s = hashes(r, c, k, force, err)) != DFCL_OK))
            return s;
        if (set)
            set->used = r->clock;
        for (int i = 0; i < r->count; i++) {
            struct sample_line *l = &r->line[i];
            int domain = set ? set->domain : 0;
            if (l->set != k)
                continue;
            if (!strcmp(l->class_name, "null"))
                l->class_id = dfcl_model_classes(model, domain);
            else if ((s = dfcl_model_find_class(model, domain, l->class_name, &l->class_id, err)) != DFCL_OK)
                return s;
        }
    }
    return DFCL_OK;
}

/* A text that means class `id`: its name where that is found again. */
static char *class_text(const dfcl_model *model, int domain, int id) {
    char number[16];
    int found;
    const char *name = dfcl_model_class_name(model, domain, id);
    snprintf(number, sizeof number, "%d", id);
    if (id == dfcl_model_classes(model, domain))
        name = "null";
    else if (!name || !*name || !strcmp(name, "null") || dfcl_model_find_class(model, domain, name, &found, NULL) ||
             found != id)
        name = number;
    return strdup(name);
}

dfcl_status sample_requests_spread(struct sample_requests *r, const dfcl_model *model, const int *ids, int count,
                                   dfcl_error *err) {
    struct sample_line *line = calloc((size_t)count, sizeof *line), first = r->line[0];
    if (!line)
        return no_memory(err);
    bool good = true;
    for (int i = 0; i < count; i++) {
        struct sample_line *l = &line[i];
        *l = (struct sample_line){.deltas = first.deltas,
                                  .hashes = first.hashes,
                                  .seed = first.seed,
                                  .cfg = first.cfg,
                                  .count = first.count,
                                  .where = 1,
                                  .number = (uint32_t)i * (uint32_t)first.count,
                                  .set = first.set,
                                  .class_id = ids[i]};
        for (int k = 0; k < first.deltas; k++)
            good = (l->delta[k] = strdup(first.delta[k])) && (l->sha256[k] = strdup(first.sha256[k])) && good;
        good = (l->class_name = class_text(model, first.set < 0 ? 0 : r->sets[first.set].domain, ids[i])) && good;
    }
    line_free(&r->line[0]);
    free(r->line);
    r->line = line;
    r->count = r->cap = count;
    r->pictures = (int64_t)count * first.count;
    if (r->set_count)
        r->sets[0].line = line;
    return good ? DFCL_OK : no_memory(err);
}

dfcl_status sample_requests_next(struct sample_requests *r, dfcl_model *model, bool force, int64_t *at, int most,
                                 struct dfcl_sample_request *out, const struct sample_line **lines, int *count,
                                 dfcl_error *err) {
    int64_t first = 0;
    int i = 0;
    *count = 0;
    r->clock++;
    while (i < r->count && first + r->line[i].count <= *at)
        first += r->line[i++].count;
    for (; i < r->count && *count < most; first += r->line[i++].count) {
        const struct sample_line *l = &r->line[i];
        struct sample_set *set = l->set < 0 ? NULL : &r->sets[l->set];
        if (set && !set->domain) {
            dfcl_status s = load(r, model, set, force, err);
            if (s == DFCL_NOMEM && *count) {
                memset(err, 0, sizeof *err);
                return DFCL_OK; /* the rest comes in the next group */
            }
            if (s)
                return s;
        }
        if (set)
            set->used = r->clock;
        for (int64_t k = *at - first; k < l->count && *count < most; k++, ++*at, ++*count) {
            out[*count] = (struct dfcl_sample_request){.domain = set ? set->domain : 0,
                                                       .class_id = l->class_id,
                                                       .own = 1,
                                                       .seed = l->seed,
                                                       .cfg = l->cfg,
                                                       .number = l->number + (uint32_t)k};
            lines[*count] = l;
        }
    }
    return DFCL_OK;
}

/* ---- back to text ---- */

static void put_quoted(FILE *f, const char *k, const char *v) {
    fprintf(f, "%s=\"", k);
    for (; *v; v++) {
        if (*v == '"' || *v == '\\')
            fputc('\\', f);
        fputc(*v, f);
    }
    fputs("\" ", f);
}

char *sample_line_text(const struct sample_line *l, uint32_t number, int count) {
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    for (int i = 0; i < l->deltas; i++)
        put_quoted(f, "delta", l->delta[i]);
    for (int i = 0; i < l->hashes; i++)
        fprintf(f, "sha256=%s ", l->sha256[i]);
    put_quoted(f, "class", l->class_name);
    fprintf(f, "seed=%llu guidance=%.9g number=%u count=%d\n", (unsigned long long)l->seed, l->cfg, number, count);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
