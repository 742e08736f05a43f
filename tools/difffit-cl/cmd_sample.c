#include "commands.h"
#include "sample_out.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static void on_progress(void *user, int done, int total, double seconds) {
    const struct sample_out *o = user;
    char eta[32];
    cli_eta(done ? seconds * (total - done) / done : -1, eta, sizeof eta);
    cli_progress(o->c, done == total, "sampling %d%%  %.1f image-steps/s  %s left", (int)(100.0 * done / (total ? total : 1)),
                 seconds > 0 ? done / seconds : 0.0, eta);
}

static int on_stop(void *user) {
    (void)user;
    return cli_interrupted();
}

static dfcl_status on_ready(void *user, int first, int count, const float *latents, dfcl_error *err) {
    (void)first;
    return sample_out_add(user, count, latents, err);
}

/* "0,3,7" or names, separated by commas; "all"; "null". */
static dfcl_status parse_classes(const dfcl_model *m, int domain, const char *text, int **out, int *count, dfcl_error *err) {
    int k = dfcl_model_classes(m, domain), n = 0, cap = 1;
    for (const char *p = text; p && *p; p++)
        cap += *p == ',';
    if (!text || !strcmp(text, "all"))
        cap = k;
    int *ids = calloc((size_t)(cap > 0 ? cap : 1), sizeof *ids);
    char *copy = text ? strdup(text) : NULL;
    if (!ids || (text && !copy)) {
        free(ids);
        free(copy);
        err->status = DFCL_NOMEM;
        snprintf(err->msg, sizeof err->msg, "out of memory");
        return DFCL_NOMEM;
    }
    dfcl_status s = DFCL_OK;
    if (!text || !strcmp(text, "all")) {
        for (; n < k; n++)
            ids[n] = n;
    } else if (dfcl_model_find_class(m, domain, text, ids, NULL) == DFCL_OK) {
        n = 1; /* a name may have commas in it */
    } else {
        char *save = NULL;
        for (char *w = strtok_r(copy, ",", &save); w && !s; w = strtok_r(NULL, ",", &save)) {
            if (!strcmp(w, "null"))
                ids[n++] = k;
            else
                s = dfcl_model_find_class(m, domain, w, &ids[n++], err);
        }
    }
    free(copy);
    if (!s && n == 0) {
        err->status = DFCL_USAGE;
        snprintf(err->msg, sizeof err->msg, "--classes: expected ids or names separated by commas, or all, found '%s'", text ? text : "");
        s = DFCL_USAGE;
    }
    if (s) {
        free(ids);
        return s;
    }
    *out = ids;
    *count = n;
    return DFCL_OK;
}

/* "file" or "file:0.7"; a file of that whole name wins. */
static void split_strength(const char *text, char *path, size_t size, double *strength) {
    *strength = 1;
    snprintf(path, size, "%s", text);
    struct stat st;
    char *colon = strrchr(path, ':');
    if (!colon || stat(path, &st) == 0)
        return;
    char *end;
    double v = strtod(colon + 1, &end);
    if (end != colon + 1 && !*end && isfinite(v)) {
        *strength = v;
        *colon = 0;
    }
}

