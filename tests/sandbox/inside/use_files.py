"""Files in a box: what is shown, what is kept apart, and what comes of it."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_netns import SandboxError


@pytest.fixture
def tree(work: Path) -> Path:
    """Return the working directory, with more in it."""
    (work / "folder").mkdir()
    (work / "folder" / "inner").write_text("one\ntwo\nthree\n")
    (work / "binary").write_bytes(b"\0\1")
    (work / "link").symlink_to("file")
    return work


def changed(done: Any) -> list[str]:
    """Return what a command has changed, as text."""
    return [str(change) for change in done.changes]


def test_changes(tree: Path, box: Any) -> None:
    """Files that a command makes, changes and deletes are told, and the real ones stay."""
    script = (
        "echo new > new; echo four >> folder/inner; rm file; mkdir made; chmod 700 folder; printf '\\0\\2' > binary"
    )
    done = box.run(script, shell=True)
    assert changed(done) == [
        "modified binary",
        "deleted file",
        "modified folder",
        "modified folder/inner",
        "created made",
        "created new",
    ]
    assert sorted(os.listdir(tree)) == ["binary", "file", "folder", "link"]
    assert "+four\n" in done.diff()
    assert "--- a/file\n+++ /dev/null\n@@ -1 +0,0 @@\n-before\n" in done.diff()
    assert "Binary files a/binary and b/binary differ\n" in done.diff()


def test_nothing_changed(tree: Path, box: Any) -> None:
    """A file that is touched, opened for writing or put back as it was has not changed."""
    done = box.run("touch file; cp folder/inner x; cat x > folder/inner; rm x; mv binary b; mv b binary", shell=True)
    assert done.changes == []


def test_changes_of_each(tree: Path, box: Any) -> None:
    """Each command's changes are its own; the box's are those of all."""
    assert changed(box.run("echo 1 > a", shell=True)) == ["created a"]
    assert changed(box.run("echo 2 > b", shell=True)) == ["created b"]
    second = box.run("echo 3 >> a; rm b", shell=True)
    assert changed(second) == ["modified a", "deleted b"]
    assert "@@ -1 +1,2 @@\n 1\n+3\n" in second.diff()
    assert changed(box) == ["created a"]


def test_directory_is_replaced(tree: Path, box: Any) -> None:
    """What was in a directory that was deleted is gone, also if there is a new one of that name."""
    done = box.run("rm -r folder; mkdir folder; echo x > folder/other", shell=True)
    assert changed(done) == ["deleted folder/inner", "created folder/other"]
    assert changed(box.run(["rm", "-r", "folder"])) == ["deleted folder", "deleted folder/other"]
    assert changed(box) == ["deleted folder", "deleted folder/inner"]


def test_git_takes_the_diff(tree: Path, box: Any) -> None:
    """The diff is one that git applies."""
    (tree / "binary").unlink()
    box.run(
        "echo new > 'new file'; echo four >> folder/inner; rm file; chmod +x folder/inner; printf x > tail", shell=True
    )
    other = tree.parent / "other"
    subprocess.run(["cp", "-r", tree, other], check=True)
    subprocess.run(["git", "apply", "--unsafe-paths", "-"], input=box.diff(), text=True, check=True, cwd=other)
    box.apply()
    assert subprocess.run(["diff", "-r", "--no-dereference", tree, other], check=False).returncode == 0


def test_git_takes_what_turns_into_something_else(tree: Path, box: Any) -> None:
    """A file that becomes a directory or a link, or has other rights only, is told so that git does the same."""
    script = (
        "rm file link; mkdir file; echo x > file/x; echo y > link; chmod +x binary; rm -r folder; ln -s file folder; "
        "mkfifo pipe; touch empty"
    )
    diff = box.run(script, shell=True).diff()
    assert "pipe" not in diff
    subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, text=True, check=True)
    assert sorted(os.listdir(tree)) == ["binary", "empty", "file", "folder", "link"]
    assert (tree / "file" / "x").read_text() == "x\n"
    assert (tree / "link").read_text() == "y\n"
    assert not (tree / "link").is_symlink()
    assert os.readlink(tree / "folder") == "file"
    assert (tree / "binary").stat().st_mode & 0o111


def test_holes(tree: Path, box: Any) -> None:
    """Files that are long but for what is in them are told, compared and applied without a look at their holes."""
    script = "truncate -s 256M $(seq -f hole%g 1000); printf x | dd of=hole1 seek=200M bs=1 conv=notrunc"
    done = box.run(script, shell=True, stderr=subprocess.DEVNULL)
    assert len(done.changes) == 1000
    assert changed(box.run("truncate -s 1M hole2; mv hole3 hole4", shell=True)) == ["modified hole2", "deleted hole3"]
    box.apply("hole1", "hole2")
    assert [os.stat(tree / name).st_size >> 20 for name in ("hole1", "hole2")] == [256, 1]
    assert os.stat(tree / "hole1").st_blocks * 512 < 1 << 20
    with open(tree / "hole1", "rb") as file:
        file.seek(200 << 20)
        assert file.read(2) == b"x\0"


def test_apply(tree: Path, box: Any) -> None:
    """Changes are made in the real directory, with modes and links, and the box goes on from there."""
    box.run("rm -r folder; echo new > new; chmod 750 new; ln -s new to-new; echo x >> file; touch ~/kept", shell=True)
    assert len(box.apply()) == 5
    assert sorted(os.listdir(tree)) == ["binary", "file", "link", "new", "to-new"]
    assert (tree / "new").stat().st_mode & 0o777 == 0o750
    assert (tree / "new").stat().st_uid == os.getuid()
    assert os.readlink(tree / "to-new") == "new"
    assert (tree / "file").read_text() == "before\nx\n"
    assert box.changes == []
    assert box.run("ls ~ && cat new", shell=True, capture_output=True, text=True).stdout == "kept\nnew\n"


def test_apply_some(tree: Path, box: Any) -> None:
    """Changes can be chosen; the others wait on."""
    box.run("echo 1 > wanted; echo 2 > unwanted; echo x > folder/new", shell=True)
    assert [str(change) for change in box.apply("wanted", "folder")] == ["created folder/new", "created wanted"]
    assert not (tree / "unwanted").exists()
    assert changed(box) == ["created unwanted"]
    assert changed(box.run("echo 3 >> wanted", shell=True)) == ["modified wanted"]


def test_discard(tree: Path, box: Any) -> None:
    """Changes can be thrown away."""
    box.run("rm -rf file folder; echo 1 > new", shell=True)
    box.discard()
    assert box.changes == []
    assert box.run(["cat", "file"], capture_output=True, text=True).stdout == "before\n"


def test_apply_waits(tree: Path, box: Any) -> None:
    """Nothing is applied under the feet of a command."""
    process = box.popen(["sleep", "60"])
    with pytest.raises(SandboxError, match=r"apply\(\) has to wait for what runs"):
        box.apply()
    process.close()
    assert box.apply() == []


def test_real_directory(netns: Any, tree: Path) -> None:
    """Without an overlay the directory itself is written to, and files belong to who runs the tests."""
    with netns.sandbox(workdir=tree, overlay=False) as box:
        assert box.run("echo new > new; rm file", shell=True).returncode == 0
        assert (tree / "new").read_text() == "new\n"
        assert (tree / "new").stat().st_uid == os.getuid()
        assert not (tree / "file").exists()
        with pytest.raises(SandboxError, match="needs an overlay"):
            box.apply()


def test_paths(netns: Any, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is asked to be shown, written to, hidden or empty is so."""
    shown, real, empty = (tmp_path_factory.mktemp(name) for name in ("shown", "real", "empty"))
    (shown / "file").write_text("shown\n")
    (empty / "file").write_text("covered\n")
    options = {"readonly": shown, "writable": [real], "tmpfs": [empty], "hide": [tree / "folder", tree / "file"]}
    with netns.sandbox(workdir=tree, **options) as box:
        script = f"cat {shown}/file; echo x > {shown}/x; echo x > {real}/x; ls {empty}; echo y > {empty}/y; "
        script += "ls folder; cat file; echo z > file"
        done = box.run(script, shell=True, capture_output=True, text=True)
    assert done.stdout == "shown\n"
    assert done.stderr.count("Read-only file system") == 2
    assert (real / "x").read_text() == "x\n"
    assert sorted(os.listdir(empty)) == ["file"]
    assert done.changes == []


