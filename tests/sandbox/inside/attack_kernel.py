"""The kernel: what a box must not ask it for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from boxes import Attempt


def test_new_namespaces(attempt: Attempt) -> None:
    """No new user namespace, and none of another kind.

    Known from: CVE-2022-0185, CVE-2022-25636 and CVE-2023-0386, which all began with one.
    """
    done = attempt("""
for bit in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
    call("unshare", (272, 97), bit)
call("clone", (56, 220), 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
call("setns", (308, 268), 0, 0)
""")
    assert done.stdout.count("EPERM") == 10


def test_namespaces_by_clone3(attempt: Attempt) -> None:
    """clone3(2), the flags of which no filter sees, is as if it did not exist.

    Known from: flatpak CVE-2021-41133.
    """
    done = attempt("""
arguments = struct.pack("QQQQQQQQQQQ", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
result = call("clone3", 435, arguments, len(arguments))
if result == 0: os._exit(0)
""")
    assert done.stdout == "clone3: ENOSYS\n"


def test_mounts_by_the_new_calls(attempt: Attempt) -> None:
    """The newer mount calls are refused as the older are; filters that knew the old ones only let them pass.

    Known from: flatpak CVE-2021-41133.
    """
    done = attempt("""
for number in (428, 429, 430, 431, 432, 433, 442):
    call("mount", number, 0, 0, 0, 0, 0)
call("newest", 467, 0, 0, 0, 0, 0)
call("unborn", 999, 0, 0, 0, 0, 0)
""")
    assert done.stdout.count("EPERM") == 7
    assert done.stdout.count("ENOSYS") == 2


def test_terminal_input(attempt: Attempt) -> None:
    """No input is pushed into a terminal: TIOCSTI, also with high bits set.

    Known from: bubblewrap CVE-2017-5226, flatpak CVE-2019-10063.
    """
    main, terminal = os.openpty()
    try:
        done = attempt(
            """
import fcntl, termios
for request in (0x5412, 0x5412 | 1 << 32, 0x541C, 0x5423):
    call("ioctl", (16, 29), 1, request, b"x")
tell("tty", lambda: open("/dev/tty"))
""",
            stdin=terminal,
        )
    finally:
        os.close(main)
        os.close(terminal)
    assert done.stdout.count("EPERM") == 4
    assert "tty: ENXIO" in done.stdout


def test_core_pattern(attempt: Attempt) -> None:
    """Kernel settings are not written, that which starts a program outside least of all.

    Known from: CRI-O CVE-2022-0811, "cr8escape".
    """
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    done = attempt("""
others = ("vm/overcommit_memory", "net/ipv4/ip_forward", "fs/binfmt_misc/register")
for path in ("kernel/core_pattern", "kernel/modprobe", *others):
    tell(path, lambda: open("/proc/sys/" + path, "w").write("|/tmp/evil"))
""")
    assert "DONE" not in done.stdout
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_sysrq(attempt: Attempt) -> None:
    """The machine is not rebooted or crashed by a file.

    Known from: runc CVE-2025-31133 and CVE-2025-52881.
    """
    done = attempt("""
sys_files = ("/sys/power/state", "/sys/kernel/uevent_helper")
for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/proc/acpi/wakeup", *sys_files):
    tell(path, lambda: open(path, "w").write("c"))
call("reboot", (169, 142), 0xfee1dead, 672274793, 0x1234567, 0)
""")
    assert "DONE" not in done.stdout
    assert "reboot: EPERM" in done.stdout


def test_release_agent(attempt: Attempt) -> None:
    """No control group is mounted, and no release_agent set, to be run outside.

    Known from: Linux CVE-2022-0492.
    """
    done = attempt("""
call("mount", (165, 40), b"cgroup", b"/tmp", b"cgroup", 0, b"memory")
print(os.listdir("/sys/fs/cgroup"))
for root, _, files in os.walk("/sys"):
    if "release_agent" in files: print("FOUND", root)
    if root.count("/") > 3: _.clear()
""")
    assert done.stdout == "mount: EPERM\n[]\n"


def test_overlay_in_user_namespace(attempt: Attempt) -> None:
    """No overlay is mounted in a namespace of one's own.

    Known from: Linux CVE-2021-3493, CVE-2023-0386, CVE-2023-2640.
    """
    done = attempt("""
pid = os.fork()
if not pid:
    result = libc.unshare(0x10020000)
    print("unshare:", "DONE" if result == 0 else errno.errorcode[ctypes.get_errno()], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
call("mount", (165, 40), b"overlay", b"/tmp", b"overlay", 0, b"lowerdir=/etc,upperdir=/tmp,workdir=/tmp")
""")
    assert done.stdout == "unshare: EPERM\nmount: EPERM\n"


def test_keyrings(attempt: Attempt) -> None:
    """Keys, which no namespace keeps apart, are out of reach.

    Known from: Linux CVE-2014-9529, CVE-2016-0728.
    """
    done = attempt("""
call("add_key", (248, 217), b"user", b"evil", b"x", 1, -4)
call("request_key", (249, 218), b"user", b"evil", None, 0)
call("keyctl", (250, 219), 0, -4, 1)
tell("keys", lambda: open("/proc/keys").read())
""")
    assert done.stdout.count("EPERM") == 3
    assert "keys: DONE ''" in done.stdout


def test_io_uring(attempt: Attempt) -> None:
    """io_uring, by which files and sockets are used past a filter, does not exist.

    Known from: Linux CVE-2021-41073, CVE-2022-29582, CVE-2023-2598.
    """
    done = attempt("call('setup', 425, 8, b'\\0' * 120); call('enter', 426, 0); call('register', 427, 0)")
    assert done.stdout.count("ENOSYS") == 3


def test_bpf_and_perf(attempt: Attempt) -> None:
    """No programs in the kernel, no performance events, no page faults of one's own, no modules, no other kernel.

    Known from: Linux CVE-2020-8835, CVE-2021-3490, CVE-2023-2163 (BPF), CVE-2013-2094 (events).
    """
    done = attempt("""
call("bpf", (321, 280), 0, b"\\0" * 72, 72)
call("perf_event_open", (298, 241), b"\\0" * 128, 0, -1, -1, 0)
call("userfaultfd", (323, 282), 0)
call("init_module", (175, 105), b"", 0, b"")
call("finit_module", (313, 273), 0, b"", 0)
call("kexec_load", (246, 104), 0, 0, None, 0)
call("syslog", (103, 116), 3, b"\\0" * 64, 64)
""")
    assert done.stdout.count("EPERM") == 7


def test_exotic_sockets(attempt: Attempt) -> None:
    """Only Unix, TCP, UDP and ping: no AF_VSOCK to the hypervisor's host, no AF_PACKET, AF_ALG, SCTP, raw.

    Known from: Linux CVE-2020-14386 (AF_PACKET), CVE-2019-8912 (AF_ALG), CVE-2021-43267 (TIPC), CVE-2010-3904 (RDS).
    """
    done = attempt("""
for name in ("VSOCK", "PACKET", "ALG", "BLUETOOTH", "CAN", "TIPC", "RDS"):
    tell(name, lambda: socket.socket(getattr(socket, f"AF_{name}"), socket.SOCK_DGRAM, 0))
tell("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
tell("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
for protocol in (4, 9, 12, 16): tell("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
""")
    assert "DONE" not in done.stdout
    assert done.stdout.count("EAFNOSUPPORT") == 7
    assert done.stdout.count("EPROTONOSUPPORT") == 5
    assert "raw: EPERM" in done.stdout


def test_network_is_changed(attempt: Attempt) -> None:
    """Interfaces can be read of and not changed, neither by netlink nor by ioctl: no route leads around the gateway.

    Known from: Docker CVE-2020-13401.
    """
    done = attempt("""
import fcntl
def ask(kind, flags, body):
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    channel.settimeout(5)
    channel.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    return struct.unpack_from("IHHIIi", channel.recv(65536))
print("links:", ask(18, 0x301, b"\\0" * 16)[1])
print("down:", errno.errorcode[-ask(16, 5, struct.pack("BxHiII", 0, 0, 1, 0, 1))[5]])
control = socket.socket()
tell("flags", lambda: fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0)))
tell("mark", lambda: control.setsockopt(socket.SOL_SOCKET, 36, 1))
tell("transparent", lambda: control.setsockopt(0, 19, 1))
""")
    assert "links: 16" in done.stdout
    assert done.stdout.count("EPERM") == 4


def test_other_abi(attempt: Attempt) -> None:
    """System calls of another ABI, of which the filter knows nothing, end the program.

    Known from: Linux CVE-2009-0835.
    """
    if os.uname().machine != "x86_64":
        pytest.skip("x32 and i386 are x86_64's")
    done = attempt("call('x32 mount', 0x40000000 + 165, 0, 0, 0, 0, 0); print('SURVIVED')")
    assert "SURVIVED" not in done.stdout
    assert done.returncode == 128 + 31


def test_32_bit_program(attempt: Attempt) -> None:
    """A 32-bit program, whose calls have other numbers, ends at its first one; this one would end well otherwise.

    Known from: Linux CVE-2009-0835.
    """
    done = attempt("""
machine, flags, code = (40, 0x5000000, "0000a0e30170a0e3000000ef") if arm else (3, 0, "b80100000031dbcd80")
start, code = 0x100000, bytes.fromhex(code)
ident = b"\\x7fELF\\1\\1\\1"
head = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, machine, 1, start + 84, 52, 0, flags, 52, 32, 1, 0, 0, 0)
head += struct.pack("<8I", 1, 0, start, start, 84 + len(code), 84 + len(code), 5, 0x1000)
with open("/tmp/program", "wb") as file: file.write(head + code)
os.chmod("/tmp/program", 0o755)
try: print(subprocess.run("/tmp/program").returncode)
except OSError as error: print(errno.errorcode[error.errno])  # a machine that runs no such programs
""")
    assert done.stdout in {f"{-signal.SIGSYS}\n", "ENOEXEC\n"}


def test_ptrace(attempt: Attempt, victim: subprocess.Popen[bytes]) -> None:
    """No process is traced, read or raided for descriptors, whatever its number.

    Known from: Linux CVE-2022-30594, bubblewrap CVE-2020-5291.
    """
    done = attempt(f"""
for pid in (1, os.getppid(), {victim.pid}):
    call("ptrace", (101, 117), 16, pid, 0, 0)
    call("read", (310, 270), pid, 0, 0, 0, 0, 0)
    call("write", (311, 271), pid, 0, 0, 0, 0, 0)
    call("getfd", 438, 0, 0, 0)
tell("mem", lambda: open(f"/proc/{victim.pid}/mem", "r+b").read(1))
""")
    assert "DONE" not in done.stdout
    assert done.stdout.count("EPERM") == 12


def test_clock_and_names(attempt: Attempt) -> None:
    """Neither the clock nor the machine's name is set.

    Known from: the calls that Docker's default seccomp profile refuses, each with its reason.
    """
    name = socket.gethostname()
    done = attempt("""
call("settimeofday", (164, 170), b"\\0" * 16, None)
call("clock_settime", (227, 112), 0, b"\\0" * 16)
call("sethostname", (170, 161), b"evil", 4)
call("quotactl", (179, 60), 0, None, 0, None)
call("acct", (163, 89), b"/tmp/acct")
call("swapon", (167, 224), b"/tmp/swap", 0)
""")
    assert done.stdout.count("EPERM") == 6
    assert socket.gethostname() == name
