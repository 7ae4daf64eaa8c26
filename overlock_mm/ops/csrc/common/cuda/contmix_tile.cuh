// What the ContMix kernels share: their arguments, and the staging in shared memory.
//
// Affinity and projection are linear. contmix_fold.cuh folds them into one matrix for each
// batch and group, F [K*K, Cq], so that a logit is a dot product of a row of F, which all
// threads read from the same place in shared memory at the same time, and a token's query, in
// registers. Logits are in base 2: exp2 is what the hardware has.
//
// A block is one warp, so its barriers cost next to nothing. It works on a tile of 4 x 16
// tokens and walks their windows row by row. A thread serves two neighbouring tokens of a
// row: what it reads from shared memory, which is as scarce as arithmetic, serves both.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../window.h"
#include "block.cuh"

namespace overlock {

constexpr int kThreads = 32;
constexpr int kTileRows = 4;
constexpr int kTileColumns = 16;
constexpr int kTokens = kTileRows * kTileColumns;
constexpr int kPairColumns = kTileColumns / 2;
static_assert(kTokens == 2 * kThreads, "two tokens per thread");

// Rows of the map that are staged at a time: those of the tile's tokens, and the next.
constexpr int kRingRows = kTileRows + 1;

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// CP is the larger of C and Cq, padded to 8, 16 or 32. Distance between the channels of two
// neighbours, or two rows of F, in shared memory: an odd number of 16-byte words, so that eight
// lanes that read a word each meet eight different bank groups. In a row of F, column CP is the
// bias of the projection.
template <int CP>
constexpr int kChannelStride = CP + 4;

// K is the size of the window, or 0 if it is not known when the code is compiled.
constexpr int kMaxKernelSize = 17;
template <int K>
constexpr int kMaxTaps = K > 0 ? K : kMaxKernelSize;

// Calls run(integral constant CP, integral constant K): with those of the network, and with
// others that serve any window and more channels.
template <typename Run>
void with_sizes(int64_t channels, int64_t query_channels, int64_t kernel_size, Run run) {
  const int64_t most = channels > query_channels ? channels : query_channels;
  using std::integral_constant;
  if (most > 16) return run(integral_constant<int, 32>(), integral_constant<int, 0>());
  if (most <= 8 && kernel_size == 5) {
    return run(integral_constant<int, 8>(), integral_constant<int, 5>());
  }
  if (most <= 8 && kernel_size == 7) {
    return run(integral_constant<int, 8>(), integral_constant<int, 7>());
  }
  const integral_constant<int, 16> padded;
  switch (kernel_size) {
    case 5:
      return run(padded, integral_constant<int, 5>());
    case 7:
      return run(padded, integral_constant<int, 7>());
    case 13:
      return run(padded, integral_constant<int, 13>());
  }
  run(padded, integral_constant<int, 0>());
}

// Elements of 16 bytes, moved at once.
template <typename T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));
template <typename T>
struct alignas(16) Pack {
  T v[kPackSize<T>];
};

// A [B, G, C, H, W] tensor and its strides.
template <typename T>
struct Map {
  T* data;
  int64_t batch, group, channel, row, column;

  OVERLOCK_KERNEL_BODY T* at(int64_t b, int64_t g, int64_t y, int64_t x) const {
    return data + b * batch + g * group + y * row + x * column;
  }
  // Whether the channels of every token are adjacent and can be moved in packs.
  OVERLOCK_KERNEL_BODY bool packed(int channels) const {
    constexpr int64_t size = kPackSize<T>;
    return channel == 1 && (channels | batch | group | row | column) % size == 0 &&
           reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }
};

template <typename T>
struct Arguments {
  Map<const T> query, value;
  const float* folded;  // [B, G, K*K, kChannelStride], contiguous
  const float* rpb;     // [G, 2K-1, 2K-1], contiguous
  int batches, groups, query_channels, channels, height, width, kernel_size;

