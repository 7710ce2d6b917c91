// cuda_emu.h: runs CUDA kernel source on a CPU, for tests. It is about correctness; it says nothing about speed.
//
// One OS thread runs one block at a time. Every CUDA thread runs on a fiber (its own stack) until it has to wait; a
// fiber whose thread has ended takes the next thread that has not begun, so that kernels without barriers run as plain
// loops. A warp collective (shuffle, ldmatrix, mma) is: deposit the address of my operands, wait; the last of the 32
// lanes does the work of the whole warp.
//
// It is stricter than a GPU. Shared memory is NaN before each block; the destination of a cp.async is NaN from its
// issue to its wait; a thread that ends with copies in flight, a barrier that not every thread reaches, lanes that meet
// in different collectives, unaligned or outside addresses and launches beyond the limits of the smallest supported GPU
// end the launch with an error. LOAM_EMU_SEED other than 0 makes the order of threads and blocks random.
// What it does not cover: races between blocks beyond their order, ex2.approx and tensor-core rounding.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All static shared arrays lie in one section of the library, so that they can be poisoned before each block.
#define __shared__ static __attribute__((section("emu_shared")))
extern "C" {
extern char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
}

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emu {

constexpr unsigned MAX_THREADS = 1024, MAX_GRID_YZ = 65535;
constexpr size_t MAX_SHARED_DEFAULT = 48 << 10;
inline size_t max_shared = 99 << 10;  // 99 KiB: sm_86, sm_89 and sm_120
constexpr size_t STACK_BYTES = 256 << 10;

/** A place to come back to, by the compiler's own setjmp and longjmp: those of the C library take five times as long. */
typedef void* Place[5];

struct Fiber {
  ucontext_t start;
  Place state;
  char* stack = nullptr;
  bool started = false;
};

struct Copy {
  char* dst;
  const char* src;
  int bytes;
  bool zero;
};

struct Thread {
  dim3 index;
  int lane, warp, barriers;
  Fiber* fiber;                // null before it starts and after it ends
  std::vector<Copy> copies;    // cp.async not yet waited for, oldest first
  std::vector<size_t> groups;  // where each committed group of copies ends
};

struct Warp {
  int arrived;
  const char* kind;
  void* deposit[32];
};

struct Block {
  std::function<void()> body;
  std::vector<Thread> threads{MAX_THREADS};
  std::vector<Warp> warps{MAX_THREADS / 32};
  std::vector<int> order;      // in which the threads begin
  std::vector<Thread*> ready;  // threads that have waited and may go on
  int total = 0, begun = 0, ended = 0, at_barrier = 0;
  int any = 0, any_result = 0;  // of __syncthreads_or
};

inline Block block;
inline Thread* current;  // null outside a launch
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Fiber*> idle_fibers;
inline Place outside;
inline dim3 thread_index, block_index, block_size, grid_size;
inline unsigned char* dynamic_shared;
inline size_t dynamic_shared_bytes;
inline std::map<const void*, size_t> shared_limit;  // cudaFuncSetAttribute
inline char failure[512];                           // of the latest launch; empty = none
inline long bank_conflicts, launches;
inline uint64_t seed, random_state;

inline uint64_t random_below(uint64_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % n;
}

inline void set_seed(uint64_t s) {
  seed = s;
  random_state = s * 0x9e3779b97f4a7c15ull + 1;
}

inline void note_failure(const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(failure, sizeof failure, format, args);
  va_end(args);
}

/** Ends the launch from inside a kernel. */
#define EMU_FAIL(...) (emu::note_failure("emulator: " __VA_ARGS__), __builtin_longjmp(emu::outside, 1))

/** Frames left by a jump stay marked in AddressSanitizer's shadow: clears the marks from `low` up to here. */
__attribute__((always_inline)) inline void forget_dead_frames(char* low) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(low, (char*)__builtin_frame_address(0) - low);
#else
  (void)low;
#endif
}

