#!/usr/bin/env python3
"""Every command of Prefloop. On a fresh machine it makes its own environment first.

`python3 manage.py demo` and `python3 manage.py test` need only Python 3.11: outside a virtual
environment, this file makes `.venv` beside itself, installs what the command needs and runs the
command there. Inside an environment of yours it installs nothing. Standard library only.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"test": ("train", "postgres", "test", "browser")}
EXTRAS["check_all"] = EXTRAS["test"]
USUAL = ("train",)
# Commands a stranger may begin with: the embedded database is made for them.
FIRST = {"import_prompts", "import_preferences", "register_policy", "worker", "runserver"}


def main() -> None:
    """Run the command named in argv, in an environment that can."""
    if sys.version_info < (3, 11):
        sys.exit(f"Prefloop needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    if "--no-bootstrap" in sys.argv:
        sys.argv.remove("--no-bootstrap")
    elif Path(sys.prefix) == VENV or sys.prefix == sys.base_prefix:
        bootstrap(EXTRAS.get(command, USUAL))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    if command == "demo":
        # The demo has a database of its own in its data folder, whatever the site here uses.
        for name in ("DATABASE_URL", "DATABASE_URL_FILE", "DATA_FILE"):
            os.environ.pop(f"PREFLOOP_{name}", None)
        os.environ["PREFLOOP_DATA"] = str(demo_data(sys.argv[2:]))
    data = Path(os.environ.get("PREFLOOP_DATA", ROOT / "var"))
    embedded = not os.environ.get("PREFLOOP_DATABASE_URL")
    new = embedded and command in FIRST and not (data / "prefloop.sqlite3").exists()
    try:
        from django.core.management import execute_from_command_line
    except ImportError:
        sys.exit("Django is not installed here: pip install -e '.[train]', or leave this venv.")
    if new:
        execute_from_command_line([sys.argv[0], "migrate", "--verbosity", "0"])
    execute_from_command_line(sys.argv)


def demo_data(arguments: list[str]) -> Path:
    """The demo's data folder. It is needed before settings are read: they open it."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--data="):
            return Path(argument.removeprefix("--data=")).resolve()
        if argument == "--data" and position + 1 < len(arguments):
            return Path(arguments[position + 1]).resolve()
    if "--headless" in arguments:
        return ROOT / "var" / "headless"
    return Path(os.environ.get("PREFLOOP_DATA", ROOT / "var")).resolve()


def bootstrap(extras: tuple[str, ...]) -> None:
    """Make `.venv` hold these extras, then go on in it."""
    wanted = state_of(extras)
    if not up_to_date(wanted):
        make_venv()
        install(extras)
        (VENV / "prefloop.json").write_text(json.dumps(wanted))
    if Path(sys.prefix) != VENV:
        run_in_venv()


def state_of(extras: tuple[str, ...]) -> dict[str, object]:
    """What an environment was made from: it is made anew when this changes."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return {"pyproject": digest, "extras": sorted(extras)}


def up_to_date(wanted: dict[str, object]) -> bool:
    """Whether `.venv` was made from this pyproject and holds at least these extras."""
    try:
        made = json.loads((VENV / "prefloop.json").read_text())
    except (OSError, ValueError):
        return False
    same = made["pyproject"] == wanted["pyproject"] and PYTHON.exists()
    return same and set(made["extras"]) >= set(wanted["extras"])  # type: ignore[call-overload]


def make_venv() -> None:
    """Create `.venv`; say what to install where Debian has split it off."""
    if PYTHON.exists() and pip_works():
        return
    if shutil.disk_usage(ROOT).free < 3 * 2**30:
        sys.exit(f"{ROOT} has less than 3 GiB free, and the environment needs that much.")
    print("Making .venv ...", flush=True)
    base = sys.executable
    made = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"{made.stdout}{made.stderr}\nPython could not make a virtual environment. On Debian "
            f"or Ubuntu: apt-get install python{version}-venv, then run this again."
        )


def pip_works() -> bool:
    """Whether the environment is whole: one whose making was cut off has a Python but no pip."""
    return (
        subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def install(extras: tuple[str, ...]) -> None:
    """Install torch, in its CPU build where there is no NVIDIA GPU, then the rest.

    What pyproject lists, not the project itself: it runs from this checkout.
    """
    import tomllib  # not at the top: an older Python must get as far as its message

    started = time.monotonic()
    if "train" in extras and not has_torch():
        install_torch()
    print(f"Installing what {', '.join(extras)} need ...", flush=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    if pip(*project["dependencies"], *(need for extra in extras for need in optional[extra])):
        sys.exit(
            "pip could not install what Prefloop needs (its message is above). Check the network, "
            "then run this again: it goes on where it stopped."
        )
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)


def has_torch() -> bool:
    """Whether `.venv` holds some torch already."""
    return (
        any(VENV.glob("lib/python*/site-packages/torch"))
        or (VENV / "Lib/site-packages/torch").exists()
    )


def install_torch() -> None:
    """On Linux the plain wheel brings gigabytes of CUDA: without a GPU, look for the CPU build."""
    print(f"Installing torch {TORCH} ...", flush=True)
    cpu = f"torch=={TORCH}+cpu"
    attempts = [[f"torch=={TORCH}"]]
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        # As pip is set up here; else from PyTorch's own index, not waiting long for it.
        attempts[:0] = [[cpu], [cpu, "--extra-index-url", CPU_INDEX, "--timeout", "10"]]
    for attempt in attempts:
        last = attempt is attempts[-1]
        if pip(*attempt, *([] if last else ["--retries", "0"]), quiet=not last) == 0:
            return
    sys.exit("pip could not install torch (its message is above). Check the network and retry.")


def pip(*arguments: str, quiet: bool = False) -> int:
    """pip's exit code. Its warnings about the machine's own set-up are left out."""
    command = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode and not quiet:
        print(done.stderr, file=sys.stderr)
    return done.returncode


def run_in_venv() -> None:
    """Become the same command, run by `.venv`'s Python."""
    command = [str(PYTHON), str(ROOT / "manage.py"), *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
