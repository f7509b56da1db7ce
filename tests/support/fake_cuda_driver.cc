#include "tests/support/fake_cuda_driver.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/time/clock.h"

namespace kvstore::transfer {
namespace {

constexpr CUdeviceptr kFirstAddress = uint64_t{0x7ACE} << 48;  // no host address
constexpr int kPoison = 0xDB;
thread_local const void* current_context = nullptr;

struct Mapping {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

struct Work {
  enum class Kind { kCopy, kZero, kRecord, kWait } kind;
  CUdeviceptr dst = 0, src = 0;
  uint64_t bytes = 0;
  uint64_t event = 0, ticket = 0;
  bool may_overtake = false;  // the piece of work before it: both are of one batch
};

class FakeCudaDriver final : public CudaDriver {
 public:
  explicit FakeCudaDriver(std::shared_ptr<FakeCudaDevice> device)
      : device_(std::move(device)), thread_([this] { Run(); }) {}
  ~FakeCudaDriver() override {
    {
      absl::MutexLock lock(&device_->mutex);
      is_ending_ = true;
    }
    thread_.join();
    for (auto& [handle, fd] : allocations_) ::close(fd);
  }

  CUresult CountDevices(int* count) override {
    *count = device_->num_devices;
    return Call();
  }
  CUresult Attribute(CUdevice_attribute, int, int* value) override {
    *value = 1;
    return Call();
  }
  CUresult Name(int, std::string* name) override {
    *name = "fake";
    return CallInContext();
  }
  CUresult RetainContext(int, CUcontext* context) override {
    if (const CUresult result = Call(); result != CUDA_SUCCESS) return result;
    *context = reinterpret_cast<CUcontext>(this);
    ++device_->handles;
    return CUDA_SUCCESS;
  }
  CUresult ReleaseContext(int) override {
    --device_->handles;
    return Call();
  }
  CUresult SetContext(CUcontext context) override {
    const CUresult result = Call();
    if (result == CUDA_SUCCESS) current_context = context;
    return result;
  }
  CUresult FreeMemory(size_t* free_bytes, size_t* total_bytes) override {
    *total_bytes = device_->memory_bytes;
    *free_bytes = device_->memory_bytes - device_->allocated_bytes;
    return CallInContext();
  }
  CUresult Granularity(int, size_t* bytes) override {
    *bytes = FakeCudaDevice::kGranularity;
    return Call();
  }
  CUresult Create(int, size_t bytes, CUmemGenericAllocationHandle* handle) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    if (device_->allocated_bytes + bytes > device_->memory_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    const int fd = memfd_create("fake-device-memory", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    // Dirty, as memory of a device may be.
    void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    std::memset(data, kPoison, bytes);
    munmap(data, bytes);
    device_->allocated_bytes += bytes;
    return Keep(fd, handle);
  }
  CUresult Release(CUmemGenericAllocationHandle handle) override {
    absl::MutexLock lock(&device_->mutex);
    const auto it = allocations_.find(handle);
    if (it == allocations_.end()) return CUDA_ERROR_INVALID_HANDLE;
    struct stat file = {};
    fstat(it->second, &file);
    device_->allocated_bytes -= static_cast<uint64_t>(file.st_size);
    ::close(it->second);
    allocations_.erase(it);
    --device_->handles;
    return CUDA_SUCCESS;
  }
  CUresult Export(CUmemGenericAllocationHandle handle, int* fd) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    *fd = dup(allocations_.at(handle));
    return *fd < 0 ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
  }
  CUresult Import(int fd, CUmemGenericAllocationHandle* handle) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    struct stat file = {};
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return CUDA_ERROR_INVALID_VALUE;
    device_->allocated_bytes += static_cast<uint64_t>(file.st_size);
    return Keep(dup(fd), handle);
  }
  CUresult ReserveAddress(size_t bytes, CUdeviceptr* address) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    *address = next_address_;
    next_address_ += bytes + FakeCudaDevice::kGranularity;  // with a gap behind
    return CUDA_SUCCESS;
  }
  CUresult FreeAddress(CUdeviceptr, size_t) override { return CallInContext(); }
  CUresult Map(CUdeviceptr address, size_t bytes, CUmemGenericAllocationHandle handle) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    const int fd = allocations_.at(handle);
    struct stat file = {};
    fstat(fd, &file);
    if (static_cast<uint64_t>(file.st_size) != bytes) return CUDA_ERROR_INVALID_VALUE;
    void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    mappings_[address] = {static_cast<std::byte*>(data), bytes};
    return CUDA_SUCCESS;
  }
  CUresult Unmap(CUdeviceptr address, size_t bytes) override {
    const CUresult result = CallInContext();
    absl::MutexLock lock(&device_->mutex);
    for (const auto& [stream, queue] : streams_) {
      for (const Work& work : queue) {
        const bool is_hit = Overlaps(work.dst, work.bytes, address, bytes) ||
                            Overlaps(work.src, work.bytes, address, bytes);
        device_->offences += is_hit && !device_->has_failed;
      }
    }
    const auto it = mappings_.find(address);
    if (it == mappings_.end()) return CUDA_ERROR_INVALID_VALUE;
    munmap(it->second.data, it->second.bytes);
    mappings_.erase(it);
    return result;
  }
  CUresult SetAccess(CUdeviceptr, size_t, int, DeviceAccess) override { return CallInContext(); }
  CUresult RegisterHost(void*, size_t, DeviceAccess) override {
    const CUresult result = CallInContext();
    device_->registered += result == CUDA_SUCCESS;
    return result;
  }
  CUresult UnregisterHost(void*) override {
    const CUresult result = CallInContext();
    device_->registered -= result == CUDA_SUCCESS;
    return result;
  }

