/* Compiles every portable kernel file (and cuda/ *.cu) with NVRTC for every architecture we support, without a GPU.
 *
 *   nvrtc_matrix BUILD_OPTIONS [LIBNVRTC]        library: second argument, else the environment's DFCL_NVRTC
 *   DFCL_NVRTC_ARCHS=70,90 narrows the list, DFCL_NVRTC_VERBOSE=1 prints every kernel's registers
 *
 * A file passes when it compiles without any warning, and no kernel spills registers, has a stack frame or a local depot, or contains
 * a double-precision instruction. Before that the gates themselves are tried on texts that must fail. Exit 77 without a library. */
#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "device/source.h"
#include "kernel_sets.h"

typedef struct nvrtc_program *program;
static struct {
    int (*Version)(int *, int *);
    int (*GetNumSupportedArchs)(int *);
    int (*GetSupportedArchs)(int *);
    int (*CreateProgram)(program *, const char *, const char *, int, const char *const *, const char *const *);
    int (*DestroyProgram)(program *);
    int (*CompileProgram)(program, int, const char *const *);
    int (*GetProgramLogSize)(program, size_t *);
    int (*GetProgramLog)(program, char *);
    int (*GetPTXSize)(program, size_t *);
    int (*GetPTX)(program, char *);
    int (*GetCUBINSize)(program, size_t *);
} nv;

static bool load(const char *path) {
    void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!h) {
        printf("SKIP: %s\n", dlerror());
        return false;
    }
