#include "engine_adapter/llama/generate.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "engine_adapter/paging/page_table.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

absl::Status CheckRequest(const Backend& backend, const GenerateRequest& request) {
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t positions = backend.config().max_positions;
  if (prompt < 1) return absl::InvalidArgumentError("the prompt has no tokens");
  if (request.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", request.max_tokens, "; valid is 1 or more"));
  }
  // The last token chosen is not computed any more, so it needs no position.
  if (prompt > positions || request.max_tokens - 1 > positions - prompt) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", prompt, " tokens and max_tokens ", request.max_tokens,
                     " need more than the ", positions, " positions of the model"));
  }
  return absl::OkStatus();
}

// One request on its way.
class Generation {
 public:
  Generation(Backend& backend, PrefixCache& cache, const GenerateRequest& request,
             const GenerateObserver& observer, PageTable table)
      : backend_(backend),
        cache_(cache),
        request_(request),
        observer_(observer),
        table_(std::move(table)),
        block_tokens_(backend.kv_layout().block_tokens),
        tokens_(request.prompt_ids),
        logits_(static_cast<size_t>(backend.config().vocab_size)),
        candidates_(logits_.size()),
        generator_(request.seed) {
    tokens_.reserve(request.prompt_ids.size() + static_cast<size_t>(request.max_tokens));
  }

  absl::StatusOr<GenerateResult> Run() {
    LoadPrefix();
    RETURN_IF_ERROR(ComputeAll());
    const Timeline::Time first = ChooseToken();
    Timeline::Time last = first;
    AddSpan("ttft", 0, request_.arrival, first);
    while (!IsDone()) {
      RETURN_IF_ERROR(ComputeAll());
      const Timeline::Time begin = last;
      last = ChooseToken();
      AddSpan("decode", num_output(), begin, last);
    }
    return MakeResult(first, last);
  }

 private:
  int64_t num_prompt() const { return static_cast<int64_t>(request_.prompt_ids.size()); }
  int64_t num_output() const { return static_cast<int64_t>(tokens_.size()) - num_prompt(); }

  void LoadPrefix() {
    const Timeline::Time begin = Timeline::Now();
    const PrefixLoad load = cache_.LoadPrefix(request_.prompt_ids);
    loaded_blocks_ = std::clamp<int64_t>(load.num_blocks, 0, num_prompt() / block_tokens_);
    table_.AddLoaded(cache_, loaded_blocks_);
    StartBehindLoaded();
    is_gated_ = loaded_blocks_ > 0;
    AddSpan("match", loaded_blocks_, begin, Timeline::Now());
  }

  // A full hit still computes its last token: its logits are not in any page.
  void StartBehindLoaded() {
    position_ = std::min(loaded_blocks_ * block_tokens_, num_prompt() - 1);
    published_blocks_ = loaded_blocks_;
  }

  // Computes every token that has no keys and values yet: the prompt, then one token a step; all of
  // them again after loaded pages were lost. Passes end at absolute multiples of the pass size,
  // itself a multiple of the block where it can be.
  absl::Status ComputeAll() {
    const int64_t rows = backend_.pass_tokens_max();
    const int64_t pass_tokens = rows < block_tokens_ ? rows : rows / block_tokens_ * block_tokens_;
    const auto num_tokens = static_cast<int64_t>(tokens_.size());
    for (int64_t pass = 0; position_ < num_tokens; ++pass) {
      const int64_t end = std::min(num_tokens, (position_ / pass_tokens + 1) * pass_tokens);
      const Timeline::Time begin = Timeline::Now();
      RETURN_IF_ERROR(RunPass(end));
      if (num_output() > 0) continue;
      AddSpan("prefill", pass, begin, Timeline::Now());
      if (observer_.on_prefill) observer_.on_prefill(position_, num_prompt());
    }
    return absl::OkStatus();
  }

  // Computes tokens [position_, end), with logits when `end` is where the tokens end. Or, when
  // loaded blocks turn out to be lost, steps back behind those that are left.
  absl::Status RunPass(int64_t end) {
    RETURN_IF_ERROR(table_.Extend(cache_, end));
    int64_t ready_blocks = loaded_blocks_;
    ForwardPass pass{.token_ids = std::span(tokens_).subspan(static_cast<size_t>(position_),
                                                             static_cast<size_t>(end - position_)),
                     .first_position = position_,
                     .read_pages = table_.read_pages(),
                     .write_pages = table_.write_pages(),
                     .timeline = observer_.timeline};
    if (end == static_cast<int64_t>(tokens_.size())) pass.logits = logits_;
    if (is_gated_) {
      pass.layer_gate = [this, &ready_blocks](int64_t layer) {
        ready_blocks = WaitReady(layer);
        return ready_blocks >= loaded_blocks_;
      };
    }
    const absl::Status status = backend_.Forward(pass);
    if (absl::IsAborted(status) && ready_blocks < loaded_blocks_) return StepBack(ready_blocks);
    RETURN_IF_ERROR(status);
    if (loaded_blocks_ > 0 && !cache_.IsIntact()) return StepBack(0);
    is_gated_ = false;
    position_ = end;
    PublishFullBlocks();
    return absl::OkStatus();
  }

