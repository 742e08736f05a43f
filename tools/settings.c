/* Options from a configuration file and from the environment, and the effective ones as JSON; docs/configuration.md. */
#include "options.h"

#include <cjson/cJSON.h>

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static int bad(struct cli *c, dfcl_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int bad(struct cli *c, dfcl_status status, const char *fmt, ...) {
    dfcl_error err = {.status = status};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err.msg, sizeof err.msg, fmt, ap);
    va_end(ap);
    for (char *p = err.msg; *p; p++) /* a key or value may hold anything; a message is one line */
        *p = iscntrl((unsigned char)*p) ? '?' : *p;
    return cli_fail(c, &err);
}

static bool is_command(const struct cli *c, const char *name) {
    for (int i = 0; i < c->program->count; i++)
        if (!strcmp(c->program->commands[i].name, name))
            return true;
    return false;
}

/* "max-memory" or "max_memory" -> "--max-memory"; "n" -> "-n". */
static void option_of(const char *key, char *buf, size_t size) {
    snprintf(buf, size, "%s%s", key[0] && !key[1] ? "-" : "--", key);
    for (char *p = buf; *p; p++)
        *p = *p == '_' ? '-' : *p;
}

/* Only the command line can give these. */
static bool words_only(const struct cli *c, const struct cli_option *o) {
    return !o->dest || o->dest == &c->config;
}

/* ---- the file ---- */

static int read_file(struct cli *c, const char *path, char **out) {
    enum { LIMIT = 1 << 20 };
    FILE *f = fopen(path, "re");
    if (!f)
        return bad(c, DFCL_IO, "%s: cannot open: %s", path, strerror(errno));
    char *text = malloc(LIMIT + 2);
    size_t n = text ? fread(text, 1, LIMIT + 1, f) : 0;
    int code = 0;
    if (!text)
        code = bad(c, DFCL_NOMEM, "%s: out of memory", path);
    else if (ferror(f))
        code = bad(c, DFCL_IO, "%s: cannot read: %s", path, strerror(errno));
    else if (n > LIMIT)
        code = bad(c, DFCL_FORMAT, "%s: expected a configuration of at most 1 MiB, found more", path);
    else if (memchr(text, 0, n))
        code = bad(c, DFCL_FORMAT, "%s: expected JSON, found a zero byte", path);
    fclose(f);
    if (code) {
        free(text);
        return code;
    }
    text[n] = 0;
    *out = text;
    return 0;
}

static int parse_file(struct cli *c, const char *path, cJSON **out) {
    char *text = NULL;
    int code = read_file(c, path, &text);
    if (code)
        return code;
    const char *end = text;
    *out = cJSON_ParseWithOpts(text, &end, true);
    if (!*out) {
        int line = 1, column = 1;
        for (const char *p = text; p < end && *p; p++) {
            column = *p == '\n' ? 1 : column + 1;
            line += *p == '\n';
        }
        code = bad(c, DFCL_FORMAT, "%s: expected JSON, found a mistake at line %d, column %d", path, line, column);
    } else if (!cJSON_IsObject(*out)) {
        code = bad(c, DFCL_FORMAT, "%s: expected a JSON object with options", path);
    } else if (strstr(text, "\\u0000")) {
        code = bad(c, DFCL_FORMAT, "%s: expected text, found \\u0000", path);
    }
    free(text);
    return code;
}

/* What an option's value has to be in JSON. */
static const char *type_of(const struct cli_option *o) {
    switch (o->kind) {
    case CLI_FLAG: return "true or false";
    case CLI_INT:
    case CLI_I64:
    case CLI_U64:
    case CLI_DBL: return "a number";
    case CLI_SIZE: return "a number of bytes, or a text such as \"8G\"";
    case CLI_EXTENT: return "a number, or a text such as \"96x64\"";
    case CLI_LIST: return "a text, or an array of texts";
    default: return "a text";
    }
}

