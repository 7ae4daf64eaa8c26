#include "channel_factors.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty_like.h>

#include <cmath>
#include <vector>

namespace overlock {
namespace {

constexpr double kEps = 1e-6;

// Sums that the compiler may keep in the lanes of registers.
constexpr int64_t kParts = 16;

template <typename S, typename T>
T dot(int64_t n, const T* x, const S* y) {
  T parts[kParts] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int64_t j = 0; j < kParts; ++j) {
      parts[j] += x[i + j] * static_cast<T>(y[i + j]);
    }
  }
  for (; i < n; ++i) {
    sum += x[i] * static_cast<T>(y[i]);
  }
  for (const T part : parts) {
    sum += part;
  }
  return sum;
}

// weight [O, I] times x [I], plus bias [O].
template <typename S, typename T>
std::vector<T> linear(const at::Tensor& weight, const at::Tensor& bias, const T* x) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const at::Tensor shift = bias.contiguous();
  const S* start = shift.const_data_ptr<S>();
  std::vector<T> y(start, start + outputs);
  if (weight.stride(0) == 1) {  // as the fused form has it in float32
    for (int64_t i = 0; i < inputs; ++i) {
      const S* column = weight.const_data_ptr<S>() + i * weight.stride(1);
      for (int64_t o = 0; o < outputs; ++o) {
        y[o] += x[i] * static_cast<T>(column[o]);
      }
    }
    return y;
  }
  const at::Tensor rows = weight.contiguous();
  for (int64_t o = 0; o < outputs; ++o) {
    y[o] += dot(inputs, x, rows.const_data_ptr<S>() + o * inputs);
  }
  return y;
}

}  // namespace

at::Tensor channel_gate(const at::Tensor& mean, const at::Tensor& squeeze,
                        const at::Tensor& squeeze_bias, const at::Tensor& excite,
                        const at::Tensor& excite_bias) {
  at::Tensor factors = at::empty_like(mean);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, squeeze.scalar_type(), "channel_gate", [&] {
        using T = at::opmath_type<scalar_t>;
        const T* from = mean.const_data_ptr<T>();
        T* to = factors.mutable_data_ptr<T>();
        for (int64_t entry = 0; entry < mean.size(0); ++entry, from += mean.size(1)) {
          std::vector<T> hidden = linear<scalar_t, T>(squeeze, squeeze_bias, from);
          for (T& x : hidden) {
            x *= T(0.5) * std::erfc(x * T(-M_SQRT1_2));
          }
          for (const T x : linear<scalar_t, T>(excite, excite_bias, hidden.data())) {
            *to++ = 1 / (1 + std::exp(-x));
          }
        }
      });
  return factors;
}

at::Tensor channel_response(const at::Tensor& norm, const at::Tensor& gamma) {
  at::Tensor factors = at::empty_like(norm);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, gamma.scalar_type(), "channel_response", [&] {
        using T = at::opmath_type<scalar_t>;
        const int64_t channels = norm.size(1);
        const at::Tensor scales = gamma.contiguous();
        const scalar_t* scale = scales.const_data_ptr<scalar_t>();
        const T* from = norm.const_data_ptr<T>();
        T* to = factors.mutable_data_ptr<T>();
        for (int64_t entry = 0; entry < norm.size(0); ++entry, from += channels, to += channels) {
          T mean = 0;
          for (int64_t c = 0; c < channels; ++c) {
            mean += from[c] / channels;
          }
          for (int64_t c = 0; c < channels; ++c) {
            to[c] = static_cast<T>(scale[c]) * (from[c] / (mean + T(kEps))) + 1;
          }
        }
      });
  return factors;
}

}  // namespace overlock