  CUresult CreateStream(int, CUstream* stream) override {
    return NewHandle([&](uint64_t handle) {
      streams_[handle];
      *stream = reinterpret_cast<CUstream>(handle);
    });
  }
  CUresult DestroyStream(CUstream) override { return EndHandle(); }
  CUresult CreateEvent(CUevent* event) override {
    return NewHandle([&](uint64_t handle) { *event = reinterpret_cast<CUevent>(handle); });
  }
  CUresult DestroyEvent(CUevent) override { return EndHandle(); }
  CUresult Record(CUevent event, CUstream stream) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    const auto id = reinterpret_cast<uint64_t>(event);
    Work work = {.kind = Work::Kind::kRecord, .event = id, .ticket = ++recorded_[id]};
    streams_[reinterpret_cast<uint64_t>(stream)].push_back(work);
    return CUDA_SUCCESS;
  }
  // Counts as a call once it is ready: how often it is asked is a matter of time.
  CUresult Query(CUevent event) override {
    const auto id = reinterpret_cast<uint64_t>(event);
    {
      absl::MutexLock lock(&device_->mutex);
      if (!device_->has_failed && reached_[id] != recorded_[id]) return CUDA_ERROR_NOT_READY;
    }
    return CallInContext();
  }
  CUresult Wait(CUstream stream, CUevent event) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    const auto id = reinterpret_cast<uint64_t>(event);
    Work work = {.kind = Work::Kind::kWait, .event = id, .ticket = recorded_[id]};
    streams_[reinterpret_cast<uint64_t>(stream)].push_back(work);
    return CUDA_SUCCESS;
  }
  CUresult CopyBatch(CUdeviceptr* dsts, CUdeviceptr* srcs, size_t* sizes, size_t count,
                     CUstream stream) override {
    const CUresult result = CallInContext();
    absl::MutexLock lock(&device_->mutex);
    // A failing batch has been begun: its first half is on the way.
    if (result != CUDA_SUCCESS && device_->failure == FakeFailure::kOnce) count /= 2;
    for (size_t i = 0; i < count; ++i) {
      std::byte* const to = Translate(dsts[i], sizes[i]);
      if (to == nullptr || Translate(srcs[i], sizes[i]) == nullptr) return CUDA_ERROR_INVALID_VALUE;
      std::memset(to, kPoison, sizes[i]);
      streams_[reinterpret_cast<uint64_t>(stream)].push_back({.kind = Work::Kind::kCopy,
                                                              .dst = dsts[i],
                                                              .src = srcs[i],
                                                              .bytes = sizes[i],
                                                              .may_overtake = i > 0});
    }
    return result;
  }
  CUresult Zero(CUdeviceptr data, size_t bytes, CUstream stream) override {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    streams_[reinterpret_cast<uint64_t>(stream)].push_back(
        {.kind = Work::Kind::kZero, .dst = data, .bytes = bytes});
    return CUDA_SUCCESS;
  }

 private:
  static bool Overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes && a_bytes > 0;
  }

  CUresult Call() {
    const uint64_t call = ++device_->calls;
    if (device_->has_failed) return device_->error;
    const uint64_t fail_at = device_->fail_at;
    if (fail_at == 0 || call != fail_at) return CUDA_SUCCESS;
    if (device_->failure == FakeFailure::kFromThereOn) device_->has_failed = true;
    return device_->error;
  }
  CUresult CallInContext() {
    const CUresult result = Call();
    if (result != CUDA_SUCCESS) return result;
    return current_context == this ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
  }
  CUresult Keep(int fd, CUmemGenericAllocationHandle* handle) {
    absl::MutexLock lock(&device_->mutex);
    *handle = ++last_handle_;
    allocations_[*handle] = fd;
    ++device_->handles;
    return CUDA_SUCCESS;
  }
  // `take` is given the handle.
  template <typename F>
  CUresult NewHandle(F take) {
    if (const CUresult result = CallInContext(); result != CUDA_SUCCESS) return result;
    absl::MutexLock lock(&device_->mutex);
    take(++last_handle_);
    ++device_->handles;
    return CUDA_SUCCESS;
  }
  CUresult EndHandle() {
    --device_->handles;
    return CallInContext();
  }
  // Null: no memory of ours or of the host's.
  std::byte* Translate(CUdeviceptr address, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(device_->mutex) {
    if (address < kFirstAddress) return reinterpret_cast<std::byte*>(address);
    auto it = mappings_.upper_bound(address);
    if (it != mappings_.begin()) {
      --it;
      const uint64_t into = address - it->first;
      if (into <= it->second.bytes && bytes <= it->second.bytes - into)
        return it->second.data + into;
    }
    ++device_->offences;
    return nullptr;
  }

  void Run() {
    for (;;) {
      absl::Duration pause = absl::Microseconds(5);
      {
        absl::MutexLock lock(&device_->mutex);
        if (is_ending_) return;
        if (!device_->has_failed && !device_->is_hanging && DoOne() &&
            device_->delay_max > absl::ZeroDuration()) {
          pause = device_->delay_max * (device_->random() % 1000) / 1000;
        } else if (HasWork() && !device_->is_hanging) {
          continue;
        }
      }
      absl::SleepFor(pause);
    }
  }
  bool HasWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(device_->mutex) {
    return !device_->has_failed && std::any_of(streams_.begin(), streams_.end(),
                                               [](const auto& s) { return !s.second.empty(); });
  }
  bool IsReady(const Work& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(device_->mutex) {
    return work.kind != Work::Kind::kWait || reached_[work.event] >= work.ticket;
  }
  // One piece of work of any stream; inside a batch in any order.
  bool DoOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(device_->mutex) {
    std::vector<std::deque<Work>*> ready;
    for (auto& [stream, queue] : streams_) {
      if (!queue.empty() && IsReady(queue.front())) ready.push_back(&queue);
    }
    if (ready.empty()) return false;
    std::deque<Work>& queue = *ready[device_->random() % ready.size()];
    size_t in_batch = 1;
    while (in_batch < queue.size() && queue[in_batch].may_overtake) ++in_batch;
    const size_t chosen = device_->random() % in_batch;
    const Work work = queue[chosen];
    queue.erase(queue.begin() + static_cast<ptrdiff_t>(chosen));
    Do(work);
    return true;
  }
  void Do(const Work& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(device_->mutex) {
    if (work.kind == Work::Kind::kWait) return;
    if (work.kind == Work::Kind::kRecord) {
      reached_[work.event] = work.ticket;
      return;
    }
    std::byte* const to = Translate(work.dst, work.bytes);
    if (to == nullptr) return;
    if (work.kind == Work::Kind::kZero) {
      std::memset(to, 0, work.bytes);
    } else if (const std::byte* from = Translate(work.src, work.bytes)) {
      std::memcpy(to, from, work.bytes);
    }
  }

  const std::shared_ptr<FakeCudaDevice> device_;  // shared with the test
  std::map<CUmemGenericAllocationHandle, int> allocations_ ABSL_GUARDED_BY(device_->mutex);
  std::map<CUdeviceptr, Mapping> mappings_ ABSL_GUARDED_BY(device_->mutex);
  std::map<uint64_t, std::deque<Work>> streams_ ABSL_GUARDED_BY(device_->mutex);
  std::map<uint64_t, uint64_t> recorded_ ABSL_GUARDED_BY(device_->mutex);  // event -> ticket
  std::map<uint64_t, uint64_t> reached_ ABSL_GUARDED_BY(device_->mutex);
  CUdeviceptr next_address_ ABSL_GUARDED_BY(device_->mutex) = kFirstAddress;
  uint64_t last_handle_ ABSL_GUARDED_BY(device_->mutex) = 0;
  bool is_ending_ ABSL_GUARDED_BY(device_->mutex) = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<CudaDriver> MakeFakeCudaDriver(std::shared_ptr<FakeCudaDevice> device) {
  return std::make_unique<FakeCudaDriver>(std::move(device));
}

}  // namespace kvstore::transfer
