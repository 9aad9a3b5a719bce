"""Files: what a box must not read, and must not write."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from boxes import Attempt, secret

SECRETS = (".ssh/id_rsa", ".aws/credentials", ".netrc", ".git-credentials", ".config/gh/hosts.yml")


def test_home_is_read(attempt: Attempt) -> None:
    """Secrets in a home are not there: what every agent sandbox promises first.

    Known from: the Nx packages that had agents gather keys, GHSA-cxm3-wv7p-598c.
    """
    done = attempt(f"""
home = {str(secret(""))!r}
for name in {SECRETS!r}:
    tell(name, lambda: open(os.path.join(home, name)).read())
print(os.listdir(os.path.expanduser("~")))
""")
    assert done.stdout.count("ENOENT") == len(SECRETS)
    assert done.stdout.endswith("[]\n")


def test_home_as_working_directory(netns: Any, attempt: Attempt) -> None:
    """Secrets are covered, too, where the home itself is what the box works in.

    Known from: the same, GHSA-cxm3-wv7p-598c.
    """
    with netns.sandbox(workdir=secret("")) as box:
        done = attempt(
            f"for name in {SECRETS!r}: tell(name, lambda: open(name).read())\nprint(os.listdir('.'))", box=box
        )
    assert "harmless" in done.stdout
    assert done.stdout.count("ENOENT") + done.stdout.count("DONE ''") == len(SECRETS)


def test_environment(attempt: Attempt) -> None:
    """Keys in the environment do not get in, not by /proc either.

    Known from: the same, GHSA-cxm3-wv7p-598c, and CWE-526.
    """
    assert "CANARY" in os.environ["OPENAI_API_KEY"]
    done = attempt("""
print(dict(os.environ))
for pid in filter(str.isdigit, os.listdir("/proc")):
    tell(pid, lambda: open(f"/proc/{pid}/environ").read())
""")
    assert "PATH" in done.stdout
    assert "OPENAI_API_KEY" not in done.stdout


def test_delete_everything(attempt: Attempt) -> None:
    """``rm -rf --no-preserve-root /`` deletes what is the box's own, as agents did.

    Known from: the wiper in a prompt of Amazon Q, CVE-2025-8217.
    """
    done = attempt("""
try:
    subprocess.run(["rm", "-rf", "--no-preserve-root", "/"], stderr=subprocess.DEVNULL, timeout=2)
except subprocess.TimeoutExpired:
    print("so far")  # how long it takes is a matter of how full the machine is
subprocess.run(["rm", "-rf", os.getcwd(), os.path.expanduser("~"), "/etc", "/boot"], stderr=subprocess.DEVNULL)
print("survived")
""")
    assert done.stdout.endswith("survived\n")
    assert [str(change) for change in done.changes] == ["deleted file"]


def test_host_is_written(attempt: Attempt, work: Path) -> None:
    """Nothing outside of the working directory can be written, and that only in appearance.

    Known from: Codex CVE-2025-59532.
    """
    done = attempt(f"""
for path in ("/etc/cron.d/evil", "/usr/bin/evil", "/evil", "/etc/ld.so.preload", {str(secret(".bashrc"))!r} + "/x"):
    tell(path, lambda: open(path, "w"))
open("file", "w").write("after")
""")
    assert done.stdout.count("EROFS") == 4
    assert (work / "file").read_text() == "before\n"


def test_remount_writable(attempt: Attempt) -> None:
    """A read-only bind is not made writable again.

    Known from: Linux CVE-2014-5206.
    """
    done = attempt("""
call("remount", (165, 40), b"none", b"/", None, 32 | 4096, None)
call("bind", (165, 40), b"/", b"/tmp", None, 4096, None)
call("umount", (166, 39), os.path.expanduser("~").encode(), 2)
call("open_tree", 428, -100, b"/", 1)
call("fsopen", 430, b"tmpfs", 0)
call("mount_setattr", 442, -100, b"/", 0, b"\\0" * 32, 32)
call("pivot_root", (155, 41), b".", b".")
call("chroot", (161, 51), b"/tmp")
""")
    assert done.stdout.count("EPERM") == 8


def test_shocker(attempt: Attempt) -> None:
    """Files are not opened by handle, past every mount.

    Known from: Docker's "shocker", 2014.
    """
    done = attempt("""
