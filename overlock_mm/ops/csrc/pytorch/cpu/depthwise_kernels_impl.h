// Bodies of the depthwise kernels. Included by one file per instruction set, which defines
// OVERLOCK_ISA (a namespace) and OVERLOCK_VECTOR_BYTES (bytes of a register), by way of
// depthwise_tables_impl.h or directly.
//
// No standard templates here: the linker could pick this copy, compiled for this instruction
// set, for all.

#include <cmath>
#include <cstdint>

#include "depthwise_kernels.h"
#include "vector_impl.h"

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

template <typename T>
using V = typename Wide<T>::type;

// x Phi(x), Phi the normal distribution's, as max(x, 0) - |x| Phi(-|x|): without cancellation,
// and off by at most 2e-7 |x|. log2 Phi(-a) is a smooth function, here a polynomial fitted
// with the weight Phi(-a) on [0, 5.5]; beyond, |x| Phi(-|x|) is below 1.1e-7.
inline V<float> gelu_of(V<float> x) {
  const V<float> zero = {};
  const V<float> positive = x < zero ? zero : x;  // NaN stays
  V<float> a = (V<float>)((Words)x & 0x7fffffffu);
  a = a < zero + 5.5f ? a : zero + 5.5f;
  V<float> p = a * -2.7720491289e-6f + 3.8620746637e-5f;
  p = p * a + -1.8254759198e-4f;
  p = p * a + -1.4587015903e-4f;
  p = p * a + 7.0754718035e-3f;
  p = p * a + -5.2505027503e-2f;
  p = p * a + -4.5920491219e-1f;
  p = p * a + -1.1511057615f;
  p = p * a + -1.0f;
  // 2^p by parts: adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
  const V<float> shifted = p + 12582912.0f;
  const V<float> r = p - (shifted - 12582912.0f);
  V<float> e = r * 1.3276471291e-3f + 9.6755409613e-3f;
  e = e * r + 5.5507130921e-2f;
  e = e * r + 2.4022120237e-1f;
  e = e * r + 6.9314694405e-1f;
  e = e * r + 1.0000001192f;
  const V<float> tail = (V<float>)((Words)e + ((Words)shifted << 23));
  return positive - a * tail;
}

inline V<double> gelu_of(V<double> x) {
  for (int i = 0; i < Wide<double>::kLanes; ++i) {
    x[i] *= 0.5 * ::erfc(x[i] * -0.70710678118654752440);
  }
  return x;
}

// The same, off by at most 4e-6 |x|, which is little beside the rounding to 16 bits. Phi(-a) is a
// polynomial fitted on [0, 4.6]; beyond, |x| Phi(-|x|) is below 1e-5.
inline V<float> rough_gelu_of(V<float> x) {
  const V<float> zero = {};
  const V<float> positive = x < zero ? zero : x;  // NaN stays
  V<float> a = (V<float>)((Words)x & 0x7fffffffu);
  a = a < zero + 4.6f ? a : zero + 4.6f;
  const V<float> u = a * (1 / 2.3f) - 1.0f;
  V<float> tail = u * 9.50365141e-03f + -1.25416333e-03f;
  tail = tail * u + -4.90405299e-02f;
  tail = tail * u + 3.44158560e-02f;
  tail = tail * u + 8.82505700e-02f;
  tail = tail * u + -1.41928092e-01f;
  tail = tail * u + 1.30771808e-02f;
  tail = tail * u + 1.75864011e-01f;
  tail = tail * u + -2.46646062e-01f;
  tail = tail * u + 1.72179446e-01f;
  tail = tail * u + -6.51437640e-02f;
  tail = tail * u + 1.07259965e-02f;
  return positive - a * tail;
}

// Before or after it, numbers are stored as S.
template <typename S>
inline V<typename Computed<S>::type> gelu_as(V<typename Computed<S>::type> x) {
  if constexpr (sizeof(S) == 2) {
    return rough_gelu_of(x);
  } else {
    return gelu_of(x);
  }
}

