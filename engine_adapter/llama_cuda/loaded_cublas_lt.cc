#include "engine_adapter/llama_cuda/loaded_cublas_lt.h"

#include <absl/strings/str_cat.h>
#include <dlfcn.h>

#include <string>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                  "/usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so.13"};

absl::StatusOr<void*> Open() {
  std::string reasons;
  for (const char* name : kNames) {
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", ::dlerror());
  }
  return absl::UnavailableError(absl::StrCat(
      "cuBLASLt 13 was not found (", reasons,
      "). It is part of the CUDA toolkit 13 and of the Python wheel nvidia-cublas: put the folder "
      "of libcublasLt.so.13 into LD_LIBRARY_PATH"));
}

template <typename Function>
absl::Status Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("libcublasLt.so.13 has no function ", name));
}

}  // namespace

absl::StatusOr<LoadedCublasLt> LoadedCublasLt::Load() {
  ASSIGN_OR_RETURN(void* const library, Open());
  LoadedCublasLt lt;
  RETURN_IF_ERROR(Find(library, "cublasLtGetVersion", lt.GetVersion));
  RETURN_IF_ERROR(Find(library, "cublasLtCreate", lt.Create));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescCreate", lt.MatmulDescCreate));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescDestroy", lt.MatmulDescDestroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulDescSetAttribute", lt.MatmulDescSetAttribute));
  RETURN_IF_ERROR(Find(library, "cublasLtMatrixLayoutCreate", lt.MatrixLayoutCreate));
  RETURN_IF_ERROR(Find(library, "cublasLtMatrixLayoutDestroy", lt.MatrixLayoutDestroy));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulPreferenceCreate", lt.MatmulPreferenceCreate));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulPreferenceDestroy", lt.MatmulPreferenceDestroy));
  RETURN_IF_ERROR(
      Find(library, "cublasLtMatmulPreferenceSetAttribute", lt.MatmulPreferenceSetAttribute));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmulAlgoGetHeuristic", lt.MatmulAlgoGetHeuristic));
  RETURN_IF_ERROR(Find(library, "cublasLtMatmul", lt.Matmul));
  return lt;
}

}  // namespace kvstore::engine
