// kernels.cpp: every function of kernels.h for the CPU.
//
// One source, compiled once for each instruction set (portable, avx2, avx512, arm64): the vector width W below follows
// from the compiler's flags, and no function chooses at run time. Matrix products go to a BLAS found on the machine, or
// to the built-in one, which shares its inner loops with attention.
//
// Rows are spread over threads with OpenMP. Each result is written by one thread and summed in a fixed order, which
// makes every function deterministic. Nothing throws: all memory comes from allocate(), which says when there is none.

#pragma GCC visibility push(default)
#include "kernels.h"
#pragma GCC visibility pop
#include "formulas.h"
#include "host.h"

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <map>

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_num_procs() { return 1; }
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
static inline void omp_set_num_threads(int) {}
#endif

// ---- helpers: threads and scratch memory ----------------------------------------------------------------------------

enum { MAX_THREADS = 1024 };

static int thread_count = 0;  // 0 until device_open()

static int use_device() {
  CHECK(thread_count > 0, "no device is open; call device_open first");
  return 0;
}

/// Threads for a loop over `work` elements. It is all or one, as OpenMP keeps a team of one size ready at no cost.
static int team(int64_t work) { return work < 16384 ? 1 : thread_count; }

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
static int64_t first_tile(int64_t row, int64_t rows) { return max(0, row) / rows * rows; }  // where the tile of a row begins

static void zero(void* to, int64_t bytes) {
  const int64_t step = 1 << 20;
#pragma omp parallel for num_threads(team(bytes / 16))
  for (int64_t i = 0; i < bytes; i += step) memset((char*)to + i, 0, min(step, bytes - i));
}

/// The big blocks of allocate(): what was never touched is not yet missing from the memory that the system calls available.
struct Mapped {
  char* memory;
  int64_t bytes;
  bool whole;  // all of it was touched
};
static std::mutex mapped_mutex;
static std::vector<Mapped> mapped;

static bool remember_mapped(char* memory, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mapped_mutex);
  try {
    mapped.push_back({memory, bytes, false});
    return true;
  } catch (...) {
    return false;
  }
}

static void forget_mapped(const void* memory) {
  std::lock_guard<std::mutex> lock(mapped_mutex);
  auto is_it = [&](const Mapped& block) { return block.memory == memory; };
  mapped.erase(std::remove_if(mapped.begin(), mapped.end(), is_it), mapped.end());
}

/// Bytes that were given and that the system has not yet found memory for.
static int64_t untouched_bytes() {
  int64_t untouched = 0;
#ifdef __linux__
  std::lock_guard<std::mutex> lock(mapped_mutex);
  const int64_t page = sysconf(_SC_PAGESIZE), step = 16384 * page;
  unsigned char is_there[16384];
  for (Mapped& block : mapped) {
    int64_t missing = 0;
    for (int64_t at = 0; at < block.bytes && !block.whole; at += step) {
      int64_t bytes = min(step, block.bytes - at);
      if (mincore(block.memory + at, bytes, is_there)) continue;
      for (int64_t i = 0; i < bytes / page; i++) missing += is_there[i] & 1 ? 0 : page;
    }
    block.whole = missing == 0;
    untouched += missing;
  }
#endif
  return untouched;
}

/// Zeroed memory, aligned to 256 bytes, or 0; given back with deallocate(). Big blocks are mapped in huge pages, which are
/// three times faster to get, take memory only where they are touched, and leave the process when they are given back.
static const int64_t huge_page = 2 << 20;

static void* allocate(int64_t bytes) {
  if (bytes < huge_page) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, round_up(bytes, 256))) return nullptr;
    return memset(memory, 0, bytes);
  }
  int64_t size = round_up(bytes, huge_page);
  char* map = (char*)mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  char* memory = (char*)round_up((int64_t)map, huge_page);
  if (memory > map) munmap(map, memory - map);
  if (memory < map + huge_page) munmap(memory + size, map + huge_page - memory);
#ifdef MADV_HUGEPAGE
  madvise(memory, size, MADV_HUGEPAGE);
#endif
  if (remember_mapped(memory, size)) return memory;
  munmap(memory, size);
  return nullptr;
}

static void deallocate(void* memory, int64_t bytes) {
  if (bytes < huge_page) return free(memory);
  forget_mapped(memory);
  munmap(memory, round_up(bytes, huge_page));
}

/// Left over for what is not asked for here: JavaScript's heap, stacks, and what a BLAS takes for itself.
static const int64_t RESERVE_BYTES = 64 << 20;

/// Bytes that may be given: of the limits of host_limits(), less what was given and is not touched yet.
static int64_t room(const int64_t* limits) { return max(0, limits[0] - untouched_bytes() - RESERVE_BYTES); }

/// Says that so many bytes more do not fit, where that is so. The system does not: it gives any number, and ends the process
/// when they are touched.
static int check_room(int64_t bytes, int64_t given) {
  static std::mutex mutex;
  static int64_t unasked = 0;  // bytes that may be given before the system is asked again: half of what was left then
  std::lock_guard<std::mutex> lock(mutex);
  if (bytes <= unasked) {
    unasked -= bytes;
    return 0;
  }
  int64_t limits[3];
  char source[4200];
  TRY(find_limits(limits, source, sizeof source, ""));
  int64_t left = room(limits);
  unasked = max(0, (left - bytes) / 2);
  if (bytes <= left) return 0;
  FAIL("%.1f MB do not fit: %.1f MB are free of %.1f MB (%s), %.1f MB already given", bytes / 1e6,
              left / 1e6, limits[1] / 1e6, source, given / 1e6);
}

static int64_t allocated_bytes = 0, peak_bytes = 0;  // given by mem_alloc(), now and at most

/// Scratch memory for the call in progress; it only grows and is reused by the next call. 0 after fail(): not enough.
static void* workspace(int64_t bytes) {
  static void* memory = nullptr;
  static int64_t capacity = 0;
  if (bytes <= capacity) return memory;
  if (memory) deallocate(memory, capacity);
  memory = nullptr, capacity = 0;
  if (check_room(bytes, allocated_bytes)) return nullptr;
  memory = allocate(bytes);
  capacity = memory ? bytes : 0;
  if (!memory) fail("%s: could not get %lld bytes of scratch memory", op, (long long)bytes);
  return memory;
}

// ---- helpers: vectors -----------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
enum { W = 16 };  // floats in a vector register
enum { TILE_ROWS = 6, TILE_VECTORS = 4 };  // sums kept in registers by the inner loop of a matrix product
#elif defined(__AVX2__)
enum { W = 8 };
enum { TILE_ROWS = 6, TILE_VECTORS = 2 };
#else
enum { W = 4 };
#if defined(__aarch64__)
enum { TILE_ROWS = 6, TILE_VECTORS = 4 };
#else
enum { TILE_ROWS = 6, TILE_VECTORS = 2 };
#endif
#endif

template <int WIDTH>
struct Lanes {
  typedef float floats __attribute__((vector_size(WIDTH * 4)));
  typedef int32_t ints __attribute__((vector_size(WIDTH * 4)));
  typedef uint32_t bits __attribute__((vector_size(WIDTH * 4)));
};
typedef Lanes<W>::floats vec;
typedef Lanes<W>::ints ivec;
typedef Lanes<4>::floats vec4;
typedef Lanes<W == 4 ? 4 : 8>::floats piece;  // part of a head: head sizes are multiples of 8
enum { PIECE = sizeof(piece) / sizeof(float) };

template <class To, class From>
static inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

/// Loads and stores at any address.
template <class V>
static inline V load(const void* address) {
  V v;
  memcpy(&v, address, sizeof v);
  return v;
}

template <class V>
static inline void store(float* address, V v) {
  memcpy(address, &v, sizeof v);
}

static inline vec load(const float* address) { return load<vec>(address); }
static inline ivec load(const int32_t* address) { return load<ivec>(address); }
static inline vec larger(vec a, vec b) { return a > b ? a : b; }

/// 0, 1, 2, ... W-1
static inline ivec lane_numbers() {
  ivec lanes;
  for (int i = 0; i < W; i++) lanes[i] = i;
  return lanes;
}

/// e^x within 2 ulp for F = float or vec: 2^n * e^r with n a whole number and |r| <= ln(2)/2, e^r by a polynomial.
/// Below -87.33 it is 0, above 88.37 infinite; NaN stays NaN.
template <class F, class BITS>
static inline F exponential(F x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
  F shifted = x * 1.44269504f + shift;
  F n = shifted - shift;
  F r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln(2) in two parts
  F y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + (r + 1.0f);
  y = y * bit_cast<F>((bit_cast<BITS>(shifted) << 23) + 0x3f800000u);
  y = x < -87.33f ? F{} : y;
  return x > 88.37f ? F{} + INFINITY : y;
}

static inline float fast_exp(float x) { return exponential<float, uint32_t>(x); }
static inline vec fast_exp(vec x) { return exponential<vec, Lanes<W>::bits>(x); }

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) { return bit_cast<float>((uint32_t)x << 16); }

static inline float as_float(float x) { return x; }
static inline float as_float(bf16 x) { return from_bf16(x); }

/// W values of bfloat16 as floats.
static inline vec load(const bf16* address) {
  typedef bf16 halves __attribute__((vector_size(W * sizeof(bf16))));
  halves v;
  memcpy(&v, address, sizeof v);
  return bit_cast<vec>(__builtin_convertvector(v, Lanes<W>::bits) << 16);
}

/// The first n < W values; the others are 0.
template <class T>
static vec load_first(const T* address, int64_t n) {
  T values[W] = {};
  for (int64_t i = 0; i < n; i++) values[i] = address[i];
  return load(values);
}

/// Rounds to nearest, ties to even; NaN stays NaN.
static inline bf16 to_bf16(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet = (bits >> 16) | 0x40u;
  return (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// ---- helpers: memory that is read next --------------------------------------------------------------------------------
//
// The processor fetches ahead of what is read in order, but ends at each page of 4 KiB, which one row or a few fill here.

enum { FETCH = 64 };  // floats

/// Asks for FETCH floats.
static inline void fetch(const float* x) {
  for (int i = 0; i < FETCH; i += 16) __builtin_prefetch(x + i, 0, 2);
}

/// Asks for rows of `columns` floats, `row` apart.
static inline void fetch_rows(const float* x, size_t row, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(x + i * row + j, 0, 2);
  }
  asm volatile("");  // GCC leaves out calls of a function that does nothing else
}

// ---- helpers: the inner loop of every matrix product ----------------------------------------------------------------

#define UNROLL _Pragma("GCC unroll 16")  // keeps an array of vectors in registers

/// Groups of lines of the cache that are needed soon, asked for one after the other while a tile is summed.
struct Ahead {
  const char* group = nullptr;
  size_t step = 0;   // bytes from a group to the next
  size_t apart = 0;  // and between the lines of a group
  int64_t lines = 0;

  void fetch() {
    for (int64_t i = 0; i < lines; i++) __builtin_prefetch(group + i * apart);
    group += step;
  }
};

/// c (R, columns) = add + a b with R * NV vectors of sums in registers; add may be 0, or c. Element (i, p) of a lies at
/// a[i * a_row + p * a_step], so a may be read transposed; rows of b (depth, columns), c and add lie b_row, c_row, add_row apart.
/// Asks for c and add, and for a group of what is ahead every 16 elements of depth; ahead is 0 where all is at hand.
template <class V, int R, int NV>
static inline void tile(float* c, size_t c_row, const float* add, size_t add_row, const float* a, size_t a_row, size_t a_step,
                        const float* b, size_t b_row, int64_t depth, const Ahead* ahead) {
  const int width = sizeof(V) / sizeof(float);
  Ahead soon = ahead ? *ahead : Ahead{};
  V sum[R][NV];
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < NV; j++) {
      sum[i][j] = V{};
      if (ahead) __builtin_prefetch(c + i * c_row + j * width, 1);  // it is there when the sums are
      if (ahead && add) __builtin_prefetch(add + i * add_row + j * width);
    }
  }
  for (int64_t p = 0; p < depth;) {
    soon.fetch();
    for (const int64_t end = min(p + 16, depth); p < end; p++) {
      V row[NV];
      UNROLL for (int j = 0; j < NV; j++) row[j] = load<V>(b + p * b_row + j * width);
      UNROLL for (int i = 0; i < R; i++) {
        UNROLL for (int j = 0; j < NV; j++) sum[i][j] += a[i * a_row + p * a_step] * row[j];
      }
    }
  }
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < NV; j++) {
      if (add) sum[i][j] += load<V>(add + i * add_row + j * width);
      store(c + i * c_row + j * width, sum[i][j]);
    }
  }
}

/// The same for any number of columns; b has whole pieces.
template <int R>
static void strip_of(float* c, size_t c_row, const float* add, size_t add_row, const float* a, size_t a_row, size_t a_step,
                     const float* b, size_t b_row, int64_t columns, int64_t depth, const Ahead* ahead) {
  int64_t j = 0;
  auto at = [&](int64_t j) { return add ? add + j : nullptr; };
  for (; j + TILE_VECTORS * W <= columns; j += TILE_VECTORS * W) {
    tile<vec, R, TILE_VECTORS>(c + j, c_row, at(j), add_row, a, a_row, a_step, b + j, b_row, depth, ahead);
  }
  for (; j + 2 * W <= columns; j += 2 * W) {
    tile<vec, R, 2>(c + j, c_row, at(j), add_row, a, a_row, a_step, b + j, b_row, depth, ahead);
  }
  for (; j + W <= columns; j += W) tile<vec, R, 1>(c + j, c_row, at(j), add_row, a, a_row, a_step, b + j, b_row, depth, ahead);
  for (; j + PIECE <= columns; j += PIECE) {
    tile<piece, R, 1>(c + j, c_row, at(j), add_row, a, a_row, a_step, b + j, b_row, depth, ahead);
  }
  if (j == columns) return;
  float edge[R * PIECE];
  tile<piece, R, 1>(edge, PIECE, nullptr, 0, a, a_row, a_step, b + j, b_row, depth, ahead);
  for (int64_t i = 0; i < R; i++) {
    for (int64_t q = j; q < columns; q++) c[i * c_row + q] = (add ? add[i * add_row + q] : 0.0f) + edge[i * PIECE + q - j];
  }
}

/// The same for 1 to TILE_ROWS rows.
static void part_strip(float* c, size_t c_row, const float* add, size_t add_row, const float* a, size_t a_row, size_t a_step,
                       const float* b, size_t b_row, int64_t rows, int64_t columns, int64_t depth, const Ahead* ahead) {
  switch (rows) {
    case 1: return strip_of<1>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
    case 2: return strip_of<2>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
    case 3: return strip_of<3>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
    case 4: return strip_of<4>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
    case 5: return strip_of<5>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
    default: return strip_of<6>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, depth, ahead);
  }
}

/// The same for a whole tile.
__attribute__((noinline)) static void whole_strip(float* c, size_t c_row, const float* add, size_t add_row, const float* a,
                                                  size_t a_row, size_t a_step, const float* b, size_t b_row, int64_t depth,
                                                  const Ahead* ahead) {
  tile<vec, TILE_ROWS, TILE_VECTORS>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, depth, ahead);
}

/// The same. Nearly all are whole: the way through part_strip() takes 4% of tiny's products.
static inline void strip(float* c, size_t c_row, const float* add, size_t add_row, const float* a, size_t a_row, size_t a_step,
                         const float* b, size_t b_row, int64_t rows, int64_t columns, int64_t depth, const Ahead* ahead = nullptr) {
  if (rows == TILE_ROWS && columns == TILE_VECTORS * W) {
    return whole_strip(c, c_row, add, add_row, a, a_row, a_step, b, b_row, depth, ahead);
  }
  part_strip(c, c_row, add, add_row, a, a_row, a_step, b, b_row, rows, columns, depth, ahead);
}

// ---- device: instruction sets, BLAS ---------------------------------------------------------------------------------

/// dnnl_sgemm is row-major like cblas with CblasRowMajor, its sizes are 64 bits wide and it returns a status.
typedef int (*OneDnnGemm)(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const void* a, int64_t lda,
                          const void* b, int64_t ldb, float beta, float* c, int64_t ldc);
typedef void (*CblasGemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const void* a, int lda,
                          const void* b, int ldb, float beta, float* c, int ldc);
typedef void (*SetThreads)(int64_t threads);  // some take an int; the calling conventions pass both alike

struct BlasKind {
  const char* name;
  const char* files[4];
  const char* gemm;
  const char* bf16_gemm;
  const char* set_threads;
};

/// In order of preference.
static const BlasKind BLAS_KINDS[] = {
    {"onednn", {"libdnnl.so.3", "libdnnl.so.2", "libdnnl.so", "libdnnl.dylib"},
     "dnnl_sgemm", "dnnl_gemm_bf16bf16f32", ""},
    {"mkl", {"libmkl_rt.so.2", "libmkl_rt.so.1", "libmkl_rt.so"},
     "cblas_sgemm", "cblas_gemm_bf16bf16f32", "MKL_Set_Num_Threads"},
    {"openblas", {"libopenblas.so.0", "libopenblas.so", "libopenblas.dylib"},
     "cblas_sgemm", "cblas_sbgemm", "openblas_set_num_threads"},
    {"blis", {"libblis.so.4", "libblis.so.3", "libblis.so"},
     "cblas_sgemm", "", "bli_thread_set_num_threads"},
    {"accelerate", {"/System/Library/Frameworks/Accelerate.framework/Accelerate"},
     "cblas_sgemm", "", ""},
};

struct Blas {
  const BlasKind* kind = nullptr;  // 0: the built-in product
  void* gemm = nullptr;
  void* bf16_gemm = nullptr;  // 0: it has none that runs on this processor
  SetThreads set_threads = nullptr;
  char path[4096] = "";
};

static Blas blas;
static bool use_bf16_gemm = false;  // inputs of matrix products are rounded
static bool use_pairs = false;      // and this file multiplies them itself in attention,
static bool use_pair_gemm = false;  // and elsewhere

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define HAS_PAIR_PRODUCTS 1  // compiled for every processor with AVX-512, used on those with AVX512-BF16
#endif

/// Whether the processor multiplies pairs of bfloat16 (AVX512-BF16).
static bool has_bf16_pairs() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
#else
  return false;
#endif
}

/// Whether it multiplies tiles of bfloat16 (AMX-TILE and AMX-BF16).
static bool has_bf16_tiles() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 22 & 1);
#else
  return false;
#endif
}

static int one_dnn(void* gemm, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void* a, const void* b,
                   float beta, float* c) {
  return ((OneDnnGemm)gemm)(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, 1.0f, a, ta ? m : k, b, tb ? k : n, beta, c, n);
}

