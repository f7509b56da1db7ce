// A mixture of experts: the rows of a batch are grouped by expert, each expert's SwiGLU runs over
// its rows, and every row adds up what its own experts gave.
//
// Bits: a row's logits, choice and sum are its own (kernels/experts.h), and a product gives a row the
// same bits whatever rows are beside it (kernels/gemm.h). The experts of a row are added by ascending
// number, the shared ones last. So neither the batch, nor how a prompt was cut, nor which rows met at
// an expert changes anything.
#include <algorithm>
#include <vector>

#include "engine_adapter/llama_cpu/cpu_feed_forward.h"
#include "engine_adapter/llama_cpu/swiglu.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Rows that are routed at a time: bounds the work space, which is as wide as the experts of a row
// together. 128 experts of which 8 are chosen still get 32 rows each.
constexpr int64_t kRoutedRowsMax = 512;

struct Weights {
  PackedMatrix router;  // [num_experts, H]
  std::vector<PackedSwiglu> experts;
  PackedSwiglu shared;  // empty if there are none
};

class ExpertFeedForward final : public CpuFeedForward {
 public:
  ExpertFeedForward(const ModelConfig& config, CpuExecutor& executor)
      : config_(config),
        shape_(*config.experts),
        executor_(executor),
        layers_(static_cast<size_t>(config.num_layers)) {}

  absl::Status PackLayer(int64_t layer, const LayerWeights& from) override;
  void Plan(WorkSpace& space, int64_t rows_max) override;
  void Run(RowRange rows, int64_t layer, const Activation& in, const Activation& out) override;

 private:
  bool has_shared() const { return shape_.shared_intermediate_size > 0; }

  void RunSome(int64_t rows, const Weights& layer, const Activation& in, const Activation& out);
  void Route(int64_t rows, const Weights& layer, const Activation& in);
  void GroupByExpert(int64_t rows, const Activation& in);
  void RunExperts(int64_t rows, const Weights& layer);
  void AddUp(int64_t rows, const Activation& out);

  const ModelConfig& config_;
  const ExpertLayers& shape_;
  CpuExecutor& executor_;
  std::vector<Weights> layers_;  // by layer; empty where there are no experts

  // A slot is one row at one expert: there are per_token times as many as rows, those of an expert
  // side by side, in the order of rows.
  std::vector<int32_t> experts_;      // [rows, per_token], which each row chose
  std::vector<int32_t> slots_;        // [rows, per_token], where they lie
  std::vector<int32_t> slot_begins_;  // [num_experts + 1]
  std::vector<Product> products_;

  Activation router_logits_;  // [rows, num_experts]
  float* weights_ = nullptr;  // [rows, per_token]
  Activation gathered_;       // [slots, H]
  SwigluRows through_;        // [slots, ..]
  Activation given_;          // [slots, H]
  SwigluRows through_shared_;
  Activation shared_;  // [rows, H]
};

absl::Status ExpertFeedForward::PackLayer(int64_t layer, const LayerWeights& from) {
  const ExpertWeights& experts = *from.experts;
  Weights& to = layers_[static_cast<size_t>(layer)];
  ThreadPool& pool = executor_.pool();
  ASSIGN_OR_RETURN(to.router, PackFused({&experts.router}, pool));
  for (const SwigluWeights& expert : experts.experts) {
    ASSIGN_OR_RETURN(PackedSwiglu packed,
                     PackSwiglu(expert.gate_proj, expert.up_proj, expert.down_proj, pool));
    to.experts.push_back(std::move(packed));
  }
  if (has_shared()) {
    const SwigluWeights& shared = *experts.shared;
    ASSIGN_OR_RETURN(to.shared,
                     PackSwiglu(shared.gate_proj, shared.up_proj, shared.down_proj, pool));
  }
  return absl::OkStatus();
}

void ExpertFeedForward::Plan(WorkSpace& space, int64_t rows_max) {
  const int64_t rows = std::min(rows_max, kRoutedRowsMax);
  const int64_t slots = rows * shape_.per_token;
  experts_.resize(static_cast<size_t>(slots));
  slots_.resize(static_cast<size_t>(slots));
  slot_begins_.resize(static_cast<size_t>(shape_.num_experts) + 1);
  products_.reserve(static_cast<size_t>(shape_.num_experts));
  space.AddRows(router_logits_, rows, shape_.num_experts);
  space.AddFloats(weights_, slots);
  space.AddRows(gathered_, slots, config_.hidden_size);
  through_.Plan(space, slots, shape_.intermediate_size);
  space.AddRows(given_, slots, config_.hidden_size);
  if (!has_shared()) return;
  through_shared_.Plan(space, rows, shape_.shared_intermediate_size);
  space.AddRows(shared_, rows, config_.hidden_size);
}

