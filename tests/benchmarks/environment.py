"""TRL's own virtual environment, made once and kept in the project's data folder."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ("torch", "transformers", "peft", "safetensors", "tokenizers")  # the same on both sides
PINS = ["trl==1.16.*", "datasets", *(f"{name}=={version(name)}" for name in SHARED)]


def data_folder() -> Path:
    """Where the project keeps what is not in the repository."""
    return Path(os.environ.get("PREFLOOP_DATA", ROOT / "var")).resolve()


def trl_python() -> Path:
    """The Python of an environment that holds PINS; it is made if it is not there."""
    folder = data_folder() / "bench-env"
    python, made_from = folder / "bin" / "python", folder / "prefloop.json"
    if made_from.exists() and json.loads(made_from.read_text()) == PINS:
        return python
    print(f"Making TRL's environment in {folder} (about a minute) ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install(python)
    made_from.write_text(json.dumps(PINS))
    return python


def install(python: Path) -> None:
    """Install PINS as pip is set up here, or with PyTorch's index of this build (cpu, cu130 …)."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PINS]
    build = version("torch").partition("+")[2]
    if build and subprocess.run(command, capture_output=True).returncode == 0:
        return
    index = ["--extra-index-url", f"https://download.pytorch.org/whl/{build}"] if build else []
    if subprocess.run([*command, *index]).returncode:
        sys.exit("TRL's environment could not be installed (pip's message is above)")
