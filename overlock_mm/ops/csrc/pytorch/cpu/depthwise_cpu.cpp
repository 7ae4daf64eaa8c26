#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "block_operators.h"
#include "depthwise_kernels.h"
#include "parameters.h"
#include "planes.h"

namespace overlock {
namespace {

// A call on maps in channels_last memory; the pointer to an output that is not requested is null.
// S is the type of maps and weights in memory, T that of arithmetic.
template <typename S, typename T = typename Computed<S>::type>
struct Convolution {
  int64_t batch, channels, height, width, kernel_size;
  const S* x;
  const S* weight;  // [K, K, C]
  const S* addend;
  S* y;
  const T* bias = nullptr;
  const T* input_bias = nullptr;
  bool gelu_input = false, gelu_output = false;
  Stat stat = Stat::kNone;
  T* row_stats = nullptr;  // [B, H, C]
  const T* norm_weight = nullptr;
  const T* norm_bias = nullptr;
  T eps = 0;
  const T* skip_weight = nullptr;
  const T* skip_bias = nullptr;
  S* normed = nullptr;
};

// The channels of a map, cut into panels of whole vectors of about the same size.
struct Panels {
  Panels(int64_t channels, int64_t lanes, int64_t most) : channels(channels) {
    const int64_t vectors = (channels + lanes - 1) / lanes;
    const int64_t most_vectors = (most + lanes - 1) / lanes;
    const int64_t number = (vectors + most_vectors - 1) / most_vectors;
    size = (vectors + number - 1) / number * lanes;
    count = (channels + size - 1) / size;
  }
  int64_t begin(int64_t panel) const { return panel * size; }
  int64_t width(int64_t panel) const { return std::min(size, channels - begin(panel)); }

