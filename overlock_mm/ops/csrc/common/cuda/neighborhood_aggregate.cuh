// Only the aggregation, forward and backward: one thread per element of the result.
//
// Neighbouring threads take neighbouring channels (or taps) of a token. They share its
// weights, and read adjacent values where channels are adjacent in memory.
#pragma once

#include <cstdint>

#include "../window.h"
#include "block.cuh"

namespace overlock {

// A [B, G, H, W, N] tensor and its strides; N is C, or K*K for the weights.
template <typename T>
struct TokenMap {
  T* data;
  int64_t batch, group, row, column, element;

  OVERLOCK_KERNEL_BODY T* at(int64_t b, int64_t g, int64_t y, int64_t x) const {
    return data + b * batch + g * group + y * row + x * column;
  }
};

struct AggregateSizes {
  int64_t batches, groups;
  int height, width, channels, kernel_size, dilation;

  OVERLOCK_HOST_DEVICE int64_t tokens() const { return batches * groups * height * width; }
};

// One element of a result: `index` counts elements, columns, rows, groups, batches.
struct Element {
  int64_t batch, group;
  int y, x, element;

  OVERLOCK_KERNEL_BODY static Element of(const AggregateSizes& sizes, int elements, int64_t index) {
    const int64_t column = index / elements;
    const int64_t row = column / sizes.width;
    const int64_t group = row / sizes.height;
    return {group / sizes.groups, group % sizes.groups, static_cast<int>(row % sizes.height),
            static_cast<int>(column % sizes.width), static_cast<int>(index % elements)};
  }
};

// The queries whose windows hold a token, along one axis: counted in the interleaved map that
// the token belongs to, so that the loops over them divide nothing.
struct ReachingQueries {
  int first, last, index, size, kernel_size;  // index is the token's

  OVERLOCK_KERNEL_BODY static ReachingQueries of(int i, int size, int kernel_size, int dilation) {
    const int index = i / dilation;
    const int submap = submap_size(i, size, dilation);
    return {inverse_first(index, kernel_size), inverse_last(index, submap, kernel_size), index,
            submap, kernel_size};
  }
  // Row (column) of the window of a query that holds the token.
  OVERLOCK_KERNEL_BODY int tap(int query) const {
    return index - window_start(query, size, kernel_size);
  }
};

template <typename T>
OVERLOCK_KERNEL_BODY void aggregate_element(const AggregateSizes& s,
                                            const TokenMap<const T>& weight,
                                            const TokenMap<const T>& value, const TokenMap<T>& out,
                                            int64_t index) {
  const Element e = Element::of(s, s.channels, index);
  const int first_row = window_start(e.y, s.height, s.kernel_size, s.dilation);
  const int first_column = window_start(e.x, s.width, s.kernel_size, s.dilation);
  const T* taps = weight.at(e.batch, e.group, e.y, e.x);
  const T* row = value.at(e.batch, e.group, first_row, first_column) + e.element * value.element;
  float sum = 0.f;
  for (int i = 0; i < s.kernel_size; ++i) {
    const T* source = row;
    for (int j = 0; j < s.kernel_size; ++j) {
      sum += static_cast<float>(*taps) * static_cast<float>(*source);
      taps += weight.element;
      source += s.dilation * value.column;
    }
    row += s.dilation * value.row;
  }
  out.at(e.batch, e.group, e.y, e.x)[e.element * out.element] = static_cast<T>(sum);
}

template <typename T>
OVERLOCK_KERNEL_BODY void weight_grad_element(const AggregateSizes& s,
                                              const TokenMap<const T>& grad_out,
                                              const TokenMap<const T>& value,
                                              const TokenMap<T>& d_weight, int64_t index) {
  const Element e = Element::of(s, s.kernel_size * s.kernel_size, index);
  const int row = window_start(e.y, s.height, s.kernel_size, s.dilation) +
                  e.element / s.kernel_size * s.dilation;
  const int column = window_start(e.x, s.width, s.kernel_size, s.dilation) +
                     e.element % s.kernel_size * s.dilation;
  const T* grad = grad_out.at(e.batch, e.group, e.y, e.x);
  const T* source = value.at(e.batch, e.group, row, column);
  float sum = 0.f;
  for (int c = 0; c < s.channels; ++c) {
    sum += static_cast<float>(*grad) * static_cast<float>(*source);
    grad += grad_out.element;
    source += value.element;
  }
  d_weight.at(e.batch, e.group, e.y, e.x)[e.element * d_weight.element] = static_cast<T>(sum);
}

// A gather over the windows that hold the token, in a fixed order.
template <typename T>
OVERLOCK_KERNEL_BODY void value_grad_element(const AggregateSizes& s,
                                             const TokenMap<const T>& grad_out,
                                             const TokenMap<const T>& weight,
                                             const TokenMap<T>& d_value, int64_t index) {
  const Element e = Element::of(s, s.channels, index);
  const ReachingQueries rows = ReachingQueries::of(e.y, s.height, s.kernel_size, s.dilation);
  const ReachingQueries columns = ReachingQueries::of(e.x, s.width, s.kernel_size, s.dilation);
  const int first_column = columns.first * s.dilation + e.x % s.dilation;
  float sum = 0.f;
  for (int i = rows.first; i <= rows.last; ++i) {
    const int y = i * s.dilation + e.y % s.dilation;
    const T* weights =
        weight.at(e.batch, e.group, y, first_column) + rows.tap(i) * s.kernel_size * weight.element;
    const T* grad = grad_out.at(e.batch, e.group, y, first_column) + e.element * grad_out.element;
    for (int j = columns.first; j <= columns.last; ++j) {
      sum +=
          static_cast<float>(weights[columns.tap(j) * weight.element]) * static_cast<float>(*grad);
      weights += s.dilation * weight.column;
      grad += s.dilation * grad_out.column;
    }
  }
  d_value.at(e.batch, e.group, e.y, e.x)[e.element * d_value.element] = static_cast<T>(sum);
}

}  // namespace overlock
