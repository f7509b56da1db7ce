#include "engine_adapter/llama/rope_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace kvstore::engine {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.head_dim = 64;
  config.rope_theta = 10000.0;
  return config;
}

TEST(RopeTable, FrequenciesFallGeometrically) {
  const RopeTable table(Config());
  ASSERT_EQ(table.half(), 32);
  EXPECT_EQ(table.inverse_frequencies()[0], 1.0f);
  EXPECT_NEAR(table.inverse_frequencies()[16], 0.01f, 1e-8f);
}

TEST(RopeTable, LinearScalingDividesAll) {
  ModelConfig config = Config();
  config.rope_scaling = {.kind = RopeScaling::Kind::kLinear, .factor = 4.0};
  EXPECT_EQ(RopeTable(config).inverse_frequencies()[0], 0.25f);
}

TEST(RopeTable, Llama3ScalingKeepsShortWavesAndDividesLongOnes) {
  ModelConfig config = Config();
  config.rope_theta = 500000.0;
  config.rope_scaling = {.kind = RopeScaling::Kind::kLlama3,
                         .factor = 8.0,
                         .low_freq_factor = 1.0,
                         .high_freq_factor = 4.0,
                         .original_max_positions = 8192};
  const RopeTable plain(Config()), scaled(config);
  ModelConfig unscaled = config;
  unscaled.rope_scaling = {};
  const RopeTable base(unscaled);
  // Waves: 2 pi at i = 0 (short), over 8192 at i = 31 (long), 3,100 at i = 15: between 2,048 and
  // 8,192.
  EXPECT_EQ(scaled.inverse_frequencies()[0], base.inverse_frequencies()[0]);
  EXPECT_FLOAT_EQ(scaled.inverse_frequencies()[31], base.inverse_frequencies()[31] / 8);
  EXPECT_LT(scaled.inverse_frequencies()[15], base.inverse_frequencies()[15]);
  EXPECT_GT(scaled.inverse_frequencies()[15], base.inverse_frequencies()[15] / 8);
}

// Numbers of DeepSeek-V2-Lite: with theta 10,000 and 4,096 old positions the ramp runs from index 10
// to 23 of 32.
TEST(RopeTable, YarnKeepsFastFrequenciesAndDividesSlowOnes) {
  ModelConfig config = Config();
  config.head_dim = 192;
  config.latent = {.kv_rank = 512, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
  config.rope_scaling = {.kind = RopeScaling::Kind::kYarn,
                         .factor = 40.0,
                         .original_max_positions = 4096,
                         .attention_factor = 1.25};
  const RopeTable base(Config()), scaled(config);
  ASSERT_EQ(scaled.half(), 32);
  const auto share = [&](size_t i) {  // of the frequency that is left, 1 to 1/40
    return scaled.inverse_frequencies()[i] / base.inverse_frequencies()[i];
  };
  EXPECT_EQ(share(0), 1.0f);
  EXPECT_EQ(share(10), 1.0f);
  EXPECT_NEAR(share(17), 6.0 / 13 + 7.0 / 13 / 40, 1e-6);
  EXPECT_GT(share(22), 1.0f / 40);
  EXPECT_FLOAT_EQ(share(23), 1.0f / 40);
  EXPECT_FLOAT_EQ(share(31), 1.0f / 40);
  float cosine[32], sine[32];
  scaled.Fill(3, cosine, sine);
  EXPECT_FLOAT_EQ(cosine[0], 1.25f * std::cos(3.0f));
  EXPECT_FLOAT_EQ(sine[0], 1.25f * std::sin(3.0f));
}

TEST(RopeTable, FillsTheAnglesOfAPosition) {
  const RopeTable table(Config());
  float cosine[32], sine[32];
  table.Fill(1000, cosine, sine);
  EXPECT_NEAR(cosine[0], std::cos(1000.0), 1e-6);
  EXPECT_NEAR(sine[16], std::sin(1000.0 * 0.01), 1e-5);
}

}  // namespace
}  // namespace kvstore::engine