handle = ctypes.create_string_buffer(struct.pack("IiQ", 8, 1, 2), 128)
call("open_by_handle_at", (304, 265), 3, handle, 0)
call("name_to_handle_at", (303, 264), -100, b"/", handle, ctypes.byref(ctypes.c_int()), 0)
""")
    assert done.stdout.count("EPERM") == 2


def test_leaked_descriptors(attempt: Attempt) -> None:
    """No descriptor leads out: a leaked one of /sys/fs/cgroup did.

    Known from: runc CVE-2024-21626.
    """
    held = os.open("/", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        done = attempt("""
print(sorted(os.listdir("/proc/self/fd"))[:4])
for fd in range(3, 1024):
    for where in (f"/proc/self/fd/{fd}/../..", f"/proc/self/fd/{fd}"):
        try:
            os.chdir(where)
            print("OUT", where, os.listdir("."))
        except OSError:
            pass
""")
    finally:
        os.close(held)
    assert done.stdout == "['0', '1', '2', '3']\n"  # the last one is the listing's own


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_standard_stream_is_reopened(attempt: Attempt, work: Path, stream: str) -> None:
    """A file that a standard stream comes from or goes to is not opened anew for writing.

    Known from: runc CVE-2019-5736.
    """
    outside = work.parent / "outside"
    outside.write_text("precious")
    outside.chmod(0o666)  # so that it is not for its mode that it stays
    number = 0 if stream == "stdin" else 1
    with outside.open("r" if number == 0 else "a") as file:
        attempt(
            f"""
for flags in (os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
    fd = os.open("/proc/self/fd/{number}", flags)
    os.write(fd, b"")
try: os.ftruncate({number}, 0)
except OSError: pass
try: os.lseek({number}, 0, 0)
except OSError: pass
""",
            capture_output=False,
            stderr=subprocess.PIPE,
            **{stream: file},
        )
    assert outside.read_text() == "precious"


def test_proc_self_exe(attempt: Attempt, box: Any) -> None:
    """The program that starts the box is not overwritten by way of /proc/<pid>/exe.

    Known from: runc CVE-2019-5736.
    """
    program = Path(shutil.which("bwrap") or "/nonexistent")
    before = program.read_bytes() if program.is_file() else b""
    done = attempt("""
for pid in ("1", "self", str(os.getppid())):
    tell(pid, lambda: os.open(f"/proc/{pid}/exe", os.O_WRONLY))
""")
    assert "DONE" not in done.stdout
    assert (program.read_bytes() if program.is_file() else b"") == before


def test_root_of_init(attempt: Attempt) -> None:
    """The root of the box's init, and its working directory, are the box's.

    Known from: Claude Code's list of forbidden programs, which /proc/self/root led around (Ona, 2026).
    """
    done = attempt(f"""
for path in ("/proc/1/root", "/proc/1/cwd", "/proc/1/task/1/root"):
    tell(path, lambda: os.path.exists(path + {str(secret(".netrc"))!r}))
""")
    assert "True" not in done.stdout


def test_link_in_the_way_of_a_mount(netns: Any, attempt: Attempt, work: Path) -> None:
    """A link that a box puts where the next command has a mount leads nowhere.

    Known from: runc CVE-2021-30465, flatpak CVE-2024-42472 and CVE-2026-34078.
    """
    (work / "shared" / "inner").mkdir(parents=True)
    options = {"writable": [work / "shared", work / "shared" / "inner"], "overlay": False}
    with netns.sandbox(workdir=work / "shared", **options) as box:
        attempt(f"os.rename('inner', 'gone'); os.symlink({str(secret('.ssh'))!r}, 'inner')", box=box)
        done = attempt(
            "tell('list', lambda: os.listdir('inner')); tell('read', lambda: open('inner/id_rsa').read())", box=box
        )
    assert "DONE" not in done.stdout or "id_rsa" not in done.stdout


def test_links_in_the_changes(attempt: Attempt, box: Any, work: Path) -> None:
    """A link is told as a link, and never followed, when changes are read.

    Known from: Claude Code CVE-2026-39861, Docker CVE-2018-15664, kubectl cp CVE-2019-11246.
    """
    done = attempt(f"os.symlink({str(secret('.netrc'))!r}, 'link'); os.symlink({str(secret('.ssh'))!r}, 'folder')")
    assert [change.path for change in done.changes] == ["folder", "link"]
    with pytest.raises(Exception, match="leads out of the working directory"):
        box.apply()
    assert sorted(os.listdir(work)) == ["file"]


def test_traps_in_the_changes(attempt: Attempt, box: Any) -> None:
    """Pipes, sockets, locked directories and bottomless ones do not stop whoever reads the changes.

    Known from: systemd-tmpfiles CVE-2021-3997.
    """
    done = attempt("""
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
os.mkdir("locked"); open("locked/file", "w").write("x"); os.chmod("locked/file", 0); os.chmod("locked", 0)
open("odd\\n\\x1b[31m name", "w").write("x")
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
""")
    paths = {change.path for change in done.changes}
    assert {"pipe", "socket", "locked", "locked/file", "d"} <= paths
    assert "\x1b" not in done.diff()
    box.discard()
    assert box.changes == []


def test_setuid_is_left(netns: Any, attempt: Attempt, work: Path) -> None:
    """No file is left outside that changes who runs it.

    Known from: Docker CVE-2021-41091, containerd CVE-2021-41103.
    """
    with netns.sandbox(workdir=work, overlay=False) as box:
        done = attempt(
            """
import shutil
shutil.copy("/bin/sh", "sh")
for mode in (0o4755, 0o2755, 0o6755):
    tell("chmod", lambda: os.chmod("sh", mode))
    tell("open", lambda: os.open(f"new{mode}", os.O_CREAT | os.O_WRONLY, mode))
    call("fchmodat", (268, 53), -100, b"sh", mode)
    call("fchmodat2", 452, -100, b"sh", mode, 0)
""",
            box=box,
        )
    assert done.stdout.count("EPERM") == 12
    assert not any((work / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID) for name in os.listdir(work))


def test_setuid_programs(attempt: Attempt) -> None:
    """Programs that are setuid give nothing.

    Known from: firejail CVE-2022-31214.
    """
    done = attempt("""
for program in ("/bin/su", "/usr/bin/passwd", "/usr/bin/sudo", "/usr/bin/mount"):
    if os.path.exists(program):
        subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True)
