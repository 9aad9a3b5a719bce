"""What is mounted in a leaf, against the kernel; each test has a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from unshared import fresh, unshared

from pytest_netns.errors import KernelError, NetnsError, UnsupportedError
from pytest_netns.kernel import mountinfo, mounts, privilege, syscalls

ETC = Path("/etc")
RUN = Path("/run")
SECRET = "nameserver 192.0.2.53\n"


def pretend(path: Path, **files: str) -> None:
    """Cover a directory of the host by one that has these files only; two underscores stand for a dot."""
    with privilege.raised():
        syscalls.mount("none", str(path), "tmpfs", 0, "mode=755")
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)


def prepare(resolv_conf: str | None = SECRET, *, hide_resolvers: bool = False) -> None:
    """Make the template, with the rights that the gateway has."""
    with privilege.raised():
        mounts.prepare_template(resolv_conf, hide_resolvers)


def refuses_writes(path: Path) -> bool:
    """Tell whether the path cannot be written to, whoever owns it."""
    with privilege.raised():
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


class TestHandles:
    """What users ask for by handle."""

    @unshared
    def test_hidden_file_is_empty(self, tmp_path: Path) -> None:
        """A hidden file reads as empty, can't be written to, and is back to itself outside."""
        file = tmp_path / "secret"
        file.write_text("42")
        with privilege.raised():
            mounts.hide(str(file))
        assert file.read_text() == ""
        assert refuses_writes(file)
        with privilege.raised():
            syscalls.umount2(str(file))
        assert file.read_text() == "42"

    @unshared
    def test_hidden_directory_is_empty(self, tmp_path: Path) -> None:
        """A hidden directory has no entries and can't be given any."""
        (tmp_path / "secret").touch()
        with privilege.raised():
            mounts.hide(str(tmp_path))
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(OSError, match="Read-only file system"):
            (tmp_path / "new").touch()

    @unshared
    def test_hidden_socket_refuses(self, tmp_path: Path) -> None:
        """Nobody can connect to a hidden UNIX socket."""
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            path = str(tmp_path / "s")
            server.bind(path)
            server.listen()
            with privilege.raised():
                mounts.hide(path)
            with pytest.raises(ConnectionRefusedError):
                client.connect(path)

    @unshared
    def test_tmpfs_is_empty_and_writable(self, tmp_path: Path) -> None:
        """A tmpfs hides what was there, keeps mode and owner, and takes as much as its size allows."""
        (tmp_path / "old").touch()
        tmp_path.chmod(0o750)
        with privilege.raised():
            mounts.tmpfs(str(tmp_path), "1M")
        assert list(tmp_path.iterdir()) == []
        status = tmp_path.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o750, os.getuid())
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "new").write_bytes(bytes(2 << 20))

    @unshared
    def test_bind_shows_what_is_mounted_below(self, tmp_path: Path) -> None:
        """A bound directory comes with the mounts in it; with ``readonly`` all of it refuses to be changed."""
        source, target = tmp_path / "source", tmp_path / "target with\tblanks"
        (source / "sub").mkdir(parents=True)
        target.mkdir()
        with privilege.raised():
            mounts.tmpfs(str(source / "sub"))
            (source / "sub" / "file").touch()
            mounts.bind(str(source), str(target), readonly=True)
        assert (target / "sub" / "file").exists()
        assert refuses_writes(target)
        assert refuses_writes(target / "sub")
        assert not refuses_writes(source)
        (source / "sub" / "file").write_text("the source can still be written to")

    @unshared
    def test_readonly_bind_keeps_locked_flags(self, tmp_path: Path) -> None:
        """The mounts of a machine keep their nosuid, nodev and noexec, which a user namespace could not take off."""
        flags = os.statvfs("/proc").f_flag
        with privilege.raised():
            mounts.bind("/proc", str(tmp_path), readonly=True)
        assert os.statvfs(tmp_path).f_flag == flags | os.ST_RDONLY

    @unshared
    def test_missing_paths_are_named(self, tmp_path: Path) -> None:
        """What does not exist can't be mounted on or from; the error names it and what to do, and is an OSError."""
        missing = str(tmp_path / "missing")
        attempts: list[Callable[[], None]] = [
            lambda: mounts.hide(missing),
            lambda: mounts.tmpfs(missing),
            lambda: mounts.bind("/", missing),
            lambda: mounts.bind(missing, "/"),
        ]
        for attempt in attempts:
            with pytest.raises(KernelError, match=r"missing.*No such file.*create it first") as caught:
                attempt()
            assert caught.value.errno == errno.ENOENT

    @unshared
    def test_wrong_arguments_are_named(self, tmp_path: Path) -> None:
        """A file on a directory, and a size that is none, are told in words."""
        with privilege.raised(), pytest.raises(KernelError, match="a file only goes on a file"):
            mounts.bind("/etc/hosts", str(tmp_path))
        with pytest.raises(NetnsError, match="'64M,uid=0' is no size"):
            mounts.tmpfs(str(tmp_path), "64M,uid=0")

    @unshared
    def test_added_hosts_resolve(self) -> None:
        """Added names resolve to their addresses, the last one first; the host's file is as it was below."""
        before = Path("/etc/hosts").read_text()
        with privilege.raised():
            mounts.add_host("db.test", ["192.0.2.1", "2001:db8::1"])
            mounts.add_host("api.test", ["192.0.2.2"])
        found = {info[4][0] for info in socket.getaddrinfo("db.test", 1, type=socket.SOCK_STREAM)}
        assert found == {"192.0.2.1", "2001:db8::1"}
        assert socket.gethostbyname("api.test") == "192.0.2.2"
        with privilege.raised():
            for _ in range(2):
                syscalls.umount2("/etc/hosts")
        assert Path("/etc/hosts").read_text() == before

    @unshared
    @pytest.mark.parametrize(("name", "addresses"), [("a b", ["::1"]), ("a", ["b"]), ("a", []), ("a\nb", ["::1"])])
    def test_bad_hosts_are_refused(self, name: str, addresses: list[str]) -> None:
        """What is no name, or no address, is refused before anything is changed."""
        with pytest.raises(NetnsError, match="cannot add the host"):
            mounts.add_host(name, addresses)

    @unshared
    def test_nothing_is_left_of_staging(self) -> None:
        """The directory that files are put together on is as before, also after an error."""
        before = mountinfo.mounts_below("/")
        with pytest.raises(ZeroDivisionError), privilege.raised(), mountinfo.staging():
            raise ZeroDivisionError
        assert mountinfo.mounts_below("/") == before


