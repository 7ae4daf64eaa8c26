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

from benchmarks.gpu_code import sass, triton_ir
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
        iterations=_attributed(code.loops, ir_loops),
    )


def _attributed(
    code_loops: list[sass.Loop], ir_loops: list[triton_ir.IRLoop]
) -> dict[int, float] | None:
    """Iterations of the loops of machine code that has the same nest of loops; else None."""
    if len(code_loops) != len(ir_loops):
        return None
    iterations: dict[int, float] = {}
    for code_loop, ir_loop in zip(code_loops, ir_loops, strict=True):
        inner = _attributed(code_loop.inner, ir_loop.inner)
        if inner is None or ir_loop.iterations is None:
            return None
        iterations |= {code_loop.header: ir_loop.iterations, **inner}
    return iterations


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
