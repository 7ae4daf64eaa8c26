// Backward pass of ContMix, the part that each token computes from its own window:
// gradients of query and key, and of the parameters.
//
// Logits are recomputed and turned into weights by the saved log-sum-exp; then
//   d_logit = weight * (grad_out . value - grad_out . out).
// A block serves one group and visits its share of all tiles. Sums over tokens stay with
// the block that computes them, in its own float32 buffers, which are summed afterwards.
// There are no atomics, so results are deterministic.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <typename T>
struct TokenGradients {
  Map<const T> grad_out, out;
  const float* logsumexp;  // [B, G, H, W]
  Map<T> d_query;
  float* d_key;         // [B, G, tiles, Cq, S], written
  float* d_projection;  // [chunks, G, K*K, kRegionStride], added to; column kRegions: proj_bias
  float* d_rpb;         // [chunks, G, 2K-1, 2K-1], added to
  int64_t chunks;
};

template <int CP, typename T>
struct TokenGradMemory {
  float *keys, *projection, *d_logits, *affinity, *bias_sums, *values, *query;
  int64_t floats;

  OVERLOCK_HOST_DEVICE TokenGradMemory(const Arguments<T>& a, float* shared) {
    keys = shared;
    projection = keys + a.query_channels * kRegions;
    d_logits = projection + a.kernel_size * kRegions;  // [K, kThreads]
    affinity = d_logits + a.kernel_size * kThreads;    // [kThreads, kRegionStride]
    bias_sums = affinity + kThreads * kRegionStride;   // [kTileRows, 2K]
    values = bias_sums + kTileRows * 2 * a.kernel_size;
    // Values are no longer needed when the queries are.
    query = values;  // [Cq, kThreads]
    const int64_t value_floats = kTileRows * a.staged_columns() * kChannelStride<CP>;
    const int64_t query_floats = a.query_channels * kThreads;
    floats = values - shared + (value_floats > query_floats ? value_floats : query_floats);
  }
};

// d_logits of one window row, kept in shared memory, and their part of d_affinity.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void row_gradients(const Arguments<T>& a, const TokenGradMemory<CP, T>& memory,
                                        const Tile& tile, const Token& token, int tap_row,
                                        int thread, const Vector<kRegions>& affinity,
                                        const Vector<CP>& grad_out, float logsumexp, float delta,
                                        Vector<kRegions>& d_affinity) {
  const float* bias = a.bias_row(tile.group, token.y, token.x, tap_row);
  const float* neighbour = staged_window<CP>(a, tile, token, memory.values);
  for (int tap = 0; tap < a.kernel_size; ++tap) {
    const float* projection = memory.projection + tap * kRegions;
    const float start = a.proj_bias[tap_row * a.kernel_size + tap] + bias[tap];
    const float weight = expf(dot(affinity, projection, start) - logsumexp);
    const float d_weight = dot(grad_out, neighbour + tap * kChannelStride<CP>, 0.f);
    const float d_logit = token.valid ? weight * (d_weight - delta) : 0.f;
    memory.d_logits[tap * kThreads + thread] = d_logit;
    add_scaled(d_affinity, d_logit, projection);
  }
}

// Sums over the tile's tokens of d_logit times affinity, added to rows of d_projection.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void add_projection_gradient(const Arguments<T>& a,
                                                  const TokenGradMemory<CP, T>& memory, int thread,
                                                  float* d_projection) {
  constexpr int kFours = kRegionStride / 4;
  for (int i = thread; i < a.kernel_size * kFours; i += kThreads) {
    const int tap = i / kFours;
    const int region = i % kFours * 4;
    Float4* target = reinterpret_cast<Float4*>(d_projection + tap * kRegionStride + region);
    Float4 sum = *target;
    for (int t = 0; t < kThreads; ++t) {
      const float d_logit = memory.d_logits[tap * kThreads + t];
      const Float4 affinity = load4(memory.affinity + t * kRegionStride + region);
      OVERLOCK_UNROLL
      for (int j = 0; j < 4; ++j) sum.v[j] += d_logit * affinity.v[j];
    }
    *target = sum;
  }
}

// Sums over the tokens of each tile row by column of the position bias.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void sum_bias_rows(const Arguments<T>& a, const TokenGradMemory<CP, T>& memory,
                                        const Tile& tile, int thread) {
  const int side = 2 * a.kernel_size - 1;
  for (int i = thread; i < kTileRows * side; i += kThreads) {
    const int row = i / side;
    const int column = i % side;
    float sum = 0.f;
    for (int t = 0; t < kTileColumns && tile.first_column + t < a.width; ++t) {
      const int x = tile.first_column + t;
      const int tap = column - (a.start_column(x) - x + a.kernel_size - 1);
      if (tap >= 0 && tap < a.kernel_size) {
        sum += memory.d_logits[tap * kThreads + row * kTileColumns + t];
      }
    }
    memory.bias_sums[row * 2 * a.kernel_size + column] = sum;
  }
}

// Those sums, added to the rows of the position bias that the tile rows meet.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void add_bias_gradient(const Arguments<T>& a,
                                            const TokenGradMemory<CP, T>& memory, const Tile& tile,
                                            int tap_row, int thread, float* d_rpb) {
  const int side = 2 * a.kernel_size - 1;
  // One thread owns a column: tile rows often share a row of the bias.
  for (int column = thread; column < side; column += kThreads) {
    for (int row = 0; row < kTileRows && tile.first_row + row < a.height; ++row) {
      const int y = tile.first_row + row;
      const int bias_row = a.start_row(y) - y + tap_row + a.kernel_size - 1;
      d_rpb[bias_row * side + column] += memory.bias_sums[row * 2 * a.kernel_size + column];
    }
  }
}

