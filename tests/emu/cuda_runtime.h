// cuda_runtime.h: the host side of CUDA for the emulator: memory is malloc, streams run at once.
//
// LOAM_EMU_SEED  seed of the order of threads and blocks; 0 or unset = in order. Read by cudaSetDevice.
// LOAM_EMU_FAULT one of no_driver, old_driver, no_gpu, wrong_arch, no_cublaslt, old_cublaslt: pretends it, so that the
//                messages of device_open can be tested.
// LOAM_EMU_MEMORY bytes of device memory, 8 GiB where unset. Read by cudaSetDevice.
#pragma once
#include "cuda_bf16.h"
#include "cuda_emu.h"

#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 800, 860, 890, 900, 1000, 1200
#define LOAM_LIBRARY "emu"

typedef int cudaStream_t;
typedef int cudaEvent_t;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
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
inline size_t memory_total, memory_used;
inline std::map<void*, size_t> memory_sizes;
inline bool pretends(const char* fault) {
  const char* asked = getenv("LOAM_EMU_FAULT");
  return asked && !strcmp(asked, fault);
}
}  // namespace emu

inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation         ? "cudaErrorMemoryAllocation"
         : e == cudaErrorLaunchFailure          ? "cudaErrorLaunchFailure"
         : e == cudaErrorNoDevice               ? "cudaErrorNoDevice"
         : e == cudaErrorNoKernelImageForDevice ? "cudaErrorNoKernelImageForDevice"
                                                : "cudaErrorInvalidValue";
}
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorLaunchFailure ? emu::failure : cudaGetErrorName(e);
}
inline cudaError_t cudaGetLastError() {
  if (emu::failure[0]) return cudaErrorLaunchFailure;  // the text stays until the next launch or cudaSetDevice
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
  *n = emu::pretends("no_gpu") ? 0 : 1;
  return *n ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaSetDevice(int) {
  const char* seed = getenv("LOAM_EMU_SEED");
  emu::set_seed(seed ? strtoull(seed, nullptr, 10) : 0);
  const char* memory = getenv("LOAM_EMU_MEMORY");
  emu::memory_total = memory ? strtoull(memory, nullptr, 10) : (size_t)8 << 30;
  emu::failure[0] = 0;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulated GPU", {"emulated GPU"}, 8, 0, 4, emu::memory_total};
  if (emu::pretends("wrong_arch"))
    p->major = 7, emu::last_error = cudaErrorNoKernelImageForDevice;  // seen by the first launch
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, int, int bytes) {
  if ((size_t)bytes > emu::MAX_SHARED) return cudaErrorInvalidValue;
  emu::shared_limit[kernel] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, int) { return *s = 1, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  // The exact size, so that AddressSanitizer sees the first byte behind it.
  if (emu::memory_used + bytes > emu::memory_total || posix_memalign(p, 256, bytes)) return cudaErrorMemoryAllocation;
  emu::memory_used += emu::memory_sizes[*p] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emu::memory_used -= emu::memory_sizes[p];
  emu::memory_sizes.erase(p);
  return free(p), cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, int) {
  return posix_memalign(p, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) { return free(p), cudaSuccess; }
inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = emu::memory_total - emu::memory_used, *total = emu::memory_total;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, int, cudaStream_t) {
  return memmove(dst, src, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t) {
  return memset(dst, value, bytes), cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = 1, cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, int) { return *e = 1, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  static float next = 3;  // later candidates look faster, so that the choice is not always the first
  return *ms = next *= 0.9f, cudaSuccess;
}
