// cuda_bf16.h: bfloat16 for the emulator, under CUDA's names.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 h) {
  uint32_t bits = (uint32_t)h.bits << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/** Round to nearest even, as the hardware does; every NaN becomes 0x7fff. */
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

/** Two bfloat16 in one register, lo in the lower half. */
inline uint32_t pack_bf16(float lo, float hi) {
  return (uint32_t)__float2bfloat16_rn(lo).bits | (uint32_t)__float2bfloat16_rn(hi).bits << 16;
}