static void cblas(void* gemm, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void* a, const void* b,
                  float beta, float* c) {
  const int row_major = 101, no_transpose = 111, transpose = 112;
  ((CblasGemm)gemm)(row_major, ta ? transpose : no_transpose, tb ? transpose : no_transpose, (int)m, (int)n, (int)k,
                    1.0f, a, (int)(ta ? m : k), b, (int)(tb ? k : n), beta, c, (int)n);
}

static bool is_one_dnn(const Blas& b) { return b.kind && !strcmp(b.kind->name, "onednn"); }

/// oneDNN has the symbol everywhere and refuses at run time on processors without AVX-512.
static bool bf16_gemm_works(const Blas& b) {
  if (!b.bf16_gemm) return false;
  bf16 one = to_bf16(1.0f);
  float result = 0.0f;
  return !is_one_dnn(b) || one_dnn(b.bf16_gemm, false, false, 1, 1, 1, &one, &one, 0.0f, &result) == 0;
}

/// Opens the first file of a kind that has its GEMM. Returns false if there is none.
static bool find_blas(const BlasKind& kind, Blas* found) {
  for (const char* file : kind.files) {
    void* library = file ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : nullptr;
    void* gemm = library ? dlsym(library, kind.gemm) : nullptr;
    if (!gemm) continue;
    const int64_t gnu_openmp = 3;  // MKL: use the threads that this library uses; must come before its first product
    if (void* set_layer = dlsym(library, "MKL_Set_Threading_Layer")) ((SetThreads)set_layer)(gnu_openmp);
    found->kind = &kind;
    found->gemm = gemm;
    found->bf16_gemm = kind.bf16_gemm[0] ? dlsym(library, kind.bf16_gemm) : nullptr;
    found->set_threads = kind.set_threads[0] ? (SetThreads)dlsym(library, kind.set_threads) : nullptr;
    if (!bf16_gemm_works(*found)) found->bf16_gemm = nullptr;
    Dl_info info;
    const char* path = dladdr(gemm, &info) ? info.dli_fname : file;
    if (!realpath(path, found->path)) snprintf(found->path, sizeof found->path, "%s", path);
    return true;
  }
  return false;
}

/// "onednn, openblas, builtin": what device_open() could use here.
struct FoundText {
  char text[128] = "";
  explicit FoundText(bool with_bf16) {
    for (const BlasKind& kind : BLAS_KINDS) {
      Blas found;
      if (find_blas(kind, &found) && (!with_bf16 || found.bf16_gemm)) append(kind.name);
    }
    if (!with_bf16) append("builtin");
    if (!text[0]) append("none");
  }
  void append(const char* name) {
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s%s", used ? ", " : "", name);
  }
};

static bool is_auto(const char* blas) { return !strcmp(blas, "auto"); }

/// The BLAS called `name`, or where that is "" or "auto" the first one that will do; of no kind where this file's own product will.
static int choose_blas(const char* name, bool bf16_wanted, bool own_pairs, Blas* chosen) {
  bool any = !name[0] || is_auto(name), builtin = !strcmp(name, "builtin"), known = any || builtin;
  // As fast as the best of them, where it was measured, and no signal can meet it.
  if (any && (bf16_wanted || is_auto(name)) && own_pairs && !has_bf16_tiles()) return 0;
  for (const BlasKind& kind : BLAS_KINDS) {
    if (!any && strcmp(name, kind.name)) continue;
    known = true;
    Blas found;
    if (!find_blas(kind, &found) || (any && bf16_wanted && !found.bf16_gemm)) continue;
    *chosen = found;
    break;
  }
  if (!known) {
    FAIL("blas=\"%s\" is not known; choose auto, builtin, onednn, mkl, openblas, blis, accelerate", name);
  }
  if (!any && !builtin && !chosen->kind) {
    FAIL("blas=\"%s\" was not found on this machine; found: %s; auto chooses one", name, FoundText(false).text);
  }
  if (bf16_wanted && !chosen->bf16_gemm && (chosen->kind || !own_pairs)) {
    const char* used = chosen->kind ? chosen->kind->name : "builtin";
    FAIL("bf16_gemm=1 needs a processor with AVX512-BF16, or a BLAS with a bfloat16 GEMM for this one, which %s is not; "
         "found with one: %s", used, FoundText(true).text);
  }
  return 0;
}

/// The instruction set this file was compiled for.
static const char* compiled_isa() { return W == 16 ? "avx512" : W == 8 ? "avx2" : "portable"; }

/// The best instruction set of the processor that a library is built for.
static const char* best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
  return avx512 ? "avx512" : avx2 ? "avx2" : "portable";
#else
  return "portable";
#endif
}

/// The value of the first line of a /proc file that begins with `key`, without what stands before the value; "" if none.
static void proc_value(const char* file, const char* key, char* value, size_t capacity) {
  value[0] = 0;
  FILE* stream = fopen(file, "r");
  if (!stream) return;
  char line[512];
  while (fgets(line, sizeof line, stream)) {
    if (strncmp(line, key, strlen(key))) continue;
    const char* start = strchr(line, ':');
    if (!start) continue;
    start += 1 + strspn(start + 1, " \t");
    snprintf(value, capacity, "%.*s", (int)strcspn(start, "\n"), start);
    break;
  }
  fclose(stream);
}

/// Processors that this process may run on, or less where a cgroup gives it a quota of their time.
static int default_threads() {
  int64_t limits[3];
  char source[1];
  bool has_quota = find_limits(limits, source, sizeof source, "") == 0 && limits[2] > 0;
  return has_quota ? (int)min(omp_get_num_procs(), limits[2]) : omp_get_num_procs();
}

// ---- device: the most that a processor can do -------------------------------------------------------------------------
//
// Loops that touch nothing but registers, with so many sums at a time that no unit waits for the sum before. Each returns
// a number that depends on all of them, so that the compiler leaves none out.

// Hides from the compiler what a value is.
#if defined(__x86_64__)
#define HIDE(value) asm volatile("" : "+x"(value))
#elif defined(__aarch64__)
#define HIDE(value) asm volatile("" : "+w"(value))
#else
#define HIDE(value) asm volatile("" : "+m"(value))
#endif

#if defined(__aarch64__)
enum { FMA_SUMS = 16 };  // four units, four cycles
#else
enum { FMA_SUMS = 12 };
#endif

__attribute__((noinline)) static float multiply_add(int64_t rounds) {
  vec sums[FMA_SUMS], factor = vec{} + 0.5f, term = vec{} + 1.0f;
  HIDE(factor);
  HIDE(term);
  UNROLL for (int i = 0; i < FMA_SUMS; i++) sums[i] = term * (float)i;
  for (int64_t round = 0; round < rounds; round++) {
    UNROLL for (int i = 0; i < FMA_SUMS; i++) sums[i] = sums[i] * factor + term;
  }
  vec total = {};
  UNROLL for (int i = 0; i < FMA_SUMS; i++) total += sums[i];
  return total[0];
}

struct PeakLoop {
  float (*run)(int64_t rounds);
  double flops;  // of one round
  const char* name;
};

#if defined(__x86_64__)
enum { BF16_SUMS = 12, AMX_SUMS = 6 };

__attribute__((noinline, target("avx512f,avx512bf16"))) static float multiply_add_bf16(int64_t rounds) {
  __m512 sums[BF16_SUMS], one = _mm512_set1_ps(1.0f);
  __m512bh factors = _mm512_cvtne2ps_pbh(one, one);
  asm volatile("" : "+v"(factors));
  UNROLL for (int i = 0; i < BF16_SUMS; i++) sums[i] = _mm512_set1_ps((float)i);
  for (int64_t round = 0; round < rounds; round++) {
    UNROLL for (int i = 0; i < BF16_SUMS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], factors, factors);
  }
  __m512 total = _mm512_setzero_ps();
  UNROLL for (int i = 0; i < BF16_SUMS; i++) total = _mm512_add_ps(total, sums[i]);
  return _mm512_cvtss_f32(total);
}

/// Tiles of 16 rows of 64 bytes: each product adds (16, 32) x (32, 16) to (16, 16).
__attribute__((noinline, target("amx-tile,amx-bf16"))) static float multiply_add_tiles(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // bytes
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } tiles;
  float result[16 * 16];
  _tile_loadconfig(&tiles);  // makes all of them 0: the time does not depend on their values
  for (int64_t round = 0; round < rounds; round++) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_stored(0, result, 64);
  _tile_release();
  return result[0];
}

/// Linux gives tiles to who asks for them.
static bool may_use_tiles() {
#ifdef __linux__
  const int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

/// The fastest loop over bfloat16 that the processor has, else over float32.
static PeakLoop choose_peak_loop(bool bf16_wanted) {
#if defined(__x86_64__)
  if (bf16_wanted && has_bf16_tiles() && may_use_tiles()) {
    return {multiply_add_tiles, 2.0 * 16 * 16 * 32 * AMX_SUMS, "bfloat16 tile products (AMX)"};
  }
  if (bf16_wanted && has_bf16_pairs()) {
    return {multiply_add_bf16, 2.0 * 32 * BF16_SUMS, "bfloat16 dot products (AVX512-BF16)"};
  }
#endif
  (void)bf16_wanted;
  const char* names[] = {"float32 multiply-adds", "float32 multiply-adds (AVX2)", "float32 multiply-adds (AVX-512)"};
  return {multiply_add, 2.0 * W * FMA_SUMS, names[W == 16 ? 2 : W == 8 ? 1 : 0]};
}

/// Time of this thread alone: other programs on the machine do not lengthen it.
static double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

int device_peak(double* flops, char* how, int32_t capacity) {
  BEGIN(SIZES(capacity), ADDRESSES(flops, how));
  const PeakLoop loop = choose_peak_loop(use_bf16_gemm);
  const int times = 15;
  double rates[times] = {};
#pragma omp parallel num_threads(thread_count)
  {
    volatile float sink = loop.run(1);
    double start = thread_seconds();
    sink = loop.run(10000);
    int64_t rounds = max(1, (int64_t)(10000 * 2e-3 / (thread_seconds() - start + 1e-9)));
    for (int i = 0; i < times; i++) {
#pragma omp barrier
      start = thread_seconds();
      sink = loop.run(rounds);
      double rate = loop.flops * rounds / (thread_seconds() - start);
#pragma omp atomic
      rates[i] += rate;
    }
    (void)sink;
  }
  *flops = *std::max_element(rates, rates + times);
  snprintf(how, capacity, "%s", loop.name);
  return 0;
}

int device_open(int32_t index, int32_t threads, int32_t bf16_gemm, const char* name, const char* attention) {
  op = __func__;
  if (index != 0) FAIL("index=%d, but the CPU library has one device, 0", index);
  if (threads < 0 || threads > MAX_THREADS) FAIL("threads=%d must be 0 (all) to %d", threads, MAX_THREADS);
  if (!name) FAIL("the address of blas is 0; pass \"auto\" for the fastest");
  if (attention && *attention && strcmp(attention, "auto") && strcmp(attention, "portable"))
    FAIL("attention=%s: a CPU has one kind, leave it at auto", attention);
  if (bf16_gemm < 0 || bf16_gemm > LOAM_AUTO) FAIL("bf16_gemm=%d must be 0, 1 or %d (auto)", bf16_gemm, LOAM_AUTO);
#ifdef HAS_PAIR_PRODUCTS
  const bool own_pairs = has_bf16_pairs();
#else
  const bool own_pairs = false;
#endif
  const bool named = name[0] && !is_auto(name) && strcmp(name, "builtin"), choose = bf16_gemm == LOAM_AUTO;
  Blas chosen;
  TRY(choose_blas(name, choose ? own_pairs && !named : bf16_gemm, own_pairs, &chosen));
  blas = chosen;
  use_bf16_gemm = choose ? own_pairs && (!named || chosen.bf16_gemm) : bf16_gemm;
  use_pairs = use_bf16_gemm && own_pairs;
  use_pair_gemm = use_pairs && !chosen.kind;
  thread_count = threads ? threads : default_threads();
  if (blas.set_threads) blas.set_threads(thread_count);
  return 0;
}

int device_info(char* json, int32_t capacity) {
  BEGIN_ON_HOST(SIZES(capacity), ADDRESSES(json));
  char name[128];
  proc_value("/proc/cpuinfo", "model name", name, sizeof name);
  int length = snprintf(json, capacity,
                        "{\"name\":\"%s\",\"library\":\"cpu\",\"act\":\"f32\",\"isa\":\"%s\",\"isa_best\":\"%s\","
                        "\"threads\":%d,\"blas\":\"%s%s%s\",\"bf16_gemm\":%s}",
                        name[0] ? name : "CPU", compiled_isa(), best_isa(), thread_count,
                        blas.kind ? blas.kind->name : "builtin", blas.path[0] ? " " : "", blas.path,
                        use_bf16_gemm ? "true" : "false");
  if (length >= capacity) FAIL("the text needs %d bytes, but capacity is %d", length + 1, capacity);
  return 0;
}

int device_stream(uint64_t* stream) {
  BEGIN(SIZES(), ADDRESSES(stream));
  *stream = 0;
  return 0;
}

static double marks[MARKS];  // ms

int mark(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  if (at >= MARKS) FAIL("mark %d, at most %d", at, MARKS - 1);
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  marks[at] = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  return 0;
}

int mark_ms(float* ms, int32_t from, int32_t to) {
  BEGIN(SIZES(from, to), ADDRESSES(ms));
  if (from >= MARKS || to >= MARKS) FAIL("marks %d and %d, at most %d", from, to, MARKS - 1);
  *ms = (float)(marks[to] - marks[from]);
  return 0;
}

int side_stream(uint64_t* stream) { return device_stream(stream); }
int side_wait(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  return 0;
}
int side_mark(int32_t at) { return side_wait(at); }
int side_join(int32_t at) { return side_wait(at); }

int synchronize(void) {
  BEGIN(SIZES(), ADDRESSES());
  return 0;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static std::mutex memory_mutex;
static std::map<const void*, int64_t> blocks;  // given by mem_alloc(), not yet taken by mem_free(): address -> bytes

static int remember_block(void* memory, int64_t bytes) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  try {
    blocks[memory] = bytes;
  } catch (...) {
    FAIL("no memory for the list of blocks");
  }
  allocated_bytes += bytes;
  peak_bytes = max(peak_bytes, allocated_bytes);
  return 0;
}

int device_memory(int64_t* bytes) {
  BEGIN(SIZES(), ADDRESSES(bytes));
  int64_t limits[3];
  char source[1];
  TRY(find_limits(limits, source, sizeof source, ""));
  std::lock_guard<std::mutex> lock(memory_mutex);
  bytes[0] = allocated_bytes;
  bytes[1] = peak_bytes;
  bytes[2] = room(limits);
  bytes[3] = limits[1];
  return 0;
}

int mem_alloc(uint64_t* address, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(address));
  TRY(check_room(bytes, allocated_bytes));
  void* memory = allocate(bytes);
  if (!memory) FAIL("%.1f MB do not fit: the system gives no more addresses", bytes / 1e6);
  if (remember_block(memory, bytes)) {
    deallocate(memory, bytes);
    return 1;
  }
  *address = (uint64_t)(uintptr_t)memory;
  return 0;
}

int mem_free(void* address) {
  BEGIN(SIZES(), ADDRESSES(address));
  std::lock_guard<std::mutex> lock(memory_mutex);
  auto block = blocks.find(address);
  if (block == blocks.end()) FAIL("%p was not given by mem_alloc, or is already free", address);
  allocated_bytes -= block->second;
  deallocate(address, block->second);
  blocks.erase(block);
  return 0;
}

int host_alloc(uint64_t* address, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(address));
  TRY(check_room(bytes, allocated_bytes));
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes)) FAIL("%.1f MB do not fit", bytes / 1e6);
  *address = (uint64_t)(uintptr_t)memset(memory, 0, bytes);
  return 0;
}

static int copy(const char* function, void* dst, const void* src, int64_t bytes) {
  op = function;
  TRY(use_device());
  TRY(check_arguments(SIZES(bytes), ADDRESSES(dst, src)));
  char *to = (char*)dst, *from = (char*)src;
  bool overlaps = from < to + bytes && to < from + bytes;
  int threads = overlaps ? 1 : team(bytes / 16);  // one does not fill the memory's bandwidth
  if (threads == 1) return memmove(to, from, bytes), 0;
  int64_t piece = divide_up(bytes, threads);  // as large as it may be: memcpy() then writes past the caches
#pragma omp parallel for num_threads(threads)
  for (int64_t at = 0; at < bytes; at += piece) memcpy(to + at, from + at, min(piece, bytes - at));
  return 0;
}

int copy_to_device(void* dst, const void* src, int64_t bytes) { return copy(__func__, dst, src, bytes); }
int copy_to_host(void* dst, const void* src, int64_t bytes) { return copy(__func__, dst, src, bytes); }
int copy_async(void* dst, const void* src, int64_t bytes) { return copy(__func__, dst, src, bytes); }

static char snapshots[SNAPSHOTS][SNAPSHOT_BYTES];
static int64_t snapshots_taken = 0, snapshots_read = 0;

int snapshot(const void* src, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(src));
  if (bytes > SNAPSHOT_BYTES) FAIL("%lld bytes, at most %d", (long long)bytes, SNAPSHOT_BYTES);
  if (snapshots_taken - snapshots_read == SNAPSHOTS) FAIL("%d wait to be read already", SNAPSHOTS);
  memcpy(snapshots[snapshots_taken++ % SNAPSHOTS], src, bytes);
  return 0;
}

int snapshot_read(void* dst, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst));
  if (bytes > SNAPSHOT_BYTES) FAIL("%lld bytes, at most %d", (long long)bytes, SNAPSHOT_BYTES);
  if (snapshots_read == snapshots_taken) FAIL("none was taken since the last one was read");
  memcpy(dst, snapshots[snapshots_read++ % SNAPSHOTS], bytes);
  return 0;
}

int fill_zero(void* dst, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst));
  zero(dst, bytes);
  return 0;
}

static void round_all(bf16* to, const float* from, int64_t n) {
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) to[i] = to_bf16(from[i]);
}

int convert(void* dst, const void* src, int32_t dst_type, int32_t src_type, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(dst, src));
  if (dst_type == LOAM_BF16 && src_type == LOAM_F32) {
    round_all((bf16*)dst, (const float*)src, n);
    return 0;
  }
  if (dst_type == LOAM_F32 && src_type == LOAM_BF16) {
    float* to = (float*)dst;
    const bf16* from = (const bf16*)src;
#pragma omp parallel for simd num_threads(team(n))
    for (int64_t i = 0; i < n; i++) to[i] = from_bf16(from[i]);
    return 0;
  }
  bool known = dst_type == src_type && (dst_type == LOAM_F32 || dst_type == LOAM_BF16);
  if (!known) {
    FAIL("types must be 0 (f32) or 1 (bf16), but dst is %d and src is %d", dst_type, src_type);
  }
  memmove(dst, src, n * (dst_type == LOAM_F32 ? 4 : 2));
  return 0;
}

