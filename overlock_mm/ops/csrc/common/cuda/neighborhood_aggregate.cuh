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
  int64_t batches, groups, height, width, channels, kernel_size, dilation;

  OVERLOCK_HOST_DEVICE int64_t tokens() const { return batches * groups * height * width; }
};

// One element of a result: `index` counts elements, columns, rows, groups, batches.
struct Element {
  int64_t batch, group, y, x, element;

  OVERLOCK_KERNEL_BODY static Element of(const AggregateSizes& sizes, int64_t elements,
                                         int64_t index) {
    const int64_t column = index / elements;
    const int64_t row = column / sizes.width;
    const int64_t group = row / sizes.height;
    return {group / sizes.groups, group % sizes.groups, row % sizes.height, column % sizes.width,
            index % elements};
  }
};

template <typename T>
OVERLOCK_KERNEL_BODY void aggregate_element(const AggregateSizes& s,
                                            const TokenMap<const T>& weight,
                                            const TokenMap<const T>& value, const TokenMap<T>& out,
                                            int64_t index) {
  const Element e = Element::of(s, s.channels, index);
  const int64_t first_row = window_start(e.y, s.height, s.kernel_size, s.dilation);
  const int64_t first_column = window_start(e.x, s.width, s.kernel_size, s.dilation);
  const T* taps = weight.at(e.batch, e.group, e.y, e.x);
  float sum = 0.f;
  for (int64_t i = 0; i < s.kernel_size; ++i) {
    const T* source = value.at(e.batch, e.group, first_row + i * s.dilation, first_column) +
                      e.element * value.element;
    for (int64_t j = 0; j < s.kernel_size; ++j) {
      sum += static_cast<float>(*taps) * static_cast<float>(*source);
      taps += weight.element;
      source += s.dilation * value.column;
    }
  }
  out.at(e.batch, e.group, e.y, e.x)[e.element * out.element] = static_cast<T>(sum);
}

template <typename T>
OVERLOCK_KERNEL_BODY void weight_grad_element(const AggregateSizes& s,
                                              const TokenMap<const T>& grad_out,
                                              const TokenMap<const T>& value,
                                              const TokenMap<T>& d_weight, int64_t index) {
  const Element e = Element::of(s, s.kernel_size * s.kernel_size, index);
  const int64_t row = window_start(e.y, s.height, s.kernel_size, s.dilation) +
                      e.element / s.kernel_size * s.dilation;
  const int64_t column = window_start(e.x, s.width, s.kernel_size, s.dilation) +
                         e.element % s.kernel_size * s.dilation;
  const T* grad = grad_out.at(e.batch, e.group, e.y, e.x);
  const T* source = value.at(e.batch, e.group, row, column);
  float sum = 0.f;
  for (int64_t c = 0; c < s.channels; ++c) {
    sum += static_cast<float>(grad[c * grad_out.element]) *
           static_cast<float>(source[c * value.element]);
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
  const int64_t first_row = inverse_first(e.y, s.kernel_size, s.dilation);
  const int64_t last_row = inverse_last(e.y, s.height, s.kernel_size, s.dilation);
  const int64_t first_column = inverse_first(e.x, s.kernel_size, s.dilation);
  const int64_t last_column = inverse_last(e.x, s.width, s.kernel_size, s.dilation);
  float sum = 0.f;
  for (int64_t y = first_row; y <= last_row; y += s.dilation) {
    const int64_t tap_row =
        (e.y - window_start(y, s.height, s.kernel_size, s.dilation)) / s.dilation;
    for (int64_t x = first_column; x <= last_column; x += s.dilation) {
      const int64_t tap_column =
          (e.x - window_start(x, s.width, s.kernel_size, s.dilation)) / s.dilation;
      const int64_t tap = tap_row * s.kernel_size + tap_column;
      sum += static_cast<float>(weight.at(e.batch, e.group, y, x)[tap * weight.element]) *
             static_cast<float>(grad_out.at(e.batch, e.group, y, x)[e.element * grad_out.element]);
    }
  }
  d_value.at(e.batch, e.group, e.y, e.x)[e.element * d_value.element] = static_cast<T>(sum);
}

}  // namespace overlock
