// kernels.cu: every function of kernels.h for NVIDIA GPUs. act is bfloat16; all sums, gradients of weights, master
// weights and optimizer state are float.
//
// One section per op, in the order of kernels.h: the kernel, then the function that checks its sizes and launches it.
// Matrix products go to cuBLASLt, everything else is here. The same source also compiles with g++ and the headers of
// tests/emu in place of CUDA's (LOAM_EMU), which runs each kernel on the CPU; so PTX stays in the block of wrappers
// below, kernels start through LAUNCH, block sizes are multiples of 32 and no thread leaves before a barrier.
//
// VEC is how many neighbouring elements a thread handles at a time: 8 (one 16-byte load) where sizes and addresses
// allow it, else 1.
#define LOAM_CUDA
#pragma GCC visibility push(default)
#include "kernels.h"
#pragma GCC visibility pop
#include "formulas.h"
#include "host.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cfloat>
#include <map>
#include <vector>

// ---- PTX and what else differs between nvcc and the emulator -------------------------------------------------------

#ifndef LOAM_EMU
#define LOAM_LIBRARY "cuda"
#define DEVICE static __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(256) unsigned char name[]
#define LAUNCH_KERNEL(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)

DEVICE unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two bfloat16 in one register, lo in the lower half.
DEVICE uint32_t pack_bf16(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

/// Starts a copy of 16 bytes from global to shared memory; writes zeros where not valid (src is then not read).
DEVICE void cp_async16(void* dst, const void* src, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void cp_async4(void* dst, const void* src, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 4 : 0)
               : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most PENDING of this thread's committed groups are still on their way.
template <int PENDING> DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/// Four 8x8 matrices; lane l gives the shared_address() of row l % 8 of matrix l / 8.
DEVICE void ldmatrix(uint32_t* r, unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t* r, unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

/// c (16, 8) += a (16, 16) b (16, 8)
DEVICE void mma_bf16(float* c, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// ---- small device functions used by several ops --------------------------------------------------------------------

constexpr int WARP = 32;
constexpr int BLOCK = 256;  // threads of the element-wise kernels
constexpr float LOG2E = 1.4426950408889634f;

DEVICE int lane_id() { return threadIdx.x % WARP; }
DEVICE int warp_id() { return threadIdx.x / WARP; }

template <class T, int VEC> struct alignas(VEC * sizeof(T)) Vector { T v[VEC]; };
template <int VEC> using Pack = Vector<act, VEC>;

/// Reads VEC neighbouring elements at once.
template <int VEC> DEVICE void load(float* f, const act* p) {
  Pack<VEC> pack = *(const Pack<VEC>*)p;
#pragma unroll
  for (int e = 0; e < VEC; e++) f[e] = __bfloat162float(pack.v[e]);
}
template <int VEC> DEVICE void store(act* p, const float* f) {
  Pack<VEC> pack;
#pragma unroll
  for (int e = 0; e < VEC; e++) pack.v[e] = __float2bfloat16_rn(f[e]);
  *(Pack<VEC>*)p = pack;
}

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int mask = WARP / 2; mask; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int mask = WARP / 2; mask; mask /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, mask));
  return v;
}

/// The sum (or maximum) of v over the block, in every thread, in a fixed order.
DEVICE float block_sum(float v) {
  __shared__ float warps[WARP];
  v = warp_sum(v);
  __syncthreads();  // nobody still reads the values of the previous call
  if (lane_id() == 0) warps[warp_id()] = v;
  __syncthreads();
  return warp_sum(lane_id() < (int)blockDim.x / WARP ? warps[lane_id()] : 0.0f);
}
DEVICE float block_max(float v) {
  __shared__ float warps[WARP];
  v = warp_max(v);
  __syncthreads();
  if (lane_id() == 0) warps[warp_id()] = v;
  __syncthreads();
  return warp_max(lane_id() < (int)blockDim.x / WARP ? warps[lane_id()] : -INFINITY);
}

/// Threads of a one-dimensional launch are numbered through.
DEVICE size_t global_thread() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

// ---- failures: the first one is kept as text -----------------------------------------------------------------------

#define CUDA(call)                                                  \
  do {                                                              \
    cudaError_t e_ = (call);                                        \
    if (e_ != cudaSuccess) return cuda_failure(e_, __LINE__);       \
  } while (0)

/// Queues a kernel on the library's stream; the caller returns with an error if it cannot start.
#define LAUNCH(kernel, grid, block, shared, ...)                                     \
  do {                                                                               \
    LAUNCH_KERNEL(kernel, dim3(grid), dim3(block), shared, gpu.stream, __VA_ARGS__); \
    CUDA(cudaGetLastError());                                                        \
  } while (0)

template <class... P> static bool aligned16(const P*... p) { return (... && ((uintptr_t)p % 16 == 0)); }

static unsigned ceil_div(size_t n, size_t d) { return (unsigned)((n + d - 1) / d); }

/// Kernels with a thread for each element count them in 32 bits.
#define CHECK_LAUNCH(threads, ...)                                                                             \
  CHECK((size_t)(threads) < ((size_t)1 << 31), "too many elements for one launch: lower batch_size (%s)", \
        SIZE_TEXT(__VA_ARGS__))

// ---- device --------------------------------------------------------------------------------------------------------

/// For cuBLASLt (Hopper wants 32 MiB; twice that lets it split the sums of a weight gradient) and for partial sums, never
/// both at once.
constexpr size_t WORKSPACE_BYTES = 64 << 20;

/// A mistake that only a kernel can see. It lies in host memory that the GPU writes to, and is read when we wait.
struct alignas(16) Fault {
  int kind, row, value, limit;
};
enum { FAULT_NONE = 0, FAULT_TOKEN = 1, FAULT_TARGET = 2 };

/// In one store: the host may look while the next step reports, and must not see a part.
DEVICE void report_fault(Fault* fault, int kind, int row, int value, int limit) {
  uint4 whole = {(unsigned)kind, (unsigned)row, (unsigned)value, (unsigned)limit};
  *(uint4*)fault = whole;
}

static struct {
  bool open;
  int index;
  cudaStream_t stream, side;
  cudaEvent_t marks[MARKS];  // made when they are set first
  cudaDeviceProp properties;
  char* workspace;
  Fault* fault;
  bool hopper;            // attention is Hopper's for head sizes 64 and 128
  std::string attention;  // which kernels it is, and why
  struct {
    char* bytes;  // SNAPSHOT_BYTES of pinned host memory
    cudaEvent_t done;
  } snapshots[SNAPSHOTS];
  int64_t snapshots_taken, snapshots_read;
  int64_t allocated, peak;
  std::map<void*, int64_t> sizes;  // of mem_alloc()
} gpu;

/// What CUDA refused, or cuBLASLt. A kernel that fails ends all work on the GPU, and any later call is told.
static const char* whose_failure() {
  cudaGetLastError();  // clears it, where it can be: or the next launch would be told, too
  cudaError_t now = gpu.stream ? cudaStreamQuery(gpu.stream) : cudaSuccess;
  bool is_dead = now != cudaSuccess && now != cudaErrorNotReady;
  return is_dead ? "the GPU failed in this op or one queued before it: " : "";
}
static int cuda_failure(cudaError_t e, int line) {
  const char* whose = whose_failure();
  FAIL("%s%s: %s (kernels.cu:%d)", whose, cudaGetErrorName(e), cudaGetErrorString(e), line);
}

static int use_device() {
  static thread_local int device_of_thread = -1;  // a thread that has not called before is on GPU 0
  CHECK(gpu.open, "no device is open; call device_open first");
  if (device_of_thread == gpu.index) return 0;
  CUDA(cudaSetDevice(gpu.index));
  device_of_thread = gpu.index;
  return 0;
}

/// cuBLASLt is opened at run time, so that a missing one is a message and not a library that does not load.
static struct {
  cublasLtHandle_t handle;
  size_t version;
  char path[512];
#define BLAS_FUNCTIONS(X)                 \
  X(cublasLtGetVersion)                   \
  X(cublasLtCreate)                       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulAlgoCheck)              \
  X(cublasLtMatmulAlgoConfigGetAttribute) \
  X(cublasLtMatmul)
#define DECLARE(name) decltype(&::name) name;
  BLAS_FUNCTIONS(DECLARE)
#undef DECLARE
} blas;

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

#ifndef LOAM_CUBLASLT_DIR
#define LOAM_CUBLASLT_DIR ""  // where the build found the library
#endif

/// LOAM_CUBLASLT, then the loader's own paths, then CUDA_HOME, then where the build found it.
static void* open_blas_library() {
  const char* name = "libcublasLt.so." STRING(CUBLAS_VER_MAJOR);
  if (const char* file = getenv("LOAM_CUBLASLT")) return dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  const char* home = getenv("CUDA_HOME");
  std::string places[] = {home ? std::string(home) + "/lib64/" : "", "/usr/local/cuda/lib64/", LOAM_CUBLASLT_DIR "/"};
  for (const std::string& place : places) {
    if (place.size() < 2) continue;
    if (void* library = dlopen((place + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

/// What to say where the right cuBLASLt is not found; another major version may be.
static std::string missing_blas() {
  std::string wanted = "libcublasLt.so." STRING(CUBLAS_VER_MAJOR);
  std::string found = "cannot find " + wanted;
  for (const char* other : {"libcublasLt.so.11", "libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so.14"})
    if (other != wanted && dlopen(other, RTLD_NOW | RTLD_LOCAL))
      found = std::string(other) + " is installed, but loam was built for " + wanted;
  return found +
         ": install CUDA " STRING(CUBLAS_VER_MAJOR) " or `pip install nvidia-cublas`, or set LOAM_CUBLASLT to the file";
}

static int open_blas() {
  if (blas.handle) return 0;
  void* library = open_blas_library();
  CHECK(library, "%s", missing_blas().c_str());
#define FIND(name)                                                                                           \
  blas.name = (decltype(blas.name))dlsym(library, #name);                                                    \
  CHECK(blas.name, "the library opened as cuBLASLt lacks " #name ": set LOAM_CUBLASLT to libcublasLt.so.%d", \
        CUBLAS_VER_MAJOR);
  BLAS_FUNCTIONS(FIND)
#undef FIND
  blas.version = blas.cublasLtGetVersion();
  int major = (int)(blas.version / 10000);
  Dl_info found;
  if (dladdr((void*)blas.cublasLtMatmul, &found)) snprintf(blas.path, sizeof blas.path, "%s", found.dli_fname);
  CHECK(major == CUBLAS_VER_MAJOR,
        "cuBLASLt %d found at %s, but loam was built for cuBLASLt %d: set LOAM_CUBLASLT to "
        "libcublasLt.so.%d or run `deno task build` again",
        major, blas.path, CUBLAS_VER_MAJOR, CUBLAS_VER_MAJOR);
  cublasStatus_t status = blas.cublasLtCreate(&blas.handle);
  CHECK(status == CUBLAS_STATUS_SUCCESS, "cublasLtCreate failed with status %d (library %s)", (int)status, blas.path);
  return 0;
}

/// The architectures of the machine code in this library, as "sm_80, sm_90".
static std::string compiled_archs(const char* quote) {
  std::string list;
  for (int arch : {__CUDA_ARCH_LIST__}) {
    list += list.empty() ? "" : ", ";
    list += quote + ("sm_" + std::to_string(arch / 10)) + quote;
  }
  return list;
}

static __global__ void probe_kernel(Fault* fault) {
  if (threadIdx.x == 0) fault->value = 42;
}

/// Launches a kernel that does next to nothing: does this library hold code for this GPU?
static int probe_architecture() {
  const cudaDeviceProp& p = gpu.properties;
  gpu.fault->value = 0;
  LAUNCH_KERNEL(probe_kernel, dim3(1), dim3(WARP), 0, gpu.stream, gpu.fault);
  cudaError_t e = cudaGetLastError();
  if (e == cudaSuccess) e = cudaStreamSynchronize(gpu.stream);
  CHECK(p.major >= 8, "%s is sm_%d%d: loam needs a GPU of sm_80 or later; use --device=cpu", p.name, p.major, p.minor);
  CHECK(e != cudaErrorNoKernelImageForDevice, "built for %s; this GPU (%s) is sm_%d%d: run deno task build --arch=native",
        compiled_archs("").c_str(), p.name, p.major, p.minor);
  bool no_compiler = e == cudaErrorUnsupportedPtxVersion || e == cudaErrorJitCompilerNotFound ||
                     e == cudaErrorJitCompilationDisabled || e == cudaErrorInvalidPtx;
  CHECK(!no_compiler,
        "built for %s; this GPU (%s) is sm_%d%d, and the driver does not compile for it (%s): update the driver, or run "
        "deno task build --arch=native",
        compiled_archs("").c_str(), p.name, p.major, p.minor, cudaGetErrorName(e));
  CHECK(e == cudaSuccess && gpu.fault->value == 42, "a first kernel does not run on %s: %s: %s", p.name,
        cudaGetErrorName(e), cudaGetErrorString(e));
  *gpu.fault = {};
  return 0;
}

static int check_driver() {
  int driver = 0, runtime = CUDART_VERSION;
  cudaDriverGetVersion(&driver);
  CHECK(driver != 0, "no NVIDIA driver found: install the driver (nvidia-smi must work) or use --device=cpu");
  CHECK(driver / 1000 >= runtime / 1000,
        "the NVIDIA driver supports CUDA %d.%d, this library needs CUDA %d.%d: update the "
        "driver or build with an older CUDA toolkit",
        driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
  return 0;
}

/// A GPU that other programs have taken, or all memory of it.
static int check_room(cudaError_t e) {
  const char* name = gpu.properties.name;
  CHECK(e != cudaErrorDevicesUnavailable,
        "%s is in use by another process, which has it for itself (nvidia-smi shows both): wait for it, or choose another "
        "GPU with CUDA_VISIBLE_DEVICES",
        name);
  if (e != cudaErrorMemoryAllocation) return 0;
  cudaGetLastError();
  size_t free_bytes = 0, total = 0;
  if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) cudaGetLastError(), total = gpu.properties.totalGlobalMem;
  FAIL("%.1f MB do not fit on %s: %.1f MB are free of %.1f MB: end the processes that nvidia-smi shows there, or choose "
       "another GPU with CUDA_VISIBLE_DEVICES",
       WORKSPACE_BYTES / 1e6, name, free_bytes / 1e6, total / 1e6);
}

static int choose_device(int index) {
  int count = 0;
  cudaError_t e = cudaGetDeviceCount(&count);
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  CHECK(e != cudaErrorNoDevice || !visible,
        "no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES is \"%s\": unset it, or name one that nvidia-smi shows, such as 0; "
        "or use --device=cpu",
        visible);
  CHECK(e != cudaErrorNoDevice && (e != cudaSuccess || count > 0),
        "no NVIDIA GPU found: check nvidia-smi, or use --device=cpu");
  CUDA(e);
  CHECK(index >= 0 && index < count, "GPU %d does not exist: this machine shows %d, choose 0 to %d", index, count,
        count - 1);
  CUDA(cudaGetDeviceProperties(&gpu.properties, index));
  e = cudaSetDevice(index);  // from CUDA 12 on it takes memory
  TRY(check_room(e));
  CUDA(e);
  return 0;
}

static int create_resources() {
  cudaError_t e = cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking);
  TRY(check_room(e));
  CUDA(e);
  CUDA(cudaStreamCreateWithFlags(&gpu.side, cudaStreamNonBlocking));
  CUDA(cudaHostAlloc((void**)&gpu.fault, sizeof(Fault), cudaHostAllocDefault));
  *gpu.fault = {};
  for (auto& s : gpu.snapshots) {
    CUDA(cudaHostAlloc((void**)&s.bytes, SNAPSHOT_BYTES, cudaHostAllocDefault));
    CUDA(cudaEventCreateWithFlags(&s.done, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  e = cudaMalloc((void**)&gpu.workspace, WORKSPACE_BYTES);  // last: with it all is there
  TRY(check_room(e));
  CUDA(e);
  return 0;
}

static int choose_attention(const std::string& asked);

int device_open(int32_t index, int32_t, int32_t, const char*, const char* attention) {
  op = __func__;
  if (gpu.open && index != gpu.index) FAIL("GPU %d is open already: start one process for each GPU", gpu.index);
  TRY(check_driver());
  TRY(choose_device(index));
  if (!gpu.workspace) TRY(create_resources());
  TRY(probe_architecture());
  TRY(open_blas());
  TRY(choose_attention(attention && *attention ? attention : "auto"));
  gpu.open = true;
  gpu.index = index;
  return 0;
}

int device_info(char* json, int32_t capacity) {
  BEGIN(SIZES(capacity), ADDRESSES(json));
  int driver = 0, runtime = 0;
  CUDA(cudaDriverGetVersion(&driver));
  CUDA(cudaRuntimeGetVersion(&runtime));
  const cudaDeviceProp& p = gpu.properties;
  int arch = p.major * 10 + p.minor;
  char uuid[48] = "GPU-";  // as nvidia-smi writes it: 16 bytes with dashes before the fifth, seventh, ninth and eleventh
  for (int i = 0, at = 4; i < 16; i++)
    at += snprintf(uuid + at, sizeof uuid - at, i >= 4 && i <= 10 && i % 2 == 0 ? "-%02x" : "%02x",
                   (unsigned char)p.uuid.bytes[i]);
  char emulator[128] = "";
#ifdef LOAM_EMU
  snprintf(emulator, sizeof emulator, ", \"seed\": %llu, \"launches\": %ld, \"bank_conflicts\": %ld",
           (unsigned long long)emu::seed, emu::launches, emu::bank_conflicts);
#endif
  int length = snprintf(
      json, capacity,
      "{\"name\": \"%s\", \"library\": \"" LOAM_LIBRARY
      "\", \"act\": \"bf16\", \"isa\": \"sm_%d\", \"threads\": 0, "
      "\"blas\": \"cuBLASLt %zu.%zu.%zu %s\", \"arch\": \"sm_%d\", \"compiled_archs\": [%s], \"multiprocessors\": %d, "
      "\"attention\": \"%s\", \"uuid\": \"%s\", \"driver\": \"%d.%d\", \"runtime\": \"%d.%d\"%s}",
      p.name, arch, blas.version / 10000, blas.version / 100 % 100, blas.version % 100, blas.path, arch,
      compiled_archs("\"").c_str(), p.multiProcessorCount, gpu.attention.c_str(), uuid, driver / 1000, driver / 10 % 100,
      runtime / 1000, runtime / 10 % 100, emulator);
  CHECK(length < capacity, "the text needs %d bytes, but capacity is %d", length + 1, capacity);
  return 0;
}

int device_memory(int64_t* bytes) {
  BEGIN(SIZES(), ADDRESSES(bytes));
  size_t free_bytes, total;
  CUDA(cudaMemGetInfo(&free_bytes, &total));
  bytes[0] = gpu.allocated, bytes[1] = gpu.peak, bytes[2] = (int64_t)free_bytes, bytes[3] = (int64_t)total;
  return 0;
}

int device_peak(double* flops, char* how, int32_t capacity) {
  BEGIN(SIZES(capacity), ADDRESSES(flops, how));
  *flops = 0.0, how[0] = 0;
  return 0;
}

int device_stream(uint64_t* stream) {
  BEGIN(SIZES(), ADDRESSES(stream));
  *stream = (uint64_t)gpu.stream;
  return 0;
}

static int mark_in(cudaStream_t stream, int32_t at) {
  CHECK(at < MARKS, "mark %d, at most %d", at, MARKS - 1);
  if (!gpu.marks[at]) CUDA(cudaEventCreate(&gpu.marks[at]));
  CUDA(cudaEventRecord(gpu.marks[at], stream));
  return 0;
}

static int wait_in(cudaStream_t stream, int32_t at) {
  CHECK(at < MARKS && gpu.marks[at], "mark %d was not set", at);
  CUDA(cudaStreamWaitEvent(stream, gpu.marks[at], 0));
  return 0;
}

int mark(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  return mark_in(gpu.stream, at);
}

int mark_ms(float* ms, int32_t from, int32_t to) {
  BEGIN(SIZES(from, to), ADDRESSES(ms));
  CHECK(from < MARKS && to < MARKS && gpu.marks[from] && gpu.marks[to], "marks %d and %d were not set", from, to);
  CUDA(cudaEventElapsedTime(ms, gpu.marks[from], gpu.marks[to]));
  return 0;
}

int side_stream(uint64_t* stream) {
  BEGIN(SIZES(), ADDRESSES(stream));
  *stream = (uint64_t)gpu.side;
  return 0;
}

int side_wait(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  return wait_in(gpu.side, at);
}

int side_mark(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  return mark_in(gpu.side, at);
}

int side_join(int32_t at) {
  BEGIN(SIZES(at), ADDRESSES());
  return wait_in(gpu.stream, at);
}

/// Reports a mistake that a kernel has found. Only then it is cleared: a step that still runs may be writing another.
static int check_fault() {
  Fault fault = *gpu.fault;
  if (fault.kind == FAULT_NONE) return 0;
  *gpu.fault = {};
  FAIL("%s: %s %d at row %d is outside the vocabulary of %d: prepare the data with this tokenizer",
       fault.kind == FAULT_TOKEN ? "embedding" : "cross_entropy", fault.kind == FAULT_TOKEN ? "token" : "target",
       fault.value, fault.row, fault.limit);
}

/// Waits for the stream and reports what failed in it.
static int wait() {
  CUDA(cudaStreamSynchronize(gpu.stream));
  return check_fault();
}

int synchronize(void) {
  BEGIN(SIZES(), ADDRESSES());
  return wait();
}

// ---- memory --------------------------------------------------------------------------------------------------------

int mem_alloc(uint64_t* address, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(address));
  void* p = nullptr;
  cudaError_t e = cudaMalloc(&p, bytes);
  if (e == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears it: the device is fine
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    double others = (double)total - free_bytes - gpu.allocated - WORKSPACE_BYTES;  // and what CUDA itself takes
    char who[96] = "";
    if (others > 1e9) snprintf(who, sizeof who, ", %.1f MB are others' (nvidia-smi shows whose)", others / 1e6);
    FAIL("%.1f MB do not fit on %s: %.1f MB are free of %.1f MB, %.1f MB already given%s", bytes / 1e6,
         gpu.properties.name, free_bytes / 1e6, total / 1e6, gpu.allocated / 1e6, who);
  }
  CUDA(e);
  CUDA(cudaMemsetAsync(p, 0, bytes, gpu.stream));
  gpu.sizes[p] = bytes;
  gpu.allocated += bytes;
  if (gpu.allocated > gpu.peak) gpu.peak = gpu.allocated;
  *address = (uint64_t)p;
  return 0;
}

int mem_free(void* address) {
  BEGIN(SIZES(), ADDRESSES(address));
  auto at = gpu.sizes.find(address);
  CHECK(at != gpu.sizes.end(), "%p is not the address of an allocation: was it freed twice?", address);
  TRY(wait());  // queued work may still use it
  CUDA(cudaFree(address));
  gpu.allocated -= at->second;
  gpu.sizes.erase(at);
  return 0;
}

int host_alloc(uint64_t* address, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(address));
  void* p = nullptr;
  cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
  if (e == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears it
    FAIL("cannot pin %.1f MiB of host memory: raise `ulimit -l` or free memory", bytes / 1048576.0);
  }
  CUDA(e);
  memset(p, 0, bytes);
  *address = (uint64_t)p;
  return 0;
}

int copy_to_device(void* dst, const void* src, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst, src));
  CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, gpu.stream));
  return wait();  // the array may be reused when this returns, and CUDA does not promise that it has read it before
}

int copy_to_host(void* dst, const void* src, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst, src));
  CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, gpu.stream));
  return wait();
}

