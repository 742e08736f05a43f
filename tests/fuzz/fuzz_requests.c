/* Sample requests: a file of lines in both notations, and a line written and read again. */
#include "../../tools/difffit-cl/sample_requests.h"
#include "fuzz.h"

static void check(dfcl_status s, const dfcl_error *e) {
    static const dfcl_status allowed[] = {DFCL_FORMAT, DFCL_NOMEM, DFCL_USAGE};
    fuzz_check_any(s, e, "input", allowed, DFCL_COUNT(allowed));
}

/* What is written of a line reads back as the same wish. */
static void again(const struct sample_line *l) {
    struct sample_requests r = {0};
    struct sample_line none = {0};
    dfcl_error e = {0};
    char *text = sample_line_text(l, l->number, l->count);
    if (!text)
        abort();
    if (sample_requests_parse(&r, text, "again", &none, &e) || r.count != 1 || strcmp(r.line[0].class_name, l->class_name) ||
        r.line[0].deltas != l->deltas || r.line[0].seed != l->seed || r.line[0].number != l->number) {
        fprintf(stderr, "%s%s\n", text, e.msg);
        abort();
    }
    for (int i = 0; i < l->deltas; i++)
        if (strcmp(r.line[0].delta[i], l->delta[i]))
            abort();
    free(text);
    sample_requests_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct sample_requests r = {0};
    char delta[] = "default";
    struct sample_line defaults = {.delta = {delta}, .deltas = 1, .seed = 7, .cfg = 1.5, .count = 1};
    dfcl_error e = {0};
    char *text = malloc(size + 1);
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    dfcl_status s = sample_requests_parse(&r, text, "input", &defaults, &e);
    check(s, &e);
    if (!s) {
        for (int i = 0; i < r.count; i++) {
            const struct sample_line *l = &r.line[i];
            if (l->count < 1 || !(l->cfg >= 0 && l->cfg <= 100) || l->deltas < 1 || l->deltas > REQUEST_DELTAS || (l->name && strchr(l->name, '/')))
                abort();
            char path[64];
            double strength;
            sample_split_strength(l->delta[0], path, sizeof path, &strength);
            if (i < 16)
                again(l);
        }
        s = sample_requests_group(&r, &e);
        check(s, &e);
        for (int i = 0; !s && i < r.count; i++)
            if (r.line[i].set < 0 || r.line[i].set >= r.set_count)
                abort();
    }
    sample_requests_free(&r);
    free(text);
    return 0;
}