/// Place of the first element whose exponent bits are all ones, or -1.
template <class BITS>
static int64_t first_nonfinite(const BITS* x, int64_t n, BITS exponent) {
  const int64_t step = 4096;
  int64_t first = n;
#pragma omp parallel for reduction(min : first) num_threads(team(n))
  for (int64_t start = 0; start < n; start += step) {
    int64_t end = min(n, start + step);
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = start; i < end; i++) found |= (x[i] & exponent) == exponent;
    if (!found) continue;
    for (int64_t i = start; i < end; i++) {
      if ((x[i] & exponent) == exponent) first = min(first, i);
    }
  }
  return first < n ? first : -1;
}

int find_nonfinite(int64_t* index, const void* x, int32_t type, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(index, x));
  if (type == LOAM_F32) {
    *index = first_nonfinite((const uint32_t*)x, n, 0x7f800000u);
  } else if (type == LOAM_BF16) {
    *index = first_nonfinite((const uint16_t*)x, n, (uint16_t)0x7f80u);
  } else {
    FAIL("type must be 0 (f32) or 1 (bf16), but is %d", type);
  }
  return 0;
}

// ---- random numbers -------------------------------------------------------------------------------------------------
//
// Element e = offset + i of a stream belongs to block e / 4, whose four random words w become u = w * 2^-32 + 2^-33 in
// (0, 1], and then (z0, z1) = sqrt(-2 ln u0) * (cos, sin)(2 pi u1), likewise (z2, z3) from u2 and u3; element e takes
// z[e % 4].

static void normals(float z[4], uint64_t block, uint64_t seed) {
  Philox random = philox(block, seed);
  for (int pair = 0; pair < 4; pair += 2) {
    float u = (float)random.word[pair] * 0x1p-32f + 0x1p-33f, v = (float)random.word[pair + 1] * 0x1p-32f + 0x1p-33f;
    float radius = sqrtf(-2.0f * logf(u)), angle = 6.2831853f * v;
    z[pair] = radius * cosf(angle);
    z[pair + 1] = radius * sinf(angle);
  }
}

int init_normal(float* dst, int64_t n, float std, uint64_t seed, uint64_t offset) {
  BEGIN(SIZES(n), ADDRESSES(dst));
  int64_t first = (int64_t)(offset / 4), last = (int64_t)((offset + n - 1) / 4);
#pragma omp parallel for num_threads(team(16 * n))
  for (int64_t block = first; block <= last; block++) {
    float z[4];
    normals(z, block, seed);
    for (int j = 0; j < 4; j++) {
      int64_t i = block * 4 + j - (int64_t)offset;
      if (i >= 0 && i < n) dst[i] = std * z[j];
    }
  }
  return 0;
}

int init_constant(float* dst, int64_t n, float value) {
  BEGIN(SIZES(n), ADDRESSES(dst));
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) dst[i] = value;
  return 0;
}

// ---- embedding: rows of a table -------------------------------------------------------------------------------------

static int check_ids(const int32_t* ids, int N, int V) {
  for (int i = 0; i < N; i++) {
    bool valid = ids[i] >= 0 && ids[i] < V;
    if (!valid) FAIL("ids[%d]=%d must be at least 0 and less than V=%d", i, ids[i], V);
  }
  return 0;
}

int embedding_forward(float* out, const int32_t* ids, const float* weight, int32_t N, int32_t V, int32_t C) {
  BEGIN(SIZES(N, V, C), ADDRESSES(out, ids, weight));
  TRY(check_ids(ids, N, V));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int i = 0; i < N; i++) memcpy(out + (size_t)i * C, weight + (size_t)ids[i] * C, C * sizeof(float));
  return 0;
}

int embedding_forward_bf16(float* out, const int32_t* ids, const void* weight, int32_t N, int32_t V, int32_t C) {
  BEGIN(SIZES(N, V, C), ADDRESSES(out, ids, weight));
  TRY(check_ids(ids, N, V));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t i = 0; i < N; i++) {
    const bf16* row = (const bf16*)weight + (size_t)ids[i] * C;
#pragma omp simd
    for (int c = 0; c < C; c++) out[i * C + c] = from_bf16(row[c]);
  }
  return 0;
}

/// Every thread adds all rows, for columns of its own: no two threads meet, and sums follow the order of the rows.
int embedding_backward(float* dweight, const float* dout, const int32_t* ids, int32_t N, int32_t V, int32_t C,
                       int32_t accumulate) {
  BEGIN(SIZES(N, V, C), ADDRESSES(dweight, dout, ids));
  TRY(check_ids(ids, N, V));
  if (!accumulate) zero(dweight, (int64_t)V * C * sizeof(float));
  int threads = team((int64_t)N * C);
  int64_t columns = round_up(divide_up(C, threads), 16);  // whole cache lines
#pragma omp parallel for num_threads(threads)
  for (int64_t start = 0; start < C; start += columns) {
    int64_t end = min(C, start + columns);
    for (int i = 0; i < N; i++) {
      float* to = dweight + (size_t)ids[i] * C;
      const float* from = dout + (size_t)i * C;
#pragma omp simd
      for (int64_t c = start; c < end; c++) to[c] += from[c];
    }
  }
  return 0;
}

// ---- rmsnorm: out = x * rstd * weight -------------------------------------------------------------------------------

enum { SUM_ROWS = 64 };  // each block of so many rows sums its own gradient of the weight, whatever the number of threads

/// out (C) = the sum of the rows of partial, `stride` apart, in order.
static void sum_rows(float* out, const float* partial, int64_t rows, int64_t stride, int C, bool accumulate) {
  if (!accumulate) memset(out, 0, C * sizeof(float));
  for (int64_t row = 0; row < rows; row++) {
#pragma omp simd
    for (int c = 0; c < C; c++) out[c] += partial[row * stride + c];
  }
}

/// Where row i begins, of rows of C that stand `group` at a time side by side, each group `stride` after the one before.
static size_t row_at(int64_t i, int C, int group, int stride) { return i / group * stride + i % group * C; }

int rmsnorm_forward(float* out, float* rstd, const float* x, const float* weight, int32_t N, int32_t C, int32_t group,
                    int32_t stride, float eps) {
  BEGIN(SIZES(N, C, group, stride), ADDRESSES(out, rstd, x, weight));
  TRY(check_groups(N, C, group, stride));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int i = 0; i < N; i++) {
    const float* row = x + row_at(i, C, group, stride);
    float* to = out + row_at(i, C, group, stride);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += row[c] * row[c];
    float r = 1.0f / sqrtf(sum / C + eps);
#pragma omp simd
    for (int c = 0; c < C; c++) to[c] = row[c] * r * weight[c];
    rstd[i] = r;
  }
  return 0;
}

/// One row: dx = rstd * (g - n * mean(g * n)) and dweight += dout * n, with n = x * rstd and g = dout * weight; out = n * weight
/// again, where AGAIN.
template <bool AGAIN>
static void rmsnorm_backward_row(float* dx, float* dweight, float* out, const float* dout, const float* x,
                                 const float* weight, float rstd, int C, bool accumulate_dx) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < C; c++) sum += dout[c] * weight[c] * x[c];  // g * x: rstd is the same for the whole row
  float factor = sum * rstd * rstd / C;  // mean(g * n) * rstd, so that x, not n, is subtracted below
#pragma omp simd
  for (int c = 0; c < C; c++) {
    float d = dout[c];  // dx may be dout
    // The first term is as if rstd were a constant; the second takes out what changes the row's length, not its direction.
    dx[c] = (accumulate_dx ? dx[c] : 0.0f) + rstd * (d * weight[c] - x[c] * factor);
    float n = x[c] * rstd;
    dweight[c] += d * n;  // out = n * weight: its derivative is n
    if (AGAIN) out[c] = n * weight[c];
  }
}

int rmsnorm_backward(float* dx, float* dweight, float* out, const float* dout, const float* x, const float* weight,
                     const float* rstd, int32_t N, int32_t C, int32_t group, int32_t stride, int32_t accumulate_dx,
                     int32_t accumulate_dweight) {
  BEGIN(SIZES(N, C, group, stride), ADDRESSES(dx, dweight, dout, x, weight, rstd));
  TRY(check_groups(N, C, group, stride));
  int64_t n_blocks = divide_up(N, SUM_ROWS);
  float* partial = (float*)workspace(n_blocks * C * sizeof(float));
  if (!partial) return 1;
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t block = 0; block < n_blocks; block++) {
    float* sums = partial + block * C;
    memset(sums, 0, C * sizeof(float));
    for (int64_t i = block * SUM_ROWS; i < min(N, (block + 1) * SUM_ROWS); i++) {
      size_t at = row_at(i, C, group, stride);
      auto row = out ? rmsnorm_backward_row<true> : rmsnorm_backward_row<false>;
      row(dx + at, sums, out ? out + at : nullptr, dout + at, x + at, weight, rstd[i], C, accumulate_dx);
    }
  }
  sum_rows(dweight, partial, n_blocks, C, C, accumulate_dweight);
  return 0;
}

// ---- layernorm: out = (x - mean) * rstd * weight + bias -------------------------------------------------------------

int layernorm_forward(float* out, float* stats, const float* x, const float* weight, const float* bias, int32_t N,
                      int32_t C, float eps) {
  BEGIN(SIZES(N, C), ADDRESSES(out, stats, x, weight, bias));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t i = 0; i < N; i++) {
    const float* row = x + i * C;
    float* to = out + i * C;
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += row[c];
    float mean = sum / C;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (row[c] - mean) * (row[c] - mean);  // of what is small beside a large mean
    float rstd = 1.0f / sqrtf(squares / C + eps);
#pragma omp simd
    for (int c = 0; c < C; c++) to[c] = (row[c] - mean) * rstd * weight[c] + bias[c];
    stats[2 * i] = mean, stats[2 * i + 1] = rstd;
  }
  return 0;
}

/// One row; dbias follows dweight in `sums`.
static void layernorm_backward_row(float* dx, float* sums, const float* dout, const float* x, const float* weight,
                                   float mean, float rstd, int C) {
  float g_sum = 0.0f, gn_sum = 0.0f;
#pragma omp simd reduction(+ : g_sum, gn_sum)
  for (int c = 0; c < C; c++) {
    float g = dout[c] * weight[c], n = (x[c] - mean) * rstd;
    g_sum += g;
    gn_sum += g * n;
    sums[c] += dout[c] * n;
    sums[C + c] += dout[c];
  }
  float g_mean = g_sum / C, gn_mean = gn_sum / C;
#pragma omp simd
  for (int c = 0; c < C; c++) {
    float n = (x[c] - mean) * rstd;
    // As if mean and rstd were constants, less what moves the row's mean and what changes its length.
    dx[c] = rstd * (dout[c] * weight[c] - g_mean - n * gn_mean);
  }
}

int layernorm_backward(float* dx, float* dweight, float* dbias, const float* dout, const float* x, const float* weight,
                       const float* stats, int32_t N, int32_t C, int32_t accumulate_dweight,
                       int32_t accumulate_dbias) {
  BEGIN(SIZES(N, C), ADDRESSES(dx, dweight, dbias, dout, x, weight, stats));
  int64_t n_blocks = divide_up(N, SUM_ROWS);
  float* partial = (float*)workspace(n_blocks * 2 * C * sizeof(float));
  if (!partial) return 1;
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t block = 0; block < n_blocks; block++) {
    float* sums = partial + block * 2 * C;
    memset(sums, 0, 2 * C * sizeof(float));
    for (int64_t i = block * SUM_ROWS; i < min(N, (block + 1) * SUM_ROWS); i++) {
      layernorm_backward_row(dx + i * C, sums, dout + i * C, x + i * C, weight, stats[2 * i], stats[2 * i + 1], C);
    }
  }
  sum_rows(dweight, partial, n_blocks, 2 * C, C, accumulate_dweight);
  sum_rows(dbias, partial + C, n_blocks, 2 * C, C, accumulate_dbias);
  return 0;
}

// ---- rope: rotates pairs (j, j + D/2) -------------------------------------------------------------------------------

int rope(float* qkv, const float* table, const int32_t* starts, int32_t B, int32_t T, int32_t pos, int32_t H, int32_t K,
         int32_t D, int32_t inverse) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(qkv, table));
  if (D % 2 || pos < 0) {
    FAIL("D must be even and pos at least 0 (%s)", SIZE_TEXT(B, T, pos, H, K, D));
  }
  int half = D / 2;
  float sign = inverse ? -1.0f : 1.0f;  // sin(-a) = -sin(a), cos(-a) = cos(a)
  int64_t rows = (int64_t)B * T;
#pragma omp parallel for num_threads(team(rows * (H + K) * D))
  for (int64_t i = 0; i < rows; i++) {
    const float* cosines = table + (pos + i % T - (starts ? starts[i] : 0)) * D;
    fetch_rows(qkv + (i + 4) * (H + 2 * K) * D, 0, 1, (H + K) * D);  // values lie between, where the processor's own order ends
    const float* sines = cosines + half;
    for (int head = 0; head < H + K; head++) {
      float* x = qkv + (i * (H + 2 * K) + head) * D;
#pragma omp simd
      for (int j = 0; j < half; j++) {
        float a = x[j], b = x[j + half], c = cosines[j], s = sign * sines[j];
        x[j] = a * c - b * s;
        x[j + half] = b * c + a * s;
      }
    }
  }
  return 0;
}

// ---- products of bfloat16 pairs ---------------------------------------------------------------------------------------
//
// Where the processor multiplies pairs of bfloat16 (AVX512-BF16), twice as fast as floats: both operands are rounded while
// they are copied into the order of use, sums stay float. A dword holds elements p and p + 1 of a row of op(a), or of a
// column of op(b); an odd last one is paired with 0.

#ifdef HAS_PAIR_PRODUCTS
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers
#endif

#define PAIRS __attribute__((target("avx512bf16,prfchw")))

enum { PAIR_ROWS = 6, PAIR_VECTORS = 4, PAIR_COLUMNS = 16 * PAIR_VECTORS };

static inline __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << max(0, n)) - 1); }

/// 32 floats as 16 pairs; those behind n are 0.
PAIRS static inline __m512i pairs_along(const float* x, int64_t n) {
  __m512 low = _mm512_maskz_loadu_ps(first_lanes(n), x), high = _mm512_maskz_loadu_ps(first_lanes(n - 16), x + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/// The same of 32 that are rounded already.
PAIRS static inline __m512i pairs_along(const bf16* x, int64_t n) {
  return _mm512_maskz_loadu_epi16(first_lanes(n) | (__mmask32)first_lanes(n - 16) << 16, x);
}

/// 16 pairs (even[i], odd[i]).
PAIRS static inline __m512i pairs_across(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/// The same of two rows, of which the lanes count; odd may be 0.
PAIRS static inline __m512i pairs_across(const float* even, const float* odd, __mmask16 lanes) {
  const __m512 second = odd ? _mm512_maskz_loadu_ps(lanes, odd) : _mm512_setzero_ps();
  return pairs_across(_mm512_maskz_loadu_ps(lanes, even), second);
}

PAIRS static inline __m512i pairs_across(const bf16* even, const bf16* odd, __mmask16 lanes) {
  const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even));
  if (!odd) return first;
  return _mm512_or_si512(first, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, odd)), 16));
}

/// Rows become columns, of 16 x 16 dwords.
static inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/// c (R, columns) = add + a b, columns <= 16 * NV; add may be 0, or c. Pair (i, p) of a lies at a[i * a_row + p * a_step],
/// rows of b are b_row pairs apart.
template <int R, int NV>
PAIRS static inline void pair_tile(float* c, size_t c_row, const float* add, size_t add_row, const uint32_t* a, size_t a_row,
                                   size_t a_step, const uint32_t* b, size_t b_row, int64_t pairs, __mmask16 last,
                                   const Ahead* ahead) {
  Ahead soon = ahead ? *ahead : Ahead{};
  __m512 sum[R][NV];
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < NV; j++) {
      sum[i][j] = _mm512_setzero_ps();
      if (ahead) __builtin_prefetch(c + i * c_row + j * 16, 1);  // 4% of a product's time: it is there when the sums are
      if (ahead && add) __builtin_prefetch(add + i * add_row + j * 16);
    }
  }
  for (int64_t p = 0; p < pairs;) {
    soon.fetch();
    for (const int64_t end = min(p + 8, pairs); p < end; p++) {
      __m512bh row[NV];
      UNROLL for (int j = 0; j < NV; j++) row[j] = (__m512bh)_mm512_loadu_si512(b + p * b_row + j * 16);
      UNROLL for (int i = 0; i < R; i++) {
        __m512bh pair = (__m512bh)_mm512_set1_epi32((int)a[i * a_row + p * a_step]);
        UNROLL for (int j = 0; j < NV; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pair, row[j]);
      }
    }
  }
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < NV; j++) {
      const __mmask16 lanes = j == NV - 1 ? last : (__mmask16)0xffff;
      if (add) sum[i][j] = _mm512_add_ps(sum[i][j], _mm512_maskz_loadu_ps(lanes, add + i * add_row + j * 16));
      _mm512_mask_storeu_ps(c + i * c_row + j * 16, lanes, sum[i][j]);
    }
  }
}

/// The same for any number of columns of which b has whole vectors.
template <int R>
PAIRS static void pair_strip_of(float* c, size_t c_row, const float* add, size_t add_row, const uint32_t* a, size_t a_row,
                                size_t a_step, const uint32_t* b, size_t b_row, int64_t columns, int64_t pairs,
                                const Ahead* ahead) {
  int64_t j = 0;
  for (; j + PAIR_COLUMNS <= columns; j += PAIR_COLUMNS) {
    pair_tile<R, PAIR_VECTORS>(c + j, c_row, add ? add + j : nullptr, add_row, a, a_row, a_step, b + j, b_row, pairs, 0xffff, ahead);
  }
  const __mmask16 last = first_lanes((columns - 1) % 16 + 1);
  const float* rest = add ? add + j : nullptr;
  switch (divide_up(columns - j, 16)) {
    case 1: return pair_tile<R, 1>(c + j, c_row, rest, add_row, a, a_row, a_step, b + j, b_row, pairs, last, ahead);
    case 2: return pair_tile<R, 2>(c + j, c_row, rest, add_row, a, a_row, a_step, b + j, b_row, pairs, last, ahead);
    case 3: return pair_tile<R, 3>(c + j, c_row, rest, add_row, a, a_row, a_step, b + j, b_row, pairs, last, ahead);
    case 4: return pair_tile<R, 4>(c + j, c_row, rest, add_row, a, a_row, a_step, b + j, b_row, pairs, last, ahead);
  }
}

