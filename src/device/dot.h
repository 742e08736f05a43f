/* Whether a device may run kernels with the processor's bf16 dot product (DFCL_DOT of cl/prelude_cpu.h).
 *
 * A compiler that does not know the instruction may end the process, so may a processor that does not. It is therefore
 * tried in a process of its own: the context's probe_program, which opens the device and calls dfcl_device_try_dot. */
#ifndef DFCL_DEVICE_DOT_H
#define DFCL_DEVICE_DOT_H

#include "device/device.h"

/* True when the processor has the instruction and the answer in the cache, or else the program, says that it works.
 * `identity` is all that tells drivers and devices apart. Answers are cached, but not those that may change: no
 * program, a time limit passed, killed from outside. */
bool dfcl_dot_works(const struct dfcl_device *dev, const char *identity);
extern double dfcl_dot_limit_s; /* the time limit; tests shorten it */

#endif
