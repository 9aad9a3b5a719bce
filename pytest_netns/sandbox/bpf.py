"""A small assembler for the classic BPF that seccomp(2) runs: tests that jump to verdicts, and nothing else.

Pure. The program is as the kernel's stable ABI has it: an array of ``struct sock_filter`` over
``struct seccomp_data``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["ALLOW", "KILL", "MAX_LENGTH", "Comparison", "Instruction", "errno", "load", "verdict", "when"]

#: The longest program that the kernel takes, BPF_MAXINSNS.
MAX_LENGTH: Final = 4096

_LD_W_ABS: Final = 0x20
_JMP_JEQ_K: Final = 0x15
_JMP_JGT_K: Final = 0x25
_JMP_JSET_K: Final = 0x45
_RET_K: Final = 0x06

ALLOW: Final = 0x7FFF_0000
KILL: Final = 0x8000_0000  # the process, not the thread
_ERRNO: Final = 0x0005_0000

# Offsets in struct seccomp_data; of an argument, of 64 bits, the lower half on a little-endian machine.
NUMBER: Final = 0
ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

EQUAL: Final = _JMP_JEQ_K
GREATER: Final = _JMP_JGT_K
ANY_BIT: Final = _JMP_JSET_K


@dataclass(frozen=True, slots=True)
class Instruction:
    """One ``struct sock_filter``."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return struct.pack("=HBBI", self.code, self.if_true, self.if_false, self.value)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test of the lower 32 bits of one argument.

    The kernel itself looks at no more of what these arguments are (flags, modes, ioctl numbers), so the upper
    bits must not decide: a filter that compared all 64 was got around that way (CVE-2019-10063).

    Attributes:
        argument: which, from 0.
        how: EQUAL, GREATER or ANY_BIT.
        value: what it is compared to.
        holds: whether the test has to come out true.
    """

    argument: int
    how: int
    value: int
    holds: bool = True


def errno(number: int) -> int:
    """Return the verdict that makes a call fail with this error."""
    return _ERRNO | number


def load(offset: int) -> Instruction:
    """Load a word of ``struct seccomp_data``."""
    return Instruction(_LD_W_ABS, offset)


def verdict(value: int) -> Instruction:
    """End with a verdict."""
    return Instruction(_RET_K, value)


def when(how: int, value: int, then: Iterable[Instruction], *, holds: bool = True) -> list[Instruction]:
    """Run a block only when the loaded word passes a test."""
    block = list(then)
    skipped = len(block)
    if skipped > 255:
        raise ValueError(f"a block of {skipped} instructions is too long to be jumped over")
    jump = Instruction(how, value, 0, skipped) if holds else Instruction(how, value, skipped, 0)
    return [jump, *block]


def call(number: int, verdict_: int, comparisons: Iterable[Comparison] = ()) -> list[Instruction]:
    """Give a verdict on a system call, the number of which is loaded, if all comparisons come out right.

    What follows finds the number loaded.
    """
    block = [verdict(verdict_)]
    compared = list(comparisons)
    for one in reversed(compared):
        block = [load(_ARGUMENTS + 8 * one.argument), *when(one.how, one.value, block, holds=one.holds)]
    if compared:
        block.append(load(NUMBER))
    return when(EQUAL, number, block)


def encode(program: Iterable[Instruction]) -> bytes:
    """Return the bytes of a program."""
    instructions = list(program)
    if not 0 < len(instructions) <= MAX_LENGTH:
        raise ValueError(f"a program has 1 to {MAX_LENGTH} instructions, not {len(instructions)}")
    return b"".join(instruction.encode() for instruction in instructions)
