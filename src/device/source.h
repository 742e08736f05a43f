/* Kernel text inside the library: the files of cl/ and cuda/, put there by tools/embed.c. */
#ifndef DFCL_DEVICE_SOURCE_H
#define DFCL_DEVICE_SOURCE_H

#include "base/base.h"

struct dfcl_text {
    const char *name; /* "linear.cl", "prelude_cl.h" */
    const char *text; /* zero-terminated */
    size_t size;      /* without the zero */
};
extern const struct dfcl_text dfcl_kernel_files[];
extern const size_t dfcl_kernel_file_count;

/* By file name; NULL when there is none. */
const struct dfcl_text *dfcl_kernel_file(const char *name);

/* The whole program of a stem: the prelude of the language ("prelude_cl.h" for OpenCL C, "prelude.cuh" for NVRTC), dialect.h, for stems that end in
 * "_cpu" prelude_cpu.h, and STEM.cl (or STEM.cu), each under a #line directive that names its file, so that compile logs can be read. *text is zero-terminated and freed with
 * dfcl_free. DFCL_ERROR for an unknown stem. */
dfcl_status dfcl_kernel_source(const dfcl_context *ctx, const char *prelude, const char *stem, char **text, size_t *size,
                               dfcl_error *err);

#endif