/// The same for 1 to PAIR_ROWS rows.
PAIRS static void pair_strip(float* c, size_t c_row, const float* add, size_t add_row, const uint32_t* a, size_t a_row,
                             size_t a_step, const uint32_t* b, size_t b_row, int64_t rows, int64_t columns, int64_t pairs,
                             const Ahead* ahead = nullptr) {
  if (rows == PAIR_ROWS && columns == PAIR_COLUMNS) {  // as it mostly is
    return pair_tile<PAIR_ROWS, PAIR_VECTORS>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, pairs, 0xffff, ahead);
  }
  switch (rows) {
    case 1: return pair_strip_of<1>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
    case 2: return pair_strip_of<2>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
    case 3: return pair_strip_of<3>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
    case 4: return pair_strip_of<4>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
    case 5: return pair_strip_of<5>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
    default: return pair_strip_of<6>(c, c_row, add, add_row, a, a_row, a_step, b, b_row, columns, pairs, ahead);
  }
}

/// to (divide_up(depth, 2), to_row) = pairs of rows of x (depth, n), floats x_row apart, in whole vectors.
template <class T>
PAIRS static void pack_pairs_across(uint32_t* to, size_t to_row, const T* x, size_t x_row, int64_t depth, int64_t n) {
  for (int64_t p = 0; p < depth; p += 2) {
    for (int64_t j = 0; j < n; j += 16) {
      const T* from = x + p * x_row + j;
      const __m512i pairs = pairs_across(from, p + 1 < depth ? from + x_row : nullptr, first_lanes(n - j));
      _mm512_storeu_si512(to + p / 2 * to_row + j, pairs);
    }
  }
}

/// to (rows, to_row) = pairs along the rows of x (rows, depth), in whole vectors.
PAIRS static void pack_pairs_along(uint32_t* to, size_t to_row, const float* x, size_t x_row, int64_t depth, int64_t rows) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t p = 0; p < depth; p += 32) {
      _mm512_storeu_si512(to + i * to_row + p / 2, pairs_along(x + i * x_row + p, depth - p));
    }
  }
}

/// to (divide_up(depth, 2), to_row) = pairs along the rows of x (n, depth), transposed; in columns n to whole vectors 0.
/// Writes whole vectors of rows, too: up to round_up(depth, 32) / 2 of them.
template <class T>
PAIRS static void pack_pairs_transposed(uint32_t* to, size_t to_row, const T* x, size_t x_row, int64_t depth, int64_t n) {
  for (int64_t j = 0; j < n; j += 16) {
    for (int64_t p = 0; p < depth; p += 32) {
      __m512i rows[16];
      UNROLL for (int i = 0; i < 16; i++) {
        rows[i] = j + i < n ? pairs_along(x + (j + i) * x_row + p, depth - p) : _mm512_setzero_si512();
      }
      transpose16(rows);
      UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (p / 2 + i) * to_row + j, rows[i]);
    }
  }
}

#endif

// ---- attention: causal, grouped-query, online softmax ---------------------------------------------------------------
//
// Queries and keys are taken in blocks of BLOCK rows. The scores of a pair of blocks are kept transposed, S^T (keys,
// queries): then maxima and sums over the keys run down the columns, which needs no sums across a vector, and only the
// queries (and dout) have to be transposed, once for each block of queries. Heads are first copied out of the fused
// buffer into dense arrays, since rows a multiple of 4 KiB apart would push each other out of the cache.
//
// Every product goes through strip(), TILE_ROWS rows at a time; each strip leaves out what the causal mask hides.
// Query row m of a block sees key row n of a block where n <= m + shift: shift is position of query 0 - of key 0. Where a row
// of the batch holds several documents, n >= begins[m] + shift too. As later queries begin no earlier, blocks of keys before the
// document of the first one are left out, and the others are for the queries up to the last that sees any of their keys.

enum { BLOCK = 64 };

struct AttentionSize {
  int64_t B, T, H, K, D;
  int64_t qkv_row() const { return (H + 2 * K) * D; }
  int64_t out_row() const { return H * D; }
  int64_t n_blocks() const { return divide_up(T, BLOCK); }
  int64_t kv_head(int64_t head) const { return head / (H / K); }
  int64_t kv_floats() const { return B * K * T * D; }
  int64_t work() const { return B * H * T * T; }
};

static int check_attention(int B, int T, int H, int K, int D) {
  if (H % K) FAIL("H=%d is not a multiple of K=%d (%s)", H, K, SIZE_TEXT(B, T, D));
  CHECK(D % 8 == 0 && D <= 256, "D=%d must be a multiple of 8 up to 256 (%s)", D, SIZE_TEXT(B, T, H, K));
  return 0;
}

/// Scratch memory of one thread for one block of queries.
struct AttentionScratch {
  float *scores, *dscores;  // (BLOCK keys, BLOCK queries)
  float *qt, *dout_t;       // (D, BLOCK): queries times the scale, and dout, transposed
  float *q, *dout, *result; // (BLOCK, D); result: out in the forward pass, dq in the backward pass
  static size_t floats(int64_t D) { return 2 * BLOCK * BLOCK + 5 * BLOCK * D; }
  AttentionScratch(float* memory, int64_t D) {
    size_t rows = BLOCK * D;
    scores = memory, dscores = scores + BLOCK * BLOCK, qt = dscores + BLOCK * BLOCK, dout_t = qt + rows;
    q = dout_t + rows, dout = q + rows, result = dout + rows;
  }
};

static void copy_rows(float* to, size_t to_row, const float* from, size_t from_row, int64_t rows, int64_t D) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t d = 0; d < D; d += PIECE) store(to + i * to_row + d, load<piece>(from + i * from_row + d));
  }
}

/// Copies the key and value heads of qkv to rows pos.. of k and v (B, K, T_max, D).
static void copy_kv_heads(float* k, float* v, const float* qkv, const AttentionSize& size, int64_t pos, int64_t T_max) {
  int64_t pairs = size.B * size.K, D = size.D;
#pragma omp parallel for num_threads(team(pairs * size.T * D))
  for (int64_t pair = 0; pair < pairs; pair++) {
    int64_t b = pair / size.K, kv_head = pair % size.K, to = (pair * T_max + pos) * D;
    const float* from = qkv + b * size.T * size.qkv_row() + (size.H + kv_head) * D;
    copy_rows(k + to, D, from, size.qkv_row(), size.T, D);
    copy_rows(v + to, D, from + size.K * D, size.qkv_row(), size.T, D);
  }
}

#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, Lanes<4>::ints{i, j, k, l})
#endif

/// to (4, 4), of rows to_row apart, = rows transposed.
static inline void store_transposed(float* to, size_t to_row, const vec4 rows[4]) {
  vec4 low01 = PICK(rows[0], rows[1], 0, 4, 1, 5), high01 = PICK(rows[0], rows[1], 2, 6, 3, 7);
  vec4 low23 = PICK(rows[2], rows[3], 0, 4, 1, 5), high23 = PICK(rows[2], rows[3], 2, 6, 3, 7);
  store(to, PICK(low01, low23, 0, 1, 4, 5));
  store(to + to_row, PICK(low01, low23, 2, 3, 6, 7));
  store(to + 2 * to_row, PICK(high01, high23, 0, 1, 4, 5));
  store(to + 3 * to_row, PICK(high01, high23, 2, 3, 6, 7));
}

/// to (D, BLOCK) = factor * x (rows, D) transposed; the columns after `rows`, up to a whole vector, become 0.
static void transpose(float* to, const float* x, size_t x_row, int64_t rows, int64_t D, float factor) {
  for (int64_t m = 0; m < round_up(rows, W); m += 4) {
    for (int64_t d = 0; d < D; d += 4) {
      vec4 in[4] = {};
      for (int i = 0; i < 4; i++) {
        if (m + i < rows) in[i] = factor * load<vec4>(x + (m + i) * x_row + d);
      }
      store_transposed(to + d * BLOCK + m, BLOCK, in);
    }
  }
}

/// scores (keys, BLOCK) = x (keys, D) yt (D, queries), leaving out vectors of queries that see none of a strip's keys.
static void multiply_scores(float* scores, const float* x, const float* yt, int64_t keys, int64_t queries, int64_t D,
                            int64_t shift) {
  for (int64_t n = 0; n < keys; n += TILE_ROWS) {
    int64_t first = min(queries, max(0, n - shift) / W * W);
    strip(scores + n * BLOCK + first, BLOCK, nullptr, 0, x + n * D, D, 1, yt + first, BLOCK, min(TILE_ROWS, keys - n),
          queries - first, D);
  }
}

/// out (queries, D) (+)= scores^T (queries, keys) x (keys, D): outputs from values, gradients of queries from keys.
static void multiply_queries(float* out, const float* scores, const float* x, int64_t keys, int64_t queries, int64_t D,
                             int64_t shift, bool accumulate) {
  for (int64_t m = 0; m < queries; m += TILE_ROWS) {
    int64_t seen = max(0, min(keys, m + TILE_ROWS + shift));
    float* to = out + m * D;
    strip(to, D, accumulate ? to : nullptr, D, scores + m, 1, BLOCK, x, D, min(TILE_ROWS, queries - m), D, seen);
  }
}

/// out (keys, D) += scores (keys, queries) x (queries, D): the gradients of values and keys.
static void multiply_keys(float* out, const float* scores, const float* x, int64_t keys, int64_t queries, int64_t D,
                          int64_t shift) {
  for (int64_t n = 0; n < keys; n += TILE_ROWS) {
    int64_t first = min(queries, max(0, n - shift));
    float* to = out + n * D;
    strip(to, D, to, D, scores + n * BLOCK + first, BLOCK, 1, x + first * D, D, min(TILE_ROWS, keys - n), D, queries - first);
  }
}

/// Where the documents of the queries of a block begin, counted from its first query on; as many as whole vectors have.
struct Begins {
  alignas(64) int32_t of[BLOCK];
  int64_t first_key = 0;  // of the blocks of keys that the queries see
  const int32_t* begins = nullptr;  // null where all is one document

  /// starts: of all queries of the block, the first of which stands at `position`, or null.
  Begins(const int32_t* starts, int64_t queries, int64_t position) {
    if (!starts) return;
    for (int64_t m = 0; m < BLOCK; m++) of[m] = (int32_t)(starts[min(m, queries - 1)] - position);
    first_key = starts[0] / BLOCK * BLOCK;
    begins = of;
  }

  /// How many of the queries, the first ones, see any of a block of keys: later documents begin after it.
  int64_t rows(int64_t queries, int64_t keys, int64_t shift) const {
    while (begins && begins[queries - 1] + shift >= keys) queries--;
    return queries;
  }
};

/// In the W queries from m on: the keys that a query does not see get `hidden`; those that none of them sees, from the
/// returned one on, get 0.
static int64_t mask(float* scores, float hidden, int64_t keys, int64_t m, int64_t shift, const int32_t* begins) {
  ivec last_seen = lane_numbers() + (int32_t)(m + shift);
  int64_t all_see = max(0, min(keys, m + shift + 1)), end = max(0, min(keys, m + shift + W));
  for (int64_t n = all_see; n < end; n++) {
    float* s = scores + n * BLOCK + m;
    store(s, last_seen >= (int32_t)n ? load(s) : vec{} + hidden);
  }
  if (begins) {
    ivec first_seen = load(begins + m) + (int32_t)shift;
    for (int64_t n = 0; n < min(end, begins[m + W - 1] + shift); n++) {
      float* s = scores + n * BLOCK + m;
      store(s, first_seen <= (int32_t)n ? load(s) : vec{} + hidden);
    }
  }
  for (int64_t n = end; n < keys; n++) store(scores + n * BLOCK + m, vec{});
  return end;
}

/// Per query: the largest score so far, the sum of exponentials relative to it, and the factor that the last block of
/// keys brought for what was summed before.
struct Softmax {
  alignas(64) float top[BLOCK];
  alignas(64) float sum[BLOCK];
  alignas(64) float factor[BLOCK];
  Softmax() {
    for (int m = 0; m < BLOCK; m++) top[m] = -FLT_MAX, sum[m] = 0.0f;  // finite: a query may see none of the first keys
  }
};

/// Of W queries and the first `end` keys.
static inline vec largest_score(const float* column, int64_t end) {
  vec even = vec{} - INFINITY, odd = even;  // two maxima, as each waits for the one before it
  for (int64_t n = 0; n + 1 < end; n += 2) {
    even = larger(load(column + n * BLOCK), even);
    odd = larger(load(column + (n + 1) * BLOCK), odd);
  }
  if (end % 2) even = larger(load(column + (end - 1) * BLOCK), even);
  return larger(even, odd);
}

/// scores become exp(score - top), 0 where masked.
static void online_softmax(Softmax* state, float* scores, int64_t keys, int64_t queries, int64_t shift,
                           const int32_t* begins) {
  for (int64_t m = 0; m < queries; m += W) {
    int64_t end = mask(scores, -INFINITY, keys, m, shift, begins);
    float* column = scores + m;
    vec before = load(state->top + m), top = larger(before, largest_score(column, end)), factor = fast_exp(before - top);
    vec sum = load(state->sum + m) * factor;
    for (int64_t n = 0; n < end; n++) {
      vec p = fast_exp(load(column + n * BLOCK) - top);
      sum += p;
      store(column + n * BLOCK, p);
    }
    store(state->top + m, top);
    store(state->sum + m, sum);
    store(state->factor + m, factor);
  }
}

/// The rows of x (queries, D) from `rows` on become 0: of queries that see none of the first keys.
static void clear_rows(float* x, int64_t rows, int64_t queries, int64_t D) {
  memset(x + rows * D, 0, (queries - rows) * D * sizeof(float));
}

static void scale_row(float* to, const float* x, int64_t D, float factor) {
  for (int64_t d = 0; d < D; d += PIECE) store(to + d, load<piece>(x + d) * factor);
}

/// What was summed before a block of keys, by the factor that the block brought.
static void rescale(float* sums, const Softmax& state, int64_t queries, int64_t D) {
  for (int64_t m = 0; m < queries; m++) {
    if (state.factor[m] != 1.0f) scale_row(sums + m * D, sums + m * D, D, state.factor[m]);
  }
}

/// out (queries, D), of rows out_row apart, = sums of all keys over those of the exponentials. lse may be 0.
static void divide_by_sums(float* out, size_t out_row, float* lse, const float* sums, const Softmax& state, int64_t queries,
                           int64_t D) {
  for (int64_t m = 0; m < queries; m++) {
    scale_row(out + m * out_row, sums + m * D, D, 1.0f / state.sum[m]);
    if (lse) lse[m] = state.top[m] + logf(state.sum[m]);
  }
}

/// Attention of up to BLOCK queries of one head, the first at `position`, to all keys of their documents. lse may be 0, and so
/// may starts, of these queries.
static void attend(float* out, size_t out_row, float* lse, const float* q, size_t q_row, const float* k, const float* v,
                   const int32_t* starts, int64_t queries, int64_t position, int64_t D, float* memory) {
  AttentionScratch scratch(memory, D);
  Softmax state;
  const Begins seen(starts, queries, position);
  transpose(scratch.qt, q, q_row, queries, D, 1.0f / sqrtf((float)D));
  int64_t all_keys = position + queries;
  for (int64_t key = seen.first_key; key < all_keys; key += BLOCK) {
    int64_t keys = min(BLOCK, all_keys - key), shift = position - key;
    int64_t rows = seen.rows(queries, keys, shift), columns = round_up(rows, W);
    bool again = key > seen.first_key;
    multiply_scores(scratch.scores, k + key * D, scratch.qt, keys, columns, D, shift);
    online_softmax(&state, scratch.scores, keys, columns, shift, seen.begins);
    if (again) rescale(scratch.result, state, rows, D);
    multiply_queries(scratch.result, scratch.scores, v + key * D, keys, rows, D, shift, again);
    if (!again) clear_rows(scratch.result, rows, queries, D);
  }
  divide_by_sums(out, out_row, lse, scratch.result, state, queries, D);
}

/// A block of queries of one head: a task of the forward pass.
struct QueryBlock {
  int64_t b, head, t, queries;
  QueryBlock(const AttentionSize& size, int64_t task) {
    int64_t n_blocks = size.n_blocks();
    b = task / n_blocks / size.H, head = task / n_blocks % size.H;
    t = (n_blocks - 1 - task % n_blocks) * BLOCK;  // the longest first
    queries = min(BLOCK, size.T - t);
  }
};

/// The tasks of a parallel region. A thread takes those of its own part in order, whose rows it has from products, then what is
/// left of the others' parts.
class Tasks {
  struct alignas(64) Part {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Part> parts;

 public:
  Tasks(int64_t tasks, int64_t threads) : parts(threads) {
    for (int64_t i = 0; i < threads; i++) parts[i].next = tasks * i / threads, parts[i].end = tasks * (i + 1) / threads;
  }

