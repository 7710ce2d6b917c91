// attention_hopper.cuh: attention for Hopper (sm_90a: H100, H200), for head sizes 64 and 128. Part of kernels.cu, which
// includes it behind the portable kernels: read those first, the mathematics and the order of loops are the same, and
// nothing outside of this file needs to be known of wgmma, TMA and mbarriers. It has run on the emulator alone, never
// on a GPU; so it is used only where it agrees with the portable kernels when the device opens.
//
// What differs is who does what. A warpgroup is 4 warps that multiply together (wgmma): each owns 64 rows of the block.
// One more warpgroup loads: one thread starts copies (TMA) which the hardware carries out, and hands most of its
// registers to the others (setmaxnreg). Tiles go through STAGES stages of shared memory. Each stage has barriers there
// (mbarrier): `full` completes when all bytes of a tile have come, `empty` when every warp is done with it; the parity
// says which turn of the ring is meant. wgmma and TMA run beside the threads, so softmax of one tile overlaps products
// of another.
//
// A tile (ROWS, D) is one or two panels of 64 columns; a panel is ROWS rows of 128 bytes, whose chunks of 16 bytes TMA
// permutes by row % 8, which is swizzle<64>() of the portable kernels. wgmma finds its operands in shared memory by
// descriptors and undoes the permutation.
//
// Fragments. Of a 64 x N accumulator, a warp holds 16 rows. Element i of lane l is row l/4 + 8 (i/2 % 2), column
// 8 (i/4) + 2 (l%4) + i%2: the m16n8 accumulators of the portable kernels, one behind the other. So here too, rounded
// probabilities are the A operand of the next product.
#include <cuda.h>

