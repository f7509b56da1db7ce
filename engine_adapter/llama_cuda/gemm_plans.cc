#include "engine_adapter/llama_cuda/gemm_plans.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "engine_adapter/llama_cuda/device_memory.h"
#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr int kCandidatesMax = 6;
constexpr int kTimedRuns = 4;
constexpr int64_t kSampleRows = 16;  // the random rows that repeat over the whole input

absl::Status LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cuBLASLt, ", what, ": status ", static_cast<int>(status)));
}

int64_t OutputBytes(const GemmShape& shape) {
  return shape.output == GemmShape::Output::kFloat ? 4 : 2;
}

uint64_t Hash(const std::byte* bytes, size_t count, uint64_t seed) {  // FNV-1a by words of 8
  uint64_t hash = seed ^ 0xcbf29ce484222325u;
  for (size_t i = 0; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash;
}

// Random rows of about unit size, always the same ones.
std::vector<__nv_bfloat16> RandomRows(int64_t columns, uint64_t seed) {
  std::vector<__nv_bfloat16> values(static_cast<size_t>(kSampleRows * columns));
  for (__nv_bfloat16& value : values) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    value = __float2bfloat16_rn(static_cast<float>(seed >> 40) * 0x1p-22f - 2.0f);
  }
  return values;
}

}  // namespace

absl::StatusOr<GemmPlans::Layout> GemmPlans::MakeLayout(cudaDataType_t type, int64_t rows,
                                                        int64_t columns) const {
  cublasLtMatrixLayout_t layout = nullptr;
  RETURN_IF_ERROR(
      LtStatus(library_.lt->MatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                               static_cast<uint64_t>(columns), rows),
               "matrix layout"));
  return Layout(layout, {library_.lt->MatrixLayoutDestroy});
}

namespace {

// What a product computes: bf16 with float32 sums, weights transposed, bias where there is one.
class Description {
 public:
  Description(const LoadedCublasLt& lt, const GemmShape& shape, const __nv_bfloat16* bias)
      : lt_(lt) {
    result_ = LtStatus(lt.MatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                       "product description");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    Set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (!shape.has_bias) return;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  ~Description() {
    if (description_ != nullptr) lt_.MatmulDescDestroy(description_);
  }
  const absl::Status& status() const { return result_; }
  cublasLtMatmulDesc_t get() const { return description_; }

 private:
  template <typename Value>
  void Set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    if (!result_.ok()) return;
    result_ = LtStatus(lt_.MatmulDescSetAttribute(description_, attribute, &value, sizeof(value)),
                       "attribute");
  }

  const LoadedCublasLt& lt_;
  cublasLtMatmulDesc_t description_ = nullptr;
  absl::Status result_;
};

}  // namespace

absl::Status GemmPlans::Multiply(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                                 const GemmOperands& operands, cudaStream_t stream) const {
  const Description description(*library_.lt, shape_, operands.bias);
  RETURN_IF_ERROR(description.status());
  const float one = 1.0f;
  const float added = shape_.output == GemmShape::Output::kBf16AddedTo ? 1.0f : 0.0f;
  return LtStatus(library_.lt->Matmul(library_.handle, description.get(), &one, operands.w,
                                      w_.get(), operands.x, plan.x.get(), &added, operands.out,
                                      plan.out.get(), operands.out, plan.out.get(), &algorithm,
                                      library_.workspace, library_.workspace_bytes, stream),
                  "product");
}

absl::Status GemmPlans::Run(int64_t rows, const GemmOperands& operands, cudaStream_t stream) const {
  const auto plan = std::lower_bound(plans_.begin(), plans_.end(), rows,
                                     [](const Plan& p, int64_t wanted) { return p.rows < wanted; });
  if (rows < 1 || plan == plans_.end()) {
    return absl::InternalError(absl::StrCat("a product of ", rows, " rows"));
  }
  return Multiply(*plan, plan->algorithm, operands, stream);
}

// Runs all candidates of all row counts and chooses.
class GemmPlans::Selection {
 public:
  Selection(GemmPlans& plans, const GemmOperands& scratch,
            const std::vector<const __nv_bfloat16*>& layers)
      : plans_(plans), scratch_(scratch), layers_(layers) {}

  absl::Status Choose() {
    RETURN_IF_ERROR(FillInput());
    const auto sample =
        static_cast<size_t>(kSampleRows * plans_.shape_.n * OutputBytes(plans_.shape_));
    ASSIGN_OR_RETURN(download_, PinnedMemory::Allocate(sample));
    for (size_t i = 0; i < plans_.plans_.size(); ++i) RETURN_IF_ERROR(TryAll(i));
    return Decide();
  }

 private:
  struct Candidate {
    cublasLtMatmulAlgo_t algorithm = {};
    uint64_t bits = 0;  // hash of its result
    float milliseconds = 0.0f;
  };