// of cuda.h: what only Hopper has
inline bool deliver();  // brings a copy home, one at random with a seed; false if none is under way
inline int threads_at_mbarriers();
inline void begin_hopper_block();
inline const char* unfinished();

inline Thread* pick() {
  while (block.ready.empty() && block.begun == block.total && deliver()) {}
  size_t fresh = block.total - block.begun, n = fresh + block.ready.size();
  if (n == 0) return nullptr;
  size_t at = seed ? random_below(n) : fresh ? block.ready.size() : n - 1;
  if (at >= block.ready.size()) return &block.threads[block.order[block.begun++]];
  Thread* t = block.ready[at];
  block.ready[at] = block.ready.back();
  block.ready.pop_back();
  return t;
}

inline void fiber_main();

/** Leaves this stack for thread t; null = nobody can go on. Not inlined: a function may not jump to a place of its own. */
[[noreturn]] __attribute__((noinline)) inline void jump(Thread* t) {
  if (!t && block.ended < block.total) {
    int waiting = 0;
    for (Warp& w : block.warps) waiting += w.arrived;
    note_failure(
        "emulator: deadlock in block (%u,%u,%u): of %d threads %d wait at a barrier, %d at an mbarrier, %d in a warp "
        "collective (%s), %d have ended",
        block_index.x, block_index.y, block_index.z, block.total, block.at_barrier, threads_at_mbarriers(), waiting,
        waiting ? "divergent warp" : "divergent barrier", block.ended);
  }
  if (!t) __builtin_longjmp(outside, 1);
  current = t;
  thread_index = t->index;
  if (t->fiber) __builtin_longjmp(t->fiber->state, 1);
  if (idle_fibers.empty()) {
    fibers.emplace_back(new Fiber);
    fibers.back()->stack = (char*)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    idle_fibers.push_back(fibers.back().get());
  }
  Fiber* f = t->fiber = idle_fibers.back();
  idle_fibers.pop_back();
  if (f->started) __builtin_longjmp(f->state, 1);
  f->started = true;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
  getcontext(&f->start);
  f->start.uc_stack.ss_sp = f->stack;
  f->start.uc_stack.ss_size = STACK_BYTES;
  f->start.uc_link = nullptr;
  makecontext(&f->start, fiber_main, 0);
  setcontext(&f->start);
  abort();
}

inline void fiber_main() {
  for (;;) {
    block.body();
    if (!current->copies.empty()) EMU_FAIL("thread %u ends with cp.async copies in flight", thread_index.x);
    Fiber* me = current->fiber;
    current->fiber = nullptr;
    block.ended++;
    Thread* next = pick();
    if (next && !next->fiber) {  // a thread that has not begun: it runs on this very stack
      next->fiber = me;
      current = next;
      thread_index = next->index;
      continue;
    }
    idle_fibers.push_back(me);
    if (!__builtin_setjmp(me->state)) jump(next);
    forget_dead_frames(current->fiber->stack);
  }
}

/** The current thread waits until somebody puts it into `ready`. */
inline void wait_here() {
  if (!__builtin_setjmp(current->fiber->state)) jump(pick());
  forget_dead_frames(current->fiber->stack);
}

inline void barrier() {
  if (!current) {
    fprintf(stderr, "emulator: barrier outside a kernel\n");
    abort();
  }
  current->barriers++;
  if (++block.at_barrier < block.total) return wait_here();
  block.at_barrier = 0;
  block.any_result = block.any;
  block.any = 0;
  for (int i = block.total - 1; i >= 0; i--)
    if (&block.threads[i] != current) block.ready.push_back(&block.threads[i]);
}

/** All 32 lanes deposit an address; the last to come runs work(deposits) for the whole warp. */
template <class F> void collective(const char* kind, void* mine, F work) {
  Thread* me = current;
  Warp& w = block.warps[me->warp];
  if (w.arrived && w.kind != kind) EMU_FAIL("lanes of one warp meet in %s and in %s", w.kind, kind);
  w.kind = kind;
  w.deposit[me->lane] = mine;
  if (++w.arrived < 32) return wait_here();
  w.arrived = 0;
  work(w.deposit);
  for (int lane = 31; lane >= 0; lane--)
    if (lane != me->lane) block.ready.push_back(&block.threads[me->warp * 32 + lane]);
}