  template <class Run>
  void share(const Run& run) {
    for (size_t i = 0; i < parts.size(); i++) {
      Part& part = parts[(omp_get_thread_num() + i) % parts.size()];
      for (int64_t task; (task = part.next++) < part.end;) run(task);
    }
  }
};

/// Asks for where a task writes to, and for the queries of the next.
static void fetch_queries(const float* out, const float* qkv, const AttentionSize& size, int64_t task) {
  const QueryBlock here(size, task), next(size, min(task + 1, size.B * size.H * size.n_blocks() - 1));
  const int64_t out_row = size.out_row(), qkv_row = size.qkv_row(), D = size.D;
  fetch_rows(out + (here.b * size.T + here.t) * out_row + here.head * D, out_row, here.queries, D);
  fetch_rows(qkv + (next.b * size.T + next.t) * qkv_row + next.head * D, qkv_row, next.queries, D);
}

/// All queries of qkv, the first at `pos`, to keys and values (B, K, T_max, D). memory: scratch for every thread.
static void attend_all(float* out, float* lse, const float* qkv, const float* k, const float* v, const int32_t* starts,
                       const AttentionSize& size, int64_t pos, int64_t T_max, float* memory) {
  int64_t B = size.B, T = size.T, H = size.H, K = size.K, D = size.D;
  const int threads = team(B * H * T * (pos + T) * D / 16);
  Tasks tasks(size.n_blocks() * B * H, threads);
#pragma omp parallel num_threads(threads)
  tasks.share([&](int64_t task) {
    const auto [b, head, t, queries] = QueryBlock(size, task);
    int64_t row = b * T + t, kv = (b * K + size.kv_head(head)) * T_max * D;
    fetch_queries(out, qkv, size, task);
    attend(out + row * size.out_row() + head * D, size.out_row(), lse ? lse + (b * H + head) * T + t : nullptr,
           qkv + row * size.qkv_row() + head * D, size.qkv_row(), k + kv, v + kv, starts ? starts + row : nullptr,
           queries, pos + t, D, memory + omp_get_thread_num() * AttentionScratch::floats(D));
  });
}

// ---- attention by bfloat16 pairs ------------------------------------------------------------------------------------
//
// As above, with every product of bfloat16 pairs: the operands are rounded where they are read in another order anyway, P
// and dS where they are computed. Scores, softmax and sums stay float.

#ifdef HAS_PAIR_PRODUCTS

/// Keys and values of all heads (B, K, T) as pairs along D and across keys: each head is `along` or `across` dwords.
struct PairedHeads {
  int64_t row, wide, along, across;  // dwords of a row of pairs along D, of one across; of a head
  explicit PairedHeads(const AttentionSize& size) {
    row = round_up(size.D, 32) / 2, wide = round_up(size.D, 16);
    along = size.T * row, across = divide_up(size.T, 2) * wide;
  }
};

/// Scratch memory of one thread for one block of queries.
struct PairScratch {
  float *scores, *dscores;       // (BLOCK keys, BLOCK queries)
  float* result;                 // (BLOCK, D): out in the forward pass, dq in the backward pass
  uint32_t *qt, *dout_t;         // pairs along D, transposed: (D / 2, BLOCK)
  uint32_t *q, *dout;            // pairs across queries: (BLOCK / 2, D)
  uint32_t *p_across, *ds_across;  // pairs across keys: (BLOCK / 2, BLOCK queries)
  uint32_t *p_along, *ds_along;    // pairs across queries: (BLOCK keys, BLOCK / 2)
  static size_t dwords(int64_t D) { return 4 * BLOCK * BLOCK + 3 * BLOCK * round_up(D, 32); }
  PairScratch(uint32_t* memory, int64_t D) {
    const int64_t square = BLOCK * BLOCK, half = square / 2, block = BLOCK * round_up(D, 32);
    scores = (float*)memory, dscores = scores + square;
    p_across = memory + 2 * square, ds_across = p_across + half, p_along = ds_across + half, ds_along = p_along + half;
    result = (float*)(ds_along + half);
    qt = (uint32_t*)(result + block), dout_t = qt + block / 2, q = dout_t + block / 2, dout = q + block / 2;
  }
};

/// scores (keys, BLOCK) = x (keys, D) yt (D, queries), as multiply_scores().
PAIRS static void pair_scores(float* scores, const uint32_t* x, int64_t x_row, const uint32_t* yt, int64_t keys,
                              int64_t queries, int64_t D, int64_t shift) {
  for (int64_t n = 0; n < keys; n += PAIR_ROWS) {
    int64_t first = min(queries, max(0, n - shift) / W * W);
    if (first == queries) break;
    pair_strip(scores + n * BLOCK + first, BLOCK, nullptr, 0, x + n * x_row, x_row, 1, yt + first, BLOCK,
               min(PAIR_ROWS, keys - n), queries - first, D / 2);
  }
}

/// out (queries, D) (+)= scores^T x (keys, D), of pairs across keys, as multiply_queries().
PAIRS static void pair_queries(float* out, const uint32_t* scores, const uint32_t* x, int64_t x_row, int64_t keys,
                               int64_t queries, int64_t D, int64_t shift, bool accumulate) {
  for (int64_t m = 0; m < queries; m += PAIR_ROWS) {
    int64_t seen = max(0, min(keys, m + PAIR_ROWS + shift));
    float* to = out + m * D;
    pair_strip(to, D, accumulate ? to : nullptr, D, scores + m, 1, BLOCK, x, x_row, min(PAIR_ROWS, queries - m), D,
               divide_up(seen, 2));
  }
}

/// out (keys, D) += scores x (queries, D), of pairs across queries, as multiply_keys().
PAIRS static void pair_keys(float* out, const uint32_t* scores, const uint32_t* x, int64_t x_row, int64_t keys,
                            int64_t queries, int64_t D, int64_t shift) {
  const int64_t pairs = divide_up(queries, 2);
  for (int64_t n = 0; n < keys; n += PAIR_ROWS) {
    int64_t first = min(pairs, max(0, n - shift) / 2);
    float* to = out + n * D;
    pair_strip(to, D, to, D, scores + n * (BLOCK / 2) + first, BLOCK / 2, 1, x + first * x_row, x_row,
               min(PAIR_ROWS, keys - n), D, pairs - first);
  }
}

/// online_softmax() of scores times the scale, whose exponentials are left as pairs across keys.
PAIRS static void pair_softmax(Softmax* state, uint32_t* pairs, float* scores, int64_t keys, int64_t queries, int64_t shift,
                               const int32_t* begins, float scale) {
  for (int64_t m = 0; m < queries; m += W) {
    int64_t end = mask(scores, -INFINITY, keys, m, shift, begins);
    const float* column = scores + m;
    vec before = load(state->top + m), top = larger(before, scale * largest_score(column, end)), factor = fast_exp(before - top);
    vec sum = load(state->sum + m) * factor;
    for (int64_t n = 0; n < keys; n += 2) {
      vec p = {}, next = {};
      if (n < end) p = fast_exp(scale * load(column + n * BLOCK) - top);
      if (n + 1 < end) next = fast_exp(scale * load(column + (n + 1) * BLOCK) - top);
      sum += p;
      sum += next;
      _mm512_storeu_si512(pairs + n / 2 * BLOCK + m, pairs_across((__m512)p, (__m512)next));
    }
    store(state->top + m, top);
    store(state->sum + m, sum);
    store(state->factor + m, factor);
  }
}

/// attend() from paired keys and values of one head.
PAIRS static void pair_attend(float* out, size_t out_row, float* lse, const float* q, size_t q_row, const uint32_t* k,
                              const uint32_t* v, const PairedHeads& heads, const int32_t* starts, int64_t queries,
                              int64_t position, int64_t D, uint32_t* memory) {
  PairScratch scratch(memory, D);
  Softmax state;
  const Begins seen(starts, queries, position);
  pack_pairs_transposed(scratch.qt, BLOCK, q, q_row, D, queries);
  int64_t all_keys = position + queries;
  for (int64_t key = seen.first_key; key < all_keys; key += BLOCK) {
    int64_t keys = min(BLOCK, all_keys - key), shift = position - key;
    int64_t rows = seen.rows(queries, keys, shift), columns = round_up(rows, W);
    bool again = key > seen.first_key;
    pair_scores(scratch.scores, k + key * heads.row, heads.row, scratch.qt, keys, columns, D, shift);
    pair_softmax(&state, scratch.p_across, scratch.scores, keys, columns, shift, seen.begins, 1.0f / sqrtf((float)D));
    if (again) rescale(scratch.result, state, rows, D);
    pair_queries(scratch.result, scratch.p_across, v + key / 2 * heads.wide, heads.wide, keys, rows, D, shift, again);
    if (!again) clear_rows(scratch.result, rows, queries, D);
  }
  divide_by_sums(out, out_row, lse, scratch.result, state, queries, D);
}

PAIRS static int pair_attention_forward(float* out, float* lse, const float* qkv, const int32_t* starts,
                                        const AttentionSize& size) {
  const int64_t B = size.B, T = size.T, H = size.H, K = size.K, D = size.D, row = size.qkv_row();
  const int threads = team(size.work() * D / 16);
  Tasks tasks(size.n_blocks() * B * H, threads);
  const PairedHeads heads(size);
  const size_t scratch = PairScratch::dwords(D);
  uint32_t* memory = (uint32_t*)workspace((thread_count * scratch + B * K * (heads.along + heads.across)) * sizeof(uint32_t));
  if (!memory) return 1;
  uint32_t *k = memory + thread_count * scratch, *v = k + B * K * heads.along;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t pair = 0; pair < B * K; pair++) {
      const float* from = qkv + pair / K * T * row + (H + pair % K) * D;
      pack_pairs_along(k + pair * heads.along, heads.row, from, row, D, T);
      pack_pairs_across(v + pair * heads.across, heads.wide, from + K * D, row, T, D);
    }
    tasks.share([&](int64_t task) {
      const auto [b, head, t, queries] = QueryBlock(size, task);
      int64_t at = b * T + t, pair = b * K + size.kv_head(head);
      fetch_queries(out, qkv, size, task);
      pair_attend(out + at * size.out_row() + head * D, size.out_row(), lse + (b * H + head) * T + t,
                  qkv + at * row + head * D, row, k + pair * heads.along, v + pair * heads.across, heads,
                  starts ? starts + at : nullptr, queries, t, D, memory + omp_get_thread_num() * scratch);
    });
  }
  return 0;
}

#endif

int attention_forward(float* out, float* lse, const float* qkv, const int32_t* starts, int32_t B, int32_t T, int32_t H,
                      int32_t K, int32_t D) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(out, lse, qkv));
  TRY(check_attention(B, T, H, K, D));
  AttentionSize size = {B, T, H, K, D};
#ifdef HAS_PAIR_PRODUCTS
  if (use_pairs) return pair_attention_forward(out, lse, qkv, starts, size);
#endif
  size_t thread_floats = thread_count * AttentionScratch::floats(D);
  float* memory = (float*)workspace((thread_floats + 2 * size.kv_floats()) * sizeof(float));
  if (!memory) return 1;
  float *k = memory + thread_floats, *v = k + size.kv_floats();
  copy_kv_heads(k, v, qkv, size, 0, T);
  attend_all(out, lse, qkv, k, v, starts, size, 0, T, memory);
  return 0;
}

/// scores become P = exp(score - lse), 0 where masked, and dscores, which are dP, become dS = P * (dP - delta) * scale.
static void softmax_backward(float* scores, float* dscores, const float* lse, const float* delta, int64_t keys,
                             int64_t queries, int64_t shift, const int32_t* begins, float scale) {
  for (int64_t m = 0; m < queries; m += W) {
    vec l = load(lse + m), d = load(delta + m);
    int64_t end = mask(scores, -INFINITY, keys, m, shift, begins);
    mask(dscores, 0.0f, keys, m, shift, begins);
    for (int64_t n = 0; n < end; n++) {
      float *s = scores + n * BLOCK + m, *ds = dscores + n * BLOCK + m;
      vec p = fast_exp(load(s) - l);
      store(s, p);
      store(ds, p * (load(ds) - d) * scale);
    }
  }
}

/// Addresses of one query head of one batch row, and of the dense gradients of the keys and values that it reads.
struct AttentionHead {
  const float *q, *dout, *out, *lse;
  float *dq, *dk, *dv, *delta;
  const int32_t* starts;  // of the batch row, or null
  const int32_t* starts_from(int64_t t) const { return starts ? starts + t : nullptr; }
};

/// lse and delta of the queries [t, t + queries), of which head.delta becomes a copy.
static void read_stats(float* lse, float* delta, const AttentionHead& head, int64_t t, int64_t queries, int64_t out_row,
                       int64_t D) {
  for (int64_t m = 0; m < queries; m++) {
    const float *dout = head.dout + (t + m) * out_row, *out = head.out + (t + m) * out_row;
    piece sums = {};  // delta = rowsum(dout * out), which is rowsum(P * dP)
    for (int64_t d = 0; d < D; d += PIECE) sums += load<piece>(dout + d) * load<piece>(out + d);
    delta[m] = 0.0f;
    for (int i = 0; i < PIECE; i++) delta[m] += sums[i];
    head.delta[t + m] = delta[m];
    lse[m] = head.lse[t + m];
  }
}

/// The queries [t, t + queries): writes their dq and delta, adds to dk and dv of all keys they see. k, v (T, D) are dense.
static void attend_backward(const AttentionHead& head, const float* k, const float* v, const AttentionSize& size, int64_t t,
                            int64_t queries, float* memory) {
  int64_t D = size.D, qkv_row = size.qkv_row(), out_row = size.out_row();
  AttentionScratch scratch(memory, D);
  alignas(64) float lse[BLOCK] = {}, delta[BLOCK] = {};
  const Begins seen(head.starts_from(t), queries, t);
  float scale = 1.0f / sqrtf((float)D);
  copy_rows(scratch.q, D, head.q + t * qkv_row, qkv_row, queries, D);
  copy_rows(scratch.dout, D, head.dout + t * out_row, out_row, queries, D);
  transpose(scratch.qt, scratch.q, D, queries, D, scale);
  transpose(scratch.dout_t, scratch.dout, D, queries, D, 1.0f);
  read_stats(lse, delta, head, t, queries, out_row, D);
  for (int64_t key = seen.first_key; key < t + queries; key += BLOCK) {
    int64_t keys = min(BLOCK, t + queries - key), shift = t - key;
    int64_t rows = seen.rows(queries, keys, shift), columns = round_up(rows, W);
    bool again = key > seen.first_key;
    multiply_scores(scratch.scores, k + key * D, scratch.qt, keys, columns, D, shift);         // S = Q K^T again
    multiply_scores(scratch.dscores, v + key * D, scratch.dout_t, keys, columns, D, shift);    // dP = dO V^T
    softmax_backward(scratch.scores, scratch.dscores, lse, delta, keys, columns, shift, seen.begins, scale);  // P and dS
    multiply_keys(head.dv + key * D, scratch.scores, scratch.dout, keys, rows, D, shift);        // dV += P^T dO
    multiply_keys(head.dk + key * D, scratch.dscores, scratch.q, keys, rows, D, shift);          // dK += dS^T Q
    multiply_queries(scratch.result, scratch.dscores, k + key * D, keys, rows, D, shift, again);  // dQ += dS K
    if (!again) clear_rows(scratch.result, rows, queries, D);
  }
  copy_rows(head.dq + t * qkv_row, qkv_row, scratch.result, D, queries, D);
}

/// Row t of the key and value heads of dqkv that `pair` of (B, K) is = the sum in order of the parts of dk and dv, (parts, 2, T, D).
static void sum_kv_row(float* dqkv, const float* partials, const AttentionSize& size, int64_t parts, int64_t pair, int64_t t) {
  int64_t T = size.T, K = size.K, D = size.D;
  for (int64_t is_v = 0; is_v < 2; is_v++) {
    const float* from = partials + (is_v * T + t) * D;
    float* to = dqkv + (pair / K * T + t) * size.qkv_row() + (size.H + is_v * K + pair % K) * D;
    for (int64_t d = 0; d < D; d += PIECE) {
      piece sum = load<piece>(from + d);
      for (int64_t part = 1; part < parts; part++) sum += load<piece>(from + part * 2 * T * D + d);
      store(to + d, sum);
    }
  }
}

/// Tasks that one key/value head of one batch row is cut into.
static int64_t backward_parts(const AttentionSize& size) {
  int64_t pairs = size.B * size.K, wanted = 4 * thread_count;
  return pairs >= wanted ? 1 : min(size.H / size.K * size.n_blocks(), divide_up(wanted, pairs));
}

/// Floats of dk and dv in all parts.
static int64_t partial_floats(const AttentionSize& size, int64_t parts) {
  return (parts > 1 ? size.B * size.K * parts : thread_count) * 2 * size.T * size.D;
}

/// The backward pass over all queries, a block at a time: prepare(k) reads a key head, behind which the value head stands, and
/// block(head, t, queries) goes over the queries from t on of a query head that uses it.
///
/// A task is one key/value head of one batch row with all queries that use it, so that dk and dv have one writer. Where
/// that makes too few tasks for the threads, each is cut into `parts`, which sum dk and dv apart in `partials`, to be added
/// in order.
template <class Prepare, class Block>
static void attend_backward_all(float* dqkv, float* delta, const float* dout, const float* out, const float* lse,
                                const float* qkv, const int32_t* starts, const AttentionSize& size, int64_t parts,
                                float* partials, const Prepare& prepare, const Block& block) {
  int64_t T = size.T, H = size.H, K = size.K, D = size.D, qkv_row = size.qkv_row(), out_row = size.out_row();
  int64_t n_blocks = size.n_blocks(), group = H / K, head_floats = T * D;
  auto head_of = [&](int64_t pair, int64_t item, float* dk) {
    int64_t b = pair / K, head = pair % K * group + item / n_blocks;
    int64_t q_at = b * T * qkv_row + head * D, out_at = b * T * out_row + head * D, row_at = (b * H + head) * T;
    return AttentionHead{qkv + q_at, dout + out_at, out + out_at, lse + row_at, dqkv + q_at, dk, dk + head_floats,
                         delta + row_at, starts ? starts + b * T : nullptr};
  };
  auto fetch_block = [&](const AttentionHead& head, int64_t t) {
    fetch_rows(head.q + t * qkv_row, qkv_row, min(BLOCK, T - t), D);
    fetch_rows(head.dout + t * out_row, out_row, min(BLOCK, T - t), D);
    fetch_rows(head.out + t * out_row, out_row, min(BLOCK, T - t), D);
  };
  const int threads = team(size.work());
  Tasks tasks(size.B * K * parts, threads);
#pragma omp parallel num_threads(threads)
  tasks.share([&](int64_t task) {
    int64_t pair = task / parts;
    float* dk = partials + (parts > 1 ? task : omp_get_thread_num()) * 2 * head_floats;
    memset(dk, 0, 2 * head_floats * sizeof(float));
    prepare(qkv + pair / K * T * qkv_row + (H + pair % K) * D);
    for (int64_t item = task % parts; item < group * n_blocks; item += parts) {
      int64_t t = item % n_blocks * BLOCK, next = item + parts;
      AttentionHead head = head_of(pair, item, dk);
      fetch_rows(head.dq + t * qkv_row, qkv_row, min(BLOCK, T - t), D);
      if (next < group * n_blocks) fetch_block(head_of(pair, next, dk), next % n_blocks * BLOCK);
      block(head, t, min(BLOCK, T - t));
    }
    for (int64_t t = 0; parts == 1 && t < T; t++) sum_kv_row(dqkv, dk, size, parts, pair, t);
  });
  if (parts == 1) return;
  int64_t rows = size.B * K * T;
#pragma omp parallel for num_threads(team(rows * D))
  for (int64_t row = 0; row < rows; row++) {
    int64_t pair = row / T;
    sum_kv_row(dqkv, partials + pair * parts * 2 * head_floats, size, parts, pair, row % T);
  }
}

#ifdef HAS_PAIR_PRODUCTS

/// softmax_backward() of scores times the scale, that leaves P as pairs across queries and dS as pairs both ways.
PAIRS static void pair_softmax_backward(const PairScratch& scratch, const float* lse, const float* delta, int64_t keys,
                                        int64_t queries, int64_t shift, const int32_t* begins, float scale) {
  for (int64_t m = 0; m < queries; m += W) {
    vec l = load(lse + m), d = load(delta + m);
    int64_t end = mask(scratch.scores, -INFINITY, keys, m, shift, begins);
    mask(scratch.dscores, 0.0f, keys, m, shift, begins);
    for (int64_t n = 0; n < keys; n += 2) {
      vec p[2] = {}, ds[2] = {};
      UNROLL for (int i = 0; i < 2; i++) {
        if (n + i < end) {
          p[i] = fast_exp(scale * load(scratch.scores + (n + i) * BLOCK + m) - l);
          ds[i] = p[i] * (load(scratch.dscores + (n + i) * BLOCK + m) - d) * scale;
        }
        const int64_t at = ((n + i) * BLOCK + m) / 2;
        _mm256_storeu_si256((__m256i*)(scratch.p_along + at), (__m256i)_mm512_cvtneps_pbh((__m512)p[i]));
        _mm256_storeu_si256((__m256i*)(scratch.ds_along + at), (__m256i)_mm512_cvtneps_pbh((__m512)ds[i]));
      }
      _mm512_storeu_si512(scratch.ds_across + n / 2 * BLOCK + m, pairs_across((__m512)ds[0], (__m512)ds[1]));
    }
  }
}

