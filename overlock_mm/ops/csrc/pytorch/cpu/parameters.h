// From tensors to the pointers of kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "storage.h"

namespace overlock {

inline float wide(float value) { return value; }
inline double wide(double value) { return value; }
inline float wide(Half value) { return c10::Half(value.bits, c10::Half::from_bits()); }
inline float wide(Bfloat16 value) { return c10::BFloat16(value.bits, c10::BFloat16::from_bits()); }

// The type of storage.h that stands for a dtype.
template <typename T>
struct Plain {
  using type = T;
};
template <>
struct Plain<c10::Half> {
  using type = Half;
};
template <>
struct Plain<c10::BFloat16> {
  using type = Bfloat16;
};

// What maps of this dtype are computed in.
inline at::ScalarType computed_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <typename S>
const S* pointer_to(const at::Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

template <typename S>
S* pointer_into(const at::Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

// The entries of a vector in the type of arithmetic; null if there is none.
template <typename S>
class Parameter {
 public:
  using T = typename Computed<S>::type;

  explicit Parameter(const std::optional<at::Tensor>& tensor) {
    if (!tensor.has_value()) {
      return;
    }
    const int64_t size = tensor->numel(), stride = tensor->dim() == 1 ? tensor->stride(0) : 1;
    TORCH_INTERNAL_ASSERT(tensor->dim() == 1 || tensor->is_contiguous());
    const S* from = pointer_to<S>(*tensor);
    if constexpr (std::is_same_v<S, T>) {
      if (stride == 1) {
        data_ = from;
        return;
      }
    }
    copy_.resize(size);
    for (int64_t i = 0; i < size; ++i) {
      copy_[i] = wide(from[i * stride]);
    }
    data_ = copy_.data();
  }
  Parameter(const Parameter&) = delete;

  const T* data() const { return data_; }

 private:
  std::vector<T> copy_;
  const T* data_ = nullptr;
};

}  // namespace overlock
