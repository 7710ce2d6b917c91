// A stand-in for libnccl.so.2 that works on host memory, for ranks on one machine: lets the tests run every call that
// dist/nccl.ts makes. Names, arguments and in-place rules are those of nccl.h (2.30). The ranks meet in a shared file that the
// unique id names. LOAM_FAKE_NCCL_FAULT=<name> makes that function fail; LOAM_FAKE_NCCL_STALL=<name> has it wait for ever, and
// with "async " before the name, only what it begins. What waits for others does so on a thread of its own, as NCCL's does for
// a communicator that is not blocking.
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr int OK = 0, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, IN_PROGRESS = 7;
constexpr int INT8 = 0, FLOAT32 = 7, FLOAT64 = 8, SUM = 0;
constexpr int PATIENCE_S = 60;
constexpr size_t ROOM = 1 << 22;  // bytes of each rank

struct UniqueId {
  char name[128];
};

struct Shared {
  std::atomic<int> arrived, generation;
  char data[];
};

struct Communicator {
  int size, rank;
  Shared* shared;
  std::atomic<int> state;
};

static bool is_named(const char* variable, const std::string& name) {
  const char* wanted = getenv(variable);
  return wanted && name == wanted;
}

static int fault(const char* name) {
  while (is_named("LOAM_FAKE_NCCL_STALL", name)) sleep(1);
  return is_named("LOAM_FAKE_NCCL_FAULT", name) ? INTERNAL_ERROR : OK;
}

/** Has a thread do what a function begins. */
static int begin(Communicator* c, const char* name, std::function<int()> work) {
  c->state = IN_PROGRESS;
  std::thread([=] {
    while (is_named("LOAM_FAKE_NCCL_STALL", std::string("async ") + name)) sleep(1);
    int code = work();
    c->state = code;
  }).detach();
  return IN_PROGRESS;
}

/** Collectives are queued on the stream: what is before them in it comes first. A CPU has no stream. */
static void finish(void* stream) {
  if (stream) (*(void (**)(void*))stream)(stream);
}

static void barrier(Communicator* c) {
  int generation = c->shared->generation;
  if (++c->shared->arrived == c->size) {
    c->shared->arrived = 0;
    c->shared->generation++;
  } else {
    time_t end = time(nullptr) + PATIENCE_S;
    while (c->shared->generation == generation) {
      if (time(nullptr) > end) _exit(1);  // the others are gone: no process of a test stays behind
      sched_yield();
    }
  }
}

static char* room(Communicator* c, int rank) { return c->shared->data + rank * ROOM; }

static size_t bytes_of(int type) { return type == INT8 ? 1 : type == FLOAT32 ? 4 : 8; }

template <class T> static void add(Communicator* c, T* out, size_t first, size_t n) {
  for (size_t i = 0; i < n; i++) {
    T sum = ((T*)room(c, 0))[first + i];
    for (int rank = 1; rank < c->size; rank++) sum += ((T*)room(c, rank))[first + i];
    out[i] = sum;
  }
}

/** out (n) = the sum over all ranks of elements [first, first + n) of what each has sent (count). */
static int reduce(Communicator* c, const void* send, size_t count, void* out, size_t first, size_t n, int type) {
  if (count * bytes_of(type) > ROOM) return INVALID_ARGUMENT;
  memcpy(room(c, c->rank), send, count * bytes_of(type));
  barrier(c);
  if (type == FLOAT32)
    add(c, (float*)out, first, n);
  else
    add(c, (double*)out, first, n);
  barrier(c);
  return OK;
}

EXPORT int ncclGetVersion(int* version) { return *version = 23007, OK; }

EXPORT int ncclGetUniqueId(UniqueId* id) {
  if (int code = fault("ncclGetUniqueId")) return code;
  memset(id->name, 'x', sizeof id->name);  // all 128 bytes must arrive
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);  // a job that was killed leaves its file, and numbers of processes come again
  const char* path = "/dev/shm/loam_nccl_%d_%ld_%ld";
  int length = snprintf(id->name, sizeof id->name, path, (int)getpid(), (long)now.tv_sec, now.tv_nsec);
  return length > 0 ? OK : INTERNAL_ERROR;
}

struct Config {
  size_t size;
  uint32_t magic, version;
  int blocking;
};