/// Keys and values of one head as pairs.
struct PairedHead {
  uint32_t *k_along, *k_across, *v_along;
};

/// attend_backward() from paired keys and values.
PAIRS static void pair_attend_backward(const AttentionHead& head, const PairedHead& paired, const PairedHeads& heads,
                                       const AttentionSize& size, int64_t t, int64_t queries, uint32_t* memory) {
  int64_t D = size.D, qkv_row = size.qkv_row(), out_row = size.out_row();
  PairScratch scratch(memory, D);
  alignas(64) float lse[BLOCK] = {}, delta[BLOCK] = {};
  const Begins seen(head.starts_from(t), queries, t);
  const float scale = 1.0f / sqrtf((float)D), *q = head.q + t * qkv_row, *dout = head.dout + t * out_row;
  pack_pairs_transposed(scratch.qt, BLOCK, q, qkv_row, D, queries);
  pack_pairs_transposed(scratch.dout_t, BLOCK, dout, out_row, D, queries);
  pack_pairs_across(scratch.q, heads.wide, q, qkv_row, queries, D);
  pack_pairs_across(scratch.dout, heads.wide, dout, out_row, queries, D);
  read_stats(lse, delta, head, t, queries, out_row, D);
  for (int64_t key = seen.first_key; key < t + queries; key += BLOCK) {
    int64_t keys = min(BLOCK, t + queries - key), shift = t - key;
    int64_t rows = seen.rows(queries, keys, shift), columns = round_up(rows, W);
    bool again = key > seen.first_key;
    pair_scores(scratch.scores, paired.k_along + key * heads.row, heads.row, scratch.qt, keys, columns, D, shift);       // S
    pair_scores(scratch.dscores, paired.v_along + key * heads.row, heads.row, scratch.dout_t, keys, columns, D, shift);  // dP
    pair_softmax_backward(scratch, lse, delta, keys, columns, shift, seen.begins, scale);  // P and dS
    pair_keys(head.dv + key * D, scratch.p_along, scratch.dout, heads.wide, keys, rows, D, shift);   // dV += P^T dO
    pair_keys(head.dk + key * D, scratch.ds_along, scratch.q, heads.wide, keys, rows, D, shift);     // dK += dS^T Q
    pair_queries(scratch.result, scratch.ds_across, paired.k_across + key / 2 * heads.wide, heads.wide, keys, rows, D,
                 shift, again);  // dQ += dS K
    if (!again) clear_rows(scratch.result, rows, queries, D);
  }
  copy_rows(head.dq + t * qkv_row, qkv_row, scratch.result, D, queries, D);
}

PAIRS static int pair_attention_backward(float* dqkv, float* delta, const float* dout, const float* out, const float* lse,
                                         const float* qkv, const int32_t* starts, const AttentionSize& size) {
  const int64_t K = size.K, T = size.T, D = size.D, row = size.qkv_row(), parts = backward_parts(size);
  const PairedHeads heads(size);
  const size_t scratch = PairScratch::dwords(D), own = scratch + 2 * heads.along + heads.across;
  uint32_t* memory = (uint32_t*)workspace((thread_count * own + partial_floats(size, parts)) * sizeof(uint32_t));
  if (!memory) return 1;
  auto paired = [&] {
    uint32_t* k_along = memory + omp_get_thread_num() * own + scratch;
    return PairedHead{k_along, k_along + 2 * heads.along, k_along + heads.along};
  };
  auto prepare = [&](const float* k) {
    const PairedHead to = paired();
    pack_pairs_along(to.k_along, heads.row, k, row, D, T);
    pack_pairs_along(to.v_along, heads.row, k + K * D, row, D, T);
    pack_pairs_across(to.k_across, heads.wide, k, row, T, D);
  };
  auto block = [&](const AttentionHead& head, int64_t t, int64_t queries) {
    pair_attend_backward(head, paired(), heads, size, t, queries, memory + omp_get_thread_num() * own);
  };
  attend_backward_all(dqkv, delta, dout, out, lse, qkv, starts, size, parts, (float*)(memory + thread_count * own), prepare,
                      block);
  return 0;
}

#endif

int attention_backward(float* dqkv, float* delta, const float* dout, const float* out, const float* lse,
                       const float* qkv, const int32_t* starts, int32_t B, int32_t T, int32_t H, int32_t K, int32_t D) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(dqkv, delta, dout, out, lse, qkv));
  TRY(check_attention(B, T, H, K, D));
  AttentionSize size = {B, T, H, K, D};
#ifdef HAS_PAIR_PRODUCTS
  if (use_pairs) return pair_attention_backward(dqkv, delta, dout, out, lse, qkv, starts, size);
#endif
  const int64_t head_floats = (int64_t)T * D, row = size.qkv_row(), parts = backward_parts(size);
  const size_t scratch = AttentionScratch::floats(D), own = scratch + 2 * head_floats;
  float* memory = (float*)workspace((thread_count * own + partial_floats(size, parts)) * sizeof(float));
  if (!memory) return 1;
  auto keys = [&] { return memory + omp_get_thread_num() * own + scratch; };
  auto prepare = [&](const float* k) {
    copy_rows(keys(), D, k, row, T, D);
    copy_rows(keys() + head_floats, D, k + K * D, row, T, D);
  };
  auto block = [&](const AttentionHead& head, int64_t t, int64_t queries) {
    attend_backward(head, keys(), keys() + head_floats, size, t, queries, keys() - scratch);
  };
  attend_backward_all(dqkv, delta, dout, out, lse, qkv, starts, size, parts, memory + thread_count * own, prepare, block);
  return 0;
}

int attention_cached(float* out, float* k_cache, float* v_cache, const float* qkv, int32_t B, int32_t T, int32_t pos,
                     int32_t T_max, int32_t H, int32_t K, int32_t D) {
  BEGIN(SIZES(B, T, T_max, H, K, D), ADDRESSES(out, k_cache, v_cache, qkv));
  TRY(check_attention(B, T, H, K, D));
  if (pos < 0 || pos > T_max - T) {
    FAIL("pos=%d and T=%d do not fit into a cache of T_max=%d (%s)", pos, T, T_max,
                SIZE_TEXT(B, H, K, D));
  }
  AttentionSize size = {B, T, H, K, D};
  float* memory = (float*)workspace(thread_count * AttentionScratch::floats(D) * sizeof(float));
  if (!memory) return 1;
  copy_kv_heads(k_cache, v_cache, qkv, size, pos, T_max);
  attend_all(out, nullptr, qkv, k_cache, v_cache, nullptr, size, pos, T_max, memory);
  return 0;
}

// ---- linear: out = x weight^T ---------------------------------------------------------------------------------------

/// Blocks of a product, in rows, columns and cells of depth: of 4 bytes each, a float or a pair of bfloat16.
enum {
  TILE_COLUMNS = TILE_VECTORS * W,
  BLOCK_CELLS = 512,  // that are summed in registers
  B_CELLS = BLOCK_CELLS * 384,  // of b that are packed at a time, by each thread
  STRIP_M = 96,       // rows of a, by each thread
  A_ROW = BLOCK_CELLS + 16,  // cells of a packed row of a: no power of two, which would share few sets of the cache
};

/// Four floats, from float or bf16.
static inline vec4 load4(const float* x) { return load<vec4>(x); }
static inline vec4 load4(const bf16* x) { return vec4{as_float(x[0]), as_float(x[1]), as_float(x[2]), as_float(x[3])}; }

/// to (depth, to_row) = rows of x (depth, n), of float or bf16 and x_row apart, in whole vectors.
template <class T>
static void pack_across(float* to, size_t to_row, const T* x, size_t x_row, int64_t depth, int64_t n) {
  for (int64_t p = 0; p < depth; p++) {
    for (int64_t j = 0; j < n; j += W) {
      const T* from = x + p * x_row + j;
      store(to + p * to_row + j, j + W <= n ? load(from) : load_first(from, n - j));
    }
  }
}

/// to (depth, to_row) = x (n, depth) transposed, of float or bf16; columns from n to a whole vector become 0.
template <class T>
static void pack_transposed(float* to, size_t to_row, const T* x, size_t x_row, int64_t depth, int64_t n) {
  for (int64_t j = 0; j < n; j += W) {
    int64_t p = 0;
#ifdef HAS_PAIR_PRODUCTS
    for (; j + 16 <= n && p + 16 <= depth; p += 16) {
      __m512i rows[16];
      UNROLL for (int i = 0; i < 16; i++) rows[i] = (__m512i)load(x + (j + i) * x_row + p);
      transpose16(rows);
      UNROLL for (int i = 0; i < 16; i++) store(to + (p + i) * to_row + j, (vec)rows[i]);
    }
#endif
    for (; j + W <= n && p + 4 <= depth; p += 4) {
      for (int64_t q = j; q < j + W; q += 4) {
        vec4 in[4];
        for (int i = 0; i < 4; i++) in[i] = load4(x + (q + i) * x_row + p);
        store_transposed(to + p * to_row + q, to_row, in);
      }
    }
    for (; p < depth; p++) {
      for (int64_t q = j; q < j + W; q++) to[p * to_row + q] = q < n ? as_float(x[q * x_row + p]) : 0.0f;
    }
  }
}

/// How product() keeps its operands, here as floats; b is of T, float or bf16. Rows of a are multiplied where they lie, its
/// columns are packed.
template <class T>
struct Floats {
  typedef float Cell;
  enum { DEPTH = 1 };  // elements of depth in a cell
  static constexpr auto a_across = pack_across<float>;
  static constexpr auto b_across = pack_across<T>;
  static constexpr auto b_transposed = pack_transposed<T>;
  static constexpr auto multiply = strip;
  static const float* a_rows(float*, size_t*, const float* a, int64_t, int64_t) { return a; }
};

#ifdef HAS_PAIR_PRODUCTS
/// The same rounded to bfloat16, as a b of bf16 is already, in pairs.
template <class T>
struct Pairs {
  typedef uint32_t Cell;
  enum { DEPTH = 2 };
  static constexpr auto a_across = pack_pairs_across<float>;
  static constexpr auto b_across = pack_pairs_across<T>;
  static constexpr auto b_transposed = pack_pairs_transposed<T>;
  static constexpr auto multiply = pair_strip;
  static const uint32_t* a_rows(uint32_t* to, size_t* row, const float* a, int64_t depth, int64_t rows) {
    pack_pairs_along(to, A_ROW, a, *row, depth, rows);
    *row = A_ROW;
    return to;
  }
};
#endif

/// How many of the threads stand side by side over the columns of a product, the others below each other over its rows, so that
/// the one with the most has the least to multiply and to pack. Whole rows stay in the cache of the thread that goes on with them.
static int threads_across(int threads, int64_t m, int64_t n) {
  const bool is_kept = m * n < 8 << 20;  // 32 MB
  int best = 1;
  int64_t least = INT64_MAX;
  for (int across = 1; across <= threads; across++) {
    const int64_t w = divide_up(divide_up(n, TILE_COLUMNS), across), h = divide_up(divide_up(m, TILE_ROWS), threads / across);
    // In 3 clocks a step of depth: a tile of c, a panel of b, a tile's rows of a.
    const int64_t cost = 8 * w * h + 32 * w + 3 * h + (across > 1 && is_kept ? w * h / 2 : 0);
    if (threads % across == 0 && cost < least) best = across, least = cost;
  }
  return best;
}

/// How many of the threads stand behind each other over the depth of a product of columns, as a weight's gradient is: each then
/// reads the rows that it wrote itself, and packs nothing twice, but there are as many sums to add up.
static int threads_deep(int threads, int64_t m, int64_t k) {
  int deep = threads;
  while (deep > 1 && (threads % deep > 0 || k < deep * max(m, 64))) deep--;
  return deep;
}

/// c (m, n) = add + op(a) op(b); add (m, n) may be 0, or c. See gemm(). Each thread has a part of c of its own, or of what is
/// added to c at the end, and packs all that it reads: two that share what one has packed wait for each other and for their
/// caches, which takes longer. lower: of c only the tiles with elements (i, j), j <= i.
template <class Kind, class T>
static int product(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float* a, const T* b, const float* add, float* c,
                   bool lower = false) {
  typedef typename Kind::Cell Cell;
  const int threads = team(m * n * k / 64), parts = ta && !lower ? threads_deep(threads, m, k) : 1;
  const int64_t max_depth = BLOCK_CELLS * Kind::DEPTH, part_k = divide_up(k, parts);
  const int64_t block_k = round_up(divide_up(part_k, divide_up(part_k, max_depth)), 32);  // of nearly one size
  const int64_t b_row = block_k / Kind::DEPTH, block_n = B_CELLS / b_row / TILE_COLUMNS * TILE_COLUMNS;
  const int64_t a_cells = STRIP_M * A_ROW, b_cells = min(block_n, round_up(n, TILE_COLUMNS)) * b_row;
  Cell* packed = (Cell*)workspace(threads * (a_cells + b_cells) * sizeof(Cell) + (parts - 1) * m * n * sizeof(float));
  if (!packed) return 1;
  float* sums = (float*)(packed + threads * (a_cells + b_cells));  // of the parts of the depth behind the first
#pragma omp parallel num_threads(threads)
  {
    const int count = omp_get_num_threads(), number = omp_get_thread_num(), deep = count == threads ? parts : 1;
    const int part = number % deep, thread = number / deep, across = lower ? 1 : threads_across(count / deep, m, n);
    const int down = count / deep / across, row = thread / across, column = thread % across;
    const int64_t tiles = divide_up(m, TILE_ROWS), panels = divide_up(n, TILE_COLUMNS);
    auto first_row = [&](double share) { return (int64_t)(tiles * (lower ? sqrt(share) : share)) * TILE_ROWS; };
    const int64_t m0 = first_row((double)row / down), m1 = min(m, first_row((row + 1.0) / down));
    const int64_t n0 = panels * column / across * TILE_COLUMNS;
    const int64_t n1 = min(lower ? m1 : n, panels * (column + 1) / across * TILE_COLUMNS);
    const int64_t k0 = k / 32 * part / deep * 32, k1 = part + 1 < deep ? k / 32 * (part + 1) / deep * 32 : k;
    float* to = part > 0 ? sums + (part - 1) * m * n : c;
    Cell *packed_a = packed + number * (a_cells + b_cells), *packed_b = packed_a + a_cells;
    // What the tile t of the 16 of a strip asks for: its share of a panel or strip that is packed soon.
    auto panel_ahead = [&](int64_t j, int64_t p, int64_t t) -> Ahead {
      const int64_t size = sizeof(T), lines = TILE_COLUMNS / 16;
      if (tb) return {(const char*)(b + (j + lines * t) * k + p), (size_t)(16 * size), (size_t)(k * size), lines};
      return {(const char*)(b + (p + block_k / 16 * t) * n + j), (size_t)(n * size), (size_t)(16 * size), lines};
    };
    auto strip_ahead = [&](int64_t i, int64_t p, int64_t t) -> Ahead {
      if (!ta) return {(const char*)(a + (i + TILE_ROWS * t) * k + p), 64, (size_t)(4 * k), TILE_ROWS};
      return {(const char*)(a + (p + block_k / 16 * t) * m + i), (size_t)(4 * m), 64, STRIP_M / 16};
    };
    for (int64_t j0 = n0; j0 < n1; j0 += block_n) {
      const int64_t j1 = min(n1, j0 + block_n);
      for (int64_t p0 = k0; p0 < k1; p0 += block_k) {
        const int64_t depth = min(block_k, k1 - p0), after_p = p0 + block_k < k1 ? p0 + block_k : k0;
        const int64_t after_j = after_p > k0 ? j0 : j0 + block_n;  // (after_j, after_p): the next block
        const float* before = p0 > k0 ? to : part > 0 ? nullptr : add;
        for (int64_t i0 = m0; i0 < m1; i0 += STRIP_M) {
          const int64_t i1 = min(m1, i0 + STRIP_M);
          const Cell* strip_a = packed_a;
          size_t a_row = ta ? 1 : k;
          if (ta) Kind::a_across(packed_a, STRIP_M, a + p0 * m + i0, m, depth, i1 - i0);
          else strip_a = Kind::a_rows(packed_a, &a_row, a + i0 * k + p0, depth, i1 - i0);
          for (int64_t j = j0; j < j1; j += TILE_COLUMNS) {
            Cell* panel = packed_b + (j - j0) * b_row;
            const int64_t width = min(TILE_COLUMNS, j1 - j), panels_left = (j1 - 1 - j) / TILE_COLUMNS;
            if (i0 == m0 && tb) Kind::b_transposed(panel, TILE_COLUMNS, b + j * k + p0, k, depth, width);
            if (i0 == m0 && !tb) Kind::b_across(panel, TILE_COLUMNS, b + p0 * n + j, n, depth, width);
            for (int64_t i = lower ? i0 + first_tile(j - i0, TILE_ROWS) : i0; i < i1; i += TILE_ROWS) {
              const int64_t t = (i - i0) / TILE_ROWS, at = i * n + j;
              Ahead ahead;
              if (i0 == m0 && panels_left > 0) ahead = panel_ahead(j + TILE_COLUMNS, p0, t);
              else if (i1 < m1 && panels_left == 0) ahead = strip_ahead(i1, p0, t);
              else if (i1 == m1 && after_j < n1 && panels_left == 0) ahead = panel_ahead(after_j, after_p, t);
              else if (i1 == m1 && after_j < n1 && panels_left == 1) ahead = strip_ahead(m0, after_p, t);
              Kind::multiply(to + at, n, before ? before + at : nullptr, n, strip_a + (i - i0) * a_row, a_row, ta ? STRIP_M : 1,
                             panel, TILE_COLUMNS, min(TILE_ROWS, i1 - i), width, divide_up(depth, Kind::DEPTH), &ahead);
            }
          }
        }
      }
    }
    if (deep > 1) {
#pragma omp barrier
      const int64_t from = m * n * number / count, end = m * n * (number + 1) / count;
      for (int i = 0; i < deep - 1; i++) {
#pragma omp simd
        for (int64_t e = from; e < end; e++) c[e] += sums[i * m * n + e];
      }
    }
  }
  return 0;
}

static sigset_t async_signals() {  // all but those that a fault of the thread itself raises
  sigset_t signals;
  sigfillset(&signals);
  for (int fault : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) sigdelset(&signals, fault);
  return signals;
}

