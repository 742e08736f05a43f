/* Fine-tunes a base on pictures that a program makes, without a file of them: two classes, discs and crosses, of any place and size.
 *
 *   cc memory.c -o memory $(pkg-config --cflags --libs difffit-cl) -lm
 *   ./memory BASE RUN [DEVICE [STEPS]]
 *
 * BASE works on pictures of one channel, as PREFIX/share/difffit-cl/demo/base.safetensors. The result is RUN/delta.safetensors, with the classes "disc" and "cross":
 *
 *   difffit-cl sample --model BASE --delta RUN/delta.safetensors --classes disc,cross -n 8 --cfg 3 --out shapes.png */
#include <difffit-cl/dfcl.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { COUNT = 256 };

/* Stands for what a program has: a camera's frames, renderings, rows of a table. Bright shapes on black. */
static void draw(float *picture, int side, int cross, unsigned *state) {
    float place[3]; /* x, y, radius */
    for (int k = 0; k < 3; k++) {
        *state = *state * 1664525u + 1013904223u;
        place[k] = (float)(*state >> 8) / 16777216.0f;
    }
    float radius = (0.2f + 0.15f * place[2]) * (float)side, room = (float)side - 2 * radius;
    float cx = radius + room * place[0], cy = radius + room * place[1];
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            float dx = fabsf((float)x + 0.5f - cx), dy = fabsf((float)y + 0.5f - cy), far = sqrtf(dx * dx + dy * dy);
            float out = cross ? fmaxf(fminf(dx, dy) - 0.3f * radius, fmaxf(dx, dy) - radius) : far - radius; /* distance from the shape */
            picture[y * side + x] = fminf(fmaxf(-2 * out, -1), 1);
        }
}

static dfcl_status fine_tune(dfcl_device *device, const char *base, int side, const char *run, long steps, dfcl_error *err) {
    static const char *const names[] = {"disc", "cross"};
    const size_t each = (size_t)side * (size_t)side;
    unsigned state = 1;
    dfcl_trainer *trainer = NULL;
    int32_t *labels = malloc(COUNT * sizeof *labels);
    float *pictures = malloc(COUNT * each * sizeof *pictures); /* lent to the trainer until it is destroyed */
    dfcl_status status = labels && pictures ? DFCL_OK : DFCL_NOMEM;
    for (int i = 0; !status && i < COUNT; i++) {
        labels[i] = i % 2;
        draw(pictures + (size_t)i * each, side, i % 2, &state);
    }
    struct dfcl_train_arrays arrays = {.type = DFCL_ARRAY_PICTURES_F32, .count = COUNT, .channels = 1, .side = side, .data = pictures,
                                       .labels = labels, .class_count = 2, .class_names = names};
    struct dfcl_train_params params = {
        .model = {.path = base}, .arrays = &arrays, .run_dir = run, .steps = steps, .batch = 16, .lr = 5e-3, .ema_decay = 0.99, .val_fraction = 0.1};
    if (!status)
        status = dfcl_trainer_create(&trainer, device, &params, err);
    for (int done = 0; !status && !done;) {
        struct dfcl_train_progress progress;
        status = dfcl_trainer_step(trainer, &progress, &done, err);
        if (!status && (done || progress.step % 10 == 0))
            printf("step %lld: loss %.4f\n", (long long)progress.step, progress.loss_mean);
        if (!status && done)
            printf("on pictures not trained on: loss %.4f\n", progress.val_loss);
    }
    if (!status)
        status = dfcl_trainer_finish(trainer, err);
    dfcl_trainer_destroy(&trainer);
    free(pictures);
    free(labels);
    return status;
}

/* The side of the pictures that the base works on. */
static dfcl_status find_side(dfcl_device *device, const char *base, int *side, dfcl_error *err) {
    struct dfcl_model_params params = {.path = base};
    dfcl_model *model = NULL;
    dfcl_status status = dfcl_model_open(&model, device, &params, err);
    if (!status)
        *side = dfcl_model_get_shape(model)->input;
    dfcl_model_close(&model);
    return status;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s BASE RUN [DEVICE [STEPS]]\n", argv[0]);
        return DFCL_USAGE;
    }
    dfcl_context *context = NULL;
    dfcl_device *device = NULL;
    dfcl_error err = {0};
    int side = 0;
    dfcl_status status = dfcl_context_create(&context, NULL, &err);
    if (!status)
        status = dfcl_device_open(&device, context, argc > 3 ? argv[3] : NULL, &err);
    if (!status)
        status = find_side(device, argv[1], &side, &err);
    if (!status)
        status = fine_tune(device, argv[1], side, argv[2], argc > 4 ? atol(argv[4]) : 200, &err);
    if (status)
        fprintf(stderr, "%s\n", err.msg[0] ? err.msg : dfcl_status_name(status));
    dfcl_device_close(&device);
    dfcl_context_destroy(&context);
    return (int)status;
}
