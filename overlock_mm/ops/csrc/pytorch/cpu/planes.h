// Between tensors of any dtype and strides and the packed rows of row_kernels.h.
//
// A "plane" is one batch entry and group: channels on a map of rows and columns. Packed
// columns are sorted by their residue modulo the dilation, so that the columns of a window
// are adjacent for every dilation.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../../common/window.h"
#include "row_kernels.h"

namespace overlock {

// `n` rounded up to whole blocks of `bytes`.
template <typename T>
int64_t padded(int64_t n, int64_t bytes) {
  const int64_t lanes = bytes / static_cast<int64_t>(sizeof(T));
  return (n + lanes - 1) / lanes * lanes;
}

// Scratch memory of one thread, aligned to a register, zero at first.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(size + kTapAlign / sizeof(T)) {
    void* start = memory_.data();
    size_t space = memory_.size() * sizeof(T);
    start_ = static_cast<T*>(std::align(kTapAlign, size * sizeof(T), start, space));
  }
  T* data() { return start_; }
  void fill(int64_t size, T value) { std::fill_n(start_, size, value); }

 private:
  std::vector<T> memory_;
  T* start_;
};

// Where the windows of a row of tokens lie, in packed columns.
struct Columns {
  Columns(int64_t width, int64_t kernel_size, int64_t dilation)
      : size(width), step(dilation), position(width), start(width), first(width), count(width) {
    int64_t next = 0;
    for (int64_t residue = 0; residue < dilation; ++residue) {
      for (int64_t x = residue; x < width; x += dilation) {
        position[x] = next++;
      }
    }
    for (int64_t x = 0; x < width; ++x) {
      start[x] = position[window_start(x, width, kernel_size, dilation)];
      const int64_t begin = inverse_first(x, kernel_size, dilation);
      const int64_t end = inverse_last(x, width, kernel_size, dilation);
      first[position[x]] = begin;
      count[position[x]] = (end - begin) / dilation + 1;
    }
  }

  int64_t size;
  int64_t step;                   // between tokens that share a packed column
  std::vector<int64_t> position;  // column -> packed column
  std::vector<int64_t> start;     // token -> first packed column of its window
  std::vector<int64_t> first;     // packed column -> first token whose window holds it
  std::vector<int64_t> count;     // packed column -> number of such tokens
};

// Rows [begin, end) of the map.
struct RowRange {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// Rows that the windows of the tokens in `rows` touch.
inline RowRange touched_rows(RowRange rows, int64_t height, int64_t kernel_size, int64_t dilation) {
  RowRange touched{height, 0};
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t start = window_start(i, height, kernel_size, dilation);
    touched.begin = std::min(touched.begin, start);
    touched.end = std::max(touched.end, start + (kernel_size - 1) * dilation + 1);
  }
  return touched;
}

// Bound of touched_rows(...).size() for any `rows` successive rows.
inline int64_t most_touched(int64_t rows, int64_t height, int64_t kernel_size, int64_t dilation) {
  return std::min(rows + 2 * (kernel_size - 1) * dilation, height);
}

// One plane of a tensor, S its scalar type.
template <typename S>
struct Plane {
  S* data;
  int64_t channels;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;

  S& at(int64_t channel, int64_t row, int64_t column) const {
    return data[channel * channel_stride + row * row_stride + column * column_stride];
  }
};

