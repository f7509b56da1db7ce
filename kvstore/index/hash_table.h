// The index's hash table: 32-bit node ids found by a 64-bit hash, in 5 bytes a slot.
//
// Split into segments by the upper hash bits; each segment grows by itself, so that no insertion
// ever pays for rehashing more than a few thousand ids (a table of one million blocks in one piece
// would stop the core thread for 100 ms). Linear probing in each segment with one-byte tags, so
// that a probe reads a node only when its tag agrees, and backward-shift deletion, so that there
// are no tombstones.
//
// Externally synchronised. The table stores no hashes: growing and erasing ask `hash_of(id)` for
// them again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvstore::index {

class HashTable {
 public:
  static constexpr uint32_t kAbsent = UINT32_MAX;
  static constexpr uint32_t kIdMax = (1u << 26) - 1;

  HashTable() : segments_(kNumSegments) {}

  // The id for which `equals(id)` holds, or kAbsent.
  template <typename Equals>
  uint32_t Find(uint64_t hash, Equals equals) const {
    const Segment& s = segments_[SegmentOf(hash)];
    if (s.words.empty()) return kAbsent;
    const uint8_t tag = TagOf(hash);
    for (uint32_t at = s.Home(hash);; at = s.Next(at)) {
      if (s.tags[at] == kEmpty) return kAbsent;
      if (s.tags[at] == tag && equals(s.Id(at))) return s.Id(at);
    }
  }

  // Brings the lines that Find(hash) reads first into the cache.
  void Prefetch(uint64_t hash) const {
    const Segment& s = segments_[SegmentOf(hash)];
    if (s.words.empty()) return;
    const uint32_t at = s.Home(hash);
    __builtin_prefetch(&s.tags[at]);
    __builtin_prefetch(&s.words[at]);
  }
  // The id in the first slot whose tag agrees, not compared further, or kAbsent: what to prefetch
  // next.
  uint32_t Candidate(uint64_t hash) const {
    return Find(hash, [](uint32_t) { return true; });
  }

  // Requires: no id that equals it is in the table.
  template <typename HashOf>
  void Insert(uint64_t hash, uint32_t id, HashOf hash_of) {
    Segment& s = segments_[SegmentOf(hash)];
    if (s.used + 1 > s.words.size() * kMaxLoadPercent / 100) Grow(s, hash_of);
    s.Place(hash, id);
  }

  // Requires: `id` is in the table under `hash`.
  template <typename HashOf>
  void Erase(uint64_t hash, uint32_t id, HashOf hash_of) {
    Segment& s = segments_[SegmentOf(hash)];
    uint32_t hole = s.Home(hash);
    while (s.Id(hole) != id || s.tags[hole] == kEmpty) hole = s.Next(hole);
    for (uint32_t at = s.Next(hole); s.tags[at] != kEmpty; at = s.Next(at)) {
      // What lies behind the hole may move back into it unless its home lies between them.
      const uint32_t to_hole = s.Distance(hole, at);
      uint32_t to_home = s.words[at] >> kIdBits;
      if (to_home == kFarFromHome) to_home = s.Distance(s.Home(hash_of(s.Id(at))), at);
      if (to_home < to_hole) continue;
      s.Put(hole, s.Id(at), s.tags[at], to_home - to_hole);
      hole = at;
    }
    s.tags[hole] = kEmpty;
    --s.used;
  }

  size_t memory_bytes() const {
    size_t bytes = segments_.size() * sizeof(Segment);
    for (const Segment& s : segments_)
      bytes += s.words.capacity() * sizeof(uint32_t) + s.tags.capacity();
    return bytes;
  }

 private:
  static constexpr size_t kNumSegments = 1024;
  static constexpr uint8_t kEmpty = 0;
  // 64 million ids. Erasing reads a neighbour's distance from its home instead of its node (a cache
  // miss each).
  static constexpr uint32_t kIdBits = 26;
  static constexpr uint32_t kIdMask = (1u << kIdBits) - 1;
  static constexpr uint32_t kFarFromHome = 63;  // or more: ask for its hash
  // Linear probing at 80 % needs 3 probes for a hit; tags keep them within one line. Growth by a
  // quarter keeps the load above 64 %: at most 7.8 bytes an id.
  static constexpr size_t kMaxLoadPercent = 80;

  struct Segment {
    std::vector<uint32_t> words;  // id, and above it how far the slot lies behind the id's home
    std::vector<uint8_t> tags;
    uint32_t used = 0;

    uint32_t Id(uint32_t at) const { return words[at] & kIdMask; }
    uint32_t Home(uint64_t hash) const {
      return static_cast<uint32_t>(((hash & 0xffffffff) * words.size()) >> 32);
    }
    uint32_t Next(uint32_t at) const { return at + 1 == words.size() ? 0 : at + 1; }
    uint32_t Distance(uint32_t from, uint32_t to) const {
      return to >= from ? to - from : to + static_cast<uint32_t>(words.size()) - from;
    }
    void Put(uint32_t at, uint32_t id, uint8_t tag, uint32_t from_home) {
      words[at] = id | std::min(from_home, kFarFromHome) << kIdBits;
      tags[at] = tag;
    }
    void Place(uint64_t hash, uint32_t id) {
      const uint32_t home = Home(hash);
      uint32_t at = home;
      while (tags[at] != kEmpty) at = Next(at);
      Put(at, id, TagOf(hash), Distance(home, at));
      ++used;
    }
  };

  static size_t SegmentOf(uint64_t hash) { return hash >> 54; }
  static uint8_t TagOf(uint64_t hash) {
    return static_cast<uint8_t>((hash >> 32) | 1);
  }  // never kEmpty

  template <typename HashOf>
  static void Grow(Segment& s, HashOf hash_of) {
    Segment bigger;
    const size_t slots = s.words.empty() ? 8 : s.words.size() + s.words.size() / 4;
    bigger.words.resize(slots);
    bigger.tags.resize(slots);
    for (size_t at = 0; at < s.words.size(); ++at) {
      if (s.tags[at] != kEmpty) bigger.Place(hash_of(s.Id(at)), s.Id(at));
    }
    s = std::move(bigger);
  }

  std::vector<Segment> segments_;
};

}  // namespace kvstore::index
