/* difffit-cl: status codes, errors, contexts.
 *
 * Thread rules: a dfcl_context is immutable after creation and may be shared by threads as long as its callbacks are
 * thread-safe. Every other handle belongs to one thread at a time. A dfcl_error is owned by the caller. */
#ifndef DFCL_BASE_H
#define DFCL_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(DFCL_STATIC)
#define DFCL_API
#elif defined(__GNUC__)
#define DFCL_API __attribute__((visibility("default")))
#else
#define DFCL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Every fallible call returns one of these; the command uses the same numbers as exit codes. */
typedef enum dfcl_status {
    DFCL_OK = 0,
    DFCL_ERROR = 1,         /* anything not listed below */
    DFCL_USAGE = 2,         /* an argument that can never be right */
    DFCL_DEVICE = 3,        /* no device, or the device or its driver failed */
    DFCL_NOMEM = 4,         /* host or device memory ran out, or the plan does not fit */
    DFCL_NONFINITE = 5,     /* NaN or infinity where a number was needed */
    DFCL_FORMAT = 6,        /* a file that is malformed, or does not match its companion */
    DFCL_IO = 7,            /* the operating system refused to read or write */
    DFCL_INTERRUPTED = 130, /* stopped on request */
} dfcl_status;

#define DFCL_ERROR_MAX 1024

/* Filled by a failing call when the caller passes one (NULL is allowed everywhere). */
typedef struct dfcl_error {
    dfcl_status status;
    int native;               /* the backend's or system's own code (errno, cl_int), 0 if none */
    char msg[DFCL_ERROR_MAX]; /* one line, names the file/kernel, what was expected and what was found */
} dfcl_error;

enum dfcl_log_level { DFCL_LOG_ERROR = 0, DFCL_LOG_WARN = 1, DFCL_LOG_INFO = 2, DFCL_LOG_DEBUG = 3 };

/* What the library may use of its surroundings. It reads no environment and prints nothing: the caller says it here.
 * Zero every field for defaults. Strings are copied. */
struct dfcl_context_params {
    void *(*alloc)(void *user, size_t size);           /* like malloc; NULL: malloc */
    void (*free)(void *user, void *ptr);               /* like free */
    void *alloc_user;
    void (*log)(void *user, enum dfcl_log_level level, const char *line); /* NULL: silence */
    void *log_user;
    const char *cache_dir; /* compiled programs, answers, packed weights; NULL or "": no cache on disk */
    const char *probe_program; /* tries instructions that might end the process: see below; NULL or "": they are not used */
    int threads;           /* host worker threads, 0: one per processor that the process may use */
};

/* probe_program is the path of `difffit-cl`, or of a program that does the same when it is run as `PROGRAM --try-dot SELECTOR NAME`: opens
 * that device with a context without probe_program, sees that it has that name, and exits with the status of dfcl_device_try_dot (2 for another name).
 * Opening a CPU that multiplies bf16 (AVX512_BF16) runs it once and keeps the answer in cache_dir. Linux on x86-64 only. */

typedef struct dfcl_context dfcl_context;

/* params NULL: all defaults. DFCL_USAGE when only one of alloc and free is given. The context outlives everything made with it. */
DFCL_API dfcl_status dfcl_context_create(dfcl_context **out, const struct dfcl_context_params *params, dfcl_error *err);
/* Sets *ctx to NULL; one that is NULL already is fine. All destroy and close functions are like that. */
DFCL_API void dfcl_context_destroy(dfcl_context **ctx);

/* "0.1.0"; and the word for a status ("out of memory"). Never NULL. */
DFCL_API const char *dfcl_version(void);
DFCL_API const char *dfcl_status_name(dfcl_status status);

/* A library that this one is built on, or its compiler. */
struct dfcl_component {
    char name[16];   /* "zlib" */
    char built[64];  /* version of the headers it was compiled with */
    char loaded[64]; /* version that runs, "" where that does not say */
};
/* Writes at most `max` of them to `list` (may be NULL when max is 0) and returns how many there are. Any thread. */
DFCL_API int dfcl_components(struct dfcl_component *list, int max);

#ifdef __cplusplus
}
#endif
#endif
