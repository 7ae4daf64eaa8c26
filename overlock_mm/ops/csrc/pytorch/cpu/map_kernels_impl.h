// Bodies of the kernels of map_kernels.h. Included by one file per instruction set, which defines
// OVERLOCK_ISA (a namespace) and OVERLOCK_VECTOR_BYTES (bytes of a register).
//
// No standard templates here: the linker could pick this copy, compiled for this instruction
// set, for all.

#include <cstdint>

#include "exp_impl.h"
#include "map_kernels.h"
#include "vector_impl.h"

namespace overlock {
namespace OVERLOCK_ISA {
namespace {

template <typename S>
struct Maps {
  using T = typename Computed<S>::type;
  using Vector = typename Wide<T>::type;
  static constexpr int64_t kLanes = Wide<T>::kLanes;

  static void scale(int64_t columns, int64_t channels, const T* factor, const T* shift, S* y) {
    for (int64_t column = 0; column < columns; ++column, y += channels) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t n = channels - c;
        Vector value = load_first(y + c, n) * load_first(factor + c, n);
        if (shift != nullptr) {
          value += load_first(shift + c, n);
        }
        store_first(y + c, value, n);
      }
    }
  }

  static void gate(int64_t columns, int64_t channels, const S* gate, const T* factor, S* y) {
    for (int64_t column = 0; column < columns; ++column, y += channels, gate += channels) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t n = channels - c;
        const Vector x = load_first(gate + c, n);
        Vector value = load_first(y + c, n) * x / (exp_of(-x) + T(1));
        if (factor != nullptr) {
          value *= load_first(factor + c, n);
        }
        store_first(y + c, value, n);
      }
    }
  }

  static void add_squares(int64_t columns, int64_t channels, const S* x, T* sums) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t n = channels - c;
      Vector sum = load_first(sums + c, n);
      for (int64_t column = 0; column < columns; ++column) {
        const Vector value = load_first(x + column * channels + c, n);
        sum += value * value;
      }
      store_first(sums + c, sum, n);
    }
  }

  static void mix(int64_t columns, int64_t channels, const S* x, int64_t x_ld, const T* x_factor,
                  const S* y, int64_t y_ld, const T* y_factor, const T* shift, S* out,
                  int64_t out_ld) {
    for (int64_t column = 0; column < columns; ++column, x += x_ld, y += y_ld, out += out_ld) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t n = channels - c;
        const Vector first = load_first(x + c, n) * load_first(x_factor + c, n);
        const Vector second = load_first(y + c, n) * load_first(y_factor + c, n);
        store_first(out + c, first + second + load_first(shift + c, n), n);
      }
    }
  }

  static constexpr MapKernels<S> kernels = {scale, gate, add_squares, mix};
};

}  // namespace

template <>
const MapKernels<float>& map_kernels<float>() {
  return Maps<float>::kernels;
}

template <>
const MapKernels<double>& map_kernels<double>() {
  return Maps<double>::kernels;
}

template <>
const MapKernels<Half>& map_kernels<Half>() {
  return Maps<Half>::kernels;
}

template <>
const MapKernels<Bfloat16>& map_kernels<Bfloat16>() {
  return Maps<Bfloat16>::kernels;
}

}  // namespace OVERLOCK_ISA
}  // namespace overlock
