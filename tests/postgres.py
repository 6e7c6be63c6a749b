"""A PostgreSQL server of the tests' own: made in a temporary folder, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPTIONS = "-c listen_addresses= -c max_connections=200"


def find_server() -> Path | None:
    """The folder of PostgreSQL's server programs; Debian keeps them off the PATH."""
    initdb = shutil.which("initdb")
    if initdb:
        return Path(initdb).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """A running server, reachable by a Unix socket in its own folder only; yields its URL.

    `durable`: what is committed survives a power cut, as in service; tests can do without.
    """
    programs = find_server()
    if programs is None:
        raise RuntimeError("PostgreSQL's server is not installed")
    folder = Path(tempfile.mkdtemp(prefix="prefloop-pg-"))
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
        log = str(folder / "log")
        run(
            "pg_ctl",
            "-D",
            data,
            "-l",
            log,
            "-w",
            "-o",
            f"{OPTIONS} -c fsync={'on' if durable else 'off'} -k {folder}",
            "start",
        )
        try:
            yield f"postgres://postgres@{str(folder).replace('/', '%2F')}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
