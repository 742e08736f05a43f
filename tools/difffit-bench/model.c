/* forward, train, sample: whole models with random weights, or those of a file. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct job {
    struct cli *c;
    const char *name; /* the benchmark */
    struct dfcl_bench_params p;
    struct dfcl_init_params init;
    const char *size, *variants, *inputs, *output, *sampler, *weights, *pack, *activations;
    struct cli_extent pixels;
    int repeat, warmup;
    bool json, paced;
    dfcl_device *dev;
    dfcl_bench *bench;
    double peak, peak_after;
    double *seconds;         /* [count] of the timed runs */
    double *alone, *cpu;     /* with domains: beside each, of the run with all samples in one domain, and the ratio of their processor times */
    int count, cap;
    struct dfcl_bench_run first; /* the very first run: warm-up where there is one */
};

/* ---- inputs and outputs ---- */

static dfcl_status read_whole(const struct job *j, const char *key, int32_t **out, dfcl_error *err) {
    float *values = NULL;
    const int64_t want[1] = {j->p.batch};
    dfcl_status s = cli_read_tensor(j->c, j->inputs, key, want, 1, &values, err);
    if (!s && !(*out = calloc((size_t)j->p.batch, sizeof **out)))
        s = bench_fail(err, DFCL_NOMEM, "out of memory");
    for (int i = 0; !s && i < j->p.batch; i++) {
        if (!(values[i] >= 0 && values[i] < 1e7f))
            s = bench_fail(err, DFCL_FORMAT, "%s: %s: expected a number from 0, found %g", j->inputs, key, (double)values[i]);
        else
            (*out)[i] = (int32_t)values[i];
    }
    dfcl_tensor_free(j->c->ctx, values);
    return s;
}

static dfcl_status give_inputs(struct job *j, const struct dfcl_model_shape *sh, dfcl_error *err) {
    const int64_t want[4] = {j->p.batch, sh->channels, sh->input, sh->input_width};
    float *x = NULL, *noise = NULL;
    int32_t *t = NULL, *y = NULL;
    dfcl_status s = cli_read_tensor(j->c, j->inputs, "x", want, 4, &x, err);
    if (!s)
        s = read_whole(j, "y", &y, err);
    if (!s && j->p.kind != DFCL_BENCH_SAMPLE)
        s = read_whole(j, "t", &t, err);
    if (!s && j->p.kind == DFCL_BENCH_TRAIN)
        s = cli_read_tensor(j->c, j->inputs, "noise", want, 4, &noise, err);
    if (!s)
        s = dfcl_bench_set_inputs(j->bench, &(struct dfcl_bench_inputs){.x = x, .noise = noise, .t = t, .classes = y}, err);
    dfcl_tensor_free(j->c->ctx, x);
    dfcl_tensor_free(j->c->ctx, noise);
    free(t);
    free(y);
    return s;
}

static dfcl_status write_output(struct job *j, dfcl_error *err) {
    const float *out;
    int64_t shape[4];
    dfcl_status s = dfcl_bench_output(j->bench, &out, shape, err);
    return s ? s : dfcl_tensor_write(j->c->ctx, j->output, "out", out, shape, 4, err);
}

/* ---- runs ---- */

/* Room for another timed run. */
static dfcl_status reserve(struct job *j, dfcl_error *err) {
    if (j->count < j->cap)
        return DFCL_OK;
    int cap = j->cap ? 2 * j->cap : 64;
    double *more = realloc(j->seconds, (size_t)cap * sizeof *more);
    if (more)
        j->seconds = more;
    double *alone = realloc(j->alone, (size_t)cap * sizeof *alone);
    if (alone)
        j->alone = alone;
    double *cpu = realloc(j->cpu, (size_t)cap * sizeof *cpu);
    if (cpu)
        j->cpu = cpu;
    if (!more || !alone || !cpu)
        return bench_fail(err, DFCL_NOMEM, "out of memory");
    j->cap = cap;
    return DFCL_OK;
}

/* A run with `domains` in the batch (0: there are none), and the processor time of all threads in it. */
static dfcl_status run_mixed(struct job *j, int domains, struct dfcl_bench_run *r, double *cpu, dfcl_error *err) {
    dfcl_status s = domains ? dfcl_bench_mix(j->bench, domains, err) : DFCL_OK;
    clock_t start = clock();
    if (!s)
        s = dfcl_bench_run(j->bench, r, err);
    *cpu = (double)(clock() - start) / CLOCKS_PER_SEC;
    return s;
}

