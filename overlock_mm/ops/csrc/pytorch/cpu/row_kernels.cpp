#include "row_kernels.h"

#include <ATen/Version.h>

#include <string>

namespace overlock {

template <typename T>
const RowKernels<T>& row_kernels() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::kernels<T>();
  }
  if (capability == "AVX2") {
    return avx2::kernels<T>();
  }
#endif
  return baseline::kernels<T>();
}

const PairRowKernels* pair_row_kernels() {
#if OVERLOCK_HAS_AVX512_BF16
  if (has_pair_kernels()) {
    return &avx512_bf16::pair_row_kernels();
  }
#endif
  return nullptr;
}

template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace overlock
