#include "engine_adapter/llama_cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvstore::engine {
namespace {

// About 50 us on a 3 GHz core: longer than the pauses inside a forward pass, too short to matter
// outside of one.
constexpr int kSpinsMax = 2000;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  is_stopping_.store(true, std::memory_order_relaxed);
  launch_.fetch_add(1, std::memory_order_release);
  launch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Launch(const Work& work) {
  if (work.num_pieces <= 1 || workers_.empty()) {
    for (int64_t index = 0; index < work.num_pieces; ++index) work.call(work.callable, index, 0);
    return;
  }
  work_ = work;
  next_piece_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  launch_.fetch_add(1, std::memory_order_release);
  launch_.notify_all();
  RunPieces(0);
  // Every worker must have left: work_ and the caller's frame are reused after this.
  int spins = 0;
  for (int left; (left = running_.load(std::memory_order_acquire)) > 0;) {
    if (++spins < kSpinsMax) {
      Pause();
    } else {
      running_.wait(left, std::memory_order_acquire);
    }
  }
}

void ThreadPool::RunPieces(int thread) {
  while (true) {
    const int64_t index = next_piece_.fetch_add(1, std::memory_order_relaxed);
    if (index >= work_.num_pieces) return;
    work_.call(work_.callable, index, thread);
  }
}

bool ThreadPool::WaitForLaunch(uint32_t last_launch) {
  for (int spins = 0; launch_.load(std::memory_order_acquire) == last_launch; ++spins) {
    if (spins < kSpinsMax) {
      Pause();
    } else {
      launch_.wait(last_launch, std::memory_order_acquire);
    }
  }
  return !is_stopping_.load(std::memory_order_relaxed);
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t launch = 0;
  while (WaitForLaunch(launch)) {
    ++launch;  // the owner waits for every worker, so none is missed
    RunPieces(thread);
    if (running_.fetch_sub(1, std::memory_order_release) == 1) running_.notify_one();
  }
}

}  // namespace kvstore::engine
