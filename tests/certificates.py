"""A certificate for TLS servers of tests, which the clients of tests trust and nobody else."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Certificate(NamedTuple):
    """Where a certificate and its key are kept."""

    path: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        """Return what a server needs to show it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        """Return what a client needs to trust it, whatever name the client has for the server."""
        context = ssl.create_default_context(cafile=self.path)
        context.check_hostname = False
        return context


def make_certificate(directory: Path, names: Sequence[str]) -> Certificate:
    """Have OpenSSL's program make a certificate that signs itself."""
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-subj",
        "/CN=tests",
        "-days",
        "2",
        "-addext",
        "subjectAltName=" + ",".join(f"DNS:{name}" for name in names),
    ]
    command += ["-keyout", str(made.key), "-out", str(made.path)]
    subprocess.run(command, check=True, capture_output=True)
    return made
