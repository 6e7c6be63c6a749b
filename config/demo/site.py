"""The demo's processes: the web server and the worker, started and ended together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.error import URLError
from urllib.request import urlopen

from django.conf import settings

PR_SET_PDEATHSIG = 1
STARTED_WITHIN_S = 60
ENDED_WITHIN_S = 40  # a worker gives its programs 25 s to write a checkpoint


class SiteError(Exception):
    """The site did not start; the message says why and what to do."""


def check_port(port: int) -> None:
    """SiteError where something else listens on the port."""
    if not 0 < port < 65536:
        raise SiteError(f"{port} is no port; they go from 1 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SiteError(
                f"Port {port} cannot be used ({error.strerror}). Another demo may be running; "
                f"end it, or choose a port: python3 manage.py demo --port {port + 1}"
            ) from None


def _die_with_parent() -> None:
    """Linux: end this process when the demo is killed without a chance to clean up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Site:
    """A context in which the site runs on 127.0.0.1:port."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._port = port
        self._logs = settings.DATA_DIR / "logs"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Site":
        check_port(self._port)
        self._logs.mkdir(exist_ok=True, mode=0o700)
        try:
            self._start("web", self._web_command())
            self._start("worker", [sys.executable, "manage.py", "worker"])
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End both processes, in good order if they can."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + ENDED_WITHIN_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def check(self) -> None:
        """SiteError where a process has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise SiteError(
                    f"The {name} process ended with exit code {process.returncode}. "
                    f"The end of its log ({self._logs / name}.log):\n{self._log_tail(name)}"
                )

    def _start(self, name: str, command: list[str]) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = _popen(command, log)

    def _web_command(self) -> list[str]:
        """gunicorn: one process, eight threads; on Windows, Django's own server."""
        if sys.platform == "win32":
            return [sys.executable, "manage.py", "runserver", "--noreload", str(self._port)]
        server = [sys.executable, "-m", "gunicorn", "config.wsgi", "--worker-class", "gthread"]
        size = ["--workers", "1", "--threads", "8", "--keep-alive", "15"]
        return [*server, *size, "--bind", f"127.0.0.1:{self._port}", "--log-level", "warning"]

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while time.monotonic() < deadline:
            self.check()
            try:
                with urlopen(f"{self.address}/healthz", timeout=2):  # noqa: S310  our own address
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise SiteError(
            f"The web server did not answer within {STARTED_WITHIN_S} s:\n{self._log_tail('web')}"
        )

    def _log_tail(self, name: str) -> str:
        return "\n".join((self._logs / f"{name}.log").read_text().splitlines()[-8:])


def _popen(command: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl+C reaches the demo alone, which ends the others in order."""
    environment = os.environ | {"PREFLOOP_DATA": str(settings.DATA_DIR)}
    posix = os.name == "posix"
    return subprocess.Popen(
        command,
        cwd=Path(settings.BASE_DIR),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=posix,
        preexec_fn=_die_with_parent if posix else None,  # noqa: PLW1509  no threads yet
    )
