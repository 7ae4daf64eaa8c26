// What the ContMix kernels share: their arguments, and the staging in shared memory.
//
// A block works for one (batch, group) at a time, on a tile of 8 x 16 tokens, and
// walks their windows row by row. Logits are products of a token's affinities, in
// registers, and the projection rows of the window row, which all threads read from the
// same place in shared memory at the same time.
#pragma once

#include <cmath>
#include <cstdint>

#include "../window.h"
#include "block.cuh"

namespace overlock {

constexpr int kThreads = 128;
constexpr int kTileRows = 8;
constexpr int kTileColumns = 16;
static_assert(kTileRows * kTileColumns == kThreads, "one thread per token of a tile");

// S, padded with zeros.
constexpr int kRegions = 64;
// Distance between the affinities of two tokens in shared memory: an odd number of 16-byte
// words, so that eight lanes that read a word each meet eight different bank groups.
constexpr int kRegionStride = kRegions + 4;

// The same for the channels of two neighbours. CP is C padded to 8, 16 or 32.
template <int CP>
constexpr int kChannelStride = CP + 4;

// A [B, G, C, H, W] tensor and its strides.
template <typename T>
struct Map {
  T* data;
  int64_t batch, group, channel, row, column;

  OVERLOCK_KERNEL_BODY T* at(int64_t b, int64_t g, int64_t y, int64_t x) const {
    return data + b * batch + g * group + y * row + x * column;
  }
};

template <typename T>
struct Arguments {
  Map<const T> query, value;
  // [B, G, Cq, S]: row is the stride of the regions, column is not used.
  Map<const T> key;
  const float* proj_weight;  // [K*K, kRegions], contiguous like all that follow
  const float* proj_bias;    // [K*K]
  const float* rpb;          // [G, 2K-1, 2K-1]
  int64_t batches, groups;
  int query_channels, channels, regions, height, width, kernel_size;
  float scale;

  OVERLOCK_HOST_DEVICE int tile_columns() const {
    return (width + kTileColumns - 1) / kTileColumns;
  }
  OVERLOCK_HOST_DEVICE int tiles() const {
    return (height + kTileRows - 1) / kTileRows * tile_columns();
  }
  // Columns of the map under a window row of a tile.
  OVERLOCK_HOST_DEVICE int staged_columns() const { return kTileColumns - 1 + kernel_size; }

  OVERLOCK_KERNEL_BODY int start_row(int y) const {
    return static_cast<int>(window_start(y, height, kernel_size));
  }
  OVERLOCK_KERNEL_BODY int start_column(int x) const {
    return static_cast<int>(window_start(x, width, kernel_size));
  }
  // Position biases of one window row, from its first column on.
  OVERLOCK_KERNEL_BODY const float* bias_row(int64_t group, int y, int x, int tap_row) const {
    const int side = 2 * kernel_size - 1;
    const int row = start_row(y) - y + tap_row + kernel_size - 1;
    const int column = start_column(x) - x + kernel_size - 1;
    return rpb + (group * side + row) * side + column;
  }
};

// One thread's token. Tokens beyond the map are clamped to its last row or column and invalid.
struct Token {
  int y, x;
  bool valid;
};

struct Tile {
  int64_t batch, group;
  int first_row, first_column;

  template <typename T>
  OVERLOCK_KERNEL_BODY static Tile of(const Arguments<T>& a, int64_t batch, int64_t group,
                                      int index) {
    const int columns = a.tile_columns();
    return {batch, group, index / columns * kTileRows, index % columns * kTileColumns};
  }

