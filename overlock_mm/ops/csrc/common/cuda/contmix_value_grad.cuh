// Backward pass of ContMix, gradient of the values: a gather over the windows that hold a
// token, which are those of an interval of rows and columns. No atomics.
//
// A block owns a tile of the value map. It visits the queries whose windows reach it, 32 at a
// time, a lane to a query. For every row of the tile, first the lanes make the weights of the
// window rows that fall on it, then, now each an owner of results, gather them.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

// Distance between the channels of two queries: lanes that gather four channels each for two
// neighbouring pairs of columns read queries two apart, from different banks.
template <int CP>
constexpr int kGradStride = CP == 8 ? CP + 4 : CP + 8;

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

// Queries that a block visits together: one row of 32 columns or, where the map is narrow, two
// of 16 or four of 8.
struct QueryPatch {
  int first_row, first_column, last_row, last_column;
  int bits;  // of a column's number in the patch

  static OVERLOCK_KERNEL_BODY int bits_for(int columns) {
    return columns <= 8 ? 3 : columns <= 16 ? 4 : 5;
  }
  OVERLOCK_KERNEL_BODY int columns() const { return 1 << bits; }
  OVERLOCK_KERNEL_BODY int rows() const { return kThreads >> bits; }
  OVERLOCK_KERNEL_BODY int row_of(int thread) const { return thread >> bits; }
  OVERLOCK_KERNEL_BODY Token token(int thread) const {
    const int y = first_row + row_of(thread), x = first_column + (thread & (columns() - 1));
    return {y, x, y <= last_row && x <= last_column};
  }
  // Row of the window of the queries in patch row `row` that falls on map row y, -1 if none.
  template <typename T>
  OVERLOCK_KERNEL_BODY int tap_row(const Arguments<T>& a, int row, int y) const {
    const int query_row = first_row + row;
    const int tap = query_row <= last_row ? y - a.start_row(query_row) : -1;
    return tap < a.kernel_size ? tap : -1;
  }
};

// A query of the next patch, loaded while the lane works for this one.
template <int CP, typename T>
struct LoadedQuery {
  RawChannels<CP, T> query, grad_out;
  float logsumexp;
};

// What a lane keeps of its query, and of the two columns that it gathers.
template <int CP>
struct QueryState {
  Vector<CP> query;
  float logsumexp;  // in base 2
  int bias;         // place of its first bias
  int place;        // of its first weight
  int first, last;  // columns of the patch that reach the two columns, counted in the patch
};

// Threads that gather the same two columns, four channels at a time each.
constexpr int kGatherers = kThreads / kPairColumns;

// Weights that a query gives to a map row, in the places of their columns.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void write_weights(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                        int tap_row, const QueryState<CP>& state) {
  const float* bias = a.rpb + state.bias + tap_row * a.side();
  const float* folded = memory.folded + tap_row * a.kernel_size * kChannelStride<CP>;
  float* weights = memory.weights + state.place;
  // All logits before the first store, for which the loads of the next would have to wait.
  float logits[kMaxTaps<K>];
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= a.kernel_size) continue;
    const float* row = folded + tap * kChannelStride<CP>;
    const float start = row[CP] - state.logsumexp + kLog2E * bias[tap];
    logits[tap] = dot(state.query, load_vector<CP>(row), start);
  }
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap < a.kernel_size) weights[tap * kThreads] = exp2_of(logits[tap]);
  }
}

// Finds the queries of a patch that reach the two columns of a thread.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void set_gathered(const Arguments<T>& a, const QueryPatch& patch,
                                       const Tile& tile, int thread, QueryState<CP>& state) {
  const int left = tile.first_column + thread / kGatherers * 2;
  const int right = left + 1 < a.width ? left + 1 : left;
  const int first = inverse_first(left, a.kernel_size) - patch.first_column;
  const int last = inverse_last(right, a.width, a.kernel_size) - patch.first_column;
  state.first = first > 0 ? first : 0;
  state.last = left >= a.width ? -1 : last < patch.columns() ? last : patch.columns() - 1;
}

