/* doctor: what a bug report needs. Findings are gathered as JSON, the text form prints the same object. Nothing that is missing or broken ends it. */
#define _GNU_SOURCE
#include "commands.h"
#include "doctor.h"

#include <cjson/cJSON.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

extern char **environ;

/* ---- small files ---- */

/* What follows "KEY" and blanks, : or = on a line of a text file, without quotes; false when there is no such line. */
static bool file_value(const char *path, const char *key, char *buf, size_t size) {
    char line[8192];
    FILE *f = fopen(path, "re");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) || !strchr("\t :=", line[n]))
            continue;
        const char *v = line + n + strspn(line + n, "\t :=\"");
        snprintf(buf, size, "%.*s", (int)strcspn(v, "\"\n"), v);
        found = true;
    }
    if (f)
        fclose(f);
    return found;
}

/* The path of the library that this process has mapped under such a name. */
static bool mapped(const char *name, char *buf, size_t size) {
    char line[8192];
    FILE *f = fopen("/proc/self/maps", "re");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        const char *path = strchr(line, '/'), *base = path ? strrchr(path, '/') + 1 : "";
        if (!strncmp(base, name, strlen(name))) {
            snprintf(buf, size, "%.*s", (int)strcspn(path, "\n"), path);
            found = true;
        }
    }
    if (f)
        fclose(f);
    return found;
}

/* JSON is UTF-8; names of files and devices are bytes. */
static void add_text(cJSON *o, const char *key, const char *text) {
    char buf[8192];
    snprintf(buf, sizeof buf, "%.*s", (int)sizeof buf - 1, text);
    for (char *p = buf; *p; p++)
        if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e)
            *p = '?';
    cJSON_AddStringToObject(o, key, buf);
}

static cJSON *add_row(cJSON *array) {
    cJSON *o = cJSON_CreateObject();
    if (!cJSON_AddItemToArray(array, o)) {
        cJSON_Delete(o);
        return NULL;
    }
    return o;
}

static void add_hint(cJSON *hints, const char *text) {
    cJSON_AddItemToArray(hints, cJSON_CreateString(text));
}

/* ---- program, machine, environment ---- */

/* A member that is text. */
static const char *text_of(const cJSON *o, const char *key) {
    const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, key));
    return s ? s : "";
}

static void add_program(cJSON *root) {
    cJSON *o = cJSON_AddObjectToObject(root, "program"), *a = cJSON_AddArrayToObject(root, "libraries");
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    add_text(o, "version", dfcl_version());
    if (n > 0) {
        path[n] = 0;
        add_text(o, "path", path);
    }
    if (mapped("libdifffit-cl.so", path, sizeof path))
        add_text(o, "library", path);
    struct dfcl_component list[16];
    int count = dfcl_components(list, 16);
    for (int i = 0; i < count && i < 16; i++) {
        cJSON *r = add_row(a);
        add_text(r, "name", list[i].name);
        add_text(r, "built_with", list[i].built);
        if (list[i].loaded[0] && strcmp(list[i].loaded, list[i].built))
            add_text(r, "loaded", list[i].loaded);
    }
}

/* Those of the processor's features that kernels and drivers ask for. */
static void add_features(cJSON *o, const char *flags) {
    static const char *const wanted[] = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
                                         "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "hypervisor", "asimd", "asimdhp", "asimddp", "bf16", "sve", "sve2"};
    char found[512] = "";
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        size_t n = strlen(wanted[i]);
        for (const char *p = flags; (p = strstr(p, wanted[i])); p += n)
            if ((p == flags || p[-1] == ' ') && (!p[n] || p[n] == ' ')) {
                snprintf(found + strlen(found), sizeof found - strlen(found), "%s%s", *found ? " " : "", wanted[i]);
                break;
            }
    }
    add_text(o, "features", found);
}

static void add_machine(cJSON *root) {
    cJSON *o = cJSON_AddObjectToObject(root, "machine");
    char text[8192];
    struct utsname u;
    cpu_set_t set;
    if (file_value("/etc/os-release", "PRETTY_NAME", text, sizeof text))
        add_text(o, "system", text);
    if (uname(&u) == 0) {
        snprintf(text, sizeof text, "%s %s %s", u.sysname, u.release, u.machine);
        add_text(o, "kernel", text);
    }
    if (file_value("/proc/cpuinfo", "model name", text, sizeof text) || file_value("/proc/cpuinfo", "Model", text, sizeof text))
        add_text(o, "processor", text);
    if (file_value("/proc/cpuinfo", "flags", text, sizeof text) || file_value("/proc/cpuinfo", "Features", text, sizeof text))
        add_features(o, text);
    cJSON_AddNumberToObject(o, "processors", (double)sysconf(_SC_NPROCESSORS_ONLN));
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cJSON_AddNumberToObject(o, "processors_allowed", CPU_COUNT(&set));
    static const char *const memory[][2] = {{"MemTotal", "memory_bytes"}, {"MemAvailable", "available_bytes"}};
    for (int i = 0; i < 2; i++)
        if (file_value("/proc/meminfo", memory[i][0], text, sizeof text))
            cJSON_AddNumberToObject(o, memory[i][1], 1024.0 * atof(text));
}