inline float root_of(float x) { return ::sqrtf(x); }
inline double root_of(double x) { return ::sqrt(x); }

// Vectors of packed rows, and what multiplies them. Pairs have a specialization where the
// instruction set multiplies pairs.
template <typename P>
struct Products {
  static constexpr int64_t kRows = 1;  // in a packed one
  typedef V<P> type;
  static inline type load(const P* from) { return Wide<P>::load(from); }
  // The vector without all but the last of the rows.
  static inline type last_row(type x) { return x; }
  static inline type add(type sum, type weight, type x) { return sum + weight * x; }
};

// M columns of one vector of channels from column `begin` on; those beyond the last are not
// stored. A column of the map is loaded once per row of the kernel, and taps outside the map
// are left out.
template <typename S, typename P, int K, int M>
void convolve_block(const DepthwiseRow<S, P>& row, int64_t channel, int64_t begin) {
  using T = typename Computed<S>::type;
  using W = Wide<T>;
  using Product = Products<P>;
  const int64_t lanes = row.channels - channel;
  const V<T> bias = W::load(row.bias + channel);
  V<T> result[M];
#pragma GCC unroll 8
  for (int j = 0; j < M; ++j) {
    result[j] = bias;
  }
  const int64_t first = begin - K / 2;
  const int64_t width = row.width, source_ld = row.source_ld;
  for (int64_t r = row.tap_begin; r < row.tap_end; r += Product::kRows) {
    // The last of an odd number of rows has no other to be multiplied with.
    const bool odd = Product::kRows == 2 && r + 1 == row.tap_end;
    const P* source = row.sources[r] + first * source_ld + channel;
    const P* factor = row.weight + (r - odd) * K * row.weight_ld + channel;
    typename Product::type tap[K];
#pragma GCC unroll 17
    for (int s = 0; s < K; ++s) {
      tap[s] = Product::load(factor + s * row.weight_ld);
    }
#pragma GCC unroll 24
    for (int i = 0; i < M + K - 1; ++i, source += source_ld) {
      if (static_cast<uint64_t>(first + i) < static_cast<uint64_t>(width)) {
        const typename Product::type loaded = Product::load(source);
        const typename Product::type x = odd ? Product::last_row(loaded) : loaded;
#pragma GCC unroll 8
        for (int j = 0; j < M; ++j) {
          if (i - j >= 0 && i - j < K) {
            result[j] = Product::add(result[j], tap[i - j], x);
          }
        }
      }
    }
  }
  // One pass over the results for each step: they stay in registers.
  const int64_t columns = row.end - begin < M ? row.end - begin : M;
  const int64_t at = (begin - row.begin) * row.out_ld + channel, out_ld = row.out_ld;
  if (row.addend != nullptr) {
    const S* addend = row.addend + at;
#pragma GCC unroll 8
    for (int j = 0; j < M; ++j) {
      if (j < columns) {
        result[j] += load_first(addend + j * out_ld, lanes);
      }
    }
  }
  if (row.gelu) {
#pragma GCC unroll 8
    for (int j = 0; j < M; ++j) {
      result[j] = gelu_as<S>(result[j]);
    }
  }
  if (row.stat != Stat::kNone) {
    V<T> sum = {};
#pragma GCC unroll 8
    for (int j = 0; j < M; ++j) {
      if (j < columns) {
        sum += row.stat == Stat::kSum ? result[j] : result[j] * result[j];
      }
    }
    T* sums = row.sums + channel;
    store_first(sums, begin == 0 ? sum : load_first(sums, lanes) + sum, lanes);
  }
  S* out = row.out + at;
#pragma GCC unroll 8
  for (int j = 0; j < M; ++j) {
    if (j < columns) {
      store_first(out + j * out_ld, result[j], lanes);
    }
  }
}