  int64_t RowsOf(size_t index) const { return plans_.plans_[index].rows; }
  int64_t rows_max() const { return plans_.plans_.back().rows; }
  // Row counts whose speed matters are timed: powers of two, and the largest.
  bool IsTimed(size_t index) const {
    return (RowsOf(index) & (RowsOf(index) - 1)) == 0 || index + 1 == plans_.plans_.size();
  }
  // Fewer rows than that can be computed as that many.
  bool IsOptional(size_t index) const { return RowsOf(index) < std::min(kRowMultiple, rows_max()); }
  size_t RowBytes() const {
    return static_cast<size_t>(plans_.shape_.n * OutputBytes(plans_.shape_));
  }

  // Fills `num_rows` rows of `to`.
  absl::Status Repeat(const std::vector<__nv_bfloat16>& rows, int64_t columns, int64_t num_rows,
                      void* to) const {
    const size_t bytes = static_cast<size_t>(kSampleRows * columns) * sizeof(__nv_bfloat16);
    for (int64_t row = 0; row < num_rows; row += kSampleRows) {
      RETURN_IF_RUNTIME_ERROR(
          cudaMemcpyAsync(static_cast<std::byte*>(to) + row * columns * 2,
                          row == 0 ? static_cast<const void*>(rows.data()) : to, bytes,
                          row == 0 ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice,
                          plans_.library_.stream),
          "rows for checking products");
    }
    return absl::OkStatus();
  }

  absl::Status FillInput() {
    input_ = RandomRows(plans_.shape_.k, 1);
    return Repeat(input_, plans_.shape_.k, rows_max(), const_cast<__nv_bfloat16*>(scratch_.x));
  }

  absl::Status TryAll(size_t index) {
    std::vector<Candidate>& candidates = candidates_[index];
    RETURN_IF_ERROR(Ask(index, candidates));
    for (Candidate& candidate : candidates) {
      RETURN_IF_ERROR(HashBits(index, candidate));
      if (IsTimed(index)) RETURN_IF_ERROR(Time(index, candidate));
    }
    return absl::OkStatus();
  }

