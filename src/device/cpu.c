#include "device/cpu.h"

#include <stdio.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

/* XCR0 says which registers the operating system saves; without it a feature may be present and still fault. */
static uint64_t saved_state(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

int dfcl_cpu_features(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) /* OSXSAVE */
        return 0;
    int fma = (c >> 12) & 1;
    uint64_t state = saved_state();
    if ((state & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    int f = 0;
    if ((b & (1u << 5)) && fma)
        f |= DFCL_CPU_AVX2;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if ((state & 0xe6) == 0xe6 && (b & avx512) == avx512) {
        f |= DFCL_CPU_AVX512;
        if (c & (1u << 11))
            f |= DFCL_CPU_AVX512_VNNI;
        unsigned a1, b1, c1, d1;
        if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 & (1u << 5)))
            f |= DFCL_CPU_AVX512_BF16;
    }
    return f;
}

void dfcl_cpu_identity(char *buf, size_t size) {
    unsigned name[13] = {0}, a, b, c, d, signature = 0;
    if (__get_cpuid(1, &a, &b, &c, &d))
        signature = a;
    if (__get_cpuid(0x80000004u, &a, &b, &c, &d)) /* the brand string takes three calls */
        for (unsigned i = 0; i < 3; i++)
            __get_cpuid(0x80000002u + i, &name[4 * i], &name[4 * i + 1], &name[4 * i + 2], &name[4 * i + 3]);
    snprintf(buf, size, "%s %08x %x", (const char *)name, signature, (unsigned)dfcl_cpu_features());
}
#else
void dfcl_cpu_identity(char *buf, size_t size) {
    snprintf(buf, size, "%s", "");
}
int dfcl_cpu_features(void) {
    return 0;
}
#endif

uint32_t dfcl_cpu_vector_bits(void) {
    int f = dfcl_cpu_features();
    return f & DFCL_CPU_AVX512 ? 512 : f & DFCL_CPU_AVX2 ? 256 : 128;
}
