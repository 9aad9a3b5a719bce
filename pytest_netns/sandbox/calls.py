"""The numbers of the system calls that a box may not make, or not with every argument.

From Linux's ``asm/unistd_64.h`` (x86_64) and ``asm-generic/unistd.h`` (aarch64). From 424 on the numbers are the same
everywhere. None: the architecture has no such call.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["NEWEST", "NUMBERS", "Numbers"]

#: The newest call that was looked at; what is newer is answered as if the kernel had none of it. mseal(2), Linux 6.10.
NEWEST: Final = 462


class Numbers(NamedTuple):
    """The numbers of one system call."""

    x86_64: int | None
    aarch64: int | None


def _same(number: int) -> Numbers:
    return Numbers(number, number)


NUMBERS: Final[dict[str, Numbers]] = {
    "acct": Numbers(163, 89),
    "add_key": Numbers(248, 217),
    "bpf": Numbers(321, 280),
    "chmod": Numbers(90, None),
    "chroot": Numbers(161, 51),
    "clock_adjtime": Numbers(305, 266),
    "clock_settime": Numbers(227, 112),
    "clone": Numbers(56, 220),
    "clone3": _same(435),
    "creat": Numbers(85, None),
    "delete_module": Numbers(176, 106),
    "fanotify_init": Numbers(300, 262),
    "fchmod": Numbers(91, 52),
    "fchmodat": Numbers(268, 53),
    "fchmodat2": _same(452),
    "finit_module": Numbers(313, 273),
    "fsconfig": _same(431),
    "fsmount": _same(432),
    "fsopen": _same(430),
    "fspick": _same(433),
    "init_module": Numbers(175, 105),
    "io_uring_enter": _same(426),
    "io_uring_register": _same(427),
    "io_uring_setup": _same(425),
    "ioctl": Numbers(16, 29),
    "ioperm": Numbers(173, None),
    "iopl": Numbers(172, None),
    "kcmp": Numbers(312, 272),
    "kexec_file_load": Numbers(320, 294),
    "kexec_load": Numbers(246, 104),
    "keyctl": Numbers(250, 219),
    "lookup_dcookie": Numbers(212, 18),
    "memfd_create": Numbers(319, 279),
    "memfd_secret": _same(447),
    "migrate_pages": Numbers(256, 238),
    "mknod": Numbers(133, None),
    "mknodat": Numbers(259, 33),
    "modify_ldt": Numbers(154, None),
    "mount": Numbers(165, 40),
    "mount_setattr": _same(442),
    "move_mount": _same(429),
    "move_pages": Numbers(279, 239),
    "name_to_handle_at": Numbers(303, 264),
    "nfsservctl": Numbers(180, 42),
    "open": Numbers(2, None),
    "open_by_handle_at": Numbers(304, 265),
    "open_tree": _same(428),
    "openat": Numbers(257, 56),
    "openat2": _same(437),
    "perf_event_open": Numbers(298, 241),
    "personality": Numbers(135, 92),
    "pidfd_getfd": _same(438),
    "pivot_root": Numbers(155, 41),
    "process_vm_readv": Numbers(310, 270),
    "process_vm_writev": Numbers(311, 271),
    "ptrace": Numbers(101, 117),
    "quotactl": Numbers(179, 60),
    "quotactl_fd": _same(443),
    "reboot": Numbers(169, 142),
    "request_key": Numbers(249, 218),
    "sched_setaffinity": Numbers(203, 122),
    "setdomainname": Numbers(171, 162),
    "sethostname": Numbers(170, 161),
    "setns": Numbers(308, 268),
    "settimeofday": Numbers(164, 170),
    "shmget": Numbers(29, 194),
    "socket": Numbers(41, 198),
    "swapoff": Numbers(168, 225),
    "swapon": Numbers(167, 224),
    "syslog": Numbers(103, 116),
    "umount2": Numbers(166, 39),
    "unshare": Numbers(272, 97),
    "uselib": Numbers(134, None),
    "userfaultfd": Numbers(323, 282),
    "vhangup": Numbers(153, 58),
}
