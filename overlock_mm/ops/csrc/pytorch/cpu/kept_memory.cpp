#include "kept_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstddef>
#include <iterator>
#include <mutex>
#include <vector>

namespace overlock {
namespace {

thread_local bool keeps = false;

struct Block {
  void* data;
  size_t size;
};

// Free blocks. They are never destroyed, as tensors may outlive the static objects of a process.
struct Kept {
  std::mutex mutex;
  std::vector<Block*> blocks;
};

Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}

void keep(void* context) {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  kept().blocks.push_back(static_cast<Block*>(context));
}

Block* block_of(size_t size) {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  std::vector<Block*>& blocks = kept().blocks;
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    if ((*block)->size == size) {
      Block* found = *block;
      blocks.erase(std::next(block).base());
      return found;
    }
  }
  for (const Block* block : blocks) {
    c10::free_cpu(block->data);
    delete block;
  }
  blocks.clear();
  return new Block{c10::alloc_cpu(size), size};
}

// torch's allocator, but for large tensors of a thread that keeps memory.
class Allocator final : public c10::Allocator {
 public:
  explicit Allocator(c10::Allocator* other) : other_(other) {}

  c10::DataPtr allocate(size_t size) override {
    if (!keeps || size <= size_t{kLargestInHeap}) {
      return other_->allocate(size);
    }
    Block* block = block_of(size);
    return {block->data, block, &keep, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return other_->raw_deleter(); }

  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  c10::Allocator* other_;
};

void install() {
  static const bool installed = [] {
    c10::SetCPUAllocator(new Allocator(c10::GetCPUAllocator()));
    return true;
  }();
  (void)installed;
}

}  // namespace

KeepsMemory::KeepsMemory() : outer_(keeps) {
  install();
  keeps = true;
}

KeepsMemory::~KeepsMemory() { keeps = outer_; }

}  // namespace overlock
