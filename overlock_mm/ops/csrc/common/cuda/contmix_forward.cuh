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
    floats = values - shared + ValueRing<CP, 0, T>::floats(a);
  }
  OVERLOCK_KERNEL_BODY float* folded_row(const Arguments<T>& a, int tap_row) const {
    return folded + tap_row % 2 * a.kernel_size * kChannelStride<CP>;
  }
};

// What a thread keeps of its two tokens.
template <int CP>
struct ForwardState {
  PairWindow<CP> window;
  Vector<CP> query[2], sum[2];
  float largest[2], total[2];
};

// Adds what one window row gives to a thread's two tokens.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void forward_row(const Arguments<T>& a, int tap_row, const float* folded,
                                      const float* values, ForwardState<CP>& state) {
  const int kernel_size = a.kernel_size;
  float logits[2][kMaxTaps<K> + 1];
  OVERLOCK_UNROLL
  for (int side = 0; side < 2; ++side) {
    const float* bias = a.rpb + state.window.bias[side] + tap_row * a.side();
    OVERLOCK_UNROLL
    for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
      if (tap < kernel_size) logits[side][tap] = kLog2E * bias[tap];
    }
  }
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= kernel_size) continue;
    const float* row = folded + tap * kChannelStride<CP>;
    const Vector<CP> factors = load_vector<CP>(row);
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) {
      logits[side][tap] = dot(state.query[side], factors, logits[side][tap] + row[CP]);
    }
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
  OVERLOCK_UNROLL
  for (int tap = 0; tap <= kMaxTaps<K>; ++tap) {
    if (tap > kernel_size) continue;
    const float left = tap < kernel_size ? logits[0][tap] : 0.f;
    const float shifted = tap > 0 ? logits[1][tap - 1] : 0.f;
    const float aligned = tap < kernel_size ? logits[1][tap] : 0.f;
    const float right = state.window.shifted ? shifted : aligned;
    const Vector<CP> value = load_vector<CP>(values + state.window.place(tap));
    add_scaled(state.sum[0], left, value);
    add_scaled(state.sum[1], right, value);
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
  const int pair = static_cast<int>(index / a.tiles());
  const Tile tile = Tile::of(a, pair, static_cast<int>(index % a.tiles()));
  const ValueRing<CP, K, T> ring(a, tile, memory.values);
  typename Block::template PerThread<ForwardState<CP>> states;

  block.phase([&](int thread) {
    stage_folded<CP>(a, tile, 0, thread, memory.folded);
    ring.stage_first(tile, thread);
    states[thread].window = PairWindow<CP>::of(ring, tile, thread);
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
      ForwardState<CP>& state = states[thread];
      const int next = ring.last_row + tap_row + 1;
      const bool more = tap_row + 1 < a.kernel_size;
      CarriedRow<CP, K, T> carried;
      if (more) {
        stage_folded<CP>(a, tile, tap_row + 1, thread, memory.folded_row(a, tap_row + 1));
        carried = ring.load(next, thread);
      }
      forward_row<CP, K>(a, tap_row, memory.folded_row(a, tap_row),
                         ring.row(state.window.first_row + tap_row), state);
      if (more) ring.store(next, thread, carried);
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
      logsumexp[(int64_t{pair} * a.height + token.y) * a.width + token.x] =
          kLn2 * state.largest[side] + logf(state.total[side]);
    }
  });
}

}  // namespace overlock
