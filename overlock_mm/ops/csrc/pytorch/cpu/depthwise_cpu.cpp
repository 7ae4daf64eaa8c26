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
#include <vector>

#include "depthwise_kernels.h"
#include "planes.h"

namespace overlock {
namespace {

// A call on maps in channels_last memory; a pointer to something that is not asked for is null.
template <typename T>
struct Convolution {
  int64_t batch, channels, height, width, kernel_size;
  const T* x;
  const T* weight;
  int64_t weight_channel_stride, weight_row_stride, weight_column_stride;
  const T* bias;
  const T* addend;
  T* y;
  const T* input_bias = nullptr;
  bool gelu_input = false, gelu_output = false;
  Stat stat = Stat::kNone;
  T* row_stats = nullptr;  // [B, H, C]
  const T* norm_weight = nullptr;
  const T* norm_bias = nullptr;
  T eps = 0;
  const T* skip_weight = nullptr;
  const T* skip_bias = nullptr;
  T* normed = nullptr;
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
// Channels of a panel, by measurement, for small and large kernels. All that a thread reads
// again, rows and weights, should stay in the second-level cache of a core.
constexpr int64_t kPanelOfSmall = 64;
constexpr int64_t kPanelOfLarge = 32;
// Columns that are computed row by row before their neighbours, by large kernels. Blocks of 7
// and of 8 columns divide it.
constexpr int64_t kStrip = 56;

template <typename T>
int64_t panel_size(const Convolution<T>& call, bool in_place) {
  if (call.normed != nullptr) {
    return call.channels;  // LayerNorm needs all of a column
  }
  if (call.kernel_size > 3) {
    return kPanelOfLarge;
  }
  return in_place ? call.channels : kPanelOfSmall;
}

// Weights [K * K][panel] and bias [panel].
template <typename T>
void pack_parameters(const Convolution<T>& call, int64_t begin, int64_t width, int64_t ld,
                     T* weight, T* bias) {
  const int64_t k = call.kernel_size;
  const T* from = call.weight + begin * call.weight_channel_stride;
  for (int64_t row = 0; row < k; ++row) {
    for (int64_t column = 0; column < k; ++column) {
      const T* tap = from + row * call.weight_row_stride + column * call.weight_column_stride;
      T* packed = weight + (row * k + column) * ld;
      for (int64_t c = 0; c < width; ++c) {
        packed[c] = tap[c * call.weight_channel_stride];
      }
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    bias[c] = call.bias == nullptr ? T(0) : call.bias[begin + c];
  }
}

template <typename T>
void run(const Convolution<T>& call) {
  const DepthwiseKernels<T>& kernels = depthwise_kernels<T>();
  const int64_t k = call.kernel_size, height = call.height, width = call.width;
  // Whole vectors of channels can be read where they are.
  const bool in_place =
      !call.gelu_input && call.input_bias == nullptr && call.channels % kernels.lanes == 0;
  const Panels panels(call.channels, kernels.lanes, panel_size(call, in_place));
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
    Scratch<T> packed(in_place ? 0 : k * packed_row);
    Scratch<T> weight(k * k * panels.size), bias(panels.size);
    std::vector<const T*> sources(k);
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
        pack_parameters(call, channel, channels, panels.size, weight.data(), bias.data());
        for (int64_t strip = 0; strip < width; strip += strip_size) {
          const int64_t strip_end = std::min(width, strip + strip_size);
          int64_t next = std::max<int64_t>(0, first - k / 2);  // row to be packed
          for (int64_t row = first; row < last; ++row) {
            const int64_t top = row - k / 2;
            const int64_t tap_begin = std::max<int64_t>(0, -top);
            const int64_t tap_end = std::min(k, height - top);
            for (; !in_place && next < top + tap_end; ++next) {
              kernels.pack(width, channels, call.x + map + next * row_size, call.channels,
                           call.input_bias == nullptr ? nullptr : call.input_bias + channel,
                           call.gelu_input, packed.data() + next % k * packed_row, panels.size);
            }
            for (int64_t r = tap_begin; r < tap_end; ++r) {
              sources[r] = in_place ? call.x + map + (top + r) * row_size
                                    : packed.data() + (top + r) % k * packed_row;
            }
            const int64_t at = map + row * row_size;
            kernels.convolve({
                k,
                width,
                strip,
                strip_end,
                channels,
                tap_begin,
                tap_end,
                sources.data(),
                in_place ? call.channels : panels.size,
                weight.data(),
                panels.size,
                bias.data(),
                call.addend == nullptr ? nullptr : call.addend + at,
                call.y + at,
                call.channels,
                call.gelu_output,
                call.stat,
                call.row_stats + (entry * height + row) * call.channels + channel,
            });
            if (call.normed != nullptr) {
              const int64_t begin = at + strip * call.channels;
              kernels.layer_norm({strip_end - strip, channels, call.norm_weight, call.norm_bias,
                                  call.eps, call.y + begin, call.skip_weight, call.skip_bias,
                                  call.normed + begin});
            }
          }
        }
      }
    }
  });
}

