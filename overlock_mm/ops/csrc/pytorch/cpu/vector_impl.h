// Registers of one instruction set. Included by the bodies of kernels, *_impl.h, in the files
// that define OVERLOCK_ISA (a namespace) and OVERLOCK_VECTOR_BYTES (bytes of a register).
//
// Written with the vector types of GCC and Clang instead of intrinsics: one text for every
// width.
#pragma once

#include <cstdint>

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

constexpr int kVectorBytes = OVERLOCK_VECTOR_BYTES;

template <typename T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes)));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kLanes = Bytes / sizeof(T);

  static inline type load(const T* from) { return *reinterpret_cast<const unaligned*>(from); }
  static inline void store(T* to, type vector) { *reinterpret_cast<unaligned*>(to) = vector; }
};

template <typename T>
using Wide = Vector<T, kVectorBytes>;

template <typename T>
inline T sum_of(typename Wide<T>::type x) {
  T sum = 0;
  for (int i = 0; i < Wide<T>::kLanes; ++i) {
    sum += x[i];
  }
  return sum;
}

}  // namespace
}  // namespace OVERLOCK_ISA
}  // namespace overlock