namespace hopper {

// ---- sizes ---------------------------------------------------------------------------------------------------------

constexpr int WARPGROUP = 4 * WARP;
constexpr int BOX = 64;  // one copy: so many rows of 64 columns

typedef uint64_t mbarrier;
template <int STAGES> struct KeyBarriers {
  mbarrier own, k_full[STAGES], v_full[STAGES], k_empty[STAGES], v_empty[STAGES];
};
template <int STAGES> struct QueryBarriers {
  mbarrier own, full[STAGES], empty[STAGES];
};

/// GROUPS warpgroups of 64 rows each compute; with the one that loads they have the 65,536 registers of an SM.
template <int GROUPS_> struct Warpgroups {
  static constexpr int GROUPS = GROUPS_, OWN = 64 * GROUPS, THREADS = WARPGROUP * (GROUPS + 1);
  static constexpr int LOADING_REGISTERS = GROUPS == 3 ? 32 : 24, REGISTERS = GROUPS == 3 ? 160 : 240;
  static_assert(WARPGROUP * (LOADING_REGISTERS + GROUPS * REGISTERS) <= 65536, "more registers than an SM has");
};

/// Keys and values stream by (forward and dQ). OPERANDS own operands: Q, or Q and dO.
template <int D_, int GROUPS, int OPERANDS, int KEYS_, int STAGES_> struct KeyStreamShape : Warpgroups<GROUPS> {
  static constexpr int D = D_, KEYS = KEYS_, STAGES = STAGES_, GROUP_BYTES = 64 * D * sizeof(act);
  static constexpr int TILE_BYTES = KEYS * D * sizeof(act);
  static constexpr size_t TILES_AT = OPERANDS * GROUPS * GROUP_BYTES, BARRIERS_AT = TILES_AT + 2 * STAGES * TILE_BYTES;
  static constexpr size_t SHARED = BARRIERS_AT + sizeof(KeyBarriers<STAGES>);
  // The first groups end some tiles before the last one does; they need not release those, as no more tiles follow.
  static_assert((64 * (GROUPS - 1) + KEYS - 1) / KEYS <= STAGES, "a stage would be filled again before all release it");
};
template <int D> using ForwardShape = KeyStreamShape<D, D == 64 ? 3 : 2, 1, 128, D == 64 ? 3 : 2>;
template <int D> using QueryShape = KeyStreamShape<D, 2, 2, D == 64 ? 128 : 64, D == 64 ? 3 : 4>;  // dQ

/// Queries stream by (dK and dV), with their gradients of O, and columns of lse and delta.
template <int D_> struct KeyShape : Warpgroups<2> {
  static constexpr int D = D_, QUERIES = 64, STAGES = 4, GROUP_BYTES = 64 * D * sizeof(act);
  static constexpr int TILE_BYTES = QUERIES * D * sizeof(act);
  static constexpr size_t TILES_AT = 2 * GROUPS * GROUP_BYTES, COLUMNS_AT = TILES_AT + 2 * STAGES * TILE_BYTES;
  static constexpr size_t BARRIERS_AT = COLUMNS_AT + 2 * STAGES * QUERIES * sizeof(float);
  static constexpr size_t SHARED = BARRIERS_AT + sizeof(QueryBarriers<STAGES>);
};

#if defined(LOAM_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ON_HOPPER  // code for other GPUs has these kernels empty
#endif

#ifdef ON_HOPPER

// ---- PTX -----------------------------------------------------------------------------------------------------------

#ifndef LOAM_EMU
#define HOPPER_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

DEVICE void mbarrier_init(mbarrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to TMA.
DEVICE void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(mbarrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/// Arrives, and says how many bytes of copies belong to this turn.
DEVICE void mbarrier_expect(mbarrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
/// Waits until the turn of this parity is complete.
DEVICE void mbarrier_wait(mbarrier* b, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\n"
      "DONE:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

/// Starts the copy of a box of (B, T, heads, D); rows from T on become zeros.
DEVICE void tma_load(void* dst, const CUtensorMap* map, int column, int head, int row, int b, mbarrier* full) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(dst)),
      "l"(map), "r"(column), "r"(head), "r"(row), "r"(b), "r"(shared_address(full))
      : "memory");
}

template <int REGISTERS> DEVICE void set_registers() {
  if constexpr (REGISTERS > 128)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/// Before the first wgmma, and where registers of one were written since: orders them.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most PENDING committed groups still run.
template <int PENDING> DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define ACCUMULATORS8(d, i)                                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define ACCUMULATORS32(d, i) \
  ACCUMULATORS8(d, i), ACCUMULATORS8(d, i + 8), ACCUMULATORS8(d, i + 16), ACCUMULATORS8(d, i + 24)
#define NAMES32                                                                                              \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define NAMES64                                                                                               \
  NAMES32                                                                                                     \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63"
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "

/// d (64, N) = (zero ? 0 : d) + a (64, 16) b^T, b (N, 16), both in shared memory.
template <int N> DEVICE void wgmma_shared(float* d, uint64_t a, uint64_t b, bool zero) {
  static_assert(N == 64 || N == 128, "");
  int add = !zero;
  if constexpr (N == 128)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" WGMMA(128) "{" NAMES64 "}, %64, %65, p, 1, 1, 0, 0;\n}"
                 : ACCUMULATORS32(d, 0), ACCUMULATORS32(d, 32)
                 : "l"(a), "l"(b), "r"(add));
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" WGMMA(64) "{" NAMES32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : ACCUMULATORS32(d, 0)
                 : "l"(a), "l"(b), "r"(add));
}
/// d (64, N) += a (64, 16) b, a in registers, b (16, N) in shared memory.
template <int N> DEVICE void wgmma_registers(float* d, const uint32_t* a, uint64_t b) {
  static_assert(N == 64 || N == 128, "");
  if constexpr (N == 128)
    asm volatile(WGMMA(128) "{" NAMES64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : ACCUMULATORS32(d, 0), ACCUMULATORS32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else
    asm volatile(WGMMA(64) "{" NAMES32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : ACCUMULATORS32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

// ---- what the kernels have in common -------------------------------------------------------------------------------

/// By a shuffle the compiler knows that it is the same in all lanes, and so are the descriptors that follow from it:
/// they stay in uniform registers, where wgmma wants them.
DEVICE int warpgroup_id() { return (int)__shfl_sync(~0u, threadIdx.x / WARPGROUP, 0); }

/// A descriptor (PTX ISA, "matrix descriptor"): bits 0-13 address / 16, 16-29 leading and 32-45 stride byte offset /
/// 16, 62-63 = 1 for the 128-byte swizzle. The stride is from 8 rows of a panel to the next 8; the leading offset is
/// from a panel to the next where columns are N, and not used (1) where they are k.
DEVICE uint64_t descriptor(const void* tile, unsigned leading_bytes) {
  return (uint64_t)(shared_address(tile) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

/// Columns 16 i to 16 i + 15 of a tile (ROWS, D) as k: rows are M or N.
template <int ROWS> DEVICE uint64_t columns_of(uint64_t tile, int i) {
  return tile + i / 4 * (ROWS * 128 / 16) + i % 4 * 2;
}
DEVICE uint64_t by_columns(const void* tile) { return descriptor(tile, 16); }

/// Rows 16 i to 16 i + 15 of a tile (ROWS, D) as k: columns are N.
DEVICE uint64_t rows_of(uint64_t tile, int i) { return tile + i * (16 * 128 / 16); }
template <int ROWS> DEVICE uint64_t by_rows(const void* tile) { return descriptor(tile, ROWS * 128); }

/// Starts the copy of a tile (ROWS, D) of one head. One thread calls this; its bytes complete `full`.
template <int D, int ROWS>
DEVICE void load_tile(unsigned char* tile, const CUtensorMap* map, int head, int row, int b, mbarrier* full) {
#pragma unroll
  for (int column = 0; column < D; column += 64)
#pragma unroll
    for (int r = 0; r < ROWS; r += BOX)
      tma_load(tile + (column / 64 * ROWS + r) * 128, map, column, head, row + r, b, full);
}

/// S (64, N) = own rows (64, D) times a tile (N, D)^T: queued.
template <int D, int N> DEVICE void multiply_transposed(float* s, uint64_t own, uint64_t tile) {
#pragma unroll
  for (int i = 0; i < D / 16; i++) wgmma_shared<N>(s, columns_of<64>(own, i), columns_of<N>(tile, i), i == 0);
  wgmma_commit();
}

/// C (64, D) += P (64, N) times a tile (N, D): queued.
template <int D, int N> DEVICE void multiply(float* c, const uint32_t (*p)[4], uint64_t tile) {
#pragma unroll
  for (int i = 0; i < N / 16; i++) wgmma_registers<D>(c, p[i], rows_of(tile, i));
  wgmma_commit();
}

/// The accumulator P (64, N) as an A operand, rounded.
template <int N> DEVICE void round_to_operand(uint32_t (*a)[4], const float* p) {
#pragma unroll
  for (int i = 0; i < N / 4; i++) a[i / 4][i % 4] = pack_bf16(p[2 * i], p[2 * i + 1]);
}

/// Row of the warpgroup's 64 and column of element i of an accumulator.
DEVICE int row_of(int i) { return warp_id() % 4 * 16 + lane_id() / 4 + i / 2 % 2 * 8; }
DEVICE int column_of(int i) { return i / 4 * 8 + 2 * (lane_id() % 4) + i % 2; }

/// One lane of each warp says that the warp is done with a stage.
DEVICE void release(mbarrier* empty) {
  if (lane_id() == 0) mbarrier_arrive(empty);
}

/// Shared memory of a block by which keys and values stream.
template <class Shape> struct KeyStream {
  unsigned char *own, *k, *v;  // own operands, then stages of K and of V
  KeyBarriers<Shape::STAGES>* bar;
  const CUtensorMap* map;  // of qkv
  int k_head, v_head, b, first, tiles;  // so many tiles, from the first on; they are counted from 0
};
template <class Shape>
DEVICE KeyStream<Shape> key_stream(unsigned char* raw, const CUtensorMap* map, int k_head, int v_head, int b,
                                   int first, int tiles) {
  unsigned char *k = raw + Shape::TILES_AT, *v = k + Shape::STAGES * Shape::TILE_BYTES;
  auto* bar = (KeyBarriers<Shape::STAGES>*)(raw + Shape::BARRIERS_AT);
  KeyStream<Shape> at = {raw, k, v, bar, map, k_head, v_head, b, first, tiles};
  if (threadIdx.x == 0) {
    mbarrier_init(&at.bar->own, 1);
    for (int s = 0; s < Shape::STAGES; s++) {
      mbarrier_init(&at.bar->k_full[s], 1), mbarrier_init(&at.bar->v_full[s], 1);
      mbarrier_init(&at.bar->k_empty[s], 4 * Shape::GROUPS), mbarrier_init(&at.bar->v_empty[s], 4 * Shape::GROUPS);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  return at;
}

/// The loading thread: all tiles of K and V, each as soon as its stage is empty.
template <class Shape> DEVICE void stream_keys(const KeyStream<Shape>& at) {
  for (int tile = 0; tile < at.tiles; tile++) {
    int s = tile % Shape::STAGES, turn = tile / Shape::STAGES, row = (at.first + tile) * Shape::KEYS;
    if (turn > 0) mbarrier_wait(&at.bar->k_empty[s], (turn - 1) % 2);
    mbarrier_expect(&at.bar->k_full[s], Shape::TILE_BYTES);
    load_tile<Shape::D, Shape::KEYS>(at.k + s * Shape::TILE_BYTES, at.map, at.k_head, row, at.b, &at.bar->k_full[s]);
    if (turn > 0) mbarrier_wait(&at.bar->v_empty[s], (turn - 1) % 2);
    mbarrier_expect(&at.bar->v_full[s], Shape::TILE_BYTES);
    load_tile<Shape::D, Shape::KEYS>(at.v + s * Shape::TILE_BYTES, at.map, at.v_head, row, at.b, &at.bar->v_full[s]);
  }
}
template <class Shape> DEVICE unsigned char* keys_of(const KeyStream<Shape>& at, int tile) {
  return at.k + tile % Shape::STAGES * Shape::TILE_BYTES;
}
template <class Shape> DEVICE unsigned char* values_of(const KeyStream<Shape>& at, int tile) {
  return at.v + tile % Shape::STAGES * Shape::TILE_BYTES;
}
template <class Shape> DEVICE void wait_for_keys(const KeyStream<Shape>& at, int tile) {
  mbarrier_wait(&at.bar->k_full[tile % Shape::STAGES], tile / Shape::STAGES % 2);
}
template <class Shape> DEVICE void wait_for_values(const KeyStream<Shape>& at, int tile) {
  mbarrier_wait(&at.bar->v_full[tile % Shape::STAGES], tile / Shape::STAGES % 2);
}
template <class Shape> DEVICE void release_keys(const KeyStream<Shape>& at, int tile) {
  release(&at.bar->k_empty[tile % Shape::STAGES]);
}
template <class Shape> DEVICE void release_values(const KeyStream<Shape>& at, int tile) {
  release(&at.bar->v_empty[tile % Shape::STAGES]);
}

/// Where the documents of a thread's two rows of queries begin, and of the last row of its warp. Rows that do not exist are as
/// the last one.
struct Begins {
  int row[2], last;
};
template <bool DOCUMENTS> DEVICE Begins begins_of(const int* starts, int b, int T, int group0, int warp0) {
  if (!DOCUMENTS) return {{0, 0}, 0};
  starts += (size_t)b * T;
  return {{starts[min(group0 + row_of(0), T - 1)], starts[min(group0 + row_of(2), T - 1)]}, starts[min(warp0 + 16, T) - 1]};
}

/// Writes an accumulator (64, D) times a factor per row half, to rows from `to` on; rows from `valid` on do not exist.
template <int D>
DEVICE void store_rows(act* to, size_t stride, const float* c, const float* factor, int valid) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = row_of(2 * r);
    if (row >= valid) continue;
#pragma unroll
    for (int i = 2 * r; i < D / 2; i += 4)
      *(uint32_t*)(to + row * stride + column_of(i)) = pack_bf16(c[i] * factor[r], c[i + 1] * factor[r]);
  }
}
#endif  // ON_HOPPER

// ---- forward -------------------------------------------------------------------------------------------------------

/// Block: 64 queries of one head for each group; the queries with most keys come first. The scores of the next tile are
/// queued before O += P V of this one, and both run beside the softmax. A value that is not finite reaches the queries of
/// its whole tile of 128 keys, masked ones too: 0 times NaN is NaN.
template <int D, bool DOCUMENTS>
static __global__ void __launch_bounds__(ForwardShape<D>::THREADS, 1)
    forward_kernel(act* out, float* lse, const __grid_constant__ CUtensorMap qkv, const int* starts, int T, int H, int K,
                   float scale) {
#ifdef ON_HOPPER
  using Shape = ForwardShape<D>;
  constexpr int GROUPS = Shape::GROUPS, KEYS = Shape::KEYS;
  HOPPER_SHARED(raw1024);
  int group = warpgroup_id(), h = blockIdx.x, b = blockIdx.y, block0 = (gridDim.z - 1 - blockIdx.z) * Shape::OWN;
  const int first = DOCUMENTS ? starts[(size_t)b * T + block0] / KEYS : 0;
  int k_head = H + h / (H / K), tiles = (min(block0 + Shape::OWN, T) - 1) / KEYS + 1 - first;
  auto at = key_stream<Shape>(raw1024, &qkv, k_head, k_head + K, b, first, tiles);

  if (group == GROUPS) {  // loads
    set_registers<Shape::LOADING_REGISTERS>();
    if (threadIdx.x == WARPGROUP * GROUPS) {
      mbarrier_expect(&at.bar->own, GROUPS * Shape::GROUP_BYTES);
      for (int g = 0; g < GROUPS; g++)
        load_tile<D, 64>(at.own + g * Shape::GROUP_BYTES, &qkv, h, block0 + 64 * g, b, &at.bar->own);
      stream_keys(at);
    }
    return;
  }

  set_registers<Shape::REGISTERS>();
  int group0 = block0 + 64 * group, mine = min(tiles, (group0 + 63) / KEYS + 1 - first);  // tiles that this group's queries see
  int warp0 = group0 + warp_id() % 4 * 16;
  const Begins begins = begins_of<DOCUMENTS>(starts, b, T, group0, warp0);
  uint64_t q = by_columns(at.own + group * Shape::GROUP_BYTES);
  float o[D / 2] = {}, s[KEYS / 2], maximum[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {}, rescale[2];
  float log2_scale = scale * LOG2E;
  uint32_t p[KEYS / 16][4];
  /// Turns S into exp(S - maximum); `rescale` is what O has to be multiplied by.
  auto softmax = [&](int tile) {
    int key0 = (first + tile) * KEYS;
    if (key0 + KEYS - 1 > warp0 || (DOCUMENTS && begins.last > key0)) {  // the diagonal or a document's beginning is here
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++)
        if (key0 + column_of(i) > group0 + row_of(i) || (DOCUMENTS && key0 + column_of(i) < begins.row[i / 2 % 2]))
          s[i] = -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float highest = maximum[r];
#pragma unroll
      for (int i = 2 * r; i < KEYS / 2; i += 4) highest = fmaxf(highest, fmaxf(s[i], s[i + 1]));
      highest = quad_max(highest);
      float offset = highest * log2_scale;
      rescale[r] = exp2_approx((maximum[r] - highest) * log2_scale);
      maximum[r] = highest;
      sum[r] *= rescale[r];
#pragma unroll
      for (int i = 2 * r; i < KEYS / 2; i += 4)
#pragma unroll
        for (int e = i; e < i + 2; e++) {
          s[e] = exp2_approx(s[e] * log2_scale - offset);
          sum[r] += s[e];
        }
    }
  };

  mbarrier_wait(&at.bar->own, 0);
  wait_for_keys(at, 0);
  wgmma_fence();
  multiply_transposed<D, KEYS>(s, q, by_columns(keys_of(at, 0)));
  wgmma_wait<0>();
  release_keys(at, 0);
  softmax(0);
  round_to_operand<KEYS>(p, s);
#pragma unroll 1
  for (int tile = 1; tile < mine; tile++) {
    wait_for_values(at, tile - 1);
    wait_for_keys(at, tile);
    wgmma_fence();
    multiply_transposed<D, KEYS>(s, q, by_columns(keys_of(at, tile)));
    multiply<D, KEYS>(o, p, by_rows<KEYS>(values_of(at, tile - 1)));
    wgmma_wait<1>();  // S is here; O += P V still runs beside the softmax
    release_keys(at, tile);
    softmax(tile);
    wgmma_wait<0>();
    release_values(at, tile - 1);
    round_to_operand<KEYS>(p, s);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= rescale[i / 2 % 2];
  }
  wait_for_values(at, mine - 1);
  wgmma_fence();
  multiply<D, KEYS>(o, p, by_rows<KEYS>(values_of(at, mine - 1)));
  wgmma_wait<0>();
  release_values(at, mine - 1);

#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] = quad_sum(sum[r]);
    int row = group0 + row_of(2 * r);
    if (lane_id() % 4 == 0 && row < T) lse[((size_t)b * H + h) * T + row] = maximum[r] * scale + logf(sum[r]);
    sum[r] = 1 / sum[r];
  }
  store_rows<D>(out + (((size_t)b * T + group0) * H + h) * D, (size_t)H * D, o, sum, T - group0);
#endif
}

// ---- backward ------------------------------------------------------------------------------------------------------

/// dQ, and delta = rowsum(dO O) for the next kernel. The products of dQ run beside the scores of the next tile.
template <int D, bool DOCUMENTS>
static __global__ void __launch_bounds__(QueryShape<D>::THREADS, 1)
    dq_kernel(act* dqkv, float* delta, const act* dout, const act* out, const float* lse,
              const __grid_constant__ CUtensorMap qkv, const __grid_constant__ CUtensorMap dout_map, const int* starts,
              int T, int H, int K, float scale) {
#ifdef ON_HOPPER
  using Shape = QueryShape<D>;
  constexpr int GROUPS = Shape::GROUPS, KEYS = Shape::KEYS;
  HOPPER_SHARED(raw1024);
  int group = warpgroup_id(), h = blockIdx.x, b = blockIdx.y, block0 = (gridDim.z - 1 - blockIdx.z) * Shape::OWN;
  const int first = DOCUMENTS ? starts[(size_t)b * T + block0] / KEYS : 0;
  int k_head = H + h / (H / K), tiles = (min(block0 + Shape::OWN, T) - 1) / KEYS + 1 - first;
  auto at = key_stream<Shape>(raw1024, &qkv, k_head, k_head + K, b, first, tiles);

  if (group == GROUPS) {  // loads
    set_registers<Shape::LOADING_REGISTERS>();
    if (threadIdx.x == WARPGROUP * GROUPS) {
      mbarrier_expect(&at.bar->own, 2 * GROUPS * Shape::GROUP_BYTES);
      for (int g = 0; g < GROUPS; g++) {
        load_tile<D, 64>(at.own + g * Shape::GROUP_BYTES, &qkv, h, block0 + 64 * g, b, &at.bar->own);
        load_tile<D, 64>(at.own + (GROUPS + g) * Shape::GROUP_BYTES, &dout_map, h, block0 + 64 * g, b, &at.bar->own);
      }
      stream_keys(at);
    }
    return;
  }

  set_registers<Shape::REGISTERS>();
  int group0 = block0 + 64 * group, mine = min(tiles, (group0 + 63) / KEYS + 1 - first);  // tiles that this group's queries see
  int warp0 = group0 + warp_id() % 4 * 16;
  const Begins begins = begins_of<DOCUMENTS>(starts, b, T, group0, warp0);
  uint64_t q = by_columns(at.own + group * Shape::GROUP_BYTES);
  uint64_t d_o = by_columns(at.own + (GROUPS + group) * Shape::GROUP_BYTES);
  float row_delta[2], row_lse[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = group0 + row_of(2 * r);
    float sum = 0;
    if (row < T) {
      size_t first = (((size_t)b * T + row) * H + h) * D + lane_id() % 4 * (D / 4);
#pragma unroll
      for (int c = 0; c < D / 4; c += 8) {
        float x[8], y[8];
        load<8>(x, dout + first + c);
        load<8>(y, out + first + c);
#pragma unroll
        for (int e = 0; e < 8; e++) sum += x[e] * y[e];
      }
    }
    row_delta[r] = quad_sum(sum);
    size_t stat = ((size_t)b * H + h) * T + row;
    row_lse[r] = row < T ? lse[stat] * LOG2E : 0.0f;
    if (row < T && lane_id() % 4 == 0) delta[stat] = row_delta[r];
  }

  float dq[D / 2] = {}, s[KEYS / 2], dp[KEYS / 2], log2_scale = scale * LOG2E;
  uint32_t ds[KEYS / 16][4];
  /// dS = P (dP - delta) from S and dP, as an operand.
  auto gradient = [&](int tile) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i] *= dp[i] - row_delta[i / 2 % 2];
    int key0 = (first + tile) * KEYS;
    if (key0 + KEYS - 1 > warp0 || (DOCUMENTS && begins.last > key0)) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++)
        if (key0 + column_of(i) > group0 + row_of(i) || (DOCUMENTS && key0 + column_of(i) < begins.row[i / 2 % 2]))
          s[i] = 0;
    }
    round_to_operand<KEYS>(ds, s);
  };
  auto probabilities = [&]() {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i] = exp2_approx(s[i] * log2_scale - row_lse[i / 2 % 2]);
  };

