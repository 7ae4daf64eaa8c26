"""Compiles Triton kernels for a named architecture, with the arguments of real launches."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.gpu_code import ptx, sass
from benchmarks.gpu_code.cards import CARDS, WARP
from benchmarks.gpu_code.launch import Launch, iterations


def launches(capability: int, call: Callable[[], Any]) -> list[Launch]:
    """Run a function on tensors of the device 'meta'; what it would launch on a GPU.

    Args:
        capability: The compute capability to compile for, 90 for 9.0.
        call: Launches Triton kernels.
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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'code.cubin')
        path.write_bytes(compiled.asm['cubin'])
        (code,) = sass.disassemble(path)
    (source,) = ptx.parse(compiled.asm['ptx']).values()
    threads = int(re.search(r'\.reqntid (\d+)', compiled.asm['ptx'])[1])
    arguments = list(_arguments(list(compiled.src.signature.values()), list(bound.values())))
    # Triton adds pointers to buffers of its own.
    arguments += [bytes(8)] * (len(source.parameters) - len(arguments))
    return Launch(
        code=code,
        blocks=math.prod(grid),
        threads=threads,
        shared=compiled.metadata.shared,
        iterations=iterations(code, source, arguments, (*grid, 1, 1)[:3], threads),
    )


def _arguments(types: list[Any], values: list[Any]) -> Iterator[bytes]:
    """The arguments that are not compiled in, as they lie in memory."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _arguments(list(kind), list(value))
        elif kind.startswith('*'):
            yield bytes(8)
        elif kind.startswith(('i', 'u')):
            yield int(value).to_bytes(max(1, int(kind[1:]) // 8), 'little', signed=value < 0)
        elif kind != 'constexpr':
            yield bytes(8 if kind == 'fp64' else 4)


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
