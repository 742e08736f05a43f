/* vae: the autoencoder between pictures and latents. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct job {
    struct cli *c;
    struct dfcl_vae_params p;
    const char *inputs, *output;
    bool encode, json, paced;
    int pixels, repeat, warmup;
    uint64_t seed;
    dfcl_device *dev;
    dfcl_vae *vae;
    const struct dfcl_vae_shape *shape;
    float *in, *out; /* a picture [channels,P,P] or latent [latent_channels,P/factor,P/factor]; the other one */
    size_t in_count, out_count;
    double peak, peak_after, load, first, *seconds;
    int count, cap;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The picture or the latent on one side of the coder. */
static size_t shape_of(const struct job *j, bool picture, int64_t shape[4]) {
    const int side = picture ? j->pixels : j->pixels / j->shape->factor;
    shape[0] = 1;
    shape[1] = picture ? j->shape->channels : j->shape->latent_channels;
    shape[2] = shape[3] = side;
    return (size_t)shape[1] * (size_t)side * (size_t)side;
}

static dfcl_status prepare(struct job *j, dfcl_error *err) {
    int64_t in[4], out[4];
    j->shape = dfcl_vae_get_shape(j->vae);
    if (j->pixels % j->shape->factor)
        return bench_fail(err, DFCL_USAGE, "--pixels: expected a multiple of %d, found %d", j->shape->factor, j->pixels);
    j->in_count = shape_of(j, j->encode, in);
    j->out_count = shape_of(j, !j->encode, out);
    if (!(j->out = malloc(j->out_count * sizeof *j->out)))
        return bench_fail(err, DFCL_NOMEM, "out of memory");
    if (j->inputs)
        return cli_read_tensor(j->c, j->inputs, "x", in, 4, &j->in, err);
    if (!(j->in = malloc(j->in_count * sizeof *j->in)))
        return bench_fail(err, DFCL_NOMEM, "out of memory");
    uint64_t state = j->seed * 0x9e3779b97f4a7c15u + 1; /* Knuth's MMIX generator: any values do, in [-1, 1) */
    for (size_t i = 0; i < j->in_count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        j->in[i] = (float)((double)(state >> 33) * 0x1p-30 - 1.0);
    }
    return DFCL_OK;
}

static dfcl_status run_once(struct job *j, bool timed, dfcl_error *err) {
    if (j->count == j->cap) {
        int cap = j->cap ? 2 * j->cap : 64;
        double *more = realloc(j->seconds, (size_t)cap * sizeof *more);
        if (!more)
            return bench_fail(err, DFCL_NOMEM, "out of memory");
        j->seconds = more;
        j->cap = cap;
    }
    const double start = now();
    const int side = j->encode ? j->pixels : j->pixels / j->shape->factor;
    dfcl_status s = j->encode ? dfcl_vae_encode(j->vae, 1, side, side, j->in, j->out, NULL, err)
                              : dfcl_vae_decode(j->vae, 1, side, side, j->in, j->out, err);
    const double took = now() - start;
    if (s)
        return s;
    j->first = j->first > 0 ? j->first : took;
    if (timed)
        j->seconds[j->count++] = took;
    return DFCL_OK;
}

static dfcl_status run_paced(struct job *j, dfcl_error *err) {
    char line[256];
    dfcl_status s = DFCL_OK;
    printf("ready\n");
    fflush(stdout);
    while (!s && fgets(line, sizeof line, stdin)) {
        s = run_once(j, true, err);
        if (!s)
            printf("%.9g\n", j->seconds[j->count - 1]);
        fflush(stdout);
    }
    return s || j->count ? s : bench_fail(err, DFCL_USAGE, "--paced: expected a line on standard input for each run, found none");
}

static dfcl_status run(struct job *j, dfcl_error *err) {
    dfcl_status s = bench_open(j->c, NULL, &j->dev, err);
    const double start = now();
    if (!s)
        s = dfcl_vae_open(&j->vae, j->dev, &j->p, err);
    j->load = now() - start;
    if (!s)
        s = prepare(j, err);
    for (int i = 0; i < j->warmup && !s; i++)
        s = run_once(j, false, err);
    if (!s)
        s = bench_peak_now(j->dev, DFCL_PEAK_F32, 3, &j->peak, err);
    if (!s && j->paced)
        s = run_paced(j, err);
    for (int i = 0; i < j->repeat && !j->paced && !s; i++)
        s = run_once(j, true, err);
    if (!s)
        s = bench_peak_now(j->dev, DFCL_PEAK_F32, 3, &j->peak_after, err);
    if (s || !j->output)
        return s;
    int64_t shape[4];
    shape_of(j, !j->encode, shape);
    return dfcl_tensor_write(j->c->ctx, j->output, "out", j->out, shape, 4, err);
}

