#include "engine_adapter/llama/weights_revision.h"

#include <absl/status/status.h>
#include <absl/strings/escaping.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace kvstore::engine {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 20;
constexpr size_t kThreadsMax = 16;
using Digest = std::array<unsigned char, 32>;

bool Sha256(const void* bytes, size_t num_bytes, Digest* digest) {
  unsigned int digest_bytes = 0;
  return EVP_Digest(bytes, num_bytes, digest->data(), &digest_bytes, EVP_sha256(), nullptr) == 1 &&
         digest_bytes == digest->size();
}

// Every part framed by its length, so that no two lists of parts collide.
void Append(std::string* text, const void* bytes, size_t num_bytes) {
  const uint64_t length = num_bytes;
  text->append(reinterpret_cast<const char*>(&length), sizeof length);
  text->append(static_cast<const char*>(bytes), num_bytes);
}

struct Piece {
  const std::byte* data = nullptr;
  size_t bytes = 0;
  Digest digest{};
};

bool DigestAll(std::vector<Piece>& pieces) {
  std::atomic<size_t> next{0};
  std::atomic<bool> is_ok{true};
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      if (!Sha256(pieces[i].data, pieces[i].bytes, &pieces[i].digest)) is_ok = false;
    }
  };
  const size_t num_threads = std::min(
      {kThreadsMax, pieces.size(), size_t{std::max(1u, std::thread::hardware_concurrency())}});
  {
    std::vector<std::jthread> threads;
    for (size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
    work();
  }
  return is_ok;
}

}  // namespace

absl::StatusOr<std::string> WeightsRevision(std::string_view config_sha256,
                                            std::span<const SafetensorsFile> files) {
  std::vector<Piece> pieces;
  for (const SafetensorsFile& file : files) {
    const auto contents = file.contents();
    for (size_t at = 0; at < contents.size(); at += kPieceBytes) {
      pieces.push_back({.data = reinterpret_cast<const std::byte*>(contents.data()) + at,
                        .bytes = std::min(kPieceBytes, contents.size() - at)});
    }
  }
  bool is_ok = DigestAll(pieces);
  std::string text = "kvstore weights revision 2";
  Append(&text, config_sha256.data(), config_sha256.size());
  for (const SafetensorsFile& file : files) {
    const std::string name = file.path().filename().string();
    const uint64_t bytes = file.contents().size();
    Append(&text, name.data(), name.size());
    Append(&text, &bytes, sizeof bytes);
  }
  for (const Piece& piece : pieces) Append(&text, piece.digest.data(), piece.digest.size());
  Digest digest;
  is_ok = Sha256(text.data(), text.size(), &digest) && is_ok;
  if (!is_ok) return absl::InternalError("SHA-256 of the weights failed in OpenSSL");
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace kvstore::engine
