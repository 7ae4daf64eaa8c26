#include "row_kernels.h"

#include "instruction_set.h"

namespace overlock {

template <typename T>
const RowKernels<T>& row_kernels() {
  return OVERLOCK_FOR_INSTRUCTION_SET(kernels<T>());
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