static dfcl_status read_noise(struct cli *c, const char *path, const char *key, const int64_t *want, int ndim, float **out, dfcl_error *err) {
    int64_t shape[8];
    int n;
    dfcl_status s = dfcl_tensor_read(c->ctx, path, key, out, shape, &n, err);
    if (s)
        return s;
    bool same = n == ndim;
    for (int i = 0; i < ndim && same; i++)
        same = shape[i] == want[i];
    if (same)
        return DFCL_OK;
    char found[128] = "", expected[128] = "";
    for (int i = 0; i < n; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%lld", i ? ", " : "", (long long)shape[i]);
    for (int i = 0; i < ndim; i++)
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%s%lld", i ? ", " : "", (long long)want[i]);
    err->status = DFCL_FORMAT;
    snprintf(err->msg, sizeof err->msg, "%s: %s: expected the shape [%s], found [%s]", path, key, expected, found);
    return DFCL_FORMAT;
}

int cmd_sample(struct cli *c, int argc, char **argv) {
    struct dfcl_model_params mp = {0};
    struct dfcl_sample_params sp = {.cfg = 1.0};
    struct cli_list deltas = {0};
    const char *classes = NULL, *sampler = "ddpm", *out = NULL, *vae = "none", *clip = "auto";
    const char *weights = NULL, *pack = NULL;
    const char *init_noise = NULL, *step_noise = NULL, *save_latents = NULL;
    int per_class = 4, columns = 0, zoom = 0;
    bool force = false;
    const struct cli_option options[] = {
        {"--model", CLI_STR, &mp.path, "FILE", "base: .pt, .safetensors or a diffusers folder (required)", 0, 0},
        {"--delta", CLI_LIST, &deltas, "F[:S]", "fine-tuned domain, with an optional strength (1)", 0, 0},
        {"--heads", CLI_INT, &mp.heads, "H", "attention heads, where the file does not say", 1, 1024},
        {"--weights-of", CLI_STR, &mp.which, "W", "training checkpoints: ema (default) or model", 0, 0},
        CLI_WEIGHTS_OPTIONS(&weights, &pack),
        {"--classes", CLI_STR, &classes, "LIST", "ids or names separated by commas, null, or all (default)", 0, 0},
        {"-n", CLI_INT, &per_class, "N", "pictures per class (4)", 1, 1000000},
        {"--sampler", CLI_STR, &sampler, "S", "ddpm (default), ddim, dpm++", 0, 0},
        {"--steps", CLI_INT, &sp.steps, "N", "sampling steps (ddpm 250, else 50)", 1, 1000},
        {"--spacing", CLI_STR, &sp.spacing, "S", "ddpm, ddim: even (default) or ddim: constant stride", 0, 0},
        {"--eta", CLI_DBL, &sp.eta, "X", "ddim: 0 (default) deterministic ... 1 ancestral", 0, 1},
        {"--cfg", CLI_DBL, &sp.cfg, "W", "guidance scale (1: none)", 0, 100},
        {"--cfg-channels", CLI_STR, &sp.cfg_channels, "3|all", "channels that are guided: 3 as the original, or all (3 for latents of 4)", 0, 0},
        {"--clip", CLI_STR, &clip, "on|off", "clamp the predicted picture to [-1,1] (on for pixel models)", 0, 0},
        {"--seed", CLI_U64, &sp.seed, "N", "seed (0)", 0, 0},
        {"--batch", CLI_INT, &sp.batch, "B", "pictures per pass (8)", 1, 65536},
        {"--max-memory", CLI_SIZE, &sp.max_memory, "SIZE", "device memory to stay within", 0, 0},
        {"--vae", CLI_STR, &vae, "none", "none: pixel models, or only --save-latents", 0, 0},
        {"--out", CLI_STR, &out, "PATH", "grid (NAME.png) or folder of numbered pictures", 0, 0},
        {"--columns", CLI_INT, &columns, "N", "columns of the grid (-n)", 1, 10000},
        {"--zoom", CLI_INT, &zoom, "N", "draw each pixel N times (small pictures are enlarged)", 1, 64},
        {"--init-noise", CLI_STR, &init_noise, "FILE", "safetensors with z [n,C,S,S] instead of the seed's noise", 0, 0},
        {"--step-noise", CLI_STR, &step_noise, "FILE", "safetensors with step_noise [steps,n,C,S,S]", 0, 0},
        {"--save-latents", CLI_STR, &save_latents, "FILE", "write latents [n,C,S,S] as safetensors", 0, 0},
        {"--force", CLI_FLAG, &force, NULL, "use a delta that was made on another base", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    cli_parse(c, argc, argv, "sample --model FILE [--delta FILE] --out PATH [options]\n\nDraws pictures. The same seed gives the same noise in any batch and on any device.",
              options, NULL, 0);
    if (!mp.path)
        return cli_usage(c, "--model is required");
    if (!out && !save_latents)
        return cli_usage(c, "--out or --save-latents is required");
    if (strcmp(vae, "none"))
        return cli_usage(c, "--vae: expected none, found '%s'", vae);
    if (!strcmp(sampler, "ddpm"))
        sp.sampler = DFCL_SAMPLER_DDPM;
    else if (!strcmp(sampler, "ddim"))
        sp.sampler = DFCL_SAMPLER_DDIM;
    else if (!strcmp(sampler, "dpm++"))
        sp.sampler = DFCL_SAMPLER_DPMPP_2M;
    else
        return cli_usage(c, "--sampler: expected ddpm, ddim or dpm++, found '%s'", sampler);
    if (!strcmp(clip, "on"))
        sp.clip = 1;
    else if (!strcmp(clip, "off"))
        sp.clip = -1;
    else if (strcmp(clip, "auto"))
        return cli_usage(c, "--clip: expected on or off, found '%s'", clip);
    if (sp.eta > 0 && sp.sampler != DFCL_SAMPLER_DDIM)
        return cli_usage(c, "--eta is for --sampler ddim, found %s", sampler);
    if (sp.spacing && sp.sampler == DFCL_SAMPLER_DPMPP_2M)
        return cli_usage(c, "--spacing is for ddpm and ddim: dpm++ has its own");
    bool grid = out && sample_out_is_grid(out);
    static const char *const others[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".npz"};
    const char *dot = out ? strrchr(out, '.') : NULL;
    for (size_t i = 0; dot && i < sizeof others / sizeof *others; i++)
        if (!strcasecmp(dot, others[i]))
            return cli_usage(c, "--out: expected NAME.png or a folder, found '%s'", out);
    if (!grid && (columns || zoom))
        return cli_usage(c, "--columns and --zoom are for a grid (--out NAME.png)");
    if (deltas.count > 1)
        return cli_usage(c, "--delta: expected one delta, found %d", deltas.count);
    int code = cli_weights(c, weights, pack, &mp);
    if (code)
        return code;
    if (!sp.steps)
        sp.steps = sp.sampler == DFCL_SAMPLER_DDPM ? 250 : 50;

    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    dfcl_model *model = NULL;
    int *ids = NULL, id_count = 0, domain = 0;
    struct dfcl_sample_request *requests = NULL;
    float *z = NULL, *zs = NULL;
    struct sample_out to = {.c = c, .path = out, .latents_path = save_latents};
    cli_catch_signals();
    dfcl_status s = sample_out_check(&to, &err);
    if (!s)
        s = cli_open_device(c, &dev, &err);
    if (!s)
        s = dfcl_model_open(&model, dev, &mp, &err);
    if (!s && deltas.count) {
        char path[4096];
        double strength;
        split_strength(deltas.items[0], path, sizeof path, &strength);
        s = dfcl_model_load_delta(model, path, (float)strength, force, &domain, &err);
    }
    if (!s)
        s = parse_classes(model, domain, classes, &ids, &id_count, &err);
    if (s)
        goto out;
    const struct dfcl_model_shape *shape = dfcl_model_get_shape(model);
    if (out && shape->channels != 1 && shape->channels != 3) {
        s = cli_usage(c, "the model works on latents of %d channels: pictures need a decoder; write them with --save-latents", shape->channels);
        err.status = s;
        goto quiet_out;
    }
    int64_t n64 = (int64_t)id_count * per_class;
    if (n64 > 1000000) {
        s = cli_usage(c, "%lld pictures are too many for one call (at most 1000000)", (long long)n64);
        goto quiet_out;
    }
    int n = (int)n64;
    requests = calloc((size_t)n, sizeof *requests);
    if (!requests) {
        err.status = s = DFCL_NOMEM;
        snprintf(err.msg, sizeof err.msg, "out of memory");
        goto out;
    }
    for (int i = 0; i < n; i++)
        requests[i] = (struct dfcl_sample_request){.domain = domain, .class_id = ids[i / per_class], .number = (uint32_t)i};
    const int64_t want[5] = {sp.steps, n, shape->channels, shape->input, shape->input};
    if (init_noise && (s = read_noise(c, init_noise, "z", want + 1, 4, &z, &err)) != DFCL_OK)
        goto out;
    if (step_noise && (s = read_noise(c, step_noise, "step_noise", want, 5, &zs, &err)) != DFCL_OK)
        goto out;
    sp.init_noise = z;
    sp.step_noise = zs;
    char steps[16], seed[32], cfg[32], eta[32];
    snprintf(steps, sizeof steps, "%d", sp.steps);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)sp.seed);
    snprintf(cfg, sizeof cfg, "%g", sp.cfg);
    snprintf(eta, sizeof eta, "%g", sp.eta);
    const char *text[] = {"Software", "difffit-cl", "version", dfcl_version(), "base", dfcl_model_hash(model), "weights",
                          weights ? weights : "f32", "delta", deltas.count ? deltas.items[0] : "", "classes", classes ? classes : "all", "sampler", sampler, "steps", steps,
                          "spacing", sp.spacing ? sp.spacing : "even", "eta", eta, "cfg", cfg, "seed", seed, NULL};
    to.n = n;
    to.channels = shape->channels;
    to.side = shape->input;
    to.columns = columns ? columns : per_class;
    to.zoom = zoom ? zoom : shape->input <= 32 ? 4 : shape->input <= 64 ? 2 : 1;
    to.text = text;
    to.requests = requests;
    sp.progress = on_progress;
    sp.progress_user = &to;
    sp.stop = on_stop;
    sp.ready = on_ready;
    s = sample_out_begin(&to, &err);
    if (!s)
        s = dfcl_sample(model, &sp, requests, n, NULL, &err);
    if (!s || s == DFCL_INTERRUPTED) {
        dfcl_error late = {0};
        dfcl_status end = sample_out_end(&to, s ? &late : &err);
        s = s ? s : end;
        if (late.status)
            cli_fail(c, &late);
        else if (s && to.done)
            snprintf(err.msg + strlen(err.msg), sizeof err.msg - strlen(err.msg), " and kept");
    }
    if (!s && !c->quiet)
        printf("%s\n", out ? out : save_latents);
out:
    if (s)
        s = (dfcl_status)cli_fail(c, &err);
quiet_out:
    dfcl_tensor_free(c->ctx, z);
    dfcl_tensor_free(c->ctx, zs);
    sample_out_free(&to);
    free(requests);
    free(ids);
    dfcl_model_close(&model);
    dfcl_device_close(&dev);
    return s;
}
