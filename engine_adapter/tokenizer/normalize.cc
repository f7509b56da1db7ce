#include "engine_adapter/tokenizer/normalize.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include <algorithm>

namespace kvstore::engine {

absl::StatusOr<std::string> NormalizeNfc(std::string_view text) {
  const bool is_ascii = std::all_of(text.begin(), text.end(),
                                    [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (is_ascii) return std::string(text);
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  std::string out;
  if (U_SUCCESS(error)) {
    icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
    nfc->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink,
                       nullptr, error);
  }
  if (U_FAILURE(error)) {
    return absl::InternalError(absl::StrCat("ICU normalization failed: ", u_errorName(error)));
  }
  return out;
}

}  // namespace kvstore::engine
