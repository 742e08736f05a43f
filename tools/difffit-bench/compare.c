/* compare: two results of one benchmark, side by side. */
#include "bench.h"

#include <cjson/cJSON.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_OPS = 10000 }; /* rows are looked up one by one */

struct result {
    const char *path;
    cJSON *root;
};

static dfcl_status read_result(struct result *r, dfcl_error *err) {
    char *text = NULL;
    size_t n = 0, cap = 0;
    FILE *f = fopen(r->path, "r");
    if (!f)
        return bench_fail(err, DFCL_IO, "%s: cannot open: %s", r->path, strerror(errno));
    dfcl_status s = DFCL_OK;
    do {
        if (cap - n < 4096) {
            cap = cap ? 2 * cap : 65536;
            char *more = cap > 1u << 26 ? NULL : realloc(text, cap);
            if (!more) {
                s = bench_fail(err, DFCL_FORMAT, "%s: expected a result of --json, found a file that is too large", r->path);
                break;
            }
            text = more;
        }
        n += fread(text + n, 1, cap - n - 1, f);
        text[n] = 0;
    } while (!feof(f) && !ferror(f));
    if (!s && ferror(f))
        s = bench_fail(err, DFCL_IO, "%s: cannot read", r->path);
    if (!s && (!(r->root = cJSON_Parse(text)) || !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(r->root, "benchmark"))))
        s = bench_fail(err, DFCL_FORMAT, "%s: expected a result of difffit-bench --json", r->path);
    free(text);
    fclose(f);
    return s;
}

static const char *text_of(const cJSON *o, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsString(v) ? v->valuestring : "";
}

static bool spread_of(const cJSON *o, const char *key, struct bench_spread *s) {
    static const char *const parts[3] = {"median", "min", "max"};
    double v[3];
    const cJSON *from = cJSON_GetObjectItemCaseSensitive(o, key);
    for (int i = 0; i < 3; i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(from, parts[i]);
        if (!cJSON_IsNumber(x) || !(x->valuedouble > 0))
            return false;
        v[i] = x->valuedouble;
    }
    *s = (struct bench_spread){v[0], v[1], v[2]};
    return true;
}

/* What a result has there. cJSON_Compare takes twice the time for every level of a nested value. */
static bool scalar(const cJSON *v) {
    return cJSON_IsString(v) || cJSON_IsNumber(v) || cJSON_IsBool(v) || cJSON_IsNull(v);
}

/* What must be equal for times to be of the same work. */
static dfcl_status same_work(const struct result *a, const struct result *b, dfcl_error *err) {
    static const char *const keys[] = {"benchmark", "depth", "hidden", "heads",  "patch", "input", "channels",
                                       "classes",   "batch", "method", "weights", "pack", "sampler", "steps", "cfg"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(a->root, keys[i]), *y = cJSON_GetObjectItemCaseSensitive(b->root, keys[i]);
        if (!x && !y)
            continue;
        if (scalar(x) && scalar(y) && cJSON_Compare(x, y, true))
            continue;
        char *tx = x ? cJSON_PrintUnformatted(x) : NULL, *ty = y ? cJSON_PrintUnformatted(y) : NULL;
        dfcl_status s = bench_fail(err, DFCL_FORMAT, "%s and %s do not match: %s is %s and %s", a->path, b->path, keys[i], tx ? tx : "missing",
                                   ty ? ty : "missing");
        cJSON_free(tx);
        cJSON_free(ty);
        return s;
    }
    return DFCL_OK;
}

static void head(int width) {
    printf("%-*s %12s %12s %8s %17s\n", width, "", "A ms", "B ms", "A / B", "least to most");
}

/* Times of A and B and how many times as fast B is. */
static void row(int width, const char *name, struct bench_spread a, struct bench_spread b) {
    printf("%-*.*s %12.3f %12.3f %8.3f %8.3f %8.3f\n", width, width, name, a.median * 1e3, b.median * 1e3, a.median / b.median, a.min / b.max,
           a.max / b.min);
}

static dfcl_status compare_model(const struct result *a, const struct result *b, dfcl_error *err) {
    struct bench_spread x, y;
    if (!spread_of(a->root, "seconds_per_image", &x) || !spread_of(b->root, "seconds_per_image", &y))
        return bench_fail(err, DFCL_FORMAT, "%s: expected seconds_per_image with median, min and max above 0",
                          spread_of(a->root, "seconds_per_image", &x) ? b->path : a->path);
    head(24);
    row(24, "per image", x, y);
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(a->root, "peak_memory_bytes");
    const cJSON *n = cJSON_GetObjectItemCaseSensitive(b->root, "peak_memory_bytes");
    if (cJSON_IsNumber(m) && cJSON_IsNumber(n) && n->valuedouble > 0)
        printf("%-24s %12.1f %12.1f %8.3f\n", "peak memory, MiB", m->valuedouble / 1048576.0, n->valuedouble / 1048576.0,
               m->valuedouble / n->valuedouble);
    return DFCL_OK;
}

