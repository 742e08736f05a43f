/* device/opencl/queue: a hung queue is reported and given up, slow progress and a stopped process are not, and calls after the report fail at
 * once. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "device/opencl/ocl.h"

static dfcl_context *ctx;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct dfcl_device *open_first(void) {
    struct dfcl_device_info list[32];
    int n;
    dfcl_error e = {0};
    assert_int_equal(dfcl_device_list(ctx, list, 32, &n, &e), DFCL_OK);
    for (int i = 0; i < n && i < 32; i++)
        if (list[i].usable && !strcmp(list[i].backend, "opencl")) {
            struct dfcl_device *dev;
            if (dfcl_device_open(&dev, ctx, list[i].selector, &e))
                fail_msg("%s", e.msg);
            return dev;
        }
    return NULL;
}

static void spin(struct dfcl_device *dev, struct dfcl_mem *mem, int64_t rounds) {
    struct dfcl_kernel *k;
    dfcl_error e = {0};
    struct dfcl_args a = {0};
    dfcl_args_ref(&a, (struct dfcl_ref){mem, 0}, 4);
    dfcl_args_i64(&a, rounds);
    if (dfcl_device_kernel(dev, "probe", "probe_spin", NULL, &k, &e) || dfcl_device_launch(dev, k, (size_t[3]){1, 1, 1}, &a, &e))
        fail_msg("%s", e.msg);
}

static void slow_is_not_hung(void **state) {
    (void)state;
    struct dfcl_device *dev = open_first();
    if (!dev)
        skip();
    struct dfcl_mem *mem;
    dfcl_error e = {0};
    assert_int_equal(dfcl_mem_create(dev, 4, "spin", &mem, &e), DFCL_OK);
    spin(dev, mem, 1000); /* built before the clock runs */
    assert_int_equal(dfcl_finish(dev, &e), DFCL_OK);
    int64_t rounds = 100000;
    double t;
    for (;; rounds *= 2) {
        t = now();
        spin(dev, mem, rounds);
        assert_int_equal(dfcl_finish(dev, &e), DFCL_OK);
        t = now() - t;
        if (t > 0.01)
            break;
    }
    rounds = (int64_t)((double)rounds * 0.0006 / t); /* 64 launches, the watchdog's step: 40 ms */
    const double limit = 1.5;
    dfcl_opencl_set_watchdog(dev, limit);
    /* One wait has to take longer than the limit, or the test shows nothing; a busy machine can spoil the estimate above either way. */
    for (int tries = 0;; tries++, rounds *= 2) {
        for (int i = 0; i < 4000; i++)
            spin(dev, mem, rounds);
        t = now();
        if (dfcl_finish(dev, &e))
            fail_msg("%s", e.msg);
        t = now() - t;
        if (t > 1.2 * limit)
            break;
        assert_true(tries < 8);
    }
    dfcl_mem_destroy(dev, &mem);
    dfcl_device_close(&dev);
}

static void hung(void **state) {
    (void)state;
    struct dfcl_device *dev = open_first();
    if (!dev)
        skip();
    struct ocl_device *d = ocl(dev);
    struct dfcl_mem *mem;
    dfcl_error e = {0};
    uint32_t word = 0;
    assert_int_equal(dfcl_mem_create(dev, 4, "word", &mem, &e), DFCL_OK);
    cl_int rc;
    cl_event never = clCreateUserEvent(d->context, &rc);
    assert_int_equal(rc, CL_SUCCESS);
    assert_int_equal(clEnqueueBarrierWithWaitList(d->queue, 1, &never, NULL), CL_SUCCESS);
    dfcl_opencl_set_watchdog(dev, 0.3);
    double t = now();
    assert_int_equal(dfcl_finish(dev, &e), DFCL_DEVICE);
    t = now() - t;
    assert_true(t >= 0.3 && t < 30.0);
    assert_non_null(strstr(e.msg, "no progress"));
    t = now();
    struct dfcl_mem *other;
    assert_int_equal(dfcl_read(dev, &word, (struct dfcl_ref){mem, 0}, 4, &e), DFCL_DEVICE);
    assert_non_null(strstr(e.msg, "given up"));
    assert_int_equal(dfcl_finish(dev, &e), DFCL_DEVICE);
    assert_int_equal(dfcl_flush(dev, &e), DFCL_DEVICE);
    assert_int_equal(dfcl_mem_create(dev, 4, "other", &other, &e), DFCL_DEVICE);
    dfcl_mem_destroy(dev, &mem);
    dfcl_device_close(&dev); /* returns although the queue never drains */
    assert_true(now() - t < 30.0); /* a machine under load may take seconds; a wait for the queue would never end */
    clSetUserEventStatus(never, CL_COMPLETE); /* lets the driver's threads go before the process ends */
    clReleaseEvent(never);
}

/* Completes the event when a byte comes. */
struct release {
    int fd;
    cl_event event;
};
static void *release_main(void *user) {
    struct release *r = user;
    char c;
    if (read(r->fd, &c, 1) == 1)
        clSetUserEventStatus(r->event, CL_COMPLETE);
    return NULL;
}

/* In a process of its own: waits for a queue that the parent lets go. 0: the wait ended well; 2: no device. */
static int wait_for_release(int ready, int go) {
    struct dfcl_device *dev = open_first();
    if (!dev)
        return 2;
    struct ocl_device *d = ocl(dev);
    dfcl_error e = {0};
    cl_int rc;
    struct release r = {go, clCreateUserEvent(d->context, &rc)};
    pthread_t thread;
    dfcl_opencl_set_watchdog(dev, 2.0);
    if (rc != CL_SUCCESS || clEnqueueBarrierWithWaitList(d->queue, 1, &r.event, NULL) != CL_SUCCESS ||
        pthread_create(&thread, NULL, release_main, &r) || write(ready, "r", 1) != 1)
        return 1;
    return dfcl_finish(dev, &e) ? 1 : 0;
}

/* The seconds in which the whole process is stopped (Ctrl-Z, a sleeping machine) do not count. Runs first: the child is forked before any
 * platform is touched. */
static void stopped_is_not_hung(void **state) {
    (void)state;
    int ready[2], go[2], status;
    char c;
    assert_int_equal(pipe(ready) || pipe(go), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child)
        _exit(wait_for_release(ready[1], go[0]));
    close(ready[1]);
    if (read(ready[0], &c, 1) == 1) {
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* into its wait */
        kill(child, SIGSTOP);
        nanosleep(&(struct timespec){.tv_sec = 4}, NULL);
        kill(child, SIGCONT);
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* time enough to give up */
        assert_int_equal(write(go[1], "g", 1), 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    close(ready[0]);
    close(go[0]);
    close(go[1]);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int setup(void **state) {
    (void)state;
    return dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_context_destroy(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_is_not_hung),
        cmocka_unit_test(slow_is_not_hung),
        cmocka_unit_test(hung),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