  template <typename T>
  OVERLOCK_KERNEL_BODY Token token(const Arguments<T>& a, int thread) const {
    const int y = first_row + thread / kTileColumns;
    const int x = first_column + thread % kTileColumns;
    const bool valid = y < a.height && x < a.width;
    return {y < a.height ? y : a.height - 1, x < a.width ? x : a.width - 1, valid};
  }
};

// Keys of one (batch, group) -> [Cq, kRegions].
template <typename T>
OVERLOCK_KERNEL_BODY void stage_keys(const Arguments<T>& a, int64_t batch, int64_t group,
                                     int thread, float* keys) {
  const T* source = a.key.at(batch, group, 0, 0);
  for (int i = thread; i < a.query_channels * kRegions; i += kThreads) {
    const int64_t channel = i / kRegions;
    const int64_t region = i % kRegions;
    keys[i] = region < a.regions
                  ? static_cast<float>(source[channel * a.key.channel + region * a.key.row])
                  : 0.f;
  }
}

// Projection rows of one window row -> [K, kRegions].
template <typename T>
OVERLOCK_KERNEL_BODY void stage_projection(const Arguments<T>& a, int tap_row, int thread,
                                           int threads, float* projection) {
  const int count = a.kernel_size * kRegions;
  const float* source = a.proj_weight + static_cast<int64_t>(tap_row) * count;
  for (int i = 4 * thread; i < count; i += 4 * threads) {
    *reinterpret_cast<Float4*>(projection + i) = load4(source + i);
  }
}

// Values under one window row of a tile -> [kTileRows, staged columns, kChannelStride].
//
// The first axis is the row of the token, not of the map: near a border several token rows
// share one map row, which is then staged for each of them.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void stage_values(const Arguments<T>& a, const Tile& tile, int tap_row,
                                       int thread, float* values) {
  const int first_column = a.start_column(tile.first_column);
  const int available = a.width - first_column;
  const int columns = a.staged_columns() < available ? a.staged_columns() : available;
  // Neighbouring threads take neighbouring elements: channels where these are adjacent in
  // memory, else columns. The rest of the thread number is the other coordinate.
  const bool channels_last = a.value.channel == 1;
  const int first_channel = channels_last ? thread % CP : thread / 32;
  const int channel_step = channels_last ? CP : kThreads / 32;
  const int first_staged = channels_last ? thread / CP : thread % 32;
  const int column_step = channels_last ? kThreads / CP : 32;
  for (int row = 0; row < kTileRows && tile.first_row + row < a.height; ++row) {
    const int y = a.start_row(tile.first_row + row) + tap_row;
    const T* source = a.value.at(tile.batch, tile.group, y, first_column);
    float* target = values + row * a.staged_columns() * kChannelStride<CP>;
    for (int channel = first_channel; channel < CP; channel += channel_step) {
      for (int column = first_staged; column < columns; column += column_step) {
        target[column * kChannelStride<CP> + channel] =
            channel < a.channels
                ? static_cast<float>(source[channel * a.value.channel + column * a.value.column])
                : 0.f;
      }
    }
  }
}

// The staged value under the first tap of a token's window row.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY const float* staged_window(const Arguments<T>& a, const Tile& tile,
                                                const Token& token, const float* values) {
  const int column = a.start_column(token.x) - a.start_column(tile.first_column);
  const int row = token.y - tile.first_row;
  return values + (row * a.staged_columns() + column) * kChannelStride<CP>;
}

template <typename T>
OVERLOCK_KERNEL_BODY Vector<kRegions> affinity_of(const Arguments<T>& a, int64_t batch,
                                                  int64_t group, int y, int x, const float* keys) {
  Vector<kRegions> affinity;
  OVERLOCK_UNROLL
  for (int s = 0; s < kRegions; ++s) affinity.v[s] = 0.f;
  const T* query = a.query.at(batch, group, y, x);
  for (int c = 0; c < a.query_channels; ++c) {
    const float q = a.scale * static_cast<float>(query[c * a.query.channel]);
    add_scaled(affinity, q, keys + c * kRegions);
  }
  return affinity;
}

// Channels of one token, zero in the padding.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY Vector<CP> load_channels(const Map<const T>& map, const Tile& tile,
                                              const Token& token, int channels) {
  const T* source = map.at(tile.batch, tile.group, token.y, token.x);
  Vector<CP> vector;
  OVERLOCK_UNROLL
  for (int c = 0; c < CP; ++c) {
    vector.v[c] = c < channels ? static_cast<float>(source[c * map.channel]) : 0.f;
  }
  return vector;
}

}  // namespace overlock