int copy_async(void* dst, const void* src, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst, src));
  CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, gpu.stream));
  return 0;
}

int snapshot(const void* src, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(src));
  CHECK(bytes <= SNAPSHOT_BYTES, "%lld bytes, at most %d", (long long)bytes, SNAPSHOT_BYTES);
  CHECK(gpu.snapshots_taken - gpu.snapshots_read < SNAPSHOTS, "%d wait to be read already", SNAPSHOTS);
  auto& s = gpu.snapshots[gpu.snapshots_taken % SNAPSHOTS];
  CUDA(cudaMemcpyAsync(s.bytes, src, bytes, cudaMemcpyDeviceToHost, gpu.stream));
  CUDA(cudaEventRecord(s.done, gpu.stream));
  gpu.snapshots_taken++;
  return 0;
}

int snapshot_read(void* dst, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst));
  CHECK(bytes <= SNAPSHOT_BYTES, "%lld bytes, at most %d", (long long)bytes, SNAPSHOT_BYTES);
  CHECK(gpu.snapshots_read < gpu.snapshots_taken, "none was taken since the last one was read");
  auto& s = gpu.snapshots[gpu.snapshots_read++ % SNAPSHOTS];
  CUDA(cudaEventSynchronize(s.done));
  memcpy(dst, s.bytes, bytes);
  return check_fault();
}

int fill_zero(void* dst, int64_t bytes) {
  BEGIN(SIZES(bytes), ADDRESSES(dst));
  CUDA(cudaMemsetAsync(dst, 0, bytes, gpu.stream));
  return 0;
}

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(act v) { return __bfloat162float(v); }
DEVICE void from_float(float& out, float v) { out = v; }
DEVICE void from_float(act& out, float v) { out = __float2bfloat16_rn(v); }

template <class Dst, class Src> static __global__ void convert_kernel(Dst* dst, const Src* src, size_t n) {
  size_t i = global_thread();
  if (i < n) from_float(dst[i], to_float(src[i]));
}

static bool is_float_type(int type) { return type == LOAM_F32 || type == LOAM_BF16; }

int convert(void* dst, const void* src, int32_t dst_type, int32_t src_type, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(dst, src));
  CHECK_LAUNCH(n / BLOCK, n);
  CHECK(is_float_type(dst_type) && is_float_type(src_type), "types %d <- %d: both must be 0 (f32) or 1 (bf16)",
        dst_type, src_type);
  if (dst_type == src_type) return copy_async(dst, src, n * (src_type == LOAM_F32 ? sizeof(float) : sizeof(act)));
  unsigned blocks = ceil_div(n, BLOCK);
  if (dst_type == LOAM_F32)
    LAUNCH((convert_kernel<float, act>), blocks, BLOCK, 0, (float*)dst, (const act*)src, (size_t)n);
  else
    LAUNCH((convert_kernel<act, float>), blocks, BLOCK, 0, (act*)dst, (const float*)src, (size_t)n);
  return 0;
}

template <class T> static __global__ void find_nonfinite_kernel(unsigned long long* index, const T* x, size_t n) {
  for (size_t i = global_thread(); i < n; i += (size_t)gridDim.x * blockDim.x)
    if (!isfinite(to_float(x[i])))
      atomicMin(index, (unsigned long long)i);  // the smallest wins: the order does not matter
}

int find_nonfinite(int64_t* index, const void* x, int32_t type, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(index, x));
  CHECK(is_float_type(type), "type %d: must be 0 (f32) or 1 (bf16)", type);
  unsigned long long* found = (unsigned long long*)gpu.workspace;
  CUDA(cudaMemsetAsync(found, 0xff, sizeof *found, gpu.stream));  // -1, and larger than every place
  unsigned blocks = n < 1024 * BLOCK ? ceil_div(n, BLOCK) : 1024;
  if (type == LOAM_F32)
    LAUNCH(find_nonfinite_kernel<float>, blocks, BLOCK, 0, found, (const float*)x, (size_t)n);
  else
    LAUNCH(find_nonfinite_kernel<act>, blocks, BLOCK, 0, found, (const act*)x, (size_t)n);
  return copy_to_host(index, found, sizeof *index);
}

// ---- random numbers ------------------------------------------------------------------------------------------------

/// Normal number `which` of four: words 0 and 1 make the first two, words 2 and 3 the others.
DEVICE float box_muller(const Philox& random, int which) {
  float u = ((float)random.word[which & 2] + 0.5f) * 0x1p-32f;  // (0, 1]
  float v = ((float)random.word[(which & 2) + 1] + 0.5f) * 0x1p-32f;
  float radius = sqrtf(-2.0f * logf(u)), angle = 6.283185307179586f * v;
  return radius * (which & 1 ? sinf(angle) : cosf(angle));
}

static __global__ void init_normal_kernel(float* dst, size_t n, float std, uint64_t seed, uint64_t offset) {
  size_t i = global_thread();
  if (i < n) dst[i] = std * box_muller(philox((offset + i) / 4, seed), (int)((offset + i) % 4));
}

static __global__ void init_constant_kernel(float* dst, size_t n, float value) {
  size_t i = global_thread();
  if (i < n) dst[i] = value;
}

int init_normal(float* dst, int64_t n, float std, uint64_t seed, uint64_t offset) {
  BEGIN(SIZES(n), ADDRESSES(dst));
  CHECK_LAUNCH(n / BLOCK, n);
  LAUNCH(init_normal_kernel, ceil_div(n, BLOCK), BLOCK, 0, dst, (size_t)n, std, seed, offset);
  return 0;
}

int init_constant(float* dst, int64_t n, float value) {
  BEGIN(SIZES(n), ADDRESSES(dst));
  CHECK_LAUNCH(n / BLOCK, n);
  LAUNCH(init_constant_kernel, ceil_div(n, BLOCK), BLOCK, 0, dst, (size_t)n, value);
  return 0;
}

// ---- embedding: rows of a table ------------------------------------------------------------------------------------

/// One thread copies VEC elements of a row. An id outside the table gives zeros and a fault.
template <int VEC>
static __global__ void embedding_forward_kernel(act* out, const int* ids, const act* weight, int N, int V, int C,
                                                Fault* fault) {
  unsigned i = (unsigned)global_thread(), per_row = C / VEC, row = i / per_row, c = i % per_row * VEC;
  if (row >= (unsigned)N) return;
  int id = ids[row];
  bool valid = id >= 0 && id < V;
  if (!valid) report_fault(fault, FAULT_TOKEN, (int)row, id, V);
  Pack<VEC> zero = {};
  *(Pack<VEC>*)(out + (size_t)row * C + c) = valid ? *(const Pack<VEC>*)(weight + (size_t)id * C + c) : zero;
}

int embedding_forward(act* out, const int32_t* ids, const act* weight, int32_t N, int32_t V, int32_t C) {
  BEGIN(SIZES(N, V, C), ADDRESSES(out, ids, weight));
  CHECK_LAUNCH((size_t)N * C, N, C);
  if (C % 8 == 0 && aligned16(out, weight))
    LAUNCH(embedding_forward_kernel<8>, ceil_div((size_t)N * C / 8, BLOCK), BLOCK, 0, out, ids, weight, N, V, C,
           gpu.fault);
  else
    LAUNCH(embedding_forward_kernel<1>, ceil_div((size_t)N * C, BLOCK), BLOCK, 0, out, ids, weight, N, V, C, gpu.fault);
  return 0;
}

int embedding_forward_bf16(act* out, const int32_t* ids, const void* weight, int32_t N, int32_t V, int32_t C) {
  BEGIN(SIZES(N, V, C), ADDRESSES(out, ids, weight));
  return embedding_forward(out, ids, (const act*)weight, N, V, C);  // act is bfloat16
}

/// Without atomics: the block of the first place where a token stands sums over all its places, in order; the others
/// leave. Each chunk of blockDim.x places is searched in parallel into a list, then each thread sums its own columns
/// over the list. (N = 8192 ids are 32 KB and stay in the caches.)
static __global__ void embedding_backward_kernel(float* dweight, const act* dout, const int* ids, int N, int V, int C,
                                                 Fault* fault) {
  __shared__ int list[BLOCK];
  __shared__ int found_in_warp[BLOCK / WARP];
  int first = blockIdx.x, id = ids[first];
  bool seen_before = id < 0 || id >= V;
  if (seen_before && threadIdx.x == 0) report_fault(fault, FAULT_TOKEN, first, id, V);
  for (int n = threadIdx.x; n < first; n += BLOCK) seen_before |= ids[n] == id;
  if (__syncthreads_or(seen_before)) return;  // the whole block leaves

  constexpr int COLUMNS = 8;  // of one thread, BLOCK apart; wider tables take more rounds
  for (int c0 = 0; c0 < C; c0 += BLOCK * COLUMNS) {
    float sum[COLUMNS] = {};
    for (int chunk = first; chunk < N; chunk += BLOCK) {
      int n = chunk + threadIdx.x;
      bool match = n < N && ids[n] == id;
      unsigned matches = __ballot_sync(~0u, match);
      if (lane_id() == 0) found_in_warp[warp_id()] = __popc(matches);
      __syncthreads();
      int before = __popc(matches & ((1u << lane_id()) - 1)), total = 0;
      for (int w = 0; w < BLOCK / WARP; w++) {
        if (w < warp_id()) before += found_in_warp[w];
        total += found_in_warp[w];
      }
      if (match) list[before] = n;
      __syncthreads();
      for (int k = 0; k < total; k++) {
        const act* row = dout + (size_t)list[k] * C;
#pragma unroll
        for (int e = 0; e < COLUMNS; e++) {
          int c = c0 + e * BLOCK + threadIdx.x;
          if (c < C) sum[e] += to_float(row[c]);
        }
      }
      __syncthreads();  // the list is read; the next chunk may overwrite it
    }
#pragma unroll
    for (int e = 0; e < COLUMNS; e++) {
      int c = c0 + e * BLOCK + threadIdx.x;
      if (c < C) dweight[(size_t)id * C + c] += sum[e];
    }
  }
}

int embedding_backward(float* dweight, const act* dout, const int32_t* ids, int32_t N, int32_t V, int32_t C,
                       int32_t accumulate) {
  BEGIN(SIZES(N, V, C), ADDRESSES(dweight, dout, ids));
  if (!accumulate) CUDA(cudaMemsetAsync(dweight, 0, (size_t)V * C * sizeof(float), gpu.stream));
  LAUNCH(embedding_backward_kernel, N, BLOCK, 0, dweight, dout, ids, N, V, C, gpu.fault);
  return 0;
}

// ---- rmsnorm: out = x * rstd * weight, one warp per row ------------------------------------------------------------

constexpr int ROWS_PER_BLOCK = BLOCK / WARP;

/// Where a row begins, of rows of C that stand `group` at a time side by side, each group `stride` after the one before.
DEVICE size_t row_at(int row, int C, int group, int stride) {
  return (size_t)(row / group) * stride + (size_t)(row % group) * C;
}

/// The second reading of a row comes from the L1 cache.
template <int VEC>
static __global__ void rmsnorm_forward_kernel(act* out, float* rstd, const act* x, const act* weight, int N, int C,
                                              int group, int stride, float eps) {
  int row = blockIdx.x * ROWS_PER_BLOCK + warp_id();
  if (row >= N) return;
  size_t at = row_at(row, C, group, stride);
  x += at;
  out += at;
  float sum = 0;
#pragma unroll 4
  for (int c = lane_id() * VEC; c < C; c += WARP * VEC) {
    float v[VEC];
    load<VEC>(v, x + c);
#pragma unroll
    for (int e = 0; e < VEC; e++) sum += v[e] * v[e];
  }
  float r = rsqrtf(warp_sum(sum) / C + eps);
#pragma unroll 4
  for (int c = lane_id() * VEC; c < C; c += WARP * VEC) {
    float v[VEC], w[VEC];
    load<VEC>(v, x + c);
    load<VEC>(w, weight + c);
#pragma unroll
    for (int e = 0; e < VEC; e++) v[e] *= r * w[e];
    store<VEC>(out + c, v);
  }
  if (lane_id() == 0) rstd[row] = r;
}