  OVERLOCK_HOST_DEVICE int taps() const { return kernel_size * kernel_size; }
  OVERLOCK_HOST_DEVICE int side() const { return 2 * kernel_size - 1; }
  OVERLOCK_HOST_DEVICE int64_t pairs() const { return int64_t{batches} * groups; }
  OVERLOCK_HOST_DEVICE int tile_columns() const {
    return (width + kTileColumns - 1) / kTileColumns;
  }
  OVERLOCK_HOST_DEVICE int tiles() const {
    return (height + kTileRows - 1) / kTileRows * tile_columns();
  }
  // Columns of the map under a window row of a tile.
  OVERLOCK_HOST_DEVICE int staged_columns() const { return kTileColumns - 1 + kernel_size; }
  // Columns of one parity, see staged_position.
  OVERLOCK_HOST_DEVICE int half_columns() const { return (staged_columns() + 1) / 2; }

  OVERLOCK_KERNEL_BODY int start_row(int y) const { return start(y, height); }
  OVERLOCK_KERNEL_BODY int start_column(int x) const { return start(x, width); }
  // Place in rpb of the bias of a window's first tap.
  OVERLOCK_KERNEL_BODY int bias_place(int group, int y, int x) const {
    const int row = group * side() + bias_offset(y, height);
    return row * side() + bias_offset(x, width);
  }
  // Row (column) of the position bias that meets the first row (column) of a window.
  OVERLOCK_KERNEL_BODY int bias_offset(int i, int size) const {
    return start(i, size) - i + kernel_size - 1;
  }

 private:
  OVERLOCK_KERNEL_BODY int start(int i, int size) const {
    return window_start(i, size, kernel_size);
  }
};

// The arguments with a window size that the compiler knows, where it is compiled in.
template <int K, typename T>
OVERLOCK_KERNEL_BODY Arguments<T> with_window(const Arguments<T>& arguments) {
  Arguments<T> a = arguments;
  if (K > 0) a.kernel_size = K;
  return a;
}

// Tokens beyond the map are clamped to its last row or column and invalid.
struct Token {
  int y, x;
  bool valid;
};

struct Tile {
  int batch, group, first_row, first_column;

  template <typename T>
  OVERLOCK_KERNEL_BODY static Tile of(const Arguments<T>& a, int pair, int index) {
    const int columns = a.tile_columns();
    return {pair / a.groups, pair % a.groups, index / columns * kTileRows,
            index % columns * kTileColumns};
  }

  // The left (0) or the right (1) token of a thread; their numbers in the tile are
  // 2 * thread + side.
  template <typename T>
  OVERLOCK_KERNEL_BODY Token token(const Arguments<T>& a, int thread, int side) const {
    const int y = first_row + thread / kPairColumns;
    const int x = first_column + thread % kPairColumns * 2 + side;
    const bool valid = y < a.height && x < a.width;
    return {y < a.height ? y : a.height - 1, x < a.width ? x : a.width - 1, valid};
  }
};

// A pack as floats; `target` is 16-byte aligned.
template <typename T>
OVERLOCK_KERNEL_BODY void store_pack(const Pack<T>& pack, float* target) {
  OVERLOCK_UNROLL
  for (int i = 0; i < kPackSize<T>; i += 4) {
    *reinterpret_cast<Float4*>(target + i) = {
        {static_cast<float>(pack.v[i]), static_cast<float>(pack.v[i + 1]),
         static_cast<float>(pack.v[i + 2]), static_cast<float>(pack.v[i + 3])}};
  }
}

// Channels of one token as they are in memory, zero in the padding: what is loaded ahead of its
// use must not be converted before.
template <int CP, typename T>
struct RawChannels {
  Pack<T> packs[CP / kPackSize<T>];

  OVERLOCK_KERNEL_BODY static RawChannels load(const Map<const T>& map, int batch, int group,
                                               const Token& token, int channels) {
    constexpr int kSize = kPackSize<T>;
    const T* source = map.at(batch, group, token.y, token.x);
    RawChannels raw{};
    if (map.packed(channels)) {
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; c += kSize) {
        if (c < channels) raw.packs[c / kSize] = *reinterpret_cast<const Pack<T>*>(source + c);
      }
    } else {
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; ++c) {
        if (c < channels) raw.packs[c / kSize].v[c % kSize] = source[c * map.channel];
      }
    }
    return raw;
  }
  OVERLOCK_KERNEL_BODY Vector<CP> floats() const {
    Vector<CP> vector;
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) {
      vector.v[c] = static_cast<float>(packs[c / kPackSize<T>].v[c % kPackSize<T>]);
    }
    return vector;
  }
};

