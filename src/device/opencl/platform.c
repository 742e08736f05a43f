/* Platforms and devices: what is there and what it can do. A failing query is a property left at 0, never an exit. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "device/cpu.h"
#include "device/opencl/ocl.h"

#ifndef CL_DEVICE_SUB_GROUP_SIZES_INTEL
#define CL_DEVICE_SUB_GROUP_SIZES_INTEL 0x4108
#endif
#ifndef CL_DEVICE_WAVEFRONT_WIDTH_AMD
#define CL_DEVICE_WAVEFRONT_WIDTH_AMD 0x4043
#endif
#ifndef CL_DEVICE_BOARD_NAME_AMD
#define CL_DEVICE_BOARD_NAME_AMD 0x4038
#endif
#ifndef CL_DEVICE_WARP_SIZE_NV
#define CL_DEVICE_WARP_SIZE_NV 0x4003
#endif
#ifndef CL_DEVICE_INTEGRATED_MEMORY_NV
#define CL_DEVICE_INTEGRATED_MEMORY_NV 0x4006
#endif

enum { MAX_PLATFORMS = 32, MAX_DEVICES = 64 };

/* Copies without surrounding blanks (drivers pad names), cut to size. */
static void copy_trimmed(char *out, size_t size, const char *s) {
    while (isspace((unsigned char)*s))
        s++;
    size_t n = strlen(s);
    while (n && isspace((unsigned char)s[n - 1]))
        n--;
    n = DFCL_MIN(n, size - 1);
    for (size_t i = 0; i < n; i++)
        out[i] = isprint((unsigned char)s[i]) ? s[i] : '?';
    out[n] = 0;
}

void ocl_info_string(cl_device_id id, cl_device_info what, char *buf, size_t size) {
    char text[4096] = "";
    size_t n = 0;
    if (clGetDeviceInfo(id, what, sizeof text - 1, text, &n) != CL_SUCCESS)
        text[0] = 0;
    copy_trimmed(buf, size, text);
}

static void platform_string(cl_platform_id p, cl_platform_info what, char *buf, size_t size) {
    char text[1024] = "";
    if (clGetPlatformInfo(p, what, sizeof text - 1, text, NULL) != CL_SUCCESS)
        text[0] = 0;
    copy_trimmed(buf, size, text);
}

static uint64_t info_u64(cl_device_id id, cl_device_info what) {
    cl_ulong v = 0;
    return clGetDeviceInfo(id, what, sizeof v, &v, NULL) == CL_SUCCESS ? v : 0;
}
static uint32_t info_u32(cl_device_id id, cl_device_info what) {
    cl_uint v = 0;
    return clGetDeviceInfo(id, what, sizeof v, &v, NULL) == CL_SUCCESS ? v : 0;
}
static size_t info_size(cl_device_id id, cl_device_info what) {
    size_t v = 0;
    return clGetDeviceInfo(id, what, sizeof v, &v, NULL) == CL_SUCCESS ? v : 0;
}

int ocl_version_number(const char *version) {
    int major = 0, minor = 0;
    return sscanf(version, "OpenCL %d.%d", &major, &minor) == 2 ? major * 100 + minor * 10 : 0;
}

