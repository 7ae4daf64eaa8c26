// Backward pass of ContMix, gradient of the values: a gather over the windows that hold a
// token, which are those of an interval of rows and columns. No atomics.
//
// A block owns a tile of the value map. It visits the queries whose windows reach it, up to 32
// of a row at a time, a lane to a query. For every row of the tile, first the lanes make the
// weights of the window row that falls on it, then, now each an owner of results, gather them.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

// Distance between the channels of two queries: lanes that gather four channels each for two
// neighbouring pairs of columns read queries two apart, from different banks.
template <int CP>
constexpr int kGradStride = CP == 16 ? CP + 8 : CP + 4;

template <int CP, typename T>
struct ValueGradMemory {
  float *folded, *weights, *sums, *grad_out;
  int64_t floats;

  OVERLOCK_HOST_DEVICE ValueGradMemory(const Arguments<T>& a, float* shared) {
    folded = shared;                                   // [K*K, kChannelStride]
    weights = folded + a.taps() * kChannelStride<CP>;  // [weight_columns, kThreads]
    sums = weights + weight_columns(a) * kThreads;     // [kTileRows, kTileColumns, CP]
    grad_out = sums + kTokens * CP;                    // [kThreads, kGradStride]
    floats = grad_out - shared + kThreads * kGradStride<CP>;
  }
  // Columns of the map that the windows of a tile's queries touch.
  static OVERLOCK_HOST_DEVICE int weight_columns(const Arguments<T>& a) {
    return kTileColumns + 2 * (a.kernel_size - 1);
  }
};

// A row of queries that a block visits together.
struct Queries {
  int row, first_column, last_column;

  OVERLOCK_KERNEL_BODY Token token(int thread) const {
    return {row, first_column + thread, first_column + thread <= last_column};
  }
};

template <int CP>
struct QueryState {
  Vector<CP> query;
  float logsumexp;  // in base 2
};

// Weights that a query gives to a map row, in the places of their columns.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void write_weights(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                        const Tile& tile, const Token& token, int tap_row,
                                        int thread, const QueryState<CP>& state) {
  const float* bias = a.bias_row(tile.group, token.y, token.x, tap_row);
  const float* folded = memory.folded + tap_row * a.kernel_size * kChannelStride<CP>;
  const int column = a.start_column(token.x) - (tile.first_column - a.kernel_size + 1);
  float* weights = memory.weights + column * kThreads + thread;
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= a.kernel_size) continue;
    const float* row = folded + tap * kChannelStride<CP>;
    const float start = row[CP] - state.logsumexp + kLog2E * bias[tap];
    weights[tap * kThreads] = exp2_of(dot(state.query, row, start));
  }
}

// Adds what a row of queries contributes to four channels of two columns of a map row.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void gather(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                 const Queries& queries, const Tile& tile, int row, int thread) {
  constexpr int kFours = CP / 4;
  for (int i = thread; i < kPairColumns * kFours; i += kThreads) {
    const int column = i / kFours * 2;
    const int channel = i % kFours * 4;
    const int left = tile.first_column + column;
    if (left >= a.width) continue;
    const int right = left + 1 < a.width ? left + 1 : left;
    int first = inverse_first(left, a.kernel_size);
    int last = inverse_last(right, a.width, a.kernel_size);
    first = first > queries.first_column ? first : queries.first_column;
    last = last < queries.last_column ? last : queries.last_column;
    float* target = memory.sums + (row * kTileColumns + column) * CP + channel;
    Float4 sums[2] = {load4(target), load4(target + CP)};
    const float* weights = memory.weights + (column + a.kernel_size - 1) * kThreads;
    for (int x = first; x <= last; ++x) {
      const int query = x - queries.first_column;
      const Float4 grad_out = load4(memory.grad_out + query * kGradStride<CP> + channel);
      OVERLOCK_UNROLL
      for (int side = 0; side < 2; ++side) {
        const float weight = weights[side * kThreads + query];
        OVERLOCK_UNROLL
        for (int j = 0; j < 4; ++j) sums[side].v[j] += weight * grad_out.v[j];
      }
    }
    *reinterpret_cast<Float4*>(target) = sums[0];
    *reinterpret_cast<Float4*>(target + CP) = sums[1];
  }
}

