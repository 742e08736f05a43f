/* data/scan: which files of a folder are samples, and of which class. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/scan.h"

static dfcl_context *ctx;
static char root[64];
static int warnings;

static void count_warnings(void *user, enum dfcl_log_level level, const char *line) {
    (void)user;
    (void)line;
    warnings += level == DFCL_LOG_WARN;
}

static int setup(void **state) {
    (void)state;
    struct dfcl_context_params p = {.log = count_warnings};
    strcpy(root, "/tmp/dfcl-scan-XXXXXX");
    warnings = 0;
    return !mkdtemp(root) || dfcl_context_create(&ctx, &p, NULL);
}
static int teardown(void **state) {
    (void)state;
    dfcl_remove_tree(ctx, root, NULL);
    dfcl_context_destroy(&ctx);
    return 0;
}

static void put(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_int_equal(dfcl_mkdirs(ctx, path, NULL), DFCL_OK);
    *slash = '/';
    assert_int_equal(dfcl_file_write(ctx, path, text, strlen(text), NULL), DFCL_OK);
}

static void class_folders(void **state) {
    (void)state;
    struct dfcl_scan s;
    put("b cat/2.png", "");
    put("b cat/1.JPG", "");
    put("b cat/deep/er/0.jpeg", "");
    put("b cat/notes.txt", "");
    put("Ant/z.png", "");
    put("stray.png", "");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, NULL), DFCL_OK);
    assert_false(s.latent);
    assert_int_equal(s.classes.count, 2);
    assert_string_equal(s.classes.names[0], "Ant");
    assert_string_equal(s.classes.names[1], "b cat");
    static const char *const want[] = {"/Ant/z.png", "/b cat/1.JPG", "/b cat/2.png", "/b cat/deep/er/0.jpeg"};
    assert_int_equal(s.count, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(s.items[i].path + strlen(root), want[i]);
        assert_int_equal(s.items[i].label, i > 0);
        assert_null(s.items[i].label_path);
    }
    assert_int_equal(warnings, 2); /* the stray picture, the text file */
    dfcl_scan_free(ctx, &s);
}

static void flat_folder(void **state) {
    (void)state;
    struct dfcl_scan s;
    char path[128];
    put("my flowers/2.png", "");
    put("my flowers/1.png", "");
    snprintf(path, sizeof path, "%s/my flowers//", root);
    assert_int_equal(dfcl_scan_folder(ctx, path, &s, NULL), DFCL_OK);
    assert_int_equal(s.count, 2);
    assert_int_equal(s.classes.count, 1);
    assert_string_equal(s.classes.names[0], "my flowers");
    dfcl_scan_free(ctx, &s);
}

/* Links count as what they point at; one to nothing is a file that cannot be read; one to a folder above has no end. */
static void link_to(const char *target, const char *name) {
    char from[256], to[256];
    snprintf(to, sizeof to, "%s/%s", root, target);
    snprintf(from, sizeof from, "%s/%s", root, name);
    assert_int_equal(symlink(to, from), 0);
}

static void links(void **state) {
    (void)state;
    struct dfcl_scan s;
    dfcl_error e = {0};
    char data[256];
    snprintf(data, sizeof data, "%s/data", root);
    put("elsewhere/far/1.png", "");
    put("data/a/real.png", "");
    link_to("elsewhere", "data/b");
    link_to("elsewhere/far/1.png", "data/a/link.png");
    link_to("nothing.png", "data/a/void.png");
    link_to("nothing.txt", "data/a/void.txt");
    assert_int_equal(dfcl_scan_folder(ctx, data, &s, NULL), DFCL_OK);
    static const char *const want[] = {"/a/link.png", "/a/real.png", "/a/void.png", "/b/far/1.png"};
    assert_int_equal(s.count, 4);
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(s.items[i].path + strlen(data), want[i]);
    dfcl_scan_free(ctx, &s);
    link_to("data", "elsewhere/far/round");
    assert_int_equal(dfcl_scan_folder(ctx, data, &s, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "far/round: a link to a folder that it lies in"));
}

static void nothing_there(void **state) {
    (void)state;
    struct dfcl_scan s;
    dfcl_error e = {0};
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, root));
    put("cat/1.png", "");
    put("dog/readme.md", "");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "dog"));
    char path[128];
    snprintf(path, sizeof path, "%s/missing", root);
    assert_int_equal(dfcl_scan_folder(ctx, path, &s, &e), DFCL_IO);
}

static void latents(void **state) {
    (void)state;
    struct dfcl_scan s;
    dfcl_error e = {0};
    put("imagenet256_features/0.npy", "");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_FORMAT);
    assert_non_null(strstr(e.msg, "imagenet256_labels"));
    put("imagenet256_labels/0.npy", "");
    put("imagenet256_features/1.npy", "");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_OK);
    assert_true(s.latent);
    assert_int_equal(s.count, 2);
    assert_int_equal(s.classes.count, 0);
    assert_string_equal(s.items[1].label_path + strlen(root), "/imagenet256_labels/1.npy");
    dfcl_scan_free(ctx, &s);
    put("class_names.txt", "tench\r\ngold fish\n");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_OK);
    assert_int_equal(s.classes.count, 2);
    assert_string_equal(s.classes.names[0], "tench");
    assert_string_equal(s.classes.names[1], "gold fish");
    dfcl_scan_free(ctx, &s);
    put("other_features/0.npy", "");
    assert_int_equal(dfcl_scan_folder(ctx, root, &s, &e), DFCL_FORMAT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(class_folders, setup, teardown),
        cmocka_unit_test_setup_teardown(flat_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(links, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_there, setup, teardown),
        cmocka_unit_test_setup_teardown(latents, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
