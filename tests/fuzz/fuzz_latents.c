/* A cache of latents: the input as its index beside a good shard, and as a shard beside a good index. */
#include <math.h>

#include "data/latents.h"
#include "fuzz_file.h"

enum { C = 1, S = 2, N = C * S * S };

/* Writes a good cache of two pictures to `dir`. */
static void make(const char *dir) {
    struct dfcl_latents_settings st = {.scale = 0.5, .size = 16, .channels = C, .side = S, .type = DFCL_F32};
    struct dfcl_latents_writer *w;
    struct dfcl_list classes = {0};
    static const char *const names[] = {"a/0.png", "b/1.png"};
    static const int labels[] = {0, 1};
    float moments[2 * N] = {0};
    memset(st.vae, 'a', 64);
    dfcl_status s = dfcl_list_add(fuzz_context(), &classes, "a", NULL);
    if (!s)
        s = dfcl_list_add(fuzz_context(), &classes, "b", NULL);
    if (!s)
        s = dfcl_latents_writer_open(&w, fuzz_context(), dir, &st, 0, NULL);
    for (int i = 0; !s && i < 2; i++)
        s = dfcl_latents_writer_add(w, &(struct dfcl_latents_source){.name = names[i]}, moments, NULL);
    if (!s)
        s = dfcl_latents_writer_finish(w, "pictures", &classes, names, labels, 2, 0, NULL);
    if (s)
        abort();
    dfcl_latents_writer_close(&w);
    dfcl_list_free(fuzz_context(), &classes);
}

static void read_all(const char *dir) {
    struct dfcl_latents *l;
    dfcl_error e = {0};
    dfcl_status s = dfcl_latents_open(&l, fuzz_context(), dir, &e);
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM, DFCL_IO};
    fuzz_check_any(s, &e, dir, allowed, DFCL_COUNT(allowed));
    if (s)
        return;
    struct dfcl_latents_view v = dfcl_latents_get(l);
    float moments[2 * N];
    if (v.rgb->channels) { /* what it says can be applied: no number that is none */
        float z[N] = {0.5f, -1, 2, -3}, rgb[3 * S * S];
        if (v.rgb->channels != C)
            abort();
        dfcl_latent_rgb_apply(v.rgb, 1, S, S, z, rgb);
        for (int k = 0; k < 3 * S * S; k++)
            if (!isfinite(rgb[k]))
                abort();
    }
    for (size_t i = 0; i < v.count; i++) {
        if (v.items[i].label < 0 || (size_t)v.items[i].label >= v.classes->count || v.settings.channels != C || v.settings.side != S)
            abort();
        fuzz_use(v.items[i].name, strlen(v.items[i].name));
        s = dfcl_latents_read(l, i, false, moments, &e);
        fuzz_check(s, &e, dir);
        if (!s)
            fuzz_use(moments, sizeof moments);
    }
    dfcl_latents_close(&l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char index[64], shard[64], path[128];
    fuzz_file_set(data, size);
    if (!index[0]) {
        snprintf(index, sizeof index, "%s/index", fuzz_dir);
        snprintf(shard, sizeof shard, "%s/shard", fuzz_dir);
        make(index);
        make(shard);
        snprintf(path, sizeof path, "%s/index.json", index);
        unlink(path);
        snprintf(path, sizeof path, "%s/shard-000000.safetensors", shard);
        unlink(path);
        fuzz_file_link("index/index.json");
        fuzz_file_link("shard/shard-000000.safetensors");
    }
    read_all(index);
    read_all(shard);
    return 0;
}
