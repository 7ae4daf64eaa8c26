// Bodies of the row kernels. Included by one file per instruction set, which defines
// OVERLOCK_ISA (a namespace) and OVERLOCK_VECTOR_BYTES (bytes of a register).
//
// No standard templates here: the linker could pick this copy, compiled for this instruction
// set, for all.

#include <cmath>
#include <cstdint>

#include "exp_impl.h"
#include "row_kernels.h"
#include "vector_impl.h"

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

inline float log_of(float x) { return ::logf(x); }
inline double log_of(double x) { return ::log(x); }

template <typename T, int Bytes, int M, int N>
inline void gemm_block(int64_t k, const T* a, int64_t a_row, int64_t a_column, const T* b,
                       int64_t ldb, T* c, int64_t ldc) {
  using V = Vector<T, Bytes>;
  typename V::type sum[M][N];
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < N; ++j) {
      sum[i][j] = V::load(c + i * ldc + j * V::kLanes);
    }
  }
  for (int64_t s = 0; s < k; ++s) {
    typename V::type row[N];
    for (int j = 0; j < N; ++j) {
      row[j] = V::load(b + s * ldb + j * V::kLanes);
    }
    for (int i = 0; i < M; ++i) {
      const T factor = a[i * a_row + s * a_column];
      for (int j = 0; j < N; ++j) {
        sum[i][j] += factor * row[j];
      }
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < N; ++j) {
      V::store(c + i * ldc + j * V::kLanes, sum[i][j]);
    }
  }
}

template <typename T, int Bytes, int N>
inline void gemm_columns(int64_t m, int64_t k, const T* a, int64_t a_row, int64_t a_column,
                         const T* b, int64_t ldb, T* c, int64_t ldc) {
  // 8 x 3 sums, 3 columns and a factor fill the 32 registers of AVX-512, 4 x 3 the 16 of others.
  constexpr int kRows = Bytes == 64 ? 8 : 4;
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    gemm_block<T, Bytes, kRows, N>(k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc);
  }
  for (; i + 2 <= m; i += 2) {
    gemm_block<T, Bytes, 2, N>(k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc);
  }
  for (; i < m; ++i) {
    gemm_block<T, Bytes, 1, N>(k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc);
  }
}

template <typename T, int Bytes>
inline void gemm_of_width(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row,
                          int64_t a_column, const T* b, int64_t ldb, T* c, int64_t ldc) {
  constexpr int64_t lanes = Vector<T, Bytes>::kLanes;
  int64_t j = 0;
  for (; j + 3 * lanes <= n; j += 3 * lanes) {
    gemm_columns<T, Bytes, 3>(m, k, a, a_row, a_column, b + j, ldb, c + j, ldc);
  }
  for (; j + lanes <= n; j += lanes) {
    gemm_columns<T, Bytes, 1>(m, k, a, a_row, a_column, b + j, ldb, c + j, ldc);
  }
}

// Channels come in multiples of kChannelAlign bytes, half a register of AVX-512.
template <typename T>
inline bool fills_registers(int64_t n) {
  return n * static_cast<int64_t>(sizeof(T)) % kVectorBytes == 0;
}

constexpr int kHalfBytes = kVectorBytes > kChannelAlign ? kChannelAlign : kVectorBytes;

template <typename T>
void gemm_add(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_column,
              const T* b, int64_t ldb, T* c, int64_t ldc) {
  if (fills_registers<T>(n)) {
    gemm_of_width<T, kVectorBytes>(m, n, k, a, a_row, a_column, b, ldb, c, ldc);
  } else {
    gemm_of_width<T, kHalfBytes>(m, n, k, a, a_row, a_column, b, ldb, c, ldc);
  }
}

template <typename T>
void softmax(int64_t tokens, int64_t taps, T* x, T* logsumexp) {
  using V = Wide<T>;
  for (int64_t t = 0; t < tokens; ++t, x += taps) {
    typename V::type max = V::load(x);
    for (int64_t i = V::kLanes; i < taps; i += V::kLanes) {
      const typename V::type next = V::load(x + i);
      max = max > next ? max : next;
    }
    const T top = max_of<T>(max);
    typename V::type sum = {};
    for (int64_t i = 0; i < taps; i += V::kLanes) {
      const typename V::type e = exp_of(V::load(x + i) - top);
      V::store(x + i, e);
      sum += e;
    }
    const T total = sum_of<T>(sum);
    const T inverse = 1 / total;
    for (int64_t i = 0; i < taps; i += V::kLanes) {
      V::store(x + i, V::load(x + i) * inverse);
    }
    if (logsumexp != nullptr) {
      logsumexp[t] = top + log_of(total);
    }
  }
}

