// Named places at which the simulated machine may stop: power goes off there, and nothing that
// the program does afterwards reaches its disk.
//
// Confined to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace kvstore::sim {

enum class Failpoint : uint8_t {
  kAnywhere,        // between two steps
  kAfterDataWrite,  // page bytes are in their slot, no record yet
  kBeforeRecord,    // the record is about to be queued
  kAfterRecord,     // the record is in the log, nobody was told
  kMidEvict,        // the record of an evicted page is about to be deleted
  kMidPromote,      // bytes came up from disk, the copy is not published yet
  kMidRecovery,     // part of the records was read back
  kMidMetadata,     // a namespace record is about to be written
  kBeforeNote,      // a page in kept memory is published, its ledger does not know yet
  kAfterNote,       // it does, nobody was told
  kMidFree,         // a page in kept memory is about to be given back
};
inline constexpr size_t kNumFailpoints = 11;
inline constexpr std::array<const char*, kNumFailpoints> kFailpointNames = {
    "anywhere",     "after data write", "before record", "after record", "mid-evict", "mid-promote",
    "mid-recovery", "mid-metadata",     "before note",   "after note",   "mid-free"};

class Failpoints {
 public:
  // Run at the moment at which the machine stops.
  void set_on_off(std::function<void()> on_off) { on_off_ = std::move(on_off); }
  // The machine stops when `point` is passed for the `nth` time from now on, 1 the first.
  void Arm(Failpoint point, uint32_t nth) {
    armed_ = point;
    countdown_ = nth;
  }
  // Told at each place. True: the machine is off from here on.
  bool Pass(Failpoint point) {
    if (!is_off_ && countdown_ > 0 && point == armed_ && --countdown_ == 0) {
      ++hits_[static_cast<size_t>(point)];
      TurnOff();
    }
    return is_off_;
  }
  void TurnOff() {
    if (!std::exchange(is_off_, true) && on_off_) on_off_();
  }
  void TurnOn() {
    is_off_ = false;
    countdown_ = 0;
  }
  bool is_off() const { return is_off_; }
  bool is_armed() const { return countdown_ > 0; }
  const std::array<uint64_t, kNumFailpoints>& hits() const { return hits_; }

 private:
  std::function<void()> on_off_;
  Failpoint armed_ = Failpoint::kAnywhere;
  uint32_t countdown_ = 0;
  bool is_off_ = false;
  std::array<uint64_t, kNumFailpoints> hits_{};
};

}  // namespace kvstore::sim
