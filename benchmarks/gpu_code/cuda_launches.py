"""Launches of the CUDA kernels without a GPU.

The extension is compiled for all architectures and runs on a CUDA runtime that has no device
(no_device.cpp). That runtime must be there before torch, so a process of its own makes the calls.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.gpu_code import ptx, sass
from benchmarks.gpu_code.cards import CARDS, Card
from benchmarks.gpu_code.launch import Launch, iterations

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / 'build' / 'gpu_code'
RUNTIME = BUILD / 'libno_device.so'
#: What the system adds to the shared memory of a kernel, from compute capability 9.0 on.
RESERVED = 1024

_ON_LAUNCH = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_void_p),
)
_ON_OCCUPANCY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64)


def find_nvcc() -> str | None:
    """The compiler that CUDA_HOME names, or that is on PATH, or None."""
    home = os.environ.get('CUDA_HOME')
    return shutil.which('nvcc', path=f'{home}/bin' if home else None)


def nvcc_release() -> str:
    """The version of nvcc, for example '13.0'."""
    output = subprocess.run(
        [find_nvcc() or 'nvcc', '--version'], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r'release ([\d.]+)', output)[0]


def build(capabilities: Sequence[int]) -> Path:
    """Compile the extension and the runtime; the extension's path.

    Raises:
        FileNotFoundError: There is no nvcc.
        subprocess.CalledProcessError: A compilation failed.
    """
    if find_nvcc() is None:
        raise FileNotFoundError('nvcc was not found; put it on PATH or set CUDA_HOME.')
    # Of its own for each set of architectures, so that few files are compiled again.
    folder = BUILD / '_'.join(map(str, capabilities))
    architectures = ';'.join(f'{c // 10}.{c % 10}+PTX' for c in capabilities)
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build_ext']
        + ['--build-temp', str(folder / 'temp'), '--build-lib', str(folder / 'lib')],
        cwd=ROOT,
        env={**os.environ, 'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': architectures},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    build_runtime(RUNTIME)
    (library,) = (folder / 'lib').glob('overlock_mm/_C.*.so')
    return library


def build_runtime(path: Path) -> None:
    """Compile the runtime that has no device.

    Raises:
        subprocess.CalledProcessError: The compilation failed.
    """
    options = ['-std=c++17', '-O1', '-shared', '-cudart', 'none', '-Xcompiler', '-fPIC']
    # torch loads the driver by its name.
    options += ['-Xlinker', '-soname=libcuda.so.1']
    source = Path(__file__).with_name('no_device.cpp')
    subprocess.run([find_nvcc() or 'nvcc', *options, '-o', path, source], check=True)


def kernels(library: Path, capability: int, pattern: str) -> list[dict[str, Any]]:
    """What :func:`main` prints in a process without a device.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    output = subprocess.run(
        [sys.executable, '-m', __name__, str(library), str(capability), pattern],
        cwd=ROOT,
        env={**os.environ, 'LD_PRELOAD': str(RUNTIME), 'CUDA_VISIBLE_DEVICES': '0'},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith('{')]


class Recorder:
    """Takes the place of the card.

    Args:
        library: The extension.
        capability: The compute capability of the card.
    """

    def __init__(self, library: Path, capability: int) -> None:
        self.library = library
        self.capability = capability
        self.card: Card = CARDS[capability]
        self._found: list[tuple[str, tuple[int, int, int], int, int, list[bytes]]] = []
        # ctypes keeps no reference to them.
        self._callbacks = _ON_LAUNCH(self._on_launch), _ON_OCCUPANCY(self._on_occupancy)
        ctypes.CDLL(str(RUNTIME)).no_device_begin(
            capability,
            self.card.multiprocessors,
            ctypes.c_uint64(self.card.shared),
            *self._callbacks,
        )

    def launches(self, call: Callable[[], Any]) -> list[Launch]:
        """Launches of our kernels in a call; torch's own are left out."""
        self._found = []
        call()
        return [self._launch(*found) for found in self._found]

    @cached_property
    def sources(self) -> dict[str, ptx.Kernel]:
        """Our kernels in PTX, by name."""
        return ptx.parse(sass.cuobjdump('-ptx', *self._selection, self.library))

    @property
    def _selection(self) -> tuple[str, str]:
        return '-arch', f'sm_{self.capability}'

    def _code(self, name: str) -> sass.Code:
        (code,) = (
            code
            for code in sass.disassemble(self.library, *self._selection, '-fun', name)
            if code.name == name
        )
        return code

    def _on_occupancy(self, name: bytes, threads: int, shared: int) -> int:
        code = self._code(name.decode())
        return self.card.resident_blocks(threads, code.registers, shared)

    def _on_launch(
        self, encoded: bytes, blocks: Any, threads: int, shared: int, arguments: Any
    ) -> None:
        name = encoded.decode()
        if name in self.sources:
            sizes = self.sources[name].parameters.values()
            values = [ctypes.string_at(arguments[i], size) for i, size in enumerate(sizes)]
            self._found.append((name, tuple(blocks[:3]), threads, shared, values))

    def _launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        arguments: list[bytes],
    ) -> Launch:
        code = self._code(name)
        reserved = RESERVED if self.capability >= 90 and code.static_shared else 0
        return Launch(
            code=code,
            blocks=math.prod(grid),
            threads=threads,
            shared=shared + code.static_shared - reserved,
            iterations=iterations(code, self.sources[name], arguments, grid, threads),
        )


def main() -> None:
    """Print the kernels of all calls, one JSON object a line."""
    import torch

    from benchmarks.gpu_code.run import calls_that_match, kernels_of

    library, capability, pattern = sys.argv[1:]
    torch.ops.load_library(library)
    recorder = Recorder(Path(library), int(capability))
    for call in calls_that_match(pattern):
        for kernel in kernels_of(call, 'cuda', recorder.capability, recorder.launches):
            print(json.dumps(kernel), flush=True)


if __name__ == '__main__':
    main()