print(open("/proc/self/status").read())
call("setuid", (105, 146), 65534)
tell("device", lambda: os.mknod("disk", 0o060600, os.makedev(254, 0)))
""")
    assert "NoNewPrivs:\t1" in done.stdout
    assert "CapBnd:\t0000000000000000" in done.stdout
    assert "CapEff:\t0000000000000000" in done.stdout
    assert "device: EPERM" in done.stdout
    assert "setuid: DONE" not in done.stdout


def test_devices(attempt: Attempt) -> None:
    """There are no devices but the harmless ones.

    Known from: runc CVE-2025-52565.
    """
    done = attempt("print(sorted(os.listdir('/dev'))); tell('write', lambda: open('/dev/evil', 'w'))")
    assert not {"kvm", "fuse", "mem", "vda", "sda", "vsock", "net"} & set(done.stdout.split("'"))
    assert "write: EROFS" in done.stdout


def test_sockets_by_path(netns: Any, attempt: Attempt, work: Path) -> None:
    """Sockets in /run and /tmp, Docker's, the ssh agent's, D-Bus's, X11's, are not there.

    Known from: flatpak CVE-2021-21261 (D-Bus), snapd CVE-2019-7304.
    """
    server = socket.socket(socket.AF_UNIX)
    path = work.parent / "agent.sock"
    server.bind(str(path))
    server.listen()
    server.setblocking(False)
    done = attempt(f"""
run = ("/var/run/docker.sock", "/run/docker.sock", "/run/dbus/system_bus_socket")
for path in ({str(path)!r}, *run, "/tmp/.X11-unix/X0"):
    tell(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
""")
    assert done.stdout.count("ENOENT") == 5
    with pytest.raises(BlockingIOError):
        server.accept()
    server.close()
