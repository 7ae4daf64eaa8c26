// Factors per channel, from statistics over the pixels. Their few hundred numbers take less time
// than a call of one ATen operator, of which there would be twenty in a block.
#pragma once

#include <ATen/core/Tensor.h>

namespace overlock {

// Those of a squeeze-excite layer: sigmoid(excite(gelu(squeeze(mean)))).
//   mean [B, C] in the type of arithmetic, which the result has too; weights [H, C] and [C, H].
at::Tensor channel_gate(const at::Tensor& mean, const at::Tensor& squeeze,
                        const at::Tensor& squeeze_bias, const at::Tensor& excite,
                        const at::Tensor& excite_bias);

// Those of global response normalisation: gamma * norm / (mean of norm + 1e-6) + 1.
//   norm [B, C] in the type of arithmetic, which the result has too; gamma [C].
at::Tensor channel_response(const at::Tensor& norm, const at::Tensor& gamma);

}  // namespace overlock
