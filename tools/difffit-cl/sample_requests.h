/* What is to be drawn: requests, a line each (docs/formats.md, "Sample requests"), from a file, the command's flags or a picture's text chunk; and the
 * deltas they name, loaded and unloaded as they are needed. */
#ifndef SAMPLE_REQUESTS_H
#define SAMPLE_REQUESTS_H

#include "../cli.h"

enum { REQUEST_DELTAS = 8, REQUEST_PATH = 4096 };

struct sample_line {
    char *delta[REQUEST_DELTAS]; /* FILE or FILE:STRENGTH; several blend */
    char *sha256[REQUEST_DELTAS]; /* of the files, as far as given */
    int deltas, hashes;
    char *class_name;            /* id, name or "null" */
    uint64_t seed;
    double cfg;
    uint32_t number;             /* of the first picture */
    int count;
    char *name;                  /* of the files, or NULL */
    int where;                   /* line of the file, from 1 */

    int set;                     /* index of its deltas among sample_requests.sets, -1: the base */
    int class_id;
};

/* A delta or blend that some line names. */
struct sample_set {
    const struct sample_line *line; /* the first with it */
    int domain;                     /* 0: not loaded */
    int64_t used;                   /* clock of the last use */
};

struct sample_requests {
    struct sample_line *line;
    int count, cap;
    struct sample_set *sets;
    int set_count;
    int64_t pictures, clock;
};

/* Appends the lines of `text`; `defaults` gives what a line leaves out (its deltas, seed, cfg, count). `what` names the text in messages. */
dfcl_status sample_requests_parse(struct sample_requests *r, const char *text, const char *what, const struct sample_line *defaults,
                                  dfcl_error *err);
dfcl_status sample_requests_read(struct sample_requests *r, const char *path, const struct sample_line *defaults, dfcl_error *err);
void sample_requests_free(struct sample_requests *r);

/* Finds the distinct deltas and blends. */
dfcl_status sample_requests_group(struct sample_requests *r, dfcl_error *err);
/* The resolution that the deltas were trained at, which must be one, into the parameters of the model to open. */
dfcl_status sample_requests_resolution(const struct sample_requests *r, struct cli *c, struct dfcl_model_params *params, dfcl_error *err);
/* Loads each delta once, finds every class, compares hashes: what is wrong shows before anything is drawn. */
dfcl_status sample_requests_resolve(struct sample_requests *r, struct cli *c, dfcl_model *model, bool force, dfcl_error *err);
/* The single line there is, once for each of these classes; pictures are numbered on. */
dfcl_status sample_requests_spread(struct sample_requests *r, const dfcl_model *model, const int *ids, int count, dfcl_error *err);
/* The next pictures from number *at of all, as many as the domains loaded together allow, at most `most`: fills `out` and their lines, moves *at on. */
dfcl_status sample_requests_next(struct sample_requests *r, dfcl_model *model, bool force, int64_t *at, int most,
                                 struct dfcl_sample_request *out, const struct sample_line **lines, int *count, dfcl_error *err);

/* A line that asks for `count` pictures of `l` from `number` on, with its newline; NULL: out of memory. */
char *sample_line_text(const struct sample_line *l, uint32_t number, int count);
/* "file" or "file:0.7"; a file of that whole name wins. */
void sample_split_strength(const char *text, char *path, size_t size, double *strength);

#endif