/* Was it there when the program started? Where that cannot be read: yes. */
static bool inherited(const char *name) {
    size_t n = strlen(name), cap = 0;
    char *entry = NULL;
    bool found = false;
    FILE *f = fopen("/proc/self/environ", "re");
    while (f && !found && getdelim(&entry, &cap, 0, f) > 0)
        found = !strncmp(entry, name, n) && entry[n] == '=';
    free(entry);
    if (f)
        fclose(f);
    return found || !f;
}

static void add_environment(cJSON *root) {
    static const char *const prefixes[] = {"DIFFFIT_", "POCL_", "OCL_", "OPENCL_", "CL_", "CUDA_", "HIP_", "ROCR_", "HSA_", "GPU_", "AMD_", "NEO", "Override", "RUSTICL_", "MESA_",
                                           "LIBCLC", "ZE_", "INTEL_", "LD_PRELOAD=", "LD_LIBRARY_PATH=", "XDG_CACHE_HOME=", "OMP_"};
    cJSON *o = cJSON_AddObjectToObject(root, "environment");
    for (char **e = environ; *e; e++)
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
            if (strncmp(*e, prefixes[i], strlen(prefixes[i])))
                continue;
            char name[128], value[4096];
            snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
            snprintf(value, sizeof value, "%.4000s%s", *e + strcspn(*e, "=") + (strchr(*e, '=') != NULL), inherited(name) ? "" : " (set by this program)");
            add_text(o, name, value);
            break;
        }
}

/* ---- loader and drivers ---- */

static void add_loader(cJSON *root, cJSON *hints, struct doctor_result *r) {
    cJSON *o = cJSON_AddObjectToObject(root, "loader");
    char text[4096];
    if (!mapped("libOpenCL.so", text, sizeof text)) {
        add_text(o, "path", "none");
        add_hint(hints, "the library was built without OpenCL: only the slow reference `host` is there");
        return;
    }
    add_text(o, "path", text);
    const char *const words[] = {"--try-driver", text, NULL};
    bool ok = doctor_run(words, 60, r); /* it loads every driver before it says its name */
    r->out[strcspn(r->out, "\n")] = 0;
    if (!ok || r->out[0])
        add_text(o, ok ? "version" : "problem", ok ? r->out : r->problem);
}

