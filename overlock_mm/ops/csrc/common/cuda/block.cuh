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
#define OVERLOCK_NO_UNROLL _Pragma("unroll 1")
#define OVERLOCK_PRAGMA(text) _Pragma(#text)
#define OVERLOCK_UNROLL_BY(count) OVERLOCK_PRAGMA(unroll count)
#else
#define OVERLOCK_KERNEL_BODY inline
#define OVERLOCK_UNROLL
#define OVERLOCK_NO_UNROLL
#define OVERLOCK_UNROLL_BY(count)
#endif

namespace overlock {

#if defined(__CUDACC__)
struct DeviceBlock {
  template <typename V>
  struct PerThread {
    V value;
    __device__ __forceinline__ V& operator[](int) { return value; }
  };

  // Copies that a phase has begun, see copy4, have arrived when it ends.
  template <typename Phase>
  __device__ __forceinline__ void phase(Phase run) {
    run(static_cast<int>(threadIdx.x));
    asm volatile("cp.async.wait_all;" ::: "memory");
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

// Copies four floats to shared memory. They arrive at the end of the phase, and the thread does
// not wait for them before.
OVERLOCK_KERNEL_BODY void copy4(float* shared, const float* source) {
#if defined(__CUDA_ARCH__)
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
#else
  *reinterpret_cast<Float4*>(shared) = load4(source);
#endif
}

// A vector in registers: every index must be known when the code is compiled.
template <int N>
struct Vector {
  float v[N];
};

// N floats; `pointer` is 16-byte aligned.
template <int N>
OVERLOCK_KERNEL_BODY Vector<N> load_vector(const float* pointer) {
  Vector<N> vector;
  OVERLOCK_UNROLL
  for (int i = 0; i < N; i += 4) {
    const Float4 four = load4(pointer + i);
    OVERLOCK_UNROLL
    for (int j = 0; j < 4; ++j) vector.v[i + j] = four.v[j];
  }
  return vector;
}

template <int N>
OVERLOCK_KERNEL_BODY void store_vector(float* pointer, const Vector<N>& vector) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; i += 4) {
    *reinterpret_cast<Float4*>(pointer + i) = {
        {vector.v[i], vector.v[i + 1], vector.v[i + 2], vector.v[i + 3]}};
  }
}

// Sum over N products, added to `sum`.
template <int N>
OVERLOCK_KERNEL_BODY float dot(const Vector<N>& vector, const Vector<N>& other, float sum) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; ++i) sum += vector.v[i] * other.v[i];
  return sum;
}

// vector += factor * other
template <int N>
OVERLOCK_KERNEL_BODY void add_scaled(Vector<N>& vector, float factor, const Vector<N>& other) {
  OVERLOCK_UNROLL
  for (int i = 0; i < N; ++i) vector.v[i] += factor * other.v[i];
}

// 1 / x with an error of some 1e-7 of it, one instruction of the hardware.
OVERLOCK_KERNEL_BODY float reciprocal(float x) {
#if defined(__CUDACC__)
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
#else
  return 1.f / x;
#endif
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
