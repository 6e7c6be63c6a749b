"""A real server that takes webhooks, answers as it is told, and checks signatures by itself."""

import hmac
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """`answers` are statuses to give, in order; then 204. `taken` is what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.says = b""
        self.headers: dict[str, str] = {}
        self.taken: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?a=b"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.taken]

    @property
    def keys(self) -> list[str]:
        return [headers["Prefloop-Delivery"] for headers, _ in self.taken]

    def genuine(self, secret: str) -> bool:
        """Whether all that came was signed with the secret, told as the documentation says."""
        return all(
            headers["Prefloop-Signature"]
            == "v1="
            + hmac.digest(
                secret.encode(), headers["Prefloop-Timestamp"].encode() + b"." + body, "sha256"
            ).hex()
            for headers, body in self.taken
        )


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *_args: Any) -> None:
        """Nothing to the console."""

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((dict(self.headers), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.says)))
        self.end_headers()
        self.wfile.write(self.server.says)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """The server, at work in a thread."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def taking_mail() -> Iterator[tuple[tuple[str, int], list[str]]]:
    """A mail server that takes one message: its address, and all lines that it is told."""
    said: list[str] = []

    def serve(server: socket.socket) -> None:
        caller, _ = server.accept()
        with caller, caller.makefile("rw", newline="\r\n") as talk:
            reading, answer = False, "220 here"
            while answer:
                talk.write(f"{answer}\n")
                talk.flush()
                heard = talk.readline().rstrip("\r\n")
                said.append(heard)
                while reading and heard != ".":
                    heard = talk.readline().rstrip("\r\n")
                    said.append(heard)
                reading = heard.upper() == "DATA"
                answer = "354 go on" if reading else "250 ok" if heard else ""

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield server.getsockname(), said
        thread.join(10)
