/* Five training steps of every method against the original PyTorch code: losses, gradients, parameters, moving averages.
 * usage: test_train GOLDEN_DIR DEVICE [FILE]; exit 77 when the device is not there. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/replay.h"

#include <difffit-cl/dfcl.h>

struct tally {
    int quantities, failed;
    double worst;
    char key[128];
};

static dfcl_status each(void *user, const struct dfcl_replay_item *it, dfcl_error *err) {
    struct tally *t = user;
    (void)err;
    t->quantities++;
    if (!(it->worst <= 1.0)) {
        t->failed++;
        fprintf(stderr, "  %s: absolute %.3g, relative L2 %.3g, %.3g of the limit (%s)\n", it->key, it->max_abs, it->rel_l2, it->worst,
                it->limit);
    }
    if (!(it->worst <= t->worst)) {
        t->worst = it->worst;
        snprintf(t->key, sizeof t->key, "%s", it->key);
    }
    return DFCL_OK;
}

static int run(dfcl_device *dev, const char *dir, const char *name, int micro, int least) {
    struct tally t = {0};
    dfcl_error e = {0};
    dfcl_status s = dfcl_replay_train(dev, dir, name, micro, each, &t, &e);
    if (s) {
        fprintf(stderr, "%s: %s\n", name, e.msg);
        return 1;
    }
    printf("%-18s passes of %d: %3d quantities, worst %.3f of its limit (%s)\n", name, micro ? micro : 4, t.quantities, t.worst, t.key);
    if (t.quantities < least)
        fprintf(stderr, "%s: expected at least %d quantities\n", name, least);
    return t.failed > 0 || t.quantities < least;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int micro, least;
    } files[] = {{"train_difffit", 0, 210}, {"train_difffit", 2, 207}, {"train_difffit_g", 0, 40},  {"train_difffit_t0", 0, 40},
                 {"train_bitfit", 0, 150},  {"train_bitfit_y", 0, 30}, {"train_full", 0, 190},      {"train_full", 1, 190}};
    if (argc < 3)
        return 2;
    dfcl_context *ctx = NULL;
    dfcl_device *dev = NULL;
    dfcl_error e = {0};
    int failed = 0, ran = 0;
    if (dfcl_context_create(&ctx, NULL, &e))
        return 1;
    if (dfcl_device_open(&dev, ctx, argv[2], &e)) {
        fprintf(stderr, "%s\n", e.msg);
        dfcl_context_destroy(&ctx);
        return 77;
    }
    for (size_t i = 0; i < DFCL_COUNT(files); i++) {
        if (argc > 3 && strcmp(argv[3], files[i].name))
            continue;
        failed += run(dev, argv[1], files[i].name, files[i].micro, files[i].least);
        ran++;
    }
    dfcl_device_close(&dev);
    dfcl_context_destroy(&ctx);
    return failed || !ran;
}
