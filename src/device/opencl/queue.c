/* The queue: launches, marks, and waiting with a watchdog.
 *
 * A driver's blocking calls cannot be interrupted, so a second thread makes them while the caller waits with a time limit. Every 64 launches
 * a marker goes into the queue: the watchdog counts finished markers as progress, so that only a queue that does nothing for the whole
 * limit is called hung; and at most 64 markers are in flight, which bounds what the driver has to hold. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "device/opencl/ocl.h"
#include "base/clock.h"

static void *waiter_main(void *arg) {
    struct ocl_waiter *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->quit) {
        if (!w->busy) {
            pthread_cond_wait(&w->wake, &w->lock);
            continue;
        }
        cl_event event = w->event;
        cl_command_queue queue = w->queue;
        pthread_mutex_unlock(&w->lock);
        cl_int r = event ? clWaitForEvents(1, &event) : clFinish(queue);
        pthread_mutex_lock(&w->lock);
        w->result = r;
        w->busy = false;
        pthread_cond_signal(&w->done);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

dfcl_status ocl_waiter_create(struct ocl_device *d, dfcl_error *err) {
    struct ocl_waiter *w = dfcl_calloc(d->dev.ctx, 1, sizeof *w, err);
    if (!w)
        return DFCL_NOMEM;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_cond_init(&w->done, &attr);
    pthread_condattr_destroy(&attr);
    d->waiter = w;
    /* Signals are the program's business: they must not be delivered to a thread that it knows nothing of. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&w->thread, NULL, waiter_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e)
        return dfcl_fail_native(err, DFCL_ERROR, e, "a thread could not be started: %s", strerror(e));
    w->started = true;
    return DFCL_OK;
}

void ocl_waiter_destroy(struct ocl_device *d) {
    struct ocl_waiter *w = d->waiter;
    if (!w)
        return;
    d->waiter = NULL;
    if (d->lost) {
        /* The thread may sit in the driver for ever; what it uses stays. */
        pthread_mutex_lock(&w->lock);
        w->quit = true;
        pthread_mutex_unlock(&w->lock);
        pthread_detach(w->thread);
        return;
    }
    if (w->started) {
        pthread_mutex_lock(&w->lock);
        w->quit = true;
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
    }
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->lock);
    dfcl_free(d->dev.ctx, w);
}

static cl_int event_state(cl_event event) {
    cl_int state = CL_QUEUED;
    cl_int e = clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
    return e == CL_SUCCESS ? state : e;
}

static unsigned marks_done(const struct ocl_device *d) {
    unsigned n = 0;
    while (n < d->mark_count && event_state(d->marks[(d->mark_first + n) % OCL_MARKS]) <= CL_COMPLETE)
        n++;
    return n;
}

static void marks_drop(struct ocl_device *d, unsigned n) {
    for (; n > 0; n--) {
        clReleaseEvent(d->marks[d->mark_first]);
        d->mark_first = (d->mark_first + 1) % OCL_MARKS;
        d->mark_count--;
    }
}

void ocl_marks_release(struct ocl_device *d) {
    marks_drop(d, d->mark_count);
}

dfcl_status ocl_check_lost(const struct ocl_device *d, dfcl_error *err) {
    if (d->lost)
        return dfcl_fail(err, DFCL_DEVICE, "%s: given up after its queue hung", d->dev.info.name);
    return DFCL_OK;
}

dfcl_status ocl_wait(struct ocl_device *d, cl_event event, const char *what, dfcl_error *err) {
    struct ocl_waiter *w = d->waiter;
    cl_int result;
    if (event) {
        /* Small transfers are over sooner than two threads can take turns. */
        double until = dfcl_now() + 50e-6;
        clFlush(d->queue);
        while (event_state(event) > CL_COMPLETE && dfcl_now() < until)
            sched_yield();
    }
    if (event && event_state(event) <= CL_COMPLETE) {
        result = clWaitForEvents(1, &event); /* returns at once; makes the results visible */
    } else {
        cl_int e = clFlush(d->queue);
        if (e != CL_SUCCESS) {
            if (event)
                clReleaseEvent(event);
            return ocl_fail(d, err, e, what);
        }
        double limit = dfcl_now() + d->watchdog_s;
        unsigned done = 0;
        pthread_mutex_lock(&w->lock);
        w->event = event;
        w->queue = d->queue;
        w->busy = true;
        pthread_cond_signal(&w->wake);
        while (w->busy) {
            double until = DFCL_MIN(limit, dfcl_now() + 1.0);
            struct timespec t = {.tv_sec = (time_t)until, .tv_nsec = (long)((until - (double)(time_t)until) * 1e9)};
            if (pthread_cond_timedwait(&w->done, &w->lock, &t) != ETIMEDOUT)
                continue;
            double now = dfcl_now();
            if (now > until + 1.0)
                limit += now - until; /* this process was stopped meanwhile, and so were a CPU device's workers */
            unsigned n = marks_done(d);
            if (n > done)
                limit = now + d->watchdog_s;
            done = n;
            if (w->busy && dfcl_now() >= limit) {
                pthread_mutex_unlock(&w->lock);
                d->lost = true;
                return dfcl_fail(err, DFCL_DEVICE, "%s: %s: the queue has made no progress for %.1f s; the driver or a kernel hangs",
                                 d->dev.info.name, what, d->watchdog_s);
            }
        }
        result = w->result;
        pthread_mutex_unlock(&w->lock);
    }
    if (event) {
        cl_int state = event_state(event);
        if (state < 0)
            result = state; /* says more than CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST */
        clReleaseEvent(event);
    } else if (result == CL_SUCCESS) {
        marks_drop(d, d->mark_count);
        d->since_mark = 0;
    }
    return result == CL_SUCCESS ? DFCL_OK : ocl_fail(d, err, result, what);
}

