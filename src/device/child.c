#define _GNU_SOURCE
#include "device/child.h"

#if defined(__linux__) && defined(__x86_64__) && defined(__GNUC__)
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

enum { TIMEOUT = 125, NOT_RUN = 126 }; /* exit codes of the middle process; the program has others */

/* fork() without its handlers: other threads may hold any lock, so the copy only makes system calls until it runs
 * another program. */
static pid_t copy_process(unsigned long end_signal) {
    return (pid_t)syscall(SYS_clone, end_signal, NULL, NULL, NULL, NULL);
}

static void __attribute__((noreturn)) leave(int code) {
    syscall(SYS_exit_group, code);
    __builtin_unreachable();
}

/* No handler of the parent may run in a copy of it. Ends with no signal blocked. */
static void default_signals(void) {
    struct sigaction sa = {.sa_handler = SIG_DFL};
    for (int i = 1; i < NSIG; i++)
        sigaction(i, &sa, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void run_program(char *const *argv, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        leave(NOT_RUN);
    int fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        if (fd < 0 || dup2(fd, i) < 0)
            leave(NOT_RUN);
    setrlimit(RLIMIT_CORE, &(struct rlimit){1, 1}); /* 1 byte: no file, and no program that is handed one */
    execv(argv[0], argv);
    leave(NOT_RUN);
}

/* The middle process: a child that announces its end to nobody. The program itself cannot be that, since execve() makes
 * it announce its end again, with SIGCHLD. Ends as the program does. */
static void be_middle(char *const *argv, double seconds) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    default_signals();
    double end = dfcl_now() + seconds;
    pid_t me = getpid(), child = copy_process(SIGCHLD), r;
    if (!child)
        run_program(argv, me);
    if (child < 0)
        leave(NOT_RUN);
    setpgid(child, child); /* whichever of the two comes first: the group is there before it has to be killed */
    int status = 0, rest;
    while ((r = waitpid(child, &status, WNOHANG)) == 0 && dfcl_now() < end)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    kill(-child, SIGKILL); /* the program, or what it left running */
    while (waitpid(-child, &rest, 0) > 0)
        ;
    if (r == 0)
        leave(TIMEOUT);
    if (r == child && WIFSIGNALED(status))
        kill(me, WTERMSIG(status));
    leave(r == child && WIFEXITED(status) ? WEXITSTATUS(status) : NOT_RUN);
}

enum dfcl_child_end dfcl_child_run(const char *const *argv, double seconds, int *code) {
    *code = 0;
    sigset_t all, before;
    sigfillset(&all);
    if (access(argv[0], X_OK) != 0 || pthread_sigmask(SIG_SETMASK, &all, &before) != 0)
        return DFCL_CHILD_NOT_RUN;
    pid_t pid = copy_process(0), r;
    if (!pid)
        be_middle((char *const *)(uintptr_t)argv, seconds);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        return DFCL_CHILD_NOT_RUN;
    int status = 0;
    while ((r = waitpid(pid, &status, __WALL)) < 0 && errno == EINTR)
        ;
    if (r != pid || (WIFEXITED(status) && WEXITSTATUS(status) == NOT_RUN))
        return DFCL_CHILD_NOT_RUN;
    if (WIFEXITED(status) && WEXITSTATUS(status) == TIMEOUT)
        return DFCL_CHILD_TIMEOUT;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
    return WIFEXITED(status) ? DFCL_CHILD_EXITED : DFCL_CHILD_KILLED;
}
#else
enum dfcl_child_end dfcl_child_run(const char *const *argv, double seconds, int *code) {
    (void)argv, (void)seconds;
    *code = 0;
    return DFCL_CHILD_NOT_RUN;
}
#endif
