#include "engine_adapter/llama/generate.h"

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// One request on its way.
class Generation {
 public:
  Generation(Backend& backend, PrefixCache& cache, Sequence& sequence,
             const GenerateObserver& observer)
      : backend_(backend), cache_(cache), sequence_(sequence), observer_(observer) {}

  absl::StatusOr<GenerateResult> Run() {
    const Timeline::Time begin = Timeline::Now();
    sequence_.LoadPrefix();
    AddSpan("match", sequence_.position(), begin, Timeline::Now());
    RETURN_IF_ERROR(ComputeAll());
    const Timeline::Time first = ChooseToken();
    Timeline::Time last = first;
    AddSpan("ttft", 0, sequence_.request().arrival, first);
    while (!sequence_.IsDone()) {
      RETURN_IF_ERROR(ComputeAll());
      const Timeline::Time before = last;
      last = ChooseToken();
      AddSpan("decode", sequence_.num_output(), before, last);
    }
    return MakeResult(first, last);
  }

 private:
  // Computes every token that has no keys and values yet: the prompt, then one token a step; all of
  // them again after loaded pages were lost.
  absl::Status ComputeAll() {
    for (int64_t index = 0; !sequence_.HasLogits(); ++index) {
      const Timeline::Time begin = Timeline::Now();
      ASSIGN_OR_RETURN(const ForwardPass pass, sequence_.NextPass(backend_.pass_tokens_max()));
      RETURN_IF_ERROR(sequence_.EndPass(backend_.Forward(pass)));
      if (sequence_.num_output() > 0) continue;
      AddSpan("prefill", index, begin, Timeline::Now());
      if (observer_.on_prefill) observer_.on_prefill(sequence_.position(), sequence_.num_prompt());
    }
    return absl::OkStatus();
  }

  Timeline::Time ChooseToken() {
    const uint32_t token = sequence_.ChooseToken();
    const Timeline::Time chosen =
        Timeline::Now();  // what the observer does is not the engine's time
    if (observer_.on_logits) observer_.on_logits(sequence_.logits());
    if (observer_.on_token) observer_.on_token(token);
    return chosen;
  }

  void AddSpan(std::string_view name, int64_t index, Timeline::Time begin, Timeline::Time end) {
    if (observer_.timeline == nullptr) return;
    observer_.timeline->Add(Timeline::Track::kRequest, name, index, begin, end);
  }

  GenerateResult MakeResult(Timeline::Time first, Timeline::Time last) const {
    GenerateResult result;
    result.output_ids.assign(sequence_.output_ids().begin(), sequence_.output_ids().end());
    result.prompt_tokens = sequence_.num_prompt();
    result.reused_tokens = sequence_.reused_tokens();
    result.load = cache_.load();
    result.ttft = first - sequence_.request().arrival;
    const int64_t num_output = sequence_.num_output();
    if (num_output > 1) result.tpot = (last - first) / static_cast<double>(num_output - 1);
    return result;
  }

  Backend& backend_;
  PrefixCache& cache_;
  Sequence& sequence_;
  const GenerateObserver& observer_;
};

absl::StatusOr<GenerateResult> RunRequest(Backend& backend, PrefixCache& cache,
                                          const GenerateRequest& request,
                                          const GenerateObserver& observer) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Sequence> sequence,
                   Sequence::Create(backend, cache, request, observer.timeline));
  return Generation(backend, cache, *sequence, observer).Run();
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