template <typename T>
void softmax_again(int64_t tokens, int64_t taps, T* x, const T* logsumexp) {
  using V = Wide<T>;
  for (int64_t t = 0; t < tokens; ++t, x += taps) {
    for (int64_t i = 0; i < taps; i += V::kLanes) {
      V::store(x + i, exp_of(V::load(x + i) - logsumexp[t]));
    }
  }
}

template <typename T>
void softmax_backward(int64_t tokens, int64_t taps, const T* weight, T* d_weight) {
  using V = Wide<T>;
  for (int64_t t = 0; t < tokens; ++t, weight += taps, d_weight += taps) {
    typename V::type sum = {};
    for (int64_t i = 0; i < taps; i += V::kLanes) {
      sum += V::load(weight + i) * V::load(d_weight + i);
    }
    const T mean = sum_of<T>(sum);
    for (int64_t i = 0; i < taps; i += V::kLanes) {
      V::store(d_weight + i, V::load(weight + i) * (V::load(d_weight + i) - mean));
    }
  }
}

template <typename T>
void add(int64_t n, const T* x, T* y) {
  using V = Wide<T>;
  for (int64_t i = 0; i < n; i += V::kLanes) {
    V::store(y + i, V::load(y + i) + V::load(x + i));
  }
}

template <typename T, int Bytes, int M>
inline void aggregate_block(int64_t kernel_size, int64_t channels, const T* weight,
                            int64_t weight_ld, const T* value, int64_t value_row,
                            const int64_t* start, T* out) {
  using V = Vector<T, Bytes>;
  for (int64_t c = 0; c < channels; c += V::kLanes) {
    typename V::type sum[M] = {};
    for (int64_t r = 0; r < kernel_size; ++r) {
      const T* factor[M];
      const T* source[M];
      for (int i = 0; i < M; ++i) {
        factor[i] = weight + i * weight_ld + r * kernel_size;
        source[i] = value + r * value_row + start[i] * channels + c;
      }
      for (int64_t s = 0; s < kernel_size; ++s) {
        for (int i = 0; i < M; ++i) {
          sum[i] += factor[i][s] * V::load(source[i] + s * channels);
        }
      }
    }
    for (int i = 0; i < M; ++i) {
      V::store(out + i * channels + c, sum[i]);
    }
  }
}

// The same for M tokens whose windows begin at one column (Step 0) or at successive ones (Step 1),
// M <= kernel_size: they share what they load. `value` points to where the first begins.
template <typename T, int Bytes, int Step, int M>
void aggregate_shared(int64_t kernel_size, int64_t channels, const T* weight, int64_t weight_ld,
                      const T* value, int64_t value_row, T* out) {
  using V = Vector<T, Bytes>;
  constexpr int kBefore = Step * (M - 1);  // columns before the first in all windows
  for (int64_t c = 0; c < channels; c += V::kLanes) {
    typename V::type sum[M] = {};
    for (int64_t r = 0; r < kernel_size; ++r) {
      const T* factor[M];
      for (int i = 0; i < M; ++i) {
        factor[i] = weight + i * weight_ld + r * kernel_size - i * Step;
      }
      const T* source = value + r * value_row + c;
#pragma GCC unroll 8
      for (int s = 0; s < kBefore; ++s) {
        const typename V::type x = V::load(source + s * channels);
        for (int i = 0; i <= s; ++i) {
          sum[i] += factor[i][s] * x;
        }
      }
      for (int64_t s = kBefore; s < kernel_size; ++s) {
        const typename V::type x = V::load(source + s * channels);
        for (int i = 0; i < M; ++i) {
          sum[i] += factor[i][s] * x;
        }
      }
#pragma GCC unroll 8
      for (int s = 0; s < kBefore; ++s) {
        const typename V::type x = V::load(source + (kernel_size + s) * channels);
        for (int i = s + 1; i < M; ++i) {
          sum[i] += factor[i][kernel_size + s] * x;
        }
      }
    }
    for (int i = 0; i < M; ++i) {
      V::store(out + i * channels + c, sum[i]);
    }
  }
}

// Returns how many of the tokens have windows that begin `step` columns after each other, at
// most 8.
inline int64_t run_length(int64_t tokens, int64_t kernel_size, const int64_t* start, int64_t step) {
  int64_t most = step == 1 && kernel_size < 8 ? kernel_size : 8;
  most = tokens < most ? tokens : most;
  int64_t n = 1;
  while (n < most && start[n] - start[n - 1] == step) {
    ++n;
  }
  return n;
}

