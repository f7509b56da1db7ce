#include "transfer/cuda/loaded_driver.h"

#include <cuda.h>
#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "transfer/cuda/cuda_status.h"

namespace kvstore::transfer {
namespace {

constexpr char kLibrary[] = "libcuda.so.1";
// cuMemcpyBatchAsync as it is since then; also what our kernels' runtime needs.
constexpr int kVersionMin = 13000;

// Every entry point that we use, at the version of the headers that we were built with. A member
// is called p_NAME because cuda.h makes macros of the names.
// clang-format off
#define KVSTORE_CUDA_FUNCTIONS(F)                                                                 \
  F(cuInit) F(cuDriverGetVersion) F(cuDeviceGetCount) F(cuDeviceGet) F(cuDeviceGetName)           \
  F(cuDeviceGetAttribute) F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease)                \
  F(cuCtxSetCurrent) F(cuMemGetInfo) F(cuMemGetAllocationGranularity) F(cuMemCreate)              \
  F(cuMemRelease) F(cuMemExportToShareableHandle) F(cuMemImportFromShareableHandle)               \
  F(cuMemAddressReserve) F(cuMemAddressFree) F(cuMemMap) F(cuMemUnmap) F(cuMemSetAccess)          \
  F(cuMemHostRegister) F(cuMemHostUnregister) F(cuStreamCreateWithPriority) F(cuStreamDestroy)    \
  F(cuEventCreate) F(cuEventDestroy) F(cuEventRecord) F(cuEventQuery) F(cuStreamWaitEvent)        \
  F(cuMemcpyBatchAsync) F(cuMemsetD8Async)
// clang-format on

struct Functions {
#define KVSTORE_CUDA_MEMBER(name) decltype(&name) p_##name = nullptr;
  KVSTORE_CUDA_FUNCTIONS(KVSTORE_CUDA_MEMBER)
#undef KVSTORE_CUDA_MEMBER
};

absl::Status Missing(const char* what) {
  return absl::FailedPreconditionError(absl::StrCat(
      "the NVIDIA driver lacks ", what, "; this build needs a driver of CUDA 13 (580) or newer"));
}

absl::StatusOr<Functions> LoadFunctions() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("no NVIDIA driver on this machine: ", dlerror()));
  }
  const auto find =
      reinterpret_cast<decltype(&cuGetProcAddress)>(dlsym(library, "cuGetProcAddress_v2"));
  if (find == nullptr) return Missing("cuGetProcAddress_v2");
  Functions functions;