int rmsnorm_forward(act* out, float* rstd, const act* x, const act* weight, int32_t N, int32_t C, int32_t group,
                    int32_t stride, float eps) {
  BEGIN(SIZES(N, C, group, stride), ADDRESSES(out, rstd, x, weight));
  TRY(check_groups(N, C, group, stride));
  unsigned blocks = ceil_div(N, ROWS_PER_BLOCK);
  if (C % 8 == 0 && stride % 8 == 0 && aligned16(out, x, weight))
    LAUNCH(rmsnorm_forward_kernel<8>, blocks, BLOCK, 0, out, rstd, x, weight, N, C, group, stride, eps);
  else
    LAUNCH(rmsnorm_forward_kernel<1>, blocks, BLOCK, 0, out, rstd, x, weight, N, C, group, stride, eps);
  return 0;
}

/// dx = rstd * (g - n * mean(g * n)) and dweight += dout * n, with n = x * rstd and g = dout * weight. A few blocks walk
/// over all rows; each warp sums its rows' dweight in shared memory, each block writes one row of partial sums
/// (gridDim.x, C), which the next kernel adds up: dweight has many writers and no atomics.
template <int VEC>
static __global__ void rmsnorm_backward_kernel(act* dx, float* partial, act* out, const act* dout, const act* x,
                                               const act* weight, const float* rstd, int N, int C, int group,
                                               int stride, int accumulate_dx) {
  DYNAMIC_SHARED(raw);
  int warps = blockDim.x / WARP, chunks = C / VEC;
  // The sums of this warp lie as (VEC, chunks), so that neighbouring lanes hit different banks.
  float* dweight = (float*)raw + (size_t)warp_id() * C;
  for (int c = lane_id(); c < C; c += WARP) dweight[c] = 0;
  __syncwarp();
  for (int row = blockIdx.x * warps + warp_id(); row < N; row += gridDim.x * warps) {
    size_t at = row_at(row, C, group, stride);
    const act *dy_row = dout + at, *x_row = x + at;
    act* dx_row = dx + at;
    float r = rstd[row], sum = 0;
#pragma unroll 2
    for (int c = lane_id() * VEC; c < C; c += WARP * VEC) {
      float v[VEC], dy[VEC], w[VEC];
      load<VEC>(v, x_row + c);
      load<VEC>(dy, dy_row + c);
      load<VEC>(w, weight + c);
#pragma unroll
      for (int e = 0; e < VEC; e++) sum += w[e] * dy[e] * v[e];  // g * x: rstd is the same for the whole row
    }
    float mean = warp_sum(sum) * r / C;  // of g * n
#pragma unroll 2
    for (int c = lane_id() * VEC; c < C; c += WARP * VEC) {
      float v[VEC], dy[VEC], w[VEC], d[VEC] = {}, y[VEC];
      load<VEC>(v, x_row + c);
      load<VEC>(dy, dy_row + c);
      load<VEC>(w, weight + c);
      if (accumulate_dx) load<VEC>(d, dx_row + c);
#pragma unroll
      for (int e = 0; e < VEC; e++) {
        float n = v[e] * r;
        dweight[e * chunks + c / VEC] += dy[e] * n;  // out = n * weight: its derivative is n
        // The first term is as if rstd were a constant; the second takes out what changes the row's length, not its direction.
        d[e] += r * (w[e] * dy[e] - n * mean);
        y[e] = n * w[e];  // the forward result again
      }
      store<VEC>(dx_row + c, d);
      if (out) store<VEC>(out + at + c, y);
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < C; c += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < warps; w++) sum += ((float*)raw)[(size_t)w * C + c % VEC * chunks + c / VEC];
    partial[(size_t)blockIdx.x * C + c] = sum;
  }
}

/// out[c] = sum over rows of partial (rows, C), in a fixed order. A block has 32 columns, 32 threads to each.
static __global__ void sum_rows_kernel(float* out, const float* partial, int rows, int C, int accumulate) {
  __shared__ float sums[32][33];
  int column = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + column;
  float sum = 0;
  for (int r = part; r < rows; r += 32) sum += c < C ? partial[(size_t)r * C + c] : 0.0f;
  sums[column][part] = sum;
  __syncthreads();
  sum = warp_sum(sums[part][column]);  // this warp now has all parts of column `part`
  c = blockIdx.x * 32 + part;
  if (column == 0 && c < C) out[c] = sum + (accumulate ? out[c] : 0.0f);
}

int rmsnorm_backward(act* dx, float* dweight, act* out, const act* dout, const act* x, const act* weight,
                     const float* rstd, int32_t N, int32_t C, int32_t group, int32_t stride, int32_t accumulate_dx,
                     int32_t accumulate_dweight) {
  BEGIN(SIZES(N, C, group, stride), ADDRESSES(dx, dweight, dout, x, weight, rstd));
  TRY(check_groups(N, C, group, stride));
  constexpr int MAX_C = 48 * 1024 / sizeof(float);  // one warp's sums must fit into shared memory
  CHECK(C <= MAX_C, "C=%d must be at most %d (%s)", C, MAX_C, SIZE_TEXT(N));
  int warps = MAX_C / C < ROWS_PER_BLOCK ? MAX_C / C : ROWS_PER_BLOCK;
  size_t shared = (size_t)warps * C * sizeof(float);
  size_t blocks = 2 * gpu.properties.multiProcessorCount, most = WORKSPACE_BYTES / sizeof(float) / C,
         needed = ceil_div(N, warps);
  if (blocks > most) blocks = most;
  if (blocks > needed) blocks = needed;
  float* partial = (float*)gpu.workspace;
  if (C % 8 == 0 && stride % 8 == 0 && aligned16(dx, out, dout, x, weight))
    LAUNCH(rmsnorm_backward_kernel<8>, blocks, warps * WARP, shared, dx, partial, out, dout, x, weight, rstd, N, C,
           group, stride, accumulate_dx);
  else
    LAUNCH(rmsnorm_backward_kernel<1>, blocks, warps * WARP, shared, dx, partial, out, dout, x, weight, rstd, N, C,
           group, stride, accumulate_dx);
  LAUNCH(sum_rows_kernel, ceil_div(C, 32), 1024, 0, dweight, partial, (int)blocks, C, accumulate_dweight);
  return 0;
}

// ---- sums of columns: gradients of what is added to, or scales, every row ------------------------------------------

/// partial (gridDim.y, C) = for each column sums of rows gridDim.y apart: of dout or, where x is there, of dout times the
/// normalised x. One thread has one column.
static __global__ void sum_columns_kernel(float* partial, const act* dout, const act* x, const float* stats, int N,
                                          int C) {
  int c = blockIdx.x * BLOCK + threadIdx.x;
  if (c >= C) return;
  float sum = 0;
  for (int row = blockIdx.y; row < N; row += gridDim.y) {
    float d = to_float(dout[(size_t)row * C + c]);
    sum += x ? d * (to_float(x[(size_t)row * C + c]) - stats[2 * row]) * stats[2 * row + 1] : d;
  }
  partial[(size_t)blockIdx.y * C + c] = sum;
}

static int sum_columns(float* out, const act* dout, const act* x, const float* stats, int N, int C, int accumulate) {
  CHECK((size_t)C <= WORKSPACE_BYTES / sizeof(float), "C=%d does not fit the workspace (%s)", C, SIZE_TEXT(N));
  size_t parts = WORKSPACE_BYTES / sizeof(float) / C;
  if (parts > 256) parts = 256;
  if (parts > (size_t)N) parts = N;
  float* partial = (float*)gpu.workspace;
  LAUNCH(sum_columns_kernel, dim3(ceil_div(C, BLOCK), (unsigned)parts), BLOCK, 0, partial, dout, x, stats, N, C);
  LAUNCH(sum_rows_kernel, ceil_div(C, 32), 1024, 0, out, partial, (int)parts, C, accumulate);
  return 0;
}

// ---- layernorm: out = (x - mean) * rstd * weight + bias, one warp per row -------------------------------------------

static __global__ void layernorm_forward_kernel(act* out, float* stats, const act* x, const act* weight,
                                                const act* bias, int N, int C, float eps) {
  int row = blockIdx.x * ROWS_PER_BLOCK + warp_id();
  if (row >= N) return;
  x += (size_t)row * C;
  out += (size_t)row * C;
  float sum = 0, squares = 0;
  for (int c = lane_id(); c < C; c += WARP) sum += to_float(x[c]);
  float mean = warp_sum(sum) / C;
  for (int c = lane_id(); c < C; c += WARP) {
    float d = to_float(x[c]) - mean;  // squares of what is small beside a large mean
    squares += d * d;
  }
  float rstd = rsqrtf(warp_sum(squares) / C + eps);
  for (int c = lane_id(); c < C; c += WARP)
    from_float(out[c], (to_float(x[c]) - mean) * rstd * to_float(weight[c]) + to_float(bias[c]));
  if (lane_id() == 0) stats[2 * row] = mean, stats[2 * row + 1] = rstd;
}

int layernorm_forward(act* out, float* stats, const act* x, const act* weight, const act* bias, int32_t N, int32_t C,
                      float eps) {
  BEGIN(SIZES(N, C), ADDRESSES(out, stats, x, weight, bias));
  LAUNCH(layernorm_forward_kernel, ceil_div(N, ROWS_PER_BLOCK), BLOCK, 0, out, stats, x, weight, bias, N, C, eps);
  return 0;
}

/// dx = rstd * (g - mean(g) - n * mean(g * n)), n = (x - mean) * rstd, g = dout * weight. A lane reads each dout before it
/// writes a dx over it.
static __global__ void layernorm_backward_kernel(act* dx, const act* dout, const act* x, const act* weight,
                                                 const float* stats, int N, int C) {
  int row = blockIdx.x * ROWS_PER_BLOCK + warp_id();
  if (row >= N) return;
  x += (size_t)row * C;
  dout += (size_t)row * C;
  dx += (size_t)row * C;
  float mean = stats[2 * row], rstd = stats[2 * row + 1], g_sum = 0, gn_sum = 0;
  for (int c = lane_id(); c < C; c += WARP) {
    float g = to_float(dout[c]) * to_float(weight[c]);
    g_sum += g;
    gn_sum += g * (to_float(x[c]) - mean) * rstd;
  }
  float g_mean = warp_sum(g_sum) / C, gn_mean = warp_sum(gn_sum) / C;
  for (int c = lane_id(); c < C; c += WARP) {
    float g = to_float(dout[c]) * to_float(weight[c]), n = (to_float(x[c]) - mean) * rstd;
    // As if mean and rstd were constants, less what moves the row's mean and what changes its length.
    from_float(dx[c], rstd * (g - g_mean - n * gn_mean));
  }
}

int layernorm_backward(act* dx, float* dweight, float* dbias, const act* dout, const act* x, const act* weight,
                       const float* stats, int32_t N, int32_t C, int32_t accumulate_dweight,
                       int32_t accumulate_dbias) {
  BEGIN(SIZES(N, C), ADDRESSES(dx, dweight, dbias, dout, x, weight, stats));
  TRY(sum_columns(dweight, dout, x, stats, N, C, accumulate_dweight));  // before dx may take the place of dout
  TRY(sum_columns(dbias, dout, nullptr, nullptr, N, C, accumulate_dbias));
  LAUNCH(layernorm_backward_kernel, ceil_div(N, ROWS_PER_BLOCK), BLOCK, 0, dx, dout, x, weight, stats, N, C);
  return 0;
}

// ---- rope: rotates pairs (j, j + D/2) of each query and key head, in place -----------------------------------------

/// One thread rotates VEC neighbouring pairs.
template <int VEC>
static __global__ void rope_kernel(act* qkv, const float* table, const int* starts, int B, int T, int pos, int heads,
                                   int stride, int D, float sign) {
  unsigned half = D / 2, i = (unsigned)global_thread();
  unsigned j = i % (half / VEC) * VEC, rest = i / (half / VEC), head = rest % heads, row = rest / heads;
  if (row >= (unsigned)(B * T)) return;
  const float* angles = table + (size_t)(pos + row % T - (starts ? starts[row] : 0)) * D + j;
  act* x = qkv + (size_t)row * stride + head * D + j;
  float a[VEC], b[VEC];
  load<VEC>(a, x);
  load<VEC>(b, x + half);
#pragma unroll
  for (int e = 0; e < VEC; e++) {
    float cosine = angles[e], sine = sign * angles[half + e], first = a[e];
    a[e] = first * cosine - b[e] * sine;
    b[e] = b[e] * cosine + first * sine;
  }
  store<VEC>(x, a);
  store<VEC>(x + half, b);
}

int rope(act* qkv, const float* table, const int32_t* starts, int32_t B, int32_t T, int32_t pos, int32_t H, int32_t K,
         int32_t D, int32_t inverse) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(qkv, table));
  CHECK(D % 2 == 0 && pos >= 0, "D must be even and pos at least 0 (%s)", SIZE_TEXT(B, T, pos, H, K, D));
  size_t pairs = (size_t)B * T * (H + K) * (D / 2);
  CHECK_LAUNCH(pairs, B, T, H, K, D);
  float sign = inverse ? -1.0f : 1.0f;  // sin(-a) = -sin(a), cos(-a) = cos(a)
  int stride = (H + 2 * K) * D;
  if (D % 16 == 0 && aligned16(qkv, table))
    LAUNCH(rope_kernel<8>, ceil_div(pairs / 8, BLOCK), BLOCK, 0, qkv, table, starts, B, T, pos, H + K, stride, D, sign);
  else
    LAUNCH(rope_kernel<1>, ceil_div(pairs, BLOCK), BLOCK, 0, qkv, table, starts, B, T, pos, H + K, stride, D, sign);
  return 0;
}

// ---- attention: causal, grouped-query, scale 1/sqrt(D), online softmax ---------------------------------------------
//
// Flash attention with tensor cores (mma.sync, every GPU from sm_80). A block has 4 warps; each warp owns 16 or 32 rows
// of the block's tile and keeps their sums in registers. Tiles of the other operand stream through two stages of shared
// memory by cp.async: while one is used, the next is on its way.
//
// A tile in shared memory has rows of D bfloat16, in chunks of 8 (16 bytes) whose order is permuted by the row
// (swizzle), so that the 8 rows that one ldmatrix reads lie in different banks.
//
// Fragments (PTX mma.m16n8k16). Of a 16 x 8 accumulator, lane l holds c[0], c[1] = row l/4, columns 2(l%4) and the
// next, and c[2], c[3] = the same of row l/4 + 8. Two neighbouring accumulators, rounded, are exactly a 16 x 16 A
// operand, so the probabilities go from the first product to the second without leaving the registers.
//
// With `starts` (B, T) each query sees its own document alone: the keys from starts[query] on. As starts never falls, tiles
// before the first query's document and behind the last key's are left out, and most others need no mask. The kernels
// without (DOCUMENTS false) have none of this.

constexpr int ATTENTION_WARPS = 4, ATTENTION_THREADS = ATTENTION_WARPS * WARP;

/// Whether two blocks fit on an SM of every card: sm_86, sm_89 and sm_120 have 100 KB, of which each block takes one.
constexpr bool two_blocks_fit(size_t shared) { return 2 * (shared + 1024) <= 100 * 1024; }

/// Where chunk `chunk` of row `row` lies in a tile, in elements.
template <int D> DEVICE int swizzle(int row, int chunk) {
  if (D == 32) return row * D + (chunk ^ (row / 2 & 3)) * 8;  // two rows share the 128 bytes of all banks
  return row * D + (chunk ^ (row & 7)) * 8;
}

/// Starts the copy of a tile (ROWS, D) with rows `stride` apart; rows from `valid` on become zeros.
template <int D, int ROWS> DEVICE void load_tile(act* tile, const act* from, int stride, int valid) {
  constexpr int CHUNKS = D / 8;
  constexpr int PASS = ATTENTION_THREADS / CHUNKS;  // rows at a time: 8, 16 or 32, so the swizzle of a thread repeats
  int row0 = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
  act* to = tile + swizzle<D>(row0, chunk);
  from += row0 * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < ROWS / PASS; i++)
    cp_async16(to + i * PASS * D, from + i * PASS * stride, row0 + i * PASS < valid);
}

/// Starts the copy of one float for each of ROWS rows (lse, delta).
template <int ROWS> DEVICE void load_column(float* to, const float* from, int valid) {
  if (threadIdx.x < ROWS) cp_async4(to + threadIdx.x, from + threadIdx.x, (int)threadIdx.x < valid);
}

/// Where a lane points ldmatrix to, from the beginning of a tile on, in bytes: for an A operand, rows 0 to 15 and columns
/// 0 to 15, and for the same of tile^T.
template <int D> DEVICE unsigned lane_of_rows() { return swizzle<D>(lane_id() % 16, lane_id() / 16) * sizeof(act); }
template <int D> DEVICE unsigned lane_of_columns() {
  return swizzle<D>(lane_id() / 16 * 8 + lane_id() % 8, lane_id() / 8 % 2) * sizeof(act);
}
/// The address of the same n * 16 rows and k * 16 columns further. The swizzle is an exclusive or, and tiles begin at
/// multiples of 256 bytes, so this is another.
template <int D> DEVICE unsigned further(unsigned address, int n, int k) {
  return (address ^ k * 16 * (unsigned)sizeof(act)) + n * 16 * D * (unsigned)sizeof(act);
}

/// One step of A tile^T: c[f] (16, N) += a[f] (16, 16) tile[:, 16 k to 16 k + 15]^T for M fragments f; tile (N, D), of
/// which `columns` is this lane's address for tile^T.
template <int D, int N, int M>
DEVICE void multiply_transposed(float (*c)[N / 8][4], const uint32_t (*a)[4], unsigned columns, int k) {
#pragma unroll
  for (int n = 0; n < N / 16; n++) {
    uint32_t b[4];
    ldmatrix(b, further<D>(columns, n, k));
#pragma unroll
    for (int f = 0; f < M; f++) {
      mma_bf16(c[f][2 * n], a[f], b);
      mma_bf16(c[f][2 * n + 1], a[f], b + 2);
    }
  }
}

