/* Comparing computed tensors with files of reference data. Formulas, keys and limits: tests/golden/README.md. */
#ifndef DFCL_VERIFY_GOLDEN_H
#define DFCL_VERIFY_GOLDEN_H

#include <cjson/cJSON.h>

#include "device/device.h"
#include "formats/safetensors.h"

#include <difffit-cl/verify.h>

/* Limits; 0: not asked. rel: relative L2 over the tensor. abs: largest absolute difference. elem: largest relative difference of an
 * element. exact: no difference at all. */
struct dfcl_limit {
    double rel, abs, elem;
    bool exact;
};

struct dfcl_golden {
    struct dfcl_device *dev;
    const dfcl_context *ctx;
    const char *dir, *dump;
    dfcl_line_fn line; /* NULL: silence */
    void *user;
    cJSON *json;       /* array of files, or NULL */
    int failed;        /* files */
};

struct dfcl_golden_item {
    char *key;
    float *data;
    int64_t shape[DFCL_MAX_DIMS];
    int ndim;
};

/* One golden file being held against. */
struct dfcl_golden_file {
    struct dfcl_golden *g;
    char name[64]; /* "forward", "dit/micro/io" */
    struct dfcl_st *st;
    bool *seen;
    struct dfcl_golden_item *items; /* what was computed, for the dump */
    size_t item_count, item_cap;
    cJSON *json;
    int checked, failed;
    double worst; /* largest used share of a limit */
};

/* Opens DIR/NAME.safetensors. A missing file is DFCL_IO. */
dfcl_status dfcl_golden_open(struct dfcl_golden_file *f, struct dfcl_golden *g, const char *name, dfcl_error *err);
/* Finishes: every key that is neither computed nor said to be an input counts as failed; prints the verdict, writes the dump. */
dfcl_status dfcl_golden_close(struct dfcl_golden_file *f, dfcl_error *err);
void dfcl_golden_abort(struct dfcl_golden_file *f);

bool dfcl_golden_has(const struct dfcl_golden_file *f, const char *key);
/* An input: values as f32 (freed with dfcl_free); marks the key as needing no result. */
dfcl_status dfcl_golden_input(struct dfcl_golden_file *f, const char *key, float **data, uint64_t *count, dfcl_error *err);
/* I64 values from 0 to INT32_MAX. */
dfcl_status dfcl_golden_input_int(struct dfcl_golden_file *f, const char *key, int64_t **data, uint64_t *count, dfcl_error *err);
/* Keys that start with prefix need no result. */
void dfcl_golden_excuse(struct dfcl_golden_file *f, const char *prefix);

/* Compares with key, whose count must be `count`. */
dfcl_status dfcl_golden_check(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t count,
                              const struct dfcl_limit *limit, dfcl_error *err);
/* The same for elements [offset, offset + count) of key; the dump collects the parts. */
dfcl_status dfcl_golden_check_part(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t offset, uint64_t count,
                                   const struct dfcl_limit *limit, dfcl_error *err);
/* A result that was judged elsewhere: `used` is its share of the limit. */
dfcl_status dfcl_golden_judged(struct dfcl_golden_file *f, const char *key, const float *got, uint64_t count, double abs, double rel,
                               double used, dfcl_error *err);

void dfcl_golden_say(struct dfcl_golden *g, const char *fmt, ...) DFCL_PRINTF(2, 3);

dfcl_status dfcl_verify_micro(struct dfcl_golden *g, dfcl_error *err);
dfcl_status dfcl_verify_forward(struct dfcl_golden *g, dfcl_error *err);
dfcl_status dfcl_verify_tables(struct dfcl_golden *g, dfcl_error *err);
dfcl_status dfcl_verify_train(struct dfcl_golden *g, dfcl_error *err);
dfcl_status dfcl_verify_sample(struct dfcl_golden *g, dfcl_error *err);
dfcl_status dfcl_verify_vae(struct dfcl_golden *g, dfcl_error *err);

#endif
