// Memory that stays in the process between the blocks of a network.
//
// A page fault for each 4 KiB of a map costs as much as what is computed on it, and a large block
// that comes from the system has all of them again each time. glibc keeps blocks of up to 32 MiB
// (see keep_freed_memory in extension.cpp); larger ones are kept here.
#pragma once

namespace overlock {

// The most that glibc can be asked to keep.
constexpr int kLargestInHeap = 32 << 20;

// While one lives, tensors of more than kLargestInHeap bytes that its thread makes take memory of
// earlier ones of exactly their size. Where there is none, what was kept is freed: no more stays
// than the blocks of one size of image have needed.
class KeepsMemory {
 public:
  KeepsMemory();
  ~KeepsMemory();
  KeepsMemory(const KeepsMemory&) = delete;
  KeepsMemory& operator=(const KeepsMemory&) = delete;

 private:
  bool outer_;
};

}  // namespace overlock
