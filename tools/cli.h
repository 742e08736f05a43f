/* What the programs share: option tables, messages, exit codes. Uses the public headers only. */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <difffit-cl/dfcl.h>

enum cli_kind { CLI_FLAG, CLI_STR, CLI_CHOICE, CLI_PATH, CLI_DEVICE, CLI_INT, CLI_I64, CLI_U64, CLI_DBL, CLI_SIZE, CLI_EXTENT, CLI_LIST };

/* Sides: "64" of a square, or width x height, "96x64"; 0: not given. */
struct cli_extent {
    int height, width;
};

#define CLI_LIST_MAX 64
struct cli_list {
    const char *items[CLI_LIST_MAX];
    int count;
};

/* One option: for parsing, help, environment, configuration files, shell completion and manual page alike.
 * dest: bool; const char * (STR, CHOICE, PATH, DEVICE); int, int64_t, uint64_t, double; uint64_t (SIZE: bytes, "8G"); struct cli_extent; struct cli_list (of paths).
 * CHOICE: arg is what may be given, "on|off". PATH: a file or folder; lower-case words of arg may stand for one ("auto|DIR"). */
struct cli_option {
    const char *name; /* "--steps" */
    enum cli_kind kind;
    void *dest;
    const char *arg; /* "N"; NULL for flags */
    const char *help;
    double min, max; /* numbers, sides; both 0: any */
};

/* Where an option's value came from; a later one wins. */
enum cli_from { CLI_DEFAULT = 0, CLI_FILE, CLI_ENVIRONMENT, CLI_WORDS };

#define CLI_OPTIONS_MAX 80 /* of a command, common ones included */

struct cli;
/* What a command's cli_parse was called with; words: most positional words. */
typedef void (*cli_visit_fn)(struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common, int words);

/* What every command gets. */
struct cli {
    const struct cli_program *program;
    dfcl_context *ctx;
    const char *command;
    const char *device, *config;
    bool verbose, quiet;

    /* options.c */
    int code;      /* to be returned when cli_parse says so */
    char *options; /* effective options as JSON, as a configuration file would have them; NULL: out of memory */
    struct {
        const char *name;
        enum cli_from from;
    } given[CLI_OPTIONS_MAX];
    int given_count;
    void *kept; /* strings that options point to */
    cli_visit_fn visit;
    void *visit_user;
};

/* A program: its commands, and what --help says around them. */
struct cli_command {
    const char *name;
    int (*run)(struct cli *c, int argc, char **argv); /* argv[0] is the command */
    const char *help;
    bool no_device; /* opens none: it has no --device */
};
struct cli_program {
    const char *name, *noun; /* "difffit-cl", "command" */
    const char *prefix;      /* "DIFFFIT_CL_": of environment variables for options */
    const char *summary;     /* for the manual page, no full stop */
    const char *about;
    const struct cli_command *commands;
    int count;
    const char *const (*examples)[2]; /* command line, what it does; ends with NULL. For the manual page */
    const char *const *see_also;      /* pages, ends with NULL */
};
/* main() of a program: --help, --version, --man, --completion, the context, the command. */
int cli_main(const struct cli_program *p, int argc, char **argv);

/* Reads options by the table and the common ones: from the configuration file (--config), then the environment, then argv[1..]. Positional
 * words go to `rest` (at most rest_max); returns their number. -1: the command has nothing to do but to return c->code (--help; a mistake, which has
 * been reported), so nothing that needs undoing may come before. */
int cli_parse(struct cli *c, int argc, char **argv, const char *usage, const struct cli_option *options, const char **rest,
              int rest_max) __attribute__((warn_unused_result));
enum cli_from cli_given(const struct cli *c, const char *option);
/* Calls `fn` with the table of a command, which does not run. */
void cli_visit(const struct cli_program *p, const char *command, cli_visit_fn fn, void *user);
void cli_parse_finish(struct cli *c); /* frees what cli_parse keeps */
/* Name of the environment variable for an option, "DIFFFIT_CL_MAX_MEMORY". */
void cli_variable(const struct cli_program *p, const char *option, char *buf, size_t size);

/* ---- generate.c: what --help, --man and --completion print, from the same tables ---- */
void cli_help(const struct cli *c, const char *usage, const struct cli_option *options, const struct cli_option *common);
void cli_program_help(const struct cli_program *p, FILE *f);
void cli_man(const struct cli_program *p);
int cli_completion(const struct cli_program *p, const char *shell);

/* Prints "PROGRAM COMMAND: message" and returns the exit code for it. */
int cli_fail(const struct cli *c, const dfcl_error *err);
int cli_usage(const struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* $XDG_CACHE_HOME/difffit-cl or ~/.cache/difffit-cl; "" when neither is set. */
void cli_cache_dir(char *buf, size_t size);
/* Makes c->ctx: messages to standard error, the cache where the environment says. `c` outlives it. */
dfcl_status cli_context(struct cli *c, dfcl_error *err);
/* Opens the chosen device. */
dfcl_status cli_open_plain(struct cli *c, dfcl_device **dev, dfcl_error *err);
/* The same; the first use of a device on this machine runs the self-test. */
dfcl_status cli_open_device(struct cli *c, dfcl_device **dev, dfcl_error *err);
/* Reads a tensor of a safetensors file whose shape must be want[0..ndim) and whose values must be finite; *out is to be freed with dfcl_tensor_free, also after an error. */
dfcl_status cli_read_tensor(struct cli *c, const char *path, const char *key, const int64_t *want, int ndim, float **out, dfcl_error *err);

/* Values of --weights and --pack (NULL: the defaults) and a progress line, into a model's parameters. */
void cli_weights(struct cli *c, const char *weights, const char *pack, struct dfcl_model_params *p);
#define CLI_WEIGHTS_OPTIONS(weights, pack)                                                                                             \
    {"--weights", CLI_CHOICE, weights, "f32|bf16|f16", "type in which frozen matrices are held (f32); 16 bits take half the memory", 0, 0}, \
    {"--pack", CLI_CHOICE, pack, "auto|never|cache", "auto (default): lay weights out for the device; cache: and keep that on disk for the next start; never: on a CPU, read them straight from the file", 0, 0}
/* The same for the resolution, into p->pos_step and what cli_resolution puts into p->input and p->input_width. */
void cli_resolution(const struct cli_extent *input, struct dfcl_model_params *p);
#define CLI_RESOLUTION_OPTIONS(input, p, input_default)                                                                                 \
    {"--input", CLI_EXTENT, input, "S|WxH", "sides of the latent (an eighth of the picture's) or picture: one of a square, or width x height (" input_default ")", 1, 4096}, \
    {"--pos-scale", CLI_DBL, &(p)->pos_step, "X", "distance between neighbouring tokens' positions: 0.5 for twice the base's side (the base's longer side / that of --input)", 1e-6, 4096}
/* The same for --activations. */
void cli_activations(const char *activations, struct dfcl_model_params *p);
#define CLI_ACTIVATIONS_OPTION(activations)                                                                                             \
    {"--activations", CLI_CHOICE, activations, "auto|f32|bf16", "type in which backward's activations are kept; auto (default): bf16 with bf16 weights", 0, 0}

/* How pictures of a folder are read. */
#define CLI_PICTURE_OPTIONS(crop, alpha, skip_bad)                                                                                 \
    {"--crop", CLI_CHOICE, crop, "center|random", "pictures: the middle (center), or a random part (train: another each time; encode: one for each picture)", 0, 0},            \
    {"--alpha", CLI_CHOICE, alpha, "white|drop", "pictures: transparency on white (default), or drop: the colour under it", 0, 0},   \
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
