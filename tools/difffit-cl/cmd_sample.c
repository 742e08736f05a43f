#include "commands.h"
#include "sample_out.h"
#include "sample_preview.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

/* A call of the library: pictures whose deltas are loaded together. */
struct group {
    struct sample_out *out;
    struct sample_preview *preview;
    const struct dfcl_sample_request *requests;
    const struct sample_line *const *lines;
    int steps, before; /* pictures of the groups before */
    double start;
};

static void on_progress(void *user, int done, int total, double seconds) {
    const struct group *g = user;
    double all = (double)g->out->n * g->steps, so_far = (double)g->before * g->steps + done;
    char eta[32];
    seconds = cli_now() - g->start;
    cli_eta(so_far > 0 ? seconds * (all - so_far) / so_far : -1, eta, sizeof eta);
    cli_progress(g->out->c, so_far == all, "sampling %d%%  %.1f image-steps/s  %s left", (int)(100.0 * so_far / all),
                 seconds > 0 ? so_far / seconds : 0.0, eta);
}

static int on_stop(void *user) {
    (void)user;
    return cli_interrupted();
}

static dfcl_status on_ready(void *user, int first, int count, const float *latents, dfcl_error *err) {
    const struct group *g = user;
    return sample_out_add(g->out, count, latents, g->requests + first, g->lines + first, err);
}

static dfcl_status on_preview(void *user, int step, int steps, int first, int count, const float *x0, dfcl_error *err) {
    const struct group *g = user;
    g->preview->before = g->before;
    return sample_preview_write(g->preview, step, steps, first, count, x0, err);
}

/* Group by group. */
static dfcl_status draw(struct sample_out *to, struct sample_preview *preview, dfcl_model *model, struct sample_requests *r,
                        struct dfcl_sample_params *sp, bool force, dfcl_error *err) {
    struct dfcl_sample_request *q = calloc((size_t)to->n, sizeof *q);
    const struct sample_line **lines = calloc((size_t)to->n, sizeof *lines);
    struct group g = {.out = to, .preview = preview, .requests = q, .lines = lines, .steps = sp->steps, .start = cli_now()};
    dfcl_status s = DFCL_OK;
    if (!q || !lines) {
        s = err->status = DFCL_NOMEM;
        snprintf(err->msg, sizeof err->msg, "out of memory");
    }
    sp->progress = on_progress;
    sp->progress_user = &g;
    sp->stop = on_stop;
    sp->ready = on_ready;
    sp->preview = on_preview;
    for (int64_t at = 0; !s && at < to->n;) {
        int count;
        g.before = (int)at;
        s = sample_requests_next(r, model, force, &at, to->n, q, lines, &count, err);
        if (!s)
            s = dfcl_sample(model, sp, q, count, NULL, err);
    }
    if (s == DFCL_INTERRUPTED)
        snprintf(err->msg, sizeof err->msg, "sampling: stopped, %d of %d pictures done%s", to->done, to->n, to->done ? " and kept" : "");
    free(q);
    free(lines);
    return s;
}

/* ---- a picture's own settings ---- */

/* Text chunk of a picture, and the option that it stands for. */
static const struct {
    const char *key, *option;
} kept[] = {{"model", "--model"},     {"heads", "--heads"},     {"weights-of", "--weights-of"},     {"weights", "--weights"},
            {"sampler", "--sampler"}, {"steps", "--steps"},     {"spacing", "--spacing"},           {"eta", "--eta"},
            {"clip", "--clip"},       {"vae", "--vae"},         {"vae-scale", "--vae-scale"},       {"cfg-channels", "--cfg-channels"},
            {"guidance", "--guidance"}, {"cfg-interval", "--cfg-interval"}, {"input", "--input"},         {"pos-scale", "--pos-scale"}};
enum { KEPT = sizeof kept / sizeof *kept };

struct picture {
    char *value[KEPT];
    char *base, *decoder, *request, *layout, *columns, *zoom, *noise;
};

