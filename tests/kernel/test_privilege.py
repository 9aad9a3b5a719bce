"""Raising capabilities, in a user namespace of the test's own."""

from __future__ import annotations

from unshared import in_child, isolate

from pytest_netns.kernel import privilege, syscalls


def _effective() -> int:
    return syscalls.capget()[0]


def test_raising_ends_where_it_began() -> None:
    """What a block raises is effective until its end, be it within another such block."""

    def test() -> None:
        effective, permitted, inheritable = syscalls.capget()
        syscalls.capset(0 if not privilege.is_root() else effective, permitted, inheritable)
        before = _effective()
        with privilege.raised():
            assert _effective() == permitted
            with privilege.raised():
                assert _effective() == permitted
            assert _effective() == permitted
        assert _effective() == before

    in_child(test, isolate)
