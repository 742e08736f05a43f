/* Options of the command line; help. */
#include "options.h"

#include <cjson/cJSON.h>

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables ---- */

/* Levenshtein distance of short words, for "did you mean". */
static size_t distance(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b), row[64];
    if (n >= 63 || m >= 63)
        return 99;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diag = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diag + (a[i - 1] != b[j - 1]);
            diag = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

const struct cli_option *options_find(const struct options_tables *t, const char *name, const struct cli_option **near) {
    const struct cli_option *tables[2] = {t->own, t->common};
    size_t least = 4;
    *near = NULL;
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++) {
            if (!strcmp(o->name, name)) {
                *near = NULL;
                return o;
            }
            size_t d = distance(o->name, name);
            if (d < least) {
                least = d;
                *near = o;
            }
        }
    return NULL;
}

enum cli_from cli_given(const struct cli *c, const char *option) {
    for (int i = 0; i < c->given_count; i++)
        if (!strcmp(c->given[i].name, option))
            return c->given[i].from;
    return CLI_DEFAULT;
}

/* Notes where an option's value comes from; returns where the one before came from. */
static enum cli_from note(struct cli *c, const struct cli_option *o, enum cli_from from) {
    int i = 0;
    while (i < c->given_count && strcmp(c->given[i].name, o->name))
        i++;
    if (i == CLI_OPTIONS_MAX)
        return from;
    enum cli_from before = i < c->given_count ? c->given[i].from : CLI_DEFAULT;
    c->given[i].name = o->name;
    c->given[i].from = from;
    if (i == c->given_count)
        c->given_count++;
    return before;
}

/* ---- values ---- */

static bool parse_number(const char *text, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    return end != text && !*end && !errno && isfinite(*out);
}

static bool parse_size(const char *text, uint64_t *out) {
    char *end;
    double v = strtod(text, &end);
    double unit = 1;
    switch (toupper((unsigned char)*end)) {
    case 'K': unit = 1024.0; end++; break;
    case 'M': unit = 1048576.0; end++; break;
    case 'G': unit = 1073741824.0; end++; break;
    case 'T': unit = 1099511627776.0; end++; break;
    default: break;
    }
    if (*end == 'i')
        end++;
    if (*end == 'B')
        end++;
    if (end == text || *end || !(v > 0) || v * unit > 1e18)
        return false;
    *out = (uint64_t)(v * unit);
    return true;
}

static bool parse_extent(const char *text, double min, double max, struct cli_extent *out) {
    long side[2] = {0, 0};
    int n = 0;
    for (const char *p = text;; p++) {
        char *end;
        if (!isdigit((unsigned char)*p) || n == 2)
            return false;
        errno = 0;
        side[n] = strtol(p, &end, 10);
        if (errno || (double)side[n] < min || (double)side[n] > max || side[n] > INT_MAX)
            return false;
        n++;
        p = end;
        if (!*p)
            break;
        if (*p != 'x')
            return false;
    }
    out->width = (int)side[0];
    out->height = (int)side[n - 1];
    return true;
}

static bool parse_flag(const char *text, bool *out) {
    static const char *const words[2][4] = {{"off", "no", "false", "0"}, {"on", "yes", "true", "1"}};
    for (int on = 0; on < 2; on++)
        for (int i = 0; i < 4; i++)
            if (!strcmp(text, words[on][i])) {
                *out = on;
                return true;
            }
    return false;
}

/* Is it one of "a|b|c"? If not, `expected` becomes "a, b or c". */
static bool parse_choice(const char *choices, const char *text, char *expected, size_t size) {
    size_t n = strlen(text), at = 0;
    for (const char *p = choices; *p;) {
        size_t k = strcspn(p, "|");
        if (k == n && !strncmp(p, text, n))
            return true;
        const char *after = p + k + (p[k] == '|');
        int w = snprintf(expected + at, size - at, "%s%.*s", p == choices ? "" : *after ? ", " : " or ", (int)k, p);
        at += w > 0 && (size_t)w < size - at ? (size_t)w : 0;
        p = after;
    }
    return false;
}

bool options_set(struct cli *c, const struct cli_option *o, const char *value, enum cli_from from, char *expected, size_t size) {
    double d;
    char *end;
    enum cli_from before = note(c, o, from);
    switch (o->kind) {
    case CLI_FLAG:
        snprintf(expected, size, "on or off");
        return parse_flag(value ? value : "on", o->dest);
    case CLI_STR:
    case CLI_PATH:
    case CLI_DEVICE:
        *(const char **)o->dest = value;
        return true;
    case CLI_CHOICE:
        *(const char **)o->dest = value;
        return parse_choice(o->arg, value, expected, size);
    case CLI_LIST: {
        struct cli_list *l = o->dest;
        if (before != from)
            l->count = 0;
        snprintf(expected, size, "at most %d of them", CLI_LIST_MAX);
        if (l->count >= CLI_LIST_MAX)
            return false;
        l->items[l->count++] = value;
        return true;
    }
    case CLI_SIZE:
        snprintf(expected, size, "a size such as 800M or 8G");
        return parse_size(value, o->dest);
    case CLI_EXTENT:
        snprintf(expected, size, "a side from %.0f to %.0f, or width x height (96x64)", o->min, o->max);
        return parse_extent(value, o->min, o->max, o->dest);
    case CLI_U64:
        snprintf(expected, size, "a whole number from 0");
        errno = 0;
        *(uint64_t *)o->dest = strtoull(value, &end, 0);
        return isdigit((unsigned char)*value) && !*end && !errno;
    default: break;
    }
    bool whole = o->kind != CLI_DBL;
    if (o->min != 0 || o->max != 0)
        snprintf(expected, size, "a %snumber from %.10g to %.10g", whole ? "whole " : "", o->min, o->max);
    else
        snprintf(expected, size, "a %snumber", whole ? "whole " : "");
    if (!parse_number(value, &d) || (whole && (d != floor(d) || fabs(d) > 9e15)) ||
        (o->kind == CLI_INT && fabs(d) > 2147483647.0) || ((o->min != 0 || o->max != 0) && (d < o->min || d > o->max)))
        return false;
    if (o->kind == CLI_INT)
        *(int *)o->dest = (int)d;
    else if (o->kind == CLI_I64)
        *(int64_t *)o->dest = (int64_t)d;
    else
        *(double *)o->dest = d;
    return true;
}