// Plane number `index` (batch entry * groups + group) of [B, G, C, H, W].
template <typename S>
Plane<S> plane_of(const at::Tensor& tensor, int64_t index) {
  const int64_t groups = tensor.size(1);
  S* data = static_cast<S*>(tensor.data_ptr()) + index / groups * tensor.stride(0) +
            index % groups * tensor.stride(1);
  return {data, tensor.size(2), tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

// Row -> packed[position of column][channel], channels padded to `ld`; padding is not written.
template <typename S, typename T>
void pack_row(const Plane<S>& plane, int64_t row, const int64_t* position, int64_t width,
              int64_t ld, T* packed) {
  if (plane.channel_stride == 1) {
    for (int64_t x = 0; x < width; ++x) {
      const S* from = &plane.at(0, row, x);
      T* to = packed + position[x] * ld;
      for (int64_t c = 0; c < plane.channels; ++c) {
        to[c] = static_cast<T>(from[c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < plane.channels; ++c) {
    for (int64_t x = 0; x < width; ++x) {
      packed[position[x] * ld + c] = static_cast<T>(plane.at(c, row, x));
    }
  }
}

// Row -> packed[channel][position of column], channels at distance `ld`.
template <typename S, typename T>
void pack_row_planar(const Plane<S>& plane, int64_t row, const int64_t* position, int64_t width,
                     int64_t ld, T* packed) {
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < plane.channels; ++c) {
      packed[c * ld + position[x]] = static_cast<T>(plane.at(c, row, x));
    }
  }
}

// The reverse of pack_row.
template <typename S, typename T>
void unpack_row(const T* packed, const int64_t* position, int64_t width, int64_t ld,
                const Plane<S>& plane, int64_t row) {
  if (plane.channel_stride == 1) {
    for (int64_t x = 0; x < width; ++x) {
      const T* from = packed + position[x] * ld;
      S* to = &plane.at(0, row, x);
      for (int64_t c = 0; c < plane.channels; ++c) {
        to[c] = static_cast<S>(from[c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < plane.channels; ++c) {
    for (int64_t x = 0; x < width; ++x) {
      plane.at(c, row, x) = static_cast<S>(packed[position[x] * ld + c]);
    }
  }
}

// 0, 1, ... : tokens keep their order.
inline std::vector<int64_t> natural_order(int64_t width) {
  std::vector<int64_t> order(width);
  for (int64_t x = 0; x < width; ++x) {
    order[x] = x;
  }
  return order;
}

// Values of the rows that a segment of tokens reads; segments bound the memory of a thread.
constexpr int64_t kSegmentBytes = 512 * 1024;

template <typename T>
int64_t rows_per_segment(int64_t width, int64_t ld, int64_t kernel_size, int64_t dilation) {
  const int64_t rows = kSegmentBytes / (width * ld * static_cast<int64_t>(sizeof(T)));
  return std::max<int64_t>(rows - (kernel_size - 1) * dilation, 4);
}

// The split of a backward pass: row tiles of planes. A tile's windows reach into its
// neighbours, and rows that several tiles add to are summed per tile first and added up
// afterwards. It depends only on the shapes: the order of additions, and so the result, is
// that of any number of threads.
struct Tiling {
  Tiling(int64_t planes, int64_t height, int64_t kernel_size, int64_t dilation) {
    constexpr int64_t kEnoughTasks = 32;
    constexpr int64_t kFewestRows = 16;
    const int64_t wanted = (kEnoughTasks + planes - 1) / planes;
    const int64_t most = std::max<int64_t>(height / kFewestRows, 1);
    const int64_t rows = (height + std::min(wanted, most) - 1) / std::min(wanted, most);
    std::vector<int64_t> users(height, 0);
    for (int64_t begin = 0; begin < height; begin += rows) {
      const RowRange tile{begin, std::min(begin + rows, height)};
      tiles.push_back(tile);
      touched.push_back(touched_rows(tile, height, kernel_size, dilation));
      most_touched = std::max(most_touched, touched.back().size());
      for (int64_t row = touched.back().begin; row < touched.back().end; ++row) {
        ++users[row];
      }
    }
    for (const RowRange& range : touched) {
      slots.emplace_back();
      for (int64_t row = range.begin; row < range.end; ++row) {
        slots.back().push_back(users[row] > 1 ? shared++ : -1);
      }
    }
  }

  int64_t count() const { return static_cast<int64_t>(tiles.size()); }

  std::vector<RowRange> tiles;
  std::vector<RowRange> touched;
  // For each row that a tile touches, where its sum waits for others, or -1 if there are none.
  std::vector<std::vector<int64_t>> slots;
  int64_t shared = 0;  // number of such sums in a plane
  int64_t most_touched = 0;
};

// Takes the sums [touched rows][width][ld] of a tile to the gradient, or where they wait.
template <typename S, typename T>
void store_tile(const T* sums, const Tiling& tiling, int64_t tile, const Columns& columns,
                int64_t ld, const Plane<S>& gradient, T* waiting) {
  const int64_t row_size = columns.size * ld;
  const std::vector<int64_t>& slots = tiling.slots[tile];
  for (size_t i = 0; i < slots.size(); ++i, sums += row_size) {
    if (slots[i] >= 0) {
      std::copy_n(sums, row_size, waiting + slots[i] * row_size);
    } else {
      unpack_row(sums, columns.position.data(), columns.size, ld, gradient,
                 tiling.touched[tile].begin + static_cast<int64_t>(i));
    }
  }
}

// Adds up the waiting sums of a plane, tile after tile, into the gradient.
template <typename S, typename T>
void add_up_tiles(const T* waiting, const Tiling& tiling, const Columns& columns, int64_t ld,
                  int64_t height, const Plane<S>& gradient) {
  const int64_t row_size = columns.size * ld;
  Scratch<T> total(row_size);
  for (int64_t row = 0; row < height; ++row) {
    bool any = false;
    total.fill(row_size, T(0));
    for (int64_t tile = 0; tile < tiling.count(); ++tile) {
      const int64_t i = row - tiling.touched[tile].begin;
      if (i < 0 || i >= tiling.touched[tile].size() || tiling.slots[tile][i] < 0) {
        continue;
      }
      any = true;
      const T* sum = waiting + tiling.slots[tile][i] * row_size;
      for (int64_t n = 0; n < row_size; ++n) {
        total.data()[n] += sum[n];
      }
    }
    if (any) {
      unpack_row(total.data(), columns.position.data(), columns.size, ld, gradient, row);
    }
  }
}

}  // namespace overlock