  mbarrier_wait(&at.bar->own, 0);
  wait_for_keys(at, 0);
  wait_for_values(at, 0);
  wgmma_fence();
  multiply_transposed<D, KEYS>(s, q, by_columns(keys_of(at, 0)));
  multiply_transposed<D, KEYS>(dp, d_o, by_columns(values_of(at, 0)));
  wgmma_wait<0>();
  release_values(at, 0);
  probabilities();
  gradient(0);
#pragma unroll 1
  for (int tile = 1; tile < mine; tile++) {
    wait_for_keys(at, tile);
    wait_for_values(at, tile);
    wgmma_fence();
    multiply_transposed<D, KEYS>(s, q, by_columns(keys_of(at, tile)));
    multiply_transposed<D, KEYS>(dp, d_o, by_columns(values_of(at, tile)));
    multiply<D, KEYS>(dq, ds, by_rows<KEYS>(keys_of(at, tile - 1)));
    wgmma_wait<2>();  // S is here; dP and dQ of the tile before run beside the exponentials
    probabilities();
    wgmma_wait<0>();
    release_values(at, tile);
    release_keys(at, tile - 1);
    gradient(tile);
  }
  wgmma_fence();
  multiply<D, KEYS>(dq, ds, by_rows<KEYS>(keys_of(at, mine - 1)));
  wgmma_wait<0>();
  release_keys(at, mine - 1);
  int stride = (H + 2 * K) * D;
  float factor[2] = {scale, scale};
  store_rows<D>(dqkv + ((size_t)b * T + group0) * stride + h * D, stride, dq, factor, T - group0);
#endif
}

