"""A hub on this machine: the few routes that huggingface_hub asks for to fetch a model."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves `repos`: by hub id, files by name. A file in `broken` breaks off in the middle."""

    daemon_threads = True

    def __init__(self, repos: dict[str, dict[str, bytes]], broken: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.broken = broken
        self.served: list[str] = []
        self.tokens: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """What sends huggingface_hub here."""
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HUB_OFFLINE": "0"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens += self.headers.get_all("Authorization") or []
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            self._about(found[1], found[2] or "")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(self.server.repos.get(found[1], {}), found[3])
        else:
            self._missing()

    def _about(self, repo: str, rest: str) -> None:
        files = self.server.repos.get(repo)
        if files is None:
            self._missing()
        elif rest and REVISION not in rest:
            self._missing("RevisionNotFound")
        elif rest.startswith("/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in files.items()
            ]
            self._send(json.dumps(listed).encode())
        else:
            about = {"id": repo, "modelId": repo, "sha": REVISION, "siblings": []}
            self._send(json.dumps(about).encode())

    def _file(self, files: dict[str, bytes], name: str) -> None:
        data = files.get(name)
        if data is None:
            self._missing()
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": REVISION}
        if self.command == "GET":
            self.server.served.append(name)
        if name in self.server.broken:  # what is asked for again never comes
            self._send(data, headers, cut=0 if "Range" in self.headers else len(data) // 2)
        else:
            self._send(data, headers)

    def _missing(self, what: str = "RepoNotFound") -> None:
        self._send(b"{}", {"X-Error-Code": what}, status=404)

    def _send(
        self,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        status: int = 200,
        cut: int = -1,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if cut < 0 else data[:cut])
        self.close_connection = cut >= 0

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def hub(repos: dict[str, dict[str, bytes]], broken: set[str] | None = None) -> Iterator[Hub]:
    """The hub, for as long as the block runs."""
    server = Hub(repos, broken or set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
