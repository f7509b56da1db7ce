#include "tools/kvbench/engine_process.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::bench {
namespace {

constexpr absl::Duration kAnswerTime = absl::Minutes(20);

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::UnavailableError("no pipe");
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

uint64_t EngineAnswer::ReusedFrom(const std::string& tier) const {
  for (const auto& [name, tokens] : reused_by_tier) {
    if (name == tier) return tokens;
  }
  return 0;
}

absl::StatusOr<std::unique_ptr<EngineProcess>> EngineProcess::Start(const Settings& settings,
                                                                    const std::string& target,
                                                                    const WorkFolder& folder) {
  std::vector<std::string> arguments = {settings.bin_dir + "/kvengine",
                                        "batch",
                                        "--model",
                                        settings.model_dir,
                                        "--requests",
                                        "-",
                                        "--device",
                                        settings.is_on_cuda ? "cuda" : "cpu",
                                        "--block-tokens",
                                        absl::StrCat(settings.block_tokens),
                                        "--threads",
                                        absl::StrCat(settings.threads),
                                        "--store",
                                        target};
  ASSIGN_OR_RETURN(Pipe requests, MakePipe());
  ASSIGN_OR_RETURN(Pipe answers, MakePipe());
  const std::string errors = folder / "engine-errors";
  ASSIGN_OR_RETURN(Program program, Program::StartPiped(arguments, requests.read.get(),
                                                        answers.write.get(), errors));
  return std::unique_ptr<EngineProcess>(new EngineProcess(
      std::move(program), std::move(requests.write), std::move(answers.read), errors));
}

absl::StatusOr<EngineAnswer> EngineProcess::Ask(const EngineRequest& request) {
  const nlohmann::json asked = {{"prompt_ids_file", request.prompt_ids_file},
                                {"max_tokens", request.max_tokens},
                                {"logits_out", request.logits_file}};
  const std::string line = asked.dump() + "\n";
  if (write(requests_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    return absl::UnavailableError(absl::StrCat("kvengine has ended: ", LastLines(errors_path_)));
  ASSIGN_OR_RETURN(const std::string text, ReadLine());
  const nlohmann::json said = nlohmann::json::parse(text, nullptr, false);
  if (said.is_discarded() || !said.contains("ttft_ms"))
    return absl::InternalError(absl::StrCat("kvengine: ", text, LastLines(errors_path_)));
  EngineAnswer answer;
  answer.ttft_ms = said.value("ttft_ms", 0.0);
  answer.reused_tokens = said.value("reused_tokens", uint64_t{0});
  answer.bytes_loaded = said.value("bytes_loaded", uint64_t{0});
  answer.output_ids = said.value("output_ids", std::vector<uint32_t>());
  const nlohmann::json by_tier = said.value("reused_by_tier", nlohmann::json::object());
  for (const auto& [tier, tokens] : by_tier.items())
    answer.reused_by_tier.emplace_back(tier, tokens.get<uint64_t>());
  return answer;
}

absl::StatusOr<std::string> EngineProcess::ReadLine() {
  const absl::Time end = absl::Now() + kAnswerTime;
  for (;;) {
    if (const size_t at = unread_.find('\n'); at != std::string::npos) {
      std::string line = unread_.substr(0, at + 1);
      unread_.erase(0, at + 1);
      return line;
    }
    pollfd waiting = {.fd = answers_.get(), .events = POLLIN, .revents = 0};
    if (absl::Now() > end) return absl::DeadlineExceededError("kvengine does not answer");
    if (poll(&waiting, 1, 1000) <= 0) continue;
    char buffer[1 << 16];
    const ssize_t got = read(answers_.get(), buffer, sizeof buffer);
    if (got <= 0)
      return absl::UnavailableError(absl::StrCat("kvengine has ended: ", LastLines(errors_path_)));
    unread_.append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace kvstore::bench