  // Candidates without split-K, in the library's order.
  absl::Status Ask(size_t index, std::vector<Candidate>& candidates) const {
    const LoadedCublasLt& lt = *plans_.library_.lt;
    const Plan& plan = plans_.plans_[index];
    const Description description(lt, plans_.shape_, scratch_.bias);
    RETURN_IF_ERROR(description.status());
    cublasLtMatmulPreference_t preference = nullptr;
    RETURN_IF_ERROR(LtStatus(lt.MatmulPreferenceCreate(&preference), "preference"));
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    lt.MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                    &no_reduction, sizeof(no_reduction));
    lt.MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                    &plans_.library_.workspace_bytes, sizeof(size_t));
    const uint32_t alignment = 16;  // rows of activations start anywhere
    for (const auto operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      lt.MatmulPreferenceSetAttribute(preference, operand, &alignment, sizeof(alignment));
    }
    cublasLtMatmulHeuristicResult_t results[kCandidatesMax];
    int found = 0;
    const cublasStatus_t status = lt.MatmulAlgoGetHeuristic(
        plans_.library_.handle, description.get(), plans_.w_.get(), plan.x.get(), plan.out.get(),
        plan.out.get(), preference, kCandidatesMax, results, &found);
    lt.MatmulPreferenceDestroy(preference);
    RETURN_IF_ERROR(LtStatus(status, "candidates"));
    for (int i = 0; i < found; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS)
        candidates.push_back({.algorithm = results[i].algo});
    }
    return absl::OkStatus();
  }

  // The bits of the first and the last sample of rows; they must agree, or the hash is one that no
  // other candidate has.
  absl::Status HashBits(size_t index, Candidate& candidate) {
    if (plans_.shape_.output == GemmShape::Output::kBf16AddedTo) {
      if (base_.empty()) base_ = RandomRows(plans_.shape_.n, 2);
      RETURN_IF_ERROR(Repeat(base_, plans_.shape_.n, RowsOf(index), scratch_.out));
    }
    GemmOperands operands = scratch_;
    operands.w = layers_.front();
    RETURN_IF_ERROR(plans_.Multiply(plans_.plans_[index], candidate.algorithm, operands,
                                    plans_.library_.stream));
    ASSIGN_OR_RETURN(const uint64_t first, HashRows(0));
    ASSIGN_OR_RETURN(const uint64_t last, HashRows(RowsOf(index) - kSampleRows));
    candidate.bits = first == last ? first : ++no_class_;
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> HashRows(int64_t row) {
    const size_t bytes = static_cast<size_t>(kSampleRows) * RowBytes();
    RETURN_IF_RUNTIME_ERROR(cudaMemcpyAsync(download_.data(),
                                            static_cast<std::byte*>(scratch_.out) +
                                                row * static_cast<int64_t>(RowBytes()),
                                            bytes, cudaMemcpyDeviceToHost, plans_.library_.stream),
                            "check of products");
    RETURN_IF_RUNTIME_ERROR(cudaStreamSynchronize(plans_.library_.stream), "check of products");
    return Hash(download_.data(), bytes, 0);
  }

  absl::Status Time(size_t index, Candidate& candidate) const {
    cudaEvent_t begin = nullptr, end = nullptr;
    RETURN_IF_RUNTIME_ERROR(cudaEventCreate(&begin), "event");
    RETURN_IF_RUNTIME_ERROR(cudaEventCreate(&end), "event");
    GemmOperands operands = scratch_;
    absl::Status status;
    for (int run = -1; run < kTimedRuns && status.ok(); ++run) {
      if (run == 0) cudaEventRecord(begin, plans_.library_.stream);
      operands.w = layers_[static_cast<size_t>(run + 1) % layers_.size()];
      status = plans_.Multiply(plans_.plans_[index], candidate.algorithm, operands,
                               plans_.library_.stream);
    }
    cudaEventRecord(end, plans_.library_.stream);
    cudaEventSynchronize(end);
    cudaEventElapsedTime(&candidate.milliseconds, begin, end);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return status;
  }

  // The fastest candidate of `bits` at a row count; null where there is none.
  const Candidate* Best(size_t index, uint64_t bits) const {
    const Candidate* best = nullptr;
    for (const Candidate& candidate : candidates_.at(index)) {
      if (candidate.bits != bits) continue;
      if (best == nullptr || candidate.milliseconds < best->milliseconds) best = &candidate;
    }
    return best;
  }

  // Candidates of a class over all row counts; 0 where a row count has none.
  int64_t SizeOf(uint64_t bits) const {
    int64_t total = 0;
    for (const auto& [index, candidates] : candidates_) {
      if (IsOptional(index)) continue;
      const auto members = std::count_if(candidates.begin(), candidates.end(),
                                         [bits](const Candidate& c) { return c.bits == bits; });
      if (members == 0) return 0;
      total += members;
    }
    return total;
  }

  absl::Status Decide() {
    std::set<uint64_t> classes;
    for (const Candidate& candidate : candidates_.rbegin()->second) classes.insert(candidate.bits);
    // The largest class, not the fastest: the choice must be the same at the next start.
    int64_t largest = 0;
    for (const uint64_t bits : classes) {
      const int64_t size = SizeOf(bits);
      if (size <= largest) continue;
      largest = size;
      plans_.class_id_ = bits;
    }
    if (largest == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cuBLASLt has no algorithms that give a row of ", plans_.shape_.k, " x ", plans_.shape_.n,
          " weights the same bits at every number of rows up to ", rows_max()));
    }
    return Keep();
  }

  // Keeps the best of the class for each row count; drops those that more rows are as fast for.
  absl::Status Keep() {
    std::vector<Plan> kept;
    float next_milliseconds = 0.0f;
    for (size_t index = plans_.plans_.size(); index-- > 0;) {
      const Candidate* best = Best(index, plans_.class_id_);
      if (IsOptional(index) && (best == nullptr || best->milliseconds >= next_milliseconds))
        continue;
      plans_.plans_[index].algorithm = best->algorithm;
      next_milliseconds = best->milliseconds;
      kept.push_back(std::move(plans_.plans_[index]));
    }
    std::reverse(kept.begin(), kept.end());
    plans_.plans_ = std::move(kept);
    return absl::OkStatus();
  }

  GemmPlans& plans_;
  const GemmOperands scratch_;
  const std::vector<const __nv_bfloat16*>& layers_;
  std::vector<__nv_bfloat16> input_;
  std::vector<__nv_bfloat16> base_;
  PinnedMemory download_;
  uint64_t no_class_ = 0;
  std::map<size_t, std::vector<Candidate>> candidates_;  // by index of the plan
};

absl::StatusOr<GemmPlans> GemmPlans::Create(const Library& library, const GemmShape& shape,
                                            int64_t rows_max, const GemmOperands& scratch,
                                            const std::vector<const __nv_bfloat16*>& layers) {
  GemmPlans plans;
  plans.library_ = library;
  plans.shape_ = shape;
  ASSIGN_OR_RETURN(plans.w_, plans.MakeLayout(CUDA_R_16BF, shape.k, shape.n));
  const cudaDataType_t out_type =
      shape.output == GemmShape::Output::kFloat ? CUDA_R_32F : CUDA_R_16BF;
  const auto next = [](int64_t rows) {
    return rows < kRowMultiple ? 2 * rows : rows + kRowMultiple;
  };
  for (int64_t rows = kSampleRows; rows <= rows_max; rows = next(rows)) {
    Plan plan;
    plan.rows = rows;
    ASSIGN_OR_RETURN(plan.x, plans.MakeLayout(CUDA_R_16BF, shape.k, rows));
    ASSIGN_OR_RETURN(plan.out, plans.MakeLayout(out_type, shape.n, rows));
    plans.plans_.push_back(std::move(plan));
  }
  RETURN_IF_ERROR(Selection(plans, scratch, layers).Choose());
  return plans;
}

}  // namespace kvstore::engine
