#include "engine_adapter/kvengine/batch_command.h"

#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>

#include "engine_adapter/json/json_file.h"
#include "engine_adapter/kvengine/engine.h"
#include "engine_adapter/kvengine/generate_command.h"
#include "engine_adapter/kvengine/report.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr int64_t kMaxTokensMax = int64_t{1} << 20;

absl::StatusOr<std::optional<std::string>> TextField(const JsonFields& fields, const char* key) {
  if (fields.Find(key) == nullptr) return std::nullopt;
  ASSIGN_OR_RETURN(std::string text, fields.StringOr(key, ""));
  return std::optional<std::string>(std::move(text));
}

absl::Status ReadPromptIds(const JsonFields& fields, GenerateCommand* request) {
  const nlohmann::json* ids = fields.Find("prompt_ids");
  if (ids == nullptr) return absl::OkStatus();
  request->prompt_ids.emplace();
  for (const nlohmann::json& id : *ids) {
    if (!ids->is_array() || !id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX)
      return fields.Bad("prompt_ids", "a list of token ids is needed");
    request->prompt_ids->push_back(id.get<uint32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<GenerateCommand> ParseRequest(const std::string& line, const std::string& where) {
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(line, where));
  const JsonFields fields(object, where, "");
  GenerateCommand request;
  request.has_json_output = true;
  ASSIGN_OR_RETURN(request.prompt, TextField(fields, "prompt"));
  ASSIGN_OR_RETURN(request.prompt_file, TextField(fields, "prompt_file"));
  ASSIGN_OR_RETURN(request.prompt_ids_file, TextField(fields, "prompt_ids_file"));
  RETURN_IF_ERROR(ReadPromptIds(fields, &request));
  if (request.prompt.has_value() + request.prompt_file.has_value() +
          request.prompt_ids.has_value() + request.prompt_ids_file.has_value() !=
      1) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": one of prompt, prompt_file, prompt_ids and prompt_ids_file is needed"));
  }
  ASSIGN_OR_RETURN(request.max_tokens,
                   fields.IntegerOr("max_tokens", request.max_tokens, 1, kMaxTokensMax));
  ASSIGN_OR_RETURN(request.sampling.top_k, fields.IntegerOr("top_k", 0, 0, int64_t{1} << 31));
  if (fields.Find("temperature") != nullptr) {
    ASSIGN_OR_RETURN(const double temperature, fields.Number("temperature", 0, 100));
    request.sampling.temperature = static_cast<float>(temperature);
  }
  if (fields.Find("top_p") != nullptr) {
    ASSIGN_OR_RETURN(const double top_p, fields.Number("top_p", 1e-6, 1));
    request.sampling.top_p = static_cast<float>(top_p);
  }
  ASSIGN_OR_RETURN(const int64_t seed, fields.IntegerOr("seed", 0, 0, INT64_MAX));
  request.seed = static_cast<uint64_t>(seed);
  ASSIGN_OR_RETURN(request.logits_file, fields.StringOr("logits_out", ""));
  for (const auto& [key, value] : object.items()) {
    static constexpr std::string_view kKeys[] = {
        "prompt",      "prompt_file", "prompt_ids", "prompt_ids_file", "max_tokens", "top_k",
        "temperature", "top_p",       "seed",       "logits_out"};
    if (std::ranges::find(kKeys, key) == std::end(kKeys))
      return fields.Bad(key.c_str(), "there is no such key");
  }
  return request;
}

absl::StatusOr<nlohmann::json> AnswerLine(const Engine& engine, const BatchCommand& command,
                                          const std::string& line, const std::string& where) {
  ASSIGN_OR_RETURN(const GenerateCommand request, ParseRequest(line, where));
  ASSIGN_OR_RETURN(const Answer answer, RunRequest(engine, request));
  return ReportJson(answer.result, command.engine.block_tokens, answer.text);
}

absl::StatusOr<int> Run(const BatchCommand& command) {
  std::ifstream file;
  const bool is_file = command.requests_file != "-";
  if (is_file) file.open(command.requests_file);
  if (is_file && !file.is_open()) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot read the requests from ", command.requests_file));
  }
  ASSIGN_OR_RETURN(const Engine engine, Engine::Load(command.engine));
  int exit_code = kExitDone;
  std::istream& requests = is_file ? file : std::cin;
  std::string line;
  for (int64_t number = 1; std::getline(requests, line); ++number) {
    if (line.empty()) continue;
    const absl::StatusOr<nlohmann::json> answer =
        AnswerLine(engine, command, line, absl::StrCat("request ", number));
    if (!answer.ok()) exit_code = kExitFailed;
    std::printf("%s\n", (answer.ok() ? *answer : ErrorJson(answer.status())).dump().c_str());
    std::fflush(stdout);  // whoever sends the next request when it has read this
  }
  return exit_code;
}

}  // namespace

int RunBatchCommand(const BatchCommand& command) {
  const absl::StatusOr<int> exit_code = Run(command);
  if (exit_code.ok()) return *exit_code;
  std::fprintf(stderr, "kvengine: %s\n", std::string(exit_code.status().message()).c_str());
  return kExitFailed;
}

}  // namespace kvstore::engine
