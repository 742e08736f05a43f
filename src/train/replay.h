/* Reference training runs, replayed: the files train_*.safetensors of a golden folder hold what the original PyTorch code gave for fixed data; this
 * computes the same and judges each quantity. Used by the tests and by `verify`. */
#ifndef DFCL_TRAIN_REPLAY_H
#define DFCL_TRAIN_REPLAY_H

#include "device/device.h"
#include "formats/tensor_view.h"

struct dfcl_replay_item {
    const char *key;    /* of the golden file */
    const float *got, *want;
    const int64_t *shape;
    int ndim;
    uint64_t count;
    double max_abs, rel_l2; /* got against want */
    double worst;           /* error over limit, whichever limit binds; <= 1 passes. Not a number: infinite */
    const char *limit;      /* the limit in words */
};
typedef dfcl_status (*dfcl_replay_fn)(void *user, const struct dfcl_replay_item *item, dfcl_error *err);

/* name: "train_difffit", "train_difffit_g", "train_difffit_t0", "train_bitfit", "train_bitfit_y" or "train_full"; DFCL_USAGE for others. `each` sees
 * every quantity of the file in its order; where the file has a float64 run ("f64.KEY") that is what KEY is held against. micro: samples per pass, 0:
 * all (quantities "step1.*" are only there then). */
dfcl_status dfcl_replay_train(struct dfcl_device *dev, const char *golden_dir, const char *name, int micro, dfcl_replay_fn each, void *user,
                              dfcl_error *err);

#endif
