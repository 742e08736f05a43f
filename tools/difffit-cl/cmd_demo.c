/* demo: fine-tune the shipped base of printed letters on handwritten digits, and say by numbers and pictures what came of it. */
#define _GNU_SOURCE
#include "commands.h"
#include "metrics.h"

#include <errno.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef DEMO_DATA_DIR
#define DEMO_DATA_DIR ""
#endif

enum { COMPONENTS = 32, NEIGHBOURS = 3, PAIRS = 2048, PER_CLASS = 50, SHOWN = 4, CLASSES = 10 };

struct demo {
    struct cli *c;
    char out[3000], data[3000];
    int steps, batch;
    double lr, cfg;
    int sample_steps;
    uint64_t seed;
    struct dfcl_pictures train, heldout;
    struct dfcl_loss_estimate before, after;
    double frechet_before, frechet_after, frechet_real;
    double read_before, read_after, read_real;
    double seconds, train_seconds;
    long long trained, delta_bytes;
};

static dfcl_status fail(dfcl_error *err, dfcl_status s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static dfcl_status fail(dfcl_error *err, dfcl_status s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    err->status = s;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return s;
}

/* The shipped files: beside an installed command, in the source tree of a build folder, or where the build was told to install. */
static bool find_data(char *buf, size_t size) {
    char exe[2000];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (slash)
        *slash = 0;
    const char *tails[] = {"/../share/difffit-cl/demo", "/../../../tools/demo", NULL};
    struct stat st;
    char probe[4096];
    for (int i = 0; tails[i] && slash; i++) {
        snprintf(buf, size, "%s%s", exe, tails[i]);
        snprintf(probe, sizeof probe, "%s/base.safetensors", buf);
        if (stat(probe, &st) == 0)
            return true;
    }
    const char *fixed[] = {DEMO_DATA_DIR, "tools/demo"};
    for (int i = 0; i < 2; i++) {
        snprintf(buf, size, "%s", fixed[i]);
        snprintf(probe, sizeof probe, "%s/base.safetensors", buf);
        if (fixed[i][0] && stat(probe, &st) == 0)
            return true;
    }
    return false;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* Clears RUN when it is a run directory; anything else that lies there is left for the trainer to refuse. */
static void remove_old_run(const char *run) {
    char probe[4200];
    struct stat st;
    snprintf(probe, sizeof probe, "%s/config.json", run);
    if (stat(probe, &st) == 0)
        nftw(run, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static dfcl_status fine_tune(struct demo *d, dfcl_device *dev, const char *base, const char *run, dfcl_error *err) {
    char images[4096];
    snprintf(images, sizeof images, "%s/digits/train", d->data);
    struct dfcl_train_params p = {
        .model.path = base, .data = images, .run_dir = run, .method = "difffit", .steps = d->steps, .batch = d->batch,
        .lr = d->lr, .lr_schedule = "cosine", .warmup = 20, .ema_decay = 0.99, .seed = d->seed, .resume = NULL,
    };
    remove_old_run(run);
    dfcl_trainer *t = NULL;
    dfcl_status s = dfcl_trainer_create(&t, dev, &p, err);
    int done = 0;
    struct dfcl_train_progress g = {0};
    while (!s && !done) {
        s = dfcl_trainer_step(t, &g, &done, err);
        char eta[32];
        cli_eta((double)(g.steps - g.step) * g.seconds / (double)(g.step ? g.step : 1), eta, sizeof eta);
        if (!s)
            cli_progress(d->c, done, "fine-tuning %lld/%lld  loss %.4f  %.1f images/s  %s left", (long long)g.step, (long long)g.steps,
                         g.loss_mean, g.images_per_second, eta);
        if (!s && !done && cli_interrupted())
            s = fail(err, DFCL_INTERRUPTED, "interrupted");
    }
    if (!s)
        s = dfcl_trainer_finish(t, err);
    d->train_seconds = g.seconds;
    if (t)
        d->trained = (long long)dfcl_trainer_summary(t)->trained_values;
    dfcl_trainer_destroy(&t);
    return s;
}

struct drawing {
    struct demo *d;
    const char *what;
};

static void on_progress(void *user, int done, int total, double seconds) {
    struct drawing *w = user;
    char eta[32];
    cli_eta(done ? seconds * (total - done) / done : -1, eta, sizeof eta);
    cli_progress(w->d->c, done == total, "drawing %s %d%%  %s left", w->what, (int)(100.0 * done / (total ? total : 1)), eta);
}

static int on_stop(void *user) {
    (void)user;
    return cli_interrupted();
}

/* PER_CLASS pictures of each digit, class by class. A class the domain does not know by name is drawn under its null row. */
static dfcl_status draw(struct demo *d, dfcl_model *model, int domain, const char *what, float *x, int *asked, dfcl_error *err) {
    struct dfcl_sample_request r[CLASSES * PER_CLASS];
    for (int k = 0; k < CLASSES; k++) {
        int id;
        if (dfcl_model_find_class(model, domain, d->train.class_names[k], &id, NULL))
            id = dfcl_model_classes(model, domain);
        for (int i = 0; i < PER_CLASS; i++) {
            int at = k * PER_CLASS + i;
            r[at] = (struct dfcl_sample_request){.domain = domain, .class_id = id, .number = (uint32_t)at};
            asked[at] = k;
        }
    }
    struct drawing w = {d, what};
    struct dfcl_sample_params p = {
        .sampler = DFCL_SAMPLER_DPMPP_2M, .steps = d->sample_steps, .cfg = d->cfg, .cfg_channels = "all", .seed = d->seed + 1, .batch = 50,
        .progress = on_progress, .progress_user = &w, .stop = on_stop, .clip = -1,
    };
    dfcl_status s = dfcl_sample(model, &p, r, CLASSES * PER_CLASS, x, err);
    size_t n = (size_t)CLASSES * PER_CLASS * (size_t)(d->train.side * d->train.side);
    for (size_t i = 0; i < n && !s; i++)
        x[i] = x[i] < -1 ? -1 : x[i] > 1 ? 1 : x[i];
    return s;
}

/* One picture: three blocks of SHOWN rows, real above base above DiffFit, a column for each digit. */
static dfcl_status picture(struct demo *d, const float *base, const float *tuned, dfcl_error *err) {
    int side = d->train.side;
    size_t each = (size_t)(side * side);
    enum { CELLS = 3 * SHOWN * CLASSES };
    float *cells = calloc(CELLS * each, sizeof *cells);
    uint8_t *pixels = malloc(CELLS * each), *grid = NULL;
    dfcl_status s = DFCL_OK;
    if (!cells || !pixels) {
        s = fail(err, DFCL_NOMEM, "out of memory");
        goto out;
    }
    for (int k = 0; k < CLASSES; k++) {
        int found = 0;
        for (int i = 0; i < d->heldout.count && found < SHOWN; i++)
            if (d->heldout.labels[i] == k)
                memcpy(cells + (size_t)(found++ * CLASSES + k) * each, d->heldout.data + (size_t)i * each, each * sizeof *cells);
        for (int i = 0; i < SHOWN; i++) {
            memcpy(cells + (size_t)((SHOWN + i) * CLASSES + k) * each, base + (size_t)(k * PER_CLASS + i) * each, each * sizeof *cells);
            memcpy(cells + (size_t)((2 * SHOWN + i) * CLASSES + k) * each, tuned + (size_t)(k * PER_CLASS + i) * each, each * sizeof *cells);
        }
    }
    dfcl_pixels(cells, CELLS, 1, side, side, pixels);
    int w, h;
    s = dfcl_grid(d->c->ctx, pixels, CELLS, side, side, 1, CLASSES, 3, &grid, &w, &h, err);
    char path[4096], losses[128];
    snprintf(path, sizeof path, "%s/demo.png", d->out);
    snprintf(losses, sizeof losses, "%.4f -> %.4f", d->before.loss, d->after.loss);
    const char *text[] = {"Software", "difffit-cl", "rows", "4 real (held out), 4 base, 4 DiffFit", "held-out loss", losses, NULL};
    if (!s)
        s = dfcl_png_write(d->c->ctx, path, grid, w, h, 1, text, err);
out:
    dfcl_free_pixels(d->c->ctx, grid);
    free(pixels);
    free(cells);
    return s;
}

static dfcl_status write_json(const struct demo *d, const struct dfcl_device_info *dev, dfcl_error *err) {
    char path[4096], tmp[4128];
    snprintf(path, sizeof path, "%s/demo.json", d->out);
    snprintf(tmp, sizeof tmp, "%s.tmp-%ld", path, (long)getpid());
    FILE *f = fopen(tmp, "we");
    if (!f)
        return fail(err, DFCL_IO, "%s: cannot create", path);
    fprintf(f, "{\n  \"version\": \"%s\",\n  \"device\": ", dfcl_version());
    cli_json_string(f, dev->name);
    fprintf(f,
            ",\n  \"seconds\": %.1f,\n  \"fine_tuning_seconds\": %.1f,\n  \"steps\": %d,\n  \"batch\": %d,\n  \"lr\": %g,\n"
            "  \"trained_values\": %lld,\n  \"delta_bytes\": %lld,\n  \"pairs\": %d,\n"
            "  \"loss_before\": %.6f,\n  \"loss_before_se\": %.6f,\n  \"loss_after\": %.6f,\n  \"loss_after_se\": %.6f,\n"
            "  \"mse_before\": %.6f,\n  \"mse_before_se\": %.6f,\n  \"mse_after\": %.6f,\n  \"mse_after_se\": %.6f,\n"
            "  \"frechet_before\": %.4f,\n  \"frechet_after\": %.4f,\n  \"frechet_real\": %.4f,\n"
            "  \"read_as_asked_before\": %.4f,\n  \"read_as_asked_after\": %.4f,\n  \"read_as_asked_real\": %.4f\n}\n",
            d->seconds, d->train_seconds, d->steps, d->batch, d->lr, d->trained, d->delta_bytes, d->after.pairs, d->before.loss,
            d->before.loss_se, d->after.loss, d->after.loss_se, d->before.mse, d->before.mse_se, d->after.mse, d->after.mse_se,
            d->frechet_before, d->frechet_after, d->frechet_real, d->read_before, d->read_after, d->read_real);
    bool ok = fflush(f) == 0 && fsync(fileno(f)) == 0;
    ok = fclose(f) == 0 && ok;
    if (ok && rename(tmp, path) == 0)
        return DFCL_OK;
    unlink(tmp);
    return fail(err, DFCL_IO, "%s: cannot write", path);
}

static dfcl_status measure(struct demo *d, const float *base, const float *tuned, const int *asked, dfcl_error *err) {
    int dim = d->train.side * d->train.side, n = CLASSES * PER_CLASS;
    struct metrics_pca pca;
    if (!metrics_pca_fit(&pca, d->train.data, d->train.count, dim, COMPONENTS))
        return fail(err, DFCL_ERROR, "principal components of the pictures: no convergence, or out of memory");
    d->frechet_before = metrics_frechet(&pca, d->train.data, d->train.count, base, n);
    d->frechet_after = metrics_frechet(&pca, d->train.data, d->train.count, tuned, n);
    d->frechet_real = metrics_frechet(&pca, d->train.data, d->train.count, d->heldout.data, d->heldout.count);
    metrics_pca_free(&pca);
    const float *known = d->train.data;
    const int *labels = d->train.labels;
    d->read_before = metrics_read_as(base, asked, n, known, labels, d->train.count, dim, CLASSES, NEIGHBOURS);
    d->read_after = metrics_read_as(tuned, asked, n, known, labels, d->train.count, dim, CLASSES, NEIGHBOURS);
    d->read_real = metrics_read_as(d->heldout.data, d->heldout.labels, d->heldout.count, known, labels, d->train.count, dim, CLASSES, NEIGHBOURS);
    return DFCL_OK;
}

static dfcl_status run_demo(struct demo *d, dfcl_device *dev, dfcl_error *err) {
    double start = cli_now();
    char base[4096], run[4096], delta[4128], folder[4096];
    float *before = NULL, *after = NULL;
    int *asked = NULL;
    dfcl_model *model = NULL;
    int domain = 0;
    snprintf(base, sizeof base, "%s/base.safetensors", d->data);
    snprintf(run, sizeof run, "%s/run", d->out);
    snprintf(delta, sizeof delta, "%s/delta.safetensors", run);
    dfcl_status s = fine_tune(d, dev, base, run, err);
    if (s)
        goto out;
    struct stat st;
    d->delta_bytes = stat(delta, &st) == 0 ? (long long)st.st_size : 0;

    struct dfcl_model_params mp = {.path = base};
    s = dfcl_model_open(&model, dev, &mp, err);
    if (!s)
        s = dfcl_model_load_delta(model, delta, 1.0f, 0, &domain, err);
    if (s)
        goto out;
    const struct dfcl_model_shape *shape = dfcl_model_get_shape(model);
    if (shape->channels != 1) {
        s = fail(err, DFCL_FORMAT, "%s: expected a model of pictures in one channel, found %d", base, shape->channels);
        goto out;
    }
    snprintf(folder, sizeof folder, "%s/digits/train", d->data);
    s = dfcl_pictures_read(d->c->ctx, folder, shape->channels, shape->input, shape->input, &d->train, err);
    snprintf(folder, sizeof folder, "%s/digits/heldout", d->data);
    if (!s)
        s = dfcl_pictures_read(d->c->ctx, folder, shape->channels, shape->input, shape->input, &d->heldout, err);
    if (!s && (d->train.class_count != CLASSES || d->heldout.class_count != CLASSES))
        s = fail(err, DFCL_FORMAT, "%s: expected ten classes", folder);
    if (!s)
        s = dfcl_evaluate_loss(model, 0, &d->heldout, 1, PAIRS, d->seed + 2, &d->before, err);
    if (!s)
        s = dfcl_evaluate_loss(model, domain, &d->heldout, 0, PAIRS, d->seed + 2, &d->after, err);
    size_t n = (size_t)CLASSES * PER_CLASS * (size_t)(shape->channels * shape->input * shape->input);
    before = calloc(n, sizeof *before);
    after = calloc(n, sizeof *after);
    asked = calloc((size_t)CLASSES * PER_CLASS, sizeof *asked);
    if (!s && (!before || !after || !asked))
        s = fail(err, DFCL_NOMEM, "out of memory");
    if (!s)
        s = draw(d, model, 0, "with the base", before, asked, err);
    if (!s)
        s = draw(d, model, domain, "with the delta", after, asked, err);
    if (!s)
        s = measure(d, before, after, asked, err);
    if (!s)
        s = picture(d, before, after, err);
    d->seconds = cli_now() - start;
    if (!s)
        s = write_json(d, dfcl_device_get_info(dev), err);
out:
    free(before);
    free(after);
    free(asked);
    dfcl_model_close(&model);
    dfcl_pictures_free(d->c->ctx, &d->train);
    dfcl_pictures_free(d->c->ctx, &d->heldout);
    return s;
}

static void report(const struct demo *d, const struct dfcl_device_info *dev) {
    char t1[32], t2[32];
    cli_eta(d->train_seconds, t1, sizeof t1);
    cli_eta(d->seconds, t2, sizeof t2);
    printf("%s: %d steps of %d in %s, %s in all; %lld values trained, delta %.0f KB\n\n", dev->name, d->steps, d->batch, t1, t2, d->trained,
           (double)d->delta_bytes / 1000.0);
    printf("                                    base     DiffFit      real\n");
    printf("held-out loss                %7.4f±%.4f %7.4f±%.4f         -\n", d->before.loss, d->before.loss_se, d->after.loss, d->after.loss_se);
    printf("  of it, squared error       %7.4f±%.4f %7.4f±%.4f         -\n", d->before.mse, d->before.mse_se, d->after.mse, d->after.mse_se);
    printf("Frechet distance (32 PCA)    %9.2f     %9.2f     %7.2f\n", d->frechet_before, d->frechet_after, d->frechet_real);
    printf("digits read as asked         %8.1f%%     %8.1f%%     %6.1f%%\n\n", 100 * d->read_before, 100 * d->read_after, 100 * d->read_real);
    printf("%s/demo.png (rows: 4 real, 4 base, 4 DiffFit), %s/demo.json, %s/run/delta.safetensors\n", d->out, d->out, d->out);
}

int cmd_demo(struct cli *c, int argc, char **argv) {
    struct demo d = {.c = c, .steps = 450, .batch = 64, .lr = 5e-3, .cfg = 2, .sample_steps = 20};
    const char *out = "difffit-demo", *data = NULL;
    const struct cli_option options[] = {
        {"--out", CLI_PATH, &out, "DIR", "folder to write (difffit-demo); replaced when it holds an earlier demo", 0, 0},
        {"--data", CLI_PATH, &data, "DIR", "folder with base.safetensors and digits/ (the shipped one)", 0, 0},
        {"--steps", CLI_INT, &d.steps, "N", "fine-tuning steps (450)", 1, 1000000},
        {"--batch", CLI_INT, &d.batch, "B", "pictures per step (64)", 1, 65536},
        {"--lr", CLI_DBL, &d.lr, "X", "learning rate (5e-3)", 1e-9, 1},
        {"--cfg", CLI_DBL, &d.cfg, "W", "guidance scale of the drawn pictures (2)", 0, 20},
        {"--sample-steps", CLI_INT, &d.sample_steps, "N", "steps of DPM-Solver++ (20)", 1, 1000},
        {"--seed", CLI_U64, &d.seed, "N", "seed (0)", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
              "demo [--out DIR]\n\nFine-tunes a base that knows printed letters on 1,400 handwritten digits, on the best device found. Writes\n"
              "DIR/demo.png (real, base, DiffFit), DIR/demo.json and DIR/run/delta.safetensors. The other 397 digits judge it.",
              options, NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    snprintf(d.out, sizeof d.out, "%s", out);
    if (data)
        snprintf(d.data, sizeof d.data, "%s", data);
    else if (!find_data(d.data, sizeof d.data)) {
        fail(&err, DFCL_IO, "the shipped base and pictures were not found; name their folder with --data");
        return cli_fail(c, &err);
    }
    char base[sizeof d.data + 32];
    snprintf(base, sizeof base, "%s/base.safetensors", d.data);
    if (access(base, R_OK) != 0) {
        fail(&err, DFCL_IO, "%s: cannot open: %s; --data names the folder with base.safetensors and digits/", base, strerror(errno));
        return cli_fail(c, &err);
    }
    if (mkdir(out, 0777) != 0 && errno != EEXIST) {
        snprintf(err.msg, sizeof err.msg, "%s: cannot create folder: %s", out, strerror(errno));
        err.status = DFCL_IO;
        return cli_fail(c, &err);
    }
    cli_catch_signals();
    dfcl_device *dev = NULL;
    dfcl_status s = cli_open_device(c, &dev, &err);
    if (!s)
        s = run_demo(&d, dev, &err);
    if (!s)
        report(&d, dfcl_device_get_info(dev));
    dfcl_device_close(&dev);
    return s ? cli_fail(c, &err) : 0;
}
