/* Cases: what a check or a benchmark of an op runs on. make_case() fills the parameters' scalars and names each tensor; the harness
 * allocates it on the device and on the host (guards around, odd offsets, outputs poisoned with NaN), patches the refs, runs a
 * variant and the reference, and compares. */
#ifndef DFCL_OPS_CASE_H
#define DFCL_OPS_CASE_H

#include "ops/ops.h"

enum dfcl_case_use { DFCL_IN = 1, DFCL_OUT = 2, DFCL_INOUT = 3 };
enum dfcl_case_fill {
    DFCL_FILL_NORMAL,   /* a = mean, b = standard deviation */
    DFCL_FILL_UNIFORM,  /* [a, b] */
    DFCL_FILL_INT,      /* i32 in [a, b] inclusive */
    DFCL_FILL_DATA,     /* copied from `data` */
};

struct dfcl_case_tensor {
    size_t ref_offset; /* offsetof(params, ref) */
    size_t also_offset; /* 0: none; a second ref of the parameters that gets the same place (in-place use) */
    uint32_t align;      /* bytes; the harness draws odd multiples of it as offsets. 0: 4, what an op must accept unless it says more */
    enum dfcl_dtype dtype;
    uint64_t count;
    enum dfcl_case_use use;
    enum dfcl_case_fill fill;
    double a, b;
    bool bf16;          /* DFCL_F32: only values that bf16 has, so that a variant which rounds to it is held to the same tolerance */
    const void *data;   /* DFCL_FILL_DATA: owned by the case (dfcl_case_data) */
    double tol;         /* outputs: |got - want| <= tol * (|want| + max|want| of the tensor, for DFCL_INOUT also of what was there before);
                           0: bit-exact */
    const char *name;
};

#define DFCL_CASE_MAX_TENSORS 24
#define DFCL_CASE_PARAMS 1024

struct dfcl_case {
    const struct dfcl_op *op;
    char label[128]; /* "M=9 N=50 K=33 T=3 gelu gate" */
    _Alignas(16) unsigned char params[DFCL_CASE_PARAMS];
    struct dfcl_case_tensor tensors[DFCL_CASE_MAX_TENSORS];
    int tensor_count;
    void *owned[8];
    int owned_count;
    uint64_t seed;   /* chosen by the harness; a generator may draw odd sizes from it */
    bool broken;     /* a generator ran out of room or memory */
};
/* Makes case `index` of the op from the seed. DFCL_ERROR when the generator failed. Ends with dfcl_case_finish either way. */
dfcl_status dfcl_case_make(struct dfcl_case *c, const struct dfcl_op *op, int index, uint64_t seed, dfcl_error *err);

/* Adds a tensor behind a ref of the parameters; returns it so that fill/tol can be set. The ref is made present (dfcl_dry_mem), so that
 * supports(), scratch(), flops() and bytes() can be asked of c->params. */
struct dfcl_case_tensor *dfcl_case_add(struct dfcl_case *c, const char *name, const void *ref_in_params, enum dfcl_dtype dtype,
                                       uint64_t count, enum dfcl_case_use use);
/* Lets a second ref of the parameters name the same memory as `t`. */
void dfcl_case_also(struct dfcl_case *c, struct dfcl_case_tensor *t, const void *ref_in_params);
/* Memory that lives as long as the case; NULL sets c->broken. */
void *dfcl_case_data(struct dfcl_case *c, size_t size);
void dfcl_case_finish(struct dfcl_case *c);

struct dfcl_case_result {
    double worst; /* worst |got-want| / (tol * (|want| + max|want|)); <= 1 passes */
    char detail[512]; /* of the worst value or the first damage: tensor, index, got, wanted, seed, shape */
};
/* The contents a tensor starts with, `count` elements; for generators that derive one
 * tensor from another. `number`: the tensor's place in the case. ctx is used for 16-bit types only. */
dfcl_status dfcl_case_fill(const dfcl_context *ctx, const struct dfcl_case_tensor *t, int number, uint64_t seed, void *out,
                           dfcl_error *err);
/* Runs `variant` on dev, twice, against the reference on `host`. DFCL_OK and worst <= 1: passed. worst is infinite when the two runs differ by
 * a bit, a byte outside the outputs changed, a NaN came or went, or a poisoned value was left where the reference writes (or the reverse). */
dfcl_status dfcl_case_check(struct dfcl_case *c, struct dfcl_device *dev, const struct dfcl_variant *variant,
                            struct dfcl_device *host, struct dfcl_case_result *out, dfcl_error *err);
/* Seconds per launch to seconds[0..repeat): `repeat` timings of enough launches to last `min_seconds` in all. */
dfcl_status dfcl_case_time(struct dfcl_case *c, struct dfcl_device *dev, const struct dfcl_variant *variant, int repeat,
                           double min_seconds, double *seconds, dfcl_error *err);

/* dfcl_check_ops on the cases of at most max_flops operations (0: all): simulators take minutes for what a device does in a millisecond. */
dfcl_status dfcl_check_ops_small(dfcl_device *dev, const char *filter, int rounds, uint64_t seed, double max_flops,
                                 void (*line)(void *user, const char *text), void *user, int *passed, int *failed, dfcl_error *err);

#endif
