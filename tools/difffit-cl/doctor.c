#define _GNU_SOURCE
#include "doctor.h"

#include "../cli.h"
#include "../place.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the parent's side ---- */

struct stream {
    int fd;
    char *buf;
    size_t size, n;
};

/* Reads what is there; what does not fit is dropped. Closes at the end. */
static void drain(struct stream *s) {
    char chunk[4096];
    ssize_t k = read(s->fd, chunk, sizeof chunk);
    if (k < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (k <= 0) {
        close(s->fd);
        s->fd = -1;
        return;
    }
    size_t room = s->size - 1 - s->n, take = (size_t)k < room ? (size_t)k : room;
    memcpy(s->buf + s->n, chunk, take);
    s->n += take;
    s->buf[s->n] = 0;
}

static void be_child(const char *const *words, const int *out, const int *err) {
    char *argv[8] = {(char *)(uintptr_t) "difffit-cl"};
    for (int i = 0; i < 6 && words[i]; i++)
        argv[i + 1] = (char *)(uintptr_t)words[i];
    int null = open("/dev/null", O_RDONLY);
    setpgid(0, 0);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (null >= 0 && dup2(null, 0) >= 0 && dup2(out[1], 1) >= 0 && dup2(err[1], 2) >= 0)
        execv("/proc/self/exe", argv);
    _exit(127);
}

/* The last line that is not empty. */
static const char *last_line(char *text) {
    size_t n = strlen(text);
    while (n && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = 0;
    char *line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

bool doctor_run(const char *const *words, double seconds, struct doctor_result *r) {
    int o[2], e[2];
    r->out[0] = r->messages[0] = r->problem[0] = 0;
    if (pipe2(o, O_CLOEXEC) != 0) {
        snprintf(r->problem, sizeof r->problem, "cannot start a process: %s", strerror(errno));
        return false;
    }
    if (pipe2(e, O_CLOEXEC) != 0) {
        snprintf(r->problem, sizeof r->problem, "cannot start a process: %s", strerror(errno));
        close(o[0]);
        close(o[1]);
        return false;
    }
    pid_t pid = fork();
    if (pid == 0)
        be_child(words, o, e);
    close(o[1]);
    close(e[1]);
    struct stream s[2] = {{o[0], r->out, sizeof r->out, 0}, {e[0], r->messages, sizeof r->messages, 0}};
    double end = cli_now() + seconds;
    bool late = false;
    while (pid > 0 && (s[0].fd >= 0 || s[1].fd >= 0)) {
        struct pollfd p[2] = {{.fd = s[0].fd, .events = POLLIN}, {.fd = s[1].fd, .events = POLLIN}};
        double left = end - cli_now();
        late = left <= 0;
        if (late)
            break;
        if (poll(p, 2, (int)(left * 1e3) + 1) <= 0)
            continue;
        for (int i = 0; i < 2; i++)
            if (p[i].revents)
                drain(&s[i]);
    }
    for (int i = 0; i < 2; i++)
        if (s[i].fd >= 0)
            close(s[i].fd);
    int status = 0;
    if (pid > 0 && late)
        kill(-pid, SIGKILL);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (pid < 0)
        snprintf(r->problem, sizeof r->problem, "cannot start a process: %s", strerror(errno));
    else if (late)
        snprintf(r->problem, sizeof r->problem, "did not finish within %.0f seconds", seconds);
    else if (WIFSIGNALED(status))
        snprintf(r->problem, sizeof r->problem, "ended the process with signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 0)
        snprintf(r->problem, sizeof r->problem, "%s", r->messages[0] ? last_line(r->messages) : "failed without a message");
    return !r->problem[0];
}

/* ---- the children's side ---- */

int doctor_try_driver(const char *library) {
    void *lib = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        fprintf(stderr, "%s\n", dlerror());
        return DFCL_ERROR;
    }
    /* what cl_khr_icd asks of a driver, and what both loaders answer of themselves (OCL_ICDL_NAME, OCL_ICDL_VERSION) */
    typedef void *(*address_fn)(const char *name);
    typedef int (*loader_info_fn)(int what, size_t size, void *value, size_t *needed);
    enum { VERSION = 2, NAME = 3 };
    address_fn address;
    loader_info_fn info;
    char name[256] = "", version[256] = "";
    *(void **)&address = dlsym(lib, "clGetExtensionFunctionAddress");
    if (!address) {
        fprintf(stderr, "%s: is no OpenCL driver\n", library);
        return DFCL_ERROR;
    }
    *(void **)&info = address("clGetICDLoaderInfoOCLICD");
    if (info && info(NAME, sizeof name, name, NULL) == 0 && info(VERSION, sizeof version, version, NULL) == 0)
        printf("%s %s\n", name, version);
    fflush(stdout);
    _exit(0); /* how a driver is taken down is of no interest */
}

int doctor_try_device(const char *selector) {
    static const struct cli_program program = {.name = "difffit-cl"};
    struct cli c = {.program = &program, .command = "--try-device", .quiet = true};
    dfcl_device *dev = NULL;
    dfcl_error err = {0};
    int passed;
    place_workers();
    dfcl_status s = cli_context(&c, &err);
    if (!s)
        s = dfcl_device_open(&dev, c.ctx, selector, &err);
    if (!s)
        s = dfcl_selftest_noted(dev, &passed, &err);
    if (s)
        return cli_fail(&c, &err);
    const struct dfcl_device_info *i = dfcl_device_get_info(dev);
    printf("{\"selftest\": \"%s\", \"sub_group\": %u, \"bf16_dot\": %s}\n", passed ? "passed before" : "not run yet", i->sub_group, i->bf16_dot ? "true" : "false");
    fflush(stdout);
    _exit(0);
}
