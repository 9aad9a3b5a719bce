"""What can go wrong, told so that the reader knows what to do next.

Each error says what failed, why it probably did, and the remedy. All of them survive pickling,
because pytest-xdist carries them from worker to controller.
"""

from __future__ import annotations

__all__ = [
    "GatewayError",
    "KernelError",
    "NamespaceClosedError",
    "NetnsError",
    "SandboxError",
    "ServiceNotReadyError",
    "UnsupportedError",
]


class NetnsError(Exception):
    """Base of every error that this package raises on purpose."""


class KernelError(NetnsError, OSError):
    """A system call or netlink request was refused by the kernel.

    It stays an ``OSError``, with ``errno`` set, so that callers can tell causes apart.
    """

    def __init__(self, errno: int, what: str) -> None:
        """Keep both the number and the text; ``what`` names the call and its arguments."""
        super().__init__(errno, what)


def describe(error: BaseException) -> str:
    """Return an error's text without its number, and with its kind where it is not one of ours or the kernel's."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    return str(error) if isinstance(error, NetnsError) else f"{type(error).__name__}: {error}"


class UnsupportedError(NetnsError):
    """This machine lacks something that isolation needs; the text names it and the remedy."""


class GatewayError(NetnsError):
    """The gateway process could not be started, did not answer, or refused a request."""


class NamespaceClosedError(NetnsError):
    """A handle was used after the test that it belonged to had ended."""


class ServiceNotReadyError(NetnsError, TimeoutError):
    """Nothing listened on the service port within the time allowed."""


class SandboxError(NetnsError):
    """A box could not be made, or not as it was asked for; the text says what is in the way, and what to do."""