/// Blocks signals in the calling thread and, for good, in its OpenMP threads, which come and go. Gives back what the
/// calling thread had blocked.
static sigset_t block_signals() {
  static const sigset_t signals = async_signals();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &signals, &before);
#pragma omp parallel num_threads(thread_count)
  {
    static thread_local bool blocks = false;
    if (!blocks && omp_get_thread_num() > 0) blocks = !pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  }
  return before;
}

static int blas_gemm(void* gemm, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void* a,
                     const void* b, bool accumulate, float* c) {
  omp_set_num_threads(thread_count);  // belongs to the calling thread, which may be a new one
  if (!is_one_dnn(blas)) {
    cblas(gemm, ta, tb, m, n, k, a, b, accumulate ? 1.0f : 0.0f, c);
    return 0;
  }
  // Its code for AVX-512 keeps data below the stack pointer, where the frame of a signal handler goes: one SIGTERM at the
  // wrong moment makes sums NaN or breaks the heap.
  sigset_t before = block_signals();
  int status = one_dnn(gemm, ta, tb, m, n, k, a, b, accumulate ? 1.0f : 0.0f, c);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  CHECK(!status, "oneDNN returned status %d (%s)", status, SIZE_TEXT(m, n, k));
  return 0;
}

static void copy_floats(float* to, const float* from, int64_t n) {
  const int64_t step = 1 << 18;
#pragma omp parallel for num_threads(team(n))
  for (int64_t i = 0; i < n; i += step) memcpy(to + i, from + i, min(step, n - i) * sizeof(float));
}

/// n values as bfloat16: rounded to `to`, or where they lie.
static const bf16* rounded(bf16* to, const float* from, int64_t n) {
  round_all(to, from, n);
  return to;
}

static const bf16* rounded(bf16*, const bf16* from, int64_t) { return from; }

/// c (m, n) = add + op(a) op(b); add (m, n) may be 0, or c. op(a) is (m, k), stored (k, m) where ta; op(b) is (k, n), stored
/// (n, k) where tb, of float or bf16.
template <class T>
static int gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float* a, const T* b, const float* add, float* c) {
#ifdef HAS_PAIR_PRODUCTS
  if (use_pair_gemm) return product<Pairs<T>>(ta, tb, m, n, k, a, b, add, c);
#endif
  const bool is_half = sizeof(T) == sizeof(bf16);
  if (!blas.kind || (is_half && !use_bf16_gemm)) return product<Floats<T>>(ta, tb, m, n, k, a, b, add, c);
  const bool accumulate = add != nullptr;
  if (add && add != c) copy_floats(c, add, m * n);
  if (!use_bf16_gemm) return blas_gemm(blas.gemm, ta, tb, m, n, k, a, b, accumulate, c);
  bf16* a16 = (bf16*)workspace((m * k + (is_half ? 0 : k * n)) * sizeof(bf16));
  if (!a16) return 1;
  round_all(a16, a, m * k);
  return blas_gemm(blas.bf16_gemm, ta, tb, m, n, k, a16, rounded(a16 + m * k, b, k * n), accumulate, c);
}

/// c (n, n) = x x^T, or x^T x where transposed, on and below its diagonal at least: half a product of this file's own is sooner
/// done than a whole one of a BLAS, but not than one by bfloat16 tiles.
static int lower_gram(float* c, const float* x, int64_t n, int64_t k, bool transposed) {
#ifdef HAS_PAIR_PRODUCTS
  if (use_pair_gemm) return product<Pairs<float>>(transposed, !transposed, n, n, k, x, x, nullptr, c, true);
#endif
  if (use_bf16_gemm) return gemm(transposed, !transposed, n, n, k, x, x, nullptr, c);
  return product<Floats<float>>(transposed, !transposed, n, n, k, x, x, nullptr, c, true);
}

/// Rows that a product may have to be one of few, as when text is written: up to 8 texts at a time.
enum { FEW_ROWS = 8, FEW_ROWS_AT_ONCE = W == 16 ? 8 : 4 };

static inline float sum_of(vec4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

template <class V>
static inline float sum_of(V v) {
  typedef typename Lanes<sizeof(V) / 8>::floats Half;
  struct {
    Half low, high;
  } halves;
  memcpy(&halves, &v, sizeof v);
  return sum_of(halves.low + halves.high);
}

/// OUTS columns of R rows of out = x weight^T (+ residual), the weight of float or bf16. What a row gets does not depend on R
/// or OUTS.
template <int R, int OUTS, class T>
static inline void dots(float* out, const float* x, const T* weight, const float* residual, int64_t IN, int64_t OUT) {
  vec sum[R][OUTS] = {};
  for (int64_t i = 0; i < IN; i += W) {
    const bool whole = i + W <= IN;
    vec w[OUTS];
    UNROLL for (int o = 0; o < OUTS; o++) {
      w[o] = whole ? load(weight + o * IN + i) : load_first(weight + o * IN + i, IN - i);
      if (OUTS > 1) __builtin_prefetch(weight + o * IN + i + 16384 / sizeof(T), 0, 2);  // the processor's own sees only one stream
    }
    UNROLL for (int r = 0; r < R; r++) {
      vec part = whole ? load(x + r * IN + i) : load_first(x + r * IN + i, IN - i);
      UNROLL for (int o = 0; o < OUTS; o++) sum[r][o] += part * w[o];
    }
  }
  for (int r = 0; r < R; r++) {
    for (int o = 0; o < OUTS; o++) {
      float total = sum_of(sum[r][o]);
      out[r * OUT + o] = residual ? residual[r * OUT + o] + total : total;
    }
  }
}

/// One row of the weight at a time streams from memory three times as fast as several, but loads all of x for each.
template <int R, class T>
static void dots_of(float* out, const float* x, const T* weight, const float* residual, int64_t IN, int64_t OUT,
                    int64_t columns) {
  const int OUTS = R > 3 ? 3 : 1;
  int64_t o = 0;
  for (; o + OUTS <= columns; o += OUTS) {
    dots<R, OUTS>(out + o, x, weight + o * IN, residual ? residual + o : nullptr, IN, OUT);
  }
  for (; o < columns; o++) dots<R, 1>(out + o, x, weight + o * IN, residual ? residual + o : nullptr, IN, OUT);
}

/// out (N, OUT) = x (N, IN) weight^T (+ residual) for few rows: the weight is read once, in order, which is all the time it
/// takes, where a BLAS would first copy it.
template <class T>
static void few_rows(float* out, const float* x, const T* weight, const float* residual, int64_t N, int64_t IN,
                     int64_t OUT) {
  const int64_t block = 24;
#pragma omp parallel for num_threads(team(N * IN * OUT / 4)) schedule(static)
  for (int64_t start = 0; start < OUT; start += block) {
    for (int64_t row = 0; row < N; row += FEW_ROWS_AT_ONCE) {
      float* to = out + row * OUT + start;
      const float *from = x + row * IN, *add = residual ? residual + row * OUT + start : nullptr;
      const T* w = weight + start * IN;
      int64_t columns = min(block, OUT - start);
      switch (min(FEW_ROWS_AT_ONCE, N - row)) {
        case 1: dots_of<1>(to, from, w, add, IN, OUT, columns); break;
        case 2: dots_of<2>(to, from, w, add, IN, OUT, columns); break;
        case 3: dots_of<3>(to, from, w, add, IN, OUT, columns); break;
        case 4: dots_of<4>(to, from, w, add, IN, OUT, columns); break;
        case 5: dots_of<5>(to, from, w, add, IN, OUT, columns); break;
        case 6: dots_of<6>(to, from, w, add, IN, OUT, columns); break;
        case 7: dots_of<7>(to, from, w, add, IN, OUT, columns); break;
        default: dots_of<8>(to, from, w, add, IN, OUT, columns); break;
      }
    }
  }
}

/// Rows up to which packing a weight would cost more than the order in which it lies does.
enum { SOME_ROWS = 256, WEIGHT_STRIP = 8 * TILE_ROWS, WEIGHT_DEPTH = 768 };

/// Rows of a weight, depth apart, as floats: where they lie, or copied to `to`.
static const float* weight_rows(float*, const float* weight, int64_t, int64_t IN, int64_t, size_t* row) {
  *row = IN;
  return weight;
}

static const float* weight_rows(float* to, const bf16* weight, int64_t rows, int64_t IN, int64_t depth, size_t* row) {
  *row = WEIGHT_DEPTH;
  for (int64_t i = 0; i < rows; i++) {
#pragma omp simd
    for (int64_t p = 0; p < depth; p++) to[i * WEIGHT_DEPTH + p] = from_bf16(weight[i * IN + p]);
  }
  return to;
}

/// to (rows, columns), of rows to_row apart, = residual + from (columns, TILE_COLUMNS) transposed; residual may be 0.
static void store_turned(float* to, const float* residual, size_t to_row, const float* from, int64_t rows, int64_t columns) {
  float turned[TILE_COLUMNS * WEIGHT_STRIP];
  for (int64_t i = 0; i < WEIGHT_STRIP; i += 4) {
    for (int64_t j = 0; j < TILE_COLUMNS; j += 4) {
      vec4 in[4];
      for (int q = 0; q < 4; q++) in[q] = load<vec4>(from + (i + q) * TILE_COLUMNS + j);
      store_transposed(turned + j * WEIGHT_STRIP + i, WEIGHT_STRIP, in);
    }
  }
  for (int64_t j = 0; j < rows; j++) {
    float* out = to + j * to_row;
    const float *add = residual ? residual + j * to_row : nullptr, *sums = turned + j * WEIGHT_STRIP;
#pragma omp simd
    for (int64_t i = 0; i < columns; i++) out[i] = (add ? add[i] : 0.0f) + sums[i];
  }
}

/// out (N, OUT) = x (N, IN) weight^T (+ residual) as out^T = weight x^T: the weight, of float or bf16, is read as it lies, and x
/// is packed in its place, as for a prompt, where a BLAS would pack far more than it multiplies.
template <class T>
static int some_rows(float* out, const float* x, const T* weight, const float* residual, int64_t N, int64_t IN, int64_t OUT) {
  const int threads = team(N * IN * OUT / 64);
  const int64_t x_floats = round_up(N, TILE_COLUMNS) * IN, scratch = WEIGHT_STRIP * (TILE_COLUMNS + WEIGHT_DEPTH);
  float* packed_x = (float*)workspace((x_floats + threads * scratch) * sizeof(float));
  if (!packed_x) return 1;
#pragma omp parallel num_threads(threads)
  {
    float *sums = packed_x + x_floats + omp_get_thread_num() * scratch, *rows_of = sums + WEIGHT_STRIP * TILE_COLUMNS;
#pragma omp for
    for (int64_t j = 0; j < N; j += TILE_COLUMNS) pack_transposed(packed_x + j * IN, TILE_COLUMNS, x + j * IN, IN, IN, min(TILE_COLUMNS, N - j));
#pragma omp for schedule(dynamic)
    for (int64_t o = 0; o < OUT; o += WEIGHT_STRIP) {
      const int64_t columns = min(WEIGHT_STRIP, OUT - o);
      for (int64_t j = 0; j < N; j += TILE_COLUMNS) {
        for (int64_t p = 0; p < IN; p += WEIGHT_DEPTH) {
          const int64_t depth = min(WEIGHT_DEPTH, IN - p);
          size_t row;
          const float* w = weight_rows(rows_of, weight + o * IN + p, columns, IN, depth, &row);
          for (int64_t i = 0; i < columns; i += TILE_ROWS) {
            float* to = sums + i * TILE_COLUMNS;
            strip(to, TILE_COLUMNS, p > 0 ? to : nullptr, TILE_COLUMNS, w + i * row, row, 1, packed_x + j * IN + p * TILE_COLUMNS,
                  TILE_COLUMNS, min(TILE_ROWS, columns - i), TILE_COLUMNS, depth);
          }
        }
        const float* add = residual ? residual + j * OUT + o : nullptr;
        store_turned(out + j * OUT + o, add, OUT, sums, min(TILE_COLUMNS, N - j), columns);
      }
    }
  }
  return 0;
}

int linear_forward(float* out, const float* x, const float* weight, const float* residual, int32_t N, int32_t IN,
                   int32_t OUT) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(out, x, weight));
  if (N <= FEW_ROWS) {
    few_rows(out, x, weight, residual, N, IN, OUT);
    return 0;
  }
  if (!use_bf16_gemm && N <= SOME_ROWS) return some_rows(out, x, weight, residual, N, IN, OUT);
  return gemm(false, true, N, OUT, IN, x, weight, residual, out);
}

int linear_forward_bf16(float* out, const float* x, const void* weight, const float* residual, int32_t N, int32_t IN,
                        int32_t OUT) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(out, x, weight));
  if (N <= FEW_ROWS) {
    few_rows(out, x, (const bf16*)weight, residual, N, IN, OUT);
    return 0;
  }
  if (!use_bf16_gemm && N <= SOME_ROWS) return some_rows(out, x, (const bf16*)weight, residual, N, IN, OUT);
  return gemm(false, true, N, OUT, IN, x, (const bf16*)weight, residual, out);
}

int linear_dgrad(float* dx, const float* dout, const float* weight, int32_t N, int32_t IN, int32_t OUT,
                 int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dx, dout, weight));
  return gemm(false, false, N, IN, OUT, dout, weight, accumulate ? dx : nullptr, dx);
}

int linear_dgrad_bf16(float* dx, const float* dout, const void* weight, int32_t N, int32_t IN, int32_t OUT,
                      int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dx, dout, weight));
  return gemm(false, false, N, IN, OUT, dout, (const bf16*)weight, accumulate ? dx : nullptr, dx);
}

int linear_wgrad(float* dweight, const float* dout, const float* x, int32_t N, int32_t IN, int32_t OUT,
                 int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dweight, dout, x));
  // Of the rows: columns of dout and x that a BLAS reads row by row then stay in the cache.
  const int64_t step = blas.kind ? 512 : N;
  for (int64_t start = 0; start < N; start += step) {
    TRY(gemm(true, false, OUT, IN, min(step, N - start), dout + start * OUT, x + start * IN,
             accumulate || start > 0 ? dweight : nullptr, dweight));
  }
  return 0;
}

int gram(float* out, const float* x, const float* add, int32_t N, int32_t C, int32_t transposed, float alpha, float beta) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x));
  if (out == x || out == add) FAIL("out may be neither x nor add (N=%d C=%d)", N, C);
  TRY(lower_gram(out, x, N, C, transposed != 0));
  const int64_t tile = 16;  // whose columns stay in the cache while they become rows
#pragma omp parallel for num_threads(team((int64_t)N * N)) schedule(dynamic)
  for (int64_t i0 = round_up(N, tile) - tile; i0 >= 0; i0 -= tile) {
    for (int64_t j0 = 0; j0 <= i0; j0 += tile) {
      for (int64_t i = i0; i < min(N, i0 + tile); i++) {
        for (int64_t j = j0; j < min(i + 1, j0 + tile); j++) {
          const float sum = alpha * out[i * N + j] + (add ? beta * add[i * N + j] : 0.0f);
          out[i * N + j] = out[j * N + i] = sum;
        }
      }
    }
  }
  return 0;
}

int gemm_choices(char* lines, int32_t capacity) {
  BEGIN(SIZES(capacity), ADDRESSES(lines));
  return lines[0] = 0;
}

int gemm_choose(int32_t* refused, const char* lines, int32_t) {
  BEGIN(SIZES(), ADDRESSES(refused, lines));
  return *refused = 0;
}

// ---- swiglu: h = silu(gate) * up ------------------------------------------------------------------------------------

int swiglu_forward(float* h, const float* gate_up, int32_t N, int32_t F) {
  BEGIN(SIZES(N, F), ADDRESSES(h, gate_up));
#pragma omp parallel for num_threads(team((int64_t)N * F))
  for (int i = 0; i < N; i++) {
    const float* gate = gate_up + (size_t)i * 2 * F;
    const float* up = gate + F;
    float* out = h + (size_t)i * F;
    for (int from = 0; from < F; from += FETCH) {
      const int to = (int)min(F, from + FETCH);
      fetch(gate + from + 2 * F), fetch(up + from + 2 * F);
#pragma omp simd
      for (int f = from; f < to; f++) out[f] = gate[f] * sigmoid(gate[f]) * up[f];
    }
  }
  return 0;
}

int swiglu_backward(float* dgate_up, float* h, const float* dh, const float* gate_up, int32_t N, int32_t F) {
  BEGIN(SIZES(N, F), ADDRESSES(dgate_up, dh, gate_up));
#pragma omp parallel for num_threads(team((int64_t)N * F))
  for (int64_t i = 0; i < N; i++) {
    const float *gate = gate_up + i * 2 * F, *grad = dh + i * F;
    float *dgate = dgate_up + i * 2 * F, unwanted[FETCH];  // other code without h might round otherwise
    for (int from = 0; from < F; from += FETCH) {
      const int n = (int)min(F - from, FETCH);
      const float *gates = gate + from, *ups = gates + F, *dhs = grad + from;
      float *dgates = dgate + from, *again = h ? h + i * F + from : unwanted;
      fetch(gates + 2 * F), fetch(ups + 2 * F), fetch(dhs + F);
#pragma omp simd
      for (int f = 0; f < n; f++) {
        float g = gates[f], u = ups[f], d = dhs[f], s = sigmoid(g);  // all are read before either place is written
        again[f] = g * s * u;
        dgates[f] = d * u * s * (1.0f + g * (1.0f - s));  // silu' = s + g s', and s' = s (1 - s)
        dgates[F + f] = d * g * s;                         // h is linear in up
      }
    }
  }
  return 0;
}

// ---- add ------------------------------------------------------------------------------------------------------------

int add(float* out, const float* a, const float* b, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, a, b));
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
  return 0;
}

// ---- element-wise: the functions stand in formulas.h ----------------------------------------------------------------

template <int KIND>
static void unary_all(float* out, const float* x, float parameter, int64_t n) {
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) out[i] = unary<KIND>(x[i], parameter).value;
}

template <int KIND>
static void unary_slopes(float* dx, const float* dout, const float* x, float parameter, int64_t n) {
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) dx[i] = dout[i] * unary<KIND>(x[i], parameter).slope;
}

int unary_forward(float* out, const float* x, int32_t kind, float parameter, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
#define CASE(KIND) unary_all<KIND>(out, x, parameter, n)
  SWITCH_UNARY(kind, CASE)
#undef CASE
  return 0;
}

int unary_backward(float* dx, const float* dout, const float* x, int32_t kind, float parameter, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(dx, dout, x));
#define CASE(KIND) unary_slopes<KIND>(dx, dout, x, parameter, n)
  SWITCH_UNARY(kind, CASE)
#undef CASE
  return 0;
}

int mul(float* out, const float* a, const float* b, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, a, b));
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) out[i] = a[i] * b[i];
  return 0;
}

