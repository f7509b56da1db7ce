// CudaDriver is what we use of the CUDA driver, one method a function, so that a test can put
// something else in its place: every call can be made to fail, and copies to take their time, on a
// machine without a GPU (tests/support/fake_cuda_driver.h).
//
// Methods return the driver's own codes; cuda_status.h turns them into a Status. Arguments are those
// of the driver unless said otherwise. A method without `device` works on the context that is
// current on the calling thread.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <cuda.h>

namespace kvstore::transfer {

enum class DeviceAccess : uint8_t { kReadOnly, kReadWrite };

class CudaDriver {
 public:
  virtual ~CudaDriver() = default;

  virtual CUresult CountDevices(int* count) = 0;
  virtual CUresult Attribute(CUdevice_attribute attribute, int device, int* value) = 0;
  virtual CUresult Name(int device, std::string* name) = 0;
  // The primary context: the CUDA runtime, which launches kernels, uses it as well.
  virtual CUresult RetainContext(int device, CUcontext* context) = 0;
  virtual CUresult ReleaseContext(int device) = 0;
  virtual CUresult SetContext(CUcontext context) = 0;
  virtual CUresult FreeMemory(size_t* free_bytes, size_t* total_bytes) = 0;

  // Device memory that can be exported as a file descriptor. Sizes are multiples of Granularity().
  virtual CUresult Granularity(int device, size_t* bytes) = 0;
  virtual CUresult Create(int device, size_t bytes, CUmemGenericAllocationHandle* handle) = 0;
  virtual CUresult Release(CUmemGenericAllocationHandle handle) = 0;
  virtual CUresult Export(CUmemGenericAllocationHandle handle, int* fd) = 0;
  // Does not take `fd`.
  virtual CUresult Import(int fd, CUmemGenericAllocationHandle* handle) = 0;
  virtual CUresult ReserveAddress(size_t bytes, CUdeviceptr* address) = 0;
  virtual CUresult FreeAddress(CUdeviceptr address, size_t bytes) = 0;
  virtual CUresult Map(CUdeviceptr address, size_t bytes, CUmemGenericAllocationHandle handle) = 0;
  virtual CUresult Unmap(CUdeviceptr address, size_t bytes) = 0;
  virtual CUresult SetAccess(CUdeviceptr address, size_t bytes, int device,
                             DeviceAccess access) = 0;

  // Lets the copy engines reach host memory at full rate.
  virtual CUresult RegisterHost(void* data, size_t bytes, DeviceAccess access) = 0;
  virtual CUresult UnregisterHost(void* data) = 0;

  // Non-blocking streams; `priority`: below 0 is more urgent.
  virtual CUresult CreateStream(int priority, CUstream* stream) = 0;
  virtual CUresult DestroyStream(CUstream stream) = 0;
  virtual CUresult CreateEvent(CUevent* event) = 0;
  virtual CUresult DestroyEvent(CUevent event) = 0;
  virtual CUresult Record(CUevent event, CUstream stream) = 0;
  virtual CUresult Query(CUevent event) = 0;  // CUDA_ERROR_NOT_READY: later
  virtual CUresult Wait(CUstream stream, CUevent event) = 0;

  // `count` copies of sizes[i] bytes, by the copy engines, ordered by the stream as a whole but not
  // among each other. Host addresses count as device addresses.
  virtual CUresult CopyBatch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                             CUstream stream) = 0;
  virtual CUresult Zero(CUdeviceptr data, size_t bytes, CUstream stream) = 0;
};

}  // namespace kvstore::transfer