/// c[f] (16, D) += p[f] (16, N) tile for M fragments f; p is rounded to bfloat16 on the way; tile (N, D), of which
/// `rows` is this lane's address.
template <int D, int N, int M> DEVICE void multiply(float (*c)[D / 8][4], const float (*p)[N / 8][4], unsigned rows) {
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    uint32_t a[M][4];
#pragma unroll
    for (int f = 0; f < M; f++)
#pragma unroll
      for (int r = 0; r < 4; r++)
        a[f][r] = pack_bf16(p[f][2 * k + r / 2][r % 2 * 2], p[f][2 * k + r / 2][r % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t b[4];
      ldmatrix_transposed(b, further<D>(rows, k, n));
#pragma unroll
      for (int f = 0; f < M; f++) {
        mma_bf16(c[f][2 * n], a[f], b);
        mma_bf16(c[f][2 * n + 1], a[f], b + 2);
      }
    }
  }
}

/// Writes accumulators (16, D) times a factor per row half; rows from `valid` on do not exist.
template <int D>
DEVICE void store_rows(act* to, size_t stride, const float (*c)[4], float factor0, float factor1, int valid) {
  int row = lane_id() / 4, column = 2 * (lane_id() % 4);
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
    if (row < valid) *(uint32_t*)(to + row * stride + n * 8 + column) = pack_bf16(c[n][0] * factor0, c[n][1] * factor0);
    if (row + 8 < valid)
      *(uint32_t*)(to + (row + 8) * stride + n * 8 + column) = pack_bf16(c[n][2] * factor1, c[n][3] * factor1);
  }
}

/// The lanes l % 4 = 0..3 hold parts of the same rows.
DEVICE float quad_sum(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
DEVICE float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
  return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

/// Where things lie in qkv (B, T, H + 2K, D) for one batch and one key head.
struct Heads {
  const act *q, *k;    // at t = 0
  int k_to_v, stride;  // from a key to its value, from t to t + 1
};
DEVICE Heads heads_of(const act* qkv, int b, int h, int k, int T, int H, int K, int D) {
  int stride = (H + 2 * K) * D;
  const act* base = qkv + (size_t)b * T * stride;
  return {base + h * D, base + (H + k) * D, K * D, stride};
}

/// Where the documents of ROWS queries begin. Rows that do not exist are as the last one.
template <int ROWS> DEVICE void load_begins(int* begins, const int* starts, int first, int T) {
  if (threadIdx.x < ROWS) begins[threadIdx.x] = starts[min(first + (int)threadIdx.x, T - 1)];
}

template <int D> struct ForwardShape {
  static constexpr int M = D <= 64 ? 2 : 1;                 // fragments of 16 query rows per warp
  static constexpr int QUERIES = 16 * M * ATTENTION_WARPS;  // rows of a block
  static constexpr int KEYS = D <= 64 ? 64 : 48;            // rows of a streamed tile
  static constexpr size_t BEGINS_AT = 2 * 2 * KEYS * D * sizeof(act), SHARED = BEGINS_AT + QUERIES * sizeof(int);
  static_assert(two_blocks_fit(SHARED), "one warp for each scheduler leaves the tensor cores idle during softmax");
  static_assert(QUERIES <= 2 * KEYS, "the queries pass through one stage");
};

/// Block: QUERIES queries of one head; the queries with most keys come first. In each step: S = Q K^T, online softmax
/// with the running maximum and sum of each row, O = O rescaled + P V.
template <int D, bool DOCUMENTS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
    attention_forward_kernel(act* out, float* lse, const act* qkv, const int* starts, int T, int H, int K, float scale) {
  constexpr int M = ForwardShape<D>::M, QUERIES = ForwardShape<D>::QUERIES, KEYS = ForwardShape<D>::KEYS;
  DYNAMIC_SHARED(raw);
  act* stages = (act*)raw;  // 2 stages of a tile of K and a tile of V
  int h = blockIdx.x, b = blockIdx.y, block0 = (gridDim.z - 1 - blockIdx.z) * QUERIES,
      warp0 = block0 + warp_id() * 16 * M;
  Heads at = heads_of(qkv, b, h, h / (H / K), T, H, K, D);
  int *begins = (int*)(raw + ForwardShape<D>::BEGINS_AT), first_tile = 0;
  if (DOCUMENTS) {
    starts += (size_t)b * T;
    load_begins<QUERIES>(begins, starts, block0, T);
    begins += warp0 - block0;                      // of this warp
    first_tile = starts[block0] / (2 * KEYS) * 2;  // even: its stage is the first one
  }
  auto fetch = [&](int tile) {
    act* stage = stages + tile % 2 * 2 * KEYS * D;
    const act* k = at.k + (size_t)tile * KEYS * at.stride;
    load_tile<D, KEYS>(stage, k, at.stride, T - tile * KEYS);
    load_tile<D, KEYS>(stage + KEYS * D, k + at.k_to_v, at.stride, T - tile * KEYS);
  };

  act* queries = stages + 2 * KEYS * D;  // they pass through the second stage on their way to the registers
  load_tile<D, QUERIES>(queries, at.q + (size_t)block0 * at.stride, at.stride, T - block0);
  cp_async_commit();
  fetch(first_tile);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  uint32_t q[D / 16][M][4];
  unsigned own_rows = further<D>(shared_address(queries) + lane_of_rows<D>(), warp_id() * M, 0);
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int f = 0; f < M; f++) ldmatrix(q[k][f], further<D>(own_rows, f, k));

  unsigned rows = lane_of_rows<D>(), columns = lane_of_columns<D>();
  float o[M][D / 8][4] = {}, maximum[M][2], sum[M][2] = {};
#pragma unroll
  for (int f = 0; f < M; f++) maximum[f][0] = maximum[f][1] = -FLT_MAX;  // finite: a row may see none of the first keys
  float log2_scale = scale * LOG2E;
  int last_query = min(block0 + QUERIES, T) - 1, tiles = last_query / KEYS + 1;
  for (int tile = first_tile; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and every warp is done with the one before
    if (tile + 1 < tiles) fetch(tile + 1);
    cp_async_commit();
    int key0 = tile * KEYS;
    if (key0 > warp0 + 16 * M - 1) continue;  // this warp's queries are all older than these keys
    if (DOCUMENTS && begins[0] >= key0 + KEYS) continue;  // or all of later documents
    unsigned keys = shared_address(stages + tile % 2 * 2 * KEYS * D);

    float s[M][KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) multiply_transposed<D, KEYS, M>(s, q[k], keys + columns, k);
    if (key0 + KEYS - 1 > warp0 || (DOCUMENTS && begins[16 * M - 1] > key0)) {  // the diagonal or a document's beginning is here
#pragma unroll
      for (int f = 0; f < M; f++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int key = key0 + n * 8 + 2 * (lane_id() % 4) + e % 2, query = warp0 + f * 16 + lane_id() / 4 + e / 2 * 8;
            if (key > query || (DOCUMENTS && key < begins[f * 16 + lane_id() / 4 + e / 2 * 8])) s[f][n][e] = -INFINITY;
          }
    }
#pragma unroll
    for (int f = 0; f < M; f++)
#pragma unroll
      for (int r = 0; r < 2; r++) {  // row l/4, then row l/4 + 8
        float highest = maximum[f][r];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) highest = fmaxf(highest, fmaxf(s[f][n][2 * r], s[f][n][2 * r + 1]));
        highest = quad_max(highest);
        float rescale = exp2_approx((maximum[f][r] - highest) * log2_scale), offset = highest * log2_scale;
        maximum[f][r] = highest;
        sum[f][r] *= rescale;
#pragma unroll
        for (int n = 0; n < D / 8; n++) o[f][n][2 * r] *= rescale, o[f][n][2 * r + 1] *= rescale;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; e++) {
            s[f][n][e] = exp2_approx(s[f][n][e] * log2_scale - offset);
            sum[f][r] += s[f][n][e];
          }
      }
    multiply<D, KEYS, M>(o, s, keys + KEYS * D * (unsigned)sizeof(act) + rows);
  }
  cp_async_wait<0>();

#pragma unroll
  for (int f = 0; f < M; f++) {
    int row0 = warp0 + f * 16;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      sum[f][r] = quad_sum(sum[f][r]);
      int row = row0 + lane_id() / 4 + r * 8;
      if (lane_id() % 4 == 0 && row < T) lse[((size_t)b * H + h) * T + row] = maximum[f][r] * scale + logf(sum[f][r]);
    }
    store_rows<D>(out + (((size_t)b * T + row0) * H + h) * D, (size_t)H * D, o[f], 1 / sum[f][0], 1 / sum[f][1],
                  T - row0);
  }
}

/// Sizes of a backward kernel. OWN rows belong to a block, 16 M to a warp; tiles of STREAM rows pass by. Of the two own
/// operands, the first and, where there is room, the second are KEPT in registers; the other stays in shared memory.
template <int D, int FRAGMENTS, int ROWS> struct BackwardShape {
  static constexpr int M = FRAGMENTS, OWN = 16 * M * ATTENTION_WARPS, STREAM = ROWS, KEPT = D <= 64 ? 2 : 1;
  static constexpr size_t OWN_BYTES = OWN * D * sizeof(act), STAGE_BYTES = 2 * STREAM * D * sizeof(act);
  static constexpr bool SHARE = KEPT * OWN_BYTES <= STAGE_BYTES;  // what is kept passes through the second stage
  static constexpr size_t STAGES_AT = SHARE ? (2 - KEPT) * OWN_BYTES : 2 * OWN_BYTES;
  static constexpr size_t FIRST_AT = SHARE ? STAGES_AT + STAGE_BYTES : 0;
  static constexpr size_t SECOND_AT = KEPT == 2 ? FIRST_AT + OWN_BYTES : 0;
  static constexpr size_t COLUMNS_AT = STAGES_AT + 2 * STAGE_BYTES,
                          COLUMN_BYTES = 3 * STREAM * sizeof(float);  // lse, delta, starts
  static constexpr size_t SHARED = COLUMNS_AT + 2 * COLUMN_BYTES;
  static_assert(SHARE || KEPT == 2, "the first operand needs a place to pass through");
  static_assert(two_blocks_fit(SHARED), "one warp for each scheduler leaves the tensor cores idle between products");
};
template <int D> using QueryShape = BackwardShape<D, D <= 64 ? 2 : 1, 32>;  // dQ
template <int D> using KeyShape = BackwardShape<D, 1, D <= 64 ? 64 : 32>;   // dK and dV

/// One of the two operands (OWN, D) that a block owns.
template <int D, class Shape, bool KEPT> struct OwnRows {
  static constexpr int M = Shape::M;
  uint32_t fragments[KEPT ? D / 16 : 1][M][4];
  unsigned address;  // this lane's in the rows of this warp

  DEVICE void load_step(OwnRows& rows, int step, int k) {
#pragma unroll
    for (int f = 0; f < M; f++) ldmatrix(rows.fragments[step][f], further<D>(rows.address, f, k));
  }

  DEVICE void begin(OwnRows& rows, const void* tile) {
    rows.address = further<D>(shared_address(tile) + lane_of_rows<D>(), warp_id() * M, 0);
    if (KEPT)
#pragma unroll
      for (int k = 0; k < D / 16; k++) load_step(rows, k, k);
  }

  /// c[f] (16, STREAM) += own rows (16, D) of fragment f times other^T; other (STREAM, D), of which `columns` is this
  /// lane's address for other^T
  DEVICE void multiply_by(float (*c)[Shape::STREAM / 8][4], OwnRows& rows, unsigned columns) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
      int step = KEPT ? k : 0;
      if (!KEPT) load_step(rows, 0, k);
      multiply_transposed<D, Shape::STREAM, M>(c, rows.fragments[step], columns, k);
    }
  }
};
/// What the backward kernels read and write; delta = rowsum(dO O), (B, H, T).
struct Backward {
  act* dqkv;
  const float* delta;
  const act* dout;
  const float* lse;
  const act* qkv;
  const int* starts;
  int B, T, H, K;
  float scale;
};

/// Neighbouring lanes, D / 8 of them, have a row (b, t, h) of dO and O.
template <int D>
static __global__ void attention_delta_kernel(float* delta, const act* dout, const act* out, int B, int T, int H) {
  constexpr int LANES = D / 8;
  unsigned i = (unsigned)global_thread(), row = i / LANES, t = row / H;
  bool valid = row < (unsigned)(B * T * H);
  float x[8] = {}, y[8] = {}, sum = 0;
  if (valid) {
    load<8>(x, dout + (size_t)i * 8);
    load<8>(y, out + (size_t)i * 8);
  }
#pragma unroll
  for (int e = 0; e < 8; e++) sum += x[e] * y[e];
#pragma unroll
  for (int mask = LANES / 2; mask; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
  if (valid && i % LANES == 0) delta[((size_t)(t / T) * H + row % H) * T + t % T] = sum;
}

/// dQ of OWN queries of one head, from block0 on; walks over the keys up to the diagonal: P = exp(S - lse),
/// dP = dO V^T, dS = P (dP - delta), dQ += dS K.
template <int D, bool DOCUMENTS> DEVICE void attention_dq(const Backward& p, unsigned char* raw, int h, int b, int block0) {
  using Shape = QueryShape<D>;
  using First = OwnRows<D, Shape, true>;
  using Second = OwnRows<D, Shape, Shape::KEPT == 2>;
  constexpr int M = Shape::M, OWN = Shape::OWN, KEYS = Shape::STREAM;
  act *stages = (act*)(raw + Shape::STAGES_AT), *first = (act*)(raw + Shape::FIRST_AT),
      *second = (act*)(raw + Shape::SECOND_AT);
  int T = p.T, H = p.H, warp0 = block0 + warp_id() * 16 * M, out_stride = H * D;
  Heads at = heads_of(p.qkv, b, h, h / (H / p.K), T, H, p.K, D);
  const act* dout = p.dout + ((size_t)b * T * H + h) * D;  // at t = 0
  int *begins = (int*)(raw + Shape::COLUMNS_AT), first_tile = 0;
  static_assert(OWN * sizeof(int) <= 2 * Shape::COLUMN_BYTES, "a place that nothing else here uses");
  if (DOCUMENTS) {
    const int* starts = p.starts + (size_t)b * T;
    load_begins<OWN>(begins, starts, block0, T);
    begins += warp0 - block0;                      // of this warp
    first_tile = starts[block0] / (2 * KEYS) * 2;  // even: its stage is the first one
  }
  auto fetch = [&](int tile) {
    act* stage = stages + tile % 2 * 2 * KEYS * D;
    const act* k = at.k + (size_t)tile * KEYS * at.stride;
    load_tile<D, KEYS>(stage, k, at.stride, T - tile * KEYS);
    load_tile<D, KEYS>(stage + KEYS * D, k + at.k_to_v, at.stride, T - tile * KEYS);
  };

  load_tile<D, OWN>(first, at.q + (size_t)block0 * at.stride, at.stride, T - block0);
  load_tile<D, OWN>(second, dout + (size_t)block0 * out_stride, out_stride, T - block0);
  cp_async_commit();
  fetch(first_tile);
  cp_async_commit();

  float row_delta[M][2], row_lse[M][2];  // of rows l/4 and l/4 + 8 of each fragment
#pragma unroll
  for (int f = 0; f < M; f++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      int row = warp0 + f * 16 + lane_id() / 4 + r * 8;
      size_t stat = ((size_t)b * H + h) * T + row;
      row_delta[f][r] = row < T ? p.delta[stat] : 0.0f;
      row_lse[f][r] = row < T ? p.lse[stat] * LOG2E : 0.0f;
    }

  cp_async_wait<1>();
  __syncthreads();
  First q;
  Second d_o;
  First::begin(q, first);
  Second::begin(d_o, second);
  unsigned rows = lane_of_rows<D>(), columns = lane_of_columns<D>();
  float dq[M][D / 8][4] = {}, log2_scale = p.scale * LOG2E;
  int last_query = min(block0 + OWN, T) - 1, tiles = last_query / KEYS + 1;
  for (int tile = first_tile; tile < tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and every warp is done with the one before
    if (tile + 1 < tiles) fetch(tile + 1);
    cp_async_commit();
    int key0 = tile * KEYS;
    if (key0 > warp0 + 16 * M - 1) continue;  // this warp's queries are all older than these keys
    if (DOCUMENTS && begins[0] >= key0 + KEYS) continue;  // or all of later documents
    unsigned keys = shared_address(stages + tile % 2 * 2 * KEYS * D);
    float s[M][KEYS / 8][4] = {}, dp[M][KEYS / 8][4] = {};
    First::multiply_by(s, q, keys + columns);
    Second::multiply_by(dp, d_o, keys + KEYS * D * (unsigned)sizeof(act) + columns);
    bool masked = key0 + KEYS - 1 > warp0 || (DOCUMENTS && begins[16 * M - 1] > key0);
#pragma unroll
    for (int f = 0; f < M; f++)
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float weight = exp2_approx(s[f][n][e] * log2_scale - row_lse[f][e / 2]);  // the forward pass kept only the sum
          s[f][n][e] = weight * (dp[f][n][e] - row_delta[f][e / 2]);                // dS, without the scale
        }
    if (masked) {
#pragma unroll
      for (int f = 0; f < M; f++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int key = key0 + n * 8 + 2 * (lane_id() % 4) + e % 2, query = warp0 + f * 16 + lane_id() / 4 + e / 2 * 8;
            if (key > query || (DOCUMENTS && key < begins[f * 16 + lane_id() / 4 + e / 2 * 8])) s[f][n][e] = 0;
          }
    }
    multiply<D, KEYS, M>(dq, s, keys + rows);  // dQ += dS K; the scale comes at the end, once
  }
  cp_async_wait<0>();
#pragma unroll
  for (int f = 0; f < M; f++) {
    int row0 = warp0 + f * 16;
    store_rows<D>(p.dqkv + ((size_t)b * T + row0) * at.stride + h * D, at.stride, dq[f], p.scale, p.scale, T - row0);
  }
}

