/* formats/: safetensors reader and writer, tensor files, diffusers names; hostile files are refused with their name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/half.h"
#include "formats/safetensors.h"
#include "formats/tensor_file.h"

static dfcl_context *ctx;
static char dir[64];

static int setup(void **state) {
    (void)state;
    strcpy(dir, "/tmp/dfcl-st-XXXXXX");
    return !mkdtemp(dir) || dfcl_context_create(&ctx, NULL, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, dir, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

#define OK(call)                                                                                                               \
    do {                                                                                                                       \
        dfcl_error e_ = {0};                                                                                                   \
        dfcl_error *err = &e_;                                                                                                 \
        if ((call) != DFCL_OK)                                                                                                 \
            fail_msg("%s: %s", #call, e_.msg);                                                                                 \
    } while (0)

static float *values(struct dfcl_tensor_file *f, const char *name, uint64_t *count) {
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, name);
    if (!v)
        fail_msg("no tensor %s", name);
    float *x = malloc((size_t)v->count * sizeof *x + 1);
    assert_non_null(x);
    OK(dfcl_tensor_file_read_f32(f, v, 0, v->count, x, err));
    *count = v->count;
    return x;
}

static void golden_names(void **state) {
    (void)state;
    struct dfcl_tensor_file *f;
    OK(dfcl_tensor_file_open(&f, ctx, DFCL_GOLDEN "/dit/dit.safetensors", NULL, err));
    const struct dfcl_tensor_view *v = dfcl_tensor_file_find(f, "blocks.3.attn.qkv.weight");
    assert_non_null(v);
    assert_int_equal(v->ndim, 2);
    assert_int_equal(v->shape[0], 288);
    assert_int_equal(v->shape[1], 96);
    assert_int_equal(v->dtype, DFCL_F32);
    assert_int_equal(v->bytes, 288 * 96 * 4);
    assert_null(dfcl_tensor_file_find(f, "blocks.4.attn.qkv.weight"));
    double heads = 0;
    assert_true(dfcl_tensor_file_number(f, "heads", &heads));
    assert_int_equal(heads, 4);
    assert_false(dfcl_tensor_file_is_diffusers(f));
    dfcl_tensor_file_close(&f);
    assert_null(f);
}

static void diffusers_equals_original(void **state) {
    (void)state;
    struct dfcl_tensor_file *a, *b;
    OK(dfcl_tensor_file_open(&a, ctx, DFCL_GOLDEN "/dit/micro/raw_f32.safetensors", NULL, err));
    OK(dfcl_tensor_file_open(&b, ctx, DFCL_GOLDEN "/dit/micro/diffusers", NULL, err));
    assert_true(dfcl_tensor_file_is_diffusers(b));
    assert_int_equal(dfcl_tensor_file_count(b), dfcl_tensor_file_count(a) - 1); /* without pos_embed */
    for (size_t i = 0; i < dfcl_tensor_file_count(a); i++) {
        const struct dfcl_tensor_view *v = dfcl_tensor_file_at(a, i), *u = dfcl_tensor_file_find(b, v->name);
        if (!strcmp(v->name, "pos_embed")) {
            assert_null(u);
            continue;
        }
        if (!u)
            fail_msg("%s is missing", v->name);
        assert_int_equal(u->ndim, v->ndim);
        assert_memory_equal(u->shape, v->shape, sizeof v->shape);
        uint64_t n, m;
        float *x = values(a, v->name, &n), *y = values(b, v->name, &m);
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n * sizeof *x);
        unsigned char *p = malloc((size_t)v->bytes), *q = malloc((size_t)u->bytes);
        OK(dfcl_tensor_file_read_raw(a, v, p, err));
        OK(dfcl_tensor_file_read_raw(b, u, q, err));
        assert_int_equal(v->bytes, u->bytes);
        assert_memory_equal(p, q, v->bytes);
        /* a window across the q/k seam */
        uint64_t at = n / 3 > 5 ? n / 3 - 5 : 0, len = DFCL_MIN(n - at, 17);
        float w[17];
        OK(dfcl_tensor_file_read_f32(b, u, at, len, w, err));
        assert_memory_equal(w, x + at, len * sizeof *w);
        dfcl_tensor_file_release(b, u);
        free(x), free(y), free(p), free(q);
    }
    double heads = 0;
    assert_true(dfcl_tensor_file_number(b, "num_attention_heads", &heads));
    assert_int_equal(heads, 2);
    assert_string_equal(dfcl_tensor_file_text(b, "_class_name"), "DiTTransformer2DModel");
    dfcl_tensor_file_close(&a);
    dfcl_tensor_file_close(&b);
}