/* One run; with domains a pair of runs, in an order that alternates. */
static dfcl_status run_once(struct job *j, bool timed, dfcl_error *err) {
    struct dfcl_bench_run r = {0}, one = {0};
    double cpu = 0, cpu_one = 0;
    dfcl_status s = reserve(j, err);
    if (!s && j->p.domains && j->count % 2 == 0)
        s = run_mixed(j, 1, &one, &cpu_one, err);
    if (!s)
        s = run_mixed(j, j->p.domains, &r, &cpu, err);
    if (!s && j->p.domains && j->count % 2)
        s = run_mixed(j, 1, &one, &cpu_one, err);
    if (s)
        return s;
    if (!j->first.seconds)
        j->first = j->p.domains ? one : r;
    if (!timed)
        return DFCL_OK;
    j->alone[j->count] = one.seconds / j->p.batch;
    j->cpu[j->count] = cpu_one > 0 ? cpu / cpu_one : 0;
    j->seconds[j->count++] = r.seconds / j->p.batch;
    return DFCL_OK;
}

/* One run for each line that arrives, answered by its seconds per image. */
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
    struct dfcl_bench_info info = {0};
    dfcl_status s = bench_open(j->c, j->variants, &j->dev, err);
    if (!s)
        s = dfcl_bench_create(&j->bench, j->dev, &j->p, err);
    if (!s)
        s = dfcl_bench_get_info(j->bench, &info, err);
    if (!s && j->inputs)
        s = give_inputs(j, &info.shape, err);
    for (int i = 0; i < j->warmup && !s; i++)
        s = run_once(j, false, err);
    if (!s)
        s = dfcl_bench_get_info(j->bench, &info, err); /* now that a run has chosen its variants */
    enum dfcl_peak limit = info.bf16_products ? DFCL_PEAK_BF16 : DFCL_PEAK_F32;
    if (!s)
        s = bench_peak_now(j->dev, limit, 3, &j->peak, err);
    if (!s && j->paced)
        s = run_paced(j, err);
    for (int i = 0; i < j->repeat && !j->paced && !s; i++)
        s = run_once(j, true, err);
    if (!s)
        s = bench_peak_now(j->dev, limit, 3, &j->peak_after, err);
    if (!s && j->output && j->p.domains) { /* the last run may have been the other of its pair */
        struct dfcl_bench_run r;
        double cpu;
        s = run_mixed(j, j->p.domains, &r, &cpu, err);
    }
    return s || !j->output ? s : write_output(j, err);
}

/* ---- results ---- */

static void print_variants(const struct dfcl_bench_info *info) {
    printf("\"variants\": {");
    for (int i = 0; i < info->variant_count; i++)
        printf("%s\"%s\": \"%s\"", i ? ", " : "", info->variants[i].op, info->variants[i].names);
    printf("}");
}

/* What follows from the times. */
struct summary {
    struct bench_spread s; /* seconds per image */
    struct bench_spread alone, ratio, cpu; /* with domains: of batches of one domain; of each pair, and of its processor times */
    double gflops, fraction;
    uint64_t peak_memory;
};

