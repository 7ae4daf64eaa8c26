// Exponentials of a register. Included by bodies of kernels: see vector_impl.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector_impl.h"

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

// exp of 16 or fewer floats, at most 2 ulp off; below -87.3 it is 0.
inline Wide<float>::type exp_of(Wide<float>::type x) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Wide<float>::type zero = {};
  const Wide<float>::type lowest = zero - 87.3f;
  const Wide<float>::type highest = zero + 88.0f;
  const auto underflow = x < lowest;
  x = underflow ? lowest : x;
  x = x > highest ? highest : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
  const float magic = 12582912.0f;
  const Wide<float>::type shifted = x * 1.44269504f + magic;
  const Wide<float>::type n = shifted - magic;
  // ln 2 in two parts, the first of few bits, so that n times it is exact.
  Wide<float>::type r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Wide<float>::type p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits exponent = ((Bits)shifted - 0x4B400000u + 127u) << 23;
  const Wide<float>::type result = p * (Wide<float>::type)exponent;
  return underflow ? zero : result;
}

inline Wide<double>::type exp_of(Wide<double>::type x) {
  for (int i = 0; i < Wide<double>::kLanes; ++i) {
    x[i] = ::exp(x[i]);
  }
  return x;
}

}  // namespace
}  // namespace OVERLOCK_ISA
}  // namespace overlock