  int64_t WaitReady(int64_t layer) {
    const Timeline::Time begin = Timeline::Now();
    const int64_t ready = std::clamp<int64_t>(cache_.WaitReady(layer), 0, loaded_blocks_);
    if (observer_.timeline != nullptr) {
      observer_.timeline->Add(Timeline::Track::kCompute, "wait for slice", layer, begin,
                              Timeline::Now());
    }
    return ready;
  }

  absl::Status StepBack(int64_t ready_blocks) {
    RETURN_IF_ERROR(table_.Replace(cache_, ready_blocks, loaded_blocks_));
    loaded_blocks_ = ready_blocks;
    is_gated_ = loaded_blocks_ > 0;
    StartBehindLoaded();
    return absl::OkStatus();
  }

  void PublishFullBlocks() {
    for (; (published_blocks_ + 1) * block_tokens_ <= position_; ++published_blocks_) {
      cache_.PublishPage(
          published_blocks_,
          std::span(tokens_).subspan(static_cast<size_t>(published_blocks_ * block_tokens_),
                                     static_cast<size_t>(block_tokens_)));
    }
  }

  Timeline::Time ChooseToken() {
    if (observer_.on_logits) observer_.on_logits(logits_);
    const int64_t token = kernels::SampleToken(logits_.data(), static_cast<int64_t>(logits_.size()),
                                               request_.sampling, generator_, candidates_.data());
    tokens_.push_back(static_cast<uint32_t>(token));
    const Timeline::Time chosen = Timeline::Now();
    if (observer_.on_token) observer_.on_token(tokens_.back());
    return chosen;
  }

  bool IsDone() const {
    const std::vector<uint32_t>& ends = backend_.config().eos_token_ids;
    return num_output() >= request_.max_tokens ||
           std::find(ends.begin(), ends.end(), tokens_.back()) != ends.end();
  }

  void AddSpan(std::string_view name, int64_t index, Timeline::Time begin, Timeline::Time end) {
    if (observer_.timeline == nullptr) return;
    observer_.timeline->Add(Timeline::Track::kRequest, name, index, begin, end);
  }

  GenerateResult MakeResult(Timeline::Time first, Timeline::Time last) const {
    GenerateResult result;
    result.output_ids.assign(tokens_.begin() + num_prompt(), tokens_.end());
    result.prompt_tokens = num_prompt();
    result.reused_tokens = std::min(loaded_blocks_ * block_tokens_, num_prompt() - 1);
    result.load = cache_.load();
    result.ttft = first - request_.arrival;
    if (num_output() > 1) result.tpot = (last - first) / static_cast<double>(num_output() - 1);
    return result;
  }

  Backend& backend_;
  PrefixCache& cache_;
  const GenerateRequest& request_;
  const GenerateObserver& observer_;
  PageTable table_;
  const int64_t block_tokens_;
  std::vector<uint32_t> tokens_;  // prompt, then output
  std::vector<float> logits_;
  std::vector<kernels::SampleCandidate> candidates_;
  kernels::SampleGenerator generator_;
  int64_t loaded_blocks_ = 0;
  int64_t published_blocks_ = 0;  // loaded ones count as published
  int64_t position_ = 0;          // tokens before it have their keys and values
  bool is_gated_ = false;         // loaded slices have not all been waited for
};

absl::StatusOr<GenerateResult> RunRequest(Backend& backend, PrefixCache& cache,
                                          const GenerateRequest& request,
                                          const GenerateObserver& observer) {
  RETURN_IF_ERROR(CheckRequest(backend, request));
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  ASSIGN_OR_RETURN(
      PageTable table,
      PageTable::Create(backend.kv_layout(), prompt + request.max_tokens, backend.page_memory()));
  return Generation(backend, cache, request, observer, std::move(table)).Run();
}

}  // namespace

absl::StatusOr<GenerateResult> Generate(Backend& backend, PrefixCache& cache,
                                        const GenerateRequest& request,
                                        const GenerateObserver& observer) {
  absl::StatusOr<GenerateResult> result = RunRequest(backend, cache, request, observer);
  cache.Finish();
  return result;
}

}  // namespace kvstore::engine