/// How many of the tiles of queries hold one whose document begins no later than last_key. starts: from their first query on.
DEVICE int tiles_of_documents(const int* starts, int queries, int tiles, int last_key) {
  for (int tile = 0; tile < tiles; tile += WARP) {
    int own = tile + lane_id();
    unsigned seen = __ballot_sync(~0u, own < tiles && starts[own * queries] <= last_key);
    if (seen != ~0u) return tile + __popc(seen);  // as starts never falls, the first so many
  }
  return tiles;
}

/// dK and dV of OWN keys of one key head, from block0 on; walks over the queries from the diagonal on, for each query
/// head of the group in turn, so that the sum over the group stays in registers. It works on S^T = K Q^T: rows are keys,
/// columns are queries.
template <int D, bool DOCUMENTS> DEVICE void attention_dkv(const Backward& p, unsigned char* raw, int k, int b, int block0) {
  using Shape = KeyShape<D>;
  using First = OwnRows<D, Shape, true>;
  using Second = OwnRows<D, Shape, Shape::KEPT == 2>;
  constexpr int OWN = Shape::OWN, QUERIES = Shape::STREAM;
  act *stages = (act*)(raw + Shape::STAGES_AT), *first = (act*)(raw + Shape::FIRST_AT),
      *second = (act*)(raw + Shape::SECOND_AT);
  float* columns = (float*)(raw + Shape::COLUMNS_AT);
  int T = p.T, H = p.H, K = p.K, warp0 = block0 + warp_id() * 16, group = H / K, first_tile = block0 / QUERIES,
      tiles = (T + QUERIES - 1) / QUERIES - first_tile;
  if (DOCUMENTS) tiles = tiles_of_documents(p.starts + b * T + first_tile * QUERIES, QUERIES, tiles, block0 + OWN - 1);
  Heads at = heads_of(p.qkv, b, k * group, k, T, H, K, D);
  const act* dout = p.dout + ((size_t)b * T * H + k * group) * D;  // of the group at t = 0
  size_t stats = ((size_t)b * H + k * group) * T;
  const float *lse = p.lse + stats, *delta = p.delta + stats;
  auto fetch = [&](int step, int h, int tile) {
    int query0 = (first_tile + tile) * QUERIES, valid = T - query0;
    act* stage = stages + step % 2 * 2 * QUERIES * D;
    float* column = columns + step % 2 * 2 * QUERIES;
    load_tile<D, QUERIES>(stage, at.q + h * D + (size_t)query0 * at.stride, at.stride, valid);
    load_tile<D, QUERIES>(stage + QUERIES * D, dout + h * D + (size_t)query0 * H * D, H * D, valid);
    load_column<QUERIES>(column, lse + h * T + query0, valid);
    load_column<QUERIES>(column + QUERIES, delta + h * T + query0, valid);
    if (DOCUMENTS) load_column<QUERIES>(columns + (4 + step % 2) * QUERIES, (const float*)p.starts + (b * T + query0), valid);
  };

  load_tile<D, OWN>(first, at.k + (size_t)block0 * at.stride, at.stride, T - block0);
  load_tile<D, OWN>(second, at.k + at.k_to_v + (size_t)block0 * at.stride, at.stride, T - block0);
  cp_async_commit();
  fetch(0, 0, 0);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  First keys;
  Second values;
  First::begin(keys, first);
  Second::begin(values, second);
  unsigned rows = lane_of_rows<D>(), lane_columns = lane_of_columns<D>();
  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {}, log2_scale = p.scale * LOG2E;
  int h = 0, tile = 0;  // of the next step
  for (int step = 0; h < group; step++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and every warp is done with the one before
    int query0 = (first_tile + tile) * QUERIES;
    if (++tile == tiles) tile = 0, h++;
    if (h < group) fetch(step + 1, h, tile);
    cp_async_commit();
    if (query0 + QUERIES - 1 < warp0) continue;  // these queries are all older than this warp's keys
    unsigned queries = shared_address(stages + step % 2 * 2 * QUERIES * D), d_o = queries + QUERIES * D * (unsigned)sizeof(act);
    const float* column = columns + step % 2 * 2 * QUERIES;
    const int* begins = (const int*)columns + (4 + step % 2) * QUERIES;  // of the documents of these queries
    if (DOCUMENTS && begins[0] > warp0 + 15) continue;     // which are all later than this warp's keys
    float s[1][QUERIES / 8][4] = {}, dp[1][QUERIES / 8][4] = {};
    First::multiply_by(s, keys, queries + lane_columns);
    Second::multiply_by(dp, values, d_o + lane_columns);
    bool masked = query0 < warp0 + 15;
    if (DOCUMENTS) masked |= D == 128 || begins[min(QUERIES, T - query0) - 1] > warp0;  // to ask more than D would spill
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
      int c = n * 8 + 2 * (lane_id() % 4);
      float2 log_sum = *(const float2*)(column + c), row_delta = *(const float2*)(column + QUERIES + c);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float weight = exp2_approx(s[0][n][e] * log2_scale - (e % 2 ? log_sum.y : log_sum.x) * LOG2E);
        s[0][n][e] = weight;  // P^T
        dp[0][n][e] = weight * (dp[0][n][e] - (e % 2 ? row_delta.y : row_delta.x));
      }
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int query = n * 8 + 2 * (lane_id() % 4) + e % 2, key = warp0 + lane_id() / 4 + e / 2 * 8;
          if (query0 + query < key || (DOCUMENTS && begins[query] > key)) s[0][n][e] = dp[0][n][e] = 0;
        }
    }
    multiply<D, QUERIES, 1>(dv, s, d_o + rows);       // dV += P^T dO
    multiply<D, QUERIES, 1>(dk, dp, queries + rows);  // dK += dS^T Q
  }
  cp_async_wait<0>();
  act* to = p.dqkv + ((size_t)b * T + warp0) * at.stride;
  store_rows<D>(to + (H + k) * D, at.stride, dk[0], p.scale, p.scale, T - warp0);
  store_rows<D>(to + (H + K + k) * D, at.stride, dv[0], 1, 1, T - warp0);
}

/// Of one layer, in one launch: the blocks of dK and dV, then those of dQ, each kind beginning with those that have most
/// to do. The shorter ones fill the SMs that the last long ones leave idle. No atomics: a block owns its rows.
template <int D, bool DOCUMENTS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
    attention_backward_kernel(const __grid_constant__ Backward p) {
  using Queries = QueryShape<D>;
  using Keys = KeyShape<D>;
  DYNAMIC_SHARED(raw);
  int block = blockIdx.x, key_blocks = (p.T + Keys::OWN - 1) / Keys::OWN * p.B * p.K;
  if (block < key_blocks)
    return attention_dkv<D, DOCUMENTS>(p, raw, block % p.K, block / p.K % p.B, block / (p.K * p.B) * Keys::OWN);
  block = gridDim.x - 1 - block;  // the last queries have most keys
  attention_dq<D, DOCUMENTS>(p, raw, block % p.H, block / p.H % p.B, block / (p.H * p.B) * Queries::OWN);
}

/// Shared memory above 48 KB has to be asked for.
#define RESERVE_SHARED(kernel, bytes) \
  CUDA(cudaFuncSetAttribute((const void*)(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))

template <int D>
static int forward_of(act* out, float* lse, const act* qkv, const int* starts, int B, int T, int H, int K) {
  using Shape = ForwardShape<D>;
  auto forward_kernel = starts ? attention_forward_kernel<D, true> : attention_forward_kernel<D, false>;
  RESERVE_SHARED(forward_kernel, Shape::SHARED);
  LAUNCH(forward_kernel, dim3(H, B, ceil_div(T, Shape::QUERIES)), ATTENTION_THREADS, Shape::SHARED, out, lse, qkv, starts, T, H,
         K, 1 / sqrtf(D));
  return 0;
}

template <int D>
static int backward_of(act* dqkv, float* delta, const act* dout, const act* out, const float* lse, const act* qkv,
                       const int* starts, int B, int T, int H, int K) {
  constexpr size_t SHARED = std::max(QueryShape<D>::SHARED, KeyShape<D>::SHARED);
  size_t rows = (size_t)B * T * H;
  size_t blocks = (size_t)B * (K * ceil_div(T, KeyShape<D>::OWN) + H * ceil_div(T, QueryShape<D>::OWN));
  CHECK_LAUNCH(rows * D / 8 + blocks, B, T, H, D);
  LAUNCH(attention_delta_kernel<D>, ceil_div(rows * D / 8, BLOCK), BLOCK, 0, delta, dout, out, B, T, H);
  auto backward_kernel = starts ? attention_backward_kernel<D, true> : attention_backward_kernel<D, false>;
  RESERVE_SHARED(backward_kernel, SHARED);
  Backward p = {dqkv, delta, dout, lse, qkv, starts, B, T, H, K, 1 / sqrtf(D)};
  LAUNCH(backward_kernel, blocks, ATTENTION_THREADS, SHARED, p);
  return 0;
}

static int check_attention(int B, int T, int H, int K, int D) {
  CHECK(H % K == 0, "H=%d is not a multiple of K=%d (%s)", H, K, SIZE_TEXT(B, T, D));
  CHECK(D == 32 || D == 64 || D == 128,
        "the head size must be 32, 64 or 128: choose n_head so that n_embd / n_head is one of these (%s)",
        SIZE_TEXT(B, T, H, K, D));
  CHECK(B < 65536 && T <= 65535 * 64, "B must be below 65536 and T at most %d (%s)", 65535 * 64, SIZE_TEXT(B, T));
  return 0;
}

#include "attention_hopper.cuh"

/// Which attention kernels to use, "auto", "portable" or "hopper". Hopper's have never run on a GPU: where they could be
/// used they are compared with the portable ones first.
static int choose_attention(const std::string& asked) {
  const cudaDeviceProp& p = gpu.properties;
  CHECK(asked == "auto" || asked == "portable" || asked == "hopper", "attention=%s must be auto, portable or hopper",
        asked.c_str());
  gpu.hopper = false, gpu.attention = "portable";
  bool is_hopper = p.major == 9 && p.minor == 0, must = asked == "hopper";
  CHECK(is_hopper || !must, "attention=hopper needs sm_90 (H100, H200), and %s is sm_%d%d: leave it at auto", p.name,
        p.major, p.minor);
  if (is_hopper && asked != "portable") {
    std::string wrong;
    if (!hopper::find_driver()) wrong = "the driver lacks cuTensorMapEncodeTiled";
    if (wrong.empty()) TRY((hopper::check<64, false>(&wrong)));
    if (wrong.empty()) TRY((hopper::check<128, false>(&wrong)));
    if (wrong.empty()) TRY((hopper::check<64, true>(&wrong)));
    if (wrong.empty()) TRY((hopper::check<128, true>(&wrong)));
    CHECK(wrong.empty() || !must, "attention=hopper cannot be used on %s: %s: leave it at auto", p.name,
          wrong.c_str());
    gpu.hopper = wrong.empty();
    gpu.attention = wrong.empty() ? "hopper, which agrees with the portable kernels"
                                  : "portable, because Hopper's kernels cannot be used: " + wrong;
  }
  return 0;
}

int attention_forward(act* out, float* lse, const act* qkv, const int32_t* starts, int32_t B, int32_t T, int32_t H, int32_t K,
                      int32_t D) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(out, lse, qkv));
  TRY(check_attention(B, T, H, K, D));
  CHECK(aligned16(out, qkv), "out and qkv must be aligned to 16 bytes");
  if (D == 64 && gpu.hopper) return hopper::forward<64>(out, lse, qkv, starts, B, T, H, K);
  if (D == 128 && gpu.hopper) return hopper::forward<128>(out, lse, qkv, starts, B, T, H, K);
  if (D == 32) return forward_of<32>(out, lse, qkv, starts, B, T, H, K);
  if (D == 64) return forward_of<64>(out, lse, qkv, starts, B, T, H, K);
  return forward_of<128>(out, lse, qkv, starts, B, T, H, K);
}

int attention_backward(act* dqkv, float* delta, const act* dout, const act* out, const float* lse, const act* qkv,
                       const int32_t* starts, int32_t B, int32_t T, int32_t H, int32_t K, int32_t D) {
  BEGIN(SIZES(B, T, H, K, D), ADDRESSES(dqkv, delta, dout, out, lse, qkv));
  TRY(check_attention(B, T, H, K, D));
  CHECK(aligned16(dqkv, dout, out, qkv), "dqkv, dout, out and qkv must be aligned to 16 bytes");
  if (D == 64 && gpu.hopper) return hopper::backward<64>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K);
  if (D == 128 && gpu.hopper) return hopper::backward<128>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K);
  if (D == 32) return backward_of<32>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K);
  if (D == 64) return backward_of<64>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K);
  return backward_of<128>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K);
}

/// Copies the keys and values of new tokens into the caches (B, K, T_max, D). One thread copies 8 elements.
static __global__ void append_cache_kernel(act* k_cache, act* v_cache, const act* qkv, int B, int T, int pos, int T_max,
                                           int H, int K, int D) {
  unsigned i = (unsigned)global_thread(), chunk = i % (D / 8), rest = i / (D / 8), k = rest % K, row = rest / K;
  if (row >= (unsigned)(B * T)) return;
  const act* from = qkv + ((size_t)row * (H + 2 * K) + H + k) * D + chunk * 8;
  size_t to = (((size_t)(row / T) * K + k) * T_max + pos + row % T) * D + chunk * 8;
  *(Pack<8>*)(k_cache + to) = *(const Pack<8>*)from;
  *(Pack<8>*)(v_cache + to) = *(const Pack<8>*)(from + (size_t)K * D);
}

/// Block: one query of one head. D/8 neighbouring lanes take one key at a time and keep their own running maximum, sum
/// and output; these are merged at the end.
template <int D>
static __global__ void attention_cached_kernel(act* out, const act* k_cache, const act* v_cache, const act* qkv, int T,
                                               int pos, int T_max, int H, int K, float scale) {
  constexpr int LANES = D / 8, TEAMS = ATTENTION_THREADS / LANES;  // lanes of a key, keys at a time
  __shared__ float team_maximum[ATTENTION_THREADS / 4], team_sum[ATTENTION_THREADS / 4],
      team_out[ATTENTION_THREADS / 4][128];
  int h = blockIdx.x, t = blockIdx.y, b = blockIdx.z, team = threadIdx.x / LANES, column = threadIdx.x % LANES * 8;
  size_t head = ((size_t)b * K + h / (H / K)) * T_max * D;
  float q[8], o[8] = {}, maximum = -INFINITY, sum = 0;
  load<8>(q, qkv + (((size_t)b * T + t) * (H + 2 * K) + h) * D + column);
  int keys = pos + t + 1;
  for (int key0 = 0; key0 < keys; key0 += TEAMS) {
    int key = key0 + team;
    bool valid = key < keys;
    float k[8] = {}, v[8] = {}, s = 0;
    size_t cached = head + (size_t)key * D + column;
    if (valid) {
      load<8>(k, k_cache + cached);
      load<8>(v, v_cache + cached);
    }
#pragma unroll
    for (int e = 0; e < 8; e++) s += q[e] * k[e];
#pragma unroll
    for (int mask = LANES / 2; mask; mask /= 2) s += __shfl_xor_sync(~0u, s, mask);
    if (!valid) continue;
    s *= scale;
    float highest = fmaxf(maximum, s), rescale = __expf(maximum - highest), p = __expf(s - highest);
    maximum = highest;
    sum = sum * rescale + p;
#pragma unroll
    for (int e = 0; e < 8; e++) o[e] = o[e] * rescale + p * v[e];
  }
  team_maximum[team] = maximum, team_sum[team] = sum;
#pragma unroll
  for (int e = 0; e < 8; e++) team_out[team][column + e] = o[e];
  __syncthreads();
  if (threadIdx.x < D) {
    float highest = -INFINITY, total = 0, value = 0;
    for (int i = 0; i < TEAMS; i++) highest = fmaxf(highest, team_maximum[i]);
    for (int i = 0; i < TEAMS; i++) {
      float factor = __expf(team_maximum[i] - highest);  // 0 for a team without keys
      total += factor * team_sum[i];
      value += factor * team_out[i][threadIdx.x];
    }
    out[(((size_t)b * T + t) * H + h) * D + threadIdx.x] = __float2bfloat16_rn(value / total);
  }
}

int attention_cached(act* out, act* k_cache, act* v_cache, const act* qkv, int32_t B, int32_t T, int32_t pos,
                     int32_t T_max, int32_t H, int32_t K, int32_t D) {
  BEGIN(SIZES(B, T, T_max, H, K, D), ADDRESSES(out, k_cache, v_cache, qkv));
  TRY(check_attention(B, T, H, K, D));
  CHECK(pos >= 0 && pos <= T_max - T, "pos=%d and T=%d do not fit into a cache of T_max=%d (%s)", pos, T, T_max,
        SIZE_TEXT(B, H, K, D));
  CHECK(T < 65536, "T=%d must be below 65536 (%s)", T, SIZE_TEXT(B, H, K, D));
  CHECK(aligned16(k_cache, v_cache, qkv), "the caches and qkv must be aligned to 16 bytes");
  size_t chunks = (size_t)B * T * K * D / 8;
  CHECK_LAUNCH(chunks, B, T, K, D);
  LAUNCH(append_cache_kernel, ceil_div(chunks, BLOCK), BLOCK, 0, k_cache, v_cache, qkv, B, T, pos, T_max, H, K, D);
  dim3 grid(H, T, B);
  float scale = 1 / sqrtf((float)D);
  if (D == 32)
    LAUNCH(attention_cached_kernel<32>, grid, ATTENTION_THREADS, 0, out, k_cache, v_cache, qkv, T, pos, T_max, H, K,
           scale);
  if (D == 64)
    LAUNCH(attention_cached_kernel<64>, grid, ATTENTION_THREADS, 0, out, k_cache, v_cache, qkv, T, pos, T_max, H, K,
           scale);
  if (D == 128)
    LAUNCH(attention_cached_kernel<128>, grid, ATTENTION_THREADS, 0, out, k_cache, v_cache, qkv, T, pos, T_max, H, K,
           scale);
  return 0;
}

