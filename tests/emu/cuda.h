// cuda.h: tensor maps of CUDA's driver, and the instructions of Hopper (sm_90a) that attention_hopper.cuh wraps: mbarriers,
// TMA, wgmma, setmaxnreg. Included by cuda_runtime.h.
//
// Stricter than a GPU. The destination of a TMA copy is NaN from its start until it comes, which is as late as possible (when
// no thread can go on), or with a seed at a random moment. Accumulators of a wgmma are NaN from its issue until it is waited
// for, and must not be written meanwhile; its operands are read at both moments and must be the same. These end the launch:
// a wgmma without a wgmma_fence since the last wait, a descriptor with other than the documented bits, a barrier that is used
// before all know that it was initialised or at which a thread arrives twice in a turn, more registers than an SM has,
// copies or products still under way at the end of the block.
#pragma once
#include <deque>

#include "cuda_emu.h"

#define __grid_constant__

// ---- tensor maps ---------------------------------------------------------------------------------------------------

typedef int CUresult;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };  // zeros

namespace emu {
/** What an opaque map holds: four dimensions of bfloat16, the innermost dense. */
struct TensorMap {
  const char* base;
  uint64_t size[4], stride[4];  // elements, bytes
  uint32_t box[4];
};
}  // namespace emu

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                       const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                                       const cuuint32_t* step, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  constexpr CUresult INVALID = 1;
  if (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || rank != 4 || interleave || swizzle != CU_TENSOR_MAP_SWIZZLE_128B)
    return INVALID;  // or not emulated
  if ((uintptr_t)map % 64 || (uintptr_t)base % 16 || !base || box[0] * 2 > 128 || box[0] * 2 % 16) return INVALID;
  emu::TensorMap m = {(const char*)base, {}, {2}, {}};
  for (int i = 0; i < 4; i++) {
    if (size[i] == 0 || size[i] > (uint64_t)1 << 32 || box[i] == 0 || box[i] > 256 || step[i] != 1) return INVALID;
    if (i < 3 && (stride[i] % 16 || stride[i] >= (uint64_t)1 << 40)) return INVALID;
    m.size[i] = size[i], m.box[i] = box[i];
    if (i < 3) m.stride[i + 1] = stride[i];
  }
  static_assert(sizeof m <= sizeof *map, "");
  memcpy(map, &m, sizeof m);
  return 0;
}

// ---- mbarriers -----------------------------------------------------------------------------------------------------

namespace emu {
struct Mbarrier {
  int count, pending, phase;
  long bytes;  // expected and not here yet
  Thread* owner;
  int owner_barriers;  // of the block, that its owner had passed when it initialised this
  bool fenced;         // TMA sees it
  std::vector<Thread*> arrived, waiting;
};
inline std::map<const void*, Mbarrier> mbarriers;  // by address

inline void complete_if_done(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.phase ^= 1, b.pending = b.count;
  for (Thread* t : b.waiting) block.ready.push_back(t);
  b.arrived.clear(), b.waiting.clear();
}
inline Mbarrier& mbarrier_at(const void* p) {
  auto at = mbarriers.find(p);
  if (at == mbarriers.end()) EMU_FAIL("mbarrier that was not initialised");
  Mbarrier& b = at->second;
  if (b.owner != current && current->barriers <= b.owner_barriers)
    EMU_FAIL("mbarrier: no __syncthreads since it was initialised");
  return b;
}
inline int threads_at_mbarriers() {
  int n = 0;
  for (auto& [p, b] : mbarriers) n += (int)b.waiting.size();
  return n;
}
}  // namespace emu

typedef uint64_t mbarrier;
inline void mbarrier_init(mbarrier* b, int arrivals) {
  if ((uintptr_t)b % 8 || !emu::in_shared(b, 8)) EMU_FAIL("mbarrier outside of shared memory or not aligned to 8 bytes");
  emu::mbarriers[b] = {arrivals, arrivals, 0, 0, emu::current, emu::current->barriers, false, {}, {}};
}
inline void mbarrier_fence_init() {
  for (auto& [p, b] : emu::mbarriers) b.fenced |= b.owner == emu::current;
}
inline void mbarrier_arrive(mbarrier* b) {
  emu::Mbarrier& m = emu::mbarrier_at(b);
  for (emu::Thread* t : m.arrived)
    if (t == emu::current) EMU_FAIL("mbarrier: a thread arrives twice in one turn");
  m.arrived.push_back(emu::current);
  if (m.pending-- == 0) EMU_FAIL("mbarrier: more arrivals than its count");
  emu::complete_if_done(m);
}
inline void mbarrier_expect(mbarrier* b, int bytes) {
  emu::mbarrier_at(b).bytes += bytes;
  mbarrier_arrive(b);
}
inline void mbarrier_wait(mbarrier* b, int parity) {
  emu::Mbarrier& m = emu::mbarrier_at(b);
  if (m.phase != parity) return;  // the turn of this parity is complete
  m.waiting.push_back(emu::current);
  emu::wait_here();
}