  int64_t channels;
  int64_t size;  // of all but the last, and the room for each
  int64_t count;
};

// Multiply-adds of vectors below which a second thread does not pay, and what a vector of the
// map costs besides those of the kernel.
constexpr int64_t kGrain = 32768;
constexpr int64_t kVectorCost = 32;
// Rows per thread from which on threads share rows only.
constexpr int64_t kFewRows = 7;
// Channels of a panel of large kernels, by measurement: rows and weights, which are read again,
// should stay in the second-level cache of a core. Small kernels take all channels at once, as
// reading a part of each column of a map beyond the caches costs as much as reading all of it.
constexpr int64_t kPanelOfLarge = 32;
// Bytes of the maps up to which small kernels read rows where they are. Packing reads a larger map
// in the order of memory, as the processor expects, and takes less time than it saves.
constexpr int64_t kInPlaceBytes = 2 << 20;
// Columns that are computed row by row before their neighbours, by large kernels. Blocks of 7
// and of 8 columns divide it.
constexpr int64_t kStrip = 56;

template <typename S>
int64_t panel_size(const Convolution<S>& call) {
  // LayerNorm needs all of a column.
  return call.normed != nullptr || call.kernel_size == 3 ? call.channels : kPanelOfLarge;
}

// Rows of the map or of a kernel in a packed one.
template <typename P>
constexpr int64_t kPackedRows = std::is_same_v<P, Pair> ? 2 : 1;

// Weights [K * K][panel] and bias [panel]. Pairs of weights: [(K - 1) * K][panel].
template <typename S, typename P, typename T>
void pack_parameters(const Convolution<S>& call, const DepthwiseKernels<S, P>& kernels,
                     int64_t begin, int64_t width, int64_t ld, P* weight, T* bias) {
  const int64_t k = call.kernel_size, row_size = k * call.channels;
  const S* from = call.weight + begin;
  for (int64_t row = 0; row <= k - kPackedRows<P>; ++row, from += row_size) {
    kernels.pack(k, width, from, from + row_size, call.channels, nullptr, false,
                 weight + row * k * ld, ld);
  }
  for (int64_t c = 0; c < width; ++c) {
    bias[c] = call.bias == nullptr ? T(0) : call.bias[begin + c];
  }
}

template <typename S, typename P>
void run_with(const DepthwiseKernels<S, P>& kernels, const Convolution<S>& call) {
  using T = typename Computed<S>::type;
  const int64_t k = call.kernel_size, height = call.height, width = call.width;
  const int64_t bytes =
      call.batch * height * width * call.channels * static_cast<int64_t>(sizeof(S));
  // Whole vectors of channels can be read where they are.
  const bool in_place = std::is_same_v<S, P> && !call.gelu_input && call.input_bias == nullptr &&
                        call.channels % kernels.lanes == 0 && (k > 3 || bytes <= kInPlaceBytes);
  const Panels panels(call.channels, kernels.lanes, panel_size(call));
  // Threads share the rows, so that none writes next to what another reads, unless there are
  // too few rows for that: then they share the panels too.
  const bool few_rows = call.batch * height < kFewRows * at::get_num_threads();
  const int64_t groups = few_rows ? panels.count : 1;
  const int64_t panels_per_group = panels.count / groups;
  const int64_t strip_size = in_place && k > 3 ? kStrip : width;
  const int64_t vectors = width * panels.size / kernels.lanes * panels_per_group;
  const int64_t grain = std::max<int64_t>(1, kGrain / (vectors * (k * k + kVectorCost)));

  at::parallel_for(0, call.batch * groups * height, grain, [&](int64_t begin, int64_t end) {
    const int64_t row_size = width * call.channels, packed_row = width * panels.size;
    Scratch<P> packed(in_place ? 0 : k * packed_row), weight(k * k * panels.size);
    Scratch<T> unnormed(call.normed == nullptr ? 0 : kStrip * call.channels);
    Scratch<T> bias(panels.size);
    std::vector<const P*> sources(k);
    while (begin < end) {
      const int64_t group = begin / height % groups;
      const int64_t entry = begin / height / groups;
      const int64_t first = begin % height;
      const int64_t last = std::min(height, first + end - begin);  // exclusive
      begin += last - first;
      for (int64_t i = 0; i < panels_per_group; ++i) {
        const int64_t panel = group * panels_per_group + i;
        const int64_t channel = panels.begin(panel), channels = panels.width(panel);
        const int64_t map = entry * height * row_size + channel;
        pack_parameters(call, kernels, channel, channels, panels.size, weight.data(), bias.data());
        for (int64_t strip = 0; strip < width; strip += strip_size) {
          const int64_t strip_end = std::min(width, strip + strip_size);
          int64_t next = std::max<int64_t>(0, first - k / 2);  // row to be packed
          for (int64_t row = first; row < last; ++row) {
            const int64_t top = row - k / 2;
            const int64_t tap_begin = std::max<int64_t>(0, -top);
            const int64_t tap_end = std::min(k, height - top);
            // Of the packed rows; a pair begins with the row before its last.
            const int64_t newest = std::max<int64_t>(0, top + tap_end - kPackedRows<P>);
            for (; !in_place && next <= newest; ++next) {
              const S* source = call.x + map + next * row_size;
              kernels.pack(width, channels, source, next + 1 < height ? source + row_size : source,
                           call.channels,
                           call.input_bias == nullptr ? nullptr : call.input_bias + channel,
                           call.gelu_input, packed.data() + next % k * packed_row, panels.size);
            }
            for (int64_t r = tap_begin; r < tap_end; ++r) {
              if constexpr (std::is_same_v<S, P>) {
                if (in_place) {
                  sources[r] = call.x + map + (top + r) * row_size;
                  continue;
                }
              }
              sources[r] = packed.data() + std::min(top + r, newest) % k * packed_row;
            }
            const auto convolve = [&](auto kernel, int64_t begin, int64_t end, const auto* addend,
                                      auto* out) {
              kernel({
                  k,
                  width,
                  begin,
                  end,
                  channels,
                  tap_begin,
                  tap_end,
                  sources.data(),
                  in_place ? call.channels : panels.size,
                  weight.data(),
                  panels.size,
                  bias.data(),
                  addend,
                  out,
                  call.channels,
                  call.gelu_output,
                  call.stat,
                  call.row_stats + (entry * height + row) * call.channels + channel,
              });
            };
            const int64_t at = map + row * row_size;
            if (call.normed == nullptr) {
              const int64_t start = at + strip * call.channels;
              convolve(kernels.convolve, strip, strip_end,
                       call.addend == nullptr ? nullptr : call.addend + start, call.y + start);
              continue;
            }
            for (int64_t x = strip; x < strip_end; x += kStrip) {
              const int64_t columns = std::min(kStrip, strip_end - x);
              const int64_t start = at + x * call.channels;
              convolve(kernels.convolve_wide, x, x + columns, static_cast<const T*>(nullptr),
                       unnormed.data());
              kernels.layer_norm({columns, channels, call.norm_weight, call.norm_bias, call.eps,
                                  unnormed.data(), call.skip_weight, call.skip_bias, call.y + start,
                                  call.normed + start});
            }
          }
        }
      }
    }
  });
}

template <typename S>
void run(const Convolution<S>& call) {
  if constexpr (std::is_same_v<S, Bfloat16>) {
    // Rounding the result of GELU or of an addition to bfloat16 would lose accuracy.
    if (pair_kernels() != nullptr && !call.gelu_input && call.input_bias == nullptr) {
      return run_with(*pair_kernels(), call);
    }
  }
  run_with(depthwise_kernels<S>(), call);
}

// Rows are added in their order, whatever thread computed them.
template <typename S, typename T>
void combine_rows(const Convolution<S>& call, T* stats) {
  const T pixels = static_cast<T>(call.height * call.width);
  for (int64_t entry = 0; entry < call.batch; ++entry, stats += call.channels) {
    const T* rows = call.row_stats + entry * call.height * call.channels;
    std::copy_n(rows, call.channels, stats);
    for (int64_t row = 1; row < call.height; ++row) {
      for (int64_t c = 0; c < call.channels; ++c) {
        stats[c] += rows[row * call.channels + c];
      }
    }
    for (int64_t c = 0; c < call.channels; ++c) {
      stats[c] = call.stat == Stat::kSum ? stats[c] / pixels : std::sqrt(stats[c]);
    }
  }
}

using OptionalTensor = std::optional<at::Tensor>;

// [B, H, W, C], contiguous.
at::Tensor pixels_of(const at::Tensor& map) { return map.permute({0, 2, 3, 1}).contiguous(); }

at::Tensor map_like(const at::Tensor& x) {
  return at::empty_like(x, x.options(), at::MemoryFormat::ChannelsLast);
}

// A weight in the memory of [K, K, C], in which the fused form of the network keeps it.
at::Tensor taps_of(const at::Tensor& weight) {
  const int64_t channels = weight.size(0), kernel_size = weight.size(2);
  const bool innermost = weight.stride(0) == 1 && weight.stride(3) == channels &&
                         weight.stride(2) == kernel_size * channels;
  return innermost ? weight : weight.permute({2, 3, 1, 0}).contiguous();
}

// Holds what the pointers of a Convolution point to.
struct Arguments {
  Arguments(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& addend)
      : kernel_size(weight.size(2)),
        x(pixels_of(x)),
        weight(taps_of(weight)),
        addend(addend.has_value() ? OptionalTensor(pixels_of(*addend)) : addend),
        y(map_like(x)) {}