template <typename T, int Bytes, int Step>
inline void aggregate_run(int64_t tokens, int64_t kernel_size, int64_t channels, const T* weight,
                          int64_t weight_ld, const T* value, int64_t value_row, T* out) {
  const auto run = [&](const auto& shared) {
    shared(kernel_size, channels, weight, weight_ld, value, value_row, out);
  };
  switch (tokens) {
    case 4:
      return run(aggregate_shared<T, Bytes, Step, 4>);
    case 5:
      return run(aggregate_shared<T, Bytes, Step, 5>);
    case 6:
      return run(aggregate_shared<T, Bytes, Step, 6>);
    case 7:
      return run(aggregate_shared<T, Bytes, Step, 7>);
    default:
      return run(aggregate_shared<T, Bytes, Step, 8>);
  }
}

template <typename T, int Bytes>
inline void aggregate_of_width(int64_t tokens, int64_t kernel_size, int64_t channels,
                               const T* weight, int64_t weight_ld, const T* value,
                               int64_t value_row, const int64_t* start, T* out) {
  constexpr int64_t kFewest = 4;  // independent sums that hide the latency of a multiply-add
  for (int64_t t = 0; t < tokens;) {
    const T* factor = weight + t * weight_ld;
    const T* source = value + start[t] * channels;
    T* sums = out + t * channels;
    const int64_t rest = tokens - t;
    const int64_t same = run_length(rest, kernel_size, start + t, 0);
    const int64_t successive = run_length(rest, kernel_size, start + t, 1);
    if (same >= kFewest) {
      aggregate_run<T, Bytes, 0>(same, kernel_size, channels, factor, weight_ld, source, value_row,
                                 sums);
      t += same;
    } else if (successive >= kFewest) {
      aggregate_run<T, Bytes, 1>(successive, kernel_size, channels, factor, weight_ld, source,
                                 value_row, sums);
      t += successive;
    } else if (rest >= 8 && same == successive) {  // windows of a dilation
      aggregate_block<T, Bytes, 8>(kernel_size, channels, factor, weight_ld, value, value_row,
                                   start + t, sums);
      t += 8;
    } else if (rest >= 3) {
      aggregate_block<T, Bytes, 3>(kernel_size, channels, factor, weight_ld, value, value_row,
                                   start + t, sums);
      t += 3;
    } else {
      aggregate_block<T, Bytes, 1>(kernel_size, channels, factor, weight_ld, value, value_row,
                                   start + t, sums);
      ++t;
    }
  }
}

template <typename T>
void aggregate(int64_t tokens, int64_t kernel_size, int64_t channels, const T* weight,
               int64_t weight_ld, const T* value, int64_t value_row, const int64_t* start, T* out) {
  if (fills_registers<T>(channels)) {
    aggregate_of_width<T, kVectorBytes>(tokens, kernel_size, channels, weight, weight_ld, value,
                                        value_row, start, out);
  } else {
    aggregate_of_width<T, kHalfBytes>(tokens, kernel_size, channels, weight, weight_ld, value,
                                      value_row, start, out);
  }
}

// R rows of the window of one token.
template <typename T, int Bytes, int R>
inline void dot_block(int64_t kernel_size, int64_t channels, const T* grad, const T* value,
                      int64_t value_row, int64_t value_channel, T* d_weight) {
  using V = Vector<T, Bytes>;
  for (int64_t s = 0;;) {
    typename V::type sum[R] = {};
    for (int64_t c = 0; c < channels; ++c) {
      for (int i = 0; i < R; ++i) {
        sum[i] += grad[c] * V::load(value + i * value_row + c * value_channel + s);
      }
    }
    // A window row shorter than a register spills into the next one, stored after it.
    for (int i = 0; i < R; ++i) {
      V::store(d_weight + i * kernel_size + s, sum[i]);
    }
    if (s + V::kLanes >= kernel_size) {
      return;
    }
    // The last register of a longer row overlaps the one before.
    s += V::kLanes;
    s = s + V::kLanes > kernel_size ? kernel_size - V::kLanes : s;
  }
}

template <typename T, int Bytes>
inline void dot_of_width(int64_t tokens, int64_t kernel_size, int64_t channels, const T* grad,
                         int64_t grad_ld, const T* value, int64_t value_row, int64_t value_channel,
                         const int64_t* start, T* d_weight, int64_t d_weight_ld) {
  for (int64_t t = 0; t < tokens; ++t, grad += grad_ld, d_weight += d_weight_ld) {
    const T* source = value + start[t];
    int64_t r = 0;
    for (; r + 4 <= kernel_size; r += 4) {
      dot_block<T, Bytes, 4>(kernel_size, channels, grad, source + r * value_row, value_row,
                             value_channel, d_weight + r * kernel_size);
    }
    const T* rest = source + r * value_row;
    T* d_rest = d_weight + r * kernel_size;
    if (kernel_size - r == 3) {
      dot_block<T, Bytes, 3>(kernel_size, channels, grad, rest, value_row, value_channel, d_rest);
    } else {  // kernel sizes are odd
      dot_block<T, Bytes, 1>(kernel_size, channels, grad, rest, value_row, value_channel, d_rest);
    }
    for (int64_t i = kernel_size * kernel_size; i < d_weight_ld; ++i) {
      d_weight[i] = 0;
    }
  }
}

