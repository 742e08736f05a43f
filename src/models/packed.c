#include "models/packed.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "base/sha256.h"
#include "models/dit_internal.h"

enum { PAGE = 4096, PIECE = 4 << 20 };
static const char first_line[] = "difffit-cl packed 1\n";
enum { HASH_AT = sizeof first_line - 1, SUM_AT = HASH_AT + 65, BODY_AT = SUM_AT + 65 };

double dfcl_packed_min_age_s = 2.0;

struct dfcl_packed {
    const dfcl_context *ctx;
    char *base, *dir, *path; /* the base's file, the folder, the file in it */
    struct stat state;       /* of the base's file when it was opened */
    char *body;              /* the head's text from BODY_AT on */
    uint64_t head, total;    /* bytes: the head with its padding, the file */
    struct dfcl_map map;
};

static uint64_t whole_pages(uint64_t n) {
    return (n + PAGE - 1) / PAGE * PAGE;
}
static uint64_t matrix_bytes(const struct dfcl_dit *dit, const struct dit_linear *l) {
    return dfcl_panel_count(l->weight.N, l->weight.K) * dfcl_dtype_size(dit->opt.weights);
}

static dfcl_status digest(const char *const *parts, size_t count, char hex[65], dfcl_error *err) {
    struct dfcl_sha256 h;
    dfcl_status s = dfcl_sha256_init(&h, err);
    if (s)
        return s;
    for (size_t i = 0; i < count && !s; i++)
        s = dfcl_sha256_update(&h, parts[i], strlen(parts[i]) + 1, err); /* with the zero, which keeps parts apart */
    if (s) {
        dfcl_sha256_abort(&h);
        return s;
    }
    return dfcl_sha256_finish(&h, hex, err);
}

/* ---- the head ---- */

static dfcl_status make_body(struct dfcl_packed *pk, struct dfcl_dit *dit, const char *which, dfcl_error *err) {
    const struct stat *st = &pk->state;
    struct dit_linear *l;
    size_t cap = 4096 + strlen(pk->base);
    int n = 0;
    while (dit_linear_at(dit, n))
        n++;
    cap += (size_t)n * 128;
    if (!(pk->body = dfcl_calloc(pk->ctx, cap, 1, err)))
        return DFCL_NOMEM;
    pk->head = whole_pages(BODY_AT + cap);
    dfcl_append(pk->body, cap, "base %s\nvalues %s\nstate %llu %lld %lld.%09ld %lld.%09ld\ntype %s\npanel %d\n",
                pk->base, which, (unsigned long long)st->st_ino, (long long)st->st_size, (long long)st->st_mtim.tv_sec,
                st->st_mtim.tv_nsec, (long long)st->st_ctim.tv_sec, st->st_ctim.tv_nsec,
                dfcl_dtype_name(dit->opt.weights), DFCL_PANEL);
    pk->total = pk->head;
    for (int i = 0; (l = dit_linear_at(dit, i)); i++) {
        dfcl_append(pk->body, cap, "%llu %d %d %s\n", (unsigned long long)pk->total, l->weight.N, l->weight.K,
                    l->w->name);
        pk->total += whole_pages(matrix_bytes(dit, l));
    }
    return dfcl_append(pk->body, cap, "size %llu\n", (unsigned long long)pk->total)
               ? DFCL_OK
               : dfcl_fail(err, DFCL_ERROR, "packed weights: the head does not fit");
}

/* The head as it is to be, pk->head bytes. */
static dfcl_status make_head(const struct dfcl_packed *pk, const char *hash, char **out, dfcl_error *err) {
    char sum[65];
    dfcl_status s = digest((const char *const[]){first_line, hash, pk->body}, 3, sum, err);
    *out = s ? NULL : dfcl_calloc(pk->ctx, (size_t)pk->head, 1, err);
    if (*out)
        snprintf(*out, (size_t)pk->head, "%s%s\n%s\n%s", first_line, hash, sum, pk->body);
    return s ? s : *out ? DFCL_OK : DFCL_NOMEM;
}

