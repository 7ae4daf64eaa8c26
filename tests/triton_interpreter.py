"""Triton's interpreter, repaired for the tests."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair() -> None:
    """Let comparisons return booleans.

    In the interpreter they have the type of what they compare. `tensor & (y < height)` with a
    scalar y is then an integer, which that of Triton 3.9 refuses as a mask.
    """
    binary_op = InterpreterBuilder.binary_op

    def with_booleans(self, lhs, rhs, op):
        result = binary_op(self, lhs, rhs, op)
        return TensorHandle(result.data, tl.int1) if result.data.dtype == np.bool_ else result

    InterpreterBuilder.binary_op = with_booleans
