// What the simulation knows to be true: which blocks were committed since the last clear, and
// which bytes each must have.
//
// Bytes are a pseudo-random function of namespace, block and *version*: how often the namespace had
// been cleared when the block was written. So a page of before a clear is wrong bytes, not only
// old.
//
// A clear that was not acknowledged may be undone by a restart; one that was may not.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kvstore/base/block_hasher.h"
#include "kvstore/base/namespace_spec.h"
#include "tests/sim/sim_random.h"

namespace kvstore::sim {

class OracleNamespace {
 public:
  explicit OracleNamespace(NamespaceSpec spec)
      : spec_(std::move(spec)), fingerprint_(spec_.ComputeFingerprint()) {}

  const NamespaceSpec& spec() const { return spec_; }
  const Fingerprint& fingerprint() const { return fingerprint_; }
  uint32_t version() const { return version_; }

  // Chains of different branches share some leading blocks.
  std::vector<BlockHash> Chain(uint32_t branch, size_t num_blocks) const {
    std::vector<uint32_t> tokens(num_blocks);
    for (size_t i = 0; i < num_blocks; ++i) tokens[i] = i < branch % 4 ? 0 : branch + 1;
    return HashBlocks(RootHash(fingerprint_), tokens, 1);
  }

  void FillPage(const BlockHash& hash, uint32_t version, std::span<std::byte> page) const {
    uint64_t state = hash.Prefix64() ^ Mix(version);
    for (size_t at = 0; at < page.size(); at += sizeof state) {
      state = Mix(state);
      std::memcpy(page.data() + at, &state, std::min(sizeof state, page.size() - at));
    }
  }
  // Whether a reader that leased at `oldest` to `newest` may see these bytes.
  bool IsRight(const BlockHash& hash, uint32_t oldest, uint32_t newest,
               std::span<const std::byte> page) const {
    const auto it = committed_.find(hash);
    if (it == committed_.end()) return false;
    std::vector<std::byte> expected(page.size());
    for (const uint32_t version : it->second) {
      if (version < oldest || version > newest) continue;
      FillPage(hash, version, expected);
      if (std::equal(page.begin(), page.end(), expected.begin())) return true;
    }
    return false;
  }

  void OnCommitted(const BlockHash& hash) { committed_[hash].insert(version_); }
  // Returns the version that the clear begins.
  uint32_t OnClear() { return oldest_ = ++version_; }
  void OnClearAcknowledged(uint32_t version) { stable_ = std::max(stable_, version); }
  void OnRestart() { oldest_ = stable_; }

  // The oldest version that may be matched now.
  uint32_t oldest() const { return oldest_; }
  bool MayMatch(const BlockHash& hash) const {
    const auto it = committed_.find(hash);
    return it != committed_.end() && *it->second.rbegin() >= oldest_;
  }
  uint32_t LongestMatch(std::span<const BlockHash> hashes) const {
    uint32_t n = 0;
    while (n < hashes.size() && MayMatch(hashes[n])) ++n;
    return n;
  }

 private:
  const NamespaceSpec spec_;
  const Fingerprint fingerprint_;
  uint32_t version_ = 0, oldest_ = 0, stable_ = 0;
  std::map<BlockHash, std::set<uint32_t>> committed_;  // in these versions
};

}  // namespace kvstore::sim
