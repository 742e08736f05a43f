/* Names of an autoencoder's tensors: diffusers' (with its older names of the attention's layers), or those of the original latent diffusion code, by
 * themselves or inside of a whole checkpoint. */
#include <stdio.h>
#include <string.h>

#include "formats/tensor_file.h"
#include "models/vae.h"

static const char *const prefixes[] = {"", "vae.", "first_stage_model."};

static const struct dfcl_tensor_view *with_prefix(const struct dfcl_tensor_file *f, const char *prefix, const char *name) {
    char full[192];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return dfcl_tensor_file_find(f, full);
}

void vae_names_detect(struct vae_names *n, const struct dfcl_tensor_file *f) {
    memset(n, 0, sizeof *n);
    n->prefix = "";
    for (size_t i = 0; i < DFCL_COUNT(prefixes); i++)
        if (with_prefix(f, prefixes[i], "encoder.conv_in.weight") || with_prefix(f, prefixes[i], "decoder.conv_in.weight"))
            n->prefix = prefixes[i];
    n->original = with_prefix(f, n->prefix, "encoder.down.0.block.0.norm1.weight") || with_prefix(f, n->prefix, "decoder.up.0.block.0.norm1.weight");
    n->old_attention = with_prefix(f, n->prefix, "encoder.mid_block.attentions.0.query.weight") ||
                       with_prefix(f, n->prefix, "decoder.mid_block.attentions.0.query.weight");
    char name[64];
    do
        snprintf(name, sizeof name, n->original ? "decoder.up.%d.block.0.norm1.weight" : "decoder.up_blocks.%d.resnets.0.norm1.weight",
                 n->up_blocks);
    while (with_prefix(f, n->prefix, name) && ++n->up_blocks < VAE_MAX_STEPS);
}

/* Replaces the first `from` in text by `to`. */
static bool replace(char *text, size_t size, const char *from, const char *to) {
    char *at = strstr(text, from);
    size_t n = strlen(text), a = strlen(from), b = strlen(to);
    if (!at || n - a + b >= size)
        return false;
    memmove(at + b, at + a, strlen(at + a) + 1);
    memcpy(at, to, b);
    return true;
}

static void to_original(const struct vae_names *n, char *name, size_t size) {
    static const char *const words[][2] = {
        {"down_blocks.", "down."},       {"mid_block.resnets.0.", "mid.block_1."},   {"mid_block.resnets.1.", "mid.block_2."},
        {"mid_block.attentions.0.group_norm.", "mid.attn_1.norm."},                  {"mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."},
        {"mid_block.attentions.0.to_", "mid.attn_1."}, {".resnets.", ".block."},     {"downsamplers.0.", "downsample."},
        {"upsamplers.0.", "upsample."},  {"conv_shortcut", "nin_shortcut"},          {"conv_norm_out", "norm_out"},
    };
    int block, end = 0;
    if (sscanf(name, "decoder.up_blocks.%d.%n", &block, &end) == 1 && end) { /* counted from the picture */
        char from[64], to[64];
        snprintf(from, sizeof from, "up_blocks.%d.", block);
        snprintf(to, sizeof to, "up.%d.", n->up_blocks - 1 - block);
        replace(name, size, from, to);
    }
    for (size_t i = 0; i < DFCL_COUNT(words); i++)
        replace(name, size, words[i][0], words[i][1]);
}

const struct dfcl_tensor_view *vae_names_find(const struct vae_names *n, const struct dfcl_tensor_file *f, const char *name) {
    static const char *const old[][2] = {
        {"to_q.", "query."}, {"to_k.", "key."}, {"to_v.", "value."}, {"to_out.0.", "proj_attn."}};
    char other[160];
    snprintf(other, sizeof other, "%s", name);
    if (n->original)
        to_original(n, other, sizeof other);
    else if (n->old_attention)
        for (size_t i = 0; i < DFCL_COUNT(old); i++)
            replace(other, sizeof other, old[i][0], old[i][1]);
    return with_prefix(f, n->prefix, other);
}