EXPORT int ncclCommInitRankConfig(Communicator** communicator, int size, UniqueId id, int rank, const Config* config) {
  if (int code = fault("ncclCommInitRankConfig")) return code;
  if (id.name[127] != 'x') return INVALID_ARGUMENT;
  if (config->size != sizeof *config || config->magic != 0xcafebeef || config->version != 21400) return INVALID_ARGUMENT;
  if (config->blocking != 0) return INVALID_ARGUMENT;
  int file = open(id.name, O_RDWR | O_CREAT, 0600);
  size_t bytes = sizeof(Shared) + size * ROOM;
  if (file < 0 || ftruncate(file, bytes)) return INTERNAL_ERROR;
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (map == MAP_FAILED) return INTERNAL_ERROR;
  Communicator* c = *communicator = new Communicator{size, rank, (Shared*)map, {OK}};
  return begin(c, "ncclCommInitRankConfig", [=] {
    barrier(c);
    if (rank == 0) unlink(id.name);
    return OK;
  });
}

/** The calls of a group begin together, at its end. */
static bool is_group;
static const char* name_of;  // the group's last function
static std::vector<std::function<int()>> group;
static Communicator* group_of;

EXPORT int ncclGroupStart() {
  is_group = true;
  return OK;
}
EXPORT int ncclReduce(const void* send, void* receive, size_t count, int type, int op, int root, Communicator* c, void* stream) {
  finish(stream);
  if (int code = fault("ncclReduce")) return code;
  if (!is_group || type != FLOAT32 || op != SUM || root < 0 || root >= c->size) return INVALID_ARGUMENT;
  group_of = c, name_of = "ncclReduce";
  group.push_back([=] {
    std::vector<float> others(c->rank == root ? 0 : count);  // what is no root's stays
    return reduce(c, send, count, c->rank == root ? receive : others.data(), 0, count, type);
  });
  return IN_PROGRESS;
}
EXPORT int ncclGroupEnd() {
  is_group = false;
  auto work = std::move(group);
  group.clear();
  if (work.empty()) return OK;
  return begin(group_of, name_of, [work] {
    for (auto& call : work)
      if (int code = call()) return code;
    return OK;
  });
}

EXPORT int ncclAllGather(const void* send, void* receive, size_t count, int type, Communicator* c, void* stream) {
  finish(stream);
  if (int code = fault("ncclAllGather")) return code;
  if (type != INT8 || send != (const char*)receive + count * c->rank || count > ROOM) return INVALID_ARGUMENT;
  return begin(c, "ncclAllGather", [=] {
    memcpy(room(c, c->rank), send, count);
    barrier(c);
    for (int rank = 0; rank < c->size; rank++) memcpy((char*)receive + rank * count, room(c, rank), count);
    barrier(c);
    return OK;
  });
}

EXPORT int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, Communicator* c, void* stream) {
  finish(stream);
  if (int code = fault("ncclAllReduce")) return code;
  if (type == INT8 || op != SUM) return INVALID_ARGUMENT;
  return begin(c, "ncclAllReduce", [=] { return reduce(c, send, count, receive, 0, count, type); });
}

EXPORT int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, Communicator* c, void* stream) {
  finish(stream);
  if (int code = fault("ncclBroadcast")) return code;
  if (type != INT8 || root < 0 || root >= c->size || count > ROOM) return INVALID_ARGUMENT;
  auto work = [=] {
    if (c->rank == root) memcpy(room(c, root), send, count);
    barrier(c);
    memcpy(receive, room(c, root), count);
    barrier(c);
    return OK;
  };
  if (!is_group) return begin(c, "ncclBroadcast", work);
  group_of = c, name_of = "ncclBroadcast";
  group.push_back(work);
  return IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(Communicator* c, int* code) {
  if (int own = fault("ncclCommGetAsyncError")) return own;
  int state = fault("async");
  *code = state ? state : (int)c->state;
  return OK;
}
EXPORT int ncclCommAbort(Communicator*) { return fault("ncclCommAbort"); }
EXPORT int ncclCommFinalize(Communicator* c) {
  if (int code = fault("ncclCommFinalize")) return code;
  return begin(c, "ncclCommFinalize", [=] { return barrier(c), OK; });
}
EXPORT int ncclCommDestroy(Communicator* c) { return delete c, OK; }
EXPORT const char* ncclGetErrorString(int code) {
  return code == INTERNAL_ERROR ? "internal error" : "invalid argument";
}
EXPORT const char* ncclGetLastError(Communicator*) { return "said the stand-in"; }
