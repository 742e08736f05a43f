/* The commands that are one library call: info, init, merge, selftest, verify. */
#include "commands.h"

#include <string.h>

int cmd_info(struct cli *c, int argc, char **argv) {
    bool json = false, quick = false;
    const char *path = NULL;
    const struct cli_option options[] = {
        {"--json", CLI_FLAG, &json, NULL, "print JSON", 0, 0},
        {"--quick", CLI_FLAG, &quick, NULL, "image folders: count the pictures only, without reading them for sizes and damage", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int n = cli_parse(c, argc, argv,
                  "info FILE|RUN|FOLDER [--json] [--quick]\n\nSays what a checkpoint (.pt, .safetensors, diffusers folder), delta, run directory, image folder,\n"
                  "latent folder, .npy or picture is.",
                  options, &path, 1);
    if (n < 0)
        return c->code;
    if (n != 1)
        return cli_usage(c, "expected one path");
    dfcl_error err = {0};
    char *text = NULL;
    if (dfcl_describe(c->ctx, path, (json ? DFCL_DESCRIBE_JSON : 0) | (quick ? DFCL_DESCRIBE_QUICK : 0), &text, &err))
        return cli_fail(c, &err);
    fputs(text, stdout);
    if (*text && text[strlen(text) - 1] != '\n')
        putchar('\n');
    dfcl_text_free(c->ctx, text);
    return 0;
}

int cmd_init(struct cli *c, int argc, char **argv) {
    const char *size = NULL, *out = NULL, *dtype = "f32";
    int depth = 0, hidden = 0, heads = 0, patch = 0, classes = 1000, channels = 4;
    struct cli_extent input = {32, 32};
    uint64_t seed = 0;
    double scale = 0, pos_step = 1;
    const struct cli_option options[] = {
        {"--size", CLI_STR, &size, "NAME", "DiT-S/8 ... DiT-XL/2; or give the four below", 0, 0},
        {"--depth", CLI_INT, &depth, "L", "number of blocks", 1, 1000},
        {"--hidden", CLI_INT, &hidden, "D", "width", 1, 65536},
        {"--heads", CLI_INT, &heads, "H", "attention heads; must divide the width", 1, 1024},
        {"--patch", CLI_INT, &patch, "P", "patch side", 1, 64},
        {"--classes", CLI_INT, &classes, "K", "classes (1000); the table has one row more", 1, 1000000},
        {"--input", CLI_EXTENT, &input, "S|WxH", "side of the latent or picture, or width x height (32)", 1, 4096},
        {"--pos-scale", CLI_DBL, &pos_step, "X", "distance between neighbouring tokens' positions (1)", 1e-6, 4096},
        {"--channels", CLI_INT, &channels, "C", "channels of the latent or picture (4)", 1, 64},
        {"--seed", CLI_U64, &seed, "N", "seed (0)", 0, 0},
        {"--scale", CLI_DBL, &scale, "X", "every value from N(0, X) instead of the original initialisation (for speed tests)", 0, 10},
        {"--dtype", CLI_CHOICE, &dtype, "f32|f16|bf16", "type of the values (f32)", 0, 0},
        {"--out", CLI_PATH, &out, "FILE", "safetensors file to write (required)", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "init --size DiT-XL/2 --out FILE\n\nWrites a random base, to be trained with `train --method full` or for measurements.",
              options, NULL, 0) < 0)
        return c->code;
    if (!out)
        return cli_usage(c, "--out is required");
    struct dfcl_init_params p = {.seed = seed, .scale = (float)scale, .dtype = dtype};
    dfcl_error err = {0};
    if (size && dfcl_model_shape_named(size, &p.shape, &err))
        return cli_fail(c, &err);
    if (depth)
        p.shape.depth = depth;
    if (hidden)
        p.shape.hidden = hidden;
    if (heads)
        p.shape.heads = heads;
    if (patch)
        p.shape.patch = patch;
    if (!p.shape.depth || !p.shape.hidden || !p.shape.heads || !p.shape.patch)
        return cli_usage(c, "--size, or all of --depth, --hidden, --heads and --patch, are required");
    p.shape.input = input.height;
    p.shape.input_width = input.width;
    if (pos_step != 1)
        p.shape.positional_scale = pos_step * (input.height > input.width ? input.height : input.width) / p.shape.patch;
    p.shape.channels = channels;
    p.shape.classes = classes;
    if (dfcl_model_init(c->ctx, &p, out, &err))
        return cli_fail(c, &err);
    if (!c->quiet)
        printf("%s\n", out);
    return 0;
}

int cmd_merge(struct cli *c, int argc, char **argv) {
    struct dfcl_merge_params p = {0};
    const char *out = NULL, *names = "original", *gammas = "fold";
    struct cli_extent input = {0, 0};
    bool force = false;
    const struct cli_option options[] = {
        {"--model", CLI_PATH, &p.base.path, "FILE", "base checkpoint (required)", 0, 0},
        {"--delta", CLI_PATH, &p.delta, "FILE", "delta, or checkpoint of the PyTorch reproduction; without one the base is rewritten", 0, 0},
        {"--out", CLI_PATH, &out, "PATH", "NAME.pt: PyTorch state dict; with --names diffusers a folder; else safetensors (required)", 0, 0},
        {"--names", CLI_CHOICE, &names, "original|diffusers", "names of the tensors (original); diffusers: a folder for DiTTransformer2DModel.from_pretrained", 0, 0},
        {"--gammas", CLI_CHOICE, &gammas, "fold|keep", "into the weights (fold), or kept as tensors, for the PyTorch reproduction of DiffFit", 0, 0},
        {"--weights-of", CLI_CHOICE, &p.base.which, "ema|model", "which weights of a training checkpoint (ema)", 0, 0},
        {"--heads", CLI_INT, &p.base.heads, "H", "attention heads, where the file does not say", 1, 1024},
        CLI_RESOLUTION_OPTIONS(&input, &p.base, "as the delta was trained"),
        {"--force", CLI_FLAG, &force, NULL, "even when the delta was made on another base", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
                  "merge --model FILE [--delta FILE] --out PATH [--names diffusers]\n\nFolds scale vectors and biases into an ordinary checkpoint, with the original names or"
                  " diffusers'.", options, NULL, 0) < 0)
        return c->code;
    cli_resolution(&input, &p.base);
    if (!p.base.path || !out)
        return cli_usage(c, "--model and --out are required");
    p.names = strcmp(names, "diffusers") ? DFCL_NAMES_ORIGINAL : DFCL_NAMES_DIFFUSERS;
    p.keep_gammas = !strcmp(gammas, "keep");
    p.force = force;
    dfcl_error err = {0};
    if (dfcl_model_merge(c->ctx, &p, out, &err))
        return cli_fail(c, &err);
    if (!c->quiet)
        printf("%s\n", out);
    return 0;
}

int cmd_selftest(struct cli *c, int argc, char **argv) {
    bool ops = false;
    int rounds = 1;
    uint64_t seed = 1;
    const struct cli_option options[] = {
        {"--ops", CLI_FLAG, &ops, NULL, "also check every kernel variant of every op against the host reference (minutes)", 0, 0},
        {"--rounds", CLI_INT, &rounds, "N", "with --ops: rounds with other random numbers (1)", 1, 1000},
        {"--seed", CLI_U64, &seed, "N", "with --ops: first seed (1)", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "selftest [--device D] [--ops]\n\nRuns a miniature model with known results on the device.", options, NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    if (dfcl_device_open(&dev, c->ctx, c->device, &err))
        return cli_fail(c, &err);
    dfcl_status s = dfcl_selftest(dev, cli_line, c, &err);
    int passed = 0, failed = 0;
    if (!s && ops) {
        s = dfcl_check_ops(dev, NULL, rounds, seed, cli_line, c, &passed, &failed, &err);
        if (!s)
            printf("%d passed, %d failed\n", passed, failed);
    }
    if (!s)
        printf("%s: %s\n", dfcl_device_get_info(dev)->name, failed ? "FAILED" : "passed");
    dfcl_device_close(&dev);
    return s ? cli_fail(c, &err) : failed ? DFCL_ERROR : 0;
}

int cmd_verify(struct cli *c, int argc, char **argv) {
    const char *golden = NULL, *dump = NULL;
    bool json = false;
    const struct cli_option options[] = {
        {"--golden", CLI_PATH, &golden, "DIR", "folder of reference data (required; docs/testing.md)", 0, 0},
        {"--dump", CLI_PATH, &dump, "DIR", "write what was computed, one safetensors per golden file", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
              "verify --golden DIR [--dump DIR] [--json]\n\nRuns forward, training and sampling on the device and compares with the original PyTorch code's numbers.\n"
              "Exit code 1 when a file is out of tolerance.",
              options, NULL, 0) < 0)
        return c->code;
    if (!golden)
        return cli_usage(c, "--golden is required");
    dfcl_error err = {0};
    dfcl_device *dev = NULL;
    if (dfcl_device_open(&dev, c->ctx, c->device, &err))
        return cli_fail(c, &err);
    int failed = 0;
    dfcl_status s = dfcl_verify(dev, golden, dump, json, cli_line, c, &failed, &err);
    dfcl_device_close(&dev);
    return s ? cli_fail(c, &err) : failed ? DFCL_ERROR : 0;
}
