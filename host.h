// host.h: what kernels.cpp and kernels.cu have in common, code of the host alone: the text of the first failure, what
// this process may use of the machine, and files of tokens. Each of the two includes it once, after kernels.h.
#ifndef LOAM_HOST_H
#define LOAM_HOST_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

// ---- failures: the first one is kept as text ------------------------------------------------------------------------

static std::mutex failure_mutex;
static char failure[5120];  // room for the longest path, 4096, and what is wrong with it

/// Keeps the text of the first failure for last_error() and returns the code of a failure.
__attribute__((format(printf, 1, 2))) static int fail(const char* format, ...) {
  std::lock_guard<std::mutex> lock(failure_mutex);
  if (failure[0]) return 1;
  va_list values;
  va_start(values, format);
  vsnprintf(failure, sizeof failure, format, values);
  va_end(values);
  return 1;
}

static thread_local const char* op = "";  // the function of kernels.h that was called: a text begins with it

#define FAIL(format, ...) return fail("%s: " format, op, ##__VA_ARGS__)
#define CHECK(condition, ...)            \
  do {                                   \
    if (!(condition)) FAIL(__VA_ARGS__); \
  } while (0)
/// Where the file is at fault, not the call; a text begins with its path.
#define FAIL_FILE(...) return fail(__VA_ARGS__), LOAM_BAD_FILE
#define TRY(call)                       \
  do {                                  \
    if (int code = (call)) return code; \
  } while (0)

int last_error(char* text, int32_t capacity) {
  if (!text || capacity < 1) return 1;
  std::lock_guard<std::mutex> lock(failure_mutex);
  snprintf(text, capacity, "%s", failure);
  failure[0] = 0;
  return 0;
}

int abi_version(void) { return LOAM_ABI_VERSION; }

// ---- arguments: what every function checks before it touches memory --------------------------------------------------

typedef std::initializer_list<int64_t> Sizes;
typedef std::initializer_list<const void*> Addresses;

/// Values together with their names, for messages: SIZES(N, C) is "N, C", {N, C}.
#define SIZES(...) #__VA_ARGS__, {__VA_ARGS__}
#define ADDRESSES(...) #__VA_ARGS__, {__VA_ARGS__}
/// "N=4 C=8", for the end of a message.
#define SIZE_TEXT(...) SizeText(SIZES(__VA_ARGS__)).text

/// The name at `index` of "N, V, C".
struct Name {
  char text[32];
  Name(const char* names, int index) {
    for (; index > 0; index--) names = strchr(names, ',') + 2;
    snprintf(text, sizeof text, "%.*s", (int)strcspn(names, ","), names);
  }
};

struct SizeText {
  char text[256] = "";
  SizeText(const char* names, Sizes sizes) {
    int index = 0, used = 0;
    for (long long size : sizes) {
      const char* space = index ? " " : "";
      used += snprintf(text + used, sizeof text - used, "%s%s=%lld", space, Name(names, index).text, size);
      index++;
    }
  }
};

/// No size is below 1, no address is 0.
static int check_arguments(const char* size_names, Sizes sizes, const char* address_names, Addresses addresses) {
  int index = 0;
  for (int64_t size : sizes) {
    CHECK(size >= 1, "%s must be at least 1 (%s)", Name(size_names, index).text, SizeText(size_names, sizes).text);
    index++;
  }
  index = 0;
  for (const void* address : addresses) {
    CHECK(address, "the address of %s is 0 (%s)", Name(address_names, index).text, SizeText(size_names, sizes).text);
    index++;
  }
  return 0;
}

static int use_device();  // each library's own: fails where no device is open

/// The first line of a function that works on the device: BEGIN(SIZES(N, C), ADDRESSES(out, x)).
#define BEGIN(...)   \
  op = __func__;     \
  TRY(use_device()); \
  TRY(check_arguments(__VA_ARGS__))
/// The first line of one that the host does alone.
#define BEGIN_ON_HOST(...) \
  op = __func__;           \
  TRY(check_arguments(__VA_ARGS__))

/// Of rmsnorm: a group of rows does not reach into the next one.
static int check_groups(int N, int C, int group, int stride) {
  CHECK((int64_t)group * C <= stride, "stride=%d must be at least group * C (%s)", stride, SIZE_TEXT(N, C, group));
  return 0;
}

/// Of dropout(): the random words that drop a value are those below it, and what the others are multiplied with.
struct Dropping {
  uint32_t limit;
  float keep;
  explicit Dropping(double rate) : limit((uint32_t)ceil(rate * 4294967296.0)), keep((float)(1.0 / (1.0 - rate))) {}
};