/// dK and dV. Block: 64 keys of one key head for each group; walks over the queries from the diagonal on, for each
/// query head of the key head in turn. S^T = K Q^T and dP^T = V dO^T: rows are keys, columns are queries.
template <int D, bool DOCUMENTS>
static __global__ void __launch_bounds__(KeyShape<D>::THREADS, 1)
    dkv_kernel(act* dqkv, const float* delta, const float* lse, const __grid_constant__ CUtensorMap qkv,
               const __grid_constant__ CUtensorMap dout, const int* starts, int T, int H, int K, float scale) {
#ifdef ON_HOPPER
  using Shape = KeyShape<D>;
  constexpr int GROUPS = Shape::GROUPS, QUERIES = Shape::QUERIES, STAGES = Shape::STAGES;
  HOPPER_SHARED(raw1024);
  unsigned char *queries = raw1024 + Shape::TILES_AT, *gradients = queries + STAGES * Shape::TILE_BYTES;
  float* columns = (float*)(raw1024 + Shape::COLUMNS_AT);
  auto* bar = (QueryBarriers<STAGES>*)(raw1024 + Shape::BARRIERS_AT);
  int group = warpgroup_id(), k = blockIdx.x, b = blockIdx.y, block0 = blockIdx.z * Shape::OWN;
  int heads = H / K, first = block0 / QUERIES, tiles = (T + QUERIES - 1) / QUERIES - first;
  if (DOCUMENTS) tiles = tiles_of_documents(starts + b * T + first * QUERIES, QUERIES, tiles, block0 + Shape::OWN - 1);
  int steps = heads * tiles;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar->own, 1);
    for (int s = 0; s < STAGES; s++)
      mbarrier_init(&bar->full[s], 2), mbarrier_init(&bar->empty[s], 4 * GROUPS);  // full: the copies and the columns
    mbarrier_fence_init();
  }
  __syncthreads();

  if (group == GROUPS) {  // loads: one warp tiles, another one columns
    set_registers<Shape::LOADING_REGISTERS>();
    int warp = warp_id() % 4, h = k * heads, tile = 0;
    if (warp == 0 && lane_id() == 0) {
      mbarrier_expect(&bar->own, 2 * GROUPS * Shape::GROUP_BYTES);
      for (int g = 0; g < GROUPS; g++) {
        load_tile<D, 64>(raw1024 + g * Shape::GROUP_BYTES, &qkv, H + k, block0 + 64 * g, b, &bar->own);
        load_tile<D, 64>(raw1024 + (GROUPS + g) * Shape::GROUP_BYTES, &qkv, H + K + k, block0 + 64 * g, b, &bar->own);
      }
      for (int step = 0; step < steps; step++) {
        int s = step % STAGES, turn = step / STAGES, row = (first + tile) * QUERIES;
        if (turn > 0) mbarrier_wait(&bar->empty[s], (turn - 1) % 2);
        mbarrier_expect(&bar->full[s], 2 * Shape::TILE_BYTES);
        load_tile<D, QUERIES>(queries + s * Shape::TILE_BYTES, &qkv, h, row, b, &bar->full[s]);
        load_tile<D, QUERIES>(gradients + s * Shape::TILE_BYTES, &dout, h, row, b, &bar->full[s]);
        if (++tile == tiles) tile = 0, h++;
      }
    } else if (warp == 1) {
      for (int step = 0; step < steps; step++) {
        int s = step % STAGES, turn = step / STAGES;
        if (turn > 0) mbarrier_wait(&bar->empty[s], (turn - 1) % 2);
        float* column = columns + s * 2 * QUERIES;
        for (int i = lane_id(); i < QUERIES; i += WARP) {
          int query = (first + tile) * QUERIES + i;
          size_t stat = ((size_t)b * H + h) * T + query;
          column[i] = query < T ? lse[stat] * LOG2E : 0.0f;
          column[QUERIES + i] = query < T ? delta[stat] : 0.0f;
        }
        __syncwarp();
        if (lane_id() == 0) mbarrier_arrive(&bar->full[s]);
        if (++tile == tiles) tile = 0, h++;
      }
    }
    return;
  }

  set_registers<Shape::REGISTERS>();
  int group0 = block0 + 64 * group, warp0 = group0 + warp_id() % 4 * 16;
  uint64_t keys = by_columns(raw1024 + group * Shape::GROUP_BYTES);
  uint64_t values = by_columns(raw1024 + (GROUPS + group) * Shape::GROUP_BYTES);
  float dk[D / 2] = {}, dv[D / 2] = {}, s[QUERIES / 2], dp[QUERIES / 2], log2_scale = scale * LOG2E;
  uint32_t p[QUERIES / 16][4], ds[QUERIES / 16][4];
  int tile = 0;  // of this step
  mbarrier_wait(&bar->own, 0);
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    int stage = step % STAGES, query0 = (first + tile) * QUERIES;
    if (++tile == tiles) tile = 0;
    unsigned char *q = queries + stage * Shape::TILE_BYTES, *d_o = gradients + stage * Shape::TILE_BYTES;
    const float* column = columns + stage * 2 * QUERIES;
    int last = DOCUMENTS ? starts[b * T + min(query0 + QUERIES, T) - 1] : 0;  // where the last query's document begins
    mbarrier_wait(&bar->full[stage], step / STAGES % 2);
    wgmma_fence();
    multiply_transposed<D, QUERIES>(s, keys, by_columns(q));
    multiply_transposed<D, QUERIES>(dp, values, by_columns(d_o));
    wgmma_wait<1>();  // S^T
