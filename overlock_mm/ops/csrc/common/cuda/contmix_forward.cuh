// Forward pass of ContMix: softmax taken online, row by row.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <int CP, typename T>
struct ForwardMemory {
  float *folded, *values;
  int64_t floats;

  OVERLOCK_HOST_DEVICE ForwardMemory(const Arguments<T>& a, float* shared) {
    folded = shared;  // [2, K, kChannelStride]
    values = folded + 2 * a.kernel_size * kChannelStride<CP>;
    floats = values - shared + ValueRing<CP, T>::floats(a);
  }
  OVERLOCK_KERNEL_BODY float* folded_row(const Arguments<T>& a, int tap_row) const {
    return folded + tap_row % 2 * a.kernel_size * kChannelStride<CP>;
  }
};

// What a thread keeps of its two tokens.
template <int CP>
struct ForwardState {
  Vector<CP> query[2], sum[2];
  float largest[2], total[2];
};

// Adds what one window row gives to a thread's two tokens.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void forward_row(const Arguments<T>& a, const Tile& tile, int tap_row,
                                      int thread, const float* folded, const float* values,
                                      ForwardState<CP>& state) {
  const int kernel_size = a.kernel_size;
  float logits[2][kMaxTaps<K> + 1];
  OVERLOCK_UNROLL
  for (int side = 0; side < 2; ++side) {
    const Token token = tile.token(a, thread, side);
    const float* bias = a.bias_row(tile.group, token.y, token.x, tap_row);
    OVERLOCK_UNROLL
    for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
      if (tap < kernel_size) logits[side][tap] = kLog2E * bias[tap];
    }
  }
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= kernel_size) continue;
    const float* row = folded + tap * kChannelStride<CP>;
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) logits[side][tap] += row[CP];
    dot_pair(state.query, row, logits[0][tap], logits[1][tap]);
  }
  OVERLOCK_UNROLL
  for (int side = 0; side < 2; ++side) {
    float largest = state.largest[side];
    OVERLOCK_UNROLL
    for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
      if (tap < kernel_size) largest = fmaxf(largest, logits[side][tap]);
    }
    const float rescale = exp2_of(state.largest[side] - largest);
    state.largest[side] = largest;
    state.total[side] *= rescale;
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) state.sum[side].v[c] *= rescale;
    OVERLOCK_UNROLL
    for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
      if (tap >= kernel_size) continue;
      logits[side][tap] = exp2_of(logits[side][tap] - largest);
      state.total[side] += logits[side][tap];
    }
  }
  // Weights by column, from the left token's first on.
  const PairWindow<CP> window = PairWindow<CP>::of(a, tile, thread);
  OVERLOCK_UNROLL
  for (int tap = 0; tap <= kMaxTaps<K>; ++tap) {
    if (tap > kernel_size) continue;
    const float left = tap < kernel_size ? logits[0][tap] : 0.f;
    const float shifted = tap > 0 ? logits[1][tap - 1] : 0.f;
    const float aligned = tap < kernel_size ? logits[1][tap] : 0.f;
    const float right = window.shifted ? shifted : aligned;
    const float* value = values + window.place(tap);
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; c += 4) {
      const Float4 four = load4(value + c);
      OVERLOCK_UNROLL
      for (int j = 0; j < 4; ++j) {
        state.sum[0].v[c + j] += left * four.v[j];
        state.sum[1].v[c + j] += right * four.v[j];
      }
    }
  }
}

// One block per tile, group and batch: index counts tiles, then groups, then batches.
// Writes `out` and logsumexp [B, G, H, W].
template <int CP, int K, typename Block, typename T>
OVERLOCK_KERNEL_BODY void forward_block(Block& block, const Arguments<T>& arguments,
                                        const Map<T>& out, float* logsumexp, int64_t index,
                                        float* shared) {
  const Arguments<T> a = with_window<K>(arguments);
  const ForwardMemory<CP, T> memory(a, shared);
  const int64_t pair = index / a.tiles();
  const Tile tile = Tile::of(a, pair, static_cast<int>(index % a.tiles()));
  const int last_row = ValueRing<CP, T>::last_row(a, tile);
  typename Block::template PerThread<ForwardState<CP>> states;

  block.phase([&](int thread) {
    ValueRing<CP, T>::stage_first(a, tile, thread, memory.values);
    stage_folded<CP>(a, tile, 0, thread, memory.folded);
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) {
      ForwardState<CP>& state = states[thread];
      const Token token = tile.token(a, thread, side);
      state.query[side] =
          load_channels<CP>(a.query, tile.batch, tile.group, token, a.query_channels);
      state.sum[side] = Vector<CP>();
      state.largest[side] = -INFINITY;
      state.total[side] = 0.f;
    }
  });
  for (int tap_row = 0; tap_row < a.kernel_size; ++tap_row) {
    block.phase([&](int thread) {
      if (tap_row + 1 < a.kernel_size) {
        ValueRing<CP, T>::stage(a, tile, last_row + tap_row + 1, thread, memory.values);
        stage_folded<CP>(a, tile, tap_row + 1, thread, memory.folded_row(a, tap_row + 1));
      }
      const int y = a.start_row(tile.token(a, thread, 0).y) + tap_row;
      forward_row<CP, K>(a, tile, tap_row, thread, memory.folded_row(a, tap_row),
                         memory.values + y % kRingRows * ValueRing<CP, T>::row_floats(a),
                         states[thread]);
    });
  }
  block.phase([&](int thread) {
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) {
      const ForwardState<CP>& state = states[thread];
      const Token token = tile.token(a, thread, side);
      if (!token.valid) continue;
      store_channels(out, tile.batch, tile.group, token, a.channels, state.sum[side],
                     1.f / state.total[side]);
      logsumexp[(pair * a.height + token.y) * a.width + token.x] =
          kLn2 * state.largest[side] + logf(state.total[side]);
    }
  });
}

}  // namespace overlock
