"""How often the loops of a Triton kernel run, from its last intermediate language.

Bounds of loops are made of a launch's integers, program numbers and outer loop variables. They
are computed for each program; everything else in the kernel is ignored.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.gpu_code.sass import Loop

#: Iterations of a loop that a compiler may write out.
UNROLLABLE = 16
#: Programs of a launch that are looked at; the mean of a random sample stands for all.
SAMPLE = 4096

_OPERATION = re.compile(r'^\s*%([\w.$-]+) = ((?:arith|tt)\.[\w.]+) (.*?) ?(?:: .*)?$')
_FOR = re.compile(
    r'^\s*(?:%[\w.$:, -]+ = )?scf\.for %([\w.$-]+) = %([\w.$-]+) to %([\w.$-]+) step %([\w.$-]+)'
)
_NAME = re.compile(r'%([\w.$#-]+)')
_LOCATION = re.compile(r' loc\((?:#\w+|"[^"]*"\(#\w+\)|"[^"]*")\)')
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    'eq': lambda a, b: a == b,
    'ne': lambda a, b: a != b,
    'lt': lambda a, b: a < b,
    'le': lambda a, b: a <= b,
    'gt': lambda a, b: a > b,
    'ge': lambda a, b: a >= b,
}
# The integers of bounds are small and not negative: signed and unsigned forms agree on them.
_ARITHMETIC: dict[str, Callable[..., int]] = {
    'addi': lambda a, b: a + b,
    'subi': lambda a, b: a - b,
    'muli': lambda a, b: a * b,
    'divsi': lambda a, b: int(a / b),
    'divui': lambda a, b: a // b,
    'ceildivsi': lambda a, b: -(-a // b),
    'remsi': lambda a, b: a - int(a / b) * b,
    'remui': lambda a, b: a % b,
    'minsi': min,
    'minui': min,
    'maxsi': max,
    'maxui': max,
    'andi': lambda a, b: a & b,
    'ori': lambda a, b: a | b,
    'xori': lambda a, b: a ^ b,
    'shli': lambda a, b: a << b,
    'shrsi': lambda a, b: a >> b,
    'shrui': lambda a, b: a >> b,
    'extsi': lambda a: a,
    'extui': lambda a: a,
    'trunci': lambda a: a,
    'index_cast': lambda a: a,
}


@dataclass(frozen=True)
class Operation:
    """An operation on scalars or tensors, for example ``%tiles = arith.muli %rows, %width``."""

    result: str
    name: str
    operands: str


@dataclass
class IRLoop:
    """An ``scf.for``, and how often its body runs in a program, outer loops included."""

    variable: str
    bounds: tuple[str, str, str]
    body: list[Operation | IRLoop] = field(default_factory=list)
    iterations: float | None = 0.0
    longest: int = 0

    @property
    def inner(self) -> list[IRLoop]:
        """The loops in it."""
        return [node for node in self.body if isinstance(node, IRLoop)]

    @property
    def is_unrollable(self) -> bool:
        """Whether a compiler may have replaced it, and all loops in it, by copies of its body."""
        few = self.longest <= UNROLLABLE and re.fullmatch(r'c-?\d+_i\d+', self.bounds[1])
        return bool(few) and all(loop.is_unrollable for loop in self.inner)


def loops(ir: str, arguments: dict[str, int], grid: tuple[int, ...]) -> list[IRLoop]:
    """The loops of a kernel, with the mean of their iterations over the programs of a launch.

    Args:
        ir: TTGIR as text.
        arguments: The integers of the launch by the names of the kernel's parameters.
        grid: Programs in each direction.
    """
    kernel = _parse(ir)
    _drop_unneeded(kernel)
    sizes = (*grid, 1, 1)[:3]
    programs = list(_programs(sizes))
    for program in programs:
        _execute(kernel, dict(arguments), program, sizes)
    for loop in _walk(kernel):
        if loop.iterations is not None:
            loop.iterations /= len(programs)
    return kernel.inner


def attributed(code_loops: list[Loop], ir_loops: list[IRLoop]) -> dict[int, float] | None:
    """Iterations of the loops of code, from those of the same nest of loops; else None.

    Innermost loops of few iterations, known when compiling, may be missing from the code.
    """
    found = list(_matches(code_loops, ir_loops))
    return found[0] if len(found) == 1 and None not in found[0].values() else None


def _matches(code_loops: list[Loop], ir_loops: list[IRLoop]) -> Iterator[dict[int, float | None]]:
    if not ir_loops:
        if not code_loops:
            yield {}
        return
    ir_loop, *other_ir_loops = ir_loops
    if ir_loop.is_unrollable:
        yield from _matches(code_loops, other_ir_loops)
    if code_loops:
        code_loop, *others = code_loops
        for inner in _matches(code_loop.inner, ir_loop.inner):
            for rest in _matches(others, other_ir_loops):
                yield {code_loop.header: ir_loop.iterations, **inner, **rest}


def _parse(ir: str) -> IRLoop:
    """The body of the kernel, as a loop without bounds. Other regions than loops are joined."""
    top = IRLoop('', ('', '', ''))
    open_regions = [top]
    inside = False
    for line in ir.splitlines():
        if not inside:
            inside = 'tt.func public' in line
            continue
        line = _LOCATION.sub('', line)
        loop = _FOR.match(line)
        if loop:
            node = IRLoop(loop[1], (loop[2], loop[3], loop[4]))
            open_regions[-1].body.append(node)
            open_regions.append(node)
        elif re.match(r'^\s*}', line):
            open_regions.pop()
            if not open_regions:
                break
            if line.rstrip().endswith('{'):  # else
                open_regions.append(open_regions[-1])
        elif re.search(r'\{\s*$', line):
            # A branch or a reduction: what it computes may be a bound of a loop inside it.
            open_regions.append(open_regions[-1])
        elif operation := _OPERATION.match(line):
            open_regions[-1].body.append(Operation(*operation.groups()))
    return top


def _walk(kernel: IRLoop) -> Iterator[IRLoop]:
    for loop in kernel.inner:
        yield loop
        yield from _walk(loop)


def _drop_unneeded(kernel: IRLoop) -> None:
    """Leave only the operations that the bounds of loops are computed from."""
    everything = (kernel, *_walk(kernel))
    sources = {
        node.result: _NAME.findall(node.operands)
        for loop in everything
        for node in loop.body
        if isinstance(node, Operation)
    }
    needed: set[str] = set()
    pending = [name for loop in everything for name in loop.bounds]
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += sources.get(name, [])
    for loop in everything:
        loop.body = [n for n in loop.body if isinstance(n, IRLoop) or n.result in needed]


def _programs(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    count = sizes[0] * sizes[1] * sizes[2]
    if count <= SAMPLE:
        yield from itertools.product(*map(range, sizes))
        return
    generator = random.Random(0)
    for _ in range(SAMPLE):
        yield tuple(generator.randrange(size) for size in sizes)


def _execute(
    loop: IRLoop,
    values: dict[str, int | None],
    program: tuple[int, ...],
    programs: tuple[int, ...],
) -> None:
    for node in loop.body:
        if isinstance(node, Operation):
            values[node.result] = _value(node, values, program, programs)
            continue
        first, stop, step = (values.get(name) for name in node.bounds)
        if first is None or stop is None or not step or node.iterations is None:
            for unknown in (node, *_walk(node)):
                unknown.iterations = None
            continue
        run = range(first, stop, step)
        node.iterations += len(run)
        node.longest = max(node.longest, len(run))
        if node.inner:
            for value in run:
                values[node.variable] = value
                _execute(node, values, program, programs)


def _value(
    operation: Operation,
    values: dict[str, int | None],
    program: tuple[int, ...],
    programs: tuple[int, ...],
) -> int | None:
    kind, operands = operation.name.split('.')[1], operation.operands
    if kind == 'get_program_id':
        return program['xyz'.index(operands)]
    if kind == 'get_num_programs':
        return programs['xyz'.index(operands)]
    if kind == 'constant':
        constant = {'true': '1', 'false': '0'}.get(operands, operands)
        return int(constant) if re.fullmatch(r'-?\d+', constant) else None
    found = [values.get(operand) for operand in _NAME.findall(operands)]
    if kind == 'select' and found[0] is not None:
        return found[1] if found[0] else found[2]
    if None in found:
        return None
    if kind == 'cmpi':
        return int(_COMPARISONS[operands.split(',')[0][-2:]](*found))
    return _ARITHMETIC[kind](*found) if kind in _ARITHMETIC else None