// d_key of one tile: sums over tokens of query times d_affinity, which has replaced affinity.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void write_key_gradient(const Arguments<T>& a,
                                             const TokenGradMemory<CP, T>& memory, int thread,
                                             float* d_key) {
  constexpr int kFours = kRegions / 4;
  for (int i = thread; i < a.query_channels * kFours; i += kThreads) {
    const int channel = i / kFours;
    const int region = i % kFours * 4;
    Float4 sum = {{0.f, 0.f, 0.f, 0.f}};
    for (int t = 0; t < kThreads; ++t) {
      const float query = memory.query[channel * kThreads + t];
      const Float4 d_affinity = load4(memory.affinity + t * kRegionStride + region);
      OVERLOCK_UNROLL
      for (int j = 0; j < 4; ++j) sum.v[j] += query * d_affinity.v[j];
    }
    for (int j = 0; j < 4 && region + j < a.regions; ++j) {
      d_key[channel * a.regions + region + j] = sum.v[j];
    }
  }
}

// chunks * G blocks; index counts groups, then chunks.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void token_grad_block(Block& block, const Arguments<T>& a,
                                           const TokenGradients<T>& g, int64_t index,
                                           float* shared) {
  const TokenGradMemory<CP, T> memory(a, shared);
  const int64_t group = index % a.groups;
  const int taps = a.kernel_size * a.kernel_size;
  const int side = 2 * a.kernel_size - 1;
  float* d_projection = g.d_projection + index * taps * kRegionStride;
  float* d_rpb = g.d_rpb + index * side * side;

  typename Block::template PerThread<Vector<kRegions>> affinities, d_affinities;
  typename Block::template PerThread<Vector<CP>> grads_out;
  typename Block::template PerThread<float> logsumexps, deltas;

  for (int64_t item = index / a.groups; item < a.batches * a.tiles(); item += g.chunks) {
    const int tile_index = static_cast<int>(item % a.tiles());
    const Tile tile = Tile::of(a, item / a.tiles(), group, tile_index);
    const int64_t pair = tile.batch * a.groups + group;

    block.phase([&](int thread) { stage_keys(a, tile.batch, group, thread, memory.keys); });
    block.phase([&](int thread) {
      const Token token = tile.token(a, thread);
      affinities[thread] = affinity_of(a, tile.batch, group, token.y, token.x, memory.keys);
      grads_out[thread] = load_channels<CP>(g.grad_out, tile, token, a.channels);
      const Vector<CP> out = load_channels<CP>(g.out, tile, token, a.channels);
      deltas[thread] = 0.f;
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; ++c) deltas[thread] += grads_out[thread].v[c] * out.v[c];
      logsumexps[thread] = g.logsumexp[(pair * a.height + token.y) * a.width + token.x];
      float* affinity = memory.affinity + thread * kRegionStride;
      OVERLOCK_UNROLL
      for (int s = 0; s < kRegions; ++s) {
        affinity[s] = affinities[thread].v[s];
        d_affinities[thread].v[s] = 0.f;
      }
      // The bias is the weight of one more region, whose affinity is always one.
      OVERLOCK_UNROLL
      for (int s = kRegions; s < kRegionStride; ++s) affinity[s] = s == kRegions ? 1.f : 0.f;
    });
    for (int tap_row = 0; tap_row < a.kernel_size; ++tap_row) {
      block.phase([&](int thread) {
        stage_projection(a, tap_row, thread, kThreads, memory.projection);
        stage_values<CP>(a, tile, tap_row, thread, memory.values);
      });
      block.phase([&](int thread) {
        row_gradients(a, memory, tile, tile.token(a, thread), tap_row, thread, affinities[thread],
                      grads_out[thread], logsumexps[thread], deltas[thread], d_affinities[thread]);
      });
      block.phase([&](int thread) {
        float* rows = d_projection + tap_row * a.kernel_size * kRegionStride;
        add_projection_gradient(a, memory, thread, rows);
        sum_bias_rows(a, memory, tile, thread);
      });
      block.phase([&](int thread) { add_bias_gradient(a, memory, tile, tap_row, thread, d_rpb); });
    }
    block.phase([&](int thread) {
      const Token token = tile.token(a, thread);
      float* d_affinity = memory.affinity + thread * kRegionStride;
      OVERLOCK_UNROLL
      for (int s = 0; s < kRegions; ++s) {
        d_affinities[thread].v[s] *= a.scale;
        d_affinity[s] = d_affinities[thread].v[s];
      }
      const T* query = a.query.at(tile.batch, group, token.y, token.x);
      T* d_query = g.d_query.at(tile.batch, group, token.y, token.x);
      for (int c = 0; c < a.query_channels; ++c) {
        memory.query[c * kThreads + thread] = static_cast<float>(query[c * a.query.channel]);
        if (token.valid) {
          d_query[c * g.d_query.channel] =
              static_cast<T>(dot(d_affinities[thread], memory.keys + c * kRegions, 0.f));
        }
      }
    });
    block.phase([&](int thread) {
      float* d_key = g.d_key + (pair * a.tiles() + tile_index) * a.query_channels * a.regions;
      write_key_gradient(a, memory, thread, d_key);
    });
  }
}

}  // namespace overlock