static dfcl_status mark(struct ocl_device *d, dfcl_error *err) {
    marks_drop(d, marks_done(d));
    if (d->mark_count == OCL_MARKS) {
        cl_event first = d->marks[d->mark_first];
        d->mark_first = (d->mark_first + 1) % OCL_MARKS;
        d->mark_count--;
        dfcl_status s = ocl_wait(d, first, "launch", err);
        if (s)
            return s;
    }
    cl_event ev = NULL;
    cl_int e = clEnqueueMarkerWithWaitList(d->queue, 0, NULL, &ev);
    if (e == CL_SUCCESS) {
        d->marks[(d->mark_first + d->mark_count++) % OCL_MARKS] = ev;
        e = clFlush(d->queue); /* the device works while the host queues on */
    }
    d->since_mark = 0;
    return e == CL_SUCCESS ? DFCL_OK : ocl_fail(d, err, e, "clEnqueueMarkerWithWaitList");
}

dfcl_status ocl_launch(struct dfcl_device *dev, struct dfcl_kernel *kernel, const size_t groups[3], const struct dfcl_args *args,
                       dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    if ((cl_uint)args->n != kernel->args)
        return dfcl_fail(err, DFCL_ERROR, "%s: takes %u arguments, %d given", kernel->name, kernel->args, args->n);
    size_t global[3];
    for (int i = 0; i < 3; i++) {
        global[i] = groups[i] * kernel->local[i];
        if (global[i] > INT32_MAX)
            return dfcl_fail(err, DFCL_ERROR, "%s: %zu groups of %zu items in dimension %d are too many", kernel->name, groups[i],
                             kernel->local[i], i);
    }
    for (cl_uint i = 0; i < kernel->args; i++) {
        const struct dfcl_arg *a = &args->a[i];
        cl_int e = CL_INVALID_ARG_VALUE;
        switch (a->kind) {
        case DFCL_ARG_MEM:
            e = clSetKernelArg(kernel->k, i, sizeof(cl_mem), a->v.mem ? &((struct ocl_mem *)a->v.mem)->buf : NULL);
            break;
        case DFCL_ARG_I32:
            e = clSetKernelArg(kernel->k, i, sizeof a->v.i, &a->v.i);
            break;
        case DFCL_ARG_U32:
            e = clSetKernelArg(kernel->k, i, sizeof a->v.u, &a->v.u);
            break;
        case DFCL_ARG_I64:
            e = clSetKernelArg(kernel->k, i, sizeof a->v.l, &a->v.l);
            break;
        case DFCL_ARG_F32:
            e = clSetKernelArg(kernel->k, i, sizeof a->v.f, &a->v.f);
            break;
        }
        if (e != CL_SUCCESS)
            return dfcl_fail_native(err, DFCL_ERROR, e, "%s: argument %u was refused: %s (%d)", kernel->name, i, ocl_error_name(e), e);
    }
    cl_int e = clEnqueueNDRangeKernel(d->queue, kernel->k, 3, NULL, global, kernel->local, 0, NULL, NULL);
    if (e != CL_SUCCESS)
        return ocl_fail(d, err, e, kernel->name);
    return ++d->since_mark >= OCL_MARK_EVERY ? mark(d, err) : DFCL_OK;
}

dfcl_status ocl_flush(struct dfcl_device *dev, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    if (s)
        return s;
    cl_int e = clFlush(d->queue);
    return e == CL_SUCCESS ? DFCL_OK : ocl_fail(d, err, e, "clFlush");
}

dfcl_status ocl_finish(struct dfcl_device *dev, dfcl_error *err) {
    struct ocl_device *d = ocl(dev);
    dfcl_status s = ocl_check_lost(d, err);
    return s ? s : ocl_wait(d, NULL, "finish", err);
}
