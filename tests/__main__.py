"""Every test: on SQLite, then what touches the database once more on PostgreSQL.

Arguments go to pytest; with arguments there is one run, on the database that
PREFLOOP_DATABASE_URL names (default SQLite).
"""

import os
import subprocess
import sys

from tests.postgres import cluster, find_server

# What PostgreSQL could do otherwise than SQLite; the programs and the browser see no database.
ON_POSTGRES = ["tests/jobs", "tests/labeling", "tests/generation", "tests/training"]
NOT_ON_POSTGRES = [
    "--ignore=tests/training/trainer",
    "--ignore=tests/generation/samplers",
    "--ignore=tests/training/test_starter.py",
    "--ignore=tests/training/test_faults.py",
    "--ignore=tests/training/test_schedule_loop.py",
]
# Tests of one xdist_group share a process, and with it an engine that takes half a minute to load.
PARALLEL = ["-n", "auto", "--dist", "loadgroup"]
REQUIRE_ALL = "PREFLOOP_TEST_REQUIRE_ALL"


def main(arguments: list[str]) -> int:
    """The exit code of the worst run."""
    if arguments:
        return pytest(arguments)
    code = pytest(PARALLEL)
    if find_server() is None:
        print("PostgreSQL's server is not installed here: its run is left out.")
        return 1 if os.environ.get(REQUIRE_ALL) else code
    print("Once more on PostgreSQL:", flush=True)
    with cluster() as url:
        again = pytest([*PARALLEL, *ON_POSTGRES, *NOT_ON_POSTGRES], PREFLOOP_DATABASE_URL=url)
    return code or again


def pytest(arguments: list[str], **environment: str) -> int:
    """One run; its exit code."""
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