void ExpertFeedForward::Run(RowRange rows, int64_t layer, const Activation& in,
                            const Activation& out) {
  for (int64_t row = rows.begin; row < rows.end; row += kRoutedRowsMax) {
    RunSome(std::min(kRoutedRowsMax, rows.end - row), layers_[static_cast<size_t>(layer)],
            in.FromRow(row), out.FromRow(row));
  }
}

void ExpertFeedForward::RunSome(int64_t rows, const Weights& layer, const Activation& in,
                                const Activation& out) {
  Route(rows, layer, in);
  GroupByExpert(rows, in);
  RunExperts(rows, layer);
  if (has_shared()) RunSwiglu(executor_, {0, rows}, layer.shared, in, through_shared_, shared_);
  AddUp(rows, out);
}

void ExpertFeedForward::Route(int64_t rows, const Weights& layer, const Activation& in) {
  executor_.Multiply({0, rows}, in, layer.router, router_logits_);
  const kernels::RouteArgs args{.logits = router_logits_.data,
                                .logits_stride = router_logits_.stride,
                                .num_experts = shape_.num_experts,
                                .top_k = shape_.per_token,
                                .is_normalized = shape_.is_normalized,
                                .scale = static_cast<float>(shape_.scale),
                                .experts = experts_.data(),
                                .weights = weights_};
  executor_.ForRows(
      {0, rows}, [&](int64_t begin, int64_t end) { executor_.kernels().route(args, begin, end); });
}

// Sorts by counting, and copies each row to its slots.
void ExpertFeedForward::GroupByExpert(int64_t rows, const Activation& in) {
  const auto slots = static_cast<size_t>(rows * shape_.per_token);
  std::fill(slot_begins_.begin(), slot_begins_.end(), 0);
  for (size_t i = 0; i < slots; ++i) ++slot_begins_[static_cast<size_t>(experts_[i]) + 1];
  for (size_t i = 1; i < slot_begins_.size(); ++i) slot_begins_[i] += slot_begins_[i - 1];
  for (size_t i = 0; i < slots; ++i) slots_[i] = slot_begins_[static_cast<size_t>(experts_[i])]++;
  // Each begin has moved to the next expert's.
  std::copy_backward(slot_begins_.begin(), slot_begins_.end() - 1, slot_begins_.end());
  slot_begins_[0] = 0;
  executor_.ForRows({0, rows}, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * shape_.per_token; i < end * shape_.per_token; ++i) {
      std::copy_n(in.row(i / shape_.per_token), config_.hidden_size,
                  gathered_.row(slots_[static_cast<size_t>(i)]));
    }
  });
}

void ExpertFeedForward::RunExperts(int64_t rows, const Weights& layer) {
  const auto multiply = [&](const Activation& a, PackedMatrix PackedSwiglu::*matrix,
                            const Activation& c) {
    products_.clear();
    for (size_t i = 0; i < layer.experts.size(); ++i) {
      const RowRange slots{slot_begins_[i], slot_begins_[i + 1]};
      if (slots.size() == 0) continue;
      products_.push_back({.a = a, .matrix = &(layer.experts[i].*matrix), .c = c, .rows = slots});
    }
    executor_.Multiply(products_);
  };
  multiply(gathered_, &PackedSwiglu::gate_up, through_.gate_up);
  through_.Activate(executor_, {0, rows * shape_.per_token}, shape_.intermediate_size);
  multiply(through_.activated, &PackedSwiglu::down, given_);
}

void ExpertFeedForward::AddUp(int64_t rows, const Activation& out) {
  const kernels::CombineArgs args{.x = given_.data,
                                  .x_stride = given_.stride,
                                  .slots = slots_.data(),
                                  .weights = weights_,
                                  .top_k = shape_.per_token,
                                  .shared = has_shared() ? shared_.data : nullptr,
                                  .shared_stride = shared_.stride,
                                  .out = out.data,
                                  .out_stride = out.stride,
                                  .n = config_.hidden_size};
  executor_.ForRows({0, rows}, [&](int64_t begin, int64_t end) {
    executor_.kernels().combine(args, begin, end);
  });
}

}  // namespace

std::unique_ptr<CpuFeedForward> MakeExpertFeedForward(const ModelConfig& config,
                                                      CpuExecutor& executor) {
  return std::make_unique<ExpertFeedForward>(config, executor);
}

}  // namespace kvstore::engine
