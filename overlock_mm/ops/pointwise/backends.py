"""The contract of a backend of the pointwise convolution.

A backend is a module that registers one function::

    linear(rows, weight, added, inplace) -> rows @ weight.mT + added

and ``why_not(call)``: see :mod:`overlock_mm.ops.selection`. ``rows`` are [N, I] or [B, N, I],
``weight`` is [O, I] or [B, O, I]. ``added`` is a bias [O], a tensor of the result's shape, or None.
``inplace`` lets the result take the memory of such a tensor; it is only set for simple calls.

This is not an operator of its own for torch: the definition consists of torch's products, which
have derivatives of all kinds, and of which compiled graphs are made.
"""

from dataclasses import dataclass

from overlock_mm.ops import selection
from overlock_mm.ops.selection import Backends


@dataclass(frozen=True)
class Call(selection.Call):
    """The properties of a call that decide whether a backend can run it.

    Attributes:
        simple: All tensors have one dtype and elements, and no gradient, autocast, tracer, mode or
            transform must see the product.
    """

    simple: bool = True


BACKENDS = Backends(
    'pointwise', operators=('pointwise_conv2d',), functions=('linear',), call_type=Call
)
