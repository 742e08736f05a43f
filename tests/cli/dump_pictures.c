/* dump_pictures < LINES > BYTES: pictures as training data. A line is "SIDE CHANNELS white|drop PATH"; the answer to each is its status as
 * one byte, and on status 0 the SIDE x SIDE x CHANNELS bytes. For comparison with other programs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/decode.h"

int main(void) {
    dfcl_context *ctx;
    if (dfcl_context_create(&ctx, NULL, NULL))
        return 1;
    char line[4096 + 64], alpha[8];
    int side, channels, at;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%d %d %7s %n", &side, &channels, alpha, &at) != 3 || side < 1 || side > 4096 || channels < 1 || channels > 3)
            return 2;
        dfcl_error err = {0};
        size_t n = (size_t)side * (size_t)side * (size_t)channels;
        uint8_t *pixels = malloc(n);
        if (!pixels)
            return 1;
        dfcl_status s = dfcl_decode_picture(ctx, line + at, channels, side, side, strcmp(alpha, "drop") ? DFCL_ALPHA_WHITE : DFCL_ALPHA_DROP, NULL,
                                            pixels, &err);
        putchar((int)s);
        if (s)
            fprintf(stderr, "%s\n", err.msg);
        else
            fwrite(pixels, 1, n, stdout);
        fflush(stdout);
        free(pixels);
    }
    dfcl_context_destroy(&ctx);
    return ferror(stdout) ? 1 : 0;
}
