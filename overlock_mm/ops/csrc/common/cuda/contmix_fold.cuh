// Affinity and projection as one matrix, and back:
//   logits[n] = P (K^T (scale * q[n])) + bias = F q[n] + bias  with  F = scale * P K^T,
// with K*K x Cq entries instead of K*K x S for each batch and group. The gradients of P and
// of the keys follow once, at the end, from the gradient of F, which is summed over tokens.
//
// Plain sums in float32, from tiles in shared memory: the matrices are too small for the matrix
// units to matter, and a setting that lowers the precision of products must not change logits.
#pragma once

#include "contmix_tile.cuh"

namespace overlock {

template <typename T>
struct Folding {
  // [B, G, Cq, S]: row is the stride of the regions, column is not used.
  Map<const T> key;
  const float* proj_weight;  // [K*K, S], contiguous like all that follow
  const float* proj_bias;    // [K*K]
  int batches, groups, query_channels, regions, taps;
  float scale;

  OVERLOCK_HOST_DEVICE int pairs() const { return batches * groups; }
};

constexpr int kFoldThreads = 256;
// Regions and taps of a tile in shared memory, and the distance of its rows: an odd number of
// 16-byte words.
constexpr int kFoldSide = 64;
constexpr int kFoldStride = kFoldSide + 4;

OVERLOCK_HOST_DEVICE int fold_tiles(int count) { return (count + kFoldSide - 1) / kFoldSide; }

// Keys of a batch and group, for the regions of a tile -> [CP, kFoldStride], padded with zeros.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void stage_keys(const Folding<T>& f, int pair, int first_region, int thread,
                                     float* keys) {
  const T* source = f.key.at(pair / f.groups, pair % f.groups, 0, 0);
  // Neighbouring threads take elements that are adjacent in memory.
  const bool channels_last = f.key.channel == 1;
  for (int i = thread; i < CP * kFoldSide; i += kFoldThreads) {
    const int channel = channels_last ? i % CP : i / kFoldSide;
    const int column = channels_last ? i / CP : i % kFoldSide;
    const int region = first_region + column;
    const bool present = channel < f.query_channels && region < f.regions;
    keys[channel * kFoldStride + column] =
        present ? static_cast<float>(source[channel * f.key.channel + region * f.key.row]) : 0.f;
  }
}

// The projection's weight, for the taps and regions of a tile -> [kFoldSide, kFoldStride], padded
// with zeros.
template <typename T>
OVERLOCK_KERNEL_BODY void stage_weight(const Folding<T>& f, int first_tap, int first_region,
                                       int thread, float* weight) {
  for (int i = thread; i < kFoldSide * kFoldSide; i += kFoldThreads) {
    const int tap = first_tap + i / kFoldSide, region = first_region + i % kFoldSide;
    weight[i / kFoldSide * kFoldStride + i % kFoldSide] =
        tap < f.taps && region < f.regions
            ? f.proj_weight[static_cast<int64_t>(tap) * f.regions + region]
            : 0.f;
  }
}

// The gradient of F, for the taps of a tile -> [kFoldSide, CP], padded with zeros.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void stage_gradient(const Folding<T>& f, const float* d_folded, int pair,
                                         int first_tap, int thread, float* gradient) {
  const float* source = d_folded + static_cast<int64_t>(pair) * f.taps * kChannelStride<CP>;
  for (int i = thread; i < kFoldSide * CP; i += kFoldThreads) {
    const int tap = first_tap + i / CP, channel = i % CP;
    gradient[i] = tap < f.taps && channel < f.query_channels
                      ? source[tap * kChannelStride<CP> + channel]
                      : 0.f;
  }
}

constexpr int64_t kFoldFloats = (32 + kFoldSide) * kFoldStride;

// F in base 2, [B, G, K*K, kChannelStride]: Cq columns, zeros, and the bias in column CP. One
// block per batch, group and tile of taps; index counts the tiles, then the pairs.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void fold_block(Block& block, const Folding<T>& f, float* folded, int index,
                                     float* shared) {
  constexpr int kChannels = CP * kFoldSide / kFoldThreads;
  const int pair = index / fold_tiles(f.taps), first_tap = index % fold_tiles(f.taps) * kFoldSide;
  float* keys = shared;
  float* weight = keys + CP * kFoldStride;
  typename Block::template PerThread<Vector<kChannels>> sums;
  block.phase([&](int thread) { sums[thread] = Vector<kChannels>(); });
  for (int first_region = 0; first_region < f.regions; first_region += kFoldSide) {
    block.phase([&](int thread) {
      stage_keys<CP>(f, pair, first_region, thread, keys);
      stage_weight(f, first_tap, first_region, thread, weight);
    });
    block.phase([&](int thread) {
      const float* row = weight + thread % kFoldSide * kFoldStride;
      const float* columns = keys + thread / kFoldSide * kChannels * kFoldStride;
      for (int region = 0; region < kFoldSide; region += 4) {
        const Vector<4> factors = load_vector<4>(row + region);
        OVERLOCK_UNROLL
        for (int c = 0; c < kChannels; ++c) {
          sums[thread].v[c] =
              dot(factors, load_vector<4>(columns + c * kFoldStride + region), sums[thread].v[c]);
        }
      }
    });
  }
  block.phase([&](int thread) {
    const int tap = first_tap + thread % kFoldSide, part = thread / kFoldSide;
    if (tap >= f.taps) return;
    float* target = folded + (static_cast<int64_t>(pair) * f.taps + tap) * kChannelStride<CP>;
    OVERLOCK_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      target[part * kChannels + c] = kLog2E * f.scale * sums[thread].v[c];
    }
    target[CP + part] = part == 0 ? kLog2E * f.proj_bias[tap] : 0.f;
  });
}
static_assert(kFoldThreads / kFoldSide == 4, "a thread per padding column of F");

