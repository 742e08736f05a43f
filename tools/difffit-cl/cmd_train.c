#include "commands.h"

#include <float.h>
#include <string.h>

/* What a progress line says when there is something to say. */
static void describe_progress(const struct dfcl_train_progress *g, char *buf, size_t size) {
    size_t n = 0;
    buf[0] = 0;
    if (g->val_step)
        n += (size_t)snprintf(buf, size, "  held out %.4f (best %.4f, step %lld)", g->val_loss, g->best_loss, (long long)g->best_step);
    if (g->skipped && n < size)
        n += (size_t)snprintf(buf + n, size - n, "  skipped %lld", (long long)g->skipped);
    if (g->spikes && n < size)
        snprintf(buf + n, size - n, "  loss spikes %lld (step %lld: z %.1f)", (long long)g->spikes, (long long)g->spike_step, g->spike_z);
}

static void save_before_failing(const struct cli *c, dfcl_trainer *t, int64_t step) {
    dfcl_error err = {0};
    if (step > 0 && !dfcl_trainer_save(t, &err))
        cli_progress(c, true, "saved after step %lld. Go on with --resume auto", (long long)step);
}

int cmd_train(struct cli *c, int argc, char **argv) {
    /* Zero means "the default" to the library; these may be asked to be zero. */
    const double unset = -2;
    struct dfcl_train_params p = {.beta1 = unset, .beta2 = unset, .ema_decay = unset, .label_dropout = unset, .spike_z = unset};
    const char *vae = "none";
    struct cli_extent input = {0, 0};
    bool flip = false, skip_bad = false, no_best = false, no_classes = false, train_classes = false;
    const char *ema_warmup = "on", *which = NULL, *weights = NULL, *pack = NULL, *activations = NULL;
    const struct cli_option options[] = {
        {"--model", CLI_PATH, &p.model.path, "FILE", "base: .pt, .safetensors or a diffusers folder (required)", 0, 0},
        {"--heads", CLI_INT, &p.model.heads, "H", "attention heads, where the file does not say", 1, 1024},
        {"--weights-of", CLI_CHOICE, &which, "ema|model", "which weights of a training checkpoint (ema)", 0, 0},
        CLI_WEIGHTS_OPTIONS(&weights, &pack),
        CLI_RESOLUTION_OPTIONS(&input, &p.model, "the base's, over --pos-scale"),
        {"--data", CLI_PATH, &p.data, "DIR", "image folder (a sub-folder a class) or folder of latents (required)", 0, 0},
        {"--vae", CLI_PATH, &vae, "none|DIR", "autoencoder: decodes the grids of --sample-every; cached latents must come from its encoder (none)", 0, 0},
        {"--out", CLI_PATH, &p.run_dir, "RUN", "run directory (required)", 0, 0},
        {"--method", CLI_CHOICE, &p.method, "difffit|difffit-block|bitfit|full", "which parameters are trained and added (difffit); docs/methods.md", 0, 0},
        {"--gamma-sites", CLI_STR, &p.gamma_sites, "LIST", "qkv,proj,attn,mlp: where scale vectors go (the method's)", 0, 0},
        {"--gamma-blocks", CLI_STR, &p.gamma_blocks, "A-B", "blocks with scale vectors: 0-13, 0,2,4-6, all, half (the method's)", 0, 0},
        {"--class-init", CLI_PATH, &p.class_init, "match|random|null|mean|FILE", "where class rows start; match (default): at the rows of base classes of the same name", 0, 0},
        {"--train-classes", CLI_FLAG, &train_classes, NULL, "train the class table also where the method would not", 0, 0},
        {"--no-train-classes", CLI_FLAG, &no_classes, NULL, "keep the class table as it starts", 0, 0},
        {"--steps", CLI_I64, &p.steps, "N", "optimizer steps in all (400)", 1, 1e9},
        {"--batch", CLI_INT, &p.batch, "B", "samples per optimizer step (32)", 1, 65536},
        {"--micro-batch", CLI_INT, &p.micro_batch, "B", "samples per pass (as memory allows); divides the batch", 1, 65536},
        {"--lr", CLI_DBL, &p.lr, "X", "learning rate (1e-4)", 1e-12, 10},
        {"--lr-schedule", CLI_CHOICE, &p.lr_schedule, "constant|cosine", "learning rate after the warm-up (constant); cosine: to 0 at --steps", 0, 0},
        {"--warmup", CLI_I64, &p.warmup, "N", "steps of linear warm-up (0)", 0, 1e9},
        {"--weight-decay", CLI_DBL, &p.weight_decay, "X", "AdamW weight decay (0)", 0, 1},
        {"--beta1", CLI_DBL, &p.beta1, "X", "AdamW (0.9)", 0, 0.99999999},
        {"--beta2", CLI_DBL, &p.beta2, "X", "AdamW (0.999)", 0, 0.99999999},
        {"--clip", CLI_DBL, &p.clip, "X", "largest global gradient norm (no clipping)", 0, 1e9},
        {"--ema", CLI_DBL, &p.ema_decay, "X", "decay of the moving average (0.9999)", 0, 0.99999999},
        {"--ema-warmup", CLI_CHOICE, &ema_warmup, "on|off", "on (default): decay (1+k)/(10+k) after k steps, at most --ema", 0, 0},
        {"--label-dropout", CLI_DBL, &p.label_dropout, "X", "share of labels replaced by the null class (0.1)", 0, 1},
        {"--flip", CLI_FLAG, &flip, NULL, "random horizontal flips", 0, 0},
        CLI_PICTURE_OPTIONS(&p.crop, &p.alpha, &skip_bad),
        {"--seed", CLI_U64, &p.seed, "N", "seed of everything random (0)", 0, 0},
        {"--checkpoint-every", CLI_I64, &p.checkpoint_every, "N", "steps between checkpoints (500); -1: only at the end and when interrupted", -1, 1e9},
        {"--keep", CLI_INT, &p.keep, "N", "newest checkpoints kept (2)", 1, 1000000},
        {"--val-fraction", CLI_DBL, &p.val_fraction, "X", "share of each class held out; its loss at every checkpoint says which is best (0)", 0, 0.9},
        {"--no-keep-best", CLI_FLAG, &no_best, NULL, "do not keep the best checkpoint beside the newest", 0, 0},
        {"--max-skipped", CLI_INT, &p.max_skipped, "N", "steps in a row with non-finite numbers that end the run (20)", 1, 1000000},
        {"--spike-z", CLI_DBL, &p.spike_z, "X", "a loss X standard deviations above the last 100 counts as a spike (6; 0: none does)", 0, 1e9},
        {"--sample-every", CLI_I64, &p.sample_every, "N", "steps between grids of pictures in RUN/samples (never)", 0, 1e9},
        {"--log-every", CLI_I64, &p.log_every, "N", "steps between lines of metrics.jsonl (10)", 1, 1e9},
        {"--resume", CLI_PATH, &p.resume, "auto|DIR", "auto: go on from RUN's newest checkpoint if there is one; or a checkpoint", 0, 0},
        {"--max-memory", CLI_SIZE, &p.max_memory, "SIZE", "device memory to stay within (8G, 800M): passes and --recompute follow", 0, 0},
        CLI_ACTIVATIONS_OPTION(&activations),
        {"--recompute", CLI_CHOICE, &p.recompute, "auto|none|cheap|block", "what backward runs again instead of keeping it; auto (default): as little as memory allows", 0, 0},
        {"--dtype", CLI_CHOICE, &p.dtype, "f32|f16|bf16", "full: type of the written model (f32)", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
              "train --model FILE --data DIR --out RUN [options]\n\nFine-tunes a frozen base on a folder of images; RUN/delta.safetensors holds the result\n"
              "(moving average), RUN/metrics.jsonl the losses. Ctrl-C saves a checkpoint; --resume auto goes on.",
              options, NULL, 0) < 0)
        return c->code;
    if (!p.model.path || !p.data || !p.run_dir)
        return cli_usage(c, "--model, --data and --out are required");
    if (no_classes && train_classes)
        return cli_usage(c, "--train-classes and --no-train-classes exclude each other");
    if (p.dtype && (!p.method || strcmp(p.method, "full")))
        return cli_usage(c, "--dtype is for --method full: a delta holds f32 values");
    p.vae = strcmp(vae, "none") ? vae : NULL;
    if (p.vae && !p.sample_every && !dfcl_is_latent_cache(p.data) && cli_given(c, "--vae") == CLI_WORDS)
        return cli_usage(c, "--vae goes with --sample-every, whose grids it decodes, or with cached latents, which must come from it");
    if (no_best && p.val_fraction <= 0)
        return cli_usage(c, "--no-keep-best goes with --val-fraction");
    cli_resolution(&input, &p.model);
    cli_weights(c, weights, pack, &p.model);
    cli_activations(activations, &p.model);
    double *const decays[] = {&p.beta1, &p.beta2, &p.ema_decay};
    for (int i = 0; i < 3; i++)
        *decays[i] = *decays[i] < 0 ? 0 : *decays[i] > 0 ? *decays[i] : DBL_MIN;
    p.label_dropout = p.label_dropout < 0 ? 0 : p.label_dropout > 0 ? p.label_dropout : -1;
    p.spike_z = p.spike_z < 0 ? 0 : p.spike_z > 0 ? p.spike_z : -1;
    p.no_ema_warmup = !strcmp(ema_warmup, "off");
    p.train_classes = no_classes ? -1 : train_classes ? 1 : 0;
    p.flip = flip;
    p.skip_bad = skip_bad;
    p.no_keep_best = no_best;
    p.model.which = which;

    p.options = c->options;

    int code = 0;
    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    dfcl_trainer *t = NULL;
    cli_catch_signals();
    dfcl_status s = cli_open_device(c, &dev, &err);
    if (!s)
        s = dfcl_trainer_create(&t, dev, &p, &err);
    if (s)
        goto out;
    const struct dfcl_train_summary *sum = dfcl_trainer_summary(t);
    char held_out[96] = "";
    if (sum->held_out)
        snprintf(held_out, sizeof held_out, ", %lld held out", (long long)sum->held_out);
    if (sum->bad)
        snprintf(held_out + strlen(held_out), sizeof held_out - strlen(held_out), ", %lld bad files left out", (long long)sum->bad);
    if (!c->quiet)
        fprintf(stderr, "%s: %lld images in %d classes%s; %lld values trained; batch %d in passes of %d, recompute %s%s\n",
                dfcl_device_get_info(dev)->name, (long long)sum->images, sum->classes, held_out,
                (long long)sum->trained_values, p.batch ? p.batch : 32, sum->micro_batch, sum->recompute, sum->start_step ? "; resumed" : "");
    if (sum->start_step && !c->quiet)
        fprintf(stderr, "going on after step %lld\n", (long long)sum->start_step);
    if (c->verbose)
        fputs(dfcl_trainer_plan(t), stderr);
    int done = sum->start_step >= (p.steps ? p.steps : 400);
    struct dfcl_train_progress g = {0};
    int64_t first = sum->start_step;
    while (!done) {
        s = dfcl_trainer_step(t, &g, &done, &err);
        if (s == DFCL_FORMAT || s == DFCL_IO) /* a file among the data: what was trained is not lost */
            save_before_failing(c, t, g.step > first ? g.step : first);
        if (s)
            goto out;
        char eta[32];
        cli_eta((double)(g.steps - g.step) * g.seconds / (double)(g.step - first > 0 ? g.step - first : 1), eta, sizeof eta);
        char notes[160];
        describe_progress(&g, notes, sizeof notes);
        cli_progress(c, done, "step %lld/%lld  loss %.4f  lr %.2g  %.1f images/s  %s left%s", (long long)g.step, (long long)g.steps,
                     g.loss_mean, g.lr, g.images_per_second, eta, notes);
        if (!done && cli_interrupted()) {
            s = dfcl_trainer_save(t, &err);
            if (s)
                goto out;
            cli_progress(c, true, "interrupted after step %lld; saved. Go on with --resume auto", (long long)g.step);
            code = cli_interrupted();
            goto out;
        }
    }
    s = dfcl_trainer_finish(t, &err);
    if (!s && !c->quiet)
        printf("%s/%s\n", p.run_dir, p.method && !strcmp(p.method, "full") ? "model.safetensors" : "delta.safetensors");
out:
    if (s)
        code = cli_fail(c, &err);
    dfcl_trainer_destroy(&t);
    dfcl_device_close(&dev);
    return code;
}
