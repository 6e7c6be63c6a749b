"""A server of models that answers well until it is given a `mode`, then as badly as that says.

It speaks the parts of vLLM's API that the sampler uses. What it samples depends on the prompt and
the seed alone, so tests know every answer.
"""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

END = 1
BASE = "/models/tiny"
BODY_100_MB = 100 * 2**20

Mode = Callable[["Handler", dict[str, Any]], None]


def sampled(prompt: list[int], seed: int, most: int) -> list[int]:
    """The tokens of the response: ended after a few, or cut off."""
    digest = hashlib.sha256(f"{prompt}{seed}".encode()).digest()
    ids = [10 + byte % 200 for byte in digest[: 2 + digest[0] % 5]]
    return [*ids, END][:most]


def logps_of(ids: list[int]) -> list[float]:
    """Each token's log-probability in a response."""
    return [-0.001 * token for token in ids]


def score_of(ids: list[int]) -> list[float | None]:
    """Each token's log-probability where a text is scored; the first has none."""
    return [
        None,
        *(-0.0005 * (before + token) for before, token in zip(ids, ids[1:], strict=False)),
    ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Stub"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def log_message(self, *_args: Any) -> None:
        """Nothing to the console."""

    def do_GET(self) -> None:  # noqa: N802
        self._note()
        if self.path == "/v1/models":
            self.send({"object": "list", "data": self.server.cards}, self.server.list_status)
        elif self.path == "/version" and self.server.version:
            self.send({"version": self.server.version})
        else:
            self.send({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:  # noqa: N802
        self._note()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            self._load(body)
        elif self.path == "/v1/completions":
            self._complete(body)
        else:
            self.send({"detail": "Not Found"}, 404)

    def _note(self) -> None:
        with self.server.lock:
            self.server.hits[self.path] += 1
            self.server.keys.add(self.headers.get("Authorization"))

    def _load(self, body: dict[str, Any]) -> None:
        if not self.server.loads_adapters:
            self.send({"detail": "Not Found"}, 404)
        elif self.server.load_error:
            self.send({"error": {"message": self.server.load_error}}, self.server.load_status)
        else:
            self.server.cards.append({"id": body["lora_name"], "parent": BASE})
            self.server.loaded.append(body)
            self.raw(b"Success: it was added", 200, "text/plain")

    def _complete(self, body: dict[str, Any]) -> None:
        stub = self.server
        with stub.lock:
            stub.bodies.append(body)
            stub.in_flight += 1
            stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
        try:
            (stub.mode or fine)(self, body)
        finally:
            with stub.lock:
                stub.in_flight -= 1

    def send(self, value: Any, status: int = 200, **headers: str) -> None:
        self.raw(json.dumps(value).encode(), status, "application/json", **headers)

    def raw(self, data: bytes, status: int, kind: str = "text/html", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


class Stub(ThreadingHTTPServer):
    """The server in threads of its own; `with` starts and stops it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, mode: Mode | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.mode = mode
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        self.hits: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = self.bytes_sent = 0
        self.version: str | None = "0.32.0"
        self.cards: list[dict[str, Any]] = [
            {"id": BASE, "root": BASE, "parent": None, "max_model_len": 64, "owned_by": "vllm"}
        ]
        self.list_status = 200
        self.loads_adapters, self.load_error, self.load_status = True, "", 500
        self.loaded: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Stub":
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone at once, with all its connections."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_args: Any) -> None:
        """A client that went away is none."""


def good_answer(body: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers."""
    prompt = body["prompt"]
    ids = body.get("allowed_token_ids") or sampled(prompt, body.get("seed", 0), body["max_tokens"])
    logps: list[float | None] = [*logps_of(ids)]
    if body.get("echo"):
        logps = score_of([*prompt, *ids])
    choice = {
        "index": 0,
        "text": f"text of {ids}",
        "finish_reason": "stop" if ids[-1] == END else "length",
        "stop_reason": None,
        "logprobs": {"token_logprobs": logps},
        "token_ids": ids,
        "prompt_token_ids": prompt,
    }
    return {"model": body["model"], "choices": [choice]}


def fine(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(good_answer(body))


def slow(handler: Handler, body: dict[str, Any]) -> None:
    time.sleep(0.15)
    fine(handler, body)


def hang(handler: Handler, _body: dict[str, Any]) -> None:
    handler.server.stopped.wait(20)


def hang_mid_body(handler: Handler, body: dict[str, Any]) -> None:
    data = json.dumps(good_answer(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:30])
    handler.wfile.flush()
    handler.server.stopped.wait(20)


def drip_body(handler: Handler, _body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not handler.server.stopped.wait(0.02):
        handler.wfile.write(b"1\r\n \r\n")


def drip_headers(handler: Handler, _body: dict[str, Any]) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.stopped.wait(0.02):
        handler.wfile.write(b"X-More: and more\r\n")


def hundred_megabytes(handler: Handler, _body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(BODY_100_MB))
    handler.end_headers()
    chunk = b'[{"text": "again"},' * 4096
    for _ in range(BODY_100_MB // len(chunk)):
        handler.wfile.write(chunk)
        handler.server.bytes_sent += len(chunk)


def reset(handler: Handler, body: dict[str, Any]) -> None:
    """Half an answer, then the connection is torn down."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.connection.close()


def status(code: int, message: str = "", **headers: str) -> Mode:
    def answer(handler: Handler, _body: dict[str, Any]) -> None:
        handler.send({"error": {"message": message}}, code, **headers)

    return answer


def html(handler: Handler, _body: dict[str, Any]) -> None:
    handler.raw(b"<html>\x1b[31mWelcome to the proxy\x00</html>", 200)


def lie(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Mode:
    """A good answer after `change(answer, its choice)`."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        value = good_answer(body)
        change(value, value["choices"][0])
        handler.send(value)

    return answer


def by_prompt(modes: dict[int, Mode]) -> Mode:
    """For prompts that begin with one of these tokens its mode; well for all others."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        modes.get(body["prompt"][0], fine)(handler, body)

    return answer


def in_turn(*modes: Mode) -> Mode:
    """Each request in the next of the modes."""
    turns = cycle(modes)
    lock = threading.Lock()

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        with lock:
            mode = next(turns)
        mode(handler, body)

    return answer


def at_first(bad: Mode, times: int) -> Mode:
    """Badly so many times, then well."""
    left = iter(range(times))
    lock = threading.Lock()

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        with lock:
            mode = fine if next(left, None) is None else bad
        mode(handler, body)

    return answer
