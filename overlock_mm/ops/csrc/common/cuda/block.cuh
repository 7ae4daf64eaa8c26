// A thread block, as the kernel bodies see it.
//
// A body is a template over the block. It is a sequence of phases, each run by all
// threads and ended by a barrier, with thread-private values that live across phases in
// PerThread. nvcc compiles a body with DeviceBlock. Any C++ compiler can compile it with a
// block that runs the threads of a phase one after the other, in any order. The tests do so
// where there is no GPU.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define OVERLOCK_KERNEL_BODY __device__ __forceinline__
#define OVERLOCK_UNROLL _Pragma("unroll")
#else
#define OVERLOCK_KERNEL_BODY inline
#define OVERLOCK_UNROLL
#endif

namespace overlock {

#if defined(__CUDACC__)
struct DeviceBlock {
  template <typename V>
  struct PerThread {
    V value;
    __device__ __forceinline__ V& operator[](int) { return value; }
  };

  template <typename Phase>
  __device__ __forceinline__ void phase(Phase run) {
    run(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
};
#endif

// Four floats that are read from shared memory at once.
struct alignas(16) Float4 {
  float v[4];
};

OVERLOCK_KERNEL_BODY Float4 load4(const float* pointer) {
  return *reinterpret_cast<const Float4*>(pointer);
}

// A vector in registers: every index must be known when the code is compiled.
template <int N>
struct Vector {
  float v[N];
};

// Sum over N products; `other` is 16-byte aligned.
template <int N>
OVERLOCK_KERNEL_BODY float dot(const Vector<N>& vector, const float* other, float sum) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; i += 4) {
    const Float4 four = load4(other + i);
    OVERLOCK_UNROLL
    for (int j = 0; j < 4; ++j) sum += vector.v[i + j] * four.v[j];
  }
  return sum;
}

// Adds two such sums, of two vectors, with the same products' other factors.
template <int N>
OVERLOCK_KERNEL_BODY void dot_pair(const Vector<N> (&vectors)[2], const float* other, float& first,
                                   float& second) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; i += 4) {
    const Float4 four = load4(other + i);
    OVERLOCK_UNROLL
    for (int j = 0; j < 4; ++j) {
      first += vectors[0].v[i + j] * four.v[j];
      second += vectors[1].v[i + j] * four.v[j];
    }
  }
}

// vector += factor * other; `other` is 16-byte aligned.
template <int N>
OVERLOCK_KERNEL_BODY void add_scaled(Vector<N>& vector, float factor, const float* other) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; i += 4) {
    const Float4 four = load4(other + i);
    OVERLOCK_UNROLL
    for (int j = 0; j < 4; ++j) vector.v[i + j] += factor * four.v[j];
  }
}

// 2^x with an error of some 1e-7 of it, one instruction of the hardware.
OVERLOCK_KERNEL_BODY float exp2_of(float x) {
#if defined(__CUDACC__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return exp2f(x);
#endif
}

}  // namespace overlock
