"""PTX in the form of machine code, to see what its assembler did to loops."""

from __future__ import annotations

import re

from benchmarks.gpu_code.sass import Code, Instruction

_LABEL = re.compile(r'^(\$\w+):')
_INSTRUCTION = re.compile(r'^\s*(@!?%\w+)?\s*([a-z][\w.:]*)\s*([^;]*);')
#: What the instructions become that the assembler neither adds nor removes.
_MACHINE_OPCODES = {
    r'bra\b': 'BRA',
    r'(ret|exit|trap)\b': 'EXIT',
    r'ld\.global\b': 'LDG',
    r'cp\.async\.c[ag]\b': 'LDGSTS',
    r'mma\.sync\b': 'HMMA',
    r'wgmma\.mma_async\b': 'HGMMA',
    r'tcgen05\.mma\b': 'UTCHMMA',
}


def parse(ptx: str) -> Code:
    """The one kernel in a text, with lines as addresses."""
    lines = ptx.splitlines()
    labels = {match[1]: line for line, text in enumerate(lines) if (match := _LABEL.match(text))}
    instructions = []
    for line, text in enumerate(lines):
        match = _INSTRUCTION.match(text)
        if _LABEL.match(text):
            # Something must stand at the address that a branch names.
            instructions.append(Instruction(line, '', 'NOP', ''))
        elif match:
            opcode = next(
                (name for pattern, name in _MACHINE_OPCODES.items() if re.match(pattern, match[2])),
                match[2],
            )
            operands = match[3].strip()
            if opcode == 'BRA':
                operands = hex(labels[operands])
            instructions.append(Instruction(line, match[1] or '', opcode, operands))
    return Code('', tuple(instructions), registers=0, stack=0, static_shared=0)
