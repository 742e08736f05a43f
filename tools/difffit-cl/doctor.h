/* What `doctor` looks at in other processes: a driver that ends the process when it is loaded or opened ends theirs only. */
#ifndef DOCTOR_H
#define DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

struct doctor_result {
    char out[65536], messages[8192]; /* standard output and error, cut */
    char problem[1024];              /* "" when it exited with 0; else one line: its last message, the signal, the time limit */
};
/* Runs this program with `words` (at most 6, NULL at the end) for at most `seconds`. True when it exited with 0. */
bool doctor_run(const char *const *words, double seconds, struct doctor_result *r);

/* `PROGRAM --try-driver LIBRARY`: loads an OpenCL driver as the loader would; the loader itself prints its name and version. 0, or 1 after a message. */
int doctor_try_driver(const char *library);
/* `PROGRAM --try-device SELECTOR`: opens a device and prints {"selftest": ..., "sub_group": ..., "bf16_dot": ...}. Exit codes as of a command. */
int doctor_try_device(const char *selector);

#endif
