// Registers of one instruction set. Included by the bodies of kernels, *_impl.h, in the files
// that define OVERLOCK_ISA (a namespace), OVERLOCK_VECTOR_BYTES (bytes of a register) and, where
// the instruction set has them, OVERLOCK_BFLOAT16_INSTRUCTIONS.
//
// Written with the vector types of GCC and Clang: one text for every width. Intrinsics are left to
// what only some instruction sets have.
#pragma once

#include <cstdint>

#include "storage.h"

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

// Sum of the lanes, by halves.
template <typename T, int Bytes = kVectorBytes>
inline T sum_of(typename Vector<T, Bytes>::type x) {
  if constexpr (Vector<T, Bytes>::kLanes == 2) {
    return x[0] + x[1];
  } else {
    using Half = Vector<T, Bytes / 2>;
    T lanes[2 * Half::kLanes];
    Vector<T, Bytes>::store(lanes, x);
    return sum_of<T, Bytes / 2>(Half::load(lanes) + Half::load(lanes + Half::kLanes));
  }
}

// The largest of the lanes, by halves.
template <typename T, int Bytes = kVectorBytes>
inline T max_of(typename Vector<T, Bytes>::type x) {
  if constexpr (Vector<T, Bytes>::kLanes == 2) {
    return x[0] > x[1] ? x[0] : x[1];
  } else {
    using Half = Vector<T, Bytes / 2>;
    T lanes[2 * Half::kLanes];
    Vector<T, Bytes>::store(lanes, x);
    const typename Half::type a = Half::load(lanes), b = Half::load(lanes + Half::kLanes);
    return max_of<T, Bytes / 2>(a > b ? a : b);
  }
}

// A vector of numbers in the form in which they are stored.
template <typename S>
struct Stored {
  static inline typename Wide<S>::type load(const S* from) { return Wide<S>::load(from); }
  static inline void store(S* to, typename Wide<S>::type vector) { Wide<S>::store(to, vector); }
};

typedef Wide<float>::type Floats;
typedef Wide<uint32_t>::type Words;
typedef Vector<uint16_t, kVectorBytes / 2> Narrow;

inline Words load_words(const void* from) {
  return __builtin_convertvector(Narrow::load(static_cast<const uint16_t*>(from)), Words);
}

inline void store_words(void* to, Words words) {
  Narrow::store(static_cast<uint16_t*>(to), __builtin_convertvector(words, Narrow::type));
}

template <>
struct Stored<Bfloat16> {
  static inline Floats load(const Bfloat16* from) { return (Floats)(load_words(from) << 16); }

  // To the nearest, ties to even.
  static inline void store(Bfloat16* to, Floats vector) {
#ifdef OVERLOCK_BFLOAT16_INSTRUCTIONS
    Narrow::store(reinterpret_cast<uint16_t*>(to),
                  (Narrow::type)_mm512_cvtneps_pbh((__m512)vector));
#else
    const Words bits = (Words)vector;
    const Words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    store_words(to, (vector == vector ? rounded : bits | 0x400000u) >> 16);
#endif
  }
};

template <>
struct Stored<Half> {
  static inline Floats load(const Half* from) {
    const Words stored = load_words(from);
    const Words sign = (stored & 0x8000u) << 16;
    const Words magnitude = (stored & 0x7fffu) << 13;
    const Words exponent = magnitude & 0x0f800000u;
    const Words normal = magnitude + (112u << 23);
    // Its exponent stands for 2^-14; the difference to 2^-14 has the right one.
    const Words lowest = (Words)((Floats)(magnitude + (113u << 23)) - 6.103515625e-5f);
    const Words finite = exponent == 0u ? lowest : normal;
    return (Floats)(sign | (exponent == 0x0f800000u ? magnitude + (224u << 23) : finite));
  }

  // To the nearest, ties to even.
  static inline void store(Half* to, Floats vector) {
    const Words bits = (Words)vector;
    const Words magnitude = bits & 0x7fffffffu;
    // Adding 0.5 rounds at 2^-24 and leaves the result in the lowest bits.
    const Words lowest = (Words)((Floats)magnitude + 0.5f) - 0x3f000000u;
    const Words normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const Words finite = magnitude < (113u << 23) ? lowest : normal;
    const Words infinite =
        magnitude > 0x7f800000u ? (finite & 0u) + 0x7e00u : (finite & 0u) + 0x7c00u;
    store_words(to, (magnitude < (143u << 23) ? finite : infinite) | (bits >> 16 & 0x8000u));
  }
};

// The first `n` lanes, the others 0.
template <typename S>
inline typename Wide<typename Computed<S>::type>::type load_first(const S* from, int64_t n) {
  constexpr int64_t lanes = Wide<typename Computed<S>::type>::kLanes;
  if (n >= lanes) {
    return Stored<S>::load(from);
  }
  S part[lanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    part[i] = from[i];
  }
  return Stored<S>::load(part);
}

template <typename S>
inline void store_first(S* to, typename Wide<typename Computed<S>::type>::type vector, int64_t n) {
  constexpr int64_t lanes = Wide<typename Computed<S>::type>::kLanes;
  if (n >= lanes) {
    Stored<S>::store(to, vector);
    return;
  }
  S part[lanes];
  Stored<S>::store(part, vector);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = part[i];
  }
}

#if OVERLOCK_VECTOR_BYTES == 64
// The same in one instruction: maps of some networks have half a register of channels left.
inline __mmask16 first_lanes(int64_t n) { return n < 16 ? (1u << n) - 1 : 0xffff; }

inline Floats load_first(const float* from, int64_t n) {
  return (Floats)_mm512_maskz_loadu_ps(first_lanes(n), from);
}

inline void store_first(float* to, Floats vector, int64_t n) {
  _mm512_mask_storeu_ps(to, first_lanes(n), (__m512)vector);
}

inline Floats load_first(const Bfloat16* from, int64_t n) {
  const auto narrow = (Narrow::type)_mm256_maskz_loadu_epi16(first_lanes(n), from);
  return (Floats)(__builtin_convertvector(narrow, Words) << 16);
}

inline void store_first(Bfloat16* to, Floats vector, int64_t n) {
  Bfloat16 rounded[Wide<float>::kLanes];
  Stored<Bfloat16>::store(rounded, vector);
  _mm256_mask_storeu_epi16(to, first_lanes(n), _mm256_loadu_si256((const __m256i*)rounded));
}
#endif

}  // namespace
}  // namespace OVERLOCK_ISA
}  // namespace overlock
