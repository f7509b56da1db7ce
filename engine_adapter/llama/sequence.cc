#include "engine_adapter/llama/sequence.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::Status CheckRequest(const ModelConfig& config, const GenerateRequest& request) {
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t positions = config.max_positions;
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
  for (const uint32_t id : request.prompt_ids) {
    if (static_cast<int64_t>(id) < config.vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is outside the vocabulary of ", config.vocab_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Sequence>> Sequence::Create(Backend& backend, PrefixCache& cache,
                                                           GenerateRequest request,
                                                           Timeline* timeline) {
  RETURN_IF_ERROR(CheckRequest(backend.config(), request));
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  ASSIGN_OR_RETURN(
      PageTable table,
      PageTable::Create(backend.kv_layout(), prompt + request.max_tokens, backend.page_memory()));
  return std::unique_ptr<Sequence>(
      new Sequence(backend, cache, std::move(request), timeline, std::move(table)));
}

Sequence::Sequence(Backend& backend, PrefixCache& cache, GenerateRequest request,
                   Timeline* timeline, PageTable table)
    : backend_(backend),
      cache_(cache),
      request_(std::move(request)),
      timeline_(timeline),
      table_(std::move(table)),
      block_tokens_(backend.kv_layout().block_tokens),
      tokens_(request_.prompt_ids),
      logits_(static_cast<size_t>(backend.config().vocab_size)),
      candidates_(logits_.size()),
      generator_(request_.seed) {
  tokens_.reserve(request_.prompt_ids.size() + static_cast<size_t>(request_.max_tokens));
}

void Sequence::LoadPrefix() {
  const PrefixLoad load = cache_.LoadPrefix(request_.prompt_ids);
  loaded_blocks_ = std::clamp<int64_t>(load.num_blocks, 0, num_prompt() / block_tokens_);
  table_.AddLoaded(cache_, loaded_blocks_);
  StartBehindLoaded();
  is_gated_ = loaded_blocks_ > 0;
}

// A full hit still computes its last token: its logits are not in any page.
void Sequence::StartBehindLoaded() {
  position_ = std::min(loaded_blocks_ * block_tokens_, num_prompt() - 1);
  published_blocks_ = loaded_blocks_;
}

absl::Status Sequence::WaitLoaded() {
  for (int64_t layer = 0; is_gated_ && layer < backend_.config().num_layers; ++layer) {
    const int64_t ready = WaitReady(layer);
    if (ready < loaded_blocks_) RETURN_IF_ERROR(StepBack(ready));
  }
  is_gated_ = false;
  return absl::OkStatus();
}

absl::StatusOr<ForwardPass> Sequence::NextPass(int64_t rows_max) {
  // Passes end at absolute multiples of the pass size, itself a multiple of the block where it can.
  const int64_t pass_tokens =
      rows_max < block_tokens_ ? rows_max : rows_max / block_tokens_ * block_tokens_;
  pass_end_ = std::min(num_tokens(), (position_ / pass_tokens + 1) * pass_tokens);
  RETURN_IF_ERROR(table_.Extend(cache_, pass_end_));
  ready_blocks_ = loaded_blocks_;
  ForwardPass pass{.token_ids = std::span(tokens_).subspan(
                       static_cast<size_t>(position_), static_cast<size_t>(pass_end_ - position_)),
                   .first_position = position_,
                   .read_pages = table_.read_pages(),
                   .write_pages = table_.write_pages(),
                   .timeline = timeline_};
  if (pass_end_ == num_tokens()) pass.logits = logits_;
  if (is_gated_) {
    pass.layer_gate = [this](int64_t layer) {
      ready_blocks_ = WaitReady(layer);
      return ready_blocks_ >= loaded_blocks_;
    };
  }
  return pass;
}

absl::Status Sequence::EndPass(const absl::Status& status) {
  if (absl::IsAborted(status) && ready_blocks_ < loaded_blocks_) return StepBack(ready_blocks_);
  RETURN_IF_ERROR(status);
  if (loaded_blocks_ > 0 && !cache_.IsIntact()) return StepBack(0);
  is_gated_ = false;
  position_ = pass_end_;
  PublishFullBlocks();
  return absl::OkStatus();
}

int64_t Sequence::WaitReady(int64_t layer) {
  const Timeline::Time begin = Timeline::Now();
  const int64_t ready = std::clamp<int64_t>(cache_.WaitReady(layer), 0, loaded_blocks_);
  if (timeline_ != nullptr) {
    timeline_->Add(Timeline::Track::kCompute, "wait for slice", layer, begin, Timeline::Now());
  }
  return ready;
}

absl::Status Sequence::StepBack(int64_t ready_blocks) {
  RETURN_IF_ERROR(table_.Replace(cache_, ready_blocks, loaded_blocks_));
  loaded_blocks_ = ready_blocks;
  is_gated_ = loaded_blocks_ > 0;
  StartBehindLoaded();
  return absl::OkStatus();
}

void Sequence::PublishFullBlocks() {
  for (; (published_blocks_ + 1) * block_tokens_ <= position_; ++published_blocks_) {
    cache_.PublishPage(
        published_blocks_,
        std::span(tokens_).subspan(static_cast<size_t>(published_blocks_ * block_tokens_),
                                   static_cast<size_t>(block_tokens_)));
  }
}

uint32_t Sequence::ChooseToken() {
  const int64_t token = kernels::SampleToken(logits_.data(), static_cast<int64_t>(logits_.size()),
                                             request_.sampling, generator_, candidates_.data());
  tokens_.push_back(static_cast<uint32_t>(token));
  return tokens_.back();
}

bool Sequence::HasEnded() const {
  const std::vector<uint32_t>& ends = backend_.config().eos_token_ids;
  return num_output() > 0 && std::find(ends.begin(), ends.end(), tokens_.back()) != ends.end();
}

int64_t Sequence::reused_tokens() const {
  return std::min(loaded_blocks_ * block_tokens_, num_prompt() - 1);
}

}  // namespace kvstore::engine
