/* 16-bit float storage on the host. Round to nearest even; NaN stays NaN. */
#ifndef DFCL_BASE_HALF_H
#define DFCL_BASE_HALF_H

#include <stddef.h>
#include <stdint.h>

float dfcl_f16_to_f32(uint16_t h);
uint16_t dfcl_f32_to_f16(float f);
float dfcl_bf16_to_f32(uint16_t h);
uint16_t dfcl_f32_to_bf16(float f);

#endif
