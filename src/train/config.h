/* What a run was asked for, with defaults filled in; config.json; and what must be equal for a run to go on exactly. */
#ifndef DFCL_TRAIN_CONFIG_H
#define DFCL_TRAIN_CONFIG_H

#include <cjson/cJSON.h>

#include "base/base.h"
#include "base/dtype.h"
#include "formats/image.h"
#include "models/dit.h"
#include "train/run_dir.h"

#include <difffit-cl/train.h>

struct dfcl_dataset;
struct dfcl_model;

struct dfcl_train_config {
    const dfcl_context *ctx;
    struct dfcl_train_params p; /* effective; strings owned by this struct, or constants */
    char *owned[16];
    int owned_count;
    bool cosine, random_crop;
    enum dfcl_alpha alpha;
    enum dfcl_dtype dtype;
    enum dfcl_recompute recompute; /* DFCL_FORWARD_ONLY: to be chosen */
};
/* DFCL_USAGE for values out of range; every message names the parameter, what was expected and what was found. */
dfcl_status dfcl_train_config_init(struct dfcl_train_config *c, const dfcl_context *ctx, const struct dfcl_train_params *params,
                                   dfcl_error *err);
void dfcl_train_config_finish(struct dfcl_train_config *c);

/* Learning rate of the step with this index (from 0). */
double dfcl_train_config_lr(const struct dfcl_train_config *c, int64_t step);

/* config.json: "settings" holds all that decides the numbers of the run, the rest is for the reader. Freed with cJSON_Delete. */
dfcl_status dfcl_train_config_json(const struct dfcl_train_config *c, const struct dfcl_model *model, const struct dfcl_dataset *data,
                                   int micro_batch, const char *recompute, cJSON **out, dfcl_error *err);
/* DFCL_USAGE naming the first setting that differs between the run's config (read from `path`) and now. */
dfcl_status dfcl_train_config_same(const cJSON *saved, const cJSON *now, const char *path, dfcl_error *err);
/* Warns when the run goes on on another device or driver: the last bits will not be those of an unbroken run. */
void dfcl_train_config_warn(const dfcl_context *ctx, const cJSON *saved, const cJSON *now);
/* settings.micro_batch of a saved config; 0 if it has none. */
int dfcl_train_config_saved_micro(const cJSON *saved);

#endif