#pragma unroll
    for (int i = 0; i < QUERIES / 2; i += 4) {
      float2 log_sum = *(const float2*)(column + column_of(i));
#pragma unroll
      for (int e = i; e < i + 4; e++) s[e] = exp2_approx(s[e] * log2_scale - (e % 2 ? log_sum.y : log_sum.x));
    }
    if (query0 < warp0 + 15 || (DOCUMENTS && last > warp0)) {
#pragma unroll
      for (int i = 0; i < QUERIES / 2; i++)
        if (query0 + column_of(i) < group0 + row_of(i) ||
            (DOCUMENTS && starts[b * T + min(query0 + column_of(i), T - 1)] > group0 + row_of(i)))
          s[i] = 0;
    }
    round_to_operand<QUERIES>(p, s);
    wgmma_fence();
    multiply<D, QUERIES>(dv, p, by_rows<QUERIES>(d_o));
    wgmma_wait<1>();  // dP^T; dV runs on
#pragma unroll
    for (int i = 0; i < QUERIES / 2; i += 4) {
      float2 row_delta = *(const float2*)(column + QUERIES + column_of(i));
#pragma unroll
      for (int e = i; e < i + 4; e++) s[e] *= dp[e] - (e % 2 ? row_delta.y : row_delta.x);
    }
    round_to_operand<QUERIES>(ds, s);
    wgmma_fence();
    multiply<D, QUERIES>(dk, ds, by_rows<QUERIES>(q));
    wgmma_wait<0>();
    __syncwarp();  // every lane has read its columns
    release(&bar->empty[stage]);
  }
  size_t stride = (H + 2 * K) * D;
  act* to = dqkv + ((size_t)b * T + group0) * stride + (H + k) * D;
  float key_factor[2] = {scale, scale}, value_factor[2] = {1, 1};
  store_rows<D>(to, stride, dk, key_factor, T - group0);
  store_rows<D>(to + K * D, stride, dv, value_factor, T - group0);
