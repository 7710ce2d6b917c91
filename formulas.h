// formulas.h: arithmetic that kernels.cpp and kernels.cu do alike, written once. Each of the two includes it once, after
// kernels.h; in CUDA these are functions for kernels to call.
#ifndef LOAM_FORMULAS_H
#define LOAM_FORMULAS_H

#include <math.h>

#ifdef __CUDACC__
#define FORMULA static __device__ __forceinline__
#define UNROLLED _Pragma("unroll")
#else
#define FORMULA static inline
#define UNROLLED _Pragma("GCC unroll 16")  // a loop around it can then run in vectors
#endif

// ---- random numbers: Philox 4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011) --------------

struct Philox {
  uint32_t word[4];
};

/// Four random words for a counter, of which the two upper words are 0, and a key.
FORMULA Philox philox(uint64_t counter, uint64_t key) {
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  UNROLLED for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)c0 * 0xD2511F53u, b = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c1 = (uint32_t)b;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c3 = (uint32_t)a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// ---- element-wise functions of one value: the kinds of unary_forward() ----------------------------------------------

FORMULA float fast_exp(float x);  // e^x and 1 / (1 + e^-x), each library's own
FORMULA float sigmoid(float x);

/// tanh(x), near 0, where 1 - 2 / (1 + e^2x) would lose its digits, by an odd polynomial fitted to 3 in 10^8.
FORMULA float fast_tanh(float x) {
  float s = x * x;
  float near = x + x * s * (-0.33333062f + s * (0.13323629f + s * (-0.052873514f + s * 0.016852379f)));
  float far = 1.0f - 2.0f / (1.0f + fast_exp(2.0f * x));
  return fabsf(x) < 0.5f ? near : far;
}

/// A function's value, and its derivative.
struct Unary {
  float value, slope;
};

/// Phi(x) = (1 + erf(x / sqrt(2))) / 2 and phi(x), its slope. Below 0 it is phi times a function without a step, here a
/// polynomial in t = 1 / (1 + 0.3 |x|) fitted to 2 in 10^7 of the result; above 0 it is 1 - Phi(-x).
FORMULA Unary normal_distribution(float x) {
  float bell = fast_exp(-0.5f * x * x), t = 1.0f / (1.0f + 0.30052038f * fabsf(x));
  float p = 0.072184330f;
  p = p * t - 0.31609877f;
  p = p * t + 0.41268712f;
  p = p * t - 0.10791813f;
  p = p * t + 0.25755694f;
  p = p * t + 0.19995681f;
  p = p * t + 0.24196081f;
  p = p * t + 0.23967078f;
  float tail = 0.5f * bell * t * p;
  return {x < 0.0f ? tail : 1.0f - tail, 0.39894228f * bell};
}

template <int KIND>
FORMULA Unary unary(float x, float parameter) {
  if (KIND == LOAM_SCALE) return {parameter * x, parameter};
  if (KIND == LOAM_GELU) {  // (x Phi)' = Phi + x phi
    Unary normal = normal_distribution(x);
    return {x * normal.value, normal.value + x * normal.slope};
  }
  if (KIND == LOAM_GELU_TANH) {  // (1 + tanh(u)) / 2 = sigmoid(2u), whose slope is s (1 - s) 2u'
    float s = sigmoid(x * (1.5957691f + 0.071354816f * x * x)), slope = 1.5957691f + 0.21406445f * x * x;
    return {x * s, s + x * s * (1.0f - s) * slope};
  }
  if (KIND == LOAM_RELU_SQUARED) {
    float positive = x < 0.0f ? 0.0f : x;  // NaN stays NaN
    return {positive * positive, 2.0f * positive};
  }
  if (KIND == LOAM_SIGMOID) {
    float s = sigmoid(x);
    return {s, s * (1.0f - s)};
  }
  float t = fast_tanh(x / parameter);  // LOAM_SOFTCAP
  return {parameter * t, 1.0f - t * t};
}

/// Calls CASE(kind) for the kind that is asked for.
#define SWITCH_UNARY(kind, CASE)                          \
  switch (kind) {                                         \
    case LOAM_SCALE: CASE(LOAM_SCALE); break;             \
    case LOAM_GELU: CASE(LOAM_GELU); break;               \
    case LOAM_GELU_TANH: CASE(LOAM_GELU_TANH); break;     \
    case LOAM_RELU_SQUARED: CASE(LOAM_RELU_SQUARED); break; \
    case LOAM_SIGMOID: CASE(LOAM_SIGMOID); break;         \
    case LOAM_SOFTCAP: CASE(LOAM_SOFTCAP); break;         \
    default: FAIL("kind=%d is not one of the 6 there are", kind); \
  }

// ---- dropout --------------------------------------------------------------------------------------------------------

/// What the four elements from 4 * counter on are multiplied with: 0 where a random word is below `limit`, else `keep`.
struct Mask {
  float factor[4];
};

FORMULA Mask dropout_mask(uint64_t counter, uint32_t limit, float keep, uint64_t key) {
  Philox random = philox(counter, key);
  Mask mask;
  for (int i = 0; i < 4; i++) mask.factor[i] = random.word[i] < limit ? 0.0f : keep;
  return mask;
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

/// What normalize() of kernels.h divides by.
FORMULA float norm_of(double sumsq) {
  return fmaxf(sqrtf((float)sumsq), 1e-7f);
}

#endif