static dfcl_status report(struct job *j, dfcl_error *err) {
    struct dfcl_vae_memory m;
    dfcl_status s = dfcl_vae_measure(j->vae, j->encode, j->pixels, j->pixels, &m, err);
    if (s)
        return s;
    const struct bench_spread t = bench_spread(j->seconds, j->count);
    const char *what = j->encode ? "encode" : "decode", *plan = dfcl_vae_plan(j->vae);
    const uint64_t most = bench_resident();
    if (j->json) {
        bench_json_head(stdout, "vae", j->dev);
        printf(",\n  \"what\": \"%s\", \"pixels\": %d, \"parameters\": %lld, \"repeat\": %d,\n  ", what, j->pixels, (long long)j->shape->parameters,
               j->count);
        bench_json_spread(stdout, "seconds_per_image", t);
        if (j->peak > 0)
            printf(",\n  \"peak_gflops\": %.6g, \"peak_gflops_after\": %.6g", j->peak / 1e9, j->peak_after / 1e9);
        else
            printf(",\n  \"peak_gflops\": null, \"peak_gflops_after\": null");
        printf(",\n  \"peak_memory_bytes\": %llu, \"weight_bytes\": %llu, \"whole_bytes\": %llu, \"least_bytes\": %llu, \"plan\": \"%s\"",
               (unsigned long long)most, (unsigned long long)m.weights, (unsigned long long)m.whole, (unsigned long long)m.least, plan);
        printf(",\n  \"load_seconds\": %.6g, \"first_run_seconds\": %.6g}\n", j->load, j->first);
        return DFCL_OK;
    }
    const double mib = 1048576.0;
    printf("%s, %d x %d pixels: %.4g s per image (%.4g to %.4g, %d runs)\n", what, j->pixels, j->pixels, t.median, t.min, t.max, j->count);
    if (j->peak > 0)
        printf("  f32 peak %.1f before, %.1f GFLOP/s after\n", j->peak / 1e9, j->peak_after / 1e9);
    printf("  memory: %.1f MiB at most; weights %.1f MiB, and %s\n", (double)most / mib, (double)m.weights / mib, plan);
    printf("  loading %.2f s, first run %.2f s\n", j->load, j->first);
    return DFCL_OK;
}

int bench_vae(struct cli *c, int argc, char **argv) {
    struct job job = {.c = c, .pixels = 512, .repeat = 5, .warmup = 1}, *j = &job;
    const char *what = "decode";
    const struct cli_option options[] = {
        {"--vae", CLI_PATH, &j->p.path, "DIR", "autoencoder: a diffusers folder, its file, or the original .ckpt (required)", 0, 0},
        {"--what", CLI_CHOICE, &what, "decode|encode", "latents to pictures (decode) or back", 0, 0},
        {"--pixels", CLI_INT, &j->pixels, "P", "side of the picture (512)", 8, 16384},
        {"--max-memory", CLI_SIZE, &j->p.max_memory, "SIZE", "device memory to stay within, weights included: larger pictures go through in bands", 0, 0},
        {"--repeat", CLI_INT, &j->repeat, "N", "timed runs (5)", 1, 100000},
        {"--warmup", CLI_INT, &j->warmup, "N", "runs before them that do not count (1)", 0, 1000},
        {"--seed", CLI_U64, &j->seed, "N", "seed of the input (0)", 0, 0},
        {"--inputs", CLI_PATH, &j->inputs, "FILE", "safetensors: x, a picture [1,3,P,P] in [-1,1] or a latent [1,C,P/8,P/8]", 0, 0},
        {"--output", CLI_PATH, &j->output, "FILE", "write the result as safetensors: out, a picture, or the mean of the latent", 0, 0},
        {"--paced", CLI_FLAG, &j->paced, NULL, "say \"ready\", run once for each line of standard input, answer with the seconds", 0, 0},
        {"--json", CLI_FLAG, &j->json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "vae --vae DIR [options]\n\nSeconds and memory of the autoencoder for one picture.", options, NULL, 0) < 0)
        return c->code;
    if (!j->p.path)
        return cli_usage(c, "--vae is required");
    if (j->paced && cli_given(c, "--repeat") == CLI_WORDS)
        return cli_usage(c, "--repeat: --paced runs once for each line");
    j->encode = !strcmp(what, "encode");
    j->p.only_encoder = j->encode;
    j->p.only_decoder = !j->encode;
    dfcl_error err = {0};
    dfcl_status s = run(j, &err);
    if (!s)
        s = report(j, &err);
    int code = s ? cli_fail(c, &err) : 0;
    if (j->inputs)
        dfcl_tensor_free(c->ctx, j->in);
    else
        free(j->in);
    free(j->out);
    free(j->seconds);
    dfcl_vae_close(&j->vae);
    dfcl_device_close(&j->dev);
    return code;
}
