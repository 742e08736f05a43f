/* Runs a program to see how it ends: for work that may end the process that does it. */
#ifndef DFCL_DEVICE_CHILD_H
#define DFCL_DEVICE_CHILD_H

enum dfcl_child_end {
    DFCL_CHILD_EXITED,  /* code: its exit code */
    DFCL_CHILD_KILLED,  /* code: the signal */
    DFCL_CHILD_TIMEOUT, /* was killed after `seconds` */
    DFCL_CHILD_NOT_RUN, /* could not be started, or this system has no way to */
};

/* Runs argv[0] (a path, no search; argv ends with NULL) with nothing on its standard streams and waits for it, at most
 * `seconds`.
 *
 * The program that this library is part of notices nothing: it gets no SIGCHLD, a wait for any child does not see this
 * one, no handler of it runs in the child, and it may have any number of threads. What was started is gone when this
 * returns. Exit codes 125 and 126 are taken. */
enum dfcl_child_end dfcl_child_run(const char *const *argv, double seconds, int *code);

#endif
