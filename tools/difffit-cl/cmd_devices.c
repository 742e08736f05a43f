#include "commands.h"

#include <stdlib.h>

static const char *type_name(const struct dfcl_device_info *d) {
    if (d->type == DFCL_DEVICE_GPU)
        return d->integrated ? "integrated GPU" : "GPU";
    return d->type == DFCL_DEVICE_ACCELERATOR ? "accelerator" : "CPU";
}

static void print_json(const struct dfcl_device_info *list, int n) {
    printf("[");
    for (int i = 0; i < n; i++) {
        const struct dfcl_device_info *d = &list[i];
        const struct {
            const char *key, *value;
        } text[] = {{"selector", d->selector}, {"backend", d->backend}, {"platform", d->platform}, {"name", d->name},
                    {"vendor", d->vendor},     {"driver", d->driver},   {"version", d->version},   {"type", type_name(d)},
                    {"problem", d->problem}};
        printf("%s\n  {\"index\": %d", i ? "," : "", d->index);
        for (size_t k = 0; k < sizeof text / sizeof *text; k++) {
            printf(", \"%s\": ", text[k].key);
            cli_json_string(stdout, text[k].value);
        }
        printf(", \"memory_bytes\": %llu, \"max_alloc_bytes\": %llu, \"local_memory_bytes\": %llu, \"compute_units\": %u, "
               "\"max_work_group\": %u, \"sub_group\": %u, \"vector_bits\": %u, \"fp16\": %s, \"bf16_dot\": %s, \"usable\": %s}",
               (unsigned long long)d->memory, (unsigned long long)d->max_alloc, (unsigned long long)d->local_memory, d->compute_units,
               d->max_work_group, d->sub_group, d->vector_bits, d->fp16 ? "true" : "false",
               d->bf16_dot ? "true" : "false", d->usable ? "true" : "false");
    }
    printf("%s]\n", n ? "\n" : "");
}

/* Whether bf16 dot products are used is known once a device is open; one that cannot be opened shows its listing. */
static void look_closer(struct cli *c, struct dfcl_device_info *d) {
    dfcl_device *dev;
    if (!d->usable || d->type != DFCL_DEVICE_CPU || dfcl_device_open(&dev, c->ctx, d->selector, NULL))
        return;
    d->bf16_dot = dfcl_device_get_info(dev)->bf16_dot;
    dfcl_device_close(&dev);
}

int cmd_devices(struct cli *c, int argc, char **argv) {
    bool json = false;
    const struct cli_option options[] = {
        {"--json", CLI_FLAG, &json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv, "devices [--json]\n\nLists every compute device, best first; `auto` takes the first usable one.", options, NULL, 0) < 0)
        return c->code;
    dfcl_error err = {0};
    int n = 0, max = 0;
    struct dfcl_device_info *list = NULL;
    do { /* the list may grow between the two calls */
        max = n;
        free(list);
        list = max ? calloc((size_t)max, sizeof *list) : NULL;
        if (max && !list) {
            fprintf(stderr, "difffit-cl devices: out of memory\n");
            return DFCL_NOMEM;
        }
        if (dfcl_device_list(c->ctx, list, max, &n, &err)) {
            free(list);
            return cli_fail(c, &err);
        }
    } while (n > max);
    for (int i = 0; i < n; i++)
        look_closer(c, &list[i]);
    if (json) {
        print_json(list, n);
    } else {
        for (int i = 0; i < n; i++) {
            const struct dfcl_device_info *d = &list[i];
            printf("%d  %-10s %s\n", d->index, d->selector, d->name);
            printf("   %s, %s, driver %s\n", type_name(d), d->platform, d->driver);
            printf("   %u compute units, %.1f GiB memory, largest allocation %.1f GiB, sub-groups %s", d->compute_units,
                   (double)d->memory / 1073741824.0, (double)d->max_alloc / 1073741824.0, d->sub_group ? "" : "no");
            if (d->sub_group)
                printf("%u", d->sub_group);
            printf(", half arithmetic %s", d->fp16 ? "yes" : "no");
            if (d->type == DFCL_DEVICE_CPU)
                printf(", bf16 dot %s", d->bf16_dot ? "yes" : "no");
            printf("\n");
            if (!d->usable)
                printf("   not usable: %s\n", d->problem);
        }
    }
    free(list);
    return 0;
}
