/* What the processor that runs this process can do. Only variants that a device of type CPU runs may ask: their kernels run right here. */
#ifndef DFCL_DEVICE_CPU_H
#define DFCL_DEVICE_CPU_H

#include <stddef.h>
#include <stdint.h>

enum dfcl_cpu_feature {
    DFCL_CPU_AVX2 = 1,        /* with FMA */
    DFCL_CPU_AVX512 = 2,      /* F, BW, DQ and VL */
    DFCL_CPU_AVX512_BF16 = 4, /* vdpbf16ps */
    DFCL_CPU_AVX512_VNNI = 8, /* vpdpbusd */
};

/* Bits of enum dfcl_cpu_feature, those that the operating system also saves; 0 off x86-64. */
int dfcl_cpu_features(void);
/* Widest float vector in bits: 512, 256, 128; 128 where nothing is known. */
uint32_t dfcl_cpu_vector_bits(void);
/* Model, stepping and features as text, "" where nothing is known: two processors that may behave differently differ in it. */
void dfcl_cpu_identity(char *buf, size_t size);

#endif
