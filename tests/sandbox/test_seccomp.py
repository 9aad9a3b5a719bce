"""The filter of system calls, on both architectures: run by hand here, by the kernel in the attacks."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netns.errors import UnsupportedError
from pytest_netns.sandbox import bpf, seccomp
from pytest_netns.sandbox.calls import NEWEST, NUMBERS

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = pytest.mark.parametrize("machine", sorted(AUDIT))
#: The kernel's own lists, as the C library's development files bring them, whatever machine they are for.
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


def judge(machine: str, number: int, *arguments: int, audit: int | None = None, **options: bool) -> int:
    """Run the filter on a system call, as the kernel does, and return its verdict."""
    program = list(struct.iter_unpack("=HBBI", seccomp.program(machine=machine, **options)))
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, *words)
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            passed = {0x15: loaded == value, 0x25: loaded > value, 0x45: bool(loaded & value)}[code]
            at += if_true if passed else if_false


def number(name: str, machine: str) -> int | None:
    """Return the number of a system call."""
    found: int | None = getattr(NUMBERS[name], machine)
    return found


@MACHINES
def test_numbers(machine: str) -> None:
    """The numbers are the kernel's, and what has none there does not exist on that machine."""
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"there is no {header}, which linux-libc-dev brings")
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)$", header.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: int(known) for name, known in found}
    newest = max(value for name, value in listed.items() if name != "syscalls")
    for name in NUMBERS:
        expected = number(name, machine)
        if expected is None or expected <= newest:
            assert listed.get(name) == expected, name


@MACHINES
@pytest.mark.parametrize("name", ["mount", "setns", "keyctl", "bpf", "ptrace", "init_module", "open_by_handle_at"])
def test_refused(machine: str, name: str) -> None:
    """What leads to more power fails with EPERM, whatever its arguments."""
    found = number(name, machine)
    assert found is not None
    assert judge(machine, found, 2**64 - 1, 1) == bpf.errno(errno.EPERM)


@MACHINES
@pytest.mark.parametrize("name", ["clone3", "openat2", "io_uring_setup"])
def test_absent(machine: str, name: str) -> None:
    """What no filter can look into is as if the kernel had none of it."""
    assert judge(machine, number(name, machine) or 0) == bpf.errno(errno.ENOSYS)


@MACHINES
def test_namespaces(machine: str) -> None:
    """Threads and processes are made as ever, namespaces are not."""
    clone, unshare = number("clone", machine) or 0, number("unshare", machine) or 0
    assert judge(machine, clone, 0x3D0F00) == bpf.ALLOW  # as glibc makes a thread
    assert judge(machine, unshare, 0x400) == bpf.ALLOW
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(machine, clone, bit | 17) == bpf.errno(errno.EPERM)
        assert judge(machine, unshare, bit) == bpf.errno(errno.EPERM)


@MACHINES
@given(high=st.integers(0, 2**32 - 1))
def test_upper_halves(machine: str, high: int) -> None:
    """The upper half of an argument that the kernel does not look at decides nothing."""
    ioctl = number("ioctl", machine) or 0
    assert judge(machine, ioctl, 0, high << 32 | 0x5412) == bpf.errno(errno.EPERM)
    assert judge(machine, ioctl, 0, high << 32 | 0x5401) == bpf.ALLOW


@MACHINES
@given(family=st.integers(0, 50), protocol=st.integers(0, 300))
def test_sockets(machine: str, family: int, protocol: int) -> None:
    """Of all sockets those remain that lead to where the gateway watches, or tell of interfaces."""
    verdict = judge(machine, number("socket", machine) or 0, family, 1, protocol)
    allowed = family == 1 or (family in {2, 10} and protocol in {0, 1, 6, 17, 58}) or (family == 16 and protocol == 0)
    assert (verdict == bpf.ALLOW) is allowed


@MACHINES
def test_set_id_bits(machine: str) -> None:
    """Files are made, and their modes changed, but not so that they run as somebody else."""
    openat, fchmodat = number("openat", machine) or 0, number("fchmodat", machine) or 0
    assert judge(machine, openat, 0, 0, 0o100, 0o755) == bpf.ALLOW
    assert judge(machine, openat, 0, 0, 0, 0o4755) == bpf.ALLOW  # no mode is meant where no file is made
    assert judge(machine, openat, 0, 0, 0o100, 0o4755) == bpf.errno(errno.EPERM)
    assert judge(machine, fchmodat, 0, 0, 0o1777) == bpf.ALLOW
    assert judge(machine, fchmodat, 0, 0, 0o2755) == bpf.errno(errno.EPERM)


@MACHINES
@given(call=st.integers(NEWEST + 1, 2**30 - 1))
def test_unknown_calls(machine: str, call: int) -> None:
    """Calls that are newer than the filter fail as they would on an older kernel."""
    assert judge(machine, call) == bpf.errno(errno.ENOSYS)


def test_other_abis() -> None:
    """Calls by another ABI end the process."""
    assert judge("x86_64", 1, audit=0x40000003) == bpf.KILL
    assert judge("x86_64", 0x40000000 + 165) == bpf.KILL
    assert judge("aarch64", 1, audit=0x40000028) == bpf.KILL


@MACHINES
def test_ordinary_calls(machine: str) -> None:
    """Every call that is not named is let through."""
    named = {number(name, machine) for name in NUMBERS}
    assert all(judge(machine, call) == bpf.ALLOW for call in range(NEWEST + 1) if call not in named)


@MACHINES
def test_uncounted_memory(machine: str) -> None:
    """Memory that belongs to no process is to be had where a control group counts it."""
    for name in ("memfd_create", "shmget"):
        found = number(name, machine) or 0
        assert judge(machine, found) == bpf.ALLOW
        assert judge(machine, found, counted=False) == bpf.errno(errno.EPERM)
    assert judge(machine, number("sched_setaffinity", machine) or 0, pinned=True) == bpf.errno(errno.EPERM)


def test_unknown_machine() -> None:
    """Where there is no filter, there is no box, and the error says so."""
    with pytest.raises(UnsupportedError, match=r"none for 'riscv64', only for x86_64, aarch64"):
        seccomp.program(machine="riscv64")