// Gradient of the keys [B, G, Cq, S], contiguous, from that of F, [B, G, K*K, kChannelStride],
// which is not in base 2 and lacks the scale. One block per batch, group and tile of regions;
// index counts the tiles, then the pairs.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void unfold_key_block(Block& block, const Folding<T>& f, const float* d_folded,
                                           T* d_key, int index, float* shared) {
  constexpr int kChannels = CP * kFoldSide / kFoldThreads;
  const int pair = index / fold_tiles(f.regions);
  const int first_region = index % fold_tiles(f.regions) * kFoldSide;
  float* gradient = shared;
  float* weight = gradient + kFoldSide * CP;
  typename Block::template PerThread<Vector<kChannels>> sums;
  block.phase([&](int thread) { sums[thread] = Vector<kChannels>(); });
  for (int first_tap = 0; first_tap < f.taps; first_tap += kFoldSide) {
    block.phase([&](int thread) {
      stage_gradient<CP>(f, d_folded, pair, first_tap, thread, gradient);
      stage_weight(f, first_tap, first_region, thread, weight);
    });
    block.phase([&](int thread) {
      const float* channels = gradient + thread / kFoldSide * kChannels;
      for (int tap = 0; tap < kFoldSide; ++tap) {
        const float factor = weight[tap * kFoldStride + thread % kFoldSide];
        OVERLOCK_UNROLL
        for (int c = 0; c < kChannels; ++c) sums[thread].v[c] += factor * channels[tap * CP + c];
      }
    });
  }
  block.phase([&](int thread) {
    const int region = first_region + thread % kFoldSide;
    OVERLOCK_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const int channel = thread / kFoldSide * kChannels + c;
      if (channel < f.query_channels && region < f.regions) {
        d_key[(static_cast<int64_t>(pair) * f.query_channels + channel) * f.regions + region] =
            static_cast<T>(f.scale * sums[thread].v[c]);
      }
    }
  });
}

// Gradient of the projection's weight, [slices, K*K, S]: sums over the pairs of batch and group
// slice, slice + slices, ... One block per slice, tile of taps and tile of regions; index counts
// the tiles of regions, then those of taps, then the slices.
template <int CP, typename Block, typename T>
OVERLOCK_KERNEL_BODY void unfold_projection_block(Block& block, const Folding<T>& f,
                                                  const float* d_folded, int slices,
                                                  float* d_projection, int index, float* shared) {
  // A thread makes 4 x 4 entries.
  constexpr int kSide = kFoldSide / 4;
  static_assert(kSide * kSide == kFoldThreads, "a thread per 4 x 4 entries");
  const int first_region = index % fold_tiles(f.regions) * kFoldSide;
  const int row = index / fold_tiles(f.regions);
  const int first_tap = row % fold_tiles(f.taps) * kFoldSide, slice = row / fold_tiles(f.taps);
  float* gradient = shared;
  float* keys = gradient + kFoldSide * CP;
  typename Block::template PerThread<Vector<16>> sums;
  block.phase([&](int thread) { sums[thread] = Vector<16>(); });
  for (int pair = slice; pair < f.pairs(); pair += slices) {
    block.phase([&](int thread) {
      stage_gradient<CP>(f, d_folded, pair, first_tap, thread, gradient);
      stage_keys<CP>(f, pair, first_region, thread, keys);
    });
    block.phase([&](int thread) {
      const float* rows = gradient + thread / kSide * 4 * CP;
      const float* columns = keys + thread % kSide * 4;
      for (int c = 0; c < CP; ++c) {
        const Float4 key = load4(columns + c * kFoldStride);
        OVERLOCK_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float factor = rows[i * CP + c];
          OVERLOCK_UNROLL
          for (int j = 0; j < 4; ++j) sums[thread].v[4 * i + j] += factor * key.v[j];
        }
      }
    });
  }
  block.phase([&](int thread) {
    OVERLOCK_UNROLL
    for (int i = 0; i < 16; ++i) {
      const int tap = first_tap + thread / kSide * 4 + i / 4;
      const int region = first_region + thread % kSide * 4 + i % 4;
      if (tap < f.taps && region < f.regions) {
        d_projection[(static_cast<int64_t>(slice) * f.taps + tap) * f.regions + region] =
            f.scale * sums[thread].v[i];
      }
    }
  });
}

}  // namespace overlock
