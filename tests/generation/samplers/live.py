"""A real vLLM server on a free port, for as long as the tests need it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.generation.samplers.vllm_env import vllm_python

START_LIMIT_S = 300
STOP_LIMIT_S = 30
CONTEXT = 96
# What a batch does not ask for must not happen: with these each response would be the greedy one.
DEFAULTS = {"top_k": 1, "repetition_penalty": 1.5}


@pytest.fixture(scope="session")
def vllm_server(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM that serves `llama`, and adapters once it is told to load them."""
    with serve(llama, tmp_path_factory.mktemp("vllm")) as url:
        yield url


@contextmanager
def serve(model: Path, folder: Path) -> Iterator[str]:
    """Start it, prove that it is ours, and end it with all its processes."""
    name, port = f"tiny-{secrets.token_hex(8)}", _free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            _command(model, name, port),
            cwd=folder,
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_it_serves(name, url, process, folder / "log")
        yield url
    finally:
        _end(process)


def _command(model: Path, name: str, port: int) -> list[str]:
    options = {
        "--model": model,
        "--served-model-name": name,  # nobody else's server has it
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": CONTEXT,
        "--max-num-batched-tokens": 1024,
        "--max-lora-rank": 16,
        "--max-loras": 8,  # more than the tests load: on a CPU the last place answers for the base
        "--override-generation-config": json.dumps(DEFAULTS),
    }
    flags = ["--enforce-eager", "--enable-lora", "--no-enable-chunked-prefill"]
    program = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server"]
    return program + [str(word) for option in options.items() for word in option] + flags


def _environment() -> dict[str, str]:
    """Without PYTHONPATH: vLLM's environment brings all that it imports."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_it_serves(
    name: str, url: str, process: "subprocess.Popen[bytes]", log: Path
) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while name not in _models(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"vLLM did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def _models(url: str) -> list[str]:
    with (
        suppress(OSError, ValueError),
        urllib.request.urlopen(f"{url}/v1/models", timeout=5) as told,
    ):
        return [card["id"] for card in json.load(told)["data"]]
    return []


def _end(process: "subprocess.Popen[bytes]") -> None:
    for wish in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, wish)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
            return