static void print_json(const struct job *j, const struct dfcl_bench_info *info, const struct summary *m) {
    const struct dfcl_model_shape *sh = &info->shape;
    bench_json_head(stdout, j->name, j->dev);
    printf(",\n  \"size\": \"%s\", \"depth\": %d, \"hidden\": %d, \"heads\": %d, \"patch\": %d", sh->name, sh->depth, sh->hidden, sh->heads,
           sh->patch);
    if (sh->input_width == sh->input)
        printf(", \"input\": %d", sh->input);
    else
        printf(", \"input\": \"%dx%d\"", sh->input_width, sh->input);
    printf(", \"channels\": %d, \"classes\": %d", sh->channels, sh->classes);
    printf(",\n  \"weights\": \"%s\", \"pack\": \"%s\", \"batch\": %d, \"repeat\": %d", j->weights, j->pack, j->p.batch, j->count);
    if (j->p.kind == DFCL_BENCH_TRAIN)
        printf(", \"method\": \"%s\", \"micro_batch\": %d, \"recompute\": \"%s\", \"trained_values\": %lld", j->p.method, info->micro_batch,
               info->recompute, (long long)info->trained_values);
    if (j->p.kind == DFCL_BENCH_SAMPLE)
        printf(", \"sampler\": \"%s\", \"steps\": %d, \"cfg\": %g", j->sampler, j->p.sample.steps, j->p.sample.cfg);
    if (j->p.domains) {
        printf(",\n  \"domains\": %d, ", j->p.domains);
        bench_json_spread(stdout, "one_domain_seconds_per_image", m->alone);
        printf(", ");
        bench_json_spread(stdout, "ratio", m->ratio);
        printf(", ");
        bench_json_spread(stdout, "cpu_ratio", m->cpu);
    }
    printf(",\n  ");
    bench_json_spread(stdout, "seconds_per_image", m->s);
    printf(",\n  \"gflop_per_image\": %.6g, \"gflops\": %.6g", info->flops / j->p.batch / 1e9, m->gflops);
    if (j->peak > 0)
        printf(", \"peak\": \"%s\", \"peak_gflops\": %.6g, \"peak_gflops_after\": %.6g, \"fraction_of_peak\": %.4f",
               info->bf16_products ? "bf16" : "f32", j->peak / 1e9, j->peak_after / 1e9, m->fraction);
    else
        printf(", \"peak\": null, \"peak_gflops\": null, \"peak_gflops_after\": null, \"fraction_of_peak\": null");
    printf(",\n  \"peak_memory_bytes\": %llu, \"planned_bytes\": %llu, \"device_bytes\": %llu", (unsigned long long)m->peak_memory,
           (unsigned long long)info->planned_bytes, (unsigned long long)info->device_bytes);
    printf(",\n  \"load_seconds\": %.6g, \"first_run_seconds\": %.6g", info->load_seconds, j->first.seconds);
    if (j->p.kind == DFCL_BENCH_TRAIN)
        printf(",\n  \"first_step\": {\"loss\": %.9g, \"mse\": %.9g, \"vb\": %.9g, \"grad_norm\": %.9g}", j->first.loss, j->first.mse,
               j->first.vb, j->first.grad_norm);
    printf(",\n  ");
    print_variants(info);
    printf("}\n");
}

static void print_text(const struct job *j, const struct dfcl_bench_info *info, const struct summary *m) {
    const struct dfcl_model_shape *sh = &info->shape;
    const double mib = 1048576.0;
    printf("%s %s, %d x %d x %d, %s, batch %d: %.4g s per image%s (%.4g to %.4g, %d runs)\n", j->name,
           sh->name[0] ? sh->name : "a model of its own size", sh->channels, sh->input, sh->input_width, j->weights,
           j->p.batch, m->s.median, j->p.kind == DFCL_BENCH_TRAIN ? " and step" : "", m->s.min, m->s.max, j->count);
    if (j->p.domains)
        printf("  %d domains in a batch against one: %.4g s per image, ratio %.3f (%.3f to %.3f), of processor time %.3f (%.3f to %.3f)\n", j->p.domains,
               m->alone.median, m->ratio.median, m->ratio.min, m->ratio.max, m->cpu.median, m->cpu.min, m->cpu.max);
    printf("  %.1f GFLOP/s of %.1f GFLOP per image", m->gflops, info->flops / j->p.batch / 1e9);
    if (j->peak > 0)
        printf("; %.1f %% of the %s peak (%.1f before, %.1f GFLOP/s after)", 100 * m->fraction, info->bf16_products ? "bf16" : "f32",
               j->peak / 1e9, j->peak_after / 1e9);
    printf("\n  memory: %.1f MiB at most, %.1f MiB planned on the device\n", (double)m->peak_memory / mib, (double)info->planned_bytes / mib);
    printf("  loading %.2f s, first run %.2f s\n", info->load_seconds, j->first.seconds);
    for (int i = 0; i < info->variant_count; i++)
        printf("%s%s %s", i ? ", " : "  variants: ", info->variants[i].op, info->variants[i].names);
    printf("\n");
}