// Rows are added in their order, whatever thread computed them.
template <typename T>
void combine_rows(const Convolution<T>& call, T* stats) {
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

template <typename T>
const T* pointer_to(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr;
}

OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(tensor->contiguous()) : tensor;
}

// [B, H, W, C], contiguous.
at::Tensor pixels_of(const at::Tensor& map) { return map.permute({0, 2, 3, 1}).contiguous(); }

at::Tensor map_like(const at::Tensor& x) {
  return at::empty_like(x, x.options(), at::MemoryFormat::ChannelsLast);
}

// Holds what the pointers of a Convolution point to.
struct Arguments {
  Arguments(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
            const OptionalTensor& addend)
      : x(pixels_of(x)),
        weight(weight),
        bias(contiguous(bias)),
        addend(addend.has_value() ? OptionalTensor(pixels_of(*addend)) : addend),
        y(map_like(x)) {}

  template <typename T>
  Convolution<T> convolution() const {
    return {x.size(0),
            x.size(3),
            x.size(1),
            x.size(2),
            weight.size(2),
            x.const_data_ptr<T>(),
            weight.const_data_ptr<T>(),
            weight.stride(0),
            weight.stride(2),
            weight.stride(3),
            pointer_to<T>(bias),
            pointer_to<T>(addend),
            y.mutable_data_ptr<T>()};
  }

  at::Tensor x, weight;
  OptionalTensor bias, addend;
  at::Tensor y;
};

at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& input_bias,
                            const OptionalTensor& addend, bool gelu_input, bool gelu_output) {
  const Arguments arguments(x, weight, bias, addend);
  const OptionalTensor shift = contiguous(input_bias);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
    call.input_bias = pointer_to<scalar_t>(shift);
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
  const Arguments arguments(x, weight, bias, std::nullopt);
  const at::Tensor scale = norm_weight.contiguous(), shift = norm_bias.contiguous();
  const OptionalTensor skip_scale = contiguous(skip_weight), skip_shift = contiguous(skip_bias);
  at::Tensor normed = map_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d_norm", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
    call.norm_weight = scale.const_data_ptr<scalar_t>();
    call.norm_bias = shift.const_data_ptr<scalar_t>();
    call.eps = static_cast<scalar_t>(eps);
    call.skip_weight = pointer_to<scalar_t>(skip_scale);
    call.skip_bias = pointer_to<scalar_t>(skip_shift);
    call.normed = normed.mutable_data_ptr<scalar_t>();
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
  const Arguments arguments(x, weight, bias, addend);
  const OptionalTensor shift = contiguous(input_bias);
  at::Tensor row_stats = at::empty({x.size(0), x.size(2), x.size(1)}, x.options());
  at::Tensor stats = at::empty({x.size(0), x.size(1)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d_stats", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
    call.input_bias = pointer_to<scalar_t>(shift);
    call.gelu_input = gelu_input;
    call.stat = stat == "mean" ? Stat::kSum : Stat::kSumOfSquares;
    call.row_stats = row_stats.mutable_data_ptr<scalar_t>();
    run(call);
    combine_rows(call, stats.mutable_data_ptr<scalar_t>());
  });
  return {arguments.y, stats};
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CPU, m) {
  m.impl("depthwise_conv2d", &depthwise_conv2d);
  m.impl("depthwise_conv2d_norm", &depthwise_conv2d_norm);
  m.impl("depthwise_conv2d_stats", &depthwise_conv2d_stats);
}

}  // namespace overlock
