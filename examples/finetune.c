/* Fine-tunes a base on a folder of pictures and draws from the result, through the installed library.
 *
 *   cc finetune.c -o finetune $(pkg-config --cflags --libs difffit-cl)
 *   ./finetune BASE PICTURES RUN OUT.png [DEVICE [STEPS]]
 *
 * With what is installed beside the library (PREFIX/share/difffit-cl/demo): ./finetune base.safetensors digits/train run out.png */
#include <difffit-cl/dfcl.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_CLASSES = 10, EACH = 4 };

static volatile sig_atomic_t stop;

static void on_signal(int sig) {
    (void)sig;
    stop = 1;
}

static void on_log(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    if (level <= DFCL_LOG_WARN)
        fprintf(stderr, "%s\n", line);
}

/* The caller owns the loop: what is done between two steps is up to it. */
static dfcl_status fine_tune(dfcl_device *device, const char *base, const char *pictures, const char *run, long steps, dfcl_error *err) {
    struct dfcl_train_params params = {
        .model = {.path = base}, .data = pictures, .run_dir = run, .steps = steps, .batch = 16, .lr = 5e-3, .ema_decay = 0.99, .log_every = 1};
    dfcl_trainer *trainer = NULL;
    dfcl_status status = dfcl_trainer_create(&trainer, device, &params, err);
    if (status)
        return status;
    const struct dfcl_train_summary *summary = dfcl_trainer_summary(trainer);
    printf("%lld pictures of %d classes, %lld values to train\n", (long long)summary->images, summary->classes, (long long)summary->trained_values);
    for (int done = 0; !status && !done;) {
        struct dfcl_train_progress progress;
        status = dfcl_trainer_step(trainer, &progress, &done, err);
        if (!status && (done || progress.step % 10 == 0))
            printf("step %lld: loss %.4f\n", (long long)progress.step, progress.loss_mean);
        if (!status && stop) { /* RUN goes on where it was: params.resume = "auto" */
            status = dfcl_trainer_save(trainer, err);
            if (!status)
                status = DFCL_INTERRUPTED;
        }
    }
    if (!status)
        status = dfcl_trainer_finish(trainer, err);
    dfcl_trainer_destroy(&trainer);
    return status;
}

/* EACH pictures of every class, into memory, then as a grid into a file. */
static dfcl_status draw(const dfcl_context *context, dfcl_device *device, const char *base, const char *delta, const char *out, dfcl_error *err) {
    struct dfcl_model_params params = {.path = base};
    struct dfcl_sample_params how = {.sampler = DFCL_SAMPLER_DPMPP_2M, .steps = 15, .cfg = 3};
    struct dfcl_sample_request wanted[MOST_CLASSES * EACH] = {{0}};
    dfcl_model *model = NULL;
    float *x = NULL;
    uint8_t *pixels = NULL, *grid = NULL;
    int domain = 0, width, height;
    dfcl_status status = dfcl_model_open(&model, device, &params, err);
    if (!status)
        status = dfcl_model_load_delta(model, delta, 1.0f, 0, &domain, err);
    if (status)
        goto end;
    const struct dfcl_model_shape *shape = dfcl_model_get_shape(model);
    int classes = dfcl_model_classes(model, domain), n = 0;
    for (int c = 0; c < classes && c < MOST_CLASSES; c++)
        for (uint32_t i = 0; i < EACH; i++)
            wanted[n++] = (struct dfcl_sample_request){.domain = domain, .class_id = c, .number = i};
    size_t values = (size_t)n * (size_t)shape->channels * (size_t)shape->input * (size_t)shape->input_width;
    x = malloc(values * sizeof *x);
    pixels = malloc(values);
    if (!x || !pixels || (shape->channels != 1 && shape->channels != 3)) {
        fprintf(stderr, "this example draws with a base of pictures, and needs the memory for them\n");
        status = DFCL_USAGE;
        goto end;
    }
    status = dfcl_sample(model, &how, wanted, n, x, err);
    if (!status) {
        dfcl_pixels(x, n, shape->channels, shape->input, shape->input_width, pixels);
        status = dfcl_grid(context, pixels, n, shape->input, shape->input_width, shape->channels, EACH, 4, &grid, &width, &height, err);
    }
    if (!status)
        status = dfcl_png_write(context, out, grid, width, height, shape->channels, NULL, err);
end:
    dfcl_free_pixels(context, grid);
    free(pixels);
    free(x);
    dfcl_model_close(&model);
    return status;
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s BASE PICTURES RUN OUT.png [DEVICE [STEPS]]\n", argv[0]);
        return DFCL_USAGE;
    }
    const char *base = argv[1], *pictures = argv[2], *run = argv[3], *out = argv[4];
    struct dfcl_context_params params = {.log = on_log};
    dfcl_context *context = NULL;
    dfcl_device *device = NULL;
    dfcl_error err = {0};
    char delta[4096];
    signal(SIGINT, on_signal);
    snprintf(delta, sizeof delta, "%s/delta.safetensors", run);
    dfcl_status status = dfcl_context_create(&context, &params, &err);
    if (!status)
        status = dfcl_device_open(&device, context, argc > 5 ? argv[5] : NULL, &err);
    if (!status)
        printf("device: %s\n", dfcl_device_get_info(device)->name);
    if (!status)
        status = fine_tune(device, base, pictures, run, argc > 6 ? atol(argv[6]) : 100, &err);
    if (!status)
        status = draw(context, device, base, delta, out, &err);
    if (!status)
        printf("%s, %s\n", delta, out);
    else if (status == DFCL_INTERRUPTED)
        fprintf(stderr, "stopped and saved\n");
    else
        fprintf(stderr, "%s\n", err.msg[0] ? err.msg : dfcl_status_name(status));
    dfcl_device_close(&device);
    dfcl_context_destroy(&context);
    return (int)status;
}
