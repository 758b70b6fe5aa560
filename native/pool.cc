#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace subtone {
namespace {

using Clock = std::chrono::steady_clock;

// One worker is seldom behind another by more than this; beyond it the core may be somebody else's for a while, beyond
// kYield the operating system is asked to wake who waits, which takes it 30 to 60 microseconds.
constexpr std::chrono::microseconds kSpin(20), kYield(500);
// For which a worker waits for the next run before it sleeps: of a stream in chunks of 40 ms a five-hundredth.
constexpr std::chrono::microseconds kLinger(80);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Until is_done(): true; or false after `limit`, the core offered to others after kSpin.
template <typename IsDone>
bool wait_awake(std::chrono::microseconds limit, const IsDone& is_done) {
  const Clock::time_point start = Clock::now();
  for (;;) {
    for (int turn = 0; turn < 8; ++turn) {
      if (is_done()) return true;
      relax();
    }
    const Clock::duration waited = Clock::now() - start;
    if (waited > limit) return false;
    if (waited > kSpin) std::this_thread::yield();
  }
}

#if defined(__linux__)
int own_cpu() { return sched_getcpu(); }

// Moves the calling thread to another processor that it may use, if there is one, and lets it use all again: who is
// woken by a thread is often put where that one runs, and stays there, taking turns with it, for milliseconds.
void leave(int cpu) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;  // more processors than a set names
  cpu_set_t others = allowed;
  CPU_CLR(static_cast<unsigned>(cpu), &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int own_cpu() { return -1; }
void leave(int) {}
#endif

}  // namespace

void Barrier::wait() {
  if (workers_ == 1) return;
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_) {
    arrived_.store(0, std::memory_order_relaxed);  // nobody arrives again before round_ has changed
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.store(round + 1, std::memory_order_release);
    }
    passed_.notify_all();
    return;
  }
  if (wait_awake(kYield, [&] { return round_.load(std::memory_order_acquire) != round; })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  passed_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != round; });
}

Pool::Pool(int workers) : workers_(workers), barrier_(workers) {
  try {
    threads_.reserve(static_cast<size_t>(workers - 1));
    for (int worker = 1; worker < workers; ++worker) threads_.emplace_back(&Pool::serve, this, worker);
  } catch (...) {
    stop();  // those that were started
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  woken_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Pool::run(Work work, void* job) {
  if (workers_ > 1) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      job_ = job;
      caller_cpu_ = own_cpu();
      run_index_.fetch_add(1, std::memory_order_release);
    }
    woken_.notify_all();
  }
  work(job, 0);
  barrier_.wait();  // the workers' last act, too
}

void Pool::serve(int worker) {
  uint64_t seen = 0;
  for (;;) {
    Work work;
    void* job;
    int caller_cpu;
    wait_awake(kLinger, [&] { return run_index_.load(std::memory_order_acquire) != seen; });
    {
      std::unique_lock<std::mutex> lock(mutex_);
      woken_.wait(lock, [&] { return stopping_ || run_index_.load(std::memory_order_relaxed) != seen; });
      if (stopping_) return;
      seen = run_index_.load(std::memory_order_relaxed);
      work = work_;
      job = job_;
      caller_cpu = caller_cpu_;
    }
    if (caller_cpu >= 0 && own_cpu() == caller_cpu) leave(caller_cpu);
    work(job, worker);
    barrier_.wait();
  }
}

}  // namespace subtone
