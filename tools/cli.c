#define _GNU_SOURCE
#include "cli.h"
#include "place.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- messages ---- */

int cli_fail(const struct cli *c, const dfcl_error *err) {
    fprintf(stderr, "%s %s: %s\n", c->program, c->command, err->msg[0] ? err->msg : dfcl_status_name(err->status));
    return err->status == DFCL_INTERRUPTED ? cli_interrupted() : (int)err->status;
}

int cli_usage(const struct cli *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s %s: ", c->program, c->command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "; see `%s %s --help`\n", c->program, c->command);
    va_end(ap);
    return DFCL_USAGE;
}

void cli_line(void *user, const char *line) {
    (void)user;
    puts(line);
    fflush(stdout);
}

void cli_json_string(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        unsigned char ch = (unsigned char)*s;
        if (ch == '"' || ch == '\\')
            fprintf(f, "\\%c", ch);
        else if (ch < 0x20)
            fprintf(f, "\\u%04x", ch);
        else
            fputc(ch, f);
    }
    fputc('"', f);
}

double cli_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void cli_eta(double seconds, char *buf, size_t size) {
    if (!(seconds >= 0 && seconds < 1e8)) {
        snprintf(buf, size, "-");
        return;
    }
    long t = (long)(seconds + 0.5);
    if (t >= 3600)
        snprintf(buf, size, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
    else
        snprintf(buf, size, "%ld:%02ld", t / 60, t % 60);
}

void cli_progress(const struct cli *c, bool last, const char *fmt, ...) {
    static double shown = -1e9;
    if (c->quiet)
        return;
    double now = cli_now();
    bool tty = isatty(STDERR_FILENO);
    if (!last && now - shown < (tty ? 0.1 : 5.0))
        return;
    shown = last ? -1e9 : now;
    va_list ap;
    va_start(ap, fmt);
    if (tty)
        fputs("\r\033[K", stderr);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    if (!tty || last)
        fputc('\n', stderr);
    fflush(stderr);
}

/* ---- signals ---- */

static volatile sig_atomic_t stop_signal;

static void on_signal(int sig) {
    if (stop_signal) /* a second one: the user means it */
        _exit(128 + sig);
    stop_signal = sig;
}

void cli_catch_signals(void) {
    struct sigaction sa = {0};
    sa.sa_handler = on_signal;
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

int cli_interrupted(void) {
    return stop_signal ? 128 + stop_signal : 0;
}

/* ---- options ---- */

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

static void print_options(const struct cli_option *options) {
    for (const struct cli_option *o = options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-26s ", left);
        int column = 29; /* help text wrapped at 100 columns */
        for (const char *w = o->help; *w;) {
            int n = (int)strcspn(w, " ");
            if (column > 29 && column + n > 99) {
                printf("\n%29s", "");
                column = 29;
            }
            printf("%.*s%s", n, w, w[n] ? " " : "");
            column += n + 1;
            w += n;
            while (*w == ' ')
                w++;
        }
        putchar('\n');
    }
}

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

static bool set_option(const struct cli_option *o, const char *value, char *expected, size_t size) {
    double d;
    char *end;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->dest = true;
        return true;
    case CLI_STR:
        *(const char **)o->dest = value;
        return true;
    case CLI_LIST: {
        struct cli_list *l = o->dest;
        snprintf(expected, size, "at most %d of them", CLI_LIST_MAX);
        if (l->count >= CLI_LIST_MAX)
            return false;
        l->items[l->count++] = value;
        return true;
    }
    case CLI_SIZE:
        snprintf(expected, size, "a size such as 800M or 8G");
        return parse_size(value, o->dest);
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

int cli_parse(struct cli *c, int argc, char **argv, const char *usage, const struct cli_option *options, const char **rest,
              int rest_max) {
    const struct cli_option common[] = {
        {"--device", CLI_STR, &c->device, "D", "auto (default), an index of `devices`, opencl:0, host, or part of a name", 0, 0},
        {"--verbose", CLI_FLAG, &c->verbose, NULL, "say more: the device, the memory plan, kernel builds", 0, 0},
        {"--quiet", CLI_FLAG, &c->quiet, NULL, "only errors and results", 0, 0},
        {"--help", CLI_FLAG, NULL, NULL, "this text", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int n = 0;
    bool only_words = false;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        if (!strcmp(word, "--") && !only_words) {
            only_words = true;
            continue;
        }
        if (only_words || word[0] != '-' || !word[1]) {
            if (n >= rest_max)
                exit(cli_usage(c, "unexpected argument '%s'", word));
            rest[n++] = word;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            printf("usage: %s %s\n\n", c->program, usage);
            print_options(options);
            printf("%sCommon options:\n", options->name ? "\n" : "");
            print_options(common);
            exit(0);
        }
        char name[64];
        const char *eq = strchr(word, '=');
        snprintf(name, sizeof name, "%.*s", eq ? (int)(eq - word) : (int)strlen(word), word);
        const struct cli_option *found = NULL, *near = NULL;
        size_t near_distance = 4;
        const struct cli_option *tables[2] = {options, common};
        for (int k = 0; k < 2; k++)
            for (const struct cli_option *o = tables[k]; o->name; o++) {
                if (!strcmp(o->name, name))
                    found = o;
                size_t d = distance(o->name, name);
                if (d < near_distance) {
                    near_distance = d;
                    near = o;
                }
            }
        if (!found) {
            if (near)
                exit(cli_usage(c, "unknown option %s (did you mean %s?)", name, near->name));
            exit(cli_usage(c, "unknown option %s", name));
        }
        const char *value = NULL;
        if (found->kind != CLI_FLAG) {
            value = eq ? eq + 1 : i + 1 < argc ? argv[++i] : NULL;
            if (!value)
                exit(cli_usage(c, "%s needs a value (%s)", found->name, found->arg));
        } else if (eq) {
            exit(cli_usage(c, "%s takes no value", found->name));
        }
        char expected[96] = "another value";
        if (!set_option(found, value, expected, sizeof expected))
            exit(cli_usage(c, "%s: expected %s, found '%s'", found->name, expected, value));
    }
    return n;
}

/* ---- weights ---- */

/* A line only when it takes long enough to be waited for. */
static void on_loading(void *user, int64_t done, int64_t total, double seconds) {
    struct cli *c = user;
    if (seconds < 1 || !done)
        return;
    char eta[32];
    cli_eta(seconds * (double)(total - done) / (double)done, eta, sizeof eta);
    cli_progress(c, done == total, "reading weights %d%%  %.0f million values/s  %s left", (int)(100.0 * (double)done / (double)total),
                 (double)done / seconds / 1e6, eta);
}

int cli_weights(struct cli *c, const char *weights, const char *pack, struct dfcl_model_params *p) {
    static const struct {
        const char *name;
        enum dfcl_weight_type type;
    } types[] = {{"f32", DFCL_WEIGHTS_F32}, {"bf16", DFCL_WEIGHTS_BF16}, {"f16", DFCL_WEIGHTS_F16}};
    size_t i = 0;
    while (weights && i < sizeof types / sizeof *types && strcmp(weights, types[i].name))
        i++;
    if (i == sizeof types / sizeof *types)
        return cli_usage(c, "--weights: expected f32, bf16 or f16, found '%s'", weights);
    if (pack && strcmp(pack, "auto") && strcmp(pack, "never") && strcmp(pack, "cache"))
        return cli_usage(c, "--pack: expected auto, never or cache, found '%s'", pack);
    p->weights = types[i].type;
    p->pack = pack && !strcmp(pack, "never") ? DFCL_PACK_NEVER : pack && !strcmp(pack, "cache") ? DFCL_PACK_CACHE : DFCL_PACK_AUTO;
    p->progress = on_loading;
    p->progress_user = c;
    return 0;
}

int cli_activations(struct cli *c, const char *activations, struct dfcl_model_params *p) {
    p->activations = DFCL_ACTIVATIONS_AUTO;
    if (!activations || !strcmp(activations, "auto"))
        return 0;
    p->activations = !strcmp(activations, "bf16") ? DFCL_ACTIVATIONS_BF16 : DFCL_ACTIVATIONS_F32;
    return !strcmp(activations, "bf16") || !strcmp(activations, "f32")
               ? 0
               : cli_usage(c, "--activations: expected auto, f32 or bf16, found '%s'", activations);
}

/* ---- context and device ---- */

static void log_line(void *user, enum dfcl_log_level level, const char *line) {
    const struct cli *c = user;
    if (level == DFCL_LOG_ERROR || (level == DFCL_LOG_WARN && !c->quiet) || (level >= DFCL_LOG_INFO && c->verbose))
        fprintf(stderr, "%s: %s%s\n", c->program, level == DFCL_LOG_WARN ? "warning: " : "", line);
}

/* $XDG_CACHE_HOME/difffit-cl or ~/.cache/difffit-cl; empty when neither is set. */
static void cache_dir(char *buf, size_t size) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && xdg[0] == '/')
        snprintf(buf, size, "%s/difffit-cl", xdg);
    else if (home && home[0] == '/')
        snprintf(buf, size, "%s/.cache/difffit-cl", home);
    else
        buf[0] = 0;
}

dfcl_status cli_context(struct cli *c, dfcl_error *err) {
    char cache[4096];
    cache_dir(cache, sizeof cache);
    const char *dot = getenv("DIFFFIT_CL_BF16_DOT"); /* docs/device.md */
    struct dfcl_context_params p = {.log = log_line, .log_user = c, .cache_dir = cache};
    p.probe_program = dot && !strcmp(dot, "0") ? NULL : "/proc/self/exe"; /* in a copy of this process: this program */
    return dfcl_context_create(&c->ctx, &p, err);
}

/* `PROGRAM --try-dot SELECTOR NAME`, run by the library (probe_program of dfcl_context_params). */
static int try_dot(const char *selector, const char *name) {
    dfcl_context *ctx;
    dfcl_device *dev;
    dfcl_error err = {0};
    dfcl_status s = dfcl_context_create(&ctx, NULL, &err);
    if (!s)
        s = dfcl_device_open(&dev, ctx, selector, &err);
    if (!s)
        s = strcmp(dfcl_device_get_info(dev)->name, name) ? DFCL_USAGE : dfcl_device_try_dot(dev, &err);
    if (s)
        fprintf(stderr, "--try-dot: %s\n", err.msg[0] ? err.msg : dfcl_status_name(s));
    _exit(s); /* what a driver does at the end is of no interest */
}

static void selftest_line(void *user, const char *line) {
    const struct cli *c = user;
    if (c->verbose)
        fprintf(stderr, "selftest: %s\n", line);
}

dfcl_status cli_open_plain(struct cli *c, dfcl_device **dev, dfcl_error *err) {
    dfcl_status s = dfcl_device_open(dev, c->ctx, c->device, err);
    if (s)
        return s;
    const struct dfcl_device_info *info = dfcl_device_get_info(*dev);
    if (c->verbose)
        fprintf(stderr, "device %s: %s, %s, driver %s\n", info->selector, info->name, info->platform, info->driver);
    return DFCL_OK;
}

dfcl_status cli_open_device(struct cli *c, dfcl_device **dev, dfcl_error *err) {
    dfcl_status s = cli_open_plain(c, dev, err);
    if (s)
        return s;
    s = dfcl_selftest_once(*dev, selftest_line, c, err);
    if (s)
        dfcl_device_close(dev);
    return s;
}

static dfcl_status check_finite(const char *path, const char *key, const float *x, const int64_t *shape, int ndim, dfcl_error *err) {
    int64_t n = 1, i = 0;
    for (int k = 0; k < ndim; k++)
        n *= shape[k];
    while (i < n && isfinite(x[i]))
        i++;
    if (i == n)
        return DFCL_OK;
    err->status = DFCL_NONFINITE;
    snprintf(err->msg, sizeof err->msg, "%s: %s: value %lld is %g, expected a finite number", path, key, (long long)i, (double)x[i]);
    return DFCL_NONFINITE;
}

dfcl_status cli_read_tensor(struct cli *c, const char *path, const char *key, const int64_t *want, int ndim, float **out, dfcl_error *err) {
    int64_t shape[8];
    int n;
    dfcl_status s = dfcl_tensor_read(c->ctx, path, key, out, shape, &n, err);
    if (s)
        return s;
    bool same = n == ndim;
    for (int i = 0; i < ndim && same; i++)
        same = shape[i] == want[i];
    if (same)
        return check_finite(path, key, *out, want, ndim, err);
    char found[128] = "", expected[128] = "";
    for (int i = 0; i < n; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%lld", i ? ", " : "", (long long)shape[i]);
    for (int i = 0; i < ndim; i++)
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%s%lld", i ? ", " : "", (long long)want[i]);
    err->status = DFCL_FORMAT;
    snprintf(err->msg, sizeof err->msg, "%s: %s: expected the shape [%s], found [%s]", path, key, expected, found);
    return DFCL_FORMAT;
}

/* ---- programs ---- */

static void program_help(const struct cli_program *p, FILE *f) {
    fprintf(f, "usage: %s ", p->name);
    for (const char *n = p->noun; *n; n++)
        fputc(toupper((unsigned char)*n), f);
    fprintf(f, " [options]\n\n%s\n\n", p->about);
    for (int i = 0; i < p->count; i++)
        fprintf(f, "  %-10s %s\n", p->commands[i].name, p->commands[i].help);
    fprintf(f, "\n%s\n", p->end);
}

int cli_main(const struct cli_program *p, int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        program_help(p, argc < 2 ? stderr : stdout);
        return argc < 2 ? DFCL_USAGE : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("%s %s\n", p->name, dfcl_version());
        return 0;
    }
    if (!strcmp(argv[1], "--try-dot") && argc == 4)
        return try_dot(argv[2], argv[3]);
    for (int i = 0; i < p->count; i++) {
        if (strcmp(argv[1], p->commands[i].name))
            continue;
        place_workers();
        signal(SIGXFSZ, SIG_IGN); /* a file past the size limit is an error of the write, with a message, like a full disk */
        struct cli c = {.program = p->name, .command = argv[1]};
        dfcl_error err = {0};
        if (cli_context(&c, &err))
            return cli_fail(&c, &err);
        int code = p->commands[i].run(&c, argc - 1, argv + 1);
        dfcl_context_destroy(&c.ctx);
        if (fflush(stdout) != 0 && code == 0) {
            fprintf(stderr, "%s: standard output: %s\n", p->name, strerror(errno));
            code = DFCL_IO;
        }
        return code;
    }
    fprintf(stderr, "%s: unknown %s '%s'; see `%s --help`\n", p->name, p->noun, argv[1], p->name);
    return DFCL_USAGE;
}
