/* What the programs share: option tables, messages, exit codes. Uses the public headers only. */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <difffit-cl/dfcl.h>

enum cli_kind { CLI_FLAG, CLI_STR, CLI_INT, CLI_I64, CLI_U64, CLI_DBL, CLI_SIZE, CLI_LIST };

#define CLI_LIST_MAX 64
struct cli_list {
    const char *items[CLI_LIST_MAX];
    int count;
};

/* One option. dest: bool, const char *, int, int64_t, uint64_t, double, uint64_t (bytes, "8G"), struct cli_list. */
struct cli_option {
    const char *name; /* "--steps" */
    enum cli_kind kind;
    void *dest;
    const char *arg; /* "N"; NULL for flags */
    const char *help;
    double min, max; /* numbers; both 0: any */
};

/* What every command gets. */
struct cli {
    const char *program; /* "difffit-cl": in front of messages */
    dfcl_context *ctx;
    const char *command;
    const char *device;
    bool verbose, quiet;
};

/* A program: its commands, and what --help says around them. */
struct cli_command {
    const char *name;
    int (*run)(struct cli *c, int argc, char **argv); /* argv[0] is the command */
    const char *help;
};
struct cli_program {
    const char *name, *noun; /* "difffit-cl", "command" */
    const char *about, *end; /* sentences before and after the commands */
    const struct cli_command *commands;
    int count;
};
/* main() of a program: --help, --version, the context, the command. */
int cli_main(const struct cli_program *p, int argc, char **argv);

/* Parses argv[1..] by the table plus the common options. Positional words go to `rest` (at most rest_max). On --help prints `usage` and
 * the options and exits 0; on any mistake prints one line and exits 2. Returns the number of positional words. */
int cli_parse(struct cli *c, int argc, char **argv, const char *usage, const struct cli_option *options, const char **rest,
              int rest_max);

/* Prints "PROGRAM COMMAND: message" and returns the exit code for it. */
int cli_fail(const struct cli *c, const dfcl_error *err);
int cli_usage(const struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Makes c->ctx: messages to standard error, the cache where the environment says. `c` outlives it. */
dfcl_status cli_context(struct cli *c, dfcl_error *err);
/* Opens the chosen device. */
dfcl_status cli_open_plain(struct cli *c, dfcl_device **dev, dfcl_error *err);
/* The same; the first use of a device on this machine runs the self-test. */
dfcl_status cli_open_device(struct cli *c, dfcl_device **dev, dfcl_error *err);
/* Reads a tensor of a safetensors file whose shape must be want[0..ndim) and whose values must be finite; *out is to be freed with dfcl_tensor_free, also after an error. */
dfcl_status cli_read_tensor(struct cli *c, const char *path, const char *key, const int64_t *want, int ndim, float **out, dfcl_error *err);

/* Values of --weights and --pack (NULL: the defaults) and a progress line, into a model's parameters. 0, or the exit code after a message. */
int cli_weights(struct cli *c, const char *weights, const char *pack, struct dfcl_model_params *p);
#define CLI_WEIGHTS_OPTIONS(weights, pack)                                                                                             \
    {"--weights", CLI_STR, weights, "T", "type in which frozen matrices are held: f32 (default), bf16, f16 (half the memory)", 0, 0}, \
    {"--pack", CLI_STR, pack, "P", "auto (default): lay weights out for the device; cache: and keep that on disk for the next start; never: on a CPU, read them straight from the file", 0, 0}
/* The same for --activations. */
int cli_activations(struct cli *c, const char *activations, struct dfcl_model_params *p);
#define CLI_ACTIVATIONS_OPTION(activations)                                                                                             \
    {"--activations", CLI_STR, activations, "T", "type in which backward's activations are kept: f32, bf16; auto (default): bf16 with bf16 weights", 0, 0}

/* How pictures of a folder are read. */
#define CLI_PICTURE_OPTIONS(crop, alpha, skip_bad)                                                                                 \
    {"--crop", CLI_STR, crop, "HOW", "pictures: center (default), or random, another part each time", 0, 0},                       \
    {"--alpha", CLI_STR, alpha, "HOW", "pictures: transparency on white (default), or drop: the colour under it", 0, 0},           \
    {"--skip-bad", CLI_FLAG, skip_bad, NULL, "leave out files that cannot be read instead of stopping", 0, 0}

/* After cli_catch_signals(): 0 until SIGINT or SIGTERM asks to stop, then the exit code for it, 130 or 143. A second signal ends the program at once. */
void cli_catch_signals(void);
int cli_interrupted(void);

/* One progress line: rewritten in place on a terminal, at most one line every few seconds elsewhere. `last` ends it. */
void cli_progress(const struct cli *c, bool last, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void cli_eta(double seconds, char *buf, size_t size); /* "1:02:03", "4:05" */
void cli_line(void *user, const char *line);          /* dfcl_line_fn to standard output */
void cli_json_string(FILE *f, const char *s);         /* string literal with quotes */
double cli_now(void);                                 /* seconds, monotonic */

#endif