/* Sets an option from a value of the file. `where`: "FILE: train.steps". */
static int set_value(struct cli *c, const struct cli_option *o, const cJSON *v, const char *where) {
    char number[40], expected[128] = "another value";
    const char *text = NULL;
    if (o->kind == CLI_LIST && cJSON_IsArray(v)) {
        const cJSON *e;
        cJSON_ArrayForEach(e, v) {
            if (!cJSON_IsString(e))
                return bad(c, DFCL_FORMAT, "%s: expected %s", where, type_of(o));
            if (!options_set(c, o, e->valuestring, CLI_FILE, expected, sizeof expected))
                return bad(c, DFCL_FORMAT, "%s: expected %s", where, expected);
        }
        return 0;
    }
    bool numeric = o->kind == CLI_INT || o->kind == CLI_I64 || o->kind == CLI_U64 || o->kind == CLI_DBL;
    if (o->kind == CLI_FLAG && cJSON_IsBool(v)) {
        text = cJSON_IsTrue(v) ? "on" : "off";
    } else if (cJSON_IsNumber(v) && (numeric || o->kind == CLI_SIZE || o->kind == CLI_EXTENT)) {
        double d = v->valuedouble;
        snprintf(number, sizeof number, d == floor(d) && fabs(d) < 1e15 ? "%.0f" : "%.17g", d);
        text = number;
    } else if (cJSON_IsString(v) && o->kind != CLI_FLAG && (!numeric || o->kind == CLI_U64)) { /* U64: beyond 2^53 */
        text = v->valuestring;
    }
    if (!text) {
        char *found = cJSON_PrintUnformatted(v);
        int code = bad(c, DFCL_FORMAT, "%s: expected %s, found %.60s", where, type_of(o), found ? found : "something else");
        cJSON_free(found);
        return code;
    }
    if (o->kind == CLI_U64 && cJSON_IsNumber(v) && fabs(v->valuedouble) > 9007199254740992.0)
        return bad(c, DFCL_FORMAT, "%s: expected a whole number as text, since it is past 2^53, found %s", where, text);
    if (!options_set(c, o, text, CLI_FILE, expected, sizeof expected))
        return bad(c, DFCL_FORMAT, "%s: expected %s, found '%.60s'", where, expected, text);
    return 0;
}

static void same_key(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    const struct cli_option *near;
    const char **key = c->visit_user;
    const struct options_tables t = {options, common};
    if (*key && options_find(&t, *key, &near))
        *key = NULL;
}

/* Has any command this option? */
static bool known_somewhere(const struct cli *c, const char *option) {
    const char *key = option;
    for (int i = 0; i < c->program->count && key; i++)
        cli_visit(c->program, c->program->commands[i].name, same_key, &key);
    return !key;
}

static int check_duplicates(struct cli *c, const cJSON *object, const char *path) {
    const cJSON *v;
    cJSON_ArrayForEach(v, object) {
        for (const cJSON *w = v->next; w; w = w->next)
            if (!strcmp(v->string, w->string))
                return bad(c, DFCL_FORMAT, "%s: %.60s is there twice", path, v->string);
    }
    return 0;
}

/* Sets options by the members of `object`, which holds those of the command `section`, or, when that is NULL, those of every command that has them. */
static int apply(struct cli *c, const struct options_tables *t, const cJSON *object, const char *path, const char *section) {
    const cJSON *v;
    int code = check_duplicates(c, object, path);
    cJSON_ArrayForEach(v, object) {
        char option[80], where[4096];
        const struct cli_option *near;
        if (code)
            return code;
        if (!section && is_command(c, v->string))
            continue;
        option_of(v->string, option, sizeof option);
        snprintf(where, sizeof where, "%s: %s%s%.60s", path, section ? section : "", section ? "." : "", v->string);
        const struct cli_option *o = options_find(t, option, &near);
        bool known = (o && !words_only(c, o)) || (!o && !section && known_somewhere(c, option));
        if (o && known)
            code = set_value(c, o, v, where);
        else if (!known && near)
            code = bad(c, DFCL_FORMAT, "%s: unknown option (did you mean %s?)", where, near->name + strspn(near->name, "-"));
        else if (!known)
            code = bad(c, DFCL_FORMAT, "%s: unknown option%s%s; see `%s %s --help`", where, section ? " of " : "", section ? section : "",
                       c->program->name, c->command);
    }
    return code;
}

