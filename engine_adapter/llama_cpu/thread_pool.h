// ThreadPool runs the pieces of one kernel launch on a fixed set of threads, the caller among them.
//
// Pieces are handed out by a shared counter: which thread runs which piece varies, so pieces must
// write disjoint results and must not depend on each other. Results are then the same for every
// number of threads.
//
// Threads: Run() is called by one thread at a time (the owner). Workers spin for a short while
// between launches, since a forward pass of one token makes some two hundred of them, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace kvstore::engine {

class ThreadPool {
 public:
  // num_threads >= 1, the caller included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls piece(index, thread) for every index in [0, num_pieces) and returns when all are done;
  // thread is in [0, num_threads()) and tells which scratch memory to use. Does not allocate.
  template <typename Piece>
  void Run(int64_t num_pieces, Piece&& piece) {
    using Callable = std::remove_reference_t<Piece>;
    Launch({num_pieces, const_cast<void*>(static_cast<const void*>(&piece)),
            [](void* callable, int64_t index, int thread) {
              (*static_cast<Callable*>(callable))(index, thread);
            }});
  }

 private:
  struct Work {
    int64_t num_pieces = 0;
    void* callable = nullptr;
    void (*call)(void* callable, int64_t index, int thread) = nullptr;
  };

  void Launch(const Work& work);
  void RunPieces(int thread);
  void WorkerLoop(int thread);
  bool WaitForLaunch(uint32_t last_launch);

  // Work of the current launch. Written by the owner before launch_ is raised and only while no
  // worker is in RunPieces.
  Work work_;
  alignas(64) std::atomic<int64_t> next_piece_{0};
  alignas(64) std::atomic<uint32_t> launch_{
      0};  // release in Launch: pairs with the acquire in WaitForLaunch
  alignas(64) std::atomic<int> running_{
      0};  // workers not yet done; release in WorkerLoop, acquire in Launch
  std::atomic<bool> is_stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace kvstore::engine
