// The C ABI of one product by itself, for a caller who has a program of his own (PyTorch): any thread, any time.
//
// Threads of its own for every product would be hundreds; so all products of the process share one crew, and whoever
// finds it at work computes alone, which gives the same bits. Where the caller has an OpenMP run time, its threads are
// better: they wait for the next piece of work by spinning, beside which threads of ours would have no core.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "dispatch.h"
#include "guarded.h"
#include "product.h"
#include "split.h"

struct subtone_product {
  const subtone::Kernels& kernels;
  subtone::PackedWeight weight;
};

namespace subtone {
namespace {

// Multiplications below which waking another thread costs more than it saves: about 10 microseconds of one core.
constexpr int64_t kAlone = int64_t{1} << 21;

struct Job {
  const subtone_product& product;
  const float* x;
  int64_t frames;
  float* y;
  std::atomic<bool> has_failed{false};
};

bool is_finite(const float* x, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones: NaN or an infinity
  uint32_t found = 0;
  for (int64_t k = 0; k < count; ++k) {
    uint32_t bits;
    std::memcpy(&bits, x + k, sizeof(bits));
    found |= (bits & kExponent) == kExponent;
  }
  return !found;
}

// Rows that are not finite never reach a kernel, whose numbers would be unspecified.
void work(Job* given, int worker, int workers) {
  thread_local Scratch mine;  // grows to the widest product that this thread has met
  Job& job = *given;
  const Product& product = job.product.weight.product;
  const Share share = share_of(job.frames, panels_of(product), worker, workers, kTileFrames);
  const int64_t first = share.panels.first * kPanel, end = share.panels.last * kPanel, step = block_frames(product);
  const int64_t last = end < product.outputs ? end : product.outputs;
  if (first >= last) return;
  try {
    grow_for_product(product, step, &mine);
  } catch (const std::bad_alloc&) {
    job.has_failed = true;
    return;
  }
  const auto is_row_finite = [&](int64_t t) { return is_finite(job.x + t * product.inputs, product.inputs); };
  for (int64_t t = share.frames.first; t < share.frames.last;) {
    int64_t behind = t;
    while (behind < share.frames.last && behind - t < step && is_row_finite(behind)) ++behind;
    if (behind > t) {
      multiply_rows(job.product.kernels, product, mine, job.x, {t, behind}, share.panels, job.y);
      t = behind;
      continue;
    }
    float* row = job.y + t * product.outputs;
    for (int64_t n = first; n < last; ++n) row[n] = std::numeric_limits<float>::quiet_NaN();
    ++t;
  }
}

// An OpenMP run time.
struct Team {
  subtone_parallel parallel;
  int (*index)();
  int (*size)();
};

std::atomic<const Team*> given_team{nullptr};

// The threads that all products share, those of one process: a fork leaves them behind, with whatever they held.
struct Crew {
  const pid_t process = getpid();
  std::mutex turn;
  std::unique_ptr<Pool> pool;
};

// Never freed: its threads sleep until the process ends.
Crew& crew() {
  static std::atomic<Crew*> current{nullptr};
  Crew* found = current.load(std::memory_order_acquire);
  if (found && found->process == getpid()) return *found;
  auto made = std::make_unique<Crew>();
  return current.compare_exchange_strong(found, made.get()) ? *made.release() : *found;
}

bool run_by_crew(Job* job, int threads) {
  Crew& ours = crew();
  const std::unique_lock<std::mutex> turn(ours.turn, std::try_to_lock);
  if (!turn.owns_lock()) return false;
  if (!ours.pool || ours.pool->workers() != threads) {
    ours.pool.reset();
    ours.pool = std::make_unique<Pool>(threads);
  }
  struct Shared {
    Job* job;
    int threads;
  } shared = {job, threads};
  ours.pool->run(
      [](void* all, int worker) {
        const Shared& its = *static_cast<Shared*>(all);
        work(its.job, worker, its.threads);
      },
      &shared);
  return true;
}

void run(Job* job, int threads) {
  if (threads > 1) {
    if (const Team* team = given_team.load(std::memory_order_acquire)) {
      struct Shared {
        Job* job;
        const Team* team;
      } shared = {job, team};
      return team->parallel(
          [](void* all) {
            const Shared& its = *static_cast<Shared*>(all);
            work(its.job, its.team->index(), its.team->size());
          },
          &shared, static_cast<unsigned>(threads), 0);
    }
    if (run_by_crew(job, threads)) return;
  }
  work(job, 0, 1);
}

}  // namespace
}  // namespace subtone

extern "C" {

int32_t subtone_product_create(const char* isa, const subtone_weight* weight, const float* bias,
                               subtone_product** product) {
  if (!isa || !weight || !product) return SUBTONE_NULL;
  *product = nullptr;
  if (weight->rows < 1 || weight->rows > SUBTONE_MAX_SIZE) return SUBTONE_SIZE;
  const subtone::Kernels* kernels = subtone::find_kernels(isa);
  if (!kernels) return SUBTONE_ISA;
  return subtone::guarded([&] {
    auto made = std::unique_ptr<subtone_product>(new subtone_product{*kernels, {}});
    const int32_t status = subtone::pack_product(*weight, subtone::in_order(weight->rows), nullptr, bias, false,
                                                 &made->weight);
    if (status == SUBTONE_OK) *product = made.release();
    return status;
  });
}

int32_t subtone_product_run(const subtone_product* product, const float* x, int64_t frames, int32_t threads, float* y) {
  if (!product) return SUBTONE_NULL;
  if (frames < 0 || frames > SUBTONE_MAX_FRAMES || threads < 1 || threads > SUBTONE_MAX_THREADS) return SUBTONE_SIZE;
  if (frames == 0) return SUBTONE_OK;
  if (!x || !y) return SUBTONE_NULL;
  const subtone::Product& its = product->weight.product;
  const bool is_little = its.inputs * its.outputs < subtone::kAlone / frames;
  return subtone::guarded([&] {
    subtone::Job job = {*product, x, frames, y};
    subtone::run(&job, is_little ? 1 : threads);
    return job.has_failed ? SUBTONE_MEMORY : SUBTONE_OK;
  });
}

int32_t subtone_product_team(subtone_parallel parallel, int (*index)(void), int (*size)(void)) {
  if (!parallel && !index && !size) {
    subtone::given_team.store(nullptr, std::memory_order_release);
    return SUBTONE_OK;
  }
  if (!parallel || !index || !size) return SUBTONE_NULL;
  return subtone::guarded([&] {  // never freed: somebody may be running on it
    subtone::given_team.store(new subtone::Team{parallel, index, size}, std::memory_order_release);
    return SUBTONE_OK;
  });
}

int32_t subtone_product_levels(const subtone_product* product, int8_t* levels) {
  if (!product || !levels) return SUBTONE_NULL;
  return subtone::guarded([&] {
    subtone::unpack_product(product->weight.product, levels);
    return SUBTONE_OK;
  });
}

int64_t subtone_product_bytes(const subtone_product* product) { return product ? product->weight.num_bytes() : 0; }

void subtone_product_destroy(subtone_product* product) { delete product; }

}  // extern "C"