template <typename S, typename P, int K, int M>
void convolve_columns(const DepthwiseRow<S, P>& row) {
  constexpr int64_t lanes = Wide<typename Computed<S>::type>::kLanes;
  if (K == 3) {
    // Few weights: the map is read in the order of memory.
    for (int64_t begin = row.begin; begin < row.end; begin += M) {
      for (int64_t channel = 0; channel < row.channels; channel += lanes) {
        convolve_block<S, P, K, M>(row, channel, begin);
      }
    }
  } else {
    // The weights of one vector of channels fill a good part of the first-level cache.
    for (int64_t channel = 0; channel < row.channels; channel += lanes) {
      for (int64_t begin = row.begin; begin < row.end; begin += M) {
        convolve_block<S, P, K, M>(row, channel, begin);
      }
    }
  }
}

template <typename S, typename P, int K>
void convolve_size(const DepthwiseRow<S, P>& row) {
  // Maps of images of 224 have multiples of 7 columns.
  if ((row.end - row.begin) % 7 == 0) {
    convolve_columns<S, P, K, 7>(row);
  } else {
    convolve_columns<S, P, K, 8>(row);
  }
}

template <typename S, typename P>
void convolve(const DepthwiseRow<S, P>& row) {
  switch (row.kernel_size) {
    case 3:
      return convolve_size<S, P, 3>(row);
    case 5:
      return convolve_size<S, P, 5>(row);
    case 7:
      return convolve_size<S, P, 7>(row);
    case 9:
      return convolve_size<S, P, 9>(row);
    case 11:
      return convolve_size<S, P, 11>(row);
    case 13:
      return convolve_size<S, P, 13>(row);
    case 15:
      return convolve_size<S, P, 15>(row);
    default:
      return convolve_size<S, P, 17>(row);
  }
}

template <typename S, typename T>
void pack(int64_t width, int64_t channels, const S* source, const S* /* below */, int64_t source_ld,
          const T* bias, bool gelu, T* packed, int64_t ld) {
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < channels; c += Wide<T>::kLanes) {
      V<T> values = load_first(source + x * source_ld + c, channels - c);
      if (bias != nullptr) {
        values += load_first(bias + c, channels - c);
      }
      Wide<T>::store(packed + x * ld + c, gelu ? gelu_as<S>(values) : values);
    }
  }
}

template <typename S>
void layer_norm(const NormRow<S>& row) {
  using T = typename Computed<S>::type;
  constexpr int64_t lanes = Wide<T>::kLanes;
  const int64_t channels = row.channels, whole = channels / lanes * lanes;
  const T* x = row.x;
  S* skip = row.skip;
  S* out = row.out;
  for (int64_t column = 0; column < row.columns;
       ++column, x += channels, skip += channels, out += channels) {
    V<T> sum = {};
    for (int64_t c = 0; c < whole; c += lanes) {
      sum += Wide<T>::load(x + c);
    }
    T mean = sum_of<T>(sum);
    for (int64_t c = whole; c < channels; ++c) {
      mean += x[c];
    }
    mean /= channels;
    V<T> squares = {};
    for (int64_t c = 0; c < whole; c += lanes) {
      const V<T> distance = Wide<T>::load(x + c) - mean;
      squares += distance * distance;
    }
    T variance = sum_of<T>(squares);
    for (int64_t c = whole; c < channels; ++c) {
      variance += (x[c] - mean) * (x[c] - mean);
    }
    const T factor = 1 / root_of(variance / channels + row.eps);
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t n = channels - c;
      V<T> value = load_first(x + c, n);
      const V<T> normed = (value - mean) * factor;
      store_first(out + c, normed * load_first(row.weight + c, n) + load_first(row.bias + c, n), n);
      if (row.skip_weight != nullptr) {
        value *= load_first(row.skip_weight + c, n);
      }
      if (row.skip_bias != nullptr) {
        value += load_first(row.skip_bias + c, n);
      }
      store_first(skip + c, value, n);
    }
  }
}

}  // namespace
}  // namespace OVERLOCK_ISA
}  // namespace overlock
