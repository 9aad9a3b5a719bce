"""pytest-postgresql, with a real server."""

from __future__ import annotations

from pathlib import Path

from runs import IN_EVERY_WAY, Suite, requires

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/bin"))

pytestmark = requires("pytest-postgresql", program=str(PROGRAMS / "postgres"))

CONFTEST = f"""
import os, shutil, subprocess, tempfile
import pytest
from pytest_postgresql import factories

PROGRAMS = {str(PROGRAMS)!r}

if os.geteuid():
    server = factories.postgresql_proc(executable=PROGRAMS + "/pg_ctl", unixsocketdir="/tmp", postgres_options="-F")
else:  # The plugin starts servers as the user who runs pytest, and PostgreSQL refuses to run as root.
    known = factories.postgresql_noproc(port=5432)

    @pytest.fixture(scope="session")
    def started():
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            shutil.chown(folder, "postgres")
            how = {{"user": "postgres", "cwd": folder}}
            subprocess.run([PROGRAMS + "/initdb", "-D", folder, "-A", "trust", "-N"], check=True, **how)
            with subprocess.Popen([PROGRAMS + "/postgres", "-D", folder, "-k", "", "-F"], **how) as server:
                yield
                server.terminate()

    @pytest.fixture(scope="session")
    def server(started, request):
        return request.getfixturevalue("known")

postgresql = factories.postgresql("server")
"""
SUITE = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_notes(postgresql, number):
    with postgresql.cursor() as cursor:
        cursor.execute("CREATE TABLE notes (note int)")
        cursor.execute("INSERT INTO notes VALUES (%s)", (number,))
        assert cursor.execute("SELECT note, inet_client_addr() IS NOT NULL FROM notes").fetchall() == [(number, True)]
"""


@IN_EVERY_WAY
def test_postgresql(suite: Suite, way: tuple[str, ...]) -> None:
    """The session's server serves every test, and each test has a database of its own."""
    suite.write(conftest=CONFTEST, test_notes=SUITE)
    suite.passes(*way, plugins="pytest_postgresql", passed=4)
