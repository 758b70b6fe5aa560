// A few threads that work together on one run, and sleep between runs that do not follow each other at once.
#ifndef SUBTONE_POOL_H
#define SUBTONE_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace subtone {

// A place where all workers wait for the last one.
class Barrier {
 public:
  explicit Barrier(int workers) : workers_(workers) {}
  void wait();

 private:
  const int workers_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
  std::mutex mutex_;
  std::condition_variable passed_;
};

class Pool {
 public:
  using Work = void (*)(void* job, int worker);

  // The caller of run() is worker 0; `workers - 1` threads are started. Throws std::system_error
  // where the operating system starts no more.
  explicit Pool(int workers);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int workers() const { return workers_; }
  // work(job, worker) once on every worker; returns when all are done.
  void run(Work work, void* job);
  // From inside work: waits until every worker has come here.
  void wait_for_all() { barrier_.wait(); }

 private:
  void serve(int worker);
  void stop();

  const int workers_;
  Barrier barrier_;
  std::mutex mutex_;
  std::condition_variable woken_;
  std::atomic<uint64_t> run_index_{0};  // written with mutex_ held
  bool stopping_ = false;               // guarded by mutex_, like the three below
  Work work_ = nullptr;
  void* job_ = nullptr;
  int caller_cpu_ = -1;
  std::vector<std::thread> threads_;
};

}  // namespace subtone
#endif