// ---- linear: out = x weight^T (+ residual), by cuBLASLt ------------------------------------------------------------
//
// cuBLASLt thinks in columns: a row-major (R, C) array is a column-major (C, R) matrix. So each product below is
// written transposed: out^T = weight x^T, dx^T = weight^T dout^T, dweight^T = x^T dout.
//
// A plan is made at the first use of a shape and then only looked up, so that later calls can be captured into a CUDA
// graph. Algorithms add up in different orders, so results repeat bit for bit only with the same choice: a program can
// read the choices and give them back (gemm_choices(), gemm_choose()). For large shapes without one, the candidates of the
// heuristic are timed once; a file for this GPU and this version of the library proposes what an earlier process found.

struct Product {
  bool transpose_a, transpose_b;
  int m, n, k;  // op(A) (m, k), op(B) (k, n), D (m, n), column-major
  bool float_out, adds;  // adds: to C, the residual or the gradient of earlier micro-steps
};
using ProductKey = std::array<int, 7>;

struct Plan {
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, d;
  cublasLtMatmulAlgo_t algo;
};

static std::map<ProductKey, Plan> plans;
static bool may_time = true;  // the candidates of a shape that gemm_choose() has not been given

constexpr int CANDIDATES = 32;
#ifdef LOAM_EMU
constexpr int TIMED_RUNS = 1;
constexpr double TIMED_FROM = 1e4;
#else
constexpr int TIMED_RUNS = 4;
constexpr double TIMED_FROM = 1e9;  // multiply-adds; below that the heuristic's first choice will do
#endif

static ProductKey key_of(const Product& p) { return {p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.float_out, p.adds}; }
static Product product_of(const ProductKey& k) { return {k[0] != 0, k[1] != 0, k[2], k[3], k[4], k[5] != 0, k[6] != 0}; }

/// Whether its algorithm may differ from process to process.
static bool is_timed(const Product& p) { return (double)p.m * p.n * p.k >= TIMED_FROM; }

#define BLAS(call)                                                                                \
  do {                                                                                            \
    cublasStatus_t status_ = (call);                                                              \
    if (status_ != CUBLAS_STATUS_SUCCESS)                                                         \
      FAIL("%scuBLASLt status %d for m=%d n=%d k=%d (%s, kernels.cu:%d)", whose_failure(), (int)status_, p.m, p.n, p.k, \
           blas.path, __LINE__);                                                                  \
  } while (0)

static int run_product(const Plan& plan, const Product& p, const cublasLtMatmulAlgo_t& algo, const void* a,
                       const void* b, const void* c, void* d, float alpha = 1, float beta = 1) {
  if (!p.adds) beta = 0;
  BLAS(blas.cublasLtMatmul(blas.handle, plan.operation, &alpha, a, plan.a, b, plan.b, &beta, c, plan.d, d, plan.d,
                           &algo, gpu.workspace, WORKSPACE_BYTES, gpu.stream));
  return 0;
}

// ---- choices as text: a line is the seven numbers of the key, then the 64 bytes of the algorithm as 8 hexadecimal words

static std::string line_of(const ProductKey& key, const cublasLtMatmulAlgo_t& algo) {
  std::string line;
  for (int v : key) line += std::to_string(v) + " ";
  for (int i = 0; i < 8; i++) {
    char word[24];
    snprintf(word, sizeof word, "%llx%c", (unsigned long long)algo.data[i], i < 7 ? ' ' : '\n');
    line += word;
  }
  return line;
}

static bool read_line(const std::string& line, ProductKey* key, cublasLtMatmulAlgo_t* algo) {
  ProductKey& k = *key;
  unsigned long long w[8];
  int end = 0;
  int numbers = sscanf(line.c_str(), "%d %d %d %d %d %d %d %llx %llx %llx %llx %llx %llx %llx %llx%n", &k[0], &k[1], &k[2],
                       &k[3], &k[4], &k[5], &k[6], &w[0], &w[1], &w[2], &w[3], &w[4], &w[5], &w[6], &w[7], &end);
  if (numbers != 15 || end != (int)line.size() || k[2] < 1 || k[3] < 1 || k[4] < 1) return false;
  for (int i = 0; i < 8; i++) algo->data[i] = w[i];
  return key_of(product_of(k)) == k;
}

/// $LOAM_CACHE or ~/.cache/loam, then gemm-<GPU>-<version>.txt; "" where there is no home, as for the emulator.
static std::string proposals_path() {
  const char *cache = getenv("LOAM_CACHE"), *home = getenv("HOME");
#ifdef LOAM_EMU
  home = nullptr;
#endif
  if (!cache && !home) return "";
  std::string directory = cache ? cache : std::string(home) + "/.cache/loam", gpu_name = gpu.properties.name;
  if (!cache) mkdir((std::string(home) + "/.cache").c_str(), 0777);
  mkdir(directory.c_str(), 0777);
  for (char& c : gpu_name)
    if (c == ' ' || c == '/') c = '_';
  return directory + "/gemm-" + gpu_name + "-" + std::to_string(blas.version) + ".txt";
}

static bool find_proposal(const Product& p, cublasLtMatmulAlgo_t* algo) {
  ProductKey key;
  for (const std::string& line : split(read_text(proposals_path()), '\n'))
    if (read_line(line, &key, algo) && key == key_of(p)) return true;
  return false;
}

/// Appends the choice; where that is not possible the next process will time again.
static void propose(const Product& p, const cublasLtMatmulAlgo_t& algo) {
  FILE* file = fopen(proposals_path().c_str(), "a");
  if (!file) return;
  std::string line = line_of(key_of(p), algo);
  fwrite(line.data(), 1, line.size(), file);
  fclose(file);
}

/// Whether cuBLASLt runs this product so, in the workspace that there is and with no sum in bfloat16.
static bool accepts(const Plan& plan, const cublasLtMatmulAlgo_t& algo) {
  cublasLtMatmulHeuristicResult_t result;
  uint32_t scheme = 0;
  size_t written;
  return blas.cublasLtMatmulAlgoCheck(blas.handle, plan.operation, plan.a, plan.b, plan.d, plan.d, &algo, &result) ==
             CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= WORKSPACE_BYTES &&
         blas.cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                                   &written) == CUBLAS_STATUS_SUCCESS &&
         (scheme & ~(uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) == 0;
}

/// Milliseconds of a few runs of one candidate after one to warm up; infinity if it does not run.
static float time_candidate(const Plan& plan, const Product& p, const cublasLtMatmulAlgo_t& algo, const void* a,
                            const void* b, const void* c, void* d) {
  float ms = INFINITY;
  cudaEvent_t start, stop;
  if (cudaEventCreate(&start) != cudaSuccess) return ms;
  if (cudaEventCreate(&stop) != cudaSuccess) return cudaEventDestroy(start), ms;
  bool ran = run_product(plan, p, algo, a, b, c, d) == 0;
  cudaEventRecord(start, gpu.stream);
  for (int i = 0; i < TIMED_RUNS && ran; i++) ran = run_product(plan, p, algo, a, b, c, d) == 0;
  cudaEventRecord(stop, gpu.stream);
  if (cudaEventSynchronize(stop) != cudaSuccess || cudaEventElapsedTime(&ms, start, stop) != cudaSuccess || !ran)
    ms = INFINITY;
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  if (!ran) {  // which is no failure of the op: neither the text nor CUDA's error may stay
    failure[0] = 0;
    cudaGetLastError();
  }
  return ms;
}

/// Times the candidates on a scratch output (d may hold sums that must not be lost) and keeps the fastest.
static void choose_by_time(Plan* plan, const Product& p, const cublasLtMatmulHeuristicResult_t* candidates, int count,
                           const void* a, const void* b, const void* c, const void* d) {
  void* scratch = nullptr;
  size_t bytes = (size_t)p.m * p.n * (p.float_out ? sizeof(float) : sizeof(act));
  if (failure[0] || cudaMalloc(&scratch, bytes) != cudaSuccess) {
    cudaGetLastError();  // no room to measure: the heuristic's choice stays
    return;
  }
  float best = INFINITY;
  for (int i = 0; i < count; i++) {
    float ms = time_candidate(*plan, p, candidates[i].algo, a, b, c == d ? scratch : c, scratch);
    if (ms < best) best = ms, plan->algo = candidates[i].algo;
  }
  cudaFree(scratch);
  if (best < INFINITY) propose(p, plan->algo);
}

/// Rows of ld elements that start at a 16-byte boundary are as aligned as ld lets them be.
static unsigned alignment(size_t ld_bytes) {
  unsigned bytes = 16;
  while (ld_bytes % bytes) bytes /= 2;
  return bytes;
}

static int get_candidates(const Plan& plan, const Product& p, cublasLtMatmulHeuristicResult_t* results, int* count) {
  cublasLtMatmulPreference_t preference;
  BLAS(blas.cublasLtMatmulPreferenceCreate(&preference));
  unsigned align_a = alignment(sizeof(act) * (p.transpose_a ? p.k : p.m)),
           align_b = alignment(sizeof(act) * (p.transpose_b ? p.n : p.k));
  unsigned align_d = alignment((p.float_out ? sizeof(float) : sizeof(act)) * p.m);
  auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const void* value, size_t bytes) {
    blas.cublasLtMatmulPreferenceSetAttribute(preference, which, value, bytes);
  };
  uint64_t workspace = WORKSPACE_BYTES;
  uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // parts of a sum are never added in bfloat16
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes);
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a, sizeof align_a);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b, sizeof align_b);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_d, sizeof align_d);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_d, sizeof align_d);
  cublasStatus_t status = blas.cublasLtMatmulAlgoGetHeuristic(blas.handle, plan.operation, plan.a, plan.b, plan.d,
                                                              plan.d, preference, CANDIDATES, results, count);
  blas.cublasLtMatmulPreferenceDestroy(preference);
  BLAS(status);
  int usable = 0;  // the heuristic also returns what it found wanting
  for (int i = 0; i < *count; i++)
    if (results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= WORKSPACE_BYTES)
      results[usable++] = results[i];
  *count = usable;
  CHECK(*count > 0, "cuBLASLt offers no algorithm for m=%d n=%d k=%d (%s)", p.m, p.n, p.k, blas.path);
  return 0;
}

/// What a product multiplies, without the algorithm.
static int describe_product(Plan* plan, const Product& p) {
  cublasOperation_t op_a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  int rows_a = p.transpose_a ? p.k : p.m, columns_a = p.transpose_a ? p.m : p.k;
  int rows_b = p.transpose_b ? p.n : p.k, columns_b = p.transpose_b ? p.k : p.n;
  BLAS(blas.cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  BLAS(blas.cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
  BLAS(blas.cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
  BLAS(blas.cublasLtMatrixLayoutCreate(&plan->a, CUDA_R_16BF, rows_a, columns_a, rows_a));
  BLAS(blas.cublasLtMatrixLayoutCreate(&plan->b, CUDA_R_16BF, rows_b, columns_b, rows_b));
  BLAS(blas.cublasLtMatrixLayoutCreate(&plan->d, p.float_out ? CUDA_R_32F : CUDA_R_16BF, p.m, p.n, p.m));
  return 0;
}

/// A proposal, or what is fastest on these operands; for small shapes, and where nothing may be timed, the first candidate.
static int choose_algorithm(Plan* plan, const Product& p, const void* a, const void* b, const void* c, const void* d) {
  bool timed = may_time && is_timed(p);
  if (timed && find_proposal(p, &plan->algo) && accepts(*plan, plan->algo)) return 0;
  cublasLtMatmulHeuristicResult_t results[CANDIDATES];
  int count = 0;
  TRY(get_candidates(*plan, p, results, &count));
  plan->algo = results[0].algo;
  if (timed && count > 1) choose_by_time(plan, p, results, count, a, b, c, d);
  return 0;
}

int gemm_choices(char* lines, int32_t capacity) {
  BEGIN(SIZES(capacity), ADDRESSES(lines));
  std::string all;
  for (const auto& [key, plan] : plans)
    if (is_timed(product_of(key))) all += line_of(key, plan.algo);
  CHECK((int64_t)all.size() < capacity, "the lines need %zu bytes, but capacity is %d", all.size() + 1, capacity);
  memcpy(lines, all.c_str(), all.size() + 1);
  return 0;
}

int gemm_choose(int32_t* refused, const char* lines, int32_t times) {
  BEGIN(SIZES(), ADDRESSES(refused, lines));
  *refused = 0, may_time = times != 0;
  for (const std::string& line : split(lines, '\n')) {
    ProductKey key;
    Plan plan;
    if (!read_line(line, &key, &plan.algo)) {
      ++*refused;
      continue;
    }
    if (plans.count(key)) continue;
    TRY(describe_product(&plan, product_of(key)));
    if (accepts(plan, plan.algo))
      plans.emplace(key, plan);
    else
      ++*refused;
  }
  return 0;
}

/// d = alpha op(a) op(b), plus beta c if the product adds; c and d have the same layout and may be one array.
static int multiply_matrices(const Product& p, const void* a, const void* b, const void* c, void* d, float alpha = 1,
                             float beta = 1) {
  auto at = plans.find(key_of(p));
  if (at == plans.end()) {
    Plan plan;
    TRY(describe_product(&plan, p));
    TRY(choose_algorithm(&plan, p, a, b, c, d));
    at = plans.emplace(key_of(p), plan).first;
  }
  return run_product(at->second, p, at->second.algo, a, b, c, d, alpha, beta);
}

int linear_forward(act* out, const act* x, const act* weight, const act* residual, int32_t N, int32_t IN, int32_t OUT) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(out, x, weight));
  return multiply_matrices({true, false, OUT, N, IN, false, residual != nullptr}, weight, x, residual ? residual : out,
                           out);
}

int linear_forward_bf16(act* out, const act* x, const void* weight, const act* residual, int32_t N, int32_t IN, int32_t OUT) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(out, x, weight));
  return linear_forward(out, x, (const act*)weight, residual, N, IN, OUT);  // act is bfloat16
}

int linear_dgrad(act* dx, const act* dout, const act* weight, int32_t N, int32_t IN, int32_t OUT, int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dx, dout, weight));
  return multiply_matrices({false, false, IN, N, OUT, false, accumulate != 0}, weight, dout, dx, dx);
}

int linear_dgrad_bf16(act* dx, const act* dout, const void* weight, int32_t N, int32_t IN, int32_t OUT,
                      int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dx, dout, weight));
  return linear_dgrad(dx, dout, (const act*)weight, N, IN, OUT, accumulate);
}

int linear_wgrad(float* dweight, const act* dout, const act* x, int32_t N, int32_t IN, int32_t OUT,
                 int32_t accumulate) {
  BEGIN(SIZES(N, IN, OUT), ADDRESSES(dweight, dout, x));
  return multiply_matrices({false, true, IN, OUT, N, true, accumulate != 0}, x, dout, dweight, dweight);
}

int gram(act* out, const act* x, const act* add, int32_t N, int32_t C, int32_t transposed, float alpha, float beta) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x));
  CHECK(out != x && out != add, "out may be neither x nor add (%s)", SIZE_TEXT(N, C));
  const bool turned = transposed != 0;
  return multiply_matrices({!turned, turned, N, N, C, false, add != nullptr}, x, x, add ? add : out, out, alpha, beta);
}

// ---- swiglu: h = silu(gate) * up -----------------------------------------------------------------------------------

FORMULA float fast_exp(float x) { return __expf(x); }
FORMULA float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

template <int VEC> static __global__ void swiglu_forward_kernel(act* h, const act* gate_up, int N, int F) {
  unsigned i = (unsigned)global_thread(), row = i / (F / VEC), f = i % (F / VEC) * VEC;
  if (row >= (unsigned)N) return;
  const act* gates = gate_up + (size_t)row * 2 * F + f;
  float gate[VEC], up[VEC];
  load<VEC>(gate, gates);
  load<VEC>(up, gates + F);
#pragma unroll
  for (int e = 0; e < VEC; e++) gate[e] *= sigmoid(gate[e]) * up[e];
  store<VEC>(h + (size_t)row * F + f, gate);
}

int swiglu_forward(act* h, const act* gate_up, int32_t N, int32_t F) {
  BEGIN(SIZES(N, F), ADDRESSES(h, gate_up));
  CHECK_LAUNCH((size_t)N * F, N, F);
  if (F % 8 == 0 && aligned16(h, gate_up))
    LAUNCH(swiglu_forward_kernel<8>, ceil_div((size_t)N * F / 8, BLOCK), BLOCK, 0, h, gate_up, N, F);
  else
    LAUNCH(swiglu_forward_kernel<1>, ceil_div((size_t)N * F, BLOCK), BLOCK, 0, h, gate_up, N, F);
  return 0;
}

/// A thread reads its gate and up before it writes their gradients: dgate_up may be gate_up.
template <int VEC>
static __global__ void swiglu_backward_kernel(act* dgate_up, act* h, const act* dh, const act* gate_up, int N, int F) {
  unsigned i = (unsigned)global_thread(), row = i / (F / VEC), f = i % (F / VEC) * VEC;
  if (row >= (unsigned)N) return;
  size_t gate_at = (size_t)row * 2 * F + f, h_at = (size_t)row * F + f;
  float gate[VEC], up[VEC], d[VEC], product[VEC];
  load<VEC>(gate, gate_up + gate_at);
  load<VEC>(up, gate_up + gate_at + F);
  load<VEC>(d, dh + h_at);
#pragma unroll
  for (int e = 0; e < VEC; e++) {
    float s = sigmoid(gate[e]), silu = gate[e] * s, u = up[e];
    product[e] = silu * u;
    up[e] = d[e] * silu;  // h is linear in up
    gate[e] = d[e] * u * s * (1.0f + gate[e] * (1.0f - s));  // silu' = s + g s', and s' = s (1 - s)
  }
  store<VEC>(dgate_up + gate_at, gate);
  store<VEC>(dgate_up + gate_at + F, up);
  if (h) store<VEC>(h + h_at, product);
}

