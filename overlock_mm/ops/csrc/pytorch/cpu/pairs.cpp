#include "pairs.h"

#include <cstdlib>

#include "instruction_set.h"

namespace overlock {

bool has_pair_kernels() {
#if OVERLOCK_HAS_AVX512_BF16
  static const bool present = instruction_set() == InstructionSet::kAvx512 &&
                              std::getenv("ATEN_CPU_CAPABILITY") == nullptr &&
                              __builtin_cpu_supports("avx512bf16");
  return present;
#else
  return false;
#endif
}

}  // namespace overlock
