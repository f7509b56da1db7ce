#include "kvstore/store/slab_map.h"

namespace kvstore::store {

SlabMap::Slab& SlabMap::FindOrAdd(uint32_t id) {
  std::unique_ptr<Slab>& slab = slabs_[id];
  if (slab == nullptr) {
    slab = std::make_unique<Slab>();
    slab->id = id;
    slab->use = ++last_use_;
  }
  return *slab;
}

void SlabMap::Forget(uint32_t id) {
  last_ = nullptr;
  slabs_.erase(id);
}

// By an eighth: little is wasted behind the last slot of a slab, and a slab grows a few times only.
void SlabMap::Grow(Slab& slab, uint32_t slot) {
  const size_t size = size_t{slot} + 1;
  if (size > slab.blocks.capacity()) slab.blocks.reserve(size + size / 8 + 32);
  slab.blocks.resize(size, index::kNoNode);
}

size_t SlabMap::memory_bytes() const {
  size_t bytes = slabs_.capacity() * (sizeof(uint32_t) + sizeof(void*));
  for (const auto& [id, slab] : slabs_)
    bytes += sizeof(Slab) + slab->blocks.capacity() * sizeof(index::NodeId);
  return bytes;
}

}  // namespace kvstore::store
