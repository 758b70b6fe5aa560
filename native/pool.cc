#include "pool.h"

namespace subtone {
namespace {

// About 10 microseconds on the processors measured: longer than one worker waits for another that
// runs, shorter than what is lost where the other one has no core.
constexpr int kSpins = 300;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

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
  for (int spin = 0; spin < kSpins; ++spin) {
    if (round_.load(std::memory_order_acquire) != round) return;
    relax();
  }
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
      ++run_index_;
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
    {
      std::unique_lock<std::mutex> lock(mutex_);
      woken_.wait(lock, [&] { return stopping_ || run_index_ != seen; });
      if (stopping_) return;
      seen = run_index_;
      work = work_;
      job = job_;
    }
    work(job, worker);
    barrier_.wait();
  }
}

}  // namespace subtone