static void differing_copies(void **state) {
    (void)state;
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, DFCL_GOLDEN "/dit/micro/diffusers/diffusion_pytorch_model.safetensors", 1 << 24, &data, &n, err));
    struct dfcl_st *st;
    OK(dfcl_st_open_memory(&st, ctx, data, n, "copy.safetensors", err));
    const struct dfcl_tensor_view *v = dfcl_st_find(st, "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias");
    assert_non_null(v);
    data[v->part[0] - (const unsigned char *)data + 5] ^= 1;
    dfcl_st_close(&st);
    struct dfcl_tensor_file *f;
    dfcl_error e = {0};
    OK(dfcl_tensor_file_open_memory(&f, ctx, data, n, "copy.safetensors", NULL, err));
    float x[64];
    const struct dfcl_tensor_view *u = dfcl_tensor_file_find(f, "t_embedder.mlp.2.bias");
    assert_non_null(u);
    assert_int_equal(dfcl_tensor_file_read_f32(f, u, 0, u->count, x, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "copy.safetensors"));
    assert_non_null(strstr(e.msg, "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"));
    u = dfcl_tensor_file_find(f, "t_embedder.mlp.2.weight");
    OK(dfcl_tensor_file_read_f32(f, u, 0, 64, x, err)); /* the others are fine */
    dfcl_tensor_file_close(&f);
    dfcl_free(ctx, data);
}

static void writer_round_trip(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/out.safetensors", dir);
    struct dfcl_st_writer *w;
    OK(dfcl_st_writer_create(&w, ctx, path, err));
    OK(dfcl_st_writer_meta(w, "na\"me", "line\nbreak \\ \x01 \xc3\xa4 \xff", err));
    OK(dfcl_st_writer_meta(w, "heads", "16", err));
    int64_t s23[] = {2, 3}, s0[] = {0, 5}, s2[] = {2};
    OK(dfcl_st_writer_tensor(w, "z", DFCL_F32, s23, 2, err));
    OK(dfcl_st_writer_tensor(w, "empty", DFCL_F32, s0, 2, err));
    OK(dfcl_st_writer_tensor(w, "scalar", DFCL_F16, NULL, 0, err));
    OK(dfcl_st_writer_tensor(w, "b", DFCL_BF16, s2, 1, err));
    OK(dfcl_st_writer_tensor(w, "i", DFCL_I64, s2, 1, err));
    float x[6] = {1.5f, -2, 3e-40f, INFINITY, -0.0f, 65504};
    int64_t ints[2] = {-7, INT64_C(1) << 40};
    OK(dfcl_st_writer_f32(w, x, 4, err));
    OK(dfcl_st_writer_f32(w, x + 4, 2, err));
    OK(dfcl_st_writer_f32(w, x, 1, err));
    OK(dfcl_st_writer_f32(w, x, 2, err));
    OK(dfcl_st_writer_data(w, ints, 3, err)); /* pieces of any size */
    OK(dfcl_st_writer_data(w, (char *)ints + 3, 13, err));
    assert_int_equal(dfcl_path_kind(path), DFCL_PATH_NONE);
    OK(dfcl_st_writer_finish(&w, err));
    assert_null(w);
    struct dfcl_tensor_file *f;
    OK(dfcl_tensor_file_open(&f, ctx, path, NULL, err));
    assert_int_equal(dfcl_tensor_file_count(f), 5);
    assert_string_equal(dfcl_tensor_file_at(f, 0)->name, "z");
    assert_string_equal(dfcl_tensor_file_meta(f, "na\"me"), "line\nbreak \\ \x01 \xc3\xa4 \xef\xbf\xbd");
    double h = 0;
    assert_true(dfcl_tensor_file_number(f, "heads", &h));
    assert_int_equal(h, 16);
    uint64_t n;
    float *z = values(f, "z", &n);
    assert_int_equal(n, 6);
    assert_memory_equal(z, x, sizeof x);
    free(z);
    z = values(f, "i", &n);
    assert_true(z[0] == -7 && z[1] == 1099511627776.0f);
    free(z);
    z = values(f, "scalar", &n);
    assert_true(n == 1 && z[0] == 1.5f);
    free(z);
    z = values(f, "b", &n);
    assert_true(n == 2 && z[1] == -2);
    free(z);
    assert_int_equal(dfcl_tensor_file_find(f, "empty")->count, 0);
    dfcl_tensor_file_close(&f);
    char *data;
    OK(dfcl_file_read(ctx, path, 1 << 20, &data, &n, err));
    assert_int_equal((unsigned char)data[0] % 8, 0); /* the data is aligned */
    dfcl_free(ctx, data);

    /* An unfinished file never appears; a failed step is remembered. */
    dfcl_error e = {0};
    snprintf(path, sizeof path, "%s/short.safetensors", dir);
    OK(dfcl_st_writer_create(&w, ctx, path, err));
    OK(dfcl_st_writer_tensor(w, "z", DFCL_F32, s23, 2, err));
    OK(dfcl_st_writer_f32(w, x, 5, err));
    assert_int_equal(dfcl_st_writer_finish(&w, &e), DFCL_USAGE);
    assert_int_equal(dfcl_path_kind(path), DFCL_PATH_NONE);
    OK(dfcl_st_writer_create(&w, ctx, path, err));
    OK(dfcl_st_writer_tensor(w, "z", DFCL_F32, s23, 2, err));
    assert_int_equal(dfcl_st_writer_tensor(w, "z", DFCL_F32, s23, 2, &e), DFCL_USAGE);
    OK(dfcl_st_writer_f32(w, x, 6, err));
    assert_int_equal(dfcl_st_writer_f32(w, x, 1, &e), DFCL_USAGE);
    assert_int_equal(dfcl_st_writer_finish(&w, &e), DFCL_ERROR);
    assert_int_equal(dfcl_path_kind(path), DFCL_PATH_NONE);
    struct dfcl_list l;
    OK(dfcl_list_dir(ctx, dir, &l, err));
    assert_int_equal(l.count, 1); /* out.safetensors, no temporaries */
    dfcl_list_free(ctx, &l);
}

