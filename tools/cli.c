#define _GNU_SOURCE
#include "cli.h"
#include "place.h"

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
    fprintf(stderr, "%s %s: %s\n", c->program->name, c->command, err->msg[0] ? err->msg : dfcl_status_name(err->status));
    return err->status == DFCL_INTERRUPTED ? cli_interrupted() : (int)err->status;
}

int cli_usage(const struct cli *c, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s %s: ", c->program->name, c->command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "; see `%s %s --help`\n", c->program->name, c->command);
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

void cli_weights(struct cli *c, const char *weights, const char *pack, struct dfcl_model_params *p) {
    p->weights = !weights || !strcmp(weights, "f32") ? DFCL_WEIGHTS_F32 : !strcmp(weights, "f16") ? DFCL_WEIGHTS_F16 : DFCL_WEIGHTS_BF16;
    p->pack = !pack || !strcmp(pack, "auto") ? DFCL_PACK_AUTO : !strcmp(pack, "never") ? DFCL_PACK_NEVER : DFCL_PACK_CACHE;
    p->progress = on_loading;
    p->progress_user = c;
}

void cli_resolution(const struct cli_extent *input, struct dfcl_model_params *p) {
    p->input = input->height;
    p->input_width = input->width;
}

void cli_activations(const char *activations, struct dfcl_model_params *p) {
    p->activations = !activations || !strcmp(activations, "auto")  ? DFCL_ACTIVATIONS_AUTO
                     : !strcmp(activations, "bf16") ? DFCL_ACTIVATIONS_BF16
                                                    : DFCL_ACTIVATIONS_F32;
}

/* ---- context and device ---- */

static void log_line(void *user, enum dfcl_log_level level, const char *line) {
    const struct cli *c = user;
    if (level == DFCL_LOG_ERROR || (level == DFCL_LOG_WARN && !c->quiet) || (level >= DFCL_LOG_INFO && c->verbose))
        fprintf(stderr, "%s: %s%s\n", c->program->name, level == DFCL_LOG_WARN ? "warning: " : "", line);
}

void cli_cache_dir(char *buf, size_t size) {
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
    cli_cache_dir(cache, sizeof cache);
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

int cli_main(const struct cli_program *p, int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        cli_program_help(p, argc < 2 ? stderr : stdout);
        return argc < 2 ? DFCL_USAGE : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("%s %s\n", p->name, dfcl_version());
        return 0;
    }
    if (!strcmp(argv[1], "--man")) {
        cli_man(p);
        return 0;
    }
    if (!strcmp(argv[1], "--completion"))
        return cli_completion(p, argc > 2 ? argv[2] : "");
    if (!strcmp(argv[1], "--try-dot") && argc == 4)
        return try_dot(argv[2], argv[3]);
    for (int i = 0; i < p->count; i++) {
        if (strcmp(argv[1], p->commands[i].name))
            continue;
        place_workers();
        signal(SIGXFSZ, SIG_IGN); /* a file past the size limit is an error of the write, with a message, like a full disk */
        struct cli c = {.program = p, .command = argv[1]};
        dfcl_error err = {0};
        if (cli_context(&c, &err))
            return cli_fail(&c, &err);
        int code = p->commands[i].run(&c, argc - 1, argv + 1);
        dfcl_context_destroy(&c.ctx);
        cli_parse_finish(&c);
        if (fflush(stdout) != 0 && code == 0) {
            fprintf(stderr, "%s: standard output: %s\n", p->name, strerror(errno));
            code = DFCL_IO;
        }
        return code;
    }
    fprintf(stderr, "%s: unknown %s '%s'; see `%s --help`\n", p->name, p->noun, argv[1], p->name);
    return DFCL_USAGE;
}