struct check {
    const cJSON *object;
    const char *path, *running;
    int code;
};

static void check_other(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words) {
    struct check *k = c->visit_user;
    const struct options_tables t = {options, common};
    const char *section = c->command;
    c->command = k->running; /* for messages */
    k->code = apply(c, &t, k->object, k->path, section);
}

int options_from_file(struct cli *c, const struct options_tables *t) {
    char variable[80];
    cli_variable(c->program, "--config", variable, sizeof variable);
    const char *path = c->config ? c->config : getenv(variable);
    if (!path || !*path)
        return 0;
    cJSON *root = NULL;
    int code = parse_file(c, path, &root);
    const cJSON *object = root, *v;
    if (!code) { /* a run keeps the options that it was started with */
        const cJSON *format = cJSON_GetObjectItemCaseSensitive(root, "format"), *options = cJSON_GetObjectItemCaseSensitive(root, "options");
        if (cJSON_IsString(format) && !strncmp(format->valuestring, "difffit-cl run", 14)) {
            object = options;
            if (!cJSON_IsObject(options))
                code = bad(c, DFCL_FORMAT, "%s: expected the options that the run was started with, found none", path);
        }
    }
    if (!code)
        code = apply(c, t, object, path, NULL);
    /* A command's own section is checked whichever command runs: a file is right or wrong as a whole. */
    for (v = code ? NULL : object->child; v && !code; v = v->next) {
        if (!is_command(c, v->string))
            continue;
        struct check k = {v, path, c->command, 0};
        if (!cJSON_IsObject(v))
            code = bad(c, DFCL_FORMAT, "%s: %s: expected an object with options of this command", path, v->string);
        else if (!strcmp(v->string, c->command))
            code = apply(c, t, v, path, v->string);
        else
            cli_visit(c->program, v->string, check_other, &k);
        code = code ? code : k.code;
    }
    if (!c->kept)
        c->kept = cJSON_CreateArray();
    if (!cJSON_AddItemToArray(c->kept, root)) { /* options point into it */
        cJSON_Delete(root);
        return code ? code : bad(c, DFCL_NOMEM, "%s: out of memory", path);
    }
    return code;
}

/* ---- the environment ---- */

void cli_variable(const struct cli_program *p, const char *option, char *buf, size_t size) {
    snprintf(buf, size, "%s%s", p->prefix, option + strspn(option, "-"));
    for (char *q = buf; *q; q++)
        *q = *q == '-' ? '_' : (char)toupper((unsigned char)*q);
}

/* A list's items are separated by commas. */
static bool set_list(struct cli *c, const struct cli_option *o, const char *value, char *expected, size_t size) {
    if (!c->kept)
        c->kept = cJSON_CreateArray();
    while (true) {
        char item[4096];
        size_t n = strcspn(value, ",");
        snprintf(item, sizeof item, "%.*s", (int)(n < sizeof item ? n : sizeof item - 1), value);
        cJSON *kept = cJSON_CreateString(item);
        if (!cJSON_AddItemToArray(c->kept, kept)) {
            cJSON_Delete(kept);
            return false;
        }
        if (!options_set(c, o, kept->valuestring, CLI_ENVIRONMENT, expected, size))
            return false;
        if (!value[n])
            return true;
        value += n + 1;
    }
}

/* A variable that no command has an option for is most likely misspelled; it may also be meant for another version, so it is no error. */
void options_warn_unknown(struct cli *c) {
    const char *prefix = c->program->prefix;
    size_t n = strlen(prefix);
    for (char **e = environ; *e; e++) {
        char name[80], option[80] = "--";
        size_t k = strcspn(*e, "=");
        if (strncmp(*e, prefix, n) || k - n > 60)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)k, *e);
        if (!strcmp(name, "DIFFFIT_CL_BF16_DOT")) /* of the program, not of a command */
            continue;
        for (size_t i = n; i <= k; i++)
            option[i - n + 2] = (char)(name[i] == '_' ? '-' : tolower((unsigned char)name[i]));
        if (!known_somewhere(c, k - n == 1 ? option + 1 : option))
            fprintf(stderr, "%s: warning: environment: %s is no option of any %s\n", c->program->name, name, c->program->noun);
    }
}