int swiglu_backward(act* dgate_up, act* h, const act* dh, const act* gate_up, int32_t N, int32_t F) {
  BEGIN(SIZES(N, F), ADDRESSES(dgate_up, dh, gate_up));
  CHECK_LAUNCH((size_t)N * F, N, F);
  if (F % 8 == 0 && aligned16(dgate_up, h, dh, gate_up))
    LAUNCH(swiglu_backward_kernel<8>, ceil_div((size_t)N * F / 8, BLOCK), BLOCK, 0, dgate_up, h, dh, gate_up, N, F);
  else
    LAUNCH(swiglu_backward_kernel<1>, ceil_div((size_t)N * F, BLOCK), BLOCK, 0, dgate_up, h, dh, gate_up, N, F);
  return 0;
}

// ---- add -----------------------------------------------------------------------------------------------------------

template <int VEC> static __global__ void add_kernel(act* out, const act* a, const act* b, size_t n) {
  size_t i = global_thread() * VEC;
  if (i >= n) return;
  float x[VEC], y[VEC];
  load<VEC>(x, a + i);
  load<VEC>(y, b + i);
#pragma unroll
  for (int e = 0; e < VEC; e++) x[e] += y[e];
  store<VEC>(out + i, x);
}

int add(act* out, const act* a, const act* b, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, a, b));
  CHECK_LAUNCH(n / BLOCK, n);
  if (n % 8 == 0 && aligned16(out, a, b))
    LAUNCH(add_kernel<8>, ceil_div(n / 8, BLOCK), BLOCK, 0, out, a, b, (size_t)n);
  else
    LAUNCH(add_kernel<1>, ceil_div(n, BLOCK), BLOCK, 0, out, a, b, (size_t)n);
  return 0;
}

// ---- element-wise: the functions stand in formulas.h ---------------------------------------------------------------

/// out = f(x) or, where dout is there, dout * f'(x).
template <int KIND, int VEC>
static __global__ void unary_kernel(act* out, const act* dout, const act* x, float parameter, size_t n) {
  size_t i = global_thread() * VEC;
  if (i >= n) return;
  float v[VEC], d[VEC] = {};
  load<VEC>(v, x + i);
  if (dout) load<VEC>(d, dout + i);
#pragma unroll
  for (int e = 0; e < VEC; e++) {
    Unary f = unary<KIND>(v[e], parameter);
    v[e] = dout ? d[e] * f.slope : f.value;
  }
  store<VEC>(out + i, v);
}

static int launch_unary(act* out, const act* dout, const act* x, int kind, float parameter, size_t n) {
  CHECK_LAUNCH(n / BLOCK, (int64_t)n);
  bool wide = n % 8 == 0 && aligned16(out, dout, x);
#define CASE(KIND)                                                                                           \
  if (wide)                                                                                                  \
    LAUNCH((unary_kernel<KIND, 8>), ceil_div(n / 8, BLOCK), BLOCK, 0, out, dout, x, parameter, n);           \
  else                                                                                                       \
    LAUNCH((unary_kernel<KIND, 1>), ceil_div(n, BLOCK), BLOCK, 0, out, dout, x, parameter, n)
  SWITCH_UNARY(kind, CASE)
#undef CASE
  return 0;
}

int unary_forward(act* out, const act* x, int32_t kind, float parameter, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
  return launch_unary(out, nullptr, x, kind, parameter, n);
}

int unary_backward(act* dx, const act* dout, const act* x, int32_t kind, float parameter, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(dx, dout, x));
  return launch_unary(dx, dout, x, kind, parameter, n);
}

template <int VEC> static __global__ void mul_kernel(act* out, const act* a, const act* b, size_t n) {
  size_t i = global_thread() * VEC;
  if (i >= n) return;
  float x[VEC], y[VEC];
  load<VEC>(x, a + i);
  load<VEC>(y, b + i);
#pragma unroll
  for (int e = 0; e < VEC; e++) x[e] *= y[e];
  store<VEC>(out + i, x);
}

int mul(act* out, const act* a, const act* b, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, a, b));
  CHECK_LAUNCH(n / BLOCK, n);
  if (n % 8 == 0 && aligned16(out, a, b))
    LAUNCH(mul_kernel<8>, ceil_div(n / 8, BLOCK), BLOCK, 0, out, a, b, (size_t)n);
  else
    LAUNCH(mul_kernel<1>, ceil_div(n, BLOCK), BLOCK, 0, out, a, b, (size_t)n);
  return 0;
}

/// One thread has the four elements of a Philox block.
static __global__ void dropout_kernel(act* out, const act* x, size_t n, uint32_t limit, float keep, uint64_t key) {
  size_t i = global_thread() * 4;
  if (i >= n) return;
  Mask mask = dropout_mask(i / 4, limit, keep, key);
#pragma unroll
  for (int e = 0; e < 4; e++)
    if (i + e < n) from_float(out[i + e], to_float(x[i + e]) * mask.factor[e]);
}

int dropout(act* out, const act* x, int64_t n, float rate, uint64_t key) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
  CHECK(rate >= 0.0f && rate < 1.0f, "rate=%g must be at least 0 and below 1 (%s)", rate, SIZE_TEXT(n));
  CHECK_LAUNCH(n / BLOCK, n);
  const Dropping drop(rate);
  LAUNCH(dropout_kernel, ceil_div(ceil_div(n, 4), BLOCK), BLOCK, 0, out, x, (size_t)n, drop.limit, drop.keep, key);
  return 0;
}

// ---- rows and columns -----------------------------------------------------------------------------------------------

template <int VEC>
static __global__ void bias_forward_kernel(act* out, const act* x, const act* bias, size_t n, int C) {
  size_t i = global_thread() * VEC;
  if (i >= n) return;
  float v[VEC], b[VEC];
  load<VEC>(v, x + i);
  load<VEC>(b, bias + i % C);
#pragma unroll
  for (int e = 0; e < VEC; e++) v[e] += b[e];
  store<VEC>(out + i, v);
}

int bias_forward(act* out, const act* x, const act* bias, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x, bias));
  size_t n = (size_t)N * C;
  CHECK_LAUNCH(n / BLOCK, N, C);
  if (C % 8 == 0 && aligned16(out, x, bias))
    LAUNCH(bias_forward_kernel<8>, ceil_div(n / 8, BLOCK), BLOCK, 0, out, x, bias, n, C);
  else
    LAUNCH(bias_forward_kernel<1>, ceil_div(n, BLOCK), BLOCK, 0, out, x, bias, n, C);
  return 0;
}

int bias_backward(float* dbias, const act* dout, int32_t N, int32_t C, int32_t accumulate) {
  BEGIN(SIZES(N, C), ADDRESSES(dbias, dout));
  return sum_columns(dbias, dout, nullptr, nullptr, N, C, accumulate);
}

/// One thread copies VEC elements of a row.
template <int VEC>
static __global__ void copy_columns_kernel(act* dst, const act* src, int N, int columns, int dst_stride, int src_stride,
                                           int accumulate) {
  unsigned i = (unsigned)global_thread(), row = i / (columns / VEC), c = i % (columns / VEC) * VEC;
  if (row >= (unsigned)N) return;
  act* to = dst + (size_t)row * dst_stride + c;
  float v[VEC], before[VEC] = {};
  load<VEC>(v, src + (size_t)row * src_stride + c);
  if (accumulate) load<VEC>(before, to);
#pragma unroll
  for (int e = 0; e < VEC; e++) v[e] += before[e];
  store<VEC>(to, v);
}

int copy_columns(act* dst, const act* src, int32_t N, int32_t columns, int32_t dst_stride, int32_t src_stride,
                 int32_t accumulate) {
  BEGIN(SIZES(N, columns, dst_stride, src_stride), ADDRESSES(dst, src));
  CHECK(columns <= dst_stride && columns <= src_stride, "a stride must be at least columns=%d (%s)", columns,
        SIZE_TEXT(N, dst_stride, src_stride));
  size_t n = (size_t)N * columns;
  CHECK_LAUNCH(n, N, columns);
  if (columns % 8 == 0 && dst_stride % 8 == 0 && src_stride % 8 == 0 && aligned16(dst, src))
    LAUNCH(copy_columns_kernel<8>, ceil_div(n / 8, BLOCK), BLOCK, 0, dst, src, N, columns, dst_stride, src_stride,
           accumulate);
  else
    LAUNCH(copy_columns_kernel<1>, ceil_div(n, BLOCK), BLOCK, 0, dst, src, N, columns, dst_stride, src_stride,
           accumulate);
  return 0;
}

static int check_columns(int N, int V, int V_stride) {
  CHECK(V_stride >= V, "V_stride=%d must be at least V=%d (N=%d)", V_stride, V, N);
  CHECK(V_stride < (1 << 30), "V_stride=%d must be below 2^30 (N=%d)", V_stride, N);
  return 0;
}

/// log(sum(e^x)) over a row, in every thread of the block that has it.
DEVICE float block_logsumexp(const act* row, int n) {
  float top = -INFINITY, sum = 0;
  for (int c = threadIdx.x; c < n; c += BLOCK) top = fmaxf(top, to_float(row[c]));
  top = block_max(top);
  for (int c = threadIdx.x; c < n; c += BLOCK) sum += exp2_approx((to_float(row[c]) - top) * LOG2E);
  return top + logf(block_sum(sum));
}

/// One block per row, as below.
static __global__ void softmax_forward_kernel(act* out, const act* x, int C) {
  const act* row = x + (size_t)blockIdx.x * C;
  float lse = block_logsumexp(row, C);
  for (int c = threadIdx.x; c < C; c += BLOCK)
    from_float(out[(size_t)blockIdx.x * C + c], exp2_approx((to_float(row[c]) - lse) * LOG2E));
}

int softmax_forward(act* out, const act* x, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(out, x));
  LAUNCH(softmax_forward_kernel, N, BLOCK, 0, out, x, C);
  return 0;
}

static __global__ void softmax_backward_kernel(act* dx, const act* dout, const act* out, int C) {
  size_t at = (size_t)blockIdx.x * C;
  float sum = 0;  // what the row as a whole would gain, which its sum of 1 does not allow
  for (int c = threadIdx.x; c < C; c += BLOCK) sum += to_float(out[at + c]) * to_float(dout[at + c]);
  sum = block_sum(sum);
  for (int c = threadIdx.x; c < C; c += BLOCK)
    from_float(dx[at + c], to_float(out[at + c]) * (to_float(dout[at + c]) - sum));
}

int softmax_backward(act* dx, const act* dout, const act* out, int32_t N, int32_t C) {
  BEGIN(SIZES(N, C), ADDRESSES(dx, dout, out));
  LAUNCH(softmax_backward_kernel, N, BLOCK, 0, dx, dout, out, C);
  return 0;
}

static __global__ void logsumexp_forward_kernel(act* out, float* lse, const act* x, int V, int V_stride) {
  float value = block_logsumexp(x + (size_t)blockIdx.x * V_stride, V);
  if (threadIdx.x > 0) return;
  lse[blockIdx.x] = value;
  from_float(out[blockIdx.x], value);
}

int logsumexp_forward(act* out, float* lse, const act* x, int32_t N, int32_t V, int32_t V_stride) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(out, lse, x));
  TRY(check_columns(N, V, V_stride));
  LAUNCH(logsumexp_forward_kernel, N, BLOCK, 0, out, lse, x, V, V_stride);
  return 0;
}

static __global__ void logsumexp_backward_kernel(act* dx, const act* dout, const float* lse, const act* x, int V,
                                                 int V_stride) {
  size_t at = (size_t)blockIdx.x * V_stride;
  float d = to_float(dout[blockIdx.x]), l = lse[blockIdx.x];
  for (int c = threadIdx.x; c < V_stride; c += BLOCK)
    from_float(dx[at + c], c < V ? d * exp2_approx((to_float(x[at + c]) - l) * LOG2E) : 0.0f);
}

int logsumexp_backward(act* dx, const act* dout, const float* lse, const act* x, int32_t N, int32_t V,
                       int32_t V_stride) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(dx, dout, lse, x));
  TRY(check_columns(N, V, V_stride));
  LAUNCH(logsumexp_backward_kernel, N, BLOCK, 0, dx, dout, lse, x, V, V_stride);
  return 0;
}

// ---- cross entropy: softmax and loss, the gradient in place of the logits ------------------------------------------

constexpr int CROSS_ENTROPY_THREADS = 512;

/// One block per row. The row is read twice; it is at most 128 KB and the second reading comes from the L2 cache. All is
/// in powers of 2, e^x = 2^(x LOG2E), so that an element takes one multiply-add before its exp2; columns behind V and the
/// target are looked for once in VEC elements. Both readings make the same powers, so that their sum is 1 however large
/// the logits are: `offset`, about the largest x LOG2E, is rounded.
template <int VEC>
static __global__ void __launch_bounds__(CROSS_ENTROPY_THREADS)
    cross_entropy_kernel(act* logits, float* losses, const int* targets, int V, int V_stride, float grad_scale,
                         int backward, Fault* fault) {
  act* row = logits + (size_t)blockIdx.x * V_stride;
  int target = targets[blockIdx.x];
  if (target >= V) {
    if (threadIdx.x == 0) report_fault(fault, FAULT_TARGET, (int)blockIdx.x, target, V);
    target = -1;
  }
  float maximum = -1e30f;  // finite: where all logits are -infinity so far, their distance to it is not NaN
  float offset = maximum * LOG2E, sum = 0;  // of 2^(logit LOG2E - offset) over this thread's logits
  for (int c = threadIdx.x * VEC; c < V; c += CROSS_ENTROPY_THREADS * VEC) {
    float x[VEC], part = 0;
    load<VEC>(x, row + c);
    if (c + VEC > V)
#pragma unroll
      for (int e = 0; e < VEC; e++)
        if (c + e >= V) x[e] = -INFINITY;
#pragma unroll
    for (int e = 0; e < VEC; e++) maximum = fmaxf(maximum, x[e]);
    float before = offset;
    offset = maximum * LOG2E;
#pragma unroll
    for (int e = 0; e < VEC; e++) part += exp2_approx(fmaf(x[e], LOG2E, -offset));
    sum = sum * exp2_approx(before - offset) + part;
  }
  // Read before the barriers inside block_max: after them another thread overwrites it.
  float target_logit = target >= 0 ? to_float(row[target]) : 0.0f;
  float highest = block_max(offset);
  sum = block_sum(sum * exp2_approx(offset - highest));
  float target_bits = log2f(sum) - fmaf(target_logit, LOG2E, -highest);  // -log2 of its probability
  if (threadIdx.x == 0) losses[blockIdx.x] = target >= 0 ? target_bits / LOG2E : 0.0f;
  if (!backward) return;
  float factor = grad_scale / sum;
  for (int c = threadIdx.x * VEC; c < V_stride; c += CROSS_ENTROPY_THREADS * VEC) {
    float x[VEC];
    load<VEC>(x, row + c);
#pragma unroll
    for (int e = 0; e < VEC; e++) x[e] = exp2_approx(fmaf(x[e], LOG2E, -highest)) * factor;
    if ((unsigned)(target - c) < VEC)
#pragma unroll
      for (int e = 0; e < VEC; e++)
        if (c + e == target) x[e] -= grad_scale;
    if (target < 0 || c + VEC > V)
#pragma unroll
      for (int e = 0; e < VEC; e++)
        if (target < 0 || c + e >= V) x[e] = 0.0f;  // padding may hold anything, even NaN
    store<VEC>(row + c, x);
  }
}

int cross_entropy(act* logits, float* losses, const int32_t* targets, int32_t N, int32_t V, int32_t V_stride,
                  float grad_scale, int32_t backward) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(logits, losses, targets));
  TRY(check_columns(N, V, V_stride));
  if (V_stride % 8 == 0 && aligned16(logits))
    LAUNCH(cross_entropy_kernel<8>, N, CROSS_ENTROPY_THREADS, 0, logits, losses, targets, V, V_stride, grad_scale,
           backward, gpu.fault);
  else
    LAUNCH(cross_entropy_kernel<1>, N, CROSS_ENTROPY_THREADS, 0, logits, losses, targets, V, V_stride, grad_scale,
           backward, gpu.fault);
  return 0;
}

static __global__ void sum_scaled_kernel(float* out, const float* x, int n, float scale, int accumulate) {
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = (accumulate ? *out : 0.0f) + scale * sum;
}

int sum_scaled(float* out, const float* x, int32_t n, float scale, int32_t accumulate) {
  BEGIN(SIZES(n), ADDRESSES(out, x));
  LAUNCH(sum_scaled_kernel, 1, 1024, 0, out, x, n, scale, accumulate);
  return 0;
}

// ---- sampling: from logits to tokens -------------------------------------------------------------------------------
//
// Tokens stand in order of their logits, the largest first, of equal ones the earlier first. They are not sorted: a place
// in the order is found by the digits of its logit, from sums over the tokens that share a digit. Probabilities are whole
// numbers, so that no sum depends on the order in which threads add to it.

typedef unsigned long long count_t;  // as atomicAdd() takes it

constexpr int SAMPLE_THREADS = 1024;  // at most; at least as many as a digit has values

/// The larger of two logits has the smaller key; 0 and -0 have one.
DEVICE unsigned order_key(act logit) {
  float f = __bfloat162float(logit);
  unsigned bits = f == 0 ? 0u : __float_as_uint(f);
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

/// The sum of v over the block, in every thread.
DEVICE count_t block_total(count_t v) {
  __shared__ count_t total;
  __syncthreads();  // nobody still reads the previous one
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, v);
  __syncthreads();
  return total;
}

struct Place {
  unsigned key;
  count_t before;  // the sum over tokens of smaller keys
  count_t rank;    // among the tokens of this key
  count_t weight;  // of each of them
};

