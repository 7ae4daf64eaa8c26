// Arithmetic on a row of tokens, compiled once per instruction set.
//
// Pure pointers and sizes: the files behind this header are compiled for instruction sets
// that the running machine may not have, so they must not share inline code with others.
//
// Conventions. "ld" is the distance of two tokens. Weights have one tap per column, taps in
// row-major order. Values and gradients are packed one token after another with their
// channels padded to a multiple of `kChannelAlign` bytes (zeros), taps to `kTapAlign`.
#pragma once

#include <cstdint>

#include "pairs.h"
#include "storage.h"

namespace overlock {

constexpr int64_t kTapAlign = 64;
constexpr int64_t kChannelAlign = 32;

template <typename T>
struct RowKernels {
  // c[m, n] += sum over k of a[m, k] * b[k, n]; n is a multiple of kChannelAlign bytes.
  void (*gemm_add)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_column,
                   const T* b, int64_t ldb, T* c, int64_t ldc);

  // x = softmax(x) along the taps, in place; logsumexp may be null.
  void (*softmax)(int64_t tokens, int64_t taps, T* x, T* logsumexp);

  // x = exp(x - logsumexp), in place: the softmax once more.
  void (*softmax_again)(int64_t tokens, int64_t taps, T* x, const T* logsumexp);

  // d_weight = weight * (d_weight - sum over taps of weight * d_weight), in place.
  void (*softmax_backward)(int64_t tokens, int64_t taps, const T* weight, T* d_weight);

  // y += x; n is a multiple of kTapAlign bytes.
  void (*add)(int64_t n, const T* x, T* y);

  // out[t] = sum over taps of weight[t, tap] * value[neighbour]. `value` points to the first
  // row of the windows, `value_row` is the distance of their rows, start[t] the packed
  // column at which the window of token t begins.
  void (*aggregate)(int64_t tokens, int64_t kernel_size, int64_t channels, const T* weight,
                    int64_t weight_ld, const T* value, int64_t value_row, const int64_t* start,
                    T* out);

  // d_weight[t, tap] = sum over channels of grad[t] * value[neighbour], zero in padded taps.
  // `value` is planar: [row][channel][column], `value_channel` the distance of channels;
  // readable kTapAlign bytes past each row's end. May write kTapAlign bytes past the end.
  void (*dot)(int64_t tokens, int64_t kernel_size, int64_t channels, const T* grad, int64_t grad_ld,
              const T* value, int64_t value_row, int64_t value_channel, const int64_t* start,
              T* d_weight, int64_t d_weight_ld);

  // d_value[neighbour] += weight[t, tap] * grad[t], as a gather: packed column x is in the
  // windows of `count[x]` tokens, first[x] and others at steps of `step`.
  void (*scatter)(int64_t columns, int64_t kernel_size, int64_t channels, const T* weight,
                  int64_t weight_ld, const T* grad, const int64_t* start, const int64_t* first,
                  const int64_t* count, int64_t step, T* d_value, int64_t d_value_row);
};

// The kernels for the instruction set that ATen uses (ATEN_CPU_CAPABILITY overrules).
template <typename T>
const RowKernels<T>& row_kernels();

// Aggregation in products of pairs of bfloat16 numbers, added in float32. Rows of maps and of the
// output are not padded: `channels` may be any number.
struct PairRowKernels {
  int64_t lanes;  // of a vector

  // Pairs of each column and the next one, channels padded to whole vectors at `ld`. What follows
  // the last column is not used.
  void (*pack)(int64_t width, int64_t channels, const Bfloat16* source, int64_t source_ld,
               Pair* packed, int64_t ld);

  // RowKernels::aggregate, with the weights rounded to bfloat16; `value_ld` and `out_ld` are the
  // distances of columns. Weights are readable kTapAlign bytes past the last.
  void (*aggregate)(int64_t tokens, int64_t kernel_size, int64_t channels, const float* weight,
                    int64_t weight_ld, const Pair* value, int64_t value_row, int64_t value_ld,
                    const int64_t* start, Bfloat16* out, int64_t out_ld);
};

// The kernels, or nullptr: see pairs.h.
const PairRowKernels* pair_row_kernels();

namespace baseline {
template <typename T>
const RowKernels<T>& kernels();
}
namespace avx2 {
template <typename T>
const RowKernels<T>& kernels();
}
namespace avx512 {
template <typename T>
const RowKernels<T>& kernels();
}
namespace avx512_bf16 {
const PairRowKernels& pair_row_kernels();
}

}  // namespace overlock