class TestTemplate:
    """What all leaves are copied from; the host's side is played by files in memory."""

    @unshared
    def test_resolver_files(self) -> None:
        """The three files are the leaf's own and can't be written to, even by root: all leaves share them."""
        pretend(ETC, resolv__conf="nameserver 10.0.0.1\n", hosts="", nsswitch__conf="hosts: mymachines resolve dns\n")
        prepare()
        assert (ETC / "resolv.conf").read_text() == SECRET
        assert (ETC / "nsswitch.conf").read_text() == "hosts: files dns\n"
        for name in ("resolv.conf", "hosts", "nsswitch.conf"):
            assert refuses_writes(ETC / name)

    @unshared
    def test_host_resolver_may_stay(self) -> None:
        """Without a resolv.conf given, the host's stays, and so does the rest of the isolation."""
        pretend(ETC, resolv__conf="nameserver 10.0.0.1\n", hosts="10.0.0.2 elsewhere\n")
        prepare(None)
        assert (ETC / "resolv.conf").read_text() == "nameserver 10.0.0.1\n"
        assert "elsewhere" not in (ETC / "hosts").read_text()

    @unshared
    def test_hosts_lead_nowhere_else(self) -> None:
        """Local lines are kept, localhost and the machine's name are there, and other machines are not."""
        pretend(ETC, hosts="127.0.1.1 box # me\n10.0.0.2 db.internal\nff02::1 ip6-allnodes\nnonsense\n")
        prepare(None)
        lines = (ETC / "hosts").read_text().splitlines()
        assert lines[:3] == ["127.0.0.1 localhost", "127.0.1.1 box # me", "ff02::1 ip6-allnodes"]
        assert "::1 localhost ip6-localhost ip6-loopback" in lines
        assert f"127.0.0.1 {platform.node()}" in lines
        assert "db.internal" not in " ".join(lines)

    @unshared
    def test_names_known_are_not_repeated(self) -> None:
        """Where the host's file names localhost and the machine already, it is taken as it is."""
        text = f"127.0.0.1 localhost\n127.0.1.1 {platform.node()}\n::1 localhost\n"
        pretend(ETC, hosts=text)
        prepare(None)
        assert (ETC / "hosts").read_text() == text

    @unshared
    def test_localhost_is_the_hosts(self) -> None:
        """Where the host has it for IPv4 alone, what is told to listen there takes IPv4 inside, too."""
        pretend(ETC, hosts="127.0.0.1 localhost\n::1 ip6-localhost ip6-loopback\n")
        prepare(None)
        named = [line for line in (ETC / "hosts").read_text().splitlines() if "localhost" in line.split()]
        assert named == ["127.0.0.1 localhost"]

    @unshared
    @pytest.mark.parametrize("target", ["/run/net/resolv.conf", "/run/net/deep/er/resolv.conf", "/etc/elsewhere"])
    def test_dangling_link(self, target: str) -> None:
        """A resolv.conf that links to what is missing leads to a private file, and its neighbours stay usable."""
        pretend(ETC, hosts="", passwd="root")
        pretend(RUN)
        (RUN / "net").mkdir()
        (RUN / "net" / "neighbour").write_text("here")
        (ETC / "resolv.conf").symlink_to(target)
        prepare()
        assert (ETC / "resolv.conf").read_text() == SECRET
        assert (ETC / "passwd").read_text() == "root"
        assert (RUN / "net" / "neighbour").read_text() == "here"

    @unshared
    def test_missing_files(self) -> None:
        """Where /etc is read-only and has no resolv.conf or hosts, they appear beside what is there."""
        pretend(ETC, passwd="root")
        (ETC / "sub").mkdir()
        (ETC / "sub" / "file").write_text("x")
        with privilege.raised():
            mountinfo.read_only("/etc")
        prepare()
        assert (ETC / "resolv.conf").read_text() == SECRET
        assert "127.0.0.1 localhost\n" in (ETC / "hosts").read_text()
        assert (ETC / "sub" / "file").read_text() == "x"
        assert not (ETC / "nsswitch.conf").exists()

    @unshared
    def test_what_can_not_be_mirrored_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no private file can be put, the error names the missing one and the remedy."""
        pretend(ETC, hosts="")
        monkeypatch.setattr(mounts, "_mirror", lambda *_: (_ for _ in ()).throw(KernelError(1, "mount: refused")))
        with pytest.raises(UnsupportedError, match=r"/etc/resolv.conf, which is missing.*Create /etc/resolv.conf"):
            prepare()

    @unshared
    @pytest.mark.parametrize("resolv_conf", [SECRET, None])
    def test_systemd_resolved_is_out_of_reach(self, resolv_conf: str | None) -> None:
        """Its socket is gone, the link to its stub file still leads to a resolv.conf, and D-Bus stays unless asked."""
        pretend(ETC, hosts="")
        pretend(RUN)
        resolve, dbus = RUN / "systemd" / "resolve", RUN / "dbus"
        resolve.mkdir(parents=True)
        dbus.mkdir()
        (resolve / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
        (ETC / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
        with socket.socket(socket.AF_UNIX) as varlink, socket.socket(socket.AF_UNIX) as bus:
            for server, path in ((varlink, resolve / "io.systemd.Resolve"), (bus, dbus / "system_bus_socket")):
                server.bind(str(path))
                server.listen()
            prepare(resolv_conf, hide_resolvers=resolv_conf is not None)
            assert (ETC / "resolv.conf").read_text() == (resolv_conf or "nameserver 127.0.0.53\n")
            assert not (resolve / "io.systemd.Resolve").exists()
            with socket.socket(socket.AF_UNIX) as client:
                code = client.connect_ex(str(dbus / "system_bus_socket"))
            assert code == (errno.ECONNREFUSED if resolv_conf else 0)

    @unshared
    def test_nscd_is_out_of_reach(self) -> None:
        """The name service cache, which answers from the host, can't be asked."""
        pretend(ETC, hosts="", resolv__conf="")
        pretend(RUN)
        (RUN / "nscd").mkdir()
        (RUN / "nscd" / "socket").touch()
        prepare()
        assert list((RUN / "nscd").iterdir()) == []

    @unshared
    def test_mounts_stay_inside(self) -> None:
        """No mount is shared with, or receives from, any other namespace."""
        prepare()
        optional = [line.split(" - ")[0].split()[6:] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert not any(optional)

    @unshared
    def test_getent_uses_the_files(self) -> None:
        """A program that resolves through the C library sees the leaf's hosts."""
        getent = shutil.which("getent")
        if getent is None:
            pytest.skip("there is no getent here")
        prepare()
        with privilege.raised():
            mounts.add_host("inside.test", ["192.0.2.7"])
        result = subprocess.run([getent, "hosts", "inside.test"], capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["192.0.2.7", "inside.test"]


class TestSysfs:
    """/sys of a leaf."""

    @unshared
    def test_shows_the_leaf(self) -> None:
        """A fresh /sys has the namespace's interfaces only, and all that was mounted below the old one."""
        before = mounts.sysfs_submounts()
        fresh()
        own = {name for _, name in socket.if_nameindex()}
        with privilege.raised():
            assert mounts.fresh_sysfs(mounts.sysfs())
        assert {path.name for path in Path("/sys/class/net").iterdir()} == own
        assert mounts.sysfs_submounts() == before
        for path in before:
            assert os.path.ismount(path)

    @unshared
    def test_one_look_will_do_for_all(self) -> None:
        """What was seen of /sys in the mount namespace that others are copied from holds in each of them."""
        seen = mounts.sysfs()
        for _ in range(2):
            fresh()
            with privilege.raised():
                assert mounts.fresh_sysfs(seen)
            assert mounts.sysfs() == seen

    def test_none_is_made_where_there_was_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a /sys there is nothing to look at, and nothing is mounted."""
        monkeypatch.setattr(os.path, "ismount", lambda _: False)
        assert mounts.sysfs() is None
        assert not mounts.fresh_sysfs(None)

    @unshared
    def test_refusal_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the kernel refuses a new /sys, the old one stays, and the answer is False."""
        before = mountinfo.mounts_below("/sys")
        with privilege.raised():
            syscalls.unshare(syscalls.CLONE_NEWNS)
            monkeypatch.setattr(syscalls, "mount", lambda *_: (_ for _ in ()).throw(KernelError(1, "refused")))
            assert not mounts.fresh_sysfs(mounts.Sysfs(0, ()))
        assert mountinfo.mounts_below("/sys") == before

    @unshared
    def test_paths_with_odd_signs(self, tmp_path: Path) -> None:
        """A mount is found whatever its path has in it, and the others are, too."""
        before, path = mountinfo.mounts_below("/"), tmp_path / "a\rb\x0cc\x85d\u2028e f\ng\\h"
        path.mkdir()
        with privilege.raised():
            syscalls.mount("none", str(path), "tmpfs", 0)
        assert [one.target for one in mountinfo.mounts_below("/") if one not in before] == [str(path)]
