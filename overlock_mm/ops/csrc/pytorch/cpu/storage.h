// Half-precision numbers as the kernels see them: bits in memory, float32 in arithmetic.
//
// Plain types of our own: the inline functions of c10's are compiled for the baseline, and those
// of the files for one instruction set must not be shared.
#pragma once

#include <cstdint>

namespace overlock {

struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

// What a stored number is computed in.
template <typename S>
struct Computed {
  typedef S type;
};
template <>
struct Computed<Half> {
  typedef float type;
};
template <>
struct Computed<Bfloat16> {
  typedef float type;
};

}  // namespace overlock