  template <typename S>
  Convolution<S> convolution() const {
    return {x.size(0),
            x.size(3),
            x.size(1),
            x.size(2),
            kernel_size,
            pointer_to<S>(x),
            pointer_to<S>(weight),
            addend.has_value() ? pointer_to<S>(*addend) : nullptr,
            pointer_into<S>(y)};
  }

  int64_t kernel_size;
  at::Tensor x, weight;
  OptionalTensor addend;
  at::Tensor y;
};

}  // namespace

at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& input_bias,
                            const OptionalTensor& addend, bool gelu_input, bool gelu_output) {
  const Arguments arguments(x, weight, addend);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "depthwise_conv2d",
                                  [&] {
                                    using S = Plain<scalar_t>::type;
                                    const Parameter<S> bias_of(bias), shift(input_bias);
                                    Convolution<S> call = arguments.convolution<S>();
                                    call.bias = bias_of.data();
                                    call.input_bias = shift.data();
                                    call.gelu_input = gelu_input;
                                    call.gelu_output = gelu_output;
                                    run(call);
                                  });
  return arguments.y;
}

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_norm(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
    const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps,
    const OptionalTensor& skip_weight, const OptionalTensor& skip_bias) {
  const Arguments arguments(x, weight, std::nullopt);
  at::Tensor normed = map_like(x);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "depthwise_conv2d_norm", [&] {
        using S = Plain<scalar_t>::type;
        const Parameter<S> bias_of(bias), scale(norm_weight), shift(norm_bias);
        const Parameter<S> skip_scale(skip_weight), skip_shift(skip_bias);
        Convolution<S> call = arguments.convolution<S>();
        call.bias = bias_of.data();
        call.norm_weight = scale.data();
        call.norm_bias = shift.data();
        call.eps = eps;
        call.skip_weight = skip_scale.data();
        call.skip_bias = skip_shift.data();
        call.normed = pointer_into<S>(normed);
        run(call);
      });
  return {arguments.y, normed};
}

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_stats(const at::Tensor& x,
                                                          const at::Tensor& weight,
                                                          const OptionalTensor& bias,
                                                          const OptionalTensor& input_bias,
                                                          const OptionalTensor& addend,
                                                          bool gelu_input, c10::string_view stat) {
  const Arguments arguments(x, weight, addend);
  const auto options = x.options().dtype(computed_type(x));
  at::Tensor row_stats = at::empty({x.size(0), x.size(2), x.size(1)}, options);
  at::Tensor stats = at::empty({x.size(0), x.size(1)}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(),
                                  "depthwise_conv2d_stats", [&] {
                                    using S = Plain<scalar_t>::type;
                                    using T = Computed<S>::type;
                                    const Parameter<S> bias_of(bias), shift(input_bias);
                                    Convolution<S> call = arguments.convolution<S>();
                                    call.bias = bias_of.data();
                                    call.input_bias = shift.data();
                                    call.gelu_input = gelu_input;
                                    call.stat = stat == "mean" ? Stat::kSum : Stat::kSumOfSquares;
                                    call.row_stats = pointer_into<T>(row_stats);
                                    run(call);
                                    combine_rows(call, pointer_into<T>(stats));
                                  });
  return {arguments.y, stats};
}

TORCH_LIBRARY_IMPL(overlock_mm_C, CPU, m) {
  m.impl("depthwise_conv2d", &depthwise_conv2d);
  m.impl("depthwise_conv2d_norm", &depthwise_conv2d_norm);
  m.impl("depthwise_conv2d_stats", &depthwise_conv2d_stats);
}

}  // namespace overlock