// ---- TMA -----------------------------------------------------------------------------------------------------------

namespace emu {
struct Load {
  char* dst;
  std::vector<char> bytes;
  Mbarrier* full;
};
inline std::deque<Load> loads;  // started and not here yet
inline bool lost_copies;        // LOAM_EMU_FAULT: they never come

inline bool deliver() {
  if (loads.empty() || lost_copies) return false;
  size_t at = seed ? random_below(loads.size()) : 0;
  Load load = std::move(loads[at]);
  loads.erase(loads.begin() + at);
  memcpy(load.dst, load.bytes.data(), load.bytes.size());
  load.full->bytes -= (long)load.bytes.size();
  complete_if_done(*load.full);
  return true;
}

/** Bits 4-6 of an address ^= bits 7-9: the 128-byte swizzle. */
inline size_t swizzle128(size_t at) { return at ^ ((at >> 7 & 7) << 4); }
}  // namespace emu

inline void tma_load(void* dst, const CUtensorMap* map, int column, int head, int row, int b, mbarrier* full) {
  emu::TensorMap m;
  memcpy(&m, map, sizeof m);
  size_t row_bytes = 2 * m.box[0], rows = m.box[2], bytes = row_bytes * rows;
  emu::Mbarrier& barrier = emu::mbarrier_at(full);
  if (row_bytes != 128 || m.box[1] != 1 || m.box[3] != 1) EMU_FAIL("TMA: a box other than rows of 128 bytes of a head");
  if (shared_address(dst) % 1024) EMU_FAIL("TMA: a swizzled box must begin at a multiple of 1024 bytes");
  if (!emu::in_shared(dst, bytes)) EMU_FAIL("TMA: destination outside of shared memory");
  if (!barrier.fenced) EMU_FAIL("TMA: no fence since its mbarrier was initialised");
  memset(dst, 0xff, bytes);
  emu::Load load = {(char*)dst, std::vector<char>(bytes), &barrier};
  auto inside = [&](int axis, int at) { return at >= 0 && (uint64_t)at < m.size[axis]; };
  for (int r = 0; r < (int)rows; r++)
    for (int c = 0; c < 8; c++)  // chunks of 8 elements
      if (inside(0, column + 8 * c) && inside(1, head) && inside(2, row + r) && inside(3, b))
        memcpy(&load.bytes[emu::swizzle128(r * 128 + c * 16)],
               m.base + b * m.stride[3] + (row + r) * m.stride[2] + head * m.stride[1] + 2 * (column + 8 * c), 16);
  emu::loads.push_back(std::move(load));
  if (emu::seed && emu::random_below(4) == 0) emu::deliver();
}

// ---- warpgroups ----------------------------------------------------------------------------------------------------

