// Backward pass of ContMix, the part that each token computes from its own window:
// gradients of the query, of F (see contmix_fold.cuh) and of the position bias.
//
// Logits are recomputed and turned into weights by the saved log-sum-exp; then
//   d_logit = weight * (grad_out . value - grad_out . out).
// A block serves one batch and group and visits its share of the tiles. Sums over tokens stay
// with the block that computes them, in its own float32 buffers, which are summed afterwards.
// There are no atomics, so results are deterministic.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <typename T>
struct TokenGradients {
  Map<const T> grad_out, out;
  const float* logsumexp;  // [B, G, H, W]
  Map<T> d_query;
  float* d_folded;  // [B, G, chunks, K*K, kChannelStride]; column CP: the bias
  float* d_rpb;     // [B, G, chunks, 2K-1, 2K-1]
  int64_t chunks;   // blocks that share the tiles of a batch and group, at most one per tile
};

// Distance between the d_logits of two taps: an odd number of 16-byte words.
constexpr int kTokenStride = kTokens + 4;

template <int CP, typename T>
struct TokenGradMemory {
  float *folded, *values, *d_logits, *queries, *d_rpb;
  int64_t floats;

  OVERLOCK_HOST_DEVICE TokenGradMemory(const Arguments<T>& a, float* shared) {
    folded = shared;  // [K, kChannelStride]
    values = folded + a.kernel_size * kChannelStride<CP>;
    d_logits = values + ValueRing<CP, 0, T>::floats(a);  // [K, kTokenStride]
    queries = d_logits + a.kernel_size * kTokenStride;   // [kTokens, CP]
    d_rpb = queries + kTokens * CP;                      // [2K-1, 2K-1]
    floats = d_rpb - shared + a.side() * a.side();
  }
};

// What a thread keeps of its two tokens.
template <int CP>
struct TokenGradState {
  PairWindow<CP> window;
  Vector<CP> query[2], grad_out[2], d_query[2];
  float logsumexp[2], delta[2];  // in base 2; grad_out . out
  bool valid[2];
};

template <int CP, typename T>
OVERLOCK_KERNEL_BODY TokenGradState<CP> load_state(const Arguments<T>& a,
                                                   const TokenGradients<T>& g, const Tile& tile,
                                                   int thread) {
  TokenGradState<CP> state;
  OVERLOCK_UNROLL
  for (int side = 0; side < 2; ++side) {
    const Token token = tile.token(a, thread, side);
    const auto load = [&](const Map<const T>& map, int channels) {
      return load_channels<CP>(map, tile.batch, tile.group, token, channels);
    };
    state.query[side] = load(a.query, a.query_channels);
    state.grad_out[side] = load(g.grad_out, a.channels);
    state.d_query[side] = Vector<CP>();
    const Vector<CP> out = load(g.out, a.channels);
    state.delta[side] = 0.f;
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) state.delta[side] += state.grad_out[side].v[c] * out.v[c];
    const int64_t row = int64_t{tile.batch * a.groups + tile.group} * a.height + token.y;
    state.logsumexp[side] = kLog2E * g.logsumexp[row * a.width + token.x];
    state.valid[side] = token.valid;
  }
  return state;
}

// d_logits of one window row, kept in shared memory, and their part of d_query.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void row_gradients(const Arguments<T>& a, const float* folded,
                                        const float* values, int tap_row, int thread,
                                        float* d_logits, TokenGradState<CP>& state) {
  const PairWindow<CP>& window = state.window;
  const float* bias[2] = {a.rpb + window.bias[0] + tap_row * a.side(),
                          a.rpb + window.bias[1] + tap_row * a.side()};
  // Stored at the end, as the loads of the next tap would have to wait for a store.
  float results[2][kMaxTaps<K>];
  // Products of grad_out and the values of a column; those of the next column are one tap ahead.
  Vector<CP> value = load_vector<CP>(values + window.place(0));
  float left = dot(state.grad_out[0], value, 0.f), right = dot(state.grad_out[1], value, 0.f);
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= a.kernel_size) continue;
    value = load_vector<CP>(values + window.place(tap + 1));
    const float next_left = dot(state.grad_out[0], value, 0.f);
    const float next_right = dot(state.grad_out[1], value, 0.f);
    const float d_weights[2] = {left, window.shifted ? next_right : right};
    const float* row = folded + tap * kChannelStride<CP>;
    const Vector<CP> factors = load_vector<CP>(row);
    OVERLOCK_UNROLL
    for (int side = 0; side < 2; ++side) {
      const float start = row[CP] - state.logsumexp[side] + kLog2E * bias[side][tap];
      const float weight = exp2_of(dot(state.query[side], factors, start));
      const float d_logit =
          state.valid[side] ? weight * (d_weights[side] - state.delta[side]) : 0.f;
      results[side][tap] = d_logit;
      add_scaled(state.d_query[side], d_logit, factors);
    }
    left = next_left;
    right = next_right;
  }
  OVERLOCK_UNROLL
  for (int tap = 0; tap < kMaxTaps<K>; ++tap) {
    if (tap >= a.kernel_size) continue;
    float* target = d_logits + tap * kTokenStride + 2 * thread;
    target[0] = results[0][tap];
    target[1] = results[1][tap];
  }
}