@pytest.mark.parametrize("option", ["workdir", "readonly", "writable", "direct"])
def test_what_the_test_hides(netns: Any, work: Path, option: str) -> None:
    """What the test has hidden from itself, in a directory that the box is shown, does not come to light there."""
    (work / "folder").mkdir()
    for name in ("secret", "folder/secret"):
        (work / name).write_text("CANARY")
    netns.hide(work / "secret")
    netns.hide(work / "folder")
    options = {"workdir": work, "overlay": False} if option == "direct" else {option: work}
    with netns.sandbox(**options) as box:
        done = box.run(f"cd {work} && cat file secret folder/*", shell=True, capture_output=True, text=True)
    assert done.stdout == "before\n"
    assert "CANARY" not in done.stderr


def test_network_files(netns: Any) -> None:
    """A box that is shown /etc itself has the test's names and name server there, not the machine's."""
    netns.add_host("told.example", "192.0.2.7")
    with netns.sandbox(readonly=["/etc"]) as box:
        done = box.run(["cat", "/etc/hosts", "/etc/resolv.conf"], capture_output=True, text=True)
    assert done.stdout == Path("/etc/hosts").read_text() + Path("/etc/resolv.conf").read_text()
    assert "told.example" in done.stdout


def test_mounts(netns: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Mounts that a box does not show are not beside it; what an ordinary user's shows with its mounts has them."""
    shown, other = (tmp_path_factory.mktemp(name) for name in ("shown", "other"))
    (shown / "inner").mkdir()
    netns.tmpfs(shown / "inner")
    netns.tmpfs(other)
    with netns.sandbox(readonly=[shown]) as box:
        mounted = {line.split()[4] for line in Path(f"/proc/{box.keeper}/mountinfo").read_text().splitlines()}
        assert box.run(["true"]).returncode == 0
    assert (str(shown / "inner") in mounted) is (os.geteuid() != 0)
    assert str(other) not in mounted


def test_home_lasts(box: Any) -> None:
    """Home and /tmp are empty at first, can be written to, and last from command to command."""
    assert (
        box.run("ls -A ~ /var/tmp /run; echo 1 > ~/x; echo 2 > /tmp/y", shell=True, capture_output=True).returncode == 0
    )
    assert box.run("cat ~/x /tmp/y", shell=True, capture_output=True, text=True).stdout == "1\n2\n"


def test_no_directory(netns: Any) -> None:
    """Without a working directory commands start in the empty home."""
    with netns.sandbox() as box:
        assert box.run(["pwd"], capture_output=True, text=True).stdout == f"{box.home}\n"
        assert box.run("echo x > x", shell=True).changes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "memory='lots' is no size"),
        ({"pids": 0}, "pids=0 is no count"),
        ({"timeout": -1}, "timeout=-1 is no amount"),
        ({"timeout": 10**400}, "timeout=1000.* is no amount"),
        ({"disk": None}, "has to have a limit"),
        ({"limits": "lax"}, "limits='lax' is neither"),
        ({"colour": "red"}, "a box has no option colour; known are overlay,"),
        ({"workdir": "/nonexistent"}, "cannot be used: No such file or directory; create it first"),
        ({"workdir": "/etc/passwd"}, "is no directory; name one"),
        ({"workdir": ["/etc", "/usr"]}, "is not one path; write one"),
        ({"workdir": []}, "is not one path; write one"),
        ({"workdir": "/"}, "workdir='/' is what every box is made of anew; name something below it"),
        ({"tmpfs": "/proc"}, "tmpfs='/proc' is what every box is made of anew"),
        ({"readonly": "/nonexistent"}, "'/nonexistent' cannot be shown to the box: No such file"),
        ({"readonly": ""}, "readonly='' is no path"),
        ({"writable": "/tmp/\0/"}, "is no path"),
        ({"hide": "/nonexistent"}, "hide='/nonexistent' is not there, or may not be looked at"),
        ({"tmpfs": "/etc/passwd"}, "tmpfs='/etc/passwd' is no directory"),
        ({"open_files": 8}, "open_files=8 is no count; write a whole number from 16 on"),
        ({"uid": "root"}, "uid='root' is no user"),
        ({"uid": -1}, "uid=-1 is no user"),
        ({"hostname": "x\0--bind"}, "is no name of a machine"),
        ({"hostname": "x" * 65}, "is no name of a machine"),
        ({"boot_offset": float("nan")}, "boot_offset=nan is no number of seconds"),
        ({"env": {"A": "x\0--bind"}}, "holds no variables: .* has a zero byte"),
        (
            {"env": ["A=b"]},
            r"env=\['A=b'\] holds no variables: env is a list, and no mapping .* Write names and values",
        ),
        ({"overlay": "no"}, "overlay='no' is neither; write True or False"),
        ({"overlay": 0}, "overlay=0 is neither; write True or False"),
        ({"overlay": None}, "overlay=None is neither; write True or False"),
    ],
)
def test_wrong_options(netns: Any, options: dict[str, Any], message: str) -> None:
    """An option that means nothing is an error that tells what does."""
    with pytest.raises(SandboxError, match=message):
        netns.sandbox(**options)


