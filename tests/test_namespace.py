"""The handle of a leaf, without pytest's plugin and without a gateway; each test has namespaces of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from unshared import effective, fresh, mnt_inode, net_inode, unshared

from pytest_netns.errors import GatewayError, KernelError, NamespaceClosedError, NetnsError
from pytest_netns.gateway.client import GatewayClient, LeafGrant
from pytest_netns.kernel import processes
from pytest_netns.kernel.position import Position
from pytest_netns.namespace import Namespace
from pytest_netns.sysctl import UnknownSysctlError

VARIABLE = "PYTEST_NETNS"


class Recorder:
    """Stands for the gateway: notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    def publish(self, name: str, port: int) -> int:
        """Forward host port 40000 + port."""
        self.asked.append(("publish", (name, port)))
        return 40000 + port

    def unpublish(self, host_port: int) -> None:
        """Stop forwarding."""
        self.asked.append(("unpublish", host_port))

    def release(self, name: str) -> None:
        """Drop the leaf."""
        self.asked.append(("release", name))


def make_leaf(name: str = "w0-t1", recorder: Recorder | None = None) -> Namespace:
    """Return a handle of new namespaces; the calling thread stays where it is."""
    home = Position()
    fresh()
    leaf = Position()
    home.restore()
    home.close()
    grant = LeafGrant(name, "198.18.0.2", "fd00::2", "198.18.0.1", "fd00::1", 8080, leaf.net_fd, leaf.mnt_fd)
    return Namespace(grant, cast("GatewayClient", recorder or Recorder()))


def where() -> tuple[int, int]:
    """Return the calling thread's namespaces."""
    return net_inode(), mnt_inode()


@contextlib.contextmanager
def ended(leaf: Namespace) -> Iterator[None]:
    """End whoever is left in the leaf after the block."""
    try:
        yield
    finally:
        processes.end_members(os.fstat(leaf.fileno()).st_ino)


class TestEnter:
    """Going in and coming back."""

    @unshared
    def test_with_moves_in_and_back(self, tmp_path: Path) -> None:
        """The block runs inside, in the same directory, with the variable set; afterwards all is as before."""
        leaf = make_leaf()
        home = where()
        os.environ.pop(VARIABLE, None)
        os.chdir(tmp_path)
        with leaf as entered:
            assert entered is leaf
            assert leaf.is_inside()
            assert where() != home
            assert Path.cwd() == tmp_path
            assert os.environ[VARIABLE] == "w0-t1"
            assert effective() == 0
        assert not leaf.is_inside()
        assert where() == home
        assert Path.cwd() == tmp_path
        assert VARIABLE not in os.environ

    @unshared
    def test_blocks_nest(self) -> None:
        """A leaf can be entered from another leaf, and from itself; each end goes back one step."""
        one, two = make_leaf("one"), make_leaf("two")
        home = where()
        with one:
            with two, two:
                assert two.is_inside()
                with one:
                    assert os.environ[VARIABLE] == "one"
                assert two.is_inside()
            assert one.is_inside()
            assert os.environ[VARIABLE] == "one"
        assert where() == home

    @unshared
    def test_comes_back_after_an_error(self) -> None:
        """An exception in the block is passed on, from outside."""
        leaf = make_leaf()
        home = where()
        with pytest.raises(ZeroDivisionError), leaf:
            raise ZeroDivisionError
        assert where() == home

    @unshared
    def test_change_of_directory_is_kept(self, tmp_path: Path) -> None:
        """A directory changed into inside stays, like without us, unless it exists inside only."""
        leaf = make_leaf()
        (tmp_path / "private").mkdir()
        os.chdir("/")
        with leaf:
            os.chdir(tmp_path)
        assert Path.cwd() == tmp_path
        with leaf:
            leaf.tmpfs(tmp_path / "private")
            (tmp_path / "private" / "new").mkdir()
            os.chdir(tmp_path / "private" / "new")
        assert Path.cwd() == tmp_path

    @unshared
    def test_directory_missing_inside(self, tmp_path: Path) -> None:
        """Whoever is in a directory that the leaf hides is at / inside, and back there afterwards."""
        leaf = make_leaf()
        (tmp_path / "sub").mkdir()
        leaf.hide(tmp_path)
        os.chdir(tmp_path / "sub")
        with leaf:
            assert Path.cwd() == Path("/")
        assert Path.cwd() == tmp_path / "sub"

    @unshared
    def test_threads_go_their_own_ways(self) -> None:
        """A thread that enters moves nobody else, and leaves the environment to the main thread."""
        leaf = make_leaf()
        home = where()
        seen: list[tuple[bool, str | None]] = []

        def visit() -> None:
            with leaf:
                seen.append((leaf.is_inside(), os.environ.get(VARIABLE)))

        os.environ.pop(VARIABLE, None)
        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
        assert seen == [(True, None)]
        assert where() == home

    @unshared
    def test_exit_needs_enter(self) -> None:
        """Leaving what was not entered is an error that says so."""
        with pytest.raises(NetnsError, match="did not enter the namespace w0-t1"):
            make_leaf().exit()


