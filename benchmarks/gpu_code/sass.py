"""Machine code: its instructions, its loops, and the resources that it asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import networkx

# Newer architectures append hints for the hardware, such as &req={0} and ?trans1.
_INSTRUCTION = re.compile(
    r'^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;?&]*)[;?&]'
)
_ADDRESS = re.compile(r'\b0x([0-9a-f]+)\s*$')
_RESOURCES = re.compile(r'Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)')
_WIDTH = re.compile(r'\.(?:[US]?(8|16)|(64|128|256))\b')
#: Products of matrix units: of a warp, of four warps (Hopper), of the tensor memory (Blackwell).
_MATRIX = re.compile(r'^(?:[HIDQ]MMA|[HIQ]GMMA|U?TC\w*MMA)')


@dataclass(frozen=True)
class Instruction:
    """One instruction, for example ``@P0 LDG.E.128 R4, [R2.64]``."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split('.')[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is a product of the matrix units."""
        return bool(_MATRIX.match(self.opcode))

    @property
    def load_bits(self) -> int:
        """Bits that a thread loads from global memory, also into shared memory; else 0."""
        if self.base not in ('LDG', 'LDGSTS'):
            return 0
        width = _WIDTH.search(self.opcode)
        return int(width[1] or width[2]) if width else 32


@dataclass
class Loop:
    """A loop with the loops in it. Its ``blocks`` are the first addresses of its basic blocks."""

    header: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)


