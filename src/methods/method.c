#include "methods/method.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct dfcl_method *const methods[] = {
    &dfcl_method_difffit,
    &dfcl_method_difffit_block,
    &dfcl_method_bitfit,
    &dfcl_method_full,
};

const struct dfcl_method *const *dfcl_methods(int *count) {
    *count = (int)DFCL_COUNT(methods);
    return methods;
}

dfcl_status dfcl_method_find(const char *name, const struct dfcl_method **out, dfcl_error *err) {
    char known[256] = "";
    *out = NULL;
    if (!name)
        name = "difffit";
    for (size_t i = 0; i < DFCL_COUNT(methods); i++) {
        if (!strcmp(methods[i]->name, name)) {
            *out = methods[i];
            return DFCL_OK;
        }
        dfcl_append(known, sizeof known, "%s%s", i ? ", " : "", methods[i]->name);
    }
    return dfcl_fail(err, DFCL_USAGE, "method \"%s\": expected one of %s", name, known);
}

/* ---- options as text ---- */

static const struct {
    const char *name;
    unsigned site;
} sites_table[] = {{"qkv", DFCL_SITE_QKV}, {"proj", DFCL_SITE_PROJ}, {"attn", DFCL_SITE_ATTN}, {"mlp", DFCL_SITE_MLP}};

dfcl_status dfcl_sites_parse(const char *text, unsigned *sites, dfcl_error *err) {
    *sites = 0;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ","), i = 0;
        while (i < DFCL_COUNT(sites_table) && (strlen(sites_table[i].name) != n || memcmp(sites_table[i].name, p, n)))
            i++;
        if (i == DFCL_COUNT(sites_table))
            return dfcl_fail(err, DFCL_USAGE, "gamma sites \"%s\": expected a list of qkv, proj, attn, mlp", text);
        *sites |= sites_table[i].site;
        p += n;
        if (*p == ',' && !*++p)
            return dfcl_fail(err, DFCL_USAGE, "gamma sites \"%s\": ends in a comma", text);
    }
    return *sites ? DFCL_OK : dfcl_fail(err, DFCL_USAGE, "gamma sites: empty; expected a list of qkv, proj, attn, mlp");
}

void dfcl_sites_format(unsigned sites, char *buf, size_t size) {
    if (size)
        *buf = 0;
    for (size_t i = 0; i < DFCL_COUNT(sites_table); i++)
        if (sites & sites_table[i].site)
            dfcl_append(buf, size, "%s%s", size && *buf ? "," : "", sites_table[i].name);
}

static bool number(const char **p, long *out) {
    if (**p < '0' || **p > '9')
        return false;
    char *end;
    *out = strtol(*p, &end, 10);
    *p = end;
    return true;
}

dfcl_status dfcl_blocks_parse(const char *text, bool *blocks, int depth, dfcl_error *err) {
    for (int i = 0; i < depth; i++)
        blocks[i] = false;
    if (!strcmp(text, "all") || !strcmp(text, "half")) {
        int n = text[0] == 'a' ? depth : DFCL_MAX(depth / 2, 1);
        for (int i = 0; i < n; i++)
            blocks[i] = true;
        return DFCL_OK;
    }
    const char *p = text;
    do {
        long a, b;
        if (!number(&p, &a))
            return dfcl_fail(err, DFCL_USAGE, "gamma blocks \"%s\": expected all, half, or numbers such as 0-13 or 0,2,4-6", text);
        b = a;
        if (*p == '-' && (p++, !number(&p, &b)))
            return dfcl_fail(err, DFCL_USAGE, "gamma blocks \"%s\": a range without an end", text);
        if (b < a || b >= depth)
            return dfcl_fail(err, DFCL_USAGE, "gamma blocks \"%s\": %ld-%ld does not lie in the model's blocks 0-%d", text, a, b,
                             depth - 1);
        for (long i = a; i <= b; i++)
            blocks[i] = true;
    } while (*p == ',' && *++p);
    if (*p || p[-1] == ',')
        return dfcl_fail(err, DFCL_USAGE, "gamma blocks \"%s\": cannot read \"%s\"", text, *p ? p : ",");
    return DFCL_OK;
}

void dfcl_blocks_format(const bool *blocks, int depth, char *buf, size_t size) {
    if (size)
        *buf = 0;
    for (int i = 0; i < depth; i++) {
        if (!blocks[i])
            continue;
        int j = i;
        while (j + 1 < depth && blocks[j + 1])
            j++;
        dfcl_append(buf, size, "%s%d", size && *buf ? "," : "", i);
        if (j > i)
            dfcl_append(buf, size, "-%d", j);
        i = j;
    }
}