// Adds what a patch of queries contributes to some channels of two columns of map row y.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void gather(const Arguments<T>& a, const ValueGradMemory<CP, T>& memory,
                                 const QueryPatch& patch, const Tile& tile, int y, int thread,
                                 const QueryState<CP>& state) {
  // Away from the border, K + 1 queries of a row reach the two columns.
  [[maybe_unused]] constexpr int kHalf = (kMaxTaps<K> + 1) / 2;
  const int column = thread / kGatherers * 2;
  const float* weights = memory.weights + (column + a.kernel_size - 1) * kThreads;
  for (int channel = thread % kGatherers * 4; channel < CP; channel += 4 * kGatherers) {
    float* target = memory.sums + ((y - tile.first_row) * kTileColumns + column) * CP + channel;
    Float4 sums[2] = {load4(target), load4(target + CP)};
    for (int row = 0; row < patch.rows(); ++row) {
      if (patch.tap_row(a, row, y) < 0) continue;
      const int start = row * patch.columns();
      OVERLOCK_UNROLL_BY(kHalf)
      for (int query = start + state.first; query <= start + state.last; ++query) {
        const Float4 grad_out = load4(memory.grad_out + query * kGradStride<CP> + channel);
        OVERLOCK_UNROLL
        for (int side = 0; side < 2; ++side) {
          const float weight = weights[side * kThreads + query];
          OVERLOCK_UNROLL
          for (int j = 0; j < 4; ++j) sums[side].v[j] += weight * grad_out.v[j];
        }
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
  const int pair = static_cast<int>(index / a.tiles());
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
  typename Block::template PerThread<LoadedQuery<CP, T>> loaded;
  const auto load = [&](const QueryPatch& patch, int thread) {
    const Token token = patch.token(thread);
    if (!token.valid) return;
    using Raw = RawChannels<CP, T>;
    loaded[thread] = {Raw::load(a.query, tile.batch, tile.group, token, a.query_channels),
                      Raw::load(grad_out, tile.batch, tile.group, token, a.channels),
                      logsumexp[(int64_t{pair} * a.height + token.y) * a.width + token.x]};
  };

  const int bits = QueryPatch::bits_for(last_column - first_column + 1);
  for (int column = first_column; column <= last_column; column += 1 << bits) {
    // A lane's queries always meet the same columns. The weights of the others stay zero.
    block.phase([&](int thread) {
      for (int i = 0; i < ValueGradMemory<CP, T>::weight_columns(a); ++i) {
        memory.weights[i * kThreads + thread] = 0.f;
      }
      const QueryPatch patch = {first_row, column, last_row, last_column, bits};
      load(patch, thread);
      set_gathered(a, patch, tile, thread, states[thread]);
    });
    for (int row = first_row; row <= last_row; row += kThreads >> bits) {
      const QueryPatch patch = {row, column, last_row, last_column, bits};
      block.phase([&](int thread) {
        const Token token = patch.token(thread);
        if (!token.valid) return;
        QueryState<CP>& state = states[thread];
        state.query = loaded[thread].query.floats();
        state.logsumexp = kLog2E * loaded[thread].logsumexp;
        state.bias = a.bias_place(tile.group, token.y, token.x);
        state.place =
            (a.start_column(token.x) - (tile.first_column - a.kernel_size + 1)) * kThreads + thread;
        const Vector<CP> grad = loaded[thread].grad_out.floats();
        float* target = memory.grad_out + thread * kGradStride<CP>;
        OVERLOCK_UNROLL
        for (int c = 0; c < CP; ++c) target[c] = grad.v[c];
        load({row + patch.rows(), column, last_row, last_column, bits}, thread);
      });
      // The windows of successive rows of queries overlap.
      const int start = a.start_row(row);
      const int last_patch_row = row + patch.rows() - 1;
      const int end =
          a.start_row(last_patch_row < last_row ? last_patch_row : last_row) + a.kernel_size;
      for (int y = start > tile.first_row ? start : tile.first_row; y < end && y < end_row; ++y) {
        block.phase([&](int thread) {
          const Token token = patch.token(thread);
          const int tap_row = patch.tap_row(a, patch.row_of(thread), y);
          if (tap_row < 0 || !token.valid) return;
          write_weights<CP, K>(a, memory, tap_row, states[thread]);
        });
        block.phase(
            [&](int thread) { gather<CP, K>(a, memory, patch, tile, y, thread, states[thread]); });
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