inline bool in_shared(const void* p, size_t bytes) {
  const char *at = (const char*)p, *dynamic = (const char*)dynamic_shared;
  bool is_dynamic = at >= dynamic && at + bytes <= dynamic + dynamic_shared_bytes;
  bool is_static = __start_emu_shared && at >= __start_emu_shared && at + bytes <= __stop_emu_shared;
  return is_dynamic || is_static;
}

inline void begin_block(unsigned at) {
  block_index = dim3(at % grid_size.x, at / grid_size.x % grid_size.y, at / (grid_size.x * grid_size.y));
  if (dynamic_shared_bytes) memset(dynamic_shared, 0xff, dynamic_shared_bytes);  // 0xffff is a bf16 NaN, and so on
  if (__start_emu_shared) memset(__start_emu_shared, 0xff, __stop_emu_shared - __start_emu_shared);
  block.begun = block.ended = block.at_barrier = block.any = 0;
  block.ready.clear();
  begin_hopper_block();
  for (int i = 0; i < block.total; i++) {
    block.threads[i].barriers = 0;
    block.order[i] = i;
  }
  if (seed)
    for (int i = block.total - 1; i > 0; i--) std::swap(block.order[i], block.order[random_below(i + 1)]);
}

inline void run_block() {
  if (!__builtin_setjmp(outside)) jump(pick());
  forget_dead_frames((char*)__builtin_frame_address(0) - STACK_BYTES / 4);
  if (failure[0]) return;
  if (const char* what = unfinished()) note_failure("emulator: a block ends with %s under way", what);
  for (int i = 1; i < block.total; i++)
    if (block.threads[i].barriers != block.threads[0].barriers)
      note_failure("emulator: threads 0 and %d of a block passed %d and %d barriers", i, block.threads[0].barriers,
                   block.threads[i].barriers);
}

/** After a failure the stacks hold unfinished threads: start over with fresh ones. */
inline void abandon_fibers() {
  idle_fibers.clear();
  for (auto& f : fibers) f->started = false, idle_fibers.push_back(f.get());
  for (Thread& t : block.threads) t.fiber = nullptr, t.copies.clear(), t.groups.clear();
  for (Warp& w : block.warps) w.arrived = 0;
}

inline char not_launchable[512];  // why the latest launch was refused

inline bool launchable(const char* name, const void* kernel, dim3 grid, dim3 size, size_t shared) {
  size_t threads = (size_t)size.x * size.y * size.z;
  size_t limit = shared_limit.count(kernel) ? shared_limit[kernel] : MAX_SHARED_DEFAULT;
  if (threads == 0 || threads > MAX_THREADS || threads % 32 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu ||
      grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ || shared > limit)
    return snprintf(not_launchable, sizeof not_launchable,
                    "emulator: %s: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes shared of at most %zu: not launchable",
                    name, grid.x, grid.y, grid.z, size.x, size.y, size.z, shared, limit),
           false;
  return true;
}

inline void launch(const char* name, dim3 grid, dim3 size, size_t shared, std::function<void()> body) {
  size_t threads = (size_t)size.x * size.y * size.z;
  launches++;
  grid_size = grid;
  block_size = size;
  dynamic_shared_bytes = shared;
  if (!shared || posix_memalign((void**)&dynamic_shared, 1024, shared)) dynamic_shared = nullptr;
  block.body = std::move(body);
  block.total = (int)threads;
  block.order.resize(threads);
  for (int i = 0; i < block.total; i++) {
    Thread& t = block.threads[i];
    t.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    t.lane = i % 32, t.warp = i / 32, t.fiber = nullptr;
  }
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  for (unsigned i = 0; i < blocks.size(); i++) blocks[i] = i;
  if (seed)
    for (size_t i = blocks.size() - 1; i > 0; i--) std::swap(blocks[i], blocks[random_below(i + 1)]);
  for (unsigned at : blocks) {
    begin_block(at);
    run_block();
    if (failure[0]) break;
  }
  current = nullptr;
  if (failure[0]) {
    abandon_fibers();
    size_t used = strlen(failure);
    snprintf(failure + used, sizeof failure - used, " (kernel %s)", name);
  }
  free(dynamic_shared);
}

}  // namespace emu

