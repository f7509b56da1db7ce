// LoadedCublasLt is NVIDIA's cuBLASLt, opened at run time: it is half a gigabyte that a machine with
// a GPU has from its CUDA toolkit or from a Python wheel, and that nothing else should need.
//
// Threads: immutable after Load(). Lifetime: the library stays open until the process ends.
#pragma once

#include <absl/status/statusor.h>
#include <cublasLt.h>

#include <cstddef>

namespace kvstore::engine {

// The functions in use, by their own names.
struct LoadedCublasLt {
  decltype(&cublasLtGetVersion) GetVersion = nullptr;
  decltype(&cublasLtCreate) Create = nullptr;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate = nullptr;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic = nullptr;
  decltype(&cublasLtMatmul) Matmul = nullptr;

  // Looks where the dynamic linker looks, then in /usr/local/cuda. Errors: Unavailable, no such
  // library, or one without a function: the message says what would help.
  static absl::StatusOr<LoadedCublasLt> Load();
};

}  // namespace kvstore::engine
