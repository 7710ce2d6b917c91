// cublasLt.h: the few functions of cuBLASLt that kernels.cu uses, as a plain GEMM: float sums, one rounding at the end.
//
// The layouts, transposes and leading dimensions are taken from the descriptors, and its contracts are kept, so that
// kernels.cu's use of the real library is what gets tested: a product wants the workspace that its algorithm promised
// and addresses as aligned as the preference declared. The heuristic offers 32 candidates, as far as the preference allows: 1 is
// plain, 2 wants the whole workspace and adds two parts of the sum, 3 adds four, in the type of the output if that is not
// masked, 4 says that it is supported but does not run and leaves CUDA's error set, 31 wants 48 MiB and adds eight parts; 0 and
// the others are not supported. A product takes a time of its own: LOAM_EMU_FASTEST names the fastest candidate of products that
// add nothing, then, behind commas, of those that add to another array and of those that add in place ("3" where unset).
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
  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};

enum cublasLtMatmulAlgoConfigAttributes_t { CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3 };
enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4, EMU_ALL_SCHEMES = 7 };

struct EmuMatmul {
  int transposed[2];  // A and B
};
struct EmuLayout {  // of a column-major matrix
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct EmuPreference {
  uint64_t workspace = 0;
  uint32_t schemes = EMU_ALL_SCHEMES, alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};
/** What is in the 64 bytes of an algorithm. */
struct EmuAlgo {
  uint64_t mark, candidate, workspace, scheme;
  uint32_t alignment[4];
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
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, int which, const void* value,
                                                           size_t bytes) {
  if (which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8) return memcpy(&p->workspace, value, 8), CUBLAS_STATUS_SUCCESS;
  if (bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
  if (which == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return memcpy(&p->schemes, value, 4), CUBLAS_STATUS_SUCCESS;
  int operand = which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  if (operand < 0 || operand > 3) return CUBLAS_STATUS_INVALID_VALUE;
  return memcpy(&p->alignment[operand], value, 4), CUBLAS_STATUS_SUCCESS;
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
                                                     cublasLtMatmulPreference_t p, int wanted,
                                                     cublasLtMatmulHeuristicResult_t* results, int* found) {
  if (!emu_fits(op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  *found = std::min(wanted, 32);
  for (int i = 0; i < *found; i++) {
    EmuAlgo algo = {EMU_ALGO, (uint64_t)i, i == 2 ? p->workspace : i == 31 ? (uint64_t)48 << 20 : 0, 0, {}};
    if (i == 3) algo.scheme = p->schemes & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE ? 4 : p->schemes & 2;
    memcpy(algo.alignment, p->alignment, sizeof algo.alignment);
    bool offered = ((i >= 1 && i <= 4) || i == 31) && algo.workspace <= p->workspace;
    results[i] = {{}, algo.workspace, offered ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED, 1};
    memcpy(results[i].algo.data, &algo, sizeof algo);
  }
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algo,
                                              cublasLtMatmulHeuristicResult_t* result) {
  uint64_t candidate = algo->data[1];
  bool known = algo->data[0] == EMU_ALGO && ((candidate >= 1 && candidate <= 3) || candidate == 31);
  if (!known || !emu_fits(op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  return *result = {*algo, algo->data[2], CUBLAS_STATUS_SUCCESS, 1}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                           cublasLtMatmulAlgoConfigAttributes_t, void* value,
                                                           size_t bytes, size_t* written) {
  if (bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
  uint32_t scheme = (uint32_t)algo->data[3];
  return memcpy(value, &scheme, 4), *written = 4, CUBLAS_STATUS_SUCCESS;
}

/** Milliseconds of a product on this GPU. */
inline float emu_milliseconds(uint64_t candidate, bool adds, bool in_place) {
  const char* asked = getenv("LOAM_EMU_FASTEST");
  uint64_t fastest[3] = {3, 3, 3};
  int given = asked ? sscanf(asked, "%lu,%lu,%lu", &fastest[0], &fastest[1], &fastest[2]) : 3;
  for (int i = 1; i < 3; i++)
    if (i >= given) fastest[i] = fastest[i - 1];
  return candidate == fastest[adds ? 1 + in_place : 0] ? 1 : 2 + (float)candidate;
}

/** Four columns of D times 32 rows at a time: sums over first to last of k. a (k, 32 of m) packed from `first` on, b (4, k) packed. */
inline void emu_gemm_tile(float (*acc)[32], const float* a, const float* b, size_t m, size_t first, size_t last,
                          size_t k) {
  for (size_t p = first; p < last; p++, a += m)
    for (int j = 0; j < 4; j++)
      for (int i = 0; i < 32; i++) acc[j][i] += b[j * k + p] * a[i];
}

/** D = alpha op(A) op(B) + beta C, when its turn in the stream has come. parts: of the sum over k, each rounded to bfloat16 or not. */
inline void emu_product(EmuMatmul op, float alpha, const void* A, EmuLayout la, const void* B, EmuLayout lb, float beta,
                        const void* C, EmuLayout lc, void* D, EmuLayout ld, int parts, bool rounds) {
  const __nv_bfloat16 *a = (const __nv_bfloat16*)A, *b = (const __nv_bfloat16*)B;
  size_t m = ld.rows, n = ld.cols, k = op.transposed[0] ? la.rows : la.cols, wide = (m + 31) / 32 * 32,
         tall = (n + 3) / 4 * 4;
  std::vector<float> pa(k * wide), pb(tall * k);  // op(A) as (k, m), op(B) as (n, k), padded with zeros
  for (size_t p = 0; p < k; p++)
    for (size_t i = 0; i < m; i++)
      pa[p * wide + i] = __bfloat162float(op.transposed[0] ? a[i * la.ld + p] : a[p * la.ld + i]);
  for (size_t j = 0; j < n; j++)
    for (size_t p = 0; p < k; p++)
      pb[j * k + p] = __bfloat162float(op.transposed[1] ? b[p * lb.ld + j] : b[j * lb.ld + p]);
  auto at = [](const void* x, const EmuLayout& l, size_t i) {
    return l.type == CUDA_R_32F ? ((const float*)x)[i] : __bfloat162float(((const __nv_bfloat16*)x)[i]);
  };
#pragma omp parallel for schedule(static) if (m * n * k > 1 << 22)  // threads that wait take time, too
  for (size_t j0 = 0; j0 < n; j0 += 4)
    for (size_t i0 = 0; i0 < m; i0 += 32) {
      float sum[4][32] = {};
      for (int part = 0; part < parts; part++) {
        float acc[4][32] = {};
        size_t first = k * part / parts, last = k * (part + 1) / parts;
        emu_gemm_tile(acc, &pa[first * wide + i0], &pb[j0 * k], wide, first, last, k);
        for (int j = 0; j < 4; j++)
          for (int i = 0; i < 32; i++)
            sum[j][i] += rounds ? __bfloat162float(__float2bfloat16_rn(acc[j][i])) : acc[j][i];
      }
      for (size_t j = j0; j < std::min(j0 + 4, n); j++)
        for (size_t i = i0; i < std::min(i0 + 32, m); i++) {
          float v = alpha * sum[j - j0][i - i0] + (beta != 0 ? beta * at(C, lc, j * lc.ld + i) : 0);
          size_t out = j * ld.ld + i;
          if (ld.type == CUDA_R_32F)
            ((float*)D)[out] = v;
          else
            ((__nv_bfloat16*)D)[out] = __float2bfloat16_rn(v);
        }
    }
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t op, const void* alpha, const void* A,
                                     cublasLtMatrixLayout_t la, const void* B, cublasLtMatrixLayout_t lb,
                                     const void* beta, const void* C, cublasLtMatrixLayout_t lc, void* D,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t bytes, cudaStream_t stream) {
  EmuAlgo chosen;
  memcpy(&chosen, algo->data, sizeof chosen);
  if (!workspace || chosen.mark != EMU_ALGO || !emu_fits(op, la, lb, lc, ld)) return CUBLAS_STATUS_INVALID_VALUE;
  if (chosen.candidate == 4) emu::last_error = cudaErrorInvalidConfiguration;
  bool runs = (chosen.candidate >= 1 && chosen.candidate <= 3) || chosen.candidate == 31;
  if (bytes < chosen.workspace || !runs) return CUBLAS_STATUS_NOT_SUPPORTED;
  const void* operands[] = {A, B, C, D};
  for (int i = 0; i < 4; i++)
    if ((uintptr_t)operands[i] % chosen.alignment[i]) return CUBLAS_STATUS_INVALID_VALUE;
  int parts = chosen.candidate == 31 ? 8 : chosen.candidate == 3 ? 4 : (int)chosen.candidate;
  bool rounds = chosen.scheme == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE && ld->type == CUDA_R_16BF;
  float al = *(const float*)alpha, be = *(const float*)beta;
  EmuMatmul o = *op;
  EmuLayout ba = *la, bb = *lb, bc = *lc, bd = *ld;
  cudaError_t e = emu::enqueue(stream, [=] {
    if (chosen.workspace) {  // whatever else lies there is gone; all of it would take longer than the product
      memset(workspace, 0xff, std::min<size_t>(chosen.workspace, 1 << 20));
      ((char*)workspace)[chosen.workspace - 1] = -1;
    }
    emu_product(o, al, A, ba, B, bb, be, C, bc, D, bd, parts, rounds);
    emu::clock_ms += emu_milliseconds(chosen.candidate, be != 0, C == D);
  });
  return e ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
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
  EMU_SYMBOL(cublasLtMatmulAlgoConfigGetAttribute);
  EMU_SYMBOL(cublasLtMatmul);
#undef EMU_SYMBOL
  return nullptr;
}
#define dlopen emu_dlopen
#define dlsym emu_dlsym