namespace emu {
/** The bits of a descriptor as the PTX ISA names them. */
struct Descriptor {
  uint64_t address : 14, zero0 : 2, leading : 14, zero1 : 2, stride : 14, zero2 : 3, base : 3, zero3 : 10, swizzle : 2;
};
static_assert(sizeof(Descriptor) == 8, "");

constexpr int GROUP_THREADS = 128, MAX_GROUPS = MAX_THREADS / GROUP_THREADS;
typedef std::vector<uint16_t> Halves;

struct Wgmma {
  float* d[GROUP_THREADS];           // accumulators of each thread
  const uint32_t* a[GROUP_THREADS];  // its A fragments, or null
  uint64_t desc_a, desc_b;
  bool zero, rows_are_k;
  int n;
  Halves operands;  // a (64, 16), then b (n, 16), at issue
};
struct Warpgroup {
  int arrived = 0;  // at a meeting of all threads
  const char* kind = nullptr;
  void* deposit[GROUP_THREADS];
  std::vector<Wgmma> open, committed;          // issued; of committed groups
  std::vector<size_t> groups;                  // where each committed group ends
  std::map<float*, std::vector<float>> sums;   // (64, n) of each accumulator in flight, by that of thread 0
  bool fenced = false;
  int registers = 0;  // 0 = as launched
};
inline Warpgroup warpgroups[MAX_GROUPS];
inline bool wrong_wgmma, unsteady_wgmma;  // LOAM_EMU_FAULT

/** All threads of a warpgroup deposit an address; the last to come runs work(deposits, group). */
template <class F> void group_collective(const char* kind, void* mine, F work) {
  int thread = current->warp * 32 + current->lane, first = thread / GROUP_THREADS * GROUP_THREADS;
  Warpgroup& g = warpgroups[thread / GROUP_THREADS];
  if (g.arrived && g.kind != kind) EMU_FAIL("threads of one warpgroup meet in %s and in %s", g.kind, kind);
  g.kind = kind, g.deposit[thread - first] = mine;
  if (++g.arrived < GROUP_THREADS) return wait_here();
  g.arrived = 0;
  work(g.deposit, g);
  for (int i = first + GROUP_THREADS - 1; i >= first; i--)
    if (i != thread) block.ready.push_back(&block.threads[i]);
}

inline void read_chunk(uint16_t* to, size_t at) {
  const char* p = (const char*)dynamic_shared + swizzle128(at);
  if (!in_shared(p, 16)) EMU_FAIL("wgmma: operand outside of shared memory");
  memcpy(to, p, 16);
}
/** The operand (mn, 16) that a descriptor describes, appended to `to`. */
inline void read_operand(Halves& to, uint64_t bits, bool rows_are_k, int mn) {
  Descriptor d;
  memcpy(&d, &bits, 8);
  if (d.swizzle != 1 || d.base || d.zero0 || d.zero1 || d.zero2 || d.zero3)
    EMU_FAIL("wgmma: descriptor %016llx is not one of a 128-byte swizzle", (unsigned long long)bits);
  size_t start = d.address << 4, leading = d.leading << 4, stride = d.stride << 4, first = to.size();
  if (start & 0x380 || (rows_are_k && start & 0x7f)) EMU_FAIL("wgmma: an operand begins inside a swizzled pattern");
  if (!rows_are_k && d.leading != 1) EMU_FAIL("wgmma: the leading offset of swizzled columns must be 1, not %d", (int)d.leading);
  if (stride != 1024) EMU_FAIL("wgmma: the stride offset must be 1024 bytes here, not %zu", stride);
  to.resize(first + mn * 16);
  if (rows_are_k) {
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < mn; n += 8) {
        uint16_t chunk[8];
        read_chunk(chunk, start + n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2);
        for (int e = 0; e < 8; e++) to[first + (n + e) * 16 + k] = chunk[e];
      }
  } else {
    for (int n = 0; n < mn; n++)
      for (int k = 0; k < 16; k += 8) read_chunk(&to[first + n * 16 + k], start + n / 8 * stride + n % 8 * 128 + 2 * k);
  }
}
inline Halves read_operands(const Wgmma& w) {
  Halves halves;
  if (!w.a[0]) {
    read_operand(halves, w.desc_a, false, 64);
  } else {
    halves.resize(64 * 16);
    for (int t = 0; t < GROUP_THREADS; t++)
      for (int r = 0; r < 4; r++)
        for (int e = 0; e < 2; e++)
          halves[(t / 32 * 16 + t % 32 / 4 + r % 2 * 8) * 16 + 2 * (t % 4) + e + r / 2 * 8] = w.a[t][r] >> (16 * e);
  }
  read_operand(halves, w.desc_b, w.rows_are_k, w.n);
  return halves;
}

/** f(place in (64, n), accumulator) for all accumulators of a wgmma. */
template <class F> void each_accumulator(const Wgmma& w, F f) {
  for (int t = 0; t < GROUP_THREADS; t++)
    for (int i = 0; i < w.n / 2; i++)
      f((t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * w.n + i / 4 * 8 + 2 * (t % 4) + i % 2, w.d[t][i]);
}

inline void issue(Warpgroup& g, Wgmma w) {
  if (!g.fenced) EMU_FAIL("wgmma without a wgmma_fence since the last wait");
  w.operands = read_operands(w);
  std::vector<float>& sums = g.sums[w.d[0]];
  if (sums.empty()) {
    sums.resize(64 * w.n);
    each_accumulator(w, [&](int at, float& d) { sums[at] = d, d = NAN; });
  }
  g.open.push_back(std::move(w));
}

inline void multiply(Warpgroup& g, const Wgmma& w) {
  if (read_operands(w) != w.operands) EMU_FAIL("wgmma: an operand changed before it was waited for");
  std::vector<float>& sums = g.sums[w.d[0]];
  std::vector<float> b(16 * w.n);
  auto number = [](uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  };
  for (int n = 0; n < w.n; n++)
    for (int k = 0; k < 16; k++) b[k * w.n + n] = number(w.operands[(64 + n) * 16 + k]);
  if (w.zero) std::fill(sums.begin(), sums.end(), 0.0f);
  constexpr int STRIP = 32;  // columns at a time: a length that the compiler knows, for SIMD
  for (int m = 0; m < 64; m++)
    for (int n = 0; n < w.n; n += STRIP) {
      float strip[STRIP], *row = &sums[m * w.n + n];
      memcpy(strip, row, sizeof strip);
      for (int k = 0; k < 16; k++) {
        float a = number(w.operands[m * 16 + k]);
        const float* column = &b[k * w.n + n];
        for (int e = 0; e < STRIP; e++) strip[e] += a * column[e];
      }
      memcpy(row, strip, sizeof strip);
    }
  if (wrong_wgmma) sums[17 * w.n + 5] += 1;
  if (unsteady_wgmma) sums[17 * w.n + 5] += launches % 2 * 0.002f;
}

/** The oldest `count` products are done: their sums go to the accumulators that no later one adds to. */
inline void finish(Warpgroup& g, size_t count) {
  for (size_t i = 0; i < count; i++) multiply(g, g.committed[i]);
  for (size_t i = 0; i < count; i++) {
    const Wgmma& w = g.committed[i];
    bool later = false;
    for (size_t j = count; j < g.committed.size(); j++) later |= g.committed[j].d[0] == w.d[0];
    for (const Wgmma& o : g.open) later |= o.d[0] == w.d[0];
    auto sums = g.sums.find(w.d[0]);
    if (later || sums == g.sums.end()) continue;
    bool touched = false;
    each_accumulator(w, [&](int at, float& d) { touched |= !std::isnan(d), d = sums->second[at]; });
    if (touched) EMU_FAIL("wgmma: an accumulator was written before it was waited for");
    g.sums.erase(sums);
  }
  g.committed.erase(g.committed.begin(), g.committed.begin() + count);
}

inline void begin_hopper_block() {
  mbarriers.clear(), loads.clear();
  for (Warpgroup& g : warpgroups) g = {};
}
/** What is still under way at the end of a block, or null. */
inline const char* unfinished() {
  if (!loads.empty()) return "TMA copies";
  for (Warpgroup& g : warpgroups)
    if (!g.open.empty() || !g.committed.empty()) return "wgmma products";
  return nullptr;
}
}  // namespace emu

