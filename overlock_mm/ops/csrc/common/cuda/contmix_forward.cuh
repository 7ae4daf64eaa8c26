// Forward pass of ContMix: one thread per token, softmax taken online, row by row.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <int CP, typename T>
struct ForwardMemory {
  float *keys, *projection, *logits, *values;
  int64_t floats;

  OVERLOCK_HOST_DEVICE ForwardMemory(const Arguments<T>& a, float* shared) {
    keys = shared;
    projection = keys + a.query_channels * kRegions;
    logits = projection + a.kernel_size * kRegions;
    values = logits + a.kernel_size * kThreads;
    floats = values - shared + kTileRows * a.staged_columns() * kChannelStride<CP>;
  }
};

// One block per tile, group and batch: index counts tiles, then groups, then batches.
// Writes `out` and logsumexp [B, G, H, W].
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void forward_block(Block& block, const Arguments<T>& a, const Map<T>& out,
                                        float* logsumexp, int64_t index, float* shared) {
  const ForwardMemory<CP, T> memory(a, shared);
  const int64_t pair = index / a.tiles();
  const Tile tile =
      Tile::of(a, pair / a.groups, pair % a.groups, static_cast<int>(index % a.tiles()));
  const int kernel_size = a.kernel_size;

  typename Block::template PerThread<Vector<kRegions>> affinities;
  typename Block::template PerThread<Vector<CP>> sums;
  typename Block::template PerThread<float> maxima, totals;

  block.phase([&](int thread) { stage_keys(a, tile.batch, tile.group, thread, memory.keys); });
  block.phase([&](int thread) {
    const Token token = tile.token(a, thread);
    affinities[thread] = affinity_of(a, tile.batch, tile.group, token.y, token.x, memory.keys);
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) sums[thread].v[c] = 0.f;
    maxima[thread] = -INFINITY;
    totals[thread] = 0.f;
  });
  for (int tap_row = 0; tap_row < kernel_size; ++tap_row) {
    block.phase([&](int thread) {
      stage_projection(a, tap_row, thread, kThreads, memory.projection);
      stage_values<CP>(a, tile, tap_row, thread, memory.values);
    });
    block.phase([&](int thread) {
      const Token token = tile.token(a, thread);
      const float* bias = a.bias_row(tile.group, token.y, token.x, tap_row);
      // A column per thread: only its owner reads it.
      float* logits = memory.logits + thread;
      float largest = maxima[thread];
      for (int tap = 0; tap < kernel_size; ++tap) {
        const float start = a.proj_bias[tap_row * kernel_size + tap] + bias[tap];
        const float logit = dot(affinities[thread], memory.projection + tap * kRegions, start);
        logits[tap * kThreads] = logit;
        largest = fmaxf(largest, logit);
      }
      const float rescale = expf(maxima[thread] - largest);
      maxima[thread] = largest;
      totals[thread] *= rescale;
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; ++c) sums[thread].v[c] *= rescale;
      const float* neighbour = staged_window<CP>(a, tile, token, memory.values);
      for (int tap = 0; tap < kernel_size; ++tap) {
        const float weight = expf(logits[tap * kThreads] - largest);
        totals[thread] += weight;
        add_scaled(sums[thread], weight, neighbour + tap * kChannelStride<CP>);
      }
    });
  }
  block.phase([&](int thread) {
    const Token token = tile.token(a, thread);
    if (!token.valid) return;
    T* target = out.at(tile.batch, tile.group, token.y, token.x);
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) {
      if (c < a.channels) {
        target[c * out.channel] = static_cast<T>(sums[thread].v[c] / totals[thread]);
      }
    }
    logsumexp[(pair * a.height + token.y) * a.width + token.x] =
        maxima[thread] + logf(totals[thread]);
  });
}

}  // namespace overlock
