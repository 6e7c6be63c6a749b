"""The site as an operator runs it, on a record of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tests.benchmarks.environment import ROOT

WORKERS, THREADS = 4, 2


class Bench:
    """A filled database and, in a `with`, the site that serves it."""

    def __init__(self, folder: Path, url: str, comparisons: int, annotators: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PREFLOOP_")
        } | {
            "PREFLOOP_DATA": str(folder),
            "PREFLOOP_DATABASE_URL": url or f"sqlite://{folder}/prefloop.sqlite3",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PYTHONPATH": str(ROOT),
        }
        made = self._record("fill", str(comparisons), str(annotators))
        self.sessions: list[str] = made["sessions"]
        self.path = f"/p/{made['slug']}/judge/"
        self.address = ("127.0.0.1", 0)
        self.server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Bench":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = probe.getsockname()
        command = [sys.executable, "-m", "gunicorn", "config.wsgi", "--worker-class", "gthread"]
        size = ["--workers", str(WORKERS), "--threads", str(THREADS), "--keep-alive", "15"]
        bind = ["--bind", f"127.0.0.1:{self.address[1]}", "--log-level", "warning"]
        with (self.folder / "web.log").open("ab") as log:
            self.server = subprocess.Popen(
                [*command, *size, *bind], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()

    def audit(self, keys: Path) -> dict[str, int]:
        """What became of the acknowledged verdicts, from the tables."""
        return self._record("audit", str(keys))

    def _record(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.workbench.record", *arguments],
            cwd=ROOT,
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
        )
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def _wait(self) -> None:
        for _ in range(150):
            try:
                with urlopen(f"http://127.0.0.1:{self.address[1]}/healthz", timeout=2):
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise SystemExit(f"The site did not start: see {self.folder / 'web.log'}")
