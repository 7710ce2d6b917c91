// cuda_runtime.h: the host side of CUDA for the emulator. Memory is malloc; a stream is a queue that runs when somebody waits
// for it, or with a seed other than 0 a random part of it at each call: as late, or as early, as a GPU may. A copy from
// memory of the host reads it when it runs. An error in a kernel stays: every later call returns it.
//
// LOAM_EMU_SEED  seed of the order of threads and blocks; 0 or unset = in order.
// LOAM_EMU_FAULT one of no_driver, old_driver, no_gpu, busy_gpu, wrong_arch, old_gpu, no_jit, no_cublaslt, old_cublaslt, no_tensor_maps,
//                wrong_wgmma, unsteady_wgmma, lost_copies: pretends it, so that the messages of device_open can be tested.
// LOAM_EMU_FAILS "swiglu_backward 3": the third kernel whose name holds this reads a wrong address, which stays.
// LOAM_EMU_ARCH  80 where unset; 90 has 227 KiB of shared memory for a block and takes attention_hopper.cuh.
// LOAM_EMU_PINNED bytes that one allocation of pinned host memory may have.
// LOAM_EMU_MEMORY bytes of device memory, 8 GiB where unset; LOAM_EMU_OTHERS bytes of it that other processes have.
// CUDA_VISIBLE_DEVICES if set to nothing hides the GPU.
// LOAM_EMU_GPUS  number of GPUs, 1 where unset. Work on one while another is the thread's current device is an error, as
//                it would open a second context there.
// All but the fault are read by cudaGetDeviceCount, which also forgets an error: the library calls it when it opens.
#pragma once
#include <deque>
#include <mutex>

#include "cuda.h"
#include "cuda_bf16.h"
#include "cuda_emu.h"

#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 800, 860, 890, 900, 1000, 1200
#define LOAM_LIBRARY "emu"

namespace emu {
struct Stream {
  void (*finish)(Stream*);  // first, for libraries that get the stream as an address and use its memory at once
  int device;
  std::deque<std::function<void()>> work;
  uint64_t begun;  // pieces of work taken from the queue so far
};
struct Event {
  Stream* stream;
  uint64_t at;  // pieces of work up to it
  std::shared_ptr<double> ms;  // of the device's clock when its turn had come
};
}  // namespace emu

typedef emu::Stream* cudaStream_t;
typedef emu::Event* cudaEvent_t;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorInvalidPtx = 218,
  cudaErrorJitCompilerNotFound = 221,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorJitCompilationDisabled = 223,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
};
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
enum { cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum { cudaStreamNonBlocking, cudaHostAllocDefault, cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem;
};

namespace emu {
inline cudaError_t last_error = cudaSuccess;
inline size_t memory_total, memory_used, memory_of_others;
inline std::string failing_kernel;  // and which of its launches fails
inline uint64_t failing_launch;
inline int arch;
inline std::map<void*, size_t> memory_sizes;
inline double clock_ms = 0;  // only matrix products take time
inline thread_local int current_device = 0;  // a thread begins on GPU 0
inline int context = -1;                     // the GPU that was used first
inline std::recursive_mutex mutex;

inline bool pretends(const char* fault) {
  const char* asked = getenv("LOAM_EMU_FAULT");
  return asked && !strcmp(asked, fault);
}
inline uint64_t variable(const char* name, uint64_t unset) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : unset;
}

/** What every call that uses the device begins with. */
inline cudaError_t use_device() {
  if (context < 0) context = current_device;
  if (current_device != context) return cudaErrorInvalidResourceHandle;
  return failure[0] ? cudaErrorLaunchFailure : cudaSuccess;
}

/** Runs pieces of work until `count` have begun. */
inline cudaError_t run_until(Stream* s, uint64_t count) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (cudaError_t e = use_device()) return e;
  while (s->begun < count && !failure[0]) {
    std::function<void()> piece = std::move(s->work.front());
    s->work.pop_front();
    s->begun++;
    piece();
  }
  return failure[0] ? cudaErrorLaunchFailure : cudaSuccess;
}
inline cudaError_t run_all(Stream* s) { return run_until(s, s->begun + s->work.size()); }

inline cudaError_t enqueue(Stream* s, std::function<void()> piece) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (cudaError_t e = use_device()) return e;
  s->work.push_back(std::move(piece));
  return seed ? run_until(s, s->begun + random_below(s->work.size() + 1)) : cudaSuccess;
}
inline std::vector<Stream*> streams;
inline void finish_streams() {
  for (Stream* s : streams) run_all(s);
}

inline void launch_later(Stream* s, const char* name, const void* kernel, dim3 grid, dim3 size, size_t shared,
                         std::function<void()> body) {
  if (!launchable(name, kernel, grid, size, shared)) return void(last_error = cudaErrorInvalidConfiguration);
  cudaError_t e = enqueue(s, [=] {
    bool is_named = !failing_kernel.empty() && strstr(name, failing_kernel.c_str());
    if (is_named && --failing_launch == 0) return note_failure("an illegal memory access was encountered");
    launch(name, grid, size, shared, body);
  });
  if (e && !failure[0]) last_error = e;
}
}  // namespace emu

