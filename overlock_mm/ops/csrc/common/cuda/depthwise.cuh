// Depthwise convolutions with zero padding, and the element-wise work around them.
//
// A thread computes eight rows of one column, of eight channels that are adjacent in memory. It
// goes over the columns of the kernel. For each of them it loads every input row once, for all the
// output rows that the row belongs to, and every tap once, for all output rows. In half precision
// each load takes 16 bytes, where the channels are aligned to that. A block has eight columns and
// 64 channels.
#pragma once

#include <cmath>
#include <cstdint>

#include "../window.h"
#include "block.cuh"

namespace overlock {

constexpr int kDepthwiseRows = 8;
constexpr int kDepthwiseColumns = 8;
constexpr int kThreadChannels = 8;
constexpr int kDepthwiseChannels = 64;
constexpr int kDepthwiseThreads = kDepthwiseColumns * kDepthwiseChannels / kThreadChannels;
// A warp takes a pixel, and a block this many.
constexpr int kNormPixels = 8;
constexpr int kLanes = 32;
constexpr int kNormThreads = kNormPixels * kLanes;

// A [B, C, H, W] tensor, whose channels are adjacent, and its strides.
template <typename T>
struct ChannelMap {
  T* data;
  int64_t batch, row, column;

  OVERLOCK_KERNEL_BODY T* at(int64_t b, int64_t y, int64_t x) const {
    return data + b * batch + y * row + x * column;
  }
};

// The pointer to an output that is not requested is null.
template <typename T>
struct DepthwiseCall {
  ChannelMap<const T> x, addend;
  const T* weight;      // [K, K, C]
  const T* bias;        // [C]
  const T* input_bias;  // [C]
  ChannelMap<T> y;
  float* sums;  // [B, tiles, C]: of y, or of its squares, over the pixels of a tile
  int64_t batches, channels;
  int height, width;
  bool gelu_input, gelu_output, squares;

  OVERLOCK_HOST_DEVICE bool has_input_work() const { return gelu_input || input_bias != nullptr; }

  OVERLOCK_HOST_DEVICE int tile_columns() const {
    return (width + kDepthwiseColumns - 1) / kDepthwiseColumns;
  }
  OVERLOCK_HOST_DEVICE int tiles() const {
    return (height + kDepthwiseRows - 1) / kDepthwiseRows * tile_columns();
  }
  OVERLOCK_HOST_DEVICE int64_t slices() const {
    return (channels + kDepthwiseChannels - 1) / kDepthwiseChannels;
  }
};

// LayerNorm over the channels of y, and the path around it. All pixels of the batch are adjacent.
template <typename T>
struct DepthwiseNorm {
  T* y;                  // [pixels, C]
  const T* weight;       // [C]
  const T* bias;         // [C]
  const T* skip_weight;  // [C] or null
  const T* skip_bias;    // [C] or null
  T* normed;             // [pixels, C]
  int64_t pixels, channels;
  float eps;

  OVERLOCK_HOST_DEVICE int64_t blocks() const { return (pixels + kNormPixels - 1) / kNormPixels; }
};

// The exact GELU, off by 4e-7 |x| at most: max(x, 0) - |x| Phi(-|x|), and the tail of the normal
// distribution by formula 7.1.26 of Abramowitz and Stegun. erff takes twice as many instructions.
OVERLOCK_KERNEL_BODY float gelu(float x) {
  const float distance = fminf(fabsf(x), 12.f);  // where the tail is 0; infinity times 0 is none
  const float t = reciprocal(1.f + 0.23164190f * distance);
  float tail = 1.061405429f * t - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail *= t * 0.5f * distance * exp2_of(-0.72134752f * distance * distance);
  return (x < 0.f ? 0.f : x) - tail;  // NaN stays
}

template <typename T>
OVERLOCK_KERNEL_BODY float value_or(const T* values, int64_t index, float otherwise) {
  return values == nullptr ? otherwise : static_cast<float>(values[index]);
}

// The channels of a thread, which exist up to `count`. kWide says that all do, and that every
// pointer to them is a multiple of 16 bytes.
template <bool kWide, typename T>
struct Channels {
  using Values = Vector<kThreadChannels>;
  struct alignas(16) Pack {
    T v[kThreadChannels];
  };
  struct alignas(16) Words {
    uint32_t v[sizeof(Pack) / sizeof(uint32_t)];
  };
  int64_t first;
  int count;

