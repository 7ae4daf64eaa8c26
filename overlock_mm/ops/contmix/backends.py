"""The contract of a backend of ContMix and of the aggregation.

A backend is a module that registers four functions, which know nothing of autograd::

    contmix_forward(arguments) -> (out, logsumexp [B, G, H, W])
    contmix_backward(grad_out, arguments, out, logsumexp)
        -> one gradient for each of the six tensors, in its shape and dtype
    neighborhood_aggregate_forward(weight, value, kernel_size, dilation) -> out
    neighborhood_aggregate_backward(grad_out, weight, value, kernel_size, dilation)
        -> (d_weight, d_value)

and ``why_not(call)``: see :mod:`overlock_mm.ops.selection`. ``arguments`` are
:class:`ContMixArguments`. They are validated and not empty, with any strides. Outputs and
gradients of query, value and weight have the strides that ``torch.empty_like`` gives them, the
others are contiguous.
"""

from overlock_mm.ops.contmix.call import Call
from overlock_mm.ops.contmix.self_test import problem
from overlock_mm.ops.selection import Backends

BACKENDS = Backends(
    'contmix',
    operators=('contmix', 'neighborhood_aggregate'),
    functions=(
        'contmix_forward',
        'contmix_backward',
        'neighborhood_aggregate_forward',
        'neighborhood_aggregate_backward',
    ),
    call_type=Call,
    reference_is_slow=True,
    problem=problem,
)
