// Backward pass of ContMix, gradient of the values: a gather over the windows that hold a
// token, which are those of an interval of rows and columns. No atomics.
//
// A block owns 8 x 16 tokens of the value map. It visits the queries whose windows reach
// them, 4 rows of 32 columns at a time, a warp to a row. For every row of the tile, first
// one thread per query makes the weights of the window row that falls on it, then the
// threads, now each an owner of results, gather them.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

constexpr int kQueryRows = 4;
constexpr int kQueryColumns = 32;
static_assert(kQueryRows * kQueryColumns == kThreads, "one thread per query");
// Threads that share the channels of one result column.
constexpr int kChannelOwners = kThreads / kTileColumns;

template <int CP, typename T>
struct ValueGradMemory {
  float *keys, *projection, *weights, *sums, *grad_out;
  int64_t floats;

  OVERLOCK_HOST_DEVICE ValueGradMemory(const Arguments<T>& a, float* shared) {
    keys = shared;
    projection = keys + a.query_channels * kRegions;               // [4, K, kRegions]
    weights = projection + kQueryRows * a.kernel_size * kRegions;  // [K, kThreads]
    sums = weights + a.kernel_size * kThreads;                     // [8, CP, 16]
    grad_out = sums + kTileRows * CP * kTileColumns;               // [kThreads, CP + 1]
    floats = grad_out - shared + kThreads * (CP + 1);
  }
};

// Queries that a block visits together.
struct QueryPatch {
  int first_row, first_column, last_row, last_column;

  OVERLOCK_KERNEL_BODY int row(int thread) const { return first_row + thread / kQueryColumns; }
  OVERLOCK_KERNEL_BODY int column(int thread) const {
    return first_column + thread % kQueryColumns;
  }
  OVERLOCK_KERNEL_BODY bool holds(int thread) const {
    return row(thread) <= last_row && column(thread) <= last_column;
  }
  // Row of the window of a query in patch row `row` that falls on map row y, -1 if none does.
  template <typename T>
  OVERLOCK_KERNEL_BODY int tap_row(const Arguments<T>& a, int row, int y) const {
    const int query_row = first_row + row;
    const int tap = query_row <= last_row ? y - a.start_row(query_row) : -1;
    return tap < a.kernel_size ? tap : -1;
  }
};

// Weights that the queries of a patch give to map row y, [K, kThreads].
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void write_weights(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                        const QueryPatch& patch, int64_t group, int y, int thread,
                                        const Vector<kRegions>& affinity, float logsumexp) {
  const int row = thread / kQueryColumns;
  const int tap_row = patch.tap_row(a, row, y);
  if (tap_row < 0 || !patch.holds(thread)) return;
  const float* bias = a.bias_row(group, patch.row(thread), patch.column(thread), tap_row);
  const float* projection = memory.projection + row * a.kernel_size * kRegions;
  for (int tap = 0; tap < a.kernel_size; ++tap) {
    const float start = a.proj_bias[tap_row * a.kernel_size + tap] + bias[tap];
    const float logit = dot(affinity, projection + tap * kRegions, start);
    memory.weights[tap * kThreads + thread] = expf(logit - logsumexp);
  }
}

// Adds what the queries of a patch contribute to one column of map row y.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void gather(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                 const QueryPatch& patch, const Tile& tile, int y, int thread) {
  constexpr int kChannels = CP / kChannelOwners;
  const int x = tile.first_column + thread % kTileColumns;
  if (x >= a.width) return;
  const int channel = thread / kTileColumns * kChannels;
  int first = static_cast<int>(inverse_first(x, a.kernel_size));
  int last = static_cast<int>(inverse_last(x, a.width, a.kernel_size));
  first = first > patch.first_column ? first : patch.first_column;
  last = last < patch.first_column + kQueryColumns ? last : patch.first_column + kQueryColumns - 1;
  Vector<kChannels> sum;
  float* target =
      memory.sums + ((y - tile.first_row) * CP + channel) * kTileColumns + thread % kTileColumns;
  OVERLOCK_UNROLL
  for (int c = 0; c < kChannels; ++c) sum.v[c] = target[c * kTileColumns];
  for (int column = first; column <= last; ++column) {
    const int tap = x - a.start_column(column);
    for (int row = 0; row < kQueryRows; ++row) {
      if (patch.tap_row(a, row, y) < 0) continue;
      const int query = row * kQueryColumns + column - patch.first_column;
      const float weight = memory.weights[tap * kThreads + query];
      const float* grad_out = memory.grad_out + query * (CP + 1) + channel;
      OVERLOCK_UNROLL
      for (int c = 0; c < kChannels; ++c) sum.v[c] += weight * grad_out[c];
    }
  }
  OVERLOCK_UNROLL
  for (int c = 0; c < kChannels; ++c) target[c * kTileColumns] = sum.v[c];
}