/* One ICD file: a line with the driver's library, which is loaded in another process. */
static void add_driver(cJSON *drivers, const char *path, struct doctor_result *r) {
    char line[4096] = "";
    cJSON *o = add_row(drivers);
    FILE *f = fopen(path, "re");
    add_text(o, "file", path);
    if (!f || !fgets(line, sizeof line, f)) {
        add_text(o, "problem", f ? "is empty" : strerror(errno));
        if (f)
            fclose(f);
        return;
    }
    fclose(f);
    line[strcspn(line, "\r\n")] = 0;
    add_text(o, "library", line);
    const char *const words[] = {"--try-driver", line, NULL};
    bool ok = doctor_run(words, 30, r);
    add_text(o, ok ? "state" : "problem", ok ? "loads" : r->problem);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names in a folder that end in `end`, sorted; freed by the caller, each too. */
static int list_folder(const char *dir, const char *end, char ***out) {
    enum { MOST = 256 };
    DIR *d = opendir(dir);
    int n = 0;
    *out = d ? calloc(MOST, sizeof **out) : NULL;
    struct dirent *e;
    while (*out && n < MOST && (e = readdir(d))) {
        size_t k = strlen(e->d_name), m = strlen(end);
        if (e->d_name[0] != '.' && k >= m && !strcmp(e->d_name + k - m, end) && ((*out)[n] = strdup(e->d_name)))
            n++;
    }
    if (d)
        closedir(d);
    if (n)
        qsort(*out, (size_t)n, sizeof **out, by_name);
    return d ? n : -1;
}

static void add_drivers(cJSON *root, cJSON *hints, struct doctor_result *r) {
    const char *vendors = getenv("OCL_ICD_VENDORS");
    if (!vendors || !*vendors)
        vendors = getenv("OPENCL_VENDOR_PATH");
    if (!vendors || !*vendors)
        vendors = "/etc/OpenCL/vendors";
    cJSON *a = cJSON_AddArrayToObject(root, "drivers");
    struct stat st;
    char path[4096], hint[4400], **names = NULL;
    if (stat(vendors, &st) == 0 && !S_ISDIR(st.st_mode)) {
        add_driver(a, vendors, r);
    } else {
        int n = list_folder(vendors, ".icd", &names);
        for (int i = 0; i < n; i++) {
            snprintf(path, sizeof path, "%s/%s", vendors, names[i]);
            add_driver(a, path, r);
            free(names[i]);
        }
        free(names);
    }
    const char *one = getenv("OCL_ICD_FILENAMES"); /* of Khronos' loader: libraries, separated by : */
    if (one && *one)
        snprintf(hint, sizeof hint, "OCL_ICD_FILENAMES names more drivers: %.3000s", one), add_hint(hints, hint);
    if (!cJSON_GetArraySize(a)) {
        snprintf(hint, sizeof hint, "%.3000s has no .icd file: install an OpenCL driver (pocl-opencl-icd for the CPU, the vendor's for a GPU)", vendors);
        add_hint(hints, hint);
    }
}

/* Device files of GPUs: a driver that may not open them finds no device, and says nothing. */
static void add_nodes(cJSON *root, cJSON *hints) {
    static const char *const folders[][2] = {{"/dev/dri", "renderD"}, {"/dev", "nvidia"}, {"/dev", "kfd"}};
    cJSON *a = cJSON_AddArrayToObject(root, "device_files");
    bool closed = false;
    for (int k = 0; k < 3; k++) {
        char **names = NULL, path[512];
        int n = list_folder(folders[k][0], "", &names);
        for (int i = 0; i < n; i++) {
            struct stat st;
            snprintf(path, sizeof path, "%s/%s", folders[k][0], names[i]);
            if (!strncmp(names[i], folders[k][1], strlen(folders[k][1])) && stat(path, &st) == 0 && S_ISCHR(st.st_mode)) {
                bool ok = access(path, R_OK | W_OK) == 0;
                cJSON *o = add_row(a);
                add_text(o, "file", path);
                add_text(o, "state", ok ? "may be used" : strerror(errno));
                closed = closed || !ok;
            }
            free(names[i]);
        }
        free(names);
    }
    if (closed)
        add_hint(hints, "a GPU's device file may not be opened: add the user to the file's group (render or video), then log in again");
}

/* ---- devices ---- */

static void look_at_device(struct cli *c, cJSON *o, bool selftest, cJSON *hints, struct doctor_result *r) {
    const char *selector = text_of(o, "selector");
    char hint[512];
    if (!*selector || !cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "usable")))
        return;
    if (selftest && !c->quiet)
        fprintf(stderr, "%s: self-test\n", selector);
    const char *const look[] = {"--try-device", selector, NULL}, *const test[] = {"selftest", "--device", selector, NULL};
    bool ok = doctor_run(look, 60, r);
    cJSON *more = ok ? cJSON_Parse(r->out) : NULL, *v;
    cJSON_AddStringToObject(o, "opens", ok ? "yes" : "no");
    if (!ok)
        add_text(o, "error", r->problem);
    cJSON_ArrayForEach(v, more) {
        cJSON_DeleteItemFromObjectCaseSensitive(o, v->string); /* known better now */
        cJSON_AddItemToObject(o, v->string, cJSON_Duplicate(v, true));
    }
    cJSON_Delete(more);
    if (ok && selftest) {
        ok = doctor_run(test, 300, r);
        cJSON_DeleteItemFromObjectCaseSensitive(o, "selftest");
        cJSON_AddStringToObject(o, "selftest", ok ? "passed" : "failed");
        if (!ok)
            add_text(o, "error", r->problem);
    }
    if (!ok) {
        snprintf(hint, sizeof hint, "device %.32s cannot be used: %.400s", selector, r->problem);
        add_hint(hints, hint);
    }
}

