// A cable with a delay between two network namespaces, for kernels without tc's netem: each gets a device "cable", and what is
// sent into one comes out of the other so many milliseconds later. Runs as root until it is killed: wire NAMESPACE NAMESPACE MS
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <deque>
#include <string>

struct Packet {
  double due_ms;
  std::string bytes;
};

static double now_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/// A device named "cable" in a namespace; ends the program where there is none to be had.
static int device_in(const char* name) {
  int space = open((std::string("/run/netns/") + name).c_str(), O_RDONLY);
  if (space < 0 || setns(space, CLONE_NEWNET)) return perror(name), exit(1), -1;
  int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  ifreq request = {};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  strcpy(request.ifr_name, "cable");
  if (tun < 0 || ioctl(tun, TUNSETIFF, &request)) return perror("/dev/net/tun"), exit(1), -1;
  return tun;
}

int main(int count, char** args) {
  if (count != 4) return 2;
  const int ends[2] = {device_in(args[1]), device_in(args[2])};
  const double delay_ms = atof(args[3]);
  std::deque<Packet> queues[2];  // on the way from each end
  static char packet[1 << 16];
  for (;;) {
    double due_ms = now_ms() + 1000;
    for (auto& queue : queues) {
      if (!queue.empty() && queue.front().due_ms < due_ms) due_ms = queue.front().due_ms;
    }
    pollfd waiting[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLIN, 0}};
    double wait_ms = due_ms > now_ms() ? due_ms - now_ms() : 0;
    timespec wait = {(time_t)(wait_ms / 1e3), (long)((wait_ms - 1e3 * (time_t)(wait_ms / 1e3)) * 1e6)};
    ppoll(waiting, 2, &wait, nullptr);
    for (int i = 0; i < 2; i++) {
      for (ssize_t n; (n = read(ends[i], packet, sizeof packet)) > 0;) {
        queues[i].push_back({now_ms() + delay_ms, std::string(packet, n)});
      }
      for (auto& queue = queues[i]; !queue.empty() && queue.front().due_ms <= now_ms(); queue.pop_front()) {
        ssize_t written = write(ends[1 - i], queue.front().bytes.data(), queue.front().bytes.size());
        (void)written;  // what does not fit is lost, as on a cable
      }
    }
  }
}