#define KVSTORE_CUDA_FIND(name)                                                \
  if (find(#name, reinterpret_cast<void**>(&functions.p_##name), CUDA_VERSION, \
           CU_GET_PROC_ADDRESS_DEFAULT, nullptr) != CUDA_SUCCESS ||            \
      functions.p_##name == nullptr)                                           \
    return Missing(#name);
  KVSTORE_CUDA_FUNCTIONS(KVSTORE_CUDA_FIND)
#undef KVSTORE_CUDA_FIND
  return functions;
}

CUmemAllocationProp PropertiesOf(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  return properties;
}

class LoadedDriver final : public CudaDriver {
 public:
  explicit LoadedDriver(const Functions& functions) : f_(functions) {}

  CUresult CountDevices(int* count) override { return f_.p_cuDeviceGetCount(count); }
  CUresult Attribute(CUdevice_attribute attribute, int device, int* value) override {
    CUdevice handle = 0;
    const CUresult result = f_.p_cuDeviceGet(&handle, device);
    return result != CUDA_SUCCESS ? result : f_.p_cuDeviceGetAttribute(value, attribute, handle);
  }
  CUresult Name(int device, std::string* name) override {
    CUdevice handle = 0;
    char text[256] = {};
    CUresult result = f_.p_cuDeviceGet(&handle, device);
    if (result == CUDA_SUCCESS) result = f_.p_cuDeviceGetName(text, sizeof text - 1, handle);
    if (result == CUDA_SUCCESS) *name = text;
    return result;
  }
  CUresult RetainContext(int device, CUcontext* context) override {
    CUdevice handle = 0;
    const CUresult result = f_.p_cuDeviceGet(&handle, device);
    return result != CUDA_SUCCESS ? result : f_.p_cuDevicePrimaryCtxRetain(context, handle);
  }
  CUresult ReleaseContext(int device) override {
    CUdevice handle = 0;
    const CUresult result = f_.p_cuDeviceGet(&handle, device);
    return result != CUDA_SUCCESS ? result : f_.p_cuDevicePrimaryCtxRelease(handle);
  }
  CUresult SetContext(CUcontext context) override { return f_.p_cuCtxSetCurrent(context); }
  CUresult FreeMemory(size_t* free_bytes, size_t* total_bytes) override {
    return f_.p_cuMemGetInfo(free_bytes, total_bytes);
  }

  CUresult Granularity(int device, size_t* bytes) override {
    const CUmemAllocationProp properties = PropertiesOf(device);
    return f_.p_cuMemGetAllocationGranularity(bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  }
  CUresult Create(int device, size_t bytes, CUmemGenericAllocationHandle* handle) override {
    const CUmemAllocationProp properties = PropertiesOf(device);
    return f_.p_cuMemCreate(handle, bytes, &properties, 0);
  }
  CUresult Release(CUmemGenericAllocationHandle handle) override {
    return f_.p_cuMemRelease(handle);
  }
  CUresult Export(CUmemGenericAllocationHandle handle, int* fd) override {
    return f_.p_cuMemExportToShareableHandle(fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                             0);
  }
  CUresult Import(int fd, CUmemGenericAllocationHandle* handle) override {
    return f_.p_cuMemImportFromShareableHandle(handle, reinterpret_cast<void*>(intptr_t{fd}),
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  }
  CUresult ReserveAddress(size_t bytes, CUdeviceptr* address) override {
    return f_.p_cuMemAddressReserve(address, bytes, 0, 0, 0);
  }
  CUresult FreeAddress(CUdeviceptr address, size_t bytes) override {
    return f_.p_cuMemAddressFree(address, bytes);
  }
  CUresult Map(CUdeviceptr address, size_t bytes, CUmemGenericAllocationHandle handle) override {
    return f_.p_cuMemMap(address, bytes, 0, handle, 0);
  }
  CUresult Unmap(CUdeviceptr address, size_t bytes) override {
    return f_.p_cuMemUnmap(address, bytes);
  }
  CUresult SetAccess(CUdeviceptr address, size_t bytes, int device, DeviceAccess access) override {
    CUmemAccessDesc description = {};
    description.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
    description.flags = access == DeviceAccess::kReadOnly ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                                          : CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return f_.p_cuMemSetAccess(address, bytes, &description, 1);
  }

  CUresult RegisterHost(void* data, size_t bytes, DeviceAccess access) override {
    const unsigned flags = CU_MEMHOSTREGISTER_PORTABLE |
                           (access == DeviceAccess::kReadOnly ? CU_MEMHOSTREGISTER_READ_ONLY : 0u);
    return f_.p_cuMemHostRegister(data, bytes, flags);
  }
  CUresult UnregisterHost(void* data) override { return f_.p_cuMemHostUnregister(data); }

  CUresult CreateStream(int priority, CUstream* stream) override {
    return f_.p_cuStreamCreateWithPriority(stream, CU_STREAM_NON_BLOCKING, priority);
  }
  CUresult DestroyStream(CUstream stream) override { return f_.p_cuStreamDestroy(stream); }
  CUresult CreateEvent(CUevent* event) override {
    return f_.p_cuEventCreate(event, CU_EVENT_DISABLE_TIMING);
  }
  CUresult DestroyEvent(CUevent event) override { return f_.p_cuEventDestroy(event); }
  CUresult Record(CUevent event, CUstream stream) override {
    return f_.p_cuEventRecord(event, stream);
  }
  CUresult Query(CUevent event) override { return f_.p_cuEventQuery(event); }
  CUresult Wait(CUstream stream, CUevent event) override {
    return f_.p_cuStreamWaitEvent(stream, event, CU_EVENT_WAIT_DEFAULT);
  }

  CUresult CopyBatch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                     CUstream stream) override {
    // Without the flag small copies of a batch are made by kernels (40 instead of 53 GB/s at 64 KiB).
    CUmemcpyAttributes attributes = {};
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    attributes.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE;
    size_t first = 0;
    return f_.p_cuMemcpyBatchAsync(dsts, srcs, sizes, count, &attributes, &first, 1, stream);
  }
  CUresult Zero(CUdeviceptr data, size_t bytes, CUstream stream) override {
    return f_.p_cuMemsetD8Async(data, 0, bytes, stream);
  }

 private:
  const Functions f_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDriver>> LoadCudaDriver() {
  absl::StatusOr<Functions> functions = LoadFunctions();
  if (!functions.ok()) return functions.status();
  int version = 0;
  if (functions->p_cuDriverGetVersion(&version) != CUDA_SUCCESS || version < kVersionMin) {
    return absl::FailedPreconditionError(
        absl::StrCat("the NVIDIA driver is of CUDA ", version / 1000, ".", version % 1000 / 10,
                     "; this build needs 13.0 (driver 580) or newer"));
  }
  if (const CUresult result = functions->p_cuInit(0); result != CUDA_SUCCESS) {
    const absl::Status status = CudaStatus(result, "initialisation");
    return absl::FailedPreconditionError(status.message());
  }
  return std::unique_ptr<CudaDriver>(std::make_unique<LoadedDriver>(*functions));
}

}  // namespace kvstore::transfer