#endif
}

// ---- launches ------------------------------------------------------------------------------------------------------

static decltype(&cuTensorMapEncodeTiled) encode;  // of the driver, or null

/// The driver's function that describes arrays to TMA, found at run time so that nothing links with the driver.
static bool find_driver() {
  constexpr const char* NAME = "cuTensorMapEncodeTiled";
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  cudaError_t e = cudaGetDriverEntryPointByVersion(NAME, &function, 12000, cudaEnableDefault, &found);
#else
  cudaError_t e = cudaGetDriverEntryPoint(NAME, &function, cudaEnableDefault, &found);
#endif
  if (e != cudaSuccess) cudaGetLastError();  // clears it
  bool is_found = e == cudaSuccess && found == cudaDriverEntryPointSuccess;
  encode = is_found ? (decltype(encode))function : nullptr;
  return encode != nullptr;
}

/// Describes x (B, T, heads, D), copied in boxes of 64 rows and 64 columns of one head.
static int tensor_map(CUtensorMap* map, const act* x, int B, int T, int heads, int D) {
  cuuint64_t row = (cuuint64_t)heads * D * sizeof(act);
  cuuint64_t size[] = {(cuuint64_t)D, (cuuint64_t)heads, (cuuint64_t)T, (cuuint64_t)B};
  cuuint64_t stride[] = {D * sizeof(act), row, row * T};
  cuuint32_t box[] = {64, 1, BOX, 1}, step[] = {1, 1, 1, 1};
  CUresult e = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void*)x, size, stride, box, step,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(e == 0, "B=%d T=%d heads=%d D=%d: cuTensorMapEncodeTiled failed with code %d", B, T, heads, D, (int)e);
  return 0;
}