template <typename T>
void dot(int64_t tokens, int64_t kernel_size, int64_t channels, const T* grad, int64_t grad_ld,
         const T* value, int64_t value_row, int64_t value_channel, const int64_t* start,
         T* d_weight, int64_t d_weight_ld) {
  if (kernel_size * static_cast<int64_t>(sizeof(T)) > kHalfBytes) {
    dot_of_width<T, kVectorBytes>(tokens, kernel_size, channels, grad, grad_ld, value, value_row,
                                  value_channel, start, d_weight, d_weight_ld);
  } else {
    dot_of_width<T, kHalfBytes>(tokens, kernel_size, channels, grad, grad_ld, value, value_row,
                                value_channel, start, d_weight, d_weight_ld);
  }
}

// R rows of the window of all tokens.
template <typename T, int Bytes, int R>
inline void scatter_block(int64_t columns, int64_t kernel_size, int64_t channels, const T* weight,
                          int64_t weight_ld, const T* grad, const int64_t* start,
                          const int64_t* first, const int64_t* count, int64_t step, T* d_value,
                          int64_t d_value_row) {
  using V = Vector<T, Bytes>;
  for (int64_t c = 0; c < channels; c += V::kLanes) {
    for (int64_t x = 0; x < columns; ++x) {
      T* target = d_value + x * channels + c;
      typename V::type sum[R];
      for (int i = 0; i < R; ++i) {
        sum[i] = V::load(target + i * d_value_row);
      }
      int64_t t = first[x];
      for (int64_t n = 0; n < count[x]; ++n, t += step) {
        const T* factor = weight + t * weight_ld + x - start[t];
        const typename V::type source = V::load(grad + t * channels + c);
        for (int i = 0; i < R; ++i) {
          sum[i] += factor[i * kernel_size] * source;
        }
      }
      for (int i = 0; i < R; ++i) {
        V::store(target + i * d_value_row, sum[i]);
      }
    }
  }
}

template <typename T, int Bytes>
inline void scatter_of_width(int64_t columns, int64_t kernel_size, int64_t channels,
                             const T* weight, int64_t weight_ld, const T* grad,
                             const int64_t* start, const int64_t* first, const int64_t* count,
                             int64_t step, T* d_value, int64_t d_value_row) {
  int64_t r = 0;
  for (; r + 4 <= kernel_size; r += 4) {
    scatter_block<T, Bytes, 4>(columns, kernel_size, channels, weight + r * kernel_size, weight_ld,
                               grad, start, first, count, step, d_value + r * d_value_row,
                               d_value_row);
  }
  weight += r * kernel_size;
  d_value += r * d_value_row;
  if (kernel_size - r == 3) {
    scatter_block<T, Bytes, 3>(columns, kernel_size, channels, weight, weight_ld, grad, start,
                               first, count, step, d_value, d_value_row);
  } else {  // kernel sizes are odd
    scatter_block<T, Bytes, 1>(columns, kernel_size, channels, weight, weight_ld, grad, start,
                               first, count, step, d_value, d_value_row);
  }
}

template <typename T>
void scatter(int64_t columns, int64_t kernel_size, int64_t channels, const T* weight,
             int64_t weight_ld, const T* grad, const int64_t* start, const int64_t* first,
             const int64_t* count, int64_t step, T* d_value, int64_t d_value_row) {
  if (fills_registers<T>(channels)) {
    scatter_of_width<T, kVectorBytes>(columns, kernel_size, channels, weight, weight_ld, grad,
                                      start, first, count, step, d_value, d_value_row);
  } else {
    scatter_of_width<T, kHalfBytes>(columns, kernel_size, channels, weight, weight_ld, grad, start,
                                    first, count, step, d_value, d_value_row);
  }
}

template <typename T>
struct Table {
  static constexpr RowKernels<T> kernels = {
      gemm_add<T>, softmax<T>,   softmax_again<T>, softmax_backward<T>,
      add<T>,      aggregate<T>, dot<T>,           scatter<T>};
};

}  // namespace

template <>
const RowKernels<float>& kernels<float>() {
  return Table<float>::kernels;
}

template <>
const RowKernels<double>& kernels<double>() {
  return Table<double>::kernels;
}

}  // namespace OVERLOCK_ISA
}  // namespace overlock