/* Whether the mapped file is what would be written now; the base's hash is taken from it, and all else from here. */
static dfcl_status check(const struct dfcl_packed *pk, char hash[65], const char **why, dfcl_error *err) {
    char *head;
    *why = "damaged";
    if (pk->map.size < pk->head || memcmp(pk->map.data, first_line, HASH_AT))
        return DFCL_OK;
    memcpy(hash, pk->map.data + HASH_AT, 64);
    hash[64] = 0;
    if (strspn(hash, "0123456789abcdef") == 64) {
        dfcl_status s = make_head(pk, hash, &head, err);
        if (s)
            return s;
        bool same = !memcmp(head, pk->map.data, (size_t)pk->head);
        if (same && pk->map.size == pk->total)
            *why = NULL;
        else if (!same && memcmp(head + BODY_AT, pk->map.data + BODY_AT, (size_t)pk->head - BODY_AT))
            *why = "made for another state of the base";
        dfcl_free(pk->ctx, head);
    }
    if (*why)
        hash[0] = 0;
    return DFCL_OK;
}

/* ---- opening ---- */

static bool same_state(const struct stat *a, const struct stat *b) {
    return a->st_ino == b->st_ino && a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Why nothing can be kept; NULL: something can. */
static const char *obstacle(struct dfcl_dit *dit, const struct dfcl_base *base) {
    struct dit_linear *l;
    if (!dit->ctx->cache_dir)
        return "there is no cache folder";
    if (!dit_packs(dit))
        return "this device uses matrices as rows";
    for (int i = 0; (l = dit_linear_at(dit, i)); i++)
        if (l->w->trained)
            return "matrices are trained";
    if (!S_ISREG(base->state.st_mode))
        return "the base is not a single file";
    return NULL;
}

static dfcl_status set_paths(struct dfcl_packed *pk, struct dfcl_dit *dit, const struct dfcl_base *base,
                             const char *which, dfcl_error *err) {
    char real[PATH_MAX], key[65], panel[16];
    if (!realpath(base->path, real))
        return dfcl_fail_errno(err, base->path, "cannot resolve");
    snprintf(panel, sizeof panel, "%d", DFCL_PANEL);
    dfcl_status s = digest((const char *const[]){real, which, dfcl_dtype_name(dit->opt.weights), panel}, 4, key, err);
    if (s)
        return s;
    if (!(pk->base = dfcl_strdup(pk->ctx, real, err)) ||
        !(pk->dir = dfcl_sprintf(pk->ctx, err, "%s/packed", pk->ctx->cache_dir)) ||
        !(pk->path = dfcl_sprintf(pk->ctx, err, "%s/%s.bin", pk->dir, key)))
        return DFCL_NOMEM;
    return DFCL_OK;
}

static dfcl_status map_matrices(struct dfcl_packed *pk, struct dfcl_dit *dit, dfcl_error *err) {
    uint64_t at = pk->head;
    struct dit_linear *l;
    dfcl_status s = DFCL_OK;
    for (int i = 0; !s && (l = dit_linear_at(dit, i)); i++) {
        s = dfcl_dit_map_weight(dit, l->w, pk->map.data + at, DFCL_PANEL48, err);
        at += whole_pages(matrix_bytes(dit, l));
    }
    return s;
}

dfcl_status dfcl_packed_open(struct dfcl_packed **out, struct dfcl_dit *dit, const struct dfcl_base *base,
                             const char *which, char hash[65], dfcl_error *err) {
    const dfcl_context *ctx = dit->ctx;
    *out = NULL;
    hash[0] = 0;
    which = which && *which ? which : "ema";
    const char *why = obstacle(dit, base);
    if (why) {
        dfcl_log(ctx, DFCL_LOG_WARN, "%s: packed weights are not kept: %s", base->path, why);
        return DFCL_OK;
    }
    struct dfcl_packed *pk = dfcl_calloc(ctx, 1, sizeof *pk, err);
    if (!pk)
        return DFCL_NOMEM;
    pk->ctx = ctx;
    pk->state = base->state;
    dfcl_status s = set_paths(pk, dit, base, which, err);
    if (!s)
        s = make_body(pk, dit, which, err);
    dfcl_error e = {0};
    if (!s && dfcl_path_kind(pk->path) != DFCL_PATH_NONE) {
        if (dfcl_map_open(&pk->map, pk->path, &e))
            dfcl_log(ctx, DFCL_LOG_WARN, "packed weights: %s", e.msg);
        else if (!(s = check(pk, hash, &why, err)) && why)
            dfcl_log(ctx, strcmp(why, "damaged") ? DFCL_LOG_INFO : DFCL_LOG_WARN, "packed weights: %s: %s, made again",
                     pk->path, why);
    }
    if (!s && hash[0])
        s = map_matrices(pk, dit, err);
    if (!s && !hash[0])
        dfcl_map_close(&pk->map);
    if (s)
        dfcl_packed_close(&pk);
    *out = pk;
    return s;
}

void dfcl_packed_close(struct dfcl_packed **p) {
    struct dfcl_packed *pk = *p;
    if (!pk)
        return;
    dfcl_map_close(&pk->map);
    dfcl_free(pk->ctx, pk->body);
    dfcl_free(pk->ctx, pk->base);
    dfcl_free(pk->ctx, pk->dir);
    dfcl_free(pk->ctx, pk->path);
    dfcl_free(pk->ctx, pk);
    *p = NULL;
}

/* ---- writing ---- */

/* Temporary files of processes that ended while they wrote: as large as the real one. */
static void remove_leftovers(const struct dfcl_packed *pk) {
    struct dfcl_list files = {0};
    if (dfcl_list_dir(pk->ctx, pk->dir, &files, NULL))
        return;
    for (size_t i = 0; i < files.count; i++) {
        const char *tmp = strstr(files.names[i], ".bin.tmp-");
        long pid = tmp ? atol(tmp + strlen(".bin.tmp-")) : 0;
        char *path =
            pid > 0 && kill((pid_t)pid, 0) != 0 ? dfcl_sprintf(pk->ctx, NULL, "%s/%s", pk->dir, files.names[i]) : NULL;
        if (path)
            remove(path);
        dfcl_free(pk->ctx, path);
    }
    dfcl_list_free(pk->ctx, &files);
}

static dfcl_status write_matrices(struct dfcl_writer *w, struct dfcl_dit *dit, dfcl_error *err) {
    unsigned char *buf = dfcl_calloc(dit->ctx, PIECE, 1, err);
    dfcl_status s = buf ? DFCL_OK : DFCL_NOMEM;
    struct dit_linear *l;
    for (int i = 0; !s && (l = dit_linear_at(dit, i)); i++) {
        uint64_t bytes = matrix_bytes(dit, l);
        for (uint64_t at = 0; !s && at < bytes; at += PIECE) {
            uint64_t n = DFCL_MIN((uint64_t)PIECE, bytes - at);
            memset(buf + n, 0, (size_t)(whole_pages(n) - n));
            if (!(s = dfcl_read(dit->dev, buf, dfcl_ref_at(l->weight.packed, at), n, err)))
                s = dfcl_writer_write(w, buf, (size_t)whole_pages(n), err);
        }
    }
    dfcl_free(dit->ctx, buf);
    return s;
}

bool dfcl_packed_base_is_same(const struct dfcl_packed *pk) {
    struct stat now;
    return stat(pk->base, &now) == 0 && same_state(&now, &pk->state);
}

void dfcl_packed_store(struct dfcl_packed *pk, struct dfcl_dit *dit, const char *hash) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double changed = DFCL_MAX((double)pk->state.st_mtim.tv_sec, (double)pk->state.st_ctim.tv_sec);
    if (!dfcl_packed_base_is_same(pk) || (double)t.tv_sec - changed < dfcl_packed_min_age_s) {
        dfcl_log(pk->ctx, DFCL_LOG_INFO, "%s: packed weights are not kept yet: the file has just changed", pk->base);
        return;
    }
    dfcl_error e = {0};
    struct dfcl_writer w = {0};
    char *head = NULL;
    dfcl_status s = dfcl_mkdirs(pk->ctx, pk->dir, &e);
    if (!s) {
        remove_leftovers(pk);
        s = make_head(pk, hash, &head, &e);
    }
    if (!s && !(s = dfcl_writer_open(&w, pk->ctx, pk->path, &e)) &&
        !(s = dfcl_writer_write(&w, head, (size_t)pk->head, &e)) && !(s = write_matrices(&w, dit, &e)))
        s = dfcl_writer_commit(&w, &e);
    dfcl_writer_abort(&w);
    dfcl_free(pk->ctx, head);
    if (s)
        dfcl_log(pk->ctx, DFCL_LOG_WARN, "packed weights are not kept: %s", e.msg);
    else
        dfcl_log(pk->ctx, DFCL_LOG_INFO, "%s: packed weights kept in %s, %.1f MiB", pk->base, pk->path,
                 (double)pk->total / 1048576.0);
}
