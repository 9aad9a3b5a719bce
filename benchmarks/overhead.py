"""What a leaf costs the process that asks for it, and what shared loopback costs; compare.py tells what a test costs.

    python benchmarks/overhead.py [--rounds 5]

Each row gives the median over the rounds, and the least and greatest in brackets. Run it on a machine with nothing else
to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

from pytest_netns.gateway.client import GatewayClient, LeafGrant, run_directory
from pytest_netns.kernel import privilege
from pytest_netns.kernel.position import hop_to

_LEAVES = 100
_ROUND_TRIPS = 3000
_PAYLOAD = b"x" * 64


@contextlib.contextmanager
def _gateway() -> Iterator[tuple[GatewayClient, LeafGrant]]:
    if not privilege.is_root():
        privilege.enter_user_namespace()
    client = GatewayClient.connect(run_directory(f"benchmark-{os.getpid()}"))
    try:
        yield client, client.join("benchmark")
    finally:
        client.close()


def _leaves(client: GatewayClient, worker: LeafGrant) -> list[float]:
    """Measure from the request of a leaf to the first instruction inside, back to back and with pauses."""
    spent = []
    for number in range(_LEAVES):
        time.sleep(0.01)  # as a test that does something would
        began = time.perf_counter()
        leaf = client.lease(f"leaf {number}")
        hop_to(leaf.net_fd, leaf.mnt_fd)
        spent.append((time.perf_counter() - began) * 1e3)
        hop_to(worker.net_fd, worker.mnt_fd)
        client.release(leaf.name)
        os.close(leaf.net_fd)
        os.close(leaf.mnt_fd)
    return spent


def _echo(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := connection.recv(4096):
            connection.sendall(data)


def _round_trip(port: int) -> tuple[float, float]:
    """Return the median times of a connect and of a round trip, in microseconds."""
    connects, trips = [], []
    for _ in range(20):
        began = time.perf_counter()
        client = socket.create_connection(("127.0.0.1", port))
        connects.append(time.perf_counter() - began)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_ROUND_TRIPS // 20):
            began = time.perf_counter()
            client.sendall(_PAYLOAD)
            client.recv(4096)
            trips.append(time.perf_counter() - began)
        client.close()
    return statistics.median(connects) * 1e6, statistics.median(trips) * 1e6


def _serve() -> int:
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def _loopback(client: GatewayClient, worker: LeafGrant, rounds: int) -> dict[str, list[float]]:
    leaf = client.lease("loopback")
    hop_to(worker.net_fd, worker.mnt_fd)
    shared = _serve()
    hop_to(leaf.net_fd, leaf.mnt_fd)
    own = _serve()
    measured: dict[str, list[float]] = {}
    for _ in range(rounds):
        inside, across = _round_trip(own), _round_trip(shared)
        for index, what in enumerate(("connect", "round trip")):
            measured.setdefault(f"loopback inside a leaf, {what} (us)", []).append(inside[index])
            measured.setdefault(f"loopback shared with the worker, {what} (us)", []).append(across[index])
            measured.setdefault(f"shared : inside, {what}", []).append(across[index] / inside[index])
    hop_to(worker.net_fd, worker.mnt_fd)
    return measured


def _once(measure: Callable[[], dict[str, list[float]]]) -> None:
    for name, values in measure().items():
        print(f"{name:50} {statistics.median(values):9.2f}  [{min(values):.2f} .. {max(values):.2f}]", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with _gateway() as (client, worker):
        _once(lambda: {"request of a leaf to first instruction inside (ms)": _leaves(client, worker)})
        _once(lambda: _loopback(client, worker, options.rounds))


if __name__ == "__main__":
    main()