template <int CP, typename T>
OVERLOCK_KERNEL_BODY Vector<CP> load_channels(const Map<const T>& map, int batch, int group,
                                              const Token& token, int channels) {
  return RawChannels<CP, T>::load(map, batch, group, token, channels).floats();
}

// Writes factor times the channels of one token.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void store_channels(const Map<T>& map, int batch, int group,
                                         const Token& token, int channels, const Vector<CP>& vector,
                                         float factor) {
  T* target = map.at(batch, group, token.y, token.x);
  if (map.packed(channels)) {
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; c += kPackSize<T>) {
      Pack<T> pack;
      OVERLOCK_UNROLL
      for (int i = 0; i < kPackSize<T>; ++i) pack.v[i] = static_cast<T>(factor * vector.v[c + i]);
      if (c < channels) *reinterpret_cast<Pack<T>*>(target + c) = pack;
    }
  } else {
    OVERLOCK_UNROLL
    for (int c = 0; c < CP; ++c) {
      if (c < channels) target[c * map.channel] = static_cast<T>(factor * vector.v[c]);
    }
  }
}

// Rows of F for one window row -> [K, kChannelStride], which arrive at the end of the phase.
template <int CP, typename T>
OVERLOCK_KERNEL_BODY void stage_folded(const Arguments<T>& a, const Tile& tile, int tap_row,
                                       int thread, float* folded) {
  const int count = a.kernel_size * kChannelStride<CP>;
  const int64_t pair = tile.batch * a.groups + tile.group;
  const float* source = a.folded + (pair * a.kernel_size + tap_row) * count;
  OVERLOCK_UNROLL
  for (int i = 4 * thread; i < count; i += 4 * kThreads) copy4(folded + i, source + i);
}

// A row of the map under a tile on its way from global to shared memory, whose loads can be
// under way while the thread computes. A thread carries some channels of every kStep-th column,
// in packs, or all channels of one column, element by element.
template <int CP, int K, typename T>
struct CarriedRow {
  static constexpr int kPacks = CP / kPackSize<T>;
  static constexpr int kStep = kThreads / kPacks;
  static constexpr int kColumns = kTileColumns - 1 + kMaxTaps<K>;
  static constexpr int kCount = (kColumns + kStep - 1) / kStep;
  static_assert(kStep % 2 == 0, "columns of a thread have the same parity");
  static_assert(kColumns <= kThreads, "a thread per column");
  Pack<T> packs[kCount > kPacks ? kCount : kPacks];
};

// Staged rows of the map under a tile: [kRingRows, 2, half columns, kChannelStride].
//
// Columns are kept by parity: the two tokens of a thread are two columns apart from those of
// its neighbours, and eight lanes read eight successive places. Row y is in place
// y % kRingRows; the four rows that the tile's tokens need at a time are successive.
template <int CP, int K, typename T>
struct ValueRing {
  using Carried = CarriedRow<CP, K, T>;

  const Arguments<T>& a;
  float* rows;
  const T* source;  // row 0 of the map, from the first column under the tile on
  int available;    // columns of the map from there on
  int last_row;     // of the map, under the first window row of the tile's last tokens
  bool packed, planar;

  static OVERLOCK_HOST_DEVICE int row_floats(const Arguments<T>& a) {
    return 2 * a.half_columns() * kChannelStride<CP>;
  }
  static OVERLOCK_HOST_DEVICE int floats(const Arguments<T>& a) {
    return kRingRows * row_floats(a);
  }

  OVERLOCK_KERNEL_BODY ValueRing(const Arguments<T>& arguments, const Tile& tile, float* shared)
      : a(arguments),
        rows(shared),
        packed(a.value.packed(a.channels)),
        planar(a.value.channel != 1) {
    const int first_column = a.start_column(tile.first_column);
    const int y = tile.first_row + kTileRows - 1;
    source = a.value.at(tile.batch, tile.group, 0, first_column);
    available = a.width - first_column;
    last_row = a.start_row(y < a.height ? y : a.height - 1);
  }

  OVERLOCK_KERNEL_BODY float* row(int y) const { return rows + y % kRingRows * row_floats(a); }
  OVERLOCK_KERNEL_BODY int place(int column) const {
    return (column / 2 + column % 2 * a.half_columns()) * kChannelStride<CP>;
  }

