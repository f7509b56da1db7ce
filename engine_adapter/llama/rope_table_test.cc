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

TEST(RopeTable, FillsTheAnglesOfAPosition) {
  const RopeTable table(Config());
  float cosine[32], sine[32];
  table.Fill(1000, cosine, sine);
  EXPECT_NEAR(cosine[0], std::cos(1000.0), 1e-6);
  EXPECT_NEAR(sine[16], std::sin(1000.0 * 0.01), 1e-5);
}

}  // namespace
}  // namespace kvstore::engine
