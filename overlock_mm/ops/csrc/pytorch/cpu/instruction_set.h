// Selection among kernels that are compiled once per instruction set.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace overlock {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The one that ATen uses (ATEN_CPU_CAPABILITY overrules).
inline InstructionSet instruction_set() {
  static const InstructionSet set = [] {
    const std::string capability = at::get_cpu_capability();
    return capability == "AVX512" ? InstructionSet::kAvx512
           : capability == "AVX2" ? InstructionSet::kAvx2
                                  : InstructionSet::kBaseline;
  }();
  return set;
}

}  // namespace overlock

// Calls a function of the namespace of that instruction set. Processors that are not x86 have only
// the baseline.
#if defined(__x86_64__)
#define OVERLOCK_FOR_INSTRUCTION_SET(call)                                 \
  (::overlock::instruction_set() == InstructionSet::kAvx512 ? avx512::call \
   : ::overlock::instruction_set() == InstructionSet::kAvx2 ? avx2::call   \
                                                            : baseline::call)
#else
#define OVERLOCK_FOR_INSTRUCTION_SET(call) baseline::call
#endif