  // Loads row y, if its layout is packed or planar. Zeros beyond the map.
  OVERLOCK_KERNEL_BODY Carried load(int y, int thread) const {
    constexpr int kSize = kPackSize<T>;
    Carried carried{};
    const T* from = source + y * a.value.row;
    if (packed) {
      const int channel = thread % Carried::kPacks * kSize;
      const int first = thread / Carried::kPacks;
      from += first * a.value.column + channel;
      OVERLOCK_UNROLL
      for (int i = 0; i < Carried::kCount; ++i) {
        if (first + i * Carried::kStep < available && channel < a.channels) {
          carried.packs[i] = *reinterpret_cast<const Pack<T>*>(from);
        }
        from += Carried::kStep * a.value.column;
      }
    } else if (planar && thread < available) {
      from += thread * a.value.column;
      OVERLOCK_UNROLL
      for (int c = 0; c < CP; ++c) {
        if (c < a.channels) carried.packs[c / kSize].v[c % kSize] = from[c * a.value.channel];
      }
    }
    return carried;
  }

  // Stores row y, which `load` has loaded if its layout is packed or planar.
  OVERLOCK_KERNEL_BODY void store(int y, int thread, const Carried& carried) const {
    constexpr int kSize = kPackSize<T>;
    if (packed) {
      const int first = thread / Carried::kPacks;
      float* target = row(y) + place(first) + thread % Carried::kPacks * kSize;
      OVERLOCK_UNROLL
      for (int i = 0; i < Carried::kCount; ++i) {
        if (first + i * Carried::kStep < a.staged_columns()) {
          store_pack(carried.packs[i], target + i * Carried::kStep / 2 * kChannelStride<CP>);
        }
      }
    } else if (!planar) {
      copy_elements(y, thread);
    } else if (thread < a.staged_columns()) {
      OVERLOCK_UNROLL
      for (int i = 0; i < Carried::kPacks; ++i) {
        store_pack(carried.packs[i], row(y) + place(thread) + i * kSize);
      }
    }
  }

  // Stages the rows under the first window row of the tile's tokens.
  OVERLOCK_KERNEL_BODY void stage_first(const Tile& tile, int thread) const {
    const int first = a.start_row(tile.first_row);
    Carried carried[kTileRows] = {};
    OVERLOCK_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      if (first + i <= last_row) carried[i] = load(first + i, thread);
    }
    OVERLOCK_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      if (first + i <= last_row) store(first + i, thread, carried[i]);
    }
  }

 private:
  // Of channels that are adjacent in memory, to which neighbouring threads are assigned.
  OVERLOCK_KERNEL_BODY void copy_elements(int y, int thread) const {
    const T* from = source + y * a.value.row;
    float* target = row(y);
    for (int i = thread; i < CP * a.staged_columns(); i += kThreads) {
      const int column = i / CP, channel = i % CP;
      const bool present = column < available && channel < a.channels;
      target[place(column) + channel] =
          present ? static_cast<float>(from[column * a.value.column + channel]) : 0.f;
    }
  }
};

// The windows of a thread's two tokens.
template <int CP>
struct PairWindow {
  int first_row;
  int even, odd;  // place of the left token's tap 0, and of its tap 1, in a staged row
  bool shifted;   // whether the right token's window begins one column later
  int bias[2];    // places of the tokens' first biases

  template <int K, typename T>
  static OVERLOCK_KERNEL_BODY PairWindow of(const ValueRing<CP, K, T>& ring, const Tile& tile,
                                            int thread) {
    const Arguments<T>& a = ring.a;
    const Token left = tile.token(a, thread, 0), right = tile.token(a, thread, 1);
    const int column = a.start_column(left.x) - a.start_column(tile.first_column);
    return {a.start_row(left.y),
            ring.place(column),
            ring.place(column + 1),
            a.start_column(right.x) > a.start_column(left.x),
            {a.bias_place(tile.group, left.y, left.x), a.bias_place(tile.group, right.y, right.x)}};
  }
  // Place of the left token's tap `tap`, which may be K: the right token's last.
  OVERLOCK_KERNEL_BODY int place(int tap) const {
    return (tap % 2 == 0 ? even : odd) + tap / 2 * kChannelStride<CP>;
  }
};

}  // namespace overlock
