/* difffit-cl: fine-tuning. */
#ifndef DFCL_TRAIN_H
#define DFCL_TRAIN_H

#include <difffit-cl/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dfcl_trainer dfcl_trainer;

/* What training data in memory are. All arrays are dense and row-major. */
enum dfcl_array_type {
    DFCL_ARRAY_PICTURES_U8 = 0, /* data: uint8_t [count, height, width, channels], 0 to 255; channels 1 or 3 */
    DFCL_ARRAY_PICTURES_F32,    /* data: float [count, channels, height, width] in [-1, 1], as dfcl_pictures_read gives them; channels 1 or 3 */
    DFCL_ARRAY_LATENTS,         /* data: float [count, channels, height, width], as the diffusion model has them (scaled) */
    DFCL_ARRAY_MOMENTS,         /* data, logvar: float [count, channels, height, width], means and log-variances as dfcl_vae_encode gives them; each step draws from them */
};
/* Training data in memory, in place of a folder. Zero or NULL means the default in [brackets]. `data`, `logvar` and the flip arrays are borrowed: they must stay
 * as they are until dfcl_trainer_destroy, and are only read, by the thread that calls the trainer. Everything else is copied. Same samples in the same
 * order, same bits: a folder's order is that of its classes, then of its files, each sorted by name (byte order). */
struct dfcl_train_arrays {
    enum dfcl_array_type type;
    int64_t count;               /* samples, 1 .. 2^31-1 */
    int channels, side, width;   /* of each, side: the height; width [as high as wide]; must be the model's (dfcl_model_shape: channels, input, input_width) */
    const void *data;
    const float *logvar;         /* moments */
    const float *flip_mean, *flip_logvar; /* moments [none]: those of the mirrored pictures, which dfcl_train_params.flip needs */
    double scale, shift;         /* moments [0.18215, 0]: a latent is scale * (mean + exp(logvar / 2) * noise - shift), as dfcl_vae_shape has them */
    const int32_t *labels;       /* [count] class of each sample, 0 .. class_count-1 [all of one class] */
    int class_count;             /* [highest label + 1] at most 100000; a class may have no sample */
    const char *const *class_names; /* [decimal numbers] class_count names, UTF-8 without control characters */
};

/* Zero or NULL means the default in [brackets]. Documented in docs/methods.md. */
struct dfcl_train_params {
    struct dfcl_model_params model;
    const char *data;      /* ImageFolder (pixel space), cache of latents, fast-DiT latent folder, or a folder with both names */
    const struct dfcl_train_arrays *arrays; /* instead of `data`; crop, alpha and skip_bad do not apply. To go on with a run needs the same values again */
    const char *run_dir;   /* created; must be empty or hold a run when resuming */
    const char *method;    /* ["difffit"], "difffit-block", "bitfit", "full" */
    const char *gamma_sites;  /* NULL: the method's; "qkv,proj,attn,mlp" */
    const char *gamma_blocks; /* NULL: the method's; "0-13", "all" */
    const char *class_init;   /* ["match"], "random", "null", "mean", or a safetensors FILE */
    int train_classes;     /* -1: no, 1: yes, 0: [yes whenever the table is rebuilt, and for difffit and full] */
    int64_t steps;         /* [400] optimizer steps in all */
    int batch;             /* [32] samples per optimizer step */
    int micro_batch;       /* [as the plan allows] samples per pass; batch must be a multiple */
    double lr;             /* [1e-4] */
    const char *lr_schedule; /* ["constant"], "cosine" (to 0 at `steps`) */
    int64_t warmup;        /* [0] steps of linear warm-up */
    double weight_decay;   /* [0] */
    double beta1, beta2;   /* [0.9, 0.999] */
    double eps;            /* [1e-8] */
    double clip;           /* [none] global gradient norm */
    double ema_decay;      /* [0.9999] */
    int no_ema_warmup;     /* 1: plain decay from the first step */
    double label_dropout;  /* [0.1]; negative: none */
    int flip;              /* 1: random horizontal flips */
    const char *crop;      /* pictures: ["center"], "random" (another one each time) */
    const char *alpha;     /* pictures: transparency on ["white"], or "drop"ped, so that the stored colour shows */
    int skip_bad;          /* 1: all pictures are read first, and those that cannot be are left out with a warning; [0: an error] */
    uint64_t seed;         /* [0] */
    int64_t checkpoint_every; /* [0: 500] steps; -1: only at the end and when interrupted */
    int keep;              /* [2] newest checkpoints kept */
    double val_fraction;   /* [0: none] share of each class that is held out; its loss is taken before every checkpoint that falls due */
    int no_keep_best;      /* 1: the checkpoint of the lowest held-out loss goes when it is not among the newest */
    int max_skipped;       /* [20] steps in a row with non-finite numbers that end the run */
    double spike_z;        /* [6] a loss so many standard deviations above the last 100 counts as a spike; negative: none does */
    int64_t sample_every;  /* [0: never] sample grids under samples/ */
    const char *vae;       /* [none] autoencoder whose decoder makes pictures of the grids' latents, in memory only meanwhile; cached latents of another encoder are refused */
    int64_t log_every;     /* [10] */
    const char *resume;    /* NULL: new run; "auto": newest checkpoint if any; or a checkpoint folder */
    uint64_t max_memory;   /* [device's memory] bytes; the micro-batch and what is recomputed are chosen by it where they are not given */
    const char *recompute; /* what backward runs again to save memory, with the same numbers: ["auto": the least that fits], "none", "cheap", "block" */
    const char *dtype;     /* `full`: type of the written base ["f32"], "f16", "bf16" */
    const char *options;   /* [none] a JSON object, kept as "options" in the run's config.json: what the caller was asked for, in its own words */
};