/* Header and data bytes -> a file in memory; returns the status and message of opening it. */
static dfcl_status try_open(const char *header, uint64_t announced, size_t data, dfcl_error *e) {
    size_t n = strlen(header);
    unsigned char *p = calloc(1, 8 + n + data);
    assert_non_null(p);
    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(announced >> (8 * i));
    memcpy(p + 8, header, n);
    struct dfcl_st *st = NULL;
    memset(e, 0, sizeof *e);
    dfcl_status s = dfcl_st_open_memory(&st, ctx, p, 8 + n + data, "evil.safetensors", e);
    assert_true((st != NULL) == (s == DFCL_OK));
    dfcl_st_close(&st);
    free(p);
    return s;
}

#define T(type, shape, a, b) "{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void hostile(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *says; /* NULL: fine */
    } cases[] = {
        {"{}", 0, NULL},
        {"{}   \n", 0, NULL},
        {"{\"a\":" T("F32", "[2]", 0, 8) "}", 8, NULL},
        {"{\"a\":" T("F32", "[]", 0, 4) "}", 4, NULL},
        {"{\"a\":" T("F8_E4M3", "[3]", 0, 3) "}", 3, NULL},
        {"{\"a\":" T("F4", "[4]", 0, 2) "}", 2, NULL},
        {"{\"a\":" T("F32", "[0,9007199254740992,1024]", 0, 0) "}", 0, "does not fit"}, /* more than 2^63 bytes but for the zero */
        {"{\"a\":" T("F32", "[0]", 0, 0) ",\"b\":" T("U8", "[1]", 0, 1) "}", 1, NULL},
        {"{\"b\":" T("U8", "[1]", 1, 2) ",\"a\":" T("U8", "[1]", 0, 1) "}", 2, NULL},
        {"{\"a\":" T("F4", "[3]", 0, 2) "}", 2, "does not fit"},
        {"{\"a\":" T("F32", "[2]", 0, 8) "}", 9, "the file has 9"},
        {"{\"a\":" T("F32", "[2]", 0, 8) "}", 7, "do not lie within"},
        {"{\"a\":" T("F32", "[3]", 0, 8) "}", 8, "does not fit"},
        {"{\"a\":" T("F32", "[-2]", 0, 8) "}", 8, "not a whole number"},
        {"{\"a\":" T("F32", "[1.5]", 0, 6) "}", 6, "not a whole number"},
        {"{\"a\":" T("F32", "[1e300]", 0, 8) "}", 8, "not a whole number"},
        {"{\"a\":" T("F32", "[\"2\"]", 0, 8) "}", 8, "not a whole number"},
        {"{\"a\":" T("F32", "[4294967296,4294967296,2]", 0, 8) "}", 8, "does not fit"},
        {"{\"a\":" T("F32", "[9007199254740992,4503599627370496]", 0, 8) "}", 8, "does not fit"},
        {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8, "more than 8 dimensions"},
        {"{\"a\":" T("F32", "[2]", 8, 0) "}", 8, "do not lie within"},
        {"{\"a\":" T("F32", "[2]", -8, 0) "}", 8, "whole numbers"},
        {"{\"a\":" T("F32", "[1]", 18446744073709551608, 18446744073709551612) "}", 8, "whole numbers"},
        {"{\"a\":" T("F32", "[2]", 0, 8) ",\"b\":" T("F32", "[2]", 4, 12) "}", 12, "inside another tensor"},
        {"{\"a\":" T("F32", "[2]", 0, 8) ",\"b\":" T("F32", "[2]", 0, 8) "}", 8, "inside another tensor"},
        {"{\"a\":" T("F32", "[2]", 0, 8) ",\"b\":" T("F32", "[1]", 12, 16) "}", 16, "after a hole"},
        {"{\"a\":" T("F32", "[2]", 4, 12) "}", 12, "after a hole"},
        {"{\"a\":" T("F32", "[2]", 0, 8) ",\"a\":" T("F32", "[1]", 8, 12) "}", 12, "appears twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype appears twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "found more"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "two whole numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "expected dtype"},
        {"{\"a\":" T("F33", "[2]", 0, 8) "}", 8, "unknown type F33"},
        {"{\"a\":7}", 0, "expected an object"},
        {"{\"a\\u0000b\":" T("F32", "[2]", 0, 8) "}", 8, "\\u0000"},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0, NULL},
        {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, "appears twice"},
        {"{\"__metadata__\":{\"a\":\"b\"},\"__metadata__\":{}}", 0, "appears twice"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not text"},
        {"{\"__metadata__\":[]}", 0, "expected an object"},
        {"{\"__metadata__\":{\"a\":{\"b\":{\"c\":{\"d\":1}}}}}", 0, "nested deeper"},
        {"{\"a\":[[[[[[[[[[[[", 0, "nested deeper"},
        {"{\"\xff\":1}", 0, "not UTF-8"},
        {"{\"\xc0\xaf\":1}", 0, "not UTF-8"},
        {"{\"\xed\xa0\x80\":1}", 0, "not UTF-8"},
        {"{\"a\nb\":1}", 0, "control character"},
        {"{", 0, "bad JSON"},
        {"{}x", 0, "after the value"},
        {"[]", 0, "does not start with {"},
        {" {}", 0, "does not start with {"},
        {"{\"a\":}", 0, "bad JSON"},
    };
    dfcl_error e;
    for (size_t i = 0; i < DFCL_COUNT(cases); i++) {
        dfcl_status s = try_open(cases[i].header, strlen(cases[i].header), cases[i].data, &e);
        if (!cases[i].says) {
            if (s)
                fail_msg("case %zu %s: %s", i, cases[i].header, e.msg);
            continue;
        }
        if (s != DFCL_FORMAT || !strstr(e.msg, cases[i].says) || !strstr(e.msg, "evil.safetensors"))
            fail_msg("case %zu %s: status %d, message \"%s\", expected \"%s\"", i, cases[i].header, s, e.msg, cases[i].says);
    }
    assert_int_equal(try_open("{}", UINT64_MAX, 0, &e), DFCL_FORMAT);
    assert_int_equal(try_open("{}", UINT64_MAX - 7, 0, &e), DFCL_FORMAT);
    assert_int_equal(try_open("{}", (100u << 20) + 1, 0, &e), DFCL_FORMAT);
    assert_int_equal(try_open("{}", 3, 0, &e), DFCL_FORMAT);
    assert_int_equal(try_open("{}", 0, 0, &e), DFCL_FORMAT);
}

