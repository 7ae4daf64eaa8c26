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

    Loads and matrix products show whether a loop has been unrolled: they are executed as often as
    in the PTX that the code was assembled from, but for some that it does not need or adds.
    """
    try:
        runs = ptx.iterations(source, arguments, _sample(grid, threads))
    except ptx.UnknownBranchError:
        return None
    matching = _matching_loops(code, source.code, runs)
    if matching is None:
        return None
    found = {loop: runs[of_source] for loop, of_source in matching.items()}
    if len(matching) == len(runs):  # else the body of a loop has come to hold those in it
        kept, kept_in_source = _kept(code), _kept(source.code)
        for loop, of_source in matching.items():
            if loop is not None and kept_in_source[of_source]:
                found[loop] /= max(1, round(kept[loop] / kept_in_source[of_source]))
    executed = sum(count * found[loop] for loop, count in _kept(code).items())
    expected = sum(count * runs[loop] for loop, count in _kept(source.code).items())
    return found if executed <= 1.5 * expected and expected <= 1.5 * executed else None


def _matching_loops(
    code: sass.Code, source: sass.Code, runs: dict[int | None, float]
) -> dict[int | None, int | None] | None:
    """The loop in PTX of each loop of machine code, by their headers, if the nests are the same.

    Innermost loops of few iterations may be missing in machine code. What is outside of loops is
    matched too, as None.
    """
    found = list(_matches(code.loops, source.loops, runs, None))
    return {None: None, **found[0]} if len(found) == 1 else None


def _matches(
    code_loops: list[sass.Loop],
    source_loops: list[sass.Loop],
    runs: dict[int | None, float],
    outer: int | None,
) -> Iterator[dict[int | None, int | None]]:
    if not source_loops:
        if not code_loops:
            yield {}
        return
    source, *other_sources = source_loops
    if all(runs[loop.header] <= UNROLLABLE * runs[outer] for loop in sass.all_loops([source])):
        yield from _matches(code_loops, other_sources, runs, outer)
    if code_loops:
        code_loop, *others = code_loops
        for inner in _matches(code_loop.inner, source.inner, runs, source.header):
            for rest in _matches(others, other_sources, runs, outer):
                yield {code_loop.header: source.header, **inner, **rest}


def _kept(code: sass.Code) -> Counter[int | None]:
    """Loads and matrix products in each loop, without those in it."""
    return Counter(
        code.innermost_loop.get(first)
        for first, block in code.blocks.items()
        for instruction in block
        if instruction.is_matrix or instruction.load_bits
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