int dropout(float* out, const float* x, int64_t n, float rate, uint64_t key) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
  CHECK(rate >= 0.0f && rate < 1.0f, "rate=%g must be at least 0 and below 1 (%s)", rate, SIZE_TEXT(n));
  const Dropping drop(rate);
  const int64_t whole = n / 4;
#pragma omp parallel for simd num_threads(team(4 * n))
  for (int64_t i = 0; i < whole; i++) {
    Mask mask = dropout_mask(i, drop.limit, drop.keep, key);
    UNROLL for (int e = 0; e < 4; e++) out[4 * i + e] = x[4 * i + e] * mask.factor[e];
  }
  Mask last = dropout_mask(whole, drop.limit, drop.keep, key);
  for (int64_t i = 4 * whole; i < n; i++) out[i] = x[i] * last.factor[i % 4];
  return 0;
}

// ---- rows and columns -----------------------------------------------------------------------------------------------

int bias_forward(float* out, const float* x, const float* bias, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x, bias));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t i = 0; i < N; i++) {
#pragma omp simd
    for (int c = 0; c < C; c++) out[i * C + c] = x[i * C + c] + bias[c];
  }
  return 0;
}

int bias_backward(float* dbias, const float* dout, int32_t N, int32_t C, int32_t accumulate) {
  BEGIN(SIZES(N, C), ADDRESSES(dbias, dout));
  int64_t n_blocks = divide_up(N, SUM_ROWS);
  float* partial = (float*)workspace(n_blocks * C * sizeof(float));
  if (!partial) return 1;
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t block = 0; block < n_blocks; block++) {
    int64_t first = block * SUM_ROWS;
    sum_rows(partial + block * C, dout + first * C, min(SUM_ROWS, N - first), C, C, false);
  }
  sum_rows(dbias, partial, n_blocks, C, C, accumulate);
  return 0;
}

int copy_columns(float* dst, const float* src, int32_t N, int32_t columns, int32_t dst_stride, int32_t src_stride,
                 int32_t accumulate) {
  BEGIN(SIZES(N, columns, dst_stride, src_stride), ADDRESSES(dst, src));
  CHECK(columns <= dst_stride && columns <= src_stride, "a stride must be at least columns=%d (%s)", columns,
        SIZE_TEXT(N, dst_stride, src_stride));
#pragma omp parallel for num_threads(team((int64_t)N * columns))
  for (int64_t i = 0; i < N; i++) {
    float* to = dst + i * dst_stride;
    const float* from = src + i * src_stride;
#pragma omp simd
    for (int c = 0; c < columns; c++) to[c] = (accumulate ? to[c] : 0.0f) + from[c];
  }
  return 0;
}

static float row_max(const float* x, int n) {
  vec tops = vec{} - INFINITY;
  int i = 0;
  for (; i + W <= n; i += W) tops = larger(load(x + i), tops);
  float top = -INFINITY;
  for (int lane = 0; lane < W; lane++) top = tops[lane] > top ? tops[lane] : top;
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

/// The sum of e^(x - top) over a row, in double: float sums would be short by more, the wider the row. The terms, where
/// `terms` is not 0, are written there, which may be x.
static double sum_exponentials(float* terms, const float* x, int n, float top) {
  double total = 0.0;
  for (int start = 0; start < n; start += 1024) {  // short float sums, added up
    int end = (int)min(n, start + 1024);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int v = start; v < end; v++) {
      float e = fast_exp(x[v] - top);
      if (terms) terms[v] = e;
      sum += e;
    }
    total += sum;
  }
  return total;
}

int softmax_forward(float* out, const float* x, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t i = 0; i < N; i++) {
    float* to = out + i * C;
    float factor = (float)(1.0 / sum_exponentials(to, x + i * C, C, row_max(x + i * C, C)));
#pragma omp simd
    for (int c = 0; c < C; c++) to[c] *= factor;
  }
  return 0;
}

int softmax_backward(float* dx, const float* dout, const float* out, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(dx, dout, out));
#pragma omp parallel for num_threads(team((int64_t)N * C))
  for (int64_t i = 0; i < N; i++) {
    const float *d = dout + i * C, *p = out + i * C;
    float sum = 0.0f;  // what the row as a whole would gain, which its sum of 1 does not allow
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += p[c] * d[c];
#pragma omp simd
    for (int c = 0; c < C; c++) dx[i * C + c] = p[c] * (d[c] - sum);
  }
  return 0;
}

static int check_columns(int N, int V, int V_stride) {
  CHECK(V_stride >= V, "V_stride=%d must be at least V=%d (N=%d)", V_stride, V, N);
  return 0;
}

int logsumexp_forward(float* out, float* lse, const float* x, int32_t N, int32_t V, int32_t V_stride) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(out, lse, x));
  TRY(check_columns(N, V, V_stride));
#pragma omp parallel for num_threads(team((int64_t)N * V))
  for (int64_t i = 0; i < N; i++) {
    const float* row = x + i * V_stride;
    float top = row_max(row, V);
    out[i] = lse[i] = (float)(top + log(sum_exponentials(nullptr, row, V, top)));
  }
  return 0;
}

int logsumexp_backward(float* dx, const float* dout, const float* lse, const float* x, int32_t N, int32_t V,
                       int32_t V_stride) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(dx, dout, lse, x));
  TRY(check_columns(N, V, V_stride));
#pragma omp parallel for num_threads(team((int64_t)N * V))
  for (int64_t i = 0; i < N; i++) {
    float* to = dx + i * V_stride;
    const float* row = x + i * V_stride;
    float d = dout[i], l = lse[i];
#pragma omp simd
    for (int v = 0; v < V; v++) to[v] = d * fast_exp(row[v] - l);
    memset(to + V, 0, (V_stride - V) * sizeof(float));
  }
  return 0;
}

// ---- cross entropy --------------------------------------------------------------------------------------------------

/// One row with a target: returns its loss; where backward, the logits become their gradients.
static float cross_entropy_row(float* logits, int target, int V, float grad_scale, bool backward) {
  float top = row_max(logits, V);
  float target_logit = logits[target];
  double total = sum_exponentials(backward ? logits : nullptr, logits, V, top);
  if (backward) {
    float factor = (float)(grad_scale / total);  // softmax = exponential / total
#pragma omp simd
    for (int v = 0; v < V; v++) logits[v] *= factor;
    logits[target] -= grad_scale;  // the loss holds -logit[target]
  }
  return (float)(log(total) - (target_logit - top));
}

int cross_entropy(float* logits, float* losses, const int32_t* targets, int32_t N, int32_t V, int32_t V_stride,
                  float grad_scale, int32_t backward) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(logits, losses, targets));
  TRY(check_columns(N, V, V_stride));
  for (int i = 0; i < N; i++) {
    if (targets[i] >= V) FAIL("targets[%d]=%d must be less than V=%d", i, targets[i], V);
  }
#pragma omp parallel for num_threads(team((int64_t)N * V))
  for (int i = 0; i < N; i++) {
    float* row = logits + (size_t)i * V_stride;
    bool counts = targets[i] >= 0;
    losses[i] = counts ? cross_entropy_row(row, targets[i], V, grad_scale, backward) : 0.0f;
    int first = counts ? V : 0;  // from here on the gradient is 0
    if (backward) memset(row + first, 0, (V_stride - first) * sizeof(float));
  }
  return 0;
}

/// Sums in double over blocks of this many elements, added in order: the same bits for any number of threads.
static const int64_t SUM_BLOCK = 65536;

template <class TERM>
static double block_sum(const float* x, int64_t n, TERM term) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += term((double)x[i]);
  return sum;
}

int sum_scaled(float* out, const float* x, int32_t n, float scale, int32_t accumulate) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += SUM_BLOCK) sum += block_sum(x + i, min(SUM_BLOCK, n - i), [](double e) { return e; });
  *out = (accumulate ? *out : 0.0f) + (float)(scale * sum);
  return 0;
}

// ---- sampling -------------------------------------------------------------------------------------------------------
//
// Tokens stand in order of their logits, the largest first, of equal ones the earlier first. They are not sorted: a place
// in the order is found by the digits of its logit, from sums over the tokens that share a digit. Probabilities are whole
// numbers, so that no sum depends on the order in which it is added up.

/// The larger of two logits has the smaller key; 0 and -0 have one. It is its own inverse.
static inline uint32_t order_key(uint32_t bits) { return bits >> 31 ? bits : bits ^ 0x7fffffffu; }
static inline uint32_t order_key(float logit) { return order_key(logit == 0.0f ? 0u : bit_cast<uint32_t>(logit)); }

struct Place {
  uint32_t key;
  uint64_t before;  // the sum over tokens of smaller keys
  uint64_t rank;    // among the tokens of this key
  uint64_t weight;  // of each of them
};

/// The first place in the order where the running sum of weights, of ones where weights is 0, exceeds `target`.
static Place find_place(uint64_t target, const uint32_t* keys, const uint64_t* weights, int64_t n) {
  Place place = {0, 0, 0, 1};
  uint64_t sums[2048];
  uint32_t known = 0;  // the bits of the key that have been found
  for (int shift : {21, 10, 0}) {
    memset(sums, 0, sizeof sums);
    for (int64_t i = 0; i < n; i++) {
      if (((keys[i] ^ place.key) & known) == 0) sums[keys[i] >> shift & 2047] += weights ? weights[i] : 1;
    }
    uint32_t digit = 0;
    while (place.before + sums[digit] <= target) place.before += sums[digit++];
    place.key |= digit << shift;
    known |= 2047u << shift;
  }
  for (int64_t i = 0; weights && i < n; i++) {
    if (keys[i] == place.key) place.weight = weights[i];
  }
  place.rank = (target - place.before) / place.weight;
  return place;
}

/// e^x in double for x <= 0, as exponential() with more terms; 0 below -700.
static inline double exponential(double x) {
  const double shift = 0x1.8p52;
  double shifted = x * 1.44269504088896340736 + shift, n = shifted - shift;
  double r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10, y = 1.0 / 6227020800;
  const double terms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                          1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,
                          1.0};
  UNROLL for (double term : terms) y = y * r + term;
  y *= bit_cast<double>((bit_cast<uint64_t>(shifted) << 52) + 0x3ff0000000000000u);
  return x < -700.0 ? 0.0 : y;
}

/// weights (n) = the probabilities of logits relative to the largest one, in units so small that their sum fits into 62 bits.
static void weigh(uint64_t* weights, const uint32_t* keys, int64_t n, float top, double temperature) {
  int bits = 50;  // of one; 51 fit behind the point of a double of `whole`'s size
  while (n > (int64_t)1 << (62 - bits)) bits--;
  const double unit = (double)((int64_t)1 << bits), whole = 0x1.8p52;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    double logit = bit_cast<float>(order_key(keys[i])), x = (logit - top) / temperature;
    weights[i] = bit_cast<uint64_t>(exponential(x) * unit + whole) - 0x4338000000000000u;  // rounded to a whole number
  }
}

static float largest(const float* x, int64_t n) {
  float top = x[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

/// Keeps the first k in the order of n keys and their ids, in the order of the ids.
static int64_t keep_first(int64_t k, uint32_t* keys, int32_t* ids, int64_t n) {
  Place last = find_place(k - 1, keys, nullptr, n);
  int64_t kept = 0;
  uint64_t rank = 0;
  for (int64_t i = 0; i < n; i++) {
    if (keys[i] > last.key || (keys[i] == last.key && rank++ > last.rank)) continue;
    keys[kept] = keys[i];
    ids[kept++] = ids[i];
  }
  return kept;
}

int sample(int32_t* id, const float* logits, int32_t V, double temperature, int32_t top_k, double top_p,
           uint32_t random) {
  BEGIN(SIZES(V), ADDRESSES(id, logits));
  CHECK(temperature >= 0 && top_k >= 0 && top_p > 0 && top_p <= 1,
        "temperature=%g and top_k=%d must be at least 0, top_p=%g above 0 and at most 1", temperature, top_k, top_p);
  *id = -1;
  if (first_nonfinite((const uint32_t*)logits, V, 0x7f800000u) >= 0) return 0;
  float top = largest(logits, V);
  if (temperature == 0) {
    *id = (int32_t)(std::find(logits, logits + V, top) - logits);
    return 0;
  }
  uint64_t* weights = (uint64_t*)workspace(V * (sizeof(uint64_t) + sizeof(uint32_t) + sizeof(int32_t)));
  if (!weights) return 1;
  uint32_t* keys = (uint32_t*)(weights + V);
  int32_t* ids = (int32_t*)(keys + V);
  for (int i = 0; i < V; i++) keys[i] = order_key(logits[i]), ids[i] = i;
  int64_t n = top_k > 0 && top_k < V ? keep_first(top_k, keys, ids, V) : V;
  weigh(weights, keys, n, top, temperature);
  uint64_t total = 0;
  for (int64_t i = 0; i < n; i++) total += weights[i];
  if (top_p < 1) {
    uint64_t wanted = (uint64_t)ceil(top_p * (double)total);
    Place last = find_place(wanted > total ? total - 1 : wanted - 1, keys, weights, n);
    total = last.before + (last.rank + 1) * last.weight;
  }
  uint64_t target = (total >> 32) * random + ((total & 0xffffffffu) * random >> 32);  // random / 2^32 of it, rounded down
  Place place = find_place(target, keys, weights, n);
  int64_t at = 0;
  while (keys[at] != place.key || place.rank-- > 0) at++;
  *id = ids[at];
  return 0;
}

/// The n likeliest of x (V), the likeliest first.
static void likeliest(int32_t* ids, const float* x, int64_t V, int n) {
  int count = 0;
  for (int64_t v = 0; v < V; v++) {
    if (count == n && !(x[v] > x[ids[n - 1]])) continue;
    int place = count < n ? count++ : n - 1;
    for (; place > 0 && x[v] > x[ids[place - 1]]; place--) ids[place] = ids[place - 1];
    ids[place] = (int32_t)v;
  }
}

int logprobs(float* values, int32_t* ids, const float* logits, const int32_t* targets, int32_t N, int32_t V,
             int32_t V_stride, int32_t n) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(values, ids, logits, targets));
  CHECK(V_stride >= V && n >= 0 && n <= V, "V=%d must be at least n=%d and at most V_stride=%d, n at least 0", V, n,
        V_stride);
  for (int i = 0; i < N; i++) CHECK(targets[i] < V, "targets[%d]=%d must be less than V=%d", i, targets[i], V);
#pragma omp parallel for num_threads(team((int64_t)N * V))
  for (int i = 0; i < N; i++) {
    const float* x = logits + (size_t)i * V_stride;
    float top = largest(x, V), *to = values + (size_t)i * (1 + n);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int v = 0; v < V; v++) sum += fast_exp(x[v] - top);
    float log_sum = top + (float)log(sum);
    to[0] = targets[i] < 0 ? 0.0f : x[targets[i]] - log_sum;
    int32_t* best = ids + (size_t)i * n;
    if (n > 0) likeliest(best, x, V, n);
    for (int j = 0; j < n; j++) to[1 + j] = x[best[j]] - log_sum;
  }
  return 0;
}

// ---- optimizer ------------------------------------------------------------------------------------------------------

int grad_sumsq(double* sumsq, const float* grad, int64_t n, int32_t accumulate) {
  BEGIN(SIZES(n), ADDRESSES(sumsq, grad));
  int64_t n_blocks = divide_up(n, SUM_BLOCK);
  double* sums = (double*)workspace(n_blocks * sizeof(double));
  if (!sums) return 1;
#pragma omp parallel for num_threads(team(n))
  for (int64_t i = 0; i < n_blocks; i++) {
    sums[i] = block_sum(grad + i * SUM_BLOCK, min(SUM_BLOCK, n - i * SUM_BLOCK), [](double e) { return e * e; });
  }
  double sum = 0.0;
  for (int64_t i = 0; i < n_blocks; i++) sum += sums[i];
  *sumsq = (accumulate ? *sumsq : 0.0) + sum;
  return 0;
}

int step_control(float* control, const double* sumsq, float grad_clip, float beta1, float beta2) {
  BEGIN(SIZES(), ADDRESSES(control, sumsq));
  decide_update(control, *sumsq, grad_clip, beta1, beta2);
  return 0;
}

int split_master(float* weight, uint16_t*, uint8_t*, const float* master, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(weight, master));
  memcpy(weight, master, n * sizeof(float));
  return 0;
}

int join_master(float* master, const float* weight, const uint16_t*, const uint8_t*, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(master, weight));
  memcpy(master, weight, n * sizeof(float));
  return 0;
}

int adamw(float* weight, uint16_t*, uint8_t*, float* m, float* v, const float* grad, const float* control, int64_t n,
          float beta1, float beta2, float eps, float weight_decay) {
  BEGIN(SIZES(n), ADDRESSES(weight, m, v, grad, control));
  float scale = control[CONTROL_GRAD_SCALE], rate = control[CONTROL_LEARNING_RATE];
  if (scale == 0.0f) return 0;  // a skipped update
  float keep = 1.0f - rate * weight_decay, step = rate / control[CONTROL_BIAS1];
  float root_bias2 = 1.0f / sqrtf(control[CONTROL_BIAS2]);
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) {
    float g = grad[i] * scale;                         // clipped
    float m1 = beta1 * m[i] + (1.0f - beta1) * g;      // the mean of gradients, which began as 0: step corrects for it
    float v1 = beta2 * v[i] + (1.0f - beta2) * g * g;  // and of their squares
    m[i] = m1;
    v[i] = v1;
    weight[i] = weight[i] * keep - step * m1 / (sqrtf(v1) * root_bias2 + eps);  // keep: weight decay
  }
  return 0;
}

int muon_momentum(float* m, float* grad, const float* control, int64_t n, float momentum) {
  BEGIN(SIZES(n), ADDRESSES(m, grad, control));
  float scale = control[CONTROL_GRAD_SCALE];
  if (scale == 0.0f) return 0;  // a skipped update
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) {
    float g = grad[i] * scale;  // clipped
    m[i] = momentum * m[i] + (1.0f - momentum) * g;
    grad[i] = momentum * m[i] + (1.0f - momentum) * g;
  }
  return 0;
}

int normalize(float* out, const float* x, const double* sumsq, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, x, sumsq));
  float norm = norm_of(*sumsq);
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) out[i] = x[i] / norm;
  return 0;
}

int muon_update(float* weight, uint16_t*, uint8_t*, const float* direction, const float* control, int64_t n,
                float scale, float weight_decay) {
  BEGIN(SIZES(n), ADDRESSES(weight, direction, control));
  if (control[CONTROL_GRAD_SCALE] == 0.0f) return 0;  // a skipped update
  float rate = control[CONTROL_LEARNING_RATE], keep = 1.0f - rate * weight_decay, step = rate * scale;
#pragma omp parallel for simd num_threads(team(n))
  for (int64_t i = 0; i < n; i++) weight[i] = weight[i] * keep - step * direction[i];
  return 0;
}