static void json_bomb(void **state) {
    (void)state;
    /* 12 MB of "1," would be 400 MB of parsed values; refused before parsing. */
    size_t n = 12u << 20;
    char *p = malloc(n + 9);
    assert_non_null(p);
    memset(p, 0, 8);
    for (int i = 0; i < 8; i++)
        p[i] = (char)((uint64_t)n >> (8 * i));
    memcpy(p + 8, "{\"a\":[", 6);
    for (size_t i = 6; i < n; i++)
        p[8 + i] = i & 1 ? ',' : '1';
    struct dfcl_st *st;
    dfcl_error e = {0};
    assert_int_equal(dfcl_st_open_memory(&st, ctx, p, n + 8, "bomb", &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "values"));
    free(p);
}

static void every_truncation(void **state) {
    (void)state;
    char *data;
    size_t n;
    OK(dfcl_file_read(ctx, DFCL_GOLDEN "/dit/micro/views_expected.safetensors", 1 << 20, &data, &n, err));
    for (size_t k = 0; k < n; k++) {
        char *copy = malloc(k ? k : 1); /* exact size, for the sanitizers */
        memcpy(copy, data, k);
        struct dfcl_st *st;
        dfcl_error e = {0};
        assert_int_equal(dfcl_st_open_memory(&st, ctx, copy, k, "cut", &e), DFCL_FORMAT);
        free(copy);
    }
    dfcl_free(ctx, data);
}