int options_from_environment(struct cli *c, const struct options_tables *t) {
    const struct cli_option *tables[2] = {t->own, t->common};
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++) {
            char name[80], expected[128] = "another value";
            cli_variable(c->program, o->name, name, sizeof name);
            const char *value = getenv(name);
            if (!value || !*value || words_only(c, o))
                continue;
            bool ok = o->kind == CLI_LIST ? set_list(c, o, value, expected, sizeof expected)
                                          : options_set(c, o, value, CLI_ENVIRONMENT, expected, sizeof expected);
            if (!ok)
                return cli_usage(c, "%s: expected %s, found '%s'", name, expected, value);
        }
    return 0;
}

/* ---- effective options ---- */

/* JSON is UTF-8; a path is bytes. Replaces those that are not UTF-8. */
static void add_text(cJSON *to, const char *key, const char *text) {
    char buf[4096];
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p && n + 4 < sizeof buf;) {
        int k = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;
        for (int i = 1; i < k; i++)
            if ((p[i] & 0xc0) != 0x80)
                k = 0;
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
            k = 0;
        memcpy(buf + n, k ? (const char *)p : "?", (size_t)(k ? k : 1));
        n += (size_t)(k ? k : 1);
        p += k ? k : 1;
    }
    buf[n] = 0;
    if (key)
        cJSON_AddStringToObject(to, key, buf);
    else
        cJSON_AddItemToArray(to, cJSON_CreateString(buf));
}

static void add_value(cJSON *to, const struct cli_option *o) {
    const char *key = o->name + strspn(o->name, "-");
    uint64_t u;
    switch (o->kind) {
    case CLI_FLAG: cJSON_AddBoolToObject(to, key, *(bool *)o->dest); break;
    case CLI_INT: cJSON_AddNumberToObject(to, key, *(int *)o->dest); break;
    case CLI_I64: cJSON_AddNumberToObject(to, key, (double)*(int64_t *)o->dest); break;
    case CLI_DBL: cJSON_AddNumberToObject(to, key, *(double *)o->dest); break;
    case CLI_SIZE: cJSON_AddNumberToObject(to, key, (double)*(uint64_t *)o->dest); break;
    case CLI_EXTENT: {
        const struct cli_extent *e = o->dest;
        char text[32];
        snprintf(text, sizeof text, "%dx%d", e->width, e->height);
        if (e->width == e->height)
            cJSON_AddNumberToObject(to, key, e->width);
        else
            cJSON_AddStringToObject(to, key, text);
        break;
    }
    case CLI_U64:
        u = *(uint64_t *)o->dest;
        if (u >> 53) {
            char text[24];
            snprintf(text, sizeof text, "%llu", (unsigned long long)u);
            cJSON_AddStringToObject(to, key, text);
        } else {
            cJSON_AddNumberToObject(to, key, (double)u);
        }
        break;
    case CLI_LIST: {
        const struct cli_list *l = o->dest;
        cJSON *a = cJSON_AddArrayToObject(to, key);
        for (int i = 0; a && i < l->count; i++)
            add_text(a, NULL, l->items[i]);
        break;
    }
    default: add_text(to, key, *(const char **)o->dest); break;
    }
}

void options_keep(struct cli *c, const struct options_tables *t) {
    static const char *const from[] = {"", "the configuration file", "the environment", ""};
    cJSON *root = cJSON_CreateObject(), *own = cJSON_CreateObject();
    const struct cli_option *tables[2] = {t->common, t->own};
    for (int k = 0; k < 2; k++)
        for (const struct cli_option *o = tables[k]; o->name; o++) {
            enum cli_from f = cli_given(c, o->name);
            if (f == CLI_DEFAULT || words_only(c, o))
                continue;
            add_value(k ? own : root, o);
            if (c->verbose && f != CLI_WORDS)
                fprintf(stderr, "%s comes from %s\n", o->name, from[f]);
        }
    if (!cJSON_AddItemToObject(root, c->command, own))
        cJSON_Delete(own);
    cJSON_free(c->options);
    c->options = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
}
