"""A launch of a kernel, and how often the loops of its machine code run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu_code import ptx, sass
from benchmarks.gpu_code.cards import WARP

#: Iterations of a loop, known when compiling, that the assembler may write out.
UNROLLABLE = 16
#: Loads. They and matrix products are what the assembler neither adds nor removes.
KEPT = ('LDG', 'LDGSTS', 'LDS')
#: Stands for a loop of the iterations that are left by another one; they are not counted.
LEFT = -1
#: Warps of a launch that are followed; the mean of a random sample stands for all.
SAMPLE = 32


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        code: The machine code.
        blocks: Blocks of the launch.
        threads: Threads of a block.
        shared: Bytes of shared memory of a block.
        iterations: How often the instructions of each loop are executed, by the address of the
            loop, and those outside of loops, by None, as a mean over the warps; None if that is
            not known.
    """

    code: sass.Code
    blocks: int
    threads: int
    shared: int
    iterations: dict[int | None, float] | None


def iterations(
    code: sass.Code,
    source: ptx.Kernel,
    arguments: list[bytes],
    grid: tuple[int, int, int],
    threads: int,
) -> dict[int | None, float] | None:
    """Iterations of the loops of machine code, by their headers; None if they are not known.

    Loads and matrix products show which loop of the PTX became which, and whether it was unrolled:
    they are executed about as often in the code that was assembled from it.
    """
    try:
        runs = ptx.iterations(source, arguments, _sample(grid, threads))
    except ptx.UnknownBranchError:
        return None
    kept, kept_in_source = _kept(code), _kept(source.code)
    expected = sum(count * runs[loop] for loop, count in kept_in_source.items())
    best: tuple[float, dict[int | None, float] | None] = (1.5, None)
    for matching in _matches(code.loops, source.code.loops, runs, None):
        matching = {None: None, **matching}
        found = {loop: runs.get(of_source, 0.0) for loop, of_source in matching.items()}
        if set(runs) <= set(matching.values()):  # else a body has come to hold those in it
            for loop, of_source in matching.items():
                if loop is not None and kept_in_source[of_source]:
                    found[loop] /= max(1, round(kept[loop] / kept_in_source[of_source]))
        executed = sum(count * found[loop] for loop, count in kept.items())
        error = max(executed, expected, 1.0) / max(min(executed, expected), 1.0)
        best = min(best, (error, found), key=lambda candidate: candidate[0])
    return best[1]


def _matches(
    code_loops: list[sass.Loop],
    source_loops: list[sass.Loop],
    runs: dict[int | None, float],
    outer: int | None,
) -> Iterator[dict[int | None, int | None]]:
    """The loop in PTX of each loop of machine code, by their headers: each way to see it.

    Innermost loops of few iterations may be missing in machine code; others may be followed by
    a loop for the iterations that are left.
    """
    if not source_loops:
        if not code_loops:
            yield {}
        return
    source, *other_sources = source_loops
    if all(runs[loop.header] <= UNROLLABLE * runs[outer] for loop in sass.all_loops([source])):
        yield from _matches(code_loops, other_sources, runs, outer)
    if not code_loops:
        return
    code_loop, *others = code_loops
    for inner in _matches(code_loop.inner, source.inner, runs, source.header):
        for rest in _matches(others, other_sources, runs, outer):
            yield {code_loop.header: source.header, **inner, **rest}
    if others and not (source.inner or code_loop.inner or others[0].inner):
        for rest in _matches(others[1:], other_sources, runs, outer):
            yield {code_loop.header: source.header, others[0].header: LEFT, **rest}


def _kept(code: sass.Code) -> Counter[int | None]:
    """Loads and matrix products in each loop, without those of the loops in it."""
    return Counter(
        code.innermost_loop.get(first)
        for first, block in code.blocks.items()
        for instruction in block
        if instruction.is_matrix or instruction.base in KEPT
    )


def _sample(grid: tuple[int, int, int], threads: int) -> list[ptx.Position]:
    """First threads of random warps, the same in each run."""
    generator = random.Random(0)
    return [
        ptx.Position(
            (
                generator.randrange(grid[0]),
                generator.randrange(grid[1]),
                generator.randrange(grid[2]),
            ),
            generator.randrange(0, threads, WARP),
            grid,
            threads,
        )
        for _ in range(SAMPLE)
    ]