static void conversions(void **state) {
    (void)state;
    /* every 16-bit value, at an odd address, bit for bit as base/half.h has it */
    unsigned char *raw = malloc(2 * 65536 + 1);
    float *x = malloc(65536 * sizeof *x);
    for (int type = 0; type < 2; type++) {
        for (unsigned h = 0; h < 65536; h++) {
            raw[1 + 2 * h] = (unsigned char)h;
            raw[2 + 2 * h] = (unsigned char)(h >> 8);
        }
        dfcl_to_f32(type ? DFCL_BF16 : DFCL_F16, raw + 1, x, 65536);
        for (unsigned h = 0; h < 65536; h++) {
            float want = type ? dfcl_bf16_to_f32((uint16_t)h) : dfcl_f16_to_f32((uint16_t)h);
            assert_memory_equal(&x[h], &want, 4);
        }
    }
    /* and rounding: every sign and exponent with the mantissas around a tie, at an odd address */
    static const uint32_t low[] = {0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0x17fff, 0x18000, 0x7fefff, 0x7ff000, 0x7fffff};
    size_t n = 0;
    for (uint32_t top = 0; top < 512; top++)
        for (size_t k = 0; k < DFCL_COUNT(low); k++) {
            uint32_t u = top << 23 | low[k];
            memcpy(&x[n++], &u, 4);
        }
    for (int type = 0; type < 2; type++) {
        assert_true(dfcl_from_f32(type ? DFCL_BF16 : DFCL_F16, x, raw + 1, n));
        for (size_t k = 0; k < n; k++)
            assert_int_equal(raw[1 + 2 * k] | raw[2 + 2 * k] << 8, type ? dfcl_f32_to_bf16(x[k]) : dfcl_f32_to_f16(x[k]));
    }
    free(raw);
    free(x);
}

static void missing_and_odd_paths(void **state) {
    (void)state;
    struct dfcl_tensor_file *f;
    dfcl_error e = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/none.safetensors", dir);
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, path, NULL, &e), DFCL_IO);
    assert_non_null(strstr(e.msg, "none.safetensors"));
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, dir, NULL, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "diffusion_pytorch_model.safetensors"));
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, "/dev/null", NULL, &e), DFCL_FORMAT);
    snprintf(path, sizeof path, "%s/empty", dir);
    OK(dfcl_file_write(ctx, path, "", 0, err));
    assert_int_equal(dfcl_tensor_file_open(&f, ctx, path, NULL, &e), DFCL_FORMAT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_names),      cmocka_unit_test(diffusers_equals_original), cmocka_unit_test(differing_copies),
        cmocka_unit_test(writer_round_trip), cmocka_unit_test(hostile),                   cmocka_unit_test(json_bomb),
        cmocka_unit_test(every_truncation),  cmocka_unit_test(conversions), cmocka_unit_test(missing_and_odd_paths),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