// ---- limits: what this process may use of the machine ----------------------------------------------------------------
//
// Its processes share the memory of the machine, and in a container or a job of Slurm the cgroup that it is in sets a
// limit below that, at which the system kills without a word. Cgroups are nested, each with limits of its own, in one
// hierarchy (version 2) or one for each controller (version 1); a container may see only the lower end of the path.

struct HostLimits {
  int64_t free_bytes = INT64_MAX, total_bytes = INT64_MAX;
  double cpus = INFINITY;  // processor time a second
  std::string source;      // of the memory limit

  void limit_memory(int64_t total, int64_t used, const std::string& from) {
    int64_t left = std::max<int64_t>(0, total - used);
    if (left < free_bytes) free_bytes = left, total_bytes = total, source = from;
  }
};

static std::string read_text(const std::string& path) {
  std::string text;
  char part[4096];
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return text;
  for (ssize_t got; (got = read(file, part, sizeof part)) > 0;) text.append(part, got);
  close(file);
  return text;
}

/// The number behind `key` at the beginning of a line, or behind the beginning of the text where key is ""; -1 if none.
static int64_t number_after(const std::string& text, const std::string& key) {
  size_t at = key.empty() ? 0 : ("\n" + text).find("\n" + key);
  if (at == std::string::npos) return -1;
  const char* from = text.c_str() + at + key.size();
  char* end;
  long long value = strtoll(from, &end, 10);
  return end == from ? -1 : value;
}

static std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

