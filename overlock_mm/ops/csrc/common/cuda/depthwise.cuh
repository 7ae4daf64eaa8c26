// Depthwise convolutions with zero padding, and the element-wise work around them.
//
// A block works on a tile of 8 x 8 pixels and 32 channels. The input under it, after bias and
// GELU, is staged in shared memory as float, so that each is computed once and not once per
// tap. A warp takes a row of the tile and a lane a channel: lanes read neighbouring words, from
// shared memory and, in channels_last layout, from the map. A thread keeps the sums of its eight
// pixels and the weights of one kernel row in registers, and each staged value that it reads
// serves all the pixels it belongs to.
#pragma once

#include <cmath>
#include <cstdint>

#include "../window.h"
#include "block.cuh"

namespace overlock {

constexpr int kTileSide = 8;
constexpr int kTilePixels = kTileSide * kTileSide;
constexpr int kLanes = 32;
constexpr int kDepthwiseThreads = kTileSide * kLanes;
// Distance of two pixels' partial sums: lane p sums those of pixel p, in 32 different banks.
constexpr int kSumStride = kLanes + 1;

// A [B, C, H, W] tensor and its strides.
template <typename T>
struct ChannelMap {
  T* data;
  int64_t batch, channel, row, column;

  OVERLOCK_KERNEL_BODY T* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data + b * batch + c * channel + y * row + x * column;
  }
};

// The pointer to an output that is not requested is null.
template <typename T>
struct DepthwiseCall {
  ChannelMap<const T> x, addend;
  // [C, 1, K, K]: batch is the stride of its channels, channel is not used.
  ChannelMap<const T> weight;
  const T* bias;        // [C], contiguous like all that follow
  const T* input_bias;  // [C]
  ChannelMap<T> y;
  float* sums;  // [B, tiles, C]: of y, or of its squares, over the pixels of a tile
  int64_t batches, channels;
  int height, width;
  bool gelu_input, gelu_output, squares;

  OVERLOCK_HOST_DEVICE int tile_columns() const { return (width + kTileSide - 1) / kTileSide; }
  OVERLOCK_HOST_DEVICE int tiles() const {
    return (height + kTileSide - 1) / kTileSide * tile_columns();
  }
  OVERLOCK_HOST_DEVICE int64_t slices() const { return (channels + kLanes - 1) / kLanes; }
};

// LayerNorm over the channels of y, and the path around it.
template <typename T>
struct DepthwiseNorm {
  const T* weight;       // [C]
  const T* bias;         // [C]
  const T* skip_weight;  // [C] or null
  const T* skip_bias;    // [C] or null
  ChannelMap<T> normed;
  float eps;
};

struct PixelTile {
  int64_t batch;
  int index, first_row, first_column;

  template <typename T>
  OVERLOCK_KERNEL_BODY static PixelTile of(const DepthwiseCall<T>& a, int64_t block) {
    const int index = static_cast<int>(block % a.tiles());
    return {block / a.tiles(), index, index / a.tile_columns() * kTileSide,
            index % a.tile_columns() * kTileSide};
  }
  // Pixels of a row of the tile that lie on the map.
  template <typename T>
  OVERLOCK_KERNEL_BODY int columns(const DepthwiseCall<T>& a, int row) const {
    if (first_row + row >= a.height) return 0;
    return a.width - first_column < kTileSide ? a.width - first_column : kTileSide;
  }
};

template <int K>
constexpr int kDepthwiseSide = kTileSide - 1 + K;
template <int K>
constexpr int kDepthwiseStaged = kDepthwiseSide<K> * kDepthwiseSide<K> * kLanes;

OVERLOCK_KERNEL_BODY float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678f)); }

template <typename T>
OVERLOCK_KERNEL_BODY float value_or(const T* values, int64_t index, float otherwise) {
  return values == nullptr ? otherwise : static_cast<float>(values[index]);
}

// The input of 32 channels under a tile -> [side, side, 32].
template <int K, typename T>
OVERLOCK_KERNEL_BODY void stage_input(const DepthwiseCall<T>& a, const PixelTile& tile,
                                      int64_t first_channel, int thread, float* staged) {
  const int64_t channel = first_channel + thread % kLanes;
  const bool present = channel < a.channels;
  const float input_bias = present ? value_or(a.input_bias, channel, 0.f) : 0.f;
  for (int i = thread / kLanes; i < kDepthwiseSide<K> * kDepthwiseSide<K>; i += kTileSide) {
    const int y = tile.first_row + i / kDepthwiseSide<K> - K / 2;
    const int x = tile.first_column + i % kDepthwiseSide<K> - K / 2;
    float value = 0.f;
    if (present && y >= 0 && y < a.height && x >= 0 && x < a.width) {
      value = static_cast<float>(*a.x.at(tile.batch, channel, y, x)) + input_bias;
      if (a.gelu_input) value = gelu(value);
    }
    staged[i * kLanes + thread % kLanes] = value;
  }
}