static dfcl_status report(struct job *j, dfcl_error *err) {
    struct dfcl_bench_info info;
    dfcl_status st = dfcl_bench_get_info(j->bench, &info, err);
    if (st)
        return st;
    struct summary m = {0};
    if (j->p.domains) {
        double *ratios = malloc((size_t)j->count * sizeof *ratios);
        if (!ratios)
            return bench_fail(err, DFCL_NOMEM, "out of memory");
        for (int i = 0; i < j->count; i++)
            ratios[i] = j->seconds[i] / j->alone[i];
        m.ratio = bench_spread(ratios, j->count);
        m.alone = bench_spread(j->alone, j->count);
        m.cpu = bench_spread(j->cpu, j->count);
        free(ratios);
    }
    m.s = bench_spread(j->seconds, j->count);
    double peak = 0.5 * (j->peak + j->peak_after) / 1e9;
    bool cpu = dfcl_device_get_info(j->dev)->type == DFCL_DEVICE_CPU;
    m.gflops = info.flops / j->p.batch / m.s.median / 1e9;
    m.fraction = peak > 0 ? m.gflops / peak : 0;
    m.peak_memory = cpu ? bench_resident() : info.device_bytes;
    (j->json ? print_json : print_text)(j, &info, &m);
    return DFCL_OK;
}

/* ---- options ---- */

/* The model: a file, or random weights of a named size. */
static dfcl_status choose_model(struct job *j, dfcl_error *err) {
    if (j->p.model.path) {
        if (j->size)
            return bench_fail(err, DFCL_USAGE, "--model and --size exclude each other");
        j->p.model.input = j->pixels.height / 8;
        j->p.model.input_width = j->pixels.width / 8;
        return DFCL_OK;
    }
    struct dfcl_model_shape *sh = &j->init.shape;
    dfcl_status s = dfcl_model_shape_named(j->size ? j->size : "DiT-XL/2", sh, err);
    if (s)
        return s;
    sh->input = (j->pixels.height ? j->pixels.height : 256) / 8;
    sh->input_width = (j->pixels.width ? j->pixels.width : 256) / 8;
    sh->channels = 4;
    sh->classes = 1000;
    j->init.seed = j->p.seed;
    j->init.no_zeros = 1;
    j->p.model.random = &j->init;
    return DFCL_OK;
}

static int measure(struct job *j, int argc, char **argv, const char *usage, const struct cli_option *own) {
    const struct cli_option shared[] = {
        {"--size", CLI_STR, &j->size, "NAME", "random weights of DiT-S/8 ... DiT-XL/2 (the default)", 0, 0},
        {"--pixels", CLI_EXTENT, &j->pixels, "P|WxH", "side of the picture, or width x height; the latent has an eighth (256, or as --model says)", 8, 4096},
        {"--model", CLI_PATH, &j->p.model.path, "FILE", "weights of a file instead", 0, 0},
        CLI_WEIGHTS_OPTIONS(&j->weights, &j->pack),
        {"--batch", CLI_INT, &j->p.batch, "B", "pictures at a time (1)", 1, 65536},
        {"--repeat", CLI_INT, &j->repeat, "N", "timed runs (5)", 1, 10000},
        {"--warmup", CLI_INT, &j->warmup, "N", "runs before them that do not count (1)", 0, 10000},
        {"--seed", CLI_U64, &j->p.seed, "N", "seed of weights and inputs (0)", 0, 0},
        {"--inputs", CLI_PATH, &j->inputs, "FILE", "safetensors: x [B,C,S,S], classes y [B]; not for sample: t [B]; train: noise [B,C,S,S]", 0, 0},
        {"--variants", CLI_STR, &j->variants, "LIST", "kernel variants allowed (portable) or forbidden (-cpu)", 0, 0},
        {"--paced", CLI_FLAG, &j->paced, NULL, "say \"ready\", run once for each line of standard input, answer with the seconds per image", 0, 0},
        {"--json", CLI_FLAG, &j->json, NULL, "print JSON", 0, 0},
    };
    struct cli_option options[32];
    size_t n = 0;
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        options[n++] = shared[i];
    do
        options[n++] = *own;
    while (own++->name);
    if (cli_parse(j->c, argc, argv, usage, options, NULL, 0) < 0)
        return j->c->code;
    cli_weights(j->c, j->weights, j->pack, &j->p.model);
    cli_activations(j->activations, &j->p.model);

    dfcl_error err = {0};
    dfcl_status s = choose_model(j, &err);
    if (j->p.kind == DFCL_BENCH_SAMPLE)
        j->p.sample.sampler = !strcmp(j->sampler, "ddpm")   ? DFCL_SAMPLER_DDPM
                              : !strcmp(j->sampler, "ddim") ? DFCL_SAMPLER_DDIM
                                                            : DFCL_SAMPLER_DPMPP_2M;
    if (!s && j->paced && j->repeat)
        s = bench_fail(&err, DFCL_USAGE, "--paced and --repeat exclude each other");
    if (!j->repeat)
        j->repeat = 5;
    if (!s)
        s = run(j, &err);
    if (!s)
        s = report(j, &err);
    dfcl_bench_destroy(&j->bench);
    dfcl_device_close(&j->dev);
    free(j->seconds);
    free(j->alone);
    free(j->cpu);
    return s ? cli_fail(j->c, &err) : 0;
}