/* ---- the command line ---- */

struct words {
    int argc, rest_max;
    char **argv;
    const char *usage, **rest;
};

static int mistake(struct cli *c, int code) {
    c->code = code;
    return -1;
}

/* Goes through the words: first to find --help, --config and mistakes, then, when the other sources have been read, to set options. Returns the number
 * of positional words, or -1. */
static int walk(struct cli *c, const struct words *w, const struct options_tables *t, bool set) {
    int n = 0;
    bool only_words = false;
    for (int i = 1; i < w->argc; i++) {
        char *word = w->argv[i];
        if (!strcmp(word, "--") && !only_words) {
            only_words = true;
            continue;
        }
        if (only_words || word[0] != '-' || !word[1]) {
            if (n >= w->rest_max)
                return mistake(c, cli_usage(c, "unexpected argument '%s'", word));
            w->rest[n++] = word;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            cli_help(c, w->usage, t->own, t->common);
            return mistake(c, 0);
        }
        char name[64];
        const char *eq = strchr(word, '='), *value = eq ? eq + 1 : NULL;
        const struct cli_option *near;
        snprintf(name, sizeof name, "%.*s", eq ? (int)(eq - word) : (int)strlen(word), word);
        const struct cli_option *o = options_find(t, name, &near);
        if (!o && !strcmp(name, "--device"))
            return mistake(c, cli_usage(c, "%s uses no device, so there is no --device", c->command));
        if (!o)
            return mistake(c, near ? cli_usage(c, "unknown option %s (did you mean %s?)", name, near->name)
                                   : cli_usage(c, "unknown option %s", name));
        if (o->kind != CLI_FLAG && !value && !(value = i + 1 < w->argc ? w->argv[++i] : NULL))
            return mistake(c, cli_usage(c, "%s needs a value (%s)", o->name, o->arg));
        char expected[128] = "another value";
        bool config = o->dest == &c->config;
        if (set != config && !options_set(c, o, value, CLI_WORDS, expected, sizeof expected))
            return mistake(c, cli_usage(c, "%s: expected %s, found '%s'", o->name, expected, value));
    }
    return n;
}

static bool opens_device(const struct cli *c) {
    for (int i = 0; i < c->program->count; i++)
        if (!strcmp(c->program->commands[i].name, c->command))
            return !c->program->commands[i].no_device;
    return true;
}

int cli_parse(struct cli *c, int argc, char **argv, const char *usage, const struct cli_option *options, const char **rest,
              int rest_max) {
    const struct cli_option every[] = {
        {"--device", CLI_DEVICE, &c->device, "D", "auto (default), an index of `devices`, opencl:0, host, or part of a name", 0, 0},
        {"--config", CLI_PATH, &c->config, "FILE", "JSON file with options; the environment and the command line win over it", 0, 0},
        {"--verbose", CLI_FLAG, &c->verbose, NULL, "say more: the device, the memory plan, kernel builds", 0, 0},
        {"--quiet", CLI_FLAG, &c->quiet, NULL, "only errors and results", 0, 0},
        {"--help", CLI_FLAG, NULL, NULL, "this text", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    const struct cli_option *common = every + !opens_device(c);
    if (c->visit) {
        c->visit(c, usage, options, common, rest_max);
        return -1;
    }
    const struct options_tables t = {options, common};
    const struct words w = {.argc = argc, .rest_max = rest_max, .argv = argv, .usage = usage, .rest = rest};
    c->given_count = 0;
    c->code = 0;
    if (walk(c, &w, &t, false) < 0)
        return -1;
    int code = options_from_file(c, &t);
    if (!code)
        code = options_from_environment(c, &t);
    if (code)
        return mistake(c, code);
    int n = walk(c, &w, &t, true);
    if (n >= 0 && !c->quiet)
        options_warn_unknown(c);
    if (n >= 0)
        options_keep(c, &t);
    return n;
}

void cli_visit(const struct cli_program *p, const char *command, cli_visit_fn fn, void *user) {
    for (int i = 0; i < p->count; i++) {
        if (strcmp(p->commands[i].name, command))
            continue;
        struct cli c = {.program = p, .command = command, .visit = fn, .visit_user = user};
        char *argv[2] = {(char *)(uintptr_t)command, NULL};
        p->commands[i].run(&c, 1, argv);
        cli_parse_finish(&c);
    }
}

void cli_parse_finish(struct cli *c) {
    cJSON_free(c->options);
    cJSON_Delete(c->kept);
    c->options = NULL;
    c->kept = NULL;
}