static void add_devices(struct cli *c, cJSON *root, bool selftest, cJSON *hints, struct doctor_result *r) {
    const char *const words[] = {"devices", "--json", NULL};
    char hint[1200];
    bool ok = doctor_run(words, 120, r);
    cJSON *list = ok ? cJSON_Parse(r->out) : NULL, *o;
    cJSON *messages = cJSON_AddArrayToObject(root, "driver_messages");
    char *save = NULL;
    for (char *line = strtok_r(r->messages, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        for (char *p = line; *p; p++)
            *p = isprint((unsigned char)*p) ? *p : '?';
        cJSON_AddItemToArray(messages, cJSON_CreateString(line));
    }
    if (!cJSON_IsArray(list)) {
        snprintf(hint, sizeof hint, "listing the devices: %s", ok ? "cannot be read" : r->problem);
        add_hint(hints, hint);
        cJSON_Delete(list);
        list = cJSON_CreateArray();
    }
    int real = 0;
    cJSON_ArrayForEach(o, list) {
        real += strcmp(text_of(o, "backend"), "host") != 0;
        look_at_device(c, o, selftest, hints, r);
    }
    if (ok && !real && strcmp(text_of(cJSON_GetObjectItemCaseSensitive(root, "loader"), "path"), "none") != 0)
        add_hint(hints, "no OpenCL device was found: only the slow reference `host` is there");
    cJSON_AddItemToObject(root, "devices", list);
}

/* ---- cache ---- */

static void measure_folder(const char *dir, double *bytes, double *files) {
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
            continue;
        *bytes += (double)st.st_size;
        ++*files;
    }
    if (d)
        closedir(d);
}

static void add_cache(cJSON *root, cJSON *hints) {
    cJSON *o = cJSON_AddObjectToObject(root, "cache"), *a = cJSON_AddArrayToObject(root, "cache_folders");
    char dir[4096], path[4400], hint[4400], **names = NULL;
    cli_cache_dir(dir, sizeof dir);
    if (!dir[0]) {
        cJSON_AddStringToObject(o, "state", "none: neither XDG_CACHE_HOME nor HOME is set");
        return;
    }
    add_text(o, "path", dir);
    double bytes = 0, count = 0;
    int n = list_folder(dir, "", &names);
    for (int i = 0; i < n; i++) {
        double b = 0, f = 0;
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        measure_folder(path, &b, &f);
        cJSON *r = add_row(a);
        add_text(r, "name", names[i]);
        cJSON_AddNumberToObject(r, "files", f);
        cJSON_AddNumberToObject(r, "bytes", b);
        bytes += b;
        count += f;
        free(names[i]);
    }
    free(names);
    cJSON_AddNumberToObject(o, "files", count);
    cJSON_AddNumberToObject(o, "bytes", bytes);
    /* what is not there yet is made below the nearest folder that is */
    snprintf(path, sizeof path, "%s", dir);
    struct stat st;
    while (stat(path, &st) != 0 && errno == ENOENT && strrchr(path, '/') > path)
        *strrchr(path, '/') = 0;
    char probe[4500];
    snprintf(probe, sizeof probe, "%s/.doctor-XXXXXX", path);
    int fd = mkstemp(probe); /* a right to write is no free space, and no writable file system */
    bool ok = fd >= 0 && write(fd, "x", 1) == 1 && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) {
        close(fd);
        unlink(probe);
    }
    snprintf(hint, sizeof hint, "%s%s", n < 0 ? "not there yet; " : "", ok ? "can be written" : strerror(why));
    cJSON_AddStringToObject(o, "state", hint);
    if (!ok) {
        snprintf(hint, sizeof hint, "%.3000s cannot be written (%s): kernels are compiled and the self-test runs again every time", dir, strerror(why));
        add_hint(hints, hint);
    }
}

/* ---- text ---- */

static void scalar(const char *key, const cJSON *v, char *buf, size_t size) {
    size_t n = strlen(key);
    double d = cJSON_GetNumberValue(v);
    if (cJSON_IsNumber(v) && n > 5 && !strcmp(key + n - 5, "bytes") && d >= 1048576.0)
        snprintf(buf, size, "%.1f MiB", d / 1048576.0);
    else if (cJSON_IsNumber(v))
        snprintf(buf, size, "%.10g", d);
    else if (cJSON_IsBool(v))
        snprintf(buf, size, "%s", cJSON_IsTrue(v) ? "yes" : "no");
    else
        snprintf(buf, size, "%s", cJSON_IsString(v) ? v->valuestring : "-");
}

static void print_scalar(const char *key, const cJSON *v) {
    char buf[8192];
    scalar(key, v, buf, sizeof buf);
    printf("%s", buf);
}