static void name_of(const cJSON *o, char *buf, size_t size) {
    snprintf(buf, size, "%s/%s %s", text_of(o, "op"), text_of(o, "variant"), text_of(o, "case"));
}

static const cJSON *find(const cJSON *list, const char *name) {
    const cJSON *o;
    cJSON_ArrayForEach(o, list) {
        char other[256];
        name_of(o, other, sizeof other);
        if (!strcmp(name, other))
            return o;
    }
    return NULL;
}

static dfcl_status compare_ops(const struct result *a, const struct result *b, dfcl_error *err) {
    const cJSON *la = cJSON_GetObjectItemCaseSensitive(a->root, "ops"), *lb = cJSON_GetObjectItemCaseSensitive(b->root, "ops"), *o;
    int common = 0, alone = 0;
    double sum = 0;
    if (cJSON_GetArraySize(la) > MOST_OPS || cJSON_GetArraySize(lb) > MOST_OPS)
        return bench_fail(err, DFCL_FORMAT, "%s: expected at most %d rows", cJSON_GetArraySize(la) > MOST_OPS ? a->path : b->path, MOST_OPS);
    head(72);
    cJSON_ArrayForEach(o, la) {
        char name[256];
        struct bench_spread x, y;
        name_of(o, name, sizeof name);
        const cJSON *p = find(lb, name);
        if (!p) {
            printf("%-72.72s only in A\n", name);
            alone++;
            continue;
        }
        if (!spread_of(o, "seconds", &x) || !spread_of(p, "seconds", &y))
            return bench_fail(err, DFCL_FORMAT, "%s: %s: expected seconds with median, min and max above 0",
                              spread_of(o, "seconds", &x) ? b->path : a->path, name);
        row(72, name, x, y);
        sum += log(x.median / y.median);
        common++;
    }
    cJSON_ArrayForEach(o, lb) {
        char name[256];
        name_of(o, name, sizeof name);
        if (!find(la, name)) {
            printf("%-72.72s only in B\n", name);
            alone++;
        }
    }
    if (common)
        printf("%-72s %34.3f\n", "geometric mean", exp(sum / common));
    return alone || !common ? bench_fail(err, DFCL_FORMAT, "%s and %s do not match: %d rows in both, %d in one only", a->path, b->path, common, alone)
                            : DFCL_OK;
}

static dfcl_status compare_peak(const struct result *a, const struct result *b, dfcl_error *err) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(a->root, "peak_gflops"), *y = cJSON_GetObjectItemCaseSensitive(b->root, "peak_gflops");
    if (!cJSON_IsNumber(x) || !cJSON_IsNumber(y) || !(x->valuedouble > 0))
        return bench_fail(err, DFCL_FORMAT, "%s: expected peak_gflops above 0", cJSON_IsNumber(x) && x->valuedouble > 0 ? b->path : a->path);
    printf("peak GFLOP/s: A %.1f, B %.1f, B / A %.3f\n", x->valuedouble, y->valuedouble, y->valuedouble / x->valuedouble);
    return DFCL_OK;
}

static void describe(const char *letter, const struct result *r) {
    printf("%s: %s, %s, commit %s\n", letter, r->path, text_of(r->root, "device"), text_of(r->root, "commit"));
}

int bench_compare(struct cli *c, int argc, char **argv) {
    const struct cli_option none[] = {{NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0}};
    const char *files[2];
    int n = cli_parse(c, argc, argv,
                  "compare A.json B.json\n\nRatios of two results of the same benchmark: above 1, B is faster.\n"
                  "Exit code 6 when they are not of the same work.",
                  none, files, 2);
    if (n < 0)
        return c->code;
    if (n != 2)
        return cli_usage(c, "expected two files");
    struct result a = {.path = files[0]}, b = {.path = files[1]};
    dfcl_error err = {0};
    dfcl_status s = read_result(&a, &err);
    if (!s)
        s = read_result(&b, &err);
    if (!s)
        s = same_work(&a, &b, &err);
    if (!s) {
        const char *kind = text_of(a.root, "benchmark");
        describe("A", &a);
        describe("B", &b);
        s = !strcmp(kind, "ops")    ? compare_ops(&a, &b, &err)
            : !strcmp(kind, "peak") ? compare_peak(&a, &b, &err)
                                    : compare_model(&a, &b, &err);
    }
    cJSON_Delete(a.root);
    cJSON_Delete(b.root);
    return s ? cli_fail(c, &err) : 0;
}
