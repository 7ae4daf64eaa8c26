#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "planes.h"

namespace overlock {
namespace {

// A row of weights, packed; taps are last in memory as a rule.
template <typename S, typename T>
void pack_weights(const Plane<S>& weight, int64_t row, int64_t width, int64_t ld, T* packed) {
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t tap = 0; tap < weight.channels; ++tap) {
      packed[x * ld + tap] = static_cast<T>(weight.at(tap, row, x));
    }
  }
}

// Tensors come as [B, G, C, H, W] views.
template <typename S>
void forward(const at::Tensor& weight, const at::Tensor& value, int64_t kernel_size,
             int64_t dilation, const at::Tensor& out) {
  using T = at::opmath_type<S>;
  const int64_t planes = value.size(0) * value.size(1);
  const int64_t height = value.size(3), width = value.size(4);
  const int64_t taps = kernel_size * kernel_size;
  const int64_t ld = padded<T>(value.size(2), kChannelAlign);
  const int64_t row_size = width * ld;
  const Columns columns(width, kernel_size, dilation);
  const std::vector<int64_t> tokens = natural_order(width);
  const RowKernels<T>& kernels = row_kernels<T>();
  const int64_t segment = rows_per_segment<T>(width, ld, kernel_size, dilation);
  // Weights that lie as the kernel reads them are read in place.
  const bool in_place = std::is_same_v<S, T> && weight.stride(2) == 1 && weight.stride(4) >= taps;
  const int64_t grain = std::max<int64_t>(1, 16384 / (width * taps));

  at::parallel_for(0, planes * height, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> values(most_touched(segment, height, kernel_size, dilation) * row_size);
    Scratch<T> weights(in_place ? 0 : width * taps);
    Scratch<T> result(row_size);
    while (begin < end) {
      const int64_t index = begin / height;
      RowRange rows{begin % height, 0};
      rows.end = std::min({rows.begin + segment, height, rows.begin + end - begin});
      begin += rows.size();
      const RowRange touched = touched_rows(rows, height, kernel_size, dilation);
      const Plane<S> source = plane_of<S>(value, index);
      const Plane<S> factors = plane_of<S>(weight, index);
      const Plane<S> target = plane_of<S>(out, index);
      for (int64_t row = touched.begin; row < touched.end; ++row) {
        pack_row(source, row, columns.position.data(), width, ld,
                 values.data() + (row - touched.begin) * row_size);
      }
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t start = window_start(row, height, kernel_size, dilation);
        const T* factor = weights.data();
        int64_t factor_ld = taps;
        if (in_place) {
          factor = reinterpret_cast<const T*>(&factors.at(0, row, 0));
          factor_ld = factors.column_stride;
        } else {
          pack_weights(factors, row, width, taps, weights.data());
        }
        kernels.aggregate(width, kernel_size, ld, factor, factor_ld,
                          values.data() + (start - touched.begin) * row_size, dilation * row_size,
                          columns.start.data(), result.data());
        unpack_row(result.data(), tokens.data(), width, ld, target, row);
      }
    }
  });
}

template <typename S>
void backward(const at::Tensor& grad_out, const at::Tensor& weight, const at::Tensor& value,
              int64_t kernel_size, int64_t dilation, const at::Tensor& d_weight,
              const at::Tensor& d_value) {
  using T = at::opmath_type<S>;
  const int64_t planes = value.size(0) * value.size(1), channels = value.size(2);
  const int64_t height = value.size(3), width = value.size(4);
  const int64_t taps = kernel_size * kernel_size;
  const int64_t ld = padded<T>(channels, kChannelAlign);
  const int64_t row_size = width * ld;
  const int64_t planar_ld = width + kTapAlign / static_cast<int64_t>(sizeof(T));
  const int64_t planar_size = channels * planar_ld;
  const Columns columns(width, kernel_size, dilation);
  const std::vector<int64_t> tokens = natural_order(width);
  const RowKernels<T>& kernels = row_kernels<T>();
  const Tiling tiling(planes, height, kernel_size, dilation);
  const at::Tensor waiting = at::empty({planes, tiling.shared * row_size},
                                       value.options().dtype(c10::CppTypeToScalarType<T>::value));

  at::parallel_for(0, planes * tiling.count(), 1, [&](int64_t begin, int64_t end) {
    Scratch<T> values(tiling.most_touched * planar_size);
    Scratch<T> d_values(tiling.most_touched * row_size);
    Scratch<T> weights(width * taps), d_weights(width * taps + kTapAlign);
    Scratch<T> grad(row_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / tiling.count();
      const int64_t tile = task % tiling.count();
      const RowRange rows = tiling.tiles[tile], touched = tiling.touched[tile];
      const Plane<S> source = plane_of<S>(value, index);
      for (int64_t row = touched.begin; row < touched.end; ++row) {
        pack_row_planar(source, row, columns.position.data(), width, planar_ld,
                        values.data() + (row - touched.begin) * planar_size);
      }
      d_values.fill(touched.size() * row_size, T(0));
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t start = window_start(row, height, kernel_size, dilation) - touched.begin;
        pack_row(plane_of<S>(grad_out, index), row, tokens.data(), width, ld, grad.data());
        pack_weights(plane_of<S>(weight, index), row, width, taps, weights.data());
        kernels.dot(width, kernel_size, channels, grad.data(), ld,
                    values.data() + start * planar_size, dilation * planar_size, planar_ld,
                    columns.start.data(), d_weights.data(), taps);
        unpack_row(d_weights.data(), tokens.data(), width, taps, plane_of<S>(d_weight, index), row);
        kernels.scatter(width, kernel_size, ld, weights.data(), taps, grad.data(),
                        columns.start.data(), columns.first.data(), columns.count.data(),
                        columns.step, d_values.data() + start * row_size, dilation * row_size);
      }
      store_tile(d_values.data(), tiling, tile, columns, ld, plane_of<S>(d_value, index),
                 waiting.data_ptr<T>() + index * tiling.shared * row_size);
    }
  });
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      add_up_tiles(waiting.data_ptr<T>() + index * tiling.shared * row_size, tiling, columns, ld,
                   height, plane_of<S>(d_value, index));
    }
  });
}

// [B, G, H, W, C] seen as [B, G, C, H, W].
at::Tensor channels_first(const at::Tensor& tensor) { return tensor.permute({0, 1, 4, 2, 3}); }

at::Tensor neighborhood_aggregate_forward(const at::Tensor& weight, const at::Tensor& value,
                                          int64_t kernel_size, int64_t dilation) {
  at::Tensor out = at::empty_like(value);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(),
                                  "neighborhood_aggregate_forward", [&] {
                                    forward<scalar_t>(channels_first(weight), channels_first(value),
                                                      kernel_size, dilation, channels_first(out));
                                  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> neighborhood_aggregate_backward(const at::Tensor& grad_out,
                                                                   const at::Tensor& weight,
                                                                   const at::Tensor& value,
                                                                   int64_t kernel_size,
                                                                   int64_t dilation) {
  at::Tensor d_weight = at::empty_like(weight), d_value = at::empty_like(value);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "neighborhood_aggregate_backward", [&] {
        backward<scalar_t>(channels_first(grad_out), channels_first(weight), channels_first(value),
                           kernel_size, dilation, channels_first(d_weight),
                           channels_first(d_value));
      });
  return {d_weight, d_value};
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CPU, m) {
  m.impl("neighborhood_aggregate_forward", &neighborhood_aggregate_forward);
  m.impl("neighborhood_aggregate_backward", &neighborhood_aggregate_backward);
}

}  // namespace overlock