// One block per tile, group and batch: index counts tiles, then groups, then batches.
template <int CP, int K, typename Block, typename T>
OVERLOCK_KERNEL_BODY void value_grad_block(Block& block, const Arguments<T>& arguments,
                                           const Map<const T>& grad_out, const float* logsumexp,
                                           const Map<T>& d_value, int64_t index, float* shared) {
  const Arguments<T> a = with_window<K>(arguments);
  const ValueGradMemory<CP, T> memory(a, shared);
  const int64_t pair = index / a.tiles();
  const Tile tile = Tile::of(a, pair, static_cast<int>(index % a.tiles()));
  const int end_row = tile.first_row + kTileRows < a.height ? tile.first_row + kTileRows : a.height;
  const int end_column =
      tile.first_column + kTileColumns < a.width ? tile.first_column + kTileColumns : a.width;
  const int first_row = inverse_first(tile.first_row, a.kernel_size);
  const int first_column = inverse_first(tile.first_column, a.kernel_size);
  const int last_row = inverse_last(end_row - 1, a.height, a.kernel_size);
  const int last_column = inverse_last(end_column - 1, a.width, a.kernel_size);
  typename Block::template PerThread<QueryState<CP>> states;

  block.phase([&](int thread) {
    for (int tap_row = 0; tap_row < a.kernel_size; ++tap_row) {
      stage_folded<CP>(a, tile, tap_row, thread,
                       memory.folded + tap_row * a.kernel_size * kChannelStride<CP>);
    }
    for (int i = thread; i < kTokens * CP; i += kThreads) memory.sums[i] = 0.f;
  });
  for (int column = first_column; column <= last_column; column += kThreads) {
    // A query always meets the same columns. The weights of the others stay zero.
    block.phase([&](int thread) {
      for (int i = 0; i < ValueGradMemory<CP, T>::weight_columns(a); ++i) {
        memory.weights[i * kThreads + thread] = 0.f;
      }
    });
    for (int y = first_row; y <= last_row; ++y) {
      const int end_query = column + kThreads - 1;
      const Queries queries = {y, column, last_column < end_query ? last_column : end_query};
      block.phase([&](int thread) {
        const Token token = queries.token(thread);
        if (!token.valid) return;
        states[thread].query =
            load_channels<CP>(a.query, tile.batch, tile.group, token, a.query_channels);
        states[thread].logsumexp =
            kLog2E * logsumexp[(pair * a.height + token.y) * a.width + token.x];
        const Vector<CP> grad =
            load_channels<CP>(grad_out, tile.batch, tile.group, token, a.channels);
        OVERLOCK_UNROLL
        for (int c = 0; c < CP; ++c) memory.grad_out[thread * kGradStride<CP> + c] = grad.v[c];
      });
      const int start = a.start_row(y);
      const int begin = start > tile.first_row ? start : tile.first_row;
      const int end = start + a.kernel_size < end_row ? start + a.kernel_size : end_row;
      for (int target = begin; target < end; ++target) {
        block.phase([&](int thread) {
          const Token token = queries.token(thread);
          if (!token.valid) return;
          write_weights<CP, K>(a, memory, tile, token, target - start, thread, states[thread]);
        });
        block.phase(
            [&](int thread) { gather(a, memory, queries, tile, target - tile.first_row, thread); });
      }
    }
  }
  block.phase([&](int thread) {
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) {
      const Token token = tile.token(a, thread, side);
      if (!token.valid) continue;
      Vector<CP> sum;
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; c += 4) {
        const Float4 four = load4(memory.sums + (2 * thread + side) * CP + c);
        OVERLOCK_UNROLL
        for (int j = 0; j < 4; ++j) sum.v[c + j] = four.v[j];
      }
      store_channels(d_value, tile.batch, tile.group, token, a.channels, sum, 1.f);
    }
  });
}

}  // namespace overlock