// Sums over the tile's tokens of d_logit times query, and of d_logit, for one window row: a
// thread owns some channels of a tap. They are added to rows of d_folded or, for a block's
// first tile, written.
template <int CP, int K, typename T>
OVERLOCK_KERNEL_BODY void add_folded_gradient(const Arguments<T>& a,
                                              const TokenGradMemory<CP, T>& memory, int thread,
                                              bool first, float* d_folded) {
  constexpr int kFewestLanes = 4 * kThreads / CP;
  constexpr int kLanes = kMaxTaps<K> > 16 || kFewestLanes > 16 ? 32
                         : kMaxTaps<K> > 8 || kFewestLanes > 8 ? 16
                                                               : 8;
  constexpr int kChannels = CP * kLanes / kThreads;
  static_assert(kChannels % 4 == 0 && kMaxTaps<K> <= kLanes, "");
  const int tap = thread % kLanes;
  if (tap >= a.kernel_size) return;
  const int channel = thread / kLanes * kChannels;
  float* row = d_folded + tap * kChannelStride<CP>;
  // Loaded here, so that the sums below do not wait.
  Vector<kChannels> before{};
  float bias_before = 0.f;
  if (!first) {
    before = load_vector<kChannels>(row + channel);
    bias_before = row[CP];
  }
  Vector<kChannels> sum{};
  float bias = 0.f;
  for (int token = 0; token < kTokens; token += 4) {
    const Float4 d_logits = load4(memory.d_logits + tap * kTokenStride + token);
    OVERLOCK_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float* query = memory.queries + (token + j) * CP + channel;
      add_scaled(sum, d_logits.v[j], load_vector<kChannels>(query));
      bias += d_logits.v[j];
    }
  }
  add_scaled(sum, 1.f, before);
  store_vector(row + channel, sum);
  if (channel == 0) row[CP] = bias_before + bias;
}

// Adds the d_logits of one window row to the gradient of the position bias. A thread owns a
// column of the bias: token rows often share a row of it.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void add_bias_gradient(const Arguments<T>& a,
                                            const TokenGradMemory<CP, T>& memory, const Tile& tile,
                                            int tap_row, int thread) {
  const int most = a.width - tile.first_column;
  const int columns = most < kTileColumns ? most : kTileColumns;
  const int first_offset = a.bias_offset(tile.first_column, a.width);
  // Offsets only fall from left to right.
  const bool one_offset = first_offset == a.bias_offset(tile.first_column + columns - 1, a.width);
  for (int column = thread; column < a.side(); column += kThreads) {
    // Over the tokens of each row; invalid tokens have gradients of zero.
    Vector<kTileRows> sums{};
    if (one_offset) {
      // Away from the border all tokens meet the column with the same tap.
      const int tap = column - first_offset;
      if (tap < 0 || tap >= a.kernel_size) continue;
      OVERLOCK_UNROLL
      for (int row = 0; row < kTileRows; ++row) {
        const float* d_logits = memory.d_logits + tap * kTokenStride + row * kTileColumns;
        const Vector<kTileColumns> tokens = load_vector<kTileColumns>(d_logits);
        OVERLOCK_UNROLL
        for (int t = 0; t < kTileColumns; ++t) sums.v[row] += tokens.v[t];
      }
    } else {
      for (int t = 0; t < columns; ++t) {
        const int tap = column - a.bias_offset(tile.first_column + t, a.width);
        if (tap < 0 || tap >= a.kernel_size) continue;
        OVERLOCK_UNROLL
        for (int row = 0; row < kTileRows; ++row) {
          sums.v[row] += memory.d_logits[tap * kTokenStride + row * kTileColumns + t];
        }
      }
    }
    float sum = 0.f;
    OVERLOCK_UNROLL
    for (int row = 0; row < kTileRows; ++row) {
      const int y = tile.first_row + row;
      if (y >= a.height) break;
      sum += sums.v[row];
      const int offset = a.bias_offset(y, a.height);
      const bool last = row + 1 == kTileRows || y + 1 == a.height;
      if (!last && a.bias_offset(y + 1, a.height) == offset) continue;
      memory.d_rpb[(offset + tap_row) * a.side() + column] += sum;
      sum = 0.f;
    }
  }
}

