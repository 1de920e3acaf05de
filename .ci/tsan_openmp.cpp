// The few entry points of libgomp that the kernels use, on plain threads: the thread sanitizer understands these, while
// it takes what it cannot see inside libgomp for races. Linked into the library by `.ci/sanitize` only.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace {
struct Loop {
  std::atomic<long> next;
  long end, step;
  Loop(long from, long to, long by) : next(from), end(to), step(by) {}
};

struct Team {
  unsigned size;
  std::mutex lock;
  std::condition_variable all;
  unsigned waiting = 0, round = 0;
  std::deque<Loop> loops;

  explicit Team(unsigned n) : size(n) {}

  void barrier() {
    std::unique_lock<std::mutex> held(lock);
    const unsigned mine = round;
    if (++waiting == size) {
      waiting = 0;
      ++round;
      all.notify_all();
    } else {
      all.wait(held, [&] { return round != mine; });
    }
  }
};

thread_local Team* team;
thread_local size_t entered;  // loops, by this thread
thread_local Loop* loop;

bool take(long* from, long* to) {
  // Relaxed: handing out work orders nothing else, and must not hide a race.
  const long start = loop->next.fetch_add(loop->step, std::memory_order_relaxed);
  const bool up = loop->step > 0;
  *from = start;
  *to = (start + loop->step < loop->end) == up ? start + loop->step : loop->end;
  return up ? start < loop->end : start > loop->end;
}
}  // namespace

extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
  Team own(threads ? threads : 1);
  const auto member = [&] {
    team = &own;
    entered = 0;
    work(data);
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < own.size; ++i) others.emplace_back(member);
  member();
  for (std::thread& other : others) other.join();
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* from, long* to) {
  {
    const std::lock_guard<std::mutex> held(team->lock);
    if (team->loops.size() == entered) team->loops.emplace_back(start, end, step * chunk);
    loop = &team->loops[entered++];
  }
  return take(from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) { return take(from, to); }
void GOMP_loop_end() { team->barrier(); }
void GOMP_loop_end_nowait() {}
}
