"""Limits of an architecture, published figures of a card of it, and what follows from both."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARP = 32
#: Parts of a multiprocessor, each with a scheduler that issues one instruction per cycle.
SCHEDULERS = 4
#: Registers of a multiprocessor, and the unit in which a warp gets them.
REGISTERS, REGISTER_UNIT = 65536, 256
#: Bytes of shared memory that every block needs beyond its own, and the unit of both.
RESERVED_SHARED, SHARED_UNIT = 1024, 128


@dataclass(frozen=True)
class Card:
    """One card of each architecture.

    The limits are those of the CUDA C++ Programming Guide, technical specifications per compute
    capability. Figures of the card are the vendor's: where it gives no clock, the one that gives
    its published rate of float32 operations.

    Attributes:
        name: The card.
        multiprocessors: Number of multiprocessors.
        clock: Boost clock in Hz.
        bandwidth: Bandwidth of its memory in bytes per second.
        warps: Resident warps of a multiprocessor, at most.
        blocks: Resident blocks of a multiprocessor, at most.
        shared: Bytes of shared memory of a multiprocessor.
    """

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    warps: int
    blocks: int
    shared: int

    def resident_blocks(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that a multiprocessor holds at a time; 0 if a block does not fit.

        Args:
            threads: Threads of a block.
            registers: Registers of a thread.
            shared: Bytes of shared memory that a block asks for.
        """
        warps = math.ceil(threads / WARP)
        per_warp = _round_up(max(registers, 1) * WARP, REGISTER_UNIT)
        by_registers = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // warps
        by_shared = self.shared // _round_up(shared + RESERVED_SHARED, SHARED_UNIT)
        return min(self.blocks, self.warps // warps, by_registers, by_shared)

    def issue_seconds(self, warp_instructions: float) -> float:
        """Time in which the schedulers of the whole card issue so many instructions of warps."""
        return warp_instructions / (self.multiprocessors * SCHEDULERS * self.clock)

    def transfer_seconds(self, size: int) -> float:
        """Time in which the card's memory delivers so many bytes."""
        return size / self.bandwidth


#: By compute capability.
CARDS = {
    80: Card('A100 SXM 80 GB', 108, 1.41e9, 2.039e12, 64, 32, 164 * 1024),
    90: Card('H100 SXM', 132, 1.98e9, 3.35e12, 64, 32, 228 * 1024),
    100: Card('B200', 148, 1.98e9, 8.0e12, 64, 32, 228 * 1024),
    120: Card('RTX 5090', 170, 2.407e9, 1.792e12, 48, 24, 100 * 1024),
}


def _round_up(number: int, unit: int) -> int:
    return math.ceil(number / unit) * unit