// B * G * chunks blocks; index counts chunks, then groups, then batches.
template <int CP, int K, typename Block, typename T>
OVERLOCK_KERNEL_BODY void token_grad_block(Block& block, const Arguments<T>& arguments,
                                           const TokenGradients<T>& g, int64_t index,
                                           float* shared) {
  const Arguments<T> a = with_window<K>(arguments);
  const TokenGradMemory<CP, T> memory(a, shared);
  const int pair = static_cast<int>(index / g.chunks);
  const int first_tile = static_cast<int>(index % g.chunks);
  float* d_folded = g.d_folded + index * a.taps() * kChannelStride<CP>;
  typename Block::template PerThread<TokenGradState<CP>> states;

  block.phase([&](int thread) {
    for (int i = thread; i < a.side() * a.side(); i += kThreads) memory.d_rpb[i] = 0.f;
  });
  for (int i = first_tile; i < a.tiles(); i += static_cast<int>(g.chunks)) {
    const Tile tile = Tile::of(a, pair, i);
    const ValueRing<CP, K, T> ring(a, tile, memory.values);
    block.phase([&](int thread) {
      stage_folded<CP>(a, tile, 0, thread, memory.folded);
      ring.stage_first(tile, thread);
      states[thread] = load_state<CP>(a, g, tile, thread);
      states[thread].window = PairWindow<CP>::of(ring, tile, thread);
      OVERLOCK_UNROLL
      for (int side = 0; side < 2; ++side) {
        OVERLOCK_UNROLL
        for (int c = 0; c < CP; ++c) {
          memory.queries[(2 * thread + side) * CP + c] = states[thread].query[side].v[c];
        }
      }
    });
    for (int tap_row = 0; tap_row < a.kernel_size; ++tap_row) {
      block.phase([&](int thread) {
        const int y = states[thread].window.first_row + tap_row;
        row_gradients<CP, K>(a, memory.folded, ring.row(y), tap_row, thread, memory.d_logits,
                             states[thread]);
      });
      block.phase([&](int thread) {
        const int next = ring.last_row + tap_row + 1;
        const bool more = tap_row + 1 < a.kernel_size;
        CarriedRow<CP, K, T> carried;
        if (more) {
          stage_folded<CP>(a, tile, tap_row + 1, thread, memory.folded);
          carried = ring.load(next, thread);
        }
        add_folded_gradient<CP, K>(a, memory, thread, i == first_tile,
                                   d_folded + tap_row * a.kernel_size * kChannelStride<CP>);
        add_bias_gradient(a, memory, tile, tap_row, thread);
        if (more) ring.store(next, thread, carried);
      });
    }
    block.phase([&](int thread) {
      OVERLOCK_UNROLL
      for (int side = 0; side < 2; ++side) {
        const Token token = tile.token(a, thread, side);
        if (!token.valid) continue;
        store_channels(g.d_query, tile.batch, tile.group, token, a.query_channels,
                       states[thread].d_query[side], kLn2);
      }
    });
  }
  block.phase([&](int thread) {
    float* d_rpb = g.d_rpb + index * a.side() * a.side();
    for (int i = thread; i < a.side() * a.side(); i += kThreads) d_rpb[i] = memory.d_rpb[i];
  });
}

}  // namespace overlock
