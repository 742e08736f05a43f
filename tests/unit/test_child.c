/* device/child.c and device/dot.c: programs that end in every way, what the caller sees of it (nothing), which answers
 * are kept. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/file.h"
#include "device/child.h"
#include "device/cpu.h"
#include "device/dot.h"

static char dir[64] = "/tmp/dfcl-child-XXXXXX";
static dfcl_context *ctx;
static volatile sig_atomic_t signals;
static int warnings;

static void on_sigchld(int sig) {
    (void)sig;
    signals++;
}
static void on_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user, (void)line;
    warnings += level == DFCL_LOG_WARN;
}

/* Valid until the next call. */
static char *in_dir(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* A program that notes that it ran, then does `body`. */
static const char *script(const char *body) {
    char text[512];
    static char path[256];
    snprintf(path, sizeof path, "%s/program", dir);
    snprintf(text, sizeof text, "#!/bin/sh\necho \"$*\" >> '%s/ran'\n%s\n", dir, body);
    assert_int_equal(dfcl_file_write(ctx, path, text, strlen(text), NULL), DFCL_OK);
    assert_int_equal(chmod(path, 0700), 0);
    return path;
}
static int times_run(void) {
    FILE *f = fopen(in_dir("ran"), "r");
    int n = 0;
    for (int c; f && (c = fgetc(f)) != EOF;)
        n += c == '\n';
    if (f)
        fclose(f);
    unlink(in_dir("ran"));
    return n;
}

static enum dfcl_child_end run(const char *body, double seconds, int *code) {
    const char *argv[] = {script(body), "a", "b", NULL};
    return dfcl_child_run(argv, seconds, code);
}

static void ends(void **state) {
    (void)state;
    int code;
#if !defined(__linux__) || !defined(__x86_64__)
    assert_int_equal(run("exit 0", 60, &code), DFCL_CHILD_NOT_RUN);
    skip();
#endif
    assert_int_equal(run("exit 0", 60, &code), DFCL_CHILD_EXITED);
    assert_int_equal(code, 0);
    assert_int_equal(run("exit 7", 60, &code), DFCL_CHILD_EXITED);
    assert_int_equal(code, 7);
    const int deadly[] = {SIGILL, SIGABRT, SIGSEGV, SIGKILL, SIGTERM};
    for (size_t i = 0; i < DFCL_COUNT(deadly); i++) {
        char body[64];
        snprintf(body, sizeof body, "kill -%d $$; sleep 100", deadly[i]);
        assert_int_equal(run(body, 60, &code), DFCL_CHILD_KILLED);
        assert_int_equal(code, deadly[i]);
    }
    assert_int_equal(dfcl_child_run((const char *[]){in_dir("missing"), NULL}, 60, &code), DFCL_CHILD_NOT_RUN);
    assert_int_equal(dfcl_file_write(ctx, in_dir("noise"),
                                     "\x7f"
                                     "ELF",
                                     4, NULL),
                     DFCL_OK);
    chmod(in_dir("noise"), 0700);
    assert_int_equal(dfcl_child_run((const char *[]){in_dir("noise"), NULL}, 60, &code), DFCL_CHILD_NOT_RUN);
}

/* Also when what it started goes on: all of it is killed. The pipe ends when its last writer is gone. */
static void time_limit(void **state) {
    (void)state;
#if !defined(__linux__) || !defined(__x86_64__)
    skip();
#endif
    int fd[2], code;
    char c, body[64];
    const char *bodies[] = {"sleep 100", "trap '' TERM; sleep 100 & wait"};
    for (size_t i = 0; i < DFCL_COUNT(bodies); i++) {
        assert_int_equal(pipe(fd), 0);
        double t = dfcl_now();
        assert_int_equal(run(bodies[i], 0.3, &code), DFCL_CHILD_TIMEOUT);
        assert_true(dfcl_now() - t >= 0.3 && dfcl_now() - t < 30);
        close(fd[1]);
        assert_int_equal(read(fd[0], &c, 1), 0);
        close(fd[0]);
    }
    assert_int_equal(pipe(fd), 0);
    snprintf(body, sizeof body, "sleep 100 & exit 3");
    assert_int_equal(run(body, 60, &code), DFCL_CHILD_EXITED);
    assert_int_equal(code, 3);
    close(fd[1]);
    assert_int_equal(read(fd[0], &c, 1), 0);
    close(fd[0]);
}

/* The caller's signals, children and standard streams are as before. */
static void unnoticed(void **state) {
    (void)state;
#if !defined(__linux__) || !defined(__x86_64__)
    skip();
#endif
    struct sigaction sa = {.sa_handler = on_sigchld}, was;
    int code, fd[2], keep;
    char c;
    sigaction(SIGCHLD, &sa, &was);
    for (int ignored = 0; ignored < 2; ignored++) {
        if (ignored)
            signal(SIGCHLD, SIG_IGN);
        signals = 0;
        assert_int_equal(run("exit 5", 60, &code), DFCL_CHILD_EXITED);
        assert_int_equal(code, 5);
        assert_int_equal(run("kill -ILL $$", 60, &code), DFCL_CHILD_KILLED);
        assert_int_equal(run("sleep 100", 0.1, &code), DFCL_CHILD_TIMEOUT);
        assert_int_equal(signals, 0);
        assert_int_equal(waitpid(-1, NULL, WNOHANG | __WALL), -1);
        assert_int_equal(errno, ECHILD);
    }
    sigaction(SIGCHLD, &was, NULL);
    sigset_t mask;
    assert_int_equal(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
    assert_false(sigismember(&mask, SIGTERM));

    assert_int_equal(pipe(fd), 0);
    keep = dup(STDERR_FILENO);
    dup2(fd[1], STDERR_FILENO);
    close(fd[1]);
    run("echo out; echo err >&2; cat; exit 0", 60, &code);
    dup2(keep, STDERR_FILENO);
    close(keep);
    assert_int_equal(code, 0);
    assert_int_equal(read(fd[0], &c, 1), 0); /* nothing was written, and no copy is left open */
    close(fd[0]);
}

/* A device as dfcl_dot_works sees one. */
static bool works(const char *body, const char *cache, const char *identity, int expected_runs) {
    struct dfcl_device dev = {.cpu_features = DFCL_CPU_AVX512_BF16, .info.vector_bits = 512};
    dfcl_context *c;
    struct dfcl_context_params p = {.cache_dir = cache, .probe_program = script(body), .log = on_log};
    assert_int_equal(dfcl_context_create(&c, &p, NULL), DFCL_OK);
    dev.ctx = c;
    snprintf(dev.info.selector, sizeof dev.info.selector, "opencl:3");
    snprintf(dev.info.name, sizeof dev.info.name, "some device");
    warnings = 0;
    bool yes = dfcl_dot_works(&dev, identity);
    assert_int_equal(times_run(), expected_runs);
    dfcl_context_destroy(&c);
    return yes;
}

static void answers(void **state) {
    (void)state;
#if !defined(__linux__) || !defined(__x86_64__)
    skip();
#endif
    char cache[256];
    snprintf(cache, sizeof cache, "%s/cache", dir);
    const char *asked = "[ \"$*\" = '--try-dot opencl:3 some device' ] || exit 2";
    char body[200];
    times_run();
    snprintf(body, sizeof body, "%s; exit 0", asked);
    assert_true(works(body, cache, "good", 1));
    assert_true(works("exit 1", cache, "good", 0)); /* from the cache */
    assert_int_equal(warnings, 0);
    assert_false(works("exit 1", cache, "other driver", 1));
    assert_int_equal(warnings, 0);
    assert_false(works("exit 0", cache, "other driver", 0));
    assert_false(works("kill -ILL $$", cache, "illegal", 1));
    assert_int_equal(warnings, 1);
    assert_false(works("exit 0", cache, "illegal", 0));
    assert_false(works("kill -ABRT $$", cache, "abort", 1));
    assert_false(works("exit 0", cache, "abort", 0));
    /* not kept: killed by somebody, out of memory, a hang */
    assert_false(works("kill -KILL $$", cache, "busy", 1));
    assert_int_equal(warnings, 1);
    assert_false(works("exit 4", cache, "busy", 1));
    dfcl_dot_limit_s = 0.2;
    assert_false(works("sleep 100", cache, "busy", 1));
    assert_int_equal(warnings, 1);
    dfcl_dot_limit_s = 30.0;
    assert_true(works("exit 0", cache, "busy", 1));
    /* no cache folder: asked each time */
    assert_true(works("exit 0", NULL, "good", 1));
    assert_false(works("exit 1", NULL, "good", 1));
    /* a damaged entry is asked again */
    struct dfcl_list files = {0};
    char probes[300], path[600];
    snprintf(probes, sizeof probes, "%s/probes", cache);
    assert_int_equal(dfcl_list_dir(ctx, probes, &files, NULL), DFCL_OK);
    assert_int_equal(files.count, 5);
    for (size_t i = 0; i < files.count; i++) {
        snprintf(path, sizeof path, "%s/%s", probes, files.names[i]);
        assert_int_equal(dfcl_file_write(ctx, path, "?", 1, NULL), DFCL_OK);
    }
    dfcl_list_free(ctx, &files);
    assert_false(works("exit 1", cache, "good", 1));
    assert_int_equal(warnings, 1);
    /* no program, no such instruction, narrow vectors */
    struct dfcl_device dev = {.ctx = ctx, .cpu_features = DFCL_CPU_AVX512_BF16, .info.vector_bits = 512};
    assert_false(dfcl_dot_works(&dev, "good"));
}

/* The real thing: the program says what an open device says, and only once. */
static void real(void **state) {
    (void)state;
#ifdef DFCL_PROGRAM
    struct dfcl_device_info list[32];
    int n, tried = 0;
    assert_int_equal(dfcl_device_list(ctx, list, 32, &n, NULL), DFCL_OK);
    for (int i = 0; i < n && i < 32; i++) {
        if (!list[i].usable || list[i].type != DFCL_DEVICE_CPU || strcmp(list[i].backend, "opencl") ||
            list[i].vector_bits < 512 || !(dfcl_cpu_features() & DFCL_CPU_AVX512_BF16))
            continue;
        struct dfcl_device *dev;
        dfcl_context *c;
        struct dfcl_context_params p = {.probe_program = DFCL_PROGRAM, .log = on_log, .cache_dir = in_dir("real")};
        int code;
        warnings = 0;
        const char *argv[] = {DFCL_PROGRAM, "--try-dot", list[i].selector, list[i].name, NULL};
        assert_int_equal(dfcl_child_run(argv, 120, &code), DFCL_CHILD_EXITED);
        printf("%s: exit code %d\n", list[i].name, code);
        assert_true(code == DFCL_OK || code == DFCL_ERROR);
        assert_int_equal(dfcl_context_create(&c, &p, NULL), DFCL_OK);
        assert_int_equal(dfcl_device_open(&dev, c, list[i].selector, NULL), DFCL_OK);
        assert_int_equal(dev->dot, code == DFCL_OK ? DFCL_DOT_NATIVE : DFCL_DOT_NONE);
        assert_int_equal(dev->info.bf16_dot, code == DFCL_OK);
        assert_int_equal(warnings, 0);
        dfcl_device_close(&dev);
        dfcl_context_destroy(&c);
        /* another device's name: refused, and so no answer */
        argv[3] = "another";
        assert_int_equal(dfcl_child_run(argv, 120, &code), DFCL_CHILD_EXITED);
        assert_int_equal(code, DFCL_USAGE);
        tried++;
    }
    if (!tried)
        skip();
#else
    skip();
#endif
}

/* A device without the instruction says so. */
static void refused(void **state) {
    (void)state;
    struct dfcl_device *dev;
    dfcl_error e = {0};
    assert_int_equal(dfcl_device_open(&dev, ctx, "host", NULL), DFCL_OK);
    assert_int_equal(dfcl_device_try_dot(dev, &e), DFCL_ERROR);
    assert_non_null(strstr(e.msg, "no bf16 dot products"));
    dfcl_device_close(&dev);
}

static int setup(void **state) {
    (void)state;
    return !mkdtemp(dir) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends),    cmocka_unit_test(time_limit), cmocka_unit_test(unnoticed),
        cmocka_unit_test(answers), cmocka_unit_test(refused),    cmocka_unit_test(real),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
