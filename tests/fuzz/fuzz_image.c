/* PNG and JPEG pixels in both channel counts and as the training data they become, PNG text. */
#define FUZZ_MEMORY ((size_t)1 << 30) /* 2^27 pixels are allowed where the bytes could hold them; turning takes them twice */

#include "data/crop.h"
#include "formats/image.h"
#include "formats/png.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const dfcl_context *ctx = fuzz_context();
    dfcl_error e = {0};
    for (int channels = 1; channels <= 3; channels += 2) {
        struct dfcl_image im;
        dfcl_status s = dfcl_image_read_memory(ctx, data, size, "input", channels, DFCL_ALPHA_WHITE, &im, &e);
        fuzz_check(s, &e, "input");
        if (s) {
            if (im.pixels)
                abort();
            continue;
        }
        if (im.channels != channels || im.width < 1 || im.height < 1)
            abort();
        fuzz_use(im.pixels, (size_t)im.width * (size_t)im.height * (size_t)channels);
        uint8_t small[8 * 8 * 3];
        s = dfcl_center_crop(ctx, im.pixels, im.width, im.height, channels, 8, 8, small, &e);
        if (s && s != DFCL_FORMAT)
            abort();
        if (!s)
            fuzz_use(small, (size_t)(8 * 8 * channels));
        dfcl_image_free(ctx, &im);
    }
    struct dfcl_list text;
    dfcl_status s = dfcl_png_text_memory(ctx, data, size, "input", &text, &e);
    fuzz_check(s, &e, "input");
    dfcl_list_free(ctx, &text);
    return 0;
}