/* Members of a row: the first as it is, others with their names. */
static void print_row(const cJSON *row) {
    const cJSON *v;
    bool first = true;
    cJSON_ArrayForEach(v, row) {
        if (cJSON_IsString(v) && !v->valuestring[0])
            continue;
        if (!first) {
            printf(", ");
            for (const char *p = v->string; *p; p++)
                putchar(*p == '_' ? ' ' : *p);
            putchar(' ');
        }
        print_scalar(v->string, v);
        first = false;
    }
}

static void print_array(const cJSON *a) {
    const cJSON *row;
    cJSON_ArrayForEach(row, a) {
        printf("  ");
        if (cJSON_IsObject(row))
            print_row(row);
        else
            print_scalar("", row);
        putchar('\n');
    }
}

/* Two lines each: which it is and how it is, then the rest. */
static void print_devices(const cJSON *a) {
    static const char *const head[] = {"selector", "name", "opens", "selftest", "error", "problem"};
    const cJSON *o, *v;
    cJSON_ArrayForEach(o, a) {
        printf("  ");
        bool first = true;
        for (size_t i = 0; i < sizeof head / sizeof *head; i++)
            if ((v = cJSON_GetObjectItemCaseSensitive(o, head[i])) && (!cJSON_IsString(v) || v->valuestring[0])) {
                printf("%s%s", first ? "" : i == 1 ? "  " : ", ", i < 2 ? "" : head[i]);
                printf("%s", i < 2 ? "" : " ");
                print_scalar(head[i], v);
                first = false;
            }
        int column = 120; /* the rest wrapped at 100 columns */
        cJSON_ArrayForEach(v, o) {
            bool done = cJSON_IsString(v) && !v->valuestring[0];
            for (size_t i = 0; i < sizeof head / sizeof *head; i++)
                done = done || !strcmp(v->string, head[i]);
            if (done)
                continue;
            char value[8192];
            scalar(v->string, v, value, sizeof value);
            int n = (int)(strlen(v->string) + strlen(value)) + 1;
            bool wrap = column + n + 2 > 100;
            printf("%s%s %s", !wrap ? ", " : column > 110 ? "\n    " : ",\n    ", v->string, value);
            column = (wrap ? 4 : column + 2) + n;
        }
        putchar('\n');
    }
}

static void print_text(const cJSON *root) {
    const cJSON *section, *v;
    cJSON_ArrayForEach(section, root) {
        if (!section->child)
            continue;
        for (const char *p = section->string; *p; p++)
            putchar(*p == '_' ? ' ' : *p);
        putchar('\n');
        if (!strcmp(section->string, "devices"))
            print_devices(section);
        else if (cJSON_IsArray(section))
            print_array(section);
        else
            cJSON_ArrayForEach(v, section) {
                printf("  %-18s ", v->string);
                print_scalar(v->string, v);
                putchar('\n');
            }
    }
}

int cmd_doctor(struct cli *c, int argc, char **argv) {
    bool json = false, selftest = false;
    const struct cli_option options[] = {
        {"--selftest", CLI_FLAG, &selftest, NULL, "run the self-test on every device, up to five minutes each", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "print JSON", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    if (cli_parse(c, argc, argv,
                  "doctor [--selftest] [--json]\n\nSays what a bug report needs: versions, the machine, environment variables that matter, OpenCL loader and drivers,\n"
                  "devices and whether they passed the self-test, the cache; and what seems to be wrong. Drivers are tried in processes of\n"
                  "their own. Exit code 0 whatever it finds.",
                  options, NULL, 0) < 0)
        return c->code;
    cJSON *root = cJSON_CreateObject(), *hints = cJSON_CreateArray();
    struct doctor_result *r = malloc(sizeof *r);
    dfcl_error err = {.status = DFCL_NOMEM, .msg = "out of memory"};
    char *text = NULL;
    if (!root || !hints || !r)
        goto out;
    add_program(root);
    add_machine(root);
    add_environment(root);
    add_loader(root, hints, r);
    add_drivers(root, hints, r);
    add_nodes(root, hints);
    add_devices(c, root, selftest, hints, r);
    add_cache(root, hints);
    cJSON_AddItemToObject(root, "hints", hints);
    hints = NULL;
    if (json && (text = cJSON_Print(root)))
        puts(text);
    else if (!json)
        print_text(root);
    if (!json || text)
        err.status = DFCL_OK;
out:
    cJSON_free(text);
    cJSON_Delete(root);
    cJSON_Delete(hints);
    free(r);
    return err.status ? cli_fail(c, &err) : 0;
}
