// formulas.h: arithmetic that kernels.cpp and kernels.cu do alike, written once. Each of the two includes it once, after
// kernels.h; in CUDA these are functions for kernels to call.
#ifndef LOAM_FORMULAS_H
#define LOAM_FORMULAS_H

#include <math.h>

#ifdef __CUDACC__
#define FORMULA static __device__ __forceinline__
#else
#define FORMULA static inline
#endif

// ---- random numbers: Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011) --------------

struct Philox {
  uint32_t word[4];
};

/// Four random words for a counter, of which the two upper words are 0, and a key.
FORMULA Philox philox(uint64_t counter, uint64_t key) {
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c1 = (uint32_t)b;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c3 = (uint32_t)a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// ---- optimizer ------------------------------------------------------------------------------------------------------

/// step_control() of kernels.h.
FORMULA void decide_update(float* control, double sumsq, float grad_clip, float beta1, float beta2) {
  float norm = (float)sqrt(sumsq), scale = grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1.0f;
  float most = norm * scale;  // no value of the clipped gradient is larger; adamw() squares them, and 0 would skip there
  bool is_finite = most * most < INFINITY && fabsf(control[CONTROL_LOSS]) < INFINITY;  // false for NaN too
  control[CONTROL_GRAD_NORM] = norm;
  if (scale == 0 || !is_finite) {
    control[CONTROL_GRAD_SCALE] = 0;
    control[CONTROL_SKIPPED] += 1;
    control[CONTROL_SKIPPED_ROW] += 1;
    return;
  }
  float t = control[CONTROL_UPDATES] += 1;
  control[CONTROL_GRAD_SCALE] = scale;
  control[CONTROL_SKIPPED_ROW] = 0;
  control[CONTROL_BIAS1] = (float)(1.0 - pow((double)beta1, (double)t));
  control[CONTROL_BIAS2] = (float)(1.0 - pow((double)beta2, (double)t));
}

#endif
