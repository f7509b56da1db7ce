#include "engine_adapter/kvengine/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kvstore::engine {
namespace {

GenerateResult Result() {
  GenerateResult result;
  result.output_ids = {5, 6};
  result.prompt_tokens = 200;
  result.reused_tokens = 128;
  result.load.num_blocks = 2;
  result.load.blocks_by_source[static_cast<size_t>(BlockSource::kNvme)] = 2;
  result.load.bytes_loaded = 4096;
  result.load.failures["checksum"] = 1;
  result.ttft = std::chrono::milliseconds(12);
  return result;
}

TEST(Report, HasTheFieldsThatScriptsRead) {
  const nlohmann::json expected = {
      {"prompt_tokens", 200},
      {"reused_tokens", 128},
      {"reused_by_tier", {{"gpu", 0}, {"dram", 0}, {"nvme", 128}, {"peer", 0}, {"shared", 0}}},
      {"bytes_loaded", 4096},
      {"ttft_ms", 12.0},
      {"tpot_ms", 0.0},
      {"output_ids", {5, 6}},
      {"output_text", "hi"},
      {"load_failures", {{"checksum", 1}}}};
  EXPECT_EQ(ReportJson(Result(), 64, "hi"), expected);
}

TEST(Report, TheLineNamesSourcesAndFailures) {
  EXPECT_THAT(ReportLine(Result(), 64),
              testing::AllOf(testing::HasSubstr("128 reused (nvme 128)"),
                             testing::HasSubstr("1 blocks recomputed: checksum")));
}

TEST(Report, AnErrorHasCodeAndMessage) {
  EXPECT_EQ(ErrorJson(absl::NotFoundError("no model")).dump(),
            R"({"error":{"code":"NOT_FOUND","message":"no model"}})");
}

}  // namespace
}  // namespace kvstore::engine