// The convolution with bias at the thread's eight pixels; `channel` exists.
template <int K, typename T>
OVERLOCK_KERNEL_BODY Vector<kTileSide> convolve(const DepthwiseCall<T>& a, int64_t channel,
                                                int thread, const float* staged) {
  Vector<kTileSide> sums;
  OVERLOCK_UNROLL
  for (int pixel = 0; pixel < kTileSide; ++pixel) sums.v[pixel] = value_or(a.bias, channel, 0.f);
  for (int tap_row = 0; tap_row < K; ++tap_row) {
    Vector<K> weight;
    OVERLOCK_UNROLL
    for (int tap = 0; tap < K; ++tap) {
      weight.v[tap] = static_cast<float>(*a.weight.at(channel, 0, tap_row, tap));
    }
    const int row = thread / kLanes + tap_row;
    const float* source = staged + row * kDepthwiseSide<K> * kLanes + thread % kLanes;
    OVERLOCK_UNROLL
    for (int column = 0; column < kDepthwiseSide<K>; ++column) {
      const float value = source[column * kLanes];
      OVERLOCK_UNROLL
      for (int pixel = 0; pixel < kTileSide; ++pixel) {
        const int tap = column - pixel;
        if (tap >= 0 && tap < K) sums.v[pixel] += weight.v[tap] * value;
      }
    }
  }
  return sums;
}

struct DepthwiseMemory {
  float* staged;
  float* sums;    // [pixels, 32 + 1]
  float* totals;  // [pixels]
  int64_t floats;

  template <int K>
  OVERLOCK_HOST_DEVICE static DepthwiseMemory of(float* shared) {
    const int64_t sums = kDepthwiseStaged<K>;
    const int64_t totals = sums + kTilePixels * kSumStride;
    return {shared, shared + sums, shared + totals, totals + kTilePixels};
  }
};

// One tile and 32 channels; block = (batch * tiles + tile) * slices + slice.
template <int K, typename Block, typename T>
OVERLOCK_KERNEL_BODY void depthwise_block(Block& block, const DepthwiseCall<T>& a, int64_t index,
                                          float* shared) {
  const DepthwiseMemory memory = DepthwiseMemory::of<K>(shared);
  const PixelTile tile = PixelTile::of(a, index / a.slices());
  const int64_t first_channel = index % a.slices() * kLanes;
  block.phase([&](int thread) { stage_input<K>(a, tile, first_channel, thread, memory.staged); });
  block.phase([&](int thread) {
    const int64_t channel = first_channel + thread % kLanes;
    const int row = thread / kLanes;
    float sum = 0.f;
    if (channel < a.channels) {
      const Vector<kTileSide> values = convolve<K>(a, channel, thread, memory.staged);
      const int columns = tile.columns(a, row);
      OVERLOCK_UNROLL
      for (int pixel = 0; pixel < kTileSide; ++pixel) {
        if (pixel >= columns) continue;
        const int y = tile.first_row + row;
        const int x = tile.first_column + pixel;
        float value = values.v[pixel];
        if (a.addend.data != nullptr) {
          value += static_cast<float>(*a.addend.at(tile.batch, channel, y, x));
        }
        if (a.gelu_output) value = gelu(value);
        *a.y.at(tile.batch, channel, y, x) = static_cast<T>(value);
        sum += a.squares ? value * value : value;
      }
    }
    memory.sums[row * kSumStride + thread % kLanes] = sum;
  });
  if (a.sums == nullptr) return;
  block.phase([&](int thread) {
    const int64_t channel = first_channel + thread;
    if (thread >= kLanes || channel >= a.channels) return;
    float sum = 0.f;
    for (int row = 0; row < kTileSide; ++row) sum += memory.sums[row * kSumStride + thread];
    a.sums[(tile.batch * a.tiles() + tile.index) * a.channels + channel] = sum;
  });
}

// Calls run(thread, row, pixel, channel) for the thread's pixels on the map and its channels.
template <typename T, typename Run>
OVERLOCK_KERNEL_BODY void for_elements(const DepthwiseCall<T>& a, const PixelTile& tile, int thread,
                                       Run run) {
  const int row = thread / kLanes;
  const int columns = tile.columns(a, row);
  for (int64_t channel = thread % kLanes; channel < a.channels; channel += kLanes) {
    OVERLOCK_UNROLL
    for (int pixel = 0; pixel < kTileSide; ++pixel) {
      if (pixel < columns) run(row, pixel, channel);
    }
  }
}

