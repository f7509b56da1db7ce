// From what the command line names to the token ids of the prompt.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine_adapter/kvengine/command_line.h"
#include "engine_adapter/tokenizer/tokenizer.h"

namespace kvstore::engine {

inline constexpr size_t kPromptBytesMax = Tokenizer::kTextBytesMax;

// The whole of `path`, or of standard input for "-".
// Errors: those of the file system; InvalidArgument, longer than kPromptBytesMax.
absl::StatusOr<std::string> ReadPromptFile(const std::string& path);

// Decimal token ids separated by whitespace. Errors: InvalidArgument naming the word and its place.
absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(std::string_view text);

// Reads, wraps and tokenizes the prompt of `command`. Errors: those above, of the tokenizer and of
// the chat template.
absl::StatusOr<std::vector<uint32_t>> MakePrompt(const GenerateCommand& command,
                                                 const Tokenizer& tokenizer);

}  // namespace kvstore::engine
