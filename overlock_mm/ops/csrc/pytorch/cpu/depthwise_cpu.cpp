#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
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
  bool gelu_input = false, gelu_output = false;
  Stat stat = Stat::kNone;
  T* row_stats = nullptr;  // [B, H, C]
  const T* norm_weight = nullptr;
  const T* norm_bias = nullptr;
  T eps = 0;
  T* normed = nullptr;
};

int64_t env(const char* name, int64_t value) {
  const char* text = std::getenv(name);
  return text == nullptr ? value : std::atoll(text);
}

// The channels of a map, cut into panels of whole vectors of about the same size.
struct Panels {
  Panels(int64_t channels, int64_t lanes, int64_t most) : channels(channels) {
    const int64_t vectors = (channels + lanes - 1) / lanes;
    const int64_t wanted = std::max<int64_t>(1, most / lanes);
    const int64_t number = (vectors + wanted - 1) / wanted;
    size = (vectors + number - 1) / number * lanes;
    count = (channels + size - 1) / size;
  }
  int64_t begin(int64_t panel) const { return panel * size; }
  int64_t width(int64_t panel) const { return std::min(size, channels - begin(panel)); }

  int64_t channels;
  int64_t size;  // of all but the last, and the room for each
  int64_t count;
};

// Source rows and weights of a panel should stay in the second-level cache of a core.
constexpr int64_t kPanelBytes = 256 * 1024;

template <typename T>
int64_t most_channels(const Convolution<T>& call) {
  if (call.normed != nullptr) {
    return call.channels;  // LayerNorm needs all of a column
  }
  const int64_t taps = call.kernel_size * call.kernel_size;
  const int64_t bytes = (call.kernel_size * call.width + taps) * sizeof(T);
  return std::min<int64_t>(env("DW_PANEL", 64), env("DW_BYTES", kPanelBytes) / bytes);
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
  const Panels panels(call.channels, kernels.lanes, most_channels(call));
  // Whole vectors of channels can be read where they are.
  const bool in_place = env("DW_INPLACE", 1) && !call.gelu_input && call.channels % kernels.lanes == 0;
  const int64_t work = width * panels.size / kernels.lanes * (k * k + 32);
  const int64_t grain = std::max<int64_t>(1, env("DW_GRAIN", 32768) / work);

  // Rows of a panel of a batch entry, one after the other.
  at::parallel_for(0, call.batch * panels.count * height, grain, [&](int64_t begin, int64_t end) {
    const int64_t packed_row = width * panels.size;
    Scratch<T> packed(in_place ? 0 : k * packed_row);
    Scratch<T> weight(k * k * panels.size), bias(panels.size);
    std::vector<const T*> sources(k);
    int64_t packed_panel = -1;
    while (begin < end) {
      const int64_t panel = begin / height % panels.count;
      const int64_t entry = begin / height / panels.count;
      const int64_t first = begin % height;
      const int64_t last = std::min(height, first + end - begin);  // exclusive
      begin += last - first;
      const int64_t channel = panels.begin(panel), channels = panels.width(panel);
      const int64_t map = entry * height * width * call.channels + channel;
      if (panel != packed_panel) {
        pack_parameters(call, channel, channels, panels.size, weight.data(), bias.data());
        packed_panel = panel;
      }
      int64_t next = std::max<int64_t>(0, first - k / 2);  // row to be packed
      for (int64_t row = first; row < last; ++row) {
        const int64_t top = row - k / 2;
        const int64_t tap_begin = std::max<int64_t>(0, -top);
        const int64_t tap_end = std::min(k, height - top);
        for (; !in_place && next < top + tap_end; ++next) {
          kernels.pack(width, channels, call.x + map + next * width * call.channels, call.channels,
                       call.gelu_input, packed.data() + next % k * packed_row, panels.size);
        }
        for (int64_t r = tap_begin; r < tap_end; ++r) {
          sources[r] = in_place ? call.x + map + (top + r) * width * call.channels
                                : packed.data() + (top + r) % k * packed_row;
        }
        const int64_t at = map + row * width * call.channels;
        kernels.convolve({
            k,
            width,
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
          kernels.layer_norm(width, channels, call.y + at, call.norm_weight, call.norm_bias,
                             call.eps, call.normed + at);
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
                            const OptionalTensor& bias, const OptionalTensor& addend,
                            bool gelu_input, bool gelu_output) {
  const Arguments arguments(x, weight, bias, addend);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
    call.gelu_input = gelu_input;
    call.gelu_output = gelu_output;
    run(call);
  });
  return arguments.y;
}

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_norm(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
    const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps) {
  const Arguments arguments(x, weight, bias, std::nullopt);
  const at::Tensor scale = norm_weight.contiguous(), shift = norm_bias.contiguous();
  at::Tensor normed = map_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d_norm", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
    call.norm_weight = scale.const_data_ptr<scalar_t>();
    call.norm_bias = shift.const_data_ptr<scalar_t>();
    call.eps = static_cast<scalar_t>(eps);
    call.normed = normed.mutable_data_ptr<scalar_t>();
    run(call);
  });
  return {arguments.y, normed};
}

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_stats(const at::Tensor& x,
                                                          const at::Tensor& weight,
                                                          const OptionalTensor& bias,
                                                          const OptionalTensor& addend,
                                                          bool gelu_input, c10::string_view stat) {
  const Arguments arguments(x, weight, bias, addend);
  at::Tensor row_stats = at::empty({x.size(0), x.size(2), x.size(1)}, x.options());
  at::Tensor stats = at::empty({x.size(0), x.size(1)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_conv2d_stats", [&] {
    Convolution<scalar_t> call = arguments.convolution<scalar_t>();
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