static bool has_word(const std::string& list, const std::string& word) {
  std::vector<std::string> words = split(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// mountinfo writes a space in a path as \040.
static std::string without_escapes(const std::string& path) {
  std::string plain;
  for (size_t i = 0; i < path.size(); i++) {
    bool escape = path[i] == '\\' && i + 3 < path.size();
    plain += escape ? (char)strtol(path.substr(i + 1, 3).c_str(), nullptr, 8) : path[i];
    if (escape) i += 3;
  }
  return plain;
}

/// The directories of the cgroups that this process is in, its own first, in the hierarchy of a controller ("" = version 2).
static std::vector<std::string> cgroup_directories(const std::string& root, const std::string& controller) {
  std::string own, mount, mounted;  // `mount` shows the cgroup `mounted` and what is below it
  for (const std::string& line : split(read_text(root + "/proc/self/cgroup"), '\n')) {  // 4:memory:/a/b or 0::/a/b
    size_t list = line.find(':') + 1, path = line.find(':', list) + 1;
    if (!list || !path) continue;
    std::string controllers = line.substr(list, path - list - 1);
    if (controller.empty() ? controllers.empty() : has_word(controllers, controller)) own = line.substr(path);
  }
  for (const std::string& line : split(read_text(root + "/proc/self/mountinfo"), '\n')) {
    // 35 31 0:32 <mounted> <mount> rw,relatime ... - cgroup cgroup rw,memory
    std::vector<std::string> fields = split(line, ' ');
    size_t dash = std::find(fields.begin(), fields.end(), "-") - fields.begin();
    if (dash + 3 >= fields.size() || dash < 5) continue;
    bool is_it = controller.empty() ? fields[dash + 1] == "cgroup2"
                                    : fields[dash + 1] == "cgroup" && has_word(fields[dash + 3], controller);
    if (is_it && mount.empty()) mounted = without_escapes(fields[3]), mount = without_escapes(fields[4]);
  }
  if (own.empty() || mount.empty()) return {};
  if (mounted == "/") mounted = "";
  bool below = (own + "/").compare(0, mounted.size() + 1, mounted + "/") == 0;
  std::string path = below ? own.substr(mounted.size()) : "";
  if (path.find("..") != std::string::npos || access((root + mount + path).c_str(), F_OK)) path = "";  // out of sight
  std::vector<std::string> directories;
  for (; !path.empty() && path != "/"; path.erase(path.rfind('/'))) directories.push_back(mount + path);
  directories.push_back(mount);
  return directories;
}

static void read_cgroup_2(HostLimits* limits, const std::string& root, const std::string& directory) {
  std::string at = root + directory + "/", stat = read_text(at + "memory.stat");
  int64_t used = number_after(read_text(at + "memory.current"), "");
  for (const char* file : {"memory.max", "memory.high"}) {  // "max" is no number
    int64_t total = number_after(read_text(at + file), "");
    if (total < 0 || used < 0) continue;
    int64_t cache = std::max<int64_t>(0, number_after(stat, "inactive_file ") + number_after(stat, "active_file "));
    limits->limit_memory(total, used - cache, std::string(file) + " of cgroup " + directory);
  }
  long long quota, period;  // microseconds in each of so many: "150000 100000", or "max 100000"
  int numbers = sscanf(read_text(at + "cpu.max").c_str(), "%lld %lld", &quota, &period);
  if (numbers == 2 && quota > 0 && period > 0) limits->cpus = std::min(limits->cpus, (double)quota / period);
}

static void read_memory_cgroup_1(HostLimits* limits, const std::string& root, const std::string& directory) {
  std::string at = root + directory + "/", stat = read_text(at + "memory.stat");
  int64_t used = number_after(read_text(at + "memory.usage_in_bytes"), "");
  int64_t cache = std::max<int64_t>(
      0, number_after(stat, "total_inactive_file ") + number_after(stat, "total_active_file "));
  auto limit = [&](int64_t total, const char* name) {
    bool is_set = total >= 0 && total < INT64_MAX / 2 && used >= 0;
    if (is_set) limits->limit_memory(total, used - cache, name + (" of cgroup " + directory));
  };
  limit(number_after(read_text(at + "memory.limit_in_bytes"), ""), "memory.limit_in_bytes");
  limit(number_after(stat, "hierarchical_memory_limit "), "hierarchical_memory_limit");  // of all above, seen or not
}

static void read_cpu_cgroup_1(HostLimits* limits, const std::string& root, const std::string& directory) {
  int64_t quota = number_after(read_text(root + directory + "/cpu.cfs_quota_us"), "");  // -1: none
  int64_t period = number_after(read_text(root + directory + "/cpu.cfs_period_us"), "");
  if (quota > 0 && period > 0) limits->cpus = std::min(limits->cpus, (double)quota / period);
}

/// What is left of the memory without swapping, and how much of the processors it may use, by the files of /proc and of
/// the cgroups. They are read below `root`, which is "" but in tests.
static HostLimits read_host_limits(const std::string& root) {
  HostLimits limits;
  std::string memory = read_text(root + "/proc/meminfo");
  int64_t total = 1024 * number_after(memory, "MemTotal:"), left = 1024 * number_after(memory, "MemAvailable:");
  if (total <= 0) total = left = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);  // macOS
  limits.limit_memory(total, total - left, "the machine's memory");
  for (const std::string& directory : cgroup_directories(root, "")) read_cgroup_2(&limits, root, directory);
  for (const std::string& directory : cgroup_directories(root, "memory")) {
    read_memory_cgroup_1(&limits, root, directory);
  }
  for (const std::string& directory : cgroup_directories(root, "cpu")) read_cpu_cgroup_1(&limits, root, directory);
  return limits;
}

/// host_limits() under the name of the function that asks.
static int find_limits(int64_t* limits, char* source, int32_t capacity, const char* root) {
  try {
    HostLimits found = read_host_limits(root);
    limits[0] = found.free_bytes, limits[1] = found.total_bytes;
    limits[2] = isinf(found.cpus) ? 0 : std::max<int64_t>(1, (int64_t)ceil(found.cpus));
    snprintf(source, capacity, "%s", found.source.c_str());
  } catch (...) {
    FAIL("no memory for the texts of this machine's limits");
  }
  return 0;
}

int host_limits(int64_t* limits, char* source, int32_t capacity, const char* root) {
  BEGIN_ON_HOST(SIZES(capacity), ADDRESSES(limits, source, root));
  return find_limits(limits, source, capacity, root);
}

// ---- the end of a process that waits for ever -----------------------------------------------------------------------

static char last_words[1024];
static int32_t last_code;

static void end_now(int) {
  if (write(2, last_words, strlen(last_words)) < 0) {  // like _exit(), allowed wherever a signal comes
    // stderr is gone: the exit code has to do
  }
  _exit(last_code);
}

int end_after(int64_t ms, int32_t code, const char* text) {
  BEGIN_ON_HOST(SIZES(), ADDRESSES(text));
  CHECK(ms >= 0, "ms=%lld must not be negative", (long long)ms);
  struct itimerval never = {}, then = {};
  setitimer(ITIMER_REAL, &never, nullptr);  // before the words change
  if (ms == 0) return 0;
  snprintf(last_words, sizeof last_words, "%s", text);
  last_code = code;
  struct sigaction action = {};
  action.sa_handler = end_now;
  then.it_value.tv_sec = ms / 1000, then.it_value.tv_usec = ms % 1000 * 1000;
  if (sigaction(SIGALRM, &action, nullptr) || setitimer(ITIMER_REAL, &then, nullptr)) FAIL("%s", strerror(errno));
  return 0;
}

// ---- token data: windows of files -----------------------------------------------------------------------------------
//
// Windows are read, not mapped: three times faster, resident memory does not grow with what was read, and a file that is
// cut short is an error with a text, where a mapping ends the process by SIGBUS. The file stays open: one that is removed
// or replaced by renaming goes on being read as it was.

enum { TRAINED = 1, BEGINS = 2 };  // the bits of a byte of a mask

struct TokenFile {
  int descriptor = -1;  // -1: this handle is free
  int header_bytes, token_bytes;
  int64_t tokens;
  struct stat opened;  // what the file was when it was opened
  std::string path;
};

static std::vector<TokenFile> token_files;  // a handle is a place in it

static TokenFile* token_file(int handle) {
  bool valid = handle >= 0 && handle < (int)token_files.size() && token_files[handle].descriptor >= 0;
  return valid ? &token_files[handle] : nullptr;
}

static int describe_tokens(TokenFile* file, const char* path) {
  if (fstat(file->descriptor, &file->opened)) FAIL_FILE("\"%s\": its size is not known: %s", path, strerror(errno));
  if (!S_ISREG(file->opened.st_mode)) FAIL_FILE("\"%s\": it is no regular file", path);
  int64_t bytes = file->opened.st_size - file->header_bytes;
  if (bytes < file->token_bytes || bytes % file->token_bytes) {
    FAIL_FILE("\"%s\": it has %lld bytes, should have %d of header and then tokens of %d bytes", path,
              (long long)file->opened.st_size, file->header_bytes, file->token_bytes);
  }
  file->tokens = bytes / file->token_bytes;
  return 0;
}

int data_open(int64_t* info, const char* path, int32_t header_bytes, int32_t token_bytes) {
  BEGIN_ON_HOST(SIZES(), ADDRESSES(info, path));
  if (token_bytes != 1 && token_bytes != 2 && token_bytes != 4) {
    FAIL("token_bytes=%d must be 2 or 4, or 1 for a mask (%s)", token_bytes, path);
  }
  if (header_bytes < 0) FAIL("header_bytes=%d must be at least 0 (%s)", header_bytes, path);
  size_t handle = 0;
  while (handle < token_files.size() && token_files[handle].descriptor >= 0) handle++;
  try {
    if (handle == token_files.size()) token_files.emplace_back();
    token_files[handle].path = path;
  } catch (...) {
    FAIL("no memory for the list of files (%s)", path);
  }
  TokenFile* file = &token_files[handle];
  file->header_bytes = header_bytes, file->token_bytes = token_bytes;
  file->descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (file->descriptor < 0) {
    const char* more = errno == EMFILE ? " (each shard stays open; raise `ulimit -n`)" : "";
    FAIL_FILE("\"%s\": it does not open: %s%s", path, strerror(errno), more);
  }
  if (int code = describe_tokens(file, path)) {
    close(file->descriptor);
    file->descriptor = -1;
    return code;
  }
  info[0] = (int64_t)handle, info[1] = file->tokens;
  return 0;
}

int data_close(int32_t handle) {
  op = __func__;
  TokenFile* file = token_file(handle);
  if (!file) FAIL("handle %d is not open", handle);
  close(file->descriptor);
  file->descriptor = -1;
  return 0;
}

/// Fills `to` with n tokens from `start` on, as they are in the file.
static int read_tokens(const TokenFile& file, void* to, int64_t start, int64_t n) {
  int64_t bytes = n * file.token_bytes, from = file.header_bytes + start * file.token_bytes;
  for (int64_t done = 0; done < bytes;) {
    ssize_t got = pread(file.descriptor, (char*)to + done, bytes - done, from + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      FAIL_FILE("\"%s\": its %lld bytes at %lld could not be read: %s", file.path.c_str(), (long long)bytes,
                (long long)from, strerror(errno));
    }
    if (got == 0) {
      struct stat now; // it may end long before the place that was asked for
      long long end = fstat(file.descriptor, &now) ? from + done : now.st_size;
      FAIL_FILE("\"%s\": it ends at byte %lld, should have %lld bytes: it was cut short while it was in use",
                file.path.c_str(), end, (long long)file.opened.st_size);
    }
    done += got;
  }
  return 0;
}

/// A file that another program writes to while it is read would give a mixture of old and new tokens that nothing has
/// verified. What was only touched stops a run too; resuming compares the checksums and goes on.
static int check_unchanged(const TokenFile& file) {
  struct stat now;
  if (fstat(file.descriptor, &now)) {
    FAIL_FILE("\"%s\": its state is not known: %s", file.path.c_str(), strerror(errno));
  }
#ifdef __APPLE__
#define MODIFIED(status) (status).st_mtimespec
#else
#define MODIFIED(status) (status).st_mtim
#endif
  if (now.st_size != file.opened.st_size) {
    FAIL_FILE("\"%s\": it has %lld bytes, should have %lld: its size changed while it was in use", file.path.c_str(),
              (long long)now.st_size, (long long)file.opened.st_size);
  }
  bool same = MODIFIED(now).tv_sec == MODIFIED(file.opened).tv_sec &&
              MODIFIED(now).tv_nsec == MODIFIED(file.opened).tv_nsec;
  if (!same) FAIL_FILE("\"%s\": it was written to while it was in use", file.path.c_str());
  return 0;
}

/// Copies T + 1 tokens into x and y, which overlap by all but one. Returns the place of the first token >= V, or -1.
template <class TOKEN>
static int64_t gather(int32_t* x, int32_t* y, const TOKEN* tokens, int T, int V) {
  bool valid = tokens[0] < (uint32_t)V;
  x[0] = (int32_t)tokens[0];
  for (int t = 1; t < T; t++) {
    x[t] = y[t - 1] = (int32_t)tokens[t];
    valid &= tokens[t] < (uint32_t)V;
  }
  y[T - 1] = (int32_t)tokens[T];
  valid &= tokens[T] < (uint32_t)V;
  if (valid) return -1;
  int64_t t = 0;
  while (tokens[t] < (uint32_t)V) t++;
  return t;
}

/// Reads the T + 1 tokens of a window, as they are in the file.
static int read_window(std::vector<char>* window, TokenFile* file, int64_t start, int T) {
  if (start < 0 || start > file->tokens - T - 1) {
    FAIL("tokens %lld to %lld are outside the %lld of \"%s\"", (long long)start,
                (long long)(start + T), (long long)file->tokens, file->path.c_str());
  }
  try {
    window->resize(((int64_t)T + 1) * file->token_bytes);
  } catch (...) {
    FAIL("no memory for a window of T=%d", T);
  }
  if (int code = read_tokens(*file, window->data(), start, (int64_t)T + 1)) return code;
  return check_unchanged(*file);
}

static thread_local std::vector<char> window;

int data_gather(int32_t* x, int32_t* y, int32_t handle, int64_t start, int32_t T, int32_t V) {
  BEGIN_ON_HOST(SIZES(T, V), ADDRESSES(x, y));
  TokenFile* file = token_file(handle);
  if (!file || file->token_bytes == 1) FAIL("handle %d is not open, or a mask", handle);
  if (int code = read_window(&window, file, start, T)) return code;
  const uint16_t* tokens2 = (const uint16_t*)window.data();
  const uint32_t* tokens4 = (const uint32_t*)window.data();
  int64_t wrong = file->token_bytes == 2 ? gather(x, y, tokens2, T, V) : gather(x, y, tokens4, T, V);
  if (wrong < 0) return 0;
  uint32_t token = file->token_bytes == 2 ? tokens2[wrong] : tokens4[wrong];
  FAIL_FILE("\"%s\": token %lld is %u, should be below vocab_size %d", file->path.c_str(), (long long)(start + wrong),
            token, V);
}

int data_mask(int32_t* y, int32_t* starts, int32_t handle, int64_t start, int32_t T) {
  BEGIN_ON_HOST(SIZES(T), ADDRESSES(y));
  TokenFile* file = token_file(handle);
  if (!file || file->token_bytes != 1) FAIL("handle %d is not open, or no mask", handle);
  if (int code = read_window(&window, file, start, T)) return code;
  const char* mask = window.data();
  for (int t = 0; t < T; t++) y[t] = mask[t + 1] & TRAINED ? y[t] : -1;
  for (int t = 0, first = 0; starts && t < T; t++) {
    if (mask[t] & BEGINS) first = t;
    starts[t] = first;
  }
  return 0;
}

int document_starts(int32_t* starts, const int32_t* x, int32_t T, int32_t bos) {
  BEGIN_ON_HOST(SIZES(T), ADDRESSES(starts, x));
  for (int t = 0, first = 0; t < T; t++) {
    if (x[t] == bos) first = t;
    starts[t] = first;
  }
  return 0;
}

#endif