// One block per tile, group and batch: index counts tiles, then groups, then batches.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void value_grad_block(Block& block, const Arguments<T>& a,
                                           const Map<const T>& grad_out, const float* logsumexp,
                                           const Map<T>& d_value, int64_t index, float* shared) {
  const ValueGradMemory<CP, T> memory(a, shared);
  const int64_t pair = index / a.tiles();
  const Tile tile =
      Tile::of(a, pair / a.groups, pair % a.groups, static_cast<int>(index % a.tiles()));
  const int end_row = tile.first_row + kTileRows < a.height ? tile.first_row + kTileRows : a.height;
  const int end_column =
      tile.first_column + kTileColumns < a.width ? tile.first_column + kTileColumns : a.width;
  const int first_row = static_cast<int>(inverse_first(tile.first_row, a.kernel_size));
  const int first_column = static_cast<int>(inverse_first(tile.first_column, a.kernel_size));
  const int last_row = static_cast<int>(inverse_last(end_row - 1, a.height, a.kernel_size));
  const int last_column = static_cast<int>(inverse_last(end_column - 1, a.width, a.kernel_size));

  typename Block::template PerThread<Vector<kRegions>> affinities;
  typename Block::template PerThread<float> logsumexps;

  block.phase([&](int thread) {
    stage_keys(a, tile.batch, tile.group, thread, memory.keys);
    for (int i = thread; i < kTileRows * CP * kTileColumns; i += kThreads) memory.sums[i] = 0.f;
  });
  for (int row = first_row; row <= last_row; row += kQueryRows) {
    for (int column = first_column; column <= last_column; column += kQueryColumns) {
      const QueryPatch patch = {row, column, last_row, last_column};
      block.phase([&](int thread) {
        if (!patch.holds(thread)) return;
        const Token token = {patch.row(thread), patch.column(thread), true};
        affinities[thread] = affinity_of(a, tile.batch, tile.group, token.y, token.x, memory.keys);
        logsumexps[thread] = logsumexp[(pair * a.height + token.y) * a.width + token.x];
        const Vector<CP> grad = load_channels<CP>(grad_out, tile, token, a.channels);
        OVERLOCK_UNROLL
        for (int c = 0; c < CP; ++c) memory.grad_out[thread * (CP + 1) + c] = grad.v[c];
      });
      for (int y = tile.first_row; y < end_row; ++y) {
        bool reached = false;
        for (int r = 0; r < kQueryRows; ++r) reached |= patch.tap_row(a, r, y) >= 0;
        if (!reached) continue;
        block.phase([&](int thread) {
          const int r = thread / kQueryColumns;
          const int tap_row = patch.tap_row(a, r, y);
          if (tap_row < 0) return;
          float* projection = memory.projection + r * a.kernel_size * kRegions;
          stage_projection(a, tap_row, thread % kQueryColumns, kQueryColumns, projection);
        });
        block.phase([&](int thread) {
          write_weights(a, memory, patch, tile.group, y, thread, affinities[thread],
                        logsumexps[thread]);
        });
        block.phase([&](int thread) { gather(a, memory, patch, tile, y, thread); });
      }
    }
  }
  block.phase([&](int thread) {
    const Token token = tile.token(a, thread);
    if (!token.valid) return;
    T* target = d_value.at(tile.batch, tile.group, token.y, token.x);
    const float* sums = memory.sums + (token.y - tile.first_row) * CP * kTileColumns;
    for (int c = 0; c < a.channels; ++c) {
      target[c * d_value.channel] =
          static_cast<T>(sums[c * kTileColumns + token.x - tile.first_column]);
    }
  });
}

}  // namespace overlock
