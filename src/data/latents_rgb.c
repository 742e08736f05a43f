/* dfcl_latent_rgb_read: the linear approximation that a cache, a delta or a base carries. */
#include <string.h>

#include "data/latents.h"
#include "formats/tensor_file.h"

dfcl_status dfcl_latent_rgb_read(const dfcl_context *ctx, const char *path, struct dfcl_latent_rgb *out, dfcl_error *err) {
    memset(out, 0, sizeof *out);
    if (dfcl_latents_here(path)) {
        struct dfcl_latents *l;
        dfcl_status s = dfcl_latents_open(&l, ctx, path, err);
        if (!s)
            *out = *dfcl_latents_get(l).rgb;
        dfcl_latents_close(&l);
        return s;
    }
    struct dfcl_tensor_file *f;
    dfcl_status s = dfcl_tensor_file_open(&f, ctx, path, NULL, err);
    if (s)
        return s;
    s = dfcl_latent_rgb_meta(f, out, err);
    dfcl_tensor_file_close(&f);
    return s;
}