#define GET(f)                                                                                                                     \
    do {                                                                                                                           \
        void *p = dlsym(h, "nvrtc" #f);                                                                                            \
        if (!p) {                                                                                                                  \
            printf("SKIP: %s has no nvrtc" #f "\n", path);                                                                         \
            return false;                                                                                                          \
        }                                                                                                                          \
        memcpy(&nv.f, &p, sizeof p);                                                                                               \
    } while (0)
    GET(Version);
    GET(GetNumSupportedArchs);
    GET(GetSupportedArchs);
    GET(CreateProgram);
    GET(DestroyProgram);
    GET(CompileProgram);
    GET(GetProgramLogSize);
    GET(GetProgramLog);
    GET(GetPTXSize);
    GET(GetPTX);
    GET(GetCUBINSize);
#undef GET
    return true;
}

struct outcome {
    char problem[700]; /* "" : passed */
    int kernels, max_registers;
    long max_shared;
};

static void complain(struct outcome *o, const char *what, const char *detail) {
    if (o->problem[0])
        return;
    int n = snprintf(o->problem, sizeof o->problem, "%s: ", what);
    for (; *detail && n + 1 < (int)sizeof o->problem; detail++)
        o->problem[n++] = (char)(*detail == '\n' ? '|' : *detail);
    o->problem[n] = 0;
}

static int split(char *options, const char **list, int max) {
    int n = 0;
    for (char *p = strtok(options, " "); p && n < max; p = strtok(NULL, " "))
        list[n++] = p;
    return n;
}

/* ptxas -v prints, per kernel: "N bytes stack frame, N bytes spill stores, N bytes spill loads" and "Used N registers, ... N bytes smem". */
static void read_ptxas(struct outcome *o, const char *log) {
    for (const char *p = log; (p = strstr(p, " bytes stack frame")) != NULL; p++) {
        const char *line = p;
        while (line > log && isdigit((unsigned char)line[-1]))
            line--;
        long stack = 0, stores = 0, loads = 0;
        if (sscanf(line, "%ld bytes stack frame, %ld bytes spill stores, %ld bytes spill loads", &stack, &stores, &loads) != 3)
            complain(o, "unreadable ptxas report", line);
        else if (stack || stores || loads)
            complain(o, "stack or spills", line);
    }
    for (const char *p = log; (p = strstr(p, "Used ")) != NULL; p++) {
        int registers = 0;
        if (sscanf(p, "Used %d registers", &registers) != 1)
            continue;
        o->kernels++;
        o->max_registers = DFCL_MAX(o->max_registers, registers);
        char line[256];
        snprintf(line, sizeof line, "%.*s", (int)strcspn(p, "\n"), p);
        char *smem = strstr(line, " bytes smem");
        if (smem) {
            while (smem > line && isdigit((unsigned char)smem[-1]))
                smem--;
            o->max_shared = DFCL_MAX(o->max_shared, atol(smem));
        }
    }
}

/* The first warning in the log, but for the one about old architectures that NVRTC 12.9 attaches to every sm_70 program. */
static const char *find_warning(const char *log) {
    while (*log) {
        size_t n = strcspn(log, "\n");
        char line[1024];
        snprintf(line, sizeof line, "%.*s", (int)DFCL_MIN(n, sizeof line - 1), log);
        if (strstr(line, "warning") && !strstr(line, "Architectures prior to") && !strstr(line, "Remark: The warnings can be suppressed"))
            return log;
        log += n + (log[n] == '\n');
    }
    return NULL;
}

static void compile(const char *name, const char *text, const char *options, int arch, struct outcome *o) {
    memset(o, 0, sizeof *o);
    char arch_option[32], own[512];
    snprintf(arch_option, sizeof arch_option, "--gpu-architecture=sm_%d", arch);
    const char *list[48] = {arch_option,    "-default-device",       "-std=c++17", "-fmad=false", "--diag-error=174,1097,2361,546",
                            "-lineinfo",    "--ptxas-options=-v"};
    int n = 7;
    snprintf(own, sizeof own, "%s", options);
    n += split(own, list + n, 48 - n);
    program p;
    if (nv.CreateProgram(&p, text, name, 0, NULL, NULL)) {
        complain(o, "nvrtcCreateProgram failed", name);
        return;
    }
    int rc = nv.CompileProgram(p, n, list);
    size_t size = 0;
    char *log = NULL, *ptx = NULL;
    if (!nv.GetProgramLogSize(p, &size) && (log = calloc(size + 1, 1)) != NULL)
        nv.GetProgramLog(p, log);
    if (rc) {
        const char *first = log ? strstr(log, "error") : NULL;
        complain(o, "does not compile", first ? first : log ? log : "");
    } else if (!log) {
        complain(o, "no log", name);
    } else {
        const char *warning = find_warning(log);
        if (warning)
            complain(o, "warning", warning);
        read_ptxas(o, log);
        if (!o->kernels)
            complain(o, "no kernel in the ptxas report", log);
        if (getenv("DFCL_NVRTC_VERBOSE"))
            printf("%s [%s] sm_%d\n%s\n", name, options, arch, log);
        size = 0;
        if (nv.GetCUBINSize(p, &size) || !size)
            complain(o, "no cubin", name);
        if (!nv.GetPTXSize(p, &size) && (ptx = calloc(size + 1, 1)) != NULL && !nv.GetPTX(p, ptx)) {
            if (strstr(ptx, "__local_depot"))
                complain(o, "arrays in local memory", "__local_depot in the PTX");
            char *f64 = strstr(ptx, ".f64");
            if (f64) {
                while (f64 > ptx && f64[-1] != '\n')
                    f64--;
                char line[160];
                snprintf(line, sizeof line, "%.*s", (int)strcspn(f64, "\n"), f64);
                complain(o, "double precision", line);
            }
        } else {
            complain(o, "no PTX", name);
        }
    }
    free(ptx);
    free(log);
    nv.DestroyProgram(&p);
}

/* Texts that a gate must refuse, with a word of the reason. */
static int try_gates(const dfcl_context *ctx, int arch) {
    static const struct {
        const char *name, *body, *reason;
    } bad[] = {
        {"raw __local", "DFCL_KERNEL(64,1,1) k(GLOBAL float *p) { __local float t[64]; t[LID(0)] = p[0]; p[0] = t[1]; }",
         "does not compile"},
        {"raw __constant", "__constant float t[2] = {1.0f, 2.0f}; DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { p[0] = t[LID(0)]; }",
         "does not compile"},
        {"cast literal", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { dfcl_st4(p, (float4)(1.0f, 2.0f, 3.0f, 4.0f)); }",
         "does not compile"},
        {"cast of a statement", "DFCL_KERNEL(1,1,1) k(GLOBAL int *p) { int a = (int)(1, p[1]); p[0] = a; }", "does not compile"},
        {"double", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { p[0] = (float)((double)p[1] * 0.1); }", "does not compile"},
        {"missing f", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { p[0] = p[1] * 0.1; }", "double precision"},
        {"long", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p, long n) { p[n] = 0.0f; }", "does not compile"},
        {"wide vector", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { float8 v; p[0] = v.s0; }", "does not compile"},
        {"private array", "DFCL_KERNEL(64,1,1) k(GLOBAL float *p, int n) { float t[64]; for (int i = 0; i < 64; ++i) t[i] = p[i]; "
                          "for (int i = 0; i < n; ++i) t[(i * 7) & 63] += t[i & 63]; p[0] = t[n]; }",
         "stack or spills"},
        {"unused variable", "DFCL_KERNEL(1,1,1) k(GLOBAL float *p) { int a = 3; p[0] = 1.0f; }", "warning"},
    };
    const char *good = "DFCL_KERNEL(64,1,1) k(GLOBAL float *p) { LOCAL_ARRAY float t[64]; p[LID(0)] = dfcl_wg_sum(p[LID(0)], t, LID(0), 64); }";
    const struct dfcl_text *a = dfcl_kernel_file("prelude.cuh"), *b = dfcl_kernel_file("dialect.h");
    int failures = 0;
    for (size_t i = 0; i <= DFCL_COUNT(bad); i++) {
        bool expect_good = i == DFCL_COUNT(bad);
        struct outcome o;
        char *text = dfcl_sprintf(ctx, NULL, "%s\n%s\n%s\n", a->text, b->text, expect_good ? good : bad[i].body);
        compile("gate.cl", text ? text : "", "", arch, &o);
        dfcl_free(ctx, text);
        if (expect_good ? o.problem[0] != 0 : !strstr(o.problem, bad[i].reason)) {
            printf("FAIL gate %s: expected \"%s\", found \"%s\"\n", expect_good ? "good" : bad[i].name,
                   expect_good ? "" : bad[i].reason, o.problem);
            failures++;
        }
    }
    return failures;
}

static struct kernel_set sets[MAX_SETS];

static bool wanted(int arch, const int *supported, int count) {
    bool found = false;
    for (int i = 0; i < count; i++)
        found = found || supported[i] == arch;
    const char *only = getenv("DFCL_NVRTC_ARCHS");
    if (found && only) {
        char key[8];
        int n = snprintf(key, sizeof key, "%d", arch);
        found = false;
        for (const char *p = only; (p = strstr(p, key)) != NULL; p++)
            found = found || ((p == only || p[-1] == ',') && (p[n] == ',' || !p[n]));
    }
    return found;
}

int main(int argc, char **argv) {
    static const int archs[] = {70, 75, 80, 86, 89, 90, 100, 120};
    const char *lib = argc > 2 ? argv[2] : getenv("DFCL_NVRTC");
    if (argc < 2) {
        fprintf(stderr, "usage: nvrtc_matrix BUILD_OPTIONS [LIBNVRTC]\n");
        return 2;
    }
    if (!lib || !*lib) {
        printf("SKIP: no libnvrtc named (DFCL_NVRTC=.../libnvrtc.so.12)\n");
        return 77;
    }
    if (!load(lib))
        return 77;
    int major, minor, supported[64], count = 0, use[8], uses = 0;
    if (nv.Version(&major, &minor) || nv.GetNumSupportedArchs(&count) || count > 64 || nv.GetSupportedArchs(supported)) {
        printf("FAIL: the library does not answer\n");
        return 1;
    }
    for (size_t i = 0; i < DFCL_COUNT(archs); i++)
        if (wanted(archs[i], supported, count))
            use[uses++] = archs[i];
    dfcl_context *ctx;
    if (!uses || dfcl_context_create(&ctx, NULL, NULL)) {
        printf("FAIL: NVRTC %d.%d supports none of the architectures\n", major, minor);
        return 1;
    }
    int failures = try_gates(ctx, use[0]), compiled = 0;
    size_t n = kernel_sets_read(argv[1], sets);
    for (size_t i = 0; i < n; i++) {
        if (kernel_is_cpu(sets[i].stem))
            continue;
        char *text;
        size_t size;
        dfcl_error err = {0};
        if (dfcl_kernel_source(ctx, "prelude.cuh", sets[i].stem, &text, &size, &err)) {
            printf("FAIL %s: %s\n", sets[i].stem, err.msg);
            failures++;
            continue;
        }
        printf("%-16s [%s]:", sets[i].stem, sets[i].options);
        for (int a = 0; a < uses; a++) {
            struct outcome o;
            compile(sets[i].stem, text, sets[i].options, use[a], &o);
            if (o.problem[0]) {
                printf("\nFAIL %s [%s] sm_%d: %s\n", sets[i].stem, sets[i].options, use[a], o.problem);
                failures++;
            } else {
                printf(" sm_%d %dr", use[a], o.max_registers);
                compiled++;
            }
            if (a == uses - 1)
                printf("; %d kernels, %ld bytes shared at most\n", o.kernels, o.max_shared);
        }
        fflush(stdout);
        dfcl_free(ctx, text);
    }
    dfcl_context_destroy(&ctx);
    printf("NVRTC %d.%d: %d programs compiled, %d failures\n", major, minor, compiled, failures);
    return failures != 0;
}