def test_what_cannot_be_enforced(netns: Any) -> None:
    """A limit that nothing holds here is an error, unless the best effort is enough."""
    with netns.sandbox(cpu=0.5, limits="best-effort") as box:
        mechanism = box.limits["cpu"]
    if mechanism == "affinity, rounded up":
        with pytest.raises(SandboxError, match=r"cpu=0\.5 cannot be enforced here.*limits='best-effort'"):
            netns.sandbox(cpu=0.5)
    else:
        with netns.sandbox(cpu=0.5) as box:
            assert box.limits["cpu"].startswith("cgroup")


def test_usage(box: Any) -> None:
    """What a command has used is told."""
    done = box.run("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; head -c 300000 /dev/zero > big", shell=True)
    assert 0.01 < done.usage.cpu_time <= 4 * done.usage.duration
    assert 300_000 <= done.usage.written < 1_000_000
    assert 100_000 < done.usage.memory < 100 << 20
    assert done.usage.sent == done.usage.received == 0


def test_apply_what_cannot_be_written(netns: Any, work: Path) -> None:
    """A directory that forbids writing is applied with what is in it, and so is a change of such a one's."""
    (work / "old").mkdir(mode=0o500)
    with netns.sandbox(workdir=work) as box:
        box.run("mkdir new; echo 1 > new/file; chmod 500 new; chmod 700 old; echo 2 > old/file", shell=True, check=True)
        box.apply()
    assert ((work / "new/file").read_text(), (work / "old/file").read_text()) == ("1\n", "2\n")
    assert [stat.S_IMODE((work / name).stat().st_mode) for name in ("new", "old")] == [0o500, 0o700]
    (work / "new").chmod(0o700)


def test_many_homes(netns: Any, monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    """A machine of thousands of users has boxes, too."""
    users = [pwd.struct_passwd((f"u{n}", "x", n, n, "", f"/home/students/u{n:06}", "/bin/sh")) for n in range(4000)]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    with netns.sandbox(workdir=work) as box:
        assert box.run(["true"]).returncode == 0