template <int D>
static int forward(act* out, float* lse, const act* qkv, const int* starts, int B, int T, int H, int K) {
  using Shape = ForwardShape<D>;
  CUtensorMap map;
  TRY(tensor_map(&map, qkv, B, T, H + 2 * K, D));
  auto hopper_forward = starts ? forward_kernel<D, true> : forward_kernel<D, false>;
  RESERVE_SHARED(hopper_forward, Shape::SHARED);
  LAUNCH(hopper_forward, dim3(H, B, ceil_div(T, Shape::OWN)), Shape::THREADS, Shape::SHARED, out, lse, map, starts, T, H,
         K, 1 / sqrtf(D));
  return 0;
}

template <int D>
static int backward(act* dqkv, float* delta, const act* dout, const act* out, const float* lse, const act* qkv,
                    const int* starts, int B, int T, int H, int K) {
  using Queries = QueryShape<D>;
  using Keys = KeyShape<D>;
  CUtensorMap map, dout_map;
  TRY(tensor_map(&map, qkv, B, T, H + 2 * K, D));
  TRY(tensor_map(&dout_map, dout, B, T, H, D));
  dim3 query_blocks(H, B, ceil_div(T, Queries::OWN)), key_blocks(K, B, ceil_div(T, Keys::OWN));
  float scale = 1 / sqrtf(D);
  auto hopper_dq = starts ? dq_kernel<D, true> : dq_kernel<D, false>;
  auto hopper_dkv = starts ? dkv_kernel<D, true> : dkv_kernel<D, false>;
  RESERVE_SHARED(hopper_dq, Queries::SHARED);
  RESERVE_SHARED(hopper_dkv, Keys::SHARED);
  LAUNCH(hopper_dq, query_blocks, Queries::THREADS, Queries::SHARED, dqkv, delta, dout, out, lse, map, dout_map, starts,
         T, H, K, scale);
  LAUNCH(hopper_dkv, key_blocks, Keys::THREADS, Keys::SHARED, dqkv, delta, lse, map, dout_map, starts, T, H, K, scale);
  return 0;
}

// ---- the check when the device opens -------------------------------------------------------------------------------

