"""The contract of a backend of the depthwise operators.

A backend is a module that registers four functions, which know nothing of autograd::

    depthwise_conv2d(x, weight, bias, input_bias, addend, gelu_input, gelu_output, dilation) -> y
    depthwise_conv2d_weight_grad(grad_out, x, kernel_size, dilation) -> [C, 1, k, k]
    depthwise_conv2d_norm(x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias)
        -> (y, normed)
    depthwise_conv2d_stats(x, weight, bias, input_bias, addend, gelu_input, stat) -> (y, [B, C])

and ``why_not(call)``: see :mod:`overlock_mm.ops.selection`. Arguments are validated and not empty,
with any strides; parameters have the dtype of the activations. Maps are returned in channels_last
memory, the gradient of the weight contiguous and in the dtype of accumulation.
"""

from collections.abc import Iterable

from overlock_mm.ops.depthwise.call import Call
from overlock_mm.ops.depthwise.self_test import problem
from overlock_mm.ops.selection import Backends

__all__ = ['BACKENDS', 'Call']

#: Smallest kernel for which the kernels of this package precede cuDNN, the definition. In bfloat16
#: and channels_last memory cuDNN took 3.7 ms on an H200 where the arithmetic of a 17 x 17 kernel
#: takes 0.13. The 3 x 3 kernel has not been compared; dilated kernels cuDNN does not have.
MIN_OWN_KERNEL_SIZE = 5


def _order(call: Call) -> Iterable[str]:
    if 0 < call.kernel_size < MIN_OWN_KERNEL_SIZE and call.dilation == 1:
        return ('cpu', 'reference', 'cuda', 'triton')
    if call.gradient:  # of which 'cuda' has no kernel
        return ('cpu', 'triton', 'cuda', 'reference')
    return BACKENDS


_OPERATORS = ('depthwise_conv2d', 'depthwise_conv2d_norm', 'depthwise_conv2d_stats')

BACKENDS = Backends(
    'depthwise',
    operators=_OPERATORS,
    functions=(*_OPERATORS, 'depthwise_conv2d_weight_grad'),
    call_type=Call,
    problem=problem,
    order=_order,
)