class TestCommands:
    """Programs inside."""

    @unshared
    def test_run_from_outside_and_inside(self) -> None:
        """A command runs in the leaf wherever the caller is; the caller's place does not change."""
        leaf = make_leaf()
        home = where()
        command = ["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"]
        result = leaf.run(command, capture_output=True, text=True, check=True)
        assert where() == home
        with leaf:
            inside = where()
            again = leaf.run(command, stdout=subprocess.PIPE, text=True)
        assert result.stdout.split() == [f"net:[{inside[0]}]", f"mnt:[{inside[1]}]"]
        assert again.stdout == result.stdout

    @unshared
    def test_environment(self) -> None:
        """The leaf's name is added to the environment, be it inherited or given."""
        leaf = make_leaf()
        assert leaf.run(["printenv", VARIABLE], capture_output=True).stdout == b"w0-t1\n"
        assert leaf.run(["/usr/bin/env"], env={"A": "b"}, stdout=-1, text=True).stdout.split() == [
            "A=b",
            f"{VARIABLE}=w0-t1",
        ]

    @unshared
    def test_run_is_like_subprocess(self) -> None:
        """Input, check, timeout and wrong combinations behave as in ``subprocess.run``."""
        leaf = make_leaf()
        assert leaf.run(["cat"], input="hello", text=True, capture_output=True).stdout == "hello"
        assert leaf.run("exit 3", shell=True).returncode == 3
        with pytest.raises(subprocess.CalledProcessError) as failed:
            leaf.run("echo out; echo err >&2; exit 4", shell=True, check=True, capture_output=True, text=True)
        assert (failed.value.returncode, failed.value.stdout, failed.value.stderr) == (4, "out\n", "err\n")
        with pytest.raises(subprocess.TimeoutExpired):
            leaf.run(["sleep", "30"], timeout=0.05)
        assert leaf.processes() == []
        with pytest.raises(ValueError, match="capture_output"):
            leaf.run(["true"], capture_output=True, stdout=subprocess.PIPE)
        with pytest.raises(ValueError, match="stdin and input"):
            leaf.run(["true"], input=b"", stdin=subprocess.PIPE)
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            leaf.run(["/no-such-program"])
        assert not leaf.is_inside()

    @unshared
    def test_commands_own_no_capability(self) -> None:
        """What an ordinary user starts inside has no capability; a file without permissions stays closed."""
        if os.geteuid() == 0:
            return
        result = make_leaf().run(["grep", "^Cap", "/proc/self/status"], capture_output=True, text=True)
        sets = dict(line.split(":\t") for line in result.stdout.splitlines())
        assert {sets[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}

    @unshared
    def test_processes(self) -> None:
        """The leaf's processes are listed with id and command; others, and the caller inside, are not."""
        leaf = make_leaf()
        with ended(leaf):
            child = leaf.popen(["sleep", "50"])
            outside = subprocess.Popen(["sleep", "50"])
            with leaf:
                assert leaf.processes() == [(child.pid, "sleep 50")]
            outside.kill()


class TestSettings:
    """sysctl."""

    @unshared
    def test_changes_stay_inside(self) -> None:
        """A setting is read and written in the leaf, from outside and inside, by dotted or slashed name."""
        leaf = make_leaf()
        key = "net.ipv4.ip_default_ttl"
        leaf.sysctl[key] = "33"
        assert leaf.sysctl["net/ipv4/ip_default_ttl"] == "33"
        assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() != "33\n"
        with leaf:
            leaf.sysctl[key] = 34
            assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == "34\n"
        assert leaf.sysctl["net/ipv4/conf/lo/forwarding"] == leaf.sysctl["net.ipv4.conf.lo.forwarding"]
        assert key in leaf.sysctl
        assert leaf.sysctl.get("net.ipv4.nonsense", "?") == "?"
        assert effective() == 0

    @unshared
    def test_unknown_names(self) -> None:
        """A name that the kernel does not have is a KeyError that names it."""
        leaf = make_leaf()
        assert "net.ipv4.nonsense" not in leaf.sysctl
        for key in ("net.ipv4.nonsense", "net", "net.ipv4.ip_default_ttl.more"):
            with pytest.raises(KeyError, match=key) as caught:
                leaf.sysctl[key]
            assert isinstance(caught.value, UnknownSysctlError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    @unshared
    @pytest.mark.parametrize("key", ["kernel.hostname", "vm/swappiness", "net/../kernel/hostname", "net..x", ""])
    def test_settings_of_the_machine_are_refused(self, key: str) -> None:
        """What belongs to the host can be neither read nor written, and the error says whose it is."""
        leaf = make_leaf()
        with pytest.raises(NetnsError, match="of the whole machine"):
            leaf.sysctl[key] = "1"
        assert key not in leaf.sysctl

    @unshared
    def test_bad_values(self) -> None:
        """A value that the kernel refuses is an OSError with name, value and cause."""
        with pytest.raises(KernelError, match=r"cannot set 'net.ipv4.ip_default_ttl' = 'many': Invalid argument"):
            make_leaf().sysctl["net.ipv4.ip_default_ttl"] = "many"


class TestMounts:
    """The mount half, by handle."""

    @unshared
    def test_changes_are_seen_inside_only(self, tmp_path: Path) -> None:
        """Hidden, bound and private paths, and added hosts, are the leaf's; outside nothing has changed."""
        leaf = make_leaf()
        hosts = Path("/etc/hosts").read_text()
        for name in ("hidden", "private", "bound"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
        leaf.hide(tmp_path / "hidden")
        leaf.tmpfs(str(tmp_path / "private"), "1M")
        leaf.bind(tmp_path / "private", tmp_path / "bound", readonly=True)
        leaf.add_host("db.test", "192.0.2.1")
        with leaf:
            assert [path.name for path in tmp_path.rglob("file")] == []
            (tmp_path / "private" / "new").touch()
            assert (tmp_path / "bound" / "new").exists()
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / "bound" / "other").touch()
            assert Path("/etc/hosts").read_text().startswith("192.0.2.1 db.test\n")
        assert sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file()) == [
            "bound",
            "hidden",
            "private",
        ]
        assert Path("/etc/hosts").read_text() == hosts
        assert effective() == 0


class TestLife:
    """Addresses, publishing, closing."""

    @unshared
    def test_attributes(self) -> None:
        """The handle tells name and addresses, and its descriptor is the network namespace."""
        leaf = make_leaf()
        assert leaf.addresses == (ipaddress.ip_address("198.18.0.2"), ipaddress.ip_address("fd00::2"))
        assert (leaf.ipv4, leaf.ipv6, leaf.gateway, leaf.gateway_ipv6) == (
            "198.18.0.2",
            "fd00::2",
            "198.18.0.1",
            "fd00::1",
        )
        assert repr(leaf) == "<Namespace w0-t1 198.18.0.2>"
        with leaf:
            assert os.fstat(leaf.fileno()).st_ino == net_inode()
        assert not os.get_inheritable(leaf.fileno())

    @unshared
    def test_close(self) -> None:
        """Closing ends what was published, gives the leaf up, closes the descriptors, and may be repeated."""
        recorder = Recorder()
        leaf = make_leaf(recorder=recorder)
        fd = leaf.fileno()
        assert leaf.publish(80) == leaf.publish(80) == 40080
        leaf.close()
        leaf.close()
        assert leaf.closed
        assert recorder.asked == [("publish", ("w0-t1", 80)), ("unpublish", 40080), ("release", "w0-t1")]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    @unshared
    def test_close_without_a_gateway(self) -> None:
        """Where the gateway is gone, each request is tried, none is an error, and the descriptors are closed."""

        class Gone(Recorder):
            def unpublish(self, host_port: int) -> None:
                super().unpublish(host_port)
                raise GatewayError

            def release(self, name: str) -> None:
                super().release(name)
                raise GatewayError

        recorder = Gone()
        leaf = make_leaf(recorder=recorder)
        fd = leaf.fileno()
        leaf.publish(80)
        leaf.publish(81)
        leaf.close()
        assert recorder.asked[2:] == [("unpublish", 40081), ("unpublish", 40080), ("release", "w0-t1")]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    @unshared
    def test_use_after_close_is_named(self) -> None:
        """A handle that has outlived its leaf says so, with the leaf's name, whatever it is asked for."""
        leaf = make_leaf()
        leaf.close()
        for use in (
            leaf.enter,
            leaf.fileno,
            leaf.processes,
            lambda: leaf.run(["true"]),
            lambda: leaf.sysctl["net.ipv4.ip_default_ttl"],
            lambda: leaf.hide("/tmp"),
            lambda: leaf.publish(80),
        ):
            with pytest.raises(NamespaceClosedError, match="w0-t1 is closed"):
                use()

    @unshared
    def test_publish_needs_a_port(self) -> None:
        """What is no port is refused with the right form, and nothing on the host listens for it."""
        recorder = Recorder()
        leaf = make_leaf(recorder=recorder)
        for port in (0, 65_536, True, cast("int", "http")):
            with pytest.raises(NetnsError, match=rf"netns\.publish\(port\): {port!r} is no port; write a whole number"):
                leaf.publish(port)
        assert recorder.asked == []
        leaf.close()

    @unshared
    def test_entering_is_cheap(self) -> None:
        """Going in and back takes well below a millisecond."""
        leaf = make_leaf()
        rounds = 200
        start = time.perf_counter()
        for _ in range(rounds):
            with leaf:
                pass
        assert (time.perf_counter() - start) / rounds < 1e-3