static struct job job_of(struct cli *c, const char *name, enum dfcl_bench_kind kind) {
    return (struct job){.c = c, .name = name, .warmup = 1, .weights = "f32", .pack = "auto",
                        .p = {.kind = kind, .batch = 1, .method = "difffit", .model = {.max_class_rows = 1}}};
}

#define DOMAINS_OPTION(domains)                                                                                                         \
    {"--domains", CLI_INT, domains, "N", "pictures of N domains in turn, and beside each run one with all in one domain (no domains)", 1, 1024}

int bench_forward(struct cli *c, int argc, char **argv) {
    struct job j = job_of(c, "forward", DFCL_BENCH_FORWARD);
    const struct cli_option own[] = {
        DOMAINS_OPTION(&j.p.domains),
        {"--output", CLI_PATH, &j.output, "FILE", "write what it computes as safetensors: out [B,2C,S,S]", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    return measure(&j, argc, argv, "forward [options]\n\nSeconds per image of a forward pass, memory, share of the peak measured before and after.",
                   own);
}

int bench_train(struct cli *c, int argc, char **argv) {
    struct job j = job_of(c, "train", DFCL_BENCH_TRAIN);
    const struct cli_option own[] = {
        {"--method", CLI_CHOICE, &j.p.method, "difffit|difffit-block|bitfit|full", "which parameters are trained and added (difffit)", 0, 0},
        {"--micro-batch", CLI_INT, &j.p.micro_batch, "B", "pictures per pass (as `difffit-cl train` chooses); divides the batch", 1, 65536},
        CLI_ACTIVATIONS_OPTION(&j.activations),
        {"--recompute", CLI_CHOICE, &j.p.recompute, "auto|none|cheap|block", "what backward runs again to save memory (auto: as little as memory allows)", 0, 0},
        {"--max-memory", CLI_SIZE, &j.p.max_memory, "SIZE", "device memory to stay within (8G, 800M): passes and --recompute follow", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    return measure(&j, argc, argv, "train [options]\n\nSeconds per image and optimizer step: noise, forward, loss, backward, AdamW, moving average.",
                   own);
}

int bench_sample(struct cli *c, int argc, char **argv) {
    struct job j = job_of(c, "sample", DFCL_BENCH_SAMPLE);
    struct dfcl_sample_params *sp = &j.p.sample;
    j.sampler = "ddim";
    sp->steps = 10;
    sp->cfg = 4;
    const struct cli_option own[] = {
        {"--sampler", CLI_CHOICE, &j.sampler, "ddim|ddpm|dpm++", "sampler (ddim)", 0, 0},
        {"--steps", CLI_INT, &sp->steps, "N", "sampling steps (10)", 1, 1000},
        {"--cfg", CLI_DBL, &sp->cfg, "W", "guidance scale (4; 1: none)", 0, 100},
        DOMAINS_OPTION(&j.p.domains),
        {"--max-memory", CLI_SIZE, &j.p.max_memory, "SIZE", "device memory to stay within (8G, 800M)", 0, 0},
        {"--output", CLI_PATH, &j.output, "FILE", "write the latents as safetensors: out [B,C,S,S]", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    return measure(&j, argc, argv, "sample [options]\n\nSeconds per image of drawing a batch, all steps.", own);
}
