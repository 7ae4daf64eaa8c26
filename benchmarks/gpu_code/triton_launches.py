"""Compiles Triton kernels for a named architecture, with the arguments of real launches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.gpu_code import ptx, sass, triton_ir
from benchmarks.gpu_code.cards import CARDS, WARP


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        code: The machine code.
        blocks: Blocks of the launch.
        threads: Threads of a block.
        shared: Bytes of shared memory of a block.
        iterations: How often the body of each loop runs, by the address of the loop, as a mean
            over the blocks; None if that is not known.
    """

    code: sass.Code
    blocks: int
    threads: int
    shared: int
    iterations: dict[int, float] | None


def launches(call: Callable[[], Any], capability: int) -> list[Launch]:
    """Run a function on tensors of the device 'meta'; what it would launch on a GPU.

    Args:
        call: Launches Triton kernels.
        capability: The compute capability to compile for, 90 for 9.0.
    """
    found: list[Launch] = []
    compile_and_launch = JITFunction.run

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        # A warm-up compiles with Triton's own rules for arguments, and does not launch.
        compiled = compile_and_launch(kernel, *args, grid=grid, warmup=True, **options)
        bound = kernel.signature.bind(
            *args, **{name: x for name, x in options.items() if name in kernel.signature.parameters}
        ).arguments
        found.append(_launch(compiled, grid(bound) if callable(grid) else grid, bound))
        return compiled

    with _pretended_device(capability), mock.patch.object(JITFunction, 'run', record):
        call()
    return found


def _launch(compiled: Any, grid: tuple[int, ...], bound: dict[str, Any]) -> Launch:
    (code,) = sass.disassemble(compiled.asm['cubin'])
    integers = {name: int(x) for name, x in bound.items() if isinstance(x, int)}
    ir_loops = triton_ir.loops(compiled.asm['ttgir'], integers, grid)
    return Launch(
        code=code,
        blocks=math.prod(grid),
        threads=int(re.search(r'\.reqntid (\d+)', compiled.asm['ptx'])[1]),
        shared=compiled.metadata.shared,
        iterations=_iterations(code, ptx.parse(compiled.asm['ptx']), ir_loops),
    )


def _iterations(
    code: sass.Code, source: sass.Code, ir_loops: list[triton_ir.IRLoop]
) -> dict[int, float] | None:
    """Iterations of the loops of machine code, by their headers; None if they are not known.

    A loop may have been unrolled by some factor. Loads and matrix products must still be executed
    as often as in the PTX that the code was assembled from, but for a few that it did not need.
    """
    iterations = triton_ir.attributed(code.loops, ir_loops)
    in_source = triton_ir.attributed(source.loops, ir_loops)
    if iterations is None or in_source is None:
        return None
    executed, expected = code.executed(iterations, _is_kept), source.executed(in_source, _is_kept)
    return iterations if math.isclose(executed, expected, rel_tol=0.2) else None


def _is_kept(instruction: sass.Instruction) -> bool:
    return instruction.is_matrix or instruction.load_bits > 0


@contextmanager
def _pretended_device(capability: int) -> Iterator[None]:
    """Let Triton and torch believe in a card of an architecture."""
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', capability, WARP),
        # Kernels are cached by device.
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
    )
    properties = SimpleNamespace(
        multi_processor_count=CARDS[capability].multiprocessors,
        major=capability // 10,
        minor=capability % 10,
    )
    with (
        mock.patch.object(driver, '_active', target),
        mock.patch('torch.cuda.get_device_properties', lambda device=None: properties),
        mock.patch('torch.cuda.get_device_capability', lambda device=None: divmod(capability, 10)),
    ):
        yield
