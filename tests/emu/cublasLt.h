// cublasLt.h: the few functions of cuBLASLt that kernels.cu uses, as a plain GEMM: float sums, one rounding at the end.
//
// The layouts, transposes and leading dimensions are taken from the descriptors, so that kernels.cu's use of the real
// library is what gets tested. LOAM_EMU_ALGOS is the number of candidates that the heuristic offers (default 1).
#pragma once
#include <dlfcn.h>

#include "cuda_runtime.h"

#define CUBLAS_VER_MAJOR 13

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum { CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4 };
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};

struct EmuMatmul {
  int transposed[2];  // A and B
};
struct EmuLayout {  // of a column-major matrix
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct EmuPreference {
  uint64_t workspace;
};
typedef int* cublasLtHandle_t;
typedef EmuMatmul* cublasLtMatmulDesc_t;
typedef EmuLayout* cublasLtMatrixLayout_t;
typedef EmuPreference* cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t {
  uint64_t data[8];
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
};
constexpr uint64_t EMU_ALGO = 0x656d75616c676f;  // marks the algorithms of this library

inline size_t cublasLtGetVersion() { return emu::pretends("old_cublaslt") ? 120803 : 130000; }
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) {
  static int one;
  return *h = &one, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t, cudaDataType_t) {
  return *d = new EmuMatmul{}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int which, const void* value, size_t) {
  d->transposed[which == CUBLASLT_MATMUL_DESC_TRANSB] = *(const cublasOperation_t*)value == CUBLAS_OP_T;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type, uint64_t rows,
                                                 uint64_t cols, int64_t ld) {
  return *l = new EmuLayout{type, rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
  return *p = new EmuPreference{}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, int, const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  return delete p, CUBLAS_STATUS_SUCCESS;
}

/** The sizes of op(A) (m, k), op(B) (k, n) and C, D (m, n) must fit each other and their leading dimensions. */
inline bool emu_fits(EmuMatmul* op, EmuLayout* a, EmuLayout* b, EmuLayout* c, EmuLayout* d) {
  uint64_t m = op->transposed[0] ? a->cols : a->rows, k = op->transposed[0] ? a->rows : a->cols;
  uint64_t n = op->transposed[1] ? b->rows : b->cols, k2 = op->transposed[1] ? b->cols : b->rows;
  for (EmuLayout* l : {a, b, c, d})
    if (l->ld < (int64_t)l->rows) return false;
  return k == k2 && d->rows == m && d->cols == n && c->rows == m && c->cols == n && c->type == d->type &&
         a->type == CUDA_R_16BF && b->type == CUDA_R_16BF;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t op,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t, int wanted,
                                                     cublasLtMatmulHeuristicResult_t* results, int* found) {
  if (!emu_fits(op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  const char* algos = getenv("LOAM_EMU_ALGOS");
  *found = std::min(wanted, algos ? atoi(algos) : 1);
  for (int i = 0; i < *found; i++) results[i] = {{{EMU_ALGO, (uint64_t)i}}, 0, CUBLAS_STATUS_SUCCESS, 1};
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algo,
                                              cublasLtMatmulHeuristicResult_t* result) {
  if (algo->data[0] != EMU_ALGO || !emu_fits(op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  return *result = {*algo, 0, CUBLAS_STATUS_SUCCESS, 1}, CUBLAS_STATUS_SUCCESS;
}

/** Four columns of D times 32 rows at a time: a (k, 32 of m) packed, b (4, k) packed. */
inline void emu_gemm_tile(float (*acc)[32], const float* a, const float* b, size_t m, size_t k) {
  for (size_t p = 0; p < k; p++)
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 32; i++) acc[j][i] += b[j * k + p] * a[p * m + i];
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t op, const void* alpha, const void* A,
                                     cublasLtMatrixLayout_t la, const void* B, cublasLtMatrixLayout_t lb,
                                     const void* beta, const void* C, cublasLtMatrixLayout_t lc, void* D,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t, cudaStream_t) {
  if (!workspace || algo->data[0] != EMU_ALGO || !emu_fits(op, la, lb, lc, ld)) return CUBLAS_STATUS_INVALID_VALUE;
  const __nv_bfloat16 *a = (const __nv_bfloat16*)A, *b = (const __nv_bfloat16*)B;
  size_t m = ld->rows, n = ld->cols, k = op->transposed[0] ? la->rows : la->cols, wide = (m + 31) / 32 * 32,
         tall = (n + 3) / 4 * 4;
  float al = *(const float*)alpha, be = *(const float*)beta;
  std::vector<float> pa(k * wide), pb(tall * k);  // op(A) as (k, m), op(B) as (n, k), padded with zeros
  for (size_t p = 0; p < k; p++)
    for (size_t i = 0; i < m; i++)
      pa[p * wide + i] = __bfloat162float(op->transposed[0] ? a[i * la->ld + p] : a[p * la->ld + i]);
  for (size_t j = 0; j < n; j++)
    for (size_t p = 0; p < k; p++)
      pb[j * k + p] = __bfloat162float(op->transposed[1] ? b[p * lb->ld + j] : b[j * lb->ld + p]);
  auto at = [](const void* x, EmuLayout* l, size_t i) {
    return l->type == CUDA_R_32F ? ((const float*)x)[i] : __bfloat162float(((const __nv_bfloat16*)x)[i]);
  };
#pragma omp parallel for schedule(static)
  for (size_t j0 = 0; j0 < n; j0 += 4)
    for (size_t i0 = 0; i0 < m; i0 += 32) {
      float acc[4][32] = {};
      emu_gemm_tile(acc, &pa[i0], &pb[j0 * k], wide, k);
      for (size_t j = j0; j < std::min(j0 + 4, n); j++)
        for (size_t i = i0; i < std::min(i0 + 32, m); i++) {
          float v = al * acc[j - j0][i - i0] + (be != 0 ? be * at(C, lc, j * lc->ld + i) : 0);
          size_t out = j * ld->ld + i;
          if (ld->type == CUDA_R_32F)
            ((float*)D)[out] = v;
          else
            ((__nv_bfloat16*)D)[out] = __float2bfloat16_rn(v);
        }
    }
  return CUBLAS_STATUS_SUCCESS;
}

// Takes the place of dlopen and dlsym in kernels.cu.
inline void* emu_dlopen(const char*, int) { return emu::pretends("no_cublaslt") ? nullptr : (void*)1; }
inline void* emu_dlsym(void*, const char* name) {
#define EMU_SYMBOL(f) \
  if (!strcmp(name, #f)) return (void*)f
  EMU_SYMBOL(cublasLtGetVersion);
  EMU_SYMBOL(cublasLtCreate);
  EMU_SYMBOL(cublasLtMatmulDescCreate);
  EMU_SYMBOL(cublasLtMatmulDescSetAttribute);
  EMU_SYMBOL(cublasLtMatrixLayoutCreate);
  EMU_SYMBOL(cublasLtMatmulPreferenceCreate);
  EMU_SYMBOL(cublasLtMatmulPreferenceSetAttribute);
  EMU_SYMBOL(cublasLtMatmulPreferenceDestroy);
  EMU_SYMBOL(cublasLtMatmulAlgoGetHeuristic);
  EMU_SYMBOL(cublasLtMatmulAlgoCheck);
  EMU_SYMBOL(cublasLtMatmul);
#undef EMU_SYMBOL
  return nullptr;
}
#define dlopen emu_dlopen
#define dlsym emu_dlsym
