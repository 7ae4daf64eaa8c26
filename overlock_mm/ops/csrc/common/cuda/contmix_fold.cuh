// Affinity and projection as one matrix, and back:
//   logits[n] = P (K^T (scale * q[n])) + bias = F q[n] + bias  with  F = scale * P K^T,
// with K*K x Cq entries instead of K*K x S for each batch and group. The gradients of P and
// of the keys follow once, at the end, from the gradient of F, which is summed over tokens.
//
// Plain sums in float32: the matrices are too small for the matrix units to matter, and
// a setting that lowers the precision of products must not change logits.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <typename T>
struct Folding {
  // [B, G, Cq, S]: row is the stride of the regions, column is not used.
  Map<const T> key;
  const float* proj_weight;  // [K*K, S], contiguous like all that follow
  const float* proj_bias;    // [K*K]
  int64_t batches, groups;
  int query_channels, regions, taps;
  float scale;

  OVERLOCK_HOST_DEVICE int64_t pairs() const { return batches * groups; }
  OVERLOCK_KERNEL_BODY const T* key_of(int64_t pair) const {
    return key.at(pair / groups, pair % groups, 0, 0);
  }
};

// F in base 2, [B, G, K*K, kChannelStride]: Cq columns, zeros, and the bias in column CP.
// index counts its elements.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void fold_element(const Folding<T>& f, float* folded, int64_t index) {
  const int column = static_cast<int>(index % kChannelStride<CP>);
  const int64_t row = index / kChannelStride<CP>;
  const int64_t tap = row % f.taps;
  float sum = 0.f;
  if (column < f.query_channels) {
    const T* key = f.key_of(row / f.taps) + column * f.key.channel;
    const float* projection = f.proj_weight + tap * f.regions;
    OVERLOCK_UNROLL_BY_8
    for (int s = 0; s < f.regions; ++s) {
      sum += projection[s] * static_cast<float>(key[s * f.key.row]);
    }
    sum *= f.scale;
  } else if (column == CP) {
    sum = f.proj_bias[tap];
  }
  folded[index] = kLog2E * sum;
}

constexpr int kUnfoldThreads = 256;
constexpr int kUnfoldRegions = 64;  // whose sums a block makes at a time
constexpr int kUnfoldParts = kUnfoldThreads / kUnfoldRegions;

// Gradient of the keys [B, G, Cq, S], contiguous, from that of F, [B, G, K*K, kChannelStride],
// which is not in base 2 and lacks the scale. One block per channel; index counts channels, then
// groups, then batches.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void unfold_key_block(Block& block, const Folding<T>& f, const float* d_folded,
                                           T* d_key, int64_t index, float* shared) {
  const float* column =
      d_folded + index / f.query_channels * f.taps * kChannelStride<CP> + index % f.query_channels;
  for (int first = 0; first < f.regions; first += kUnfoldRegions) {
    block.phase([&](int thread) {
      const int region = first + thread % kUnfoldRegions;
      float sum = 0.f;
      if (region < f.regions) {
        OVERLOCK_UNROLL_BY_8
        for (int tap = thread / kUnfoldRegions; tap < f.taps; tap += kUnfoldParts) {
          sum += f.proj_weight[tap * f.regions + region] * column[tap * kChannelStride<CP>];
        }
      }
      shared[thread] = sum;
    });
    block.phase([&](int thread) {
      const int region = first + thread;
      if (thread >= kUnfoldRegions || region >= f.regions) return;
      float sum = 0.f;
      OVERLOCK_UNROLL
      for (int part = 0; part < kUnfoldParts; ++part) sum += shared[part * kUnfoldRegions + thread];
      d_key[index * f.regions + region] = static_cast<T>(f.scale * sum);
    });
  }
}

// Gradient of the projection's weight, [slices, K*K, S], sums over the pairs of batch and group
// slice, slice + slices, ... index counts its elements.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void unfold_projection_element(const Folding<T>& f, const float* d_folded,
                                                    int64_t slices, float* d_projection,
                                                    int64_t index) {
  const int region = static_cast<int>(index % f.regions);
  const int64_t row = index / f.regions;
  const int64_t tap = row % f.taps;
  float sum = 0.f;
  for (int64_t pair = row / f.taps; pair < f.pairs(); pair += slices) {
    const float* d_row = d_folded + (pair * f.taps + tap) * kChannelStride<CP>;
    const T* key = f.key_of(pair) + region * f.key.row;
    OVERLOCK_UNROLL_BY_8
    for (int c = 0; c < f.query_channels; ++c) {
      sum += d_row[c] * static_cast<float>(key[c * f.key.channel]);
    }
  }
  d_projection[index] = f.scale * sum;
}

}  // namespace overlock
