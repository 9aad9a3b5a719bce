"""The options, on the command line and in the configuration file."""

from __future__ import annotations

import pytest

from pytest_netns.settings import ANY_PORT, EGRESS_MODES, KEEPS, SCOPES

__all__ = ["LOOKS", "add_options"]

LOOKS = ("pcap", "output", "tls_keys", "report")


def add_options(parser: pytest.Parser) -> None:
    """Declare all options, on the command line and in the configuration file."""
    group = parser.getgroup("netns", "a network of its own for every test (pytest-netns)")
    for option, mode, text in (
        ("--netns", "all", "run every test in a fresh network and mount namespace"),
        ("--netns-marked", "marked", "isolate only tests that ask, by marker or fixture"),
        ("--no-netns", "off", "isolate nothing; tests that need a network of their own are skipped"),
    ):
        group.addoption(option, action="store_const", const=mode, dest="netns_mode", default=None, help=text)
    scopes = "|".join(SCOPES)
    group.addoption("--netns-scope", choices=SCOPES, metavar=scopes, help="how long a namespace lives (function)")
    group.addoption("--netns-port", metavar="N", help="the service port (8080)")
    group.addoption(
        "--netns-unsupported",
        choices=("error", "skip"),
        metavar="error|skip",
        help="where isolation cannot work: stop at the start, or skip the tests (error)",
    )
    group.addoption(
        "--netns-allow",
        action="append",
        metavar="RULE",
        help="what every test may reach, besides its own network: host[:port[-port]][/udp], where host is a name, "
        "*.name, an address, a block of addresses, or localhost for the loopback of this machine; repeatable",
    )
    group.addoption(
        "--netns-egress",
        choices=EGRESS_MODES,
        metavar="|".join(EGRESS_MODES),
        help="what no rule allows: fails (block); is let through, and the rules that were needed are listed at the end "
        "(record); or fails together with the test, even one that swallows the error (fail)",
    )
    group.addoption("--netns-egress-log", metavar="FILE", help="write every attempt to leave to FILE, as lines of JSON")
    group.addoption(
        "--netns-hold",
        choices=("off", "failed"),
        metavar="off|failed",
        help="keep the network of a failed test, with all that runs in it, until you have looked inside (off)",
    )
    group.addoption(
        "--netns-publish",
        nargs="?",
        const=ANY_PORT,
        metavar="PORT",
        help="show the service of every test that is running to a browser on this machine, at "
        "http://<leaf>.localhost:PORT/, with an index at http://localhost:PORT/",
    )
    _add_looks(group)
    parser.addini("netns", "which tests are isolated: all, marked or off", type="string", default=None)
    parser.addini("netns_scope", f"how long a namespace lives: {', '.join(SCOPES)}", type="string", default=None)
    parser.addini("netns_port", "the service port", type="int", default=None)
    parser.addini("netns_allow", "what every test may reach, a list of rules", type="linelist", default=None)
    modes = ", ".join(EGRESS_MODES)
    text = "what boxes are like, a list of options: memory = 512M, pids = 64, timeout = 60, ..."
    parser.addini("netns_sandbox", text, type="linelist", default=None)
    parser.addini("netns_egress", f"what becomes of what no rule allows: {modes}", type="string", default=None)


def _add_looks(group: pytest.OptionGroup) -> None:
    """Declare what is kept to look at."""
    keeps = "|".join(KEEPS)
    group.addoption(
        "--netns-pcap",
        choices=KEEPS,
        metavar=keeps,
        help="write the packets of each test, or of each that fails, to a file for Wireshark and tshark (off)",
    )
    group.addoption(
        "--netns-report", metavar="FILE.html", help="write a page on tests, networks and flows to FILE.html"
    )
    group.addoption(
        "--netns-verbose",
        action="store_true",
        default=None,
        help="say what is done as it is done: each network, each rule (through logging, as pytest_netns)",
    )
    group.addoption("--netns-output", metavar="DIR", help="where such files are written (test-results)")
    group.addoption(
        "--netns-tls-keys",
        action="store_true",
        default=None,
        help="write the keys of TLS clients that honour SSLKEYLOGFILE to these files, too, so that they can be read",
    )
