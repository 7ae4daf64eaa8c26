"""A kernel with one loop, for tests; Triton reads kernels from files."""

import triton
import triton.language as tl


@triton.jit
def row_sums(x, out, rows, BLOCK: tl.constexpr):
    """Add up every n-th row, where n is the number of programs."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        total += tl.load(x + row * BLOCK + column)
    tl.store(out + tl.program_id(0) * BLOCK + column, total)