#define threadIdx emu::thread_index
#define blockIdx emu::block_index
#define blockDim emu::block_size
#define gridDim emu::grid_size

// ---- what CUDA offers to kernels -----------------------------------------------------------------------------------

inline void __syncthreads() { emu::barrier(); }
inline int __syncthreads_or(int predicate) {
  emu::block.any |= predicate != 0;
  emu::barrier();
  return emu::block.any_result;
}
inline void __syncwarp(unsigned = ~0u) {
  emu::collective("__syncwarp", nullptr, [](void**) {});
}

inline float emu_shuffle(const char* kind, float value, int source) {
  struct Lane {
    float value;
    int source;
    float result;
  } mine{value, source, 0};
  emu::collective(kind, &mine, [](void** lanes) {
    for (int i = 0; i < 32; i++) ((Lane*)lanes[i])->result = ((Lane*)lanes[((Lane*)lanes[i])->source & 31])->value;
  });
  return mine.result;
}
inline float __shfl_xor_sync(unsigned, float v, int mask) {
  return emu_shuffle("__shfl_xor_sync", v, emu::current->lane ^ mask);
}
inline float __shfl_sync(unsigned, float v, int source) { return emu_shuffle("__shfl_sync", v, source); }

inline unsigned __ballot_sync(unsigned, int predicate) {
  struct Lane {
    int predicate;
    unsigned result;
  } mine{predicate, 0};
  emu::collective("__ballot_sync", &mine, [](void** lanes) {
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)(((Lane*)lanes[i])->predicate != 0) << i;
    for (int i = 0; i < 32; i++) ((Lane*)lanes[i])->result = bits;
  });
  return mine.result;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  unsigned long long before = *p;
  *p += v;
  return before;
}
inline unsigned long long atomicMin(unsigned long long* p, unsigned long long v) {
  unsigned long long old = *p;
  if (v < old) *p = v;
  return old;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }

// ---- the wrappers of PTX in kernels.cu ------------------------------------------------------------------------------

inline float exp2_approx(float x) { return exp2f(x); }

inline void emu_cp_async(void* dst, const void* src, int bytes, bool valid) {
  if ((uintptr_t)dst % bytes || (uintptr_t)src % bytes) EMU_FAIL("cp.async of %d bytes: unaligned address", bytes);
  if (!emu::in_shared(dst, bytes)) EMU_FAIL("cp.async: destination outside the block's shared memory");
  memset(dst, 0xff, bytes);  // the old bytes are gone and the new ones not there yet
  emu::current->copies.push_back({(char*)dst, (const char*)src, bytes, !valid});
}
inline void cp_async16(void* dst, const void* src, bool valid) { emu_cp_async(dst, src, 16, valid); }
inline void cp_async4(void* dst, const void* src, bool valid) { emu_cp_async(dst, src, 4, valid); }
inline void cp_async_commit() { emu::current->groups.push_back(emu::current->copies.size()); }
template <int PENDING> void cp_async_wait() {
  emu::Thread& t = *emu::current;
  if (t.groups.size() <= PENDING) return;
  size_t groups = t.groups.size() - PENDING, done = t.groups[groups - 1];
  for (size_t i = 0; i < done; i++) {
    const emu::Copy& c = t.copies[i];
    if (c.zero)
      memset(c.dst, 0, c.bytes);
    else
      memcpy(c.dst, c.src, c.bytes);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + done);
  t.groups.erase(t.groups.begin(), t.groups.begin() + groups);
  for (size_t& end : t.groups) end -= done;
}

