#define _GNU_SOURCE
#include "data/scan.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/json.h"

#define MAX_DEPTH 16 /* of folders below the data folder */
#define MAX_CLASSES 100000

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcasecmp(s + n - m, tail);
}

static bool is_picture(const char *name) {
    return ends_with(name, ".png") || ends_with(name, ".jpg") || ends_with(name, ".jpeg");
}

static dfcl_status add_item(const dfcl_context *ctx, struct dfcl_scan *scan, char *path, char *label_path, int label,
                            dfcl_error *err) {
    void *p = scan->items;
    dfcl_status s = DFCL_OK;
    if (scan->count >= UINT32_MAX - 1)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: more files than can be counted", path);
    if (!s)
        s = dfcl_grow(ctx, &p, &scan->cap, scan->count + 1, sizeof *scan->items, err);
    scan->items = p;
    if (s) {
        dfcl_free(ctx, path);
        dfcl_free(ctx, label_path);
        return s;
    }
    scan->items[scan->count++] = (struct dfcl_scan_item){path, label_path, label};
    return DFCL_OK;
}

/* A folder that is being read, and the one it was found in. */
struct level {
    const struct level *above;
    dev_t dev;
    ino_t ino;
    int depth;
};

/* A link to a folder above would be followed for ever. */
static dfcl_status enter(struct level *l, const struct level *above, const char *dir, dfcl_error *err) {
    struct stat st;
    if (stat(dir, &st) != 0)
        return dfcl_fail_errno(err, dir, "cannot open folder");
    *l = (struct level){above, st.st_dev, st.st_ino, above ? above->depth + 1 : 0};
    for (; above; above = above->above)
        if (above->ino == st.st_ino && above->dev == st.st_dev)
            return dfcl_fail(err, DFCL_FORMAT, "%s: a link to a folder that it lies in", dir);
    if (l->depth > MAX_DEPTH)
        return dfcl_fail(err, DFCL_FORMAT, "%s: folders nested more than %d deep", dir, MAX_DEPTH);
    return DFCL_OK;
}

/* Pictures of one folder and below, in byte order of their names. A link to nothing that is called like a picture is a bad one. */
static dfcl_status scan_pictures(const dfcl_context *ctx, struct dfcl_scan *scan, const char *dir, int label, const struct level *above,
                                 size_t *other, dfcl_error *err) {
    struct dfcl_list list;
    struct level here;
    dfcl_status entered = enter(&here, above, dir, err);
    if (entered)
        return entered;
    dfcl_status s = dfcl_list_dir(ctx, dir, &list, err);
    for (size_t i = 0; !s && i < list.count; i++) {
        char *path = dfcl_sprintf(ctx, err, "%s/%s", dir, list.names[i]);
        if (!path) {
            s = DFCL_NOMEM;
            break;
        }
        if ((list.kinds[i] == DFCL_PATH_FILE || list.kinds[i] == DFCL_PATH_NONE) && is_picture(path)) {
            s = add_item(ctx, scan, path, NULL, label, err);
            continue;
        }
        if (list.kinds[i] == DFCL_PATH_DIR)
            s = scan_pictures(ctx, scan, path, label, &here, other, err);
        else
            ++*other;
        dfcl_free(ctx, path);
    }
    dfcl_list_free(ctx, &list);
    return s;
}

/* The folder's own name, also for "." and paths that end in a slash. */
static char *folder_name(const dfcl_context *ctx, const char *path, dfcl_error *err) {
    char *real = realpath(path, NULL);
    const char *base = real ? strrchr(real, '/') : NULL;
    char *name = dfcl_strdup(ctx, base && base[1] ? base + 1 : "class", err);
    free(real);
    return name;
}

/* Class names go into JSON: the run's settings, the delta's metadata. */
static dfcl_status check_name(const char *path, const char *name, dfcl_error *err) {
    const unsigned char *p = (const unsigned char *)name;
    for (int k; *p; p += k)
        if ((k = dfcl_utf8_len(p, strlen((const char *)p))) == 0)
            return dfcl_fail(err, DFCL_FORMAT, "%s: expected class names in UTF-8, found \"%s\" (byte 0x%02x)", path, name, *p);
    if (dfcl_has_control(name))
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected class names without control characters, found \"%s\"", path, name);
    return DFCL_OK;
}

static dfcl_status scan_images(const dfcl_context *ctx, const char *path, const struct dfcl_list *top, struct dfcl_scan *out,
                               dfcl_error *err) {
    size_t other = 0, folders = 0, here = 0;
    struct level root;
    dfcl_status s = enter(&root, NULL, path, err);
    for (size_t i = 0; !s && i < top->count; i++) {
        char *sub = dfcl_sprintf(ctx, err, "%s/%s", path, top->names[i]);
        if (!sub)
            return DFCL_NOMEM;
        if (top->kinds[i] == DFCL_PATH_DIR) {
            size_t before = out->count;
            folders++;
            if (out->classes.count >= MAX_CLASSES)
                s = dfcl_fail(err, DFCL_FORMAT, "%s: more than %d sub-folders", path, MAX_CLASSES);
            if (!s)
                s = check_name(path, top->names[i], err);
            if (!s)
                s = scan_pictures(ctx, out, sub, (int)out->classes.count, &root, &other, err);
            if (!s && out->count == before)
                s = dfcl_fail(err, DFCL_FORMAT, "%s: no PNG or JPEG pictures in this class folder", sub);
            if (!s)
                s = dfcl_list_add(ctx, &out->classes, top->names[i], err);
        } else {
            here += is_picture(sub);
        }
        dfcl_free(ctx, sub);
    }
    if (s)
        return s;
    if (!folders) {
        s = scan_pictures(ctx, out, path, 0, NULL, &other, err);
        char *name = s ? NULL : folder_name(ctx, path, err);
        if (name)
            s = check_name(path, name, err);
        if (!s)
            s = name ? dfcl_list_add(ctx, &out->classes, name, err) : DFCL_NOMEM;
        dfcl_free(ctx, name);
    } else if (here) {
        dfcl_log(ctx, DFCL_LOG_WARN, "%s: %zu pictures beside the class folders are not used", path, here);
    }
    if (!s && !out->count)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected PNG or JPEG pictures, or class folders of them; found none among %zu entries",
                      path, top->count);
    if (!s && other)
        dfcl_log(ctx, DFCL_LOG_WARN, "%s: %zu files are not PNG or JPEG pictures and are not used", path, other);
    return s;
}