/// Waits for the stream, but not for ever: a kernel that waits for a copy that never comes does not end.
static int wait_for_check() {
  constexpr int LIMIT_MS = 10000;
  cudaError_t e;
  for (int ms = 0; (e = cudaStreamQuery(gpu.stream)) == cudaErrorNotReady; ms++) {
    CHECK(ms < LIMIT_MS, "Hopper's attention does not end on %s: set LOAM_ATTENTION=portable", gpu.properties.name);
    usleep(1000);
  }
  CHECK(e == cudaSuccess, "Hopper's attention fails on %s: %s: %s: set LOAM_ATTENTION=portable", gpu.properties.name,
        cudaGetErrorName(e), cudaGetErrorString(e));
  return 0;
}

/// How far x is from y, relative to y; infinite where a number is not finite.
static double distance(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); i++) {
    double difference = (double)x[i] - y[i];
    error += difference * difference, norm += (double)y[i] * y[i];
  }
  double relative = sqrt(error / norm);
  return relative >= 0 ? relative : INFINITY;
}

/// Runs head size D at a length that ends inside of every tile, with one document or several, Hopper's kernels twice and the
/// portable ones once, in the workspace. *wrong = what differs, or "".
template <int D, bool DOCUMENTS> static int check(std::string* wrong) {
  constexpr int B = 1, T = D == 64 ? 449 : 321, H = 2, K = 1;  // every ring of stages begins a second turn
  constexpr int ROUNDS = 3;                                        // two of Hopper's, then the portable
  constexpr double TOLERANCE = 0.01;                       // each is within 0.0025 of float64
  constexpr size_t QKV = (size_t)B * T * (H + 2 * K) * D, OUT = (size_t)B * T * H * D, STATS = (size_t)B * H * T;
  std::vector<act> inputs(QKV + OUT);
  uint32_t state = 1;
  for (act& x : inputs) {  // roughly normal
    float sum = -6;
    for (int i = 0; i < 12; i++) sum += ((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
    x = __float2bfloat16_rn(sum);
  }
  act *qkv = (act*)gpu.workspace, *dout = qkv + QKV;
  constexpr size_t RESULT_ACTS = OUT + QKV, ROUND_BYTES = RESULT_ACTS * sizeof(act) + 2 * STATS * sizeof(float);
  char* results = gpu.workspace + inputs.size() * sizeof(act);
  static_assert((QKV + OUT) * sizeof(act) + ROUNDS * ROUND_BYTES + T * sizeof(int) <= WORKSPACE_BYTES, "");
  std::vector<int> begins(T);
  for (int t = 0; t < T; t++) begins[t] = t < 60 ? 0 : t < 200 ? 60 : t < 201 ? 200 : 201;
  int* starts = DOCUMENTS ? (int*)(results + ROUNDS * ROUND_BYTES) : nullptr;
  if (starts) CUDA(cudaMemcpyAsync(starts, begins.data(), T * sizeof(int), cudaMemcpyHostToDevice, gpu.stream));
  CUDA(cudaMemcpyAsync(qkv, inputs.data(), inputs.size() * sizeof(act), cudaMemcpyHostToDevice, gpu.stream));
  CUDA(cudaMemsetAsync(results, 0xff, ROUNDS * ROUND_BYTES, gpu.stream));  // what is not written is NaN
  for (int round = 0; round < ROUNDS; round++) {
    act *out = (act*)(results + round * ROUND_BYTES), *dqkv = out + OUT;
    float *lse = (float*)(dqkv + QKV), *delta = lse + STATS;
    if (round < ROUNDS - 1) {
      TRY(forward<D>(out, lse, qkv, starts, B, T, H, K));
      TRY(backward<D>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K));
    } else {
      TRY(forward_of<D>(out, lse, qkv, starts, B, T, H, K));
      TRY(backward_of<D>(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K));
    }
  }
  std::vector<char> bytes(ROUNDS * ROUND_BYTES);
  TRY(wait_for_check());
  CUDA(cudaMemcpyAsync(bytes.data(), results, bytes.size(), cudaMemcpyDeviceToHost, gpu.stream));
  CUDA(cudaStreamSynchronize(gpu.stream));
  auto acts = [&](int round, size_t from, size_t n) {
    const act* first = (const act*)(bytes.data() + round * ROUND_BYTES) + from;
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++) values[i] = __bfloat162float(first[i]);
    return values;
  };
  auto stats = [&](int round) {
    const float* first = (const float*)(bytes.data() + round * ROUND_BYTES + RESULT_ACTS * sizeof(act));
    return std::vector<float>(first, first + 2 * STATS);
  };
  double out = distance(acts(0, 0, OUT), acts(2, 0, OUT)), dqkv = distance(acts(0, OUT, QKV), acts(2, OUT, QKV));
  double lse_and_delta = distance(stats(0), stats(2));
  char text[256] = "";
  if (!(out < TOLERANCE && dqkv < TOLERANCE && lse_and_delta < TOLERANCE))
    snprintf(text, sizeof text, "for head size %d%s out, dqkv or lse is %.2g, %.2g or %.2g from the portable kernels'", D,
             DOCUMENTS ? " and documents" : "", out, dqkv, lse_and_delta);
  else if (memcmp(bytes.data(), bytes.data() + ROUND_BYTES, ROUND_BYTES))
    snprintf(text, sizeof text, "for head size %d%s two runs differ", D, DOCUMENTS ? " and documents" : "");
  *wrong = text;
  return 0;
}
}  // namespace hopper