struct dfcl_train_progress {
    int64_t step, steps;    /* done so far, in all */
    double loss, mse, vb;   /* of the last step (mean over the batch) */
    double loss_mean;       /* mean over the last 100 steps */
    double grad_norm, lr;
    double seconds;         /* of training, this process */
    double images_per_second;
    int64_t skipped;        /* steps skipped for non-finite numbers */
    int64_t spikes, spike_step; /* losses far above the recent ones; the last of them */
    double spike_z;         /* of that one */
    int checkpointed;       /* 1: this step wrote a checkpoint */
    int64_t val_step, best_step; /* steps done at the last held-out loss of this process, at the lowest of the run; 0: none */
    double val_loss, best_loss;
    const char *sample_path; /* not NULL: this step wrote a grid there */
};

struct dfcl_train_summary {
    int64_t trained_values; /* number of trained parameters */
    int classes;
    int64_t images;         /* to train on */
    int64_t held_out;       /* not trained on */
    int64_t bad;            /* files left out (skip_bad) */
    uint64_t planned_bytes, peak_bytes; /* device memory */
    int micro_batch;
    const char *recompute;  /* "none", "cheap", "block" */
    int64_t start_step;     /* > 0: resumed */
};

/* Opens base, data and run directory, plans memory and takes it. A new run that fails here leaves no folder behind. DFCL_USAGE: a parameter out of
 * range, arrays that do not fit the model, a label out of range, a picture outside of [-1, 1], a run directory in use, settings that differ from the run's own; DFCL_NONFINITE: a value in
 * memory that is NaN or infinite, with its place; DFCL_NOMEM with the plan; DFCL_FORMAT, DFCL_IO: a file, named. */
DFCL_API dfcl_status dfcl_trainer_create(dfcl_trainer **out, dfcl_device *dev, const struct dfcl_train_params *params,
                                         dfcl_error *err);
DFCL_API void dfcl_trainer_destroy(dfcl_trainer **trainer);
/* Valid while the trainer lives. */
DFCL_API const struct dfcl_train_summary *dfcl_trainer_summary(const dfcl_trainer *trainer);
/* Text of the memory plan, several lines. Valid while the trainer lives. */
DFCL_API const char *dfcl_trainer_plan(const dfcl_trainer *trainer);
/* One optimizer step; writes what falls due (metrics, checkpoint, grid; delta-best.safetensors when the held-out loss is the lowest yet). *done = 1 after the last one. A step with
 * non-finite numbers is skipped and counted, and a warning names the first layer and tensor that had one; max_skipped in a row are DFCL_NONFINITE. While steps are
 * skipped no checkpoint is written, so the last one is from before. */
DFCL_API dfcl_status dfcl_trainer_step(dfcl_trainer *trainer, struct dfcl_train_progress *progress, int *done, dfcl_error *err);
/* Writes a checkpoint now (for an interrupt). */
DFCL_API dfcl_status dfcl_trainer_save(dfcl_trainer *trainer, dfcl_error *err);
/* Final files: run_dir/delta.safetensors (EMA), delta-live.safetensors; for `full` model.safetensors and model-live.safetensors. */
DFCL_API dfcl_status dfcl_trainer_finish(dfcl_trainer *trainer, dfcl_error *err);

/* ---- held-out pictures ---- */

/* Labelled pictures in memory, as training sees them. */
struct dfcl_pictures {
    int count, channels, side, width; /* side: the height; width 0: as high as wide */
    float *data;  /* [count, channels, height, width] in [-1, 1] */
    int *labels;  /* [count], 0 .. class_count-1 */
    int class_count;
    char **class_names;
};
/* Reads an ImageFolder (class sub-folders sorted by name), each picture cropped and resized to the size as in training. */
DFCL_API dfcl_status dfcl_pictures_read(const dfcl_context *ctx, const char *folder, int channels, int height, int width,
                                        struct dfcl_pictures *out, dfcl_error *err);
DFCL_API void dfcl_pictures_free(const dfcl_context *ctx, struct dfcl_pictures *pictures);

struct dfcl_loss_estimate {
    double loss, loss_se; /* mean of mse + vb over the pairs, and its standard error */
    double mse, mse_se;
    int pairs;
};
/* Loss of a domain on pictures the training has not seen: `pairs` (picture, timestep, noise) triples, fixed by the seed (stream VAL), picture =
 * pair mod count. null_class != 0: every picture under the domain's null class, else under its label (which must be a class of
 * the domain). */
DFCL_API dfcl_status dfcl_evaluate_loss(dfcl_model *model, int domain, const struct dfcl_pictures *pictures, int null_class, int pairs,
                                        uint64_t seed, struct dfcl_loss_estimate *out, dfcl_error *err);

#ifdef __cplusplus
}
#endif
#endif