#define LAUNCH_KERNEL(kernel, grid, block, shared, stream, ...) \
  emu::launch_later(stream, #kernel, (const void*)kernel, grid, block, shared, [=] { kernel(__VA_ARGS__); })

inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation         ? "cudaErrorMemoryAllocation"
         : e == cudaErrorInvalidConfiguration   ? "cudaErrorInvalidConfiguration"
         : e == cudaErrorLaunchFailure          ? "cudaErrorLaunchFailure"
         : e == cudaErrorNoDevice               ? "cudaErrorNoDevice"
         : e == cudaErrorInvalidResourceHandle  ? "cudaErrorInvalidResourceHandle"
         : e == cudaErrorUnsupportedPtxVersion  ? "cudaErrorUnsupportedPtxVersion"
         : e == cudaErrorNoKernelImageForDevice ? "cudaErrorNoKernelImageForDevice"
                                                : "cudaErrorInvalidValue";
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorLaunchFailure          ? emu::failure
         : e == cudaErrorInvalidConfiguration ? emu::not_launchable
                                              : cudaGetErrorName(e);
}
/** The error of the last call is forgotten when it is read; one inside a kernel is not. */
inline cudaError_t cudaGetLastError() {
  if (emu::failure[0]) return cudaErrorLaunchFailure;
  cudaError_t e = emu::last_error;
  emu::last_error = cudaSuccess;
  return e;
}
inline cudaError_t cudaDriverGetVersion(int* v) {
  *v = emu::pretends("no_driver") ? 0 : emu::pretends("old_driver") ? 12040 : CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* n) {
  emu::finish_streams();
  emu::set_seed(emu::variable("LOAM_EMU_SEED", 0));
  emu::memory_total = emu::variable("LOAM_EMU_MEMORY", (uint64_t)8 << 30);
  emu::memory_of_others = emu::variable("LOAM_EMU_OTHERS", 0);
  const char *fails = getenv("LOAM_EMU_FAILS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
  const char* number = fails ? strchr(fails, ' ') : nullptr;
  emu::failing_kernel = number ? std::string(fails, number - fails) : "";
  emu::failing_launch = number ? strtoull(number, nullptr, 10) : 0;
  emu::failure[0] = 0;
  emu::arch = (int)emu::variable("LOAM_EMU_ARCH", 80);
  emu::max_shared = (emu::arch == 90 ? 227 : 99) << 10;
  emu::wrong_wgmma = emu::pretends("wrong_wgmma");
  emu::unsteady_wgmma = emu::pretends("unsteady_wgmma");
  emu::lost_copies = emu::pretends("lost_copies");
  *n = emu::pretends("no_gpu") || (visible && !*visible) ? 0 : (int)emu::variable("LOAM_EMU_GPUS", 1);
  return *n ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaSetDevice(int device) { return emu::current_device = device, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulated GPU", {"emulated GPU"}, emu::arch / 10, emu::arch % 10, 40, emu::memory_total};
  bool is_old = emu::pretends("old_gpu"), is_other = emu::pretends("wrong_arch");
  if (is_old || is_other)
    p->major = is_old ? 7 : 11, emu::last_error = cudaErrorNoKernelImageForDevice;  // seen by the first launch
  if (emu::pretends("no_jit")) emu::last_error = cudaErrorUnsupportedPtxVersion;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, int, int bytes) {
  if ((size_t)bytes > emu::max_shared) return cudaErrorInvalidValue;
  emu::shared_limit[kernel] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, int) {
  if (cudaError_t e = emu::use_device()) return e;
  *s = new emu::Stream{[](emu::Stream* s) { emu::run_all(s); }, emu::current_device, {}, 0};
  if (emu::pretends("busy_gpu")) return cudaErrorDevicesUnavailable;
  return emu::streams.push_back(*s), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { return emu::run_all(s); }
inline cudaError_t cudaStreamQuery(cudaStream_t s) { return emu::run_all(s); }
inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (cudaError_t e = emu::use_device()) return e;
  // The exact size, so that AddressSanitizer sees the first byte behind it.
  if (emu::memory_used + emu::memory_of_others + bytes > emu::memory_total || posix_memalign(p, 256, bytes))
    return emu::last_error = cudaErrorMemoryAllocation;
  emu::memory_used += emu::memory_sizes[*p] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emu::finish_streams();  // waits for all work on the device
  if (cudaError_t e = emu::use_device()) return e;
  emu::memory_used -= emu::memory_sizes[p];
  emu::memory_sizes.erase(p);
  return free(p), cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, int) {
  if (cudaError_t e = emu::use_device()) return e;
  if (bytes > emu::variable("LOAM_EMU_PINNED", UINT64_MAX) || posix_memalign(p, 256, bytes))
    return emu::last_error = cudaErrorMemoryAllocation;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = emu::memory_total - emu::memory_used - emu::memory_of_others, *total = emu::memory_total;
  return emu::use_device();
}
inline cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, int, cudaStream_t s) {
  return emu::enqueue(s, [=] { memmove(dst, src, bytes); });
}
inline cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t s) {
  return emu::enqueue(s, [=] { memset(dst, value, bytes); });
}
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = new emu::Event{}, emu::use_device(); }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, int) { return cudaEventCreate(e); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  std::shared_ptr<double> ms = std::make_shared<double>(0);
  *e = {s, s->begun + s->work.size() + 1, ms};
  return emu::enqueue(s, [ms] { *ms = emu::clock_ms; });
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  return e->stream ? emu::run_until(e->stream, e->at) : emu::use_device();
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  emu::Event now = *e;  // as it is: it may be recorded again
  return emu::enqueue(s, [now] { emu::run_until(now.stream, now.at); });
}
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
  return *ms = (float)(*stop->ms - *start->ms), cudaSuccess;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
enum { cudaEnableDefault };
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  bool has = !strcmp(name, "cuTensorMapEncodeTiled") && !emu::pretends("no_tensor_maps");
  *function = has ? (void*)cuTensorMapEncodeTiled : nullptr;
  return *found = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound, cudaSuccess;
}
