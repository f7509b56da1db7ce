// CopyLane is one direction of a CopyEngine: what waits, by priority, and the batches that the
// device has. Confined to the progress thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "transfer/cuda/copy_engine.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::transfer {

class CopyLane {
 public:
  // An operation on its way.
  struct Copy {
    CopyId id;
    CopyOperation operation;
    uint32_t next_piece = 0;  // the first that is not wholly given to the device
    uint64_t next_byte = 0;   // of that piece
    uint32_t pieces_moved = 0;
    uint32_t parts_in_flight = 0;  // of it, in batches
    absl::Status ending;           // not OK: nothing more is given to the device
  };
  using Report = std::function<void(std::unique_ptr<Copy>, absl::Status)>;

  CopyLane(const CopyEngine::Options& options, CudaContext& context, Report report)
      : options_(options), context_(context), report_(std::move(report)) {}
  // Gives the stream and the events back; what the device still has, and these, are left to it.
  ~CopyLane();
  // Errors: those of the driver.
  absl::Status Open();

  void Add(std::unique_ptr<Copy> copy);
  // Marks it: its end is reported when the device has nothing of it. False: it is not here.
  bool End(CopyId id, const absl::Status& why);
  // As End() for all whose deadline is at or before `now`.
  void EndLate(absl::Time now);
  void EndAll(const absl::Status& why);
  // Takes what the device has finished. True: something had.
  bool TakeFinished();
  // Gives the device more, as long as there is more and it has less than batches_in_flight.
  void Feed();
  // Reports everything, moved or not. For a device that has to be given up.
  void Abandon(const absl::Status& why);

  bool is_idle() const { return copies_.empty(); }
  bool has_batches() const { return !batches_.empty(); }

 private:
  struct Part {
    Copy* copy;
    bool is_last_of_piece;
  };
  struct Batch {
    std::vector<Part> parts;
    CUevent event = nullptr;
    bool has_moved = true;  // false: the driver refused it, and may have begun it
  };

  template <typename Call>
  CUresult AskTwice(Call call);
  void Fill(Batch* batch);
  void AddPart(Copy* copy, uint64_t bytes_max, Batch* batch);
  void Send(Batch batch);
  void Finish(const Batch& batch, bool has_moved);
  void ReportEnded();
  Copy* NextToFeed();

  const CopyEngine::Options& options_;
  CudaContext& context_;
  const Report report_;
  CUstream stream_ = nullptr;
  std::vector<CUevent> free_events_;
  std::deque<std::unique_ptr<Copy>> copies_;  // all, in the order of their arrival
  // Not wholly given to the device yet, [priority].
  std::array<std::deque<Copy*>, 2> waiting_;
  std::deque<Batch> batches_;             // on the stream, oldest first
  std::vector<CUdeviceptr> dsts_, srcs_;  // [pieces_in_batch], of the batch being made
  std::vector<size_t> sizes_;
};

}  // namespace kvstore::transfer
