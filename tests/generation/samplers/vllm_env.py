"""Where the tests find a real vLLM."""

import os
import subprocess
from functools import cache

import pytest

from config.environments import vllm_python as made_python


@cache
def _has_vllm(python: str) -> bool:
    found = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    return subprocess.run([python, "-c", found]).returncode == 0


def vllm_python() -> str:
    """The interpreter of the environment with vLLM; skips where there is none."""
    python = str(made_python())
    if not _has_vllm(python):
        if os.environ.get("PREFLOOP_TEST_REQUIRE_ALL"):
            pytest.fail("vLLM's environment is missing: python3 manage.py test makes it")
        pytest.skip("vLLM is not installed: python3 manage.py test makes its environment")
    return python