@dataclass(frozen=True)
class Code:
    """The machine code of one kernel.

    Attributes:
        name: The symbol of the kernel.
        instructions: In the order of addresses.
        registers: Registers of a thread.
        stack: Bytes of local memory of a thread: spilled registers, and arrays that are indexed.
        static_shared: Bytes of shared memory whose size is known when compiling.
    """

    name: str
    instructions: tuple[Instruction, ...]
    registers: int
    stack: int
    static_shared: int

    @cached_property
    def blocks(self) -> dict[int, list[Instruction]]:
        """Basic blocks by their first address, those that are reached from the entry only."""
        return {first: self.parts[first] for first in sorted(self._flow)}

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, outermost first, in the order of addresses."""
        entry = self.instructions[0].address
        dominators = networkx.immediate_dominators(self._flow, entry)
        found: dict[int, set[int]] = {}
        for source, target in self._flow.edges:
            if _dominates(dominators, target, source, entry):
                body = found.setdefault(target, {target})
                if source not in body:
                    without = self._flow.copy()
                    without.remove_node(target)
                    body |= networkx.ancestors(without, source) | {source}
        top: list[Loop] = []
        # A loop is larger than those in it.
        for header in sorted(found, key=lambda header: (-len(found[header]), header)):
            loops = top
            while outer := next((loop for loop in loops if header in loop.blocks), None):
                loops = outer.inner
            loops.append(Loop(header, found[header]))
        for loop in all_loops(top):
            loop.inner.sort(key=lambda loop: loop.header)
        return sorted(top, key=lambda loop: loop.header)

    def opcodes(self) -> Counter[str]:
        """How often an opcode occurs in the code, without its modifiers."""
        return Counter(i.base for block in self.blocks.values() for i in block)

    def matrix_instructions(self) -> Counter[str]:
        """Products of the matrix units by name and shape, for example HMMA.16816."""
        found = (i.opcode for block in self.blocks.values() for i in block if i.is_matrix)
        return Counter('.'.join(opcode.split('.')[:2]) for opcode in found)

    def load_widths(self) -> Counter[int]:
        """Loads from global memory by the bits of a thread."""
        widths = (i.load_bits for block in self.blocks.values() for i in block)
        return Counter(bits for bits in widths if bits)

    @cached_property
    def innermost_loop(self) -> dict[int, int]:
        """The header of the innermost loop around each basic block that is in one."""
        innermost: dict[int, int] = {}
        for loop in all_loops(self.loops):  # an inner loop comes after those around it
            innermost.update(dict.fromkeys(loop.blocks, loop.header))
        return innermost

    def executed(self, iterations: dict[int | None, float]) -> float:
        """Instructions that a warp executes.

        Args:
            iterations: How often the instructions of each loop are executed, by its header, and
                those outside of all loops, by None.
        """
        return sum(
            len(block) * iterations[self.innermost_loop.get(first)]
            for first, block in self.blocks.items()
        )

    def in_innermost_loops(self, iterations: dict[int | None, float]) -> float:
        """Those of them that are in loops without another loop in them."""
        return sum(
            len(self.blocks[first]) * iterations[loop.header]
            for loop in all_loops(self.loops)
            if not loop.inner
            for first in loop.blocks
        )

    @cached_property
    def parts(self) -> dict[int, list[Instruction]]:
        """Basic blocks by their first address, also those that are never reached."""
        firsts = {self.instructions[0].address}
        for instruction, following in zip(self.instructions, self.instructions[1:], strict=False):
            if _ends_block(instruction):
                firsts |= {following.address, *_targets(instruction)}
            elif instruction.opcode.startswith('BSSY'):
                firsts |= set(_targets(instruction))
        parts: dict[int, list[Instruction]] = {}
        for instruction in self.instructions:
            if instruction.address in firsts:
                part = parts.setdefault(instruction.address, [])
            part.append(instruction)
        return parts

    @cached_property
    def _flow(self) -> networkx.DiGraph:
        """Control flow between the basic blocks that are reached from the entry."""
        flow = networkx.DiGraph()
        firsts = list(self.parts)
        flow.add_nodes_from(firsts)
        meeting: dict[str, int] = {}  # where the threads of a warp meet again, by barrier
        for first, following in zip(firsts, [*firsts[1:], None], strict=True):
            for instruction in self.parts[first]:
                if instruction.opcode.startswith('BSSY'):
                    barrier = instruction.operands.split(',')[0].split()[-1]
                    meeting[barrier] = _targets(instruction)[0]
            last = self.parts[first][-1]
            if last.opcode.startswith('BSYNC'):
                flow.add_edge(first, meeting[last.operands.split()[-1]])
                continue
            flow.add_edges_from((first, target) for target in _targets(last))
            leaves = last.base in ('BRA', 'EXIT', 'RET', 'JMP', 'BRX')
            always = last.predicate in ('', '@PT', '@UPT') and not _has_condition(last)
            if following is not None and not (leaves and always):
                flow.add_edge(first, following)
        return flow.subgraph({firsts[0], *networkx.descendants(flow, firsts[0])})


def all_loops(loops: list[Loop]) -> Iterator[Loop]:
    """Loops and those in them, an outer one before its inner ones."""
    for loop in loops:
        yield loop
        yield from all_loops(loop.inner)


def disassemble(path: Path, *selection: str) -> list[Code]:
    """The kernels in compiled code, by ``cuobjdump``, which comes with Triton and with CUDA.

    Args:
        path: A cubin, or a library with several.
        selection: Options of cuobjdump that leave out others, for example '-arch', 'sm_90'.

    Raises:
        FileNotFoundError: There is no cuobjdump.
        RuntimeError: cuobjdump or nvdisasm failed.
    """
    return parse(cuobjdump('-sass', *selection, path), cuobjdump('-res-usage', *selection, path))


def parse(sass: str, resources: str) -> list[Code]:
    """The kernels in the output of ``cuobjdump -sass`` and ``cuobjdump -res-usage``."""
    usage = {
        match[1]: tuple(map(int, match.groups()[1:])) for match in _RESOURCES.finditer(resources)
    }
    kernels = []
    for section in re.split(r'^\s+Function : ', sass, flags=re.MULTILINE)[1:]:
        name, *lines = section.splitlines()
        matches = filter(None, map(_INSTRUCTION.match, lines))
        instructions = tuple(
            Instruction(int(match[1], 16), match[2] or '', match[3], match[4].strip())
            for match in matches
        )
        if name.strip() in usage and instructions:
            kernels.append(Code(name.strip(), instructions, *usage[name.strip()]))
    return kernels


def cuobjdump(*arguments: str | Path) -> str:
    """The output of cuobjdump.

    Raises:
        FileNotFoundError: There is no cuobjdump.
        RuntimeError: It failed.
    """
    program = find_tool('cuobjdump')
    # It runs nvdisasm, which it looks for on PATH.
    environment = {'PATH': f'{program.parent}:/usr/bin:/bin'}
    result = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode != 0:
        command = ' '.join(map(str, arguments))
        raise RuntimeError(f'{program} {command} failed: {result.stderr.strip()}')
    return result.stdout


def find_tool(name: str) -> Path:
    """A program of the CUDA toolkit, that of Triton before others.

    Raises:
        FileNotFoundError: Neither Triton nor PATH has it.
    """
    import triton

    bundled = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / name
    if bundled.is_file():
        return bundled
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f'{name} is neither in {bundled.parent} nor on PATH.')
    return Path(found)


def _ends_block(instruction: Instruction) -> bool:
    # A call may be a jump that no return belongs to.
    return instruction.base in ('BRA', 'EXIT', 'RET', 'JMP', 'CALL', 'BSYNC', 'BRX')


def _targets(instruction: Instruction) -> list[int]:
    if instruction.base not in ('BRA', 'JMP', 'CALL', 'BSSY'):
        return []
    match = _ADDRESS.search(instruction.operands)
    return [int(match[1], 16)] if match else []


def _has_condition(branch: Instruction) -> bool:
    """Whether a branch names its condition among its operands, as BRA.U and BRA.DIV do."""
    return ',' in branch.operands


def _dominates(dominators: dict[int, int], first: int, then: int, entry: int) -> bool:
    while then not in (first, entry):
        then = dominators[then]
    return then == first
