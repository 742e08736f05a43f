/* train_*.safetensors: five optimizer steps of each method on given data; train/replay.c computes and judges. */
#include "train/replay.h"
#include "verify/golden.h"

static dfcl_status each(void *user, const struct dfcl_replay_item *it, dfcl_error *err) {
    return dfcl_golden_judged(user, it->key, it->got, it->count, it->max_abs, it->rel_l2, it->worst, err);
}

dfcl_status dfcl_verify_train(struct dfcl_golden *g, dfcl_error *err) {
    static const char *const files[] = {"train_difffit", "train_difffit_g", "train_difffit_t0", "train_bitfit", "train_bitfit_y", "train_full"};
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < DFCL_COUNT(files) && !s; i++) {
        struct dfcl_golden_file f;
        s = dfcl_golden_open(&f, g, files[i], err);
        if (s)
            break;
        dfcl_golden_excuse(&f, "data."); /* inputs */
        dfcl_golden_excuse(&f, "f64.");  /* what the keys without prefix are judged by */
        s = dfcl_replay_train(g->dev, g->dir, files[i], 0, each, &f, err);
        if (s)
            dfcl_golden_abort(&f);
        else
            s = dfcl_golden_close(&f, err);
    }
    return s;
}
