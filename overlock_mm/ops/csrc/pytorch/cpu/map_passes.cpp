#include "map_passes.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "map_kernels.h"
#include "parameters.h"

namespace overlock {
namespace {

// Elements of a map below which a second thread does not pay.
constexpr int64_t kGrain = 16384;

bool has_pixels(const at::Tensor& map) {
  const int64_t ld = map.stride(3);
  return map.stride(1) == 1 && map.stride(2) == map.size(3) * ld &&
         map.stride(0) == map.size(2) * map.size(3) * ld;
}

// A map whose pixels lie at one distance, each with its channels side by side.
struct Pixels {
  explicit Pixels(const at::Tensor& x)
      : map(has_pixels(x) ? x : x.contiguous(at::MemoryFormat::ChannelsLast)),
        batch(x.size(0)),
        channels(x.size(1)),
        height(x.size(2)),
        width(x.size(3)),
        ld(map.stride(3)) {}

  // Row `index` of all samples' rows.
  template <typename S>
  const S* row(int64_t index) const {
    return pointer_to<S>(map) + index * width * ld;
  }

  // function(begin, end) of ranges of rows, on all threads.
  template <typename F>
  void parallel_rows(const F& function) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width * channels));
    at::parallel_for(0, batch * height, grain, function);
  }

  at::Tensor map;
  int64_t batch, channels, height, width, ld;
};

// All channels of a map.
struct WholePixels : Pixels {
  explicit WholePixels(const at::Tensor& x) : Pixels(x) {
    TORCH_INTERNAL_ASSERT(has_pixels(x) && ld == channels);
  }

  template <typename S>
  S* row_to_write(int64_t index) const {
    return pointer_into<S>(map) + index * width * ld;
  }
};

}  // namespace

void scale_map(const at::Tensor& map, const at::Tensor& factor,
               const std::optional<at::Tensor>& shift) {
  const WholePixels pixels(map);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "scale_map", [&] {
    using S = Plain<scalar_t>::type;
    using T = Computed<S>::type;
    const Parameter<S> shifts(shift);
    const T* factors = pointer_to<T>(factor);
    pixels.parallel_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        map_kernels<S>().scale(pixels.width, pixels.channels,
                               factors + row / pixels.height * pixels.channels, shifts.data(),
                               pixels.row_to_write<S>(row));
      }
    });
  });
}

void gate_map(const at::Tensor& map, const at::Tensor& gate,
              const std::optional<at::Tensor>& factor) {
  const WholePixels pixels(map), gates(gate);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "gate_map", [&] {
    using S = Plain<scalar_t>::type;
    using T = Computed<S>::type;
    const T* factors = factor.has_value() ? pointer_to<T>(*factor) : nullptr;
    pixels.parallel_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        map_kernels<S>().gate(
            pixels.width, pixels.channels, gates.row<S>(row),
            factors == nullptr ? nullptr : factors + row / pixels.height * pixels.channels,
            pixels.row_to_write<S>(row));
      }
    });
  });
}

at::Tensor norm_of_map(const at::Tensor& map) {
  const WholePixels pixels(map);
  const int64_t channels = pixels.channels;
  const auto options = map.options().dtype(computed_type(map));
  at::Tensor norms = at::zeros({pixels.batch, channels}, options);
  // Rows are added in their order, whatever thread computed them.
  const at::Tensor row_sums = at::zeros({pixels.batch * pixels.height, channels}, options);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "norm_of_map", [&] {
    using S = Plain<scalar_t>::type;
    using T = Computed<S>::type;
    T* sums = pointer_into<T>(row_sums);
    pixels.parallel_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        map_kernels<S>().add_squares(pixels.width, channels, pixels.row<S>(row),
                                     sums + row * channels);
      }
    });
    for (int64_t entry = 0; entry < pixels.batch; ++entry) {
      T* norm = pointer_into<T>(norms) + entry * channels;
      for (int64_t row = 0; row < pixels.height; ++row, sums += channels) {
        for (int64_t c = 0; c < channels; ++c) {
          norm[c] += sums[c];
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        norm[c] = std::sqrt(norm[c]);
      }
    }
  });
  return norms;
}

at::Tensor join_maps(const at::Tensor& x, const at::Tensor& context, const at::Tensor& prior,
                     at::TensorList scales) {
  const Pixels first(x), second(context), third(prior);
  const int64_t channels = first.channels + second.channels;
  at::Tensor joined = at::empty({first.batch, channels, first.height, first.width}, x.options(),
                                at::MemoryFormat::ChannelsLast);
  const WholePixels out(joined);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "join_maps", [&] {
    using S = Plain<scalar_t>::type;
    const auto scale = [&](size_t i) {
      return scales.empty() ? std::optional<at::Tensor>() : scales[i];
    };
    const Parameter<S> context_scale(scale(0)), prior_scale(scale(1)), shift(scale(2));
    out.parallel_rows([&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        S* to = out.row_to_write<S>(row);
        const S* from = first.row<S>(row);
        for (int64_t column = 0; column < first.width; ++column) {
          std::copy_n(from + column * first.ld, first.channels, to + column * channels);
        }
        to += first.channels;
        from = second.row<S>(row);
        if (!scales.empty()) {
          map_kernels<S>().mix(first.width, second.channels, from, second.ld, context_scale.data(),
                               third.row<S>(row), third.ld, prior_scale.data(), shift.data(), to,
                               channels);
          continue;
        }
        for (int64_t column = 0; column < first.width; ++column) {
          std::copy_n(from + column * second.ld, second.channels, to + column * channels);
        }
      }
    });
  });
  return joined;
}

}  // namespace overlock