/// Of an address of the state space "shared", which kernels.cu gives to PTX.
inline unsigned shared_address(const void* p) { return (unsigned)((const char*)p - (const char*)emu::dynamic_shared); }

struct EmuMatrixLoad {
  uint32_t* registers;
  const char* row;
};
template <bool TRANSPOSED> void emu_ldmatrix(void** lanes) {
  const char* row[32];
  for (int i = 0; i < 32; i++) {
    row[i] = ((EmuMatrixLoad*)lanes[i])->row;
    if ((uintptr_t)row[i] % 16) EMU_FAIL("ldmatrix: address not aligned to 16 bytes");
    if (!emu::in_shared(row[i], 16)) EMU_FAIL("ldmatrix: address outside the block's shared memory");
  }
  for (int matrix = 0; matrix < 4; matrix++) {
    unsigned seen = 0;  // which of the 8 groups of 4 banks these 8 rows touch
    for (int i = 0; i < 8; i++) {
      unsigned bank = 1u << ((uintptr_t)row[matrix * 8 + i] / 16 % 8);
      if (seen & bank) emu::bank_conflicts++;
      seen |= bank;
    }
    for (int lane = 0; lane < 32; lane++) {
      uint16_t half[2];
      for (int e = 0; e < 2; e++) {
        int r = TRANSPOSED ? 2 * (lane % 4) + e : lane / 4, c = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + e;
        memcpy(&half[e], row[matrix * 8 + r] + 2 * c, 2);
      }
      memcpy(&((EmuMatrixLoad*)lanes[lane])->registers[matrix], half, 4);
    }
  }
}
inline void ldmatrix(uint32_t* r, unsigned row) {
  EmuMatrixLoad mine{r, (const char*)emu::dynamic_shared + row};
  emu::collective("ldmatrix", &mine, emu_ldmatrix<false>);
}
inline void ldmatrix_transposed(uint32_t* r, unsigned row) {
  EmuMatrixLoad mine{r, (const char*)emu::dynamic_shared + row};
  emu::collective("ldmatrix.trans", &mine, emu_ldmatrix<true>);
}

struct EmuMma {
  float* c;
  const uint32_t *a, *b;
};
inline float emu_half(uint32_t pair, int which) {
  uint32_t bits = which ? pair & 0xffff0000u : pair << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline void emu_mma(void** lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const EmuMma& m = *(EmuMma*)lanes[lane];
    int g = lane / 4, t = lane % 4;
    for (int e = 0; e < 2; e++) {
      for (int r = 0; r < 4; r++) a[g + r % 2 * 8][2 * t + e + r / 2 * 8] = emu_half(m.a[r], e);
      for (int r = 0; r < 2; r++) b[2 * t + e + r * 8][g] = emu_half(m.b[r], e);
      for (int r = 0; r < 2; r++) c[g + r * 8][2 * t + e] = m.c[2 * r + e];
    }
  }
  for (int i = 0; i < 16; i++) {
    float row[8];
    memcpy(row, c[i], sizeof row);
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) row[j] += a[i][k] * b[k][j];
    memcpy(c[i], row, sizeof row);
  }
  for (int lane = 0; lane < 32; lane++)
    for (int e = 0; e < 4; e++) ((EmuMma*)lanes[lane])->c[e] = c[lane / 4 + e / 2 * 8][2 * (lane % 4) + e % 2];
}
/** c (16, 8) += a (16, 16) b (16, 8), fragments as in PTX mma.m16n8k16 */
inline void mma_bf16(float* c, const uint32_t* a, const uint32_t* b) {
  EmuMma mine{c, a, b};
  emu::collective("mma", &mine, emu_mma);
}

// ---- how kernels.cu reserves shared memory -------------------------------------------------------------

#define DEVICE static inline
#define DYNAMIC_SHARED(name) unsigned char* name = emu::dynamic_shared