static dfcl_status picture_read(struct picture *p, struct cli *c, const char *path, dfcl_error *err) {
    const struct {
        const char *key;
        char **to;
    } more[] = {{"base", &p->base}, {"request", &p->request}, {"layout", &p->layout}, {"columns", &p->columns}, {"zoom", &p->zoom},
                {"noise", &p->noise}, {"decoder", &p->decoder}};
    dfcl_status s = DFCL_OK;
    for (size_t i = 0; i < KEPT && !s; i++)
        s = dfcl_png_read_text(c->ctx, path, kept[i].key, &p->value[i], err);
    for (size_t i = 0; i < sizeof more / sizeof *more && !s; i++)
        s = dfcl_png_read_text(c->ctx, path, more[i].key, more[i].to, err);
    if (!s && (!p->request || !p->base || p->noise)) {
        s = err->status = DFCL_FORMAT;
        snprintf(err->msg, sizeof err->msg, p->noise ? "%s: was drawn with noise from a file, which it does not hold"
                                                     : "%s: expected a picture drawn by this program, found none of its text", path);
    }
    return s;
}

static void picture_free(struct picture *p, const dfcl_context *ctx) {
    char *const all[] = {p->base, p->decoder, p->request, p->layout, p->columns, p->zoom, p->noise};
    for (size_t i = 0; i < KEPT; i++)
        dfcl_text_free(ctx, p->value[i]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        dfcl_text_free(ctx, all[i]);
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

/* The decoder for the model's latents; *max_memory, what the sampler may take, leaves room for it. */
static dfcl_status open_decoder(dfcl_vae **out, dfcl_device *dev, struct dfcl_vae_params *vp, const struct dfcl_model_shape *shape,
                                uint64_t *max_memory, dfcl_error *err) {
    struct dfcl_vae_memory m;
    vp->max_memory = *max_memory;
    dfcl_status s = dfcl_vae_open(out, dev, vp, err);
    if (s)
        return s;
    const struct dfcl_vae_shape *v = dfcl_vae_get_shape(*out);
    if (v->latent_channels != shape->channels || (v->channels != 1 && v->channels != 3)) {
        snprintf(err->msg, sizeof err->msg, "%s: expected latents of %d channels and pictures of 1 or 3, found %d and %d", vp->path, shape->channels,
                 v->latent_channels, v->channels);
        return err->status = DFCL_FORMAT;
    }
    s = dfcl_vae_measure(*out, 0, shape->input * v->factor, shape->input_width * v->factor, &m, err);
    uint64_t limit = *max_memory ? *max_memory : dfcl_device_get_info(dev)->memory;
    /* Whole pictures where that is a quarter of the memory at most, else bands of about that size. */
    uint64_t room = m.whole <= limit / 4 ? m.whole : m.least > limit / 4 ? m.least : limit / 4;
    if (!s && limit)
        *max_memory = limit > m.weights + room ? limit - m.weights - room : 1;
    return s;
}

int cmd_sample(struct cli *c, int argc, char **argv) {
    struct dfcl_model_params mp = {0};
    struct dfcl_sample_params sp = {.cfg = 1.0};
    struct dfcl_vae_params vp = {.only_decoder = 1};
    struct cli_list deltas = {0};
    const char *requests_path = NULL, *from = NULL, *guidance = "class", *interval = NULL;
    const char *classes = NULL, *sampler = "ddpm", *out = NULL, *vae = "none", *clip = "auto";
    const char *weights = NULL, *pack = NULL;
    const char *init_noise = NULL, *step_noise = NULL, *save_latents = NULL, *preview_from = NULL;
    int per_class = 0, columns = 0, zoom = 0;
    struct cli_extent input = {0, 0};
    bool force = false;
    const struct cli_option options[] = {
        {"--model", CLI_PATH, &mp.path, "FILE", "base: .pt, .safetensors or a diffusers folder (required)", 0, 0},
        {"--delta", CLI_LIST, &deltas, "F[:S]", "fine-tuned domain, with an optional strength (1); several are blended", 0, 0},
        {"--requests", CLI_PATH, &requests_path, "FILE", "requests, one a line: delta, class, seed, guidance, count ... (docs/formats.md)", 0, 0},
        {"--from", CLI_PATH, &from, "PNG", "draw what this picture says of itself again", 0, 0},
        {"--max-domains", CLI_INT, &mp.max_domains, "N", "deltas and blends in memory at a time (all of them, at most 64)", 1, 4096},
        {"--heads", CLI_INT, &mp.heads, "H", "attention heads, where the file does not say", 1, 1024},
        {"--weights-of", CLI_CHOICE, &mp.which, "ema|model", "which weights of a training checkpoint (ema)", 0, 0},
        CLI_WEIGHTS_OPTIONS(&weights, &pack),
        CLI_RESOLUTION_OPTIONS(&input, &mp, "as the deltas were trained, else the base's"),
        {"--classes", CLI_STR, &classes, "LIST", "ids or names separated by commas, null, or all (default)", 0, 0},
        {"-n", CLI_INT, &per_class, "N", "pictures per class (4), or per request (1)", 1, 1000000},
        {"--sampler", CLI_CHOICE, &sampler, "ddpm|ddim|dpm++", "sampler (ddpm)", 0, 0},
        {"--steps", CLI_INT, &sp.steps, "N", "sampling steps (ddpm 250, else 50)", 1, 1000},
        {"--spacing", CLI_CHOICE, &sp.spacing, "even|ddim", "ddpm, ddim: how steps are chosen (even); ddim: constant stride", 0, 0},
        {"--eta", CLI_DBL, &sp.eta, "X", "ddim: 0 (default) deterministic ... 1 ancestral", 0, 1},
        {"--cfg", CLI_DBL, &sp.cfg, "W", "guidance scale (1: none)", 0, 100},
        {"--cfg-channels", CLI_CHOICE, &sp.cfg_channels, "3|all", "channels that are guided: 3 as the original, or all (3 for latents of 4)", 0, 0},
        {"--guidance", CLI_CHOICE, &guidance, "class|domain", "reference: the domain's null class (default), or the base's", 0, 0},
        {"--cfg-interval", CLI_STR, &interval, "LO,HI", "guidance only at noise levels LO < sigma <= HI (everywhere)", 0, 0},
        {"--clip", CLI_CHOICE, &clip, "auto|on|off", "clamp the predicted picture to [-1,1] (auto: on for pixel models)", 0, 0},
        {"--seed", CLI_U64, &sp.seed, "N", "seed (0)", 0, 0},
        {"--batch", CLI_INT, &sp.batch, "B", "pictures per pass (8)", 1, 65536},
        {"--max-memory", CLI_SIZE, &sp.max_memory, "SIZE", "device memory to stay within", 0, 0},
        {"--vae", CLI_PATH, &vae, "none|DIR", "autoencoder that makes pictures of latents: a diffusers folder, its file, or a .ckpt", 0, 0},
        {"--vae-scale", CLI_DBL, &vp.scale, "X", "latents are X times the autoencoder's (its config.json, else 0.18215)", 0, 1e6},
        {"--out", CLI_PATH, &out, "PATH", "grid (NAME.png), samples for an evaluator (NAME.npz), or a folder of pictures", 0, 0},
        {"--columns", CLI_INT, &columns, "N", "columns of the grid (-n)", 1, 10000},
        {"--zoom", CLI_INT, &zoom, "N", "draw each pixel N times (small pictures are enlarged)", 1, 64},
        {"--preview-every", CLI_INT, &sp.preview_every, "N", "every N steps a grid of the pictures as predicted so far: OUT.preview.png, without --vae too", 1, 1000},
        {"--preview-from", CLI_PATH, &preview_from, "PATH", "cache of latents, delta or base whose approximation previews use (the delta's, else the base's)", 0, 0},
        {"--init-noise", CLI_PATH, &init_noise, "FILE", "safetensors with z [n,C,H,W] instead of the seed's noise", 0, 0},
        {"--step-noise", CLI_PATH, &step_noise, "FILE", "safetensors with step_noise [steps,n,C,H,W]", 0, 0},
        {"--save-latents", CLI_PATH, &save_latents, "FILE", "write latents [n,C,H,W] as safetensors", 0, 0},
        {"--force", CLI_FLAG, &force, NULL, "use a delta that was made on another base", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    static const char usage[] =
        "sample --model FILE [--delta FILE] --out PATH [options]\n       difffit-cl sample --from PNG --out PATH\n\nDraws pictures. The same seed gives the "
        "same noise in any batch and on any device.\nPictures are written one by one as their batches are done; an interrupted run keeps them.";
    if (cli_parse(c, argc, argv, usage, options, NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    struct picture pic = {0};
    struct sample_requests r = {0};
    dfcl_device *dev = NULL;
    dfcl_model *model = NULL;
    dfcl_vae *decoder = NULL;
    int *ids = NULL, id_count = 0, code = 0;
    double pos_step = 0; /* --pos-scale, before the deltas have a say */
    float *z = NULL, *zs = NULL;
    struct sample_out to = {.c = c};
    struct sample_preview preview = {.c = c};
    dfcl_status s = DFCL_OK;
    if (from) {
        static const char *const fixed[] = {"--delta", "--classes", "--requests", "-n", "--seed", "--cfg", "--init-noise", "--step-noise"};
        for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
            if (cli_given(c, fixed[i]) == CLI_WORDS)
                return cli_usage(c, "%s: --from takes this from the picture", fixed[i]);
        if ((s = picture_read(&pic, c, from, &err)) != DFCL_OK)
            goto out;
        /* the picture's settings, then the flags, which win */
        const char *words[2 * KEPT + CLI_LIST_MAX + 1];
        int n = 0;
        words[n++] = argv[0];
        for (size_t i = 0; i < KEPT; i++)
            if (pic.value[i] && *pic.value[i]) {
                words[n++] = kept[i].option;
                words[n++] = pic.value[i];
            }
        for (int i = 1; i < argc && n < (int)(sizeof words / sizeof *words); i++)
            words[n++] = argv[i];
        if (cli_parse(c, n, (char **)words, usage, options, NULL, 0) < 0) {
            code = c->code;
            goto quiet_out;
        }
        /* what it takes from the picture, no other source has a say in */
        deltas.count = per_class = 0;
        requests_path = classes = init_noise = step_noise = NULL;
    }
    if (!mp.path)
        return cli_usage(c, "--model is required");
    if (!out && !save_latents)
        return cli_usage(c, "--out or --save-latents is required");
    if (!out && cli_given(c, "--vae") == CLI_WORDS && strcmp(vae, "none"))
        return cli_usage(c, "--vae makes pictures of latents: it goes with --out");
    sp.sampler = !strcmp(sampler, "ddpm") ? DFCL_SAMPLER_DDPM : !strcmp(sampler, "ddim") ? DFCL_SAMPLER_DDIM : DFCL_SAMPLER_DPMPP_2M;
    sp.clip = !strcmp(clip, "on") ? 1 : !strcmp(clip, "off") ? -1 : 0;
    if (sp.eta > 0 && sp.sampler != DFCL_SAMPLER_DDIM)
        return cli_usage(c, "--eta is for --sampler ddim, found %s", sampler);
    if (sp.spacing && sp.sampler == DFCL_SAMPLER_DPMPP_2M)
        return cli_usage(c, "--spacing is for ddpm and ddim: dpm++ has its own");
    to.path = out;
    to.latents_path = save_latents;
    to.layout = out ? sample_layout_of(out) : SAMPLE_FOLDER;
    static const char *const others[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp"};
    const char *dot = out ? strrchr(out, '.') : NULL;
    for (size_t i = 0; dot && i < sizeof others / sizeof *others; i++)
        if (!strcasecmp(dot, others[i]))
            return cli_usage(c, "--out: expected NAME.png, NAME.npz or a folder, found '%s'", out);
    if (to.layout == SAMPLE_GRID && pic.layout && !strcmp(pic.layout, "picture") && !columns && !zoom)
        to.layout = SAMPLE_PICTURE; /* one picture comes back as it was */
    if (to.layout != SAMPLE_GRID && (columns || zoom))
        return cli_usage(c, "--columns and --zoom are for a grid (--out NAME.png)");
    if (deltas.count > REQUEST_DELTAS)
        return cli_usage(c, "--delta: expected at most %d to blend, found %d", (int)REQUEST_DELTAS, deltas.count);
    if (preview_from && !sp.preview_every)
        return cli_usage(c, "--preview-from goes with --preview-every");
    if (requests_path && classes)
        return cli_usage(c, "--classes: --requests names the classes");
    if (requests_path && (init_noise || step_noise))
        return cli_usage(c, "--init-noise and --step-noise do not go with --requests");
    sp.guidance = !strcmp(guidance, "domain") ? DFCL_GUIDANCE_DOMAIN : DFCL_GUIDANCE_CLASS;
    char rest;
    if (interval && (sscanf(interval, "%lf,%lf%c", &sp.cfg_lo, &sp.cfg_hi, &rest) != 2 || !(sp.cfg_lo >= 0 && sp.cfg_hi > sp.cfg_lo && isfinite(sp.cfg_hi))))
        return cli_usage(c, "--cfg-interval: expected LO,HI with 0 <= LO < HI, found '%s'", interval);
    cli_weights(c, weights, pack, &mp);
    if (!sp.steps)
        sp.steps = sp.sampler == DFCL_SAMPLER_DDPM ? 250 : 50;

    /* A line for everything that is asked for; the flags give what a line leaves out. Without a file there is one line, spread over the classes later. */
    struct sample_line defaults = {.seed = sp.seed, .cfg = sp.cfg, .count = per_class ? per_class : requests_path ? 1 : 4, .deltas = deltas.count};
    for (int i = 0; i < deltas.count; i++)
        defaults.delta[i] = (char *)(uintptr_t)deltas.items[i];
    cli_catch_signals();
    s = sample_out_check(&to, &err);
    if (!s && requests_path)
        s = sample_requests_read(&r, requests_path, &defaults, &err);
    else if (!s)
        s = sample_requests_parse(&r, from ? pic.request : "class=null", from ? from : "--delta", &defaults, &err);
    if (!s)
        s = sample_requests_group(&r, &err);
    if (!s && !mp.max_domains)
        mp.max_domains = r.set_count < 1 ? 1 : r.set_count < 64 ? r.set_count : 64;
    if (!s)
        s = cli_open_device(c, &dev, &err);
    cli_resolution(&input, &mp);
    pos_step = mp.pos_step;
    if (!s && mp.input <= 0 && !(mp.pos_step > 0))
        s = sample_requests_resolution(&r, c, &mp, &err);
    if (!s)
        s = dfcl_model_open(&model, dev, &mp, &err);
    if (!s && pic.base && strcmp(pic.base, dfcl_model_hash(model)) && !force) {
        s = err.status = DFCL_FORMAT;
        snprintf(err.msg, sizeof err.msg, "%s: drawn with the base %s, but %s is %s; use the right base, or force it", from, pic.base, mp.path,
                 dfcl_model_hash(model));
    }
    if (!s)
        s = sample_requests_resolve(&r, c, model, force, &err);
    if (!s && !requests_path && !from && !(s = parse_classes(model, r.set_count ? r.sets[0].domain : 0, classes, &ids, &id_count, &err))) {
        if ((int64_t)id_count * defaults.count > 1000000) {
            code = cli_usage(c, "%lld pictures are too many for one call (at most 1000000)", (long long)id_count * defaults.count);
            goto quiet_out;
        }
        s = sample_requests_spread(&r, model, ids, id_count, &err);
    }
    if (s)
        goto out;
    const struct dfcl_model_shape *shape = dfcl_model_get_shape(model);
    bool latent = shape->channels != 1 && shape->channels != 3;
    if (out && latent && !strcmp(vae, "none")) {
        code = cli_usage(c, "the model works on latents of %d channels: pictures need --vae; without it latents are written with --save-latents", shape->channels);
        goto quiet_out;
    }
    preview.channels = shape->channels;
    preview.height = shape->input;
    preview.width = shape->input_width;
    sample_preview_path(&preview, out ? out : save_latents);
    if (sp.preview_every && (s = sample_preview_find(&preview, preview_from, mp.path, &r, &err)) != DFCL_OK)
        goto out;
    to.channels = to.latent_channels = shape->channels;
    to.height = to.latent_height = shape->input;
    to.width = to.latent_width = shape->input_width;
    if (out && strcmp(vae, "none")) {
        if (!latent) {
            code = cli_usage(c, "--vae: the model works on pictures (%d channels), not on latents", shape->channels);
            goto quiet_out;
        }
        vp.path = vae;
        if ((s = open_decoder(&decoder, dev, &vp, shape, &sp.max_memory, &err)) != DFCL_OK)
            goto out;
        if (pic.decoder && strcmp(pic.decoder, dfcl_vae_decoder_hash(decoder)) && !force) {
            s = err.status = DFCL_FORMAT;
            snprintf(err.msg, sizeof err.msg, "%s: decoded with the autoencoder %s, but %s is %s; use the right one, or force it", from, pic.decoder, vae,
                     dfcl_vae_decoder_hash(decoder));
            goto out;
        }
        to.vae = decoder;
        to.channels = dfcl_vae_get_shape(decoder)->channels;
        to.height = shape->input * dfcl_vae_get_shape(decoder)->factor;
        to.width = shape->input_width * dfcl_vae_get_shape(decoder)->factor;
    }
    to.n = (int)r.pictures;
    const int64_t want[5] = {sp.steps, to.n, shape->channels, shape->input, shape->input_width};
    if (init_noise && (s = cli_read_tensor(c, init_noise, "z", want + 1, 4, &z, &err)) != DFCL_OK)
        goto out;
    if (step_noise && (s = cli_read_tensor(c, step_noise, "step_noise", want, 5, &zs, &err)) != DFCL_OK)
        goto out;
    sp.init_noise = z;
    sp.step_noise = zs;
    char steps[16], eta[32], heads[16], scale[32], side[32], step[32];
    snprintf(steps, sizeof steps, "%d", sp.steps);
    snprintf(eta, sizeof eta, "%.17g", sp.eta);
    snprintf(heads, sizeof heads, "%d", mp.heads);
    snprintf(scale, sizeof scale, "%.17g", vp.scale);
    snprintf(side, sizeof side, input.width == input.height ? "%d" : "%dx%d", input.width, input.height);
    snprintf(step, sizeof step, "%.17g", pos_step);
    const char *const pairs[][2] = {{"Software", "difffit-cl"},
                                    {"version", dfcl_version()},
                                    {"base", dfcl_model_hash(model)},
                                    {"model", mp.path},
                                    {"heads", mp.heads ? heads : NULL},
                                    {"weights-of", mp.which},
                                    {"input", input.height ? side : NULL},
                                    {"pos-scale", pos_step > 0 ? step : NULL},
                                    {"weights", weights},
                                    {"sampler", sampler},
                                    {"steps", steps},
                                    {"spacing", sp.spacing},
                                    {"eta", sp.eta > 0 ? eta : NULL},
                                    {"clip", sp.clip ? clip : NULL},
                                    {"vae", decoder ? vae : NULL},
                                    {"vae-scale", vp.scale > 0 ? scale : NULL},
                                    {"decoder", decoder ? dfcl_vae_decoder_hash(decoder) : NULL},
                                    {"cfg-channels", sp.cfg_channels},
                                    {"guidance", guidance},
                                    {"cfg-interval", interval},
                                    {"noise", z || zs ? "given" : NULL}};
    const char *text[2 * sizeof pairs / sizeof *pairs + 1];
    size_t k = 0;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i][1]) {
            text[k++] = pairs[i][0];
            text[k++] = pairs[i][1];
        }
    text[k] = NULL;
    const int shorter = to.height < to.width ? to.height : to.width;
    to.columns = columns ? columns : pic.columns ? atoi(pic.columns) : requests_path ? 8 : defaults.count;
    to.zoom = zoom ? zoom : pic.zoom ? atoi(pic.zoom) : shorter <= 32 ? 4 : shorter <= 64 ? 2 : 1;
    preview.columns = to.columns < 8 ? to.columns : 8;
    preview.of = to.n;
    to.text = text;
    to.requests = &r;
    s = sample_out_begin(&to, &err);
    if (!s)
        s = draw(&to, &preview, model, &r, &sp, force, &err);
    if (!s || s == DFCL_INTERRUPTED) {
        dfcl_error late = {0};
        dfcl_status end = sample_out_end(&to, s ? &late : &err);
        s = s ? s : end;
        if (late.status)
            cli_fail(c, &late);
    }
    if (!s && !c->quiet)
        printf("%s\n", out ? out : save_latents);
out:
    if (s)
        code = cli_fail(c, &err);
quiet_out:
    picture_free(&pic, c->ctx);
    dfcl_tensor_free(c->ctx, z);
    dfcl_tensor_free(c->ctx, zs);
    sample_out_free(&to);
    sample_requests_free(&r);
    free(ids);
    dfcl_vae_close(&decoder);
    dfcl_model_close(&model);
    dfcl_device_close(&dev);
    return code;
}