/// The first place in the order where the running sum of weights, of ones where counting, exceeds target.
DEVICE Place find_place(count_t target, const act* logits, const count_t* weights, bool counting, int V) {
  __shared__ count_t sums[256];
  __shared__ Place place;
  __syncthreads();  // nobody still reads the previous one
  if (threadIdx.x == 0) place = {0, 0, 0, 0};
  unsigned known = 0;  // the bits of the key that have been found
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) sums[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < V; i += blockDim.x) {
      unsigned key = order_key(logits[i]);
      if (((key ^ place.key) & known) == 0) atomicAdd(&sums[key >> shift & 255], counting ? 1 : weights[i]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned digit = 0;
      while (place.before + sums[digit] <= target) place.before += sums[digit++];
      place.key |= digit << shift;
    }
    known |= 255u << shift;
    __syncthreads();
  }
  for (int i = threadIdx.x; weights && i < V; i += blockDim.x)
    if (order_key(logits[i]) == place.key) place.weight = weights[i];  // all write the same
  __syncthreads();
  if (threadIdx.x == 0) place.rank = (target - place.before) / (counting ? 1 : place.weight);
  __syncthreads();
  return place;
}

/// The token at a place. Each thread counts the tokens of its key in a range of its own.
DEVICE void write_token(int* id, Place place, const act* logits, int V) {
  __shared__ int counts[SAMPLE_THREADS];
  int range = (V + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * range, end = min(V, begin + range);
  int count = 0;
  for (int i = begin; i < end; i++) count += order_key(logits[i]) == place.key;
  counts[threadIdx.x] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  int rank = (int)place.rank, thread = 0;
  while (rank >= counts[thread]) rank -= counts[thread++];
  int i = thread * range;
  while (order_key(logits[i]) != place.key || rank-- > 0) i++;
  *id = i;
}

static __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_kernel(int* id, const act* logits, count_t* weights, int V, double temperature, int top_k, double top_p,
                  unsigned random, double unit) {
  float highest = -INFINITY;
  int damaged = 0;
  for (int i = threadIdx.x; i < V; i += blockDim.x) {
    float logit = __bfloat162float(logits[i]);
    damaged |= !isfinite(logit);
    highest = fmaxf(highest, logit);
  }
  if (__syncthreads_or(damaged)) {
    if (threadIdx.x == 0) *id = -1;
    return;
  }
  if (temperature == 0) return write_token(id, find_place(0, logits, nullptr, true, V), logits, V);
  highest = block_max(highest);
  count_t sum = 0;
  for (int i = threadIdx.x; i < V; i += blockDim.x) {
    weights[i] = (count_t)rint(exp(((double)__bfloat162float(logits[i]) - highest) / temperature) * unit);
    sum += weights[i];
  }
  count_t total = block_total(sum);
  if (top_k > 0 && top_k < V) {
    Place last = find_place(top_k - 1, logits, weights, true, V);
    sum = 0;
    for (int i = threadIdx.x; i < V; i += blockDim.x)
      if (order_key(logits[i]) < last.key) sum += weights[i];
    total = block_total(sum) + (last.rank + 1) * last.weight;
  }
  if (top_p < 1) {
    count_t wanted = (count_t)ceil(top_p * (double)total);
    Place last = find_place((wanted > total ? total : wanted) - 1, logits, weights, false, V);
    total = last.before + (last.rank + 1) * last.weight;
  }
  count_t target = (total >> 32) * random + ((total & 0xffffffffu) * random >> 32);  // random / 2^32 of it, rounded down
  write_token(id, find_place(target, logits, weights, false, V), logits, V);
}

int sample(int32_t* id, const act* logits, int32_t V, double temperature, int32_t top_k, double top_p,
           uint32_t random) {
  BEGIN(SIZES(V), ADDRESSES(id, logits));
  CHECK((size_t)V * 8 + 8 <= WORKSPACE_BYTES, "V=%d must be below %zu", V, WORKSPACE_BYTES / 8);
  CHECK(temperature >= 0 && top_k >= 0 && top_p > 0 && top_p <= 1,
        "temperature=%g and top_k=%d must be at least 0, top_p=%g above 0 and at most 1", temperature, top_k, top_p);
  int bits = 50;  // of the largest probability: their sum fits into 62
  while (V > (int64_t)1 << (62 - bits)) bits--;
  int* chosen = (int*)gpu.workspace;
  int threads = V < 8 * SAMPLE_THREADS ? 256 : SAMPLE_THREADS;
  LAUNCH(sample_kernel, 1, threads, 0, chosen, logits, (count_t*)gpu.workspace + 1, V, temperature, top_k, top_p,
         random, (double)((int64_t)1 << bits));
  return copy_to_host(id, chosen, sizeof *chosen);
}

/// One block per row. Each of the likeliest is the largest logit that comes after the one before it in the order.
static __global__ void __launch_bounds__(BLOCK)
    logprobs_kernel(float* values, int* ids, const act* logits, const int* targets, int V, int V_stride, int n) {
  const act* x = logits + (size_t)blockIdx.x * V_stride;
  values += (size_t)blockIdx.x * (1 + n);
  ids += (size_t)blockIdx.x * n;
  __shared__ count_t best;  // the key, then the token
  float highest = -INFINITY, sum = 0;
  for (int v = threadIdx.x; v < V; v += BLOCK) highest = fmaxf(highest, __bfloat162float(x[v]));
  highest = block_max(highest);
  for (int v = threadIdx.x; v < V; v += BLOCK) sum += expf(__bfloat162float(x[v]) - highest);
  float log_sum = highest + logf(block_sum(sum));
  int target = targets[blockIdx.x];
  if (threadIdx.x == 0) values[0] = target < 0 ? 0.0f : __bfloat162float(x[target]) - log_sum;
  count_t before = 0;  // the first after this one
  for (int j = 0; j < n; j++) {
    if (threadIdx.x == 0) best = ~0ull;
    __syncthreads();
    for (int v = threadIdx.x; v < V; v += BLOCK) {
      count_t place = (count_t)order_key(x[v]) << 32 | (unsigned)v;
      if (place >= before) atomicMin(&best, place);
    }
    __syncthreads();
    before = best + 1;
    if (threadIdx.x == 0) {
      ids[j] = (int)(best & 0xffffffffu);
      values[1 + j] = __bfloat162float(x[ids[j]]) - log_sum;
    }
    __syncthreads();  // all have read it
  }
}

int logprobs(float* values, int32_t* ids, const act* logits, const int32_t* targets, int32_t N, int32_t V,
             int32_t V_stride, int32_t n) {
  BEGIN(SIZES(N, V, V_stride), ADDRESSES(values, ids, logits, targets));
  CHECK(V_stride >= V && n >= 0 && n <= V, "V=%d must be at least n=%d and at most V_stride=%d, n at least 0", V, n,
        V_stride);
  CHECK((size_t)N * (2 + 2 * n) * 4 <= WORKSPACE_BYTES, "N=%d rows of n=%d are too many for the scratch memory", N, n);
  for (int i = 0; i < N; i++) CHECK(targets[i] < V, "targets[%d]=%d must be less than V=%d", i, targets[i], V);
  int32_t *device_targets = (int32_t*)gpu.workspace, *device_ids = device_targets + N;
  float* device_values = (float*)(device_ids + (size_t)N * n);
  TRY(copy_to_device(device_targets, targets, N * 4));
  op = __func__;
  LAUNCH(logprobs_kernel, N, BLOCK, 0, device_values, device_ids, logits, device_targets, V, V_stride, n);
  TRY(copy_to_host(values, device_values, (size_t)N * (1 + n) * 4));
  return n == 0 ? 0 : copy_to_host(ids, device_ids, (size_t)N * n * 4);
}

// ---- optimizer: everything reads its scalars from the control block ------------------------------------------------

constexpr int SUMSQ_BLOCKS = 1024;  // the same on every GPU, so that the order of the sum is too

/// The sum of v over a block of BLOCK threads, in thread 0, in a fixed order.
DEVICE double block_sum_double(double v) {
  __shared__ double values[BLOCK];
  values[threadIdx.x] = v;
  __syncthreads();
  for (int half = BLOCK / 2; half; half /= 2) {
    if ((int)threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    __syncthreads();
  }
  return values[0];
}

static __global__ void grad_sumsq_kernel(double* partial, const float* grad, size_t n) {
  double sum = 0;
  for (size_t i = global_thread(); i < n; i += (size_t)gridDim.x * BLOCK) sum += (double)grad[i] * grad[i];
  sum = block_sum_double(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void sum_partials_kernel(double* sumsq, const double* partial, int n, int accumulate) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += BLOCK) sum += partial[i];
  sum = block_sum_double(sum);
  if (threadIdx.x == 0) *sumsq = (accumulate ? *sumsq : 0.0) + sum;
}

int grad_sumsq(double* sumsq, const float* grad, int64_t n, int32_t accumulate) {
  BEGIN(SIZES(n), ADDRESSES(sumsq, grad));
  double* partial = (double*)gpu.workspace;
  int blocks = n < SUMSQ_BLOCKS * BLOCK * 4 ? ceil_div(n, BLOCK * 4) : SUMSQ_BLOCKS;
  LAUNCH(grad_sumsq_kernel, blocks, BLOCK, 0, partial, grad, (size_t)n);
  LAUNCH(sum_partials_kernel, 1, BLOCK, 0, sumsq, partial, blocks, accumulate);
  return 0;
}

static __global__ void step_control_kernel(float* control, const double* sumsq, float grad_clip, float beta1,
                                           float beta2) {
  if (threadIdx.x == 0) decide_update(control, *sumsq, grad_clip, beta1, beta2);
}

int step_control(float* control, const double* sumsq, float grad_clip, float beta1, float beta2) {
  BEGIN(SIZES(), ADDRESSES(control, sumsq));
  CHECK(grad_clip >= 0 && beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
        "grad_clip=%g beta1=%g beta2=%g: grad_clip must not be negative, the betas must lie in [0, 1)", grad_clip,
        beta1, beta2);
  LAUNCH(step_control_kernel, 1, WARP, 0, control, sumsq, grad_clip, beta1, beta2);
  return 0;
}

// A float32 master is kept as its bfloat16 weight and what rounding left of it: the distance between their bits as whole
// numbers, -32768 to 32768. `rest` is the lower half of that. Both ends are halfway and round to an even weight, and 16
// bits do not tell them apart; a bit in `ties` is 1 at the upper one.

struct Split { act weight; uint16_t rest; bool tie; };

DEVICE Split split(float master) {
  act weight = __float2bfloat16_rn(master);
  int distance = (int)(__float_as_uint(master) - __float_as_uint(__bfloat162float(weight)));
  return {weight, (uint16_t)distance, distance == 32768};
}
DEVICE float join(act weight, uint16_t rest, bool tie) {
  return __uint_as_float(__float_as_uint(__bfloat162float(weight)) + (unsigned)(int16_t)rest + (tie ? 65536u : 0u));
}

constexpr int BITS = 8;  // of a byte of ties: a thread has the elements of one, so that no other writes it

static __global__ void split_master_kernel(act* weight, uint16_t* rest, uint8_t* ties, const float* master, size_t n) {
  size_t first = global_thread() * BITS;
  if (first >= n) return;
  unsigned bits = 0;
  for (int bit = 0; bit < BITS && first + bit < n; bit++) {
    Split s = split(master[first + bit]);
    weight[first + bit] = s.weight;
    rest[first + bit] = s.rest;
    bits |= (unsigned)s.tie << bit;
  }
  ties[first / BITS] = (uint8_t)bits;
}

int split_master(act* weight, uint16_t* rest, uint8_t* ties, const float* master, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(weight, rest, ties, master));
  CHECK_LAUNCH(n / BITS / BLOCK, n);
  LAUNCH(split_master_kernel, ceil_div(n, BITS * BLOCK), BLOCK, 0, weight, rest, ties, master, (size_t)n);
  return 0;
}

static __global__ void join_master_kernel(float* master, const act* weight, const uint16_t* rest, const uint8_t* ties,
                                          size_t n) {
  size_t i = global_thread();
  if (i < n) master[i] = join(weight[i], rest[i], ties[i / BITS] >> i % BITS & 1);
}

int join_master(float* master, const act* weight, const uint16_t* rest, const uint8_t* ties, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(master, weight, rest, ties));
  CHECK_LAUNCH(n / BLOCK, n);
  LAUNCH(join_master_kernel, ceil_div(n, BLOCK), BLOCK, 0, master, weight, rest, ties, (size_t)n);
  return 0;
}

template <int VEC>
static __global__ void adamw_kernel(act* weight, uint16_t* rest, uint8_t* ties, float* m, float* v, const float* grad,
                                    const float* control, size_t n, float beta1, float beta2, float eps,
                                    float weight_decay) {
  size_t first = global_thread() * BITS;
  float scale = control[CONTROL_GRAD_SCALE], learning_rate = control[CONTROL_LEARNING_RATE];
  if (first >= n || scale == 0) return;  // 0: a skipped update
  float bias1 = control[CONTROL_BIAS1], bias2 = control[CONTROL_BIAS2];
  unsigned tie = ties[first / BITS], new_tie = 0;
#pragma unroll
  for (int bit = 0; bit < BITS; bit += VEC) {
    size_t i = first + bit;
    if (i >= n) break;
    auto g = *(const Vector<float, VEC>*)(grad + i);
    auto m1 = *(Vector<float, VEC>*)(m + i), m2 = *(Vector<float, VEC>*)(v + i);
    auto w = *(Pack<VEC>*)(weight + i);
    auto r = *(Vector<uint16_t, VEC>*)(rest + i);
#pragma unroll
    for (int e = 0; e < VEC; e++) {
      float d = g.v[e] * scale;                         // clipped
      m1.v[e] = beta1 * m1.v[e] + (1 - beta1) * d;      // the mean of gradients, which began as 0: bias1 corrects for it
      m2.v[e] = beta2 * m2.v[e] + (1 - beta2) * d * d;  // and of their squares
      float master = join(w.v[e], r.v[e], tie >> (bit + e) & 1);
      master -= learning_rate * (m1.v[e] / bias1 / (sqrtf(m2.v[e] / bias2) + eps) + weight_decay * master);
      Split s = split(master);
      w.v[e] = s.weight;
      r.v[e] = s.rest;
      new_tie |= (unsigned)s.tie << (bit + e);
    }
    *(Vector<float, VEC>*)(m + i) = m1;
    *(Vector<float, VEC>*)(v + i) = m2;
    *(Pack<VEC>*)(weight + i) = w;
    *(Vector<uint16_t, VEC>*)(rest + i) = r;
  }
  ties[first / BITS] = (uint8_t)new_tie;
}

int adamw(act* weight, uint16_t* rest, uint8_t* ties, float* m, float* v, const float* grad, const float* control,
          int64_t n, float beta1, float beta2, float eps, float weight_decay) {
  BEGIN(SIZES(n), ADDRESSES(weight, rest, ties, m, v, grad, control));
  CHECK_LAUNCH(n / BITS / BLOCK, n);
  unsigned blocks = ceil_div(n, BITS * BLOCK);
  if (n % 4 == 0 && aligned16(weight, rest, m, v, grad))
    LAUNCH(adamw_kernel<4>, blocks, BLOCK, 0, weight, rest, ties, m, v, grad, control, (size_t)n, beta1, beta2, eps,
           weight_decay);
  else
    LAUNCH(adamw_kernel<1>, blocks, BLOCK, 0, weight, rest, ties, m, v, grad, control, (size_t)n, beta1, beta2, eps,
           weight_decay);
  return 0;
}

static __global__ void muon_momentum_kernel(float* m, float* grad, const float* control, size_t n, float momentum) {
  size_t i = global_thread();
  float scale = control[CONTROL_GRAD_SCALE];
  if (i >= n || scale == 0) return;  // 0: a skipped update
  float g = grad[i] * scale;         // clipped
  m[i] = momentum * m[i] + (1 - momentum) * g;
  grad[i] = momentum * m[i] + (1 - momentum) * g;
}

int muon_momentum(float* m, float* grad, const float* control, int64_t n, float momentum) {
  BEGIN(SIZES(n), ADDRESSES(m, grad, control));
  CHECK_LAUNCH(n / BLOCK, n);
  LAUNCH(muon_momentum_kernel, ceil_div(n, BLOCK), BLOCK, 0, m, grad, control, (size_t)n, momentum);
  return 0;
}

static __global__ void normalize_kernel(act* out, const float* x, const double* sumsq, size_t n) {
  size_t i = global_thread();
  if (i < n) out[i] = __float2bfloat16_rn(x[i] / norm_of(*sumsq));
}

int normalize(act* out, const float* x, const double* sumsq, int64_t n) {
  BEGIN(SIZES(n), ADDRESSES(out, x, sumsq));
  CHECK_LAUNCH(n / BLOCK, n);
  LAUNCH(normalize_kernel, ceil_div(n, BLOCK), BLOCK, 0, out, x, sumsq, (size_t)n);
  return 0;
}

static __global__ void muon_update_kernel(act* weight, uint16_t* rest, uint8_t* ties, const act* direction,
                                          const float* control, size_t n, float scale, float weight_decay) {
  size_t first = global_thread() * BITS;
  if (first >= n || control[CONTROL_GRAD_SCALE] == 0) return;  // 0: a skipped update
  float learning_rate = control[CONTROL_LEARNING_RATE];
  unsigned before = ties[first / BITS], after = 0;
  for (int bit = 0; bit < BITS && first + bit < n; bit++) {
    size_t i = first + bit;
    float master = join(weight[i], rest[i], before >> bit & 1);
    master -= learning_rate * (weight_decay * master + scale * __bfloat162float(direction[i]));
    Split s = split(master);
    weight[i] = s.weight;
    rest[i] = s.rest;
    after |= (unsigned)s.tie << bit;
  }
  ties[first / BITS] = (uint8_t)after;
}

int muon_update(act* weight, uint16_t* rest, uint8_t* ties, const act* direction, const float* control, int64_t n,
                float scale, float weight_decay) {
  BEGIN(SIZES(n), ADDRESSES(weight, rest, ties, direction, control));
  CHECK_LAUNCH(n / BITS / BLOCK, n);
  LAUNCH(muon_update_kernel, ceil_div(n, BITS * BLOCK), BLOCK, 0, weight, rest, ties, direction, control, (size_t)n,
         scale, weight_decay);
  return 0;
}