/* ---- opening a base for training ---- */

struct selection {
    const struct dfcl_method *method;
    struct dfcl_method_plan plan;
};

static dfcl_status select_roles(void *user, struct dfcl_dit *dit, dfcl_error *err) {
    const struct selection *sel = user;
    return sel->method->select(sel->method, &sel->plan, dit, err);
}

/* The base's table serves when the data's classes are the base's own, in the same order. */
static bool same_classes(const struct dfcl_base *base, const struct dfcl_method_config *c) {
    if (c->classes != base->cfg.classes)
        return false;
    if (!c->class_names)
        return true;
    for (int i = 0; i < c->classes; i++)
        if (!base->class_names || !c->class_names[i] || strcmp(base->class_names[i], c->class_names[i]))
            return false;
    return true;
}

dfcl_status dfcl_method_open(dfcl_model **out, dfcl_device *dev, const struct dfcl_model_params *params,
                             const struct dfcl_method_config *config, dfcl_error *err) {
    const dfcl_context *ctx = dev->ctx;
    struct dfcl_base *base = NULL;
    struct selection sel = {0};
    float *rows = NULL;
    *out = NULL;
    dfcl_status s = dfcl_method_find(config->method, &sel.method, err);
    if (s || (s = dfcl_base_open(&base, ctx, params, err)))
        return s;
    int depth = base->cfg.depth;
    bool rebuild = config->classes > 0 && !same_classes(base, config);
    sel.plan.depth = depth;
    sel.plan.sites = sel.method->default_sites;
    sel.plan.train_classes = config->train_classes > 0 || (!config->train_classes && (rebuild || sel.method->classes_by_default));
    sel.plan.blocks = dfcl_calloc(ctx, (size_t)depth, sizeof *sel.plan.blocks, err);
    char gamma_sites[48] = "", gamma_blocks[256] = "";
    if (!sel.plan.blocks) {
        s = DFCL_NOMEM;
        goto out;
    }
    if (!sel.method->default_sites && (config->gamma_sites || config->gamma_blocks)) {
        s = dfcl_fail(err, DFCL_USAGE, "method %s has no gammas: gamma sites and blocks do not apply", sel.method->name);
        goto out;
    }
    if (sel.method->default_sites) {
        if (config->gamma_sites && (s = dfcl_sites_parse(config->gamma_sites, &sel.plan.sites, err)))
            goto out;
        if ((s = dfcl_blocks_parse(config->gamma_blocks ? config->gamma_blocks : sel.method->default_blocks, sel.plan.blocks, depth, err)))
            goto out;
        dfcl_sites_format(sel.plan.sites, gamma_sites, sizeof gamma_sites);
        dfcl_blocks_format(sel.plan.blocks, depth, gamma_blocks, sizeof gamma_blocks);
    }
    if (rebuild) {
        size_t n;
        if (!dfcl_mul_size((size_t)config->classes + 1, (size_t)base->cfg.hidden, &n)) {
            s = dfcl_fail(err, DFCL_NOMEM, "class table of %d classes is too large", config->classes);
            goto out;
        }
        if (!(rows = dfcl_calloc(ctx, n, sizeof *rows, err))) {
            s = DFCL_NOMEM;
            goto out;
        }
        /* before the upload, which closes the base's file */
        if ((s = dfcl_class_table_init(base, config->class_init, config->seed, config->classes, config->class_names, rows, err)))
            goto out;
    }
    struct dfcl_model_setup setup = {.training = true, .classes = rebuild ? config->classes : 0,
                                     .class_names = rebuild ? config->class_names : NULL, .select = select_roles, .user = &sel};
    s = dfcl_model_open_base(out, dev, base, params, &setup, err);
    base = NULL; /* taken over */
    if (s)
        goto out;
    if (rebuild && (s = dfcl_dit_set_rows((*out)->dit, 0, config->classes + 1, rows, err)))
        goto out;
    snprintf((*out)->method, sizeof (*out)->method, "%s", sel.method->name);
    snprintf((*out)->gamma_sites, sizeof (*out)->gamma_sites, "%s", gamma_sites);
    snprintf((*out)->gamma_blocks, sizeof (*out)->gamma_blocks, "%s", gamma_blocks);
out:
    if (s)
        dfcl_model_close(out);
    dfcl_base_close(&base);
    dfcl_free(ctx, rows);
    dfcl_free(ctx, sel.plan.blocks);
    return s;
}
