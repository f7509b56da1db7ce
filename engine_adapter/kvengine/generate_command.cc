#include "engine_adapter/kvengine/generate_command.h"

#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine_adapter/kvengine/prompt.h"
#include "engine_adapter/kvengine/report.h"
#include "engine_adapter/tokenizer/tokenizer.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Watches one request: progress and text for people, logits for comparisons.
class Watcher {
 public:
  Watcher(const GenerateCommand& command, const Tokenizer& tokenizer, Timeline* timeline)
      : command_(command),
        decoder_(tokenizer, SkipSpecialTokens::kYes),
        shows_progress_(::isatty(STDERR_FILENO) == 1),
        timeline_(timeline) {}

  absl::Status Open() {
    if (command_.logits_file.empty()) return absl::OkStatus();
    errno = 0;
    logits_.open(command_.logits_file, std::ios::binary | std::ios::trunc);
    if (logits_.is_open()) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", command_.logits_file));
  }

  GenerateObserver Observer() {
    GenerateObserver observer;
    observer.timeline = timeline_;
    if (shows_progress_) {
      observer.on_prefill = [this](int64_t done, int64_t total) { ShowPrefill(done, total); };
    }
    if (!command_.has_json_output) {
      observer.on_token = [this](uint32_t token) { PrintText(decoder_.Push(token).value_or("")); };
    }
    if (logits_.is_open()) {
      observer.on_logits = [this](std::span<const float> logits) {
        logits_.write(reinterpret_cast<const char*>(logits.data()),
                      static_cast<std::streamsize>(logits.size_bytes()));
      };
    }
    return observer;
  }

  // Errors: what was to be written is not all written.
  absl::Status Close() {
    if (!command_.has_json_output) PrintText(decoder_.Finish() + "\n");
    if (!logits_.is_open()) return absl::OkStatus();
    logits_.close();
    if (!logits_.fail()) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("could not write all logits to ", command_.logits_file));
  }

 private:
  static void PrintText(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  static void ShowPrefill(int64_t done, int64_t total) {
    std::fprintf(stderr, "\rprompt: %lld of %lld tokens%s", static_cast<long long>(done),
                 static_cast<long long>(total), done == total ? "\n" : "");
    std::fflush(stderr);
  }

  const GenerateCommand& command_;
  StreamDecoder decoder_;
  const bool shows_progress_;
  Timeline* const timeline_;
  std::ofstream logits_;
};

void PrintReport(const GenerateCommand& command, const Answer& answer) {
  const int64_t block_tokens = command.engine.block_tokens;
  if (command.has_json_output) {
    std::printf("%s\n", ReportJson(answer.result, block_tokens, answer.text).dump().c_str());
  } else {
    std::fprintf(stderr, "%s\n", ReportLine(answer.result, block_tokens).c_str());
  }
}

absl::Status Run(const GenerateCommand& command) {
  ASSIGN_OR_RETURN(const Engine engine, Engine::Load(command.engine));
  ASSIGN_OR_RETURN(const Answer answer, RunRequest(engine, command));
  PrintReport(command, answer);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Answer> RunRequest(const Engine& engine, const GenerateCommand& command) {
  const std::unique_ptr<PrefixCache> cache = engine.MakePrefixCache();
  Timeline timeline;
  Watcher watcher(command, engine.tokenizer(), command.timeline_file.empty() ? nullptr : &timeline);
  RETURN_IF_ERROR(watcher.Open());
  const Timeline::Time asked = Timeline::Now();
  GenerateRequest request{.prompt_ids = {},
                          .max_tokens = command.max_tokens,
                          .sampling = command.sampling,
                          .seed = command.seed};
  ASSIGN_OR_RETURN(request.prompt_ids, MakePrompt(command, engine.tokenizer()));
  // Tokenizing is part of the answer's time; parsing a file of ids is not.
  const bool has_text = command.prompt.has_value() || command.prompt_file.has_value();
  request.arrival = has_text ? asked : Timeline::Now();
  Answer answer;
  ASSIGN_OR_RETURN(answer.result, Generate(engine.backend(), *cache, request, watcher.Observer()));
  RETURN_IF_ERROR(watcher.Close());
  ASSIGN_OR_RETURN(answer.text,
                   engine.tokenizer().Decode(answer.result.output_ids, SkipSpecialTokens::kYes));
  if (!command.timeline_file.empty()) RETURN_IF_ERROR(timeline.Write(command.timeline_file));
  return answer;
}

int RunGenerateCommand(const GenerateCommand& command) {
  const absl::Status status = Run(command);
  if (status.ok()) return kExitDone;
  if (command.has_json_output) std::printf("%s\n", ErrorJson(status).dump().c_str());
  std::fprintf(stderr, "kvengine: %s\n", std::string(status.message()).c_str());
  return kExitFailed;
}

}  // namespace kvstore::engine
