"""Runs the control flow of a kernel in PTX, to see how often its loops run.

Whether a loop continues follows, in the kernels here, from the arguments of the launch and from the
thread's own number, not from what is in memory. One thread of a warp is followed; of all
instructions only those are computed that branches depend on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from benchmarks.gpu_code.sass import Code, Instruction

#: Blocks that one thread runs before it is given up.
MAX_STEPS = 1_000_000

_LABEL = re.compile(r'^\s*(\$\w+):')
_INSTRUCTION = re.compile(r'^\s*(@!?%\w+)?\s*([a-z][\w.:]*)\s*([^;]*);')
_ENTRY = re.compile(r'\.entry\s+([\w$]+)\s*\(')
_PARAMETER = re.compile(
    r'\.param\b[^;,)]*?\.[busf](\d+)\s+(?:\.ptr[^,)]*\s)?([\w$]+)(?:\[(\d+)\])?'
)
_OPERANDS = re.compile(r'\{[^}]*\}|\[[^]]*\]|[^,\s]+')
#: What the instructions become that the assembler neither adds nor removes.
_MACHINE_OPCODES = {
    r'bra\b': 'BRA',
    r'(ret|exit|trap)\b': 'EXIT',
    r'brx\b': 'BRX',
    r'ld\.global\b': 'LDG',
    r'cp\.async\.c[ag]\b': 'LDGSTS',
    r'ld\.shared\b': 'LDS',
    r'mma\.sync\b': 'HMMA',
    r'wgmma\.mma_async\b': 'HGMMA',
    r'tcgen05\.mma\b': 'UTCHMMA',
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    'eq': lambda a, b: a == b,
    'ne': lambda a, b: a != b,
    'lt': lambda a, b: a < b,
    'lo': lambda a, b: a < b,
    'le': lambda a, b: a <= b,
    'ls': lambda a, b: a <= b,
    'gt': lambda a, b: a > b,
    'hi': lambda a, b: a > b,
    'ge': lambda a, b: a >= b,
    'hs': lambda a, b: a >= b,
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    'mov': lambda a: a,
    'cvt': lambda a: a,
    'cvta': lambda a: a,
    'add': lambda a, b: a + b,
    'sub': lambda a, b: a - b,
    'mul': lambda a, b: a * b,
    'mad': lambda a, b, c: a * b + c,
    'div': lambda a, b: abs(a) // abs(b) * (1 if a * b >= 0 else -1),
    'rem': lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
    'min': min,
    'max': max,
    'neg': lambda a: -a,
    'abs': abs,
    'not': lambda a: ~a,
    'and': lambda a, b: a & b,
    'or': lambda a, b: a | b,
    'xor': lambda a, b: a ^ b,
    'shl': lambda a, b: a << b,
    'shr': lambda a, b: a >> b,
}


@dataclass(frozen=True)
class Step:
    """An instruction that a branch depends on, taken apart.

    Attributes:
        predicate: The register with the condition, or ''.
        negated: Whether the instruction is executed where the condition does not hold.
        kind: Its name, for example 'setp'.
        modifiers: What follows the name: '.lt.s32' is ('lt', 's32').
        written: Registers.
        sources: Registers, numbers and symbols.
    """

    predicate: str
    negated: bool
    kind: str
    modifiers: tuple[str, ...]
    written: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, instruction: Instruction) -> Step:
        """Take an instruction apart."""
        kind, *modifiers = instruction.opcode.split('.')
        operands = _OPERANDS.findall(instruction.operands)
        written = _written(instruction)
        return cls(
            instruction.predicate.lstrip('@!'),
            instruction.predicate.startswith('@!'),
            kind,
            tuple(modifiers),
            tuple(written),
            tuple(operands[1:]),
        )


class UnknownBranchError(Exception):
    """What is in memory decides whether a loop continues."""


@dataclass(frozen=True)
class Position:
    """A thread in its launch: numbers of block and thread, and how many there are."""

    block: tuple[int, int, int]
    thread: int
    blocks: tuple[int, int, int]
    threads: int

    def special_registers(self) -> dict[str, int]:
        """By their names in PTX; a block is a line of threads."""
        registers = {'%tid.y': 0, '%tid.z': 0, '%ntid.y': 1, '%ntid.z': 1}
        registers |= {'%tid.x': self.thread, '%ntid.x': self.threads}
        for axis, block, blocks in zip('xyz', self.block, self.blocks, strict=True):
            registers |= {f'%ctaid.{axis}': block, f'%nctaid.{axis}': blocks}
        return registers


@dataclass(frozen=True)
class Kernel:
    """A kernel in PTX.

    Attributes:
        name: Its symbol.
        code: Its instructions, with numbers of lines as addresses.
        parameters: Sizes of its parameters in bytes, by name, in their order.
    """

    name: str
    code: Code
    parameters: dict[str, int]

    def executions(self, arguments: Iterable[bytes], position: Position) -> Counter[int]:
        """How often a thread runs each basic block, by the block's address.

        Args:
            arguments: The values of the parameters.
            position: The thread.

        Raises:
            UnknownBranchError: What is in memory decides whether a loop continues.
        """
        memory = list(arguments)
        registers: dict[str, int | None] = {**position.special_registers()}
        # Parameters may be read by address: that of each begins with its number.
        registers |= {name: number << 32 for number, name in enumerate(self.parameters)}
        found: Counter[int] = Counter()
        blocks, following = self.code.blocks, self._following
        address: int | None = self.code.instructions[0].address
        for _ in range(MAX_STEPS):
            if address is None:
                return found
            found[address] += 1
            for step in self._steps[address]:
                _compute(step, registers, memory)
            last = blocks[address][-1]
            negated = last.predicate.startswith('@!')
            taken = _holds(last.predicate.lstrip('@!'), negated, registers)
            if taken is None and last.opcode == 'BRA':
                # Within a loop, a jump is taken for a short cut, which is not used.
                target = int(last.operands, 16)
                loop, other = map(self.code.innermost_loop.get, (target, following[address]))
                if loop == target or loop != other:
                    raise UnknownBranchError(f'{self.name}: line {last.address}')
            if taken and last.opcode == 'BRA':
                address = int(last.operands, 16)
            elif taken and last.opcode == 'EXIT':
                address = None
            else:
                address = following[address]
        raise UnknownBranchError(f'{self.name}: more than {MAX_STEPS} blocks')

    @cached_property
    def _following(self) -> dict[int, int]:
        addresses = list(self.code.parts)
        return dict(zip(addresses, addresses[1:], strict=False))

    @cached_property
    def _steps(self) -> dict[int, list[Step]]:
        """The instructions of each block that branches depend on."""
        writers: dict[str, list[Instruction]] = {}
        for instruction in self.code.instructions:
            for name in _written(instruction):
                writers.setdefault(name, []).append(instruction)
        needed: set[str] = set()
        pending = [
            i.predicate.lstrip('@!') for i in self.code.instructions if i.opcode in ('BRA', 'EXIT')
        ]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                for writer in writers.get(name, []):
                    pending += re.findall(r'%[\w.]+', f'{writer.predicate} {writer.operands}')
        return {
            address: [Step.of(i) for i in block if needed.intersection(_written(i))]
            for address, block in self.code.blocks.items()
        }


def parse(ptx: str) -> dict[str, Kernel]:
    """The kernels of a text, by name."""
    starts = [*_ENTRY.finditer(ptx), None]
    kernels = {}
    for match, after in zip(starts, starts[1:], strict=False):
        text = ptx[match.start() : after.start() if after else len(ptx)]
        head, _, body = text.partition('{')
        parameters = {
            found[2]: int(found[1]) // 8 * int(found[3] or 1) for found in _PARAMETER.finditer(head)
        }
        kernels[match[1]] = Kernel(match[1], _code(match[1], body), parameters)
    return kernels


def iterations(
    kernel: Kernel, arguments: list[bytes], positions: list[Position]
) -> dict[int | None, float]:
    """How often the instructions of each loop are executed in a thread; the mean over positions.

    Loops are given by their headers, and instructions that are in no loop by None. The loops
    inside a loop do not count for it.
    """
    executions: Counter[int] = Counter()
    for position in positions:
        executions += kernel.executions(arguments, position)
    size: Counter[int | None] = Counter()
    executed: Counter[int | None] = Counter()
    for address, block in kernel.code.blocks.items():
        loop = kernel.code.innermost_loop.get(address)
        size[loop] += len(block)
        executed[loop] += len(block) * executions[address]
    return {loop: executed[loop] / size[loop] / len(positions) for loop in size}


def _code(name: str, body: str) -> Code:
    lines = body.splitlines()
    labels = {match[1]: line for line, text in enumerate(lines) if (match := _LABEL.match(text))}
    instructions = []
    for line, text in enumerate(lines):
        if _LABEL.match(text):
            # Something must stand at the address that a branch names.
            instructions.append(Instruction(line, '', 'NOP', ''))
        elif match := _INSTRUCTION.match(text):
            opcode = next(
                (name for pattern, name in _MACHINE_OPCODES.items() if re.match(pattern, match[2])),
                match[2],
            )
            operands = match[3].strip()
            if opcode == 'BRA':
                operands = hex(labels[operands])
            instructions.append(Instruction(line, match[1] or '', opcode, operands))
    return Code(name, tuple(instructions), registers=0, stack=0, static_shared=0)


def _written(instruction: Instruction) -> list[str]:
    operands = _OPERANDS.findall(instruction.operands)
    if not operands or instruction.opcode.startswith(('st.', 'red.', 'bar.', 'BRA', 'EXIT')):
        return []
    return re.findall(r'%[\w.]+', operands[0])


def _holds(predicate: str, negated: bool, registers: dict[str, int | None]) -> bool | None:
    if not predicate:
        return True
    value = registers.get(predicate)
    return None if value is None else bool(value) != negated


def _compute(step: Step, registers: dict[str, int | None], memory: list[bytes]) -> None:
    """Execute an instruction. What is not known becomes None."""
    holds = _holds(step.predicate, step.negated, registers)
    if holds is False:
        return
    values: list[int | None] = [None] * len(step.written)
    if holds and step.kind == 'ld' and step.modifiers[0] == 'param':
        values = _parameters(step, registers, memory)
    elif holds and len(values) == 1:
        values = [_result(step, [_value(source, registers) for source in step.sources])]
    registers.update(zip(step.written, values, strict=True))


def _parameters(
    step: Step, registers: dict[str, int | None], memory: list[bytes]
) -> list[int | None]:
    name, _, offset = step.sources[0].strip('[]').partition('+')
    base = registers.get(name.strip())
    if base is None:
        return [None] * len(step.written)
    number, first = divmod(base + int(offset or 0), 1 << 32)
    size = int(step.modifiers[-1][1:]) // 8
    data = memory[number][first : first + size * len(step.written)]
    return [
        int.from_bytes(data[i * size : (i + 1) * size], 'little') for i in range(len(step.written))
    ]


def _value(operand: str, registers: dict[str, int | None]) -> int | None:
    if operand[0] == '%':
        return registers.get(operand)
    if operand[0].isdigit() or operand[0] == '-':
        # Numbers with a fraction are written as 0f3F800000 and are not followed.
        return None if operand[:2] in ('0f', '0d') else int(operand.rstrip('U'), 0)
    # A symbol is an address, which is aligned.
    return None if operand[0] in '{[' else registers.get(operand, 0)


def _result(step: Step, values: list[int | None]) -> int | None:
    kind, modifiers = step.kind, step.modifiers
    if kind == 'selp':
        condition = values.pop()
        return None if condition is None else values[0] if condition else values[1]
    type_name = re.fullmatch(r'([bus])(\d+)|pred', modifiers[-1] if modifiers else '')
    if not type_name or None in values:
        return None
    bits = int(type_name[2] or 1)
    operands = [_signed(x, bits) if type_name[1] == 's' else x & ((1 << bits) - 1) for x in values]
    if kind == 'setp' and len(values) == 2:
        return int(_COMPARISONS[modifiers[0]](*operands))
    if kind not in _ARITHMETIC or (kind in ('div', 'rem') and not operands[1]):
        return None
    if kind == 'cvt':
        target = re.fullmatch(r'[bus](\d+)', modifiers[-2])
        return operands[0] & ((1 << int(target[1])) - 1) if target else None
    if 'hi' in modifiers:
        return None if kind == 'mad' else operands[0] * operands[1] >> bits & ((1 << bits) - 1)
    if 'wide' in modifiers:
        bits *= 2
        operands[2:] = values[2:]  # an addend is as wide as the result
    return _ARITHMETIC[kind](*operands) & ((1 << bits) - 1)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