static dfcl_status read_names(const dfcl_context *ctx, const char *path, struct dfcl_list *out, dfcl_error *err) {
    char *text;
    size_t size;
    dfcl_status s = dfcl_file_read(ctx, path, 16 << 20, &text, &size, err);
    if (s)
        return s;
    for (char *p = text, *end; !s && *p; p = end) {
        end = p + strcspn(p, "\n");
        if (*end)
            *end++ = 0;
        p[strcspn(p, "\r")] = 0;
        if (out->count >= MAX_CLASSES)
            s = dfcl_fail(err, DFCL_FORMAT, "%s: more than %d lines", path, MAX_CLASSES);
        else
            s = check_name(path, p, err);
        if (!s)
            s = dfcl_list_add(ctx, out, p, err);
    }
    dfcl_free(ctx, text);
    if (!s && !out->count)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected one class name a line, found an empty file", path);
    return s;
}

static dfcl_status scan_latents(const dfcl_context *ctx, const char *path, const char *features, struct dfcl_scan *out,
                                dfcl_error *err) {
    size_t stem = strlen(features) - strlen("_features");
    char *fdir = dfcl_sprintf(ctx, err, "%s/%s", path, features);
    char *ldir = dfcl_sprintf(ctx, err, "%s/%.*s_labels", path, (int)stem, features);
    char *names = dfcl_sprintf(ctx, err, "%s/class_names.txt", path);
    struct dfcl_list list = {0};
    dfcl_status s = fdir && ldir && names ? DFCL_OK : DFCL_NOMEM;
    if (!s && dfcl_path_kind(ldir) != DFCL_PATH_DIR)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: latents need their labels in %s, which is not a folder", fdir, ldir);
    if (!s)
        s = dfcl_list_dir(ctx, fdir, &list, err);
    for (size_t i = 0; !s && i < list.count; i++) {
        if (!ends_with(list.names[i], ".npy"))
            continue;
        char *f = dfcl_sprintf(ctx, err, "%s/%s", fdir, list.names[i]);
        char *l = dfcl_sprintf(ctx, err, "%s/%s", ldir, list.names[i]);
        if (f && l) {
            s = add_item(ctx, out, f, l, -1, err);
            continue;
        }
        dfcl_free(ctx, f);
        dfcl_free(ctx, l);
        s = DFCL_NOMEM;
    }
    if (!s && !out->count)
        s = dfcl_fail(err, DFCL_FORMAT, "%s: expected latents K.npy, found none among %zu entries", fdir, list.count);
    if (!s && dfcl_path_kind(names) == DFCL_PATH_FILE)
        s = read_names(ctx, names, &out->classes, err);
    out->latent = true;
    dfcl_list_free(ctx, &list);
    dfcl_free(ctx, fdir);
    dfcl_free(ctx, ldir);
    dfcl_free(ctx, names);
    return s;
}

dfcl_status dfcl_scan_folder(const dfcl_context *ctx, const char *path, struct dfcl_scan *out, dfcl_error *err) {
    struct dfcl_list top;
    memset(out, 0, sizeof *out);
    if (dfcl_path_kind(path) == DFCL_PATH_FILE)
        return dfcl_fail(err, DFCL_FORMAT, "%s: expected a folder of pictures or latents, found a file", path);
    dfcl_status s = dfcl_list_dir(ctx, path, &top, err);
    if (s)
        return s;
    const char *features = NULL;
    for (size_t i = 0; !s && i < top.count; i++) {
        if (!ends_with(top.names[i], "_features"))
            continue;
        if (features)
            s = dfcl_fail(err, DFCL_FORMAT, "%s: expected one folder of latents, found %s and %s", path, features, top.names[i]);
        features = top.names[i];
    }
    if (!s)
        s = features ? scan_latents(ctx, path, features, out, err) : scan_images(ctx, path, &top, out, err);
    dfcl_list_free(ctx, &top);
    if (s)
        dfcl_scan_free(ctx, out);
    return s;
}

void dfcl_scan_free(const dfcl_context *ctx, struct dfcl_scan *scan) {
    for (size_t i = 0; i < scan->count; i++) {
        dfcl_free(ctx, scan->items[i].path);
        dfcl_free(ctx, scan->items[i].label_path);
    }
    dfcl_free(ctx, scan->items);
    dfcl_list_free(ctx, &scan->classes);
    memset(scan, 0, sizeof *scan);
}