template <int REGISTERS> inline void set_registers() {
  static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "setmaxnreg");
  emu::group_collective("setmaxnreg", nullptr, [](void**, emu::Warpgroup& g) {
    int groups = emu::block.total / emu::GROUP_THREADS, launched = 65536 / emu::block.total / 8 * 8, total = 0;
    if (REGISTERS > 128 ? REGISTERS < launched : REGISTERS > launched)
      EMU_FAIL("setmaxnreg %d in the wrong direction from %d", REGISTERS, launched);
    g.registers = REGISTERS;
    bool all_set = true;
    for (int i = 0; i < groups; i++)
      total += emu::warpgroups[i].registers * emu::GROUP_THREADS, all_set &= emu::warpgroups[i].registers > 0;
    if (all_set && total > 65536) EMU_FAIL("setmaxnreg: %d registers are more than an SM has", total);
  });
}

inline void wgmma_fence() {
  emu::group_collective("wgmma.fence", nullptr, [](void**, emu::Warpgroup& g) { g.fenced = true; });
}
struct EmuWgmmaLane {
  float* d;
  const uint32_t* a;
};
inline void emu_wgmma(EmuWgmmaLane mine, uint64_t desc_a, uint64_t desc_b, bool zero, bool rows_are_k, int n) {
  emu::group_collective("wgmma", &mine, [=](void** lanes, emu::Warpgroup& g) {
    emu::Wgmma w = {{}, {}, desc_a, desc_b, zero, rows_are_k, n, {}};
    for (int i = 0; i < emu::GROUP_THREADS; i++) w.d[i] = ((EmuWgmmaLane*)lanes[i])->d, w.a[i] = ((EmuWgmmaLane*)lanes[i])->a;
    emu::issue(g, std::move(w));
  });
}
template <int N> inline void wgmma_shared(float* d, uint64_t a, uint64_t b, bool zero) {
  emu_wgmma({d, nullptr}, a, b, zero, false, N);
}
template <int N> inline void wgmma_registers(float* d, const uint32_t* a, uint64_t b) {
  emu_wgmma({d, a}, 0, b, false, true, N);
}
inline void wgmma_commit() {
  emu::group_collective("wgmma.commit", nullptr, [](void**, emu::Warpgroup& g) {
    for (emu::Wgmma& w : g.open) g.committed.push_back(std::move(w));
    g.open.clear();
    g.groups.push_back(g.committed.size());
  });
}
template <int PENDING> inline void wgmma_wait() {
  emu::group_collective("wgmma.wait", nullptr, [](void**, emu::Warpgroup& g) {
    g.fenced = false;
    if (g.groups.size() <= PENDING) return;
    size_t groups = g.groups.size() - PENDING, count = g.groups[groups - 1];
    emu::finish(g, count);
    g.groups.erase(g.groups.begin(), g.groups.begin() + groups);
    for (size_t& end : g.groups) end -= count;
  });
}
#define HOPPER_SHARED(name) unsigned char* name = emu::dynamic_shared