bool ocl_has_extension(cl_device_id id, const char *name) {
    size_t size = 0, n = strlen(name);
    char text[16384];
    if (clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, sizeof text - 1, text, &size) != CL_SUCCESS || size >= sizeof text)
        return false;
    text[size] = 0;
    for (const char *p = text; (p = strstr(p, name)) != NULL; p += n)
        if ((p == text || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
            return true;
    return false;
}

int ocl_sub_group_candidate(cl_device_id id, const char *version) {
    int v = ocl_version_number(version);
    if (!ocl_has_extension(id, "cl_khr_subgroups") && !(v >= 210 && info_u32(id, CL_DEVICE_MAX_NUM_SUB_GROUPS)))
        return 0;
    /* The functions need OpenCL C 2.0; a device of version 1.2 that lists the extension has no language to use it from. */
    if (v < 200)
        return 0;
    if (ocl_has_extension(id, "cl_intel_required_subgroup_size")) {
        size_t sizes[16], bytes = 0, best = 0;
        if (clGetDeviceInfo(id, CL_DEVICE_SUB_GROUP_SIZES_INTEL, sizeof sizes, sizes, &bytes) == CL_SUCCESS)
            for (size_t i = 0; i < bytes / sizeof sizes[0]; i++) /* 16 suits every Intel GPU; else the largest up to 32 */
                if (sizes[i] == 16 || (best != 16 && sizes[i] <= 32 && sizes[i] > best))
                    best = sizes[i];
        return (int)best;
    }
    uint32_t n = info_u32(id, CL_DEVICE_WAVEFRONT_WIDTH_AMD);
    if (!n)
        n = info_u32(id, CL_DEVICE_WARP_SIZE_NV);
    return n ? (int)n : -1;
}

static void describe(struct dfcl_device_info *i, cl_platform_id platform, cl_device_id id, int number) {
    memset(i, 0, sizeof *i);
    snprintf(i->selector, sizeof i->selector, "opencl:%d", number);
    snprintf(i->backend, sizeof i->backend, "opencl");
    platform_string(platform, CL_PLATFORM_NAME, i->platform, sizeof i->platform);
    ocl_info_string(id, CL_DEVICE_NAME, i->name, sizeof i->name);
    if (ocl_has_extension(id, "cl_amd_device_attribute_query")) {
        /* AMD's device name is a chip code ("gfx1100"); people know the board. */
        char board[80];
        ocl_info_string(id, CL_DEVICE_BOARD_NAME_AMD, board, sizeof board);
        if (board[0] && !strstr(i->name, board)) {
            char code[40];
            snprintf(code, sizeof code, "%.39s", i->name);
            snprintf(i->name, sizeof i->name, "%s (%s)", board, code);
        }
    }
    ocl_info_string(id, CL_DEVICE_VENDOR, i->vendor, sizeof i->vendor);
    ocl_info_string(id, CL_DRIVER_VERSION, i->driver, sizeof i->driver);
    ocl_info_string(id, CL_DEVICE_VERSION, i->version, sizeof i->version);

    cl_device_type type = info_u64(id, CL_DEVICE_TYPE);
    i->type = type & CL_DEVICE_TYPE_GPU ? DFCL_DEVICE_GPU : type & CL_DEVICE_TYPE_CPU ? DFCL_DEVICE_CPU : DFCL_DEVICE_ACCELERATOR;
    cl_bool unified = info_u32(id, CL_DEVICE_HOST_UNIFIED_MEMORY) != 0;
    if (ocl_has_extension(id, "cl_nv_device_attribute_query"))
        unified = info_u32(id, CL_DEVICE_INTEGRATED_MEMORY_NV) != 0;
    i->integrated = i->type == DFCL_DEVICE_GPU && unified;
    i->memory = info_u64(id, CL_DEVICE_GLOBAL_MEM_SIZE);
    i->max_alloc = info_u64(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    i->local_memory = info_u64(id, CL_DEVICE_LOCAL_MEM_SIZE);
    i->compute_units = info_u32(id, CL_DEVICE_MAX_COMPUTE_UNITS);
    i->max_work_group = (uint32_t)DFCL_MIN(info_size(id, CL_DEVICE_MAX_WORK_GROUP_SIZE), UINT32_MAX);
    int sg = ocl_sub_group_candidate(id, i->version);
    i->sub_group = sg > 0 ? (uint32_t)sg : 0;
    if (i->type == DFCL_DEVICE_CPU) {
        uint32_t native = info_u32(id, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT);
        if (!native)
            native = info_u32(id, CL_DEVICE_PREFERRED_VECTOR_WIDTH_FLOAT);
        uint32_t have = dfcl_cpu_vector_bits();
        i->vector_bits = native > 1 ? DFCL_MIN(native * 32u, have) : have;
    }
    i->fp16 = ocl_has_extension(id, "cl_khr_fp16");

    i->usable = 1;
    const char *why = NULL;
    if (!info_u32(id, CL_DEVICE_AVAILABLE))
        why = "its driver says that it is not available";
    else if (!info_u32(id, CL_DEVICE_COMPILER_AVAILABLE))
        why = "its driver has no compiler";
    else if (!info_u32(id, CL_DEVICE_ENDIAN_LITTLE))
        why = "it is big-endian";
    else if (ocl_version_number(i->version) < 120)
        why = "OpenCL 1.2 is needed";
    if (why) {
        i->usable = 0;
        snprintf(i->problem, sizeof i->problem, "%s", why);
    }
}

/* Calls fn for every device, numbered over all platforms. */
static dfcl_status each(const dfcl_context *ctx,
                        dfcl_status (*fn)(void *user, cl_platform_id platform, cl_device_id id, int number, dfcl_error *err),
                        void *user, dfcl_error *err) {
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint count = 0;
    cl_int e = clGetPlatformIDs(MAX_PLATFORMS, platforms, &count);
    if (e != CL_SUCCESS) {
        /* The loader's way to say that no driver is installed, which is no fault. */
        if (e != CL_PLATFORM_NOT_FOUND_KHR)
            dfcl_log(ctx, DFCL_LOG_WARN, "OpenCL: platforms cannot be listed: %s (%d)", ocl_error_name(e), e);
        return DFCL_OK;
    }
    int number = 0;
    for (cl_uint p = 0; p < DFCL_MIN(count, (cl_uint)MAX_PLATFORMS); p++) {
        cl_device_id ids[MAX_DEVICES];
        cl_uint n = 0;
        e = clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MAX_DEVICES, ids, &n);
        if (e != CL_SUCCESS) {
            char name[128];
            platform_string(platforms[p], CL_PLATFORM_NAME, name, sizeof name);
            if (e != CL_DEVICE_NOT_FOUND)
                dfcl_log(ctx, DFCL_LOG_WARN, "OpenCL platform %s: left out, its devices cannot be listed: %s (%d)", name,
                         ocl_error_name(e), e);
            continue;
        }
        for (cl_uint i = 0; i < DFCL_MIN(n, (cl_uint)MAX_DEVICES); i++) {
            dfcl_status s = fn(user, platforms[p], ids[i], number++, err);
            if (s)
                return s;
        }
    }
    return DFCL_OK;
}

struct listing {
    dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err);
    void *user;
};
static dfcl_status list_one(void *user, cl_platform_id platform, cl_device_id id, int number, dfcl_error *err) {
    const struct listing *l = user;
    struct dfcl_device_info info;
    describe(&info, platform, id, number);
    return l->add(l->user, &info, err);
}

dfcl_status ocl_list(const dfcl_context *ctx, dfcl_status (*add)(void *user, const struct dfcl_device_info *info, dfcl_error *err),
                     void *user, dfcl_error *err) {
    struct listing l = {add, user};
    return each(ctx, list_one, &l, err);
}

struct search {
    int wanted;
    cl_platform_id platform;
    cl_device_id id;
};
static dfcl_status find_one(void *user, cl_platform_id platform, cl_device_id id, int number, dfcl_error *err) {
    (void)err;
    struct search *s = user;
    if (number == s->wanted) {
        s->platform = platform;
        s->id = id;
    }
    return DFCL_OK;
}

dfcl_status ocl_find(const dfcl_context *ctx, int n, cl_platform_id *platform, cl_device_id *id, dfcl_error *err) {
    struct search s = {.wanted = n};
    dfcl_status st = each(ctx, find_one, &s, err);
    if (!st && !s.id)
        st = dfcl_fail(err, DFCL_DEVICE, "opencl:%d: no such device", n);
    *platform = s.platform;
    *id = s.id;
    return st;
}