  OVERLOCK_KERNEL_BODY Values load(const T* pixel, bool inside = true) const {
    Values values = {};
    if (kWide) {
      Words words = {};
      // Nothing else depends on the condition, so that it becomes a predicate and not a branch.
      if (inside) words = *reinterpret_cast<const Words*>(pixel + first);
      const Pack pack = reinterpret_cast<const Pack&>(words);
      OVERLOCK_UNROLL
      for (int c = 0; c < kThreadChannels; ++c) values.v[c] = static_cast<float>(pack.v[c]);
    } else {
      OVERLOCK_UNROLL
      for (int c = 0; c < kThreadChannels; ++c) {
        if (inside && c < count) values.v[c] = static_cast<float>(pixel[first + c]);
      }
    }
    return values;
  }
  OVERLOCK_KERNEL_BODY Values load_or_zero(const T* parameter) const {
    return parameter == nullptr ? Values{} : load(parameter);
  }
  OVERLOCK_KERNEL_BODY void store(T* pixel, const Values& values) const {
    if (kWide) {
      Pack pack;
      OVERLOCK_UNROLL
      for (int c = 0; c < kThreadChannels; ++c) pack.v[c] = static_cast<T>(values.v[c]);
      *reinterpret_cast<Pack*>(pixel + first) = pack;
    } else {
      OVERLOCK_UNROLL
      for (int c = 0; c < kThreadChannels; ++c) {
        if (c < count) pixel[first + c] = static_cast<T>(values.v[c]);
      }
    }
  }
};

OVERLOCK_KERNEL_BODY void add_product(Vector<kThreadChannels>& sums,
                                      const Vector<kThreadChannels>& a,
                                      const Vector<kThreadChannels>& b) {
  OVERLOCK_UNROLL
  for (int c = 0; c < kThreadChannels; ++c) sums.v[c] += a.v[c] * b.v[c];
}

OVERLOCK_KERNEL_BODY void apply_gelu(Vector<kThreadChannels>& values) {
  OVERLOCK_UNROLL
  for (int c = 0; c < kThreadChannels; ++c) values.v[c] = gelu(values.v[c]);
}

// Whether a kernel can do what precedes the convolution. It would make the loop of a large kernel,
// before which no network has it, several times as long.
template <int K, bool kWide>
constexpr bool kHasInputWork = !kWide || K == 3;

// The convolution with bias at the rows of a tile, in one column.
template <int K, bool kWide, typename T>
OVERLOCK_KERNEL_BODY void convolve(const DepthwiseCall<T>& a, const Channels<kWide, T>& channels,
                                   int64_t batch, int first_row, int column,
                                   Vector<kThreadChannels> (&totals)[kDepthwiseRows]) {
  using Values = Vector<kThreadChannels>;
  const Values bias = channels.load_or_zero(a.bias);
  OVERLOCK_UNROLL
  for (int row = 0; row < kDepthwiseRows; ++row) totals[row] = bias;
  const Values input_bias = channels.load_or_zero(a.input_bias);
  OVERLOCK_NO_UNROLL
  for (int tap_column = 0; tap_column < K; ++tap_column) {
    const int x = column + tap_column - K / 2;
    const bool on_map = x >= 0 && x < a.width;
    const T* pixel = a.x.at(batch, first_row - K / 2, x);
    Values taps[kDepthwiseRows];  // of the last rows of the kernel, in turn
    OVERLOCK_UNROLL
    for (int row = 0; row < kDepthwiseRows + K - 1; ++row) {
      const int y = first_row + row - K / 2;
      const bool inside = on_map && y >= 0 && y < a.height;
      Values value = channels.load(pixel, inside);
      pixel += a.x.row;
      if (kHasInputWork<K, kWide> && inside) {
        OVERLOCK_UNROLL
        for (int c = 0; c < kThreadChannels; ++c) value.v[c] += input_bias.v[c];
        if (a.gelu_input) apply_gelu(value);
      }
      if (row < K) {
        taps[row % kDepthwiseRows] = channels.load(a.weight + (row * K + tap_column) * a.channels);
      }
      OVERLOCK_UNROLL
      for (int n = 0; n < kDepthwiseRows; ++n) {
        if (row >= n && row - n < K)
          add_product(totals[n], value, taps[(row - n) % kDepthwiseRows]);
      }
    }
  }
}

// Shared memory of a block, in floats: a sum for each of its columns and channels.
constexpr int kDepthwiseShared = kDepthwiseColumns * kDepthwiseChannels;

// One tile and 64 channels; block = (batch * tiles + tile) * slices + slice.
template <int K, bool kWide, typename Block, typename T>
OVERLOCK_KERNEL_BODY void depthwise_block(Block& block, const DepthwiseCall<T>& a, int64_t index,
                                          float* shared) {
  using Values = Vector<kThreadChannels>;
  const int64_t tile = index / a.slices();
  const int64_t batch = tile / a.tiles();
  const int64_t first_channel = index % a.slices() * kDepthwiseChannels;
  const int in_sample = static_cast<int>(tile % a.tiles());
  const int first_row = in_sample / a.tile_columns() * kDepthwiseRows;
  const int first_column = in_sample % a.tile_columns() * kDepthwiseColumns;
  block.phase([&](int thread) {
    constexpr int kGroups = kDepthwiseChannels / kThreadChannels;
    const int64_t first = first_channel + thread % kGroups * kThreadChannels;
    const int64_t left = a.channels - first;
    const Channels<kWide, T> channels{first, static_cast<int>(left < 8 ? left : 8)};
    const int column = first_column + thread / kGroups;
    Values sum = {};
    if (left > 0 && column < a.width) {
      Values totals[kDepthwiseRows];
      convolve<K>(a, channels, batch, first_row, column, totals);
      OVERLOCK_UNROLL
      for (int row = 0; row < kDepthwiseRows; ++row) {
        const int y = first_row + row;
        if (y >= a.height) continue;
        Values& total = totals[row];
        if (a.addend.data != nullptr) {
          const Values addend = channels.load(a.addend.at(batch, y, column));
          OVERLOCK_UNROLL
          for (int c = 0; c < kThreadChannels; ++c) total.v[c] += addend.v[c];
        }
        if (a.gelu_output) apply_gelu(total);
        channels.store(a.y.at(batch, y, column), total);
        OVERLOCK_UNROLL
        for (int c = 0; c < kThreadChannels; ++c) {
          sum.v[c] += a.squares ? total.v[c] * total.v[c] : total.v[c];
        }
      }
    }
    if (a.sums == nullptr) return;
    OVERLOCK_UNROLL
    for (int c = 0; c < kThreadChannels; ++c) shared[thread * kThreadChannels + c] = sum.v[c];
  });
  if (a.sums == nullptr) return;
  block.phase([&](int thread) {
    const int64_t channel = first_channel + thread;
    if (channel >= a.channels) return;
    float sum = 0.f;
    for (int column = 0; column < kDepthwiseColumns; ++column) {
      sum += shared[column * kDepthwiseChannels + thread];
    }
    a.sums[tile * a.channels + channel] = sum;
  });
}

// Shared memory of a block of the norm, in floats: two sums for each thread.
constexpr int kNormShared = 2 * kNormThreads;

// Eight pixels and all channels.
//
// The variance is computed around the mean, in a second pass over the pixel: a difference of two
// large sums would be inaccurate.
template <typename Block, typename T>
OVERLOCK_KERNEL_BODY void depthwise_norm_block(Block& block, const DepthwiseNorm<T>& a,
                                               int64_t index, float* shared) {
  const auto pixel_of = [&](int thread) { return index * kNormPixels + thread / kLanes; };
  const auto mean_of_lanes = [&](const float* sums, int thread) {
    float sum = 0.f;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[thread / kLanes * kLanes + lane];
    return sum / static_cast<float>(a.channels);
  };
  float* distances = shared + kNormThreads;
  block.phase([&](int thread) {
    float sum = 0.f;
    if (pixel_of(thread) < a.pixels) {
      const T* y = a.y + pixel_of(thread) * a.channels;
      for (int64_t c = thread % kLanes; c < a.channels; c += kLanes) {
        sum += static_cast<float>(y[c]);
      }
    }
    shared[thread] = sum;
  });
  block.phase([&](int thread) {
    float sum = 0.f;
    if (pixel_of(thread) < a.pixels) {
      const float mean = mean_of_lanes(shared, thread);
      const T* y = a.y + pixel_of(thread) * a.channels;
      for (int64_t c = thread % kLanes; c < a.channels; c += kLanes) {
        const float distance = static_cast<float>(y[c]) - mean;
        sum += distance * distance;
      }
    }
    distances[thread] = sum;
  });
  block.phase([&](int thread) {
    if (pixel_of(thread) >= a.pixels) return;
    const float mean = mean_of_lanes(shared, thread);
    const float factor = 1.f / sqrtf(mean_of_lanes(distances, thread) + a.eps);
    T* y = a.y + pixel_of(thread) * a.channels;
    T* normed = a.normed + pixel_of(thread) * a.channels;
    for (int64_t c = thread % kLanes; c < a.channels; c += kLanes) {
      const float value = static_cast<float>(y[c]);
      normed[c] = static_cast<T>((value - mean) * factor * static_cast<float>(a.weight[c]) +
                                 static_cast<float>(a.bias[c]));
      if (a.skip_weight == nullptr) continue;
      y[c] = static_cast<T>(value * static_cast<float>(a.skip_weight[c]) +
                            value_or(a.skip_bias, c, 0.f));
    }
  });
}

}  // namespace overlock
