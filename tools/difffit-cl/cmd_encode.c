#include "commands.h"

#include <string.h>

int cmd_encode(struct cli *c, int argc, char **argv) {
    enum { PREVIEW = 8 };
    struct dfcl_encode_params p = {0};
    const char *preview = NULL;
    struct cli_extent size = {0, 0};
    bool flip = false, skip_bad = false;
    const struct cli_option options[] = {
        {"--vae", CLI_PATH, &p.vae, "DIR", "autoencoder: a diffusers folder, its .safetensors or .bin, or an original .ckpt (required)", 0, 0},
        {"--data", CLI_PATH, &p.data, "DIR", "image folder, a sub-folder a class (required)", 0, 0},
        {"--out", CLI_PATH, &p.out, "CACHE", "folder for the latents: new, or gone on with (required)", 0, 0},
        {"--size", CLI_EXTENT, &size, "N|WxH", "side, or width x height, that pictures are cropped to (256)", 8, 32768},
        CLI_PICTURE_OPTIONS(&p.crop, &p.alpha, &skip_bad),
        {"--seed", CLI_U64, &p.seed, "N", "seed of random crops, one for each picture (0)", 0, 0},
        {"--flip", CLI_FLAG, &flip, NULL, "the latents of the mirrored pictures too, for `train --flip`", 0, 0},
        {"--dtype", CLI_CHOICE, &p.dtype, "f32|f16|bf16", "type of what is stored (f32)", 0, 0},
        {"--save-every", CLI_DBL, &p.save_seconds, "SECONDS", "work that a kill may cost (60)", 0.01, 86400},
        {"--preview", CLI_PATH, &preview, "PNG", "at the end, a grid: pictures, and what the decoder makes of their latents", 0, 0},
        {"--max-memory", CLI_SIZE, &p.max_memory, "SIZE", "device memory to stay within (8G, 800M): large pictures go through in bands", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
              "encode --vae DIR --data DIR --out CACHE [options]\n\nTurns a folder of pictures into a cache of latents that `train --data CACHE` draws from. Ctrl-C saves; the same\n"
              "command goes on, and when the folder has changed encodes what is new and drops what is gone.",
              options, NULL, 0) < 0)
        return c->code;
    if (!p.vae || !p.data || !p.out)
        return cli_usage(c, "--vae, --data and --out are required");
    if (p.seed && (!p.crop || strcmp(p.crop, "random")))
        return cli_usage(c, "--seed goes with --crop random");
    p.size = size.height;
    p.size_width = size.width;
    p.flip = flip;
    p.skip_bad = skip_bad;
    p.preview = preview != NULL;

    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    dfcl_encoder *e = NULL;
    int code = 0, done = 0;
    struct dfcl_encode_progress g = {0};
    cli_catch_signals();
    dfcl_status s = cli_open_device(c, &dev, &err);
    if (!s)
        s = dfcl_encoder_create(&e, dev, &p, &err);
    while (!s && !done) {
        char eta[32], bad[48] = "";
        s = dfcl_encoder_step(e, &g, &done, &err);
        if (s)
            break;
        cli_eta(g.images_per_second > 0 ? (double)(g.total - g.done) / g.images_per_second : 0, eta, sizeof eta);
        if (g.bad)
            snprintf(bad, sizeof bad, "  %lld bad files left out", (long long)g.bad);
        cli_progress(c, done, "picture %lld/%lld  %.2f images/s  %s left%s", (long long)g.done, (long long)g.total, g.images_per_second, eta, bad);
        if (!done && cli_interrupted()) {
            s = dfcl_encoder_save(e, &err);
            if (!s) {
                cli_progress(c, true, "interrupted after %lld of %lld pictures; saved. The same command goes on", (long long)g.done, (long long)g.total);
                code = cli_interrupted();
            }
            goto out;
        }
    }
    if (!s)
        s = dfcl_encoder_finish(e, &err);
    if (!s && c->verbose && g.plan)
        fprintf(stderr, "%s\n", g.plan);
    if (!s && !c->quiet)
        fprintf(stderr, "%lld pictures encoded, %lld kept, %lld bad\n", (long long)g.encoded, (long long)g.kept, (long long)g.bad);
    if (!s && preview)
        s = dfcl_encoder_preview(e, preview, PREVIEW, &err);
    if (!s && !c->quiet)
        printf("%s\n", p.out);
out:
    if (s)
        code = cli_fail(c, &err);
    dfcl_encoder_destroy(&e);
    dfcl_device_close(&dev);
    return code;
}