// Sums over the lanes of what each thread has for its pixels -> totals [pixels].
template <typename Block, typename Values>
OVERLOCK_KERNEL_BODY void sum_over_lanes(Block& block, Values& values,
                                         const DepthwiseMemory& memory) {
  block.phase([&](int thread) {
    OVERLOCK_UNROLL
    for (int pixel = 0; pixel < kTileSide; ++pixel) {
      const int row = thread / kLanes * kTileSide + pixel;
      memory.sums[row * kSumStride + thread % kLanes] = values[thread].v[pixel];
    }
  });
  block.phase([&](int thread) {
    if (thread >= kTilePixels) return;
    float sum = 0.f;
    for (int lane = 0; lane < kLanes; ++lane) sum += memory.sums[thread * kSumStride + lane];
    memory.totals[thread] = sum;
  });
}

// One tile and all channels; block = batch * tiles + tile.
//
// The variance is computed around the mean in a second pass over y, which the thread itself has
// written: a difference of two large sums would be inaccurate.
template <int K, typename Block, typename T>
OVERLOCK_KERNEL_BODY void depthwise_norm_block(Block& block, const DepthwiseCall<T>& a,
                                               const DepthwiseNorm<T>& norm, int64_t index,
                                               float* shared) {
  const DepthwiseMemory memory = DepthwiseMemory::of<K>(shared);
  const PixelTile tile = PixelTile::of(a, index);
  const auto y_at = [&](int row, int pixel, int64_t channel) {
    return a.y.at(tile.batch, channel, tile.first_row + row, tile.first_column + pixel);
  };
  typename Block::template PerThread<Vector<kTileSide>> sums;
  block.phase([&](int thread) { sums[thread] = Vector<kTileSide>(); });
  for (int64_t first = 0; first < a.channels; first += kLanes) {
    block.phase([&](int thread) { stage_input<K>(a, tile, first, thread, memory.staged); });
    block.phase([&](int thread) {
      const int64_t channel = first + thread % kLanes;
      if (channel >= a.channels) return;
      const Vector<kTileSide> values = convolve<K>(a, channel, thread, memory.staged);
      const int row = thread / kLanes;
      const int columns = tile.columns(a, row);
      OVERLOCK_UNROLL
      for (int pixel = 0; pixel < kTileSide; ++pixel) {
        if (pixel >= columns) continue;
        const T rounded = static_cast<T>(values.v[pixel]);
        *y_at(row, pixel, channel) = rounded;
        sums[thread].v[pixel] += static_cast<float>(rounded);
      }
    });
  }
  sum_over_lanes(block, sums, memory);
  typename Block::template PerThread<Vector<kTileSide>> means;
  block.phase([&](int thread) {
    OVERLOCK_UNROLL
    for (int pixel = 0; pixel < kTileSide; ++pixel) {
      const float total = memory.totals[thread / kLanes * kTileSide + pixel];
      means[thread].v[pixel] = total / static_cast<float>(a.channels);
    }
    sums[thread] = Vector<kTileSide>();
    for_elements(a, tile, thread, [&](int row, int pixel, int64_t channel) {
      const float value = static_cast<float>(*y_at(row, pixel, channel));
      const float distance = value - means[thread].v[pixel];
      sums[thread].v[pixel] += distance * distance;
    });
  });
  sum_over_lanes(block, sums, memory);
  block.phase([&](int thread) {
    Vector<kTileSide> factors;
    OVERLOCK_UNROLL
    for (int pixel = 0; pixel < kTileSide; ++pixel) {
      const float total = memory.totals[thread / kLanes * kTileSide + pixel];
      factors.v[pixel] = 1.f / sqrtf(total / static_cast<float>(a.channels) + norm.eps);
    }
    for_elements(a, tile, thread, [&](int row, int pixel, int64_t channel) {
      T* y = y_at(row, pixel, channel);
      const float value = static_cast<float>(*y);
      const float normed = (value - means[thread].v[pixel]) * factors.v[pixel];
      *norm.normed.at(tile.batch, channel, tile.first_row + row, tile.first_column + pixel) =
          static_cast<T>(normed * static_cast<float>(norm.weight[channel]) +
                         static_cast<float>(norm.bias[channel]));
      if (norm.skip_weight != nullptr) {
        *y = static_cast<T>(value * static_cast<float>(norm.skip_weight[channel]) +
                            value_or(norm.skip_bias, channel, 0.f));
      }
    });
  });
}

}  // namespace overlock
